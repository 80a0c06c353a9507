//! What one entry of the log reads and writes, with what it has changed already and the tables do not show yet.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;

use super::messages::Counts;
use crate::machine::{TableBatch, Tables};

pub(super) struct Rows<'a, 'b> {
    pub tables: &'a Tables,
    pub batch: &'a mut TableBatch<'b>,
    /// Messages and pending entries: the hot path has its own, smaller overlay.
    pub counts: Counts,
    changed: BTreeMap<Vec<u8>, Option<Bytes>>,
}

impl<'a, 'b> Rows<'a, 'b> {
    pub fn new(tables: &'a Tables, batch: &'a mut TableBatch<'b>) -> Self {
        Rows {
            tables,
            batch,
            counts: Counts::default(),
            changed: BTreeMap::new(),
        }
    }

    /// # Errors
    /// The engine cannot read.
    pub fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        match self.changed.get(key) {
            Some(changed) => Ok(changed.clone()),
            None => self.tables.get(key),
        }
    }

    pub fn put(&mut self, key: &[u8], value: Bytes) {
        self.batch.put(key, &value);
        self.changed.insert(key.to_vec(), Some(value));
    }

    pub fn delete(&mut self, key: &[u8]) {
        self.batch.delete(key);
        self.changed.insert(key.to_vec(), None);
    }

    /// Rows with `start <= key < end` in key order: the first `limit`.
    ///
    /// # Errors
    /// The engine cannot read.
    pub fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> io::Result<Vec<(Bytes, Bytes)>> {
        let (mut merged, mut from) = (BTreeMap::new(), start.to_vec());
        loop {
            let stored = self.tables.scan(&from, end, limit)?;
            // What lies behind the last stored row of a full page comes with the next page.
            let next = match stored.last() {
                Some((last, _)) if stored.len() >= limit => Some([last, &[0][..]].concat()),
                _ => None,
            };
            merged.extend(stored);
            let upto = next.clone().unwrap_or_else(|| end.to_vec());
            for (key, value) in self.changed.range(from..upto) {
                match value {
                    Some(value) => merged.insert(Bytes::copy_from_slice(key), value.clone()),
                    None => merged.remove(&key[..]),
                };
            }
            match next {
                // What this entry has removed does not count.
                Some(next) if merged.len() < limit => from = next,
                _ => return Ok(merged.into_iter().take(limit).collect()),
            }
        }
    }
}
