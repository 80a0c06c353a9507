//! Who clients are by certificates, by tokens, and by asking a server; and which client ids they may have. Rows of the table of
//! attacks in ops/docs/security.md name their tests here.

use crate::support::auth::{Guarded, connack, lontra_user};
use crate::support::client::{Client, Gone};
use crate::support::cluster::free_ports;
use crate::support::codec::{Connect, Publish, VERSIONS, Version, Will};
use crate::support::http_server::HttpServer;
use crate::support::pki::Pki;
use crate::support::{SOON, eventually, tls};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::KeyPair;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const V5: Version = Version::V5;

/// 5.0 and 3.x.
fn code(version: Version, v5: u8, v3: u8) -> u8 {
    if version == V5 { v5 } else { v3 }
}

// ---- certificates ----

#[tokio::test]
async fn a_certificate_names_its_client_whatever_connect_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ours, foreign) = (Pki::new(dir.path(), "ours"), Pki::new(dir.path(), "foreign"));
    let server = ours.server("server", &["localhost"]);
    let [sensor, other, alien] = [
        ours.client("sensor-7", 7),
        ours.client("sensor-8", 8),
        foreign.client("sensor-7x", 7),
    ];
    lontra_user(&["add", dir.path().join("users").to_str().expect("text"), "admin"], "a").await;
    let ports = free_ports(1) + 50;
    let listener = |name: &str, offset: u16, certificates: &str, methods: &str| {
        format!(
            "{{ name = \"{name}\", kind = \"mqtts\", listen = \"127.0.0.1:{}\", authentication = {methods}, \
             tls = {{ certificate = \"{}\", key = \"{}\", client_certificates = \"{certificates}\", client_ca = \"{}\" }} }}",
            ports + offset,
            server.certificate,
            server.key,
            ours.ca
        )
    };
    let listeners = format!(
        "[{}, {}]",
        listener("named", 0, "required", "[\"certificate\"]"),
        listener("either", 1, "optional", "[\"certificate\", \"password\"]")
    );
    let settings = [
        ("listeners", &*listeners),
        ("auth.password_file", "{dir}/users"),
        ("auth.certificate_client_id", "true"),
        (
            "auth.rules",
            "[\"allow publish,subscribe own/%u/#\", \"allow user=admin publish,subscribe #\"]",
        ),
    ];
    let guarded = Guarded::start_in(1, dir, &settings).await;
    let at = |offset: u16| format!("127.0.0.1:{}", ports + offset);
    let relay = |offset: u16, files: Option<crate::support::pki::Files>| {
        let (address, ca) = (at(offset), ours.ca.clone());
        async move {
            let mut arguments = vec![
                "-CAfile".to_owned(),
                ca,
                "-servername".to_owned(),
                "localhost".to_owned(),
            ];
            if let Some(files) = files {
                arguments.extend(["-cert".to_owned(), files.certificate, "-key".to_owned(), files.key]);
            }
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            tls::relay(&address, &arguments).await
        }
    };
    let required = relay(0, Some(sensor.clone())).await;
    for version in VERSIONS {
        // The name of another, with its password: the certificate decides.
        let connect = Connect::clean(version, "sensor-7").user("admin", "a");
        let (mut client, _) = Client::connect(&required, &connect).await;
        client.subscribe(&[("own/sensor-7/#", 1)]).await;
        client.publish("own/sensor-7/x", "mine", 1).await;
        assert_eq!(client.message().await.text(), "mine");
        if version == V5 {
            assert_eq!(client.publish_code("own/admin/x", "x", 1).await, 0x87);
        }
        client.disconnect().await;
        let another = Connect::clean(version, "sensor-8");
        assert_eq!(
            connack(&required, &another).await,
            code(version, 0x85, 2),
            "{version:?}"
        );
    }
    // Signed by somebody else: TLS itself refuses it.
    let by_alien = relay(0, Some(alien.clone())).await;
    let refused = Client::try_connect(&by_alien, &Connect::clean(V5, "sensor-7x"), SOON).await;
    assert!(matches!(refused, Err(Gone::Closed(_))), "a foreign certificate");
    // Where it is optional, a client without one has a password; one with one is who it says.
    let without = relay(1, None).await;
    assert_eq!(connack(&without, &Connect::clean(V5, "c").user("admin", "a")).await, 0);
    assert_eq!(
        connack(&without, &Connect::clean(V5, "c").user("admin", "b")).await,
        0x86
    );
    assert_eq!(connack(&without, &Connect::clean(V5, "c")).await, 0x87);
    let with = relay(1, Some(other)).await;
    assert_eq!(connack(&with, &Connect::clean(V5, "c").user("admin", "a")).await, 0x85);
    assert_eq!(connack(&with, &Connect::clean(V5, "sensor-8")).await, 0);
    guarded.cluster.assert_no_panic();
}

