//! Where a frame ends. Looks at five bytes at most, whatever the length.
//!
//! ```text
//!   type 4 bits │ flags 4 bits │ remaining length 1–4 bytes │ … remaining length bytes …
//! ```
//!
//! Remaining lengths longer than needed are refused in MQTT 5 [MQTT-1.5.5-1]; in 3.x nothing forbids them and some
//! embedded clients pad. Before CONNECT the version is not known, so there the CONNECT decoder decides.

use super::packet::PacketType;
use super::{Direction, Limits, ReasonCode, Version, Violation};
use crate::protocol::checks::{Check, on};

/// Length of the first frame in `buf`, fixed header included, or `None` while its length is not known or more bytes are
/// needed. `version` is `None` before CONNECT. Refuses wrong types and sizes as early as the first bytes show them.
///
/// # Errors
/// A malformed fixed header, a first packet that is not CONNECT, or a packet above `limits`.
pub fn frame_length(buf: &[u8], limits: &Limits, version: Option<Version>) -> Result<Option<usize>, Violation> {
    match Header::parse(buf, limits, version)? {
        Some(header) if header.frame_length() <= buf.len() => Ok(Some(header.frame_length())),
        _ => Ok(None),
    }
}

/// A checked fixed header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) packet_type: PacketType,
    pub(super) first_byte: u8,
    /// First byte and remaining length: 2 to 5 bytes.
    pub(super) length: usize,
    pub(super) remaining_length: usize,
}

impl Header {
    fn parse(buf: &[u8], limits: &Limits, version: Option<Version>) -> Result<Option<Header>, Violation> {
        let Some((&first_byte, rest)) = buf.split_first() else {
            return Ok(None);
        };
        let packet_type = PacketType::of(first_byte).ok_or(Violation::malformed("2.1.2", "reserved packet type 0"))?;
        match version {
            None if packet_type != PacketType::Connect => {
                return Err(Violation::protocol_error("MQTT-3.1.0-1", "first packet is not CONNECT"));
            }
            Some(Version::V3_1 | Version::V3_1_1) if packet_type == PacketType::Auth => {
                return Err(Violation::malformed("v3 2.2.1", "reserved packet type 15"));
            }
            _ => {}
        }
        let Some((remaining_length, encoded_bytes)) = remaining_length(rest)? else {
            return Ok(None);
        };
        let header = Header {
            packet_type,
            first_byte,
            length: 1 + encoded_bytes,
            remaining_length,
        };
        if version == Some(Version::V5) && on(Check::LengthMinimal) {
            header.check_minimal()?;
        }
        header.check_size(limits)?;
        Ok(Some(header))
    }

    /// The header of a frame that has to be whole and nothing more.
    pub(super) fn of_whole_frame(frame: &[u8], limits: &Limits, version: Option<Version>) -> Result<Header, Violation> {
        match Header::parse(frame, limits, version)? {
            Some(header) if header.frame_length() == frame.len() => Ok(header),
            _ => Err(Violation::malformed("2.1.4", "remaining length differs from the frame")),
        }
    }

    fn frame_length(&self) -> usize {
        self.length + self.remaining_length
    }

    pub(super) fn flags(&self) -> u8 {
        self.first_byte & 0x0F
    }

    /// [MQTT-1.5.5-1]
    pub(super) fn check_minimal(&self) -> Result<(), Violation> {
        if self.length - 1 == variable_length_bytes(self.remaining_length) {
            Ok(())
        } else {
            Err(Violation::malformed(
                "MQTT-1.5.5-1",
                "remaining length longer than needed",
            ))
        }
    }

    fn check_size(&self, limits: &Limits) -> Result<(), Violation> {
        let limit = match self.packet_type {
            PacketType::Publish => limits.packet_bytes,
            _ => limits.packet_bytes.min(limits.control_packet_bytes),
        };
        if self.frame_length() > limit {
            return Err(Violation::new(
                ReasonCode::PACKET_TOO_LARGE,
                "MQTT-3.2.2-15",
                "packet above the size limit",
            ));
        }
        Ok(())
    }

    /// Flags of all packets but PUBLISH, whose flags have a meaning. [MQTT-2.1.3-1]
    ///
    /// In 3.1 a resent PUBREL, SUBSCRIBE or UNSUBSCRIBE carries the DUP flag.
    pub(super) fn check_flags(&self, version: Version) -> Result<(), Violation> {
        let expected = match self.packet_type {
            PacketType::Publish => return Ok(()),
            PacketType::PubRel | PacketType::Subscribe | PacketType::Unsubscribe => 0b0010,
            _ => 0,
        };
        let resent = version == Version::V3_1 && expected != 0 && self.flags() == expected | 0b1000;
        if self.flags() == expected || resent || !self.flags_are_checked() {
            Ok(())
        } else {
            Err(Violation::malformed(
                "MQTT-2.1.3-1",
                "reserved flags of the fixed header",
            ))
        }
    }

    fn flags_are_checked(&self) -> bool {
        match self.packet_type {
            PacketType::PingReq => on(Check::PingReqFlags),
            PacketType::Subscribe => on(Check::SubscribeFlags),
            PacketType::Unsubscribe => on(Check::UnsubscribeFlags),
            PacketType::Disconnect => on(Check::DisconnectFlags),
            _ => true,
        }
    }

    /// Whether this side may send this packet at all. [MQTT 5 section 2.1.2]
    pub(super) fn check_sender(&self, version: Version, direction: Direction) -> Result<(), Violation> {
        use PacketType::*;
        let allowed = match self.packet_type {
            Publish | PubAck | PubRec | PubRel | PubComp | Auth => true,
            Connect | Subscribe | Unsubscribe | PingReq => direction == Direction::ClientToServer,
            ConnAck | SubAck | UnsubAck | PingResp => direction == Direction::ServerToClient,
            Disconnect => direction == Direction::ClientToServer || version.is_v5(),
        };
        if allowed {
            Ok(())
        } else {
            Err(Violation::protocol_error("2.1.2", "packet sent by the wrong side"))
        }
    }

    pub(super) fn check_empty(&self) -> Result<(), Violation> {
        if self.remaining_length == 0 {
            Ok(())
        } else {
            Err(Violation::malformed("2.1.4", "packet has to be empty"))
        }
    }
}

/// Value and bytes of the remaining length, or `None` while it is not complete.
fn remaining_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, Violation> {
    let mut value = 0;
    for (position, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * position);
        if byte & 0x80 == 0 {
            return Ok(Some((value, position + 1)));
        }
    }
    if bytes.len() >= 4 {
        return Err(Violation::malformed("1.5.5", "remaining length longer than four bytes"));
    }
    Ok(None)
}

/// Bytes of the shortest variable byte integer for `value`.
pub(super) fn variable_length_bytes(value: usize) -> usize {
    match value {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}
