//! Sessions through the wire: how long they live, what waits for them, what is left when they are gone, and what MQTT 5
//! clients may ask of them.

use crate::support::client::Client;
use crate::support::cluster::{Cluster, http_get, shared};
use crate::support::codec::{
    self, ASSIGNED_CLIENT_ID, Connect, MAXIMUM_PACKET_SIZE, MESSAGE_EXPIRY_INTERVAL, Packet, Property, Publish,
    REASON_STRING, RECEIVE_MAXIMUM, REQUEST_PROBLEM_INFORMATION, SERVER_KEEP_ALIVE, SESSION_EXPIRY_INTERVAL,
    SUBSCRIPTION_IDENTIFIER, TOPIC_ALIAS, TOPIC_ALIAS_MAXIMUM, USER_PROPERTY, VERSIONS, Value, Version, Will,
};
use crate::support::{SOON, START, eventually};
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

// ---- how long a session lives ----

#[tokio::test]
async fn a_session_lives_as_long_as_its_client_asked() {
    // [MQTT-3.1.2-23]; changed at DISCONNECT, section 3.14.2.2.2. Each ends on another node than it began.
    let cluster = shared();
    let expiring = |seconds: u32| Property(SESSION_EXPIRY_INTERVAL, Value::Four(seconds));
    // (name, at CONNECT, at DISCONNECT or None for a lost connection, how long it lives)
    let cases = [
        ("asked", 2, Some(None), Some(2)),
        ("lost", 2, None, Some(2)),
        ("shortened", 3600, Some(Some(1)), Some(1)),
        ("ended", 3600, Some(Some(0)), Some(0)),
        ("prolonged", 1, Some(Some(3600)), None),
        ("never", u32::MAX, Some(None), None),
        ("made-to-never", 1, Some(Some(u32::MAX)), None),
    ];
    let mut left = Vec::new();
    for (n, (name, at_connect, at_disconnect, lives)) in cases.into_iter().enumerate() {
        let connect = Connect::clean(Version::V5, &format!("lives-{name}"));
        let connect = Connect {
            properties: vec![expiring(at_connect)],
            ..connect
        };
        let (mut client, _) = Client::connect(cluster.mqtt(n % 3), &connect).await;
        client.subscribe(&[("lives/#", 1)]).await;
        match at_disconnect {
            Some(None) => client.disconnect().await,
            Some(Some(seconds)) => {
                client
                    .send(&codec::disconnect_with_expiry(seconds))
                    .await
                    .expect("DISCONNECT");
                client.closed_by_server(SOON).await;
            }
            None => drop(client),
        }
        left.push((name, lives, Instant::now()));
    }
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "lives-p").await;
    publisher.publish("lives/x", "waits", 1).await;
    for (name, lives, since) in &left {
        let Some(seconds) = lives else { continue };
        let path = format!("/api/v1/sessions/lives-{name}");
        eventually(&format!("the end of {name}"), SOON, || async {
            let (code, _) = http_get(&cluster.nodes[0].http, &path).await.expect("an answer");
            (code == 404).then_some(())
        })
        .await;
        let lived = since.elapsed();
        println!("session: {name} lived {lived:?} of {seconds} s");
        // `since` is a little after the end of the connection.
        assert!(lived + CLOCK >= Duration::from_secs(*seconds), "{name} lived {lived:?}");
    }
    for (n, (name, lives, _)) in left.into_iter().enumerate() {
        let connect = Connect {
            clean: false,
            ..Connect::clean(Version::V5, &format!("lives-{name}"))
        };
        let (mut client, connack) = Client::connect(cluster.mqtt((n + 1) % 3), &connect).await;
        assert_eq!(is_present(&connack), lives.is_none(), "{name}: {connack:?}");
        if lives.is_none() {
            assert_eq!(client.message().await.text(), "waits", "{name}");
        } else {
            // What it was subscribed to ended with it.
            client.subscribe(&[("lives/x", 1)]).await;
            publisher.publish("lives/x", name, 1).await;
            assert_eq!(client.message().await.text(), name);
        }
        // Session Expiry Interval is absent: it ends now.
        client.disconnect().await;
    }
}

#[tokio::test]
async fn expiry_cannot_be_asked_for_at_the_end_only() {
    // [MQTT-3.14.2-2] and section 3.14.2.2.2: 0 at CONNECT stays 0.
    let cluster = shared();
    let mut client = Client::open(cluster.mqtt(0), Version::V5, "late-expiry").await;
    client
        .send(&codec::disconnect_with_expiry(10))
        .await
        .expect("DISCONNECT");
    let (code, _) = client.closed_by_server(SOON).await;
    assert_eq!(code, Some(0x82));
    let (_, connack) = Client::connect(cluster.mqtt(1), &unclean("late-expiry", 0)).await;
    assert!(!is_present(&connack), "{connack:?}");
}

#[tokio::test]
async fn session_present_tells_the_truth_and_clean_start_forgets() {
    // [MQTT-3.1.2-4] [MQTT-3.2.2-2] [MQTT-3.2.2-3]
    let cluster = shared();
    let mut publisher = Client::open(cluster.mqtt(2), Version::V5, "clean-p").await;
    for version in VERSIONS {
        let name = format!("clean-{version:?}");
        let persistent = Connect::persistent(version, &name);
        let clean = Connect {
            clean: true,
            ..persistent.clone()
        };
        let (mut client, connack) = Client::connect(cluster.mqtt(0), &persistent).await;
        assert!(!is_present(&connack), "{connack:?}");
        client.subscribe(&[("clean/x", 1)]).await;
        client.disconnect().await;
        publisher.publish("clean/x", "waits", 1).await;
        let (mut client, connack) = Client::connect(cluster.mqtt(1), &persistent).await;
        assert!(is_present(&connack), "{connack:?}");
        client.auto_acknowledge = false;
        assert_eq!(client.message().await.text(), "waits");
        client.disconnect().await;
        // Not acknowledged: it would come again.
        let (client, connack) = Client::connect(cluster.mqtt(2), &clean).await;
        assert!(!is_present(&connack), "{connack:?}");
        // The other node's connection has the session now; a clean start there takes it, and ends it.
        let (mut second, connack) = Client::connect(cluster.mqtt(0), &clean).await;
        assert!(!is_present(&connack), "{connack:?}");
        let mut first = client;
        let (code, _) = first.closed_by_server(SOON).await;
        assert_eq!(code, (version == Version::V5).then_some(0x8e), "taken over");
        publisher.publish("clean/x", "for nobody", 1).await;
        second.subscribe(&[("clean/y", 1)]).await;
        publisher.publish("clean/y", "fence", 1).await;
        assert_eq!(second.message().await.text(), "fence");
        second.disconnect().await;
    }
}

