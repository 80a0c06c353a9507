use super::*;

/// What the queue of a session holds.
fn payloads(fixture: &Fixture, session: u64) -> Vec<(String, String)> {
    let entries = fixture.entries(session);
    let plain = entries.iter().map(|entry| {
        let payload = String::from_utf8(entry.message.payload.to_vec()).unwrap();
        (entry.message.topic.to_string(), payload)
    });
    plain.collect()
}

fn ask(session: u64, filter: &str, version: u64) -> ShardOperation {
    ShardOperation::EnqueueRetained(enqueue(session, filter, version))
}

/// Retained messages `t/0000` … by session 1.
fn with_topics(count: usize) -> Fixture {
    let mut fixture = Fixture::new();
    let topics: Vec<_> = (0..count).map(|n| format!("t/{n:04}")).collect();
    for some in topics.chunks(500) {
        let appends = some.iter().map(|topic| append(retain(topic, "old")));
        fixture.operate(&[], appends.collect());
    }
    fixture
}

#[test]
fn a_replayed_message_is_queued_as_it_was_granted() {
    let mut fixture = Fixture::new();
    let qos = |qos, topic: &str| {
        append(Message {
            qos,
            ..retain(topic, "x")
        })
    };
    fixture.operate(&[], vec![qos(0, "a"), qos(1, "b"), qos(2, "c")]);
    let ask = EnqueueRetained {
        qos: 1,
        identifier: Some(77),
        ..enqueue(10, "#", 5)
    };
    assert_eq!(
        fixture.operate(&[], vec![ShardOperation::EnqueueRetained(ask)]),
        NOTHING
    );
    let entries = fixture.entries(10);
    let granted: Vec<_> = entries
        .iter()
        .map(|entry| {
            (
                entry.offset.0,
                entry.granted.qos,
                entry.granted.retain,
                entry.appended_at.0,
            )
        })
        .collect();
    // When they were published, not when they were replayed: expiry counts from there.
    assert_eq!(granted, [(4, 0, true, 1000), (5, 1, true, 1000), (6, 1, true, 1000)]);
    assert!(
        entries
            .iter()
            .all(|entry| entry.granted.subscription_identifiers == [77])
    );
    let effects = fixture.effects();
    assert_eq!((effects.after, effects.upto), (Offset(3), Offset(6)));
    assert!(
        effects
            .appended
            .iter()
            .all(|one| !one.published && one.appended_at == LogTime(1000))
    );
}

#[test]
fn a_replay_goes_on_page_by_page_and_never_restarts() {
    let mut fixture = with_topics(2500);
    let mut queued = vec![];
    for expected in [(1000, true), (2000, true), (2500, false), (2500, false)] {
        let more = fixture.operate(&[], vec![ask(10, "t/#", 5)]) == MORE;
        fixture.reload();
        queued = fixture.topics(10);
        assert_eq!((queued.len(), more), expected);
    }
    let topics: Vec<_> = (0..2500).map(|n| format!("t/{n:04}")).collect();
    assert_eq!(queued, topics);
    // Two pages in one entry, by two nodes.
    let one = fixture.batch(1, 0, &[], vec![ask(11, "t/#", 5), ask(11, "t/#", 5)]);
    let other = fixture.batch(2, 0, &[], vec![ask(11, "t/#", 5)]);
    fixture.apply(&[one, other]);
    assert_eq!(fixture.topics(11), topics);
}

#[test]
fn a_page_is_bounded_in_bytes_too() {
    let mut fixture = Fixture::new();
    let large = "x".repeat(300_000);
    let appends = (0..10).map(|n| append(retain(&n.to_string(), &large)));
    fixture.operate(&[], appends.collect());
    let mut counts = vec![];
    while fixture.operate(&[], vec![ask(10, "#", 5)]) == MORE {
        counts.push(fixture.queue(10).len());
    }
    assert_eq!(counts, [4, 8]);
    assert_eq!(fixture.queue(10).len(), 10);
}

#[test]
fn a_page_is_bounded_in_what_it_examines() {
    let mut fixture = with_topics(5000);
    fixture.operate(&[], vec![append(retain("z", "old"))]);
    assert_eq!(fixture.operate(&[], vec![ask(10, "+", 5)]), MORE);
    assert_eq!(fixture.topics(10), [""; 0]);
    assert_eq!(fixture.operate(&[], vec![ask(10, "+", 5)]), NOTHING);
    assert_eq!(fixture.topics(10), ["z"]);
}

