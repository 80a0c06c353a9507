//! How far the logs reached when they were last synced: by this a log is recognised that has lost its end.
//!
//!     <data>/marks   two slots, each with one image, written in turn
//!     image          crc32 u32 · version u8 · sequence u64 · count u32 · (group u32 · next u64 · term u64 · node u64)*
//!
//! Written after each fsync of the log, all groups with one `pwrite`, and not fsynced itself: it outlives the process.
//! After a power cut it may be older, which only proves less.
//!
//! Invariants
//! - `mark-behind-log`: no image on disk promises more than the log on disk holds, or a sound log would be refused. A
//!   mark rises after the sync. It falls before the entries are truncated, in both slots and fsynced: no older image is
//!   left that a power cut could bring back.
//! - An image that does not read is no proof: the other slot counts, or none.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;

use crate::encoding::{DecodeError, Reader, Writer};
use crate::ids::{GroupId, NodeId};
use crate::raft_types::Vote;

/// What one group's log held when it was synced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Index after the last entry, or after the snapshot that replaced it.
    pub next: u64,
    /// Term and node of the last vote; votes only rise.
    pub vote: (u64, NodeId),
}

/// What a row that must be durable means for the mark of its group.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Promise {
    Vote(GroupId, (u64, NodeId)),
    /// Everything below this index is in the log or in the tables.
    Reaches(GroupId, u64),
}

/// The file, open for writing. The log writer owns it.
pub(crate) struct Marks {
    file: File,
    sequence: u64,
    marks: BTreeMap<GroupId, Mark>,
    changed: bool,
}

pub(crate) fn vote_mark(vote: &Vote) -> (u64, NodeId) {
    (vote.leader_id.term, vote.leader_id.node_id)
}

/// The newest image that reads, of a file for `groups` groups; empty if there is none.
pub(crate) fn read(path: &Path, groups: usize) -> BTreeMap<GroupId, Mark> {
    newest(&std::fs::read(path).unwrap_or_default(), groups).1
}

fn newest(bytes: &[u8], groups: usize) -> (u64, BTreeMap<GroupId, Mark>) {
    let bytes = Bytes::copy_from_slice(bytes);
    let slots = [0, slot_bytes(groups)].map(|at| bytes.slice(at.min(bytes.len())..));
    let images = slots.iter().filter_map(|slot| decode(slot).ok());
    images.max_by_key(|(sequence, _)| *sequence).unwrap_or_default()
}

impl Marks {
    /// Goes on with `marks`, which hold by what was recovered. Durable when this returns, but for the directory's entry.
    pub fn open(path: &Path, marks: BTreeMap<GroupId, Mark>) -> io::Result<Marks> {
        let (sequence, _) = newest(&std::fs::read(path).unwrap_or_default(), marks.len());
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        let mut marks = Marks {
            file,
            sequence,
            marks,
            changed: true,
        };
        marks.write_durably()?;
        Ok(marks)
    }

    /// Everything below `next` is synced.
    pub fn reach(&mut self, group: GroupId, next: u64) {
        let mark = self.marks.entry(group).or_default();
        self.changed |= next > mark.next;
        mark.next = mark.next.max(next);
    }

    pub fn vote(&mut self, group: GroupId, vote: (u64, NodeId)) {
        let mark = self.marks.entry(group).or_default();
        self.changed |= vote != mark.vote;
        mark.vote = mark.vote.max(vote);
    }

    /// The log is to end before `next`; whether that is lower than it was.
    pub fn fall(&mut self, group: GroupId, next: u64) -> bool {
        let mark = self.marks.entry(group).or_default();
        let falls = next < mark.next;
        self.changed |= falls;
        mark.next = mark.next.min(next);
        falls
    }

    /// Survives the end of the process, not a power cut.
    ///
    /// # Errors
    /// The disk fails.
    pub fn write(&mut self) -> io::Result<()> {
        if !self.changed {
            return Ok(());
        }
        self.sequence += 1;
        let slot = (self.sequence % 2) as usize * slot_bytes(self.marks.len());
        self.file
            .write_all_at(&encode(self.sequence, &self.marks), slot as u64)?;
        self.changed = false;
        Ok(())
    }

    /// Leaves no older image behind.
    ///
    /// # Errors
    /// The disk fails.
    pub fn write_durably(&mut self) -> io::Result<()> {
        if !self.changed {
            return Ok(());
        }
        self.write()?;
        self.changed = true;
        self.write()?;
        self.file.sync_data()
    }
}

/// Whole blocks: writing one slot does not touch the other.
fn slot_bytes(groups: usize) -> usize {
    (HEAD_BYTES + groups * MARK_BYTES).next_multiple_of(BLOCK_BYTES)
}

