//! ReadIndex rounds, shared: everybody who asks while a round runs shares the next one.
//!
//! A round confirms that this node still leads, by a quorum, *after* the request arrived (Raft §6.4): leases and reads
//! may be granted on it, and on nothing older.

use std::time::Duration;

use lontra_storage::ids::NodeId;
use openraft::ReadPolicy;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{LinearizableReadError, RaftError};
use tokio::sync::{mpsc, oneshot};

use lontra_storage::test_bugs::{Bug, has};

use super::Raft;

/// Why no quorum confirmed this node as leader.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadIndexError {
    #[error("this node does not lead the group")]
    NotLeader { leader: Option<NodeId> },
    #[error("no quorum answered")]
    NoQuorum,
}

type Waiter = oneshot::Sender<Result<u64, ReadIndexError>>;

#[derive(Clone)]
pub struct Rounds {
    queue: mpsc::Sender<Waiter>,
}

impl Rounds {
    pub fn start(raft: Raft) -> Rounds {
        let (queue, receiver) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(run(raft, receiver));
        Rounds { queue }
    }

    /// The index that a linearizable read must have applied, from a round that began after this call.
    ///
    /// # Errors
    /// See [`ReadIndexError`].
    pub async fn read_index(&self) -> Result<u64, ReadIndexError> {
        let (sender, receiver) = oneshot::channel();
        if self.queue.send(sender).await.is_err() {
            return Err(ReadIndexError::NoQuorum);
        }
        receiver.await.unwrap_or(Err(ReadIndexError::NoQuorum))
    }
}

async fn run(raft: Raft, mut queue: mpsc::Receiver<Waiter>) {
    while let Some(first) = queue.recv().await {
        let mut waiters = vec![first];
        while let Ok(waiter) = queue.try_recv() {
            waiters.push(waiter);
        }
        let result = match has(Bug::LeaderServesBeforeBarrier) {
            false => round(&raft).await,
            true => Ok(raft.metrics().borrow_watched().last_applied.map_or(0, |id| id.index())),
        };
        for waiter in waiters {
            let _ = waiter.send(result.clone());
        }
    }
}

async fn round(raft: &Raft) -> Result<u64, ReadIndexError> {
    let read = raft.get_read_linearizer(ReadPolicy::ReadIndex);
    match tokio::time::timeout(ROUND_MAX, read).await {
        Ok(Ok(linearizer)) => Ok(linearizer.read_log_id().index()),
        Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => {
            Err(ReadIndexError::NotLeader {
                leader: forward.leader_id,
            })
        }
        Ok(Err(_)) | Err(_) => Err(ReadIndexError::NoQuorum),
    }
}

/// Half a lease: later the answer is of no use to anybody.
const ROUND_MAX: Duration = Duration::from_secs(1);
const QUEUE_MAX: usize = 4096;
