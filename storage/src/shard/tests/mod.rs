//! Entries go in, replies, rows and effects come out; every entry through the bytes that a log would hold.

mod delayed;
mod ledger;
mod model;
mod queue;
mod repeats;
mod replay;
mod retained;
mod senders;
mod shared;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;

use super::*;
use crate::command::{
    Append, Assignment, BatchReply, Delay, EnqueueRetained, Left, OperationResult, Origin, ShardOperation,
    encode_envelope,
};
use crate::engine::{StateBatch, StateEngine};
use crate::ids::{GroupId, Incarnation, MetaIndex, NodeId, Offset, SessionEpoch, SessionId};
use crate::message::{LogTime, Message, Recipient, Role};
use crate::testing::MemoryState;

#[derive(Default)]
struct Recorder {
    applied: Mutex<Vec<Applied>>,
    /// What a view that jumped was told.
    jumped_to: Mutex<Option<Ledger>>,
}

impl ShardSink for Recorder {
    fn applied(&self, applied: Applied) {
        self.applied.lock().unwrap().push(applied);
    }
    fn jumped(&self, _: ShardId, _: Offset, _: u64, _: RetainedSize, _: DelayedSize, ledger: Ledger) {
        *self.jumped_to.lock().unwrap() = Some(ledger);
    }
}

struct Fixture {
    engine: MemoryState,
    tables: Tables,
    shard: Shard,
    sink: Arc<Recorder>,
    index: u64,
    /// Log time of the next entry; each takes a second.
    now: u64,
    /// The last sequence of each node, for [`Fixture::batch`].
    sequences: BTreeMap<NodeId, u64>,
}

/// The incarnation under which [`Fixture::batch`] speaks.
const INCARNATION: Incarnation = Incarnation(7);

impl Fixture {
    fn new() -> Self {
        let engine = MemoryState::default();
        let tables = Tables::new(Arc::new(engine.clone()), GroupId(1), Arc::new(AtomicU32::new(0)));
        let sink = Arc::new(Recorder::default());
        let mut shard = Shard::new(ShardId(0), sink.clone());
        shard.load(&tables, false).unwrap();
        Fixture {
            engine,
            tables,
            shard,
            sink,
            index: 0,
            now: 1000,
            sequences: BTreeMap::new(),
        }
    }

    /// Memory begins anew from the tables, as after a restart.
    fn reload(&mut self) {
        self.shard = Shard::new(ShardId(0), self.sink.clone());
        self.shard.load(&self.tables, false).unwrap();
    }

    /// One entry of the log.
    fn apply(&mut self, batches: &[NodeBatch]) -> Vec<BatchReply> {
        self.index += 1;
        let bundles: Vec<Bytes> = batches.iter().map(NodeBatch::encode).collect();
        let command = encode_envelope(LogTime(self.now), &bundles);
        self.now = self.now.saturating_add(1000);
        let at = EntryPosition {
            term: 1,
            index: self.index,
        };
        let mut state = StateBatch::default();
        let mut batch = TableBatch::new(&mut state, self.tables.prefix());
        let reply = self.shard.apply(&self.tables, &mut batch, at, &command.0).unwrap();
        self.engine.write(state).unwrap();
        self.shard.emit(at);
        self.check_conservation();
        reply.0.iter().map(|bytes| BatchReply::decode(bytes).unwrap()).collect()
    }

    /// The next batch of a node: all its messages go to `recipients`, matched at `route_version`.
    fn batch(
        &mut self,
        node: NodeId,
        route_version: u64,
        recipients: &[Recipient],
        operations: Vec<ShardOperation>,
    ) -> NodeBatch {
        let sequence = self.sequences.entry(node).or_default();
        *sequence += 1;
        NodeBatch {
            node,
            incarnation: INCARNATION,
            sequence: *sequence,
            route_version: MetaIndex(route_version),
            recipient_sets: vec![recipients.to_vec()],
            operations,
        }
    }

    /// One entry with one batch of node 1; what its operations have to tell.
    fn operate(&mut self, recipients: &[Recipient], operations: Vec<ShardOperation>) -> Vec<(u32, OperationResult)> {
        let retains = operations.iter().any(|operation| match operation {
            ShardOperation::Append(append) => Message::decode(&append.message).unwrap().retain,
            _ => false,
        });
        self.operate_at(if retains { ROUTE } else { 0 }, recipients, operations)
    }

