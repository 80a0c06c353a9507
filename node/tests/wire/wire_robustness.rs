//! Attacks, one after the other, on one node that goes on serving: while each lasts a healthy pair publishes at a steady rate,
//! and its latency and the node's memory stay within bounds. Each attacker sees the reason code that is due, each operator a
//! metric with a reason. What is allowed goes by what the pair measures without the attack, before and after, and by how late timers
//! are meanwhile: by the machine of the same minute. The table of ops/docs/conformance.md (Robustness) is what this prints.

use crate::support::client::{Client, Gone};
use crate::support::cluster::Cluster;
use crate::support::codec::{self, Connect, Packet, Property, Publish, Value, Version};
use crate::support::steady::Steady;
use crate::support::{SOON, START, eventually};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// One node for all attacks; it ends with the test process. Its clients have 3 s for their CONNECT.
fn target() -> &'static Cluster {
    static TARGET: OnceLock<Cluster> = OnceLock::new();
    let start = || {
        let dir = tempfile::Builder::new().prefix("lontra-wire-").tempdir();
        let dir = dir.expect("a directory").keep();
        let settings = [("LONTRA__MQTT__CONNECT_TIMEOUT", "3s")];
        tokio::runtime::Runtime::new()
            .expect("a runtime")
            .block_on(Cluster::start_in(dir, 1, &settings))
    };
    TARGET.get_or_init(|| std::thread::spawn(start).join().expect("the node starts"))
}

