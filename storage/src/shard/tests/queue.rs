use super::*;

#[test]
fn a_message_goes_with_its_last_pending_entry() {
    let mut fixture = Fixture::new();
    fixture.operate(
        &[recipient(10), recipient(11)],
        vec![append(message("a")), append(message("a"))],
    );
    assert_eq!(fixture.queue(10), [1, 2]);
    assert_eq!(fixture.queue(11), [1, 2]);
    // Two settlements of one message and a repeat within one entry.
    let one = fixture.batch(1, 0, &[], vec![acknowledge(10, &[1, 1])]);
    let other = fixture.batch(2, 0, &[], vec![acknowledge(11, &[1])]);
    fixture.apply(&[one, other]);
    assert_eq!((fixture.queue(10), fixture.queue(11)), (vec![2], vec![2]));
    let one = fixture.batch(1, 0, &[], vec![acknowledge(10, &[1, 2])]);
    let other = fixture.batch(2, 0, &[], vec![acknowledge(11, &[2, 9])]);
    fixture.apply(&[one, other]);
    assert_eq!(fixture.kinds(), BTreeMap::new(), "nothing is left behind");
}

#[test]
fn effects_name_every_message_in_order() {
    let mut fixture = Fixture::new();
    fixture.apply(&[batch(1, 7, 1, &[10], 2), batch(2, 8, 1, &[], 1)]);
    let one = fixture.effects();
    assert_eq!((one.after, one.upto, one.now), (Offset(0), Offset(3), LogTime(1000)));
    let appended: Vec<_> = one
        .appended
        .iter()
        .map(|appended| (appended.offset.0, appended.appended_at.0, appended.published))
        .collect();
    assert_eq!(appended, [(1, 1000, true), (2, 1000, true), (3, 1000, true)]);
    assert!(
        one.appended[2].recipients.is_empty(),
        "connected subscribers see it too"
    );
}

#[test]
fn a_page_says_how_far_it_reaches() {
    let mut fixture = Fixture::new();
    fixture.apply(&[batch(1, 7, 1, &[10], 5), batch(2, 8, 1, &[11], 1)]);
    let page = |after, limit| {
        let page = read_page(&fixture.tables, SessionId(10), Offset(after), limit, usize::MAX).unwrap();
        let copy = Page::decode(&page.encode()).unwrap();
        assert_eq!(copy.entries.len(), page.entries.len());
        (page.entries.len(), page.upto.0, page.more)
    };
    assert_eq!(page(0, 2), (2, 2, true));
    assert_eq!(page(2, 10), (3, 6, false));
    assert_eq!(page(6, 10), (0, 6, false));
    assert_eq!(page(u64::MAX, 10), (0, u64::MAX, false));
}

fn release(session: u64, of: &[u64]) -> ShardOperation {
    ShardOperation::Release {
        session: SessionId(session),
        offsets: offsets(of),
    }
}

fn released(fixture: &Fixture, session: u64) -> Vec<(u64, bool)> {
    let entries = fixture.entries(session);
    let page = Page {
        entries,
        upto: Offset(0),
        more: false,
    };
    let copy = Page::decode(&page.encode()).unwrap();
    let told = copy.entries.iter().map(|entry| (entry.offset.0, entry.released));
    told.collect()
}