    fn operate_at(
        &mut self,
        route_version: u64,
        recipients: &[Recipient],
        operations: Vec<ShardOperation>,
    ) -> Vec<(u32, OperationResult)> {
        let batch = self.batch(1, route_version, recipients, operations);
        match self.apply(&[batch]).remove(0) {
            BatchReply::Applied { results, .. } => results,
            other => panic!("not applied: {other:?}"),
        }
    }

    fn check_conservation(&self) {
        let ledger = read_ledger(&self.tables).unwrap();
        assert!(ledger.is_conserved(), "conservation: {ledger:?}");
        let rows = self.kinds().get(&keys::PENDING).copied().unwrap_or_default();
        assert_eq!(ledger.queued, rows as u64, "{ledger:?}");
    }

    /// The effects of the last entry.
    fn effects(&self) -> Applied {
        self.sink.applied.lock().unwrap().last().unwrap().clone()
    }

    /// How many rows there are of each kind; senders and head, which no session owns, aside.
    fn kinds(&self) -> BTreeMap<u8, usize> {
        let mut kinds = BTreeMap::new();
        for (key, _) in self.engine.rows() {
            if ![keys::SENDER, keys::SHARD_HEAD].contains(&key[8]) {
                *kinds.entry(key[8]).or_default() += 1;
            }
        }
        kinds
    }

    fn entries(&self, session: u64) -> Vec<PendingEntry> {
        let page = read_page(&self.tables, SessionId(session), Offset(0), usize::MAX, usize::MAX).unwrap();
        page.entries
    }

    fn queue(&self, session: u64) -> Vec<u64> {
        self.entries(session).iter().map(|entry| entry.offset.0).collect()
    }

    fn topics(&self, session: u64) -> Vec<String> {
        let entries = self.entries(session);
        entries.iter().map(|entry| entry.message.topic.to_string()).collect()
    }
}

/// The route version that messages are matched at, unless a test says otherwise.
const ROUTE: u64 = 1;

/// QoS 1, published by session 1.
fn message(topic: &str) -> Message {
    Message {
        topic: topic.into(),
        payload: Bytes::from_static(b"x"),
        qos: 1,
        retain: false,
        publisher: SessionId(1),
        expiry_interval: None,
        properties: Bytes::new(),
    }
}

fn retain(topic: &str, payload: &str) -> Message {
    Message {
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        retain: true,
        ..message(topic)
    }
}

fn recipient(session: u64) -> Recipient {
    Recipient {
        session: SessionId(session),
        qos: 1,
        retain: false,
        subscription_identifiers: vec![],
        role: Role::Session,
    }
}

fn group(session: u64) -> Recipient {
    Recipient {
        role: Role::Group,
        ..recipient(session)
    }
}

fn append(message: Message) -> ShardOperation {
    append_of(Origin::Plain, message)
}

fn append_of(origin: Origin, message: Message) -> ShardOperation {
    ShardOperation::Append(Append {
        message: message.encode(),
        recipients: 0,
        origin,
    })
}

fn offsets(offsets: &[u64]) -> Vec<Offset> {
    offsets.iter().copied().map(Offset).collect()
}

fn acknowledge(session: u64, of: &[u64]) -> ShardOperation {
    ShardOperation::Ack {
        session: SessionId(session),
        how: Left::Delivered,
        offsets: offsets(of),
    }
}

fn sweep(session: u64) -> ShardOperation {
    ShardOperation::Sweep {
        session: SessionId(session),
    }
}

fn enqueue(session: u64, filter: &str, version: u64) -> EnqueueRetained {
    EnqueueRetained {
        session: SessionId(session),
        filter: filter.into(),
        version: MetaIndex(version),
        qos: 2,
        no_local: false,
        identifier: None,
    }
}

fn batch(node: NodeId, incarnation: u64, sequence: u64, sessions: &[u64], appends: usize) -> NodeBatch {
    NodeBatch {
        node,
        incarnation: Incarnation(incarnation),
        sequence,
        route_version: MetaIndex(0),
        recipient_sets: vec![sessions.iter().map(|session| recipient(*session)).collect()],
        operations: (0..appends).map(|_| append(message("a"))).collect(),
    }
}

fn applied(upto: u64) -> BatchReply {
    BatchReply::Applied {
        upto: Offset(upto),
        results: vec![],
    }
}

const NOTHING: [(u32, OperationResult); 0] = [];
const REFUSED: [(u32, OperationResult); 1] = [(0, OperationResult::Refused)];
const MORE: [(u32, OperationResult); 1] = [(0, OperationResult::More)];

struct Random(u64);

impl Random {
    /// splitmix64
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }
}
