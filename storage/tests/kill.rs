//! The killing test: a process that appends, applies, truncates, purges, checkpoints and installs snapshots is killed
//! at a random moment, again and again, on the same data directory.
//!
//!     parent ──spawn──▶ child: open, check what is there, report, go on, print every acknowledgement
//!        ▲                │
//!        └──── kill -9 ◀──┘ after some 10 to 120 ms     then compare the next report with what was acknowledged
//!
//! What the child checks at each start: every entry is whole, in order, with the content that its index demands; the
//! tables are what a replay up to `applied` gives; what was committed can be replayed.
//! What the parent checks: votes and start numbers never go back; every acknowledged entry is there, of the right
//! term, or purged below the durable tables.
//!
//! `LONTRA_KILL_SEED` repeats a run's choices (not its timing), `LONTRA_KILLS` sets the number of kills.
#![cfg(feature = "rocksdb")]

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use lontra_storage::command::Reply;
use lontra_storage::ids::GroupId;
use lontra_storage::machine::{EntryPosition, Machine, TableBatch, Tables};
use lontra_storage::raft_types::{Command, Entry, EntryPayload, LeaderId, LogId, TypeConfig, Vote};
use lontra_storage::snapshot::SnapshotData;
use lontra_storage::{GroupLog, GroupState, Identity, Storage, StorageConfig, StorageMetrics};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine};
use openraft::type_config::TypeConfigExt;

const GROUPS: usize = 3;

#[test]
fn nothing_acknowledged_is_lost_by_a_kill() {
    if let Ok(directory) = std::env::var("LONTRA_KILL_DIRECTORY") {
        return child(Path::new(&directory));
    }
    let seed = number("LONTRA_KILL_SEED").unwrap_or_else(|| u64::from(std::process::id()) * 7919 + 1);
    let kills = number("LONTRA_KILLS").unwrap_or(200);
    println!("LONTRA_KILL_SEED={seed} LONTRA_KILLS={kills}");
    let directory = tempfile::tempdir().unwrap();
    let mut random = Random(seed);
    let mut known = Known::default();
    let started = Instant::now();
    for kill in 0..kills {
        let mut run = Run::start(directory.path(), random.next());
        let opened = run.read_until(&mut known, Until::Opened);
        assert!(opened, "kill {kill}, seed {seed}: the child did not open its storage");
        let moment = Duration::from_micros(10_000 + random.below(110_000));
        run.read_until(&mut known, Until::Time(Instant::now() + moment));
        run.child.kill().unwrap();
        run.read_until(&mut known, Until::End);
        let ended = run.child.wait().unwrap();
        assert_eq!(
            ended.signal(),
            Some(9),
            "kill {kill}, seed {seed}: the child ended before its time: {ended}"
        );
    }
    // A last start that ends by itself.
    let mut run = Run::start(directory.path(), 0);
    run.read_until(&mut known, Until::End);
    assert!(
        run.child.wait().unwrap().success(),
        "seed {seed}: the last child failed"
    );
    println!(
        "{kills} kills in {:?}: {} entries acknowledged, {} truncated, {} snapshots installed, {} checkpoints",
        started.elapsed(),
        known.acknowledged,
        known.truncated,
        known.installed,
        known.checkpoints,
    );
    assert!(
        known.acknowledged > 20 * kills,
        "only {} entries acknowledged",
        known.acknowledged
    );
    if kills >= 200 {
        assert!(known.truncated > 0 && known.installed > 0 && known.checkpoints > 0);
    }
}

// ---- parent

struct Run {
    child: Child,
    lines: mpsc::Receiver<String>,
}

enum Until {
    Opened,
    Time(Instant),
    End,
}

impl Run {
    fn start(directory: &Path, seed: u64) -> Run {
        let mut child = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "nothing_acknowledged_is_lost_by_a_kill", "--nocapture"])
            .env("LONTRA_KILL_DIRECTORY", directory)
            .env("LONTRA_KILL_SEED", seed.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.split(b'\n').map_while(Result::ok) {
                // A line cut by the kill was no acknowledgement: it ends in `.`.
                if let Some(line) = String::from_utf8(line)
                    .ok()
                    .and_then(|line| Some(line.strip_suffix('.')?.to_owned()))
                    && sender.send(line).is_err()
                {
                    return;
                }
            }
        });
        Run { child, lines }
    }

    fn read_until(&mut self, known: &mut Known, until: Until) -> bool {
        loop {
            let line = match until {
                Until::Time(end) => self
                    .lines
                    .recv_timeout(end.saturating_duration_since(Instant::now()))
                    .ok(),
                _ => self.lines.recv().ok(),
            };
            let Some(line) = line else { return false };
            known.learn(&line);
            if matches!(until, Until::Opened) && line == "opened" {
                return true;
            }
        }
    }
}

