//! The only place that names mqttbytes: rare control packets, filled by it after the strict check, and written by it.
//!
//! ```text
//!   Checked frame ──mqttbytes──▶ its struct ──▶ ours          SUBSCRIBE, 3.x UNSUBSCRIBE, CONNACK, SUBACK, UNSUBACK
//!   ours ──▶ its struct ──mqttbytes──▶ bytes ──check──▶ out    CONNACK, SUBACK, UNSUBACK
//! ```
//!
//! Never through it, because it is wrong or silent there: CONNECT, PUBLISH, the four acknowledgements, the MQTT 5
//! UNSUBSCRIBE (it prints to stderr), DISCONNECT, AUTH, and all of its topic functions.
//!
//! Invariants
//! - `checked-before-decoded`: decoders take a [`Checked`], which only the strict checks make.
//! - `no-silent-drop`: whatever mqttbytes answers after that, "more bytes needed" included, is our bug: 0x83, never a
//!   wait.
//! - `nothing-on-error`: it writes into a buffer of its own, after every string was measured (it truncates lengths),
//!   and the result passes the strict check before it is appended.

use super::encode::{EncodeError, append_checked, check_binary, check_string};
use super::framer::Header;
use super::reason::reason_of_return_code;
use super::{
    ConnAck, ConnAckProperties, Direction, Limits, QoS, ReasonCode, SubAck, Subscribe, SubscribeFilter, UnsubAck,
    Unsubscribe, Version, Violation, connack_return_code, topic_grammar,
};
use bytes::{Bytes, BytesMut};
use mqttbytes::{Error, FixedHeader, v4, v5};
use std::num::NonZeroU16;

/// Proof that the strict check of its packet type accepted this whole frame.
#[must_use]
pub(super) struct Checked {
    frame: Bytes,
    header: Header,
}

impl Checked {
    /// To be called at the end of a strict check, nowhere else.
    pub(super) fn new(frame: Bytes, header: Header) -> Checked {
        Checked { frame, header }
    }

    fn read<T>(self, read: impl FnOnce(FixedHeader, Bytes) -> Result<T, Error>) -> Result<T, Violation> {
        let header = FixedHeader::new(
            self.header.first_byte,
            self.header.length - 1,
            self.header.remaining_length,
        );
        debug_assert_eq!(header.frame_length(), self.frame.len(), "checked-before-decoded");
        read(header, self.frame).map_err(|error| {
            debug_assert!(false, "mqttbytes refused a checked frame: {error}");
            DISAGREEMENT
        })
    }
}

pub(super) fn subscribe(checked: Checked, version: Version, limits: &Limits) -> Result<Subscribe, Violation> {
    if !version.is_v5() {
        let packet = checked.read(v4::Subscribe::read)?;
        let filters = packet.filters.into_iter();
        return Ok(Subscribe {
            packet_id: packet_id(packet.pkid)?,
            subscription_identifier: None,
            filters: filters
                .map(|filter| subscribe_filter(v5_filter(filter), limits))
                .collect(),
            user_properties: Vec::new(),
        });
    }
    let packet = checked.read(v5::Subscribe::read)?;
    let (identifier, user_properties) = match packet.properties {
        Some(properties) => (
            properties.id.map(|identifier| identifier as u32),
            properties.user_properties,
        ),
        None => (None, Vec::new()),
    };
    Ok(Subscribe {
        packet_id: packet_id(packet.pkid)?,
        subscription_identifier: identifier,
        filters: packet
            .filters
            .into_iter()
            .map(|filter| subscribe_filter(filter, limits))
            .collect(),
        user_properties,
    })
}

fn v5_filter(filter: v4::SubscribeFilter) -> v5::SubscribeFilter {
    v5::SubscribeFilter::new(filter.path, filter.qos)
}

fn subscribe_filter(filter: v5::SubscribeFilter, limits: &Limits) -> SubscribeFilter {
    let is_within = topic_grammar::within_limits(&filter.path, limits);
    SubscribeFilter {
        filter: filter.path,
        qos: own_qos(filter.qos),
        no_local: filter.nolocal,
        retain_as_published: filter.preserve_retain,
        retain_handling: match filter.retain_forward_rule {
            v5::RetainForwardRule::OnEverySubscribe => 0,
            v5::RetainForwardRule::OnNewSubscribe => 1,
            v5::RetainForwardRule::Never => 2,
        },
        valid: if is_within {
            Ok(())
        } else {
            Err(ReasonCode::TOPIC_FILTER_INVALID)
        },
    }
}

