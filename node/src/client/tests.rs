//! The client's connection against frames of the node's own encoders: what comes in, what must go out.

use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::*;
use crate::protocol::codec::{
    Ack, AckKind, ConnAck, ConnAckProperties, Connect, ConnectProperties, Direction, Disconnect, EncodeError, Limits,
    Packet, PropertiesOut, PublishFields, PublishFrame, QoS, ReasonCode, SubAck, SubscribeFilter, UnsubAck, Version,
    decode, encode_ack, encode_connack, encode_disconnect, encode_pingresp, encode_suback, encode_unsuback,
    frame_length,
};

const VERSIONS: [Version; 3] = [Version::V3_1, Version::V3_1_1, Version::V5];

/// A connection, and the server's end of it by hand.
struct Wire {
    connection: Connection,
    version: Version,
    received: BytesMut,
    now: Instant,
}

fn connect(version: Version) -> Connect {
    Connect {
        version,
        clean_start: true,
        keep_alive_seconds: 60,
        client_id: "c".to_owned(),
        will: None,
        user_name: None,
        password: None,
        properties: ConnectProperties::default(),
    }
}

fn connack(reason: ReasonCode) -> ConnAck {
    ConnAck {
        session_present: false,
        reason,
        properties: ConnAckProperties::default(),
    }
}

impl Wire {
    fn new(connect: &Connect) -> Wire {
        let now = Instant::now();
        Wire {
            connection: Connection::new(connect, 10, now).expect("a valid CONNECT"),
            version: connect.version,
            received: BytesMut::new(),
            now,
        }
    }

    /// Connected, with the CONNECT taken out.
    fn connected(connect: &Connect, connack: &ConnAck) -> Wire {
        let mut wire = Wire::new(connect);
        assert!(matches!(wire.sent_first(), Packet::Connect(_)));
        encode_connack(wire.version, connack, &mut wire.received).expect("a valid CONNACK");
        assert!(matches!(wire.event(), Ok(Some(Event::Connected(_)))));
        wire
    }

    fn plain(version: Version) -> Wire {
        Wire::connected(&connect(version), &connack(ReasonCode::SUCCESS))
    }

    fn event(&mut self) -> Result<Option<Event>, ConnectionEnd> {
        self.connection.next_event(&mut self.received)
    }

    fn nothing_happens(&mut self) {
        let event = self.event();
        assert!(matches!(event, Ok(None)), "{event:?}");
    }

    fn sent_first(&mut self) -> Packet {
        let mut out = BytesMut::from(&self.connection.take_output(self.now)[..]);
        let length = frame_length(&out, &Limits::default(), None)
            .expect("CONNECT")
            .expect("whole");
        decode(
            out.split_to(length).freeze(),
            None,
            Direction::ClientToServer,
            &Limits::default(),
        )
        .expect("CONNECT")
    }

    fn sent(&mut self) -> Vec<Packet> {
        let mut out = BytesMut::from(&self.connection.take_output(self.now)[..]);
        let version = Some(self.version);
        let mut packets = Vec::new();
        while let Some(length) = frame_length(&out, &Limits::default(), version).expect("frames") {
            let frame = out.split_to(length).freeze();
            packets
                .push(decode(frame, version, Direction::ClientToServer, &Limits::default()).expect("a valid packet"));
        }
        assert!(out.is_empty());
        packets
    }

    fn ack(&mut self, kind: AckKind, packet_id: u16, reason: ReasonCode) {
        encode_ack(kind, self.version, id(packet_id), reason, &mut self.received);
    }

    fn message(&mut self, qos: QoS, packet_id: u16, dup: bool) {
        let fields = fields(self.version, qos);
        let frame = PublishFrame::encode(&fields).expect("a valid PUBLISH");
        frame.append(NonZeroU16::new(packet_id), dup, &mut self.received);
    }

    /// The next event is a message; it is answered.
    fn take_message(&mut self) {
        match self.event() {
            Ok(Some(Event::Message(message))) => self.connection.answer(&message),
            other => panic!("{other:?}"),
        }
    }

    fn publish(&mut self, qos: QoS) -> Result<Option<NonZeroU16>, RequestError> {
        self.connection.publish(&fields(self.version, qos))
    }

    fn published(&mut self, packet_id: u16, expected: ReasonCode) {
        match self.event() {
            Ok(Some(Event::Published {
                packet_id: done,
                reason,
                ..
            })) => {
                assert_eq!((done, reason), (id(packet_id), expected));
            }
            other => panic!("{other:?}"),
        }
    }

