//! QoS 2 load whose clients lose their connection at every point of the exchange, by themselves or with their node.
//!
//!     Publisher                       any node   any node                      Subscriber
//!       PUBLISH ─(PublishSent)──────────▶           ├──PUBLISH ─(PublishLost)─ taken ─(PublishTaken)
//!       taken ─(PubrecLost)──── PUBREC ─┤           ◀──────── PUBREC ─(PubrecSent)
//!       (PubrecTaken)─ PUBREL ─(PubrelSent)▶        ├── PUBREL ─(PubrelLost)─ taken ─(PubrelTaken)
//!       over ─(PubcompLost)─── PUBCOMP ─┤           ◀──────── PUBCOMP ─(PubcompSent)
//!
//! `…Lost`: the packet came, and the client was gone before it took it in. What a client took in survives its connections:
//! [`Sender`] and [`Receiver`], sans-io, which also say what a server did wrong. The next connection goes to any node.

use super::checker::{self, Consumer, Delivery, History, Message, MessageId, Outcome, Producer, Verdict, Violation};
use super::client::{Client, Gone};
use super::codec::{self, Connect, Packet, Publish, RECEIVE_MAXIMUM, VERSIONS, Value, Version};
use super::load::{self, KeepAlive, Plan, SESSION_LOST, TOPICS, payload, topic_ending};
use super::random::Random;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};

/// Where in an exchange a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    PublishSent,
    PubrecLost,
    PubrecTaken,
    PubrelSent,
    PubcompLost,
    PublishLost,
    PublishTaken,
    PubrecSent,
    PubrelLost,
    PubrelTaken,
    PubcompSent,
}

/// A publisher's first, then a subscriber's.
pub const POINTS: [Point; 11] = [
    Point::PublishSent,
    Point::PubrecLost,
    Point::PubrecTaken,
    Point::PubrelSent,
    Point::PubcompLost,
    Point::PublishLost,
    Point::PublishTaken,
    Point::PubrecSent,
    Point::PubrelLost,
    Point::PubrelTaken,
    Point::PubcompSent,
];

/// A publisher's half of its exchanges. [MQTT-4.3.3-1] to [MQTT-4.3.3-7]
#[derive(Debug, Default)]
pub struct Sender {
    /// Oldest first.
    exchanges: VecDeque<Exchange>,
    /// Packet identifiers whose answer is due on this connection, in the order of what they answer.
    pubrecs_due: VecDeque<u16>,
    pubcomps_due: VecDeque<u16>,
}

#[derive(Debug)]
struct Exchange {
    pid: u16,
    sequence: usize,
    /// PUBREC was taken in.
    released: bool,
    pubrels: u32,
}

/// What PUBREC means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// PUBREL is next.
    Release(usize),
    Refused(usize, u8),
}

/// What a new connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    Publish { pid: u16, sequence: usize },
    Pubrel { pid: u16 },
}

impl Sender {
    pub fn len(&self) -> usize {
        self.exchanges.len()
    }

    pub fn is_empty(&self) -> bool {
        self.exchanges.is_empty()
    }

    /// A new message leaves; under the lowest free identifier, so that identifiers mean new messages all the time.
    pub fn publish(&mut self, sequence: usize) -> u16 {
        let is_free = |pid: &u16| self.exchanges.iter().all(|exchange| exchange.pid != *pid);
        let pid = (1..).find(is_free).expect("fewer than 65,535 exchanges");
        self.exchanges.push_back(Exchange {
            pid,
            sequence,
            released: false,
            pubrels: 0,
        });
        self.pubrecs_due.push_back(pid);
        pid
    }

    /// PUBREL leaves.
    pub fn pubrel(&mut self, pid: u16) {
        self.pubcomps_due.push_back(pid);
        let exchange = self.exchanges.iter_mut().find(|exchange| exchange.pid == pid);
        exchange.expect("an exchange").pubrels += 1;
    }