#[tokio::test]
async fn a_session_that_lasts_as_long_as_its_connection_ends_when_another_takes_its_place() {
    // [MQTT-3.1.2-23] [MQTT-3.1.4-3]: the displaced connection closes, and what was to end with it has ended.
    let cluster = shared();
    for node in 0..3 {
        let name = format!("as-long-{node}");
        let (mut client, _) = Client::connect(cluster.mqtt(0), &unclean(&name, 3600)).await;
        client.subscribe(&[(&name, 1)]).await;
        client.disconnect().await;
        let (mut first, connack) = Client::connect(cluster.mqtt(1), &unclean(&name, 0)).await;
        assert!(is_present(&connack), "it was to last for an hour: {connack:?}");
        let (mut second, connack) = Client::connect(cluster.mqtt(node), &unclean(&name, 3600)).await;
        assert!(!is_present(&connack), "{connack:?}");
        assert_eq!(first.closed_by_server(SOON).await.0, Some(0x8e), "taken over");
        let mut publisher = Client::open(cluster.mqtt(2), Version::V5, &format!("{name}-p")).await;
        publisher.publish(&name, "for nobody", 1).await;
        second.subscribe(&[(&name, 1)]).await;
        publisher.publish(&name, "fence", 1).await;
        assert_eq!(
            second.message().await.text(),
            "fence",
            "its subscriptions have gone too"
        );
    }
}

#[tokio::test]
async fn what_was_acknowledged_before_disconnect_does_not_come_again_on_the_next_node() {
    // An acknowledgement rides up to 20 ms behind: longer than a detach and a CONNECT take.
    let cluster = shared();
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "answered-p").await;
    for qos in [1, 2] {
        let name = format!("answered-{qos}");
        let connect = unclean(&name, 3600);
        let (mut client, _) = Client::connect(cluster.mqtt(2), &connect).await;
        client.subscribe(&[(&name, qos)]).await;
        client.disconnect().await;
        for round in 0..20 {
            match qos {
                2 => drop(publisher.publish_exactly_once(&name, round.to_string()).await),
                _ => publisher.publish(&name, round.to_string(), qos).await,
            }
            let (mut client, _) = Client::connect(cluster.mqtt(round % 3), &connect).await;
            client.auto_acknowledge = false;
            let message = loop {
                match client.packet_within(SOON).await.expect("a packet") {
                    // At QoS 2 the exchange goes on behind PUBREC.
                    Packet::Pubrel { pid, .. } if qos == 2 => client.send(&codec::pubcomp(pid)).await.expect("PUBCOMP"),
                    Packet::Publish(message) => break message,
                    other => panic!("QoS {qos}, round {round}: {other:?}"),
                }
            };
            assert_eq!((message.text(), message.dup), (round.to_string(), false), "QoS {qos}");
            let answer = if qos == 1 { codec::puback } else { codec::pubrec };
            let last_words = [answer(message.pid), codec::disconnect()].concat();
            client.send(&last_words).await.expect("the last words");
            client.closed_by_server(SOON).await;
        }
    }
}

#[tokio::test]
async fn messages_expire_while_their_session_is_away() {
    // [MQTT-3.3.2-5] [MQTT-3.3.2-6]: in log time, on whichever node.
    let cluster = shared();
    let connect = unclean("expires", 3600);
    let (mut client, _) = Client::connect(cluster.mqtt(1), &connect).await;
    client.subscribe(&[("expires/#", 2)]).await;
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "expires-p").await;
    // What was sent before the client went is finished, whenever it comes back. It has expired before what is published later
    // on the same topic, in the same queue, has: when that is gone, this was looked at and left.
    let mut sent = BTreeSet::new();
    client.auto_acknowledge = false;
    for n in 0..2_u8 {
        let topic = format!("expires/{n}");
        let publish = Publish {
            properties: vec![Property(MESSAGE_EXPIRY_INTERVAL, Value::Four(1))],
            ..Publish::new(&topic, "sent", 1 + n)
        };
        assert_eq!(publisher.publish_packet(publish).await, 0);
        let message = client.message().await;
        assert_eq!((&message.topic, message.dup), (&topic, false));
        sent.insert(topic);
    }
    client.disconnect().await;
    let mut expected = BTreeMap::new();
    for n in 0..12_u8 {
        let seconds = [Some(1), Some(2), Some(1000), None][usize::from(n % 4)];
        let topic = format!("expires/{n}");
        let properties = seconds.map(|seconds| Property(MESSAGE_EXPIRY_INTERVAL, Value::Four(seconds)));
        let publish = Publish {
            properties: properties.into_iter().collect(),
            ..Publish::new(&topic, "x", 1 + n % 2)
        };
        assert_eq!(publisher.publish_packet(publish).await, 0);
        if seconds.is_none_or(|seconds| seconds > 2) {
            expected.insert(topic, seconds);
        }
    }
    let published = Instant::now();
    eventually("what expires to be dropped", SOON, || async {
        (pending(cluster, "expires").await == (expected.len() + sent.len()) as u64).then_some(())
    })
    .await;
    assert!(
        published.elapsed() + CLOCK > Duration::from_secs(1),
        "{:?}",
        published.elapsed()
    );
    let (mut client, _) = Client::connect(cluster.mqtt(2), &connect).await;
    let away = published.elapsed().as_secs() as u32;
    for _ in 0..expected.len() + sent.len() {
        let message = client.message().await;
        if message.text() == "sent" {
            assert!(message.dup && sent.remove(&message.topic), "{message:?}");
            continue;
        }
        let asked = expected.remove(&message.topic).unwrap_or_else(|| panic!("{message:?}"));
        let told = message.properties.iter().find(|one| one.0 == MESSAGE_EXPIRY_INTERVAL);
        match (asked, told) {
            (None, None) => {}
            (Some(asked), Some(Property(_, Value::Four(left)))) => {
                assert!(
                    (asked - away - 30..=asked - away + 1).contains(left),
                    "{left} of {asked} after {away} s"
                );
            }
            other => panic!("{other:?}: {message:?}"),
        }
    }
    publisher.publish("expires/fence", "fence", 1).await;
    assert_eq!(client.message().await.text(), "fence");
    client
        .send(&codec::disconnect_with_expiry(0))
        .await
        .expect("DISCONNECT");
}