/// Runs one attack beside a healthy pair, and tells what both were like.
async fn check<T>(attack: &str, resident_growth_max: u64, attacked: impl AsyncFnOnce(&'static Cluster) -> T) -> T {
    let _alone = crate::support::alone().await;
    let cluster = target();
    let node = &cluster.nodes[0];
    let pid = cluster.pid(node.id).expect("it runs");
    let steady = Steady::start(&node.mqtt, pid, &attack.replace(' ', "-")).await;
    let ((), quiet) = steady.during(tokio::time::sleep(QUIET)).await;
    let began = Instant::now();
    let (outcome, under) = steady.during(attacked(cluster)).await;
    let growth = under.resident_max.saturating_sub(quiet.resident_max);
    println!(
        "| {attack} | {:.1} s | {} | {:.1} / {:.1} / {:.1} ms | {:.1} / {:.1} / {:.1} ms | {} MiB |",
        began.elapsed().as_secs_f64(),
        under.messages,
        millis(quiet.p50),
        millis(quiet.p99),
        millis(quiet.max),
        millis(under.p50),
        millis(under.p99),
        millis(under.max),
        growth >> 20,
    );
    let ((), after) = steady.during(tokio::time::sleep(QUIET)).await;
    let bounds = [
        (
            "p50",
            under.p50,
            quiet.p50.max(after.p50) * 3 + P50_MORE + under.late * HOPS,
        ),
        (
            "p99",
            under.p99,
            quiet.p99.max(after.p99) * 5 + P99_MORE + under.late_max * HOPS,
        ),
    ];
    for (which, measured, bound) in bounds {
        assert!(
            measured <= bound,
            "{attack}: {which} {measured:?}, allowed are {bound:?}: {quiet:?} before, {under:?} meanwhile, {after:?} after"
        );
    }
    assert!(
        growth <= resident_growth_max,
        "{attack}: {growth} bytes more in memory, allowed are {resident_growth_max}"
    );
    drop(steady);
    cluster.assert_no_panic();
    outcome
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// How far a counter moves while something is done; waited for, since the last of it may be counted a moment later.
struct Counter {
    family: &'static str,
    label: String,
    before: f64,
}

impl Counter {
    async fn of(cluster: &Cluster, family: &'static str, label: &str) -> Counter {
        let before = cluster.metrics(1).await.sum_where(family, label);
        let label = label.to_owned();
        Counter { family, label, before }
    }

    async fn moved_by(&self, cluster: &Cluster, least: usize) {
        let what = format!("{}{{{}}} moves by {least}", self.family, self.label);
        eventually(&what, SOON, || async {
            let now = cluster.metrics(1).await.sum_where(self.family, &self.label);
            (now - self.before >= least as f64).then_some(())
        })
        .await;
    }
}

async fn refusals(cluster: &Cluster, limit: &str) -> Counter {
    Counter::of(cluster, "lontra_limit_refusals_total", &format!("limit=\"{limit}\"")).await
}

async fn disconnects(cluster: &Cluster, reason: &str) -> Counter {
    Counter::of(cluster, "lontra_disconnects_total", &format!("reason=\"{reason}\"")).await
}

// ---- connections that say little or nothing ----

#[tokio::test]
async fn connections_that_say_nothing_are_closed_in_time() {
    check("500 connections without a CONNECT", 32 << 20, async |cluster| {
        let label = "reason=\"connect_timeout\"";
        let counted = Counter::of(cluster, "lontra_connections_refused_total", label).await;
        let mut silent = Vec::new();
        for _ in 0..500 {
            silent.push(raw(cluster).await);
        }
        for client in &mut silent {
            assert_eq!(client.closed_by_server(SOON).await.0, None);
        }
        counted.moved_by(cluster, 500).await;
    })
    .await;
}

#[tokio::test]
async fn slowloris_gains_no_time_by_its_bytes() {
    check(
        "slowloris: 300 before and 200 after CONNECT",
        32 << 20,
        async |cluster| {
            let label = "reason=\"connect_timeout\"";
            let refused = Counter::of(cluster, "lontra_connections_refused_total", label).await;
            let ended = disconnects(cluster, "keep alive timeout").await;
            let mut slow = JoinSet::new();
            for n in 0..300 {
                let bytes = Connect::clean(Version::V5, &format!("slow-{n}")).encode();
                slow.spawn(async move { drip(raw(cluster).await, bytes, None).await });
            }
            for n in 0..200 {
                slow.spawn(async move {
                    let connect = Connect::clean(Version::V5, &format!("slow-c-{n}")).keep_alive(2);
                    let (client, _) = Client::connect(cluster.mqtt(0), &connect).await;
                    let bytes = Publish::new("slow/x", vec![b'x'; 100], 0).encode(Version::V5);
                    drip(client, bytes, Some(KEEP_ALIVE_TIMEOUT)).await;
                });
            }
            all(slow).await;
            refused.moved_by(cluster, 300).await;
            ended.moved_by(cluster, 200).await;
        },
    )
    .await;
}

/// A byte a second, until the server ends it.
async fn drip(mut client: Client, bytes: Vec<u8>, expected: Option<u8>) {
    let began = Instant::now();
    for byte in bytes {
        if client.send(&[byte]).await.is_err() {
            break;
        }
        match client.packet_within(Duration::from_secs(1)).await {
            Err(Gone::Silent(_)) => {}
            Ok(Packet::Disconnect { code, .. }) => {
                assert_eq!(Some(code), expected);
                return;
            }
            Err(Gone::Closed(_)) => return assert!(expected.is_none()),
            other => panic!("{other:?}"),
        }
        assert!(began.elapsed() < SOON, "it is still served");
    }
}

#[tokio::test]
async fn half_open_connections_end_with_their_keep_alive() {
    check("500 clients that vanish without a word", 48 << 20, async |cluster| {
        let ended = disconnects(cluster, "keep alive timeout").await;
        let mut vanished = Vec::new();
        for n in 0..500 {
            let connect = Connect::clean(Version::V5, &format!("half-{n}")).keep_alive(1);
            vanished.push(Client::connect(cluster.mqtt(0), &connect).await.0);
        }
        // Their sockets stay open and say nothing, like those of machines that lost their power.
        for client in &mut vanished {
            assert_eq!(client.closed_by_server(SOON).await.0, Some(KEEP_ALIVE_TIMEOUT));
        }
        ended.moved_by(cluster, 500).await;
    })
    .await;
}

// ---- TLS ----

#[tokio::test]
async fn a_storm_of_tls_handshakes_leaves_the_served_alone() {
    check(
        "TLS: full handshakes without a pause for 3 s, 300 half ones",
        64 << 20,
        async |cluster| {
            let whole = Counter::of(cluster, "lontra_tls_handshakes_total", "result=\"full\"").await;
            let node = &cluster.nodes[0];
            let mut half = Vec::new();
            for _ in 0..300 {
                let mut stream = TcpStream::connect(&node.mqtts).await.expect("a connection");
                let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
                stream.write_all(&hello).await.expect("written");
                half.push(stream);
            }
            let stop = Arc::new(AtomicBool::new(false));
            let done = Arc::new(AtomicUsize::new(0));
            let config = Arc::new(tls_config(&node.ca));
            let attackers: Vec<_> = (0..4)
                .map(|_| {
                    let (stop, done, config, address) =
                        (stop.clone(), done.clone(), config.clone(), node.mqtts.clone());
                    std::thread::spawn(move || {
                        while !stop.load(Ordering::Relaxed) {
                            if handshake(&address, &config).is_ok() {
                                done.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    })
                })
                .collect();
            tokio::time::sleep(Duration::from_secs(3)).await;
            stop.store(true, Ordering::Relaxed);
            for attacker in attackers {
                tokio::task::spawn_blocking(|| attacker.join())
                    .await
                    .expect("joined")
                    .expect("no panic");
            }
            let done = done.load(Ordering::Relaxed);
            println!("TLS: {done} handshakes");
            assert!(done > 100, "{done} handshakes are no storm");
            whole.moved_by(cluster, done).await;
        },
    )
    .await;
}

fn tls_config(ca: &std::path::Path) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(ca).expect("PEM"))
        .expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = builder
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Each handshake is a full one.
    config.resumption = rustls::client::Resumption::disabled();
    config
}

fn handshake(address: &str, config: &Arc<ClientConfig>) -> std::io::Result<()> {
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SOON))?;
    let name = ServerName::try_from("localhost").expect("a name");
    let mut connection = ClientConnection::new(config.clone(), name).map_err(std::io::Error::other)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(())
}

