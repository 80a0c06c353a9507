//! P1 and P3 under `kill -9`: persistent QoS 1 consumers, producers on all nodes, both reconnecting to any node.
//!
//! Nothing acknowledged may be missing, per-publisher order is kept, nothing appears that was never published. A run that
//! killed too few of each role, or acknowledged too little, is a failure and not a pass.

use crate::support::START;
use crate::support::cluster::Cluster;
use crate::support::load::{Load, Plan, assert_kept, print_recovery};
use crate::support::random::Random;
use std::time::{Duration, Instant};
use tokio::time::sleep;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    SessionOwner,
    ShardLeader,
    MetaLeader,
}

const ROLES: [Role; 3] = [Role::SessionOwner, Role::ShardLeader, Role::MetaLeader];

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_survives_kill_9_of_owners_and_leaders() {
    let _alone = crate::support::alone().await;
    let mut random = Random::announced("kills");
    let cluster = Cluster::start(3).await;
    let addresses: Vec<&str> = cluster.nodes.iter().map(|node| node.mqtt.as_str()).collect();
    let load = Load::start(&addresses, "kills", Plan::default(), &mut random).await;
    load.acknowledges_more(500, START).await;

    let started = Instant::now();
    let mut kills: Vec<(Role, u64)> = Vec::new();
    let mut faults = Vec::new();
    while kills.len() < KILLS || load.acknowledged() < ACKNOWLEDGED {
        assert!(
            started.elapsed() < AT_MOST,
            "after {AT_MOST:?} only {} kills and {} acknowledged\n{}",
            kills.len(),
            load.acknowledged(),
            cluster.logs()
        );
        let role = ROLES[kills.len() % ROLES.len()];
        let (victim, what) = victim(&cluster, &load, role, &mut random).await;
        cluster.kill(victim).await;
        faults.push((format!("kill -9 of node {victim}, {what}"), load.now()));
        kills.push((role, victim));
        // With two of three nodes publishing goes on: that is the promise, and it makes the kill matter.
        load.acknowledges_more(100, START).await;
        sleep(Duration::from_millis(random.below(2_000) as u64)).await;
        cluster.start_node(victim);
        cluster.wait_ready(victim, START).await;
        load.acknowledges_more(300 + random.below(700) as u64, START).await;
    }
    for role in ROLES {
        let count = kills.iter().filter(|kill| kill.0 == role).count();
        println!("kills: {count} of {role:?}");
        assert!(count >= 2, "{role:?} was killed only {count} times");
    }

    let acknowledged = load.acknowledged();
    println!(
        "kills: {} in all, {acknowledged} acknowledged in {:?}",
        kills.len(),
        started.elapsed()
    );
    let history = load.drain(PATIENCE).await;
    print_recovery("kills", &history, &faults);
    assert_kept("kills", &history, &cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_survives_kill_9_of_all_nodes_at_once() {
    let _alone = crate::support::alone().await;
    let mut random = Random::announced("all-at-once");
    let cluster = Cluster::start(3).await;
    let addresses: Vec<&str> = cluster.nodes.iter().map(|node| node.mqtt.as_str()).collect();
    let load = Load::start(
        &addresses,
        "all-at-once",
        Plan {
            rate: 600,
            ..Plan::default()
        },
        &mut random,
    )
    .await;

    let mut faults = Vec::new();
    for round in 1..=3 {
        load.acknowledges_more(1_000, START).await;
        cluster.kill_all(&cluster.ids()).await;
        faults.push((format!("kill -9 of all nodes, round {round}"), load.now()));
        for id in cluster.ids() {
            cluster.start_node(id);
        }
        cluster.wait_all_ready().await;
    }
    load.acknowledges_more(1_000, START).await;

    let history = load.drain(PATIENCE).await;
    print_recovery("all-at-once", &history, &faults);
    assert_kept("all-at-once", &history, &cluster).await;
}

/// The node that has `role` now, and in which respect.
async fn victim(cluster: &Cluster, load: &Load, role: Role, random: &mut Random) -> (u64, String) {
    match role {
        Role::MetaLeader => (cluster.leader_of("meta").await, "leader of meta".into()),
        Role::ShardLeader => {
            let group = format!("shard-{}", random.below(SHARDS));
            (cluster.leader_of(&group).await, format!("leader of {group}"))
        }
        Role::SessionOwner => {
            // A consumer between two connections has no owner.
            crate::support::eventually("the owner of a consumer's session", START, || {
                let client_id = random.pick(&load.consumers()).clone();
                async move { Some((cluster.owner_of(&client_id).await?, format!("owner of {client_id}"))) }
            })
            .await
        }
    }
}

/// At least 10 kills are asked for; 12 give each role four.
const KILLS: usize = 12;
const ACKNOWLEDGED: u64 = 20_000;
const AT_MOST: Duration = Duration::from_secs(8 * 60);
/// How long nothing may move in the drain before what is missing counts as lost.
const PATIENCE: Duration = Duration::from_secs(60);
/// The default of `cluster.shards`.
const SHARDS: usize = 12;
