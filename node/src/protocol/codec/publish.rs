//! PUBLISH as it came: one shared frame and the offsets of its parts. Decoding allocates nothing.
//!
//! ```text
//!   fixed header │ topic │ packet identifier (QoS > 0) │ property length, properties (5.0) │ payload
//! ```
//!
//! The frame is usually a slice of a read buffer: whoever keeps a message must copy what it keeps, or it pins the whole
//! buffer.

use super::framer::Header;
use super::properties::{self, Property, PropertyIter, Scope, id};
use super::reader::Reader;
use super::topic_grammar;
use super::{Direction, Limits, QoS, ReasonCode, Version, Violation};
use crate::protocol::checks::{Check, on};
use bytes::Bytes;
use std::fmt;
use std::num::NonZeroU16;
use std::sync::Arc;

/// A checked PUBLISH.
#[derive(Clone)]
pub struct Publish {
    frame: Bytes,
    topic_at: u32,
    properties_at: u32,
    payload_at: u32,
    topic_bytes: u16,
    properties_bytes: u32,
    packet_id: Option<NonZeroU16>,
    qos: QoS,
    /// What the Topic Alias stands for, where the frame has no name.
    resolved: Option<Arc<str>>,
    /// Seconds after which it is published, where its name said so.
    delay: Option<u32>,
    above_limits: bool,
}

impl Publish {
    /// The whole frame as received.
    pub fn frame(&self) -> &Bytes {
        &self.frame
    }

    /// Whether this may be a resent PUBLISH; never with QoS 0 [MQTT-3.3.1-2].
    pub fn dup(&self) -> bool {
        self.frame[0] & DUP != 0
    }

    pub fn qos(&self) -> QoS {
        self.qos
    }

    pub fn retain(&self) -> bool {
        self.frame[0] & RETAIN != 0
    }

    /// The Topic Name; empty only in MQTT 5 together with a Topic Alias that was not resolved.
    pub fn topic(&self) -> &str {
        if let Some(resolved) = &self.resolved {
            return resolved;
        }
        let start = self.topic_at as usize;
        std::str::from_utf8(&self.frame[start..start + usize::from(self.topic_bytes)])
            .expect("decode has checked that the topic is UTF-8")
    }

    /// The same with the Topic Name that its Topic Alias stands for.
    pub fn with_topic(self, topic: Arc<str>) -> Publish {
        Publish {
            resolved: Some(topic),
            ..self
        }
    }

    /// The same, to be published to `topic` after `seconds`.
    pub fn delayed(self, seconds: u32, topic: Arc<str>) -> Publish {
        Publish {
            delay: Some(seconds),
            ..self.with_topic(topic)
        }
    }

    /// Seconds after which it is published; none: now.
    pub fn delay(&self) -> Option<u32> {
        self.delay
    }

    /// Whether its name is longer or deeper than this broker takes: a well-formed PUBLISH, to be refused by PUBACK or PUBREC.
    /// Only where these can tell it: of a 5.0 client, at QoS 1 or 2.
    pub fn is_above_limits(&self) -> bool {
        self.above_limits
    }

    /// The same, whose Topic Alias stands for such a name.
    pub fn above_limits(self) -> Publish {
        Publish {
            above_limits: true,
            ..self
        }
    }

    /// `Some` exactly when the QoS is above 0.
    pub fn packet_id(&self) -> Option<NonZeroU16> {
        self.packet_id
    }

    pub fn payload(&self) -> &[u8] {
        &self.frame[self.payload_at as usize..]
    }

    /// The payload as a slice that shares the frame's memory.
    pub fn payload_bytes(&self) -> Bytes {
        self.frame.slice(self.payload_at as usize..)
    }

    /// The property block without its length; empty in 3.x.
    pub fn properties_raw(&self) -> &[u8] {
        let start = self.properties_at as usize;
        &self.frame[start..start + self.properties_bytes as usize]
    }

