//! Three real nodes through the wire: what clients are promised while nothing fails, and the loss of one node.
//!
//! Tests that leave the nodes as they were share one cluster; topics and client ids are their own. Those that kill nodes
//! or count frames have a cluster of their own.

use crate::support::client::{Client, Gone};
use crate::support::cluster::{Cluster, LONTRA, free_ports, http_get, shared};
use crate::support::codec::{
    self, Connect, MAXIMUM_PACKET_SIZE, MAXIMUM_QOS, Packet, Publish, RECEIVE_MAXIMUM, RETAIN_AVAILABLE,
    SESSION_EXPIRY_INTERVAL, VERSIONS, Value, Version,
};
use crate::support::load::{Load, Plan, judge};
use crate::support::metrics::Scrape;
use crate::support::random::Random;
use crate::support::{SOON, START, eventually, mosquitto};
use rustix::process::{Pid, Signal, kill_process};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::time::{interval, sleep, timeout};

// ---- every pair of nodes, every client ----

#[tokio::test]
async fn every_pair_of_nodes_delivers() {
    crate::support::pairs::every_pair_delivers(shared()).await;
}

#[tokio::test]
async fn every_pair_of_nodes_delivers_with_mosquitto_clients() {
    let cluster = shared();
    for (version, qos) in [
        (Version::V311, 0),
        (Version::V311, 1),
        (Version::V5, 0),
        (Version::V5, 1),
    ] {
        for (s, p) in pairs(3) {
            let topic = format!("mosquitto/{version:?}/{qos}/{s}/{p}");
            let mut sub = mosquitto::Sub::start(cluster.mqtt(s), version, &topic, qos).await;
            mosquitto::publish(cluster.mqtt(p), version, &topic, "across nodes", qos).await;
            assert_eq!(sub.message().await, format!("{qos} {topic} across nodes"));
        }
    }
}

#[tokio::test]
async fn every_pair_of_nodes_delivers_with_rumqttc_v3() {
    use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
    let cluster = shared();
    for (index, (s, p)) in pairs(3).into_iter().enumerate() {
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
            let name = format!("rumqttc3-{index}-{}", qos as u8);
            let options = |role: &str, node: usize| {
                let (host, port) = cluster.mqtt(node).rsplit_once(':').expect("host:port");
                let mut options = MqttOptions::new(format!("{name}-{role}"), host, port.parse().expect("a port"));
                options.set_keep_alive(Duration::from_secs(30));
                options
            };
            let (subscriber, mut received) = AsyncClient::new(options("s", s), 20);
            subscriber.subscribe(&name, qos).await.expect("queued");
            within("SUBACK", async {
                while !matches!(
                    received.poll().await.expect("a connection"),
                    Event::Incoming(Packet::SubAck(_))
                ) {}
            })
            .await;
            let (publisher, mut sent) = AsyncClient::new(options("p", p), 20);
            for n in 0..RUMQTTC_MESSAGES {
                publisher
                    .publish(&name, qos, false, format!("{n}"))
                    .await
                    .expect("queued");
            }
            let sending = tokio::spawn(async move { while sent.poll().await.is_ok() {} });
            for n in 0..RUMQTTC_MESSAGES {
                let publish = within("a message", async {
                    loop {
                        if let Event::Incoming(Packet::Publish(publish)) = received.poll().await.expect("a connection")
                        {
                            return publish;
                        }
                    }
                })
                .await;
                assert_eq!(
                    (publish.topic, publish.qos, &publish.payload[..]),
                    (name.clone(), qos, n.to_string().as_bytes())
                );
            }
            sending.abort();
        }
    }
}

#[tokio::test]
async fn every_pair_of_nodes_delivers_with_rumqttc_v5() {
    use rumqttc::v5::mqttbytes::{QoS, v5::Packet};
    use rumqttc::v5::{AsyncClient, Event, MqttOptions};
    let cluster = shared();
    for (index, (s, p)) in pairs(3).into_iter().enumerate() {
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
            let name = format!("rumqttc5-{index}-{}", qos as u8);
            let options = |role: &str, node: usize| {
                let (host, port) = cluster.mqtt(node).rsplit_once(':').expect("host:port");
                let mut options = MqttOptions::new(format!("{name}-{role}"), host, port.parse().expect("a port"));
                options.set_keep_alive(Duration::from_secs(30));
                options
            };
            let (subscriber, mut received) = AsyncClient::new(options("s", s), 20);
            subscriber.subscribe(&name, qos).await.expect("queued");
            within("SUBACK", async {
                while !matches!(
                    received.poll().await.expect("a connection"),
                    Event::Incoming(Packet::SubAck(_))
                ) {}
            })
            .await;
            let (publisher, mut sent) = AsyncClient::new(options("p", p), 20);
            for n in 0..RUMQTTC_MESSAGES {
                publisher
                    .publish(&name, qos, false, format!("{n}"))
                    .await
                    .expect("queued");
            }
            let sending = tokio::spawn(async move { while sent.poll().await.is_ok() {} });
            for n in 0..RUMQTTC_MESSAGES {
                let publish = within("a message", async {
                    loop {
                        if let Event::Incoming(Packet::Publish(publish)) = received.poll().await.expect("a connection")
                        {
                            return publish;
                        }
                    }
                })
                .await;
                assert_eq!((&publish.topic[..], publish.qos), (name.as_bytes(), qos));
                assert_eq!(&publish.payload[..], n.to_string().as_bytes());
            }
            sending.abort();
        }
    }
}

#[tokio::test]
async fn a_publish_right_after_the_suback_is_delivered_from_any_node() {
    // subscribe-visible, again and again: new filters, wildcard and not, so that no cache can know them.
    let cluster = shared();
    for round in 0..30 {
        let version = VERSIONS[round % 2];
        let mut publisher = Client::open(cluster.mqtt((round + 1) % 3), version, &format!("barrier-p{round}")).await;
        // A match result that is cached before the subscription exists must not survive it.
        publisher.publish(&format!("barrier/{round}/x"), "before", 1).await;
        let mut subscriber = Client::open(cluster.mqtt(round % 3), version, &format!("barrier-s{round}")).await;
        let filter = if round % 3 == 0 {
            format!("barrier/{round}/x")
        } else {
            format!("barrier/{round}/+")
        };
        subscriber.subscribe(&[(&filter, 1)]).await;
        publisher.publish(&format!("barrier/{round}/x"), "after", 1).await;
        assert_eq!(subscriber.message().await.text(), "after");
    }
}

#[tokio::test]
async fn a_node_without_a_matching_session_receives_no_ephemeral_frame() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let [a, b, c] = cluster.ids()[..] else {
        panic!("three nodes")
    };
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "frames-p").await;
    let mut subscriber = Client::open(cluster.mqtt(1), Version::V5, "frames-s").await;
    subscriber.subscribe(&[("frames/+", 1)]).await;
    let mut elsewhere = Client::open(cluster.mqtt(2), Version::V5, "frames-e").await;
    elsewhere.subscribe(&[("elsewhere/#", 1)]).await;

    let before = [
        cluster.metrics(a).await,
        cluster.metrics(b).await,
        cluster.metrics(c).await,
    ];
    for n in 0..FRAMES {
        publisher.publish("frames/x", format!("{n}"), 1).await;
        publisher.publish("frames/x", format!("{n}"), 0).await;
        publisher.publish("nobody/x", format!("{n}"), 1).await;
    }
    for _ in 0..2 * FRAMES {
        subscriber.message().await;
    }
    let after = [
        cluster.metrics(a).await,
        cluster.metrics(b).await,
        cluster.metrics(c).await,
    ];

    let moved = |node: usize, family: &str, peer: u64| {
        let label = format!("peer=\"{peer}\"");
        after[node].sum_where(family, &label) - before[node].sum_where(family, &label)
    };
    let sent = |node, peer| moved(node, "lontra_link_ephemeral_frames_sent_total", peer);
    let received = |node, peer| moved(node, "lontra_link_ephemeral_frames_received_total", peer);
    // A frame may carry several messages, but the publisher waited for each QoS 1.
    assert!(
        sent(0, b) >= FRAMES as f64 && sent(0, b) <= 2.0 * FRAMES as f64,
        "a to b: {}",
        sent(0, b)
    );
    assert_eq!(sent(0, b), received(1, a), "what a sent, b received");
    for (node, peer) in [(0, c), (1, a), (1, c), (2, a), (2, b)] {
        assert_eq!(sent(node, peer), 0.0, "node index {node} sent frames to node {peer}");
    }
    for (node, peer) in [(0, b), (0, c), (1, c), (2, a), (2, b)] {
        assert_eq!(
            received(node, peer),
            0.0,
            "node index {node} received frames from node {peer}"
        );
    }
}

