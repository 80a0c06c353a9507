//! Configuration that people trust: mistakes are told with the name that was meant, `show` prints what holds and no secrets,
//! and SIGHUP changes what may change while a node runs, or nothing.

use crate::support::client::Client;
use crate::support::cluster::{Cluster, LONTRA, Node};
use crate::support::codec::{Connect, Packet, Publish, Value, Version};
use crate::support::metrics::Scrape;
use crate::support::websocket::{WebSocket, request};
use crate::support::{SOON, eventually};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output};

// ---- lontra config ----

fn config(command: &str, file: &Path, environment: &[(&str, &str)]) -> Output {
    let run = Command::new(LONTRA)
        .args(["config", command, "--config"])
        .arg(file)
        .envs(environment.iter().copied())
        .output();
    run.expect("lontra config runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[test]
fn a_misspelt_key_section_or_variable_is_told_with_the_name_that_was_meant() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("lontra.toml");
    for (content, environment, words) in [
        (
            "[mqtt]\nconection_max = 5\n",
            &[][..],
            &["lontra.toml:2", "did you mean `mqtt.connections_max`?"][..],
        ),
        ("\n[web_socket]\n", &[], &["lontra.toml:2", "did you mean `websocket`?"]),
        (
            "",
            &[("LONTRA__STORAGE__CACHE_BYTE", "1MiB")],
            &["LONTRA__STORAGE__CACHE_BYTE", "did you mean `storage.cache_bytes`?"],
        ),
        (
            "",
            &[("LONTRA__STORGE__CACHE_BYTES", "1MiB")],
            &["LONTRA__STORGE__CACHE_BYTES", "did you mean `storage`?"],
        ),
    ] {
        std::fs::write(&file, content).expect("written");
        for command in ["check", "show"] {
            let output = config(command, &file, environment);
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{command}: {said}");
            assert!(words.iter().all(|word| said.contains(word)), "{command}: {said}");
        }
    }
}

#[test]
fn show_prints_what_a_node_runs_with_and_where_each_value_comes_from() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("lontra.toml");
    std::fs::write(&file, "[mqtt]\nreceive_maximum = 9\npacket_size_max = '2048KiB'\n").expect("written");
    let output = config("show", &file, &[("LONTRA__LOG__LEVEL", "warn")]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    let line = |key: &str| {
        let found = shown.lines().find(|line| line.starts_with(&format!("{key} = ")));
        found.unwrap_or_else(|| panic!("no {key} in\n{shown}")).to_owned()
    };
    assert_eq!(
        line("receive_maximum"),
        format!("receive_maximum = 9 # {}:2", file.display())
    );
    assert!(
        line("packet_size_max").starts_with("packet_size_max = \"2MiB\" #"),
        "{shown}"
    );
    assert_eq!(
        line("level"),
        "level = \"warn\" # environment variable LONTRA__LOG__LEVEL"
    );
    assert_eq!(line("topic_alias_max"), "topic_alias_max = 32");
    // Derived, not 0.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    assert_eq!(
        line("workers"),
        format!("workers = {cores} # derived from {cores} cores")
    );
    for key in ["cache_bytes", "write_buffer_bytes", "unfinished_bytes_max"] {
        let line = line(key);
        assert!(
            line.contains("MiB\" # derived from ") || line.contains("GiB\" # derived from "),
            "{line}"
        );
    }
    // What was shown, given, is shown again, and nothing of it is derived any more.
    std::fs::write(&file, &shown).expect("written");
    let again = text(&config("show", &file, &[]).stdout);
    let table = |document: &str| document.parse::<toml::Table>().expect("TOML");
    assert_eq!(table(&again), table(&shown));
    assert!(!again.contains("derived"), "{again}");
}

#[test]
fn show_prints_the_path_of_a_private_key_and_never_what_it_holds() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let marker = "dGhpcyBpcyBhIHNlY3JldA";
    for name in ["ca.pem", "node.pem", "node.key"] {
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{marker}\n-----END PRIVATE KEY-----\n");
        std::fs::write(path(name), pem).expect("written");
    }
    let file = path("lontra.toml");
    let tls = format!(
        "[cluster.tls]\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n",
        path("ca.pem"),
        path("node.pem"),
        path("node.key")
    );
    std::fs::write(&file, tls).expect("written");
    for command in ["show", "check"] {
        let output = config(command, &file, &[]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(!said.contains(marker) && !said.contains("PRIVATE KEY"), "{said}");
        assert!(command == "check" || said.contains("node.key"), "{said}");
    }
}

// ---- SIGHUP ----

