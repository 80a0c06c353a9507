//! MQTT over TLS, and WebSocket over TLS: the same sessions with the same promises; what openssl sees of handshakes; and
//! certificates that change while a node runs.

use crate::support::client::Client;
use crate::support::cluster::{Cluster, LONTRA, Node, free_ports, shared};
use crate::support::codec::{Connect, Packet, Publish, VERSIONS, Version, Will};
use crate::support::metrics::Scrape;
use crate::support::pki::{Files, Pki};
use crate::support::{SOON, START, eventually, mosquitto, tls, websocket};
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::process::Command;

// ---- the same sessions ----

/// Addresses where a plain client reaches node `index` over TLS and over WebSocket over TLS.
async fn relays(cluster: &Cluster, index: usize, arguments: &[&str]) -> [String; 2] {
    let ca = cluster.nodes[index].ca.to_str().expect("text").to_owned();
    let arguments: Vec<&str> = ["-CAfile", &ca].iter().chain(arguments).copied().collect();
    let mqtts = tls::relay(&cluster.nodes[index].mqtts, &arguments).await;
    let wss = tls::relay(&cluster.nodes[index].wss, &arguments).await;
    [mqtts, websocket::relay(&wss, usize::MAX).await]
}

#[tokio::test]
async fn every_version_exchanges_at_every_qos_over_tls_and_wss() {
    let cluster = shared();
    for protocol in ["-tls1_2", "-tls1_3"] {
        let [mqtts, wss] = relays(cluster, 0, &[protocol]).await;
        let ways = [(&*mqtts, &*wss), (&*wss, cluster.mqtt(1)), (cluster.mqtt(2), &*mqtts)];
        for version in VERSIONS {
            for (way, (publisher_at, subscriber_at)) in ways.into_iter().enumerate() {
                let topic = format!("tls/every-qos/{version:?}/{way}/{protocol}");
                let mut subscriber = Client::open(subscriber_at, version, &format!("{topic}/s")).await;
                subscriber.subscribe(&[(&topic, 2)]).await;
                let mut publisher = Client::open(publisher_at, version, &format!("{topic}/p")).await;
                publisher.publish(&topic, "zero", 0).await;
                publisher.publish(&topic, "one", 1).await;
                publisher.publish_exactly_once(&topic, "two").await;
                for (qos, text) in [(0, "zero"), (1, "one"), (2, "two")] {
                    let message = subscriber.message().await;
                    assert_eq!((message.qos, message.text().as_str()), (qos, text), "{topic}");
                }
                publisher.disconnect().await;
                subscriber.disconnect().await;
            }
        }
    }
}

#[tokio::test]
async fn large_messages_cross_records() {
    let cluster = shared();
    let [mqtts, wss] = relays(cluster, 0, &[]).await;
    let mut subscriber = Client::open(&wss, Version::V5, "tls-large-s").await;
    subscriber.subscribe(&[("tls/large", 1)]).await;
    let mut publisher = Client::open(&mqtts, Version::V5, "tls-large-p").await;
    for n in 0..20_u8 {
        let length = [0, 1, 16_383, 16_384, 16_385, 500_000, 900_000][usize::from(n) % 7];
        publisher.publish("tls/large", vec![n; length], 1).await;
        assert_eq!(subscriber.message().await.payload, vec![n; length]);
    }
}

#[tokio::test]
async fn a_session_moves_between_tcp_tls_and_wss() {
    let cluster = shared();
    let [mqtts, wss] = relays(cluster, 1, &[]).await;
    let connect = Connect::persistent(Version::V5, "tls-moves");
    let (mut first, _) = Client::connect(cluster.mqtt(0), &connect).await;
    first.subscribe(&[("tls/moves", 1)]).await;
    let mut publisher = Client::open(cluster.mqtt(2), Version::V5, "tls-moves-p").await;
    let mut before = first;
    for (at, text) in [(&*mqtts, "by tls"), (&*wss, "by wss"), (cluster.mqtt(2), "by tcp")] {
        let (mut client, connack) = Client::connect(at, &connect).await;
        assert!(is_present(&connack), "{connack:?}");
        assert_eq!(before.closed_by_server(SOON).await.0, Some(0x8e), "{text}");
        publisher.publish("tls/moves", text, 1).await;
        client.messages_until(text).await;
        before = client;
    }
    before.disconnect().await;
}

