//! P1 and P3 when all three nodes lose power at once, 20 times, under load; and the proof that this test can fail: with
//! fsync switched off it finds the loss.
//!
//! Each node's data directory is an ext4 on a loop device; the shutdown ioctl drops what was not synced. Needs root.

use crate::support::START;
use crate::support::cluster::Cluster;
use crate::support::load::{Load, Plan, assert_kept, judge, print_recovery};
use crate::support::power::{Disks, can_cut_power};
use crate::support::random::Random;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::sleep;

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_survives_twenty_power_cuts() {
    if !can_cut_power() {
        return;
    }
    let _alone = crate::support::alone().await;
    let mut random = Random::announced("power");
    let dir = tempfile::tempdir().expect("a directory");
    let disks = Disks::mount(dir.path(), &data_dirs(&dir), MEGABYTES);
    let cluster = Cluster::start_in(dir.path().to_owned(), 3, &[]).await;
    let addresses: Vec<&str> = cluster.nodes.iter().map(|node| node.mqtt.as_str()).collect();
    let load = Load::start(
        &addresses,
        "power",
        Plan {
            rate: 400,
            ..Plan::default()
        },
        &mut random,
    )
    .await;

    let mut faults = Vec::new();
    for round in 1..=20 {
        // A round in which nothing was acknowledged would prove nothing.
        load.acknowledges_more(LEAST_PER_ROUND, START).await;
        sleep(LOAD_PER_ROUND).await;
        power_off(&cluster, &disks).await;
        faults.push((format!("power cut {round}"), load.now()));
        power_on(&cluster, &disks);
        cluster.wait_all_ready().await;
    }
    load.acknowledges_more(LEAST_PER_ROUND, START).await;

    println!("power: {} acknowledged over {} cuts", load.acknowledged(), faults.len());
    let history = load.drain(PATIENCE).await;
    print_recovery("power", &history, &faults);
    assert_kept("power", &history, &cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_fsync_the_same_cuts_lose_acknowledged_messages() {
    if !can_cut_power() {
        return;
    }
    let _alone = crate::support::alone().await;
    let mut random = Random::announced("no-fsync");
    for round in 1..=ROUNDS_TO_LOSE {
        // A cluster per round: one that has lost its memory may rightly refuse to go on.
        let dir = tempfile::tempdir().expect("a directory");
        let disks = Disks::mount(dir.path(), &data_dirs(&dir), MEGABYTES);
        let cluster = Cluster::start_in(dir.path().to_owned(), 3, &[("LONTRA_TEST_ONLY_NO_FSYNC", "1")]).await;
        let addresses: Vec<&str> = cluster.nodes.iter().map(|node| node.mqtt.as_str()).collect();
        // What forms the cluster is kept: only the load is at stake.
        disks.sync();
        let load = Load::start(&addresses, "no-fsync", Plan::default(), &mut random).await;
        load.acknowledges_more(LEAST_PER_ROUND, START).await;
        sleep(LOAD_PER_ROUND).await;
        power_off(&cluster, &disks).await;
        power_on(&cluster, &disks);

        for id in cluster.ids() {
            if let Err(why) = cluster.ready_within(id, REFUSES_WITHIN).await {
                // Only its own refusal counts: a cluster that is slow is not a cluster that has lost something.
                println!("no-fsync: round {round}: {why}");
                let refused = cluster
                    .ids()
                    .iter()
                    .any(|id| cluster.exited(*id).is_some_and(|status| !status.success()));
                assert!(refused, "neither ready nor refused\n{}", cluster.logs());
                println!("no-fsync: round {round}: found: a node refuses, having lost what it had synced");
                return;
            }
        }
        let history = load.drain(Duration::from_secs(10)).await;
        let violations = judge("no-fsync", &history);
        let loss = |what: &str| what == crate::support::load::SESSION_LOST;
        let found = violations.iter().any(|violation| match violation {
            crate::support::checker::Violation::Lost { .. } => true,
            crate::support::checker::Violation::Misbehaved { what, .. } => loss(what),
            _ => false,
        });
        if found {
            println!("no-fsync: round {round}: found: acknowledged messages or sessions are lost");
            return;
        }
    }
    panic!("{ROUNDS_TO_LOSE} power cuts without fsync lost nothing: this test proves nothing");
}

/// A machine without power answers nobody: the nodes stand still first. Linux tells an fsync that is under way during the
/// ioctl that it succeeded, and drops what it wrote; no node may live to pass that on.
async fn power_off(cluster: &Cluster, disks: &Disks) {
    cluster.freeze(&cluster.up()).await;
    disks.cut();
    cluster.kill_all(&cluster.up()).await;
}

fn power_on(cluster: &Cluster, disks: &Disks) {
    disks.power_on();
    for id in cluster.ids() {
        cluster.start_node(id);
    }
}

/// Where `lontra dev --data-dir` puts the data of its three nodes.
fn data_dirs(dir: &tempfile::TempDir) -> Vec<PathBuf> {
    (1..=3).map(|id| dir.path().join(format!("node-{id}/data"))).collect()
}

const MEGABYTES: u64 = 1_024;
const LOAD_PER_ROUND: Duration = Duration::from_secs(2);
const LEAST_PER_ROUND: u64 = 100;
const PATIENCE: Duration = Duration::from_secs(60);
const ROUNDS_TO_LOSE: usize = 5;
const REFUSES_WITHIN: Duration = Duration::from_secs(60);
