//! Writes events with their indexes, times and processes: what a recorder does, without a clock.

use crate::history::{End, Event, Kind, Message, Op, Process, Status, Will};

/// A SUBSCRIBE's options.
#[derive(Clone, Debug, Default)]
pub struct Subscribing {
    pub qos: u8,
    pub no_local: bool,
    pub retain_as_published: bool,
    pub id: Option<u32>,
}

pub struct Writer {
    pub events: Vec<Event>,
    /// Nanoseconds; the caller advances it.
    pub time: u64,
    next_process: u64,
    next_conn: u64,
}

impl Default for Writer {
    fn default() -> Self {
        Writer::new()
    }
}

impl Writer {
    pub fn new() -> Writer {
        Writer {
            events: Vec::new(),
            time: 0,
            next_process: 0,
            next_conn: 1,
        }
    }

    pub fn event(&mut self, process: Process, kind: Kind, op: Op) -> usize {
        let index = self.events.len();
        self.events.push(Event {
            index: index as u64,
            time: self.time,
            process,
            kind,
            op,
        });
        // 1 ms: no two events of a script at one time.
        self.time += 1_000_000;
        index
    }

    pub fn note(&mut self, process: &str, op: Op) -> usize {
        self.event(Process::Name(process.into()), Kind::Info, op)
    }

    pub fn invoke(&mut self, op: Op) -> Process {
        let process = Process::Number(self.next_process);
        self.next_process += 1;
        self.event(process.clone(), Kind::Invoke, op);
        process
    }

    pub fn phase(&mut self, value: &str) -> usize {
        self.note("harness", Op::Phase { value: value.into() })
    }

    pub fn wait(&mut self, seconds: f64) {
        self.time += (seconds * 1e9) as u64;
    }

    /// Goes on where a history has come to: fresh numbers, and the time of its last event.
    pub fn after(events: &[Event]) -> Writer {
        let mut writer = Writer::new();
        for event in events {
            writer.time = writer.time.max(event.time + 1_000_000);
            if let Process::Number(process) = event.process {
                writer.next_process = writer.next_process.max(process + 1);
            }
            if let Op::Connect { conn, .. } = &event.op {
                writer.next_conn = writer.next_conn.max(conn + 1);
            }
        }
        writer
    }

    pub fn next_conn(&self) -> u64 {
        self.next_conn
    }

    pub fn new_conn(&mut self) -> u64 {
        self.next_conn += 1;
        self.next_conn - 1
    }

    /// CONNECT and CONNACK. Answers the connection's number.
    pub fn connect(&mut self, client: &str, node: &str, clean: bool, expiry: u32, present: bool) -> u64 {
        let (process, conn) = self.connecting(client, node, clean, expiry, None);
        self.connack(process, conn, Some(present));
        conn
    }

    pub fn connecting(
        &mut self,
        client: &str,
        node: &str,
        clean: bool,
        expiry: u32,
        will: Option<Will>,
    ) -> (Process, u64) {
        let conn = self.new_conn();
        let process = self.invoke(Op::Connect {
            client: client.into(),
            conn,
            node: node.into(),
            version: 5,
            clean,
            expiry,
            websocket: false,
            receive_maximum: 10,
            will,
            session_present: None,
            reason: None,
        });
        (process, conn)
    }

    /// Ends a CONNECT; with None it was not answered.
    pub fn connack(&mut self, process: Process, conn: u64, present: Option<bool>) -> usize {
        let invoked = self.events.iter().rfind(|event| {
            event.kind == Kind::Invoke && matches!(&event.op, Op::Connect { conn: at, .. } if *at == conn)
        });
        let Some(mut op) = invoked.map(|event| event.op.clone()) else {
            return 0;
        };
        if let (
            Op::Connect {
                session_present,
                reason,
                ..
            },
            Some(present),
        ) = (&mut op, present)
        {
            (*session_present, *reason) = (Some(present), Some(0));
        }
        self.event(process, if present.is_some() { Kind::Ok } else { Kind::Info }, op)
    }

    pub fn lost(&mut self, client: &str, conn: u64, node: &str, how: End) -> usize {
        self.note(
            client,
            Op::ConnLost {
                client: client.into(),
                conn,
                node: node.into(),
                how,
                reason: None,
            },
        )
    }

