//! A worker: one thread, one current-thread runtime, its own listeners; a connection lives and dies on it.
//!
//! ```text
//!   listener ─▶ gateway task per connection ─▶ Connection (sans-io) ─▶ outputs ─▶ session::execute ─▶ cluster
//!   Hub queue ─▶ event loop ─▶ deliver ─▶ Connection ─▶ wake the gateway task
//! ```
//!
//! Fan-out crosses threads once per worker; everything below is single-threaded, and no borrow is held over an await.

mod accept;
mod access;
pub mod config;
pub mod deadlines;
mod deliver;
pub mod wake;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::BytesMut;
use lontra_cluster::Cluster;
use lontra_cluster::lease::Serving;
use lontra_cluster::local::{Member, Outcome};
use lontra_cluster::routes::{RouteCache, TopicMatch};
use lontra_cluster::shared::Strategy;
use lontra_storage::ids::{Incarnation, NodeId, SessionId, ShardId};
use lontra_storage::meta::SubscriptionOptions;
use lontra_storage::topic_tree::TopicTree;
use tokio::sync::{Notify, Semaphore, watch};

pub use self::config::{ListenerConfig, WorkerConfig};
use self::deadlines::Deadlines;
use self::wake::Wake;
use crate::auth::scram::Exchange;
use crate::auth::{Access, CheckedPublisher};
use crate::gateway::listen::Listening;
use crate::gateway::peer::Peer;
use crate::gateway::tls::handshake::Handshakes;
use crate::gateway::unfinished::Unfinished;
use crate::hub::{CreditBook, Fence, Hub, WorkerEvent, WorkerQueue};
use crate::limits::Limit;
use crate::limits::admission::{Place, UserPlace};
use crate::limits::flow::{Flow, Pace};
use crate::metrics::NodeMetrics;
use crate::protocol::codec::topic_grammar::is_shared;
use crate::protocol::codec::{self, Direction, ReasonCode, Violation};
use crate::protocol::connection::{Connection, Output};
use crate::session::execute;
use crate::session::operations::Operations;
use crate::session::publishes::Publishes;
use crate::session::retained::Replays;
use crate::session::routes::Routes;
use crate::session::waiting::{Held, Waiting};
use crate::sys::{Sys, is_sys};

/// Everything that the tasks of one thread share.
pub struct Worker {
    pub id: u16,
    config: watch::Receiver<Arc<WorkerConfig>>,
    pub cluster: Cluster,
    pub publisher: CheckedPublisher,
    pub hub: Arc<Hub>,
    pub metrics: NodeMetrics,
    /// Of TLS.
    pub handshakes: Handshakes,
    /// What has come of packets that are not whole.
    pub unfinished: Unfinished,
    /// What `$SYS` tells; none if it is off.
    pub sys: Option<Arc<Sys>>,
    /// The multi-threaded runtime, for what may touch a disk.
    pub runtime: tokio::runtime::Handle,
    pub routes: RefCell<RouteCache>,
    pub deadlines: Deadlines,
    connections: RefCell<HashMap<u64, Rc<Client>>>,
    sessions: RefCell<HashMap<SessionId, Rc<Client>>>,
    /// Subscriptions of the connected sessions here, by filter.
    filters: RefCell<TopicTree<BTreeMap<u64, SubscriptionOptions>>>,
    /// Room for what a connection asks for, lent to the one whose turn it is: each packet needs it, and no idle one keeps it.
    pub outputs: Cell<Vec<Output>>,
    /// Room for who matches a message.
    matched: Cell<Vec<(u64, SubscriptionOptions)>>,
    next_connection: Cell<u64>,
    numbers: Cell<u64>,
    /// Whose turn it is in shared groups at QoS 0. Not `numbers`: a publish takes one of those too, and with two members
    /// it would always be the same one's turn.
    turns: Cell<usize>,
    pub waiting: Waiting,
    stopping: Cell<bool>,
    /// `bounded`: a storm of clients that come back takes turns, so that the thread is there for who is connected.
    pub attaching: Semaphore,
}

