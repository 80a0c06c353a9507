//! Random operations: replicas agree whether or not they restart, wills come once, nothing is left behind.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// xorshift64*: the same seed gives the same run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}

const FILTERS: [&str; 7] = ["a", "a/+", "#", "$share/g/a", "$share/h/a", "$share/g/a/+", "c/d"];

fn next_operation(random: &mut Random, state: &MetaState, step: u64) -> MetaOp {
    let node = 1 + random.below(2);
    let incarnation = state.node(node).map_or(Incarnation(0), |record| record.incarnation);
    let sessions: BTreeMap<SessionId, SessionEpoch> = state.sessions().map(|(id, one)| (id, one.epoch)).collect();
    let sessions: Vec<_> = sessions.into_iter().collect();
    let (session, epoch) = match sessions.is_empty() {
        true => (SessionId(1), SessionEpoch(1)),
        false => *random.pick(&sessions),
    };
    // Now and then the epoch before.
    let epoch = SessionEpoch(epoch.0 - u64::from(random.below(10) == 0));
    let filter: Box<str> = (*random.pick(&FILTERS)).into();
    match random.below(18) {
        16..=17 => MetaOp::Access(access::some_operation(|below| random.below(below))),
        0 => MetaOp::NodeUp { node, start: step },
        1 => MetaOp::NodeDown { node, incarnation },
        2..=5 => MetaOp::Connect {
            client_id: (*random.pick(&["x", "y", "z"])).into(),
            clean_start: random.below(4) == 0,
            expiry: *random.pick(&[0, 3, 30, u32::MAX]),
            node,
            incarnation,
            request: step,
            will: if random.below(3) == 0 {
                None
            } else {
                will(*random.pick(&[0, 2, 10, 60]))
            },
        },
        6..=7 => MetaOp::Detach {
            session,
            epoch,
            expiry: *random.pick(&[None, None, Some(0), Some(5)]),
            sent: None,
            publish_will: random.below(2) == 0,
        },
        8..=10 => MetaOp::Subscribe {
            session,
            epoch,
            subscriptions: vec![Subscription {
                exclusive: share_parts(&filter).is_none() && random.below(3) == 0,
                ..subscription(&filter, random.below(3) as u8, random.below(3) as u8)
            }],
        },
        11 => MetaOp::Unsubscribe {
            session,
            epoch,
            filters: vec![filter],
        },
        12 => MetaOp::ExpireSessions { limit: 2 },
        13 => MetaOp::DueWills { limit: 2 },
        14 => match state.due_wills().next() {
            Some((session, epoch, _)) => MetaOp::WillPublished { session, epoch },
            None => MetaOp::EndSession {
                session,
                epoch: Some(epoch),
            },
        },
        _ => match state
            .session(session)
            .and_then(|session| session.retained_owed.first_key_value())
        {
            Some((filter, version)) => MetaOp::RetainedDone {
                session,
                filter: filter.clone(),
                version: *version,
            },
            None => MetaOp::NodeRoutes {
                node,
                incarnation,
                add: vec!["a".into()],
                remove: vec![],
            },
        },
    }
}

#[test]
fn replicas_agree_and_leave_nothing_behind() {
    let (mut became_due, mut spared) = (0, 0);
    for seed in 1..=30 {
        let (due, kept) = run(seed);
        became_due += due;
        spared += kept;
    }
    assert!(became_due > 100, "the runs reach wills: {became_due}");
    assert!(spared > 100, "the runs keep matches past changes: {spared}");
}

/// What was matched at an earlier version, and is said to be unchanged, is what a match finds now (`subscribe-visible`, P4). Some
/// topics are looked up at each step, so that others are of long ago. Returns how many were kept past a change.
fn look_up(
    fixture: &Fixture,
    cached: &mut BTreeMap<&'static str, (Matched, u64)>,
    random: &mut Random,
    operation: &MetaOp,
) -> usize {
    let state = fixture.view.read();
    let mut kept = 0;
    for topic in TOPICS.into_iter().filter(|_| random.below(3) > 0) {
        let fresh = state.match_topic(topic);
        let version = state.route_version();
        if let Some((earlier, since)) = cached.get(topic)
            && state.is_unchanged(topic, *since)
        {
            kept += usize::from(*since != version);
            let now = Matched {
                route_version: version,
                ..earlier.clone()
            };
            assert_eq!(now, fresh, "{topic} as of {since}, after {operation:?}");
        }
        cached.insert(topic, (fresh, version));
    }
    kept
}

/// How many wills became due, and how many matches were kept past a change.
fn run(seed: u64) -> (usize, usize) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let (mut steady, mut restarted) = (Fixture::new(), Fixture::new());
    let (mut cached, mut spared, mut topics) = (BTreeMap::new(), 0, Random(seed));
    let mut due = BTreeMap::<(SessionId, SessionEpoch), usize>::new();
    let mut clean = BTreeSet::new();
    let mut note = |events: &[MetaEvent], clean: &BTreeSet<(SessionId, SessionEpoch)>| {
        for event in events {
            if let MetaEvent::WillDue { session, epoch } = event {
                assert!(!clean.contains(&(*session, *epoch)), "seed {seed}: after a clean end");
                *due.entry((*session, *epoch)).or_default() += 1;
            }
        }
    };
    for step in 1..=150 {
        let operation = next_operation(&mut random, &steady.view.read(), step);
        let passed = random.below(4) * 700;
        restarted.reload();
        steady.now += passed;
        restarted.now += passed;
        let reply = steady.apply(operation.clone());
        assert_eq!(restarted.apply(operation.clone()), reply, "seed {seed}, {operation:?}");
        spared += look_up(&steady, &mut cached, &mut topics, &operation);
        let events = steady.events();
        assert_eq!(restarted.events(), events, "seed {seed}, {operation:?}");
        note(&events, &clean);
        if let (
            MetaOp::Detach {
                session,
                epoch,
                publish_will: false,
                ..
            },
            MetaReply::Done,
        ) = (operation, reply)
        {
            clean.insert((session, epoch));
        }
    }
    let rows = |fixture: &Fixture| fixture.tables.scan(&[1], &[u8::MAX], usize::MAX).unwrap();
    assert_eq!(rows(&steady), rows(&restarted), "seed {seed}: apply-deterministic");
    drop(restarted);

    let nodes: Vec<_> = steady
        .view
        .read()
        .nodes()
        .map(|(node, record)| (node, record.incarnation))
        .collect();
    for (node, incarnation) in nodes {
        steady.apply(MetaOp::NodeDown { node, incarnation });
    }
    let sessions: Vec<SessionId> = steady.view.read().sessions().map(|(id, _)| id).collect();
    for session in sessions {
        steady.apply(MetaOp::EndSession { session, epoch: None });
    }
    note(&steady.events(), &clean);
    let left: Vec<_> = steady
        .view
        .read()
        .due_wills()
        .map(|(session, epoch, _)| (session, epoch))
        .collect();
    assert_eq!(
        steady.view.read().will_counts(),
        (left.len(), left.len()),
        "no delay outlives its session"
    );
    for (session, epoch) in left {
        steady.apply(MetaOp::WillPublished { session, epoch });
    }
    note(&steady.events(), &clean);
    assert_eq!((steady.rows(), steady.view.read().route_count()), (0, 0), "seed {seed}");
    assert!(due.values().all(|count| *count == 1), "seed {seed}: will-once {due:?}");
    (due.len(), spared)
}
