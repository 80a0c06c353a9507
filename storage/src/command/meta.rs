//! What the control plane's log says: operations on nodes, sessions and routes, and what apply answers to each.

use bytes::Bytes;

use super::access::{AccessOp, AccessReply};
use crate::encoding::{DecodeError, Reader, Writer};
use crate::ids::{Incarnation, MetaIndex, NodeId, Offset, SessionEpoch, SessionId};

/// A subscription as granted. [MQTT-3.8.3]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    pub filter: Box<str>,
    /// Granted maximum QoS.
    pub qos: u8,
    pub no_local: bool,
    pub retain_as_published: bool,
    /// Which retained messages a SUBSCRIBE asks for: 0 all, 1 all if the subscription is new, 2 none. [MQTT-3.3.1-9]
    /// to [MQTT-3.3.1-11]
    pub retain_handling: u8,
    pub identifier: Option<u32>,
    /// `$exclusive/{filter}`: no other session holds an exclusive subscription to `filter` meanwhile.
    pub exclusive: bool,
}

/// What a connection leaves to be published if it ends without DISCONNECT 0x00. [MQTT-3.1.2-8]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Will {
    /// An encoded [`Message`](crate::message::Message); its publisher is filled in when it is published.
    pub message: Bytes,
    /// Will Delay Interval in seconds. [MQTT-3.1.3-9]
    pub delay: u32,
    /// Who left it, as the node that took it wrote that down: what the author may is decided when the will is due. Empty: a
    /// release wrote it that did not say.
    pub author: Bytes,
}

/// Operations on the control plane. Each is idempotent or guarded by an epoch, since a proposer may repeat it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaOp {
    /// A node starts to serve. `start` is unique to the process (repeats are recognised by it).
    NodeUp { node: NodeId, start: u64 },
    /// The meta leader found that the incarnation's lease ran out.
    NodeDown { node: NodeId, incarnation: Incarnation },
    /// CONNECT. A session is durable if `expiry` > 0, fixed at creation. `request` is unique in the incarnation: a
    /// repeat gets the first answer again, so that Session Present stays true. `will` is that of this connection.
    /// [MQTT-3.2.2-2]
    Connect {
        client_id: Box<str>,
        clean_start: bool,
        expiry: u32,
        node: NodeId,
        incarnation: Incarnation,
        request: u64,
        will: Option<Will>,
    },
    /// The connection of `epoch` ended. `expiry` if DISCONNECT changed it; `sent` is the highest offset that was ever
    /// sent, by shard; `None` if the connection does not know what earlier ones sent. An ephemeral session ends with it.
    /// Without `publish_will` (DISCONNECT 0x00) the will is discarded [MQTT-3.14.4-3]; void if that comes too late.
    Detach {
        session: SessionId,
        epoch: SessionEpoch,
        expiry: Option<u32>,
        sent: Option<Vec<Offset>>,
        publish_will: bool,
    },
    /// Subscriptions of a durable session, or shared and exclusive ones of any; replaces those with an equal filter.
    /// [MQTT-3.8.4-3] Of an ephemeral session an exclusive one is only claimed here, and one that is neither gives back
    /// what was claimed: its messages come by `NodeRoutes`.
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
    /// What [`Session::retained_owed`](crate::meta::Session::retained_owed) says of `filter` has been done in every
    /// shard concerned; void if another `version` is owed by now.
    RetainedDone {
        session: SessionId,
        filter: Box<str>,
        version: MetaIndex,
    },
    /// Makes at most `limit` wills due whose time has come in log time, oldest first.
    DueWills { limit: u32 },
    /// The due will of that connection stands in its topic's shard.
    WillPublished { session: SessionId, epoch: SessionEpoch },
    /// Ends a session for good, also one that is served (a queue limit, an operator). Void if `epoch` is given and is
    /// not current.
    EndSession {
        session: SessionId,
        epoch: Option<SessionEpoch>,
    },
    /// Users, rules, bans, keys.
    Access(AccessOp),
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
    /// What the operation names (epoch, session, incarnation, version) is not current, or the entry creates too much
    /// already: the operation is void.
    Stale,
    /// ExpireSessions.
    Expired {
        count: u32,
    },
    /// Subscribe: whether each filter had been subscribed before [MQTT-3.3.1-10], and the positions of those that are
    /// another session's exclusively: with them nothing was done.
    Subscribed {
        existed: Vec<bool>,
        refused: Vec<u32>,
    },
    /// DueWills.
    Due {
        count: u32,
    },
    Access(AccessReply),
}

