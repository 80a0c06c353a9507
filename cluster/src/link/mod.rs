//! Links: how the nodes of a cluster talk.
//!
//! ```text
//!              node 1 (lower id: dials)                          node 2 (accepts)
//!   request ─▶ control connection ── requests, heartbeats, votes ──▶ PeerHandler::request │ RaftRegistry
//!   request ─▶ data connection ───┬─ requests ─────────────────────▶ PeerHandler::request
//!   forward ─▶                    ├─ numbered frames ──▶ ◀── acks ── PeerHandler::forwarded
//!   openraft ▶                    ├─ one append stream per group ──▶ Raft::stream_append
//!                                 ├─ snapshots, low priority ──────▶ Raft::install_full_snapshot
//!   FrameSource ◀─────────────────┴─ pushes ◀─────────────────────── FrameSink of PeerHandler::stream
//! ```
//!
//! One UDP endpoint per node; two QUIC connections per pair (mutual TLS 1.3 under the cluster authority), so that bulk
//! data never stands before a heartbeat in a send window. Both directions use both connections; each side opens its own
//! streams and keeps them. The meaning of payloads is the caller's.
//!
//! Files: `frame` and `handshake` decide without I/O; `wire` puts frames on QUIC streams; `connect` dials, `accept`
//! accepts and serves the peer's streams, `peer` keeps one peer's two lanes up; `request`, `forward`, `stream`,
//! `raft_rpc` (client) and `raft_serve` (server) are what goes over them; [`tls`] makes and loads certificates.
//!
//! Invariants
//! - `forward-once`: a forwarded frame reaches the handler once and in order, however often the link broke between.
//! - `lane-order`: requests of one peer and lane reach the handler in the order of the calls.
//! - `lower-dials`: of two nodes the one with the lower id dials; a newer connection replaces the older one, and its
//!   streams are read only after the older one's reader has stopped.
//! - `bounded`: every queue here has a limit in requests or bytes, and refuses beyond.

mod accept;
mod config;
mod connect;
mod error;
mod forward;
pub mod frame;
mod gate;
mod handshake;
pub mod issue;
mod metrics;
mod peer;
mod raft_codec;
mod raft_rpc;
mod raft_serve;
mod request;
mod spool;
mod stream;
pub mod tls;
mod transfers;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use lontra_storage::ids::NodeId;
use lontra_storage::raft_types::TypeConfig;
use lontra_storage::snapshot::SnapshotData;
use openraft::storage::RaftStateMachine;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use self::config::{Lane, LinkConfig, TlsFiles};
pub use self::error::{ForwardError, LinkError, RequestError};
pub use self::forward::ForwardDone;
pub use self::frame::{FRAME_BYTES_MAX, FrameError};
pub use self::handshake::Refusal;
pub use self::metrics::LinkMetrics;
pub use self::raft_rpc::{LinksHandle, RaftNetwork, RaftNetworkFactory};
pub use self::raft_serve::{RaftRegistry, StageSnapshot};
pub use self::request::ReplySender;
pub use self::stream::{FrameSink, FrameSource, SinkError};
pub use self::transfers::Transfers;

use self::peer::PeerLink;
use self::raft_serve::RaftService;

/// One process of a node: its id and the number of that start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer {
    pub node: NodeId,
    pub start: u64,
}

/// What a node does with what its peers send. No method may block: each is called from the task that reads the link.
pub trait PeerHandler: Send + Sync + 'static {
    /// A request. Called in order of arrival per peer and lane; `reply` may be sent from any task, in any order.
    fn request(&self, from: NodeId, kind: u8, payload: Bytes, reply: ReplySender);

    /// One forwarded frame, in order, once per peer process and number (`forward-once`). `done` is called once the
    /// frame is in every outbox; acknowledgements to the sender are cumulative.
    fn forwarded(&self, from: Peer, frame: Bytes, done: ForwardDone);

    /// A stream that the peer opened so that this node may push to it. `sink` is bounded.
    fn stream(&self, from: NodeId, kind: u8, hello: Bytes, sink: FrameSink);

    /// Both connections to `peer` are up, or no longer.
    fn link_changed(&self, peer: NodeId, up: bool);
}

/// The links of this node to all its peers.
pub struct Links {
    shared: Arc<Shared>,
    /// One task per peer and lane, the acceptor, the silence sampler; joined by [`Links::close`].
    tasks: Mutex<JoinSet<()>>,
}

