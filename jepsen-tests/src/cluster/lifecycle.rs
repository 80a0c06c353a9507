//! What is done to one node's process: started, killed, stopped, resumed, waited for.
//!
//!     started ──▶ ready ⇄ paused ──▶ killed | exited      each an event of the history

use super::failure::Failure;
use super::layout::text;
use super::process::{self, Process};
use super::{Cluster, Inner, http, note};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

impl Cluster {
    /// `lontra serve`, unless the node runs. Does not wait until it is ready.
    ///
    /// # Errors
    /// It cannot be executed.
    pub async fn start_node(&self, name: &str) -> Result<(), Failure> {
        let node = self.node(name)?;
        let _turn = node.turn.lock().await;
        if self.running(name) {
            return Ok(());
        }
        let layout = &node.layout;
        let failed = || Failure::io(layout.log().display().to_string());
        let mut log = File::options()
            .create(true)
            .append(true)
            .open(layout.log())
            .map_err(failed())?;
        writeln!(log, "{LOG_START}").map_err(failed())?;
        let mut command = Command::new(&self.0.spec.binary);
        command
            .args(["serve", "--config", text(&layout.config())])
            .current_dir(&layout.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failed())?)
            .stderr(log);
        let own = node.lock().environment.clone();
        for (key, value) in self.0.spec.environment.iter().chain(&own) {
            let value = value.replace("{node}", name).replace("{dir}", text(&layout.dir));
            command.env(key, value);
        }
        let process = node.home.spawn(command).await;
        let process = Arc::new(process.map_err(Failure::io(self.0.spec.binary.display().to_string()))?);
        node.paused.store(false, Ordering::Relaxed);
        node.lock().process = Some(process.clone());
        self.note(name, "started", Some(format!("process {}", process.pid)));
        tokio::spawn(watch(Arc::downgrade(&self.0), name.to_owned(), process));
        Ok(())
    }

    /// For the next processes of a node; `None` takes a variable away again.
    ///
    /// # Panics
    /// As of [`Cluster::port`].
    pub fn set_environment(&self, node: &str, key: &str, value: Option<&str>) {
        let mut state = self.known(node).lock();
        state.environment.retain(|(known, _)| known != key);
        if let Some(value) = value {
            state.environment.push((key.into(), value.into()));
        }
    }

    /// SIGKILL, and waits until the process is gone. Nothing happens to a node that is down.
    pub async fn kill(&self, name: &str) {
        self.kill_all(&[name.to_owned()]).await;
    }

    /// SIGKILL of several nodes at once: all signals first, then the waiting.
    pub async fn kill_all(&self, names: &[String]) {
        let mut killed = Vec::new();
        // Sorted: two callers who take turns in different orders would wait for each other.
        for name in names.iter().collect::<BTreeSet<_>>() {
            let node = self.known(name);
            let turn = node.turn.lock().await;
            if let Some(process) = node.running() {
                self.note(name, "killed", None);
                process.signal(Signal::KILL);
                killed.push((turn, process));
            }
        }
        for (turn, process) in killed {
            process.wait().await;
            drop(turn);
        }
    }

    /// SIGSTOP: the process keeps its sockets and does nothing. Waits until all of its threads stand still; false: it is
    /// down.
    pub async fn pause(&self, name: &str) -> bool {
        let node = self.known(name);
        let Some(process) = node.running() else { return false };
        node.paused.store(true, Ordering::Relaxed);
        let stopped = process.stop().await;
        node.paused.store(stopped, Ordering::Relaxed);
        stopped
    }

    /// SIGCONT; false: it is down.
    pub async fn resume(&self, name: &str) -> bool {
        let node = self.known(name);
        node.paused.store(false, Ordering::Relaxed);
        node.running().is_some_and(|process| process.signal(Signal::CONT))
    }

    /// Whether the node has a process, paused or not.
    pub fn running(&self, name: &str) -> bool {
        self.known(name).running().is_some()
    }

    pub fn paused(&self, name: &str) -> bool {
        self.known(name).paused.load(Ordering::Relaxed)
    }

    pub fn pid(&self, name: &str) -> Option<u32> {
        self.known(name).running().map(|process| process.pid)
    }

    /// Waits until the node's process has ended by itself; false: it has not.
    pub async fn wait_ended(&self, name: &str, limit: Duration) -> bool {
        match self.known(name).running() {
            Some(process) => tokio::time::timeout(limit, process.wait()).await.is_ok(),
            None => true,
        }
    }

    /// Whether it can be expected to answer.
    pub(super) fn answers(&self, name: &str) -> bool {
        self.running(name) && !self.paused(name)
    }

    /// Whether `/health/ready` answers 200 now.
    pub async fn ready(&self, name: &str) -> bool {
        self.answers(name) && matches!(http::get(self.http(name), "/health/ready", ASK).await, Ok((200, _)))
    }

    /// False: it was not ready within `limit`, or ended meanwhile.
    pub async fn wait_ready(&self, name: &str, limit: Duration) -> bool {
        let started = Instant::now();
        while started.elapsed() < limit {
            if self.ready(name).await {
                return true;
            }
            if !self.running(name) {
                return false;
            }
            tokio::time::sleep(READY_POLL).await;
        }
        false
    }

    /// The nodes that were not ready within `limit`, from now for all of them together.
    pub async fn wait_all_ready(&self, limit: Duration) -> Vec<String> {
        let deadline = Instant::now() + limit;
        let mut late = Vec::new();
        for name in self.names() {
            // Each gets at least one look.
            let left = deadline.saturating_duration_since(Instant::now()).max(READY_POLL);
            if !self.wait_ready(name, left).await {
                late.push(name.clone());
            }
        }
        late
    }

    /// As [`Cluster::wait_all_ready`], for when nodes have to be.
    ///
    /// # Errors
    /// The first that is not, with the end of its log.
    pub async fn must_be_ready(&self, limit: Duration) -> Result<(), Failure> {
        let Some(node) = self.wait_all_ready(limit).await.into_iter().next() else {
            return Ok(());
        };
        let log = self.layout(&node).log_tail();
        let process = self.known(&node).lock().process.clone();
        Err(match process.and_then(|process| process.ended()) {
            Some(status) => Failure::NodeEnded {
                node,
                status: process::describe(status),
                log,
            },
            None => Failure::NotReady {
                node,
                waited: limit,
                log,
            },
        })
    }
}

/// Records when a process is ready for the first time, and its end. Holds no handle, so that it keeps no cluster alive.
async fn watch(cluster: Weak<Inner>, name: String, process: Arc<Process>) {
    let Some((recorder, layout)) = cluster.upgrade().and_then(|inner| {
        let node = inner.nodes.iter().find(|node| node.layout.name == name)?;
        Some((inner.recorder.clone(), node.layout.clone()))
    }) else {
        return;
    };
    let ready = async {
        while let Some(inner) = cluster.upgrade() {
            if Cluster(inner).ready(&name).await {
                note(&recorder, &name, "ready", None);
                break;
            }
            tokio::time::sleep(READY_POLL).await;
        }
        std::future::pending::<Infallible>().await
    };
    let status = tokio::select! {
        status = process.wait() => status,
        never = ready => match never {},
    };
    // Of a node that ended by itself, why: its last words.
    let log = layout.log_tail();
    let words = log.lines().last().unwrap_or_default();
    let detail = format!("{}; {words}", process::describe(status));
    note(&recorder, &name, "exited", Some(detail));
}

/// Before each process's lines of a log.
const LOG_START: &str = "---- started ----";
const ASK: Duration = Duration::from_secs(1);
const READY_POLL: Duration = Duration::from_millis(25);
