//! Cluster: where messages live. Raft groups, peer links, routing, leases. No MQTT packets, no RocksDB.
//!
//! ```text
//!   node ─▶ Cluster ─┬─ control  (admission, lease, changes of the control plane, barriers)
//!                    ├─ publisher (durable path: this node's batches, one sender per shard)
//!                    ├─ forward   (ephemeral path: numbered frames to nodes with a matching session)
//!                    ├─ reader    (session queues), retained  delivery, follow ─▶ Local (node)
//!                    ├─ access    (users, rules, bans, keys: changes, and when they are in effect)
//!                    └─ leaders' upkeep: leader (meta), wills, delayed, shared (groups), sweep
//! ```
//!
//! The promises and the interleavings that the rules prevent: ARCHITECTURE.md, invariants by name.

pub mod access;
pub mod clock;
mod config;
mod control;
mod delayed;
mod delivery;
mod error;
mod follow;
mod forward;
mod group;
pub mod inspect;
mod late_connects;
mod leader;
pub mod lease;
mod ledger_metrics;
pub mod limits;
pub mod link;
pub mod local;
mod metrics;
mod operations;
mod pieces;
mod progress;
mod publisher;
mod publishing;
mod reader;
mod requests;
mod retained;
pub mod routes;
mod serve_peers;
mod shard_map;
pub mod shared;
mod slow_log;
mod start;
mod sweep;
mod wills;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use lontra_storage::Storage;
use lontra_storage::ids::{GroupId, NodeId, ShardId};
use lontra_storage::message::{Message, Recipient};
use lontra_storage::meta::MetaView;
use lontra_storage::shard::RetainedSize;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

pub use config::{ClusterConfig, Limits};
pub use error::{ClusterError, MetaError};
pub use metrics::ClusterMetrics;
pub use operations::{Attached, ConnectRequest, GroupStatus};
pub use publishing::{DelayedPublish, DurablePublish, Publisher};
pub use reader::PageLimits;
pub use requests::RetainedRequest;
pub use retained::Owed;
pub use shard_map::ShardMap;

use delivery::{Followers, ShardView};
use group::{Group, ProposeError, Proposed};
use lease::{Lease, Renewed};
use link::{Lane, Links, RequestError};
use local::Local;
use publisher::{ShardRequest, ShardSender};
use routes::TopicMatch;
use shared::WaitingGroups;

/// A node's handle of its cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
    tasks: Arc<Mutex<JoinSet<()>>>,
}

/// What every task of the cluster part sees.
pub(crate) struct Inner {
    config: ClusterConfig,
    /// Those of `config` at first.
    limits: watch::Sender<Limits>,
    shards: ShardMap,
    storage: Arc<Storage>,
    meta_view: MetaView,
    meta: Group,
    /// The shard groups that this node holds.
    groups: BTreeMap<ShardId, Group>,
    /// By shard, held or followed.
    views: Vec<Arc<ShardView>>,
    followers: Vec<Arc<Followers>>,
    links: OnceLock<Arc<Links>>,
    senders: OnceLock<Vec<ShardSender>>,
    local: Arc<dyn Local>,
    lease: Arc<Lease>,
    metrics: ClusterMetrics,
    /// Guards what the meta leader knows of renewals; empty on the others.
    renewed: Mutex<BTreeMap<NodeId, Renewed>>,
    /// Guards how far meta had come at recent moments.
    applied_history: Mutex<std::collections::VecDeque<(Duration, lontra_storage::ids::MetaIndex)>>,
    barrier_changed: Notify,
    /// The highest meta index that is known to be applied everywhere.
    barrier_reached: std::sync::atomic::AtomicU64,
    /// Guards where leaders of groups that this node is no member of were last seen.
    leader_hints: Mutex<HashMap<GroupId, NodeId>>,
    next_request: std::sync::atomic::AtomicU64,
    /// What the node part wants told to whoever inspects this node.
    about: OnceLock<Bytes>,
    node_routes: operations::NodeRoutes,
    connects: Arc<late_connects::ConnectsUnderWay>,
    /// It stops: it takes over no leadership any more.
    leaving: std::sync::atomic::AtomicBool,
    /// Its log is not synced in time: it gives its leaderships away.
    slow_log: std::sync::atomic::AtomicBool,
    /// The runtime that the cluster part was started on: workers call from their own.
    runtime: tokio::runtime::Handle,
    waiting: Arc<WaitingGroups>,
    /// Wakes the sweeper.
    upkeep: Arc<Notify>,
    ended: Arc<sweep::Ended>,
    /// Wakes the publisher of wills.
    wills: Arc<Notify>,
    in_effect: Arc<access::InEffect>,
}

impl Inner {
    pub(crate) fn group(&self, group: GroupId) -> Option<&Group> {
        match group.as_shard() {
            None => Some(&self.meta),
            Some(shard) => self.groups.get(&shard),
        }
    }

