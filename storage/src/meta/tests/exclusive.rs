use super::*;

fn refused() -> MetaReply {
    MetaReply::Subscribed {
        existed: vec![false],
        refused: vec![0],
    }
}

/// A connected session of `client`.
fn session(fixture: &mut Fixture, client: &str, expiry: u32, owner: Owner) -> (SessionId, SessionEpoch) {
    let (session, epoch, ..) = fixture.connect(client, false, expiry, owner);
    (session, epoch)
}

fn claim(fixture: &mut Fixture, (session, epoch): (SessionId, SessionEpoch), filter: &str) -> MetaReply {
    fixture.subscribe_with(session, epoch, vec![exclusive(filter)])
}

#[test]
fn one_session_holds_a_filter_until_it_unsubscribes() {
    for expiry in [0, 60] {
        let mut fixture = Fixture::new();
        let (one, two) = (fixture.live(1), fixture.live(2));
        let x = session(&mut fixture, "x", expiry, one);
        let y = session(&mut fixture, "y", expiry, two);
        assert_eq!(claim(&mut fixture, x, "a/+"), subscribed(false));
        assert_eq!(claim(&mut fixture, y, "a/+"), refused());
        assert_eq!(fixture.view.read().session(y.0).unwrap().subscriptions.len(), 0);
        // The holder again; an equal match by another text is another filter.
        assert_eq!(claim(&mut fixture, x, "a/+"), subscribed(true));
        assert_eq!(claim(&mut fixture, y, "a/#"), subscribed(false));
        assert_eq!(fixture.view.read().exclusive_holder("a/+"), Some(x.0));
        let existed = |existed| MetaReply::Unsubscribed { existed: vec![existed] };
        assert_eq!(fixture.unsubscribe(y.0, y.1, "a/+"), existed(false));
        assert_eq!(claim(&mut fixture, y, "a/+"), refused());
        assert_eq!(fixture.unsubscribe(x.0, x.1, "a/+"), existed(true));
        assert_eq!(claim(&mut fixture, y, "a/+"), subscribed(false));
        // The UNSUBSCRIBE once more: it takes nothing from the new holder.
        assert_eq!(fixture.unsubscribe(x.0, x.1, "a/+"), existed(false));
        assert_eq!(fixture.view.read().exclusive_holder("a/+"), Some(y.0));
    }
}

#[test]
fn what_is_refused_stays_as_it_was() {
    let mut fixture = Fixture::new();
    let one = fixture.live(1);
    let x = session(&mut fixture, "x", 60, one);
    let y = session(&mut fixture, "y", 60, one);
    assert_eq!(claim(&mut fixture, x, "a"), subscribed(false));
    // Without `$exclusive/` it is anybody's.
    assert_eq!(fixture.subscribe(y.0, y.1, "a"), subscribed(false));
    let all = vec![exclusive("b"), exclusive("a"), subscription("c/d", 1, 0)];
    let reply = fixture.subscribe_with(y.0, y.1, all);
    assert_eq!(
        reply,
        MetaReply::Subscribed {
            existed: vec![false; 3],
            refused: vec![1]
        }
    );
    let state = fixture.view.read();
    let options: Vec<_> = state.session(y.0).unwrap().subscriptions.iter().collect();
    let options: Vec<(&str, bool)> = options
        .iter()
        .map(|(filter, one)| (&***filter, one.exclusive))
        .collect();
    assert_eq!(options, [("a", false), ("b", true), ("c/d", false)]);
}

#[test]
fn a_subscription_without_it_gives_it_back() {
    for expiry in [0, 60] {
        let mut fixture = Fixture::new();
        let one = fixture.live(1);
        let x = session(&mut fixture, "x", expiry, one);
        let y = session(&mut fixture, "y", expiry, one);
        assert_eq!(claim(&mut fixture, x, "a"), subscribed(false));
        assert_eq!(fixture.subscribe(x.0, x.1, "a"), subscribed(true));
        assert_eq!(claim(&mut fixture, y, "a"), subscribed(false));
        assert_eq!(fixture.matched("a").0.len(), if expiry == 0 { 0 } else { 2 });
    }
}

#[test]
fn a_durable_holder_keeps_it_while_it_is_away() {
    let mut fixture = Fixture::new();
    let (one, two) = (fixture.live(1), fixture.live(2));
    let x = session(&mut fixture, "x", 60, one);
    let y = session(&mut fixture, "y", 60, two);
    assert_eq!(claim(&mut fixture, x, "a"), subscribed(false));
    fixture.apply(MetaOp::NodeDown {
        node: 1,
        incarnation: one.incarnation,
    });
    assert_eq!(claim(&mut fixture, y, "a"), refused());
    fixture.reload();
    // Taken over on another node; the connection before can neither claim nor give back.
    let again = session(&mut fixture, "x", 60, two);
    assert_eq!(again.0, x.0);
    assert_eq!(claim(&mut fixture, x, "b"), MetaReply::Stale);
    assert_eq!(fixture.unsubscribe(x.0, x.1, "a"), MetaReply::Stale);
    assert_eq!(claim(&mut fixture, y, "a"), refused());
    // It expires.
    fixture.detach(again.0, again.1, false);
    fixture.now += 61_000;
    assert_eq!(claim(&mut fixture, y, "a"), refused());
    fixture.apply(MetaOp::ExpireSessions { limit: 10 });
    assert_eq!(claim(&mut fixture, y, "a"), subscribed(false));
    // A Clean Start.
    let (.., present, _) = fixture.connect("y", true, 60, two);
    assert!(!present);
    let x = session(&mut fixture, "x", 60, two);
    assert_eq!(claim(&mut fixture, x, "a"), subscribed(false));
}

#[test]
fn an_ephemeral_holder_loses_it_with_its_connection_or_its_node() {
    let mut fixture = Fixture::new();
    let (one, two) = (fixture.live(1), fixture.live(2));
    let y = session(&mut fixture, "y", 60, two);
    for end in 0..3 {
        let owner = if end == 2 { fixture.live(1) } else { one };
        let x = session(&mut fixture, "x", 0, owner);
        assert_eq!(claim(&mut fixture, x, "a"), subscribed(false));
        assert_eq!(fixture.matched("a").0, [], "its node matches for it");
        assert_eq!(claim(&mut fixture, y, "a"), refused());
        match end {
            0 => fixture.detach(x.0, x.1, false),
            1 => fixture.apply(MetaOp::NodeDown {
                node: 1,
                incarnation: one.incarnation,
            }),
            _ => fixture.apply(MetaOp::EndSession {
                session: x.0,
                epoch: None,
            }),
        };
        assert_eq!(claim(&mut fixture, x, "a"), MetaReply::Stale, "{end}");
        assert_eq!(claim(&mut fixture, y, "a"), subscribed(false), "{end}");
        fixture.unsubscribe(y.0, y.1, "a");
    }
}

#[test]
fn the_row_of_an_exclusive_subscription_is_pinned() {
    let mut fixture = Fixture::new();
    let one = fixture.live(1);
    for (client, expiry) in [("x", 60), ("y", 0)] {
        let holder = session(&mut fixture, client, expiry, one);
        assert_eq!(claim(&mut fixture, holder, client), subscribed(false));
        let row = fixture
            .tables
            .get(&keys::subscription(holder.0, client))
            .unwrap()
            .unwrap();
        assert_eq!(
            row[..3],
            [&[1], client.as_bytes(), &[0x41]].concat(),
            "golden: readable-forever"
        );
        assert_eq!(row.len(), if expiry == 0 { 4 } else { 5 });
    }
}
