//! P4, P6 and P9 under stopped and cut-off nodes: subscribing is a barrier, a client id has one connection, and a node that
//! cannot keep a promise refuses.

use crate::support::client::{Client, Gone};
use crate::support::cluster::{Cluster, http_get};
use crate::support::codec::{self, Connect, Packet, Publish, VERSIONS, Version};
use crate::support::partition::Cut;
use crate::support::{SOON, START, eventually};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

/// P4. Three subscribers' nodes at once, publishers on the other nodes; durable and ephemeral sessions, exact filters and
/// wildcards by turns.
#[tokio::test(flavor = "multi_thread")]
async fn a_publish_right_after_the_suback_is_never_missed_in_1000_rounds() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let addresses: Vec<String> = cluster.nodes.iter().map(|node| node.mqtt.clone()).collect();
    let mut lanes = JoinSet::new();
    for lane in 0..3 {
        lanes.spawn(subscribe_and_publish(addresses.clone(), lane, ROUNDS.div_ceil(3)));
    }
    let rounds: usize = lanes.join_all().await.into_iter().sum();
    println!("P4: {rounds} rounds, none missed");
    assert!(rounds >= ROUNDS);
    cluster.assert_no_panic();
}

async fn subscribe_and_publish(addresses: Vec<String>, lane: usize, rounds: usize) -> usize {
    let name = |role: &str| format!("p4-{lane}-{role}");
    let home = &addresses[lane];
    let (durable, _) = Client::connect(home, &Connect::persistent(Version::V5, &name("durable"))).await;
    let ephemeral = Client::open(home, Version::V311, &name("ephemeral")).await;
    let mut subscribers = [durable, ephemeral];
    let mut publishers = Vec::new();
    for step in [1, 2] {
        let address = &addresses[(lane + step) % addresses.len()];
        publishers.push(Client::open(address, Version::V5, &name(&format!("publisher-{step}"))).await);
    }
    for round in 0..rounds {
        let subscriber = &mut subscribers[round % 2];
        let publisher = &mut publishers[round / 2 % 2];
        let topic = format!("p4/{lane}/{round}/x");
        let filter = match round % 3 {
            0 => topic.clone(),
            1 => format!("p4/{lane}/{round}/+"),
            _ => format!("p4/{lane}/{round}/#"),
        };
        subscriber.subscribe(&[(&filter, 1)]).await;
        let code = publisher.publish_code(&topic, format!("{round}"), 1).await;
        assert_eq!(code, 0, "round {round} of {filter}: 0x10 is no matching subscribers");
        let message = subscriber.message().await;
        assert_eq!(
            (message.topic, message.payload),
            (topic, format!("{round}").into_bytes())
        );
        // Some stay, so that the table of routes grows.
        if round % 4 != 0 {
            subscriber.unsubscribe(&[&filter]).await;
        }
    }
    rounds
}

/// P4, P6. A node that does not answer is waited for until it is Down; what it then finds in its sockets it does not match
/// against the routes that it knew, and it serves no connection that was taken over.
#[tokio::test(flavor = "multi_thread")]
async fn suback_and_take_over_wait_for_a_stopped_node_which_then_serves_nothing_old() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    for round in 0..6 {
        let meta_leader = cluster.leader_of("meta").await;
        let others = cluster.ids().into_iter().filter(|id| *id != meta_leader);
        let others: Vec<u64> = others.collect();
        // By turns: the leader of meta stops, or one that follows; the subscriber is on the leader, or not.
        let (stopped, home) = match round % 3 {
            0 => (others[0], others[1]),
            1 => (others[1], meta_leader),
            _ => (meta_leader, others[0]),
        };
        suback_and_stop(&cluster, round, stopped, home).await;
        cluster.wait_all_ready().await;
    }
    cluster.assert_no_panic();
}

