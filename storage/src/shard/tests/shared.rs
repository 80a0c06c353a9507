use super::*;

const GROUP: u64 = 50;

fn assign(of: &[u64], session: u64, qos: u8) -> ShardOperation {
    let assignments = of.iter().map(|offset| Assignment {
        offset: Offset(*offset),
        session: SessionId(session),
        epoch: SessionEpoch(3),
        qos,
        identifier: Some(9),
    });
    ShardOperation::Assign {
        group: SessionId(GROUP),
        assignments: assignments.collect(),
    }
}

fn unassign(session: u64, of: &[u64]) -> ShardOperation {
    ShardOperation::Unassign {
        session: SessionId(session),
        offsets: offsets(of),
    }
}

fn waiting(fixture: &Fixture, group: u64) -> Vec<u64> {
    let waiting = read_waiting(&fixture.tables, SessionId(group), Offset(0), usize::MAX, usize::MAX).unwrap();
    waiting.iter().map(|one| one.offset.0).collect()
}

/// Messages of these QoS wait in the group, from offset 2 on, every second one.
fn with_waiting(qos: &[u8]) -> Fixture {
    let mut fixture = Fixture::new();
    let appends = qos.iter().map(|qos| {
        append(Message {
            qos: *qos,
            ..message("a")
        })
    });
    fixture.operate(&[group(GROUP)], appends.collect());
    fixture
}

#[test]
fn a_message_takes_an_offset_for_its_sessions_and_one_for_each_group() {
    let mut fixture = Fixture::new();
    let to = [group(51), recipient(10), group(50), recipient(11)];
    let results = fixture.operate(&to, vec![append(message("a")), append(message("b"))]);
    assert_eq!(results, NOTHING);
    assert_eq!((fixture.queue(10), fixture.queue(11)), (vec![1, 4], vec![1, 4]));
    assert_eq!((waiting(&fixture, 51), waiting(&fixture, 50)), (vec![2, 5], vec![3, 6]));
    let effects = fixture.effects();
    let offsets: Vec<_> = effects.appended.iter().map(|one| one.offset.0).collect();
    assert_eq!(
        (offsets, effects.upto),
        (vec![1, 4], Offset(6)),
        "groups hear of it by their members"
    );
    assert_eq!(effects.waiting, [SessionId(50), SessionId(51)], "once each");
    let one = &read_waiting(&fixture.tables, SessionId(50), Offset(3), 10, usize::MAX).unwrap()[0];
    assert_eq!((&*one.message.topic, one.appended_at), ("b", LogTime(1000)));
    assert_eq!(
        read_waiting(&fixture.tables, SessionId(50), Offset(0), 1, usize::MAX)
            .unwrap()
            .len(),
        1
    );
    assert!(
        read_waiting(&fixture.tables, SessionId(50), Offset(u64::MAX), 1, usize::MAX)
            .unwrap()
            .is_empty()
    );
    fixture.operate(&[recipient(10)], vec![append(message("a"))]);
    assert_eq!(fixture.effects().waiting, []);
}

#[test]
fn an_assigned_message_moves_to_the_member() {
    let mut fixture = with_waiting(&[1, 2]);
    assert_eq!(waiting(&fixture, GROUP), [2, 4]);
    fixture.operate(&[], vec![assign(&[4], 10, 1), assign(&[2], 11, 2)]);
    assert_eq!(waiting(&fixture, GROUP), [0; 0]);
    let entry = &fixture.entries(10)[0];
    let granted = Recipient {
        session: SessionId(10),
        qos: 1,
        retain: false,
        subscription_identifiers: vec![9],
        role: Role::Member {
            group: SessionId(GROUP),
            epoch: SessionEpoch(3),
        },
    };
    assert_eq!((entry.offset, &entry.granted), (Offset(5), &granted));
    assert_eq!(entry.appended_at, LogTime(1000), "expiry counts from its publish");
    assert_eq!(
        fixture.entries(11)[0].granted.qos,
        1,
        "no more than it was published with"
    );
    let effects = fixture.effects();
    let told: Vec<_> = effects
        .appended
        .iter()
        .map(|one| (one.offset.0, one.recipients[0].session.0, one.published))
        .collect();
    assert_eq!(told, [(5, 10, false), (6, 11, false)]);
    fixture.operate(&[], vec![acknowledge(10, &[5]), acknowledge(11, &[6])]);
    assert_eq!(fixture.kinds(), BTreeMap::new());
}

#[test]
fn a_message_is_assigned_once() {
    let mut fixture = with_waiting(&[1, 1]);
    // Within one entry, by two leaders, and again later; what is not there, or waits elsewhere.
    let one = fixture.batch(1, 0, &[], vec![assign(&[2, 2], 10, 1), assign(&[2, 3, 99], 11, 1)]);
    let other = fixture.batch(2, 0, &[], vec![assign(&[2], 12, 1)]);
    fixture.apply(&[one, other]);
    fixture.operate(&[], vec![assign(&[2, 5], 11, 1)]);
    let queues = [10, 11, 12].map(|session| fixture.queue(session));
    assert_eq!(queues, [vec![5], vec![], vec![]]);
    assert_eq!(waiting(&fixture, GROUP), [4]);
    // An acknowledgement in its place (expired) and an assignment in one entry.
    fixture.operate(&[], vec![acknowledge(GROUP, &[4]), assign(&[4], 10, 1)]);
    assert_eq!((fixture.queue(10), waiting(&fixture, GROUP)), (vec![5], vec![]));
}

