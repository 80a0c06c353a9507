//! MQTT 3.1.1 and 5.0 as a client needs it: what clients send, encoded; what servers send, decoded strictly.
//!
//!     Sent ──encode──▶ bytes ──▶ broker ──▶ bytes ──decode──▶ Packet
//!
//! Written from the standard and independent of the broker's codec, so that a mistake of that one cannot hide itself. Nothing
//! here panics on a server's bytes: what breaks the standard is an error with its reason, and a finding of the run.

pub mod decode;
pub mod encode;
pub mod payload;

pub use decode::{decode, frame_length, publish_body};
pub use encode::{encode, frame, publish};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V311,
    V5,
}

impl Version {
    /// As CONNECT and the history write it.
    pub fn level(self) -> u8 {
        match self {
            Version::V311 => 4,
            Version::V5 => 5,
        }
    }

    pub fn is_5(self) -> bool {
        self == Version::V5
    }
}

/// A property: its identifier and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property(pub u8, pub Value);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Byte(u8),
    Two(u16),
    Four(u32),
    Var(u32),
    Text(String),
    Binary(Vec<u8>),
    Pair(String, String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    pub client_id: String,
    /// Clean Session (3.1.1), Clean Start (5.0).
    pub clean: bool,
    pub keep_alive: u16,
    pub properties: Vec<Property>,
    pub will: Option<WillMessage>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WillMessage {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub retain: bool,
    pub properties: Vec<Property>,
}

/// A PUBLISH in either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub dup: bool,
    pub retain: bool,
    /// 0 at QoS 0.
    pub pid: u16,
    pub properties: Vec<Property>,
}

/// The acknowledgements of a PUBLISH, in either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    Puback,
    Pubrec,
    Pubrel,
    Pubcomp,
}

impl Ack {
    /// As the history names it.
    pub fn name(self) -> &'static str {
        match self {
            Ack::Puback => "puback",
            Ack::Pubrec => "pubrec",
            Ack::Pubrel => "pubrel",
            Ack::Pubcomp => "pubcomp",
        }
    }
}

/// What a client sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    Connect(Connect),
    Publish(Publish),
    Ack {
        kind: Ack,
        pid: u16,
        reason: u8,
    },
    /// One filter with its options byte.
    Subscribe {
        pid: u16,
        filter: String,
        options: u8,
        properties: Vec<Property>,
    },
    Unsubscribe {
        pid: u16,
        filter: String,
    },
    Ping,
    Disconnect {
        reason: u8,
        expiry: Option<u32>,
    },
}

/// What a server sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    Connack {
        session_present: bool,
        reason: u8,
        properties: Vec<Property>,
    },
    Publish(Publish),
    Ack {
        kind: Ack,
        pid: u16,
        reason: u8,
    },
    Suback {
        pid: u16,
        reasons: Vec<u8>,
    },
    Unsuback {
        pid: u16,
        reasons: Vec<u8>,
    },
    Pong,
    Disconnect {
        reason: u8,
    },
}

pub const SUBSCRIPTION_IDENTIFIER: u8 = 0x0b;
pub const SESSION_EXPIRY_INTERVAL: u8 = 0x11;
pub const WILL_DELAY_INTERVAL: u8 = 0x18;
pub const RECEIVE_MAXIMUM: u8 = 0x21;
pub const TOPIC_ALIAS: u8 = 0x23;
pub const USER_PROPERTY: u8 = 0x26;

#[cfg(test)]
mod tests;
