//! Where everything of a cluster is, and what its nodes are told.
//!
//!     DIR/authority/                the certificate authority of this run
//!     DIR/n1/lontra.toml, tls/      configuration and certificate of node 1
//!     DIR/n1/node.log               what all its processes said, one after the other
//!     DIR/n1/disk/                  its file system, where the back end gives it one of its own
//!     DIR/n1/disk/data/             its data directory

use super::failure::Failure;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Clone, Debug)]
pub struct Layout {
    /// `n1`.
    pub name: String,
    pub id: u64,
    pub dir: PathBuf,
    /// What the node listens on.
    pub listen: Addresses,
    /// Where clients of the harness connect: the node itself, or a relay before it.
    pub clients: Addresses,
    /// Every node with its peer address as this node is told.
    pub seeds: Vec<(u64, SocketAddr)>,
}

#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    pub mqtt: SocketAddr,
    pub ws: SocketAddr,
    pub http: SocketAddr,
    pub cluster: SocketAddr,
}

impl Layout {
    pub fn config(&self) -> PathBuf {
        self.dir.join("lontra.toml")
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("node.log")
    }

    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk")
    }

    pub fn data(&self) -> PathBuf {
        self.disk().join("data")
    }

    fn tls(&self) -> PathBuf {
        self.dir.join("tls")
    }

    /// Small numbers where they make rare things frequent: checkpoints and purged logs (so that a node that was away gets a
    /// snapshot), flushes and compactions. Few shards: a run's load must be able to touch all of them within seconds.
    pub fn config_text(&self) -> String {
        let mut text = String::new();
        let seeds: Vec<String> = self
            .seeds
            .iter()
            .map(|(id, address)| format!("{{ id = {id}, address = \"{address}\" }}"))
            .collect();
        let tls = self.tls();
        let lines = [
            "[node]".to_owned(),
            format!("id = {}", self.id),
            format!("data_dir = {:?}", self.data()),
            "workers = 2".to_owned(),
            "[cluster]".to_owned(),
            format!("name = \"{CLUSTER}\""),
            format!("listen = \"{}\"", self.listen.cluster),
            format!("shards = {SHARDS}"),
            // Else a minority of the nodes could be the majority of a shard's replicas.
            format!("replication_factor = {}", self.seeds.len()),
            format!("seeds = [{}]", seeds.join(", ")),
            "[cluster.tls]".to_owned(),
            format!("ca = {:?}", tls.join("ca.pem")),
            format!("certificate = {:?}", tls.join(format!("node-{}.pem", self.id))),
            format!("key = {:?}", tls.join(format!("node-{}-key.pem", self.id))),
            "[mqtt]".to_owned(),
            format!("listen = \"{}\"", self.listen.mqtt),
            "[websocket]".to_owned(),
            format!("listen = \"{}\"", self.listen.ws),
            "[http]".to_owned(),
            format!("listen = \"{}\"", self.listen.http),
            // They are asked from outside of the nodes' namespaces.
            "metrics = \"open\"".to_owned(),
            "[storage]".to_owned(),
            "checkpoint_interval = \"2s\"".to_owned(),
            "write_buffer_bytes = \"1MiB\"".to_owned(),
            "cache_bytes = \"8MiB\"".to_owned(),
        ];
        for line in lines {
            writeln!(text, "{line}").expect("a String takes everything");
        }
        text
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }
}

/// Writes directories, certificates and configurations.
///
/// # Errors
/// A file cannot be written, or `lontra cert` failed.
pub fn write(binary: &Path, dir: &Path, nodes: &[Layout]) -> Result<(), Failure> {
    let authority = dir.join("authority");
    run(binary, &["cert", "authority", "--dir", text(&authority)])?;
    for node in nodes {
        std::fs::create_dir_all(&node.dir).map_err(Failure::io(node.dir.display().to_string()))?;
        let tls = node.tls();
        run(
            binary,
            &[
                "cert",
                "node",
                "--authority",
                text(&authority),
                "--cluster",
                CLUSTER,
                "--node",
                &node.id.to_string(),
                "--dir",
                text(&tls),
            ],
        )?;
        // True until a fault says otherwise; read only by nodes with the clock's library.
        std::fs::write(node.dir.join(CLOCK), [0; 8]).map_err(Failure::io("a node's clock"))?;
        std::fs::write(node.config(), node.config_text()).map_err(Failure::io(node.config().display().to_string()))?;
    }
    Ok(())
}

/// What a program says on standard output.
///
/// # Errors
/// It cannot be executed, or ends with anything but 0.
pub fn run(program: &Path, arguments: &[&str]) -> Result<String, Failure> {
    let failed = |detail: String| Failure::Program {
        program: format!("{} {}", program.display(), arguments.join(" ")),
        detail,
    };
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| failed(error.to_string()))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(failed(format!(
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ))),
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("paths of a run are UTF-8: the runner made them")
}

/// In a node's directory: how far its wall clock is from the truth, in nanoseconds, eight bytes.
pub const CLOCK: &str = "clock";
const CLUSTER: &str = "jepsen";
const SHARDS: usize = 4;
const LOG_TAIL: usize = 30;
