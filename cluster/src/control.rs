//! This node's part in the control plane: being admitted, renewing the lease, proposing changes, waiting for barriers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use lontra_storage::command::{MetaOp, MetaReply, decode_meta_replies, encode_meta_ops};
use lontra_storage::ids::{GroupId, MetaIndex, NodeId, Offset};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::Inner;
use crate::clock::boot_time;
use crate::delivery::ControlEvent;
use crate::error::MetaError;
use crate::group::ProposeError;
use crate::lease::{RENEW_INTERVAL, Serving};
use crate::link::Lane;
use crate::publisher::ShardRequest;
use crate::requests::{self, Renewal, Report};

impl Inner {
    /// Proposes operations to the control plane and waits until this node has applied them too.
    ///
    /// # Errors
    /// [`MetaError::Unavailable`] when no leader took them within `limit`, [`MetaError::Unknown`] when one may have.
    pub(crate) async fn change_meta(
        self: &Arc<Self>,
        what: &'static str,
        operations: &[MetaOp],
        limit: Duration,
    ) -> Result<(MetaIndex, Vec<MetaReply>), MetaError> {
        self.change_meta_while(what, operations, limit, || true).await
    }

    /// [`Inner::change_meta`], which proposes only as long as the result is wanted: what is carried out late may undo what
    /// its client did elsewhere meanwhile.
    pub(crate) async fn change_meta_while(
        self: &Arc<Self>,
        what: &'static str,
        operations: &[MetaOp],
        limit: Duration,
        is_wanted: impl Fn() -> bool,
    ) -> Result<(MetaIndex, Vec<MetaReply>), MetaError> {
        let bundle = encode_meta_ops(operations);
        let deadline = Instant::now() + limit;
        let mut failure = MetaError::Unavailable { what };
        while is_wanted() {
            // Before it is asked: one that follows meanwhile is another.
            let leader = self.meta.leader();
            let tried = self.propose(GroupId::META, bundle.clone(), Lane::Control);
            let tried = tokio::time::timeout_at(deadline, self.while_leading(leader, tried));
            match tried.await {
                Ok(Some(Ok(proposed))) => {
                    let Ok(replies) = decode_meta_replies(&proposed.reply) else {
                        return Err(MetaError::Unknown { what });
                    };
                    let left = deadline.saturating_duration_since(Instant::now());
                    if !self.meta.applied.reach(proposed.index, left).await {
                        return Err(MetaError::Unknown { what });
                    }
                    return Ok((MetaIndex(proposed.index), replies));
                }
                Ok(Some(Err(ProposeError::NotLeader { .. } | ProposeError::Busy))) => {}
                // For good: that a later attempt was not taken says nothing of this one.
                Ok(Some(Err(ProposeError::Unknown)) | None) | Err(_) => failure = MetaError::Unknown { what },
            }
            if Instant::now() + RETRY_WAIT >= deadline {
                break;
            }
            tokio::time::sleep(RETRY_WAIT).await;
        }
        Err(failure)
    }

    /// What `asked` gives, or `None` once another node than `leader` leads meta: whoever waits for a leader that is gone asks
    /// its successor at once, not when the time for an answer is over.
    async fn while_leading<T>(&self, leader: Option<NodeId>, asked: impl Future<Output = T>) -> Option<T> {
        let Some(leader) = leader else { return Some(asked.await) };
        tokio::select! {
            biased;
            answer = asked => Some(answer),
            () = self.meta.led_by_another(leader) => None,
        }
    }