#[tokio::test]
async fn a_killed_node_is_left_for_another_over_tls() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let will = Will::new("tls/will", "gone", 1);
    let connect = Connect::persistent(Version::V5, "tls-resumes").will(will);
    let [first, _] = relays(&cluster, 0, &[]).await;
    let (mut subscriber, _) = Client::connect(&first, &connect).await;
    subscriber.subscribe(&[("tls/resumes", 2)]).await;
    let [_, second] = relays(&cluster, 1, &[]).await;
    let mut publisher = Client::open(&second, Version::V5, "tls-resumes-p").await;
    subscriber.auto_acknowledge = false;
    publisher.publish("tls/resumes", "one", 1).await;
    publisher.publish_exactly_once("tls/resumes", "two").await;
    let sent = [subscriber.message().await, subscriber.message().await];

    cluster.kill(1).await;
    subscriber.closed_by_server(SOON).await;
    publisher.publish("tls/resumes", "while away", 1).await;
    let [third, _] = relays(&cluster, 2, &[]).await;
    let (mut subscriber, connack) = eventually("another node takes the session", START, || async {
        match Client::try_connect(&third, &connect, SOON).await {
            Ok((client, connack @ Packet::Connack { code: 0, .. })) => Some((client, connack)),
            _ => None,
        }
    })
    .await;
    assert!(is_present(&connack), "{connack:?}");
    let mut texts = Vec::new();
    for _ in 0..3 {
        let message = subscriber.message().await;
        if let Some(sent) = sent.iter().find(|sent| sent.text() == message.text()) {
            assert_eq!((message.dup, message.pid), (true, sent.pid), "{message:?}");
        }
        texts.push(message.text());
    }
    texts.sort();
    assert_eq!(texts, ["one", "two", "while away"]);
    cluster.assert_no_panic();
}

#[tokio::test]
async fn a_client_that_does_not_read_is_bounded_over_tls() {
    let cluster = shared();
    let [mqtts, _] = relays(cluster, 0, &[]).await;
    let mut slow = Client::open(&mqtts, Version::V5, "tls-slow").await;
    slow.subscribe(&[("tls/slow/#", 0)]).await;
    let mut other = Client::open(cluster.mqtt(0), Version::V5, "tls-slow-other").await;
    other.subscribe(&[("tls/slow/#", 0)]).await;
    let mut publisher = Client::open(cluster.mqtt(1), Version::V5, "tls-slow-p").await;
    let before = cluster.metrics(1).await;
    let payload = vec![b'x'; 64 * 1024];
    for _ in 0..512 {
        publisher.publish("tls/slow/a", payload.clone(), 0).await;
        other.message().await;
    }
    let dropped = |scrape: &Scrape| scrape.sum_where("lontra_messages_dropped_total", "outbox_full");
    let now = cluster.metrics(1).await;
    assert!(dropped(&now) > dropped(&before), "nothing was dropped");
    publisher.publish("tls/slow/a", "last", 0).await;
    // It reads again: whole messages, then an answer.
    slow.ping().await;
}

// ---- clients that others wrote, and our own ----

#[tokio::test]
async fn mosquittos_clients_speak_tls_with_cafile() {
    let cluster = shared();
    for version in VERSIONS {
        for qos in 0..=2 {
            let topic = format!("tls/mosquitto/{version:?}/{qos}");
            let ca = cluster.nodes[0].ca.to_str().expect("text");
            let arguments = ["--cafile", ca, "--tls-alpn", "mqtt"];
            let (at, from) = (&cluster.nodes[0].mqtts, &cluster.nodes[1].mqtts);
            let mut sub = mosquitto::Sub::start_with(at, version, &topic, qos, &arguments).await;
            mosquitto::publish_with(from, version, &topic, "a message", qos, &arguments[..2]).await;
            assert_eq!(sub.message().await, format!("{qos} {topic} a message"));
        }
    }
}

