//! How `lontra sub` prints a message: `-F` with the codes of mosquitto_sub, `-v`, or the payload alone.
//!
//!     text ──parse once──▶ pieces ──print──▶ bytes of one message
//!
//! Differences from mosquitto_sub: times are UTC, a code or letter that is not known is refused at the start, and a
//! width never cuts a payload.

use std::time::SystemTime;

use crate::clock::Utc;
use crate::protocol::codec::{Property, Publish};

/// A parsed `-F`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    Field {
        code: char,
        width: Width,
    },
    /// A letter of strftime.
    Time(char),
}

/// `%-05.3t`: flags, minimum and maximum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Width {
    zeros: bool,
    left: bool,
    minimum: usize,
    maximum: Option<usize>,
}

/// Why a message was not printed.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error("the payload of a message on {topic} is not JSON, so %J cannot print it; %j can")]
    NotJson { topic: String },
}

impl Format {
    /// # Errors
    /// What is not understood, for a person.
    pub fn parse(text: &str) -> Result<Format, String> {
        let mut pieces = Vec::new();
        let mut rest = text.chars().peekable();
        while let Some(character) = rest.next() {
            pieces.push(match character {
                '%' => field(&mut rest)?,
                '@' => time(rest.next())?,
                '\\' => Piece::Text(vec![escape(rest.next())?]),
                other => Piece::Text(other.to_string().into_bytes()),
            });
        }
        Ok(Format(pieces))
    }

    /// Appends one message.
    ///
    /// # Errors
    /// The format asks for what this message cannot give; nothing was appended.
    pub fn print(&self, message: &Publish, now: SystemTime, out: &mut Vec<u8>) -> Result<(), FormatError> {
        let start = out.len();
        let now = Utc::of(now);
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text),
                Piece::Time(letter) => out.extend(now.strftime(*letter).unwrap_or_default().bytes()),
                Piece::Field { code, width } => match value(*code, message, &now) {
                    Ok(value) => width.pad(&value, out),
                    Err(error) => {
                        out.truncate(start);
                        return Err(error);
                    }
                },
            }
        }
        Ok(())
    }
}

/// The default, and `-v`: as mosquitto_sub prints them, an empty payload included.
pub fn print_plain(message: &Publish, verbose: bool, end_of_line: bool, out: &mut Vec<u8>) {
    match (verbose, message.payload()) {
        (true, []) => out.extend_from_slice(format!("{} (null)", message.topic()).as_bytes()),
        (true, payload) => {
            out.extend_from_slice(format!("{} ", message.topic()).as_bytes());
            out.extend_from_slice(payload);
        }
        (false, []) => return,
        (false, payload) => out.extend_from_slice(payload),
    }
    if end_of_line {
        out.push(b'\n');
    }
}

