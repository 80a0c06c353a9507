//! What the hot paths cost, in instructions: `ops/checks/instructions` counts them with callgrind and compares.
//!
//!     instructions --list             the cases
//!     instructions --case NAME N      carries out a case N times, all of it in `measured`
//!
//! Only what runs inside [`measured`] is counted: what a case needs is made before.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::num::NonZeroU16;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use lontra::auth::Access;
use lontra::auth::acl::Acl;
use lontra::auth::identity::Identity;
use lontra::protocol::answers::Answers;
use lontra::protocol::codec::{self, Direction, Limits, QoS, ReasonCode, Version};
use lontra::protocol::mountpoint::Mountpoint;
use lontra::protocol::publish_in::{Inbound, Received};
use lontra::protocol::publish_out::{Delivery, Effects, FrameCache, Outbound, OutboundLimits};
use lontra_storage::command::{Append, NodeBatch, Origin, ShardOperation, encode_envelope};
use lontra_storage::engine::{StateBatch, StateEngine};
use lontra_storage::ids::{GroupId, Incarnation, MetaIndex, Offset, SessionId, ShardId};
use lontra_storage::machine::{EntryPosition, Machine, TableBatch, Tables};
use lontra_storage::message::{LogTime, Message, Recipient, Role};
use lontra_storage::shard::{Applied, DelayedSize, Ledger, RetainedSize, Shard, ShardSink};
use lontra_storage::testing::MemoryState;
use lontra_storage::topic_tree::TopicTree;

/// A case, made ready: each call is carried out once for each round.
type Ready = Box<dyn FnMut()>;
type Case = (&'static str, fn() -> Ready);

/// By name; the table of `ops/checks/instructions.tsv` has a line for each.
const CASES: [Case; 18] = [
    ("frame_check", frame_check),
    ("publish_decode_v3_qos0", || publish_decode(Version::V3_1_1, 0)),
    ("publish_decode_v3_qos1", || publish_decode(Version::V3_1_1, 1)),
    ("publish_decode_v5_qos1", || publish_decode(Version::V5, 1)),
    ("publish_to_puback", publish_to_puback),
    ("fan_out_encode_200", fan_out_encode),
    ("match_exact_1000", || topic_match(1_000, exact)),
    ("match_plus_1000", || topic_match(1_000, plus)),
    ("match_hash_1000", || topic_match(1_000, hash)),
    ("match_exact_100000", || topic_match(100_000, exact)),
    ("match_plus_100000", || topic_match(100_000, plus)),
    ("match_hash_100000", || topic_match(100_000, hash)),
    ("match_exact_1000000", || topic_match(1_000_000, exact)),
    ("match_plus_1000000", || topic_match(1_000_000, plus)),
    ("match_hash_1000000", || topic_match(1_000_000, hash)),
    ("shard_apply", shard_apply),
    ("log_entry_encode", log_entry_encode),
    ("authorise_warm", authorise_warm),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["--list"] => {
            for (name, _) in CASES {
                println!("{name}");
            }
            ExitCode::SUCCESS
        }
        ["--case", name, rounds] => {
            let case = CASES.iter().find(|(each, _)| *each == name);
            let (Some((_, make)), Ok(rounds)) = (case, rounds.parse()) else {
                eprintln!("no such case, or not a number of rounds: {name} {rounds}");
                return ExitCode::FAILURE;
            };
            let mut ready = make();
            // What is made on first use is made.
            ready();
            measured(&mut *ready, rounds);
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: instructions --list | --case NAME ROUNDS");
            ExitCode::FAILURE
        }
    }
}

/// callgrind counts from its entry to its end; it is known by its name.
#[inline(never)]
fn measured(round: &mut dyn FnMut(), rounds: u32) {
    for _ in 0..rounds {
        round();
    }
}

const TOPIC: &str = "plant/17/line/4/temperature";
const PAYLOAD: [u8; 64] = [b'x'; 64];

/// A PUBLISH of 64 bytes, as it stands in a socket.
fn publish_frame(version: Version, qos: u8) -> Bytes {
    let mut rest = Vec::new();
    rest.extend((TOPIC.len() as u16).to_be_bytes());
    rest.extend(TOPIC.bytes());
    if qos > 0 {
        rest.extend(7_u16.to_be_bytes());
    }
    if version == Version::V5 {
        rest.push(0);
    }
    rest.extend(PAYLOAD);
    let mut frame = vec![0x30 | qos << 1, u8::try_from(rest.len()).expect("one byte of length")];
    frame.extend(rest);
    frame.into()
}

fn frame_check() -> Ready {
    let (frame, limits) = (publish_frame(Version::V3_1_1, 0), Limits::default());
    Box::new(move || {
        let length = codec::frame_length(black_box(&frame), &limits, Some(Version::V3_1_1));
        assert!(matches!(black_box(length), Ok(Some(_))));
    })
}

fn publish_decode(version: Version, qos: u8) -> Ready {
    let (frame, limits) = (publish_frame(version, qos), Limits::default());
    Box::new(move || {
        let frame = black_box(&frame).clone();
        let packet = codec::decode(frame, Some(version), Direction::ClientToServer, &limits);
        assert!(black_box(packet).is_ok());
    })
}

/// The books of an inbound QoS 1 PUBLISH, and its PUBACK.
fn publish_to_puback() -> Ready {
    let mut inbound = Inbound::new(Answers::of_version(Version::V3_1_1), 1024);
    let (now, mut out) = (Instant::now(), BytesMut::with_capacity(4096));
    Box::new(move || {
        out.clear();
        let received = inbound.publish(NonZeroU16::MIN, QoS::AtLeastOnce, false, now, &mut out);
        let Received::New(token) = received else {
            panic!("it is new")
        };
        inbound.decide(token, ReasonCode::SUCCESS, &mut out);
        assert!(!black_box(&out).is_empty());
    })
}