async fn lontra(arguments: &[&str]) -> Output {
    let run = Command::new(LONTRA)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    tokio::time::timeout(SOON, run)
        .await
        .expect("it ends")
        .expect("it runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test]
async fn lontra_pub_and_sub_speak_tls_and_websocket() {
    let cluster = shared();
    let node = &cluster.nodes[0];
    let ca = node.ca.to_str().expect("text");
    let (host, port) = node.mqtts.rsplit_once(':').expect("host:port");
    let urls = [
        vec![
            "-h".to_owned(),
            host.into(),
            "-p".into(),
            port.into(),
            "--cafile".into(),
            ca.into(),
        ],
        vec![
            "-L".into(),
            format!("mqtts://localhost:{port}"),
            "--cafile".into(),
            ca.into(),
        ],
        vec![
            "-L".into(),
            format!("wss://{}/mqtt", node.wss),
            "--cafile".into(),
            ca.into(),
        ],
        vec!["-L".into(), format!("ws://{}", node.ws)],
        vec!["-L".into(), format!("mqtt://{}", node.mqtt)],
    ];
    for (index, way) in urls.iter().enumerate() {
        let way: Vec<&str> = way.iter().map(String::as_str).collect();
        for version in ["mqttv311", "mqttv5"] {
            let topic = format!("tls/cli/{index}/{version}");
            let payload = "x".repeat(100_000);
            let rest = ["-V", version, "-t", &topic, "-q", "1", "-r", "-m", &payload];
            let output = lontra(&[&["pub"][..], &way, &rest].concat()).await;
            assert!(output.status.success(), "{way:?}: {}", said(&output));
            let rest = ["-V", version, "-t", &topic, "-q", "1", "-C", "1"];
            let output = lontra(&[&["sub"][..], &way, &rest].concat()).await;
            assert!(output.status.success(), "{way:?}: {}", said(&output));
            assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), payload, "{way:?}");
        }
    }
}

#[tokio::test]
async fn lontra_pub_tells_what_is_wrong_with_tls() {
    let cluster = shared();
    let dir = tempfile::tempdir().expect("a directory");
    let other = Pki::new(dir.path(), "other");
    let node = &cluster.nodes[0];
    let (host, port) = node.mqtts.rsplit_once(':').expect("host:port");
    let (_, plain) = node.mqtt.rsplit_once(':').expect("host:port");
    let ca = node.ca.to_str().expect("text");
    for (arguments, words) in [
        (&["-p", port, "--cafile", &other.ca][..], "certificate"),
        (&["-p", plain, "--cafile", ca], "no TLS with"),
        (&["-p", port, "--cafile", "/nowhere/ca.pem"], "/nowhere/ca.pem"),
    ] {
        let output = lontra(&[&["pub", "-h", host, "-t", "t", "-m", "m"], arguments].concat()).await;
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains(words), "{}", said(&output));
    }
    // The name: not one of the certificate's, unless nobody minds.
    let url = format!("mqtts://127.0.0.2:{port}");
    let listens_elsewhere = lontra(&["pub", "-L", &url, "--cafile", ca, "-t", "t", "-m", "m"]).await;
    assert!(!listens_elsewhere.status.success(), "{}", said(&listens_elsewhere));
}

// ---- what openssl sees ----

/// A node with listeners of a test's own, in place of those of `lontra dev`.
struct Running {
    cluster: Cluster,
    node: Node,
    pki: Pki,
    dir: tempfile::TempDir,
    ports: u16,
}

impl Running {
    /// `listeners` are inline tables; `{port}` to `{port+9}`, `{dir}`, `{server}` (certificate and key) stand for what they
    /// say.
    async fn start(listeners: &str) -> Running {
        let dir = tempfile::tempdir().expect("a directory");
        let pki = Pki::new(dir.path(), "ca");
        let server = pki.server("server", &["localhost", "127.0.0.1"]);
        pki.server("other", &["other.example", "*.wild.example"]);
        pki.revoke("crl.pem", &[]);
        let ports = free_ports(1) + 50;
        let mut text = listeners.replace("{dir}", dir.path().to_str().expect("text"));
        text = text.replace("{server}", &inline(&server));
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
            pki,
            dir,
            ports,
        }
    }

    fn at(&self, offset: u16) -> String {
        format!("127.0.0.1:{}", self.ports + offset)
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    async fn reloads(&self) -> (f64, f64) {
        let scrape: Scrape = self.cluster.metrics(self.node.id).await;
        let count = |result| scrape.sum_where("lontra_config_reloads_total", result);
        (count("result=\"applied\""), count("result=\"refused\""))
    }

    /// SIGHUP, and waits until it is answered; whether it was applied.
    async fn reload(&self) -> bool {
        let before = self.reloads().await;
        self.cluster.reload(self.node.id);
        eventually("SIGHUP is answered", SOON, || async {
            let now = self.reloads().await;
            (now != before).then_some(now.0 > before.0)
        })
        .await
    }

    async fn handshakes(&self, result: &str) -> f64 {
        let scrape = self.cluster.metrics(self.node.id).await;
        scrape.sum_where("lontra_tls_handshakes_total", &format!("result=\"{result}\""))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.node.config.with_file_name("lontra.log")).expect("the log")
    }
}

