//! Shared subscriptions through the wire: strategies, credit, groups without members, members that go, what stays behind.
//!
//! Members are on all three nodes. [MQTT-4.8.2] The promise under churn and kills, P8, is `slow_shared`'s.

use crate::support::client::{Client, Gone};
use crate::support::cluster::{Cluster, http_get, shared};
use crate::support::codec::{
    self, Connect, Packet, Property, Publish, RECEIVE_MAXIMUM, SUBSCRIPTION_IDENTIFIER, Value, Version,
};
use crate::support::members::{Connection, Delivery, End, Fault, History, Sent, judge};
use crate::support::{SOON, START, eventually};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio::sync::MutexGuard;

// ---- strategies ----

#[tokio::test]
async fn round_robin_gives_each_member_the_same_and_each_node_too() {
    let (cluster, _alone) = with_strategy("round-robin").await;
    let before = assigned(&cluster).await;
    let mut members = members(&cluster, "robin", &[("$share/g/robin/#", 1)]).await;
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "robin-p").await;

    publisher.publish_all("robin/one", &payloads("one", 300), 20).await;
    let got = gather(&mut members, 300).await;
    for messages in &got {
        assert!((90..=110).contains(&messages.len()), "of one topic: {:?}", counts(&got));
    }
    in_order(&got);

    for topic in 0..60 {
        let payloads = payloads(&format!("many-{topic}"), 5);
        publisher.publish_all(&format!("robin/{topic}"), &payloads, 5).await;
    }
    let got = gather(&mut members, 300).await;
    for messages in &got {
        assert!(
            (80..=120).contains(&messages.len()),
            "of sixty topics: {:?}",
            counts(&got)
        );
    }
    nothing_more(&mut members).await;

    let after = assigned(&cluster).await;
    for node in cluster.ids() {
        let of = |assigned: &BTreeMap<u64, f64>| assigned.get(&node).copied().unwrap_or(0.0);
        let more = of(&after) - of(&before);
        assert!((170.0..=230.0).contains(&more), "assigned to node {node}: {more}");
    }
}

#[tokio::test]
async fn random_reaches_all() {
    let (cluster, _alone) = with_strategy("random").await;
    let mut members = members(&cluster, "random", &[("$share/g/random/#", 1)]).await;
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "random-p").await;
    publisher.publish_all("random/one", &payloads("r", 300), 20).await;
    let got = gather(&mut members, 300).await;
    for messages in &got {
        assert!((50..=150).contains(&messages.len()), "{:?}", counts(&got));
    }
    nothing_more(&mut members).await;
}

#[tokio::test]
async fn sticky_stays_with_one_member_until_it_goes() {
    let (cluster, _alone) = with_strategy("sticky").await;
    let mut members = members(&cluster, "sticky", &[("$share/g/sticky/#", 1)]).await;
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "sticky-p").await;
    for topic in 0..10 {
        let payloads = payloads(&format!("s{topic}"), 10);
        publisher.publish_all(&format!("sticky/{topic}"), &payloads, 5).await;
    }
    let got = gather(&mut members, 100).await;
    let chosen = only_one(&got);
    members.remove(chosen).disconnect().await;
    publisher.publish_all("sticky/0", &payloads("after", 50), 5).await;
    let got = gather(&mut members, 50).await;
    only_one(&got);
    nothing_more(&mut members).await;
}

#[tokio::test]
async fn local_prefers_the_publishers_node() {
    let (cluster, _alone) = with_strategy("local").await;
    let mut members = members(&cluster, "local", &[("$share/g/local/#", 1)]).await;
    for node in 0..3 {
        let mut publisher = Client::open(cluster.mqtt(node), Version::V5, &format!("local-p{node}")).await;
        for topic in 0..6 {
            let payloads = payloads(&format!("{node}-{topic}"), 5);
            publisher.publish_all(&format!("local/{topic}"), &payloads, 5).await;
        }
        let got = gather(&mut members, 30).await;
        assert_eq!(only_one(&got), node, "{:?}", counts(&got));
    }
    // Without one there, anybody.
    members.remove(0).disconnect().await;
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "local-again").await;
    publisher.publish_all("local/0", &payloads("again", 20), 5).await;
    gather(&mut members, 20).await;
    nothing_more(&mut members).await;
}

#[tokio::test]
async fn hash_of_client_id_keeps_a_publisher_with_one_member_wherever_it_connects() {
    let (cluster, _alone) = with_strategy("hash-client-id").await;
    let mut members = members(&cluster, "hash", &[("$share/g/hash/#", 1)]).await;
    let mut used = BTreeSet::new();
    for nth in 0..8 {
        let mut chosen = BTreeSet::new();
        for node in 0..3 {
            let mut publisher = Client::open(cluster.mqtt(node), Version::V5, &format!("hash-p{nth}")).await;
            for topic in 0..3 {
                let payloads = payloads(&format!("{nth}-{node}-{topic}"), 3);
                publisher.publish_all(&format!("hash/{topic}"), &payloads, 3).await;
            }
            let got = gather(&mut members, 9).await;
            chosen.insert(only_one(&got));
            publisher.disconnect().await;
        }
        assert_eq!(chosen.len(), 1, "publisher {nth} goes to {chosen:?}");
        used.extend(chosen);
    }
    assert!(used.len() > 1, "all publishers go to one member");
    nothing_more(&mut members).await;
}