async fn suback_and_stop(cluster: &Cluster, round: usize, stopped: u64, home: u64) {
    let topic = format!("stop/{round}");
    let durable = round.is_multiple_of(2);
    let connect = match durable {
        true => Connect::persistent(Version::V5, &format!("stop-{round}-s")),
        false => Connect::clean(Version::V311, &format!("stop-{round}-s")),
    };
    let (mut subscriber, _) = Client::connect(&cluster.node(home).mqtt, &connect).await;
    let address = &cluster.node(stopped).mqtt;
    let mut publishers = Vec::new();
    for (index, version) in VERSIONS.into_iter().enumerate() {
        let mut publisher = Client::open(address, version, &format!("stop-{round}-p{index}")).await;
        // Its match of the topic is in the cache.
        publisher.publish(&topic, "before anybody subscribed", 1).await;
        publishers.push(publisher);
    }

    let moving = Connect::persistent(VERSIONS[round / 2 % 2], &format!("stop-{round}-p2"));
    let (moved, _) = Client::connect(address, &moving).await;

    cluster.pause(stopped).await;
    let paused = Instant::now();
    let mut moved = [moved];
    let mut sent = 0;
    send_into_the_socket(&mut publishers, &topic, &mut sent).await;
    send_into_the_socket(&mut moved, &topic, &mut sent).await;
    let home_address = cluster.node(home).mqtt.clone();
    let take_over = tokio::spawn(async move { Client::connect(&home_address, &moving).await });
    let pid = subscriber.next_pid();
    let subscribe = codec::subscribe(subscriber.version, pid, &[(topic.as_str(), 1)]);
    subscriber.send(&subscribe).await.expect("SUBSCRIBE");
    let suback = subscriber.packet_within(SOON).await;
    let took = paused.elapsed();
    assert!(
        matches!(&suback, Ok(Packet::Suback { codes, .. }) if codes == &[1]),
        "{suback:?}"
    );
    // It still stands, so it cannot have come back meanwhile.
    assert!(
        !cluster.is_up(home, stopped).await,
        "SUBACK after {took:?}, while node {stopped} stood and was Up"
    );
    send_into_the_socket(&mut publishers, &topic, &mut sent).await;
    // Its socket connects to the node that took over, and that says so only now.
    let (mut taken_over, connack) = timeout(SOON, take_over).await.expect("CONNACK").expect("no panic");
    assert!(
        !cluster.is_up(home, stopped).await,
        "CONNACK while the old connection might be served"
    );
    assert!(is_present(&connack), "the session moves with its client");
    taken_over.ping().await;
    send_into_the_socket(&mut moved, &topic, &mut sent).await;

    cluster.resume(stopped);
    let old = acknowledged_until_closed(&mut moved[0]).await;
    assert!(
        old.is_empty(),
        "acknowledged on a connection that was taken over: {old:?}"
    );
    let mut acknowledged = BTreeSet::new();
    for publisher in &mut publishers {
        acknowledged.extend(acknowledged_until_closed(publisher).await);
    }
    cluster.wait_ready(stopped, START).await;
    let mut publisher = Client::open(address, Version::V5, &format!("stop-{round}-fence")).await;
    publisher.publish(&topic, "fence", 1).await;
    let messages = subscriber.messages_until("fence").await;
    let received: BTreeSet<String> = messages.iter().map(Publish::text).collect();
    println!(
        "P4: node {stopped} stood, SUBACK after {took:?}; {sent} found in its sockets, {} acknowledged, {} received",
        acknowledged.len(),
        received.len()
    );
    let zombies: Vec<_> = received.iter().filter(|payload| payload.starts_with("2 ")).collect();
    assert!(
        zombies.is_empty(),
        "sent before the take-over, unacknowledged, published after: {zombies:?}"
    );
    let missed: Vec<_> = acknowledged.difference(&received).collect();
    assert!(missed.is_empty(), "acknowledged after SIGCONT and missed: {missed:?}");
}

/// The last digit of its client id.
fn number(publisher: &Client) -> char {
    publisher.client_id.chars().last().expect("a client id")
}

/// More PUBLISH packets than any worker reads at once; nobody reads them now.
async fn send_into_the_socket(publishers: &mut [Client], topic: &str, sent: &mut usize) {
    for publisher in publishers {
        for _ in 0..20 {
            let pid = publisher.next_pid();
            let payload = format!("{} {pid}", number(publisher));
            let publish = Publish {
                pid,
                ..Publish::new(topic, payload, 1)
            };
            publisher
                .send(&publish.encode(publisher.version))
                .await
                .expect("room in the socket");
            *sent += 1;
        }
    }
}

/// The payloads (`<client> <packet identifier>`) of what was acknowledged on this connection until the server ended it.
async fn acknowledged_until_closed(publisher: &mut Client) -> BTreeSet<String> {
    let index = number(publisher);
    let mut acknowledged = BTreeSet::new();
    loop {
        match publisher.packet_within(SOON).await {
            Ok(Packet::Puback { pid, code }) if code < 0x80 => drop(acknowledged.insert(format!("{index} {pid}"))),
            // 0x8E where its session went to another node meanwhile, and this one hears of that first.
            Ok(Packet::Disconnect { code, .. }) => assert!(
                LET_GO.contains(&code) || code == SESSION_TAKEN_OVER,
                "DISCONNECT {code:#04x}"
            ),
            Ok(_) => {}
            Err(Gone::Closed(_)) => return acknowledged,
            Err(gone) => panic!("{}: neither served nor let go: {gone:?}", publisher.client_id),
        }
    }
}