// ---- packets ----

#[tokio::test]
async fn what_is_announced_too_large_is_refused_at_its_first_bytes() {
    check("600 announcements of 256 MiB and more", 16 << 20, async |cluster| {
        let counted = refusals(cluster, "packet_size").await;
        // 256 MiB are the most that four bytes of length can say; the fifth, which a GiB needs, is malformed.
        let largest = [0xff, 0xff, 0xff, 0x7f];
        let gibibyte = [0x80, 0x80, 0x80, 0x80, 0x04];
        for n in 0..150 {
            for (first, length, expected) in [
                (0x32, &largest[..], 0x95),
                (0x82, &largest[..], 0x95),
                (0x32, &gibibyte[..], 0x81),
            ] {
                let mut client = Client::open(cluster.mqtt(0), Version::V5, &format!("huge-{n}")).await;
                client.send(&[&[first], length].concat()).await.expect("bytes");
                let (code, elapsed) = client.closed_by_server(SOON).await;
                assert_eq!(code, Some(expected));
                assert!(elapsed < SOON / 2, "{elapsed:?}");
            }
            // Before CONNECT there is no version to answer in.
            let mut client = raw(cluster).await;
            client.send(&[&[0x10], &largest[..]].concat()).await.expect("bytes");
            assert_eq!(client.closed_by_server(SOON).await.0, None);
        }
        counted.moved_by(cluster, 450).await;
    })
    .await;
}

