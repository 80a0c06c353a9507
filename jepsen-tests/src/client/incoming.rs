//! What a node sends: deliveries, acknowledgements, PUBREL, the rest; recorded as it comes, answered as the policy says.

use super::link::{Incoming, Link, Owed};
use super::session::{Await, Outgoing};
use super::{Acks, Client, Seen};
use crate::history::{Kind, Op};
use crate::mqtt::{Ack, Packet, Property, Publish, SUBSCRIPTION_IDENTIFIER, Sent, Value, payload};
use std::time::Duration;
use tokio::time::Instant;

impl Client {
    pub(super) async fn take(&mut self, conn: u64, incoming: Incoming) -> Seen {
        if self.opening.iter().any(|opening| opening.link.conn == conn) {
            return self.while_opening(conn, incoming).await;
        }
        if !self.links().any(|link| link.conn == conn) {
            return Seen::Other;
        }
        match incoming {
            Incoming::Packet(packet) => self.packet(conn, packet).await,
            Incoming::Malformed(reason) => self.malformed(conn, reason),
            Incoming::End { orderly } => self.ended(conn, orderly).await,
        }
    }

    async fn packet(&mut self, conn: u64, packet: Packet) -> Seen {
        match packet {
            Packet::Publish(publish) => self.delivery(conn, publish),
            Packet::Ack {
                kind: Ack::Puback | Ack::Pubrec,
                pid,
                reason,
            } => self.acked(conn, pid, reason).await,
            Packet::Ack {
                kind: Ack::Pubrel, pid, ..
            } => self.released(conn, pid),
            Packet::Ack {
                kind: Ack::Pubcomp,
                pid,
                ..
            } => self.completed(conn, pid),
            Packet::Suback { pid, reasons } => Seen::Suback {
                pid,
                reason: reasons[0],
            },
            Packet::Unsuback { pid, reasons } => Seen::Unsuback {
                pid,
                reason: reasons.first().copied().unwrap_or(0),
            },
            Packet::Pong => self.pong(conn),
            Packet::Disconnect { reason } => {
                if let Some(link) = self.link_mut(conn) {
                    link.reason = Some(reason);
                }
                Seen::Other
            }
            Packet::Connack { .. } => self.wrong(conn, "a second CONNACK".into()),
        }
    }

    fn delivery(&mut self, conn: u64, publish: Publish) -> Seen {
        let (message, bad) = payload::read(&publish);
        let (pid, qos) = (publish.pid, publish.qos);
        let late = self.is_taken_over(conn) && qos == 2;
        let handed = qos < 2 || !(late || self.session.received.contains_key(&pid));
        if qos == 2 && !late {
            self.session.received.entry(pid).or_insert_with(|| message.clone());
        }
        self.last_message = Instant::now();
        if !self.came.contains(&publish.topic) {
            self.came.insert(publish.topic.clone());
        }
        let negative = self.version.is_5() && self.acks.negative > 0.0 && self.random.chance(self.acks.negative);
        let due = self.ack_due();
        let id = self.id.clone();
        let Some(link) = self.link_mut(conn) else {
            return Seen::Other;
        };
        if qos > 0 && !late {
            link.unacknowledged.insert(pid);
            link.owed.push_back(Owed {
                due,
                kind: if qos == 1 { Ack::Puback } else { Ack::Pubrec },
                pid,
                reason: if negative { REFUSED } else { 0 },
                message: message.clone(),
            });
        }
        let recv = Op::Recv {
            client: id,
            conn,
            node: link.node.clone(),
            message: message.clone(),
            qos,
            dup: publish.dup,
            retain: publish.retain,
            pid,
            handed,
            bad,
            ids: subscription_ids(&publish),
            in_flight: if qos > 0 { link.unacknowledged.len() as u32 } else { 0 },
        };
        self.note(recv);
        let Some(message) = message.filter(|_| handed) else {
            return Seen::Other;
        };
        if publish.retain {
            self.retained.insert(message.topic.clone(), message.clone());
        }
        self.seen
            .entry(message.publisher.clone())
            .or_default()
            .insert(message.seq);
        Seen::Message(message)
    }

