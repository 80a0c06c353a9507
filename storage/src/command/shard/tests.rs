use super::*;
use crate::message::Role;

fn batch(operation: ShardOperation) -> NodeBatch {
    NodeBatch {
        node: 2,
        incarnation: Incarnation(9),
        sequence: 300,
        route_version: MetaIndex(6),
        recipient_sets: vec![vec![]],
        operations: vec![operation],
    }
}

/// What comes before the operation of [`batch`].
const HEADER: &[u8] = b"\x01\x02\x09\xac\x02\x06\x01\x00\x01";

/// Golden (`readable-forever`), read again, and no prefix of it is taken for a batch.
fn check(operation: ShardOperation, golden: &[u8]) {
    let batch = batch(operation);
    let bytes = batch.encode();
    assert_eq!(bytes[..], [HEADER, golden].concat(), "{batch:?}");
    assert_eq!(NodeBatch::decode(&bytes).unwrap(), batch);
    for length in 0..bytes.len() {
        let cut = bytes.slice(..length);
        // A message runs to the end of its own length, so that no cut goes unseen.
        assert!(NodeBatch::decode(&cut).is_err(), "{batch:?} cut to {length} bytes");
    }
    let longer = Bytes::from([&bytes[..], &[0]].concat());
    assert!(NodeBatch::decode(&longer).is_err(), "{batch:?} and a byte");
}

fn append(origin: Origin) -> ShardOperation {
    ShardOperation::Append(Append {
        message: Bytes::from_static(b"m"),
        recipients: 0,
        origin,
    })
}