// ---- limits of what waits ----

#[tokio::test]
async fn beyond_the_queue_limit_the_session_ends_by_default() {
    let _alone = crate::support::alone().await;
    let dir = tempfile::tempdir().expect("a directory");
    let cluster = Cluster::start_in(dir.path().to_owned(), 3, &[("LONTRA__QUEUE__MESSAGES_MAX", "10")]).await;
    let (mut publisher, connect) = absent_subscriber(&cluster).await;
    for n in 0..10 {
        publisher.publish("limit/x", n.to_string(), 1).await;
    }
    // Ten are allowed: it is still there, and gets them.
    let (mut client, connack) = Client::connect(cluster.mqtt(2), &connect).await;
    assert!(is_present(&connack), "{connack:?}");
    for n in 0..10 {
        assert_eq!(client.message().await.text(), n.to_string());
    }
    client.disconnect().await;
    for n in 0..30 {
        publisher.publish("limit/x", n.to_string(), 1).await;
    }
    eventually("the end of the session", START, || async {
        let (code, _) = http_get(&cluster.nodes[0].http, "/api/v1/sessions/limit")
            .await
            .expect("an answer");
        (code == 404).then_some(())
    })
    .await;
    let (_, connack) = Client::connect(cluster.mqtt(0), &connect).await;
    assert!(!is_present(&connack), "it is told: {connack:?}");
    let ended = cluster
        .all_metrics()
        .await
        .sum_where("lontra_queue_dropped_total", "session_ended");
    assert!(ended >= 1.0, "{ended}");
    eventually("its queue is swept", START, || async {
        (cluster.ledger().await.left("session_ended") > 0).then_some(())
    })
    .await;
    cluster.assert_no_panic();
}

#[tokio::test]
async fn beyond_the_queue_limit_the_oldest_may_be_dropped() {
    let _alone = crate::support::alone().await;
    let dir = tempfile::tempdir().expect("a directory");
    let environment = [
        ("LONTRA__QUEUE__MESSAGES_MAX", "10"),
        ("LONTRA__QUEUE__POLICY", "drop-oldest"),
    ];
    let cluster = Cluster::start_in(dir.path().to_owned(), 3, &environment).await;
    let (mut publisher, connect) = absent_subscriber(&cluster).await;
    // A QoS 2 message that was sent, and not answered, is not dropped.
    assert_eq!(publisher.publish_packet(Publish::new("limit/x", "sent", 2)).await, 0);
    let (mut client, _) = Client::connect(cluster.mqtt(2), &connect).await;
    client.auto_acknowledge = false;
    let sent = client.message().await;
    assert_eq!((sent.text().as_str(), sent.qos), ("sent", 2));
    client.disconnect().await;
    for n in 0..30 {
        publisher
            .publish_packet(Publish::new("limit/x", n.to_string(), 1 + n % 2))
            .await;
    }
    eventually("ten to be left", START, || async {
        (pending(&cluster, "limit").await == 10).then_some(())
    })
    .await;
    let (mut client, connack) = Client::connect(cluster.mqtt(0), &connect).await;
    assert!(is_present(&connack), "{connack:?}");
    let again = client.message().await;
    assert_eq!((again.text().as_str(), again.dup, again.pid), ("sent", true, sent.pid));
    for n in 21..30 {
        assert_eq!(
            client.message().await.text(),
            n.to_string(),
            "the newest are kept, in order"
        );
    }
    publisher.publish("limit/x", "fence", 1).await;
    assert_eq!(client.message().await.text(), "fence");
    let dropped = cluster
        .all_metrics()
        .await
        .sum_where("lontra_queue_dropped_total", "drop_oldest");
    assert!(dropped >= 21.0, "{dropped}");
    let left = cluster.ledger().await.left("drop_oldest");
    assert!(0 < left && left as f64 <= dropped, "{left} of {dropped}");
    cluster.assert_no_panic();
}

#[tokio::test]
async fn beyond_the_queue_limit_the_newest_may_be_dropped() {
    let _alone = crate::support::alone().await;
    let dir = tempfile::tempdir().expect("a directory");
    let environment = [
        ("LONTRA__QUEUE__BYTES_MAX", "4KiB"),
        ("LONTRA__QUEUE__POLICY", "drop-new"),
    ];
    let cluster = Cluster::start_in(dir.path().to_owned(), 3, &environment).await;
    let (mut publisher, connect) = absent_subscriber(&cluster).await;
    let payload = |n: usize| format!("{n:0500}");
    for n in 0..30 {
        publisher.publish("limit/x", payload(n), 1).await;
    }
    // 4096 / (500 + the topic) = 8.
    eventually("eight to be left", START, || async {
        (pending(&cluster, "limit").await == 8).then_some(())
    })
    .await;
    let (mut client, connack) = Client::connect(cluster.mqtt(0), &connect).await;
    assert!(is_present(&connack), "{connack:?}");
    for n in 0..8 {
        assert_eq!(
            client.message().await.text(),
            payload(n),
            "the oldest are kept, in order"
        );
    }
    publisher.publish("limit/x", "fence", 1).await;
    assert_eq!(client.message().await.text(), "fence");
    let dropped = cluster
        .all_metrics()
        .await
        .sum_where("lontra_queue_dropped_total", "drop_new");
    assert!(dropped >= 22.0, "{dropped}");
    let left = cluster.ledger().await.left("drop_new");
    assert!(0 < left && left as f64 <= dropped, "{left} of {dropped}");
    cluster.assert_no_panic();
}

