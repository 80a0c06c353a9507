//! A cluster of real `lontra` processes: started, killed, paused, asked; the ground that faults are done on.
//!
//!     Spec ──start──▶ Cluster ─┬─ layout     directories, certificates, configurations
//!                              ├─ lifecycle  what is done to one node's process
//!                              ├─ process    one home (thread) per node; its processes die with it
//!                              ├─ admin      leaders, owners, digests, counters over the operator ports
//!                              └─ network    rules of directed pairs (link), done by
//!                                            plain: relays on loopback     root: a switch between namespaces
//!
//! Every start, end, kill and readiness of a process is an event of the history.

mod admin;
pub(crate) mod cgroup;
pub(crate) mod disk;
mod failure;
mod http;
mod isolate;
pub(crate) mod layout;
mod lifecycle;
pub mod link;
mod plain;
mod process;
mod relay;
mod root;
mod switch;

pub use cgroup::sweep;
pub use failure::Failure;
pub use isolate::isolate;
pub use layout::Layout;

use crate::history::Op;
use crate::random::Random;
use crate::recorder::Recorder;
use layout::{run, text};
use link::{Port, Rules};
use process::{Home, Process};
use rustix::process::Signal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Mutex as Turn;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackEnd {
    /// Namespaces, a switch and a file system for each node. Needs root, and [`isolate`] before anything else.
    Root,
    /// Loopback and relays: no faults of disks, nor of what TCP hides from clients.
    Plain,
}

#[derive(Clone, Debug)]
pub struct Spec {
    pub binary: PathBuf,
    pub nodes: usize,
    pub back_end: BackEnd,
    /// The run's directory: configurations, logs, data.
    pub dir: PathBuf,
    pub seed: u64,
    /// For every node; `{node}` in a value becomes its name, `{dir}` its directory.
    pub environment: Vec<(String, String)>,
}

/// A handle; clones share the cluster. Its processes end with the last of them.
#[derive(Clone)]
pub struct Cluster(Arc<Inner>);

struct Inner {
    spec: Spec,
    recorder: Recorder,
    names: Vec<String>,
    nodes: Vec<Node>,
    rules: Rules,
    network: Network,
}

/// What the back end keeps.
enum Network {
    Plain(#[allow(dead_code, reason = "relays end when it is dropped")] plain::Plain),
    Root(root::Root),
}

pub(crate) struct Node {
    pub layout: Layout,
    home: Home,
    /// Held while a process is started or killed: one at a time.
    turn: Turn<()>,
    state: Mutex<State>,
    paused: AtomicBool,
}

#[derive(Default)]
struct State {
    /// The last process that was started; it may have ended.
    process: Option<Arc<Process>>,
    /// For the next processes of this node, after the cluster's.
    environment: Vec<(String, String)>,
}

impl Cluster {
    /// A formed cluster, all of its nodes ready.
    ///
    /// # Errors
    /// Something that the harness needs is not there, or a node did not become ready.
    pub async fn start(mut spec: Spec, recorder: Recorder) -> Result<Cluster, Failure> {
        std::fs::create_dir_all(&spec.dir).map_err(Failure::io(spec.dir.display().to_string()))?;
        spec.dir = absolute(&spec.dir)?;
        if !spec.binary.exists() {
            return Err(Failure::Missing {
                path: spec.binary,
                advice: "build it, or name another binary",
            });
        }
        spec.binary = absolute(&spec.binary)?;
        let (rules, random) = (Rules::default(), Random::new(spec.seed));
        let (network, made) = match spec.back_end {
            BackEnd::Plain => {
                let (plain, made) = plain::set_up(&spec.dir, spec.nodes, &rules, &random).await?;
                (Network::Plain(plain), made)
            }
            BackEnd::Root => {
                let (root, made) = root::set_up(&spec.dir, spec.nodes, &rules, &random)?;
                (Network::Root(root), made)
            }
        };
        let layouts: Vec<Layout> = made.iter().map(|(layout, _)| layout.clone()).collect();
        layout::write(&spec.binary, &spec.dir, &layouts)?;
        let nodes: Vec<Node> = made
            .into_iter()
            .map(|(layout, home)| Node {
                layout,
                home,
                turn: Turn::default(),
                state: Mutex::default(),
                paused: AtomicBool::new(false),
            })
            .collect();
        let cluster = Cluster(Arc::new(Inner {
            spec,
            recorder,
            names: layouts.into_iter().map(|layout| layout.name).collect(),
            nodes,
            rules,
            network,
        }));
        for name in cluster.names() {
            cluster.start_node(name).await?;
        }
        cluster.must_be_ready(START).await?;
        Ok(cluster)
    }

    pub fn names(&self) -> &[String] {
        &self.0.names
    }

    pub fn spec(&self) -> &Spec {
        &self.0.spec
    }

    pub fn recorder(&self) -> &Recorder {
        &self.0.recorder
    }

    /// On how many nodes each shard is: all, unless the environment of the nodes says otherwise.
    pub fn replication_factor(&self) -> usize {
        let told = |(key, value): &(String, String)| (key == REPLICATION_FACTOR).then(|| value.parse().ok())?;
        let environment = self.0.spec.environment.iter();
        environment.rev().find_map(told).unwrap_or(self.0.spec.nodes)
    }

    /// The rules of the network between nodes, and between clients ([`link::CLIENTS`]) and nodes.
    pub fn rules(&self) -> &Rules {
        &self.0.rules
    }

    /// The port of the network that a node is at.
    ///
    /// # Panics
    /// There is no such node: names come from [`Cluster::names`].
    pub fn port(&self, node: &str) -> Port {
        self.known(node).layout.id as Port
    }

