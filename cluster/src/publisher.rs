//! This node's batches for one shard: numbered, pipelined, sent again in order until each has an answer.
//!
//! ```text
//!   publishes, settlements ─▶ queue ─▶ batch n+1 ─▶ [n-2 | n-1 | n] in flight ─▶ leader of the shard
//!                                                      │ no leader, no answer, gap
//!                                                      └──── everything from the first unanswered again, in order
//! ```
//!
//! Invariants
//! - `batch-sequence`: a batch's messages and number are fixed once it was sent; numbers have no gaps.
//! - `bounded`: the queue is bounded by what connections may have unacknowledged (their Receive Maximum); its size is a
//!   metric.
//! - an outcome is told once, and only on the result of apply.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use lontra_storage::command::{BatchReply, NodeBatch, ShardOperation};
use lontra_storage::ids::{Incarnation, MetaIndex, NodeId, Offset, SessionId, ShardId};
use lontra_storage::message::Recipient;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::group::{ProposeError, Proposed};
use crate::local::{Local, Outcome, Ticket};
use crate::metrics::ClusterMetrics;

/// Something for a shard.
pub enum ShardRequest {
    /// A publish on the durable path. `message` is encoded once, here it is only moved.
    Publish {
        message: Bytes,
        recipients: Arc<[Recipient]>,
        route_version: u64,
        ticket: Ticket,
    },
    /// A client acknowledged a message.
    Settle {
        session: SessionId,
        offset: Offset,
        ticket: Ticket,
    },
    /// A session is gone for good: its entries leave, page by page.
    Sweep { session: SessionId },
    /// The incarnation changed: what is unanswered ends as unknown, numbers begin anew.
    Incarnation(Incarnation),
}

/// Finds the leader and proposes there. The outer error is a link's: not sent, or unknown.
pub trait Propose: Send + Sync + 'static {
    fn propose(&self, bundle: Bytes) -> BoxFuture<'static, Result<Proposed, ProposeError>>;
}

/// Handle of one shard's sender.
#[derive(Clone)]
pub struct ShardSender {
    queue: mpsc::UnboundedSender<ShardRequest>,
}

impl ShardSender {
    pub fn start(
        node: NodeId,
        shard: ShardId,
        propose: Arc<dyn Propose>,
        local: Arc<dyn Local>,
        metrics: ClusterMetrics,
        answer_max: Duration,
    ) -> ShardSender {
        let (queue, receiver) = mpsc::unbounded_channel();
        let sender = Sender {
            node,
            shard,
            propose,
            local,
            metrics,
            answer_max,
            incarnation: Incarnation(0),
            next_sequence: 1,
            queue: VecDeque::new(),
            publishes: 0,
            settlements: 0,
            oldest_settle: None,
            window: VecDeque::new(),
            round: 0,
            retry_at: None,
        };
        tokio::spawn(sender.run(receiver));
        ShardSender { queue }
    }

    /// Never blocks; order of calls is kept.
    pub fn send(&self, request: ShardRequest) {
        // The task ends only with its last handle.
        let _ = self.queue.send(request);
    }
}

struct InFlight {
    sequence: u64,
    bundle: Bytes,
    /// Tickets of publishes, in order of their offsets, and of settlements.
    publishes: Vec<Ticket>,
    settlements: Vec<Ticket>,
    answered: bool,
}

type Answer = BoxFuture<'static, (u64, u64, Option<Result<Proposed, ProposeError>>)>;

struct Sender {
    node: NodeId,
    shard: ShardId,
    propose: Arc<dyn Propose>,
    local: Arc<dyn Local>,
    metrics: ClusterMetrics,
    answer_max: Duration,
    incarnation: Incarnation,
    next_sequence: u64,
    queue: VecDeque<ShardRequest>,
    /// Publishes and settlements in `queue`.
    publishes: usize,
    settlements: usize,
    /// When the oldest settlement in `queue` came.
    oldest_settle: Option<Instant>,
    window: VecDeque<InFlight>,
    /// Counts the times that the window was sent: answers of an earlier round are taken, its errors are not.
    round: u64,
    retry_at: Option<Instant>,
}

impl Sender {
    async fn run(mut self, mut requests: mpsc::UnboundedReceiver<ShardRequest>) {
        let mut answers = FuturesUnordered::<Answer>::new();
        loop {
            self.fill_window(&answers_sink(&mut answers));
            let wake = self.next_wake();
            tokio::select! {
                request = requests.recv() => {
                    let Some(request) = request else { return };
                    self.enqueue(request);
                    while let Ok(request) = requests.try_recv() {
                        self.enqueue(request);
                    }
                }
                Some((round, sequence, answer)) = answers.next(), if !answers.is_empty() => {
                    self.answered(round, sequence, answer);
                }
                () = sleep_until(wake), if wake.is_some() => {
                    if self.retry_at.is_some_and(|at| at <= Instant::now()) {
                        self.retry_at = None;
                        self.resend(&answers_sink(&mut answers));
                    }
                }
            }
        }
    }

