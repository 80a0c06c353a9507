//! The sender against a shard that loses, refuses and repeats: outcomes once, batches in sequence.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use lontra_storage::ids::SessionEpoch;
use lontra_storage::message::Message;
use lontra_storage::shard::Applied;

use super::*;
use crate::local::{Audience, Credit, Guard, Offer};

#[derive(Default)]
struct Outcomes {
    told: Mutex<Vec<(u64, Outcome)>>,
    changed: tokio::sync::Notify,
}

impl Local for Outcomes {
    fn applied(&self, _: Arc<Applied>) {}
    fn jumped(&self, _: ShardId, _: Offset) {}
    fn ephemeral(&self, _: Arc<Message>, _: Audience, _: Guard) {}
    fn offer(&self, _: &Offer) -> Vec<Credit> {
        Vec::new()
    }
    fn offer_over(&self, _: ShardId, _: SessionId, _: &[(SessionId, u32)]) {}
    fn completed(&self, outcomes: Vec<(Ticket, Outcome)>) {
        self.told
            .lock()
            .unwrap()
            .extend(outcomes.iter().map(|(ticket, outcome)| (ticket.token, *outcome)));
        self.changed.notify_waiters();
    }
    fn displaced(&self, _: SessionId, _: SessionEpoch) {}
    fn serving_changed(&self) {}
}

impl Outcomes {
    async fn wait_for(&self, count: usize) -> Vec<(u64, Outcome)> {
        loop {
            let changed = self.changed.notified();
            let told = self.told.lock().unwrap().clone();
            if told.len() >= count {
                return told;
            }
            tokio::time::timeout(Duration::from_secs(60), changed)
                .await
                .expect("outcomes arrive");
        }
    }
}

/// A shard that fails by turns, and applies only what is next. Its floor rises now and then.
#[derive(Default)]
struct Shard {
    calls: AtomicU64,
    floor: AtomicU64,
    stale: AtomicU64,
    applied: Mutex<(u64, Vec<Bytes>)>,
}

impl Shard {
    fn apply(&self, bundle: &Bytes) -> BatchReply {
        let batch = NodeBatch::decode(bundle).unwrap();
        let mut applied = self.applied.lock().unwrap();
        if batch.sequence > applied.0 + 1 {
            return BatchReply::Gap {
                expected: applied.0 + 1,
            };
        }
        let floor = MetaIndex(self.floor.load(Ordering::Relaxed));
        if batch.sequence == applied.0 + 1 && batch.route_version < floor {
            self.stale.fetch_add(1, Ordering::Relaxed);
            return BatchReply::StaleRoute { floor };
        }
        if batch.sequence == applied.0 + 1 {
            applied.0 += 1;
            applied
                .1
                .extend(batch.operations.iter().filter_map(|operation| match operation {
                    ShardOperation::Append(append) => Some(append.message.clone()),
                    _ => None,
                }));
        }
        BatchReply::Applied {
            upto: Offset(1),
            results: vec![],
        }
    }
}

struct Flaky(Arc<Shard>);

impl Propose for Flaky {
    fn propose(&self, bundle: Bytes) -> BoxFuture<'static, Result<Proposed, ProposeError>> {
        let shard = self.0.clone();
        let call = shard.calls.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            if call % 20 == 4 {
                shard.floor.fetch_add(2, Ordering::Relaxed);
            }
            match call % 7 {
                1 => Err(ProposeError::NotLeader { leader: None }),
                // Applied, but the answer is lost.
                3 => {
                    shard.apply(&bundle);
                    Err(ProposeError::Unknown)
                }
                // Neither applied nor answered.
                5 => std::future::pending().await,
                _ => Ok(Proposed {
                    index: 1,
                    reply: shard.apply(&bundle).encode(),
                }),
            }
        })
    }

    fn led_by_another(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }

    fn routes_reach(&self, _: MetaIndex) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(Duration::from_millis(3)))
    }

    fn rematch(&self, _: &Bytes) -> (Arc<[Recipient]>, u64) {
        (Arc::from([]), self.0.floor.load(Ordering::Relaxed))
    }
}

fn ticket(token: u64) -> Ticket {
    Ticket {
        worker: 0,
        connection: 0,
        token,
    }
}

