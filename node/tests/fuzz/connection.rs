//! The protocol of one connection, driven by whatever may come: packets, outcomes, deliveries, time.
//!
//! ```text
//!   bytes ─▶ Event … ─▶ Connection ─▶ bytes out      each is a packet that a server may send, in the order that it may
//! ```
//!
//! Held: CONNACK first (but for AUTH) and once; nothing after DISCONNECT or a refusal; no packet above the client's Maximum Packet Size; an
//! acknowledgement for each PUBLISH at most; no more in flight than the client's Receive Maximum.

use super::corpus;
use super::frames::put_length;
use super::fuzzing::{Target, fuzz, outcome};
use bytes::{Bytes, BytesMut};
use lontra::auth::Access;
use lontra::auth::identity::Identity;
use lontra::protocol::codec::{
    Direction, Limits, Packet, QoS, ReasonCode, Version, connect_version, decode, frame_length,
};
use lontra::protocol::connection::{Connection, Output, Served};
use lontra::protocol::handshake::{Accepted, Policy};
use lontra::protocol::mountpoint::Mountpoint;
use lontra::protocol::publish_out::{Delivery, FrameCache, Wish};
use lontra_storage::ids::{Offset, SessionEpoch, SessionId, ShardId};
use lontra_storage::message::{LogTime, Message, Recipient, Role};
use lontra_storage::shard::{Page, PendingEntry};
use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[test]
fn connection() {
    let connect_5 = b"\x00\x10\x0e\0\x04MQTT\x05\x02\0\x3c\0\0\x01c";
    let connect_4 = b"\x00\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01c";
    // A method in CONNECT; `x` is challenged, `y` is proven.
    let of_method = |data: u8| [b"\x14\x15\0\x0dSCRAM-SHA-256\x16\0\x01".as_slice(), &[data]].concat();
    let auth = |code: u8, data: u8| [b"\x00\xf0\x16".as_slice(), &[code], &of_method(data)].concat();
    let connect_scram = [
        b"\x00\x10\x22\0\x04MQTT\x05\x02\0\x3c".as_slice(),
        &of_method(b'x'),
        b"\0\x01c",
    ]
    .concat();
    let proven = [&connect_scram[..], &auth(0x18, b'y'), b"\x01\0"].concat();
    let by_auth = [
        [&connect_scram[..], &auth(0x18, b'z')].concat(),
        [&connect_scram[..], b"\x00\xc0\0"].concat(),
        [
            &proven[..],
            &auth(0x19, b'x'),
            b"\x00\xc0\0",
            &auth(0x18, b'y'),
            b"\x00\xe0\0",
        ]
        .concat(),
        [&proven[..], &auth(0x19, b'x'), &auth(0x19, b'x')].concat(),
    ];
    let seeds = [connect_5.as_slice(), connect_4]
        .into_iter()
        .flat_map(|connect| {
            [
                b"\x01\0".as_slice(),
                b"\x01\0\x00\x32\x07\0\x01a\0\x07\0x\x02\0\x00\xc0\0",
                b"\x01\0\x00\x34\x07\0\x01a\0\x07\0x\x02\0\x00\x62\x02\0\x07\x02\0",
                b"\x01\0\x00\x82\x07\0\x01\0\0\x01a\x01\x06\0\x03\x01\x03\x02\x00\x40\x02\0\x01\x00\x50\x02\0\x02",
                b"\x01\x01\x0a\0\x0b\x01\x0b\x02\x05\0\x00\x40\x02\0\x01\x07\0\x04\x50\x00\xe0\0",
                b"\x01\0\x03\x42\x03\x42\x05\0\x08\0",
            ]
            .map(|rest| [connect, rest].concat())
        })
        .chain(by_auth)
        .collect();
    let target = Target {
        name: "connection",
        corpus: &corpus("connection"),
        seeds,
        words: &[
            b"\x01\0",
            b"\x02\0",
            b"\x03\x01",
            b"\x03\x02",
            b"\x05\0",
            b"\x06\0",
            b"\x07\0",
            b"\x0a\0",
            b"\x0b\x01",
            b"\x00\x40\x02\0\x01",
            b"\x00\x50\x02\0\x01",
            b"\x00\x62\x02\0\x07",
            b"\x00\x70\x02\0\x01",
            b"\x00\xc0\0",
            b"\x00\x32\x07\0\x01a\0\x07\0x",
            b"\x00\x34\x07\0\x01a\0\x07\0x",
            b"\x00\xe0\0",
        ],
        memory: (512 << 10, 2_048),
    };
    fuzz(target, |input| {
        let mut run = Run::new();
        let mut rest = input;
        while let Some((event, more)) = rest.split_first() {
            rest = run.event(event % 12, more);
            run.look();
        }
        outcome((
            run.kinds,
            run.connection.ending().map(|ending| ending.reason),
            run.version,
        ))
    });
}