/// 1: Connect without will, Detach without `publish_will`. 2: no exclusive subscriptions. 3: wills without author.
const META_OP_VERSION: u8 = 4;
/// From here on wills have a place for their author.
const AUTHORED: u8 = 4;

/// The oldest version that can say it: a node of the release before reads what it knows.
fn version_of(operations: &[MetaOp]) -> u8 {
    let version = |operation: &MetaOp| match operation {
        MetaOp::Connect { will: Some(will), .. } if will.is_authored() => META_OP_VERSION,
        MetaOp::Subscribe { subscriptions, .. } if subscriptions.iter().any(|one| one.exclusive) => 3,
        _ => 2,
    };
    operations.iter().map(version).max().unwrap_or(2)
}

/// One meta bundle: the operations of one proposer, answered in order.
pub fn encode_meta_ops(operations: &[MetaOp]) -> Bytes {
    let mut writer = Writer::with_capacity(128);
    let version = version_of(operations);
    writer.u8(version).var(operations.len() as u64);
    for operation in operations {
        write_meta_op(&mut writer, operation, version);
    }
    writer.finish()
}

fn write_meta_op(writer: &mut Writer, operation: &MetaOp, version: u8) {
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
            will,
        } => {
            writer
                .u8(2)
                .str(client_id)
                .bool(*clean_start)
                .var(*expiry as u64)
                .var(*node)
                .var(incarnation.0);
            let has_author = version >= AUTHORED;
            writer
                .var(*request)
                .option(will.as_ref(), |w, will| will.write(w, has_author));
        }
        MetaOp::Detach {
            session,
            epoch,
            expiry,
            sent,
            publish_will,
        } => {
            writer.u8(3).var(session.0).var(epoch.0).option(*expiry, |w, seconds| {
                w.var(seconds as u64);
            });
            writer.option(sent.as_deref(), write_offsets).bool(*publish_will);
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
        MetaOp::RetainedDone {
            session,
            filter,
            version,
        } => {
            writer.u8(8).var(session.0).str(filter).var(version.0);
        }
        MetaOp::DueWills { limit } => {
            writer.u8(9).var(*limit as u64);
        }
        MetaOp::WillPublished { session, epoch } => {
            writer.u8(10).var(session.0).var(epoch.0);
        }
        MetaOp::EndSession { session, epoch } => {
            writer.u8(11).var(session.0).option(*epoch, |w, epoch| {
                w.var(epoch.0);
            });
        }
        MetaOp::Access(operation) => {
            writer.u8(12);
            operation.write(writer);
        }
    }
}

/// # Errors
/// The bytes are torn or of a later version.
pub fn decode_meta_ops(bytes: &Bytes) -> Result<Vec<MetaOp>, DecodeError> {
    let mut reader = Reader::new("meta operations", bytes);
    let version = reader.u8()?;
    if !(1..=META_OP_VERSION).contains(&version) {
        return Err(reader.error());
    }
    let mut operations = Vec::new();
    for _ in 0..reader.count()? {
        operations.push(read_meta_op(&mut reader, version)?);
    }
    reader.end()?;
    Ok(operations)
}

