//! Enhanced authentication: SCRAM-SHA-256 by a client of the tests' own, again while it is connected, and what attackers try
//! instead. [MQTT-4.12] [MQTT-3.15]

use crate::support::SOON;
use crate::support::auth::{Guarded, connack, lontra_user};
use crate::support::client::{Client, Gone};
use crate::support::codec::{self, Connect, Packet, Property, Publish, Value, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac, pbkdf2};
use std::num::NonZeroU32;

const V5: Version = Version::V5;
const METHOD: &str = "SCRAM-SHA-256";
const MAXIMUM_PACKET_SIZE: u8 = 0x27;
const AUTHENTICATION_METHOD: u8 = 0x15;
const AUTHENTICATION_DATA: u8 = 0x16;
const REASON_STRING: u8 = 0x1f;
const USER_PROPERTY: u8 = 0x26;
const CONTINUE: u8 = 0x18;
const AGAIN: u8 = 0x19;

fn properties(method: &str, data: &str) -> Vec<Property> {
    vec![
        Property(AUTHENTICATION_METHOD, Value::Text(method.to_owned())),
        Property(AUTHENTICATION_DATA, Value::Binary(data.as_bytes().to_vec())),
    ]
}

fn auth(code: u8, data: &str) -> Vec<u8> {
    codec::auth(code, &properties(METHOD, data))
}

/// The client's side of RFC 5802.
struct Scram {
    bare: String,
    password: String,
}

/// What the client sends last, and what the server must answer.
struct Last {
    message: String,
    server: String,
}

impl Scram {
    fn new(name: &str, password: &str, nonce: &str) -> Scram {
        let name = name.replace('=', "=3D").replace(',', "=2C");
        Scram {
            bare: format!("n={name},r={nonce}"),
            password: password.to_owned(),
        }
    }

    fn first(&self) -> String {
        format!("n,,{}", self.bare)
    }

    fn connect(&self, client_id: &str) -> Connect {
        let mut connect = Connect::clean(V5, client_id);
        for Property(id, value) in properties(METHOD, &self.first()) {
            connect = connect.property(id, value);
        }
        connect
    }

    fn last(&self, challenge: &str) -> Last {
        let value = |name: &str| {
            challenge
                .split(',')
                .find_map(|part| part.strip_prefix(name))
                .expect("in the challenge")
        };
        let (nonce, salt, iterations) = (value("r="), value("s="), value("i="));
        assert!(
            nonce.starts_with(self.bare.split_once(",r=").expect("a nonce").1),
            "{challenge}"
        );
        let salt = STANDARD.decode(salt).expect("Base64");
        let iterations: NonZeroU32 = iterations.parse().expect("a number");
        let mut salted = [0; 32];
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            iterations,
            &salt,
            self.password.as_bytes(),
            &mut salted,
        );
        let sign = |key: &[u8], text: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes());
        let client_key = sign(&salted, "Client Key");
        let stored_key = digest::digest(&digest::SHA256, client_key.as_ref());
        let without_proof = format!("c=biws,r={nonce}");
        let said = format!("{},{challenge},{without_proof}", self.bare);
        let signature = sign(stored_key.as_ref(), &said);
        let proof = client_key
            .as_ref()
            .iter()
            .zip(signature.as_ref())
            .map(|(key, signed)| key ^ signed);
        let server = sign(sign(&salted, "Server Key").as_ref(), &said);
        Last {
            message: format!("{without_proof},p={}", STANDARD.encode(proof.collect::<Vec<u8>>())),
            server: format!("v={}", STANDARD.encode(server)),
        }
    }
}

fn data_of(packet: &Packet) -> String {
    match packet.property(AUTHENTICATION_DATA) {
        Some(Value::Binary(data)) => String::from_utf8(data.clone()).expect("text"),
        other => panic!("{packet:?}: {other:?}"),
    }
}

