//! Shared groups.

use super::*;

type Members = Vec<(SessionId, Option<NodeId>)>;

/// Of the groups that `topic` matches: id, QoS, members with who serves them.
fn groups(fixture: &Fixture, topic: &str) -> Vec<(SessionId, u8, Members)> {
    let matched = fixture.view.read().match_topic(topic);
    let members = |group: MatchedGroup| group.members.iter().map(|one| (one.session, one.owner)).collect();
    matched
        .groups
        .into_iter()
        .map(|group| (group.group, group.qos, members(group)))
        .collect()
}

fn group_of(fixture: &Fixture, name: &str, filter: &str) -> Option<SessionId> {
    fixture.view.read().group_of(name, filter).map(|(id, _)| id)
}

#[test]
fn a_group_lives_from_its_first_subscription_to_its_last() {
    let mut fixture = Fixture::new();
    let (one, two) = (fixture.live(1), fixture.live(2));
    let (durable, epoch, ..) = fixture.connect("durable", false, 60, one);
    let (ephemeral, first, ..) = fixture.connect("ephemeral", true, 0, two);
    let shared = |qos| vec![subscription("$share/g/a/+", qos, 0)];
    let fresh = subscribed(false);
    assert_eq!(fixture.subscribe_with(durable, epoch, shared(1)), fresh);
    assert_eq!(fixture.subscribe_with(ephemeral, first, shared(2)), fresh);
    let group = group_of(&fixture, "g", "a/+").unwrap();
    assert!(group != durable && group != ephemeral);
    let both = vec![(durable, Some(1)), (ephemeral, Some(2))];
    assert_eq!(groups(&fixture, "a/b"), [(group, 2, both)]);
    assert_eq!(groups(&fixture, "$share/g/a/b"), [], "it is no topic");
    assert_eq!(fixture.matched("a/b"), (vec![], vec![]), "not an ordinary subscription");
    assert_eq!(fixture.matched("$share/g/a/b"), (vec![], vec![]));

    fixture.events();
    fixture.detach(ephemeral, first, false);
    let version = fixture.view.read().route_version();
    assert_eq!(groups(&fixture, "a/b"), [(group, 1, vec![(durable, Some(1))])]);
    fixture.detach(durable, epoch, false);
    assert_eq!(groups(&fixture, "a/b"), [(group, 1, vec![(durable, None)])]);
    assert!(
        fixture.view.read().route_version() > version,
        "who serves a member is part of the match"
    );
    let (_, epoch, ..) = fixture.connect("durable", false, 60, two);
    assert_eq!(groups(&fixture, "a/b"), [(group, 1, vec![(durable, Some(2))])]);
    let ended = MetaEvent::GroupEnded { group };
    assert!(!fixture.events().contains(&ended));
    fixture.unsubscribe(durable, epoch, "$share/g/a/+");
    assert!(fixture.events().contains(&ended));
    assert_eq!(groups(&fixture, "a/b"), []);
    assert_eq!(fixture.view.read().share_group(group), None);
    assert_eq!(fixture.view.read().route_count(), 0);

    fixture.subscribe_with(durable, epoch, shared(1));
    assert!(group_of(&fixture, "g", "a/+") > Some(group), "an id is never reused");
    fixture.apply(MetaOp::EndSession {
        session: durable,
        epoch: None,
    });
    assert_eq!(fixture.rows(), 0);
    assert_eq!(fixture.view.read().share_groups().count(), 0);
}

#[test]
fn name_and_filter_make_a_group() {
    let mut fixture = Fixture::new();
    let one = fixture.live(1);
    let (session, epoch, ..) = fixture.connect("c", false, 60, one);
    let filters = ["$share/g/a/+", "$share/h/a/+", "$share/g/#", "$share/g/b", "a/b"];
    let subscriptions = filters.iter().map(|filter| subscription(filter, 1, 0)).collect();
    fixture.subscribe_with(session, epoch, subscriptions);
    let ids = [("g", "a/+"), ("h", "a/+"), ("g", "#")].map(|(name, filter)| group_of(&fixture, name, filter).unwrap());
    let found: Vec<SessionId> = groups(&fixture, "a/b").iter().map(|(group, ..)| *group).collect();
    assert_eq!(found, ids, "each once, by id");
    assert_eq!(
        fixture.matched("a/b").0,
        [(session.0, Some(1))],
        "its own subscription counts apart"
    );
    let state = fixture.view.read();
    let group = state.share_group(ids[1]).unwrap();
    assert_eq!((&*group.name, &*group.filter), ("h", "a/+"));
    assert_eq!(state.share_groups().count(), 4);
    assert_eq!(group_of(&fixture, "h", "#"), None);
}

#[test]
fn a_node_that_goes_down_takes_ephemeral_members_along() {
    let mut fixture = Fixture::new();
    let one = fixture.live(1);
    let (durable, epoch, ..) = fixture.connect("durable", false, 60, one);
    let (ephemeral, first, ..) = fixture.connect("ephemeral", true, 0, one);
    fixture.subscribe(durable, epoch, "$share/g/a");
    fixture.subscribe(ephemeral, first, "$share/g/a");
    fixture.subscribe(ephemeral, first, "$share/h/a");
    let (g, h) = (
        group_of(&fixture, "g", "a").unwrap(),
        group_of(&fixture, "h", "a").unwrap(),
    );
    fixture.events();
    fixture.live(1);
    assert_eq!(groups(&fixture, "a"), [(g, 1, vec![(durable, None)])]);
    assert!(fixture.events().contains(&MetaEvent::GroupEnded { group: h }));
}

#[test]
fn an_entry_creates_no_more_ids_than_are_its_own() {
    let mut fixture = Fixture::new();
    let one = fixture.live(1);
    let (session, epoch, ..) = fixture.connect("c", false, 60, one);
    let subscribe = |from: u64, count| MetaOp::Subscribe {
        session,
        epoch,
        subscriptions: (from..from + count)
            .map(|n| subscription(&format!("$share/{n}/a"), 1, 0))
            .collect(),
    };
    let connect = MetaOp::Connect {
        client_id: "d".into(),
        clean_start: true,
        expiry: 0,
        node: 1,
        incarnation: one.incarnation,
        request: 77,
        will: None,
    };
    let before = fixture.index;
    let replies = fixture.apply_all(&[subscribe(0, 4000), subscribe(4000, 96), subscribe(4000, 95), connect]);
    assert!(matches!(replies[0], MetaReply::Subscribed { .. }));
    assert_eq!(replies[1], MetaReply::Stale);
    assert!(matches!(replies[2], MetaReply::Subscribed { .. }));
    assert_eq!(replies[3], MetaReply::Stale, "nor a session");
    let state = fixture.view.read();
    assert_eq!(state.share_groups().count(), 4095);
    assert!(
        state
            .share_groups()
            .all(|(id, _)| id.0 / SessionId::PER_ENTRY == before + 1)
    );
}