fn read_meta_op(reader: &mut Reader<'_>, version: u8) -> Result<MetaOp, DecodeError> {
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
            will: match version {
                1 => None,
                _ => reader.option(|r| Will::read(r, version >= AUTHORED))?,
            },
        },
        3 => MetaOp::Detach {
            session: SessionId(reader.var()?),
            epoch: SessionEpoch(reader.var()?),
            expiry: reader.option(|r| r.var32())?,
            sent: reader.option(read_offsets)?,
            publish_will: version > 1 && reader.bool()?,
        },
        4 => {
            let (session, epoch) = (SessionId(reader.var()?), SessionEpoch(reader.var()?));
            let mut subscriptions = Vec::new();
            for _ in 0..reader.count()? {
                let subscription = Subscription::read(reader)?;
                if subscription.exclusive && version < 3 {
                    return Err(reader.error());
                }
                subscriptions.push(subscription);
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
        8 => MetaOp::RetainedDone {
            session: SessionId(reader.var()?),
            filter: reader.str()?.into(),
            version: MetaIndex(reader.var()?),
        },
        9 => MetaOp::DueWills { limit: reader.var32()? },
        10 => MetaOp::WillPublished {
            session: SessionId(reader.var()?),
            epoch: SessionEpoch(reader.var()?),
        },
        11 => MetaOp::EndSession {
            session: SessionId(reader.var()?),
            epoch: reader.option(|r| r.var().map(SessionEpoch))?,
        },
        12 => MetaOp::Access(AccessOp::read(reader)?),
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

pub(crate) fn write_strings(writer: &mut Writer, strings: &[Box<str>]) {
    writer.var(strings.len() as u64);
    for string in strings {
        writer.str(string);
    }
}

pub(crate) fn read_strings(reader: &mut Reader<'_>) -> Result<Vec<Box<str>>, DecodeError> {
    let mut strings = Vec::new();
    for _ in 0..reader.count()? {
        strings.push(reader.str()?.into());
    }
    Ok(strings)
}

fn write_bools(writer: &mut Writer, bools: &[bool]) {
    writer.var(bools.len() as u64);
    for one in bools {
        writer.bool(*one);
    }
}

fn read_bools(reader: &mut Reader<'_>) -> Result<Vec<bool>, DecodeError> {
    let mut bools = Vec::new();
    for _ in 0..reader.count()? {
        bools.push(reader.bool()?);
    }
    Ok(bools)
}

impl Will {
    /// Whether it needs an encoding that has a place for its author.
    pub fn is_authored(&self) -> bool {
        !self.author.is_empty()
    }

    pub fn write(&self, writer: &mut Writer, has_author: bool) {
        writer.var(self.delay as u64).bytes(&self.message);
        if has_author {
            writer.bytes(&self.author);
        }
    }

    /// The message does not share the memory of what is read: a will is kept for long.
    ///
    /// # Errors
    /// The bytes are torn.
    pub fn read(reader: &mut Reader<'_>, has_author: bool) -> Result<Will, DecodeError> {
        Ok(Will {
            delay: reader.var32()?,
            message: Bytes::copy_from_slice(&reader.bytes()?),
            author: match has_author {
                true => Bytes::copy_from_slice(&reader.bytes()?),
                false => Bytes::new(),
            },
        })
    }
}

impl Subscription {
    /// The filter, the options in one byte (QoS in bits 0–1, No Local 2, Retain As Published 3, Retain Handling 4–5,
    /// exclusive 6), the identifier or 0.
    pub fn write(&self, writer: &mut Writer) {
        let flags =
            self.qos | (self.no_local as u8) << 2 | (self.retain_as_published as u8) << 3 | self.retain_handling << 4;
        let flags = flags | (self.exclusive as u8) << 6;
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
            retain_handling: flags >> 4 & 3,
            identifier,
            exclusive: flags & 64 != 0,
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
                writer.u8(3);
                write_bools(&mut writer, existed);
            }
            MetaReply::Stale => {
                writer.u8(4);
            }
            MetaReply::Expired { count } => {
                writer.u8(5).var(*count as u64);
            }
            MetaReply::Subscribed { existed, refused } if refused.is_empty() => {
                writer.u8(6);
                write_bools(&mut writer, existed);
            }
            MetaReply::Subscribed { existed, refused } => {
                writer.u8(9);
                write_bools(&mut writer, existed);
                writer.var(refused.len() as u64);
                for position in refused {
                    writer.var(u64::from(*position));
                }
            }
            MetaReply::Due { count } => {
                writer.u8(7).var(*count as u64);
            }
            MetaReply::Access(reply) => {
                writer.u8(8);
                reply.write(&mut writer);
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
            3 => MetaReply::Unsubscribed {
                existed: read_bools(&mut reader)?,
            },
            4 => MetaReply::Stale,
            5 => MetaReply::Expired { count: reader.var32()? },
            6 => MetaReply::Subscribed {
                existed: read_bools(&mut reader)?,
                refused: Vec::new(),
            },
            7 => MetaReply::Due { count: reader.var32()? },
            8 => MetaReply::Access(AccessReply::read(&mut reader)?),
            9 => {
                let existed = read_bools(&mut reader)?;
                let mut refused = Vec::new();
                for _ in 0..reader.count()? {
                    refused.push(reader.var32()?);
                }
                MetaReply::Subscribed { existed, refused }
            }
            _ => return Err(reader.error()),
        });
    }
    reader.end()?;
    Ok(replies)
}

#[cfg(test)]
mod tests;