    /// The connection ends, and the server is told so much.
    fn ends_with(&mut self, statement: &str, told: Option<ReasonCode>) {
        match self.event() {
            Err(ConnectionEnd::Violation(violation)) => assert_eq!(violation.statement, statement),
            other => panic!("{statement}: {other:?}"),
        }
        let expected: Vec<Packet> = told
            .map(|reason| Packet::Disconnect(Disconnect::new(reason)))
            .into_iter()
            .collect();
        assert_eq!(self.sent(), expected);
        assert_eq!(self.connection.next_deadline(), None);
    }
}

fn fields(version: Version, qos: QoS) -> PublishFields<'static> {
    PublishFields {
        version,
        qos,
        retain: false,
        topic: "a/b",
        properties: PropertiesOut::default(),
        payload: b"payload",
    }
}

fn id(packet_id: u16) -> NonZeroU16 {
    NonZeroU16::new(packet_id).expect("not 0")
}

fn ack(packet_id: u16, reason: ReasonCode) -> Ack {
    Ack::new(id(packet_id), reason)
}

#[test]
fn a_message_of_each_qos_is_acknowledged_in_its_way() {
    for version in VERSIONS {
        let mut wire = Wire::plain(version);
        assert_eq!(wire.publish(QoS::AtMostOnce).expect("sent"), None);
        assert!(wire.connection.is_answered());
        assert_eq!(wire.publish(QoS::AtLeastOnce).expect("sent"), Some(id(1)));
        assert_eq!(wire.publish(QoS::ExactlyOnce).expect("sent"), Some(id(2)));
        assert_eq!(wire.sent().len(), 3);

        wire.ack(AckKind::PubAck, 1, ReasonCode::SUCCESS);
        wire.published(1, ReasonCode::SUCCESS);
        wire.ack(AckKind::PubRec, 2, ReasonCode::SUCCESS);
        wire.nothing_happens();
        assert_eq!(wire.sent(), [Packet::PubRel(ack(2, ReasonCode::SUCCESS))]);
        assert!(!wire.connection.is_answered());
        wire.ack(AckKind::PubComp, 2, ReasonCode::SUCCESS);
        wire.published(2, ReasonCode::SUCCESS);
        assert!(wire.connection.is_answered());
    }
}

#[test]
fn a_refused_message_is_done_with_its_reason() {
    let mut wire = Wire::plain(Version::V5);
    wire.publish(QoS::AtLeastOnce).expect("sent");
    wire.publish(QoS::ExactlyOnce).expect("sent");
    wire.sent();
    wire.ack(AckKind::PubAck, 1, ReasonCode::NO_MATCHING_SUBSCRIBERS);
    wire.published(1, ReasonCode::NO_MATCHING_SUBSCRIBERS);
    wire.ack(AckKind::PubRec, 2, ReasonCode::QUOTA_EXCEEDED);
    wire.published(2, ReasonCode::QUOTA_EXCEEDED);
    assert!(wire.sent().is_empty(), "no PUBREL after a refusal");
    assert!(wire.connection.is_answered());
}

#[test]
fn send_quota_is_the_servers_receive_maximum() {
    let mut answer = connack(ReasonCode::SUCCESS);
    answer.properties.receive_maximum = Some(2);
    let mut wire = Wire::connected(&connect(Version::V5), &answer);
    wire.publish(QoS::AtLeastOnce).expect("sent");
    wire.publish(QoS::ExactlyOnce).expect("sent");
    assert!(!wire.connection.has_room());
    assert!(matches!(wire.publish(QoS::AtLeastOnce), Err(RequestError::NoRoom)));
    wire.publish(QoS::AtMostOnce).expect("QoS 0 is not counted");
    wire.connection
        .subscribe(vec![filter("a")], None, Vec::new())
        .expect("nor is SUBSCRIBE");
    wire.ack(AckKind::PubRec, 2, ReasonCode::SUCCESS);
    wire.nothing_happens();
    assert!(!wire.connection.has_room(), "until PUBCOMP");
    wire.ack(AckKind::PubComp, 2, ReasonCode::SUCCESS);
    wire.published(2, ReasonCode::SUCCESS);
    assert!(wire.connection.has_room());
}

