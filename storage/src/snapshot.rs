//! One group's rows on their way to another replica: a stream of chunks, never whole in memory.
//!
//!     sender    view of the tables ──recv()──▶ chunk · chunk · … · end      read as fast as the link takes them
//!     receiver  chunks ──▶ staged generation, flushed ──▶ install: one fsynced switch (`raft_state.rs`)
//!
//! A chunk is `version u8 · crc32 u32 · kind u8 · sequence var · …`, the checksum over all that follows it; rows come
//! as (key without the group's prefix, value), the end names their number.
//!
//! Invariants
//! - A stream that is torn, reordered, repeated, or without its end, is never installed.
//! - What was staged and not installed is deleted: on drop, and at the next start.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::encoding::{DecodeError, Reader, Writer};
use crate::engine::{StateBatch, StateEngine, StateView};
use crate::group::Group;
use crate::log_keys::{application_range, applied_key, generation_range};
use crate::machine::prefix;
use crate::metrics::StorageMetrics;
use crate::raft_types::{SnapshotMeta, encode_snapshot_meta};
use crate::test_bugs::{Bug, has};

/// What openraft hands around as a snapshot.
pub struct SnapshotData {
    source: Source,
}

enum Source {
    View(Box<ViewChunks>),
    Channel(mpsc::Receiver<io::Result<Bytes>>),
    Staged(Box<Staged>),
}

impl SnapshotData {
    pub(crate) fn from_view(view: Box<dyn StateView>, group: &Group, metrics: StorageMetrics) -> Self {
        let (next, end) = application_range(group.id, group.current_generation());
        let chunks = ViewChunks {
            view,
            next,
            end,
            sequence: 0,
            rows: 0,
            done: false,
            metrics,
        };
        SnapshotData {
            source: Source::View(Box::new(chunks)),
        }
    }

    /// Receiver side: chunks as the link delivers them. An `Err` ends the snapshot unusable.
    ///
    /// Installing it as it is makes a damaged chunk fatal to the group: see [`crate::storage::Storage::stage_snapshot`].
    pub fn from_chunks(chunks: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        SnapshotData {
            source: Source::Channel(chunks),
        }
    }

    pub(crate) fn from_staged(staged: Staged) -> Self {
        SnapshotData {
            source: Source::Staged(Box::new(staged)),
        }
    }

    /// Sender side: the chunks to send.
    pub fn into_chunks(self) -> SnapshotChunks {
        SnapshotChunks { source: self.source }
    }

    pub(crate) fn into_staged(self) -> Result<Staged, SnapshotChunks> {
        match self.source {
            Source::Staged(staged) => Ok(*staged),
            source => Err(SnapshotChunks { source }),
        }
    }
}

impl std::fmt::Debug for SnapshotData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SnapshotData")
    }
}

/// The chunks of a snapshot; read from the view, or from the link, when asked for.
pub struct SnapshotChunks {
    source: Source,
}

impl SnapshotChunks {
    /// The next chunk; `None` after the last. After an `Err` the snapshot is unusable.
    ///
    /// # Cancel safety
    /// Dropping the future may lose a chunk: the receiver then refuses the snapshot.
    pub async fn recv(&mut self) -> Option<io::Result<Bytes>> {
        match &mut self.source {
            Source::View(chunks) => chunks.next().await,
            Source::Channel(chunks) => chunks.recv().await,
            Source::Staged(_) => Some(Err(invalid("a staged snapshot can be installed, not sent"))),
        }
    }
}

struct ViewChunks {
    view: Box<dyn StateView>,
    next: Vec<u8>,
    end: Vec<u8>,
    sequence: u64,
    rows: u64,
    done: bool,
    metrics: StorageMetrics,
}

impl ViewChunks {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.done {
            return None;
        }
        let rows = match self.view.scan(self.next.clone(), self.end.clone(), CHUNK_BYTES).await {
            Ok(rows) => rows,
            Err(error) => {
                self.done = true;
                return Some(Err(error));
            }
        };
        let sequence = self.sequence;
        self.sequence += 1;
        let Some((last, _)) = rows.last() else {
            self.done = true;
            self.metrics.snapshot_sent();
            return Some(Ok(encode_chunk(sequence, &Chunk::End { rows: self.rows })));
        };
        self.next = last.to_vec();
        self.next.push(0);
        self.rows += rows.len() as u64;
        let mut rows: Vec<_> = rows
            .into_iter()
            .map(|(key, value)| (key.slice(PREFIX_BYTES..), value))
            .collect();
        if has(Bug::SnapshotSkipsLastKey) && rows.pop().is_some() {
            self.rows -= 1;
        }
        Some(Ok(encode_chunk(sequence, &Chunk::Rows(rows))))
    }
}

/// Why a snapshot was not staged.
#[derive(Debug)]
pub(crate) enum StageError {
    /// It arrived damaged or not whole: nothing is wrong here, the sender must start again.
    Torn(io::Error),
    /// This node's tables cannot be written.
    Disk(io::Error),
}

/// A generation of a group that is complete and durable, but not current. Dropped, it is deleted.
pub(crate) struct Staged {
    engine: Arc<dyn StateEngine>,
    group: Arc<Group>,
    pub generation: u32,
    pub meta: SnapshotMeta,
    kept: AtomicBool,
}

impl Staged {
    /// Begins a generation that nobody reads yet.
    pub fn begin(engine: Arc<dyn StateEngine>, group: Arc<Group>, meta: SnapshotMeta) -> Staged {
        let generation = group.fresh_generation();
        Staged {
            engine,
            group,
            generation,
            meta,
            kept: AtomicBool::new(false),
        }
    }

