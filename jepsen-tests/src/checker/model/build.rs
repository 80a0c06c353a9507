//! The one pass over the events.

use super::*;
use crate::history::{Kind, Op, Process, Status};

struct Builder<'h> {
    model: Model<'h>,
    /// What each numbered process has open.
    open: Map<u64, Index>,
    /// The newest delivery under a Packet Identifier of a connection.
    received: Map<(u32, u16), u32>,
}

pub fn build(events: &[Event]) -> Model<'_> {
    let mut builder = Builder {
        model: Model {
            events,
            clients: Names::default(),
            topics: Names::default(),
            nodes: Names::default(),
            publishers: Names::default(),
            phases: phases(events),
            messages: Vec::new(),
            connections: Vec::new(),
            lives: Vec::new(),
            connacks: Vec::new(),
            holds: Vec::new(),
            deliveries: Vec::new(),
            exchanges: Vec::new(),
            crashes: Vec::new(),
            readers: Map::default(),
            unknown: Vec::new(),
            answers: Vec::new(),
            message_numbers: Map::default(),
            connection_numbers: Map::default(),
            by_message: Vec::new(),
            topic_holds: Vec::new(),
            life_topic_holds: Map::default(),
        },
        open: Map::default(),
        received: Map::default(),
    };
    for (index, event) in events.iter().enumerate() {
        let invoke = builder.invocation(index, event);
        builder.event(index, event, invoke);
    }
    let mut model = builder.model;
    for exchange in &model.exchanges {
        let connection = &mut model.connections[exchange.connection as usize];
        connection.proof = connection.proof.max(exchange.sent);
    }
    doubt_disconnects(&mut model);
    model
}

/// A node that dies closes its connections in order too: where it was hit about then, nobody knows whether it had read DISCONNECT.
fn doubt_disconnects(model: &mut Model) {
    let mut hits: Vec<(u64, &str)> = Vec::new();
    for event in model.events {
        match &event.op {
            Op::Node { node, event: what, .. } if what == "killed" || what == "exited" => {
                hits.push((event.time, node.as_str()));
            }
            Op::Fault { nodes, status, .. } if *status != Status::Skipped => {
                hits.extend(nodes.iter().map(|node| (event.time, node.as_str())));
            }
            _ => {}
        }
    }
    for connection in &mut model.connections {
        let Some(disconnect) = &mut connection.disconnect else {
            continue;
        };
        let time = |index: Index| model.events.get(index).map_or(u64::MAX, |event| event.time);
        let from = time(disconnect.invoke).saturating_sub(HIT_ABOUT_THEN);
        let until = time(disconnect.end).saturating_add(HIT_ABOUT_THEN);
        let first = hits.partition_point(|(at, _)| *at < from);
        let node = model.nodes.name(connection.node);
        let mut about_then = hits[first..].iter().take_while(|(at, _)| *at <= until);
        disconnect.processed &= !about_then.any(|(_, hit)| *hit == node);
    }
}

/// 1 s, in nanoseconds: a FIN, or the news that a process has ended, is seen that much later at most.
const HIT_ABOUT_THEN: u64 = 1_000_000_000;

fn phases(events: &[Event]) -> Phases {
    let mut phases = Phases::default();
    for (index, event) in events.iter().enumerate() {
        if let Op::Phase { value } = &event.op {
            phases.began.push((index, value.clone()));
        }
    }
    let drain = phases.began.iter().position(|(_, name)| name == "drain");
    phases.has_drain = drain.is_some();
    phases.drain_end = drain
        .and_then(|drain| phases.began.get(drain + 1))
        .map_or(events.len(), |(index, _)| *index);
    phases
}

impl<'h> Builder<'h> {
    /// Of a completion, the event that it completes.
    fn invocation(&mut self, index: Index, event: &Event) -> Index {
        match (&event.process, event.kind) {
            (Process::Number(process), Kind::Invoke) => {
                self.open.insert(*process, index);
                index
            }
            (Process::Number(process), _) => self.open.remove(process).unwrap_or(index),
            (Process::Name(_), _) => index,
        }
    }

