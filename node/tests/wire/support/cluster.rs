//! Nodes as processes: formed by `lontra dev`, killed by `kill -9`, started again with `lontra serve --config`.
//!
//!     lontra dev ──▶ cluster.json ──▶ Cluster { nodes }     start · kill · wait until ready · ask over HTTP
//!
//! Everything a test started ends with it: `Drop` kills by process id, and a small shell that outlives the test process
//! does the same when the test was killed itself (it waits for the end of a pipe).

use super::partition::{self, Partition};
use super::random::Random;
use super::{START, eventually};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, Once, OnceLock};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The binary under test.
pub const LONTRA: &str = env!("CARGO_BIN_EXE_lontra");

/// A nearly full development disk is no reason to fail; where the watermark is what a test is about, the test sets it.
const HARDLY_ANY_WATERMARK: (&str, &str) = ("LONTRA__STORAGE__FREE_SPACE_MIN", "1%");

/// One node, as `cluster.json` describes it.
#[derive(Clone, Debug)]
pub struct Node {
    pub id: u64,
    pub config: PathBuf,
    /// `node.data_dir` of its configuration.
    pub data: PathBuf,
    pub mqtt: String,
    /// Where WebSocket clients connect.
    pub ws: String,
    /// MQTT over TLS, and WebSocket over TLS.
    pub mqtts: String,
    pub wss: String,
    /// Its Unix socket.
    pub unix: String,
    /// The authority of their certificates.
    pub ca: PathBuf,
    pub http: String,
    /// The UDP address of its links to the other nodes.
    pub cluster: String,
}

pub struct Cluster {
    pub dir: PathBuf,
    pub nodes: Vec<Node>,
    environment: Vec<(String, String)>,
    /// The process of each node; none while it is down.
    processes: Mutex<BTreeMap<u64, Process>>,
    pub(super) partition: Partition,
    dev: Child,
    /// Kills what is left and removes `dir` when the test process has gone.
    watchdog: Child,
}

struct Process {
    pid: u32,
    /// Ours to reap; children of `dev` are not.
    child: Option<Child>,
}

impl Cluster {
    /// `size` nodes in a directory of their own, all ready.
    pub async fn start(size: usize) -> Cluster {
        let dir = tempfile::Builder::new()
            .prefix("lontra-wire-")
            .tempdir()
            .expect("a directory")
            .keep();
        Cluster::start_in(dir, size, &[]).await
    }

    /// As [`Cluster::start`], in `dir` (which stays) and with environment variables for every node, now and later.
    pub async fn start_in(dir: PathBuf, size: usize, environment: &[(&str, &str)]) -> Cluster {
        let environment = [&[HARDLY_ANY_WATERMARK], environment].concat();
        let base = free_ports(size);
        let log = File::create(dir.join("dev.log")).expect("dev.log");
        let dev = Command::new(binary())
            .args([
                "dev",
                "--nodes",
                &size.to_string(),
                "--base-port",
                &base.to_string(),
                "--data-dir",
            ])
            .arg(&dir)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a handle"))
            .stderr(log)
            .spawn()
            .expect("lontra dev starts");
        let table = partition::table(base);
        let watchdog = watchdog(&dir, dev.id(), &table);
        let mut cluster = Cluster {
            dir,
            nodes: Vec::new(),
            environment: environment
                .iter()
                .map(|(key, value)| ((*key).into(), (*value).into()))
                .collect(),
            processes: Mutex::default(),
            partition: Partition::new(table),
            dev,
            watchdog,
        };
        cluster.read_cluster_json(size).await;
        cluster.wait_all_ready().await;
        cluster
    }

    async fn read_cluster_json(&mut self, size: usize) {
        let path = self.dir.join("cluster.json");
        let started = Instant::now();
        let json: serde_json::Value = loop {
            if let Some(json) = std::fs::read(&path)
                .ok()
                .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            {
                break json;
            }
            if let Some(status) = self.dev.try_wait().expect("dev is a child") {
                panic!("lontra dev ended with {status}:\n{}", self.logs());
            }
            assert!(started.elapsed() < START, "no {}:\n{}", path.display(), self.logs());
            tokio::time::sleep(Duration::from_millis(25)).await;
        };
        for node in json["nodes"].as_array().expect("cluster.json: nodes") {
            let text = |key: &str| {
                node[key]
                    .as_str()
                    .unwrap_or_else(|| panic!("cluster.json: {key}"))
                    .to_owned()
            };
            let config = PathBuf::from(text("config"));
            let id = node["id"].as_u64().expect("cluster.json: id");
            let pid = node["pid"].as_u64().expect("cluster.json: pid") as u32;
            let data = data_dir(&config);
            self.nodes.push(Node {
                id,
                config,
                data,
                mqtt: text("mqtt"),
                ws: text("ws"),
                mqtts: text("mqtts"),
                wss: text("wss"),
                unix: text("unix"),
                ca: text("ca").into(),
                http: text("http"),
                cluster: text("cluster"),
            });
            self.processes
                .lock()
                .expect("no panic")
                .insert(id, Process { pid, child: None });
        }
        assert_eq!(self.nodes.len(), size, "cluster.json: {json}");
    }

