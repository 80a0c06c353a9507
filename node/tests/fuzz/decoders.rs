//! Our decoders against mqttbytes, of which nothing is believed but what it is known to do right: PUBLISH, the four
//! acknowledgements, CONNECT. What both accept has the same fields; what we accept it does not refuse.
//!
//! Left out is where mqttbytes is known to be wrong (its defects have numbers in `control.rs` and in ARCHITECTURE.md):
//! more than one Subscription Identifier, passwords that are no text, empty names.

use super::corpus;
use super::frames::{Input, WORDS, seeds, shape};
use super::fuzzing::{Target, fuzz, outcome};
use bytes::BytesMut;
use lontra::protocol::codec::{Ack, Connect, Direction, Packet, Publish, Version, decode};
use mqttbytes::{v4, v5};

#[test]
fn decoders() {
    let target = Target {
        name: "decoders",
        corpus: &corpus("decoders"),
        seeds: seeds(),
        words: WORDS,
        memory: (8 << 10, 128),
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
        let Ok(packet) = decode(frame.clone(), version, direction, &limits) else {
            return 1;
        };
        let version = match &packet {
            Packet::Connect(connect) => connect.version,
            _ => version.expect("only CONNECT is accepted without a version"),
        };
        let mut theirs = BytesMut::from(&frame[..]);
        match version {
            Version::V3_1 => return 2,
            Version::V3_1_1 => same_v4(&packet, &mut theirs),
            Version::V5 => same_v5(&packet, direction, &mut theirs),
        }
        outcome((version, shape(&packet)))
    });
}

const MAX: usize = 1 << 20;

fn same_v4(ours: &Packet, bytes: &mut BytesMut) {
    let comparable = match ours {
        Packet::Connect(connect) => is_readable(connect),
        Packet::Publish(_) | Packet::PubAck(_) | Packet::PubRec(_) | Packet::PubRel(_) | Packet::PubComp(_) => true,
        _ => false,
    };
    if !comparable {
        return;
    }
    let theirs = v4::read(bytes, MAX).unwrap_or_else(|error| panic!("{ours:?}: mqttbytes: {error:?}"));
    match (ours, theirs) {
        (Packet::Connect(ours), v4::Packet::Connect(theirs)) => {
            same_connect(
                ours,
                (&theirs.client_id, theirs.keep_alive, theirs.clean_session),
                theirs
                    .last_will
                    .as_ref()
                    .map(|will| (&*will.topic, &will.message[..], will.qos as u8, will.retain)),
                theirs.login.as_ref().map(|login| (&*login.username, &*login.password)),
            );
        }
        (Packet::Publish(ours), v4::Packet::Publish(theirs)) => {
            same_publish(
                ours,
                &theirs.topic,
                &theirs.payload,
                theirs.pkid,
                theirs.qos as u8,
                theirs.dup,
                theirs.retain,
            );
        }
        (Packet::PubAck(ours), v4::Packet::PubAck(theirs)) => assert_eq!(ours.packet_id.get(), theirs.pkid),
        (Packet::PubRec(ours), v4::Packet::PubRec(theirs)) => assert_eq!(ours.packet_id.get(), theirs.pkid),
        (Packet::PubRel(ours), v4::Packet::PubRel(theirs)) => assert_eq!(ours.packet_id.get(), theirs.pkid),
        (Packet::PubComp(ours), v4::Packet::PubComp(theirs)) => assert_eq!(ours.packet_id.get(), theirs.pkid),
        (ours, theirs) => panic!("{ours:?} is {theirs:?} to mqttbytes"),
    }
    assert!(bytes.is_empty(), "mqttbytes left {bytes:02x?} of {ours:?}");
}

