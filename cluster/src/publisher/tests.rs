//! The sender against a shard that loses, refuses and repeats: outcomes once, batches in sequence.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use lontra_storage::ids::SessionEpoch;
use lontra_storage::message::Message;
use lontra_storage::shard::Applied;

use super::*;
use crate::local::Guard;

#[derive(Default)]
struct Outcomes {
    told: Mutex<Vec<(u64, Outcome)>>,
    changed: tokio::sync::Notify,
}

impl Local for Outcomes {
    fn applied(&self, _: Arc<Applied>) {}
    fn jumped(&self, _: ShardId, _: Offset) {}
    fn ephemeral(&self, _: Arc<Message>, _: Guard) {}
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

/// A shard that fails by turns, and applies only what is next.
#[derive(Default)]
struct Shard {
    calls: AtomicU64,
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
        if batch.sequence == applied.0 + 1 {
            applied.0 += 1;
            applied
                .1
                .extend(batch.operations.iter().filter_map(|operation| match operation {
                    ShardOperation::Append { message, .. } => Some(message.clone()),
                    ShardOperation::Ack { .. } | ShardOperation::Sweep { .. } => None,
                }));
        }
        BatchReply::Applied {
            first: Offset(1),
            count: 0,
        }
    }
}

struct Flaky(Arc<Shard>);

impl Propose for Flaky {
    fn propose(&self, bundle: Bytes) -> BoxFuture<'static, Result<Proposed, ProposeError>> {
        let shard = self.0.clone();
        let call = shard.calls.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
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
        let request = ShardRequest::Publish {
            message,
            recipients: set.clone(),
            route_version: 1,
            ticket: ticket(token),
        };
        sender.send(request);
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
}

#[tokio::test(start_paused = true)]
async fn a_new_incarnation_ends_what_is_unanswered_as_unknown() {
    struct Silent;
    impl Propose for Silent {
        fn propose(&self, _: Bytes) -> BoxFuture<'static, Result<Proposed, ProposeError>> {
            Box::pin(std::future::pending())
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
        ticket: ticket(7),
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    sender.send(ShardRequest::Incarnation(Incarnation(6)));
    assert_eq!(local.wait_for(1).await, [(7, Outcome::Unknown)]);
}
