//! Every packet with every property: encoded, decoded, equal. And the bytes of the frames that matter most.

use super::*;

fn pairs() -> UserProperties {
    vec![
        ("a".to_owned(), "1".to_owned()),
        ("a".to_owned(), String::new()),
        ("é".to_owned(), "2".to_owned()),
    ]
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn data(bytes: &'static [u8]) -> Option<Bytes> {
    Some(Bytes::from_static(bytes))
}

/// Packets of every type in this version, most with everything the version can carry.
pub(in super::super) fn packets(version: Version) -> Vec<(Packet, Direction)> {
    let c2s = Direction::ClientToServer;
    let s2c = Direction::ServerToClient;
    let mut packets = Vec::new();
    packets.extend(
        connects(version)
            .into_iter()
            .map(|connect| (Packet::Connect(Box::new(connect)), c2s)),
    );
    packets.extend(
        connacks(version)
            .into_iter()
            .map(|connack| (Packet::ConnAck(Box::new(connack)), s2c)),
    );
    packets.extend(publishes(version));
    packets.extend(acks(version));
    packets.extend(subscriptions(version));
    packets.push((Packet::PingReq, c2s));
    packets.push((Packet::PingResp, s2c));
    packets.push((Packet::Disconnect(Disconnect::new(ReasonCode::SUCCESS)), c2s));
    if version.is_v5() {
        packets.extend(disconnects_and_auths());
    }
    packets
}

fn connects(version: Version) -> Vec<Connect> {
    let plain = Connect {
        version,
        clean_start: true,
        keep_alive_seconds: 60,
        client_id: "c".to_owned(),
        will: None,
        user_name: None,
        password: None,
        properties: ConnectProperties::default(),
    };
    let will = Will {
        topic: "will/t".to_owned(),
        payload: Bytes::from_static(b"\x00gone"),
        qos: QoS::ExactlyOnce,
        retain: true,
        properties: WillProperties::default(),
    };
    let full = Connect {
        clean_start: false,
        will: Some(will),
        user_name: text(""),
        password: data(&[0xFF, 0, 0xFE]),
        ..plain.clone()
    };
    if !version.is_v5() {
        return vec![plain, full];
    }
    let mut v5 = full.clone();
    v5.properties = ConnectProperties {
        session_expiry_interval: Some(u32::MAX),
        receive_maximum: Some(1),
        maximum_packet_size: Some(1),
        topic_alias_maximum: 9,
        request_response_information: true,
        request_problem_information: false,
        user_properties: pairs(),
        authentication_method: text("SCRAM"),
        authentication_data: data(&[0, 1]),
    };
    if let Some(will) = &mut v5.will {
        will.properties = WillProperties {
            delay_interval: 5,
            payload_format_indicator: Some(1),
            message_expiry_interval: Some(0),
            content_type: text("text/plain"),
            response_topic: text("answer"),
            correlation_data: data(&[0]),
            user_properties: pairs(),
        };
    }
    let password_only = Connect {
        client_id: String::new(),
        password: data(b"p"),
        ..plain.clone()
    };
    vec![plain, full, v5, password_only]
}

fn connacks(version: Version) -> Vec<ConnAck> {
    let connack = |reason| ConnAck {
        session_present: false,
        reason,
        properties: ConnAckProperties::default(),
    };
    let mut connacks = vec![connack(ReasonCode::SUCCESS), connack(ReasonCode::NOT_AUTHORIZED)];
    if version != Version::V3_1 {
        connacks.push(ConnAck {
            session_present: true,
            ..connack(ReasonCode::SUCCESS)
        });
    }
    if version.is_v5() {
        connacks.push(ConnAck {
            session_present: true,
            reason: ReasonCode::SUCCESS,
            properties: ConnAckProperties {
                session_expiry_interval: Some(1),
                receive_maximum: Some(2),
                maximum_qos: Some(QoS::AtLeastOnce),
                retain_available: Some(true),
                maximum_packet_size: Some(3),
                assigned_client_identifier: text("id"),
                topic_alias_maximum: Some(0),
                reason_string: text("why"),
                user_properties: pairs(),
                wildcard_subscription_available: Some(true),
                subscription_identifiers_available: Some(false),
                shared_subscription_available: Some(true),
                server_keep_alive: Some(30),
                response_information: text("r"),
                server_reference: text("other:1883"),
                authentication_method: text("m"),
                authentication_data: data(&[]),
            },
        });
    }
    connacks
}

fn publishes(version: Version) -> Vec<(Packet, Direction)> {
    let properties: &[u8] = &[
        0x01, 1, 0x02, 0, 0, 0, 9, 0x08, 0, 1, b'r', 0x26, 0, 1, b'a', 0, 1, b'1', 0x09, 0, 1, 0, 0x26, 0, 1, b'a', 0,
        0, 0x03, 0, 1, b'c',
    ];
    let mut packets = Vec::new();
    for (qos, dup) in [
        (QoS::AtMostOnce, false),
        (QoS::AtLeastOnce, false),
        (QoS::ExactlyOnce, true),
    ] {
        for direction in DIRECTIONS {
            let from_server = direction == Direction::ServerToClient;
            let aliased = version.is_v5() && dup;
            let fields = PublishFields {
                version,
                qos,
                retain: dup,
                topic: if aliased { "" } else { "é/b" },
                properties: PropertiesOut {
                    forwarded: properties,
                    message_expiry_interval: None,
                    subscription_identifiers: if from_server { &[1, 268_435_455, 1] } else { &[] },
                    topic_alias: aliased.then_some(7),
                },
                payload: b"hi\x00",
            };
            let mut out = BytesMut::new();
            PublishFrame::encode(&fields)
                .expect("legal")
                .append(Some(packet_id(0x0102)), dup, &mut out);
            let packet = decode(out.freeze(), Some(version), direction, &Limits::default()).expect("our own PUBLISH");
            packets.push((packet, direction));
        }
    }
    packets
}

fn acks(version: Version) -> Vec<(Packet, Direction)> {
    let mut packets = Vec::new();
    for direction in DIRECTIONS {
        for wrap in [Packet::PubAck, Packet::PubRec, Packet::PubRel, Packet::PubComp] {
            packets.push((wrap(Ack::new(packet_id(65_535), ReasonCode::SUCCESS)), direction));
            if version.is_v5() {
                let full = Ack {
                    reason_string: text("why"),
                    user_properties: pairs(),
                    ..Ack::new(packet_id(1), ReasonCode::SUCCESS)
                };
                packets.push((wrap(full), direction));
            }
        }
        if version.is_v5() {
            packets.push((
                Packet::PubAck(Ack::new(packet_id(1), ReasonCode::QUOTA_EXCEEDED)),
                direction,
            ));
            packets.push((
                Packet::PubComp(Ack::new(packet_id(1), ReasonCode::PACKET_IDENTIFIER_NOT_FOUND)),
                direction,
            ));
        }
    }
    packets
}

fn subscriptions(version: Version) -> Vec<(Packet, Direction)> {
    let v5 = version.is_v5();
    let user_properties = if v5 { pairs() } else { Vec::new() };
    let filter = |filter: &str, qos, shared: bool| SubscribeFilter {
        filter: filter.to_owned(),
        qos,
        no_local: v5 && !shared,
        retain_as_published: v5,
        retain_handling: if v5 { 2 } else { 0 },
        valid: Ok(()),
    };
    let subscribe = Subscribe {
        packet_id: packet_id(10),
        subscription_identifier: v5.then_some(268_435_455),
        filters: vec![
            filter("a/+/#", QoS::ExactlyOnce, false),
            filter("$share/g/é", QoS::AtMostOnce, true),
        ],
        user_properties: user_properties.clone(),
    };
    let plain = Subscribe {
        subscription_identifier: None,
        user_properties: Vec::new(),
        ..subscribe.clone()
    };
    let unsubscribe = Unsubscribe {
        packet_id: packet_id(11),
        filters: vec!["a/+/#".to_owned(), "$share/g/é".to_owned()],
        user_properties: user_properties.clone(),
    };
    let granted = vec![
        ReasonCode::GRANTED_QOS_2,
        ReasonCode::GRANTED_QOS_0,
        ReasonCode::UNSPECIFIED_ERROR,
    ];
    let mut suback = SubAck::new(packet_id(10), granted);
    let removed = [ReasonCode::SUCCESS, ReasonCode::NO_SUBSCRIPTION_EXISTED];
    let mut unsuback = UnsubAck::new(packet_id(11), if v5 { removed.to_vec() } else { Vec::new() });
    let mut packets = vec![
        (Packet::Subscribe(plain), Direction::ClientToServer),
        (Packet::Subscribe(subscribe), Direction::ClientToServer),
        (Packet::Unsubscribe(unsubscribe), Direction::ClientToServer),
        (Packet::SubAck(suback.clone()), Direction::ServerToClient),
        (Packet::UnsubAck(unsuback.clone()), Direction::ServerToClient),
    ];
    if v5 {
        (suback.reason_string, suback.user_properties) = (text("why"), user_properties.clone());
        (unsuback.reason_string, unsuback.user_properties) = (text(""), user_properties);
        packets.push((Packet::SubAck(suback), Direction::ServerToClient));
        packets.push((Packet::UnsubAck(unsuback), Direction::ServerToClient));
    }
    packets
}

fn disconnects_and_auths() -> Vec<(Packet, Direction)> {
    let from_client = Disconnect {
        session_expiry_interval: Some(0),
        reason_string: text("bye"),
        user_properties: pairs(),
        ..Disconnect::new(ReasonCode::DISCONNECT_WITH_WILL_MESSAGE)
    };
    let from_server = Disconnect {
        server_reference: text("b:1883"),
        ..Disconnect::new(ReasonCode::USE_ANOTHER_SERVER)
    };
    let short = Disconnect::new(ReasonCode::SESSION_TAKEN_OVER);
    let auth = |reason, method| Auth {
        reason,
        authentication_method: method,
        authentication_data: None,
        reason_string: None,
        user_properties: Vec::new(),
    };
    let full = Auth {
        authentication_data: data(&[0, 0xFF]),
        reason_string: text("go on"),
        user_properties: pairs(),
        ..auth(ReasonCode::CONTINUE_AUTHENTICATION, text("SCRAM"))
    };
    vec![
        (Packet::Disconnect(from_client), Direction::ClientToServer),
        (Packet::Disconnect(from_server), Direction::ServerToClient),
        (Packet::Disconnect(short), Direction::ServerToClient),
        (Packet::Auth(auth(ReasonCode::SUCCESS, None)), Direction::ServerToClient),
        (
            Packet::Auth(auth(ReasonCode::RE_AUTHENTICATE, text("m"))),
            Direction::ClientToServer,
        ),
        (Packet::Auth(full.clone()), Direction::ClientToServer),
        (Packet::Auth(full), Direction::ServerToClient),
    ]
}

#[test]
fn every_packet_survives_a_round_trip_behind_other_bytes() {
    for version in VERSIONS {
        for (packet, direction) in packets(version) {
            let mut out = BytesMut::from(&b"before"[..]);
            encode(&packet, version, &mut out).unwrap_or_else(|error| panic!("{version:?} {packet:?}: {error}"));
            assert_eq!(&out[..6], b"before");
            let frame = out.split_off(6).freeze();
            let known = if matches!(packet, Packet::Connect(_)) {
                None
            } else {
                Some(version)
            };
            assert_eq!(frame_length(&frame, &Limits::default(), known), Ok(Some(frame.len())));
            let decoded = decode(frame.clone(), known, direction, &Limits::default());
            let decoded = decoded.unwrap_or_else(|error| panic!("{version:?} {packet:?} {}: {error}", to_hex(&frame)));
            assert!(same(&packet, &decoded), "{version:?}\n{packet:?}\n{decoded:?}");
        }
    }
}

#[test]
fn every_reason_code_of_a_packet_is_encoded_and_decoded() {
    let id = packet_id(1);
    let mut count = 0;
    for reason in (0..=255).map(ReasonCode) {
        for kind in [AckKind::PubAck, AckKind::PubRec, AckKind::PubRel, AckKind::PubComp] {
            let mut out = BytesMut::new();
            if encode_ack_with_properties(kind, Version::V5, &Ack::new(id, reason), &mut out).is_ok() {
                let mut plain = BytesMut::new();
                encode_ack(kind, Version::V5, id, reason, &mut plain);
                assert_eq!(out, plain);
                count += 1;
            } else {
                assert!(out.is_empty());
            }
        }
        for wrap in [
            |id, reason| Packet::SubAck(SubAck::new(id, vec![reason])),
            |id, reason| Packet::UnsubAck(UnsubAck::new(id, vec![reason])),
            |_, reason| Packet::Disconnect(Disconnect::new(reason)),
            |_, reason| {
                Packet::ConnAck(Box::new(ConnAck {
                    session_present: false,
                    reason,
                    properties: Default::default(),
                }))
            },
        ] {
            let packet = wrap(id, reason);
            let mut out = BytesMut::new();
            if encode(&packet, Version::V5, &mut out).is_err() {
                assert!(out.is_empty());
                continue;
            }
            let from_client = reason == ReasonCode::DISCONNECT_WITH_WILL_MESSAGE;
            let direction = if from_client {
                Direction::ClientToServer
            } else {
                Direction::ServerToClient
            };
            assert_eq!(
                decode(out.freeze(), Some(Version::V5), direction, &Limits::default()).as_ref(),
                Ok(&packet)
            );
            count += 1;
        }
    }
    // PUBACK and PUBREC 9, PUBREL and PUBCOMP 2, SUBACK 12, UNSUBACK 7, DISCONNECT 29 and 0x8C, CONNACK 22.
    assert_eq!(count, 2 * 9 + 2 * 2 + 12 + 7 + 30 + 22);
}

#[test]
fn connack_of_3_1_1_maps_reasons_to_return_codes() {
    for (reason, code) in [
        (ReasonCode::SUCCESS, Some(0)),
        (ReasonCode::UNSUPPORTED_PROTOCOL_VERSION, Some(1)),
        (ReasonCode::CLIENT_IDENTIFIER_NOT_VALID, Some(2)),
        (ReasonCode::SERVER_BUSY, Some(3)),
        (ReasonCode::USE_ANOTHER_SERVER, Some(3)),
        (ReasonCode::BAD_USER_NAME_OR_PASSWORD, Some(4)),
        (ReasonCode::BANNED, Some(5)),
        (ReasonCode::MALFORMED_PACKET, None),
        (ReasonCode::PROTOCOL_ERROR, None),
    ] {
        assert_eq!(connack_return_code(reason), code, "{reason}");
        let mut out = BytesMut::new();
        let connack = ConnAck {
            session_present: false,
            reason,
            properties: Default::default(),
        };
        let encoded = encode_connack(Version::V3_1_1, &connack, &mut out);
        match code {
            Some(code) => assert_eq!(out[..], [0x20, 2, 0, code]),
            None => assert!(encoded.is_err() && out.is_empty()),
        }
    }
}

#[test]
fn suback_of_3_1_1_says_failure_once() {
    let mut out = BytesMut::new();
    let suback = SubAck::new(
        packet_id(1),
        vec![ReasonCode::GRANTED_QOS_1, ReasonCode::NOT_AUTHORIZED],
    );
    encode_suback(Version::V3_1_1, &suback, &mut out).expect("legal");
    assert_eq!(to_hex(&out), "900400010180");
}

fn fields(properties: PropertiesOut<'_>) -> PublishFields<'_> {
    PublishFields {
        version: Version::V5,
        qos: QoS::AtLeastOnce,
        retain: true,
        topic: "a/b",
        properties,
        payload: b"hi",
    }
}

#[test]
fn one_publish_frame_serves_many_subscribers() {
    let frame = PublishFrame::encode(&fields(PropertiesOut::default())).expect("legal");
    let mut out = BytesMut::new();
    frame.append(Some(packet_id(0x1234)), false, &mut out);
    frame.append(Some(packet_id(2)), true, &mut out);
    assert_eq!(to_hex(&out), "330a0003612f6212340068693b0a0003612f620002006869");
    assert_eq!(out.len(), 2 * frame.len());

    let mut head = BytesMut::new();
    frame.append_head(Some(packet_id(2)), true, &mut head);
    head.extend_from_slice(&frame.payload_bytes());
    assert_eq!(to_hex(&head), "3b0a0003612f620002006869");

    let at_most_once = PublishFields {
        qos: QoS::AtMostOnce,
        ..fields(PropertiesOut::default())
    };
    let mut out = BytesMut::new();
    let frame = PublishFrame::encode(&at_most_once).expect("legal");
    frame.append(Some(packet_id(2)), true, &mut out);
    assert!(!frame.has_packet_id());
    assert_eq!(to_hex(&out), "31080003612f62006869", "neither identifier nor DUP");

    let v3 = PublishFields {
        version: Version::V3_1_1,
        ..fields(PropertiesOut {
            topic_alias: Some(1),
            ..Default::default()
        })
    };
    let mut out = BytesMut::new();
    PublishFrame::encode(&v3)
        .expect("legal")
        .append(Some(packet_id(2)), false, &mut out);
    assert_eq!(to_hex(&out), "33090003612f6200026869");
}

#[test]
fn properties_of_the_earlier_hop_are_left_out() {
    // alias 1, expiry 9, user a=1, identifier 5
    let received = hex("230001020000000926000161000131".to_owned().as_str());
    let received = [received, hex("0b05")].concat();
    assert_eq!(
        to_hex(&forwarded_properties(&received).expect("a block")),
        "020000000926000161000131"
    );
    assert!(matches!(
        forwarded_properties(&hex("0101")),
        Ok(std::borrow::Cow::Borrowed(_))
    ));
    assert_eq!(forwarded_properties(&hex("01")), Err(EncodeError::BrokenProperties));

    let properties = PropertiesOut {
        forwarded: &received,
        message_expiry_interval: Some(3),
        subscription_identifiers: &[300],
        topic_alias: Some(7),
    };
    let mut out = BytesMut::new();
    PublishFrame::encode(&fields(properties))
        .expect("legal")
        .append(Some(packet_id(1)), false, &mut out);
    assert_eq!(
        to_hex(&out),
        "331c0003612f62000112230007".to_owned() + "0200000003" + "0bac02" + "26000161000131" + "6869"
    );
}

#[test]
fn a_will_becomes_a_publish() {
    let Packet::Connect(connect) = packets(Version::V5).swap_remove(2).0 else {
        panic!("the third is a CONNECT")
    };
    let will = connect.will.expect("with a will");
    let block = will.publish_properties().expect("legal");
    let properties = PropertiesOut {
        forwarded: &block,
        ..PropertiesOut::default()
    };
    let mut out = BytesMut::new();
    PublishFrame::encode(&fields(properties))
        .expect("legal")
        .append(Some(packet_id(1)), false, &mut out);
    let packet = decode(
        out.freeze(),
        Some(Version::V5),
        Direction::ServerToClient,
        &Limits::default(),
    );
    let Ok(Packet::Publish(publish)) = packet else {
        panic!("{packet:?}")
    };
    assert_eq!(publish.response_topic(), Some("answer"));
    assert_eq!(publish.content_type(), Some("text/plain"));
    assert_eq!(publish.correlation_data(), Some(&[0][..]));
    assert_eq!(publish.message_expiry_interval(), Some(0));
    assert_eq!(publish.payload_format_indicator(), Some(1));
    assert_eq!(publish.user_properties().count(), 3);
}

#[test]
fn illegal_packets_are_not_written() {
    let too_long = "a".repeat(65_536);
    let mut out = BytesMut::new();
    let refused = |result: Result<(), EncodeError>| assert!(result.is_err());
    let connect = &connects(Version::V3_1_1)[0];
    refused(encode_connect(
        &Connect {
            password: data(b"p"),
            ..connect.clone()
        },
        &mut out,
    ));
    refused(encode_connect(
        &Connect {
            client_id: too_long.clone(),
            ..connect.clone()
        },
        &mut out,
    ));
    refused(encode_connect(
        &Connect {
            client_id: "a\0".to_owned(),
            ..connect.clone()
        },
        &mut out,
    ));
    refused(encode_connect(
        &Connect {
            clean_start: false,
            client_id: String::new(),
            ..connect.clone()
        },
        &mut out,
    ));
    refused(encode_subscribe(
        Version::V5,
        &Subscribe {
            packet_id: packet_id(1),
            subscription_identifier: None,
            filters: vec![],
            user_properties: vec![],
        },
        &mut out,
    ));
    refused(encode_suback(Version::V5, &SubAck::new(packet_id(1), vec![]), &mut out));
    refused(encode_unsuback(
        Version::V5,
        &UnsubAck::new(packet_id(1), vec![]),
        &mut out,
    ));
    refused(encode_disconnect(
        Version::V3_1_1,
        &Disconnect::new(ReasonCode::SERVER_BUSY),
        &mut out,
    ));
    let long_reason = Disconnect {
        reason_string: Some(too_long.clone()),
        ..Disconnect::new(ReasonCode::SERVER_BUSY)
    };
    refused(encode_disconnect(Version::V5, &long_reason, &mut out));
    assert!(out.is_empty(), "nothing-on-error");
    for illegal in [
        PublishFields {
            topic: "a/#",
            ..fields(PropertiesOut::default())
        },
        PublishFields {
            topic: "",
            ..fields(PropertiesOut::default())
        },
        PublishFields {
            topic: &too_long,
            ..fields(PropertiesOut::default())
        },
        fields(PropertiesOut {
            topic_alias: Some(0),
            ..PropertiesOut::default()
        }),
        fields(PropertiesOut {
            subscription_identifiers: &[0],
            ..PropertiesOut::default()
        }),
        fields(PropertiesOut {
            forwarded: &[0x26, 0],
            ..PropertiesOut::default()
        }),
    ] {
        assert!(PublishFrame::encode(&illegal).is_err(), "{illegal:?}");
    }
}
