//! What is known of a group after a start, and whether it can be true.
//!
//! Invariants checked here, between what was written by different hands
//! - `state-behind-log`: the tables do not know entries that the log lost.
//! - The log still reaches what it once held, and the last vote is there (the witness, the mark).
//! - The tables reach what was purged from the log: replay can close the gap.

use std::io;

use crate::engine::{LogEngine, StateBatch, StateEngine};
use crate::group::{Applied, Group};
use crate::ids::GroupId;
use crate::log_keys::{
    Generation, MetaKind, applied_key, decode_generation, decode_log_id, entry_key, generation_range, group_range,
    meta_key,
};
use crate::log_tail::{LogTail, next_index};
use crate::marks::{Mark, vote_mark};
use crate::raft_types::{LogId, decode_entry, decode_snapshot_meta, decode_vote};

/// Why a group cannot go on with what it has on disk.
#[derive(Debug)]
pub(crate) enum RecoverError {
    /// Entries up to `had` were durable; the log ends at `found`.
    LogShorter {
        had: u64,
        found: u64,
    },
    /// A vote of term `had` was durable; the last one that is stored is of term `found`.
    VoteLost {
        had: u64,
        found: u64,
    },
    /// The tables lack what the log no longer has.
    TablesBehind {
        detail: String,
    },
    Read(io::Error),
}

impl From<io::Error> for RecoverError {
    fn from(error: io::Error) -> Self {
        RecoverError::Read(error)
    }
}

/// Reads what is stored of `id`, checks it, and deletes what an interrupted snapshot left behind.
pub(crate) fn recover(
    id: GroupId,
    log: &dyn LogEngine,
    state: &dyn StateEngine,
    witness: Option<u64>,
    mark: Mark,
) -> Result<Group, RecoverError> {
    let vote = log
        .meta(&meta_key(id, MetaKind::Vote))?
        .map(|bytes| decode_vote(&bytes));
    let vote = vote.transpose().map_err(io::Error::from)?;
    let committed = log_id(log, id, MetaKind::Committed)?;
    let purged = log_id(log, id, MetaKind::Purged)?;
    let last = last_entry(log, id, &purged)?.max(purged);
    let generation = log
        .meta(&meta_key(id, MetaKind::Generation))?
        .map(|bytes| decode_generation(&bytes));
    let generation = generation.transpose().map_err(io::Error::from)?;
    let number = generation.as_ref().map_or(0, |generation| generation.number);
    let applied = applied(state, id, number)?;
    // The mark goes further, the witness survives without it.
    let witness = witness.max(mark.next.checked_sub(1));
    check(&last, &purged, generation.as_ref(), &applied, witness)?;
    let voted = vote.as_ref().map(vote_mark).unwrap_or_default();
    if voted < mark.vote {
        return Err(RecoverError::VoteLost {
            had: mark.vote.0,
            found: voted.0,
        });
    }
    delete_leftovers(state, id, number)?;
    Ok(Group::new(
        id,
        LogTail::recovered(vote, committed, purged, last),
        number,
        applied,
    ))
}

fn check(
    last: &Option<LogId>,
    purged: &Option<LogId>,
    generation: Option<&Generation>,
    applied: &Applied,
    witness: Option<u64>,
) -> Result<(), RecoverError> {
    let snapshot = generation.and_then(|generation| generation.snapshot.last_log_id);
    let (log_next, applied_next) = (next_index(last), next_index(&applied.last));
    // A snapshot may be ahead of the log that it replaces, until the purge behind it is on disk.
    if applied_next > log_next.max(next_index(&snapshot)) {
        return Err(RecoverError::LogShorter {
            had: applied_next - 1,
            found: log_next.saturating_sub(1),
        });
    }
    if let Some(had) = witness
        && had >= log_next.max(applied_next)
    {
        return Err(RecoverError::LogShorter {
            had,
            found: log_next.saturating_sub(1),
        });
    }
    if applied.last < snapshot {
        let detail = "the tables are older than the snapshot they began with".to_owned();
        return Err(RecoverError::TablesBehind { detail });
    }
    if applied_next < next_index(purged) {
        let detail = format!(
            "the tables end before entry {applied_next}, the log begins after {}",
            next_index(purged).saturating_sub(1)
        );
        return Err(RecoverError::TablesBehind { detail });
    }
    Ok(())
}

fn log_id(log: &dyn LogEngine, id: GroupId, kind: MetaKind) -> io::Result<Option<LogId>> {
    let bytes = log.meta(&meta_key(id, kind))?;
    Ok(bytes.map(|bytes| decode_log_id(&bytes)).transpose()?)
}

fn last_entry(log: &dyn LogEngine, id: GroupId, purged: &Option<LogId>) -> io::Result<Option<LogId>> {
    let (start, end) = (entry_key(id, next_index(purged)), entry_key(GroupId(id.0 + 1), 0));
    match log.last(&start, &end)? {
        None => Ok(None),
        Some((_, value)) => Ok(Some(decode_entry(&value)?.log_id)),
    }
}

fn applied(state: &dyn StateEngine, id: GroupId, generation: u32) -> io::Result<Applied> {
    match state.get(&applied_key(id, generation))? {
        None => Ok(Applied::default()),
        Some(bytes) => Ok(Applied::from(decode_snapshot_meta(&bytes)?)),
    }
}

/// Generations that were staged and not installed, or installed and not yet deleted.
fn delete_leftovers(state: &dyn StateEngine, id: GroupId, current: u32) -> io::Result<()> {
    let (group_start, group_end) = group_range(id);
    let (start, end) = generation_range(id, current);
    for (from, to) in [(group_start, start), (end, group_end)] {
        if !state.scan(&from, &to, 1)?.is_empty() {
            let mut batch = StateBatch::default();
            batch.delete_range(from, to);
            state.write(batch)?;
        }
    }
    Ok(())
}
