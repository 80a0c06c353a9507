//! openraft's types as Lontra uses them, and their bytes.
//!
//! openraft's own serde layout changes between its alphas, so nothing of it reaches disk or wire: vote, log id,
//! membership, entry have encodings here, each behind a version byte where it stands alone.

use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;
use openraft::entry::RaftEntry;
use openraft::impls::EmptyNode;

use crate::command::Reply;
use crate::encoding::{DecodeError, Reader, Writer};
use crate::ids::NodeId;

/// An encoded command, see [`crate::command`]. Encoded once; the same bytes go to log, followers and apply.
#[derive(Clone, PartialEq, Eq)]
pub struct Command(pub Bytes);

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.0.len())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

openraft::declare_raft_types!(
    /// Meta and shard groups share one configuration; what differs stands behind [`crate::machine::Machine`].
    pub TypeConfig:
        D = Command,
        R = Reply,
        NodeId = NodeId,
        Node = EmptyNode,
        AsyncRuntime = openraft_rt_tokio::TokioRuntime,
);

pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
pub type LeaderId = openraft::alias::LeaderIdOf<TypeConfig>;
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
pub type EntryPayload = openraft::alias::EntryPayloadOf<TypeConfig>;
pub type Membership = openraft::Membership<NodeId, EmptyNode>;
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

const ENTRY_VERSION: u8 = 1;
const VOTE_VERSION: u8 = 1;
const META_VERSION: u8 = 1;

const PAYLOAD_BLANK: u8 = 0;
const PAYLOAD_COMMAND: u8 = 1;
const PAYLOAD_MEMBERSHIP: u8 = 2;

pub fn write_log_id(writer: &mut Writer, id: &LogId) {
    writer.var(id.leader_id.term).var(id.leader_id.node_id).var(id.index);
}

pub fn read_log_id(reader: &mut Reader<'_>) -> Result<LogId, DecodeError> {
    let leader_id = LeaderId {
        term: reader.var()?,
        node_id: reader.var()?,
    };
    Ok(LogId::new(leader_id, reader.var()?))
}

pub fn write_vote(writer: &mut Writer, vote: &Vote) {
    writer
        .var(vote.leader_id.term)
        .var(vote.leader_id.node_id)
        .bool(vote.committed);
}

pub fn read_vote(reader: &mut Reader<'_>) -> Result<Vote, DecodeError> {
    let leader_id = LeaderId {
        term: reader.var()?,
        node_id: reader.var()?,
    };
    Ok(Vote {
        leader_id,
        committed: reader.bool()?,
    })
}

/// A vote as stored.
pub fn encode_vote(vote: &Vote) -> Bytes {
    let mut writer = Writer::new();
    writer.u8(VOTE_VERSION);
    write_vote(&mut writer, vote);
    writer.finish()
}

/// # Errors
/// The bytes are torn or of a later version.
pub fn decode_vote(bytes: &Bytes) -> Result<Vote, DecodeError> {
    let mut reader = Reader::new("vote", bytes);
    expect_version(&mut reader, VOTE_VERSION)?;
    let vote = read_vote(&mut reader)?;
    reader.end()?;
    Ok(vote)
}

pub fn write_membership(writer: &mut Writer, membership: &Membership) {
    let configs = membership.get_joint_config();
    writer.var(configs.len() as u64);
    for config in configs {
        writer.var(config.len() as u64);
        for node in config {
            writer.var(*node);
        }
    }
    let nodes: Vec<NodeId> = membership.nodes().map(|(id, _)| *id).collect();
    writer.var(nodes.len() as u64);
    for node in nodes {
        writer.var(node);
    }
}

pub fn read_membership(reader: &mut Reader<'_>) -> Result<Membership, DecodeError> {
    let mut configs = Vec::new();
    for _ in 0..reader.count()? {
        let mut config = BTreeSet::new();
        for _ in 0..reader.count()? {
            config.insert(reader.var()?);
        }
        configs.push(config);
    }
    let mut nodes = BTreeSet::new();
    for _ in 0..reader.count()? {
        nodes.insert(reader.var()?);
    }
    Ok(Membership::new_with_defaults(configs, nodes))
}

/// What a snapshot or a checkpoint stands for: last applied entry and last membership.
pub fn encode_snapshot_meta(meta: &SnapshotMeta) -> Bytes {
    let mut writer = Writer::new();
    writer.u8(META_VERSION);
    writer.option(meta.last_log_id.as_ref(), write_log_id);
    writer.option(meta.last_membership.log_id().as_ref(), write_log_id);
    write_membership(&mut writer, meta.last_membership.membership());
    writer.finish()
}

