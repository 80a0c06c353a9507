//! Each node's batches are applied once and in sequence (`batch-sequence`).
//!
//!     sequence ≤ last, reply kept   → that reply again          sequence = last + 1 → apply
//!     sequence ≤ last, forgotten    → Forgotten                 beyond              → Gap
//!
//! A lower incarnation is dead; a higher one ends the lower and begins at sequence 1.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use crate::command::{BatchReply, OperationResult, read_applied, write_applied};
use crate::encoding::{Reader, Writer};
use crate::ids::{Incarnation, NodeId, Offset};
use crate::keys;
use crate::machine::{TableBatch, Tables};

/// A node keeps fewer batches of a shard in flight than this (`cluster`'s window is 4), so a repeat finds its reply.
pub const REPLIES_KEPT: usize = 16;

#[derive(Default)]
pub(super) struct Senders {
    nodes: BTreeMap<NodeId, Sender>,
}

struct Sender {
    incarnation: Incarnation,
    last: u64,
    /// Replies of `last - len + 1 ..= last`; only `Applied` ones get a sequence.
    replies: VecDeque<(Offset, Vec<(u32, OperationResult)>)>,
}

pub(super) enum Sequenced {
    Next,
    Answered(BatchReply),
}

impl Senders {
    pub fn load(tables: &Tables) -> io::Result<Senders> {
        let (start, end) = keys::kind_range(keys::SENDER);
        let mut nodes = BTreeMap::new();
        for (key, value) in tables.scan(&start, &end, usize::MAX)? {
            let mut reader = Reader::new("sender key", &key);
            reader.u8()?;
            let node = reader.u64()?;
            let mut reader = Reader::new("sender", &value);
            let (incarnation, last) = (Incarnation(reader.var()?), reader.var()?);
            let mut replies = VecDeque::new();
            for _ in 0..reader.count()? {
                replies.push_back(read_applied(&mut reader)?);
            }
            nodes.insert(
                node,
                Sender {
                    incarnation,
                    last,
                    replies,
                },
            );
        }
        Ok(Senders { nodes })
    }

    pub fn check(&self, node: NodeId, incarnation: Incarnation, sequence: u64) -> Sequenced {
        let (last, replies) = match self.nodes.get(&node) {
            Some(sender) if sender.incarnation > incarnation => {
                return Sequenced::Answered(BatchReply::DeadIncarnation);
            }
            Some(sender) if sender.incarnation == incarnation => (sender.last, Some(&sender.replies)),
            Some(_) | None => (0, None),
        };
        if sequence == last + 1 {
            return Sequenced::Next;
        }
        if sequence > last {
            return Sequenced::Answered(BatchReply::Gap { expected: last + 1 });
        }
        let back = (last - sequence) as usize;
        let kept = replies.and_then(|replies| replies.len().checked_sub(back + 1).and_then(|at| replies.get(at)));
        Sequenced::Answered(match kept {
            Some((upto, results)) => BatchReply::Applied {
                upto: *upto,
                results: results.clone(),
            },
            None => BatchReply::Forgotten,
        })
    }

    /// Remembers that the batch that [`Senders::check`] called next has been applied.
    pub fn record(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
        sequence: u64,
        reply: BatchReply,
        batch: &mut TableBatch<'_>,
    ) {
        let BatchReply::Applied { upto, results } = reply else {
            return;
        };
        let sender = self.nodes.entry(node).or_insert_with(|| Sender::new(incarnation));
        if sender.incarnation > incarnation {
            // The batch has fenced off its own incarnation: it stays so.
            return;
        }
        if sender.incarnation != incarnation {
            *sender = Sender::new(incarnation);
        }
        debug_assert_eq!(sequence, sender.last + 1, "batch-sequence");
        sender.last = sequence;
        sender.replies.push_back((upto, results));
        if sender.replies.len() > REPLIES_KEPT {
            sender.replies.pop_front();
        }
        sender.put(node, batch);
    }

    /// Nothing more is taken of `incarnation` or an earlier one.
    pub fn fence(&mut self, node: NodeId, incarnation: Incarnation, batch: &mut TableBatch<'_>) {
        // Should a start of the node get this very number, it begins at sequence 1 like any other.
        let over = Incarnation(incarnation.0.saturating_add(1));
        if self.nodes.get(&node).is_none_or(|sender| sender.incarnation < over) {
            let sender = Sender::new(over);
            sender.put(node, batch);
            self.nodes.insert(node, sender);
        }
    }
}

impl Sender {
    fn new(incarnation: Incarnation) -> Sender {
        Sender {
            incarnation,
            last: 0,
            replies: VecDeque::new(),
        }
    }

    fn put(&self, node: NodeId, batch: &mut TableBatch<'_>) {
        let mut writer = Writer::with_capacity(96);
        writer
            .var(self.incarnation.0)
            .var(self.last)
            .var(self.replies.len() as u64);
        for (upto, results) in &self.replies {
            write_applied(&mut writer, *upto, results);
        }
        batch.put(&keys::number(keys::SENDER, node), &writer.finish());
    }
}

/// Whether `incarnation` of `node` is fenced off in the shard, or over because a later one came.
///
/// # Errors
/// The engine cannot read, or the row is torn.
pub fn is_fenced(tables: &Tables, node: NodeId, incarnation: Incarnation) -> io::Result<bool> {
    let Some(row) = tables.get(&keys::number(keys::SENDER, node))? else {
        return Ok(false);
    };
    Ok(Reader::new("sender", &row).var()? > incarnation.0)
}
