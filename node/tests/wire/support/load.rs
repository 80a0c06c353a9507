//! Load for the fault tests: persistent QoS 1 consumers, and producers on all nodes, that reconnect to any node and keep
//! a history for the [`checker`](super::checker).
//!
//!     producer ──window of unacknowledged──▶ any node ──▶ consumer ──PUBACK at once──▶
//!        │ connection lost: another node; what is unacknowledged again, in order         │ likewise; Session Present or
//!        └ (DUP and the same ids if the session is still there)                          └ it is a violation
//!
//! Payloads say who sent them, in which order and to which topic, with a check sum.

use super::checker::{self, Consumer, Delivery, History, Message, MessageId, Outcome, Producer, Verdict, Violation};
use super::client::{Client, Gone};
use super::cluster::Cluster;
use super::codec::{self, Connect, Packet, Publish, Version};
use super::ledger::assert_conserved;
use super::random::Random;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};

/// How much load.
#[derive(Clone, Debug)]
pub struct Plan {
    pub producers: usize,
    /// Unacknowledged PUBLISH packets per producer.
    pub window: usize,
    /// Messages per second and producer, on average and at most; they come in bursts of three quarters of the window.
    pub rate: u32,
    /// Between two PINGREQ.
    pub ping_every: Duration,
    /// A server from which nothing came for so long is given up.
    pub answer_within: Duration,
    /// What each payload is filled up with.
    pub filling: usize,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            producers: 6,
            window: 20,
            rate: 150,
            ping_every: Duration::from_secs(2),
            answer_within: Duration::from_secs(8),
            filling: FILLING,
        }
    }
}

pub struct Load {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

/// A connection that was served: from its CONNACK until its client saw the end of it, or gave it up.
#[derive(Clone, Debug)]
pub struct Served {
    pub client: String,
    /// Index of the node's address.
    pub node: usize,
    pub from: Duration,
    pub until: Option<Duration>,
    /// The client itself ended it.
    pub by_choice: bool,
}

struct Shared {
    plan: Plan,
    addresses: Vec<String>,
    /// Distinguishes client ids and topics of several loads on one cluster.
    tag: String,
    started: Instant,
    history: Mutex<History>,
    connections: Mutex<Vec<Served>>,
    acknowledged: AtomicU64,
    subscribed: AtomicUsize,
    producing: AtomicUsize,
    stop_producing: AtomicBool,
    stop_consuming: AtomicBool,
    /// Every client goes to its home node, see [`Load::go_home`].
    homing: AtomicBool,
}

/// Consumers that are always there: everything; wildcards; parts; and overlapping filters, each message still once.
const FILTERS: [(&str, Version, &[&str]); 4] = [
    ("all", Version::V5, &["#"]),
    ("levels", Version::V311, &["+/a", "+/b"]),
    ("parts", Version::V5, &["3/#", "5/c", "7/+"]),
    ("overlap", Version::V311, &["+/c", "#"]),
];

impl Load {
    /// Starts consumers, waits until each has its SUBACK, then starts producers.
    pub async fn start(addresses: &[&str], tag: &str, plan: Plan, random: &mut Random) -> Load {
        let shared = Arc::new(Shared {
            addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
            tag: tag.into(),
            started: Instant::now(),
            history: Mutex::default(),
            connections: Mutex::default(),
            acknowledged: AtomicU64::new(0),
            subscribed: AtomicUsize::new(0),
            producing: AtomicUsize::new(plan.producers),
            stop_producing: AtomicBool::new(false),
            stop_consuming: AtomicBool::new(false),
            homing: AtomicBool::new(false),
            plan,
        });
        let mut tasks = Vec::new();
        for (index, (name, version, filters)) in FILTERS.into_iter().enumerate() {
            let name = format!("{tag}-{name}");
            let filters: Vec<String> = filters.iter().map(|filter| format!("{tag}/{filter}")).collect();
            shared.history.lock().expect("no panic").consumers.push(Consumer {
                name: name.clone(),
                filters: filters.clone(),
                ..Consumer::default()
            });
            let task = ConsumerTask {
                shared: shared.clone(),
                index,
                name,
                version,
                filters,
                random: random.fork(),
            };
            tasks.push(tokio::spawn(task.run()));
        }
        super::eventually("all consumers subscribed", super::START, || async {
            (shared.subscribed.load(Ordering::SeqCst) == FILTERS.len()).then_some(())
        })
        .await;
        for index in 0..shared.plan.producers {
            shared
                .history
                .lock()
                .expect("no panic")
                .producers
                .push(Producer::default());
            let task = ProducerTask::new(shared.clone(), index, random.fork());
            tasks.push(tokio::spawn(task.run()));
        }
        Load { shared, tasks }
    }

