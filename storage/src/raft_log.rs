//! One group's log, as openraft asks for it.
//!
//!     append ──▶ tail (readable at once) ──▶ log writer ──▶ callback once durable
//!
//! Only votes are waited for: truncation, purge and committed are queued behind what they follow.
//! Reads are served by the tail, what is older by the database, at most 1 MiB at a time.
//!
//! Invariants
//! - Entries are readable before `append` returns.
//! - A vote is durable before `save_vote` returns, and in queue order with the entries.
//! - No read starts below the purged index: there lie the tombstones.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use futures_util::{Stream, stream};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, RaftTypeConfig};

use crate::engine::{LogEngine, LogMutation};
use crate::group::Group;
use crate::log_keys::{MetaKind, encode_log_id, entry_index, entry_key, meta_key};
use crate::log_tail::next_index;
use crate::log_writer::{LogWriter, Op};
use crate::marks::{Promise, vote_mark};
use crate::raft_types::{Entry, LogId, TypeConfig, Vote, decode_entry, encode_entry, encode_vote};
use crate::test_bugs::{Bug, has};

/// The log of one group. openraft's core owns it.
pub struct GroupLog {
    reader: GroupLogReader,
    writer: Arc<LogWriter>,
}

/// Reads a log while it grows. Clones are cheap.
#[derive(Clone)]
pub struct GroupLogReader {
    group: Arc<Group>,
    engine: Arc<dyn LogEngine>,
}

impl GroupLog {
    pub(crate) fn new(group: Arc<Group>, engine: Arc<dyn LogEngine>, writer: Arc<LogWriter>) -> GroupLog {
        GroupLog {
            reader: GroupLogReader { group, engine },
            writer,
        }
    }

    fn queue_lazy(&self, rows: Vec<LogMutation>) {
        self.writer.queue(Op::Lazy { rows });
    }

    fn deletions(&self, from: u64, to: u64) -> Vec<LogMutation> {
        let group = self.reader.group.id;
        match to - from {
            0 => Vec::new(),
            // Each range tombstone costs every later read of the memtable: only where it replaces many deletes.
            count if count >= RANGE_DELETE_ENTRIES => {
                vec![LogMutation::DeleteEntries(entry_key(group, from), entry_key(group, to))]
            }
            _ => (from..to)
                .map(|index| LogMutation::DeleteEntry(entry_key(group, index)))
                .collect(),
        }
    }
}

impl RaftLogStorage<TypeConfig> for GroupLog {
    type LogReader = GroupLogReader;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let tail = self.reader.group.tail();
        Ok(LogState {
            last_purged_log_id: tail.purged,
            last_log_id: tail.last,
        })
    }

    async fn get_log_reader(&mut self) -> GroupLogReader {
        self.reader.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let key = meta_key(self.reader.group.id, MetaKind::Vote);
        if !has(Bug::VoteNotPersisted) {
            self.writer
                .durable(
                    vec![LogMutation::PutMeta(key, encode_vote(vote))],
                    Promise::Vote(self.reader.group.id, vote_mark(vote)),
                )
                .await?;
        }
        self.reader.group.tail().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        if let Some(committed) = committed {
            self.reader.group.tail().committed = Some(committed);
            let key = meta_key(self.reader.group.id, MetaKind::Committed);
            self.queue_lazy(vec![LogMutation::PutMeta(key, encode_log_id(&committed))]);
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        // `committed` is queued behind the entries, but a log may have been cut since: it never points beyond the log.
        let tail = self.reader.group.tail();
        Ok(tail.committed.min(tail.last))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let group = &self.reader.group;
        let rows: Vec<_> = entries
            .iter()
            .map(|entry| (entry_key(group.id, entry.log_id.index), encode_entry(entry)))
            .collect();
        let bytes = rows.iter().map(|(key, value)| key.len() + value.len()).sum();
        self.writer.room(bytes).await?;
        let (epoch, next) = {
            let mut tail = group.tail();
            for (entry, (_, value)) in entries.into_iter().zip(&rows) {
                tail.push(entry, value.len() + ENTRY_OVERHEAD);
            }
            (tail.epoch, next_index(&tail.last))
        };
        self.writer.queue(Op::Append {
            group: group.clone(),
            epoch,
            next,
            entries: rows,
            bytes,
            callback,
        });
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let group = &self.reader.group;
        let removed = {
            let mut tail = group.tail();
            tail.truncate_after(last_log_id).map(|range| (range, tail.epoch))
        };
        if let Some(((from, to), epoch)) = removed {
            group.lower_synced(epoch, from);
            let rows = self.deletions(from, to);
            let group = group.id;
            self.writer.queue(Op::Truncate { group, from, rows });
        }
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let group = &self.reader.group;
        let (from, to, epoch, next) = {
            let mut tail = group.tail();
            let (from, to) = tail.purge(log_id);
            (from, to, tail.epoch, next_index(&tail.purged))
        };
        // What is purged is in the tables, durably: nobody waits for its log entries any more.
        group.raise_synced(epoch, next);
        let mut rows = self.deletions(from, to);
        rows.push(LogMutation::PutMeta(
            meta_key(group.id, MetaKind::Purged),
            encode_log_id(&log_id),
        ));
        self.queue_lazy(rows);
        Ok(())
    }
}

impl GroupLogReader {
    /// Entries of `start..end` in order, until `bytes` are reached (one entry at least, if there is one).
    fn read(&self, start: u64, end: u64, bytes: usize) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let (mut next, mut size) = (start, 0);
        // Twice at most, unless the tail lets go of entries in between.
        while size < bytes {
            let plan = {
                let tail = self.group.tail();
                let plan = tail.plan(next, end);
                if plan.start == plan.recent_start {
                    tail.read_recent(plan.start, plan.end, bytes - size, &mut entries);
                    break;
                }
                plan
            };
            let (first, last) = (
                entry_key(self.group.id, plan.start),
                entry_key(self.group.id, plan.recent_start),
            );
            next = plan.recent_start;
            for (key, value) in self.engine.entries(&first, &last, bytes - size)? {
                size += value.len();
                let entry = self.decode(&key, &value)?;
                next = entry.log_id.index + 1;
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    fn decode(&self, key: &[u8], value: &bytes::Bytes) -> io::Result<Entry> {
        let entry = decode_entry(value)?;
        if entry_index(key) == Some(entry.log_id.index) {
            return Ok(entry);
        }
        let message = format!(
            "group {}: entry {} is stored under another index",
            self.group.id, entry.log_id
        );
        Err(io::Error::new(io::ErrorKind::InvalidData, message))
    }
}

impl RaftLogReader<TypeConfig> for GroupLogReader {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.group.tail().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, READ_BYTES)
    }

    /// For apply: a long range is read piece by piece.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<<TypeConfig as RaftTypeConfig>::Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        let state = (self.clone(), start, Vec::new().into_iter());
        stream::try_unfold(state, move |(reader, mut next, mut piece)| async move {
            if piece.as_slice().is_empty() && next < end {
                piece = reader.read(next, end, READ_BYTES)?.into_iter();
            }
            Ok(piece.next().map(|entry: Entry| {
                next = entry.log_id.index + 1;
                (entry, (reader, next, piece))
            }))
        })
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

/// 1 MiB per read: one append frame to a follower, whatever the number of entries.
const READ_BYTES: usize = 1 << 20;

/// From a thousand entries one range tombstone is cheaper than a delete each.
const RANGE_DELETE_ENTRIES: u64 = 1000;

/// What an entry takes in the tail besides its payload.
const ENTRY_OVERHEAD: usize = 96;
