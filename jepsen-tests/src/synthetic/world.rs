//! An ideal broker and its clients, in one thread, with time that moves as events are written.
//!
//!     publisher ── in flight ──▶ apply ──▶ queue of each session ──▶ PUBLISH ──▶ acknowledgement ──▶ settled
//!                     │                        ▲
//!                     └── resent after a cut ──┘ (QoS 1: stored again; QoS 2: recognised)
//!
//! One action of a random client or node per step. What it leaves out: latency between nodes, refusals but for a few.

use super::{Plan, Random, Subscribing, Writer, message};
use crate::checker::model::{Filter, matches};
use crate::history::{End, Event, Kind, Message, Op, Process, Will};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub struct World {
    write: Writer,
    random: Random,
    plan: Plan,
    nodes_up: [bool; 3],
    clients: Vec<Client>,
    sessions: BTreeMap<String, Session>,
    groups: BTreeMap<String, VecDeque<Entry>>,
    retained: BTreeMap<String, (Message, u8)>,
    wills: Vec<DueWill>,
    reads: Vec<Read>,
    next_offset: u64,
    next_reader: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Publisher,
    Subscriber,
    Ephemeral,
    Member,
    Willing,
    Churning,
}

struct Client {
    id: String,
    role: Role,
    conn: Option<u64>,
    node: usize,
    next_seq: u64,
    sending: VecDeque<Sending>,
    /// QoS 2 identifiers received and not released.
    received: BTreeSet<u16>,
    /// Acknowledgements sent that the broker has not read.
    unread: Vec<u64>,
    will: Option<Will>,
    churned: Option<String>,
}

struct Sending {
    message: Message,
    qos: u8,
    retain: bool,
    op: (Process, Op),
    sends: u32,
    on_wire: bool,
    stored: bool,
    applied: bool,
    refused: bool,
}

#[derive(Default)]
struct Session {
    filters: Vec<(String, Subscribing)>,
    queue: VecDeque<Entry>,
}

#[derive(Clone)]
struct Entry {
    offset: u64,
    message: Message,
    qos: u8,
    retain: bool,
    group: Option<String>,
    /// On any connection before, on this one, PUBREC read.
    sent: bool,
    on_wire: bool,
    acknowledged: bool,
    old: bool,
}

struct DueWill {
    client: String,
    will: Will,
    at: u64,
}

struct Read {
    process: Process,
    client: String,
    conn: u64,
    topic: String,
    value: Option<Option<Message>>,
}

const NODES: [&str; 3] = ["n1", "n2", "n3"];

impl World {
    pub fn new(plan: &Plan) -> World {
        let mut world = World {
            write: Writer::new(),
            random: Random::new(plan.seed),
            plan: plan.clone(),
            nodes_up: [true; 3],
            clients: Vec::new(),
            sessions: BTreeMap::new(),
            groups: BTreeMap::new(),
            retained: BTreeMap::new(),
            wills: Vec::new(),
            reads: Vec::new(),
            next_offset: 1,
            next_reader: 0,
        };
        for at in 0..plan.publishers {
            world.client(&format!("p{at}"), Role::Publisher);
        }
        for at in 0..plan.subscribers {
            world.client(&format!("s{at}"), Role::Subscriber);
        }
        for (id, role) in [
            ("e0", Role::Ephemeral),
            ("m0", Role::Member),
            ("m1", Role::Member),
            ("w0", Role::Willing),
            ("w1", Role::Willing),
            ("c0", Role::Churning),
        ] {
            world.client(id, role);
        }
        world
    }

    fn client(&mut self, id: &str, role: Role) {
        self.clients.push(Client {
            id: id.into(),
            role,
            conn: None,
            node: 0,
            next_seq: 1,
            sending: VecDeque::new(),
            received: BTreeSet::new(),
            unread: Vec::new(),
            will: None,
            churned: None,
        });
    }

    pub fn run(mut self) -> Vec<Event> {
        self.write.phase("setup");
        for at in 0..self.clients.len() {
            self.connect(at);
            self.subscribe_all(at);
        }
        self.write.phase("baseline");
        let quiet = self.plan.steps / 5;
        for step in 0..self.plan.steps {
            if step == quiet {
                self.write.phase("faults");
            }
            self.step(self.plan.faults && step >= quiet);
        }
        self.write.phase("heal");
        self.nodes_up = [true; 3];
        self.write.phase("recovery");
        self.write.wait(3.0);
        self.write.phase("drain");
        self.drain();
        self.write.phase("final");
        self.finish();
        self.write.phase("end");
        self.write.events
    }

