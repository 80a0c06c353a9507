//! Queues of sessions that nobody serves, and of shared groups: what has expired leaves, and what is beyond the configured
//! limits.
//!
//! ```text
//!   each shard's leader walks the queues, a few pages per round ─▶ expired: Ack ─▶ beyond a limit: by its policy
//! ```
//!
//! An attached session is its owner's matter. A QoS 2 entry that may have been sent is never dropped: it is resent, or
//! closed by PUBREL and PUBCOMP. (DESIGN §4) One of QoS 1 that was sent does not expire either: its delivery has begun, and is
//! finished by sending it again. [MQTT-3.3.2-5] The operator's limits may drop it.
//! A group does not end by its queue: where sessions would, the oldest leave.

use lontra_storage::command::{Left, MetaOp, ShardOperation};
use lontra_storage::ids::{Offset, SessionEpoch, SessionId, ShardId};
use lontra_storage::keys;
use lontra_storage::message::{LogTime, Role};
use lontra_storage::shard::{Page, PendingEntry, next_session, read_page};

use crate::Inner;
use crate::group::Group;

/// Limits of one session's queue in one shard; none are off. The disk watermark holds beside them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueLimits {
    pub messages: Option<u64>,
    /// Topics, payloads and properties.
    pub bytes: Option<u64>,
    /// Milliseconds since a message was published.
    pub age: Option<u64>,
    pub policy: QueuePolicy,
}

/// What happens when a queue is beyond a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueuePolicy {
    /// The session ends: Session Present tells its client.
    #[default]
    EndSession,
    DropOldest,
    DropNew,
}

/// Where the walk over a shard's queues is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Walk {
    session: Option<SessionId>,
    after: Offset,
    /// All that were seen; then what of them is neither expired nor too old.
    entries: u64,
    messages: u64,
    bytes: u64,
}

/// What a round found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub operations: Vec<ShardOperation>,
    pub ended: Vec<MetaOp>,
}

