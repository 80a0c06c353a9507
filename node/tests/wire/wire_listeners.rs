//! Several listeners of a node: behind proxies, over IPv6, at Unix sockets; each with its limits and its mountpoint.

use crate::support::client::Client;
use crate::support::cluster::{Cluster, LONTRA, Node, free_ports};
use crate::support::codec::{Connect, Packet, Publish, VERSIONS, Version, Will};
use crate::support::pki::Pki;
use crate::support::websocket::{WebSocket, request};
use crate::support::{SOON, eventually, mosquitto, tls};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::process::Command;

/// A node with listeners of a test's own, in place of those of `lontra dev`.
struct Running {
    cluster: Cluster,
    node: Node,
    dir: tempfile::TempDir,
    ports: u16,
    pki: Pki,
}

impl Running {
    /// `{port+0}` to `{port+9}` and `{dir}` (with a server's certificate) in `listeners` stand for what they say.
    async fn start(listeners: &str) -> Running {
        let dir = tempfile::tempdir().expect("a directory");
        let pki = Pki::new(dir.path(), "ca");
        pki.server("server", &["localhost", "127.0.0.1", "::1"]);
        let ports = free_ports(1) + 50;
        let mut text = listeners
            .replace('\n', " ")
            .replace("{dir}", dir.path().to_str().expect("text"));
        for offset in 0..10 {
            text = text.replace(&format!("{{port+{offset}}}"), &(ports + offset).to_string());
        }
        let nodes = tempfile::Builder::new()
            .prefix("lontra-wire-")
            .tempdir()
            .expect("a directory");
        let environment = [
            ("LONTRA__LISTENERS", &*text),
            ("LONTRA__LOG__LEVEL", "info,lontra=debug"),
        ];
        let cluster = Cluster::start_in(nodes.keep(), 1, &environment).await;
        Running {
            node: cluster.nodes[0].clone(),
            cluster,
            dir,
            ports,
            pki,
        }
    }

    fn at(&self, offset: u16) -> String {
        format!("127.0.0.1:{}", self.ports + offset)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn refused(&self, reason: &str) -> f64 {
        let scrape = self.cluster.metrics(self.node.id).await;
        scrape.sum_where("lontra_connections_refused_total", &format!("reason=\"{reason}\""))
    }

    async fn logs(&self, words: &[&str]) {
        let logs = [
            self.node.config.with_file_name("lontra.log"),
            self.cluster.dir.join("serve-1.log"),
        ];
        eventually(&format!("a line with {words:?}"), SOON, || async {
            let log: String = logs
                .iter()
                .map(|path| std::fs::read_to_string(path).unwrap_or_default())
                .collect();
            log.lines()
                .any(|line| words.iter().all(|word| line.contains(word)))
                .then_some(())
        })
        .await;
    }
}

// ---- behind proxies ----

const PROXIED: &str = r#"[
  { name = "proxied", kind = "mqtt", listen = "127.0.0.1:{port+0}", proxy_protocol = true,
    trusted_proxies = ["127.0.0.0/8"], connect_timeout = "2s" },
  { name = "elsewhere", kind = "mqtt", listen = "127.0.0.1:{port+1}", proxy_protocol = true,
    trusted_proxies = ["192.0.2.0/24"] },
  { name = "proxied-tls", kind = "mqtts", listen = "127.0.0.1:{port+2}", proxy_protocol = true,
    trusted_proxies = ["127.0.0.1"],
    tls = { certificate = "{dir}/server.pem", key = "{dir}/server-key.pem" } },
  { name = "proxied-ws", kind = "ws", listen = "127.0.0.1:{port+3}", trusted_proxies = ["127.0.0.1"] },
  { name = "direct-ws", kind = "ws", listen = "127.0.0.1:{port+4}" },
]"#;

fn version_2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u16).to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &length, body].concat()
}

