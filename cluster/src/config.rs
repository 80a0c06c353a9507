//! What a node has to know to join its cluster.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use lontra_storage::ids::NodeId;

use crate::limits::QueueLimits;
use crate::link::TlsFiles;
use crate::shared::Strategy;

/// Static membership: every node is started with the same members, shards and replication factor.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    pub node: NodeId,
    pub name: String,
    /// Unique to this process start.
    pub start: u64,
    /// Address of each node's cluster listener, this node's included.
    pub members: BTreeMap<NodeId, String>,
    pub listen: SocketAddr,
    /// Required with more than one member.
    pub tls: Option<TlsFiles>,
    pub shards: u16,
    pub replication_factor: u16,
    /// Interval of the meta group's heartbeats; shards take twice that.
    pub heartbeat: Duration,
    /// A meta leader unheard of for at most this long is replaced; shards take twice that, since their failover runs
    /// beside the lease and there are many of them.
    pub election: Duration,
    /// How long a node may serve after its last renewal was sent.
    pub lease: Duration,
    /// Where arriving snapshots wait until they are whole.
    pub spool: PathBuf,
    /// Which member of a shared group gets a message.
    pub shared_strategy: Strategy,
    pub limits: Limits,
}

/// What may change while the node runs ([`crate::Cluster::set_limits`]).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    pub queue: QueueLimits,
    pub checkpoint_interval: Duration,
    /// Retained messages of the whole cluster beyond which no more are taken; spread over the shards.
    pub retained_messages_max: Option<u64>,
    pub retained_bytes_max: Option<u64>,
    /// Delayed messages of the whole cluster beyond which no more are taken; spread over the shards.
    pub delayed_messages_max: Option<u64>,
    /// Publishes are refused while the data directory's file system has less free than this share, 0 to 1.
    pub free_space_min: f64,
}

impl ClusterConfig {
    /// Longest silence of a shard's leader before its followers stand for election.
    pub fn shard_election(&self) -> Duration {
        self.election * 2
    }
}