// ---- sessions ----

#[tokio::test]
async fn a_persistent_session_follows_its_client_to_a_third_node() {
    let cluster = shared();
    for (index, version) in VERSIONS.into_iter().cycle().take(6).enumerate() {
        let [first, second, third] = [[0, 1, 2], [1, 2, 0], [2, 0, 1]][index / 2];
        let topic = format!("follow/{index}");
        let connect = Connect::persistent(version, &format!("follow-{index}"));
        let (mut client, connack) = Client::connect(cluster.mqtt(first), &connect).await;
        assert!(!present(&connack), "a new session");
        client.subscribe(&[(&topic, 1)]).await;
        client.disconnect().await;

        let mut publisher = Client::open(cluster.mqtt(second), version, &format!("follow-p{index}")).await;
        publisher.publish_all(&topic, &numbered(0..100), 20).await;

        let (mut client, connack) = Client::connect(cluster.mqtt(third), &connect).await;
        assert!(present(&connack), "Session Present");
        for n in 0..100 {
            let message = client.message().await;
            assert_eq!((message.text(), message.qos, message.dup), (n.to_string(), 1, false));
        }
        client.disconnect().await;
        let (mut client, connack) = Client::connect(cluster.mqtt(first), &connect).await;
        assert!(present(&connack));
        publisher.publish(&topic, "new", 1).await;
        // An acknowledgement that the old owner did not get through is settled by a re-delivery, which says so.
        let again = client.messages_until("new").await;
        assert!(again.iter().all(|message| message.dup), "{again:?}");
    }
}

#[tokio::test]
async fn unacknowledged_messages_come_again_with_dup_and_their_packet_identifiers() {
    let cluster = shared();
    for version in VERSIONS {
        let topic = format!("again/{version:?}");
        let connect = Connect::persistent(version, &format!("again-{version:?}"));
        let (mut client, _) = Client::connect(cluster.mqtt(0), &connect).await;
        client.auto_acknowledge = false;
        client.subscribe(&[(&topic, 1)]).await;
        let mut publisher = Client::open(cluster.mqtt(1), version, &format!("again-p-{version:?}")).await;
        publisher.publish_all(&topic, &numbered(0..5), 5).await;
        let mut first = Vec::new();
        for _ in 0..5 {
            first.push(client.message().await);
        }
        // Gone without a word; another node takes over.
        drop(client);
        let (mut client, connack) = Client::connect(cluster.mqtt(2), &connect).await;
        assert!(present(&connack));
        for sent in first {
            let message = client.message().await;
            assert!(message.dup, "[MQTT-3.3.1-1] {message:?}");
            assert_eq!((message.text(), message.pid), (sent.text(), sent.pid), "[MQTT-4.4.0-1]");
        }
    }
}

#[tokio::test]
async fn a_node_that_restarted_cleanly_serves_what_waited_though_nothing_new_is_written() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let id = cluster.nodes[0].id;
    let connect = Connect::persistent(Version::V5, "idle");
    let (mut client, _) = Client::connect(cluster.mqtt(0), &connect).await;
    client.subscribe(&[("idle/#", 1)]).await;
    client.disconnect().await;
    // Over all shards: none of them writes another entry afterwards.
    let mut publisher = Client::open(cluster.mqtt(1), Version::V5, "idle-p").await;
    for n in 0..40 {
        publisher.publish(&format!("idle/{n}"), n.to_string(), 1).await;
    }
    cluster.terminate(id).await;
    cluster.start_node(id);
    cluster.wait_ready(id, START).await;
    let (mut client, connack) = Client::connect(cluster.mqtt(0), &connect).await;
    assert!(present(&connack));
    let mut got = BTreeSet::new();
    for _ in 0..40 {
        let message = client.message().await;
        assert!(!message.dup, "never sent before");
        got.insert(message.text());
    }
    assert_eq!(got.len(), 40);
    cluster.assert_no_panic();
}

#[tokio::test]
async fn a_will_follows_a_lost_connection_and_no_clean_one() {
    let cluster = shared();
    let mut heir = Client::open(cluster.mqtt(1), Version::V5, "will-heir").await;
    heir.subscribe(&[("will/+", 1)]).await;
    let (host, port) = cluster.mqtt(0).split_once(':').expect("host:port");
    for (topic, signal) in [("will/clean", Signal::TERM), ("will/lost", Signal::KILL)] {
        let mut owner = tokio::process::Command::new("stdbuf")
            .args([
                "-oL",
                "mosquitto_sub",
                "-h",
                host,
                "-p",
                port,
                "-t",
                "will-owner",
                "-d",
                "--will-qos",
                "1",
            ])
            .args(["--will-topic", topic, "--will-payload", topic])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("mosquitto_sub");
        let said = tokio::io::BufReader::new(owner.stdout.take().expect("its output"));
        let mut lines = tokio::io::AsyncBufReadExt::lines(said);
        while !within("SUBACK", lines.next_line())
            .await
            .expect("its output")
            .expect("a line")
            .starts_with("Subscribed")
        {}
        let pid = owner.id().and_then(|id| Pid::from_raw(id as i32)).expect("its process");
        kill_process(pid, signal).expect("a signal");
        within("its end", owner.wait()).await.expect("it ends");
    }
    // Wills and messages of one node arrive in order: the clean one's would have come first.
    assert_eq!(heir.message().await.text(), "will/lost");
}

#[tokio::test]
async fn an_offline_session_survives_the_kill_of_its_node() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let connect = Connect::persistent(Version::V5, "orphan");
    let (mut client, _) = Client::connect(cluster.mqtt(0), &connect).await;
    client.subscribe(&[("orphan/#", 1)]).await;
    client.disconnect().await;
    let mut publisher = Client::open(cluster.mqtt(1), Version::V5, "orphan-p").await;
    publisher.publish_all("orphan/x", &numbered(0..50), 10).await;
    cluster.kill(cluster.nodes[0].id).await;
    publisher.publish_all("orphan/x", &numbered(50..100), 10).await;
    let (mut client, connack) = Client::connect(cluster.mqtt(2), &connect).await;
    assert!(present(&connack), "Session Present");
    for n in 0..100 {
        assert_eq!(client.message().await.text(), n.to_string());
    }
    cluster.start_node(cluster.nodes[0].id);
    cluster.wait_ready(cluster.nodes[0].id, START).await;
    client.disconnect().await;
    let (_, connack) = Client::connect(cluster.mqtt(0), &connect).await;
    assert!(present(&connack), "on the node that came back");
    cluster.assert_no_panic();
}

