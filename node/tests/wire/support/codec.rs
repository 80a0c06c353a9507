//! MQTT 3.1.1 and 5.0 as a client needs it: what clients send, encoded; what servers send, decoded strictly.
//!
//! Written from the standard and independent of the broker's codec. Frames are plain bytes, so that a test can also
//! send wrong ones.

use bytes::{Buf, BytesMut};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V311,
    V5,
}

pub const VERSIONS: [Version; 2] = [Version::V311, Version::V5];

/// A property: its identifier and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property(pub u8, pub Value);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Byte(u8),
    Two(u16),
    Four(u32),
    Var(u32),
    Text(String),
    Binary(Vec<u8>),
    Pair(String, String),
}

/// What CONNECT says.
#[derive(Clone, Debug)]
pub struct Connect {
    pub version: Version,
    pub client_id: String,
    /// Clean Session (3.1.1), Clean Start (5.0).
    pub clean: bool,
    pub keep_alive: u16,
    pub properties: Vec<Property>,
    pub will: Option<Will>,
    pub user_name: Option<String>,
    pub password: Option<Vec<u8>>,
}

/// The Will Message of a CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Will {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub retain: bool,
    /// [`WILL_DELAY_INTERVAL`] is one of them. None leave with 3.1.1.
    pub properties: Vec<Property>,
}

impl Will {
    pub fn new(topic: &str, payload: impl Into<Vec<u8>>, qos: u8) -> Will {
        Will {
            topic: topic.into(),
            payload: payload.into(),
            qos,
            retain: false,
            properties: Vec::new(),
        }
    }

    pub fn delay(mut self, seconds: u32) -> Will {
        self.properties
            .push(Property(WILL_DELAY_INTERVAL, Value::Four(seconds)));
        self
    }
}

impl Connect {
    /// An ephemeral session.
    pub fn clean(version: Version, client_id: &str) -> Connect {
        Connect {
            version,
            client_id: client_id.into(),
            clean: true,
            keep_alive: 60,
            properties: Vec::new(),
            will: None,
            user_name: None,
            password: None,
        }
    }

    /// A session that outlives its connections by an hour (5.0) or for good (3.1.1).
    pub fn persistent(version: Version, client_id: &str) -> Connect {
        let connect = Connect {
            clean: false,
            ..Connect::clean(version, client_id)
        };
        match version {
            Version::V311 => connect,
            Version::V5 => connect.property(SESSION_EXPIRY_INTERVAL, Value::Four(3600)),
        }
    }

    pub fn keep_alive(self, seconds: u16) -> Connect {
        Connect {
            keep_alive: seconds,
            ..self
        }
    }

    /// Adds or replaces a property.
    pub fn property(mut self, id: u8, value: Value) -> Connect {
        self.properties.retain(|property| property.0 != id);
        self.properties.push(Property(id, value));
        self
    }

    pub fn will(self, will: Will) -> Connect {
        Connect {
            will: Some(will),
            ..self
        }
    }

    pub fn user(self, name: &str, password: &str) -> Connect {
        Connect {
            user_name: Some(name.into()),
            password: Some(password.into()),
            ..self
        }
    }

    pub fn no_will(self) -> Connect {
        Connect { will: None, ..self }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        put_text(&mut body, "MQTT");
        body.push(if self.version == Version::V5 { 5 } else { 4 });
        let will = self.will.as_ref();
        let will_flags = will.map_or(0, |will| 0x04 | will.qos << 3 | u8::from(will.retain) << 5);
        let user_flags = u8::from(self.user_name.is_some()) << 7 | u8::from(self.password.is_some()) << 6;
        body.push(u8::from(self.clean) << 1 | will_flags | user_flags);
        body.extend(self.keep_alive.to_be_bytes());
        put_properties(&mut body, self.version, &self.properties);
        put_text(&mut body, &self.client_id);
        if let Some(will) = will {
            put_properties(&mut body, self.version, &will.properties);
            put_text(&mut body, &will.topic);
            put_binary(&mut body, &will.payload);
        }
        if let Some(name) = &self.user_name {
            put_text(&mut body, name);
        }
        if let Some(password) = &self.password {
            put_binary(&mut body, password);
        }
        frame(0x10, &body)
    }
}

/// A PUBLISH in either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub dup: bool,
    pub retain: bool,
    /// 0 at QoS 0.
    pub pid: u16,
    pub properties: Vec<Property>,
}

