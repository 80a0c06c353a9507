//! Answers to one client: in its version, within its Maximum Packet Size, with a Reason String only where it wants one.
//!
//! Sans-io. Invariants
//! - no packet above the client's Maximum Packet Size is written: what is optional is left out first, then the packet.
//!   [MQTT-3.1.2-24] [MQTT-3.2.2-19] [MQTT-3.4.2-2] [MQTT-3.5.2-2] [MQTT-3.9.2-1] [MQTT-3.11.2-1] [MQTT-3.14.2-3]
//! - a client that asked for no problem information gets Reason Strings on CONNACK and DISCONNECT only. [MQTT-3.1.2-29]

use std::num::NonZeroU16;

use bytes::{Bytes, BytesMut};

use super::checks::{Check, on};
use super::codec::{
    Ack, AckKind, Auth, ConnAck, Connect, Disconnect, EncodeError, ReasonCode, SubAck, UnsubAck, Version, encode_ack,
    encode_ack_with_properties, encode_auth, encode_connack, encode_disconnect, encode_suback, encode_unsuback,
};

/// What a client said about the packets it takes.
#[derive(Clone, Copy, Debug)]
pub struct Answers {
    pub version: Version,
    /// Maximum Packet Size in bytes.
    pub packet_size_max: u32,
    /// Request Problem Information.
    pub problem_information: bool,
}

impl Answers {
    /// For a client that has said nothing but its version.
    pub fn of_version(version: Version) -> Self {
        Answers {
            version,
            packet_size_max: u32::MAX,
            problem_information: true,
        }
    }

    pub fn of(connect: &Connect) -> Self {
        Answers {
            version: connect.version,
            packet_size_max: connect.properties.maximum_packet_size.unwrap_or(u32::MAX),
            problem_information: connect.properties.request_problem_information,
        }
    }

    /// PUBACK, PUBREC, PUBREL or PUBCOMP. False if the client takes no packet of that size.
    pub fn ack(&self, kind: AckKind, packet_id: NonZeroU16, reason: ReasonCode, out: &mut BytesMut) -> bool {
        if let Some(why) = self.reason_string(why_not_acknowledged(reason)) {
            let mut ack = Ack::new(packet_id, reason);
            ack.reason_string = Some(why);
            if self.append(out, |out| encode_ack_with_properties(kind, self.version, &ack, out)) {
                return true;
            }
        }
        self.append(out, |out| {
            encode_ack(kind, self.version, packet_id, reason, out);
            Ok(())
        })
    }

    pub fn suback(&self, packet_id: NonZeroU16, reasons: Vec<ReasonCode>, out: &mut BytesMut) -> bool {
        let mut suback = SubAck::new(packet_id, reasons);
        suback.reason_string = self.reason_string(suback.reasons.iter().find_map(|reason| why_not_subscribed(*reason)));
        if suback.reason_string.is_some() && self.append(out, |out| encode_suback(self.version, &suback, out)) {
            return true;
        }
        suback.reason_string = None;
        self.append(out, |out| encode_suback(self.version, &suback, out))
    }

    pub fn unsuback(&self, packet_id: NonZeroU16, reasons: Vec<ReasonCode>, out: &mut BytesMut) -> bool {
        let unsuback = UnsubAck::new(packet_id, reasons);
        self.append(out, |out| encode_unsuback(self.version, &unsuback, out))
    }

    /// False also where 3.x knows no return code for the reason: it is closed without a word. [MQTT-3.2.2-6]
    pub fn connack(&self, mut connack: ConnAck, out: &mut BytesMut) -> bool {
        if self.append(out, |out| encode_connack(self.version, &connack, out)) {
            return true;
        }
        connack.properties.reason_string = None;
        self.append(out, |out| encode_connack(self.version, &connack, out))
    }

    /// False for 3.x, which knows no DISCONNECT of a server.
    pub fn disconnect(&self, reason: ReasonCode, why: Option<&str>, out: &mut BytesMut) -> bool {
        let mut disconnect = Disconnect::new(reason);
        disconnect.reason_string = why.map(str::to_owned);
        if self.append(out, |out| encode_disconnect(self.version, &disconnect, out)) {
            return true;
        }
        disconnect.reason_string = None;
        self.append(out, |out| encode_disconnect(self.version, &disconnect, out))
    }

    /// AUTH, with nothing but its method and data: no Reason String or User Property makes it too large. False if it is all the
    /// same. [MQTT-3.15.2-2] [MQTT-3.15.2-3]
    pub fn auth(&self, reason: ReasonCode, method: &str, data: Bytes, out: &mut BytesMut) -> bool {
        let auth = Auth {
            reason,
            authentication_method: Some(method.to_owned()),
            authentication_data: Some(data),
            reason_string: None,
            user_properties: Vec::new(),
        };
        self.append(out, |out| encode_auth(&auth, out))
    }

    fn reason_string(&self, why: Option<&'static str>) -> Option<String> {
        let is_wanted = self.problem_information || !on(Check::ProblemInformation);
        why.filter(|_| self.version.is_v5() && is_wanted).map(str::to_owned)
    }