fn inline(files: &Files) -> String {
    format!("certificate = \"{}\", key = \"{}\"", files.certificate, files.key)
}

const LISTENERS: &str = r#"[
  { name = "plain", kind = "mqtts", listen = "127.0.0.1:{port+0}", tls = { {server},
    sni = [{ certificate = "{dir}/other.pem", key = "{dir}/other-key.pem" }] } },
  { name = "modern", kind = "mqtts", listen = "127.0.0.1:{port+1}", tls = { {server}, version_min = "1.3" } },
  { name = "known", kind = "mqtts", listen = "127.0.0.1:{port+2}", tls = { {server},
    client_certificates = "required", client_ca = "{dir}/ca.pem", client_crl = "{dir}/crl.pem" } },
  { name = "asked", kind = "mqtts", listen = "127.0.0.1:{port+3}", tls = { {server},
    client_certificates = "optional", client_ca = "{dir}/ca.pem" } },
  { name = "web", kind = "wss", listen = "127.0.0.1:{port+4}", tls = { {server} } },
  { name = "misnamed", kind = "mqtts", listen = "127.0.0.1:{port+5}",
    tls = { certificate = "{dir}/other.pem", key = "{dir}/other-key.pem" } },
]"#;

fn one_line(listeners: &str) -> String {
    listeners.replace('\n', " ")
}

#[tokio::test]
async fn versions_names_protocols_and_tickets_are_as_openssl_asks_for_them() {
    let running = Running::start(&one_line(LISTENERS)).await;
    let [plain, modern, web] = [0, 1, 4].map(|offset| running.at(offset));
    let ca = ["-CAfile", running.pki.ca.as_str()];

    // Versions.
    for (address, protocol, is_good) in [
        (&plain, "-tls1_3", true),
        (&plain, "-tls1_2", true),
        (&plain, "-tls1_1", false),
        (&modern, "-tls1_3", true),
        (&modern, "-tls1_2", false),
    ] {
        let (ok, said) = tls::handshake(address, &[&ca[..], &[protocol]].concat(), b"").await;
        assert_eq!(ok, is_good, "{protocol}: {said}");
    }
    eventually("a refusal is counted", SOON, || async {
        (running.handshakes("incompatible").await > 0.0).then_some(())
    })
    .await;

    // Names.
    for (name, subject) in [
        ("other.example", "CN=other"),
        ("a.wild.example", "CN=other"),
        ("localhost", "CN=server"),
        ("unknown.example", "CN=server"),
    ] {
        let (ok, said) = tls::handshake(&plain, &[&ca[..], &["-servername", name]].concat(), b"").await;
        assert!(ok && said.contains(&format!("subject={subject}")), "{name}: {said}");
    }
    let (ok, said) = tls::handshake(&plain, &[&ca[..], &["-noservername"]].concat(), b"").await;
    assert!(ok && said.contains("subject=CN=server"), "{said}");

    // Protocols within.
    for (address, offered, chosen) in [
        (&plain, "mqtt", Some("ALPN protocol: mqtt")),
        (&plain, "h2,mqtt", Some("ALPN protocol: mqtt")),
        (&plain, "http/1.1", None),
        (&web, "h2,http/1.1", Some("ALPN protocol: http/1.1")),
        (&web, "mqtt", None),
    ] {
        let (ok, said) = tls::handshake(address, &[&ca[..], &["-alpn", offered]].concat(), b"").await;
        assert_eq!(ok, chosen.is_some(), "{offered}: {said}");
        assert!(chosen.is_none_or(|chosen| said.contains(chosen)), "{offered}: {said}");
    }

    // Tickets.
    let ticket = running.path().join("ticket.pem");
    let ticket = ticket.to_str().expect("text");
    for protocol in ["-tls1_2", "-tls1_3"] {
        let connect = Connect::clean(Version::V5, "tls-ticket").encode();
        let arguments = [&ca[..], &[protocol, "-ign_eof", "-sess_out", ticket]].concat();
        // Of TLS 1.3 the ticket comes with the first answer.
        let bye = crate::support::codec::disconnect();
        let (ok, said) = tls::handshake(&plain, &arguments, &[&connect[..], &bye].concat()).await;
        assert!(ok && said.contains("New, "), "{said}");
        let before = running.handshakes("resumed").await;
        let arguments = [&ca[..], &[protocol, "-sess_in", ticket]].concat();
        let (ok, said) = tls::handshake(&plain, &arguments, b"").await;
        assert!(ok && said.contains("Reused, "), "{protocol}: {said}");
        eventually("it is counted", SOON, || async {
            (running.handshakes("resumed").await > before).then_some(())
        })
        .await;
    }
    running.cluster.assert_no_panic();
}

