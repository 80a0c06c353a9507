//! RocksDB, named nowhere else: the raft database and the state database of a data directory.
//!
//!     <data>/raft    column families `log` and `meta`, WAL, fsynced by the log writer
//!     <data>/state   one column family, no WAL: always recovers to a prefix of its batches
//!
//! Invariants
//! - A raft database with a damaged WAL does not open: the default recovery mode would drop what follows the damage,
//!   acknowledged entries among it, without a word. A torn last record is normal and dropped.
//! - No prefix extractor: it would make iterators skip entries.
//! - Rows of `state` are written with the WAL off, all in one column family: no batch survives a crash without its
//!   predecessors, and none in part.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRawIterator,
    DBRecoveryMode, Options, ReadOptions, Snapshot, WriteBatch, WriteOptions,
};
use tokio::sync::oneshot;

use crate::engine::{LogBatch, LogEngine, LogMutation, Mutation, StateBatch, StateEngine, StateView};
use crate::storage::MemoryBudget;
use crate::test_bugs::{Bug, has};

/// Why a database does not open.
#[derive(Debug)]
pub(crate) struct RocksOpenError {
    pub path: PathBuf,
    pub corrupt: bool,
    pub message: String,
}

/// The raft database.
pub(crate) struct RocksLog {
    db: DB,
}

/// The state database.
pub(crate) struct RocksState {
    db: Arc<DB>,
    without_wal: WriteOptions,
}

/// Whether `path` holds a database.
pub(crate) fn exists(path: &Path) -> bool {
    path.join("CURRENT").exists()
}

/// Opens or creates both databases in `directory`.
pub(crate) fn open(directory: &Path, memory: MemoryBudget) -> Result<(RocksLog, RocksState), RocksOpenError> {
    let cache = Cache::new_lru_cache(memory.cache_bytes);
    let log = RocksLog::open(&directory.join("raft"), &cache, memory.write_buffer_bytes)?;
    let state = RocksState::open(&directory.join("state"), &cache, memory.write_buffer_bytes)?;
    Ok((log, state))
}

impl RocksLog {
    fn open(path: &Path, cache: &Cache, write_buffer_bytes: usize) -> Result<Self, RocksOpenError> {
        let mut options = database_options();
        options.set_wal_recovery_mode(match has(Bug::WalPointInTime) {
            false => DBRecoveryMode::TolerateCorruptedTailRecords,
            true => DBRecoveryMode::PointInTime,
        });
        // A recycled file ends in old records, which that mode cannot tell from damage.
        options.set_recycle_log_file_num(0);
        options.set_max_total_wal_size(WAL_BYTES);
        let mut log = table_options(cache, write_buffer_bytes);
        // Purges reach the memtable before its flush: most entries never become a file.
        log.set_max_write_buffer_number(4);
        let meta = table_options(cache, META_WRITE_BUFFER_BYTES);
        let families = [
            ColumnFamilyDescriptor::new(LOG, log),
            ColumnFamilyDescriptor::new(META, meta),
        ];
        let db = DB::open_cf_descriptors(&options, path, families).map_err(|error| open_error(path, &error))?;
        Ok(RocksLog { db })
    }

    fn family(&self, name: &str) -> io::Result<&ColumnFamily> {
        self.db
            .cf_handle(name)
            .ok_or_else(|| io::Error::other("the raft database lacks a column family"))
    }

    fn cursor(&self, start: &[u8], end: &[u8]) -> io::Result<DBRawIterator<'_>> {
        let options = bounded(start, end);
        Ok(self.db.raw_iterator_cf_opt(self.family(LOG)?, options))
    }
}

impl LogEngine for RocksLog {
    fn entries(&self, start: &[u8], end: &[u8], bytes: usize) -> io::Result<Vec<(Bytes, Bytes)>> {
        let mut cursor = self.cursor(start, end)?;
        cursor.seek(start);
        collect(&mut cursor, usize::MAX, bytes)
    }

