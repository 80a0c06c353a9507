//! Bad input: a wrong packet costs its sender that connection and nobody else anything; a wrong start ends with a message
//! that says what to do, an exit code, and never a panic.

use crate::support::client::{Client, Gone};
use crate::support::cluster::{Cluster, LONTRA, shared, shared_single};
use crate::support::codec::{self, Connect, Packet, Publish, VERSIONS, Version};
use crate::support::{SOON, START, eventually};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::Command;
use tokio::time::timeout;

// ---- packets ----

/// After CONNECT: bytes, and the reason code of the DISCONNECT that a 5.0 client gets.
const WRONG_PACKETS: &[(&str, Version, &[u8], u8)] = &[
    ("reserved packet type", Version::V5, &[0x00, 0x00], 0x81),
    ("reserved packet type", Version::V311, &[0xf0, 0x00], 0x81),
    (
        "remaining length of five bytes",
        Version::V5,
        &[0x30, 0xff, 0xff, 0xff, 0xff, 0x01],
        0x81,
    ),
    (
        "flags of SUBSCRIBE",
        Version::V5,
        &[0x80, 7, 0, 1, 0, 0, 1, b'a', 0],
        0x81,
    ),
    (
        "flags of SUBSCRIBE",
        Version::V311,
        &[0x80, 6, 0, 1, 0, 1, b'a', 0],
        0x81,
    ),
    ("QoS 3", Version::V5, &[0x36, 8, 0, 1, b'a', 0, 1, 0, b'h', b'i'], 0x81),
    ("QoS 3", Version::V311, &[0x36, 7, 0, 1, b'a', 0, 1, b'h', b'i'], 0x81),
    (
        "packet identifier 0",
        Version::V5,
        &[0x32, 7, 0, 1, b'a', 0, 0, 0, b'h'],
        0x81,
    ),
    ("topic that is not UTF-8", Version::V5, &[0x30, 4, 0, 1, 0xff, 0], 0x81),
    (
        "topic with U+0000",
        Version::V311,
        &[0x30, 5, 0, 3, b'a', 0, b'b'],
        0x81,
    ),
    (
        "wildcard in a topic name",
        Version::V5,
        &[0x30, 6, 0, 3, b'a', b'/', b'+', 0],
        0x90,
    ),
    (
        "topic alias 0",
        Version::V5,
        &[0x30, 7, 0, 1, b'a', 3, 0x23, 0, 0],
        0x94,
    ),
    (
        "topic longer than its packet",
        Version::V5,
        &[0x30, 4, 0, 5, b'a', b'b'],
        0x81,
    ),
    ("SUBSCRIBE without a filter", Version::V5, &[0x82, 3, 0, 1, 0], 0x82),
    (
        "a second CONNECT",
        Version::V5,
        &[0x10, 14, 0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 60, 0, 0, 1, b'c'],
        0x82,
    ),
    (
        "a second CONNECT",
        Version::V311,
        &[0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 60, 0, 1, b'c'],
        0x82,
    ),
    (
        "a packet that only servers send",
        Version::V5,
        &[0x90, 4, 0, 1, 0, 0],
        0x82,
    ),
    ("a packet that only servers send", Version::V311, &[0xd0, 0], 0x82),
];

/// As the first packet: bytes, the version they claim, and the CONNACK code if there must be one.
const WRONG_CONNECTS: &[(&str, Version, &[u8], Option<u8>)] = &[
    (
        "PUBLISH before CONNECT",
        Version::V311,
        &[0x30, 4, 0, 1, b'a', b'x'],
        None,
    ),
    ("HTTP", Version::V311, b"GET / HTTP/1.1\r\n\r\n", None),
    ("TLS", Version::V311, &[0x16, 3, 1, 0, 2, 1, 0], None),
    (
        "wrong protocol name",
        Version::V311,
        &[0x10, 13, 0, 4, b'M', b'Q', b'X', b'X', 4, 2, 0, 60, 0, 1, b'c'],
        None,
    ),
    (
        "reserved connect flag",
        Version::V311,
        &[0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 4, 3, 0, 60, 0, 1, b'c'],
        None,
    ),
    (
        "level 3 of MQTT",
        Version::V311,
        &[0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 3, 2, 0, 60, 0, 1, b'c'],
        Some(0x01),
    ),
    (
        "no client id, no clean session",
        Version::V311,
        &[0x10, 12, 0, 4, b'M', b'Q', b'T', b'T', 4, 0, 0, 60, 0, 0],
        Some(0x02),
    ),
];