#[tokio::test]
async fn client_certificates_are_asked_for_checked_and_revoked() {
    let running = Running::start(&one_line(LISTENERS)).await;
    let [plain, known, asked] = [0, 2, 3].map(|offset| running.at(offset));
    let dir = tempfile::tempdir().expect("a directory");
    let stranger = Pki::new(dir.path(), "stranger").client("stranger", 7);
    let (good, revoked) = (running.pki.client("good", 7), running.pki.client("revoked", 8));
    let expired = running.pki.expired_client("expired");
    let server = running.pki.server("a-server", &["localhost"]);
    running.pki.revoke("crl.pem", &[8]);
    assert!(running.reload().await, "{}", running.log());

    // Over TLS 1.3 a client learns of a refusal after its handshake: what counts is whether CONNECT is answered.
    let served = |address: &String, files: Option<&Files>, protocol: &str| {
        let (address, protocol, ca) = (address.clone(), protocol.to_owned(), running.pki.ca.clone());
        let files = files.cloned();
        async move {
            let mut arguments = vec!["-CAfile", &*ca, &*protocol];
            if let Some(files) = &files {
                arguments.extend(["-cert", &*files.certificate, "-key", &*files.key]);
            }
            let relay = tls::relay(&address, &arguments).await;
            let connect = Connect::clean(Version::V5, "tls-known");
            matches!(
                Client::try_connect(&relay, &connect, SOON).await,
                Ok((_, Packet::Connack { code: 0, .. }))
            )
        }
    };
    for protocol in ["-tls1_2", "-tls1_3"] {
        for (address, files, is_served) in [
            (&known, Some(&good), true),
            (&known, None, false),
            (&known, Some(&revoked), false),
            (&known, Some(&expired), false),
            (&known, Some(&stranger), false),
            (&known, Some(&server), false),
            (&asked, None, true),
            (&asked, Some(&good), true),
            (&asked, Some(&stranger), false),
            (&plain, Some(&stranger), true),
        ] {
            assert_eq!(
                served(address, files, protocol).await,
                is_served,
                "{protocol} {address} {files:?}"
            );
        }
    }
    assert!(running.handshakes("certificate").await >= 10.0);

    // Who was good is revoked: refused, ticket or not.
    running.pki.revoke("crl.pem", &[7, 8]);
    assert!(running.reload().await, "{}", running.log());
    assert!(!served(&known, Some(&good), "-tls1_3").await);
    running.cluster.assert_no_panic();
}

