//! `$exclusive/FILTER` through the wire: of each filter one session of the cluster has one, whoever asks where, until it
//! gives it back or ends; also when the holder's node dies.

use crate::support::client::Client;
use crate::support::cluster::{Cluster, http_get, shared};
use crate::support::codec::{self, Connect, Packet, Publish, VERSIONS, Version};
use crate::support::{START, eventually};

async fn connect(node: &str, version: Version, name: &str, durable: bool) -> Client {
    let connect = match durable {
        true => Connect::persistent(version, name),
        false => Connect::clean(version, name),
    };
    Client::connect(node, &connect).await.0
}

/// The codes of the SUBACK.
async fn ask(client: &mut Client, filters: &[(&str, u8)]) -> Vec<u8> {
    let pid = client.next_pid();
    let subscribe = codec::subscribe(client.version, pid, filters);
    client.send(&subscribe).await.expect("SUBSCRIBE");
    suback(client, pid).await
}

async fn suback(client: &mut Client, pid: u16) -> Vec<u8> {
    client
        .wait_for("SUBACK", |packet| match packet {
            Packet::Suback { pid: answered, codes } if *answered == pid => Some(codes.clone()),
            _ => None,
        })
        .await
}

fn refused(version: Version) -> u8 {
    if version == Version::V5 { 0x97 } else { 0x80 }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_has_an_exclusive_subscription() {
    for version in VERSIONS {
        for durable in [false, true] {
            lives_of_a_claim(version, durable).await;
            in_one_packet(version, durable).await;
            with_others(version, durable).await;
        }
    }
    malformed().await;
}

async fn lives_of_a_claim(version: Version, durable: bool) {
    let (cluster, refused) = (shared(), refused(version));
    let tag = format!("ex-{version:?}-{durable}");
    let filter = format!("$exclusive/{tag}/+");
    let topic = format!("{tag}/t");
    let mut holder = connect(cluster.mqtt(0), version, &format!("{tag}-holder"), durable).await;
    let mut other = connect(cluster.mqtt(1), version, &format!("{tag}-other"), !durable).await;
    let mut publisher = connect(cluster.mqtt(2), version, &format!("{tag}-pub"), false).await;
    assert_eq!(ask(&mut holder, &[(&filter, 1)]).await, [1]);
    assert_eq!(ask(&mut other, &[(&filter, 1)]).await, [refused]);
    // The holder again: its options are those of the last.
    assert_eq!(ask(&mut holder, &[(&filter, 2)]).await, [2]);
    assert_eq!(ask(&mut other, &[(&filter, 0)]).await, [refused]);
    for qos in 0..=2 {
        publisher
            .publish_packet(Publish::new(&topic, format!("{qos}"), qos))
            .await;
        let message = holder.message().await;
        assert_eq!(
            (message.text(), message.qos, &*message.topic),
            (format!("{qos}"), qos, &*topic)
        );
    }
    // An UNSUBSCRIBE of who has none of it changes nothing.
    other.unsubscribe(&[&filter]).await;
    assert_eq!(ask(&mut other, &[(&filter, 1)]).await, [refused]);
    holder.unsubscribe(&[&filter]).await;
    assert_eq!(ask(&mut other, &[(&filter, 1)]).await, [1]);
    assert_eq!(ask(&mut holder, &[(&filter, 1)]).await, [refused]);
    publisher.publish(&topic, "of the other", 1).await;
    assert_eq!(other.message().await.text(), "of the other");
    other.unsubscribe(&[&filter]).await;

    // A durable session keeps it while it is away, an ephemeral one ends.
    assert_eq!(ask(&mut holder, &[(&filter, 1)]).await, [1]);
    holder.disconnect().await;
    let answer = ask(&mut other, &[(&filter, 1)]).await;
    let name = format!("{tag}-holder");
    if durable {
        assert_eq!(answer, [refused]);
        publisher.publish(&topic, "while away", 1).await;
        let path = format!("/api/v1/sessions/{name}");
        let (_, body) = http_get(&cluster.nodes[2].http, &path).await.expect("an answer");
        let session: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(
            session["exclusive"],
            serde_json::json!([format!("{tag}/+")]),
            "{session}"
        );
        let mut holder = connect(cluster.mqtt(2), version, &name, true).await;
        assert_eq!(holder.message().await.text(), "while away");
        assert_eq!(ask(&mut other, &[(&filter, 1)]).await, [refused]);
        // Taken over, and then begun anew.
        let mut holder = connect(cluster.mqtt(0), version, &name, true).await;
        assert_eq!(ask(&mut holder, &[(&filter, 1)]).await, [1]);
        assert_eq!(ask(&mut other, &[(&filter, 1)]).await, [refused]);
        let clean = connect(cluster.mqtt(1), version, &name, false).await;
        assert_eq!(ask(&mut other, &[(&filter, 1)]).await, [1]);
        clean.disconnect().await;
    } else {
        assert_eq!(answer, [1]);
    }
    // Nobody but the holder heard of anything.
    other.ping().await;
    assert!(!other.has_kept());
    connect(cluster.mqtt(1), version, &format!("{tag}-other"), false)
        .await
        .disconnect()
        .await;
}

/// What of one SUBSCRIBE is granted does not depend on the rest of it.
async fn in_one_packet(version: Version, durable: bool) {
    let (cluster, refused) = (shared(), refused(version));
    let tag = format!("exp-{version:?}-{durable}");
    let (taken, free, plain) = (format!("{tag}/taken"), format!("{tag}/free"), format!("{tag}/plain"));
    let [taken_only, free_only] = [&taken, &free].map(|filter| format!("$exclusive/{filter}"));
    let mut holder = connect(cluster.mqtt(0), version, &format!("{tag}-holder"), false).await;
    let mut asks = connect(cluster.mqtt(1), version, &format!("{tag}-asks"), durable).await;
    assert_eq!(ask(&mut holder, &[(&taken_only, 1)]).await, [1]);
    let filters = [(&*plain, 1), (&*taken_only, 1), (&*free_only, 2)];
    assert_eq!(ask(&mut asks, &filters).await, [1, refused, 2]);
    for topic in [&taken, &plain, &free] {
        holder.publish(topic, topic.as_str(), 1).await;
    }
    let mut texts = [asks.message().await.text(), asks.message().await.text()];
    texts.sort_unstable();
    assert_eq!(texts, [free.clone(), plain.clone()]);
    assert_eq!(holder.message().await.text(), taken);
    // The last of a packet counts: it is not exclusive any more.
    let filters = [(&*free_only, 1), (&*free, 1)];
    assert_eq!(ask(&mut asks, &filters).await, [1, 1]);
    assert_eq!(ask(&mut holder, &[(&free_only, 1)]).await, [1]);
    asks.unsubscribe(&[&free]).await;
    assert_eq!(ask(&mut asks, &[(&free_only, 1)]).await, [refused]);
    connect(cluster.mqtt(2), version, &format!("{tag}-asks"), false)
        .await
        .disconnect()
        .await;
    holder.disconnect().await;
}

/// Without `$exclusive/` a filter is anybody's, and what was subscribed so stays when the exclusive one is refused.
async fn with_others(version: Version, durable: bool) {
    let (cluster, refused) = (shared(), refused(version));
    let tag = format!("exo-{version:?}-{durable}");
    let topic = format!("{tag}/t");
    let filter = format!("$exclusive/{topic}");
    let mut plain = connect(cluster.mqtt(0), version, &format!("{tag}-plain"), durable).await;
    let mut holder = connect(cluster.mqtt(1), version, &format!("{tag}-holder"), durable).await;
    plain.subscribe(&[(&topic, 1)]).await;
    assert_eq!(ask(&mut holder, &[(&filter, 1)]).await, [1]);
    assert_eq!(ask(&mut plain, &[(&filter, 2)]).await, [refused]);
    holder.publish_packet(Publish::new(&topic, "both", 2)).await;
    assert_eq!((plain.message().await.qos, holder.message().await.qos), (1, 1));
    // By the filter alone the holder gives it back, and stays subscribed.
    holder.subscribe(&[(&topic, 1)]).await;
    assert_eq!(ask(&mut plain, &[(&filter, 1)]).await, [1]);
    plain.publish(&topic, "again", 1).await;
    assert_eq!(
        (plain.message().await.text(), holder.message().await.text()),
        ("again".into(), "again".into())
    );
    for name in ["plain", "holder"] {
        connect(cluster.mqtt(2), version, &format!("{tag}-{name}"), false)
            .await
            .disconnect()
            .await;
    }
}

async fn malformed() {
    for filter in [
        "$exclusive/",
        "$exclusive/a#",
        "$exclusive/$share/g/a",
        "$exclusive/$queue/a",
    ] {
        let mut client = connect(shared().mqtt(0), Version::V5, "ex-bad", false).await;
        let subscribe = codec::subscribe(Version::V5, 1, &[(filter, 1)]);
        client.send(&subscribe).await.expect("sent");
        assert_eq!(
            client.closed_by_server(crate::support::SOON).await.0,
            Some(0x8f),
            "{filter}"
        );
    }
}

/// Two sessions ask at two nodes at once, again and again: one of them has it, and it alone is sent what is published.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_ask_at_once_one_has_it() {
    let cluster = shared();
    let mut publisher = connect(cluster.mqtt(2), Version::V5, "race-pub", false).await;
    let mut wins = [0; 2];
    for (at, (version, durable)) in [
        (Version::V5, [false, false]),
        (Version::V311, [true, true]),
        (Version::V5, [true, false]),
        (Version::V311, [false, true]),
    ]
    .into_iter()
    .enumerate()
    {
        let one = connect(cluster.mqtt(at % 3), version, &format!("race-{at}-one"), durable[0]).await;
        let two = connect(
            cluster.mqtt((at + 1) % 3),
            version,
            &format!("race-{at}-two"),
            durable[1],
        )
        .await;
        let mut both = [one, two];
        for round in 0..ROUNDS / 4 {
            // The same filter again, given back in between, and now and then another one.
            let topic = format!("race/{at}/{}", round / 5);
            let filter = format!("$exclusive/{topic}");
            let [one, two] = &mut both;
            let asked = [(&*filter, 1)];
            let (first, second) = tokio::join!(ask(one, &asked), ask(two, &asked));
            let granted: Vec<usize> = [first, second]
                .iter()
                .enumerate()
                .filter(|(_, codes)| codes[0] < 0x80)
                .map(|(winner, _)| winner)
                .collect();
            assert_eq!(granted.len(), 1, "round {round} of {at}: who has it: {granted:?}");
            let winner = granted[0];
            wins[winner] += 1;
            let payload = format!("{at}-{round}");
            publisher.publish(&topic, payload.clone(), 1).await;
            assert_eq!(both[winner].message().await.text(), payload);
            both[winner].unsubscribe(&[&filter]).await;
            let loser = &mut both[1 - winner];
            loser.ping().await;
            assert!(!loser.has_kept(), "round {round} of {at}: the other was sent something");
        }
        for mut client in both {
            client.ping().await;
            let name = client.client_id.clone();
            client.disconnect().await;
            connect(cluster.mqtt(0), version, &name, false).await.disconnect().await;
        }
    }
    println!("wins: {wins:?}");
    assert_eq!(wins.iter().sum::<usize>(), ROUNDS);
}

