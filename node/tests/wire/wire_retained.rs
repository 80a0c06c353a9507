//! Retained messages through the wire, on three real nodes: publishers and subscribers always on different ones.
//!
//! What must not come is told by fences: retained messages in every shard, asked for after the subscription in question;
//! when all of them are there, so is what was asked for before.

use crate::support::client::Client;
use crate::support::cluster::{Cluster, shared};
use crate::support::codec::{
    Connect, MESSAGE_EXPIRY_INTERVAL, Packet, Property, Publish, RECEIVE_MAXIMUM, VERSIONS, Value, Version,
};
use crate::support::random::Random;
use crate::support::register::{self, Outcome, Read, Register, Write};
use crate::support::{SOON, START, eventually};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;

// ---- what a new subscription gets ----

#[tokio::test]
async fn every_qos_reaches_every_subscription_as_granted() {
    // [MQTT-3.3.1-8] [MQTT-3.8.4-8]: RETAIN is set, QoS is the lower of both; exact and by wildcard.
    let cluster = shared();
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "qos-p").await;
    for published in 0..=2 {
        publisher
            .retain(&format!("qos/{published}"), format!("at {published}"), published)
            .await;
    }
    // Nobody is told when QoS 0 is stored.
    reads(cluster.mqtt(1), "qos/0", "at 0").await;
    let mut index = 0;
    for kind in KINDS {
        for granted in 0..=2 {
            for filter in ["qos/+", "qos/#", "exact"] {
                index += 1;
                let mut subscriber = kind.open(cluster.mqtt(index % 3), &format!("qos-s{index}")).await;
                if filter == "exact" {
                    let filters = [("qos/0", granted), ("qos/1", granted), ("qos/2", granted)];
                    subscriber.subscribe(&filters).await;
                } else {
                    subscriber.subscribe(&[(filter, granted)]).await;
                }
                let mut got = BTreeMap::new();
                for _ in 0..3 {
                    let message = subscriber.message().await;
                    assert!(
                        message.retain && !message.dup,
                        "{kind:?} {granted} {filter}: {message:?}"
                    );
                    got.insert(message.topic.clone(), (message.text(), message.qos));
                }
                let expected = (0..=2u8).map(|qos| (format!("qos/{qos}"), (format!("at {qos}"), qos.min(granted))));
                assert_eq!(got, expected.collect(), "{kind:?} {granted} {filter}");
                assert_eq!(subscriber.leftover().await, vec![], "{kind:?} {granted} {filter}: once");
                subscriber.end().await;
            }
        }
    }
}

#[tokio::test]
async fn retain_handling_decides_what_a_repeated_subscription_gets() {
    let cluster = shared();
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "handling-p").await;
    publisher.retain("handling/a", "kept", 1).await;
    for (index, kind) in KINDS.into_iter().enumerate() {
        for qos in 0..=2 {
            for filter in ["handling/a", "handling/#"] {
                let mut client = kind.open(cluster.mqtt(1 + index), &format!("handling-{qos}")).await;
                // (options, whether the retained message comes), one SUBSCRIBE after the other. [MQTT-3.3.1-9] ff.
                let steps = [
                    (HANDLING_2, false),
                    (HANDLING_0, true),
                    (HANDLING_0, true),
                    (HANDLING_1, false),
                    (HANDLING_2, false),
                ];
                for (step, (handling, comes)) in steps.into_iter().enumerate() {
                    client.subscribe(&[(filter, qos | handling)]).await;
                    client
                        .gets(comes, &format!("{kind:?} {qos} {filter} step {step}"))
                        .await;
                }
                // A subscription that is new again.
                assert_eq!(client.unsubscribe(&[filter]).await, [0x00]);
                client.subscribe(&[(filter, qos | HANDLING_1)]).await;
                client.gets(true, &format!("{kind:?} {qos} {filter}: new again")).await;
                client.end().await;
            }
        }
    }
    // 3.1.1 knows no Retain Handling: each SUBSCRIBE brings it. [v3 MQTT-3.8.4-3]
    let mut client = Client::open(cluster.mqtt(2), Version::V311, "handling-v3").await;
    for step in 0..2 {
        client.subscribe(&[("handling/a", 1)]).await;
        client.gets(true, &format!("3.1.1 step {step}")).await;
    }
}

#[tokio::test]
async fn a_resumed_session_is_not_sent_them_again() {
    let cluster = shared();
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "resumed-p").await;
    publisher.retain("resumed/a", "kept", 1).await;
    let mut client = Kind::Durable.open(cluster.mqtt(1), "resumed-s").await;
    client.subscribe(&[("resumed/#", 1)]).await;
    client.gets(true, "first").await;
    client.disconnect().await;
    let connect = Connect {
        clean: false,
        ..Connect::persistent(Version::V5, "resumed-s")
    };
    let (mut client, connack) = Client::connect(cluster.mqtt(2), &connect).await;
    assert!(
        matches!(
            connack,
            Packet::Connack {
                session_present: true,
                ..
            }
        ),
        "{connack:?}"
    );
    client.gets(false, "resumed").await;
    client.subscribe(&[("resumed/#", 1 | HANDLING_1)]).await;
    client.gets(false, "subscribed again with Retain Handling 1").await;
    client.end().await;
}

