//! The control plane's state: nodes, sessions, subscriptions; and from them the route table.
//!
//! Every node applies every meta entry, so every node holds the whole route table in memory. [`MetaView`] is the read
//! side: short read locks, no await.
//!
//!     MetaOp ─▶ members | sessions | routes ─▶ rows · MetaReply · MetaEvent ─▶ MetaSink (same task, log order)
//!
//! Invariants
//! - `one-owner`: a session has one current epoch; operations that name another are void.
//! - `apply-deterministic`: ids are log indexes, time is log time.
//! - "applied" means visible: memory is changed before the index is published, and readers match against memory.

mod members;
mod routes;
mod rows;
mod sessions;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

pub use members::NodeRecord;
pub use routes::{Matched, MatchedSession, SubscriptionOptions};
pub use sessions::Session;

use crate::command::{MetaOp, MetaReply, Owner, Reply, decode_envelope, decode_meta_ops, encode_meta_replies};
use crate::ids::{Incarnation, MetaIndex, NodeId, SessionEpoch, SessionId};
use crate::machine::{EntryPosition, Machine, TableBatch, Tables};
use crate::message::LogTime;
use crate::topic_tree::TopicTree;
use routes::Route;

/// What an entry changed that somebody must act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaEvent {
    /// The connection that served `session` under `epoch` is no longer its owner: it must stop before this index
    /// counts as applied on its node.
    Displaced {
        session: SessionId,
        epoch: SessionEpoch,
        owner: Owner,
    },
    /// The session is gone for good.
    SessionEnded {
        session: SessionId,
        durable: bool,
    },
    NodeUp {
        node: NodeId,
        incarnation: Incarnation,
    },
    NodeDown {
        node: NodeId,
        incarnation: Incarnation,
    },
}

/// Hears of applied meta entries, in log order, on the group's apply task. Must not block.
pub trait MetaSink: Send + Sync + 'static {
    fn applied(&self, at: MetaIndex, events: Vec<MetaEvent>);

    /// The view jumped to `at` (a snapshot was installed): events in between were never handed over.
    fn jumped(&self, at: MetaIndex);
}

/// The read side of the control plane, shared by all threads of a node.
#[derive(Clone, Default)]
pub struct MetaView {
    state: Arc<RwLock<MetaState>>,
}

impl MetaView {
    /// Guards the whole control plane: hold it for a lookup, never over an await.
    pub fn read(&self) -> RwLockReadGuard<'_, MetaState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, MetaState> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything the control plane knows, rebuilt from its rows at start.
#[derive(Default)]
pub struct MetaState {
    log_time: LogTime,
    /// Changes whenever a match may change; cached matches carry the value they were made at.
    route_version: u64,
    nodes: BTreeMap<NodeId, NodeRecord>,
    sessions: HashMap<SessionId, Session>,
    clients: HashMap<Box<str>, SessionId>,
    routes: TopicTree<Route>,
    /// Filters with connected ephemeral subscribers, by node: the rows behind `Route::nodes`.
    node_filters: BTreeMap<NodeId, BTreeSet<Box<str>>>,
    /// Sessions by the node that serves them.
    owned: BTreeMap<NodeId, BTreeSet<SessionId>>,
    /// Unserved sessions that will expire, by when.
    expiring: BTreeSet<(LogTime, SessionId)>,
}

/// Log time after which a session ends, `None` for never (0xFFFFFFFF). [MQTT-3.1.2-23]
fn expires_at(now: LogTime, expiry: u32) -> Option<LogTime> {
    (expiry != u32::MAX).then(|| now.plus_seconds(expiry))
}

impl MetaState {
    pub fn log_time(&self) -> LogTime {
        self.log_time
    }

    pub fn route_version(&self) -> u64 {
        self.route_version
    }

    fn routes_changed(&mut self) {
        self.route_version += 1;
    }