    /// The client ids of the consumers.
    pub fn consumers(&self) -> Vec<String> {
        FILTERS
            .iter()
            .map(|(name, _, _)| format!("{}-{name}", self.shared.tag))
            .collect()
    }

    /// Spreads the clients evenly over the nodes again, by their own choice, and waits until they are.
    pub async fn go_home(&self) {
        self.shared.homing.store(true, Ordering::SeqCst);
        super::eventually("all clients at home", super::START, || async {
            let connections = self.connections();
            let mut latest = std::collections::BTreeMap::new();
            for served in &connections {
                latest.insert(&served.client, (served.node, served.until.is_none()));
            }
            let homes = (0..self.shared.plan.producers)
                .map(|index| (format!("{}-producer-{index}", self.shared.tag), index))
                .chain(
                    self.consumers()
                        .into_iter()
                        .enumerate()
                        .map(|(index, name)| (name, index)),
                );
            homes
                .into_iter()
                .all(|(client, index)| latest.get(&client) == Some(&(self.shared.home(index), true)))
                .then_some(())
        })
        .await;
        self.shared.homing.store(false, Ordering::SeqCst);
    }

    /// Every connection that was served so far.
    pub fn connections(&self) -> Vec<Served> {
        self.shared.connections.lock().expect("no panic").clone()
    }

    /// When a message was first acknowledged that was first sent after `at`: for each topic, `None` while there is none.
    pub fn published_after(&self, at: Duration) -> Vec<Option<Duration>> {
        published_after(&self.shared.history.lock().expect("no panic"), at)
    }

    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    /// Time since the start of the load, as in the history.
    pub fn now(&self) -> Duration {
        self.shared.started.elapsed()
    }

    /// Waits until `more` further messages were acknowledged.
    pub async fn acknowledges_more(&self, more: u64, limit: Duration) {
        let target = self.acknowledged() + more;
        super::eventually(&format!("{more} more messages acknowledged"), limit, || async {
            self.fail_if_a_task_panicked();
            (self.acknowledged() >= target).then_some(())
        })
        .await;
    }

    fn fail_if_a_task_panicked(&self) {
        let ended = self.tasks.iter().filter(|task| task.is_finished()).count();
        assert!(
            ended == 0 || self.shared.stop_producing.load(Ordering::SeqCst),
            "a client of the load panicked"
        );
    }

    /// Stops sending, waits until nothing is unacknowledged and nothing is owed (or nothing has moved for `patience`),
    /// and returns the history.
    pub async fn drain(self, patience: Duration) -> History {
        self.shared.stop_producing.store(true, Ordering::SeqCst);
        let mut last = (0, 0);
        let mut moved = Instant::now();
        while moved.elapsed() < patience {
            let state = self.owed_and_delivered();
            if self.shared.producing.load(Ordering::SeqCst) == 0 && state.0 == 0 {
                break;
            }
            if state != last {
                (last, moved) = (state, Instant::now());
            }
            sleep(Duration::from_millis(200)).await;
        }
        if self.shared.producing.load(Ordering::SeqCst) > 0 {
            let mut history = self.shared.history.lock().expect("no panic");
            let what = format!("unacknowledged for {patience:?} after the faults ended");
            history.producers[0].misbehaved.push(what);
        }
        self.shared.stop_consuming.store(true, Ordering::SeqCst);
        let stopped = Instant::now();
        for task in self.tasks {
            let left = patience.saturating_sub(stopped.elapsed());
            let abort = task.abort_handle();
            match tokio::time::timeout(left, task).await {
                Ok(ended) => ended.expect("no client of the load panics"),
                Err(_) => abort.abort(),
            }
        }
        std::mem::take(&mut *self.shared.history.lock().expect("no panic"))
    }

