//! Values with a unit, as a configuration file writes them: `"5s"`, `"64MiB"`, `"10%"`, `"never"`.
//!
//! A number without its unit is refused: `connect_timeout = 10` would be ten of what the writer had in mind.
//! Every value prints in the largest unit that shows it exactly, so that what `lontra config show` prints reads back
//! equal.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes, written with a unit of 1024: `"64MiB"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A share of a whole, written `"10%"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(pub u8);

/// A limit on MQTT's Session Expiry Interval: a time, or `"never"` for no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionExpiry(u32);

/// Permissions of a file, written in octal: `"0660"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMode(pub u32);

/// Why a text is no value of its kind; the message holds an example of a good one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    #[error("`{0}` is not a time: write a whole number with its unit (ms, s, m, h or d), like \"5s\"")]
    NotATime(String),
    #[error("`{0}` is not a size: write a whole number with its unit (B, KiB, MiB or GiB), like \"64MiB\"")]
    NotASize(String),
    #[error("`{0}` is not a percentage: write a whole number from 0 to 100 with its sign, like \"10%\"")]
    NotAPercentage(String),
    #[error("`{0}` is longer than a Session Expiry Interval can say (4294967294 s): write \"never\" for no limit")]
    ExpiryTooLong(String),
    #[error("`{0}` are no permissions: write three or four octal digits, like \"0660\"")]
    NotAMode(String),
}

impl ByteSize {
    pub const fn kib(count: u64) -> Self {
        Self(count << 10)
    }

    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    pub const fn gib(count: u64) -> Self {
        Self(count << 30)
    }

    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl SessionExpiry {
    /// MQTT's own sign for a session that does not expire: all bits set. [MQTT-3.1.2.11.2]
    pub const NEVER: Self = Self(u32::MAX);

    /// The Session Expiry Interval as a packet carries it; `u32::MAX` = never.
    pub const fn seconds(self) -> u32 {
        self.0
    }

    pub const fn from_seconds(seconds: u32) -> Self {
        Self(seconds)
    }
}

impl Default for FileMode {
    /// Its owner and its group.
    fn default() -> Self {
        FileMode(0o660)
    }
}

impl FromStr for FileMode {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let is_octal = matches!(text.len(), 3 | 4) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
        match u32::from_str_radix(text, 8) {
            Ok(mode) if is_octal && mode <= 0o777 => Ok(FileMode(mode)),
            _ => Err(UnitError::NotAMode(text.to_owned())),
        }
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        scaled(text, SIZES)
            .map(Self)
            .ok_or_else(|| UnitError::NotASize(text.to_owned()))
    }
}

impl FromStr for Percent {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        match scaled(text, &[("%", 1)]).map(u8::try_from) {
            Some(Ok(percent)) if percent <= 100 => Ok(Self(percent)),
            _ => Err(UnitError::NotAPercentage(text.to_owned())),
        }
    }
}

impl FromStr for SessionExpiry {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if text.trim() == NEVER {
            return Ok(Self::NEVER);
        }
        let seconds = duration::parse(text)?.as_secs();
        match u32::try_from(seconds) {
            Ok(seconds) if seconds < u32::MAX => Ok(Self(seconds)),
            _ => Err(UnitError::ExpiryTooLong(text.to_owned())),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_scaled(f, self.0, SIZES)
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl fmt::Display for SessionExpiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NEVER => f.write_str(NEVER),
            Self(seconds) => write_scaled(f, u64::from(seconds) * 1000, TIMES),
        }
    }
}

/// `std::time::Duration` in a configuration file, for `#[serde(with = "units::duration")]`; exact to the millisecond.
pub mod duration {
    use super::*;
    use std::time::Duration;

    pub fn parse(text: &str) -> Result<Duration, UnitError> {
        scaled(text, TIMES)
            .map(Duration::from_millis)
            .ok_or_else(|| UnitError::NotATime(text.to_owned()))
    }

    /// The text that [`parse`] reads back.
    pub fn show(duration: Duration) -> String {
        struct Shown(Duration);
        impl fmt::Display for Shown {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_scaled(f, self.0.as_millis().try_into().unwrap_or(u64::MAX), TIMES)
            }
        }
        Shown(duration).to_string()
    }

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&show(*duration))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = text_with_unit(deserializer, "a time with its unit, like \"5s\"")?;
        parse(&text).map_err(serde::de::Error::custom)
    }
}

/// As [`duration`], where there may be none.
pub mod optional_duration {
    use super::*;
    use std::time::Duration;