    /// The node with this id.
    pub fn node(&self, id: u64) -> &Node {
        self.nodes
            .iter()
            .find(|node| node.id == id)
            .unwrap_or_else(|| panic!("no node {id}"))
    }

    /// The MQTT address of the node at `index` (from 0).
    pub fn mqtt(&self, index: usize) -> &str {
        &self.nodes[index].mqtt
    }

    /// The WebSocket address of the node at `index` (from 0).
    pub fn ws(&self, index: usize) -> &str {
        &self.nodes[index].ws
    }

    pub fn ids(&self) -> Vec<u64> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    pub fn pid(&self, id: u64) -> Option<u32> {
        self.processes
            .lock()
            .expect("no panic")
            .get(&id)
            .map(|process| process.pid)
    }

    /// The nodes that were not killed.
    pub fn up(&self) -> Vec<u64> {
        self.processes.lock().expect("no panic").keys().copied().collect()
    }

    /// `kill -9`, and waits until the process is gone.
    pub async fn kill(&self, id: u64) {
        self.kill_all(&[id]).await;
    }

    /// `kill -9` of several nodes at once: all signals first, then the waiting.
    pub async fn kill_all(&self, ids: &[u64]) {
        let mut killed: Vec<(u64, Process)> = Vec::new();
        for id in ids {
            let process = self.processes.lock().expect("no panic").remove(id);
            let mut process = process.unwrap_or_else(|| panic!("node {id} is down already"));
            process.kill();
            killed.push((*id, process));
        }
        for (id, mut process) in killed {
            match &mut process.child {
                Some(child) => drop(child.wait().expect("a child")),
                None => {
                    let pid = process.pid;
                    eventually(&format!("node {id} dead"), START, || async move {
                        (!is_ours(pid) && has_let_go(pid)).then_some(())
                    })
                    .await;
                }
            }
        }
    }

    /// SIGSTOP: the process keeps its sockets, and does nothing. Waits until all its threads stand still.
    pub async fn pause(&self, id: u64) {
        self.signal(id, Signal::STOP);
        let pid = self.pid(id).expect("it runs");
        eventually(&format!("node {id} stopped"), START, || async move {
            is_stopped(pid).then_some(())
        })
        .await;
    }

    /// SIGSTOP to `ids`; returns when none of their threads runs any more, or will before SIGCONT: one that is inside a
    /// system call may finish that, but never hears of it.
    pub async fn freeze(&self, ids: &[u64]) {
        for id in ids {
            self.signal(*id, Signal::STOP);
        }
        for id in ids {
            let pid = self.pid(*id).expect("it runs");
            eventually(&format!("node {id} frozen"), START, || async move {
                all_threads_are(pid, &['T', 'D']).then_some(())
            })
            .await;
        }
    }

    /// SIGCONT.
    pub fn resume(&self, id: u64) {
        self.signal(id, Signal::CONT);
    }

    /// SIGHUP: the node reads its configuration again.
    pub fn reload(&self, id: u64) {
        self.signal(id, Signal::HUP);
    }

    fn signal(&self, id: u64, signal: Signal) {
        let pid = self.pid(id).filter(|pid| is_ours(*pid));
        let pid = pid.and_then(|pid| Pid::from_raw(pid as i32));
        kill_process(pid.unwrap_or_else(|| panic!("node {id} does not run")), signal).expect("a signal");
    }

    /// Waits until the node says that it is not ready, and why.
    pub async fn wait_not_ready(&self, id: u64, limit: Duration) -> String {
        eventually(&format!("node {id} not ready"), limit, || async {
            match http_get(&self.node(id).http, "/health/ready").await {
                Ok((503, body)) => Some(body),
                _ => None,
            }
        })
        .await
    }

