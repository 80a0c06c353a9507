//! The control plane's state: nodes, sessions, subscriptions, shared groups, wills; and from them the route table.
//!
//! Every node applies every meta entry, so every node holds the whole route table in memory. [`MetaView`] is the read
//! side: short read locks, no await.
//!
//!     MetaOp ─▶ members | sessions | subscriptions | wills | routes
//!                  └─▶ rows · MetaReply · MetaEvent ─▶ MetaSink (same task, log order)
//!
//! Invariants
//! - `one-owner`: a session has one current epoch; operations that name another are void.
//! - `apply-deterministic`: ids are log indexes, time is log time.
//! - `one-holder`: a filter has one exclusive subscription at most.
//! - "applied" means visible: memory is changed before the index is published, and readers match against memory.

mod access;
mod exclusive;
mod groups;
mod members;
mod route_changes;
mod routes;
mod rows;
mod sessions;
mod subscriptions;
mod wills;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque, btree_map};
use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

pub use access::{AccessChange, AccessState, ApiKey, Ban, StoredUser};
pub use groups::ShareGroup;
pub use members::NodeRecord;
pub use routes::{GroupMember, Matched, MatchedGroup, MatchedSession, SubscriptionOptions};
pub use sessions::Session;
pub use wills::ScheduledWill;

use crate::command::{MetaOp, MetaReply, Owner, Reply, decode_envelope, decode_meta_ops, encode_meta_replies};
use crate::ids::{Incarnation, MetaIndex, NodeId, SessionEpoch, SessionId};
use crate::machine::{EntryPosition, Machine, TableBatch, Tables};
use crate::message::LogTime;
use crate::topic_tree::TopicTree;
use route_changes::RouteChanges;
use routes::Route;
use wills::Wills;

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
    /// A Connect was carried out: `owner` is to serve the session under `epoch`.
    Served {
        session: SessionId,
        epoch: SessionEpoch,
        owner: Owner,
        request: u64,
    },
    /// The session is gone for good.
    SessionEnded {
        session: SessionId,
        durable: bool,
    },
    /// The last subscription of a shared group is gone, and so is the group.
    GroupEnded {
        group: SessionId,
    },
    /// The will that the connection left is to be published now.
    WillDue {
        session: SessionId,
        epoch: SessionEpoch,
    },
    NodeUp {
        node: NodeId,
        incarnation: Incarnation,
    },
    NodeDown {
        node: NodeId,
        incarnation: Incarnation,
    },
    /// Who may do what has changed: it must be in effect before this index counts as applied in effect on a node.
    AccessChanged(AccessChange),
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
    /// Index of the last entry that may have changed a match; cached matches carry the one they were made at.
    route_version: u64,
    /// What the last of those entries changed.
    route_changes: RouteChanges,
    nodes: BTreeMap<NodeId, NodeRecord>,
    /// Boxed: half of a map's places may be empty, and a session is large.
    sessions: HashMap<SessionId, Box<Session>>,
    /// How many of them are durable.
    durable_sessions: usize,
    clients: HashMap<Box<str>, SessionId>,
    routes: TopicTree<Route>,
    /// Subscriptions of sessions that the entry has ended: none of them matches any more, and they are taken out of routes and
    /// rows piece by piece before the entry counts as applied. `bounded`: a session may have had a hundred thousand, and
    /// whoever publishes waits for the lock.
    leaving: VecDeque<(SessionId, btree_map::IntoIter<Box<str>, SubscriptionOptions>)>,
    groups: BTreeMap<SessionId, ShareGroup>,
    /// Who holds the exclusive subscription to a filter.
    exclusive: HashMap<Box<str>, SessionId>,
    /// Filters with connected ephemeral subscribers, by node: the rows behind `Route::nodes`.
    node_filters: BTreeMap<NodeId, BTreeSet<Box<str>>>,
    /// Sessions by the node that serves them.
    owned: BTreeMap<NodeId, BTreeSet<SessionId>>,
    /// Unserved sessions that will expire, by when.
    expiring: BTreeSet<(LogTime, SessionId)>,
    wills: Wills,
    access: AccessState,
}

