//! Retained messages: one per topic, the one with the highest offset; and their replay to new subscriptions.
//!
//! ```text
//!   Append with RETAIN ─▶ row of the topic (an empty payload removes it)          [MQTT-3.3.1-5] [MQTT-3.3.1-6]
//!   EnqueueRetained    ─▶ a page of rows becomes entries of a durable session's queue; progress stands beside
//!   read_retained      ─▶ a page for a subscription that no shard keeps a queue for
//! ```
//!
//! Invariants
//! - `retained-last`: the row of a topic is its retained message with the highest offset.
//! - a replay copies what the subscription was not matched for live: rows of an older route version than its own, up to
//!   the offset at which its first page began. The floor refuses retained messages that were matched before it and come
//!   after, so that none falls in between (P5).

mod read;
mod replay;

use std::io;

use bytes::Bytes;

pub use read::{RetainedMessage, RetainedPage, read_retained};
pub(super) use replay::forget_replay;
pub use replay::remembered_replays;

use super::Shard;
use super::rows::Rows;
use crate::command::OperationResult;
use crate::encoding::{DecodeError, Reader, Writer};
use crate::ids::{MetaIndex, Offset};
use crate::keys;
use crate::machine::Tables;
use crate::message::{LogTime, Message};
use crate::topic::matches;

/// How much a shard retains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetainedSize {
    pub count: u64,
    /// Topics, payloads and properties.
    pub bytes: u64,
}

/// A retained message as stored.
#[derive(Clone, Debug)]
pub struct Retained {
    pub offset: Offset,
    pub appended_at: LogTime,
    /// The route version that it was matched at when it was published.
    pub matched_at: MetaIndex,
    pub encoded: Bytes,
}

impl Retained {
    fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(24 + self.encoded.len());
        writer
            .u64(self.offset.0)
            .u64(self.appended_at.0)
            .var(self.matched_at.0)
            .raw(&self.encoded);
        writer.finish()
    }

    fn decode(row: &Bytes) -> Result<Retained, DecodeError> {
        let mut reader = Reader::new("retained message", row);
        Ok(Retained {
            offset: Offset(reader.u64()?),
            appended_at: LogTime(reader.u64()?),
            matched_at: MetaIndex(reader.var()?),
            encoded: reader.rest(),
        })
    }
}

/// When a message appended at `at` expires, if ever.
fn expiry(message: &Message, at: LogTime) -> Option<LogTime> {
    message.expiry_interval.map(|seconds| at.plus_seconds(seconds))
}

/// The message replaces what was retained for its topic.
pub(in crate::shard) fn put(
    rows: &mut Rows<'_, '_>,
    size: &mut RetainedSize,
    message: &Message,
    retained: &Retained,
) -> io::Result<()> {
    remove(rows, size, &message.topic)?;
    if message.payload.is_empty() {
        return Ok(());
    }
    size.count += 1;
    size.bytes += message.size() as u64;
    rows.put(&keys::retained(&message.topic), retained.encode());
    if let Some(at) = expiry(message, retained.appended_at) {
        rows.put(&keys::retained_expiry(at, &message.topic), Bytes::new());
    }
    Ok(())
}

fn remove(rows: &mut Rows<'_, '_>, size: &mut RetainedSize, topic: &str) -> io::Result<()> {
    let key = keys::retained(topic);
    let Some(row) = rows.get(&key)? else { return Ok(()) };
    let old = Retained::decode(&row)?;
    let message = Message::decode(&old.encoded)?;
    size.count = size.count.saturating_sub(1);
    size.bytes = size.bytes.saturating_sub(message.size() as u64);
    rows.delete(&key);
    if let Some(at) = expiry(&message, old.appended_at) {
        rows.delete(&keys::retained_expiry(at, topic));
    }
    Ok(())
}

