//! P5 under `kill -9` and pauses: the retained message of each topic is a linearizable register.
//!
//! Writers publish unique values with RETAIN; a reader is a fresh session that subscribes, and has read when the copy with
//! RETAIN set comes (Retain Handling 0, Retain As Published 0); where a write comes in between, it may get that live instead. Both on all nodes. The history of each topic is judged by
//! `support/register.rs`; faults planted in it must be found. A run that killed, wrote or read too little is a failure.

use crate::support::client::{Client, Gone};
use crate::support::cluster::Cluster;
use crate::support::codec::{Connect, Packet, Publish, Version, pubcomp, pubrec, pubrel, subscribe};
use crate::support::random::Random;
use crate::support::register::{self, Outcome, Read, Register, Write};
use crate::support::{START, eventually};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

#[tokio::test(flavor = "multi_thread")]
async fn p5_the_newest_value_is_read_on_every_survivor_right_after_a_kill() {
    let _alone = crate::support::alone().await;
    let cluster = Cluster::start(3).await;
    let mut value = 0_u64;
    for victim in cluster.ids() {
        let survivors: Vec<usize> = (0..3).filter(|index| cluster.nodes[*index].id != victim).collect();
        let writer_at = survivors[0];
        let mut writer = Client::open(cluster.mqtt(writer_at), Version::V5, "right-after-w").await;
        value += 1;
        for topic in 0..TOPICS {
            let publish = retained(topic, value, 1 + (topic % 2) as u8);
            assert!(writer.publish_packet(publish).await < 0x80);
        }
        // Of about a third of the topics it led the shard.
        cluster.kill(victim).await;
        for (n, topic) in (0..TOPICS).enumerate() {
            let at = survivors[n % 2];
            assert_eq!(
                read_once(cluster.mqtt(at), topic, n).await,
                value,
                "topic {topic} at node {at}"
            );
        }
        value += 1;
        for topic in 0..TOPICS {
            assert!(writer.publish_packet(retained(topic, value, 1)).await < 0x80);
        }
        cluster.start_node(victim);
        cluster.wait_ready(victim, START).await;
        // A node that is ready has caught up, or asks who has.
        for topic in 0..TOPICS {
            let at = cluster.node(victim).mqtt.clone();
            assert_eq!(
                read_once(&at, topic, topic).await,
                value,
                "topic {topic} at the node that came back"
            );
        }
    }
    println!(
        "right after: {} reads after {} kills",
        2 * TOPICS * cluster.nodes.len(),
        cluster.nodes.len()
    );
    cluster.assert_no_panic();
}

/// A fresh session's read; its kind and QoS go by `n`.
async fn read_once(address: &str, topic: usize, n: usize) -> u64 {
    let (mut client, _) = Client::connect(address, &reader(&format!("right-after-{n}"), n % 2 == 1)).await;
    client.subscribe(&[(&name(topic), (n % 3) as u8)]).await;
    let message = client.message().await;
    assert!(message.retain, "{message:?}");
    let value = message.text().parse().expect("a value");
    let bytes = crate::support::codec::disconnect_with_expiry(0);
    client.send(&bytes).await.expect("DISCONNECT");
    value
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    KillShardLeader,
    KillMetaLeader,
    KillAny,
    PauseShardLeader,
}

const FAULTS: [Fault; 4] = [
    Fault::KillShardLeader,
    Fault::PauseShardLeader,
    Fault::KillMetaLeader,
    Fault::KillAny,
];

