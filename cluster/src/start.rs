//! Starting and stopping the cluster part of a node: reads as a list.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use lontra_storage::command::MetaOp;
use lontra_storage::ids::{GroupId, MetaIndex, NodeId, ShardId};
use lontra_storage::message::{Message, Recipient};
use lontra_storage::meta::{Meta, MetaView};
use lontra_storage::{GroupState, Storage};

use lontra_storage::shard::{Shard, read_delayed_size, read_head, read_ledger, read_retained_size};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use crate::access::InEffect;
use crate::clock::LogClock;
use crate::config::ClusterConfig;
use crate::delivery::{ControlEvent, Followers, MetaDelivery, ShardDelivery, ShardView};
use crate::error::ClusterError;
use crate::group::{Group, GroupParts, ProposeError, Proposed, raft_config, shut_down};
use crate::late_connects::ConnectsUnderWay;
use crate::lease::Lease;
use crate::link::{Lane, LinkConfig, LinkMetrics, Links, RaftNetworkFactory, RaftRegistry};
use crate::local::Local;
use crate::metrics::ClusterMetrics;
use crate::progress::Progress;
use crate::publisher::{Propose, ShardSender};
use crate::publishing::Publisher;
use crate::serve_peers::ServePeers;
use crate::shard_map::ShardMap;
use crate::shared::WaitingGroups;
use crate::{Cluster, Inner, control, delayed, follow, leader, shared, slow_log, sweep, wills};

impl Cluster {
    /// Starts every group that this node holds, links with the peers, and asks to be admitted. Returns before it is:
    /// [`Cluster::lease`] tells when the node may serve.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub async fn start(
        config: ClusterConfig,
        storage: Arc<Storage>,
        local: Arc<dyn Local>,
        metrics: ClusterMetrics,
        link_metrics: LinkMetrics,
    ) -> Result<(Cluster, Publisher), ClusterError> {
        let members: Vec<NodeId> = config.members.keys().copied().collect();
        let shards = ShardMap::new(members.clone(), config.shards, config.replication_factor);
        let rafts = Arc::new(RaftRegistry::<GroupState>::new(config.spool.clone(), storage.clone()));
        let meta_config = raft_config(config.heartbeat, config.election)?;
        let shard_config = raft_config(config.heartbeat * 2, config.shard_election())?;
        let lease = Arc::new(Lease::default());
        let meta_view = MetaView::default();
        let (events, event_receiver) = mpsc::unbounded_channel();
        let (upkeep, wills) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let waiting = Arc::new(WaitingGroups::default());
        let ended = Arc::new(sweep::Ended::default());
        let network = |group| RaftNetworkFactory::new(rafts.links(), group, config.shard_election());

        let connects = Arc::new(ConnectsUnderWay::default());
        let in_effect = Arc::new(InEffect::default());
        let meta = {
            let (clock, applied) = (Arc::new(LogClock::default()), Arc::new(Progress::default()));
            let sink = MetaDelivery {
                node: config.node,
                local: local.clone(),
                lease: lease.clone(),
                view: meta_view.clone(),
                clock: clock.clone(),
                applied: applied.clone(),
                events: events.clone(),
                upkeep: upkeep.clone(),
                ended: ended.clone(),
                wills: wills.clone(),
                connects: connects.clone(),
                in_effect: in_effect.clone(),
            };
            let machine = Meta::new(meta_view.clone(), Arc::new(sink));
            let stored = storage.group(GroupId::META, Box::new(machine))?;
            clock.observe(meta_view.read().log_time());
            // What the tables show already is not emitted again.
            applied.advance(stored.2.applied_index()?);
            let parts = GroupParts {
                id: GroupId::META,
                clock,
                applied,
                storage: Arc::downgrade(&storage),
            };
            Group::start(parts, config.node, meta_config, network(GroupId::META), stored).await?
        };
        rafts.insert(GroupId::META, meta.raft.clone());

        let (mut groups, mut views, mut followers) = (BTreeMap::new(), Vec::new(), Vec::new());
        for shard in shards.shards() {
            let view = Arc::new(ShardView::default());
            let followed_by = Arc::new(Followers::new(meta_view.clone(), shards.has_followers()));
            if shards.holds(config.node, shard) {
                let sink = ShardDelivery {
                    local: local.clone(),
                    view: view.clone(),
                    applied: Arc::new(Progress::default()),
                    followers: followed_by.clone(),
                    waiting: waiting.clone(),
                };
                let group = start_shard(shard, &config, &storage, sink, shard_config.clone(), network).await?;
                rafts.insert(group.id, group.raft.clone());
                groups.insert(shard, group);
            }
            views.push(view);
            followers.push(followed_by);
        }

        let inner = Arc::new(Inner {
            shards,
            storage,
            meta_view,
            meta,
            groups,
            views,
            followers,
            links: OnceLock::new(),
            senders: OnceLock::new(),
            local,
            lease,
            metrics,
            renewed: Mutex::new(BTreeMap::new()),
            applied_history: Mutex::default(),
            barrier_changed: Notify::new(),
            barrier_reached: AtomicU64::new(0),
            leader_hints: Mutex::new(HashMap::new()),
            next_request: AtomicU64::new(1),
            about: OnceLock::new(),
            node_routes: crate::operations::NodeRoutes::default(),
            connects,
            leaving: AtomicBool::new(false),
            slow_log: AtomicBool::new(false),
            runtime: tokio::runtime::Handle::current(),
            waiting,
            upkeep,
            ended,
            wills,
            in_effect,
            limits: watch::Sender::new(config.limits),
            config,
        });
        start_links(&inner, rafts, link_metrics).await?;
        start_senders(&inner);
        form_groups(&inner).await?;
        let tasks = start_tasks(&inner, event_receiver);
        let publisher = Publisher::new(inner.clone());
        let tasks = Arc::new(Mutex::new(tasks));
        Ok((Cluster { inner, tasks }, publisher))
    }

    /// Stops serving, ends the links and the groups. What was acknowledged is on disk already.
    pub async fn stop(&self) {
        let incarnation = self.inner.lease.incarnation();
        self.inner.lease.revoke();
        self.inner.local.serving_changed();
        // Ended first: this node must not ask to be admitted again.
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        if incarnation.0 != 0 && self.inner.config.members.len() > 1 {
            // It serves nobody any more: barriers and wills need not wait until its lease has run out.
            let down = MetaOp::NodeDown {
                node: self.inner.config.node,
                incarnation,
            };
            let _ = self.inner.change_meta("leaving", &[down], LEAVE_MAX).await;
        }
        // Before the groups: peers need not ask what only answers that it has stopped.
        if let Some(links) = self.inner.links.get() {
            links.close().await;
        }
        let groups = std::iter::once(&self.inner.meta).chain(self.inner.groups.values());
        // All at once: each may wait for the disk. What is given up here ends when the storage is closed.
        let ends: Vec<_> = groups.map(|group| shut_down(group.raft.clone())).collect();
        let _ = tokio::time::timeout(STOP_MAX, futures_util::future::join_all(ends)).await;
    }
}