#[tokio::test]
async fn retain_as_published_keeps_the_flag_of_live_messages() {
    // [MQTT-3.3.1-12] [MQTT-3.3.1-13]
    let cluster = shared();
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "as-published-p").await;
    for (index, kind) in KINDS.into_iter().enumerate() {
        for qos in 0..=2 {
            let topic = format!("as-published/{index}/{qos}");
            let mut plain = kind.open(cluster.mqtt(1), &format!("as-published-plain-{qos}")).await;
            let mut kept = kind.open(cluster.mqtt(2), &format!("as-published-kept-{qos}")).await;
            plain.subscribe(&[(&topic, qos)]).await;
            kept.subscribe(&[(&topic, qos | AS_PUBLISHED)]).await;
            publisher.retain(&topic, "retained", 1).await;
            publisher.publish(&topic, "not retained", 1).await;
            publisher.retain(&topic, "", 1).await;
            for (client, flags) in [(&mut plain, [false, false, false]), (&mut kept, [true, false, true])] {
                for (text, flag) in ["retained", "not retained", ""].into_iter().zip(flags) {
                    let message = client.message().await;
                    assert_eq!(
                        (message.text().as_str(), message.retain),
                        (text, flag),
                        "{kind:?} {qos}"
                    );
                }
            }
            plain.end().await;
            kept.end().await;
        }
    }
}

#[tokio::test]
async fn the_newest_replaces_and_an_empty_payload_removes() {
    // [MQTT-3.3.1-5] [MQTT-3.3.1-6] [MQTT-3.3.1-7]
    let cluster = shared();
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "replace-p").await;
    for (n, version) in VERSIONS.into_iter().enumerate() {
        let topic = format!("replace/{n}");
        let mut client = Client::open(cluster.mqtt(n), version, &format!("replace-p{n}")).await;
        for qos in [1, 2, 0, 2] {
            let text = format!("at {qos}");
            client.retain(&topic, text.clone(), qos).await;
            reads(cluster.mqtt(1), &topic, &text).await;
            // A message that is not retained changes nothing.
            client.publish(&topic, "not retained", 1).await;
            reads(cluster.mqtt(2), &topic, &text).await;
        }
        for qos in 0..=2 {
            publisher.retain(&topic, "to be removed", 1).await;
            reads(cluster.mqtt(1), &topic, "to be removed").await;
            let mut live = Client::open(cluster.mqtt(2), version, &format!("replace-live-{n}-{qos}")).await;
            live.subscribe(&[(&topic, 1)]).await;
            live.message().await;
            client.retain(&topic, "", qos).await;
            let removal = live.message().await;
            assert_eq!(
                (removal.text().as_str(), removal.retain),
                ("", false),
                "it is an ordinary message too"
            );
            for node in 0..3 {
                is_gone(cluster.mqtt(node), &topic).await;
            }
        }
        // Of what is not there.
        client.retain(&topic, "", 1).await;
        is_gone(cluster.mqtt(0), &topic).await;
    }
}

#[tokio::test]
async fn properties_come_back_unaltered() {
    let cluster = shared();
    let properties = vec![
        Property(0x01, Value::Byte(1)),
        Property(0x03, Value::Text("text/plain".into())),
        Property(0x08, Value::Text("answers/here".into())),
        Property(0x09, Value::Binary(vec![0, 255, 7])),
        Property(0x26, Value::Pair("b".into(), "2".into())),
        Property(0x26, Value::Pair("a".into(), "1".into())),
        Property(0x26, Value::Pair("b".into(), "2".into())),
    ];
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "properties-p").await;
    let publish = Publish {
        retain: true,
        properties: properties.clone(),
        ..Publish::new("properties/a", "x", 1)
    };
    assert_eq!(publisher.publish_packet(publish).await, 0);
    for kind in KINDS {
        for qos in 0..=2 {
            let mut client = kind.open(cluster.mqtt(1), &format!("properties-{qos}")).await;
            client.subscribe(&[("properties/+", qos)]).await;
            let message = client.message().await;
            let user = |all: &[Property]| all.iter().filter(|one| one.0 == 0x26).cloned().collect::<Vec<_>>();
            let others = |all: &[Property]| {
                let mut others: Vec<_> = all.iter().filter(|one| one.0 != 0x26).cloned().collect();
                others.sort_by_key(|one| one.0);
                others
            };
            assert_eq!(user(&message.properties), user(&properties), "in order [MQTT-3.3.2-18]");
            assert_eq!(others(&message.properties), others(&properties));
            client.end().await;
        }
    }
}

#[tokio::test]
async fn no_local_holds_for_retained_messages_too() {
    // [MQTT-3.8.3-3]
    let cluster = shared();
    for kind in KINDS {
        for qos in 0..=2 {
            let mut own = kind.open(cluster.mqtt(0), &format!("no-local-{qos}")).await;
            let topic = format!("no-local/{kind:?}/{qos}");
            own.retain(&topic, "mine", 1).await;
            own.subscribe(&[(&topic, qos | NO_LOCAL)]).await;
            own.gets(false, &format!("{kind:?} {qos}: its own")).await;
            let mut other = kind.open(cluster.mqtt(1), &format!("no-local-other-{qos}")).await;
            other.subscribe(&[(&topic, qos | NO_LOCAL)]).await;
            other.gets(true, &format!("{kind:?} {qos}: another's")).await;
            own.end().await;
            other.end().await;
        }
    }
}

#[tokio::test]
async fn shared_subscriptions_get_none() {
    // [MQTT-3.8.4-4] excepts them (section 4.8.2); live messages they get.
    let cluster = shared();
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "share-p").await;
    publisher.retain("share/a", "kept", 1).await;
    for kind in KINDS {
        for qos in 0..=2 {
            let mut member = kind.open(cluster.mqtt(1), &format!("share-{qos}")).await;
            let filter = format!("$share/{kind:?}-{qos}/share/+");
            member.subscribe(&[(&filter, qos)]).await;
            member.gets(false, &format!("{kind:?} {qos}")).await;
            publisher.publish("share/a", "live", 1).await;
            let message = member.message().await;
            assert_eq!(
                (message.text().as_str(), message.retain),
                ("live", false),
                "{kind:?} {qos}"
            );
            member.end().await;
        }
    }
}