/// What every task of the links sees.
pub(crate) struct Shared {
    config: LinkConfig,
    endpoint: quinn::Endpoint,
    local_addr: SocketAddr,
    peers: RwLock<BTreeMap<NodeId, Arc<PeerLink>>>,
    handler: Arc<dyn PeerHandler>,
    rafts: Arc<dyn RaftService>,
    metrics: LinkMetrics,
    closing: watch::Sender<bool>,
    /// Of the files that were read last.
    certified: RwLock<Arc<Certified>>,
}

/// What the files of this node make of it and its peers.
struct Certified {
    client: quinn::ClientConfig,
    trust: tls::Trust,
}

/// Files that were read again, and are good: see [`Links::read_tls`].
pub struct FreshTls {
    server: quinn::ServerConfig,
    certified: Certified,
}

impl Shared {
    fn certified(&self) -> Arc<Certified> {
        self.certified.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn peer(&self, node: NodeId) -> Option<Arc<PeerLink>> {
        self.peers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&node)
            .cloned()
    }

    fn peers(&self) -> Vec<Arc<PeerLink>> {
        self.peers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Resolves once [`Links::close`] was called.
    async fn closed(&self) {
        let mut closing = self.closing.subscribe();
        // An error means that `self` is gone, which cannot be while it is borrowed.
        let _ = closing.wait_for(|closing| *closing).await;
    }

    fn is_closing(&self) -> bool {
        *self.closing.borrow()
    }
}

impl Links {
    /// Binds the UDP endpoint, accepts, and dials every peer with a higher id, again and again (50 ms to 1 s apart).
    /// Networks that `rafts` made work from here on.
    ///
    /// # Errors
    /// A file of `config.tls` cannot be used, or the address is taken.
    pub async fn start<SM>(
        config: LinkConfig,
        handler: Arc<dyn PeerHandler>,
        rafts: Arc<RaftRegistry<SM>>,
        metrics: LinkMetrics,
    ) -> Result<Arc<Links>, LinkError>
    where
        SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
    {
        if !(SILENCE_MIN..=SILENCE_LIMIT).contains(&config.silence_max) {
            return Err(LinkError::SilenceMax {
                silence_max: config.silence_max,
            });
        }
        let tls = tls::NodeTls::load(&config.tls, &config.cluster, config.node)?;
        let certified = Certified {
            client: connect::quic(&config, &tls)?.client,
            trust: tls.trust.clone(),
        };
        let endpoint = connect::bind(&config, &tls)?;
        let local_addr = endpoint.local_addr().map_err(|source| LinkError::Listen {
            address: config.listen,
            source,
        })?;
        let handle = rafts.links();
        let peers = config.peers.clone();
        let shared = Arc::new(Shared {
            config,
            endpoint,
            local_addr,
            peers: RwLock::default(),
            handler,
            rafts,
            metrics,
            closing: watch::Sender::new(false),
            certified: RwLock::new(Arc::new(certified)),
        });
        let links = Arc::new(Links {
            shared: shared.clone(),
            tasks: Mutex::default(),
        });
        links.spawn(accept::run(shared.clone()));
        links.spawn(peer::sample_silence(shared.clone()));
        for (node, address) in peers {
            links.add_peer(node, address);
        }
        handle.bind(&shared);
        Ok(links)
    }

    /// Reads the files of this node's configuration again. Blocks on the disk; nothing changes yet.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn read_tls(&self) -> Result<FreshTls, LinkError> {
        let config = &self.shared.config;
        let tls = tls::NodeTls::load(&config.tls, &config.cluster, config.node)?;
        let quic = connect::quic(config, &tls)?;
        Ok(FreshTls {
            server: quic.server,
            certified: Certified {
                client: quic.client,
                trust: tls.trust,
            },
        })
    }