    /// The exchanges of QoS 2 go on where the session is now: what is still on its way on a connection that was taken over (the
    /// network may be slow) would be taken for something new.
    fn is_taken_over(&self, conn: u64) -> bool {
        self.old.iter().any(|link| link.conn == conn)
    }

    fn ack_due(&mut self) -> Instant {
        let Acks { delay, withhold, .. } = self.acks;
        match withhold {
            true => Instant::now() + WITHHELD,
            false if delay.1.is_zero() => Instant::now(),
            false => Instant::now() + self.random.duration(delay.0, delay.1),
        }
    }

    /// What was withheld is due now.
    pub fn acknowledge_withheld(&mut self) {
        self.acks.withhold = false;
        let now = Instant::now();
        for owed in self.link.iter_mut().flat_map(|link| &mut link.owed) {
            owed.due = owed.due.min(now);
        }
    }

    /// Sends what is due, in order: one that is not yet due holds back those behind it.
    pub(super) async fn send_owed(&mut self) {
        let conns: Vec<u64> = self.links().map(|link| link.conn).collect();
        for conn in conns {
            while let Some(owed) = self.link_mut(conn).and_then(take_due) {
                self.note(Op::AckSent {
                    client: self.id.clone(),
                    conn,
                    message: owed.message,
                    pid: owed.pid,
                    packet: owed.kind.name().into(),
                    reason: owed.reason,
                });
                if owed.kind == Ack::Pubrec && owed.reason >= 0x80 {
                    self.session.received.remove(&owed.pid);
                }
                let (kind, pid, reason) = (owed.kind, owed.pid, owed.reason);
                self.send(conn, &Sent::Ack { kind, pid, reason }).await;
            }
        }
    }

    fn released(&mut self, conn: u64, pid: u16) -> Seen {
        if self.is_taken_over(conn) {
            return Seen::Other;
        }
        let message = self.session.received.remove(&pid).flatten();
        if let Some(link) = self.link_mut(conn) {
            link.owed.push_back(Owed {
                due: Instant::now(),
                kind: Ack::Pubcomp,
                pid,
                reason: 0,
                message,
            });
        }
        Seen::Other
    }

    /// PUBACK, or PUBREC.
    async fn acked(&mut self, conn: u64, pid: u16, reason: u8) -> Seen {
        let current = self.link.as_ref().is_some_and(|link| link.conn == conn);
        if let Some((process, op)) = self.link_mut(conn).and_then(|link| link.late.remove(&pid)) {
            let kind = if reason < 0x80 { Kind::Ok } else { Kind::Fail };
            self.complete(process, kind, with_end(op, 1, reason));
            return Seen::Acked(pid);
        }
        if !current {
            // It was sent again on the connection that took over; that one's answer counts.
            return Seen::Other;
        }
        let Some(outgoing) = self.session.open(pid) else {
            return self.wrong(conn, format!("an acknowledgement of {pid}, which is not in use"));
        };
        if outgoing.awaits == Await::Comp {
            // PUBREC once more: the exchange goes on with PUBREL.
            self.release(conn, pid).await;
            return Seen::Other;
        }
        let done = outgoing.clone();
        if done.qos == 1 || reason >= 0x80 {
            self.session.close(pid);
        } else {
            outgoing.awaits = Await::Comp;
        }
        self.publish_ended(&done, conn, Some(reason));
        if done.qos == 2 && reason < 0x80 {
            self.release(conn, pid).await;
        }
        Seen::Acked(pid)
    }

    async fn release(&mut self, conn: u64, pid: u16) {
        if let Some(outgoing) = self.session.open(pid) {
            outgoing.sent = Instant::now();
        }
        let kind = Ack::Pubrel;
        self.send(conn, &Sent::Ack { kind, pid, reason: 0 }).await;
    }

