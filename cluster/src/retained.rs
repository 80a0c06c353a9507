//! Retained messages for new subscriptions.
//!
//! ```text
//!   durable session, QoS ≥ 1 ─▶ EnqueueRetained in every shard concerned, page by page ─▶ RetainedDone in meta
//!   otherwise                ─▶ pages read from a view that shows all that was acknowledged before (node paces them)
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use lontra_storage::command::{EnqueueRetained, MetaOp, OperationResult, ShardOperation};
use lontra_storage::ids::{MetaIndex, NodeId, SessionId, ShardId};
use lontra_storage::meta::SubscriptionOptions;
use lontra_storage::shard::{RetainedPage, read_retained};
use lontra_storage::test_bugs::{Bug, has};
use tokio::sync::oneshot;

use crate::Inner;
use crate::control::{ASK_MAX, RETRY_WAIT};
use crate::link::Lane;
use crate::publisher::ShardRequest;
use crate::reader::{PAGE_MAX, PageLimits};
use crate::requests::{self, RetainedRequest};
use crate::shard_map::ShardMap;

/// A subscription of a durable session that is owed its retained messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owed {
    pub filter: Box<str>,
    /// The meta index of the subscription.
    pub version: MetaIndex,
    pub options: SubscriptionOptions,
}

impl ShardMap {
    /// The shards in which topics that `filter` matches can live.
    pub fn shards_of(&self, filter: &str) -> Vec<ShardId> {
        match filter.contains(['+', '#']) {
            true => self.shards().collect(),
            false => vec![self.shard_of(filter)],
        }
    }
}

impl Inner {
    /// Moves what subscriptions are owed into the session's queue, and records that. The barriers of the subscriptions
    /// have been waited for. Stops when this incarnation ends; the next owner goes on where this one was.
    pub(crate) async fn enqueue_retained(self: &Arc<Self>, session: SessionId, owed: &[Owed]) {
        let mut shards = BTreeMap::<ShardId, Vec<&Owed>>::new();
        for one in owed {
            for shard in self.shards.shards_of(&one.filter) {
                shards.entry(shard).or_default().push(one);
            }
        }
        for (shard, asking) in shards {
            for some in asking.chunks(self.replays_per_entry(shard)) {
                if self.enqueue_from(shard, session, some.to_vec()).await.is_none() {
                    return;
                }
            }
        }
        loop {
            let done: Vec<MetaOp> = self
                .still_owed(session, owed)
                .into_iter()
                .map(|one| MetaOp::RetainedDone {
                    session,
                    filter: one.filter,
                    version: one.version,
                })
                .collect();
            if done.is_empty() || !self.lease.is_valid() {
                return;
            }
            if self.change_meta("retained", &done, ASK_MAX * 2).await.is_ok() {
                return;
            }
        }
    }

    /// Asks one shard for all of it, page by page; together, so that they share entries of its log. `None` when the
    /// incarnation has ended.
    async fn enqueue_from(self: &Arc<Self>, shard: ShardId, session: SessionId, mut asking: Vec<&Owed>) -> Option<()> {
        while !asking.is_empty() {
            let asked = asking.into_iter().map(|one| {
                let (reply, told) = oneshot::channel();
                let operation = ShardOperation::EnqueueRetained(EnqueueRetained {
                    session,
                    filter: one.filter.clone(),
                    version: one.version,
                    qos: one.options.qos,
                    no_local: one.options.no_local,
                    identifier: one.options.identifier,
                });
                self.send(shard, ShardRequest::Upkeep { operation, reply });
                (one, told)
            });
            let asked: Vec<_> = asked.collect();
            let mut unfinished = Vec::new();
            for (one, told) in asked {
                if told.await.ok()? == Some(OperationResult::More) {
                    unfinished.push(one);
                }
            }
            unfinished.retain(|one| self.is_owed(session, one));
            asking = unfinished;
        }
        Some(())
    }

    /// How many replays a shard is asked for at a time. `bounded`: each may put a page of a thousand messages into its entry,
    /// but not more than are retained there.
    fn replays_per_entry(&self, shard: ShardId) -> usize {
        // Of a shard that is not held here, this node knows nothing.
        let is_known = self.groups.contains_key(&shard);
        let retained = self.views[usize::from(shard.0)].retained().count;
        match (is_known, retained) {
            (false, _) => REPLAYS_MIN,
            (true, 0) => REPLAYS_MAX,
            (true, retained) => {
                let fit = MESSAGES_PER_ENTRY / retained.max(1);
                usize::try_from(fit)
                    .unwrap_or(REPLAYS_MAX)
                    .clamp(REPLAYS_MIN, REPLAYS_MAX)
            }
        }
    }

    pub(crate) fn is_owed(&self, session: SessionId, owed: &Owed) -> bool {
        !self.still_owed(session, std::slice::from_ref(owed)).is_empty()
    }

    /// Those of `owed` that the session is still owed, for the same subscription.
    pub(crate) fn still_owed(&self, session: SessionId, owed: &[Owed]) -> Vec<Owed> {
        let meta = self.meta_view.read();
        let Some(session) = meta.session(session) else {
            return Vec::new();
        };
        let is_owed = |one: &&Owed| session.retained_owed.get(&one.filter) == Some(&one.version);
        owed.iter().filter(is_owed).cloned().collect()
    }

    /// A page of retained messages from a view that has applied `request.applied`. Tries until it has one.
    ///
    /// # Errors
    /// The local replica cannot be read.
    pub(crate) async fn read_retained(self: &Arc<Self>, request: RetainedRequest) -> std::io::Result<RetainedPage> {
        let mut attempt = 0;
        loop {
            if self.groups.contains_key(&request.shard) {
                if let Some(page) = self.read_local_retained(&request).await? {
                    return Ok(page);
                }
            } else if let Some(page) = self.read_remote_retained(&request, attempt).await {
                return Ok(page);
            }
            attempt += 1;
            tokio::time::sleep(RETRY_WAIT).await;
        }
    }

    /// `None` if this replica has not applied so far in time.
    pub(crate) async fn read_local_retained(&self, request: &RetainedRequest) -> std::io::Result<Option<RetainedPage>> {
        let Some(group) = self.groups.get(&request.shard) else {
            return Ok(None);
        };
        if !has(Bug::LocalRetainedRead) && !group.applied.reach(request.applied, ASK_MAX).await {
            return Ok(None);
        }
        let PageLimits { entries, bytes } = request.limits;
        let (after, now) = (request.after.as_deref(), group.clock.now());
        read_retained(
            &group.tables,
            &request.filter,
            after,
            now,
            entries as usize,
            bytes as usize,
        )
        .map(Some)
    }

    /// `attempt` takes turns: a replica may lag.
    async fn read_remote_retained(&self, request: &RetainedRequest, attempt: usize) -> Option<RetainedPage> {
        let links = self.links.get()?;
        let replicas: Vec<NodeId> = self
            .shards
            .replicas(request.shard)
            .filter(|replica| links.is_up(*replica))
            .collect();
        let replica = *replicas.get(attempt % replicas.len().max(1))?;
        let asked = links
            .request(replica, Lane::Data, requests::READ_RETAINED, request.encode(), PAGE_MAX)
            .await
            .ok()?;
        RetainedPage::decode(&asked).ok()
    }
}

/// Replays that one shard is asked for at a time.
const REPLAYS_MIN: usize = 4;
const REPLAYS_MAX: usize = 200;
/// What they may put into one entry, if more than [`REPLAYS_MIN`] are asked for.
const MESSAGES_PER_ENTRY: u64 = 1_000;