impl Inner {
    /// Walks on, for a few pages.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub(crate) fn walk_queues(&self, shard: ShardId, group: &Group, walk: &mut Walk) -> std::io::Result<Found> {
        let mut found = Found::default();
        let mut work = 0;
        while work < WORK_PER_ROUND {
            let Some(session) = self.session_of_walk(group, walk)? else {
                return Ok(found);
            };
            let page = read_page(&group.tables, session, walk.after, PAGE_ENTRIES, PAGE_BYTES)?;
            work += PAGE_WORK + page.entries.len();
            work += page.entries.iter().map(|entry| entry.message.size()).sum::<usize>() / BYTES_PER_WORK;
            found
                .operations
                .extend(self.forgotten_assignments(session, group, &page));
            let bound = self.sent_bound(session, shard);
            let now = group.clock.now();
            let over: Vec<&PendingEntry> = page
                .entries
                .iter()
                .filter(|entry| {
                    is_expired(entry, now) && may_expire(entry, bound)
                        || self.is_too_old(entry, now) && is_droppable(entry, bound)
                })
                .collect();
            self.metrics.queue_dropped("expired", over.len());
            let offsets: Vec<Offset> = over.iter().map(|entry| entry.offset).collect();
            walk.entries += page.entries.len() as u64;
            walk.messages += (page.entries.len() - offsets.len()) as u64;
            walk.bytes += page
                .entries
                .iter()
                .filter(|entry| !offsets.contains(&entry.offset))
                .map(|entry| entry.message.size() as u64)
                .sum::<u64>();
            if !offsets.is_empty() {
                let how = Left::Expired;
                found.operations.push(ShardOperation::Ack { session, how, offsets });
            }
            walk.after = page.upto;
            if !page.more {
                self.limit_queue(shard, group, session, walk, &mut found)?;
                *walk = Walk {
                    session: Some(session),
                    after: Offset(u64::MAX),
                    ..Walk::default()
                };
            }
        }
        Ok(found)
    }

    /// What a session was assigned of groups that it has left since: nobody else looks for that. It goes back, once no
    /// acknowledgement can be under way.
    fn forgotten_assignments(&self, session: SessionId, group: &Group, page: &Page) -> Option<ShardOperation> {
        let meta = self.meta_view.read();
        let is_forgotten = |entry: &&PendingEntry| match entry.granted.role {
            Role::Member { group: of, .. } if entry.granted.qos < 2 => {
                let left = meta
                    .share_group(of)
                    .is_some_and(|of| !of.members.contains_key(&session));
                left && entry.appended_at.plus_seconds(FORGOTTEN_AFTER) <= group.clock.now()
            }
            Role::Member { .. } | Role::Session | Role::Group => false,
        };
        let forgotten = page.entries.iter().filter(is_forgotten);
        let offsets: Vec<Offset> = forgotten.map(|entry| entry.offset).collect();
        (!offsets.is_empty()).then_some(ShardOperation::Unassign { session, offsets })
    }

    /// The session whose queue the walk is in; the next one if that is done or served again. None at the end of a round
    /// over all.
    fn session_of_walk(&self, group: &Group, walk: &mut Walk) -> std::io::Result<Option<SessionId>> {
        if let Some(session) = walk.session
            && walk.after != Offset(u64::MAX)
            && self.is_unserved(session)
        {
            return Ok(Some(session));
        }
        for _ in 0..SESSIONS_SKIPPED {
            let next = next_session(&group.tables, keys::PENDING, walk.session)?;
            *walk = Walk {
                session: next,
                ..Walk::default()
            };
            match next {
                None => return Ok(None),
                Some(session) if self.is_unserved(session) => return Ok(next),
                Some(_) => walk.after = Offset(u64::MAX),
            }
        }
        Ok(None)
    }

    fn is_unserved(&self, queue: SessionId) -> bool {
        let meta = self.meta_view.read();
        let unserved = meta.session(queue).map(|session| session.owner.is_none());
        unserved.unwrap_or_else(|| meta.share_group(queue).is_some())
    }

    /// The epoch of a session that nobody serves; none of a group.
    fn unserved_epoch(&self, queue: SessionId) -> Option<SessionEpoch> {
        let meta = self.meta_view.read();
        let session = meta.session(queue).filter(|session| session.owner.is_none());
        session.map(|session| session.epoch)
    }

    /// Up to where entries may have been sent; none if that is not known.
    fn sent_bound(&self, session: SessionId, shard: ShardId) -> Option<Offset> {
        let meta = self.meta_view.read();
        let sent = meta.session(session)?.sent.as_ref()?;
        Some(sent.get(usize::from(shard.0)).copied().unwrap_or_default())
    }

    fn is_too_old(&self, entry: &PendingEntry, now: LogTime) -> bool {
        let age = self.limits.borrow().queue.age;
        age.is_some_and(|age| LogTime(entry.appended_at.0.saturating_add(age)) <= now)
    }

    /// The whole queue of a session was seen: `walk` counted it.
    fn limit_queue(
        &self,
        shard: ShardId,
        group: &Group,
        session: SessionId,
        walk: &Walk,
        found: &mut Found,
    ) -> std::io::Result<()> {
        let limits = self.limits.borrow().queue;
        let messages_over = limits.messages.map_or(0, |max| walk.messages.saturating_sub(max));
        let bytes_over = limits.bytes.map_or(0, |max| walk.bytes.saturating_sub(max));
        if messages_over == 0 && bytes_over == 0 {
            return Ok(());
        }
        let (after, newest_first) = match (limits.policy, self.unserved_epoch(session)) {
            (QueuePolicy::EndSession, Some(epoch)) => {
                tracing::warn!(
                    session = session.0,
                    shard = shard.0,
                    messages = walk.messages,
                    bytes = walk.bytes,
                    "a session ends: its queue is longer than allowed"
                );
                self.metrics.queue_dropped("session_ended", 1);
                // Void if its client came back meanwhile.
                let epoch = Some(epoch);
                found.ended.push(MetaOp::EndSession { session, epoch });
                return Ok(());
            }
            (QueuePolicy::EndSession | QueuePolicy::DropOldest, _) => (Offset(0), false),
            (QueuePolicy::DropNew, _) => {
                // What goes is among the last; how many of them, their sizes tell too.
                let kept = walk.entries.saturating_sub(DROP_MAX as u64);
                (self.offset_behind(group, session, kept)?, true)
            }
        };
        let bound = self.sent_bound(session, shard);
        let page = read_page(&group.tables, session, after, DROP_MAX, usize::MAX)?;
        let (mut offsets, mut bytes) = (Vec::new(), 0);
        let entries: Vec<&PendingEntry> = match newest_first {
            true => page.entries.iter().rev().collect(),
            false => page.entries.iter().collect(),
        };
        for entry in entries {
            if (offsets.len() as u64) >= messages_over && bytes >= bytes_over {
                break;
            }
            if is_droppable(entry, bound) {
                bytes += entry.message.size() as u64;
                offsets.push(entry.offset);
            }
        }
        let how = if newest_first { Left::DropNew } else { Left::DropOldest };
        self.metrics.queue_dropped(how.name(), offsets.len());
        if !offsets.is_empty() {
            found.operations.push(ShardOperation::Ack { session, how, offsets });
        }
        Ok(())
    }

    /// The offset behind which the entries of a queue beyond the first `kept` lie.
    fn offset_behind(&self, group: &Group, session: SessionId, kept: u64) -> std::io::Result<Offset> {
        let (mut after, mut left) = (Offset(0), kept);
        while left > 0 {
            let page = read_page(
                &group.tables,
                session,
                after,
                left.min(PAGE_ENTRIES as u64) as usize,
                usize::MAX,
            )?;
            left -= (page.entries.len() as u64).min(left);
            after = page.upto;
            if !page.more {
                break;
            }
        }
        Ok(after)
    }
}

