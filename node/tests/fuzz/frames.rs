//! Framer and strict check: no bytes panic; a frame is one wherever its stream is cut; what is accepted is one frame.
//!
//! An input is a selector (version, direction, limits, whether the length is put right), the first byte, the body.

use super::corpus;
use super::fuzzing::{Target, fuzz, outcome};
use bytes::Bytes;
use lontra::protocol::codec::{Direction, Limits, Packet, Property, Version, connect_version, decode, frame_length};

/// Frames of the table and of nobody: one for each packet type.
pub fn seeds() -> Vec<Vec<u8>> {
    let table = include_str!("../../src/protocol/codec/testdata/mqtt-frames.tsv");
    let rows = table.lines().filter(|line| !line.starts_with('#')).skip(1);
    let mut seeds: Vec<Vec<u8>> = rows
        .filter_map(|row| {
            let columns: Vec<&str> = row.split('\t').collect();
            let frame = super::fuzzing::from_hex(columns[3], &corpus("frames"));
            let version = match (frame[0] >> 4, columns[1]) {
                (1, _) => 0,
                (_, "4") => 2,
                _ => 3,
            };
            let direction = if columns[2] == "s2c" { 4 } else { 0 };
            let body_at = 2 + frame.iter().skip(1).take(4).position(|byte| byte & 0x80 == 0)?;
            Some([&[version | direction, frame[0]], &frame[body_at..]].concat())
        })
        .collect();
    seeds.extend((0..=255).step_by(16).map(|first| vec![3, first]));
    seeds
}

pub const WORDS: &[&[u8]] = &[
    b"\0\x04MQTT\x05",
    b"\0\x04MQTT\x04",
    b"\0\x06MQIsdp\x03",
    b"\0\x03a/b",
    b"\0\x03a/#",
    b"\0\x0a$share/g/a",
    b"\x26\0\x01k\0\x01v",
    b"\x1f\0\x03why",
    b"\x0b\x07",
    b"\x23\0\x01",
    b"\x11\0\0\0\x05",
    b"\x15\0\x01m",
];

pub struct Input {
    pub version: Option<Version>,
    pub direction: Direction,
    pub limits: Limits,
    pub frame: Bytes,
}

impl Input {
    pub fn of(input: &[u8]) -> Option<Input> {
        let (selector, rest) = input.split_first()?;
        let (first, body) = rest.split_first()?;
        let mut limits = Limits::default();
        if selector & 16 != 0 {
            limits.control_packet_bytes = 64;
            limits.filters_per_packet = 2;
            limits.user_properties = 1;
            limits.topic_bytes = 8;
            limits.topic_levels = 2;
        }
        let mut frame = vec![*first];
        if selector & 8 == 0 {
            put_length(body.len(), &mut frame);
        }
        frame.extend(body);
        Some(Input {
            version: [None, Some(Version::V3_1), Some(Version::V3_1_1), Some(Version::V5)][usize::from(selector & 3)],
            direction: if selector & 4 == 0 {
                Direction::ClientToServer
            } else {
                Direction::ServerToClient
            },
            limits,
            frame: frame.into(),
        })
    }
}

pub fn put_length(mut length: usize, frame: &mut Vec<u8>) {
    while length > 0x7f {
        frame.push(length as u8 & 0x7f | 0x80);
        length >>= 7;
    }
    frame.push(length as u8);
}

