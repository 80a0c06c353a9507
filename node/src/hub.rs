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

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use lontra_cluster::local::{Audience, Credit, Guard, Local, Offer, Outcome, Ticket};
use lontra_storage::ids::{Offset, SessionEpoch, SessionId, ShardId};
use lontra_storage::message::Message;
use lontra_storage::meta::AccessChange;
use lontra_storage::shard::Applied;
use tokio::sync::{mpsc, oneshot, watch};

use crate::auth::cluster::ClusterAccess;
use crate::metrics::{DeniedAction, Drop, NodeMetrics};
use crate::protocol::publish_out::Outbound;
use crate::worker::WorkerConfig;

/// What a worker hears from outside its thread.
pub enum WorkerEvent {
    Applied(Arc<Applied>, usize),
    Ephemeral(Arc<Message>, Audience, Guard, usize),
    /// Something up to this offset of the shard was never handed over.
    Hole(ShardId, Offset),
    Completed(Vec<(u64, u64, Outcome)>),
    /// Dropped once everything before it was processed.
    Mark(oneshot::Sender<()>),
    /// The fence of this connection was set.
    Displaced(u64),
    /// The lease begins, lapses or ends.
    ServingChanged,
    /// What the cluster keeps of who may do what; the guard is dropped once it is in effect.
    AccessChanged(Arc<[AccessChange]>, Guard),
}

/// Set once a connection is no longer the owner of its session.
#[derive(Debug, Default)]
pub struct Fence(AtomicBool);

impl Fence {
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// How many messages of shared groups a connection takes.
///
/// What was answered to an offer is reserved until it arrives or the offer is over. The next offer of that queue may come
/// before what the last one assigned: it does not replace it. What neither arrives nor is given back (its leader is gone)
/// is free again after a while.
#[derive(Debug, Default)]
pub struct CreditBook {
    /// The client's Receive Maximum less what is in flight or waits.
    free: AtomicUsize,
    load: AtomicUsize,
    /// Guards what is reserved, by queue, and since when; the oldest first.
    reserved: Mutex<BTreeMap<(ShardId, SessionId), Reservations>>,
}

/// Messages reserved for offers of one queue, and since when.
type Reservations = VecDeque<(u32, Instant)>;

impl CreditBook {
    /// The outbox has changed.
    pub fn set_free(&self, outbound: &Outbound) {
        self.free.store(outbound.free_quota(), Ordering::Release);
        self.load.store(outbound.load(), Ordering::Release);
    }

    fn reserve(&self, queue: (ShardId, SessionId), wanted: u32) -> u32 {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        reserved.retain(|_, offers| {
            offers.retain(|(_, since)| now.duration_since(*since) < RESERVED_MAX);
            !offers.is_empty()
        });
        let taken: u32 = reserved.values().flatten().map(|(messages, _)| *messages).sum();
        let free = (self.free.load(Ordering::Acquire) as u32)
            .saturating_sub(taken)
            .min(wanted);
        if free > 0 {
            reserved.entry(queue).or_default().push_back((free, now));
        }
        free
    }

    fn unreserve(&self, queue: (ShardId, SessionId), mut messages: u32) {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(offers) = reserved.get_mut(&queue) else { return };
        while let Some((left, _)) = offers.front_mut() {
            let taken = messages.min(*left);
            *left -= taken;
            messages -= taken;
            if *left > 0 {
                return;
            }
            offers.pop_front();
        }
        reserved.remove(&queue);
    }

    /// A message of the group was assigned to this connection.
    pub fn arrived(&self, shard: ShardId, group: SessionId) {
        // Also counted as free until the worker looks again: too little for a moment, never too much.
        self.free
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |free| Some(free.saturating_sub(1)))
            .unwrap_or_default();
        self.unreserve((shard, group), 1);
    }
}