#[tokio::test(flavor = "multi_thread")]
async fn p5_retained_is_a_linearizable_register_under_kills_and_pauses() {
    let _alone = crate::support::alone().await;
    let mut random = Random::announced("register");
    let cluster = Cluster::start(3).await;
    let run = Arc::new(Run::new(cluster.nodes.iter().map(|node| node.mqtt.clone()).collect()));
    let mut clients: Vec<JoinHandle<()>> = Vec::new();
    for n in 0..WRITERS {
        clients.push(tokio::spawn(run.clone().write(n, random.fork())));
    }
    run.wrote_more(20 * TOPICS as u64).await;
    for n in 0..READERS {
        clients.push(tokio::spawn(run.clone().read(n, random.fork())));
    }
    run.read_more(100).await;

    let started = Instant::now();
    let mut faults: Vec<Fault> = Vec::new();
    let mut read_meanwhile = 0;
    while faults.len() < FAULTS_MIN {
        assert!(
            started.elapsed() < AT_MOST,
            "only {} faults\n{}",
            faults.len(),
            cluster.logs()
        );
        let fault = FAULTS[faults.len() % FAULTS.len()];
        let victim = match fault {
            Fault::KillMetaLeader => cluster.leader_of("meta").await,
            Fault::KillAny => *random.pick(&cluster.ids()),
            Fault::KillShardLeader | Fault::PauseShardLeader => {
                cluster.leader_of(&format!("shard-{}", random.below(SHARDS))).await
            }
        };
        let before = run.counts.reads.load(Ordering::Relaxed);
        if fault == Fault::PauseShardLeader {
            cluster.pause(victim).await;
            // Longer than a lease: others lead its shards, and it wakes up with reads and writes in hand.
            let until = Instant::now() + Duration::from_millis(2_500 + random.below(2_000) as u64);
            run.both_go_on().await;
            sleep(until.saturating_duration_since(Instant::now())).await;
            cluster.resume(victim);
        } else {
            cluster.kill(victim).await;
            run.both_go_on().await;
            sleep(Duration::from_millis(random.below(1_500) as u64)).await;
            cluster.start_node(victim);
        }
        read_meanwhile += run.counts.reads.load(Ordering::Relaxed) - before;
        cluster.wait_ready(victim, START).await;
        run.both_go_on().await;
        faults.push(fault);
    }
    for fault in FAULTS {
        let count = faults.iter().filter(|one| **one == fault).count();
        println!("register: {count} × {fault:?}");
        assert!(count >= 2, "{fault:?} came only {count} times");
    }
    run.stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("a client");
    }
    // All nodes answer the same, and each value is a read like any other.
    for topic in 0..TOPICS {
        let mut values = Vec::new();
        for (n, node) in cluster.nodes.iter().enumerate() {
            let invoked = run.started.elapsed();
            let value = read_once(&node.mqtt, topic, n + topic).await;
            run.topics[topic].lock().expect("no panic").register.reads.push(Read {
                value,
                invoked,
                completed: run.started.elapsed(),
            });
            values.push(value);
        }
        assert!(
            values.iter().all(|value| *value == values[0]),
            "topic {topic}: {values:?}"
        );
    }
    run.judge(faults.len(), read_meanwhile, started.elapsed());
    cluster.assert_no_panic();
}

/// What all clients share.
struct Run {
    addresses: Vec<String>,
    started: Instant,
    stop: AtomicBool,
    next_value: AtomicU64,
    topics: Vec<Mutex<Topic>>,
    counts: Counts,
    slowest: Mutex<(Duration, Duration)>,
}

#[derive(Default)]
struct Topic {
    register: Register,
    views: Vec<View>,
}

/// What one reader got of a topic, in order.
struct View {
    reader: String,
    values: Vec<u64>,
    /// The same, as it came.
    packets: Vec<String>,
}

#[derive(Default)]
struct Counts {
    writes: AtomicU64,
    refused: AtomicU64,
    reads: AtomicU64,
    /// A newer value came live, and the retained one not any more: no read of the register, but part of a view.
    displaced_reads: AtomicU64,
    unanswered_reads: AtomicU64,
    connections: AtomicU64,
}

impl Run {
    fn new(addresses: Vec<String>) -> Run {
        Run {
            addresses,
            started: Instant::now(),
            stop: AtomicBool::new(false),
            next_value: AtomicU64::new(1),
            topics: (0..TOPICS).map(|_| Mutex::default()).collect(),
            counts: Counts::default(),
            slowest: Mutex::default(),
        }
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn topic(&self, topic: usize) -> std::sync::MutexGuard<'_, Topic> {
        self.topics[topic].lock().expect("no panic")
    }

    fn took(&self, write: Duration, read: Duration) {
        let mut slowest = self.slowest.lock().expect("no panic");
        *slowest = (slowest.0.max(write), slowest.1.max(read));
    }