#[tokio::test]
async fn a_client_whose_certificate_is_revoked_is_let_go_and_others_stay() {
    let running = Running::start(&one_line(LISTENERS)).await;
    let [known, asked] = [2, 3].map(|offset| running.at(offset));
    let (good, bad) = (running.pki.client("stays", 7), running.pki.client("goes", 8));
    let open = async |address: &str, files: &Files, protocol: &str, id: &str| {
        let certificate = ["-cert", &files.certificate, "-key", &files.key];
        let arguments = [&["-CAfile", &running.pki.ca, protocol][..], &certificate].concat();
        Client::open(&tls::relay(address, &arguments).await, Version::V5, id).await
    };
    let mut stays = [
        open(&known, &good, "-tls1_3", "crl-stays").await,
        // This listener has no list.
        open(&asked, &bad, "-tls1_3", "crl-elsewhere").await,
    ];
    let mut goes = [
        open(&known, &bad, "-tls1_3", "crl-goes").await,
        open(&known, &bad, "-tls1_2", "crl-goes-too").await,
    ];

    // A reload that changes nothing ends nothing.
    assert!(running.reload().await, "{}", running.log());
    for client in stays.iter_mut().chain(&mut goes) {
        client.ping().await;
    }

    running.pki.revoke("crl.pem", &[8]);
    assert!(running.reload().await, "{}", running.log());
    for client in &mut goes {
        assert_eq!(client.closed_by_server(SOON).await.0, Some(0x87));
    }
    for client in &mut stays {
        client.ping().await;
    }
    running.cluster.assert_no_panic();
}

/// The serial number that a new connection is shown.
async fn shown(running: &Running, address: &str) -> String {
    let (ok, said) = tls::handshake(address, &["-CAfile", &running.pki.ca, "-servername", "localhost"], b"").await;
    assert!(ok, "{said}");
    let line = said.lines().find(|line| line.starts_with("subject="));
    line.expect("a subject").to_owned()
}

#[tokio::test]
async fn new_certificates_are_for_new_connections_and_bad_ones_for_none() {
    let running = Running::start(&one_line(LISTENERS)).await;
    let plain = running.at(0);
    let relay = tls::relay(&plain, &["-CAfile", &running.pki.ca]).await;
    let mut old = Client::open(&relay, Version::V5, "tls-old").await;
    old.subscribe(&[("tls/reload", 1)]).await;
    assert_eq!(shown(&running, &plain).await, "subject=CN=server");

    let new = running.pki.server("renewed", &["localhost", "127.0.0.1"]);
    let path = |name: &str| running.path().join(name);
    std::fs::copy(&new.certificate, path("server.pem")).expect("copied");
    // Half of a change: the key is still the old one.
    assert!(!running.reload().await);
    assert!(running.log().contains("is not the key of"), "{}", running.log());
    assert_eq!(shown(&running, &plain).await, "subject=CN=server");
    // The other half.
    std::fs::copy(&new.key, path("server-key.pem")).expect("copied");
    assert!(running.reload().await, "{}", running.log());
    assert_eq!(shown(&running, &plain).await, "subject=CN=renewed");

    // Each of these is told, and changes nothing.
    for (file, content, words) in [
        ("server.pem", Some("garbage"), "holds no PEM certificate"),
        ("server-key.pem", None, "server-key.pem cannot be read"),
        (
            "crl.pem",
            Some("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"),
            "crl.pem cannot be used",
        ),
        (
            "other.pem",
            Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            "other",
        ),
    ] {
        let kept = std::fs::read(path(file)).expect("read");
        match content {
            Some(content) => std::fs::write(path(file), content).expect("written"),
            None => std::fs::remove_file(path(file)).expect("removed"),
        }
        assert!(!running.reload().await, "{file}");
        let log = running.log();
        let line = log
            .lines()
            .rfind(|line| line.contains("nothing has changed"))
            .expect("it is told");
        assert!(
            line.contains("ERROR") && line.contains(words) && line.contains("listener"),
            "{line}"
        );
        assert_eq!(shown(&running, &plain).await, "subject=CN=renewed");
        std::fs::write(path(file), kept).expect("written");
    }
    // All the while the first connection stayed.
    old.publish("tls/reload", "still here", 1).await;
    assert_eq!(old.message().await.text(), "still here");
    running.cluster.assert_no_panic();
}