/// P6. Two nodes fight for one client id, one CONNECT after the other and at once.
#[tokio::test(flavor = "multi_thread")]
async fn one_client_id_is_served_once_in_200_fights() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let (mut witness, _) = Client::connect(cluster.mqtt(0), &Connect::persistent(Version::V5, "fight-witness")).await;
    witness.subscribe(&[("fight/#", 1)]).await;
    let mut publisher = Client::open(cluster.mqtt(1), Version::V311, "fight-publisher").await;
    let mut forbidden = BTreeSet::new();
    let mut acknowledged = BTreeSet::new();
    let mut previous: Option<Client> = None;
    let (mut both, mut one) = (0, 0);
    for round in 0..FIGHTS {
        let version = VERSIONS[round / 2 % 2];
        let connect = Connect::persistent(version, "fighter");
        let (left, right) = (cluster.mqtt(round % 3), cluster.mqtt((round + 1 + round / 3 % 2) % 3));
        if round % 2 == 0 {
            let (mut new, connack) = Client::connect(left, &connect).await;
            if round == 0 {
                new.subscribe(&[("for-the-fighter", 1)]).await;
            }
            publisher.publish("for-the-fighter", format!("{round}"), 1).await;
            if let Some(old) = previous.take() {
                assert!(is_present(&connack), "round {round}: the session was there before");
                displaced(old, round, &mut forbidden).await;
            }
            // The session follows its client. What an earlier connection acknowledged last may come again.
            loop {
                let message = new.message().await;
                if message.text() == format!("{round}") {
                    break;
                }
                assert!(message.dup, "round {round}: {message:?}");
            }
            served(&mut new, &format!("new {round}"), &mut acknowledged).await;
            previous = Some(new);
            continue;
        }
        let (left, right) = tokio::join!(
            Client::try_connect(left, &connect, SOON),
            Client::try_connect(right, &connect, SOON)
        );
        let mut contenders = Vec::new();
        for contender in [left, right] {
            match contender {
                Ok((client, connack @ Packet::Connack { code: 0, .. })) => {
                    assert!(is_present(&connack), "round {round}: the session was there before");
                    contenders.push(client);
                }
                // Displaced before it was told that it is served.
                Ok((_, Packet::Connack { code, .. })) => {
                    assert!(refusals(version).contains(&code), "CONNACK {code:#04x}");
                }
                Ok((_, other)) => panic!("{other:?}"),
                Err(Gone::Closed(_)) => {}
                Err(gone) => panic!("round {round}: {gone:?}"),
            }
        }
        assert!(!contenders.is_empty(), "round {round}: somebody wins");
        if contenders.len() == 2 {
            both += 1;
        } else {
            one += 1;
        }
        // All CONNACKs are there: of all connections of this client id one is served.
        if let Some(old) = previous.take() {
            displaced(old, round, &mut forbidden).await;
        }
        let mut winner = None;
        for (index, mut client) in contenders.into_iter().enumerate() {
            let payload = format!("contender {index} {round}");
            match outcome(&mut client, &payload).await {
                Some(()) => {
                    acknowledged.insert(payload);
                    assert!(winner.replace(client).is_none(), "round {round}: two are served");
                }
                None => drop(forbidden.insert(payload)),
            }
        }
        previous = Some(winner.unwrap_or_else(|| panic!("round {round}: nobody is served")));
    }
    println!("P6: {FIGHTS} fights, of those at once {both} with two CONNACKs and {one} with one");
    publisher.publish("fight/x", "fence", 1).await;
    let received: BTreeSet<String> = witness
        .messages_until("fence")
        .await
        .iter()
        .map(Publish::text)
        .collect();
    let zombies: Vec<_> = received.intersection(&forbidden).collect();
    assert!(
        zombies.is_empty(),
        "sent on a displaced connection, and published: {zombies:?}"
    );
    assert_eq!(received, acknowledged);
    cluster.assert_no_panic();
}

/// A connection whose successor has its CONNACK: told so (5.0) and closed; what it sends has no effect, and what was
/// published since is not delivered there.
async fn displaced(mut old: Client, round: usize, forbidden: &mut BTreeSet<String>) {
    let payload = &format!("old {round}");
    // By turns: a reset that answers our PUBLISH may overtake the DISCONNECT.
    let sends = (round / 4).is_multiple_of(2);
    if sends {
        forbidden.insert(payload.clone());
        let publish = Publish {
            pid: old.next_pid(),
            ..Publish::new("fight/x", payload.as_str(), 1)
        };
        // Closed already: as good.
        let _ = old.send(&publish.encode(old.version)).await;
    }
    let mut code = None;
    loop {
        match old.packet_within(SOON).await {
            Ok(Packet::Disconnect { code: sent, .. }) => code = Some(sent),
            // It was under way before.
            Ok(Packet::Publish(publish)) if publish.text() != format!("{round}") => {}
            Ok(packet) => panic!("{payload}: on a displaced connection: {packet:?}"),
            Err(Gone::Closed(_)) => break,
            Err(gone) => panic!("{payload}: a displaced connection stays open: {gone:?}"),
        }
    }
    let expected = (old.version == Version::V5).then_some(SESSION_TAKEN_OVER);
    assert!(
        code == expected || (sends && code.is_none()),
        "{payload}: DISCONNECT {code:02x?}"
    );
}

async fn served(client: &mut Client, payload: &str, acknowledged: &mut BTreeSet<String>) {
    let served = outcome(client, payload).await;
    assert!(
        served.is_some(),
        "{payload}: the connection with the latest CONNACK is served"
    );
    acknowledged.insert(payload.into());
}

/// Publishes; `None` if the connection ends without an acknowledgement.
async fn outcome(client: &mut Client, payload: &str) -> Option<()> {
    let publish = Publish {
        pid: client.next_pid(),
        ..Publish::new("fight/x", payload, 1)
    };
    let _ = client.send(&publish.encode(client.version)).await;
    loop {
        match client.packet_within(SOON).await {
            Ok(Packet::Puback { pid, code: 0 }) if pid == publish.pid => return Some(()),
            Ok(Packet::Disconnect { code, .. }) => assert_eq!(code, SESSION_TAKEN_OVER, "{payload}"),
            Ok(Packet::Publish(_)) => {}
            Ok(packet) => panic!("{payload}: {packet:?}"),
            Err(Gone::Closed(_)) => return None,
            Err(gone) => panic!("{payload}: {gone:?}"),
        }
    }
}

