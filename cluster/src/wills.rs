//! Wills: committed as due in meta, appended in their topic's shard under a repeat key, then recorded as published.
//!
//! ```text
//!   scheduled ─DueWills─▶ due ─▶ Append { Origin::Will } ─stored─▶ WillPublished ─▶ (sweep) the shard forgets the key
//!                         │▲         │ refused, unknown                 ▲
//!                         │└─────────┘ again, by whoever leads meta then│
//!                         └─ its author may not publish it any more ────┘
//! ```
//!
//! Every node runs this; the meta leader acts. A leader that was replaced in between leaves at most an append that is
//! recognised by its key, or comes after its time and is refused. (P7) Whether the author may is asked when the will is due:
//! what meta has applied then, no node acknowledged a revocation of it before.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use lontra_storage::command::{MetaOp, Origin};
use lontra_storage::ids::{SessionEpoch, SessionId};
use lontra_storage::message::Message;
use lontra_storage::test_bugs::{Bug, has};

use crate::Inner;
use crate::control::{ASK_MAX, RETRY_WAIT};
use crate::local::Outcome;
use crate::publisher::{Publish, PublishReply, ShardRequest};

type WillKey = (SessionId, SessionEpoch);

/// What is to be published.
struct Due {
    key: WillKey,
    message: Message,
    author: Bytes,
}

/// Runs for the life of the node.
pub(crate) async fn run(inner: Arc<Inner>) {
    let under_way = Arc::new(Mutex::new(HashSet::<WillKey>::new()));
    loop {
        let _ = tokio::time::timeout(TICK, inner.wills.notified()).await;
        if !inner.meta.is_leader() || !inner.lease.is_valid() {
            continue;
        }
        let next = inner.meta_view.read().next_will();
        if next.is_some_and(|at| at <= inner.meta.clock.now()) {
            let due = [MetaOp::DueWills { limit: DUE_LIMIT }];
            let _ = inner.change_meta("wills", &due, ASK_MAX).await;
        }
        for (key, due) in due_wills(&inner, &under_way) {
            let (inner, under_way) = (inner.clone(), under_way.clone());
            tokio::spawn(async move {
                if let Some(due) = due {
                    settle(&inner, due).await;
                }
                under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            });
        }
    }
}

/// Due wills that this node is not publishing already; they are, from here on.
fn due_wills(inner: &Inner, under_way: &Mutex<HashSet<WillKey>>) -> Vec<(WillKey, Option<Due>)> {
    let meta = inner.meta_view.read();
    let mut under_way = under_way.lock().unwrap_or_else(PoisonError::into_inner);
    let mut due = Vec::new();
    for (session, epoch, will) in meta.due_wills() {
        if under_way.len() >= UNDER_WAY_MAX {
            break;
        }
        if under_way.insert((session, epoch)) {
            let message = Message::decode(&will.message);
            if let Err(error) = &message {
                tracing::error!(session = session.0, %error, "a will does not decode and is not published");
            }
            let of_will = message.ok().map(|message| Due {
                key: (session, epoch),
                message: Message {
                    publisher: session,
                    ..message
                },
                author: will.author.clone(),
            });
            due.push(((session, epoch), of_will));
        }
    }
    due
}

/// Publishes it, or drops what its author may not publish any more.
async fn settle(inner: &Arc<Inner>, due: Due) {
    let Due { key, message, author } = due;
    // Not known yet: the next round asks again.
    let Some(may) = inner.local.may_publish_will(&author, &message.topic) else {
        return tokio::time::sleep(RETRY_WAIT).await;
    };
    if may {
        return publish(inner, key, message).await;
    }
    let (session, epoch) = key;
    tracing::info!(
        session = session.0,
        "a will is dropped: its author may not publish it any more"
    );
    let dropped = [MetaOp::WillPublished { session, epoch }];
    let _ = inner.change_meta("will dropped", &dropped, ASK_MAX * 2).await;
}

/// Until it is recorded as published, or this node may no longer act.
async fn publish(inner: &Arc<Inner>, (session, epoch): WillKey, message: Message) {
    let shard = inner.shards.shard_of(&message.topic);
    let encoded = message.encode();
    let mut once_more = has(Bug::DoubleWillOnFailover) && inner.meta_view.read().nodes().any(|(_, node)| !node.up);
    while inner.lease.is_valid() && inner.meta.is_leader() && is_due(inner, (session, epoch)) {
        let (recipients, route_version) = inner.match_message(&message);
        let (reply, outcome) = PublishReply::task();
        let not_after = inner.views[usize::from(shard.0)]
            .clock
            .now()
            .plus_seconds(APPEND_SECONDS);
        inner.send(
            shard,
            ShardRequest::Publish(Publish {
                message: encoded.clone(),
                recipients,
                route_version,
                retain: message.retain,
                origin: Origin::Will {
                    session,
                    epoch,
                    not_after,
                },
                reply,
            }),
        );
        // Otherwise it was too late by the shard's log time, or the incarnation ended: again, while it is still due.
        if let Ok(Outcome::Stored(_)) = outcome.await {
            if std::mem::take(&mut once_more) {
                continue;
            }
            let published = [MetaOp::WillPublished { session, epoch }];
            if inner
                .change_meta("will published", &published, ASK_MAX * 2)
                .await
                .is_ok()
            {
                inner.metrics.will_published();
                inner.give_to_groups(&message);
                return;
            }
        }
        tokio::time::sleep(RETRY_WAIT).await;
    }
}

fn is_due(inner: &Inner, (session, epoch): WillKey) -> bool {
    let meta = inner.meta_view.read();
    meta.scheduled_will(session, epoch).is_some_and(|will| will.due)
}

const TICK: Duration = Duration::from_millis(100);
/// Wills that become due by one entry.
const DUE_LIMIT: u32 = 1000;
/// `bounded`: the rest waits in meta.
const UNDER_WAY_MAX: usize = 1000;
/// An append that is not applied by then, in the shard's log time, is refused.
const APPEND_SECONDS: u32 = 10;
/// The shard remembers a will for longer than an append of it can be under way.
pub(crate) const REMEMBERED: Duration = Duration::from_secs(30);
