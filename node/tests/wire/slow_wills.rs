//! P7 when nodes die: the wills of a dead node's clients come from the survivors, each once, and not again when the node
//! is back; and what is due while the meta leader dies, or all do, comes once.

use crate::support::client::{Client, Gone};
use crate::support::cluster::Cluster;
use crate::support::codec::{self, Connect, Packet, SESSION_EXPIRY_INTERVAL, VERSIONS, Value, Version, Will};
use crate::support::random::Random;
use crate::support::wills::{Arrivals, Expected, judge, look, look_for};
use crate::support::{SOON, START, eventually};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// First a node that does not lead meta, then the one that does.
#[tokio::test(flavor = "multi_thread")]
async fn wills_of_a_killed_node_come_once_from_the_survivors() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    for is_leader in [false, true] {
        let leader = cluster.leader_of("meta").await;
        let follower = cluster.ids().into_iter().find(|id| *id != leader).expect("three");
        let victim = if is_leader { leader } else { follower };
        let tag = if is_leader { "leader" } else { "follower" };
        let survivors: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != victim).collect();
        let mut witness = witness(&cluster.node(survivors[0]).mqtt, tag).await;
        let mut clients = connect_all(&cluster.node(victim).mqtt, tag).await;
        let mut disconnected = Vec::new();
        for (kind, client) in &mut clients {
            if *kind == Kind::Disconnects {
                client.send(&codec::disconnect()).await.expect("DISCONNECT");
                client.closed_by_server(SOON).await;
                disconnected.push(client.client_id.clone());
            }
        }
        assert_eq!(disconnected.len(), PER_KIND);

        cluster.kill(victim).await;
        let killed = Instant::now();
        let expected: Vec<Expected> = clients
            .iter()
            .map(|(kind, client)| kind.expects(client, killed))
            .collect();
        // Some come back to a survivor before the delay of their wills is over, which began when the node was Down.
        let resuming = resume_all(&clients, &cluster.node(survivors[1]).mqtt);
        let mut arrivals = Arrivals::new();
        let resumed = look(&mut witness, resuming, Duration::ZERO, &mut arrivals).await;
        assert_eq!(resumed.len(), PER_KIND);
        let wanted = wanted(&expected);
        look_for(&mut witness, &wanted, WAIT, &mut arrivals).await;

        cluster.start_node(victim);
        let back = cluster.wait_ready(victim, START);
        // As long as the longest delay and more: whatever the node has left would come.
        look(&mut witness, back, seconds(RESUMED_DELAY) + BOUND, &mut arrivals).await;
        let wrong = judge(
            &format!("P7: {tag} killed, {} clients", clients.len()),
            &expected,
            &arrivals,
        );
        assert!(wrong.is_empty(), "{wrong:#?}\n{}", cluster.logs());
        witness.disconnect().await;
    }
    cluster.assert_no_panic();
}

