//! One run: a fresh cluster, a workload, faults, and in the end a verdict.
//!
//!     setup → baseline (quiet) → faults → heal → recovery → drain → final → end → judge
//!
//! A run directory holds all that it left: `run.json` (what was asked, where), `history.jsonl`, `results.json` (the verdict),
//! `report.html`, and under `cluster/` the nodes' configurations, logs and data.
//!
//! A failure of the harness is news of its own: it is recorded, the cluster healed and stopped, everything kept, and the
//! run is `unknown`, whatever else was found.

mod artefacts;
mod observer;
mod settings;

pub use artefacts::{broker_version, commit, date, judge_directory, write_report};
pub use settings::Settings;

use crate::checker::{Validity, Verdict};
use crate::client::{Scene, Stage};
use crate::cluster::{Cluster, Failure, Spec};
use crate::history::Op;
use crate::nemesis::{self, Family, Nemesis};
use crate::proxy::Proxy;
use crate::random::Random;
use crate::recorder::Recorder;
use crate::workload::{self, Tasks};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// A run that was judged.
pub struct Finished {
    pub settings: Settings,
    pub verdict: Verdict,
    /// What of the harness failed.
    pub failure: Option<String>,
    pub took: Duration,
    /// How often a lying proxy lied.
    pub lies: u64,
}

impl Finished {
    pub fn exit_code(&self) -> i32 {
        match (&self.failure, self.verdict.valid) {
            // What was seen was seen, whatever failed later.
            (_, Validity::False) => 1,
            (None, Validity::True) => 0,
            _ => 2,
        }
    }

    pub fn word(&self) -> &'static str {
        ["valid", "INVALID", "unknown"][self.exit_code() as usize]
    }
}

/// Runs and judges. Never fails: a harness that could not run is a run that is unknown.
///
/// # Panics
/// The run directory cannot be written.
pub async fn run(settings: Settings) -> Finished {
    let started = Instant::now();
    std::fs::create_dir_all(&settings.dir).expect("the run directory can be made");
    let recorder = Recorder::create(&settings.dir.join("history.jsonl")).expect("the history can be written");
    artefacts::write_settings(&settings);
    let mut lies = 0;
    let failure = play(&settings, &recorder, &mut lies).await.err();
    if let Some(detail) = &failure {
        let detail = detail.clone();
        recorder.note("harness", Op::HarnessFailure { detail });
    }
    recorder.flush().expect("the history can be written");
    // The checkers read the whole history: not on a thread that serves others.
    let (dir, profile) = (settings.dir.clone(), settings.profile());
    let judged = tokio::task::spawn_blocking(move || judge_directory(&dir, &profile));
    let verdict = judged.await.expect("a checker does not panic");
    Finished {
        verdict,
        failure,
        took: started.elapsed(),
        lies,
        settings,
    }
}

async fn play(settings: &Settings, recorder: &Recorder, lies: &mut u64) -> Result<(), String> {
    phase(recorder, "setup");
    let mut spec = Spec {
        binary: settings.binary.clone(),
        nodes: settings.nodes,
        back_end: settings.back_end,
        dir: settings.dir.join("cluster"),
        seed: settings.seed,
        environment: settings.environment(),
    };
    let families = settings.nemeses.iter().map(|name| name.parse());
    let families: Vec<Family> = families.collect::<Result<_, _>>()?;
    // What cannot be prepared is told as lacking when it is tried.
    nemesis::prepare(&mut spec, &families).or_else(unsupported_is_told_later)?;
    let cluster = Cluster::start(spec, recorder.clone())
        .await
        .map_err(|failure| failure.to_string())?;
    let result = play_on(settings, recorder, &cluster, lies).await;
    phase(recorder, "end");
    // Also after a failure: paused nodes go on, logs are complete, panics in them are recorded.
    cluster.stop().await;
    result
}

async fn play_on(settings: &Settings, recorder: &Recorder, cluster: &Cluster, lies: &mut u64) -> Result<(), String> {
    let random = Random::new(settings.seed);
    let (proxies, addresses) = addresses(settings, cluster).await?;
    let websocket = |name: &String| (name.clone(), cluster.ws(name));
    let websockets = match settings.lie {
        // Liars speak TCP only.
        Some(_) => Vec::new(),
        None => cluster.names().iter().map(websocket).collect(),
    };
    let scene = Scene::new(recorder.clone(), &settings.prefix, addresses).with_websockets(websockets);
    let scene = Arc::new(scene);
    let mut tasks = workload::spawn(&settings.workload, &scene, settings.rate, &random.fork("workload"))?;
    let observing = tokio::spawn(observer::observe(cluster.clone(), recorder.clone()));
    let counting = tokio::spawn(observer::snapshots(cluster.clone(), recorder.clone()));
    let stalling = tokio::spawn(observer::stalls(recorder.clone()));
    let result = phases(settings, cluster, &scene, &mut tasks, &random).await;
    *lies = proxies.iter().map(Proxy::told).sum();
    observing.abort();
    counting.abort();
    stalling.abort();
    scene.enter(Stage::End);
    tasks.end(Duration::from_secs(3)).await;
    result
}

