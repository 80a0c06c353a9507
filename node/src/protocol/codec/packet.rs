//! The packets as values. PUBLISH has its own file: it stays one shared frame with offsets.

use super::{Publish, ReasonCode, Version};
use bytes::Bytes;
use std::num::NonZeroU16;

/// Name and value pairs in the order of the packet; names may repeat.
pub type UserProperties = Vec<(String, String)>;

/// One decoded MQTT Control Packet.
#[derive(Clone, Debug, PartialEq)]
pub enum Packet {
    Connect(Box<Connect>),
    ConnAck(Box<ConnAck>),
    Publish(Publish),
    PubAck(Ack),
    PubRec(Ack),
    PubRel(Ack),
    PubComp(Ack),
    Subscribe(Subscribe),
    SubAck(SubAck),
    Unsubscribe(Unsubscribe),
    UnsubAck(UnsubAck),
    PingReq,
    PingResp,
    Disconnect(Disconnect),
    Auth(Auth),
}

/// Quality of Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum QoS {
    AtMostOnce = 0,
    AtLeastOnce = 1,
    ExactlyOnce = 2,
}

impl QoS {
    /// The two-bit wire value; `None` for anything above 2.
    pub fn from_bits(bits: u8) -> Option<QoS> {
        match bits {
            0 => Some(QoS::AtMostOnce),
            1 => Some(QoS::AtLeastOnce),
            2 => Some(QoS::ExactlyOnce),
            _ => None,
        }
    }
}

/// CONNECT: a client asks for a session. 3.x packets have default properties.
#[derive(Clone, PartialEq, Eq)]
pub struct Connect {
    pub version: Version,
    /// Clean Start; in 3.x Clean Session, which also ends the session with the connection.
    pub clean_start: bool,
    /// Seconds; 0 turns keep alive off.
    pub keep_alive_seconds: u16,
    /// Empty when the client leaves the choice to the server; in 3.1.1 only together with Clean Session, in 3.1 never.
    pub client_id: String,
    pub will: Option<Will>,
    /// `Some("")` and `None` are different things on the wire.
    pub user_name: Option<String>,
    /// Binary data; an own copy, not a slice of the read buffer.
    pub password: Option<Bytes>,
    pub properties: ConnectProperties,
}

/// The properties of CONNECT. `None` is "absent"; the defaults of the standard are applied by the handshake, except
/// where a plain type already expresses them.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnectProperties {
    pub session_expiry_interval: Option<u32>,
    pub receive_maximum: Option<u16>,
    pub maximum_packet_size: Option<u32>,
    /// Absent is 0: the client takes no aliases.
    pub topic_alias_maximum: u16,
    /// Absent is false.
    pub request_response_information: bool,
    /// Absent is true.
    pub request_problem_information: bool,
    pub user_properties: UserProperties,
    pub authentication_method: Option<String>,
    /// Never present without a method.
    pub authentication_data: Option<Bytes>,
}

impl Default for ConnectProperties {
    fn default() -> Self {
        ConnectProperties {
            session_expiry_interval: None,
            receive_maximum: None,
            maximum_packet_size: None,
            topic_alias_maximum: 0,
            request_response_information: false,
            request_problem_information: true,
            user_properties: Vec::new(),
            authentication_method: None,
            authentication_data: None,
        }
    }
}

/// The Will Message of a CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Will {
    /// A Topic Name: not empty, no wildcard.
    pub topic: String,
    /// An own copy, not a slice of the read buffer.
    pub payload: Bytes,
    pub qos: QoS,
    pub retain: bool,
    pub properties: WillProperties,
}

/// The properties of a Will Message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WillProperties {
    /// Will Delay Interval in seconds; absent is 0.
    pub delay_interval: u32,
    pub payload_format_indicator: Option<u8>,
    pub message_expiry_interval: Option<u32>,
    pub content_type: Option<String>,
    pub response_topic: Option<String>,
    pub correlation_data: Option<Bytes>,
    pub user_properties: UserProperties,
}

