//! mqttbytes as a second opinion on what the strict layer accepts, and one test per defect of it that pins our
//! behaviour.

use super::super::tests::*;
use super::super::*;
use super::*;

/// What mqttbytes 0.6.0 makes of a frame, if this is a packet it can be trusted with after the check.
fn second_opinion(packet: &Packet, frame: &[u8], version: Version, direction: Direction) -> Option<Result<(), String>> {
    let from_client = direction == Direction::ClientToServer;
    match packet {
        Packet::Subscribe(_) | Packet::SubAck(_) | Packet::UnsubAck(_) | Packet::ConnAck(_) => {}
        Packet::PubAck(_) | Packet::PubRec(_) | Packet::PubRel(_) | Packet::PubComp(_) => {}
        Packet::Unsubscribe(_) if !version.is_v5() => {}
        Packet::Publish(_) if !version.is_v5() || from_client => {}
        _ => return None,
    }
    let mut stream = BytesMut::from(frame);
    Some(match version {
        Version::V5 => match v5::read(&mut stream, usize::MAX) {
            Ok(theirs) if !stream.is_empty() => Err(format!("bytes left over after {theirs:?}")),
            Ok(theirs) => agrees_v5(packet, &theirs),
            Err(error) => Err(format!("{error:?}")),
        },
        Version::V3_1 | Version::V3_1_1 => match v4::read(&mut stream, usize::MAX) {
            Ok(theirs) if !stream.is_empty() => Err(format!("bytes left over after {theirs:?}")),
            Ok(theirs) => agrees_v4(packet, &theirs),
            Err(error) => Err(format!("{error:?}")),
        },
    })
}

fn agrees_v4(ours: &Packet, theirs: &v4::Packet) -> Result<(), String> {
    let agree = match (ours, theirs) {
        (Packet::Publish(ours), v4::Packet::Publish(theirs)) => {
            ours.topic() == theirs.topic
                && ours.payload() == theirs.payload
                && ours.packet_id().map_or(0, NonZeroU16::get) == theirs.pkid
        }
        (Packet::PubAck(ours), v4::Packet::PubAck(theirs)) => ours.packet_id.get() == theirs.pkid,
        (Packet::PubRec(ours), v4::Packet::PubRec(theirs)) => ours.packet_id.get() == theirs.pkid,
        (Packet::PubRel(ours), v4::Packet::PubRel(theirs)) => ours.packet_id.get() == theirs.pkid,
        (Packet::PubComp(ours), v4::Packet::PubComp(theirs)) => ours.packet_id.get() == theirs.pkid,
        (Packet::Subscribe(_), v4::Packet::Subscribe(_))
        | (Packet::SubAck(_), v4::Packet::SubAck(_))
        | (Packet::Unsubscribe(_), v4::Packet::Unsubscribe(_))
        | (Packet::UnsubAck(_), v4::Packet::UnsubAck(_))
        | (Packet::ConnAck(_), v4::Packet::ConnAck(_)) => true,
        _ => false,
    };
    if agree { Ok(()) } else { Err(format!("{theirs:?}")) }
}

fn agrees_v5(ours: &Packet, theirs: &v5::Packet) -> Result<(), String> {
    let agree = match (ours, theirs) {
        (Packet::Publish(ours), v5::Packet::Publish(theirs)) => {
            let properties = theirs.properties.as_ref();
            ours.topic() == theirs.topic
                && ours.payload() == theirs.payload
                && ours.packet_id().map_or(0, NonZeroU16::get) == theirs.pkid
                && ours.topic_alias() == properties.and_then(|properties| properties.topic_alias)
                && ours.message_expiry_interval()
                    == properties.and_then(|properties| properties.message_expiry_interval)
                && ours.content_type().map(str::to_owned)
                    == properties.and_then(|properties| properties.content_type.clone())
                && ours.user_properties().count() == properties.map_or(0, |properties| properties.user_properties.len())
        }
        (Packet::PubAck(ours), v5::Packet::PubAck(theirs)) => {
            ours.packet_id.get() == theirs.pkid && ours.reason.0 == theirs.reason as u8
        }
        (Packet::PubRec(ours), v5::Packet::PubRec(theirs)) => {
            ours.packet_id.get() == theirs.pkid && ours.reason.0 == theirs.reason as u8
        }
        (Packet::PubRel(ours), v5::Packet::PubRel(theirs)) => {
            ours.packet_id.get() == theirs.pkid && ours.reason.0 == theirs.reason as u8
        }
        (Packet::PubComp(ours), v5::Packet::PubComp(theirs)) => {
            ours.packet_id.get() == theirs.pkid && ours.reason.0 == theirs.reason as u8
        }
        (Packet::Subscribe(_), v5::Packet::Subscribe(_))
        | (Packet::SubAck(_), v5::Packet::SubAck(_))
        | (Packet::UnsubAck(_), v5::Packet::UnsubAck(_))
        | (Packet::ConnAck(_), v5::Packet::ConnAck(_)) => true,
        _ => false,
    };
    if agree { Ok(()) } else { Err(format!("{theirs:?}")) }
}

