//! Who may connect: password files of our own and of Mosquitto's, anonymous clients, reloads. Rows of the table of attacks
//! in ops/docs/security.md name their tests here and in `wire_auth_acl.rs`.

use crate::support::auth::{Guarded, connack, lontra_user, mosquitto_passwd};
use crate::support::client::Client;
use crate::support::cluster::free_ports;
use crate::support::codec::{Connect, VERSIONS, Value, Version};
use crate::support::{SOON, eventually, mosquitto};
use std::time::Duration;

/// [MQTT-3.1.2.11.9]
const AUTHENTICATION_METHOD: u8 = 0x15;
const USERS: (&str, &str) = ("auth.password_file", "{dir}/users");

async fn with_users(users: &[(&str, &str)], settings: &[(&str, &str)]) -> Guarded {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("users");
    for (name, password) in users {
        lontra_user(&["add", path.to_str().expect("text"), name], password).await;
    }
    Guarded::start_in(1, dir, &[&[USERS], settings].concat()).await
}

/// 5.0 and 3.1.1.
fn code(version: Version, v5: u8, v3: u8) -> u8 {
    if version == Version::V5 { v5 } else { v3 }
}

#[tokio::test]
async fn only_users_of_the_file_with_their_passwords_come_in() {
    let guarded = with_users(&[("alice", "wonder land"), ("bob", "b")], &[]).await;
    for version in VERSIONS {
        let clean = || Connect::clean(version, "c");
        assert_eq!(guarded.connack(&clean().user("alice", "wonder land")).await, 0);
        for (name, password) in [
            ("alice", "wonder"),
            ("alice", ""),
            ("alice", "b"),
            ("carol", "b"),
            ("", ""),
        ] {
            let expected = code(version, 0x86, 4);
            let told = guarded.connack(&clean().user(name, password)).await;
            assert_eq!(told, expected, "{version:?} {name}:{password}");
        }
        let told = guarded.connack(&clean()).await;
        assert_eq!(told, code(version, 0x87, 5), "nothing shown");
        let nameless = Connect {
            user_name: Some("alice".into()),
            ..clean()
        };
        assert_eq!(guarded.connack(&nameless).await, code(version, 0x86, 4), "no password");
    }
    let oversized = "x".repeat(65_535);
    let connect = Connect::clean(Version::V5, "c").user(&oversized, &oversized);
    assert_eq!(guarded.connack(&connect).await, 0x86);
    let method = Value::Text("SCRAM-SHA-1".into());
    let connect = Connect::clean(Version::V5, "c").property(AUTHENTICATION_METHOD, method);
    assert_eq!(guarded.connack(&connect).await, 0x8c, "a method that there is not");
    let counted = |result: &'static str| {
        let guarded = &guarded;
        async move {
            let label = format!("result=\"{result}\"");
            guarded.counted("lontra_authentications_total", &label).await
        }
    };
    assert_eq!(counted("accepted").await, 2.0);
    assert_eq!(counted("no_credentials").await, 2.0);
    assert_eq!(counted("bad_credentials").await, 6.0);
    assert_eq!(counted("unknown_user").await, 7.0);
    guarded.cluster.assert_no_panic();
    let logs = guarded.cluster.logs();
    assert!(
        !logs.contains("wonder land") && !logs.contains("argon2id"),
        "secrets are not logged"
    );
}

#[tokio::test]
async fn an_unknown_user_takes_as_long_as_a_wrong_password() {
    let guarded = with_users(&[("alice", "a")], &[]).await;
    let mut best = [Duration::MAX; 2];
    for _ in 0..8 {
        for (at, name) in ["alice", "nobody"].into_iter().enumerate() {
            let started = std::time::Instant::now();
            guarded
                .connack(&Connect::clean(Version::V5, "c").user(name, "wrong"))
                .await;
            best[at] = best[at].min(started.elapsed());
        }
    }
    let [known, unknown] = best.map(|best| best.as_secs_f64());
    assert!(
        unknown > known / 2.0 && known > unknown / 2.0,
        "known {known} s, unknown {unknown} s"
    );
}