/// A client's connection and what the node keeps beside its protocol state.
pub struct Client {
    pub id: u64,
    pub config: Arc<ListenerConfig>,
    pub peer: Peer,
    pub connection: RefCell<Connection>,
    /// Something happened that its gateway task must act on.
    pub wake: Wake,
    /// Until when its task waits.
    pub deadline: deadlines::Entry,
    pub fence: RefCell<Option<Arc<Fence>>>,
    /// The incarnation under which it was attached.
    pub incarnation: Cell<Incarnation>,
    /// [`Lease::lapses`](lontra_cluster::lease::Lease::lapses) when the lease was last looked at for it.
    lapses: Cell<u64>,
    pub subscriptions: RefCell<BTreeMap<Box<str>, SubscriptionOptions>>,
    pub operations: Operations,
    pub publishes: RefCell<Publishes>,
    /// Of those, what the cluster has not answered, in bytes.
    pub held_publishes: RefCell<Held>,
    /// Subscriptions to shared groups, by their whole filter: the group's queue feeds them, nothing is matched here.
    pub shared: RefCell<BTreeMap<Box<str>, SubscriptionOptions>>,
    pub credit: Arc<CreditBook>,
    pub replays: Replays,
    /// The filters by which it counts among the subscribers of its node.
    pub routes: Routes,
    /// The client took something: a replay may go on. Made by the first that waits.
    pub room: OnceCell<Box<Notify>>,
    /// Its acknowledgements that are on their way to their shards.
    pub unsettled: Unsettled,
    /// Who it is and what it may do; none before it has shown it.
    pub access: RefCell<Option<Rc<Access>>>,
    /// What it has sent, where that is limited.
    pub flow: RefCell<Flow>,
    /// Until when it is not read from: it is above a rate.
    pub held: Cell<Option<Instant>>,
    /// Its places among the connections of its address and of its user.
    pub places: RefCell<(Option<Place>, Option<Box<UserPlace>>)>,
    /// Its enhanced authentication, between a challenge and the answer.
    pub exchange: RefCell<Option<Box<Exchange>>>,
}

impl Client {
    pub fn has_filter(&self, filter: &str) -> bool {
        self.subscriptions.borrow().contains_key(filter) || self.shared.borrow().contains_key(filter)
    }

    /// Whether it holds the exclusive subscription to `filter`.
    pub fn holds(&self, filter: &str) -> bool {
        let subscriptions = self.subscriptions.borrow();
        subscriptions.get(filter).is_some_and(|options| options.exclusive)
    }

    /// Replays that wait for room look again.
    fn has_room(&self) {
        if let Some(room) = self.room.get() {
            room.notify_waiters();
        }
    }

    pub fn is_durable(&self) -> bool {
        self.connection.borrow().outbound.is_durable()
    }

    /// Whether as much waits for the client to read as may.
    pub fn is_full(&self, connection: &Connection) -> bool {
        connection.out.len() >= self.config.policy.outbox_bytes_max
    }

    pub fn access(&self) -> Option<Rc<Access>> {
        self.access.borrow().clone()
    }

    pub fn is_displaced(&self) -> bool {
        self.fence.borrow().as_ref().is_some_and(|fence| fence.is_set())
    }
}

/// How far [`Worker::advance`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// As far as what was received reaches.
    NeedsMore,
    /// There is more, and the others are due first.
    TurnOver,
    /// It goes on once the connection may.
    Waits,
}

/// How many settlements and releases have no outcome yet, and in which shards (one bit each) they may be.
#[derive(Default)]
pub struct Unsettled {
    count: Cell<usize>,
    shards: Cell<u64>,
}

impl Unsettled {
    pub fn begin(&self, shard: ShardId) {
        self.count.set(self.count.get() + 1);
        self.shards.set(self.shards.get() | (1 << shard.0));
    }