#[tokio::test]
async fn as_many_user_properties_as_there_can_be_are_refused() {
    check(
        "65,535 User Properties in a packet, 60 times",
        48 << 20,
        async |cluster| {
            let (many, large) = (
                refusals(cluster, "user_properties").await,
                refusals(cluster, "packet_size").await,
            );
            let properties = vec![Property(USER_PROPERTY, Value::Pair(String::new(), String::new())); 65_535];
            let publish = Publish {
                properties: properties.clone(),
                ..Publish::new("properties/x", "x", 0)
            };
            let publish = publish.encode(Version::V5);
            let subscribe = codec::subscribe_with(Version::V5, 1, &properties, &[("properties/x", 0)]);
            for n in 0..30 {
                for (packet, expected) in [(&publish, 0x97), (&subscribe, 0x95)] {
                    let mut client = Client::open(cluster.mqtt(0), Version::V5, &format!("properties-{n}")).await;
                    // The end may come before all of it is written.
                    client.send(packet).await.ok();
                    let ended = client.closed_by_server(SOON).await.0;
                    assert!(ended.is_none_or(|code| code == expected), "{ended:?}");
                }
            }
            many.moved_by(cluster, 30).await;
            large.moved_by(cluster, 30).await;
            // As many as are allowed are no attack.
            let mut client = Client::open(cluster.mqtt(0), Version::V5, "properties").await;
            let publish = Publish {
                properties: properties[..128].to_vec(),
                ..Publish::new("properties/x", "x", 1)
            };
            assert_eq!(client.publish_packet(publish).await, 0x10);
        },
    )
    .await;
}

#[tokio::test]
async fn subscription_bombs_cost_their_sender_only() {
    check("30,000 filters in one SUBSCRIBE, 20 times", 32 << 20, async |cluster| {
        let counted = refusals(cluster, "filters_per_packet").await;
        let filters: Vec<(&str, u8)> = vec![("bomb", 0); 30_000];
        let bomb = codec::subscribe(Version::V5, 1, &filters);
        for n in 0..20 {
            let mut client = Client::open(cluster.mqtt(0), Version::V5, &format!("bomb-{n}")).await;
            client.send(&bomb).await.expect("SUBSCRIBE");
            let codes = client
                .wait_for("SUBACK", |packet| match packet {
                    Packet::Suback { pid: 1, codes } => Some(codes.clone()),
                    _ => None,
                })
                .await;
            assert_eq!(codes, vec![0x97; 30_000]);
            client.ping().await;
        }
        counted.moved_by(cluster, 20).await;
    })
    .await;
    check(
        "a client that subscribes to 100,000 filters",
        256 << 20,
        async |cluster| {
            let began = Instant::now();
            let mut client = Client::open(cluster.mqtt(0), Version::V5, "many").await;
            subscribe_to_many(&mut client, 100).await;
            println!("100,000 filters in {:?}", began.elapsed());
            client.publish("many/50/x/500", "x", 1).await;
            assert_eq!(client.message().await.text(), "x");
            client.disconnect().await;
            let routes = || async { cluster.metrics(1).await.sum("lontra_subscriptions") < 100.0 };
            eventually("its subscriptions are gone", START, || async {
                routes().await.then_some(())
            })
            .await;
        },
    )
    .await;
}

#[tokio::test]
async fn a_persistent_session_with_many_filters_holds_nobody_up() {
    check(
        "a persistent session with 10,000 filters, made and ended",
        128 << 20,
        async |cluster| {
            let connect = Connect::persistent(Version::V5, "many-kept");
            let (mut client, _) = Client::connect(cluster.mqtt(0), &connect).await;
            subscribe_to_many(&mut client, 10).await;
            client.publish("many/5/x/500", "x", 1).await;
            assert_eq!(client.message().await.text(), "x");
            client.disconnect().await;
            // A CONNECT that begins anew ends it.
            let (client, _) = Client::connect(cluster.mqtt(0), &Connect::clean(Version::V5, "many-kept")).await;
            client.disconnect().await;
            eventually("its filters are gone", START, || async {
                let routes = cluster.metrics(1).await.sum("lontra_routes");
                (routes < 100.0).then_some(())
            })
            .await;
        },
    )
    .await;
}

