//! Retained messages for a subscription that no shard keeps a queue for: of an ephemeral session, or at QoS 0.
//!
//! ```text
//!   SUBACK ─▶ per shard: read index ─▶ page ─▶ wait until its view was delivered ─▶ what is not newer, nor came live
//!                          ▲                                                             │ room in the outbox
//!                          └─────────────────────────────────────────────────────────────┘
//! ```
//!
//! Invariant `retained-last`: a subscriber that arrives during a retained publish ends with the newest value (P5). What
//! is newer than the first page comes live, since the filter matched before; what is not newer and came live meanwhile
//! is left out; a page is handed on only when everything that it shows has been delivered here.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use lontra_cluster::{PageLimits, RetainedRequest};
use lontra_storage::command::Subscription;
use lontra_storage::ids::{Offset, ShardId};
use lontra_storage::message::{LogTime, Message};
use lontra_storage::shard::{RetainedMessage, RetainedPage};
use lontra_storage::topic::matches;
use tokio::sync::Notify;

use crate::metrics::Drop;
use crate::protocol::codec::ReasonCode;
use crate::protocol::publish_out::Delivery;
use crate::worker::{Client, Worker};

/// The replays of one connection.
#[derive(Default)]
pub struct Replays {
    running: RefCell<BTreeMap<(ShardId, u64), Rc<Replay>>>,
    next: Cell<u64>,
    /// Topics that they all have noted.
    noted: Cell<usize>,
    /// One of them is over.
    fewer: OnceCell<Box<Notify>>,
}

/// Replays that have not begun: by shard, in the order of their subscriptions.
#[derive(Default)]
pub struct Expected(BTreeMap<ShardId, ReplaysOfShard>);

type ReplaysOfShard = Vec<(Rc<Subscription>, Rc<Replay>)>;

/// One subscription's replay in one shard.
struct Replay {
    number: u64,
    shard: ShardId,
    subscription: Rc<Subscription>,
    /// Topics that came live since the filter began to match, up to the view of the first page.
    early: RefCell<HashSet<Box<str>>>,
    /// Topics that came live since the last page was asked for.
    recent: RefCell<HashSet<Box<str>>>,
    /// A page was asked for: one that waits for its turn notes nothing yet.
    has_asked: Cell<bool>,
    /// More came than are noted.
    has_lost_recent: Cell<bool>,
    /// The first page shows everything up to here.
    bound: Cell<Option<Offset>>,
}

impl Replay {
    /// A page is about to be read: what came live before is shown by it.
    fn asks(&self) {
        self.recent.borrow_mut().clear();
        self.has_asked.set(true);
        self.has_lost_recent.set(false);
    }

    /// `bounded`: beyond, the page is read again.
    fn note_recent(&self, topic: &str) {
        let mut recent = self.recent.borrow_mut();
        if !self.has_asked.get() || recent.contains(topic) {
            return;
        }
        match recent.len() < RECENT_MAX {
            true => drop(recent.insert(topic.into())),
            false => self.has_lost_recent.set(true),
        }
    }
}

impl Replays {
    /// A retained message was delivered live.
    pub fn delivered(&self, shard: ShardId, offset: Offset, topic: &str) {
        let running = self.running.borrow();
        let of_shard = running.range((shard, 0)..=(shard, u64::MAX)).map(|(_, replay)| replay);
        for replay in of_shard.filter(|replay| matches(&replay.subscription.filter, topic)) {
            if replay.bound.get().is_none_or(|bound| offset <= bound) {
                self.note(&replay.early, topic);
            }
            replay.note_recent(topic);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.running.borrow().is_empty()
    }

    /// The subscription was not taken.
    pub fn cancel(&self, expected: Expected) {
        for (_, replay) in expected.0.into_values().flatten() {
            self.forget(&replay);
        }
    }

    /// `bounded`: beyond, a topic may be delivered once more, with the same message.
    fn note(&self, topics: &RefCell<HashSet<Box<str>>>, topic: &str) {
        if self.noted.get() < TOPICS_MAX && !topics.borrow().contains(topic) {
            topics.borrow_mut().insert(topic.into());
            self.noted.set(self.noted.get() + 1);
        }
    }

    fn clear(&self, topics: &RefCell<HashSet<Box<str>>>) {
        let cleared = std::mem::take(&mut *topics.borrow_mut());
        self.noted.set(self.noted.get() - cleared.len());
    }

    fn begin(&self, shard: ShardId, subscription: Rc<Subscription>) -> Rc<Replay> {
        let number = self.next.get();
        self.next.set(number + 1);
        let replay = Rc::new(Replay {
            number,
            shard,
            subscription,
            early: RefCell::default(),
            recent: RefCell::default(),
            has_asked: Cell::new(false),
            has_lost_recent: Cell::new(false),
            bound: Cell::new(None),
        });
        self.running.borrow_mut().insert((shard, number), replay.clone());
        replay
    }

    fn forget(&self, replay: &Replay) {
        if self
            .running
            .borrow_mut()
            .remove(&(replay.shard, replay.number))
            .is_some()
        {
            self.clear(&replay.early);
        }
        if let Some(fewer) = self.fewer.get() {
            fewer.notify_waiters();
        }
    }
}

impl Worker {
    /// Waits until nothing is on its way here that was acknowledged before this call, in the shards that the
    /// subscriptions concern; whether that is so. A shard whose leader is gone has another within P10's time.
    pub(super) async fn catch_up(self: &Rc<Self>, filters: &[&str]) -> bool {
        let mut shards = HashSet::new();
        for filter in filters {
            shards.extend(self.cluster.shards().shards_of(filter));
            if shards.len() == usize::from(self.cluster.shards().shard_count()) {
                break;
            }
        }
        if shards.is_empty() {
            return true;
        }
        let cluster = self.cluster.clone();
        let caught_up = self
            .runtime
            .spawn(async move { cluster.catch_up(shards.into_iter().collect(), CATCH_UP_MAX).await });
        if !caught_up.await.unwrap_or(false) {
            return false;
        }
        self.hub.processed(self.id).await;
        true
    }

