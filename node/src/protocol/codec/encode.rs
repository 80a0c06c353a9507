//! Writing packets: the field writer all encoders share, the pings, and what only a client sends.
//!
//! Invariants
//! - `nothing-on-error`: a packet is built aside and appended whole.
//! - `checked-before-sent`: control packets pass our own strict check before they leave; what we would refuse from a
//!   peer we do not send. PUBLISH and plain acknowledgements are right by their types and are not checked again.

use super::framer::variable_length_bytes;
use super::properties::id;
use super::{
    Connect, ConnectProperties, Direction, Limits, Subscribe, Unsubscribe, Version, Violation, Will, WillProperties,
    decode,
};
use bytes::{Bytes, BytesMut};

/// Why a packet was not written. Nothing is left in the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A string or binary field cannot be expressed.
    #[error("{field} has {bytes} bytes, at most 65535 can be sent")]
    FieldTooLong { field: &'static str, bytes: usize },
    #[error("{field} contains U+0000")]
    NulCharacter { field: &'static str },
    /// The remaining length would exceed 268,435,455.
    #[error("packet body of {bytes} bytes, at most 268435455 can be sent")]
    PacketTooLarge { bytes: usize },
    #[error("subscription identifier {0} is not within 1 to 268435455")]
    SubscriptionIdentifier(u32),
    #[error("topic alias 0")]
    TopicAliasZero,
    /// The forwarded property bytes are no property block.
    #[error("forwarded properties are broken")]
    BrokenProperties,
    /// The packet does not exist in this version, or cannot say this there; close the connection instead.
    #[error("{packet} cannot carry this in {version:?}")]
    NotInVersion { packet: &'static str, version: Version },
    /// The reason code is not one of this packet's.
    #[error("reason code 0x{reason:02X} is not one of {packet}")]
    ReasonNotOfPacket { packet: &'static str, reason: u8 },
    /// The packet is against the standard.
    #[error("packet would violate the standard: {0}")]
    Refused(Violation),
}

/// Appends PINGREQ.
pub fn encode_pingreq(out: &mut BytesMut) {
    out.extend_from_slice(&[0xC0, 0]);
}

/// Appends PINGRESP. [MQTT-3.12.4-1]
pub fn encode_pingresp(out: &mut BytesMut) {
    out.extend_from_slice(&[0xD0, 0]);
}

/// Appends CONNECT in the version it names; properties are left out below 5.
pub fn encode_connect(connect: &Connect, out: &mut BytesMut) -> Result<(), EncodeError> {
    let mut body = Body::default();
    let (name, level) = match connect.version {
        Version::V3_1 => ("MQIsdp", 3),
        Version::V3_1_1 => ("MQTT", 4),
        Version::V5 => ("MQTT", 5),
    };
    body.string("protocol name", name)?;
    body.u8(level);
    body.u8(connect_flags(connect));
    body.u16(connect.keep_alive_seconds);
    if connect.version.is_v5() {
        body.properties(connect_properties(&connect.properties)?)?;
    }
    body.string("client identifier", &connect.client_id)?;
    if let Some(will) = &connect.will {
        if connect.version.is_v5() {
            body.properties(will_properties(&will.properties)?)?;
        }
        body.string("will topic", &will.topic)?;
        body.binary("will payload", &will.payload)?;
    }
    if let Some(user_name) = &connect.user_name {
        body.string("user name", user_name)?;
    }
    if let Some(password) = &connect.password {
        body.binary("password", password)?;
    }
    append_checked(body.packet(0x10)?, None, Direction::ClientToServer, out)
}

/// Appends SUBSCRIBE; below 5 only filters and QoS are written.
pub fn encode_subscribe(version: Version, subscribe: &Subscribe, out: &mut BytesMut) -> Result<(), EncodeError> {
    let mut body = Body::default();
    body.u16(subscribe.packet_id.get());
    if version.is_v5() {
        let mut properties = Body::default();
        if let Some(identifier) = subscribe.subscription_identifier {
            properties.subscription_identifier(identifier)?;
        }
        properties.user_properties(&subscribe.user_properties)?;
        body.properties(properties)?;
    }
    for filter in &subscribe.filters {
        body.string("topic filter", &filter.filter)?;
        let options = (filter.retain_handling << 4)
            | (u8::from(filter.retain_as_published) << 3)
            | (u8::from(filter.no_local) << 2);
        body.u8(filter.qos as u8 | if version.is_v5() { options } else { 0 });
    }
    append_checked(body.packet(0x82)?, Some(version), Direction::ClientToServer, out)
}

/// Appends UNSUBSCRIBE.
pub fn encode_unsubscribe(version: Version, unsubscribe: &Unsubscribe, out: &mut BytesMut) -> Result<(), EncodeError> {
    let mut body = Body::default();
    body.u16(unsubscribe.packet_id.get());
    if version.is_v5() {
        let mut properties = Body::default();
        properties.user_properties(&unsubscribe.user_properties)?;
        body.properties(properties)?;
    }
    for filter in &unsubscribe.filters {
        body.string("topic filter", filter)?;
    }
    append_checked(body.packet(0xA2)?, Some(version), Direction::ClientToServer, out)
}

impl Will {
    /// The Will's properties as the property block of the PUBLISH it becomes (without Will Delay Interval), for
    /// [`super::PropertiesOut::forwarded`] and for storing.
    pub fn publish_properties(&self) -> Result<Vec<u8>, EncodeError> {
        message_properties(&self.properties).map(|body| body.0)
    }
}

fn connect_flags(connect: &Connect) -> u8 {
    let will = connect.will.as_ref().map_or(0, |will| {
        0b0000_0100 | ((will.qos as u8) << 3) | (u8::from(will.retain) << 5)
    });
    (u8::from(connect.user_name.is_some()) << 7)
        | (u8::from(connect.password.is_some()) << 6)
        | will
        | (u8::from(connect.clean_start) << 1)
}

fn connect_properties(properties: &ConnectProperties) -> Result<Body, EncodeError> {
    let mut body = Body::default();
    body.property_u32(id::SESSION_EXPIRY_INTERVAL, properties.session_expiry_interval);
    body.property_u16(id::RECEIVE_MAXIMUM, properties.receive_maximum);
    body.property_u32(id::MAXIMUM_PACKET_SIZE, properties.maximum_packet_size);
    let aliases = properties.topic_alias_maximum;
    body.property_u16(id::TOPIC_ALIAS_MAXIMUM, (aliases > 0).then_some(aliases));
    body.property_u8(
        id::REQUEST_RESPONSE_INFORMATION,
        properties.request_response_information.then_some(1),
    );
    body.property_u8(
        id::REQUEST_PROBLEM_INFORMATION,
        (!properties.request_problem_information).then_some(0),
    );
    body.user_properties(&properties.user_properties)?;
    body.property_string(
        id::AUTHENTICATION_METHOD,
        "authentication method",
        &properties.authentication_method,
    )?;
    body.property_binary(
        id::AUTHENTICATION_DATA,
        "authentication data",
        &properties.authentication_data,
    )?;
    Ok(body)
}

fn will_properties(properties: &WillProperties) -> Result<Body, EncodeError> {
    let mut body = message_properties(properties)?;
    let delay = properties.delay_interval;
    body.property_u32(id::WILL_DELAY_INTERVAL, (delay > 0).then_some(delay));
    Ok(body)
}

fn message_properties(properties: &WillProperties) -> Result<Body, EncodeError> {
    let mut body = Body::default();
    body.property_u8(id::PAYLOAD_FORMAT_INDICATOR, properties.payload_format_indicator);
    body.property_u32(id::MESSAGE_EXPIRY_INTERVAL, properties.message_expiry_interval);
    body.property_string(id::CONTENT_TYPE, "content type", &properties.content_type)?;
    body.property_string(id::RESPONSE_TOPIC, "response topic", &properties.response_topic)?;
    body.property_binary(id::CORRELATION_DATA, "correlation data", &properties.correlation_data)?;
    body.user_properties(&properties.user_properties)?;
    Ok(body)
}

/// Appends a packet that passes our own check.
pub(super) fn append_checked(
    packet: Vec<u8>,
    version: Option<Version>,
    direction: Direction,
    out: &mut BytesMut,
) -> Result<(), EncodeError> {
    let packet = Bytes::from(packet);
    decode(packet.clone(), version, direction, &Limits::PROTOCOL).map_err(EncodeError::Refused)?;
    out.extend_from_slice(&packet);
    Ok(())
}

/// A string has to fit its 16-bit length and must not contain U+0000 [MQTT-1.5.4-2].
pub(super) fn check_string(field: &'static str, string: &str) -> Result<(), EncodeError> {
    check_binary(field, string.as_bytes())?;
    if string.as_bytes().contains(&0) {
        Err(EncodeError::NulCharacter { field })
    } else {
        Ok(())
    }
}

pub(super) fn check_binary(field: &'static str, binary: &[u8]) -> Result<(), EncodeError> {
    if binary.len() > usize::from(u16::MAX) {
        return Err(EncodeError::FieldTooLong {
            field,
            bytes: binary.len(),
        });
    }
    Ok(())
}

/// Appends `value` as a variable byte integer; at most 268,435,455.
pub(super) fn put_variable_byte_integer(value: usize, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    if value > REMAINING_LENGTH_MAX {
        return Err(EncodeError::PacketTooLarge { bytes: value });
    }
    let mut rest = value;
    for _ in 1..variable_length_bytes(value) {
        out.push((rest & 0x7F) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
    Ok(())
}

/// The bytes of a packet behind its fixed header, or of a property block.
#[derive(Default)]
pub(super) struct Body(pub(super) Vec<u8>);

impl Body {
    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    pub(super) fn string(&mut self, field: &'static str, string: &str) -> Result<(), EncodeError> {
        check_string(field, string)?;
        self.binary(field, string.as_bytes())
    }

    pub(super) fn binary(&mut self, field: &'static str, binary: &[u8]) -> Result<(), EncodeError> {
        check_binary(field, binary)?;
        self.u16(binary.len() as u16);
        self.0.extend_from_slice(binary);
        Ok(())
    }

    pub(super) fn property_u8(&mut self, identifier: u8, value: Option<u8>) {
        if let Some(value) = value {
            self.0.extend_from_slice(&[identifier, value]);
        }
    }

    pub(super) fn property_u16(&mut self, identifier: u8, value: Option<u16>) {
        if let Some(value) = value {
            self.u8(identifier);
            self.u16(value);
        }
    }

    pub(super) fn property_u32(&mut self, identifier: u8, value: Option<u32>) {
        if let Some(value) = value {
            self.u8(identifier);
            self.0.extend_from_slice(&value.to_be_bytes());
        }
    }

    pub(super) fn property_string(
        &mut self,
        identifier: u8,
        field: &'static str,
        value: &Option<String>,
    ) -> Result<(), EncodeError> {
        let Some(value) = value else { return Ok(()) };
        self.u8(identifier);
        self.string(field, value)
    }

    pub(super) fn property_binary(
        &mut self,
        identifier: u8,
        field: &'static str,
        value: &Option<Bytes>,
    ) -> Result<(), EncodeError> {
        let Some(value) = value else { return Ok(()) };
        self.u8(identifier);
        self.binary(field, value)
    }

    pub(super) fn subscription_identifier(&mut self, value: u32) -> Result<(), EncodeError> {
        if value == 0 || value as usize > REMAINING_LENGTH_MAX {
            return Err(EncodeError::SubscriptionIdentifier(value));
        }
        self.u8(id::SUBSCRIPTION_IDENTIFIER);
        put_variable_byte_integer(value as usize, &mut self.0)
    }

    pub(super) fn user_properties(&mut self, properties: &[(String, String)]) -> Result<(), EncodeError> {
        for (name, value) in properties {
            self.u8(id::USER_PROPERTY);
            self.string("user property name", name)?;
            self.string("user property value", value)?;
        }
        Ok(())
    }

    /// Appends a property block with its length.
    pub(super) fn properties(&mut self, block: Body) -> Result<(), EncodeError> {
        put_variable_byte_integer(block.0.len(), &mut self.0)?;
        self.0.extend_from_slice(&block.0);
        Ok(())
    }

    /// Puts the fixed header in front.
    pub(super) fn packet(self, first_byte: u8) -> Result<Vec<u8>, EncodeError> {
        let mut packet = Vec::with_capacity(5 + self.0.len());
        packet.push(first_byte);
        put_variable_byte_integer(self.0.len(), &mut packet)?;
        packet.extend_from_slice(&self.0);
        Ok(packet)
    }
}

/// The largest variable byte integer. [MQTT 5 section 1.5.5]
pub(super) const REMAINING_LENGTH_MAX: usize = 268_435_455;