impl Publish {
    pub fn new(topic: &str, payload: impl Into<Vec<u8>>, qos: u8) -> Publish {
        Publish {
            topic: topic.into(),
            payload: payload.into(),
            qos,
            dup: false,
            retain: false,
            pid: 0,
            properties: Vec::new(),
        }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }

    pub fn encode(&self, version: Version) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.payload.len() + self.topic.len() + 16);
        put_text(&mut body, &self.topic);
        if self.qos > 0 {
            body.extend(self.pid.to_be_bytes());
        }
        put_properties(&mut body, version, &self.properties);
        body.extend(&self.payload);
        frame(
            0x30 | u8::from(self.dup) << 3 | self.qos << 1 | u8::from(self.retain),
            &body,
        )
    }
}

pub fn subscribe(version: Version, pid: u16, filters: &[(&str, u8)]) -> Vec<u8> {
    subscribe_with(version, pid, &[], filters)
}

/// SUBSCRIBE with properties; each filter with its options byte.
pub fn subscribe_with(version: Version, pid: u16, properties: &[Property], filters: &[(&str, u8)]) -> Vec<u8> {
    let mut body = pid.to_be_bytes().to_vec();
    put_properties(&mut body, version, properties);
    for (filter, options) in filters {
        put_text(&mut body, filter);
        body.push(*options);
    }
    frame(0x82, &body)
}

pub fn unsubscribe(version: Version, pid: u16, filters: &[&str]) -> Vec<u8> {
    let mut body = pid.to_be_bytes().to_vec();
    put_properties(&mut body, version, &[]);
    for filter in filters {
        put_text(&mut body, filter);
    }
    frame(0xa2, &body)
}

pub fn puback(pid: u16) -> Vec<u8> {
    frame(0x40, &pid.to_be_bytes())
}

/// An acknowledgement of QoS 2; the reason code and its properties are left out.
pub fn pubrec(pid: u16) -> Vec<u8> {
    frame(0x50, &pid.to_be_bytes())
}

/// PUBREC of 5.0 with a reason code: from 0x80 on the exchange is over.
pub fn pubrec_with_code(pid: u16, code: u8) -> Vec<u8> {
    let [high, low] = pid.to_be_bytes();
    frame(0x50, &[high, low, code])
}

pub fn pubrel(pid: u16) -> Vec<u8> {
    frame(0x62, &pid.to_be_bytes())
}

pub fn pubcomp(pid: u16) -> Vec<u8> {
    frame(0x70, &pid.to_be_bytes())
}

pub fn pingreq() -> Vec<u8> {
    frame(0xc0, &[])
}

/// A plain DISCONNECT: of 3.1.1, and of 5.0 with reason 0x00 left out.
pub fn disconnect() -> Vec<u8> {
    frame(0xe0, &[])
}

/// DISCONNECT of 5.0 with a reason code.
pub fn disconnect_with_code(code: u8) -> Vec<u8> {
    frame(0xe0, &[code])
}

/// AUTH of 5.0.
pub fn auth(code: u8, properties: &[Property]) -> Vec<u8> {
    let mut body = vec![code];
    put_properties(&mut body, Version::V5, properties);
    frame(0xf0, &body)
}

/// DISCONNECT of 5.0 that changes the Session Expiry Interval.
pub fn disconnect_with_expiry(seconds: u32) -> Vec<u8> {
    let mut body = vec![0x00];
    put_properties(
        &mut body,
        Version::V5,
        &[Property(SESSION_EXPIRY_INTERVAL, Value::Four(seconds))],
    );
    frame(0xe0, &body)
}

/// What a server sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    Connack {
        session_present: bool,
        code: u8,
        properties: Vec<Property>,
    },
    Publish(Publish),
    Puback {
        pid: u16,
        code: u8,
    },
    Pubrec {
        pid: u16,
        code: u8,
    },
    Pubrel {
        pid: u16,
        code: u8,
    },
    Pubcomp {
        pid: u16,
        code: u8,
    },
    Suback {
        pid: u16,
        codes: Vec<u8>,
    },
    Unsuback {
        pid: u16,
        codes: Vec<u8>,
    },
    Pingresp,
    Disconnect {
        code: u8,
        properties: Vec<Property>,
    },
    Auth {
        code: u8,
        properties: Vec<Property>,
    },
}

impl Packet {
    /// The value of property `id` of a CONNACK, DISCONNECT or AUTH.
    pub fn property(&self, id: u8) -> Option<&Value> {
        let (Packet::Connack { properties, .. }
        | Packet::Disconnect { properties, .. }
        | Packet::Auth { properties, .. }) = self
        else {
            return None;
        };
        properties
            .iter()
            .find(|property| property.0 == id)
            .map(|property| &property.1)
    }
}