    fn owed_and_delivered(&self) -> (usize, usize) {
        let history = self.shared.history.lock().expect("no panic");
        let owed = history
            .consumers
            .iter()
            .map(|consumer| checker::owed(&history, consumer))
            .sum();
        (
            owed,
            history.consumers.iter().map(|consumer| consumer.deliveries.len()).sum(),
        )
    }
}

/// Prints the counts of a run and returns what the checker found.
pub fn judge(test: &str, history: &History) -> Vec<Violation> {
    let messages = || history.producers.iter().flat_map(|producer| &producer.messages);
    let acknowledged = messages()
        .filter(|message| message.outcome == Outcome::Acknowledged)
        .count();
    let refused = messages()
        .filter(|message| matches!(message.outcome, Outcome::Refused(_)))
        .count();
    let again = messages().filter(|message| message.sends > 1).count();
    println!(
        "{test}: {} published, {acknowledged} acknowledged, {refused} refused, {again} sent again",
        messages().count()
    );
    for consumer in &history.consumers {
        let dup = consumer.deliveries.iter().filter(|delivery| delivery.dup).count();
        let connections = consumer
            .deliveries
            .iter()
            .map(|delivery| delivery.connection)
            .max()
            .unwrap_or_default();
        let deliveries = consumer.deliveries.len();
        println!(
            "{test}: {} got {deliveries} ({dup} with DUP) on {connections} connections",
            consumer.name
        );
    }
    let violations = checker::check(history);
    print!("{}", Verdict(&violations));
    violations
}

/// [`judge`]: nothing was violated, no node panicked, and the nodes' own accounts say the same.
pub async fn assert_kept(test: &str, history: &History, cluster: &Cluster) {
    let violations = judge(test, history);
    cluster.assert_no_panic();
    assert!(
        violations.is_empty(),
        "{} violations, see above\n{}",
        violations.len(),
        cluster.logs()
    );
    assert_conserved(test, history, cluster).await;
}

/// How long after `at` a message was acknowledged that was first sent after it, for each topic; one pass from the end, where
/// they are.
pub fn published_after(history: &History, at: Duration) -> Vec<Option<Duration>> {
    let mut first: Vec<Option<Duration>> = vec![None; TOPICS];
    for producer in &history.producers {
        for message in producer
            .messages
            .iter()
            .rev()
            .take_while(|message| message.first_sent > at)
        {
            let Some(when) = message.acknowledged else { continue };
            let took = when.saturating_sub(at);
            let index = (0..TOPICS).find(|index| message.topic.ends_with(&topic_ending(*index)));
            let slot = &mut first[index.expect("one of the topics")];
            *slot = Some(slot.map_or(took, |known| known.min(took)));
        }
    }
    first
}

/// The longest times without an acknowledgement.
pub struct Pauses {
    /// Of messages of one topic, whoever sent them.
    pub topic: Duration,
    /// Of one producer, whatever the topic.
    pub producer: Duration,
}

/// The longest pauses that began between `from` and `until`.
pub fn longest_pauses(history: &History, from: Duration, until: Duration) -> Pauses {
    let longest = |messages: &mut dyn Iterator<Item = &Message>| {
        let mut times: Vec<Duration> = messages.filter_map(|message| message.acknowledged).collect();
        times.sort_unstable();
        let pauses = times.windows(2).filter(|pair| pair[1] > from && pair[0] < until);
        pauses.map(|pair| pair[1] - pair[0]).max().unwrap_or(Duration::MAX)
    };
    let all = || history.producers.iter().flat_map(|producer| &producer.messages);
    let topics = (0..TOPICS).map(|index| {
        let ending = topic_ending(index);
        longest(&mut all().filter(|message| message.topic.ends_with(&ending)))
    });
    let producers = history.producers.iter();
    Pauses {
        topic: topics.max().unwrap_or(Duration::MAX),
        producer: producers
            .map(|one| longest(&mut one.messages.iter()))
            .max()
            .unwrap_or(Duration::MAX),
    }
}

/// The topics that a load of this tag publishes to.
pub fn topics(tag: &str) -> Vec<String> {
    (0..TOPICS)
        .map(|index| format!("{tag}{}", topic_ending(index)))
        .collect()
}

/// For each fault: how long until each producer, and each topic, had a message acknowledged that was sent after it.
pub fn print_recovery(test: &str, history: &History, faults: &[(String, Duration)]) {
    let mut worst = Duration::ZERO;
    for (what, at) in faults {
        let after = |messages: &mut dyn Iterator<Item = &Message>| {
            let later = messages.filter(|message| message.first_sent > *at);
            later
                .filter_map(|message| message.acknowledged)
                .min()
                .map(|when| when.saturating_sub(*at))
        };
        let producers: Vec<_> = history
            .producers
            .iter()
            .map(|producer| after(&mut producer.messages.iter()))
            .collect();
        let topics = (0..TOPICS).filter_map(|index| {
            let ending = topic_ending(index);
            let all = history.producers.iter().flat_map(|producer| &producer.messages);
            after(&mut all.filter(|message| message.topic.ends_with(&ending)))
        });
        let topic = topics.max().unwrap_or_default();
        let shown: Vec<String> = producers
            .iter()
            .map(|time| time.map_or("never".into(), |time| format!("{:.2}", time.as_secs_f64())))
            .collect();
        println!(
            "{test}: {what}: publishing again after [{}] s by producer, slowest topic {:.2} s",
            shown.join(" "),
            topic.as_secs_f64()
        );
        worst = worst
            .max(topic)
            .max(producers.iter().flatten().max().copied().unwrap_or_default());
    }
    println!("{test}: slowest {:.2} s", worst.as_secs_f64());
    if worst > BACK_WITHIN {
        println!("{test}: WARNING: P10 promises {BACK_WITHIN:?}");
    }
}

struct ProducerTask {
    shared: Arc<Shared>,
    index: usize,
    random: Random,
    connect: Connect,
    /// Sequence number and packet identifier, oldest first.
    unacknowledged: VecDeque<(usize, u16)>,
    had_session: bool,
}

impl ProducerTask {
    /// Two of three have a persistent session and send again with DUP; the others start clean and publish anew.
    fn new(shared: Arc<Shared>, index: usize, random: Random) -> ProducerTask {
        let version = codec::VERSIONS[index % 2];
        let client_id = format!("{}-producer-{index}", shared.tag);
        let connect = match index % 3 {
            2 => Connect::clean(version, &client_id),
            _ => Connect::persistent(version, &client_id),
        };
        let connect = connect.keep_alive(KEEP_ALIVE);
        let unacknowledged = VecDeque::new();
        ProducerTask {
            shared,
            index,
            random,
            connect,
            unacknowledged,
            had_session: false,
        }
    }