#[tokio::test]
async fn hash_of_topic_keeps_a_topic_with_one_member_also_while_another_is_full() {
    let (cluster, _alone) = with_strategy("hash-topic").await;
    let mut members = members(&cluster, "hasht", &[("$share/g/hasht/#", 1)]).await;
    let mut publishers = Vec::new();
    for node in 0..3 {
        publishers.push(Client::open(cluster.mqtt(node), Version::V5, &format!("hasht-p{node}")).await);
    }
    let mut member_of = BTreeMap::new();
    for topic in 0..12 {
        for (node, publisher) in publishers.iter_mut().enumerate() {
            let payloads = payloads(&format!("{topic}-{node}"), 3);
            publisher.publish_all(&format!("hasht/{topic}"), &payloads, 3).await;
        }
        let got = gather(&mut members, 9).await;
        member_of.insert(topic, only_one(&got));
    }
    let used: BTreeSet<usize> = member_of.values().copied().collect();
    assert!(used.len() > 1, "all topics go to member {used:?}");

    // A member that is full has its messages wait, and nobody else's go elsewhere.
    let with_maximum = member_of
        .iter()
        .find(|(_, member)| members[**member].version == Version::V5);
    let (topic, full) = with_maximum
        .map(|(topic, member)| (*topic, *member))
        .expect("one of them has a topic");
    members[full].auto_acknowledge = false;
    let many = payloads("full", usize::from(RECEIVE_MAX) + 5);
    publishers[0].publish_all(&format!("hasht/{topic}"), &many, 5).await;
    let held = gather(&mut members, usize::from(RECEIVE_MAX)).await;
    assert_eq!(only_one(&held), full);
    for (topic, member) in member_of.iter().filter(|(_, member)| **member != full) {
        publishers[1]
            .publish_all(&format!("hasht/{topic}"), &payloads(&format!("then-{topic}"), 3), 3)
            .await;
        let got = gather(&mut members, 3).await;
        assert_eq!(only_one(&got), *member, "topic {topic} while member {full} is full");
    }
    members[full].auto_acknowledge = true;
    acknowledge(&mut members[full], &held[full]).await;
    let rest = gather(&mut members, 5).await;
    assert_eq!(only_one(&rest), full);
    nothing_more(&mut members).await;
}

#[tokio::test]
async fn least_loaded_avoids_a_member_that_is_stuck() {
    let (cluster, _alone) = with_strategy("least-loaded").await;
    let mut members = members(&cluster, "least", &[("$share/g/least/#", 1)]).await;
    members[0].auto_acknowledge = false;
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "least-p").await;
    let mut stuck = 0;
    for n in 0..90 {
        publisher.publish(&format!("least/{}", n % 5), format!("{n}"), 1).await;
        stuck += gather(&mut members, 1).await[0].len();
    }
    assert!(stuck <= 5, "the stuck member got {stuck} of 90");
    nothing_more(&mut members).await;
}

// ---- credit ----

#[tokio::test]
async fn a_member_that_does_not_acknowledge_holds_its_receive_maximum_and_the_others_get_the_rest() {
    let cluster = shared();
    let filter = [("$share/g/credit/#", 1)];
    let one = Connect::clean(Version::V5, "credit-stuck").property(RECEIVE_MAXIMUM, Value::Two(1));
    let mut members = vec![Client::connect(cluster.mqtt(0), &one).await.0];
    for node in 1..3 {
        let connect = Connect::persistent(Version::V5, &format!("credit-{node}"));
        members.push(Client::connect(cluster.mqtt(node), &connect).await.0);
    }
    members[0].auto_acknowledge = false;
    for member in &mut members {
        member.subscribe(&filter).await;
    }
    let mut publisher = Client::open(cluster.mqtt(1), Version::V5, "credit-p").await;
    for topic in 0..10 {
        let payloads = payloads(&format!("c{topic}"), 10);
        publisher.publish_all(&format!("credit/{topic}"), &payloads, 10).await;
    }
    let held = gather(&mut members, 100).await;
    assert_eq!(held[0].len(), 1, "{:?}", counts(&held));
    nothing_more(&mut members).await;

    // With its acknowledgement it has room again.
    members[0].auto_acknowledge = true;
    acknowledge(&mut members[0], &held[0]).await;
    let started = Instant::now();
    for n in 0.. {
        publisher.publish("credit/0", format!("more-{n}"), 1).await;
        if !gather(&mut members, 1).await[0].is_empty() {
            break;
        }
        assert!(started.elapsed() < SOON, "it gets nothing any more");
    }
    for member in members {
        member.disconnect().await;
    }
}