    pub fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::duration::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        super::duration::deserialize(deserializer).map(Some)
    }
}

macro_rules! serde_as_text {
    ($type:ty, $expected:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                text_with_unit(deserializer, $expected)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}

serde_as_text!(ByteSize, "a size with its unit, like \"64MiB\"");
serde_as_text!(Percent, "a percentage, like \"10%\"");
serde_as_text!(FileMode, "permissions in octal, like \"0660\"");
serde_as_text!(SessionExpiry, "a time with its unit, like \"7d\", or \"never\"");

fn text_with_unit<'de, D: Deserializer<'de>>(deserializer: D, expected: &'static str) -> Result<String, D::Error> {
    struct Text(&'static str);
    impl serde::de::Visitor<'_> for Text {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }
    }
    deserializer.deserialize_str(Text(expected))
}

/// `"5 s"` → 5 × the unit's factor; `None` for anything else, an overflow included.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = (text[..digits].parse::<u64>().ok()?, text[digits..].trim_start());
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*factor)
}

fn write_scaled(f: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)]) -> fmt::Result {
    let exact = |&&(_, factor): &&(&str, u64)| value != 0 && value.is_multiple_of(factor);
    let (name, factor) = units.iter().rev().find(exact).unwrap_or(&units[zero_unit(units)]);
    write!(f, "{}{name}", value / factor)
}

/// Nothing is shown as `0s` and `0B`.
fn zero_unit(units: &[(&str, u64)]) -> usize {
    units.iter().position(|&(name, _)| name == "s").unwrap_or(0)
}

const NEVER: &str = "never";

/// In milliseconds, smallest first.
const TIMES: &[(&str, u64)] = &[
    ("ms", 1),
    ("s", 1000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

const SIZES: &[(&str, u64)] = &[
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_read_and_print() {
        for (text, millis, shown) in [
            ("5s", 5_000, "5s"),
            ("100ms", 100, "100ms"),
            (" 1500 ms ", 1_500, "1500ms"),
            ("120s", 120_000, "2m"),
            ("24h", 86_400_000, "1d"),
            ("0ms", 0, "0s"),
        ] {
            let duration = duration::parse(text).unwrap();
            assert_eq!(duration, Duration::from_millis(millis), "{text}");
            assert_eq!(duration::show(duration), shown, "{text}");
        }
    }

    #[test]
    fn sizes_read_and_print() {
        for (text, bytes, shown) in [
            ("64MiB", 64 << 20, "64MiB"),
            ("1024 KiB", 1 << 20, "1MiB"),
            ("0B", 0, "0B"),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
            assert_eq!(ByteSize(bytes).to_string(), shown, "{text}");
        }
    }

    #[test]
    fn values_without_a_unit_or_out_of_range_are_refused() {
        for text in ["", "5", "s", "5 parsecs", "-1s", "1.5s", "18446744073709551615d"] {
            assert!(matches!(duration::parse(text), Err(UnitError::NotATime(_))), "{text}");
        }
        for text in ["64", "64MB", "64mib", "16777216TiB"] {
            assert!(
                matches!(text.parse::<ByteSize>(), Err(UnitError::NotASize(_))),
                "{text}"
            );
        }
        for text in ["10", "101%", "-1%", "%"] {
            assert!(
                matches!(text.parse::<Percent>(), Err(UnitError::NotAPercentage(_))),
                "{text}"
            );
        }
        assert!(matches!(
            "60000d".parse::<SessionExpiry>(),
            Err(UnitError::ExpiryTooLong(_))
        ));
    }

    #[test]
    fn permissions_are_octal() {
        for (text, mode) in [("0660", 0o660), ("600", 0o600), ("0777", 0o777)] {
            assert_eq!(text.parse(), Ok(FileMode(mode)));
            assert_eq!(FileMode(mode).to_string().parse(), Ok(FileMode(mode)));
        }
        for text in ["", "66", "0888", "1660", "00660", "rw-"] {
            assert!(
                matches!(text.parse::<FileMode>(), Err(UnitError::NotAMode(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn a_session_expiry_is_a_time_or_never() {
        assert_eq!("never".parse(), Ok(SessionExpiry::NEVER));
        assert_eq!("7d".parse(), Ok(SessionExpiry::from_seconds(604_800)));
        assert_eq!(SessionExpiry::from_seconds(604_800).to_string(), "7d");
        assert_eq!(SessionExpiry::NEVER.to_string(), "never");
    }
}
