//! Everything a log entry can say, and its bytes.
//!
//!     entry = envelope: version · now · bundles        (a bundle: what one proposer queued, answered on its own)
//!     meta bundle  = MetaOp …                          answered by one MetaReply per operation
//!     shard bundle = NodeBatch { node, incarnation, sequence, operations }   answered by one BatchReply
//!
//! Time, randomness and routing results enter here as data, so that every replica does the same
//! (`apply-deterministic`).

use bytes::Bytes;

use crate::encoding::{DecodeError, Reader, Writer};
use crate::ids::{Incarnation, MetaIndex, NodeId, Offset, SessionEpoch, SessionId};
use crate::message::{LogTime, Recipient};
use crate::raft_types::Command;

/// What apply answers for one entry: one encoded reply per bundle, in order. Empty for blank and membership entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply(pub Vec<Bytes>);

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} replies", self.0.len())
    }
}

const ENVELOPE_VERSION: u8 = 1;

/// Wraps bundles into one entry. `now` is the leader's log time.
pub fn encode_envelope(now: LogTime, bundles: &[Bytes]) -> Command {
    let mut writer = Writer::with_capacity(bundles.iter().map(|bundle| bundle.len() + 5).sum::<usize>() + 16);
    writer.u8(ENVELOPE_VERSION).var(now.0).var(bundles.len() as u64);
    for bundle in bundles {
        writer.bytes(bundle);
    }
    Command(writer.finish())
}

/// # Errors
/// The bytes are torn or of a later version.
pub fn decode_envelope(bytes: &Bytes) -> Result<(LogTime, Vec<Bytes>), DecodeError> {
    let mut reader = Reader::new("command", bytes);
    if reader.u8()? != ENVELOPE_VERSION {
        return Err(reader.error());
    }
    let now = LogTime(reader.var()?);
    let mut bundles = Vec::new();
    for _ in 0..reader.count()? {
        bundles.push(reader.bytes()?);
    }
    reader.end()?;
    Ok((now, bundles))
}

// ───────────────────────────────────────────── shards ─────────────────────────────────────────────

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

// ────────────────────────────────────────────── meta ──────────────────────────────────────────────

/// A subscription as granted. [MQTT-3.8.3]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    pub filter: Box<str>,
    /// Granted maximum QoS.
    pub qos: u8,
    pub no_local: bool,
    pub retain_as_published: bool,
    pub identifier: Option<u32>,
}

/// Operations on the control plane. Each is idempotent or guarded by an epoch, since a proposer may repeat it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaOp {
    /// A node starts to serve. `start` is unique to the process (repeats are recognised by it).
    NodeUp { node: NodeId, start: u64 },
    /// The meta leader found that the incarnation's lease ran out.
    NodeDown { node: NodeId, incarnation: Incarnation },
    /// CONNECT. A session is durable if `expiry` > 0, fixed at creation. `request` is unique in the incarnation: a
    /// repeat gets the first answer again, so that Session Present stays true. [MQTT-3.2.2-2]
    Connect {
        client_id: Box<str>,
        clean_start: bool,
        expiry: u32,
        node: NodeId,
        incarnation: Incarnation,
        request: u64,
    },
    /// The connection of `epoch` ended. `expiry` if DISCONNECT changed it; `sent` is the highest offset that was ever
    /// sent, by shard; `None` if the connection does not know what earlier ones sent. An ephemeral session ends with it.
    Detach {
        session: SessionId,
        epoch: SessionEpoch,
        expiry: Option<u32>,
        sent: Option<Vec<Offset>>,
    },
    /// Subscriptions of a durable session; replaces those with an equal filter. [MQTT-3.8.4-3]
    Subscribe {
        session: SessionId,
        epoch: SessionEpoch,
        subscriptions: Vec<Subscription>,
    },
    Unsubscribe {
        session: SessionId,
        epoch: SessionEpoch,
        filters: Vec<Box<str>>,
    },
    /// Filters with the first (`add`) or without any more connected ephemeral subscribers on a node.
    NodeRoutes {
        node: NodeId,
        incarnation: Incarnation,
        add: Vec<Box<str>>,
        remove: Vec<Box<str>>,
    },
    /// Ends at most `limit` sessions whose expiry has passed in log time.
    ExpireSessions { limit: u32 },
}