    /// Whether `node` is Up, as `seen_by` knows.
    pub async fn is_up(&self, seen_by: u64, node: u64) -> bool {
        let status = self.status(seen_by).await.expect("/api/v1/status");
        let nodes = status["nodes"].as_array().expect("status: nodes");
        nodes.iter().any(|entry| entry["node"] == node && entry["up"] == true)
    }

    /// SIGTERM, and waits until the node has stopped by itself; with 0, if it is this process that learns of that.
    pub async fn terminate(&self, id: u64) {
        let pid = self.pid(id).and_then(|pid| Pid::from_raw(pid as i32));
        let pid = pid.unwrap_or_else(|| panic!("node {id} does not run"));
        kill_process(pid, Signal::TERM).expect("SIGTERM");
        let mut child = self
            .processes
            .lock()
            .expect("no panic")
            .remove(&id)
            .and_then(|process| process.child);
        super::eventually("a clean stop", super::START, || {
            // A child of the test stays until it is waited for; one of `lontra dev` until that has.
            let gone = match child.as_mut() {
                Some(child) => child.try_wait().expect("a child").is_some_and(|status| {
                    assert!(status.success(), "node {id}: {status}");
                    true
                }),
                None => rustix::process::test_kill_process(pid).is_err(),
            };
            async move { gone.then_some(()) }
        })
        .await;
    }

    /// `lontra serve --config` for a node that is down. Does not wait for it.
    pub fn start_node(&self, id: u64) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join(format!("serve-{id}.log")));
        let log = log.expect("a log file");
        let child = Command::new(binary())
            .args(["serve", "--config"])
            .arg(&self.node(id).config)
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a handle"))
            .stderr(log)
            .spawn()
            .expect("lontra serve starts");
        let process = Process {
            pid: child.id(),
            child: Some(child),
        };
        let before = self.processes.lock().expect("no panic").insert(id, process);
        assert!(before.is_none(), "node {id} ran already");
    }

    /// Whether the process of a node that was not killed still runs.
    pub fn alive(&self, id: u64) -> bool {
        self.pid(id).is_some_and(is_ours)
    }

    /// How a node that this test started has ended, if it has.
    pub fn exited(&self, id: u64) -> Option<ExitStatus> {
        let mut processes = self.processes.lock().expect("no panic");
        processes.get_mut(&id)?.child.as_mut()?.try_wait().expect("a child")
    }

    /// Waits until `/health/ready` answers 200; a node that ends instead is a failure with its log.
    pub async fn wait_ready(&self, id: u64, limit: Duration) {
        if let Err(why) = self.ready_within(id, limit).await {
            panic!("{why}\n{}", self.logs());
        }
    }

    /// # Errors
    /// The node ended, or was not ready in time.
    pub async fn ready_within(&self, id: u64, limit: Duration) -> Result<(), String> {
        let http = &self.node(id).http;
        let started = Instant::now();
        while started.elapsed() < limit {
            if matches!(http_get(http, "/health/ready").await, Ok((200, _))) {
                return Ok(());
            }
            if let Some(status) = self.exited(id) {
                return Err(format!("node {id} ended with {status}"));
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        Err(format!("node {id} not ready within {limit:?}"))
    }

    pub async fn wait_all_ready(&self) {
        for id in self.ids() {
            self.wait_ready(id, START).await;
        }
    }

    /// `/api/v1/status` of one node.
    pub async fn status(&self, id: u64) -> Option<serde_json::Value> {
        let (code, body) = http_get(&self.node(id).http, "/api/v1/status").await.ok()?;
        (code == 200).then(|| serde_json::from_str(&body).ok())?
    }

    /// The leader of a Raft group as the running nodes see it; the highest term counts, and a dead leader does not.
    pub async fn leader_of(&self, group: &str) -> u64 {
        eventually(&format!("a leader of {group}"), START, || async {
            let mut newest: Option<(u64, u64)> = None;
            for id in self.up() {
                let Some(status) = self.status(id).await else { continue };
                let groups = status["groups"].as_array().expect("status: groups");
                let found = groups.iter().find(|entry| entry["group"] == group);
                let claim = found.and_then(|entry| Some((entry["term"].as_u64()?, entry["leader"].as_u64()?)));
                newest = newest.max(claim);
            }
            newest
                .map(|(_, leader)| leader)
                .filter(|leader| self.up().contains(leader))
        })
        .await
    }

    /// The node that owns the session of `client_id`, as any running node sees it.
    pub async fn owner_of(&self, client_id: &str) -> Option<u64> {
        for id in self.up() {
            let path = format!("/api/v1/sessions/{client_id}");
            if let Ok((200, body)) = http_get(&self.node(id).http, &path).await {
                let json: serde_json::Value = serde_json::from_str(&body).expect("JSON of a session");
                return json["owner"].as_u64();
            }
        }
        None
    }

    /// What the processes wrote: all of it when it is short, else the end.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for path in self.log_files() {
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_TAIL)..];
            text += &format!("--- {}\n{}\n", path.display(), tail.join("\n"));
        }
        text
    }

    /// No node may panic, whatever the test did to it.
    pub fn assert_no_panic(&self) {
        for path in self.log_files() {
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            let panicked = log.lines().find(|line| line.contains("panicked"));
            assert!(
                panicked.is_none(),
                "{}: {}",
                path.display(),
                panicked.unwrap_or_default()
            );
        }
    }

    fn log_files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut directories = vec![self.dir.clone()];
        directories.extend(
            self.nodes
                .iter()
                .filter_map(|node| node.config.parent().map(Path::to_owned)),
        );
        for directory in directories {
            let entries = std::fs::read_dir(directory)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path());
            found.extend(entries.filter(|path| path.extension().is_some_and(|extension| extension == "log")));
        }
        // RocksDB's write-ahead log has the same ending, but lives in a directory of its own.
        found.sort();
        found
    }

    /// Kills everything now; `Drop` does the same.
    pub fn stop(&mut self) {
        // dev first: it must not take the end of its children for news.
        self.dev.kill().ok();
        self.dev.wait().ok();
        let processes = self.processes.get_mut().unwrap_or_else(|poison| poison.into_inner());
        for mut process in std::mem::take(processes).into_values() {
            process.kill();
            if let Some(child) = &mut process.child {
                child.wait().ok();
            }
        }
    }
}