/// An AUTH with the method, and nothing but data besides. [MQTT-4.12.0-5] [MQTT-3.15.2-2] [MQTT-3.15.2-3]
fn is_auth(packet: &Packet, expected: u8) -> String {
    match packet {
        Packet::Auth { code, properties } => {
            assert_eq!(*code, expected, "{packet:?}");
            let ids: Vec<u8> = properties.iter().map(|property| property.0).collect();
            assert_eq!(ids, [AUTHENTICATION_METHOD, AUTHENTICATION_DATA]);
        }
        other => panic!("AUTH expected, not {other:?}"),
    }
    assert_eq!(
        packet.property(AUTHENTICATION_METHOD),
        Some(&Value::Text(METHOD.to_owned()))
    );
    data_of(packet)
}

async fn challenged(at: &str, connect: &Connect) -> (Client, String) {
    let (client, packet) = Client::try_connect(at, connect, SOON).await.expect("an answer");
    (client, is_auth(&packet, CONTINUE))
}

/// Connected by SCRAM; the server has proven itself too.
async fn connected(at: &str, scram: &Scram, client_id: &str) -> Client {
    let (mut client, challenge) = challenged(at, &scram.connect(client_id)).await;
    let last = scram.last(&challenge);
    client.send(&auth(CONTINUE, &last.message)).await.expect("AUTH");
    let connack = client.packet_within(SOON).await.expect("CONNACK");
    assert!(matches!(connack, Packet::Connack { code: 0, .. }), "{connack:?}");
    assert_eq!(
        connack.property(AUTHENTICATION_METHOD),
        Some(&Value::Text(METHOD.to_owned()))
    );
    assert_eq!(data_of(&connack), last.server);
    client
}

/// The code of a CONNACK after which the connection is closed.
async fn refused(client: &mut Client) -> u8 {
    let code = match client.packet_within(SOON).await {
        Ok(Packet::Connack { code, .. }) => code,
        other => panic!("CONNACK expected, not {other:?}"),
    };
    assert_eq!(client.closed_by_server(SOON).await.0, None, "no DISCONNECT after it");
    code
}

async fn guarded_with(size: usize, failures_max: &str) -> Guarded {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("users").to_str().expect("text").to_owned();
    for (name, password) in [("alice", "wonder land"), ("bob", "b"), ("a,b=c", "odd")] {
        lontra_user(&["add", "--scram", "--groups", "ops", &path, name], password).await;
    }
    lontra_user(&["add", &path, "argon"], "x").await;
    let settings = [
        ("auth.password_file", "{dir}/users"),
        ("auth.rules", "[\"allow group=ops publish,subscribe %u/#\"]"),
        ("limits.failed_logins_address_max", failures_max),
        // Longer than the test.
        ("limits.flapping_window", "1h"),
    ];
    Guarded::start_in(size, dir, &settings).await
}

/// As many wrong proofs as a test makes.
async fn guarded(size: usize) -> Guarded {
    guarded_with(size, "0").await
}

#[tokio::test]
async fn an_address_that_guesses_waits_as_with_passwords() {
    let guarded = guarded_with(1, "2").await;
    let alice = Scram::new("alice", "wonder land", "nonce");
    for name in ["alice", "nobody"] {
        let scram = Scram::new(name, "guess", "nonce");
        let (mut client, challenge) = challenged(guarded.at(), &scram.connect("c")).await;
        let last = scram.last(&challenge).message;
        client.send(&auth(CONTINUE, &last)).await.expect("AUTH");
        assert_eq!(refused(&mut client).await, 0x86, "{name}");
    }
    // Whoever it is now, and whatever it would prove: there is no challenge.
    assert_eq!(guarded.connack(&alice.connect("c")).await, 0x9f);
    guarded.cluster.assert_no_panic();
}

