//! `$SYS` through the wire: what a node tells its clients about itself, at once and again and again, and to nobody else.

use crate::support::SOON;
use crate::support::client::Client;
use crate::support::cluster::Cluster;
use crate::support::codec::{
    Connect, Packet, Property, Publish, RECEIVE_MAXIMUM, SUBSCRIPTION_IDENTIFIER, VERSIONS, Value, Version, Will,
};
use std::collections::BTreeMap;
use std::process::Stdio;
use tokio::process::Command;
use tokio::time::timeout;

/// A node that tells of itself every `interval`.
async fn node(interval: &str) -> (tempfile::TempDir, Cluster) {
    nodes(1, interval).await
}

async fn nodes(count: usize, interval: &str) -> (tempfile::TempDir, Cluster) {
    let dir = tempfile::tempdir().expect("a directory");
    let cluster = Cluster::start_in(dir.path().to_owned(), count, &[("LONTRA__SYS__INTERVAL", interval)]).await;
    (dir, cluster)
}

/// Nobody waits for its second time.
const ONCE: &str = "1h";
const OFTEN: &str = "1s";

/// What comes for `$SYS/#` until `last` has come, by topic.
async fn told(client: &mut Client, last: &str) -> BTreeMap<String, Publish> {
    let mut told = BTreeMap::new();
    while !told.contains_key(last) {
        let message = client.message().await;
        told.insert(message.topic.clone(), message);
    }
    told
}

// ---- at once ----

#[tokio::test]
async fn a_new_subscription_is_told_at_once_in_both_families() {
    let _alone = crate::support::alone().await;
    let (_dir, cluster) = node(ONCE).await;
    let id = cluster.ids()[0];
    for version in VERSIONS {
        let mut client = Client::open(cluster.mqtt(0), version, "sys-reader").await;
        client.subscribe(&[("$SYS/#", 1)]).await;
        let last = format!("$SYS/brokers/{id}/metrics/messages/dropped");
        let told = told(&mut client, &last).await;
        for (topic, message) in &told {
            assert!(topic.starts_with("$SYS/"), "{topic}");
            assert!(message.retain && message.qos == 0, "{message:?}");
        }
        let text = |topic: &str| match told.get(topic) {
            Some(message) => message.text(),
            None => panic!("{topic} is not among {:?}", told.keys()),
        };
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(text("$SYS/broker/version"), format!("lontra version {version}"));
        assert!(text("$SYS/broker/uptime").ends_with(" seconds"));
        assert_eq!(text("$SYS/broker/clients/connected"), "1");
        assert_eq!(text("$SYS/broker/clients/total"), "1");
        assert_eq!(text("$SYS/broker/subscriptions/count"), "1");
        assert_eq!(text("$SYS/broker/retained messages/count"), "0");
        assert_eq!(text("$SYS/brokers"), id.to_string());
        assert_eq!(text(&format!("$SYS/brokers/{id}/version")), version);
        assert_eq!(text(&format!("$SYS/brokers/{id}/stats/subscriptions/count")), "1");
        for topic in [
            "$SYS/broker/messages/received",
            "$SYS/broker/messages/sent",
            "$SYS/broker/bytes/received",
            "$SYS/broker/bytes/sent",
        ] {
            assert!(text(topic).parse::<u64>().expect("a number") > 0, "{topic}");
        }
        for minutes in ["1min", "5min", "15min"] {
            let load = text(&format!("$SYS/broker/load/publish/sent/{minutes}"));
            assert!(load.parse::<f64>().is_ok(), "{load}");
        }
        client.disconnect().await;
    }
}

#[tokio::test]
async fn mosquitto_sub_is_answered_at_once() {
    let _alone = crate::support::alone().await;
    let (_dir, cluster) = node(ONCE).await;
    let (host, port) = cluster.mqtt(0).rsplit_once(':').expect("host:port");
    for version in ["mqttv311", "mqttv5"] {
        let command = Command::new("mosquitto_sub")
            .args(["-h", host, "-p", port, "-V", version, "-t", "$SYS/#", "-C", "5", "-v"])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = timeout(SOON, command)
            .await
            .expect("mosquitto_sub ends")
            .expect("mosquitto_sub (package mosquitto-clients)");
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).expect("text");
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(text.lines().all(|line| line.starts_with("$SYS/")), "{text}");
    }
}

