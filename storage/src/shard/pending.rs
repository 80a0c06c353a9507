//! The queue of a durable session in a shard: rows `(session, offset)`, read in pages.
//!
//! The pending entries are the truth about what a session still has to get; a live push is a shortcut.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::encoding::{DecodeError, Reader, Writer};
use crate::ids::{Offset, SessionId};
use crate::keys;
use crate::machine::Tables;
use crate::message::{LogTime, Message, Recipient};

use super::{messages, read_head};

/// A message that a session still has to get, as it was granted at the match.
#[derive(Clone, Debug)]
pub struct PendingEntry {
    pub offset: Offset,
    pub appended_at: LogTime,
    pub granted: Recipient,
    pub message: Arc<Message>,
}

/// A piece of a session's queue.
#[derive(Clone, Debug)]
pub struct Page {
    pub entries: Vec<PendingEntry>,
    /// The page holds every entry of the session with `after < offset <= upto`.
    pub upto: Offset,
    /// Whether more may follow `upto` in the view that was read.
    pub more: bool,
}

/// Reads a session's entries behind `after`, in order, until `entries_max` or `bytes_max` is reached (at least one).
///
/// # Errors
/// The engine cannot read, or a row is torn.
pub fn read_page(
    tables: &Tables,
    session: SessionId,
    after: Offset,
    entries_max: usize,
    bytes_max: usize,
) -> io::Result<Page> {
    // The head is read first: the scan then sees at least everything up to it.
    let (head, _) = read_head(tables)?;
    let start = keys::pending(session, Offset(after.0 + 1));
    let end = keys::pending(session, Offset(head.0 + 1));
    let rows = tables.scan(&start, &end, entries_max)?;
    let mut full = rows.len() == entries_max;
    let (mut entries, mut bytes, mut last) = (Vec::with_capacity(rows.len()), 0, after);
    for (key, value) in rows {
        if bytes >= bytes_max {
            full = true;
            break;
        }
        let offset = keys::offset_of_pending(&key)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a pending key is torn"))?;
        last = offset;
        // An entry that was settled between the two reads is gone: nothing to deliver.
        let Some(body) = tables.get(&keys::message(offset))? else {
            continue;
        };
        let (appended_at, encoded) = messages::decode_body(&body)?;
        let message = Arc::new(Message::decode(&encoded)?);
        bytes += message.size();
        entries.push(PendingEntry {
            offset,
            appended_at,
            granted: decode_granted(session, &value)?,
            message,
        });
    }
    let upto = if full { last } else { head.max(after) };
    Ok(Page {
        entries,
        upto,
        more: full,
    })
}

/// The first session behind `after` that has entries here: how a sweeper finds those that are gone.
///
/// # Errors
/// The engine cannot read, or a key is torn.
pub fn next_session(tables: &Tables, after: Option<SessionId>) -> io::Result<Option<SessionId>> {
    let start = keys::pending(SessionId(after.map_or(0, |session| session.0 + 1)), Offset(0));
    let (_, end) = keys::kind_range(keys::PENDING);
    let Some((key, _)) = tables.scan(&start, &end, 1)?.into_iter().next() else {
        return Ok(None);
    };
    let mut reader = Reader::new("pending key", &key);
    reader.u8()?;
    Ok(Some(SessionId(reader.u64()?)))
}

/// Offsets of a session's first `limit` entries.
pub(super) fn offsets(tables: &Tables, session: SessionId, limit: usize) -> io::Result<Vec<Offset>> {
    let (start, end) = (
        keys::pending(session, Offset(0)),
        keys::pending(session, Offset(u64::MAX)),
    );
    let rows = tables.scan(&start, &end, limit)?;
    Ok(rows
        .iter()
        .filter_map(|(key, _)| keys::offset_of_pending(key))
        .collect())
}

impl Page {
    /// As sent to a node that holds no replica.
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(256);
        writer.var(self.upto.0).bool(self.more).var(self.entries.len() as u64);
        for entry in &self.entries {
            writer.var(entry.offset.0).var(entry.appended_at.0);
            entry.granted.write(&mut writer);
            writer.bytes(&entry.message.encode());
        }
        writer.finish()
    }

    /// # Errors
    /// The bytes are torn.
    pub fn decode(bytes: &Bytes) -> Result<Page, DecodeError> {
        let mut reader = Reader::new("page", bytes);
        let (upto, more) = (Offset(reader.var()?), reader.bool()?);
        let mut entries = Vec::new();
        for _ in 0..reader.count()? {
            entries.push(PendingEntry {
                offset: Offset(reader.var()?),
                appended_at: LogTime(reader.var()?),
                granted: Recipient::read(&mut reader)?,
                message: Arc::new(Message::decode(&reader.bytes()?)?),
            });
        }
        Ok(Page { entries, upto, more })
    }
}

/// The value of a pending row: a recipient without its session, which stands in the key.
pub(super) fn encode_granted(recipient: &Recipient) -> Bytes {
    let mut writer = Writer::with_capacity(8);
    Recipient {
        session: SessionId(0),
        ..recipient.clone()
    }
    .write(&mut writer);
    writer.finish()
}

fn decode_granted(session: SessionId, value: &Bytes) -> Result<Recipient, DecodeError> {
    let mut reader = Reader::new("pending entry", value);
    Ok(Recipient {
        session,
        ..Recipient::read(&mut reader)?
    })
}
