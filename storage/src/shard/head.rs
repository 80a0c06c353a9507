//! The row that every entry of the log moves on.

use std::io;

use bytes::Bytes;

use super::delayed::DelayedHead;
use super::ledger::Ledger;
use super::retained::RetainedSize;
use crate::encoding::{Reader, Writer};
use crate::ids::{MetaIndex, Offset};
use crate::keys;
use crate::machine::Tables;
use crate::message::LogTime;

/// What every entry moves on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Head {
    pub last_offset: Offset,
    pub log_time: LogTime,
    /// Retained messages matched at an older route version are refused: a replay has begun at this one.
    pub route_floor: MetaIndex,
    pub retained: RetainedSize,
    pub ledger: Ledger,
    pub delayed: DelayedHead,
}

impl Head {
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(64);
        writer
            .u64(self.last_offset.0)
            .u64(self.log_time.0)
            .var(self.route_floor.0);
        writer.var(self.retained.count).var(self.retained.bytes);
        self.ledger.write(&mut writer);
        self.delayed.write(&mut writer);
        writer.finish()
    }

    pub fn read(tables: &Tables) -> io::Result<Head> {
        let Some(row) = tables.get(&[keys::SHARD_HEAD])? else {
            return Ok(Head::default());
        };
        let mut reader = Reader::new("shard head", &row);
        Ok(Head {
            last_offset: Offset(reader.u64()?),
            log_time: LogTime(reader.u64()?),
            route_floor: MetaIndex(reader.var()?),
            retained: RetainedSize {
                count: reader.var()?,
                bytes: reader.var()?,
            },
            ledger: Ledger::read(&mut reader)?,
            delayed: DelayedHead::read(&mut reader)?,
        })
    }
}

/// Last offset and log time of a shard as its tables show them.
///
/// # Errors
/// The engine cannot read, or the row is torn.
pub fn read_head(tables: &Tables) -> io::Result<(Offset, LogTime)> {
    let head = Head::read(tables)?;
    Ok((head.last_offset, head.log_time))
}

/// What became of the messages that entered queues, as the tables show it.
///
/// # Errors
/// The engine cannot read, or the row is torn.
pub fn read_ledger(tables: &Tables) -> io::Result<Ledger> {
    Ok(Head::read(tables)?.ledger)
}

/// What a shard retains, as its tables show it.
///
/// # Errors
/// The engine cannot read, or the row is torn.
pub fn read_retained_size(tables: &Tables) -> io::Result<RetainedSize> {
    Ok(Head::read(tables)?.retained)
}
