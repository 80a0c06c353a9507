//! What nodes ask each other over the request lanes, and its bytes. Versioned by the link's ALPN.

use bytes::Bytes;
use lontra_storage::encoding::{DecodeError, Reader, Writer};
use lontra_storage::ids::{GroupId, Incarnation, MetaIndex, NodeId, Offset, SessionEpoch, SessionId, ShardId};

use crate::group::{ProposeError, Proposed, ReadIndexError};
use crate::local::{Credit, Offer};
use crate::reader::PageLimits;

/// Puts a bundle into the next entry of a group that the peer leads. Data lane, in order.
pub const PROPOSE: u8 = 1;
/// Waits until every Up node has applied a meta index. Control lane, to the meta leader.
pub const BARRIER: u8 = 2;
/// Renews the serving lease. Control lane, to the meta leader.
pub const RENEW: u8 = 3;
/// Tells the meta leader what was applied. Control lane.
pub const REPORT: u8 = 4;
/// A ReadIndex round. Control lane, to the group's leader.
pub const READ_INDEX: u8 = 5;
/// A page of a session's queue. Data lane, to any replica.
pub const READ_PAGE: u8 = 6;
/// Hands a group's leadership to another node. Control lane, to the group's leader.
pub const TRANSFER: u8 = 7;
/// What the peer says of itself and its groups. Control lane.
pub const INSPECT: u8 = 32;
/// Hands the leadership of any group to another node, by an operator's wish. Control lane, to the group's leader.
pub const HAND_OVER: u8 = 33;
/// Whether the peer takes leaderships now: 1 or 0. Control lane. A peer of an earlier release does not answer.
pub const TAKES_LEADERSHIPS: u8 = 34;

/// A page of retained messages. Data lane, to any replica.
pub const READ_RETAINED: u8 = 8;
/// Messages wait in a shared group: what do its members there take? Data lane.
pub const OFFER: u8 = 9;
/// What was reserved for an offer and not used. Data lane, behind the offer.
pub const OFFER_OVER: u8 = 10;
/// Whether a QoS 2 publish is recorded in a shard. Data lane, to any replica.
pub const READ_RECEIVED: u8 = 11;

/// Stream kind: the peer pushes what our connected sessions match in a shard that we do not hold.
pub const FOLLOW: u8 = 1;

pub fn encode_propose(group: GroupId, bundle: &Bytes) -> Bytes {
    let mut writer = Writer::with_capacity(bundle.len() + 5);
    writer.var(group.0 as u64).raw(bundle);
    writer.finish()
}

pub fn decode_propose(payload: &Bytes) -> Result<(GroupId, Bytes), DecodeError> {
    let mut reader = Reader::new("proposal", payload);
    Ok((GroupId(reader.var32()?), reader.rest()))
}

pub fn encode_proposed(result: &Result<Proposed, ProposeError>) -> Bytes {
    let mut writer = Writer::with_capacity(32);
    match result {
        Ok(proposed) => {
            writer.u8(0).var(proposed.index).raw(&proposed.reply);
        }
        Err(ProposeError::NotLeader { leader }) => {
            writer.u8(1).var(leader.unwrap_or(0));
        }
        Err(ProposeError::Busy) => {
            writer.u8(2);
        }
        Err(ProposeError::Unknown) => {
            writer.u8(3);
        }
    }
    writer.finish()
}

pub fn decode_proposed(payload: &Bytes) -> Result<Result<Proposed, ProposeError>, DecodeError> {
    let mut reader = Reader::new("proposal result", payload);
    Ok(match reader.u8()? {
        0 => Ok(Proposed {
            index: reader.var()?,
            reply: reader.rest(),
        }),
        1 => Err(ProposeError::NotLeader {
            leader: Some(reader.var()?).filter(|leader| *leader != 0),
        }),
        2 => Err(ProposeError::Busy),
        3 => Err(ProposeError::Unknown),
        _ => return Err(reader.error()),
    })
}

