//! What is known of one group's log without reading the database, and its newest entries.
//!
//!     purged ───── only in RocksDB ───── first recent ───── last
//!                                           └─ recent: bounded by bytes, but never less than what is not yet written
//!
//! A truncation starts a new epoch: the log writer reports what it wrote and synced of an older epoch to nobody, for
//! those entries may be gone.
//!
//! Invariants
//! - An entry is in `recent` or written to the database (or both), from append to truncation or purge.
//! - `recent` is ascending and ends at `last`.

use std::collections::VecDeque;

use crate::raft_types::{Entry, LogId, Vote};

/// Guarded by a mutex in [`crate::group::Group`]; nothing here blocks.
#[derive(Default)]
pub(crate) struct LogTail {
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
    pub last: Option<LogId>,
    /// Counts truncations since the start.
    pub epoch: u64,
    recent: VecDeque<Recent>,
    recent_bytes: usize,
    /// Everything below this index is in the database (not necessarily durable).
    written_next: u64,
}

struct Recent {
    entry: Entry,
    bytes: usize,
}

/// What a read of `start..end` takes from where: the database first, up to `recent_start`.
pub(crate) struct ReadPlan {
    pub start: u64,
    pub recent_start: u64,
    pub end: u64,
}

impl LogTail {
    pub fn recovered(
        vote: Option<Vote>,
        committed: Option<LogId>,
        purged: Option<LogId>,
        last: Option<LogId>,
    ) -> LogTail {
        let written_next = next_index(&last);
        LogTail {
            vote,
            committed,
            purged,
            last,
            written_next,
            ..LogTail::default()
        }
    }

    /// `bytes` is what the entry takes when stored.
    pub fn push(&mut self, entry: Entry, bytes: usize) {
        debug_assert!(
            self.recent
                .back()
                .is_none_or(|last| last.entry.log_id.index < entry.log_id.index)
        );
        self.last = Some(entry.log_id);
        self.recent_bytes += bytes;
        self.recent.push_back(Recent { entry, bytes });
        self.evict();
    }

    /// The writer has put everything below `next` of this epoch into the database.
    pub fn written(&mut self, epoch: u64, next: u64) {
        if epoch == self.epoch {
            self.written_next = self.written_next.max(next);
            self.evict();
        }
    }

    /// Removes what is behind `last`; answers which indices the database must forget (`None`: nothing is behind).
    pub fn truncate_after(&mut self, last: Option<LogId>) -> Option<(u64, u64)> {
        let last = last.max(self.purged);
        let (from, to) = (next_index(&last), next_index(&self.last));
        if from >= to {
            return None;
        }
        self.epoch += 1;
        self.last = last;
        self.written_next = self.written_next.min(from);
        while self
            .recent
            .back()
            .is_some_and(|recent| recent.entry.log_id.index >= from)
        {
            let removed = self.recent.pop_back();
            self.recent_bytes -= removed.map_or(0, |recent| recent.bytes);
        }
        Some((from, to))
    }

    /// Forgets everything up to `upto`; answers which indices the database must forget.
    pub fn purge(&mut self, upto: LogId) -> (u64, u64) {
        let from = next_index(&self.purged);
        let to = next_index(&Some(upto)).min(next_index(&self.last));
        while self
            .recent
            .front()
            .is_some_and(|recent| recent.entry.log_id.index <= upto.index)
        {
            let removed = self.recent.pop_front();
            self.recent_bytes -= removed.map_or(0, |recent| recent.bytes);
        }
        self.purged = self.purged.max(Some(upto));
        // A snapshot may reach beyond the log: the log goes on behind it.
        self.last = self.last.max(self.purged);
        self.written_next = self.written_next.max(next_index(&self.purged));
        (from, to.max(from))
    }

    pub fn plan(&self, start: u64, end: u64) -> ReadPlan {
        let start = start.max(next_index(&self.purged));
        let end = end.min(next_index(&self.last)).max(start);
        let first_recent = self.recent.front().map_or(end, |recent| recent.entry.log_id.index);
        ReadPlan {
            start,
            recent_start: first_recent.clamp(start, end),
            end,
        }
    }

