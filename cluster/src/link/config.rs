//! What a node must know to link with its peers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use lontra_storage::ids::NodeId;

/// Who this node is, where it listens and whom it dials.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// This node's id, from 1. Must be the one in its certificate.
    pub node: NodeId,
    /// Name of the cluster; peers of another one are refused.
    pub cluster: String,
    /// Unique number of this process start: a peer that sees another one drops what it still had for the old process.
    pub start: u64,
    /// UDP address of the one endpoint; port 0 picks one, see [`Links::local_addr`](super::Links::local_addr).
    pub listen: SocketAddr,
    /// `host:port` of every other node, resolved at each dial. An entry for this node itself is ignored.
    pub peers: BTreeMap<NodeId, String>,
    pub tls: TlsFiles,
    /// A peer silent for so long is dropped and dialled anew. Shorter: a loaded machine loses links; longer: fail-over
    /// is noticed later. See [`LinkConfig::SILENCE_MAX`].
    pub silence_max: Duration,
}

impl LinkConfig {
    /// Default of `silence_max`: 1.5 s (DESIGN §8).
    pub const SILENCE_MAX: Duration = Duration::from_millis(1500);

    /// Pause between keep-alives: 0.4 s, and at least three within `silence_max`.
    pub(super) fn keep_alive(&self) -> Duration {
        KEEP_ALIVE.min(self.silence_max / 3)
    }
}

/// Where the PEM files of this node lie; see [`tls`](super::tls) for making them.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// Certificate of the cluster authority.
    pub ca: PathBuf,
    /// This node's certificate, for the name `node-<id>.<cluster>`.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Certificates that the authority has taken back: its revocation list. None: it has taken back none.
    pub crl: Option<PathBuf>,
}

/// Which of the two connections to a peer: bulk data must not delay a heartbeat in a shared send window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Heartbeats, votes, leases, barriers: small and urgent.
    Control,
    /// Batches of publishes, forwarded frames, log entries, pushes, snapshots.
    Data,
}

impl Lane {
    pub(super) const ALL: [Lane; 2] = [Lane::Control, Lane::Data];

    pub(super) fn index(self) -> usize {
        match self {
            Lane::Control => 0,
            Lane::Data => 1,
        }
    }
}

/// DESIGN §8: a third of the shortest silence that counts, so that two may be lost.
const KEEP_ALIVE: Duration = Duration::from_millis(400);
