//! One group's tables, as openraft asks for them.
//!
//!     entry ──▶ wait until synced here ──▶ Machine::apply ──▶ one batch with `applied` ──▶ emit ──▶ reply
//!
//! A snapshot is a marker: building one does no I/O, it names the position that the last checkpoint made durable.
//! After a restart openraft takes all that was applied again for its snapshot: how far a log may be purged is what
//! [`Storage::durable`](crate::Storage::durable) says, and not that. What is sent is read from a view when it is sent.
//!
//! Invariants
//! - `state-behind-log`: no batch is written before the group's log has synced its entry.
//! - A group's rows and its `applied` are in one batch, so any crash leaves them agreeing.
//! - Entries are applied in index order, none twice, none left out.
//! - `log-purge`: what `build_snapshot` names is durable in the tables.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};

use crate::command::Reply;
use crate::engine::{LogMutation, StateBatch};
use crate::group::{Applied, Group};
use crate::ids::GroupId;
use crate::log_keys::{Generation, MetaKind, applied_key, encode_generation, meta_key};
use crate::log_tail::next_index;
use crate::machine::{EntryPosition, Machine, TableBatch, Tables};
use crate::marks::Promise;
use crate::raft_types::{
    Entry, EntryPayload, LogId, SnapshotMeta, StoredMembership, TypeConfig, decode_snapshot_meta, encode_snapshot_meta,
};
use crate::snapshot::{SnapshotData, Staged, delete_generation};
use crate::storage::Shared;

type GroupSnapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// The tables of one group and the machine that owns them. openraft's state machine task owns it.
pub struct GroupState {
    shared: Arc<Shared>,
    group: Arc<Group>,
    machine: Box<dyn Machine>,
    tables: Tables,
    applied: Applied,
    synced: tokio::sync::watch::Receiver<crate::group::Synced>,
    failed: tokio::sync::watch::Receiver<Option<String>>,
}

impl GroupState {
    pub(crate) fn new(shared: Arc<Shared>, group: Arc<Group>, machine: Box<dyn Machine>, tables: Tables) -> GroupState {
        let (applied, synced, failed) = (group.applied(), group.synced.subscribe(), shared.failure.subscribe());
        GroupState {
            shared,
            group,
            machine,
            tables,
            applied,
            synced,
            failed,
        }
    }

    async fn apply_entry(&mut self, entry: &Entry) -> io::Result<Reply> {
        let index = entry.log_id.index;
        self.wait_synced(index).await?;
        if let Some(last) = &self.applied.last
            && last.index + 1 != index
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "group {}: entry {} follows applied entry {last}",
                    self.group.id, entry.log_id
                ),
            ));
        }
        let at = EntryPosition {
            term: entry.log_id.leader_id.term,
            index,
        };
        let mut batch = StateBatch::default();
        let reply = match &entry.payload {
            EntryPayload::Normal(command) => {
                let mut rows = TableBatch::new(&mut batch, self.tables.prefix());
                // A panic here would end openraft's task of this group and nothing else: the node would live on half dead.
                // Nothing that the machine left half done is used again: what it wrote is dropped, and the node ends.
                let machine = AssertUnwindSafe(|| self.machine.apply(&self.tables, &mut rows, at, &command.0));
                catch_unwind(machine).unwrap_or_else(|_| Err(panicked(self.group.id, index)))?
            }
            EntryPayload::Blank => Reply::default(),
            EntryPayload::Membership(membership) => {
                self.applied.membership = Arc::new(StoredMembership::new(Some(entry.log_id), membership.clone()));
                Reply::default()
            }
        };
        self.applied.last = Some(entry.log_id);
        let key = applied_key(self.group.id, self.group.current_generation());
        batch.put(key, encode_snapshot_meta(&self.applied.meta()).to_vec());
        self.shared.state.write(batch)?;
        // Only after the write: a checkpoint that sees it flushes it.
        self.group.set_applied(self.applied.clone());
        catch_unwind(AssertUnwindSafe(|| self.machine.emit(at))).map_err(|_| panicked(self.group.id, index))?;
        Ok(reply)
    }

    /// `state-behind-log`: openraft applies what a quorum has, which may be before our own disk has it.
    async fn wait_synced(&mut self, index: u64) -> io::Result<()> {
        if self.synced.borrow().next > index {
            return Ok(());
        }
        tokio::select! {
            synced = self.synced.wait_for(|synced| synced.next > index) => {
                synced.map(drop).map_err(|_| self.shared.failure.error())
            }
            _ = self.failed.wait_for(Option::is_some) => Err(self.shared.failure.error()),
        }
    }

    async fn switch(&mut self, staged: Staged) -> io::Result<()> {
        let generation = Generation {
            number: staged.generation,
            snapshot: staged.meta.clone(),
        };
        let key = meta_key(self.group.id, MetaKind::Generation);
        let row = LogMutation::PutMeta(key, encode_generation(&generation));
        let reaches = Promise::Reaches(self.group.id, next_index(&staged.meta.last_log_id));
        self.shared.writer.durable(vec![row], reaches).await?;
        staged.keep();
        let old = self.group.generation.swap(staged.generation, Ordering::AcqRel);
        self.applied = Applied::from(staged.meta.clone());
        self.group.set_applied(self.applied.clone());
        self.group.raise_durable(self.applied.clone());
        self.machine.load(&self.tables, true)?;
        self.shared.metrics.snapshot_installed();
        delete_generation(&*self.shared.state, &self.group, old)
    }

    fn fatal(&self, error: io::Error) -> io::Error {
        // After a close there is nobody left to tell.
        if !self.shared.failure.is_closed() {
            self.shared
                .failure
                .fail(&format!("the tables of group {} cannot go on: {error}", self.group.id));
        }
        error
    }
}