/// CONNACK. In 3.x `reason` stands for the return code and the properties are empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnAck {
    /// Always false on the wire of MQTT 3.1.
    pub session_present: bool,
    pub reason: ReasonCode,
    pub properties: ConnAckProperties,
}

/// The properties of CONNACK; `None` is "not sent".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnAckProperties {
    pub session_expiry_interval: Option<u32>,
    pub receive_maximum: Option<u16>,
    /// Sent only when it is below 2.
    pub maximum_qos: Option<QoS>,
    pub retain_available: Option<bool>,
    pub maximum_packet_size: Option<u32>,
    pub assigned_client_identifier: Option<String>,
    pub topic_alias_maximum: Option<u16>,
    pub reason_string: Option<String>,
    pub user_properties: UserProperties,
    pub wildcard_subscription_available: Option<bool>,
    pub subscription_identifiers_available: Option<bool>,
    pub shared_subscription_available: Option<bool>,
    pub server_keep_alive: Option<u16>,
    pub response_information: Option<String>,
    pub server_reference: Option<String>,
    pub authentication_method: Option<String>,
    pub authentication_data: Option<Bytes>,
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP. In 3.x the reason is success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    pub packet_id: NonZeroU16,
    pub reason: ReasonCode,
    pub reason_string: Option<String>,
    pub user_properties: UserProperties,
}

impl Ack {
    /// A plain acknowledgement.
    pub fn new(packet_id: NonZeroU16, reason: ReasonCode) -> Ack {
        Ack {
            packet_id,
            reason,
            reason_string: None,
            user_properties: Vec::new(),
        }
    }
}

/// SUBSCRIBE with at least one filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribe {
    pub packet_id: NonZeroU16,
    /// 1 to 268,435,455.
    pub subscription_identifier: Option<u32>,
    pub filters: Vec<SubscribeFilter>,
    pub user_properties: UserProperties,
}

/// One Topic Filter of a SUBSCRIBE with its options. 3.x has only the QoS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscribeFilter {
    /// Follows the grammar of [`super::topic_grammar::check_topic_filter`]; may begin with `$share/`.
    pub filter: String,
    pub qos: QoS,
    pub no_local: bool,
    pub retain_as_published: bool,
    /// 0: send retained messages, 1: only for a new subscription, 2: never.
    pub retain_handling: u8,
    /// A filter against the grammar ends the connection; one above this broker's limits is answered alone, with this
    /// code. Where a packet has too many, each has it, and none is kept: `filter` is empty.
    pub valid: Result<(), ReasonCode>,
}

/// SUBACK: one code per filter, in the order of the SUBSCRIBE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubAck {
    pub packet_id: NonZeroU16,
    /// Granted QoS 0 to 2 or a code of 0x80 and above; any failure is written as 0x80 in 3.x.
    pub reasons: Vec<ReasonCode>,
    pub reason_string: Option<String>,
    pub user_properties: UserProperties,
}

impl SubAck {
    /// A SUBACK without properties.
    pub fn new(packet_id: NonZeroU16, reasons: Vec<ReasonCode>) -> SubAck {
        SubAck {
            packet_id,
            reasons,
            reason_string: None,
            user_properties: Vec::new(),
        }
    }
}

/// UNSUBSCRIBE with at least one filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsubscribe {
    pub packet_id: NonZeroU16,
    pub filters: Vec<String>,
    pub user_properties: UserProperties,
}

/// UNSUBACK: one code per filter in MQTT 5, none in 3.x.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsubAck {
    pub packet_id: NonZeroU16,
    pub reasons: Vec<ReasonCode>,
    pub reason_string: Option<String>,
    pub user_properties: UserProperties,
}

impl UnsubAck {
    /// An UNSUBACK without properties; the codes are left out in 3.x.
    pub fn new(packet_id: NonZeroU16, reasons: Vec<ReasonCode>) -> UnsubAck {
        UnsubAck {
            packet_id,
            reasons,
            reason_string: None,
            user_properties: Vec::new(),
        }
    }
}

