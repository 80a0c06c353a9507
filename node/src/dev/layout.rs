//! What a development cluster consists of: directories, ports, configurations. Decides; `mod.rs` writes and runs.
//!
//!     DIR/cluster.json                       the nodes, once all are ready
//!     DIR/lontra-dev.pid                     the `lontra dev` that runs them
//!     DIR/authority/                         the cluster's certificate authority
//!     DIR/clients/                           another one, for listeners and clients; a client's certificate
//!     DIR/node-1/lontra.toml, lontra.log     configuration and log of node 1
//!     DIR/node-1/mqtt.sock                   its Unix socket for clients, where the path is not too long for one
//!     DIR/node-1/tls/                        its certificates and keys: as a node, and of its listeners over TLS
//!     DIR/node-1/data/                       its data, with lontra.pid

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Serialize;
use toml::{Table, Value};

use lontra_cluster::link::issue::Purpose;

use crate::cert;
use crate::config::listener::{ListenAddress, Listener, SOCKET_PATH_MAX};
use crate::config::{Config, ListenerKind, Machine, Seed};

/// The nodes of one development cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Absolute.
    pub dir: PathBuf,
    pub nodes: Vec<NodeLayout>,
}

/// One node, as `lontra dev` sets it up.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeLayout {
    pub id: u64,
    pub dir: PathBuf,
    pub config: Config,
    pub mqtts: SocketAddr,
    pub wss: SocketAddr,
    /// None where its path would be too long for a socket.
    pub unix: Option<PathBuf>,
    pub ca: PathBuf,
}

/// `cluster.json`.
#[derive(Debug, PartialEq, Serialize)]
pub struct ClusterFile {
    pub nodes: Vec<ClusterNode>,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct ClusterNode {
    pub id: u64,
    pub pid: u32,
    pub config: PathBuf,
    pub mqtt: SocketAddr,
    pub ws: SocketAddr,
    pub mqtts: SocketAddr,
    pub wss: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unix: Option<PathBuf>,
    /// The authority of their certificates.
    pub ca: PathBuf,
    pub http: SocketAddr,
    pub cluster: SocketAddr,
}

impl Layout {
    /// Ports of node i (from 0): base + i MQTT, + 100 + i WebSocket, + 200 + i HTTP, + 300 + i cluster, + 400 + i MQTT over
    /// TLS, + 500 + i WebSocket over TLS.
    ///
    /// `dir` is absolute; `base_port + 500 + nodes` is a port; `nodes` is at most [`NODES_MAX`].
    pub fn new(dir: &Path, nodes: u16, base_port: u16) -> Self {
        let address = |offset: u16, i: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, base_port + offset + i));
        let seeds: Vec<Seed> = (0..nodes)
            .map(|i| Seed {
                id: u64::from(i) + 1,
                address: address(CLUSTER, i).to_string(),
            })
            .collect();
        // The nodes share this machine's memory.
        let machine = Machine::here();
        let share = Machine {
            memory: machine.memory / u64::from(nodes.max(1)),
            ..machine
        };
        let node = |i: u16| {
            let id = u64::from(i) + 1;
            let node_dir = dir.join(format!("node-{id}"));
            let mut config = Config::default();
            config.node.id = id;
            config.node.data_dir = node_dir.join("data");
            config.cluster.name = CLUSTER_NAME.to_owned();
            config.cluster.listen = address(CLUSTER, i);
            config.cluster.seeds = seeds.clone();
            config.mqtt.listen = address(0, i);
            config.websocket.listen = address(WEBSOCKET, i);
            config.http.listen = address(HTTP, i);
            config.storage = config.resolved(&share).storage;
            let files = cert::leaf_files(&node_dir.join(TLS_DIR), Purpose::Server);
            let (mqtts, wss) = (address(MQTTS, i), address(WSS, i));
            for (kind, address) in [(ListenerKind::Mqtts, mqtts), (ListenerKind::Wss, wss)] {
                let mut listener = Listener::new(kind.name(), kind, ListenAddress::Ip(address));
                listener.tls.certificate.clone_from(&files.certificate);
                listener.tls.key.clone_from(&files.key);
                config.listeners.push(listener);
            }
            let unix = Some(node_dir.join(SOCKET)).filter(|path| path.as_os_str().len() <= SOCKET_PATH_MAX);
            if let Some(path) = unix.clone() {
                let kind = ListenerKind::Unix;
                let listener = Listener::new(kind.name(), kind, ListenAddress::Path(path));
                config.listeners.push(listener);
            }
            NodeLayout {
                id,
                dir: node_dir,
                config,
                mqtts,
                wss,
                unix,
                ca: dir.join(CLIENTS_DIR).join("ca.pem"),
            }
        };
        Self {
            dir: dir.to_owned(),
            nodes: (0..nodes).map(node).collect(),
        }
    }

    pub fn cluster_file(&self) -> PathBuf {
        self.dir.join("cluster.json")
    }

    pub fn authority_dir(&self) -> PathBuf {
        self.dir.join("authority")
    }

    /// The authority of listeners and clients, and a client's certificate.
    pub fn clients_dir(&self) -> PathBuf {
        self.dir.join(CLIENTS_DIR)
    }
}

