//! The environment itself, with a real binary:
//!
//!     LONTRA_BIN=… cargo test -p lontra-jepsen --test environment -- --ignored [part of a name]
//!
//! No harness of Rust's: namespaces must be entered while the process has one thread. As with Rust's, tests that need a
//! broker are ignored until they are asked for; then a broker that is not there is a failure, and so is a machine that is not
//! root's, unless only what needs none is asked for (`plain`).

use lontra_jepsen::cluster::link::CLIENTS;
use lontra_jepsen::cluster::{BackEnd, Cluster, Spec, isolate};
use lontra_jepsen::history::{Op, Status, parse};
use lontra_jepsen::nemesis::{Family, Nemesis, prepare};
use lontra_jepsen::random::Random;
use lontra_jepsen::recorder::Recorder;
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};

fn main() {
    if std::env::args().any(|argument| argument == "--list") {
        // nextest asks; these are not for it: it would run each in a process of its own, and all at once.
        return;
    }
    let child = std::env::var_os(CHILD);
    if child.is_none() && !std::env::args().any(|argument| argument == "--ignored") {
        println!(
            "test result: ok. 0 passed; 0 failed; all ignored: they need a broker in LONTRA_BIN, and `-- --ignored`"
        );
        return;
    }
    let binary = std::env::var_os("LONTRA_BIN").map(PathBuf::from);
    let binary = binary.expect("LONTRA_BIN names the broker");
    let root = isolate();
    let runtime = Runtime::new().expect("a runtime");
    if let Some(dir) = child {
        runtime.block_on(run_until_killed(binary, Path::new(&dir)));
    }
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let wanted = wanted.unwrap_or_default();
    let ran = Cell::new(0);
    let test = |name: &str, needs_root: bool, body: &dyn Fn(&Path)| {
        if name.contains(&wanted) {
            if let (true, Err(failure)) = (needs_root, &root) {
                panic!("{name}: {failure}");
            }
            ran.set(ran.get() + 1);
            let started = Instant::now();
            println!("{name} …");
            let dir = tempfile::tempdir().expect("a directory");
            body(dir.path());
            println!("{name}: {:.1} s", started.elapsed().as_secs_f64());
        }
    };
    for back_end in [BackEnd::Plain, BackEnd::Root] {
        let (name, needs_root) = match back_end {
            BackEnd::Plain => ("plain", false),
            BackEnd::Root => ("root", true),
        };
        test(&format!("{name}_lives_and_dies"), needs_root, &|dir| {
            runtime.block_on(lives_and_dies(spec(&binary, dir, back_end)));
        });
        test(&format!("{name}_cuts_links"), needs_root, &|dir| {
            runtime.block_on(cuts_links(spec(&binary, dir, back_end)));
        });
        test(&format!("{name}_every_fault_heals"), needs_root, &|dir| {
            runtime.block_on(every_fault_heals(spec(&binary, dir, back_end)));
        });
    }
    test("root_scripts_of_five_nodes", true, &|dir| {
        let mut spec = spec(&binary, dir, BackEnd::Root);
        spec.nodes = 5;
        runtime.block_on(faults_heal(
            spec,
            &[Family::PartKill, Family::PauseKill, Family::PartitionRing],
        ));
    });
    test("root_a_killed_harness_leaves_nothing", true, &|dir| leaves_nothing(dir));
    assert!(ran.get() > 0, "no test has `{wanted}` in its name");
    println!("test result: ok. {} passed", ran.get());
}

fn spec(binary: &Path, dir: &Path, back_end: BackEnd) -> Spec {
    Spec {
        binary: binary.to_owned(),
        nodes: 3,
        back_end,
        dir: dir.join("run"),
        seed: 1,
        environment: Vec::new(),
    }
}

async fn start(spec: Spec) -> (Cluster, Recorder) {
    let dir = spec.dir.parent().expect("a directory").join("history.jsonl");
    let recorder = Recorder::create(&dir).expect("a history");
    match Cluster::start(spec, recorder.clone()).await {
        Ok(cluster) => (cluster, recorder),
        Err(failure) => panic!("{failure}"),
    }
}

/// The history so far.
fn events(cluster: &Cluster, recorder: &Recorder) -> Vec<Op> {
    recorder.flush().expect("the history");
    let path = cluster.spec().dir.parent().expect("a directory").join("history.jsonl");
    let events = parse(&std::fs::read_to_string(path).expect("the history")).expect("a history");
    events.into_iter().map(|event| event.op).collect()
}