#[tokio::test]
async fn the_clients_address_is_the_one_that_a_trusted_proxy_tells() {
    let running = Running::start(PROXIED).await;
    let v4 = [192, 0, 2, 7, 198, 51, 100, 1, 0xdc, 4, 7, 0x5b];
    let v6 = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[9], &[0; 16], &[0, 80, 7, 0x5b]].concat();
    let with_tlvs = [&v4[..], &[0x30, 0, 2, b'n', b's', 4, 0, 1, 0]].concat();
    let headers = [
        (
            b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 1883\r\n".to_vec(),
            "192.0.2.1:56324",
        ),
        (
            b"PROXY TCP6 2001:db8::1 ::1 56324 1883\r\n".to_vec(),
            "[2001:db8::1]:56324",
        ),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1:"),
        (version_2(0x21, 0x11, &v4), "192.0.2.7:56324"),
        (version_2(0x21, 0x11, &with_tlvs), "192.0.2.7:56324"),
        (version_2(0x21, 0x21, &v6), "[2001:db8::9]:80"),
        (version_2(0x20, 0x00, &[]), "127.0.0.1:"),
    ];
    for (number, (header, address)) in headers.into_iter().enumerate() {
        for version in VERSIONS {
            // At once, and in the pieces that a network may make of it.
            let client_id = format!("proxied-{number}-{version:?}");
            let relay = tls::prefixed(&running.at(0), header.clone()).await;
            Client::open(&relay, version, &client_id).await.disconnect().await;
            running
                .logs(&[
                    "a client is connected",
                    &client_id,
                    &format!("peer={address}"),
                    "listener=\"proxied\"",
                ])
                .await;
        }
        let mut stream = TcpStream::connect(running.at(0)).await.expect("a connection");
        stream.set_nodelay(true).ok();
        for byte in &header {
            stream.write_all(&[*byte]).await.expect("written");
            tokio::task::yield_now().await;
        }
        let connect = Connect::clean(Version::V311, &format!("by-bytes-{number}")).encode();
        stream.write_all(&connect).await.expect("written");
        stream
            .write_all(&crate::support::codec::disconnect())
            .await
            .expect("written");
        assert_eq!(tls::rest(&mut stream).await, [0x20, 2, 0, 0]);
    }
    // TLS begins behind the header.
    let header = b"PROXY TCP4 192.0.2.3 198.51.100.1 1 8883\r\n".to_vec();
    let relay = tls::relay(
        &tls::prefixed(&running.at(2), header).await,
        &["-CAfile", &running.pki.ca],
    )
    .await;
    Client::open(&relay, Version::V5, "proxied-tls")
        .await
        .disconnect()
        .await;
    running
        .logs(&["a client is connected", "client=\"proxied-tls\"", "peer=192.0.2.3:1"])
        .await;
    running.cluster.assert_no_panic();
}

#[tokio::test]
async fn without_a_good_header_from_a_trusted_proxy_nobody_is_served() {
    let running = Running::start(PROXIED).await;
    let connect = Connect::clean(Version::V5, "no-header").encode();
    let good = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 1883\r\n";
    let bad = [
        connect.clone(),
        b"PROXY TCP4 192.0.2.1 198.51.100.1 56324\r\n".to_vec(),
        b"PROXY TCP4 2001:db8::1 ::1 1 1\r\n".to_vec(),
        [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 200]].concat(),
        version_2(0x21, 0x11, &[1, 2, 3]),
        version_2(0x31, 0x11, &[0; 12]),
        version_2(0x21, 0x11, &[0; 8000]),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ];
    let cases = bad.into_iter().map(|header| (0, header));
    let untrusted = (1, good.to_vec());
    // Half a header, and no more.
    let silent = (0, good[..10].to_vec());
    for (offset, header) in cases.chain([untrusted, silent]) {
        let before = running.refused("proxy").await;
        let mut stream = TcpStream::connect(running.at(offset)).await.expect("a connection");
        stream.write_all(&header).await.ok();
        if header.len() != 10 {
            stream.write_all(&connect).await.ok();
        }
        assert_eq!(
            tls::rest(&mut stream).await,
            b"",
            "{:?}",
            header.escape_ascii().to_string()
        );
        eventually("it is counted", SOON, || async {
            (running.refused("proxy").await > before).then_some(())
        })
        .await;
    }
    running
        .logs(&[
            "not served",
            "it comes from none of trusted_proxies",
            "listener=\"elsewhere\"",
        ])
        .await;
    running.cluster.assert_no_panic();
}

#[tokio::test]
async fn forwarded_for_is_believed_of_trusted_proxies_only() {
    let running = Running::start(PROXIED).await;
    for (offset, told, peer) in [
        (3, "203.0.113.7", "peer=203.0.113.7 "),
        (3, "198.51.100.1, 203.0.113.8", "peer=203.0.113.8 "),
        (3, "203.0.113.9, 127.0.0.1", "peer=203.0.113.9 "),
        (3, "2001:db8::5", "peer=2001:db8::5 "),
        (3, "nonsense", "peer=127.0.0.1:"),
        (4, "203.0.113.7", "peer=127.0.0.1:"),
    ] {
        let client_id = format!("forwarded-{offset}-{}", told.len());
        let asked = request(&[("X-Forwarded-For", told)]);
        let (mut socket, answer) = WebSocket::ask(&running.at(offset), &asked).await;
        assert_eq!(answer.status, 101);
        socket
            .send_packets(&[Connect::clean(Version::V5, &client_id).encode()])
            .await;
        assert!(matches!(
            socket.packet(Version::V5).await,
            Packet::Connack { code: 0, .. }
        ));
        running
            .logs(&["a client is connected", &format!("client=\"{client_id}\""), peer])
            .await;
    }
}

