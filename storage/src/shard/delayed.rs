//! Delayed messages: stored when they are published to `$delayed/{seconds}/{topic}`, appended when they are due.
//!
//! ```text
//!   Delay ─▶ row (due, id) ─ due in log time ─▶ Append { Origin::Delayed } ─▶ an ordinary message, matched then
//!     └ full: refused                               └ the row is gone: another leader's was first, nothing happens
//! ```
//!
//! Invariant `release-once`: a row leaves in the entry that appends its message. The row is the repeat key: however many
//! leaders propose it, and however late, one of them finds it. An id is never used again.
//!
//! It takes no offset before it is appended: to those who read the shard it does not exist yet.

use std::io;

use bytes::Bytes;

use super::Shard;
use super::head::Head;
use super::repeats::{self, Seen};
use super::rows::Rows;
use crate::command::{Delay, OperationResult, Origin};
use crate::encoding::{DecodeError, Reader, Writer};
use crate::ids::DelayedId;
use crate::keys;
use crate::machine::Tables;
use crate::message::{LogTime, Message};

/// How much waits in a shard for its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DelayedSize {
    pub count: u64,
    /// Topics, payloads and properties.
    pub bytes: u64,
}

/// A message that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delayed {
    pub due: LogTime,
    pub id: DelayedId,
    pub message: Message,
}

/// What the shard's head says of delayed messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DelayedHead {
    pub size: DelayedSize,
    last_id: DelayedId,
}

impl DelayedHead {
    /// At the end of the head, once there was one: a release that knew none wrote nothing here, and reads no further.
    pub fn write(&self, writer: &mut Writer) {
        if *self != DelayedHead::default() {
            writer.var(self.last_id.0).var(self.size.count).var(self.size.bytes);
        }
    }

    pub fn read(reader: &mut Reader<'_>) -> Result<DelayedHead, DecodeError> {
        if reader.is_at_end() {
            return Ok(DelayedHead::default());
        }
        Ok(DelayedHead {
            last_id: DelayedId(reader.var()?),
            size: DelayedSize {
                count: reader.var()?,
                bytes: reader.var()?,
            },
        })
    }
}

impl Shard {
    pub(super) fn delay(&mut self, delay: Delay, rows: &mut Rows<'_, '_>) -> io::Result<Option<OperationResult>> {
        let is_full = delay.count_max.is_some_and(|max| self.head.delayed.size.count >= max);
        // What stands already is acknowledged again.
        if is_full && !repeats::is_received(rows, delay.origin)? {
            return Ok(Some(OperationResult::Full));
        }
        match self.seen(delay.origin, rows)? {
            Seen::New => {}
            Seen::Repeat => return Ok(None),
            Seen::Refused => return Ok(Some(OperationResult::Refused)),
        }
        let message = Message::decode(&delay.message)?;
        let head = &mut self.head.delayed;
        head.last_id.0 += 1;
        head.size.count += 1;
        head.size.bytes += message.size() as u64;
        let due = self.head.log_time.plus_seconds(delay.seconds);
        rows.put(&keys::delayed(due, self.head.delayed.last_id), delay.message);
        Ok(None)
    }
}

/// The message of a row is to be appended: the row goes, if it is there and its time has come.
pub(super) fn release(rows: &mut Rows<'_, '_>, head: &mut Head, due: LogTime, id: DelayedId) -> io::Result<Seen> {
    let key = keys::delayed(due, id);
    let Some(row) = rows.get(&key)?.filter(|_| due <= head.log_time) else {
        return Ok(Seen::Refused);
    };
    let waiting = &mut head.delayed.size;
    waiting.count = waiting.count.saturating_sub(1);
    let size = Message::decode(&row)?.size() as u64;
    waiting.bytes = waiting.bytes.saturating_sub(size);
    rows.delete(&key);
    Ok(Seen::New)
}

impl Delayed {
    /// What its append says of it.
    pub fn origin(&self) -> Origin {
        Origin::Delayed {
            due: self.due,
            id: self.id,
        }
    }
}

/// Messages that wait until `from` to `until`, the first to be due first: at most `limit` and (but for one) `bytes_max`.
///
/// # Errors
/// The engine cannot read, or a row is torn.
pub fn read_delayed(
    tables: &Tables,
    (from, until): (LogTime, LogTime),
    limit: usize,
    bytes_max: usize,
) -> io::Result<Vec<Delayed>> {
    let start = keys::delayed(from, DelayedId(0));
    let end = keys::delayed(LogTime(until.0.saturating_add(1)), DelayedId(0));
    let (mut delayed, mut bytes, mut start) = (Vec::new(), 0, start.to_vec());
    // In short pieces: a row is as large as its message.
    while delayed.len() < limit && bytes < bytes_max {
        let piece = PIECE.min(limit - delayed.len());
        let found = tables.scan(&start, &end, piece)?;
        let is_end = found.len() < piece;
        for (key, row) in found {
            if bytes >= bytes_max {
                return Ok(delayed);
            }
            bytes += row.len();
            start = [&key[..], &[0]].concat();
            delayed.push(read(&key, &row)?);
        }
        if is_end {
            break;
        }
    }
    Ok(delayed)
}

fn read(key: &Bytes, row: &Bytes) -> Result<Delayed, DecodeError> {
    let mut reader = Reader::new("delayed message key", key);
    reader.u8()?;
    Ok(Delayed {
        due: LogTime(reader.u64()?),
        id: DelayedId(reader.u64()?),
        message: Message::decode(row)?,
    })
}

/// How much waits in a shard, as its tables show it.
///
/// # Errors
/// The engine cannot read, or the row is torn.
pub fn read_delayed_size(tables: &Tables) -> io::Result<DelayedSize> {
    Ok(Head::read(tables)?.delayed.size)
}

/// Rows in memory at a time.
const PIECE: usize = 32;