#[tokio::test]
async fn a_connected_session_survives_the_kill_of_its_node() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let connect = Connect::persistent(Version::V311, "fugitive");
    let (mut client, _) = Client::connect(cluster.mqtt(0), &connect).await;
    client.subscribe(&[("fugitive/#", 1)]).await;
    let mut publisher = Client::open(cluster.mqtt(1), Version::V311, "fugitive-p").await;
    publisher.publish_all("fugitive/x", &numbered(0..20), 10).await;
    for n in 0..20 {
        assert_eq!(client.message().await.text(), n.to_string());
    }
    cluster.kill(cluster.nodes[0].id).await;
    let killed = Instant::now();
    let connack = eventually("the session on another node", SOON, || async {
        match Client::try_connect(cluster.mqtt(2), &connect, SOON).await {
            Ok((resumed, connack @ Packet::Connack { code: 0, .. })) => Some((resumed, connack)),
            _ => None,
        }
    });
    let (mut client, connack) = connack.await;
    println!("resumed {:?} after the kill (P10: 5 s)", killed.elapsed());
    assert!(present(&connack), "Session Present");
    publisher.publish_all("fugitive/x", &numbered(20..40), 10).await;
    // Acknowledgements that died with the node let messages come again, with DUP and before the new ones.
    let mut expected = 20;
    while expected < 40 {
        let message = client.message().await;
        match message.text().parse::<usize>().expect("a number") {
            n if n == expected => expected += 1,
            n => assert!(
                n < 20 && expected == 20 && message.dup,
                "{message:?} while {expected} is expected"
            ),
        }
    }
}

#[tokio::test]
async fn a_connect_on_another_node_closes_the_old_connection() {
    let cluster = shared();
    for version in VERSIONS {
        for clean in [false, true] {
            let name = format!("takeover-{version:?}-{clean}");
            let connect = if clean {
                Connect::clean(version, &name)
            } else {
                Connect::persistent(version, &name)
            };
            let (mut old, _) = Client::connect(cluster.mqtt(0), &connect).await;
            old.subscribe(&[(&name, 1)]).await;
            for (turn, node) in [1, 2, 2, 0].into_iter().enumerate() {
                let (mut new, connack) = Client::connect(cluster.mqtt(node), &connect).await;
                assert_eq!(present(&connack), !clean);
                let (code, _) = old.closed_by_server(SOON).await;
                assert_eq!(code, (version == Version::V5).then_some(SESSION_TAKEN_OVER));
                if clean {
                    new.subscribe(&[(&name, 1)]).await;
                }
                let mut publisher = Client::open(cluster.mqtt(1), version, &format!("{name}-p")).await;
                publisher.publish(&name, format!("turn {turn}"), 1).await;
                // What the old connection acknowledged just before may come once more, and says so. After a take-over all
                // that the session finds when it attaches may have been sent: this one too.
                let others = new.messages_until(&format!("turn {turn}")).await;
                assert!(others.iter().all(|message| message.dup), "{others:?}");
                old = new;
            }
        }
    }
}

#[tokio::test]
async fn a_clean_start_drops_the_session() {
    let cluster = shared();
    for version in VERSIONS {
        let name = format!("clean-{version:?}");
        let mut publisher = Client::open(cluster.mqtt(1), version, &format!("{name}-p")).await;
        let (mut client, _) = Client::connect(cluster.mqtt(0), &Connect::persistent(version, &name)).await;
        client.subscribe(&[(&name, 1)]).await;
        client.disconnect().await;
        publisher.publish(&name, "for the old session", 1).await;

        let (mut client, connack) = Client::connect(cluster.mqtt(2), &Connect::clean(version, &name)).await;
        assert!(!present(&connack));
        publisher.publish(&name, "for nobody", 1).await;
        expect_only_the_fence(&mut client, &mut publisher, &name).await;
        client.disconnect().await;
        let (_, connack) = Client::connect(cluster.mqtt(0), &Connect::persistent(version, &name)).await;
        assert!(!present(&connack), "the clean session ended with its connection");
    }
}

#[tokio::test]
async fn the_session_expiry_interval_decides_whether_a_session_stays() {
    let cluster = shared();
    let with = |name: &str, seconds: u32| {
        Connect {
            clean: false,
            ..Connect::clean(Version::V5, name)
        }
        .property(SESSION_EXPIRY_INTERVAL, Value::Four(seconds))
    };
    let resumed = async |node: usize, connect: &Connect| {
        let (client, connack) = Client::connect(cluster.mqtt(node), connect).await;
        client.disconnect().await;
        present(&connack)
    };

    let absent = Connect {
        clean: false,
        ..Connect::clean(Version::V5, "expiry-absent")
    };
    assert!(!resumed(0, &absent).await);
    assert!(!resumed(1, &absent).await, "absent means 0: ends with the connection");
    assert!(!resumed(0, &with("expiry-0", 0)).await);
    assert!(!resumed(1, &with("expiry-0", 0)).await);

    let never = with("expiry-never", u32::MAX);
    assert!(!resumed(0, &never).await);
    let (mut client, _) = Client::connect(cluster.mqtt(1), &with("expiry-disconnect", 3600)).await;
    client
        .send(&codec::disconnect_with_expiry(0))
        .await
        .expect("DISCONNECT");
    client.closed_by_server(SOON).await;
    assert!(
        !resumed(2, &with("expiry-disconnect", 3600)).await,
        "DISCONNECT set it to 0"
    );

    // Each look attaches, so the pauses between looks grow until one is longer than the interval on this machine.
    let second = with("expiry-1", 1);
    resumed(0, &second).await;
    let mut pause = Duration::from_secs(2);
    loop {
        sleep(pause).await;
        if !resumed(1, &second).await {
            break;
        }
        pause *= 2;
        assert!(
            pause < Duration::from_secs(40),
            "a session of 1 s is still there after {:?}",
            pause / 2
        );
    }
    assert!(resumed(2, &never).await, "the one that never expires is still there");
    let (client, _) = Client::connect(cluster.mqtt(0), &Connect::clean(Version::V5, "expiry-never")).await;
    client.disconnect().await;
}

// ---- one connection ----

#[tokio::test]
async fn silence_of_one_and_a_half_keep_alives_closes() {
    let cluster = shared();
    for version in VERSIONS {
        let name = format!("keep-alive-{version:?}");
        // From before CONNECT: the node's clock cannot have started earlier.
        let started = Instant::now();
        let (mut silent, _) = Client::connect(cluster.mqtt(0), &Connect::clean(version, &name).keep_alive(1)).await;
        let (code, _) = silent.closed_by_server(SOON).await;
        let after = started.elapsed();
        assert!(
            after >= Duration::from_millis(1_500),
            "closed after {after:?}, too early"
        );
        assert!(after < Duration::from_secs(8), "closed after {after:?}");
        assert_eq!(code, (version == Version::V5).then_some(KEEP_ALIVE_TIMEOUT));
    }
}

#[tokio::test]
async fn pings_keep_a_connection_open() {
    let cluster = shared();
    let connect = Connect::clean(Version::V311, "pings").keep_alive(2);
    let (mut client, _) = Client::connect(cluster.mqtt(1), &connect).await;
    let mut pace = interval(Duration::from_millis(500));
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(5) {
        pace.tick().await;
        client.ping().await;
    }
}

