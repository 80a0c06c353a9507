//! The one writer of the raft database: group commit for all groups of the node.
//!
//!     append ─┐
//!     vote   ─┼─▶ queue ──drain──▶ one LogBatch ──▶ write ──▶ one fsync ──▶ marks ──▶ synced, callbacks, in queue order
//!     purge  ─┘                                              (only if an append or a vote is in it)
//!
//! Invariants
//! - `queue-order`: what is queued is written in that order, so a vote, a truncation or `committed` on disk never
//!   leads or trails the entries it refers to.
//! - `bounded`: at most [`QUEUE_BYTES`] of entries wait; then appends wait for the writer, which writes or fails.
//! - The first error is final: after it nothing is written, everything is answered with it, [`Failure`] tells the node.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::storage::IOFlushed;
use tokio::sync::{Semaphore, oneshot};

use crate::engine::{LogBatch, LogEngine, LogMutation};
use crate::failure::Failure;
use crate::group::Group;
use crate::ids::GroupId;
use crate::marks::{Marks, Promise};
use crate::metrics::StorageMetrics;
use crate::raft_types::TypeConfig;
use crate::test_bugs::{Bug, has, late_sync_is_due};
use crate::unsynced::Unsynced;

/// One thing to write.
pub(crate) enum Op {
    /// Entries of one group; `bytes` were reserved with [`LogWriter::room`].
    Append {
        group: Arc<Group>,
        epoch: u64,
        /// Index after the last entry.
        next: u64,
        entries: Vec<([u8; 12], Bytes)>,
        bytes: usize,
        callback: IOFlushed<TypeConfig>,
    },
    /// Rows that must be on disk before the sender goes on: a vote, a generation; no rows: what was queued before.
    Durable {
        rows: Vec<LogMutation>,
        promise: Promise,
        done: oneshot::Sender<io::Result<()>>,
    },
    /// Rows that may be lost with their successors: purge, committed.
    Lazy { rows: Vec<LogMutation> },
    /// As lazy, but the log of `group` then ends before `from`.
    Truncate {
        group: GroupId,
        from: u64,
        rows: Vec<LogMutation>,
    },
    /// Ends the thread.
    Stop { done: oneshot::Sender<io::Result<()>> },
}

/// Handle to the writer.
pub(crate) struct LogWriter {
    route: Route,
    room: Arc<Semaphore>,
    unsynced: Arc<Unsynced>,
    metrics: StorageMetrics,
    failure: Failure,
}

enum Route {
    /// Both are there until the drop.
    Thread {
        queue: Option<mpsc::Sender<Op>>,
        thread: Option<JoinHandle<()>>,
    },
    /// In the simulator there are no threads: whoever queues, writes. Guards the engine's write order.
    Inline(Mutex<Scribe>, Mutex<VecDeque<Op>>),
}

