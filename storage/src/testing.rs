//! Both databases in memory: for the simulator, and for tests that want no disk.
//!
//!     write ──▶ now ──flush / sync──▶ durable
//!                ▲                       │
//!                └────────crash()────────┘     the suffix of batches since then is lost
//!
//! Invariants
//! - A batch is visible whole or not at all, and survives a crash whole or not at all.
//! - After a crash the rows are what they were at some earlier end of a batch.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};

use crate::engine::{LogBatch, LogEngine, LogMutation, Mutation, StateBatch, StateEngine, StateView};

type Rows = BTreeMap<Bytes, Bytes>;

/// [`StateEngine`] over ordered maps. Clones share the same tables.
#[derive(Clone, Default)]
pub struct MemoryState(Memory<Rows>);

/// [`LogEngine`] over ordered maps. Clones share the same rows.
#[derive(Clone, Default)]
pub struct MemoryLog(Memory<LogRows>);

#[derive(Clone, Default)]
struct LogRows {
    entries: Rows,
    meta: Rows,
}

/// What is, what would survive, and whether the disk still works.
struct Memory<T> {
    /// Guards one read, one batch or one copy; never held over an await.
    state: Arc<Mutex<State<T>>>,
}

#[derive(Default)]
struct State<T> {
    /// Shared with views and with `durable`; copied by the first write after that.
    now: Arc<T>,
    durable: Arc<T>,
    /// Fails writes and flushes with this message.
    broken: Option<String>,
}

impl<T> Clone for Memory<T> {
    fn clone(&self) -> Self {
        Memory {
            state: self.state.clone(),
        }
    }
}

impl<T: Default> Default for Memory<T> {
    fn default() -> Self {
        Memory { state: Arc::default() }
    }
}

impl<T: Clone> Memory<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing panics between taking and releasing the lock but a failing allocation.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Arc<T> {
        self.lock().now.clone()
    }

    fn change(&self, change: impl FnOnce(&mut T)) -> io::Result<()> {
        let mut state = self.lock();
        state.check()?;
        change(Arc::make_mut(&mut state.now));
        Ok(())
    }

    fn make_durable(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.check()?;
        state.durable = state.now.clone();
        Ok(())
    }

    fn crash(&self) {
        let mut state = self.lock();
        state.now = state.durable.clone();
        state.broken = None;
    }
}

impl<T> State<T> {
    fn check(&self) -> io::Result<()> {
        match &self.broken {
            None => Ok(()),
            Some(message) => Err(io::Error::other(message.clone())),
        }
    }
}

impl MemoryState {
    pub fn new() -> Self {
        Self::default()
    }

    /// Loses what was not flushed, as a power cut does. Views taken before keep what they show.
    pub fn crash(&self) {
        self.0.crash();
    }

    /// From now on writes and flushes fail, until [`MemoryState::crash`].
    pub fn break_with(&self, message: &str) {
        self.0.lock().broken = Some(message.to_owned());
    }

    /// All rows, in key order.
    pub fn rows(&self) -> Vec<(Bytes, Bytes)> {
        self.0
            .now()
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }
}

impl StateEngine for MemoryState {
    fn get(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        Ok(self.0.lock().now.get(key).cloned())
    }

    fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> io::Result<Vec<(Bytes, Bytes)>> {
        let state = self.0.lock();
        Ok(range(&state.now, start, end).take(limit).map(owned).collect())
    }

    fn write(&self, batch: StateBatch) -> io::Result<()> {
        self.0.change(|rows| {
            for mutation in batch.mutations {
                match mutation {
                    Mutation::Put(key, value) => {
                        rows.insert(key.into(), value.into());
                    }
                    Mutation::Delete(key) => {
                        rows.remove(&key[..]);
                    }
                    Mutation::DeleteRange(start, end) => delete_range(rows, &start, &end),
                }
            }
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.0.make_durable()
    }

    fn view(&self) -> io::Result<Box<dyn StateView>> {
        Ok(Box::new(MemoryView(self.0.now())))
    }
}

struct MemoryView(Arc<Rows>);

impl StateView for MemoryView {
    fn get(&self, key: Vec<u8>) -> BoxFuture<'static, io::Result<Option<Bytes>>> {
        ready(Ok(self.0.get(&key[..]).cloned())).boxed()
    }

    fn scan(&self, start: Vec<u8>, end: Vec<u8>, bytes: usize) -> BoxFuture<'static, io::Result<Vec<(Bytes, Bytes)>>> {
        ready(Ok(scan_bytes(&self.0, &start, &end, bytes))).boxed()
    }
}

impl MemoryLog {
    pub fn new() -> Self {
        Self::default()
    }

    /// Loses what was not synced, as a power cut does.
    pub fn crash(&self) {
        self.0.crash();
    }

    /// From now on writes and syncs fail, until [`MemoryLog::crash`].
    pub fn break_with(&self, message: &str) {
        self.0.lock().broken = Some(message.to_owned());
    }
}

impl LogEngine for MemoryLog {
    fn entries(&self, start: &[u8], end: &[u8], bytes: usize) -> io::Result<Vec<(Bytes, Bytes)>> {
        let state = self.0.lock();
        Ok(scan_bytes(&state.now.entries, start, end, bytes))
    }