#[tokio::test]
async fn retain_handling_decides_what_a_subscription_is_told_at_once() {
    let _alone = crate::support::alone().await;
    let (_dir, cluster) = node(ONCE).await;
    let mut client = Client::open(cluster.mqtt(0), Version::V5, "sys-handling").await;
    let (never, if_new) = (2 << 4, 1 << 4);
    client.subscribe(&[("$SYS/broker/uptime", never)]).await;
    client.subscribe(&[("$SYS/broker/version", if_new)]).await;
    client.subscribe(&[("$SYS/broker/version", if_new)]).await;
    client.subscribe(&[("$SYS/brokers", 0)]).await;
    let topics = [client.message().await.topic, client.message().await.topic];
    assert_eq!(topics, ["$SYS/broker/version", "$SYS/brokers"]);
    client.ping().await;
    assert!(!client.has_kept());
}

#[tokio::test]
async fn nothing_of_it_is_kept_for_a_client_that_lets_messages_wait() {
    let _alone = crate::support::alone().await;
    let (_dir, cluster) = node(ONCE).await;
    let connect = Connect::clean(Version::V5, "sys-stuck").property(RECEIVE_MAXIMUM, Value::Two(1));
    let (mut stuck, _) = Client::connect(cluster.mqtt(0), &connect).await;
    stuck.subscribe(&[("sys/stuck", 1)]).await;
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "sys-publisher").await;
    publisher
        .publish_all("sys/stuck", &vec![b"x".to_vec(); WAITING], WAITING)
        .await;
    let before = dropped(&cluster).await;
    stuck.subscribe(&[("$SYS/#", 0)]).await;
    crate::support::eventually("all of it is dropped", SOON, || async {
        (dropped(&cluster).await >= before + TOPICS_LEAST).then_some(())
    })
    .await;
    for _ in 0..WAITING {
        let message = stuck.message().await;
        assert_eq!(message.topic, "sys/stuck");
    }
}

async fn dropped(cluster: &Cluster) -> f64 {
    let metrics = cluster.metrics(cluster.ids()[0]).await;
    metrics.sum_where("lontra_messages_dropped_total", "outbox_full")
}

const WAITING: usize = 60;
/// Both families have more.
const TOPICS_LEAST: f64 = 40.0;

// ---- again and again ----

#[tokio::test]
async fn values_move_and_are_published_again() {
    let _alone = crate::support::alone().await;
    let (_dir, cluster) = node(OFTEN).await;
    let mut client = Client::open(cluster.mqtt(0), Version::V5, "sys-mover").await;
    let topic = "$SYS/broker/publish/messages/received";
    client.subscribe(&[(topic, 0)]).await;
    let first = client.message().await;
    let before: u64 = first.text().parse().expect("a number");
    for n in 0..10 {
        client.publish("sys/elsewhere", n.to_string(), 1).await;
    }
    // Once a second; the connection must bring it within SOON each time.
    loop {
        let message = client.message().await;
        assert_eq!(message.topic, topic);
        assert!(!message.retain, "published, not retained: {message:?}");
        let now: u64 = message.text().parse().expect("a number");
        assert!(now >= before);
        if now >= before + 10 {
            break;
        }
    }
}

