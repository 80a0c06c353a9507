//! The storage of a node: opened once, shared by all groups, closed last.
//!
//!     open ──▶ group() per group ──▶ checkpoint() now and then ──▶ close()
//!
//! A checkpoint makes the tables of all groups durable with one flush; after it each group's `trigger().snapshot()`
//! marks how far its log may be purged.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::directory::Directory;
pub use crate::directory::Identity;
use crate::engine::{LogBatch, LogEngine, LogMutation, StateEngine};
pub use crate::error::OpenError;
use crate::failure::Failure;
use crate::group::Group;
use crate::ids::{GroupId, ShardId};
use crate::log_keys::{decode_start_number, encode_start_number, start_number_key};
use crate::log_writer::{LogWriter, Scribe};
use crate::machine::{Machine, Tables};
use crate::marks::{self, Mark, Marks, vote_mark};
pub use crate::metrics::StorageMetrics;
pub use crate::raft_log::{GroupLog, GroupLogReader};
pub use crate::raft_state::{CheckpointMarker, GroupState};
use crate::raft_types::SnapshotMeta;
use crate::recover::{RecoverError, recover};
use crate::snapshot::{SnapshotChunks, SnapshotData, StageError, Staged};
use crate::test_bugs::{Bug, has};

/// Where and whose the data is.
#[derive(Clone, Debug)]
pub struct StorageConfig {
    pub directory: PathBuf,
    pub identity: Identity,
    /// False only in tests that show what is lost without: acknowledged entries.
    pub fsync: bool,
    pub memory: MemoryBudget,
}

/// What the databases may take of the machine's memory, beside what a request needs for its moment.
///
/// The write buffers are filled and freed one after another: at the worst, seven of them are full at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryBudget {
    /// Blocks of tables that paging sessions read; hot rows sit in write buffers anyway.
    pub cache_bytes: usize,
    /// One write buffer. A log is purged mostly before its buffer is full: the larger, the less is written twice.
    pub write_buffer_bytes: usize,
}

impl Default for MemoryBudget {
    fn default() -> Self {
        MemoryBudget {
            cache_bytes: 64 << 20,
            write_buffer_bytes: 64 << 20,
        }
    }
}

/// Room on the file system of the data directory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeSpace {
    /// What an unprivileged process may still use.
    pub available: u64,
    pub total: u64,
}

/// What is kept on this node.
pub struct Storage {
    shared: Arc<Shared>,
    identity: Identity,
    start_number: u64,
    /// Guards which groups were handed out.
    groups: Mutex<BTreeMap<GroupId, Slot>>,
    /// One checkpoint at a time.
    checkpoints: tokio::sync::Mutex<()>,
}

struct Slot {
    group: Arc<Group>,
    taken: bool,
    /// As found at the start.
    mark: Mark,
}

impl Slot {
    /// The mark to go on with.
    fn mark(&self) -> Mark {
        let vote = self.group.tail().vote.as_ref().map(vote_mark).unwrap_or_default();
        Mark {
            // A snapshot may be further than the log, and the mark with it.
            next: self.mark.next.max(self.group.synced.borrow().next),
            vote,
        }
    }
}

/// What every group uses.
pub(crate) struct Shared {
    pub log: Arc<dyn LogEngine>,
    pub state: Arc<dyn StateEngine>,
    pub writer: Arc<LogWriter>,
    pub failure: Failure,
    pub metrics: StorageMetrics,
    /// None in the simulator, where nothing may block either.
    directory: Option<Arc<Directory>>,
}

impl Storage {
    /// Opens the data directory, or makes it. Blocks: replays the write-ahead log, deletes leftovers of interrupted
    /// snapshots.
    ///
    /// # Errors
    /// [`OpenError`]: the node must not start.
    #[cfg(feature = "rocksdb")]
    pub fn open(config: StorageConfig, metrics: StorageMetrics) -> Result<Arc<Storage>, OpenError> {
        let path = config.directory;
        let directory = Directory::lock(&path)?;
        let (identity, formed) = directory.identify(&config.identity)?;
        if formed && !crate::rocks::exists(&path.join("raft")) {
            return Err(OpenError::RaftMissing {
                path: path.join("raft"),
            });
        }
        let (log, state) = crate::rocks::open(&path, config.memory).map_err(|error| match error.corrupt {
            true => OpenError::Corrupt {
                path: error.path,
                detail: error.message,
            },
            false => OpenError::Database {
                path: error.path,
                detail: error.message,
            },
        })?;
        let storage = Self::start(
            Arc::new(log),
            Arc::new(state),
            Some(directory),
            identity,
            metrics,
            config.fsync,
        )?;
        if !formed && let Some(directory) = &storage.shared.directory {
            directory.formed(&storage.identity)?;
        }
        Ok(storage)
    }

    /// For the simulator: over other engines, without threads.
    ///
    /// # Errors
    /// [`OpenError::LogShorter`], [`OpenError::Corrupt`]: the engines lost what they must not lose.
    pub fn over(
        log: Arc<dyn LogEngine>,
        state: Arc<dyn StateEngine>,
        identity: Identity,
        metrics: StorageMetrics,
    ) -> Result<Arc<Storage>, OpenError> {
        Self::start(log, state, None, identity, metrics, true)
    }