    pub fn end(&self) {
        self.count.set(self.count.get().saturating_sub(1));
        if self.count.get() == 0 {
            self.shards.set(0);
        }
    }

    pub fn shards(&self) -> Vec<ShardId> {
        let shards = self.shards.get();
        (0..64)
            .filter(|shard| shards & (1 << shard) != 0)
            .map(ShardId)
            .collect()
    }
}

/// Runs a worker on its own thread until `stop` is set and its connections have ended.
///
/// # Errors
/// The thread or its runtime cannot be started.
#[allow(
    clippy::too_many_arguments,
    reason = "the wiring of one thread, called from one place"
)]
pub fn spawn(
    id: u16,
    config: watch::Receiver<Arc<WorkerConfig>>,
    listeners: Vec<Listening>,
    cluster: Cluster,
    publisher: CheckedPublisher,
    hub: Arc<Hub>,
    queue: WorkerQueue,
    metrics: NodeMetrics,
    sys: Option<Arc<Sys>>,
    stop: watch::Receiver<bool>,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let main = tokio::runtime::Handle::current();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new()
        .name(format!("lontra-worker-{id}"))
        .spawn(move || {
            let local = tokio::task::LocalSet::new();
            let worker = Rc::new(Worker {
                id,
                config,
                routes: RefCell::new(cluster.route_cache()),
                cluster,
                publisher,
                hub,
                metrics,
                handshakes: Handshakes::default(),
                unfinished: Unfinished::default(),
                sys,
                runtime: main,
                deadlines: Deadlines::default(),
                connections: RefCell::default(),
                sessions: RefCell::default(),
                filters: RefCell::default(),
                outputs: Cell::default(),
                matched: Cell::default(),
                next_connection: Cell::new(1),
                numbers: Cell::new(0),
                turns: Cell::new(0),
                waiting: Waiting::default(),
                stopping: Cell::new(false),
                attaching: Semaphore::new(ATTACHING_MAX),
            });
            local.block_on(&runtime, run(worker, listeners, queue, stop));
        })
}

async fn run(worker: Rc<Worker>, listeners: Vec<Listening>, mut queue: WorkerQueue, mut stop: watch::Receiver<bool>) {
    let mut accepting = accept::begin(&worker, listeners);
    tokio::task::spawn_local(deadlines::run(worker.clone()));
    let mut config = worker.config.clone();
    config.mark_unchanged();
    loop {
        tokio::select! {
            event = queue.events.recv() => {
                let Some(event) = event else { return };
                worker.event(event, &queue);
                // Drained before the connections flush: one write per batch. `bounded`: they have a turn in between.
                let mut taken = 0;
                while taken < EVENTS_PER_TURN && let Ok(event) = queue.events.try_recv() {
                    worker.event(event, &queue);
                    taken += 1;
                }
                if taken == EVENTS_PER_TURN {
                    tokio::task::yield_now().await;
                }
            }
            Ok(()) = config.changed() => worker.access_changed(),
            _ = stop.wait_for(|stop| *stop), if !worker.stopping.get() => {
                worker.stopping.set(true);
                accepting.abort_all();
                worker.close_all(ReasonCode::SERVER_SHUTTING_DOWN);
            }
        }
        if worker.stopping.get() && worker.connections.borrow().is_empty() {
            return;
        }
    }
}