#[tokio::test]
async fn wildcards_bring_all_of_thousands_and_none_twice() {
    let cluster = shared();
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "many-p").await;
    let topics: Vec<String> = (0..MANY).map(|n| format!("many/{}/{n}", n % 7)).collect();
    publisher.retain_all(&topics, b"x").await;
    let all: BTreeSet<&str> = topics.iter().map(String::as_str).collect();
    let some: BTreeSet<&str> = all
        .iter()
        .copied()
        .filter(|topic| topic.starts_with("many/3/"))
        .collect();
    for kind in KINDS {
        for (qos, filter, expected) in [
            (1, "many/#", &all),
            (0, "many/+/+", &all),
            (1, "many/3/#", &some),
            (2, "many/3/+", &some),
        ] {
            let mut client = kind.open(cluster.mqtt(1), &format!("many-{qos}")).await;
            client.subscribe(&[(filter, qos)]).await;
            let mut got = BTreeSet::new();
            while got.len() < expected.len() {
                let message = client.message().await;
                assert!(message.retain, "{message:?}");
                assert!(expected.contains(message.topic.as_str()), "{filter}: {}", message.topic);
                assert!(
                    got.insert(message.topic.clone()),
                    "{kind:?} {qos} {filter}: {} twice",
                    message.topic
                );
            }
            assert_eq!(client.leftover().await, vec![], "{kind:?} {qos} {filter}");
            client.end().await;
        }
    }
}

#[tokio::test]
async fn wildcards_match_as_the_standard_says() {
    // [MQTT-4.7.1-2] "#" includes the parent; [MQTT-4.7.2-1] no wildcard at the front matches "$…".
    let cluster = shared();
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "match-p").await;
    let topics = [
        "match",
        "match/",
        "match/a",
        "match/a/b",
        "match/a/c",
        "matches",
        "/match",
        "$wire/match",
    ];
    for topic in topics {
        publisher.retain(topic, "kept", 1).await;
    }
    for kind in KINDS {
        for qos in 0..=2 {
            for filter in [
                "match/#",
                "match/+",
                "match/+/+",
                "+/match",
                "$wire/#",
                "$wire/+",
                "match/a/#",
                "match/+/b",
            ] {
                let mut client = kind.open(cluster.mqtt(1), &format!("match-{qos}")).await;
                client.subscribe(&[(filter, qos)]).await;
                let got = client.leftover().await.into_iter().map(|message| message.topic);
                let mut got: Vec<String> = got.filter(|topic| topics.contains(&topic.as_str())).collect();
                got.sort();
                let mut expected: Vec<&str> = topics
                    .into_iter()
                    .filter(|topic| crate::support::checker::matches(filter, topic))
                    .collect();
                expected.sort_unstable();
                assert_eq!(got, expected, "{kind:?} {qos} {filter}");
                client.end().await;
            }
        }
    }
    // Other tests retain messages here too.
    for filter in ["#", "+/#", "+/+"] {
        let mut client = Client::open(cluster.mqtt(2), Version::V5, "match-all").await;
        client.subscribe(&[(filter, 0)]).await;
        let got: BTreeSet<String> = client
            .leftover()
            .await
            .into_iter()
            .map(|message| message.topic)
            .collect();
        assert!(got.contains("/match"), "{filter} {got:?}");
        assert!(!got.iter().any(|topic| topic.starts_with('$')), "{filter} {got:?}");
    }
}

#[tokio::test]
async fn they_expire_in_time_and_tell_what_is_left() {
    // [MQTT-3.3.2-5] [MQTT-3.3.2-6]
    let cluster = shared();
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "expiry-p").await;
    let sent = Instant::now();
    for (topic, seconds) in [("expiry/soon", EXPIRES), ("expiry/late", 1_000)] {
        let publish = Publish {
            retain: true,
            properties: vec![Property(MESSAGE_EXPIRY_INTERVAL, Value::Four(seconds))],
            ..Publish::new(topic, "kept", 1)
        };
        assert_eq!(publisher.publish_packet(publish).await, 0);
    }
    let stored = Instant::now();
    let mut told = BTreeSet::new();
    let mut index = 0;
    while sent.elapsed() < Duration::from_secs(u64::from(EXPIRES) + 1) {
        index += 1;
        let kind = KINDS[index % 2];
        let mut client = kind.open(cluster.mqtt(index % 3), &format!("expiry-{index}")).await;
        let not_before = stored.elapsed();
        client.subscribe(&[("expiry/#", (index / 2 % 3) as u8)]).await;
        let messages = client.leftover().await;
        let not_after = sent.elapsed();
        let soon = messages.iter().find(|message| message.topic == "expiry/soon");
        let left = soon.map(interval);
        match left {
            Some(left) => {
                told.insert(left);
                let expires = Duration::from_secs(u64::from(EXPIRES));
                let most = expires.saturating_sub(not_before).as_secs_f64().ceil() as u32;
                let least = expires.saturating_sub(not_after).as_secs() as u32;
                assert!((least.max(1)..=most).contains(&left), "{least} <= {left} <= {most}");
            }
            None => assert!(
                not_after + CLOCK >= Duration::from_secs(u64::from(EXPIRES)),
                "gone after {not_after:?}"
            ),
        }
        let late = messages
            .iter()
            .find(|message| message.topic == "expiry/late")
            .expect("it stays");
        assert!((1_000 - EXPIRES - 30..=1_000).contains(&interval(late)), "{late:?}");
        client.end().await;
    }
    assert!(told.len() > 1, "what is left grows less: {told:?}");
    for node in 0..3 {
        is_gone(cluster.mqtt(node), "expiry/soon").await;
    }
}

/// The Message Expiry Interval of a message.
fn interval(message: &Publish) -> u32 {
    match message.properties.iter().find(|one| one.0 == MESSAGE_EXPIRY_INTERVAL) {
        Some(Property(_, Value::Four(seconds))) => *seconds,
        other => panic!("{other:?} of {message:?}"),
    }
}

// ---- while messages come live ----

