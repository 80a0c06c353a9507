//! What nodes ask each other over the request lanes, and its bytes. Versioned by the link's ALPN.

use bytes::Bytes;
use lontra_storage::encoding::{DecodeError, Reader, Writer};
use lontra_storage::ids::{GroupId, Incarnation, MetaIndex, NodeId, Offset, SessionId, ShardId};

use crate::group::{ProposeError, Proposed, ReadIndexError};

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
    /// Meta index applied in effect.
    pub applied: MetaIndex,
    /// Shard groups that it leads.
    pub leads: Vec<ShardId>,
    /// The highest offset that it has applied (or followed), by shard.
    pub offsets: Vec<Offset>,
    /// Below the free-space watermark.
    pub disk_low: bool,
}

impl Report {
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(128);
        writer.var(self.incarnation.0).var(self.applied.0).bool(self.disk_low);
        writer.var(self.leads.len() as u64);
        for shard in &self.leads {
            writer.var(shard.0 as u64);
        }
        writer.var(self.offsets.len() as u64);
        for offset in &self.offsets {
            writer.var(offset.0);
        }
        writer.finish()
    }

    pub fn decode(payload: &Bytes) -> Result<Report, DecodeError> {
        let mut reader = Reader::new("report", payload);
        let incarnation = Incarnation(reader.var()?);
        let applied = MetaIndex(reader.var()?);
        let disk_low = reader.bool()?;
        let mut leads = Vec::new();
        for _ in 0..reader.count()? {
            leads.push(ShardId(reader.var16()?));
        }
        let mut offsets = Vec::new();
        for _ in 0..reader.count()? {
            offsets.push(Offset(reader.var()?));
        }
        Ok(Report {
            incarnation,
            applied,
            leads,
            offsets,
            disk_low,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_encoding() {
        let report = Report {
            incarnation: Incarnation(9),
            applied: MetaIndex(7),
            leads: vec![ShardId(3)],
            offsets: vec![Offset(1), Offset(0)],
            disk_low: true,
        };
        assert_eq!(Report::decode(&report.encode()).unwrap(), report);
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