impl Worker {
    /// A new connection.
    pub fn open(&self, config: Arc<ListenerConfig>, peer: Peer, now: Instant) -> Rc<Client> {
        let id = self.next_connection.get();
        self.next_connection.set(id + 1);
        let (policy, waits) = (config.policy.clone(), (config.connect_timeout, config.outbox_wait_max));
        let client = Rc::new(Client {
            id,
            config,
            peer,
            connection: RefCell::new(Connection::new(policy, waits.0, waits.1, now)),
            wake: Wake::default(),
            deadline: deadlines::Entry::default(),
            fence: RefCell::default(),
            incarnation: Cell::default(),
            lapses: Cell::new(self.cluster.lease().lapses()),
            subscriptions: RefCell::default(),
            operations: Operations::default(),
            publishes: RefCell::default(),
            held_publishes: RefCell::default(),
            shared: RefCell::default(),
            credit: Arc::default(),
            replays: Replays::default(),
            routes: Routes::default(),
            room: OnceCell::new(),
            unsettled: Unsettled::default(),
            access: RefCell::default(),
            flow: RefCell::default(),
            held: Cell::default(),
            places: RefCell::default(),
            exchange: RefCell::default(),
        });
        self.connections.borrow_mut().insert(id, client.clone());
        // A reload may have come within its handshake.
        self.certificate_again(&client);
        client
    }

    /// Takes whole packets out of what was received, until the connection wants no more, or it is the others' turn.
    pub fn advance(self: &Rc<Self>, client: &Rc<Client>, received: &mut BytesMut) -> Progress {
        let mut packets = 0;
        let mut progress = Progress::Waits;
        while self.may_go_on(client) {
            if packets == PACKETS_PER_TURN && !received.is_empty() {
                progress = Progress::TurnOver;
                break;
            }
            let mut connection = client.connection.borrow_mut();
            let version = connection.version();
            match codec::frame_length(received, &client.config.limits, version) {
                Ok(None) => {
                    progress = Progress::NeedsMore;
                    break;
                }
                Ok(Some(length)) => {
                    if connection.outputs.capacity() == 0 {
                        connection.outputs = self.outputs.take();
                    }
                    let frame = received.split_to(length).freeze();
                    packets += 1;
                    let is_publish = frame.first().is_some_and(|first| first >> 4 == PUBLISH);
                    client
                        .config
                        .guard
                        .charge(&mut client.flow.borrow_mut(), is_publish, length);
                    if version.is_none()
                        && let Some(version) = codec::connect_version(&frame)
                    {
                        connection.note_version(version);
                    }
                    let version = version.filter(|_| connection.served.is_some() || connection.is_authenticating());
                    match codec::decode(frame, version, Direction::ClientToServer, &client.config.limits) {
                        Ok(packet) => connection.packet(packet, Instant::now(), || self.fresh_client_id(client)),
                        Err(violation) => self.violation(&mut connection, &violation),
                    }
                }
                Err(violation) => {
                    // A CONNECT that is too large is told so, where its first bytes show in which form.
                    if version.is_none()
                        && let Some(version) = codec::connect_version(received)
                    {
                        connection.note_version(version);
                    }
                    self.violation(&mut connection, &violation);
                }
            }
            drop(connection);
            execute::outputs(self, client);
        }
        if packets > 0 {
            self.metrics.received(packets);
        }
        self.pump(client);
        match received.is_empty() {
            true => Progress::NeedsMore,
            false => progress,
        }
    }

    fn violation(&self, connection: &mut Connection, violation: &Violation) {
        if let Some(limit) = Limit::of(violation) {
            self.metrics.limits.refused(limit, 1);
        }
        connection.violation(violation);
    }

    /// `back-pressure-first`: whether the client is below its rates.
    fn keeps_pace(&self, client: &Client) -> bool {
        let (pace, until) = client.config.guard.pace(&mut client.flow.borrow_mut());
        client.held.set(until);
        if let Some(until) = until {
            client.connection.borrow_mut().held_until(until);
        }
        match pace {
            Pace::Free => true,
            Pace::Held { begins, .. } => {
                if let Some(limit) = begins {
                    self.metrics.limits.held(limit);
                }
                false
            }
            Pace::Hopeless => {
                self.metrics.limits.refused(Limit::OverRate, 1);
                let mut connection = client.connection.borrow_mut();
                connection.close(
                    ReasonCode::MESSAGE_RATE_TOO_HIGH,
                    Some("the client sends more than it may"),
                );
                false
            }
        }
    }

