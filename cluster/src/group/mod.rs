//! One running Raft group on this node.
//!
//!     bundles ─▶ Proposer (what has queued becomes one entry, a few in flight) ─▶ Raft ─▶ apply ─▶ one reply per bundle
//!
//! What a group's state machine means stands in `storage`; here it is started, proposed to, and waited for.

mod proposer;
mod purge;
mod rounds;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use lontra_storage::command::encode_envelope;
use lontra_storage::ids::{GroupId, NodeId};
use lontra_storage::machine::Tables;
use lontra_storage::raft_types::{LeaderId, TypeConfig};
use lontra_storage::{GroupLog, GroupState, Storage};
use openraft::RaftMetrics;
use openraft::alias::WatchReceiverOf;
use openraft::async_runtime::WatchReceiver;

use openraft::errors::{ClientWriteError, Fatal};
use openraft::impls::{EmptyNode, ProgressResponder};

pub use proposer::{ProposeError, ProposeSender, Proposed, Proposer};
pub use rounds::{ReadIndexError, Rounds};

use crate::clock::LogClock;
use crate::error::ClusterError;
use crate::link::{RaftNetworkFactory, Transfers};
use crate::progress::Progress;

/// A Raft handle; meta and shards share the type.
pub type Raft = openraft::Raft<TypeConfig, GroupState>;

/// A group that this node is a member of.
#[derive(Clone)]
pub struct Group {
    pub id: GroupId,
    pub raft: Raft,
    pub tables: Tables,
    pub clock: Arc<LogClock>,
    /// Log index that has been applied and handed to whoever listens.
    pub applied: Arc<Progress>,
    pub proposer: Proposer,
    pub rounds: Rounds,
    transfers: Transfers,
}

/// One leadership of a group: a node's in a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership(LeaderId);

/// What a group needs besides its storage.
pub struct GroupParts {
    pub id: GroupId,
    pub clock: Arc<LogClock>,
    pub applied: Arc<Progress>,
    /// Told when the group ends by itself.
    pub storage: Weak<Storage>,
}

impl Group {
    /// Starts the group's Raft instance, which recovers, follows, and stands for election by itself.
    ///
    /// # Errors
    /// The stored log or state cannot be recovered.
    pub async fn start(
        parts: GroupParts,
        node: NodeId,
        config: Arc<openraft::Config>,
        network: RaftNetworkFactory,
        (log, state, tables): (GroupLog, GroupState, Tables),
    ) -> Result<Group, ClusterError> {
        let GroupParts {
            id,
            clock,
            applied,
            storage,
        } = parts;
        let transfers = network.transfers();
        let raft = Raft::new(node, config, network, log, state)
            .await
            .map_err(|source| ClusterError::Recover {
                group: id,
                source: Box::new(source),
            })?;
        tokio::spawn(watch_end(id, raft.metrics(), storage));
        Ok(Group {
            id,
            tables,
            proposer: Proposer::start(raft.clone(), clock.clone()),
            rounds: Rounds::start(raft.clone()),
            raft,
            clock,
            applied,
            transfers,
        })
    }

    /// Forms the group, unless it was formed before. Every member does the same.
    ///
    /// # Errors
    /// The Raft instance has stopped.
    pub async fn form(&self, members: impl IntoIterator<Item = NodeId>) -> Result<(), ClusterError> {
        let members: BTreeMap<NodeId, EmptyNode> = members.into_iter().map(|node| (node, EmptyNode {})).collect();
        match self.raft.initialize(members).await {
            Ok(()) => Ok(()),
            // Formed before, or another member was faster.
            Err(openraft::errors::RaftError::APIError(_)) => Ok(()),
            Err(source) => Err(ClusterError::Recover {
                group: self.id,
                source: Box::new(source),
            }),
        }
    }

    /// By the same channel as [`Group::led_by_another`]: who asks for both misses no change between them.
    pub fn leader(&self) -> Option<NodeId> {
        self.raft.server_metrics().borrow_watched().current_leader
    }

    /// How far `node` has this leader's log, as far as known; 0 where this node does not lead.
    pub fn replicated_to(&self, node: NodeId) -> u64 {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let matched = metrics
            .replication
            .as_ref()
            .and_then(|nodes| nodes.get(&node)?.as_ref());
        matched.map_or(0, |id| id.index)
    }

    pub fn is_leader(&self) -> bool {
        self.raft.is_leader()
    }

    pub fn term(&self) -> u64 {
        self.raft.metrics().borrow_watched().current_term
    }

    /// This node's leadership, if it leads as far as it knows: another one after each election, even of this node again.
    pub fn leadership(&self) -> Option<Leadership> {
        let leader = self.raft.as_leader().ok()?;
        Some(Leadership(leader.to_committed_leader_id()))
    }