    /// The properties in the order of the packet.
    pub fn properties(&self) -> PropertyIter<'_> {
        PropertyIter::new(self.properties_raw())
    }

    pub fn payload_format_indicator(&self) -> Option<u8> {
        self.find(|property| match property {
            Property::PayloadFormatIndicator(value) => Some(value),
            _ => None,
        })
    }

    /// Seconds.
    pub fn message_expiry_interval(&self) -> Option<u32> {
        self.find(|property| match property {
            Property::MessageExpiryInterval(seconds) => Some(seconds),
            _ => None,
        })
    }

    /// Never 0 [MQTT-3.3.2-8]; whether it is within the agreed maximum is for the receiver to check.
    pub fn topic_alias(&self) -> Option<u16> {
        self.find(|property| match property {
            Property::TopicAlias(alias) => Some(alias),
            _ => None,
        })
    }

    pub fn content_type(&self) -> Option<&str> {
        self.find(|property| match property {
            Property::ContentType(content_type) => Some(content_type),
            _ => None,
        })
    }

    pub fn response_topic(&self) -> Option<&str> {
        self.find(|property| match property {
            Property::ResponseTopic(topic) => Some(topic),
            _ => None,
        })
    }

    pub fn correlation_data(&self) -> Option<&[u8]> {
        self.find(|property| match property {
            Property::CorrelationData(data) => Some(data),
            _ => None,
        })
    }

    pub fn user_properties(&self) -> impl Iterator<Item = (&str, &str)> {
        self.properties().filter_map(|property| match property {
            Property::UserProperty(name, value) => Some((name, value)),
            _ => None,
        })
    }

    /// One per matching subscription that has an identifier; none in a PUBLISH of a client.
    pub fn subscription_identifiers(&self) -> impl Iterator<Item = u32> {
        self.properties().filter_map(|property| match property {
            Property::SubscriptionIdentifier(identifier) => Some(identifier),
            _ => None,
        })
    }

    fn find<'a, T>(&'a self, pick: impl Fn(Property<'a>) -> Option<T>) -> Option<T> {
        if self.properties_bytes == 0 {
            None
        } else {
            self.properties().find_map(pick)
        }
    }
}

/// Equal when all fields are; not when the fixed headers differ in form only.
impl PartialEq for Publish {
    fn eq(&self, other: &Publish) -> bool {
        self.frame[0] == other.frame[0]
            && self.packet_id == other.packet_id
            && self.resolved == other.resolved
            && self.delay == other.delay
            && self.frame[self.topic_at as usize..] == other.frame[other.topic_at as usize..]
    }
}

impl fmt::Debug for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publish")
            .field("topic", &self.topic())
            .field("qos", &self.qos)
            .field("retain", &self.retain())
            .field("dup", &self.dup())
            .field("packet_id", &self.packet_id)
            .field("payload_bytes", &self.payload().len())
            .finish_non_exhaustive()
    }
}

pub(super) fn decode(
    frame: Bytes,
    header: Header,
    version: Version,
    direction: Direction,
    limits: &Limits,
) -> Result<Publish, Violation> {
    let qos = check_publish_flags(header.flags())?;
    let mut reader = Reader::new(&frame, header.length);
    let topic = reader.string()?;
    let topic_at = reader.at() - topic.len();
    let topic_bytes = topic.len() as u16;
    let packet_id = match qos {
        QoS::AtMostOnce => None,
        QoS::AtLeastOnce | QoS::ExactlyOnce => Some(reader.packet_id()?),
    };
    let mut aliased = false;
    let mut properties_bytes = 0;
    if version.is_v5() {
        let (block, seen) = properties::check(&mut reader, Scope::PUBLISH, direction, limits)?;
        aliased = seen.has(id::TOPIC_ALIAS);
        properties_bytes = block.len();
    }
    check_topic(topic, version, aliased)?;
    let above_limits = !topic_grammar::within_limits(topic, limits);
    let can_tell = version.is_v5() && packet_id.is_some() && direction == Direction::ClientToServer;
    if above_limits && !can_tell {
        return Err(Violation::new(
            ReasonCode::TOPIC_NAME_INVALID,
            "3.3.2.1",
            "topic name above the limits",
        ));
    }
    let payload_at = reader.at();
    Ok(Publish {
        topic_at: topic_at as u32,
        topic_bytes,
        properties_at: (payload_at - properties_bytes) as u32,
        properties_bytes: properties_bytes as u32,
        payload_at: payload_at as u32,
        packet_id,
        qos,
        resolved: None,
        delay: None,
        above_limits,
        frame,
    })
}

fn check_publish_flags(flags: u8) -> Result<QoS, Violation> {
    let qos = QoS::from_bits((flags >> 1) & 0b11).ok_or(Violation::malformed("MQTT-3.3.1-4", "QoS 3"))?;
    if qos == QoS::AtMostOnce && flags & DUP != 0 && on(Check::DupAtQos0) {
        return Err(Violation::malformed("MQTT-3.3.1-2", "DUP with QoS 0"));
    }
    Ok(qos)
}

fn check_topic(topic: &str, version: Version, aliased: bool) -> Result<(), Violation> {
    if topic.is_empty() && version.is_v5() {
        return if aliased {
            Ok(())
        } else {
            Err(Violation::protocol_error(
                "3.3.2.1",
                "empty topic name without a topic alias",
            ))
        };
    }
    topic_grammar::check_topic_name(topic)
}

pub(super) const DUP: u8 = 0b1000;
pub(super) const RETAIN: u8 = 0b0001;
