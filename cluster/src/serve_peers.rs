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
use crate::link::{ForwardDone, FrameSink, Peer, PeerHandler, ReplySender};
use crate::requests::{self, PageRequest, Report};

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
            requests::TRANSFER => spawn(async move {
                if let Ok(ask) = requests::decode_number(&payload) {
                    let moved = inner
                        .transfer(ShardId((ask >> 32) as u16), ask & u64::from(u32::MAX))
                        .await;
                    reply.send(requests::encode_number(u64::from(moved)));
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
        let Some(inner) = self.inner().filter(|_| !up) else {
            return;
        };
        for group in std::iter::once(&inner.meta).chain(inner.groups.values()) {
            if group.leader() != Some(peer) {
                continue;
            }
            let raft = group.raft.clone();
            // Spread by node and group, so that two followers do not split the votes.
            let wait = Duration::from_millis(10 + (inner.config.node * 47 + u64::from(group.id.0) * 31) % 120);
            spawn(async move {
                tokio::time::sleep(wait).await;
                if raft.current_leader().await == Some(peer) {
                    let _ = raft.trigger().elect(true).await;
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
