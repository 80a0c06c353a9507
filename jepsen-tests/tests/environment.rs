//! The environment itself, with a real binary: `LONTRA_BIN=… cargo test -p lontra-jepsen --test environment [part of a name]`.
//!
//! No harness of Rust's: namespaces must be entered while the process has one thread. Skipped, with the reason, where
//! `LONTRA_BIN` is not set; the parts that need root, where it is not root.

use lontra_jepsen::cluster::{BackEnd, Cluster, Spec};
use lontra_jepsen::recorder::Recorder;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn main() {
    let Some(binary) = std::env::var_os("LONTRA_BIN").map(PathBuf::from) else {
        println!("SKIPPED: LONTRA_BIN names no binary of lontra");
        return;
    };
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let dir = tempfile::tempdir().expect("a directory");
    for (name, back_end) in [("plain", BackEnd::Plain)] {
        if name.contains(&wanted) {
            println!("{name} …");
            runtime.block_on(lives_and_dies(&binary, dir.path(), back_end));
        }
    }
}

/// A cluster forms, tells who leads, loses its leader, elects another, stands still, and stops.
async fn lives_and_dies(binary: &Path, dir: &Path, back_end: BackEnd) {
    let history = dir.join("history.jsonl");
    let recorder = Recorder::create(&history).expect("a history");
    let spec = Spec {
        binary: binary.to_owned(),
        nodes: 3,
        back_end,
        dir: dir.join("run"),
        seed: 1,
        environment: Vec::new(),
    };
    let cluster = Cluster::start(spec, recorder.clone())
        .await
        .unwrap_or_else(|failure| panic!("{failure}"));
    let leaders = cluster.leaders().await;
    assert!(
        leaders.contains_key("meta") && leaders.contains_key("shard-0"),
        "{leaders:?}"
    );
    let (first, term) = leaders["meta"].clone();
    cluster.kill(&first).await;
    assert!(!cluster.running(&first));
    let other = loop {
        match cluster.leaders().await.get("meta") {
            Some((leader, newer)) if *newer > term => break leader.clone(),
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    assert_ne!(other, first);
    cluster.start_node(&first).await.expect("it starts");
    assert!(cluster.wait_ready(&first, LIMIT).await);
    assert!(cluster.pause(&other).await && !cluster.ready(&other).await);
    cluster.resume(&other).await;
    assert_eq!(cluster.wait_all_ready(LIMIT).await, Vec::<String>::new());
    let digests = cluster.digests().await;
    assert!(digests["meta"]["n1"]["digest"].is_string(), "{digests}");
    assert!(cluster.counters().await["n2"].is_object());
    cluster.stop().await;
    recorder.flush().expect("the history");
    let events = std::fs::read_to_string(&history).expect("the history");
    for part in ["started", "ready", "killed", "exited"] {
        assert!(
            events.contains(&format!("\"event\":\"{part}\"")),
            "no {part}:\n{events}"
        );
    }
    assert!(!events.contains("\"f\":\"panic\""), "{events}");
}

const LIMIT: Duration = Duration::from_secs(60);