// ---- IPv6 ----

const IPV6: &str = r#"[
  { name = "six", kind = "mqtt", listen = "[::1]:{port+0}" },
  { name = "both", kind = "mqtts", listen = "[::]:{port+1}",
    tls = { certificate = "{dir}/server.pem", key = "{dir}/server-key.pem",
            client_certificates = "required", client_ca = "{dir}/ca.pem" } },
]"#;

#[tokio::test]
async fn ipv6_is_served_and_all_of_its_addresses_are_ipv4_too() {
    let running = Running::start(IPV6).await;
    let six = format!("[::1]:{}", running.ports);
    for version in VERSIONS {
        let mut client = Client::open(&six, version, &format!("six-{version:?}")).await;
        client.ping().await;
        client.disconnect().await;
    }
    mosquitto::publish(&six.replace(['[', ']'], ""), Version::V5, "six", "by mosquitto", 1).await;
    running
        .logs(&["a client is connected", "client=\"six-V5\"", "peer=[::1]:"])
        .await;
    let files = running.pki.client("somebody", 3);
    let arguments = [
        "-CAfile",
        &running.pki.ca,
        "-cert",
        &files.certificate,
        "-key",
        &files.key,
    ];
    for (name, address, peer) in [
        ("both-6", format!("[::1]:{}", running.ports + 1), "peer=[::1]:"),
        ("both-4", running.at(1), "peer=127.0.0.1:"),
    ] {
        let relay = tls::relay(&address, &arguments).await;
        Client::open(&relay, Version::V5, name).await.disconnect().await;
        running
            .logs(&["a client is connected", &format!("client=\"{name}\""), peer])
            .await;
    }
    running.cluster.assert_no_panic();
}

// ---- Unix sockets ----

const UNIX: &str = r#"[
  { name = "here", kind = "unix", listen = "{dir}/mqtt.sock", mode = "0600" },
]"#;

#[tokio::test]
async fn a_unix_socket_serves_and_outlives_a_kill() {
    let running = Running::start(UNIX).await;
    let path = running.path("mqtt.sock");
    let mode = std::fs::metadata(&path).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let relay = tls::to_unix(path.to_str().expect("text")).await;
    for version in VERSIONS {
        let topic = format!("unix/{version:?}");
        let mut subscriber = Client::open(&relay, version, &format!("unix-s-{version:?}")).await;
        subscriber.subscribe(&[(&topic, 2)]).await;
        let mut publisher = Client::open(&running.node.mqtt, version, &format!("unix-p-{version:?}")).await;
        publisher.publish(&topic, "zero", 0).await;
        publisher.publish(&topic, "one", 1).await;
        publisher.publish_exactly_once(&topic, "two").await;
        for text in ["zero", "one", "two"] {
            assert_eq!(subscriber.message().await.text(), text);
        }
    }
    running
        .logs(&["a client is connected", "client=\"unix-s-V5\"", "peer=local"])
        .await;

    // It leaves its file behind, which the next one replaces.
    running.cluster.kill(1).await;
    assert!(path.exists());
    running.cluster.start_node(1);
    running.cluster.wait_ready(1, crate::support::START).await;
    Client::open(&relay, Version::V5, "unix-again").await.disconnect().await;
    running.cluster.terminate(1).await;
    assert!(!path.exists(), "a clean stop removes it");
}

#[tokio::test]
async fn what_is_wrong_with_a_socket_is_told_with_its_path() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("file"), "precious").expect("written");
    let _taken = std::os::unix::net::UnixListener::bind(path("taken")).expect("a socket");
    let base = free_ports(1);
    for (name, words) in [
        ("nowhere/mqtt.sock", "make its directory"),
        ("file", "there is a file that is no socket"),
        ("taken", "another process listens there"),
    ] {
        let listeners = format!("[{{ name = 'u', kind = 'unix', listen = '{}' }}]", path(name).display());
        let run = Command::new(LONTRA)
            .arg("serve")
            .env("LONTRA__LISTENERS", listeners)
            .env("LONTRA__NODE__DATA_DIR", path("data"))
            .env("LONTRA__MQTT__LISTEN", format!("127.0.0.1:{base}"))
            .env("LONTRA__WEBSOCKET__LISTEN", format!("127.0.0.1:{}", base + 100))
            .env("LONTRA__HTTP__LISTEN", format!("127.0.0.1:{}", base + 200))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(SOON, run)
            .await
            .expect("it ends")
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let place = path(name).display().to_string();
        for word in [&*place, "listeners[0].listen", words] {
            assert!(said.contains(word), "{word} is not in {said}");
        }
    }
    assert_eq!(std::fs::read(path("file")).expect("kept"), b"precious");
}