#[tokio::test]
async fn a_node_does_not_start_with_a_bad_certificate_and_says_which() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("lontra.toml");
    let config = "[[listeners]]\nname = 'tls'\nkind = 'mqtts'\nlisten = '127.0.0.1:8883'\n[listeners.tls]\n\
                  certificate = '/nowhere/server.pem'\nkey = '/nowhere/key.pem'\n";
    std::fs::write(&file, config).expect("written");
    let file = file.to_str().expect("text");
    for command in [&["serve", "--config", file][..], &["config", "check", "--config", file]] {
        let output = lontra(command).await;
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(
            said(&output).contains("listener tls: /nowhere/server.pem cannot be read"),
            "{}",
            said(&output)
        );
    }
}

#[tokio::test]
async fn lontra_pub_shows_its_certificate_and_may_overlook_a_name() {
    let running = Running::start(&one_line(LISTENERS)).await;
    let client = running.pki.client("cli", 7);
    let stranger = Pki::new(running.path(), "stranger").ca;
    let ca = running.pki.ca.as_str();
    let (known, misnamed) = ((running.ports + 2).to_string(), (running.ports + 5).to_string());
    let with_certificate = ["--cert", &client.certificate, "--key", &client.key];
    for (port, arguments, is_served) in [
        (&known, &with_certificate[..], true),
        (&known, &[], false),
        (&misnamed, &["--insecure"], true),
        (&misnamed, &[], false),
        // Another authority is another matter.
        (&misnamed, &["--insecure", "--cafile", &stranger], false),
    ] {
        let common = ["pub", "-h", "127.0.0.1", "-p", port, "-q", "1", "-t", "cli", "-m", "m"];
        let trusting = match arguments.contains(&"--cafile") {
            true => vec![],
            false => vec!["--cafile", ca],
        };
        let output = lontra(&[&common[..], &trusting, arguments].concat()).await;
        assert_eq!(output.status.success(), is_served, "{arguments:?}: {}", said(&output));
    }
}

#[tokio::test]
async fn lontra_bench_loads_a_broker_over_tls() {
    let cluster = shared();
    let ca = cluster.nodes[0].ca.to_str().expect("text");
    let brokers = |address: fn(&Node) -> &String| {
        let all: Vec<&str> = cluster.nodes.iter().map(|node| address(node).as_str()).collect();
        all.join(",")
    };
    let (mqtts, wss) = (brokers(|node| &node.mqtts), brokers(|node| &node.wss));
    for (brokers, over, words) in [
        (&mqtts, &[][..], "over TLS"),
        (&wss, &["--websocket"], "over WebSocket over TLS"),
    ] {
        let run = [
            "bench",
            "pairs",
            "-n",
            "3",
            "-q",
            "1",
            "--messages",
            "200",
            "--payload",
            "20000",
        ];
        let output = lontra(&[&run[..], &["-b", brokers, "--cafile", ca], over].concat()).await;
        assert!(
            output.status.success() && said(&output).contains(words),
            "{}",
            said(&output)
        );
    }
}

// ---- storms ----

const STORM: &str = r#"[
  { name = "storm", kind = "mqtts", listen = "127.0.0.1:{port+0}",
    tls = { {server}, handshakes_max = 40, handshake_timeout = "5s" } },
]"#;

#[tokio::test]
async fn half_open_handshakes_keep_nobody_out() {
    let running = Running::start(&one_line(STORM)).await;
    let address = running.at(0);
    let mut served = Client::open(&running.node.mqtt, Version::V5, "storm-served").await;
    served.subscribe(&[("storm", 1)]).await;

    // A record that says it has 512 bytes, and the beginning of a ClientHello; then nothing.
    let mut half_open = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(&address).await.expect("a connection");
        stream
            .write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3])
            .await
            .expect("written");
        half_open.push(stream);
    }
    // Meanwhile: who is served is served, and who comes gets in.
    let relay = tls::relay(&address, &["-CAfile", &running.pki.ca]).await;
    for round in 0..5 {
        let began = Instant::now();
        served.ping().await;
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        let mut client = Client::open(&relay, Version::V5, &format!("storm-{round}")).await;
        client.publish("storm", round.to_string(), 1).await;
        assert_eq!(served.message().await.text(), round.to_string());
        client.disconnect().await;
    }
    // Beyond 40 of a worker the oldest were given up, the others when their time was over.
    let given_up = || async {
        (
            running.handshakes("displaced").await,
            running.handshakes("timeout").await,
        )
    };
    eventually("all are given up", SOON, || async {
        let (displaced, timeout) = given_up().await;
        (displaced + timeout >= 200.0).then_some(())
    })
    .await;
    let workers = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let (displaced, timeout) = given_up().await;
    assert!(displaced > 0.0 || workers > 5.0, "{displaced} {timeout}");
    assert!(timeout <= 41.0 * workers, "{displaced} {timeout}");
    for mut stream in half_open {
        tls::rest(&mut stream).await;
    }
    let scrape = running.cluster.metrics(running.node.id).await;
    assert!(scrape.sum_where("lontra_connections_refused_total", "reason=\"tls\"") >= 200.0);
    running.cluster.assert_no_panic();
}