#[tokio::test]
async fn nothing_waits_longer_than_the_operator_allows() {
    let _alone = crate::support::alone().await;
    let dir = tempfile::tempdir().expect("a directory");
    let cluster = Cluster::start_in(dir.path().to_owned(), 1, &[("LONTRA__QUEUE__AGE_MAX", "2s")]).await;
    let connect = unclean("limit", 3600);
    let (mut client, _) = Client::connect(cluster.mqtt(0), &connect).await;
    client.subscribe(&[("limit/x", 1)]).await;
    client.disconnect().await;
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "limit-p").await;
    let published = Instant::now();
    publisher.publish("limit/x", "old", 1).await;
    assert_eq!(pending(&cluster, "limit").await, 1);
    eventually("none to wait", START, || async {
        (pending(&cluster, "limit").await == 0).then_some(())
    })
    .await;
    assert!(
        published.elapsed() + CLOCK > Duration::from_secs(2),
        "dropped after {:?}",
        published.elapsed()
    );
    let (mut client, connack) = Client::connect(cluster.mqtt(0), &connect).await;
    assert!(is_present(&connack), "{connack:?}");
    publisher.publish("limit/x", "new", 1).await;
    assert_eq!(client.message().await.text(), "new");
    let expired = cluster
        .all_metrics()
        .await
        .sum_where("lontra_queue_dropped_total", "expired");
    assert!(expired >= 1.0, "{expired}");
    let left = cluster.ledger().await.left("expired");
    assert!(0 < left && left as f64 <= expired, "{left} of {expired}");
    cluster.assert_no_panic();
}

/// A publisher, and how the subscriber of `limit/x` at QoS 2 that is away comes back.
async fn absent_subscriber(cluster: &Cluster) -> (Client, Connect) {
    let connect = unclean("limit", 3600);
    let (mut client, _) = Client::connect(cluster.mqtt(1), &connect).await;
    client.subscribe(&[("limit/x", 2)]).await;
    client.disconnect().await;
    (Client::open(cluster.mqtt(0), Version::V5, "limit-p").await, connect)
}

// ---- what is left behind ----