async fn start_shard(
    shard: ShardId,
    config: &ClusterConfig,
    storage: &Arc<Storage>,
    sink: ShardDelivery,
    raft_config: Arc<openraft::Config>,
    network: impl Fn(GroupId) -> RaftNetworkFactory,
) -> Result<Group, ClusterError> {
    let id = GroupId::shard(shard);
    let (view, applied) = (sink.view.clone(), sink.applied.clone());
    let stored = storage.group(id, Box::new(Shard::new(shard, Arc::new(sink))))?;
    let (offset, log_time) = read_head(&stored.2)?;
    view.offset.advance(offset.0);
    view.clock.observe(log_time);
    view.note_retained(read_retained_size(&stored.2)?);
    view.note_delayed(read_delayed_size(&stored.2)?);
    view.note_ledger(read_ledger(&stored.2)?);
    applied.advance(stored.2.applied_index()?);
    let parts = GroupParts {
        id,
        clock: view.clock.clone(),
        applied,
        storage: Arc::downgrade(storage),
    };
    Group::start(parts, config.node, raft_config, network(id), stored).await
}

async fn start_links(
    inner: &Arc<Inner>,
    rafts: Arc<RaftRegistry<GroupState>>,
    metrics: LinkMetrics,
) -> Result<(), ClusterError> {
    let config = &inner.config;
    let peers: BTreeMap<NodeId, String> = config
        .members
        .iter()
        .filter(|(node, _)| **node != config.node)
        .map(|(n, a)| (*n, a.clone()))
        .collect();
    if peers.is_empty() {
        return Ok(());
    }
    let tls = config.tls.clone().ok_or(ClusterError::NoCertificates {
        members: config.members.len(),
    })?;
    for peer in peers.keys() {
        inner.metrics.add_peer(*peer);
    }
    let link_config = LinkConfig {
        node: config.node,
        cluster: config.name.clone(),
        start: config.start,
        listen: config.listen,
        peers,
        tls,
        silence_max: LinkConfig::SILENCE_MAX,
    };
    let handler = Arc::new(ServePeers::default());
    handler.bind(inner);
    let links = Links::start(link_config, handler, rafts, metrics).await?;
    let _ = inner.links.set(links);
    Ok(())
}

fn start_senders(inner: &Arc<Inner>) {
    let senders = inner
        .shards
        .shards()
        .map(|shard| {
            let propose = Arc::new(ProposeToShard {
                inner: Arc::downgrade(inner),
                shard,
            });
            let answer_max = inner.config.shard_election();
            ShardSender::start(
                inner.config.node,
                shard,
                propose,
                inner.local.clone(),
                inner.metrics.clone(),
                answer_max,
            )
        })
        .collect();
    let _ = inner.senders.set(senders);
}