/// P9. One node without the others, cut in both directions and in one: it pauses, refuses, and comes back by itself; what
/// it acknowledged is kept; clients of the others notice nothing but a delay.
#[tokio::test(flavor = "multi_thread")]
async fn an_isolated_node_refuses_and_comes_back() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let mut cases = Vec::new();
    for direction in [Cut::Both, Cut::Into, Cut::OutOf] {
        cases.extend([(direction, true), (direction, false)]);
    }
    for (number, (direction, is_leader)) in cases.into_iter().enumerate() {
        let leader = cluster.leader_of("meta").await;
        let follower = cluster.ids().into_iter().find(|id| *id != leader).expect("three");
        let victim = if is_leader { leader } else { follower };
        println!("P9: {direction:?} of node {victim}, leader of meta: {is_leader}");
        let healthy: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != victim).collect();
        let run = Outage::begin(&cluster, &format!("cut-{number}"), victim, healthy[0]).await;
        cluster.isolate(victim, direction);
        run.judge(&cluster, &healthy, || cluster.heal()).await;
    }
    cluster.assert_no_panic();
}

/// P9. A node that stood still for less than its lease serves on as if nothing had been, and nobody is called Down: not the
/// node, and not the others by a leader that slept.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_stood_for_a_second_keep_their_clients() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let mut clients = clients_on_all_nodes(&cluster).await;
    let mut before = incarnations(&cluster).await;
    let mut counted = 0;
    while counted < 6 {
        let leader = cluster.leader_of("meta").await;
        let follower = cluster.ids().into_iter().find(|id| *id != leader).expect("three");
        let stopped = match counted % 3 {
            0 => vec![leader],
            1 => vec![follower],
            _ => cluster.ids(),
        };
        for (_, client) in &mut clients {
            client.ping().await;
        }
        let paused = Instant::now();
        for id in &stopped {
            cluster.pause(*id).await;
        }
        tokio::time::sleep(Duration::from_millis(900)).await;
        for id in &stopped {
            cluster.resume(*id);
        }
        let took = paused.elapsed();
        if took > Duration::from_millis(1300) {
            println!("P9: the machine itself stood still: {took:?}, which says nothing");
            cluster.wait_all_ready().await;
            clients = clients_on_all_nodes(&cluster).await;
            before = incarnations(&cluster).await;
            continue;
        }
        for (id, client) in &mut clients {
            let code = client
                .publish_code(&format!("second/{id}"), format!("{counted}"), 1)
                .await;
            assert_eq!(code, 0, "node {id}");
            assert_eq!(client.message().await.text(), format!("{counted}"));
        }
        let later = paused.elapsed() - took;
        println!("P9: nodes {stopped:?} stood for {took:?}, their clients served {later:?} later");
        assert_eq!(incarnations(&cluster).await, before, "somebody was Down in between");
        counted += 1;
    }
    cluster.assert_no_panic();
}

/// A client gives up a CONNECT to a node that stands still, and connects to another: what the node finds in its socket when
/// it goes on displaces nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_connect_that_its_client_gave_up_displaces_nobody() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let (stopped, home) = (cluster.nodes[2].clone(), cluster.nodes[0].clone());
    for (round, version) in VERSIONS.into_iter().cycle().take(6).enumerate() {
        let connect = Connect::persistent(version, &format!("gave-up-{round}"));
        let before = cluster.metrics(stopped.id).await.sum("lontra_packets_received_total");
        cluster.pause(stopped.id).await;
        let mut abandoned = Client::raw(&stopped.mqtt, version, SOON)
            .await
            .expect("the kernel accepts");
        abandoned.send(&connect.encode()).await.expect("CONNECT");
        drop(abandoned);
        let (mut client, connack) = Client::connect(&home.mqtt, &connect).await;
        assert!(matches!(connack, Packet::Connack { code: 0, .. }), "{connack:?}");
        if round % 2 == 1 {
            // Long enough to be Down, and to come back as another incarnation.
            eventually("the node Down", START, || async {
                (!cluster.is_up(home.id, stopped.id).await).then_some(())
            })
            .await;
        }
        cluster.resume(stopped.id);
        cluster.wait_ready(stopped.id, START).await;
        eventually("the node has read it", START, || async {
            let scrape = cluster.metrics(stopped.id).await;
            (scrape.sum("lontra_packets_received_total") > before && scrape.sum("lontra_connections") == 0.0)
                .then_some(())
        })
        .await;
        // Each waits for the meta group and for every node, so also behind whatever the old CONNECT began.
        for n in 0..10 {
            client.subscribe(&[(&format!("gave-up/{n}"), 1)]).await;
        }
        client.ping().await;
        client.disconnect().await;
    }
    cluster.assert_no_panic();
}

/// P6. A node and the leader of meta do not reach each other, the third reaches both: one of the two loses its lease, while its
/// shards and its links still bring what is published. Its clients get nothing of that any more: they may be served elsewhere
/// by now. What is kept for them follows them.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_lease_hands_over_nothing_that_its_shards_bring() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let mut told = 0;
    for round in 0..WITHHELD_ROUNDS {
        told += usize::from(withheld(&cluster, round).await);
        cluster.heal();
        cluster.wait_all_ready().await;
    }
    assert!(told > 0, "in no round did the node stay without a lease");
    cluster.assert_no_panic();
}

