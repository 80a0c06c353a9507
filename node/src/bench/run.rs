//! A run with messages: connect, warm up, measure, drain, close.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::time::Duration;

use super::BenchError;
use super::clients::{Client, Clients, Role};
use super::options::Options;
use super::plan::Plan;
use super::process::{self, Usage};
use super::publisher::{Pace, Publisher, Settings};
use super::report::{Counts, Process, Report};
use super::subscriber::Subscriber;
use crate::protocol::codec::QoS;

/// # Errors
/// No broker, or not for all clients; a process of `--pid` that cannot be read.
pub fn run(options: &Options, brokers: &[SocketAddr]) -> Result<Report, BenchError> {
    let run = run_id();
    let plan = Plan::new(options, brokers, run);
    let subscribers = plan.subscribers.len();
    let all = clients(options, &plan, run)?;
    let total = all.len();
    usages(&options.pids)?;

    let mut clients = Clients::new(options, run, all)?;
    clients.connect(0..subscribers)?;
    clients.connect(subscribers..total)?;
    let mut load = Load::new(options, &plan, clients);
    if options.messages.is_none() {
        load.start();
        load.send_for(options.warmup)?;
    }

    let before = Snapshot::take(options)?;
    let began = load.clients.now();
    load.clients.tally.is_measuring = true;
    let ended = match options.messages {
        None => {
            load.send_for(options.seconds)?;
            load.clients.now()
        }
        Some(_) => {
            load.start();
            load.drain(options.patience)?;
            load.clients.tally.last_arrival.max(began)
        }
    };
    load.clients.tally.is_measuring = false;
    let after = Snapshot::take(options)?;
    load.clients.stop_sending();
    load.drain(options.patience)?;

    let counts = load.counts();
    let first_end = load.clients.first_end.take().map(|(_, end)| end.to_string());
    let mut report = Report {
        scenario: options.scenario.name(),
        brokers: options.brokers.clone(),
        version: options.version(),
        transport: options.transport(),
        qos: options.qos as u8,
        is_persistent: options.persistent,
        publishers: plan.publishers.len(),
        subscribers,
        payload_bytes: options.payload,
        window: options.rate.is_none().then_some(options.window),
        rate: options.rate,
        seconds: (ended - began) as f64 / 1e9,
        measured: load.clients.tally.latency.len(),
        counts,
        first_end,
        left_behind: None,
        latency: load.clients.tally.latency.clone(),
        acknowledge: load.clients.tally.acknowledge.clone(),
        send_delay: load.clients.tally.send_delay.clone(),
        bench: after.own.since(before.own),
        processes: after.processes(&options.pids, &before),
    };
    // The broker may have gone meanwhile; the result is there.
    report.left_behind = load.clients.close().err().map(|error| error.to_string());
    Ok(report)
}

/// Tells this run's ids, topics and payloads from those of others; 40 bits: client ids stay within the 23 characters
/// that every broker takes.
pub fn run_id() -> u64 {
    RandomState::new().hash_one(std::process::id()) >> 24
}

pub fn usages(pids: &[u32]) -> Result<Vec<Usage>, BenchError> {
    pids.iter().map(|pid| process::usage(*pid)).collect()
}

/// Subscribers first: who publishes finds them there.
fn clients(options: &Options, plan: &Plan, run: u64) -> Result<Vec<Client>, BenchError> {
    let (version, qos) = (options.version(), options.qos);
    let mut clients = Vec::with_capacity(plan.subscribers.len() + plan.publishers.len());
    for planned in &plan.subscribers {
        let subscriber = Subscriber::new(
            planned.filter.clone(),
            qos,
            version,
            planned.first_publisher,
            planned.publishers,
        );
        let mut client = Client::new(planned.broker, planned.client_id.clone(), Role::Subscriber(subscriber));
        client.is_persistent = options.persistent;
        clients.push(client);
    }
    let interval = options.rate.map(|rate| 1e9 / rate);
    for (index, planned) in plan.publishers.iter().enumerate() {
        let pace = match interval {
            None => Pace::Closed { window: options.window },
            Some(interval) => Pace::Open {
                first: index as f64 * interval,
                interval: interval * plan.publishers.len() as f64,
            },
        };
        let publisher = Publisher::new(&Settings {
            index: index as u32,
            run,
            version,
            qos,
            topic: &planned.topic,
            payload_bytes: options.payload as usize,
            pace,
            limit: options.messages.unwrap_or(u64::MAX),
            subscribers: plan.subscribers_per_publisher,
        })?;
        let role = Role::Publisher(index as u32, Box::new(publisher));
        clients.push(Client::new(planned.broker, planned.client_id.clone(), role));
    }
    Ok(clients)
}