    fn step(&mut self, faults: bool) {
        self.write.time += self.random.number() % 8_000_000;
        self.due_wills(false);
        let at = self.random.below(self.clients.len());
        if self.clients[at].conn.is_none() {
            if self.random.chance(30) {
                self.connect(at);
            }
            return;
        }
        if faults && self.random.chance(2) {
            return self.fault(at);
        }
        match self.clients[at].role {
            Role::Publisher => match self.random.below(5) {
                0 | 1 if self.clients[at].sending.len() < 6 => self.send(at),
                4 if self.random.chance(20) => self.exchange_ping(at),
                _ => self.progress(at),
            },
            Role::Willing => {
                if self.random.chance(10) {
                    self.end_willing(at);
                }
            }
            Role::Churning if self.random.chance(40) => self.churn(at),
            _ => match self.random.below(8) {
                0 => self.exchange_ping(at),
                1 => self.read_retained(),
                _ => self.serve(at),
            },
        }
    }

    // ── connections ──

    fn up_node(&mut self) -> usize {
        let up: Vec<usize> = (0..3).filter(|node| self.nodes_up[*node]).collect();
        self.random.pick(&up).copied().unwrap_or(0)
    }

    fn connect(&mut self, at: usize) {
        let node = self.up_node();
        let (id, role) = (self.clients[at].id.clone(), self.clients[at].role);
        if self.plan.faults && role == Role::Subscriber && self.random.chance(5) {
            // Not answered, and without effect.
            let (process, conn) = self.write.connecting(&id, NODES[node], false, 600, None);
            self.write.connack(process, conn, None);
        }
        let (clean, expiry) = match role {
            Role::Ephemeral => (true, 0),
            _ => (false, 600),
        };
        let will = (role == Role::Willing).then(|| self.new_will(&id));
        let (process, conn) = self.write.connecting(&id, NODES[node], clean, expiry, will.clone());
        let present = !clean && self.sessions.contains_key(&id);
        if present {
            // Resumed in time: a will that waits for its delay is not published.
            self.wills.retain(|due| due.client != id || due.will.delay == 0);
        } else {
            self.sessions.insert(id.clone(), Session::default());
        }
        self.write.connack(process, conn, Some(present));
        self.attach(at, conn, node, will);
        if role == Role::Ephemeral && self.clients[at].next_seq > 1 {
            self.subscribe_all(at);
        }
        self.resend(at);
    }

    fn attach(&mut self, at: usize, conn: u64, node: usize, will: Option<Will>) {
        let client = &mut self.clients[at];
        (client.conn, client.node, client.will) = (Some(conn), node, will);
        client.unread.clear();
        if let Some(session) = self.sessions.get_mut(&client.id) {
            for entry in &mut session.queue {
                entry.old |= entry.sent || entry.on_wire;
                (entry.sent, entry.on_wire) = (entry.sent || entry.on_wire, false);
                // What the broker has not read it does not know.
                entry.acknowledged = false;
            }
        }
    }

    fn new_will(&mut self, client: &str) -> Will {
        // The next CONNECT is the one that carries it.
        let conn = self.write.next_conn();
        Will {
            message: message(&format!("{client}/{conn}"), "will/a", 0),
            qos: 1 + self.random.below(2) as u8,
            retain: false,
            delay: if self.random.chance(40) { 2 } else { 0 },
        }
    }

    /// The connection of a client ends; its will becomes due unless `graceful`.
    fn ended(&mut self, at: usize, graceful: bool) {
        let client = &mut self.clients[at];
        client.conn = None;
        client.unread.clear();
        for sending in &mut client.sending {
            (sending.on_wire, sending.applied) = (false, false);
        }
        if let Some(will) = client.will.take().filter(|_| !graceful) {
            self.wills.push(DueWill {
                client: client.id.clone(),
                at: self.write.time + u64::from(will.delay) * 1_000_000_000,
                will,
            });
        }
        let id = client.id.clone();
        if client.role == Role::Ephemeral {
            client.next_seq += 1;
            self.sessions.remove(&id);
        }
        self.give_up(at);
        self.reassign(&id);
    }