#[tokio::test]
async fn a_durable_member_that_does_not_read_does_not_hoard() {
    let cluster = shared();
    let connect = Connect::persistent(Version::V311, "hoard-stuck");
    let mut stuck = Client::open_with_small_buffer(cluster.mqtt(0), &connect).await;
    stuck.subscribe(&[("$share/g/hoard/#", 1)]).await;
    let mut members = members(cluster, "hoard", &[("$share/g/hoard/#", 1)]).await;
    let mut publisher = Client::open(cluster.mqtt(1), Version::V5, "hoard-p").await;
    let (mut published, mut got) = (0, 0);
    // 3.1.1 knows no Receive Maximum; what the socket and the node hold for it is bounded by bytes.
    while published < 3_000 {
        let payloads: Vec<Vec<u8>> = (0..100).map(|_| vec![b'x'; 4_000]).collect();
        publisher
            .publish_all(&format!("hoard/{}", published % 7), &payloads, 50)
            .await;
        published += payloads.len();
        got += counts(&gather_some(&mut members).await).iter().sum::<usize>();
    }
    let waiting = "what is not the stuck member's is delivered";
    let started = Instant::now();
    while got < published * 2 / 3 {
        got += counts(&gather_some(&mut members).await).iter().sum::<usize>();
        assert!(started.elapsed() < START, "{waiting}: {got} of {published}");
    }
    // Cut off, it gives back what it had.
    drop(stuck);
    while got < published {
        got += counts(&gather_some(&mut members).await).iter().sum::<usize>();
        assert!(started.elapsed() < START, "after it was cut: {got} of {published}");
    }
    assert_eq!(got, published, "each once");
    nothing_more(&mut members).await;
}

// ---- what a group is ----

#[tokio::test]
async fn groups_and_subscriptions_beside_each_other_each_get_each_message() {
    let cluster = shared();
    // Two groups on one filter, one on an overlapping filter, a group of the same name on another filter, each with one
    // member on every node; a member that has an ordinary subscription too; and one member of two groups.
    let filters = [
        "$share/a/beside/+/x",
        "$share/b/beside/+/x",
        "$share/a/beside/#",
        "$share/c/+/0/x",
    ];
    let mut groups = Vec::new();
    for (nth, filter) in filters.iter().enumerate() {
        groups.push(members(cluster, &format!("beside-{nth}"), &[(filter, 1)]).await);
    }
    let mut both = Client::open(cluster.mqtt(1), Version::V311, "beside-both").await;
    both.subscribe(&[("beside/#", 1), ("$share/own/beside/#", 1)]).await;
    let mut two = Client::open(cluster.mqtt(2), Version::V5, "beside-two").await;
    two.subscribe(&[("$share/e/beside/#", 1), ("$share/f/beside/+/x", 2)])
        .await;
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "beside-p").await;
    for topic in 0..30 {
        publish(
            &mut publisher,
            &format!("beside/{topic}/x"),
            &format!("{topic}"),
            1 + topic % 2,
        )
        .await;
    }
    for (nth, expected) in [30, 30, 30, 1].into_iter().enumerate() {
        let got = gather(&mut groups[nth], expected).await;
        in_order(&got);
        nothing_more(&mut groups[nth]).await;
    }
    let mut single = [both, two];
    let got = gather(&mut single, 120).await;
    assert_eq!(counts(&got), [60, 60], "each of its subscriptions delivers");
    for messages in &got {
        let mut times = BTreeMap::<String, usize>::new();
        for message in messages {
            *times.entry(message.text()).or_default() += 1;
        }
        assert!(times.values().all(|times| *times == 2), "{times:?}");
    }
    nothing_more(&mut single).await;
}

#[tokio::test]
async fn qos_and_identifier_are_those_of_the_member() {
    let cluster = shared();
    for (version, member_qos) in [
        (Version::V311, 0),
        (Version::V5, 0),
        (Version::V5, 1),
        (Version::V311, 2),
        (Version::V5, 2),
    ] {
        let name = format!("granted-{version:?}-{member_qos}");
        let mut member = Client::open(cluster.mqtt(1), version, &name).await;
        let (filter, identifier) = (format!("$share/g/{name}/+"), 77 + u32::from(member_qos));
        let pid = member.next_pid();
        let properties = [Property(SUBSCRIPTION_IDENTIFIER, Value::Var(identifier))];
        let properties = if version == Version::V5 { &properties[..] } else { &[] };
        let subscribe = codec::subscribe_with(version, pid, properties, &[(&filter, member_qos)]);
        member.send(&subscribe).await.expect("SUBSCRIBE");
        member
            .wait_for("SUBACK", |packet| match packet {
                Packet::Suback { codes, .. } if *codes == [member_qos] => Some(()),
                _ => None,
            })
            .await;
        let mut publisher = Client::open(cluster.mqtt(2), Version::V5, &format!("{name}-p")).await;
        for qos in [0, 1, 2] {
            publish(&mut publisher, &format!("{name}/t"), &format!("at {qos}"), qos).await;
            let message = member.message().await;
            assert_eq!(
                (message.text(), message.qos),
                (format!("at {qos}"), qos.min(member_qos)),
                "{name}"
            );
            let found = message
                .properties
                .iter()
                .find(|property| property.0 == SUBSCRIPTION_IDENTIFIER);
            let expected = (version == Version::V5).then_some(Value::Var(identifier));
            assert_eq!(found.map(|property| property.1.clone()), expected, "{name}");
            assert!(!message.retain && !message.dup, "{message:?}");
        }
    }
}

