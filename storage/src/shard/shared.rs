//! Shared groups: a message waits in the group's queue until it is assigned to a connected member. [MQTT-4.8.2]
//!
//! ```text
//!   Append ─▶ (group, offset) ─Assign─▶ (member, new offset) ─Ack─▶ gone
//!                  ▲                          │
//!                  └── Unassign, Sweep ───────┘   QoS 1 only: QoS 2 stays with the member's session [MQTT-4.8.2-5]
//! ```
//!
//! Each move takes a new offset, so that for the member's session it is an entry like any other: in order, live or read
//! in pages, with its own Packet Identifier.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::rows::Rows;
use super::{Shard, messages, pending};
use crate::command::Assignment;
use crate::ids::{Offset, SessionEpoch, SessionId};
use crate::keys;
use crate::machine::Tables;
use crate::message::{LogTime, Message, Recipient, Role};

impl Shard {
    /// A message of a group becomes an entry of a member. Without effect once it has left the group's queue.
    pub(super) fn assign(
        &mut self,
        group: SessionId,
        assignment: &Assignment,
        rows: &mut Rows<'_, '_>,
    ) -> io::Result<()> {
        let Some(moved) = take(rows, group, assignment.offset)? else {
            return Ok(());
        };
        let message = Arc::new(Message::decode(&moved.encoded)?);
        let member = Recipient {
            session: assignment.session,
            qos: assignment.qos.min(message.qos),
            retain: false,
            subscription_identifiers: assignment.identifier.into_iter().collect(),
            role: Role::Member {
                group,
                epoch: assignment.epoch,
            },
        };
        self.enter(
            &moved.encoded,
            message,
            moved.appended_at,
            Arc::from([member]),
            false,
            rows,
        );
        Ok(())
    }

    /// What a member was assigned goes back to its group. Without effect on anything else.
    pub(super) fn unassign(&mut self, session: SessionId, offset: Offset, rows: &mut Rows<'_, '_>) -> io::Result<()> {
        if let Some(row) = rows.tables.get(&keys::pending(session, offset))? {
            self.give_back(session, offset, &row, rows)?;
        }
        Ok(())
    }

    /// [`crate::test_bugs::Bug::ShareRedeliverAcked`]: whether it would go back to a group.
    pub(super) fn is_members(&self, session: SessionId, offset: Offset, rows: &Rows<'_, '_>) -> io::Result<bool> {
        let Some(row) = rows.tables.get(&keys::pending(session, offset))? else {
            return Ok(false);
        };
        Ok(returns_to(&pending::decode_row(session, &row)?.0).is_some())
    }

    /// As [`Shard::unassign`], with the entry's row; how many bytes moved.
    pub(super) fn give_back(
        &mut self,
        session: SessionId,
        offset: Offset,
        row: &Bytes,
        rows: &mut Rows<'_, '_>,
    ) -> io::Result<usize> {
        let (granted, _) = pending::decode_row(session, row)?;
        let Some(group) = returns_to(&granted) else {
            return Ok(0);
        };
        let Some(moved) = take(rows, session, offset)? else {
            return Ok(0);
        };
        let message = Message::decode(&moved.encoded)?;
        let queue = Recipient {
            session: group,
            qos: message.qos,
            retain: false,
            subscription_identifiers: Vec::new(),
            role: Role::Group,
        };
        self.wait(&moved.encoded, &message, moved.appended_at, &queue, rows);
        Ok(moved.encoded.len())
    }
}

/// What was taken out of a queue to enter another.
struct Moved {
    appended_at: LogTime,
    encoded: Bytes,
}

/// Takes an entry out of a queue; none if it is gone.
fn take(rows: &mut Rows<'_, '_>, from: SessionId, offset: Offset) -> io::Result<Option<Moved>> {
    if rows.counts.settle(rows.tables, rows.batch, from, offset)?.is_none() {
        return Ok(None);
    }
    // The tables show it until this entry of the log is written.
    let body = rows.tables.get(&keys::message(offset))?;
    let body = body.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a pending entry has no message"))?;
    let (appended_at, encoded) = messages::decode_body(&body)?;
    Ok(Some(Moved { appended_at, encoded }))
}

/// Whether an entry with this row goes back to its group when its member is gone; then, to which.
fn returns_to(granted: &Recipient) -> Option<SessionId> {
    match granted.role {
        Role::Member { group, .. } if granted.qos < 2 => Some(group),
        Role::Member { .. } | Role::Session | Role::Group => None,
    }
}

/// An entry that was assigned to a member of a shared group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assigned {
    pub offset: Offset,
    pub qos: u8,
    pub group: SessionId,
    pub epoch: SessionEpoch,
}

/// What `session` was assigned of shared groups, among its entries behind `after`; and where to go on, if there may be
/// more.
///
/// # Errors
/// The engine cannot read, or a row is torn.
pub fn read_assigned(
    tables: &Tables,
    session: SessionId,
    after: Offset,
    limit: usize,
) -> io::Result<(Vec<Assigned>, Option<Offset>)> {
    let start = keys::pending(session, Offset(after.0.saturating_add(1)));
    let end = keys::pending(session, Offset(u64::MAX));
    let rows = tables.scan(&start, &end, limit)?;
    let more = rows.len() == limit;
    let (mut assigned, mut last) = (Vec::new(), None);
    for (key, row) in rows {
        let Some(offset) = keys::offset_of_pending(&key) else {
            continue;
        };
        last = Some(offset);
        let (granted, _) = pending::decode_row(session, &row)?;
        if let Role::Member { group, epoch } = granted.role {
            assigned.push(Assigned {
                offset,
                qos: granted.qos,
                group,
                epoch,
            });
        }
    }
    Ok((assigned, last.filter(|_| more)))
}

/// A message that waits in a group.
#[derive(Clone, Debug)]
pub struct Waiting {
    pub offset: Offset,
    pub appended_at: LogTime,
    pub message: Message,
}

/// The first messages that wait in a group behind `after`, until `limit` or `bytes_max` is reached (at least one).
///
/// # Errors
/// The engine cannot read, or a row is torn.
pub fn read_waiting(
    tables: &Tables,
    group: SessionId,
    after: Offset,
    limit: usize,
    bytes_max: usize,
) -> io::Result<Vec<Waiting>> {
    let start = keys::pending(group, Offset(after.0.saturating_add(1)));
    let end = keys::pending(group, Offset(u64::MAX));
    let (mut waiting, mut bytes) = (Vec::new(), 0);
    for (key, _) in tables.scan(&start, &end, limit)? {
        if bytes >= bytes_max {
            break;
        }
        let Some(offset) = keys::offset_of_pending(&key) else {
            continue;
        };
        if let Some(body) = tables.get(&keys::message(offset))? {
            let (appended_at, encoded) = messages::decode_body(&body)?;
            let message = Message::decode(&encoded)?;
            bytes += message.size();
            waiting.push(Waiting {
                offset,
                appended_at,
                message,
            });
        }
    }
    Ok(waiting)
}

/// How many messages wait in a group behind `after`, counted up to `limit`.
///
/// # Errors
/// The engine cannot read.
pub fn count_waiting(tables: &Tables, group: SessionId, after: Offset, limit: usize) -> io::Result<usize> {
    let start = keys::pending(group, Offset(after.0.saturating_add(1)));
    let end = keys::pending(group, Offset(u64::MAX));
    Ok(tables.scan(&start, &end, limit)?.len())
}