    /// Publishers sometimes do not try again.
    fn give_up(&mut self, at: usize) {
        let sending = std::mem::take(&mut self.clients[at].sending);
        for one in sending {
            if self.random.chance(20) {
                let sends = one.sends;
                self.write.published(one.op, Kind::Info, 0, sends);
            } else {
                self.clients[at].sending.push_back(one);
            }
        }
    }

    fn cut(&mut self, at: usize, how: End) {
        let client = &self.clients[at];
        if let Some(conn) = client.conn {
            self.write.lost(&client.id.clone(), conn, NODES[client.node], how);
            self.ended(at, false);
        }
    }

    fn fault(&mut self, at: usize) {
        match self.random.below(10) {
            0 => self.kill(),
            1 | 2 => self.take_over(at),
            3 if self.clients[at].role == Role::Subscriber => {
                let id = self.clients[at].id.clone();
                self.write.note(&id, Op::CrashClient { client: id.clone() });
                self.clients[at].received.clear();
                self.cut(at, End::Cut);
            }
            _ => self.cut(at, End::Cut),
        }
    }

    fn kill(&mut self) {
        let node = self.random.below(3);
        self.nodes_up = [true; 3];
        self.nodes_up[node] = false;
        let leads: &[&str] = if self.random.chance(50) { &["shard-0"] } else { &[] };
        let roles = json!({ NODES[node]: { "leads": leads } });
        self.write.fault("kill", "once", NODES[node], json!({ "roles": roles }));
        for at in 0..self.clients.len() {
            if self.clients[at].node == node {
                self.cut(at, End::Closed);
            }
        }
    }

    /// Two CONNECTs at once, or one beside an open connection.
    fn take_over(&mut self, at: usize) {
        let client = &self.clients[at];
        let (id, old, old_node) = (client.id.clone(), client.conn, client.node);
        if matches!(client.role, Role::Ephemeral | Role::Willing) {
            return self.cut(at, End::Silent);
        }
        let (first, second) = (self.up_node(), self.up_node());
        let (process, conn) = self.write.connecting(&id, NODES[first], false, 600, None);
        let both = self.random.chance(30);
        let other = both.then(|| self.write.connecting(&id, NODES[second], false, 600, None));
        self.write.connack(process, conn, Some(true));
        if let Some(old) = old {
            self.write.lost(&id, old, NODES[old_node], End::Closed);
        }
        self.ended(at, false);
        self.attach(at, conn, first, None);
        if let Some((process, other)) = other {
            self.write.connack(process, other, Some(true));
            self.write.lost(&id, conn, NODES[first], End::Closed);
            self.ended(at, false);
            self.attach(at, other, second, None);
        }
        self.resend(at);
    }

    fn end_willing(&mut self, at: usize) {
        let client = &self.clients[at];
        let (id, node, Some(conn)) = (client.id.clone(), NODES[client.node], client.conn) else {
            return;
        };
        let reason = match self.random.below(3) {
            0 => return self.cut(at, End::Cut),
            1 => 0,
            _ => 4,
        };
        let op = || Op::Disconnect {
            client: id.clone(),
            conn,
            node: node.into(),
            reason,
            expiry: None,
        };
        let process = self.write.invoke(op());
        self.write.event(process, Kind::Ok, op());
        self.ended(at, reason == 0);
    }

    fn due_wills(&mut self, all: bool) {
        let now = self.write.time;
        let (due, waiting): (Vec<DueWill>, Vec<DueWill>) = std::mem::take(&mut self.wills)
            .into_iter()
            .partition(|will| all || will.at < now);
        self.wills = waiting;
        for will in due {
            self.apply(&will.will.message, will.will.qos, false, &will.client);
        }
    }

    fn exchange_ping(&mut self, at: usize) {
        let client = &self.clients[at];
        if let Some(conn) = client.conn {
            let id = client.id.clone();
            self.read_acknowledgements(at);
            self.write.ping(&id, conn);
        }
    }

    // ── subscriptions ──