    fn event(&mut self, index: Index, event: &'h Event, invoke: Index) {
        let invoked = event.kind == Kind::Invoke;
        match &event.op {
            Op::Connect { .. } if invoked => self.connect(index, event),
            Op::Connect { .. } => self.connack(index, event),
            Op::ConnLost { conn, .. } => {
                if let Some(connection) = self.connection(*conn) {
                    connection.lost.get_or_insert(index);
                    connection.end.get_or_insert(index);
                }
            }
            Op::Disconnect { .. } => self.disconnect(index, event),
            Op::CrashClient { client } => {
                let client = self.model.clients.intern(client);
                self.model.crashes.push((client, index));
                for connection in &mut self.model.connections {
                    if connection.client == client {
                        connection.end.get_or_insert(index);
                    }
                }
            }
            Op::Publish { .. } if invoked => self.publish(index, event),
            Op::Publish { .. } => self.published(index, event),
            Op::Resend { conn, message, .. } => {
                let connection = self.model.connection_numbers.get(conn).copied();
                if let (Some(number), Some(connection)) = (self.model.message(message), connection) {
                    let published = &mut self.model.messages[number as usize];
                    published.sends.push((connection, index));
                    published.send_count = published.send_count.max(published.sends.len() as u32);
                }
            }
            Op::Recv { .. } => self.delivered(index, event),
            Op::AckSent {
                conn,
                pid,
                packet,
                reason,
                ..
            } if packet != "pubcomp" => {
                let connection = self.model.connection_numbers.get(conn).copied();
                let delivery = connection.and_then(|connection| self.received.get(&(connection, *pid)));
                if let Some(delivery) = delivery {
                    let delivery = &mut self.model.deliveries[*delivery as usize];
                    delivery.acknowledged.get_or_insert((index, *reason));
                }
            }
            Op::Subscribe { conn, .. } if event.kind == Kind::Ok => {
                self.exchange(*conn, invoke, index, ExchangeKind::Subscribe);
            }
            Op::Unsubscribe { conn, .. } if event.kind == Kind::Ok => {
                self.exchange(*conn, invoke, index, ExchangeKind::Unsubscribe);
            }
            Op::Ping { conn, .. } if event.kind == Kind::Ok => {
                self.exchange(*conn, invoke, index, ExchangeKind::Ping);
            }
            Op::HarnessFailure { detail } => self.model.unknown.push(format!("the harness failed: {detail}")),
            Op::ReadRetained { topic, conn, .. } => {
                self.model.topics.intern(topic);
                if let Some(connection) = self.model.connection_numbers.get(conn) {
                    self.model.readers.insert(*connection, ());
                }
            }
            _ => {}
        }
    }

