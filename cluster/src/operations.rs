//! What a node asks of its cluster on behalf of its connections.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lontra_storage::command::{Left, MetaOp, MetaReply, ShardOperation, Subscription, Will};
use lontra_storage::ids::{GroupId, Incarnation, MetaIndex, NodeId, Offset, SessionEpoch, SessionId, ShardId};
use lontra_storage::message::LogTime;
use lontra_storage::meta::{MetaView, Session, SubscriptionOptions};
use lontra_storage::shard::{Page, RetainedPage, RetainedSize};
use lontra_storage::test_bugs::{Bug, has};

use crate::control::{ASK_MAX, RETRY_WAIT};
use crate::error::MetaError;
use crate::lease::{Lease, Serving};
use crate::ledger_metrics::{Families, LedgerCollector};
use crate::link::{FreshTls, LinkError};
use crate::local::{Guard, Outcome, Ticket};
use crate::pieces::{each, pieces};
use crate::publisher::ShardRequest;
use crate::reader::PageLimits;
use crate::requests::RetainedRequest;
use crate::retained::Owed;
use crate::routes::RouteCache;
use crate::shared::{ACKNOWLEDGED_MAX, Strategy};
use crate::{Cluster, Inner, Limits, ShardMap};

/// A CONNECT that was accepted by the protocol and by authentication.
#[derive(Clone, Debug)]
pub struct ConnectRequest {
    pub client_id: Box<str>,
    pub clean_start: bool,
    /// Session Expiry Interval in seconds; 0xFFFFFFFF never.
    pub expiry: u32,
    pub will: Option<Will>,
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
    pub subscriptions: Vec<(Box<str>, SubscriptionOptions)>,
    /// Those that are owed retained messages.
    pub owed: Vec<Owed>,
}

/// One Raft group as this node sees it.
#[derive(Clone, Debug)]
pub struct GroupStatus {
    pub group: GroupId,
    pub leader: Option<NodeId>,
    pub term: u64,
    pub applied: u64,
    /// Messages that wait in a shard for their time.
    pub delayed: u64,
}

/// Filters with connected ephemeral subscribers on this node, and whether the cluster knows.
#[derive(Default)]
pub struct NodeRoutes {
    /// Guards the counts; never held over an await.
    counts: Mutex<HashMap<Box<str>, usize>>,
    /// Serialises proposals, so that an add never overtakes a remove of the same filter.
    order: tokio::sync::Mutex<Published>,
}