    async fn run(mut self) {
        let mut lost = None;
        while !self.finished() {
            let home = self.shared.home(self.index);
            let connected = connect_to_any(&self.shared, &self.connect, home, &mut self.random, &mut lost).await;
            let Some((client, present, node)) = connected else {
                continue;
            };
            self.judge_session(present);
            let served = self.shared.served(&self.connect.client_id, node);
            let ended = self.serve(client, present, node).await;
            self.shared.ended(served, ended.is_ok());
            lost = ended.is_err().then_some(node);
            match ended {
                Ok(()) | Err(Gone::Closed(_) | Gone::Silent(_)) => {}
                Err(Gone::Wrong(what)) => self.log(|producer| producer.misbehaved.push(what)),
            }
        }
        self.shared.producing.fetch_sub(1, Ordering::SeqCst);
    }

    fn payload(&self, sequence: usize, topic: &str) -> Vec<u8> {
        filled(self.index, sequence, topic, self.shared.plan.filling)
    }

    fn finished(&self) -> bool {
        self.unacknowledged.is_empty() && self.shared.stop_producing.load(Ordering::SeqCst)
    }

    /// Session Present may be 1 at the first CONNACK: the one before may have been lost with its node.
    fn judge_session(&mut self, present: bool) {
        let clean = self.connect.clean;
        if present && clean {
            self.log(|producer| {
                producer
                    .misbehaved
                    .push("Session Present is 1 after a clean start".into())
            });
        }
        if !present && !clean && self.had_session {
            self.log(|producer| producer.misbehaved.push(SESSION_LOST.into()));
        }
        self.had_session = true;
    }

