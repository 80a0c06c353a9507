//! The replay of retained messages into the queue of a durable session, page by page.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::{Retained, behind, expiry, range_of, torn, walk};
use crate::command::{EnqueueRetained, OperationResult};
use crate::encoding::{DecodeError, Reader, Writer};
use crate::ids::{MetaIndex, Offset, SessionId};
use crate::keys;
use crate::machine::Tables;
use crate::message::{LogTime, Message, Recipient, Role};
use crate::shard::Shard;
use crate::shard::rows::Rows;

impl Shard {
    /// A page of the replay that `ask` names enters the session's queue.
    pub(in crate::shard) fn enqueue_retained(
        &mut self,
        ask: &EnqueueRetained,
        rows: &mut Rows<'_, '_>,
    ) -> io::Result<Option<OperationResult>> {
        self.head.route_floor = self.head.route_floor.max(ask.version);
        let Some(mut replay) = Replay::find(rows, ask, self.head.last_offset)? else {
            return Ok(None);
        };
        for (retained, message) in replay.advance(rows, ask, self.head.log_time)? {
            let recipient = Recipient {
                session: ask.session,
                qos: ask.qos.min(message.qos),
                retain: true, // [MQTT-3.3.1-8]
                subscription_identifiers: ask.identifier.into_iter().collect(),
                role: Role::Session,
            };
            self.enter(
                &retained.encoded,
                Arc::new(message),
                retained.appended_at,
                Arc::from([recipient]),
                false,
                rows,
            );
            self.head.ledger.enqueued += 1;
        }
        rows.put(&keys::replay(ask.session, &ask.filter), replay.encode());
        Ok(replay.next.is_some().then_some(OperationResult::More))
    }
}

/// How far the replay to one subscription has come.
struct Replay {
    version: MetaIndex,
    /// What is newer was matched live.
    bound: Offset,
    /// The key to go on at; none when done.
    next: Option<Bytes>,
}

impl Replay {
    /// The replay that `ask` names, unless it is done. A later subscription with the same filter begins anew; an earlier
    /// one has nothing to ask any more.
    fn find(rows: &Rows<'_, '_>, ask: &EnqueueRetained, last: Offset) -> io::Result<Option<Replay>> {
        if let Some(row) = rows.get(&keys::replay(ask.session, &ask.filter))? {
            let replay = Replay::decode(&row)?;
            if replay.version >= ask.version {
                let is_open = replay.version == ask.version && replay.next.is_some();
                return Ok(is_open.then_some(replay));
            }
        }
        Ok(Some(Replay {
            version: ask.version,
            bound: last,
            next: Some(range_of(&ask.filter).0.into()),
        }))
    }

    /// The next page.
    fn advance(
        &mut self,
        rows: &Rows<'_, '_>,
        ask: &EnqueueRetained,
        now: LogTime,
    ) -> io::Result<Vec<(Retained, Message)>> {
        let (mut page, mut bytes) = (Vec::new(), 0);
        let Some(next) = self.next.take() else {
            return Ok(page);
        };
        let scan = |start: &[u8], end: &[u8], limit| rows.scan(start, end, limit);
        let last = walk(scan, &ask.filter, &next, |retained| {
            // What is newer, or was matched with the subscription in place, came live.
            if retained.offset <= self.bound && retained.matched_at < ask.version {
                let message = Message::decode(&retained.encoded)?;
                let expired = expiry(&message, retained.appended_at).is_some_and(|at| at <= now);
                let is_own = ask.no_local && message.publisher == ask.session;
                if !expired && !is_own {
                    bytes += message.size();
                    page.push((retained, message));
                }
            }
            Ok(page.len() < PAGE_MESSAGES && bytes < PAGE_BYTES)
        })?;
        self.next = last.map(|last| behind(&last).into());
        Ok(page)
    }

    fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(32);
        writer.var(self.version.0).var(self.bound.0);
        writer.option(self.next.as_ref(), |w, next| {
            w.bytes(next);
        });
        writer.finish()
    }

    fn decode(row: &Bytes) -> Result<Replay, DecodeError> {
        let mut reader = Reader::new("replay", row);
        Ok(Replay {
            version: MetaIndex(reader.var()?),
            bound: Offset(reader.var()?),
            next: reader.option(|r| r.bytes())?,
        })
    }
}

/// Forgets a replay of `version` or before, also one that is not done.
pub(in crate::shard) fn forget_replay(
    rows: &mut Rows<'_, '_>,
    session: SessionId,
    filter: &str,
    version: MetaIndex,
) -> io::Result<()> {
    let key = keys::replay(session, filter);
    if let Some(row) = rows.get(&key)?
        && Replay::decode(&row)?.version <= version
    {
        rows.delete(&key);
    }
    Ok(())
}

/// Replays remembered here behind `after`: session, filter and version; at most `limit`.
///
/// # Errors
/// The engine cannot read, or a row is torn.
pub fn remembered_replays(
    tables: &Tables,
    after: Option<(SessionId, Box<str>)>,
    limit: usize,
) -> io::Result<Vec<(SessionId, Box<str>, MetaIndex)>> {
    let (first, end) = keys::kind_range(keys::REPLAY);
    let start = match after {
        Some((session, filter)) => [&keys::replay(session, &filter)[..], &[0]].concat(),
        None => first.to_vec(),
    };
    let mut replays = Vec::new();
    for (key, row) in tables.scan(&start, &end, limit)? {
        let mut reader = Reader::new("replay key", &key);
        reader.u8()?;
        let session = SessionId(reader.u64()?);
        let filter = std::str::from_utf8(&key[9..]).map_err(|_| torn("replay key"))?;
        replays.push((session, filter.into(), Replay::decode(&row)?.version));
    }
    Ok(replays)
}

/// Messages and bytes of one page: an entry of the log stays short in apply.
const PAGE_MESSAGES: usize = 1000;
const PAGE_BYTES: usize = 1024 * 1024;