    /// Entries of `start..end` that are at hand, until `bytes` are reached (one entry at least).
    pub fn read_recent(&self, start: u64, end: u64, bytes: usize, into: &mut Vec<Entry>) {
        let mut size = 0;
        let first = self.recent.partition_point(|recent| recent.entry.log_id.index < start);
        for recent in self.recent.range(first..) {
            if recent.entry.log_id.index >= end || size >= bytes {
                break;
            }
            size += recent.bytes;
            into.push(recent.entry.clone());
        }
    }

    fn evict(&mut self) {
        while self.recent_bytes > RECENT_BYTES
            && self
                .recent
                .front()
                .is_some_and(|recent| recent.entry.log_id.index < self.written_next)
        {
            let removed = self.recent.pop_front();
            self.recent_bytes -= removed.map_or(0, |recent| recent.bytes);
        }
    }
}

/// The index after `id`; 0 before the first entry.
pub(crate) fn next_index(id: &Option<LogId>) -> u64 {
    id.as_ref().map_or(0, |id| id.index + 1)
}

/// 8 MiB per group: some seconds of a busy shard, so that replication to a live follower and apply read no disk.
const RECENT_BYTES: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft_types::{EntryPayload, LeaderId};
    use openraft::entry::RaftEntry;

    fn id(term: u64, index: u64) -> LogId {
        LogId::new(LeaderId { term, node_id: 1 }, index)
    }

    fn push(tail: &mut LogTail, term: u64, index: u64, bytes: usize) {
        tail.push(Entry::new(id(term, index), EntryPayload::Blank), bytes);
    }

    fn recent(tail: &LogTail, start: u64, end: u64) -> Vec<u64> {
        let mut entries = Vec::new();
        tail.read_recent(start, end, usize::MAX, &mut entries);
        entries.iter().map(|entry| entry.log_id.index).collect()
    }

    #[test]
    fn what_is_not_written_is_not_evicted() {
        let mut tail = LogTail::default();
        for index in 0..3 {
            push(&mut tail, 1, index, RECENT_BYTES);
        }
        assert_eq!(recent(&tail, 0, 9), [0, 1, 2]);
        tail.written(0, 2);
        assert_eq!(recent(&tail, 0, 9), [2]);
        let plan = tail.plan(0, 9);
        assert_eq!((plan.start, plan.recent_start, plan.end), (0, 2, 3));
    }

    #[test]
    fn a_late_report_of_truncated_entries_counts_for_nothing() {
        let mut tail = LogTail::default();
        for index in 0..5 {
            push(&mut tail, 1, index, RECENT_BYTES);
        }
        assert_eq!(tail.truncate_after(Some(id(1, 1))), Some((2, 5)));
        push(&mut tail, 2, 2, RECENT_BYTES);
        tail.written(0, 5);
        assert_eq!(recent(&tail, 0, 9), [0, 1, 2], "the entry of term 2 is only in memory");
        tail.written(1, 3);
        assert_eq!(recent(&tail, 0, 9), [2], "all written: only as many as the limit holds");
    }

    #[test]
    fn a_purge_beyond_the_log_moves_its_end() {
        let mut tail = LogTail::default();
        for index in 0..3 {
            push(&mut tail, 1, index, 1);
        }
        assert_eq!(tail.purge(id(2, 10)), (0, 3));
        assert_eq!((tail.last, tail.purged), (Some(id(2, 10)), Some(id(2, 10))));
        push(&mut tail, 2, 11, 1);
        assert_eq!(recent(&tail, 0, 99), [11]);
        assert_eq!(tail.plan(0, 99).start, 11);
        assert_eq!(
            tail.truncate_after(Some(id(1, 5))),
            Some((11, 12)),
            "never behind what was purged"
        );
    }
}
