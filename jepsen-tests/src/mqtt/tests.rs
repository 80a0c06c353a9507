use super::*;
use crate::history::Message;

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn clients_packets_have_the_bytes_of_the_standard() {
    let connect = Sent::Connect(Connect {
        client_id: "a".into(),
        clean: true,
        keep_alive: 5,
        properties: vec![Property(SESSION_EXPIRY_INTERVAL, Value::Four(9))],
        will: None,
    });
    assert_eq!(
        hex(&encode(Version::V5, &connect)),
        "10 13 00 04 4d 51 54 54 05 02 00 05 05 11 00 00 00 09 00 01 61"
    );
    assert_eq!(
        hex(&encode(Version::V311, &connect)),
        "10 0d 00 04 4d 51 54 54 04 02 00 05 00 01 61"
    );
    let ack = Sent::Ack {
        kind: Ack::Pubrel,
        pid: 258,
        reason: 0,
    };
    assert_eq!(hex(&encode(Version::V5, &ack)), "62 02 01 02");
    let disconnect = Sent::Disconnect {
        reason: 4,
        expiry: None,
    };
    assert_eq!(hex(&encode(Version::V5, &disconnect)), "e0 02 04 00");
    assert_eq!(hex(&encode(Version::V311, &disconnect)), "e0 00");
}

fn message() -> Message {
    Message {
        publisher: "p1".into(),
        topic: "r/1".into(),
        seq: 7,
    }
}

fn carrying(version: Version) -> Publish {
    Publish {
        topic: "r/1".into(),
        payload: payload::payload(&message(), 10),
        qos: 1,
        dup: false,
        retain: false,
        pid: 3,
        properties: payload::properties(version, &message()),
    }
}

#[test]
fn a_publish_comes_back_as_it_was_sent() {
    for version in [Version::V311, Version::V5] {
        let sent = carrying(version);
        let bytes = publish(version, &sent);
        let (packet, length) = decode(version, &bytes).expect("a packet").expect("whole");
        assert_eq!((packet, length), (Packet::Publish(sent.clone()), bytes.len()));
        assert_eq!(payload::read(&sent), (Some(message()), None));
        for end in 0..bytes.len() {
            assert_eq!(decode(version, &bytes[..end]), Ok(None), "{end} bytes are not whole");
        }
    }
}

#[test]
fn a_changed_payload_topic_or_property_is_seen() {
    let mut flipped = carrying(Version::V5);
    flipped.payload[12] ^= 1;
    assert!(payload::read(&flipped).1.is_some());
    let mut moved = carrying(Version::V5);
    moved.topic = "r/2".into();
    assert!(payload::read(&moved).1.is_some());
    let mut other = carrying(Version::V5);
    other.properties = payload::properties(Version::V5, &Message { seq: 8, ..message() });
    assert!(payload::read(&other).1.is_some());
}

#[test]
fn what_the_standard_forbids_is_an_error_and_never_a_panic() {
    for (version, bytes) in [
        (Version::V5, &[0x20, 0x03, 0x02, 0x00, 0x00][..]),
        (Version::V311, &[0x36, 0x05, 0, 1, b'a', 0, 1]),
        (Version::V311, &[0x32, 0x05, 0, 1, b'a', 0, 0]),
        (Version::V311, &[0x40, 0x03, 0, 1, 0]),
        (Version::V311, &[0xe0, 0x00]),
        (Version::V5, &[0x60, 0x02, 0, 1]),
        (Version::V5, &[0x90, 0x03, 0, 1, 0]),
        (Version::V5, &[0x30, 0xff, 0xff, 0xff, 0xff]),
    ] {
        assert!(decode(version, bytes).is_err(), "{bytes:02x?}");
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_decoded_without_a_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80)) {
        let _ = decode(Version::V5, &bytes);
        let _ = decode(Version::V311, &bytes);
    }
}