/// Keeps clients busy.
struct Load {
    clients: Clients,
    /// Open loop: messages are due one publisher after the other.
    schedule: Option<Schedule>,
    /// Only QoS 0 in a closed loop waits for arrivals that may never come.
    writes_off: bool,
    written_off: u64,
    subscribers_per_publisher: u64,
}

struct Schedule {
    began: f64,
    interval: f64,
    next: u64,
    publishers: u64,
}

impl Schedule {
    fn next_due(&self) -> u64 {
        (self.began + self.next as f64 * self.interval).ceil() as u64
    }
}

impl Load {
    fn new(options: &Options, plan: &Plan, clients: Clients) -> Load {
        let schedule = options.rate.map(|rate| Schedule {
            began: 0.0,
            interval: 1e9 / rate,
            next: 0,
            publishers: plan.publishers.len() as u64,
        });
        Load {
            writes_off: options.qos == QoS::AtMostOnce && schedule.is_none(),
            clients,
            schedule,
            written_off: 0,
            subscribers_per_publisher: u64::from(plan.subscribers_per_publisher),
        }
    }

    fn start(&mut self) {
        let now = self.clients.now();
        self.written_off = now;
        if let Some(schedule) = &mut self.schedule {
            schedule.began = now as f64;
        }
        self.clients.start_sending();
    }

    fn send_for(&mut self, duration: Duration) -> Result<(), BenchError> {
        let until = self.clients.now() + duration.as_nanos() as u64;
        loop {
            let now = self.clients.now();
            if now >= until {
                return Ok(());
            }
            self.turn(now, until)?;
        }
    }

    /// Until everything sent has come, or nothing has for `patience`.
    fn drain(&mut self, patience: Duration) -> Result<(), BenchError> {
        let patience = patience.as_nanos() as u64;
        let mut progress = (self.progress(), self.clients.now());
        loop {
            let now = self.clients.now();
            let made = self.progress();
            if made != progress.0 {
                progress = (made, now);
            }
            if self.is_complete() || now >= progress.1 + patience {
                return Ok(());
            }
            self.turn(now, progress.1 + patience)?;
        }
    }

    fn turn(&mut self, now: u64, until: u64) -> Result<(), BenchError> {
        let mut wait = until - now;
        if let Some(schedule) = &mut self.schedule {
            while schedule.next_due() <= now {
                self.clients.tally.wake((schedule.next % schedule.publishers) as u32);
                schedule.next += 1;
            }
            wait = wait.min(schedule.next_due() - now);
            self.clients.send();
        }
        if self.writes_off && now > STALL + self.clients.tally.last_arrival.max(self.written_off) {
            self.written_off = now;
            self.clients.write_off();
        }
        self.clients.turn(Duration::from_nanos(wait.clamp(1, TICK)))
    }

    fn progress(&self) -> (u64, u64) {
        let steps = self
            .clients
            .publishers()
            .map(|each| each.sent + each.acknowledged + each.refused);
        (self.clients.tally.delivered, steps.sum())
    }

    fn is_complete(&self) -> bool {
        self.clients.publishers().all(Publisher::is_done) && {
            let counts = self.counts();
            counts.unanswered == 0 && counts.lost == 0
        }
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for publisher in self.clients.publishers() {
            counts.sent += publisher.sent;
            counts.acknowledged += publisher.acknowledged;
            counts.refused += publisher.refused;
            counts.unanswered += publisher.unanswered();
        }
        let tally = &self.clients.tally;
        counts.delivered = tally.delivered;
        counts.duplicates = tally.duplicates;
        counts.out_of_order = tally.out_of_order;
        counts.foreign = tally.foreign;
        counts.disconnected = self.clients.disconnected;
        let expected = (counts.sent - counts.refused - counts.unanswered) * self.subscribers_per_publisher;
        counts.lost = expected.saturating_sub(counts.delivered);
        counts
    }
}

/// What brokers and bench had used at one time.
struct Snapshot {
    own: Usage,
    pids: Vec<Usage>,
}

impl Snapshot {
    fn take(options: &Options) -> Result<Snapshot, BenchError> {
        Ok(Snapshot {
            own: process::own_usage()?,
            pids: usages(&options.pids)?,
        })
    }

    fn processes(&self, pids: &[u32], before: &Snapshot) -> Vec<Process> {
        let usages = self.pids.iter().zip(&before.pids);
        let of_pid = |(pid, (after, before)): (&u32, (&Usage, &Usage))| Process {
            pid: *pid,
            used: after.since(*before),
        };
        pids.iter().zip(usages).map(of_pid).collect()
    }
}

/// Longer than a loaded broker's pause. Nanoseconds.
const STALL: u64 = 1_000_000_000;
const TICK: u64 = 100_000_000;
