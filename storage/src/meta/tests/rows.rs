//! What stands in the tables.

use super::*;

fn row(fixture: &Fixture, key: &[u8]) -> Bytes {
    fixture.tables.get(key).unwrap().expect("the row stands")
}

fn put(fixture: &Fixture, key: &[u8], value: &[u8]) {
    let mut state = StateBatch::default();
    TableBatch::new(&mut state, fixture.tables.prefix()).put(key, value);
    fixture.engine.write(state).unwrap();
}

#[test]
fn rows_are_pinned() {
    let mut fixture = Fixture::new();
    let one = fixture.live(1);
    let (session, epoch, ..) = fixture.connect_with("c", false, 60, one, will(5));
    fixture.subscribe_with(
        session,
        epoch,
        vec![subscription("a", 1, 1), subscription("$share/g/a", 2, 0)],
    );
    let check = |row: Bytes, expected: &[u8]| assert_eq!(row[..], *expected, "golden: readable-forever");
    check(
        row(&fixture, &keys::number(keys::NODE, 1)),
        b"\x01\x01\x80\x20\0\0\0\0\0\0\0\0",
    );
    check(
        row(&fixture, &keys::number(keys::SESSION, session.0)),
        b"\x02\x01c\x01\x01\x3c\x01\x01\x80\x20\x00\x01\x00\x80\x20\x01\x00\x00\x01\x05\x0alast words",
    );
    check(row(&fixture, &keys::subscription(session, "a")), b"\x01a\x11\x00\x03");
    check(
        row(&fixture, &keys::subscription(session, "$share/g/a")),
        b"\x0a$share/g/a\x02\x00",
    );
    let (group, _) = fixture
        .view
        .read()
        .share_groups()
        .next()
        .map(|(id, group)| (id, group.clone()))
        .unwrap();
    check(
        row(&fixture, &keys::number(keys::SHARE_GROUP, group.0)),
        b"\x01\x01g\x01a",
    );
    fixture.detach(session, epoch, true);
    check(
        row(&fixture, &keys::will(session, epoch)),
        b"\x01\xf0\x2e\x00\x05\x0alast words",
    );
}

/// Versions 3 and 2 only where a will has an author.
#[test]
fn the_author_of_a_will_stands_in_its_rows() {
    let mut fixture = Fixture::new();
    let one = fixture.live(1);
    let authored = will(5).map(|will| Will {
        author: Bytes::from_static(b"al"),
        ..will
    });
    let (session, epoch, ..) = fixture.connect_with("c", false, 60, one, authored.clone());
    let check = |row: Bytes, expected: &[u8]| assert_eq!(row[..], *expected, "golden: readable-forever");
    check(
        row(&fixture, &keys::number(keys::SESSION, session.0)),
        b"\x03\x01c\x01\x01\x3c\x01\x01\x80\x20\x00\x01\x00\x80\x20\x01\x00\x00\x01\x05\x0alast words\x02al",
    );
    fixture.reload();
    assert_eq!(fixture.view.read().session(session).unwrap().will, authored);
    fixture.detach(session, epoch, true);
    check(
        row(&fixture, &keys::will(session, epoch)),
        b"\x02\xf0\x2e\x00\x05\x0alast words\x02al",
    );
    fixture.reload();
    let state = fixture.view.read();
    let scheduled = state.scheduled_will(session, epoch).map(|scheduled| &scheduled.will);
    assert_eq!(scheduled, authored.as_ref());
}

