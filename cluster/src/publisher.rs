//! This node's batches for one shard: numbered, pipelined, sent again in order until each has an answer.
//!
//! ```text
//!   publishes, settlements ─▶ queue ─▶ batch n+1 ─▶ [n-2 | n-1 | n] in flight ─▶ leader of the shard
//!                                                      │ no leader, another leader, no answer, gap
//!                                                      ├──── everything from the first unanswered again, in order
//!                        matched again, in its place ◀─┘ stale route: that batch, and what follows it
//! ```
//!
//! Invariants
//! - `batch-sequence`: a batch's messages and number are fixed once it was sent; numbers have no gaps. Only the match of
//!   retained messages is made again, and only of a batch that was refused: should an old copy of it be taken after all,
//!   the same messages were taken.
//! - `bounded`: the queue is bounded by what connections may have unacknowledged: their Receive Maximum, and in bytes what a
//!   client may have under way (at QoS 0 too); its size is a metric.
//! - an outcome is told once, and only on the result of apply, whichever copy of the batch it answers: one that comes
//!   after the batch was sent again counts as well.
//! - a leader that is slow is waited for ([`Patience`]); one that is gone is not, whatever happens meanwhile.

mod patience;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use lontra_storage::command::{Append, BatchReply, Delay, Left, NodeBatch, OperationResult, Origin, ShardOperation};
use lontra_storage::ids::{Incarnation, MetaIndex, NodeId, Offset, SessionEpoch, SessionId, ShardId};
use lontra_storage::message::Recipient;
use lontra_storage::test_bugs::{Bug, has};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::group::{ProposeError, Proposed};
use crate::local::{Guard, Local, Outcome, Ticket};
use crate::metrics::ClusterMetrics;
use patience::{PATIENCE_MAX, Patience};

/// Something for a shard.
pub enum ShardRequest {
    Publish(Publish),
    /// A publish that waits in its shard for its time.
    Delay {
        delay: Delay,
        ticket: Ticket,
    },
    /// A message leaves a session's queue.
    Settle {
        session: SessionId,
        offset: Offset,
        how: Left,
        ticket: Ticket,
    },
    /// A client answered PUBREC: it is not sent the message again. [MQTT-4.3.3-5]
    Release {
        session: SessionId,
        offset: Offset,
        ticket: Ticket,
    },
    /// A client sent PUBREL for a QoS 2 publish of its own. [MQTT-4.3.3-11]
    ReleaseReceived {
        session: SessionId,
        epoch: SessionEpoch,
        packet_id: u16,
        done: Guard,
    },
    /// Upkeep of a shard. The answer is told unless the incarnation ends first.
    Upkeep {
        operation: ShardOperation,
        reply: oneshot::Sender<Option<OperationResult>>,
    },
    /// Told once what was handed in before it has been applied; dropped if the incarnation ends first.
    Flush {
        applied: oneshot::Sender<()>,
    },
    /// The incarnation changed: what is unanswered ends as unknown, numbers begin anew.
    Incarnation(Incarnation),
}

/// A publish on the durable path.
#[derive(Clone)]
pub struct Publish {
    /// Encoded once, here it is only moved.
    pub message: Bytes,
    pub recipients: Arc<[Recipient]>,
    pub route_version: u64,
    pub retain: bool,
    pub origin: Origin,
    pub reply: PublishReply,
}

/// Who hears of a publish's outcome.
#[derive(Clone)]
pub enum PublishReply {
    /// A connection of a worker.
    Ticket(Ticket),
    /// A task of the cluster part; nothing comes if the incarnation ends first.
    Task(Arc<std::sync::Mutex<Option<oneshot::Sender<Outcome>>>>),
}

impl PublishReply {
    pub fn task() -> (PublishReply, oneshot::Receiver<Outcome>) {
        let (sender, receiver) = oneshot::channel();
        (
            PublishReply::Task(Arc::new(std::sync::Mutex::new(Some(sender)))),
            receiver,
        )
    }
}