// ---- limits ----

const LIMITED: &str = r#"[
  { name = "two", kind = "mqtt", listen = "127.0.0.1:{port+0}", connections_max = 2 },
  { name = "small", kind = "mqtt", listen = "127.0.0.1:{port+1}", packet_size_max = "1KiB" },
  { name = "hasty", kind = "mqtt", listen = "127.0.0.1:{port+2}", connect_timeout = "300ms" },
  { name = "other-path", kind = "ws", listen = "127.0.0.1:{port+3}", path = "/broker" },
]"#;

#[tokio::test]
async fn each_listener_has_limits_of_its_own() {
    let running = Running::start(LIMITED).await;
    // Connections, over all workers.
    let mut kept = Vec::new();
    for number in 0..2 {
        kept.push(Client::open(&running.at(0), Version::V5, &format!("two-{number}")).await);
    }
    for (version, quota_exceeded) in [(Version::V5, 0x97), (Version::V311, 3)] {
        let connect = Connect::clean(version, "two-3");
        let refused = Client::try_connect(&running.at(0), &connect, SOON).await;
        let Ok((mut third, Packet::Connack { code, .. })) = refused else {
            panic!("it is told");
        };
        assert_eq!(code, quota_exceeded);
        third.closed_by_server(SOON).await;
    }
    assert_eq!(running.refused("connections_max").await, 2.0);
    // Who says nothing takes none of the places of those who are told, for longer than CONNECT may take.
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(running.at(0)).await.expect("a connection"));
    }
    eventually("most are closed at once", SOON, || async {
        (running.refused("connections_max").await == 202.0).then_some(())
    })
    .await;
    drop(silent);
    Client::open(&running.node.mqtt, Version::V5, "two-elsewhere").await;
    drop(kept.pop());
    eventually("there is room again", SOON, || async {
        let connect = Connect::clean(Version::V5, "two-again");
        matches!(
            Client::try_connect(&running.at(0), &connect, SOON).await,
            Ok((_, Packet::Connack { code: 0, .. }))
        )
        .then_some(())
    })
    .await;
    // Packets.
    let large = Publish {
        pid: 1,
        ..Publish::new("limits/large", vec![b'x'; 4096], 1)
    };
    let mut small = Client::open(&running.at(1), Version::V5, "small").await;
    small.send(&large.encode(Version::V5)).await.expect("PUBLISH");
    assert_eq!(small.closed_by_server(SOON).await.0, Some(PACKET_TOO_LARGE));
    let mut other = Client::open(&running.node.mqtt, Version::V5, "large").await;
    other.publish("limits/large", vec![b'x'; 4096], 1).await;
    // CONNECT.
    let began = Instant::now();
    let mut silent = TcpStream::connect(running.at(2)).await.expect("a connection");
    assert_eq!(tls::rest(&mut silent).await, b"");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    // The path.
    let asked = request(&[]);
    let (_socket, answer) = WebSocket::ask(&running.at(3), &asked).await;
    assert_eq!(answer.status, 404);
    let asked = asked.replace("GET /mqtt ", "GET /broker ");
    let (_socket, answer) = WebSocket::ask(&running.at(3), &asked).await;
    assert_eq!(answer.status, 101);
}

// ---- mountpoints ----

const MOUNTED: &str = r#"[
  { name = "a", kind = "mqtt", listen = "127.0.0.1:{port+0}", mountpoint = "tenants/a/" },
  { name = "b", kind = "mqtt", listen = "127.0.0.1:{port+1}", mountpoint = "tenants/b/" },
]"#;