/// Three nodes for the tests of one binary that leave them as they were; they end with the test process.
pub fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    static HOOK: Once = Once::new();
    shared_of(3, &SHARED, &HOOK)
}

/// As [`shared`], one node.
pub fn shared_single() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    static HOOK: Once = Once::new();
    shared_of(1, &SHARED, &HOOK)
}

fn shared_of(size: usize, shared: &'static OnceLock<Cluster>, hook: &'static Once) -> &'static Cluster {
    let cluster = shared.get_or_init(|| {
        // A test's own runtime ends with the test, and cannot be blocked on from within.
        let start = move || {
            tokio::runtime::Runtime::new()
                .expect("a runtime")
                .block_on(Cluster::start(size))
        };
        std::thread::spawn(start).join().expect("the nodes start")
    });
    hook.call_once(|| keep_after_panic(cluster));
    cluster
}

/// The `Drop` of a static never runs: the file tells the watchdog to leave logs and data where they are.
fn keep_after_panic(cluster: &'static Cluster) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if File::create(cluster.dir.join(KEEP)).is_ok() {
            eprintln!("logs and data of the shared nodes stay in {}", cluster.dir.display());
        }
        before(panic);
    }));
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
        // The directory of `start_in` is its caller's.
        let ours = self
            .dir
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("lontra-wire-"));
        if ours && std::thread::panicking() && File::create(self.dir.join(KEEP)).is_ok() {
            eprintln!("logs and data stay in {}", self.dir.display());
        }
        // The end of the pipe: it kills whatever this value did not know of, and removes the directory.
        drop(self.watchdog.stdin.take());
        self.watchdog.wait().ok();
    }
}

/// `node.data_dir` of a configuration; `dev` writes it absolute.
fn data_dir(config: &Path) -> PathBuf {
    let text = std::fs::read_to_string(config).unwrap_or_else(|error| panic!("{}: {error}", config.display()));
    let line = text
        .lines()
        .find(|line| line.trim_start().starts_with("data_dir"))
        .expect("data_dir in the configuration");
    let value = line.split_once('=').expect("key = value").1.trim().trim_matches('"');
    PathBuf::from(value)
}