#[test]
fn packet_identifiers_are_unique_and_go_round() {
    let mut exchanges = exchanges::Exchanges::new(u16::MAX);
    let kept = exchanges.publish(QoS::AtLeastOnce);
    assert_eq!(kept, Some(id(1)));
    for expected in 2..=u16::MAX {
        let packet_id = exchanges.publish(QoS::AtLeastOnce).expect("room");
        assert_eq!(packet_id, id(expected));
        assert!(exchanges.puback(packet_id).expect("in flight"));
    }
    assert_eq!(exchanges.subscribe(1), Some(id(2)), "1 is in use, 0 is none");
    assert!(!exchanges.puback(id(9)).expect("an answer to an earlier process"));
    exchanges.puback(id(2)).expect_err("PUBACK for a SUBSCRIBE");
    exchanges.pubcomp(id(1)).expect_err("PUBCOMP for QoS 1");
}

#[test]
fn messages_are_answered_when_they_are_taken_care_of() {
    for version in VERSIONS {
        let mut wire = Wire::plain(version);
        wire.message(QoS::AtMostOnce, 0, false);
        wire.message(QoS::AtLeastOnce, 7, false);
        wire.message(QoS::ExactlyOnce, 8, false);
        wire.take_message();
        let Ok(Some(Event::Message(message))) = wire.event() else {
            panic!("the second message");
        };
        assert!(wire.sent().is_empty(), "nothing before answer");
        wire.connection.answer(&message);
        wire.connection.answer(&message);
        wire.take_message();
        assert_eq!(
            wire.sent(),
            [
                Packet::PubAck(ack(7, ReasonCode::SUCCESS)),
                Packet::PubRec(ack(8, ReasonCode::SUCCESS)),
            ]
        );
        assert!(wire.connection.awaits_release());
        wire.ack(AckKind::PubRel, 8, ReasonCode::SUCCESS);
        wire.nothing_happens();
        assert_eq!(wire.sent(), [Packet::PubComp(ack(8, ReasonCode::SUCCESS))]);
        assert!(!wire.connection.awaits_release());
    }
}

#[test]
fn exactly_once_in_a_repeated_publish_is_not_handed_over_again() {
    let mut wire = Wire::plain(Version::V5);
    wire.message(QoS::ExactlyOnce, 8, false);
    wire.take_message();
    wire.sent();
    wire.message(QoS::ExactlyOnce, 8, true);
    wire.nothing_happens();
    assert_eq!(wire.sent(), [Packet::PubRec(ack(8, ReasonCode::SUCCESS))]);
    wire.ack(AckKind::PubRel, 8, ReasonCode::SUCCESS);
    wire.nothing_happens();
    wire.sent();
    wire.message(QoS::ExactlyOnce, 8, false);
    wire.take_message();
}

#[test]
fn what_an_earlier_process_left_is_completed() {
    let check = |version, expected| {
        let mut wire = Wire::plain(version);
        wire.ack(AckKind::PubRel, 9, ReasonCode::SUCCESS);
        wire.ack(AckKind::PubRec, 4, ReasonCode::SUCCESS);
        wire.ack(AckKind::PubAck, 5, ReasonCode::SUCCESS);
        wire.nothing_happens();
        assert_eq!(
            wire.sent(),
            [Packet::PubComp(ack(9, expected)), Packet::PubRel(ack(4, expected))]
        );
    };
    check(Version::V5, ReasonCode::PACKET_IDENTIFIER_NOT_FOUND);
    check(Version::V3_1_1, ReasonCode::SUCCESS);
}

#[test]
fn a_refusal_is_named() {
    let mut wire = Wire::new(&connect(Version::V5));
    let mut answer = connack(ReasonCode::USE_ANOTHER_SERVER);
    answer.properties.reason_string = Some("moving".to_owned());
    answer.properties.server_reference = Some("10.0.0.2".to_owned());
    encode_connack(Version::V5, &answer, &mut wire.received).expect("a valid CONNACK");
    let told = wire.event().expect_err("refused").to_string();
    assert_eq!(
        told,
        "connection refused: 0x9C use another server (moving); use 10.0.0.2"
    );

    let mut wire = Wire::new(&connect(Version::V3_1_1));
    encode_connack(
        Version::V3_1_1,
        &connack(ReasonCode::NOT_AUTHORIZED),
        &mut wire.received,
    )
    .expect("valid");
    let told = wire.event().expect_err("refused").to_string();
    assert_eq!(told, "connection refused: 0x87 not authorized");
}

