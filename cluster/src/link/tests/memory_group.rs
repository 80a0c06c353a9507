//! The smallest log and state machine that openraft accepts: everything in memory, nothing lost.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use lontra_storage::command::Reply;
use lontra_storage::raft_types::{Entry, EntryPayload, LogId, SnapshotMeta, StoredMembership, TypeConfig, Vote};
use lontra_storage::snapshot::SnapshotData;
use openraft::OptionalSend;
use openraft::alias::SnapshotOf;
use openraft::storage::{
    EntryResponder, IOFlushed, LogState, RaftLogReader, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine,
};
use tokio::sync::{mpsc, watch};

#[derive(Clone, Default)]
pub struct MemoryLog {
    state: Arc<Mutex<LogData>>,
}

#[derive(Default)]
struct LogData {
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    purged: Option<LogId>,
    /// Set: the disk never answers, the callbacks stay here.
    stuck: Option<Vec<IOFlushed<TypeConfig>>>,
    /// Set: votes are answered, with an error, once this tells so.
    votes_fail: Option<watch::Receiver<bool>>,
}

impl MemoryLog {
    /// A log whose disk never answers.
    pub fn stuck() -> Self {
        let log = MemoryLog::default();
        log.state.lock().unwrap().stuck = Some(Vec::new());
        log
    }

    /// A log that fails to store a vote, but not before it is told to.
    pub fn failing_votes(when: watch::Receiver<bool>) -> Self {
        let log = MemoryLog::default();
        log.state.lock().unwrap().votes_fail = Some(when);
        log
    }
}

impl RaftLogReader<TypeConfig> for MemoryLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        Ok(self
            .state
            .lock()
            .unwrap()
            .entries
            .range(range)
            .map(|(_, entry)| entry.clone())
            .collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.state.lock().unwrap().vote)
    }
}

impl RaftLogStorage<TypeConfig> for MemoryLog {
    type LogReader = MemoryLog;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.state.lock().unwrap();
        let last = state.entries.last_key_value().map(|(_, entry)| entry.log_id);
        Ok(LogState {
            last_purged_log_id: state.purged,
            last_log_id: last.or(state.purged),
        })
    }

    async fn get_log_reader(&mut self) -> MemoryLog {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let fails = self.state.lock().unwrap().votes_fail.clone();
        if let Some(mut fails) = fails {
            let _ = fails.wait_for(|fails| *fails).await;
            return Err(io::Error::other("the disk is gone"));
        }
        self.state.lock().unwrap().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut state = self.state.lock().unwrap();
        state
            .entries
            .extend(entries.into_iter().map(|entry| (entry.log_id.index, entry)));
        match state.stuck.as_mut() {
            Some(stuck) => stuck.push(callback),
            None => callback.io_completed(Ok(())),
        }
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let first = last.map_or(0, |last| last.index + 1);
        self.state.lock().unwrap().entries.split_off(&first);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.entries = state.entries.split_off(&(log_id.index + 1));
        state.purged = Some(log_id);
        Ok(())
    }
}

/// Keeps every command in order. A clone is a view.
#[derive(Clone, Default)]
pub struct MemoryMachine {
    state: Arc<Mutex<MachineData>>,
}

#[derive(Default)]
struct MachineData {
    commands: Vec<Bytes>,
    applied: Option<LogId>,
    membership: StoredMembership,
    installed: usize,
}

impl MemoryMachine {
    pub fn commands(&self) -> Vec<Bytes> {
        self.state.lock().unwrap().commands.clone()
    }

    pub fn installed(&self) -> usize {
        self.state.lock().unwrap().installed
    }

    fn snapshot(&self) -> SnapshotOf<TypeConfig, SnapshotData> {
        let state = self.state.lock().unwrap();
        let commands = state.commands.clone();
        let meta = SnapshotMeta {
            last_log_id: state.applied,
            last_membership: state.membership.clone(),
        };
        let (sender, receiver) = mpsc::channel(2);
        tokio::spawn(async move {
            for command in commands {
                if sender.send(Ok(command)).await.is_err() {
                    return;
                }
            }
        });
        SnapshotOf::<TypeConfig, SnapshotData> {
            meta,
            snapshot: SnapshotData::from_chunks(receiver),
        }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for MemoryMachine {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, SnapshotData>> {
        Ok(self.snapshot())
    }
}

impl RaftStateMachine<TypeConfig> for MemoryMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = MemoryMachine;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let state = self.state.lock().unwrap();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let mut state = self.state.lock().unwrap();
            state.applied = Some(entry.log_id);
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(command) => state.commands.push(command.0),
                EntryPayload::Membership(membership) => {
                    state.membership = StoredMembership::new(Some(entry.log_id), membership);
                }
            }
            drop(state);
            if let Some(responder) = responder {
                responder.send(Reply(Vec::new()));
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> MemoryMachine {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        let mut chunks = snapshot.into_chunks();
        let mut commands = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            commands.push(chunk?);
        }
        let mut state = self.state.lock().unwrap();
        state.commands = commands;
        state.applied = meta.last_log_id;
        state.membership = meta.last_membership.clone();
        state.installed += 1;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, SnapshotData>>> {
        Ok(Some(self.snapshot()))
    }
}