    fn last(&self, start: &[u8], end: &[u8]) -> io::Result<Option<(Bytes, Bytes)>> {
        let mut cursor = self.cursor(start, end)?;
        cursor.seek_to_last();
        Ok(collect(&mut cursor, 1, usize::MAX)?.pop())
    }

    fn meta(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        Ok(self
            .db
            .get_cf(self.family(META)?, key)
            .map_err(io_error)?
            .map(Bytes::from))
    }

    fn write(&self, batch: LogBatch) -> io::Result<()> {
        let (log, meta) = (self.family(LOG)?, self.family(META)?);
        let mut rows = WriteBatch::default();
        for mutation in &batch.mutations {
            match mutation {
                LogMutation::PutEntry(key, value) => rows.put_cf(log, key, value),
                LogMutation::DeleteEntry(key) => rows.delete_cf(log, key),
                LogMutation::DeleteEntries(start, end) => rows.delete_range_cf(log, &start[..], &end[..]),
                LogMutation::PutMeta(key, value) => rows.put_cf(meta, key, value),
            }
        }
        self.db.write(rows).map_err(io_error)
    }

    fn sync(&self) -> io::Result<()> {
        // Not a synced write: that would hold RocksDB's write queue for the whole fsync.
        self.db.flush_wal(true).map_err(io_error)
    }
}

impl RocksState {
    fn open(path: &Path, cache: &Cache, write_buffer_bytes: usize) -> Result<Self, RocksOpenError> {
        let mut options = table_options(cache, write_buffer_bytes);
        options.set_max_write_buffer_number(3);
        common(&mut options);
        let db = DB::open(&options, path).map_err(|error| open_error(path, &error))?;
        let mut without_wal = WriteOptions::default();
        without_wal.disable_wal(true);
        Ok(RocksState {
            db: Arc::new(db),
            without_wal,
        })
    }
}

impl StateEngine for RocksState {
    fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        Ok(self.db.get(key).map_err(io_error)?.map(Bytes::from))
    }

    fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> io::Result<Vec<(Bytes, Bytes)>> {
        let mut cursor = self.db.raw_iterator_opt(bounded(start, end));
        cursor.seek(start);
        collect(&mut cursor, limit, usize::MAX)
    }

    fn write(&self, batch: StateBatch) -> io::Result<()> {
        let mut rows = WriteBatch::default();
        for mutation in &batch.mutations {
            match mutation {
                Mutation::Put(key, value) => rows.put(key, value),
                Mutation::Delete(key) => rows.delete(key),
                Mutation::DeleteRange(start, end) => rows.delete_range(start, end),
            }
        }
        self.db.write_opt(rows, &self.without_wal).map_err(io_error)
    }

    fn flush(&self) -> io::Result<()> {
        self.db.flush().map_err(io_error)
    }

    fn view(&self) -> io::Result<Box<dyn StateView>> {
        RocksView::take(self.db.clone()).map(|view| Box::new(view) as Box<dyn StateView>)
    }
}

/// A RocksDB snapshot borrows its database, so it lives on a thread that owns both and answers reads.
struct RocksView {
    reads: mpsc::Sender<Read>,
}

type Rows = Vec<(Bytes, Bytes)>;

enum Read {
    Get(Vec<u8>, oneshot::Sender<io::Result<Option<Bytes>>>),
    Scan {
        start: Vec<u8>,
        end: Vec<u8>,
        bytes: usize,
        done: oneshot::Sender<io::Result<Rows>>,
    },
}

impl RocksView {
    /// Returns when the view is taken. The thread ends with the last sender.
    fn take(db: Arc<DB>) -> io::Result<RocksView> {
        let (reads, requests) = mpsc::channel();
        let (taken, wait) = mpsc::channel();
        std::thread::Builder::new().name("lontra-view".into()).spawn(move || {
            let snapshot = db.snapshot();
            let _ = taken.send(());
            while let Ok(read) = requests.recv() {
                answer(&snapshot, read);
            }
        })?;
        wait.recv().map_err(|_| view_gone())?;
        Ok(RocksView { reads })
    }
}

