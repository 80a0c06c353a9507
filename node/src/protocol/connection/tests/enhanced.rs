//! AUTH to and fro, before CONNACK and after it; and the end of what showed who the client is.

use super::*;
use crate::auth::identity::{Identity, Proof};

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// The properties of a method and these data.
fn of_method(method: &str, data: &str) -> String {
    format!("15{:04x}{}16{:04x}{}", method.len(), hex(method), data.len(), hex(data))
}

fn auth(code: u8, method: &str, data: &str) -> String {
    let properties = of_method(method, data);
    let bytes = properties.len() / 2;
    format!("f0{:02x}{code:02x}{bytes:02x}{properties}", bytes + 2)
}

const METHOD: &str = "SCRAM-SHA-256";

/// A CONNECT with the method; what it asks the world to look at.
fn begun(packet_size_max: &str) -> Fixture {
    let mut fixture = Fixture::new();
    let properties = packet_size_max.to_owned() + &of_method(METHOD, "first");
    let bytes = properties.len() / 2;
    fixture.send(&format!(
        "10{:02x}00044d5154540502003c{bytes:02x}{properties}000163",
        14 + bytes
    ));
    assert_eq!(data(&mut fixture).as_deref(), Some("first"));
    fixture
}

fn data(fixture: &mut Fixture) -> Option<String> {
    match fixture.connection.outputs.pop() {
        Some(Output::Authenticate { data }) => Some(String::from_utf8(data.to_vec()).unwrap()),
        _ => None,
    }
}

fn alice() -> Identity {
    Identity::of("alice", Proof::None)
}

fn connected() -> Fixture {
    let mut fixture = begun("");
    fixture.connection.challenge(b"challenge".to_vec());
    fixture.send(&auth(0x18, METHOD, "last"));
    assert_eq!(data(&mut fixture).as_deref(), Some("last"));
    fixture.connection.authenticated(alice(), b"proof".to_vec());
    let Some(Output::Connect(accepted)) = fixture.connection.outputs.pop() else {
        panic!("asks to be attached")
    };
    let served = Served {
        session: SessionId(1),
        epoch: SessionEpoch(1),
        present: false,
    };
    let access = Access::new(alice(), "c", None, &crate::auth::acl::Acl::default());
    let now = fixture.now;
    assert!(fixture.connection.attached(accepted, served, 12, false, access, now));
    let sent = fixture.sent();
    let (challenge, connack) = sent.split_once("20").unwrap();
    assert_eq!(challenge, auth(0x18, METHOD, "challenge"));
    assert!(connack.contains(&of_method(METHOD, "proof")), "{connack}");
    fixture
}

#[test]
fn a_client_that_names_the_method_is_challenged_before_it_is_attached() {
    assert!(connected().connection.is_connected());
}

#[test]
fn between_connect_and_connack_only_auth_in_its_turn_goes_on() {
    for (frame, reason) in [
        (auth(0x18, "SCRAM-SHA-1", "x"), ReasonCode::BAD_AUTHENTICATION_METHOD),
        (auth(0x19, METHOD, "x"), ReasonCode::PROTOCOL_ERROR),
        (auth(0x00, METHOD, "x"), ReasonCode::PROTOCOL_ERROR),
        ("c000".to_owned(), ReasonCode::PROTOCOL_ERROR),
    ] {
        let mut fixture = begun("");
        assert!(fixture.connection.is_authenticating() && fixture.connection.wants_packets());
        fixture.send(&frame);
        assert_eq!(fixture.reason(), Some(reason), "{frame}");
        // CONNACK, no DISCONNECT. [MQTT-3.14.0-1]
        let sent = fixture.sent();
        assert!(
            sent.starts_with("20") && sent[4..].starts_with(&format!("00{:02x}", reason.0)),
            "{sent}"
        );
    }
    let mut fixture = begun("");
    fixture
        .connection
        .not_authenticated(ReasonCode::BAD_USER_NAME_OR_PASSWORD);
    assert_eq!(fixture.sent(), "2003008600");
    let mut fixture = begun("");
    fixture
        .connection
        .deadline_passed(fixture.now + Duration::from_secs(10));
    assert!(fixture.reason().is_some(), "the CONNECT deadline holds");
    // A challenge that the client has no room for.
    let mut fixture = begun("2700000010");
    fixture.connection.challenge(b"challenge".to_vec());
    assert_eq!(fixture.reason(), Some(ReasonCode::PACKET_TOO_LARGE));
}

#[test]
fn a_connected_client_may_begin_anew_as_who_it_is() {
    let mut fixture = connected();
    for _ in 0..2 {
        fixture.send(&auth(0x19, METHOD, "first"));
        assert_eq!(data(&mut fixture).as_deref(), Some("first"));
        fixture.connection.challenge(b"challenge".to_vec());
        fixture.send("c000");
        fixture.send(&auth(0x18, METHOD, "last"));
        assert_eq!(data(&mut fixture).as_deref(), Some("last"));
        fixture.connection.authenticated(alice(), b"proof".to_vec());
        let expected = auth(0x18, METHOD, "challenge") + "d000" + &auth(0x00, METHOD, "proof");
        assert_eq!(fixture.sent(), expected);
    }
    fixture.send(&auth(0x19, METHOD, "first"));
    fixture
        .connection
        .authenticated(Identity::of("bob", Proof::None), Vec::new());
    assert_eq!(fixture.reason(), Some(ReasonCode::NOT_AUTHORIZED));
    for (frame, reason) in [
        (auth(0x18, METHOD, "x"), ReasonCode::PROTOCOL_ERROR),
        (auth(0x00, METHOD, "x"), ReasonCode::PROTOCOL_ERROR),
        (auth(0x19, "PLAIN", "x"), ReasonCode::BAD_AUTHENTICATION_METHOD),
    ] {
        let mut fixture = connected();
        fixture.send(&frame);
        assert_eq!(fixture.reason(), Some(reason), "{frame}");
    }
    let mut fixture = connected();
    fixture
        .connection
        .not_authenticated(ReasonCode::BAD_USER_NAME_OR_PASSWORD);
    assert_eq!(
        fixture.reason(),
        Some(ReasonCode::NOT_AUTHORIZED),
        "DISCONNECT knows no 0x86"
    );
}

#[test]
fn what_has_expired_ends_the_connection() {
    let mut fixture = Fixture::connected(5);
    let at = fixture.now + Duration::from_secs(7);
    fixture.connection.expires = Some(at);
    assert_eq!(fixture.connection.next_deadline(), Some(at));
    fixture.connection.deadline_passed(at - Duration::from_millis(1));
    assert_eq!(fixture.reason(), None);
    fixture.connection.deadline_passed(at);
    assert_eq!(fixture.reason(), Some(ReasonCode::NOT_AUTHORIZED));
}
