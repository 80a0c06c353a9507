//! Keys of the raft database, and the row that says which generation of a group's tables is current.
//!
//! | column family | key | value |
//! |---|---|---|
//! | `log`  | group u32 · index u64 | entry, `raft_types::encode_entry` |
//! | `meta` | group u32 · 1 | vote, `raft_types::encode_vote` |
//! | `meta` | group u32 · 2 | committed: version u8, log id |
//! | `meta` | group u32 · 3 | purged: version u8, log id |
//! | `meta` | group u32 · 4 | generation: version u8, generation u32, snapshot meta it began with |
//! | `meta` | 0xffffffff · 1 | start number: version u8, var |
//!
//! In the state database: group u32 · generation u32 · 0 is the group's `applied`, `raft_types::encode_snapshot_meta`;
//! application keys follow the 8 byte prefix with a kind byte of at least 1 (`keys.rs`).
//!
//! Invariant `readable-forever`: kinds are never reused.

use bytes::Bytes;

use crate::encoding::{DecodeError, Reader, Writer};
use crate::ids::GroupId;
use crate::machine::prefix;
use crate::raft_types::{LogId, SnapshotMeta, decode_snapshot_meta, encode_snapshot_meta, read_log_id, write_log_id};

/// Where an entry stands in the `log` column family.
pub fn entry_key(group: GroupId, index: u64) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&group.0.to_be_bytes());
    key[4..].copy_from_slice(&index.to_be_bytes());
    key
}

/// The index in an entry's key; `None` for a key that is none.
pub fn entry_index(key: &[u8]) -> Option<u64> {
    let index: [u8; 8] = key.get(4..)?.try_into().ok()?;
    Some(u64::from_be_bytes(index))
}

/// A group's small facts in the `meta` column family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MetaKind {
    Vote = 1,
    Committed = 2,
    Purged = 3,
    Generation = 4,
}

pub fn meta_key(group: GroupId, kind: MetaKind) -> [u8; 5] {
    raw_meta_key(group.0, kind as u8)
}

/// Counts the opens of this data directory.
pub fn start_number_key() -> [u8; 5] {
    raw_meta_key(u32::MAX, 1)
}

fn raw_meta_key(owner: u32, kind: u8) -> [u8; 5] {
    let mut key = [0; 5];
    key[..4].copy_from_slice(&owner.to_be_bytes());
    key[4] = kind;
    key
}

/// Where a generation's `applied` stands in the state database.
pub fn applied_key(group: GroupId, generation: u32) -> Vec<u8> {
    let mut key = prefix(group, generation).to_vec();
    key.push(0);
    key
}

/// Application rows of a generation: everything behind `applied`.
pub fn application_range(group: GroupId, generation: u32) -> (Vec<u8>, Vec<u8>) {
    let mut start = prefix(group, generation).to_vec();
    start.push(1);
    (start, generation_end(group, generation))
}

/// All rows of a generation, `applied` too.
pub fn generation_range(group: GroupId, generation: u32) -> (Vec<u8>, Vec<u8>) {
    (prefix(group, generation).to_vec(), generation_end(group, generation))
}

/// All rows of a group.
pub fn group_range(group: GroupId) -> (Vec<u8>, Vec<u8>) {
    (group.0.to_be_bytes().to_vec(), (group.0 + 1).to_be_bytes().to_vec())
}

fn generation_end(group: GroupId, generation: u32) -> Vec<u8> {
    match generation.checked_add(1) {
        Some(next) => prefix(group, next).to_vec(),
        None => group_range(group).1,
    }
}

const VERSION: u8 = 1;

pub fn encode_log_id(id: &LogId) -> Bytes {
    let mut writer = Writer::new();
    writer.u8(VERSION);
    write_log_id(&mut writer, id);
    writer.finish()
}

