//! Sessions: client id → session, who serves it, when it ends. [MQTT-3.1.2-4] to [MQTT-3.1.2-6]
//!
//!     Connect ─▶ served under a new epoch ─▶ Detach | NodeDown ─▶ unserved ─▶ Connect … | expiry
//!                                             └─ ephemeral, or expiry 0 ─▶ ended
//!
//! What becomes of the connection's will, see [`super::wills`]: [MQTT-3.1.2-8] [MQTT-3.1.3-9] [MQTT-3.14.4-3]
//!
//!     Detach with DISCONNECT 0x00                   discarded
//!     Detach otherwise, NodeDown                    waits min(Will Delay, Session Expiry); 0: due
//!       then a Connect that resumes the session     discarded if its time has not come
//!     Connect that takes over and resumes           due if its delay is 0, else discarded
//!     the session ends, whatever the reason         due
//!
//! Invariant `one-owner`: the epoch grows with every Connect; Detach, Subscribe, Unsubscribe of another are void.

use std::collections::{BTreeMap, BTreeSet};

use super::{Change, MetaEvent, MetaState, SubscriptionOptions, expires_at, rows};
use crate::command::{MetaReply, Owner, Will};
use crate::ids::{Incarnation, MetaIndex, Offset, SessionEpoch, SessionId};
use crate::message::LogTime;
use crate::topic::share_parts;

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
    /// The will of the connection; only while served.
    pub will: Option<Will>,
    /// Shared ones with their whole filter, `$share/{name}/{filter}`.
    pub subscriptions: BTreeMap<Box<str>, SubscriptionOptions>,
    /// Subscriptions whose retained messages have still to be put into the session's queue: by filter, the index of
    /// the Subscribe that asked for them, until a RetainedDone names it. Only QoS ≥ 1 ones of a durable session.
    pub retained_owed: BTreeMap<Box<str>, MetaIndex>,
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
    pub will: Option<Will>,
}