struct Running {
    cluster: Cluster,
    node: Node,
    /// As `lontra dev` wrote it.
    original: String,
}

impl Running {
    async fn start(environment: &[(&str, &str)]) -> Running {
        let dir = tempfile::Builder::new()
            .prefix("lontra-wire-")
            .tempdir()
            .expect("a directory");
        let cluster = Cluster::start_in(dir.keep(), 1, environment).await;
        let node = cluster.nodes[0].clone();
        let original = std::fs::read_to_string(&node.config).expect("the configuration");
        Running {
            cluster,
            node,
            original,
        }
    }

    /// Adds `changes` to what `lontra dev` wrote; a key of a section that is there already goes to its section.
    fn write(&self, changes: &[(&str, &str, &str)]) {
        let mut table: toml::Table = self.original.parse().expect("TOML");
        for (section, key, value) in changes {
            let section = table.entry(*section).or_insert_with(|| toml::Table::new().into());
            let value = format!("v = {value}").parse::<toml::Table>().expect("a value")["v"].clone();
            section
                .as_table_mut()
                .expect("a section")
                .insert((*key).to_owned(), value);
        }
        std::fs::write(&self.node.config, table.to_string()).expect("written");
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

    fn log(&self) -> String {
        std::fs::read_to_string(self.node.config.with_file_name("lontra.log")).expect("the log")
    }

    async fn logs(&self, words: &[&str]) {
        eventually(&format!("a line with {words:?}"), SOON, || async {
            let log = self.log();
            log.lines()
                .any(|line| words.iter().all(|word| line.contains(word)))
                .then_some(())
        })
        .await;
    }
}

/// Receive Maximum that CONNACK tells.
async fn receive_maximum(address: &str) -> Option<u16> {
    let (client, connack) = Client::connect(address, &Connect::clean(Version::V5, "config-new")).await;
    assert!(matches!(connack, Packet::Connack { .. }), "{connack:?}");
    client.disconnect().await;
    match connack.property(RECEIVE_MAXIMUM) {
        Some(Value::Two(value)) => Some(*value),
        _ => None,
    }
}

/// A web page that may not connect: logged at debug.
async fn refused_page(node: &Node) {
    let asked = request(&[("Origin", "https://elsewhere.example")]);
    let (_socket, answer) = WebSocket::ask(&node.ws, &asked).await;
    assert_eq!(answer.status, 403);
}

#[tokio::test]
async fn sighup_changes_the_log_level_and_limits_of_new_connections() {
    let running = Running::start(&[]).await;
    let (node, cluster) = (&running.node, &running.cluster);
    refused_page(node).await;
    let mut old = Client::open(&node.mqtt, Version::V5, "config-old").await;
    assert_eq!(receive_maximum(&node.mqtt).await, Some(1024));
    assert!(!running.log().contains("an HTTP request was refused"));

    running.write(&[
        ("log", "level", "'info,lontra=debug'"),
        ("mqtt", "receive_maximum", "7"),
        ("mqtt", "packet_size_max", "'1KiB'"),
        ("retained", "messages_max", "1"),
        ("websocket", "origins", "['https://elsewhere.example']"),
        ("cluster", "lease", "'1900ms'"),
    ]);
    assert!(running.reload().await);
    running
        .logs(&["INFO", "configuration reloaded", "mqtt.receive_maximum", "log.level"])
        .await;
    running.logs(&["WARN", "cluster.lease", "needs a restart"]).await;

    // The log level: a debug line of what was silent before.
    let asked = request(&[("Origin", "https://third.example")]);
    assert_eq!(WebSocket::ask(&node.ws, &asked).await.1.status, 403);
    running.logs(&["DEBUG", "an HTTP request was refused"]).await;
    // Web pages: the one that was refused may connect.
    let asked = request(&[("Origin", "https://elsewhere.example")]);
    assert_eq!(WebSocket::ask(&node.ws, &asked).await.1.status, 101);

    // Limits of a connection: new ones have the new, the old one keeps what it was told.
    assert_eq!(receive_maximum(&node.mqtt).await, Some(7));
    old.publish("config/large", vec![b'x'; 4096], 1).await;
    let mut new = Client::open(&node.mqtt, Version::V5, "config-large").await;
    let large = Publish {
        pid: 1,
        ..Publish::new("config/large", vec![b'x'; 4096], 1)
    };
    new.send(&large.encode(Version::V5)).await.expect("PUBLISH");
    assert_eq!(new.closed_by_server(SOON).await.0, Some(PACKET_TOO_LARGE));

    // Limits of the node hold for everybody.
    let mut refused = 0;
    for number in 0..RETAINED_UNTIL_FULL {
        let topic = format!("config/retained/{number}");
        let retained = Publish {
            retain: true,
            ..Publish::new(&topic, "kept", 1)
        };
        refused = old.publish_packet(retained).await;
        if refused >= 0x80 {
            break;
        }
    }
    assert_eq!(refused, QUOTA_EXCEEDED);
    cluster.assert_no_panic();
}

#[tokio::test]
async fn sighup_limits_queues_that_wait_already() {
    let running = Running::start(&[]).await;
    let address = &running.node.mqtt;
    let (mut away, _) = Client::connect(address, &Connect::persistent(Version::V5, "config-away")).await;
    away.subscribe(&[("config/queue", 1)]).await;
    away.disconnect().await;
    let mut publisher = Client::open(address, Version::V5, "config-publisher").await;
    for number in 0..5 {
        publisher.publish("config/queue", number.to_string(), 1).await;
    }
    let dropped = || async {
        let scrape: Scrape = running.cluster.metrics(running.node.id).await;
        scrape.sum_where("lontra_queue_dropped_total", "reason=\"drop_oldest\"")
    };
    assert_eq!(dropped().await, 0.0);
    running.write(&[("queue", "messages_max", "2"), ("queue", "policy", "'drop-oldest'")]);
    assert!(running.reload().await);
    eventually("three of five are dropped", SOON, || async {
        (dropped().await == 3.0).then_some(())
    })
    .await;
    let (mut back, _) = Client::connect(address, &Connect::persistent(Version::V5, "config-away")).await;
    assert_eq!(back.message().await.text(), "3");
    assert_eq!(back.message().await.text(), "4");
}

#[tokio::test]
async fn a_bad_file_is_refused_as_a_whole() {
    let running = Running::start(&[]).await;
    let node = &running.node;
    running.write(&[
        ("mqtt", "receive_maximum", "5"),
        ("log", "level", "'debug'"),
        ("mqtt", "packet_size_maks", "'1KiB'"),
    ]);
    let text = std::fs::read_to_string(&node.config).expect("the configuration");
    let line = 1 + text
        .lines()
        .position(|line| line.starts_with("packet_size_maks"))
        .expect("written");
    assert!(!running.reload().await);
    let place = format!("lontra.toml:{line}");
    running
        .logs(&[
            "ERROR",
            "nothing has changed",
            &place,
            "mqtt.packet_size_maks",
            "did you mean `mqtt.packet_size_max`?",
        ])
        .await;
    assert_eq!(receive_maximum(&node.mqtt).await, Some(1024));
    refused_page(node).await;
    assert!(!running.log().contains("an HTTP request was refused"));

    // Out of bounds, no TOML, no file.
    for broken in ["[mqtt]\nreceive_maximum = 0\n", "[mqtt\n"] {
        std::fs::write(&node.config, broken).expect("written");
        assert!(!running.reload().await, "{broken}");
    }
    std::fs::remove_file(&node.config).expect("removed");
    assert!(!running.reload().await);
    assert_eq!(receive_maximum(&node.mqtt).await, Some(1024));

    // Then a good one.
    running.write(&[("mqtt", "receive_maximum", "5")]);
    assert!(running.reload().await);
    assert_eq!(receive_maximum(&node.mqtt).await, Some(5));
    running.cluster.assert_no_panic();
}

#[tokio::test]
async fn systemd_hears_of_ready_reload_and_stop() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(SOON)).expect("a deadline");
    let heard = |what: &str| {
        let mut buffer = [0; 512];
        loop {
            let length = socket
                .recv(&mut buffer)
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            let said = text(&buffer[..length]);
            if said.lines().any(|line| line.starts_with(what)) {
                return said;
            }
            assert!(said.starts_with("STATUS="), "{said:?} instead of {what}");
        }
    };
    let running = Running::start(&[("NOTIFY_SOCKET", path.to_str().expect("text"))]).await;
    heard("READY=1");
    assert!(running.reload().await);
    assert!(heard("RELOADING=1").contains("\nMONOTONIC_USEC="));
    heard("READY=1");
    running.cluster.terminate(running.node.id).await;
    heard("STOPPING=1");
}

const RECEIVE_MAXIMUM: u8 = 0x21;
const PACKET_TOO_LARGE: u8 = 0x95;
const QUOTA_EXCEEDED: u8 = 0x97;
/// One per shard is taken; the counts reach a node that does not lead the shard a moment later.
const RETAINED_UNTIL_FULL: usize = 200;