#[tokio::test]
async fn who_subscribes_during_a_retained_publish_ends_with_the_newest_value() {
    let cluster = shared();
    let mut random = Random::announced("during");
    let mut tally = BTreeMap::<&str, u32>::new();
    for round in 0..ROUNDS {
        let kind = KINDS[round % 2];
        let qos = (round / 2 % 3) as u8;
        let topic = format!("during/{round}/x");
        let filter = if round / 6 % 2 == 0 {
            topic.clone()
        } else {
            format!("during/{round}/+")
        };
        let (s, p) = (round % 3, (round + 1 + round / 3 % 2) % 3);
        let mut publisher = Client::open(cluster.mqtt(p), Version::V5, "during-p").await;
        publisher.retain(&topic, "0", 1).await;
        let mut subscriber = kind.open(cluster.mqtt(s), &format!("during-s{round}")).await;
        let delay = Duration::from_micros(random.below(8_000) as u64);
        let subscribing = async {
            tokio::time::sleep(delay).await;
            subscriber.subscribe(&[(&filter, qos)]).await;
            subscriber
        };
        let publishing = async {
            for value in 1..=VALUES {
                publisher.retain(&topic, value.to_string(), 1 + (value % 2) as u8).await;
            }
            publisher
        };
        let (mut subscriber, mut publisher) = tokio::join!(subscribing, publishing);
        let what = format!("round {round}, {kind:?} on node {s}, QoS {qos}, {filter}, publisher on node {p}");
        let mut seen: Vec<(u64, bool)> = Vec::new();
        while seen.last().is_none_or(|last| last.0 < VALUES) {
            let message = subscriber.message().await;
            seen.push((message.text().parse().expect("a value"), message.retain));
        }
        // Not retained, and of the same topic: what comes before it is all there is.
        publisher.publish(&topic, "fence", 1).await;
        let late = subscriber.messages_until("fence").await;
        assert!(late.is_empty(), "{what}: {seen:?}, then {late:?}");
        assert!(
            seen.windows(2).all(|pair| pair[0].0 <= pair[1].0),
            "{what}: backwards in {seen:?}"
        );
        let twice = seen.windows(2).filter(|pair| pair[0].0 == pair[1].0).count();
        assert!(twice == 0 || qos < 2, "{what}: twice at QoS 2: {seen:?}");
        let retained = seen.iter().filter(|one| one.1).count();
        assert!(retained <= 1, "{what}: {seen:?}");
        // From the first one on, none is left out.
        let values: Vec<u64> = seen
            .iter()
            .map(|one| one.0)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        assert!(
            values.windows(2).all(|pair| pair[0] + 1 == pair[1]),
            "{what}: a gap in {seen:?}"
        );
        *tally.entry("twice").or_default() += twice as u32;
        *tally
            .entry(match (retained, seen[0].0) {
                (0, _) => "live only",
                (_, 0) => "the first value retained",
                (_, VALUES) => "the last value retained",
                _ => "one between retained",
            })
            .or_default() += 1;
        subscriber.end().await;
    }
    println!("during: {ROUNDS} rounds, {tally:?}");
    assert!(tally.len() > 2, "the rounds are all alike: {tally:?}");
}

#[tokio::test]
async fn live_messages_do_not_displace_the_retained_one() {
    // [MQTT-3.3.1-9]: what is published meanwhile and not retained is no reason to leave out what is.
    let cluster = shared();
    // A durable subscriber of the topic: live messages take the way through the shard.
    let mut durable = Kind::Durable.open(cluster.mqtt(2), "displace-d").await;
    durable.subscribe(&[("displace/#", 1)]).await;
    let reading = tokio::spawn(async move {
        while durable.message().await.text() != "end" {}
        durable.end().await;
    });
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "displace-p").await;
    for round in 0..36 {
        let topic = format!("displace/{round}");
        publisher.retain(&topic, "kept", 1).await;
        let kind = KINDS[round % 2];
        let qos = (round / 2 % 3) as u8;
        let mut subscriber = kind.open(cluster.mqtt(1), &format!("displace-{round}")).await;
        let subscribing = async {
            subscriber.subscribe(&[(&topic, qos)]).await;
            subscriber
        };
        let publishing = async {
            for n in 0..12 {
                publisher.publish(&topic, format!("live {n}"), 1).await;
            }
        };
        let (mut subscriber, ()) = tokio::join!(subscribing, publishing);
        publisher.publish(&topic, "fence", 1).await;
        let (mut retained, mut fenced) = (0, false);
        while retained == 0 || !fenced {
            let message = subscriber.message().await;
            retained += u32::from(message.retain);
            fenced |= message.text() == "fence";
            assert_eq!(message.retain, message.text() == "kept", "{message:?}");
        }
        subscriber.end().await;
    }
    publisher.publish("displace/x", "end", 1).await;
    reading.await.expect("the durable subscriber");
}

#[tokio::test]
async fn an_older_value_never_comes_after_a_newer_one() {
    // Live right after SUBACK, while the replay is under way.
    let cluster = shared();
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "order-p").await;
    for round in 0..30 {
        let topics: Vec<String> = (0..20).map(|n| format!("order/{round}/{n}")).collect();
        publisher.retain_all(&topics, b"old").await;
        let kind = KINDS[round % 2];
        let qos = (round / 2 % 3) as u8;
        let mut subscriber = kind.open(cluster.mqtt(1 + round % 2), &format!("order-{round}")).await;
        subscriber.subscribe(&[(&format!("order/{round}/+"), qos)]).await;
        publisher.retain_all(&topics, b"new").await;
        let mut newest: BTreeMap<String, String> = BTreeMap::new();
        while newest.values().filter(|text| *text == "new").count() < topics.len() {
            let message = subscriber.message().await;
            let text = message.text();
            assert_eq!(message.retain, text == "old", "{message:?}");
            let before = newest.insert(message.topic.clone(), text.clone());
            assert!(
                before.as_deref() != Some("new"),
                "round {round}, {kind:?} {qos}: {text} after new"
            );
            assert!(
                before.as_deref() != Some(&text),
                "round {round}, {kind:?} {qos}: {text} twice"
            );
        }
        assert_eq!(subscriber.leftover().await, vec![], "round {round}, {kind:?} {qos}");
        subscriber.end().await;
    }
}

