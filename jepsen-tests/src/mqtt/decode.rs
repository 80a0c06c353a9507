//! Bytes of a server as packets, strictly: every deviation from the standard is an error that says which.

use super::{Ack, Packet, Property, Publish, TOPIC_ALIAS, USER_PROPERTY, Value, Version};

/// The first packet of `bytes` and its length; `None` while it is not whole.
///
/// # Errors
/// What of the standard the server's bytes break.
pub fn decode(version: Version, bytes: &[u8]) -> Result<Option<(Packet, usize)>, String> {
    let Some((header, length)) = frame_length(bytes)? else {
        return Ok(None);
    };
    let Some(frame) = bytes.get(header..header + length) else {
        return Ok(None);
    };
    let first = bytes[0];
    let mut body = Body { left: frame };
    let packet = body
        .packet(version, first)
        .map_err(|error| format!("{error} in {first:02x} {:02x?}", &frame[..frame.len().min(64)]))?;
    match body.left.len() {
        0 => Ok(Some((packet, header + length))),
        left => Err(format!("{left} bytes too many in a packet of type {}", first >> 4)),
    }
}

/// The lengths of the first packet's fixed header and of its body, which need not have come yet.
///
/// # Errors
/// The length has more than four bytes.
pub fn frame_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, String> {
    let mut length = 0;
    for (index, byte) in bytes.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((index + 2, length)));
        }
    }
    match bytes.len() {
        ..5 => Ok(None),
        _ => Err("a remaining length of more than four bytes".into()),
    }
}

/// The PUBLISH of first byte `first` and this body, from either side.
///
/// # Errors
/// What of the standard the bytes break.
pub fn publish_body(version: Version, first: u8, body: &[u8]) -> Result<Publish, String> {
    Body { left: body }.publish(version, first & 0x0f)
}

struct Body<'a> {
    left: &'a [u8],
}

impl<'a> Body<'a> {
    fn packet(&mut self, version: Version, first: u8) -> Result<Packet, String> {
        let reserved = if first >> 4 == 6 { 2 } else { 0 };
        if first >> 4 != 3 && first & 0x0f != reserved {
            return Err("reserved flags are not as they must be".into());
        }
        Ok(match first >> 4 {
            2 => self.connack(version)?,
            3 => Packet::Publish(self.publish(version, first & 0x0f)?),
            4 => self.ack(version, Ack::Puback)?,
            5 => self.ack(version, Ack::Pubrec)?,
            6 => self.ack(version, Ack::Pubrel)?,
            7 => self.ack(version, Ack::Pubcomp)?,
            9 => Packet::Suback {
                pid: self.pid()?,
                reasons: self.reasons(version, true)?,
            },
            11 => Packet::Unsuback {
                pid: self.pid()?,
                reasons: self.reasons(version, version.is_5())?,
            },
            13 => Packet::Pong,
            14 if version.is_5() => self.disconnect()?,
            kind => return Err(format!("packet type {kind} from a server")),
        })
    }

    fn connack(&mut self, version: Version) -> Result<Packet, String> {
        let flags = self.byte()?;
        let reason = self.byte()?;
        if flags > 1 || (flags == 1 && reason != 0) {
            return Err(format!("CONNACK flags {flags:#x} with reason {reason:#x}"));
        }
        Ok(Packet::Connack {
            session_present: flags == 1,
            reason,
            properties: self.properties(version)?,
        })
    }

    fn publish(&mut self, version: Version, flags: u8) -> Result<Publish, String> {
        let qos = flags >> 1 & 3;
        let dup = flags & 8 != 0;
        if qos == 3 || (qos == 0 && dup) {
            return Err("PUBLISH flags".into());
        }
        let topic = self.text()?;
        let pid = if qos > 0 { self.pid()? } else { 0 };
        let properties = self.properties(version)?;
        let has_alias = properties.iter().any(|property| property.0 == TOPIC_ALIAS);
        if (topic.is_empty() && !has_alias) || topic.contains(['+', '#', '\0']) {
            return Err(format!("topic name {topic:?}"));
        }
        Ok(Publish {
            topic,
            payload: std::mem::take(&mut self.left).to_vec(),
            qos,
            dup,
            retain: flags & 1 != 0,
            pid,
            properties,
        })
    }

    fn ack(&mut self, version: Version, kind: Ack) -> Result<Packet, String> {
        let pid = self.pid()?;
        let mut reason = 0;
        if version.is_5() && !self.left.is_empty() {
            reason = self.byte()?;
            if !self.left.is_empty() {
                self.properties(version)?;
            }
        }
        Ok(Packet::Ack { kind, pid, reason })
    }

    fn reasons(&mut self, version: Version, some: bool) -> Result<Vec<u8>, String> {
        self.properties(version)?;
        let reasons = std::mem::take(&mut self.left).to_vec();
        match reasons.is_empty() == some {
            true => Err(format!("{} reason codes", reasons.len())),
            false => Ok(reasons),
        }
    }

    fn disconnect(&mut self) -> Result<Packet, String> {
        let reason = if self.left.is_empty() { 0 } else { self.byte()? };
        if !self.left.is_empty() {
            self.properties(Version::V5)?;
        }
        Ok(Packet::Disconnect { reason })
    }

    fn properties(&mut self, version: Version) -> Result<Vec<Property>, String> {
        if !version.is_5() {
            return Ok(Vec::new());
        }
        let length = self.var()? as usize;
        let mut part = Body {
            left: self.take(length)?,
        };
        let mut found: Vec<Property> = Vec::new();
        while !part.left.is_empty() {
            let property = part.property()?;
            let repeats = [USER_PROPERTY, super::SUBSCRIPTION_IDENTIFIER].contains(&property.0);
            if !repeats && found.iter().any(|other| other.0 == property.0) {
                return Err(format!("property {:#04x} twice", property.0));
            }
            found.push(property);
        }
        Ok(found)
    }

    fn property(&mut self) -> Result<Property, String> {
        let id = self.byte()?;
        let value = match id {
            0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28 | 0x29 | 0x2a => Value::Byte(self.byte()?),
            0x13 | 0x21 | 0x22 | 0x23 => Value::Two(self.two()?),
            0x02 | 0x11 | 0x18 | 0x27 => Value::Four(self.four()?),
            0x0b => Value::Var(self.var()?),
            0x03 | 0x08 | 0x12 | 0x15 | 0x1a | 0x1c | 0x1f => Value::Text(self.text()?),
            0x09 | 0x16 => Value::Binary(self.binary()?.to_vec()),
            USER_PROPERTY => Value::Pair(self.text()?, self.text()?),
            _ => return Err(format!("unknown property {id:#04x}")),
        };
        Ok(Property(id, value))
    }

    fn pid(&mut self) -> Result<u16, String> {
        match self.two()? {
            0 => Err("packet identifier 0".into()),
            pid => Ok(pid),
        }
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn two(&mut self) -> Result<u16, String> {
        Ok(u16::from_be_bytes(self.take(2)?.try_into().expect("two bytes")))
    }

    fn four(&mut self) -> Result<u32, String> {
        Ok(u32::from_be_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    fn var(&mut self) -> Result<u32, String> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("variable byte integer of five bytes".into())
    }

    fn text(&mut self) -> Result<String, String> {
        String::from_utf8(self.binary()?.to_vec()).map_err(|error| error.to_string())
    }

    fn binary(&mut self) -> Result<&'a [u8], String> {
        let length = usize::from(self.two()?);
        self.take(length)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (taken, left) = self.left.split_at_checked(length).ok_or("the packet ends too early")?;
        self.left = left;
        Ok(taken)
    }
}
