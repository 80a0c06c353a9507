//! Five nodes with replicas on three of them: the pair test, and P1 under kills. Here a node follows shards of which it
//! holds no replica, which three nodes never show.

use crate::support::START;
use crate::support::cluster::Cluster;
use crate::support::load::{Load, Plan, assert_kept, print_recovery};
use crate::support::random::Random;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn five_nodes_deliver_between_every_pair_and_keep_what_they_acknowledged() {
    let _alone = crate::support::alone().await;
    let mut random = Random::announced("five");
    let cluster = Cluster::start(5).await;
    let addresses: Vec<&str> = cluster.nodes.iter().map(|node| node.mqtt.as_str()).collect();
    crate::support::pairs::every_pair_delivers(&cluster).await;
    println!("five: every pair delivers");

    let load = Load::start(&addresses, "five", Plan::default(), &mut random).await;
    let mut faults = Vec::new();
    for kill in 0..KILLS {
        load.acknowledges_more(ACKNOWLEDGED / KILLS / 2, START).await;
        let victim = match kill % 2 {
            0 => cluster.leader_of(&format!("shard-{}", random.below(12))).await,
            _ => cluster.leader_of("meta").await,
        };
        cluster.kill(victim).await;
        faults.push((format!("kill -9 of node {victim}"), load.now()));
        load.acknowledges_more(ACKNOWLEDGED / KILLS / 2, START).await;
        cluster.start_node(victim);
        cluster.wait_ready(victim, START).await;
    }
    let enough = ACKNOWLEDGED.saturating_sub(load.acknowledged());
    load.acknowledges_more(enough, 2 * START).await;

    println!("five: {} acknowledged over {KILLS} kills", load.acknowledged());
    let history = load.drain(Duration::from_secs(60)).await;
    print_recovery("five", &history, &faults);
    assert_kept("five", &history, &cluster).await;
}

const KILLS: u64 = 4;
const ACKNOWLEDGED: u64 = 5_000;