struct Run {
    connection: Connection,
    version: Option<Version>,
    now: Instant,
    attaching: Option<Box<Accepted>>,
    tokens: Vec<u64>,
    subscribes: Vec<(NonZeroU16, Vec<ReasonCode>)>,
    unsubscribes: Vec<(NonZeroU16, usize)>,
    settles: Vec<u16>,
    releases: Vec<u16>,
    pages: BTreeSet<u16>,
    next_offset: u64,
    packet_size_max: usize,
    receive_maximum: usize,
    /// What came out, a bit for each packet type.
    kinds: u32,
    connacks: usize,
    ended: bool,
    /// PUBLISH packets of the client that are owed an answer, by identifier and QoS.
    owed: HashMap<(u16, bool), isize>,
    in_flight: BTreeSet<u16>,
}

impl Run {
    fn new() -> Run {
        let now = Instant::now();
        let policy = Policy {
            packet_size_max: 1 << 20,
            receive_maximum: 3,
            keep_alive_max: Some(100),
            session_expiry_max: 1_000,
            topic_alias_max: 2,
            outbox_bytes_max: 4_096,
            outbox_messages_max: 4,
            mountpoint: Mountpoint::default(),
            topic_rules: Default::default(),
            available: Default::default(),
            scram: true,
        };
        Run {
            connection: Connection::new(policy, Duration::from_secs(10), Duration::from_secs(1), now),
            version: None,
            now,
            attaching: None,
            tokens: Vec::new(),
            subscribes: Vec::new(),
            unsubscribes: Vec::new(),
            settles: Vec::new(),
            releases: Vec::new(),
            pages: BTreeSet::new(),
            next_offset: 1,
            packet_size_max: usize::MAX,
            receive_maximum: 65_535,
            kinds: 0,
            connacks: 0,
            ended: false,
            owed: HashMap::new(),
            in_flight: BTreeSet::new(),
        }
    }

