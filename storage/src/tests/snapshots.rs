//! Snapshots from one storage to another, with what can go wrong between.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use openraft::storage::{RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine};
use tokio::sync::mpsc;

use super::{Journal, append, apply, count, entry, identity, log_id, metrics};
use crate::ids::GroupId;
use crate::machine::Tables;
use crate::raft_types::SnapshotMeta;
use crate::snapshot::SnapshotData;
use crate::storage::{GroupLog, GroupState, Storage};
use crate::testing::{MemoryLog, MemoryState};

const GROUP: GroupId = GroupId(1);

struct Node {
    engines: (MemoryLog, MemoryState),
    storage: Arc<Storage>,
    log: GroupLog,
    state: GroupState,
    tables: Tables,
}

impl Node {
    fn start(engines: (MemoryLog, MemoryState)) -> Node {
        let (log, state) = (Arc::new(engines.0.clone()), Arc::new(engines.1.clone()));
        let storage = Storage::over(log, state, identity(), metrics()).unwrap();
        let (log, state, tables) = storage.group(GROUP, Box::new(Journal::default())).unwrap();
        Node {
            engines,
            storage,
            log,
            state,
            tables,
        }
    }

    fn new() -> Node {
        Node::start(Default::default())
    }

    async fn with_entries(count: u64) -> Node {
        let mut node = Node::new();
        let entries: Vec<_> = (0..count).map(|index| entry(1, index)).collect();
        append(&mut node.log, entries.clone()).await.unwrap();
        apply(&mut node.state, entries).await.unwrap();
        node
    }

    /// A power cut, and the start after it.
    fn crash(self) -> Node {
        let engines = self.engines.clone();
        drop(self);
        engines.0.crash();
        engines.1.crash();
        Node::start(engines)
    }

    async fn chunks(&mut self) -> (SnapshotMeta, Vec<Bytes>) {
        let snapshot = self.state.get_current_snapshot().await.unwrap().unwrap();
        let mut data = snapshot.snapshot.into_chunks();
        let mut chunks = Vec::new();
        while let Some(chunk) = data.recv().await {
            chunks.push(chunk.unwrap());
        }
        (snapshot.meta, chunks)
    }

    fn rows(&self) -> Vec<(Bytes, Bytes)> {
        self.tables.scan(&[1], &[255], usize::MAX).unwrap()
    }
}

fn channel(chunks: Vec<io::Result<Bytes>>) -> SnapshotData {
    let (sender, receiver) = mpsc::channel(chunks.len().max(1));
    for chunk in chunks {
        sender.try_send(chunk).unwrap();
    }
    SnapshotData::from_chunks(receiver)
}

fn whole(chunks: &[Bytes]) -> SnapshotData {
    channel(chunks.iter().cloned().map(Ok).collect())
}

#[tokio::test]
async fn what_was_sent_is_installed() {
    let mut leader = Node::with_entries(3000).await;
    let (meta, chunks) = leader.chunks().await;
    assert!(chunks.len() > 3, "more than one chunk of rows");
    assert_eq!(meta.last_log_id, Some(log_id(1, 2999)));

    let mut follower = Node::with_entries(5).await;
    let data = follower
        .storage
        .stage_snapshot(GROUP, meta.clone(), whole(&chunks))
        .await
        .unwrap();
    assert_eq!(count(&follower.tables), 5, "staged is not installed");
    follower.state.install_snapshot(&meta, data).await.unwrap();
    assert_eq!(follower.rows(), leader.rows());
    assert_eq!(follower.state.applied_state().await.unwrap().0, meta.last_log_id);
    follower.log.purge(meta.last_log_id.unwrap()).await.unwrap();

    // The log goes on behind the snapshot, and all of it survives a power cut.
    append(&mut follower.log, vec![entry(2, 3000)]).await.unwrap();
    apply(&mut follower.state, vec![entry(2, 3000)]).await.unwrap();
    assert_eq!(count(&follower.tables), 3001);
    let mut follower = follower.crash();
    assert_eq!(follower.rows(), leader.rows());
    assert_eq!(
        follower.log.get_log_state().await.unwrap().last_log_id,
        Some(log_id(2, 3000))
    );
    let generations = follower.engines.1.rows().into_iter().map(|(key, _)| key.slice(..8));
    assert_eq!(
        generations.collect::<std::collections::BTreeSet<_>>().len(),
        1,
        "the old generation is deleted"
    );
}

#[tokio::test]
async fn a_sent_view_does_not_move() {
    let mut leader = Node::with_entries(10).await;
    let snapshot = leader.state.get_current_snapshot().await.unwrap().unwrap();
    append(&mut leader.log, vec![entry(1, 10)]).await.unwrap();
    apply(&mut leader.state, vec![entry(1, 10)]).await.unwrap();

    let mut follower = Node::new();
    // As openraft would hand it over in one process: not staged before.
    let (sender, receiver) = mpsc::channel(100);
    let mut chunks = snapshot.snapshot.into_chunks();
    while let Some(chunk) = chunks.recv().await {
        sender.send(chunk).await.unwrap();
    }
    drop(sender);
    let data = SnapshotData::from_chunks(receiver);
    follower.state.install_snapshot(&snapshot.meta, data).await.unwrap();
    assert_eq!(count(&follower.tables), 10);
}