async fn form_groups(inner: &Arc<Inner>) -> Result<(), ClusterError> {
    inner.meta.form(inner.config.members.keys().copied()).await?;
    for (shard, group) in &inner.groups {
        group.form(inner.shards.replicas(*shard)).await?;
    }
    Ok(())
}

fn start_tasks(inner: &Arc<Inner>, events: mpsc::UnboundedReceiver<ControlEvent>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(control::keep_lease(inner.clone()));
    tasks.spawn(control::watch_serving(inner.clone()));
    tasks.spawn(control::follow_meta(inner.clone(), events));
    tasks.spawn(leader::run(inner.clone()));
    tasks.spawn(leader::spread(inner.clone()));
    tasks.spawn(slow_log::run(inner.clone()));
    tasks.spawn(sweep::run(inner.clone()));
    tasks.spawn(wills::run(inner.clone()));
    tasks.spawn(delayed::run(inner.clone()));
    tasks.spawn(shared::run(inner.clone()));
    tasks.spawn(checkpoint(inner.clone()));
    tasks.spawn(purge_logs(inner.clone()));
    for shard in inner.shards.shards().filter(|shard| !inner.groups.contains_key(shard)) {
        tasks.spawn(follow::run(inner.clone(), shard));
    }
    tasks
}

/// Makes the state durable from time to time, so that the logs can be purged up to it.
async fn checkpoint(inner: Arc<Inner>) {
    let mut limits = inner.limits.subscribe();
    loop {
        let last = tokio::time::Instant::now();
        loop {
            let interval = limits.borrow_and_update().checkpoint_interval;
            tokio::select! {
                () = tokio::time::sleep_until(last + interval) => break,
                // Another interval, from the last checkpoint on; `inner` holds the sender.
                Ok(()) = limits.changed() => {}
            }
        }
        if let Err(error) = inner.storage.checkpoint().await {
            tracing::error!(%error, "checkpoint failed; the logs keep growing until one succeeds");
            continue;
        }
        for group in std::iter::once(&inner.meta).chain(inner.groups.values()) {
            let _ = group.raft.trigger().snapshot().await;
        }
    }
}

/// Beside the checkpoints: followers that lagged at one have caught up soon after.
async fn purge_logs(inner: Arc<Inner>) {
    loop {
        tokio::time::sleep(PURGE_INTERVAL).await;
        for group in std::iter::once(&inner.meta).chain(inner.groups.values()) {
            let flushed = inner.storage.durable(group.id);
            group.purge(flushed, |node| inner.is_linked(node)).await;
        }
    }
}

struct ProposeToShard {
    inner: std::sync::Weak<Inner>,
    shard: ShardId,
}

impl Propose for ProposeToShard {
    fn propose(&self, bundle: bytes::Bytes) -> BoxFuture<'static, Result<Proposed, ProposeError>> {
        match self.inner.upgrade() {
            Some(inner) => inner.propose(GroupId::shard(self.shard), bundle, Lane::Data),
            None => Box::pin(std::future::ready(Err(ProposeError::Unknown))),
        }
    }

    fn led_by_another(&self) -> BoxFuture<'static, ()> {
        let group = self
            .inner
            .upgrade()
            .and_then(|inner| inner.groups.get(&self.shard).cloned());
        match group.map(|group| (group.leader(), group)) {
            Some((leader, group)) => Box::pin(async move { group.led_by_another(leader).await }),
            // Who holds no replica is told by the leader it asks, or by the link.
            None => Box::pin(std::future::pending()),
        }
    }

    fn routes_reach(&self, floor: MetaIndex) -> BoxFuture<'static, ()> {
        let inner = self.inner.clone();
        Box::pin(async move {
            while let Some(inner) = inner.upgrade() {
                if inner.meta.applied.reach(floor.0, ROUTES_WAIT).await {
                    return;
                }
            }
        })
    }

    fn rematch(&self, message: &bytes::Bytes) -> (Arc<[Recipient]>, u64) {
        match (self.inner.upgrade(), Message::decode(message)) {
            (Some(inner), Ok(message)) => inner.match_message(&message),
            // The node stops; what this node encoded decodes.
            (None, _) | (_, Err(_)) => (Arc::from([]), 0),
        }
    }
}

/// A look at every group costs microseconds.
const PURGE_INTERVAL: Duration = Duration::from_secs(1);
/// One wait for routes; repeated while the node lives.
const ROUTES_WAIT: Duration = Duration::from_secs(1);

/// Longer than an election: a node that stops may have led meta until just now.
const LEAVE_MAX: Duration = Duration::from_secs(1);
/// With the wait for peers to be told, within what the node gives the cluster part to stop.
const STOP_MAX: Duration = Duration::from_secs(1);
