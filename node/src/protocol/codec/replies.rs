//! Strict checks of what only a server sends: CONNACK, SUBACK, UNSUBACK.

use super::control::Checked;
use super::framer::Header;
use super::properties::{self, Scope};
use super::reader::Reader;
use super::reason::reason_of_return_code;
use super::{Direction, Limits, Version, Violation};
use bytes::Bytes;

pub(super) fn check_connack(
    frame: Bytes,
    header: Header,
    version: Version,
    limits: &Limits,
) -> Result<Checked, Violation> {
    let mut reader = Reader::new(&frame, header.length);
    let flags = reader.u8()?;
    let code = reader.u8()?;
    // MQTT 3.1 reserves the whole first byte and says nothing about its value.
    if flags > 1 && version != Version::V3_1 {
        return Err(Violation::malformed("MQTT-3.2.2-1", "reserved acknowledge flags"));
    }
    if version.is_v5() {
        check_connack_reason(code)?;
        properties::check(&mut reader, Scope::CONNACK, Direction::ServerToClient, limits)?;
    } else if reason_of_return_code(code).is_none() {
        return Err(Violation::malformed("v3 3.2.2.3", "reserved connect return code"));
    }
    if flags == 1 && code != 0 && version != Version::V3_1 {
        return Err(Violation::protocol_error(
            "MQTT-3.2.2-6",
            "session present with a failure",
        ));
    }
    reader.end()?;
    Ok(Checked::new(frame, header))
}

/// [MQTT-3.2.2-8]
fn check_connack_reason(code: u8) -> Result<(), Violation> {
    match code {
        0x00 | 0x80..=0x8A | 0x8C | 0x90 | 0x95 | 0x97 | 0x99..=0x9D | 0x9F => Ok(()),
        _ => Err(Violation::malformed("MQTT-3.2.2-8", "reason code not of CONNACK")),
    }
}

pub(super) fn check_suback(
    frame: Bytes,
    header: Header,
    version: Version,
    limits: &Limits,
) -> Result<Checked, Violation> {
    check_codes(frame, header, version, limits, |code| match version {
        Version::V5 => {
            matches!(
                code,
                0..=2 | 0x80 | 0x83 | 0x87 | 0x8F | 0x91 | 0x97 | 0x9E | 0xA1 | 0xA2
            )
        }
        // 3.1 knows no failure code; servers send 0x80 there all the same.
        Version::V3_1 | Version::V3_1_1 => matches!(code, 0..=2 | 0x80),
    })
}

pub(super) fn check_unsuback(
    frame: Bytes,
    header: Header,
    version: Version,
    limits: &Limits,
) -> Result<Checked, Violation> {
    if version.is_v5() {
        return check_codes(frame, header, version, limits, |code| {
            matches!(code, 0x00 | 0x11 | 0x80 | 0x83 | 0x87 | 0x8F | 0x91)
        });
    }
    let mut reader = Reader::new(&frame, header.length);
    reader.packet_id()?;
    reader.end()?;
    Ok(Checked::new(frame, header))
}

/// Packet identifier, properties, then at least one code. [MQTT-3.9.3-2] [MQTT-3.11.3-2]
fn check_codes(
    frame: Bytes,
    header: Header,
    version: Version,
    limits: &Limits,
    is_defined: impl Fn(u8) -> bool,
) -> Result<Checked, Violation> {
    let mut reader = Reader::new(&frame, header.length);
    reader.packet_id()?;
    if version.is_v5() {
        properties::check(&mut reader, Scope::ACK, Direction::ServerToClient, limits)?;
    }
    if reader.is_empty() {
        return Err(Violation::malformed("3.9.3", "no reason code"));
    }
    // Each code stays one byte, so the packet's own size is budget enough.
    while !reader.is_empty() {
        if !is_defined(reader.u8()?) {
            return Err(Violation::malformed("MQTT-3.9.3-2", "reason code not of this packet"));
        }
    }
    Ok(Checked::new(frame, header))
}