/// Who serves a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub node: NodeId,
    pub incarnation: Incarnation,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaReply {
    Done,
    /// NodeUp.
    Admitted {
        incarnation: Incarnation,
    },
    /// Connect. `previous` was serving the client id until this entry.
    Connected {
        session: SessionId,
        epoch: SessionEpoch,
        present: bool,
        durable: bool,
        previous: Option<Owner>,
    },
    /// Unsubscribe: whether each filter was subscribed.
    Unsubscribed {
        existed: Vec<bool>,
    },
    /// The epoch, session or incarnation named is not current: the operation is void.
    Stale,
    /// ExpireSessions.
    Expired {
        count: u32,
    },
}

const META_OP_VERSION: u8 = 1;

/// One meta bundle: the operations of one proposer, answered in order.
pub fn encode_meta_ops(operations: &[MetaOp]) -> Bytes {
    let mut writer = Writer::with_capacity(128);
    writer.u8(META_OP_VERSION).var(operations.len() as u64);
    for operation in operations {
        write_meta_op(&mut writer, operation);
    }
    writer.finish()
}

fn write_meta_op(writer: &mut Writer, operation: &MetaOp) {
    match operation {
        MetaOp::NodeUp { node, start } => {
            writer.u8(0).var(*node).u64(*start);
        }
        MetaOp::NodeDown { node, incarnation } => {
            writer.u8(1).var(*node).var(incarnation.0);
        }
        MetaOp::Connect {
            client_id,
            clean_start,
            expiry,
            node,
            incarnation,
            request,
        } => {
            writer
                .u8(2)
                .str(client_id)
                .bool(*clean_start)
                .var(*expiry as u64)
                .var(*node)
                .var(incarnation.0);
            writer.var(*request);
        }
        MetaOp::Detach {
            session,
            epoch,
            expiry,
            sent,
        } => {
            writer.u8(3).var(session.0).var(epoch.0).option(*expiry, |w, seconds| {
                w.var(seconds as u64);
            });
            writer.option(sent.as_deref(), write_offsets);
        }
        MetaOp::Subscribe {
            session,
            epoch,
            subscriptions,
        } => {
            writer.u8(4).var(session.0).var(epoch.0).var(subscriptions.len() as u64);
            for subscription in subscriptions {
                subscription.write(writer);
            }
        }
        MetaOp::Unsubscribe {
            session,
            epoch,
            filters,
        } => {
            writer.u8(5).var(session.0).var(epoch.0);
            write_strings(writer, filters);
        }
        MetaOp::NodeRoutes {
            node,
            incarnation,
            add,
            remove,
        } => {
            writer.u8(6).var(*node).var(incarnation.0);
            write_strings(writer, add);
            write_strings(writer, remove);
        }
        MetaOp::ExpireSessions { limit } => {
            writer.u8(7).var(*limit as u64);
        }
    }
}

/// # Errors
/// The bytes are torn or of a later version.
pub fn decode_meta_ops(bytes: &Bytes) -> Result<Vec<MetaOp>, DecodeError> {
    let mut reader = Reader::new("meta operations", bytes);
    if reader.u8()? != META_OP_VERSION {
        return Err(reader.error());
    }
    let mut operations = Vec::new();
    for _ in 0..reader.count()? {
        operations.push(read_meta_op(&mut reader)?);
    }
    reader.end()?;
    Ok(operations)
}

fn read_meta_op(reader: &mut Reader<'_>) -> Result<MetaOp, DecodeError> {
    Ok(match reader.u8()? {
        0 => MetaOp::NodeUp {
            node: reader.var()?,
            start: reader.u64()?,
        },
        1 => MetaOp::NodeDown {
            node: reader.var()?,
            incarnation: Incarnation(reader.var()?),
        },
        2 => MetaOp::Connect {
            client_id: reader.str()?.into(),
            clean_start: reader.bool()?,
            expiry: reader.var32()?,
            node: reader.var()?,
            incarnation: Incarnation(reader.var()?),
            request: reader.var()?,
        },
        3 => MetaOp::Detach {
            session: SessionId(reader.var()?),
            epoch: SessionEpoch(reader.var()?),
            expiry: reader.option(|r| r.var32())?,
            sent: reader.option(read_offsets)?,
        },
        4 => {
            let (session, epoch) = (SessionId(reader.var()?), SessionEpoch(reader.var()?));
            let mut subscriptions = Vec::new();
            for _ in 0..reader.count()? {
                subscriptions.push(Subscription::read(reader)?);
            }
            MetaOp::Subscribe {
                session,
                epoch,
                subscriptions,
            }
        }
        5 => MetaOp::Unsubscribe {
            session: SessionId(reader.var()?),
            epoch: SessionEpoch(reader.var()?),
            filters: read_strings(reader)?,
        },
        6 => MetaOp::NodeRoutes {
            node: reader.var()?,
            incarnation: Incarnation(reader.var()?),
            add: read_strings(reader)?,
            remove: read_strings(reader)?,
        },
        7 => MetaOp::ExpireSessions { limit: reader.var32()? },
        _ => return Err(reader.error()),
    })
}