/// What children have said, and so must hold.
#[derive(Default)]
struct Known {
    start_number: u64,
    groups: [KnownGroup; GROUPS],
    acknowledged: u64,
    truncated: u64,
    installed: u64,
    checkpoints: u64,
}

#[derive(Default)]
struct KnownGroup {
    vote: u64,
    /// Term of each acknowledged entry that must be there.
    terms: Vec<Option<u64>>,
}

impl Known {
    fn learn(&mut self, line: &str) {
        let mut words = line.split(' ');
        let verb = words.next().unwrap();
        let numbers: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
        match (verb, &numbers[..]) {
            ("start", &[number]) => {
                assert!(
                    number > self.start_number,
                    "start number {number} after {}",
                    self.start_number
                );
                self.start_number = number;
            }
            ("voted", &[group, term]) => self.groups[group as usize].vote = term,
            ("acked", &[group, first, end, term]) => {
                let terms = &mut self.groups[group as usize].terms;
                terms.resize(terms.len().max(end as usize), None);
                terms[first as usize..end as usize].fill(Some(term));
                self.acknowledged += end - first;
            }
            ("truncating", &[group, from]) => {
                self.truncated += 1;
                self.groups[group as usize].terms.truncate(from as usize);
            }
            ("installed", _) => self.installed += 1,
            ("checkpoint", _) => self.checkpoints += 1,
            // What a start found: the vote, and entries purged .. last by runs of equal term.
            ("vote", &[group, term]) => {
                let known = self.groups[group as usize].vote;
                assert!(
                    term >= known,
                    "group {group} voted in term {known}, now knows term {term}"
                );
            }
            ("log", &[group, purged, end]) => {
                let terms = &mut self.groups[group as usize].terms;
                assert!(
                    end as usize >= terms.len(),
                    "group {group}: {} acknowledged, log ends at {end}",
                    terms.len()
                );
                assert!(purged <= end);
                // Purged entries are in the tables, which the child has checked.
                let gone = terms.len().min(purged as usize);
                terms[..gone].fill(None);
            }
            ("run", &[group, first, end, term]) => {
                let terms = &self.groups[group as usize].terms;
                let known = terms
                    .iter()
                    .enumerate()
                    .skip(first as usize)
                    .take((end - first) as usize);
                for (index, acknowledged) in known {
                    assert!(
                        acknowledged.is_none_or(|acknowledged| acknowledged == term),
                        "group {group}: entry {index} was acknowledged in term {acknowledged:?}, now is of term {term}"
                    );
                }
            }
            _ => {}
        }
    }
}

// ---- child

