use bytes::Bytes;

use super::*;
use crate::command::{MetaOp, MetaReply, decode_meta_ops, decode_meta_replies, encode_meta_ops, encode_meta_replies};

fn network(address: &str, prefix: u8) -> BanTarget {
    BanTarget::Network(Subnet::new(address.parse().unwrap(), prefix).expect("a network"))
}

#[test]
fn the_bytes_of_every_operation_are_golden() {
    let check = |operation: AccessOp, golden: &[u8]| {
        let operations = [MetaOp::Access(operation)];
        let bytes = encode_meta_ops(&operations);
        let expected = [b"\x02\x01\x0c\x01", golden].concat();
        assert_eq!(bytes[..], expected, "golden: readable-forever: {operations:?}");
        assert_eq!(decode_meta_ops(&bytes).unwrap(), operations);
        for length in 0..bytes.len() {
            assert!(decode_meta_ops(&bytes.slice(..length)).is_err(), "{length} bytes");
        }
    };
    check(
        AccessOp::PutUser {
            name: "al".into(),
            record: Some(Hidden::new(*b"$h")),
            groups: Some(vec!["g".into()]),
        },
        b"\x00\x02al\x01\x02$h\x01\x01\x01g",
    );
    check(
        AccessOp::PutUser {
            name: "al".into(),
            record: None,
            groups: None,
        },
        b"\x00\x02al\x00\x00",
    );
    check(AccessOp::RemoveUser { name: "al".into() }, b"\x01\x02al");
    check(
        AccessOp::SetRules {
            rules: vec!["r".into()],
            version: Some(MetaIndex(300)),
        },
        b"\x02\x01\x01r\x01\xac\x02",
    );
    check(
        AccessOp::PutBan {
            target: network("10.0.0.0", 8),
            seconds: Some(60),
            reason: "why".into(),
            by: "who".into(),
            only_longer: true,
        },
        b"\x03\x02\x0a\0\0\0\x08\x01\x3c\x03why\x03who\x01",
    );
    check(
        AccessOp::RemoveBan {
            target: network("2001:db8::", 32),
        },
        b"\x04\x03\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\0\x20",
    );
    check(
        AccessOp::RemoveBan {
            target: BanTarget::Client("c".into()),
        },
        b"\x04\x00\x01c",
    );
    check(
        AccessOp::RemoveBan {
            target: BanTarget::User("u".into()),
        },
        b"\x04\x01\x01u",
    );
    check(AccessOp::ExpireBans { limit: 10 }, b"\x05\x0a");
    check(
        AccessOp::PutKey {
            id: "k".into(),
            digest: Hidden::new(*b"dd"),
            role: KeyRole::Operate,
            label: "l".into(),
            authority: Some("a".into()),
        },
        b"\x06\x01k\x02dd\x01\x01l\x01\x01a",
    );
    check(
        AccessOp::RemoveKey {
            id: "k".into(),
            even_last: true,
            authority: None,
        },
        b"\x07\x01k\x01\x00",
    );
}

#[test]
fn replies_survive_encoding() {
    let replies: Vec<MetaReply> = [
        AccessReply::Done { existed: true },
        AccessReply::NotFound,
        AccessReply::Conflict,
        AccessReply::Full,
        AccessReply::NeedsAdmin,
        AccessReply::Unauthorised,
        AccessReply::Expired { count: 3 },
    ]
    .into_iter()
    .map(MetaReply::Access)
    .collect();
    let bytes = encode_meta_replies(&replies);
    assert_eq!(
        bytes[..],
        b"\x07\x08\x00\x01\x08\x01\x08\x02\x08\x03\x08\x04\x08\x05\x08\x06\x03"[..],
        "golden: readable-forever"
    );
    assert_eq!(decode_meta_replies(&bytes).unwrap(), replies);
}

#[test]
fn later_versions_and_what_is_no_network_are_refused() {
    let decode = |bytes: &'static [u8]| decode_meta_ops(&Bytes::from_static(bytes));
    assert!(decode(b"\x02\x01\x0c\x01\x05\x0a").is_ok());
    assert!(decode(b"\x02\x01\x0c\x02\x05\x0a").is_err(), "a later version");
    assert!(decode(b"\x02\x01\x0c\x01\x04\x02\x0a\0\0\0\x21").is_err(), "33 bits");
    assert!(
        decode(b"\x02\x01\x0c\x01\x04\x02\x0a\0\0\x01\x08").is_err(),
        "bits behind the prefix"
    );
}

#[test]
fn a_mapped_network_is_the_ipv4_one() {
    assert_eq!(network("::ffff:10.0.0.0", 104), network("10.0.0.0", 8));
    assert_eq!(network("::ffff:10.0.0.1", 128), network("10.0.0.1", 32));
    assert_eq!(network("::", 0), network("::", 0));
    assert_eq!(Subnet::new("10.0.0.1".parse().unwrap(), 8), None);
    assert_eq!(Subnet::new("10.0.0.1".parse().unwrap(), 33), None);
}

#[test]
fn secrets_have_no_text() {
    let operation = AccessOp::PutUser {
        name: "al".into(),
        record: Some(Hidden::new(*b"$argon2id")),
        groups: None,
    };
    assert!(!format!("{operation:?} {operation:#?}").contains("argon"));
}
