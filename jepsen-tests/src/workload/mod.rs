//! What clients do during a run, by name; each workload aims at some promises and says what its verdict needs.
//!
//!     spawn ──▶ Tasks: every client in a task of its own
//!     Setup ──all ready──▶ Load ──▶ Drain ──all drained──▶ Final ──all settled──▶ End      (client::Stage, driven by runner.rs)
//!
//! | name | clients | promises |
//! |---|---|---|
//! | `queue` | publishers QoS 1+2, persistent subscribers on all nodes, reconnecting, one crashing | P1 P2 P3 |
//! | `subbar` | subscribe, publish and unsubscribe through different nodes, exact, `+`, `#` | P4 P1 |
//! | `register` | retained topics, unique values, a fresh session per read | P5 |
//! | `session` | ids with Clean Start, expiry 0, short, long; resume elsewhere; take-over, from two nodes at once | P6 P1 P2 |
//! | `will` | connections with wills that end in every way | P7 |
//! | `shared` | groups whose members churn and refuse, QoS 1 and 2 | P8 |
//! | `flow` | small Receive Maximum, withheld acknowledgements, slow readers | P1 P2 P3 |
//!
//! Extension points: `membership` (nodes join, leave, are replaced) and `upgrade` (nodes restart with another binary) are
//! `queue` with steps of the cluster instead of faults: they belong to the nemesis, and need no client of their own. Clients
//! that speak JSON or HTTP are another [`Codec`](crate::client) of the same sessions.

mod flow;
mod needs;
mod publishers;
mod queue;
mod register;
mod session;
mod shared;
mod subbar;
mod subscribers;
mod will;

pub use needs::profile;
pub use publishers::probe;

use crate::client::{Client, Scene, Stage};
use crate::mqtt::Version;
use crate::random::Random;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

pub const NAMES: [&str; 7] = ["queue", "subbar", "register", "session", "will", "shared", "flow"];

/// What a workload aims at; P9 is everybody's, and P10 a matter of the fault.
pub fn promises(workload: &str) -> &'static [&'static str] {
    match workload {
        "queue" | "flow" => &["P1", "P2", "P3"],
        "subbar" => &["P1", "P4"],
        "register" => &["P5"],
        "session" => &["P1", "P2", "P6"],
        "will" => &["P7"],
        "shared" => &["P8"],
        _ => &[],
    }
}

/// How far the tasks of a workload are: each counts itself once per step.
#[derive(Default)]
pub struct Progress {
    pub ready: AtomicUsize,
    pub drained: AtomicUsize,
    pub settled: AtomicUsize,
}

/// What a workload's tasks share while they are spawned.
pub struct Cast {
    pub scene: Arc<Scene>,
    /// Messages a second, in total.
    pub rate: u32,
    random: Random,
    progress: Arc<Progress>,
    tasks: JoinSet<()>,
    count: usize,
    parts: usize,
}

/// What a task is given.
pub struct Part {
    pub client: Client,
    pub scene: Arc<Scene>,
    progress: Arc<Progress>,
    /// The client's id without its generation.
    base: String,
    generation: u32,
    random: Random,
}

impl Cast {
    /// A client with a generator of its own, and its part in the run's steps.
    pub fn part(&mut self, name: &str, version: Version) -> Part {
        let base = format!("{}-{name}", self.scene.prefix);
        let mut client = Client::new(&self.scene, base.clone(), version, self.random.fork(&base));
        self.parts += 1;
        client.over_websocket = self.parts.is_multiple_of(WEBSOCKET_EACH);
        Part {
            client,
            scene: self.scene.clone(),
            progress: self.progress.clone(),
            random: self.random.fork(&format!("{base}, next")),
            base,
            generation: 0,
        }
    }

    /// The task must say `ready`, `drained` and `settled` once each.
    pub fn play(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.count += 1;
        self.tasks.spawn(task);
    }

    /// A topic or filter of this run.
    pub fn topic(&self, rest: &str) -> String {
        format!("{}/{rest}", self.scene.prefix)
    }

    pub fn topics(&self, level: &str, count: usize) -> Vec<String> {
        (0..count)
            .map(|index| self.topic(&format!("{level}/{index}")))
            .collect()
    }
}

impl Part {
    pub fn ready(&self) {
        self.progress.ready.fetch_add(1, Ordering::SeqCst);
    }

    pub fn drained(&self) {
        self.progress.drained.fetch_add(1, Ordering::SeqCst);
    }

    pub fn settled(&self) {
        self.progress.settled.fetch_add(1, Ordering::SeqCst);
    }

