//! `lontra dev`: a cluster on one machine, one child process per node, for development and tests.
//!
//!     set up (once) ─▶ start N × `lontra serve` ─▶ all ready ─▶ cluster.json ─▶ until SIGINT or SIGTERM ─▶ stop all
//!                                                                    │
//!                                                    a node that ends stays down, and `dev` says so
//!
//! `layout.rs` decides what there is; `children.rs` runs the processes; `ready.rs` asks them. A node may be killed, and
//! started again by hand with `lontra serve --config DIR/node-1/lontra.toml`: `dev` stops that one too when it ends, by
//! its `lontra.pid`.

mod children;
mod layout;
mod ready;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use clap::Args;
use lontra_cluster::link::issue::Purpose;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::children::Children;
use self::layout::{BASE_PORT_MAX, ClusterFile, Layout, NODES_MAX, NodeLayout};
use crate::cert::{self, CertError};
use crate::cli::say;
use crate::config::{Config, ConfigError, environment};
use crate::pid_file::{PidFile, PidFileError};

#[derive(Clone, Debug, Args)]
pub struct Options {
    /// How many nodes; 1, 3 or 5 make sense.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
    pub nodes: u16,

    /// Where everything is kept: certificates, configurations, logs, data, cluster.json. Made if missing, kept if not.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,

    /// MQTT port of the first node; then P+i MQTT, P+100+i WebSocket, P+200+i HTTP, P+300+i cluster, P+400+i MQTT
    /// over TLS, P+500+i WebSocket over TLS.
    #[arg(long, value_name = "P", default_value_t = 18800,
          value_parser = clap::value_parser!(u16).range(1..=i64::from(BASE_PORT_MAX)))]
    pub base_port: u16,
}

