//! P2 under faults: QoS 2 whose clients, or their nodes, go at every point of the four-way exchange; and what a node that
//! was left behind still has under way.

use crate::support::client::Client;
use crate::support::cluster::Cluster;
use crate::support::codec::{self, Connect, Packet, Publish, RECEIVE_MAXIMUM, VERSIONS, Value, Version};
use crate::support::exactly_once::{Load, POINTS, judge};
use crate::support::load::print_recovery;
use crate::support::partition::Cut;
use crate::support::random::Random;
use crate::support::{SOON, START, eventually};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Connections end at every point, by the client and by `kill -9` of its node, which then is a publisher's or a
/// subscriber's; every third node is killed at a moment of its own.
#[tokio::test(flavor = "multi_thread")]
async fn exactly_once_under_kill_9_at_every_point_of_the_exchange() {
    let _alone = crate::support::alone().await;
    let mut random = Random::announced("exactly-once");
    let cluster = Cluster::start(3).await;
    let addresses: Vec<&str> = cluster.nodes.iter().map(|node| node.mqtt.as_str()).collect();
    let load = Load::start(&addresses, "exactly-once", &mut random).await;
    load.records_more(300, START).await;

    let started = Instant::now();
    let mut faults = Vec::new();
    let mut points = POINTS.iter();
    let covered = |load: &Load| {
        let ends = load.ends();
        POINTS
            .iter()
            .all(|point| ends.get(point).is_some_and(|ends| ends.cuts >= CUTS))
    };
    while faults.len() < KILLS || load.recorded() < RECORDED || !covered(&load) {
        assert!(
            started.elapsed() < AT_MOST,
            "after {AT_MOST:?} only {} kills, {} recorded, {:?}\n{}",
            faults.len(),
            load.recorded(),
            load.ends(),
            cluster.logs()
        );
        let point = if faults.len() % 4 == 3 { None } else { points.next() };
        let (victim, what) = match point {
            Some(point) => {
                let held = load.client_at(*point).await;
                let victim = cluster.nodes[held.node].id;
                // Long enough, half of the time, for what comes next to be under way in the node.
                let wait = Duration::from_millis(random.below(2) as u64 * random.below(40) as u64);
                tokio::time::sleep(wait).await;
                cluster.kill(victim).await;
                (
                    victim,
                    format!("node of {} at {point:?} and {wait:?} more", held.client),
                )
            }
            None => {
                let victim = *random.pick(&cluster.ids());
                cluster.kill(victim).await;
                (victim, "at any moment".into())
            }
        };
        faults.push((format!("kill -9 of node {victim}, {what}"), load.now()));
        // With two of three nodes it goes on: that is the promise, and it makes the kill matter.
        load.records_more(50, START).await;
        cluster.start_node(victim);
        cluster.wait_ready(victim, START).await;
        load.records_more(200 + random.below(300) as u64, START).await;
    }
    let (recorded, slowest, ends) = (load.recorded(), load.slowest(), load.ends());
    let history = load.drain(PATIENCE).await;
    print_recovery("exactly-once", &history, &faults);
    let violations = judge("exactly-once", &history);
    println!(
        "exactly-once: {} kills, {recorded} recorded in {:?}, slowest exchange {slowest:?}",
        faults.len(),
        started.elapsed()
    );
    cluster.assert_no_panic();
    assert!(
        violations.is_empty(),
        "{} violations, see above\n{}",
        violations.len(),
        cluster.logs()
    );
    for point in POINTS {
        let ends = ends.get(&point).copied().unwrap_or_default();
        println!("exactly-once: {point:?}: {} cuts, {} kills", ends.cuts, ends.held);
        assert!(ends.held >= 1, "no node was killed at {point:?}");
    }
}