/// What a node tells with every renewal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub incarnation: Incarnation,
    /// Meta index applied.
    pub applied: MetaIndex,
    /// Applied so that it holds for every connection: barriers wait for this.
    pub in_effect: MetaIndex,
    /// Shard groups that it leads.
    pub leads: Vec<ShardId>,
    /// The highest offset that it has applied (or followed), by shard.
    pub offsets: Vec<Offset>,
    /// Below the free-space watermark.
    pub disk_low: bool,
    /// It takes over no leadership: it stops, or its log is slow.
    pub leaving: bool,
    /// Up nodes that it has not reached for a lease.
    pub unreachable: Vec<NodeId>,
}

impl Report {
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(128);
        writer.var(self.incarnation.0).var(self.applied.0).var(self.in_effect.0);
        writer.bool(self.disk_low).bool(self.leaving);
        writer.var(self.leads.len() as u64);
        for shard in &self.leads {
            writer.var(shard.0 as u64);
        }
        writer.var(self.offsets.len() as u64);
        for offset in &self.offsets {
            writer.var(offset.0);
        }
        writer.var(self.unreachable.len() as u64);
        for node in &self.unreachable {
            writer.var(*node);
        }
        writer.finish()
    }

    pub fn decode(payload: &Bytes) -> Result<Report, DecodeError> {
        let mut reader = Reader::new("report", payload);
        let incarnation = Incarnation(reader.var()?);
        let applied = MetaIndex(reader.var()?);
        let in_effect = MetaIndex(reader.var()?);
        let disk_low = reader.bool()?;
        let leaving = reader.bool()?;
        let mut leads = Vec::new();
        for _ in 0..reader.count()? {
            leads.push(ShardId(reader.var16()?));
        }
        let mut offsets = Vec::new();
        for _ in 0..reader.count()? {
            offsets.push(Offset(reader.var()?));
        }
        let mut unreachable = Vec::new();
        for _ in 0..reader.count()? {
            unreachable.push(reader.var()?);
        }
        Ok(Report {
            incarnation,
            applied,
            in_effect,
            leads,
            offsets,
            disk_low,
            leaving,
            unreachable,
        })
    }
}

/// The meta leader's answer to a renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewal {
    Granted {
        /// By shard, the offset that every Up node has applied.
        applied_everywhere: Vec<Offset>,
        /// Shards with a replica below the free-space watermark.
        disk_low: Vec<ShardId>,
    },
    /// The incarnation is not Up: it must be admitted anew.
    NotUp,
    NotLeader {
        leader: Option<NodeId>,
    },
}

impl Renewal {
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(64);
        match self {
            Renewal::Granted {
                applied_everywhere,
                disk_low,
            } => {
                writer.u8(0).var(applied_everywhere.len() as u64);
                for offset in applied_everywhere {
                    writer.var(offset.0);
                }
                writer.var(disk_low.len() as u64);
                for shard in disk_low {
                    writer.var(shard.0 as u64);
                }
            }
            Renewal::NotUp => {
                writer.u8(1);
            }
            Renewal::NotLeader { leader } => {
                writer.u8(2).var(leader.unwrap_or(0));
            }
        }
        writer.finish()
    }

    pub fn decode(payload: &Bytes) -> Result<Renewal, DecodeError> {
        let mut reader = Reader::new("renewal", payload);
        Ok(match reader.u8()? {
            0 => {
                let mut applied_everywhere = Vec::new();
                for _ in 0..reader.count()? {
                    applied_everywhere.push(Offset(reader.var()?));
                }
                let mut disk_low = Vec::new();
                for _ in 0..reader.count()? {
                    disk_low.push(ShardId(reader.var16()?));
                }
                Renewal::Granted {
                    applied_everywhere,
                    disk_low,
                }
            }
            1 => Renewal::NotUp,
            2 => Renewal::NotLeader {
                leader: Some(reader.var()?).filter(|leader| *leader != 0),
            },
            _ => return Err(reader.error()),
        })
    }
}

pub fn encode_number(value: u64) -> Bytes {
    let mut writer = Writer::with_capacity(10);
    writer.var(value);
    writer.finish()
}

pub fn decode_number(payload: &Bytes) -> Result<u64, DecodeError> {
    Reader::new("number", payload).var()
}

