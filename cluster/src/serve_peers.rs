//! What this node answers to its peers.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use lontra_storage::ids::{GroupId, MetaIndex, NodeId, Offset, ShardId};
use tokio::time::Instant;

use crate::Inner;
use crate::control::ASK_MAX;
use crate::follow::decode_hello;
use crate::group::ReadIndexError;
use crate::link::{ForwardDone, FrameSink, Lane, Peer, PeerHandler, ReplySender};
use crate::requests::{self, PageRequest, ReceivedRequest, Report, RetainedRequest};

/// Bound to the cluster part once that exists; until then requests go unanswered, and peers ask again.
#[derive(Default)]
pub struct ServePeers {
    inner: OnceLock<Weak<Inner>>,
}

impl ServePeers {
    pub(crate) fn bind(&self, inner: &Arc<Inner>) {
        let _ = self.inner.set(Arc::downgrade(inner));
    }

    fn inner(&self) -> Option<Arc<Inner>> {
        self.inner.get()?.upgrade()
    }
}

impl PeerHandler for ServePeers {
    fn request(&self, from: NodeId, kind: u8, payload: Bytes, reply: ReplySender) {
        let Some(inner) = self.inner() else { return };
        match kind {
            requests::PROPOSE => propose(&inner, &payload, reply),
            requests::REPORT => {
                if let Ok(report) = Report::decode(&payload) {
                    inner.note_report(from, &report);
                    reply.send(Bytes::new());
                }
            }
            requests::RENEW => spawn(async move {
                if let Ok(report) = Report::decode(&payload) {
                    reply.send(inner.grant(from, report).await.encode());
                }
            }),
            requests::BARRIER => spawn(async move {
                if let Ok(index) = requests::decode_number(&payload) {
                    let deadline = Instant::now() + ASK_MAX.mul_f64(0.9);
                    let reached = inner.meta.is_leader() && inner.wait_barrier(MetaIndex(index), deadline).await;
                    reply.send(requests::encode_number(u64::from(reached)));
                }
            }),
            requests::READ_INDEX => spawn(async move {
                if let Ok(group) = requests::decode_number(&payload) {
                    let result = match inner.group(GroupId(group as u32)) {
                        Some(group) => group.rounds.read_index().await,
                        None => Err(ReadIndexError::NotLeader { leader: None }),
                    };
                    reply.send(requests::encode_read_index(&result));
                }
            }),
            requests::READ_PAGE => spawn(async move {
                if let Ok(request) = PageRequest::decode(&payload)
                    && let Ok(Some(page)) = inner.read_local_page(&request).await
                {
                    reply.send(page.encode());
                }
            }),
            requests::READ_RECEIVED => spawn(async move {
                if let Ok(request) = ReceivedRequest::decode(&payload)
                    && let Ok(Some(received)) = inner.read_local_received(request).await
                {
                    reply.send(requests::encode_number(u64::from(received)));
                }
            }),
            requests::READ_RETAINED => spawn(async move {
                if let Ok(request) = RetainedRequest::decode(&payload)
                    && let Ok(Some(page)) = inner.read_local_retained(&request).await
                {
                    reply.send(page.encode());
                }
            }),
            requests::OFFER => {
                if let Ok(offer) = requests::decode_offer(&payload) {
                    reply.send(requests::encode_credits(&inner.local.offer(&offer)));
                }
            }
            requests::OFFER_OVER => {
                if let Ok((shard, group, unused)) = requests::decode_unused(&payload) {
                    inner.local.offer_over(shard, group, &unused);
                    reply.send(Bytes::new());
                }
            }
            requests::TRANSFER => spawn(async move {
                if let Ok(ask) = requests::decode_number(&payload) {
                    let moved = inner
                        .transfer(ShardId((ask >> 32) as u16), ask & u64::from(u32::MAX))
                        .await;
                    reply.send(requests::encode_number(u64::from(moved)));
                }
            }),
            requests::TAKES_LEADERSHIPS => reply.send(requests::encode_number(u64::from(inner.inherits_leaderships()))),
            requests::INSPECT | requests::HAND_OVER => spawn(async move {
                if let Some(answer) = crate::inspect::answer(inner, kind, payload).await {
                    reply.send(answer);
                }
            }),
            _ => tracing::warn!(from, kind, "a peer asks what this version does not know"),
        }
    }

    fn forwarded(&self, from: Peer, frame: Bytes, done: ForwardDone) {
        match self.inner() {
            Some(inner) => inner.receive_forwarded(from.node, &frame, done),
            None => done.done(),
        }
    }

    fn stream(&self, from: NodeId, kind: u8, hello: Bytes, sink: FrameSink) {
        let Some(inner) = self.inner() else { return };
        if kind != requests::FOLLOW {
            return;
        }
        if let Ok((shard, after)) = decode_hello(&hello)
            && inner.groups.contains_key(&shard)
        {
            let at = usize::from(shard.0);
            let upto = Offset(inner.views[at].offset.current());
            inner.followers[at].add(from, after, upto, sink);
        }
    }

    /// Fast election: followers of a leader that is gone need not wait for its silence.
    fn link_changed(&self, peer: NodeId, up: bool) {
        if let Some(inner) = self.inner().filter(|_| !up) {
            inner.replace_leader(peer);
        }
    }
}

impl Inner {
    /// Replaces `node`, which is gone or Down, in every group that it leads here.
    ///
    /// One that is Down and still reached from here may be out of the reach of others: its heartbeats keep it in office,
    /// and those cannot publish. It is asked for its shards, and hands them over once this node has the whole log; who leads
    /// meta is left to the electors.
    pub(crate) fn replace_leader(self: &Arc<Self>, node: NodeId) {
        for group in std::iter::once(&self.meta).chain(self.groups.values()) {
            if group.leader() != Some(node) || node == self.config.node {
                continue;
            }
            let (inner, group) = (self.clone(), group.clone());
            // Spread by node and group, so that two followers do not split the votes.
            let wait = Duration::from_millis(10 + (self.config.node * 47 + u64::from(group.id.0) * 31) % 120);
            spawn(async move {
                tokio::time::sleep(wait).await;
                if group.leader() != Some(node) {
                    return;
                }
                match (group.id.as_shard(), inner.links.get()) {
                    (Some(shard), Some(links)) if links.is_up(node) => {
                        let ask = requests::encode_number(u64::from(shard.0) << 32 | inner.config.node);
                        // Asked again by `leader::spread` if it fails.
                        let asked = links.request(node, Lane::Control, requests::TRANSFER, ask, ASK_MAX);
                        let _: Result<Bytes, _> = asked.await;
                    }
                    (None, Some(links)) if links.is_up(node) => {}
                    // Left to the others, or to who is first to miss a leader.
                    _ if !inner.takes_leaderships() => {}
                    _ => {
                        let _ = group.raft.trigger().elect(true).await;
                    }
                }
            });
        }
    }
}

fn propose(inner: &Arc<Inner>, payload: &Bytes, reply: ReplySender) {
    let Ok((group, bundle)) = requests::decode_propose(payload) else {
        return;
    };
    match inner.group(group) {
        Some(local) => local.propose(
            bundle,
            Box::new(move |result| reply.send(requests::encode_proposed(&result))),
        ),
        None => {
            let result = Err(crate::group::ProposeError::NotLeader { leader: None });
            reply.send(requests::encode_proposed(&result));
        }
    }
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}