#[test]
fn what_the_entry_removed_does_not_end_a_replay() {
    let mut fixture = with_topics(3000);
    let mut operations: Vec<_> = (0..1500).map(|n| append(retain(&format!("t/{n:04}"), ""))).collect();
    operations.push(ask(10, "t/#", 1));
    fixture.operate_at(1, &[], operations);
    // The version is that of the match: nothing was matched before it.
    assert_eq!(fixture.queue(10), [0; 0]);
    let mut operations: Vec<_> = (1500..2999).map(|n| append(retain(&format!("t/{n:04}"), ""))).collect();
    operations.push(ask(10, "t/#", 5));
    fixture.operate_at(5, &[], operations);
    assert_eq!(fixture.topics(10), ["t/2999"]);
}

#[test]
fn what_came_live_is_not_replayed() {
    let mut fixture = with_topics(1500);
    // Matched with the subscription in place, before its replay begins.
    fixture.operate_at(5, &[recipient(10)], vec![append(retain("t/0001", "live"))]);
    fixture.operate_at(4, &[], vec![append(retain("t/0002", "late"))]);
    assert_eq!(fixture.operate(&[], vec![ask(10, "t/#", 5)]), MORE);
    // Newer than the first page.
    fixture.operate_at(5, &[recipient(10)], vec![append(retain("t/1400", "live"))]);
    fixture.operate_at(5, &[recipient(10)], vec![append(retain("t/0003", "live"))]);
    fixture.operate_at(5, &[recipient(10)], vec![append(retain("t/1401", ""))]);
    // What the floor would have to let through: the bound holds by itself.
    fixture.operate_at(0, &[], vec![append(retain("t/1402", "newer"))]);
    assert_eq!(fixture.operate(&[], vec![ask(10, "t/#", 5)]), NOTHING);
    let all = payloads(&fixture, 10);
    let of = |n: usize| -> Vec<&str> {
        let topic = format!("t/{n:04}");
        all.iter().filter(|one| one.0 == topic).map(|one| &one.1[..]).collect()
    };
    assert_eq!(of(1), ["live"]);
    assert_eq!(of(2), ["late"]);
    assert_eq!(of(3), ["old", "live"]);
    assert_eq!(of(1400), ["live"]);
    assert_eq!(of(1401), [""]);
    assert_eq!(of(1402), [""; 0]);
    assert_eq!(all.len(), 1500);
}

#[test]
fn a_match_from_before_a_replay_is_refused_behind_it() {
    let mut fixture = Fixture::new();
    fixture.operate_at(4, &[], vec![append(retain("a", "1"))]);
    fixture.operate_at(0, &[], vec![ask(10, "a", 5)]);
    let stale = fixture.batch(1, 4, &[], vec![append(retain("a", "2")), append(message("b"))]);
    let before = fixture.engine.rows();
    for _ in 0..2 {
        assert_eq!(
            fixture.apply(std::slice::from_ref(&stale)),
            [BatchReply::StaleRoute { floor: MetaIndex(5) }]
        );
        fixture.reload();
    }
    let mut after = fixture.engine.rows();
    // Time went on, nothing else.
    after.retain(|(key, _)| key[8] != keys::SHARD_HEAD);
    assert_eq!(
        after,
        before
            .into_iter()
            .filter(|(key, _)| key[8] != keys::SHARD_HEAD)
            .collect::<Vec<_>>()
    );
    assert_eq!(read_head(&fixture.tables).unwrap().0, Offset(2));
    // What follows it waits for it.
    let next = fixture.batch(1, 0, &[], vec![]);
    assert_eq!(
        fixture.apply(std::slice::from_ref(&next)),
        [BatchReply::Gap { expected: 3 }]
    );
    // Batches without retained messages are not held back; matched again, the same sequence is taken.
    let other = fixture.batch(2, 0, &[recipient(11)], vec![append(message("b"))]);
    let again = NodeBatch {
        route_version: MetaIndex(5),
        recipient_sets: vec![vec![recipient(10)]],
        ..stale
    };
    assert_eq!(
        fixture.apply(&[other, again, next]),
        [applied(3), applied(5), applied(5)]
    );
    assert_eq!(
        payloads(&fixture, 10),
        [("a", "1"), ("a", "2"), ("b", "x")].map(|(topic, payload)| (topic.to_owned(), payload.to_owned()))
    );
}

