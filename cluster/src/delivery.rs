//! From apply to the connected sessions of this node, and to the nodes that follow a shard.
//!
//! ```text
//!   shard apply ─▶ ShardDelivery ─▶ Local (workers of this node)
//!                       └─▶ followers: what the peer's connected sessions match, one ordered stream each
//!   meta apply  ─▶ MetaDelivery  ─▶ Local::displaced, at once: "applied" means that the displaced connection stopped
//! ```
//!
//! Both run on the group's apply task and never block.

use std::sync::{Arc, Mutex, PoisonError};

use lontra_storage::ids::{MetaIndex, NodeId, Offset, ShardId};
use lontra_storage::meta::{MetaEvent, MetaSink, MetaView};
use lontra_storage::shard::{Appended, Applied, ShardSink};
use tokio::sync::mpsc;

use crate::clock::LogClock;
use crate::follow::{Backlog, encode_applied, encode_jumped};
use crate::lease::Lease;
use crate::link::FrameSink;
use crate::local::Local;
use crate::progress::Progress;

/// How far this node's view of a shard has come, held or followed.
#[derive(Debug, Default)]
pub struct ShardView {
    pub offset: Progress,
    pub clock: Arc<LogClock>,
}

/// Sink of one shard's state machine.
pub struct ShardDelivery {
    pub local: Arc<dyn Local>,
    pub view: Arc<ShardView>,
    pub applied: Arc<Progress>,
    pub followers: Arc<Followers>,
}

impl ShardSink for ShardDelivery {
    fn applied(&self, applied: Applied) {
        self.view.clock.observe(applied.now);
        self.view.offset.advance(applied.upto.0);
        let index = applied.at.index;
        if !applied.appended.is_empty() {
            let applied = Arc::new(applied);
            self.followers.push(&applied);
            self.local.applied(applied);
        }
        self.applied.advance(index);
    }

    fn jumped(&self, shard: ShardId, upto: Offset, at: u64) {
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
                owned || {
                    let matched = meta.match_topic(&appended.message.topic);
                    matched.nodes.contains(&node) || matched.sessions.iter().any(|session| session.owner == Some(node))
                }
            };
            applied.appended.iter().filter(serves).collect()
        };
        if sink.is_closed() {
            return false;
        }
        wanted.is_empty() || sink.try_send(encode_applied(applied, &wanted)).is_ok()
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
}

/// What the control task acts on after apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlEvent {
    Applied,
    NodeDown(NodeId),
}

impl MetaSink for MetaDelivery {
    fn applied(&self, at: MetaIndex, events: Vec<MetaEvent>) {
        let log_time = self.view.read().log_time();
        self.clock.observe(log_time);
        for event in events {
            match event {
                MetaEvent::Displaced { session, epoch, owner } if owner.node == self.node => {
                    self.local.displaced(session, epoch);
                }
                MetaEvent::NodeDown { node, incarnation } => {
                    if node == self.node && incarnation == self.lease.incarnation() {
                        self.lease.revoke();
                        self.local.serving_changed();
                    }
                    let _ = self.events.send(ControlEvent::NodeDown(node));
                }
                MetaEvent::Displaced { .. } | MetaEvent::SessionEnded { .. } | MetaEvent::NodeUp { .. } => {}
            }
        }
        self.applied.advance(at.0);
        let _ = self.events.send(ControlEvent::Applied);
    }

    fn jumped(&self, at: MetaIndex) {
        // Whom it displaced meanwhile is not known: this incarnation ends before the index counts as applied.
        self.lease.end_incarnation();
        self.local.serving_changed();
        self.applied.advance(at.0);
        let _ = self.events.send(ControlEvent::Applied);
    }
}