pub fn encode_read_index(result: &Result<u64, ReadIndexError>) -> Bytes {
    let mut writer = Writer::with_capacity(12);
    match result {
        Ok(index) => writer.u8(0).var(*index),
        Err(ReadIndexError::NotLeader { leader }) => writer.u8(1).var(leader.unwrap_or(0)),
        Err(ReadIndexError::NoQuorum) => writer.u8(2).var(0),
    };
    writer.finish()
}

pub fn decode_read_index(payload: &Bytes) -> Result<Result<u64, ReadIndexError>, DecodeError> {
    let mut reader = Reader::new("read index", payload);
    Ok(match (reader.u8()?, reader.var()?) {
        (0, index) => Ok(index),
        (1, leader) => Err(ReadIndexError::NotLeader {
            leader: Some(leader).filter(|leader| *leader != 0),
        }),
        (2, _) => Err(ReadIndexError::NoQuorum),
        _ => return Err(reader.error()),
    })
}

/// A page of `session`'s queue in `shard`, once the replica has applied `applied`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    pub shard: ShardId,
    pub session: SessionId,
    pub after: Offset,
    pub applied: u64,
    pub entries_max: u32,
    pub bytes_max: u32,
}

impl PageRequest {
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(32);
        writer
            .var(self.shard.0 as u64)
            .var(self.session.0)
            .var(self.after.0)
            .var(self.applied);
        writer.var(self.entries_max as u64).var(self.bytes_max as u64);
        writer.finish()
    }

    pub fn decode(payload: &Bytes) -> Result<PageRequest, DecodeError> {
        let mut reader = Reader::new("page request", payload);
        Ok(PageRequest {
            shard: ShardId(reader.var16()?),
            session: SessionId(reader.var()?),
            after: Offset(reader.var()?),
            applied: reader.var()?,
            entries_max: reader.var32()?,
            bytes_max: reader.var32()?,
        })
    }
}

/// Whether a QoS 2 publish of the session is recorded under the identifier, once the replica has applied `applied`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceivedRequest {
    pub shard: ShardId,
    pub session: SessionId,
    pub packet_id: u16,
    pub applied: u64,
}

impl ReceivedRequest {
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(24);
        writer
            .var(self.shard.0 as u64)
            .var(self.session.0)
            .var(u64::from(self.packet_id))
            .var(self.applied);
        writer.finish()
    }

    pub fn decode(payload: &Bytes) -> Result<ReceivedRequest, DecodeError> {
        let mut reader = Reader::new("received request", payload);
        Ok(ReceivedRequest {
            shard: ShardId(reader.var16()?),
            session: SessionId(reader.var()?),
            packet_id: reader.var16()?,
            applied: reader.var()?,
        })
    }
}

/// A page of what `filter` matches among a shard's retained messages, once the replica has applied `applied`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetainedRequest {
    pub shard: ShardId,
    pub filter: Box<str>,
    /// The topic behind which the page begins.
    pub after: Option<Box<str>>,
    pub applied: u64,
    pub limits: PageLimits,
}

impl RetainedRequest {
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(64);
        writer.var(self.shard.0 as u64).str(&self.filter);
        writer.option(self.after.as_ref(), |w, after| {
            w.str(after);
        });
        writer
            .var(self.applied)
            .var(self.limits.entries as u64)
            .var(self.limits.bytes as u64);
        writer.finish()
    }

    pub fn decode(payload: &Bytes) -> Result<RetainedRequest, DecodeError> {
        let mut reader = Reader::new("retained request", payload);
        Ok(RetainedRequest {
            shard: ShardId(reader.var16()?),
            filter: reader.str()?.into(),
            after: reader.option(|r| r.str())?.map(Into::into),
            applied: reader.var()?,
            limits: PageLimits {
                entries: reader.var32()?,
                bytes: reader.var32()?,
            },
        })
    }
}

pub fn encode_offer(offer: &Offer) -> Bytes {
    let mut writer = Writer::with_capacity(64);
    writer
        .var(offer.shard.0 as u64)
        .var(offer.group.0)
        .var(offer.waiting as u64)
        .var(offer.members.len() as u64);
    for member in &offer.members {
        writer.var(member.0);
    }
    writer.finish()
}