struct Fenced {
    epoch: SessionEpoch,
    fence: Arc<Fence>,
    credit: Arc<CreditBook>,
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
    /// Subscriptions of connected clients to `$SYS`.
    sys_watchers: AtomicIsize,
    metrics: NodeMetrics,
    pub access: Arc<ClusterAccess>,
    /// Users and rules as the last reload has read them; none before the workers start.
    auth: OnceLock<watch::Receiver<Arc<WorkerConfig>>>,
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
                sys_watchers: AtomicIsize::new(0),
                metrics,
                access: Arc::default(),
                auth: OnceLock::new(),
            }),
            queues,
        )
    }

    /// From here on it is known who may publish a will.
    pub fn bind(&self, config: watch::Receiver<Arc<WorkerConfig>>) {
        let _ = self.auth.set(config);
    }

    /// From here on a later Connect of the same client id sets the fence. One that was carried out before may be registered
    /// after it: such a fence is set from the beginning, and the newer connection's stays where `displaced` finds it. What a
    /// newer one replaces is fenced: nobody would find it any more.
    pub fn register(
        &self,
        session: SessionId,
        epoch: SessionEpoch,
        worker: u16,
        connection: u64,
        credit: Arc<CreditBook>,
    ) -> Arc<Fence> {
        let fence = Arc::new(Fence::default());
        let fenced = Fenced {
            epoch,
            fence: fence.clone(),
            credit,
            worker,
            connection,
        };
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.get(&session).is_some_and(|newer| newer.epoch > epoch) {
            fence.0.store(true, Ordering::Release);
            return fence;
        }
        if let Some(older) = sessions.insert(session, fenced) {
            self.set_fence(&older);
        }
        fence
    }

    /// `one-owner`: its connection is served no more.
    fn set_fence(&self, fenced: &Fenced) {
        fenced.fence.0.store(true, Ordering::Release);
        let _ = self.workers[usize::from(fenced.worker)]
            .events
            .send(WorkerEvent::Displaced(fenced.connection));
    }

    /// The connection is gone; a newer one of the same session stays.
    pub fn unregister(&self, session: SessionId, epoch: SessionEpoch) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.get(&session).is_some_and(|fenced| fenced.epoch == epoch) {
            sessions.remove(&session);
        }
    }

    /// Sessions that are served here.
    pub fn session_count(&self) -> usize {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub fn sys_watchers(&self, by: isize) {
        self.sys_watchers.fetch_add(by, Ordering::Relaxed);
    }

    pub fn is_sys_watched(&self) -> bool {
        self.sys_watchers.load(Ordering::Relaxed) > 0
    }

    /// A message that the node made itself, at QoS 0, for whoever is connected and matches.
    pub fn tell(&self, message: Arc<Message>) {
        let everybody = Audience {
            matching: true,
            members: Arc::default(),
        };
        self.ephemeral(message, everybody, Guard::new(|| {}));
    }

    /// Waits until a worker has processed everything that was queued for it before this call.
    pub async fn processed(&self, worker: u16) {
        let (mark, processed) = oneshot::channel();
        if let Some(worker) = self.workers.get(usize::from(worker)) {
            let _ = worker.events.send(WorkerEvent::Mark(mark));
        }
        // Dropped, never sent: both mean that it was reached, or that the worker has ended.
        let _ = processed.await;
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

    fn ephemeral(&self, message: Arc<Message>, audience: Audience, guard: Guard) {
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
            let _ = worker.events.send(WorkerEvent::Ephemeral(
                message.clone(),
                audience.clone(),
                guard.clone(),
                bytes,
            ));
        }
    }

    fn offer(&self, offer: &Offer) -> Vec<Credit> {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let mut credits = Vec::new();
        for member in &offer.members {
            let Some(fenced) = sessions.get(member) else { continue };
            // One without room is told too: by hash, messages go to the same member whoever has room.
            credits.push(Credit {
                session: *member,
                epoch: fenced.epoch,
                messages: fenced.credit.reserve((offer.shard, offer.group), offer.waiting),
                load: fenced.credit.load.load(Ordering::Acquire) as u32,
            });
        }
        credits
    }

    fn offer_over(&self, shard: ShardId, group: SessionId, unused: &[(SessionId, u32)]) {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        for (session, messages) in unused {
            if let Some(fenced) = sessions.get(session) {
                fenced.credit.unreserve((shard, group), *messages);
            }
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
            self.set_fence(&fenced);
        }
    }

    /// `bounded`: by what operators do, who wait for each of them to be in effect.
    fn access_changed(&self, changes: &[AccessChange], guard: Guard) {
        if changes.contains(&AccessChange::Rules) {
            self.access.rules_changed();
        }
        // A view that jumped says `Rules` of everything.
        let is_of_users = |change: &AccessChange| matches!(change, AccessChange::User(_) | AccessChange::Rules);
        if changes.iter().any(is_of_users) {
            self.access.users_changed();
        }
        let changes: Arc<[AccessChange]> = changes.into();
        for worker in &self.workers {
            let event = WorkerEvent::AccessChanged(changes.clone(), guard.clone());
            let _ = worker.events.send(event);
        }
    }

    fn may_publish_will(&self, author: &[u8], topic: &str) -> Option<bool> {
        let auth = self.auth.get()?.borrow().auth.clone();
        let may = auth.may_publish_will(author, topic);
        if !may {
            self.metrics.denied(DeniedAction::Will);
        }
        Some(may)
    }

    fn serving_changed(&self) {
        for worker in &self.workers {
            let _ = worker.events.send(WorkerEvent::ServingChanged);
        }
    }
}

