//! Disks that are slow, that fail, or that forget.

use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt;

use super::{Journal, append, apply, count, entry, identity, log_id, metrics};
use crate::engine::{LogBatch, LogEngine, StateBatch, StateEngine};
use crate::error::OpenError;
use crate::failure::Failure;
use crate::group::{Applied, Group};
use crate::ids::GroupId;
use crate::log_tail::LogTail;
use crate::log_writer::{LogWriter, Scribe};
use crate::raft_log::GroupLog;
use crate::raft_types::{TypeConfig, Vote};
use crate::storage::Storage;
use crate::testing::{MemoryLog, MemoryState};

const GROUP: GroupId = GroupId(1);

/// A log whose syncs wait for the test.
#[derive(Default)]
struct SlowLog {
    inner: MemoryLog,
    /// Syncs begun, and syncs that may end.
    syncs: Mutex<(usize, usize)>,
    changed: Condvar,
}

impl SlowLog {
    fn allow(&self, syncs: usize) {
        self.syncs.lock().unwrap().1 += syncs;
        self.changed.notify_all();
    }

    fn wait_begun(&self, count: usize) {
        drop(
            self.changed
                .wait_while(self.syncs.lock().unwrap(), |syncs| syncs.0 < count)
                .unwrap(),
        );
    }
}

impl LogEngine for SlowLog {
    fn entries(&self, start: &[u8], end: &[u8], bytes: usize) -> io::Result<Vec<(Bytes, Bytes)>> {
        self.inner.entries(start, end, bytes)
    }
    fn last(&self, start: &[u8], end: &[u8]) -> io::Result<Option<(Bytes, Bytes)>> {
        self.inner.last(start, end)
    }
    fn meta(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        self.inner.meta(key)
    }
    fn write(&self, batch: LogBatch) -> io::Result<()> {
        self.inner.write(batch)
    }
    fn sync(&self) -> io::Result<()> {
        let mut syncs = self.syncs.lock().unwrap();
        syncs.0 += 1;
        self.changed.notify_all();
        let mut syncs = self.changed.wait_while(syncs, |syncs| syncs.1 == 0).unwrap();
        syncs.1 -= 1;
        self.inner.sync()
    }
}

fn threaded(engine: Arc<dyn LogEngine>) -> (Arc<Group>, Arc<LogWriter>, GroupLog) {
    let group = Arc::new(Group::new(GROUP, LogTail::default(), 0, Applied::default()));
    let scribe = Scribe {
        engine: engine.clone(),
        fsync: true,
        metrics: metrics(),
        failure: Failure::new(),
        marks: None,
    };
    let writer = LogWriter::spawn(scribe).unwrap();
    let log = GroupLog::new(group.clone(), engine, writer.clone());
    (group, writer, log)
}

#[tokio::test]
async fn entries_are_readable_before_they_are_durable() {
    let slow = Arc::new(SlowLog::default());
    let (group, _writer, mut log) = threaded(slow.clone());
    let (sender, done) = TypeConfig::oneshot();
    log.append(vec![entry(1, 0), entry(1, 1)], IOFlushed::signal(sender))
        .await
        .unwrap();
    let read = log.get_log_reader().await.try_get_log_entries(0..9).await.unwrap();
    assert_eq!(read, [entry(1, 0), entry(1, 1)]);
    assert_eq!(group.synced.borrow().next, 0);
    slow.allow(1);
    done.await.unwrap().unwrap();
    assert_eq!(group.synced.borrow().next, 2);
}