    /// One more client of the same kind, for a single use.
    pub fn next_client(&mut self) -> Client {
        self.generation += 1;
        let id = format!("{}.{}", self.base, self.generation);
        let random = self.random.fork(&id);
        let mut client = Client::new(&self.scene, id, self.client.version, random);
        client.over_websocket = self.client.over_websocket;
        client
    }

    /// A client that has not been, in the place of this one, which is answered: an abandoned CONNECT may yet change its session.
    pub fn replace_client(&mut self) -> Client {
        let mut fresh = self.next_client();
        fresh.acks = self.client.acks.clone();
        std::mem::replace(&mut self.client, fresh)
    }

    /// Drives the client until the run is at `stage`; the client may lose its connection meanwhile.
    pub async fn wait_for(&mut self, stage: Stage) {
        while self.scene.stage() < stage {
            self.client.pass(Duration::from_millis(20)).await;
        }
    }
}

pub struct Tasks {
    set: JoinSet<()>,
    progress: Arc<Progress>,
    count: usize,
}

/// Starts the clients of a workload.
///
/// # Errors
/// There is none of this name.
pub fn spawn(name: &str, scene: &Arc<Scene>, rate: u32, random: &Random) -> Result<Tasks, String> {
    let mut cast = Cast {
        scene: scene.clone(),
        rate,
        random: random.fork(name),
        progress: Arc::default(),
        tasks: JoinSet::new(),
        count: 0,
        parts: 0,
    };
    match name {
        "queue" => queue::cast(&mut cast),
        "subbar" => subbar::cast(&mut cast),
        "register" => register::cast(&mut cast),
        "session" => session::cast(&mut cast),
        "will" => will::cast(&mut cast),
        "shared" => shared::cast(&mut cast),
        "flow" => flow::cast(&mut cast),
        _ => return Err(format!("there is no workload {name:?}; there are {}", NAMES.join(", "))),
    }
    Ok(Tasks {
        set: cast.tasks,
        progress: cast.progress,
        count: cast.count,
    })
}

/// The topics that the final operations on every node publish to: some that the workload's subscribers are owed.
pub fn final_topics(name: &str, prefix: &str) -> Vec<String> {
    let level = match name {
        "subbar" => return vec![format!("{prefix}/final")],
        "register" => "r",
        "session" => "e",
        "will" => "w/background",
        "shared" => "s",
        "flow" => "f",
        _ => "q",
    };
    (0..12).map(|index| format!("{prefix}/{level}/{index}")).collect()
}

impl Tasks {
    pub async fn wait_ready(&mut self, limit: Duration) -> Result<(), String> {
        self.wait("ready", limit, |progress| &progress.ready).await
    }

    pub async fn wait_drained(&mut self, limit: Duration) -> Result<(), String> {
        self.wait("drained", limit, |progress| &progress.drained).await
    }

    pub async fn wait_settled(&mut self, limit: Duration) -> Result<(), String> {
        self.wait("settled", limit, |progress| &progress.settled).await
    }

    async fn wait(
        &mut self,
        what: &str,
        limit: Duration,
        counter: impl Fn(&Progress) -> &AtomicUsize,
    ) -> Result<(), String> {
        let deadline = Instant::now() + limit;
        loop {
            self.fail_if_one_panicked()?;
            let so_far = counter(&self.progress).load(Ordering::SeqCst);
            if so_far >= self.count {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(format!("{so_far} of {} clients {what} after {limit:?}", self.count));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// # Errors
    /// A client's task panicked: the harness is wrong.
    pub fn fail_if_one_panicked(&mut self) -> Result<(), String> {
        while let Some(ended) = self.set.try_join_next() {
            ended.map_err(|error| format!("a client panicked: {error}"))?;
        }
        Ok(())
    }

    /// Lets the tasks end by themselves for a while, then ends them.
    pub async fn end(mut self, limit: Duration) {
        let all = async { while self.set.join_next().await.is_some() {} };
        tokio::time::timeout(limit, all).await.ok();
    }
}

/// Whether `topic` matches `filter` (without a share name); no topic here begins with `$`.
pub fn matches(filter: &str, topic: &str) -> bool {
    let mut topic = topic.split('/');
    for level in filter.split('/') {
        match (level, topic.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (level, Some(other)) if level == other => {}
            _ => return false,
        }
    }
    topic.next().is_none()
}

/// One client in so many is connected over WebSocket; both versions are.
const WEBSOCKET_EACH: usize = 5;

/// 3.1.1 and 5 in turn.
pub fn version(index: usize) -> Version {
    match index % 2 {
        0 => Version::V5,
        _ => Version::V311,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_the_standard_says() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/+", "a/b", true),
            ("a/+", "a", false),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("a/+/c", "a/b/d", false),
            ("a", "a/b", false),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }
}