    /// `one-owner`, `lease-before-match`: looked at after the read and before every packet.
    fn may_go_on(&self, client: &Rc<Client>) -> bool {
        client.held.set(None);
        if client.is_displaced() {
            client
                .connection
                .borrow_mut()
                .close(ReasonCode::SESSION_TAKEN_OVER, None);
        }
        let connection = client.connection.borrow();
        if !connection.wants_packets() || client.publishes.borrow().is_stalled() {
            return false;
        }
        // `bounded`: a client that does not read its answers, or piles up SUBSCRIBEs, is not listened to meanwhile.
        if client.is_full(&connection) || client.operations.is_full() {
            return false;
        }
        if !connection.is_connected() {
            return true;
        }
        drop(connection);
        if self.holds_back(client) || !self.keeps_pace(client) {
            return false;
        }
        let lease = self.cluster.lease();
        if client.incarnation.get() != lease.incarnation() {
            client
                .connection
                .borrow_mut()
                .close(ReasonCode::SERVER_BUSY, Some("the node was cut off from its cluster"));
            return false;
        }
        lease.is_valid()
    }

    /// `lease-before-delivery` (P6): whether nothing may be handed to the client now, because the node may not serve it or does
    /// not know that it may: an
    /// entry of a shard, or a frame of another node, may come while the meta leader calls this node Down and another serves
    /// the session. Looked at before anything is written to the client, and before time counts against it.
    pub fn withholds(&self, client: &Client) -> bool {
        let lease = self.cluster.lease();
        // The lease first, then how often there was none: one that ended before it was looked at is among them.
        let may = lease.is_valid() && client.incarnation.get() == lease.incarnation() && !client.is_displaced();
        let lapses = lease.lapses();
        let mut connection = client.connection.borrow_mut();
        if client.lapses.replace(lapses) != lapses {
            connection.resumed(Instant::now());
        }
        connection.set_withheld(!may);
        connection.is_withheld()
    }

    /// Sends what may be sent, and does what the connection asks for.
    pub fn pump(self: &Rc<Self>, client: &Rc<Client>) {
        let held_publish = {
            let mut connection = client.connection.borrow_mut();
            let held_publish = connection.holds_publish();
            connection.pump(|shard| self.cluster.log_time(shard), Instant::now());
            held_publish && !connection.holds_publish()
        };
        execute::outputs(self, client);
        if held_publish {
            // It may have been refused at once: what was received behind it has no other wake-up.
            client.wake.notify_one();
        }
        if !client.shared.borrow().is_empty() {
            client.credit.set_free(&client.connection.borrow().outbound);
        }
        client.has_room();
    }

    /// A number that this worker has not given out before.
    pub fn next_number(&self) -> u64 {
        let number = self.numbers.get();
        self.numbers.set(number + 1);
        number & u64::from(u32::MAX)
    }

    /// Members of shared groups that take a publish at QoS 0, one of each group.
    pub fn give(&self, matched: &TopicMatch, qos: u8) -> Vec<(NodeId, Member)> {
        if matched.matched.groups.is_empty() {
            return Vec::new();
        }
        let here = self.cluster.node();
        matched.given(qos, |connected| {
            let near = connected.iter().position(|member| member.owner == Some(here));
            match (self.cluster.shared_strategy(), near) {
                (Strategy::Local, Some(at)) => at,
                (Strategy::Sticky, _) => 0,
                _ => {
                    let turn = self.turns.get();
                    self.turns.set(turn.wrapping_add(1));
                    turn % connected.len().max(1)
                }
            }
        })
    }

    /// Unique in the cluster: incarnations are.
    fn fresh_client_id(&self, client: &Client) -> String {
        let incarnation = self.cluster.lease().incarnation();
        format!(
            "lontra-{}-{}-{}-{}",
            self.cluster.node(),
            incarnation,
            self.id,
            client.id
        )
    }