/// Takes one packet off the front of `buffer`; `None` while it is not whole.
///
/// # Errors
/// What of the standard the server's bytes break.
pub fn decode(version: Version, buffer: &mut BytesMut) -> Result<Option<Packet>, String> {
    let Some((first, frame)) = take_frame(buffer)? else {
        return Ok(None);
    };
    let mut body = Body { left: &frame };
    let packet = body
        .packet(version, first)
        .map_err(|error| format!("{error} in {first:02x} {frame:02x?}"))?;
    match body.left.is_empty() {
        true => Ok(Some(packet)),
        false => Err(format!(
            "{} bytes too many in {first:02x} {frame:02x?}",
            body.left.len()
        )),
    }
}

/// Takes the first byte and the body of one packet off the front of `buffer`; `None` while it is not whole.
///
/// # Errors
/// The length has more than four bytes.
pub fn take_frame(buffer: &mut BytesMut) -> Result<Option<(u8, BytesMut)>, String> {
    let Some((header, length)) = remaining_length(buffer)? else {
        return Ok(None);
    };
    if buffer.len() < header + length {
        return Ok(None);
    }
    let first = buffer[0];
    buffer.advance(header);
    Ok(Some((first, buffer.split_to(length))))
}

/// The properties of a 5.0 acknowledgement (PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK), which [`decode`] drops.
///
/// # Errors
/// What of the standard the bytes break.
pub fn properties_of(first: u8, body: &[u8]) -> Result<Vec<Property>, String> {
    let start = match first >> 4 {
        4..=7 => 3,
        9 | 11 => 2,
        kind => return Err(format!("packet type {kind} is no acknowledgement")),
    };
    match body.get(start..) {
        None | Some([]) => Ok(Vec::new()),
        Some(left) => Body { left }.properties(Version::V5),
    }
}

fn remaining_length(buffer: &[u8]) -> Result<Option<(usize, usize)>, String> {
    let mut length = 0;
    for (index, byte) in buffer.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((index + 2, length)));
        }
    }
    if buffer.len() >= 5 {
        Err("a remaining length of more than four bytes".into())
    } else {
        Ok(None)
    }
}

struct Body<'a> {
    left: &'a [u8],
}

