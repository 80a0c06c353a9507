//! The wire layer: bytes of MQTT 3.1, 3.1.1 and 5.0 in, strictly checked packets out, and back. Sans-io.
//!
//! ```text
//!   bytes ──framer──▶ one frame ──decode──▶ Packet          reader, topic_grammar, properties: the rules of the fields
//!                                  │                        connect, publish, acks, subscribe, disconnect: decoders
//!                                  └─ replies ─▶ control    replies check, control (mqttbytes) only fills the structs
//!   out   ◀──encode, acks, publish_frame, control── Packet parts
//! ```
//!
//! What it leaves to others: everything that needs to remember an earlier packet (identifiers in use, topic aliases,
//! Receive Maximum), and whether a violation is answered or only ends the connection.
//!
//! Invariants
//! - `checked-before-decoded`: every frame, in every version and direction, passes the strict check before a value of
//!   it is used; in particular before mqttbytes sees it.
//! - `no-panic-on-wire`: no bytes make `frame_length` or `decode` panic or answer "more bytes needed" for a whole
//!   frame.
//! - `budget-first`: size, counts and topic lengths are bounded before anything is allocated for them.
//! - `nothing-on-error`: an encoder that fails leaves the buffer as it was.

mod acks;
mod connect;
mod control;
mod disconnect;
mod encode;
mod framer;
mod limits;
mod packet;
mod properties;
mod publish;
mod publish_frame;
mod reader;
mod reason;
mod replies;
mod subscribe;
#[cfg(test)]
mod tests;
pub mod topic_grammar;

pub use acks::{AckKind, encode_ack, encode_ack_with_properties};
pub use connect::connect_version;
pub use control::{encode_connack, encode_suback, encode_unsuback};
pub use disconnect::{encode_auth, encode_disconnect};
pub use encode::{EncodeError, encode_connect, encode_pingreq, encode_pingresp, encode_subscribe, encode_unsubscribe};
pub use framer::frame_length;
pub use limits::Limits;
pub use packet::{
    Ack, Auth, ConnAck, ConnAckProperties, Connect, ConnectProperties, Disconnect, Packet, QoS, SubAck, Subscribe,
    SubscribeFilter, UnsubAck, Unsubscribe, UserProperties, Will, WillProperties,
};
pub use properties::{PropertiesOut, Property, PropertyIter, forwarded_properties};
pub use publish::Publish;
pub use publish_frame::{PublishFields, PublishFrame};
pub use reason::{ReasonCode, Violation, connack_return_code};

use bytes::Bytes;
use framer::Header;
use packet::PacketType;
use subscribe::Asked;

/// The protocol version a client chose in its CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// Protocol name `MQIsdp`, level 3. Its packets have the 3.1.1 forms; differences are noted where they are decoded.
    V3_1,
    /// Protocol name `MQTT`, level 4.
    V3_1_1,
    /// Protocol name `MQTT`, level 5.
    V5,
}

impl Version {
    /// Whether packets carry properties and reason codes.
    pub fn is_v5(self) -> bool {
        self == Version::V5
    }
}

/// Who sent the frame. Some packets, properties and reason codes belong to one side only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Sent by a client, received by the broker.
    ClientToServer,
    /// Sent by a broker, received by `lontra pub`, `sub`, `bench` or a bridge.
    ServerToClient,
}

/// Strictly checks and decodes one whole frame, as delimited by [`frame_length`].
///
/// `version` is `None` for the first packet of a connection: only CONNECT is accepted then [MQTT-3.1.0-1]; with a
/// version, CONNECT is refused [MQTT-3.1.0-2].
///
/// # Errors
/// A [`Violation`] names the statement and the MQTT 5 reason code that fits. The connection has to be closed; before
/// that a v5 peer may be told the reason, a 3.x client only by CONNACK ([`connack_return_code`]).
pub fn decode(
    frame: Bytes,
    version: Option<Version>,
    direction: Direction,
    limits: &Limits,
) -> Result<Packet, Violation> {
    let header = Header::of_whole_frame(&frame, limits, version)?;
    let Some(version) = version else {
        return connect::decode(&frame, header, direction, limits).map(|connect| Packet::Connect(Box::new(connect)));
    };
    header.check_flags(version)?;
    header.check_sender(version, direction)?;
    match header.packet_type {
        PacketType::Connect => Err(Violation::protocol_error(
            "MQTT-3.1.0-2",
            "second CONNECT on a connection",
        )),
        PacketType::ConnAck => {
            let checked = replies::check_connack(frame, header, version, limits)?;
            control::connack(checked, version).map(|connack| Packet::ConnAck(Box::new(connack)))
        }
        PacketType::Publish => publish::decode(frame, header, version, direction, limits).map(Packet::Publish),
        PacketType::PubAck => acks::decode(&frame, header, AckKind::PubAck, version, limits).map(Packet::PubAck),
        PacketType::PubRec => acks::decode(&frame, header, AckKind::PubRec, version, limits).map(Packet::PubRec),
        PacketType::PubRel => acks::decode(&frame, header, AckKind::PubRel, version, limits).map(Packet::PubRel),
        PacketType::PubComp => acks::decode(&frame, header, AckKind::PubComp, version, limits).map(Packet::PubComp),
        PacketType::Subscribe => match subscribe::check_subscribe(frame, header, version, limits)? {
            Asked::Within(checked) => control::subscribe(checked, version, limits).map(Packet::Subscribe),
            Asked::TooMany(subscribe) => Ok(Packet::Subscribe(subscribe)),
        },
        PacketType::SubAck => {
            let checked = replies::check_suback(frame, header, version, limits)?;
            control::suback(checked, version).map(Packet::SubAck)
        }
        PacketType::Unsubscribe if version.is_v5() => {
            subscribe::decode_unsubscribe_v5(&frame, header, limits).map(Packet::Unsubscribe)
        }
        PacketType::Unsubscribe => {
            let checked = subscribe::check_unsubscribe_v3(frame, header, limits)?;
            control::unsubscribe_v3(checked).map(Packet::Unsubscribe)
        }
        PacketType::UnsubAck => {
            let checked = replies::check_unsuback(frame, header, version, limits)?;
            control::unsuback(checked, version).map(Packet::UnsubAck)
        }
        PacketType::PingReq => header.check_empty().map(|()| Packet::PingReq),
        PacketType::PingResp => header.check_empty().map(|()| Packet::PingResp),
        PacketType::Disconnect => {
            disconnect::decode(&frame, header, version, direction, limits).map(Packet::Disconnect)
        }
        PacketType::Auth => disconnect::decode_auth(&frame, header, direction, limits).map(Packet::Auth),
    }
}
