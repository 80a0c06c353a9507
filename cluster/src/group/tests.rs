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

async fn start() -> (Arc<Storage>, Group) {
    let identity = Identity {
        cluster: "test".into(),
        node: 1,
        shards: 1,
        replication_factor: 1,
        nodes: vec![1],
    };
    let metrics = StorageMetrics::new(&prometheus::Registry::new());
    let (log, state) = (Arc::new(MemoryLog::new()), Arc::new(MemoryState::new()));
    let storage = Storage::over(log, state, identity, metrics).unwrap();
    let stored = storage.group(GroupId(1), Box::new(Panics)).unwrap();
    let parts = GroupParts {
        id: GroupId(1),
        clock: Arc::default(),
        applied: Arc::default(),
        storage: Arc::downgrade(&storage),
    };
    let config = raft_config(Duration::from_millis(50), Duration::from_millis(250)).unwrap();
    let network = RaftNetworkFactory::new(LinksHandle::default(), GroupId(1), Duration::from_secs(1));
    let group = Group::start(parts, 1, config, network, stored).await.unwrap();
    group.form([1]).await.unwrap();
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