/// Whether the round says something: the node was seen without a lease, and had none until it let its clients go.
async fn withheld(cluster: &Cluster, round: usize) -> bool {
    let leader = cluster.leader_of("meta").await;
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    let (follower, third) = (others[round % 2], others[1 - round % 2]);
    let name = format!("withheld-{round}");
    let mut served = Vec::new();
    for id in [leader, follower] {
        let address = &cluster.node(id).mqtt;
        let connect = Connect::persistent(Version::V5, &format!("{name}-{id}"));
        let (mut durable, _) = Client::connect(address, &connect).await;
        durable.subscribe(&[(&format!("{name}/durable/#"), 1)]).await;
        let mut ephemeral = Client::open(address, Version::V311, &format!("{name}-{id}-e")).await;
        ephemeral.subscribe(&[(&format!("{name}/ephemeral/#"), 1)]).await;
        served.push((id, connect, durable, ephemeral));
    }
    let mut publisher = Client::open(&cluster.node(third).mqtt, Version::V5, &format!("{name}-p")).await;

    cluster.cut(leader, follower);
    cluster.cut(follower, leader);
    let (without, is_paused) = eventually("one of the two is without a lease", BACK_WITHIN, || async {
        let mut found = None;
        for id in [leader, follower] {
            let (_, body) = http_get(&cluster.node(id).http, "/health/ready")
                .await
                .expect("an answer");
            if body.contains("paused") || body.contains("let go") {
                found = found.or(Some((id, body.contains("paused"))));
            }
        }
        found
    })
    .await;
    // Every shard brings something, whichever of them the third node leads; and so do its links.
    let mut unacknowledged = BTreeSet::new();
    for topic in 0..WITHHELD_TOPICS {
        for (path, qos) in [("durable", 1), ("ephemeral", topic as u8 % 2)] {
            let pid = if qos == 0 { 0 } else { publisher.next_pid() };
            let publish = Publish {
                pid,
                ..Publish::new(&format!("{name}/{path}/{topic}"), "x", qos)
            };
            publisher.send(&publish.encode(Version::V5)).await.expect("PUBLISH");
            unacknowledged.extend((pid != 0).then_some(pid));
        }
    }
    let stayed = eventually("the node lets its clients go, or serves again", SOON, || async {
        match http_get(&cluster.node(without).http, "/health/ready").await {
            Ok((200, _)) => Some(false),
            Ok((_, body)) if body.contains("let go") => Some(true),
            _ => None,
        }
    })
    .await;
    if !stayed || !is_paused {
        println!("P6: node {without}: paused {is_paused}, let its clients go {stayed}, which says nothing");
        return false;
    }
    let position = served.iter().position(|(id, ..)| *id == without).expect("one of them");
    let (_, connect, durable, ephemeral) = served.swap_remove(position);
    for mut client in [durable, ephemeral] {
        let got = received_until_let_go(&mut client).await;
        assert!(got.is_empty(), "{}: without a lease: {got:?}", client.client_id);
    }
    while !unacknowledged.is_empty() {
        match publisher.packet_within(SOON).await {
            Ok(Packet::Puback { pid, code }) if code < 0x80 => drop(unacknowledged.remove(&pid)),
            other => panic!("{other:?}"),
        }
    }
    let (mut moved, connack) = Client::connect(&cluster.node(third).mqtt, &connect).await;
    assert!(is_present(&connack), "{connack:?}");
    let mut topics = BTreeSet::new();
    while topics.len() < WITHHELD_TOPICS {
        topics.insert(moved.message().await.topic);
    }
    println!("P6: node {without} kept from its clients what came while it had no lease");
    true
}

/// The topics of what came on a connection before the server ended it.
async fn received_until_let_go(client: &mut Client) -> Vec<String> {
    let mut received = Vec::new();
    loop {
        match client.packet_within(SOON).await {
            Ok(Packet::Publish(publish)) => received.push(publish.topic),
            Ok(Packet::Disconnect { code, .. }) => assert!(LET_GO.contains(&code), "DISCONNECT {code:#04x}"),
            Ok(other) => panic!("{other:?}"),
            Err(Gone::Closed(_)) => return received,
            Err(gone) => panic!("{}: neither served nor let go: {gone:?}", client.client_id),
        }
    }
}

/// P4. A client goes while its SUBSCRIBE waits for a node that stands still: what it had not been counted for yet is not taken
/// from another subscriber of the same filter.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_during_its_subscribe_takes_no_route_away() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader_of("meta").await;
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    let (home, stopped) = (others[0], others[1]);
    let mut subscriber = Client::open(&cluster.node(home).mqtt, Version::V5, "routes-stays").await;
    subscriber.subscribe(&[("routes/x", 1)]).await;
    let mut publisher = Client::open(&cluster.node(leader).mqtt, Version::V5, "routes-publisher").await;
    let mut goes = Client::open(&cluster.node(home).mqtt, Version::V5, "routes-goes").await;
    let before = cluster.metrics(home).await.sum("lontra_packets_received_total");

    cluster.pause(stopped).await;
    // Its group is told to the cluster first, which waits for the node.
    let filters = [("$share/routes/y", 1), ("routes/x", 1)];
    let subscribe = codec::subscribe(goes.version, goes.next_pid(), &filters);
    goes.send(&subscribe).await.expect("SUBSCRIBE");
    eventually("the SUBSCRIBE is read", SOON, || async {
        let received = cluster.metrics(home).await.sum("lontra_packets_received_total");
        (received > before).then_some(())
    })
    .await;
    drop(goes);
    eventually("the node has seen it go", SOON, || async {
        (cluster.metrics(home).await.sum("lontra_connections") == 1.0).then_some(())
    })
    .await;
    let mut sent = 0;
    // Also behind what the SUBSCRIBE comes to once the node is Down.
    let mut left = 20;
    while left > 0 {
        if !cluster.is_up(home, stopped).await {
            left -= 1;
        }
        let code = publisher.publish_code("routes/x", format!("{sent}"), 1).await;
        assert_eq!(code, 0, "message {sent}: 0x10 is no matching subscribers");
        assert_eq!(subscriber.message().await.text(), format!("{sent}"));
        sent += 1;
    }
    println!("P4: {sent} messages, none missed");
    cluster.resume(stopped);
    cluster.wait_ready(stopped, START).await;
    cluster.assert_no_panic();
}

