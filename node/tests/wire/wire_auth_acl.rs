//! What clients may publish and read, by whatever way: rows of the table of attacks in ops/docs/security.md name their tests
//! here. And the same questions to Mosquitto itself, with the same files.

use crate::support::auth::{Guarded, mosquitto_passwd};
use crate::support::client::{Client, Gone};
use crate::support::cluster::free_ports;
use crate::support::codec::{self, Connect, Packet, Property, Publish, TOPIC_ALIAS, VERSIONS, Value, Version, Will};
use crate::support::{SOON, eventually};
use std::process::Stdio;
use tokio::process::{Child, Command};

/// Alice has `a/#` but `a/secret`, and its retained copy `r/#` to write; everybody has their own place, and `news/#`.
const ACL: &str = "\
topic read news/#
user alice
topic readwrite a/#
topic deny a/secret
topic write r/#
topic read $SYS/#
user bob
topic read a/public/#
topic readwrite b/#
pattern readwrite own/%u/#
pattern write by-id/%c/#
pattern read news/#
";

const USERS: [(&str, &str); 3] = [("alice", "a"), ("bob", "b"), ("+", "plus")];

async fn guarded(size: usize, settings: &[(&str, &str)]) -> Guarded {
    let dir = tempfile::tempdir().expect("a directory");
    mosquitto_passwd(&dir.path().join("users"), &USERS).await;
    std::fs::write(dir.path().join("acl"), ACL).expect("written");
    let files = [("auth.password_file", "{dir}/users"), ("auth.acl_file", "{dir}/acl")];
    Guarded::start_in(size, dir, &[&files, settings].concat()).await
}

fn connect(version: Version, user: &str) -> Connect {
    let (_, password) = USERS.iter().find(|(name, _)| *name == user).expect("a user");
    Connect::clean(version, &format!("{user}-client")).user(user, password)
}

async fn open(at: &str, version: Version, user: &str) -> Client {
    Client::connect(at, &connect(version, user)).await.0
}

async fn suback(client: &mut Client, filters: &[(&str, u8)]) -> Vec<u8> {
    let pid = client.next_pid();
    let frame = codec::subscribe(client.version, pid, filters);
    client.send(&frame).await.expect("SUBSCRIBE");
    client
        .wait_for("SUBACK", |packet| match packet {
            Packet::Suback { pid: answered, codes } if *answered == pid => Some(codes.clone()),
            _ => None,
        })
        .await
}

/// Everything that comes up to what `by` publishes last on a topic that `client` may read.
async fn until_end(client: &mut Client, by: &mut Client, topic: &str) -> Vec<String> {
    by.publish(topic, "end", 1).await;
    let messages = client.messages_until("end").await;
    messages.into_iter().map(|message| message.topic).collect()
}