#[tokio::test]
async fn a_qos_0_message_goes_to_one_connected_member_on_any_node() {
    let cluster = shared();
    let mut members = members(cluster, "zero", &[("$share/g/zero/#", 1)]).await;
    let away = Connect::persistent(Version::V5, "zero-away");
    let (mut gone, _) = Client::connect(cluster.mqtt(0), &away).await;
    gone.subscribe(&[("$share/g/zero/#", 1)]).await;
    gone.disconnect().await;
    let mut each = vec![0; members.len()];
    for node in 0..3 {
        let mut publisher = Client::open(cluster.mqtt(node), Version::V5, &format!("zero-p{node}")).await;
        for n in 0..40 {
            publisher.publish(&format!("zero/{n}"), format!("{node}-{n}"), 0).await;
        }
        let got = gather(&mut members, 40).await;
        in_order(&got);
        each.iter_mut().zip(counts(&got)).for_each(|(sum, count)| *sum += count);
    }
    assert!(each.iter().all(|count| *count >= 10), "{each:?} of 120");
    nothing_more(&mut members).await;
}

#[tokio::test]
async fn two_members_take_turns_at_qos_0() {
    let cluster = shared();
    let mut members = Vec::new();
    for node in 0..2 {
        let mut member = Client::open(cluster.mqtt(node), Version::V5, &format!("turns-{node}")).await;
        member.subscribe(&[("$share/g/turns/#", 0)]).await;
        members.push(member);
    }
    let mut publisher = Client::open(cluster.mqtt(2), Version::V5, "turns-p").await;
    for n in 0..40 {
        publisher.publish("turns/x", format!("{n}"), 0).await;
    }
    let got = gather(&mut members, 40).await;
    assert_eq!(counts(&got), [20, 20]);
}

/// What a shard keeps for some and a group takes at QoS 0 goes two ways; an ordinary subscriber hears of it one way.
#[tokio::test]
async fn who_subscribes_beside_a_qos_0_group_gets_a_durable_message_once() {
    let cluster = shared();
    let mut subscribers = Vec::new();
    for node in 0..3 {
        let mut subscriber = Client::open(cluster.mqtt(node), Version::V5, &format!("once-{node}")).await;
        subscriber.subscribe(&[("once/#", 2)]).await;
        subscribers.push(subscriber);
    }
    let connect = Connect::persistent(Version::V5, "once-durable");
    let (mut durable, _) = Client::connect(cluster.mqtt(1), &connect).await;
    durable.subscribe(&[("once/#", 2)]).await;
    subscribers.push(durable);
    let mut members = members(cluster, "once-member", &[("$share/g/once/#", 0)]).await;
    for node in 0..3 {
        let mut publisher = Client::open(cluster.mqtt(node), Version::V5, &format!("once-p{node}")).await;
        for n in 0..12 {
            publish(&mut publisher, &format!("once/{n}"), &format!("{node}-{n}"), n % 3).await;
        }
    }
    in_order(&gather(&mut members, 36).await);
    let got = gather(&mut subscribers, 4 * 36).await;
    assert_eq!(counts(&got), [36, 36, 36, 36]);
    nothing_more(&mut subscribers).await;
    nothing_more(&mut members).await;
}

#[tokio::test]
async fn after_unsubscribe_the_others_get_everything_and_no_local_is_refused() {
    let cluster = shared();
    let mut members = members(cluster, "leave", &[("$share/g/leave/#", 2)]).await;
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "leave-p").await;
    publisher.publish_all("leave/1", &payloads("before", 30), 10).await;
    let got = gather(&mut members, 30).await;
    assert!(!got[0].is_empty(), "{:?}", counts(&got));
    assert_eq!(members[0].unsubscribe(&["$share/g/leave/#"]).await, [0x00]);
    assert_eq!(
        members[0].unsubscribe(&["$share/g/leave/#", "leave/#"]).await,
        [0x11, 0x11]
    );
    publisher.publish_all("leave/1", &payloads("after", 30), 10).await;
    let got = gather(&mut members, 30).await;
    assert!(got[0].is_empty(), "{:?}", counts(&got));
    nothing_more(&mut members).await;

    let pid = members[0].next_pid();
    let no_local = codec::subscribe(Version::V5, pid, &[("$share/g/leave/#", 1 | 4)]);
    members[0].send(&no_local).await.expect("SUBSCRIBE");
    let (code, _) = members[0].closed_by_server(SOON).await;
    assert_eq!(code, Some(0x82), "[MQTT-3.8.3-4]");
}

// ---- members that go ----