    /// Waits until every Up node has applied meta entry `index` in effect, or is Down. (DESIGN §5)
    ///
    /// # Errors
    /// [`MetaError::Unknown`] after `limit`: the entry stands, and where it is in effect is not known.
    pub(crate) async fn barrier(self: &Arc<Self>, index: MetaIndex, limit: Duration) -> Result<(), MetaError> {
        // Reached once is reached for good, and for every entry before it.
        if self.barrier_reached.load(Ordering::Acquire) >= index.0 {
            return Ok(());
        }
        let started = Instant::now();
        let deadline = started + limit;
        loop {
            let reached = match self.meta.leader() {
                Some(leader) if leader == self.config.node => {
                    let waited = self.wait_barrier(index, deadline.min(Instant::now() + ASK_MAX));
                    self.while_leading(Some(leader), waited).await == Some(true)
                }
                Some(leader) => match self.links.get() {
                    Some(links) => {
                        let ask = requests::encode_number(index.0);
                        let asked = links.request(leader, Lane::Control, requests::BARRIER, ask, ASK_MAX);
                        let answer = self.while_leading(Some(leader), asked).await;
                        answer.and_then(|bytes| requests::decode_number(&bytes.ok()?).ok()) == Some(1)
                    }
                    None => false,
                },
                None => false,
            };
            if reached {
                self.barrier_reached.fetch_max(index.0, Ordering::AcqRel);
                self.metrics.barrier_reached(started.elapsed());
                return Ok(());
            }
            if Instant::now() + RETRY_WAIT >= deadline {
                return Err(MetaError::Unknown { what: "barrier" });
            }
            tokio::time::sleep(RETRY_WAIT).await;
        }
    }

    /// How far this node has applied meta so that what it says holds for every connection here.
    pub(crate) fn applied_in_effect(&self) -> MetaIndex {
        MetaIndex(self.in_effect.until(self.meta.applied.current()))
    }

    /// The report that goes with every renewal.
    pub(crate) fn report(&self) -> Report {
        let leads = self
            .groups
            .iter()
            .filter(|(_, group)| group.is_leader())
            .map(|(shard, _)| *shard)
            .collect();
        let offsets = self.views.iter().map(|view| Offset(view.offset.current())).collect();
        Report {
            incarnation: self.lease.incarnation(),
            applied: MetaIndex(self.meta.applied.current()),
            in_effect: self.applied_in_effect(),
            leads,
            offsets,
            disk_low: self.is_disk_low(),
            leaving: !self.takes_leaderships(),
            unreachable: self.unreachable(),
        }
    }

    /// A report at once, where the next renewal would come too late; not to itself. One that is lost is made good by that.
    pub(crate) async fn tell_meta_leader(&self, limit: Duration) {
        if let (Some(leader), Some(links)) = (self.meta.leader(), self.links.get())
            && leader != self.config.node
        {
            let told = links.request(leader, Lane::Control, requests::REPORT, self.report().encode(), limit);
            let _: Result<Bytes, _> = told.await;
        }
    }

    /// Up nodes from which nothing has come for a lease.
    fn unreachable(&self) -> Vec<NodeId> {
        let Some(links) = self.links.get() else {
            return Vec::new();
        };
        let is_silent = |node: NodeId| {
            let silence = links.silent_for(node).unwrap_or_default();
            !links.is_up(node) && silence >= self.config.lease
        };
        let meta = self.meta_view.read();
        let up = meta.nodes().filter(|(_, record)| record.up).map(|(node, _)| node);
        up.filter(|node| is_silent(*node)).collect()
    }

    async fn renew(self: &Arc<Self>) -> Option<Renewal> {
        let report = self.report();
        match self.meta.leader() {
            Some(leader) if leader == self.config.node => Some(self.grant(leader, report).await),
            Some(leader) => {
                let links = self.links.get()?;
                let asked = links.request(leader, Lane::Control, requests::RENEW, report.encode(), ASK_MAX);
                let answer = self.while_leading(Some(leader), asked).await?;
                Renewal::decode(&answer.ok()?).ok()
            }
            None => None,
        }
    }

    /// Becomes Up under a new incarnation, once this node and every Up node have reached each other.
    async fn admit(self: &Arc<Self>, start: u64) -> bool {
        let node = self.config.node;
        let reached_all = {
            let meta = self.meta_view.read();
            meta.nodes()
                .all(|(peer, record)| peer == node || !record.up || self.is_linked(peer))
        };
        if !reached_all || !self.has_caught_up().await {
            return false;
        }

        let up = MetaOp::NodeUp { node, start };
        let Ok((_, replies)) = self.change_meta("admission", &[up], ASK_MAX * 2).await else {
            return false;
        };
        let Some(MetaReply::Admitted { incarnation }) = replies.first() else {
            return false;
        };
        tracing::info!(node, incarnation = incarnation.0, "admitted");
        self.lease.admit(*incarnation);
        for sender in self.senders.get().into_iter().flatten() {
            sender.send(ShardRequest::Incarnation(*incarnation));
        }
        true
    }