#[tokio::test]
async fn what_ended_leaves_no_key_behind() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "keys-p").await;
    // What every group has from its first entry on.
    publisher.publish("nobody", "x", 1).await;
    let before = keys(&cluster).await;
    let mut seen = BTreeSet::new();
    let look = async |seen: &mut BTreeSet<String>| {
        let now = keys(&cluster).await.into_iter();
        seen.extend(
            now.filter(|(kind, count)| before.get(kind) < Some(count))
                .map(|(kind, _)| kind),
        );
    };

    // Retained messages: that stay until they are removed, that expire, that a wildcard subscription is owed.
    for n in 0..RETAINED {
        let expires = (n % 2 == 0).then_some(Property(MESSAGE_EXPIRY_INTERVAL, Value::Four(20)));
        let publish = Publish {
            retain: true,
            properties: expires.into_iter().collect(),
            ..Publish::new(&format!("keys/retained/{n}"), "kept", 1)
        };
        assert!(publisher.publish_packet(publish).await < 0x80);
    }
    look(&mut seen).await;
    // Durable sessions with queues, of all QoS, in groups too.
    for n in 0..SESSIONS {
        let (mut client, _) = Client::connect(cluster.mqtt(n % 3), &unclean(&format!("keys-{n}"), 3600)).await;
        client.subscribe(&[("keys/#", (n % 3) as u8)]).await;
        client
            .subscribe(&[("$share/keys/keys/#", 2), (&format!("$share/keys-{n}/keys/live/+"), 1)])
            .await;
        look(&mut seen).await;
        client.disconnect().await;
    }
    // An ephemeral one, alone in its group, and connected while messages come.
    let mut ephemeral = Client::open(cluster.mqtt(1), Version::V5, "keys-ephemeral").await;
    ephemeral.auto_acknowledge = false;
    ephemeral
        .subscribe(&[("keys/live/#", 1), ("$share/keys-ephemeral/keys/live/#", 2)])
        .await;
    // Who publishes at QoS 2 leaves its epoch in the shards.
    let mut exact = Client::open(cluster.mqtt(2), Version::V5, "keys-exact").await;
    for n in 0..MESSAGES {
        let publish = Publish::new(&format!("keys/live/{n}"), "for all of them", 1 + n % 2);
        assert!(exact.publish_packet(publish).await < 0x80);
    }
    exact.disconnect().await;
    // QoS 2 both ways, not finished: PUBLISH without PUBREL, PUBREC without PUBCOMP.
    let mut halfway = Vec::new();
    for n in 0..3 {
        let (mut client, _) = Client::connect(cluster.mqtt(n), &unclean(&format!("keys-halfway-{n}"), 3600)).await;
        client.auto_acknowledge = false;
        client.subscribe(&[(&format!("keys/halfway/{n}"), 2)]).await;
        let publish = Publish {
            pid: client.next_pid(),
            ..Publish::new(&format!("keys/halfway/{n}"), "x", 2)
        };
        client.send(&publish.encode(Version::V5)).await.expect("PUBLISH");
        client.pubrec_of(publish.pid).await;
        let message = client.message().await;
        client.send(&codec::pubrec(message.pid)).await.expect("PUBREC");
        client.pubrel_of(message.pid).await;
        halfway.push(client);
    }
    look(&mut seen).await;
    // Wills: one that is published at once, one that waits and is then not wanted any more, one that waits for its time.
    for (n, delay) in [0, 3600, 3].into_iter().enumerate() {
        let connect = unclean(&format!("keys-will-{n}"), 7200);
        let connect = connect.will(Will::new(&format!("keys/will/{n}"), "gone", 1).delay(delay));
        drop(Client::connect(cluster.mqtt(n), &connect).await);
    }
    let published = Instant::now();
    while !KINDS.into_iter().all(|kind| seen.contains(kind)) {
        assert!(published.elapsed() < START, "not every kind of key: {seen:?}");
        look(&mut seen).await;
    }

    // All of it ends, each in its own way.
    for n in 0..SESSIONS {
        let name = format!("keys-{n}");
        let end = [Some(0), Some(1), None][n % 3];
        let connect = Connect {
            clean: end.is_none(),
            ..unclean(&name, if end.is_none() { 0 } else { 3600 })
        };
        let (mut client, connack) = Client::connect(cluster.mqtt((n + 1) % 3), &connect).await;
        assert_eq!(is_present(&connack), end.is_some());
        match end {
            Some(seconds) => {
                client
                    .send(&codec::disconnect_with_expiry(seconds))
                    .await
                    .expect("DISCONNECT");
                client.closed_by_server(SOON).await;
            }
            None => client.disconnect().await,
        }
    }
    drop(ephemeral);
    for mut client in halfway {
        client
            .send(&codec::disconnect_with_expiry(0))
            .await
            .expect("DISCONNECT");
    }
    for n in 0..3 {
        let connect = Connect::clean(Version::V5, &format!("keys-will-{n}"));
        Client::connect(cluster.mqtt(n), &connect).await.0.disconnect().await;
    }
    for n in (0..RETAINED).filter(|n| n % 2 == 1) {
        let removal = Publish {
            retain: true,
            ..Publish::new(&format!("keys/retained/{n}"), "", 1)
        };
        assert!(publisher.publish_packet(removal).await < 0x80);
    }
    let ended = Instant::now();
    let mut last = BTreeMap::new();
    while ended.elapsed() < START {
        last = keys(&cluster).await;
        if last == before {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("keys: back to {before:?} after {:?}", ended.elapsed());
    assert_eq!(last, before, "left behind");
    cluster.assert_no_panic();
}

const SESSIONS: usize = 6;
const MESSAGES: u8 = 20;
const RETAINED: usize = 24;
/// What a cluster with all of this holds.
const KINDS: [&str; 14] = [
    "session",
    "subscription",
    "node_route",
    "share_group",
    "will",
    "message",
    "remaining",
    "pending",
    "retained",
    "retained_expiry",
    "received",
    "received_epoch",
    "shard_will",
    "replay",
];

/// Keys by kind over all groups and nodes, but for those that stay however little there is to keep.
async fn keys(cluster: &Cluster) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::<String, u64>::new();
    let groups = std::iter::once("meta".to_owned()).chain((0..12).map(|shard| format!("shard-{shard}")));
    for group in groups {
        for node in &cluster.nodes {
            let answer = get(&node.http, &format!("/api/v1/groups/{group}/keys")).await;
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

// ---- what MQTT 5 clients may ask ----

#[tokio::test]
async fn subscription_identifiers_tell_which_subscriptions_matched() {
    // [MQTT-3.3.4-3] to [MQTT-3.3.4-6], section 3.8.2.1.2
    let cluster = shared();
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "ids-p").await;
    let id = |id: u32| [Property(SUBSCRIPTION_IDENTIFIER, Value::Var(id))];
    for kind in KINDS_OF_SESSION {
        for qos in 0..=2 {
            let topic = format!("ids/{kind}/{qos}/x");
            let kept = Publish {
                retain: true,
                ..Publish::new(&topic, "kept", 1)
            };
            publisher.publish_packet(kept).await;
            let connect = session(kind, &format!("ids-{qos}"));
            let (mut client, _) = Client::connect(cluster.mqtt(1), &connect).await;
            client.subscribe_with(&id(7), &[(&topic, qos | NO_RETAINED)]).await;
            client
                .subscribe_with(&id(LARGEST), &[(&format!("ids/{kind}/{qos}/+"), qos | NO_RETAINED)])
                .await;
            client
                .subscribe(&[(&format!("ids/{kind}/{qos}/#"), qos | NO_RETAINED)])
                .await;
            let what = format!("{kind} {qos}");
            publisher.publish(&topic, "both", 1).await;
            assert_eq!(
                identifiers(&client.message().await),
                [7, LARGEST],
                "{what}: one message, all identifiers"
            );
            publisher.publish(&format!("ids/{kind}/{qos}/y"), "one", 1).await;
            assert_eq!(identifiers(&client.message().await), [LARGEST], "{what}");
            publisher.publish(&format!("ids/{kind}/{qos}/y/z"), "none", 1).await;
            assert_eq!(identifiers(&client.message().await), [0; 0], "{what}");
            // Subscribed again: with another, with none. The retained message bears the new one.
            client.subscribe_with(&id(8), &[(&topic, qos)]).await;
            let message = client.message().await;
            assert_eq!((message.retain, identifiers(&message)), (true, vec![8]), "{what}");
            publisher.publish(&topic, "again", 1).await;
            assert_eq!(identifiers(&client.message().await), [8, LARGEST], "{what}");
            client.subscribe(&[(&topic, qos | NO_RETAINED)]).await;
            if kind == "durable" && qos > 0 {
                is_settled(cluster, &client.client_id).await;
                client.disconnect().await;
                publisher.publish(&topic, "while away", 1).await;
                let again = Connect {
                    clean: false,
                    ..connect
                };
                client = Client::connect(cluster.mqtt(2), &again).await.0;
            } else {
                publisher.publish(&topic, "while away", 1).await;
            }
            let message = client.message().await;
            assert_eq!(
                (message.text().as_str(), identifiers(&message)),
                ("while away", vec![LARGEST]),
                "{what}"
            );
            client
                .send(&codec::disconnect_with_expiry(0))
                .await
                .expect("DISCONNECT");
            client.closed_by_server(SOON).await;
        }
    }
    // 0 is none. [MQTT-3.8.2.1.2]
    let mut client = Client::open(cluster.mqtt(0), Version::V5, "ids-0").await;
    client
        .send(&codec::subscribe_with(Version::V5, 1, &id(0), &[("ids/x", 0)]))
        .await
        .expect("SUBSCRIBE");
    assert_eq!(client.closed_by_server(SOON).await.0, Some(0x82));
}

/// Sorted; the order is the server's affair.
fn identifiers(message: &Publish) -> Vec<u32> {
    let mut identifiers: Vec<u32> = message
        .properties
        .iter()
        .filter_map(|property| match property {
            Property(SUBSCRIPTION_IDENTIFIER, Value::Var(id)) => Some(*id),
            _ => None,
        })
        .collect();
    identifiers.sort_unstable();
    identifiers
}

#[tokio::test]
async fn clients_may_use_topic_aliases() {
    // [MQTT-3.3.2-8] ff.; an alias lives as long as its connection. [MQTT-3.3.2-7]
    let cluster = shared();
    let mut subscriber = Client::open(cluster.mqtt(1), Version::V5, "alias-s").await;
    subscriber.subscribe(&[("alias/#", 2)]).await;
    let connect = unclean("alias-p", 3600);
    let (mut publisher, connack) = Client::connect(cluster.mqtt(0), &connect).await;
    let Some(Value::Two(maximum)) = connack.property(TOPIC_ALIAS_MAXIMUM).cloned() else {
        panic!("{connack:?}")
    };
    let aliased = |topic: &str, alias: u16, text: &str, qos: u8| Publish {
        properties: vec![Property(TOPIC_ALIAS, Value::Two(alias))],
        ..Publish::new(topic, text, qos)
    };
    for (topic, alias, text, expected) in [
        ("alias/a", 1, "set", "alias/a"),
        ("", 1, "used", "alias/a"),
        ("alias/b", maximum, "set", "alias/b"),
        ("", maximum, "used", "alias/b"),
        ("", 1, "used again", "alias/a"),
        ("alias/c", 1, "changed", "alias/c"),
        ("", 1, "used", "alias/c"),
    ] {
        for qos in 0..=2 {
            assert_eq!(publisher.publish_packet(aliased(topic, alias, text, qos)).await, 0);
            let message = subscriber.message().await;
            assert_eq!(
                (message.topic.as_str(), message.text().as_str(), message.qos),
                (expected, text, qos)
            );
            let told = message.properties.iter().any(|one| one.0 == TOPIC_ALIAS);
            assert!(!told, "an alias is of one connection: {message:?}");
        }
    }
    publisher.disconnect().await;
    for (topic, alias, code) in [("", 1, 0x82), ("alias/a", 0, 0x94), ("alias/a", maximum + 1, 0x94)] {
        let (mut publisher, _) = Client::connect(cluster.mqtt(2), &connect).await;
        let publish = aliased(topic, alias, "x", 0).encode(Version::V5);
        publisher.send(&publish).await.expect("PUBLISH");
        assert_eq!(
            publisher.closed_by_server(SOON).await.0,
            Some(code),
            "{topic:?} as {alias}"
        );
    }
}

#[tokio::test]
async fn the_broker_uses_topic_aliases_if_the_client_takes_them() {
    // [MQTT-3.1.2-26] [MQTT-3.1.2-27]
    let cluster = shared();
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "aliases-p").await;
    for kind in KINDS_OF_SESSION {
        for maximum in [0, 2, 10] {
            let connect = session(kind, &format!("aliases-{maximum}"));
            let connect = connect.property(TOPIC_ALIAS_MAXIMUM, Value::Two(maximum));
            let (mut client, _) = Client::connect(cluster.mqtt(1), &connect).await;
            client.subscribe(&[("aliases/#", 1)]).await;
            let mut aliases = BTreeMap::<u16, String>::new();
            let mut shortened = 0;
            for round in 0..2 {
                for n in 0..40 {
                    let topic = format!("aliases/of/some/length/{}", n % 5 % (1 + n % 3));
                    publisher.publish(&topic, format!("{round} {n}"), 1).await;
                    let mut message = client.message().await;
                    let alias = message.properties.iter().find(|one| one.0 == TOPIC_ALIAS).cloned();
                    match alias {
                        Some(Property(_, Value::Two(alias))) => {
                            assert!((1..=maximum).contains(&alias), "{message:?}");
                            if message.topic.is_empty() {
                                shortened += 1;
                                message.topic = aliases.get(&alias).expect("it was set").clone();
                            } else {
                                aliases.insert(alias, message.topic.clone());
                            }
                        }
                        None => {}
                        other => panic!("{other:?}"),
                    }
                    assert_eq!(
                        (message.topic, message.payload),
                        (topic, format!("{round} {n}").into_bytes())
                    );
                }
                // Another connection begins without any.
                if kind == "durable" && round == 0 {
                    is_settled(cluster, &client.client_id).await;
                    client.disconnect().await;
                    let again = Connect {
                        clean: false,
                        ..connect.clone()
                    };
                    client = Client::connect(cluster.mqtt(2), &again).await.0;
                    aliases.clear();
                }
            }
            assert_eq!(
                shortened > 0,
                maximum > 0,
                "{kind} {maximum}: {shortened} by alias alone"
            );
            client
                .send(&codec::disconnect_with_expiry(0))
                .await
                .expect("DISCONNECT");
        }
    }
}

#[tokio::test]
async fn what_a_publisher_says_of_its_message_arrives_unaltered() {
    // [MQTT-3.3.2-4] [MQTT-3.3.2-15] to [MQTT-3.3.2-20]; request and response of section 4.10.
    let cluster = shared();
    let pair = |key: &str, value: &str| Property(USER_PROPERTY, Value::Pair(key.into(), value.into()));
    let properties = vec![
        Property(0x01, Value::Byte(1)),
        Property(0x03, Value::Text("application/json; charset=utf-8".into())),
        Property(0x08, Value::Text("answers/to/ünïcode".into())),
        Property(0x09, Value::Binary((0..=255).collect())),
        pair("b", "2"),
        pair("a", ""),
        pair("", "empty key"),
        pair("b", "2"),
    ];
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "said-p").await;
    let others = |all: &[Property]| {
        let mut others: Vec<Property> = all.iter().filter(|one| one.0 != USER_PROPERTY).cloned().collect();
        others.sort_by_key(|one| one.0);
        others
    };
    let users = |all: &[Property]| {
        all.iter()
            .filter(|one| one.0 == USER_PROPERTY)
            .cloned()
            .collect::<Vec<_>>()
    };
    let mut receivers = Vec::new();
    for kind in KINDS_OF_SESSION {
        for granted in 0..=2 {
            for node in 0..2 {
                let connect = session(kind, &format!("said-{kind}-{granted}-{node}"));
                let (mut client, _) = Client::connect(cluster.mqtt(node), &connect).await;
                client.subscribe(&[("said/#", granted)]).await;
                receivers.push((client, granted, true));
            }
        }
    }
    let mut old = Client::open(cluster.mqtt(1), Version::V311, "said-v3").await;
    old.subscribe(&[("said/#", 2)]).await;
    receivers.push((old, 2, false));
    for qos in 0..=2 {
        let publish = Publish {
            properties: properties.clone(),
            ..Publish::new("said/x", format!("at {qos}"), qos)
        };
        assert_eq!(publisher.publish_packet(publish).await, 0);
        for (client, granted, is_v5) in &mut receivers {
            let message = client.message().await;
            assert_eq!((message.text(), message.qos), (format!("at {qos}"), qos.min(*granted)));
            if *is_v5 {
                assert_eq!(users(&message.properties), users(&properties), "all of them, in order");
                assert_eq!(others(&message.properties), others(&properties));
            } else {
                assert_eq!(message.properties, []);
            }
        }
    }
    for (mut client, ..) in receivers.into_iter().filter(|receiver| receiver.2) {
        client
            .send(&codec::disconnect_with_expiry(0))
            .await
            .expect("DISCONNECT");
    }

    // A question and its answer.
    let mut asker = Client::open(cluster.mqtt(2), Version::V5, "said-asker").await;
    asker.subscribe(&[("answers/asker", 1)]).await;
    let mut answerer = Client::open(cluster.mqtt(1), Version::V5, "said-answerer").await;
    answerer.subscribe(&[("questions", 1)]).await;
    let question = Publish {
        properties: vec![
            Property(0x08, Value::Text("answers/asker".into())),
            Property(0x09, Value::Binary(b"the 42nd".to_vec())),
        ],
        ..Publish::new("questions", "6 x 9?", 1)
    };
    assert_eq!(asker.publish_packet(question).await, 0);
    let question = answerer.message().await;
    let [Property(0x08, Value::Text(topic)), correlation] = &others(&question.properties)[..] else {
        panic!("{question:?}")
    };
    let answer = Publish {
        properties: vec![correlation.clone()],
        ..Publish::new(topic, "42", 1)
    };
    assert_eq!(answerer.publish_packet(answer).await, 0);
    let answer = asker.message().await;
    assert_eq!(answer.text(), "42");
    assert_eq!(answer.properties, [Property(0x09, Value::Binary(b"the 42nd".to_vec()))]);
}

