//! From apply to the connected sessions of this node, and to the nodes that follow a shard.
//!
//! ```text
//!   shard apply ─▶ ShardDelivery ─▶ Local (workers of this node)
//!                       └─▶ followers: what the peer's connected sessions match, one ordered stream each
//!   meta apply  ─▶ MetaDelivery  ─▶ Local::displaced, at once: "applied" means that the displaced connection stopped
//! ```
//!
//! Both run on the group's apply task and never block.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use lontra_storage::ids::{MetaIndex, NodeId, Offset, SessionEpoch, SessionId, ShardId};
use lontra_storage::message::Role;
use lontra_storage::meta::{AccessChange, MetaEvent, MetaSink, MetaView};
use lontra_storage::shard::{Appended, Applied, DelayedSize, Ledger, RetainedSize, ShardSink};
use lontra_storage::test_bugs::{Bug, has};
use tokio::sync::{Notify, mpsc};

use crate::access::InEffect;
use crate::clock::LogClock;
use crate::follow::{Backlog, encode_applied, encode_jumped};
use crate::late_connects::ConnectsUnderWay;
use crate::lease::Lease;
use crate::link::FrameSink;
use crate::local::{Guard, Local};
use crate::progress::Progress;
use crate::shared::WaitingGroups;
use crate::sweep::Ended;

/// How far this node's view of a shard has come, held or followed.
#[derive(Debug, Default)]
pub struct ShardView {
    pub offset: Progress,
    pub clock: Arc<LogClock>,
    /// How much the shard retains: messages, bytes.
    retained_count: AtomicU64,
    retained_bytes: AtomicU64,
    /// How much waits in it for its time; of a shard that this node holds.
    delayed_count: AtomicU64,
    delayed_bytes: AtomicU64,
    /// Of a shard that this node holds. Never held over an await.
    ledger: Mutex<Ledger>,
}

impl ShardView {
    pub fn note_retained(&self, size: RetainedSize) {
        self.retained_count.store(size.count, Ordering::Relaxed);
        self.retained_bytes.store(size.bytes, Ordering::Relaxed);
    }

    pub fn note_delayed(&self, size: DelayedSize) {
        self.delayed_count.store(size.count, Ordering::Relaxed);
        self.delayed_bytes.store(size.bytes, Ordering::Relaxed);
    }

    pub fn delayed(&self) -> DelayedSize {
        DelayedSize {
            count: self.delayed_count.load(Ordering::Relaxed),
            bytes: self.delayed_bytes.load(Ordering::Relaxed),
        }
    }

    pub fn note_ledger(&self, ledger: Ledger) {
        *self.ledger.lock().unwrap_or_else(PoisonError::into_inner) = ledger;
    }

    pub fn ledger(&self) -> Ledger {
        *self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn retained(&self) -> RetainedSize {
        RetainedSize {
            count: self.retained_count.load(Ordering::Relaxed),
            bytes: self.retained_bytes.load(Ordering::Relaxed),
        }
    }
}

/// Sink of one shard's state machine.
pub struct ShardDelivery {
    pub local: Arc<dyn Local>,
    pub view: Arc<ShardView>,
    pub applied: Arc<Progress>,
    pub followers: Arc<Followers>,
    /// Tells the assigner of shared groups.
    pub waiting: Arc<WaitingGroups>,
}

impl ShardSink for ShardDelivery {
    fn applied(&self, applied: Applied) {
        self.view.clock.observe(applied.now);
        self.view.note_retained(applied.retained);
        self.view.note_delayed(applied.delayed);
        self.view.note_ledger(applied.ledger);
        if !applied.waiting.is_empty() {
            self.waiting.add(applied.shard, &applied.waiting);
        }
        for recipient in applied.appended.iter().flat_map(|appended| appended.recipients.iter()) {
            if matches!(recipient.role, Role::Member { .. }) {
                self.waiting.assigned(applied.shard, recipient.session);
            }
        }
        let index = applied.at.index;
        // Entries that gave out offsets, also without a message for anybody here: a follower's view moves on with them.
        if applied.upto > applied.after {
            let applied = Arc::new(applied);
            self.followers.push(&applied);
            if !applied.appended.is_empty() {
                self.local.applied(applied.clone());
            }
            // After the hand-over: who has seen this offset finds the messages in its queue.
            self.view.offset.advance(applied.upto.0);
        }
        self.applied.advance(index);
    }

    fn jumped(
        &self,
        shard: ShardId,
        upto: Offset,
        at: u64,
        retained: RetainedSize,
        delayed: DelayedSize,
        ledger: Ledger,
    ) {
        self.view.note_retained(retained);
        self.view.note_delayed(delayed);
        self.view.note_ledger(ledger);
        self.view.offset.advance(upto.0);
        self.followers.jumped();
        self.local.jumped(shard, upto);
        self.applied.advance(at);
    }
}

/// The peers that follow one shard here.
pub struct Followers {
    meta: MetaView,
    /// Guards who follows and what was appended last, so that a new follower misses nothing in between.
    state: Mutex<FollowersState>,
    /// Whether this cluster has nodes that hold no replica of some shard: otherwise nothing is kept.
    enabled: bool,
}

#[derive(Default)]
struct FollowersState {
    sinks: Vec<(NodeId, FrameSink)>,
    backlog: Backlog,
}

impl Followers {
    pub fn new(meta: MetaView, enabled: bool) -> Self {
        Followers {
            meta,
            state: Mutex::default(),
            enabled,
        }
    }