#[tokio::test]
async fn wildcards_match_as_the_standard_says_from_another_node() {
    let cluster = shared();
    let topics = ["w", "w/a", "w/b", "w/a/c", "w//c", "w/a/b/c", "/w", "$w/a"];
    for version in VERSIONS {
        let mut clients = Vec::new();
        for (index, filter) in ["w/#", "w/+", "w/+/c", "+/a", "#", "+", "/+", "$w/#", "$w/+", "w/a"]
            .iter()
            .enumerate()
        {
            let mut client = Client::open(cluster.mqtt(index % 2), version, &format!("wild-{version:?}-{index}")).await;
            let fence = format!("wild-fence/{version:?}");
            client.subscribe(&[(filter, 1), (&fence, 1)]).await;
            clients.push((filter, client));
        }
        let mut publisher = Client::open(cluster.mqtt(2), version, &format!("wild-p-{version:?}")).await;
        let mark = format!("wild {version:?}");
        for topic in topics {
            publisher.publish(topic, mark.clone(), 1).await;
        }
        // QoS 1 is acknowledged when it is in every outbox, so the fence comes last.
        publisher.publish(&format!("wild-fence/{version:?}"), "fence", 1).await;
        for (filter, mut client) in clients {
            let got = client.messages_until("fence").await;
            let mut got: Vec<_> = got.into_iter().filter(|m| m.text() == mark).map(|m| m.topic).collect();
            let mut expected: Vec<_> = topics
                .iter()
                .filter(|topic| crate::support::checker::matches(filter, topic))
                .map(|t| t.to_string())
                .collect();
            got.sort();
            expected.sort();
            assert_eq!(got, expected, "{filter}");
        }
    }
}

#[tokio::test]
async fn overlapping_filters_deliver_once_with_the_highest_qos() {
    let cluster = shared();
    for version in VERSIONS {
        for connect in [
            Connect::clean(version, &format!("overlap-c-{version:?}")),
            Connect::persistent(version, &format!("overlap-p-{version:?}")),
        ] {
            let name = format!("overlap/{version:?}/{}", connect.client_id);
            let (mut client, _) = Client::connect(cluster.mqtt(0), &connect).await;
            client
                .subscribe(&[(&name, 0), (&format!("{name}/#"), 1), (&format!("{name}/+"), 0)])
                .await;
            let mut publisher = Client::open(cluster.mqtt(1), version, "overlap-publisher").await;
            publisher.publish(&name, "once", 1).await;
            publisher.publish(&name, "end", 1).await;
            let got = client.messages_until("end").await;
            assert_eq!(
                got.iter().map(|m| (m.text(), m.qos)).collect::<Vec<_>>(),
                [("once".to_owned(), 1)]
            );
            client
                .unsubscribe(&[&name, &format!("{name}/#"), &format!("{name}/+")])
                .await;
        }
    }
}

#[tokio::test]
async fn unsubscribe_stops_delivery() {
    let cluster = shared();
    for version in VERSIONS {
        for connect in [
            Connect::clean(version, &format!("unsubscribe-c-{version:?}")),
            Connect::persistent(version, &format!("unsubscribe-p-{version:?}")),
        ] {
            let name = format!("unsubscribe/{version:?}/{}", connect.client_id);
            let (mut client, _) = Client::connect(cluster.mqtt(0), &connect).await;
            let mut publisher = Client::open(cluster.mqtt(1), version, "unsubscribe-publisher").await;
            client.subscribe(&[(&name, 1)]).await;
            publisher.publish(&name, "wanted", 1).await;
            assert_eq!(client.message().await.text(), "wanted");
            let codes = client.unsubscribe(&[&name]).await;
            assert_eq!(codes, if version == Version::V5 { vec![0] } else { vec![] });
            publisher.publish(&name, "unwanted", 1).await;
            expect_only_the_fence(&mut client, &mut publisher, &name).await;
        }
    }
}

#[tokio::test]
async fn the_acknowledgement_tells_whether_nobody_subscribes() {
    // [MQTT-3.4.2.1] [MQTT-3.5.2.1]: 0x10, which may be an ephemeral or an absent session's subscription on any node.
    let cluster = shared();
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "nobody-publisher").await;
    for connect in [
        Connect::clean(Version::V5, "nobody-c"),
        Connect::persistent(Version::V5, "nobody-p"),
    ] {
        let name = format!("nobody/{}", connect.client_id);
        for qos in [1, 2] {
            assert_eq!(
                publisher.publish_packet(Publish::new(&name, "unheard", qos)).await,
                0x10,
                "QoS {qos}"
            );
        }
        let (mut client, _) = Client::connect(cluster.mqtt(2), &connect).await;
        client.subscribe(&[(&name, 2)]).await;
        for qos in [1, 2] {
            assert_eq!(
                publisher.publish_packet(Publish::new(&name, "heard", qos)).await,
                0x00,
                "QoS {qos}"
            );
            assert_eq!(client.message().await.text(), "heard");
        }
    }
}

#[tokio::test]
async fn messages_of_one_publisher_stay_in_order() {
    let cluster = shared();
    for version in VERSIONS {
        let name = format!("order/{version:?}");
        let mut publisher = Client::open(cluster.mqtt(0), version, &format!("order-p-{version:?}")).await;
        let mut ephemeral = Client::open(cluster.mqtt(1), version, &format!("order-e-{version:?}")).await;
        ephemeral.subscribe(&[(&name, 1)]).await;
        publisher.publish_all(&name, &numbered(0..500), 50).await;
        expect_numbers(&mut ephemeral, 0..500).await;
        // QoS 0 in one go, and few enough for any outbox.
        for n in 500..700 {
            publisher.publish(&name, n.to_string(), 0).await;
        }
        expect_numbers(&mut ephemeral, 500..700).await;
        // A persistent subscriber turns the topic to the durable path, in the middle of the stream.
        let connect = Connect::persistent(version, &format!("order-d-{version:?}"));
        let (mut durable, _) = Client::connect(cluster.mqtt(2), &connect).await;
        durable.subscribe(&[(&name, 1)]).await;
        publisher.publish_all(&name, &numbered(700..1_200), 50).await;
        expect_numbers(&mut ephemeral, 700..1_200).await;
        expect_numbers(&mut durable, 700..1_200).await;
        // And back.
        durable.unsubscribe(&[&name]).await;
        publisher.publish_all(&name, &numbered(1_200..1_700), 50).await;
        expect_numbers(&mut ephemeral, 1_200..1_700).await;
    }
}

#[tokio::test]
async fn receive_maximum_one_is_respected() {
    let cluster = shared();
    for connect in [
        Connect::persistent(Version::V5, "rm-p"),
        Connect::clean(Version::V5, "rm-c"),
    ] {
        let name = format!("receive-maximum/{}", connect.client_id);
        let connect = connect.property(RECEIVE_MAXIMUM, Value::Two(1));
        let (mut client, _) = Client::connect(cluster.mqtt(0), &connect).await;
        client.auto_acknowledge = false;
        client.subscribe(&[(&name, 1)]).await;
        let mut witness = Client::open(cluster.mqtt(0), Version::V5, "rm-witness").await;
        witness.subscribe(&[(&name, 1)]).await;
        let mut publisher = Client::open(cluster.mqtt(1), Version::V5, "rm-publisher").await;
        publisher.publish_all(&name, &numbered(0..10), 10).await;
        expect_numbers(&mut witness, 0..10).await;
        for n in 0..10 {
            let message = client.message().await;
            assert_eq!(message.text(), n.to_string());
            // The witness has them all; round trips on this connection would bring what was sent on it.
            for _ in 0..5 {
                client.ping().await;
            }
            assert!(!client.has_kept(), "a second message before the PUBACK of {n}");
            client.acknowledge(message.pid).await;
        }
    }
}

#[tokio::test]
async fn a_payload_of_900_kb_arrives_whole() {
    let cluster = shared();
    let payload: Vec<u8> = (0..900 * 1024_u32).map(|n| (n % 251) as u8).collect();
    for version in VERSIONS {
        for connect in [
            Connect::clean(version, &format!("large-c-{version:?}")),
            Connect::persistent(version, &format!("large-p-{version:?}")),
        ] {
            let name = format!("large/{version:?}/{}", connect.client_id);
            let (mut client, _) = Client::connect(cluster.mqtt(0), &connect).await;
            client.subscribe(&[(&name, 1)]).await;
            let mut publisher = Client::open(cluster.mqtt(2), version, "large-publisher").await;
            publisher.publish(&name, payload.clone(), 1).await;
            assert!(client.message().await.payload == payload, "altered");
            client.unsubscribe(&[&name]).await;
        }
    }
}