    /// Who leads a group, as far as this node knows: members know by Raft, others by hearsay or guess.
    pub(crate) fn leader_of(&self, group: GroupId) -> Option<NodeId> {
        if let Some(group) = self.group(group) {
            return group.leader();
        }
        let hint = self
            .leader_hints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&group)
            .copied();
        hint.filter(|leader| self.is_linked(*leader)).or_else(|| {
            let shard = group.as_shard()?;
            self.shards.replicas(shard).find(|replica| self.is_linked(*replica))
        })
    }

    /// `None` forgets: the next guess is the first replica that answers.
    pub(crate) fn note_leader(&self, group: GroupId, leader: Option<NodeId>) {
        let mut hints = self.leader_hints.lock().unwrap_or_else(PoisonError::into_inner);
        match leader {
            Some(leader) => hints.insert(group, leader),
            None => hints.remove(&group),
        };
    }

    /// Proposes a bundle to whoever leads the group. Queued before this returns, so that callers can pipeline.
    pub(crate) fn propose(
        self: &Arc<Self>,
        group: GroupId,
        bundle: Bytes,
        lane: Lane,
    ) -> BoxFuture<'static, Result<Proposed, ProposeError>> {
        let leader = self.leader_of(group);
        if leader == Some(self.config.node)
            && let Some(local) = self.group(group)
        {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            local.propose(
                bundle,
                Box::new(move |result| {
                    let _ = sender.send(result);
                }),
            );
            return Box::pin(async move { receiver.await.unwrap_or(Err(ProposeError::Unknown)) });
        }
        let (Some(leader), Some(links)) = (leader, self.links.get()) else {
            return Box::pin(async { Err(ProposeError::NotLeader { leader: None }) });
        };
        let payload = requests::encode_propose(group, &bundle);
        let asked = links.request_queued(leader, lane, requests::PROPOSE, payload, PROPOSE_MAX);
        let inner = self.clone();
        Box::pin(async move {
            let result = match asked.await {
                Ok(bytes) => requests::decode_proposed(&bytes).unwrap_or(Err(ProposeError::Unknown)),
                Err(error) if error.is_outcome_unknown() => Err(ProposeError::Unknown),
                Err(RequestError::QueueFull { .. }) => Err(ProposeError::Busy),
                Err(_) => Err(ProposeError::NotLeader { leader: None }),
            };
            match &result {
                Ok(_) => inner.note_leader(group, Some(leader)),
                Err(ProposeError::NotLeader { leader }) => inner.note_leader(group, *leader),
                Err(ProposeError::Busy | ProposeError::Unknown) => inner.note_leader(group, None),
            }
            result
        })
    }

    /// Hands something to the sender of a shard.
    pub(crate) fn send(&self, shard: ShardId, request: ShardRequest) {
        let sender = self.senders.get().and_then(|senders| senders.get(usize::from(shard.0)));
        if let Some(sender) = sender {
            sender.send(request);
        }
    }

    /// Matches a message as of now: its recipients, and the version of the routes.
    pub(crate) fn match_message(&self, message: &Message) -> (Arc<[Recipient]>, u64) {
        let matched = self.match_topic(message);
        let recipients = matched.recipients(message.qos, message.retain, message.publisher);
        (recipients, matched.matched.route_version)
    }

    fn match_topic(&self, message: &Message) -> TopicMatch {
        let matched = self.meta_view.read().match_topic(&message.topic);
        TopicMatch::new(&message.topic, self.shards.shard_of(&message.topic), matched)
    }

    /// To members of shared groups that take the message at QoS 0, which no shard keeps for them.
    pub(crate) fn give_to_groups(self: &Arc<Self>, message: &Message) {
        let turn = self.next_request.fetch_add(1, std::sync::atomic::Ordering::Relaxed) as usize;
        let matched = self.match_topic(message);
        let given = matched.given(message.qos, |connected| turn % connected.len().max(1));
        if !given.is_empty() {
            self.publish_ephemeral(Arc::new(message.clone()), &[], given, None);
        }
    }

    /// Whether the file system of the data directory is below its watermark.
    pub(crate) fn is_disk_low(&self) -> bool {
        match self.storage.free_space() {
            Ok(space) => (space.available as f64) < space.total as f64 * self.limits.borrow().free_space_min,
            // What cannot be asked is not known to be full; writes will tell.
            Err(_) => false,
        }
    }

    /// Retained messages of the whole cluster.
    pub(crate) fn retained_size(&self) -> RetainedSize {
        let mut retained = RetainedSize::default();
        for size in self.views.iter().map(|view| view.retained()) {
            retained.count += size.count;
            retained.bytes += size.bytes;
        }
        retained
    }

    pub(crate) fn update_metrics(&self) {
        let mut leads = 0;
        for group in std::iter::once(&self.meta).chain(self.groups.values()) {
            leads += usize::from(group.is_leader() && group.id != GroupId::META);
            self.metrics.group(group.id, group.term(), group.applied.current());
        }
        self.metrics.leaders(leads);
        self.metrics.retained(self.retained_size());
        self.metrics.delayed(self.delayed_size());
        if let Ok(space) = self.storage.free_space() {
            self.metrics.disk(space.available, space.total);
        }
        let meta = self.meta_view.read();
        self.metrics.control_plane(meta.route_count(), meta.session_counts().0);
    }
}

/// Whoever waits for a proposal gives up, or sends it again, before: until then an answer that comes late still counts.
const PROPOSE_MAX: Duration = publisher::ANSWER_KEPT;