/// What a session had in flight when its node died comes again under the same Packet Identifiers: PUBREL where PUBREC was
/// committed, PUBLISH with DUP where it was sent; and what it had not been sent comes too.
#[tokio::test(flavor = "multi_thread")]
async fn packet_identifiers_survive_the_node() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let publisher = &mut Client::open(cluster.mqtt(0), Version::V5, "ids-publisher").await;
    for (round, version) in VERSIONS.into_iter().enumerate() {
        let name = format!("ids-{version:?}");
        let mut connect = Connect::persistent(version, &name);
        if version == Version::V5 {
            connect = connect.property(RECEIVE_MAXIMUM, Value::Two(IN_FLIGHT as u16));
        }
        // Never node 1, the publisher's.
        let (owner, survivor) = (1 + round, 2 - round);
        let (mut subscriber, _) = Client::connect(cluster.mqtt(owner), &connect).await;
        subscriber.auto_acknowledge = false;
        subscriber.subscribe(&[(&format!("{name}/#"), 2)]).await;
        let mut wanted = BTreeSet::new();
        for n in 0..2 * IN_FLIGHT {
            publisher
                .publish_exactly_once(&format!("{name}/{n}"), format!("{n}"))
                .await;
            wanted.insert(format!("{n}"));
        }
        let mut sent = Vec::new();
        while sent.len() < IN_FLIGHT {
            let message = subscriber.message().await;
            assert!(!message.dup, "{name}: {message:?}");
            sent.push(message);
        }
        // Two are over, three have their PUBREL, three more only sent PUBREC; the rest is unanswered.
        for message in &sent[..2] {
            subscriber.complete(message.pid).await;
        }
        for message in &sent[2..5] {
            subscriber.send(&codec::pubrec(message.pid)).await.expect("PUBREC");
            subscriber.pubrel_of(message.pid).await;
        }
        for message in &sent[5..8] {
            subscriber.send(&codec::pubrec(message.pid)).await.expect("PUBREC");
        }
        let victim = cluster.nodes[owner].id;
        cluster.kill(victim).await;
        drop(subscriber);

        let connect_again = || async {
            let connected = Client::try_connect(cluster.mqtt(survivor), &connect, SOON).await;
            connected
                .ok()
                .filter(|(_, connack)| matches!(connack, Packet::Connack { code: 0, .. }))
        };
        let (mut subscriber, connack) = eventually("a connection to a survivor", START, connect_again).await;
        assert!(matches!(
            connack,
            Packet::Connack {
                session_present: true,
                ..
            }
        ));
        let mut released = BTreeSet::new();
        let mut again = 0;
        let mut handed_over: BTreeSet<String> = sent[..8].iter().map(Publish::text).collect();
        while handed_over != wanted || released.len() < 3 {
            match subscriber.packet_within(SOON).await {
                Ok(Packet::Pubrel { pid, .. }) => {
                    released.insert(pid);
                    subscriber.send(&codec::pubcomp(pid)).await.expect("PUBCOMP");
                }
                Ok(Packet::Publish(publish)) => {
                    let text = publish.text();
                    let before = sent.iter().position(|before| before.text() == text);
                    if let Some(before) = before {
                        // Of the first two, PUBCOMP may have died with the node: then PUBREL comes, not PUBLISH.
                        assert!(before >= 5, "{name}: PUBLISH after PUBREL: {publish:?}");
                        assert_eq!(publish.pid, sent[before].pid, "{name}: {publish:?}");
                        assert!(publish.dup, "{name}: sent before, without DUP: {publish:?}");
                        again += 1;
                    }
                    let is_new = handed_over.insert(text);
                    assert!(is_new || before.is_some(), "{name}: twice: {publish:?}");
                    subscriber.send(&codec::pubrec(publish.pid)).await.expect("PUBREC");
                }
                other => panic!("{name}: {other:?}, handed over {handed_over:?}, released {released:?}"),
            }
            let must: BTreeSet<u16> = sent[2..5].iter().map(|message| message.pid).collect();
            if must.is_subset(&released) && handed_over == wanted {
                break;
            }
        }
        let owed: BTreeSet<u16> = sent[2..5].iter().map(|message| message.pid).collect();
        assert!(
            owed.is_subset(&released),
            "{name}: PUBREL of {owed:?}, not {released:?}"
        );
        println!("{name}: {again} sent again with DUP, {} PUBRELs", released.len());
        assert!(again >= IN_FLIGHT - 8, "{name}: only {again} came again");
        subscriber.disconnect().await;
        cluster.start_node(victim);
        cluster.wait_ready(victim, START).await;
    }
    cluster.assert_no_panic();
}