#[tokio::test]
async fn what_is_no_tls_is_told_and_counted() {
    let running = Running::start(&one_line(STORM)).await;
    let connect = Connect::clean(Version::V5, "no-tls").encode();
    for bytes in [
        &connect[..],
        b"GET /mqtt HTTP/1.1\r\nHost: x\r\n\r\n",
        &[0x16, 3, 1, 0xff, 0xff, 1],
    ] {
        let before = running.handshakes("invalid").await;
        let mut stream = TcpStream::connect(running.at(0)).await.expect("a connection");
        stream.write_all(bytes).await.expect("written");
        let answer = tls::rest(&mut stream).await;
        assert_eq!(answer.first(), Some(&21), "an alert: {answer:?}");
        eventually("it is counted", SOON, || async {
            (running.handshakes("invalid").await > before).then_some(())
        })
        .await;
    }
    // A client that goes away within its handshake.
    drop(TcpStream::connect(running.at(0)).await.expect("a connection"));
    eventually("it is counted", SOON, || async {
        (running.handshakes("lost").await > 0.0).then_some(())
    })
    .await;
    assert!(!running.log().contains("ERROR"), "{}", running.log());
}

#[tokio::test]
async fn connections_are_counted_by_the_kind_of_their_listener() {
    let running = Running::start(&one_line(LISTENERS)).await;
    let cluster = &running.cluster;
    let count = |kind: &'static str| async move {
        let scrape = cluster.metrics(1).await;
        scrape.sum_where("lontra_listener_connections", &format!("kind=\"{kind}\""))
    };
    let ca = ["-CAfile", running.pki.ca.as_str()];
    let mqtts = tls::relay(&running.at(0), &ca).await;
    let wss = websocket::relay(&tls::relay(&running.at(4), &ca).await, usize::MAX).await;
    let mut clients = Vec::new();
    for (name, at) in [("tcp", &running.node.mqtt), ("tls", &mqtts), ("wss", &wss)] {
        clients.push(Client::open(at, Version::V5, name).await);
    }
    for kind in ["mqtt", "mqtts", "wss"] {
        assert_eq!(count(kind).await, 1.0, "{kind}");
    }
    drop(clients);
    for kind in ["mqtt", "mqtts", "wss"] {
        eventually("it is counted down", SOON, || async {
            (count(kind).await == 0.0).then_some(())
        })
        .await;
    }
    let scrape = running.cluster.metrics(1).await;
    assert_eq!(
        scrape.sum("lontra_tls_handshake_seconds"),
        scrape.sum_where("lontra_tls_handshakes_total", "full")
    );
}

/// Keeps what a retained message over TLS is, for the other transports to see.
#[tokio::test]
async fn what_is_retained_over_tls_is_seen_everywhere() {
    let cluster = shared();
    let [mqtts, wss] = relays(cluster, 2, &[]).await;
    let mut publisher = Client::open(&mqtts, Version::V5, "tls-retain").await;
    let retained = Publish {
        retain: true,
        ..Publish::new("tls/retained", "kept", 1)
    };
    assert!(publisher.publish_packet(retained).await < 0x80);
    for at in [cluster.mqtt(0), &wss] {
        let mut client = Client::open(at, Version::V311, &format!("tls-retain-{at}")).await;
        client.subscribe(&[("tls/retained", 1)]).await;
        let message = client.message().await;
        assert_eq!((message.text().as_str(), message.retain), ("kept", true));
    }
}

fn is_present(connack: &Packet) -> bool {
    matches!(
        connack,
        Packet::Connack {
            session_present: true,
            ..
        }
    )
}
