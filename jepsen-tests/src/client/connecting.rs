//! Beginning and end of connections: CONNECT and CONNACK, take-over, DISCONNECT, cut, crash.
//!
//!     begin ──▶ Opening ──CONNACK 0x00──▶ link     (the link before it becomes an old one, and is still read)
//!                  └──another, closed, silent──▶ fail, info
//!
//! With Session Present 1 everything open is sent again, in order, with DUP; with 0 it is given up: whoever sent it again under a
//! new session could not tell a second copy from the first.

use super::link::{Address, Incoming, Link};
use super::session::{Await, Outgoing};
use super::{Client, KEEP_ALIVE, Seen};
use crate::history::{End, Kind, Message, Op, Process, Will};
use crate::mqtt::{
    Ack, Connect, Property, RECEIVE_MAXIMUM, SESSION_EXPIRY_INTERVAL, Sent, Value, WILL_DELAY_INTERVAL, WillMessage,
    payload,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What CONNECT says, but for the client id.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub clean: bool,
    /// Seconds. 3.1.1 has none: a session with Clean Session 0 never ends.
    pub expiry: u32,
    /// None: not sent.
    pub receive_maximum: Option<u16>,
    pub will: Option<WillPlan>,
}

impl Options {
    /// A session that outlives every run.
    pub fn persistent() -> Options {
        Options {
            expiry: 3600,
            ..Options::default()
        }
    }

    pub fn clean() -> Options {
        Options {
            clean: true,
            ..Options::default()
        }
    }
}

#[derive(Clone, Debug)]
pub struct WillPlan {
    pub topic: String,
    pub qos: u8,
    pub retain: bool,
    /// Seconds; 3.1.1 has none.
    pub delay: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connected {
    Served {
        present: bool,
    },
    /// CONNACK with another reason than 0x00.
    Refused(u8),
    /// TCP gave no connection.
    Unreachable,
    /// No CONNACK came: see `abandoned-connect`.
    Abandoned,
}

impl Connected {
    pub fn is_served(self) -> bool {
        matches!(self, Connected::Served { .. })
    }
}

/// A connection whose CONNECT was sent.
pub(super) struct Opening {
    pub link: Link,
    pub process: Process,
    pub op: Op,
    pub deadline: Instant,
    clean: bool,
    changes_session: bool,
}

impl Client {
    /// Connects to `node`; a connection that there is becomes an old one once this one is served.
    pub async fn connect(&mut self, node: &str, options: &Options) -> Connected {
        match self.begin(node, options).await {
            Ok(conn) => self.opened(conn).await,
            Err(connected) => connected,
        }
    }

    /// A random node other than the last; then the others in turn, until one serves or all have been tried.
    pub async fn connect_anywhere(&mut self, options: &Options) -> Connected {
        let mut nodes = self.scene.names();
        self.random.shuffle(&mut nodes);
        let mut connected = Connected::Unreachable;
        for node in nodes {
            connected = self.connect(&node, options).await;
            if connected.is_served() || self.doubtful {
                break;
            }
        }
        connected
    }

    /// CONNECT to two nodes at once.
    pub async fn contend(&mut self, nodes: [&str; 2], options: &Options) {
        let first = self.begin(nodes[0], options).await;
        let second = self.begin(nodes[1], options).await;
        for conn in [first, second].into_iter().flatten() {
            self.opened(conn).await;
        }
    }

    /// Sends CONNECT.
    async fn begin(&mut self, node: &str, options: &Options) -> Result<u64, Connected> {
        // Until CONNACK nothing is forgotten: a node that was not reached has not replaced the session.
        let clean = options.clean || self.forgot;
        let conn = self.scene.next_conn();
        let expiry = match (self.version.is_5(), clean) {
            (true, _) => options.expiry,
            (false, true) => 0,
            (false, false) => u32::MAX,
        };
        let will = options.will.as_ref().map(|plan| self.will(conn, plan));
        let address = self.scene.address(node, self.over_websocket);
        let op = Op::Connect {
            client: self.id.clone(),
            conn,
            node: node.into(),
            version: self.version.level(),
            clean,
            expiry,
            websocket: matches!(address, Address::WebSocket(_)),
            receive_maximum: options
                .receive_maximum
                .filter(|_| self.version.is_5())
                .unwrap_or(65_535),
            will: will.clone(),
            session_present: None,
            reason: None,
        };
        let changes_session = clean || self.expiry.is_some_and(|known| known != expiry);
        let process = self.invoke(&op);
        let link = Link::open(conn, node, address, Arc::new(self.version), self.to.clone()).await;
        let Ok(mut link) = link else {
            self.complete(process, Kind::Fail, op);
            return Err(Connected::Unreachable);
        };
        let sent = link
            .send(&Sent::Connect(self.connect_packet(clean, expiry, options, will)))
            .await;
        self.opening.push(Opening {
            link,
            process,
            op,
            deadline: Instant::now() + CONNACK_LIMIT,
            clean,
            changes_session,
        });
        if sent.is_err() {
            self.lose(conn, End::Closed);
            return Err(Connected::Abandoned);
        }
        self.retained.clear();
        Ok(conn)
    }