/// [MQTT-4.12.0-2] [MQTT-4.12.0-5]
#[tokio::test]
async fn a_client_and_its_server_prove_themselves() {
    let guarded = guarded(1).await;
    let scram = Scram::new("alice", "wonder land", "fyko+d2lbbFgONRv9qkxdawL");
    let mut alice = connected(guarded.at(), &scram, "c").await;
    alice.subscribe(&[("alice/#", 1)]).await;
    alice.publish("alice/x", "mine", 1).await;
    assert_eq!(alice.message().await.text(), "mine");
    assert_eq!(alice.publish_code("bob/x", "x", 1).await, 0x87);
    connected(guarded.at(), &Scram::new("a,b=c", "odd", "xyz"), "d")
        .await
        .disconnect()
        .await;
    // The same record is good for a password in CONNECT.
    for (password, expected) in [("wonder land", 0), ("wonder", 0x86)] {
        let connect = Connect::clean(V5, "e").user("alice", password);
        assert_eq!(guarded.connack(&connect).await, expected);
    }
    let counted = guarded
        .counted("lontra_authentications_total", "result=\"accepted\"")
        .await;
    assert_eq!(counted, 3.0);
    let logs = guarded.cluster.logs();
    assert!(
        !logs.contains("wonder") && !logs.contains("SCRAM-SHA-256$"),
        "no secrets in logs"
    );
    guarded.cluster.assert_no_panic();
}