    fn start(
        log: Arc<dyn LogEngine>,
        state: Arc<dyn StateEngine>,
        directory: Option<Directory>,
        identity: Identity,
        metrics: StorageMetrics,
        fsync: bool,
    ) -> Result<Arc<Storage>, OpenError> {
        let path = directory
            .as_ref()
            .map(|directory| directory.path().to_owned())
            .unwrap_or_default();
        let groups = recover_groups(&path, &*log, &*state, directory.as_ref(), identity.shards)?;
        let not_writable = |source| OpenError::NotWritable {
            path: path.clone(),
            source,
        };
        let start_number = count_start(&*log).map_err(not_writable)?;
        let mut marks = None;
        if let Some(directory) = &directory {
            // What was recovered is synced now: that was a write of its own.
            let recovered = groups.iter().map(|(id, slot)| (*id, slot.mark()));
            marks = Some(Marks::open(&path.join(marks::FILE), recovered.collect()).map_err(not_writable)?);
            directory.sync().map_err(not_writable)?;
        }
        let failure = Failure::new();
        let scribe = Scribe {
            engine: log.clone(),
            fsync,
            metrics: metrics.clone(),
            failure: failure.clone(),
            marks,
        };
        let writer = match &directory {
            Some(_) => LogWriter::spawn(scribe).map_err(not_writable)?,
            None => LogWriter::inline(scribe),
        };
        let directory = directory.map(Arc::new);
        let shared = Arc::new(Shared {
            log,
            state,
            writer,
            failure,
            metrics,
            directory,
        });
        let checkpoints = tokio::sync::Mutex::new(());
        Ok(Arc::new(Storage {
            shared,
            identity,
            start_number,
            groups: Mutex::new(groups),
            checkpoints,
        }))
    }

    /// The log and the tables of a group, for `Raft::new`; `machine` has loaded its tables.
    ///
    /// # Errors
    /// The group is none of this cluster, was handed out before, or its tables do not load.
    pub fn group(&self, group: GroupId, mut machine: Box<dyn Machine>) -> io::Result<(GroupLog, GroupState, Tables)> {
        let group = self.take(group)?;
        let tables = Tables::new(self.shared.state.clone(), group.id, group.generation.clone());
        machine.load(&tables, false)?;
        let log = GroupLog::new(group.clone(), self.shared.log.clone(), self.shared.writer.clone());
        let state = GroupState::new(self.shared.clone(), group, machine, tables.clone());
        Ok((log, state, tables))
    }

    fn take(&self, id: GroupId) -> io::Result<Arc<Group>> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = groups
            .get_mut(&id)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("this cluster has no group {id}")))?;
        if std::mem::replace(&mut slot.taken, true) {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("group {id} is open already"),
            ));
        }
        Ok(slot.group.clone())
    }

    fn find(&self, id: GroupId) -> Option<Arc<Group>> {
        let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.get(&id).map(|slot| slot.group.clone())
    }

    /// Receives a snapshot beside the current tables, durably; give the result to `Raft::install_full_snapshot`.
    /// Dropped, or refused by openraft, it leaves nothing behind.
    ///
    /// # Errors
    /// The stream is torn: the group goes on as if nothing had come. Or the tables cannot be written: the storage has
    /// failed.
    pub async fn stage_snapshot(
        &self,
        group: GroupId,
        meta: SnapshotMeta,
        snapshot: SnapshotData,
    ) -> io::Result<SnapshotData> {
        let group = self.find(group).ok_or(io::ErrorKind::NotFound)?;
        let chunks = &mut snapshot.into_chunks();
        self.shared
            .stage(group, meta, chunks)
            .await
            .map(SnapshotData::from_staged)
    }

    /// Makes the tables of all groups durable up to what each has applied when this is called.
    ///
    /// # Errors
    /// The disk fails: the storage has failed.
    pub async fn checkpoint(&self) -> io::Result<()> {
        let _one = self.checkpoints.lock().await;
        let groups: Vec<Arc<Group>> = {
            let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
            groups.values().map(|slot| slot.group.clone()).collect()
        };
        let started = Instant::now();
        let remembered: Vec<_> = groups.iter().map(|group| group.applied()).collect();
        let witness: Vec<_> = groups
            .iter()
            .filter_map(|group| Some((group.id, group.witness()?)))
            .collect();
        self.shared.flush(Some(witness)).await.inspect_err(|error| {
            self.shared
                .failure
                .fail(&format!("the tables cannot be flushed: {error}"));
        })?;
        for (group, applied) in groups.iter().zip(remembered) {
            group.raise_durable(applied);
        }
        self.shared.metrics.checkpointed(started.elapsed());
        Ok(())
    }

    /// Becomes `Some` with the reason when a write or an fsync has failed: the node must stop.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.shared.failure.subscribe()
    }

    /// The node cannot go on, for a reason that was found elsewhere: [`Storage::failed`] tells it. Nothing more is written.
    pub fn give_up(&self, reason: &str) {
        // After a close there is nobody left to tell.
        if !self.shared.failure.is_closed() {
            self.shared.failure.fail(reason);
        }
    }

    /// How long the oldest write to the log has waited for its sync; zero if none waits.
    pub fn unsynced_for(&self) -> Duration {
        self.shared.writer.unsynced_for()
    }

    /// Index of the last entry of `group` that is durable here; 0 if there is none.
    pub fn synced(&self, group: GroupId) -> u64 {
        self.find(group)
            .map_or(0, |group| group.synced.borrow().next.saturating_sub(1))
    }

    /// Index of the last entry of `group` whose effect the tables keep here whatever happens; `None` if there is none.
    pub fn durable(&self, group: GroupId) -> Option<u64> {
        Some(self.find(group)?.durable().last?.index)
    }

    /// # Errors
    /// The file system does not tell.
    pub fn free_space(&self) -> io::Result<FreeSpace> {
        let Some(directory) = &self.shared.directory else {
            return Ok(FreeSpace {
                available: u64::MAX,
                total: u64::MAX,
            });
        };
        let space = rustix::fs::statvfs(directory.path())?;
        Ok(FreeSpace {
            available: space.f_bavail * space.f_frsize,
            total: space.f_blocks * space.f_frsize,
        })
    }

    /// Counts the opens of this data directory, from 1; durable before `open` returned.
    pub fn start_number(&self) -> u64 {
        self.start_number
    }

    /// As stored when the directory was made.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Writes what is queued, makes the tables durable, stops the writer. Close after the groups have stopped.
    /// The databases close when the last group and the storage are dropped.
    ///
    /// # Errors
    /// The storage has failed.
    pub async fn close(&self) -> io::Result<()> {
        self.shared.writer.stop().await?;
        self.checkpoint().await
    }
}

