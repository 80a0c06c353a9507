//! Delayed messages: each shard's leader publishes those that are due.
//!
//! ```text
//!   publish to `$delayed/…` ─▶ Delay: a row of the topic's shard ─ due in its log time ─▶ matched here, now
//!                                     ▲                                   └▶ Append { Origin::Delayed } ─▶ the row is gone
//!                                     └───────── unknown, not due: it is found again, by whoever leads the shard then ────┘
//! ```
//!
//! Every node runs this; the leader of a shard acts, while it may serve (`lease-before-match`). One that was replaced in
//! between leaves at most an append that finds no row any more (`release-once`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lontra_storage::command::ShardOperation;
use lontra_storage::ids::ShardId;
use lontra_storage::message::LogTime;
use lontra_storage::shard::{Delayed, DelayedSize, read_delayed, read_head};
use tokio::task::JoinSet;

use crate::Inner;
use crate::group::Group;
use crate::local::Outcome;
use crate::publisher::{Publish, PublishReply, ShardRequest};

/// Runs for the life of the node.
pub(crate) async fn run(inner: Arc<Inner>) {
    // By shard, up to where all that was ever delayed has left.
    let mut idle: BTreeMap<ShardId, LogTime> = inner.groups.keys().map(|shard| (*shard, LogTime(0))).collect();
    let mut busy = JoinSet::new();
    let mut is_whole = true;
    loop {
        tokio::time::sleep(TICK).await;
        while let Some(done) = busy.try_join_next() {
            is_whole &= done.is_ok();
            idle.extend(done);
        }
        if !is_whole && busy.is_empty() {
            // A task that panicked took its shard with it.
            is_whole = true;
            for shard in inner.groups.keys() {
                idle.entry(*shard).or_insert(LogTime(0));
            }
        }
        for (shard, group) in &inner.groups {
            let waiting = inner.views[usize::from(shard.0)].delayed().count;
            if waiting > 0
                && inner.leads(*shard)
                && let Some(from) = idle.remove(shard)
            {
                busy.spawn(serve(inner.clone(), *shard, group.clone(), from));
            }
        }
    }
}

/// Publishes what is due in a shard.
async fn serve(inner: Arc<Inner>, shard: ShardId, group: Group, mut from: LogTime) -> (ShardId, LogTime) {
    // What becomes due waits for room: the reserve is for what frees it.
    while inner.leads(shard) && !inner.lease.is_disk_low(shard) {
        match find_due(&group, &mut from) {
            Ok(Found::Due(due)) => publish(&inner, shard, due).await,
            Ok(Found::Idle) => {
                inner.do_upkeep(shard, vec![ShardOperation::Tick]).await;
                break;
            }
            Ok(Found::Nothing) => break,
            Err(error) => {
                tracing::error!(shard = shard.0, %error, "delayed messages cannot be read");
                tokio::time::sleep(ERROR_WAIT).await;
                break;
            }
        }
    }
    (shard, from)
}

enum Found {
    Due(Vec<Delayed>),
    /// Nothing is due, and no entry came for long.
    Idle,
    Nothing,
}

/// The next page of what is due. All rows before `from` are gone, and no later one comes there: whatever is delayed
/// from now on is due at the log time of its entry or later.
fn find_due(group: &Group, from: &mut LogTime) -> std::io::Result<Found> {
    let (_, log_time) = read_head(&group.tables)?;
    let now = group.clock.now();
    let due = read_delayed(&group.tables, (*from, now), PAGE_MESSAGES, PAGE_BYTES)?;
    // The tables' log time may be ahead of the clock, which learns of an entry a moment later: what is due in between was not
    // looked for.
    *from = due.first().map_or(log_time.min(now), |first| first.due.min(log_time));
    Ok(match due.is_empty() {
        false => Found::Due(due),
        true if log_time.plus_seconds(IDLE_SECONDS) <= now => Found::Idle,
        true => Found::Nothing,
    })
}

async fn publish(inner: &Arc<Inner>, shard: ShardId, due: Vec<Delayed>) {
    let mut told = Vec::with_capacity(due.len());
    for delayed in due {
        let (recipients, route_version) = inner.match_message(&delayed.message);
        if !inner.lease.is_valid() {
            // It was matched with what may be out of date.
            break;
        }
        let (reply, outcome) = PublishReply::task();
        inner.send(
            shard,
            ShardRequest::Publish(Publish {
                message: delayed.message.encode(),
                recipients,
                route_version,
                retain: delayed.message.retain,
                origin: delayed.origin(),
                reply,
            }),
        );
        told.push((delayed, outcome));
    }
    for (delayed, outcome) in told {
        // Refused: another leader's was first. No answer: the incarnation ended, and what stands still is found again.
        if let Ok(Outcome::Stored(_)) = outcome.await {
            inner.metrics.delayed_released();
            inner.give_to_groups(&delayed.message);
        }
    }
}

impl Inner {
    /// What waits in the shards that this node leads.
    pub(crate) fn delayed_size(&self) -> DelayedSize {
        let mut size = DelayedSize::default();
        for (shard, _) in self.groups.iter().filter(|(_, group)| group.is_leader()) {
            let waiting = self.views[usize::from(shard.0)].delayed();
            size.count += waiting.count;
            size.bytes += waiting.bytes;
        }
        size
    }
}

/// How late a release may be on an idle machine.
const TICK: Duration = Duration::from_millis(100);
/// Appends that are under way for one shard: as many as fill the window of its sender.
const PAGE_MESSAGES: usize = 512;
const PAGE_BYTES: usize = 1024 * 1024;
/// Log time of a shard without entries is known to those that run. All killed at once, it goes back by as much at most.
const IDLE_SECONDS: u32 = 10;
const ERROR_WAIT: Duration = Duration::from_secs(10);