    fn next_wake(&self) -> Option<Instant> {
        let settle = self
            .oldest_settle
            .filter(|_| self.window.len() < WINDOW)
            .map(|since| since + SETTLE_WAIT_MAX);
        [settle, self.retry_at].into_iter().flatten().min()
    }

    fn enqueue(&mut self, request: ShardRequest) {
        match &request {
            ShardRequest::Publish { .. } => self.publishes += 1,
            ShardRequest::Settle { .. } | ShardRequest::Sweep { .. } => {
                self.settlements += 1;
                self.oldest_settle.get_or_insert_with(Instant::now);
            }
            ShardRequest::Incarnation(incarnation) => {
                self.begin(*incarnation);
                return;
            }
        }
        self.queue.push_back(request);
        self.metrics.sender_queue(self.shard, self.queue.len());
    }

    /// Nothing of the old incarnation will be told any more: its connections are gone.
    fn begin(&mut self, incarnation: Incarnation) {
        let waiting = self.queue.drain(..).filter_map(|request| match request {
            ShardRequest::Publish { ticket, .. } | ShardRequest::Settle { ticket, .. } => Some(ticket),
            ShardRequest::Sweep { .. } | ShardRequest::Incarnation(_) => None,
        });
        let in_flight = self
            .window
            .drain(..)
            .filter(|batch| !batch.answered)
            .flat_map(|batch| batch.publishes.into_iter().chain(batch.settlements));
        let outcomes = in_flight
            .chain(waiting)
            .map(|ticket| (ticket, Outcome::Unknown))
            .collect();
        self.local.completed(outcomes);
        self.publishes = 0;
        self.settlements = 0;
        self.oldest_settle = None;
        self.retry_at = None;
        self.round += 1;
        self.incarnation = incarnation;
        self.next_sequence = 1;
    }

    /// Makes batches while the window has room and something is worth sending.
    fn fill_window(&mut self, push: &dyn Fn(Answer)) {
        if self.incarnation.0 == 0 {
            return;
        }
        while self.window.len() < WINDOW && self.is_worth_sending() {
            let batch = self.take_batch();
            if self.retry_at.is_none() {
                push(self.send(&batch));
            }
            self.window.push_back(batch);
        }
    }

    fn is_worth_sending(&self) -> bool {
        self.publishes > 0
            || self.queue.len() >= BATCH_OPERATIONS
            || self
                .oldest_settle
                .is_some_and(|since| since.elapsed() >= SETTLE_WAIT_MAX)
    }

    fn take_batch(&mut self) -> InFlight {
        let mut sets = RecipientSets::default();
        let (mut operations, mut publishes, mut settlements) = (Vec::new(), Vec::new(), Vec::new());
        let mut settled = HashMap::<SessionId, usize>::new();
        let (mut bytes, mut route_version) = (0, u64::MAX);
        while bytes < BATCH_BYTES && operations.len() < BATCH_OPERATIONS {
            match self.queue.pop_front() {
                None => break,
                Some(ShardRequest::Publish {
                    message,
                    recipients,
                    route_version: matched_at,
                    ticket,
                }) => {
                    self.publishes -= 1;
                    route_version = route_version.min(matched_at);
                    bytes += message.len();
                    let (recipients, new_bytes) = sets.index_of(&recipients);
                    bytes += new_bytes;
                    operations.push(ShardOperation::Append { message, recipients });
                    publishes.push(ticket);
                }
                Some(ShardRequest::Settle {
                    session,
                    offset,
                    ticket,
                }) => {
                    self.settlements -= 1;
                    let at = *settled.entry(session).or_insert_with(|| {
                        operations.push(ShardOperation::Ack {
                            session,
                            offsets: Vec::new(),
                        });
                        operations.len() - 1
                    });
                    if let ShardOperation::Ack { offsets, .. } = &mut operations[at] {
                        offsets.push(offset);
                    }
                    bytes += 5;
                    settlements.push(ticket);
                }
                Some(ShardRequest::Sweep { session }) => {
                    self.settlements -= 1;
                    bytes += 10;
                    operations.push(ShardOperation::Sweep { session });
                }
                Some(ShardRequest::Incarnation(_)) => {}
            }
        }
        self.oldest_settle = (self.settlements > 0).then(Instant::now);
        self.metrics.sender_queue(self.shard, self.queue.len());
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let batch = NodeBatch {
            node: self.node,
            incarnation: self.incarnation,
            sequence,
            route_version: MetaIndex(if route_version == u64::MAX { 0 } else { route_version }),
            recipient_sets: sets.sets,
            operations,
        };
        InFlight {
            sequence,
            bundle: batch.encode(),
            publishes,
            settlements,
            answered: false,
        }
    }