#[tokio::test]
async fn a_hundred_thousand_replay_without_blocking_anyone() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let started = Instant::now();
    let mut filling = Vec::new();
    for node in 0..3 {
        let address = cluster.mqtt(node).to_owned();
        filling.push(tokio::spawn(async move {
            let mut publisher = Client::open(&address, Version::V5, &format!("replay-fill-{node}")).await;
            let topics = (node..REPLAYED).step_by(3).map(|n| format!("replay/{n}"));
            publisher.retain_all(&topics.collect::<Vec<_>>(), &[b'x'; 40]).await;
        }));
    }
    for one in filling {
        one.await.expect("a publisher");
    }
    println!("replay: {REPLAYED} retained in {:?}", started.elapsed());

    // Its messages go through the shards: to this subscriber's queue in all of them.
    let mut other = Kind::Durable.open(cluster.mqtt(1), "replay-other").await;
    other.subscribe(&[("live/#", 1)]).await;
    let reading = tokio::spawn(async move {
        let mut count = 0;
        while other.message().await.text() != "end" {
            count += 1;
        }
        count
    });
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "replay-p").await;
    let mut published = 0;
    let quiet = latencies(&mut publisher, &mut published, 240).await;
    print_latencies("replay: nothing else", &quiet);

    for kind in KINDS {
        let connect = match kind {
            Kind::Ephemeral => Connect::clean(Version::V5, "replay-s"),
            Kind::Durable => Connect::persistent(Version::V5, "replay-s"),
        };
        let connect = connect.property(RECEIVE_MAXIMUM, Value::Two(100));
        let (mut subscriber, _) = Client::connect(cluster.mqtt(2), &connect).await;
        let started = Instant::now();
        subscriber.subscribe(&[("replay/#", 1)]).await;
        // It takes nothing for a while: that is its own affair.
        let while_it_waits = latencies(&mut publisher, &mut published, 240).await;
        print_latencies(&format!("replay: {kind:?} subscriber waits"), &while_it_waits);
        let replaying = tokio::spawn(async move {
            let mut got = vec![false; REPLAYED];
            for _ in 0..REPLAYED {
                let message = subscriber.message().await;
                let number = message
                    .topic
                    .strip_prefix("replay/")
                    .and_then(|number| number.parse::<usize>().ok());
                let number = number.unwrap_or_else(|| panic!("{message:?}"));
                assert!(message.retain && message.qos == 1, "{message:?}");
                assert!(!std::mem::replace(&mut got[number], true), "{} twice", message.topic);
            }
            subscriber
        });
        let mut during = Vec::new();
        while !replaying.is_finished() {
            assert!(
                started.elapsed() < REPLAY_MAX,
                "{kind:?}: not within {REPLAY_MAX:?}\n{}",
                cluster.logs()
            );
            during.extend(latencies(&mut publisher, &mut published, 24).await);
        }
        let subscriber = replaying.await.expect("all of them, each once");
        let took = started.elapsed();
        print_latencies(
            &format!("replay: {REPLAYED} to the {kind:?} subscriber in {took:?}"),
            &during,
        );
        let all = [while_it_waits, during].concat();
        assert!(
            percentile(&all, 50) < LATENCY_P50_MAX && percentile(&all, 99) < LATENCY_P99_MAX,
            "{kind:?}"
        );
        subscriber.end().await;
    }
    publisher.publish("live/end", "end", 1).await;
    assert_eq!(reading.await.expect("the other subscriber"), published);
    cluster.assert_no_panic();
}

/// Publishes one after the other to topics in all shards; how long each took.
async fn latencies(publisher: &mut Client, published: &mut usize, count: usize) -> Vec<Duration> {
    let mut latencies = Vec::new();
    for _ in 0..count {
        let started = Instant::now();
        publisher.publish(&format!("live/{}", *published % 97), "x", 1).await;
        latencies.push(started.elapsed());
        *published += 1;
    }
    latencies
}

fn percentile(latencies: &[Duration], percent: usize) -> Duration {
    let mut sorted = latencies.to_vec();
    sorted.sort();
    sorted[(sorted.len() - 1) * percent / 100]
}

fn print_latencies(what: &str, latencies: &[Duration]) {
    let [p50, p99, max] = [50, 99, 100].map(|percent| percentile(latencies, percent));
    println!(
        "{what}: {} publishes, p50 {p50:?}, p99 {p99:?}, slowest {max:?}",
        latencies.len()
    );
}

// ---- limits and faults ----