    /// Connects to any node as a fresh session; none if that node does not serve now.
    async fn connect(&self, connect: &Connect, random: &mut Random) -> Option<Client> {
        let address = random.pick(&self.addresses).clone();
        self.counts.connections.fetch_add(1, Ordering::Relaxed);
        match Client::try_connect(&address, connect, ANSWER_MAX).await {
            Ok((client, Packet::Connack { code: 0, .. })) => Some(client),
            _ => {
                sleep(Duration::from_millis(20)).await;
                None
            }
        }
    }

    // ---- writers ----

    async fn write(self: Arc<Self>, number: usize, mut random: Random) {
        let mut connection = 0;
        while !self.is_over() {
            connection += 1;
            let connect = Connect::clean(Version::V5, &format!("register-w{number}-{connection}"));
            if let Some(mut client) = self.connect(&connect, &mut random).await {
                // What is open when the connection ends stays unknown: it is never sent again.
                while !self.is_over() && self.write_one(&mut client, &mut random).await.is_ok() {
                    sleep(Duration::from_micros(random.below(60_000) as u64)).await;
                }
            }
        }
    }

    async fn write_one(&self, client: &mut Client, random: &mut Random) -> Result<(), Gone> {
        let topic = random.below(TOPICS);
        let value = self.next_value.fetch_add(1, Ordering::Relaxed);
        let qos = [0, 1, 1, 1, 1, 2, 2, 2][random.below(8)];
        let pid = if qos > 0 { client.next_pid() } else { 0 };
        let publish = Publish {
            pid,
            ..retained(topic, value, qos)
        };
        let invoked = self.started.elapsed();
        let write = Write {
            invoked,
            outcome: Outcome::Unknown,
        };
        self.topic(topic).register.writes.insert(value, write);
        client.send(&publish.encode(Version::V5)).await?;
        if qos == 0 {
            return Ok(());
        }
        let code = answer(client, pid).await?;
        let completed = self.started.elapsed();
        let outcome = match code {
            0..0x80 => Outcome::Done(completed),
            _ => Outcome::Refused,
        };
        let write = Write { invoked, outcome };
        self.topic(topic).register.writes.insert(value, write);
        if outcome == Outcome::Refused {
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        self.counts.writes.fetch_add(1, Ordering::Relaxed);
        self.took(completed - invoked, Duration::ZERO);
        if qos == 2 {
            client.send(&pubrel(pid)).await?;
            answer(client, pid).await?;
        }
        Ok(())
    }

    // ---- readers ----

    async fn read(self: Arc<Self>, number: usize, mut random: Random) {
        let mut connection = 0;
        while !self.is_over() {
            connection += 1;
            let is_durable = random.below(2) == 1;
            let kind = if is_durable { "durable" } else { "ephemeral" };
            let connect = reader(&format!("register-r{number}-{connection}-{kind}"), is_durable);
            if let Some(mut client) = self.connect(&connect, &mut random).await {
                self.read_one(&mut client, &mut random).await;
                let bytes = crate::support::codec::disconnect_with_expiry(0);
                client.send(&bytes).await.ok();
            }
        }
    }

    /// A read, and for some a look at what comes live afterwards.
    async fn read_one(&self, client: &mut Client, random: &mut Random) {
        let topic = random.below(TOPICS);
        let qos = random.below(3) as u8;
        let filter = match random.below(3) {
            0 => format!("{}/#", name(topic)),
            _ => name(topic),
        };
        let stays = Duration::from_millis([0, 0, 300][random.below(3)]);
        let pid = client.next_pid();
        let mut view = View {
            reader: format!("{} with QoS {qos} for {filter}", client.client_id),
            values: Vec::new(),
            packets: Vec::new(),
        };
        let invoked = self.started.elapsed();
        if client
            .send(&subscribe(Version::V5, pid, &[(&filter, qos)]))
            .await
            .is_err()
        {
            return;
        }
        let mut completed = None;
        let mut until = Instant::now() + ANSWER_MAX;
        while let Ok(packet) = client
            .packet_within(until.saturating_duration_since(Instant::now()))
            .await
        {
            let publish = match packet {
                Packet::Publish(publish) => publish,
                Packet::Pubrel { pid, .. } if client.send(&pubcomp(pid)).await.is_ok() => continue,
                Packet::Suback { codes, .. } if codes.iter().all(|code| *code < 3) => continue,
                _ => break,
            };
            let value: u64 = publish.text().parse().expect("a value");
            assert_eq!(publish.topic, name(topic), "{publish:?}");
            view.values.push(value);
            let at = self.started.elapsed();
            let Publish { qos, retain, dup, .. } = publish;
            view.packets
                .push(format!("{value} (qos {qos}, retain {retain}, dup {dup}, at {at:?})"));
            if !publish.retain && completed.is_none() {
                until = until.min(Instant::now() + DISPLACED_WAIT);
            }
            if publish.retain {
                assert!(completed.is_none(), "a second retained message: {publish:?}");
                let now = self.started.elapsed();
                completed = Some(now);
                self.topic(topic).register.reads.push(Read {
                    value,
                    invoked,
                    completed: now,
                });
                self.took(Duration::ZERO, now - invoked);
                until = Instant::now() + stays;
            }
            let told = match publish.qos {
                0 => Ok(()),
                1 => client.send(&crate::support::codec::puback(publish.pid)).await,
                _ => client.send(&pubrec(publish.pid)).await,
            };
            if told.is_err() {
                break;
            }
        }
        let counted = match completed {
            Some(_) => &self.counts.reads,
            None if !view.values.is_empty() => &self.counts.displaced_reads,
            None => &self.counts.unanswered_reads,
        };
        counted.fetch_add(1, Ordering::Relaxed);
        if view.values.len() > 1 {
            self.topic(topic).views.push(view);
        }
    }

    // ---- waiting and judging ----

    async fn wrote_more(&self, count: u64) {
        self.more(&self.counts.writes, count, "acknowledged writes").await;
    }

    async fn read_more(&self, count: u64) {
        self.more(&self.counts.reads, count, "reads").await;
    }

    async fn both_go_on(&self) {
        self.wrote_more(60).await;
        self.read_more(40).await;
    }

    async fn more(&self, counter: &AtomicU64, count: u64, what: &str) {
        let target = counter.load(Ordering::Relaxed) + count;
        eventually(&format!("{count} more {what}"), START, || async {
            (counter.load(Ordering::Relaxed) >= target).then_some(())
        })
        .await;
    }

    fn judge(&self, faults: usize, read_meanwhile: u64, took: Duration) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (writes, reads) = (count(&self.counts.writes), count(&self.counts.reads));
        let (mut unknown, mut seen_unknown, mut views) = (0, 0, 0);
        let mut violations = Vec::new();
        for number in 0..TOPICS {
            let topic = self.topic(number);
            let register = &topic.register;
            for (value, write) in &register.writes {
                if write.outcome == Outcome::Unknown {
                    unknown += 1;
                    seen_unknown += u32::from(register.reads.iter().any(|read| read.value == *value));
                }
            }
            views += topic.views.len();
            violations.extend(
                register::check(register)
                    .iter()
                    .map(|found| format!("{}: {found}", name(number))),
            );
            for view in &topic.views {
                if let Some(found) = register::backwards(register, &view.values) {
                    violations.push(format!(
                        "{}: {found}: {}: {:?}",
                        name(number),
                        view.reader,
                        view.packets
                    ));
                }
            }
            for (what, planted) in planted(register) {
                let found = register::check(&planted);
                assert!(!found.is_empty(), "{}: {what} was planted, and not found", name(number));
            }
        }
        let slowest = *self.slowest.lock().expect("no panic");
        println!(
            "register: {writes} writes acknowledged, {} refused, {unknown} unknown ({seen_unknown} of them seen); \
             {reads} reads ({read_meanwhile} during faults), {} displaced, {} without an answer, {views} views; {} connections; \
             {faults} faults in {took:?}; slowest write {:?}, read {:?}",
            count(&self.counts.refused),
            count(&self.counts.displaced_reads),
            count(&self.counts.unanswered_reads),
            count(&self.counts.connections),
            slowest.0,
            slowest.1
        );
        for violation in violations.iter().take(20) {
            println!("    {violation}");
        }
        assert!(violations.is_empty(), "{} violations, see above", violations.len());
        assert!(
            writes > 1_000 && reads > 1_000 && read_meanwhile > 200 && views > 100,
            "too little happened"
        );
        let displaced = count(&self.counts.displaced_reads);
        assert!(
            displaced < reads / 2,
            "most writes come between SUBSCRIBE and the retained message"
        );
        assert!(unknown > 0 && seen_unknown > 0, "no write was under way at a fault");
    }
}