#[tokio::test]
async fn what_a_member_did_not_acknowledge_goes_to_another_when_it_goes() {
    let cluster = shared();
    for (nth, way) in ["cut", "disconnect", "durable cut", "durable disconnect", "taken over"]
        .into_iter()
        .enumerate()
    {
        let (name, topic) = (format!("goes-{nth}"), format!("goes/{nth}"));
        let filter = format!("$share/g/{topic}");
        let connect = match way {
            "cut" | "disconnect" => Connect::clean(Version::V5, &name),
            _ => Connect::persistent(Version::V5, &name),
        };
        let connect = connect.property(RECEIVE_MAXIMUM, Value::Two(10));
        let (mut first, _) = Client::connect(cluster.mqtt(0), &connect).await;
        first.subscribe(&[(&filter, 1)]).await;
        first.auto_acknowledge = false;
        let mut publisher = Client::open(cluster.mqtt(2), Version::V5, &format!("{name}-p")).await;
        publisher.publish_all(&topic, &payloads(way, 10), 10).await;
        let mut first = vec![first];
        assert_eq!(counts(&gather(&mut first, 10).await), [10]);
        let mut second = vec![Client::open(cluster.mqtt(1), Version::V311, &format!("{name}-second")).await];
        second[0].subscribe(&[(&filter, 1)]).await;
        nothing_more(&mut second).await;

        let first = first.remove(0);
        match way {
            "cut" | "durable cut" => drop(first),
            "taken over" => {
                let (again, connack) = Client::connect(cluster.mqtt(2), &connect).await;
                assert!(matches!(
                    connack,
                    Packet::Connack {
                        session_present: true,
                        ..
                    }
                ));
                second.push(again);
            }
            _ => first.disconnect().await,
        }
        let got = gather(&mut second, 10).await;
        in_order(&got);
        let texts: BTreeSet<String> = got.iter().flatten().map(Publish::text).collect();
        assert_eq!(texts.len(), 10, "{way}: {texts:?}");
        nothing_more(&mut second).await;
    }
}

