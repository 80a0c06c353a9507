//! Everything a log entry can say, and its bytes.
//!
//!     entry = envelope: version · now · bundles        (a bundle: what one proposer queued, answered on its own)
//!     meta bundle  = MetaOp …                          answered by one MetaReply per operation
//!     shard bundle = NodeBatch { node, incarnation, sequence, operations }   answered by one BatchReply
//!
//! Time, randomness and routing results enter here as data, so that every replica does the same
//! (`apply-deterministic`).

mod access;
mod meta;
mod shard;

use bytes::Bytes;

pub(crate) use self::access::read_hidden;
pub use self::access::{AccessOp, AccessReply, BanTarget, Hidden, KeyRole, Subnet};
pub use self::meta::{
    MetaOp, MetaReply, Owner, Subscription, Will, decode_meta_ops, decode_meta_replies, encode_meta_ops,
    encode_meta_replies,
};
pub(crate) use self::meta::{read_offsets, read_strings, write_offsets, write_strings};
pub use self::shard::{
    Append, Assignment, BatchReply, Delay, EnqueueRetained, Left, NodeBatch, OperationResult, Origin, ShardOperation,
};
pub(crate) use self::shard::{read_applied, write_applied};

use crate::encoding::{DecodeError, Reader, Writer};
use crate::message::LogTime;
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

#[cfg(test)]
mod tests;
