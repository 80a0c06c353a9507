//! What a workload asks a client to do on the connection that it has: publish, subscribe, unsubscribe, read a retained message,
//! ping. Each records its invocation before its first byte, and its end when that is known.

use super::link::{Link, PING_EVERY};
use super::session::{Await, Outgoing};
use super::{Client, Seen};
use crate::history::{End, Kind, Message, Op};
use crate::mqtt::{Property, Publish, SUBSCRIPTION_IDENTIFIER, Sent, Value, payload};
use std::time::Duration;
use tokio::time::Instant;

/// A filter with its subscription options.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub filter: String,
    pub qos: u8,
    pub no_local: bool,
    pub retain_as_published: bool,
    pub retain_handling: u8,
    pub id: Option<u32>,
}

impl Filter {
    pub fn new(filter: impl Into<String>, qos: u8) -> Filter {
        Filter {
            filter: filter.into(),
            qos,
            ..Filter::default()
        }
    }

    fn options(&self) -> u8 {
        self.qos | u8::from(self.no_local) << 2 | u8::from(self.retain_as_published) << 3 | self.retain_handling << 4
    }
}

impl Client {
    /// Sends a message of its own making; whether there was a connection to send it on.
    pub async fn publish(&mut self, topic: &str, qos: u8, retain: bool, filler: usize) -> bool {
        self.publish_kind(topic, qos, retain, false, filler).await
    }

    /// Removes the retained message of `topic`: a retained PUBLISH with an empty payload. [MQTT-3.3.1-6]
    pub async fn delete_retained(&mut self, topic: &str, qos: u8) -> bool {
        self.publish_kind(topic, qos, true, true, 0).await
    }

    async fn publish_kind(&mut self, topic: &str, qos: u8, retain: bool, delete: bool, filler: usize) -> bool {
        let Some(link) = &self.link else { return false };
        let (conn, node) = (link.conn, link.node.clone());
        let message = self.new_message(topic);
        let pid = if qos > 0 { self.free_pid() } else { 0 };
        let mut op = self.publish_op(conn, &node, &message, qos, retain, pid);
        if let Op::Publish { delete: deletes, .. } = &mut op {
            *deletes = delete;
        }
        let process = self.invoke(&op);
        let outgoing = Outgoing {
            pid,
            message,
            qos,
            retain,
            delete,
            filler,
            process,
            sends: 1,
            conn,
            node,
            awaits: Await::Ack,
            sent: Instant::now(),
        };
        let packet = Sent::Publish(outgoing.packet(self.version, false));
        if qos > 0 {
            self.session.outgoing.push_back(outgoing);
            self.send(conn, &packet).await;
            return true;
        }
        let sent = self.send(conn, &packet).await;
        let kind = if sent { Kind::Ok } else { Kind::Info };
        self.complete(outgoing.process, kind, op);
        true
    }

    /// Publishes at QoS 1 on a connection that another has taken over, if there is one that still looks open: it must not be
    /// acknowledged.
    pub async fn publish_on_old(&mut self, topic: &str) -> bool {
        let Some(old) = self.old.last() else { return false };
        let (conn, node) = (old.conn, old.node.clone());
        let message = self.new_message(topic);
        let pid = self.free_pid();
        let op = self.publish_op(conn, &node, &message, 1, false, pid);
        let process = self.invoke(&op);
        let packet = Publish {
            topic: topic.into(),
            payload: payload::payload(&message, 0),
            qos: 1,
            dup: false,
            retain: false,
            pid,
            properties: payload::properties(self.version, &message),
        };
        if let Some(link) = self.link_mut(conn) {
            link.late.insert(pid, (process, op));
        }
        self.send(conn, &Sent::Publish(packet)).await;
        true
    }

    /// Subscribes, and waits for SUBACK; its code. A node that does not answer in time is given up.
    pub async fn subscribe(&mut self, filter: &Filter) -> Option<u8> {
        let Some(link) = &self.link else { return None };
        let conn = link.conn;
        let five = self.version.is_5();
        let op = Op::Subscribe {
            client: self.id.clone(),
            conn,
            node: link.node.clone(),
            filter: filter.filter.clone(),
            qos: filter.qos,
            no_local: filter.no_local && five,
            retain_as_published: filter.retain_as_published && five,
            retain_handling: if five { filter.retain_handling } else { 0 },
            id: filter.id.filter(|_| five),
            reason: None,
        };
        let pid = self.free_pid();
        let id = filter.id.map(|id| Property(SUBSCRIPTION_IDENTIFIER, Value::Var(id)));
        let packet = Sent::Subscribe {
            pid,
            filter: filter.filter.clone(),
            options: filter.options(),
            properties: id.into_iter().collect(),
        };
        self.ask(conn, pid, op, packet).await
    }

    /// Unsubscribes, and waits for UNSUBACK; its code.
    pub async fn unsubscribe(&mut self, filter: &str) -> Option<u8> {
        let Some(link) = &self.link else { return None };
        let conn = link.conn;
        let op = Op::Unsubscribe {
            client: self.id.clone(),
            conn,
            node: link.node.clone(),
            filter: filter.into(),
            reason: None,
        };
        let pid = self.free_pid();
        let filter = filter.into();
        self.ask(conn, pid, op, Sent::Unsubscribe { pid, filter }).await
    }

