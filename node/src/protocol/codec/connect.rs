//! CONNECT of all three versions, in one pass.
//!
//! ```text
//!   name │ level │ flags │ keep alive │ properties (5.0) │ client id
//!        │ will properties (5.0), topic, payload │ user name │ password
//! ```
//!
//! MQTT 3.1 differs: its name is `MQIsdp`; the reserved flag, and Will QoS and Retain without a Will, are ignored; a
//! client identifier is always due; a user name or password that the flags promise may be missing at the end of the
//! packet.

use super::framer::Header;
use super::properties::{self, Property, PropertyIter, Scope};
use super::reader::Reader;
use super::{
    Connect, ConnectProperties, Direction, Limits, QoS, ReasonCode, Version, Violation, Will, WillProperties,
    topic_grammar,
};
use crate::protocol::checks::{Check, on};
use bytes::Bytes;

/// The form in which a CONNECT is refused: the version it asks for, or for a level that is none of ours the nearest one.
/// `frame` need not be whole.
pub fn connect_version(frame: &[u8]) -> Option<Version> {
    if frame.first()? >> 4 != 1 {
        return None;
    }
    let encoded_bytes = frame.iter().skip(1).take(4).position(|byte| byte & 0x80 == 0)? + 1;
    if let Ok(version) = version(&mut Reader::new(frame, 1 + encoded_bytes)) {
        return Some(version);
    }
    let mut reader = Reader::new(frame, 1 + encoded_bytes);
    match (reader.string().ok()?, reader.u8().ok()?) {
        // 0x84 is 3.1.1 with Mosquitto's bridge bit.
        ("MQTT", 0..=3 | 0x80..) => Some(Version::V3_1_1),
        ("MQTT", 6..0x80) => Some(Version::V5),
        _ => None,
    }
}

pub(super) fn decode(
    frame: &[u8],
    header: Header,
    direction: Direction,
    limits: &Limits,
) -> Result<Connect, Violation> {
    if direction == Direction::ServerToClient {
        return Err(Violation::protocol_error("2.1.2", "CONNECT sent by a server"));
    }
    let mut reader = Reader::new(frame, header.length);
    let version = version(&mut reader)?;
    header.check_flags(version)?;
    if version.is_v5() {
        header.check_minimal()?;
    }
    let flags = Flags::read(&mut reader, version)?;
    let keep_alive_seconds = reader.u16()?;
    let mut properties = ConnectProperties::default();
    if version.is_v5() {
        let (block, _) = properties::check(&mut reader, Scope::CONNECT, direction, limits)?;
        properties = connect_properties(block);
    }
    let client_id = reader.string()?;
    check_client_id(client_id, version, flags.clean_start)?;
    let will = if flags.has_will {
        Some(read_will(&mut reader, version, flags, limits)?)
    } else {
        None
    };
    let user_name = match flags.has_user_name && !missing_in_3_1(&reader, version) {
        true => Some(reader.string()?.to_owned()),
        false => None,
    };
    let password = match flags.has_password && !missing_in_3_1(&reader, version) {
        true => Some(Bytes::copy_from_slice(reader.binary()?)),
        false => None,
    };
    reader.end()?;
    Ok(Connect {
        version,
        clean_start: flags.clean_start,
        keep_alive_seconds,
        client_id: client_id.to_owned(),
        will,
        user_name,
        password,
        properties,
    })
}

/// Protocol name and level. [MQTT-3.1.2-1] [MQTT-3.1.2-2]
fn version(reader: &mut Reader<'_>) -> Result<Version, Violation> {
    const UNSUPPORTED: ReasonCode = ReasonCode::UNSUPPORTED_PROTOCOL_VERSION;
    let versions: &[(u8, Version)] = match reader.string()? {
        "MQTT" => &[(5, Version::V5), (4, Version::V3_1_1)],
        "MQIsdp" => &[(3, Version::V3_1)],
        _ => return Err(Violation::new(UNSUPPORTED, "MQTT-3.1.2-1", "unknown protocol name")),
    };
    let level = reader.u8()?;
    if versions == [(3, Version::V3_1)] && level > 3 {
        return Err(Violation::new(
            UNSUPPORTED,
            "MQTT-3.1.2-1",
            "the protocol name does not go with the level",
        ));
    }
    match versions.iter().find(|(known, _)| *known == level) {
        Some((_, version)) => Ok(*version),
        None => Err(Violation::new(
            UNSUPPORTED,
            "MQTT-3.1.2-2",
            "unsupported protocol level",
        )),
    }
}

#[derive(Clone, Copy)]
struct Flags {
    clean_start: bool,
    has_will: bool,
    will_qos: QoS,
    will_retain: bool,
    has_password: bool,
    has_user_name: bool,
}