    /// A new connection of the same session: what leaves first, in order. [MQTT-4.4.0-1]
    pub fn resume(&mut self) -> Vec<Again> {
        self.pubrecs_due.clear();
        self.pubcomps_due.clear();
        let mut again = Vec::new();
        for exchange in &self.exchanges {
            let pid = exchange.pid;
            again.push(match exchange.released {
                true => Again::Pubrel { pid },
                false => Again::Publish {
                    pid,
                    sequence: exchange.sequence,
                },
            });
            if !exchange.released {
                self.pubrecs_due.push_back(pid);
            }
        }
        again
    }

    /// # Errors
    /// What the server did wrong. [MQTT-4.6.0-3]
    pub fn pubrec(&mut self, pid: u16, code: u8) -> Result<Recorded, String> {
        if self.pubrecs_due.pop_front() != Some(pid) {
            return Err(format!("PUBREC {pid} for nothing, or it overtook others"));
        }
        let position = self.exchanges.iter().position(|exchange| exchange.pid == pid);
        let position = position.expect("what is due is open");
        let sequence = self.exchanges[position].sequence;
        match code {
            NO_MATCHING_SUBSCRIBERS => Err("PUBREC 0x10, but there are subscribers".into()),
            0..0x80 => {
                self.exchanges[position].released = true;
                Ok(Recorded::Release(sequence))
            }
            refused => {
                self.exchanges.remove(position);
                Ok(Recorded::Refused(sequence, refused))
            }
        }
    }

    /// Returns the message whose exchange is over.
    ///
    /// # Errors
    /// What the server did wrong.
    pub fn pubcomp(&mut self, pid: u16, code: u8) -> Result<usize, String> {
        if self.pubcomps_due.pop_front() != Some(pid) {
            return Err(format!("PUBCOMP {pid} for nothing, or it overtook others"));
        }
        let position = self.exchanges.iter().position(|exchange| exchange.pid == pid);
        let exchange = self
            .exchanges
            .remove(position.expect("what is due is open"))
            .expect("found there");
        match code {
            0 => Ok(exchange.sequence),
            // The PUBCOMP of an earlier PUBREL was lost.
            PACKET_IDENTIFIER_NOT_FOUND if exchange.pubrels > 1 => Ok(exchange.sequence),
            wrong => Err(format!("PUBCOMP {pid} with {wrong:#04x} for its first PUBREL")),
        }
    }
}

/// A subscriber's half of its exchanges, and what it ever saw of them. [MQTT-4.3.3-8] to [MQTT-4.3.3-13]
#[derive(Debug, Default)]
pub struct Receiver {
    /// The client's own state: PUBLISH taken in, PUBREL not yet.
    held: BTreeSet<u16>,
    /// Identifiers from their PUBLISH until the PUBCOMP left: the server must not use them for another message.
    open: BTreeMap<u16, Open>,
    seen: HashMap<MessageId, Seen>,
    connection: u32,
    receive_maximum: Option<usize>,
    /// PUBLISH packets of this connection without PUBCOMP. [MQTT-3.3.4-9]
    in_flight: BTreeSet<u16>,
    /// PUBRECs of this connection whose PUBREL has not come, in order. [MQTT-4.6.0-4]
    pubrels_due: VecDeque<u16>,
}

#[derive(Debug)]
struct Open {
    message: MessageId,
    pubrec_left: bool,
}

#[derive(Debug)]
struct Seen {
    pid: u16,
    connection: u32,
    pubrel: bool,
}

impl Receiver {
    pub fn new(receive_maximum: Option<usize>) -> Receiver {
        Receiver {
            receive_maximum,
            ..Receiver::default()
        }
    }