#[test]
fn a_server_that_breaks_the_protocol_is_left_with_the_reason() {
    let protocol_error = Some(ReasonCode::PROTOCOL_ERROR);
    let mut wire = Wire::plain(Version::V5);
    encode_connack(Version::V5, &connack(ReasonCode::SUCCESS), &mut wire.received).expect("valid");
    wire.ends_with("MQTT-3.2.0-2", protocol_error);

    let mut wire = Wire::plain(Version::V5);
    wire.publish(QoS::ExactlyOnce).expect("sent");
    wire.sent();
    wire.ack(AckKind::PubAck, 1, ReasonCode::SUCCESS);
    wire.ends_with("4.3", protocol_error);

    let mut wire = Wire::plain(Version::V5);
    wire.connection
        .subscribe(vec![filter("a")], None, Vec::new())
        .expect("sent");
    wire.sent();
    let two = SubAck::new(id(1), vec![ReasonCode::SUCCESS; 2]);
    encode_suback(Version::V5, &two, &mut wire.received).expect("valid");
    wire.ends_with("4.3", protocol_error);

    let mut narrow = connect(Version::V5);
    narrow.properties.receive_maximum = Some(1);
    let mut wire = Wire::connected(&narrow, &connack(ReasonCode::SUCCESS));
    wire.message(QoS::AtLeastOnce, 1, false);
    wire.message(QoS::AtLeastOnce, 2, false);
    assert!(matches!(wire.event(), Ok(Some(Event::Message(_)))));
    wire.ends_with("MQTT-3.3.4-9", Some(ReasonCode::RECEIVE_MAXIMUM_EXCEEDED));

    // 3.x has no words for it, and before CONNACK there is no connection to end in order.
    let mut wire = Wire::plain(Version::V3_1_1);
    encode_connack(Version::V3_1_1, &connack(ReasonCode::SUCCESS), &mut wire.received).expect("valid");
    wire.ends_with("MQTT-3.2.0-2", None);
    let mut wire = Wire::new(&connect(Version::V5));
    wire.sent_first();
    encode_pingresp(&mut wire.received);
    wire.ends_with("MQTT-3.2.0-1", None);
}