    fn will(&self, conn: u64, plan: &WillPlan) -> Will {
        Will {
            message: Message {
                publisher: format!("{}/{conn}", self.id),
                topic: plan.topic.clone(),
                seq: 0,
            },
            qos: plan.qos,
            retain: plan.retain,
            delay: if self.version.is_5() { plan.delay } else { 0 },
        }
    }

    fn connect_packet(&self, clean: bool, expiry: u32, options: &Options, will: Option<Will>) -> Connect {
        let mut properties = Vec::new();
        if expiry > 0 {
            properties.push(Property(SESSION_EXPIRY_INTERVAL, Value::Four(expiry)));
        }
        if let Some(maximum) = options.receive_maximum {
            properties.push(Property(RECEIVE_MAXIMUM, Value::Two(maximum)));
        }
        let will = will.map(|will| {
            let mut properties = payload::properties(self.version, &will.message);
            if will.delay > 0 {
                properties.push(Property(WILL_DELAY_INTERVAL, Value::Four(will.delay)));
            }
            WillMessage {
                payload: payload::payload(&will.message, 8),
                topic: will.message.topic,
                qos: will.qos,
                retain: will.retain,
                properties,
            }
        });
        Connect {
            client_id: self.id.clone(),
            clean,
            keep_alive: KEEP_ALIVE,
            properties,
            will,
        }
    }

    /// Drives the client until CONNACK came on `conn`, or will not.
    async fn opened(&mut self, conn: u64) -> Connected {
        loop {
            if !self.opening.iter().any(|opening| opening.link.conn == conn) {
                return self.outcomes.remove(&conn).unwrap_or(Connected::Abandoned);
            }
            // The deadline of the opening itself ends this.
            self.next(Instant::now() + CONNACK_LIMIT).await;
        }
    }

    /// CONNACK came on an opening connection.
    pub(super) async fn connack(&mut self, conn: u64, present: bool, reason: u8) -> Seen {
        let Some(at) = self.opening.iter().position(|opening| opening.link.conn == conn) else {
            return self.wrong(conn, "a second CONNACK".into());
        };
        let mut opening = self.opening.remove(at);
        if let Op::Connect {
            session_present,
            reason: told,
            expiry,
            ..
        } = &mut opening.op
        {
            (*session_present, *told) = (Some(present), Some(reason));
            if reason == 0 {
                self.expiry = Some(*expiry);
            }
        }
        if reason != 0 {
            // A node that cannot serve may have begun or ended the session before it knew.
            let kind = if UNAVAILABLE.contains(&reason) {
                self.doubt(&opening);
                Kind::Info
            } else {
                Kind::Fail
            };
            self.complete(opening.process, kind, opening.op);
            self.outcomes.insert(conn, Connected::Refused(reason));
            return Seen::Other;
        }
        self.complete(opening.process, Kind::Ok, opening.op);
        self.outcomes.insert(conn, Connected::Served { present });
        self.old.extend(self.link.take());
        self.link = Some(opening.link);
        self.last_message = Instant::now();
        self.resumed = present;
        self.forgot &= !opening.clean;
        match present && !opening.clean {
            true => self.send_again().await,
            false => self.forget(),
        }
        Seen::Connack(conn)
    }

    async fn send_again(&mut self) {
        let open: Vec<Outgoing> = self.session.outgoing.iter().cloned().collect();
        for outgoing in open {
            let Some(link) = &self.link else { return };
            let (conn, node) = (link.conn, link.node.clone());
            let packet = match outgoing.awaits {
                Await::Ack => {
                    self.note(Op::Resend {
                        client: self.id.clone(),
                        conn,
                        node,
                        message: outgoing.message.clone(),
                        pid: outgoing.pid,
                    });
                    Sent::Publish(outgoing.packet(self.version, true))
                }
                Await::Comp => Sent::Ack {
                    kind: Ack::Pubrel,
                    pid: outgoing.pid,
                    reason: 0,
                },
            };
            if let Some(open) = self.session.open(outgoing.pid) {
                open.sends += u32::from(outgoing.awaits == Await::Ack);
                open.sent = Instant::now();
            }
            self.send(conn, &packet).await;
        }
    }

    /// Gives up everything open and received.
    fn forget(&mut self) {
        for outgoing in std::mem::take(&mut self.session.outgoing) {
            self.give_up(outgoing);
        }
        self.session.received.clear();
    }

    /// Gives up every exchange that is open: the publisher does not come back.
    pub fn give_up_all(&mut self) {
        self.forget();
        self.forgot = true;
    }