#[tokio::test]
async fn what_a_member_acknowledged_goes_to_nobody_else() {
    let cluster = shared();
    let (topic, filter) = ("sure/x", "$share/g/sure/x");
    // The group stays while the others come and go; this one connects only at the end.
    let last = Connect::persistent(Version::V5, "sure-last");
    let (mut member, _) = Client::connect(cluster.mqtt(1), &last).await;
    member.subscribe(&[(filter, 1)]).await;
    member.disconnect().await;
    let mut publisher = Client::open(cluster.mqtt(2), Version::V5, "sure-p").await;
    let mut seen = Vec::new();
    for round in 0..20 {
        let name = format!("sure-{round}");
        let connect = match round % 2 {
            0 => Connect::clean(Version::V5, &name),
            _ => Connect::persistent(Version::V5, &name),
        };
        let mut member = vec![Client::connect(cluster.mqtt(round % 3), &connect).await.0];
        member[0].subscribe(&[(filter, 1)]).await;
        publisher.publish_all(topic, &payloads(&name, 10), 10).await;
        seen.extend(gather(&mut member, 10).await);
        // It has read what it was sent before it answers this.
        member[0].ping().await;
        match round % 4 {
            0 => drop(member.remove(0)),
            3 => {
                // At once elsewhere: the acknowledgements may still be on their way.
                let mut again = vec![Client::connect(cluster.mqtt((round + 1) % 3), &connect).await.0];
                drop(member.remove(0));
                nothing_more(&mut again).await;
                again.remove(0).disconnect().await;
            }
            _ => member.remove(0).disconnect().await,
        }
    }
    in_order(&seen);
    let (mut member, _) = Client::connect(cluster.mqtt(0), &last).await;
    match member.packet_within(GIVEN_AWAY_WITHIN).await {
        Err(Gone::Silent(_)) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn qos_2_stays_with_the_session_that_has_it() {
    let cluster = shared();
    let (topic, filter) = ("stays/x", "$share/g/stays/x");
    let connect = Connect::persistent(Version::V5, "stays");
    let (mut first, _) = Client::connect(cluster.mqtt(0), &connect).await;
    first.subscribe(&[(filter, 2)]).await;
    first.auto_acknowledge = false;
    let mut publisher = Client::open(cluster.mqtt(2), Version::V5, "stays-p").await;
    for n in 0..6 {
        publisher.publish_exactly_once(topic, format!("{n}")).await;
    }
    let mut first = vec![first];
    let sent = gather(&mut first, 6).await.remove(0);
    let mut first = first.remove(0);
    // One is received, and not released; one is over.
    first.send(&codec::pubrec(sent[0].pid)).await.expect("PUBREC");
    first.pubrel_of(sent[0].pid).await;
    first.complete(sent[1].pid).await;
    first.ping().await;
    let mut second = Client::open(cluster.mqtt(1), Version::V5, "stays-second").await;
    second.subscribe(&[(filter, 2)]).await;
    drop(first);
    match second.packet_within(GIVEN_AWAY_WITHIN).await {
        Err(Gone::Silent(_)) => {}
        other => panic!("a second member: {other:?}"),
    }
    let (mut again, connack) = Client::connect(cluster.mqtt(2), &connect).await;
    assert!(matches!(
        connack,
        Packet::Connack {
            session_present: true,
            ..
        }
    ));
    let (mut resent, mut released) = (Vec::new(), Vec::new());
    while resent.len() < 4 || released.is_empty() {
        match again.packet_within(SOON).await {
            Ok(Packet::Publish(publish)) => {
                assert!(publish.dup, "{publish:?}");
                resent.push((publish.text(), publish.pid));
                again.send(&codec::pubrec(publish.pid)).await.expect("PUBREC");
            }
            Ok(Packet::Pubrel { pid, .. }) => {
                released.push(pid);
                again.send(&codec::pubcomp(pid)).await.expect("PUBCOMP");
            }
            other => panic!("{other:?}, after {resent:?} and {released:?}"),
        }
    }
    let expected: Vec<(String, u16)> = sent[2..].iter().map(|publish| (publish.text(), publish.pid)).collect();
    assert_eq!(resent, expected, "the same messages under the same identifiers");
    assert_eq!(released[0], sent[0].pid);
    again.disconnect().await;
}

// ---- groups without members, and without subscriptions ----

#[tokio::test]
async fn a_group_without_a_connected_member_queues_also_when_all_nodes_are_killed() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let connect = Connect::persistent(Version::V5, "queue-owner");
    let (mut owner, _) = Client::connect(cluster.mqtt(0), &connect).await;
    owner.subscribe(&[("$share/q/queue/#", 2)]).await;
    owner.disconnect().await;
    for node in 0..3 {
        let mut publisher = Client::open(cluster.mqtt(node), Version::V5, &format!("queue-p{node}")).await;
        for n in 0..20 {
            let (topic, payload) = (format!("queue/{}", n % 7), format!("{node}-{n}"));
            publish(&mut publisher, &topic, &payload, 1 + n % 2).await;
        }
    }
    lag(&cluster, 60).await;
    cluster.kill_all(&cluster.ids()).await;
    for id in cluster.ids() {
        cluster.start_node(id);
    }
    cluster.wait_all_ready().await;
    lag(&cluster, 60).await;
    let mut member = vec![Client::open(cluster.mqtt(1), Version::V311, "queue-member").await];
    member[0].subscribe(&[("$share/q/queue/#", 2)]).await;
    let got = gather(&mut member, 60).await;
    in_order(&got);
    let texts: BTreeSet<String> = got[0].iter().map(Publish::text).collect();
    assert_eq!(texts.len(), 60);
    nothing_more(&mut member).await;
    lag(&cluster, 0).await;
    cluster.assert_no_panic();
}

#[tokio::test]
async fn a_group_ends_with_its_last_subscription_and_leaves_no_key() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "end-p").await;
    publisher.publish("nobody", "x", 1).await;
    let before = rows(&cluster).await;

    let five = |connect: Connect| connect.property(RECEIVE_MAXIMUM, Value::Two(5));
    let durable = five(Connect::persistent(Version::V5, "end-durable"));
    let (mut first, _) = Client::connect(cluster.mqtt(1), &durable).await;
    let (mut second, _) = Client::connect(cluster.mqtt(2), &five(Connect::clean(Version::V5, "end-clean"))).await;
    (first.auto_acknowledge, second.auto_acknowledge) = (false, false);
    for member in [&mut first, &mut second] {
        member.subscribe(&[("$share/e/end/#", 2), ("$share/f/end/+", 1)]).await;
    }
    // Its session has rows of its own, for QoS 2.
    let mut passing = Client::open(cluster.mqtt(1), Version::V5, "end-p2").await;
    for n in 0..40 {
        publish(&mut passing, &format!("end/{n}"), &format!("{n}"), 1 + n % 2).await;
    }
    let mut members = vec![first, second];
    assert_eq!(counts(&gather(&mut members, 10).await), [5, 5]);
    passing.disconnect().await;
    lag(&cluster, 70).await;
    let during = rows(&cluster).await;
    assert!(during.contains_key("pending") && during != before, "{during:?}");

    // One leaves its groups; the other's connection ends, and with it its session; then the first's session ends.
    let mut second = members.pop().expect("two");
    let mut first = members.pop().expect("two");
    first.unsubscribe(&["$share/e/end/#"]).await;
    first.unsubscribe(&["$share/f/end/+"]).await;
    drop(first);
    second.unsubscribe(&["$share/e/end/#"]).await;
    drop(second);
    let (again, _) = Client::connect(cluster.mqtt(0), &Connect::clean(Version::V5, "end-durable")).await;
    again.disconnect().await;
    let started = Instant::now();
    loop {
        let now = rows(&cluster).await;
        if now == before {
            break;
        }
        assert!(started.elapsed() < SOON * 2, "left: {now:?}, of {before:?}");
        tokio::time::sleep(MOMENT).await;
    }
    lag(&cluster, 0).await;

    // A group of the same name and filter is another one: it has nothing of the first.
    let mut fresh = vec![Client::open(cluster.mqtt(0), Version::V5, "end-fresh").await];
    fresh[0].subscribe(&[("$share/e/end/#", 2)]).await;
    nothing_more(&mut fresh).await;
    publisher.publish("end/1", "new", 1).await;
    assert_eq!(gather(&mut fresh, 1).await[0][0].text(), "new");
    cluster.assert_no_panic();
}

// ---- the judge of `slow_shared` ----