    fn apply(&mut self, operation: MetaOp, change: &mut Change<'_, '_>) -> MetaReply {
        match operation {
            MetaOp::NodeUp { node, start } => self.node_up(node, start, change),
            MetaOp::NodeDown { node, incarnation } => self.node_down(node, incarnation, change),
            MetaOp::Connect {
                client_id,
                clean_start,
                expiry,
                node,
                incarnation,
                request,
            } => {
                let owner = Owner { node, incarnation };
                self.connect(
                    sessions::Connect {
                        client_id,
                        clean_start,
                        expiry,
                        owner,
                        request,
                    },
                    change,
                )
            }
            MetaOp::Detach {
                session,
                epoch,
                expiry,
                sent,
            } => self.detach(session, epoch, expiry, sent, change),
            MetaOp::Subscribe {
                session,
                epoch,
                subscriptions,
            } => self.subscribe(session, epoch, subscriptions, change),
            MetaOp::Unsubscribe {
                session,
                epoch,
                filters,
            } => self.unsubscribe(session, epoch, filters, change),
            MetaOp::NodeRoutes {
                node,
                incarnation,
                add,
                remove,
            } => self.node_routes(Owner { node, incarnation }, add, remove, change),
            MetaOp::ExpireSessions { limit } => self.expire_sessions(limit, change),
        }
    }
}

/// What one entry does besides changing memory.
struct Change<'a, 'b> {
    at: EntryPosition,
    /// Ids given out by this entry so far.
    ids: u64,
    batch: &'a mut TableBatch<'b>,
    events: &'a mut Vec<MetaEvent>,
}

impl Change<'_, '_> {
    /// A number that no entry gave out before.
    fn fresh_id(&mut self) -> u64 {
        let id = self.at.index * SessionId::PER_ENTRY + self.ids;
        self.ids += 1;
        debug_assert!(self.ids < SessionId::PER_ENTRY, "an entry creates fewer sessions");
        id
    }
}

/// The state machine of the meta group.
pub struct Meta {
    view: MetaView,
    sink: Arc<dyn MetaSink>,
    events: Vec<MetaEvent>,
}

impl Meta {
    pub fn new(view: MetaView, sink: Arc<dyn MetaSink>) -> Self {
        Meta {
            view,
            sink,
            events: Vec::new(),
        }
    }
}

impl Machine for Meta {
    fn load(&mut self, tables: &Tables, reset: bool) -> io::Result<()> {
        let mut loaded = rows::load(tables)?;
        {
            let mut state = self.view.write();
            // A cached match must not look current by accident.
            loaded.route_version = state.route_version + 1;
            *state = loaded;
        }
        self.events.clear();
        if reset {
            self.sink.jumped(MetaIndex(tables.applied_index()?));
        }
        Ok(())
    }

    fn apply(
        &mut self,
        _: &Tables,
        batch: &mut TableBatch<'_>,
        at: EntryPosition,
        command: &Bytes,
    ) -> io::Result<Reply> {
        let (now, bundles) = decode_envelope(command)?;
        let bundles: Vec<Vec<MetaOp>> = bundles.iter().map(decode_meta_ops).collect::<Result<_, _>>()?;
        let mut state = self.view.write();
        state.log_time = state.log_time.max(now);
        let mut change = Change {
            at,
            ids: 0,
            batch,
            events: &mut self.events,
        };
        let replies = bundles
            .into_iter()
            .map(|operations| {
                let replies: Vec<MetaReply> = operations
                    .into_iter()
                    .map(|operation| state.apply(operation, &mut change))
                    .collect();
                encode_meta_replies(&replies)
            })
            .collect();
        rows::put_head(change.batch, state.log_time);
        Ok(Reply(replies))
    }

    fn emit(&mut self, at: EntryPosition) {
        self.sink.applied(MetaIndex(at.index), std::mem::take(&mut self.events));
    }
}

#[cfg(test)]
mod tests;
