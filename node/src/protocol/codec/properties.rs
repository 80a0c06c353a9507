//! The property block of MQTT 5: a hard boundary inside the packet, an allowed set per packet, each property once.
//!
//! `check` walks a block once and refuses whatever the standard forbids; after that `PropertyIter` walks it again
//! without allocating, as often as wanted.

use super::reader::Reader;
use super::{Direction, EncodeError, Limits, ReasonCode, Violation, topic_grammar};
use crate::protocol::checks::{Check, on};
use std::borrow::Cow;

/// One property with its value, borrowed from the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property<'a> {
    PayloadFormatIndicator(u8),
    MessageExpiryInterval(u32),
    ContentType(&'a str),
    ResponseTopic(&'a str),
    CorrelationData(&'a [u8]),
    SubscriptionIdentifier(u32),
    SessionExpiryInterval(u32),
    AssignedClientIdentifier(&'a str),
    ServerKeepAlive(u16),
    AuthenticationMethod(&'a str),
    AuthenticationData(&'a [u8]),
    RequestProblemInformation(u8),
    WillDelayInterval(u32),
    RequestResponseInformation(u8),
    ResponseInformation(&'a str),
    ServerReference(&'a str),
    ReasonString(&'a str),
    ReceiveMaximum(u16),
    TopicAliasMaximum(u16),
    TopicAlias(u16),
    MaximumQoS(u8),
    RetainAvailable(u8),
    UserProperty(&'a str, &'a str),
    MaximumPacketSize(u32),
    WildcardSubscriptionAvailable(u8),
    SubscriptionIdentifierAvailable(u8),
    SharedSubscriptionAvailable(u8),
}

/// Walks a property block (without its length) that was checked before. Ends early on bytes that were not.
#[derive(Clone)]
pub struct PropertyIter<'a>(Reader<'a>);

impl<'a> PropertyIter<'a> {
    /// `block` is a checked property block, as [`super::Publish::properties_raw`] returns it.
    pub fn new(block: &'a [u8]) -> PropertyIter<'a> {
        PropertyIter(Reader::new(block, 0))
    }
}

impl<'a> Iterator for PropertyIter<'a> {
    type Item = Property<'a>;

    fn next(&mut self) -> Option<Property<'a>> {
        if self.0.is_empty() {
            return None;
        }
        let identifier = self.0.u8().ok()?;
        read_value(identifier, &mut self.0).ok()
    }
}

/// Which properties a packet may carry.
#[derive(Clone, Copy)]
pub(super) struct Scope {
    allowed: u64,
    /// Refused with 0x82 when a client sends it: it belongs to the packet, but to the other side.
    server_only: u64,
    /// Refused with 0x82 when a server sends it.
    client_only: u64,
    /// May come more than once, besides User Property.
    repeated: u64,
}

impl Scope {
    const fn of(identifiers: &[u8]) -> Scope {
        let mut allowed = 0;
        let mut index = 0;
        while index < identifiers.len() {
            allowed |= bit(identifiers[index]);
            index += 1;
        }
        Scope {
            allowed,
            server_only: 0,
            client_only: 0,
            repeated: 0,
        }
    }

    pub(super) const CONNECT: Scope = Scope::of(&[
        id::SESSION_EXPIRY_INTERVAL,
        id::RECEIVE_MAXIMUM,
        id::MAXIMUM_PACKET_SIZE,
        id::TOPIC_ALIAS_MAXIMUM,
        id::REQUEST_RESPONSE_INFORMATION,
        id::REQUEST_PROBLEM_INFORMATION,
        id::USER_PROPERTY,
        id::AUTHENTICATION_METHOD,
        id::AUTHENTICATION_DATA,
    ]);
    pub(super) const WILL: Scope = Scope::of(&[
        id::WILL_DELAY_INTERVAL,
        id::PAYLOAD_FORMAT_INDICATOR,
        id::MESSAGE_EXPIRY_INTERVAL,
        id::CONTENT_TYPE,
        id::RESPONSE_TOPIC,
        id::CORRELATION_DATA,
        id::USER_PROPERTY,
    ]);
    pub(super) const CONNACK: Scope = Scope::of(&[
        id::SESSION_EXPIRY_INTERVAL,
        id::RECEIVE_MAXIMUM,
        id::MAXIMUM_QOS,
        id::RETAIN_AVAILABLE,
        id::MAXIMUM_PACKET_SIZE,
        id::ASSIGNED_CLIENT_IDENTIFIER,
        id::TOPIC_ALIAS_MAXIMUM,
        id::REASON_STRING,
        id::USER_PROPERTY,
        id::WILDCARD_SUBSCRIPTION_AVAILABLE,
        id::SUBSCRIPTION_IDENTIFIER_AVAILABLE,
        id::SHARED_SUBSCRIPTION_AVAILABLE,
        id::SERVER_KEEP_ALIVE,
        id::RESPONSE_INFORMATION,
        id::SERVER_REFERENCE,
        id::AUTHENTICATION_METHOD,
        id::AUTHENTICATION_DATA,
    ]);
    /// Subscription Identifiers come from the server only [MQTT-3.3.4-6], one per matching subscription.
    pub(super) const PUBLISH: Scope = Scope {
        server_only: bit(id::SUBSCRIPTION_IDENTIFIER),
        repeated: bit(id::SUBSCRIPTION_IDENTIFIER),
        ..Scope::of(&[
            id::PAYLOAD_FORMAT_INDICATOR,
            id::MESSAGE_EXPIRY_INTERVAL,
            id::TOPIC_ALIAS,
            id::RESPONSE_TOPIC,
            id::CORRELATION_DATA,
            id::USER_PROPERTY,
            id::SUBSCRIPTION_IDENTIFIER,
            id::CONTENT_TYPE,
        ])
    };
    /// PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK.
    pub(super) const ACK: Scope = Scope::of(&[id::REASON_STRING, id::USER_PROPERTY]);
    pub(super) const SUBSCRIBE: Scope = Scope::of(&[id::SUBSCRIPTION_IDENTIFIER, id::USER_PROPERTY]);
    pub(super) const UNSUBSCRIBE: Scope = Scope::of(&[id::USER_PROPERTY]);
    /// Session Expiry Interval comes from the client only [MQTT-3.14.2-2].
    pub(super) const DISCONNECT: Scope = Scope {
        client_only: bit(id::SESSION_EXPIRY_INTERVAL),
        ..Scope::of(&[
            id::SESSION_EXPIRY_INTERVAL,
            id::REASON_STRING,
            id::USER_PROPERTY,
            id::SERVER_REFERENCE,
        ])
    };
    pub(super) const AUTH: Scope = Scope::of(&[
        id::AUTHENTICATION_METHOD,
        id::AUTHENTICATION_DATA,
        id::REASON_STRING,
        id::USER_PROPERTY,
    ]);
}

/// Which properties a checked block holds.
#[derive(Clone, Copy)]
pub(super) struct Seen(u64);

impl Seen {
    pub(super) fn has(self, identifier: u8) -> bool {
        self.0 & bit(identifier) != 0
    }
}

/// Reads the property length and checks the whole block; the reader then stands behind it. [MQTT 5 section 2.2.2]
pub(super) fn check<'a>(
    reader: &mut Reader<'a>,
    scope: Scope,
    direction: Direction,
    limits: &Limits,
) -> Result<(&'a [u8], Seen), Violation> {
    let length = reader.variable_byte_integer()?;
    let block = reader.take(length as usize)?;
    let mut inner = Reader::new(block, 0);
    let mut seen = 0;
    let mut user_properties = 0;
    while !inner.is_empty() {
        let identifier = inner.u8()?;
        check_allowed(identifier, scope, direction)?;
        let property = read_value(identifier, &mut inner)?;
        if let Property::UserProperty(..) = property {
            user_properties += 1;
            if user_properties > limits.user_properties {
                return Err(Violation::new(
                    ReasonCode::QUOTA_EXCEEDED,
                    "2.2.2.2",
                    "too many user properties",
                ));
            }
        } else if seen & bit(identifier) & !scope.repeated != 0 && on(Check::PropertyTwice) {
            return Err(Violation::protocol_error("2.2.2.2", "property comes twice"));
        }
        seen |= bit(identifier);
        check_value(property)?;
    }
    let seen = Seen(seen);
    if seen.has(id::AUTHENTICATION_DATA) && !seen.has(id::AUTHENTICATION_METHOD) {
        return Err(Violation::protocol_error(
            "3.1.2.11.10",
            "authentication data without method",
        ));
    }
    Ok((block, seen))
}

fn check_allowed(identifier: u8, scope: Scope, direction: Direction) -> Result<(), Violation> {
    let identifier = bit(identifier);
    if scope.allowed & identifier == 0 {
        return Err(Violation::malformed(
            "2.2.2.2",
            "property unknown or not of this packet",
        ));
    }
    let other_side = match direction {
        Direction::ClientToServer => scope.server_only,
        Direction::ServerToClient => scope.client_only,
    };
    if other_side & identifier != 0 && on(Check::PropertySide) {
        return Err(Violation::protocol_error("2.2.2.2", "property sent by the wrong side"));
    }
    Ok(())
}

/// Values that have the right form and are forbidden all the same.
fn check_value(property: Property<'_>) -> Result<(), Violation> {
    use Property::*;
    match property {
        PayloadFormatIndicator(value)
        | RequestProblemInformation(value)
        | RequestResponseInformation(value)
        | MaximumQoS(value)
        | RetainAvailable(value)
        | WildcardSubscriptionAvailable(value)
        | SubscriptionIdentifierAvailable(value)
        | SharedSubscriptionAvailable(value)
            if value > 1 =>
        {
            Err(Violation::protocol_error(
                "2.2.2.2",
                "property value is neither 0 nor 1",
            ))
        }
        ReceiveMaximum(0) => Err(Violation::protocol_error("3.1.2.11.3", "receive maximum 0")),
        MaximumPacketSize(0) => Err(Violation::protocol_error("3.1.2.11.4", "maximum packet size 0")),
        SubscriptionIdentifier(0) => Err(Violation::protocol_error("3.8.2.1.2", "subscription identifier 0")),
        TopicAlias(0) => Err(Violation::new(
            ReasonCode::TOPIC_ALIAS_INVALID,
            "MQTT-3.3.2-8",
            "topic alias 0",
        )),
        ResponseTopic(name) if on(Check::WildcardInResponseTopic) => {
            topic_grammar::check_topic_name(name).map_err(|violation| Violation {
                statement: "MQTT-3.3.2-14",
                ..violation
            })
        }
        _ => Ok(()),
    }
}

fn read_value<'a>(identifier: u8, reader: &mut Reader<'a>) -> Result<Property<'a>, Violation> {
    Ok(match identifier {
        id::PAYLOAD_FORMAT_INDICATOR => Property::PayloadFormatIndicator(reader.u8()?),
        id::MESSAGE_EXPIRY_INTERVAL => Property::MessageExpiryInterval(reader.u32()?),
        id::CONTENT_TYPE => Property::ContentType(reader.string()?),
        id::RESPONSE_TOPIC => Property::ResponseTopic(reader.string()?),
        id::CORRELATION_DATA => Property::CorrelationData(reader.binary()?),
        id::SUBSCRIPTION_IDENTIFIER => Property::SubscriptionIdentifier(reader.variable_byte_integer()?),
        id::SESSION_EXPIRY_INTERVAL => Property::SessionExpiryInterval(reader.u32()?),
        id::ASSIGNED_CLIENT_IDENTIFIER => Property::AssignedClientIdentifier(reader.string()?),
        id::SERVER_KEEP_ALIVE => Property::ServerKeepAlive(reader.u16()?),
        id::AUTHENTICATION_METHOD => Property::AuthenticationMethod(reader.string()?),
        id::AUTHENTICATION_DATA => Property::AuthenticationData(reader.binary()?),
        id::REQUEST_PROBLEM_INFORMATION => Property::RequestProblemInformation(reader.u8()?),
        id::WILL_DELAY_INTERVAL => Property::WillDelayInterval(reader.u32()?),
        id::REQUEST_RESPONSE_INFORMATION => Property::RequestResponseInformation(reader.u8()?),
        id::RESPONSE_INFORMATION => Property::ResponseInformation(reader.string()?),
        id::SERVER_REFERENCE => Property::ServerReference(reader.string()?),
        id::REASON_STRING => Property::ReasonString(reader.string()?),
        id::RECEIVE_MAXIMUM => Property::ReceiveMaximum(reader.u16()?),
        id::TOPIC_ALIAS_MAXIMUM => Property::TopicAliasMaximum(reader.u16()?),
        id::TOPIC_ALIAS => Property::TopicAlias(reader.u16()?),
        id::MAXIMUM_QOS => Property::MaximumQoS(reader.u8()?),
        id::RETAIN_AVAILABLE => Property::RetainAvailable(reader.u8()?),
        id::USER_PROPERTY => Property::UserProperty(reader.string()?, reader.string()?),
        id::MAXIMUM_PACKET_SIZE => Property::MaximumPacketSize(reader.u32()?),
        id::WILDCARD_SUBSCRIPTION_AVAILABLE => Property::WildcardSubscriptionAvailable(reader.u8()?),
        id::SUBSCRIPTION_IDENTIFIER_AVAILABLE => Property::SubscriptionIdentifierAvailable(reader.u8()?),
        id::SHARED_SUBSCRIPTION_AVAILABLE => Property::SharedSubscriptionAvailable(reader.u8()?),
        _ => return Err(Violation::malformed("2.2.2.2", "unknown property identifier")),
    })
}

/// The properties of an outgoing PUBLISH: what the publisher sent, and what this hop adds. Ignored below version 5.
#[derive(Clone, Copy, Debug, Default)]
pub struct PropertiesOut<'a> {
    /// Property bytes as they were received or stored. Topic Alias and Subscription Identifiers in them belonged to the
    /// earlier hop and are left out; the rest is sent unaltered and in order. [MQTT-3.3.2-4] [MQTT-3.3.2-15]
    /// [MQTT-3.3.2-16] [MQTT-3.3.2-17] [MQTT-3.3.2-18] [MQTT-3.3.2-20]
    pub forwarded: &'a [u8],
    /// What is left of the Message Expiry Interval, in place of the forwarded one [MQTT-3.3.2-6]; `None` keeps that.
    pub message_expiry_interval: Option<u32>,
    /// Of every matching subscription that has one; each 1 to 268,435,455. [MQTT-3.3.4-3]
    pub subscription_identifiers: &'a [u32],
    /// Not 0, at most the client's Topic Alias Maximum.
    pub topic_alias: Option<u16>,
}

/// The part of a PUBLISH's property block that travels with the message: without Topic Alias and Subscription
/// Identifiers. Borrowed when there is nothing to leave out.
///
/// # Errors
/// [`EncodeError::BrokenProperties`] if `block` is not a property block.
pub fn forwarded_properties(block: &[u8]) -> Result<Cow<'_, [u8]>, EncodeError> {
    let mut kept = Vec::new();
    if copy_except(block, &[id::TOPIC_ALIAS, id::SUBSCRIPTION_IDENTIFIER], None)? {
        return Ok(Cow::Borrowed(block));
    }
    copy_except(block, &[id::TOPIC_ALIAS, id::SUBSCRIPTION_IDENTIFIER], Some(&mut kept))?;
    Ok(Cow::Owned(kept))
}

/// Copies the properties whose identifier is not in `left_out`; tells whether that is all of them.
pub(super) fn copy_except(block: &[u8], left_out: &[u8], mut out: Option<&mut Vec<u8>>) -> Result<bool, EncodeError> {
    let mut reader = Reader::new(block, 0);
    let mut all = true;
    while !reader.is_empty() {
        let start = reader.at();
        let identifier = reader.u8().map_err(|_| EncodeError::BrokenProperties)?;
        read_value(identifier, &mut reader).map_err(|_| EncodeError::BrokenProperties)?;
        if left_out.contains(&identifier) {
            all = false;
        } else if let Some(out) = out.as_deref_mut() {
            out.extend_from_slice(&block[start..reader.at()]);
        }
    }
    Ok(all)
}

const fn bit(identifier: u8) -> u64 {
    if identifier < 64 { 1 << identifier } else { 0 }
}

/// Property identifiers. [MQTT 5 table 2-4]
pub(super) mod id {
    pub const PAYLOAD_FORMAT_INDICATOR: u8 = 0x01;
    pub const MESSAGE_EXPIRY_INTERVAL: u8 = 0x02;
    pub const CONTENT_TYPE: u8 = 0x03;
    pub const RESPONSE_TOPIC: u8 = 0x08;
    pub const CORRELATION_DATA: u8 = 0x09;
    pub const SUBSCRIPTION_IDENTIFIER: u8 = 0x0B;
    pub const SESSION_EXPIRY_INTERVAL: u8 = 0x11;
    pub const ASSIGNED_CLIENT_IDENTIFIER: u8 = 0x12;
    pub const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub const AUTHENTICATION_METHOD: u8 = 0x15;
    pub const AUTHENTICATION_DATA: u8 = 0x16;
    pub const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
    pub const WILL_DELAY_INTERVAL: u8 = 0x18;
    pub const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
    pub const RESPONSE_INFORMATION: u8 = 0x1A;
    pub const SERVER_REFERENCE: u8 = 0x1C;
    pub const REASON_STRING: u8 = 0x1F;
    pub const RECEIVE_MAXIMUM: u8 = 0x21;
    pub const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub const TOPIC_ALIAS: u8 = 0x23;
    pub const MAXIMUM_QOS: u8 = 0x24;
    pub const RETAIN_AVAILABLE: u8 = 0x25;
    pub const USER_PROPERTY: u8 = 0x26;
    pub const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub const WILDCARD_SUBSCRIPTION_AVAILABLE: u8 = 0x28;
    pub const SUBSCRIPTION_IDENTIFIER_AVAILABLE: u8 = 0x29;
    pub const SHARED_SUBSCRIPTION_AVAILABLE: u8 = 0x2A;
}