#[tokio::test]
async fn each_node_tells_of_itself_alone() {
    let _alone = crate::support::alone().await;
    let (_dir, cluster) = nodes(3, OFTEN).await;
    let ids = cluster.ids();
    let all: Vec<String> = ids.iter().map(u64::to_string).collect();
    let mut clients = Vec::new();
    for index in 0..3 {
        let mut client = Client::open(cluster.mqtt(index), Version::V5, &format!("sys-{index}")).await;
        client.subscribe(&[("$SYS/brokers", 0)]).await;
        assert_eq!(client.message().await.text(), all.join(","));
        client.unsubscribe(&["$SYS/brokers"]).await;
        client
            .subscribe(&[("$SYS/brokers/+/uptime", 0), ("$SYS/broker/clients/connected", 0)])
            .await;
        clients.push(client);
    }
    // At once, and twice more, while the others are told of their nodes.
    for (client, id) in clients.iter_mut().zip(ids) {
        let mut uptimes = 0;
        while uptimes < 3 {
            let message = client.message().await;
            match message.topic.as_str() {
                "$SYS/brokers" => {}
                "$SYS/broker/clients/connected" => assert_eq!(message.text(), "1"),
                topic => {
                    assert_eq!(topic, format!("$SYS/brokers/{id}/uptime"));
                    uptimes += 1;
                }
            }
        }
    }
    for id in cluster.ids() {
        let metrics = cluster.metrics(id).await;
        assert_eq!(
            metrics.sum("lontra_link_ephemeral_frames_sent_total"),
            0.0,
            "nothing is forwarded"
        );
    }
}

#[tokio::test]
async fn wildcards_at_the_first_level_do_not_see_it() {
    let _alone = crate::support::alone().await;
    let (_dir, cluster) = node(OFTEN).await;
    let mut client = Client::open(cluster.mqtt(0), Version::V5, "sys-wild").await;
    let identified = |identifier| [Property(SUBSCRIPTION_IDENTIFIER, Value::Var(identifier))];
    client
        .subscribe_with(&identified(1), &[("#", 0), ("+/broker/uptime", 0), ("+/#", 0)])
        .await;
    client
        .subscribe_with(&identified(2), &[("$SYS/broker/uptime", 0)])
        .await;
    // At once, and twice more.
    for _ in 0..3 {
        let message = client.message().await;
        assert_eq!(message.topic, "$SYS/broker/uptime", "[MQTT-4.7.2-1]");
        assert_eq!(message.properties, identified(2));
    }
}

#[tokio::test]
async fn a_durable_session_gets_it_while_it_is_connected() {
    let _alone = crate::support::alone().await;
    let (_dir, cluster) = node(OFTEN).await;
    let seconds = |message: &Publish| -> u64 {
        let text = message.text();
        text.trim_end_matches(" seconds").parse().expect("a number")
    };
    let durable = Connect::persistent(Version::V5, "sys-durable");
    let (mut client, _) = Client::connect(cluster.mqtt(0), &durable).await;
    client.subscribe(&[("$SYS/broker/uptime", 1)]).await;
    for _ in 0..3 {
        assert_eq!(client.message().await.qos, 0);
    }
    client.disconnect().await;
    let mut observer = Client::open(cluster.mqtt(0), Version::V5, "sys-observer").await;
    observer.subscribe(&[("$SYS/broker/uptime", 0)]).await;
    let mut last = 0;
    for _ in 0..4 {
        last = seconds(&observer.message().await);
    }
    let (mut client, _) = Client::connect(cluster.mqtt(0), &durable).await;
    let next = client.message().await;
    assert!(
        seconds(&next) >= last,
        "nothing waited for the session: {next:?}, after {last}"
    );
}

#[tokio::test]
async fn clients_that_come_and_go_are_told() {
    let _alone = crate::support::alone().await;
    let (_dir, cluster) = node(ONCE).await;
    let id = cluster.ids()[0];
    let mut watcher = Client::open(cluster.mqtt(0), Version::V5, "sys-watcher").await;
    watcher.subscribe(&[("$SYS/brokers/+/clients/#", 0)]).await;
    let guest = Client::open(cluster.mqtt(0), Version::V311, "sys-guest").await;
    guest.disconnect().await;
    for what in ["connected", "disconnected"] {
        let message = watcher.message().await;
        assert_eq!(message.topic, format!("$SYS/brokers/{id}/clients/sys-guest/{what}"));
        let about: serde_json::Value = serde_json::from_str(&message.text()).expect("JSON");
        assert_eq!(about["clientid"], "sys-guest", "{about}");
    }
    // No topic has such a level.
    let mut odd = Client::open(cluster.mqtt(0), Version::V5, "sys/+/#").await;
    odd.ping().await;
    odd.disconnect().await;
    let next = Client::open(cluster.mqtt(0), Version::V5, "sys-next").await;
    let message = watcher.message().await;
    assert_eq!(message.topic, format!("$SYS/brokers/{id}/clients/sys-next/connected"));
    next.disconnect().await;
}