/// Wills become due on a node that lives, while the node that has to publish them is killed, a little before or after.
#[tokio::test(flavor = "multi_thread")]
async fn wills_that_are_due_while_the_meta_leader_dies_come_once() {
    let _alone = crate::support::alone().await;
    let mut random = Random::announced("wills-due");
    let cluster = Cluster::start(3).await;
    for round in 0..ROUNDS {
        let leader = cluster.leader_of("meta").await;
        let survivors: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
        let mut witness = witness(&cluster.node(survivors[round % 2]).mqtt, &format!("due-{round}")).await;
        let mut joining = JoinSet::new();
        for n in 0..DUE {
            let version = VERSIONS[n % 2];
            let name = format!("due-{round}-{n}");
            let will = Will::new(&format!("wills/{name}"), name.clone(), 1 + (n / 2 % 2) as u8);
            // Of 3.1.1 none waits.
            let will = if version == Version::V5 {
                will.delay(DUE_DELAY)
            } else {
                will
            };
            let connect = Connect::persistent(version, &name).will(will);
            let address = cluster.node(survivors[n % 2]).mqtt.clone();
            joining.spawn(async move { Client::connect(&address, &connect).await.0 });
        }
        let clients = joining.join_all().await;
        let mut expected = Vec::new();
        let (waiting, at_once): (Vec<Client>, Vec<Client>) =
            clients.into_iter().partition(|client| client.version == Version::V5);
        let wait = Duration::from_millis(random.below(180) as u64);
        expected.extend(waiting.iter().map(|client| due(client, seconds(DUE_DELAY))));
        drop(waiting);
        sleep(seconds(DUE_DELAY) - Duration::from_millis(100)).await;
        expected.extend(at_once.iter().map(|client| due(client, Duration::ZERO)));
        drop(at_once);
        sleep(wait).await;
        cluster.kill(leader).await;
        let mut arrivals = Arrivals::new();
        look_for(&mut witness, &wanted(&expected), WAIT, &mut arrivals).await;
        cluster.start_node(leader);
        let back = cluster.wait_ready(leader, START);
        look(&mut witness, back, BOUND, &mut arrivals).await;
        let wrong = judge(&format!("P7: leader killed after {wait:?}"), &expected, &arrivals);
        assert!(wrong.is_empty(), "{wrong:#?}\n{}", cluster.logs());
        witness.disconnect().await;
    }
    cluster.assert_no_panic();
}

/// All connections end at once, and so does everybody who could tell.
#[tokio::test(flavor = "multi_thread")]
async fn wills_come_once_after_all_nodes_were_killed() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let mut witness = witness(cluster.mqtt(0), "all").await;
    let mut clients = Vec::new();
    for node in &cluster.nodes {
        clients.extend(connect_all(&node.mqtt, &format!("all-{}", node.id)).await);
    }
    for (kind, client) in &mut clients {
        if *kind == Kind::Disconnects {
            client.send(&codec::disconnect()).await.expect("DISCONNECT");
            client.closed_by_server(SOON).await;
        }
    }
    cluster.kill_all(&cluster.ids()).await;
    let killed = Instant::now();
    // Who does not resume in time is one more that is expected; at QoS 0 nothing waits for a witness that is away.
    let expected: Vec<Expected> = clients
        .iter()
        .filter(|(kind, _)| !matches!(kind, Kind::Resumes | Kind::AtMostOnce))
        .map(|(kind, client)| kind.expects(client, killed).within(WAIT + START))
        .collect();
    for id in cluster.ids() {
        cluster.start_node(id);
    }
    cluster.wait_all_ready().await;
    let connect = Connect::persistent(Version::V5, "wills-witness-all").keep_alive(0);
    drop(witness);
    (witness, _) = Client::connect(cluster.mqtt(1), &connect).await;
    let mut arrivals = Arrivals::new();
    look_for(&mut witness, &wanted(&expected), WAIT, &mut arrivals).await;
    look(&mut witness, std::future::ready(()), BOUND, &mut arrivals).await;
    arrivals.retain(|topic, _| expected.iter().any(|row| *topic == format!("wills/{}", row.name)));
    let wrong = judge(
        &format!("P7: all killed, {} clients", expected.len()),
        &expected,
        &arrivals,
    );
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", cluster.logs());
    cluster.assert_no_panic();
}

