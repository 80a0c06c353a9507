//! Processes of nodes: born, signalled, waited for.
//!
//!     Home (one thread per node) ──fork──▶ lontra serve      PDEATHSIG: the kernel kills it when its home's thread ends
//!                                    │
//!     waiter (one thread per process) ──▶ `ended`
//!
//! A process is tied to the *thread* that forked it, not to the harness as a whole; so that thread must live as long as
//! the cluster does, and a runtime's threads need not. When the harness is killed, all its threads end, and so do the nodes.
//! A home may live in a network namespace: its children are then born there.

use super::failure::Failure;
use rustix::fd::OwnedFd;
use rustix::process::{
    Pid, PidfdFlags, Signal, getppid, pidfd_open, pidfd_send_signal, set_parent_process_death_signal,
};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// The thread that the processes of one node are children of; it ends, and they with it, when this is dropped.
pub struct Home(mpsc::Sender<Order>);

struct Order {
    command: Command,
    answer: oneshot::Sender<io::Result<Process>>,
}

impl Home {
    /// A thread that first does `prepare` (enters a namespace, opens devices), whose result is returned.
    ///
    /// # Errors
    /// No thread could be made, or `prepare` failed.
    pub fn new<T: Send + 'static>(
        name: &str,
        prepare: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<(Home, T), Failure> {
        let (orders, received) = mpsc::channel::<Order>();
        let (prepared, answer) = mpsc::channel();
        std::thread::Builder::new()
            .name(format!("home-{name}"))
            .spawn(move || {
                prepared.send(prepare()).ok();
                for order in received {
                    order.answer.send(spawn(order.command)).ok();
                }
            })
            .map_err(Failure::io("a thread"))?;
        let result = answer.recv().map_err(|error| Failure::Io {
            what: "a home's thread".into(),
            source: io::Error::other(error),
        })?;
        Ok((Home(orders), result?))
    }

    /// # Errors
    /// The program cannot be executed.
    pub async fn spawn(&self, command: Command) -> io::Result<Process> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Order { command, answer }).map_err(io::Error::other)?;
        answered.await.map_err(io::Error::other)?
    }
}

/// A process that was started; it may have ended.
pub struct Process {
    pub pid: u32,
    /// Signals go through it: a number may belong to another process by now.
    handle: OwnedFd,
    ended: watch::Receiver<Option<ExitStatus>>,
}

impl Process {
    /// Whether there was a process to signal.
    pub fn signal(&self, signal: Signal) -> bool {
        pidfd_send_signal(&self.handle, signal).is_ok()
    }

    pub fn ended(&self) -> Option<ExitStatus> {
        *self.ended.borrow()
    }

    pub async fn wait(&self) -> ExitStatus {
        let mut ended = self.ended.clone();
        let status = ended.wait_for(Option::is_some).await;
        status
            .ok()
            .and_then(|status| *status)
            .unwrap_or_else(|| ExitStatus::from_raw(0))
    }

    /// SIGSTOP, and waits until no thread runs any more, or will before SIGCONT (`D`: one that is inside a system call may
    /// finish that, but never hears of it).
    pub async fn stop(&self) -> bool {
        self.signal(Signal::STOP);
        for _ in 0..STOP_POLLS_MAX {
            if self.ended().is_some() {
                return false;
            }
            if threads_stand_still(self.pid) {
                return true;
            }
            tokio::time::sleep(STOP_POLL).await;
        }
        false
    }
}

fn spawn(mut command: Command) -> io::Result<Process> {
    let parent = rustix::process::getpid();
    die_with_parent(&mut command, parent);
    let child = command.spawn()?;
    let pid = child.id();
    // Still ours: nobody has waited for it yet.
    let handle = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    let (tell, ended) = watch::channel(None);
    std::thread::Builder::new()
        .name(format!("wait-{pid}"))
        .spawn(move || wait(child, &tell))?;
    Ok(Process { pid, handle, ended })
}

#[allow(
    unsafe_code,
    reason = "a child that outlives a killed harness would hold ports and disks of the next run"
)]
fn die_with_parent(command: &mut Command, parent: Pid) {
    let in_child = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have gone before the line above.
        match getppid() == Some(parent) {
            true => Ok(()),
            false => Err(io::Error::from(io::ErrorKind::BrokenPipe)),
        }
    };
    // SAFETY: between fork and exec only two plain system calls are made, and nothing is allocated.
    unsafe { command.pre_exec(in_child) };
}

fn wait(mut child: Child, tell: &watch::Sender<Option<ExitStatus>>) {
    let status = child.wait().unwrap_or_else(|_| ExitStatus::from_raw(0));
    tell.send(Some(status)).ok();
}

fn threads_stand_still(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        matches!(state, Some('T' | 'D'))
    })
}

/// For people: `exit status: 1`, `signal: 9 (SIGKILL)`.
pub fn describe(status: ExitStatus) -> String {
    status.to_string()
}

const STOP_POLL: Duration = Duration::from_millis(2);
const STOP_POLLS_MAX: u32 = 2_500;