#[test]
fn the_bytes_of_every_operation_are_golden() {
    let (session, epoch, max) = (SessionId(5), SessionEpoch(3), SessionId(u64::MAX));
    let offsets = || vec![Offset(1), Offset(200)];
    check(append(Origin::Plain), b"\x00\x00\x00\x01m");
    let received = Origin::Received {
        session,
        epoch,
        packet_id: u16::MAX,
    };
    check(append(received), b"\x00\x00\x01\x05\x03\xff\xff\x03\x01m");
    let will = Origin::Will {
        session,
        epoch,
        not_after: LogTime(1000),
    };
    check(append(will), b"\x00\x00\x02\x05\x03\xe8\x07\x01m");
    let delayed = Origin::Delayed {
        due: LogTime(1000),
        id: DelayedId(300),
    };
    check(append(delayed), b"\x00\x00\x03\xe8\x07\xac\x02\x01m");
    let mut delay = Delay {
        message: Bytes::from_static(b"m"),
        seconds: 300,
        count_max: Some(200),
        origin: received,
    };
    check(
        ShardOperation::Delay(delay.clone()),
        b"\x0d\xac\x02\x01\xc8\x01\x01\x05\x03\xff\xff\x03\x01m",
    );
    (delay.count_max, delay.origin) = (None, Origin::Plain);
    check(ShardOperation::Delay(delay), b"\x0d\xac\x02\x00\x00\x01m");
    check(ShardOperation::Tick, b"\x0e");
    let ack = |how| ShardOperation::Ack {
        session,
        how,
        offsets: offsets(),
    };
    check(ack(Left::Delivered), b"\x01\x05\x02\x01\xc8\x01");
    check(ack(Left::TooLarge), b"\x0c\x05\x02\x02\x01\xc8\x01");
    check(
        ShardOperation::Sweep { session: max },
        b"\x02\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    );
    let release = ShardOperation::Release {
        session,
        offsets: offsets(),
    };
    check(release, b"\x03\x05\x02\x01\xc8\x01");
    let release_received = ShardOperation::ReleaseReceived {
        session,
        epoch,
        packet_id: 128,
    };
    check(release_received, b"\x04\x05\x03\x80\x01");
    let mut enqueue = EnqueueRetained {
        session,
        filter: "a/#".into(),
        version: MetaIndex(4),
        qos: 2,
        no_local: true,
        identifier: Some(300),
    };
    check(
        ShardOperation::EnqueueRetained(enqueue.clone()),
        b"\x05\x05\x03a/#\x04\x02\x01\xac\x02",
    );
    enqueue.identifier = None;
    check(
        ShardOperation::EnqueueRetained(enqueue),
        b"\x05\x05\x03a/#\x04\x02\x01\x00",
    );
    let forget = ShardOperation::ForgetReplay {
        session,
        filter: "+".into(),
        version: MetaIndex(4),
    };
    check(forget, b"\x06\x05\x01+\x04");
    check(
        ShardOperation::ExpireRetained { limit: u32::MAX },
        b"\x07\xff\xff\xff\xff\x0f",
    );
    let assignment = |offset, identifier| Assignment {
        offset: Offset(offset),
        session,
        epoch,
        qos: 1,
        identifier,
    };
    let assign = ShardOperation::Assign {
        group: SessionId(8),
        assignments: vec![assignment(1, None), assignment(2, Some(7))],
    };
    check(assign, b"\x08\x08\x02\x01\x05\x03\x01\x00\x02\x05\x03\x01\x07");
    let unassign = ShardOperation::Unassign {
        session,
        offsets: offsets(),
    };
    check(unassign, b"\x09\x05\x02\x01\xc8\x01");
    let forget_wills = ShardOperation::ForgetWills {
        wills: vec![(session, epoch), (SessionId(6), SessionEpoch(1))],
    };
    check(forget_wills, b"\x0a\x02\x05\x03\x06\x01");
    let fence = ShardOperation::Fence {
        node: 3,
        incarnation: Incarnation(200),
    };
    check(fence, b"\x0b\x03\xc8\x01");
}

#[test]
fn the_bytes_of_every_role_are_golden() {
    let mut all = batch(append(Origin::Plain));
    let roles = [
        Role::Session,
        Role::Group,
        Role::Member {
            group: SessionId(8),
            epoch: SessionEpoch(3),
        },
    ];
    all.recipient_sets = vec![
        roles
            .map(|role| Recipient {
                session: SessionId(5),
                qos: 2,
                retain: true,
                subscription_identifiers: vec![7],
                role,
            })
            .to_vec(),
    ];
    let bytes = all.encode();
    let golden = b"\x01\x02\x09\xac\x02\x06\x01\x03\x05\x06\x01\x07\x05\x0e\x01\x07\x05\x16\x08\x03\x01\x07";
    assert_eq!(bytes[..golden.len()], golden[..]);
    assert_eq!(NodeBatch::decode(&bytes).unwrap(), all);
}

#[test]
fn the_bytes_of_every_reply_are_golden() {
    let check = |reply: BatchReply, golden: &[u8]| {
        let bytes = reply.encode();
        assert_eq!(bytes[..], golden[..], "{reply:?}");
        assert_eq!(BatchReply::decode(&bytes).unwrap(), reply);
        for length in 0..bytes.len() {
            assert!(
                BatchReply::decode(&bytes.slice(..length)).is_err(),
                "{reply:?} cut to {length}"
            );
        }
        let longer = Bytes::from([&bytes[..], &[0]].concat());
        assert!(BatchReply::decode(&longer).is_err(), "{reply:?} and a byte");
    };
    let applied = |upto, results| BatchReply::Applied {
        upto: Offset(upto),
        results,
    };
    check(applied(200, vec![]), b"\x00\xc8\x01\x00");
    let results = vec![
        (0, OperationResult::Refused),
        (300, OperationResult::More),
        (301, OperationResult::Full),
    ];
    check(applied(1, results), b"\x00\x01\x03\x00\x00\xac\x02\x01\xad\x02\x02");
    check(
        BatchReply::Gap { expected: u64::MAX },
        b"\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    );
    check(BatchReply::Forgotten, b"\x02");
    check(BatchReply::DeadIncarnation, b"\x03");
    check(BatchReply::StaleRoute { floor: MetaIndex(129) }, b"\x04\x81\x01");
}

#[test]
fn what_a_later_version_says_is_refused() {
    let check = |bytes: &[u8]| assert!(NodeBatch::decode(&Bytes::copy_from_slice(bytes)).is_err(), "{bytes:?}");
    check(b"\x02\x02\x09\x01\x00\x00\x00");
    // An operation, an origin, a role that nobody knows.
    check(&[HEADER, b"\x0c"].concat());
    check(&[HEADER, b"\x0f"].concat());
    check(&[HEADER, b"\x00\x00\x04\x01m"].concat());
    check(b"\x01\x02\x09\x01\x00\x01\x01\x05\x1e\x00\x00");
    // A Packet Identifier of more than 16 bits.
    check(&[HEADER, b"\x04\x05\x03\x80\x80\x04"].concat());
}
