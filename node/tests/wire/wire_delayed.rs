//! `$delayed/SECONDS/TOPIC` through the wire: kept once it is acknowledged, published once when its time has come, to
//! whoever is subscribed then, whichever nodes die meanwhile.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::cluster::{Cluster, shared};
use crate::support::codec::{
    Connect, MESSAGE_EXPIRY_INTERVAL, Packet, Property, Publish, USER_PROPERTY, VERSIONS, Value, Version, Will,
};
use crate::support::{SOON, START, eventually};

async fn open(cluster: &Cluster, node: usize, version: Version, name: &str) -> Client {
    Client::open(cluster.mqtt(node), version, &format!("{name}-{version:?}")).await
}

/// A QoS 2 subscriber that outlives its connections.
async fn persistent(address: &str, name: &str) -> Client {
    let connect = Connect::persistent(Version::V5, name).keep_alive(0);
    Client::connect(address, &connect).await.0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_message_comes_once_and_not_before_its_time() {
    let cluster = shared();
    for version in VERSIONS {
        to_who_is_subscribed_then(cluster, version).await;
        retained(cluster, version).await;
        refused(cluster, version).await;
    }
    properties_and_expiry(cluster).await;
}

async fn to_who_is_subscribed_then(cluster: &Cluster, version: Version) {
    let topic = format!("later/{version:?}");
    let mut early = open(cluster, 0, version, "del-early").await;
    early.subscribe(&[(&topic, 2)]).await;
    let away = format!("del-away-{version:?}");
    let mut gone = persistent(cluster.mqtt(1), &away).await;
    gone.subscribe(&[(&topic, 2)]).await;
    gone.disconnect().await;
    let mut leaves = open(cluster, 2, version, "del-leaves").await;
    leaves.subscribe(&[(&topic, 2)]).await;

    let mut publisher = open(cluster, 1, version, "del-pub").await;
    let published = Instant::now();
    for qos in [0, 1, 2] {
        let delayed = Publish::new(&format!("$delayed/5/{topic}"), format!("qos {qos}"), qos);
        assert_eq!(publisher.publish_packet(delayed).await, 0);
    }
    // Nothing of it is there yet; what is published now comes first.
    leaves.unsubscribe(&[&topic]).await;
    let mut late = open(cluster, 2, version, "del-late").await;
    late.subscribe(&[(&topic, 1)]).await;
    publisher.publish(&topic, "now", 1).await;
    publisher.publish(&format!("$delayed/6/{topic}"), "end", 1).await;
    for client in [&mut early, &mut late] {
        assert_eq!(client.message().await.text(), "now");
    }
    let elapsed = published.elapsed();
    assert!(elapsed < Duration::from_secs(5), "nothing is shown: {elapsed:?}");
    for (client, qos_max) in [(&mut early, 2), (&mut late, 1)] {
        let messages = client.messages_until("end").await;
        let elapsed = published.elapsed();
        assert!(elapsed >= Duration::from_millis(5900), "too early: {elapsed:?}");
        let texts: Vec<String> = messages.iter().map(Publish::text).collect();
        assert_eq!(texts, ["qos 0", "qos 1", "qos 2"]);
        let granted: Vec<u8> = messages.iter().map(|message| message.qos).collect();
        assert_eq!(granted, [0, 1, qos_max]);
        assert!(messages.iter().all(|message| message.topic == topic && !message.retain));
    }
    // What is not QoS 0 waited in the queue of who was away.
    let mut gone = persistent(cluster.mqtt(2), &away).await;
    let texts: Vec<String> = gone.messages_until("end").await.iter().map(Publish::text).collect();
    assert_eq!(texts, ["now", "qos 1", "qos 2"]);
    leaves.ping().await;
    assert!(!leaves.has_kept(), "not subscribed any more when it was published");
    let clean = Connect::clean(Version::V5, &away);
    Client::connect(cluster.mqtt(0), &clean).await.0.disconnect().await;
}

async fn retained(cluster: &Cluster, version: Version) {
    let topic = format!("later-kept/{version:?}");
    let mut publisher = open(cluster, 0, version, "delr-pub").await;
    let keep = |topic: &str, payload: &str| Publish {
        retain: true,
        ..Publish::new(topic, payload, 1)
    };
    publisher.publish_packet(keep(&topic, "before")).await;
    publisher
        .publish_packet(keep(&format!("$delayed/4/{topic}"), "after"))
        .await;
    let mut subscriber = open(cluster, 1, version, "delr-sub").await;
    subscriber.subscribe(&[(&topic, 1)]).await;
    let first = subscriber.message().await;
    assert_eq!((first.text(), first.retain), ("before".into(), true));
    let second = subscriber.message().await;
    assert_eq!((second.text(), second.retain), ("after".into(), false));
    let mut late = open(cluster, 2, version, "delr-late").await;
    late.subscribe(&[(&topic, 1)]).await;
    let message = late.message().await;
    assert_eq!((message.text(), message.retain), ("after".into(), true));
    publisher.publish_packet(keep(&topic, "")).await;
}

async fn refused(cluster: &Cluster, version: Version) {
    for topic in [
        "$delayed/x/a",
        "$delayed/5",
        "$delayed//a",
        "$delayed/4294968/a",
        "$delayed/1/$SYS/a",
    ] {
        for qos in [0, 1, 2] {
            let mut publisher = open(cluster, 0, version, "del-bad").await;
            let publish = Publish::new(topic, "x", qos);
            let is_sys = topic.contains("$SYS");
            if version == Version::V5 && qos > 0 {
                assert_eq!(publisher.publish_packet(publish).await, 0x90, "{topic}");
                publisher.ping().await;
            } else if !(is_sys && qos == 0) {
                let pid = u16::from(qos > 0);
                let publish = Publish { pid, ..publish };
                publisher.send(&publish.encode(version)).await.expect("sent");
                let (code, _) = publisher.closed_by_server(SOON).await;
                assert_eq!(code, (version == Version::V5).then_some(0x90), "{topic}");
            }
        }
    }
    // Wills have a delay of their own.
    let connect = Connect::clean(version, "del-will").will(Will::new("$delayed/1/a", "x", 1));
    let (_, connack) = Client::try_connect(cluster.mqtt(0), &connect, SOON)
        .await
        .expect("CONNACK");
    assert!(
        matches!(connack, Packet::Connack { code, .. } if code != 0),
        "{connack:?}"
    );
    // Nothing is ever published there.
    let mut watcher = open(cluster, 1, version, "del-watch").await;
    watcher
        .subscribe(&[("$delayed/#", 2), (&format!("del-end/{version:?}"), 1)])
        .await;
    let mut publisher = open(cluster, 2, version, "del-watch-pub").await;
    publisher
        .publish(&format!("$delayed/0/del-end/{version:?}"), "end", 1)
        .await;
    assert!(watcher.messages_until("end").await.is_empty());
}

async fn properties_and_expiry(cluster: &Cluster) {
    let mut subscriber = open(cluster, 0, Version::V5, "delp-sub").await;
    subscriber.subscribe(&[("later-props", 1)]).await;
    let mut publisher = open(cluster, 1, Version::V5, "delp-pub").await;
    let user = Property(USER_PROPERTY, Value::Pair("k".into(), "v".into()));
    // It would be over long before its time if it counted from the publish.
    let publish = Publish {
        properties: vec![Property(MESSAGE_EXPIRY_INTERVAL, Value::Four(4)), user.clone()],
        ..Publish::new("$delayed/6/later-props", "x", 1)
    };
    publisher.publish_packet(publish).await;
    let message = subscriber.message().await;
    assert!(message.properties.contains(&user), "{message:?}");
    assert!(
        message
            .properties
            .iter()
            .any(|property| property.0 == MESSAGE_EXPIRY_INTERVAL)
    );
}

/// As many as may wait, and no more; what a rule denies for the topic is denied at once; counted.
#[tokio::test(flavor = "multi_thread")]
async fn limits_and_rules_are_those_of_the_topic() {
    let _alone = crate::support::alone().await;
    let environment = [
        ("LONTRA__CLUSTER__SHARDS", "1"),
        ("LONTRA__TOPICS__DELAYED_MESSAGES_MAX", "3"),
        ("LONTRA__TOPICS__POLICY", r##"[{ filter = "limited/#", qos_max = 0 }]"##),
        (
            "LONTRA__TOPICS__REWRITE",
            r#"[{ on = "publish", from = '^old/(.+)$', to = 'new/$1' }]"#,
        ),
        (
            "LONTRA__AUTH__RULES",
            r##"["deny publish denied", "allow publish,subscribe #"]"##,
        ),
    ];
    let dir = tempfile::Builder::new().prefix("lontra-wire-").tempdir();
    let cluster = Cluster::start_in(dir.expect("a directory").keep(), 3, &environment).await;
    let waiting = || async {
        let scrape = cluster.all_metrics().await;
        (
            scrape.sum("lontra_delayed_messages"),
            scrape.sum("lontra_delayed_released_total"),
        )
    };
    for (round, version) in (0..).zip(VERSIONS) {
        let mut subscriber = open(&cluster, 0, version, "lim-sub").await;
        subscriber.subscribe(&[("new/#", 1)]).await;
        let mut publisher = open(&cluster, 1, version, "lim-pub").await;
        if version == Version::V5 {
            assert_eq!(
                publisher
                    .publish_packet(Publish::new("$delayed/1/denied", "x", 1))
                    .await,
                0x87
            );
            assert_eq!(
                publisher
                    .publish_packet(Publish::new("$delayed/1/limited/a", "x", 1))
                    .await,
                0x83
            );
        }
        for n in 0..3 {
            publisher
                .publish_packet(Publish::new("$delayed/8/old/a", n.to_string(), 1 + n % 2))
                .await;
        }
        let stored = (3.0, 3.0 * f64::from(round));
        eventually("all wait", SOON, || async { (waiting().await == stored).then_some(()) }).await;
        eventually("the status tells", SOON, || async {
            let status = cluster.status(cluster.nodes[1].id).await.expect("/api/v1/status");
            let of_groups = status["groups"].as_array().expect("groups").iter();
            let delayed: Vec<_> = of_groups.map(|group| group["delayed"].as_u64()).collect();
            (delayed == [Some(0), Some(3)]).then_some(())
        })
        .await;
        for qos in [1, 2] {
            let mut beyond = open(&cluster, 2, version, "lim-beyond").await;
            let publish = Publish::new("$delayed/8/new/a", "beyond", qos);
            if version == Version::V5 {
                assert_eq!(beyond.publish_packet(publish).await, 0x97);
            } else {
                let publish = Publish { pid: 1, ..publish };
                beyond.send(&publish.encode(version)).await.expect("sent");
                beyond.closed_by_server(SOON).await;
            }
        }
        for n in 0..3 {
            let message = subscriber.message().await;
            assert_eq!((&*message.topic, message.text()), ("new/a", n.to_string()));
        }
        let released = 3.0 * f64::from(round + 1);
        eventually("all are counted as released", SOON, || async {
            (waiting().await == (0.0, released)).then_some(())
        })
        .await;
        subscriber.disconnect().await;
    }
    cluster.assert_no_panic();
}

/// What a round published, by payload; topics of all shards, QoS 1 and 2.
async fn publish_round(
    cluster: &Cluster,
    address: &str,
    round: usize,
    seconds: impl Fn(usize) -> usize,
) -> Vec<String> {
    let mut publisher = Client::open(address, VERSIONS[round % 2], &format!("fault-pub-{round}")).await;
    let mut payloads = Vec::new();
    for n in 0..MESSAGES {
        let topic = format!("$delayed/{}/fault/{}", seconds(n), n % TOPICS);
        let payload = format!("{round}-{n}");
        let publish = Publish::new(&topic, payload.clone(), 1 + (n / TOPICS % 2) as u8);
        assert_eq!(publisher.publish_packet(publish).await, 0);
        payloads.push(payload);
    }
    assert!(!cluster.up().is_empty());
    payloads
}

/// All of `payloads` come; then every topic is closed by another message, and each of them has come once until that.
async fn each_came_once(cluster: &Cluster, witness: &mut Client, round: usize, payloads: &[String]) {
    let mut seen = BTreeMap::<String, usize>::new();
    while seen.len() < payloads.len() {
        *seen.entry(witness.message().await.text()).or_default() += 1;
    }
    let address = cluster.node(*cluster.up().last().expect("a node")).mqtt.clone();
    let mut publisher = Client::open(&address, Version::V5, &format!("fault-end-{round}")).await;
    for topic in 0..TOPICS {
        publisher.publish(&format!("fault/{topic}"), "end", 1).await;
    }
    let mut ends = 0;
    while ends < TOPICS {
        let message = witness.message().await;
        match message.text() {
            text if text == "end" => ends += 1,
            text => *seen.entry(text).or_default() += 1,
        }
    }
    let wrong: Vec<_> = payloads
        .iter()
        .filter(|payload| seen.get(*payload) != Some(&1))
        .map(|payload| (payload, seen.get(payload)))
        .collect();
    assert!(wrong.is_empty(), "not once: {wrong:?}\n{}", cluster.logs());
    assert_eq!(seen.len(), payloads.len(), "{seen:?}");
    eventually("nothing waits any more", START, || async {
        let scrapes = cluster.scrape_all().await;
        let waits: f64 = scrapes
            .iter()
            .map(|(_, _, scrape)| scrape.sum("lontra_delayed_messages"))
            .sum();
        (waits == 0.0).then_some(())
    })
    .await;
}

/// Nodes that lead shards die while what they have to publish becomes due; then all of them while it waits.
#[tokio::test(flavor = "multi_thread")]
async fn delayed_messages_come_once_whichever_nodes_die() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    for round in 0..ROUNDS {
        let victim = cluster.leader_of(&format!("shard-{}", round * 5 % 12)).await;
        let survivors: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != victim).collect();
        let mut witness = persistent(&cluster.node(survivors[0]).mqtt, &format!("witness-{round}")).await;
        witness.subscribe(&[("fault/+", 2)]).await;
        let published = Instant::now();
        let payloads = publish_round(&cluster, &cluster.node(survivors[1]).mqtt, round, |n| 1 + n % 4).await;
        tokio::time::sleep_until((published + Duration::from_millis(1500 + 400 * round as u64)).into()).await;
        cluster.kill(victim).await;
        each_came_once(&cluster, &mut witness, round, &payloads).await;
        cluster.start_node(victim);
        cluster.wait_ready(victim, START).await;
        witness.disconnect().await;
    }

    let mut witness = persistent(cluster.mqtt(0), "witness-all").await;
    witness.subscribe(&[("fault/+", 2)]).await;
    let payloads = publish_round(&cluster, cluster.mqtt(1), ROUNDS, |n| 3 + n % 5).await;
    cluster.kill_all(&cluster.ids()).await;
    drop(witness);
    for id in cluster.ids() {
        cluster.start_node(id);
    }
    cluster.wait_all_ready().await;
    let mut witness = persistent(cluster.mqtt(2), "witness-all").await;
    each_came_once(&cluster, &mut witness, ROUNDS, &payloads).await;
    cluster.assert_no_panic();
}

const ROUNDS: usize = 4;
const MESSAGES: usize = 96;
const TOPICS: usize = 24;