    /// Exchanges that are not over.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    pub fn connected(&mut self) {
        self.connection += 1;
        self.in_flight.clear();
        self.pubrels_due.clear();
    }

    /// A PUBLISH came, whether or not the client lives to take it in.
    ///
    /// # Errors
    /// What the server did wrong.
    pub fn sees_publish(&mut self, message: MessageId, pid: u16, dup: bool) -> Result<(), String> {
        let mut wrong = Vec::new();
        if let Some(seen) = self.seen.get(&message) {
            if seen.pid != pid {
                wrong.push(format!("under {pid}, before under {}", seen.pid));
            }
            if !dup {
                wrong.push("again, without DUP".into());
            }
            if seen.connection == self.connection {
                wrong.push("twice on one connection".into());
            }
            if seen.pubrel {
                wrong.push("after its PUBREL".into());
            }
        }
        if let Some(open) = self.open.get(&pid)
            && open.message != message
        {
            wrong.push(format!("under {pid}, which is {:?} and not over", open.message));
        }
        self.open.entry(pid).or_insert(Open {
            message,
            pubrec_left: false,
        });
        let pubrel = self.seen.get(&message).is_some_and(|seen| seen.pubrel);
        let connection = self.connection;
        self.seen.insert(
            message,
            Seen {
                pid,
                connection,
                pubrel,
            },
        );
        self.in_flight.insert(pid);
        if self
            .receive_maximum
            .is_some_and(|maximum| self.in_flight.len() > maximum)
        {
            wrong.push(format!("{} in flight", self.in_flight.len()));
        }
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(format!("{message:?} came {}", wrong.join("; "))),
        }
    }

    /// Takes the PUBLISH in; whether it is handed over: not if it is one that waits for its PUBREL. [MQTT-4.3.3-10]
    pub fn take(&mut self, pid: u16) -> bool {
        self.held.insert(pid)
    }

    pub fn pubrec_leaves(&mut self, pid: u16) {
        if let Some(open) = self.open.get_mut(&pid) {
            open.pubrec_left = true;
        }
        self.pubrels_due.push_back(pid);
    }

    /// A PUBREL came. One for an exchange that is over is no fault: its PUBCOMP was lost.
    ///
    /// # Errors
    /// What the server did wrong.
    pub fn sees_pubrel(&mut self, pid: u16) -> Result<(), String> {
        let overtook = match self.pubrels_due.iter().position(|due| *due == pid) {
            Some(position) => {
                self.pubrels_due.remove(position);
                position
            }
            None => 0,
        };
        let Some(open) = self.open.get(&pid) else {
            return Ok(());
        };
        if let Some(seen) = self.seen.get_mut(&open.message) {
            seen.pubrel = true;
        }
        match (open.pubrec_left, overtook) {
            (false, _) => Err(format!("PUBREL {pid} before its PUBREC")),
            (true, 0) => Ok(()),
            (true, others) => Err(format!("PUBREL {pid} overtook {others} others")),
        }
    }

    /// Takes the PUBREL in.
    pub fn release(&mut self, pid: u16) {
        self.held.remove(&pid);
    }

    pub fn pubcomp_leaves(&mut self, pid: u16) {
        self.open.remove(&pid);
        self.in_flight.remove(&pid);
    }
}

/// A client that stands still at a point of its exchange until this is dropped. Then it loses its connection.
pub struct Held {
    pub client: String,
    /// Index of the address that it is connected to.
    pub node: usize,
    _release: oneshot::Sender<()>,
}

pub struct Load {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    addresses: Vec<String>,
    tag: String,
    started: Instant,
    history: Mutex<History>,
    recorded: AtomicU64,
    completed: AtomicU64,
    subscribed: AtomicUsize,
    producing: AtomicUsize,
    stop_producing: AtomicBool,
    stop_consuming: AtomicBool,
    /// Exchanges that are not over, by consumer.
    open: Vec<AtomicUsize>,
    armed: Mutex<Option<(Point, oneshot::Sender<Held>)>>,
    ends: Mutex<BTreeMap<Point, Ends>>,
    slowest: Mutex<Duration>,
}

/// How often a connection ended at a point.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ends {
    /// By the client.
    pub cuts: u32,
    /// Held for a fault.
    pub held: u32,
}

/// Subscribers: everything; wildcards; parts and few at a time; overlapping filters, each message still once.
const FILTERS: [(&str, Version, &[&str], Option<u16>); 4] = [
    ("all", Version::V5, &["#"], None),
    ("levels", Version::V311, &["+/a", "+/b"], None),
    ("narrow", Version::V5, &["3/#", "5/c", "7/+"], Some(4)),
    ("overlap", Version::V311, &["+/c", "#"], None),
];

