//! Limits as clients and operators see them: who is above a rate waits, who is beyond a number is refused with its reason
//! code, who comes and goes too often is banned. Table of ops/docs/limits.md.

use crate::support::auth::{Guarded, lontra_user};
use crate::support::client::Client;
use crate::support::cluster::free_ports;
use crate::support::codec::{self, Connect, Packet, Property, Publish, VERSIONS, Value, Version};
use crate::support::{SOON, eventually};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

async fn with(settings: &[(&str, &str)]) -> Guarded {
    Guarded::start(1, &[], settings).await
}

async fn held(guarded: &Guarded, limit: &str) -> f64 {
    guarded
        .counted("lontra_limit_holds_total", &format!("limit=\"{limit}\""))
        .await
}

async fn refused(guarded: &Guarded, limit: &str) -> f64 {
    guarded
        .counted("lontra_limit_refusals_total", &format!("limit=\"{limit}\""))
        .await
}

fn payloads(count: usize, bytes: usize) -> Vec<Vec<u8>> {
    vec![vec![b'x'; bytes]; count]
}

/// How long a client took to have `count` publishes acknowledged, all under way at once.
async fn publishes(client: &mut Client, count: usize, bytes: usize) -> Duration {
    let began = Instant::now();
    client.publish_all("limits/x", &payloads(count, bytes), count).await;
    began.elapsed()
}

// ---- rates ----