#[tokio::test]
async fn no_packet_is_larger_than_the_client_takes() {
    // [MQTT-3.1.2-24] [MQTT-3.1.2-25]: left out, as if delivered; what follows is not held back.
    let cluster = shared();
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "large-p").await;
    let before = cluster
        .all_metrics()
        .await
        .sum_where("lontra_messages_dropped_total", "packet_too_large");
    for kind in KINDS_OF_SESSION {
        for qos in 0..=2 {
            let name = format!("large-{kind}-{qos}");
            let connect = session(kind, &name);
            let small = connect.clone().property(MAXIMUM_PACKET_SIZE, Value::Four(200));
            let (mut client, _) = Client::connect(cluster.mqtt(1), &small).await;
            client.subscribe(&[(&name, qos)]).await;
            for n in 0..6_u8 {
                let size = if n % 2 == 0 { 300 } else { 100 };
                publisher.publish(&name, vec![n; size], 1).await;
            }
            for n in [1, 3, 5] {
                assert_eq!(client.message().await.payload, vec![n; 100], "{name}");
            }
            if kind == "durable" && qos > 0 {
                // It is gone from the queue too.
                eventually("an empty queue", SOON, || async {
                    (pending(cluster, &name).await == 0).then_some(())
                })
                .await;
            }
            client
                .send(&codec::disconnect_with_expiry(0))
                .await
                .expect("DISCONNECT");
        }
    }
    let after = cluster
        .all_metrics()
        .await
        .sum_where("lontra_messages_dropped_total", "packet_too_large");
    assert_eq!(after - before, 3.0 * 2.0 * 3.0, "each is counted");
    let left = cluster.ledger().await.left("packet_too_large");
    assert_eq!(left, 3 * 2, "those of durable sessions, at QoS 1 and 2");
}