    fn subscribe_all(&mut self, at: usize) {
        let client = &self.clients[at];
        let (id, Some(conn)) = (client.id.clone(), client.conn) else {
            return;
        };
        let mut filters: Vec<(String, u8, Option<u32>)> = Vec::new();
        match client.role {
            Role::Subscriber => {
                filters.push(("t/+".into(), 2, None));
                filters.push(("r/#".into(), 1, None));
                if id == "s0" {
                    filters.push(("will/#".into(), 2, None));
                }
                if id == "s1" {
                    filters.push(("q/a".into(), 2, Some(7)));
                }
            }
            Role::Ephemeral => filters.push(("t/0".into(), 1, None)),
            Role::Member => filters.push(("$share/g/j/#".into(), 2, None)),
            _ => {}
        }
        for (filter, qos, id_of) in filters {
            let options = Subscribing {
                qos,
                id: id_of,
                ..Subscribing::default()
            };
            self.subscribe(&id, conn, &filter, options);
        }
    }

    fn subscribe(&mut self, id: &str, conn: u64, filter: &str, options: Subscribing) {
        self.write.subscribe(id, conn, filter, &options);
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        for (topic, (message, qos)) in &self.retained {
            if Filter::new(filter).share.is_none() && matches(filter, topic) {
                let entry = entry(self.next_offset, message, options.qos.min(*qos), true, None);
                session.queue.push_back(entry);
                self.next_offset += 1;
            }
        }
        session.filters.push((filter.into(), options));
    }

