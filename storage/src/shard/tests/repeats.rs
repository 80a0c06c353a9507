use super::*;

/// QoS 2 of session 5.
fn publish(epoch: u64, packet_id: u16) -> ShardOperation {
    let origin = Origin::Received {
        session: SessionId(5),
        epoch: SessionEpoch(epoch),
        packet_id,
    };
    append_of(origin, Message { qos: 2, ..message("a") })
}

fn pubrel(epoch: u64, packet_id: u16) -> ShardOperation {
    ShardOperation::ReleaseReceived {
        session: SessionId(5),
        epoch: SessionEpoch(epoch),
        packet_id,
    }
}

/// What each node says, in one entry or an entry each; how many messages are stored then, and which are refused.
#[track_caller]
fn check(says: &[(NodeId, ShardOperation)], stored: usize, refused: &[usize]) {
    for in_one_entry in [true, false] {
        let mut fixture = Fixture::new();
        let batches: Vec<_> = says
            .iter()
            .map(|(node, operation)| fixture.batch(*node, 0, &[recipient(10)], vec![operation.clone()]))
            .collect();
        let replies = match in_one_entry {
            true => fixture.apply(&batches),
            false => batches
                .iter()
                .flat_map(|batch| {
                    fixture.reload();
                    fixture.apply(std::slice::from_ref(batch))
                })
                .collect(),
        };
        assert_eq!(
            fixture.queue(10).len(),
            stored,
            "in one entry: {in_one_entry}, {says:?}"
        );
        let told: Vec<_> = (0..)
            .zip(&replies)
            .filter(|(_, reply)| matches!(reply, BatchReply::Applied { results, .. } if results[..] == REFUSED))
            .map(|(position, _)| position)
            .collect();
        assert_eq!(told, refused, "in one entry: {in_one_entry}, {says:?}");
    }
}

#[test]
fn a_qos_2_publish_is_stored_once_until_pubrel() {
    check(&[(1, publish(1, 7)), (1, publish(1, 7))], 1, &[]);
    // Through another node, after a take-over.
    check(&[(1, publish(1, 7)), (2, publish(2, 7)), (3, publish(2, 7))], 1, &[]);
    check(&[(1, publish(1, 7)), (1, publish(1, 8))], 2, &[]);
    // After PUBREL the identifier means a new message.
    check(&[(1, publish(1, 7)), (1, pubrel(1, 7)), (1, publish(1, 7))], 2, &[]);
    check(
        &[
            (1, publish(1, 7)),
            (2, pubrel(2, 7)),
            (2, pubrel(2, 7)),
            (2, publish(2, 7)),
        ],
        2,
        &[],
    );
    // PUBREL of an identifier that is not known.
    check(&[(1, pubrel(1, 7)), (1, publish(1, 7))], 1, &[]);
}

#[test]
fn a_displaced_node_cannot_publish_qos_2() {
    // A zombie after the later connection's PUBREL would be a new message.
    check(&[(1, publish(1, 7)), (2, pubrel(2, 7)), (1, publish(1, 7))], 1, &[2]);
    check(&[(2, publish(2, 7)), (1, publish(1, 8))], 1, &[1]);
    check(&[(2, pubrel(2, 9)), (1, publish(1, 7)), (2, publish(2, 7))], 1, &[1]);
    // A zombie's PUBREL frees nothing: the current connection may have begun anew with the identifier.
    check(&[(2, publish(2, 7)), (1, pubrel(1, 7)), (2, publish(2, 7))], 1, &[]);
    check(&[(1, publish(u64::MAX, 1)), (1, publish(u64::MAX, 1))], 1, &[]);
}

#[test]
fn what_is_received_can_be_read_until_pubrel_behind_a_fence() {
    let mut fixture = Fixture::new();
    let read = |fixture: &Fixture, packet_id| {
        crate::shard::read_received(&fixture.tables, SessionId(5), packet_id).expect("readable")
    };
    assert!(!read(&fixture, 7));
    fixture.operate(&[recipient(10)], vec![publish(1, 7)]);
    assert!(read(&fixture, 7) && !read(&fixture, 8));
    // No packet has identifier 0: its release raises the epoch, and changes nothing else.
    fixture.operate(&[], vec![pubrel(2, 0)]);
    assert!(read(&fixture, 7));
    let zombie = fixture.operate(&[recipient(10)], vec![publish(1, 8)]);
    assert_eq!(zombie, [(0, OperationResult::Refused)]);
    assert!(!read(&fixture, 8));
    fixture.operate(&[], vec![pubrel(2, 7)]);
    assert!(!read(&fixture, 7));
}