fn same_v5(ours: &Packet, direction: Direction, bytes: &mut BytesMut) {
    let comparable = match ours {
        Packet::Connect(connect) => is_readable(connect),
        Packet::Publish(publish) => publish.subscription_identifiers().count() < 2,
        Packet::PubAck(_) | Packet::PubRec(_) | Packet::PubRel(_) | Packet::PubComp(_) => true,
        _ => false,
    };
    if !comparable {
        return;
    }
    let theirs = v5::read(bytes, MAX).unwrap_or_else(|error| panic!("{ours:?} {direction:?}: mqttbytes: {error:?}"));
    match (ours, theirs) {
        (Packet::Connect(ours), v5::Packet::Connect(theirs)) => {
            same_connect(
                ours,
                (&theirs.client_id, theirs.keep_alive, theirs.clean_session),
                theirs
                    .last_will
                    .as_ref()
                    .map(|will| (&*will.topic, &will.message[..], will.qos as u8, will.retain)),
                theirs.login.as_ref().map(|login| (&*login.username, &*login.password)),
            );
            let read = theirs.properties;
            let read = read.as_ref();
            assert_eq!(
                ours.properties.receive_maximum,
                read.and_then(|read| read.receive_maximum)
            );
            assert_eq!(
                ours.properties.maximum_packet_size,
                read.and_then(|read| read.max_packet_size)
            );
            assert_eq!(
                ours.properties.session_expiry_interval,
                read.and_then(|read| read.session_expiry_interval)
            );
        }
        (Packet::Publish(ours), v5::Packet::Publish(theirs)) => {
            same_publish(
                ours,
                &theirs.topic,
                &theirs.payload,
                theirs.pkid,
                theirs.qos as u8,
                theirs.dup,
                theirs.retain,
            );
            if let Some(read) = &theirs.properties {
                assert_eq!(ours.topic_alias(), read.topic_alias);
                assert_eq!(ours.payload_format_indicator(), read.payload_format_indicator);
                assert_eq!(ours.message_expiry_interval(), read.message_expiry_interval);
                assert_eq!(ours.content_type(), read.content_type.as_deref());
                assert_eq!(ours.response_topic(), read.response_topic.as_deref());
                assert_eq!(ours.correlation_data(), read.correlation_data.as_deref());
                let theirs = read.user_properties.iter().map(|(name, value)| (&**name, &**value));
                assert!(ours.user_properties().eq(theirs), "{ours:?}");
            }
        }
        (Packet::PubAck(ours), v5::Packet::PubAck(theirs)) => same_ack(ours, theirs.pkid, theirs.reason as u8),
        (Packet::PubRec(ours), v5::Packet::PubRec(theirs)) => same_ack(ours, theirs.pkid, theirs.reason as u8),
        (Packet::PubRel(ours), v5::Packet::PubRel(theirs)) => same_ack(ours, theirs.pkid, theirs.reason as u8),
        (Packet::PubComp(ours), v5::Packet::PubComp(theirs)) => same_ack(ours, theirs.pkid, theirs.reason as u8),
        (ours, theirs) => panic!("{ours:?} is {theirs:?} to mqttbytes"),
    }
    assert!(bytes.is_empty(), "mqttbytes left {bytes:02x?} of {ours:?}");
}

/// What mqttbytes can read: it takes a password for text, and empty names for none (D7, D8).
fn is_readable(connect: &Connect) -> bool {
    let text = connect
        .password
        .as_ref()
        .is_none_or(|password| std::str::from_utf8(password).is_ok());
    let none = connect.user_name.as_ref().is_some_and(String::is_empty)
        || connect.password.as_ref().is_some_and(|password| password.is_empty());
    text && !none
}

fn same_connect(
    ours: &Connect,
    (client_id, keep_alive, clean): (&str, u16, bool),
    will: Option<(&str, &[u8], u8, bool)>,
    login: Option<(&str, &str)>,
) {
    assert_eq!(
        (&*ours.client_id, ours.keep_alive_seconds, ours.clean_start),
        (client_id, keep_alive, clean)
    );
    let own_will = ours.will.as_ref();
    assert_eq!(
        own_will.map(|will| (&*will.topic, &will.payload[..], will.qos as u8, will.retain)),
        will
    );
    let (user, password) = login.unwrap_or_default();
    assert_eq!(ours.user_name.as_deref().unwrap_or_default(), user);
    assert_eq!(ours.password.as_deref().unwrap_or_default(), password.as_bytes());
}

fn same_publish(ours: &Publish, topic: &str, payload: &[u8], id: u16, qos: u8, dup: bool, retain: bool) {
    assert_eq!((ours.topic(), ours.payload()), (topic, payload));
    assert_eq!(ours.packet_id().map_or(0, |id| id.get()), id);
    assert_eq!((ours.qos() as u8, ours.dup(), ours.retain()), (qos, dup, retain));
}

fn same_ack(ours: &Ack, id: u16, reason: u8) {
    assert_eq!((ours.packet_id.get(), ours.reason.0), (id, reason));
}