#[test]
fn what_the_strict_layer_accepts_mqttbytes_accepts_whole() {
    let corpus = corpus();
    let mut random = Random(0x10_7A_4A_03);
    let mut compared = 0;
    for _ in 0..120_000 {
        let frame = Bytes::from(mutated(&corpus, &mut random));
        for version in VERSIONS {
            for direction in DIRECTIONS {
                let Ok(packet) = decode(frame.clone(), Some(version), direction, &Limits::default()) else {
                    continue;
                };
                let Some(opinion) = second_opinion(&packet, &frame, version, direction) else {
                    continue;
                };
                compared += 1;
                if let Err(theirs) = opinion {
                    panic!("{} in {version:?}: ours {packet:?}, mqttbytes {theirs}", to_hex(&frame));
                }
            }
        }
    }
    assert!(compared > 50_000, "{compared} frames were compared");
}

#[test]
fn mqttbytes_as_a_client_is_understood() {
    let mut out = BytesMut::new();
    let mut connect = v5::Connect::new("client");
    connect.keep_alive = 5;
    connect.write(&mut out).expect("their own packet");
    let packet = decode(
        out.split().freeze(),
        None,
        Direction::ClientToServer,
        &Limits::default(),
    );
    assert!(matches!(packet, Ok(Packet::Connect(own)) if own.client_id == "client" && own.keep_alive_seconds == 5));

    let mut unsubscribe = v5::Unsubscribe::new("a/b");
    unsubscribe.pkid = 3;
    unsubscribe.write(&mut out).expect("their own packet");
    let packet = decode(
        out.split().freeze(),
        Some(Version::V5),
        Direction::ClientToServer,
        &Limits::default(),
    );
    assert!(matches!(packet, Ok(Packet::Unsubscribe(unsubscribe)) if unsubscribe.filters == ["a/b"]));

    let mut publish = v5::Publish::new("a/b", mqttbytes::QoS::AtLeastOnce, "hi");
    publish.pkid = 3;
    publish.write(&mut out).expect("their own packet");
    let packet = decode(
        out.split().freeze(),
        Some(Version::V5),
        Direction::ClientToServer,
        &Limits::default(),
    );
    assert!(matches!(packet, Ok(Packet::Publish(publish)) if publish.payload() == b"hi"));
}

#[test]
fn d1_a_normal_disconnect_is_no_error() {
    let packet = receive("e000", Version::V5, Direction::ClientToServer);
    assert_eq!(
        packet,
        Ok(Packet::Disconnect(Disconnect::new(ReasonCode::NORMAL_DISCONNECTION)))
    );
}

#[test]
fn d2_a_disconnect_of_a_reason_only_is_not_lost() {
    let packet = receive("e00104", Version::V5, Direction::ClientToServer);
    assert_eq!(
        packet,
        Ok(Packet::Disconnect(Disconnect::new(
            ReasonCode::DISCONNECT_WITH_WILL_MESSAGE
        )))
    );
    let packet = receive("e0018e", Version::V5, Direction::ServerToClient);
    assert_eq!(
        packet,
        Ok(Packet::Disconnect(Disconnect::new(ReasonCode::SESSION_TAKEN_OVER)))
    );
}

#[test]
fn d3_a_cut_property_length_is_malformed_and_never_a_wait() {
    for (frame, direction) in [
        ("20020000", Direction::ServerToClient),
        ("30020000", Direction::ClientToServer),
        ("82020001", Direction::ClientToServer),
        ("a2020001", Direction::ClientToServer),
        ("400400071080", Direction::ClientToServer),
        ("e0020080", Direction::ClientToServer),
        ("100a00044d51545405000000", Direction::ClientToServer),
    ] {
        let violation = receive(frame, Version::V5, direction).expect_err(frame);
        assert_eq!(violation.reason, ReasonCode::MALFORMED_PACKET, "{frame}");
    }
}

/// It would print to stderr, and panic when that is a broken pipe: so it must not be reachable at all.
#[test]
fn d4_a_v5_unsubscribe_never_reaches_mqttbytes() {
    let packet = receive("a206000100000161", Version::V5, Direction::ClientToServer);
    assert!(matches!(packet, Ok(Packet::Unsubscribe(unsubscribe)) if unsubscribe.filters == ["a"]));
    let source = include_str!("../control.rs");
    assert!(!source.contains("v5::Unsubscribe") && !source.contains("v5::read"));
}

