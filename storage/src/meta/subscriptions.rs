//! What sessions subscribed to, and what retained messages they are owed for it. [MQTT-3.8.4-3] [MQTT-3.10.4-2]

use super::{Change, MetaState, Session, SubscriptionOptions, rows};
use crate::command::{MetaReply, Subscription};
use crate::ids::{MetaIndex, SessionEpoch, SessionId};
use crate::topic::share_parts;

impl Session {
    /// Notes what a subscription makes owed. What an earlier one with the same filter made owed stays, unless the new
    /// one asks by itself: a client that resumes and subscribes again with Retain Handling 1 has not got it yet.
    /// A QoS 0 subscription is never owed anything: its node replays at once. [MQTT-3.3.1-9] to [MQTT-3.3.1-11]
    fn owe_retained(&mut self, filter: &str, options: SubscriptionOptions, existed: bool, at: MetaIndex) {
        if !self.durable || options.qos == 0 {
            self.retained_owed.remove(filter);
        } else if options.retain_handling == 0 || (options.retain_handling == 1 && !existed) {
            self.retained_owed.insert(filter.into(), at);
        }
    }
}

impl MetaState {
    pub(super) fn subscribe(
        &mut self,
        id: SessionId,
        epoch: SessionEpoch,
        subscriptions: Vec<Subscription>,
        change: &mut Change<'_, '_>,
    ) -> MetaReply {
        if self.current_session(id, epoch).is_none() {
            return MetaReply::Stale;
        }
        let groups = subscriptions.iter().filter(|one| share_parts(&one.filter).is_some());
        if !change.has_ids(groups.count()) {
            return MetaReply::Stale;
        }
        let (mut existed, mut refused) = (Vec::with_capacity(subscriptions.len()), Vec::new());
        for (position, subscription) in (0..).zip(&subscriptions) {
            let is_refused = subscription.exclusive && self.is_held_by_another(&subscription.filter, id);
            if is_refused {
                refused.push(position);
            }
            existed.push(!is_refused && self.subscribe_one(id, subscription, change));
        }
        MetaReply::Subscribed { existed, refused }
    }

    /// Whether the filter had been subscribed before.
    fn subscribe_one(&mut self, id: SessionId, subscription: &Subscription, change: &mut Change<'_, '_>) -> bool {
        let (filter, options) = (&subscription.filter, SubscriptionOptions::of(subscription));
        let Some(session) = self.sessions.get_mut(&id) else {
            return false;
        };
        if !session.durable && !options.exclusive && share_parts(filter).is_none() {
            let existed = session.subscriptions.remove(filter).is_some();
            if existed {
                self.remove_subscription(id, filter, change);
            }
            return existed;
        }
        let is_durable = session.durable;
        let existed = session.subscriptions.insert(filter.clone(), options).is_some();
        let mut owed = None;
        match share_parts(filter) {
            Some((name, filter)) => self.join_group(name, filter, id, options, change),
            None => {
                session.owe_retained(filter, options, existed, MetaIndex(change.at.index));
                owed = session.retained_owed.get(filter).copied();
                match options.exclusive {
                    true => self.hold(filter, id),
                    false => self.let_go(filter, id),
                }
                if is_durable {
                    self.link_subscription(id, filter, options);
                }
            }
        }
        rows::put_subscription(change.batch, id, subscription, owed);
        self.route_changed(&subscription.filter, change);
        existed
    }

    pub(super) fn unsubscribe(
        &mut self,
        id: SessionId,
        epoch: SessionEpoch,
        filters: Vec<Box<str>>,
        change: &mut Change<'_, '_>,
    ) -> MetaReply {
        let Some(session) = self.current_session(id, epoch) else {
            return MetaReply::Stale;
        };
        let existed: Vec<bool> = filters
            .iter()
            .map(|filter| {
                session.retained_owed.remove(filter);
                session.subscriptions.remove(filter).is_some()
            })
            .collect();
        for (filter, existed) in filters.iter().zip(&existed) {
            if *existed {
                self.remove_subscription(id, filter, change);
            }
        }
        MetaReply::Unsubscribed { existed }
    }

    /// Takes a subscription that its session has lost out of routes and rows.
    pub(super) fn remove_subscription(&mut self, session: SessionId, filter: &str, change: &mut Change<'_, '_>) {
        match share_parts(filter) {
            Some((name, filter)) => self.leave_group(name, filter, session, change),
            None => {
                self.let_go(filter, session);
                self.unlink_subscription(session, filter);
            }
        }
        rows::delete_subscription(change.batch, session, filter);
        self.route_changed(filter, change);
    }

    pub(super) fn retained_done(
        &mut self,
        id: SessionId,
        filter: &str,
        version: MetaIndex,
        change: &mut Change<'_, '_>,
    ) -> MetaReply {
        let Some(session) = self.sessions.get_mut(&id) else {
            return MetaReply::Stale;
        };
        let Some(options) = session.subscriptions.get(filter).copied() else {
            return MetaReply::Stale;
        };
        if session.retained_owed.get(filter) != Some(&version) {
            return MetaReply::Stale;
        }
        session.retained_owed.remove(filter);
        rows::put_subscription(change.batch, id, &options.subscription(filter), None);
        MetaReply::Done
    }
}
