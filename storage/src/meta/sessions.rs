//! Sessions: client id → session, who serves it, when it ends. [MQTT-3.1.2-4] to [MQTT-3.1.2-6]
//!
//!     Connect ─▶ served under a new epoch ─▶ Detach | NodeDown ─▶ unserved ─▶ Connect … | expiry
//!                                             └─ ephemeral, or expiry 0 ─▶ ended
//!
//! Invariant `one-owner`: the epoch grows with every Connect; Detach, Subscribe, Unsubscribe of another are void.

use std::collections::BTreeMap;

use super::{Change, MetaEvent, MetaState, SubscriptionOptions, expires_at, rows};
use crate::command::{MetaReply, Owner, Subscription};
use crate::ids::{Incarnation, Offset, SessionEpoch, SessionId};
use crate::message::LogTime;

/// The state of a client that outlives its connections, or (ephemeral) ends with the one it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub client_id: Box<str>,
    pub epoch: SessionEpoch,
    /// Fixed when the session is created.
    pub durable: bool,
    /// Session Expiry Interval in seconds; 0xFFFFFFFF never.
    pub expiry: u32,
    pub owner: Option<Owner>,
    /// When it ends unless a Connect comes first; only while unserved.
    pub expires_at: Option<LogTime>,
    /// The highest offset that was ever sent to its client, by shard, as of the last Detach; `None` if a connection
    /// ended without telling. What lies above was never sent: its DUP flag is 0. [MQTT-3.3.1-1]
    pub sent: Option<Vec<Offset>>,
    /// The Connect that opened the current epoch, and what it was answered.
    pub connected: Connected,
    pub subscriptions: BTreeMap<Box<str>, SubscriptionOptions>,
}

/// What a Connect was answered, so that a repeat of it hears the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connected {
    pub incarnation: Incarnation,
    pub request: u64,
    pub present: bool,
    pub previous: Option<Owner>,
}

/// A CONNECT as the control plane sees it.
pub(super) struct Connect {
    pub client_id: Box<str>,
    pub clean_start: bool,
    pub expiry: u32,
    pub owner: Owner,
    pub request: u64,
}

impl Session {
    fn answer(&self, id: SessionId) -> MetaReply {
        let Connected { present, previous, .. } = self.connected;
        MetaReply::Connected {
            session: id,
            epoch: self.epoch,
            present,
            durable: self.durable,
            previous,
        }
    }
}

impl MetaState {
    pub fn session(&self, session: SessionId) -> Option<&Session> {
        self.sessions.get(&session)
    }

    pub fn session_of(&self, client_id: &str) -> Option<(SessionId, &Session)> {
        let id = *self.clients.get(client_id)?;
        Some((id, self.sessions.get(&id)?))
    }

    pub fn sessions(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.sessions.iter().map(|(id, session)| (*id, session))
    }

    /// Number of sessions: (all, durable).
    pub fn session_counts(&self) -> (usize, usize) {
        (
            self.sessions.len(),
            self.sessions.values().filter(|session| session.durable).count(),
        )
    }

    pub(super) fn connect(&mut self, connect: Connect, change: &mut Change<'_, '_>) -> MetaReply {
        if !self.is_live(connect.owner) {
            return MetaReply::Stale;
        }
        let mut connected = Connected {
            incarnation: connect.owner.incarnation,
            request: connect.request,
            present: false,
            previous: None,
        };
        if let Some((id, session)) = self.session_of(&connect.client_id) {
            let repeated = (session.connected.incarnation, session.connected.request);
            if repeated == (connected.incarnation, connected.request) {
                return session.answer(id);
            }
            connected.previous = session.owner;
            if let Some(owner) = session.owner {
                change.events.push(MetaEvent::Displaced {
                    session: id,
                    epoch: session.epoch,
                    owner,
                });
            }
            let expired = session.expires_at.is_some_and(|at| at <= self.log_time);
            if session.durable && !connect.clean_start && !expired {
                connected.present = true;
                return self.resume(id, connect.expiry, connect.owner, connected, change);
            }
            self.end_session(id, change);
        }
        let id = SessionId(change.fresh_id());
        let session = Session {
            client_id: connect.client_id.clone(),
            epoch: SessionEpoch(1),
            durable: connect.expiry > 0,
            expiry: connect.expiry,
            owner: Some(connect.owner),
            expires_at: None,
            sent: Some(Vec::new()),
            connected,
            subscriptions: BTreeMap::new(),
        };
        rows::put_session(change.batch, id, &session);
        let answer = session.answer(id);
        self.sessions.insert(id, session);
        self.clients.insert(connect.client_id, id);
        self.owned.entry(connect.owner.node).or_default().insert(id);
        answer
    }

