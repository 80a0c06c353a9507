//! What happened, as one process with one clock saw it: the only thing that checkers read.
//!
//!     {"index":412,"time":1840332911,"process":7,"type":"invoke","f":"publish","client":"p1","conn":9,"node":"n2",…}
//!
//! JSON lines, one event a line, with the keys of Jepsen's histories (`index`, `time`, `process`, `type`, `f`), so that an
//! EDN history is a mechanical rendering.
//!
//! - A numbered process has one operation at a time: `invoke`, then `ok` (it happened), `fail` (it surely did not happen) or
//!   `info` (unknown). After `info` its number is not used again.
//! - A named process (`"s3"`, `"nemesis"`, `"harness"`) only has `info` events: things that happened to it.
//! - `time` is nanoseconds since the start of the run, from one monotonic clock; `index` counts events from 0. Of two
//!   events, the one with the lower index was seen first.
//!
//! No I/O here: [`parse`] and [`Event::to_line`] take and give text.

use serde::{Deserialize, Serialize};

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub index: u64,
    /// Nanoseconds since the start of the run.
    pub time: u64,
    pub process: Process,
    #[serde(rename = "type")]
    pub kind: Kind,
    #[serde(flatten)]
    pub op: Op,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Process {
    Number(u64),
    Name(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Invoke,
    /// It happened between its invocation and this.
    Ok,
    /// It did not happen and never will.
    Fail,
    /// Of a numbered process: it may have happened, or may happen later. Of a named process: this was seen.
    Info,
}

/// A message of a run: unique by construction. The payload says the same, with a checksum; so does a User Property (MQTT 5).
///
/// Several instances of a run never share a topic: topics carry the run's id where brokers are reused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Message {
    pub publisher: String,
    pub topic: String,
    /// Counts all messages of `publisher`, over all topics, from 1; so per topic it increases too. 0: its will.
    pub seq: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Will {
    /// Unique for each connection: `publisher` is `client/conn`, `seq` is 0.
    pub message: Message,
    pub qos: u8,
    pub retain: bool,
    /// Seconds.
    pub delay: u32,
}

/// How a connection ended that did not end by a DISCONNECT of its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// The harness closed the socket without DISCONNECT.
    Cut,
    /// The broker's side closed it, or the network did (FIN, RST, an error).
    Closed,
    /// The harness gave it up: nothing came for too long. The broker may believe that it is alive.
    Silent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    Installed,
    Skipped,
    /// It may have been installed in part.
    Indeterminate,
}

/// A kind of operation, tagged `f`. Optional fields that only a completion knows are absent before it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "f", rename_all = "kebab-case")]
pub enum Op {
    /// Harness: a phase begins: `setup`, `baseline`, `faults`, `heal`, `recovery`, `drain`, `final`, `end`.
    Phase { value: String },

    /// Invoked before CONNECT is sent; `ok` with CONNACK 0x00, `fail` with another reason, or without one where TCP gave no
    /// connection, so that nothing was sent; `info`: no CONNACK came, or one that says that the node cannot serve (0x88, 0x89,
    /// 3.1.1: 3), which leaves open what became of the session.
    Connect {
        client: String,
        /// Unique in the run, counts from 1.
        conn: u64,
        node: String,
        /// 4: MQTT 3.1.1, 5: MQTT 5.
        version: u8,
        /// Clean Start; 3.1.1: Clean Session.
        clean: bool,
        /// Session Expiry Interval in seconds as requested (3.1.1: 0 with Clean Session 1, else `u32::MAX`, never).
        expiry: u32,
        /// Over WebSocket, not bare TCP.
        #[serde(default, skip_serializing_if = "no")]
        websocket: bool,
        /// 65535 where it was not sent.
        receive_maximum: u16,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        will: Option<Will>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session_present: Option<bool>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<u8>,
    },
    /// Named process (the client): a connection that had its CONNACK ended without DISCONNECT of its client.
    ConnLost {
        client: String,
        conn: u64,
        node: String,
        how: End,
        /// Of the broker's DISCONNECT, where one came.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<u8>,
    },
    /// Invoked when DISCONNECT is sent; `ok`: the broker closed the connection after it, in order, so it was processed;
    /// `info`: the connection broke, or did not end in time.
    Disconnect {
        client: String,
        conn: u64,
        node: String,
        /// 0x00 or 0x04 (with will).
        reason: u8,
        /// A new Session Expiry Interval, where one was sent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expiry: Option<u32>,
    },
    /// Named process (the client): the client program ended and forgot everything, its client id excepted.
    CrashClient { client: String },