#[test]
fn what_the_server_does_not_take_is_not_sent() {
    let mut answer = connack(ReasonCode::SUCCESS);
    answer.properties.maximum_qos = Some(QoS::AtLeastOnce);
    answer.properties.retain_available = Some(false);
    answer.properties.maximum_packet_size = Some(20);
    answer.properties.topic_alias_maximum = Some(1);
    let mut wire = Wire::connected(&connect(Version::V5), &answer);
    let refused = |wire: &mut Wire, change: fn(&mut PublishFields<'_>)| {
        let mut fields = fields(Version::V5, QoS::AtLeastOnce);
        change(&mut fields);
        wire.connection.publish(&fields).map_err(|error| error.to_string())
    };
    assert_eq!(refused(&mut wire, |_| {}), Ok(Some(id(1))));
    wire.sent();
    for (change, told) in [
        (
            (|fields| fields.qos = QoS::ExactlyOnce) as fn(&mut PublishFields<'_>),
            "takes QoS 1 at most",
        ),
        (|fields| fields.retain = true, "no retained messages"),
        (
            |fields| fields.payload = b"longer than it was",
            "has 28 bytes; the server takes 20",
        ),
        (
            |fields| fields.properties.topic_alias = Some(2),
            "topic alias 2; the server takes 1",
        ),
        (|fields| fields.topic = "a/#", "wildcard"),
    ] {
        let problem = refused(&mut wire, change).expect_err(told);
        assert!(problem.contains(told), "{told}: {problem}");
    }
    assert!(wire.sent().is_empty());
    wire.ack(AckKind::PubAck, 1, ReasonCode::SUCCESS);
    wire.published(1, ReasonCode::SUCCESS);
    assert!(wire.connection.is_answered(), "a refused one holds no identifier");
}

#[test]
fn subscriptions_are_answered_filter_by_filter() {
    for version in VERSIONS {
        let mut wire = Wire::plain(version);
        let packet_id = wire
            .connection
            .subscribe(vec![filter("a"), filter("b/#")], None, Vec::new())
            .expect("sent");
        assert!(matches!(&wire.sent()[..], [Packet::Subscribe(subscribe)] if subscribe.filters.len() == 2));
        let suback = SubAck::new(
            packet_id,
            vec![ReasonCode::GRANTED_QOS_1, ReasonCode::UNSPECIFIED_ERROR],
        );
        encode_suback(version, &suback, &mut wire.received).expect("valid");
        assert!(matches!(wire.event(), Ok(Some(Event::Subscribed(told))) if told == suback));

        let packet_id = wire
            .connection
            .unsubscribe(vec!["a".to_owned()], Vec::new())
            .expect("sent");
        assert!(matches!(&wire.sent()[..], [Packet::Unsubscribe(_)]));
        let unsuback = UnsubAck::new(packet_id, vec![ReasonCode::SUCCESS]);
        encode_unsuback(version, &unsuback, &mut wire.received).expect("valid");
        assert!(matches!(wire.event(), Ok(Some(Event::Unsubscribed(_)))));
        assert!(wire.connection.is_answered());
    }
}

#[test]
fn a_filter_against_the_grammar_is_refused_before_it_is_sent() {
    let mut wire = Wire::plain(Version::V5);
    let refused = wire.connection.subscribe(vec![filter("a/#/b")], None, Vec::new());
    assert!(
        matches!(refused, Err(RequestError::Encode(EncodeError::Refused(_)))),
        "{refused:?}"
    );
    assert!(wire.sent().is_empty());
    assert!(wire.connection.is_answered());
}

#[test]
fn silence_is_pinged_and_then_given_up() {
    let mut wire = Wire::plain(Version::V5);
    let start = wire.now;
    let after = |seconds| start + Duration::from_secs(seconds);
    assert_eq!(wire.connection.next_deadline(), Some(after(60)));
    wire.now = after(10);
    wire.publish(QoS::AtMostOnce).expect("sent");
    wire.sent();
    assert_eq!(wire.connection.next_deadline(), Some(after(70)), "what is sent counts");
    wire.connection.timed_out(after(69)).expect("not yet");
    assert!(wire.sent().is_empty());

    wire.now = after(70);
    wire.connection.timed_out(after(70)).expect("a ping");
    assert_eq!(wire.sent(), [Packet::PingReq]);
    encode_pingresp(&mut wire.received);
    wire.nothing_happens();
    wire.now = after(130);
    wire.connection.timed_out(after(130)).expect("a ping");
    wire.sent();
    let end = wire.connection.timed_out(after(190));
    assert!(matches!(end, Err(ConnectionEnd::NoPingresp(_))), "{end:?}");
    assert_eq!(wire.connection.next_deadline(), None);
}

#[test]
fn the_servers_keep_alive_wins() {
    let mut answer = connack(ReasonCode::SUCCESS);
    answer.properties.server_keep_alive = Some(5);
    let wire = Wire::connected(&connect(Version::V5), &answer);
    assert_eq!(wire.connection.next_deadline(), Some(wire.now + Duration::from_secs(5)));
    let mut off = connect(Version::V3_1_1);
    off.keep_alive_seconds = 0;
    let wire = Wire::connected(&off, &connack(ReasonCode::SUCCESS));
    assert_eq!(wire.connection.next_deadline(), None);
}

#[test]
fn no_connack_is_an_end() {
    let mut wire = Wire::new(&connect(Version::V5));
    wire.sent_first();
    let deadline = wire.connection.next_deadline().expect("CONNACK is awaited");
    let end = wire.connection.timed_out(deadline);
    assert!(matches!(end, Err(ConnectionEnd::NoConnack(_))), "{end:?}");
}

#[test]
fn a_disconnect_of_the_server_is_named() {
    let mut wire = Wire::plain(Version::V5);
    let mut disconnect = Disconnect::new(ReasonCode::SESSION_TAKEN_OVER);
    disconnect.reason_string = Some("elsewhere".to_owned());
    encode_disconnect(Version::V5, &disconnect, &mut wire.received).expect("valid");
    let told = wire.event().expect_err("over").to_string();
    assert_eq!(told, "disconnected by the server: 0x8E session taken over (elsewhere)");
    assert!(wire.sent().is_empty());
}

#[test]
fn packets_may_come_in_any_pieces() {
    let mut wire = Wire::plain(Version::V5);
    wire.message(QoS::AtLeastOnce, 3, false);
    wire.message(QoS::AtLeastOnce, 4, false);
    let bytes: Bytes = wire.received.split().freeze();
    let mut taken = 0;
    for byte in &bytes {
        wire.received.extend_from_slice(&[*byte]);
        while let Some(event) = wire.event().expect("well formed") {
            assert!(matches!(event, Event::Message(_)));
            taken += 1;
        }
    }
    assert_eq!(taken, 2);
}

fn filter(filter: &str) -> SubscribeFilter {
    SubscribeFilter {
        filter: filter.to_owned(),
        qos: QoS::AtLeastOnce,
        no_local: false,
        retain_as_published: false,
        retain_handling: 0,
        valid: Ok(()),
    }
}