/// Each subscribed to a topic of its own, with a Keep Alive of a second.
async fn clients_on_all_nodes(cluster: &Cluster) -> Vec<(u64, Client)> {
    let mut clients = Vec::new();
    for id in cluster.ids() {
        let connect = Connect::clean(Version::V5, &format!("second-{id}")).keep_alive(1);
        let (mut client, _) = Client::connect(&cluster.node(id).mqtt, &connect).await;
        client.subscribe(&[(&format!("second/{id}"), 1)]).await;
        clients.push((id, client));
    }
    clients
}

async fn incarnations(cluster: &Cluster) -> Vec<u64> {
    let status = cluster.status(cluster.ids()[0]).await.expect("/api/v1/status");
    let nodes = status["nodes"].as_array().expect("status: nodes");
    nodes
        .iter()
        .map(|node| node["incarnation"].as_u64().expect("incarnation"))
        .collect()
}

/// P9, P10. Two nodes that do not reach each other, while both reach the third: one of them refuses, the other two serve every
/// topic, whoever led its shard.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_nodes_that_do_not_reach_each_other_one_goes_on() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    for case in 0..4 {
        let leader = cluster.leader_of("meta").await;
        let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
        let pair = match case {
            0 | 1 => (others[0], others[1]),
            _ => (others[case % 2], leader),
        };
        println!("P9: nodes {pair:?} do not reach each other; {leader} leads meta");
        let mut served = Vec::new();
        for id in cluster.ids() {
            let client_id = format!("parted-{case}-{id}");
            let mut client = Client::open(&cluster.node(id).mqtt, Version::V5, &client_id).await;
            client.subscribe(&[(&format!("parted-{case}/{id}/#"), 1)]).await;
            served.push((id, client));
        }
        let observer = Connect::persistent(Version::V5, &format!("parted-{case}-observer"));
        let (mut observer, _) = Client::connect(&cluster.node(leader).mqtt, &observer).await;
        observer.subscribe(&[(&format!("parted-{case}/durable/#"), 1)]).await;
        observer.disconnect().await;

        cluster.cut(pair.0, pair.1);
        if case % 2 == 0 {
            cluster.cut(pair.1, pair.0);
        }
        let fault = Instant::now();
        let refusing = eventually("one of the two refuses", BACK_WITHIN, || async {
            let mut refusing = None;
            for id in [pair.0, pair.1] {
                let (_, body) = http_get(&cluster.node(id).http, "/health/ready")
                    .await
                    .expect("an answer");
                refusing = refusing.or(body.contains("let go").then_some(id));
            }
            refusing
        })
        .await;
        println!("P9: node {refusing} refuses after {:?}", fault.elapsed());
        let healthy: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != refusing).collect();
        for (id, client) in served.iter_mut().filter(|(id, _)| *id != refusing) {
            for topic in 0..32 {
                client.publish(&format!("parted-{case}/durable/{topic}"), "x", 1).await;
                assert!(
                    fault.elapsed() < BACK_WITHIN,
                    "node {id}: topic {topic} after {:?}",
                    fault.elapsed()
                );
            }
            for to in &healthy {
                let code = client
                    .publish_code(&format!("parted-{case}/{to}/x"), format!("from {id}"), 1)
                    .await;
                assert_eq!(code, 0, "to the subscriber on node {to}");
            }
        }
        for (_, client) in served.iter_mut().filter(|(id, _)| *id != refusing) {
            for from in &healthy {
                assert_eq!(client.message().await.text(), format!("from {from}"));
            }
        }
        println!("P9: all topics on both other nodes after {:?}", fault.elapsed());
        refuses_connections(&cluster.node(refusing).mqtt, &format!("parted-{case}")).await;
        cluster.heal();
        cluster.wait_all_ready().await;
    }
    cluster.assert_no_panic();
}

/// P9. Two of three stand still: the third refuses, and the cluster comes back by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_alone_refuses_while_two_are_stopped() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    for number in 0..2 {
        let leader = cluster.leader_of("meta").await;
        let followers: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
        let (alone, stopped) = match number {
            0 => (leader, followers),
            _ => (followers[0], vec![followers[1], leader]),
        };
        println!("P9: nodes {stopped:?} stand still");
        let run = Outage::begin(&cluster, &format!("alone-{number}"), alone, alone).await;
        for id in &stopped {
            cluster.pause(*id).await;
        }
        let resume = || {
            for id in &stopped {
                cluster.resume(*id);
            }
        };
        run.judge(&cluster, &[], resume).await;
    }
    cluster.assert_no_panic();
}

