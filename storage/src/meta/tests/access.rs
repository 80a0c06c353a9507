//! Users, rules, bans and keys: what each operation does, and what stands in the tables.

use super::*;
use crate::command::{AccessOp, AccessReply, BanTarget, Hidden, KeyRole, Subnet};

const DONE_NEW: AccessReply = AccessReply::Done { existed: false };
const DONE: AccessReply = AccessReply::Done { existed: true };

impl Fixture {
    fn access(&mut self, operation: AccessOp) -> AccessReply {
        match self.apply(MetaOp::Access(operation)) {
            MetaReply::Access(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    fn changes(&self) -> Vec<AccessChange> {
        let change = |event| match event {
            MetaEvent::AccessChanged(change) => change,
            other => panic!("{other:?}"),
        };
        self.events().into_iter().map(change).collect()
    }

    fn is_banned(&self, client_id: &str, user: Option<&str>, address: &str) -> bool {
        let address = Some(address.parse().unwrap());
        let view = self.view.read();
        view.access()
            .ban_of(client_id, user, address, LogTime(self.now))
            .is_some()
    }
}

fn user(name: &str, record: Option<&str>, groups: Option<&[&str]>) -> AccessOp {
    AccessOp::PutUser {
        name: name.into(),
        record: record.map(|record| Hidden::new(record.as_bytes())),
        groups: groups.map(|groups| groups.iter().map(|group| (*group).into()).collect()),
    }
}

fn rules(rules: &[&str], version: Option<u64>) -> AccessOp {
    AccessOp::SetRules {
        rules: rules.iter().map(|rule| (*rule).into()).collect(),
        version: version.map(MetaIndex),
    }
}

fn ban(target: BanTarget, seconds: Option<u32>, only_longer: bool) -> AccessOp {
    AccessOp::PutBan {
        target,
        seconds,
        reason: "noise".into(),
        by: "key k".into(),
        only_longer,
    }
}

fn client(client_id: &str) -> BanTarget {
    BanTarget::Client(client_id.into())
}

fn network(address: &str, prefix: u8) -> BanTarget {
    BanTarget::Network(Subnet::new(address.parse().unwrap(), prefix).expect("a network"))
}

fn key(id: &str, role: KeyRole, authority: Option<&str>) -> AccessOp {
    AccessOp::PutKey {
        id: id.into(),
        digest: Hidden::new(format!("digest of {id}").into_bytes()),
        role,
        label: "l".into(),
        authority: authority.map(Into::into),
    }
}

fn remove_key(id: &str, even_last: bool, authority: Option<&str>) -> AccessOp {
    AccessOp::RemoveKey {
        id: id.into(),
        even_last,
        authority: authority.map(Into::into),
    }
}

/// One of a few, so that they meet each other.
pub fn some_operation(mut below: impl FnMut(u64) -> u64) -> AccessOp {
    let name = ["x", "y"][below(2) as usize];
    let target = [client(name), BanTarget::User(name.into()), network("10.0.0.0", 8)][below(3) as usize].clone();
    match below(8) {
        0 => user(name, Some(["h", "i"][below(2) as usize]), None),
        1 => user(name, None, Some(&["g"])),
        2 => AccessOp::RemoveUser { name: name.into() },
        3 => rules(&[&["a", "b"][..below(3) as usize].concat()], None),
        4 => ban(target, [None, Some(2), Some(9)][below(3) as usize], below(2) == 0),
        5 => match below(2) {
            0 => AccessOp::RemoveBan { target },
            _ => AccessOp::ExpireBans { limit: 1 },
        },
        6 => key(
            name,
            KeyRole::ALL[below(3) as usize],
            [None, Some("x"), Some("y")][below(3) as usize],
        ),
        _ => remove_key(name, below(2) == 0, [None, Some("x"), Some("y")][below(3) as usize]),
    }
}

#[test]
fn users_come_change_and_go_and_a_repeat_changes_nothing() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.access(user("al", None, Some(&["g"]))), AccessReply::NotFound);
    assert_eq!(fixture.access(user("al", Some("h"), Some(&["g"]))), DONE_NEW);
    let first = fixture.index;
    assert_eq!(fixture.access(user("al", Some("h"), None)), DONE, "groups stay");
    assert_eq!(
        fixture.changes(),
        [AccessChange::User("al".into())],
        "the repeat is none"
    );
    let version = |fixture: &Fixture| fixture.view.read().access().user("al").map(|user| user.version.0);
    assert_eq!(version(&fixture), Some(first));
    assert_eq!(fixture.access(user("al", None, Some(&[]))), DONE);
    let (record, groups) = {
        let view = fixture.view.read();
        let al = view.access().user("al").expect("there").clone();
        (al.record, al.groups)
    };
    assert_eq!((record, groups.len()), (Hidden::new(*b"h"), 0));
    assert_eq!(version(&fixture), Some(fixture.index));
    assert_eq!(fixture.access(AccessOp::RemoveUser { name: "al".into() }), DONE);
    assert_eq!(fixture.access(AccessOp::RemoveUser { name: "al".into() }), DONE_NEW);
    assert_eq!(fixture.changes().len(), 2);
    assert_eq!(fixture.view.read().access().users().count(), 0);
}

#[test]
fn rules_are_replaced_as_a_whole_and_only_if_nobody_else_did() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.access(rules(&["a", "b"], Some(0))), DONE_NEW);
    let version = fixture.index;
    assert_eq!(fixture.access(rules(&["a", "b"], Some(0))), DONE, "a repeat");
    assert_eq!(fixture.access(rules(&["c"], Some(0))), AccessReply::Conflict);
    assert_eq!(fixture.access(rules(&["b", "a"], Some(version))), DONE);
    assert_eq!(fixture.changes(), [AccessChange::Rules, AccessChange::Rules]);
    assert_eq!(fixture.access(rules(&[], None)), DONE);
    assert_eq!(
        fixture.access(rules(&["a"], Some(0))),
        AccessReply::Conflict,
        "none is a version too"
    );
    let many = vec!["r"; 4_097];
    assert_eq!(fixture.access(rules(&many, None)), AccessReply::Full);
    let long = "r".repeat(512 * 1024 + 1);
    assert_eq!(fixture.access(rules(&[&long], None)), AccessReply::Full);
    assert_eq!(fixture.view.read().access().rules().0.len(), 0);
}