#[test]
fn d5_subscription_identifiers_stay_out_of_the_payload() {
    for (frame, identifiers) in [
        ("300e0003612f62060b010b020b036869", vec![1, 2, 3]),
        ("300e0003612f62060b010b0201016869", vec![1, 2]),
    ] {
        let packet = receive(frame, Version::V5, Direction::ServerToClient);
        let Ok(Packet::Publish(publish)) = packet else {
            panic!("{packet:?}")
        };
        assert_eq!(publish.payload(), b"hi", "{frame}");
        assert_eq!(
            publish.subscription_identifiers().collect::<Vec<_>>(),
            identifiers,
            "{frame}"
        );
    }
}

#[test]
fn e1_a_connack_without_properties_has_a_property_length() {
    let mut out = BytesMut::new();
    let connack = ConnAck {
        session_present: false,
        reason: ReasonCode::SUCCESS,
        properties: ConnAckProperties::default(),
    };
    encode_connack(Version::V5, &connack, &mut out).expect("legal");
    assert_eq!(to_hex(&out), "2003000000");
}

#[test]
fn e2_a_disconnect_keeps_its_reason() {
    let mut out = BytesMut::new();
    encode_disconnect(Version::V5, &Disconnect::new(ReasonCode::SERVER_BUSY), &mut out).expect("legal");
    encode_disconnect(
        Version::V5,
        &Disconnect::new(ReasonCode::NORMAL_DISCONNECTION),
        &mut out,
    )
    .expect("legal");
    assert_eq!(to_hex(&out), "e00189e000");
}

#[test]
fn e3_a_connect_behind_other_bytes_leaves_them_alone() {
    let connect = "101400044d51545405c2003c00000163000175000170";
    let Ok(Packet::Connect(packet)) = receive(connect, Version::V5, Direction::ClientToServer) else {
        panic!()
    };
    let mut out = BytesMut::from(&hex("30140009746f7069632f6f6e65")[..]);
    encode_connect(&packet, &mut out).expect("legal");
    assert_eq!(to_hex(&out), "30140009746f7069632f6f6e65".to_owned() + connect);
}

#[test]
fn e4_a_string_above_65535_bytes_is_an_error() {
    let long = "a".repeat(65_536);
    let mut out = BytesMut::from(&b"before"[..]);
    let properties = ConnAckProperties {
        server_reference: Some(long.clone()),
        ..ConnAckProperties::default()
    };
    let connack = ConnAck {
        session_present: false,
        reason: ReasonCode::USE_ANOTHER_SERVER,
        properties,
    };
    let too_long = |field| Err(EncodeError::FieldTooLong { field, bytes: 65_536 });
    assert_eq!(
        encode_connack(Version::V5, &connack, &mut out),
        too_long("server reference")
    );
    let user_properties = vec![("a".to_owned(), long.clone())];
    let id = super::super::tests::packet_id(1);
    let suback = SubAck {
        user_properties: user_properties.clone(),
        ..SubAck::new(id, vec![ReasonCode::SUCCESS])
    };
    assert_eq!(
        encode_suback(Version::V5, &suback, &mut out),
        too_long("user property value")
    );
    let unsuback = UnsubAck {
        reason_string: Some(long),
        ..UnsubAck::new(id, vec![ReasonCode::SUCCESS])
    };
    assert_eq!(
        encode_unsuback(Version::V5, &unsuback, &mut out),
        too_long("reason string")
    );
    assert_eq!(&out[..], b"before");
}

#[test]
fn e5_an_error_leaves_nothing_in_the_buffer() {
    let fields = PublishFields {
        version: Version::V5,
        qos: QoS::AtLeastOnce,
        retain: false,
        topic: "a/b",
        properties: PropertiesOut {
            subscription_identifiers: &[268_435_456],
            ..PropertiesOut::default()
        },
        payload: b"hi",
    };
    assert_eq!(
        PublishFrame::encode(&fields).err(),
        Some(EncodeError::SubscriptionIdentifier(268_435_456))
    );
    let mut out = BytesMut::from(&b"before"[..]);
    let suback = SubAck::new(super::super::tests::packet_id(1), vec![ReasonCode::SERVER_BUSY]);
    assert!(encode_suback(Version::V5, &suback, &mut out).is_err());
    let properties = ConnAckProperties {
        receive_maximum: Some(0),
        ..ConnAckProperties::default()
    };
    let connack = ConnAck {
        session_present: false,
        reason: ReasonCode::SUCCESS,
        properties,
    };
    assert!(matches!(
        encode_connack(Version::V5, &connack, &mut out),
        Err(EncodeError::Refused(_))
    ));
    assert_eq!(&out[..], b"before");
}

/// Its matcher cuts a topic after its first byte and panics inside a character.
#[test]
fn t1_a_topic_may_begin_with_any_character() {
    let packet = receive("30070004c3a92f7831", Version::V3_1_1, Direction::ClientToServer);
    assert!(matches!(packet, Ok(Packet::Publish(publish)) if publish.topic() == "é/x"));
    assert_eq!(topic_grammar::check_topic_name("é"), Ok(()));
    let source = include_str!("../control.rs");
    assert!(!source.contains("mqttbytes::matches") && !source.contains("topic::matches"));
}
