//! What the harness sees from outside while clients work: leaders and terms each second; counters and digests at the end.

use crate::cluster::Cluster;
use crate::history::Op;
use crate::recorder::Recorder;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

/// Tells when this process stood still: what clients waited for meanwhile says nothing about the broker. Never ends by itself.
pub async fn stalls(recorder: Recorder) {
    loop {
        let began = Instant::now();
        sleep(BEAT).await;
        let late = began.elapsed().saturating_sub(BEAT);
        if late > STALL {
            recorder.note("harness", about("stall", None, json!(late.as_millis() as u64)));
        }
    }
}

/// Never ends by itself.
pub async fn observe(cluster: Cluster, recorder: Recorder) {
    let mut tick = interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Value::Null;
    loop {
        tick.tick().await;
        let leaders = leaders(&cluster).await;
        // Only changes: the report draws a leader until the next.
        if leaders != last {
            recorder.note("harness", about("leaders", None, leaders.clone()));
            last = leaders;
        }
        recorder.flush().ok();
    }
}

/// Snapshots that nodes have installed. Counters begin again with each process: what it installed must be seen before it
/// goes. Apart from leaders: a node that stands still answers late. Never ends by itself.
pub async fn snapshots(cluster: Cluster, recorder: Recorder) {
    let mut told = std::collections::BTreeMap::new();
    loop {
        sleep(SNAPSHOTS_EVERY).await;
        tell_snapshots(&cluster.counters().await, &mut told, &recorder);
    }
}

fn tell_snapshots(counters: &Value, told: &mut std::collections::BTreeMap<String, u64>, recorder: &Recorder) {
    for (node, value) in counters.as_object().into_iter().flatten() {
        let installed = value[INSTALLED].as_f64().unwrap_or(0.0) as u64;
        if told.insert(node.clone(), installed).unwrap_or(0) != installed {
            recorder.note(
                "harness",
                about("snapshots", Some(node), json!({ "snapshots_installed": installed })),
            );
        }
    }
}

async fn leaders(cluster: &Cluster) -> Value {
    let leaders = cluster.leaders().await.into_iter();
    let groups = leaders.map(|(group, (leader, term))| (group, json!({ "leader": leader, "term": term })));
    Value::Object(groups.collect())
}

/// Counters, snapshots and digests, once everything is quiet.
pub async fn at_the_end(cluster: &Cluster, recorder: &Recorder) {
    let counters = cluster.counters().await;
    for (node, value) in counters.as_object().into_iter().flatten() {
        let installed = value[INSTALLED].as_f64().unwrap_or(0.0);
        let snapshots = json!({ "snapshots_installed": installed as u64 });
        recorder.note("harness", about("snapshots", Some(node), snapshots));
        recorder.note("harness", about("counters", Some(node), value.clone()));
    }
    // Acknowledgements are still being committed: some looks until all replicas show the same.
    for _ in 0..DIGEST_LOOKS {
        let digests = cluster.digests().await;
        if converged(&digests) {
            return record_digests(&digests, recorder);
        }
        sleep(Duration::from_secs(1)).await;
    }
    record_digests(&cluster.digests().await, recorder);
}

fn converged(digests: &Value) -> bool {
    let mut groups = digests.as_object().into_iter().flatten();
    groups.all(|(_, nodes)| {
        let mut replicas = nodes.as_object().into_iter().flatten().map(|(_, replica)| replica);
        let first = replicas.next();
        // Two that could not tell are equal too, and have told nothing.
        let told = |replica: &Value| replica["digest"].is_string();
        first.is_none_or(|first| told(first) && replicas.all(|other| other == first))
    })
}

/// By node, as the checker of convergence reads them.
fn record_digests(digests: &Value, recorder: &Recorder) {
    let mut by_node: std::collections::BTreeMap<&str, serde_json::Map<String, Value>> = Default::default();
    for (group, nodes) in digests.as_object().into_iter().flatten() {
        for (node, replica) in nodes.as_object().into_iter().flatten() {
            by_node.entry(node).or_default().insert(group.clone(), replica.clone());
        }
    }
    for (node, groups) in by_node {
        recorder.note("harness", about("digest", Some(node), Value::Object(groups)));
    }
}

pub fn about(about: &str, node: Option<&str>, value: Value) -> Op {
    Op::Observe {
        about: about.into(),
        node: node.map(Into::into),
        value,
    }
}

const INSTALLED: &str = "lontra_storage_snapshots_installed_total";
const SNAPSHOTS_EVERY: Duration = Duration::from_secs(2);
const DIGEST_LOOKS: usize = 5;
const BEAT: Duration = Duration::from_millis(50);
/// More than a busy machine takes now and then.
const STALL: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_that_told_nothing_have_not_converged() {
        let of = |one: Value, other: Value| converged(&json!({ "meta": { "n1": one, "n2": other } }));
        let digest = |text: &str| json!({ "applied": 7, "digest": text });
        assert!(of(digest("a"), digest("a")));
        assert!(!of(digest("a"), digest("b")));
        let error = json!({ "error": "timeout" });
        assert!(!of(error.clone(), error.clone()) && !of(digest("a"), error));
    }
}