/// A cluster forms, tells who leads, loses its leader, elects another, stands still, and stops.
async fn lives_and_dies(spec: Spec) {
    let (cluster, recorder) = start(spec).await;
    let leaders = cluster.leaders().await;
    assert!(
        leaders.contains_key("meta") && leaders.contains_key("shard-0"),
        "{leaders:?}"
    );
    let (first, term) = leaders["meta"].clone();
    cluster.kill(&first).await;
    assert!(!cluster.running(&first));
    let other = new_meta_leader(&cluster, term).await;
    assert_ne!(other, first);
    cluster.start_node(&first).await.expect("it starts");
    assert!(
        cluster.wait_ready(&first, LIMIT).await,
        "{}",
        cluster.layout(&first).log_tail()
    );
    assert!(cluster.pause(&other).await && !cluster.ready(&other).await);
    cluster.resume(&other).await;
    assert_eq!(cluster.wait_all_ready(LIMIT).await, Vec::<String>::new());
    let digests = cluster.digests().await;
    assert!(digests["meta"]["n1"]["digest"].is_string(), "{digests}");
    assert!(cluster.counters().await["n2"].is_object());
    cluster.clone().stop().await;
    let events = events(&cluster, &recorder);
    for wanted in ["started", "ready", "killed", "exited"] {
        let seen = events
            .iter()
            .any(|op| matches!(op, Op::Node { event, .. } if event == wanted));
        assert!(seen, "no {wanted}: {events:?}");
    }
    assert!(!events.iter().any(|op| matches!(op, Op::Panic { .. })), "{events:?}");
}

async fn new_meta_leader(cluster: &Cluster, term: u64) -> String {
    let started = Instant::now();
    loop {
        match cluster.leaders().await.get("meta") {
            Some((leader, newer)) if *newer > term => return leader.clone(),
            _ => assert!(started.elapsed() < LIMIT, "no new leader of meta"),
        }
        sleep(POLL).await;
    }
}

/// A meta leader that is cut off loses its office; clients that are cut off get no answer, and then one.
async fn cuts_links(spec: Spec) {
    let (cluster, _) = start(spec).await;
    let (leader, term) = cluster.leaders().await["meta"].clone();
    let port = cluster.port(&leader);
    let cut = |cut: bool| {
        for peer in (1..=3).filter(|peer| *peer != port) {
            cluster.rules().change(port, peer, |rule| rule.cut = cut);
            cluster.rules().change(peer, port, |rule| rule.cut = cut);
        }
    };
    cut(true);
    assert_ne!(new_meta_leader(&cluster, term).await, leader);
    cut(false);
    assert_eq!(cluster.wait_all_ready(LIMIT).await, Vec::<String>::new());
    assert!(
        answers(&cluster, "n1").await,
        "a node that nobody cut off answers its clients"
    );
    for (from, to) in [(CLIENTS, 1), (1, CLIENTS)] {
        cluster.rules().change(from, to, |rule| rule.cut = true);
        assert!(!answers(&cluster, "n1").await && answers(&cluster, "n2").await);
        assert!(cluster.ready("n1").await, "the operator port is never cut off");
        cluster.rules().clear();
        assert!(answers(&cluster, "n1").await);
    }
    cluster.stop().await;
}

/// Whether a node says anything to a client: what is no CONNECT ends the connection.
async fn answers(cluster: &Cluster, node: &str) -> bool {
    let exchange = async {
        let mut stream = TcpStream::connect(cluster.mqtt(node)).await?;
        tokio::io::AsyncWriteExt::write_all(&mut stream, &[0xf0, 0x00]).await?;
        stream.read(&mut [0; 8]).await
    };
    timeout(Duration::from_secs(1), exchange)
        .await
        .is_ok_and(|read| read.is_ok())
}

/// Each family that the back end has, one after the other: begun, held, ended; the cluster is whole after each.
async fn every_fault_heals(spec: Spec) {
    let chosen: Vec<Family> = match std::env::var("LONTRA_FAULTS") {
        Ok(names) => names.split(',').map(|name| name.parse().expect("a family")).collect(),
        Err(_) => Family::ALL.to_vec(),
    };
    faults_heal(spec, &chosen).await;
}