#[tokio::test]
async fn two_hundred_clients_at_once() {
    let cluster = shared();
    let mut connecting = Vec::new();
    for index in 0..CROWD {
        connecting.push(tokio::spawn(async move {
            let version = VERSIONS[index % 2];
            let mut client = Client::open(cluster.mqtt(index % 3), version, &format!("crowd-{index}")).await;
            client.subscribe(&[(&format!("crowd/{index}"), 1)]).await;
            client
        }));
    }
    let mut clients = Vec::new();
    for task in connecting {
        clients.push(task.await.expect("connected and subscribed"));
    }
    let mut talking = Vec::new();
    for (index, mut client) in clients.into_iter().enumerate() {
        talking.push(tokio::spawn(async move {
            for n in 0..10 {
                client
                    .publish(&format!("crowd/{}", (index + 1) % CROWD), n.to_string(), 1)
                    .await;
            }
            expect_numbers(&mut client, 0..10).await;
        }));
    }
    for task in talking {
        task.await.expect("each hears its neighbour");
    }
}

#[tokio::test]
async fn a_subscriber_that_does_not_read_does_not_block_others() {
    let cluster = shared();
    let slow = Connect::clean(Version::V5, "slow-reader");
    let mut slow = Client::open_with_small_buffer(cluster.mqtt(0), &slow).await;
    slow.subscribe(&[("slow/#", 1)]).await;
    let mut fast = Client::open(cluster.mqtt(0), Version::V5, "slow-fast").await;
    fast.subscribe(&[("slow/#", 1)]).await;
    let mut publisher = Client::open(cluster.mqtt(1), Version::V5, "slow-publisher").await;
    // 32 MiB: more than the sockets take between them.
    const MESSAGES: usize = 2_000;
    let publishing = tokio::spawn(async move {
        let payloads: Vec<Vec<u8>> = (0..MESSAGES).map(|n| format!("{n:<16384}").into_bytes()).collect();
        publisher.publish_all("slow/x", &payloads, 50).await;
    });
    for n in 0..MESSAGES {
        assert_eq!(fast.message().await.text().trim(), n.to_string());
    }
    timeout(3 * SOON, publishing)
        .await
        .expect("the publisher is not held up")
        .expect("and not refused");
    drop(slow);
}

#[tokio::test]
async fn a_subscriber_that_takes_nothing_is_disconnected_with_0x97() {
    let _alone = crate::support::alone().await;
    let dir = tempfile::tempdir().expect("a directory");
    let few = [("LONTRA__MQTT__OUTBOX_MESSAGES_MAX", "20")];
    let cluster = Cluster::start_in(dir.path().to_owned(), 1, &few).await;
    let connect = Connect::clean(Version::V5, "stuck").property(RECEIVE_MAXIMUM, Value::Two(5));
    let (mut stuck, _) = Client::connect(cluster.mqtt(0), &connect).await;
    stuck.subscribe(&[("stuck", 1)]).await;
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "stuck-publisher").await;
    let payloads: Vec<Vec<u8>> = (0..100u8).map(|n| vec![n]).collect();
    // It acknowledges none of them; their publisher waits for it no longer than `mqtt.outbox_wait_max`.
    publisher.publish_all("stuck", &payloads, 100).await;
    assert_eq!(stuck.closed_by_server(SOON).await.0, Some(0x97));
}

// ---- truthful limits ----

#[tokio::test]
async fn connack_leaves_out_what_is_not_limited() {
    let (_, connack) = Client::connect(shared().mqtt(0), &Connect::clean(Version::V5, "limits")).await;
    // Absent: QoS 2, retained messages and shared subscriptions are there. [MQTT-3.2.2.3.4] [MQTT-3.2.2.3.5]
    for property in [MAXIMUM_QOS, RETAIN_AVAILABLE, SHARED_SUBSCRIPTION_AVAILABLE] {
        assert_eq!(connack.property(property), None, "{connack:?}");
    }
}

#[tokio::test]
async fn a_subscription_is_granted_the_qos_that_it_asks_for() {
    let cluster = shared();
    for version in VERSIONS {
        let mut client = Client::open(cluster.mqtt(0), version, &format!("granted-{version:?}")).await;
        for qos in 0..=2 {
            client
                .send(&codec::subscribe(version, 7, &[("granted/x", qos)]))
                .await
                .expect("SUBSCRIBE");
            let suback = client.packet_within(SOON).await;
            let codes = vec![qos];
            assert_eq!(suback, Ok(Packet::Suback { pid: 7, codes }));
        }
    }
}

// ---- operators ----

/// Every family that the broker exports, and what in the scenario below moves it: a counter or histogram grows, a gauge
/// differs from what it was at rest. A new metric needs a line here, and something that moves it.
const METRICS: &[(&str, &str)] = &[
    ("lontra_authentications_total", "connected clients"),
    ("lontra_authorization_denied_total", "a publish that a rule denies"),
    ("lontra_barrier_seconds", "SUBSCRIBE"),
    ("lontra_bytes_received_total", "any client"),
    ("lontra_bytes_sent_total", "any client"),
    ("lontra_config_reloads_total", "SIGHUP"),
    ("lontra_connections", "connected clients"),
    ("lontra_connections_accepted_total", "connected clients"),
    ("lontra_connections_refused_total", "a client that sends no CONNECT"),
    ("lontra_connects_total", "connected clients"),
    ("lontra_delayed_bytes", "a delayed message"),
    ("lontra_delayed_messages", "a delayed message"),
    ("lontra_delayed_released_total", "a delayed message"),
    ("lontra_disconnects_total", "refused clients"),
    (
        "lontra_flapping_bans_total",
        "a client that connects and goes too often",
    ),
    ("lontra_http_denied_total", "a page of another site"),
    ("lontra_lease_valid", "the node that starts again"),
    ("lontra_limit_holds_total", "a storm of connections"),
    ("lontra_limit_refusals_total", "refused clients"),
    ("lontra_link_bytes_total", "any load"),
    ("lontra_link_ephemeral_frames_received_total", "the ephemeral publishes"),
    ("lontra_link_ephemeral_frames_sent_total", "the ephemeral publishes"),
    ("lontra_link_forward_unacknowledged_bytes", "the flood"),
    ("lontra_link_frames_total", "any load"),
    ("lontra_link_handshakes_refused_total", "a node of a foreign authority"),
    (
        "lontra_link_reconnects_total",
        "the node that is killed and starts again",
    ),
    ("lontra_link_up", "the node that is killed"),
    ("lontra_listener_connections", "connected clients"),
    ("lontra_messages_dropped_total", "messages too large for a subscriber"),
    ("lontra_messages_received_total", "publishes"),
    ("lontra_messages_sent_total", "publishes"),
    ("lontra_node_downs_total", "the node that is killed"),
    ("lontra_packets_received_total", "any client"),
    ("lontra_packets_sent_total", "any client"),
    ("lontra_process_cpu_seconds_total", "any load"),
    ("lontra_process_open_fds", "connected clients"),
    ("lontra_process_resident_bytes", "any load"),
    ("lontra_process_uptime_seconds", "time"),
    ("lontra_publish_ack_seconds", "publishes"),
    (
        "lontra_publish_batches_resent_total",
        "the shard leader that is killed under load",
    ),
    ("lontra_publish_queue_operations", "durable load"),
    ("lontra_publishes_refused_total", "refused clients"),
    ("lontra_publishes_waiting_bytes", "durable load"),
    (
        "lontra_queue_dropped_total",
        "a message that expires while its session is away",
    ),
    ("lontra_queue_enqueued_total", "durable load"),
    ("lontra_queue_left_total", "durable load"),
    ("lontra_queue_messages", "durable load"),
    ("lontra_queue_pages_read_total", "the session that comes back"),
    ("lontra_raft_applied_index", "durable load"),
    (
        "lontra_raft_leader_transfers_total",
        "leaders that move to the node that starts again",
    ),
    (
        "lontra_raft_leaderships_given_away_total",
        "a log that is not synced in time",
    ),
    ("lontra_raft_leaders", "the shard leader that is killed"),
    ("lontra_raft_term", "the shard leader that is killed"),
    ("lontra_retained_bytes", "a retained message"),
    ("lontra_retained_messages", "a retained message"),
    ("lontra_routes", "SUBSCRIBE"),
    ("lontra_sessions", "connected clients"),
    ("lontra_shared_assigned_total", "a member that comes to its group"),
    ("lontra_shared_waiting_messages", "a group without a member"),
    ("lontra_storage_appended_bytes_total", "durable load"),
    ("lontra_storage_checkpoint_seconds", "a checkpoint every second"),
    ("lontra_storage_free_bytes", "durable load"),
    ("lontra_storage_free_ratio", "durable load"),
    ("lontra_storage_fsync_batch_bytes", "durable load"),
    ("lontra_storage_fsync_batch_entries", "durable load"),
    ("lontra_storage_fsync_seconds", "durable load"),
    ("lontra_storage_queue_bytes", "durable load"),
    (
        "lontra_storage_snapshots_installed_total",
        "the node that missed what was purged",
    ),
    (
        "lontra_storage_snapshots_sent_total",
        "the node that missed what was purged",
    ),
    ("lontra_subscriptions", "SUBSCRIBE"),
    ("lontra_subscriptions_refused_total", "refused clients"),
    ("lontra_tls_handshake_seconds", "a client over TLS"),
    ("lontra_tls_handshakes_total", "a client over TLS"),
    ("lontra_websocket_upgrades_refused_total", "a request for another path"),
    ("lontra_wills_published_total", "a client that is cut off"),
    ("lontra_worker_queue_bytes", "the flood"),
];