/// The node of the holders is killed: ephemeral ones lose what they held, durable ones keep it and come back to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_frees_what_its_ephemeral_sessions_held() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    for (round, version) in VERSIONS.into_iter().enumerate() {
        // The second time the one that decides.
        let leader = cluster.leader_of("meta").await;
        let follower = cluster.ids().into_iter().find(|id| *id != leader).expect("three");
        let victim = if round == 0 { follower } else { leader };
        let survivor = cluster.ids().into_iter().find(|id| *id != victim).expect("three");
        let at = |id: u64| cluster.node(id).mqtt.clone();
        let (gone, kept) = (format!("$exclusive/gone/{round}"), format!("$exclusive/kept/{round}"));
        let mut ephemeral = connect(&at(victim), version, &format!("dies-{round}"), false).await;
        let mut durable = connect(&at(victim), version, &format!("stays-{round}"), true).await;
        let mut other = connect(&at(survivor), version, &format!("waits-{round}"), false).await;
        assert_eq!(ask(&mut ephemeral, &[(&gone, 1)]).await, [1]);
        assert_eq!(ask(&mut durable, &[(&kept, 1)]).await, [1]);
        let both = [(&*gone, 1), (&*kept, 1)];
        assert_eq!(ask(&mut other, &both).await, [refused(version); 2]);

        cluster.kill(victim).await;
        let other = tokio::sync::Mutex::new(other);
        eventually("what an ephemeral session held is free", START, || async {
            let codes = ask(&mut *other.lock().await, &[(&gone, 1), (&kept, 1)]).await;
            assert_eq!(codes[1], refused(version), "a durable session keeps it");
            (codes[0] == 1).then_some(())
        })
        .await;
        let mut other = other.into_inner();
        let mut durable = connect(&at(survivor), version, &format!("stays-{round}"), true).await;
        other.publish(&format!("kept/{round}"), "back", 1).await;
        assert_eq!(durable.message().await.text(), "back");
        assert_eq!(ask(&mut other, &[(&kept, 1)]).await, [refused(version)]);
        assert_eq!(ask(&mut durable, &[(&gone, 1)]).await, [refused(version)]);

        cluster.start_node(victim);
        cluster.wait_ready(victim, START).await;
        // What came back has learned who holds what.
        let mut third = connect(&at(victim), version, &format!("third-{round}"), false).await;
        assert_eq!(ask(&mut third, &both).await, [refused(version); 2]);
        durable.unsubscribe(&[&kept]).await;
        assert_eq!(ask(&mut third, &both).await, [refused(version), 1]);
    }

    // All at once: the durable one has it still.
    let mut durable = connect(cluster.mqtt(0), Version::V5, "all-stays", true).await;
    let mut ephemeral = connect(cluster.mqtt(1), Version::V5, "all-dies", false).await;
    assert_eq!(ask(&mut durable, &[("$exclusive/all/kept", 1)]).await, [1]);
    assert_eq!(ask(&mut ephemeral, &[("$exclusive/all/gone", 1)]).await, [1]);
    cluster.kill_all(&cluster.ids()).await;
    for id in cluster.ids() {
        cluster.start_node(id);
    }
    cluster.wait_all_ready().await;
    let other = connect(cluster.mqtt(2), Version::V5, "all-waits", false).await;
    let other = tokio::sync::Mutex::new(other);
    let both = [("$exclusive/all/kept", 1), ("$exclusive/all/gone", 1)];
    eventually("free after all were killed", START, || async {
        let codes = ask(&mut *other.lock().await, &both).await;
        assert_eq!(codes[0], 0x97, "a durable session keeps it");
        (codes[1] == 1).then_some(())
    })
    .await;
    cluster.assert_no_panic();
}

const ROUNDS: usize = 200;