    /// Proposes what only this leadership may decide: under any other, of whichever node, nothing is stored.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose_under(&self, leadership: Leadership, bundle: Bytes) -> Result<Proposed, ProposeError> {
        let command = encode_envelope(self.clock.now(), &[bundle]);
        let (responder, _, complete) = ProgressResponder::<TypeConfig, _>::new();
        let write = self.raft.write(command).with_leader(leadership.0).responder(responder);
        write.await.map_err(|_| ProposeError::Unknown)?;
        match complete.await {
            Ok(Ok(written)) => Ok(Proposed {
                index: written.log_id.index,
                reply: written.data.0.into_iter().next().unwrap_or_default(),
            }),
            Ok(Err(ClientWriteError::ForwardToLeader(forward))) => Err(ProposeError::NotLeader {
                leader: forward.leader_id,
            }),
            Ok(Err(_)) | Err(_) => Err(ProposeError::Unknown),
        }
    }

    /// Resolves once this node knows that another node than `node` leads: what `node` was asked is better asked there. Of
    /// `None`, once any leads.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn led_by_another(&self, node: impl Into<Option<NodeId>>) {
        let node = node.into();
        let mut metrics = self.raft.server_metrics();
        loop {
            let leader = metrics.borrow_watched().current_leader;
            if leader.is_some() && leader != node {
                return;
            }
            if metrics.changed().await.is_err() {
                // The group has stopped.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Puts a bundle into the queue of the next entry. Answers at once; the outcome comes by `reply`.
    pub fn propose(&self, bundle: Bytes, reply: ProposeSender) {
        self.proposer.propose(bundle, reply);
    }

    /// Hands leadership to `to` once it has the whole log. Gives up after `limit`: a transfer to a lagging node would
    /// cost an election.
    ///
    /// # Cancel safety
    /// Nothing is left half done.
    pub async fn transfer(&self, to: NodeId, limit: Duration) -> bool {
        let caught_up = async {
            let mut metrics = self.raft.metrics();
            while !has_whole_log(&metrics.borrow_watched(), to) {
                if metrics.changed().await.is_err() {
                    break;
                }
            }
        };
        match tokio::time::timeout(limit, caught_up).await {
            Ok(()) if self.raft.is_leader() => self.raft.trigger().transfer_leader(to).await.is_ok(),
            _ => false,
        }
    }
}

/// Ends a Raft instance, in a task of its own: whoever waits may give up waiting.
///
/// A `Raft::shutdown` that is dropped half way leaves openraft without anybody who joins its core: every later call of the
/// group then panics ("RaftCore should have already quit").
pub(crate) fn shut_down<SM>(raft: openraft::Raft<TypeConfig, SM>) -> tokio::task::JoinHandle<()>
where
    SM: openraft::storage::RaftStateMachine<TypeConfig>,
{
    tokio::spawn(async move {
        let _ = raft.shutdown().await;
    })
}

/// A group that ends by itself neither votes nor follows any more: the node must not live on with it. Holds no handle of
/// the group, so that the last handle still ends it.
async fn watch_end(
    group: GroupId,
    metrics: WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
    storage: Weak<Storage>,
) {
    let Some(reason) = ended_by_itself(metrics).await else {
        return;
    };
    if let Some(storage) = storage.upgrade() {
        let advice = "start this node again; if only this node ends like this, replace it: the other replicas have the data; \
                      if others end at the same group too, replace none, and report it";
        storage.give_up(&format!("group {group} ended by itself: {reason}; {advice}"));
    }
}

/// Waits for the end; `None` if it was asked for.
async fn ended_by_itself(mut metrics: WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>) -> Option<String> {
    loop {
        match &metrics.borrow_watched().running_state {
            Ok(()) => {}
            Err(Fatal::Stopped) => return None,
            Err(fatal) => return Some(fatal.to_string()),
        }
        if metrics.changed().await.is_err() {
            return match &metrics.borrow_watched().running_state {
                Err(Fatal::Stopped) => None,
                Err(fatal) => Some(fatal.to_string()),
                // It told nothing before it was gone.
                Ok(()) => Some(Fatal::<TypeConfig>::Panicked.to_string()),
            };
        }
    }
}

/// Whether `to` matches the leader's log; also true once this node no longer leads.
fn has_whole_log(metrics: &RaftMetrics<TypeConfig>, to: NodeId) -> bool {
    let Some(replication) = &metrics.replication else {
        return true;
    };
    let matched = replication.get(&to).and_then(|id| id.as_ref());
    matched.map(|id| id.index) >= metrics.last_log_index
}

/// openraft's settings for a group: `election` is the longest wait, the shortest three fifths of it. Sources: `notes/raft.md` §10, DESIGN §5.
///
/// # Errors
/// The timing does not fit (checked when the configuration was loaded, so this names a bug there).
pub fn raft_config(heartbeat: Duration, election: Duration) -> Result<Arc<openraft::Config>, ClusterError> {
    let election_max = election.as_millis() as u64;
    let election_min = election_max * 3 / 5;
    let config = openraft::Config {
        cluster_name: "lontra".to_owned(),
        heartbeat_interval: heartbeat.as_millis() as u64,
        election_timeout_min: election_min,
        election_timeout_max: election_max,
        enable_pre_vote: Some(true),
        // openraft#2080: without it an old leader without a quorum can keep its followers from electing another.
        quorum_loss_probe_interval: Some(election_max * 2),
        max_payload_entries: 256,
        max_append_entries: Some(4096),
        api_channel_size: Some(1024),
        snapshot_policy: openraft::SnapshotPolicy::Never,
        // By itself it never purges (`purge.rs` does): it knows nothing of followers that lag, and a purge of its own beside
        // one that was asked for and put off would go back behind it.
        max_in_snapshot_log_to_keep: u64::MAX,
        install_snapshot_timeout: 600_000,
        replication_lag_threshold: 1000,
        enable_leader_restore: Some(false),
        // A follower that lost the end of its log is refused when it starts (`mark-behind-log`). One that slips through,
        // with its marks lost too, is sent what it lacks: a sound leader must not end because another's disk did.
        allow_log_reversion: Some(true),
        ..openraft::Config::default()
    };
    config.validate().map(Arc::new).map_err(|source| ClusterError::Timing {
        what: source.to_string(),
    })
}

#[cfg(test)]
mod tests;
