//! Where the cluster part meets the workers: events go to threads, fences close connections at once.
//!
//! ```text
//!   apply, links ─▶ Hub ─▶ worker 1 ─▶ its connections
//!                    │  └▶ worker 2
//!                    └─ fences: session → connection, set in the middle of apply
//! ```
//!
//! Invariants
//! - `bounded`: beyond WORKER_BYTES_MAX queued, a worker is not sent messages but told that its view has a hole:
//!   durable sessions then read pages, connected ephemeral ones with QoS 1 subscriptions are let go.
//! - `one-owner`: a fence that is set stays set; a connection looks at it before it acts.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use lontra_cluster::local::{Guard, Local, Outcome, Ticket};
use lontra_storage::ids::{Offset, SessionEpoch, SessionId, ShardId};
use lontra_storage::message::Message;
use lontra_storage::shard::Applied;
use tokio::sync::mpsc;

use crate::metrics::{Drop, NodeMetrics};

/// What a worker hears from outside its thread.
pub enum WorkerEvent {
    Applied(Arc<Applied>, usize),
    Ephemeral(Arc<Message>, Guard, usize),
    /// Something up to this offset of the shard was never handed over.
    Hole(ShardId, Offset),
    Completed(Vec<(u64, u64, Outcome)>),
    /// The fence of this connection was set.
    Displaced(u64),
    /// The lease begins, lapses or ends.
    ServingChanged,
}

/// Set once a connection is no longer the owner of its session.
#[derive(Debug, Default)]
pub struct Fence(AtomicBool);

impl Fence {
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

struct Fenced {
    epoch: SessionEpoch,
    fence: Arc<Fence>,
    worker: u16,
    connection: u64,
}

struct Worker {
    events: mpsc::UnboundedSender<WorkerEvent>,
    queued: Arc<AtomicUsize>,
}

/// The node's side of delivery, shared by all threads.
pub struct Hub {
    workers: Vec<Worker>,
    /// Guards which connection serves which session here.
    sessions: Mutex<HashMap<SessionId, Fenced>>,
    metrics: NodeMetrics,
}

/// A worker's end of its queue.
pub struct WorkerQueue {
    pub events: mpsc::UnboundedReceiver<WorkerEvent>,
    pub queued: Arc<AtomicUsize>,
}

impl Hub {
    pub fn new(workers: usize, metrics: NodeMetrics) -> (Arc<Hub>, Vec<WorkerQueue>) {
        let (mut handles, mut queues) = (Vec::new(), Vec::new());
        for _ in 0..workers {
            let (sender, receiver) = mpsc::unbounded_channel();
            let queued = Arc::new(AtomicUsize::new(0));
            handles.push(Worker {
                events: sender,
                queued: queued.clone(),
            });
            queues.push(WorkerQueue {
                events: receiver,
                queued,
            });
        }
        (
            Arc::new(Hub {
                workers: handles,
                sessions: Mutex::default(),
                metrics,
            }),
            queues,
        )
    }

    /// From here on a later Connect of the same client id sets the fence.
    pub fn register(&self, session: SessionId, epoch: SessionEpoch, worker: u16, connection: u64) -> Arc<Fence> {
        let fence = Arc::new(Fence::default());
        let fenced = Fenced {
            epoch,
            fence: fence.clone(),
            worker,
            connection,
        };
        self.sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(session, fenced);
        fence
    }

    /// The connection is gone; a newer one of the same session stays.
    pub fn unregister(&self, session: SessionId, epoch: SessionEpoch) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.get(&session).is_some_and(|fenced| fenced.epoch == epoch) {
            sessions.remove(&session);
        }
    }

    /// Sends to every worker what costs `bytes` of its queue; a full one is not sent it.
    fn broadcast(&self, bytes: usize, event: impl Fn() -> WorkerEvent, on_full: impl Fn(&Worker)) {
        for worker in &self.workers {
            if worker.queued.load(Ordering::Relaxed) + bytes > WORKER_BYTES_MAX {
                self.metrics.dropped(Drop::WorkerFull, 1);
                on_full(worker);
                continue;
            }
            worker.queued.fetch_add(bytes, Ordering::Relaxed);
            self.metrics.worker_queue(bytes as i64);
            let _ = worker.events.send(event());
        }
    }
}

impl Local for Hub {
    fn applied(&self, applied: Arc<Applied>) {
        let bytes = applied
            .appended
            .iter()
            .map(|appended| appended.message.size() + 64)
            .sum();
        let (shard, upto) = (applied.shard, applied.upto);
        self.broadcast(
            bytes,
            || WorkerEvent::Applied(applied.clone(), bytes),
            |worker| {
                let _ = worker.events.send(WorkerEvent::Hole(shard, upto));
            },
        );
    }

    fn jumped(&self, shard: ShardId, upto: Offset) {
        for worker in &self.workers {
            let _ = worker.events.send(WorkerEvent::Hole(shard, upto));
        }
    }

    fn ephemeral(&self, message: Arc<Message>, guard: Guard) {
        let bytes = message.size() + 64;
        // A full worker holds back nobody's acknowledgement for QoS 0; for QoS 1 the message still goes in: what is
        // unacknowledged is bounded by the publishers' Receive Maximum.
        for worker in &self.workers {
            if message.qos == 0 && worker.queued.load(Ordering::Relaxed) + bytes > WORKER_BYTES_MAX {
                self.metrics.dropped(Drop::WorkerFull, 1);
                continue;
            }
            worker.queued.fetch_add(bytes, Ordering::Relaxed);
            self.metrics.worker_queue(bytes as i64);
            let _ = worker
                .events
                .send(WorkerEvent::Ephemeral(message.clone(), guard.clone(), bytes));
        }
    }

    fn completed(&self, outcomes: Vec<(Ticket, Outcome)>) {
        let mut by_worker: Vec<Vec<(u64, u64, Outcome)>> = vec![Vec::new(); self.workers.len()];
        for (ticket, outcome) in outcomes {
            if let Some(list) = by_worker.get_mut(usize::from(ticket.worker)) {
                list.push((ticket.connection, ticket.token, outcome));
            }
        }
        for (worker, list) in self.workers.iter().zip(by_worker) {
            if !list.is_empty() {
                let _ = worker.events.send(WorkerEvent::Completed(list));
            }
        }
    }

    fn displaced(&self, session: SessionId, epoch: SessionEpoch) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.get(&session).is_some_and(|fenced| fenced.epoch <= epoch)
            && let Some(fenced) = sessions.remove(&session)
        {
            fenced.fence.0.store(true, Ordering::Release);
            let _ = self.workers[usize::from(fenced.worker)]
                .events
                .send(WorkerEvent::Displaced(fenced.connection));
        }
    }

    fn serving_changed(&self) {
        for worker in &self.workers {
            let _ = worker.events.send(WorkerEvent::ServingChanged);
        }
    }
}

/// 64 MiB of messages on their way to one worker's connections.
const WORKER_BYTES_MAX: usize = 64 * 1024 * 1024;