/// 3.1 and 3.1.1 only.
pub(super) fn unsubscribe_v3(checked: Checked) -> Result<Unsubscribe, Violation> {
    let packet = checked.read(v4::Unsubscribe::read)?;
    Ok(Unsubscribe {
        packet_id: packet_id(packet.pkid)?,
        filters: packet.topics,
        user_properties: Vec::new(),
    })
}

pub(super) fn suback(checked: Checked, version: Version) -> Result<SubAck, Violation> {
    if !version.is_v5() {
        let packet = checked.read(v4::SubAck::read)?;
        let reasons = packet.return_codes.into_iter().map(|code| match code {
            v4::SubscribeReasonCode::Success(qos) => ReasonCode(qos as u8),
            v4::SubscribeReasonCode::Failure => ReasonCode::UNSPECIFIED_ERROR,
        });
        return Ok(SubAck::new(packet_id(packet.pkid)?, reasons.collect()));
    }
    let packet = checked.read(v5::SubAck::read)?;
    let mut suback = SubAck::new(
        packet_id(packet.pkid)?,
        packet
            .return_codes
            .into_iter()
            .map(|code| ReasonCode(code as u8))
            .collect(),
    );
    if let Some(properties) = packet.properties {
        suback.reason_string = properties.reason_string;
        suback.user_properties = properties.user_properties;
    }
    Ok(suback)
}

pub(super) fn unsuback(checked: Checked, version: Version) -> Result<UnsubAck, Violation> {
    if !version.is_v5() {
        let packet = checked.read(v4::UnsubAck::read)?;
        return Ok(UnsubAck::new(packet_id(packet.pkid)?, Vec::new()));
    }
    let packet = checked.read(v5::UnsubAck::read)?;
    let mut unsuback = UnsubAck::new(
        packet_id(packet.pkid)?,
        packet.reasons.into_iter().map(|code| ReasonCode(code as u8)).collect(),
    );
    if let Some(properties) = packet.properties {
        unsuback.reason_string = properties.reason_string;
        unsuback.user_properties = properties.user_properties;
    }
    Ok(unsuback)
}

pub(super) fn connack(checked: Checked, version: Version) -> Result<ConnAck, Violation> {
    if !version.is_v5() {
        let packet = checked.read(v4::ConnAck::read)?;
        return Ok(ConnAck {
            session_present: packet.session_present && version != Version::V3_1,
            reason: reason_of_return_code(packet.code as u8).ok_or(DISAGREEMENT)?,
            properties: ConnAckProperties::default(),
        });
    }
    let packet = checked.read(v5::ConnAck::read)?;
    Ok(ConnAck {
        session_present: packet.session_present,
        reason: ReasonCode(packet.code as u8),
        properties: packet.properties.map(own_connack_properties).unwrap_or_default(),
    })
}

fn own_connack_properties(properties: v5::ConnAckProperties) -> ConnAckProperties {
    let is_available = |value: u8| value == 1;
    ConnAckProperties {
        session_expiry_interval: properties.session_expiry_interval,
        receive_maximum: properties.receive_max,
        maximum_qos: properties.max_qos.and_then(QoS::from_bits),
        retain_available: properties.retain_available.map(is_available),
        maximum_packet_size: properties.max_packet_size,
        assigned_client_identifier: properties.assigned_client_identifier,
        topic_alias_maximum: properties.topic_alias_max,
        reason_string: properties.reason_string,
        user_properties: properties.user_properties,
        wildcard_subscription_available: properties.wildcard_subscription_available.map(is_available),
        subscription_identifiers_available: properties.subscription_identifiers_available.map(is_available),
        shared_subscription_available: properties.shared_subscription_available.map(is_available),
        server_keep_alive: properties.server_keep_alive,
        response_information: properties.response_information,
        server_reference: properties.server_reference,
        authentication_method: properties.authentication_method,
        authentication_data: properties.authentication_data,
    }
}