/// Why the cluster does not run. Nodes that were started have been stopped.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    #[error("cannot make {}: {source}; choose a directory that this user can write", path.display())]
    Unwritable { path: PathBuf, source: io::Error },
    #[error(
        "{} was made for another cluster: {differences}; start it with the --nodes and --base-port of the first time, \
         unset LONTRA__ variables that change it, or choose another --data-dir", path.display()
    )]
    Different { path: PathBuf, differences: String },
    #[error(transparent)]
    InUse(#[from] PidFileError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Cert(#[from] CertError),
    #[error("cannot start node {id}: {source}")]
    Spawn { id: u64, source: io::Error },
    #[error("node {id} ended before it was ready ({status}); its log is {}: {reason}", log.display())]
    Ended {
        id: u64,
        status: ExitStatus,
        log: PathBuf,
        reason: String,
    },
    #[error("cannot wait for signals: {0}")]
    Signals(#[source] io::Error),
}

/// Runs the cluster until SIGINT or SIGTERM; then stops every node.
///
/// # Errors
/// See [`DevError`]; a node that ends later is no error.
pub async fn run(options: &Options) -> Result<(), DevError> {
    let mut stop = StopSignals::listen().map_err(DevError::Signals)?;
    let layout = prepare(options)?;
    let _pid_file = PidFile::create(&layout.dir.join("lontra-dev.pid"))?;
    set_up(&layout)?;

    let mut children = Children::start(&layout.nodes)?;
    let outcome = tokio::select! {
        outcome = serve(&layout, &mut children) => outcome,
        () = stop.received() => Ok(()),
    };
    tokio::select! {
        () = children.stop(&layout.nodes) => {}
        () = stop.urged() => children.kill(&layout.nodes).await,
    }
    say("all nodes have stopped");
    outcome
}

/// Ends only with an error: a node that could not become ready.
async fn serve(layout: &Layout, children: &mut Children) -> Result<(), DevError> {
    say(format_args!(
        "starting {} nodes in {}",
        layout.nodes.len(),
        layout.dir.display()
    ));
    let pids = children.pids();
    tokio::select! {
        () = ready::wait(&layout.nodes) => {}
        (id, status) = children.ended() => return Err(ended_early(layout, id, status)),
    }

    let nodes = layout
        .nodes
        .iter()
        .zip(pids)
        .map(|(node, pid)| node.cluster_node(pid))
        .collect();
    write_cluster_file(layout, &ClusterFile { nodes })?;
    for node in &layout.nodes {
        let (mqtt, http) = (node.config.mqtt.listen, node.config.http.listen);
        say(format_args!("node {} is ready: mqtt {mqtt}, http {http}", node.id));
    }
    say(format_args!(
        "wrote {}; Ctrl-C stops all nodes",
        layout.cluster_file().display()
    ));

    loop {
        let (id, status) = children.ended().await;
        let config = node(layout, id).config_path();
        say(format_args!(
            "node {id} ended ({status}) and stays down; start it with: lontra serve --config {}",
            config.display()
        ));
    }
}

/// The layout that the options mean, in an absolute directory that exists.
fn prepare(options: &Options) -> Result<Layout, DevError> {
    let unwritable = |source| DevError::Unwritable {
        path: options.data_dir.clone(),
        source,
    };
    std::fs::create_dir_all(&options.data_dir).map_err(unwritable)?;
    let dir = options.data_dir.canonicalize().map_err(unwritable)?;
    let mut layout = Layout::new(&dir, options.nodes, options.base_port);
    for node in &mut layout.nodes {
        node.config.cluster.tls = cert::node_files(&node.tls_dir(), node.id);
    }
    Ok(layout)
}

/// Makes what is missing, keeps what is there: a start that was interrupted half-way goes on where it was.
fn set_up(layout: &Layout) -> Result<(), DevError> {
    // Looked at before anything is made: a refusal leaves the directory as it was.
    for node in layout.nodes.iter().filter(|node| node.config_path().exists()) {
        refuse_different(node)?;
    }
    let authority = layout.authority_dir();
    cert::ensure_authority(&authority)?;
    let clients = layout.clients_dir();
    cert::ensure_authority(&clients)?;
    cert::ensure_leaf(&clients, &clients, &["dev"], Purpose::Client)?;
    for node in &layout.nodes {
        cert::ensure_node(&node.tls_dir(), &authority, &node.config.cluster.name, node.id)?;
        cert::ensure_leaf(&node.tls_dir(), &clients, &NAMES, Purpose::Server)?;
        if !node.config_path().exists() {
            write_atomically(&node.config_path(), node.config_file().as_bytes())?;
            refuse_different(node)?;
        }
        sync(&node.dir)?;
    }
    match std::fs::remove_file(layout.cluster_file()) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(DevError::Unwritable {
            path: layout.cluster_file(),
            source,
        }),
        _ => Ok(()),
    }
}

/// The file as a child will read it: variables of the environment included.
fn refuse_different(node: &NodeLayout) -> Result<(), DevError> {
    let path = node.config_path();
    let differences = node.differences(&Config::load(Some(&path), environment())?);
    if differences.is_empty() {
        return Ok(());
    }
    Err(DevError::Different {
        path,
        differences: differences.join("; "),
    })
}

fn write_cluster_file(layout: &Layout, file: &ClusterFile) -> Result<(), DevError> {
    let json = serde_json::to_vec_pretty(file).expect("paths of a UTF-8 configuration are UTF-8");
    write_atomically(&layout.cluster_file(), &json)
}

/// Under another name, then renamed: a reader finds the whole file or none.
fn write_atomically(path: &Path, content: &[u8]) -> Result<(), DevError> {
    let unwritable = |source| DevError::Unwritable {
        path: path.to_owned(),
        source,
    };
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(unwritable)?;
    }
    let unfinished = path.with_extension("new");
    let written = File::create(&unfinished).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    written
        .and_then(|()| std::fs::rename(&unfinished, path))
        .map_err(unwritable)
}

