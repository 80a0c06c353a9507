//! The parts together: openraft's own storage suite, snapshots from one storage to another, a disk that fails.

mod failing_disk;
#[cfg(feature = "rocksdb")]
mod opening;
mod snapshots;
mod suite;

use std::io;

use bytes::Bytes;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage, RaftStateMachine};
use openraft::type_config::TypeConfigExt;

use crate::command::Reply;
use crate::machine::{EntryPosition, Machine, TableBatch, Tables};
use crate::raft_types::{Command, Entry, EntryPayload, LeaderId, LogId, TypeConfig};
use crate::storage::{GroupLog, GroupState, Identity, StorageMetrics};

/// Keeps every command under `1 · index`, and a count that each entry reads and raises under `2`.
#[derive(Default)]
pub(crate) struct Journal {
    loads: usize,
}

impl Machine for Journal {
    fn load(&mut self, _tables: &Tables, reset: bool) -> io::Result<()> {
        assert_eq!(reset, self.loads > 0);
        self.loads += 1;
        Ok(())
    }

    fn apply(
        &mut self,
        tables: &Tables,
        batch: &mut TableBatch<'_>,
        at: EntryPosition,
        command: &Bytes,
    ) -> io::Result<Reply> {
        let count = count(tables) + 1;
        batch.put(&[&[1][..], &at.index.to_be_bytes()].concat(), command);
        batch.put(&[2], &count.to_be_bytes());
        Ok(Reply(vec![command.clone()]))
    }

    fn emit(&mut self, _at: EntryPosition) {}
}

pub(crate) fn count(tables: &Tables) -> u64 {
    let bytes = tables.get(&[2]).unwrap();
    bytes.map_or(0, |bytes| u64::from_be_bytes(bytes[..].try_into().unwrap()))
}

pub(crate) fn identity() -> Identity {
    Identity {
        cluster: "test".into(),
        node: 1,
        shards: 2,
        replication_factor: 3,
        nodes: vec![1, 2, 3],
    }
}

pub(crate) fn metrics() -> StorageMetrics {
    StorageMetrics::new(&prometheus::Registry::new())
}

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId { term, node_id: 1 }, index)
}

pub(crate) fn entry(term: u64, index: u64) -> Entry {
    let command = Bytes::from(format!("command {index} of term {term}").repeat(20));
    Entry::new(log_id(term, index), EntryPayload::Normal(Command(command)))
}

/// Appends and waits until durable.
pub(crate) async fn append(log: &mut GroupLog, entries: Vec<Entry>) -> io::Result<()> {
    let (sender, done) = TypeConfig::oneshot();
    log.append(entries, IOFlushed::signal(sender)).await?;
    done.await.unwrap()
}

pub(crate) async fn apply(state: &mut GroupState, entries: Vec<Entry>) -> io::Result<()> {
    state
        .apply(futures_util::stream::iter(
            entries.into_iter().map(|entry| Ok((entry, None))),
        ))
        .await
}
