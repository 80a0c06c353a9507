use super::*;

fn fence(node: NodeId, incarnation: u64) -> ShardOperation {
    ShardOperation::Fence {
        node,
        incarnation: Incarnation(incarnation),
    }
}

#[test]
fn batches_are_applied_once_and_in_sequence() {
    let mut fixture = Fixture::new();
    assert_eq!(
        fixture.apply(&[batch(1, 7, 2, &[10], 1)]),
        [BatchReply::Gap { expected: 1 }]
    );
    assert_eq!(fixture.apply(&[batch(1, 7, 1, &[10], 3)]), [applied(3)]);
    let again = batch(1, 7, 1, &[10], 3);
    assert_eq!(
        fixture.apply(&[again.clone(), batch(1, 7, 2, &[10], 1), again]),
        [applied(3), applied(4), applied(3)]
    );
    assert_eq!(fixture.queue(10), [1, 2, 3, 4]);
    for sequence in 3..=30 {
        fixture.apply(&[batch(1, 7, sequence, &[], 0)]);
    }
    assert_eq!(fixture.apply(&[batch(1, 7, 1, &[10], 3)]), [BatchReply::Forgotten]);
    assert_eq!(fixture.apply(&[batch(1, 7, 15, &[], 0)]), [applied(4)]);
    assert_eq!(fixture.apply(&[batch(1, 7, 14, &[], 0)]), [BatchReply::Forgotten]);
    assert_eq!(fixture.apply(&[batch(1, 7, 0, &[10], 1)]), [BatchReply::Forgotten]);
    assert_eq!(
        fixture.apply(&[batch(1, 7, u64::MAX, &[10], 1)]),
        [BatchReply::Gap { expected: 31 }]
    );
}

#[test]
fn a_repeated_batch_is_answered_with_its_own_results() {
    let mut fixture = Fixture::new();
    let release = ShardOperation::ReleaseReceived {
        session: SessionId(10),
        epoch: SessionEpoch(5),
        packet_id: 1,
    };
    let zombie = append_of(
        Origin::Received {
            session: SessionId(10),
            epoch: SessionEpoch(4),
            packet_id: 1,
        },
        message("a"),
    );
    let refused = fixture.batch(1, 0, &[recipient(11)], vec![release, append(message("a")), zombie]);
    let expected = BatchReply::Applied {
        upto: Offset(1),
        results: vec![(2, OperationResult::Refused)],
    };
    assert_eq!(
        fixture.apply(std::slice::from_ref(&refused)),
        std::slice::from_ref(&expected)
    );
    let next = fixture.batch(1, 0, &[recipient(11)], vec![append(message("a"))]);
    assert_eq!(fixture.apply(&[refused.clone(), next]), [expected.clone(), applied(2)]);
    fixture.reload();
    assert_eq!(fixture.apply(&[refused]), [expected]);
}

#[test]
fn a_higher_incarnation_ends_the_lower() {
    let mut fixture = Fixture::new();
    fixture.apply(&[batch(1, 7, 1, &[10], 1)]);
    assert_eq!(fixture.apply(&[batch(1, 9, 1, &[10], 1)]), [applied(2)]);
    assert_eq!(
        fixture.apply(&[batch(1, 7, 2, &[10], 1)]),
        [BatchReply::DeadIncarnation]
    );
    assert_eq!(fixture.queue(10), [1, 2]);
}

#[test]
fn a_fenced_incarnation_is_refused_for_good() {
    let mut fixture = Fixture::new();
    let is_fenced =
        |fixture: &Fixture, node, incarnation| is_fenced(&fixture.tables, node, Incarnation(incarnation)).unwrap();
    fixture.apply(&[batch(2, 8, 1, &[10], 1)]);
    assert!(!is_fenced(&fixture, 2, 8) && is_fenced(&fixture, 2, 7));
    // Also one that never said anything here; again; and what is later in the same entry.
    let fences = fixture.batch(1, 0, &[], vec![fence(2, 8), fence(2, 8), fence(3, 5), fence(2, 4)]);
    let late = batch(2, 8, 2, &[10], 1);
    assert_eq!(
        fixture.apply(&[fences, late.clone()]),
        [applied(1), BatchReply::DeadIncarnation]
    );
    for _ in 0..2 {
        assert!(is_fenced(&fixture, 2, 8) && is_fenced(&fixture, 3, 5) && !is_fenced(&fixture, 3, 6));
        // Under a sequence that was answered before, too: nobody waits for that answer any more.
        let dead = [batch(2, 8, 1, &[10], 1), late.clone(), batch(3, 5, 1, &[10], 1)];
        assert_eq!(
            fixture.apply(&dead),
            [const { BatchReply::DeadIncarnation }; 3],
            "nothing of it is taken"
        );
        fixture.reload();
    }
    assert_eq!(fixture.queue(10), [1]);
    // The next start of the node, whatever its number, begins at sequence 1.
    assert_eq!(
        fixture.apply(&[batch(2, 9, 1, &[10], 1), batch(3, 20, 1, &[10], 1)]),
        [applied(2), applied(3)]
    );
    // A fence that comes late does not touch it.
    fixture.operate(&[], vec![fence(2, 8)]);
    assert_eq!(fixture.apply(&[batch(2, 9, 2, &[10], 1)]), [applied(4)]);
}

#[test]
fn a_node_that_fences_itself_stays_fenced() {
    let mut fixture = Fixture::new();
    fixture.operate(&[], vec![]);
    assert_eq!(fixture.operate(&[], vec![fence(1, INCARNATION.0)]), NOTHING);
    for _ in 0..2 {
        let late = fixture.batch(1, 0, &[recipient(10)], vec![append(message("a"))]);
        assert_eq!(fixture.apply(&[late]), [BatchReply::DeadIncarnation]);
        fixture.reload();
    }
    assert!(is_fenced(&fixture.tables, 1, INCARNATION).unwrap());
}

#[test]
fn memory_rebuilt_from_the_tables_answers_the_same() {
    let mut fixture = Fixture::new();
    fixture.apply(&[batch(1, 7, 1, &[10], 2), batch(2, 8, 1, &[10], 1)]);
    fixture.reload();
    assert_eq!(
        fixture.apply(&[batch(1, 7, 1, &[10], 2), batch(2, 8, 2, &[10], 1)]),
        [applied(2), applied(4)]
    );
}

#[test]
fn log_time_never_runs_backwards() {
    let mut fixture = Fixture::new();
    fixture.now = 90_000;
    fixture.operate(&[recipient(10)], vec![append(message("a"))]);
    fixture.now = 10_000;
    fixture.reload();
    fixture.operate(&[recipient(10)], vec![append(message("a"))]);
    assert_eq!(read_head(&fixture.tables).unwrap(), (Offset(2), LogTime(90_000)));
    let times: Vec<_> = fixture.entries(10).iter().map(|entry| entry.appended_at.0).collect();
    assert_eq!(times, [90_000, 90_000]);
}