/// What an operator reads where applying an entry is a bug: every replica applies the same.
fn panicked(group: GroupId, index: u64) -> io::Error {
    let advice =
        "the panic is in the log; start this node again; if others end at the same entry, replace none, and report it";
    io::Error::other(format!("group {group}: applying entry {index} panicked; {advice}"))
}

#[cfg(test)]
impl GroupState {
    /// For openraft's suite, which applies what it never appended, from any index on.
    pub(crate) fn assume_synced_and_next(&mut self, index: u64) {
        self.group
            .synced
            .send_modify(|synced| synced.next = synced.next.max(index + 1));
        if let Some(last) = &mut self.applied.last {
            last.index = index.saturating_sub(1);
        }
    }
}

impl RaftStateMachine<TypeConfig> for GroupState {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = CheckpointMarker;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied.last, (*self.applied.membership).clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let reply = self.apply_entry(&entry).await.map_err(|error| self.fatal(error))?;
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<CheckpointMarker> {
        let meta = self.group.durable().meta();
        (force || meta.last_log_id.is_some()).then_some(CheckpointMarker { meta })
    }

    async fn get_snapshot_builder(&mut self) -> CheckpointMarker {
        CheckpointMarker {
            meta: self.group.durable().meta(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        let staged = match snapshot.into_staged() {
            Ok(staged) => staged,
            Err(mut chunks) => self.shared.stage(self.group.clone(), meta.clone(), &mut chunks).await?,
        };
        if staged.meta != *meta {
            let message = format!("group {}: the snapshot to install is not the one staged", self.group.id);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        self.switch(staged).await.map_err(|error| self.fatal(error))
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<GroupSnapshot>> {
        if self.applied.last.is_none() {
            return Ok(None);
        }
        let view = self.shared.state.view()?;
        let key = applied_key(self.group.id, self.group.current_generation());
        let Some(applied) = view.get(key).await? else {
            return Ok(None);
        };
        let meta = decode_snapshot_meta(&applied)?;
        let snapshot = SnapshotData::from_view(view, &self.group, self.shared.metrics.clone());
        Ok(Some(Snapshot { meta, snapshot }))
    }
}

/// The position that the last checkpoint made durable.
pub struct CheckpointMarker {
    meta: SnapshotMeta,
}

impl RaftSnapshotBuilder<TypeConfig> for CheckpointMarker {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<GroupSnapshot> {
        // openraft keeps only `meta`; the data of a transfer comes from `get_current_snapshot`.
        let (_, nothing) = tokio::sync::mpsc::channel(1);
        Ok(Snapshot {
            meta: self.meta.clone(),
            snapshot: SnapshotData::from_chunks(nothing),
        })
    }
}
