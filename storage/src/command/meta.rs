//! What the control plane's log says: operations on nodes, sessions and routes, and what apply answers to each.

use bytes::Bytes;

use crate::encoding::{DecodeError, Reader, Writer};
use crate::ids::{Incarnation, NodeId, Offset, SessionEpoch, SessionId};

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