impl Load {
    /// Starts subscribers, waits until each has its SUBACK, then starts publishers.
    pub async fn start(addresses: &[&str], tag: &str, random: &mut Random) -> Load {
        let shared = Arc::new(Shared {
            addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
            tag: tag.into(),
            started: Instant::now(),
            history: Mutex::default(),
            recorded: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            subscribed: AtomicUsize::new(0),
            producing: AtomicUsize::new(PUBLISHERS),
            stop_producing: AtomicBool::new(false),
            stop_consuming: AtomicBool::new(false),
            open: FILTERS.iter().map(|_| AtomicUsize::new(0)).collect(),
            armed: Mutex::default(),
            ends: Mutex::default(),
            slowest: Mutex::default(),
        });
        let mut tasks = Vec::new();
        for (index, (name, version, filters, receive_maximum)) in FILTERS.into_iter().enumerate() {
            let name = format!("{tag}-{name}");
            let filters: Vec<String> = filters.iter().map(|filter| format!("{tag}/{filter}")).collect();
            shared.history.lock().expect("no panic").consumers.push(Consumer {
                name: name.clone(),
                filters: filters.clone(),
                ..Consumer::default()
            });
            let mut connect = Connect::persistent(version, &name).keep_alive(KEEP_ALIVE);
            if let Some(maximum) = receive_maximum {
                connect = connect.property(RECEIVE_MAXIMUM, Value::Two(maximum));
            }
            let task = Subscriber {
                shared: shared.clone(),
                index,
                connect,
                filters,
                receiver: Receiver::new(receive_maximum.map(usize::from)),
                random: random.fork(),
            };
            tasks.push(tokio::spawn(task.run()));
        }
        super::eventually("all subscribers subscribed", super::START, || async {
            (shared.subscribed.load(Ordering::SeqCst) == FILTERS.len()).then_some(())
        })
        .await;
        for index in 0..PUBLISHERS {
            let mut history = shared.history.lock().expect("no panic");
            history.producers.push(Producer::default());
            let version = VERSIONS[index % 2];
            let task = Publisher {
                shared: shared.clone(),
                index,
                connect: Connect::persistent(version, &format!("{tag}-publisher-{index}")).keep_alive(KEEP_ALIVE),
                sender: Sender::default(),
                had_session: false,
                random: random.fork(),
            };
            tasks.push(tokio::spawn(task.run()));
        }
        Load { shared, tasks }
    }

    /// Messages whose PUBREC came.
    pub fn recorded(&self) -> u64 {
        self.shared.recorded.load(Ordering::SeqCst)
    }

    /// Time since the start of the load, as in the history.
    pub fn now(&self) -> Duration {
        self.shared.started.elapsed()
    }

    pub async fn records_more(&self, more: u64, limit: Duration) {
        let target = self.recorded() + more;
        super::eventually(&format!("{more} more messages recorded"), limit, || async {
            let ended = self.tasks.iter().any(JoinHandle::is_finished);
            assert!(!ended, "a client of the load panicked");
            (self.recorded() >= target).then_some(())
        })
        .await;
    }

    /// The next client that comes to `point`.
    pub async fn client_at(&self, point: Point) -> Held {
        let (sender, receiver) = oneshot::channel();
        *self.shared.armed.lock().expect("no panic") = Some((point, sender));
        tokio::time::timeout(super::START, receiver)
            .await
            .unwrap_or_else(|_| panic!("no client came to {point:?}"))
            .expect("not armed twice")
    }

    pub fn ends(&self) -> BTreeMap<Point, Ends> {
        self.shared.ends.lock().expect("no panic").clone()
    }

    /// From the first PUBLISH of a message to its PUBCOMP.
    pub fn slowest(&self) -> Duration {
        *self.shared.slowest.lock().expect("no panic")
    }