async fn addresses(
    settings: &Settings,
    cluster: &Cluster,
) -> Result<(Vec<Proxy>, Vec<(String, std::net::SocketAddr)>), String> {
    let (mut proxies, mut addresses) = (Vec::new(), Vec::new());
    for name in cluster.names() {
        let mut address = cluster.mqtt(name);
        if let Some((lie, every)) = settings.lie {
            let proxy = Proxy::start(address, lie, every)
                .await
                .map_err(|error| error.to_string())?;
            address = proxy.address;
            proxies.push(proxy);
        }
        addresses.push((name.clone(), address));
    }
    Ok((proxies, addresses))
}

async fn phases(
    settings: &Settings,
    cluster: &Cluster,
    scene: &Arc<Scene>,
    tasks: &mut Tasks,
    random: &Random,
) -> Result<(), String> {
    let recorder = &scene.recorder;
    tasks.wait_ready(Duration::from_secs(60)).await?;
    phase(recorder, "baseline");
    scene.enter(Stage::Load);
    sleep(settings.baseline).await;
    let families = settings.nemeses.iter().map(|name| name.parse());
    let families: Vec<Family> = families.collect::<Result<_, _>>()?;
    let random_nemesis = random.fork("nemesis");
    let mut nemesis = Nemesis::new(cluster.clone(), &families, random_nemesis, recorder.clone())
        .with_enough(settings.faults_min)
        .with_ending(settings.ending.clone());
    phase(recorder, "faults");
    let faults = match settings.in_turn {
        true => nemesis.run_in_turn(settings.faults).await,
        false => nemesis.run(settings.faults).await,
    };
    phase(recorder, "heal");
    // Also after a fault that the harness could not do.
    let healed = nemesis.heal().await;
    tasks.fail_if_one_panicked()?;
    faults.map_err(|failure| failure.to_string())?;
    if let Err(failure) = healed {
        not_recovered(failure, recorder)?;
    }
    lacking(&nemesis)?;
    phase(recorder, "recovery");
    let late = cluster.wait_all_ready(Duration::from_secs(60)).await;
    if !late.is_empty() {
        // A node that does not come back is the broker's failure; checkers see it as no operation there that succeeds.
        recorder.note("harness", observer::about("not-ready", None, serde_json::json!(late)));
    }
    probe_all(
        settings,
        scene,
        random,
        &[format!("{}/probe", scene.prefix)],
        Duration::from_secs(30),
    )
    .await;
    sleep(Duration::from_secs(1)).await;
    phase(recorder, "drain");
    scene.enter(Stage::Drain);
    tasks.wait_drained(Duration::from_secs(120)).await?;
    phase(recorder, "final");
    scene.enter(Stage::Final);
    let topics = workload::final_topics(&settings.workload, &scene.prefix);
    probe_all(settings, scene, random, &topics, Duration::from_secs(20)).await;
    tasks.wait_settled(Duration::from_secs(45)).await?;
    observer::at_the_end(cluster, recorder).await;
    Ok(())
}

fn unsupported_is_told_later(failure: Failure) -> Result<(), String> {
    match failure {
        Failure::Unsupported { .. } => Ok(()),
        other => Err(other.to_string()),
    }
}

/// A node that does not come back is news about the broker: the checkers judge it, and the rest of the run goes on.
///
/// # Errors
/// Anything else: the harness failed.
fn not_recovered(failure: Failure, recorder: &Recorder) -> Result<(), String> {
    let why = failure.to_string();
    match failure {
        Failure::NodeEnded { node, .. } | Failure::NotReady { node, .. } => {
            recorder.note(
                "harness",
                observer::about("no-recovery", Some(&node), serde_json::json!(why)),
            );
            Ok(())
        }
        _ => Err(why),
    }
}

/// # Errors
/// A family that was asked for cannot be had: what was not done proves nothing.
fn lacking(nemesis: &Nemesis) -> Result<(), String> {
    let lacking = nemesis.lacking().iter();
    let reasons: Vec<String> = lacking.map(|(family, reason)| format!("{family}: {reason}")).collect();
    match reasons.is_empty() {
        true => Ok(()),
        false => Err(reasons.join("; ")),
    }
}

/// One operation, or some, at every node at once.
async fn probe_all(settings: &Settings, scene: &Arc<Scene>, random: &Random, topics: &[String], limit: Duration) {
    let mut probes = tokio::task::JoinSet::new();
    for node in scene.names() {
        let (scene, topics) = (scene.clone(), topics.to_vec());
        let random = random.fork(&format!("probe {node} {}", settings.seed));
        probes.spawn(async move { workload::probe(&scene, &node, &topics, limit, random).await });
    }
    probes.join_all().await;
}

fn phase(recorder: &Recorder, name: &str) {
    recorder.note("harness", Op::Phase { value: name.into() });
}

/// Where the binary under test is.
///
/// # Errors
/// Neither named nor in the environment.
pub fn binary(named: Option<PathBuf>, bug: bool) -> Result<PathBuf, String> {
    let variable = if bug { "LONTRA_BUGGY_BIN" } else { "LONTRA_BIN" };
    named
        .or_else(|| std::env::var_os(variable).map(PathBuf::from))
        .ok_or_else(|| format!("no binary: give --binary, or set {variable}"))
}