#[tokio::test]
async fn a_torn_stream_changes_nothing() {
    let mut leader = Node::with_entries(3000).await;
    let (meta, chunks) = leader.chunks().await;
    let follower = Node::with_entries(5).await;
    let before = follower.engines.1.rows();

    let mut flipped = chunks.clone();
    let mut bytes = flipped[1].to_vec();
    bytes[100] ^= 1;
    flipped[1] = bytes.into();
    let mut repeated = chunks.clone();
    repeated.insert(1, chunks[1].clone());
    let mut missing = chunks.clone();
    missing.remove(1);
    let mut swapped = chunks.clone();
    swapped.swap(0, 1);
    let unended = chunks[..chunks.len() - 1].to_vec();
    let mut overlong = chunks.clone();
    overlong.push(chunks[0].clone());

    for torn in [flipped, repeated, missing, swapped, unended, overlong, Vec::new()] {
        let error = follower
            .storage
            .stage_snapshot(GROUP, meta.clone(), whole(&torn))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        assert_eq!(follower.engines.1.rows(), before, "nothing is left behind: {error}");
    }
    let broken = channel(vec![Ok(chunks[0].clone()), Err(io::ErrorKind::ConnectionReset.into())]);
    assert!(follower.storage.stage_snapshot(GROUP, meta, broken).await.is_err());
    assert_eq!(follower.engines.1.rows(), before);
    assert!(follower.storage.failed().borrow().is_none(), "the group goes on");
}

#[tokio::test]
async fn tables_that_take_no_snapshot_end_the_storage() {
    let mut leader = Node::with_entries(10).await;
    let (meta, chunks) = leader.chunks().await;
    let follower = Node::with_entries(5).await;
    follower.engines.1.break_with("the disk is gone");
    let staged = follower.storage.stage_snapshot(GROUP, meta, whole(&chunks)).await;
    assert!(staged.is_err());
    let failure = follower.storage.failed().borrow().clone().unwrap();
    assert!(
        failure.contains("a snapshot of group shard-0 cannot be written"),
        "{failure}"
    );
    assert!(failure.contains("the disk is gone"), "{failure}");
}

#[tokio::test]
async fn a_crash_between_staging_and_the_switch_keeps_the_old_tables() {
    let mut leader = Node::with_entries(3000).await;
    let (meta, chunks) = leader.chunks().await;
    let follower = Node::with_entries(5).await;
    let data = follower
        .storage
        .stage_snapshot(GROUP, meta, whole(&chunks))
        .await
        .unwrap();
    assert!(follower.engines.1.rows().len() > 3000, "staged, and flushed");
    let engines = follower.engines.clone();
    engines.1.break_with("power is gone");
    drop((data, follower));
    engines.0.crash();
    engines.1.crash();
    assert!(engines.1.rows().len() > 3000, "the leftover survived");

    let mut follower = Node::start(engines);
    assert_eq!(follower.engines.1.rows().len(), 5 + 2, "deleted at the start");
    assert_eq!(follower.state.applied_state().await.unwrap().0, Some(log_id(1, 4)));
}

#[tokio::test]
async fn a_staged_snapshot_that_openraft_refuses_leaves_nothing() {
    let mut leader = Node::with_entries(10).await;
    let (meta, chunks) = leader.chunks().await;
    let follower = Node::with_entries(5).await;
    let before = follower.engines.1.rows();
    drop(
        follower
            .storage
            .stage_snapshot(GROUP, meta, whole(&chunks))
            .await
            .unwrap(),
    );
    assert_eq!(follower.engines.1.rows(), before);
}

#[tokio::test]
async fn only_a_checkpoint_lets_the_log_be_purged() {
    let mut node = Node::with_entries(10).await;
    assert!(
        node.state.try_create_snapshot_builder(false).await.is_none(),
        "nothing is durable yet"
    );
    node.storage.checkpoint().await.unwrap();
    let more: Vec<_> = (10..20).map(|index| entry(1, index)).collect();
    append(&mut node.log, more.clone()).await.unwrap();
    apply(&mut node.state, more).await.unwrap();
    let marker = node
        .state
        .try_create_snapshot_builder(false)
        .await
        .unwrap()
        .build_snapshot()
        .await
        .unwrap();
    assert_eq!(marker.meta.last_log_id, Some(log_id(1, 9)));

    let mut node = node.crash();
    assert_eq!(count(&node.tables), 10, "the tables are back at the checkpoint");
    assert_eq!(
        node.log.get_log_state().await.unwrap().last_log_id,
        Some(log_id(1, 19)),
        "the log is not"
    );
    let replay: Vec<_> = (10..20).map(|index| entry(1, index)).collect();
    apply(&mut node.state, replay).await.unwrap();
    assert_eq!(count(&node.tables), 20);
}
