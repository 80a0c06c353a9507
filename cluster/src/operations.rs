//! What a node asks of its cluster on behalf of its connections.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use lontra_storage::command::{MetaOp, MetaReply, Subscription};
use lontra_storage::ids::{GroupId, Incarnation, MetaIndex, NodeId, Offset, SessionEpoch, SessionId, ShardId};
use lontra_storage::message::{LogTime, Message, Recipient};
use lontra_storage::meta::MetaView;
use lontra_storage::shard::Page;

use crate::error::MetaError;
use crate::lease::Lease;
use crate::local::{Outcome, Ticket};
use crate::publisher::ShardRequest;
use crate::reader::PageLimits;
use crate::routes::RouteCache;
use crate::{Cluster, Inner, ShardMap};

/// A CONNECT that was accepted by the protocol and by authentication.
#[derive(Clone, Debug)]
pub struct ConnectRequest {
    pub client_id: Box<str>,
    pub clean_start: bool,
    /// Session Expiry Interval in seconds; 0xFFFFFFFF never.
    pub expiry: u32,
}

/// The session that a connection now serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub session: SessionId,
    pub epoch: SessionEpoch,
    pub present: bool,
    pub durable: bool,
    pub incarnation: Incarnation,
    /// The meta entry that made it so.
    pub index: MetaIndex,
    /// The highest offset that was ever sent to the client, by shard; `None` if that is not known.
    pub sent: Option<Vec<Offset>>,
    /// Filters and options that the session brought along.
    pub subscriptions: Vec<Subscription>,
}

/// One Raft group as this node sees it.
#[derive(Clone, Debug)]
pub struct GroupStatus {
    pub group: GroupId,
    pub leader: Option<NodeId>,
    pub term: u64,
    pub applied: u64,
}

/// Filters with connected ephemeral subscribers on this node, and whether the cluster knows.
#[derive(Default)]
pub struct NodeRoutes {
    /// Guards the counts; never held over an await.
    counts: Mutex<HashMap<Box<str>, usize>>,
    /// Serialises proposals, so that an add never overtakes a remove of the same filter.
    order: tokio::sync::Mutex<Published>,
}

#[derive(Default)]
struct Published {
    incarnation: Incarnation,
    /// Published filters, with the entry that made them visible.
    filters: BTreeMap<Box<str>, MetaIndex>,
}

impl Cluster {
    pub fn node(&self) -> NodeId {
        self.inner.config.node
    }

    pub fn lease(&self) -> &Lease {
        &self.inner.lease
    }

    pub fn shards(&self) -> &ShardMap {
        &self.inner.shards
    }

    pub fn meta(&self) -> &MetaView {
        &self.inner.meta_view
    }

    /// A route cache for one worker.
    pub fn route_cache(&self) -> RouteCache {
        RouteCache::new(self.inner.meta_view.clone(), self.inner.shards.clone())
    }

    /// Log time of a shard as this node sees it.
    pub fn log_time(&self, shard: ShardId) -> LogTime {
        self.inner.views[usize::from(shard.0)].clock.now()
    }

    /// Makes this node the owner of the client's session. When this returns, no other connection of the client id is
    /// served anywhere (P6), and this node's view shows the session.
    ///
    /// # Errors
    /// The control plane did not answer, or this node may not serve.
    pub async fn connect(&self, request: ConnectRequest) -> Result<Attached, MetaError> {
        let incarnation = self.inner.lease.incarnation();
        let operation = MetaOp::Connect {
            client_id: request.client_id,
            clean_start: request.clean_start,
            expiry: request.expiry,
            node: self.inner.config.node,
            incarnation,
            request: self.inner.next_request.fetch_add(1, Ordering::Relaxed),
        };
        let (index, replies) = self.inner.change_meta("connect", &[operation], OPERATION_MAX).await?;
        let Some(MetaReply::Connected {
            session,
            epoch,
            present,
            durable,
            previous,
        }) = replies.into_iter().next()
        else {
            return Err(MetaError::Stale);
        };
        // A replica of a shard that is followed must know the new owner before pushes can be relied on.
        let needs_barrier = previous.is_some() || self.inner.shards.has_followers();
        if needs_barrier && let Err(error) = self.inner.barrier(index, OPERATION_MAX).await {
            self.give_back(session, epoch);
            return Err(error);
        }
        let (subscriptions, sent) = match self.inner.meta_view.read().session(session) {
            Some(state) if state.epoch == epoch => {
                let subscriptions = state.subscriptions.iter().map(|(filter, options)| Subscription {
                    filter: filter.clone(),
                    qos: options.qos,
                    no_local: options.no_local,
                    retain_as_published: options.retain_as_published,
                    identifier: options.identifier,
                });
                (subscriptions.collect(), state.sent.clone())
            }
            _ => return Err(MetaError::Stale),
        };
        Ok(Attached {
            session,
            epoch,
            present,
            durable,
            incarnation,
            index,
            sent,
            subscriptions,
        })
    }