#[tokio::test]
async fn beyond_the_limit_they_are_refused_and_can_be_removed() {
    let _alone = crate::support::alone().await;
    let dir = tempfile::tempdir().expect("a directory");
    let cluster = Cluster::start_in(dir.path().to_owned(), 3, &[("LONTRA__RETAINED__MESSAGES_MAX", "48")]).await;
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "limit-p").await;
    // One shard after the other is full: until a publish to any topic is refused.
    let mut kept = Vec::new();
    let mut refused = Vec::new();
    for n in 0.. {
        let topic = format!("limit/{n}");
        // The count is known within seconds: slowly.
        tokio::time::sleep(Duration::from_millis(20)).await;
        match publisher
            .publish_packet(retained(&topic, "kept", 1 + (n % 2) as u8))
            .await
        {
            0 | 0x10 => kept.push(topic),
            0x97 => refused.push(topic),
            code => panic!("{code:#04x} for {topic}"),
        }
        assert!(n < 2_000, "{} kept, {} refused", kept.len(), refused.len());
        if refused.len() > 200 {
            break;
        }
    }
    println!("limit: {} kept, {} refused", kept.len(), refused.len());
    assert!(
        (40..=200).contains(&kept.len()),
        "about 48 are kept, not {}",
        kept.len()
    );
    // What was refused is not there; what was taken is.
    let mut reader = Client::open(cluster.mqtt(1), Version::V5, "limit-s").await;
    reader.subscribe(&[("limit/#", 1)]).await;
    let mut got = BTreeSet::new();
    while got.len() < kept.len() {
        got.insert(reader.message().await.topic);
    }
    assert_eq!(got, kept.iter().cloned().collect());
    // The shard of a refused topic: what is not retained goes on, so does removing, and QoS 0 is dropped.
    let full = refused.last().expect("some").clone();
    publisher.publish(&full, "not retained", 1).await;
    assert_eq!(reader.message().await.text(), "not retained");
    let mut v3 = Client::open(cluster.mqtt(2), Version::V311, "limit-v3").await;
    let publish = Publish {
        pid: 1,
        ..retained(&full, "kept", 1)
    };
    v3.send(&publish.encode(Version::V311)).await.expect("PUBLISH");
    v3.closed_by_server(SOON).await;
    for topic in &kept {
        publisher.retain(topic, "", 1).await;
    }
    for _ in &kept {
        assert_eq!(reader.message().await.text(), "", "removed");
    }
    // And then there is room again, once the counts have come round.
    let emptied = Instant::now();
    while publisher.publish_packet(retained(&full, "kept", 1)).await == 0x97 {
        assert!(emptied.elapsed() < START, "still full");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert_eq!(reader.message().await.text(), "kept");
    cluster.assert_no_panic();
}

#[tokio::test]
async fn they_survive_kill_9_of_all_nodes() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "survive-p").await;
    raise_fences(cluster.mqtt(0)).await;
    let topics: Vec<String> = (0..SURVIVORS).map(|n| format!("survive/{n}")).collect();
    publisher.retain_all(&topics, b"first").await;
    publisher.retain_all(&topics[..SURVIVORS / 2], b"second").await;
    for topic in &topics[..SURVIVORS / 4] {
        publisher.retain(topic, "", 1).await;
    }
    let killed = Instant::now();
    cluster.kill_all(&cluster.ids()).await;
    for id in cluster.ids() {
        cluster.start_node(id);
    }
    cluster.wait_all_ready().await;
    println!(
        "survive: {SURVIVORS} topics, ready {:?} after the kill",
        killed.elapsed()
    );
    for node in 0..3 {
        for kind in KINDS {
            let mut client = kind.open(cluster.mqtt(node), "survive-s").await;
            client.subscribe(&[("survive/#", 1)]).await;
            let mut got = BTreeMap::new();
            while got.len() < SURVIVORS - SURVIVORS / 4 {
                let message = client.message().await;
                assert_eq!(
                    got.insert(message.topic.clone(), message.text()),
                    None,
                    "{} twice",
                    message.topic
                );
            }
            assert_eq!(client.until_fences().await, vec![], "none that was removed");
            for (n, topic) in topics.iter().enumerate().skip(SURVIVORS / 4) {
                let expected = if n < SURVIVORS / 2 { "second" } else { "first" };
                assert_eq!(got.get(topic).map(String::as_str), Some(expected), "{topic}");
            }
            client.end().await;
        }
    }
    cluster.assert_no_panic();
}

// ---- the checker of P5 can say no ----

/// `(value, invoked, outcome)` and `(value, invoked, completed)`, in ms.
fn register(writes: &[(u64, u64, Outcome)], reads: &[(u64, u64, u64)]) -> Register {
    let ms = Duration::from_millis;
    let write = |(value, invoked, outcome): &(u64, u64, Outcome)| {
        let invoked = ms(*invoked);
        (
            *value,
            Write {
                invoked,
                outcome: *outcome,
            },
        )
    };
    let read = |(value, invoked, completed): &(u64, u64, u64)| Read {
        value: *value,
        invoked: ms(*invoked),
        completed: ms(*completed),
    };
    Register {
        writes: writes.iter().map(write).collect(),
        reads: reads.iter().map(read).collect(),
    }
}

fn done(at: u64) -> Outcome {
    Outcome::Done(Duration::from_millis(at))
}

/// Whether the checker finds fault, and as which kinds.
fn kinds(register: &Register) -> Vec<&'static str> {
    let found = register::check(register);
    let kinds = found.iter().map(|violation| match violation {
        register::Violation::Phantom { .. } => "phantom",
        register::Violation::FromTheFuture { .. } => "from the future",
        register::Violation::Overlap { .. } => "overlap",
        register::Violation::Inside { .. } => "inside",
        register::Violation::Backwards { .. } => "backwards",
    });
    kinds.collect()
}