    /// New connections are made by these files from here on. Those that stand stay, unless the certificate of their peer is
    /// good no more; and stateless resets stay signed with the key of the start.
    pub fn use_tls(&self, fresh: FreshTls) {
        let shared = &self.shared;
        shared.endpoint.set_server_config(Some(fresh.server));
        let trust = fresh.certified.trust.clone();
        *shared.certified.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh.certified);
        for peer in shared.peers() {
            peer.hold_against(&trust, &shared.config.cluster);
        }
    }

    /// Adds a peer that joined later, or changes the address that it is dialled at next time.
    pub fn add_peer(&self, node: NodeId, address: String) {
        if node == self.shared.config.node {
            return;
        }
        let mut peers = self.shared.peers.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get(&node) {
            peer.set_address(address);
            return;
        }
        let (peer, offered) = PeerLink::new(
            node,
            address,
            self.shared.handler.clone(),
            self.shared.metrics.peer(node),
        );
        peers.insert(node, peer.clone());
        drop(peers);
        for (lane, offered) in Lane::ALL.into_iter().zip(offered) {
            self.spawn(peer::run_lane(self.shared.clone(), peer.clone(), lane, offered));
        }
    }

    /// Sends a request and waits for its answer; in order per peer and lane (`lane-order`).
    ///
    /// # Errors
    /// See [`RequestError`]; [`RequestError::is_outcome_unknown`] tells whether the peer may have acted.
    ///
    /// # Cancel safety
    /// Dropping the future forgets the answer; the request is not sent if it was not yet.
    pub async fn request(
        &self,
        peer: NodeId,
        lane: Lane,
        kind: u8,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, RequestError> {
        self.request_queued(peer, lane, kind, payload, deadline).await
    }

    /// Like [`Links::request`], but the request stands in the queue when this returns: callers can pipeline.
    pub fn request_queued(
        &self,
        peer: NodeId,
        lane: Lane,
        kind: u8,
        payload: Bytes,
        deadline: Duration,
    ) -> impl Future<Output = Result<Bytes, RequestError>> + Send + use<> {
        let answer = match self.shared.peer(peer) {
            Some(link) => Ok(link
                .requests(lane)
                .submit(frame::Service::Node, kind, payload, deadline)),
            None => Err(RequestError::UnknownPeer { peer }),
        };
        async move { answer?.await }
    }

    /// Sends a numbered frame that survives link breaks (`forward-once`). Never blocks.
    ///
    /// `on_acked(true)`: the peer has it in every outbox. `false`: the peer was forgotten, restarted, or these links were
    /// closed; whether it saw the frame is unknown. Called from a task of the links, in order; it must not block.
    ///
    /// # Errors
    /// [`ForwardError::Full`] beyond 64 MiB unacknowledged; `on_acked` is then not called.
    pub fn forward(
        &self,
        peer: NodeId,
        frame: Bytes,
        on_acked: impl FnOnce(bool) + Send + 'static,
    ) -> Result<(), ForwardError> {
        let link = self.shared.peer(peer).ok_or(ForwardError::UnknownPeer { peer })?;
        link.outgoing().push(frame, Box::new(on_acked))
    }

    /// The peer's incarnation is Down: its unacknowledged frames complete with `false` and are dropped.
    pub fn forget_peer(&self, peer: NodeId) {
        if let Some(link) = self.shared.peer(peer) {
            link.outgoing().forget();
        }
    }

    /// Asks the peer to push frames: it sees `kind` and `hello` in [`PeerHandler::stream`].
    ///
    /// # Errors
    /// There is no link, or it broke meanwhile.
    pub async fn open_stream(&self, peer: NodeId, kind: u8, hello: Bytes) -> Result<FrameSource, LinkError> {
        let link = self.shared.peer(peer).ok_or(LinkError::UnknownPeer { node: peer })?;
        stream::open(&link, kind, hello).await
    }

    /// Both connections to the peer stand.
    pub fn is_up(&self, peer: NodeId) -> bool {
        self.shared.peer(peer).is_some_and(|link| link.is_up())
    }

    /// Since when nothing at all has come from the peer, to 0.1 s. `None`: nothing ever has.
    pub fn silent_for(&self, peer: NodeId) -> Option<Duration> {
        self.shared.peer(peer)?.silent_for()
    }

    /// The number of the peer's process, once it has been linked.
    pub fn peer_start(&self, peer: NodeId) -> Option<u64> {
        self.shared.peer(peer)?.start()
    }

    /// Where this node listens for its peers.
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.local_addr
    }

    /// Ends all links and tasks. Requests and forwarded frames under way complete as unknown.
    pub async fn close(&self) {
        self.shared.closing.send_replace(true);
        self.shared.endpoint.close(connect::CLOSE_SHUTDOWN, b"node stops");
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        while tasks.join_next().await.is_some() {}
        for peer in self.shared.peers() {
            peer.outgoing().close();
        }
        // Peers learn of the end by these packets; if they are lost, by silence.
        let _ = tokio::time::timeout(CLOSE_WAIT_MAX, self.shared.endpoint.wait_idle()).await;
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(task);
    }
}

/// Below, a scheduling hiccup of a busy machine looks like a dead peer.
const SILENCE_MIN: Duration = Duration::from_millis(100);
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// One round trip on any link that deserves the name.
const CLOSE_WAIT_MAX: Duration = Duration::from_millis(500);
