//! Message bodies and how many pending entries each still has.
//!
//! The count is an absolute value under its own key, so that replay repeats the same puts. Within one entry several
//! settlements may touch one message before the batch is written: [`Counts`] shows them to each other.

use std::collections::{HashMap, HashSet};
use std::io;

use bytes::Bytes;

use crate::encoding::{Reader, Writer};
use crate::ids::{Offset, SessionId};
use crate::keys;
use crate::machine::{TableBatch, Tables};
use crate::message::{LogTime, Recipient};

use super::pending;

/// What the entry that is being applied has already changed.
#[derive(Default)]
pub(super) struct Counts {
    remaining: HashMap<Offset, u64>,
    settled: HashSet<(SessionId, Offset)>,
    /// Pending rows.
    pub written: u64,
    pub removed: u64,
}

impl Counts {
    /// Writes a message with its pending entries.
    pub fn store(
        &mut self,
        batch: &mut TableBatch<'_>,
        offset: Offset,
        now: LogTime,
        encoded: &[u8],
        recipients: &[Recipient],
    ) {
        let mut body = Writer::with_capacity(8 + encoded.len());
        body.u64(now.0).raw(encoded);
        batch.put(&keys::message(offset), &body.finish());
        self.put_remaining(batch, offset, recipients.len() as u64);
        for recipient in recipients {
            batch.put(
                &keys::pending(recipient.session, offset),
                &pending::encode_row(recipient, false),
            );
        }
        self.written += recipients.len() as u64;
    }

    /// Removes a pending entry; with the last one its message. Idempotent: answers the row that was there, if any.
    ///
    /// # Errors
    /// The engine cannot read.
    pub fn settle(
        &mut self,
        tables: &Tables,
        batch: &mut TableBatch<'_>,
        session: SessionId,
        offset: Offset,
    ) -> io::Result<Option<Bytes>> {
        let key = keys::pending(session, offset);
        if self.settled.contains(&(session, offset)) {
            return Ok(None);
        }
        let Some(row) = tables.get(&key)? else {
            return Ok(None);
        };
        self.settled.insert((session, offset));
        batch.delete(&key);
        self.removed += 1;
        let remaining = match self.remaining.get(&offset) {
            Some(remaining) => *remaining,
            None => read_remaining(tables, offset)?,
        };
        debug_assert!(
            remaining > 0,
            "settle-once: offset {offset} has a pending entry but no count"
        );
        match remaining.saturating_sub(1) {
            0 => {
                self.remaining.insert(offset, 0);
                batch.delete(&keys::message(offset));
                batch.delete(&keys::remaining(offset));
            }
            left => self.put_remaining(batch, offset, left),
        }
        Ok(Some(row))
    }

    /// Whether this entry of the log has already removed it.
    pub fn is_settled(&self, session: SessionId, offset: Offset) -> bool {
        self.settled.contains(&(session, offset))
    }

    fn put_remaining(&mut self, batch: &mut TableBatch<'_>, offset: Offset, remaining: u64) {
        self.remaining.insert(offset, remaining);
        let mut value = Writer::with_capacity(4);
        value.var(remaining);
        batch.put(&keys::remaining(offset), &value.finish());
    }
}

fn read_remaining(tables: &Tables, offset: Offset) -> io::Result<u64> {
    let Some(row) = tables.get(&keys::remaining(offset))? else {
        return Ok(0);
    };
    Ok(Reader::new("remaining count", &row).var()?)
}

/// The body under [`keys::message`]: when it was appended, and the encoded message.
pub(super) fn decode_body(row: &Bytes) -> io::Result<(LogTime, Bytes)> {
    let mut reader = Reader::new("message body", row);
    Ok((LogTime(reader.u64()?), reader.rest()))
}
