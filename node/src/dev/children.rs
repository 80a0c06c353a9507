//! The processes of a development cluster: started, waited for, stopped.
//!
//! Each child is in a process group of its own, so that Ctrl-C at a terminal reaches only `dev`, which stops the
//! children in its own time; and each holds the end of a pipe of `dev`'s, so that it stops when `dev` itself is killed.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::DevError;
use super::layout::NodeLayout;
use crate::cli::say;
use crate::pid_file::PidFile;
use crate::stop_on_stdin_eof;

/// The nodes that this `dev` started and that still run.
pub struct Children {
    alive: BTreeMap<u64, u32>,
    /// One task per child; its result is the child's end.
    ends: JoinSet<(u64, ExitStatus)>,
}

impl Children {
    /// Starts all nodes.
    ///
    /// # Errors
    /// One could not be started; the others end with this `Children`.
    pub fn start(nodes: &[NodeLayout]) -> Result<Self, DevError> {
        let mut children = Self {
            alive: BTreeMap::new(),
            ends: JoinSet::new(),
        };
        for node in nodes {
            let failed = |source| DevError::Spawn { id: node.id, source };
            let program = std::env::current_exe().map_err(failed)?;
            let child = spawn(&program, node).map_err(failed)?;
            children.add(node.id, child).map_err(failed)?;
        }
        Ok(children)
    }

    fn add(&mut self, id: u64, mut child: Child) -> io::Result<()> {
        let pid = child.id().ok_or_else(|| io::Error::other("it ended at once"))?;
        self.alive.insert(id, pid);
        // `wait` closes standard input, which would stop the node.
        let pipe = child.stdin.take();
        self.ends.spawn(async move {
            let status = child.wait().await;
            drop(pipe);
            (id, status.unwrap_or_default())
        });
        Ok(())
    }

    /// The process ids, in the order of the nodes' ids.
    pub fn pids(&self) -> Vec<u32> {
        self.alive.values().copied().collect()
    }

    /// The next child that ends; waits forever when there is none left.
    ///
    /// # Cancel safety
    /// An end that was not returned is returned by the next call.
    pub async fn ended(&mut self) -> (u64, ExitStatus) {
        loop {
            match self.ends.join_next().await {
                Some(Ok((id, status))) => {
                    self.alive.remove(&id);
                    return (id, status);
                }
                Some(Err(error)) => tracing::error!(%error, "a waiting task ended"),
                None => std::future::pending().await,
            }
        }
    }

    /// SIGTERM to all nodes, those started by hand included; SIGKILL to those that still run after [`STOP_WAIT_MAX`].
    pub async fn stop(&mut self, nodes: &[NodeLayout]) {
        let deadline = Instant::now() + STOP_WAIT_MAX;
        self.signal(nodes, Signal::TERM);
        let _ = timeout(STOP_WAIT_MAX, self.all_ended()).await;
        while !by_hand(nodes, &self.alive).is_empty() && Instant::now() < deadline {
            sleep(POLL_INTERVAL).await;
        }
        self.kill(nodes).await;
    }

    /// SIGKILL to all nodes that run.
    pub async fn kill(&mut self, nodes: &[NodeLayout]) {
        for (id, _) in self.signal(nodes, Signal::KILL) {
            say(format_args!("node {id} did not stop in time and was killed"));
        }
        self.all_ended().await;
    }

    async fn all_ended(&mut self) {
        while !self.alive.is_empty() {
            self.ended().await;
        }
    }

    /// Sends `signal` to every node that runs, and returns those.
    fn signal(&self, nodes: &[NodeLayout], signal: Signal) -> BTreeMap<u64, u32> {
        let mut running = by_hand(nodes, &self.alive);
        running.extend(&self.alive);
        for pid in running
            .values()
            .filter_map(|&pid| Pid::from_raw(i32::try_from(pid).ok()?))
        {
            // A process that is gone already needs no signal.
            let _ = kill_process(pid, signal);
        }
        running
    }
}

/// Nodes that run, but not as this `dev`'s children: the lock of `lontra.pid` proves that its holder is a Lontra
/// process.
fn by_hand(nodes: &[NodeLayout], alive: &BTreeMap<u64, u32>) -> BTreeMap<u64, u32> {
    let others = nodes.iter().filter(|node| !alive.contains_key(&node.id));
    others
        .filter_map(|node| Some((node.id, PidFile::holder(&node.pid_path())?)))
        .collect()
}

fn spawn(program: &Path, node: &NodeLayout) -> io::Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(node.log_path())?;
    Command::new(program)
        .arg("serve")
        .arg("--config")
        .arg(node.config_path())
        .env(stop_on_stdin_eof::VARIABLE, "1")
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// Longer than a node needs to let its clients go and flush its tables.
const STOP_WAIT_MAX: Duration = Duration::from_secs(10);

const POLL_INTERVAL: Duration = Duration::from_millis(50);