/// A history without a fault, and each way to break it: the judge must find exactly that. (P8)
#[test]
fn the_judge_finds_what_p8_forbids_and_nothing_else() {
    let at = Duration::from_secs;
    let connection = |group, durable, ended: Option<u64>| Connection {
        group,
        durable,
        node: 0,
        ended: ended.map(|second| (at(second), End::Cut)),
        heard: at(9),
        withheld: false,
    };
    let sent = |qos, sends| Sent {
        qos,
        sends,
        acknowledged: true,
    };
    let delivery = |group, member, connection, payload: &str, qos, second, answered: Option<u64>| Delivery {
        group,
        member,
        connection,
        payload: payload.into(),
        qos,
        at: at(second),
        answered: answered.map(at),
    };
    let mut good = History::default();
    good.messages.insert("one".into(), sent(1, 1));
    good.messages.insert("two".into(), sent(2, 1));
    good.connections = vec![
        connection(0, true, Some(10)),
        connection(0, true, None),
        connection(1, false, Some(10)),
        connection(1, true, None),
        connection(2, false, Some(10)),
    ];
    good.deliveries = vec![
        // Not answered by the first, which went: the second gets it.
        delivery(0, 0, 0, "one", 1, 5, None),
        delivery(0, 1, 1, "one", 1, 12, Some(12)),
        delivery(0, 1, 1, "two", 2, 5, Some(5)),
        // Answered, but nothing was heard after that.
        delivery(1, 2, 2, "one", 1, 9, Some(9)),
        delivery(1, 3, 3, "one", 1, 12, Some(12)),
        delivery(1, 3, 3, "two", 1, 6, Some(6)),
        delivery(2, 4, 4, "one", 1, 6, Some(6)),
        // "two" was lost with the session of its member.
    ];
    let judged = |change: &dyn Fn(&mut History), faults: &[Fault]| {
        let mut history = History {
            messages: good.messages.clone(),
            deliveries: good.deliveries.clone(),
            connections: good.connections.clone(),
            misbehaved: Vec::new(),
        };
        change(&mut history);
        judge("planted", &history, faults)
    };
    let fault = [Fault {
        from: at(8),
        until: at(9),
    }];
    let none: Vec<String> = Vec::new();
    assert_eq!(judged(&|_| {}, &[]), none);
    type Change<'a> = &'a dyn Fn(&mut History);
    let forbidden: [(&str, Change); 8] = [
        ("never reached", &|history| history.deliveries[1].answered = None),
        ("are missing", &|history| drop(history.deliveries.remove(2))),
        ("never reached", &|history| drop(history.deliveries.remove(5))),
        ("QoS 2, 2 deliveries", &|history| {
            history.deliveries.push(delivery(0, 0, 0, "two", 2, 8, None));
        }),
        ("open until", &|history| history.deliveries[1].at = at(7)),
        ("is open", &|history| history.connections[0].ended = None),
        ("surely processed", &|history| {
            history.deliveries[0].answered = Some(at(6))
        }),
        ("never published", &|history| {
            history.deliveries[0].payload = "three".into()
        }),
    ];
    for (what, change) in forbidden {
        let found = judged(change, &[]);
        assert!(
            found.iter().any(|violation| violation.contains(what)),
            "{what}: {found:?}"
        );
    }
    // A node that was killed may have taken an acknowledgement with it; and what was published again may be there twice.
    assert_eq!(
        judged(&|history| history.deliveries[0].answered = Some(at(6)), &fault),
        none
    );
    let again = |history: &mut History| {
        history.messages.insert("one".into(), sent(1, 2));
        history.connections[0].ended = None;
    };
    assert_eq!(judged(&again, &[]), none);
}

// ---- helpers ----

async fn with_strategy(strategy: &str) -> (Cluster, MutexGuard<'static, ()>) {
    let alone = crate::support::alone().await;
    let directory = tempfile::Builder::new().prefix("lontra-wire-").tempdir();
    let directory = directory.expect("a directory").keep();
    let cluster = Cluster::start_in(directory, 3, &[("LONTRA__SHARED__STRATEGY", strategy)]).await;
    (cluster, alone)
}

/// One on every node, the second one of 3.1.1; the others take [`RECEIVE_MAX`] at a time.
async fn members(cluster: &Cluster, name: &str, filters: &[(&str, u8)]) -> Vec<Client> {
    let mut members = Vec::new();
    for node in 0..3 {
        let version = if node == 1 { Version::V311 } else { Version::V5 };
        let connect = Connect::clean(version, &format!("{name}-{node}"));
        let connect = match version {
            Version::V5 => connect.property(RECEIVE_MAXIMUM, Value::Two(RECEIVE_MAX)),
            Version::V311 => connect,
        };
        let (mut member, _) = Client::connect(cluster.mqtt(node), &connect).await;
        member.subscribe(filters).await;
        members.push(member);
    }
    members
}

async fn publish(publisher: &mut Client, topic: &str, payload: &str, qos: u8) {
    match qos {
        2 => drop(publisher.publish_exactly_once(topic, payload).await),
        _ => publisher.publish(topic, payload, qos).await,
    }
}

fn payloads(tag: &str, count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|n| format!("{tag} {n:04}").into_bytes()).collect()
}