/// DISCONNECT. In 3.x only a client sends it and the reason is success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disconnect {
    pub reason: ReasonCode,
    /// Only from a client [MQTT-3.14.2-2].
    pub session_expiry_interval: Option<u32>,
    pub reason_string: Option<String>,
    pub server_reference: Option<String>,
    pub user_properties: UserProperties,
}

impl Disconnect {
    /// A DISCONNECT without properties.
    pub fn new(reason: ReasonCode) -> Disconnect {
        Disconnect {
            reason,
            session_expiry_interval: None,
            reason_string: None,
            server_reference: None,
            user_properties: Vec::new(),
        }
    }
}

/// AUTH, MQTT 5 only.
#[derive(Clone, PartialEq, Eq)]
pub struct Auth {
    /// 0x00 success, 0x18 continue authentication, 0x19 re-authenticate.
    pub reason: ReasonCode,
    /// `None` only in the short form of success.
    pub authentication_method: Option<String>,
    pub authentication_data: Option<Bytes>,
    pub reason_string: Option<String>,
    pub user_properties: UserProperties,
}

/// The type in the upper four bits of the first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum PacketType {
    Connect = 1,
    ConnAck = 2,
    Publish = 3,
    PubAck = 4,
    PubRec = 5,
    PubRel = 6,
    PubComp = 7,
    Subscribe = 8,
    SubAck = 9,
    Unsubscribe = 10,
    UnsubAck = 11,
    PingReq = 12,
    PingResp = 13,
    Disconnect = 14,
    Auth = 15,
}

impl PacketType {
    /// The type of a first byte; `None` for the reserved type 0.
    pub(super) fn of(first_byte: u8) -> Option<PacketType> {
        Some(match first_byte >> 4 {
            1 => PacketType::Connect,
            2 => PacketType::ConnAck,
            3 => PacketType::Publish,
            4 => PacketType::PubAck,
            5 => PacketType::PubRec,
            6 => PacketType::PubRel,
            7 => PacketType::PubComp,
            8 => PacketType::Subscribe,
            9 => PacketType::SubAck,
            10 => PacketType::Unsubscribe,
            11 => PacketType::UnsubAck,
            12 => PacketType::PingReq,
            13 => PacketType::PingResp,
            14 => PacketType::Disconnect,
            15 => PacketType::Auth,
            _ => return None,
        })
    }
}

// Credentials stay out of logs: these three are printed without their secrets.

impl std::fmt::Debug for Connect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connect")
            .field("version", &self.version)
            .field("clean_start", &self.clean_start)
            .field("keep_alive_seconds", &self.keep_alive_seconds)
            .field("client_id", &self.client_id)
            .field("will", &self.will)
            .field("user_name", &self.user_name)
            .field("password", &self.password.as_ref().map(|_| "…"))
            .field("properties", &self.properties)
            .finish()
    }
}

impl std::fmt::Debug for ConnectProperties {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectProperties")
            .field("session_expiry_interval", &self.session_expiry_interval)
            .field("receive_maximum", &self.receive_maximum)
            .field("maximum_packet_size", &self.maximum_packet_size)
            .field("topic_alias_maximum", &self.topic_alias_maximum)
            .field("request_response_information", &self.request_response_information)
            .field("request_problem_information", &self.request_problem_information)
            .field("user_properties", &self.user_properties)
            .field("authentication_method", &self.authentication_method)
            .field("authentication_data", &self.authentication_data.as_ref().map(|_| "…"))
            .finish()
    }
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth")
            .field("reason", &self.reason)
            .field("authentication_method", &self.authentication_method)
            .field("authentication_data", &self.authentication_data.as_ref().map(|_| "…"))
            .field("reason_string", &self.reason_string)
            .field("user_properties", &self.user_properties)
            .finish()
    }
}