    fn resume(
        &mut self,
        id: SessionId,
        expiry: u32,
        owner: Owner,
        connected: Connected,
        change: &mut Change<'_, '_>,
    ) -> MetaReply {
        self.unserve(id);
        let Some(session) = self.sessions.get_mut(&id) else {
            return MetaReply::Stale;
        };
        session.epoch.0 += 1;
        session.expiry = expiry;
        session.owner = Some(owner);
        session.connected = connected;
        if connected.previous.is_some() {
            session.sent = None;
        }
        rows::put_session(change.batch, id, session);
        let (answer, subscribed) = (session.answer(id), !session.subscriptions.is_empty());
        self.owned.entry(owner.node).or_default().insert(id);
        if subscribed {
            self.routes_changed();
        }
        answer
    }

    /// Takes a session out of the indexes by owner and by expiry.
    fn unserve(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if let Some(owner) = session.owner.take()
            && let Some(owned) = self.owned.get_mut(&owner.node)
        {
            owned.remove(&id);
        }
        if let Some(at) = session.expires_at.take() {
            self.expiring.remove(&(at, id));
        }
    }

    pub(super) fn detach(
        &mut self,
        id: SessionId,
        epoch: SessionEpoch,
        expiry: Option<u32>,
        sent: Option<Vec<Offset>>,
        change: &mut Change<'_, '_>,
    ) -> MetaReply {
        let Some(session) = self.sessions.get_mut(&id).filter(|session| session.epoch == epoch) else {
            return MetaReply::Stale;
        };
        if session.owner.is_none() {
            return MetaReply::Done;
        }
        if let Some(expiry) = expiry {
            session.expiry = expiry;
        }
        self.owner_gone(id, sent, change);
        MetaReply::Done
    }

    /// The connection is gone: an ephemeral session ends, a durable one waits for its client.
    pub(super) fn owner_gone(&mut self, id: SessionId, sent: Option<Vec<Offset>>, change: &mut Change<'_, '_>) {
        self.unserve(id);
        let now = self.log_time;
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if !session.durable || session.expiry == 0 {
            self.end_session(id, change);
            return;
        }
        session.sent = sent;
        session.expires_at = expires_at(now, session.expiry);
        if let Some(at) = session.expires_at {
            self.expiring.insert((at, id));
        }
        rows::put_session(change.batch, id, session);
        if !session.subscriptions.is_empty() {
            self.routes_changed();
        }
    }

    pub(super) fn end_session(&mut self, id: SessionId, change: &mut Change<'_, '_>) {
        self.unserve(id);
        let Some(session) = self.sessions.remove(&id) else {
            return;
        };
        for filter in session.subscriptions.keys() {
            self.remove_subscription(id, filter, change);
        }
        if self.clients.get(&session.client_id) == Some(&id) {
            self.clients.remove(&session.client_id);
        }
        rows::delete_session(change.batch, id);
        change.events.push(MetaEvent::SessionEnded {
            session: id,
            durable: session.durable,
        });
    }

    /// Ends what has expired in log time, oldest first.
    pub(super) fn expire_sessions(&mut self, limit: u32, change: &mut Change<'_, '_>) -> MetaReply {
        let mut count = 0;
        while count < limit
            && let Some((at, id)) = self.expiring.first().copied()
            && at <= self.log_time
        {
            self.end_session(id, change);
            count += 1;
        }
        MetaReply::Expired { count }
    }

    /// The next session expiry in log time, if any.
    pub fn next_expiry(&self) -> Option<LogTime> {
        self.expiring.first().map(|(at, _)| *at)
    }

    pub(super) fn subscribe(
        &mut self,
        id: SessionId,
        epoch: SessionEpoch,
        subscriptions: Vec<Subscription>,
        change: &mut Change<'_, '_>,
    ) -> MetaReply {
        let Some(session) = self.sessions.get_mut(&id).filter(|session| session.epoch == epoch) else {
            return MetaReply::Stale;
        };
        for subscription in &subscriptions {
            session
                .subscriptions
                .insert(subscription.filter.clone(), SubscriptionOptions::of(subscription));
        }
        for subscription in subscriptions {
            self.add_subscription(id, &subscription, change);
        }
        MetaReply::Done
    }

    pub(super) fn unsubscribe(
        &mut self,
        id: SessionId,
        epoch: SessionEpoch,
        filters: Vec<Box<str>>,
        change: &mut Change<'_, '_>,
    ) -> MetaReply {
        let Some(session) = self.sessions.get_mut(&id).filter(|session| session.epoch == epoch) else {
            return MetaReply::Stale;
        };
        let existed: Vec<bool> = filters
            .iter()
            .map(|filter| session.subscriptions.remove(filter).is_some())
            .collect();
        for (filter, existed) in filters.iter().zip(&existed) {
            if *existed {
                self.remove_subscription(id, filter, change);
            }
        }
        MetaReply::Unsubscribed { existed }
    }
}
