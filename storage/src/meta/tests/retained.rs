//! What sessions are owed of retained messages.

use super::*;

fn owed(fixture: &Fixture, session: SessionId, filter: &str) -> Option<MetaIndex> {
    fixture.view.read().session(session)?.retained_owed.get(filter).copied()
}

#[test]
fn retain_handling_says_what_a_subscription_is_owed() {
    let check = |qos, handling: &[u8], expected: Option<usize>| {
        let mut fixture = Fixture::new();
        let one = fixture.live(1);
        let (session, epoch, ..) = fixture.connect("c", false, 60, one);
        let first = fixture.index + 1;
        for (n, retain_handling) in handling.iter().enumerate() {
            let reply = fixture.subscribe_with(session, epoch, vec![subscription("a", qos, *retain_handling)]);
            assert_eq!(reply, subscribed(n > 0));
        }
        let expected = expected.map(|n| MetaIndex(first + n as u64));
        assert_eq!(owed(&fixture, session, "a"), expected, "QoS {qos}, {handling:?}");
    };
    check(1, &[0], Some(0));
    check(1, &[1], Some(0));
    check(1, &[2], None);
    check(2, &[2, 0], Some(1));
    check(1, &[2, 1], None);
    check(1, &[0, 0], Some(1));
    check(1, &[0, 1], Some(0));
    check(1, &[0, 2], Some(0));
    check(0, &[0], None);
    check(0, &[1], None);
}

#[test]
fn what_is_owed_is_cleared_by_its_own_version() {
    let mut fixture = Fixture::new();
    let one = fixture.live(1);
    let (session, epoch, ..) = fixture.connect("c", false, 60, one);
    let done = |version| MetaOp::RetainedDone {
        session,
        filter: "a".into(),
        version,
    };
    fixture.subscribe(session, epoch, "a");
    let first = owed(&fixture, session, "a").unwrap();
    fixture.subscribe(session, epoch, "a");
    let second = owed(&fixture, session, "a").unwrap();
    assert_eq!(
        fixture.apply(done(first)),
        MetaReply::Stale,
        "another subscription is owed by now"
    );
    fixture.reload();
    let (_, epoch, ..) = fixture.connect("c", false, 60, one);
    assert_eq!(owed(&fixture, session, "a"), Some(second), "it outlives the connection");
    assert_eq!(fixture.apply(done(second)), MetaReply::Done);
    assert_eq!(owed(&fixture, session, "a"), None);
    assert_eq!(fixture.apply(done(second)), MetaReply::Stale, "a repeat");

    fixture.subscribe(session, epoch, "a");
    let third = owed(&fixture, session, "a").unwrap();
    fixture.unsubscribe(session, epoch, "a");
    assert_eq!(owed(&fixture, session, "a"), None);
    assert_eq!(fixture.apply(done(third)), MetaReply::Stale);
    fixture.subscribe(session, epoch, "a");
    fixture.subscribe_with(session, epoch, vec![subscription("a", 0, 0)]);
    assert_eq!(
        owed(&fixture, session, "a"),
        None,
        "QoS 0 is replayed without the queue"
    );
}

#[test]
fn neither_shared_nor_ephemeral_subscriptions_are_owed_anything() {
    let mut fixture = Fixture::new();
    let one = fixture.live(1);
    let (durable, epoch, ..) = fixture.connect("durable", false, 60, one);
    fixture.subscribe(durable, epoch, "$share/g/a");
    assert_eq!(owed(&fixture, durable, "$share/g/a"), None); // [MQTT-4.8.2]
    let (ephemeral, first, ..) = fixture.connect("ephemeral", true, 0, one);
    fixture.subscribe(ephemeral, first, "$share/g/a");
    assert_eq!(owed(&fixture, ephemeral, "$share/g/a"), None);
}

#[test]
fn one_subscribe_names_a_filter_twice() {
    let mut fixture = Fixture::new();
    let one = fixture.live(1);
    let (session, epoch, ..) = fixture.connect("c", false, 60, one);
    let twice = vec![
        subscription("a", 2, 1),
        subscription("b", 1, 2),
        subscription("a", 1, 1),
    ];
    assert_eq!(
        fixture.subscribe_with(session, epoch, twice),
        MetaReply::Subscribed {
            existed: vec![false, false, true],
            refused: vec![],
        }
    );
    assert_eq!(owed(&fixture, session, "a"), Some(MetaIndex(fixture.index)));
    assert_eq!(owed(&fixture, session, "b"), None);
    let matched = fixture.view.read().match_topic("a");
    assert_eq!(matched.sessions[0].subscriptions[0].qos, 1, "the last counts");
}
