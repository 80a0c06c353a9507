use super::*;
use crate::ids::{Incarnation, MetaIndex, Offset, SessionId};
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
            role: crate::message::Role::Session,
        }]],
        operations: vec![
            ShardOperation::Append(Append {
                message: Bytes::from_static(b"m"),
                recipients: 0,
                origin: Origin::Plain,
            }),
            ShardOperation::Ack {
                session: SessionId(5),
                how: Left::Delivered,
                offsets: vec![Offset(1), Offset(200)],
            },
        ],
    };
    let bytes = batch.encode();
    assert_eq!(
        bytes[..],
        b"\x01\x02\x09\xac\x02\x06\x01\x01\x05\x01\x02\x07\xf0\xa2\x04\x02\x00\x00\x00\x01m\x01\x05\x02\x01\xc8\x01"[..],
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
        operations: vec![ShardOperation::Append(Append {
            message: Bytes::new(),
            recipients: 0,
            origin: Origin::Plain,
        })],
    };
    assert!(NodeBatch::decode(&batch.encode()).is_err());
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
