//! What the Raft adapter asks of a replicated state machine, and what it hands it.
//!
//!     committed entry ──▶ wait until the local log has synced it ──▶ Machine::apply ──▶ one StateBatch
//!                                                         ──▶ written ──▶ Machine::emit ──▶ reply
//!
//! Invariants
//! - `apply-deterministic`: `apply` sees its tables, its memory and the command, nothing else.
//! - state on disk never leads the durable log (the adapter waits, not the machine).

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::command::Reply;
use crate::engine::{StateBatch, StateEngine, StateView};
use crate::ids::GroupId;
use crate::raft_types::decode_snapshot_meta;

/// One group's replicated state.
pub trait Machine: Send + Sync + 'static {
    /// Rebuilds the in-memory part from the tables: at start and after a snapshot was installed (`reset`: what was
    /// emitted before no longer continues).
    ///
    /// # Errors
    /// A row that does not decode.
    fn load(&mut self, tables: &Tables, reset: bool) -> io::Result<()>;

    /// Applies one command: reads `tables`, puts mutations into `batch`. Must not look at anything else.
    ///
    /// # Errors
    /// Only what stops the node: a read that fails, a command that does not decode.
    fn apply(
        &mut self,
        tables: &Tables,
        batch: &mut TableBatch<'_>,
        at: EntryPosition,
        command: &Bytes,
    ) -> io::Result<Reply>;

    /// Called for every entry (blank and membership entries too) after its batch has been written: hands the effects
    /// of the last `apply` to whoever listens. Must not block.
    fn emit(&mut self, at: EntryPosition);
}

/// Where an entry stands in its group's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryPosition {
    pub term: u64,
    pub index: u64,
}

/// The rows of one group's current generation. Cheap to clone; reads see what was applied last.
///
/// A key inside a group begins after the 8 byte prefix `group (u32 BE) · generation (u32 BE)`.
#[derive(Clone)]
pub struct Tables {
    engine: Arc<dyn StateEngine>,
    group: GroupId,
    generation: Arc<std::sync::atomic::AtomicU32>,
}

impl Tables {
    /// `generation` is shared with the adapter that switches it when a snapshot is installed.
    pub fn new(engine: Arc<dyn StateEngine>, group: GroupId, generation: Arc<std::sync::atomic::AtomicU32>) -> Self {
        Tables {
            engine,
            group,
            generation,
        }
    }

    pub fn group(&self) -> GroupId {
        self.group
    }

    /// Log index of the last entry that the rows show; 0 for none.
    ///
    /// # Errors
    /// The engine cannot read, or the row is torn.
    pub fn applied_index(&self) -> io::Result<u64> {
        let Some(row) = self.get(&[APPLIED])? else { return Ok(0) };
        Ok(decode_snapshot_meta(&row)?.last_log_id.map_or(0, |id| id.index))
    }

    /// The 8 bytes before every key of the current generation.
    pub fn prefix(&self) -> [u8; 8] {
        prefix(self.group, self.generation())
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(std::sync::atomic::Ordering::Acquire)
    }

    /// A frozen view of all groups' rows.
    pub(crate) fn view(&self) -> io::Result<Box<dyn StateView>> {
        self.engine.view()
    }

    fn full(&self, key: &[u8]) -> Vec<u8> {
        let mut full = Vec::with_capacity(8 + key.len());
        full.extend_from_slice(&self.prefix());
        full.extend_from_slice(key);
        full
    }

    /// # Errors
    /// The engine cannot read.
    pub fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        self.engine.get(&self.full(key))
    }

    /// Rows with `start <= key < end` in key order, at most `limit`; keys come without the group prefix.
    ///
    /// # Errors
    /// The engine cannot read.
    pub fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> io::Result<Vec<(Bytes, Bytes)>> {
        let rows = self.engine.scan(&self.full(start), &self.full(end), limit)?;
        Ok(rows.into_iter().map(|(key, value)| (key.slice(8..), value)).collect())
    }
}

/// Mutations of one group, collected into the batch that is written atomically with the group's `applied`.
pub struct TableBatch<'a> {
    batch: &'a mut StateBatch,
    prefix: [u8; 8],
}

impl<'a> TableBatch<'a> {
    pub fn new(batch: &'a mut StateBatch, prefix: [u8; 8]) -> Self {
        TableBatch { batch, prefix }
    }

    /// Only absolute values: a batch may be replayed after a crash.
    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        self.batch.put(self.full(key), value.to_vec());
    }

    pub fn delete(&mut self, key: &[u8]) {
        self.batch.delete(self.full(key));
    }

    /// Deletes `start <= key < end`; for ranges of a thousand keys and more.
    pub fn delete_range(&mut self, start: &[u8], end: &[u8]) {
        self.batch.delete_range(self.full(start), self.full(end));
    }

    fn full(&self, key: &[u8]) -> Vec<u8> {
        let mut full = Vec::with_capacity(8 + key.len());
        full.extend_from_slice(&self.prefix);
        full.extend_from_slice(key);
        full
    }
}

/// Key of the group's `applied` row.
const APPLIED: u8 = 0;

/// `group (u32 BE) · generation (u32 BE)`.
pub fn prefix(group: GroupId, generation: u32) -> [u8; 8] {
    let mut prefix = [0; 8];
    prefix[..4].copy_from_slice(&group.0.to_be_bytes());
    prefix[4..].copy_from_slice(&generation.to_be_bytes());
    prefix
}