/// [MQTT-4.12.0-1] [MQTT-4.12.0-4]
#[tokio::test]
async fn whoever_does_not_prove_it_is_refused_and_learns_nothing() {
    let guarded = guarded(3).await;
    let at = guarded.at();
    let alice = Scram::new("alice", "wonder land", "nonce");
    // A wrong password, users that there are not, and one without SCRAM: the same words to all.
    let mut challenges = Vec::new();
    for (name, password) in [("alice", "wonder"), ("nobody", "x"), ("argon", "x"), ("nobody", "")] {
        let scram = Scram::new(name, password, "nonce");
        let (mut client, challenge) = challenged(at, &scram.connect("c")).await;
        client
            .send(&auth(CONTINUE, &scram.last(&challenge).message))
            .await
            .expect("AUTH");
        assert_eq!(refused(&mut client).await, 0x86, "{name}");
        challenges.push((name, challenge));
    }
    let shape = |challenge: &str| {
        let (nonce, rest) = challenge.split_once(",s=").expect("a salt");
        let (salt, iterations) = rest.split_once(",i=").expect("iterations");
        (nonce.len(), salt.len(), iterations.to_owned())
    };
    assert!(
        challenges.iter().all(|(_, one)| shape(one) == shape(&challenges[0].1)),
        "{challenges:?}"
    );
    // The salt of a name is the same each time, on each node, for real ones and others.
    let salt = |challenge: &str| {
        challenge
            .split(',')
            .find_map(|part| part.strip_prefix("s="))
            .expect("a salt")
            .to_owned()
    };
    for name in ["alice", "nobody"] {
        let mut salts = Vec::new();
        for index in 0..3 {
            let scram = Scram::new(name, "x", "nonce");
            salts.push(salt(
                &challenged(guarded.cluster.mqtt(index), &scram.connect("c")).await.1,
            ));
        }
        assert!(salts.iter().all(|one| *one == salts[0]), "{name}: {salts:?}");
    }
    // A proof of another exchange proves nothing in this one.
    let (mut client, challenge) = challenged(at, &alice.connect("c")).await;
    let recorded = alice.last(&challenge).message;
    client.send(&auth(CONTINUE, &recorded)).await.expect("AUTH");
    assert!(matches!(
        client.packet_within(SOON).await,
        Ok(Packet::Connack { code: 0, .. })
    ));
    let (mut client, _) = challenged(at, &alice.connect("c")).await;
    client.send(&auth(CONTINUE, &recorded)).await.expect("AUTH");
    assert_eq!(refused(&mut client).await, 0x86);
    // What is not SCRAM, and what asks for more than there is.
    for first in ["", "n,,", "alice", "p=tls-unique,,n=alice,r=x", "n,a=bob,n=alice,r=x"] {
        let mut connect = Connect::clean(V5, "c");
        for Property(id, value) in properties(METHOD, first) {
            connect = connect.property(id, value);
        }
        assert_eq!(connack(at, &connect).await, 0x86, "{first}");
    }
    for method in ["SCRAM-SHA-1", "PLAIN", "scram-sha-256", ""] {
        let connect = Connect::clean(V5, "c").property(AUTHENTICATION_METHOD, Value::Text(method.to_owned()));
        assert_eq!(connack(at, &connect).await, 0x8c, "{method}");
    }
    // What may not come between CONNECT and CONNACK.
    let last = |challenge: &str| alice.last(challenge).message;
    type Frame<'a> = Box<dyn Fn(&str) -> Vec<u8> + 'a>;
    let others: [(&str, u8, Frame<'_>); 6] = [
        (
            "another method",
            0x8c,
            Box::new(|challenge| codec::auth(CONTINUE, &properties("SCRAM-SHA-1", &last(challenge)))),
        ),
        ("begins anew", 0x82, Box::new(|challenge| auth(AGAIN, &last(challenge)))),
        (
            "says itself that all is well",
            0x82,
            Box::new(|challenge| auth(0, &last(challenge))),
        ),
        (
            "PUBLISH",
            0x82,
            Box::new(|_| Publish::new("alice/x", "x", 0).encode(V5)),
        ),
        ("PINGREQ", 0x82, Box::new(|_| codec::pingreq())),
        ("CONNECT", 0x82, Box::new(|_| alice.connect("c").encode())),
    ];
    for (what, expected, frame) in others {
        let (mut client, challenge) = challenged(at, &alice.connect("c")).await;
        client.send(&frame(&challenge)).await.expect("sent");
        assert_eq!(refused(&mut client).await, expected, "{what}");
    }
    // DISCONNECT may, and ends it without a word.
    let (mut client, _) = challenged(at, &alice.connect("c")).await;
    client.send(&codec::disconnect()).await.expect("DISCONNECT");
    assert!(matches!(client.packet_within(SOON).await, Err(Gone::Closed(_))));
    guarded.cluster.assert_no_panic();
}

/// [MQTT-4.12.1-1] [MQTT-4.12.1-2]
#[tokio::test]
async fn a_connected_client_proves_itself_again() {
    let guarded = guarded(1).await;
    let alice = Scram::new("alice", "wonder land", "first");
    let again = |name: &str, password: &str| Scram::new(name, password, "second");
    let open = || connected(guarded.at(), &alice, "c");
    let mut client = open().await;
    client.subscribe(&[("alice/#", 1)]).await;
    for _ in 0..2 {
        let scram = again("alice", "wonder land");
        client.send(&auth(AGAIN, &scram.first())).await.expect("AUTH");
        let challenge = client
            .wait_for("AUTH", |packet| {
                matches!(packet, Packet::Auth { .. }).then(|| packet.clone())
            })
            .await;
        // Everything else goes on meanwhile. [MQTT-4.12.1]
        client.publish("alice/x", "meanwhile", 1).await;
        assert_eq!(client.message().await.text(), "meanwhile");
        client.ping().await;
        let last = scram.last(&is_auth(&challenge, CONTINUE));
        client.send(&auth(CONTINUE, &last.message)).await.expect("AUTH");
        let done = client
            .wait_for("AUTH", |packet| {
                matches!(packet, Packet::Auth { .. }).then(|| packet.clone())
            })
            .await;
        assert_eq!(is_auth(&done, 0), last.server);
        client.publish("alice/x", "after", 1).await;
        assert_eq!(client.message().await.text(), "after");
    }
    client.disconnect().await;
    // A wrong password, and another user with a right one.
    for (name, password) in [("alice", "wrong"), ("bob", "b"), ("nobody", "x")] {
        let scram = again(name, password);
        let mut client = open().await;
        client.send(&auth(AGAIN, &scram.first())).await.expect("AUTH");
        let challenge = is_auth(&client.packet_within(SOON).await.expect("AUTH"), CONTINUE);
        client
            .send(&auth(CONTINUE, &scram.last(&challenge).message))
            .await
            .expect("AUTH");
        assert_eq!(client.closed_by_server(SOON).await.0, Some(0x87), "{name}");
    }
    let first = again("alice", "wonder land").first();
    for (what, frame, expected) in [
        (
            "another method",
            codec::auth(AGAIN, &properties("SCRAM-SHA-1", &first)),
            0x8c,
        ),
        ("goes on with what did not begin", auth(CONTINUE, &first), 0x82),
        ("says that all is well", auth(0, &first), 0x82),
        ("success, in short", codec::frame(0xf0, &[]), 0x82),
        ("no SCRAM", auth(AGAIN, "alice"), 0x87),
    ] {
        let mut client = open().await;
        client.send(&frame).await.expect("AUTH");
        assert_eq!(client.closed_by_server(SOON).await.0, Some(expected), "{what}");
    }
    // Twice at once.
    let mut client = open().await;
    client.send(&auth(AGAIN, &first)).await.expect("AUTH");
    client.send(&auth(AGAIN, &first)).await.expect("AUTH");
    assert_eq!(client.closed_by_server(SOON).await.0, Some(0x82));
    // Who came in by a password has no method. [MQTT-4.12.0-7]
    let (mut client, packet) = Client::connect(guarded.at(), &Connect::clean(V5, "p").user("bob", "b")).await;
    assert_eq!(packet.property(AUTHENTICATION_METHOD), None, "[MQTT-4.12.0-6]");
    client.send(&auth(AGAIN, &first)).await.expect("AUTH");
    assert_eq!(client.closed_by_server(SOON).await.0, Some(0x82));
    guarded.cluster.assert_no_panic();
}

/// [MQTT-3.15.2-2] [MQTT-3.15.2-3]
#[tokio::test]
async fn auth_keeps_to_the_packet_size_that_the_client_takes() {
    let guarded = guarded(1).await;
    let alice = Scram::new("alice", "wonder land", "nonce");
    // As large as the challenge is, and one byte less: it has nothing that could be left out.
    let (_, challenge) = challenged(guarded.at(), &alice.connect("c")).await;
    let size = codec::auth(CONTINUE, &properties(METHOD, &challenge)).len() as u32;
    let sized = |bytes: u32| alice.connect("c").property(MAXIMUM_PACKET_SIZE, Value::Four(bytes));
    let (_, packet) = Client::try_connect(guarded.at(), &sized(size), SOON)
        .await
        .expect("AUTH");
    is_auth(&packet, CONTINUE);
    assert!(packet.property(REASON_STRING).is_none() && packet.property(USER_PROPERTY).is_none());
    assert_eq!(connack(guarded.at(), &sized(size - 1)).await, 0x95);
    guarded.cluster.assert_no_panic();
}

/// A user whose password changes is let go, whichever way it has come in.
#[tokio::test]
async fn a_reload_ends_what_rests_on_another_record() {
    let guarded = guarded(1).await;
    let alice = Scram::new("alice", "wonder land", "nonce");
    let mut client = connected(guarded.at(), &alice, "c").await;
    let mut bob = connected(guarded.at(), &Scram::new("bob", "b", "nonce"), "d").await;
    let text = std::fs::read_to_string(guarded.path("users")).expect("text");
    let record = lontra_user(&["hash", "--scram"], "another").await;
    let lines = text.lines().map(|line| match line.starts_with("alice:") {
        true => format!("alice:{record}:ops\n"),
        false => format!("{line}\n"),
    });
    guarded.rewrite("users", &lines.collect::<String>()).await;
    assert_eq!(client.closed_by_server(SOON).await.0, Some(0x87));
    bob.ping().await;
    connected(guarded.at(), &Scram::new("alice", "another", "nonce"), "c")
        .await
        .disconnect()
        .await;
    guarded.cluster.assert_no_panic();
}