#[tokio::test(start_paused = true)]
async fn retries_neither_lose_nor_repeat_nor_reorder() {
    let (local, shard) = (Arc::new(Outcomes::default()), Arc::new(Shard::default()));
    let metrics = ClusterMetrics::new(&prometheus::Registry::new());
    let propose = Arc::new(Flaky(shard.clone()));
    let sender = ShardSender::start(
        1,
        ShardId(0),
        propose,
        local.clone(),
        metrics,
        Duration::from_millis(500),
    );
    sender.send(ShardRequest::Incarnation(Incarnation(5)));
    let set: Arc<[Recipient]> = Arc::from(vec![]);
    for token in 0..2_000u64 {
        let message = Bytes::copy_from_slice(&token.to_be_bytes());
        sender.send(ShardRequest::Publish(Publish {
            message,
            recipients: set.clone(),
            route_version: 1,
            retain: true,
            origin: Origin::Plain,
            reply: PublishReply::Ticket(ticket(token)),
        }));
        if token % 10 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let told = local.wait_for(2_000).await;
    assert_eq!(told.len(), 2_000, "each outcome once");
    assert!(told.iter().all(|(_, outcome)| matches!(outcome, Outcome::Stored(_))));
    let applied = shard.applied.lock().unwrap();
    let tokens: Vec<u64> = applied
        .1
        .iter()
        .map(|bytes| u64::from_be_bytes(bytes[..].try_into().unwrap()))
        .collect();
    assert_eq!(tokens, (0..2_000).collect::<Vec<u64>>());
    assert!(
        shard.calls.load(Ordering::Relaxed) > applied.0,
        "something was sent again"
    );
    assert!(shard.stale.load(Ordering::Relaxed) > 0, "something was matched again");
}

#[tokio::test(start_paused = true)]
async fn a_new_incarnation_ends_what_is_unanswered_as_unknown() {
    struct Silent;
    impl Propose for Silent {
        fn propose(&self, _: Bytes) -> BoxFuture<'static, Result<Proposed, ProposeError>> {
            Box::pin(std::future::pending())
        }

        fn led_by_another(&self) -> BoxFuture<'static, ()> {
            Box::pin(std::future::pending())
        }

        fn routes_reach(&self, _: MetaIndex) -> BoxFuture<'static, ()> {
            Box::pin(std::future::ready(()))
        }

        fn rematch(&self, _: &Bytes) -> (Arc<[Recipient]>, u64) {
            (Arc::from([]), 0)
        }
    }
    let local = Arc::new(Outcomes::default());
    let metrics = ClusterMetrics::new(&prometheus::Registry::new());
    let sender = ShardSender::start(
        1,
        ShardId(0),
        Arc::new(Silent),
        local.clone(),
        metrics,
        Duration::from_millis(500),
    );
    sender.send(ShardRequest::Incarnation(Incarnation(5)));
    sender.send(ShardRequest::Settle {
        session: SessionId(1),
        offset: Offset(1),
        how: Left::Delivered,
        ticket: ticket(7),
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    sender.send(ShardRequest::Incarnation(Incarnation(6)));
    assert_eq!(local.wait_for(1).await, [(7, Outcome::Unknown)]);
}

/// A shard whose answers the test gives, when it likes.
#[derive(Default)]
struct ByHand {
    sent: Mutex<Vec<(NodeBatch, oneshot::Sender<BatchReply>)>>,
    changed: tokio::sync::Notify,
    another_leads: Arc<tokio::sync::Notify>,
    version: AtomicU64,
}

struct ToHand(Arc<ByHand>);

impl Propose for ToHand {
    fn propose(&self, bundle: Bytes) -> BoxFuture<'static, Result<Proposed, ProposeError>> {
        let (answer, answered) = oneshot::channel();
        let batch = NodeBatch::decode(&bundle).unwrap();
        self.0.sent.lock().unwrap().push((batch, answer));
        self.0.changed.notify_one();
        Box::pin(async move {
            let reply = answered.await.map_err(|_| ProposeError::Unknown)?;
            Ok(Proposed {
                index: 1,
                reply: reply.encode(),
            })
        })
    }

    fn led_by_another(&self) -> BoxFuture<'static, ()> {
        Box::pin(self.0.another_leads.clone().notified_owned())
    }

    fn routes_reach(&self, floor: MetaIndex) -> BoxFuture<'static, ()> {
        self.0.version.store(floor.0, Ordering::Relaxed);
        Box::pin(std::future::ready(()))
    }

    fn rematch(&self, _: &Bytes) -> (Arc<[Recipient]>, u64) {
        (Arc::from([]), self.0.version.load(Ordering::Relaxed))
    }
}