    fn connection(&mut self, number: u64) -> Option<&mut Connection<'h>> {
        let at = *self.model.connection_numbers.get(&number)?;
        Some(&mut self.model.connections[at as usize])
    }

    fn exchange(&mut self, conn: u64, sent: Index, answered: Index, kind: ExchangeKind) {
        if let Some(connection) = self.model.connection_numbers.get(&conn) {
            self.model.exchanges.push(Exchange {
                connection: *connection,
                sent,
                answered,
                kind,
            });
        }
    }

    fn connect(&mut self, index: Index, event: &'h Event) {
        let Op::Connect {
            client,
            conn,
            node,
            version,
            clean,
            expiry,
            receive_maximum,
            will,
            ..
        } = &event.op
        else {
            return;
        };
        let client = self.model.clients.intern(client);
        let at = self.model.connections.len() as u32;
        if self.model.connection_numbers.insert(*conn, at).is_some() {
            self.model.unknown.push(format!("connection {conn} was opened twice"));
        }
        self.model.connections.push(Connection {
            number: *conn,
            client,
            node: self.model.nodes.intern(node),
            version: *version,
            clean: *clean,
            expiry: *expiry,
            receive_maximum: *receive_maximum,
            will: will.as_ref(),
            invoke: index,
            answer: NEVER,
            outcome: Outcome::Info,
            session_present: None,
            proof: index,
            end: None,
            lost: None,
            disconnect: None,
            life: None,
        });
        if let Some(will) = will {
            self.message(index, client, &will.message, will.qos, will.retain, true);
        }
    }

    fn connack(&mut self, index: Index, event: &Event) {
        let Op::Connect {
            conn, session_present, ..
        } = &event.op
        else {
            return;
        };
        let (session_present, kind) = (*session_present, event.kind);
        if let Some(connection) = self.connection(*conn) {
            connection.answer = index;
            connection.proof = index;
            connection.outcome = match kind {
                Kind::Ok => Outcome::Ok,
                Kind::Fail => Outcome::Fail,
                _ => Outcome::Info,
            };
            connection.session_present = session_present;
        }
    }

    fn disconnect(&mut self, index: Index, event: &Event) {
        let Op::Disconnect {
            conn, reason, expiry, ..
        } = &event.op
        else {
            return;
        };
        let (kind, reason, expiry) = (event.kind, *reason, *expiry);
        let Some(connection) = self.connection(*conn) else {
            return;
        };
        connection.end.get_or_insert(index);
        let disconnect = connection.disconnect.get_or_insert(Disconnected {
            invoke: index,
            end: NEVER,
            processed: false,
            reason,
            expiry,
        });
        if kind != Kind::Invoke {
            disconnect.end = index;
            disconnect.processed = kind == Kind::Ok;
        }
    }

    fn message(&mut self, index: Index, client: u32, message: &'h Message, qos: u8, retain: bool, will: bool) -> u32 {
        let model = &mut self.model;
        let publisher = model.publishers.intern(&message.publisher);
        let topic = model.topics.intern(&message.topic);
        let number = model.messages.len() as u32;
        let before = model.message_numbers.insert((publisher, topic, message.seq), number);
        if before.is_some() {
            model.unknown.push(format!(
                "{} {} of {} was published twice",
                message.topic, message.seq, message.publisher
            ));
        }
        model.messages.push(Published {
            message,
            publisher,
            topic,
            client,
            qos,
            retain,
            delete: false,
            will,
            invoke: index,
            outcome: Outcome::Info,
            end: NEVER,
            reason: None,
            acknowledged_by: None,
            sends: Vec::new(),
            send_count: 1,
            doubtful: false,
        });
        number
    }

    fn publish(&mut self, index: Index, event: &'h Event) {
        let Op::Publish {
            client,
            conn,
            message,
            qos,
            retain,
            delete,
            ..
        } = &event.op
        else {
            return;
        };
        let client = self.model.clients.intern(client);
        let number = self.message(index, client, message, *qos, *retain, false);
        let connection = self.model.connection_numbers.get(conn).copied();
        let published = &mut self.model.messages[number as usize];
        published.delete = *delete;
        published.sends.extend(connection.map(|connection| (connection, index)));
    }

    fn published(&mut self, index: Index, event: &Event) {
        let Op::Publish {
            conn,
            message,
            qos,
            sends,
            reason,
            ..
        } = &event.op
        else {
            return;
        };
        let Some(number) = self.model.message(message) else {
            self.model.unknown.push(format!("event {index} completes nothing"));
            return;
        };
        let connection = self.model.connection_numbers.get(conn).copied();
        let published = &mut self.model.messages[number as usize];
        published.reason = *reason;
        published.send_count = published.send_count.max(sends.unwrap_or(1));
        published.outcome = match event.kind {
            Kind::Ok => Outcome::Ok,
            Kind::Fail => Outcome::Fail,
            _ => Outcome::Info,
        };
        if published.outcome != Outcome::Info {
            published.end = index;
            published.acknowledged_by = connection;
        }
        let answered = published.outcome == Outcome::Ok || reason.is_some_and(|reason| reason >= 0x80);
        let sent = published.sends.iter().rev().find(|(at, _)| Some(*at) == connection);
        if let (true, 1.., Some((_, sent))) = (answered, *qos, sent) {
            let (sent, kind) = (
                *sent,
                if *qos == 1 {
                    ExchangeKind::Publish1
                } else {
                    ExchangeKind::Publish2
                },
            );
            self.exchange(*conn, sent, index, kind);
        }
    }

    fn delivered(&mut self, index: Index, event: &'h Event) {
        let Op::Recv {
            client,
            conn,
            message,
            qos,
            dup,
            retain,
            pid,
            handed,
            ids,
            ..
        } = &event.op
        else {
            return;
        };
        let client = self.model.clients.intern(client);
        let Some(connection) = self.model.connection_numbers.get(conn).copied() else {
            let problem = format!("event {index} was received on the unknown connection {conn}");
            self.model.unknown.push(problem);
            return;
        };
        if *qos > 0 {
            let delivery = self.model.deliveries.len() as u32;
            self.received.insert((connection, *pid), delivery);
        }
        self.model.deliveries.push(Delivery {
            index,
            client,
            connection,
            life: None,
            message: message.as_ref().and_then(|message| self.model.message(message)),
            qos: *qos,
            dup: *dup,
            retain: *retain,
            pid: *pid,
            handed: *handed,
            ids,
            acknowledged: None,
        });
    }
}