    /// Stops sending and cutting, waits until every exchange is over and nothing is owed (or nothing has moved for
    /// `patience`), and returns the history.
    pub async fn drain(self, patience: Duration) -> History {
        let shared = &self.shared;
        shared.stop_producing.store(true, Ordering::SeqCst);
        let open = || {
            shared
                .open
                .iter()
                .map(|open| open.load(Ordering::SeqCst))
                .sum::<usize>()
        };
        let (mut last, mut moved) = ((0, 0, 0), Instant::now());
        while moved.elapsed() < patience {
            let producing = shared.producing.load(Ordering::SeqCst);
            let state = (shared.owed(), open(), producing);
            if state == (0, 0, 0) {
                break;
            }
            if state != last {
                (last, moved) = (state, Instant::now());
            }
            sleep(Duration::from_millis(100)).await;
        }
        shared.stop_consuming.store(true, Ordering::SeqCst);
        let unfinished = shared.producing.load(Ordering::SeqCst);
        let still_open = open();
        for task in self.tasks {
            let abort = task.abort_handle();
            match tokio::time::timeout(patience, task).await {
                Ok(ended) => ended.expect("no client of the load panics"),
                Err(_) => abort.abort(),
            }
        }
        let mut history = std::mem::take(&mut *shared.history.lock().expect("no panic"));
        if unfinished > 0 {
            let what = format!("{unfinished} publishers had no PUBREC or PUBCOMP for {patience:?} after the faults");
            history.producers[0].misbehaved.push(what);
        }
        if still_open > 0 {
            let what = format!("{still_open} exchanges of subscribers were not over {patience:?} after the faults");
            history.consumers[0].misbehaved.push(what);
        }
        history
    }
}

/// Prints the counts of a run and returns what the checkers found.
pub fn judge(test: &str, history: &History) -> Vec<Violation> {
    let mut violations = load::judge(test, history);
    let twice = checker::twice(history);
    print!("{}", Verdict(&twice));
    let deliveries: usize = history.consumers.iter().map(|consumer| consumer.deliveries.len()).sum();
    println!("{test}: {deliveries} delivered, {} of them twice", twice.len());
    violations.extend(twice);
    violations
}

/// Why a client has no connection any more.
enum End {
    /// It ended it at a point.
    Cut,
    Gone(Gone),
}

impl From<Gone> for End {
    fn from(gone: Gone) -> End {
        End::Gone(gone)
    }
}

impl Shared {
    /// A client comes to a point: it goes on, or its connection ends here.
    async fn at(&self, point: Point, client: &str, node: usize, random: &mut Random) -> Result<(), End> {
        let armed = {
            let mut armed = self.armed.lock().expect("no panic");
            let is_here = armed.as_ref().is_some_and(|(wanted, _)| *wanted == point);
            if is_here { armed.take() } else { None }
        };
        if let Some((_, found)) = armed {
            let (release, released) = oneshot::channel();
            let held = Held {
                client: client.into(),
                node,
                _release: release,
            };
            if found.send(held).is_ok() {
                // Dropped, never sent.
                released.await.ok();
                self.ended(point, |ends| ends.held += 1);
                return Err(End::Cut);
            }
        }
        let cuts = !self.stop_producing.load(Ordering::SeqCst) && random.below(CUT_ONE_IN) == 0;
        if cuts {
            self.ended(point, |ends| ends.cuts += 1);
            return Err(End::Cut);
        }
        Ok(())
    }

    fn ended(&self, point: Point, count: impl FnOnce(&mut Ends)) {
        count(self.ends.lock().expect("no panic").entry(point).or_default());
    }

    /// One attempt at any node but the `lost` one; on failure waits a moment, so that a dead cluster is not hammered.
    async fn connect(
        &self,
        connect: &Connect,
        random: &mut Random,
        lost: &mut Option<usize>,
    ) -> Option<(Client, bool, usize)> {
        let others: Vec<usize> = (0..self.addresses.len()).filter(|node| Some(*node) != *lost).collect();
        let node = *random.pick(if others.is_empty() { &[0] } else { &others });
        let connected = Client::try_connect(&self.addresses[node], connect, CONNECT_WITHIN).await;
        if let Ok((
            client,
            Packet::Connack {
                code: 0,
                session_present,
                ..
            },
        )) = connected
        {
            return Some((client, session_present, node));
        }
        *lost = Some(node);
        sleep(Duration::from_millis(50 + random.below(100) as u64)).await;
        None
    }

