//! PUBACK, PUBREC, PUBREL and PUBCOMP: four bytes in the common case, both ways without allocating.
//!
//! ```text
//!   packet identifier │ reason (5.0, may be left out if success) │ property length, properties (5.0, may be left out)
//! ```

use super::encode::{Body, EncodeError, append_checked};
use super::framer::Header;
use super::packet::UserProperties;
use super::properties::{self, Property, PropertyIter, Scope, id};
use super::reader::Reader;
use super::{Ack, Direction, Limits, ReasonCode, Version, Violation};
use bytes::BytesMut;
use std::num::NonZeroU16;

/// Which of the four acknowledgements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AckKind {
    PubAck,
    PubRec,
    PubRel,
    PubComp,
}

impl AckKind {
    fn first_byte(self) -> u8 {
        match self {
            AckKind::PubAck => 0x40,
            AckKind::PubRec => 0x50,
            AckKind::PubRel => 0x62,
            AckKind::PubComp => 0x70,
        }
    }

    /// [MQTT-3.4.2-1] [MQTT-3.5.2-1] [MQTT-3.6.2-1] [MQTT-3.7.2-1]
    fn check_reason(self, reason: ReasonCode) -> Result<(), Violation> {
        let defined = match self {
            AckKind::PubAck | AckKind::PubRec => {
                matches!(reason.0, 0x00 | 0x10 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99)
            }
            AckKind::PubRel | AckKind::PubComp => matches!(reason.0, 0x00 | 0x92),
        };
        if defined {
            Ok(())
        } else {
            Err(Violation::malformed("2.4", "reason code not of this packet"))
        }
    }
}

/// Appends an acknowledgement without properties. Below 5 the reason cannot be said and is left out.
///
/// `reason` has to be one of the packet's; a wrong one is a fault of this node and is checked in debug builds only.
pub fn encode_ack(kind: AckKind, version: Version, packet_id: NonZeroU16, reason: ReasonCode, out: &mut BytesMut) {
    debug_assert!(
        kind.check_reason(reason).is_ok(),
        "{reason} is not a reason of {kind:?}"
    );
    let [high, low] = packet_id.get().to_be_bytes();
    if reason == ReasonCode::SUCCESS || !version.is_v5() {
        out.extend_from_slice(&[kind.first_byte(), 2, high, low]);
    } else {
        out.extend_from_slice(&[kind.first_byte(), 3, high, low, reason.0]);
    }
}

/// Appends an acknowledgement with its Reason String and User Properties, where the version has them.
pub fn encode_ack_with_properties(
    kind: AckKind,
    version: Version,
    ack: &Ack,
    out: &mut BytesMut,
) -> Result<(), EncodeError> {
    let mut body = Body::default();
    body.u16(ack.packet_id.get());
    if version.is_v5() {
        let mut properties = Body::default();
        properties.property_string(id::REASON_STRING, "reason string", &ack.reason_string)?;
        properties.user_properties(&ack.user_properties)?;
        let has_properties = !properties.0.is_empty();
        if has_properties || ack.reason != ReasonCode::SUCCESS {
            body.u8(ack.reason.0);
        }
        if has_properties {
            body.properties(properties)?;
        }
    }
    append_checked(
        body.packet(kind.first_byte())?,
        Some(version),
        Direction::ServerToClient,
        out,
    )
}

pub(super) fn decode(
    frame: &[u8],
    header: Header,
    kind: AckKind,
    version: Version,
    limits: &Limits,
) -> Result<Ack, Violation> {
    let mut reader = Reader::new(frame, header.length);
    if header.remaining_length == 2 {
        return Ok(Ack::new(reader.packet_id()?, ReasonCode::SUCCESS));
    }
    let mut ack = Ack::new(reader.packet_id()?, ReasonCode::SUCCESS);
    if version.is_v5() && !reader.is_empty() {
        ack.reason = ReasonCode(reader.u8()?);
        kind.check_reason(ack.reason)?;
        if !reader.is_empty() {
            let (block, _) = properties::check(&mut reader, Scope::ACK, Direction::ClientToServer, limits)?;
            (ack.reason_string, ack.user_properties) = reason_string_and_user_properties(block);
        }
    }
    reader.end()?;
    Ok(ack)
}

/// The two properties every answer may carry.
pub(super) fn reason_string_and_user_properties(block: &[u8]) -> (Option<String>, UserProperties) {
    let mut reason_string = None;
    let mut user_properties = Vec::new();
    for property in PropertyIter::new(block) {
        match property {
            Property::ReasonString(reason) => reason_string = Some(reason.to_owned()),
            Property::UserProperty(name, value) => user_properties.push((name.to_owned(), value.to_owned())),
            _ => {}
        }
    }
    (reason_string, user_properties)
}
