//! Writes the history of a run: one file, one clock.

use crate::history::{Event, Kind, Op, Process};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A handle of the history that is being written; clones share it.
#[derive(Clone)]
pub struct Recorder(Arc<Shared>);

struct Shared {
    started: Instant,
    next_process: AtomicU64,
    /// Guards the order: index, time and line are made in one step, so that indexes, times and lines agree.
    file: Mutex<Lines>,
}

struct Lines {
    next_index: u64,
    to: BufWriter<File>,
}

impl Recorder {
    /// # Errors
    /// `path` cannot be created.
    pub fn create(path: &Path) -> std::io::Result<Recorder> {
        Ok(Recorder(Arc::new(Shared {
            started: Instant::now(),
            next_process: AtomicU64::new(0),
            file: Mutex::new(Lines {
                next_index: 0,
                to: BufWriter::new(File::create(path)?),
            }),
        })))
    }

    /// Appends an event that happens now; answers its index.
    ///
    /// # Panics
    /// The file cannot be written: a run without its history is worth nothing.
    pub fn record(&self, process: Process, kind: Kind, op: Op) -> u64 {
        let mut lines = self.lines();
        let event = Event {
            index: lines.next_index,
            time: self.now(),
            process,
            kind,
            op,
        };
        lines.next_index += 1;
        lines
            .to
            .write_all(event.to_line().as_bytes())
            .expect("the history can be written");
        event.index
    }

    /// An `info` event of a named process.
    pub fn note(&self, process: &str, op: Op) -> u64 {
        self.record(Process::Name(process.into()), Kind::Info, op)
    }

    /// A number that no process has had: at the start, and after an operation that ended with `info`.
    pub fn new_process(&self) -> Process {
        Process::Number(self.0.next_process.fetch_add(1, Ordering::Relaxed))
    }

    /// Nanoseconds since the start of the run.
    pub fn now(&self) -> u64 {
        self.0.started.elapsed().as_nanos() as u64
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn flush(&self) -> std::io::Result<()> {
        self.lines().to.flush()
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