/// A client takes its will back while its node cannot commit that: the connection stays open until it is certain, and is
/// reset when it never will be. Whoever was told that all is well gets no will published.
#[tokio::test(flavor = "multi_thread")]
async fn a_clean_end_is_told_only_when_it_is_certain() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let mut told_in_order = 0;
    for is_killed in [true, false, false] {
        let leader = cluster.leader_of("meta").await;
        let home = cluster.ids().into_iter().find(|id| *id != leader).expect("three");
        let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != home).collect();
        let witness = witness(
            &cluster.node(others[0]).mqtt,
            &format!("certain-{told_in_order}-{is_killed}"),
        )
        .await;
        let mut clients = Vec::new();
        for version in VERSIONS {
            let name = format!("certain-{told_in_order}-{is_killed}-{version:?}");
            let connect =
                Connect::persistent(version, &name).will(Will::new(&format!("wills/{name}"), name.clone(), 1));
            clients.push(Client::connect(&cluster.node(home).mqtt, &connect).await.0);
        }
        let before = cluster.metrics(home).await.sum("lontra_packets_received_total");
        // Its node will have been Down: what comes meanwhile waits in its session.
        let witnessing = Connect::persistent(Version::V5, &witness.client_id).keep_alive(0);
        witness.disconnect().await;
        cluster.freeze(&others).await;
        for client in &mut clients {
            client.send(&codec::disconnect()).await.expect("DISCONNECT");
        }
        eventually("DISCONNECTs that were read", SOON, || async {
            let received = cluster.metrics(home).await.sum("lontra_packets_received_total");
            (received >= before + clients.len() as f64).then_some(())
        })
        .await;
        let open = clients[0].packet_within(Duration::from_secs(3)).await;
        assert!(
            matches!(open, Err(Gone::Silent(_))),
            "closed though nobody knows: {open:?}"
        );
        if is_killed {
            cluster.kill(home).await;
        }
        for id in &others {
            cluster.resume(*id);
        }
        let mut never = Vec::new();
        for client in &mut clients {
            match client.packet_within(START).await {
                Err(Gone::Closed(how)) if how == "end of stream" => never.push(Expected::never(&client.client_id)),
                Err(Gone::Closed(_)) => {}
                other => panic!("{}: not closed: {other:?}", client.client_id),
            }
        }
        assert!(
            !is_killed || never.is_empty(),
            "a node that died told {never:?} that all is well"
        );
        told_in_order += never.len();
        if is_killed {
            cluster.start_node(home);
        }
        let mut arrivals = Arrivals::new();
        cluster.wait_all_ready().await;
        let (mut witness, _) = Client::connect(&cluster.node(others[0]).mqtt, &witnessing).await;
        look(&mut witness, std::future::ready(()), BOUND, &mut arrivals).await;
        arrivals.retain(|topic, _| never.iter().any(|row| *topic == format!("wills/{}", row.name)));
        let wrong = judge("P7: taken back", &never, &arrivals);
        assert!(wrong.is_empty(), "{wrong:#?}\n{}", cluster.logs());
        witness.disconnect().await;
    }
    cluster.assert_no_panic();
}

/// What a client of the killed node is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Its will goes when its node is Down.
    AtOnce(Version),
    /// The same, at QoS 0.
    AtMostOnce,
    /// The session ends with the connection, and the delay with it.
    Ephemeral,
    Delayed,
    /// The session ends before the delay.
    Expires,
    /// It is back on another node in time.
    Resumes,
    /// It took its will back before.
    Disconnects,
}

const KINDS: [Kind; 8] = [
    Kind::AtOnce(Version::V311),
    Kind::AtOnce(Version::V5),
    Kind::AtMostOnce,
    Kind::Ephemeral,
    Kind::Delayed,
    Kind::Expires,
    Kind::Resumes,
    Kind::Disconnects,
];

impl Kind {
    fn connect(self, name: &str) -> Connect {
        let will = |qos| Will::new(&format!("wills/{name}"), name, qos);
        let (version, will) = match self {
            Kind::AtOnce(version) => (version, will(2)),
            Kind::AtMostOnce => (Version::V5, will(0)),
            Kind::Ephemeral | Kind::Expires => (Version::V5, will(1).delay(FAR)),
            Kind::Delayed => (Version::V5, will(2).delay(DELAY)),
            Kind::Resumes => (Version::V5, will(1).delay(RESUMED_DELAY)),
            Kind::Disconnects => (Version::V5, will(1)),
        };
        match self {
            Kind::Ephemeral => Connect::clean(version, name),
            Kind::Expires => Connect::persistent(version, name).property(SESSION_EXPIRY_INTERVAL, Value::Four(EXPIRY)),
            _ => Connect::persistent(version, name),
        }
        .will(will)
    }

