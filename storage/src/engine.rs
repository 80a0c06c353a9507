//! The two databases of a node behind traits, so that a simulator can stand in for RocksDB.
//!
//!     raft  (durable: WAL, one writer, one fsync for all that queued)   votes, committed, log entries, generations
//!     state (no WAL: recovered by replaying the log)                    tables of all groups, each with its `applied`
//!
//! `rocks.rs` implements both over RocksDB, `testing.rs` in memory. What may be written when is the callers' concern:
//! `log_writer.rs` alone writes the raft database, `raft_state.rs` and `snapshot.rs` the state database.

use std::io;

use bytes::Bytes;
use futures_util::future::BoxFuture;

/// Tables of all groups. Writes are atomic per batch, visible at once, durable only after [`StateEngine::flush`]
/// (or whenever the engine likes), and always lost as a suffix of batches.
pub trait StateEngine: Send + Sync + 'static {
    fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>>;

    /// `start <= key < end`, ascending, at most `limit` rows.
    fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> io::Result<Vec<(Bytes, Bytes)>>;

    fn write(&self, batch: StateBatch) -> io::Result<()>;

    /// Returns once everything written before is durable. Blocks for as long as the disk takes.
    fn flush(&self) -> io::Result<()>;

    /// A frozen view, for streaming a snapshot: later writes do not show in it.
    fn view(&self) -> io::Result<Box<dyn StateView>>;
}

/// A consistent view of the state database. Holds back compaction: keep it short. Reads do not block the task.
pub trait StateView: Send + Sync {
    fn get(&self, key: Vec<u8>) -> BoxFuture<'static, io::Result<Option<Bytes>>>;

    /// `start <= key < end`, ascending, until `bytes` of keys and values are reached (one row at least).
    fn scan(&self, start: Vec<u8>, end: Vec<u8>, bytes: usize) -> BoxFuture<'static, io::Result<Vec<(Bytes, Bytes)>>>;
}

/// One atomic batch. Absolute puts and deletes only: replay repeats them.
#[derive(Default, Debug)]
pub struct StateBatch {
    pub mutations: Vec<Mutation>,
}

#[derive(Debug)]
pub enum Mutation {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    DeleteRange(Vec<u8>, Vec<u8>),
}

impl StateBatch {
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.mutations.push(Mutation::Put(key, value));
    }

    pub fn delete(&mut self, key: Vec<u8>) {
        self.mutations.push(Mutation::Delete(key));
    }

    pub fn delete_range(&mut self, start: Vec<u8>, end: Vec<u8>) {
        self.mutations.push(Mutation::DeleteRange(start, end));
    }
}

/// Log entries and small facts of all groups. A batch is atomic; after a crash a prefix of the batches is there, at
/// least up to the last [`LogEngine::sync`].
pub trait LogEngine: Send + Sync + 'static {
    /// Rows of `start <= key < end`, ascending, until `bytes` of values are reached (one row at least).
    fn entries(&self, start: &[u8], end: &[u8], bytes: usize) -> io::Result<Vec<(Bytes, Bytes)>>;

    /// The last row of `start <= key < end`.
    fn last(&self, start: &[u8], end: &[u8]) -> io::Result<Option<(Bytes, Bytes)>>;

    fn meta(&self, key: &[u8]) -> io::Result<Option<Bytes>>;

    /// Visible at once, durable after the next [`LogEngine::sync`].
    fn write(&self, batch: LogBatch) -> io::Result<()>;

    /// Returns once everything written before is durable. Blocks for as long as the disk takes.
    fn sync(&self) -> io::Result<()>;
}

/// One atomic batch for the raft database, in the order of what was queued.
#[derive(Default, Debug)]
pub struct LogBatch {
    pub mutations: Vec<LogMutation>,
}

#[derive(Debug)]
pub enum LogMutation {
    PutEntry([u8; 12], Bytes),
    DeleteEntry([u8; 12]),
    DeleteEntries([u8; 12], [u8; 12]),
    PutMeta([u8; 5], Bytes),
}