#[tokio::test]
async fn a_wrong_packet_closes_its_connection_only() {
    let cluster = shared();
    let mut bystander = Bystander::start(cluster).await;
    for (what, version, bytes, code) in WRONG_PACKETS {
        let mut client = Client::open(cluster.mqtt(0), *version, "wrong").await;
        client.send(bytes).await.expect("bytes");
        let (told, _) = client.closed_by_server(SOON).await;
        assert_eq!(told, (*version == Version::V5).then_some(*code), "{what} ({version:?})");
        bystander.goes_on().await;
    }
    cluster.assert_no_panic();
}

#[tokio::test]
async fn a_wrong_connect_is_refused_and_nobody_else_notices() {
    let cluster = shared();
    let mut bystander = Bystander::start(cluster).await;
    for (what, version, bytes, code) in WRONG_CONNECTS {
        let mut client = Client::raw(cluster.mqtt(0), *version, SOON)
            .await
            .expect("a connection");
        client.send(bytes).await.expect("bytes");
        let answer = client.packet_within(SOON).await;
        match (code, &answer) {
            (Some(code), Ok(Packet::Connack { code: told, .. })) => assert_eq!(told, code, "{what}"),
            (None, Err(Gone::Closed(_))) => {}
            _ => panic!("{what}: {answer:?}"),
        }
        if code.is_some() {
            client.closed_by_server(SOON).await;
        }
        bystander.goes_on().await;
    }
    // MQTT 5 tells why, before there is a session: QoS 3 for the will, and a property twice.
    for (what, flags, properties, expected) in [
        ("will QoS 3", 0x1e_u8, &[0_u8][..], 0x81),
        ("Receive Maximum twice", 2, &[6, 0x21, 0, 1, 0x21, 0, 1], 0x82),
    ] {
        let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 5, flags, 0, 60];
        body.extend(properties);
        body.extend(
            [0, 1, b'c', 0, 0, 1, b'w', 0, 1, b'm']
                .iter()
                .take(if flags == 2 { 3 } else { 10 }),
        );
        let mut client = Client::raw(cluster.mqtt(0), Version::V5, SOON)
            .await
            .expect("a connection");
        client.send(&codec::frame(0x10, &body)).await.expect("bytes");
        match client.packet_within(SOON).await {
            Ok(Packet::Connack { code, .. }) => assert_eq!(code, expected, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
        client.closed_by_server(SOON).await;
        bystander.goes_on().await;
    }
    cluster.assert_no_panic();
}

/// Every client-sent row of the frame table that must be rejected, against the running node. The codes are the codec's
/// own table test; here it is that the connection ends, and only that one.
#[tokio::test]
async fn every_frame_of_the_table_that_must_be_rejected_is() {
    for cluster in [shared_single(), shared()] {
        every_bad_frame_is_rejected(cluster).await;
    }
}

async fn every_bad_frame_is_rejected(cluster: &Cluster) {
    // Where there is another node, not the bystander's.
    let address = cluster.mqtt(1 % cluster.nodes.len());
    let mut bystander = Bystander::start(cluster).await;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/protocol/codec/testdata/mqtt-frames.tsv");
    let table = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut tried = 0;
    for row in table.lines().map(|line| line.split('\t').collect::<Vec<_>>()) {
        let [id, version @ ("4" | "5"), "c2s", hex, "REJECT", ..] = row[..] else {
            continue;
        };
        // A CONNECT of the other version: wrong as the table reads it, right on a port that takes both.
        if id.ends_with("level5-as-4") || id.ends_with("level4-as-5") {
            continue;
        }
        let version = if version == "5" { Version::V5 } else { Version::V311 };
        let bytes = unhex(hex);
        let mut client = match bytes[0] >> 4 {
            1 => Client::raw(address, version, SOON).await.expect("a connection"),
            _ => Client::open(address, version, "table").await,
        };
        client.send(&bytes).await.expect("bytes");
        let refused = match client.packet_within(SOON).await {
            // A filter that is wrong may be refused by itself.
            Ok(Packet::Suback { codes, .. } | Packet::Unsuback { codes, .. }) => codes.iter().all(|code| *code >= 0x80),
            Ok(Packet::Connack { code, .. }) => code != 0,
            Ok(Packet::Disconnect { code, .. }) => code >= 0x80,
            Ok(_) | Err(Gone::Silent(_) | Gone::Wrong(_)) => false,
            Err(Gone::Closed(_)) => bytes[0] >> 4 == 1 || version == Version::V311,
        };
        assert!(refused, "{id}: {hex} was not refused as it should");
        tried += 1;
        if tried % 20 == 0 {
            bystander.goes_on().await;
        }
    }
    assert!(tried > 150, "only {tried} frames in {}", path.display());
    bystander.goes_on().await;
    cluster.assert_no_panic();
}

#[tokio::test]
async fn a_half_packet_and_then_silence_is_closed_by_keep_alive() {
    let cluster = shared();
    for version in VERSIONS {
        let connect = Connect::clean(version, "half").keep_alive(1);
        let (mut client, _) = Client::connect(cluster.mqtt(0), &connect).await;
        let whole = Publish::new("half/x", "payload", 0).encode(version);
        client.send(&whole[..whole.len() - 3]).await.expect("bytes");
        client.closed_by_server(SOON).await;
    }
}

/// A client on the same node that must not notice anything.
struct Bystander {
    client: Client,
    count: usize,
}

impl Bystander {
    async fn start(cluster: &Cluster) -> Bystander {
        static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let name = format!(
            "bystander-{}",
            NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
        );
        let mut client = Client::open(cluster.mqtt(0), Version::V5, &name).await;
        client.subscribe(&[(&name, 1)]).await;
        Bystander { client, count: 0 }
    }

    async fn goes_on(&mut self) {
        self.count += 1;
        let topic = self.client.client_id.clone();
        self.client.publish(&topic, self.count.to_string(), 1).await;
        assert_eq!(self.client.message().await.text(), self.count.to_string());
    }
}

fn unhex(hex: &str) -> Vec<u8> {
    let digit = |index: usize| u8::from_str_radix(&hex[index..index + 2], 16).expect("hex");
    (0..hex.len()).step_by(2).map(digit).collect()
}

// ---- starts ----

#[tokio::test]
async fn a_port_in_use_is_named() {
    let stopped = Stopped::new(1).await;
    for address in [&stopped.mqtt, &stopped.ws, &stopped.http] {
        let _taken = free("the port of a node that is down", || TcpListener::bind(address)).await;
        says(&stopped.fails("").await, &[address, "in use"]);
    }
    // A single node has no links.
    let stopped = Stopped::new(3).await;
    let text = std::fs::read_to_string(&stopped.config).expect("the configuration");
    let cluster_address = value(&text, "cluster", "listen");
    let _taken = free("the port of a node that is down", || UdpSocket::bind(&cluster_address)).await;
    says(&stopped.fails("").await, &[&cluster_address, "in use"]);
}

/// A process that is gone may take a moment more to close its sockets.
async fn free<T>(what: &str, bind: impl Fn() -> std::io::Result<T>) -> T {
    eventually(what, SOON, || std::future::ready(bind().ok())).await
}

#[tokio::test]
async fn an_unreadable_certificate_is_named() {
    let stopped = Stopped::new(3).await;
    let text = std::fs::read_to_string(&stopped.config).expect("the configuration");
    for key in ["ca", "certificate", "key"] {
        let file = value(&text, "cluster.tls", key);
        let good = std::fs::read(&file).expect("a file");
        std::fs::write(&file, "this is no certificate").expect("written");
        says(&stopped.fails("").await, &[&file]);
        std::fs::remove_file(&file).expect("removed");
        says(&stopped.fails("").await, &[&file]);
        std::fs::write(&file, good).expect("written");
    }
    // One that is whole, but another node's.
    let other = value(&text, "cluster.tls", "certificate").replace("node-1", "node-2");
    let file = value(&text, "cluster.tls", "certificate");
    std::fs::copy(other, &file).expect("copied");
    says(&stopped.fails("").await, &[&file]);
}

#[tokio::test]
async fn a_data_directory_of_another_node_or_cluster_is_refused() {
    let stopped = Stopped::new(3).await;
    let data = stopped.data.display().to_string();
    // Node 2, sound in itself, on the data of node 1.
    let second = &stopped.cluster.nodes[1].config;
    let text = std::fs::read_to_string(second).expect("the configuration");
    std::fs::write(second, set(&text, "node", "data_dir", &format!("{data:?}"))).expect("written");
    says(&serve_fails(second).await, &[&data, "node"]);
    // A single node of another cluster.
    let text = std::fs::read_to_string(&stopped.config).expect("the configuration");
    let listen = |section| format!("[{section}]\nlisten = {:?}\n", value(&text, section, "listen"));
    let another = stopped.dir().join("another.toml");
    let alone = format!("[node]\ndata_dir = {data:?}\n{}name = \"another\"\n", listen("cluster"));
    std::fs::write(
        &another,
        alone + &listen("mqtt") + &listen("http") + &listen("websocket"),
    )
    .expect("written");
    says(&serve_fails(&another).await, &[&data, "another"]);
}

#[tokio::test]
async fn a_data_directory_in_use_is_refused() {
    let cluster = Cluster::start(1).await;
    let node = &cluster.nodes[0];
    // Other ports, so that it is the directory that they share.
    let text = std::fs::read_to_string(&node.config).expect("the configuration");
    let port = crate::support::cluster::free_ports(1);
    let other = cluster.dir.join("other.toml");
    let mut changed = text;
    for (section, offset) in [("mqtt", 0), ("websocket", 100), ("http", 200)] {
        changed = set(&changed, section, "listen", &format!("\"127.0.0.1:{}\"", port + offset));
    }
    changed = set(&changed, "node", "data_dir", &format!("{:?}", node.data));
    std::fs::write(&other, changed).expect("written");
    let message = serve_fails(&other).await;
    says(&message, &[&node.data.display().to_string()]);
    let mut client = Client::open(&node.mqtt, Version::V5, "still-served").await;
    client.ping().await;
}

#[tokio::test]
async fn a_data_directory_of_an_unknown_version_is_refused() {
    let stopped = Stopped::new(1).await;
    let identity = stopped.data.join("identity");
    assert!(identity.exists(), "{} tells whose data it is", identity.display());
    std::fs::write(&identity, "from a later version").expect("written");
    says(&stopped.fails("").await, &[&identity.display().to_string()]);
    assert_eq!(
        std::fs::read(&identity).expect("still there"),
        b"from a later version",
        "not overwritten"
    );
}

#[tokio::test]
async fn an_unknown_key_is_refused_with_file_line_and_key() {
    let stopped = Stopped::new(1).await;
    let name = stopped
        .config
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let good = std::fs::read_to_string(&stopped.config).expect("the configuration");
    let changed = set(&good, "mqtt", "lisen", "\"127.0.0.1:1\"");
    let line = changed
        .lines()
        .position(|line| line.starts_with("lisen"))
        .expect("just written")
        + 1;
    std::fs::write(&stopped.config, changed).expect("written");
    says(&stopped.fails("").await, &[&name, &line.to_string(), "lisen"]);
    // Also where nobody looks twice: a section, and the environment.
    std::fs::write(&stopped.config, format!("{good}\n[mqttt]\nlisten = \"127.0.0.1:1\"\n")).expect("written");
    says(&stopped.fails("").await, &[&name, "mqttt"]);
    std::fs::write(&stopped.config, &good).expect("written");
    says(&stopped.fails("LONTRA__MQTT__LISEN").await, &["LONTRA__MQTT__LISEN"]);
}

#[tokio::test]
async fn a_wrong_value_is_refused_with_its_key() {
    let stopped = Stopped::new(1).await;
    let good = std::fs::read_to_string(&stopped.config).expect("the configuration");
    for (section, key, value) in [
        ("mqtt", "listen", "\"not an address\""),
        ("node", "id", "0"),
        ("node", "id", "\"one\""),
        ("cluster", "shards", "65"),
        ("cluster", "shards", "0"),
    ] {
        std::fs::write(&stopped.config, set(&good, section, key, value)).expect("written");
        says(&stopped.fails("").await, &[key]);
    }
    std::fs::write(&stopped.config, "[mqtt\nlisten").expect("written");
    let name = stopped
        .config
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    says(&stopped.fails("").await, &[&name]);
    says(&serve_fails(&stopped.dir().join("absent.toml")).await, &["absent.toml"]);
}

/// A cluster that ran and is down: configuration, data and ports of its node 1.
struct Stopped {
    cluster: Cluster,
    config: PathBuf,
    data: PathBuf,
    mqtt: String,
    ws: String,
    http: String,
}

impl Stopped {
    async fn new(nodes: usize) -> Stopped {
        let mut cluster = Cluster::start(nodes).await;
        cluster.kill_all(&cluster.ids()).await;
        cluster.stop();
        let crate::support::cluster::Node {
            config,
            data,
            mqtt,
            ws,
            http,
            ..
        } = cluster.nodes[0].clone();
        Stopped {
            cluster,
            config,
            data,
            mqtt,
            ws,
            http,
        }
    }

    fn dir(&self) -> PathBuf {
        self.cluster.dir.clone()
    }

    /// What `serve` says before it ends with a failure; `variable` is set to nonsense if it is not empty.
    async fn fails(&self, variable: &str) -> String {
        match variable {
            "" => serve_fails(&self.config).await,
            variable => serve_fails_with(&self.config, &[(variable, "127.0.0.1:1")]).await,
        }
    }
}

async fn serve_fails(config: &Path) -> String {
    serve_fails_with(config, &[]).await
}

async fn serve_fails_with(config: &Path, environment: &[(&str, &str)]) -> String {
    let running = Command::new(LONTRA)
        .args(["serve", "--config"])
        .arg(config)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(START, running)
        .await
        .expect("serve ends by itself")
        .expect("serve runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.code().is_some_and(|code| code != 0),
        "{}: {said}",
        output.status
    );
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn says(message: &str, words: &[&str]) {
    for word in words {
        assert!(
            message.to_lowercase().contains(&word.to_lowercase()),
            "{word:?} is not in:\n{message}"
        );
    }
}

/// The value of a key as written, without quotes.
fn value(toml: &str, section: &str, key: &str) -> String {
    let mut current = "";
    for line in toml.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            current = name.trim_end_matches(']');
        }
        if let Some((found, value)) = line.split_once('=')
            && (current, found.trim()) == (section, key)
        {
            return value.trim().trim_matches('"').to_owned();
        }
    }
    panic!("no {section}.{key} in\n{toml}")
}

/// Sets a key of a section, on the line where it stands or first in the section.
fn set(toml: &str, section: &str, key: &str, value: &str) -> String {
    let mut lines: Vec<String> = toml.lines().map(String::from).collect();
    let header = format!("[{section}]");
    let start = lines
        .iter()
        .position(|line| line.trim() == header)
        .unwrap_or_else(|| panic!("no {header} in\n{toml}"));
    let end = lines[start + 1..]
        .iter()
        .position(|line| line.trim_start().starts_with('['));
    let end = end.map_or(lines.len(), |length| start + 1 + length);
    let assigns = |line: &String| line.split_once('=').is_some_and(|(found, _)| found.trim() == key);
    let line = format!("{key} = {value}");
    match lines[start..end].iter().position(assigns) {
        Some(at) => lines[start + at] = line,
        None => lines.insert(start + 1, line),
    }
    lines.join("\n") + "\n"
}