    fn churn(&mut self, at: usize) {
        let client = &self.clients[at];
        let (id, Some(conn)) = (client.id.clone(), client.conn) else {
            return;
        };
        self.read_acknowledgements(at);
        match self.clients[at].churned.take() {
            Some(filter) => {
                self.write.unsubscribe(&id, conn, &filter);
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.filters.retain(|(held, _)| *held != filter);
                }
            }
            None => {
                let filter = format!("t/{}", self.random.below(self.plan.topics));
                self.clients[at].churned = Some(filter.clone());
                let options = Subscribing {
                    qos: 1,
                    ..Subscribing::default()
                };
                self.subscribe(&id, conn, &filter, options);
            }
        }
    }

    // ── publishing ──

    fn send(&mut self, at: usize) {
        let client = &mut self.clients[at];
        let (id, Some(conn)) = (client.id.clone(), client.conn) else {
            return;
        };
        let (topic, retain) = match self.random.below(10) {
            0 | 1 => (format!("r/{}", self.random.below(2)), true),
            2 | 3 => ("j/a".to_owned(), false),
            4 => ("q/a".to_owned(), false),
            _ => (format!("t/{}", self.random.below(self.plan.topics)), false),
        };
        let qos = if self.random.chance(50) { 2 } else { 1 };
        let message = message(&id, &topic, client.next_seq);
        client.next_seq += 1;
        let op = self.write.publish(&id, conn, &message, qos, retain);
        let refused = self.random.chance(2);
        self.clients[at].sending.push_back(Sending {
            message,
            qos,
            retain,
            op,
            sends: 1,
            on_wire: true,
            stored: false,
            applied: false,
            refused,
        });
    }

    fn resend(&mut self, at: usize) {
        let client = &self.clients[at];
        let (id, Some(conn)) = (client.id.clone(), client.conn) else {
            return;
        };
        let node = NODES[client.node];
        for one in &mut self.clients[at].sending {
            (one.sends, one.on_wire, one.refused) = (one.sends + 1, true, false);
            self.write.note(
                &id,
                Op::Resend {
                    client: id.clone(),
                    conn,
                    node: node.into(),
                    message: one.message.clone(),
                    pid: 1 + (one.message.seq % 60_000) as u16,
                },
            );
        }
    }

    /// The broker takes the next PUBLISH of a client, or the client gets the next acknowledgement.
    fn progress(&mut self, at: usize) {
        let Some(conn) = self.clients[at].conn else { return };
        let answered = self.clients[at].sending.front().is_some_and(|one| one.applied);
        if answered && self.random.chance(60) {
            if let Some(one) = self.clients[at].sending.pop_front() {
                let kind = if one.refused { Kind::Fail } else { Kind::Ok };
                self.write.published(one.op, kind, conn, one.sends);
            }
            return;
        }
        let next = self.clients[at]
            .sending
            .iter_mut()
            .find(|one| !one.applied && one.on_wire);
        let Some(one) = next else { return };
        one.applied = true;
        let repeated = one.qos == 2 && one.stored;
        if one.refused || repeated {
            return;
        }
        one.stored = true;
        let (message, qos, retain) = (one.message.clone(), one.qos, one.retain);
        let id = self.clients[at].id.clone();
        self.apply(&message, qos, retain, &id);
    }

    fn apply(&mut self, message: &Message, qos: u8, retain: bool, _publisher: &str) {
        let offset = self.next_offset;
        self.next_offset += 1;
        if retain {
            self.retained.insert(message.topic.clone(), (message.clone(), qos));
        }
        let mut groups: BTreeSet<String> = BTreeSet::new();
        for session in self.sessions.values_mut() {
            let mut granted = None;
            for (filter, options) in &session.filters {
                let filter = Filter::new(filter);
                match filter.group() {
                    _ if !filter.matches(&message.topic) => {}
                    Some(group) => drop(groups.insert(group.into_owned())),
                    None => granted = granted.max(Some(options.qos)),
                }
            }
            if let Some(granted) = granted {
                session
                    .queue
                    .push_back(entry(offset, message, qos.min(granted), false, None));
            }
        }
        for group in groups {
            let entry = entry(offset, message, qos, false, Some(group.clone()));
            self.groups.entry(group).or_default().push_back(entry);
        }
    }

    // ── delivery ──

    /// Gives waiting entries of groups to connected members.
    fn assign(&mut self, at: usize) {
        let client = &self.clients[at];
        if client.role != Role::Member || client.conn.is_none() {
            return;
        }
        for entries in self.groups.values_mut() {
            if let (Some(entry), Some(session)) = (entries.pop_front(), self.sessions.get_mut(&client.id)) {
                session.queue.push_back(entry);
            }
        }
    }

    /// QoS 1 entries of a member that went are given to others, or wait for it.
    fn reassign(&mut self, id: &str) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        if !self.random.chance(60) {
            return;
        }
        let (back, keep): (VecDeque<Entry>, VecDeque<Entry>) = session
            .queue
            .drain(..)
            .partition(|entry| entry.group.is_some() && entry.qos == 1);
        session.queue = keep;
        for mut entry in back.into_iter().rev() {
            (entry.sent, entry.on_wire, entry.acknowledged, entry.old) = (false, false, false, false);
            if let Some(group) = entry.group.clone() {
                self.groups.entry(group).or_default().push_front(entry);
            }
        }
    }

    /// Sends, or takes the acknowledgement of, one entry of a client's queue.
    fn serve(&mut self, at: usize) {
        self.assign(at);
        let client = &mut self.clients[at];
        let (id, Some(conn)) = (client.id.clone(), client.conn) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let in_flight = session.queue.iter().filter(|entry| entry.on_wire).count();
        let acknowledge = in_flight > 0 && self.random.chance(55);
        if acknowledge {
            let waiting = |entry: &&mut Entry| entry.on_wire && !entry.acknowledged;
            let Some(entry) = session.queue.iter_mut().find(waiting) else {
                return self.read_acknowledgements(at);
            };
            entry.acknowledged = true;
            let packet = if entry.qos == 1 { "puback" } else { "pubrec" };
            client.unread.push(entry.offset);
            self.write
                .acknowledge(&id, conn, &entry.message, pid(entry.offset), packet);
            return;
        }
        let Some(entry) = session
            .queue
            .iter_mut()
            .find(|entry| !entry.on_wire && !entry.acknowledged)
        else {
            return;
        };
        if in_flight >= 10 {
            return;
        }
        entry.on_wire = entry.qos > 0;
        let dup = entry.qos > 0 && (entry.sent || entry.old);
        let pid_of = if entry.qos == 0 { 0 } else { pid(entry.offset) };
        let handed = entry.qos < 2 || client.received.insert(pid_of);
        let flags = (entry.qos, pid_of, dup, entry.retain, handed);
        let (message, offset) = (entry.message.clone(), entry.offset);
        let index = self.write.received(&id, conn, &message, flags, in_flight as u32 + 1);
        if let Op::Recv { ids, .. } = &mut self.write.events[index].op
            && message.topic == "q/a"
        {
            ids.push(7);
        }
        if entry.qos == 0 {
            session.queue.retain(|entry| entry.offset != offset);
        }
    }

    /// The broker reads what the client acknowledged; QoS 2 runs to its end.
    fn read_acknowledgements(&mut self, at: usize) {
        let client = &mut self.clients[at];
        let (id, Some(conn)) = (client.id.clone(), client.conn) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        for offset in std::mem::take(&mut client.unread) {
            let Some(entry) = session.queue.iter().find(|entry| entry.offset == offset) else {
                continue;
            };
            if entry.qos == 2 {
                client.received.remove(&pid(offset));
                self.write
                    .acknowledge(&id, conn, &entry.message, pid(offset), "pubcomp");
            }
            session.queue.retain(|entry| entry.offset != offset);
        }
    }

    // ── retained messages ──

    fn read_retained(&mut self) {
        if let Some(at) = self
            .random
            .pick(&(0..self.reads.len()).collect::<Vec<usize>>())
            .copied()
        {
            let read = &mut self.reads[at];
            if read.value.is_none() {
                read.value = Some(self.retained.get(&read.topic).map(|(message, _)| message.clone()));
            } else if self.random.chance(70) {
                self.complete_read(at);
            }
        }
        if self.reads.len() < 3 {
            let topic = format!("r/{}", self.random.below(2));
            self.begin_read(&topic);
        }
    }

    fn begin_read(&mut self, topic: &str) {
        let client = format!("x{}", self.next_reader);
        self.next_reader += 1;
        let node = self.up_node();
        let conn = self.write.connect(&client, NODES[node], true, 0, false);
        let process = self.write.invoke(read_op(&client, conn, topic, None));
        self.reads.push(Read {
            process,
            client,
            conn,
            topic: topic.into(),
            value: None,
        });
    }

    fn complete_read(&mut self, at: usize) {
        let read = self.reads.remove(at);
        let value = read.value.flatten();
        let kind = if value.is_some() { Kind::Ok } else { Kind::Info };
        let op = read_op(&read.client, read.conn, &read.topic, value);
        self.write.event(read.process, kind, op);
    }

    // ── the end ──

    fn drain(&mut self) {
        self.due_wills(true);
        for at in 0..self.clients.len() {
            if self.clients[at].conn.is_none() {
                self.connect(at);
            }
            while !self.clients[at].sending.is_empty() {
                self.progress(at);
            }
        }
        while !self.reads.is_empty() {
            self.reads[0].value.get_or_insert(None);
            self.complete_read(0);
        }
        for _ in 0..2 {
            for at in 0..self.clients.len() {
                while self.has_work(at) {
                    self.serve(at);
                    if self.random.chance(10) {
                        self.read_acknowledgements(at);
                    }
                }
            }
        }
        self.write.wait(10.0);
        for at in 0..self.clients.len() {
            self.exchange_ping(at);
        }
    }

    fn has_work(&self, at: usize) -> bool {
        let client = &self.clients[at];
        let waiting = client.role == Role::Member && self.groups.values().any(|entries| !entries.is_empty());
        let queued = self
            .sessions
            .get(&client.id)
            .is_some_and(|session| !session.queue.is_empty());
        client.conn.is_some() && (waiting || queued)
    }

    fn finish(&mut self) {
        for at in 0..self.clients.len() {
            self.exchange_ping(at);
        }
        for topic in ["r/0", "r/1"] {
            for _ in 0..2 {
                self.begin_read(topic);
                let value = self.retained.get(topic).map(|(message, _)| message.clone());
                self.reads[0].value = Some(value);
                self.complete_read(0);
            }
        }
        for node in NODES {
            let value = json!({
                "meta": { "applied": self.next_offset, "digest": "m" },
                "shard-0": { "applied": self.next_offset * 2, "digest": "s" },
            });
            self.write.note(
                "harness",
                Op::Observe {
                    about: "digest".into(),
                    node: Some(node.into()),
                    value,
                },
            );
        }
    }
}

fn entry(offset: u64, message: &Message, qos: u8, retain: bool, group: Option<String>) -> Entry {
    Entry {
        offset,
        message: message.clone(),
        qos,
        retain,
        group,
        sent: false,
        on_wire: false,
        acknowledged: false,
        old: false,
    }
}

fn pid(offset: u64) -> u16 {
    1 + (offset % 60_000) as u16
}

fn read_op(client: &str, conn: u64, topic: &str, value: Option<Message>) -> Op {
    Op::ReadRetained {
        client: client.into(),
        conn,
        node: "n1".into(),
        topic: topic.into(),
        value,
        absent: false,
    }
}
