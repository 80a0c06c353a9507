//! `conservation`: every entry checks it; here, that each way to leave is counted as what it is.

use super::*;

fn leave(session: u64, how: Left, of: &[u64]) -> ShardOperation {
    ShardOperation::Ack {
        session: SessionId(session),
        how,
        offsets: offsets(of),
    }
}

fn left(fixture: &Fixture) -> Vec<(Left, u64)> {
    let ledger = read_ledger(&fixture.tables).unwrap();
    let counts = Left::ALL.map(|how| (how, ledger.left(how)));
    counts.into_iter().filter(|(_, count)| *count > 0).collect()
}

#[test]
fn each_way_to_leave_is_counted_once() {
    let mut fixture = Fixture::new();
    let both = [recipient(10), recipient(11)];
    fixture.operate(&both, (0..6).map(|_| append(message("a"))).collect());
    // Whoever comes first says how, in one entry of the log as in two.
    fixture.operate(
        &both,
        vec![
            leave(10, Left::Expired, &[1, 1]),
            leave(10, Left::Delivered, &[1, 2]),
            leave(10, Left::TooLarge, &[3]),
            leave(11, Left::DropOldest, &[1]),
            leave(11, Left::DropNew, &[6]),
            leave(11, Left::OutboxFull, &[5]),
        ],
    );
    fixture.operate(&both, vec![leave(11, Left::Delivered, &[1, 5, 6]), sweep(10)]);
    let expected = [
        (Left::Delivered, 1),
        (Left::Expired, 1),
        (Left::TooLarge, 1),
        (Left::DropOldest, 1),
        (Left::DropNew, 1),
        (Left::SessionEnded, 3),
        (Left::OutboxFull, 1),
    ];
    assert_eq!(left(&fixture), expected);
    let ledger = read_ledger(&fixture.tables).unwrap();
    assert_eq!((ledger.enqueued, ledger.queued), (12, 3));
    assert_eq!(fixture.effects().ledger, ledger);
}

#[test]
fn what_moves_between_a_group_and_its_members_has_not_left() {
    let mut fixture = Fixture::new();
    fixture.operate(&[group(50)], vec![append(message("a")), append(message("a"))]);
    let assign = ShardOperation::Assign {
        group: SessionId(50),
        assignments: vec![Assignment {
            offset: Offset(1),
            session: SessionId(10),
            epoch: SessionEpoch(1),
            qos: 1,
            identifier: None,
        }],
    };
    fixture.operate(&[], vec![assign]);
    fixture.operate(&[], vec![sweep(10)]);
    let ledger = read_ledger(&fixture.tables).unwrap();
    assert_eq!((ledger.enqueued, ledger.queued, left(&fixture)), (2, 2, vec![]));
    fixture.operate(&[], vec![sweep(50)]);
    assert_eq!(left(&fixture), [(Left::SessionEnded, 2)]);
}

#[test]
fn a_restart_and_a_snapshot_keep_it() {
    let mut fixture = Fixture::new();
    fixture.operate(&[recipient(10)], vec![append(message("a")), append(message("a"))]);
    fixture.operate(&[], vec![acknowledge(10, &[1])]);
    let ledger = read_ledger(&fixture.tables).unwrap();
    fixture.reload();
    fixture.operate(&[], vec![]);
    assert_eq!(fixture.effects().ledger, ledger);
    // The tables were replaced under it.
    fixture.shard.load(&fixture.tables, true).unwrap();
    assert_eq!(*fixture.sink.jumped_to.lock().unwrap(), Some(ledger));
}