    fn owed(&self) -> usize {
        let history = self.history.lock().expect("no panic");
        let owed = |consumer| checker::owed(&history, consumer);
        history.consumers.iter().map(owed).sum()
    }
}

struct Publisher {
    shared: Arc<Shared>,
    index: usize,
    connect: Connect,
    sender: Sender,
    had_session: bool,
    random: Random,
}

impl Publisher {
    async fn run(mut self) {
        let mut lost = None;
        while !self.finished() {
            let Some((client, present, node)) = self.shared.connect(&self.connect, &mut self.random, &mut lost).await
            else {
                continue;
            };
            if !present && self.had_session {
                self.complain(SESSION_LOST.into());
            }
            self.had_session = true;
            lost = match self.serve(client, node).await {
                Ok(()) | Err(End::Cut) => None,
                Err(End::Gone(Gone::Wrong(what))) => {
                    self.complain(what);
                    None
                }
                Err(End::Gone(_)) => Some(node),
            };
        }
        self.shared.producing.fetch_sub(1, Ordering::SeqCst);
    }

    fn finished(&self) -> bool {
        self.sender.is_empty() && self.shared.stop_producing.load(Ordering::SeqCst)
    }

    async fn serve(&mut self, mut client: Client, node: usize) -> Result<(), End> {
        for again in self.sender.resume() {
            match again {
                Again::Publish { pid, sequence } => {
                    self.send_publish(&mut client, node, pid, sequence, true).await?;
                }
                Again::Pubrel { pid } => self.send_pubrel(&mut client, node, pid).await?,
            }
        }
        let mut pace = interval(Duration::from_secs(1) / RATE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut keep_alive = KeepAlive::new(&Plan::default());
        while !self.finished() {
            tokio::select! {
                packet = client.packet() => match packet? {
                    Packet::Pubrec { pid, code } => self.pubrec(&mut client, node, pid, code).await?,
                    Packet::Pubcomp { pid, code } => {
                        self.at(Point::PubcompLost, node).await?;
                        self.pubcomp(pid, code);
                    }
                    Packet::Pingresp => keep_alive.answered(),
                    Packet::Disconnect { code, .. } => {
                        return Err(Gone::Closed(format!("DISCONNECT {code:#04x}")).into());
                    }
                    other => return Err(Gone::Wrong(format!("to a publisher: {other:?}")).into()),
                },
                _ = pace.tick() => {
                    if self.sender.len() < WINDOW && !self.shared.stop_producing.load(Ordering::SeqCst) {
                        self.publish_next(&mut client, node).await?;
                    }
                }
                alive = keep_alive.due() => {
                    alive?;
                    client.send(&codec::pingreq()).await?;
                }
            }
        }
        client.send(&codec::disconnect()).await?;
        Ok(())
    }

    async fn publish_next(&mut self, client: &mut Client, node: usize) -> Result<(), End> {
        let topic = format!("{}{}", self.shared.tag, topic_ending(self.random.below(TOPICS)));
        let first_sent = self.shared.started.elapsed();
        let sequence = self.log(|producer| {
            producer.messages.push(Message {
                topic,
                sends: 0,
                outcome: Outcome::Open,
                first_sent,
                acknowledged: None,
            });
            producer.messages.len() - 1
        });
        let pid = self.sender.publish(sequence);
        self.send_publish(client, node, pid, sequence, false).await
    }

    async fn send_publish(
        &mut self,
        client: &mut Client,
        node: usize,
        pid: u16,
        sequence: usize,
        dup: bool,
    ) -> Result<(), End> {
        let topic = self.log(|producer| {
            let message = &mut producer.messages[sequence];
            message.sends += 1;
            message.topic.clone()
        });
        let publish = Publish {
            pid,
            dup,
            ..Publish::new(&topic, payload(self.index, sequence, &topic), 2)
        };
        client.send(&publish.encode(client.version)).await?;
        self.at(Point::PublishSent, node).await
    }

    async fn send_pubrel(&mut self, client: &mut Client, node: usize, pid: u16) -> Result<(), End> {
        self.sender.pubrel(pid);
        client.send(&codec::pubrel(pid)).await?;
        self.at(Point::PubrelSent, node).await
    }

    async fn pubrec(&mut self, client: &mut Client, node: usize, pid: u16, code: u8) -> Result<(), End> {
        self.at(Point::PubrecLost, node).await?;
        match self.sender.pubrec(pid, code) {
            Ok(Recorded::Release(sequence)) => {
                let now = self.shared.started.elapsed();
                self.log(|producer| {
                    producer.messages[sequence].outcome = Outcome::Acknowledged;
                    producer.messages[sequence].acknowledged = Some(now);
                });
                self.shared.recorded.fetch_add(1, Ordering::SeqCst);
                self.at(Point::PubrecTaken, node).await?;
                self.send_pubrel(client, node, pid).await
            }
            Ok(Recorded::Refused(sequence, code)) => {
                self.log(|producer| producer.messages[sequence].outcome = Outcome::Refused(code));
                Ok(())
            }
            Err(what) => Err(Gone::Wrong(what).into()),
        }
    }

    fn pubcomp(&mut self, pid: u16, code: u8) {
        match self.sender.pubcomp(pid, code) {
            Ok(sequence) => {
                let first_sent = self.log(|producer| producer.messages[sequence].first_sent);
                let took = self.shared.started.elapsed() - first_sent;
                let mut slowest = self.shared.slowest.lock().expect("no panic");
                *slowest = took.max(*slowest);
                self.shared.completed.fetch_add(1, Ordering::SeqCst);
            }
            Err(what) => self.complain(what),
        }
    }

    async fn at(&mut self, point: Point, node: usize) -> Result<(), End> {
        self.shared
            .at(point, &self.connect.client_id, node, &mut self.random)
            .await
    }

    fn complain(&self, what: String) {
        self.log(|producer| producer.misbehaved.push(what));
    }

    fn log<T>(&self, write: impl FnOnce(&mut Producer) -> T) -> T {
        write(&mut self.shared.history.lock().expect("no panic").producers[self.index])
    }
}

struct Subscriber {
    shared: Arc<Shared>,
    index: usize,
    connect: Connect,
    filters: Vec<String>,
    receiver: Receiver,
    random: Random,
}

impl Subscriber {
    async fn run(mut self) {
        let mut subscribed = false;
        let mut lost = None;
        while !self.shared.stop_consuming.load(Ordering::SeqCst) {
            let Some((client, present, node)) = self.shared.connect(&self.connect, &mut self.random, &mut lost).await
            else {
                continue;
            };
            self.receiver.connected();
            if subscribed && !present {
                self.complain(SESSION_LOST.into());
                // Subscribe again, so that one lost session is one violation and what it had lost.
                subscribed = false;
            }
            lost = match self.serve(client, node, &mut subscribed).await {
                Ok(()) | Err(End::Cut) => None,
                Err(End::Gone(Gone::Wrong(what))) => {
                    self.complain(what);
                    None
                }
                Err(End::Gone(_)) => Some(node),
            };
        }
    }