    /// A Connect that committed will not be served: without this the session would have an owner for ever.
    pub fn give_back(&self, session: SessionId, epoch: SessionEpoch) {
        let cluster = self.clone();
        tokio::spawn(async move {
            // What an earlier connection sent is not known here. A failure is settled by NodeDown or a later Connect.
            let _ = cluster.detach(session, epoch, None, None).await;
        });
    }

    /// Whether `session` is still served under `epoch`, by this node, as of what it has applied.
    pub fn is_owner(&self, session: SessionId, epoch: SessionEpoch) -> bool {
        let meta = self.inner.meta_view.read();
        let state = meta.session(session).filter(|state| state.epoch == epoch);
        state
            .and_then(|state| state.owner)
            .is_some_and(|owner| owner.node == self.inner.config.node)
    }

    /// The connection ended; `sent` is the highest offset that it or an earlier one sent, by shard. Not waited for by anybody but the caller.
    ///
    /// # Errors
    /// The control plane did not answer: NodeDown or a later Connect settles it.
    pub async fn detach(
        &self,
        session: SessionId,
        epoch: SessionEpoch,
        expiry: Option<u32>,
        sent: Option<Vec<Offset>>,
    ) -> Result<(), MetaError> {
        let operation = MetaOp::Detach {
            session,
            epoch,
            expiry,
            sent,
        };
        self.inner
            .change_meta("disconnect", &[operation], OPERATION_MAX)
            .await
            .map(|_| ())
    }

    /// Subscribes a durable session. When this returns, every Up node matches publishes against it (P4).
    ///
    /// # Errors
    /// Not the owner any more, or the control plane did not answer.
    pub async fn subscribe(
        &self,
        session: SessionId,
        epoch: SessionEpoch,
        subscriptions: Vec<Subscription>,
    ) -> Result<(), MetaError> {
        let operation = MetaOp::Subscribe {
            session,
            epoch,
            subscriptions,
        };
        let (index, replies) = self.inner.change_meta("subscribe", &[operation], OPERATION_MAX).await?;
        if replies.first() != Some(&MetaReply::Done) {
            return Err(MetaError::Stale);
        }
        self.inner.barrier(index, OPERATION_MAX).await
    }

    /// Unsubscribes a durable session; tells which of `filters` were subscribed.
    ///
    /// # Errors
    /// As [`Cluster::subscribe`].
    pub async fn unsubscribe(
        &self,
        session: SessionId,
        epoch: SessionEpoch,
        filters: Vec<Box<str>>,
    ) -> Result<Vec<bool>, MetaError> {
        let operation = MetaOp::Unsubscribe {
            session,
            epoch,
            filters,
        };
        let (index, replies) = self
            .inner
            .change_meta("unsubscribe", &[operation], OPERATION_MAX)
            .await?;
        let Some(MetaReply::Unsubscribed { existed }) = replies.into_iter().next() else {
            return Err(MetaError::Stale);
        };
        self.inner.barrier(index, OPERATION_MAX).await?;
        Ok(existed)
    }

    /// Counts connected ephemeral subscribers of filters. When this returns, every Up node sends matching ephemeral
    /// messages here (P4). Only a filter's first subscriber costs an entry.
    ///
    /// # Errors
    /// The control plane did not answer; the counts stand, and must be taken back by [`Cluster::remove_routes`].
    pub async fn add_routes(&self, filters: &[Box<str>]) -> Result<(), MetaError> {
        {
            let mut counts = self
                .inner
                .node_routes
                .counts
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            for filter in filters {
                *counts.entry(filter.clone()).or_default() += 1;
            }
        }
        self.inner.publish_routes(filters).await
    }

    /// Takes back what [`Cluster::add_routes`] counted.
    pub fn remove_routes(&self, filters: Vec<Box<str>>) {
        let mut unused = Vec::new();
        {
            let mut counts = self
                .inner
                .node_routes
                .counts
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            for filter in filters {
                if let Some(count) = counts.get_mut(&filter) {
                    *count -= 1;
                    if *count == 0 {
                        counts.remove(&filter);
                        unused.push(filter);
                    }
                }
            }
        }
        if !unused.is_empty() {
            let inner = self.inner.clone();
            tokio::spawn(async move {
                // What fails is tried again with the next change of the same filter, or ends with the incarnation.
                let _ = inner.publish_routes(&unused).await;
            });
        }
    }

    /// A publish on the durable path. Its outcome is told to the ticket, on the result of apply.
    pub fn publish_durable(
        &self,
        shard: ShardId,
        message: Bytes,
        recipients: Arc<[Recipient]>,
        route_version: u64,
        ticket: Ticket,
    ) {
        if self.inner.lease.is_disk_low(shard) {
            self.inner.local.completed(vec![(ticket, Outcome::DiskLow)]);
            return;
        }
        self.send(
            shard,
            ShardRequest::Publish {
                message,
                recipients,
                route_version,
                ticket,
            },
        );
    }