/// Appends CONNACK. Below 5 the reason becomes a return code and the properties are left out; a reason without a return
/// code is [`EncodeError::NotInVersion`]: close without a word.
pub fn encode_connack(version: Version, connack: &ConnAck, out: &mut BytesMut) -> Result<(), EncodeError> {
    if !version.is_v5() {
        let code = connack_return_code(connack.reason).and_then(v4_return_code);
        let code = code.ok_or(EncodeError::NotInVersion {
            packet: "CONNACK",
            version,
        })?;
        let packet = v4::ConnAck::new(code, connack.session_present && version == Version::V3_1_1);
        return append(|buffer| packet.write(buffer), version, out);
    }
    let code = v5_connect_reason(connack.reason)?;
    let mut packet = v5::ConnAck::new(code, connack.session_present);
    // Without `Some` it would leave out the property length, which makes a malformed packet.
    packet.properties = Some(connack_properties(&connack.properties)?);
    append(|buffer| packet.write(buffer), version, out)
}

/// Appends SUBACK. Below 5 a failure of any kind is 0x80 and properties are left out.
pub fn encode_suback(version: Version, suback: &SubAck, out: &mut BytesMut) -> Result<(), EncodeError> {
    let packet_id = suback.packet_id.get();
    let not_of_packet = |code: &ReasonCode| EncodeError::ReasonNotOfPacket {
        packet: "SUBACK",
        reason: code.0,
    };
    if !version.is_v5() {
        let codes = suback.reasons.iter().map(|code| {
            let code_v3 = if code.is_error() {
                ReasonCode::UNSPECIFIED_ERROR
            } else {
                *code
            };
            v4::SubscribeReasonCode::try_from(code_v3.0).map_err(|_| not_of_packet(code))
        });
        let packet = v4::SubAck::new(packet_id, codes.collect::<Result<_, _>>()?);
        return append(|buffer| packet.write(buffer), version, out);
    }
    let codes = suback
        .reasons
        .iter()
        .map(|code| v5::SubscribeReasonCode::try_from(code.0).map_err(|_| not_of_packet(code)));
    let mut packet = v5::SubAck::new(packet_id, codes.collect::<Result<_, _>>()?);
    check_reason_and_user_properties(&suback.reason_string, &suback.user_properties)?;
    packet.properties = Some(v5::SubAckProperties {
        reason_string: suback.reason_string.clone(),
        user_properties: suback.user_properties.clone(),
    });
    append(|buffer| packet.write(buffer), version, out)
}

/// Appends UNSUBACK. Below 5 codes and properties are left out.
pub fn encode_unsuback(version: Version, unsuback: &UnsubAck, out: &mut BytesMut) -> Result<(), EncodeError> {
    let packet_id = unsuback.packet_id.get();
    if !version.is_v5() {
        let packet = v4::UnsubAck::new(packet_id);
        return append(|buffer| packet.write(buffer), version, out);
    }
    check_reason_and_user_properties(&unsuback.reason_string, &unsuback.user_properties)?;
    let mut packet = v5::UnsubAck::new(packet_id);
    packet.reasons = unsuback
        .reasons
        .iter()
        .map(|code| v5_unsuback_reason(*code))
        .collect::<Result<_, _>>()?;
    packet.properties = Some(v5::UnsubAckProperties {
        reason_string: unsuback.reason_string.clone(),
        user_properties: unsuback.user_properties.clone(),
    });
    append(|buffer| packet.write(buffer), version, out)
}

/// Writes into a buffer of its own and appends the packet once it passes the strict check.
fn append(
    write: impl FnOnce(&mut BytesMut) -> Result<usize, Error>,
    version: Version,
    out: &mut BytesMut,
) -> Result<(), EncodeError> {
    let mut buffer = BytesMut::new();
    // All it refuses is a packet above the protocol's size; strings and codes were checked before.
    write(&mut buffer).map_err(|_| EncodeError::PacketTooLarge { bytes: buffer.len() })?;
    append_checked(buffer.into(), Some(version), Direction::ServerToClient, out)
}