    async fn serve(&mut self, mut client: Client, node: usize, subscribed: &mut bool) -> Result<(), End> {
        if !*subscribed {
            let filters: Vec<(&str, u8)> = self.filters.iter().map(|filter| (filter.as_str(), 2)).collect();
            client
                .send(&codec::subscribe(client.version, SUBSCRIBE_ID, &filters))
                .await?;
        }
        let mut keep_alive = KeepAlive::new(&Plan::default());
        let mut look = interval(Duration::from_millis(100));
        while !self.shared.stop_consuming.load(Ordering::SeqCst) {
            tokio::select! {
                packet = client.packet() => match packet? {
                    Packet::Publish(publish) => self.publish(&mut client, node, publish).await?,
                    Packet::Pubrel { pid, .. } => self.pubrel(&mut client, node, pid).await?,
                    Packet::Suback { pid: SUBSCRIBE_ID, codes } => self.granted(&codes, subscribed),
                    Packet::Pingresp => keep_alive.answered(),
                    Packet::Disconnect { code, .. } => {
                        return Err(Gone::Closed(format!("DISCONNECT {code:#04x}")).into());
                    }
                    other => return Err(Gone::Wrong(format!("to a subscriber: {other:?}")).into()),
                },
                _ = look.tick() => {}
                alive = keep_alive.due() => {
                    alive?;
                    client.send(&codec::pingreq()).await?;
                }
            }
            self.shared.open[self.index].store(self.receiver.open(), Ordering::SeqCst);
        }
        client.send(&codec::disconnect()).await?;
        Ok(())
    }

