//! What the cluster asks of the node it runs in: deliver, stop, tell. Implemented by `node`; no method may block.

use std::sync::Arc;

use lontra_storage::ids::{Offset, SessionEpoch, SessionId, ShardId};
use lontra_storage::message::Message;
use lontra_storage::shard::Applied;

/// Where the outcome of an asynchronous operation goes: a connection of a worker, and what it called the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    pub worker: u16,
    pub connection: u64,
    pub token: u64,
}

/// How a publish or a settlement ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A durable publish was committed and applied, at this offset of its shard.
    Stored(Offset),
    /// In every matching outbox (ephemeral publish), or out of the queue (settlement).
    Done,
    /// This incarnation ended before an answer came: it may or may not have been stored.
    Unknown,
    /// Refused before anything was sent: the disk watermark.
    DiskLow,
}

/// The node's side of delivery.
pub trait Local: Send + Sync + 'static {
    /// Effects of a shard entry: every worker delivers them to its own connected sessions.
    fn applied(&self, applied: Arc<Applied>);

    /// The view of a shard jumped: what lies before `upto` and was not seen was never handed over.
    fn jumped(&self, shard: ShardId, upto: Offset);

    /// An ephemeral message for the connected sessions of this node that match. `guard` is dropped once it is in every
    /// matching outbox.
    fn ephemeral(&self, message: Arc<Message>, guard: Guard);

    /// Outcomes of operations that workers started.
    fn completed(&self, outcomes: Vec<(Ticket, Outcome)>);

    /// The connection of this session and epoch is no longer its owner: it must not be served after this returns.
    fn displaced(&self, session: SessionId, epoch: SessionEpoch);

    /// Whether the node may serve has changed; [`crate::lease::Lease`] tells.
    fn serving_changed(&self);
}

/// Completes something when the last clone is dropped.
#[derive(Clone)]
pub struct Guard {
    _inner: Arc<OnDrop>,
}

struct OnDrop(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Guard {
    /// `done` runs when the last clone is gone, on whichever thread that happens.
    pub fn new(done: impl FnOnce() + Send + Sync + 'static) -> Guard {
        Guard {
            _inner: Arc::new(OnDrop(Some(Box::new(done)))),
        }
    }
}

impl Drop for OnDrop {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done();
        }
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guard")
    }
}