/// Certificates and configurations survive a power cut right after the start, as the data does.
fn sync(directory: &Path) -> Result<(), DevError> {
    let synced = File::open(directory).and_then(|file| Ok(rustix::fs::syncfs(&file)?));
    synced.map_err(|source| DevError::Unwritable {
        path: directory.to_owned(),
        source,
    })
}

fn ended_early(layout: &Layout, id: u64, status: ExitStatus) -> DevError {
    let log = node(layout, id).log_path();
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let reason = text
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("(empty)")
        .to_owned();
    DevError::Ended {
        id,
        status,
        log,
        reason,
    }
}

fn node(layout: &Layout, id: u64) -> &NodeLayout {
    layout
        .nodes
        .iter()
        .find(|node| node.id == id)
        .expect("only nodes of the layout are started")
}

struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// A second Ctrl-C, some time after the first: a terminal's signal and that of a script which passes it on are one wish.
    async fn urged(&mut self) {
        tokio::time::sleep(PATIENCE).await;
        match signal(SignalKind::interrupt()) {
            Ok(again) => self.interrupt = again,
            Err(_) => std::future::pending().await,
        }
        self.interrupt.recv().await;
    }
}

/// By which clients reach a node of this machine.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// Longer than two signals of one wish are apart.
const PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn options(dir: &Path, nodes: u16, base_port: u16) -> Options {
        Options {
            nodes,
            data_dir: dir.to_owned(),
            base_port,
        }
    }

    #[test]
    fn a_second_start_keeps_certificates_and_configurations() {
        let dir = tempfile::tempdir().unwrap();
        let layout = prepare(&options(dir.path(), 3, 18800)).unwrap();
        set_up(&layout).unwrap();
        let files = || {
            let paths = layout
                .nodes
                .iter()
                .flat_map(|node| [node.config_path(), node.config.cluster.tls.key.clone()]);
            paths.map(|path| std::fs::read(path).unwrap()).collect::<Vec<_>>()
        };
        let before = files();
        set_up(&prepare(&options(dir.path(), 3, 18800)).unwrap()).unwrap();
        assert_eq!(files(), before);
    }

    #[test]
    fn a_second_start_with_other_nodes_or_ports_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        set_up(&prepare(&options(dir.path(), 3, 18800)).unwrap()).unwrap();
        for (nodes, base_port) in [(2, 18800), (5, 18800), (3, 18900)] {
            let error = set_up(&prepare(&options(dir.path(), nodes, base_port)).unwrap())
                .unwrap_err()
                .to_string();
            assert!(error.contains("--nodes and --base-port of the first time"), "{error}");
        }
        assert!(!dir.path().join("node-4").exists(), "a refusal makes nothing");
    }

    #[test]
    fn an_interrupted_first_start_is_finished_by_the_second() {
        let dir = tempfile::tempdir().unwrap();
        let layout = prepare(&options(dir.path(), 3, 18800)).unwrap();
        set_up(&layout).unwrap();
        std::fs::remove_dir_all(&layout.nodes[2].dir).unwrap();
        std::fs::remove_file(&layout.nodes[1].config.cluster.tls.certificate).unwrap();
        set_up(&layout).unwrap();
        for node in &layout.nodes {
            assert!(node.config_path().exists() && node.config.cluster.tls.certificate.exists());
        }
    }

    #[test]
    fn a_node_that_ends_early_is_told_with_the_last_line_of_its_log() {
        use std::os::unix::process::ExitStatusExt;
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path(), 1, 18800);
        std::fs::create_dir_all(&layout.nodes[0].dir).unwrap();
        std::fs::write(layout.nodes[0].log_path(), "started\nlontra: port taken\n\n").unwrap();
        let error = ended_early(&layout, 1, ExitStatus::from_raw(256)).to_string();
        assert!(
            error.contains("node 1 ended") && error.ends_with("lontra: port taken"),
            "{error}"
        );
    }
}