    /// A client acknowledged a message: its entry leaves the session's queue. The outcome frees the Packet Identifier.
    pub fn settle(&self, shard: ShardId, session: SessionId, offset: Offset, ticket: Ticket) {
        self.send(
            shard,
            ShardRequest::Settle {
                session,
                offset,
                ticket,
            },
        );
    }

    fn send(&self, shard: ShardId, request: ShardRequest) {
        if let Some(sender) = self
            .inner
            .senders
            .get()
            .and_then(|senders| senders.get(usize::from(shard.0)))
        {
            sender.send(request);
        }
    }

    /// A publish on the ephemeral path, to connected sessions only.
    pub fn publish_ephemeral(&self, message: Arc<Message>, nodes: &[NodeId], ticket: Option<Ticket>) {
        self.inner.publish_ephemeral(message, nodes, ticket);
    }

    /// An index that a view of the shard must have applied to show everything acknowledged before this call.
    pub async fn read_index(&self, shard: ShardId) -> u64 {
        self.inner.read_index(shard).await
    }

    /// A page of a session's queue.
    ///
    /// # Errors
    /// The local replica cannot be read: the node stops.
    pub async fn read_page(
        &self,
        shard: ShardId,
        session: SessionId,
        after: Offset,
        applied: u64,
        limits: PageLimits,
    ) -> std::io::Result<Page> {
        self.inner.read_page(shard, session, after, applied, limits).await
    }

    /// Sets the gauges that are derived from state.
    pub fn update_metrics(&self) {
        self.inner.update_metrics();
    }

    /// Every group that this node is a member of, meta first.
    pub fn groups(&self) -> Vec<GroupStatus> {
        std::iter::once(&self.inner.meta)
            .chain(self.inner.groups.values())
            .map(|group| GroupStatus {
                group: group.id,
                leader: group.leader(),
                term: group.term(),
                applied: group.applied.current(),
            })
            .collect()
    }

    /// Hands every leadership to another node, as far as that goes within `limit`: for a clean stop.
    pub async fn give_up_leaderships(&self, limit: Duration) {
        let mut moves = tokio::task::JoinSet::new();
        for group in std::iter::once(&self.inner.meta).chain(self.inner.groups.values()) {
            let heirs: Vec<NodeId> = match group.id.as_shard() {
                Some(shard) => self.inner.shards.replicas(shard).collect(),
                None => self.inner.config.members.keys().copied().collect(),
            };
            let heir = heirs
                .into_iter()
                .find(|node| *node != self.node() && self.inner.is_linked(*node));
            if let Some(heir) = heir.filter(|_| group.is_leader()) {
                let group = group.clone();
                moves.spawn(async move { group.transfer(heir, limit).await });
            }
        }
        let _ = tokio::time::timeout(limit, async { while moves.join_next().await.is_some() {} }).await;
    }
}

impl Inner {
    /// Brings what the cluster knows of `filters` in line with the counts, and waits until all nodes see additions.
    async fn publish_routes(self: &Arc<Self>, filters: &[Box<str>]) -> Result<(), MetaError> {
        let visible_at = {
            let mut published = self.node_routes.order.lock().await;
            let incarnation = self.lease.incarnation();
            if published.incarnation != incarnation {
                // The routes of the old incarnation went with it.
                *published = Published {
                    incarnation,
                    filters: BTreeMap::new(),
                };
            }
            let (mut add, mut remove) = (Vec::new(), Vec::new());
            {
                let counts = self.node_routes.counts.lock().unwrap_or_else(PoisonError::into_inner);
                for filter in filters {
                    match (counts.contains_key(filter), published.filters.contains_key(filter)) {
                        (true, false) if !add.contains(filter) => add.push(filter.clone()),
                        (false, true) if !remove.contains(filter) => remove.push(filter.clone()),
                        _ => {}
                    }
                }
            }
            if !add.is_empty() || !remove.is_empty() {
                for filter in &remove {
                    published.filters.remove(filter);
                }
                let node = self.config.node;
                let operation = MetaOp::NodeRoutes {
                    node,
                    incarnation,
                    add: add.clone(),
                    remove,
                };
                let (index, replies) = self.change_meta("subscribe", &[operation], OPERATION_MAX).await?;
                if replies.first() != Some(&MetaReply::Done) {
                    return Err(MetaError::Stale);
                }
                published.filters.extend(add.into_iter().map(|filter| (filter, index)));
            }
            filters
                .iter()
                .filter_map(|filter| published.filters.get(filter))
                .max()
                .copied()
        };
        match visible_at {
            // Also for a filter that another connection added: its entry may not be everywhere yet.
            Some(index) => self.barrier(index, OPERATION_MAX).await,
            None => Ok(()),
        }
    }
}

/// Longer than a failover of the control plane takes (P10): a client that waits is better off than one that is refused.
const OPERATION_MAX: Duration = Duration::from_secs(10);