    /// Does what an event says; what follows it.
    fn event<'a>(&mut self, event: u8, rest: &'a [u8]) -> &'a [u8] {
        let (argument, after) = rest.split_first().map_or((0, rest), |(first, after)| (*first, after));
        match event {
            0 => return self.frame(rest),
            1 => self.attach(argument),
            2 if !self.tokens.is_empty() => {
                let token = self.tokens.remove(usize::from(argument >> 2) % self.tokens.len());
                let reasons = [0, 0x10, 0x97, 0x87].map(ReasonCode);
                // A PUBREL's outcome is success or 0x92.
                let reason = match (token & 3, argument & 3) {
                    (2, 0..2) => ReasonCode::SUCCESS,
                    (2, _) => ReasonCode::PACKET_IDENTIFIER_NOT_FOUND,
                    (_, choice) => reasons[usize::from(choice)],
                };
                let connection = &mut self.connection;
                if connection.ending().is_none() {
                    let told = connection.inbound.decide(token, reason, &mut connection.out);
                    if let Some(reason) = told.close {
                        connection.close(reason, None);
                    }
                }
            }
            3 => self.deliver(argument),
            4 => {
                self.now += Duration::from_secs(u64::from(argument));
                self.connection.deadline_passed(self.now);
                let _ = self.connection.next_deadline();
            }
            5 => self.connection.pump(|_| LogTime(1_000), self.now),
            6 => {
                if let Some((packet_id, reasons)) = self.subscribes.pop() {
                    self.connection.subscribed(packet_id, reasons);
                } else if let Some((packet_id, count)) = self.unsubscribes.pop() {
                    self.connection
                        .unsubscribed(packet_id, vec![ReasonCode::NO_SUBSCRIPTION_EXISTED; count]);
                }
            }
            7 => {
                if let Some(packet_id) = self.settles.pop() {
                    self.connection.outbound.settled(packet_id);
                }
                if let Some(packet_id) = self.releases.pop() {
                    self.connection.outbound.released(packet_id);
                }
            }
            8 => self.connection.close(ReasonCode::SERVER_BUSY, Some("why")),
            9 => self.connection.lost(),
            10 => {
                let connection = &mut self.connection;
                connection
                    .outbound
                    .attach(ShardId(u16::from(argument % 2)), 1, &mut connection.effects);
            }
            _ => self.page(argument),
        }
        after
    }

    /// The client's bytes: first byte and length, then as many; handed in as the worker does.
    fn frame<'a>(&mut self, rest: &'a [u8]) -> &'a [u8] {
        let [first, length, more @ ..] = rest else { return &[] };
        let (body, after) = more.split_at(more.len().min(usize::from(*length)));
        if !self.connection.wants_packets() || self.connection.ending().is_some() {
            return after;
        }
        let mut frame = vec![*first];
        put_length(body.len(), &mut frame);
        frame.extend(body);
        let (frame, limits) = (Bytes::from(frame), Limits::default());
        let version = self.connection.version();
        let decoded = frame_length(&frame, &limits, version)
            .and_then(|_| decode(frame.clone(), version, Direction::ClientToServer, &limits));
        match decoded {
            Ok(packet) => {
                self.note(&packet);
                self.connection.packet(packet, self.now, || "given".into());
            }
            Err(violation) => {
                if let Some(version) = connect_version(&frame).filter(|_| version.is_none()) {
                    self.connection.note_version(version);
                    self.version = Some(version);
                }
                self.connection.violation(&violation);
            }
        }
        after
    }

    fn note(&mut self, packet: &Packet) {
        match packet {
            Packet::Connect(connect) => {
                self.version = Some(connect.version);
                let properties = &connect.properties;
                self.packet_size_max = properties
                    .maximum_packet_size
                    .map_or(usize::MAX, |bytes| bytes as usize);
                self.receive_maximum = properties.receive_maximum.map_or(65_535, usize::from);
            }
            Packet::Publish(publish) => {
                if let Some(packet_id) = publish.packet_id() {
                    let exactly_once = publish.qos() == QoS::ExactlyOnce;
                    *self.owed.entry((packet_id.get(), exactly_once)).or_default() += 1;
                }
            }
            Packet::PubAck(ack) => {
                self.in_flight.remove(&ack.packet_id.get());
            }
            Packet::PubComp(ack) => {
                self.in_flight.remove(&ack.packet_id.get());
            }
            Packet::PubRec(ack) if ack.reason.is_error() => {
                self.in_flight.remove(&ack.packet_id.get());
            }
            _ => {}
        }
    }

    fn attach(&mut self, argument: u8) {
        let Some(accepted) = self.attaching.take() else { return };
        let served = Served {
            session: SessionId(1),
            epoch: SessionEpoch(1),
            present: argument & 2 != 0,
        };
        let attached = self
            .connection
            .attached(accepted, served, 2, argument & 1 != 0, Access::open(), self.now);
        assert_eq!(
            attached,
            self.connection.is_connected() || self.connection.ending().is_some() && attached
        );
    }

    fn message(&mut self, argument: u8) -> Arc<Message> {
        Arc::new(Message {
            topic: if argument & 16 == 0 {
                "topic/a".into()
            } else {
                "b".into()
            },
            payload: Bytes::from(vec![b'x'; usize::from(argument >> 5) * 16]),
            qos: argument & 3,
            retain: argument & 8 != 0,
            publisher: SessionId(9),
            expiry_interval: (argument & 4 != 0).then_some(5),
            properties: Bytes::new(),
        })
    }

    fn deliver(&mut self, argument: u8) {
        if !self.connection.is_connected() {
            return;
        }
        let delivery = Delivery {
            message: self.message(argument),
            qos: (argument & 3).min(2),
            retain: argument & 8 != 0,
            subscription_identifiers: if argument & 4 == 0 { Vec::new() } else { vec![7] },
            age: None,
            settle: None,
        };
        let connection = &mut self.connection;
        // A durable session gets QoS 1 and 2 from its queue alone.
        if connection.outbound.is_durable() && delivery.qos > 0 {
            return;
        }
        connection.outbound.deliver(
            delivery,
            None,
            &mut FrameCache::default(),
            &mut connection.out,
            &mut connection.effects,
        );
    }

    /// A page that was wished for.
    fn page(&mut self, argument: u8) {
        let Some(shard) = self.pages.pop_first() else { return };
        let entries: Vec<PendingEntry> = (0..argument % 3)
            .map(|_| {
                self.next_offset += 1;
                PendingEntry {
                    offset: Offset(self.next_offset),
                    appended_at: LogTime(900),
                    granted: Recipient {
                        qos: 1 + argument % 2,
                        session: SessionId(1),
                        retain: false,
                        subscription_identifiers: Vec::new(),
                        role: Role::Session,
                    },
                    released: argument & 64 != 0 && argument % 2 == 1,
                    message: self.message(argument | 1),
                }
            })
            .collect();
        let page = Page {
            entries,
            upto: Offset(self.next_offset),
            more: argument & 128 != 0,
        };
        let connection = &mut self.connection;
        connection.outbound.page(ShardId(shard), page, &mut connection.effects);
    }

    /// Takes what the connection asks for and what it says.
    fn look(&mut self) {
        // An answer may bring the next output.
        while !self.connection.outputs.is_empty() {
            match self.connection.outputs.remove(0) {
                Output::Authenticate { data } => match data.first() {
                    Some(b'x') => self.connection.challenge(b"challenge".to_vec()),
                    Some(b'y') => {
                        // As `Access::open` has it.
                        let nobody = Identity::anonymous();
                        self.connection.authenticated(nobody, b"proof".to_vec());
                    }
                    _ => self.connection.not_authenticated(ReasonCode::BAD_USER_NAME_OR_PASSWORD),
                },
                Output::Connect(accepted) => self.attaching = Some(accepted),
                Output::Publish { token, .. } => self.tokens.extend(token),
                Output::Release { token, .. } | Output::Refuse { token, .. } => self.tokens.push(token),
                Output::Subscribe { packet_id, reasons, .. } => self.subscribes.push((packet_id, reasons)),
                Output::Unsubscribe { packet_id, refused, .. } => self.unsubscribes.push((packet_id, refused.len())),
                Output::Wish(wish) => self.wish(wish),
            }
        }
        for wish in std::mem::take(&mut self.connection.effects.wishes) {
            self.wish(wish);
        }
        let mut out = self.connection.out.split();
        while !out.is_empty() {
            let version = self.version.expect("nothing is said before CONNECT came");
            let length = frame_length(&out, &Limits::default(), Some(version));
            let length = length
                .ok()
                .flatten()
                .unwrap_or_else(|| panic!("no whole packet: {out:02x?}"));
            let frame = out.split_to(length);
            self.said(frame, version);
        }
        self.ended |= self.connection.ending().is_some();
    }

    fn wish(&mut self, wish: Wish) {
        match wish {
            Wish::Page(shard, _) => drop(self.pages.insert(shard.0)),
            Wish::Settle(_, _, packet_id, _) => self.settles.push(packet_id),
            Wish::Release(_, _, packet_id) => self.releases.push(packet_id),
        }
    }

    fn said(&mut self, frame: BytesMut, version: Version) {
        assert!(!self.ended, "after the end: {frame:02x?}");
        let bytes = frame.len();
        let packet = decode(
            frame.freeze(),
            Some(version),
            Direction::ServerToClient,
            &Limits::default(),
        );
        let packet = packet.unwrap_or_else(|violation| panic!("no client takes this: {violation}"));
        assert!(bytes <= self.packet_size_max, "{bytes} bytes: {packet:?}");
        let is_connack = matches!(packet, Packet::ConnAck(_));
        self.connacks += usize::from(is_connack);
        // [MQTT-4.12.0-2]
        let may_come_before = matches!(packet, Packet::Auth(_)) && self.connacks == 0;
        assert!(
            self.connacks == 1 || may_come_before,
            "CONNACK is first and once: {packet:?}"
        );
        self.kinds |= 1 << kind(&packet);
        match &packet {
            Packet::PubAck(ack) => self.paid((ack.packet_id.get(), false)),
            Packet::PubRec(ack) => self.paid((ack.packet_id.get(), true)),
            Packet::Publish(publish) => {
                if let Some(packet_id) = publish.packet_id() {
                    assert!(
                        self.in_flight.insert(packet_id.get()),
                        "{packet_id} is in flight: {publish:?}"
                    );
                    assert!(self.in_flight.len() <= self.receive_maximum, "{:?}", self.in_flight);
                }
            }
            Packet::ConnAck(connack) if connack.reason.is_error() => self.ended = true,
            Packet::Disconnect(_) => self.ended = true,
            _ => {}
        }
    }

    fn paid(&mut self, what: (u16, bool)) {
        let owed = self.owed.entry(what).or_default();
        *owed -= 1;
        assert!(*owed >= 0, "an answer to nothing: {what:?}");
    }
}

fn kind(packet: &Packet) -> u32 {
    match packet {
        Packet::ConnAck(_) => 2,
        Packet::Publish(_) => 3,
        Packet::PubAck(_) => 4,
        Packet::PubRec(_) => 5,
        Packet::PubRel(_) => 6,
        Packet::PubComp(_) => 7,
        Packet::SubAck(_) => 9,
        Packet::UnsubAck(_) => 11,
        Packet::PingResp => 13,
        Packet::Disconnect(_) => 14,
        Packet::Auth(_) => 15,
        other => panic!("a server does not send {other:?}"),
    }
}