#[test]
fn a_ban_holds_for_whom_it_is_about_until_it_ends() {
    let mut fixture = Fixture::new();
    fixture.access(ban(client("c"), None, false));
    fixture.access(ban(BanTarget::User("u".into()), Some(10), false));
    fixture.access(ban(network("10.1.0.0", 16), Some(5), false));
    fixture.access(ban(network("2001:db8::", 32), None, false));
    fixture.access(ban(network("::ffff:192.0.2.1", 128), None, false));
    assert_eq!(fixture.changes().len(), 5);
    let check = |fixture: &Fixture, expected: [bool; 8]| {
        let found = [
            fixture.is_banned("c", None, "127.0.0.1"),
            fixture.is_banned("cc", Some("u"), "127.0.0.1"),
            fixture.is_banned("u", None, "127.0.0.1"),
            fixture.is_banned("d", None, "10.1.255.255"),
            fixture.is_banned("d", Some("v"), "::ffff:10.1.0.1"),
            fixture.is_banned("d", None, "10.2.0.0"),
            fixture.is_banned("d", None, "2001:db8:1::1"),
            fixture.is_banned("d", None, "192.0.2.1"),
        ];
        assert_eq!(found, expected);
    };
    check(&fixture, [true, true, false, true, true, false, true, true]);
    assert_eq!(
        fixture.view.read().access().next_ban_end(),
        Some(LogTime(fixture.now + 5_000))
    );
    fixture.now += 5_000;
    check(&fixture, [true, true, false, false, false, false, true, true]);
    let expire = AccessOp::ExpireBans { limit: 10 };
    assert_eq!(fixture.access(expire.clone()), AccessReply::Expired { count: 1 });
    fixture.now += 5_000;
    check(&fixture, [true, false, false, false, false, false, true, true]);
    assert_eq!(fixture.access(expire), AccessReply::Expired { count: 1 });
    assert_eq!(fixture.access(AccessOp::RemoveBan { target: client("c") }), DONE);
    assert_eq!(fixture.access(AccessOp::RemoveBan { target: client("c") }), DONE_NEW);
    assert_eq!(fixture.view.read().access().bans().count(), 2);
    assert_eq!(fixture.view.read().access().next_ban_end(), None);
}

#[test]
fn what_a_machine_decides_does_not_shorten_a_ban() {
    let mut fixture = Fixture::new();
    let end = |fixture: &Fixture| {
        fixture
            .view
            .read()
            .access()
            .bans()
            .next()
            .and_then(|(_, ban)| ban.ends_at)
    };
    fixture.access(ban(client("c"), Some(60), true));
    let first = end(&fixture);
    fixture.changes();
    fixture.access(ban(client("c"), Some(30), true));
    assert_eq!((end(&fixture), fixture.changes().len()), (first, 0));
    fixture.access(ban(client("c"), Some(90), true));
    assert!(end(&fixture) > first);
    fixture.access(ban(client("c"), None, true));
    assert_eq!(end(&fixture), None);
    fixture.access(ban(client("c"), Some(1), true));
    assert_eq!(end(&fixture), None, "for good is the longest");
    fixture.access(ban(client("c"), Some(1), false));
    assert!(end(&fixture).is_some(), "a person may");
}