impl LogWriter {
    /// Starts the thread `lontra-log`.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn spawn(scribe: Scribe) -> io::Result<Arc<LogWriter>> {
        let (sender, queue) = mpsc::channel();
        let (metrics, failure) = (scribe.metrics.clone(), scribe.failure.clone());
        let room = Arc::new(Semaphore::new(QUEUE_BYTES));
        let unsynced = Arc::new(Unsynced::default());
        let (released, synced) = (room.clone(), unsynced.clone());
        let thread = std::thread::Builder::new()
            .name("lontra-log".into())
            .spawn(move || run(scribe, queue, &released, &synced))?;
        let route = Route::Thread {
            queue: Some(sender),
            thread: Some(thread),
        };
        Ok(Arc::new(LogWriter {
            route,
            room,
            unsynced,
            metrics,
            failure,
        }))
    }

    /// Writes in the caller's task, for the simulator.
    pub fn inline(scribe: Scribe) -> Arc<LogWriter> {
        let (metrics, failure) = (scribe.metrics.clone(), scribe.failure.clone());
        let route = Route::Inline(Mutex::new(scribe), Mutex::default());
        Arc::new(LogWriter {
            route,
            room: Arc::new(Semaphore::new(QUEUE_BYTES)),
            unsynced: Arc::default(),
            metrics,
            failure,
        })
    }

    /// Waits until `bytes` fit into the queue, and takes them.
    ///
    /// # Errors
    /// The writer has failed.
    ///
    /// # Cancel safety
    /// Takes nothing when dropped before it is done.
    pub async fn room(&self, bytes: usize) -> io::Result<()> {
        // An append larger than the queue waits until the queue is empty.
        let permit = self
            .room
            .acquire_many(permits(bytes))
            .await
            .map_err(|_| self.failure.error())?;
        permit.forget();
        self.metrics.queued(bytes);
        Ok(())
    }

    /// Queues without waiting. What cannot be written is answered through its callback.
    pub fn queue(&self, op: Op) {
        match &self.route {
            Route::Thread { queue, .. } => {
                let waits = usize::from(op.is_waited_for());
                if waits > 0 {
                    self.unsynced.queued(Instant::now());
                }
                let unsent = match queue {
                    Some(queue) => queue.send(op).err().map(|mpsc::SendError(op)| op),
                    None => Some(op),
                };
                if let Some(op) = unsent {
                    self.unsynced.done(waits);
                    op.answer(&Err(self.failure.error()));
                }
            }
            Route::Inline(scribe, queue) => {
                let lock = || queue.lock().unwrap_or_else(PoisonError::into_inner);
                lock().push_back(op);
                let mut scribe = scribe.lock().unwrap_or_else(PoisonError::into_inner);
                let ops: Vec<Op> = lock().drain(..).collect();
                let permits = permits_of(&ops);
                scribe.write(ops);
                release(&self.room, permits, &self.failure);
            }
        }
    }

    /// How long the oldest of what is queued has waited for its sync; zero if nothing waits, and in the simulator.
    pub fn unsynced_for(&self) -> Duration {
        self.unsynced.age(Instant::now())
    }

    /// Queues rows and waits until they, and everything queued before, are durable.
    ///
    /// # Errors
    /// The writer has failed; whether the rows are on disk is unknown.
    pub async fn durable(&self, rows: Vec<LogMutation>, promise: Promise) -> io::Result<()> {
        let (done, written) = oneshot::channel();
        self.queue(Op::Durable { rows, promise, done });
        written.await.unwrap_or_else(|_| Err(self.failure.error()))
    }

    /// Writes what is queued and ends the thread; later ops are answered with an error.
    pub async fn stop(&self) -> io::Result<()> {
        let (done, stopped) = oneshot::channel();
        self.queue(Op::Stop { done });
        stopped.await.unwrap_or_else(|_| Err(self.failure.error()))
    }
}

impl Drop for LogWriter {
    /// Waits until what is queued is written and the thread has let go of the database: who drops the storage may
    /// open it again, or end the process.
    fn drop(&mut self) {
        if let Route::Thread { queue, thread } = &mut self.route {
            drop(queue.take());
            // A thread that panicked has told so; there is nothing to add.
            let _ = thread.take().map(JoinHandle::join);
        }
    }
}

fn release(room: &Semaphore, permits: usize, failure: &Failure) {
    room.add_permits(permits);
    if failure.message().is_some() {
        room.close();
    }
}

fn run(mut scribe: Scribe, queue: mpsc::Receiver<Op>, room: &Semaphore, unsynced: &Unsynced) {
    while let Ok(first) = queue.recv() {
        let mut bytes = first.bytes();
        let mut ops = vec![first];
        while bytes < DRAIN_BYTES
            && let Ok(op) = queue.try_recv()
        {
            bytes += op.bytes();
            ops.push(op);
        }
        let stop = ops
            .iter()
            .position(|op| matches!(op, Op::Stop { .. }))
            .map(|at| ops.split_off(at));
        let permits = permits_of(&ops);
        let waited_for = ops.iter().filter(|op| op.is_waited_for()).count();
        scribe.write(ops);
        unsynced.done(waited_for);
        release(room, permits, &scribe.failure);
        if let Some(stopped) = stop {
            let result = scribe.failure.result();
            scribe.failure.close();
            // The database closes with its last user: let go of it before the answer.
            drop(scribe);
            stopped.into_iter().for_each(|op| op.answer(&result));
            return;
        }
    }
}

/// Writes batches and answers for them.
pub(crate) struct Scribe {
    pub engine: Arc<dyn LogEngine>,
    /// False only in tests of what happens without.
    pub fsync: bool,
    pub metrics: StorageMetrics,
    pub failure: Failure,
    /// None where nothing outlives the process: in the simulator.
    pub marks: Option<Marks>,
}