    /// Whether every shard held here shows all that was committed when this was asked: what is replayed from the log
    /// must not be taken for news by the subscribers that come once the node serves.
    async fn has_caught_up(&self) -> bool {
        let caught_up = self.groups.iter().map(|(shard, group)| async move {
            match tokio::time::timeout(ASK_MAX, self.read_index(*shard)).await {
                Ok(index) => group.applied.reach(index, ASK_MAX).await,
                Err(_) => false,
            }
        });
        futures_util::future::join_all(caught_up)
            .await
            .into_iter()
            .all(|caught_up| caught_up)
    }

    pub(crate) fn is_linked(&self, peer: NodeId) -> bool {
        self.links.get().is_some_and(|links| links.is_up(peer))
    }
}

/// Keeps this node admitted and its lease renewed, until the node stops.
pub(crate) async fn keep_lease(inner: Arc<Inner>) {
    let mut admitted = false;
    let mut attempt = 0;
    loop {
        let started = Instant::now();
        // Ended from below: the view of the control plane jumped.
        admitted &= inner.lease.incarnation().0 != 0;
        if !admitted {
            attempt += 1;
            // Unique to this process and admission: a repeat under the same number would be answered with the old one.
            admitted = inner.admit((inner.config.start << 20) + attempt).await;
        }
        let mut wait = RETRY_WAIT;
        if admitted {
            let (sent_at, incarnation) = (boot_time(), inner.lease.incarnation());
            match inner.renew().await {
                Some(Renewal::Granted {
                    applied_everywhere,
                    disk_low,
                }) => {
                    let lapsed =
                        inner
                            .lease
                            .grant(incarnation, sent_at, inner.config.lease, applied_everywhere, disk_low);
                    if lapsed {
                        // However short it was: packets that came meanwhile, and what was withheld, wait for this.
                        inner.local.serving_changed();
                    }

                    wait = RENEW_INTERVAL.saturating_sub(started.elapsed());
                }
                Some(Renewal::NotUp) => {
                    tracing::warn!(
                        "this incarnation is down: clients are let go, and the node asks to be admitted anew"
                    );
                    inner.lease.revoke();
                    inner.local.serving_changed();
                    admitted = false;
                }
                Some(Renewal::NotLeader { .. }) | None => {}
            }
        }
        tokio::time::sleep(wait).await;
    }
}

/// Tells the workers when the lease begins, lapses or ends.
pub(crate) async fn watch_serving(inner: Arc<Inner>) {
    let mut last = Serving::Starting;
    loop {
        let now = inner.lease.serving();
        if now != last {
            tracing::info!(from = ?last, to = ?now, "serving");
            inner.local.serving_changed();
            last = now;
        }
        inner.metrics.lease(now == Serving::Serving);
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// Acts on what meta applied: tells the leader how far this node has come, and forgets nodes that are Down.
pub(crate) async fn follow_meta(inner: Arc<Inner>, mut events: mpsc::UnboundedReceiver<ControlEvent>) {
    let mut told = 0;
    while let Some(first) = events.recv().await {
        let mut next = Some(first);
        while let Some(event) = next {
            match event {
                ControlEvent::Applied => {}
                ControlEvent::NodeDown(node) => {
                    if let Some(links) = inner.links.get() {
                        links.forget_peer(node);
                        inner.replace_leader(node);
                    }
                }
                ControlEvent::Late(session, epoch) => inner.give_back(session, epoch),
            }
            next = events.try_recv().ok();
        }
        inner.barrier_changed.notify_waiters();
        let applied = inner.applied_in_effect().0;
        let Some(leader) = inner
            .meta
            .leader()
            .filter(|leader| *leader != inner.config.node && applied > told)
        else {
            continue;
        };
        if let Some(links) = inner.links.get() {
            let report = inner.report().encode();
            told = applied;
            // Lost reports are made good by the next renewal.
            let sent = links.request_queued(leader, Lane::Control, requests::REPORT, report, ASK_MAX);
            tokio::spawn(async move {
                let _: Result<Bytes, _> = sent.await;
            });
        }
    }
}

/// One question to the meta leader; half a lease.
pub(crate) const ASK_MAX: Duration = Duration::from_secs(1);
pub(crate) const RETRY_WAIT: Duration = Duration::from_millis(25);
const WATCH_INTERVAL: Duration = Duration::from_millis(50);
