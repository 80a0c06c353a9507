//! New connections: a task for each listener of the worker, and one for each connection that it accepts.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use super::{ListenerConfig, Worker};
use crate::config::ListenerKind;
use crate::gateway;
use crate::gateway::listen::{Listening, ListeningSocket};
use crate::gateway::peer::Peer;
use crate::gateway::socket::Socket;
use crate::metrics::Refusal;

/// Accepts until the tasks are aborted, which closes the listeners.
pub(super) fn begin(worker: &Rc<Worker>, listeners: Vec<Listening>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for Listening { at, socket, open } in listeners {
        match Listener::new(socket) {
            Ok(listener) => drop(tasks.spawn_local(accept(worker.clone(), at, listener, open))),
            Err(error) => tracing::error!(%error, "a worker cannot use its listener"),
        }
    }
    tasks
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn new(socket: ListeningSocket) -> io::Result<Self> {
        match socket {
            ListeningSocket::Tcp(listener) => TcpListener::from_std(listener).map(Listener::Tcp),
            ListeningSocket::Unix(listener) => UnixListener::from_std(listener).map(Listener::Unix),
        }
    }

    async fn accept(&self) -> io::Result<(Socket, Option<SocketAddr>)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                Ok((Socket::Tcp(stream), Some(address)))
            }
            Listener::Unix(listener) => Ok((Socket::Unix(listener.accept().await?.0), None)),
        }
    }
}

async fn accept(worker: Rc<Worker>, at: usize, listener: Listener, open: Arc<AtomicI64>) {
    let told = Rc::new(());
    let mut accepted = 0u64;
    loop {
        accepted += 1;
        if accepted.is_multiple_of(ACCEPTS_PER_TURN) {
            tokio::task::yield_now().await;
        }
        wait_for_rate(&worker, at).await;
        let (socket, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            // Out of file descriptors: what is open goes on, new clients wait.
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                worker.metrics.connection_refused(Refusal::AcceptFailed);
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let config = worker.config.borrow().clone();
        let Some(listener) = config.listeners.get(at).cloned() else {
            continue;
        };
        listener.guard.accepted(Instant::now());
        let peer = Peer::at(address);
        let is_full = |open: i64, max: i64| max > 0 && open >= max;
        if is_full(worker.metrics.open_connections(), config.connections_max)
            || is_full(open.load(Ordering::Relaxed), listener.connections_max)
        {
            worker.metrics.connection_refused(Refusal::ConnectionsMax);
            tell_surplus(&worker, &told, listener, socket, peer);
            continue;
        }
        let counted = Counted::new(&worker, listener.kind, open.clone());
        gateway::spawn(worker.clone(), listener, socket, peer, counted);
    }
}

/// One more than may be connected is told so in CONNACK, as long as few are told at a time: else its socket closes, and over TLS,
/// where words would cost a handshake. A client tries again elsewhere.
fn tell_surplus(worker: &Rc<Worker>, told: &Rc<()>, listener: Arc<ListenerConfig>, socket: Socket, peer: Peer) {
    if listener.tls.is_some() || Rc::strong_count(told) > TOLD_MAX {
        return;
    }
    let peer = Peer {
        is_surplus: true,
        ..peer
    };
    gateway::spawn(worker.clone(), listener, socket, peer, told.clone());
}

/// `back-pressure-first`: connections above a rate wait in the system's queue, and nobody is refused.
async fn wait_for_rate(worker: &Worker, at: usize) {
    let mut is_held = false;
    loop {
        let listener = worker.config.borrow().listeners.get(at).cloned();
        let wait = listener.and_then(|listener| listener.guard.accepts_after(Instant::now()));
        let Some((wait, limit)) = wait else { return };
        if !std::mem::replace(&mut is_held, true) {
            worker.metrics.limits.held(limit);
        }
        // Not for long at once: a reload may change the rate.
        tokio::time::sleep(wait.min(RATE_LOOK)).await;
    }
}

/// A connection that is counted, from its accept to the end of its socket.
struct Counted {
    worker: Rc<Worker>,
    kind: ListenerKind,
    open: Arc<AtomicI64>,
}

impl Counted {
    fn new(worker: &Rc<Worker>, kind: ListenerKind, open: Arc<AtomicI64>) -> Self {
        worker.metrics.connection_opened(kind);
        open.fetch_add(1, Ordering::Relaxed);
        let worker = worker.clone();
        Counted { worker, kind, open }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.worker.metrics.connection_closed(self.kind);
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// In a row, while others wait: the runtime alone would let it go on for 128.
const ACCEPTS_PER_TURN: u64 = 16;
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// Of each listener of a worker; each until its CONNECT, or the time for it is over.
const TOLD_MAX: usize = 64;
const RATE_LOOK: Duration = Duration::from_secs(1);