/// Takes what comes to the members until it is `count` messages in all. Those with `auto_acknowledge` answer.
async fn gather(members: &mut [Client], count: usize) -> Vec<Vec<Publish>> {
    let mut got: Vec<Vec<Publish>> = vec![Vec::new(); members.len()];
    let started = Instant::now();
    while got.iter().map(Vec::len).sum::<usize>() < count {
        assert!(started.elapsed() < SOON * 2, "{:?} of {count}", counts(&got));
        for (sum, more) in got.iter_mut().zip(gather_some(members).await) {
            sum.extend(more);
        }
    }
    assert_eq!(got.iter().map(Vec::len).sum::<usize>(), count, "{:?}", counts(&got));
    got
}

/// What comes within a moment.
async fn gather_some(members: &mut [Client]) -> Vec<Vec<Publish>> {
    let mut got: Vec<Vec<Publish>> = vec![Vec::new(); members.len()];
    for (member, got) in members.iter_mut().zip(&mut got) {
        loop {
            match member.packet_within(MOMENT).await {
                Ok(Packet::Publish(publish)) => {
                    if member.auto_acknowledge {
                        acknowledge(member, std::slice::from_ref(&publish)).await;
                    }
                    got.push(publish);
                }
                Ok(Packet::Pubrel { pid, .. }) => member.send(&codec::pubcomp(pid)).await.expect("PUBCOMP"),
                Err(Gone::Silent(_)) => break,
                other => panic!("{}: {other:?}", member.client_id),
            }
        }
    }
    got
}

async fn acknowledge(member: &mut Client, messages: &[Publish]) {
    for message in messages {
        let answer = match message.qos {
            0 => continue,
            1 => codec::puback(message.pid),
            _ => codec::pubrec(message.pid),
        };
        member.send(&answer).await.expect("an acknowledgement");
    }
}

/// A round trip brings no further message to anybody.
async fn nothing_more(members: &mut [Client]) {
    for member in members.iter_mut() {
        member.ping().await;
    }
    let more = gather_some(members).await;
    assert!(more.iter().all(Vec::is_empty), "{more:?}");
}

fn counts(got: &[Vec<Publish>]) -> Vec<usize> {
    got.iter().map(Vec::len).collect()
}

/// The one member that got everything.
fn only_one(got: &[Vec<Publish>]) -> usize {
    let some: Vec<usize> = (0..got.len()).filter(|at| !got[*at].is_empty()).collect();
    assert_eq!(some.len(), 1, "{:?}", counts(got));
    some[0]
}

/// No message came twice; what one member got of a topic from one publisher came in order.
fn in_order(got: &[Vec<Publish>]) {
    let mut seen = BTreeSet::new();
    for messages in got {
        let mut last = BTreeMap::<(String, u8), String>::new();
        for message in messages {
            assert!(seen.insert(message.text()), "{} came twice", message.text());
            let text = message.text();
            if let Some((tag, _)) = text.split_once(' ') {
                let before = last.insert((format!("{} {tag}", message.topic), message.qos), text.clone());
                assert!(before.is_none_or(|before| before < text), "{text} is out of order");
            }
        }
    }
}

/// `lontra_shared_assigned_total` by the member's node, as all nodes count it.
async fn assigned(cluster: &Cluster) -> BTreeMap<u64, f64> {
    let metrics = cluster.all_metrics().await;
    let of = |node: &u64| metrics.sum_where("lontra_shared_assigned_total", &format!("node=\"{node}\""));
    cluster.ids().iter().map(|node| (*node, of(node))).collect()
}

/// Waits until as many messages wait in all groups as the metric says.
async fn lag(cluster: &Cluster, messages: usize) {
    eventually(&format!("{messages} messages wait"), START, || async {
        let metrics = cluster.all_metrics().await;
        (metrics.sum("lontra_shared_waiting_messages") as usize == messages).then_some(())
    })
    .await;
}

/// Keys by kind over all groups and nodes, but for those that stay however little there is to keep.
async fn rows(cluster: &Cluster) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::<String, u64>::new();
    let shards = (0..SHARDS).map(|shard| format!("shard-{shard}"));
    for group in std::iter::once("meta".to_owned()).chain(shards) {
        for node in &cluster.nodes {
            let path = format!("/api/v1/groups/{group}/keys");
            let (code, body) = http_get(&node.http, &path).await.expect("keys of a group");
            assert_eq!(code, 200, "{path}: {body}");
            let answer: serde_json::Value = serde_json::from_str(&body).expect("JSON");
            for (kind, count) in answer["kinds"].as_object().expect("kinds") {
                *all.entry(kind.clone()).or_default() += count.as_u64().expect("a count");
            }
        }
    }
    for stays in ["meta_head", "node", "sender", "shard_head"] {
        all.remove(stays);
    }
    all
}

const RECEIVE_MAX: u16 = 100;
const MOMENT: Duration = Duration::from_millis(10);
/// What a member leaves is another's within this.
const GIVEN_AWAY_WITHIN: Duration = Duration::from_secs(5);
/// The default of `cluster.shards`.
const SHARDS: usize = 12;