fn child(directory: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    // Behind the test harness's own words.
    say(format_args!("\n"));
    runtime.block_on(async {
        let seed = number("LONTRA_KILL_SEED").unwrap();
        let identity = Identity {
            cluster: "kill".into(),
            node: 1,
            shards: 2,
            replication_factor: 3,
            nodes: vec![1, 2, 3],
        };
        let config = StorageConfig {
            directory: directory.join("data"),
            identity,
            fsync: true,
            memory: lontra_storage::MemoryBudget::default(),
        };
        let metrics = StorageMetrics::new(&prometheus::Registry::new());
        let storage = Storage::open(config, metrics).unwrap_or_else(|error| panic!("{error}"));
        say(format_args!("start {}", storage.start_number()));
        let mut groups = Vec::new();
        for number in 0..GROUPS {
            let mut group = Group::open(&storage, number);
            group.check().await;
            groups.push(group);
        }
        say(format_args!("opened"));
        if seed == 0 {
            drop(groups);
            return storage.close().await.unwrap();
        }
        let checkpoints = storage.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(15)).await;
                checkpoints.checkpoint().await.unwrap();
                say(format_args!("checkpoint"));
            }
        });
        let tasks: Vec<_> = groups
            .into_iter()
            .map(|group| {
                let random = Random(seed + group.number as u64);
                tokio::spawn(group.work(random))
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

struct Group {
    number: usize,
    storage: Arc<Storage>,
    log: GroupLog,
    state: GroupState,
    tables: Tables,
    term: u64,
    next: u64,
    applied_next: u64,
}

impl Group {
    fn open(storage: &Arc<Storage>, number: usize) -> Group {
        let id = GroupId(number as u32);
        let (log, state, tables) = storage.group(id, Box::new(Chain { group: number })).unwrap();
        let term = storage.start_number();
        Group {
            number,
            storage: storage.clone(),
            log,
            state,
            tables,
            term,
            next: 0,
            applied_next: 0,
        }
    }

    /// Reports what is there; panics if it cannot be.
    async fn check(&mut self) {
        let number = self.number;
        let mut reader = self.log.get_log_reader().await;
        let vote = reader.read_vote().await.unwrap();
        say(format_args!(
            "vote {number} {}",
            vote.map_or(0, |vote| vote.leader_id.term)
        ));
        let logs = self.log.get_log_state().await.unwrap();
        let (purged, end) = (next(&logs.last_purged_log_id), next(&logs.last_log_id));
        let entries = reader.try_get_log_entries(..).await.unwrap();
        assert!(
            entries.iter().map(|entry| entry.log_id.index).eq(purged..end),
            "group {number}: {purged}..{end} has gaps"
        );
        for run in entries.chunk_by(|one, other| one.log_id.leader_id.term == other.log_id.leader_id.term) {
            let (first, last) = (run[0].log_id.index, run[run.len() - 1].log_id.index);
            say(format_args!(
                "run {number} {first} {} {}",
                last + 1,
                run[0].log_id.leader_id.term
            ));
        }
        assert!(
            entries.is_sorted_by_key(|entry| entry.log_id),
            "group {number}: terms go back"
        );
        for entry in &entries {
            let EntryPayload::Normal(command) = &entry.payload else {
                panic!("foreign entry {}", entry.log_id)
            };
            assert_eq!(
                command.0,
                content(number, entry.log_id.index),
                "group {number}: entry {}",
                entry.log_id
            );
        }
        let applied = self.state.applied_state().await.unwrap().0;
        assert!(
            applied <= logs.last_log_id,
            "group {number}: applied {applied:?}, log {:?}",
            logs.last_log_id
        );
        assert!(
            next(&applied) >= purged,
            "group {number}: tables end before the log begins"
        );
        self.check_tables(next(&applied));
        say(format_args!("log {number} {purged} {end}"));

        let committed = self.log.read_committed().await.unwrap();
        assert!(committed <= logs.last_log_id);
        (self.next, self.applied_next) = (end, next(&applied));
        self.apply(next(&committed)).await;
        self.check_tables(self.applied_next);
    }

    fn check_tables(&self, applied_next: u64) {
        let rows = self.tables.scan(&[1], &[255], usize::MAX).unwrap();
        assert_eq!(
            rows,
            replay(self.number, applied_next),
            "group {}: tables at {applied_next}",
            self.number
        );
    }

    async fn work(mut self, mut random: Random) {
        let number = self.number;
        self.truncate().await;
        self.log.save_vote(&Vote::new_committed(self.term, 1)).await.unwrap();
        say(format_args!("voted {number} {}", self.term));
        loop {
            let mut pending = Vec::new();
            for _ in 0..1 + random.below(3) {
                pending.push(self.append(1 + random.below(8)).await);
            }
            // As a follower does: what a quorum has is applied without asking whether it is on our own disk.
            let committed = self.applied_next + random.below(self.next - self.applied_next + 1);
            if committed > self.applied_next {
                let last = self
                    .log
                    .get_log_reader()
                    .await
                    .try_get_log_entries(committed - 1..committed)
                    .await
                    .unwrap();
                self.log.save_committed(Some(last[0].log_id)).await.unwrap();
            }
            self.apply(committed).await;
            if random.below(4) > 0 {
                for done in pending {
                    done.await.unwrap();
                }
            }
            match random.below(60) {
                0..6 => self.purge(10 + random.below(40)).await,
                6..8 if self.applied_next > 0 => self.reinstall().await,
                _ => {}
            }
        }
    }

    /// A new leader that has not what we have behind `committed`; before any append of this term.
    async fn truncate(&mut self) {
        let from = self.applied_next.max(self.next.saturating_sub(5));
        if from < self.next {
            say(format_args!("truncating {} {from}", self.number));
            let last = match from.checked_sub(1) {
                None => None,
                Some(index) => {
                    let found = self
                        .log
                        .get_log_reader()
                        .await
                        .try_get_log_entries(index..from)
                        .await
                        .unwrap();
                    found.first().map(|entry| entry.log_id).or(self
                        .log
                        .get_log_state()
                        .await
                        .unwrap()
                        .last_purged_log_id)
                }
            };
            self.log.truncate_after(last).await.unwrap();
            self.next = from;
        }
    }

    async fn append(&mut self, count: u64) -> tokio::task::JoinHandle<()> {
        let (number, term, first, end) = (self.number, self.term, self.next, self.next + count);
        let entries = (first..end).map(|index| {
            let command = Command(content(number, index));
            Entry::new(
                LogId::new(LeaderId { term, node_id: 1 }, index),
                EntryPayload::Normal(command),
            )
        });
        let (sender, done) = TypeConfig::oneshot();
        self.log
            .append(entries.collect::<Vec<_>>(), IOFlushed::signal(sender))
            .await
            .unwrap();
        self.next = end;
        tokio::spawn(async move {
            done.await.unwrap().unwrap();
            say(format_args!("acked {number} {first} {end} {term}"));
        })
    }

    async fn apply(&mut self, end: u64) {
        if end <= self.applied_next {
            return;
        }
        let entries = self
            .log
            .get_log_reader()
            .await
            .try_get_log_entries(self.applied_next..end)
            .await
            .unwrap();
        self.state
            .apply(stream::iter(entries.into_iter().map(|entry| Ok((entry, None)))))
            .await
            .unwrap();
        self.applied_next = end;
        let synced = self.storage.synced(GroupId(self.number as u32));
        assert!(synced + 1 >= end, "applied up to {end}, synced up to {synced}");
    }

    async fn purge(&mut self, keep: u64) {
        let Some(mut builder) = self.state.try_create_snapshot_builder(false).await else {
            return;
        };
        let durable = builder.build_snapshot().await.unwrap().meta.last_log_id.unwrap();
        let purged = next(&self.log.get_log_state().await.unwrap().last_purged_log_id);
        if let Some(index) = durable.index.checked_sub(keep).filter(|index| *index >= purged) {
            let found = self
                .log
                .get_log_reader()
                .await
                .try_get_log_entries(index..index + 1)
                .await
                .unwrap();
            self.log.purge(found[0].log_id).await.unwrap();
        }
    }

    /// A snapshot of ourselves: another generation with the same rows.
    async fn reinstall(&mut self) {
        let snapshot = self.state.get_current_snapshot().await.unwrap().unwrap();
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let mut chunks = snapshot.snapshot.into_chunks();
        tokio::spawn(async move {
            while let Some(chunk) = chunks.recv().await {
                if sender.send(chunk).await.is_err() {
                    return;
                }
            }
        });
        let group = GroupId(self.number as u32);
        let staged = self
            .storage
            .stage_snapshot(group, snapshot.meta.clone(), SnapshotData::from_chunks(receiver))
            .await
            .unwrap();
        self.state.install_snapshot(&snapshot.meta, staged).await.unwrap();
        say(format_args!("installed {}", self.number));
        self.check_tables(self.applied_next);
    }
}

// ---- what is stored: all of it follows from group and index

const KEPT: u64 = 50;

/// The last commands, and a checksum of all, each over the one before.
struct Chain {
    group: usize,
}

impl Machine for Chain {
    fn load(&mut self, _tables: &Tables, _reset: bool) -> io::Result<()> {
        Ok(())
    }

    fn apply(
        &mut self,
        tables: &Tables,
        batch: &mut TableBatch<'_>,
        at: EntryPosition,
        command: &Bytes,
    ) -> io::Result<Reply> {
        assert_eq!(*command, content(self.group, at.index));
        let before = tables
            .get(&[2])?
            .map_or(0, |bytes| u64::from_be_bytes(bytes[..].try_into().unwrap()));
        batch.put(&[&[1][..], &at.index.to_be_bytes()].concat(), command);
        if let Some(old) = at.index.checked_sub(KEPT) {
            batch.delete(&[&[1][..], &old.to_be_bytes()].concat());
        }
        batch.put(&[2], &link(before, at.index).to_be_bytes());
        Ok(Reply::default())
    }

    fn emit(&mut self, _at: EntryPosition) {}
}

fn replay(group: usize, end: u64) -> Vec<(Bytes, Bytes)> {
    let row = |index: u64| {
        (
            Bytes::from([&[1][..], &index.to_be_bytes()].concat()),
            content(group, index),
        )
    };
    let mut rows: Vec<_> = (end.saturating_sub(KEPT)..end).map(row).collect();
    if end > 0 {
        let chain = (0..end).fold(0, link);
        rows.push((Bytes::from_static(&[2]), Bytes::copy_from_slice(&chain.to_be_bytes())));
    }
    rows
}

fn link(before: u64, index: u64) -> u64 {
    Random(before.rotate_left(7) ^ index).next()
}

/// 8 bytes to some KiB, different for each group and index.
fn content(group: usize, index: u64) -> Bytes {
    let mut random = Random((group as u64) << 48 | (index + 1));
    let bits = random.below(10);
    let words = 1 + random.below(1 << bits);
    (0..words).flat_map(|_| random.next().to_be_bytes()).collect()
}

struct Random(u64);

impl Random {
    /// splitmix64
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn next(id: &Option<LogId>) -> u64 {
    id.as_ref().map_or(0, |id| id.index + 1)
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// One write per line, so that a kill cuts a line rather than an order.
fn say(line: std::fmt::Arguments<'_>) {
    let line = format!("{line}.\n");
    io::stdout().lock().write_all(line.as_bytes()).unwrap();
}
