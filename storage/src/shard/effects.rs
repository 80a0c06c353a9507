//! What apply tells those who deliver.

use std::sync::Arc;

use bytes::Bytes;

use super::delayed::DelayedSize;
use super::ledger::Ledger;
use super::retained::RetainedSize;
use crate::ids::{Offset, SessionId, ShardId};
use crate::machine::EntryPosition;
use crate::message::{LogTime, Message, Recipient};

/// Hears of what was applied, in log order, on the group's apply task. Must not block.
pub trait ShardSink: Send + Sync + 'static {
    /// Everything up to and including `applied.upto` is in the tables; `applied.appended` is what this entry added.
    fn applied(&self, applied: Applied);

    /// The view jumped to `upto` and log index `at` (a snapshot was installed): what lies between was never handed to
    /// `applied`.
    fn jumped(
        &self,
        shard: ShardId,
        upto: Offset,
        at: u64,
        retained: RetainedSize,
        delayed: DelayedSize,
        ledger: Ledger,
    );
}

/// The effects of one entry.
#[derive(Clone, Debug)]
pub struct Applied {
    pub shard: ShardId,
    pub at: EntryPosition,
    /// The offset before this entry, and the last one now.
    pub after: Offset,
    pub upto: Offset,
    pub now: LogTime,
    pub appended: Vec<Appended>,
    /// Shared groups in whose queues messages wait now that did not before.
    pub waiting: Vec<SessionId>,
    pub retained: RetainedSize,
    pub delayed: DelayedSize,
    pub ledger: Ledger,
}

/// A message that just became part of the shard, or entered another queue.
#[derive(Clone, Debug)]
pub struct Appended {
    pub offset: Offset,
    /// When it was published, in log time.
    pub appended_at: LogTime,
    pub message: Arc<Message>,
    /// The message as stored: what a following node is sent.
    pub encoded: Bytes,
    pub recipients: Arc<[Recipient]>,
    /// Just published: connected sessions that match get it too. Otherwise it is for its recipients alone.
    pub published: bool,
}