    pub fn subscribe(&mut self, client: &str, conn: u64, filter: &str, options: &Subscribing) -> (usize, usize) {
        let op = |reason| Op::Subscribe {
            client: client.into(),
            conn,
            node: "n1".into(),
            filter: filter.into(),
            qos: options.qos,
            no_local: options.no_local,
            retain_as_published: options.retain_as_published,
            retain_handling: 0,
            id: options.id,
            reason,
        };
        let process = self.invoke(op(None));
        let invoked = self.events.len() - 1;
        (invoked, self.event(process, Kind::Ok, op(Some(options.qos))))
    }

    pub fn unsubscribe(&mut self, client: &str, conn: u64, filter: &str) -> (usize, usize) {
        let op = |reason| Op::Unsubscribe {
            client: client.into(),
            conn,
            node: "n1".into(),
            filter: filter.into(),
            reason,
        };
        let process = self.invoke(op(None));
        let invoked = self.events.len() - 1;
        (invoked, self.event(process, Kind::Ok, op(Some(0))))
    }

    pub fn ping(&mut self, client: &str, conn: u64) -> usize {
        let op = || Op::Ping {
            client: client.into(),
            conn,
            node: "n1".into(),
        };
        let process = self.invoke(op());
        self.event(process, Kind::Ok, op())
    }

    /// Invokes a PUBLISH.
    pub fn publish(&mut self, client: &str, conn: u64, message: &Message, qos: u8, retain: bool) -> (Process, Op) {
        let op = Op::Publish {
            client: client.into(),
            conn,
            node: "n1".into(),
            message: message.clone(),
            qos,
            retain,
            pid: 1 + (message.seq % 60_000) as u16,
            delete: false,
            sends: None,
            reason: None,
        };
        (self.invoke(op.clone()), op)
    }

    pub fn published(&mut self, (process, mut op): (Process, Op), kind: Kind, on: u64, times: u32) -> usize {
        if let Op::Publish {
            conn, sends, reason, ..
        } = &mut op
        {
            (*conn, *sends) = (on, Some(times));
            *reason = match kind {
                Kind::Ok => Some(0),
                Kind::Fail => Some(0x97),
                _ => None,
            };
        }
        self.event(process, kind, op)
    }

    /// A PUBLISH and its acknowledgement.
    pub fn publish_ok(&mut self, client: &str, conn: u64, message: &Message, qos: u8) -> usize {
        let op = self.publish(client, conn, message, qos, false);
        self.published(op, Kind::Ok, conn, 1)
    }

    pub fn receive(&mut self, client: &str, conn: u64, message: &Message, qos: u8, pid: u16) -> usize {
        self.received(client, conn, message, (qos, pid, false, false, true), 1)
    }

    /// `flags`: QoS, Packet Identifier, DUP, RETAIN, handed on.
    pub fn received(
        &mut self,
        client: &str,
        conn: u64,
        message: &Message,
        flags: (u8, u16, bool, bool, bool),
        in_flight: u32,
    ) -> usize {
        let (qos, pid, dup, retain, handed) = flags;
        self.note(
            client,
            Op::Recv {
                client: client.into(),
                conn,
                node: "n1".into(),
                message: Some(message.clone()),
                qos,
                dup,
                retain,
                pid,
                handed,
                bad: None,
                ids: Vec::new(),
                in_flight,
            },
        )
    }

    pub fn acknowledge(&mut self, client: &str, conn: u64, message: &Message, pid: u16, packet: &str) -> usize {
        self.note(
            client,
            Op::AckSent {
                client: client.into(),
                conn,
                message: Some(message.clone()),
                pid,
                packet: packet.into(),
                reason: 0,
            },
        )
    }

    pub fn fault(&mut self, family: &str, action: &str, node: &str, value: serde_json::Value) -> usize {
        self.note(
            "nemesis",
            Op::Fault {
                family: family.into(),
                action: action.into(),
                nodes: vec![node.into()],
                value,
                status: Status::Installed,
            },
        )
    }
}

/// A message of a script.
pub fn message(publisher: &str, topic: &str, seq: u64) -> Message {
    Message {
        publisher: publisher.into(),
        topic: topic.into(),
        seq,
    }
}