pub(crate) fn write_offsets(writer: &mut Writer, offsets: &[Offset]) {
    writer.var(offsets.len() as u64);
    for offset in offsets {
        writer.var(offset.0);
    }
}

pub(crate) fn read_offsets(reader: &mut Reader<'_>) -> Result<Vec<Offset>, DecodeError> {
    let mut offsets = Vec::new();
    for _ in 0..reader.count()? {
        offsets.push(Offset(reader.var()?));
    }
    Ok(offsets)
}

fn write_strings(writer: &mut Writer, strings: &[Box<str>]) {
    writer.var(strings.len() as u64);
    for string in strings {
        writer.str(string);
    }
}

fn read_strings(reader: &mut Reader<'_>) -> Result<Vec<Box<str>>, DecodeError> {
    let mut strings = Vec::new();
    for _ in 0..reader.count()? {
        strings.push(reader.str()?.into());
    }
    Ok(strings)
}

impl Subscription {
    pub fn write(&self, writer: &mut Writer) {
        let flags = self.qos | (self.no_local as u8) << 2 | (self.retain_as_published as u8) << 3;
        writer
            .str(&self.filter)
            .u8(flags)
            .var(self.identifier.unwrap_or(0) as u64);
    }

    /// # Errors
    /// The bytes are torn.
    pub fn read(reader: &mut Reader<'_>) -> Result<Subscription, DecodeError> {
        let filter = reader.str()?.into();
        let flags = reader.u8()?;
        let identifier = Some(reader.var32()?).filter(|identifier| *identifier != 0);
        Ok(Subscription {
            filter,
            qos: flags & 3,
            no_local: flags & 4 != 0,
            retain_as_published: flags & 8 != 0,
            identifier,
        })
    }
}

/// Answers of one meta bundle, in order of its operations.
pub fn encode_meta_replies(replies: &[MetaReply]) -> Bytes {
    let mut writer = Writer::new();
    writer.var(replies.len() as u64);
    for reply in replies {
        match reply {
            MetaReply::Done => {
                writer.u8(0);
            }
            MetaReply::Admitted { incarnation } => {
                writer.u8(1).var(incarnation.0);
            }
            MetaReply::Connected {
                session,
                epoch,
                present,
                durable,
                previous,
            } => {
                writer.u8(2).var(session.0).var(epoch.0).bool(*present).bool(*durable);
                writer.option(*previous, |w, owner| {
                    w.var(owner.node).var(owner.incarnation.0);
                });
            }
            MetaReply::Unsubscribed { existed } => {
                writer.u8(3).var(existed.len() as u64);
                for one in existed {
                    writer.bool(*one);
                }
            }
            MetaReply::Stale => {
                writer.u8(4);
            }
            MetaReply::Expired { count } => {
                writer.u8(5).var(*count as u64);
            }
        }
    }
    writer.finish()
}

