//! Packets in, bytes and outputs out: no socket, no clock, no cluster.

use bytes::Bytes;

use super::*;
use crate::protocol::codec::{self, Direction, Limits};

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
        outbox_bytes_max: 1 << 20,
        outbox_messages_max: 10,
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
        let Some(Output::Connect(accepted)) = fixture.connection.outputs.pop() else {
            panic!("asks to be attached")
        };
        let served = Served {
            session: SessionId(1),
            epoch: SessionEpoch(1),
            present: false,
        };
        assert!(fixture.connection.attached(accepted, served, 12, false, fixture.now));
        fixture
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

    fn reason(&self) -> Option<ReasonCode> {
        self.connection.ending().map(|ending| ending.reason)
    }
}

#[test]
fn connack_tells_what_is_granted() {
    assert_eq!(Fixture::connected(4).sent(), "20020000");
    let sent = Fixture::connected(5).sent();
    assert!(sent.starts_with("20"), "{sent}");
    for (property, name) in [
        ("2401", "Maximum QoS 1"),
        ("2500", "Retain Available 0"),
        ("2a00", "Shared 0"),
        ("210002", "Receive Maximum 2"),
    ] {
        assert!(sent.contains(property), "{name} in {sent}");
    }
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
    let connection = &mut fixture.connection;
    connection
        .inbound
        .decide(token, ReasonCode::SUCCESS, &mut connection.out);
    assert_eq!(fixture.sent(), "40020007");
}

#[test]
fn what_was_told_is_not_available_is_refused_with_its_reason() {
    for (frame, reason) in [
        ("34080003616263000700", ReasonCode::QOS_NOT_SUPPORTED),
        ("3106000361626300", ReasonCode::RETAIN_NOT_SUPPORTED),
        ("3009000361626303230001", ReasonCode::TOPIC_ALIAS_INVALID),
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

#[test]
fn a_shared_subscription_is_refused_by_filter() {
    let mut fixture = Fixture::connected(5);
    let filters = [("$share/g/a", 1u8), ("a/#", 2)];
    let mut body = vec![0, 1, 0];
    for (filter, options) in filters {
        body.extend_from_slice(&(filter.len() as u16).to_be_bytes());
        body.extend_from_slice(filter.as_bytes());
        body.push(options);
    }
    let mut frame = vec![0x82, body.len() as u8];
    frame.extend_from_slice(&body);
    let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
    fixture.send(&hex);
    let Some(Output::Subscribe {
        subscriptions, reasons, ..
    }) = fixture.connection.outputs.pop()
    else {
        panic!("subscribe")
    };
    assert_eq!(reasons, [ReasonCode::SHARED_SUBSCRIPTIONS_NOT_SUPPORTED, ReasonCode(1)]);
    assert_eq!(subscriptions.len(), 1);
    assert_eq!(subscriptions[0].qos, 1, "granted QoS 1 for 2");
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
