//! What a shard's log says: batches of nodes, and what apply answers to each.

use bytes::Bytes;

use crate::encoding::{DecodeError, Reader, Writer};
use crate::ids::{Incarnation, MetaIndex, NodeId, Offset, SessionId};
use crate::message::Recipient;

/// Operations of one node for one shard. Messages and sequence are fixed once it was sent (`batch-sequence`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeBatch {
    pub node: NodeId,
    pub incarnation: Incarnation,
    /// From 1 per (incarnation, shard), without gaps.
    pub sequence: u64,
    /// The lowest route version that one of its messages was matched at.
    pub route_version: MetaIndex,
    /// Recipient sets that the operations refer to: equal matches are written once.
    pub recipient_sets: Vec<Vec<Recipient>>,
    pub operations: Vec<ShardOperation>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardOperation {
    /// Stores a message for the recipients of a set. `message` is an encoded [`crate::message::Message`].
    Append { message: Bytes, recipients: u32 },
    /// The session is gone for good: at most [`crate::shard::SWEEP_PAGE`] of its entries leave. Repeated until none is
    /// left.
    Sweep { session: SessionId },
    /// PUBACK or PUBCOMP received: the entries leave the session's queue. Idempotent, true from any owner.
    Ack { session: SessionId, offsets: Vec<Offset> },
}

/// What apply says to one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchReply {
    /// Applied now, or earlier under the same sequence: the offsets that its messages took, consecutive from `first`.
    Applied { first: Offset, count: u32 },
    /// A sequence before it is missing: everything from `expected` on must be sent again, in order.
    Gap { expected: u64 },
    /// So old that its results are no longer kept; a correct sender never sees this.
    Forgotten,
    /// The incarnation ended: nothing was stored, nothing ever will be under it.
    DeadIncarnation,
}

const BATCH_VERSION: u8 = 1;

impl NodeBatch {
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(256);
        writer
            .u8(BATCH_VERSION)
            .var(self.node)
            .var(self.incarnation.0)
            .var(self.sequence);
        writer.var(self.route_version.0);
        writer.var(self.recipient_sets.len() as u64);
        for set in &self.recipient_sets {
            writer.var(set.len() as u64);
            for recipient in set {
                recipient.write(&mut writer);
            }
        }
        writer.var(self.operations.len() as u64);
        for operation in &self.operations {
            match operation {
                ShardOperation::Append { message, recipients } => {
                    writer.u8(0).var(*recipients as u64).bytes(message);
                }
                ShardOperation::Sweep { session } => {
                    writer.u8(2).var(session.0);
                }
                ShardOperation::Ack { session, offsets } => {
                    writer.u8(1).var(session.0).var(offsets.len() as u64);
                    for offset in offsets {
                        writer.var(offset.0);
                    }
                }
            }
        }
        writer.finish()
    }

    /// # Errors
    /// The bytes are torn, of a later version, or refer to a set that is not there.
    pub fn decode(bytes: &Bytes) -> Result<NodeBatch, DecodeError> {
        let mut reader = Reader::new("batch", bytes);
        if reader.u8()? != BATCH_VERSION {
            return Err(reader.error());
        }
        let node = reader.var()?;
        let incarnation = Incarnation(reader.var()?);
        let sequence = reader.var()?;
        let route_version = MetaIndex(reader.var()?);
        let mut recipient_sets = Vec::new();
        for _ in 0..reader.count()? {
            let mut set = Vec::new();
            for _ in 0..reader.count()? {
                set.push(Recipient::read(&mut reader)?);
            }
            recipient_sets.push(set);
        }
        let mut operations = Vec::new();
        for _ in 0..reader.count()? {
            operations.push(match reader.u8()? {
                0 => {
                    let recipients = reader.var32()?;
                    if recipients as usize >= recipient_sets.len() {
                        return Err(reader.error());
                    }
                    ShardOperation::Append {
                        recipients,
                        message: reader.bytes()?,
                    }
                }
                2 => ShardOperation::Sweep {
                    session: SessionId(reader.var()?),
                },
                1 => {
                    let session = SessionId(reader.var()?);
                    let mut offsets = Vec::new();
                    for _ in 0..reader.count()? {
                        offsets.push(Offset(reader.var()?));
                    }
                    ShardOperation::Ack { session, offsets }
                }
                _ => return Err(reader.error()),
            });
        }
        reader.end()?;
        Ok(NodeBatch {
            node,
            incarnation,
            sequence,
            route_version,
            recipient_sets,
            operations,
        })
    }
}

impl BatchReply {
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::new();
        match self {
            BatchReply::Applied { first, count } => {
                writer.u8(0).var(first.0).var(*count as u64);
            }
            BatchReply::Gap { expected } => {
                writer.u8(1).var(*expected);
            }
            BatchReply::Forgotten => {
                writer.u8(2);
            }
            BatchReply::DeadIncarnation => {
                writer.u8(3);
            }
        }
        writer.finish()
    }

    /// # Errors
    /// The bytes are torn.
    pub fn decode(bytes: &Bytes) -> Result<BatchReply, DecodeError> {
        let mut reader = Reader::new("batch reply", bytes);
        Ok(match reader.u8()? {
            0 => BatchReply::Applied {
                first: Offset(reader.var()?),
                count: reader.var32()?,
            },
            1 => BatchReply::Gap {
                expected: reader.var()?,
            },
            2 => BatchReply::Forgotten,
            3 => BatchReply::DeadIncarnation,
            _ => return Err(reader.error()),
        })
    }
}
