//! What must be recognised when it comes again: QoS 2 publishes until PUBREL, wills until meta recorded them.
//!
//! ```text
//!   PUBLISH (session, Packet Identifier) ─▶ RECEIVED row ─PUBREL─▶ gone, and the identifier means a new message
//! ```
//!
//! Invariant `one-owner`: a node that was displaced may still have QoS 2 publishes of the old epoch under way; after
//! PUBREL they would be new messages. A lower epoch than one that was seen here is refused.

use std::io;

use super::rows::Rows;
use crate::command::Origin;
use crate::encoding::{Reader, Writer};
use crate::ids::{Offset, SessionEpoch, SessionId};
use crate::keys;
use crate::message::LogTime;
use crate::test_bugs::{Bug, has};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    New,
    Repeat,
    Refused,
}

/// A QoS 2 PUBLISH came; `offset` is what it takes if it is new.
pub(super) fn receive(
    rows: &mut Rows<'_, '_>,
    session: SessionId,
    epoch: SessionEpoch,
    packet_id: u16,
    offset: Offset,
) -> io::Result<Seen> {
    if !raise_epoch(rows, session, epoch)? {
        return Ok(Seen::Refused);
    }
    let key = keys::received(session, packet_id);
    if rows.get(&key)?.is_some() {
        return Ok(Seen::Repeat);
    }
    let mut value = Writer::with_capacity(8);
    value.var(offset.0);
    rows.put(&key, value.finish());
    Ok(Seen::New)
}

/// Whether it is a QoS 2 PUBLISH that was received before.
pub(super) fn is_received(rows: &Rows<'_, '_>, origin: Origin) -> io::Result<bool> {
    match origin {
        Origin::Received { session, packet_id, .. } => Ok(rows.get(&keys::received(session, packet_id))?.is_some()),
        Origin::Plain | Origin::Will { .. } | Origin::Delayed { .. } => Ok(false),
    }
}

/// [`is_received`], of a view of the tables: whether a QoS 2 PUBLISH of the session came under the identifier, and no PUBREL.
///
/// # Errors
/// The engine cannot read.
pub fn read_received(tables: &crate::machine::Tables, session: SessionId, packet_id: u16) -> io::Result<bool> {
    Ok(tables.get(&keys::received(session, packet_id))?.is_some())
}

/// PUBREL came. Of an epoch that is over it changes nothing: the current one releases by itself.
pub(super) fn release(
    rows: &mut Rows<'_, '_>,
    session: SessionId,
    epoch: SessionEpoch,
    packet_id: u16,
) -> io::Result<()> {
    if raise_epoch(rows, session, epoch)? {
        let key = keys::received(session, packet_id);
        if rows.get(&key)?.is_some() {
            rows.delete(&key);
        }
    }
    Ok(())
}

/// Whether `epoch` is the highest seen so far, which it then is.
fn raise_epoch(rows: &mut Rows<'_, '_>, session: SessionId, epoch: SessionEpoch) -> io::Result<bool> {
    let key = keys::number(keys::RECEIVED_EPOCH, session.0);
    let highest = match rows.get(&key)? {
        Some(row) => Reader::new("epoch", &row).var()?,
        None => 0,
    };
    if epoch.0 > highest {
        let mut value = Writer::with_capacity(4);
        value.var(epoch.0);
        rows.put(&key, value.finish());
    }
    Ok(epoch.0 >= highest)
}

/// A will is to be appended at `now`.
pub(super) fn will(
    rows: &mut Rows<'_, '_>,
    session: SessionId,
    epoch: SessionEpoch,
    now: LogTime,
    not_after: LogTime,
) -> io::Result<Seen> {
    let key = keys::shard_will(session, epoch);
    if rows.get(&key)?.is_some() && !has(Bug::DoubleWillOnFailover) {
        return Ok(Seen::Repeat);
    }
    if now > not_after {
        return Ok(Seen::Refused);
    }
    rows.put(&key, bytes::Bytes::copy_from_slice(&now.0.to_be_bytes()));
    Ok(Seen::New)
}

/// [`Bug::DropQos2IdsOnFailover`]
pub(super) fn forget_received(rows: &mut Rows<'_, '_>) -> io::Result<()> {
    let (start, end) = keys::kind_range(keys::RECEIVED);
    for (key, _) in rows.scan(&start, &end, usize::MAX)? {
        rows.delete(&key);
    }
    Ok(())
}

pub(super) fn forget_wills(rows: &mut Rows<'_, '_>, wills: &[(SessionId, SessionEpoch)]) {
    for (session, epoch) in wills {
        rows.delete(&keys::shard_will(*session, *epoch));
    }
}

/// The wills that were appended here and are still remembered: at most `limit`, with the time of their append.
///
/// # Errors
/// The engine cannot read, or a row is torn.
pub fn remembered_wills(
    tables: &crate::machine::Tables,
    limit: usize,
) -> io::Result<Vec<(SessionId, SessionEpoch, LogTime)>> {
    let (start, end) = keys::kind_range(keys::SHARD_WILL);
    let mut wills = Vec::new();
    for (key, row) in tables.scan(&start, &end, limit)? {
        let mut reader = Reader::new("will key", &key);
        reader.u8()?;
        let (session, epoch) = (SessionId(reader.u64()?), SessionEpoch(reader.u64()?));
        wills.push((session, epoch, LogTime(Reader::new("will", &row).u64()?)));
    }
    Ok(wills)
}
