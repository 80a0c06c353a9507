//! A rolling restart under load: SIGTERM, start again, the next node. Nothing is lost, publishing never pauses for a second,
//! clients are told, and each node has ended within ten.

use crate::support::START;
use crate::support::client::Client;
use crate::support::cluster::Cluster;
use crate::support::codec::Version;
use crate::support::load::{Load, Plan, assert_kept, longest_pauses};
use crate::support::random::Random;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_loses_nothing_and_pauses_for_less_than_a_second() {
    let _alone = crate::support::alone().await;
    let mut random = Random::announced("rolling");
    let cluster = Cluster::start(3).await;
    let addresses: Vec<&str> = cluster.nodes.iter().map(|node| node.mqtt.as_str()).collect();
    let load = Load::start(&addresses, "rolling", Plan::default(), &mut random).await;
    load.acknowledges_more(500, START).await;

    let mut steps = Vec::new();
    for _ in 0..ROUNDS {
        for id in cluster.ids() {
            let mut told = Client::open(cluster.mqtt(id as usize - 1), Version::V5, "rolling-told").await;
            let from = load.now();
            let began = Instant::now();
            let (_, (code, _)) = tokio::join!(cluster.terminate(id), told.closed_by_server(START));
            let took = began.elapsed();
            assert_eq!(code, Some(SERVER_SHUTTING_DOWN), "node {id}");
            assert!(took < ENDS_WITHIN, "node {id} took {took:?} to stop");
            load.acknowledges_more(200, START).await;
            cluster.start_node(id);
            cluster.wait_ready(id, START).await;
            // Leaders come back to it meanwhile.
            load.acknowledges_more(1_500, START).await;
            steps.push((id, took, from, load.now()));
        }
    }

    let history = load.drain(PATIENCE).await;
    let mut worst = Duration::ZERO;
    for (id, took, from, until) in &steps {
        let pauses = longest_pauses(&history, *from, *until);
        println!(
            "rolling: node {id} ended after {took:.2?}; longest pause of a topic {:.2?}",
            pauses.topic
        );
        println!(
            "rolling: node {id}: longest pause of a producer {:.2?}",
            pauses.producer
        );
        worst = worst.max(pauses.topic).max(pauses.producer);
    }
    assert_kept("rolling", &history, &cluster).await;
    assert!(worst < PAUSE_MAX, "publishing paused for {worst:?}");
}

const ROUNDS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(60);
const ENDS_WITHIN: Duration = Duration::from_secs(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
const SERVER_SHUTTING_DOWN: u8 = 0x8B;