fn connack_properties(properties: &ConnAckProperties) -> Result<v5::ConnAckProperties, EncodeError> {
    for (field, string) in [
        ("assigned client identifier", &properties.assigned_client_identifier),
        ("response information", &properties.response_information),
        ("server reference", &properties.server_reference),
        ("authentication method", &properties.authentication_method),
    ] {
        string.iter().try_for_each(|string| check_string(field, string))?;
    }
    properties
        .authentication_data
        .iter()
        .try_for_each(|data| check_binary("authentication data", data))?;
    check_reason_and_user_properties(&properties.reason_string, &properties.user_properties)?;
    Ok(v5::ConnAckProperties {
        session_expiry_interval: properties.session_expiry_interval,
        receive_max: properties.receive_maximum,
        max_qos: properties
            .maximum_qos
            .filter(|qos| *qos != QoS::ExactlyOnce)
            .map(|qos| qos as u8),
        retain_available: properties.retain_available.map(u8::from),
        max_packet_size: properties.maximum_packet_size,
        assigned_client_identifier: properties.assigned_client_identifier.clone(),
        topic_alias_max: properties.topic_alias_maximum,
        reason_string: properties.reason_string.clone(),
        user_properties: properties.user_properties.clone(),
        wildcard_subscription_available: properties.wildcard_subscription_available.map(u8::from),
        subscription_identifiers_available: properties.subscription_identifiers_available.map(u8::from),
        shared_subscription_available: properties.shared_subscription_available.map(u8::from),
        server_keep_alive: properties.server_keep_alive,
        response_information: properties.response_information.clone(),
        server_reference: properties.server_reference.clone(),
        authentication_method: properties.authentication_method.clone(),
        authentication_data: properties.authentication_data.clone(),
    })
}

fn check_reason_and_user_properties(
    reason_string: &Option<String>,
    user_properties: &[(String, String)],
) -> Result<(), EncodeError> {
    reason_string
        .iter()
        .try_for_each(|reason| check_string("reason string", reason))?;
    user_properties.iter().try_for_each(|(name, value)| {
        check_string("user property name", name)?;
        check_string("user property value", value)
    })
}

fn packet_id(value: u16) -> Result<NonZeroU16, Violation> {
    NonZeroU16::new(value).ok_or(DISAGREEMENT)
}

fn own_qos(qos: mqttbytes::QoS) -> QoS {
    match qos {
        mqttbytes::QoS::AtMostOnce => QoS::AtMostOnce,
        mqttbytes::QoS::AtLeastOnce => QoS::AtLeastOnce,
        mqttbytes::QoS::ExactlyOnce => QoS::ExactlyOnce,
    }
}

fn v4_return_code(code: u8) -> Option<v4::ConnectReturnCode> {
    use v4::ConnectReturnCode::*;
    [
        Success,
        RefusedProtocolVersion,
        BadClientId,
        ServiceUnavailable,
        BadUserNamePassword,
        NotAuthorized,
    ]
    .into_iter()
    .find(|known| *known as u8 == code)
}

fn v5_connect_reason(reason: ReasonCode) -> Result<v5::ConnectReturnCode, EncodeError> {
    use v5::ConnectReturnCode::*;
    [
        Success,
        UnspecifiedError,
        MalformedPacket,
        ProtocolError,
        ImplementationSpecificError,
        UnsupportedProtocolVersion,
        ClientIdentifierNotValid,
        BadUserNamePassword,
        NotAuthorized,
        ServerUnavailable,
        ServerBusy,
        Banned,
        BadAuthenticationMethod,
        TopicNameInvalid,
        PacketTooLarge,
        QuotaExceeded,
        PayloadFormatInvalid,
        RetainNotSupported,
        QoSNotSupported,
        UseAnotherServer,
        ServerMoved,
        ConnectionRateExceeded,
    ]
    .into_iter()
    .find(|known| *known as u8 == reason.0)
    .ok_or(EncodeError::ReasonNotOfPacket {
        packet: "CONNACK",
        reason: reason.0,
    })
}

fn v5_unsuback_reason(reason: ReasonCode) -> Result<v5::UnsubAckReason, EncodeError> {
    use v5::UnsubAckReason::*;
    [
        Success,
        NoSubscriptionExisted,
        UnspecifiedError,
        ImplementationSpecificError,
        NotAuthorized,
        TopicFilterInvalid,
        PacketIdentifierInUse,
    ]
    .into_iter()
    .find(|known| *known as u8 == reason.0)
    .ok_or(EncodeError::ReasonNotOfPacket {
        packet: "UNSUBACK",
        reason: reason.0,
    })
}

/// `no-silent-drop`: the strict layer and mqttbytes disagree about a frame.
const DISAGREEMENT: Violation = Violation::new(
    ReasonCode::IMPLEMENTATION_SPECIFIC_ERROR,
    "4.13",
    "frame accepted by the strict check, refused by the decoder",
);

#[cfg(test)]
mod tests;