#[test]
fn mqtt_4_8_2_5_qos_1_goes_back_when_the_member_is_gone_and_qos_2_stays() {
    let mut fixture = with_waiting(&[1, 2, 2, 1]);
    fixture.operate(
        &[],
        vec![assign(&[2, 4], 10, 2), assign(&[6], 10, 1), assign(&[8], 10, 0)],
    );
    fixture.operate(&[recipient(10)], vec![append(message("own"))]);
    assert_eq!(fixture.queue(10), [9, 10, 11, 12, 13]);
    let (assigned, next) = read_assigned(&fixture.tables, SessionId(10), Offset(0), 2).unwrap();
    assert_eq!(next, Some(Offset(10)));
    let (rest, next) = read_assigned(&fixture.tables, SessionId(10), Offset(10), 9).unwrap();
    assert_eq!(next, None);
    let plain = |assigned: &Assigned| (assigned.offset.0, assigned.qos, assigned.group.0, assigned.epoch.0);
    let all: Vec<_> = assigned.iter().chain(&rest).map(plain).collect();
    assert_eq!(
        all,
        [
            (9, 1, GROUP, 3),
            (10, 2, GROUP, 3),
            (11, 1, GROUP, 3),
            (12, 0, GROUP, 3)
        ],
        "its own is not among them"
    );
    // All of them, also twice and in two batches; what was acknowledged in the same entry is gone.
    let one = fixture.batch(
        1,
        0,
        &[],
        vec![acknowledge(10, &[12]), unassign(10, &[9, 10, 9, 12, 13, 99])],
    );
    let other = fixture.batch(2, 0, &[], vec![unassign(10, &[9, 11]), unassign(11, &[9])]);
    fixture.apply(&[one, other]);
    assert_eq!(fixture.queue(10), [10, 13], "QoS 2, and what was never a group's");
    assert_eq!(waiting(&fixture, GROUP), [14, 15]);
    let effects = fixture.effects();
    assert_eq!(effects.waiting, [SessionId(GROUP)]);
    assert!(effects.appended.is_empty());
    // To another member, as the first of QoS 1 and the second of QoS 2 that it was published with.
    fixture.operate(&[], vec![assign(&[14, 15], 11, 2)]);
    let entries = fixture.entries(11);
    let granted: Vec<_> = entries
        .iter()
        .map(|entry| (entry.granted.qos, entry.appended_at.0))
        .collect();
    assert_eq!(granted, [(1, 1000), (2, 1000)]);
}

#[test]
fn a_swept_member_gives_back_qos_1_and_drops_qos_2() {
    let mut fixture = with_waiting(&[1, 2]);
    fixture.operate(&[], vec![assign(&[2, 4], 10, 2)]);
    fixture.operate(&[recipient(10)], vec![append(message("own"))]);
    fixture.operate(&[], vec![sweep(10), sweep(10), unassign(10, &[5])]);
    assert_eq!((fixture.queue(10), waiting(&fixture, GROUP)), (vec![], vec![8]));
    assert_eq!(fixture.effects().waiting, [SessionId(GROUP)]);
    // The group is dead too.
    fixture.operate(&[], vec![sweep(GROUP)]);
    assert_eq!(fixture.kinds(), BTreeMap::new());
}

#[test]
fn a_sweep_moves_a_page_of_bytes() {
    let mut fixture = Fixture::new();
    let large = Message {
        payload: vec![7; 400_000].into(),
        ..message("a")
    };
    fixture.operate(&[group(GROUP)], vec![append(large); 10]);
    let of: Vec<_> = (1..=10).map(|n| n * 2).collect();
    fixture.operate(&[], vec![assign(&of, 10, 1)]);
    let mut counts = vec![];
    while fixture.operate(&[], vec![sweep(10)]) == MORE {
        counts.push(waiting(&fixture, GROUP).len());
    }
    assert_eq!(counts, [3, 6, 9]);
    assert_eq!((fixture.queue(10), waiting(&fixture, GROUP).len()), (vec![], 10));
}

#[test]
fn the_queue_of_a_dead_group_is_swept() {
    let mut fixture = with_waiting(&[1; 1500]);
    fixture.operate(&[], vec![assign(&[2], 10, 1)]);
    assert_eq!(
        next_session(&fixture.tables, keys::PENDING, Some(SessionId(10))).unwrap(),
        Some(SessionId(GROUP))
    );
    assert_eq!(fixture.operate(&[], vec![sweep(GROUP)]), MORE);
    // With an assignment in the same entry, of what the sweep has and has not reached.
    fixture.operate(&[], vec![sweep(GROUP), assign(&[3000], 10, 1)]);
    assert_eq!(waiting(&fixture, GROUP), [0; 0]);
    assert_eq!(fixture.queue(10), [3001], "what is with a member stays there");
    // It would go back to a group that is gone, and is swept from there.
    fixture.operate(&[], vec![unassign(10, &[3001])]);
    assert_eq!(
        next_session(&fixture.tables, keys::PENDING, None).unwrap(),
        Some(SessionId(GROUP))
    );
    fixture.operate(&[], vec![sweep(GROUP)]);
    assert_eq!(fixture.kinds(), BTreeMap::new());
}