    async fn publish(&mut self, client: &mut Client, node: usize, publish: Publish) -> Result<(), End> {
        let message = load::parse_payload(&publish);
        let Publish {
            topic,
            qos,
            retain,
            dup,
            pid,
            ..
        } = publish;
        let (Some(message), 2, false) = (message, qos, retain) else {
            return Err(Gone::Wrong(format!("QoS {qos}, retain {retain}, {message:?} on {topic}")).into());
        };
        if let Err(what) = self.receiver.sees_publish(message, pid, dup) {
            self.complain(what);
        }
        self.at(Point::PublishLost, node).await?;
        if self.receiver.take(pid) {
            let connection = self.receiver.connection;
            self.log(|consumer| {
                consumer.deliveries.push(Delivery {
                    message: Some(message),
                    topic,
                    dup,
                    connection,
                });
            });
        }
        self.at(Point::PublishTaken, node).await?;
        self.receiver.pubrec_leaves(pid);
        client.send(&codec::pubrec(pid)).await?;
        self.at(Point::PubrecSent, node).await
    }

    async fn pubrel(&mut self, client: &mut Client, node: usize, pid: u16) -> Result<(), End> {
        if let Err(what) = self.receiver.sees_pubrel(pid) {
            self.complain(what);
        }
        self.at(Point::PubrelLost, node).await?;
        self.receiver.release(pid);
        self.at(Point::PubrelTaken, node).await?;
        self.receiver.pubcomp_leaves(pid);
        client.send(&codec::pubcomp(pid)).await?;
        self.at(Point::PubcompSent, node).await
    }

    fn granted(&self, codes: &[u8], subscribed: &mut bool) {
        if codes.iter().any(|code| *code != 2) {
            return self.complain(format!("SUBACK {codes:?}"));
        }
        if !*subscribed {
            *subscribed = true;
            self.shared.subscribed.fetch_add(1, Ordering::SeqCst);
        }
    }

    async fn at(&mut self, point: Point, node: usize) -> Result<(), End> {
        self.shared
            .at(point, &self.connect.client_id, node, &mut self.random)
            .await
    }

    fn complain(&self, what: String) {
        self.log(|consumer| consumer.misbehaved.push(what));
    }

    fn log<T>(&self, write: impl FnOnce(&mut Consumer) -> T) -> T {
        write(&mut self.shared.history.lock().expect("no panic").consumers[self.index])
    }
}

const PUBLISHERS: usize = 6;
/// Exchanges of a publisher that are not over, at most.
const WINDOW: usize = 8;
/// Messages per second and publisher.
const RATE: u32 = 35;
/// At each point. Every client then cuts every few seconds: more often, and they would do little but connect.
const CUT_ONE_IN: usize = 1_200;
const SUBSCRIBE_ID: u16 = 1;
const KEEP_ALIVE: u16 = 10;
const CONNECT_WITHIN: Duration = Duration::from_secs(4);
const NO_MATCHING_SUBSCRIBERS: u8 = 0x10;
const PACKET_IDENTIFIER_NOT_FOUND: u8 = 0x92;