#[test]
fn only_the_refused_operation_of_a_batch_is_refused() {
    let mut fixture = Fixture::new();
    let operations = vec![
        append(message("a")),
        publish(2, 7),
        publish(1, 8),
        publish(2, 7),
        publish(1, 7),
        append(message("a")),
    ];
    let results = fixture.operate(&[recipient(10)], operations);
    assert_eq!(results, [(2, OperationResult::Refused), (4, OperationResult::Refused)]);
    assert_eq!(fixture.queue(10), [1, 2, 3], "what is not stored takes no offset");
}

#[test]
fn a_repeat_of_a_retained_publish_does_not_return() {
    let mut fixture = Fixture::new();
    let origin = Origin::Received {
        session: SessionId(5),
        epoch: SessionEpoch(1),
        packet_id: 7,
    };
    let old = append_of(origin, retain("a", "old"));
    fixture.operate(&[], vec![old.clone(), append(retain("a", "new")), old.clone()]);
    fixture.operate(&[], vec![old]);
    let page = read_retained(&fixture.tables, "a", None, LogTime(0), 10, usize::MAX).unwrap();
    assert_eq!(page.messages[0].message.payload, &b"new"[..]);
}

fn will(epoch: u64, not_after: u64) -> ShardOperation {
    let origin = Origin::Will {
        session: SessionId(5),
        epoch: SessionEpoch(epoch),
        not_after: LogTime(not_after),
    };
    append_of(origin, message("will"))
}

#[test]
fn a_will_is_stored_once_and_not_too_late() {
    // The first entry's time is 1000.
    check(&[(1, will(3, 1_000_000)), (2, will(3, 1_000_000))], 1, &[]);
    check(&[(1, will(3, 1_000_000)), (2, will(4, 1_000_000))], 2, &[]);
    check(&[(1, will(3, 999))], 0, &[0]);
    check(&[(1, will(3, 1000))], 1, &[]);
    check(&[(1, will(3, 999)), (2, will(3, 1_000_000))], 1, &[0]);
}

#[test]
fn a_will_is_remembered_until_it_is_forgotten() {
    let mut fixture = Fixture::new();
    let wills = |fixture: &Fixture, limit| {
        let wills = remembered_wills(&fixture.tables, limit).unwrap();
        let plain = wills.into_iter().map(|(session, epoch, at)| (session.0, epoch.0, at.0));
        plain.collect::<Vec<_>>()
    };
    fixture.operate(&[recipient(10)], vec![will(3, 5000)]);
    fixture.operate(&[recipient(10)], vec![will(4, 5000)]);
    assert_eq!(wills(&fixture, 10), [(5, 3, 1000), (5, 4, 2000)]);
    assert_eq!(wills(&fixture, 1), [(5, 3, 1000)]);
    // One that has its record is a repeat, not too late: its proposer may record it as published.
    fixture.now = 9000;
    assert_eq!(fixture.operate(&[recipient(10)], vec![will(3, 5000)]), NOTHING);
    // The session's end is not the will's: it may be due just then.
    fixture.operate(&[], vec![sweep(5)]);
    assert_eq!(wills(&fixture, 10).len(), 2);
    let forget = |epoch| ShardOperation::ForgetWills {
        wills: vec![(SessionId(5), SessionEpoch(epoch)), (SessionId(6), SessionEpoch(1))],
    };
    fixture.operate(&[], vec![forget(3)]);
    assert_eq!(wills(&fixture, 10), [(5, 4, 2000)]);
    // A paused proposer wakes up.
    assert_eq!(fixture.operate(&[recipient(10)], vec![will(3, 5000)]), REFUSED);
    fixture.operate(&[], vec![forget(4), sweep(10)]);
    assert_eq!(fixture.kinds(), BTreeMap::new());
}