#[tokio::test]
async fn a_sync_that_does_not_end_shows_as_the_age_of_the_oldest_write() {
    let slow = Arc::new(SlowLog::default());
    let (_group, writer, mut log) = threaded(slow.clone());
    let until = async |holds: &dyn Fn(Duration) -> bool| {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while !holds(writer.unsynced_for()) {
            assert!(std::time::Instant::now() < deadline, "{:?}", writer.unsynced_for());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert_eq!(writer.unsynced_for(), Duration::ZERO);
    let (sender, first) = TypeConfig::oneshot();
    log.append(vec![entry(1, 0)], IOFlushed::signal(sender)).await.unwrap();
    slow.wait_begun(1);
    let (sender, second) = TypeConfig::oneshot();
    log.append(vec![entry(1, 1)], IOFlushed::signal(sender)).await.unwrap();
    until(&|age| age > Duration::from_millis(100)).await;
    slow.allow(1);
    first.await.unwrap().unwrap();
    slow.wait_begun(2);
    assert!(writer.unsynced_for() > Duration::ZERO, "the second waits");
    slow.allow(1);
    second.await.unwrap().unwrap();
    // It answers before it counts.
    until(&|age| age == Duration::ZERO).await;
}

#[tokio::test]
async fn a_truncated_entry_counts_as_synced_only_when_it_was_written_again() {
    let slow = Arc::new(SlowLog::default());
    let (group, _writer, mut log) = threaded(slow.clone());
    let (sender, first) = TypeConfig::oneshot();
    log.append(
        (0..5).map(|index| entry(1, index)).collect::<Vec<_>>(),
        IOFlushed::signal(sender),
    )
    .await
    .unwrap();
    slow.wait_begun(1);
    log.truncate_after(Some(log_id(1, 1))).await.unwrap();
    let (sender, second) = TypeConfig::oneshot();
    log.append(vec![entry(2, 2)], IOFlushed::signal(sender)).await.unwrap();
    slow.allow(1);
    first.await.unwrap().unwrap();
    assert!(
        group.synced.borrow().next <= 2,
        "entry 2 of term 1 is durable, entry 2 of term 2 is not"
    );
    slow.allow(1);
    second.await.unwrap().unwrap();
    assert_eq!(group.synced.borrow().next, 3);
}

#[tokio::test]
async fn apply_waits_for_the_log() {
    // Inline, so that the order is known: the log is held back by not appending.
    let storage = Storage::over(
        Arc::new(MemoryLog::new()),
        Arc::new(MemoryState::new()),
        identity(),
        metrics(),
    );
    let (mut log, mut state, tables) = storage.unwrap().group(GROUP, Box::new(Journal::default())).unwrap();
    let applied = tokio::spawn(async move {
        apply(&mut state, vec![entry(1, 0)]).await.unwrap();
        state
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(count(&tables), 0);
    append(&mut log, vec![entry(1, 0)]).await.unwrap();
    applied.await.unwrap();
    assert_eq!(count(&tables), 1);
}

#[tokio::test]
async fn the_first_write_error_is_final() {
    let engine = MemoryLog::new();
    let storage = Storage::over(
        Arc::new(engine.clone()),
        Arc::new(MemoryState::new()),
        identity(),
        metrics(),
    )
    .unwrap();
    let (mut log, _state, _) = storage.group(GROUP, Box::new(Journal::default())).unwrap();
    let mut failed = storage.failed();
    append(&mut log, vec![entry(1, 0)]).await.unwrap();
    engine.break_with("disk on fire");
    assert!(append(&mut log, vec![entry(1, 1)]).await.is_err());
    let message = failed.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert!(message.contains("disk on fire"), "{message}");
    // The disk is well again, but what it forgot in between is unknown.
    engine.crash();
    assert!(append(&mut log, vec![entry(1, 1)]).await.is_err());
    assert!(log.save_vote(&Vote::new(2, 1)).await.is_err());
    assert_eq!(storage.synced(GROUP), 0);
}

#[tokio::test]
async fn apply_ends_when_the_log_has_failed() {
    let engine = MemoryLog::new();
    let storage = Storage::over(
        Arc::new(engine.clone()),
        Arc::new(MemoryState::new()),
        identity(),
        metrics(),
    )
    .unwrap();
    let (mut log, mut state, _) = storage.group(GROUP, Box::new(Journal::default())).unwrap();
    engine.break_with("disk on fire");
    assert!(append(&mut log, vec![entry(1, 0)]).await.is_err());
    assert!(apply(&mut state, vec![entry(1, 0)]).await.is_err());
}

#[tokio::test]
async fn a_vote_is_durable_when_it_is_saved() {
    let (engine, tables) = (MemoryLog::new(), MemoryState::new());
    let open = || {
        Storage::over(
            Arc::new(engine.clone()),
            Arc::new(tables.clone()),
            identity(),
            metrics(),
        )
        .unwrap()
    };
    let (mut log, _, _) = open().group(GROUP, Box::new(Journal::default())).unwrap();
    log.save_vote(&Vote::new(7, 1)).await.unwrap();
    engine.crash();
    let storage = open();
    let (mut log, _, _) = storage.group(GROUP, Box::new(Journal::default())).unwrap();
    assert_eq!(
        log.get_log_reader().await.read_vote().await.unwrap(),
        Some(Vote::new(7, 1))
    );
    assert_eq!(storage.start_number(), 2);
}

#[tokio::test]
async fn committed_never_points_beyond_the_log() {
    let storage = Storage::over(
        Arc::new(MemoryLog::new()),
        Arc::new(MemoryState::new()),
        identity(),
        metrics(),
    );
    let (mut log, _, _) = storage.unwrap().group(GROUP, Box::new(Journal::default())).unwrap();
    append(&mut log, vec![entry(1, 0), entry(1, 1)]).await.unwrap();
    log.save_committed(Some(log_id(1, 9))).await.unwrap();
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 1)));
}

#[tokio::test]
async fn long_logs_are_read_in_pieces_and_purged_in_ranges() {
    let engine = MemoryLog::new();
    let (_group, _writer, mut log) = threaded(Arc::new(engine.clone()));
    for start in (0..6000).step_by(1000) {
        append(&mut log, (start..start + 1000).map(big_entry).collect())
            .await
            .unwrap();
    }
    let mut reader = log.get_log_reader().await;
    let all = reader.try_get_log_entries(..).await.unwrap();
    assert!(all.iter().map(|entry| entry.log_id.index).eq(0..6000));
    let piece = reader.limited_get_log_entries(0, 6000).await.unwrap();
    assert!((200..500).contains(&piece.len()), "{} entries of 4 KiB", piece.len());
    let streamed: Vec<_> = futures_util::TryStreamExt::try_collect(reader.entries_stream(10..5990).await)
        .await
        .unwrap();
    assert!(
        streamed
            .iter()
            .map(|entry: &crate::raft_types::Entry| entry.log_id.index)
            .eq(10..5990)
    );

    log.purge(log_id(1, 4999)).await.unwrap();
    log.purge(log_id(1, 5001)).await.unwrap();
    let left = reader.try_get_log_entries(..).await.unwrap();
    assert!(left.iter().map(|entry| entry.log_id.index).eq(5002..6000));
    append(&mut log, Vec::new()).await.unwrap();
    assert_eq!(engine.entries(&[0; 12], &[255; 12], usize::MAX).unwrap().len(), 998);
}

fn big_entry(index: u64) -> crate::raft_types::Entry {
    let mut entry = entry(1, index);
    entry.payload = crate::raft_types::EntryPayload::Normal(crate::raft_types::Command(vec![7; 4096].into()));
    entry
}

/// What a disk without fsync may do, and what the checks at the start make of it.
#[tokio::test]
async fn tables_ahead_of_the_log_are_refused() {
    let (engine, tables) = (MemoryLog::new(), MemoryState::new());
    let open = || {
        Storage::over(
            Arc::new(engine.clone()),
            Arc::new(tables.clone()),
            identity(),
            metrics(),
        )
    };
    let storage = open().unwrap();
    let (mut log, mut state, _) = storage.group(GROUP, Box::new(Journal::default())).unwrap();
    let entries: Vec<_> = (0..10).map(|index| entry(1, index)).collect();
    append(&mut log, entries.clone()).await.unwrap();
    apply(&mut state, entries).await.unwrap();
    storage.checkpoint().await.unwrap();
    log.truncate_after(Some(log_id(1, 4))).await.unwrap();
    drop((storage, log, state));
    let error = open().err().unwrap();
    assert!(
        matches!(error, OpenError::LogShorter { had: 9, found: 4, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("join again under a new node id"), "{error}");
}

#[tokio::test]
async fn tables_behind_the_purged_log_are_refused() {
    let (engine, tables) = (MemoryLog::new(), MemoryState::new());
    let open = || {
        Storage::over(
            Arc::new(engine.clone()),
            Arc::new(tables.clone()),
            identity(),
            metrics(),
        )
    };
    let storage = open().unwrap();
    let (mut log, state, _) = storage.group(GROUP, Box::new(Journal::default())).unwrap();
    append(&mut log, (0..10).map(|index| entry(1, index)).collect())
        .await
        .unwrap();
    log.purge(log_id(1, 4)).await.unwrap();
    drop((storage, log, state));
    tables.write(StateBatch::default()).unwrap();
    assert!(matches!(open().err().unwrap(), OpenError::Corrupt { .. }));
}
