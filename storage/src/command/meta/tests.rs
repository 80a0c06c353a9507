use super::*;

#[test]
fn meta_operations_survive_encoding() {
    let operations = vec![
        MetaOp::NodeUp {
            node: 1,
            start: u64::MAX,
        },
        MetaOp::NodeDown {
            node: 1,
            incarnation: Incarnation(4),
        },
        MetaOp::Connect {
            client_id: "c".into(),
            clean_start: true,
            expiry: u32::MAX,
            node: 3,
            incarnation: Incarnation(8),
            request: 5,
            will: Some(Will {
                message: Bytes::from_static(b"w"),
                delay: 300,
                author: Bytes::new(),
            }),
        },
        MetaOp::Detach {
            session: SessionId(1),
            epoch: SessionEpoch(2),
            expiry: Some(0),
            sent: Some(vec![Offset(3)]),
            publish_will: true,
        },
        MetaOp::Subscribe {
            session: SessionId(1),
            epoch: SessionEpoch(2),
            subscriptions: vec![Subscription {
                filter: "a/#".into(),
                qos: 1,
                no_local: true,
                retain_as_published: true,
                retain_handling: 2,
                identifier: Some(5),
                exclusive: false,
            }],
        },
        MetaOp::Unsubscribe {
            session: SessionId(1),
            epoch: SessionEpoch(2),
            filters: vec!["a/#".into()],
        },
        MetaOp::NodeRoutes {
            node: 1,
            incarnation: Incarnation(4),
            add: vec!["x".into()],
            remove: vec![],
        },
        MetaOp::ExpireSessions { limit: 10 },
        MetaOp::RetainedDone {
            session: SessionId(1),
            filter: "a/#".into(),
            version: MetaIndex(6),
        },
        MetaOp::DueWills { limit: 10 },
        MetaOp::WillPublished {
            session: SessionId(1),
            epoch: SessionEpoch(2),
        },
        MetaOp::EndSession {
            session: SessionId(1),
            epoch: Some(SessionEpoch(2)),
        },
    ];
    let bytes = encode_meta_ops(&operations);
    assert_eq!(
        bytes[..],
        b"\x02\x0c\x00\x01\xff\xff\xff\xff\xff\xff\xff\xff\x01\x01\x04\
          \x02\x01c\x01\xff\xff\xff\xff\x0f\x03\x08\x05\x01\xac\x02\x01w\
          \x03\x01\x02\x01\x00\x01\x01\x03\x01\
          \x04\x01\x02\x01\x03a/#\x2d\x05\x05\x01\x02\x01\x03a/#\
          \x06\x01\x04\x01\x01x\x00\x07\x0a\
          \x08\x01\x03a/#\x06\x09\x0a\x0a\x01\x02\x0b\x01\x01\x02"[..],
        "golden: readable-forever"
    );
    assert_eq!(decode_meta_ops(&bytes).unwrap(), operations);
    for length in 0..bytes.len() {
        assert!(
            decode_meta_ops(&bytes.slice(..length)).is_err(),
            "prefix of {length} bytes"
        );
    }
    let replies = vec![
        MetaReply::Done,
        MetaReply::Admitted {
            incarnation: Incarnation(1),
        },
        MetaReply::Connected {
            session: SessionId(1),
            epoch: SessionEpoch(2),
            present: true,
            durable: false,
            previous: Some(Owner {
                node: 1,
                incarnation: Incarnation(3),
            }),
        },
        MetaReply::Unsubscribed {
            existed: vec![true, false],
        },
        MetaReply::Stale,
        MetaReply::Expired { count: 3 },
        MetaReply::Subscribed {
            existed: vec![false, true],
            refused: vec![],
        },
        MetaReply::Subscribed {
            existed: vec![false, true, false],
            refused: vec![0, 2],
        },
        MetaReply::Due { count: 4 },
    ];
    assert_eq!(decode_meta_replies(&encode_meta_replies(&replies)).unwrap(), replies);
}

/// Logs that were written before wills: Connect has none, Detach publishes none, subscriptions handle retained
/// messages as 0.
#[test]
fn operations_of_version_1_are_read() {
    let bytes = Bytes::from_static(
        b"\x01\x03\x02\x01c\x01\x3c\x03\x08\x05\x03\x01\x02\x01\x00\x01\x01\x03\x04\x01\x02\x01\x03a/#\x0d\x05",
    );
    let expected = [
        MetaOp::Connect {
            client_id: "c".into(),
            clean_start: true,
            expiry: 60,
            node: 3,
            incarnation: Incarnation(8),
            request: 5,
            will: None,
        },
        MetaOp::Detach {
            session: SessionId(1),
            epoch: SessionEpoch(2),
            expiry: Some(0),
            sent: Some(vec![Offset(3)]),
            publish_will: false,
        },
        MetaOp::Subscribe {
            session: SessionId(1),
            epoch: SessionEpoch(2),
            subscriptions: vec![Subscription {
                filter: "a/#".into(),
                qos: 1,
                no_local: true,
                retain_as_published: true,
                retain_handling: 0,
                identifier: Some(5),
                exclusive: false,
            }],
        },
    ];
    assert_eq!(decode_meta_ops(&bytes).unwrap(), expected);
    assert!(
        decode_meta_ops(&Bytes::from_static(b"\x05\x00")).is_err(),
        "a later version"
    );
}

/// Version 3 only where it must be; what version 2 could not say is not read as such.
#[test]
fn an_exclusive_subscription_is_of_version_3() {
    let subscribe = |exclusive| {
        vec![MetaOp::Subscribe {
            session: SessionId(1),
            epoch: SessionEpoch(2),
            subscriptions: vec![Subscription {
                filter: "a".into(),
                qos: 2,
                no_local: false,
                retain_as_published: true,
                retain_handling: 1,
                identifier: None,
                exclusive,
            }],
        }]
    };
    let check = |exclusive, golden: &'static [u8]| {
        let bytes = encode_meta_ops(&subscribe(exclusive));
        assert_eq!(bytes[..], *golden, "golden: readable-forever");
        assert_eq!(decode_meta_ops(&bytes).unwrap(), subscribe(exclusive));
    };
    check(false, b"\x02\x01\x04\x01\x02\x01\x01a\x1a\x00");
    check(true, b"\x03\x01\x04\x01\x02\x01\x01a\x5a\x00");
    let older = Bytes::from_static(b"\x02\x01\x04\x01\x02\x01\x01a\x5a\x00");
    assert!(decode_meta_ops(&older).is_err());
}

/// Version 4 only where a will has an author.
#[test]
fn a_will_with_an_author_is_of_version_4() {
    let connect = |author: &'static [u8]| {
        vec![MetaOp::Connect {
            client_id: "c".into(),
            clean_start: true,
            expiry: 60,
            node: 3,
            incarnation: Incarnation(8),
            request: 5,
            will: Some(Will {
                message: Bytes::from_static(b"w"),
                delay: 1,
                author: Bytes::from_static(author),
            }),
        }]
    };
    let check = |author, golden: &'static [u8]| {
        let bytes = encode_meta_ops(&connect(author));
        assert_eq!(bytes[..], *golden, "golden: readable-forever");
        assert_eq!(decode_meta_ops(&bytes).unwrap(), connect(author));
    };
    check(b"", b"\x02\x01\x02\x01c\x01\x3c\x03\x08\x05\x01\x01\x01w");
    check(b"al", b"\x04\x01\x02\x01c\x01\x3c\x03\x08\x05\x01\x01\x01w\x02al");
}
