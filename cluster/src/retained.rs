//! Retained messages for new subscriptions.
//!
//! ```text
//!   durable session, QoS ≥ 1 ─▶ EnqueueRetained in every shard concerned, page by page ─▶ RetainedDone in meta
//!   otherwise                ─▶ pages read from a view that shows all that was acknowledged before (node paces them)
//! ```

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
    /// Moves what a subscription is owed into the session's queue, and records that. The barrier of the subscription
    /// has been waited for. Stops when this incarnation ends; the next owner goes on where this one was.
    pub(crate) async fn enqueue_retained(self: &Arc<Self>, session: SessionId, owed: Owed) {
        for shard in self.shards.shards_of(&owed.filter) {
            loop {
                let (reply, told) = oneshot::channel();
                let operation = ShardOperation::EnqueueRetained(EnqueueRetained {
                    session,
                    filter: owed.filter.clone(),
                    version: owed.version,
                    qos: owed.options.qos,
                    no_local: owed.options.no_local,
                    identifier: owed.options.identifier,
                });
                self.send(shard, ShardRequest::Upkeep { operation, reply });
                match told.await {
                    Ok(Some(OperationResult::More)) => {}
                    Ok(_) => break,
                    Err(_) => return,
                }
                if !self.is_owed(session, &owed) {
                    return;
                }
            }
        }
        let done = [MetaOp::RetainedDone {
            session,
            filter: owed.filter.clone(),
            version: owed.version,
        }];
        while self.is_owed(session, &owed) && self.lease.is_valid() {
            if self.change_meta("retained", &done, ASK_MAX * 2).await.is_ok() {
                return;
            }
        }
    }

    pub(crate) fn is_owed(&self, session: SessionId, owed: &Owed) -> bool {
        let meta = self.meta_view.read();
        let version = meta
            .session(session)
            .and_then(|session| session.retained_owed.get(&owed.filter));
        version == Some(&owed.version)
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