    async fn serve(&mut self, mut client: Client, present: bool, node: usize) -> Result<(), Gone> {
        for (sequence, pid) in self.unacknowledged.clone() {
            let publish = self.log(|producer| {
                let message = &mut producer.messages[sequence];
                message.sends += 1;
                message.topic.clone()
            });
            let payload = self.payload(sequence, &publish);
            let publish = Publish {
                pid,
                dup: present,
                ..Publish::new(&publish, payload, 1)
            };
            client.send(&publish.encode(client.version)).await?;
        }
        if let Some((_, pid)) = self.unacknowledged.back() {
            while client.next_pid() != *pid {}
        }
        // In bursts: one message at a time would leave the window, and with it every pipeline behind it, empty.
        let burst = self.shared.plan.window as u32 * 3 / 4;
        let mut pace = interval(Duration::from_secs(1) * burst / self.shared.plan.rate);
        let mut due = 0;
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut keep_alive = KeepAlive::new(&self.shared.plan);
        while !self.finished() {
            while due > 0 && self.may_publish() {
                self.publish_next(&mut client).await?;
                due -= 1;
            }
            tokio::select! {
                packet = client.packet() => match packet? {
                    Packet::Puback { pid, code } => self.acknowledged(pid, code),
                    Packet::Pingresp => keep_alive.answered(),
                    Packet::Disconnect { code, .. } => return Err(Gone::Closed(format!("DISCONNECT {code:#04x}"))),
                    other => return Err(Gone::Wrong(format!("to a producer: {other:?}"))),
                },
                _ = pace.tick() => {
                    if self.shared.goes_home(self.index, node) {
                        return Ok(());
                    }
                    due = burst;
                }
                alive = keep_alive.due() => {
                    alive?;
                    client.send(&codec::pingreq()).await?;
                }
            }
        }
        client.send(&codec::disconnect()).await
    }

    fn may_publish(&self) -> bool {
        let room = self.unacknowledged.len() < self.shared.plan.window;
        room && !self.shared.stop_producing.load(Ordering::SeqCst)
    }

    async fn publish_next(&mut self, client: &mut Client) -> Result<(), Gone> {
        let topic = format!("{}{}", self.shared.tag, topic_ending(self.random.below(TOPICS)));
        let first_sent = self.shared.started.elapsed();
        let sequence = self.log(|producer| {
            let topic = topic.clone();
            producer.messages.push(Message {
                topic,
                sends: 1,
                outcome: Outcome::Open,
                first_sent,
                acknowledged: None,
            });
            producer.messages.len() - 1
        });
        let pid = client.next_pid();
        self.unacknowledged.push_back((sequence, pid));
        let publish = Publish {
            pid,
            ..Publish::new(&topic, self.payload(sequence, &topic), 1)
        };
        client.send(&publish.encode(client.version)).await
    }