async fn faults_heal(mut spec: Spec, families: &[Family]) {
    prepare(&mut spec, families).unwrap_or_else(|failure| panic!("{failure}"));
    let (cluster, recorder) = start(spec).await;
    let mut nemesis = Nemesis::new(cluster.clone(), families, Random::new(7), recorder.clone());
    for family in families
        .iter()
        .filter(|family| !nemesis.lacking().contains_key(family))
        .cloned()
        .collect::<Vec<_>>()
    {
        let before = events(&cluster, &recorder).len();
        let failed = |failure| panic!("{family}: {failure}");
        // One that has no victim here is told in the history.
        nemesis.start(family).await.map_or_else(failed, drop);
        sleep(HELD).await;
        nemesis.stop(family).await.unwrap_or_else(failed);
        let healing = Instant::now();
        nemesis.heal().await.unwrap_or_else(failed);
        let healed = healing.elapsed();
        let faults: Vec<Op> = events(&cluster, &recorder).split_off(before);
        let mut told = Vec::new();
        for op in faults {
            if let Op::Fault {
                action,
                nodes,
                value,
                status,
                ..
            } = op
            {
                assert_ne!(status, Status::Indeterminate, "{family}: {value}");
                told.push(format!("  {action} {nodes:?} {status:?} {value}"));
            }
        }
        println!("{family}: healed in {:.1} s\n{}", healed.as_secs_f64(), told.join("\n"));
    }
    println!("lacking: {:?}", nemesis.lacking());
    cluster.clone().stop().await;
    let panics = events(&cluster, &recorder)
        .into_iter()
        .filter(|op| matches!(op, Op::Panic { .. }));
    assert_eq!(panics.collect::<Vec<_>>(), []);
}

/// The child of [`leaves_nothing`]: a cluster with faults at work.
async fn run_until_killed(binary: PathBuf, dir: &Path) -> ! {
    let (cluster, recorder) = start(spec(&binary, dir, BackEnd::Root)).await;
    let mut nemesis = Nemesis::new(cluster.clone(), &[Family::Pause], Random::new(1), recorder);
    nemesis.start(Family::Pause).await.expect("a pause");
    std::fs::write(dir.join("running"), "").expect("a file");
    std::future::pending::<()>().await;
    unreachable!("it is killed");
}

/// `kill -9` of a harness with its cluster: no process, mount, loop device or namespace is left.
fn leaves_nothing(dir: &Path) {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .env(CHILD, dir)
        .spawn()
        .expect("a child");
    let started = Instant::now();
    while !dir.join("running").exists() {
        assert!(started.elapsed() < 2 * LIMIT && child.try_wait().expect("a child").is_none());
        std::thread::sleep(POLL);
    }
    let network = std::fs::read_link(format!("/proc/{}/ns/net", child.id())).expect("a namespace");
    let mounts = std::fs::read_link(format!("/proc/{}/ns/mnt", child.id())).expect("a namespace");
    assert!(
        !left(dir, &[&network, &mounts]).is_empty(),
        "what is looked for can be seen"
    );
    child.kill().expect("SIGKILL");
    child.wait().expect("a child");
    let killed = Instant::now();
    while !left(dir, &[&network, &mounts]).is_empty() {
        let left = left(dir, &[&network, &mounts]);
        assert!(killed.elapsed() < Duration::from_secs(10), "left: {left:?}");
        std::thread::sleep(POLL);
    }
    println!("nothing left after {:.2} s", killed.elapsed().as_secs_f64());
}

/// Processes and loop devices of the run in `dir`, and processes in `namespaces`.
fn left(dir: &Path, namespaces: &[&Path]) -> Vec<String> {
    let dir = dir.display().to_string();
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let path = process.path();
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let of_run = String::from_utf8_lossy(&line).contains(&dir);
        let inside = ["ns/net", "ns/mnt"]
            .iter()
            .filter_map(|kind| std::fs::read_link(path.join(kind)).ok())
            .any(|namespace| namespaces.contains(&&*namespace));
        if of_run || inside {
            found.push(path.display().to_string());
        }
    }
    for device in std::fs::read_dir("/sys/block").expect("/sys/block").flatten() {
        let backing = std::fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        if backing.contains(".img") && (backing.contains(&dir) || backing.starts_with("/n")) {
            found.push(format!("{}: {backing}", device.path().display()));
        }
    }
    found
}

const CHILD: &str = "LONTRA_ENVIRONMENT_CHILD";
const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// How long each fault is at work.
const HELD: Duration = Duration::from_secs(3);