#[tokio::test]
async fn a_publish_that_is_not_allowed_reaches_nobody() {
    let guarded = guarded(1, &[("auth.denied_publish", "acknowledge")]).await;
    let rules = "user reader\ntopic #\n";
    guarded
        .rewrite("acl", &format!("{ACL}user bob\ntopic readwrite #\n{rules}"))
        .await;
    let mut bob = open(guarded.at(), Version::V5, "bob").await;
    bob.subscribe(&[("#", 2)]).await;
    for version in VERSIONS {
        let mut alice = open(guarded.at(), version, "alice").await;
        for topic in ["a/secret", "b/x", "rr", "own/bob/x", "by-id/other/x", "news/x", "A/x"] {
            for qos in 0..3 {
                let retained = Publish {
                    retain: true,
                    ..Publish::new(topic, "no", qos)
                };
                let code = alice.publish_packet(retained).await;
                // 3.x cannot be told: acknowledged, as asked for.
                let expected = if version == Version::V5 && qos > 0 { 0x87 } else { 0 };
                assert_eq!(code, expected, "{version:?} {topic} at {qos}");
            }
        }
        for topic in ["a/b", "r/x", "own/alice/x", "by-id/alice-client/x"] {
            for qos in 0..3 {
                let code = alice.publish_packet(Publish::new(topic, "yes", qos)).await;
                assert!(code < 0x80, "{topic}: {code:#x}");
            }
        }
        let topics = until_end(&mut bob, &mut alice, "a/b").await;
        assert_eq!(topics.len(), 12, "{topics:?}");
        assert!(
            topics
                .iter()
                .all(|topic| ["a/b", "r/x", "own/alice/x", "by-id/alice-client/x"].contains(&&**topic))
        );
        alice.disconnect().await;
    }
    // Nothing of it is retained either.
    let mut late = Client::connect(guarded.at(), &Connect::clean(Version::V5, "late").user("bob", "b"))
        .await
        .0;
    late.subscribe(&[("#", 0)]).await;
    assert!(until_end(&mut late, &mut bob, "b/end").await.is_empty());
    let denied = guarded
        .counted("lontra_authorization_denied_total", "action=\"publish\"")
        .await;
    assert_eq!(denied, 42.0);
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn a_topic_alias_leads_around_nothing() {
    let guarded = guarded(1, &[]).await;
    let mut alice = open(guarded.at(), Version::V5, "alice").await;
    let aliased = |topic: &str| Publish {
        properties: vec![Property(TOPIC_ALIAS, Value::Two(1))],
        ..Publish::new(topic, "x", 1)
    };
    assert!(alice.publish_packet(aliased("a/b")).await < 0x80);
    assert!(alice.publish_packet(aliased("")).await < 0x80);
    assert_eq!(alice.publish_packet(aliased("a/secret")).await, 0x87);
    assert_eq!(
        alice.publish_packet(aliased("")).await,
        0x87,
        "the alias stands for what is denied now"
    );
    guarded.cluster.assert_no_panic();
}

/// What a rule of `[topics]` makes of a topic is what is decided about.
#[tokio::test]
async fn a_rewrite_leads_around_nothing() {
    let rules =
        "[{ on = 'all', from = '^open/(.+)$', to = 'a/$1' }, { on = 'publish', from = '^me/(.+)$', to = 'own/%u/$1' }]";
    let guarded = guarded(1, &[("topics.rewrite", rules)]).await;
    let mut alice = open(guarded.at(), Version::V5, "alice").await;
    let mut bob = open(guarded.at(), Version::V5, "bob").await;
    // Bob may not read `a/hidden`, and `a/public/#` of all of `a/#`.
    let codes = suback(&mut bob, &[("open/hidden", 1), ("open/#", 1)]).await;
    assert_eq!(codes, [0x87, 1]);
    for (topic, retain, denied) in [
        ("open/secret", false, true),
        ("open/secret", true, true),
        ("open/hidden", false, false),
        ("open/public/x", false, false),
        ("me/x", false, false),
        ("own/bob/x", false, true),
    ] {
        let publish = Publish {
            retain,
            ..Publish::new(topic, "x", 1)
        };
        let code = alice.publish_packet(publish).await;
        assert_eq!(code == 0x87, denied, "{topic}: {code:#x}");
    }
    let aliased = Publish {
        properties: vec![Property(TOPIC_ALIAS, Value::Two(1))],
        ..Publish::new("open/secret", "x", 1)
    };
    assert_eq!(alice.publish_packet(aliased).await, 0x87);
    let will = connect(Version::V5, "alice").will(Will::new("open/secret", "x", 1));
    assert_eq!(guarded.connack(&will).await, 0x87);
    let mut again = open(guarded.at(), Version::V5, "alice").await;
    let topics = until_end(&mut bob, &mut again, "a/public/end").await;
    assert_eq!(topics, ["a/public/x"]);
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn a_wildcard_brings_only_what_may_be_read() {
    let guarded = guarded(3, &[]).await;
    let at = |index: usize| guarded.cluster.mqtt(index);
    for version in VERSIONS {
        let mut alice = open(at(0), version, "alice").await;
        let mut bob = open(at(1), version, "bob").await;
        // Retained, live, at each QoS, over the wildcard and exactly; from a queue below.
        let keep = Publish {
            retain: true,
            ..Publish::new("a/hidden", "kept", 1)
        };
        assert!(alice.publish_packet(keep).await < 0x80);
        let denied = if version == Version::V5 { 0x87 } else { 0x80 };
        let filters = [
            ("#", 2),
            ("a/+", 1),
            ("a/hidden", 1),
            ("own/alice/#", 0),
            ("$SYS/#", 0),
            ("a/public/x", 0),
        ];
        let codes = suback(&mut bob, &filters).await;
        // `a/public/#` takes `a/public`, and so does `a/+`.
        assert_eq!(codes, [2, 1, denied, denied, denied, 0], "{version:?}");
        for topic in ["a/hidden", "a/public/x", "own/alice/x"] {
            for qos in 0..3 {
                alice.publish_packet(Publish::new(topic, "x", qos)).await;
            }
        }
        let topics = until_end(&mut bob, &mut alice, "a/public/end").await;
        assert_eq!(topics, ["a/public/x"; 3], "{version:?}");
    }
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn a_queue_keeps_nothing_that_may_not_be_read_when_its_client_comes() {
    let guarded = guarded(1, &[]).await;
    let mut alice = open(guarded.at(), Version::V5, "alice").await;
    let persistent = Connect::persistent(Version::V5, "shared-id");
    let (mut owner, _) = Client::connect(guarded.at(), &persistent.clone().user("alice", "a")).await;
    owner.subscribe(&[("a/#", 2)]).await;
    owner.disconnect().await;
    for qos in 1..3 {
        alice.publish_packet(Publish::new("a/hidden", "x", qos)).await;
        alice.publish_packet(Publish::new("a/public/x", "x", qos)).await;
    }
    // Bob takes the session of that client id: what he may not read stays hidden from him.
    let (mut bob, connack) = Client::connect(guarded.at(), &persistent.user("bob", "b")).await;
    assert!(
        matches!(
            connack,
            Packet::Connack {
                session_present: true,
                ..
            }
        ),
        "{connack:?}"
    );
    let topics = until_end(&mut bob, &mut alice, "a/public/end").await;
    assert_eq!(topics, ["a/public/x"; 2]);
    let dropped = guarded
        .counted("lontra_messages_dropped_total", "reason=\"not_authorized\"")
        .await;
    assert_eq!(dropped, 2.0);
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn a_shared_subscription_must_be_readable_as_a_whole() {
    let guarded = guarded(1, &[]).await;
    let mut alice = open(guarded.at(), Version::V5, "alice").await;
    let mut bob = open(guarded.at(), Version::V5, "bob").await;
    let filters = [
        ("$share/g/#", 1),
        ("$share/g/a/#", 1),
        ("$share/g/a/+", 1),
        ("$share/g/a/hidden", 1),
        ("$share/g/$SYS/#", 0),
        ("$share/g/a/public/#", 1),
    ];
    assert_eq!(suback(&mut bob, &filters).await, [0x87, 0x87, 0x87, 0x87, 0x87, 1]);
    alice.publish("a/hidden", "x", 1).await;
    assert_eq!(until_end(&mut bob, &mut alice, "a/public/end").await, [""; 0]);
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn a_will_is_published_only_where_its_client_may() {
    let guarded = guarded(1, &[]).await;
    let mut alice = open(guarded.at(), Version::V5, "alice").await;
    alice.subscribe(&[("a/#", 1)]).await;
    for version in VERSIONS {
        let refused = if version == Version::V5 { 0x87 } else { 5 };
        let denied = connect(version, "bob").will(Will::new("a/x", "boo", 1));
        assert_eq!(guarded.connack(&denied).await, refused, "{version:?}");
    }
    // One that was allowed and is no more when it falls due.
    let allowed = connect(Version::V5, "bob").will(Will::new("b/will", "boo", 1));
    let (bob, _) = Client::connect(guarded.at(), &allowed).await;
    guarded
        .rewrite(
            "acl",
            &ACL.replace("readwrite b/#", "read b/#")
                .replace("user bob", "topic b/#\nuser bob"),
        )
        .await;
    alice.subscribe(&[("b/#", 1)]).await;
    drop(bob);
    eventually("bob is gone", SOON, || async {
        let connections = guarded.counted("lontra_connections", "").await;
        (connections == 1.0).then_some(())
    })
    .await;
    let mut other = Client::connect(guarded.at(), &Connect::clean(Version::V5, "o").user("alice", "a"))
        .await
        .0;
    assert_eq!(until_end(&mut alice, &mut other, "b/end").await, [""; 0]);
    let denied = guarded
        .counted("lontra_authorization_denied_total", "action=\"will\"")
        .await;
    assert_eq!(denied, 2.0);
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn names_with_wildcards_get_nothing_by_patterns() {
    let guarded = guarded(1, &[]).await;
    let mut plus = open(guarded.at(), Version::V5, "+").await;
    assert_eq!(
        suback(&mut plus, &[("own/alice/#", 0), ("own/#", 0), ("news/#", 0)]).await,
        [0x87; 3]
    );
    assert_eq!(plus.publish_code("own/alice/x", "x", 1).await, 0x87);
    let mut wild = Client::connect(guarded.at(), &Connect::clean(Version::V5, "#").user("alice", "a"))
        .await
        .0;
    assert_eq!(wild.publish_code("by-id/bob-client/x", "x", 1).await, 0x87);
    assert!(
        wild.publish_code("a/x", "x", 1).await < 0x80,
        "what is alice's own stays"
    );
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn a_revoked_subscription_gets_nothing_more() {
    let guarded = guarded(1, &[]).await;
    let mut alice = open(guarded.at(), Version::V5, "alice").await;
    let (mut bob, _) = Client::connect(guarded.at(), &connect(Version::V5, "bob")).await;
    bob.subscribe(&[("a/public/#", 1), ("b/#", 1)]).await;
    alice.publish("a/public/x", "x", 1).await;
    assert_eq!(bob.message().await.topic, "a/public/x");
    guarded
        .rewrite(
            "acl",
            &ACL.replace("topic read a/public/#\n", "")
                .replace("user alice", "user alice\ntopic b/#"),
        )
        .await;
    for qos in 0..3 {
        alice.publish_packet(Publish::new("a/public/x", "x", qos)).await;
    }
    assert_eq!(until_end(&mut bob, &mut alice, "b/end").await, [""; 0]);
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn a_revoked_subscription_ends_its_connection_where_configured() {
    let guarded = guarded(1, &[("auth.revocation", "disconnect")]).await;
    let (mut bob, _) = Client::connect(guarded.at(), &connect(Version::V5, "bob")).await;
    let (mut alice, _) = Client::connect(guarded.at(), &connect(Version::V311, "alice")).await;
    bob.subscribe(&[("a/public/#", 1), ("b/#", 1)]).await;
    guarded
        .rewrite("acl", &ACL.replace("topic read a/public/#\n", ""))
        .await;
    assert_eq!(bob.closed_by_server(SOON).await.0, Some(0x87));
    alice.ping().await;
    guarded.cluster.assert_no_panic();
}

/// 3.x has no way to say no, and a yes would be a lie.
#[tokio::test]
async fn a_3_x_client_that_may_not_publish_is_let_go_and_not_acknowledged() {
    let guarded = guarded(1, &[]).await;
    for qos in 0..3 {
        let mut alice = open(guarded.at(), Version::V311, "alice").await;
        let denied = Publish {
            pid: u16::from(qos > 0),
            ..Publish::new("b/x", "x", qos)
        };
        alice.send(&denied.encode(Version::V311)).await.expect("PUBLISH");
        let answer = alice.packet_within(SOON).await;
        assert!(matches!(answer, Err(Gone::Closed(_))), "QoS {qos}: {answer:?}");
    }
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn own_rules_tell_groups_and_addresses_apart() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("users");
    let path = path.to_str().expect("text");
    crate::support::auth::lontra_user(&["add", path, "alice", "--groups", "ops,staff"], "a").await;
    crate::support::auth::lontra_user(&["add", path, "bob"], "b").await;
    let rules = r##"["deny user=bob publish all/secret", "allow publish,subscribe all/#", "allow group=ops subscribe $SYS/#",
                     "allow address=127.0.0.0/8 publish here/%u", "allow address=10.0.0.0/8 publish there"]"##;
    let settings = [
        ("auth.password_file", "{dir}/users"),
        ("auth.rules", &rules.replace('\n', " ")),
    ];
    let guarded = Guarded::start_in(1, dir, &settings).await;
    let mut alice = open(guarded.at(), Version::V5, "alice").await;
    let mut bob = open(guarded.at(), Version::V5, "bob").await;
    assert_eq!(suback(&mut alice, &[("$SYS/#", 0), ("all/#", 0)]).await, [0, 0]);
    assert_eq!(suback(&mut bob, &[("$SYS/#", 0), ("all/#", 0)]).await, [0x87, 0]);
    for (topic, of_alice, of_bob) in [
        ("all/secret", true, false),
        ("all/x", true, true),
        ("here/alice", true, false),
        ("here/bob", false, true),
        ("there", false, false),
        ("$SYS/x", false, false),
    ] {
        assert_eq!(
            alice.publish_code(topic, "x", 1).await < 0x80,
            of_alice,
            "alice on {topic}"
        );
        assert_eq!(bob.publish_code(topic, "x", 1).await < 0x80, of_bob, "bob on {topic}");
    }
    guarded.cluster.assert_no_panic();
}

// ---- the same questions to Mosquitto ----

struct Mosquitto {
    address: String,
    _child: Child,
}

impl Mosquitto {
    async fn start(dir: &std::path::Path) -> Mosquitto {
        let port = free_ports(1) + 60;
        let text = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\nuser root\npassword_file {dir}/users\nacl_file {dir}/acl\n",
            dir = dir.display()
        );
        let config = dir.join("mosquitto.conf");
        std::fs::write(&config, text).expect("written");
        let child = Command::new("mosquitto")
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .or_else(|_| {
                let mut elsewhere = Command::new("/usr/sbin/mosquitto");
                elsewhere.arg("-c").arg(&config).kill_on_drop(true).spawn()
            })
            .expect("mosquitto (package mosquitto)");
        let address = format!("127.0.0.1:{port}");
        eventually("mosquitto listens", SOON, || async {
            tokio::net::TcpStream::connect(&address).await.ok().map(drop)
        })
        .await;
        Mosquitto { address, _child: child }
    }
}

/// Of each topic: whether the client's publish arrives at one that may read all, and whether it gets what is published there.
async fn decisions(at: &str, connect: &Connect, topics: &[String]) -> Vec<(String, bool, bool)> {
    let all = Connect::clean(Version::V5, "watcher").user("watcher", "w");
    let (mut watcher, _) = Client::connect(at, &all).await;
    watcher.subscribe(&[("#", 0), ("$dollar/#", 0)]).await;
    let (mut asked, _) = Client::connect(at, connect).await;
    // Refused or not: what counts is what comes.
    suback(&mut asked, &[("#", 0), ("$dollar/#", 0)]).await;
    for topic in topics {
        asked
            .send(&Publish::new(topic, "asked", 0).encode(Version::V5))
            .await
            .expect("PUBLISH");
        asked.ping().await;
        watcher
            .send(&Publish::new(topic, "watched", 0).encode(Version::V5))
            .await
            .expect("PUBLISH");
        watcher.ping().await;
    }
    // Both are told of the end in order, on topics that they may read.
    watcher.publish("watcher/end", "end", 1).await;
    let seen = watcher.messages_until("end").await;
    asked.ping().await;
    let mut got = Vec::new();
    while asked.has_kept() {
        got.push(asked.message().await);
    }
    let decide = |topic: &String| {
        let published = seen
            .iter()
            .any(|message| message.payload == b"asked" && message.topic == *topic);
        let read = got
            .iter()
            .any(|message| message.payload == b"watched" && message.topic == *topic);
        (topic.clone(), published, read)
    };
    topics.iter().map(decide).collect()
}

/// As `ops/docs/security.md` promises: nothing else is configured.
#[tokio::test]
async fn a_site_of_mosquitto_starts_with_two_lines() {
    let dir = tempfile::tempdir().expect("a directory");
    mosquitto_passwd(&dir.path().join("users"), &[("alice", "a"), ("watcher", "w")]).await;
    let acl = "user alice\ntopic readwrite a/#\nuser watcher\ntopic #\ntopic $dollar/#\n";
    std::fs::write(dir.path().join("acl"), acl).expect("written");
    let two = [("auth.password_file", "{dir}/users"), ("auth.acl_file", "{dir}/acl")];
    let guarded = Guarded::start_in(1, dir, &two).await;
    let alice = Connect::clean(Version::V5, "c").user("alice", "a");
    let topics = ["a/b".to_owned(), "b".to_owned()];
    let decided = decisions(guarded.at(), &alice, &topics).await;
    let expected = [("a/b".to_owned(), true, true), ("b".to_owned(), false, false)];
    assert_eq!(decided, expected);
    assert_eq!(
        guarded
            .connack(&Connect::clean(Version::V5, "c").user("alice", "b"))
            .await,
        0x86
    );
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn mosquitto_decides_the_same_with_the_same_files() {
    let dir = tempfile::tempdir().expect("a directory");
    let users = [
        ("alice", "a"),
        ("bob", "b"),
        ("a+b", "p"),
        ("watcher", "w"),
        ("none", "n"),
    ];
    mosquitto_passwd(&dir.path().join("users"), &users).await;
    let acl = "\
topic read anonymous/#
topic deny anonymous/secret
topic write $dollar/anonymous
user alice
topic a/+/c
topic deny a/x/c
topic read a/x/#
topic readwrite slash/
user watcher
topic #
topic $dollar/#
user bob
topic deny #
topic readwrite b/#
user alice
topic write more/#
pattern read p/%u/#
pattern write p/%c
pattern deny p/alice/secret
pattern readwrite mid%c/x
user a+b
topic plain/#
";
    std::fs::write(dir.path().join("acl"), acl).expect("written");
    let mosquitto = Mosquitto::start(dir.path()).await;
    let settings = [
        ("auth.password_file", "{dir}/users"),
        ("auth.acl_file", "{dir}/acl"),
        ("auth.anonymous", "always"),
    ];
    let guarded = Guarded::start_in(1, dir, &settings).await;
    let topics = [
        "anonymous",
        "anonymous/x",
        "anonymous/secret",
        "$dollar/anonymous",
        "$dollar/x",
        "a/b/c",
        "a/x/c",
        "a/x/d",
        "a/b",
        "slash/",
        "slash",
        "b",
        "b/x",
        "more/x",
        "p/alice",
        "p/alice/x",
        "p/alice/secret",
        "p/bob/x",
        "p/id",
        "p/x/y",
        "midid/x",
        "midalice/x",
        "plain/x",
        "p/a+b/x",
    ];
    // A topic name has no wildcards.
    let topics: Vec<String> = topics
        .iter()
        .filter(|topic| !topic.contains('+'))
        .map(|topic| (*topic).into())
        .collect();
    let mut allowed = 0;
    for (user, password) in [("", ""), ("alice", "a"), ("bob", "b"), ("a+b", "p"), ("none", "n")] {
        for id in ["id", "x/y", "i+d", "alice"] {
            let connect = match user {
                "" => Connect::clean(Version::V5, id),
                user => Connect::clean(Version::V5, id).user(user, password),
            };
            let theirs = decisions(&mosquitto.address, &connect, &topics).await;
            let ours = decisions(guarded.at(), &connect, &topics).await;
            assert_eq!(ours, theirs, "user {user:?}, client {id}: topic, publish, read");
            allowed += theirs.iter().filter(|(_, publish, read)| *publish || *read).count();
        }
    }
    assert!(allowed > 50, "{allowed}: the files allow something");
    guarded.cluster.assert_no_panic();
}