/// What a client saw that published until it was let go.
struct LetGo {
    /// With the moment at which it was sent.
    acknowledged: Vec<(String, Instant)>,
    at: Instant,
}

/// Clients of a node that will be cut off, and an observer that remembers everything.
struct Outage {
    name: String,
    victim: u64,
    /// Where the observer looks again afterwards.
    observed_at: u64,
    /// Its clients, which publish all the time.
    clients: JoinSet<LetGo>,
    /// One of them, to topics to which nobody is subscribed before the fault.
    unheard: JoinHandle<LetGo>,
    healthy: Vec<(u64, Client)>,
}

impl Outage {
    async fn begin(cluster: &Cluster, name: &str, victim: u64, observed_at: u64) -> Outage {
        let observer = Connect::persistent(Version::V5, &format!("{name}-observer"));
        let (mut observer, _) = Client::connect(&cluster.node(observed_at).mqtt, &observer).await;
        observer.subscribe(&[(&format!("{name}/#"), 1)]).await;
        observer.disconnect().await;
        let (mut clients, count) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
        for version in VERSIONS {
            let client_id = format!("{name}-{version:?}");
            let client = Client::open(&cluster.node(victim).mqtt, version, &client_id).await;
            clients.spawn(publish_until_let_go(client, name.to_owned(), count.clone()));
        }
        let unheard = Client::open(&cluster.node(victim).mqtt, Version::V5, &format!("{name}-unheard")).await;
        let unheard = tokio::spawn(publish_until_let_go(unheard, format!("{name}-late"), count.clone()));
        eventually("the clients are served", SOON, || async {
            (count.load(Ordering::SeqCst) > 100).then_some(())
        })
        .await;
        let mut healthy = Vec::new();
        for id in cluster.ids().into_iter().filter(|id| *id != victim) {
            let client_id = format!("{name}-healthy-{id}");
            healthy.push((id, Client::open(&cluster.node(id).mqtt, Version::V5, &client_id).await));
        }
        Outage {
            name: name.into(),
            victim,
            observed_at,
            clients,
            unheard,
            healthy,
        }
    }

    /// From the fault on: watches, lets `heal` end it, and compares what was acknowledged with what was kept.
    async fn judge(mut self, cluster: &Cluster, healthy: &[u64], heal: impl FnOnce()) {
        let fault = Instant::now();
        let victim = cluster.node(self.victim);
        let http = victim.http.clone();
        let readiness = tokio::spawn(async move { readiness_until_let_go(&http).await });

        // P4: SUBACK comes once the node is Down; until then it may go on to match without this subscription.
        let subscriber = healthy.first().map(|id| {
            let (address, name) = (cluster.node(*id).mqtt.clone(), self.name.clone());
            tokio::spawn(async move {
                let mut subscriber = Client::open(&address, Version::V5, &format!("{name}-subscriber")).await;
                subscriber.subscribe(&[(&format!("{name}-late/#"), 1)]).await;
                (subscriber, Instant::now())
            })
        });
        let mut acknowledged = BTreeSet::new();
        self.healthy.retain(|(id, _)| healthy.contains(id));
        for (id, client) in &mut self.healthy {
            // The same connection, though the leaders may have to be elected anew.
            let payload = format!("healthy {id}");
            client
                .publish(&format!("{}/healthy", self.name), payload.clone(), 1)
                .await;
            assert!(fault.elapsed() < BACK_WITHIN, "node {id} took {:?}", fault.elapsed());
            client.ping().await;
            acknowledged.insert(payload);
        }
        let seen = timeout(SOON, readiness).await.expect("not ready").expect("no panic");
        println!("P9: node {} says {seen:?}", self.victim);
        assert!(seen.iter().any(|reason| reason.contains("paused")), "{seen:?}");
        while let Some(ended) = self.clients.join_next().await {
            let LetGo {
                acknowledged: payloads,
                at,
            } = ended.expect("no panic");
            let took = at.duration_since(fault);
            assert!(!payloads.is_empty(), "the client was served before the fault");
            println!("P9: let go after {took:?}, {} acknowledged", payloads.len());
            assert!(
                took < BACK_WITHIN,
                "a client of the node was let go after {took:?} only"
            );
            acknowledged.extend(payloads.into_iter().map(|(payload, _)| payload));
        }
        refuses_connections(&victim.mqtt, &self.name).await;
        for (id, client) in &mut self.healthy {
            // Now the node is surely Down, and still nobody lost a connection.
            let payload = format!("healthy {id} again");
            client
                .publish(&format!("{}/healthy", self.name), payload.clone(), 1)
                .await;
            acknowledged.insert(payload);
        }

        heal();
        let healed = Instant::now();
        cluster.wait_all_ready().await;
        println!("P9: all ready {:?} after healing", healed.elapsed());
        let mut late = Client::open(&victim.mqtt, Version::V5, &format!("{}-late", self.name)).await;
        late.publish(&format!("{}/late", self.name), "fence", 1).await;
        if let Some(subscriber) = subscriber {
            let (mut subscriber, suback_at) = subscriber.await.expect("no panic");
            late.publish(&format!("{}-late/x", self.name), "fence", 1).await;
            let received = subscriber.messages_until("fence").await;
            let received: BTreeSet<String> = received.iter().map(Publish::text).collect();
            let unheard = (&mut self.unheard).await.expect("no panic").acknowledged;
            let after = unheard.iter().filter(|(_, sent)| *sent > suback_at);
            let missed: Vec<_> = after.filter(|(payload, _)| !received.contains(payload)).collect();
            println!("P4: SUBACK after {:?}", suback_at.duration_since(fault));
            assert!(
                missed.is_empty(),
                "sent after SUBACK, acknowledged and missed: {missed:?}"
            );
        }
        let observer = Connect::persistent(Version::V5, &format!("{}-observer", self.name));
        let (mut observer, connack) = Client::connect(&cluster.node(self.observed_at).mqtt, &observer).await;
        assert!(is_present(&connack), "the observer's session is kept");
        let received = self.everything(&mut observer, &acknowledged).await;
        let lost: Vec<_> = acknowledged.difference(&received).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        for (_, client) in &mut self.healthy {
            client.ping().await;
        }
    }

