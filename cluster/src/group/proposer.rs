//! The leader's queue: everything that has queued when a proposal slot frees becomes one Raft entry.
//!
//! ```text
//!   bundle ─┐
//!   bundle ─┼─ queue ─▶ [entry | entry | entry | entry] ─▶ apply ─▶ reply per bundle
//!   bundle ─┘            at most IN_FLIGHT_MAX
//! ```
//!
//! No timer: a first bundle goes at once, under load the entries grow by themselves. Order of bundles is kept.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lontra_storage::command::encode_envelope;
use lontra_storage::ids::NodeId;
use lontra_storage::raft_types::TypeConfig;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use tokio::sync::mpsc;

use super::Raft;
use crate::clock::LogClock;

/// A bundle that was committed and applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposed {
    pub index: u64,
    pub reply: Bytes,
}

/// Why a bundle has no result. Both mean "try again"; repeats are recognised by the state machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was stored.
    #[error("not stored: this node does not lead the group")]
    NotLeader { leader: Option<NodeId> },
    /// Nothing was stored.
    #[error("not stored: the leader's queue, or that of the link to it, is full")]
    Busy,
    /// It may yet commit.
    #[error("outcome unknown: leadership changed during commit")]
    Unknown,
}

/// Takes the result of one bundle.
pub type ProposeSender = Box<dyn FnOnce(Result<Proposed, ProposeError>) + Send>;

struct Proposal {
    bundle: Bytes,
    reply: ProposeSender,
}

/// Handle of the queue; the task that drains it ends with the last handle.
#[derive(Clone)]
pub struct Proposer {
    queue: mpsc::Sender<Proposal>,
}

impl Proposer {
    pub fn start(raft: Raft, clock: Arc<LogClock>) -> Proposer {
        let (queue, receiver) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(run(raft, clock, receiver));
        Proposer { queue }
    }

    /// Never blocks: a full queue answers [`ProposeError::Busy`].
    pub fn propose(&self, bundle: Bytes, reply: ProposeSender) {
        if let Err(error) = self.queue.try_send(Proposal { bundle, reply }) {
            let (mpsc::error::TrySendError::Full(proposal) | mpsc::error::TrySendError::Closed(proposal)) = error;
            (proposal.reply)(Err(ProposeError::Busy));
        }
    }
}

async fn run(raft: Raft, clock: Arc<LogClock>, mut queue: mpsc::Receiver<Proposal>) {
    let mut in_flight = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(()) = in_flight.next(), if !in_flight.is_empty() => {}
            proposal = queue.recv(), if in_flight.len() < IN_FLIGHT_MAX => {
                let Some(first) = proposal else { break };
                let (bundles, replies) = collect(first, &mut queue);
                let command = encode_envelope(clock.now(), &bundles);
                let (responder, _, complete) = ProgressResponder::<TypeConfig, _>::new();
                match raft.client_write_ff(command, Some(responder)).await {
                    Ok(()) => in_flight.push(answer(complete, replies)),
                    Err(_) => fail(replies, &ProposeError::Unknown),
                }
            }
        }
    }
    while in_flight.next().await.is_some() {}
}

/// What has queued behind `first`, up to the size of an entry.
fn collect(first: Proposal, queue: &mut mpsc::Receiver<Proposal>) -> (Vec<Bytes>, Vec<ProposeSender>) {
    let mut bytes = first.bundle.len();
    let (mut bundles, mut replies) = (vec![first.bundle], vec![first.reply]);
    while bytes < ENTRY_BYTES && bundles.len() < ENTRY_BUNDLES {
        let Ok(proposal) = queue.try_recv() else { break };
        bytes += proposal.bundle.len();
        bundles.push(proposal.bundle);
        replies.push(proposal.reply);
    }
    (bundles, replies)
}

type Written = openraft::alias::OneshotReceiverOf<TypeConfig, openraft::raft::ClientWriteResult<TypeConfig>>;

async fn answer(complete: Written, replies: Vec<ProposeSender>) {
    match complete.await {
        Ok(Ok(written)) => {
            let index = written.log_id.index;
            debug_assert_eq!(written.data.0.len(), replies.len(), "one reply per bundle");
            for (reply, bytes) in replies.into_iter().zip(written.data.0) {
                reply(Ok(Proposed { index, reply: bytes }));
            }
        }
        Ok(Err(ClientWriteError::ForwardToLeader(forward))) => {
            fail(
                replies,
                &ProposeError::NotLeader {
                    leader: forward.leader_id,
                },
            );
        }
        Ok(Err(_)) | Err(_) => fail(replies, &ProposeError::Unknown),
    }
}

fn fail(replies: Vec<ProposeSender>, error: &ProposeError) {
    for reply in replies {
        reply(Err(error.clone()));
    }
}

/// 4 in flight: more only makes entries smaller (`notes/raft.md` §2.5).
const IN_FLIGHT_MAX: usize = 4;
/// One entry stays well under the 1 MiB read cap of replication.
const ENTRY_BYTES: usize = 256 * 1024;
const ENTRY_BUNDLES: usize = 512;
/// Bundles are whole node batches: a full queue means that the disk or the quorum is gone.
const QUEUE_MAX: usize = 4096;
