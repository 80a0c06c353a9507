//! `$delayed/{seconds}/{topic}`: a PUBLISH to `{topic}` that is published later.
//!
//! ```text
//!   PUBLISH `$delayed/60/a/b`  ─▶ delay 60 s, topic `a/b` ─▶ rewrite ─▶ mountpoint ─▶ policy ─▶ access ─▶ the shard of `a/b`
//!           `$delayed/x/a/b`   ─▶ refused: Topic Name invalid
//! ```
//!
//! Sans-io. What stands behind the delay is what every rule is about, so that a delay leads past none. There is no topic
//! below `$delayed/`: nothing is ever published there.

use super::codec::ReasonCode;

/// Whether a Topic Name is one that delays.
pub fn is_delayed(topic: &str) -> bool {
    topic.starts_with(PREFIX)
}

/// Seconds and Topic Name of a delayed publish; `None` for any other.
///
/// # Errors
/// There is no such delay, or no topic behind it.
pub fn split(topic: &str) -> Option<Result<(u32, &str), ReasonCode>> {
    let (seconds, topic) = match topic.strip_prefix(PREFIX)?.split_once('/') {
        Some(parts) => parts,
        None => return Some(Err(ReasonCode::TOPIC_NAME_INVALID)),
    };
    // `parse` would take a sign.
    let is_number = !seconds.is_empty() && seconds.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = seconds
        .parse()
        .ok()
        .filter(|seconds| is_number && *seconds <= SECONDS_MAX);
    Some(match seconds {
        Some(seconds) if !topic.is_empty() && !is_delayed(topic) => Ok((seconds, topic)),
        _ => Err(ReasonCode::TOPIC_NAME_INVALID),
    })
}

const PREFIX: &str = "$delayed/";

/// 49 days, the most that EMQX takes: 2³² milliseconds.
const SECONDS_MAX: u32 = 4_294_967;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_a_number_of_seconds_and_a_topic() {
        for (topic, expected) in [
            ("$delayed/5/a", (5, "a")),
            ("$delayed/0/a/b", (0, "a/b")),
            ("$delayed/0060//", (60, "/")),
            ("$delayed/4294967/$other", (SECONDS_MAX, "$other")),
        ] {
            assert_eq!(split(topic), Some(Ok(expected)), "{topic}");
        }
        for topic in [
            "$delayed/",
            "$delayed/5",
            "$delayed/5/",
            "$delayed//a",
            "$delayed/x/a",
            "$delayed/-5/a",
            "$delayed/+5/a",
            "$delayed/5.0/a",
            "$delayed/5s/a",
            "$delayed/4294968/a",
            "$delayed/99999999999999999999/a",
            "$delayed/٥/a",
            "$delayed/5/$delayed/5/a",
        ] {
            assert_eq!(split(topic), Some(Err(ReasonCode::TOPIC_NAME_INVALID)), "{topic}");
        }
        for topic in [
            "a",
            "$delayed",
            "$delayedx/5/a",
            "a/$delayed/5/a",
            "/$delayed/5/a",
            "$DELAYED/5/a",
        ] {
            assert_eq!(split(topic), None, "{topic}");
        }
    }
}
