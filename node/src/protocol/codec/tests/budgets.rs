//! `budget-first`: what one frame may cost.

use super::*;

fn limits() -> Limits {
    Limits {
        packet_bytes: 64,
        control_packet_bytes: 32,
        filters_per_packet: 2,
        user_properties: 1,
        topic_bytes: 8,
        topic_levels: 2,
    }
}

fn reason(frame: &str, version: Version) -> Result<Packet, ReasonCode> {
    decode(
        Bytes::from(hex(frame)),
        Some(version),
        Direction::ClientToServer,
        &limits(),
    )
    .map_err(|violation| violation.reason)
}

#[test]
fn size_is_refused_from_the_first_bytes_and_counts_the_whole_packet() {
    let length =
        |frame: &str, version| frame_length(&hex(frame), &limits(), version).map_err(|violation| violation.reason);
    assert_eq!(length("303f", Some(Version::V5)), Err(ReasonCode::PACKET_TOO_LARGE));
    assert_eq!(length("303e", Some(Version::V5)), Ok(None), "64 bytes with the header");
    assert_eq!(length("821f", Some(Version::V5)), Err(ReasonCode::PACKET_TOO_LARGE));
    assert_eq!(length("821e", Some(Version::V5)), Ok(None));
    assert_eq!(length("10ffffff7f", None), Err(ReasonCode::PACKET_TOO_LARGE));
    assert_eq!(
        length("30ffffff7f", Some(Version::V5)),
        Err(ReasonCode::PACKET_TOO_LARGE)
    );
    assert_eq!(length("30ffffff", Some(Version::V5)), Ok(None));
    assert_eq!(
        length("30ffffff80", Some(Version::V5)),
        Err(ReasonCode::MALFORMED_PACKET)
    );
    assert_eq!(length("", None), Ok(None));
}

#[test]
fn filters_and_user_properties_are_counted() {
    for (frame, version) in [
        ("820e0001000161000001620000016300", Version::V3_1_1),
        ("820f000100000161000001620000016300", Version::V5),
    ] {
        let Ok(Packet::Subscribe(subscribe)) = reason(frame, version) else {
            panic!("SUBACK tells it")
        };
        assert_eq!(subscribe.packet_id.get(), 1);
        let answers: Vec<_> = subscribe.filters.iter().map(|filter| filter.valid).collect();
        assert_eq!(answers, [Err(ReasonCode::QUOTA_EXCEEDED); 3]);
    }
    assert_eq!(
        reason("820f0001000161000001620000022b6100", Version::V3_1_1),
        Err(ReasonCode::TOPIC_FILTER_INVALID),
        "not well-formed, whatever their number"
    );
    assert_eq!(
        reason("a20b0001000161000162000163", Version::V3_1_1),
        Err(ReasonCode::QUOTA_EXCEEDED)
    );
    assert_eq!(
        reason("a20c000100000161000162000163", Version::V5),
        Err(ReasonCode::QUOTA_EXCEEDED)
    );
    let two = "40120007000e26000161000162".to_owned() + "26000161000162";
    assert_eq!(reason(&two, Version::V5), Err(ReasonCode::QUOTA_EXCEEDED));
}

#[test]
fn topics_above_the_limits() {
    assert!(reason("30050003612f62", Version::V3_1_1).is_ok());
    assert_eq!(
        reason("30070005612f622f63", Version::V3_1_1),
        Err(ReasonCode::TOPIC_NAME_INVALID),
        "three levels"
    );
    assert_eq!(
        reason("300b0009616161616161616161", Version::V3_1_1),
        Err(ReasonCode::TOPIC_NAME_INVALID),
        "nine bytes"
    );
    // A 5.0 client is told by PUBACK or PUBREC.
    for (frame, above) in [
        ("320a0005612f622f63000100", true),
        ("340a0005612f622f63000100", true),
        ("32080003612f62000100", false),
    ] {
        let Ok(Packet::Publish(publish)) = reason(frame, Version::V5) else {
            panic!("{frame} is well-formed")
        };
        assert_eq!(publish.is_above_limits(), above, "{frame}");
    }
    for (frame, version) in [
        ("30080005612f622f6300", Version::V5),
        ("32090005612f622f630001", Version::V3_1_1),
        ("320a0005612f2b2f63000100", Version::V5),
    ] {
        assert_eq!(reason(frame, version), Err(ReasonCode::TOPIC_NAME_INVALID), "{frame}");
    }
    let Ok(Packet::Subscribe(subscribe)) = reason("820e0001000161010005612f622f6301", Version::V3_1_1) else {
        panic!("a filter above the limits is answered alone")
    };
    let answers: Vec<_> = subscribe.filters.iter().map(|filter| filter.valid).collect();
    assert_eq!(answers, [Ok(()), Err(ReasonCode::TOPIC_FILTER_INVALID)]);
}

#[test]
fn default_limits_take_the_longest_topic() {
    let topic = "a".repeat(65_535);
    let fields = PublishFields {
        version: Version::V5,
        qos: QoS::AtMostOnce,
        retain: false,
        topic: &topic,
        properties: PropertiesOut::default(),
        payload: b"",
    };
    let mut out = BytesMut::new();
    PublishFrame::encode(&fields)
        .expect("fits")
        .append(None, false, &mut out);
    let packet = decode(
        out.freeze(),
        Some(Version::V5),
        Direction::ServerToClient,
        &Limits::default(),
    );
    assert!(matches!(packet, Ok(Packet::Publish(publish)) if publish.topic() == topic));
}