#[test]
fn rows_of_version_1_are_read() {
    let mut fixture = Fixture::new();
    let one = fixture.live(1);
    let id = SessionId(4096);
    put(
        &fixture,
        &keys::number(keys::SESSION, id.0),
        b"\x01\x01c\x01\x01\x3c\x01\x01\x80\x20\x00\x01\x00\x80\x20\x01\x00\x00",
    );
    put(&fixture, &keys::subscription(id, "a"), b"\x01a\x01\x00");
    fixture.reload();
    let expected = {
        let state = fixture.view.read();
        let session = state.session(id).unwrap();
        assert_eq!((session.owner, &session.will), (Some(one), &None));
        assert_eq!(session.retained_owed.len(), 0);
        session.clone()
    };
    assert_eq!(fixture.matched("a").0, [(id.0, Some(1))]);
    // Written anew by the next change, it reads the same.
    fixture.subscribe_with(id, SessionEpoch(1), vec![subscription("a", 1, 2)]);
    let session = fixture.view.read().session(id).cloned().unwrap();
    assert_eq!(session.connected, expected.connected);
    assert_eq!(session.retained_owed, expected.retained_owed);
}

#[test]
fn torn_rows_are_refused() {
    let check = |key: &[u8], value: &[u8]| {
        let mut fixture = Fixture::new();
        let one = fixture.live(1);
        fixture.connect("c", false, 60, one);
        put(&fixture, key, value);
        let mut meta = Meta::new(MetaView::default(), fixture.sink.clone());
        assert!(meta.load(&fixture.tables, false).is_err());
    };
    check(&keys::number(keys::NODE, 1), b"\x02");
    check(&keys::number(keys::SESSION, 1), b"\x04");
    check(&keys::number(keys::SHARE_GROUP, 1), b"\x01\x01g");
    check(&keys::will(SessionId(1), SessionEpoch(1)), b"\x01\x00\x01\x05");
    // A member without its group.
    check(
        &keys::subscription(SessionId(8192), "$share/g/a"),
        b"\x0a$share/g/a\x02\x00",
    );
}

#[test]
fn route_versions_are_log_indexes() {
    let mut fixture = Fixture::new();
    let version = |fixture: &Fixture| fixture.view.read().route_version();
    let one = fixture.live(1);
    assert_eq!(version(&fixture), 0);
    let (session, epoch, ..) = fixture.connect("c", false, 60, one);
    assert_eq!(version(&fixture), 0, "nobody matches anything");
    fixture.subscribe(session, epoch, "a");
    assert_eq!(version(&fixture), fixture.index);
    fixture.subscribe(session, epoch, "a");
    assert_eq!(version(&fixture), fixture.index, "also if it says the same again");
    let last = fixture.index;
    fixture.apply(MetaOp::ExpireSessions { limit: 1 });
    fixture.connect("d", false, 60, one);
    assert_eq!(version(&fixture), last);
    assert_eq!(fixture.view.read().match_topic("a").route_version, last);
    fixture.apply(MetaOp::NodeRoutes {
        node: 1,
        incarnation: one.incarnation,
        add: vec!["b".into()],
        remove: vec![],
    });
    assert_eq!(version(&fixture), fixture.index);
    fixture.detach(session, epoch, false);
    assert_eq!(version(&fixture), fixture.index);
    fixture.apply(MetaOp::ExpireSessions { limit: 1 });
    fixture.reload();
    assert_eq!(version(&fixture), fixture.index, "where the tables stand");
}

/// A node that lags gets a snapshot: what its workers have cached must not look current.
#[test]
fn a_snapshot_is_a_new_route_version() {
    let mut lagging = Fixture::new();
    let mut ahead = Fixture::new();
    for fixture in [&mut lagging, &mut ahead] {
        let one = fixture.live(1);
        let (session, epoch, ..) = fixture.connect("c", false, 60, one);
        fixture.subscribe(session, epoch, "a");
    }
    let before = lagging.view.read().route_version();
    assert_eq!(before, ahead.view.read().route_version(), "the same on every node");
    let (session, epoch) = (SessionId(2 * SessionId::PER_ENTRY), SessionEpoch(1));
    ahead.subscribe(session, epoch, "b");
    let changed = ahead.view.read().route_version();
    ahead.apply(MetaOp::ExpireSessions { limit: 1 });
    lagging.meta.load(&ahead.tables, true).unwrap();
    assert!(lagging.view.read().route_version() >= changed);
    assert_eq!(content(&lagging.view.read()), content(&ahead.view.read()));
}