#[tokio::test]
async fn who_leaves_while_it_subscribes_leaves_nothing_behind() {
    let _alone = crate::support::alone().await;
    let cluster = target();
    let names: Vec<String> = (0..1000).map(|n| format!("left/+/{n}")).collect();
    let filters: Vec<(&str, u8)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    for n in 0..20 {
        for connect in [Connect::clean, Connect::persistent] {
            let (mut client, _) = Client::connect(cluster.mqtt(0), &connect(Version::V5, &format!("left-{n}"))).await;
            client
                .send(&codec::subscribe(Version::V5, 1, &filters))
                .await
                .expect("SUBSCRIBE");
        }
        // It ends the session.
        let (client, _) = Client::connect(cluster.mqtt(0), &Connect::clean(Version::V5, &format!("left-{n}"))).await;
        client.disconnect().await;
    }
    // What those had under way is over by then.
    let mut last = Client::open(cluster.mqtt(0), Version::V5, "left-last").await;
    for _ in 0..5 {
        last.subscribe(&filters).await;
    }
    last.disconnect().await;
    eventually("no subscription and no route of them is left", START, || async {
        let metrics = cluster.metrics(1).await;
        let (subscriptions, routes) = (metrics.sum("lontra_subscriptions"), metrics.sum("lontra_routes"));
        (subscriptions < 100.0 && routes < 100.0).then_some(())
    })
    .await;
    cluster.assert_no_panic();
}

/// As many SUBSCRIBEs, with a thousand filters each.
async fn subscribe_to_many(client: &mut Client, packets: usize) {
    for packet in 0..packets {
        let names: Vec<String> = (0..1000).map(|n| format!("many/{packet}/+/{n}")).collect();
        let filters: Vec<(&str, u8)> = names.iter().map(|name| (name.as_str(), 1)).collect();
        client.subscribe(&filters).await;
    }
}

#[tokio::test]
async fn topic_aliases_hold_what_was_agreed_and_no_more() {
    check(
        "topic aliases: 200 wrong ones; 30 clients with long topics",
        192 << 20,
        async |cluster| {
            let (invalid, unknown) = (
                disconnects(cluster, "topic alias invalid").await,
                disconnects(cluster, "protocol error").await,
            );
            let aliased = |topic: &str, alias| {
                let properties = vec![Property(TOPIC_ALIAS, Value::Two(alias))];
                let publish = Publish {
                    properties,
                    ..Publish::new(topic, "x", 0)
                };
                publish.encode(Version::V5)
            };
            for n in 0..50 {
                for (topic, alias, expected) in [("a", 0, 0x94), ("a", 33, 0x94), ("a", 65_535, 0x94), ("", 1, 0x82)] {
                    let mut client = Client::open(cluster.mqtt(0), Version::V5, &format!("alias-{n}")).await;
                    client.send(&aliased(topic, alias)).await.expect("PUBLISH");
                    assert_eq!(client.closed_by_server(SOON).await.0, Some(expected));
                }
            }
            invalid.moved_by(cluster, 150).await;
            unknown.moved_by(cluster, 50).await;
            // Every alias again and again, with topics of 60 KiB: 32 of them stand at a time, for each client.
            let mut clients = JoinSet::new();
            for n in 0..30 {
                clients.spawn(async move {
                    let mut client = Client::open(cluster.mqtt(0), Version::V5, &format!("alias-long-{n}")).await;
                    for round in 0..100u16 {
                        let topic = format!("{n}/{round}/{}", "x".repeat(60 << 10));
                        client.send(&aliased(&topic, 1 + round % 32)).await.expect("PUBLISH");
                    }
                    client.ping().await;
                    client
                });
            }
            // All of them are there at once.
            let clients = all(clients).await;
            assert_eq!(clients.len(), 30);
        },
    )
    .await;
}

