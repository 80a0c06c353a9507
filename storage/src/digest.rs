//! What the rows of one group are, in a few numbers: what tests and operators compare between replicas.
//!
//!     view of the tables ─▶ `applied` · every application row, in pages ─▶ digest over all, count per kind
//!
//! Equal `applied` must mean equal digest on every replica (`apply-deterministic`). Left out is what differs by right: the
//! generation in front of every key, and the `applied` row itself.

use std::collections::BTreeMap;
use std::io;

use crate::keys;
use crate::log_keys::{application_range, applied_key};
use crate::machine::Tables;
use crate::raft_types::decode_snapshot_meta;

/// All rows of a group as of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Log index of the last entry that the rows show; 0 for none.
    pub applied: u64,
    pub rows: u64,
    /// Over keys and values in key order. Finds differences, not forgeries.
    pub digest: u64,
    /// Number of rows by kind (see [`keys::kind_name`]); kinds without rows are absent.
    pub kinds: BTreeMap<u8, u64>,
}

/// Reads every row of the group, a page at a time, from one frozen view: `applied` and rows belong together.
///
/// Takes as long as the disk takes, and holds back compaction meanwhile: not for every second.
///
/// # Errors
/// The engine cannot read, or the `applied` row is torn.
pub async fn contents(tables: &Tables) -> io::Result<Contents> {
    let (view, generation) = loop {
        let generation = tables.generation();
        let view = tables.view()?;
        // A snapshot that was installed in between has deleted what the view was to show.
        if tables.generation() == generation {
            break (view, generation);
        }
    };
    let applied = match view.get(applied_key(tables.group(), generation)).await? {
        Some(row) => decode_snapshot_meta(&row)?.last_log_id.map_or(0, |id| id.index),
        None => 0,
    };
    let mut digest = Digest::default();
    let (mut rows, mut kinds) = (0, BTreeMap::new());
    let (mut next, end) = application_range(tables.group(), generation);
    loop {
        let page = view.scan(next, end.clone(), PAGE_BYTES).await?;
        for (key, value) in &page {
            let key = &key[PREFIX_BYTES..];
            digest.field(key);
            digest.field(value);
            rows += 1;
            *kinds.entry(key[0]).or_default() += 1;
        }
        let Some((last, _)) = page.last() else { break };
        next = [last, &[0][..]].concat();
    }
    Ok(Contents {
        applied,
        rows,
        digest: digest.0,
        kinds,
    })
}

impl Contents {
    /// Number of rows by the name of their kind.
    pub fn named_kinds(&self) -> BTreeMap<String, u64> {
        let named = |(kind, count): (&u8, &u64)| {
            let name = keys::kind_name(*kind).map_or_else(|| format!("kind-{kind}"), str::to_owned);
            (name, *count)
        };
        self.kinds.iter().map(named).collect()
    }
}

/// FNV-1a of 64 bits: each step is a bijection of the state, so one changed byte always shows.
struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Digest(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    /// With its length, so that bytes cannot move between neighbours unseen.
    fn field(&mut self, bytes: &[u8]) {
        self.add(&(bytes.len() as u64).to_le_bytes());
        self.add(bytes);
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// Group and generation.
const PREFIX_BYTES: usize = 8;
/// 256 KiB, as in a snapshot: many rows at once, and little memory.
const PAGE_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use crate::engine::{StateBatch, StateEngine};
    use crate::ids::GroupId;
    use crate::machine::{TableBatch, prefix};
    use crate::raft_types::{LeaderId, LogId, SnapshotMeta, encode_snapshot_meta};
    use crate::testing::MemoryState;

    struct Replica {
        engine: MemoryState,
        generation: Arc<AtomicU32>,
        tables: Tables,
    }

    impl Replica {
        fn new(generation: u32) -> Replica {
            let (engine, generation) = (MemoryState::new(), Arc::new(AtomicU32::new(generation)));
            let tables = Tables::new(Arc::new(engine.clone()), GROUP, generation.clone());
            Replica {
                engine,
                generation,
                tables,
            }
        }

        fn put(&self, applied: u64, rows: &[(&[u8], &[u8])]) {
            let mut batch = StateBatch::default();
            let generation = self.generation.load(Ordering::Relaxed);
            let mut table = TableBatch::new(&mut batch, prefix(GROUP, generation));
            for (key, value) in rows {
                table.put(key, value);
            }
            let meta = SnapshotMeta {
                last_log_id: Some(LogId::new(LeaderId { term: 1, node_id: 1 }, applied)),
                ..SnapshotMeta::default()
            };
            batch.put(applied_key(GROUP, generation), encode_snapshot_meta(&meta).to_vec());
            self.engine.write(batch).unwrap();
        }
    }

    const GROUP: GroupId = GroupId(3);

    #[tokio::test]
    async fn equal_rows_give_equal_digests_whatever_the_generation() {
        let (one, other) = (Replica::new(0), Replica::new(7));
        let large = vec![9; PAGE_BYTES];
        let rows: [(&[u8], &[u8]); 4] = [(&[1, 1], b"a"), (&[1, 2], &large), (&[3, 1], &large), (&[3, 2], b"")];
        one.put(5, &rows);
        for (applied, row) in (2..6).zip(rows) {
            other.put(applied, &[row]);
        }
        let contents_of_one = contents(&one.tables).await.unwrap();
        assert_eq!(contents_of_one, contents(&other.tables).await.unwrap());
        assert_eq!((contents_of_one.applied, contents_of_one.rows), (5, 4));
        assert_eq!(
            contents_of_one.named_kinds(),
            BTreeMap::from([("message".to_owned(), 2), ("pending".to_owned(), 2)])
        );
    }

    #[tokio::test]
    async fn every_difference_of_rows_shows() {
        let digest = async |rows: &[(&[u8], &[u8])]| {
            let replica = Replica::new(0);
            replica.put(1, rows);
            contents(&replica.tables).await.unwrap().digest
        };
        let all = [
            digest(&[]).await,
            digest(&[(b"\x01k", b"")]).await,
            digest(&[(b"\x01k", b"v")]).await,
            digest(&[(b"\x01kv", b"")]).await,
            digest(&[(b"\x01k", b"w")]).await,
            digest(&[(b"\x01k", b"v"), (b"\x01l", b"")]).await,
        ];
        let distinct: std::collections::BTreeSet<u64> = all.into_iter().collect();
        assert_eq!(distinct.len(), all.len(), "{all:x?}");
    }

    #[tokio::test]
    async fn rows_of_other_groups_and_generations_do_not_count() {
        let replica = Replica::new(4);
        assert_eq!(
            contents(&replica.tables).await.unwrap().applied,
            0,
            "nothing applied yet"
        );
        replica.put(1, &[(b"\x01k", b"v")]);
        let before = contents(&replica.tables).await.unwrap();
        let mut batch = StateBatch::default();
        for (group, generation) in [(GROUP.0 - 1, 4), (GROUP.0, 3), (GROUP.0, 5), (GROUP.0 + 1, 4)] {
            TableBatch::new(&mut batch, prefix(GroupId(group), generation)).put(b"\x01other", b"x");
        }
        replica.engine.write(batch).unwrap();
        assert_eq!(contents(&replica.tables).await.unwrap(), before);
    }
}
