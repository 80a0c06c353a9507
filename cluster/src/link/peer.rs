//! One peer: two lanes, each kept up by one task, and what outlives a connection.
//!
//! ```text
//! dialler:   dial ───────▶ serve ──lost──▶ dial …
//! acceptor:  wait offered ▶ serve ──lost──▶ wait … (a newer connection replaces the one served)
//! ```
//!
//! Invariant `lower-dials`: the streams of a new connection are served only after all tasks of the one before have
//! stopped, so that nothing of the old one reaches a handler later.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lontra_storage::ids::NodeId;
use quinn::Connection;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::config::Lane;
use super::connect::{self, CLOSE_REFUSED, CLOSE_REPLACED, CLOSE_VIOLATION, describe};
use super::error::LinkError;
use super::forward::{self, Incoming, Outgoing};
use super::metrics::PeerMetrics;
use super::request::{self, RequestQueue};
use super::tls::Trust;
use super::{Peer, PeerHandler, Shared, accept};

/// A connection after its handshake.
pub(super) struct Established {
    pub connection: Connection,
    pub start: u64,
}

/// Everything this node knows of one peer.
pub(crate) struct PeerLink {
    pub(super) node: NodeId,
    address: Mutex<String>,
    lanes: [LaneLink; 2],
    outgoing: Outgoing,
    identity: Mutex<Identity>,
    /// What `link_changed` was last told; held while telling, so that news keep their order.
    announced: Mutex<bool>,
    handler: Arc<dyn PeerHandler>,
    /// When the last packet came.
    heard: Mutex<Option<Instant>>,
    metrics: PeerMetrics,
}

struct LaneLink {
    /// The connection that is served, and the peer's process at its end.
    current: Mutex<Option<Current>>,
    requests: Arc<RequestQueue>,
    offered: mpsc::Sender<Established>,
}

struct Current {
    connection: Connection,
    start: u64,
    /// The peer takes requests on it.
    ready: bool,
}