    fn last(&self, start: &[u8], end: &[u8]) -> io::Result<Option<(Bytes, Bytes)>> {
        let state = self.0.lock();
        Ok(range(&state.now.entries, start, end).next_back().map(owned))
    }

    fn meta(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        Ok(self.0.lock().now.meta.get(key).cloned())
    }

    fn write(&self, batch: LogBatch) -> io::Result<()> {
        self.0.change(|rows| {
            for mutation in batch.mutations {
                match mutation {
                    LogMutation::PutEntry(key, value) => {
                        rows.entries.insert(Bytes::copy_from_slice(&key), value);
                    }
                    LogMutation::DeleteEntry(key) => {
                        rows.entries.remove(&key[..]);
                    }
                    LogMutation::DeleteEntries(start, end) => delete_range(&mut rows.entries, &start, &end),
                    LogMutation::PutMeta(key, value) => {
                        rows.meta.insert(Bytes::copy_from_slice(&key), value);
                    }
                }
            }
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.0.make_durable()
    }
}

fn owned((key, value): (&Bytes, &Bytes)) -> (Bytes, Bytes) {
    (key.clone(), value.clone())
}

fn scan_bytes(rows: &Rows, start: &[u8], end: &[u8], bytes: usize) -> Vec<(Bytes, Bytes)> {
    let mut found = Vec::new();
    let mut size = 0;
    for (key, value) in range(rows, start, end) {
        found.push((key.clone(), value.clone()));
        size += key.len() + value.len();
        if size >= bytes {
            break;
        }
    }
    found
}

/// Empty when `start >= end`, where `BTreeMap::range` would panic.
fn range<'a>(rows: &'a Rows, start: &[u8], end: &[u8]) -> impl DoubleEndedIterator<Item = (&'a Bytes, &'a Bytes)> {
    let bounds = (start < end).then_some((Bound::Included(start), Bound::Excluded(end)));
    bounds.into_iter().flat_map(|bounds| rows.range::<[u8], _>(bounds))
}

fn delete_range(rows: &mut Rows, start: &[u8], end: &[u8]) {
    let doomed: Vec<Bytes> = range(rows, start, end).map(|(key, _)| key.clone()).collect();
    for key in doomed {
        rows.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(engine: &MemoryState, key: &[u8], value: &[u8]) {
        let mut batch = StateBatch::default();
        batch.put(key.to_vec(), value.to_vec());
        engine.write(batch).unwrap();
    }

    #[test]
    fn a_crash_returns_to_the_last_flush() {
        let engine = MemoryState::new();
        put(&engine, b"a", b"1");
        engine.flush().unwrap();
        put(&engine, b"a", b"2");
        put(&engine, b"b", b"1");
        engine.crash();
        assert_eq!(engine.get(b"a").unwrap(), Some(Bytes::from_static(b"1")));
        assert_eq!(engine.get(b"b").unwrap(), None);
    }

    #[test]
    fn a_view_does_not_see_later_writes() {
        let engine = MemoryState::new();
        put(&engine, b"a", b"1");
        let view = engine.view().unwrap();
        put(&engine, b"a", b"2");
        let seen = view.get(b"a".to_vec()).now_or_never().unwrap().unwrap();
        assert_eq!(seen, Some(Bytes::from_static(b"1")));
    }

    #[test]
    fn scan_and_delete_range_exclude_the_end() {
        let engine = MemoryState::new();
        for key in [b"a", b"b", b"c", b"d"] {
            put(&engine, key, b"1");
        }
        let keys: Vec<Bytes> = engine
            .scan(b"b", b"d", 9)
            .unwrap()
            .into_iter()
            .map(|(key, _)| key)
            .collect();
        assert_eq!(keys, [&b"b"[..], b"c"]);
        assert_eq!(engine.scan(b"b", b"d", 1).unwrap().len(), 1);
        assert!(engine.scan(b"d", b"b", 9).unwrap().is_empty());
        let mut batch = StateBatch::default();
        batch.delete_range(b"a".to_vec(), b"c".to_vec());
        engine.write(batch).unwrap();
        assert_eq!(engine.rows().len(), 2);
    }

    #[test]
    fn a_broken_engine_keeps_what_it_had() {
        let engine = MemoryState::new();
        put(&engine, b"a", b"1");
        engine.flush().unwrap();
        engine.break_with("disk on fire");
        assert!(engine.write(StateBatch::default()).is_err());
        assert!(engine.flush().is_err());
        engine.crash();
        assert_eq!(engine.rows().len(), 1);
    }

    #[test]
    fn a_log_crash_returns_to_the_last_sync() {
        let log = MemoryLog::new();
        let put = |key| LogBatch {
            mutations: vec![LogMutation::PutEntry(key, Bytes::from_static(b"e"))],
        };
        log.write(put([1; 12])).unwrap();
        log.sync().unwrap();
        log.write(put([2; 12])).unwrap();
        assert_eq!(log.last(&[0; 12], &[9; 12]).unwrap().unwrap().0, [2; 12][..]);
        log.crash();
        assert_eq!(log.last(&[0; 12], &[9; 12]).unwrap().unwrap().0, [1; 12][..]);
    }
}