impl NodeRoutes {
    fn lock_counts(&self) -> MutexGuard<'_, HashMap<Box<str>, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One subscriber fewer of each; which filters have none left.
    fn uncount(&self, filters: &[Box<str>]) -> Vec<Box<str>> {
        let mut counts = self.lock_counts();
        let mut unused = Vec::new();
        for filter in filters {
            if let Some(count) = counts.get_mut(filter) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(filter);
                    unused.push(filter.clone());
                }
            }
        }
        unused
    }
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
    /// It is proposed only as long as it `is_wanted`: a client that gave up may be served elsewhere, and would be displaced.
    ///
    /// # Errors
    /// [`MetaError::Unavailable`] and [`MetaError::Stale`]: it was not carried out. [`MetaError::Unknown`]: it was or may be
    /// yet, and is then given back.
    pub async fn connect(&self, request: ConnectRequest, is_wanted: impl Fn() -> bool) -> Result<Attached, MetaError> {
        let incarnation = self.inner.lease.incarnation();
        let client_id = request.client_id.clone();
        let under_way = {
            let request = self.inner.next_request.fetch_add(1, Ordering::Relaxed);
            self.inner.connects.begin(request)
        };
        let operation = MetaOp::Connect {
            client_id: request.client_id,
            clean_start: request.clean_start,
            expiry: request.expiry,
            will: request.will,
            node: self.inner.config.node,
            incarnation,
            request: under_way.request,
        };
        let tried = self
            .inner
            .change_meta_while("connect", &[operation], OPERATION_MAX, is_wanted)
            .await;
        let (index, replies) = match tried {
            Ok(done) => done,
            Err(error) => {
                if matches!(error, MetaError::Unknown { .. }) {
                    self.inner.give_up_connect(&client_id, incarnation, under_way);
                }
                return Err(error);
            }
        };
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
        let (subscriptions, owed, sent) = match self.inner.meta_view.read().session(session) {
            Some(state) if state.epoch == epoch => {
                let subscriptions = state.subscriptions.iter();
                let subscriptions = subscriptions.map(|(filter, options)| (filter.clone(), *options));
                (subscriptions.collect(), owed(state), state.sent.clone())
            }
            // It was, and another Connect came after it.
            _ => return Err(MetaError::Unknown { what: "connect" }),
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
            owed,
        })
    }

    /// A Connect that committed will not be served: without this the session would have an owner for ever.
    pub fn give_back(&self, session: SessionId, epoch: SessionEpoch) {
        self.inner.give_back(session, epoch);
    }

    /// Whether `session` is still served under `epoch`, by this node, as of what it has applied.
    pub fn is_owner(&self, session: SessionId, epoch: SessionEpoch) -> bool {
        let meta = self.inner.meta_view.read();
        let state = meta.session(session).filter(|state| state.epoch == epoch);
        state
            .and_then(|state| state.owner)
            .is_some_and(|owner| owner.node == self.inner.config.node)
    }

    /// The connection ended; `sent` is the highest offset that it or an earlier one sent, by shard. Its will is published
    /// unless the client took it back. [MQTT-3.14.4-3] True once that is committed, or a later Connect was; false when this
    /// incarnation ended before, so that its will may be published all the same.
    pub async fn detach(
        &self,
        session: SessionId,
        epoch: SessionEpoch,
        expiry: Option<u32>,
        sent: Option<Vec<Offset>>,
        publish_will: bool,
    ) -> bool {
        let operation = MetaOp::Detach {
            session,
            epoch,
            expiry,
            sent,
            publish_will,
        };
        self.inner.detach(operation).await
    }

    /// Subscribes a durable session, or any session to shared groups; of an ephemeral one it claims what is exclusive. When
    /// this returns, every Up node matches publishes against it (P4). Answers which are owed retained messages
    /// ([`Cluster::enqueue_retained`]), and the positions of those that another session holds exclusively.
    ///
    /// # Errors
    /// Not the owner any more, or the control plane did not answer.
    pub async fn subscribe(
        &self,
        session: SessionId,
        epoch: SessionEpoch,
        subscriptions: Vec<Subscription>,
    ) -> Result<(Vec<u32>, Vec<Owed>), MetaError> {
        let mut filters: Vec<Box<str>> = subscriptions.iter().map(|one| one.filter.clone()).collect();
        filters.sort_unstable();
        filters.dedup();
        // All or nothing where another session may hold one exclusively. Otherwise in entries as short as others'.
        let is_all_or_nothing = subscriptions.iter().any(|one| one.exclusive);
        let mut some = match is_all_or_nothing {
            true => vec![subscriptions],
            false => pieces(subscriptions, |one| one.filter.len()),
        };
        let last = some.pop().unwrap_or_default();
        let mut is_begun = false;
        for subscriptions in some {
            let operation = MetaOp::Subscribe {
                session,
                epoch,
                subscriptions,
            };
            let changed = self.inner.change_meta("subscribe", &[operation], OPERATION_MAX).await;
            let (_, replies) = changed.map_err(|error| begun(is_begun, error))?;
            let Some(MetaReply::Subscribed { .. }) = replies.into_iter().next() else {
                return Err(MetaError::Stale);
            };
            is_begun = true;
        }
        let operation = MetaOp::Subscribe {
            session,
            epoch,
            subscriptions: last,
        };
        if has(Bug::SubackBeforeCommit) {
            let inner = self.inner.clone();
            tokio::spawn(async move {
                let _ = inner.change_meta("subscribe", &[operation], OPERATION_MAX).await;
            });
            return Ok((Vec::new(), Vec::new()));
        }
        let changed = self.inner.change_meta("subscribe", &[operation], OPERATION_MAX).await;
        let (index, replies) = changed.map_err(|error| begun(is_begun, error))?;
        let Some(MetaReply::Subscribed { refused, .. }) = replies.into_iter().next() else {
            return Err(MetaError::Stale);
        };
        self.inner.barrier(index, OPERATION_MAX).await?;
        // Of these filters only: a session may be owed for a hundred thousand others.
        let meta = self.inner.meta_view.read();
        let owed = match meta.session(session) {
            Some(session) => filters.iter().filter_map(|filter| owed_for(session, filter)).collect(),
            None => Vec::new(),
        };
        Ok((refused, owed))
    }

    /// Moves retained messages into the queue of a durable session, in the background.
    pub fn enqueue_retained(&self, session: SessionId, owed: Vec<Owed>) {
        let inner = self.inner.clone();
        let incarnation = inner.lease.incarnation();
        self.inner.runtime.spawn(async move {
            // `bounded`: however many there are, an entry holds as many as others can wait for.
            for some in owed.chunks(OWED_AT_ONCE) {
                let Some(newest) = some.iter().map(|one| one.version).max() else {
                    continue;
                };
                // Its entry may be this one's Connect or an earlier one: everywhere in effect before anything is copied.
                while !inner.still_owed(session, some).is_empty() && inner.barrier(newest, OPERATION_MAX).await.is_err()
                {
                    // A node that only paused keeps its sessions and goes on; otherwise their next owner does.
                    if inner.lease.incarnation() != incarnation || inner.lease.serving() == Serving::Refusing {
                        return;
                    }
                    tokio::time::sleep(RETRY_WAIT).await;
                }
                let some = inner.still_owed(session, some);
                if !some.is_empty() {
                    inner.enqueue_retained(session, &some).await;
                }
            }
        });
    }

    /// A page of retained messages for a subscription that no shard keeps a queue for.
    ///
    /// # Errors
    /// The local replica cannot be read: the node stops.
    pub async fn read_retained(&self, request: RetainedRequest) -> std::io::Result<RetainedPage> {
        self.inner.read_retained(request).await
    }

    /// Whether a shard that this node holds retains nothing, as of `applied` or later; false where this node cannot know.
    pub async fn retains_nothing(&self, shard: ShardId, applied: u64) -> bool {
        match self.inner.groups.get(&shard) {
            // The bug is to be seen by whoever reads.
            Some(group) if !has(Bug::LocalRetainedRead) => {
                let view = &self.inner.views[usize::from(shard.0)];
                group.applied.reach(applied, ASK_MAX).await && view.retained().count == 0
            }
            _ => false,
        }
    }

    /// Waits until everything up to `offset` of a shard was handed to the node's workers; false after `limit`.
    pub async fn handed_over(&self, shard: ShardId, offset: Offset, limit: Duration) -> bool {
        self.inner.views[usize::from(shard.0)]
            .offset
            .reach(offset.0, limit)
            .await
    }

    /// Waits until this node's view of each shard shows all that was acknowledged before this call, and its messages
    /// were handed to the workers; false after `limit`.
    pub async fn catch_up(&self, shards: Vec<ShardId>, limit: Duration) -> bool {
        // It would hide the bug: the view would be as new as the SUBSCRIBE.
        if has(Bug::LocalRetainedRead) {
            return true;
        }
        let each = shards.into_iter().map(|shard| self.catch_up_with(shard, limit));
        let each = futures_util::future::join_all(each).await;
        each.into_iter().all(|caught_up| caught_up)
    }

    async fn catch_up_with(&self, shard: ShardId, limit: Duration) -> bool {
        let caught_up = async {
            let index = self.inner.read_index(shard).await;
            match self.inner.groups.get(&shard) {
                Some(group) => group.applied.reach(index, limit).await,
                // A followed shard: its replica answers once it shows that.
                None => {
                    let request = RetainedRequest {
                        shard,
                        filter: Box::from(""),
                        after: None,
                        applied: index,
                        limits: PageLimits { entries: 0, bytes: 0 },
                    };
                    match self.inner.read_retained(request).await {
                        Ok(page) => self.handed_over(shard, page.upto, limit).await,
                        Err(_) => false,
                    }
                }
            }
        };
        tokio::time::timeout(limit, caught_up).await.unwrap_or(false)
    }

    /// Reads the certificates of the links again. Blocks on the disk; nothing changes yet. None: there are no links.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn read_link_tls(&self) -> Result<Option<FreshTls>, LinkError> {
        self.inner.links.get().map(|links| links.read_tls()).transpose()
    }

    /// Links are made by these certificates from now on, and ended where the other's is good no more.
    pub fn use_link_tls(&self, fresh: FreshTls) {
        if let Some(links) = self.inner.links.get() {
            links.use_tls(fresh);
        }
    }

    /// From now on these hold: each is looked at where it is needed, nothing is remembered.
    pub fn set_limits(&self, limits: Limits) {
        self.inner.limits.send_replace(limits);
    }

    pub fn shared_strategy(&self) -> Strategy {
        self.inner.config.shared_strategy
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
        let mut existed = Vec::with_capacity(filters.len());
        let mut last = MetaIndex(0);
        for filters in pieces(filters, |filter| filter.len()) {
            let operation = MetaOp::Unsubscribe {
                session,
                epoch,
                filters,
            };
            let changed = self.inner.change_meta("unsubscribe", &[operation], OPERATION_MAX).await;
            let (index, replies) = changed.map_err(|error| begun(!existed.is_empty(), error))?;
            let Some(MetaReply::Unsubscribed { existed: some }) = replies.into_iter().next() else {
                return Err(MetaError::Stale);
            };
            existed.extend(some);
            last = index;
        }
        self.inner.barrier(last, OPERATION_MAX).await?;
        Ok(existed)
    }

    /// Counts connected ephemeral subscribers of filters: at once, so that what a connection has and what is counted for it never
    /// differ. [`Cluster::publish_routes`] tells the others.
    pub fn count_routes(&self, filters: &[Box<str>]) {
        let mut counts = self.inner.node_routes.lock_counts();
        for filter in filters {
            *counts.entry(filter.clone()).or_default() += 1;
        }
    }

    /// When this returns, every Up node sends ephemeral messages here that match what was counted (P4). Only a filter's first
    /// subscriber costs an entry.
    ///
    /// # Errors
    /// The control plane did not answer; the counts stand, and must be taken back by [`Cluster::remove_routes`].
    pub async fn publish_routes(&self, filters: Vec<Box<str>>) -> Result<(), MetaError> {
        let inner = self.inner.clone();
        if has(Bug::SubackBeforeCommit) {
            tokio::spawn(async move {
                let _ = inner.publish_routes(&filters).await;
            });
            return Ok(());
        }
        if filters.is_empty() {
            return Ok(());
        }
        // Not on the caller's thread, which serves connections: it sorts, and encodes, all of them.
        let published = self
            .inner
            .runtime
            .spawn(async move { inner.publish_routes(&filters).await });
        let failed = MetaError::Unknown { what: "subscribe" };
        published.await.unwrap_or(Err(failed))
    }

    /// Takes back what [`Cluster::count_routes`] counted.
    pub fn remove_routes(&self, filters: Vec<Box<str>>) {
        if filters.len() > UNCOUNTED_AT_ONCE {
            // `bounded`: neither the caller's thread nor the lock is held for all of them.
            let inner = self.inner.clone();
            self.inner.runtime.spawn(async move {
                for some in filters.chunks(UNCOUNTED_AT_ONCE) {
                    let unused = inner.node_routes.uncount(some);
                    inner.unpublish_routes(unused).await;
                }
            });
            return;
        }
        let unused = self.inner.node_routes.uncount(&filters);
        if !unused.is_empty() {
            let inner = self.inner.clone();
            self.inner
                .runtime
                .spawn(async move { inner.unpublish_routes(unused).await });
        }
    }

    /// An entry leaves the session's queue: acknowledged, or dropped by its owner. The outcome frees the Packet
    /// Identifier.
    pub fn settle(&self, shard: ShardId, session: SessionId, offset: Offset, how: Left, ticket: Ticket) {
        let request = ShardRequest::Settle {
            session,
            offset,
            how,
            ticket,
        };
        self.inner.send(shard, request);
    }

    /// Waits until what this node has sent to these shards so far has been applied, or its incarnation ends.
    pub async fn settled(&self, shards: Vec<ShardId>) {
        let flush = |shard| {
            let (applied, answer) = tokio::sync::oneshot::channel();
            self.inner.send(shard, ShardRequest::Flush { applied });
            answer
        };
        futures_util::future::join_all(shards.into_iter().map(flush)).await;
    }

    /// A client answered a message with PUBREC. The outcome lets PUBREL go. [MQTT-4.3.3-5]
    pub fn release(&self, shard: ShardId, session: SessionId, offset: Offset, ticket: Ticket) {
        let request = ShardRequest::Release {
            session,
            offset,
            ticket,
        };
        self.inner.send(shard, request);
    }

    /// A client released a QoS 2 publish of its own; in every shard if it is not known which has it. The outcome lets
    /// PUBCOMP go. [MQTT-4.3.3-11]
    pub fn release_received(
        &self,
        shard: Option<ShardId>,
        session: SessionId,
        epoch: SessionEpoch,
        packet_id: u16,
        ticket: Ticket,
    ) {
        let local = Arc::downgrade(&self.inner);
        let done = Guard::new(move || {
            if let Some(inner) = local.upgrade() {
                inner.local.completed(vec![(ticket, Outcome::Done)]);
            }
        });
        let shards: Vec<ShardId> = match shard {
            Some(shard) => vec![shard],
            None => self.inner.shards.shards().collect(),
        };
        for shard in shards {
            let request = ShardRequest::ReleaseReceived {
                session,
                epoch,
                packet_id,
                done: done.clone(),
            };
            self.inner.send(shard, request);
        }
    }

    /// Whether a QoS 2 publish of the session that was not released came under `packet_id`, in any shard: what is refused now
    /// may be the repeat of one that an earlier connection published. `None` if that cannot be told in time.
    ///
    /// Nothing of an earlier connection is recorded any more once this has begun to read: each shard first applies an operation
    /// of this epoch, unless it `is_fenced` by an earlier answer of this.
    pub async fn is_received(
        &self,
        session: SessionId,
        epoch: SessionEpoch,
        packet_id: u16,
        is_fenced: bool,
    ) -> Option<bool> {
        let looked = async {
            if !is_fenced {
                self.fence_earlier(session, epoch).await?;
            }
            let shards = self.inner.shards.shards();
            let each = shards.map(|shard| self.inner.read_received(shard, session, packet_id));
            Some(futures_util::future::join_all(each).await)
        };
        let each = tokio::time::timeout(OPERATION_MAX, looked).await.ok()??;
        let each: std::io::Result<Vec<bool>> = each.into_iter().collect();
        let each = each.inspect_err(|error| tracing::error!(%error, "QoS 2 identifiers cannot be read"));
        Some(each.ok()?.contains(&true))
    }

    /// When this returns, no shard records a QoS 2 publish of an earlier epoch any more (`one-owner`). `None`: this incarnation
    /// has ended.
    async fn fence_earlier(&self, session: SessionId, epoch: SessionEpoch) -> Option<()> {
        let (told, applied) = tokio::sync::oneshot::channel();
        let done = Guard::new(move || {
            let _ = told.send(());
        });
        for shard in self.inner.shards.shards() {
            let request = ShardRequest::ReleaseReceived {
                session,
                epoch,
                packet_id: NO_PACKET_ID,
                done: done.clone(),
            };
            self.inner.send(shard, request);
        }
        drop(done);
        applied.await.ok()
    }

    /// What a member of a shared group was assigned under an earlier connection goes back to the group.
    pub fn unassign(&self, shard: ShardId, session: SessionId, offsets: Vec<Offset>) {
        let operation = ShardOperation::Unassign { session, offsets };
        let inner = self.inner.clone();
        self.inner.runtime.spawn(async move {
            // The earlier connection's acknowledgements of them may still be on their way.
            tokio::time::sleep(ACKNOWLEDGED_MAX).await;
            let (reply, _) = tokio::sync::oneshot::channel();
            inner.send(shard, ShardRequest::Upkeep { operation, reply });
        });
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
    /// Where the messages of this node's shards are, for the registry of its metrics.
    pub fn ledgers(&self) -> Box<dyn prometheus::core::Collector> {
        let view = |shard: &ShardId| (*shard, self.inner.views[usize::from(shard.0)].clone());
        Box::new(LedgerCollector {
            views: self.inner.groups.keys().map(view).collect(),
            families: Families::default(),
        })
    }

    pub fn update_metrics(&self) {
        self.inner.update_metrics();
    }

    /// Retained messages of the whole cluster, as far as this node's views are.
    pub fn retained_size(&self) -> RetainedSize {
        self.inner.retained_size()
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
                delayed: group
                    .id
                    .as_shard()
                    .map_or(0, |shard| self.inner.views[usize::from(shard.0)].delayed().count),
            })
            .collect()
    }

    /// Hands every leadership to another node, as far as that goes within `limit`: for a clean stop. The meta leader is told
    /// first, who would hand some back to even them out.
    pub async fn give_up_leaderships(&self, limit: Duration) {
        self.inner.leaving.store(true, Ordering::Release);
        // A leader that does not answer spreads nothing either.
        self.inner.tell_meta_leader(limit.min(ASK_MAX)).await;
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

/// What the failure of a later piece says of the whole: those before it stand.
fn begun(is_begun: bool, error: MetaError) -> MetaError {
    match error {
        MetaError::Unavailable { what } if is_begun => MetaError::Unknown { what },
        error => error,
    }
}

fn owed(session: &Session) -> Vec<Owed> {
    let filters = session.retained_owed.keys();
    filters.filter_map(|filter| owed_for(session, filter)).collect()
}

/// What a subscription is owed, if it is.
fn owed_for(session: &Session, filter: &str) -> Option<Owed> {
    Some(Owed {
        filter: filter.into(),
        version: *session.retained_owed.get(filter)?,
        options: *session.subscriptions.get(filter)?,
    })
}

impl Inner {
    /// Whether the shard's part of what may be retained is used up, as far as this node has seen.
    pub(crate) fn is_retained_full(&self, shard: ShardId) -> bool {
        let size = self.views[usize::from(shard.0)].retained();
        let shards = u64::from(self.shards.shard_count());
        let reached = |used: u64, max: Option<u64>| max.is_some_and(|max| used >= max.div_ceil(shards));
        let limits = *self.limits.borrow();
        reached(size.count, limits.retained_messages_max) || reached(size.bytes, limits.retained_bytes_max)
    }

    /// Brings what the cluster knows of `filters` in line with the counts, and waits until all nodes see additions.
    /// `bounded`: however many a client had, an entry holds as many as others can wait for.
    async fn publish_routes(self: &Arc<Self>, filters: &[Box<str>]) -> Result<(), MetaError> {
        for some in pieces(filters.iter().cloned(), |filter| filter.len()) {
            self.publish_some_routes(&some).await?;
        }
        Ok(())
    }

    /// What fails is tried again with the next change of the same filter, or ends with the incarnation; the others go on.
    async fn unpublish_routes(self: &Arc<Self>, filters: Vec<Box<str>>) {
        let change = |some: Vec<Box<str>>| async move { self.publish_some_routes(&some).await };
        let _ = each(pieces(filters, |filter| filter.len()), change).await;
    }

    async fn publish_some_routes(self: &Arc<Self>, filters: &[Box<str>]) -> Result<(), MetaError> {
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
            let (mut add, mut remove) = (BTreeSet::new(), BTreeSet::new());
            {
                let counts = self.node_routes.lock_counts();
                for filter in filters {
                    match (counts.contains_key(filter), published.filters.contains_key(filter)) {
                        (true, false) => add.insert(filter.clone()),
                        (false, true) => remove.insert(filter.clone()),
                        _ => false,
                    };
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
                    add: add.iter().cloned().collect(),
                    remove: remove.into_iter().collect(),
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

/// No packet has it [MQTT-2.2.1-2]: nothing is recorded under it, so that its release changes no more than the epoch.
const NO_PACKET_ID: u16 = 0;
/// Filters that are counted no more, under the lock of the counts.
const UNCOUNTED_AT_ONCE: usize = 1_000;
/// Subscriptions whose retained messages are asked for, and recorded as owed no more, together.
const OWED_AT_ONCE: usize = 200;
/// Longer than a failover of the control plane takes (P10): a client that waits is better off than one that is refused.
pub(crate) const OPERATION_MAX: Duration = Duration::from_secs(10);