// ---- tokens ----

const SECRET: &str = "a secret of this test that has more than 32 bytes";

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs()
}

fn parts(header: &Value, claims: &Value) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", encode(header), encode(claims))
}

fn hs256_with(secret: &[u8], header: &Value, claims: &Value) -> String {
    let text = parts(header, claims);
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn hs256(claims: &Value) -> String {
    hs256_with(SECRET.as_bytes(), &json!({ "alg": "HS256", "typ": "JWT" }), claims)
}

/// P-256, under an id.
struct Signer {
    id: String,
    pair: KeyPair,
}

impl Signer {
    fn new(id: &str) -> Signer {
        let (id, pair) = (id.to_owned(), KeyPair::generate().expect("a key"));
        Signer { id, pair }
    }

    fn sign(&self, claims: &Value) -> String {
        let text = parts(&json!({ "alg": "ES256", "kid": self.id }), claims);
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, self.pair.serialized_der(), &random);
        let signature = key.expect("a key").sign(&random, text.as_bytes()).expect("a signature");
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn set_of(signers: &[&Signer]) -> String {
    let keys = signers.iter().map(|signer| {
        let point = signer.pair.public_key_raw();
        let (x, y) = (
            URL_SAFE_NO_PAD.encode(&point[1..33]),
            URL_SAFE_NO_PAD.encode(&point[33..]),
        );
        json!({ "kty": "EC", "crv": "P-256", "use": "sig", "kid": signer.id, "x": x, "y": y })
    });
    json!({ "keys": keys.collect::<Vec<_>>() }).to_string()
}

fn with_token(version: Version, client_id: &str, token: &str) -> Connect {
    Connect::clean(version, client_id).user("whoever", token)
}

#[tokio::test]
async fn only_a_token_that_is_signed_for_us_and_for_now_lets_in() {
    let signer = Signer::new("unused");
    let public = signer.pair.public_key_pem();
    let files = [("secret", SECRET), ("public.pem", &*public)];
    let settings = [
        ("auth.jwt.secret_file", "{dir}/secret"),
        ("auth.jwt.public_key_file", "{dir}/public.pem"),
        ("auth.jwt.issuer", "https://id.example.org"),
        ("auth.jwt.audience", "mqtt"),
        ("auth.jwt.client_id_claim", "cid"),
    ];
    let guarded = Guarded::start(1, &files, &settings).await;
    let claims = |changed: &[(&str, Value)]| {
        let mut claims = json!({
            "sub": "alice", "cid": "c", "exp": now() + 600, "iat": now(), "iss": "https://id.example.org", "aud": ["web", "mqtt"],
        });
        for (name, value) in changed {
            claims[*name] = value.clone();
        }
        claims
    };
    let good = claims(&[]);
    for version in VERSIONS {
        for token in [hs256(&good), signer.sign(&good)] {
            assert_eq!(
                guarded.connack(&with_token(version, "c", &token)).await,
                0,
                "{version:?}"
            );
        }
        let none = json!({ "alg": "none" });
        let stranger = Signer::new("unused");
        let bad = [
            ("expired", hs256(&claims(&[("exp", json!(now() - 60))]))),
            ("without an end", hs256(&claims(&[("exp", Value::Null)]))),
            ("not yet", hs256(&claims(&[("nbf", json!(now() + 600))]))),
            ("of the future", hs256(&claims(&[("iat", json!(now() + 600))]))),
            (
                "of another issuer",
                hs256(&claims(&[("iss", json!("https://evil.example.org"))])),
            ),
            ("for others", hs256(&claims(&[("aud", json!("web"))]))),
            ("for nobody", hs256(&claims(&[("sub", Value::Null)]))),
            ("none", format!("{}.", parts(&none, &good))),
            ("none with a signature", hs256_with(SECRET.as_bytes(), &none, &good)),
            (
                "another secret",
                hs256_with(&[b'x'; 64], &json!({ "alg": "HS256" }), &good),
            ),
            ("another key", stranger.sign(&good)),
            // What everybody has is no secret, and a secret is no key of another kind.
            (
                "the public key as a secret",
                hs256_with(public.as_bytes(), &json!({ "alg": "HS256" }), &good),
            ),
            (
                "another algorithm",
                hs256_with(SECRET.as_bytes(), &json!({ "alg": "HS512" }), &good),
            ),
            (
                "RS256",
                hs256_with(SECRET.as_bytes(), &json!({ "alg": "RS256" }), &good),
            ),
            ("a password", "wonder".to_owned()),
        ];
        for (what, token) in bad {
            let told = guarded.connack(&with_token(version, "c", &token)).await;
            assert_eq!(told, code(version, 0x86, 4), "{version:?}: {what}");
        }
        let told = guarded.connack(&with_token(version, "d", &hs256(&good))).await;
        assert_eq!(told, code(version, 0x85, 2), "another client id");
        let told = guarded.connack(&Connect::clean(version, "c")).await;
        assert_eq!(told, code(version, 0x87, 5), "nothing shown");
    }
    let counted = guarded
        .counted("lontra_authentications_total", "result=\"bad_token\"")
        .await;
    assert_eq!(counted, 14.0 * VERSIONS.len() as f64);
    let logs = guarded.cluster.logs();
    assert!(
        !logs.contains(&hs256(&good)[..20]) && !logs.contains(SECRET),
        "no token in a log"
    );
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn a_token_brings_its_own_rules_and_ends_its_connection() {
    let settings = [
        ("auth.jwt.secret_file", "{dir}/secret"),
        ("auth.jwt.leeway", "0s"),
        (
            "auth.rules",
            "[\"allow user=alice publish,subscribe a/#\", \"allow user=watcher subscribe #\"]",
        ),
    ];
    let guarded = Guarded::start(1, &[("secret", SECRET)], &settings).await;
    let acl = json!([
        { "permission": "deny", "action": "publish", "topic": "a/secret" },
        { "permission": "allow", "action": "publish", "topic": "mine/%u/#" },
    ]);
    let token = hs256(&json!({ "sub": "alice", "exp": now() + 600, "acl": acl }));
    let (mut alice, _) = Client::connect(guarded.at(), &with_token(V5, "c", &token)).await;
    for (topic, expected) in [
        ("a/b", 0x10),
        ("a/secret", 0x87),
        ("mine/alice/x", 0x10),
        ("mine/bob/x", 0x87),
    ] {
        assert_eq!(alice.publish_code(topic, "x", 1).await, expected, "{topic}");
    }
    // A rule that is none: the token is no good.
    let broken = hs256(&json!({ "sub": "alice", "exp": now() + 600, "acl": { "publish": ["a/#/b"] } }));
    assert_eq!(guarded.connack(&with_token(V5, "d", &broken)).await, 0x86);
    for version in VERSIONS {
        let ends = now() + 3;
        let token = hs256(&json!({ "sub": "alice", "exp": ends }));
        let will = Will::new("a/will", "gone", 1);
        let connect = with_token(version, "short", &token).will(will);
        let (mut short, _) = Client::connect(guarded.at(), &connect).await;
        short.publish("a/x", "still good", 1).await;
        let (told, _) = short.closed_by_server(SOON).await;
        assert_eq!(told, (version == V5).then_some(0x87), "{version:?}");
        let late = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970")
            .as_secs_f64()
            - ends as f64;
        assert!((-0.1..2.0).contains(&late), "{late} s after the end");
        assert_eq!(
            guarded.connack(&connect.clone()).await,
            code(version, 0x86, 4),
            "and not again"
        );
    }
    // Nobody else was touched.
    alice.ping().await;
    // Another secret: what the old one has signed is good no more, also for who is connected.
    guarded.rewrite("secret", &"y".repeat(40)).await;
    assert_eq!(alice.closed_by_server(SOON).await.0, Some(0x87));
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn keys_are_fetched_follow_a_rotation_and_stay_when_their_server_goes() {
    let (first, second) = (Signer::new("first"), Signer::new("second"));
    let set = set_of(&[&first]);
    let server = HttpServer::start(move |_| Some((200, set.clone()))).await;
    let settings = [
        ("auth.jwt.jwks_url", &*server.url("/keys")),
        ("auth.jwt.jwks_refresh", "10m"),
    ];
    let guarded = Guarded::start(1, &[], &settings).await;
    let claims = json!({ "sub": "alice", "exp": now() + 600 });
    let by = |signer: &Signer| with_token(V5, "c", &signer.sign(&claims));
    assert_eq!(server.requests().len(), 0, "not before it is needed");
    for _ in 0..3 {
        assert_eq!(guarded.connack(&by(&first)).await, 0);
    }
    assert_eq!(server.requests().len(), 1, "kept");
    // A storm of made-up ids makes no storm of requests.
    let began = Instant::now();
    for n in 0..30 {
        let made_up = Signer::new(&format!("made-up-{n}"));
        assert_eq!(guarded.connack(&by(&made_up)).await, 0x86);
    }
    let allowed = 2 + began.elapsed().as_secs() as usize / 5;
    assert!(
        server.requests().len() <= 1 + allowed,
        "{} requests",
        server.requests().len()
    );
    // The second key comes, the first one goes.
    let set = set_of(&[&second]);
    server.answer_with(move |_| Some((200, set.clone())));
    eventually("the new key is fetched", SOON, || async {
        (guarded.connack(&by(&second)).await == 0).then_some(())
    })
    .await;
    assert_eq!(guarded.connack(&by(&first)).await, 0x86);
    // The server says nonsense, or nothing of use: the key that was there stays.
    for answer in [(500, "{}"), (200, "{\"keys\":[]}"), (200, "<html>")] {
        server.answer_with(move |_| Some((answer.0, answer.1.to_owned())));
        let before = server.requests().len();
        eventually("it is asked again", SOON, || async {
            let told = guarded.connack(&by(&Signer::new("third"))).await;
            assert!(told == 0x86 || told == 0x88, "{told:#x}");
            (server.requests().len() > before).then_some(())
        })
        .await;
        assert_eq!(guarded.connack(&by(&second)).await, 0, "{answer:?}");
    }
    // Nor does a reload forget it.
    guarded.rewrite("unused", "").await;
    assert_eq!(guarded.connack(&by(&second)).await, 0);
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn keys_come_over_https_from_whom_is_trusted() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ours, foreign) = (Pki::new(dir.path(), "ours"), Pki::new(dir.path(), "foreign"));
    let server = ours.server("server", &["127.0.0.1"]);
    let signer = Signer::new("one");
    std::fs::write(dir.path().join("keys.json"), set_of(&[&signer])).expect("written");
    let port = free_ports(1) + 60;
    let mut openssl = tokio::process::Command::new("openssl")
        .args(["s_server", "-quiet", "-WWW", "-accept", &port.to_string()])
        .args(["-cert", &server.certificate, "-key", &server.key])
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("openssl");
    eventually("openssl listens", SOON, || async {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()
    })
    .await;
    let url = format!("https://127.0.0.1:{port}/keys.json");
    let token = signer.sign(&json!({ "sub": "alice", "exp": now() + 600 }));
    let trusting = Guarded::start(1, &[], &[("auth.jwt.jwks_url", &url), ("auth.jwt.jwks_ca", &ours.ca)]).await;
    assert_eq!(trusting.connack(&with_token(V5, "c", &token)).await, 0);
    drop(trusting);
    let wary = Guarded::start(
        1,
        &[],
        &[("auth.jwt.jwks_url", &url), ("auth.jwt.jwks_ca", &foreign.ca)],
    )
    .await;
    for version in VERSIONS {
        let told = wary.connack(&with_token(version, "c", &token)).await;
        assert_eq!(told, code(version, 0x88, 3), "no key, nobody comes in");
    }
    openssl.kill().await.ok();
}

// ---- a server that is asked ----

#[tokio::test]
async fn a_server_decides_and_one_that_does_not_answer_lets_nobody_in() {
    let server = HttpServer::start(|body| {
        let asked: Value = serde_json::from_str(body).expect("JSON");
        let name = asked["username"].as_str().unwrap_or_default();
        Some(match name {
            "plain" => (200, json!({ "result": "allow" }).to_string()),
            "bare" => (204, String::new()),
            "root" => (200, json!({ "result": "allow", "is_superuser": true }).to_string()),
            "ruled" => {
                let acl = json!([{ "permission": "allow", "action": "publish", "topic": "own/${username}/#" }]);
                (
                    200,
                    json!({ "result": "allow", "acl": acl, "groups": ["ops"] }).to_string(),
                )
            }
            "short" => (200, json!({ "result": "allow", "expire_at": now() + 3 }).to_string()),
            "local" => (200, json!({ "result": "ignore" }).to_string()),
            "denied" => (200, json!({ "result": "deny" }).to_string()),
            "nonsense" => (200, "yes".to_owned()),
            "forbidden" => (403, json!({ "result": "allow" }).to_string()),
            _ => (500, String::new()),
        })
    })
    .await;
    let dir = tempfile::tempdir().expect("a directory");
    lontra_user(&["add", dir.path().join("users").to_str().expect("text"), "local"], "x").await;
    std::fs::write(dir.path().join("bearer"), "hook-secret\n").expect("written");
    let ports = free_ports(1) + 50;
    let listeners = format!(
        "[{{ name = \"asked\", kind = \"mqtt\", listen = \"127.0.0.1:{ports}\", authentication = [\"http\", \"password\"] }}]"
    );
    let settings = [
        ("listeners", &*listeners),
        ("auth.password_file", "{dir}/users"),
        ("auth.http.url", &*server.url("/mqtt/auth")),
        ("auth.http.secret_file", "{dir}/bearer"),
        ("auth.http.timeout", "1s"),
        (
            "auth.rules",
            "[\"allow user=plain publish a\", \"allow group=ops publish ops/#\"]",
        ),
    ];
    let guarded = Guarded::start_in(1, dir, &settings).await;
    let at = format!("127.0.0.1:{ports}");
    let connect = |version, name: &str| Connect::clean(version, "c").user(name, "x");
    for version in VERSIONS {
        for (name, expected) in [
            ("plain", 0),
            ("bare", 0),
            ("root", 0),
            ("ruled", 0),
            ("local", 0),
            ("denied", code(version, 0x86, 4)),
            ("nonsense", code(version, 0x88, 3)),
            ("forbidden", code(version, 0x88, 3)),
            ("unknown", code(version, 0x88, 3)),
        ] {
            assert_eq!(
                connack(&at, &connect(version, name)).await,
                expected,
                "{version:?} {name}"
            );
        }
    }
    // "ignore" leaves it to the next method, which says no.
    let wrong = Connect::clean(V5, "c").user("local", "wrong");
    assert_eq!(connack(&at, &wrong).await, 0x86);
    for (name, topic, expected) in [
        ("plain", "a", 0x10),
        ("plain", "b", 0x87),
        ("ruled", "own/ruled/x", 0x10),
        ("ruled", "ops/x", 0x10),
        ("ruled", "own/plain/x", 0x87),
        ("root", "anything", 0x10),
    ] {
        let (mut client, _) = Client::connect(&at, &connect(V5, name)).await;
        assert_eq!(client.publish_code(topic, "x", 1).await, expected, "{name} {topic}");
    }
    let (mut short, _) = Client::connect(&at, &connect(V5, "short")).await;
    assert_eq!(short.closed_by_server(SOON).await.0, Some(0x87), "its time is over");
    // What it was asked, by how many connections.
    let (head, body) = server.requests().remove(0);
    assert!(head.starts_with("POST /mqtt/auth HTTP/1.1"), "{head}");
    assert!(
        head.to_lowercase().contains("authorization: bearer hook-secret\r\n"),
        "{head}"
    );
    let asked: Value = serde_json::from_str(&body).expect("JSON");
    let expected = json!({
        "clientid": "c", "username": "plain", "password": "x", "peerhost": "127.0.0.1", "listener": "asked",
        "cert_common_name": null, "cert_subject": null,
    });
    assert_eq!(asked, expected);
    let (requests, connections) = (server.requests().len(), server.connections.load(Ordering::Relaxed));
    assert!(
        connections < requests / 2,
        "{connections} connections for {requests} requests"
    );
    // It hangs: nobody comes in, who is connected stays.
    let (mut plain, _) = Client::connect(&at, &Connect::clean(V5, "stays").user("plain", "x")).await;
    server.answer_with(|_| None);
    for version in VERSIONS {
        let began = Instant::now();
        assert_eq!(connack(&at, &connect(version, "plain")).await, code(version, 0x88, 3));
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }
    plain.ping().await;
    let logs = guarded.cluster.logs();
    assert!(
        logs.contains("it lets nobody in") && !logs.contains("hook-secret"),
        "told once, without the secret"
    );
    let unavailable = guarded
        .counted("lontra_authentications_total", "result=\"unavailable\"")
        .await;
    assert_eq!(unavailable, 4.0 * VERSIONS.len() as f64);
    guarded.cluster.assert_no_panic();
}

// ---- client ids ----

/// As bridges and gateways do that speak for many: `user-…`; and as attackers would.
#[tokio::test]
async fn a_client_id_belongs_to_its_user() {
    let users = |dir: &tempfile::TempDir| dir.path().join("users").to_str().expect("text").to_owned();
    for (rule, allowed) in [
        ("user", &["alice"][..]),
        ("user-prefix", &["alice", "alice-1", "alice:bridge"]),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["alice", "bob"] {
            lontra_user(&["add", &users(&dir), name], "x").await;
        }
        let settings = [
            ("auth.password_file", "{dir}/users"),
            ("auth.client_id", rule),
            ("auth.anonymous", "always"),
        ];
        let guarded = Guarded::start_in(1, dir, &settings).await;
        // Bob is there: nobody else ends his connection, or gets his session.
        let (mut bob, _) = Client::connect(guarded.at(), &Connect::persistent(V5, "bob").user("bob", "x")).await;
        for version in VERSIONS {
            for id in [
                "alice",
                "alice-1",
                "alice:bridge",
                "alicia",
                "alice/1",
                "bob",
                "bob-1",
                "",
                "x",
            ] {
                let told = guarded.connack(&Connect::clean(version, id).user("alice", "x")).await;
                // Without an id the node gives one, which nobody else has.
                let is_allowed = allowed.contains(&id) || id.is_empty();
                let expected = if is_allowed { 0 } else { code(version, 0x85, 2) };
                assert_eq!(told, expected, "{version:?}, {rule}: {id:?}");
            }
            let nobody = guarded.connack(&Connect::clean(version, "bob")).await;
            assert_eq!(nobody, code(version, 0x85, 2), "anonymous");
        }
        bob.publish_packet(Publish::new("x", "still here", 1)).await;
        let counted = guarded
            .counted("lontra_authentications_total", "result=\"client_id\"")
            .await;
        assert!(counted > 0.0);
        guarded.cluster.assert_no_panic();
    }
}