impl Shard {
    /// Removes at most `limit` messages that have expired.
    pub(in crate::shard) fn expire_retained(
        &mut self,
        limit: usize,
        rows: &mut Rows<'_, '_>,
    ) -> io::Result<Option<OperationResult>> {
        let (start, _) = keys::kind_range(keys::RETAINED_EXPIRY);
        let end = keys::retained_expiry(LogTime(self.head.log_time.0.saturating_add(1)), "");
        let limit = limit.clamp(1, EXPIRE_PAGE);
        let due = rows.scan(&start, &end, limit)?;
        let more = due.len() >= limit;
        for (key, _) in due {
            let topic = std::str::from_utf8(&key[9..]).map_err(|_| torn("retained expiry key"))?;
            remove(rows, &mut self.head.retained, topic)?;
            // Gone in any case: a row that stayed would be found for ever.
            rows.delete(&key);
        }
        Ok(more.then_some(OperationResult::More))
    }
}

/// When the next retained message of the shard expires.
///
/// # Errors
/// The engine cannot read, or a key is torn.
pub fn next_retained_expiry(tables: &Tables) -> io::Result<Option<LogTime>> {
    let (start, end) = keys::kind_range(keys::RETAINED_EXPIRY);
    let Some((key, _)) = tables.scan(&start, &end, 1)?.into_iter().next() else {
        return Ok(None);
    };
    let mut reader = Reader::new("retained expiry key", &key);
    reader.u8()?;
    Ok(Some(LogTime(reader.u64()?)))
}

/// Reads the retained messages that `filter` matches from the key `start` on, in order of topics, for as long as
/// `visit` has room: the last key that was read, if there may be more behind it.
///
/// In short pieces: a row is as large as its message.
fn walk(
    scan: impl Fn(&[u8], &[u8], usize) -> io::Result<Vec<(Bytes, Bytes)>>,
    filter: &str,
    start: &[u8],
    mut visit: impl FnMut(Retained) -> io::Result<bool>,
) -> io::Result<Option<Bytes>> {
    let (_, end) = range_of(filter);
    let (mut from, mut left, mut last, mut has_room) = (start.to_vec(), EXAMINED_MAX, None, true);
    loop {
        let found = scan(&from, &end, PIECE)?;
        let is_end = found.len() < PIECE;
        for (key, row) in found {
            if !has_room || left == 0 {
                return Ok(last);
            }
            left -= 1;
            if matches(filter, topic_of(&key)?) {
                has_room = visit(Retained::decode(&row)?)?;
            }
            last = Some(key);
        }
        if is_end {
            return Ok(None);
        }
        if let Some(last) = &last {
            from = behind(last);
        }
    }
}

/// The first key behind `key`.
fn behind(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

/// The keys among which everything lies that `filter` can match.
fn range_of(filter: &str) -> (Vec<u8>, Vec<u8>) {
    let wildcard = filter.find(['+', '#']);
    let prefix = match wildcard {
        None => {
            let start = keys::retained(filter);
            let end = [&start[..], &[0]].concat();
            return (start, end);
        }
        // "a/#" matches "a" too.
        Some(at) if filter[at..].starts_with('#') => filter[..at].trim_end_matches('/'),
        Some(at) => &filter[..at],
    };
    // 0xff is in no UTF-8 text.
    (keys::retained(prefix), [&keys::retained(prefix)[..], &[0xff]].concat())
}

fn topic_of(key: &Bytes) -> io::Result<&str> {
    std::str::from_utf8(&key[1..]).map_err(|_| torn("retained key"))
}

fn torn(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a {what} is torn"))
}

/// Rows that one page examines: an entry of the log stays short in apply, whatever the filter. Like all bounds in apply
/// this is part of the format: replicas of two releases must come to the same rows (`apply-deterministic`).
const EXAMINED_MAX: usize = 4096;
/// Rows in memory at a time.
const PIECE: usize = 128;
/// Messages that one operation expires at most.
const EXPIRE_PAGE: usize = 1000;