/// Whoever asked may have gone: a snapshot transfer was cancelled.
fn answer(snapshot: &Snapshot<'_>, read: Read) {
    match read {
        Read::Get(key, done) => {
            let value = snapshot.get(key).map(|value| value.map(Bytes::from)).map_err(io_error);
            let _ = done.send(value);
        }
        Read::Scan {
            start,
            end,
            bytes,
            done,
        } => {
            let mut options = bounded(&start, &end);
            options.fill_cache(false);
            options.set_readahead_size(READAHEAD_BYTES);
            let mut cursor = snapshot.raw_iterator_opt(options);
            cursor.seek(&start);
            let _ = done.send(collect(&mut cursor, usize::MAX, bytes));
        }
    }
}

impl StateView for RocksView {
    fn get(&self, key: Vec<u8>) -> BoxFuture<'static, io::Result<Option<Bytes>>> {
        let (done, value) = oneshot::channel();
        // If the thread is gone, `done` is dropped and the await below says so.
        let _ = self.reads.send(Read::Get(key, done));
        async move { value.await.unwrap_or_else(|_| Err(view_gone())) }.boxed()
    }

    fn scan(&self, start: Vec<u8>, end: Vec<u8>, bytes: usize) -> BoxFuture<'static, io::Result<Rows>> {
        let (done, rows) = oneshot::channel();
        let _ = self.reads.send(Read::Scan {
            start,
            end,
            bytes,
            done,
        });
        async move { rows.await.unwrap_or_else(|_| Err(view_gone())) }.boxed()
    }
}

fn view_gone() -> io::Error {
    io::Error::other("the view of the tables is gone")
}

fn bounded(start: &[u8], end: &[u8]) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(start);
    options.set_iterate_upper_bound(end);
    options
}

/// Rows from where `cursor` stands, until `limit` rows or `bytes` (one row at least).
fn collect(cursor: &mut DBRawIterator<'_>, limit: usize, bytes: usize) -> io::Result<Rows> {
    let (mut rows, mut size) = (Vec::new(), 0);
    while rows.len() < limit
        && size < bytes
        && let Some((key, value)) = cursor.item()
    {
        size += key.len() + value.len();
        rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        cursor.next();
    }
    // An iterator that hit damage just ends; only its status tells.
    cursor.status().map_err(io_error)?;
    Ok(rows)
}

fn database_options() -> Options {
    let mut options = Options::default();
    options.create_missing_column_families(true);
    common(&mut options);
    options
}

fn common(options: &mut Options) {
    options.create_if_missing(true);
    options.set_max_background_jobs(2);
    options.set_avoid_unnecessary_blocking_io(true);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(16 << 20);
}

fn table_options(cache: &Cache, write_buffer_bytes: usize) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options.set_write_buffer_size(write_buffer_bytes);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_level_compaction_dynamic_level_bytes(true);
    options
}

fn open_error(path: &Path, error: &rocksdb::Error) -> RocksOpenError {
    let corrupt = matches!(error.kind(), rocksdb::ErrorKind::Corruption);
    RocksOpenError {
        path: path.to_owned(),
        corrupt,
        message: error.to_string(),
    }
}

fn io_error(error: rocksdb::Error) -> io::Error {
    let message = error.to_string();
    if message.contains("No space left") {
        let advice = "the disk of the data directory is full; free some space and start this node again";
        return io::Error::new(io::ErrorKind::StorageFull, format!("{advice} ({message})"));
    }
    let kind = match error.kind() {
        rocksdb::ErrorKind::Corruption => io::ErrorKind::InvalidData,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, message)
}

const LOG: &str = "log";
const META: &str = "meta";

const META_WRITE_BUFFER_BYTES: usize = 4 << 20;
/// 512 MiB: a cold column family pins WAL files until then; also bounds what a start replays.
const WAL_BYTES: u64 = 512 << 20;
const READAHEAD_BYTES: usize = 1 << 20;
