//! Sessions and shared groups that are dead for good leave nothing behind.
//!
//! Level-triggered: whoever sweeps asks [`next_session`] again and again; what an operation that was already under way
//! leaves behind is found the next time. Wills are not a session's rows: one may still be due after its session ended.

use std::io;

use super::rows::Rows;
use super::{Shard, pending};
use crate::command::{Left, OperationResult};
use crate::encoding::Reader;
use crate::ids::SessionId;
use crate::keys;
use crate::machine::Tables;

impl Shard {
    /// A page of a dead session's rows leaves.
    pub(super) fn sweep(&mut self, session: SessionId, rows: &mut Rows<'_, '_>) -> io::Result<Option<OperationResult>> {
        let mut more = self.sweep_queue(session, rows)?;
        for kind in [keys::RECEIVED, keys::RECEIVED_EPOCH, keys::REPLAY] {
            if more {
                break;
            }
            let (start, end) = rows_of_session(kind, session);
            let found = rows.scan(&start, &end, SWEEP_PAGE)?;
            more = found.len() >= SWEEP_PAGE;
            for (key, _) in found {
                rows.delete(&key);
            }
        }
        Ok(more.then_some(OperationResult::More))
    }

    /// A page of its queue; whether there may be more.
    fn sweep_queue(&mut self, session: SessionId, rows: &mut Rows<'_, '_>) -> io::Result<bool> {
        let entries = pending::rows_of(rows.tables, session, SWEEP_PAGE)?;
        let (is_full, mut moved) = (entries.len() >= SWEEP_PAGE, 0);
        for (offset, row) in entries {
            if moved >= SWEEP_BYTES {
                return Ok(true);
            }
            moved += self.give_back(session, offset, &row, rows)?;
            // What went back to a group is gone from here already.
            if rows.counts.settle(rows.tables, rows.batch, session, offset)?.is_some() {
                self.head.ledger.leave(Left::SessionEnded);
            }
        }
        Ok(is_full)
    }
}

/// All rows of `kind` that belong to `session`: `start..end`.
fn rows_of_session(kind: u8, session: SessionId) -> (Vec<u8>, Vec<u8>) {
    let start = keys::number(kind, session.0).to_vec();
    let end = match session.0.checked_add(1) {
        Some(next) => keys::number(kind, next).to_vec(),
        None => keys::kind_range(kind).1.to_vec(),
    };
    (start, end)
}

/// The first session behind `after` that has rows of `kind` here: how a sweeper finds those that are gone. Kinds:
/// [`SESSION_KINDS`].
///
/// # Errors
/// The engine cannot read, or a key is torn.
pub fn next_session(tables: &Tables, kind: u8, after: Option<SessionId>) -> io::Result<Option<SessionId>> {
    let Some(first) = after.map_or(Some(0), |session| session.0.checked_add(1)) else {
        return Ok(None);
    };
    let (start, (_, end)) = (keys::number(kind, first), keys::kind_range(kind));
    let Some((key, _)) = tables.scan(&start, &end, 1)?.into_iter().next() else {
        return Ok(None);
    };
    let mut reader = Reader::new("session row", &key);
    reader.u8()?;
    Ok(Some(SessionId(reader.u64()?)))
}

/// Kinds of rows that belong to one session (or group) and go with it.
pub const SESSION_KINDS: [u8; 4] = [keys::PENDING, keys::RECEIVED, keys::RECEIVED_EPOCH, keys::REPLAY];

/// Rows of a dead session that one operation removes of each kind: an entry of the log stays short in apply.
pub const SWEEP_PAGE: usize = 1000;
/// What goes back to a shared group is written anew; as much as a page of a replay.
const SWEEP_BYTES: usize = 1024 * 1024;
