//! A message takes an offset, and enters queues.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::effects::Appended;
use super::repeats::{self, Seen};
use super::retained::{self, Retained};
use super::rows::Rows;
use super::{Shard, delayed};
use crate::command::{Append, OperationResult, Origin};
use crate::ids::{MetaIndex, Offset};
use crate::message::{LogTime, Message, Recipient, Role};

/// A recipient set, as it takes offsets: all sessions one, each group its own.
pub(super) struct RecipientSet {
    sessions: Arc<[Recipient]>,
    groups: Vec<Recipient>,
}

impl RecipientSet {
    pub fn new(set: Vec<Recipient>) -> RecipientSet {
        let (groups, sessions): (Vec<_>, Vec<_>) = set.into_iter().partition(|one| one.role == Role::Group);
        RecipientSet {
            sessions: sessions.into(),
            groups,
        }
    }
}

impl Shard {
    pub(super) fn append(
        &mut self,
        append: Append,
        set: &RecipientSet,
        route_version: MetaIndex,
        rows: &mut Rows<'_, '_>,
    ) -> io::Result<Option<OperationResult>> {
        match self.seen(append.origin, rows)? {
            Seen::New => {}
            Seen::Repeat => return Ok(None),
            Seen::Refused => return Ok(Some(OperationResult::Refused)),
        }
        let message = Arc::new(Message::decode(&append.message)?);
        let now = self.head.log_time;
        let offset = self.enter(&append.message, message.clone(), now, set.sessions.clone(), true, rows);
        for group in &set.groups {
            self.wait(&append.message, &message, now, group, rows);
        }
        self.head.ledger.enqueued += (set.sessions.len() + set.groups.len()) as u64;
        if message.retain {
            let row = Retained {
                offset,
                appended_at: now,
                matched_at: route_version,
                encoded: append.message,
            };
            retained::put(rows, &mut self.head.retained, &message, &row)?;
        }
        Ok(None)
    }

    /// Whether what comes has come before, and is to be stored.
    pub(super) fn seen(&mut self, origin: Origin, rows: &mut Rows<'_, '_>) -> io::Result<Seen> {
        match origin {
            Origin::Plain => Ok(Seen::New),
            Origin::Received {
                session,
                epoch,
                packet_id,
            } => repeats::receive(rows, session, epoch, packet_id, Offset(self.head.last_offset.0 + 1)),
            Origin::Will {
                session,
                epoch,
                not_after,
            } => repeats::will(rows, session, epoch, self.head.log_time, not_after),
            Origin::Delayed { due, id } => delayed::release(rows, &mut self.head, due, id),
        }
    }

    /// A message takes the next offset, and enters the queues of `recipients`.
    pub(super) fn enter(
        &mut self,
        encoded: &Bytes,
        message: Arc<Message>,
        appended_at: LogTime,
        recipients: Arc<[Recipient]>,
        published: bool,
        rows: &mut Rows<'_, '_>,
    ) -> Offset {
        self.head.last_offset.0 += 1;
        let offset = self.head.last_offset;
        // Without a pending entry nobody will read it from the tables: what is connected gets it from the effects.
        if !recipients.is_empty() {
            rows.counts.store(rows.batch, offset, appended_at, encoded, &recipients);
        }
        if let Some(effects) = &mut self.effects {
            effects.appended.push(Appended {
                offset,
                appended_at,
                message,
                encoded: encoded.clone(),
                recipients,
                published,
            });
        }
        offset
    }

    /// A message takes an offset in the queue of a shared group.
    pub(super) fn wait(
        &mut self,
        encoded: &Bytes,
        message: &Message,
        appended_at: LogTime,
        group: &Recipient,
        rows: &mut Rows<'_, '_>,
    ) {
        debug_assert!(message.qos > 0, "a QoS 0 message does not wait");
        self.head.last_offset.0 += 1;
        let queue = std::slice::from_ref(group);
        rows.counts
            .store(rows.batch, self.head.last_offset, appended_at, encoded, queue);
        if let Some(effects) = &mut self.effects {
            effects.waiting.push(group.session);
        }
    }
}