/// Whether the shard may drop it: assignments of shared groups go back, and QoS 2 that may have been sent is finished.
fn is_droppable(entry: &PendingEntry, bound: Option<Offset>) -> bool {
    let may_have_been_sent = entry.released || bound.is_none_or(|bound| entry.offset <= bound);
    match entry.granted.role {
        Role::Session => !(entry.granted.qos == 2 && may_have_been_sent),
        Role::Group => true,
        Role::Member { .. } => false,
    }
}

/// Whether its Message Expiry Interval has passed.
fn is_expired(entry: &PendingEntry, now: LogTime) -> bool {
    let interval = entry.message.expiry_interval;
    interval.is_some_and(|seconds| entry.appended_at.plus_seconds(seconds) <= now)
}

/// Whether it may leave because it has expired: only what was never sent. At QoS 1 what is not known to have been sent counts
/// as not sent: after the end of a node nothing is known of a whole queue, also of what comes later, and that must go.
/// [MQTT-3.3.2-5]
fn may_expire(entry: &PendingEntry, bound: Option<Offset>) -> bool {
    let was_sent = bound.is_some_and(|bound| entry.offset <= bound);
    is_droppable(entry, bound) && !(entry.granted.role == Role::Session && was_sent)
}

/// Entries that one round looks at, in all.
const WORK_PER_ROUND: usize = 2048;
/// What a page costs besides its entries.
const PAGE_WORK: usize = 8;
const BYTES_PER_WORK: usize = 16 * 1024;
/// Seconds since a message was published.
const FORGOTTEN_AFTER: u32 = 10;
const PAGE_ENTRIES: usize = 128;
const PAGE_BYTES: usize = 1024 * 1024;
const SESSIONS_SKIPPED: usize = 1000;
/// An entry of the log stays short.
const DROP_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use lontra_storage::message::{Message, Recipient};

    use super::*;

    fn entry(offset: u64, qos: u8, role: Role) -> PendingEntry {
        PendingEntry {
            offset: Offset(offset),
            appended_at: LogTime(1000),
            granted: Recipient {
                session: SessionId(9),
                qos,
                retain: false,
                subscription_identifiers: vec![],
                role,
            },
            released: false,
            message: Arc::new(Message {
                topic: "t".into(),
                payload: Bytes::new(),
                qos,
                retain: false,
                publisher: SessionId(1),
                expiry_interval: Some(2),
                properties: Bytes::new(),
            }),
        }
    }

    #[test]
    fn what_was_sent_does_not_expire() {
        let check = |qos, bound: Option<u64>, expires: bool, drops: bool| {
            let (entry, bound) = (entry(5, qos, Role::Session), bound.map(Offset));
            assert_eq!(may_expire(&entry, bound), expires, "QoS {qos}, sent up to {bound:?}");
            assert_eq!(is_droppable(&entry, bound), drops, "QoS {qos}, sent up to {bound:?}");
        };
        for qos in [1, 2] {
            check(qos, Some(4), true, true);
        }
        for bound in [5, 6] {
            check(1, Some(bound), false, true);
            check(2, Some(bound), false, false);
        }
        check(1, None, true, true);
        check(2, None, false, false);
        // The offsets of a group's queue are no client's.
        assert!(may_expire(&entry(5, 1, Role::Group), Some(Offset(6))));
    }

    #[test]
    fn an_entry_expires_when_its_interval_has_passed_in_log_time() {
        let entry = entry(5, 1, Role::Session);
        assert!(!is_expired(&entry, LogTime(2999)));
        assert!(is_expired(&entry, LogTime(3000)));
    }
}