    fn event(self: &Rc<Self>, event: WorkerEvent, queue: &WorkerQueue) {
        match event {
            WorkerEvent::Applied(applied, bytes) => {
                self.deliver_applied(&applied);
                self.dequeued(bytes, queue);
            }
            WorkerEvent::Ephemeral(message, audience, guard, bytes) => {
                self.deliver_ephemeral(&message, &audience, &guard);
                self.dequeued(bytes, queue);
            }
            WorkerEvent::Hole(shard, upto) => self.deliver_hole(shard, upto),
            WorkerEvent::Mark(done) => drop(done),
            WorkerEvent::Completed(outcomes) => self.completed(outcomes),
            WorkerEvent::Displaced(connection) => {
                if let Some(client) = self.client(connection) {
                    client
                        .connection
                        .borrow_mut()
                        .close(ReasonCode::SESSION_TAKEN_OVER, None); // [MQTT-3.1.4-3]
                    client.wake.notify_one();
                }
            }
            WorkerEvent::ServingChanged => self.serving_changed(),
            WorkerEvent::AccessChanged(changes, in_effect) => {
                self.cluster_access_changed(&changes);
                drop(in_effect);
            }
        }
    }

    fn dequeued(&self, bytes: usize, queue: &WorkerQueue) {
        queue.queued.fetch_sub(bytes, Ordering::Relaxed);
        self.metrics.worker_queue(-(bytes as i64));
    }

    fn completed(self: &Rc<Self>, outcomes: Vec<(u64, u64, Outcome)>) {
        let mut touched: Vec<Rc<Client>> = Vec::new();
        for (connection, token, outcome) in outcomes {
            let client = match touched.last() {
                Some(last) if last.id == connection => last.clone(),
                _ => match self.client(connection) {
                    Some(client) => client,
                    None => {
                        self.release_of_gone(connection, token);
                        continue;
                    }
                },
            };
            execute::completed(self, &client, token, outcome);
            if touched.last().is_none_or(|last| last.id != connection) {
                touched.push(client);
            }
        }
        for client in touched {
            client.wake.notify_one();
        }
    }

    /// A connection holds as many bytes that it has not handed in. `bounded`: with more in all than there may be, others end.
    pub fn tell_unfinished(&self, client: &Client, bytes: usize, has_progressed: bool) {
        // One packet fits, however small the budget is.
        let budget = self.config.borrow().unfinished_bytes_max;
        let budget = budget.max(2 * client.config.limits.packet_bytes);
        for ending in self.unfinished.tell(client.id, bytes, has_progressed, budget) {
            self.metrics.limits.refused(Limit::UnfinishedBytes, 1);
            if let Some(client) = self.client(ending) {
                client.connection.borrow_mut().close(
                    ReasonCode::QUOTA_EXCEEDED,
                    Some("the node has no room for more packets that are not whole"),
                );
                client.wake.notify_one();
            }
        }
    }

    /// Whether it has not been forgotten: what is noted of it later would stay for good.
    pub fn is_open(&self, client: &Client) -> bool {
        self.connections.borrow().contains_key(&client.id)
    }

    fn client(&self, connection: u64) -> Option<Rc<Client>> {
        self.connections.borrow().get(&connection).cloned()
    }

    fn serving_changed(&self) {
        let serving = self.cluster.lease().serving();
        let incarnation = self.cluster.lease().incarnation();
        for client in self.connections.borrow().values() {
            let mut connection = client.connection.borrow_mut();
            // Its routes and its ownership went with the incarnation.
            if connection.is_connected() && client.incarnation.get() != incarnation {
                connection.close(ReasonCode::SERVER_BUSY, Some("the node was cut off from its cluster"));
                client.wake.notify_one();
            }
        }
        match serving {
            Serving::Serving => {
                for client in self.connections.borrow().values() {
                    self.withholds(client);
                    client.wake.notify_one();
                }
            }
            // Paused connections are simply not read from, and nothing is written to them.
            Serving::Starting | Serving::Paused => {}
            Serving::Refusing if self.stopping.get() => {}
            Serving::Refusing => self.close_all(ReasonCode::SERVER_BUSY),
        }
    }