/// Log time after which a session ends, `None` for never (0xFFFFFFFF). [MQTT-3.1.2-23]
fn expires_at(now: LogTime, expiry: u32) -> Option<LogTime> {
    (expiry != u32::MAX).then(|| now.plus_seconds(expiry))
}

impl MetaState {
    pub fn log_time(&self) -> LogTime {
        self.log_time
    }

    /// Log index as of which the routes stand: comparable between nodes. It may name a later entry than the last
    /// one that changed a route (after a restart or a snapshot), never an earlier one.
    pub fn route_version(&self) -> u64 {
        self.route_version
    }

    /// Whether a match of `topic` that was made at route version `since` is what it would be now. False if that is not known.
    pub fn is_unchanged(&self, topic: &str, since: u64) -> bool {
        since == self.route_version || since < self.route_version && self.route_changes.spare(topic, since)
    }

    /// Any match may be another one.
    fn routes_changed(&mut self, change: &Change<'_, '_>) {
        self.route_version = change.at.index;
        self.route_changes.all(change.at.index);
    }

    /// Who is behind a filter, of a subscription or of a group, has changed.
    fn route_changed(&mut self, filter: &str, change: &Change<'_, '_>) {
        self.route_version = change.at.index;
        self.route_changes.filter(change.at.index, filter);
    }

    /// Where the session is served has changed, if it has subscriptions at all.
    fn session_routes_changed(&mut self, id: SessionId, change: &Change<'_, '_>) {
        let Some(session) = self
            .sessions
            .get(&id)
            .filter(|session| !session.subscriptions.is_empty())
        else {
            return;
        };
        self.route_version = change.at.index;
        self.route_changes.each(change.at.index, session.subscriptions.keys());
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
                will,
            } => {
                let owner = Owner { node, incarnation };
                self.connect(
                    sessions::Connect {
                        client_id,
                        clean_start,
                        expiry,
                        owner,
                        request,
                        will,
                    },
                    change,
                )
            }
            MetaOp::Detach {
                session,
                epoch,
                expiry,
                sent,
                publish_will,
            } => self.detach(session, epoch, expiry, sent, publish_will, change),
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
            MetaOp::RetainedDone {
                session,
                filter,
                version,
            } => self.retained_done(session, &filter, version, change),
            MetaOp::DueWills { limit } => self.due_wills_until_now(limit, change),
            MetaOp::WillPublished { session, epoch } => self.will_published(session, epoch, change),
            MetaOp::EndSession { session, epoch } => self.end_session_now(session, epoch, change),
            MetaOp::Access(operation) => MetaReply::Access(self.change_access(operation, change)),
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
    /// Whether the entry may give out `count` more ids. An operation that finds too few is void: beyond, they would be
    /// those of the next entry.
    fn has_ids(&self, count: usize) -> bool {
        self.ids + (count as u64) < SessionId::PER_ENTRY
    }

    /// A number that no entry gave out before. Asked for after `has_ids`.
    fn fresh_id(&mut self) -> u64 {
        let id = self.at.index * SessionId::PER_ENTRY + self.ids;
        self.ids += 1;
        debug_assert!(
            self.ids < SessionId::PER_ENTRY,
            "an entry creates fewer sessions and groups"
        );
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
            // What was matched before a jump is older than this, so that it does not look current.
            loaded.route_version = tables.applied_index()?.max(state.route_version);
            loaded.route_changes.all(loaded.route_version);
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
        while state.remove_leaving(change.batch) {
            drop(state);
            state = self.view.write();
        }
        Ok(Reply(replies))
    }

    fn emit(&mut self, at: EntryPosition) {
        self.sink.applied(MetaIndex(at.index), std::mem::take(&mut self.events));
    }
}

#[cfg(test)]
mod tests;
