//! What a client remembers of its session across connections: what it sent and was not told the end of, and the QoS 2
//! messages that it has received and not yet released. A crash forgets it, together with the broker's half (Clean Start 1).

use crate::history::{Message, Process};
use crate::mqtt::{Publish, Version, payload};
use std::collections::{BTreeMap, VecDeque};
use tokio::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Await {
    /// PUBACK or PUBREC.
    Ack,
    /// PUBCOMP; the operation itself is over.
    Comp,
}

/// A PUBLISH at QoS ≥ 1 whose exchange is open.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub pid: u16,
    pub message: Message,
    pub qos: u8,
    pub retain: bool,
    pub delete: bool,
    pub filler: usize,
    pub process: Process,
    /// How often PUBLISH was put on the wire.
    pub sends: u32,
    /// The connection and node of the first send.
    pub conn: u64,
    pub node: String,
    pub awaits: Await,
    /// The last send of PUBLISH or PUBREL.
    pub sent: Instant,
}

impl Outgoing {
    pub fn packet(&self, version: Version, dup: bool) -> Publish {
        Publish {
            topic: self.message.topic.clone(),
            payload: match self.delete {
                true => Vec::new(),
                false => payload::payload(&self.message, self.filler),
            },
            qos: self.qos,
            dup,
            retain: self.retain,
            pid: self.pid,
            properties: payload::properties(version, &self.message),
        }
    }
}

#[derive(Default)]
pub struct Session {
    /// In the order of their first sends.
    pub outgoing: VecDeque<Outgoing>,
    /// QoS 2, received and not released.
    pub received: BTreeMap<u16, Option<Message>>,
    last_pid: u16,
}

impl Session {
    /// The next identifier that is not in use.
    pub fn next_pid(&mut self, also_used: impl Fn(u16) -> bool) -> u16 {
        loop {
            self.last_pid = self.last_pid % u16::MAX + 1;
            let pid = self.last_pid;
            if !also_used(pid) && self.outgoing.iter().all(|outgoing| outgoing.pid != pid) {
                return pid;
            }
        }
    }

    pub fn open(&mut self, pid: u16) -> Option<&mut Outgoing> {
        self.outgoing.iter_mut().find(|outgoing| outgoing.pid == pid)
    }

    pub fn close(&mut self, pid: u16) -> Option<Outgoing> {
        let at = self.outgoing.iter().position(|outgoing| outgoing.pid == pid)?;
        self.outgoing.remove(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_in_use_is_not_given_out_again() {
        let mut session = Session::default();
        let first = session.next_pid(|_| false);
        session.outgoing.push_back(Outgoing {
            pid: first + 1,
            message: Message {
                publisher: "p".into(),
                topic: "t".into(),
                seq: 1,
            },
            qos: 1,
            retain: false,
            delete: false,
            filler: 0,
            process: Process::Number(0),
            sends: 1,
            conn: 1,
            node: "n1".into(),
            awaits: Await::Ack,
            sent: Instant::now(),
        });
        assert_eq!(session.next_pid(|pid| pid == first + 2), first + 3);
        session.last_pid = u16::MAX;
        assert_eq!(session.next_pid(|_| false), 1, "0 is none");
    }
}
