//! PUBLISH to many subscribers: encoded once, then copied and patched.
//!
//! ```text
//!   PublishFields ──encode──▶ PublishFrame ──append(id, dup)──▶ out of subscriber 1
//!                                          ├─append(id, dup)──▶ out of subscriber 2 …
//! ```
//!
//! The first byte (DUP) and the packet identifier are the only bytes in which copies differ. Below about 1 KiB a copy
//! is cheaper than counting references; above, `append_head` and `payload_bytes` let a vectored write share the
//! payload.

use super::encode::{Body, EncodeError, put_variable_byte_integer};
use super::properties::{PropertiesOut, copy_except, id};
use super::publish::{DUP, RETAIN};
use super::{QoS, Version, topic_grammar};
use bytes::{Bytes, BytesMut};
use std::num::NonZeroU16;

/// What one encoded PUBLISH is made of.
#[derive(Clone, Copy, Debug)]
pub struct PublishFields<'a> {
    pub version: Version,
    pub qos: QoS,
    pub retain: bool,
    /// A Topic Name; empty only in MQTT 5 with a Topic Alias.
    pub topic: &'a str,
    pub properties: PropertiesOut<'a>,
    pub payload: &'a [u8],
}

/// One encoded PUBLISH, shared by all subscribers with equal version, QoS, retain and properties.
#[derive(Clone, Debug)]
pub struct PublishFrame {
    frame: Bytes,
    /// Offset of the packet identifier; 0 with QoS 0.
    packet_id_at: u32,
    payload_at: u32,
}

impl PublishFrame {
    /// Encodes everything but DUP and the packet identifier.
    ///
    /// # Errors
    /// A field that cannot be expressed, an illegal Topic Name, or a packet above the protocol's size.
    pub fn encode(fields: &PublishFields<'_>) -> Result<PublishFrame, EncodeError> {
        let properties = if fields.version.is_v5() {
            Some(property_block(&fields.properties)?)
        } else {
            None
        };
        let aliased = properties.is_some() && fields.properties.topic_alias.is_some();
        if !(fields.topic.is_empty() && aliased) {
            topic_grammar::check_topic_name(fields.topic).map_err(EncodeError::Refused)?;
        }
        let mut head = Body::default();
        head.string("topic name", fields.topic)?;
        let packet_id_at = head.0.len();
        if fields.qos != QoS::AtMostOnce {
            head.u16(0);
        }
        if let Some(properties) = properties {
            head.properties(properties)?;
        }
        let body_bytes = head.0.len() + fields.payload.len();
        let mut frame = Vec::with_capacity(5 + body_bytes);
        frame.push(0x30 | ((fields.qos as u8) << 1) | if fields.retain { RETAIN } else { 0 });
        put_variable_byte_integer(body_bytes, &mut frame)?;
        let packet_id_at = if fields.qos == QoS::AtMostOnce {
            0
        } else {
            frame.len() + packet_id_at
        };
        frame.extend_from_slice(&head.0);
        let payload_at = frame.len();
        frame.extend_from_slice(fields.payload);
        Ok(PublishFrame {
            frame: Bytes::from(frame),
            packet_id_at: packet_id_at as u32,
            payload_at: payload_at as u32,
        })
    }

    /// Bytes one [`append`](Self::append) writes; compare with the client's Maximum Packet Size [MQTT-3.1.2-24].
    #[allow(clippy::len_without_is_empty, reason = "a PUBLISH is never empty")]
    pub fn len(&self) -> usize {
        self.frame.len()
    }

    /// Whether a packet identifier has to be given.
    pub fn has_packet_id(&self) -> bool {
        self.packet_id_at != 0
    }

    /// Appends the packet for one subscriber. With QoS 0 both arguments are ignored [MQTT-2.2.1-2] [MQTT-3.3.1-2];
    /// above it an identifier is due [MQTT-2.2.1-4], and without one nothing is written.
    pub fn append(&self, packet_id: Option<NonZeroU16>, dup: bool, out: &mut BytesMut) {
        self.append_patched(&self.frame, packet_id, dup, out);
    }

    /// Appends the packet up to its payload, which the caller sends from [`payload_bytes`](Self::payload_bytes).
    pub fn append_head(&self, packet_id: Option<NonZeroU16>, dup: bool, out: &mut BytesMut) {
        self.append_patched(&self.frame[..self.payload_at as usize], packet_id, dup, out);
    }

    /// The payload, sharing the memory of this frame.
    pub fn payload_bytes(&self) -> Bytes {
        self.frame.slice(self.payload_at as usize..)
    }

    fn append_patched(&self, bytes: &[u8], packet_id: Option<NonZeroU16>, dup: bool, out: &mut BytesMut) {
        let start = out.len();
        if !self.has_packet_id() {
            out.extend_from_slice(bytes);
            return;
        }
        let Some(packet_id) = packet_id else {
            debug_assert!(false, "PUBLISH above QoS 0 without a packet identifier");
            return;
        };
        out.extend_from_slice(bytes);
        let written = &mut out[start..];
        if dup {
            written[0] |= DUP;
        }
        let at = self.packet_id_at as usize;
        written[at..at + 2].copy_from_slice(&packet_id.get().to_be_bytes());
    }
}

fn property_block(properties: &PropertiesOut<'_>) -> Result<Body, EncodeError> {
    let mut block = Body(Vec::with_capacity(
        properties.forwarded.len() + 8 + 5 * properties.subscription_identifiers.len(),
    ));
    if properties.topic_alias == Some(0) {
        return Err(EncodeError::TopicAliasZero);
    }
    block.property_u16(id::TOPIC_ALIAS, properties.topic_alias);
    block.property_u32(id::MESSAGE_EXPIRY_INTERVAL, properties.message_expiry_interval);
    for &identifier in properties.subscription_identifiers {
        block.subscription_identifier(identifier)?;
    }
    let left_out: &[u8] = match properties.message_expiry_interval {
        Some(_) => &[
            id::TOPIC_ALIAS,
            id::SUBSCRIPTION_IDENTIFIER,
            id::MESSAGE_EXPIRY_INTERVAL,
        ],
        None => &[id::TOPIC_ALIAS, id::SUBSCRIPTION_IDENTIFIER],
    };
    copy_except(properties.forwarded, left_out, Some(&mut block.0))?;
    Ok(block)
}