/// `one-owner`: a node that stands still, or is cut off, has QoS 2 publishes of a client under way; the client publishes
/// them again elsewhere, completes, and uses the identifiers for new messages. What the old node then still does is void.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_displaced_node_has_under_way_is_void_after_pubrel() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let [zombie, home] = [cluster.nodes[2].clone(), cluster.nodes[0].clone()];
    for (round, fault) in ["stopped", "cut off", "stopped with all it read"]
        .into_iter()
        .enumerate()
    {
        let version = VERSIONS[round % 2];
        let name = format!("zombie-{round}");
        let (mut witness, _) =
            Client::connect(&home.mqtt, &Connect::persistent(version, &format!("{name}-witness"))).await;
        witness.subscribe(&[(&format!("{name}/#"), 2)]).await;
        let connect = Connect::persistent(version, &name);
        let (mut old, _) = Client::connect(&zombie.mqtt, &connect).await;
        old.ping().await;

        let first: Vec<Publish> = (1..=TOPICS)
            .map(|pid| Publish {
                pid,
                ..Publish::new(&format!("{name}/{pid}"), format!("first {pid}"), 2)
            })
            .collect();
        match round {
            0 => cluster.pause(zombie.id).await,
            1 => cluster.isolate(zombie.id, Cut::Both),
            _ => {}
        }
        for publish in &first {
            old.send(&publish.encode(version)).await.expect("PUBLISH");
        }
        if round == 2 {
            // It has read them, and what leads elsewhere has left or is about to.
            cluster.pause(zombie.id).await;
        }

        let connect_again = || async {
            let connected = Client::try_connect(&home.mqtt, &connect, SOON).await;
            connected
                .ok()
                .filter(|(_, connack)| matches!(connack, Packet::Connack { code: 0, .. }))
        };
        let (mut client, connack) = eventually("the session on another node", START, connect_again).await;
        assert!(
            matches!(
                connack,
                Packet::Connack {
                    session_present: true,
                    ..
                }
            ),
            "{name}: {connack:?}"
        );
        for publish in &first {
            let again = Publish {
                dup: true,
                ..publish.clone()
            };
            client.send(&again.encode(version)).await.expect("PUBLISH");
            client.pubrec_of(publish.pid).await;
            client.release(publish.pid).await;
        }
        for publish in &first {
            let second = Publish::new(&publish.topic, format!("second {}", publish.pid), 2);
            let second = Publish {
                pid: publish.pid,
                ..second
            };
            client.send(&second.encode(version)).await.expect("PUBLISH");
            client.pubrec_of(publish.pid).await;
            if publish.pid % 2 == 0 {
                client.release(publish.pid).await;
            }
        }
        match round {
            1 => cluster.heal(),
            _ => cluster.resume(zombie.id),
        }
        // The old connection ends; then the node serves again, and whatever it had is out.
        old.closed_by_server(START).await;
        cluster.wait_ready(zombie.id, START).await;
        let mut late = Client::open(&zombie.mqtt, version, &format!("{name}-late")).await;
        for publish in &first {
            late.publish_exactly_once(&publish.topic, format!("late {}", publish.pid))
                .await;
        }
        let mut received: Vec<String> = Vec::new();
        while received.iter().filter(|text| text.starts_with("late")).count() < usize::from(TOPICS) {
            received.push(witness.message().await.text());
        }
        received.sort();
        let mut expected: Vec<String> = Vec::new();
        for text in ["first", "second", "late"] {
            expected.extend((1..=TOPICS).map(|pid| format!("{text} {pid}")));
        }
        expected.sort();
        assert_eq!(received, expected, "{fault}");
        println!("zombie: {fault}: {} messages, each once", received.len());
        client.disconnect().await;
        witness.disconnect().await;
    }
    cluster.assert_no_panic();
}

/// At least 10 are asked for; these reach each of the 11 points, and three come at any moment.
const KILLS: usize = 14;
/// At each point. Where clients cut is chance; the load goes on until it has hit every point this often.
const CUTS: u32 = 3;
/// At least 5,000 are asked for.
const RECORDED: u64 = 6_000;
const AT_MOST: Duration = Duration::from_secs(6 * 60);
/// How long nothing may move in the drain before what is missing counts as lost.
const PATIENCE: Duration = Duration::from_secs(45);
/// Messages in flight to the subscriber whose node dies: as many as fit in its Receive Maximum.
const IN_FLIGHT: usize = 20;
/// With 24 topics every shard is likely to have some.
const TOPICS: u16 = 24;
