//! One topic shard: messages in order of their offset, and who still has to get them.
//!
//!     entry ─▶ bundles ─▶ NodeBatch: sequence, route ─▶ Append: offset, message, pending rows ─▶ effects ─▶ ShardSink
//!                                                    ├▶ Ack:    pending row and, with the last, message go
//!                                                    └▶ the file of its table: retained, repeats, shared, delayed, sweep
//!
//! Apply is pure: tables, memory and command in; rows, replies and effects out. Delivery is somebody else's.
//!
//! Invariants
//! - `batch-sequence`: each node's batches are applied once and in sequence, whatever was retried ([`senders`]).
//! - `order-per-topic`: offsets grow with the log; a message's pending rows carry its offset.
//! - `settle-once`: a pending entry leaves once; its message goes with the last of them.
//! - `release-once`: a delayed message is appended by the entry that takes it out of those that wait.
//! - `apply-deterministic`: nothing here looks at a clock or at another group.

mod append;
mod apply;
mod delayed;
mod effects;
mod head;
mod ledger;
mod messages;
mod pending;
mod repeats;
mod retained;
mod rows;
mod senders;
mod shared;
mod sweep;

use std::io;
use std::sync::Arc;

use bytes::Bytes;

pub use delayed::{Delayed, DelayedSize, read_delayed, read_delayed_size};
pub use effects::{Appended, Applied, ShardSink};
pub use head::{read_head, read_ledger, read_retained_size};
pub use ledger::Ledger;
pub use pending::{Page, PendingEntry, read_page};
pub use repeats::{read_received, remembered_wills};
pub use retained::{
    Retained, RetainedMessage, RetainedPage, RetainedSize, next_retained_expiry, read_retained, remembered_replays,
};
pub use senders::is_fenced;
pub use shared::{Assigned, Waiting, count_waiting, read_assigned, read_waiting};
pub use sweep::{SESSION_KINDS, SWEEP_PAGE, next_session};

use crate::command::{NodeBatch, Reply, decode_envelope};
use crate::ids::ShardId;
use crate::keys;
use crate::machine::{EntryPosition, Machine, TableBatch, Tables};
use head::Head;
use messages::Counts;
use rows::Rows;
use senders::Senders;

/// The state machine of a shard's group.
pub struct Shard {
    shard: ShardId,
    sink: Arc<dyn ShardSink>,
    head: Head,
    senders: Senders,
    effects: Option<Applied>,
}

impl Shard {
    pub fn new(shard: ShardId, sink: Arc<dyn ShardSink>) -> Self {
        Shard {
            shard,
            sink,
            head: Head::default(),
            senders: Senders::default(),
            effects: None,
        }
    }

    fn no_effects(&self, at: EntryPosition) -> Applied {
        Applied {
            shard: self.shard,
            at,
            after: self.head.last_offset,
            upto: self.head.last_offset,
            now: self.head.log_time,
            appended: Vec::new(),
            waiting: Vec::new(),
            retained: self.head.retained,
            delayed: self.head.delayed.size,
            ledger: self.head.ledger,
        }
    }
}

impl Machine for Shard {
    fn load(&mut self, tables: &Tables, reset: bool) -> io::Result<()> {
        self.effects = None;
        self.senders = Senders::load(tables)?;
        self.head = Head::read(tables)?;
        if reset {
            let at = tables.applied_index()?;
            let Head {
                last_offset,
                retained,
                delayed,
                ledger,
                ..
            } = self.head;
            self.sink
                .jumped(self.shard, last_offset, at, retained, delayed.size, ledger);
        }
        Ok(())
    }

    fn apply(
        &mut self,
        tables: &Tables,
        batch: &mut TableBatch<'_>,
        at: EntryPosition,
        command: &Bytes,
    ) -> io::Result<Reply> {
        let (now, bundles) = decode_envelope(command)?;
        // Log time never runs backwards, whatever a new leader believed.
        self.head.log_time = self.head.log_time.max(now);
        self.effects = Some(self.no_effects(at));
        let mut rows = Rows::new(tables, batch);
        let mut replies = Vec::with_capacity(bundles.len());
        for bundle in &bundles {
            let node_batch = NodeBatch::decode(bundle)?;
            replies.push(self.apply_batch(node_batch, &mut rows)?.encode());
        }
        let Counts { written, removed, .. } = rows.counts;
        self.head.ledger.moved(written, removed);
        rows.batch.put(&[keys::SHARD_HEAD], &self.head.encode());
        if let Some(effects) = &mut self.effects {
            effects.upto = self.head.last_offset;
            effects.retained = self.head.retained;
            effects.delayed = self.head.delayed.size;
            effects.ledger = self.head.ledger;
            effects.waiting.sort_unstable();
            effects.waiting.dedup();
        }
        Ok(Reply(replies))
    }

    fn emit(&mut self, at: EntryPosition) {
        let effects = self.effects.take().unwrap_or_else(|| self.no_effects(at));
        self.sink.applied(effects);
    }
}

#[cfg(test)]
mod tests;