#[test]
fn a_retained_publish_and_a_replay_meet_in_one_entry() {
    let published = |fixture: &mut Fixture, version, to: &[Recipient]| {
        fixture.batch(2, version, to, vec![append(retain("a", "new"))])
    };
    let replay = |fixture: &mut Fixture| fixture.batch(1, 0, &[], vec![ask(10, "a", 5)]);
    let old_and_new = |fixture: &mut Fixture| fixture.operate_at(4, &[], vec![append(retain("a", "old"))]);
    let queued = |fixture: &Fixture| -> Vec<String> {
        let queued = payloads(fixture, 10).into_iter();
        queued.map(|(_, payload)| payload).collect()
    };
    let check = |first_is_replay, version, expected_stale, expected: &[&str]| {
        let mut fixture = Fixture::new();
        old_and_new(&mut fixture);
        let to: &[Recipient] = if version >= 5 { &[recipient(10)] } else { &[] };
        let (publish, replay) = (published(&mut fixture, version, to), replay(&mut fixture));
        let replies = match first_is_replay {
            true => fixture.apply(&[replay, publish]),
            false => fixture.apply(&[publish, replay]),
        };
        let is_stale = replies.contains(&BatchReply::StaleRoute { floor: MetaIndex(5) });
        let case = format!("replay first: {first_is_replay}, matched at {version}");
        assert_eq!(is_stale, expected_stale, "{case}");
        assert_eq!(queued(&fixture), expected, "{case}");
    };
    check(false, 4, false, &["new"]);
    check(false, 5, false, &["new"]);
    check(true, 4, true, &["old"]);
    check(true, 5, false, &["old", "new"]);
}

/// The message would be newer than the first page, and yet not matched live.
#[test]
fn a_replay_holds_back_a_stale_match_of_its_own_batch() {
    for replay_is_first in [true, false] {
        let mut fixture = Fixture::new();
        fixture.operate_at(4, &[], vec![append(retain("a", "old"))]);
        let mut operations = vec![ask(10, "a", 5), append(retain("a", "new"))];
        if !replay_is_first {
            operations.reverse();
        }
        let stale = fixture.batch(1, 4, &[], operations);
        assert_eq!(
            fixture.apply(std::slice::from_ref(&stale)),
            [BatchReply::StaleRoute { floor: MetaIndex(5) }]
        );
        assert_eq!(fixture.queue(10), [0; 0]);
        let again = NodeBatch {
            route_version: MetaIndex(5),
            recipient_sets: vec![vec![recipient(10)]],
            ..stale
        };
        fixture.apply(&[again]);
        assert_eq!(payloads(&fixture, 10).last().unwrap().1, "new");
    }
}

#[test]
fn a_replay_leaves_out_what_the_session_must_not_get() {
    let mut fixture = Fixture::new();
    let own = Message {
        publisher: SessionId(10),
        ..retain("own", "x")
    };
    let short = Message {
        expiry_interval: Some(2),
        ..retain("short", "x")
    };
    fixture.operate(
        &[],
        vec![
            append(own),
            append(short),
            append(retain("$SYS/a", "x")),
            append(retain("b", "x")),
        ],
    );
    // At 2000 nothing has expired, at 3000 it has.
    fixture.operate(&[], vec![ask(10, "#", 5)]);
    assert_eq!(fixture.topics(10), ["b", "own", "short"]);
    let no_local = |session| {
        ShardOperation::EnqueueRetained(EnqueueRetained {
            no_local: true,
            ..enqueue(session, "#", 5)
        })
    };
    fixture.operate(&[], vec![no_local(11)]);
    assert_eq!(fixture.topics(11), ["b", "own"]);
    fixture.operate(&[], vec![ask(10, "+/a", 5), ask(10, "own/#", 5), no_local(10)]);
    assert_eq!(
        fixture.topics(10),
        ["b", "own", "short", "own"],
        "a filter each; done is done"
    );
}

#[test]
fn a_replay_is_remembered_until_it_is_forgotten() {
    let mut fixture = with_topics(1200);
    let forget = |session, filter: &str, version| ShardOperation::ForgetReplay {
        session: SessionId(session),
        filter: filter.into(),
        version: MetaIndex(version),
    };
    fixture.operate(
        &[],
        vec![ask(10, "t/0000", 5), ask(10, "t/0001", 6), ask(11, "t/0000", 7)],
    );
    let remembered = |fixture: &Fixture, after: Option<(u64, &str)>, limit| {
        let after = after.map(|(session, filter)| (SessionId(session), filter.into()));
        let replays = remembered_replays(&fixture.tables, after, limit).unwrap();
        let plain = replays
            .into_iter()
            .map(|(session, filter, version)| (session.0, String::from(filter), version.0));
        plain.collect::<Vec<_>>()
    };
    let all = [
        (10, "t/0000".to_owned(), 5),
        (10, "t/0001".to_owned(), 6),
        (11, "t/0000".to_owned(), 7),
    ];
    assert_eq!(remembered(&fixture, None, 10), all);
    assert_eq!(remembered(&fixture, None, 2), all[..2]);
    assert_eq!(remembered(&fixture, Some((10, "t/0000")), 10), all[1..]);
    assert_eq!(remembered(&fixture, Some((11, "t/0000")), 10), []);
    // Done is done; forgotten, it begins anew, also in the same entry.
    fixture.operate(&[], vec![ask(10, "t/0000", 5), ask(10, "t/0000", 5)]);
    assert_eq!(fixture.queue(10).len(), 2);
    fixture.operate(&[], vec![forget(10, "t/0000", 5), ask(10, "t/0000", 5)]);
    assert_eq!(fixture.queue(10).len(), 3);
    // A later subscription with the same filter gets its retained messages again.
    fixture.operate(&[], vec![ask(10, "t/0000", 8)]);
    assert_eq!(fixture.queue(10).len(), 4);
    fixture.operate(
        &[],
        vec![
            forget(10, "t/0000", 8),
            forget(10, "t/0001", 9),
            forget(11, "t/0000", 7),
            forget(12, "x", 1),
        ],
    );
    assert_eq!(remembered(&fixture, None, 10), []);
}

