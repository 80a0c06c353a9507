//! What the cluster asks of the node it runs in: deliver, stop, tell. Implemented by `node`; no method may block.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lontra_storage::ids::{Offset, SessionEpoch, SessionId, ShardId};
use lontra_storage::message::Message;
use lontra_storage::meta::AccessChange;
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
    /// Refused before anything was sent: as much is retained as may be.
    RetainedFull,
    /// The shard refused it: as many messages are delayed as may be.
    DelayedFull,
    /// The shard refused it: another connection owns the session. Nothing was stored.
    Refused,
}

/// A member of a shared group that was given an ephemeral message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub session: SessionId,
    pub subscription_identifier: Option<u32>,
}

/// Whom an ephemeral message is for on one node.
#[derive(Clone, Debug)]
pub struct Audience {
    /// Everybody connected who matches. Not for a message that is appended to its shard too: they hear of that.
    pub matching: bool,
    pub members: Arc<[Member]>,
}

/// Waiting messages of a shared group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub shard: ShardId,
    pub group: SessionId,
    /// Connected members on this node, as meta names them.
    pub members: Vec<SessionId>,
    /// How many wait.
    pub waiting: u32,
}

/// How many messages a member takes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    pub session: SessionId,
    pub epoch: SessionEpoch,
    pub messages: u32,
    /// Messages that it has in flight or waiting already.
    pub load: u32,
}

/// The node's side of delivery.
pub trait Local: Send + Sync + 'static {
    /// Effects of a shard entry: every worker delivers them to its own connected sessions.
    fn applied(&self, applied: Arc<Applied>);

    /// The view of a shard jumped: what lies before `upto` and was not seen was never handed over.
    fn jumped(&self, shard: ShardId, upto: Offset);

    /// An ephemeral message for the connected sessions of this node that match, and for the members of shared groups
    /// that it was given to. `guard` is dropped once it is in each of their outboxes.
    fn ephemeral(&self, message: Arc<Message>, audience: Audience, guard: Guard);

    /// Messages wait in a shared group: what its members that are connected here take of them. What is answered stays
    /// reserved until [`Local::offer_over`].
    fn offer(&self, offer: &Offer) -> Vec<Credit>;

    /// What was reserved for an offer and not used is free again.
    fn offer_over(&self, shard: ShardId, group: SessionId, unused: &[(SessionId, u32)]);

    /// Outcomes of operations that workers started.
    fn completed(&self, outcomes: Vec<(Ticket, Outcome)>);

    /// The connection of this session and epoch is no longer its owner: it must not be served after this returns.
    fn displaced(&self, session: SessionId, epoch: SessionEpoch);

    /// Who may do what has changed in the control plane's view, which shows it already. `guard` is dropped once nobody
    /// connected here is served against it. Without connections it is in effect at once.
    fn access_changed(&self, _: &[AccessChange], _: Guard) {}

    /// Whether the author of a will, as the node that took the will wrote that down, may publish it on this topic by what
    /// holds now. `None`: it cannot be said yet.
    fn may_publish_will(&self, _author: &[u8], _topic: &str) -> Option<bool> {
        Some(true)
    }

    /// Whether the node may serve has changed; [`crate::lease::Lease`] tells.
    fn serving_changed(&self);
}

/// Completes something when the last clone is dropped.
#[derive(Clone)]
pub struct Guard {
    inner: Arc<OnDrop>,
}

struct OnDrop {
    done: Option<Box<dyn FnOnce() + Send + Sync>>,
    given_up: AtomicBool,
}

impl Guard {
    /// `done` runs when the last clone is gone, on whichever thread that happens.
    pub fn new(done: impl FnOnce() + Send + Sync + 'static) -> Guard {
        Guard {
            inner: Arc::new(OnDrop {
                done: Some(Box::new(done)),
                given_up: AtomicBool::new(false),
            }),
        }
    }

    /// A share failed: it is never completed, whatever becomes of the others.
    pub fn give_up(self) {
        self.inner.given_up.store(true, Ordering::Release);
    }
}

impl Drop for OnDrop {
    fn drop(&mut self) {
        if let Some(done) = self.done.take()
            && !*self.given_up.get_mut()
        {
            done();
        }
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guard")
    }
}
