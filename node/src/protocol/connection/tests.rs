//! Packets in, bytes and outputs out: no socket, no clock, no cluster.

use std::sync::Arc;

use bytes::Bytes;
use lontra_storage::message::Message;

use super::*;
use crate::auth::Access;
use crate::protocol::codec::{self, Direction, Limits};
use crate::protocol::mountpoint::Mountpoint;
use crate::protocol::publish_out::{Delivery, FrameCache};

mod enhanced;

struct Fixture {
    connection: Connection,
    now: Instant,
}

fn policy() -> Policy {
    Policy {
        packet_size_max: 1 << 20,
        receive_maximum: 2,
        keep_alive_max: None,
        session_expiry_max: u32::MAX,
        topic_alias_max: 2,
        outbox_bytes_max: 1 << 20,
        outbox_messages_max: 10,
        mountpoint: Mountpoint::default(),
        topic_rules: Default::default(),
        available: Default::default(),
        scram: true,
    }
}

impl Fixture {
    fn new() -> Self {
        let now = Instant::now();
        let connection = Connection::new(policy(), Duration::from_secs(10), Duration::from_secs(1), now);
        Fixture { connection, now }
    }

    /// Connected with MQTT `level`, client id `c`, Keep Alive 60 s.
    fn connected(level: u8) -> Self {
        let mut fixture = Fixture::new();
        match level {
            5 => fixture.send("100e00044d5154540502003c00000163"),
            _ => fixture.send("100d00044d5154540402003c000163"),
        }
        fixture.attach();
        fixture
    }

    /// Connected with MQTT 5 and these CONNECT properties, in hex.
    fn with_properties(properties: &str) -> Self {
        let mut fixture = Fixture::new();
        let bytes = properties.len() / 2;
        fixture.send(&format!(
            "10{:02x}00044d5154540502003c{bytes:02x}{properties}000163",
            14 + bytes
        ));
        fixture.attach();
        if fixture.reason().is_none() {
            assert!(fixture.sent().starts_with("20"));
        }
        fixture
    }

    fn attach(&mut self) {
        let Some(Output::Connect(accepted)) = self.connection.outputs.pop() else {
            panic!("asks to be attached")
        };
        let served = Served {
            session: SessionId(1),
            epoch: SessionEpoch(1),
            present: false,
        };
        assert!(
            self.connection
                .attached(accepted, served, 12, false, Access::open(), self.now)
        );
    }

    fn send(&mut self, hex: &str) {
        let frame: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect();
        let version = self.connection.version();
        match codec::decode(
            Bytes::from(frame),
            version,
            Direction::ClientToServer,
            &Limits::default(),
        ) {
            Ok(packet) => self.connection.packet(packet, self.now, || "fresh".into()),
            Err(violation) => self.connection.violation(&violation),
        }
    }