#[tokio::test]
async fn packet_identifiers_that_are_never_released_run_out_for_their_client_alone() {
    check(
        "QoS 2 without PUBREL: 20 clients of 5.0, all identifiers of one of 3.1.1",
        96 << 20,
        async |cluster| {
            let counted = disconnects(cluster, "receive maximum exceeded").await;
            let publish = |version, pid| {
                let publish = Publish {
                    pid,
                    ..Publish::new("identifiers/x", "x", 2)
                };
                publish.encode(version)
            };
            let mut clients = JoinSet::new();
            for n in 0..20 {
                clients.spawn(async move {
                    let mut client = Client::open(cluster.mqtt(0), Version::V5, &format!("identifiers-{n}")).await;
                    let all: Vec<u8> = (1..=1025).flat_map(|pid| publish(Version::V5, pid)).collect();
                    client.send(&all).await.expect("PUBLISH");
                    assert_eq!(client.closed_by_server(SOON).await.0, Some(RECEIVE_MAXIMUM_EXCEEDED));
                });
            }
            all(clients).await;
            counted.moved_by(cluster, 20).await;
            // Somebody is to get them, so that each is recorded.
            let (mut away, _) =
                Client::connect(cluster.mqtt(0), &Connect::persistent(Version::V5, "identifiers-away")).await;
            away.subscribe(&[("identifiers/#", 2)]).await;
            away.disconnect().await;
            // 3.x knows no such error: all 65,535 may be used up, and one that is used again is the same message.
            let mut client = Client::open(cluster.mqtt(0), Version::V311, "identifiers-all").await;
            for chunk in (1..=65_535u16).collect::<Vec<_>>().chunks(500) {
                let packets: Vec<u8> = chunk.iter().flat_map(|pid| publish(Version::V311, *pid)).collect();
                client.send(&packets).await.expect("PUBLISH");
                for pid in chunk {
                    client.pubrec_of(*pid).await;
                }
            }
            client.send(&publish(Version::V311, 7)).await.expect("PUBLISH");
            client.pubrec_of(7).await;
            assert_eq!(client.release(7).await, 0);
            client.disconnect().await;
        },
    )
    .await;
}

// ---- many ----

#[tokio::test]
async fn five_thousand_clients_lose_their_connections_and_come_back_at_once() {
    check("5,000 clients reconnect at once", 192 << 20, async |cluster| {
        let connected = |clients: usize| async move {
            eventually(&format!("{clients} connections are open"), START, || async {
                let open = cluster.metrics(1).await.sum("lontra_connections");
                // The pair's two.
                (open == clients as f64 + 2.0).then_some(())
            })
            .await;
        };
        let first = storm(cluster).await;
        connected(CROWD).await;
        drop(first);
        let began = Instant::now();
        let second = storm(cluster).await;
        println!("5,000 clients are back after {:?}", began.elapsed());
        connected(CROWD).await;
        drop(second);
        connected(0).await;
    })
    .await;
}

/// All of [`CROWD`], each trying again until it is in, as clients do.
async fn storm(cluster: &'static Cluster) -> Vec<Client> {
    let mut connecting = JoinSet::new();
    for n in 0..CROWD {
        connecting.spawn(async move {
            let connect = Connect::clean(Version::V5, &format!("crowd-{n}"));
            loop {
                match Client::try_connect(cluster.mqtt(0), &connect, SOON).await {
                    Ok((client, Packet::Connack { code: 0, .. })) => return client,
                    Ok((_, Packet::Connack { code: 0x89, .. })) | Err(Gone::Closed(_)) => {
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                    Ok((_, other)) => panic!("crowd-{n}: {other:?}"),
                    Err(other) => panic!("crowd-{n}: {other:?}"),
                }
            }
        });
    }
    all(connecting).await
}

async fn raw(cluster: &Cluster) -> Client {
    Client::raw(cluster.mqtt(0), Version::V5, SOON)
        .await
        .expect("a connection")
}

async fn all<T: 'static>(mut tasks: JoinSet<T>) -> Vec<T> {
    let mut done = Vec::new();
    while let Some(one) = tasks.join_next().await {
        done.push(one.expect("no panic"));
    }
    done
}

const QUIET: Duration = Duration::from_millis(1500);
/// A machine of two cores runs the node, the pair and the attackers.
const P50_MORE: Duration = Duration::from_millis(20);
const P99_MORE: Duration = Duration::from_millis(500);
/// Threads that a message passes on its way, each of which waits for its turn on a busy machine as the pair's own does.
const HOPS: u32 = 8;
const CROWD: usize = 5_000;
const USER_PROPERTY: u8 = 0x26;
const TOPIC_ALIAS: u8 = 0x23;
const KEEP_ALIVE_TIMEOUT: u8 = 0x8d;
const RECEIVE_MAXIMUM_EXCEEDED: u8 = 0x93;