#[test]
fn frames() {
    let target = Target {
        name: "frames",
        corpus: &corpus("frames"),
        seeds: seeds(),
        words: WORDS,
        // Subscriptions cost most: a filter of one character is a string of its own. [notes on mqttbytes, section 4]
        memory: (4 << 10, 64),
    };
    fuzz(target, |input| {
        let Some(Input {
            version,
            direction,
            limits,
            frame,
        }) = Input::of(input)
        else {
            return 0;
        };
        let length = frame_length(&frame, &limits, version);
        for cut in [1, 2, frame.len() / 2, frame.len() - 1] {
            let earlier = frame_length(&frame[..cut.min(frame.len())], &limits, version);
            match (&earlier, &length) {
                (Ok(Some(short)), Ok(Some(long))) => assert_eq!(short, long, "a frame is one wherever it is cut"),
                (Ok(Some(_)), other) => panic!("a frame that with more bytes is {other:?}"),
                (Err(early), Err(late)) => assert_eq!(early, late),
                (Err(early), other) => panic!("refused as {early}, and with more bytes {other:?}"),
                (Ok(None), _) => {}
            }
        }
        let _ = connect_version(&frame);
        match decode(frame.clone(), version, direction, &limits) {
            Ok(packet) => {
                assert_eq!(length, Ok(Some(frame.len())), "what is accepted is one frame");
                outcome((version, direction, shape(&packet)))
            }
            Err(violation) => outcome((
                version,
                violation.statement,
                violation.what,
                frame[0] >> 4,
                violation.reason,
            )),
        }
    });
}

/// What tells accepted packets apart.
pub fn shape(packet: &Packet) -> (u8, u64, usize) {
    match packet {
        Packet::Connect(connect) => {
            let has = [
                connect.clean_start,
                connect.will.is_some(),
                connect.user_name.is_some(),
                connect.password.is_some(),
                connect.client_id.is_empty(),
                connect.properties.authentication_method.is_some(),
                connect.properties.receive_maximum.is_some(),
                connect.properties.maximum_packet_size.is_some(),
            ];
            (
                1,
                has.iter().fold(0, |bits, has| bits << 1 | u64::from(*has)),
                connect.version as usize,
            )
        }
        Packet::Publish(publish) => {
            let mask = publish
                .properties()
                .fold(0, |mask, property| mask | property_bit(property));
            (3, mask, usize::from(publish.frame()[0]))
        }
        Packet::PubAck(ack) => (4, u64::from(ack.reason.0), ack.user_properties.len().min(2)),
        Packet::PubRec(ack) => (5, u64::from(ack.reason.0), ack.user_properties.len().min(2)),
        Packet::PubRel(ack) => (6, u64::from(ack.reason.0), ack.user_properties.len().min(2)),
        Packet::PubComp(ack) => (7, u64::from(ack.reason.0), ack.user_properties.len().min(2)),
        Packet::Subscribe(subscribe) => {
            let identified = u64::from(subscribe.subscription_identifier.is_some());
            let refused = subscribe
                .filters
                .iter()
                .filter(|filter| filter.valid.is_err())
                .count()
                .min(2);
            (8, identified + 2 * refused as u64, subscribe.filters.len().min(4))
        }
        Packet::Unsubscribe(unsubscribe) => (10, 0, unsubscribe.filters.len().min(4)),
        Packet::SubAck(suback) => (9, 0, suback.reasons.len().min(4)),
        Packet::UnsubAck(unsuback) => (11, 0, unsuback.reasons.len().min(4)),
        Packet::ConnAck(connack) => (2, u64::from(connack.reason.0), usize::from(connack.session_present)),
        Packet::PingReq => (12, 0, 0),
        Packet::PingResp => (13, 0, 0),
        Packet::Disconnect(disconnect) => (
            14,
            u64::from(disconnect.reason.0),
            disconnect.user_properties.len().min(2),
        ),
        Packet::Auth(auth) => (
            15,
            u64::from(auth.reason.0),
            usize::from(auth.authentication_data.is_some()),
        ),
    }
}

fn property_bit(property: Property<'_>) -> u64 {
    match property {
        Property::PayloadFormatIndicator(_) => 1,
        Property::MessageExpiryInterval(_) => 2,
        Property::ContentType(_) => 4,
        Property::ResponseTopic(_) => 8,
        Property::CorrelationData(_) => 16,
        Property::SubscriptionIdentifier(_) => 32,
        Property::TopicAlias(_) => 64,
        Property::UserProperty(..) => 128,
        other => panic!("{other:?} is not of PUBLISH"),
    }
}
