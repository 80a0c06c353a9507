//! One topic shard: messages in order of their offset, and who still has to get them.
//!
//!     entry ─▶ bundles ─▶ NodeBatch: sequence ─▶ Append: offset, message, pending rows ─▶ effects ─▶ ShardSink
//!                                             └▶ Ack:    pending row and, with the last, message go
//!
//! Apply is pure: tables, memory and command in; rows, replies and effects out. Delivery is somebody else's.
//!
//! Invariants
//! - `batch-sequence`: each node's batches are applied once and in sequence, whatever was retried ([`senders`]).
//! - `order-per-topic`: offsets grow with the log; a message's pending rows carry its offset.
//! - `settle-once`: a pending entry leaves once; its message goes with the last of them.
//! - `apply-deterministic`: nothing here looks at a clock or at another group.

mod messages;
mod pending;
mod senders;

use std::io;
use std::sync::Arc;

use bytes::Bytes;

pub use pending::{Page, PendingEntry, next_session, read_page};

use crate::command::{BatchReply, NodeBatch, Reply, ShardOperation, decode_envelope};
use crate::encoding::{Reader, Writer};
use crate::ids::{Offset, ShardId};
use crate::keys;
use crate::machine::{EntryPosition, Machine, TableBatch, Tables};
use crate::message::{LogTime, Message, Recipient};
use messages::Counts;
use senders::{Senders, Sequenced};

/// Hears of what was applied, in log order, on the group's apply task. Must not block.
pub trait ShardSink: Send + Sync + 'static {
    /// Everything up to and including `applied.upto` is in the tables; `applied.appended` is what this entry added.
    fn applied(&self, applied: Applied);

    /// The view jumped to `upto` and log index `at` (a snapshot was installed): what lies between was never handed to
    /// `applied`.
    fn jumped(&self, shard: ShardId, upto: Offset, at: u64);
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
}

/// A message that just became part of the shard.
#[derive(Clone, Debug)]
pub struct Appended {
    pub offset: Offset,
    pub message: Arc<Message>,
    /// The message as stored: what a following node is sent.
    pub encoded: Bytes,
    pub recipients: Arc<[Recipient]>,
}

/// The state machine of a shard's group.
pub struct Shard {
    shard: ShardId,
    sink: Arc<dyn ShardSink>,
    last_offset: Offset,
    log_time: LogTime,
    senders: Senders,
    effects: Option<Applied>,
}

impl Shard {
    pub fn new(shard: ShardId, sink: Arc<dyn ShardSink>) -> Self {
        Shard {
            shard,
            sink,
            last_offset: Offset(0),
            log_time: LogTime(0),
            senders: Senders::default(),
            effects: None,
        }
    }

    fn apply_batch(&mut self, batch: NodeBatch, rows: &mut Rows<'_, '_>) -> io::Result<BatchReply> {
        match self.senders.check(batch.node, batch.incarnation, batch.sequence) {
            Sequenced::Answered(reply) => return Ok(reply),
            Sequenced::Next => {}
        }
        let recipient_sets: Vec<Arc<[Recipient]>> = batch.recipient_sets.into_iter().map(Arc::from).collect();
        let first = Offset(self.last_offset.0 + 1);
        let mut count = 0;
        for operation in batch.operations {
            match operation {
                ShardOperation::Append { message, recipients } => {
                    let recipients = recipient_sets[recipients as usize].clone();
                    self.append(message, recipients, rows)?;
                    count += 1;
                }
                ShardOperation::Sweep { session } => {
                    for offset in pending::offsets(rows.tables, session, SWEEP_PAGE)? {
                        rows.counts.settle(rows.tables, rows.batch, session, offset)?;
                    }
                }
                ShardOperation::Ack { session, offsets } => {
                    for offset in offsets {
                        rows.counts.settle(rows.tables, rows.batch, session, offset)?;
                    }
                }
            }
        }
        let reply = BatchReply::Applied { first, count };
        self.senders
            .record(batch.node, batch.incarnation, batch.sequence, reply.clone(), rows.batch);
        Ok(reply)
    }

    fn append(&mut self, encoded: Bytes, recipients: Arc<[Recipient]>, rows: &mut Rows<'_, '_>) -> io::Result<()> {
        let message = Arc::new(Message::decode(&encoded)?);
        self.last_offset.0 += 1;
        let offset = self.last_offset;
        // Without a pending entry nobody will read it from the tables: what is connected gets it from the effects.
        if !recipients.is_empty() {
            rows.counts
                .store(rows.batch, offset, self.log_time, &encoded, &recipients);
        }
        if let Some(effects) = &mut self.effects {
            effects.appended.push(Appended {
                offset,
                message,
                encoded,
                recipients,
            });
        }
        Ok(())
    }
}

/// What an entry reads and writes, with the counts that it changed and the tables do not show yet.
struct Rows<'a, 'b> {
    tables: &'a Tables,
    batch: &'a mut TableBatch<'b>,
    counts: Counts,
}

impl Machine for Shard {
    fn load(&mut self, tables: &Tables, reset: bool) -> io::Result<()> {
        self.effects = None;
        self.senders = Senders::load(tables)?;
        (self.last_offset, self.log_time) = read_head(tables)?;
        if reset {
            self.sink.jumped(self.shard, self.last_offset, tables.applied_index()?);
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
        self.log_time = self.log_time.max(now);
        self.effects = Some(Applied {
            shard: self.shard,
            at,
            after: self.last_offset,
            upto: self.last_offset,
            now: self.log_time,
            appended: Vec::new(),
        });
        let mut rows = Rows {
            tables,
            batch,
            counts: Counts::default(),
        };
        let mut replies = Vec::with_capacity(bundles.len());
        for bundle in &bundles {
            let node_batch = NodeBatch::decode(bundle)?;
            replies.push(self.apply_batch(node_batch, &mut rows)?.encode());
        }
        let mut head = Writer::new();
        head.u64(self.last_offset.0).u64(self.log_time.0);
        rows.batch.put(&[keys::SHARD_HEAD], &head.finish());
        if let Some(effects) = &mut self.effects {
            effects.upto = self.last_offset;
        }
        Ok(Reply(replies))
    }

    fn emit(&mut self, at: EntryPosition) {
        let effects = self.effects.take().unwrap_or(Applied {
            shard: self.shard,
            at,
            after: self.last_offset,
            upto: self.last_offset,
            now: self.log_time,
            appended: Vec::new(),
        });
        self.sink.applied(effects);
    }
}

/// Last offset and log time of a shard as its tables show them.
///
/// # Errors
/// The engine cannot read, or the row is torn.
pub fn read_head(tables: &Tables) -> io::Result<(Offset, LogTime)> {
    let Some(row) = tables.get(&[keys::SHARD_HEAD])? else {
        return Ok((Offset(0), LogTime(0)));
    };
    let mut reader = Reader::new("shard head", &row);
    Ok((Offset(reader.u64()?), LogTime(reader.u64()?)))
}

/// Entries of a dead session that one operation removes: an entry of the log stays short in apply.
pub const SWEEP_PAGE: usize = 1000;

#[cfg(test)]
mod tests;
