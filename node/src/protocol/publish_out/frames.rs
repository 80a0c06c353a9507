//! PUBLISH packets as bytes: encoded once for all clients that get equal ones, or for one client with topic aliases.

use std::rc::Rc;
use std::sync::Arc;

use lontra_storage::message::Message;

use super::Delivery;
use crate::protocol::codec::{PropertiesOut, PublishFields, PublishFrame, QoS, Version};
use crate::protocol::topic_alias::Alias;

/// Encoded frames of one fan-out: equal (message, version, QoS, flags, properties) is encoded once.
#[derive(Default)]
pub struct FrameCache {
    frames: Vec<CachedFrame>,
}

struct CachedFrame {
    message: Arc<Message>,
    version: Version,
    /// Of the topic as it leaves, which is the end of the message's.
    topic_bytes: usize,
    qos: u8,
    retain: bool,
    expiry: Option<u32>,
    identifiers: Vec<u32>,
    frame: Rc<PublishFrame>,
}

impl FrameCache {
    /// `None` if it cannot be encoded: longer than a packet may be.
    pub(super) fn frame(
        &mut self,
        version: Version,
        delivery: &Delivery,
        topic: &str,
        expiry: Option<u32>,
    ) -> Option<Rc<PublishFrame>> {
        let found = self.frames.iter().find(|cached| {
            Arc::ptr_eq(&cached.message, &delivery.message)
                && cached.version == version
                && cached.topic_bytes == topic.len()
                && cached.qos == delivery.qos
                && cached.retain == delivery.retain
                && cached.expiry == expiry
                && cached.identifiers == delivery.subscription_identifiers
        });
        if let Some(cached) = found {
            return Some(cached.frame.clone());
        }
        let frame = Rc::new(encode(version, delivery, topic, expiry, None)?);
        if self.frames.len() >= FRAMES_MAX {
            self.frames.clear();
        }
        self.frames.push(CachedFrame {
            message: delivery.message.clone(),
            version,
            topic_bytes: topic.len(),
            qos: delivery.qos,
            retain: delivery.retain,
            expiry,
            identifiers: delivery.subscription_identifiers.clone(),
            frame: frame.clone(),
        });
        Some(frame)
    }
}

/// `topic` is how the client knows that of the message; `expiry` is what is left of the Message Expiry Interval.
/// [MQTT-3.3.2-6]
pub(super) fn encode(
    version: Version,
    delivery: &Delivery,
    topic: &str,
    expiry: Option<u32>,
    alias: Option<Alias>,
) -> Option<PublishFrame> {
    let message = &delivery.message;
    let fields = PublishFields {
        version,
        qos: QoS::from_bits(delivery.qos)?,
        retain: delivery.retain,
        topic: match alias {
            Some(Alias::Known(_)) => "",
            Some(Alias::New(_)) | None => topic,
        },
        properties: PropertiesOut {
            forwarded: &message.properties,
            message_expiry_interval: expiry,
            subscription_identifiers: &delivery.subscription_identifiers,
            topic_alias: alias.map(Alias::number),
        },
        payload: &message.payload,
    };
    PublishFrame::encode(&fields).ok()
}

/// A fan-out has few kinds of frames; a linear search stays cheap.
const FRAMES_MAX: usize = 8;