/// What a sender asks of the rest of the cluster part.
pub trait Propose: Send + Sync + 'static {
    /// Finds the leader and proposes there.
    fn propose(&self, bundle: Bytes) -> BoxFuture<'static, Result<Proposed, ProposeError>>;

    /// Resolves once another node leads than when this was called, if any did; never where this node cannot know.
    fn led_by_another(&self) -> BoxFuture<'static, ()>;

    /// Resolves once this node matches at `floor` or later.
    fn routes_reach(&self, floor: MetaIndex) -> BoxFuture<'static, ()>;

    /// Matches an encoded message again.
    fn rematch(&self, message: &Bytes) -> (Arc<[Recipient]>, u64);
}

/// Handle of one shard's sender.
#[derive(Clone)]
pub struct ShardSender {
    queue: mpsc::UnboundedSender<ShardRequest>,
}

impl ShardSender {
    /// `answer_max`: a batch that was not answered for so long, at least, is sent again.
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
            patience: Patience::new(answer_max),
            heard_at: Instant::now(),
            led_by_another: None,
            incarnation: Incarnation(0),
            next_sequence: 1,
            queue: VecDeque::new(),
            publishes: 0,
            settlements: 0,
            oldest_settle: None,
            window: VecDeque::new(),
            round: 0,
            retry_at: None,
            stale: None,
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
    /// The round in which its bundle was made: answers of earlier rounds are about another one.
    made_in: u64,
    bundle: Bytes,
    /// With the position of its operation in the batch.
    requests: Vec<(u32, ShardRequest)>,
    /// When it was sent last; `None` before the first time.
    sent_at: Option<Instant>,
    answered: bool,
}

/// One sending of a batch.
#[derive(Clone, Copy)]
struct Sent {
    round: u64,
    sequence: u64,
    at: Instant,
}

type Answer = BoxFuture<'static, (Sent, Result<Proposed, ProposeError>)>;

