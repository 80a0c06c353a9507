use std::io;
use std::time::Duration;

use bytes::Bytes;
use lontra_storage::command::Reply;
use lontra_storage::machine::{EntryPosition, Machine, TableBatch};
use lontra_storage::testing::{MemoryLog, MemoryState};
use lontra_storage::{Identity, StorageMetrics};

use super::*;
use crate::link::LinksHandle;

/// A machine with a bug.
struct Panics;

impl Machine for Panics {
    fn load(&mut self, _: &Tables, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn apply(&mut self, _: &Tables, _: &mut TableBatch<'_>, _: EntryPosition, _: &Bytes) -> io::Result<Reply> {
        panic!("a bug of the machine")
    }

    fn emit(&mut self, _: EntryPosition) {}
}

/// A machine that keeps nothing.
struct Idle;

impl Machine for Idle {
    fn load(&mut self, _: &Tables, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn apply(&mut self, _: &Tables, _: &mut TableBatch<'_>, _: EntryPosition, _: &Bytes) -> io::Result<Reply> {
        Ok(Reply::default())
    }

    fn emit(&mut self, _: EntryPosition) {}
}

async fn start() -> (Arc<Storage>, Group) {
    start_with(Box::new(Panics)).await
}

async fn start_with(machine: Box<dyn Machine>) -> (Arc<Storage>, Group) {
    let (storage, group) = start_over(Arc::new(MemoryLog::new()), Arc::new(MemoryState::new()), machine).await;
    group.form([1]).await.unwrap();
    (storage, group)
}

async fn start_over(log: Arc<MemoryLog>, state: Arc<MemoryState>, machine: Box<dyn Machine>) -> (Arc<Storage>, Group) {
    let identity = Identity {
        cluster: "test".into(),
        node: 1,
        shards: 1,
        replication_factor: 1,
        nodes: vec![1],
    };
    let metrics = StorageMetrics::new(&prometheus::Registry::new());
    let storage = Storage::over(log, state, identity, metrics).unwrap();
    let stored = storage.group(GroupId(1), machine).unwrap();
    let parts = GroupParts {
        id: GroupId(1),
        clock: Arc::default(),
        applied: Arc::default(),
        storage: Arc::downgrade(&storage),
    };
    let config = raft_config(Duration::from_millis(50), Duration::from_millis(250)).unwrap();
    let network = RaftNetworkFactory::new(LinksHandle::default(), GroupId(1), Duration::from_secs(1));
    let group = Group::start(parts, 1, config, network, stored).await.unwrap();
    (storage, group)
}

#[tokio::test]
async fn a_panic_in_apply_ends_the_node() {
    let (storage, group) = start().await;
    let mut failed = storage.failed();
    let command = encode_envelope(group.clock.now(), &[Bytes::from_static(b"bundle")]);
    let writing = group.raft.clone();
    tokio::spawn(async move {
        writing.wait(None).current_leader(1, "leads").await.unwrap();
        let _ = writing.client_write(command).await;
    });
    let failure = tokio::time::timeout(Duration::from_secs(20), failed.wait_for(Option::is_some)).await;
    let failure = failure.unwrap().unwrap().clone().unwrap();
    assert!(failure.contains("group shard-0: applying entry"), "{failure}");
    assert!(failure.contains("start this node again"), "{failure}");
}

#[tokio::test]
async fn a_group_that_is_shut_down_does_not() {
    let (storage, group) = start().await;
    shut_down(group.raft.clone()).await.unwrap();
    let mut metrics = group.raft.metrics();
    while metrics.changed().await.is_ok() {}
    tokio::task::yield_now().await;
    assert!(storage.failed().borrow().is_none());
}

/// openraft purges nothing by itself, and what is asked of it never goes beyond the last checkpoint, however much was
/// applied since.
#[tokio::test]
async fn a_log_shrinks_to_a_margin_behind_the_last_checkpoint() {
    let limit = Some(Duration::from_secs(20));
    let (storage, group) = start_with(Box::new(Idle)).await;
    group.raft.wait(limit).current_leader(1, "leads").await.unwrap();
    let write = async |count: usize| {
        let mut last = 0;
        for _ in 0..count {
            let command = encode_envelope(group.clock.now(), &[]);
            last = group.raft.client_write(command).await.unwrap().log_id.index;
        }
        last
    };
    let checkpoint = async |applied: u64| {
        storage.checkpoint().await.unwrap();
        group.raft.trigger().snapshot().await.unwrap();
        let built = |metrics: &RaftMetrics<TypeConfig>| metrics.snapshot.is_some_and(|id| id.index >= applied);
        group.raft.wait(limit).metrics(built, "built").await.unwrap();
    };
    let purged = || group.raft.metrics().borrow_watched().purged.map(|id| id.index);

    let first = write(300).await;
    group.purge(storage.durable(group.id), |_| true).await;
    checkpoint(first).await;
    // As beside a checkpoint that is under way: this is applied, and not durable.
    write(300).await;
    assert_eq!(purged(), None, "nothing is purged unasked");
    group.purge(storage.durable(group.id), |_| true).await;
    let is_purged = |metrics: &RaftMetrics<TypeConfig>| metrics.purged.is_some();
    group.raft.wait(limit).metrics(is_purged, "purged").await.unwrap();
    let upto = purged().unwrap();
    assert!((first - 100..first).contains(&upto), "{upto} of {first}");

    let second = write(300).await;
    checkpoint(second).await;
    group.purge(storage.durable(group.id), |_| true).await;
    let is_purged = |metrics: &RaftMetrics<TypeConfig>| metrics.purged.is_some_and(|id| id.index > first);
    group.raft.wait(limit).metrics(is_purged, "purged").await.unwrap();
    shut_down(group.raft.clone()).await.unwrap();
}

/// After kill -9 the tables end where they were flushed, and openraft takes all that it applied again from the log for its
/// snapshot: the log is still the only copy of it.
#[tokio::test]
async fn what_was_applied_again_after_a_crash_is_not_purged_before_a_checkpoint() {
    let limit = Some(Duration::from_secs(20));
    let (log, state) = (Arc::new(MemoryLog::new()), Arc::new(MemoryState::new()));
    let (_storage, group) = start_over(log.clone(), state.clone(), Box::new(Idle)).await;
    group.form([1]).await.unwrap();
    group.raft.wait(limit).current_leader(1, "leads").await.unwrap();
    for _ in 0..300 {
        let command = encode_envelope(group.clock.now(), &[]);
        group.raft.client_write(command).await.unwrap();
    }
    shut_down(group.raft.clone()).await.unwrap();
    state.crash();

    let (storage, group) = start_over(log, state, Box::new(Idle)).await;
    let is_back = |metrics: &RaftMetrics<TypeConfig>| metrics.last_applied.is_some_and(|id| id.index >= 300);
    group.raft.wait(limit).metrics(is_back, "applied again").await.unwrap();
    assert_eq!(storage.durable(group.id), None, "nothing was flushed");
    group.purge(storage.durable(group.id), |_| true).await;
    assert_eq!(group.raft.metrics().borrow_watched().purged, None);
    storage.checkpoint().await.unwrap();
    assert!(storage.durable(group.id) >= Some(300));
    shut_down(group.raft.clone()).await.unwrap();
}