/// # Errors
/// The bytes are torn or of a later version.
pub fn decode_snapshot_meta(bytes: &Bytes) -> Result<SnapshotMeta, DecodeError> {
    let mut reader = Reader::new("snapshot meta", bytes);
    expect_version(&mut reader, META_VERSION)?;
    let last_log_id = reader.option(read_log_id)?;
    let membership_id = reader.option(read_log_id)?;
    let membership = read_membership(&mut reader)?;
    reader.end()?;
    Ok(SnapshotMeta {
        last_log_id,
        last_membership: StoredMembership::new(membership_id, membership),
    })
}

/// An entry as it stands in the log and in append frames.
pub fn encode_entry(entry: &Entry) -> Bytes {
    let command_length = match &entry.payload {
        EntryPayload::Normal(command) => command.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 64,
    };
    let mut writer = Writer::with_capacity(command_length + 40);
    writer.u8(ENTRY_VERSION);
    write_log_id(&mut writer, &entry.log_id);
    match &entry.payload {
        EntryPayload::Blank => {
            writer.u8(PAYLOAD_BLANK);
        }
        EntryPayload::Normal(command) => {
            writer.u8(PAYLOAD_COMMAND).raw(&command.0);
        }
        EntryPayload::Membership(membership) => {
            writer.u8(PAYLOAD_MEMBERSHIP);
            write_membership(&mut writer, membership);
        }
    }
    writer.finish()
}

/// # Errors
/// The bytes are torn or of a later version.
pub fn decode_entry(bytes: &Bytes) -> Result<Entry, DecodeError> {
    let mut reader = Reader::new("log entry", bytes);
    expect_version(&mut reader, ENTRY_VERSION)?;
    let log_id = read_log_id(&mut reader)?;
    let payload = match reader.u8()? {
        PAYLOAD_BLANK => EntryPayload::Blank,
        PAYLOAD_COMMAND => EntryPayload::Normal(Command(reader.rest())),
        PAYLOAD_MEMBERSHIP => EntryPayload::Membership(read_membership(&mut reader)?),
        _ => return Err(reader.error()),
    };
    reader.end()?;
    Ok(Entry::new(log_id, payload))
}

fn expect_version(reader: &mut Reader<'_>, version: u8) -> Result<(), DecodeError> {
    if reader.u8()? == version {
        Ok(())
    } else {
        Err(reader.error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_id(term: u64, node: u64, index: u64) -> LogId {
        LogId::new(LeaderId { term, node_id: node }, index)
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Golden bytes: a change here breaks every data directory (`readable-forever`).
    #[test]
    fn golden_encodings_stay() {
        let membership = Membership::new_with_defaults(vec![BTreeSet::from([1, 2, 3])], [4]);
        let check = |payload, expected: &str| {
            let entry = Entry::new(log_id(300, 2, 70_000), payload);
            let bytes = encode_entry(&entry);
            assert_eq!(hex(&bytes), expected);
            assert_eq!(decode_entry(&bytes).unwrap(), entry);
        };
        check(EntryPayload::Blank, "01ac0202f0a20400");
        check(
            EntryPayload::Normal(Command(Bytes::from_static(b"abc"))),
            "01ac0202f0a20401616263",
        );
        check(
            EntryPayload::Membership(membership.clone()),
            "01ac0202f0a204020103010203040102 0304".replace(' ', "").as_str(),
        );

        let vote = Vote::new_committed(9, 3);
        assert_eq!(hex(&encode_vote(&vote)), "01090301");
        assert_eq!(decode_vote(&encode_vote(&vote)).unwrap(), vote);

        let meta = SnapshotMeta {
            last_log_id: Some(log_id(2, 1, 9)),
            last_membership: StoredMembership::new(Some(log_id(1, 1, 1)), membership),
        };
        let bytes = encode_snapshot_meta(&meta);
        assert_eq!(hex(&bytes), "010102010901010101010301020304010203 04".replace(' ', ""));
        assert_eq!(decode_snapshot_meta(&bytes).unwrap(), meta);
    }

    #[test]
    fn a_later_version_is_refused() {
        assert!(decode_vote(&Bytes::from_static(&[2, 9, 3, 1])).is_err());
    }
}