struct Sender {
    node: NodeId,
    shard: ShardId,
    propose: Arc<dyn Propose>,
    local: Arc<dyn Local>,
    metrics: ClusterMetrics,
    patience: Patience,
    /// When the last answer came that told an outcome: what is sent is answered in order.
    heard_at: Instant,
    /// Of the leader that was sent something last.
    led_by_another: Option<BoxFuture<'static, ()>>,
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
    /// Set while publishes wait to be matched again: nothing new is sent.
    stale: Option<BoxFuture<'static, ()>>,
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
                Some((sent, answer)) = answers.next(), if !answers.is_empty() => {
                    self.answered(sent, answer);
                }
                () = wait_for(&mut self.led_by_another), if self.led_by_another.is_some() => {
                    self.led_by_another = None;
                    self.patience.new_leader();
                    // What waits to be matched again is sent then.
                    if self.stale.is_none() {
                        self.retry_at = None;
                        self.resend(&answers_sink(&mut answers));
                    }
                }
                () = wait_for(&mut self.stale), if self.stale.is_some() => {
                    self.stale = None;
                    self.rematch();
                    self.resend(&answers_sink(&mut answers));
                }
                () = sleep_until(wake), if wake.is_some() => {
                    let now = Instant::now();
                    let missed = self.answer_due().is_some_and(|at| at <= now);
                    if missed {
                        self.patience.missed();
                    }
                    if missed || self.retry_at.is_some_and(|at| at <= now) {
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
        [settle, self.retry_at, self.answer_due()].into_iter().flatten().min()
    }

    /// When everything unanswered is sent again. Answers come in order: any of them gives the rest its time anew.
    fn answer_due(&self) -> Option<Instant> {
        // Both have their own time, and send everything again themselves.
        if self.retry_at.is_some() || self.stale.is_some() {
            return None;
        }
        let unanswered = self.window.iter().filter(|batch| !batch.answered);
        let oldest = unanswered.filter_map(|batch| batch.sent_at).min()?;
        Some(oldest.max(self.heard_at) + self.patience.current())
    }

    fn enqueue(&mut self, request: ShardRequest) {
        let request = match request {
            ShardRequest::Incarnation(incarnation) => return self.begin(incarnation),
            // It waits for what is there, and is nothing to send by itself.
            ShardRequest::Flush { applied } if self.queue.is_empty() => {
                match self.window.iter_mut().rfind(|batch| !batch.answered) {
                    Some(last) => last.requests.push((NO_OPERATION, ShardRequest::Flush { applied })),
                    None => drop(applied.send(())),
                }
                return;
            }
            ShardRequest::Publish(publish) if has(Bug::AckBeforeCommit) => self.acknowledge_early(publish),
            other => other,
        };
        match &request {
            request if is_urgent(request) => self.publishes += 1,
            _ => {
                self.settlements += 1;
                self.oldest_settle.get_or_insert_with(Instant::now);
            }
        }
        self.queue.push_back(request);
        self.metrics.sender_queue(self.shard, self.queue.len());
    }

    /// [`Bug::AckBeforeCommit`]
    fn acknowledge_early(&self, mut publish: Publish) -> ShardRequest {
        if let PublishReply::Ticket(ticket) = publish.reply {
            self.local.completed(vec![(ticket, Outcome::Stored(Offset(0)))]);
            publish.reply = PublishReply::task().0;
        }
        ShardRequest::Publish(publish)
    }

    /// Nothing of the old incarnation will be told any more: its connections are gone.
    fn begin(&mut self, incarnation: Incarnation) {
        let in_flight = self
            .window
            .drain(..)
            .filter(|batch| !batch.answered)
            .flat_map(|batch| batch.requests.into_iter().map(|(_, request)| request));
        let mut outcomes = Vec::new();
        for request in in_flight.chain(self.queue.drain(..)) {
            tell(request, Told::Unknown, &mut outcomes);
        }
        self.local.completed(outcomes);
        self.publishes = 0;
        self.settlements = 0;
        self.oldest_settle = None;
        self.retry_at = None;
        self.led_by_another = None;
        self.stale = None;
        self.round += 1;
        self.incarnation = incarnation;
        self.next_sequence = 1;
    }

    /// Makes batches while the window has room and something is worth sending.
    fn fill_window(&mut self, push: &dyn Fn(Answer)) {
        if self.incarnation.0 == 0 || self.stale.is_some() {
            return;
        }
        while self.window.len() < WINDOW && self.is_worth_sending() {
            let mut batch = self.take_batch();
            // Else it goes with the others, in order, when they are sent again.
            if self.retry_at.is_none() {
                push(self.send(&mut batch));
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
        let mut content = Content::default();
        while content.bytes < self.patience.batch_bytes() && content.operations.len() < BATCH_OPERATIONS {
            // Retained messages of two route versions do not share a batch: a replay looks at the version of each.
            if let Some(ShardRequest::Publish(publish)) = self.queue.front()
                && publish.retain
                && content.route_version != 0
                && content.route_version != publish.route_version
            {
                break;
            }
            let Some(request) = self.queue.pop_front() else { break };
            if is_urgent(&request) {
                self.publishes -= 1;
            } else {
                self.settlements -= 1;
            }
            content.add(request);
        }
        self.oldest_settle = (self.settlements > 0).then(Instant::now);
        self.metrics.sender_queue(self.shard, self.queue.len());
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.batch(sequence, content)
    }

    fn batch(&self, sequence: u64, content: Content) -> InFlight {
        let batch = NodeBatch {
            node: self.node,
            incarnation: self.incarnation,
            sequence,
            route_version: MetaIndex(content.route_version),
            recipient_sets: content.sets.sets,
            operations: content.operations,
        };
        InFlight {
            sequence,
            made_in: self.round,
            bundle: batch.encode(),
            requests: content.requests,
            sent_at: None,
            answered: false,
        }
    }

    fn send(&mut self, batch: &mut InFlight) -> Answer {
        // Before it is sent: a leader that changes between the two is asked in vain, not waited for.
        if self.led_by_another.is_none() {
            self.led_by_another = Some(self.propose.led_by_another());
        }
        let at = Instant::now();
        batch.sent_at = Some(at);
        let sent = Sent {
            round: self.round,
            sequence: batch.sequence,
            at,
        };
        let proposed = self.propose.propose(batch.bundle.clone());
        Box::pin(async move {
            // Long after it was sent again: copies of a batch that nobody answers do not pile up.
            let answer = tokio::time::timeout(ANSWER_KEPT, proposed).await;
            (sent, answer.unwrap_or(Err(ProposeError::Unknown)))
        })
    }

    /// Everything unanswered again, in order.
    fn resend(&mut self, push: &dyn Fn(Answer)) {
        self.round += 1;
        self.metrics.batches_resent(self.window.len());
        // Whoever leads now is who is watched.
        self.led_by_another = None;
        let mut window = std::mem::take(&mut self.window);
        for batch in window.iter_mut().filter(|batch| !batch.answered) {
            push(self.send(batch));
        }
        self.window = window;
    }

    fn answered(&mut self, sent: Sent, answer: Result<Proposed, ProposeError>) {
        let Sent { round, sequence, .. } = sent;
        let is_full = matches!(answer, Err(ProposeError::Busy));
        let reply = answer
            .ok()
            .and_then(|proposed| BatchReply::decode(&proposed.reply).ok());
        match reply {
            Some(BatchReply::Applied { upto, results }) => self.settle(sent, upto, &results),
            Some(BatchReply::StaleRoute { floor }) => self.match_again(round, sequence, floor),
            // The fence is apply's: meta tells the same soon, and ends this incarnation here too.
            Some(BatchReply::DeadIncarnation | BatchReply::Forgotten) => {
                tracing::warn!(
                    shard = self.shard.0,
                    sequence,
                    "the shard no longer takes batches of this incarnation"
                );
                self.retry_later(round, RETRY_WAIT);
            }
            // Whoever has no room for it gets it again when that may have changed.
            None if is_full => self.retry_later(round, FULL_WAIT),
            Some(BatchReply::Gap { .. }) | None => self.retry_later(round, RETRY_WAIT),
        }
    }

    fn settle(&mut self, sent: Sent, upto: Offset, results: &[(u32, OperationResult)]) {
        // A second answer tells nothing.
        let Some(at) = self.unanswered(sent.round, sent.sequence) else {
            return;
        };
        self.heard_at = Instant::now();
        self.patience.answered(sent.at.elapsed());
        let batch = &mut self.window[at];
        batch.answered = true;
        let mut outcomes = Vec::with_capacity(batch.requests.len());
        for (position, request) in std::mem::take(&mut batch.requests) {
            let result = results
                .iter()
                .find(|(at, _)| *at == position)
                .map(|(_, result)| *result);
            tell(request, Told::Applied(upto, result), &mut outcomes);
        }
        while self.window.front().is_some_and(|batch| batch.answered) {
            self.window.pop_front();
        }
        if self.window.is_empty() {
            self.retry_at = None;
        }
        self.local.completed(outcomes);
    }

    /// The batch that an answer of `round` is about. One of an earlier incarnation, or from before the batch was made
    /// again, is about another batch of that number.
    fn unanswered(&self, round: u64, sequence: u64) -> Option<usize> {
        self.window
            .iter()
            .position(|batch| batch.sequence == sequence && !batch.answered && batch.made_in <= round)
    }

    /// Retained messages of this batch were matched too long ago. Nothing of it was applied, and what follows it found a
    /// gap: both wait for the routes.
    fn match_again(&mut self, round: u64, sequence: u64, floor: MetaIndex) {
        if self.unanswered(round, sequence).is_some() {
            self.metrics.batches_resent(1);
            self.stale = Some(self.propose.routes_reach(floor));
        }
    }

    /// Brings retained publishes up to the routes of now. A batch keeps its messages, in their order: an old copy of it
    /// or of a later one that is still on its way must not mean anything else than what takes its number.
    fn rematch(&mut self) {
        self.round += 1;
        for at in 0..self.window.len() {
            if !self.window[at].answered && self.window[at].requests.iter().any(|(_, request)| is_retained(request)) {
                let requests = std::mem::take(&mut self.window[at].requests);
                let mut requests: Vec<ShardRequest> = requests.into_iter().map(|(_, request)| request).collect();
                self.match_to_one_version(&mut requests);
                let mut content = Content::default();
                requests.into_iter().for_each(|request| content.add(request));
                self.window[at] = self.batch(self.window[at].sequence, content);
            }
        }
        for request in &mut self.queue {
            if let ShardRequest::Publish(publish) = request {
                (publish.recipients, publish.route_version) = self.propose.rematch(&publish.message);
            }
        }
    }

    /// Matches the retained publishes of a batch, at one version, though routes may change meanwhile.
    fn match_to_one_version(&self, requests: &mut [ShardRequest]) {
        let mut versions = (0, u64::MAX);
        while versions.0 != versions.1 {
            versions = (u64::MAX, 0);
            for request in requests.iter_mut() {
                if let ShardRequest::Publish(publish) = request
                    && publish.retain
                {
                    (publish.recipients, publish.route_version) = self.propose.rematch(&publish.message);
                    versions = (
                        versions.0.min(publish.route_version),
                        versions.1.max(publish.route_version),
                    );
                }
            }
        }
    }

    fn retry_later(&mut self, round: u64, wait: Duration) {
        if round == self.round && self.retry_at.is_none() && !self.window.is_empty() {
            self.retry_at = Some(Instant::now() + wait);
        }
    }
}

/// What became of a request.
#[derive(Clone, Copy)]
enum Told {
    Applied(Offset, Option<OperationResult>),
    Unknown,
}

fn tell(request: ShardRequest, told: Told, outcomes: &mut Vec<(Ticket, Outcome)>) {
    match request {
        ShardRequest::Publish(publish) => {
            let outcome = match told {
                Told::Applied(_, Some(OperationResult::Refused)) => Outcome::Refused,
                Told::Applied(upto, _) => Outcome::Stored(upto),
                Told::Unknown => Outcome::Unknown,
            };
            match publish.reply {
                PublishReply::Ticket(ticket) => outcomes.push((ticket, outcome)),
                PublishReply::Task(sender) => {
                    let sender = sender.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
                    if let Some(sender) = sender {
                        let _ = sender.send(outcome);
                    }
                }
            }
        }
        ShardRequest::Delay { ticket, .. } => {
            let outcome = match told {
                Told::Applied(_, Some(OperationResult::Refused)) => Outcome::Refused,
                Told::Applied(_, Some(OperationResult::Full)) => Outcome::DelayedFull,
                Told::Applied(upto, _) => Outcome::Stored(upto),
                Told::Unknown => Outcome::Unknown,
            };
            outcomes.push((ticket, outcome));
        }
        ShardRequest::Settle { ticket, .. } | ShardRequest::Release { ticket, .. } => {
            let outcome = match told {
                Told::Applied(..) => Outcome::Done,
                Told::Unknown => Outcome::Unknown,
            };
            outcomes.push((ticket, outcome));
        }
        ShardRequest::ReleaseReceived { done, .. } => match told {
            Told::Applied(..) => drop(done),
            Told::Unknown => done.give_up(),
        },
        ShardRequest::Upkeep { reply, .. } => {
            if let Told::Applied(_, result) = told {
                let _ = reply.send(result);
            }
        }
        ShardRequest::Flush { applied } => {
            if let Told::Applied(..) = told {
                let _ = applied.send(());
            }
        }
        ShardRequest::Incarnation(_) => {}
    }
}

/// What a batch is made of.
#[derive(Default)]
struct Content {
    sets: RecipientSets,
    operations: Vec<ShardOperation>,
    /// With the position of its operation.
    requests: Vec<(u32, ShardRequest)>,
    /// One operation per session and kind: positions of Release, and of Ack for each way to leave.
    settled: HashMap<(SessionId, Option<Left>), usize>,
    bytes: usize,
    /// Of its retained messages; 0 without.
    route_version: u64,
}

impl Content {
    fn add(&mut self, request: ShardRequest) {
        let position = match &request {
            ShardRequest::Publish(publish) => {
                if publish.retain {
                    self.route_version = publish.route_version;
                }
                let (recipients, new_bytes) = self.sets.index_of(&publish.recipients);
                self.bytes += publish.message.len() + new_bytes;
                self.operations.push(ShardOperation::Append(Append {
                    message: publish.message.clone(),
                    recipients,
                    origin: publish.origin,
                }));
                self.operations.len() - 1
            }
            ShardRequest::Delay { delay, .. } => {
                self.bytes += delay.message.len();
                self.operations.push(ShardOperation::Delay(delay.clone()));
                self.operations.len() - 1
            }
            ShardRequest::Settle { session, offset, .. } | ShardRequest::Release { session, offset, .. } => {
                self.bytes += 5;
                let how = match &request {
                    ShardRequest::Settle { how, .. } => Some(*how),
                    _ => None,
                };
                let (session, offset) = (*session, *offset);
                let operations = &mut self.operations;
                let at = *self.settled.entry((session, how)).or_insert_with(|| {
                    let offsets = Vec::new();
                    operations.push(match how {
                        None => ShardOperation::Release { session, offsets },
                        Some(how) => ShardOperation::Ack { session, how, offsets },
                    });
                    operations.len() - 1
                });
                if let ShardOperation::Ack { offsets, .. } | ShardOperation::Release { offsets, .. } =
                    &mut self.operations[at]
                {
                    offsets.push(offset);
                }
                at
            }
            ShardRequest::ReleaseReceived {
                session,
                epoch,
                packet_id,
                ..
            } => {
                self.bytes += 12;
                self.operations.push(ShardOperation::ReleaseReceived {
                    session: *session,
                    epoch: *epoch,
                    packet_id: *packet_id,
                });
                self.operations.len() - 1
            }
            ShardRequest::Upkeep { operation, .. } => {
                self.bytes += 64;
                self.operations.push(operation.clone());
                self.operations.len() - 1
            }
            ShardRequest::Flush { .. } => return self.requests.push((NO_OPERATION, request)),
            ShardRequest::Incarnation(_) => return,
        };
        self.requests.push((position as u32, request));
    }
}

fn is_retained(request: &ShardRequest) -> bool {
    matches!(request, ShardRequest::Publish(publish) if publish.retain)
}

/// Whether somebody waits for it; the others ride along, or wait a little.
fn is_urgent(request: &ShardRequest) -> bool {
    match request {
        ShardRequest::Publish(_)
        | ShardRequest::Delay { .. }
        | ShardRequest::Release { .. }
        | ShardRequest::ReleaseReceived { .. }
        | ShardRequest::Upkeep { .. }
        | ShardRequest::Flush { .. } => true,
        ShardRequest::Settle { .. } | ShardRequest::Incarnation(_) => false,
    }
}

async fn wait_for(future: &mut Option<BoxFuture<'static, ()>>) {
    if let Some(future) = future {
        future.await;
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

/// The position of what has no operation in its batch: its answer is the batch's.
const NO_OPERATION: u32 = u32::MAX;
/// Batches in flight per shard; `shard::senders` keeps four times as many replies.
const WINDOW: usize = 4;
const BATCH_OPERATIONS: usize = 512;
/// DESIGN §4: a settlement waits this long for a publish to ride with.
const SETTLE_WAIT_MAX: Duration = Duration::from_millis(20);
/// An answer counts for so long after its batch was sent, though that was sent again meanwhile.
pub(crate) const ANSWER_KEPT: Duration = Duration::from_secs(2 * PATIENCE_MAX.as_secs());
/// Between two tries to find a leader that takes the window.
const RETRY_WAIT: Duration = Duration::from_millis(20);
/// While the leader's queue, or that of the link to it, is full.
const FULL_WAIT: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests;