impl NodeLayout {
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("lontra.toml")
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.join("lontra.log")
    }

    pub fn tls_dir(&self) -> PathBuf {
        self.dir.join(TLS_DIR)
    }

    pub fn pid_path(&self) -> PathBuf {
        crate::cli::pid_path(&self.config)
    }

    /// The file that a first start writes: what differs from the defaults.
    pub fn config_file(&self) -> String {
        let all = Table::try_from(&self.config).expect("every field is a TOML value");
        let defaults = Table::try_from(Config::default()).expect("every field is a TOML value");
        format!("{CONFIG_HEAD}{}", changed(all, &defaults))
    }

    /// The keys in which `found` is not the node that this layout means, with both values.
    pub fn differences(&self, found: &Config) -> Vec<String> {
        let meant = &self.config;
        let pairs = [
            ("node.id", found.node.id.to_string(), meant.node.id.to_string()),
            ("node.data_dir", show(&found.node.data_dir), show(&meant.node.data_dir)),
            (
                "cluster.listen",
                found.cluster.listen.to_string(),
                meant.cluster.listen.to_string(),
            ),
            (
                "cluster.seeds",
                show_seeds(&found.cluster.seeds),
                show_seeds(&meant.cluster.seeds),
            ),
            (
                "mqtt.listen",
                found.mqtt.listen.to_string(),
                meant.mqtt.listen.to_string(),
            ),
            (
                "websocket.listen",
                found.websocket.listen.to_string(),
                meant.websocket.listen.to_string(),
            ),
            (
                "http.listen",
                found.http.listen.to_string(),
                meant.http.listen.to_string(),
            ),
        ];
        let differing = pairs.into_iter().filter(|(_, found, meant)| found != meant);
        differing
            .map(|(key, found, meant)| format!("{key} is {found}, not {meant}"))
            .collect()
    }

    pub fn cluster_node(&self, pid: u32) -> ClusterNode {
        ClusterNode {
            id: self.id,
            pid,
            config: self.config_path(),
            mqtt: self.config.mqtt.listen,
            ws: self.config.websocket.listen,
            mqtts: self.mqtts,
            wss: self.wss,
            unix: self.unix.clone(),
            ca: self.ca.clone(),
            http: self.config.http.listen,
            cluster: self.config.cluster.listen,
        }
    }
}

/// `all` without what is equal in `defaults`.
fn changed(all: Table, defaults: &Table) -> Table {
    let mut kept = Table::new();
    for (key, value) in all {
        match (value, defaults.get(&key)) {
            (Value::Table(below), Some(Value::Table(defaults))) => {
                let below = changed(below, defaults);
                if !below.is_empty() {
                    kept.insert(key, Value::Table(below));
                }
            }
            (value, default) if default == Some(&value) => {}
            (value, _) => drop(kept.insert(key, value)),
        }
    }
    kept
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

fn show_seeds(seeds: &[Seed]) -> String {
    let seeds: Vec<String> = seeds
        .iter()
        .map(|seed| format!("{} at {}", seed.id, seed.address))
        .collect();
    format!("[{}]", seeds.join(", "))
}

/// The ports of a kind have a hundred numbers, and a cluster at most 64 seeds.
pub const NODES_MAX: u16 = 64;

/// With `NODES_MAX` nodes the last port is 65535 at most.
pub const BASE_PORT_MAX: u16 = u16::MAX - WSS - NODES_MAX;

const CLUSTER_NAME: &str = "dev";
const WEBSOCKET: u16 = 100;
const HTTP: u16 = 200;
const CLUSTER: u16 = 300;
const MQTTS: u16 = 400;
const WSS: u16 = 500;
const SOCKET: &str = "mqtt.sock";
const TLS_DIR: &str = "tls";
const CLIENTS_DIR: &str = "clients";

const CONFIG_HEAD: &str = "\
# Written once by `lontra dev`, then left alone: change what you like but the addresses, ids and directories.
# All keys, with meaning and default: `lontra config show`, and lontra.toml in the sources (ops/deploy).

";

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        let mut layout = Layout::new(Path::new("/x"), 3, 18800);
        for node in &mut layout.nodes {
            let dir = node.tls_dir();
            let tls = &mut node.config.cluster.tls;
            (tls.ca, tls.certificate, tls.key) = (dir.join("ca.pem"), dir.join("node.pem"), dir.join("node.key"));
        }
        layout
    }

    #[test]
    fn ports_follow_from_the_base_port() {
        let json = serde_json::to_value(layout().nodes[2].cluster_node(77)).unwrap();
        let expected = serde_json::json!({
            "id": 3, "pid": 77, "config": "/x/node-3/lontra.toml",
            "mqtt": "127.0.0.1:18802", "ws": "127.0.0.1:18902", "http": "127.0.0.1:19002", "cluster": "127.0.0.1:19102",
            "mqtts": "127.0.0.1:19202", "wss": "127.0.0.1:19302", "unix": "/x/node-3/mqtt.sock", "ca": "/x/clients/ca.pem",
        });
        assert_eq!(json, expected);
        Layout::new(Path::new("/x"), NODES_MAX, BASE_PORT_MAX);
    }

    #[test]
    fn a_written_configuration_loads_as_the_node_that_was_meant() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lontra.toml");
        for node in layout().nodes {
            std::fs::write(&path, node.config_file()).unwrap();
            let found = Config::load(Some(&path), std::iter::empty()).unwrap();
            assert_eq!(found, node.config);
            assert_eq!(node.differences(&found), Vec::<String>::new());
        }
    }

    #[test]
    fn other_nodes_and_ports_are_told_apart() {
        let (meant, other) = (layout(), Layout::new(Path::new("/x"), 2, 18900));
        let differences = meant.nodes[0].differences(&other.nodes[0].config).join("; ");
        assert!(
            differences.contains("mqtt.listen is 127.0.0.1:18900, not 127.0.0.1:18800"),
            "{differences}"
        );
        assert!(
            differences.contains("cluster.seeds is [1 at 127.0.0.1:19200, 2 at"),
            "{differences}"
        );
        let mut changed = meant.nodes[0].config.clone();
        changed.mqtt.receive_maximum = 5;
        assert!(
            meant.nodes[0].differences(&changed).is_empty(),
            "other keys are the user's to change"
        );
    }
}
