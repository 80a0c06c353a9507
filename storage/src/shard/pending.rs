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

use super::rows::Rows;
use super::{messages, read_head};

/// A message that a session still has to get, as it was granted at the match.
#[derive(Clone, Debug)]
pub struct PendingEntry {
    pub offset: Offset,
    pub appended_at: LogTime,
    pub granted: Recipient,
    /// PUBREC was received and committed: the client is sent PUBREL, not the PUBLISH. [MQTT-4.3.3-5]
    pub released: bool,
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
    let start = keys::pending(session, Offset(after.0.saturating_add(1)));
    let end = keys::pending(session, Offset(head.0.saturating_add(1)));
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
        let (granted, released) = decode_row(session, &value)?;
        entries.push(PendingEntry {
            offset,
            appended_at,
            granted,
            released,
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

/// A session's first `limit` entries: offset and row.
pub(super) fn rows_of(tables: &Tables, session: SessionId, limit: usize) -> io::Result<Vec<(Offset, Bytes)>> {
    let (start, end) = (
        keys::pending(session, Offset(0)),
        keys::pending(session, Offset(u64::MAX)),
    );
    let rows = tables.scan(&start, &end, limit)?;
    Ok(rows
        .into_iter()
        .filter_map(|(key, row)| Some((keys::offset_of_pending(&key)?, row)))
        .collect())
}

/// Marks an entry as released. Without effect once it is gone.
pub(super) fn release(rows: &mut Rows<'_, '_>, session: SessionId, offset: Offset) -> io::Result<()> {
    let key = keys::pending(session, offset);
    if rows.counts.is_settled(session, offset) {
        return Ok(());
    }
    if let Some(row) = rows.tables.get(&key)? {
        let (granted, released) = decode_row(session, &row)?;
        if !released {
            rows.batch.put(&key, &encode_row(&granted, true));
        }
    }
    Ok(())
}

impl Page {
    /// As sent to a node that holds no replica.
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(256);
        writer.var(self.upto.0).bool(self.more).var(self.entries.len() as u64);
        for entry in &self.entries {
            writer.var(entry.offset.0).var(entry.appended_at.0);
            entry.granted.write(&mut writer);
            writer.bool(entry.released).bytes(&entry.message.encode());
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
                released: reader.bool()?,
                message: Arc::new(Message::decode(&reader.bytes()?)?),
            });
        }
        Ok(Page { entries, upto, more })
    }
}

/// The value of a pending row: a recipient without its session, which stands in the key; and whether it was released.
pub(super) fn encode_row(recipient: &Recipient, released: bool) -> Bytes {
    let mut writer = Writer::with_capacity(8);
    Recipient {
        session: SessionId(0),
        ..recipient.clone()
    }
    .write(&mut writer);
    if released {
        writer.bool(true);
    }
    writer.finish()
}

pub(super) fn decode_row(session: SessionId, row: &Bytes) -> Result<(Recipient, bool), DecodeError> {
    let mut reader = Reader::new("pending entry", row);
    let granted = Recipient {
        session,
        ..Recipient::read(&mut reader)?
    };
    let released = !reader.is_at_end() && reader.bool()?;
    Ok((granted, released))
}