#[tokio::test]
async fn send_quota_of_the_client_is_kept() {
    // [MQTT-3.3.4-9]
    let cluster = shared();
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "quota-p").await;
    for kind in KINDS_OF_SESSION {
        for qos in [1, 2] {
            let name = format!("quota-{kind}-{qos}");
            let connect = session(kind, &name).property(RECEIVE_MAXIMUM, Value::Two(3));
            let (mut client, _) = Client::connect(cluster.mqtt(1), &connect).await;
            client.auto_acknowledge = false;
            client.subscribe(&[(&name, qos)]).await;
            for n in 0..10 {
                publisher.publish_packet(Publish::new(&name, n.to_string(), 2)).await;
            }
            let mut unanswered = Vec::new();
            for n in 0..10 {
                if unanswered.len() == 3 {
                    // The fourth has every chance to come.
                    client.ping().await;
                    assert!(!client.has_kept(), "{name}: more than the Receive Maximum");
                    let pid = unanswered.remove(0);
                    match qos {
                        1 => client.acknowledge(pid).await,
                        _ => client.complete(pid).await,
                    }
                }
                let message = client.message().await;
                assert_eq!((message.text(), message.qos), (n.to_string(), qos), "{name}");
                unanswered.push(message.pid);
            }
            client
                .send(&codec::disconnect_with_expiry(0))
                .await
                .expect("DISCONNECT");
        }
    }
}

#[tokio::test]
async fn clients_without_a_name_are_given_one() {
    // [MQTT-3.1.3-6] [MQTT-3.1.3-7]
    let cluster = shared();
    let mut given = BTreeSet::new();
    for n in 0..12 {
        let connect = unclean("", 60);
        let (client, connack) = Client::connect(cluster.mqtt(n % 3), &connect).await;
        let Some(Value::Text(name)) = connack.property(ASSIGNED_CLIENT_ID).cloned() else {
            panic!("{connack:?}")
        };
        assert!(given.insert(name.clone()), "{name} twice");
        client.disconnect().await;
        // It is a name like any other.
        let (mut client, connack) = Client::connect(cluster.mqtt((n + 1) % 3), &unclean(&name, 60)).await;
        assert!(
            is_present(&connack) && connack.property(ASSIGNED_CLIENT_ID).is_none(),
            "{connack:?}"
        );
        client
            .send(&codec::disconnect_with_expiry(0))
            .await
            .expect("DISCONNECT");
    }
    // 3.1.1: only with Clean Session. [v3 MQTT-3.1.3-8]
    Client::open(cluster.mqtt(0), Version::V311, "").await.ping().await;
    let connect = Connect::persistent(Version::V311, "");
    let (mut client, connack) = Client::try_connect(cluster.mqtt(0), &connect, SOON)
        .await
        .expect("CONNACK");
    assert!(matches!(connack, Packet::Connack { code: 2, .. }), "{connack:?}");
    client.closed_by_server(SOON).await;
}

