//! openraft's test suite for storages, over both kinds of engines.
//!
//! The suite applies entries that were never appended and takes snapshots without a checkpoint; [`Loose`] makes up
//! for what our rules (`state-behind-log`, snapshots are markers of checkpoints) refuse.

use std::io;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{OptionalSend, StorageError};

use super::{Journal, identity, metrics};
use crate::ids::GroupId;
use crate::raft_types::{LogId, SnapshotMeta, StoredMembership, TypeConfig};
use crate::snapshot::SnapshotData;
use crate::storage::{CheckpointMarker, GroupLog, GroupState, Storage};
use crate::testing::{MemoryLog, MemoryState};

struct Loose {
    storage: Arc<Storage>,
    state: GroupState,
}

impl RaftStateMachine<TypeConfig> for Loose {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = CheckpointMarker;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        self.state.applied_state().await
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            self.state.assume_synced_and_next(entry.log_id.index);
            self.state
                .apply(futures_util::stream::iter([Ok((entry, responder))]))
                .await?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> CheckpointMarker {
        self.storage.checkpoint().await.unwrap();
        self.state.try_create_snapshot_builder(true).await.unwrap()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        self.state.install_snapshot(meta, snapshot).await
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<openraft::alias::SnapshotOf<TypeConfig, SnapshotData>>> {
        self.state.get_current_snapshot().await
    }
}

fn take(storage: Arc<Storage>) -> (GroupLog, Loose) {
    let (log, state, _) = storage.group(GroupId(1), Box::new(Journal::default())).unwrap();
    (log, Loose { storage, state })
}

struct InMemory;

impl StoreBuilder<TypeConfig, GroupLog, Loose> for InMemory {
    async fn build(&self) -> Result<((), GroupLog, Loose), StorageError<TypeConfig>> {
        let (log, state) = (Arc::new(MemoryLog::new()), Arc::new(MemoryState::new()));
        let (log, state) = take(Storage::over(log, state, identity(), metrics()).unwrap());
        Ok(((), log, state))
    }
}

#[tokio::test]
async fn openraft_suite_in_memory() {
    Suite::test_all(InMemory).await.unwrap();
}

#[cfg(feature = "rocksdb")]
mod on_disk {
    use super::*;
    use crate::storage::StorageConfig;

    struct OnDisk;

    impl StoreBuilder<TypeConfig, GroupLog, Loose, tempfile::TempDir> for OnDisk {
        async fn build(&self) -> Result<(tempfile::TempDir, GroupLog, Loose), StorageError<TypeConfig>> {
            let directory = tempfile::tempdir().unwrap();
            let config = StorageConfig {
                directory: directory.path().join("data"),
                identity: identity(),
                fsync: true,
                memory: crate::MemoryBudget::default(),
            };
            let (log, state) = take(Storage::open(config, metrics()).unwrap());
            Ok((directory, log, state))
        }
    }

    #[tokio::test]
    async fn openraft_suite_on_disk() {
        Suite::test_all(OnDisk).await.unwrap();
    }
}
