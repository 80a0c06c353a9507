//! A durable work queue under churn, for P8: producers that publish exactly what they say at QoS 1 and 2, and members of
//! shared groups that come and go, some without answering; and the judge.
//!
//!     producer ─QoS 1 | 2─▶ any node ─▶ $share/{group}/… ─▶ one member ─answer | withhold─▶ stays | leaves | is cut | taken over
//!
//! Nothing here judges while it runs: every message, delivery and connection is written down with its times.

use super::client::{Client, Gone};
use super::codec::{self, Connect, Packet, Publish, RECEIVE_MAXIMUM, Value, Version};
use super::random::Random;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// A shared group and its members.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    pub name: &'static str,
    /// The QoS that its members subscribe with.
    pub qos: u8,
    pub durable: usize,
    pub ephemeral: usize,
}

/// Nothing may be missing in the first two. In the third, what was assigned at QoS 2 to a session that ended is gone with
/// it, as [MQTT-4.8.2-5] has it.
pub const GROUPS: [Group; 3] = [
    Group {
        name: "durable",
        qos: 2,
        durable: 4,
        ephemeral: 0,
    },
    Group {
        name: "mixed",
        qos: 1,
        durable: 2,
        ephemeral: 2,
    },
    Group {
        name: "passing",
        qos: 2,
        durable: 1,
        ephemeral: 2,
    },
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// DISCONNECT.
    Left,
    /// The socket was closed without a word.
    Cut,
    /// Another connection with the same client id came while this one was open.
    TakenOver,
    /// The broker's side.
    Lost,
}

#[derive(Clone, Debug)]
pub struct Sent {
    pub qos: u8,
    /// PUBLISH packets with it.
    pub sends: u32,
    pub acknowledged: bool,
}

#[derive(Clone, Debug)]
pub struct Delivery {
    pub group: usize,
    pub member: usize,
    pub connection: usize,
    pub payload: String,
    pub qos: u8,
    pub at: Duration,
    /// When PUBACK or PUBREC was sent.
    pub answered: Option<Duration>,
}

#[derive(Clone, Debug)]
pub struct Connection {
    pub group: usize,
    pub durable: bool,
    /// Index of the node's address.
    pub node: usize,
    pub ended: Option<(Duration, End)>,
    /// When the last PINGREQ was sent that was answered: everything sent before it had been read.
    pub heard: Duration,
    pub withheld: bool,
}

#[derive(Debug, Default)]
pub struct History {
    pub messages: BTreeMap<String, Sent>,
    pub deliveries: Vec<Delivery>,
    pub connections: Vec<Connection>,
    pub misbehaved: Vec<String>,
}

/// While nodes are being killed and started: which, from when, until when all were ready again.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub from: Duration,
    pub until: Duration,
}

struct Shared {
    addresses: Vec<String>,
    started: Instant,
    history: Mutex<History>,
    stop_producing: AtomicBool,
    /// Members stay, and answer everything.
    calm: AtomicBool,
    stop: AtomicBool,
}

impl Shared {
    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().expect("no panic")
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn is_set(flag: &AtomicBool) -> bool {
        flag.load(Ordering::SeqCst)
    }
}

pub struct WorkQueue {
    shared: Arc<Shared>,
    producers: Vec<JoinHandle<()>>,
    members: Vec<JoinHandle<()>>,
}

