//! DISCONNECT and AUTH, both ways.
//!
//! A DISCONNECT may end after nothing (reason 0x00), after its reason, or after its properties. An AUTH may end after
//! nothing (success) or after its properties; in the long form a method is due.

use super::encode::{Body, EncodeError, append_checked};
use super::framer::Header;
use super::properties::{self, Property, PropertyIter, Scope, id};
use super::reader::Reader;
use super::{Auth, Direction, Disconnect, Limits, ReasonCode, Version, Violation};
use bytes::{Bytes, BytesMut};

/// Appends DISCONNECT. In 3.x a client can only say success; anything else is [`EncodeError::NotInVersion`] and the
/// connection is closed without a word.
pub fn encode_disconnect(version: Version, disconnect: &Disconnect, out: &mut BytesMut) -> Result<(), EncodeError> {
    if !version.is_v5() {
        if disconnect.reason != ReasonCode::NORMAL_DISCONNECTION {
            return Err(EncodeError::NotInVersion {
                packet: "DISCONNECT",
                version,
            });
        }
        out.extend_from_slice(&[0xE0, 0]);
        return Ok(());
    }
    let mut properties = Body::default();
    properties.property_u32(id::SESSION_EXPIRY_INTERVAL, disconnect.session_expiry_interval);
    properties.property_string(id::REASON_STRING, "reason string", &disconnect.reason_string)?;
    properties.property_string(id::SERVER_REFERENCE, "server reference", &disconnect.server_reference)?;
    properties.user_properties(&disconnect.user_properties)?;
    let body = reason_and_properties(disconnect.reason, properties)?;
    append_checked(body.packet(0xE0)?, Some(version), sender_of(disconnect), out)
}

/// Appends AUTH.
pub fn encode_auth(auth: &Auth, out: &mut BytesMut) -> Result<(), EncodeError> {
    let mut properties = Body::default();
    properties.property_string(
        id::AUTHENTICATION_METHOD,
        "authentication method",
        &auth.authentication_method,
    )?;
    properties.property_binary(
        id::AUTHENTICATION_DATA,
        "authentication data",
        &auth.authentication_data,
    )?;
    properties.property_string(id::REASON_STRING, "reason string", &auth.reason_string)?;
    properties.user_properties(&auth.user_properties)?;
    let body = reason_and_properties(auth.reason, properties)?;
    append_checked(body.packet(0xF0)?, Some(Version::V5), Direction::ClientToServer, out)
}

/// The shortest form.
fn reason_and_properties(reason: ReasonCode, properties: Body) -> Result<Body, EncodeError> {
    let mut body = Body::default();
    let has_properties = !properties.0.is_empty();
    if has_properties || reason != ReasonCode::SUCCESS {
        body.u8(reason.0);
    }
    if has_properties {
        body.properties(properties)?;
    }
    Ok(body)
}

/// The side whose rules an outgoing DISCONNECT has to follow.
fn sender_of(disconnect: &Disconnect) -> Direction {
    let client_reason = disconnect.reason == ReasonCode::DISCONNECT_WITH_WILL_MESSAGE;
    if client_reason || disconnect.session_expiry_interval.is_some() {
        Direction::ClientToServer
    } else {
        Direction::ServerToClient
    }
}

pub(super) fn decode(
    frame: &[u8],
    header: Header,
    version: Version,
    direction: Direction,
    limits: &Limits,
) -> Result<Disconnect, Violation> {
    let mut disconnect = Disconnect::new(ReasonCode::NORMAL_DISCONNECTION);
    if !version.is_v5() {
        return header.check_empty().map(|()| disconnect);
    }
    let mut reader = Reader::new(frame, header.length);
    if !reader.is_empty() {
        disconnect.reason = ReasonCode(reader.u8()?);
        check_disconnect_reason(disconnect.reason, direction)?;
    }
    if !reader.is_empty() {
        let (block, _) = properties::check(&mut reader, Scope::DISCONNECT, direction, limits)?;
        for property in PropertyIter::new(block) {
            match property {
                Property::SessionExpiryInterval(seconds) => disconnect.session_expiry_interval = Some(seconds),
                Property::ReasonString(reason) => disconnect.reason_string = Some(reason.to_owned()),
                Property::ServerReference(server) => disconnect.server_reference = Some(server.to_owned()),
                Property::UserProperty(name, value) => {
                    disconnect.user_properties.push((name.to_owned(), value.to_owned()));
                }
                _ => {}
            }
        }
    }
    reader.end()?;
    Ok(disconnect)
}

/// [MQTT-3.14.2-1] and the senders of table 3-10. 0x8C is in table 2-6 only, so either side may send it.
fn check_disconnect_reason(reason: ReasonCode, direction: Direction) -> Result<(), Violation> {
    let (client, server) = match reason.0 {
        0x00 | 0x80..=0x83 | 0x8C | 0x90 | 0x93..=0x99 => (true, true),
        0x04 => (true, false),
        0x87 | 0x89 | 0x8B | 0x8D..=0x8F | 0x9A..=0xA2 => (false, true),
        _ => return Err(Violation::malformed("2.4", "reason code not of DISCONNECT")),
    };
    let allowed = match direction {
        Direction::ClientToServer => client,
        Direction::ServerToClient => server,
    };
    if allowed {
        Ok(())
    } else {
        Err(Violation::protocol_error(
            "3.14.2.1",
            "reason code sent by the wrong side",
        ))
    }
}

/// Which side may say success or re-authenticate, and when, is for the handshake to judge: it depends on what went
/// before.
pub(super) fn decode_auth(
    frame: &[u8],
    header: Header,
    direction: Direction,
    limits: &Limits,
) -> Result<Auth, Violation> {
    let mut auth = Auth {
        reason: ReasonCode::SUCCESS,
        authentication_method: None,
        authentication_data: None,
        reason_string: None,
        user_properties: Vec::new(),
    };
    if header.remaining_length == 0 {
        return Ok(auth);
    }
    let mut reader = Reader::new(frame, header.length);
    auth.reason = ReasonCode(reader.u8()?);
    match auth.reason {
        ReasonCode::SUCCESS | ReasonCode::CONTINUE_AUTHENTICATION => {}
        ReasonCode::RE_AUTHENTICATE if direction == Direction::ClientToServer => {}
        ReasonCode::RE_AUTHENTICATE => {
            return Err(Violation::protocol_error(
                "3.15.2.1",
                "re-authenticate sent by a server",
            ));
        }
        _ => return Err(Violation::malformed("MQTT-3.15.2-1", "reason code not of AUTH")),
    }
    let (block, _) = properties::check(&mut reader, Scope::AUTH, direction, limits)?;
    reader.end()?;
    for property in PropertyIter::new(block) {
        match property {
            Property::AuthenticationMethod(method) => auth.authentication_method = Some(method.to_owned()),
            Property::AuthenticationData(data) => auth.authentication_data = Some(Bytes::copy_from_slice(data)),
            Property::ReasonString(reason) => auth.reason_string = Some(reason.to_owned()),
            Property::UserProperty(name, value) => auth.user_properties.push((name.to_owned(), value.to_owned())),
            _ => {}
        }
    }
    let is_short_success = auth.reason == ReasonCode::SUCCESS && block.is_empty();
    if auth.authentication_method.is_none() && !is_short_success {
        return Err(Violation::protocol_error(
            "3.15.2.2.2",
            "AUTH without an authentication method",
        ));
    }
    Ok(auth)
}