// ---- not by clients ----

#[tokio::test]
async fn clients_cannot_publish_there() {
    let _alone = crate::support::alone().await;
    let (_dir, cluster) = node(ONCE).await;
    let at = cluster.mqtt(0);
    let mut reader = Client::open(at, Version::V5, "sys-reader").await;
    reader.subscribe(&[("$SYS/mine/#", 1), ("sys/fence", 1)]).await;
    let mut client = Client::open(at, Version::V5, "sys-writer").await;
    for retain in [false, true] {
        for qos in [0, 1, 2] {
            let publish = Publish {
                retain,
                ..Publish::new("$SYS/mine/x", "x", qos)
            };
            let code = client.publish_packet(publish).await;
            let expected = if qos == 0 { 0 } else { TOPIC_NAME_INVALID };
            assert_eq!(code, expected, "QoS {qos}");
        }
    }
    // 3.1.1 cannot be told: it is closed; at QoS 0 the message is dropped.
    for qos in [1, 2] {
        let mut old = Client::open(at, Version::V311, "sys-old").await;
        let publish = Publish {
            pid: 1,
            ..Publish::new("$SYS/mine/x", "x", qos)
        };
        old.send(&publish.encode(Version::V311)).await.expect("PUBLISH");
        old.closed_by_server(SOON).await;
    }
    let mut old = Client::open(at, Version::V311, "sys-old").await;
    old.publish("$SYS/mine/x", "x", 0).await;
    old.ping().await;
    client.publish("sys/fence", "fence", 1).await;
    let got = reader.messages_until("fence").await;
    assert!(got.is_empty(), "{got:?}");
    // Nor by their wills.
    let dying = |version| Connect::clean(version, "sys-dying").will(Will::new("$SYS/mine/will", "x", 0));
    for (version, expected) in [(Version::V5, TOPIC_NAME_INVALID), (Version::V311, NOT_AUTHORIZED)] {
        match Client::try_connect(at, &dying(version), SOON).await {
            Ok((_, Packet::Connack { code, .. })) => assert_eq!(code, expected, "{version:?}"),
            other => panic!("{version:?}: {:?}", other.map(|answer| answer.1)),
        }
    }
    // All of them were counted.
    let counted = cluster.metrics(cluster.ids()[0]).await;
    assert_eq!(counted.sum_where("lontra_connects_total", "topic name invalid"), 2.0);
    assert_eq!(
        counted.sum_where("lontra_publishes_refused_total", "topic name invalid"),
        9.0
    );
    // Other names that begin with $ are as they were.
    reader.subscribe(&[("$other/#", 1)]).await;
    client.publish("$other/x", "other", 1).await;
    assert_eq!(reader.message().await.text(), "other");
}

#[tokio::test]
async fn none_of_it_is_there_when_it_is_off() {
    let _alone = crate::support::alone().await;
    let (_dir, cluster) = node("0s").await;
    let mut client = Client::open(cluster.mqtt(0), Version::V5, "sys-off").await;
    client.subscribe(&[("$SYS/#", 0), ("sys/fence", 1)]).await;
    client.publish("sys/fence", "fence", 1).await;
    let got = client.messages_until("fence").await;
    assert!(got.is_empty(), "{got:?}");
}

const TOPIC_NAME_INVALID: u8 = 0x90;
/// Return code of a 3.1.1 CONNACK.
const NOT_AUTHORIZED: u8 = 5;