#[test]
fn p5_checker_finds_what_is_planted_and_does_not_cry_wolf() {
    let two = [(1, 0, done(10)), (2, 20, done(30))];
    // What a register does.
    assert_eq!(kinds(&register(&two, &[(1, 12, 15), (2, 31, 40)])), [""; 0]);
    assert_eq!(
        kinds(&register(&two, &[(1, 21, 29), (2, 21, 29)])),
        [""; 0],
        "while it is written, either"
    );
    assert_eq!(
        kinds(&register(
            &[(1, 0, done(10)), (2, 5, done(30))],
            &[(2, 6, 8), (1, 12, 15)]
        )),
        [""; 0]
    );
    // A stale read: after 2 was acknowledged; after another read saw 2.
    assert_eq!(kinds(&register(&two, &[(1, 31, 40)])), ["inside"]);
    assert_eq!(kinds(&register(&two, &[(2, 21, 24), (1, 25, 28)])), ["inside"]);
    // There and back.
    let both = [(1, 0, done(10)), (2, 5, done(50))];
    assert_eq!(
        kinds(&register(&both, &[(1, 11, 12), (2, 13, 14), (1, 15, 16)])),
        ["inside"]
    );
    assert_eq!(
        kinds(&register(&both, &[(1, 11, 12), (2, 13, 14), (1, 15, 16), (2, 17, 18)])),
        ["overlap"]
    );
    // A lost write: acknowledged, then nobody sees it while the older one is there throughout.
    assert_eq!(kinds(&register(&two, &[(1, 12, 13), (1, 40, 41)])), ["inside"]);
    // Seen before it was written, never written, refused.
    assert_eq!(kinds(&register(&two, &[(2, 12, 15)])), ["from the future"]);
    assert_eq!(kinds(&register(&two, &[(3, 12, 15)])), ["phantom"]);
    let refused = [(1, 0, done(10)), (2, 20, Outcome::Refused)];
    assert_eq!(kinds(&register(&refused, &[(2, 32, 35)])), ["phantom"]);
    assert_eq!(kinds(&register(&refused, &[(1, 32, 35)])), [""; 0]);
    // A crashed write may be seen at any time later, or never; but not come and go.
    let crashed = [(1, 0, done(10)), (2, 20, Outcome::Unknown), (3, 60, done(70))];
    assert_eq!(kinds(&register(&crashed, &[(1, 40, 45), (3, 80, 90)])), [""; 0]);
    assert_eq!(
        kinds(&register(&crashed, &[(1, 40, 45), (2, 50, 55), (3, 80, 90)])),
        [""; 0]
    );
    assert_eq!(
        kinds(&register(&crashed, &[(3, 80, 90), (2, 100, 110)])),
        [""; 0],
        "late"
    );
    assert_eq!(kinds(&register(&crashed, &[(2, 40, 45), (1, 50, 55)])), ["inside"]);
    assert_eq!(
        kinds(&register(&crashed, &[(2, 80, 90), (3, 91, 95), (2, 100, 110)])),
        ["overlap"]
    );
    // What one subscriber sees.
    let backwards = |view: &[u64]| register::backwards(&register(&two, &[]), view).is_some();
    assert!(backwards(&[2, 1]) && backwards(&[1, 2, 1]));
    assert!(!backwards(&[1, 1, 2, 2]) && !backwards(&[2]));
    let together = register(&[(1, 0, done(10)), (2, 5, done(30))], &[]);
    assert!(
        register::backwards(&together, &[2, 1]).is_none(),
        "either may be the newer"
    );
}

#[test]
fn p5_checker_agrees_with_trying_every_order() {
    let mut random = Random::announced("register");
    let (mut bad, mut good) = (0, 0);
    for round in 0..20_000 {
        let history = random_history(&mut random);
        let linearizable = is_linearizable(&history);
        assert_eq!(
            register::check(&history).is_empty(),
            linearizable,
            "round {round}: {history:#?}"
        );
        if linearizable {
            good += 1;
        } else {
            bad += 1;
        }
    }
    println!("register: {good} linearizable, {bad} not");
    assert!(good > 2_000 && bad > 2_000, "one-sided: {good} and {bad}");
}

/// Few operations on few instants, so that they overlap and touch.
fn random_history(random: &mut Random) -> Register {
    let mut history = Register::default();
    let span = |random: &mut Random| {
        let from = random.below(14) as u64;
        (
            Duration::from_millis(from),
            Duration::from_millis(from + random.below(6) as u64),
        )
    };
    let writes = 1 + random.below(4) as u64;
    for value in 0..writes {
        let (invoked, completed) = span(random);
        let outcome = match random.below(4) {
            0 => Outcome::Unknown,
            _ => Outcome::Done(completed),
        };
        history.writes.insert(value, Write { invoked, outcome });
    }
    for _ in 0..random.below(5) {
        let (invoked, completed) = span(random);
        let value = random.below(writes as usize) as u64;
        history.reads.push(Read {
            value,
            invoked,
            completed,
        });
    }
    history
}

/// By trying: next may come whatever was invoked before everything left over has completed.
fn is_linearizable(history: &Register) -> bool {
    struct Op {
        writes: bool,
        value: u64,
        invoked: Duration,
        /// None: never, and it need not happen.
        completed: Option<Duration>,
    }
    fn search(left: &mut Vec<Op>, value: Option<u64>) -> bool {
        let Some(first) = left.iter().filter_map(|op| op.completed).min() else {
            return true;
        };
        for at in 0..left.len() {
            let op = &left[at];
            if op.invoked > first || !(op.writes || value == Some(op.value)) {
                continue;
            }
            let op = left.remove(at);
            let found = search(left, if op.writes { Some(op.value) } else { value });
            left.insert(at, op);
            if found {
                return true;
            }
        }
        false
    }
    let writes = history.writes.iter().map(|(value, write)| Op {
        writes: true,
        value: *value,
        invoked: write.invoked,
        completed: match write.outcome {
            Outcome::Done(at) => Some(at),
            Outcome::Unknown => None,
            Outcome::Refused => unreachable!("none is made"),
        },
    });
    let reads = history.reads.iter().map(|read| Op {
        writes: false,
        value: read.value,
        invoked: read.invoked,
        completed: Some(read.completed),
    });
    search(&mut writes.chain(reads).collect(), None)
}

// ---- helpers ----

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ephemeral,
    Durable,
}

const KINDS: [Kind; 2] = [Kind::Ephemeral, Kind::Durable];

impl Kind {
    /// A fresh session.
    async fn open(self, address: &str, client_id: &str) -> Client {
        let connect = match self {
            Kind::Ephemeral => Connect::clean(Version::V5, client_id),
            Kind::Durable => Connect {
                clean: true,
                ..Connect::persistent(Version::V5, client_id)
            },
        };
        Client::connect(address, &connect).await.0
    }
}