    fn close_all(&self, reason: ReasonCode) {
        for client in self.connections.borrow().values() {
            client.connection.borrow_mut().close(reason, None);
            client.wake.notify_one();
        }
    }

    /// From here on pushes find the session.
    pub fn serve(&self, session: SessionId, client: &Rc<Client>) {
        self.sessions.borrow_mut().insert(session, client.clone());
    }

    /// Deliveries match the subscription from here on.
    pub fn add_filter(&self, client: &Client, filter: &str, options: SubscriptionOptions) {
        if is_shared(filter) {
            if client.shared.borrow_mut().insert(filter.into(), options).is_none() {
                self.metrics.subscriptions_changed(1);
            }
            client.credit.set_free(&client.connection.borrow().outbound);
            return;
        }
        let known = client.subscriptions.borrow_mut().insert(filter.into(), options);
        self.filters.borrow_mut().entry(filter).insert(client.id, options);
        if known.is_none() {
            self.metrics.subscriptions_changed(1);
            if is_sys(filter) {
                self.hub.sys_watchers(1);
            }
        }
    }

    /// Whether it was subscribed.
    pub fn remove_filter(&self, client: &Client, filter: &str) -> bool {
        if client.shared.borrow_mut().remove(filter).is_some() {
            self.metrics.subscriptions_changed(-1);
            return true;
        }
        if client.subscriptions.borrow_mut().remove(filter).is_none() {
            return false;
        }
        self.filters.borrow_mut().update(filter, |clients| {
            clients.remove(&client.id);
            !clients.is_empty()
        });
        self.metrics.subscriptions_changed(-1);
        if is_sys(filter) {
            self.hub.sys_watchers(-1);
        }
        true
    }

    /// Forgets a connection.
    pub fn forget(self: &Rc<Self>, client: &Rc<Client>) {
        let filters: Vec<Box<str>> = client.subscriptions.borrow().keys().cloned().collect();
        client.has_room();
        if let Some(served) = client.connection.borrow().served {
            let mut sessions = self.sessions.borrow_mut();
            if sessions
                .get(&served.session)
                .is_some_and(|current| current.id == client.id)
            {
                sessions.remove(&served.session);
            }
        }
        self.connections.borrow_mut().remove(&client.id);
        self.deadlines.forget(client.id, &client.deadline);
        self.keep_held(client);
        self.remove_filters(client, &filters);
    }

    /// All filters of a client that is not found any more: what still matches them delivers nothing. `bounded`: the first at
    /// once, the others between what else the thread does.
    fn remove_filters(self: &Rc<Self>, client: &Rc<Client>, filters: &[Box<str>]) {
        let mut all = filters.to_vec();
        all.extend(client.shared.borrow().keys().cloned());
        let others = all.split_off(all.len().min(FILTERS_AT_ONCE));
        for filter in &all {
            self.remove_filter(client, filter);
        }
        if others.is_empty() {
            return;
        }
        let (worker, client) = (self.clone(), client.clone());
        tokio::task::spawn_local(async move {
            for some in others.chunks(FILTERS_AT_ONCE) {
                tokio::task::yield_now().await;
                for filter in some {
                    worker.remove_filter(&client, filter);
                }
            }
        });
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.get()
    }
}

/// About a millisecond.
const FILTERS_AT_ONCE: usize = 500;
/// Of one connection: a read of packets as short as can be has thousands.
const PACKETS_PER_TURN: u64 = 128;
const EVENTS_PER_TURN: usize = 256;
/// CONNECTs of one worker that are carried out at a time, while what is connected goes on.
const ATTACHING_MAX: usize = 64;
/// The packet type of PUBLISH in the fixed header. [MQTT-2.1.2]
const PUBLISH: u8 = 3;
