//! Wills of connections that have ended: each is published once, or discarded before its time has come. [MQTT-3.1.2-8]
//!
//!     connection ends ─▶ waiting ─▶ due ─▶ published
//!                           └─ resumed, DISCONNECT 0x00: discarded            it outlives its session
//!
//! Invariant `will-once`: a connection (session, epoch) leaves at most one; what is due is published, whatever comes;
//! only what waits can be discarded.

use std::collections::{BTreeMap, BTreeSet};

use super::{Change, MetaEvent, MetaState, rows};
use crate::command::{MetaReply, Will};
use crate::ids::{SessionEpoch, SessionId};
use crate::message::LogTime;

/// The will of a connection that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduledWill {
    /// When it becomes due if nothing comes first.
    pub due_at: LogTime,
    /// It is to be published now.
    pub due: bool,
    pub will: Will,
}

/// Wills by the connection that left them.
#[derive(Debug, Default)]
pub(super) struct Wills {
    all: BTreeMap<(SessionId, SessionEpoch), ScheduledWill>,
    /// Those that are not due, by when they become so.
    waiting: BTreeSet<(LogTime, SessionId, SessionEpoch)>,
    due: BTreeSet<(SessionId, SessionEpoch)>,
}

impl Wills {
    /// Replaces what that connection left.
    pub(super) fn insert(&mut self, session: SessionId, epoch: SessionEpoch, scheduled: ScheduledWill) {
        self.remove(session, epoch);
        if scheduled.due {
            self.due.insert((session, epoch));
        } else {
            self.waiting.insert((scheduled.due_at, session, epoch));
        }
        self.all.insert((session, epoch), scheduled);
    }

    fn remove(&mut self, session: SessionId, epoch: SessionEpoch) -> Option<ScheduledWill> {
        let removed = self.all.remove(&(session, epoch))?;
        self.due.remove(&(session, epoch));
        self.waiting.remove(&(removed.due_at, session, epoch));
        Some(removed)
    }
}

impl MetaState {
    /// The will that the connection left, until it has been published or discarded.
    pub fn scheduled_will(&self, session: SessionId, epoch: SessionEpoch) -> Option<&ScheduledWill> {
        self.wills.all.get(&(session, epoch))
    }

    /// When the next will becomes due that is not due yet, in log time.
    pub fn next_will(&self) -> Option<LogTime> {
        self.wills.waiting.first().map(|(at, ..)| *at)
    }

    /// Wills to be published now.
    pub fn due_wills(&self) -> impl Iterator<Item = (SessionId, SessionEpoch, &Will)> {
        let due = self.wills.due.iter();
        due.filter_map(|key| Some((key.0, key.1, &self.wills.all.get(key)?.will)))
    }

    /// Number of wills of ended connections: (all, due).
    pub fn will_counts(&self) -> (usize, usize) {
        (self.wills.all.len(), self.wills.due.len())
    }

    /// The connection ended: its will becomes due in `delay` seconds.
    pub(super) fn schedule_will(
        &mut self,
        session: SessionId,
        epoch: SessionEpoch,
        will: Will,
        delay: u32,
        change: &mut Change<'_, '_>,
    ) {
        let scheduled = ScheduledWill {
            due_at: self.log_time.plus_seconds(delay),
            due: delay == 0,
            will,
        };
        self.put_will(session, epoch, scheduled, change);
    }

    fn put_will(
        &mut self,
        session: SessionId,
        epoch: SessionEpoch,
        scheduled: ScheduledWill,
        change: &mut Change<'_, '_>,
    ) {
        if scheduled.due {
            change.events.push(MetaEvent::WillDue { session, epoch });
        }
        rows::put_will(change.batch, session, epoch, &scheduled);
        self.wills.insert(session, epoch, scheduled);
    }

    /// The connection's session ended, or its will's time has come: a will that waits is due from now on.
    pub(super) fn will_due(&mut self, session: SessionId, epoch: SessionEpoch, change: &mut Change<'_, '_>) {
        let Some(scheduled) = self.scheduled_will(session, epoch).filter(|scheduled| !scheduled.due) else {
            return;
        };
        let scheduled = ScheduledWill {
            due_at: scheduled.due_at.min(self.log_time),
            due: true,
            will: scheduled.will.clone(),
        };
        self.put_will(session, epoch, scheduled, change);
    }

    /// Discards a will whose time has not come; one whose time has is due. Tells whether none is left to be published.
    pub(super) fn discard_will(
        &mut self,
        session: SessionId,
        epoch: SessionEpoch,
        change: &mut Change<'_, '_>,
    ) -> bool {
        let Some(scheduled) = self.scheduled_will(session, epoch) else {
            return true;
        };
        if scheduled.due || scheduled.due_at <= self.log_time {
            self.will_due(session, epoch, change);
            return false;
        }
        self.wills.remove(session, epoch);
        rows::delete_will(change.batch, session, epoch);
        true
    }

    pub(super) fn due_wills_until_now(&mut self, limit: u32, change: &mut Change<'_, '_>) -> MetaReply {
        let mut count = 0;
        while count < limit
            && let Some((at, session, epoch)) = self.wills.waiting.first().copied()
            && at <= self.log_time
        {
            self.will_due(session, epoch, change);
            count += 1;
        }
        MetaReply::Due { count }
    }

    pub(super) fn will_published(
        &mut self,
        session: SessionId,
        epoch: SessionEpoch,
        change: &mut Change<'_, '_>,
    ) -> MetaReply {
        if !self.wills.due.contains(&(session, epoch)) {
            return MetaReply::Stale;
        }
        self.wills.remove(session, epoch);
        rows::delete_will(change.batch, session, epoch);
        MetaReply::Done
    }
}