impl Shared {
    /// Fills and flushes a fresh generation.
    pub async fn stage(
        &self,
        group: Arc<Group>,
        meta: SnapshotMeta,
        chunks: &mut SnapshotChunks,
    ) -> io::Result<Staged> {
        let id = group.id;
        let staged = Staged::begin(self.state.clone(), group, meta);
        let filled = match staged.fill(chunks).await {
            Ok(()) => self.flush(None).await,
            Err(StageError::Torn(error)) => return Err(error),
            Err(StageError::Disk(error)) => Err(error),
        };
        filled.inspect_err(|error| {
            self.failure
                .fail(&format!("a snapshot of group {id} cannot be written: {error}"));
        })?;
        Ok(staged)
    }

    /// Flushes the tables off the task, then stores the witness.
    async fn flush(&self, witness: Option<Vec<(GroupId, u64)>>) -> io::Result<()> {
        let Some(directory) = self.directory.clone() else {
            return self.state.flush();
        };
        let state = self.state.clone();
        let flush = move || {
            if !has(Bug::SkipDirFsync) {
                state.flush()?;
            }
            witness.map_or(Ok(()), |witness| directory.store_witness(&witness))
        };
        // Seconds on a slow disk: not on a task's thread.
        tokio::task::spawn_blocking(flush).await.map_err(io::Error::other)?
    }
}

fn recover_groups(
    path: &std::path::Path,
    log: &dyn LogEngine,
    state: &dyn StateEngine,
    directory: Option<&Directory>,
    shards: u16,
) -> Result<BTreeMap<GroupId, Slot>, OpenError> {
    let witness = directory.map(Directory::witness).unwrap_or_default();
    let ids = std::iter::once(GroupId::META).chain((0..shards).map(|shard| GroupId::shard(ShardId(shard))));
    let marked = directory.map(|_| marks::read(&path.join(marks::FILE), usize::from(shards) + 1));
    let marked = marked.unwrap_or_default();
    let mut groups = BTreeMap::new();
    for id in ids {
        let mark = marked.get(&id).copied().unwrap_or_default();
        let group = recover(id, log, state, witness.get(&id).copied(), mark).map_err(|error| match error {
            RecoverError::VoteLost { had, found } => OpenError::VoteLost {
                path: path.join("raft"),
                group: id,
                had,
                found,
            },
            RecoverError::LogShorter { had, found } => OpenError::LogShorter {
                path: path.join("raft"),
                group: id,
                had,
                found,
            },
            RecoverError::TablesBehind { detail } => OpenError::Corrupt {
                path: path.join("state"),
                detail: format!("group {id}: {detail}"),
            },
            RecoverError::Read(error) => OpenError::Corrupt {
                path: path.to_owned(),
                detail: format!("group {id}: {error}"),
            },
        })?;
        groups.insert(
            id,
            Slot {
                group: Arc::new(group),
                taken: false,
                mark,
            },
        );
    }
    Ok(groups)
}

fn count_start(log: &dyn LogEngine) -> io::Result<u64> {
    let before = log
        .meta(&start_number_key())?
        .map(|bytes| decode_start_number(&bytes))
        .transpose()?;
    let number = before.unwrap_or(0) + 1;
    let row = LogMutation::PutMeta(start_number_key(), encode_start_number(number));
    log.write(LogBatch { mutations: vec![row] })?;
    log.sync()?;
    Ok(number)
}
