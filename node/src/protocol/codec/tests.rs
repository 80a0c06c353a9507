//! What the files of this folder share: hex, the frame tables, equality across encodings, and seeded mutation.

mod budgets;
mod fuzz;
mod mqtt_3_1;
mod round_trip;
mod table;

use super::*;
use bytes::BytesMut;
use std::num::NonZeroU16;

pub(super) const FRAMES: &str = include_str!("testdata/mqtt-frames.tsv");
pub(super) const VERSIONS: [Version; 3] = [Version::V3_1, Version::V3_1_1, Version::V5];
pub(super) const DIRECTIONS: [Direction; 2] = [Direction::ClientToServer, Direction::ServerToClient];

pub(super) fn hex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "odd hex {text}");
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex digits"))
        .collect()
}

pub(super) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn packet_id(value: u16) -> NonZeroU16 {
    NonZeroU16::new(value).expect("not 0")
}

/// Decodes hex that has to be one whole frame, as a connection of this version would: CONNECT comes first.
pub(super) fn receive(frame: &str, version: Version, direction: Direction) -> Result<Packet, Violation> {
    let bytes = hex(frame);
    let limits = Limits::default();
    let known = if bytes[0] >> 4 == 1 { None } else { Some(version) };
    let length = frame_length(&bytes, &limits, known)?;
    assert_eq!(length, Some(bytes.len()), "{frame} is not one frame");
    let packet = decode(Bytes::from(bytes), known, direction, &limits)?;
    match &packet {
        Packet::Connect(connect) if connect.version != version => Err(Violation::new(
            ReasonCode::UNSUPPORTED_PROTOCOL_VERSION,
            "",
            "CONNECT of another version",
        )),
        _ => Ok(packet),
    }
}

/// One line of a frame table; the columns are explained at its top.
pub(super) struct Row<'a> {
    pub id: &'a str,
    pub version: Version,
    pub direction: Direction,
    pub frame: &'a str,
    pub expect: &'a str,
    pub code: &'a str,
    pub value: &'a str,
}

pub(super) fn rows(table: &str) -> impl Iterator<Item = Row<'_>> {
    table
        .lines()
        .filter(|line| !line.starts_with('#') && !line.starts_with("id\t"))
        .map(|line| {
            let columns: Vec<&str> = line.split('\t').collect();
            assert!(columns.len() >= 7, "{line}");
            Row {
                id: columns[0],
                version: match columns[1] {
                    "3" => Version::V3_1,
                    "4" => Version::V3_1_1,
                    "5" => Version::V5,
                    other => panic!("version {other}"),
                },
                direction: match columns[2] {
                    "c2s" => Direction::ClientToServer,
                    "s2c" => Direction::ServerToClient,
                    other => panic!("direction {other}"),
                },
                frame: columns[3],
                expect: columns[4],
                code: columns[5],
                value: columns[6],
            }
        })
}

/// Encodes what was decoded; every packet has an encoder.
pub(super) fn encode(packet: &Packet, version: Version, out: &mut BytesMut) -> Result<(), EncodeError> {
    match packet {
        Packet::Connect(connect) => encode_connect(connect, out),
        Packet::ConnAck(connack) => encode_connack(version, connack, out),
        Packet::Publish(publish) => {
            let identifiers: Vec<u32> = publish.subscription_identifiers().collect();
            let fields = PublishFields {
                version,
                qos: publish.qos(),
                retain: publish.retain(),
                topic: publish.topic(),
                properties: PropertiesOut {
                    forwarded: publish.properties_raw(),
                    message_expiry_interval: None,
                    subscription_identifiers: &identifiers,
                    topic_alias: publish.topic_alias(),
                },
                payload: publish.payload(),
            };
            PublishFrame::encode(&fields).map(|frame| frame.append(publish.packet_id(), publish.dup(), out))
        }
        Packet::PubAck(ack) => encode_ack_with_properties(AckKind::PubAck, version, ack, out),
        Packet::PubRec(ack) => encode_ack_with_properties(AckKind::PubRec, version, ack, out),
        Packet::PubRel(ack) => encode_ack_with_properties(AckKind::PubRel, version, ack, out),
        Packet::PubComp(ack) => encode_ack_with_properties(AckKind::PubComp, version, ack, out),
        Packet::Subscribe(subscribe) => encode_subscribe(version, subscribe, out),
        Packet::SubAck(suback) => encode_suback(version, suback, out),
        Packet::Unsubscribe(unsubscribe) => encode_unsubscribe(version, unsubscribe, out),
        Packet::UnsubAck(unsuback) => encode_unsuback(version, unsuback, out),
        Packet::PingReq => {
            encode_pingreq(out);
            Ok(())
        }
        Packet::PingResp => {
            encode_pingresp(out);
            Ok(())
        }
        Packet::Disconnect(disconnect) => encode_disconnect(version, disconnect, out),
        Packet::Auth(auth) => encode_auth(auth, out),
    }
}

