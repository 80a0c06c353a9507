//! What is kept of a PUBLISH, and what each recipient was granted when it was matched.

use bytes::Bytes;

use crate::encoding::{DecodeError, Reader, Writer};
use crate::ids::{SessionEpoch, SessionId};

/// Milliseconds of log time: what a group's leader put into the entry. Never read from a clock in a state machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogTime(pub u64);

impl LogTime {
    pub fn plus_seconds(self, seconds: u32) -> LogTime {
        LogTime(self.0.saturating_add(seconds as u64 * 1000))
    }
}

/// An Application Message as published, once for all its recipients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub topic: Box<str>,
    pub payload: Bytes,
    /// QoS of the PUBLISH, 0 to 2.
    pub qos: u8,
    /// RETAIN of the PUBLISH.
    pub retain: bool,
    /// The session that published it: No Local is decided against it. [MQTT-3.8.3-3]
    pub publisher: SessionId,
    /// Message Expiry Interval in seconds as received. [MQTT-3.3.2-5]
    pub expiry_interval: Option<u32>,
    /// MQTT 5 properties that are forwarded unaltered, as encoded on the wire (Payload Format Indicator, Content
    /// Type, Response Topic, Correlation Data, User Properties in order). Opaque here. [MQTT-3.3.2-17]
    pub properties: Bytes,
}

const MESSAGE_VERSION: u8 = 1;

impl Message {
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(self.topic.len() + self.payload.len() + self.properties.len() + 32);
        writer
            .u8(MESSAGE_VERSION)
            .u8(self.qos | (self.retain as u8) << 2)
            .var(self.publisher.0);
        writer.option(self.expiry_interval, |w, seconds| {
            w.var(seconds as u64);
        });
        writer.str(&self.topic).bytes(&self.properties).raw(&self.payload);
        writer.finish()
    }

    /// Payload and properties share the memory of `bytes`.
    ///
    /// # Errors
    /// The bytes are torn or of a later version.
    pub fn decode(bytes: &Bytes) -> Result<Message, DecodeError> {
        let mut reader = Reader::new("message", bytes);
        if reader.u8()? != MESSAGE_VERSION {
            return Err(reader.error());
        }
        let flags = reader.u8()?;
        let publisher = SessionId(reader.var()?);
        let expiry_interval = reader.option(|r| r.var32())?;
        let topic = reader.str()?.into();
        let properties = reader.bytes()?;
        let payload = reader.rest();
        Ok(Message {
            topic,
            payload,
            qos: flags & 3,
            retain: flags & 4 != 0,
            publisher,
            expiry_interval,
            properties,
        })
    }

    /// Bytes that count against queue limits.
    pub fn size(&self) -> usize {
        self.topic.len() + self.payload.len() + self.properties.len()
    }
}

/// Whose queue a message enters, with what its subscriptions granted at the match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// The session, or the shared group (their ids are of one kind).
    pub session: SessionId,
    /// min(QoS of the PUBLISH, highest granted QoS of the matching subscriptions). 0 only for a retained message of
    /// QoS 0 that is replayed.
    pub qos: u8,
    /// RETAIN as it leaves: 1 for a retained message that is replayed [MQTT-3.3.1-8], and for a retained PUBLISH to a
    /// Retain As Published subscription. [MQTT-3.3.1-13]
    pub retain: bool,
    /// Subscription Identifiers of all matching subscriptions. [MQTT-3.3.4-3]
    pub subscription_identifiers: Vec<u32>,
    pub role: Role,
}

/// What a recipient is to the message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// A session whose own subscription matched.
    #[default]
    Session,
    /// A shared group: the message waits for a member.
    Group,
    /// A member of a shared group that was assigned the message while it was connected under `epoch`.
    Member { group: SessionId, epoch: SessionEpoch },
}

impl Recipient {
    pub fn write(&self, writer: &mut Writer) {
        let role = match self.role {
            Role::Session => 0,
            Role::Group => ROLE_GROUP,
            Role::Member { .. } => ROLE_MEMBER,
        };
        writer
            .var(self.session.0)
            .u8(self.qos | (self.retain as u8) << 2 | role);
        if let Role::Member { group, epoch } = self.role {
            writer.var(group.0).var(epoch.0);
        }
        writer.var(self.subscription_identifiers.len() as u64);
        for identifier in &self.subscription_identifiers {
            writer.var(*identifier as u64);
        }
    }

    /// # Errors
    /// The bytes are torn.
    pub fn read(reader: &mut Reader<'_>) -> Result<Recipient, DecodeError> {
        let session = SessionId(reader.var()?);
        let flags = reader.u8()?;
        let role = match flags & (ROLE_GROUP | ROLE_MEMBER) {
            0 => Role::Session,
            ROLE_GROUP => Role::Group,
            ROLE_MEMBER => Role::Member {
                group: SessionId(reader.var()?),
                epoch: SessionEpoch(reader.var()?),
            },
            _ => return Err(reader.error()),
        };
        let mut subscription_identifiers = Vec::new();
        for _ in 0..reader.count()? {
            subscription_identifiers.push(reader.var32()?);
        }
        Ok(Recipient {
            session,
            qos: flags & 3,
            retain: flags & 4 != 0,
            subscription_identifiers,
            role,
        })
    }
}

const ROLE_GROUP: u8 = 8;
const ROLE_MEMBER: u8 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_encoding() {
        let message = Message {
            topic: "a/b".into(),
            payload: Bytes::from_static(b"hello"),
            qos: 1,
            retain: true,
            publisher: SessionId(77),
            expiry_interval: Some(60),
            properties: Bytes::from_static(&[1, 1]),
        };
        let bytes = message.encode();
        assert_eq!(
            &bytes[..],
            b"\x01\x05\x4d\x01\x3c\x03a/b\x02\x01\x01hello",
            "golden: readable-forever"
        );
        assert_eq!(Message::decode(&bytes).unwrap(), message);
    }
}