    fn send(&self, batch: &InFlight) -> Answer {
        let (round, sequence) = (self.round, batch.sequence);
        let proposed = self.propose.propose(batch.bundle.clone());
        let limit = self.answer_max;
        Box::pin(async move { (round, sequence, tokio::time::timeout(limit, proposed).await.ok()) })
    }

    /// Everything unanswered again, in order.
    fn resend(&mut self, push: &dyn Fn(Answer)) {
        self.round += 1;
        self.metrics.batches_resent(self.window.len());
        for batch in self.window.iter().filter(|batch| !batch.answered) {
            push(self.send(batch));
        }
    }

    fn answered(&mut self, round: u64, sequence: u64, answer: Option<Result<Proposed, ProposeError>>) {
        let reply = match answer {
            Some(Ok(proposed)) => BatchReply::decode(&proposed.reply).ok(),
            Some(Err(_)) | None => None,
        };
        match reply {
            Some(BatchReply::Applied { first, .. }) => self.settle(sequence, first),
            // The fence is apply's: meta tells the same soon, and ends this incarnation here too.
            Some(BatchReply::DeadIncarnation | BatchReply::Forgotten) => {
                tracing::warn!(
                    shard = self.shard.0,
                    sequence,
                    "the shard no longer takes batches of this incarnation"
                );
                self.retry_later(round);
            }
            Some(BatchReply::Gap { .. }) | None => self.retry_later(round),
        }
    }

    fn settle(&mut self, sequence: u64, first: Offset) {
        let Some(batch) = self
            .window
            .iter_mut()
            .find(|batch| batch.sequence == sequence && !batch.answered)
        else {
            return;
        };
        batch.answered = true;
        let stored = std::mem::take(&mut batch.publishes)
            .into_iter()
            .enumerate()
            .map(|(n, ticket)| (ticket, Outcome::Stored(Offset(first.0 + n as u64))));
        let settled = std::mem::take(&mut batch.settlements)
            .into_iter()
            .map(|ticket| (ticket, Outcome::Done));
        let outcomes = stored.chain(settled).collect();
        while self.window.front().is_some_and(|batch| batch.answered) {
            self.window.pop_front();
        }
        self.local.completed(outcomes);
    }

    fn retry_later(&mut self, round: u64) {
        if round == self.round && self.retry_at.is_none() && !self.window.is_empty() {
            self.retry_at = Some(Instant::now() + RETRY_WAIT);
        }
    }
}

/// Lets methods with `&mut self` add to the set of answers that the loop owns.
fn answers_sink(answers: &mut FuturesUnordered<Answer>) -> impl Fn(Answer) + '_ {
    |answer| answers.push(answer)
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

/// Recipient sets of a batch: the same `Arc` is written once.
#[derive(Default)]
struct RecipientSets {
    known: HashMap<*const Recipient, u32>,
    /// Keeps the allocations of `known` alive, so that an address means one set.
    alive: Vec<Arc<[Recipient]>>,
    sets: Vec<Vec<Recipient>>,
}

impl RecipientSets {
    /// Index of the set, and the bytes that it adds.
    fn index_of(&mut self, recipients: &Arc<[Recipient]>) -> (u32, usize) {
        let key = if recipients.is_empty() {
            std::ptr::null()
        } else {
            recipients.as_ptr()
        };
        if let Some(index) = self.known.get(&key) {
            return (*index, 0);
        }
        let index = self.sets.len() as u32;
        self.known.insert(key, index);
        self.alive.push(recipients.clone());
        self.sets.push(recipients.to_vec());
        (index, recipients.len() * 8)
    }
}

/// Batches in flight per shard; `shard::senders` keeps four times as many replies.
const WINDOW: usize = 4;
const BATCH_BYTES: usize = 256 * 1024;
const BATCH_OPERATIONS: usize = 512;
/// DESIGN §4: a settlement waits this long for a publish to ride with.
const SETTLE_WAIT_MAX: Duration = Duration::from_millis(20);
/// Between two tries to find a leader that takes the window.
const RETRY_WAIT: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests;
