//! The route table: filter → durable sessions with their options; filter → nodes with connected ephemeral subscribers.

use std::collections::{BTreeMap, BTreeSet};

use super::{Change, MetaState, rows};
use crate::command::{MetaReply, Owner, Subscription};
use crate::ids::{NodeId, SessionId};

/// Options of one subscription, as granted. [MQTT-3.8.3]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriptionOptions {
    pub qos: u8,
    pub no_local: bool,
    pub retain_as_published: bool,
    pub identifier: Option<u32>,
}

impl SubscriptionOptions {
    pub fn of(subscription: &Subscription) -> Self {
        SubscriptionOptions {
            qos: subscription.qos,
            no_local: subscription.no_local,
            retain_as_published: subscription.retain_as_published,
            identifier: subscription.identifier,
        }
    }
}

/// Who subscribed to one filter.
#[derive(Default)]
pub(super) struct Route {
    sessions: BTreeMap<SessionId, SubscriptionOptions>,
    nodes: BTreeSet<NodeId>,
}

impl Route {
    fn is_used(&self) -> bool {
        !self.sessions.is_empty() || !self.nodes.is_empty()
    }
}

/// Everybody that a topic name matches, at one version of the route table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matched {
    pub route_version: u64,
    /// Durable sessions, by id.
    pub sessions: Vec<MatchedSession>,
    /// Up nodes with connected ephemeral sessions that match, by id.
    pub nodes: Vec<NodeId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatchedSession {
    pub session: SessionId,
    /// The node that serves it now.
    pub owner: Option<NodeId>,
    /// Options of each of its subscriptions that match.
    pub subscriptions: Vec<SubscriptionOptions>,
}

impl MetaState {
    /// Matches a topic name against every subscription of the cluster. [MQTT-3.3.5-1]
    pub fn match_topic(&self, topic: &str) -> Matched {
        let mut sessions = BTreeMap::<SessionId, Vec<SubscriptionOptions>>::new();
        let mut nodes = BTreeSet::new();
        self.routes.matches(topic, &mut |route: &Route| {
            for (session, options) in &route.sessions {
                sessions.entry(*session).or_default().push(*options);
            }
            nodes.extend(&route.nodes);
        });
        let sessions = sessions
            .into_iter()
            .map(|(session, subscriptions)| {
                let owner = self
                    .sessions
                    .get(&session)
                    .and_then(|session| session.owner)
                    .map(|owner| owner.node);
                MatchedSession {
                    session,
                    owner,
                    subscriptions,
                }
            })
            .collect();
        Matched {
            route_version: self.route_version,
            sessions,
            nodes: nodes.into_iter().collect(),
        }
    }

    /// Number of filters in the route table.
    pub fn route_count(&self) -> usize {
        self.routes.len()
    }

    pub(super) fn add_subscription(
        &mut self,
        session: SessionId,
        subscription: &Subscription,
        change: &mut Change<'_, '_>,
    ) {
        self.link_subscription(session, &subscription.filter, SubscriptionOptions::of(subscription));
        rows::put_subscription(change.batch, session, subscription);
    }

    /// Memory only: also used when the rows are loaded.
    pub(super) fn link_subscription(&mut self, session: SessionId, filter: &str, options: SubscriptionOptions) {
        self.routes.entry(filter).sessions.insert(session, options);
        self.routes_changed();
    }

    pub(super) fn remove_subscription(&mut self, session: SessionId, filter: &str, change: &mut Change<'_, '_>) {
        self.routes.update(filter, |route| {
            route.sessions.remove(&session);
            route.is_used()
        });
        self.routes_changed();
        rows::delete_subscription(change.batch, session, filter);
    }

    pub(super) fn node_routes(
        &mut self,
        owner: Owner,
        add: Vec<Box<str>>,
        remove: Vec<Box<str>>,
        change: &mut Change<'_, '_>,
    ) -> MetaReply {
        if !self.is_live(owner) {
            return MetaReply::Stale;
        }
        for filter in remove {
            self.unlink_node_route(owner.node, &filter);
            rows::delete_node_route(change.batch, owner.node, &filter);
            if let Some(filters) = self.node_filters.get_mut(&owner.node) {
                filters.remove(&filter);
            }
        }
        for filter in add {
            rows::put_node_route(change.batch, owner.node, &filter);
            self.link_node_route(owner.node, filter);
        }
        MetaReply::Done
    }

    pub(super) fn link_node_route(&mut self, node: NodeId, filter: Box<str>) {
        self.routes.entry(&filter).nodes.insert(node);
        self.node_filters.entry(node).or_default().insert(filter);
        self.routes_changed();
    }

    fn unlink_node_route(&mut self, node: NodeId, filter: &str) {
        self.routes.update(filter, |route| {
            route.nodes.remove(&node);
            route.is_used()
        });
        self.routes_changed();
    }

    /// The node's connections are gone, and what they subscribed to with them.
    pub(super) fn drop_node_routes(&mut self, node: NodeId, change: &mut Change<'_, '_>) {
        for filter in self.node_filters.remove(&node).unwrap_or_default() {
            self.unlink_node_route(node, &filter);
            rows::delete_node_route(change.batch, node, &filter);
        }
    }
}