#[test]
fn a_released_entry_stays_so_until_it_is_acknowledged() {
    let mut fixture = Fixture::new();
    let qos2 = || append(Message { qos: 2, ..message("a") });
    let to = Recipient {
        qos: 2,
        subscription_identifiers: vec![9],
        ..recipient(10)
    };
    fixture.operate(&[to, recipient(11)], vec![qos2(), qos2(), qos2()]);
    fixture.operate(&[], vec![release(10, &[1, 2])]);
    assert_eq!(released(&fixture, 10), [(1, true), (2, true), (3, false)]);
    assert_eq!(released(&fixture, 11), [(1, false), (2, false), (3, false)]);
    let granted = &fixture.entries(10)[0].granted;
    assert_eq!((granted.qos, &granted.subscription_identifiers[..]), (2, &[9][..]));
    // Again, also twice in one entry; of another session, of nothing.
    let before = fixture.engine.rows();
    fixture.reload();
    fixture.operate(&[], vec![release(10, &[1, 1, 9]), release(10, &[2]), release(12, &[1])]);
    let rows = |rows: Vec<(Bytes, Bytes)>| -> Vec<_> {
        let of_sessions = |key: &Bytes| ![keys::SENDER, keys::SHARD_HEAD, 0].contains(&key[8]);
        rows.into_iter().filter(|(key, _)| of_sessions(key)).collect()
    };
    assert_eq!(rows(fixture.engine.rows()), rows(before));
    fixture.operate(&[], vec![acknowledge(10, &[1]), acknowledge(11, &[1, 2, 3])]);
    fixture.operate(&[], vec![release(10, &[1])]);
    assert_eq!(
        released(&fixture, 10),
        [(2, true), (3, false)],
        "not raised from the dead"
    );
    // With its Ack in one entry, in both orders.
    fixture.operate(
        &[],
        vec![
            acknowledge(10, &[2]),
            release(10, &[2]),
            release(10, &[3]),
            acknowledge(10, &[3]),
        ],
    );
    assert_eq!(fixture.kinds(), BTreeMap::new());
}

#[test]
fn a_dead_session_is_swept_and_nothing_of_it_stays() {
    let mut fixture = Fixture::new();
    fixture.apply(&[batch(1, 7, 1, &[10, 12], 3)]);
    fixture.sequences.insert(1, 1);
    let next = |after: Option<u64>| next_session(&fixture.tables, keys::PENDING, after.map(SessionId)).unwrap();
    assert_eq!(next(None), Some(SessionId(10)));
    assert_eq!(next(Some(10)), Some(SessionId(12)));
    assert_eq!(next(Some(12)), None);
    assert_eq!(next(Some(u64::MAX)), None);
    assert_eq!(fixture.operate(&[], vec![sweep(10)]), NOTHING);
    assert_eq!((fixture.queue(10), fixture.queue(12)), (vec![], vec![1, 2, 3]));
    assert_eq!(fixture.operate(&[], vec![sweep(12), sweep(12)]), NOTHING);
    assert_eq!(fixture.kinds(), BTreeMap::new());
}

#[test]
fn a_sweep_takes_a_page_of_each_kind() {
    for session in [10, u64::MAX] {
        let mut fixture = Fixture::new();
        let bystander = session - 1;
        let received = |packet_id| {
            append_of(
                Origin::Received {
                    session: SessionId(session),
                    epoch: SessionEpoch(1),
                    packet_id,
                },
                message("a"),
            )
        };
        let count = SWEEP_PAGE as u16 + 1;
        fixture.operate(
            &[recipient(session), recipient(bystander)],
            (0..count).map(received).collect(),
        );
        for filter in 0..count {
            let ask = ShardOperation::EnqueueRetained(enqueue(session, &filter.to_string(), 1));
            fixture.operate(&[], vec![ask]);
        }
        let all = SWEEP_PAGE + 1;
        for (kind, expected) in SESSION_KINDS.into_iter().zip([2 * all, all, 1, all]) {
            assert_eq!(fixture.kinds()[&kind], expected, "kind {kind} before");
        }
        let mut asked = 1;
        while fixture.operate(&[], vec![sweep(session)]) == MORE {
            asked += 1;
        }
        assert_eq!(asked, 4, "a page at a time");
        for kind in SESSION_KINDS {
            let first = next_session(&fixture.tables, kind, None).unwrap();
            assert_ne!(first, Some(SessionId(session)), "kind {kind} after");
        }
        assert_eq!(fixture.queue(bystander).len(), all);
        fixture.operate(&[], vec![sweep(bystander)]);
        fixture.operate(&[], vec![sweep(bystander)]);
        assert_eq!(fixture.kinds(), BTreeMap::new());
    }
}