impl Flags {
    fn read(reader: &mut Reader<'_>, version: Version) -> Result<Flags, Violation> {
        let byte = reader.u8()?;
        if byte & 1 != 0 && version != Version::V3_1 && on(Check::ConnectReserved) {
            return Err(Violation::malformed("MQTT-3.1.2-3", "reserved connect flag"));
        }
        let has_will = byte & 0b0000_0100 != 0;
        if !has_will && byte & 0b0011_1000 != 0 && version != Version::V3_1 && on(Check::WillFlags) {
            return Err(Violation::malformed(
                "MQTT-3.1.2-11",
                "will QoS or retain without a will",
            ));
        }
        let will_qos = match QoS::from_bits((byte >> 3) & 0b11) {
            Some(qos) if has_will => qos,
            None if has_will => return Err(Violation::malformed("MQTT-3.1.2-12", "will QoS 3")),
            _ => QoS::AtMostOnce,
        };
        let flags = Flags {
            clean_start: byte & 0b0000_0010 != 0,
            has_will,
            will_qos,
            will_retain: byte & 0b0010_0000 != 0,
            has_password: byte & 0b0100_0000 != 0,
            has_user_name: byte & 0b1000_0000 != 0,
        };
        if flags.has_password && !flags.has_user_name && !version.is_v5() && on(Check::PasswordAlone) {
            return Err(Violation::malformed("v3 MQTT-3.1.2-22", "password without a user name"));
        }
        Ok(flags)
    }
}

/// [v3 MQTT-3.1.3-8]; 3.1 asks for 1 to 23 characters, of which only the lower bound is enforced.
fn check_client_id(client_id: &str, version: Version, clean_start: bool) -> Result<(), Violation> {
    let allowed = match version {
        Version::V3_1 => false,
        Version::V3_1_1 => clean_start,
        Version::V5 => true,
    };
    if !client_id.is_empty() || allowed || !on(Check::EmptyClientId) {
        return Ok(());
    }
    Err(Violation::new(
        ReasonCode::CLIENT_IDENTIFIER_NOT_VALID,
        "v3 MQTT-3.1.3-8",
        "empty client identifier",
    ))
}

fn read_will(reader: &mut Reader<'_>, version: Version, flags: Flags, limits: &Limits) -> Result<Will, Violation> {
    let mut properties = WillProperties::default();
    if version.is_v5() {
        let (block, _) = properties::check(reader, Scope::WILL, Direction::ClientToServer, limits)?;
        properties = will_properties(block);
    }
    let topic = reader.string()?;
    topic_grammar::check_topic_name(topic)?;
    if !topic_grammar::within_limits(topic, limits) {
        return Err(Violation::new(
            ReasonCode::TOPIC_NAME_INVALID,
            "3.1.3.3",
            "will topic above the limits",
        ));
    }
    Ok(Will {
        topic: topic.to_owned(),
        payload: Bytes::copy_from_slice(reader.binary()?),
        qos: flags.will_qos,
        retain: flags.will_retain,
        properties,
    })
}

/// MQTT 3.1 section 3.1: the remaining length takes precedence over the user name and password flags.
fn missing_in_3_1(reader: &Reader<'_>, version: Version) -> bool {
    version == Version::V3_1 && reader.is_empty()
}

fn connect_properties(block: &[u8]) -> ConnectProperties {
    let mut properties = ConnectProperties::default();
    for property in PropertyIter::new(block) {
        match property {
            Property::SessionExpiryInterval(seconds) => properties.session_expiry_interval = Some(seconds),
            Property::ReceiveMaximum(packets) => properties.receive_maximum = Some(packets),
            Property::MaximumPacketSize(bytes) => properties.maximum_packet_size = Some(bytes),
            Property::TopicAliasMaximum(aliases) => properties.topic_alias_maximum = aliases,
            Property::RequestResponseInformation(value) => properties.request_response_information = value == 1,
            Property::RequestProblemInformation(value) => properties.request_problem_information = value == 1,
            Property::UserProperty(name, value) => {
                properties.user_properties.push((name.to_owned(), value.to_owned()));
            }
            Property::AuthenticationMethod(method) => properties.authentication_method = Some(method.to_owned()),
            Property::AuthenticationData(data) => {
                properties.authentication_data = Some(Bytes::copy_from_slice(data));
            }
            _ => {}
        }
    }
    properties
}

fn will_properties(block: &[u8]) -> WillProperties {
    let mut properties = WillProperties::default();
    for property in PropertyIter::new(block) {
        match property {
            Property::WillDelayInterval(seconds) => properties.delay_interval = seconds,
            Property::PayloadFormatIndicator(value) => properties.payload_format_indicator = Some(value),
            Property::MessageExpiryInterval(seconds) => properties.message_expiry_interval = Some(seconds),
            Property::ContentType(content_type) => properties.content_type = Some(content_type.to_owned()),
            Property::ResponseTopic(topic) => properties.response_topic = Some(topic.to_owned()),
            Property::CorrelationData(data) => properties.correlation_data = Some(Bytes::copy_from_slice(data)),
            Property::UserProperty(name, value) => {
                properties.user_properties.push((name.to_owned(), value.to_owned()));
            }
            _ => {}
        }
    }
    properties
}