    /// DISCONNECT, and what comes until the node has closed the connection; whether it surely was processed.
    pub async fn disconnect(&mut self, reason: u8, expiry: Option<u32>) -> bool {
        let expiry = expiry.filter(|_| self.version.is_5());
        let reason = if self.version.is_5() { reason } else { 0 };
        let Some(link) = &self.link else { return false };
        let conn = link.conn;
        let op = Op::Disconnect {
            client: self.id.clone(),
            conn,
            node: link.node.clone(),
            reason,
            expiry,
        };
        let process = self.invoke(&op);
        if let Some(link) = &mut self.link {
            link.leaving = Some((process, op));
        }
        self.left.remove(&conn);
        self.send(conn, &Sent::Disconnect { reason, expiry }).await;
        let deadline = Instant::now() + LEAVE_LIMIT;
        while self.links().any(|link| link.conn == conn) {
            if self.next(deadline).await == Seen::Nothing {
                self.lose(conn, End::Silent);
            }
        }
        self.expiry = expiry.or(self.expiry);
        self.left.remove(&conn)
    }

    /// Closes every socket without a word; the session stays.
    pub fn cut(&mut self) {
        let conns: Vec<u64> = self.links().map(|link| link.conn).collect();
        for conn in conns {
            self.lose(conn, End::Cut);
        }
    }

    /// The client program ends, and forgets everything.
    pub fn crash(&mut self) {
        self.cut();
        self.note(Op::CrashClient {
            client: self.id.clone(),
        });
        self.give_up_all();
    }

    /// The stream of `conn` has ended.
    pub(super) async fn ended(&mut self, conn: u64, orderly: bool) -> Seen {
        let leaving = self.links().any(|link| link.conn == conn && link.leaving.is_some());
        if leaving {
            // A killed node sends FIN too, and RST to what comes after it: then DISCONNECT was not read.
            tokio::time::sleep(RESET_COMES_WITHIN).await;
            let link = self.link_mut(conn).expect("it was there");
            let processed = orderly && link.reason.is_none() && !link.was_reset();
            let (process, op) = link.leaving.take().expect("it leaves");
            let kind = if processed { Kind::Ok } else { Kind::Info };
            if processed {
                self.left.insert(conn);
            }
            self.complete(process, kind, op);
            return self.remove(conn);
        }
        self.lose(conn, End::Closed)
    }

    /// The CONNECT may be carried out, or not: see `abandoned-connect`.
    fn doubt(&mut self, opening: &Opening) {
        self.doubtful |= opening.changes_session;
        self.forgot |= opening.clean;
    }

    /// Whether a CONNECT of it was ever served: else it has no subscription, and nothing is owed to it.
    pub fn was_served(&self) -> bool {
        self.expiry.is_some()
    }

    /// `conn` is of no use any more: closes and records it.
    pub(super) fn lose(&mut self, conn: u64, how: End) -> Seen {
        if let Some(at) = self.opening.iter().position(|opening| opening.link.conn == conn) {
            let opening = self.opening.remove(at);
            self.doubt(&opening);
            self.complete(opening.process, Kind::Info, opening.op);
            self.outcomes.insert(conn, Connected::Abandoned);
            return Seen::Lost(conn);
        }
        let client = self.id.clone();
        let Some(link) = self.link_mut(conn) else {
            return Seen::Other;
        };
        let lost = Op::ConnLost {
            client,
            conn,
            node: link.node.clone(),
            how,
            reason: link.reason,
        };
        match link.leaving.take() {
            Some((process, op)) => self.complete(process, Kind::Info, op),
            None => self.note(lost),
        }
        self.remove(conn)
    }

    /// Drops a link; what was open on it alone is unknown.
    fn remove(&mut self, conn: u64) -> Seen {
        let link = match &self.link {
            Some(link) if link.conn == conn => self.link.take(),
            _ => {
                let at = self.old.iter().position(|link| link.conn == conn);
                at.map(|at| self.old.remove(at))
            }
        };
        let Some(mut link) = link else { return Seen::Other };
        if let Some((process, _)) = link.ping.take() {
            let op = self.ping_op(&link);
            self.complete(process, Kind::Info, op);
        }
        for (process, op) in std::mem::take(&mut link.late).into_values() {
            self.complete(process, Kind::Info, op);
        }
        Seen::Lost(conn)
    }

    pub(super) fn malformed(&mut self, conn: u64, reason: String) -> Seen {
        self.wrong(conn, reason);
        self.lose(conn, End::Closed)
    }

    /// What comes on a connection that is not served yet.
    pub(super) async fn while_opening(&mut self, conn: u64, incoming: Incoming) -> Seen {
        match incoming {
            Incoming::Packet(crate::mqtt::Packet::Connack {
                session_present,
                reason,
                ..
            }) => self.connack(conn, session_present, reason).await,
            Incoming::Packet(other) => self.malformed(conn, format!("before CONNACK: {other:?}")),
            Incoming::Malformed(reason) => self.malformed(conn, reason),
            Incoming::End { .. } => self.lose(conn, End::Closed),
        }
    }
}

/// Longer than a lease, a NodeDown and an election: the session's former node may be the one that is gone.
const CONNACK_LIMIT: Duration = Duration::from_secs(6);
/// Longer than a node holds back the close for what is to be committed.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);
/// A round trip on one machine, with what the slowest planned link adds.
const RESET_COMES_WITHIN: Duration = Duration::from_millis(60);

/// Server unavailable (3.1.1), Server unavailable, Server busy: the codes of a refusal that says nothing of what became of it.
const UNAVAILABLE: [u8; 3] = [0x03, 0x88, 0x89];