impl Session {
    fn served(&self, id: SessionId, owner: Owner) -> MetaEvent {
        MetaEvent::Served {
            session: id,
            epoch: self.epoch,
            owner,
            request: self.connected.request,
        }
    }

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
        self.sessions.get(&session).map(Box::as_ref)
    }

    pub fn session_of(&self, client_id: &str) -> Option<(SessionId, &Session)> {
        let id = *self.clients.get(client_id)?;
        Some((id, self.sessions.get(&id).map(Box::as_ref)?))
    }

    pub fn sessions(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.sessions.iter().map(|(id, session)| (*id, &**session))
    }

    /// Number of sessions: (all, durable).
    pub fn session_counts(&self) -> (usize, usize) {
        (self.sessions.len(), self.durable_sessions)
    }

    /// Number of sessions that a node serves now.
    pub fn connected_count(&self) -> usize {
        self.owned.values().map(BTreeSet::len).sum()
    }

    /// The session if `epoch` is its current one.
    pub(super) fn current_session(&mut self, id: SessionId, epoch: SessionEpoch) -> Option<&mut Session> {
        let session = self.sessions.get_mut(&id).map(Box::as_mut);
        session.filter(|session| session.epoch == epoch)
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
        let known = self.session_of(&connect.client_id);
        if let Some((id, session)) = known
            && (session.connected.incarnation, session.connected.request) == (connected.incarnation, connected.request)
        {
            return session.answer(id);
        }
        if !change.has_ids(1) {
            return MetaReply::Stale;
        }
        if let Some((id, session)) = known {
            connected.previous = session.owner;
            let expired = session.expires_at.is_some_and(|at| at <= self.log_time);
            // The connection that is displaced closes: a session that was to last as long ends with it. [MQTT-3.1.2.11.2]
            let ends = session.owner.is_some() && session.expiry == 0;
            connected.present = session.durable && !connect.clean_start && !expired && !ends;
            self.displace(id, change);
            if connected.present {
                return self.resume(id, connect, connected, change);
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
            will: connect.will,
            subscriptions: BTreeMap::new(),
            retained_owed: BTreeMap::new(),
        };
        rows::put_session(change.batch, id, &session);
        change.events.push(session.served(id, connect.owner));
        let answer = session.answer(id);
        self.durable_sessions += usize::from(session.durable);
        self.sessions.insert(id, Box::new(session));
        self.clients.insert(connect.client_id, id);
        self.owned.entry(connect.owner.node).or_default().insert(id);
        answer
    }

    /// Tells the connection that serves the session, if any, to stop.
    fn displace(&self, id: SessionId, change: &mut Change<'_, '_>) {
        let Some(session) = self.sessions.get(&id) else { return };
        if let Some(owner) = session.owner {
            change.events.push(MetaEvent::Displaced {
                session: id,
                epoch: session.epoch,
                owner,
            });
        }
    }

    fn resume(
        &mut self,
        id: SessionId,
        connect: Connect,
        connected: Connected,
        change: &mut Change<'_, '_>,
    ) -> MetaReply {
        self.unserve(id);
        self.resolve_will(id, change);
        let Some(session) = self.sessions.get_mut(&id) else {
            return MetaReply::Stale;
        };
        let owner = connect.owner;
        session.epoch.0 += 1;
        session.expiry = connect.expiry;
        session.owner = Some(owner);
        session.connected = connected;
        session.will = connect.will;
        if connected.previous.is_some() {
            session.sent = None;
        }
        rows::put_session(change.batch, id, session);
        change.events.push(session.served(id, owner));
        let answer = session.answer(id);
        self.owned.entry(owner.node).or_default().insert(id);
        self.session_routes_changed(id, change);
        answer
    }

    /// The session is resumed: the will of a connection that is taken over counts only without a delay, that of an
    /// earlier one only if its time has come. [MQTT-3.1.3-9]
    fn resolve_will(&mut self, id: SessionId, change: &mut Change<'_, '_>) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let epoch = session.epoch;
        match session.will.take() {
            Some(will) if will.delay == 0 => self.schedule_will(id, epoch, will, 0, change),
            Some(_) => {}
            None => {
                self.discard_will(id, epoch, change);
            }
        }
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
        publish_will: bool,
        change: &mut Change<'_, '_>,
    ) -> MetaReply {
        let Some(session) = self.current_session(id, epoch) else {
            return MetaReply::Stale;
        };
        if session.owner.is_none() {
            // A repeat, or NodeDown came first. DISCONNECT 0x00 still counts, but not against a will that is due: who
            // hears Done may tell the client that there is none.
            let is_settled = publish_will || self.discard_will(id, epoch, change);
            return if is_settled { MetaReply::Done } else { MetaReply::Stale };
        }
        if let Some(expiry) = expiry {
            session.expiry = expiry;
        }
        if !publish_will {
            session.will = None;
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
        let (epoch, will) = (session.epoch, session.will.take());
        let expiry = session.expiry;
        session.sent = sent;
        session.expires_at = expires_at(now, session.expiry);
        if let Some(at) = session.expires_at {
            self.expiring.insert((at, id));
        }
        rows::put_session(change.batch, id, session);
        self.session_routes_changed(id, change);
        if let Some(will) = will {
            let delay = will.delay.min(expiry);
            self.schedule_will(id, epoch, will, delay, change);
        }
    }

    pub(super) fn end_session_now(
        &mut self,
        id: SessionId,
        epoch: Option<SessionEpoch>,
        change: &mut Change<'_, '_>,
    ) -> MetaReply {
        let session = self.sessions.get(&id);
        if session.is_none_or(|session| epoch.is_some_and(|epoch| epoch != session.epoch)) {
            return MetaReply::Stale;
        }
        self.displace(id, change);
        self.end_session(id, change);
        MetaReply::Done
    }

    /// With it ends the delay of its will. [MQTT-3.1.3-9]
    pub(super) fn end_session(&mut self, id: SessionId, change: &mut Change<'_, '_>) {
        self.unserve(id);
        let Some(session) = self.sessions.remove(&id).map(|session| *session) else {
            return;
        };
        self.durable_sessions -= usize::from(session.durable);
        match session.will {
            Some(will) => self.schedule_will(id, session.epoch, will, 0, change),
            None => self.will_due(id, session.epoch, change),
        }
        for (filter, options) in &session.subscriptions {
            if share_parts(filter).is_some() {
                self.remove_subscription(id, filter, change);
            } else if options.exclusive {
                self.let_go(filter, id);
            }
        }
        if !session.subscriptions.is_empty() {
            self.route_version = change.at.index;
            self.route_changes.each(change.at.index, session.subscriptions.keys());
            self.leaving.push_back((id, session.subscriptions.into_iter()));
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
}