    /// Keeps what `encode` appends if the client takes a packet of its size.
    fn append(&self, out: &mut BytesMut, encode: impl FnOnce(&mut BytesMut) -> Result<(), EncodeError>) -> bool {
        let start = out.len();
        let is_encoded = encode(out).is_ok();
        let fits = out.len() - start <= self.packet_size_max as usize || !on(Check::MaximumPacketSize);
        let written = is_encoded && fits;
        if !written {
            out.truncate(start);
        }
        written
    }
}

/// What a client can do about it, where the code alone does not tell.
fn why_not_acknowledged(reason: ReasonCode) -> Option<&'static str> {
    match reason {
        ReasonCode::QUOTA_EXCEEDED => Some("the broker has no room to keep it now: publish it again later"),
        _ => None,
    }
}

fn why_not_subscribed(reason: ReasonCode) -> Option<&'static str> {
    match reason {
        ReasonCode::UNSPECIFIED_ERROR => Some("the cluster did not take the subscription: subscribe again later"),
        ReasonCode::QUOTA_EXCEEDED => {
            Some("there is no room for another subscription, or another session has this exclusive one")
        }
        ReasonCode::TOPIC_FILTER_INVALID => Some("a topic filter is above the limits of this broker"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::codec::{ConnAckProperties, Direction, Limits, Packet, decode};

    const ID: NonZeroU16 = NonZeroU16::MIN;

    /// What `write` appends for a 5.0 client, decoded; `None` if nothing.
    fn written(
        packet_size_max: u32,
        problem_information: bool,
        write: impl FnOnce(&Answers, &mut BytesMut) -> bool,
    ) -> Option<Packet> {
        let answers = Answers {
            version: Version::V5,
            packet_size_max,
            problem_information,
        };
        let mut out = BytesMut::new();
        let told = write(&answers, &mut out);
        assert_eq!(told, !out.is_empty());
        assert!(out.len() <= packet_size_max as usize);
        told.then(|| {
            decode(
                out.freeze(),
                Some(Version::V5),
                Direction::ServerToClient,
                &Limits::default(),
            )
            .expect("well-formed")
        })
    }

    fn reason_string(packet: Packet) -> Option<String> {
        match packet {
            Packet::PubAck(ack) | Packet::PubRec(ack) => ack.reason_string,
            Packet::SubAck(suback) => suback.reason_string,
            Packet::Disconnect(disconnect) => disconnect.reason_string,
            Packet::ConnAck(connack) => connack.properties.reason_string,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn reason_strings_are_for_those_who_want_them_and_have_room() {
        type Write = fn(&Answers, &mut BytesMut) -> bool;
        let connack = |answers: &Answers, out: &mut BytesMut| {
            let properties = ConnAckProperties {
                reason_string: Some("why".into()),
                ..ConnAckProperties::default()
            };
            let connack = ConnAck {
                session_present: false,
                reason: ReasonCode::NOT_AUTHORIZED,
                properties,
            };
            answers.connack(connack, out)
        };
        // Each with the bytes of its shortest form, and whether Request Problem Information 0 leaves the string out.
        let cases: [(&str, Write, u32, bool); 5] = [
            (
                "PUBACK",
                |a, out| a.ack(AckKind::PubAck, ID, ReasonCode::QUOTA_EXCEEDED, out),
                5,
                true,
            ),
            (
                "PUBREC",
                |a, out| a.ack(AckKind::PubRec, ID, ReasonCode::QUOTA_EXCEEDED, out),
                5,
                true,
            ),
            (
                "SUBACK",
                |a, out| a.suback(ID, vec![ReasonCode::UNSPECIFIED_ERROR], out),
                6,
                true,
            ),
            (
                "DISCONNECT",
                |a, out| a.disconnect(ReasonCode::SERVER_BUSY, Some("why"), out),
                3,
                false,
            ),
            ("CONNACK", connack, 5, false),
        ];
        for (name, write, shortest, left_out) in cases {
            let string = |max, problem_information| written(max, problem_information, write).map(reason_string);
            assert!(matches!(string(u32::MAX, true), Some(Some(_))), "{name}");
            assert_eq!(
                string(u32::MAX, false).map(|told| told.is_none()),
                Some(left_out),
                "{name}"
            );
            assert_eq!(string(shortest, true), Some(None), "{name}: the string is left out");
            assert_eq!(string(shortest - 1, true), None, "{name}: not sent");
        }
    }

    #[test]
    fn success_is_told_without_a_string() {
        let ack = written(u32::MAX, true, |answers, out| {
            answers.ack(AckKind::PubAck, ID, ReasonCode::SUCCESS, out)
        });
        assert_eq!(ack.map(reason_string), Some(None));
    }

    #[test]
    fn version_3_has_no_disconnect_of_a_server() {
        let mut out = BytesMut::new();
        let answers = Answers::of_version(Version::V3_1_1);
        assert!(!answers.disconnect(ReasonCode::SERVER_BUSY, None, &mut out));
        assert!(out.is_empty());
    }
}