impl ByHand {
    async fn next(&self) -> (NodeBatch, oneshot::Sender<BatchReply>) {
        loop {
            if let Some(sent) = self.sent.lock().unwrap().pop() {
                return sent;
            }
            self.changed.notified().await;
        }
    }
}

/// A sender whose batches the test answers.
fn by_hand() -> (Arc<Outcomes>, Arc<ByHand>, ShardSender) {
    let (local, hand) = (Arc::new(Outcomes::default()), Arc::new(ByHand::default()));
    let metrics = ClusterMetrics::new(&prometheus::Registry::new());
    let propose = Arc::new(ToHand(hand.clone()));
    let answer_max = Duration::from_millis(500);
    let sender = ShardSender::start(1, ShardId(0), propose, local.clone(), metrics, answer_max);
    (local, hand, sender)
}

fn settle(token: u64) -> ShardRequest {
    ShardRequest::Settle {
        session: SessionId(1),
        offset: Offset(token),
        how: Left::Delivered,
        ticket: ticket(token),
    }
}

/// Both copies of a batch are refused; when the second refusal comes, the batch that was matched again is on its way, and
/// may be applied: it must not be made anew with what was published since.
#[tokio::test(start_paused = true)]
async fn a_late_refusal_is_not_about_the_batch_that_was_matched_again() {
    let (local, hand, sender) = by_hand();
    sender.send(ShardRequest::Incarnation(Incarnation(5)));
    let publish = |token: u64| {
        ShardRequest::Publish(Publish {
            message: Bytes::copy_from_slice(&token.to_be_bytes()),
            recipients: Arc::from(vec![]),
            route_version: 1,
            retain: true,
            origin: Origin::Plain,
            reply: PublishReply::Ticket(ticket(token)),
        })
    };
    sender.send(publish(1));
    let (_, failing) = hand.next().await;
    sender.send(publish(2));
    let (_, late) = hand.next().await;
    drop(failing);
    let mut copies = [hand.next().await, hand.next().await];
    copies.sort_by_key(|(batch, _)| batch.sequence);
    let [(_, one), (_, two)] = copies;
    let applied = || BatchReply::Applied {
        upto: Offset(3),
        results: vec![],
    };
    one.send(applied()).unwrap();
    local.wait_for(1).await;

    let floor = MetaIndex(7);
    two.send(BatchReply::StaleRoute { floor }).unwrap();
    let (again, two) = hand.next().await;
    assert_eq!((again.sequence, again.route_version), (2, floor));
    sender.send(publish(3));
    let (third, three) = hand.next().await;
    assert_eq!((third.sequence, third.operations.len()), (3, 1));
    late.send(BatchReply::StaleRoute { floor }).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(hand.sent.lock().unwrap().is_empty(), "nothing is made anew");
    two.send(applied()).unwrap();
    three.send(applied()).unwrap();
    let stored = |token| (token, Outcome::Stored(Offset(3)));
    assert_eq!(local.wait_for(3).await, [stored(1), stored(2), stored(3)]);
}