    /// What the observer gets until it has all of `wanted`, or nothing more comes. Topics are in different shards, which
    /// deliver independently of each other.
    async fn everything(&self, observer: &mut Client, wanted: &BTreeSet<String>) -> BTreeSet<String> {
        let mut received = BTreeSet::new();
        while !wanted.is_subset(&received) || !received.contains("fence") {
            match observer.packet_within(SOON).await {
                Ok(Packet::Publish(publish)) => {
                    observer.acknowledge(publish.pid).await;
                    let topic = format!("{}/", self.name);
                    assert!(publish.topic.starts_with(&topic), "{publish:?}");
                    received.insert(publish.text());
                }
                Ok(other) => panic!("{other:?}"),
                Err(_) => break,
            }
        }
        received
    }
}

/// Publishes to several topics, one message at a time, until the server lets the client go. Returns what was acknowledged,
/// and when it was let go.
async fn publish_until_let_go(mut client: Client, name: String, count: Arc<AtomicUsize>) -> LetGo {
    let mut acknowledged = Vec::new();
    let mut reason = None;
    'sending: for number in 0.. {
        let payload = format!("{} {number}", client.client_id);
        let publish = Publish {
            pid: client.next_pid(),
            ..Publish::new(&format!("{name}/{}", number % 16), payload.clone(), 1)
        };
        let sent = Instant::now();
        if client.send(&publish.encode(client.version)).await.is_err() {
            break;
        }
        loop {
            match client.packet_within(SOON).await {
                Ok(Packet::Puback { code, .. }) => {
                    let is_heard = !name.ends_with("-late");
                    assert!(
                        code == 0 || (!is_heard && code == NO_MATCHING_SUBSCRIBERS),
                        "{payload}: {code:#04x}"
                    );
                    acknowledged.push((payload, sent));
                    count.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(PACE).await;
                    continue 'sending;
                }
                Ok(Packet::Disconnect { code, .. }) => reason = Some(code),
                Ok(other) => panic!("{other:?}"),
                Err(Gone::Closed(_)) => break 'sending,
                Err(gone) => panic!("{}: neither served nor let go: {gone:?}", client.client_id),
            }
        }
    }
    if client.version == Version::V5 {
        assert!(
            reason.is_some_and(|code| LET_GO.contains(&code)),
            "DISCONNECT {reason:02x?}"
        );
    }
    LetGo {
        acknowledged,
        at: Instant::now(),
    }
}

/// The reasons of `/health/ready`, in order and without repeats, until the node lets its clients go.
async fn readiness_until_let_go(http: &str) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    loop {
        let (code, body) = http_get(http, "/health/ready").await.expect("/health/ready");
        if code == 503 && seen.last() != Some(&body) {
            seen.push(body);
        }
        if seen.last().is_some_and(|reason| reason.contains("let go")) {
            return seen;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A client that comes to a node without a lease is sent elsewhere, with a reason.
async fn refuses_connections(address: &str, name: &str) {
    for version in VERSIONS {
        let connect = Connect::clean(version, &format!("{name}-refused"));
        let refused = Client::try_connect(address, &connect, SOON)
            .await
            .map(|(_, connack)| connack);
        let expected = refusals(version);
        assert!(
            matches!(&refused, Ok(Packet::Connack { code, .. }) if expected.contains(code)),
            "{refused:?}"
        );
    }
}

/// How a CONNECT is refused by a node that cannot serve it.
fn refusals(version: Version) -> &'static [u8] {
    match version {
        Version::V5 => &REFUSED,
        Version::V311 => &[SERVER_UNAVAILABLE_V3],
    }
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

const ROUNDS: usize = 1000;
const FIGHTS: usize = 200;
const WITHHELD_ROUNDS: usize = 3;
/// More than there are shards.
const WITHHELD_TOPICS: usize = 32;
/// Between two publishes of a client of a node that will refuse.
const PACE: Duration = Duration::from_millis(5);
/// P10.
const BACK_WITHIN: Duration = Duration::from_secs(5);
/// [MQTT-3.4.2-1]
const NO_MATCHING_SUBSCRIBERS: u8 = 0x10;
/// [MQTT-3.1.4-3]
const SESSION_TAKEN_OVER: u8 = 0x8e;
/// Server busy, Server shutting down, Use another server.
const LET_GO: [u8; 3] = [0x89, 0x8b, 0x9c];
/// Server unavailable, Server busy, Use another server.
const REFUSED: [u8; 3] = [0x88, 0x89, 0x9c];
/// CONNACK of 3.1.1.
const SERVER_UNAVAILABLE_V3: u8 = 3;