fn field(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Piece, String> {
    let mut width = Width::default();
    while let Some(flag) = rest.next_if(|next| matches!(next, '0' | '-')) {
        match flag {
            '0' => width.zeros = true,
            _ => width.left = true,
        }
    }
    width.minimum = number(rest)?.unwrap_or(0);
    if rest.next_if_eq(&'.').is_some() {
        width.maximum = Some(number(rest)?.ok_or("a number is due after the dot of a width")?);
    }
    let Some(code) = rest.next() else {
        return Err("% at the end; %% prints one".to_owned());
    };
    match code {
        '%' => Ok(Piece::Text(vec![b'%'])),
        code if CODES.contains(code) => Ok(Piece::Field { code, width }),
        code => Err(format!("%{code} is not known; the codes are %{}", spelled(CODES))),
    }
}

fn number(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Option<usize>, String> {
    let mut digits = String::new();
    while let Some(digit) = rest.next_if(char::is_ascii_digit) {
        digits.push(digit);
    }
    match digits.parse() {
        _ if digits.is_empty() => Ok(None),
        Ok(width) if width <= WIDTH_MAX => Ok(Some(width)),
        _ => Err(format!("a width is at most {WIDTH_MAX}")),
    }
}

fn time(letter: Option<char>) -> Result<Piece, String> {
    match letter {
        Some('@') => Ok(Piece::Text(vec![b'@'])),
        Some(letter) if Utc::of(SystemTime::UNIX_EPOCH).strftime(letter).is_some() => Ok(Piece::Time(letter)),
        Some(letter) => Err(format!("@{letter} is not known")),
        None => Err("@ at the end; @@ prints one".to_owned()),
    }
}

fn escape(letter: Option<char>) -> Result<u8, String> {
    Ok(match letter {
        Some('\\') => b'\\',
        Some('0') => 0,
        Some('a') => 7,
        Some('e') => 27,
        Some('n') => b'\n',
        Some('r') => b'\r',
        Some('t') => b'\t',
        Some('v') => 11,
        Some(letter) => return Err(format!("\\{letter} is not known")),
        None => return Err("\\ at the end; \\\\ prints one".to_owned()),
    })
}

fn value(code: char, message: &Publish, now: &Utc) -> Result<Vec<u8>, FormatError> {
    let property = |pick: fn(Property<'_>) -> Option<String>| {
        let found: Vec<String> = message.properties().filter_map(pick).collect();
        found.join(" ").into_bytes()
    };
    Ok(match code {
        't' => message.topic().as_bytes().to_vec(),
        'p' => message.payload().to_vec(),
        'l' => message.payload().len().to_string().into_bytes(),
        'q' => (message.qos() as u8).to_string().into_bytes(),
        'r' => u8::from(message.retain()).to_string().into_bytes(),
        'm' => packet_id(message).to_string().into_bytes(),
        'x' => message
            .payload()
            .iter()
            .flat_map(|byte| format!("{byte:02x}").into_bytes())
            .collect(),
        'X' => message
            .payload()
            .iter()
            .flat_map(|byte| format!("{byte:02X}").into_bytes())
            .collect(),
        'D' => message.correlation_data().unwrap_or_default().to_vec(),
        'A' => property(|property| match property {
            Property::TopicAlias(alias) => Some(alias.to_string()),
            _ => None,
        }),
        'C' => property(|property| match property {
            Property::ContentType(content_type) => Some(content_type.to_owned()),
            _ => None,
        }),
        'E' => property(|property| match property {
            Property::MessageExpiryInterval(seconds) => Some(seconds.to_string()),
            _ => None,
        }),
        'F' => property(|property| match property {
            Property::PayloadFormatIndicator(indicator) => Some(indicator.to_string()),
            _ => None,
        }),
        'P' => property(|property| match property {
            Property::UserProperty(name, value) => Some(format!("{name}:{value}")),
            _ => None,
        }),
        'R' => property(|property| match property {
            Property::ResponseTopic(topic) => Some(topic.to_owned()),
            _ => None,
        }),
        'S' => property(|property| match property {
            Property::SubscriptionIdentifier(identifier) => Some(identifier.to_string()),
            _ => None,
        }),
        'I' => now.iso8601().into_bytes(),
        'U' => format!("{}.{:09}", now.seconds, now.nanoseconds).into_bytes(),
        'j' => json(message, now, quoted(&String::from_utf8_lossy(message.payload()))).into_bytes(),
        'J' => json(message, now, payload_json(message)?).into_bytes(),
        _ => unreachable!("parse knows the codes"),
    })
}

/// 0 at QoS 0.
fn packet_id(message: &Publish) -> u16 {
    message.packet_id().map_or(0, Into::into)
}

/// The members and their order are mosquitto_sub's.
fn json(message: &Publish, now: &Utc, payload: String) -> String {
    let mut text = format!(
        r#"{{"tst":"{}","topic":{},"qos":{},"retain":{},"payloadlen":{}"#,
        now.iso8601_micros(),
        quoted(message.topic()),
        message.qos() as u8,
        u8::from(message.retain()),
        message.payload().len(),
    );
    if packet_id(message) > 0 {
        text += &format!(r#","mid":{}"#, packet_id(message));
    }
    if let Some(properties) = json_properties(message) {
        text += &format!(r#","properties":{{{properties}}}"#);
    }
    let payload = if message.payload().is_empty() { "null" } else { &payload };
    text + &format!(r#","payload":{payload}}}"#)
}

fn json_properties(message: &Publish) -> Option<String> {
    let mut members = Vec::new();
    let user: Vec<String> = message
        .user_properties()
        .map(|(name, value)| format!("{}:{}", quoted(name), quoted(value)))
        .collect();
    if !user.is_empty() {
        members.push(format!(r#""user-properties":{{{}}}"#, user.join(",")));
    }
    for property in message.properties() {
        members.push(match property {
            Property::ContentType(value) => format!(r#""content-type":{}"#, quoted(value)),
            Property::ResponseTopic(value) => format!(r#""response-topic":{}"#, quoted(value)),
            Property::CorrelationData(value) => {
                format!(r#""correlation-data":{}"#, quoted(&String::from_utf8_lossy(value)))
            }
            Property::PayloadFormatIndicator(value) => format!(r#""payload-format-indicator":{value}"#),
            Property::MessageExpiryInterval(value) => format!(r#""message-expiry-interval":{value}"#),
            Property::TopicAlias(value) => format!(r#""topic-alias":{value}"#),
            Property::SubscriptionIdentifier(value) => format!(r#""subscription-identifier":{value}"#),
            _ => continue,
        });
    }
    (!members.is_empty()).then(|| members.join(","))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The payload as it is, numbers and order unaltered, without the space between its parts.
fn payload_json(message: &Publish) -> Result<String, FormatError> {
    let payload = message.payload();
    if payload.is_empty() {
        return Ok("null".to_owned());
    }
    let not_json = || FormatError::NotJson {
        topic: message.topic().to_owned(),
    };
    let text = std::str::from_utf8(payload).map_err(|_| not_json())?;
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|_| not_json())?;
    let (mut in_string, mut escaped) = (false, false);
    let kept = text.chars().filter(|&character| {
        let keep = in_string || !character.is_ascii_whitespace();
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = in_string,
            '"' => in_string = !in_string,
            _ => {}
        }
        keep
    });
    Ok(kept.collect())
}

fn spelled(codes: &str) -> String {
    let codes: Vec<String> = codes.chars().map(String::from).collect();
    codes.join(" %")
}

impl Width {
    /// Counts characters, not bytes, where the value is text.
    fn pad(self, value: &[u8], out: &mut Vec<u8>) {
        let text = std::str::from_utf8(value);
        let mut value = value;
        if let (Ok(text), Some(maximum)) = (text, self.maximum)
            && let Some((end, _)) = text.char_indices().nth(maximum)
        {
            value = &value[..end];
        }
        let length = std::str::from_utf8(value).map_or(value.len(), |text| text.chars().count());
        let missing = self.minimum.saturating_sub(length);
        let filler = |byte: u8| std::iter::repeat_n(byte, missing);
        match (self.left, self.zeros) {
            (true, _) => {
                out.extend_from_slice(value);
                out.extend(filler(b' '));
            }
            (false, zeros) => {
                out.extend(filler(if zeros { b'0' } else { b' ' }));
                out.extend_from_slice(value);
            }
        }
    }
}

const CODES: &str = "tpqrmlxXjJIUACDEFPRS";
/// Far more than a screen, far less than memory.
const WIDTH_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::codec::{
        Direction, Limits, Packet, PropertiesOut, PublishFields, PublishFrame, QoS, Version, Will, WillProperties,
        decode,
    };
    use bytes::{Bytes, BytesMut};
    use std::num::NonZeroU16;
    use std::time::{Duration, UNIX_EPOCH};

    fn message(qos: QoS, payload: &[u8], properties: WillProperties) -> Publish {
        let will = Will {
            topic: "a/b".to_owned(),
            payload: Bytes::new(),
            qos,
            retain: false,
            properties,
        };
        let frame = PublishFrame::encode(&PublishFields {
            version: Version::V5,
            qos,
            retain: false,
            topic: "a/b",
            properties: PropertiesOut {
                forwarded: &will.publish_properties().expect("well formed"),
                ..PropertiesOut::default()
            },
            payload,
        })
        .expect("well formed");
        let mut bytes = BytesMut::new();
        frame.append(NonZeroU16::new(1), false, &mut bytes);
        let sender = Direction::ServerToClient;
        match decode(bytes.freeze(), Some(Version::V5), sender, &Limits::default()) {
            Ok(Packet::Publish(publish)) => publish,
            other => panic!("{other:?}"),
        }
    }

    fn full() -> Publish {
        let properties = WillProperties {
            payload_format_indicator: Some(1),
            message_expiry_interval: Some(50),
            content_type: Some("text/plain".to_owned()),
            response_topic: Some("r".to_owned()),
            correlation_data: Some(Bytes::from_static(b"abc")),
            user_properties: vec![("k".to_owned(), "v".to_owned()), ("k".to_owned(), "w".to_owned())],
            ..WillProperties::default()
        };
        message(QoS::ExactlyOnce, br#"{"a": [1, 2.50, " \" "]}"#, properties)
    }

    fn printed(format: &str, message: &Publish) -> String {
        let now = UNIX_EPOCH + Duration::new(1_470_818_943, 786_368_637);
        let mut out = Vec::new();
        let format = Format::parse(format).unwrap_or_else(|problem| panic!("{format}: {problem}"));
        format.print(message, now, &mut out).expect("printable");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn codes_print_what_mosquitto_sub_prints() {
        for (format, expected) in [
            ("%t|%q|%r|%m|%l", "a/b|2|0|1|24"),
            ("%10t|%-10t|%4.2t|%05l|%05m", "       a/b|a/b       |  a/|00024|00001"),
            ("%P|%C|%D|%E|%F|%A|%R|%S", "k:v k:w|text/plain|abc|50|1||r|"),
            ("%p", r#"{"a": [1, 2.50, " \" "]}"#),
            (
                "@Y-@m-@d %I %U @N",
                "2016-08-10 2016-08-10T08:49:03+0000 1470818943.786368637 786368637",
            ),
            (r"%%|@@|\\|\t|\e", "%|@|\\|\t|\x1b"),
            ("é%t", "éa/b"),
        ] {
            assert_eq!(printed(format, &full()), expected, "{format}");
        }
        let plain = message(QoS::AtMostOnce, &[0x0A, 0xFF], WillProperties::default());
        assert_eq!(printed("%x %X %m [%C]", &plain), "0aff 0AFF 0 []");
    }

    #[test]
    fn json_has_the_members_of_mosquitto_sub() {
        let head = r#"{"tst":"2016-08-10T08:49:03.786368+0000","topic":"a/b","qos":2,"retain":0,"payloadlen":24,"mid":1,"properties":{"user-properties":{"k":"v","k":"w"},"payload-format-indicator":1,"message-expiry-interval":50,"content-type":"text/plain","response-topic":"r","correlation-data":"abc"},"payload":"#;
        let escaped = r#""{\"a\": [1, 2.50, \" \\\" \"]}""#;
        assert_eq!(printed("%j", &full()), format!("{head}{escaped}}}"));
        let inside = r#"{"a":[1,2.50," \" "]}"#;
        assert_eq!(printed("%J", &full()), format!("{head}{inside}}}"));
        let empty = message(QoS::AtMostOnce, b"", WillProperties::default());
        assert!(printed("%j", &empty).ends_with(r#""payloadlen":0,"payload":null}"#));
        assert!(printed("%J", &empty).ends_with(r#""payloadlen":0,"payload":null}"#));
        let text = message(QoS::AtMostOnce, b"no json", WillProperties::default());
        let mut out = b"before".to_vec();
        let refused = Format::parse("%t %J")
            .expect("well formed")
            .print(&text, UNIX_EPOCH, &mut out);
        assert!(matches!(refused, Err(FormatError::NotJson { topic }) if topic == "a/b"));
        assert_eq!(out, b"before");
    }

    #[test]
    fn what_is_not_understood_is_refused_at_the_start() {
        for (format, told) in [
            ("%k", "%k is not known"),
            ("%", "% at the end"),
            ("%5", "% at the end"),
            ("%5.t", "after the dot"),
            ("%99999t", "at most 10000"),
            ("@", "@ at the end"),
            ("@Q", "@Q is not known"),
            (r"\", "\\ at the end"),
            (r"\q", "\\q is not known"),
        ] {
            let problem = Format::parse(format).expect_err(format);
            assert!(problem.contains(told), "{format}: {problem}");
        }
    }

    #[test]
    fn plain_and_verbose_lines_are_those_of_mosquitto_sub() {
        let check = |payload: &[u8], verbose, end_of_line, expected: &str| {
            let mut out = Vec::new();
            print_plain(
                &message(QoS::AtMostOnce, payload, WillProperties::default()),
                verbose,
                end_of_line,
                &mut out,
            );
            assert_eq!(String::from_utf8(out).expect("text"), expected);
        };
        check(b"x", false, true, "x\n");
        check(b"x", false, false, "x");
        check(b"x", true, true, "a/b x\n");
        check(b"", true, true, "a/b (null)\n");
        check(b"", false, true, "");
    }
}
