use super::*;
use crate::ids::{Incarnation, MetaIndex, Offset, SessionEpoch, SessionId};
use crate::message::Recipient;

#[test]
fn a_batch_survives_encoding() {
    let batch = NodeBatch {
        node: 2,
        incarnation: Incarnation(9),
        sequence: 300,
        route_version: MetaIndex(6),
        recipient_sets: vec![vec![Recipient {
            session: SessionId(5),
            qos: 1,
            retain: false,
            subscription_identifiers: vec![7, 70_000],
        }]],
        operations: vec![
            ShardOperation::Append {
                message: Bytes::from_static(b"m"),
                recipients: 0,
            },
            ShardOperation::Ack {
                session: SessionId(5),
                offsets: vec![Offset(1), Offset(200)],
            },
        ],
    };
    let bytes = batch.encode();
    assert_eq!(
        bytes[..],
        b"\x01\x02\x09\xac\x02\x06\x01\x01\x05\x01\x02\x07\xf0\xa2\x04\x02\x00\x00\x01m\x01\x05\x02\x01\xc8\x01"[..],
        "golden: readable-forever"
    );
    assert_eq!(NodeBatch::decode(&bytes).unwrap(), batch);
}

#[test]
fn a_batch_that_names_a_missing_recipient_set_is_refused() {
    let batch = NodeBatch {
        node: 1,
        incarnation: Incarnation(1),
        sequence: 1,
        route_version: MetaIndex(0),
        recipient_sets: vec![],
        operations: vec![ShardOperation::Append {
            message: Bytes::new(),
            recipients: 0,
        }],
    };
    assert!(NodeBatch::decode(&batch.encode()).is_err());
}

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
        },
        MetaOp::Detach {
            session: SessionId(1),
            epoch: SessionEpoch(2),
            expiry: Some(0),
            sent: Some(vec![Offset(3)]),
        },
        MetaOp::Subscribe {
            session: SessionId(1),
            epoch: SessionEpoch(2),
            subscriptions: vec![Subscription {
                filter: "a/#".into(),
                qos: 1,
                no_local: true,
                retain_as_published: true,
                identifier: Some(5),
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
    ];
    assert_eq!(decode_meta_ops(&encode_meta_ops(&operations)).unwrap(), operations);
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
    ];
    assert_eq!(decode_meta_replies(&encode_meta_replies(&replies)).unwrap(), replies);
}

#[test]
fn an_envelope_survives_encoding() {
    let bundles = vec![Bytes::from_static(b"one"), Bytes::new()];
    let command = encode_envelope(LogTime(12), &bundles);
    assert_eq!(
        command.0[..],
        b"\x01\x0c\x02\x03one\x00"[..],
        "golden: readable-forever"
    );
    assert_eq!(decode_envelope(&command.0).unwrap(), (LogTime(12), bundles));
}