#[tokio::test]
async fn tenants_do_not_hear_each_other_and_the_operator_hears_all() {
    let running = Running::start(MOUNTED).await;
    let (a, b, all) = (running.at(0), running.at(1), running.node.mqtt.clone());
    for version in VERSIONS {
        let name = |who: &str| format!("mount-{who}-{version:?}");
        let mut operator = Client::open(&all, version, &name("operator")).await;
        operator.subscribe(&[("tenants/#", 2)]).await;
        let mut hears = Vec::new();
        for (tenant, at) in [("a", &a), ("b", &b)] {
            let mut client = Client::open(at, version, &name(tenant)).await;
            client.subscribe(&[("#", 2), ("+/x", 1)]).await;
            hears.push(client);
        }
        let mut publisher = Client::open(&a, version, &name("p")).await;
        for qos in 0..=2 {
            let text = format!("at {qos}");
            let publish = Publish::new("t/x", text.clone(), qos);
            assert!(publisher.publish_packet(publish).await < 0x80);
            let message = hears[0].message().await;
            assert_eq!((message.topic.as_str(), message.text()), ("t/x", text.clone()));
            let message = operator.message().await;
            assert_eq!((message.topic.as_str(), message.text()), ("tenants/a/t/x", text));
        }
        // Into a tenant, and nothing came to the other meanwhile.
        let mut publisher = Client::open(&all, version, &name("q")).await;
        publisher.publish("tenants/b/t/y", "for b", 1).await;
        let message = hears[1].message().await;
        assert_eq!((message.topic.as_str(), message.text().as_str()), ("t/y", "for b"));
        assert_eq!(hears[1].unsubscribe(&["#"]).await.first().copied().unwrap_or(0), 0);
        publisher.publish("tenants/b/t", "unheard", 1).await;
        publisher.publish("tenants/b/t/x", "heard", 1).await;
        assert_eq!(hears[1].message().await.text(), "heard");
    }
    running.cluster.assert_no_panic();
}

#[tokio::test]
async fn what_is_kept_is_mounted_too() {
    let running = Running::start(MOUNTED).await;
    let (a, b, all) = (running.at(0), running.at(1), running.node.mqtt.clone());
    // A session with messages that wait, a shared subscription, a retained message, a will.
    let away = Connect::persistent(Version::V5, "mount-away");
    let (mut session, _) = Client::connect(&a, &away).await;
    session.subscribe(&[("kept/#", 1)]).await;
    session.disconnect().await;
    let mut members = [
        Client::open(&a, Version::V5, "mount-member").await,
        Client::open(&b, Version::V5, "mount-stranger").await,
    ];
    for member in &mut members {
        member.subscribe(&[("$share/g/jobs/+", 1)]).await;
    }
    let will = Connect::clean(Version::V5, "mount-will").will(Will::new("kept/will", "gone", 1));
    let (dying, _) = Client::connect(&a, &will).await;
    let mut publisher = Client::open(&a, Version::V5, "mount-p").await;
    let retained = Publish {
        retain: true,
        ..Publish::new("kept/retained", "kept", 1)
    };
    assert!(publisher.publish_packet(retained).await < 0x80);
    publisher.publish("jobs/1", "a job", 1).await;
    let message = members[0].message().await;
    assert_eq!((message.topic.as_str(), message.text().as_str()), ("jobs/1", "a job"));
    drop(dying);

    let mut seen = Client::open(&all, Version::V5, "mount-seen").await;
    seen.subscribe(&[("tenants/+/kept/retained", 1)]).await;
    assert_eq!(seen.message().await.topic, "tenants/a/kept/retained");
    let mut stranger = Client::open(&b, Version::V5, "mount-b").await;
    stranger.subscribe(&[("#", 1)]).await;
    let (mut session, _) = Client::connect(&a, &away).await;
    let mut topics = [session.message().await.topic, session.message().await.topic];
    topics.sort();
    assert_eq!(topics, ["kept/retained", "kept/will"]);
    // A new subscription gets what is retained, under the name that it knows.
    let mut late = Client::open(&a, Version::V311, "mount-late").await;
    late.subscribe(&[("kept/#", 1)]).await;
    let message = late.message().await;
    assert_eq!((message.topic.as_str(), message.retain), ("kept/retained", true));
    // $SYS is everybody's, and nobody's to publish.
    late.subscribe(&[("$SYS/broker/version", 0)]).await;
    assert_eq!(late.message().await.topic, "$SYS/broker/version");
    let mut sys = Client::open(&a, Version::V5, "mount-sys").await;
    assert_eq!(
        sys.publish_code("$SYS/broker/version", "mine", 1).await,
        TOPIC_NAME_INVALID
    );
    // Nothing of it reached the other tenant.
    stranger.publish("to-itself", "last", 1).await;
    assert_eq!(stranger.message().await.text(), "last");
    running.cluster.assert_no_panic();
}

const PACKET_TOO_LARGE: u8 = 0x95;
const TOPIC_NAME_INVALID: u8 = 0x90;