/// Equality that looks through the order of PUBLISH properties and the form of its header.
pub(super) fn same(left: &Packet, right: &Packet) -> bool {
    let (Packet::Publish(left), Packet::Publish(right)) = (left, right) else {
        return left == right;
    };
    left.topic() == right.topic()
        && left.payload() == right.payload()
        && (left.qos(), left.retain(), left.dup()) == (right.qos(), right.retain(), right.dup())
        && left.packet_id() == right.packet_id()
        && left.topic_alias() == right.topic_alias()
        && left.payload_format_indicator() == right.payload_format_indicator()
        && left.message_expiry_interval() == right.message_expiry_interval()
        && left.content_type() == right.content_type()
        && left.response_topic() == right.response_topic()
        && left.correlation_data() == right.correlation_data()
        && left.user_properties().eq(right.user_properties())
        && left.subscription_identifiers().eq(right.subscription_identifiers())
}

/// xorshift64*: the same seed gives the same run.
pub(super) struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound.max(1)
    }

    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

/// Frames to start mutating from: both tables and every packet of the round trip.
pub(super) fn corpus() -> Vec<Vec<u8>> {
    let mut corpus: Vec<Vec<u8>> = rows(FRAMES)
        .chain(rows(mqtt_3_1::FRAMES_3_1))
        .map(|row| hex(row.frame))
        .collect();
    for version in VERSIONS {
        for (packet, _) in round_trip::packets(version) {
            let mut out = BytesMut::new();
            encode(&packet, version, &mut out).expect("round trip packets can be encoded");
            corpus.push(out.to_vec());
        }
    }
    corpus
}

/// A frame with a few bytes changed; mostly with its remaining length put right again.
pub(super) fn mutated(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let source = &corpus[random.below(corpus.len())];
    let mut first_byte = source[0];
    let body_at = 1 + source
        .iter()
        .skip(1)
        .position(|byte| byte & 0x80 == 0)
        .map_or(0, |at| at + 1);
    let mut body = source[body_at.min(source.len())..].to_vec();
    for _ in 0..random.below(4) {
        mutate(&mut body, corpus, random);
    }
    if random.one_in(12) {
        first_byte ^= 1 << random.below(8);
    }
    if random.one_in(12) {
        let mut raw = source.clone();
        mutate(&mut raw, corpus, random);
        return raw;
    }
    let mut frame = vec![first_byte];
    let mut length = body.len();
    while length > 0x7F {
        frame.push(length as u8 | 0x80);
        length >>= 7;
    }
    frame.push(length as u8);
    if random.one_in(40) {
        let last = frame.len() - 1;
        frame[last] |= 0x80;
        frame.push(0);
    }
    frame.extend_from_slice(&body);
    frame
}

fn mutate(bytes: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    const TELLING: [u8; 16] = [
        0, 1, 2, 3, 4, 0x7F, 0x80, 0x81, 0xFF, b'#', b'+', b'/', b'$', 0x0B, 0x23, 0x26,
    ];
    let at = random.below(bytes.len() + 1);
    match random.below(7) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        1 if at < bytes.len() => bytes[at] = TELLING[random.below(TELLING.len())],
        2 if at < bytes.len() => bytes[at] = bytes[at].wrapping_add(1),
        3 if at < bytes.len() => {
            bytes.remove(at);
        }
        4 => bytes.insert(at, TELLING[random.below(TELLING.len())]),
        5 => bytes.truncate(at),
        _ => {
            let other = &corpus[random.below(corpus.len())];
            let from = random.below(other.len());
            let piece = &other[from..(from + random.below(16)).min(other.len())];
            bytes.splice(at..at, piece.iter().copied());
        }
    }
}