    async fn ask(&mut self, conn: u64, pid: u16, mut op: Op, packet: Sent) -> Option<u8> {
        let process = self.invoke(&op);
        self.send(conn, &packet).await;
        let deadline = Instant::now() + ANSWER_LIMIT;
        let answer = loop {
            if !self.links().any(|link| link.conn == conn) {
                break None;
            }
            match self.next(deadline).await {
                Seen::Suback { pid: of, reason } | Seen::Unsuback { pid: of, reason } if of == pid => {
                    break Some(reason);
                }
                Seen::Nothing => {
                    self.lose(conn, End::Silent);
                    break None;
                }
                _ => {}
            }
        };
        if let Op::Subscribe { reason, .. } | Op::Unsubscribe { reason, .. } = &mut op {
            *reason = answer;
        }
        let kind = match answer {
            Some(..0x80) => Kind::Ok,
            Some(_) => Kind::Fail,
            None => Kind::Info,
        };
        self.complete(process, kind, op);
        answer
    }

    /// Reads the retained message of `topic` as a session that has no subscription to it yet. That there is none is known
    /// when two subscriptions, one after the other, brought nothing in [`READ_LIMIT`] each, on a connection that was served to
    /// the end. A live message in place of the stored one that it replaced leaves it open.
    pub async fn read_retained(&mut self, topic: &str, qos: u8) -> Option<Message> {
        let Some(link) = &self.link else { return None };
        let conn = link.conn;
        let mut op = Op::ReadRetained {
            client: self.id.clone(),
            conn,
            node: link.node.clone(),
            topic: topic.into(),
            value: None,
            absent: false,
        };
        let process = self.invoke(&op);
        self.retained.remove(topic);
        self.came.remove(topic);
        let mut asked = 0;
        while asked < 2 && self.asks_retained(topic, qos).await {
            asked += 1;
            if self.came.contains(topic) {
                break;
            }
        }
        let read = self.retained.get(topic).cloned();
        let served = asked == 2 && self.link.as_ref().is_some_and(|link| link.conn == conn);
        let none = served && read.is_none() && !self.came.contains(topic);
        if let Op::ReadRetained { value, absent, .. } = &mut op {
            value.clone_from(&read);
            *absent = none;
        }
        let kind = if read.is_some() || none { Kind::Ok } else { Kind::Info };
        self.complete(process, kind, op);
        read
    }

    /// One subscription, and what it brings; whether it was granted, and the connection served afterwards.
    async fn asks_retained(&mut self, topic: &str, qos: u8) -> bool {
        let granted = self.subscribe(&Filter::new(topic, qos)).await;
        if granted.is_none_or(|code| code >= 0x80) {
            return false;
        }
        if self.until(READ_LIMIT, |client| client.came.contains(topic)).await {
            let stored = |client: &Client| client.retained.contains_key(topic);
            return self.until(STORED_LIMIT, stored).await || self.link.is_some();
        }
        self.round_trip().await && self.link.is_some()
    }

    /// PINGREQ where it is time and none is open.
    pub(super) async fn send_pings(&mut self) {
        let now = Instant::now();
        let due = |link: &&Link| link.next_ping <= now && link.ping.is_none() && link.leaving.is_none();
        let conns: Vec<u64> = self.links().filter(due).map(|link| link.conn).collect();
        for conn in conns {
            self.ping(conn).await;
        }
    }

    /// A round trip now; whether it came back.
    pub async fn round_trip(&mut self) -> bool {
        let Some(link) = &self.link else { return false };
        if link.ping.is_none() {
            self.ping(link.conn).await;
        }
        let conn = self.link.as_ref().map(|link| link.conn);
        let back = |client: &Client| client.link.as_ref().is_some_and(|link| link.ping.is_none());
        self.until(ANSWER_LIMIT, back).await && self.link.as_ref().map(|link| link.conn) == conn
    }

    async fn ping(&mut self, conn: u64) {
        let Some(link) = self.links().find(|link| link.conn == conn) else {
            return;
        };
        let op = self.ping_op(link);
        let process = self.invoke(&op);
        if let Some(link) = self.link_mut(conn) {
            let now = Instant::now();
            link.ping = Some((process, now));
            link.next_ping = now + PING_EVERY;
        }
        self.send(conn, &Sent::Ping).await;
    }

    pub(super) fn ping_op(&self, link: &Link) -> Op {
        Op::Ping {
            client: self.id.clone(),
            conn: link.conn,
            node: link.node.clone(),
        }
    }

    /// Writes a packet; a connection that does not take it is lost.
    pub(super) async fn send(&mut self, conn: u64, packet: &Sent) -> bool {
        let Some(link) = self.link_mut(conn) else { return false };
        match link.send(packet).await {
            Ok(()) => true,
            Err(error) => {
                // What the node sent before is still to be read: only then the end is recorded, in its place.
                if error.kind() == std::io::ErrorKind::TimedOut {
                    self.lose(conn, End::Silent);
                }
                false
            }
        }
    }

    fn new_message(&mut self, topic: &str) -> Message {
        self.seq += 1;
        Message {
            publisher: self.id.clone(),
            topic: topic.into(),
            seq: self.seq,
        }
    }

    fn free_pid(&mut self) -> u16 {
        let late: Vec<u16> = self.old.iter().flat_map(|link| link.late.keys().copied()).collect();
        self.session.next_pid(|pid| late.contains(&pid))
    }

    fn publish_op(&self, conn: u64, node: &str, message: &Message, qos: u8, retain: bool, pid: u16) -> Op {
        Op::Publish {
            client: self.id.clone(),
            conn,
            node: node.into(),
            message: message.clone(),
            qos,
            retain,
            pid,
            delete: false,
            sends: None,
            reason: None,
        }
    }
}

/// SUBACK waits for the whole cluster: longer than a node's lease and its NodeDown.
const ANSWER_LIMIT: Duration = Duration::from_secs(6);
const READ_LIMIT: Duration = Duration::from_secs(3);
/// For a stored message behind a live one.
const STORED_LIMIT: Duration = Duration::from_millis(300);