    fn acknowledged(&mut self, pid: u16, code: u8) {
        let Some(position) = self.unacknowledged.iter().position(|(_, sent)| *sent == pid) else {
            return self.log(|producer| producer.misbehaved.push(format!("PUBACK {pid} for nothing")));
        };
        if position > 0 {
            self.log(|producer| {
                producer
                    .misbehaved
                    .push(format!("PUBACK {pid} overtook {position} others"))
            });
        }
        let (sequence, _) = self.unacknowledged.remove(position).expect("found there");
        let now = self.shared.started.elapsed();
        self.log(|producer| {
            if code == NO_MATCHING_SUBSCRIBERS {
                producer
                    .misbehaved
                    .push("PUBACK 0x10, but there are subscribers".into());
            }
            let message = &mut producer.messages[sequence];
            match code {
                0..0x80 => {
                    message.outcome = Outcome::Acknowledged;
                    message.acknowledged = Some(now);
                }
                refused => message.outcome = Outcome::Refused(refused),
            }
        });
        if code < 0x80 {
            self.shared.acknowledged.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn log<T>(&self, write: impl FnOnce(&mut Producer) -> T) -> T {
        write(&mut self.shared.history.lock().expect("no panic").producers[self.index])
    }
}

struct ConsumerTask {
    shared: Arc<Shared>,
    index: usize,
    name: String,
    version: Version,
    filters: Vec<String>,
    random: Random,
}

impl ConsumerTask {
    async fn run(mut self) {
        let connect = Connect::persistent(self.version, &self.name).keep_alive(KEEP_ALIVE);
        let mut subscribed = false;
        let mut connection = 0;
        let mut lost = None;
        while !self.shared.stop_consuming.load(Ordering::SeqCst) {
            let home = self.shared.home(self.index);
            let connected = connect_to_any(&self.shared, &connect, home, &mut self.random, &mut lost).await;
            let Some((client, present, node)) = connected else {
                continue;
            };
            connection += 1;
            if subscribed && !present {
                self.log(|consumer| consumer.misbehaved.push(SESSION_LOST.into()));
                // Subscribe again, so that one lost session is one violation and what it had lost.
                subscribed = false;
            }
            let served = self.shared.served(&self.name, node);
            let ended = self.serve(client, connection, node, &mut subscribed).await;
            self.shared.ended(served, ended.is_ok());
            lost = ended.is_err().then_some(node);
            match ended {
                Ok(()) | Err(Gone::Closed(_) | Gone::Silent(_)) => {}
                Err(Gone::Wrong(what)) => self.log(|consumer| consumer.misbehaved.push(what)),
            }
        }
    }

    async fn serve(
        &mut self,
        mut client: Client,
        connection: u32,
        node: usize,
        subscribed: &mut bool,
    ) -> Result<(), Gone> {
        if !*subscribed {
            let filters: Vec<(&str, u8)> = self.filters.iter().map(|filter| (filter.as_str(), 1)).collect();
            client
                .send(&codec::subscribe(self.version, SUBSCRIBE_ID, &filters))
                .await?;
        }
        let mut keep_alive = KeepAlive::new(&self.shared.plan);
        let mut look = interval(Duration::from_millis(100));
        let restless = self.index == RESTLESS;
        let leave_at = Instant::now() + Duration::from_millis(1_000 + self.random.below(4_000) as u64);
        // It leaves with some unacknowledged, which must come again.
        let withhold_at = leave_at - WITHHOLD;
        while !self.shared.stop_consuming.load(Ordering::SeqCst) {
            tokio::select! {
                packet = client.packet() => match packet? {
                    Packet::Publish(publish) => {
                        let pid = self.received(publish, connection);
                        if !restless || Instant::now() < withhold_at {
                            client.send(&codec::puback(pid)).await?;
                        }
                    }
                    Packet::Suback { pid: SUBSCRIBE_ID, codes } => self.granted(&codes, subscribed),
                    Packet::Pingresp => keep_alive.answered(),
                    Packet::Disconnect { code, .. } => return Err(Gone::Closed(format!("DISCONNECT {code:#04x}"))),
                    other => return Err(Gone::Wrong(format!("to a consumer: {other:?}"))),
                },
                _ = look.tick() => {
                    let leaves = restless && *subscribed && Instant::now() > leave_at;
                    if leaves || self.shared.goes_home(self.index, node) {
                        return Ok(());
                    }
                }
                alive = keep_alive.due() => {
                    alive?;
                    client.send(&codec::pingreq()).await?;
                }
            }
        }
        client.send(&codec::disconnect()).await
    }

    fn granted(&self, codes: &[u8], subscribed: &mut bool) {
        if codes.iter().any(|code| *code != 1) {
            return self.log(|consumer| consumer.misbehaved.push(format!("SUBACK {codes:?}")));
        }
        if !*subscribed {
            *subscribed = true;
            self.shared.subscribed.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Logs a delivery; returns the identifier to acknowledge.
    fn received(&self, publish: Publish, connection: u32) -> u16 {
        let message = parse_payload(&publish);
        let Publish {
            topic,
            dup,
            pid,
            qos,
            retain,
            ..
        } = publish;
        self.log(|consumer| {
            if qos != 1 || retain {
                consumer
                    .misbehaved
                    .push(format!("QoS {qos}, retain {retain} on {topic}"));
            }
            consumer.deliveries.push(Delivery {
                message,
                topic,
                dup,
                connection,
            });
        });
        pid
    }

    fn log<T>(&self, write: impl FnOnce(&mut Consumer) -> T) -> T {
        write(&mut self.shared.history.lock().expect("no panic").consumers[self.index])
    }
}

impl Shared {
    /// Notes a CONNACK; returns the index of the connection.
    fn served(&self, client: &str, node: usize) -> usize {
        let mut connections = self.connections.lock().expect("no panic");
        connections.push(Served {
            client: client.into(),
            node,
            from: self.started.elapsed(),
            until: None,
            by_choice: false,
        });
        connections.len() - 1
    }

    fn home(&self, index: usize) -> usize {
        index % self.addresses.len()
    }

    fn goes_home(&self, index: usize, node: usize) -> bool {
        self.homing.load(Ordering::SeqCst) && node != self.home(index)
    }

    fn ended(&self, connection: usize, by_choice: bool) {
        let connection = &mut self.connections.lock().expect("no panic")[connection];
        connection.until = Some(self.started.elapsed());
        connection.by_choice = by_choice;
    }
}

/// One attempt at a random node, but not the one that was `lost` last; on failure waits a moment, so that a dead cluster
/// is not hammered.
async fn connect_to_any(
    shared: &Shared,
    connect: &Connect,
    home: usize,
    random: &mut Random,
    lost: &mut Option<usize>,
) -> Option<(Client, bool, usize)> {
    let others: Vec<usize> = (0..shared.addresses.len())
        .filter(|node| Some(*node) != *lost)
        .collect();
    let node = match shared.homing.load(Ordering::SeqCst) {
        true => home,
        false => *random.pick(if others.is_empty() { &[0] } else { &others }),
    };
    let connected = Client::try_connect(&shared.addresses[node], connect, CONNECT_WITHIN).await;
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

/// Pings every [`Plan::ping_every`]; a server that does not answer for [`Plan::answer_within`] is given up.
pub struct KeepAlive {
    last_answer: Instant,
    answer_within: Duration,
    next: tokio::time::Interval,
}

impl KeepAlive {
    pub fn new(plan: &Plan) -> KeepAlive {
        let mut next = interval(plan.ping_every);
        next.set_missed_tick_behavior(MissedTickBehavior::Delay);
        KeepAlive {
            last_answer: Instant::now(),
            answer_within: plan.answer_within,
            next,
        }
    }

    pub fn answered(&mut self) {
        self.last_answer = Instant::now();
    }

    pub async fn due(&mut self) -> Result<(), Gone> {
        self.next.tick().await;
        match self.last_answer.elapsed() < self.answer_within {
            true => Ok(()),
            false => Err(Gone::Silent(self.answer_within)),
        }
    }
}

/// As [`filled`], so that 20,000 of them are worth a few megabytes.
pub fn payload(producer: usize, sequence: usize, topic: &str) -> Vec<u8> {
    filled(producer, sequence, topic, FILLING)
}

/// `<sum> <producer> <sequence> <topic> …`.
fn filled(producer: usize, sequence: usize, topic: &str, filling: usize) -> Vec<u8> {
    let body = format!("{producer} {sequence} {topic} {:.<filling$}", "");
    format!("{:016x} {body}", sum(body.as_bytes())).into_bytes()
}

pub fn parse_payload(publish: &Publish) -> Option<MessageId> {
    let text = std::str::from_utf8(&publish.payload).ok()?;
    let (written, body) = text.split_once(' ')?;
    let mut words = body.split(' ');
    let id = MessageId {
        producer: words.next()?.parse().ok()?,
        sequence: words.next()?.parse().ok()?,
    };
    let intact = u64::from_str_radix(written, 16).ok()? == sum(body.as_bytes());
    (intact && words.next()? == publish.topic).then_some(id)
}

/// FNV-1a.
fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// `/<0..8>/<a|b|c>`: with 24 topics every one of 12 shards is likely to have some.
pub fn topic_ending(index: usize) -> String {
    format!("/{}/{}", index / 3, ["a", "b", "c"][index % 3])
}

pub const TOPICS: usize = 24;
const FILLING: usize = 60;
/// How long before it leaves the restless consumer stops acknowledging.
const WITHHOLD: Duration = Duration::from_millis(200);
/// The consumer that changes its node every few seconds without a DISCONNECT.
const RESTLESS: usize = 3;
pub const SESSION_LOST: &str = "session lost: Session Present is 0";
const SUBSCRIBE_ID: u16 = 1;
const NO_MATCHING_SUBSCRIBERS: u8 = 0x10;
const KEEP_ALIVE: u16 = 10;
const CONNECT_WITHIN: Duration = Duration::from_secs(4);
/// P10.
const BACK_WITHIN: Duration = Duration::from_secs(5);