/// # Errors
/// The bytes are torn or of a later version.
pub fn decode_log_id(bytes: &Bytes) -> Result<LogId, DecodeError> {
    let mut reader = versioned("stored log id", bytes)?;
    let id = read_log_id(&mut reader)?;
    reader.end()?;
    Ok(id)
}

/// Which generation of a group's tables counts, and the snapshot it was begun with.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    pub number: u32,
    pub snapshot: SnapshotMeta,
}

pub fn encode_generation(generation: &Generation) -> Bytes {
    let mut writer = Writer::new();
    writer
        .u8(VERSION)
        .u32(generation.number)
        .raw(&encode_snapshot_meta(&generation.snapshot));
    writer.finish()
}

/// # Errors
/// The bytes are torn or of a later version.
pub fn decode_generation(bytes: &Bytes) -> Result<Generation, DecodeError> {
    let mut reader = versioned("generation", bytes)?;
    let number = reader.u32()?;
    Ok(Generation {
        number,
        snapshot: decode_snapshot_meta(&reader.rest())?,
    })
}

pub fn encode_start_number(number: u64) -> Bytes {
    let mut writer = Writer::new();
    writer.u8(VERSION).var(number);
    writer.finish()
}

/// # Errors
/// The bytes are torn or of a later version.
pub fn decode_start_number(bytes: &Bytes) -> Result<u64, DecodeError> {
    let mut reader = versioned("start number", bytes)?;
    let number = reader.var()?;
    reader.end()?;
    Ok(number)
}

fn versioned<'a>(what: &'static str, bytes: &'a Bytes) -> Result<Reader<'a>, DecodeError> {
    let mut reader = Reader::new(what, bytes);
    if reader.u8()? == VERSION {
        Ok(reader)
    } else {
        Err(reader.error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft_types::LeaderId;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn log_id(term: u64, node: u64, index: u64) -> LogId {
        LogId::new(LeaderId { term, node_id: node }, index)
    }

    /// Golden bytes: a change here breaks every data directory (`readable-forever`).
    #[test]
    fn golden_keys_stay() {
        let group = GroupId(3);
        assert_eq!(hex(&entry_key(group, 258)), "000000030000000000000102");
        assert_eq!(entry_index(&entry_key(group, 258)), Some(258));
        assert_eq!(hex(&meta_key(group, MetaKind::Vote)), "0000000301");
        assert_eq!(hex(&meta_key(group, MetaKind::Committed)), "0000000302");
        assert_eq!(hex(&meta_key(group, MetaKind::Purged)), "0000000303");
        assert_eq!(hex(&meta_key(group, MetaKind::Generation)), "0000000304");
        assert_eq!(hex(&start_number_key()), "ffffffff01");
        assert_eq!(hex(&applied_key(group, 2)), "000000030000000200");
        let (start, end) = application_range(group, 2);
        assert_eq!(
            (hex(&start), hex(&end)),
            ("000000030000000201".into(), "0000000300000003".into())
        );
    }

    #[test]
    fn golden_values_stay() {
        let id = log_id(300, 2, 70_000);
        assert_eq!(hex(&encode_log_id(&id)), "01ac0202f0a204");
        assert_eq!(decode_log_id(&encode_log_id(&id)), Ok(id));

        let snapshot = SnapshotMeta {
            last_log_id: Some(log_id(2, 1, 9)),
            last_membership: Default::default(),
        };
        let generation = Generation { number: 7, snapshot };
        assert_eq!(hex(&encode_generation(&generation)), "01000000070101020109000000");
        assert_eq!(decode_generation(&encode_generation(&generation)), Ok(generation));

        assert_eq!(hex(&encode_start_number(300)), "01ac02");
        assert_eq!(decode_start_number(&encode_start_number(300)), Ok(300));
    }

    #[test]
    fn the_last_generation_ends_at_the_next_group() {
        assert_eq!(hex(&generation_range(GroupId(3), u32::MAX).1), "00000004");
    }
}