#[tokio::test]
async fn a_client_above_its_rate_waits_and_the_others_do_not() {
    let guarded = with(&[
        ("limits.client_message_rate", "50"),
        ("limits.client_byte_rate", "64KiB"),
    ])
    .await;
    for version in VERSIONS {
        // 50 at once, then 50 a second; nothing is lost, and the time does not count against Keep Alive.
        let connect = Connect::clean(version, "loud").keep_alive(1);
        let (mut loud, _) = Client::connect(guarded.at(), &connect).await;
        let mut quiet = Client::open(guarded.at(), version, "quiet").await;
        let beside = async {
            let mut slowest = Duration::ZERO;
            for _ in 0..40 {
                let began = Instant::now();
                quiet.publish("limits/y", "y", 1).await;
                slowest = slowest.max(began.elapsed());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            slowest
        };
        let (elapsed, slowest) = tokio::join!(publishes(&mut loud, 200, 1), beside);
        assert!(elapsed > Duration::from_millis(2900), "{version:?}: {elapsed:?}");
        assert!(slowest < Duration::from_millis(2500), "{version:?}: {slowest:?}");
        // One that was held back is served again.
        loud.ping().await;
        let mut heavy = Client::open(guarded.at(), version, "heavy").await;
        let elapsed = publishes(&mut heavy, 8, 32 << 10).await;
        assert!(elapsed > Duration::from_millis(2400), "{version:?}: {elapsed:?}");
    }
    assert!(held(&guarded, "client_messages").await >= 2.0);
    assert!(held(&guarded, "client_bytes").await >= 2.0);
    assert_eq!(refused(&guarded, "over_rate").await, 0.0);
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn a_client_that_does_not_stop_is_disconnected_with_0x96() {
    let guarded = with(&[
        ("limits.client_message_rate", "20"),
        ("limits.over_rate_max", "2s"),
        ("limits.burst", "500ms"),
    ])
    .await;
    for version in VERSIONS {
        let mut client = Client::open(guarded.at(), version, "endless").await;
        let publish = Publish::new("limits/x", "x", 0).encode(version);
        let all: Vec<u8> = std::iter::repeat_n(publish, 1_000).flatten().collect();
        client.send(&all).await.expect("the socket takes it");
        let (code, elapsed) = client.closed_by_server(SOON).await;
        assert_eq!(code, (version == Version::V5).then_some(0x96), "{version:?}");
        assert!(elapsed > Duration::from_millis(1500), "{version:?}: {elapsed:?}");
    }
    assert_eq!(refused(&guarded, "over_rate").await, 2.0);
    eventually("each that was refused has gone, and nobody else", SOON, || async {
        let ended = guarded
            .counted("lontra_disconnects_total", "reason=\"quota exceeded\"")
            .await;
        (ended == refused(&guarded, "unfinished_bytes").await).then_some(())
    })
    .await;
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn listeners_and_the_node_have_rates_of_their_own() {
    let port = free_ports(1) + 50;
    let listeners = format!(
        "[{{ name = \"slow\", kind = \"mqtt\", listen = \"127.0.0.1:{port}\", message_rate = 50 }}, \
          {{ name = \"thin\", kind = \"mqtt\", listen = \"127.0.0.1:{}\", byte_rate = \"64KiB\" }}]",
        port + 1
    );
    let guarded = with(&[("listeners", &listeners), ("limits.message_rate", "400")]).await;
    let open = async |port: u16, name: &str| Client::open(&format!("127.0.0.1:{port}"), Version::V5, name).await;
    // Two clients share what their listener may.
    let (mut one, mut two) = (open(port, "one").await, open(port, "two").await);
    let (first, second) = tokio::join!(publishes(&mut one, 75, 1), publishes(&mut two, 75, 1));
    let elapsed = first.max(second);
    assert!(elapsed > Duration::from_millis(1900), "{elapsed:?}");
    let mut thin = open(port + 1, "thin").await;
    let elapsed = publishes(&mut thin, 8, 32 << 10).await;
    assert!(elapsed > Duration::from_millis(2400), "{elapsed:?}");
    assert!(held(&guarded, "listener_messages").await >= 1.0);
    assert!(held(&guarded, "listener_bytes").await >= 1.0);
    // And all listeners what the node may.
    let mut elsewhere = Client::open(guarded.at(), Version::V5, "elsewhere").await;
    let elapsed = publishes(&mut elsewhere, 1_000, 1).await;
    assert!(elapsed > Duration::from_millis(1400), "{elapsed:?}");
    assert!(held(&guarded, "node_messages").await >= 1.0);
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn connections_above_the_rate_of_the_node_wait_and_none_is_refused() {
    let guarded = with(&[("limits.connection_rate", "20")]).await;
    let began = Instant::now();
    let mut clients = Vec::new();
    for n in 0..60 {
        let address = guarded.at().to_owned();
        clients.push(tokio::spawn(async move {
            Client::open(&address, VERSIONS[n % 2], &format!("wait-{n}")).await
        }));
    }
    for client in clients {
        client.await.expect("it is served");
    }
    let elapsed = began.elapsed();
    assert!(elapsed > Duration::from_millis(1500), "{elapsed:?}");
    assert!(held(&guarded, "connection_rate").await >= 1.0);
    guarded.cluster.assert_no_panic();
}

// ---- who may come in ----

#[tokio::test]
async fn an_address_has_a_rate_and_a_number_of_connections() {
    let guarded = with(&[
        ("limits.address_connection_rate", "5"),
        ("limits.burst", "2s"),
        ("limits.flapping_ban", "1s"),
    ])
    .await;
    let mut told = [0; 256];
    for n in 0..30 {
        let connect = Connect::clean(Version::V5, &format!("rate-{n}"));
        told[usize::from(guarded.connack(&connect).await)] += 1;
    }
    let old = Connect::clean(Version::V311, "rate-old");
    told[usize::from(guarded.connack(&old).await)] += 1;
    assert!(told[0] >= 10 && told[0x9f] >= 5 && told[3] <= 1, "{:?}", &told[..4]);
    assert_eq!(told[0] + told[0x9f] + told[3], 31);
    assert!(refused(&guarded, "address_connection_rate").await >= 5.0);
    // Over TLS there are no words before the handshake: it is not made.
    eventually("a connection over TLS is closed before its handshake", SOON, || async {
        for n in 0..12 {
            guarded
                .connack(&Connect::clean(Version::V5, &format!("again-{n}")))
                .await;
        }
        let mut stream = TcpStream::connect(&guarded.cluster.nodes[0].mqtts)
            .await
            .expect("a connection");
        let end = timeout(Duration::from_millis(500), stream.read(&mut [0; 16])).await;
        matches!(end, Ok(Ok(0) | Err(_))).then_some(())
    })
    .await;
    let closed = guarded
        .counted("lontra_connections_refused_total", "reason=\"limit\"")
        .await;
    assert!(closed >= 1.0, "{closed}");
    eventually("it is let in again", SOON, || async {
        (guarded.connack(&Connect::clean(Version::V5, "later")).await == 0).then_some(())
    })
    .await;
    guarded.cluster.assert_no_panic();

    let guarded = with(&[("limits.address_connections_max", "3")]).await;
    let mut open = Vec::new();
    for n in 0..3 {
        open.push(Client::open(guarded.at(), Version::V5, &format!("open-{n}")).await);
    }
    assert_eq!(guarded.connack(&Connect::clean(Version::V5, "x")).await, 0x97);
    assert_eq!(guarded.connack(&Connect::clean(Version::V311, "x")).await, 3);
    assert_eq!(refused(&guarded, "address_connections").await, 2.0);
    open.pop().expect("one").disconnect().await;
    assert_eq!(guarded.connack(&Connect::clean(Version::V5, "x")).await, 0);
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn an_address_that_guesses_waits_and_nothing_is_hashed_for_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("users");
    lontra_user(&["add", path.to_str().expect("text"), "alice"], "a").await;
    let settings = [
        ("auth.password_file", "{dir}/users"),
        ("limits.failed_logins_address_max", "3"),
        // Longer than the test.
        ("limits.flapping_window", "1h"),
    ];
    let guarded = Guarded::start_in(1, dir, &settings).await;
    let show = |version, user: &str, password: &str| Connect::clean(version, "c").user(user, password);
    assert_eq!(guarded.connack(&show(Version::V5, "alice", "a")).await, 0);
    for user in ["alice", "nobody", "alice"] {
        assert_eq!(guarded.connack(&show(Version::V5, user, "guess")).await, 0x86, "{user}");
    }
    // Whatever it shows now, right or wrong.
    for password in ["a", "guess"] {
        assert_eq!(
            guarded.connack(&show(Version::V5, "alice", password)).await,
            0x9f,
            "{password}"
        );
        assert_eq!(
            guarded.connack(&show(Version::V311, "alice", password)).await,
            3,
            "{password}"
        );
    }
    assert_eq!(refused(&guarded, "failed_logins").await, 4.0);
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn a_user_has_a_number_of_connections() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("users");
    for name in ["alice", "bob"] {
        lontra_user(&["add", path.to_str().expect("text"), name], "p").await;
    }
    let settings = [
        ("auth.password_file", "{dir}/users"),
        ("limits.user_connections_max", "2"),
    ];
    let guarded = Guarded::start_in(1, dir, &settings).await;
    let of = |version, user: &str, client_id: &str| Connect::clean(version, client_id).user(user, "p");
    let v5 = |user: &str, client_id: &str| of(Version::V5, user, client_id);
    let (_one, _) = Client::connect(guarded.at(), &v5("alice", "a1")).await;
    let (two, _) = Client::connect(guarded.at(), &v5("alice", "a2")).await;
    assert_eq!(guarded.connack(&v5("alice", "a3")).await, 0x97);
    assert_eq!(guarded.connack(&of(Version::V311, "alice", "a3")).await, 3);
    assert_eq!(guarded.connack(&v5("bob", "b1")).await, 0, "another user");
    // It takes its own session over, again and again.
    let (mut again, _) = Client::connect(guarded.at(), &v5("alice", "a1")).await;
    again.ping().await;
    two.disconnect().await;
    assert_eq!(guarded.connack(&v5("alice", "a3")).await, 0);
    assert_eq!(refused(&guarded, "user_connections").await, 2.0);
    guarded.cluster.assert_no_panic();
}

/// At QoS 0 nothing else bounds it: it is not answered, and retained messages go through their shard.
#[tokio::test]
async fn what_waits_for_its_shard_is_bounded_in_bytes_at_qos_0_too() {
    let guarded = with(&[]).await;
    let waiting = async || guarded.counted("lontra_publishes_waiting_bytes", "").await;
    let flood: Vec<u8> = (0..600)
        .flat_map(|n| {
            let retained = Publish {
                retain: true,
                ..Publish::new(&format!("waiting/{}", n % 8), vec![b'x'; 64 << 10], 0)
            };
            retained.encode(Version::V5)
        })
        .collect();
    let mut client = Client::open(guarded.at(), Version::V5, "flood").await;
    let publishes = async {
        client.send(&flood).await.expect("all is taken in the end");
        // What came before it was taken before it.
        client.publish("waiting/end", "end", 1).await;
    };
    let mut most = 0f64;
    let watching = async {
        loop {
            most = most.max(waiting().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = publishes => {}
        () = watching => {}
    }
    assert!(most > 0.0 && most < f64::from(9 << 20), "{most} bytes under way");
    assert!(held(&guarded, "publishes_waiting").await >= 1.0);
    // What a client leaves behind counts until it is stored, and then no more.
    client.send(&flood).await.expect("all is taken in the end");
    drop(client);
    eventually("nothing is under way", 6 * SOON, || async {
        (waiting().await == 0.0).then_some(())
    })
    .await;
    guarded.cluster.assert_no_panic();
}

// ---- packets and subscriptions ----

#[tokio::test]
async fn halves_of_packets_are_bounded_together_and_who_finishes_stays() {
    let guarded = with(&[
        ("node.workers", "2"),
        ("mqtt.packet_size_max", "512KiB"),
        ("limits.unfinished_bytes_max", "4MiB"),
    ])
    .await;
    let v5 = Version::V5;
    let publish = |pid| Publish {
        pid,
        ..Publish::new("halves/x", vec![b'x'; 400 << 10], 1)
    };
    let packet = publish(7).encode(v5);
    let (half, rest) = packet.split_at(300 << 10);
    let mut clients = Vec::new();
    for n in 0..40 {
        let mut client = Client::open(guarded.at(), v5, &format!("half-{n}")).await;
        client.send(half).await.expect("half a packet");
        clients.push(client);
    }
    // Each of two workers has room for six at most.
    eventually("the oldest have gone", SOON, || async {
        (refused(&guarded, "unfinished_bytes").await >= 28.0).then_some(())
    })
    .await;
    let mut last = clients.pop().expect("the last one");
    assert_eq!(clients[0].closed_by_server(SOON).await.0, Some(0x97));
    last.send(rest).await.expect("the rest");
    assert!(
        matches!(last.packet().await, Ok(Packet::Puback { pid: 7, .. })),
        "the newest goes on"
    );
    // Who gets packets done is never the oldest, however many it sends.
    let mut busy = Client::open(guarded.at(), v5, "busy").await;
    for pid in 1..=30 {
        busy.publish_packet(publish(pid)).await;
    }
    busy.disconnect().await;
    let ended = guarded
        .counted("lontra_disconnects_total", "reason=\"quota exceeded\"")
        .await;
    assert_eq!(ended, refused(&guarded, "unfinished_bytes").await);
    guarded.cluster.assert_no_panic();
}

#[tokio::test]
async fn packets_and_subscriptions_have_limits_that_can_be_set() {
    let guarded = with(&[
        ("limits.user_properties_max", "2"),
        ("limits.filters_per_packet_max", "3"),
        ("limits.topic_bytes_max", "20"),
        ("mqtt.topic_levels_max", "4"),
        ("mqtt.packet_size_max", "1KiB"),
        ("limits.subscriptions_max", "4"),
        ("retained.messages_max", "12"),
    ])
    .await;
    let pair = || Property(USER_PROPERTY, Value::Pair("k".into(), "v".into()));
    let with_properties = |count| Publish {
        properties: vec![pair(); count],
        ..Publish::new("limits/x", "x", 0)
    };
    let v5 = Version::V5;
    let long = "x".repeat(21);
    for (what, packet, code, limit) in [
        ("properties", with_properties(3).encode(v5), 0x97, "user_properties"),
        (
            "filters",
            codec::unsubscribe(v5, 1, &["a", "b", "c", "d"]),
            0x97,
            "filters_per_packet",
        ),
        ("length", Publish::new(&long, "x", 0).encode(v5), 0x90, "topic"),
        ("levels", Publish::new("a/b/c/d/e", "x", 0).encode(v5), 0x90, "topic"),
        (
            "size",
            Publish::new("a", vec![b'x'; 2000], 0).encode(v5),
            0x95,
            "packet_size",
        ),
    ] {
        let before = refused(&guarded, limit).await;
        let mut client = Client::open(guarded.at(), v5, "over").await;
        client.send(&packet).await.expect("a packet");
        assert_eq!(client.closed_by_server(SOON).await.0, Some(code), "{what}");
        assert_eq!(refused(&guarded, limit).await, before + 1.0, "{what}");
    }
    // What an acknowledgement can tell ends no connection.
    let mut client = Client::open(guarded.at(), v5, "over").await;
    let before = refused(&guarded, "topic").await;
    for (topic, qos) in [(&*long, 1), (&*long, 2), ("a/b/c/d/e", 1), ("a/b/c/d/e", 2)] {
        let publish = Publish::new(topic, "x", qos);
        assert_eq!(client.publish_packet(publish).await, 0x90, "{topic} at QoS {qos}");
        assert!(client.publish_packet(Publish::new("a", "x", qos)).await < 0x80);
    }
    // An alias for such a name stands for nothing else, until it is set anew.
    let aliased = |topic: &str, qos| Publish {
        properties: vec![Property(codec::TOPIC_ALIAS, Value::Two(1))],
        ..Publish::new(topic, "x", qos)
    };
    assert_eq!(client.publish_packet(aliased(&long, 1)).await, 0x90);
    assert_eq!(client.publish_packet(aliased("", 2)).await, 0x90);
    assert!(client.publish_packet(aliased("a", 1)).await < 0x80);
    assert!(client.publish_packet(aliased("", 1)).await < 0x80);
    assert_eq!(refused(&guarded, "topic").await, before + 6.0);
    client.disconnect().await;
    for version in VERSIONS {
        let is_v5 = version == Version::V5;
        let before = refused(&guarded, "filters_per_packet").await;
        let mut client = Client::open(guarded.at(), version, "many").await;
        let codes = subscribe(&mut client, &[("a", 0), ("b", 0), ("c", 0), ("d", 0)]).await;
        assert_eq!(codes, [if is_v5 { 0x97 } else { 0x80 }; 4]);
        assert_eq!(refused(&guarded, "filters_per_packet").await, before + 1.0);
        assert_eq!(subscribe(&mut client, &[("a", 0), ("b", 1), ("c", 2)]).await, [0, 1, 2]);
        if !is_v5 {
            client
                .send(
                    &Publish {
                        pid: 9,
                        ..Publish::new(&long, "x", 1)
                    }
                    .encode(version),
                )
                .await
                .expect("PUBLISH");
            assert_eq!(client.closed_by_server(SOON).await.0, None);
        }
        drop(client);
        let connect = Connect::persistent(version, &format!("within-{version:?}"));
        let (mut client, _) = Client::connect(guarded.at(), &connect).await;
        if is_v5 {
            client.send(&with_properties(2).encode(version)).await.expect("PUBLISH");
        }
        let code = |v5, v3| if is_v5 { v5 } else { v3 };
        let filters = [("a/b/c/d/e", 1), (&*long, 1), ("a/b/c/d", 1)];
        assert_eq!(
            subscribe(&mut client, &filters).await,
            [code(0x8f, 0x80), code(0x8f, 0x80), 1]
        );
        // What is there already, or comes twice, takes no room.
        let quota = code(0x97, 0x80);
        assert_eq!(
            subscribe(&mut client, &[("a/b/c/d", 2), ("b", 0), ("b", 1)]).await,
            [2, 0, 1]
        );
        assert_eq!(
            subscribe(&mut client, &[("c", 0), ("d", 0), ("e", 0)]).await,
            [0, 0, quota]
        );
        assert_eq!(
            subscribe(&mut client, &[("$share/g/x", 0), ("a/b/c/d", 0)]).await,
            [quota, 0]
        );
        // Also for a session that comes back.
        drop(client);
        let (mut client, _) = Client::connect(guarded.at(), &connect).await;
        assert_eq!(subscribe(&mut client, &[("e", 0)]).await, [quota]);
        client.unsubscribe(&["d"]).await;
        assert_eq!(subscribe(&mut client, &[("e", 0), ("f", 0)]).await, [0, quota]);
        client.disconnect().await;
    }
    assert_eq!(refused(&guarded, "subscriptions").await, 8.0);
    // Retained messages of the cluster: each shard takes its part.
    let mut client = Client::open(guarded.at(), v5, "retained").await;
    let mut full = 0;
    for n in 0..60 {
        let retained = Publish {
            retain: true,
            ..Publish::new(&format!("r/{n}"), "x", 1)
        };
        full += usize::from(client.publish_packet(retained).await == 0x97);
    }
    assert!((48..60).contains(&full), "{full} of 60 are refused");
    assert_eq!(refused(&guarded, "retained").await, full as f64);
    guarded.cluster.assert_no_panic();
}

/// The reason codes of SUBACK.
async fn subscribe(client: &mut Client, filters: &[(&str, u8)]) -> Vec<u8> {
    let pid = client.next_pid();
    let packet = codec::subscribe(client.version, pid, filters);
    client.send(&packet).await.expect("SUBSCRIBE");
    client
        .wait_for("SUBACK", |packet| match packet {
            Packet::Suback { pid: answered, codes } if *answered == pid => Some(codes.clone()),
            _ => None,
        })
        .await
}

// ---- who comes and goes ----

#[tokio::test]
async fn who_comes_and_goes_too_often_is_banned_for_a_while() {
    let guarded = with(&[
        ("limits.flapping_client_max", "3"),
        ("limits.flapping_window", "1m"),
        ("limits.flapping_ban", "4s"),
    ])
    .await;
    for version in VERSIONS {
        let name = format!("flapping-{version:?}");
        let connect = Connect::clean(version, &name);
        for _ in 0..4 {
            Client::open(guarded.at(), version, &name).await.disconnect().await;
        }
        let banned = if version == Version::V5 { 0x8a } else { 5 };
        assert_eq!(guarded.connack(&connect).await, banned);
        assert_eq!(guarded.connack(&Connect::clean(version, "steady")).await, 0);
        eventually("it is let in again", SOON, || async {
            (guarded.connack(&connect).await == 0).then_some(())
        })
        .await;
    }
    // Two that take one session from each other are a case of it.
    for _ in 0..3 {
        let (first, second) = ("contended", "contended");
        let mut first = Client::open(guarded.at(), Version::V5, first).await;
        let second = Client::open(guarded.at(), Version::V5, second).await;
        assert_eq!(first.closed_by_server(SOON).await.0, Some(0x8e));
        second.disconnect().await;
        if guarded
            .counted("lontra_flapping_bans_total", "subject=\"client\"")
            .await
            > 2.0
        {
            break;
        }
    }
    assert_eq!(guarded.connack(&Connect::clean(Version::V5, "contended")).await, 0x8a);
    assert_eq!(
        guarded
            .counted("lontra_flapping_bans_total", "subject=\"client\"")
            .await,
        3.0
    );
    assert!(refused(&guarded, "banned_client").await >= 3.0);
    assert!(guarded.cluster.logs().contains("it connects and goes too often"));
    guarded.cluster.assert_no_panic();

    // By address: everybody behind it.
    let guarded = with(&[("limits.flapping_address_max", "5")]).await;
    for n in 0..6 {
        Client::open(guarded.at(), Version::V5, &format!("come-{n}"))
            .await
            .disconnect()
            .await;
    }
    assert_eq!(guarded.connack(&Connect::clean(Version::V5, "other")).await, 0x8a);
    assert_eq!(guarded.connack(&Connect::clean(Version::V311, "other")).await, 5);
    assert_eq!(refused(&guarded, "banned_address").await, 2.0);
    guarded.cluster.assert_no_panic();
}

const USER_PROPERTY: u8 = 0x26;