#[tokio::test(start_paused = true)]
async fn a_flush_is_told_once_what_was_before_it_is_applied_and_hurries_it() {
    let (_, hand, sender) = by_hand();
    let flush = || {
        let (applied, told) = oneshot::channel();
        sender.send(ShardRequest::Flush { applied });
        told
    };
    sender.send(ShardRequest::Incarnation(Incarnation(5)));
    flush().await.expect("nothing to wait for");

    let began = Instant::now();
    sender.send(settle(1));
    let mut told = flush();
    let (batch, answer) = hand.next().await;
    assert_eq!((batch.operations.len(), began.elapsed()), (1, Duration::ZERO));
    assert!(told.try_recv().is_err(), "it is on its way");
    let applied = BatchReply::Applied {
        upto: Offset(1),
        results: vec![],
    };
    answer.send(applied).unwrap();
    told.await.expect("applied");

    sender.send(settle(2));
    let (_, answer) = hand.next().await;
    let mut told = flush();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(hand.sent.lock().unwrap().is_empty(), "a flush by itself is no batch");
    assert!(told.try_recv().is_err(), "that batch is on its way");
    let applied = BatchReply::Applied {
        upto: Offset(1),
        results: vec![],
    };
    answer.send(applied).unwrap();
    told.await.expect("applied");

    sender.send(settle(3));
    let told = flush();
    let (_, _unanswered) = hand.next().await;
    sender.send(ShardRequest::Incarnation(Incarnation(6)));
    assert!(told.await.is_err(), "that incarnation ended");
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_an_earlier_incarnation_is_not_about_this_one() {
    let (local, hand, sender) = by_hand();
    sender.send(ShardRequest::Incarnation(Incarnation(5)));
    sender.send(settle(1));
    let (_, of_the_first) = hand.next().await;
    sender.send(ShardRequest::Incarnation(Incarnation(6)));
    sender.send(settle(2));
    let (batch, of_the_second) = hand.next().await;
    assert_eq!((batch.incarnation, batch.sequence), (Incarnation(6), 1));
    let refused = [(0, OperationResult::Refused)].to_vec();
    let reply = |results| BatchReply::Applied {
        upto: Offset(1),
        results,
    };
    of_the_first.send(reply(refused)).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(local.told.lock().unwrap().len(), 1, "only that the first is unknown");
    of_the_second.send(reply(Vec::new())).unwrap();
    assert_eq!(local.wait_for(2).await, [(1, Outcome::Unknown), (2, Outcome::Done)]);
}

fn publish(token: u64) -> ShardRequest {
    ShardRequest::Publish(Publish {
        message: Bytes::copy_from_slice(&token.to_be_bytes()),
        recipients: Arc::from(vec![]),
        route_version: 1,
        retain: false,
        origin: Origin::Plain,
        reply: PublishReply::Ticket(ticket(token)),
    })
}

fn applied(results: Vec<(u32, OperationResult)>) -> BatchReply {
    BatchReply::Applied {
        upto: Offset(3),
        results,
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_slow_is_waited_for_longer_each_time_and_the_first_answer_counts_however_late() {
    let (local, hand, sender) = by_hand();
    sender.send(ShardRequest::Incarnation(Incarnation(5)));
    sender.send(publish(1));
    let (mut copies, mut last, mut waits) = (Vec::new(), Instant::now(), Vec::new());
    for _ in 0..6 {
        copies.push(hand.next().await);
        waits.push(last.elapsed().as_millis() / 100);
        last = Instant::now();
    }
    assert_eq!(waits, [0, 5, 10, 20, 40, 80], "tenths of a second");
    assert!(copies.iter().all(|(batch, _)| batch.sequence == 1));
    let mut answers = copies.into_iter().map(|(_, answer)| answer);
    answers.next().unwrap().send(applied(Vec::new())).unwrap();
    assert_eq!(local.wait_for(1).await, [(1, Outcome::Stored(Offset(3)))]);
    for answer in answers {
        answer.send(applied(vec![(0, OperationResult::Refused)])).unwrap();
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(local.told.lock().unwrap().len(), 1, "told once");
    assert!(hand.sent.lock().unwrap().is_empty(), "nothing is sent any more");
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_is_sent_at_once_what_its_predecessor_left_unanswered() {
    let (local, hand, sender) = by_hand();
    sender.send(ShardRequest::Incarnation(Incarnation(5)));
    sender.send(publish(1));
    let mut unanswered = Vec::new();
    for _ in 0..5 {
        unanswered.push(hand.next().await);
    }
    // By now it would be waited for for 8 s.
    sender.send(publish(2));
    unanswered.push(hand.next().await);
    let began = Instant::now();
    hand.another_leads.notify_waiters();
    sender.send(publish(3));
    let mut answered = std::collections::BTreeSet::new();
    while answered.len() < 3 {
        let (batch, answer) = hand.next().await;
        answered.insert(batch.sequence);
        answer.send(applied(Vec::new())).unwrap();
    }
    assert_eq!(local.wait_for(3).await.len(), 3);
    assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_tried_again_at_once_whatever_is_published_meanwhile() {
    let (local, hand, sender) = by_hand();
    sender.send(ShardRequest::Incarnation(Incarnation(5)));
    sender.send(publish(1));
    let mut unanswered = Vec::new();
    for _ in 0..4 {
        unanswered.push(hand.next().await);
    }
    let (_, refused) = hand.next().await;
    let began = Instant::now();
    // Its link broke, say. The next publishes must not push the next try away.
    drop(refused);
    for token in 2..5 {
        sender.send(publish(token));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut answered = std::collections::BTreeSet::new();
    while answered.len() < 4 {
        let (batch, answer) = hand.next().await;
        answered.insert(batch.sequence);
        answer.send(applied(Vec::new())).unwrap();
    }
    assert_eq!(local.wait_for(4).await.len(), 4);
    assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
}

/// A shard on a disk that takes three seconds for everything.
struct Slow(Arc<Shard>);

impl Propose for Slow {
    fn propose(&self, bundle: Bytes) -> BoxFuture<'static, Result<Proposed, ProposeError>> {
        let shard = self.0.clone();
        shard.calls.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            tokio::time::sleep(Duration::from_secs(3)).await;
            Ok(Proposed {
                index: 1,
                reply: shard.apply(&bundle).encode(),
            })
        })
    }

    fn led_by_another(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }

    fn routes_reach(&self, _: MetaIndex) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }

    fn rematch(&self, _: &Bytes) -> (Arc<[Recipient]>, u64) {
        (Arc::from([]), 0)
    }
}

#[tokio::test(start_paused = true)]
async fn a_shard_slower_than_an_election_is_learnt_not_flooded() {
    let (local, shard) = (Arc::new(Outcomes::default()), Arc::new(Shard::default()));
    let metrics = ClusterMetrics::new(&prometheus::Registry::new());
    let propose = Arc::new(Slow(shard.clone()));
    let answer_max = Duration::from_millis(500);
    let sender = ShardSender::start(1, ShardId(0), propose, local.clone(), metrics, answer_max);
    sender.send(ShardRequest::Incarnation(Incarnation(5)));
    for token in 1..=20 {
        sender.send(publish(token));
        let told = local.wait_for(token as usize).await;
        assert_eq!(told.last(), Some(&(token, Outcome::Stored(Offset(1)))));
    }
    // The first is sent at 0, 0.5 and 1.5 s; the others are waited for.
    assert_eq!(shard.calls.load(Ordering::Relaxed), 3 + 19);
}

#[tokio::test(start_paused = true)]
async fn who_has_no_room_is_not_asked_all_the_time() {
    /// Has room after a second.
    struct Full(Arc<Shard>, Instant);
    impl Propose for Full {
        fn propose(&self, bundle: Bytes) -> BoxFuture<'static, Result<Proposed, ProposeError>> {
            self.0.calls.fetch_add(1, Ordering::Relaxed);
            let answer = match self.1.elapsed() < Duration::from_secs(1) {
                true => Err(ProposeError::Busy),
                false => Ok(Proposed {
                    index: 1,
                    reply: self.0.apply(&bundle).encode(),
                }),
            };
            Box::pin(std::future::ready(answer))
        }

        fn led_by_another(&self) -> BoxFuture<'static, ()> {
            Box::pin(std::future::pending())
        }

        fn routes_reach(&self, _: MetaIndex) -> BoxFuture<'static, ()> {
            Box::pin(std::future::ready(()))
        }

        fn rematch(&self, _: &Bytes) -> (Arc<[Recipient]>, u64) {
            (Arc::from([]), 0)
        }
    }
    let (local, shard) = (Arc::new(Outcomes::default()), Arc::new(Shard::default()));
    let metrics = ClusterMetrics::new(&prometheus::Registry::new());
    let propose = Arc::new(Full(shard.clone(), Instant::now()));
    let answer_max = Duration::from_millis(500);
    let sender = ShardSender::start(1, ShardId(0), propose, local.clone(), metrics, answer_max);
    sender.send(ShardRequest::Incarnation(Incarnation(5)));
    sender.send(publish(1));
    assert_eq!(local.wait_for(1).await, [(1, Outcome::Stored(Offset(1)))]);
    let calls = shard.calls.load(Ordering::Relaxed);
    assert!((5..=7).contains(&calls), "{calls} calls");
}