    /// One filter. `ok` with SUBACK < 0x80, `fail` with ≥ 0x80.
    Subscribe {
        client: String,
        conn: u64,
        node: String,
        /// As sent, with `$share/name/` where it is shared.
        filter: String,
        qos: u8,
        #[serde(default, skip_serializing_if = "no")]
        no_local: bool,
        #[serde(default, skip_serializing_if = "no")]
        retain_as_published: bool,
        #[serde(default)]
        retain_handling: u8,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<u32>,
        /// The code of SUBACK.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<u8>,
    },
    Unsubscribe {
        client: String,
        conn: u64,
        node: String,
        filter: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<u8>,
    },
    /// Invoked at the first byte of the first PUBLISH. QoS 0: `ok` when written, which says nothing. QoS 1, 2: `ok` with
    /// PUBACK or PUBREC < 0x80 (for QoS 2 the completion's time is that of PUBREC: the promise begins there; the four-way
    /// exchange goes on by itself), `fail` with ≥ 0x80 on its *only* send, `info` when the publisher gave it up.
    Publish {
        client: String,
        /// The connection of the first send; at completion, that of the acknowledgement.
        conn: u64,
        node: String,
        message: Message,
        qos: u8,
        retain: bool,
        pid: u16,
        /// The payload is empty: removes the retained message.
        #[serde(default, skip_serializing_if = "no")]
        delete: bool,
        /// Completion: how often PUBLISH was put on the wire.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sends: Option<u32>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<u8>,
    },
    /// Named process (the client): an unacknowledged PUBLISH was sent again, on a later connection, with DUP.
    Resend {
        client: String,
        conn: u64,
        node: String,
        message: Message,
        pid: u16,
    },
    /// Named process (the client): a QoS 2 exchange with the broker ended (PUBCOMP came), or was given up (`ok` false).
    PublishComplete {
        client: String,
        conn: u64,
        message: Message,
        ok: bool,
    },

    /// Named process (the client): a PUBLISH came.
    Recv {
        client: String,
        conn: u64,
        node: String,
        /// None: the payload names no message of the run (then `bad` says why).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<Message>,
        qos: u8,
        dup: bool,
        retain: bool,
        /// 0 at QoS 0.
        pid: u16,
        /// False: QoS 2 and this Packet Identifier was received and not yet released: the client hands it to nobody.
        handed: bool,
        /// Topic, checksum, payload or properties are not what was published.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bad: Option<String>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        ids: Vec<u32>,
        /// QoS 1 and 2: how many PUBLISH of this connection were unacknowledged when this one had come, itself included.
        #[serde(default)]
        in_flight: u32,
    },
    /// Named process (the client): it acknowledged. `puback`, `pubrec`, `pubcomp`.
    AckSent {
        client: String,
        conn: u64,
        message: Option<Message>,
        pid: u16,
        packet: String,
        reason: u8,
    },
    /// PINGREQ and PINGRESP: after `ok`, all that the client sent before the invocation has been read by the broker.
    Ping { client: String, conn: u64, node: String },

    /// What a fresh session reads as the retained message of `topic`: SUBSCRIBE with Retain Handling 0 and Retain As
    /// Published 0; `ok` when the copy with RETAIN 1 came (`value`), or surely none is there (`value` absent, `absent`
    /// true: another retained topic of the same SUBSCRIBE's later barrier came; only where a workload can prove it);
    /// `info`: nothing came in time.
    ReadRetained {
        client: String,
        conn: u64,
        node: String,
        topic: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        value: Option<Message>,
        #[serde(default, skip_serializing_if = "no")]
        absent: bool,
    },

    /// Nemesis: a fault begins, ends or (a kill, a flip) happens at once.
    Fault {
        /// The family, as named on the command line: `kill`, `pause`, `partition-halves`, …
        family: String,
        /// `start`, `stop`, `once`.
        action: String,
        /// Nodes that it hits.
        nodes: Vec<String>,
        /// What exactly, for people and for coverage: role of the victim, pairs cut; at its end what it really did: bytes lost,
        /// `frames_dropped`, `stopped` (nodes), `bit` (how often a limit was felt), and of damage its `outcome`.
        #[serde(default)]
        value: serde_json::Value,
        status: Status,
    },
    /// Harness: a node's process: `started`, `ready`, `exited` (with its status and, after `; `, the last line of its log),
    /// `killed`.
    Node {
        node: String,
        event: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    /// Harness: seen from outside through the admin API: leaders and terms, counters, digests. `about` names which.
    Observe {
        about: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<String>,
        value: serde_json::Value,
    },
    /// Harness: a line of a node's log that must not be there.
    Panic { node: String, line: String },
    /// Harness: itself failed; the run is `unknown`.
    HarnessFailure { detail: String },
}

fn no(value: &bool) -> bool {
    !*value
}

/// Why a line is not an event.
#[derive(Debug)]
pub struct Malformed {
    /// From 1.
    pub line: usize,
    pub reason: String,
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, to: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(to, "line {}: {}", self.line, self.reason)
    }
}

impl std::error::Error for Malformed {}

/// The events of a whole history, in the order of their lines.
///
/// # Errors
/// A line that is no event, or whose index is not one more than that of the line before. A last line without its newline is
/// what a killed harness leaves; it is left out where it does not parse.
pub fn parse(text: &str) -> Result<Vec<Event>, Malformed> {
    let mut events: Vec<Event> = Vec::new();
    let torn = (!text.ends_with('\n')).then(|| text.lines().count());
    for (number, line) in text.lines().enumerate() {
        let malformed = |reason: String| Malformed {
            line: number + 1,
            reason,
        };
        let event: Event = match serde_json::from_str(line) {
            Ok(event) => event,
            Err(_) if torn == Some(number + 1) => break,
            Err(error) => return Err(malformed(error.to_string())),
        };
        if event.index != events.len() as u64 {
            return Err(malformed(format!(
                "index {} where {} was expected",
                event.index,
                events.len()
            )));
        }
        events.push(event);
    }
    Ok(events)
}

impl Event {
    /// Its line, with the newline.
    pub fn to_line(&self) -> String {
        let mut line = serde_json::to_string(self).expect("an event has only JSON's types");
        line.push('\n');
        line
    }
}
