//! P8: shared groups are durable work queues. Members on all nodes come and go (DISCONNECT, a cut socket, a take-over, with
//! answers withheld), and nodes are killed.
//!
//! Every acknowledged message reaches a member in the end; QoS 2 never two; QoS 1 a second one only when the first one's
//! connection ended before its PUBACK was surely processed. Too few kills, messages or ends of a kind are a failure.

use crate::support::START;
use crate::support::cluster::Cluster;
use crate::support::members::{End, Fault, History, WorkQueue, judge};
use crate::support::random::Random;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go_and_nothing_is_lost_or_given_twice() {
    let _alone = crate::support::alone().await;
    let mut random = Random::announced("churn");
    let cluster = Cluster::start(3).await;
    let queue = start(&cluster, &mut random).await;
    queue.acknowledges_more(CALM_ACKNOWLEDGED, START).await;
    let history = queue.drain(PATIENCE).await;
    let violations = judge("churn", &history, &[]);
    is_covered(&history);
    no_violation(&cluster, &violations);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_killed_and_nothing_is_lost_or_given_twice() {
    let _alone = crate::support::alone().await;
    let mut random = Random::announced("shared-kills");
    let cluster = Cluster::start(3).await;
    let queue = start(&cluster, &mut random).await;
    queue.acknowledges_more(300, START).await;

    let started = Instant::now();
    let mut faults: Vec<Fault> = Vec::new();
    while faults.len() < KILLS || queue.acknowledged() < ACKNOWLEDGED {
        assert!(
            started.elapsed() < AT_MOST,
            "after {AT_MOST:?} only {} kills and {} acknowledged\n{}",
            faults.len(),
            queue.acknowledged(),
            cluster.logs()
        );
        let (victim, what) = victim(&cluster, &queue, faults.len(), &mut random).await;
        let from = queue.now();
        cluster.kill(victim).await;
        println!("shared-kills: {from:?} node {victim}, {what}");
        queue.acknowledges_more(100, START).await;
        cluster.start_node(victim);
        cluster.wait_ready(victim, START).await;
        let until = queue.now();
        faults.push(Fault { from, until });
        // Some time without a fault, in which nothing is excused.
        queue.acknowledges_more(400 + random.below(400), START).await;
    }
    let acknowledged = queue.acknowledged();
    println!(
        "shared-kills: {} kills, {acknowledged} acknowledged in {:?}",
        faults.len(),
        started.elapsed()
    );
    let history = queue.drain(PATIENCE).await;
    let violations = judge("shared-kills", &history, &faults);
    is_covered(&history);
    no_violation(&cluster, &violations);
}

async fn start(cluster: &Cluster, random: &mut Random) -> WorkQueue {
    let addresses: Vec<&str> = cluster.nodes.iter().map(|node| node.mqtt.as_str()).collect();
    WorkQueue::start(&addresses, random).await
}

/// By turns the leader of a shard, the node of a member, and the leader of meta.
async fn victim(cluster: &Cluster, queue: &WorkQueue, nth: usize, random: &mut Random) -> (u64, String) {
    match nth % 3 {
        0 => {
            let group = format!("shard-{}", random.below(SHARDS));
            (cluster.leader_of(&group).await, format!("leader of {group}"))
        }
        1 => {
            crate::support::eventually("the owner of a member's session", START, || {
                let client_id = random.pick(&queue.durable_members()).clone();
                async move { Some((cluster.owner_of(&client_id).await?, format!("owner of {client_id}"))) }
            })
            .await
        }
        _ => (cluster.leader_of("meta").await, "leader of meta".into()),
    }
}

/// A run in which a kind of end did not happen says nothing.
fn is_covered(history: &History) {
    for end in [End::Left, End::Cut, End::TakenOver] {
        let of = |withheld| {
            let ended = history
                .connections
                .iter()
                .filter(|one| one.ended.is_some_and(|(_, how)| how == end));
            ended.filter(|one| one.withheld == withheld).count()
        };
        assert!(
            of(true) >= 2 && of(false) >= 2,
            "{end:?}: {} and {}",
            of(true),
            of(false)
        );
    }
    for qos in [1, 2] {
        let count = history
            .messages
            .values()
            .filter(|sent| sent.acknowledged && sent.qos == qos)
            .count();
        assert!(count > 300, "only {count} of QoS {qos} were acknowledged");
    }
}

fn no_violation(cluster: &Cluster, violations: &[String]) {
    cluster.assert_no_panic();
    assert!(
        violations.is_empty(),
        "{} violations, see above\n{}",
        violations.len(),
        cluster.logs()
    );
}

/// At least 6 kills and 5,000 messages are asked for.
const KILLS: usize = 7;
const ACKNOWLEDGED: usize = 5_000;
const CALM_ACKNOWLEDGED: usize = 2_000;
const AT_MOST: Duration = Duration::from_secs(5 * 60);
const PATIENCE: Duration = Duration::from_secs(60);
/// The default of `cluster.shards`.
const SHARDS: usize = 12;