    fn expects(self, client: &Client, killed: Instant) -> Expected {
        let name = &client.client_id;
        let (qos, after) = match self {
            Kind::Resumes | Kind::Disconnects => return Expected::never(name),
            Kind::AtOnce(_) => (2, Duration::ZERO),
            Kind::AtMostOnce => (0, Duration::ZERO),
            Kind::Ephemeral => (1, Duration::ZERO),
            Kind::Delayed => (2, seconds(DELAY)),
            Kind::Expires => (1, seconds(EXPIRY)),
        };
        Expected::once(name, qos, killed, after).within(BOUND)
    }
}

async fn connect_all(address: &str, tag: &str) -> Vec<(Kind, Client)> {
    let mut joining = JoinSet::new();
    for (number, kind) in KINDS.into_iter().enumerate() {
        for n in 0..PER_KIND {
            let connect = kind.connect(&format!("{tag}-{number}-{n}"));
            let address = address.to_owned();
            joining.spawn(async move { (kind, Client::connect(&address, &connect).await.0) });
        }
    }
    joining.join_all().await
}

/// Those that do come back to `address`.
fn resume_all(clients: &[(Kind, Client)], address: &str) -> impl Future<Output = Vec<Client>> + use<> {
    let mut joining = JoinSet::new();
    for (_, client) in clients.iter().filter(|(kind, _)| *kind == Kind::Resumes) {
        let connect = Connect::persistent(client.version, &client.client_id);
        let address = address.to_owned();
        joining.spawn(async move {
            let attempt = || async {
                let connected = Client::try_connect(&address, &connect, SOON).await;
                let present = |connack: &Packet| {
                    matches!(
                        connack,
                        Packet::Connack {
                            session_present: true,
                            ..
                        }
                    )
                };
                connected.ok().filter(|(_, connack)| present(connack))
            };
            eventually("a connection to a survivor", START, attempt).await.0
        });
    }
    joining.join_all()
}

/// A QoS 2 session that sees all wills.
async fn witness(address: &str, tag: &str) -> Client {
    let connect = Connect::persistent(Version::V5, &format!("wills-witness-{tag}")).keep_alive(0);
    let (mut witness, _) = Client::connect(address, &connect).await;
    witness.subscribe(&[("wills/#", 2)]).await;
    witness
}

/// The connection of `client` ends now; its will comes `after` that.
fn due(client: &Client, after: Duration) -> Expected {
    let name = &client.client_id;
    let number: usize = name.rsplit('-').next().and_then(|n| n.parse().ok()).expect("a number");
    Expected::once(name, 1 + (number / 2 % 2) as u8, Instant::now(), after).within(BOUND)
}

fn wanted(expected: &[Expected]) -> Vec<String> {
    let some = expected.iter().filter(|row| row.least > 0);
    some.map(|row| format!("wills/{}", row.name)).collect()
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}

const PER_KIND: usize = 12;
const ROUNDS: usize = 3;
/// Clients whose wills are due about when the leader dies.
const DUE: usize = 120;
const DUE_DELAY: u32 = 1;
const DELAY: u32 = 2;
const EXPIRY: u32 = 3;
/// Longer than P10's 5 s, in which a client is back.
const RESUMED_DELAY: u32 = 6;
const FAR: u32 = 300;
/// After their time, with a node that is dead: P10's 5 s, until it is Down or there is a new leader.
const BOUND: Duration = Duration::from_secs(5);
/// How long to look for what is expected before it counts as missing; later than `BOUND` is a failure anyhow.
const WAIT: Duration = Duration::from_secs(20);