pub fn decode_offer(payload: &Bytes) -> Result<Offer, DecodeError> {
    let mut reader = Reader::new("offer", payload);
    let (shard, group) = (ShardId(reader.var16()?), SessionId(reader.var()?));
    let waiting = reader.var32()?;
    let mut members = Vec::new();
    for _ in 0..reader.count()? {
        members.push(SessionId(reader.var()?));
    }
    Ok(Offer {
        shard,
        group,
        members,
        waiting,
    })
}

pub fn encode_credits(credits: &[Credit]) -> Bytes {
    let mut writer = Writer::with_capacity(16 + credits.len() * 16);
    writer.var(credits.len() as u64);
    for credit in credits {
        writer
            .var(credit.session.0)
            .var(credit.epoch.0)
            .var(credit.messages as u64)
            .var(credit.load as u64);
    }
    writer.finish()
}

pub fn decode_credits(payload: &Bytes) -> Result<Vec<Credit>, DecodeError> {
    let mut reader = Reader::new("credits", payload);
    let mut credits = Vec::new();
    for _ in 0..reader.count()? {
        credits.push(Credit {
            session: SessionId(reader.var()?),
            epoch: SessionEpoch(reader.var()?),
            messages: reader.var32()?,
            load: reader.var32()?,
        });
    }
    Ok(credits)
}

pub fn encode_unused(shard: ShardId, group: SessionId, unused: &[(SessionId, u32)]) -> Bytes {
    let mut writer = Writer::with_capacity(16 + unused.len() * 8);
    writer.var(shard.0 as u64).var(group.0).var(unused.len() as u64);
    for (session, messages) in unused {
        writer.var(session.0).var(*messages as u64);
    }
    writer.finish()
}

/// Credit that was reserved in vain: shard, group, and how much of whom.
pub type Unused = (ShardId, SessionId, Vec<(SessionId, u32)>);

pub fn decode_unused(payload: &Bytes) -> Result<Unused, DecodeError> {
    let mut reader = Reader::new("unused credit", payload);
    let (shard, group) = (ShardId(reader.var16()?), SessionId(reader.var()?));
    let mut unused = Vec::new();
    for _ in 0..reader.count()? {
        unused.push((SessionId(reader.var()?), reader.var32()?));
    }
    Ok((shard, group, unused))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_encoding() {
        let report = Report {
            incarnation: Incarnation(9),
            applied: MetaIndex(7),
            in_effect: MetaIndex(6),
            leads: vec![ShardId(3)],
            offsets: vec![Offset(1), Offset(0)],
            disk_low: true,
            leaving: false,
            unreachable: vec![2],
        };
        assert_eq!(Report::decode(&report.encode()).unwrap(), report);
        let leaving = Report {
            leaving: true,
            ..report
        };
        assert_eq!(Report::decode(&leaving.encode()).unwrap(), leaving);
        let received = ReceivedRequest {
            shard: ShardId(11),
            session: SessionId(u64::MAX),
            packet_id: u16::MAX,
            applied: 300,
        };
        assert_eq!(ReceivedRequest::decode(&received.encode()).unwrap(), received);
        for renewal in [
            Renewal::Granted {
                applied_everywhere: vec![Offset(4)],
                disk_low: vec![ShardId(1)],
            },
            Renewal::NotUp,
            Renewal::NotLeader { leader: Some(2) },
            Renewal::NotLeader { leader: None },
        ] {
            assert_eq!(Renewal::decode(&renewal.encode()).unwrap(), renewal);
        }
        for result in [
            Ok(Proposed {
                index: 5,
                reply: Bytes::from_static(b"r"),
            }),
            Err(ProposeError::NotLeader { leader: None }),
            Err(ProposeError::Busy),
            Err(ProposeError::Unknown),
        ] {
            assert_eq!(decode_proposed(&encode_proposed(&result)).unwrap(), result);
        }
        for result in [
            Ok(8),
            Err(ReadIndexError::NoQuorum),
            Err(ReadIndexError::NotLeader { leader: Some(1) }),
        ] {
            assert_eq!(decode_read_index(&encode_read_index(&result)).unwrap(), result);
        }
    }
}