fn retained(topic: &str, payload: impl Into<Vec<u8>>, qos: u8) -> Publish {
    Publish {
        retain: true,
        ..Publish::new(topic, payload, qos)
    }
}

impl Client {
    /// Publishes with RETAIN; it must be taken.
    async fn retain(&mut self, topic: &str, payload: impl Into<Vec<u8>>, qos: u8) {
        let code = self.publish_packet(retained(topic, payload, qos)).await;
        assert!(code < 0x80, "{}: {code:#04x} for {topic}", self.client_id);
    }

    /// Retains `payload` for each topic at QoS 1, many unacknowledged at a time.
    async fn retain_all(&mut self, topics: &[String], payload: &[u8]) {
        let mut unacknowledged = VecDeque::new();
        for topic in topics {
            if unacknowledged.len() >= WINDOW {
                self.acknowledged(&mut unacknowledged).await;
            }
            let publish = Publish {
                pid: self.next_pid(),
                ..retained(topic, payload, 1)
            };
            self.send(&publish.encode(self.version)).await.expect("PUBLISH");
            unacknowledged.push_back(publish.pid);
        }
        while !unacknowledged.is_empty() {
            self.acknowledged(&mut unacknowledged).await;
        }
    }

    async fn acknowledged(&mut self, unacknowledged: &mut VecDeque<u16>) {
        match self.packet_within(SOON).await {
            Ok(Packet::Puback { pid, code }) if code < 0x80 => assert_eq!(Some(pid), unacknowledged.pop_front()),
            other => panic!("{}: {other:?}", self.client_id),
        }
    }

    /// Whether the retained message, and nothing else, comes for what was subscribed last.
    async fn gets(&mut self, comes: bool, what: &str) {
        let messages = self.leftover().await;
        assert!(messages.iter().all(|message| message.retain), "{what}: {messages:?}");
        assert_eq!(messages.len(), usize::from(comes), "{what}: {messages:?}");
    }

    /// What comes until the fences of the shared nodes are all there, without them.
    async fn leftover(&mut self) -> Vec<Publish> {
        static RAISED: OnceCell<()> = OnceCell::const_new();
        RAISED.get_or_init(|| raise_fences(shared().mqtt(0))).await;
        self.until_fences().await
    }

    /// What comes until the fences are all there, without them.
    async fn until_fences(&mut self) -> Vec<Publish> {
        let mut others = Vec::new();
        // Of a durable session: what is paged to it, and what waits in its queue.
        for (qos, kind) in [(0, "fence/0/"), (1, "fence/1/")] {
            let filter = format!("{kind}+");
            self.subscribe(&[(&filter, qos)]).await;
            let mut fences = BTreeSet::new();
            while fences.len() < FENCES {
                let message = self.message().await;
                // Once more: of an earlier connection, not of this subscription.
                if message.topic.starts_with(kind) && !message.dup {
                    fences.insert(message.topic);
                } else {
                    others.push(message);
                }
            }
            self.unsubscribe(&[&filter]).await;
        }
        // Under "#" they come for that filter too.
        others.retain(|message| !message.topic.starts_with("fence/"));
        others
    }

    /// Ends the connection and the session.
    async fn end(mut self) {
        let bytes = crate::support::codec::disconnect_with_expiry(0);
        self.send(&bytes).await.expect("DISCONNECT");
        self.closed_by_server(SOON).await;
    }
}

/// Retains messages in every shard.
async fn raise_fences(address: &str) {
    let mut publisher = Client::open(address, Version::V5, "fences").await;
    let topics = [0, 1]
        .into_iter()
        .flat_map(|half| (0..FENCES).map(move |n| format!("fence/{half}/{n}")));
    publisher.retain_all(&topics.collect::<Vec<_>>(), b"fence").await;
}

/// A fresh session that subscribes now gets `payload`; tries again, for QoS 0 publishes tell nobody when they are done.
async fn reads(address: &str, topic: &str, payload: &str) {
    eventually(&format!("{payload} retained for {topic}"), SOON, || async {
        let mut client = Client::open(address, Version::V5, "").await;
        client.subscribe(&[(topic, 1)]).await;
        let message = client.message().await;
        assert_eq!(message.topic, topic, "{message:?}");
        // One of QoS 0 may be on its way still, and come live: the next session finds it retained.
        (message.retain && message.text() == payload).then_some(())
    })
    .await;
}

/// No retained message for `topic`; tries again, as [`reads`].
async fn is_gone(address: &str, topic: &str) {
    eventually(&format!("nothing retained for {topic}"), SOON, || async {
        let mut client = Client::open(address, Version::V5, "").await;
        client.subscribe(&[(topic, 1)]).await;
        client.leftover().await.is_empty().then_some(())
    })
    .await;
}

const NO_LOCAL: u8 = 0x04;
const AS_PUBLISHED: u8 = 0x08;
const HANDLING_0: u8 = 0x00;
const HANDLING_1: u8 = 0x10;
const HANDLING_2: u8 = 0x20;

/// Of each half; enough that no shard of 12 is without one.
const FENCES: usize = 96;
/// Below the Receive Maximum of the broker (1024).
const WINDOW: usize = 800;
const MANY: usize = 5_000;
const ROUNDS: usize = 120;
const VALUES: u64 = 5;
const SURVIVORS: usize = 200;
const REPLAYED: usize = 100_000;
const REPLAY_MAX: Duration = Duration::from_secs(180);
/// Generous: two cores carry three nodes, both clients and whatever else runs. Without the replay p50 is a few ms.
const LATENCY_P50_MAX: Duration = Duration::from_millis(250);
const LATENCY_P99_MAX: Duration = Duration::from_secs(2);
/// Seconds until a message expires; long enough for several reads on a busy machine.
const EXPIRES: u32 = 5;
/// What the clocks of leader and test may be apart, and what the leader rounds.
const CLOCK: Duration = Duration::from_millis(50);