    /// `bounded`: waits until few of the replays of earlier SUBSCRIBEs are left, or the client is gone.
    pub(super) async fn wait_for_replays(&self, client: &Client) {
        loop {
            let fewer = client.replays.fewer.get_or_init(Box::default).notified();
            let are_few = client.replays.running.borrow().len() <= REPLAYS_MAX;
            if are_few || !client.connection.borrow().is_connected() {
                return;
            }
            fewer.await;
        }
    }

    /// Notes from now on what comes live that replays for the subscriptions would show too: before their filters match.
    pub(super) fn expect_replays(&self, client: &Client, subscriptions: Vec<Subscription>) -> Expected {
        let mut expected = Expected::default();
        for subscription in subscriptions.into_iter().map(Rc::new) {
            for shard in self.cluster.shards().shards_of(&subscription.filter) {
                let replay = client.replays.begin(shard, subscription.clone());
                expected
                    .0
                    .entry(shard)
                    .or_default()
                    .push((subscription.clone(), replay));
            }
        }
        expected
    }

    /// Begins to send the retained messages of subscriptions: a task for each shard, which takes one after the other.
    /// [MQTT-3.8.4-4]
    pub(super) fn replay_retained(self: &Rc<Self>, client: &Rc<Client>, expected: Expected) {
        for (shard, replays) in expected.0 {
            let (worker, client) = (self.clone(), client.clone());
            tokio::task::spawn_local(async move { worker.run_replays(&client, shard, replays).await });
        }
    }

    async fn run_replays(self: &Rc<Self>, client: &Rc<Client>, shard: ShardId, replays: ReplaysOfShard) {
        let cluster = self.cluster.clone();
        // One view for all of them: it is as new as the last of the subscriptions.
        let view = self.runtime.spawn(async move {
            let applied = cluster.read_index(shard).await;
            (applied, cluster.retains_nothing(shard, applied).await)
        });
        let Ok((applied, is_empty)) = view.await else { return };
        for (subscription, replay) in replays {
            if !is_empty {
                self.run_replay(client, &replay, &subscription, applied).await;
            }
            client.replays.forget(&replay);
        }
    }

    async fn run_replay(
        self: &Rc<Self>,
        client: &Rc<Client>,
        replay: &Replay,
        subscription: &Subscription,
        applied: u64,
    ) {
        let shard = replay.shard;
        let mut after = None;
        loop {
            self.wait_for_room(client).await;
            if !self.is_wanted(client, subscription) {
                return;
            }
            replay.asks();
            let request = RetainedRequest {
                shard,
                filter: subscription.filter.clone(),
                after: after.clone(),
                applied,
                limits: PageLimits {
                    entries: PAGE_MESSAGES,
                    bytes: PAGE_BYTES,
                },
            };
            let Some(page) = self.read_delivered(client, request).await else {
                return;
            };
            if replay.bound.get().is_none() {
                replay.bound.set(Some(page.upto));
            }
            if !self.is_wanted(client, subscription) {
                return;
            }
            if replay.has_lost_recent.get() {
                // What came live meanwhile may be newer than what the page shows (P5): it is read again.
                continue;
            }
            let RetainedPage { messages, next, .. } = page;
            for retained in messages {
                self.deliver_retained(client, replay, subscription, retained);
            }
            client.wake.notify_one();
            match next {
                Some(topic) => after = Some(topic),
                None => return,
            }
        }
    }