#[test]
fn an_earlier_subscription_does_not_disturb_the_replay_of_a_later() {
    let mut fixture = with_topics(1500);
    assert_eq!(fixture.operate(&[], vec![ask(10, "t/#", 5)]), MORE);
    // Subscribed again: begins anew, and goes on whatever an old owner still asks or forgets.
    fixture.operate(&[], vec![acknowledge(10, &(1501..=2500).collect::<Vec<_>>())]);
    assert_eq!(fixture.operate(&[], vec![ask(10, "t/#", 9)]), MORE);
    let forget = ShardOperation::ForgetReplay {
        session: SessionId(10),
        filter: "t/#".into(),
        version: MetaIndex(5),
    };
    assert_eq!(fixture.operate(&[], vec![ask(10, "t/#", 5), forget]), NOTHING);
    assert_eq!(fixture.queue(10).len(), 1000);
    assert_eq!(fixture.operate(&[], vec![ask(10, "t/#", 9)]), NOTHING);
    assert_eq!(
        fixture.topics(10),
        (0..1500).map(|n| format!("t/{n:04}")).collect::<Vec<_>>()
    );
    // Nor does it lower the floor.
    let stale = fixture.batch(1, 8, &[], vec![append(retain("a", "x"))]);
    assert_eq!(
        fixture.apply(&[stale]),
        [BatchReply::StaleRoute { floor: MetaIndex(9) }]
    );
}

/// P5: publishes by a node that has the subscription and one that has not yet, between the pages of its replay.
#[test]
fn whoever_arrives_during_retained_publishes_ends_with_the_newest() {
    const TOPICS: u64 = 1500;
    for seed in 0..12 {
        let mut random = Random(seed);
        let mut fixture = with_topics(TOPICS as usize);
        let (mut written, mut done) = (0, false);
        while !done {
            let mut batches = Vec::new();
            for node in [1, 2] {
                let version = 4 + random.below(2);
                let to: &[Recipient] = if version >= 5 { &[recipient(10)] } else { &[] };
                let mut operations: Vec<_> = (0..random.below(4))
                    .map(|_| {
                        written += 1;
                        let payload = if random.below(4) == 0 {
                            String::new()
                        } else {
                            written.to_string()
                        };
                        append(retain(&format!("t/{:04}", random.below(TOPICS)), &payload))
                    })
                    .collect();
                let version = if operations.is_empty() { 0 } else { version };
                if random.below(6) == 0 {
                    let at = random.below(operations.len() as u64 + 1);
                    operations.insert(at as usize, ask(10, "t/+", 5));
                }
                batches.push(fixture.batch(node, version, to, operations));
            }
            let mut replies = fixture.apply(&batches);
            // What was matched too early is matched again.
            for (batch, reply) in batches.iter_mut().zip(&mut replies) {
                if matches!(reply, BatchReply::StaleRoute { .. }) {
                    batch.route_version = MetaIndex(5);
                    batch.recipient_sets = vec![vec![recipient(10)]];
                    *reply = fixture.apply(std::slice::from_ref(batch)).remove(0);
                }
                let BatchReply::Applied { results, .. } = reply else {
                    panic!("seed {seed}: {reply:?}")
                };
                let asks = batch
                    .operations
                    .iter()
                    .any(|operation| matches!(operation, ShardOperation::EnqueueRetained(_)));
                done |= asks && results.is_empty();
            }
        }
        let queued = payloads(&fixture, 10);
        let last: BTreeMap<_, _> = queued.iter().cloned().collect();
        let now = LogTime(fixture.now);
        let retained = read_retained(&fixture.tables, "#", None, now, usize::MAX, usize::MAX).unwrap();
        for newest in &retained.messages {
            let payload = String::from_utf8(newest.message.payload.to_vec()).unwrap();
            assert_eq!(
                last.get(&*newest.message.topic),
                Some(&payload),
                "seed {seed}: {}",
                newest.message.topic
            );
        }
        let mut once = std::collections::BTreeSet::new();
        for one in queued.iter().filter(|(_, payload)| !payload.is_empty()) {
            assert!(once.insert(one), "seed {seed}: {one:?} came twice");
        }
    }
}