/// Which process of the peer is the present one.
#[derive(Default)]
struct Identity {
    start: Option<u64>,
    incoming: Option<Arc<Incoming>>,
    /// Processes that are over: a straggler of theirs must not bring them back.
    superseded: VecDeque<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PeerLink {
    /// The peer, and where the tasks of its lanes find accepted connections.
    pub fn new(
        node: NodeId,
        address: String,
        handler: Arc<dyn PeerHandler>,
        metrics: PeerMetrics,
    ) -> (Arc<PeerLink>, [mpsc::Receiver<Established>; 2]) {
        let lane = || {
            let (offered, receiver) = mpsc::channel(OFFERED_MAX);
            (
                LaneLink {
                    current: Mutex::default(),
                    requests: Arc::new(RequestQueue::new(node)),
                    offered,
                },
                receiver,
            )
        };
        let ((control, control_offered), (data, data_offered)) = (lane(), lane());
        let peer = PeerLink {
            node,
            address: Mutex::new(address),
            lanes: [control, data],
            outgoing: Outgoing::new(node, metrics.clone()),
            identity: Mutex::default(),
            announced: Mutex::new(false),
            handler,
            heard: Mutex::default(),
            metrics,
        };
        (Arc::new(peer), [control_offered, data_offered])
    }

    pub fn address(&self) -> String {
        lock(&self.address).clone()
    }

    pub fn set_address(&self, address: String) {
        *lock(&self.address) = address;
    }

    pub fn requests(&self, lane: Lane) -> &Arc<RequestQueue> {
        &self.lanes[lane.index()].requests
    }

    pub fn outgoing(&self) -> &Outgoing {
        &self.outgoing
    }

    pub fn metrics(&self) -> &PeerMetrics {
        &self.metrics
    }

    /// The connection of a lane, unless it has just ended.
    pub fn connection(&self, lane: Lane) -> Option<Connection> {
        let current = lock(&self.lanes[lane.index()].current);
        let connection = &current.as_ref()?.connection;
        connection.close_reason().is_none().then(|| connection.clone())
    }

    pub fn is_up(&self) -> bool {
        let is_ready = |current: &Current| current.ready && current.connection.close_reason().is_none();
        self.lanes
            .iter()
            .all(|lane| lock(&lane.current).as_ref().is_some_and(is_ready))
    }

    pub fn start(&self) -> Option<u64> {
        lock(&self.identity).start
    }

    pub fn is_superseded(&self, start: u64) -> bool {
        lock(&self.identity).superseded.contains(&start)
    }

    pub fn silent_for(&self) -> Option<Duration> {
        lock(&self.heard).map(|heard| heard.elapsed())
    }

    /// Ends connections whose certificate is good no more.
    pub fn hold_against(&self, trust: &Trust, cluster: &str) {
        for lane in Lane::ALL {
            if let Some(connection) = self.connection(lane)
                && !trust.knows(&connection, self.node, cluster)
            {
                connection.close(CLOSE_REFUSED, REVOKED);
            }
        }
    }

    /// Hands over a connection that was accepted.
    pub async fn offer(&self, lane: Lane, established: Established) {
        // Fails only when the links are closed.
        let _ = self.lanes[lane.index()].offered.send(established).await;
    }

    /// From here on the peer is the process `start`. A new one ends what belonged to the old.
    fn adopt(&self, start: u64) -> Result<Arc<Incoming>, LinkError> {
        let incoming = {
            let mut identity = lock(&self.identity);
            if identity.superseded.contains(&start) {
                return Err(super::handshake::Refusal::Superseded { node: self.node, start }.into());
            }
            match (identity.start, &identity.incoming) {
                (Some(present), Some(incoming)) if present == start => incoming.clone(),
                (before, _) => {
                    if let Some(before) = before {
                        identity.superseded.push_back(before);
                        if identity.superseded.len() > SUPERSEDED_MAX {
                            identity.superseded.pop_front();
                        }
                    }
                    let incoming = Incoming::new();
                    identity.start = Some(start);
                    identity.incoming = Some(incoming.clone());
                    incoming
                }
            }
        };
        self.outgoing.bind(start);
        for lane in &self.lanes {
            if let Some(current) = lock(&lane.current).as_ref().filter(|current| current.start != start) {
                current.connection.close(CLOSE_REPLACED, b"restarted");
            }
        }
        Ok(incoming)
    }

    /// A lane's connection takes requests.
    pub fn ready(&self, lane: Lane) {
        if let Some(current) = lock(&self.lanes[lane.index()].current).as_mut() {
            current.ready = true;
        }
        self.announce();
    }

    /// Tells the handler if the link as a whole came up or went down.
    fn announce(&self) {
        let mut announced = lock(&self.announced);
        let up = self.is_up();
        if *announced != up {
            *announced = up;
            self.metrics.link_changed(up);
            self.handler.link_changed(self.node, up);
        }
    }
}

/// Keeps one lane up until the links are closed.
pub(super) async fn run_lane(
    shared: Arc<Shared>,
    peer: Arc<PeerLink>,
    lane: Lane,
    mut offered: mpsc::Receiver<Established>,
) {
    let dials = shared.config.node < peer.node;
    let mut next = None;
    let mut connected_before = false;
    while !shared.is_closing() {
        let established = match next.take() {
            Some(established) => Some(established),
            None if dials => connect::dial_until_connected(&shared, &peer, lane).await,
            None => tokio::select! {
                biased;
                () = shared.closed() => None,
                established = offered.recv() => established,
            },
        };
        let Some(established) = established else { break };
        if std::mem::replace(&mut connected_before, true) {
            peer.metrics.reconnected();
        }
        let outcome = serve(&shared, &peer, lane, established, &mut offered).await;
        if !shared.is_closing() {
            let error = describe(&outcome.error);
            tracing::warn!(
                node = shared.config.node,
                peer = peer.node,
                ?lane,
                error,
                "connection to peer ended"
            );
        }
        next = outcome.next;
        if dials && next.is_none() {
            // A peer that closes at once must not be dialled in a tight loop.
            tokio::time::sleep(REDIAL_PAUSE).await;
        }
    }
}

struct Outcome {
    error: LinkError,
    /// The connection that replaces the one that ended.
    next: Option<Established>,
}

/// Serves one connection to its end; afterwards none of its tasks runs any more.
async fn serve(
    shared: &Arc<Shared>,
    peer: &Arc<PeerLink>,
    lane: Lane,
    Established { connection, start }: Established,
    offered: &mut mpsc::Receiver<Established>,
) -> Outcome {
    let link = &peer.lanes[lane.index()];
    *lock(&link.current) = Some(Current {
        connection: connection.clone(),
        start,
        ready: false,
    });
    // Files that came since its handshake have looked at the connections that were served then; this one was not.
    if !shared
        .certified()
        .trust
        .knows(&connection, peer.node, &shared.config.cluster)
    {
        connection.close(CLOSE_REFUSED, REVOKED);
    }
    let mut tasks = JoinSet::new();
    let mut outcome = match peer.adopt(start) {
        Ok(incoming) => {
            tracing::info!(
                node = shared.config.node,
                peer = peer.node,
                ?lane,
                start,
                "connected to peer"
            );
            tasks.spawn(request::run_client(peer.clone(), lane, connection.clone()));
            if lane == Lane::Data {
                tasks.spawn(forward::run_client(peer.clone(), connection.clone()));
            }
            serve_streams(shared, peer, lane, start, incoming, &connection, offered, &mut tasks).await
        }
        Err(error) => Outcome { error, next: None },
    };
    *lock(&link.current) = None;
    let code = if outcome.next.is_some() {
        CLOSE_REPLACED
    } else {
        CLOSE_VIOLATION
    };
    connection.close(code, b"");
    if let Some(reason) = connection.close_reason()
        && !matches!(reason, quinn::ConnectionError::LocallyClosed)
    {
        outcome.error = LinkError::broken(reason);
    }
    // lower-dials: whatever of this connection is still read is read before the next one is.
    tasks.shutdown().await;
    link.requests.link_down();
    peer.announce();
    outcome
}

#[expect(
    clippy::too_many_arguments,
    reason = "the loop of `serve`, apart so that its end is in one place"
)]
async fn serve_streams(
    shared: &Arc<Shared>,
    peer: &Arc<PeerLink>,
    lane: Lane,
    start: u64,
    incoming: Arc<Incoming>,
    connection: &Connection,
    offered: &mut mpsc::Receiver<Established>,
    tasks: &mut JoinSet<Result<(), LinkError>>,
) -> Outcome {
    let from = Peer { node: peer.node, start };
    loop {
        tokio::select! {
            Some(next) = offered.recv() => {
                return Outcome { error: LinkError::Ended { reason: "a newer connection" }, next: Some(next) };
            }
            stream = connection.accept_bi() => match stream {
                Ok(stream) => {
                    let (shared, peer, incoming) = (shared.clone(), peer.clone(), incoming.clone());
                    tasks.spawn(accept::serve_stream(shared, peer, lane, from, incoming, stream));
                }
                Err(error) => return Outcome { error: LinkError::broken(error), next: None },
            },
            Some(ended) = tasks.join_next() => match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Outcome { error, next: None },
                Err(panicked) => {
                    tracing::error!(peer = peer.node, ?lane, %panicked, "a task of the link failed");
                    return Outcome { error: LinkError::Ended { reason: "a task failed" }, next: None };
                }
            },
        }
    }
}

/// Notes when packets come, so that `silent_for` sees keep-alives too.
pub(super) async fn sample_silence(shared: Arc<Shared>) {
    let mut tick = tokio::time::interval(SAMPLE_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut seen = std::collections::BTreeMap::new();
    loop {
        tokio::select! {
            biased;
            () = shared.closed() => return,
            _ = tick.tick() => {}
        }
        for peer in shared.peers() {
            for lane in Lane::ALL {
                let Some(connection) = peer.connection(lane) else {
                    continue;
                };
                let now = (connection.stable_id(), connection.stats().udp_rx.datagrams);
                if seen.insert((peer.node, lane), now) != Some(now) {
                    *lock(&peer.heard) = Some(Instant::now());
                }
            }
        }
    }
}

/// Told to whoever shows a certificate that is good no more.
const REVOKED: &[u8] = b"certificate";
/// A peer dials one connection per lane at a time.
const OFFERED_MAX: usize = 4;
/// Restarts of a peer within the life of a stray packet.
const SUPERSEDED_MAX: usize = 16;
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
const REDIAL_PAUSE: Duration = Duration::from_millis(50);