/// A shell that waits for the end of this process and then kills what it started (stopped or not), and heals partitions. It ignores the terminal's signals.
fn watchdog(dir: &Path, dev: u32, table: &str) -> Child {
    const SCRIPT: &str = r#"trap '' INT TERM HUP
cat >/dev/null
for pid in "$2" $(for file in "$1"/*/lontra.pid "$1"/*/data/lontra.pid; do cat "$file"; echo; done 2>/dev/null); do
  case "$(readlink /proc/$pid/exe)" in "$3"*) kill -9 "$pid" ;; esac
done
nft delete table inet "$4" 2>/dev/null
[ -e "$1/keep" ] || case "$1" in */lontra-wire-*) rm -rf "$1" ;; esac"#;
    Command::new("sh")
        .args(["-c", SCRIPT, "watchdog"])
        .arg(dir)
        .arg(dev.to_string())
        .arg(binary())
        .arg(table)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("sh")
}

impl Process {
    /// `kill -9`; of what has ended already, nothing: its number may be another's by now.
    fn kill(&mut self) {
        match &mut self.child {
            Some(child) => drop(child.kill()),
            None => kill_if_ours(self.pid),
        }
    }
}

fn kill_if_ours(pid: u32) {
    if is_ours(pid) {
        let pid = Pid::from_raw(i32::try_from(pid).expect("a process id")).expect("not 0");
        kill_process(pid, Signal::KILL).ok();
    }
}

/// Whether `pid` runs (a zombie does not) and is a `lontra`, not a process that got the number later.
fn is_ours(pid: u32) -> bool {
    // /proc/<pid>/exe of a zombie cannot be read.
    let running = std::fs::read_link(format!("/proc/{pid}/exe"));
    running.is_ok_and(|path| path.to_string_lossy().starts_with(&*binary().to_string_lossy()))
}

/// Whether the last thread is gone: a killed process keeps its files and ports until then, though its leader is a zombie.
fn has_let_go(pid: u32) -> bool {
    match std::fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(threads) => threads.count() <= 1,
        Err(_) => true,
    }
}

/// Whether every thread is stopped.
fn is_stopped(pid: u32) -> bool {
    all_threads_are(pid, &['T'])
}

fn all_threads_are(pid: u32, states: &[char]) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    let state = |path: PathBuf| {
        let stat = std::fs::read_to_string(path.join("stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    };
    threads
        .flatten()
        .all(|thread| state(thread.path()).is_some_and(|state| states.contains(&state)))
}

/// [`LONTRA`], or what `LONTRA_BIN` names: a broker that lacks something, which a test must notice.
fn binary() -> PathBuf {
    let named = std::env::var_os("LONTRA_BIN").map(PathBuf::from);
    std::fs::canonicalize(named.unwrap_or_else(|| LONTRA.into())).expect("the binary")
}

/// A base port whose blocks (`+0`, `+100`, … `+500`, each `size` long) are free on loopback, for TCP and UDP.
pub fn free_ports(size: usize) -> u16 {
    // Below the ephemeral range (32768), where the tests' own outgoing connections would take them.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let mut random = Random::new(u64::from(std::process::id()));
    // nextest runs some tests at a time: what one has found free the other must not take.
    let slot: usize = std::env::var("NEXTEST_TEST_GLOBAL_SLOT").map_or(0, |slot| slot.parse().unwrap_or(0));
    for _ in 0..1_000 {
        let base = 12_000
            + 600 * (4 * random.below(8) + slot % 4) as u16
            + 8 * NEXT.fetch_add(1, Ordering::Relaxed).rem_euclid(12);
        let ports = [0, 100, 200, 300, 400, 500]
            .into_iter()
            .flat_map(|block| (0..size as u16).map(move |i| base + block + i));
        if ports
            .into_iter()
            .all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok())
        {
            return base;
        }
    }
    panic!("no free block of ports")
}

/// GET over HTTP/1.0: the status code and the body.
///
/// # Errors
/// The node is not there, or not within 5 s.
pub async fn http_get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream
            .write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())
            .await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = timeout(Duration::from_secs(5), exchange)
        .await
        .map_err(std::io::Error::other)??;
    let parsed = answer.split_once("\r\n\r\n").and_then(|(head, body)| {
        let code = head.split_whitespace().nth(1)?.parse().ok()?;
        Some((code, body.to_owned()))
    });
    parsed.ok_or_else(|| std::io::Error::other(format!("not HTTP: {answer:?}")))
}

/// The file that tells the watchdog to leave logs and data of a failed test where they are.
const KEEP: &str = "keep";
const LOG_TAIL: usize = 40;