/// Longer than a round of an offer takes.
const RESERVED_MAX: Duration = Duration::from_secs(5);
/// 64 MiB of messages on their way to one worker's connections.
const WORKER_BYTES_MAX: usize = 64 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;

    const SESSION: SessionId = SessionId(7);

    struct Fixture {
        hub: Arc<Hub>,
        queues: Vec<WorkerQueue>,
    }

    impl Fixture {
        fn new() -> Fixture {
            let metrics = NodeMetrics::new(&Registry::new());
            let (hub, queues) = Hub::new(1, metrics);
            Fixture { hub, queues }
        }

        /// The connection has the number of its epoch.
        fn register(&self, epoch: u64) -> Arc<Fence> {
            self.hub
                .register(SESSION, SessionEpoch(epoch), 0, epoch, Arc::default())
        }

        /// Connections that are told to close.
        fn displaced(&mut self) -> Vec<u64> {
            let mut connections = Vec::new();
            while let Ok(event) = self.queues[0].events.try_recv() {
                if let WorkerEvent::Displaced(connection) = event {
                    connections.push(connection);
                }
            }
            connections
        }
    }

    #[test]
    fn a_connect_that_is_late_leaves_the_fence_of_a_newer_one() {
        let mut fixture = Fixture::new();
        let newer = fixture.register(2);
        let late = fixture.register(1);
        assert!(late.is_set(), "it is not served");
        fixture.hub.unregister(SESSION, SessionEpoch(1));
        assert!(!newer.is_set());
        assert_eq!(fixture.hub.session_count(), 1);
        fixture.hub.displaced(SESSION, SessionEpoch(2));
        assert!(newer.is_set(), "a take-over finds it");
        assert_eq!(fixture.displaced(), [2]);
    }

    #[test]
    fn what_is_replaced_is_fenced() {
        let mut fixture = Fixture::new();
        let older = fixture.register(1);
        let newer = fixture.register(2);
        assert!(older.is_set() && !newer.is_set());
        assert_eq!(fixture.displaced(), [1]);
        fixture.hub.unregister(SESSION, SessionEpoch(1));
        assert_eq!(
            fixture.hub.session_count(),
            1,
            "the older one's end takes nothing of the newer"
        );
        fixture.hub.displaced(SESSION, SessionEpoch(1));
        assert!(!newer.is_set(), "a take-over of the older one is not of the newer");
    }
}
