//! The table of frames: every row, its reason code and its value.

use super::*;

/// Returns how many rows were checked.
pub(super) fn check_table(table: &str) -> usize {
    let mut failures = Vec::new();
    let mut checked = 0;
    for row in rows(table) {
        checked += 1;
        if let Err(why) = check(&row) {
            failures.push(format!("{} {}: {why}", row.id, row.frame));
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {checked} rows:\n{}",
        failures.len(),
        failures.join("\n")
    );
    checked
}

fn check(row: &Row<'_>) -> Result<(), String> {
    let outcome = receive(row.frame, row.version, row.direction);
    match (row.expect, outcome) {
        ("OK", Ok(packet)) => check_value(&packet, row.value),
        ("REJECT", Err(violation)) => {
            let code = format!("0x{:02X}", violation.reason.0);
            if code == row.code {
                Ok(())
            } else {
                Err(format!("{violation}, expected {}", row.code))
            }
        }
        ("EITHER", _) => Ok(()),
        (_, Ok(packet)) => Err(format!("accepted: {packet:?}")),
        (_, Err(violation)) => Err(format!("refused: {violation}")),
    }
}

fn check_value(packet: &Packet, value: &str) -> Result<(), String> {
    let Some((name, expected)) = value.split_once('=') else {
        return Ok(());
    };
    let actual = match (name, packet) {
        ("payload", Packet::Publish(publish)) => Some(to_hex(publish.payload())),
        ("user", Packet::Connect(connect)) => connect.user_name.as_ref().map(|user| to_hex(user.as_bytes())),
        ("pass", Packet::Connect(connect)) => connect.password.as_ref().map(|password| to_hex(password)),
        _ => return Err(format!("no such value: {value}")),
    };
    match actual {
        Some(actual) if actual == expected => Ok(()),
        actual => Err(format!("{value}, decoded {actual:?}")),
    }
}

#[test]
fn every_row_of_the_frame_table_holds() {
    let lines = FRAMES.lines().filter(|line| !line.starts_with('#')).count() - 1;
    assert!(lines > 200, "the table is there");
    assert_eq!(check_table(FRAMES), lines);
}

#[test]
fn no_prefix_of_a_good_frame_is_a_frame() {
    for row in rows(FRAMES).filter(|row| row.expect == "OK") {
        let frame = hex(row.frame);
        let version = if frame[0] >> 4 == 1 { None } else { Some(row.version) };
        for end in 0..frame.len() {
            assert_eq!(
                frame_length(&frame[..end], &Limits::default(), version),
                Ok(None),
                "{} to {end}",
                row.id
            );
            let prefix = Bytes::copy_from_slice(&frame[..end]);
            assert!(
                decode(prefix, version, row.direction, &Limits::default()).is_err(),
                "{} to {end}",
                row.id
            );
        }
    }
}

#[test]
fn the_next_frame_does_not_change_the_length() {
    let two = hex("c000e000");
    assert_eq!(frame_length(&two, &Limits::default(), Some(Version::V5)), Ok(Some(2)));
}

#[test]
fn mqtt_3_1_0_1_first_packet_is_connect() {
    for frame in ["c000", "e000", "82060001000161", "16030100"] {
        let bytes = hex(frame);
        let by_length = frame_length(&bytes[..1], &Limits::default(), None);
        let by_decode = decode(Bytes::from(bytes), None, Direction::ClientToServer, &Limits::default());
        if frame.starts_with('1') {
            assert!(by_decode.is_err(), "a TLS greeting");
        } else {
            assert_eq!(by_length.expect_err(frame).statement, "MQTT-3.1.0-1");
            assert_eq!(by_decode.expect_err(frame).statement, "MQTT-3.1.0-1");
        }
    }
}

#[test]
fn mqtt_3_1_0_2_second_connect_is_a_protocol_error() {
    let frame = Bytes::from(hex("100e00044d5154540502003c00000163"));
    let violation =
        decode(frame, Some(Version::V5), Direction::ClientToServer, &Limits::default()).expect_err("second");
    assert_eq!(
        (violation.reason, violation.statement),
        (ReasonCode::PROTOCOL_ERROR, "MQTT-3.1.0-2")
    );
}

#[test]
fn the_wrong_side_is_a_protocol_error() {
    for (frame, direction) in [
        ("20020000", Direction::ClientToServer),
        ("9003000100", Direction::ClientToServer),
        ("b0020001", Direction::ClientToServer),
        ("d000", Direction::ClientToServer),
        ("c000", Direction::ServerToClient),
        ("8206000100016100", Direction::ServerToClient),
        ("a2050001000161", Direction::ServerToClient),
        ("e000", Direction::ServerToClient),
    ] {
        let violation = receive(frame, Version::V3_1_1, direction).expect_err(frame);
        assert_eq!(violation.reason, ReasonCode::PROTOCOL_ERROR, "{frame}");
    }
    assert!(
        receive(
            "100d00044d5154540402003c000163",
            Version::V3_1_1,
            Direction::ServerToClient
        )
        .is_err()
    );
}

#[test]
fn auth_forms() {
    let c2s = Direction::ClientToServer;
    assert!(
        matches!(receive("f000", Version::V5, c2s), Ok(Packet::Auth(auth)) if auth.authentication_method.is_none())
    );
    assert!(receive("f00a1908150005534352414d", Version::V5, c2s).is_ok());
    assert!(receive("f00a1908150005534352414d", Version::V5, Direction::ServerToClient).is_err());
    for (frame, reason) in [
        ("f00118", ReasonCode::MALFORMED_PACKET),
        ("f0021800", ReasonCode::PROTOCOL_ERROR),
        ("f006180416000161", ReasonCode::PROTOCOL_ERROR),
        ("f00b1808150005534352414d00", ReasonCode::MALFORMED_PACKET),
    ] {
        assert_eq!(
            receive(frame, Version::V5, c2s).expect_err(frame).reason,
            reason,
            "{frame}"
        );
    }
}

#[test]
fn the_version_of_a_refused_connect_is_known() {
    assert_eq!(
        connect_version(&hex("100c00044d5154540400003c0000")),
        Some(Version::V3_1_1)
    );
    assert_eq!(
        connect_version(&hex("100e00044d5154540602003c00000163")),
        Some(Version::V5)
    );
    assert_eq!(
        connect_version(&hex("100d00044d5154548402003c000163")),
        Some(Version::V3_1_1)
    );
    assert_eq!(connect_version(&hex("10")), None);
    assert_eq!(connect_version(&hex("30050003612f62")), None);
}

#[test]
fn topic_grammar_is_safe_with_any_character() {
    for name in ["é", "é/x", "/é", "$SYS/é", "\u{10FFFF}"] {
        assert_eq!(topic_grammar::check_topic_name(name), Ok(()), "{name}");
        assert_eq!(topic_grammar::check_topic_filter(name), Ok(()), "{name}");
    }
    for filter in [
        "#",
        "+",
        "/",
        "+/+",
        "a/#",
        "/#",
        "$share/g/a",
        "$share/g//",
        "$share/g/#",
        "$share",
        "$sharex/+",
    ] {
        assert_eq!(topic_grammar::check_topic_filter(filter), Ok(()), "{filter}");
    }
    for filter in [
        "",
        "a#",
        "a+",
        "+a",
        "#/a",
        "a/#/b",
        "##",
        "é#",
        "$share/",
        "$share/g",
        "$share//a",
        "$share/g/",
        "a\0",
    ] {
        assert!(topic_grammar::check_topic_filter(filter).is_err(), "{filter}");
    }
    assert!(topic_grammar::check_topic_filter("$share/+/a").is_err());
    assert!(topic_grammar::check_topic_filter("$share/g/a#").is_err());
    for name in ["", "a/+", "#", "é+", "a\0"] {
        assert!(topic_grammar::check_topic_name(name).is_err(), "{name}");
    }
    assert!(topic_grammar::check_topic_name(&"a".repeat(65_536)).is_err());
    assert_eq!(topic_grammar::split_shared("$share/g/a/b"), Some(("g", "a/b")));
    assert_eq!(topic_grammar::split_shared("a/b"), None);
}