#[tokio::test]
async fn every_exported_metric_moves() {
    let _alone = crate::support::alone().await;
    let dir = tempfile::tempdir().expect("a directory");
    let settings = [
        ("LONTRA__STORAGE__CHECKPOINT_INTERVAL", "1s"),
        ("LONTRA__LIMITS__CONNECTION_RATE", "200"),
        ("LONTRA__LIMITS__FLAPPING_CLIENT_MAX", "20"),
        (
            "LONTRA__AUTH__RULES",
            r##"["deny publish denied", "allow publish,subscribe #", "allow subscribe $SYS/#"]"##,
        ),
    ];
    let cluster = Cluster::start_in(dir.path().to_owned(), 3, &settings).await;
    let moved = RefCell::new(Moved::default());
    let watching = async {
        loop {
            let scrapes = cluster.scrape_all().await;
            moved.borrow_mut().at_rest_or_moved(scrapes);
            sleep(Duration::from_millis(20)).await;
        }
    };
    let scenario = async {
        let before = cluster.all_metrics().await;
        let clients = messages_are_counted(&cluster, &before).await;
        refuse(&cluster).await;
        meet_limits(&cluster).await;
        cluster.reload(1);
        what_waits_and_what_stays(&cluster).await;
        outage_under_load(&cluster).await;
        drop(clients);
        // Leaders spread again within 30 s.
        let started = Instant::now();
        while !moved.borrow().missing().is_empty() && started.elapsed() < 3 * SOON {
            sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        () = scenario => {}
        () = watching => {}
    }
    let moved = moved.into_inner();
    let unknown: Vec<_> = moved.exported.iter().filter(|family| cause(family).is_none()).collect();
    assert!(
        unknown.is_empty(),
        "exported without a test that moves them: {unknown:?}"
    );
    let absent: Vec<_> = METRICS
        .iter()
        .filter(|metric| !moved.exported.contains(metric.0))
        .collect();
    assert!(absent.is_empty(), "not exported: {absent:?}");
    assert!(moved.missing().is_empty(), "did not move: {:?}", moved.missing());
    cluster.assert_no_panic();
}

/// Need more than this scenario has. A slow disk: `slow_pressure::a_node_whose_disk_is_slow_leads_nothing`.
/// A foreign node: `wire_auth_links::a_node_of_a_foreign_authority_is_no_node`.
const MOVED_ELSEWHERE: &[&str] = &[
    "lontra_link_handshakes_refused_total",
    "lontra_raft_leaderships_given_away_total",
];

fn cause(family: &str) -> Option<&'static str> {
    METRICS.iter().find(|metric| metric.0 == family).map(|metric| metric.1)
}

/// What has moved on any node since it was first looked at; a node that was started again begins anew.
#[derive(Default)]
struct Moved {
    rest: BTreeMap<(u64, u32), Scrape>,
    exported: BTreeSet<String>,
    families: BTreeSet<String>,
}

impl Moved {
    fn at_rest_or_moved(&mut self, scrapes: Vec<(u64, u32, Scrape)>) {
        for (id, pid, scrape) in scrapes {
            let lontra = scrape.families.keys().filter(|family| family.starts_with("lontra_"));
            self.exported.extend(lontra.cloned());
            // The first process of a node is at rest when it is first looked at; a later one counts from nothing.
            let known = self.rest.keys().any(|known| known.0 == id);
            let rest = match known {
                true => self.rest.entry((id, pid)).or_default(),
                false => self.rest.entry((id, pid)).or_insert_with(|| scrape.clone()),
            };
            for (family, kind) in &scrape.families {
                let (was, is) = (rest.sum(family), scrape.sum(family));
                if if kind == "gauge" { was != is } else { was < is } {
                    self.families.insert(family.clone());
                }
            }
        }
    }

    fn missing(&self) -> Vec<&(&'static str, &'static str)> {
        METRICS
            .iter()
            .filter(|metric| !self.families.contains(metric.0) && !MOVED_ELSEWHERE.contains(&metric.0))
            .collect()
    }
}

/// Both paths, across nodes, QoS 0 and 1; and messages that one subscriber cannot take. Counted to the message.
async fn messages_are_counted(cluster: &Cluster, before: &Scrape) -> Vec<Client> {
    let (at_a, at_b) = (cluster.mqtt(0), cluster.mqtt(1));
    let (mut durable, _) = Client::connect(at_b, &Connect::persistent(Version::V5, "metrics-d")).await;
    durable.subscribe(&[("metrics/durable/#", 1)]).await;
    let small = Connect::clean(Version::V5, "metrics-small").property(MAXIMUM_PACKET_SIZE, Value::Four(200));
    let (mut small, _) = Client::connect(at_b, &small).await;
    small.subscribe(&[("metrics/ephemeral", 1)]).await;
    let mut publisher = Client::open(at_a, Version::V5, "metrics-p").await;
    let mut other_way = Client::open(at_a, Version::V5, "metrics-o").await;
    other_way.subscribe(&[("metrics/back", 0)]).await;
    for n in 0..20 {
        publisher.publish(&format!("metrics/durable/{n}"), "x", 1).await;
        publisher
            .publish("metrics/ephemeral", vec![b'x'; if n % 2 == 0 { 10 } else { 1_000 }], 1)
            .await;
        publisher.publish("metrics/ephemeral", "x", 0).await;
        small.publish("metrics/back", "x", 0).await;
    }
    for _ in 0..20 {
        durable.message().await;
        other_way.message().await;
    }
    for _ in 0..30 {
        small.message().await;
    }
    let expected = [
        ("lontra_messages_received_total", "qos=\"0\"", 40.0),
        ("lontra_messages_received_total", "qos=\"1\"", 40.0),
        ("lontra_messages_sent_total", "qos=\"0\"", 40.0),
        ("lontra_messages_sent_total", "qos=\"1\"", 30.0),
        ("lontra_messages_dropped_total", "", 10.0),
        ("lontra_connections", "", 4.0),
        ("lontra_sessions", "", 4.0 * 3.0),
        ("lontra_publish_ack_seconds", "", 40.0),
    ];
    // Every node learns of sessions in its own time, hence not at once.
    let started = Instant::now();
    loop {
        let now = cluster.all_metrics().await;
        let by = |family, label| now.sum_where(family, label) - before.sum_where(family, label);
        let wrong = expected
            .iter()
            .find(|(family, label, expected)| by(family, label) != *expected);
        let Some((family, label, expected)) = wrong else { break };
        let found = by(family, label);
        assert!(
            started.elapsed() < SOON / 2,
            "{family}{{{label}}} moved by {found}, not {expected}"
        );
        sleep(Duration::from_millis(50)).await;
    }
    vec![durable, small, publisher, other_way]
}