impl Scribe {
    fn write(&mut self, mut ops: Vec<Op>) {
        let result = self.failure.result().and_then(|()| {
            self.lower_marks(&ops)?;
            self.put(&mut ops)?;
            self.sync(&ops)
        });
        if let Err(error) = &result {
            self.failure.fail(&format!("the raft log cannot be written: {error}"));
        }
        for op in ops {
            self.metrics.dequeued(op.bytes());
            op.answer(&result);
        }
    }

    fn put(&self, ops: &mut [Op]) -> io::Result<()> {
        let mut batch = LogBatch::default();
        for op in ops.iter_mut() {
            match op {
                Op::Append { entries, .. } => {
                    let rows = entries.drain(..).map(|(key, value)| LogMutation::PutEntry(key, value));
                    batch.mutations.extend(rows);
                }
                Op::Durable { rows, .. } | Op::Lazy { rows } | Op::Truncate { rows, .. } => {
                    batch.mutations.append(rows)
                }
                Op::Stop { .. } => {}
            }
        }
        if !batch.mutations.is_empty() {
            self.engine.write(batch)?;
        }
        for op in ops {
            if let Op::Append { group, epoch, next, .. } = op {
                group.tail().written(*epoch, *next);
            }
        }
        Ok(())
    }

    /// `mark-behind-log`: before the entries are gone.
    fn lower_marks(&mut self, ops: &[Op]) -> io::Result<()> {
        let Some(marks) = &mut self.marks else { return Ok(()) };
        let mut falls = false;
        for op in ops {
            if let Op::Truncate { group, from, .. } = op {
                falls |= marks.fall(*group, *from);
            }
        }
        if falls { marks.write_durably() } else { Ok(()) }
    }

    /// `mark-behind-log`: after the sync. In queue order, so that each mark ends where its log does.
    fn raise_marks(&mut self, ops: &[Op]) -> io::Result<()> {
        let Some(marks) = &mut self.marks else { return Ok(()) };
        for op in ops {
            match op {
                Op::Append { group, next, .. } => marks.reach(group.id, *next),
                Op::Truncate { group, from, .. } => {
                    marks.fall(*group, *from);
                }
                Op::Durable { promise, .. } => match *promise {
                    Promise::Vote(group, vote) => marks.vote(group, vote),
                    Promise::Reaches(group, next) => marks.reach(group, next),
                },
                Op::Lazy { .. } | Op::Stop { .. } => {}
            }
        }
        marks.write()
    }

    fn sync(&mut self, ops: &[Op]) -> io::Result<()> {
        if !self.fsync || has(Bug::NoFsync) || !ops.iter().any(Op::must_sync) {
            return Ok(());
        }
        if has(Bug::AckBeforeFsync) && !late_sync_is_due() {
            return Ok(());
        }
        let started = Instant::now();
        self.engine.sync()?;
        let appends = ops.iter().filter(|op| matches!(op, Op::Append { .. })).count();
        self.metrics
            .synced(started.elapsed(), appends, ops.iter().map(Op::bytes).sum());
        self.raise_marks(ops)
    }
}

impl Op {
    fn bytes(&self) -> usize {
        match self {
            Op::Append { bytes, .. } => *bytes,
            _ => 0,
        }
    }

    fn must_sync(&self) -> bool {
        self.is_waited_for() || matches!(self, Op::Stop { .. })
    }

    /// Whether a group cannot go on before it is durable.
    fn is_waited_for(&self) -> bool {
        matches!(self, Op::Append { .. } | Op::Durable { .. })
    }

    /// Tells the sender. A sender that no longer listens has gone away on purpose.
    fn answer(self, result: &io::Result<()>) {
        match self {
            Op::Append {
                group,
                epoch,
                next,
                callback,
                ..
            } => {
                if result.is_ok() {
                    group.raise_synced(epoch, next);
                }
                callback.io_completed(copy(result));
            }
            Op::Durable { done, .. } | Op::Stop { done } => {
                let _ = done.send(copy(result));
            }
            Op::Lazy { .. } | Op::Truncate { .. } => {}
        }
    }
}

fn copy(result: &io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    }
}

fn permits(bytes: usize) -> u32 {
    bytes.min(QUEUE_BYTES) as u32
}

fn permits_of(ops: &[Op]) -> usize {
    ops.iter().map(|op| permits(op.bytes()) as usize).sum()
}

/// 64 MiB: seconds of a full network link; more would only hide a disk that does not keep up.
pub(crate) const QUEUE_BYTES: usize = 64 << 20;

/// 4 MiB per fsync: larger batches add latency and no throughput.
const DRAIN_BYTES: usize = 4 << 20;
