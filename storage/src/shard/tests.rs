use std::sync::Mutex;
use std::sync::atomic::AtomicU32;

use super::*;
use crate::command::encode_envelope;
use crate::engine::{StateBatch, StateEngine};
use crate::ids::{GroupId, Incarnation, MetaIndex, NodeId, SessionId};
use crate::testing::MemoryState;

#[derive(Default)]
struct Recorder {
    applied: Mutex<Vec<Applied>>,
}

impl ShardSink for Recorder {
    fn applied(&self, applied: Applied) {
        self.applied.lock().unwrap().push(applied);
    }
    fn jumped(&self, _: ShardId, _: Offset, _: u64) {}
}

struct Fixture {
    engine: Arc<dyn StateEngine>,
    tables: Tables,
    shard: Shard,
    sink: Arc<Recorder>,
    index: u64,
}

impl Fixture {
    fn new() -> Self {
        let engine: Arc<dyn StateEngine> = Arc::new(MemoryState::default());
        let tables = Tables::new(engine.clone(), GroupId(1), Arc::new(AtomicU32::new(0)));
        let sink = Arc::new(Recorder::default());
        let mut shard = Shard::new(ShardId(0), sink.clone());
        shard.load(&tables, false).unwrap();
        Fixture {
            engine,
            tables,
            shard,
            sink,
            index: 0,
        }
    }

    fn apply(&mut self, batches: &[NodeBatch]) -> Vec<BatchReply> {
        self.index += 1;
        let bundles: Vec<Bytes> = batches.iter().map(NodeBatch::encode).collect();
        let command = encode_envelope(LogTime(self.index * 1000), &bundles);
        let at = EntryPosition {
            term: 1,
            index: self.index,
        };
        let mut state = StateBatch::default();
        let mut batch = TableBatch::new(&mut state, self.tables.prefix());
        let reply = self.shard.apply(&self.tables, &mut batch, at, &command.0).unwrap();
        self.engine.write(state).unwrap();
        self.shard.emit(at);
        reply.0.iter().map(|bytes| BatchReply::decode(bytes).unwrap()).collect()
    }

    fn rows(&self) -> usize {
        self.tables
            .scan(&[keys::MESSAGE], &[keys::SENDER], usize::MAX)
            .unwrap()
            .len()
    }

    fn queue(&self, session: u64) -> Vec<u64> {
        let page = read_page(&self.tables, SessionId(session), Offset(0), 100, usize::MAX).unwrap();
        page.entries.iter().map(|entry| entry.offset.0).collect()
    }
}

fn message(topic: &str) -> Bytes {
    Message {
        topic: topic.into(),
        payload: Bytes::from_static(b"x"),
        qos: 1,
        retain: false,
        publisher: SessionId(1),
        expiry_interval: None,
        properties: Bytes::new(),
    }
    .encode()
}

fn recipient(session: u64) -> Recipient {
    Recipient {
        session: SessionId(session),
        qos: 1,
        retain: false,
        subscription_identifiers: vec![],
    }
}

fn batch(node: NodeId, incarnation: u64, sequence: u64, sessions: &[u64], appends: usize) -> NodeBatch {
    NodeBatch {
        node,
        incarnation: Incarnation(incarnation),
        sequence,
        route_version: MetaIndex(0),
        recipient_sets: vec![sessions.iter().map(|session| recipient(*session)).collect()],
        operations: (0..appends)
            .map(|_| ShardOperation::Append {
                message: message("a"),
                recipients: 0,
            })
            .collect(),
    }
}

fn ack(node: NodeId, incarnation: u64, sequence: u64, session: u64, offsets: &[u64]) -> NodeBatch {
    NodeBatch {
        operations: vec![ShardOperation::Ack {
            session: SessionId(session),
            offsets: offsets.iter().map(|offset| Offset(*offset)).collect(),
        }],
        ..batch(node, incarnation, sequence, &[], 0)
    }
}

fn applied(first: u64, count: u32) -> BatchReply {
    BatchReply::Applied {
        first: Offset(first),
        count,
    }
}

#[test]
fn a_message_goes_with_its_last_pending_entry() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.apply(&[batch(1, 7, 1, &[10, 11], 2)]), [applied(1, 2)]);
    assert_eq!(fixture.queue(10), [1, 2]);
    assert_eq!(fixture.queue(11), [1, 2]);
    // Two settlements of one message and a repeat within one entry.
    fixture.apply(&[ack(1, 7, 2, 10, &[1, 1]), ack(2, 3, 1, 11, &[1])]);
    assert_eq!(fixture.queue(10), [2]);
    fixture.apply(&[ack(1, 7, 3, 10, &[1, 2]), ack(2, 3, 2, 11, &[2, 9])]);
    assert_eq!(fixture.rows(), 0, "nothing is left behind");
}

