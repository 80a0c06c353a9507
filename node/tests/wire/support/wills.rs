//! What wills are expected, and what a witness saw of them. (P7)

use super::client::{Client, Gone};
use super::codec::{Packet, Publish};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

/// One will, told apart by its topic `wills/<name>`.
#[derive(Clone, Debug)]
pub struct Expected {
    pub name: String,
    pub least: usize,
    pub most: usize,
    pub qos: u8,
    /// Not before, and not after this and a bound.
    pub from: Option<Instant>,
    pub bound: Duration,
}

impl Expected {
    pub fn never(name: &str) -> Expected {
        Expected {
            name: name.into(),
            least: 0,
            most: 0,
            qos: 0,
            from: None,
            bound: BOUND,
        }
    }

    pub fn at_most_once(name: &str, qos: u8) -> Expected {
        Expected {
            most: 1,
            qos,
            ..Expected::never(name)
        }
    }

    /// `after` the connection `ended`.
    pub fn once(name: &str, qos: u8, ended: Instant, after: Duration) -> Expected {
        Expected {
            least: 1,
            from: Some(ended + after),
            ..Expected::at_most_once(name, qos)
        }
    }

    pub fn within(self, bound: Duration) -> Expected {
        Expected { bound, ..self }
    }
}

/// Arrivals by topic.
pub type Arrivals = BTreeMap<String, Vec<(Instant, Publish)>>;

/// Notes what comes, while `rows` run and for `more` after they have ended; returns what they gave.
pub async fn look<T>(
    witness: &mut Client,
    rows: impl Future<Output = T>,
    more: Duration,
    arrivals: &mut Arrivals,
) -> T {
    let mut rows = std::pin::pin!(rows);
    let given = loop {
        tokio::select! {
            packet = witness.packet() => note(witness, packet, arrivals).await,
            given = &mut rows => break given,
        }
    };
    let until = tokio::time::Instant::now() + more;
    while let Ok(packet) = timeout_at(until, witness.packet()).await {
        note(witness, packet, arrivals).await;
    }
    given
}

/// Notes what comes until `topics` have come, or for `limit`.
pub async fn look_for(witness: &mut Client, topics: &[String], limit: Duration, arrivals: &mut Arrivals) {
    let until = tokio::time::Instant::now() + limit;
    while topics.iter().any(|topic| !arrivals.contains_key(topic)) {
        let Ok(packet) = timeout_at(until, witness.packet()).await else {
            return;
        };
        note(witness, packet, arrivals).await;
    }
}

async fn note(witness: &mut Client, packet: Result<Packet, Gone>, arrivals: &mut Arrivals) {
    match packet {
        Ok(Packet::Publish(publish)) => {
            let now = Instant::now();
            match publish.qos {
                1 => witness.acknowledge(publish.pid).await,
                2 => witness.complete(publish.pid).await,
                _ => {}
            }
            arrivals.entry(publish.topic.clone()).or_default().push((now, publish));
        }
        other => panic!("to the witness: {other:?}"),
    }
}

/// What is wrong, in words; prints the counts and the latest.
pub fn judge(test: &str, expected: &[Expected], arrivals: &Arrivals) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut slowest = (Duration::ZERO, "");
    let (mut came, mut late, mut early) = (0, 0, 0);
    for row in expected {
        let topic = format!("wills/{}", row.name);
        let none = Vec::new();
        let arrived = arrivals.get(&topic).unwrap_or(&none);
        came += arrived.len();
        if arrived.len() < row.least || arrived.len() > row.most {
            wrong.push(format!(
                "{}: {} wills, {} to {} expected",
                row.name,
                arrived.len(),
                row.least,
                row.most
            ));
        }
        for (at, publish) in arrived {
            if row.most > 0 && (publish.qos != row.qos || publish.retain) {
                wrong.push(format!("{}: {publish:?}", row.name));
            }
            let Some(from) = row.from else { continue };
            let after = at.saturating_duration_since(from);
            if *at < from {
                early += 1;
                wrong.push(format!("{}: {:?} too early", row.name, from - *at));
            }
            if after > row.bound {
                late += 1;
                wrong.push(format!(
                    "{}: {after:?} after its time, {:?} allowed",
                    row.name, row.bound
                ));
            }
            if after > slowest.0 {
                slowest = (after, &row.name);
            }
        }
    }
    let known = |topic: &String| expected.iter().any(|row| *topic == format!("wills/{}", row.name));
    for topic in arrivals.keys().filter(|topic| !known(topic)) {
        wrong.push(format!("{topic}: nobody expects a will there"));
    }
    println!(
        "{test}: {} rows, {came} wills came, {early} early, {late} late, slowest {:?} after its time ({})",
        expected.len(),
        slowest.0,
        slowest.1
    );
    wrong
}

/// How long after its time a will may come while all nodes live: a tick of the publisher of wills, a commit in meta and
/// one in a shard, on a busy machine.
pub const BOUND: Duration = Duration::from_secs(2);