    /// Reads a page, and waits until everything that it shows was delivered here.
    async fn read_delivered(self: &Rc<Self>, client: &Rc<Client>, request: RetainedRequest) -> Option<RetainedPage> {
        let cluster = self.cluster.clone();
        let shard = request.shard;
        let reading = self.runtime.spawn(async move {
            let page = cluster.read_retained(request).await?;
            while !cluster.handed_over(shard, page.upto, HANDED_OVER_WAIT).await {}
            Ok::<_, std::io::Error>(page)
        });
        match reading.await {
            Ok(Ok(page)) => {
                self.hub.processed(self.id).await;
                Some(page)
            }
            Ok(Err(error)) => {
                tracing::error!(shard = shard.0, %error, "retained messages cannot be read");
                client
                    .connection
                    .borrow_mut()
                    .close(ReasonCode::UNSPECIFIED_ERROR, None);
                client.wake.notify_one();
                None
            }
            // The runtime is shutting down.
            Err(_) => None,
        }
    }

    /// What `$SYS` tells now, to new subscriptions, as if it was retained: after SUBACK, which this task is about to write.
    /// `bounded`: a client that lets messages wait is told with all others, after the interval.
    pub(super) fn tell_sys(self: &Rc<Self>, client: &Rc<Client>, subscriptions: Vec<Subscription>) {
        let Some(sys) = self.sys.clone().filter(|_| !subscriptions.is_empty()) else {
            return;
        };
        let (worker, client) = (self.clone(), client.clone());
        tokio::task::spawn_local(async move {
            let messages = sys.messages();
            for subscription in subscriptions.iter().filter(|one| worker.is_wanted(&client, one)) {
                let mut protocol = client.connection.borrow_mut();
                let connection = &mut *protocol;
                for message in messages.iter().filter(|one| matches(&subscription.filter, &one.topic)) {
                    if !connection.outbound.wants_page(&connection.out) {
                        connection.effects.dropped.push(Drop::OutboxFull);
                        continue;
                    }
                    let delivery = Delivery {
                        message: message.clone(),
                        qos: 0,
                        retain: true,
                        subscription_identifiers: subscription.identifier.into_iter().collect(),
                        age: None,
                        settle: None,
                    };
                    connection
                        .outbound
                        .replay(delivery, &mut connection.out, &mut connection.effects);
                }
            }
            client.wake.notify_one();
        });
    }

    fn is_wanted(&self, client: &Client, subscription: &Subscription) -> bool {
        client.connection.borrow().is_connected() && client.has_filter(&subscription.filter)
    }

    /// Until the client has taken most of what it was sent: `bounded`, and its live messages come in between.
    async fn wait_for_room(self: &Rc<Self>, client: &Rc<Client>) {
        loop {
            let room = client.room.get_or_init(Box::default).notified();
            {
                let connection = client.connection.borrow();
                if !connection.is_connected() || connection.outbound.wants_page(&connection.out) {
                    return;
                }
            }
            room.await;
        }
    }

    fn deliver_retained(
        self: &Rc<Self>,
        client: &Rc<Client>,
        replay: &Replay,
        subscription: &Subscription,
        retained: RetainedMessage,
    ) {
        let topic = &retained.message.topic;
        let is_newer = replay.bound.get().is_some_and(|bound| retained.offset > bound);
        if is_newer || replay.early.borrow().contains(topic) || replay.recent.borrow().contains(topic) {
            return;
        }
        let mut protocol = client.connection.borrow_mut();
        let Some(served) = protocol.served else { return };
        if subscription.no_local && retained.message.publisher == served.session {
            return; // [MQTT-3.8.3-3]
        }
        let Some(message) = aged(&retained, self.cluster.log_time(replay.shard)) else {
            return;
        };
        let delivery = Delivery {
            qos: subscription.qos.min(message.qos),
            message,
            retain: true, // [MQTT-3.3.1-8]
            subscription_identifiers: subscription.identifier.into_iter().collect(),
            age: None,
            settle: None,
        };
        let connection = &mut *protocol;
        connection
            .outbound
            .replay(delivery, &mut connection.out, &mut connection.effects);
    }
}

/// The message with what is left of its expiry interval; none if nothing is. [MQTT-3.3.2-6]
fn aged(retained: &RetainedMessage, now: LogTime) -> Option<Arc<Message>> {
    let Some(interval) = retained.message.expiry_interval else {
        return Some(retained.message.clone());
    };
    let left = retained
        .appended_at
        .plus_seconds(interval)
        .0
        .checked_sub(now.0)
        .filter(|left| *left > 0)?;
    Some(Arc::new(Message {
        expiry_interval: Some(left.div_ceil(1000) as u32),
        ..Message::clone(&retained.message)
    }))
}

/// A page fits an outbox.
const PAGE_MESSAGES: u32 = 64;
const PAGE_BYTES: u32 = 128 * 1024;
/// Noted for one connection: some megabytes.
const TOPICS_MAX: usize = 100_000;
/// Noted while one page is read.
const RECENT_MAX: usize = 10_000;
/// Beyond, a client's next SUBSCRIBE waits: as many filters of all shards are taken in a second.
const REPLAYS_MAX: usize = 1_000;
const CATCH_UP_MAX: Duration = Duration::from_secs(10);
const HANDED_OVER_WAIT: Duration = Duration::from_secs(1);