/// The reason code of what comes next, which must be the answer for `pid`.
async fn answer(client: &mut Client, pid: u16) -> Result<u8, Gone> {
    match timeout(ANSWER_MAX, client.packet())
        .await
        .unwrap_or(Err(Gone::Silent(ANSWER_MAX)))?
    {
        Packet::Puback { pid: answered, code }
        | Packet::Pubrec { pid: answered, code }
        | Packet::Pubcomp { pid: answered, code }
            if answered == pid =>
        {
            Ok(code)
        }
        other => Err(Gone::Closed(format!("{other:?}"))),
    }
}

/// Histories like `register`, each with a fault that a cluster could have.
fn planted(register: &Register) -> Vec<(&'static str, Register)> {
    let done = |write: &Write| match write.outcome {
        Outcome::Done(at) => Some(at),
        _ => None,
    };
    let acknowledged: Vec<(u64, Duration, Duration)> = register
        .writes
        .iter()
        .filter_map(|(value, write)| Some((*value, write.invoked, done(write)?)))
        .collect();
    let last = register.reads.iter().map(|read| read.invoked).max().expect("a read");
    // An older and a newer value, one certainly written after the other, and a time after both.
    let (older, newer) = acknowledged
        .iter()
        .find_map(|older| {
            let newer = acknowledged.iter().find(|newer| newer.1 > older.2 && newer.2 < last)?;
            Some((older, newer))
        })
        .expect("two writes one after the other");
    let read = |value| Read {
        value,
        invoked: last,
        completed: last + Duration::from_millis(1),
    };
    let mut stale = register.clone();
    stale.reads.push(read(older.0));
    let mut lost = register.clone();
    for one in lost.reads.iter_mut().filter(|one| one.value == newer.0) {
        one.value = older.0;
    }
    lost.reads.push(read(older.0));
    let mut from_nowhere = register.clone();
    from_nowhere.reads.push(read(u64::MAX));
    let mut refused = register.clone();
    let seen = register.reads[0].value;
    refused.writes.get_mut(&seen).expect("written").outcome = Outcome::Refused;
    let mut early = register.clone();
    early.reads.push(Read {
        value: newer.0,
        invoked: Duration::ZERO,
        completed: older.2,
    });
    vec![
        ("a stale read", stale),
        ("a lost write", lost),
        ("a value from nowhere", from_nowhere),
        ("a refused write that is read", refused),
        ("a read from the future", early),
    ]
}

fn name(topic: usize) -> String {
    format!("register/{topic}")
}

fn retained(topic: usize, value: u64, qos: u8) -> Publish {
    Publish {
        retain: true,
        ..Publish::new(&name(topic), value.to_string(), qos)
    }
}

/// A fresh session.
fn reader(client_id: &str, is_durable: bool) -> Connect {
    match is_durable {
        false => Connect::clean(Version::V5, client_id),
        true => Connect {
            clean: true,
            ..Connect::persistent(Version::V5, client_id)
        },
    }
}

/// Few, so that writes and reads of one meet.
const TOPICS: usize = 24;
const WRITERS: usize = 6;
const READERS: usize = 9;
const FAULTS_MIN: usize = 12;
const AT_MOST: Duration = Duration::from_secs(8 * 60);
/// How long a client waits for an answer before it gives up on the node.
const ANSWER_MAX: Duration = Duration::from_secs(6);
/// How long a reader that got a live copy waits for the retained one, which that may have displaced.
const DISPLACED_WAIT: Duration = Duration::from_millis(500);
/// The default of `cluster.shards`.
const SHARDS: usize = 12;
