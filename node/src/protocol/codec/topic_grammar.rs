//! Grammar of strings, Topic Names and Topic Filters. Byte-wise: a level separator or wildcard is one ASCII byte, so no
//! index can fall inside a character.
//!
//! Matching is not here; it belongs to the topic tree of `storage`.

use super::{Limits, ReasonCode, Violation};
use crate::protocol::checks::{Check, on};

/// A UTF-8 Encoded String: well-formed, no surrogates, no U+0000; U+FEFF is kept.
/// [MQTT-1.5.4-1] [MQTT-1.5.4-2] [MQTT-1.5.4-3]
pub fn check_utf8(bytes: &[u8]) -> Result<&str, Violation> {
    let string = std::str::from_utf8(bytes).map_err(|_| Violation::malformed("MQTT-1.5.4-1", "string is not UTF-8"))?;
    if on(Check::StringNul) && has_any(bytes, [0]) {
        return Err(Violation::malformed("MQTT-1.5.4-2", "string contains U+0000"));
    }
    Ok(string)
}

/// A Topic Name: at least one character, no wildcard, no U+0000. [MQTT-4.7.3-1] [MQTT-3.3.2-2] [MQTT-4.7.3-2]
pub fn check_topic_name(name: &str) -> Result<(), Violation> {
    let has_wildcard = check_characters(name, ReasonCode::TOPIC_NAME_INVALID)?;
    if on(Check::WildcardInName) && has_wildcard {
        return Err(Violation::new(
            ReasonCode::TOPIC_NAME_INVALID,
            "MQTT-3.3.2-2",
            "wildcard in a topic name",
        ));
    }
    Ok(())
}

/// A Topic Filter, `$share/{ShareName}/{filter}` included. [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.8.2-1] [MQTT-4.8.2-2]
///
/// Version-free: 3.x has no shared subscriptions in its standard, but the broker offers them there too.
pub fn check_topic_filter(filter: &str) -> Result<(), Violation> {
    let has_wildcard = check_characters(filter, ReasonCode::TOPIC_FILTER_INVALID)?;
    let check_levels = |filter| match has_wildcard {
        true => check_levels(filter),
        false => Ok(()),
    };
    if let Some(filter) = filter.strip_prefix(EXCLUSIVE_PREFIX) {
        if filter.is_empty() {
            return Err(bad_filter("MQTT-4.7.3-1", "$exclusive/ without a topic filter"));
        }
        if is_shared(filter) || is_exclusive(filter) {
            return Err(bad_filter(
                "MQTT-4.8.2-2",
                "an exclusive subscription is to a topic filter alone",
            ));
        }
        return check_levels(filter);
    }
    if let Some(filter) = filter.strip_prefix(QUEUE_PREFIX) {
        if filter.is_empty() {
            return Err(bad_filter("MQTT-4.8.2-2", "$queue/ without a topic filter"));
        }
        return check_levels(filter);
    }
    let Some(shared) = filter.strip_prefix(SHARE_PREFIX) else {
        return check_levels(filter);
    };
    let Some((share_name, filter)) = shared.split_once('/') else {
        return Err(bad_filter("MQTT-4.8.2-2", "shared subscription without a topic filter"));
    };
    if share_name.is_empty() && on(Check::ShareName) {
        return Err(bad_filter("MQTT-4.8.2-1", "empty share name"));
    }
    if has_wildcard && has_any(share_name.as_bytes(), WILDCARDS) {
        return Err(bad_filter("MQTT-4.8.2-2", "wildcard in a share name"));
    }
    if filter.is_empty() {
        return Err(bad_filter(
            "MQTT-4.8.2-2",
            "shared subscription with an empty topic filter",
        ));
    }
    check_levels(filter)
}

/// Whether this is a Shared Subscription, before or after its grammar was checked.
pub fn is_shared(filter: &str) -> bool {
    filter.starts_with(SHARE_PREFIX) || filter.starts_with(QUEUE_PREFIX)
}

/// Whether this is an exclusive subscription, `$exclusive/{filter}`, before or after its grammar was checked.
pub fn is_exclusive(filter: &str) -> bool {
    filter.starts_with(EXCLUSIVE_PREFIX)
}

/// A filter as the cluster knows it: `$queue/{filter}`, the shared subscription without a name that other brokers have, is
/// `$share/$queue/{filter}`; of `$exclusive/{filter}` what is subscribed to.
pub fn canonical(filter: String) -> String {
    match filter.strip_prefix(QUEUE_PREFIX) {
        Some(within) => format!("{SHARE_PREFIX}{QUEUE}/{within}"),
        None => match filter.strip_prefix(EXCLUSIVE_PREFIX) {
            Some(within) => within.to_owned(),
            None => filter,
        },
    }
}

/// Share Name and Topic Filter of a canonical Shared Subscription; `None` for any other filter.
pub fn split_shared(filter: &str) -> Option<(&str, &str)> {
    filter.strip_prefix(SHARE_PREFIX)?.split_once('/')
}

/// Whether a name or filter stays within this broker's limits (`bounded`). The grammar is not looked at.
pub(super) fn within_limits(topic: &str, limits: &Limits) -> bool {
    topic.len() <= limits.topic_bytes
        && (topic.len() < limits.topic_levels
            || topic.bytes().filter(|byte| *byte == b'/').count() < limits.topic_levels)
}

/// Every byte is looked at, without an early way out: so the compiler can take many at once.
fn has_any<const N: usize>(bytes: &[u8], any: [u8; N]) -> bool {
    bytes.iter().fold(false, |found, byte| {
        any.iter().fold(found, |found, one| found | (byte == one))
    })
}

/// `#` alone in the last level, `+` alone in its level.
fn check_levels(filter: &str) -> Result<(), Violation> {
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let is_last = levels.peek().is_none();
        if level.contains('#') && (level.len() > 1 || !is_last) && on(Check::HashAlone) {
            return Err(bad_filter("MQTT-4.7.1-1", "# is not alone in the last level"));
        }
        if level.contains('+') && level.len() > 1 && on(Check::PlusAlone) {
            return Err(bad_filter("MQTT-4.7.1-2", "+ is not alone in its level"));
        }
    }
    Ok(())
}

/// Length and U+0000; returns whether there is a wildcard. In one pass: what was found is looked for again only if anything was.
fn check_characters(topic: &str, invalid: ReasonCode) -> Result<bool, Violation> {
    if topic.is_empty() {
        return Err(Violation::new(invalid, "MQTT-4.7.3-1", "empty topic"));
    }
    if topic.len() > usize::from(u16::MAX) {
        return Err(Violation::new(invalid, "MQTT-4.7.3-3", "topic above 65,535 bytes"));
    }
    let [plus, hash] = WILDCARDS;
    if !has_any(topic.as_bytes(), [0, plus, hash]) {
        return Ok(false);
    }
    if has_any(topic.as_bytes(), [0]) {
        return Err(Violation::new(invalid, "MQTT-4.7.3-2", "topic contains U+0000"));
    }
    Ok(true)
}

fn bad_filter(statement: &'static str, what: &'static str) -> Violation {
    Violation::new(ReasonCode::TOPIC_FILTER_INVALID, statement, what)
}

const WILDCARDS: [u8; 2] = [b'+', b'#'];
const SHARE_PREFIX: &str = "$share/";
const EXCLUSIVE_PREFIX: &str = "$exclusive/";
const QUEUE_PREFIX: &str = "$queue/";
const QUEUE: &str = "$queue";
