//! The bytes of batches and of their replies.

use ::bytes::Bytes;

use super::{
    Append, Assignment, BatchReply, Delay, EnqueueRetained, Left, NodeBatch, OperationResult, Origin, ShardOperation,
};
use crate::command::{read_offsets, write_offsets};
use crate::encoding::{DecodeError, Reader, Writer};
use crate::ids::{DelayedId, Incarnation, MetaIndex, Offset, SessionEpoch, SessionId};
use crate::message::{LogTime, Recipient};

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
            operation.write(&mut writer);
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
            let operation = ShardOperation::read(&mut reader)?;
            if let ShardOperation::Append(append) = &operation
                && append.recipients as usize >= recipient_sets.len()
            {
                return Err(reader.error());
            }
            operations.push(operation);
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

impl ShardOperation {
    fn write(&self, writer: &mut Writer) {
        match self {
            ShardOperation::Append(append) => append.write(writer),
            ShardOperation::Ack { session, how, offsets } => {
                match how {
                    Left::Delivered => writer.u8(1).var(session.0),
                    how => writer.u8(12).var(session.0).u8(*how as u8),
                };
                write_offsets(writer, offsets);
            }
            ShardOperation::Sweep { session } => {
                writer.u8(2).var(session.0);
            }
            ShardOperation::Release { session, offsets } => {
                writer.u8(3).var(session.0);
                write_offsets(writer, offsets);
            }
            ShardOperation::ReleaseReceived {
                session,
                epoch,
                packet_id,
            } => {
                writer.u8(4).var(session.0).var(epoch.0).var(*packet_id as u64);
            }
            ShardOperation::EnqueueRetained(enqueue) => {
                writer.u8(5).var(enqueue.session.0).str(&enqueue.filter);
                writer.var(enqueue.version.0).u8(enqueue.qos).bool(enqueue.no_local);
                writer.var(enqueue.identifier.unwrap_or(0) as u64);
            }
            ShardOperation::ForgetReplay {
                session,
                filter,
                version,
            } => {
                writer.u8(6).var(session.0).str(filter).var(version.0);
            }
            ShardOperation::ExpireRetained { limit } => {
                writer.u8(7).var(*limit as u64);
            }
            ShardOperation::Assign { group, assignments } => {
                writer.u8(8).var(group.0).var(assignments.len() as u64);
                for assignment in assignments {
                    writer
                        .var(assignment.offset.0)
                        .var(assignment.session.0)
                        .var(assignment.epoch.0)
                        .u8(assignment.qos)
                        .var(assignment.identifier.unwrap_or(0) as u64);
                }
            }
            ShardOperation::Unassign { session, offsets } => {
                writer.u8(9).var(session.0);
                write_offsets(writer, offsets);
            }
            ShardOperation::ForgetWills { wills } => {
                writer.u8(10).var(wills.len() as u64);
                for (session, epoch) in wills {
                    writer.var(session.0).var(epoch.0);
                }
            }
            ShardOperation::Fence { node, incarnation } => {
                writer.u8(11).var(*node).var(incarnation.0);
            }
            ShardOperation::Delay(delay) => {
                writer.u8(13).var(u64::from(delay.seconds));
                writer.option(delay.count_max, |w, max| {
                    w.var(max);
                });
                delay.origin.write(writer);
                writer.bytes(&delay.message);
            }
            ShardOperation::Tick => {
                writer.u8(14);
            }
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<ShardOperation, DecodeError> {
        Ok(match reader.u8()? {
            0 => ShardOperation::Append(Append::read(reader)?),
            1 => ShardOperation::Ack {
                session: SessionId(reader.var()?),
                how: Left::Delivered,
                offsets: read_offsets(reader)?,
            },
            12 => ShardOperation::Ack {
                session: SessionId(reader.var()?),
                how: read_left(reader)?,
                offsets: read_offsets(reader)?,
            },
            2 => ShardOperation::Sweep {
                session: SessionId(reader.var()?),
            },
            3 => ShardOperation::Release {
                session: SessionId(reader.var()?),
                offsets: read_offsets(reader)?,
            },
            4 => ShardOperation::ReleaseReceived {
                session: SessionId(reader.var()?),
                epoch: SessionEpoch(reader.var()?),
                packet_id: reader.var16()?,
            },
            5 => ShardOperation::EnqueueRetained(EnqueueRetained {
                session: SessionId(reader.var()?),
                filter: reader.str()?.into(),
                version: MetaIndex(reader.var()?),
                qos: reader.u8()?,
                no_local: reader.bool()?,
                identifier: Some(reader.var32()?).filter(|identifier| *identifier != 0),
            }),
            6 => ShardOperation::ForgetReplay {
                session: SessionId(reader.var()?),
                filter: reader.str()?.into(),
                version: MetaIndex(reader.var()?),
            },
            7 => ShardOperation::ExpireRetained { limit: reader.var32()? },
            8 => {
                let group = SessionId(reader.var()?);
                let mut assignments = Vec::new();
                for _ in 0..reader.count()? {
                    assignments.push(Assignment {
                        offset: Offset(reader.var()?),
                        session: SessionId(reader.var()?),
                        epoch: SessionEpoch(reader.var()?),
                        qos: reader.u8()?,
                        identifier: Some(reader.var32()?).filter(|identifier| *identifier != 0),
                    });
                }
                ShardOperation::Assign { group, assignments }
            }
            9 => ShardOperation::Unassign {
                session: SessionId(reader.var()?),
                offsets: read_offsets(reader)?,
            },
            10 => {
                let mut wills = Vec::new();
                for _ in 0..reader.count()? {
                    wills.push((SessionId(reader.var()?), SessionEpoch(reader.var()?)));
                }
                ShardOperation::ForgetWills { wills }
            }
            11 => ShardOperation::Fence {
                node: reader.var()?,
                incarnation: Incarnation(reader.var()?),
            },
            13 => ShardOperation::Delay(Delay {
                seconds: reader.var32()?,
                count_max: reader.option(|r| r.var())?,
                origin: Origin::read(reader)?,
                message: reader.bytes()?,
            }),
            14 => ShardOperation::Tick,
            _ => return Err(reader.error()),
        })
    }
}

impl Append {
    fn write(&self, writer: &mut Writer) {
        writer.u8(0).var(self.recipients as u64);
        self.origin.write(writer);
        writer.bytes(&self.message);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Append, DecodeError> {
        Ok(Append {
            recipients: reader.var32()?,
            origin: Origin::read(reader)?,
            message: reader.bytes()?,
        })
    }
}

impl Origin {
    fn write(self, writer: &mut Writer) {
        match self {
            Origin::Plain => {
                writer.u8(0);
            }
            Origin::Received {
                session,
                epoch,
                packet_id,
            } => {
                writer.u8(1).var(session.0).var(epoch.0).var(packet_id as u64);
            }
            Origin::Will {
                session,
                epoch,
                not_after,
            } => {
                writer.u8(2).var(session.0).var(epoch.0).var(not_after.0);
            }
            Origin::Delayed { due, id } => {
                writer.u8(3).var(due.0).var(id.0);
            }
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Origin, DecodeError> {
        Ok(match reader.u8()? {
            0 => Origin::Plain,
            1 => Origin::Received {
                session: SessionId(reader.var()?),
                epoch: SessionEpoch(reader.var()?),
                packet_id: reader.var16()?,
            },
            2 => Origin::Will {
                session: SessionId(reader.var()?),
                epoch: SessionEpoch(reader.var()?),
                not_after: LogTime(reader.var()?),
            },
            3 => Origin::Delayed {
                due: LogTime(reader.var()?),
                id: DelayedId(reader.var()?),
            },
            _ => return Err(reader.error()),
        })
    }
}

impl BatchReply {
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::new();
        match self {
            BatchReply::Applied { upto, results } => {
                writer.u8(0);
                write_applied(&mut writer, *upto, results);
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
            BatchReply::StaleRoute { floor } => {
                writer.u8(4).var(floor.0);
            }
        }
        writer.finish()
    }

    /// # Errors
    /// The bytes are torn.
    pub fn decode(bytes: &Bytes) -> Result<BatchReply, DecodeError> {
        let mut reader = Reader::new("batch reply", bytes);
        let reply = match reader.u8()? {
            0 => {
                let (upto, results) = read_applied(&mut reader)?;
                BatchReply::Applied { upto, results }
            }
            1 => BatchReply::Gap {
                expected: reader.var()?,
            },
            2 => BatchReply::Forgotten,
            3 => BatchReply::DeadIncarnation,
            4 => BatchReply::StaleRoute {
                floor: MetaIndex(reader.var()?),
            },
            _ => return Err(reader.error()),
        };
        reader.end()?;
        Ok(reply)
    }
}

pub(crate) fn write_applied(writer: &mut Writer, upto: Offset, results: &[(u32, OperationResult)]) {
    writer.var(upto.0).var(results.len() as u64);
    for (position, result) in results {
        writer.var(*position as u64).u8(match result {
            OperationResult::Refused => 0,
            OperationResult::More => 1,
            OperationResult::Full => 2,
        });
    }
}

pub(crate) fn read_applied(reader: &mut Reader<'_>) -> Result<(Offset, Vec<(u32, OperationResult)>), DecodeError> {
    let upto = Offset(reader.var()?);
    let mut results = Vec::new();
    for _ in 0..reader.count()? {
        let position = reader.var32()?;
        let result = match reader.u8()? {
            0 => OperationResult::Refused,
            1 => OperationResult::More,
            2 => OperationResult::Full,
            _ => return Err(reader.error()),
        };
        results.push((position, result));
    }
    Ok((upto, results))
}

fn read_left(reader: &mut Reader<'_>) -> Result<Left, DecodeError> {
    let how = usize::from(reader.u8()?);
    Left::ALL.get(how).copied().ok_or_else(|| reader.error())
}