impl WorkQueue {
    /// Starts the members, waits until each has subscribed, then starts a producer on every node.
    pub async fn start(addresses: &[&str], random: &mut Random) -> WorkQueue {
        let shared = Arc::new(Shared {
            addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
            started: Instant::now(),
            history: Mutex::default(),
            stop_producing: AtomicBool::new(false),
            calm: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut members = Vec::new();
        for (at, group) in GROUPS.iter().enumerate() {
            for nth in 0..group.durable + group.ephemeral {
                let durable = nth < group.durable;
                let kind = if durable { "durable" } else { "ephemeral" };
                let task = MemberTask {
                    shared: shared.clone(),
                    group: at,
                    member: members.len(),
                    client_id: format!("p8-{}-{kind}-{nth}", group.name),
                    // 3.1.1 has no Receive Maximum: it takes whatever comes.
                    version: if durable && nth == 1 {
                        Version::V311
                    } else {
                        Version::V5
                    },
                    durable,
                    random: random.fork(),
                    had_session: false,
                    received: HashMap::new(),
                };
                // The group exists from here on, whoever comes and goes.
                if durable && nth == 0 {
                    task.subscribe_first().await;
                }
                members.push(tokio::spawn(task.run()));
            }
        }
        let producers = (0..addresses.len())
            .map(|index| {
                let task = Producer {
                    shared: shared.clone(),
                    index,
                    random: random.fork(),
                    next: 0,
                    pid: 0,
                    in_flight: VecDeque::new(),
                };
                tokio::spawn(task.run())
            })
            .collect();
        WorkQueue {
            shared,
            producers,
            members,
        }
    }

    pub fn now(&self) -> Duration {
        self.shared.now()
    }

    pub fn acknowledged(&self) -> usize {
        let history = self.shared.history();
        history.messages.values().filter(|sent| sent.acknowledged).count()
    }

    pub async fn acknowledges_more(&self, more: usize, limit: Duration) {
        let target = self.acknowledged() + more;
        super::eventually(&format!("{more} more messages acknowledged"), limit, || async {
            assert!(
                self.producers
                    .iter()
                    .chain(&self.members)
                    .all(|task| !task.is_finished()),
                "a client panicked"
            );
            (self.acknowledged() >= target).then_some(())
        })
        .await;
    }

    /// The client ids of durable members.
    pub fn durable_members(&self) -> Vec<String> {
        let of = |group: &Group| {
            let name = group.name;
            (0..group.durable).map(move |nth| format!("p8-{name}-durable-{nth}"))
        };
        GROUPS.iter().flat_map(of).collect()
    }

    /// Producers finish what they began, members stay and answer; returns when nothing is missing any more, or nothing has
    /// moved for `patience`, and after that once more nothing came for a while.
    pub async fn drain(self, patience: Duration) -> History {
        self.shared.stop_producing.store(true, Ordering::SeqCst);
        for producer in self.producers {
            match tokio::time::timeout(patience, producer).await {
                Ok(ended) => ended.expect("no producer panics"),
                Err(_) => {
                    let what = format!("a publish stayed unacknowledged for {patience:?} after the faults");
                    self.shared.history().misbehaved.push(what);
                }
            }
        }
        self.shared.calm.store(true, Ordering::SeqCst);
        let (mut last, mut moved) = ((0, 0), Instant::now());
        loop {
            let state = {
                let history = self.shared.history();
                let missing = (0..GROUPS.len())
                    .map(|group| missing(&history, group).len())
                    .sum::<usize>();
                let answered = history.deliveries.iter().filter(|delivery| delivery.answered.is_some());
                (missing, history.deliveries.len() + answered.count())
            };
            if state != last {
                (last, moved) = (state, Instant::now());
            }
            // What may be given to a second member is, within this.
            if state.0 == 0 && moved.elapsed() > QUIET || moved.elapsed() > patience {
                break;
            }
            // What "passing" may miss, it misses.
            if moved.elapsed() > QUIET * 2 && missing(&self.shared.history(), 0).is_empty() {
                let history = self.shared.history();
                if missing(&history, 1).is_empty() {
                    break;
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
        self.shared.stop.store(true, Ordering::SeqCst);
        for member in self.members {
            let ended = tokio::time::timeout(patience, member).await;
            ended.expect("a member ends").expect("no member panics");
        }
        std::mem::take(&mut self.shared.history())
    }
}

/// Acknowledged messages that no member of the group has answered.
pub fn missing(history: &History, group: usize) -> Vec<&str> {
    let answered: BTreeSet<&str> = history
        .deliveries
        .iter()
        .filter(|delivery| delivery.group == group && delivery.answered.is_some())
        .map(|delivery| delivery.payload.as_str())
        .collect();
    let acknowledged = history.messages.iter().filter(|(_, sent)| sent.acknowledged);
    acknowledged
        .map(|(payload, _)| payload.as_str())
        .filter(|payload| !answered.contains(payload))
        .collect()
}

/// Prints the counts and returns what P8 forbids.
pub fn judge(test: &str, history: &History, faults: &[Fault]) -> Vec<String> {
    let mut violations = history.misbehaved.clone();
    let acknowledged = history.messages.values().filter(|sent| sent.acknowledged).count();
    let again = history.messages.values().filter(|sent| sent.sends > 1).count();
    println!(
        "{test}: {} published, {acknowledged} acknowledged, {again} sent again",
        history.messages.len()
    );
    for end in [End::Left, End::Cut, End::TakenOver, End::Lost] {
        let ended = |connection: &&Connection| connection.ended.is_some_and(|(_, how)| how == end);
        let count = history.connections.iter().filter(ended).count();
        let withheld = history
            .connections
            .iter()
            .filter(ended)
            .filter(|one| one.withheld)
            .count();
        println!("{test}: {count} connections of members {end:?}, {withheld} of them had withheld their answers");
    }
    let mut by_message = BTreeMap::<(usize, &str), Vec<&Delivery>>::new();
    for delivery in &history.deliveries {
        if !history.messages.contains_key(&delivery.payload) {
            violations.push(format!("delivered and never published: {delivery:?}"));
        }
        by_message
            .entry((delivery.group, &delivery.payload))
            .or_default()
            .push(delivery);
    }
    for (at, group) in GROUPS.iter().enumerate() {
        let missing = missing(history, at);
        let may_miss = if group.qos == 2 {
            passing_lost_at_most(history, at)
        } else {
            0
        };
        let deliveries = history
            .deliveries
            .iter()
            .filter(|delivery| delivery.group == at)
            .count();
        println!(
            "{test}: group {:?} got {deliveries}, {} missing of at most {may_miss}",
            group.name,
            missing.len()
        );
        let lost = missing
            .iter()
            .filter(|payload| group.qos == 1 || history.messages[**payload].qos == 1);
        for payload in lost {
            violations.push(format!(
                "{payload} never reached a member of {:?} that answered",
                group.name
            ));
        }
        if missing.len() > may_miss {
            violations.push(format!("{} messages are missing in {:?}", missing.len(), group.name));
        }
    }
    let (mut second, mut excused) = (0, 0);
    for ((group, payload), deliveries) in by_message {
        let Some(sent) = history.messages.get(payload) else {
            continue;
        };
        if deliveries.len() == 1 {
            continue;
        }
        second += 1;
        if sent.qos == 2 && GROUPS[group].qos == 2 {
            violations.push(format!("QoS 2, {} deliveries: {deliveries:?}", deliveries.len()));
            continue;
        }
        // Published again after a lost connection, a QoS 1 message may be there twice.
        if sent.qos == 1 && sent.sends > 1 {
            excused += 1;
            continue;
        }
        for (nth, later) in deliveries.iter().enumerate().skip(1) {
            for earlier in &deliveries[..nth] {
                match second_is_allowed(history, faults, earlier, later) {
                    Ok(()) => {}
                    Err(_) if is_faulty(faults, earlier.at, later.at) => excused += 1,
                    Err(why) => violations.push(format!("{payload} in {:?}: {why}", GROUPS[group].name)),
                }
            }
        }
    }
    println!("{test}: {second} messages came to a second member or connection, {excused} of them excused by a fault");
    for violation in violations.iter().take(20) {
        println!("{test}: VIOLATION {violation}");
    }
    violations
}

/// What was assigned at QoS 2 to sessions that ended is at most what their connections had room for.
fn passing_lost_at_most(history: &History, group: usize) -> usize {
    let of = |one: &&Connection| one.group == group && !one.durable && one.ended.is_some();
    history.connections.iter().filter(of).count() * usize::from(RECEIVE_MAX)
}

/// (h2): only if the earlier recipient's connection ended before its PUBACK was surely processed.
fn second_is_allowed(history: &History, faults: &[Fault], earlier: &Delivery, later: &Delivery) -> Result<(), String> {
    let connection = &history.connections[earlier.connection];
    match (connection.ended, earlier.answered) {
        (None, _) => Err(format!("{earlier:?} is open, and {later:?}")),
        (Some((ended, _)), _) if ended > later.at => {
            Err(format!("{earlier:?} was open until {ended:?}, and {later:?}"))
        }
        (Some((ended, _)), Some(answered))
            if answered < connection.heard && !is_faulty(faults, answered, ended + SETTLED_WITHIN) =>
        {
            Err(format!("{earlier:?} was surely processed, and {later:?}"))
        }
        _ => Ok(()),
    }
}

fn is_faulty(faults: &[Fault], from: Duration, until: Duration) -> bool {
    faults
        .iter()
        .any(|fault| fault.from <= until && from <= fault.until + SETTLED_WITHIN)
}

// ---- members ----

struct MemberTask {
    shared: Arc<Shared>,
    group: usize,
    member: usize,
    client_id: String,
    version: Version,
    durable: bool,
    random: Random,
    had_session: bool,
    /// QoS 2 exchanges that are not over: Packet Identifier → delivery.
    received: HashMap<u16, usize>,
}

/// What a member does with one connection.
struct Conduct {
    until: Instant,
    withholds: bool,
    end: End,
}

impl MemberTask {
    fn filter(&self) -> String {
        format!("$share/{}/p8/#", GROUPS[self.group].name)
    }

    fn connect(&self) -> Connect {
        let connect = match self.durable {
            true => Connect::persistent(self.version, &self.client_id),
            false => Connect::clean(self.version, &self.client_id),
        };
        match self.version {
            Version::V5 => connect.property(RECEIVE_MAXIMUM, Value::Two(RECEIVE_MAX)),
            Version::V311 => connect,
        }
    }

    async fn subscribe_first(&self) {
        let (mut client, _) = Client::connect(&self.shared.addresses[0], &self.connect()).await;
        client.subscribe(&[(&self.filter(), GROUPS[self.group].qos)]).await;
        client.disconnect().await;
    }

    async fn run(mut self) {
        // Open while its successor connects.
        let mut taken_over: Option<Client> = None;
        while !Shared::is_set(&self.shared.stop) {
            let node = self.random.below(self.shared.addresses.len());
            let address = self.shared.addresses[node].clone();
            let connected = Client::try_connect(&address, &self.connect(), ANSWER_WITHIN).await;
            let Ok((
                client,
                Packet::Connack {
                    session_present,
                    code: 0,
                    ..
                },
            )) = connected
            else {
                sleep(Duration::from_millis(50)).await;
                continue;
            };
            drop(taken_over.take());
            if self.durable && self.had_session && !session_present {
                let what = format!("{} lost its session", self.client_id);
                self.shared.history().misbehaved.push(what);
            }
            if !session_present {
                self.received.clear();
            }
            let connection = {
                let mut history = self.shared.history();
                history.connections.push(Connection {
                    group: self.group,
                    durable: self.durable,
                    node,
                    ended: None,
                    heard: Duration::ZERO,
                    withheld: false,
                });
                history.connections.len() - 1
            };
            let conduct = self.conduct();
            let mut client = client;
            let end = self.serve(&mut client, connection, &conduct).await.unwrap_or(End::Lost);
            self.shared.history().connections[connection].ended = Some((self.shared.now(), end));
            match end {
                End::Left => {
                    // What comes after DISCONNECT is not read; the server closes.
                    if client.send(&codec::disconnect()).await.is_ok() {
                        while client.packet_within(ANSWER_WITHIN).await.is_ok() {}
                    }
                }
                End::TakenOver => taken_over = Some(client),
                End::Cut | End::Lost => {}
            }
        }
    }

    fn conduct(&mut self) -> Conduct {
        let life = Duration::from_millis(200 + self.random.below(2_000) as u64);
        Conduct {
            until: Instant::now() + life,
            withholds: self.random.below(4) == 0,
            end: *self.random.pick(&[End::Left, End::Cut, End::TakenOver]),
        }
    }

    async fn serve(&mut self, client: &mut Client, connection: usize, conduct: &Conduct) -> Result<End, Gone> {
        if !self.had_session || !self.durable {
            let filter = self.filter();
            let pid = client.next_pid();
            let subscribe = codec::subscribe(self.version, pid, &[(&filter, GROUPS[self.group].qos)]);
            client.send(&subscribe).await?;
        }
        let mut pinged = None::<(Duration, Instant)>;
        let mut ping_at = Instant::now() + PING_EVERY;
        let mut ending = false;
        let mut withheld = Vec::new();
        loop {
            let calm = Shared::is_set(&self.shared.calm);
            let withholds = conduct.withholds && !calm;
            if !withholds {
                for (pid, delivery) in std::mem::take(&mut withheld) {
                    self.answer(client, pid, delivery).await?;
                }
            }
            let due = Instant::now() >= conduct.until && !calm;
            if due || Shared::is_set(&self.shared.stop) {
                // One more round trip: then what was answered has surely been read.
                if withholds || ending && pinged.is_none() {
                    return Ok(if due { conduct.end } else { End::Left });
                }
                if !ending {
                    (ending, ping_at) = (true, Instant::now());
                }
            }
            if pinged.is_none() && Instant::now() >= ping_at {
                pinged = Some((self.shared.now(), Instant::now()));
                client.send(&codec::pingreq()).await?;
            }
            if pinged.is_some_and(|(_, since)| since.elapsed() > ANSWER_WITHIN) {
                return Err(Gone::Silent(ANSWER_WITHIN));
            }
            match client.packet_within(TICK).await {
                Err(Gone::Silent(_)) => {}
                Err(gone) => return Err(gone),
                Ok(Packet::Publish(publish)) => {
                    let (pid, delivery) = self.record(connection, &publish);
                    match withholds {
                        true => {
                            self.shared.history().connections[connection].withheld = true;
                            withheld.push((pid, delivery));
                        }
                        false => self.answer(client, pid, delivery).await?,
                    }
                }
                Ok(Packet::Pubrel { pid, .. }) => {
                    self.received.remove(&pid);
                    client.send(&codec::pubcomp(pid)).await?;
                }
                Ok(Packet::Pingresp) => {
                    if let Some((sent, _)) = pinged.take() {
                        self.shared.history().connections[connection].heard = sent;
                        ping_at = Instant::now() + PING_EVERY;
                    }
                }
                Ok(Packet::Suback { codes, .. }) => {
                    if codes != [GROUPS[self.group].qos] {
                        return Err(Gone::Wrong(format!("SUBACK {codes:?}")));
                    }
                    self.had_session = true;
                }
                Ok(Packet::Disconnect { .. }) => {}
                Ok(other) => self.misbehaved(format!("unexpected {other:?}")),
            }
        }
    }

    fn misbehaved(&self, what: String) {
        let what = format!("{}: {what}", self.client_id);
        self.shared.history().misbehaved.push(what);
    }

    /// Writes down a delivery, unless it is a QoS 2 PUBLISH again whose exchange is not over.
    fn record(&mut self, connection: usize, publish: &Publish) -> (u16, usize) {
        let payload = publish.text();
        let at = self.shared.now();
        let mut history = self.shared.history();
        if publish.qos == 2
            && let Some(known) = self.received.get(&publish.pid)
        {
            if history.deliveries[*known].payload != payload {
                let before = history.deliveries[*known].payload.clone();
                let what = format!("{}: {payload} under the identifier of {before}", self.client_id);
                history.misbehaved.push(what);
            }
            return (publish.pid, *known);
        }
        let delivery = history.deliveries.len();
        let expected = history
            .messages
            .get(&payload)
            .map(|sent| sent.qos.min(GROUPS[self.group].qos));
        if expected.is_some_and(|expected| expected != publish.qos) {
            let what = format!("{}: {payload} at QoS {}", self.client_id, publish.qos);
            history.misbehaved.push(what);
        }
        history.deliveries.push(Delivery {
            group: self.group,
            member: self.member,
            connection,
            payload,
            qos: publish.qos,
            at,
            answered: None,
        });
        if publish.qos == 2 {
            self.received.insert(publish.pid, delivery);
        }
        (publish.pid, delivery)
    }

    async fn answer(&self, client: &mut Client, pid: u16, delivery: usize) -> Result<(), Gone> {
        let qos = {
            let mut history = self.shared.history();
            let now = self.shared.now();
            let delivery = &mut history.deliveries[delivery];
            delivery.answered.get_or_insert(now);
            delivery.qos
        };
        let answer = if qos == 2 {
            codec::pubrec(pid)
        } else {
            codec::puback(pid)
        };
        client.send(&answer).await
    }
}

// ---- producers ----

struct Producer {
    shared: Arc<Shared>,
    index: usize,
    random: Random,
    next: usize,
    pid: u16,
    in_flight: VecDeque<Unfinished>,
}

struct Unfinished {
    pid: u16,
    topic: String,
    payload: String,
    qos: u8,
    /// PUBREC came.
    released: bool,
}

impl Producer {
    async fn run(mut self) {
        let client_id = format!("p8-producer-{}", self.index);
        let mut node = self.index;
        let mut is_first = true;
        while !self.is_done() {
            let connect = Connect::persistent(Version::V5, &client_id);
            let connected = Client::try_connect(&self.shared.addresses[node], &connect, ANSWER_WITHIN).await;
            node = self.random.below(self.shared.addresses.len());
            let Ok((
                mut client,
                Packet::Connack {
                    session_present,
                    code: 0,
                    ..
                },
            )) = connected
            else {
                sleep(Duration::from_millis(50)).await;
                continue;
            };
            if !is_first && !session_present {
                let what = format!("{client_id} lost its session");
                self.shared.history().misbehaved.push(what);
            }
            is_first = false;
            // The connection's end is no news here: the next one goes on.
            let _ended: Result<(), Gone> = self.publish(&mut client).await;
        }
    }

    fn is_done(&self) -> bool {
        Shared::is_set(&self.shared.stop_producing) && self.in_flight.is_empty()
    }

    async fn publish(&mut self, client: &mut Client) -> Result<(), Gone> {
        for at in 0..self.in_flight.len() {
            self.send(client, at, true).await?;
        }
        let mut heard = Instant::now();
        let mut send_at = Instant::now();
        while !self.is_done() {
            let may_send = !Shared::is_set(&self.shared.stop_producing) && self.in_flight.len() < WINDOW;
            if may_send && Instant::now() >= send_at {
                self.begin();
                self.send(client, self.in_flight.len() - 1, false).await?;
                send_at = Instant::now() + SEND_EVERY;
            }
            match client.packet_within(SEND_EVERY).await {
                Err(Gone::Silent(_)) if heard.elapsed() > ANSWER_WITHIN => return Err(Gone::Silent(ANSWER_WITHIN)),
                Err(Gone::Silent(_)) => continue,
                Err(gone) => return Err(gone),
                Ok(Packet::Puback { pid, code }) => self.finished(pid, 1, code),
                Ok(Packet::Pubrec { pid, code }) => {
                    self.finished(pid, 2, code);
                    if code < 0x80 {
                        client.send(&codec::pubrel(pid)).await?;
                    }
                }
                Ok(Packet::Pubcomp { pid, .. }) => self.in_flight.retain(|one| one.pid != pid || !one.released),
                Ok(Packet::Disconnect { .. }) => return Ok(()),
                Ok(other) => self.shared.history().misbehaved.push(format!("producer: {other:?}")),
            }
            heard = Instant::now();
        }
        client.send(&codec::disconnect()).await
    }

    fn begin(&mut self) {
        let (payload, qos) = (format!("{}-{}", self.index, self.next), 1 + (self.next % 2) as u8);
        self.next += 1;
        loop {
            self.pid = self.pid % 65_535 + 1;
            if self.in_flight.iter().all(|one| one.pid != self.pid) {
                break;
            }
        }
        let sent = Sent {
            qos,
            sends: 0,
            acknowledged: false,
        };
        self.shared.history().messages.insert(payload.clone(), sent);
        self.in_flight.push_back(Unfinished {
            pid: self.pid,
            topic: format!("p8/{}", self.random.below(TOPICS)),
            payload,
            qos,
            released: false,
        });
    }

    async fn send(&mut self, client: &mut Client, at: usize, dup: bool) -> Result<(), Gone> {
        let one = &self.in_flight[at];
        if one.released {
            return client.send(&codec::pubrel(one.pid)).await;
        }
        if let Some(sent) = self.shared.history().messages.get_mut(&one.payload) {
            sent.sends += 1;
        }
        let publish = Publish {
            pid: one.pid,
            dup,
            ..Publish::new(&one.topic, one.payload.clone(), one.qos)
        };
        client.send(&publish.encode(Version::V5)).await
    }

    /// PUBACK, or PUBREC.
    fn finished(&mut self, pid: u16, qos: u8, code: u8) {
        let Some(at) = self.in_flight.iter().position(|one| one.pid == pid && one.qos == qos) else {
            return;
        };
        let mut history = self.shared.history();
        if code == NO_MATCHING_SUBSCRIBERS {
            history
                .misbehaved
                .push(format!("no subscribers for {}", self.in_flight[at].payload));
        }
        if code < 0x80
            && let Some(sent) = history.messages.get_mut(&self.in_flight[at].payload)
        {
            sent.acknowledged = true;
        }
        if qos == 2 && code < 0x80 {
            self.in_flight[at].released = true;
        } else {
            self.in_flight.remove(at);
        }
    }
}

const NO_MATCHING_SUBSCRIBERS: u8 = 0x10;
/// Topics in most shards.
const TOPICS: usize = 24;
/// Unacknowledged publishes per producer.
const WINDOW: usize = 32;
/// At most 125 messages per second and producer.
const SEND_EVERY: Duration = Duration::from_millis(8);
/// Small, so that members are often full.
const RECEIVE_MAX: u16 = 10;
const PING_EVERY: Duration = Duration::from_millis(300);
const TICK: Duration = Duration::from_millis(20);
const ANSWER_WITHIN: Duration = Duration::from_secs(8);
/// An acknowledgement that was read is applied by then, if no node is killed; and a killed one's after.
const SETTLED_WITHIN: Duration = Duration::from_secs(2);
/// What goes to another member because the first is gone does so within this.
const QUIET: Duration = Duration::from_secs(5);