impl Body<'_> {
    fn packet(&mut self, version: Version, first: u8) -> Result<Packet, String> {
        let reserved = if first >> 4 == 6 { 2 } else { 0 };
        if first >> 4 != 3 && first & 0x0f != reserved {
            return Err("reserved flags are not as they must be".into());
        }
        Ok(match first >> 4 {
            2 => self.connack(version)?,
            3 => Packet::Publish(self.publish(version, first & 0x0f)?),
            4 => {
                let (pid, code) = self.acknowledgement(version)?;
                Packet::Puback { pid, code }
            }
            5 => {
                let (pid, code) = self.acknowledgement(version)?;
                Packet::Pubrec { pid, code }
            }
            6 => {
                let (pid, code) = self.acknowledgement(version)?;
                Packet::Pubrel { pid, code }
            }
            7 => {
                let (pid, code) = self.acknowledgement(version)?;
                Packet::Pubcomp { pid, code }
            }
            9 => Packet::Suback {
                pid: self.two()?,
                codes: self.codes(version, true)?,
            },
            11 => Packet::Unsuback {
                pid: self.two()?,
                codes: self.codes(version, version == Version::V5)?,
            },
            13 => Packet::Pingresp,
            14 if version == Version::V5 => {
                let (code, properties) = self.code_and_properties()?;
                Packet::Disconnect { code, properties }
            }
            15 if version == Version::V5 => {
                let (code, properties) = self.code_and_properties()?;
                Packet::Auth { code, properties }
            }
            kind => return Err(format!("packet type {kind} from a server")),
        })
    }

    fn connack(&mut self, version: Version) -> Result<Packet, String> {
        let flags = self.byte()?;
        let code = self.byte()?;
        if flags > 1 || (flags == 1 && code != 0) {
            return Err(format!("CONNACK flags {flags:#x} with code {code:#x}"));
        }
        // To a protocol level that it does not know a server answers as 3.1.1 does: code 0x01, no properties.
        let version = if code == 0x01 { Version::V311 } else { version };
        Ok(Packet::Connack {
            session_present: flags == 1,
            code,
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
        let pid = if qos > 0 { self.two()? } else { 0 };
        if qos > 0 && pid == 0 {
            return Err("packet identifier 0".into());
        }
        let properties = self.properties(version)?;
        let has_alias = properties.iter().any(|property| property.0 == TOPIC_ALIAS);
        if (topic.is_empty() && !has_alias) || topic.contains(['+', '#', '\0']) {
            return Err(format!("topic name {topic:?}"));
        }
        let payload = std::mem::take(&mut self.left).to_vec();
        Ok(Publish {
            topic,
            payload,
            qos,
            dup,
            retain: flags & 1 != 0,
            pid,
            properties,
        })
    }

    fn acknowledgement(&mut self, version: Version) -> Result<(u16, u8), String> {
        let pid = self.two()?;
        let code = if version == Version::V5 && !self.left.is_empty() {
            self.byte()?
        } else {
            0
        };
        if version == Version::V5 && !self.left.is_empty() {
            self.properties(version)?;
        }
        Ok((pid, code))
    }

    fn codes(&mut self, version: Version, some: bool) -> Result<Vec<u8>, String> {
        self.properties(version)?;
        let codes = std::mem::take(&mut self.left).to_vec();
        if codes.is_empty() == some {
            Err(format!("{} reason codes", codes.len()))
        } else {
            Ok(codes)
        }
    }

    fn code_and_properties(&mut self) -> Result<(u8, Vec<Property>), String> {
        let code = if self.left.is_empty() { 0 } else { self.byte()? };
        let properties = if self.left.is_empty() {
            Vec::new()
        } else {
            self.properties(Version::V5)?
        };
        Ok((code, properties))
    }

    fn properties(&mut self, version: Version) -> Result<Vec<Property>, String> {
        if version != Version::V5 {
            return Ok(Vec::new());
        }
        let length = self.var()? as usize;
        let mut part = Body {
            left: self.take(length)?,
        };
        let mut found: Vec<Property> = Vec::new();
        while !part.left.is_empty() {
            let property = part.property()?;
            if property.0 != USER_PROPERTY && property.0 != 0x0b && found.iter().any(|other| other.0 == property.0) {
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
}

impl<'a> Body<'a> {
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

/// A frame of any first byte and body.
pub fn frame(first: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    put_var(&mut frame, body.len());
    frame.extend(body);
    frame
}

fn put_var(out: &mut Vec<u8>, mut value: usize) {
    loop {
        let more = u8::from(value > 0x7f) << 7;
        out.push((value & 0x7f) as u8 | more);
        value >>= 7;
        if value == 0 {
            return;
        }
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend(u16::try_from(text.len()).expect("a short text").to_be_bytes());
    out.extend(text.as_bytes());
}

fn put_binary(out: &mut Vec<u8>, binary: &[u8]) {
    out.extend(u16::try_from(binary.len()).expect("short bytes").to_be_bytes());
    out.extend(binary);
}

fn put_properties(out: &mut Vec<u8>, version: Version, properties: &[Property]) {
    if version != Version::V5 {
        return;
    }
    let mut bytes = Vec::new();
    for Property(id, value) in properties {
        bytes.push(*id);
        match value {
            Value::Byte(byte) => bytes.push(*byte),
            Value::Two(value) => bytes.extend(value.to_be_bytes()),
            Value::Four(value) => bytes.extend(value.to_be_bytes()),
            Value::Var(value) => put_var(&mut bytes, *value as usize),
            Value::Text(text) => put_text(&mut bytes, text),
            Value::Binary(binary) => put_binary(&mut bytes, binary),
            Value::Pair(key, value) => {
                put_text(&mut bytes, key);
                put_text(&mut bytes, value);
            }
        }
    }
    put_var(out, bytes.len());
    out.extend(bytes);
}

pub const MESSAGE_EXPIRY_INTERVAL: u8 = 0x02;
pub const SUBSCRIPTION_IDENTIFIER: u8 = 0x0b;
pub const SESSION_EXPIRY_INTERVAL: u8 = 0x11;
pub const ASSIGNED_CLIENT_ID: u8 = 0x12;
pub const SERVER_KEEP_ALIVE: u8 = 0x13;
pub const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
pub const WILL_DELAY_INTERVAL: u8 = 0x18;
pub const REASON_STRING: u8 = 0x1f;
pub const RECEIVE_MAXIMUM: u8 = 0x21;
pub const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
pub const TOPIC_ALIAS: u8 = 0x23;
pub const MAXIMUM_QOS: u8 = 0x24;
pub const RETAIN_AVAILABLE: u8 = 0x25;
pub const MAXIMUM_PACKET_SIZE: u8 = 0x27;
pub const USER_PROPERTY: u8 = 0x26;
