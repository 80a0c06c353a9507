//! P10: after 20 kills and 10 pauses, of the meta leader too, publishing works again on every topic within 5 s, and so do
//! the clients that lost their node; the clients of healthy nodes stay connected. Measured at the clients, from the fault.
//!
//! What was acknowledged is judged as in `slow_kill`.

use crate::support::cluster::Cluster;
use crate::support::load::{Load, Plan, Served, judge, topics};
use crate::support::random::Random;
use crate::support::{START, eventually};
use lontra_storage::topic::shard_of;
use std::collections::BTreeSet;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill,
    Pause,
}

/// What one fault cost.
struct Measured {
    what: String,
    /// The slowest topic.
    publishing: Duration,
    /// The slowest client of the lost node.
    resumed: Duration,
    /// Clients of the lost node.
    lost: usize,
    /// Clients of other nodes that lost their connection.
    bystanders: Vec<String>,
}

#[tokio::test(flavor = "multi_thread")]
async fn back_in_time_after_20_kills_and_10_pauses() {
    let _alone = crate::support::alone().await;
    let mut random = Random::announced("back-in-time");
    let cluster = Cluster::start(3).await;
    let addresses: Vec<&str> = cluster.nodes.iter().map(|node| node.mqtt.as_str()).collect();
    let tag = tag_on_every_shard();
    let plan = Plan {
        rate: 60,
        ping_every: Duration::from_millis(250),
        answer_within: Duration::from_secs(1),
        ..Plan::default()
    };
    let load = Load::start(&addresses, &tag, plan, &mut random).await;
    load.acknowledges_more(500, START).await;
    load.go_home().await;

    let mut measured = Vec::new();
    for round in 0..KILLS + PAUSES {
        let fault = if round % 3 == 2 { Fault::Pause } else { Fault::Kill };
        let led = (round % 2 == 0).then_some("meta");
        let group = led.map_or_else(|| format!("shard-{}", random.below(SHARDS)), str::to_owned);
        let victim = cluster.leader_of(&group).await;
        let what = format!("{fault:?} of node {victim}, leader of {group}");
        let index = cluster.nodes.iter().position(|node| node.id == victim).expect("a node");
        println!("{}: {what}", clock());
        let at = load.now();
        match fault {
            Fault::Kill => cluster.kill(victim).await,
            Fault::Pause => cluster.pause(victim).await,
        }
        let publishing = published(&load, at).await;
        let (resumed, lost) = resumed(&load, index, at).await;
        let bystanders = bystanders(&load.connections(), index, at);
        println!(
            "{}: {what}: publishing {:.2} s, {lost} clients resumed {:.2} s, bystanders {bystanders:?}",
            clock(),
            publishing.as_secs_f64(),
            resumed.as_secs_f64()
        );
        measured.push(Measured {
            what,
            publishing,
            resumed,
            lost,
            bystanders,
        });
        match fault {
            Fault::Kill => cluster.start_node(victim),
            Fault::Pause => {
                is_down(&cluster, victim).await;
                cluster.resume(victim);
            }
        }
        cluster.wait_all_ready().await;
        load.go_home().await;
    }

    let history = load.drain(PATIENCE).await;
    let violations = judge("back-in-time", &history);
    let slowest = measured.iter().map(|one| one.publishing.max(one.resumed)).max();
    let lost: usize = measured.iter().map(|one| one.lost).sum();
    println!("back-in-time: slowest {slowest:?}; {lost} clients lost their node");
    cluster.assert_no_panic();
    assert!(
        violations.is_empty(),
        "{} violations\n{}",
        violations.len(),
        cluster.logs()
    );
    assert!(lost >= 2 * measured.len(), "only {lost} clients lost their node");
    for one in &measured {
        assert!(
            one.publishing < BACK_WITHIN && one.resumed < BACK_WITHIN,
            "{}: publishing after {:?}, clients after {:?}\n{}",
            one.what,
            one.publishing,
            one.resumed,
            cluster.logs()
        );
        assert!(
            one.bystanders.is_empty(),
            "{}: clients of healthy nodes lost their connection: {:?}\n{}",
            one.what,
            one.bystanders,
            cluster.logs()
        );
    }
}

/// Until every topic had a message acknowledged that was sent after the fault; the slowest.
async fn published(load: &Load, at: Duration) -> Duration {
    eventually("a publish on every topic", START, || async {
        let all: Option<Vec<Duration>> = load.published_after(at).into_iter().collect();
        all.and_then(|all| all.into_iter().max())
    })
    .await
}

/// Until every client that the node served at the fault was served by another; the slowest, and how many there were.
async fn resumed(load: &Load, node: usize, at: Duration) -> (Duration, usize) {
    eventually("every client of the lost node on another", START, || async {
        let connections = load.connections();
        let lost: Vec<&Served> = connections
            .iter()
            .filter(|served| served.node == node && was_served(served, at))
            .collect();
        let again: Option<Vec<Duration>> = lost
            .iter()
            .map(|lost| {
                let next = connections
                    .iter()
                    .find(|served| served.client == lost.client && served.from > at);
                next.map(|served| served.from - at)
            })
            .collect();
        again.map(|again| (again.into_iter().max().unwrap_or_default(), lost.len()))
    })
    .await
}

fn was_served(served: &Served, at: Duration) -> bool {
    served.from < at && served.until.is_none_or(|until| until > at) && !served.by_choice
}

/// Clients of the other nodes whose connection ended after the fault.
fn bystanders(connections: &[Served], node: usize, at: Duration) -> Vec<String> {
    let others = connections
        .iter()
        .filter(|served| served.node != node && was_served(served, at) && served.until.is_some());
    others
        .map(|served| format!("{} on node {}", served.client, served.node + 1))
        .collect()
}

async fn is_down(cluster: &Cluster, victim: u64) {
    let witness = cluster.ids().into_iter().find(|id| *id != victim).expect("three nodes");
    eventually("the paused node is Down", START, || async {
        (!cluster.is_up(witness, victim).await).then_some(())
    })
    .await;
}

/// A tag whose topics fall to every shard.
pub fn tag_on_every_shard() -> String {
    let covers = |tag: &String| {
        let shards: BTreeSet<_> = topics(tag).iter().map(|topic| shard_of(topic, SHARDS as u16)).collect();
        shards.len() == SHARDS
    };
    (0..10_000)
        .map(|number| format!("back-{number}"))
        .find(covers)
        .expect("24 topics on 12 shards")
}

/// As the nodes' logs write it.
fn clock() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.expect("after 1970").as_millis() % 86_400_000;
    let (seconds, millis) = (now / 1000, now % 1000);
    format!(
        "{:02}:{:02}:{:02}.{millis:03}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

const KILLS: usize = 20;
const PAUSES: usize = 10;
/// P10.
const BACK_WITHIN: Duration = Duration::from_secs(5);
/// How long nothing may move in the drain before what is missing counts as lost.
const PATIENCE: Duration = Duration::from_secs(60);
/// The default of `cluster.shards`.
const SHARDS: usize = 12;