/// # Errors
/// The bytes are torn.
pub fn decode_meta_replies(bytes: &Bytes) -> Result<Vec<MetaReply>, DecodeError> {
    let mut reader = Reader::new("meta replies", bytes);
    let mut replies = Vec::new();
    for _ in 0..reader.count()? {
        replies.push(match reader.u8()? {
            0 => MetaReply::Done,
            1 => MetaReply::Admitted {
                incarnation: Incarnation(reader.var()?),
            },
            2 => MetaReply::Connected {
                session: SessionId(reader.var()?),
                epoch: SessionEpoch(reader.var()?),
                present: reader.bool()?,
                durable: reader.bool()?,
                previous: reader.option(|r| {
                    Ok(Owner {
                        node: r.var()?,
                        incarnation: Incarnation(r.var()?),
                    })
                })?,
            },
            3 => {
                let mut existed = Vec::new();
                for _ in 0..reader.count()? {
                    existed.push(reader.bool()?);
                }
                MetaReply::Unsubscribed { existed }
            }
            4 => MetaReply::Stale,
            5 => MetaReply::Expired { count: reader.var32()? },
            _ => return Err(reader.error()),
        });
    }
    reader.end()?;
    Ok(replies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_survives_encoding() {
        let batch = NodeBatch {
            node: 2,
            incarnation: Incarnation(9),
            sequence: 300,
            route_version: MetaIndex(6),
            recipient_sets: vec![vec![Recipient {
                session: SessionId(5),
                qos: 1,
                retain: false,
                subscription_identifiers: vec![7, 70_000],
            }]],
            operations: vec![
                ShardOperation::Append {
                    message: Bytes::from_static(b"m"),
                    recipients: 0,
                },
                ShardOperation::Ack {
                    session: SessionId(5),
                    offsets: vec![Offset(1), Offset(200)],
                },
            ],
        };
        let bytes = batch.encode();
        assert_eq!(
            bytes[..],
            b"\x01\x02\x09\xac\x02\x06\x01\x01\x05\x01\x02\x07\xf0\xa2\x04\x02\x00\x00\x01m\x01\x05\x02\x01\xc8\x01"[..],
            "golden: readable-forever"
        );
        assert_eq!(NodeBatch::decode(&bytes).unwrap(), batch);
    }

    #[test]
    fn a_batch_that_names_a_missing_recipient_set_is_refused() {
        let batch = NodeBatch {
            node: 1,
            incarnation: Incarnation(1),
            sequence: 1,
            route_version: MetaIndex(0),
            recipient_sets: vec![],
            operations: vec![ShardOperation::Append {
                message: Bytes::new(),
                recipients: 0,
            }],
        };
        assert!(NodeBatch::decode(&batch.encode()).is_err());
    }

    #[test]
    fn meta_operations_survive_encoding() {
        let operations = vec![
            MetaOp::NodeUp {
                node: 1,
                start: u64::MAX,
            },
            MetaOp::NodeDown {
                node: 1,
                incarnation: Incarnation(4),
            },
            MetaOp::Connect {
                client_id: "c".into(),
                clean_start: true,
                expiry: u32::MAX,
                node: 3,
                incarnation: Incarnation(8),
                request: 5,
            },
            MetaOp::Detach {
                session: SessionId(1),
                epoch: SessionEpoch(2),
                expiry: Some(0),
                sent: Some(vec![Offset(3)]),
            },
            MetaOp::Subscribe {
                session: SessionId(1),
                epoch: SessionEpoch(2),
                subscriptions: vec![Subscription {
                    filter: "a/#".into(),
                    qos: 1,
                    no_local: true,
                    retain_as_published: true,
                    identifier: Some(5),
                }],
            },
            MetaOp::Unsubscribe {
                session: SessionId(1),
                epoch: SessionEpoch(2),
                filters: vec!["a/#".into()],
            },
            MetaOp::NodeRoutes {
                node: 1,
                incarnation: Incarnation(4),
                add: vec!["x".into()],
                remove: vec![],
            },
            MetaOp::ExpireSessions { limit: 10 },
        ];
        assert_eq!(decode_meta_ops(&encode_meta_ops(&operations)).unwrap(), operations);
        let replies = vec![
            MetaReply::Done,
            MetaReply::Admitted {
                incarnation: Incarnation(1),
            },
            MetaReply::Connected {
                session: SessionId(1),
                epoch: SessionEpoch(2),
                present: true,
                durable: false,
                previous: Some(Owner {
                    node: 1,
                    incarnation: Incarnation(3),
                }),
            },
            MetaReply::Unsubscribed {
                existed: vec![true, false],
            },
            MetaReply::Stale,
            MetaReply::Expired { count: 3 },
        ];
        assert_eq!(decode_meta_replies(&encode_meta_replies(&replies)).unwrap(), replies);
    }

    #[test]
    fn an_envelope_survives_encoding() {
        let bundles = vec![Bytes::from_static(b"one"), Bytes::new()];
        let command = encode_envelope(LogTime(12), &bundles);
        assert_eq!(
            command.0[..],
            b"\x01\x0c\x02\x03one\x00"[..],
            "golden: readable-forever"
        );
        assert_eq!(decode_envelope(&command.0).unwrap(), (LogTime(12), bundles));
    }
}