fn encode(sequence: u64, marks: &BTreeMap<GroupId, Mark>) -> Bytes {
    let mut body = Writer::with_capacity(HEAD_BYTES + marks.len() * MARK_BYTES);
    body.u8(VERSION).u64(sequence).u32(marks.len() as u32);
    for (group, mark) in marks {
        let (term, node) = mark.vote;
        body.u32(group.0).u64(mark.next).u64(term).u64(node);
    }
    let body = body.finish();
    let mut image = Writer::with_capacity(body.len() + 4);
    image.u32(crc32fast::hash(&body)).raw(&body);
    image.finish()
}

fn decode(slot: &Bytes) -> Result<(u64, BTreeMap<GroupId, Mark>), DecodeError> {
    let mut reader = Reader::new("marks", slot);
    let checksum = reader.u32()?;
    let body = reader.rest();
    let mut reader = Reader::new("marks", &body);
    if reader.u8()? != VERSION {
        return Err(reader.error());
    }
    let sequence = reader.u64()?;
    let mut marks = BTreeMap::new();
    let count = reader.u32()? as usize;
    for _ in 0..count {
        let (group, next) = (GroupId(reader.u32()?), reader.u64()?);
        let vote = (reader.u64()?, reader.u64()?);
        marks.insert(group, Mark { next, vote });
    }
    let end = HEAD_BYTES - 4 + count * MARK_BYTES;
    if crc32fast::hash(&body[..end]) != checksum {
        return Err(reader.error());
    }
    Ok((sequence, marks))
}

pub(crate) const FILE: &str = "marks";

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 4 + 1 + 8 + 4;
const MARK_BYTES: usize = 4 + 8 + 8 + 8;
const BLOCK_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(next: u64) -> BTreeMap<GroupId, Mark> {
        let mark = |next| Mark { next, vote: (7, 2) };
        BTreeMap::from([(GroupId(0), mark(next)), (GroupId(3), mark(1))])
    }

    fn at(path: &Path) -> u64 {
        read(path, 2)[&GroupId(0)].next
    }

    #[test]
    fn the_golden_image_stays() {
        let hex: String = encode(5, &marks(258))
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let body = "01000000000000000500000002\
                    00000000000000000000010200000000000000070000000000000002\
                    00000003000000000000000100000000000000070000000000000002";
        assert_eq!(hex[8..], *body);
        assert_eq!(hex.len() / 2, HEAD_BYTES + 2 * MARK_BYTES);
        assert_eq!(decode(&encode(5, &marks(258))).unwrap(), (5, marks(258)));
    }

    #[test]
    fn the_newest_image_counts_and_a_torn_one_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        assert!(read(&path, 2).is_empty());
        let mut written = Marks::open(&path, marks(10)).unwrap();
        written.reach(GroupId(0), 11);
        written.write().unwrap();
        assert_eq!(at(&path), 11);
        written.reach(GroupId(0), 12);
        written.write().unwrap();
        assert_eq!(at(&path), 12);
        let slot = (written.sequence % 2) as usize * slot_bytes(2);
        let whole = std::fs::read(&path).unwrap();
        for byte in slot..slot + HEAD_BYTES + 2 * MARK_BYTES {
            let mut torn = whole.clone();
            torn[byte] ^= 1;
            std::fs::write(&path, torn).unwrap();
            assert_eq!(at(&path), 11, "byte {byte}");
        }
        std::fs::write(&path, &whole[..slot]).unwrap();
        assert!(read(&path, 2).get(&GroupId(0)).is_none_or(|mark| mark.next == 11));
        std::fs::write(&path, b"").unwrap();
        assert!(read(&path, 2).is_empty());
    }

    /// A power cut may bring back either slot.
    #[test]
    fn a_mark_that_falls_leaves_no_higher_one_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let mut written = Marks::open(&path, marks(10)).unwrap();
        written.fall(GroupId(0), 5);
        written.write_durably().unwrap();
        let whole = std::fs::read(&path).unwrap();
        for slot in [0, slot_bytes(2)] {
            let mut torn = whole.clone();
            torn[slot] ^= 1;
            std::fs::write(&path, torn).unwrap();
            assert_eq!(at(&path), 5);
        }
        std::fs::write(&path, whole).unwrap();
        drop(written);
        let mut again = Marks::open(&path, read(&path, 2)).unwrap();
        again.reach(GroupId(0), 6);
        again.write().unwrap();
        assert_eq!(at(&path), 6, "the sequence goes on");
    }
}