    /// Where MQTT clients connect.
    ///
    /// # Panics
    /// As of [`Cluster::port`].
    pub fn mqtt(&self, node: &str) -> SocketAddr {
        self.known(node).layout.clients.mqtt
    }

    /// Where WebSocket clients connect, at `/mqtt`.
    ///
    /// # Panics
    /// As of [`Cluster::port`].
    pub fn ws(&self, node: &str) -> SocketAddr {
        self.known(node).layout.clients.ws
    }

    /// The operator port.
    ///
    /// # Panics
    /// As of [`Cluster::port`].
    pub fn http(&self, node: &str) -> SocketAddr {
        self.known(node).layout.clients.http
    }

    /// Directories and files of a node.
    ///
    /// # Panics
    /// As of [`Cluster::port`].
    pub fn layout(&self, node: &str) -> &Layout {
        &self.known(node).layout
    }

    /// # Errors
    /// `Unsupported`: only the root back end has them.
    pub(crate) fn root(&self) -> Result<&root::Root, Failure> {
        match &self.0.network {
            Network::Root(root) => Ok(root),
            Network::Plain(_) => Err(Failure::unsupported(
                "a fault of disks or limits",
                "it needs the back end `root`",
            )),
        }
    }

    /// # Errors
    /// As of [`Cluster::root`].
    pub(crate) fn disk(&self, node: &str) -> Result<&disk::Disk, Failure> {
        Ok(&self.root()?.disks[node])
    }

    fn known(&self, node: &str) -> &Node {
        self.node(node).unwrap_or_else(|failure| panic!("{failure}"))
    }

    pub(crate) fn node(&self, name: &str) -> Result<&Node, Failure> {
        let found = self.0.nodes.iter().find(|node| node.layout.name == name);
        found.ok_or_else(|| Failure::unsupported(format!("node {name}"), "the cluster has no such node"))
    }

    /// SIGTERM, SIGKILL to what still runs after that; then looks through the logs for panics, which are recorded.
    pub async fn stop(self) {
        let running = |cluster: &Cluster| {
            let nodes = cluster.0.nodes.iter();
            nodes.filter_map(Node::running).collect::<Vec<_>>()
        };
        for name in self.names() {
            self.resume(name).await;
        }
        for process in running(&self) {
            process.signal(Signal::TERM);
        }
        let deadline = tokio::time::Instant::now() + STOP;
        for process in running(&self) {
            tokio::time::timeout_at(deadline, process.wait()).await.ok();
        }
        self.kill_all(self.names()).await;
        self.record_panics();
    }

    /// Copies the data directories of nodes that are down to `kept` beside their logs: what is on disks of their own goes
    /// with the cluster.
    ///
    /// # Errors
    /// They cannot be copied.
    pub fn keep_data(&self) -> Result<(), Failure> {
        let down = self.0.nodes.iter().filter(|node| node.running().is_none());
        for layout in down.map(|node| &node.layout) {
            let kept = layout.dir.join("kept");
            run(Path::new("cp"), &["-a", text(&layout.data()), text(&kept)])?;
        }
        Ok(())
    }

    /// Records the lines of nodes' logs that must not be there.
    fn record_panics(&self) {
        for node in &self.0.nodes {
            let log = std::fs::read(node.layout.log()).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            for line in log.lines().filter(|line| is_panic(line)) {
                let (node, line) = (node.layout.name.clone(), line.to_owned());
                self.0.recorder.note("harness", Op::Panic { node, line });
            }
            for line in log.lines().filter(|line| is_fatal(line)) {
                let fatal = Op::Observe {
                    about: "fatal".into(),
                    node: Some(node.layout.name.clone()),
                    value: line.into(),
                };
                self.0.recorder.note("harness", fatal);
            }
        }
    }

    pub(crate) fn note(&self, node: &str, event: &str, detail: Option<String>) {
        note(&self.0.recorder, node, event, detail);
    }
}

impl Node {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self) -> Option<Arc<Process>> {
        let process = self.lock().process.clone()?;
        process.ended().is_none().then_some(process)
    }
}

fn note(recorder: &Recorder, node: &str, event: &str, detail: Option<String>) {
    let (node, event) = (node.to_owned(), event.to_owned());
    recorder.note("harness", Op::Node { node, event, detail });
}

fn is_panic(line: &str) -> bool {
    PANICS.iter().any(|part| line.contains(part))
}

/// A node says that it cannot go on: to be expected only after some faults.
fn is_fatal(line: &str) -> bool {
    line.contains("ERROR") && FATAL.iter().any(|part| line.contains(part))
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    path.canonicalize().map_err(Failure::io(path.display().to_string()))
}

/// How nodes are told of another one than what their configuration says.
pub const REPLICATION_FACTOR: &str = "LONTRA__CLUSTER__REPLICATION_FACTOR";

/// Every thread's panic has the first, as has its line in the broker's own log the second; the others are C++'s and glibc's.
const PANICS: [&str; 4] = ["panicked at", "a thread panicked", "terminate called", "Assertion `"];

const FATAL: [&str; 2] = ["ended by itself", "must stop"];

/// Forming a cluster on a machine that others use too.
const START: Duration = Duration::from_secs(120);
/// What `lontra serve` allows itself for a clean stop, and some more.
const STOP: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_told_from_what_may_be_logged() {
        assert!(is_panic("thread 'worker-1' panicked at node/src/x.rs:3:4:"));
        assert!(is_fatal("ERROR storage has failed; this node must stop reason=\"x\""));
        assert!(!is_fatal("INFO the group ended by itself"));
        assert!(!is_panic("WARN dial failed, will go on trying"));
    }
}