/// A topic and a filter of too many levels, and a topic alias beyond what was granted; a connection without a CONNECT; a request that
/// is no WebSocket's.
async fn refuse(cluster: &Cluster) {
    drop(Client::raw(cluster.mqtt(0), Version::V5, SOON).await.expect("a socket"));
    let (code, _) = http_get(cluster.ws(0), "/elsewhere").await.expect("an answer");
    assert_eq!(code, 404);
    let ca = cluster.nodes[0].ca.to_str().expect("text");
    let over_tls = crate::support::tls::relay(&cluster.nodes[0].mqtts, &["-CAfile", ca]).await;
    Client::open(&over_tls, Version::V5, "metrics-tls")
        .await
        .disconnect()
        .await;
    let mut client = Client::open(cluster.mqtt(0), Version::V5, "metrics-refused").await;
    let subscribe = codec::subscribe(Version::V5, 1, &[(&*"a/".repeat(200), 1)]);
    client.send(&subscribe).await.expect("SUBSCRIBE");
    let suback = client.packet_within(SOON).await.expect("SUBACK");
    assert!(matches!(suback, Packet::Suback { codes, .. } if codes == [0x8f]));
    client.disconnect().await;
    let page = "POST /api/v1/groups/meta/snapshot HTTP/1.0\r\nHost: localhost\r\nOrigin: http://elsewhere\r\n\r\n";
    let mut stream = tokio::net::TcpStream::connect(&cluster.nodes[0].http)
        .await
        .expect("HTTP");
    tokio::io::AsyncWriteExt::write_all(&mut stream, page.as_bytes())
        .await
        .expect("a request");
    let mut answer = String::new();
    let read = tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer);
    tokio::time::timeout(SOON, read)
        .await
        .expect("an answer")
        .expect("text");
    assert!(answer.contains(" 403 "), "{answer}");
    let deep = Publish {
        pid: 1,
        ..Publish::new(&"a/".repeat(200), "x", 1)
    };
    let aliased = Publish {
        properties: vec![codec::Property(TOPIC_ALIAS, Value::Two(u16::MAX))],
        ..Publish::new("metrics/x", "x", 0)
    };
    let denied = Publish {
        pid: 1,
        ..Publish::new("denied", "x", 1)
    };
    for publish in [deep, aliased, denied] {
        let mut client = Client::open(cluster.mqtt(0), Version::V5, "metrics-refused").await;
        client.send(&publish.encode(Version::V5)).await.expect("PUBLISH");
        // A PUBACK that says no, a DISCONNECT, or the end.
        match client.packet_within(SOON).await {
            Ok(Packet::Puback { code, .. } | Packet::Disconnect { code, .. }) => assert!(code >= 0x80),
            Err(Gone::Closed(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// More connections at once than may be accepted; a client that comes and goes.
async fn meet_limits(cluster: &Cluster) {
    for _ in 0..300 {
        drop(Client::raw(cluster.mqtt(0), Version::V5, SOON).await.expect("a socket"));
    }
    for _ in 0..21 {
        let client = Client::open(cluster.mqtt(0), Version::V5, "metrics-flapping").await;
        client.disconnect().await;
    }
}

/// A retained and a delayed message; a will; a group whose member is away; a message that expires in the queue of an absent session.
async fn what_waits_and_what_stays(cluster: &Cluster) {
    let mut publisher = Client::open(cluster.mqtt(0), Version::V5, "metrics-w").await;
    let retained = Publish {
        pid: 1,
        retain: true,
        ..Publish::new("metrics/retained", "x", 1)
    };
    publisher.send(&retained.encode(Version::V5)).await.expect("PUBLISH");
    assert!(matches!(
        publisher.packet_within(SOON).await,
        Ok(Packet::Puback { code: 0 | 0x10, .. })
    ));

    publisher.publish("$delayed/2/metrics/later", "x", 1).await;

    let away = Connect::persistent(Version::V5, "metrics-away");
    let (mut client, _) = Client::connect(cluster.mqtt(1), &away).await;
    client
        .subscribe(&[
            ("$share/metrics/metrics/shared", 1),
            ("metrics/expiring", 1),
            ("metrics/will", 1),
        ])
        .await;
    client.disconnect().await;
    let expiring = Publish {
        pid: 2,
        properties: vec![codec::Property(MESSAGE_EXPIRY_INTERVAL, Value::Four(1))],
        ..Publish::new("metrics/expiring", "x", 1)
    };
    publisher.send(&expiring.encode(Version::V5)).await.expect("PUBLISH");
    publisher.packet_within(SOON).await.expect("PUBACK");
    publisher.publish("metrics/shared", "x", 1).await;
    // 3.1.1, Clean Session, a will at QoS 1 on metrics/will; cut off without DISCONNECT.
    let connect = b"\x00\x04MQTT\x04\x0e\x00\x3c\x00\x09metrics-m\x00\x0cmetrics/will\x00\x04gone";
    let mut mortal = Client::raw(cluster.mqtt(2), Version::V311, SOON)
        .await
        .expect("a socket");
    mortal.send(&codec::frame(0x10, connect)).await.expect("CONNECT");
    assert!(matches!(
        mortal.packet_within(SOON).await,
        Ok(Packet::Connack { code: 0, .. })
    ));
    drop(mortal);
    eventually("the expired message dropped, the other seen waiting", START, || async {
        let now = cluster.all_metrics().await;
        let seen = now.sum("lontra_queue_dropped_total") > 0.0 && now.sum("lontra_shared_waiting_messages") > 0.0;
        seen.then_some(())
    })
    .await;
    let (mut client, _) = Client::connect(cluster.mqtt(1), &away).await;
    let mut got = [client.message().await.text(), client.message().await.text()];
    got.sort();
    assert_eq!(got, ["gone", "x"]);
}

/// Durable load and an ephemeral flood, a shard leader that is killed meanwhile, stays away while logs are purged, and
/// starts again; and a session that has messages waiting.
async fn outage_under_load(cluster: &Cluster) {
    let victim = cluster.leader_of("shard-0").await;
    let [a, b] = cluster.ids().into_iter().filter(|id| *id != victim).collect::<Vec<_>>()[..] else {
        panic!("three nodes")
    };
    let (at_a, at_b) = (cluster.node(a).mqtt.clone(), cluster.node(b).mqtt.clone());
    let addresses: Vec<&str> = cluster.nodes.iter().map(|node| node.mqtt.as_str()).collect();
    let load = Load::start(
        &addresses,
        "metrics-load",
        Plan::default(),
        &mut Random::announced("metrics"),
    )
    .await;

    let waiting = Connect::persistent(Version::V5, "metrics-waiting");
    let (mut client, _) = Client::connect(&at_a, &waiting).await;
    client.subscribe(&[("metrics-load/#", 1)]).await;
    client.disconnect().await;
    let mut sink = Client::open(&at_b, Version::V5, "metrics-sink").await;
    sink.subscribe(&[("metrics/flood", 1)]).await;
    let flooding = tokio::spawn(async move {
        let mut flood = Client::open(&at_a, Version::V5, "metrics-flood").await;
        flood
            .publish_all("metrics/flood", &vec![vec![b'x'; 16_384]; 3_000], 100)
            .await;
    });
    for _ in 0..3_000 {
        sink.message().await;
    }
    flooding.await.expect("all acknowledged");

    load.acknowledges_more(500, START).await;
    cluster.kill(victim).await;
    // One at a time, and so one log entry each: more than is kept and purged at once, in the log of one shard.
    let mut steady = Client::open(&cluster.node(a).mqtt, Version::V5, "metrics-steady").await;
    steady
        .publish_all("metrics/durable/steady", &numbered(0..1_500), 1)
        .await;
    let checkpoints = cluster.all_metrics().await.sum("lontra_storage_checkpoint_seconds");
    eventually("checkpoints while a node is away", START, || async {
        let now = cluster.all_metrics().await.sum("lontra_storage_checkpoint_seconds");
        (now >= checkpoints + 6.0).then_some(())
    })
    .await;
    cluster.start_node(victim);
    cluster.wait_ready(victim, START).await;
    let (mut client, connack) = Client::connect(&cluster.node(b).mqtt, &waiting).await;
    assert!(present(&connack));
    for _ in 0..1_000 {
        client.message().await;
    }
    let violations = judge("metrics", &load.drain(3 * SOON).await);
    assert!(violations.is_empty(), "{} violations, see above", violations.len());
}

#[tokio::test]
async fn health_tells_whether_the_node_can_commit() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let [a, b, c] = cluster.ids()[..] else {
        panic!("three nodes")
    };
    let code = async |id: u64, path: &str| http_get(&cluster.node(id).http, path).await.map(|answer| answer.0).ok();
    for id in [a, b, c] {
        assert_eq!(code(id, "/health/live").await, Some(200));
        assert_eq!(code(id, "/health/ready").await, Some(200));
        let pid = std::fs::read_to_string(cluster.node(id).data.join("lontra.pid")).expect("lontra.pid");
        assert_eq!(pid.trim().parse().ok(), cluster.pid(id));
        let status = cluster.status(id).await.expect("status");
        assert_eq!(
            (status["node"].as_u64(), status["ready"].as_bool()),
            (Some(id), Some(true)),
            "{status}"
        );
    }
    let mut client = Client::open(&cluster.node(a).mqtt, Version::V5, "health").await;
    cluster.kill_all(&[b, c]).await;
    eventually("503 without a majority", SOON, || async {
        (code(a, "/health/ready").await == Some(503)).then_some(())
    })
    .await;
    assert_eq!(code(a, "/health/live").await, Some(200), "alive, though not ready");
    // P9: it refuses and lets its clients go.
    let (told, _) = client.closed_by_server(SOON).await;
    assert!(matches!(told, Some(0x89 | 0x8b | 0x9c)), "{told:?}");
    match Client::try_connect(&cluster.node(a).mqtt, &Connect::clean(Version::V5, "health-2"), SOON).await {
        Ok((_, Packet::Connack { code: 0x88 | 0x9c, .. })) | Err(Gone::Closed(_)) => {}
        other => panic!(
            "a node that cannot commit took a client: {:?}",
            other.map(|answer| answer.1)
        ),
    }
    cluster.start_node(b);
    for id in [a, b] {
        cluster.wait_ready(id, START).await;
    }
    let mut client = Client::open(&cluster.node(a).mqtt, Version::V5, "health").await;
    client.publish("health/x", "again", 1).await;
}

#[tokio::test]
async fn one_node_without_configuration_serves_and_keeps_its_data() {
    let dir = tempfile::tempdir().expect("a directory");
    let port = free_ports(1);
    let [mqtt, http] = [port, port + 200].map(|port| format!("127.0.0.1:{port}"));
    let serve = || {
        // The usual ports may be taken on the machine; nothing else is set.
        tokio::process::Command::new(LONTRA)
            .arg("serve")
            .current_dir(dir.path())
            .env("HOME", dir.path())
            .env("LONTRA__MQTT__LISTEN", &mqtt)
            .env("LONTRA__HTTP__LISTEN", &http)
            .env("LONTRA__WEBSOCKET__LISTEN", format!("127.0.0.1:{}", port + 100))
            .env("LONTRA__CLUSTER__LISTEN", format!("127.0.0.1:{}", port + 300))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("lontra serve")
    };
    let ready = async || {
        eventually("ready", START, || async {
            matches!(http_get(&http, "/health/ready").await, Ok((200, _))).then_some(())
        })
        .await;
    };
    let persistent = Connect::persistent(Version::V311, "alone");

    let mut node = serve();
    ready().await;
    let (mut client, _) = Client::connect(&mqtt, &persistent).await;
    client.subscribe(&[("alone/#", 1)]).await;
    let mut publisher = Client::open(&mqtt, Version::V5, "alone-p").await;
    publisher.publish("alone/x", "live", 1).await;
    assert_eq!(client.message().await.text(), "live");
    client.disconnect().await;
    publisher.publish_all("alone/x", &numbered(0..50), 10).await;
    node.kill().await.expect("kill -9");

    let mut node = serve();
    ready().await;
    let (mut client, connack) = Client::connect(&mqtt, &persistent).await;
    assert!(present(&connack));
    for n in 0..50 {
        assert_eq!(client.message().await.text(), n.to_string());
    }
    // A polite end has exit code 0.
    let pid = Pid::from_raw(node.id().expect("running") as i32).expect("not 0");
    kill_process(pid, Signal::TERM).expect("SIGTERM");
    let status = timeout(START, node.wait())
        .await
        .expect("ends after SIGTERM")
        .expect("a child");
    assert!(status.success(), "{status}");
}

// ---- helpers ----

/// Every ordered pair of `nodes`, the same node twice included.
fn pairs(nodes: usize) -> Vec<(usize, usize)> {
    (0..nodes).flat_map(|s| (0..nodes).map(move |p| (s, p))).collect()
}

fn numbered(range: std::ops::Range<usize>) -> Vec<Vec<u8>> {
    range.map(|n| n.to_string().into_bytes()).collect()
}

fn present(connack: &Packet) -> bool {
    matches!(
        connack,
        Packet::Connack {
            session_present: true,
            ..
        }
    )
}

async fn expect_numbers(client: &mut Client, range: std::ops::Range<usize>) {
    for n in range {
        assert_eq!(client.message().await.text(), n.to_string(), "{}", client.client_id);
    }
}

/// Subscribes to a topic of its own and receives from it, so that what was published before would have arrived.
async fn expect_only_the_fence(client: &mut Client, publisher: &mut Client, name: &str) {
    let fence = format!("{name}/fence");
    client.subscribe(&[(&fence, 1)]).await;
    publisher.publish(&fence, "fence", 1).await;
    let got = client.messages_until("fence").await;
    assert!(got.is_empty(), "{}: {got:?}", client.client_id);
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(SOON, future)
        .await
        .unwrap_or_else(|_| panic!("no {what} within {SOON:?}"))
}

const RUMQTTC_MESSAGES: usize = 10;
const FRAMES: usize = 50;
const CROWD: usize = 200;
const SESSION_TAKEN_OVER: u8 = 0x8e;
const KEEP_ALIVE_TIMEOUT: u8 = 0x8d;
const SHARED_SUBSCRIPTION_AVAILABLE: u8 = 0x2a;
const MESSAGE_EXPIRY_INTERVAL: u8 = 0x02;
const TOPIC_ALIAS: u8 = 0x23;