#[test]
fn batches_are_applied_once_and_in_sequence() {
    let mut fixture = Fixture::new();
    assert_eq!(
        fixture.apply(&[batch(1, 7, 2, &[10], 1)]),
        [BatchReply::Gap { expected: 1 }]
    );
    assert_eq!(fixture.apply(&[batch(1, 7, 1, &[10], 3)]), [applied(1, 3)]);
    let again = batch(1, 7, 1, &[10], 3);
    assert_eq!(
        fixture.apply(&[again.clone(), batch(1, 7, 2, &[10], 1), again]),
        [applied(1, 3), applied(4, 1), applied(1, 3)]
    );
    assert_eq!(fixture.queue(10), [1, 2, 3, 4]);
    for sequence in 3..=30 {
        fixture.apply(&[batch(1, 7, sequence, &[], 0)]);
    }
    assert_eq!(fixture.apply(&[batch(1, 7, 1, &[10], 3)]), [BatchReply::Forgotten]);
    assert_eq!(fixture.apply(&[batch(1, 7, 15, &[], 0)]), [applied(5, 0)]);
}

#[test]
fn a_higher_incarnation_ends_the_lower() {
    let mut fixture = Fixture::new();
    fixture.apply(&[batch(1, 7, 1, &[10], 1)]);
    assert_eq!(fixture.apply(&[batch(1, 9, 1, &[10], 1)]), [applied(2, 1)]);
    assert_eq!(
        fixture.apply(&[batch(1, 7, 2, &[10], 1)]),
        [BatchReply::DeadIncarnation]
    );
    assert_eq!(fixture.queue(10), [1, 2]);
}

#[test]
fn memory_rebuilt_from_the_tables_answers_the_same() {
    let mut fixture = Fixture::new();
    fixture.apply(&[batch(1, 7, 1, &[10], 2), batch(2, 8, 1, &[10], 1)]);
    let mut reloaded = Shard::new(ShardId(0), fixture.sink.clone());
    reloaded.load(&fixture.tables, false).unwrap();
    fixture.shard = reloaded;
    assert_eq!(
        fixture.apply(&[batch(1, 7, 1, &[10], 2), batch(2, 8, 2, &[10], 1)]),
        [applied(1, 2), applied(4, 1)]
    );
}

#[test]
fn effects_name_every_message_in_order() {
    let mut fixture = Fixture::new();
    fixture.apply(&[batch(1, 7, 1, &[10], 2), batch(2, 8, 1, &[], 1)]);
    let all = fixture.sink.applied.lock().unwrap();
    let [one] = all.as_slice() else {
        panic!("one entry, one call")
    };
    assert_eq!((one.after, one.upto), (Offset(0), Offset(3)));
    let offsets: Vec<u64> = one.appended.iter().map(|appended| appended.offset.0).collect();
    assert_eq!(offsets, [1, 2, 3]);
    assert!(
        one.appended[2].recipients.is_empty(),
        "connected subscribers see it too"
    );
}

#[test]
fn a_page_says_how_far_it_reaches() {
    let mut fixture = Fixture::new();
    fixture.apply(&[batch(1, 7, 1, &[10], 5), batch(2, 8, 1, &[11], 1)]);
    let page = |after, limit| {
        let page = read_page(&fixture.tables, SessionId(10), Offset(after), limit, usize::MAX).unwrap();
        let copy = Page::decode(&page.encode()).unwrap();
        assert_eq!(copy.entries.len(), page.entries.len());
        (page.entries.len(), page.upto.0, page.more)
    };
    assert_eq!(page(0, 2), (2, 2, true));
    assert_eq!(page(2, 10), (3, 6, false));
    assert_eq!(page(6, 10), (0, 6, false));
}

#[test]
fn a_dead_session_is_swept_and_nothing_of_it_stays() {
    let mut fixture = Fixture::new();
    fixture.apply(&[batch(1, 7, 1, &[10, 12], 3)]);
    assert_eq!(next_session(&fixture.tables, None).unwrap(), Some(SessionId(10)));
    assert_eq!(
        next_session(&fixture.tables, Some(SessionId(10))).unwrap(),
        Some(SessionId(12))
    );
    assert_eq!(next_session(&fixture.tables, Some(SessionId(12))).unwrap(), None);
    let sweep = |sequence, session| NodeBatch {
        operations: vec![ShardOperation::Sweep {
            session: SessionId(session),
        }],
        ..batch(1, 7, sequence, &[], 0)
    };
    fixture.apply(&[sweep(2, 10)]);
    assert_eq!((fixture.queue(10), fixture.queue(12)), (vec![], vec![1, 2, 3]));
    fixture.apply(&[sweep(3, 12)]);
    assert_eq!(fixture.rows(), 0);
}