    fn sent(&mut self) -> String {
        self.connection
            .out
            .split()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// Tells the outcome of `token`.
    fn decide(&mut self, token: u64, reason: ReasonCode) {
        let connection = &mut self.connection;
        connection.inbound.decide(token, reason, &mut connection.out);
    }

    /// Topics of what is published.
    fn published(&mut self) -> Vec<String> {
        let outputs = self.connection.outputs.drain(..).map(|output| match output {
            Output::Publish { publish, .. } => publish.topic().to_owned(),
            other => panic!("{other:?}"),
        });
        outputs.collect()
    }

    fn reason(&self) -> Option<ReasonCode> {
        self.connection.ending().map(|ending| ending.reason)
    }
}

#[test]
fn connack_tells_what_is_granted() {
    assert_eq!(Fixture::connected(4).sent(), "20020000");
    let sent = Fixture::connected(5).sent();
    assert!(sent.starts_with("20"), "{sent}");
    for (property, name) in [("220002", "Topic Alias Maximum 2"), ("210002", "Receive Maximum 2")] {
        assert!(sent.contains(property), "{name} in {sent}");
    }
    let connack = codec::decode(
        Fixture::connected(5).connection.out.split().freeze(),
        Some(Version::V5),
        Direction::ServerToClient,
        &Limits::default(),
    );
    let Ok(Packet::ConnAck(connack)) = connack else {
        panic!("{connack:?}")
    };
    let properties = connack.properties;
    assert_eq!(properties.maximum_qos, None, "absent: 2");
    let available = [
        properties.retain_available,
        properties.wildcard_subscription_available,
        properties.subscription_identifiers_available,
        properties.shared_subscription_available,
    ];
    assert_eq!(available, [None; 4], "absent: available");
}

#[test]
fn the_first_packet_is_connect_and_comes_once() {
    let mut fixture = Fixture::new();
    fixture.send("c000");
    assert!(fixture.connection.ending().is_some());
    let mut fixture = Fixture::connected(5);
    fixture.sent();
    fixture.send("100e00044d5154540502003c00000163");
    assert_eq!(fixture.reason(), Some(ReasonCode::PROTOCOL_ERROR));
    assert!(fixture.sent().starts_with("e0"), "DISCONNECT tells why");
}

#[test]
fn a_publish_waits_for_its_outcome() {
    let mut fixture = Fixture::connected(4);
    fixture.sent();
    fixture.send("320700036162630007");
    let Some(Output::Publish { token: Some(token), .. }) = fixture.connection.outputs.pop() else {
        panic!("publish")
    };
    assert_eq!(fixture.sent(), "", "ack-after-commit");
    fixture.decide(token, ReasonCode::SUCCESS);
    assert_eq!(fixture.sent(), "40020007");
}

#[test]
fn qos_2_takes_four_packets() {
    for (publish, level) in [("34070003616263000a", 4), ("34080003616263000a00", 5)] {
        let mut fixture = Fixture::connected(level);
        fixture.sent();
        fixture.send(publish);
        let Some(Output::Publish { token: Some(token), .. }) = fixture.connection.outputs.pop() else {
            panic!("publish")
        };
        assert_eq!(fixture.sent(), "", "ack-after-commit");
        fixture.decide(token, ReasonCode::SUCCESS);
        assert_eq!(fixture.sent(), "5002000a");
        fixture.send("6202000a");
        let Some(Output::Release { packet_id, token }) = fixture.connection.outputs.pop() else {
            panic!("release")
        };
        assert_eq!((packet_id.get(), fixture.sent()), (10, String::new()));
        fixture.decide(token, ReasonCode::SUCCESS);
        assert_eq!(fixture.sent(), "7002000a");
    }
}

#[test]
fn the_clients_pubrec_of_nothing_is_answered() {
    for (level, pubrel) in [(4, "6202000a"), (5, "6203000a92")] {
        let mut fixture = Fixture::connected(level);
        fixture.sent();
        fixture.send("5002000a");
        assert_eq!(fixture.sent(), pubrel);
        fixture.send("7002000a");
        fixture.send("4002000a");
        assert_eq!((fixture.sent(), fixture.reason()), (String::new(), None));
    }
}

#[test]
fn retained_publishes_are_handed_on() {
    let mut fixture = Fixture::connected(5);
    fixture.send("3106000361626300");
    let output = fixture.connection.outputs.pop();
    assert!(matches!(output, Some(Output::Publish { publish, token: None }) if publish.retain()));
}

#[test]
fn topic_aliases_live_as_long_as_the_connection() {
    let mut fixture = Fixture::connected(5);
    // abc = 1, xyz = 2, 1, 2, abd = 1, 1; QoS 1 and 2 too.
    for frame in [
        "3009000361626303230001",
        "3009000378797a03230002",
        "3006000003230001",
        "320800000007 03230002",
        "3009000361626403230001",
        "340800000008 03230001",
    ] {
        fixture.send(&frame.replace(' ', ""));
    }
    assert_eq!(fixture.reason(), None);
    assert_eq!(fixture.published(), ["abc", "xyz", "abc", "xyz", "abd", "abd"]);
    for (frame, reason) in [
        ("3006000003230001", ReasonCode::PROTOCOL_ERROR),
        ("3006000003230003", ReasonCode::TOPIC_ALIAS_INVALID),
        ("3009000361626303230003", ReasonCode::TOPIC_ALIAS_INVALID),
        ("3009000361626303230000", ReasonCode::TOPIC_ALIAS_INVALID),
    ] {
        let mut fixture = Fixture::connected(5);
        fixture.send(frame);
        assert_eq!(fixture.reason(), Some(reason), "{frame}");
    }
}

#[test]
fn receive_maximum_is_an_error_in_5_and_back_pressure_in_3() {
    for level in [4, 5] {
        let mut fixture = Fixture::connected(level);
        for id in 1..=2 {
            match level {
                5 => fixture.send(&format!("32080003616263{id:04x}00")),
                _ => fixture.send(&format!("32070003616263{id:04x}")),
            }
        }
        assert_eq!(fixture.reason(), None);
        assert_eq!(fixture.connection.wants_packets(), level == 5);
        if level == 5 {
            fixture.send("32080003616263000300");
            assert_eq!(fixture.reason(), Some(ReasonCode::RECEIVE_MAXIMUM_EXCEEDED));
        }
    }
}

#[test]
fn keep_alive_ends_the_connection_after_one_and_a_half_times() {
    let mut fixture = Fixture::connected(5);
    let deadline = fixture.connection.next_deadline().unwrap();
    assert_eq!(deadline - fixture.now, Duration::from_secs(90));
    fixture
        .connection
        .deadline_passed(fixture.now + Duration::from_secs(89));
    assert_eq!(fixture.reason(), None);
    fixture.connection.deadline_passed(deadline);
    assert_eq!(fixture.reason(), Some(ReasonCode::KEEP_ALIVE_TIMEOUT));
}

/// SUBSCRIBE in hex; `properties` of 5.0 in hex.
fn subscribe(level: u8, properties: &str, filters: &[(&str, u8)]) -> String {
    let mut body = "0001".to_owned();
    if level == 5 {
        body += &format!("{:02x}{properties}", properties.len() / 2);
    }
    for (filter, options) in filters {
        let text: String = filter.bytes().map(|byte| format!("{byte:02x}")).collect();
        body += &format!("{:04x}{text}{options:02x}", filter.len());
    }
    format!("82{:02x}{body}", body.len() / 2)
}

#[test]
fn subscriptions_are_granted_as_asked() {
    for level in [4, 5] {
        let mut fixture = Fixture::connected(level);
        fixture.send(&subscribe(level, "", &[("$share/g/a/+", 1), ("a/#", 2), ("b", 0)]));
        let Some(Output::Subscribe {
            subscriptions, reasons, ..
        }) = fixture.connection.outputs.pop()
        else {
            panic!("subscribe")
        };
        assert_eq!(reasons, [ReasonCode(1), ReasonCode(2), ReasonCode(0)]);
        let granted = subscriptions.iter().map(|granted| (&*granted.filter, granted.qos));
        assert_eq!(granted.collect::<Vec<_>>(), [("$share/g/a/+", 1), ("a/#", 2), ("b", 0)]);
    }
}

#[test]
fn subscription_options_and_identifiers_are_kept() {
    let mut fixture = Fixture::connected(5);
    fixture.send(&subscribe(5, "0b07", &[("a", 0b10_1101)]));
    let Some(Output::Subscribe { subscriptions, .. }) = fixture.connection.outputs.pop() else {
        panic!("subscribe")
    };
    let expected = Subscription {
        filter: "a".into(),
        qos: 1,
        no_local: true,
        retain_as_published: true,
        retain_handling: 2,
        identifier: Some(7),
        exclusive: false,
    };
    assert_eq!(subscriptions, [expected]);
}

#[test]
fn an_exclusive_filter_is_what_stands_behind_it() {
    let mut fixture = Fixture::connected(5);
    fixture.send(&subscribe(5, "", &[("$exclusive/a/+", 1), ("a/+", 0)]));
    let Some(Output::Subscribe { subscriptions, .. }) = fixture.connection.outputs.pop() else {
        panic!("subscribe")
    };
    let asked: Vec<(&str, bool)> = subscriptions.iter().map(|one| (&*one.filter, one.exclusive)).collect();
    assert_eq!(asked, [("a/+", true), ("a/+", false)]);
}

#[test]
fn wrong_subscriptions_end_the_connection() {
    let (protocol, filter) = (ReasonCode::PROTOCOL_ERROR, ReasonCode::TOPIC_FILTER_INVALID);
    for (properties, topic, options, reason) in [
        ("", "$share/g/a", 0b100, protocol), // No Local [MQTT-3.8.3-4]
        ("0b00", "a", 0, protocol),          // Subscription Identifier 0
        ("", "$share/g", 0, filter),
        ("", "$share//a", 0, filter),
        ("", "$share/+/a", 0, filter),
        ("", "$share/g/", 0, filter),
        ("", "$exclusive/", 0, filter),
        ("", "$exclusive/a#", 0, filter),
        ("", "$exclusive/$share/g/a", 0, filter),
        ("", "$exclusive/$queue/a", 0, filter),
        ("", "$exclusive/$exclusive/a", 0, filter),
    ] {
        let mut fixture = Fixture::connected(5);
        fixture.send(&subscribe(5, properties, &[(topic, options)]));
        assert_eq!(fixture.reason(), Some(reason), "{topic} {options} {properties}");
    }
}

#[test]
fn an_answer_that_the_client_has_no_room_for_ends_the_connection() {
    // Maximum Packet Size 40: a SUBACK of 35 codes fits, of 36 not.
    for (filters, expected) in [(35, None), (36, Some(ReasonCode::PACKET_TOO_LARGE))] {
        let mut fixture = Fixture::with_properties("2700000028");
        fixture
            .connection
            .subscribed(NonZeroU16::MIN, vec![ReasonCode(0); filters]);
        assert_eq!(fixture.reason(), expected);
        assert!(
            fixture
                .sent()
                .starts_with(if expected.is_none() { "9026" } else { "e00195" })
        );
    }
}

#[test]
fn a_connack_beyond_the_clients_packet_size_is_not_sent() {
    let mut fixture = Fixture::with_properties("2700000005");
    assert_eq!(fixture.reason(), Some(ReasonCode::PACKET_TOO_LARGE));
    assert_eq!(fixture.sent(), "", "and no DISCONNECT without CONNACK");
}

#[test]
fn problem_information_is_for_those_who_want_it() {
    for (properties, has_string) in [("", true), ("1700", false)] {
        let mut fixture = Fixture::with_properties(properties);
        fixture
            .connection
            .subscribed(NonZeroU16::MIN, vec![ReasonCode::UNSPECIFIED_ERROR]);
        assert_eq!(fixture.sent().len() > 12, has_string, "SUBACK");
        fixture.send("32080003616263000700");
        let Some(Output::Publish { token: Some(token), .. }) = fixture.connection.outputs.pop() else {
            panic!("publish")
        };
        fixture.decide(token, ReasonCode::QUOTA_EXCEEDED);
        assert_eq!(fixture.sent().len() > 10, has_string, "PUBACK");
        fixture.connection.close(ReasonCode::SERVER_BUSY, Some("why"));
        assert!(fixture.sent().ends_with("776879"), "DISCONNECT may always tell");
    }
}

#[test]
fn session_expiry_may_be_changed_at_disconnect_unless_it_was_0() {
    let (kept, zero) = ("1100000064", "");
    for (properties, frame, reason, expiry) in [
        (kept, "e00700051100000005", ReasonCode::SUCCESS, 5),
        (kept, "e00700051100000000", ReasonCode::SUCCESS, 0),
        (kept, "e000", ReasonCode::SUCCESS, 100),
        (zero, "e00700051100000000", ReasonCode::SUCCESS, 0),
        (zero, "e00700051100000005", ReasonCode::PROTOCOL_ERROR, 0), // [MQTT-3.14.2-2]
    ] {
        let mut fixture = Fixture::with_properties(properties);
        fixture.send(frame);
        let ending = fixture.connection.ending().unwrap();
        assert_eq!(ending.reason, reason, "{properties} {frame}");
        assert_eq!(
            fixture.connection.session_expiry(ending),
            expiry,
            "{properties} {frame}"
        );
        assert_eq!(ending.discard_will, reason == ReasonCode::SUCCESS);
    }
}

#[test]
fn disconnect_discards_the_will_only_with_reason_0() {
    for (frame, discarded) in [("e000", true), ("e00104", false)] {
        let mut fixture = Fixture::connected(5);
        fixture.send(frame);
        assert_eq!(
            fixture.connection.ending().map(|ending| ending.discard_will),
            Some(discarded)
        );
    }
}

#[test]
fn what_the_publisher_said_of_its_message_arrives_unaltered() {
    // Payload Format, Message Expiry 9 s, Response Topic, Correlation Data, Content Type, and User Properties in order.
    let properties = "01010200000009080001720900020001030003742f65260001620001312600016100013226000162000133";
    let publish = format!(
        "33{:02x}0001740007{:02x}{properties}6d",
        7 + properties.len() / 2,
        properties.len() / 2
    );
    let mut fixture = Fixture::connected(5);
    fixture.sent();
    fixture.send(&publish);
    let Some(Output::Publish { publish: came, .. }) = fixture.connection.outputs.pop() else {
        panic!("publish")
    };
    let message = Message {
        topic: came.topic().into(),
        payload: came.payload_bytes(),
        qos: 1,
        retain: true,
        publisher: SessionId(1),
        expiry_interval: came.message_expiry_interval(),
        properties: codec::forwarded_properties(came.properties_raw())
            .unwrap()
            .into_owned()
            .into(),
    };
    let delivery = Delivery {
        message: Arc::new(message),
        qos: 0,
        retain: false,
        subscription_identifiers: vec![7, 300],
        age: None,
        settle: None,
    };
    let connection = &mut fixture.connection;
    let mut frames = FrameCache::default();
    connection.outbound.deliver(
        delivery,
        None,
        &mut frames,
        &mut connection.out,
        &mut connection.effects,
    );
    let sent = codec::decode(
        connection.out.split().freeze(),
        Some(Version::V5),
        Direction::ServerToClient,
        &Limits::default(),
    );
    let Ok(Packet::Publish(left)) = sent else {
        panic!("{sent:?}")
    };
    assert_eq!(left.payload_format_indicator(), Some(1));
    assert_eq!(left.message_expiry_interval(), Some(9));
    assert_eq!(left.response_topic(), Some("r"));
    assert_eq!(left.correlation_data(), Some(&[0, 1][..]));
    assert_eq!(left.content_type(), Some("t/e"));
    let user: Vec<_> = left.user_properties().collect();
    assert_eq!(user, [("b", "1"), ("a", "2"), ("b", "3")]);
    assert_eq!(left.subscription_identifiers().collect::<Vec<_>>(), [7, 300]);
    assert_eq!((left.topic(), left.payload()), ("t", &b"m"[..]));
}

#[test]
fn a_publish_whose_identifier_is_being_released_waits() {
    let mut fixture = Fixture::connected(4);
    fixture.sent();
    fixture.send("6202000a");
    let Some(Output::Release { token, .. }) = fixture.connection.outputs.pop() else {
        panic!("release")
    };
    fixture.send("34070003616263000a");
    assert!(!fixture.connection.wants_packets());
    let pump = |fixture: &mut Fixture| fixture.connection.pump(|_| LogTime(0), fixture.now);
    pump(&mut fixture);
    assert!(fixture.published().is_empty());
    fixture.decide(token, ReasonCode::SUCCESS);
    pump(&mut fixture);
    assert_eq!((fixture.sent().as_str(), fixture.published().len()), ("7002000a", 1));
    assert!(fixture.connection.wants_packets());
}

/// A message of a subscription, handed to the client.
fn hand_over(fixture: &mut Fixture, payload: &'static str) {
    let message = Message {
        topic: "t".into(),
        payload: Bytes::from_static(payload.as_bytes()),
        qos: 0,
        retain: false,
        publisher: SessionId(2),
        expiry_interval: None,
        properties: Bytes::new(),
    };
    let delivery = Delivery {
        message: Arc::new(message),
        qos: 0,
        retain: false,
        subscription_identifiers: Vec::new(),
        age: None,
        settle: None,
    };
    let connection = &mut fixture.connection;
    let mut frames = FrameCache::default();
    connection.outbound.deliver(
        delivery,
        None,
        &mut frames,
        &mut connection.out,
        &mut connection.effects,
    );
}

/// What goes to the socket: payloads, and the reason of DISCONNECT.
fn taken(fixture: &mut Fixture) -> Vec<String> {
    let mut out = fixture.connection.take_out();
    let mut taken = Vec::new();
    while let Ok(Some(length)) = codec::frame_length(&out, &Limits::default(), Some(Version::V5)) {
        let frame = out.split_to(length).freeze();
        let packet = codec::decode(frame, Some(Version::V5), Direction::ServerToClient, &Limits::default());
        taken.push(match packet {
            Ok(Packet::Publish(publish)) => String::from_utf8_lossy(publish.payload()).into_owned(),
            Ok(Packet::Disconnect(disconnect)) => format!("{:02x}", disconnect.reason.0),
            Ok(Packet::ConnAck(_)) => "CONNACK".to_owned(),
            other => panic!("{other:?}"),
        });
    }
    taken
}

#[test]
fn what_is_withheld_leaves_in_order_once_it_may() {
    let mut fixture = Fixture::connected(5);
    assert_eq!(taken(&mut fixture), ["CONNACK"]);
    hand_over(&mut fixture, "a");
    fixture.connection.set_withheld(true);
    hand_over(&mut fixture, "b");
    fixture.connection.pump(|_| LogTime(0), fixture.now);
    assert!(taken(&mut fixture).is_empty());
    fixture.connection.set_withheld(false);
    hand_over(&mut fixture, "c");
    assert_eq!(taken(&mut fixture), ["a", "b", "c"]);
}

#[test]
fn what_is_withheld_goes_with_the_connection() {
    for close_comes_first in [false, true] {
        let mut fixture = Fixture::connected(5);
        assert_eq!(taken(&mut fixture), ["CONNACK"]);
        hand_over(&mut fixture, "a");
        fixture.connection.set_withheld(!close_comes_first);
        fixture.connection.close(ReasonCode::SERVER_BUSY, None);
        fixture.connection.set_withheld(true);
        hand_over(&mut fixture, "b");
        assert_eq!(taken(&mut fixture), ["89"], "close first: {close_comes_first}");
        assert!(taken(&mut fixture).is_empty());
    }
}

#[test]
fn a_connection_that_ends_in_its_time_says_all_it_had_to_say() {
    let mut fixture = Fixture::connected(5);
    hand_over(&mut fixture, "a");
    fixture.connection.close(ReasonCode::SERVER_SHUTTING_DOWN, None);
    hand_over(&mut fixture, "behind the DISCONNECT");
    assert_eq!(taken(&mut fixture), ["CONNACK", "a", "8b"]);
}

/// [MQTT-3.14.0-1]
#[test]
fn who_has_no_connack_is_not_told_why_it_ends() {
    let mut fixture = Fixture::connected(5);
    fixture.connection.set_withheld(true);
    fixture.connection.close(ReasonCode::SESSION_TAKEN_OVER, None);
    assert!(taken(&mut fixture).is_empty());
}

#[test]
fn time_without_a_lease_counts_against_nobody() {
    let mut fixture = Fixture::connected(5);
    let deadline = fixture.connection.next_deadline().unwrap();
    fixture.connection.set_withheld(true);
    assert_eq!(fixture.connection.next_deadline(), None);
    fixture.connection.deadline_passed(deadline + Duration::from_secs(1));
    assert_eq!(fixture.reason(), None, "the deadline comes before the renewal");
    let renewed = deadline + Duration::from_secs(2);
    fixture.connection.set_withheld(false);
    fixture.connection.resumed(renewed);
    fixture.connection.deadline_passed(renewed);
    assert_eq!(fixture.reason(), None);
    assert_eq!(
        fixture.connection.next_deadline(),
        Some(renewed + Duration::from_secs(90))
    );
    fixture.connection.deadline_passed(renewed + Duration::from_secs(90));
    assert_eq!(fixture.reason(), Some(ReasonCode::KEEP_ALIVE_TIMEOUT));
}
