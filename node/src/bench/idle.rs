//! Connections that do nothing: how fast they come, and what each costs.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::BenchError;
use super::clients::{Client, Clients, Role, source};
use super::options::Options;
use super::process;
use super::report::{self, Process};
use super::run::{run_id, usages};

#[derive(Debug)]
pub struct IdleReport {
    kind: &'static str,
    version: &'static str,
    brokers: Vec<String>,
    steps: Vec<Step>,
    bench: process::Usage,
}

/// What there was at a number of connections.
#[derive(Debug)]
struct Step {
    connections: u32,
    /// For those since the step before.
    connects_per_second: f64,
    /// CPU seconds since the step before.
    processes: Vec<Process>,
}

/// # Errors
/// No broker, or not for all connections.
pub fn run(options: &Options, brokers: &[SocketAddr]) -> Result<IdleReport, BenchError> {
    let run = run_id();
    let mut counts = options.steps.clone();
    counts.sort_unstable();
    let total = counts.last().copied().unwrap_or(0) as usize;
    let mut clients = Clients::new(
        options,
        run,
        (0..total).map(|i| client(options, brokers, run, i)).collect(),
    )?;
    let mut before = usages(&options.pids)?;
    let own_before = process::own_usage()?;
    let mut steps = Vec::with_capacity(counts.len());
    let mut connected = 0;
    for connections in counts {
        let began = Instant::now();
        clients.connect(connected as usize..connections as usize)?;
        let seconds = began.elapsed().as_secs_f64();
        hold(&mut clients, options.settle)?;
        let after = usages(&options.pids)?;
        let used = options.pids.iter().zip(after.iter().zip(&before));
        steps.push(Step {
            connections,
            connects_per_second: f64::from(connections - connected) / seconds,
            processes: used
                .map(|(pid, (after, before))| Process {
                    pid: *pid,
                    used: after.since(*before),
                })
                .collect(),
        });
        (before, connected) = (after, connections);
    }
    let bench = process::own_usage()?.since(own_before);
    clients.close()?;
    Ok(IdleReport {
        kind: match (options.raw, options.persistent) {
            (true, _) => "TCP",
            (false, false) => "clean",
            (false, true) => "persistent",
        },
        version: report::version(options.version()),
        brokers: options.brokers.clone(),
        steps,
        bench,
    })
}

fn client(options: &Options, brokers: &[SocketAddr], run: u64, index: usize) -> Client {
    let broker = brokers[index % brokers.len()];
    let role = if options.raw { Role::Raw } else { Role::Idle };
    let mut client = Client::new(broker, format!("i{run:x}-{index}"), role);
    client.is_persistent = options.persistent;
    client.source = source(broker, options.sources, index);
    client
}

/// Watches that connections stay.
fn hold(clients: &mut Clients, duration: Duration) -> Result<(), BenchError> {
    let began = Instant::now();
    while began.elapsed() < duration {
        clients.turn(TICK)?;
    }
    // Nobody connects: this tells what broke in between.
    clients.connect(0..0)
}

impl IdleReport {
    pub fn print(&self, as_json: bool) -> String {
        if as_json { self.json().to_string() } else { self.table() }
    }

    fn json(&self) -> Value {
        let step = |step: &Step| {
            json!({
                "connections": step.connections,
                "connects_per_second": step.connects_per_second,
                "processes": step.processes.iter().map(report::process).collect::<Vec<_>>(),
            })
        };
        json!({
            "scenario": "idle",
            "kind": self.kind,
            "version": self.version,
            "brokers": self.brokers,
            "steps": self.steps.iter().map(step).collect::<Vec<_>>(),
            "rss_bytes_per_connection": self.rss_bytes_per_connection(),
            "bench": report::usage(self.bench),
        })
    }

    fn table(&self) -> String {
        let mut text = format!("idle: {} connections, MQTT {}\n", self.kind, self.version);
        for step in &self.steps {
            text += &format!("{} connections, {:.0}/s\n", step.connections, step.connects_per_second);
            for process in &step.processes {
                text += &format!("  pid {:<10} {}\n", process.pid, report::in_words(process.used));
            }
        }
        if let Some(bytes) = self.rss_bytes_per_connection() {
            text += &format!("{bytes:.0} bytes resident per connection, of all given processes\n");
        }
        text + &format!("bench itself   {}", report::in_words(self.bench))
    }

    /// The slope between the first and the last step.
    fn rss_bytes_per_connection(&self) -> Option<f64> {
        let (first, last) = (self.steps.first()?, self.steps.last()?);
        let rss = |step: &Step| -> f64 { step.processes.iter().map(|each| each.used.rss_bytes as f64).sum() };
        let connections = last
            .connections
            .checked_sub(first.connections)
            .filter(|more| *more > 0)?;
        (!last.processes.is_empty()).then(|| (rss(last) - rss(first)) / f64::from(connections))
    }
}

const TICK: Duration = Duration::from_millis(100);