    /// A peer follows from behind `after`: it is sent what it missed, or told that its view jumps.
    pub fn add(&self, node: NodeId, after: Offset, upto: Offset, sink: FrameSink) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.sinks.retain(|(_, sink)| !sink.is_closed());
        match state.backlog.since(after, upto) {
            Some(missed) => {
                for applied in missed {
                    if !self.send(node, &sink, &applied) {
                        return;
                    }
                }
            }
            None => {
                if sink.try_send(encode_jumped(upto)).is_err() {
                    return;
                }
            }
        }
        state.sinks.push((node, sink));
    }

    fn push(&self, applied: &Arc<Applied>) {
        if !self.enabled {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.backlog.push(applied.clone());
        // A follower that does not keep up loses its stream, and begins again where it was.
        state.sinks.retain(|(node, sink)| self.send(*node, sink, applied));
    }

    fn jumped(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = FollowersState::default();
    }

    /// Sends what the connected sessions of `node` match.
    fn send(&self, node: NodeId, sink: &FrameSink, applied: &Applied) -> bool {
        let wanted: Vec<&Appended> = {
            let meta = self.meta.read();
            let serves = |appended: &&Appended| {
                let owned = appended.recipients.iter().any(|recipient| {
                    let owner = meta.session(recipient.session).and_then(|session| session.owner);
                    owner.is_some_and(|owner| owner.node == node)
                });
                owned
                    || appended.published && {
                        let matched = meta.match_topic(&appended.message.topic);
                        matched.nodes.contains(&node)
                            || matched.sessions.iter().any(|session| session.owner == Some(node))
                    }
            };
            applied.appended.iter().filter(serves).collect()
        };
        if sink.is_closed() {
            return false;
        }
        sink.try_send(encode_applied(applied, &wanted)).is_ok()
    }
}

/// Sink of the control plane's state machine.
pub struct MetaDelivery {
    pub node: NodeId,
    pub local: Arc<dyn Local>,
    pub lease: Arc<Lease>,
    pub view: MetaView,
    pub clock: Arc<LogClock>,
    pub applied: Arc<Progress>,
    pub events: mpsc::UnboundedSender<ControlEvent>,
    /// Wakes the sweeper: something may be left over in the shards.
    pub upkeep: Arc<Notify>,
    pub ended: Arc<Ended>,
    /// Wakes the publisher of wills.
    pub wills: Arc<Notify>,
    pub(crate) connects: Arc<ConnectsUnderWay>,
    pub in_effect: Arc<InEffect>,
}

/// What the control task acts on after apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlEvent {
    Applied,
    NodeDown(NodeId),
    /// A Connect of this incarnation was carried out that no connection waits for.
    Late(SessionId, SessionEpoch),
}

impl MetaSink for MetaDelivery {
    fn applied(&self, at: MetaIndex, events: Vec<MetaEvent>) {
        let log_time = self.view.read().log_time();
        self.clock.observe(log_time);
        let mut access = Vec::new();
        for event in events {
            match event {
                MetaEvent::Displaced { session, epoch, owner } if owner.node == self.node => {
                    if !has(Bug::NoTakeoverFence) {
                        self.local.displaced(session, epoch);
                    }
                }
                MetaEvent::Served {
                    session,
                    epoch,
                    owner,
                    request,
                } if owner.node == self.node && owner.incarnation == self.lease.incarnation() => {
                    if !self.connects.contains(request) {
                        let _ = self.events.send(ControlEvent::Late(session, epoch));
                    }
                }
                MetaEvent::NodeDown { node, incarnation } => {
                    if node == self.node && incarnation == self.lease.incarnation() {
                        self.lease.revoke();
                        self.local.serving_changed();
                    }
                    let _ = self.events.send(ControlEvent::NodeDown(node));
                    self.upkeep.notify_one();
                }
                MetaEvent::SessionEnded { session, .. } | MetaEvent::GroupEnded { group: session } => {
                    self.ended.add(session);
                    self.upkeep.notify_one();
                }
                MetaEvent::AccessChanged(change) => access.push(change),
                MetaEvent::WillDue { .. } => self.wills.notify_one(),
                MetaEvent::Served { .. } | MetaEvent::Displaced { .. } | MetaEvent::NodeUp { .. } => {}
            }
        }
        if !access.is_empty() {
            self.access_changed(at, &access);
        }
        self.applied.advance(at.0);
        let _ = self.events.send(ControlEvent::Applied);
    }

    fn jumped(&self, at: MetaIndex) {
        // Whom it displaced meanwhile is not known: this incarnation ends before the index counts as applied.
        self.lease.end_incarnation();
        self.local.serving_changed();
        self.access_changed(at, &[AccessChange::Rules]);
        self.applied.advance(at.0);
        let _ = self.events.send(ControlEvent::Applied);
    }
}

impl MetaDelivery {
    /// Apply does not wait for the workers; whoever waits for a barrier does.
    fn access_changed(&self, at: MetaIndex, changes: &[AccessChange]) {
        self.in_effect.begin(at.0);
        let (in_effect, events) = (self.in_effect.clone(), self.events.clone());
        let guard = Guard::new(move || {
            in_effect.end(at.0);
            let _ = events.send(ControlEvent::Applied);
        });
        self.local.access_changed(changes, guard);
    }
}