#[tokio::test]
async fn files_of_mosquitto_passwd_are_read_as_they_are() {
    let dir = tempfile::tempdir().expect("a directory");
    mosquitto_passwd(&dir.path().join("users"), &[("alice", "wonder"), ("bob", "pä ss")]).await;
    // `-U` of mosquitto_passwd 1.6 made these; 2.0 still reads them.
    let path = dir.path().join("users");
    let of_today = std::fs::read_to_string(&path).expect("text");
    assert!(of_today.contains(":$7$"), "{of_today}");
    std::fs::write(&path, format!("{of_today}old:{SHA_512}\n")).expect("written");
    let guarded = Guarded::start_in(1, dir, &[USERS]).await;
    for (name, password, expected) in [
        ("alice", "wonder", 0),
        ("bob", "pä ss", 0),
        ("old", "older", 0),
        ("alice", "wonders", 0x86),
        ("old", "old", 0x86),
    ] {
        let connect = Connect::clean(Version::V5, "c").user(name, password);
        assert_eq!(guarded.connack(&connect).await, expected, "{name}:{password}");
    }
    // And Mosquitto's own client gets in.
    let arguments = ["-u", "alice", "-P", "wonder"];
    let mut sub = mosquitto::Sub::start_with(guarded.at(), Version::V5, "a", 1, &arguments).await;
    mosquitto::publish_with(guarded.at(), Version::V311, "a", "x", 1, &arguments).await;
    assert_eq!(sub.message().await, "1 a x");
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn a_reload_lets_users_in_and_out() {
    let guarded = with_users(&[("alice", "a"), ("bob", "b")], &[]).await;
    let connect = |name: &str| Connect::clean(Version::V5, name).user(name, &name[..1]);
    let (mut alice, _) = Client::connect(guarded.at(), &connect("alice")).await;
    let (mut bob, _) = Client::connect(guarded.at(), &connect("bob")).await;
    let text = std::fs::read_to_string(guarded.path("users")).expect("text");
    let only_alice: String = text.lines().filter(|line| line.starts_with("alice")).collect();
    let carol = lontra_user(&["hash"], "c").await;
    guarded
        .rewrite("users", &format!("{only_alice}\ncarol:{carol}\n"))
        .await;
    assert_eq!(bob.closed_by_server(SOON).await.0, Some(0x87));
    alice.ping().await;
    assert_eq!(guarded.connack(&connect("bob")).await, 0x86);
    assert_eq!(guarded.connack(&connect("carol")).await, 0);
    // Another password is another proof.
    guarded.rewrite("users", &format!("alice:{carol}\n")).await;
    assert_eq!(alice.closed_by_server(SOON).await.0, Some(0x87));
    // A file that is wrong changes nothing.
    std::fs::write(guarded.path("users"), "alice:plain\n").expect("written");
    guarded.cluster.reload(guarded.cluster.nodes[0].id);
    eventually("the reload is refused", SOON, || async {
        let refused = guarded
            .counted("lontra_config_reloads_total", "result=\"refused\"")
            .await;
        (refused == 1.0).then_some(())
    })
    .await;
    assert_eq!(
        guarded
            .connack(&Connect::clean(Version::V5, "x").user("alice", "c"))
            .await,
        0
    );
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn each_listener_has_its_own_chain() {
    let ports = free_ports(1) + 50;
    let listeners = format!(
        "[{{ name = \"open\", kind = \"mqtt\", listen = \"127.0.0.1:{ports}\", authentication = [] }}, \
          {{ name = \"both\", kind = \"mqtt\", listen = \"127.0.0.1:{}\", anonymous = \"always\" }}, \
          {{ name = \"closed\", kind = \"mqtt\", listen = \"127.0.0.1:{}\", authentication = [], anonymous = \"never\" }}]",
        ports + 1,
        ports + 2
    );
    let guarded = with_users(&[("alice", "a")], &[("listeners", &listeners)]).await;
    let at = |offset: u16| format!("127.0.0.1:{}", ports + offset);
    let nobody = Connect::clean(Version::V5, "c");
    let (alice, liar) = (nobody.clone().user("alice", "a"), nobody.clone().user("alice", "x"));
    for (offset, expected) in [(0, [0, 0, 0]), (1, [0, 0, 0x86]), (2, [0x87, 0x87, 0x87])] {
        let told = [
            connack(&at(offset), &nobody).await,
            connack(&at(offset), &alice).await,
            connack(&at(offset), &liar).await,
        ];
        assert_eq!(told, expected, "listener {offset}");
    }
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn a_storm_of_connects_leaves_the_connected_alone() {
    let guarded = with_users(&[("alice", "a")], &[]).await;
    let right = Connect::clean(Version::V5, "alice").user("alice", "a");
    let (mut alice, _) = Client::connect(guarded.at(), &right).await;
    let storm = (0..400).map(|n| {
        let connect = Connect::clean(Version::V5, &format!("storm-{n}")).user("alice", "wrong");
        let address = guarded.at().to_owned();
        tokio::spawn(async move { connack(&address, &connect).await })
    });
    let storm: Vec<_> = storm.collect();
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let started = std::time::Instant::now();
        alice.ping().await;
        slowest = slowest.max(started.elapsed());
    }
    let mut told = Vec::new();
    for one in storm {
        told.push(one.await.expect("no panic"));
    }
    let busy = told.iter().filter(|code| **code == 0x89).count();
    let refused = told.iter().filter(|code| **code == 0x86).count();
    println!("400 CONNECTs: {refused} refused, {busy} busy; slowest ping {slowest:?}");
    assert_eq!(busy + refused, 400, "{told:?}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    let counted = guarded.counted("lontra_authentications_total", "result=\"busy\"").await;
    assert_eq!(counted, busy as f64);
    guarded.cluster.assert_no_panic();
}

/// `older`, salted with twelve bytes.
const SHA_512: &str =
    "$6$AAECAwQFBgcICQoL$q8SbyQYRUp+POkGQlWs5NLRYglHTsjpwJu/znVNckxwfZdjjk2unNGv28sdd5KnnVznnoaXsoklqIzMuhuOUGA==";