#[tokio::test]
async fn what_the_operator_limits_is_told_and_kept() {
    let _alone = crate::support::alone().await;
    let dir = tempfile::tempdir().expect("a directory");
    let environment = [
        ("LONTRA__MQTT__KEEP_ALIVE_MAX", "2s"),
        ("LONTRA__MQTT__SESSION_EXPIRY_MAX", "3s"),
        ("LONTRA__MQTT__RECEIVE_MAXIMUM", "4"),
        ("LONTRA__MQTT__PACKET_SIZE_MAX", "4KiB"),
        ("LONTRA__MQTT__TOPIC_ALIAS_MAX", "0"),
        ("LONTRA__MQTT__TOPIC_LEVELS_MAX", "4"),
        ("LONTRA__RETAINED__MESSAGES_MAX", "12"),
    ];
    let cluster = Cluster::start_in(dir.path().to_owned(), 1, &environment).await;
    let address = cluster.mqtt(0);
    let connect = unclean("told", 3600).keep_alive(60);
    let (mut client, connack) = Client::connect(address, &connect).await;
    let told = |id: u8| connack.property(id).cloned();
    assert_eq!(told(SERVER_KEEP_ALIVE), Some(Value::Two(2)), "{connack:?}");
    assert_eq!(told(SESSION_EXPIRY_INTERVAL), Some(Value::Four(3)), "{connack:?}");
    assert_eq!(told(RECEIVE_MAXIMUM), Some(Value::Two(4)), "{connack:?}");
    assert_eq!(told(MAXIMUM_PACKET_SIZE), Some(Value::Four(4096)), "{connack:?}");
    assert!(
        matches!(told(TOPIC_ALIAS_MAXIMUM), None | Some(Value::Two(0))),
        "{connack:?}"
    );

    // Server Keep Alive: who keeps to it stays, who goes by his own is let go after one and a half times. [MQTT-3.1.2-22]
    client.ping().await;
    let since = Instant::now();
    let (code, _) = client.closed_by_server(SOON).await;
    assert_eq!(code, Some(0x8d));
    assert!(
        since.elapsed() > Duration::from_millis(2_500),
        "let go after {:?}",
        since.elapsed()
    );
    // Session Expiry Interval: what was granted, not what was asked for.
    eventually("the end of the session", SOON, || async {
        let (code, _) = http_get(&cluster.nodes[0].http, "/api/v1/sessions/told")
            .await
            .expect("an answer");
        (code == 404).then_some(())
    })
    .await;

    // Receive Maximum: the fifth unfinished exchange is one too many. [MQTT-3.3.4-7]
    let mut client = Client::open(address, Version::V5, "told-receive").await;
    for n in 0..5 {
        let publish = Publish {
            pid: client.next_pid(),
            ..Publish::new("told/x", n.to_string(), 2)
        };
        client.send(&publish.encode(Version::V5)).await.expect("PUBLISH");
        if n < 4 {
            client.pubrec_of(publish.pid).await;
        }
    }
    assert_eq!(client.closed_by_server(SOON).await.0, Some(0x93));
    // Maximum Packet Size. [MQTT-3.2.2-15]
    let mut client = Client::open(address, Version::V5, "told-size").await;
    client.publish("told/x", vec![0; 4000], 1).await;
    client
        .send(&Publish::new("told/x", vec![0; 4096], 0).encode(Version::V5))
        .await
        .expect("PUBLISH");
    assert_eq!(client.closed_by_server(SOON).await.0, Some(0x95));

    // Reason strings come with what is refused, unless the client wants none. [MQTT-3.1.2-29]
    for wants in [true, false] {
        let connect = Connect::clean(Version::V5, "told-why");
        let connect = connect.property(REQUEST_PROBLEM_INFORMATION, Value::Byte(u8::from(wants)));
        let (mut client, _) = Client::connect(address, &connect).await;
        client
            .send(&codec::subscribe(Version::V5, 1, &[("a/b/c/d/e", 0)]))
            .await
            .expect("SUBSCRIBE");
        let (first, body) = client.frame().await;
        assert_eq!((first, body.last()), (0x90, Some(&0x8f)), "{body:02x?}");
        assert_eq!(why(first, &body).is_some(), wants, "{body:02x?}");
        for n in 0..usize::MAX {
            assert!(n < 1_000, "the retained messages have no limit");
            // Their count is known within seconds.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let publish = Publish {
                retain: true,
                pid: 2,
                ..Publish::new(&format!("told/{n}"), "x", 1 + (n % 2) as u8)
            };
            client.send(&publish.encode(Version::V5)).await.expect("PUBLISH");
            let (first, body) = client.frame().await;
            assert_eq!(first, if publish.qos == 1 { 0x40 } else { 0x50 }, "{body:02x?}");
            if body.get(2) == Some(&0x97) {
                assert_eq!(why(first, &body).is_some(), wants, "{body:02x?}");
                break;
            }
            assert_eq!(why(first, &body), None, "success needs no reason: {body:02x?}");
            if publish.qos == 2 {
                client.release(2).await;
            }
        }
    }
    cluster.assert_no_panic();
}

/// The Reason String of an acknowledgement.
fn why(first: u8, body: &[u8]) -> Option<String> {
    let properties = codec::properties_of(first, body).expect("well-formed");
    properties.into_iter().find_map(|property| match property {
        Property(REASON_STRING, Value::Text(why)) => Some(why),
        _ => None,
    })
}

// ---- helpers ----

/// A session that is resumed if it is there, with this Session Expiry Interval.
fn unclean(client_id: &str, seconds: u32) -> Connect {
    Connect::persistent(Version::V5, client_id).property(SESSION_EXPIRY_INTERVAL, Value::Four(seconds))
}

const KINDS_OF_SESSION: [&str; 2] = ["ephemeral", "durable"];

/// A fresh session.
fn session(kind: &str, client_id: &str) -> Connect {
    let connect = match kind {
        "durable" => Connect::persistent(Version::V5, client_id),
        _ => Connect::clean(Version::V5, client_id),
    };
    Connect { clean: true, ..connect }
}

fn is_present(connack: &Packet) -> bool {
    matches!(
        connack,
        Packet::Connack {
            session_present: true,
            ..
        }
    )
}

/// How many entries wait for a session, as the first node has them.
async fn pending(cluster: &Cluster, client_id: &str) -> u64 {
    let answer = get(&cluster.nodes[0].http, &format!("/api/v1/sessions/{client_id}/pending")).await;
    answer["total"].as_u64().expect("a total")
}

/// Waits until what the client acknowledged is gone from its queue on every node: else it may come again. (DESIGN §4)
async fn is_settled(cluster: &Cluster, client_id: &str) {
    eventually("acknowledged messages to be gone", SOON, || async {
        let path = format!("/api/v1/sessions/{client_id}/pending");
        for node in &cluster.nodes {
            if get(&node.http, &path).await["total"] != 0 {
                return None;
            }
        }
        Some(())
    })
    .await;
}

async fn get(http: &str, path: &str) -> Json {
    let (code, body) = http_get(http, path)
        .await
        .unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(code, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
}

/// Retain Handling 2.
const NO_RETAINED: u8 = 0x20;
/// The largest Subscription Identifier.
const LARGEST: u32 = 268_435_455;
/// What the clocks of leader and test may be apart, and what is rounded.
const CLOCK: Duration = Duration::from_millis(50);
