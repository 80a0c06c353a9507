//! What a message of a run carries: who sent it, where to, in which order, some filler, and a checksum over all of it.
//!
//!     publisher|topic|seq|filler|crc32        and, in MQTT 5, a User Property "m" with the first three
//!
//! An empty payload (it removes a retained message) names itself in the User Property only.

use super::{Property, Publish, USER_PROPERTY, Value, Version};
use crate::history::Message;

/// The payload of `message` with `filler` bytes more.
pub fn payload(message: &Message, filler: usize) -> Vec<u8> {
    let filler: String = (0..filler)
        .map(|index| char::from(b'a' + ((message.seq as usize + index) % 26) as u8))
        .collect();
    let text = format!("{}|{filler}", name(message));
    format!("{text}|{:08x}", crc32(text.as_bytes())).into_bytes()
}

/// The User Property of `message`; none in 3.1.1.
pub fn properties(version: Version, message: &Message) -> Vec<Property> {
    match version {
        Version::V311 => Vec::new(),
        Version::V5 => vec![Property(USER_PROPERTY, Value::Pair(KEY.into(), name(message)))],
    }
}

/// The message that a delivery carries, and what is wrong with it.
pub fn read(publish: &Publish) -> (Option<Message>, Option<String>) {
    let copy = publish.properties.iter().find_map(|property| match property {
        Property(USER_PROPERTY, Value::Pair(key, value)) if key == KEY => Some(value.as_str()),
        _ => None,
    });
    if publish.payload.is_empty() {
        let message = copy.and_then(parse_name);
        let bad = message.is_none().then(|| "an empty payload without a name".into());
        return check_topic(message, bad, publish);
    }
    let (message, mut bad) = match parse_payload(&publish.payload) {
        Ok(message) => (Some(message), None),
        Err(reason) => (None, Some(reason)),
    };
    if let (Some(message), Some(copy)) = (&message, copy)
        && name(message) != copy
    {
        bad = Some(format!("the payload is {}, its property {copy}", name(message)));
    }
    check_topic(message, bad, publish)
}

fn check_topic(message: Option<Message>, bad: Option<String>, publish: &Publish) -> (Option<Message>, Option<String>) {
    let topic = message.as_ref().map(|message| message.topic.as_str());
    let bad = match topic {
        Some(topic) if topic != publish.topic => Some(format!("published to {topic}, came on {}", publish.topic)),
        _ => bad,
    };
    (message, bad)
}

fn name(message: &Message) -> String {
    format!("{}|{}|{}", message.publisher, message.topic, message.seq)
}

fn parse_name(name: &str) -> Option<Message> {
    let mut parts = name.split('|');
    let message = Message {
        publisher: parts.next()?.into(),
        topic: parts.next()?.into(),
        seq: parts.next()?.parse().ok()?,
    };
    parts.next().is_none().then_some(message)
}

fn parse_payload(payload: &[u8]) -> Result<Message, String> {
    let text = std::str::from_utf8(payload).map_err(|error| format!("payload: {error}"))?;
    let (text, sum) = text.rsplit_once('|').ok_or("a payload of another shape")?;
    if format!("{:08x}", crc32(text.as_bytes())) != sum {
        return Err(format!("checksum of {}", text.chars().take(120).collect::<String>()));
    }
    let (name, _filler) = text.rsplit_once('|').ok_or("a payload of another shape")?;
    parse_name(name).ok_or_else(|| format!("a payload that names {name:?}"))
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg())
        })
    })
}

const KEY: &str = "m";