    fn completed(&mut self, conn: u64, pid: u16) -> Seen {
        if self.link.as_ref().is_none_or(|link| link.conn != conn) {
            return Seen::Other;
        }
        match self.session.open(pid) {
            Some(outgoing) if outgoing.awaits == Await::Comp => {
                let outgoing = self.session.close(pid).expect("it is open");
                self.note(Op::PublishComplete {
                    client: self.id.clone(),
                    conn,
                    message: outgoing.message,
                    ok: true,
                });
                Seen::Other
            }
            _ => self.wrong(conn, format!("PUBCOMP of {pid}, which awaits none")),
        }
    }

    /// Records how a PUBLISH ended, `conn` being where it was acknowledged; without a reason it is unknown.
    pub(super) fn publish_ended(&mut self, outgoing: &Outgoing, conn: u64, reason: Option<u8>) {
        let kind = match reason {
            Some(..0x80) => Kind::Ok,
            Some(_) if outgoing.sends == 1 => Kind::Fail,
            _ => Kind::Info,
        };
        if kind == Kind::Ok {
            self.scene.acknowledge(&outgoing.message);
        }
        let node = self
            .links()
            .find(|link| link.conn == conn)
            .map(|link| link.node.clone());
        let op = Op::Publish {
            client: self.id.clone(),
            conn,
            node: node.unwrap_or_else(|| outgoing.node.clone()),
            message: outgoing.message.clone(),
            qos: outgoing.qos,
            retain: outgoing.retain,
            pid: outgoing.pid,
            delete: outgoing.delete,
            sends: Some(outgoing.sends),
            reason,
        };
        self.complete(outgoing.process.clone(), kind, op);
    }

    pub(super) fn give_up(&mut self, outgoing: Outgoing) {
        match outgoing.awaits {
            Await::Ack => self.publish_ended(&outgoing, outgoing.conn, None),
            Await::Comp => self.note(Op::PublishComplete {
                client: self.id.clone(),
                conn: outgoing.conn,
                message: outgoing.message,
                ok: false,
            }),
        }
    }

    fn pong(&mut self, conn: u64) -> Seen {
        let Some(link) = self.link_mut(conn) else {
            return Seen::Other;
        };
        let Some((process, _)) = link.ping.take() else {
            return self.wrong(conn, "PINGRESP without PINGREQ".into());
        };
        let link = self.links().find(|link| link.conn == conn).expect("it is there");
        let op = self.ping_op(link);
        self.complete(process, Kind::Ok, op);
        Seen::Pong
    }

    /// A packet that a server must not send here.
    pub(super) fn wrong(&mut self, conn: u64, reason: String) -> Seen {
        let opening = self.opening.iter().map(|opening| &opening.link);
        let node = self.links().chain(opening).find(|link| link.conn == conn);
        self.note(Op::Recv {
            client: self.id.clone(),
            conn,
            node: node.map(|link| link.node.clone()).unwrap_or_default(),
            message: None,
            qos: 0,
            dup: false,
            retain: false,
            pid: 0,
            handed: false,
            bad: Some(reason),
            ids: Vec::new(),
            in_flight: 0,
        });
        Seen::Other
    }
}

fn take_due(link: &mut Link) -> Option<Owed> {
    let due = link.owed.front().is_some_and(|owed| owed.due <= Instant::now());
    let owed = link.owed.pop_front_if(|_| due && link.leaving.is_none())?;
    if matches!(owed.kind, Ack::Puback | Ack::Pubcomp) || owed.reason >= 0x80 {
        link.unacknowledged.remove(&owed.pid);
    }
    Some(owed)
}

pub(super) fn with_end(mut op: Op, count: u32, code: u8) -> Op {
    if let Op::Publish { sends, reason, .. } = &mut op {
        (*sends, *reason) = (Some(count), Some(code));
    }
    op
}

fn subscription_ids(publish: &Publish) -> Vec<u32> {
    let ids = publish.properties.iter().filter_map(|property| match property {
        Property(SUBSCRIPTION_IDENTIFIER, Value::Var(id)) => Some(*id),
        _ => None,
    });
    ids.collect()
}

/// Implementation specific error.
const REFUSED: u8 = 0x83;
/// Longer than any run of one connection.
const WITHHELD: Duration = Duration::from_secs(3600);