    /// Writes all of `chunks` and `applied`; the caller flushes.
    ///
    /// # Errors
    /// See [`StageError`].
    pub async fn fill(&self, chunks: &mut SnapshotChunks) -> Result<(), StageError> {
        let (mut sequence, mut count, mut ended) = (0, 0, false);
        while let Some(chunk) = chunks.recv().await {
            if ended {
                return Err(torn("a snapshot goes on after its end"));
            }
            let chunk = chunk.and_then(|chunk| decode_chunk(sequence, &chunk));
            match chunk.map_err(StageError::Torn)? {
                Chunk::Rows(rows) => {
                    count += rows.len() as u64;
                    self.write(rows)?;
                }
                Chunk::End { rows } if rows == count => ended = true,
                Chunk::End { .. } => return Err(torn("a snapshot has not as many rows as its end says")),
            }
            sequence += 1;
        }
        if !ended {
            return Err(torn("a snapshot stopped before its end"));
        }
        let mut batch = StateBatch::default();
        batch.put(
            applied_key(self.group.id, self.generation),
            encode_snapshot_meta(&self.meta).to_vec(),
        );
        self.engine.write(batch).map_err(StageError::Disk)
    }

    fn write(&self, rows: Vec<(Bytes, Bytes)>) -> Result<(), StageError> {
        let prefix = prefix(self.group.id, self.generation);
        let mut batch = StateBatch::default();
        for (key, value) in rows {
            // Kind 0 is ours.
            if key.first().is_none_or(|kind| *kind == 0) {
                return Err(torn("a snapshot has a row that is no application row"));
            }
            batch.put([&prefix[..], &key].concat(), value.to_vec());
        }
        self.engine.write(batch).map_err(StageError::Disk)
    }

    /// It is current now: dropping it deletes nothing.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::Release);
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.kept.load(Ordering::Acquire) {
            // What is left if this fails is deleted at the next start.
            let _ = delete_generation(&*self.engine, &self.group, self.generation);
        }
    }
}

/// # Errors
/// The engine cannot write.
pub(crate) fn delete_generation(engine: &dyn StateEngine, group: &Group, generation: u32) -> io::Result<()> {
    let (start, end) = generation_range(group.id, generation);
    let mut batch = StateBatch::default();
    batch.delete_range(start, end);
    engine.write(batch)
}

#[derive(Debug, PartialEq)]
enum Chunk {
    Rows(Vec<(Bytes, Bytes)>),
    End { rows: u64 },
}

fn encode_chunk(sequence: u64, chunk: &Chunk) -> Bytes {
    let mut body = Writer::with_capacity(CHUNK_BYTES + 1024);
    match chunk {
        Chunk::Rows(rows) => {
            body.u8(KIND_ROWS).var(sequence).var(rows.len() as u64);
            for (key, value) in rows {
                body.bytes(key).bytes(value);
            }
        }
        Chunk::End { rows } => {
            body.u8(KIND_END).var(sequence).var(*rows);
        }
    }
    let body = body.finish();
    let mut writer = Writer::with_capacity(body.len() + 5);
    writer.u8(CHUNK_VERSION).u32(crc32fast::hash(&body)).raw(&body);
    writer.finish()
}

fn decode_chunk(sequence: u64, bytes: &Bytes) -> io::Result<Chunk> {
    let mut reader = Reader::new("snapshot chunk", bytes);
    if reader.u8()? != CHUNK_VERSION {
        return Err(reader.error().into());
    }
    let checksum = reader.u32()?;
    let body = reader.rest();
    if crc32fast::hash(&body) != checksum {
        return Err(invalid("a snapshot chunk does not match its checksum"));
    }
    let mut reader = Reader::new("snapshot chunk", &body);
    let kind = reader.u8()?;
    if reader.var()? != sequence {
        return Err(invalid("a snapshot chunk is missing, repeated or out of order"));
    }
    let chunk = read_chunk(kind, &mut reader)?;
    reader.end()?;
    Ok(chunk)
}

fn read_chunk(kind: u8, reader: &mut Reader<'_>) -> Result<Chunk, DecodeError> {
    match kind {
        KIND_ROWS => {
            let mut rows = Vec::new();
            for _ in 0..reader.count()? {
                rows.push((reader.bytes()?, reader.bytes()?));
            }
            Ok(Chunk::Rows(rows))
        }
        KIND_END => Ok(Chunk::End { rows: reader.var()? }),
        _ => Err(reader.error()),
    }
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

fn torn(message: &'static str) -> StageError {
    StageError::Torn(invalid(message))
}

const CHUNK_VERSION: u8 = 1;
const KIND_ROWS: u8 = 1;
const KIND_END: u8 = 2;

/// Group and generation, which differ between replicas.
const PREFIX_BYTES: usize = 8;

/// 256 KiB: many rows per frame, and little memory for a stream that stalls.
const CHUNK_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_chunks_stay() {
        let rows = Chunk::Rows(vec![(Bytes::from_static(b"\x01k"), Bytes::from_static(b"value"))]);
        let bytes = encode_chunk(7, &rows);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(&hex[10..], "01070102016b0576616c7565");
        assert_eq!(hex[..2], *"01");
        assert_eq!(decode_chunk(7, &bytes).unwrap(), rows);
        assert!(decode_chunk(8, &bytes).is_err(), "out of order");
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let rows = Chunk::Rows(vec![(Bytes::from_static(b"\x01k"), Bytes::from_static(b"value"))]);
        let bytes = encode_chunk(0, &rows);
        for bit in 0..bytes.len() * 8 {
            let mut torn = bytes.to_vec();
            torn[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_chunk(0, &torn.into()).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(decode_chunk(0, &bytes.slice(..length)).is_err(), "cut at {length}");
        }
    }
}
