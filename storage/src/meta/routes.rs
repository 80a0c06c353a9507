//! The route table: filter → durable sessions with their options, shared groups, nodes with connected ephemeral
//! subscribers.

use std::collections::{BTreeMap, BTreeSet};

use super::{Change, MetaState, rows};
use crate::command::{MetaReply, Owner, Subscription};
use crate::ids::{NodeId, SessionId};
use crate::machine::TableBatch;
use crate::topic::share_parts;

/// Options of one subscription, as granted. [MQTT-3.8.3]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriptionOptions {
    pub qos: u8,
    pub no_local: bool,
    pub retain_as_published: bool,
    pub retain_handling: u8,
    pub identifier: Option<u32>,
    /// See [`Subscription::exclusive`].
    pub exclusive: bool,
}

impl SubscriptionOptions {
    pub fn of(subscription: &Subscription) -> Self {
        SubscriptionOptions {
            qos: subscription.qos,
            no_local: subscription.no_local,
            retain_as_published: subscription.retain_as_published,
            retain_handling: subscription.retain_handling,
            identifier: subscription.identifier,
            exclusive: subscription.exclusive,
        }
    }

    /// The subscription to `filter` with these options.
    pub fn subscription(self, filter: &str) -> Subscription {
        Subscription {
            filter: filter.into(),
            qos: self.qos,
            no_local: self.no_local,
            retain_as_published: self.retain_as_published,
            retain_handling: self.retain_handling,
            identifier: self.identifier,
            exclusive: self.exclusive,
        }
    }
}

/// Who subscribed to one filter.
#[derive(Default)]
pub(super) struct Route {
    sessions: BTreeMap<SessionId, SubscriptionOptions>,
    /// Shared groups of this filter, by Share Name.
    pub(super) groups: BTreeMap<Box<str>, SessionId>,
    nodes: BTreeSet<NodeId>,
}

impl Route {
    pub(super) fn is_used(&self) -> bool {
        !self.sessions.is_empty() || !self.groups.is_empty() || !self.nodes.is_empty()
    }
}

/// Everybody that a topic name matches, at one version of the route table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matched {
    pub route_version: u64,
    /// Durable sessions, by id.
    pub sessions: Vec<MatchedSession>,
    /// Shared groups, by id. Their members count among `sessions` only by other subscriptions.
    pub groups: Vec<MatchedGroup>,
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatchedGroup {
    pub group: SessionId,
    /// The highest QoS that a member was granted.
    pub qos: u8,
    /// By id, never empty.
    pub members: Vec<GroupMember>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMember {
    pub session: SessionId,
    /// The node that serves it now.
    pub owner: Option<NodeId>,
    pub options: SubscriptionOptions,
}

impl MetaState {
    /// Matches a topic name against every subscription of the cluster. [MQTT-3.3.5-1]
    pub fn match_topic(&self, topic: &str) -> Matched {
        let mut sessions = BTreeMap::<SessionId, Vec<SubscriptionOptions>>::new();
        let (mut groups, mut nodes) = (BTreeSet::new(), BTreeSet::new());
        self.routes.matches(topic, &mut |route: &Route| {
            for (session, options) in &route.sessions {
                sessions.entry(*session).or_default().push(*options);
            }
            groups.extend(route.groups.values());
            nodes.extend(&route.nodes);
        });
        let sessions = sessions
            .into_iter()
            .filter_map(|(session, subscriptions)| {
                // Of one that has ended, and whose filters are leaving, nothing is left to match.
                let owner = self.sessions.get(&session)?.owner;
                Some(MatchedSession {
                    session,
                    owner: owner.map(|owner| owner.node),
                    subscriptions,
                })
            })
            .collect();
        Matched {
            route_version: self.route_version,
            sessions,
            groups: groups
                .into_iter()
                .filter_map(|group| self.matched_group(group))
                .collect(),
            nodes: nodes.into_iter().collect(),
        }
    }

    fn matched_group(&self, id: SessionId) -> Option<MatchedGroup> {
        let group = self.share_group(id)?;
        let members = group.members.iter().map(|(session, options)| GroupMember {
            session: *session,
            owner: self.owner_node(*session),
            options: *options,
        });
        Some(MatchedGroup {
            group: id,
            qos: group.members.values().map(|options| options.qos).max().unwrap_or(0),
            members: members.collect(),
        })
    }

    fn owner_node(&self, session: SessionId) -> Option<NodeId> {
        let owner = self.sessions.get(&session)?.owner?;
        Some(owner.node)
    }

    /// Takes some filters of sessions that have ended out of routes and rows; whether there were any.
    pub(super) fn remove_leaving(&mut self, batch: &mut TableBatch<'_>) -> bool {
        let Some((session, mut filters)) = self.leaving.pop_front() else {
            return false;
        };
        for (filter, _) in filters.by_ref().take(LEAVING_AT_ONCE) {
            if share_parts(&filter).is_none() {
                self.unlink_subscription(session, &filter);
                rows::delete_subscription(batch, session, &filter);
            }
        }
        if filters.len() > 0 {
            self.leaving.push_front((session, filters));
        }
        true
    }

    /// Number of filters in the route table.
    pub fn route_count(&self) -> usize {
        self.routes.len()
    }

    /// Memory only: also used when the rows are loaded.
    pub(super) fn link_subscription(&mut self, session: SessionId, filter: &str, options: SubscriptionOptions) {
        self.routes.entry(filter).sessions.insert(session, options);
    }

    pub(super) fn unlink_subscription(&mut self, session: SessionId, filter: &str) {
        self.routes.update(filter, |route| {
            route.sessions.remove(&session);
            route.is_used()
        });
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
            self.route_changed(&filter, change);
            self.unlink_node_route(owner.node, &filter);
            rows::delete_node_route(change.batch, owner.node, &filter);
            if let Some(filters) = self.node_filters.get_mut(&owner.node) {
                filters.remove(&filter);
            }
        }
        for filter in add {
            self.route_changed(&filter, change);
            rows::put_node_route(change.batch, owner.node, &filter);
            self.link_node_route(owner.node, filter);
        }
        self.route_version = change.at.index;
        MetaReply::Done
    }

    /// Memory only: also used when the rows are loaded.
    pub(super) fn link_node_route(&mut self, node: NodeId, filter: Box<str>) {
        self.routes.entry(&filter).nodes.insert(node);
        self.node_filters.entry(node).or_default().insert(filter);
    }

    fn unlink_node_route(&mut self, node: NodeId, filter: &str) {
        self.routes.update(filter, |route| {
            route.nodes.remove(&node);
            route.is_used()
        });
    }

    /// The node's connections are gone, and what they subscribed to with them.
    pub(super) fn drop_node_routes(&mut self, node: NodeId, change: &mut Change<'_, '_>) {
        for filter in self.node_filters.remove(&node).unwrap_or_default() {
            self.routes_changed(change);
            self.unlink_node_route(node, &filter);
            rows::delete_node_route(change.batch, node, &filter);
        }
    }
}

/// About a millisecond, for which nobody can match anything.
const LEAVING_AT_ONCE: usize = 500;