#[test]
fn keys_are_made_by_admins_alone_and_one_of_them_stays() {
    use AccessReply::{Conflict, NeedsAdmin, Unauthorised};
    let mut fixture = Fixture::new();
    let (read, admin) = (KeyRole::Read, KeyRole::Admin);
    assert_eq!(
        fixture.access(key("r", read, None)),
        NeedsAdmin,
        "the first one administers"
    );
    assert_eq!(fixture.access(key("a", admin, None)), DONE_NEW);
    assert_eq!(fixture.access(key("a", admin, None)), DONE_NEW, "a repeat");
    assert_eq!(
        fixture.access(key("b", admin, None)),
        Unauthorised,
        "there is a key by now"
    );
    assert_eq!(fixture.access(key("b", admin, Some("r"))), Unauthorised, "no such key");
    assert_eq!(fixture.access(key("r", read, Some("a"))), DONE_NEW);
    assert_eq!(fixture.access(key("r", admin, Some("a"))), Conflict, "an id is one key");
    assert_eq!(fixture.access(key("b", admin, Some("r"))), Unauthorised, "it may read");
    for even_last in [false, true] {
        assert_eq!(fixture.access(remove_key("a", even_last, Some("a"))), NeedsAdmin);
    }
    assert_eq!(fixture.access(remove_key("a", true, None)), Unauthorised);
    assert_eq!(fixture.access(key("b", admin, Some("a"))), DONE_NEW);
    assert_eq!(fixture.access(remove_key("a", false, Some("b"))), DONE);
    assert_eq!(fixture.access(key("c", admin, Some("a"))), Unauthorised, "it is gone");
    assert_eq!(fixture.access(remove_key("r", false, Some("b"))), DONE);
    assert_eq!(fixture.access(remove_key("b", false, Some("b"))), NeedsAdmin);
    assert_eq!(fixture.access(remove_key("b", true, Some("b"))), DONE);
    assert_eq!(fixture.access(remove_key("b", true, Some("b"))), DONE_NEW);
    assert_eq!(fixture.view.read().access().keys().count(), 0);
}

#[test]
fn rows_of_who_may_do_what_are_pinned() {
    let mut fixture = Fixture::new();
    fixture.access(user("al", Some("$h"), Some(&["g", "h"])));
    fixture.access(rules(&["a", "bc"], None));
    fixture.access(ban(client("c"), Some(1), false));
    fixture.access(ban(network("10.0.0.0", 8), None, false));
    fixture.access(key("k", KeyRole::Admin, None));
    let row = |key: &[u8]| fixture.tables.get(key).unwrap().expect("the row stands");
    let check = |key: &[u8], expected: &[u8]| assert_eq!(row(key)[..], *expected, "golden: readable-forever");
    check(b"\x17al", b"\x01\x02$h\x02\x01g\x01h\x01");
    check(b"\x18", b"\x01\x02\x02\x01a\x02bc");
    check(b"\x19\x00\x01c", b"\x01\x01\xd0\x0f\xe8\x07\x05noise\x05key k");
    check(b"\x19\x02\x0a\0\0\0\x08", b"\x01\x00\xe8\x07\x05noise\x05key k");
    check(b"\x1ak", b"\x01\x0bdigest of k\x02\x01l\xe8\x07");
    assert!(!format!("{:?}", fixture.view.read().access()).contains("digest of"));
    for (key, value) in [
        (&b"\x17al"[..], &b"\x02"[..]),
        (b"\x18", b"\x01\x02\x02\x01a"),
        (b"\x19\x07", b"\x01"),
        (b"\x1ak", b"\x01\x01d\x03"),
        (b"\x17\xff", b"\x01\x00\x00\x01"),
    ] {
        let mut torn = StateBatch::default();
        TableBatch::new(&mut torn, fixture.tables.prefix()).put(key, value);
        let before = fixture.tables.get(key).unwrap();
        fixture.engine.write(torn).unwrap();
        let mut meta = Meta::new(MetaView::default(), fixture.sink.clone());
        assert!(meta.load(&fixture.tables, false).is_err(), "{key:?}");
        let mut mended = StateBatch::default();
        let mut batch = TableBatch::new(&mut mended, fixture.tables.prefix());
        match before {
            Some(value) => batch.put(key, &value),
            None => batch.delete(key),
        }
        fixture.engine.write(mended).unwrap();
    }
}
