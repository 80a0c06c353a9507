//! Each node's batches are applied once and in sequence (`batch-sequence`).
//!
//!     sequence ≤ last, reply kept   → that reply again          sequence = last + 1 → apply
//!     sequence ≤ last, forgotten    → Forgotten                 beyond              → Gap
//!
//! A lower incarnation is dead; a higher one ends the lower and begins at sequence 1.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use crate::command::BatchReply;
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
    replies: VecDeque<(Offset, u32)>,
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
                replies.push_back((Offset(reader.var()?), reader.var32()?));
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
            Some((first, count)) => BatchReply::Applied {
                first: *first,
                count: *count,
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
        let BatchReply::Applied { first, count } = reply else {
            return;
        };
        let sender = self.nodes.entry(node).or_insert_with(|| Sender {
            incarnation,
            last: 0,
            replies: VecDeque::new(),
        });
        if sender.incarnation != incarnation {
            *sender = Sender {
                incarnation,
                last: 0,
                replies: VecDeque::new(),
            };
        }
        debug_assert_eq!(sequence, sender.last + 1, "batch-sequence");
        sender.last = sequence;
        sender.replies.push_back((first, count));
        if sender.replies.len() > REPLIES_KEPT {
            sender.replies.pop_front();
        }
        let mut writer = Writer::with_capacity(96);
        writer
            .var(incarnation.0)
            .var(sender.last)
            .var(sender.replies.len() as u64);
        for (first, count) in &sender.replies {
            writer.var(first.0).var(*count as u64);
        }
        batch.put(&keys::number(keys::SENDER, node), &writer.finish());
    }
}