/// One QoS 0 message into the outboxes of 200 clients.
fn fan_out_encode() -> Ready {
    let outbound = || {
        let limits = OutboundLimits {
            receive_maximum: 65_535,
            topic_alias_maximum: 0,
            bytes_max: 1 << 20,
            messages_max: 1000,
            mountpoint: Mountpoint::default(),
        };
        let answers = Answers::of_version(Version::V3_1_1);
        let outbound = Outbound::new(answers, limits, 12, false, Some(Access::open()));
        (outbound, BytesMut::with_capacity(4096), Effects::default())
    };
    let mut clients: Vec<_> = (0..200).map(|_| outbound()).collect();
    let message = Arc::new(message());
    Box::new(move || {
        let mut frames = FrameCache::default();
        for (outbound, out, effects) in &mut clients {
            out.clear();
            let delivery = Delivery {
                message: message.clone(),
                qos: 0,
                retain: false,
                subscription_identifiers: Vec::new(),
                age: None,
                settle: None,
            };
            outbound.deliver(delivery, None, &mut frames, out, effects);
            assert!(!black_box(&*out).is_empty());
        }
    })
}

fn message() -> Message {
    Message {
        topic: TOPIC.into(),
        payload: Bytes::from_static(&PAYLOAD),
        qos: 1,
        retain: false,
        publisher: SessionId(1),
        expiry_interval: None,
        properties: Bytes::new(),
    }
}

/// The filter of the subscription `n`, and what it is that a topic of it matches.
fn exact(n: u32) -> String {
    format!("plant/{}/line/{n}/temperature", n % 1000)
}

fn plus(n: u32) -> String {
    format!("plant/+/line/{n}/temperature")
}

fn hash(n: u32) -> String {
    format!("plant/{}/line/{n}/#", n % 1000)
}

/// A topic that one of `count` filters of this form matches.
fn topic_match(count: u32, filter: fn(u32) -> String) -> Ready {
    let mut tree = TopicTree::<BTreeMap<u64, u8>>::default();
    for n in 0..count {
        tree.entry(&filter(n)).insert(u64::from(n), 1);
    }
    let topic = exact(count / 2);
    Box::new(move || {
        let mut matched = 0;
        tree.matches(black_box(&topic), &mut |clients| matched += clients.len());
        assert_eq!(black_box(matched), 1);
    })
}

struct Nobody;

impl ShardSink for Nobody {
    fn applied(&self, applied: Applied) {
        drop(black_box(applied));
    }

    fn jumped(&self, _: ShardId, _: Offset, _: u64, _: RetainedSize, _: DelayedSize, _: Ledger) {}
}

/// An entry of 16 messages, each for two durable sessions.
fn entry(sequence: u64) -> Bytes {
    let to = |session| Recipient {
        session: SessionId(session),
        qos: 1,
        retain: false,
        subscription_identifiers: Vec::new(),
        role: Role::Session,
    };
    let append = || {
        ShardOperation::Append(Append {
            message: message().encode(),
            recipients: 0,
            origin: Origin::Plain,
        })
    };
    let batch = NodeBatch {
        node: 1,
        incarnation: Incarnation(7),
        sequence,
        route_version: MetaIndex(0),
        recipient_sets: vec![vec![to(2), to(3)]],
        operations: (0..16).map(|_| append()).collect(),
    };
    encode_envelope(LogTime(1000 + sequence), &[batch.encode()]).0
}

/// Apply of one entry, without the engine below: what it writes is put together and dropped.
fn shard_apply() -> Ready {
    let engine = MemoryState::default();
    let tables = Tables::new(Arc::new(engine.clone()), GroupId(1), Arc::new(AtomicU32::new(0)));
    let mut shard = Shard::new(ShardId(0), Arc::new(Nobody));
    shard.load(&tables, false).expect("an empty shard");
    let mut entries: Vec<Bytes> = (1..=ENTRIES).map(entry).collect();
    entries.reverse();
    let mut index = 0;
    Box::new(move || {
        index += 1;
        let command = entries.pop().expect("as many rounds as entries at most");
        let (mut state, at) = (StateBatch::default(), EntryPosition { term: 1, index });
        let mut batch = TableBatch::new(&mut state, tables.prefix());
        let reply = shard.apply(&tables, &mut batch, at, &command).expect("applied");
        assert_eq!(black_box(reply).0.len(), 1);
        shard.emit(at);
        engine.write(state).expect("memory");
    })
}

/// What the log is given: an entry of 16 messages, from what clients sent to its bytes.
fn log_entry_encode() -> Ready {
    let mut sequence = 0;
    Box::new(move || {
        sequence += 1;
        drop(black_box(entry(sequence)));
    })
}

/// A PUBLISH by one of 200 rules, decided before.
fn authorise_warm() -> Ready {
    let rules = (0..200).map(|n| format!("allow publish plant/{n}/#").parse().expect("a rule"));
    let acl = Acl {
        rules: rules.collect(),
        ..Acl::default()
    };
    let access: Rc<Access> = Access::new(Identity::anonymous(), "c", None, &acl);
    Box::new(move || assert!(access.may_publish(black_box(TOPIC))))
}

/// One for each round, and the one before.
const ENTRIES: u64 = 1_001;
