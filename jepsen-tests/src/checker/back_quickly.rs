//! (n) P10: with a majority alive, publishing on every topic works again within a bound after a fault, whoever lost its node is
//! taken back by another within it, and clients of the other nodes stay connected.
//!
//!     fault on n1 ─── first try at n2 or n3 ────── acknowledged ──▶ the topic's outage
//!     connection to n1 lost ── first CONNECT to n2 or n3 ── CONNACK ──▶ the client's outage
//!
//! What a client spends on the nodes that were hit is its own bad luck: it does not count. Nor do moments in which the harness
//! itself stood still (`observe` events about `stall`, milliseconds).
//!
//! Judged are faults of [`JUDGED`] that leave nodes that they do not touch, and begin when all is well: every node is ready, and no other fault was at work in the
//! last [`QUIET`] seconds. The others are counted only.

use super::model::{Connection, Index, Model, NEVER, Outcome};
use super::{Findings, Limits};
use crate::history::{End, Op, Status};
use std::collections::{BTreeMap, BTreeSet};

pub fn check(model: &Model, limits: &Limits) -> Findings {
    let mut findings = Findings::default();
    let episodes = episodes(model);
    let (mut topics, mut clients) = (Vec::new(), Vec::new());
    for (at, episode) in episodes.iter().enumerate() {
        if !JUDGED.contains(&episode.family) {
            continue;
        }
        if !leaves_majority(model, episode) {
            findings.count("back.no_majority", 1.0);
            continue;
        }
        let busy = |other: &Episode| {
            other.start < episode.start && model.seconds(episode.start) - model.seconds(other.stop) < QUIET
        };
        if !episode.all_ready || episodes.iter().any(busy) {
            findings.count("back.not_judged", 1.0);
            continue;
        }
        let judge = Judge {
            model,
            limits,
            episode,
            until: episodes.get(at + 1).map_or(model.events.len(), |next| next.start),
            stalls: stalls(model),
        };
        let before = findings.violations.len();
        let outages = (judge.topics(&mut findings), judge.clients(&mut findings));
        judge.others_stay(&mut findings);
        // Where nobody asked for anything meanwhile, nothing was judged.
        let judged = !outages.0.is_empty() || findings.violations.len() > before;
        findings.count(if judged { "back.faults" } else { "back.nobody_asked" }, 1.0);
        topics.extend(outages.0);
        clients.extend(outages.1);
    }
    findings.percentiles("back.topic_seconds", topics);
    findings.percentiles("back.client_seconds", clients);
    findings
}

/// How many faults were judged, with service that was seen to come back or not to.
pub fn judged(model: &Model) -> u64 {
    let metrics = check(model, &Limits::default()).metrics;
    metrics.get("back.faults").map_or(0, |count| *count as u64)
}

/// A fault from its beginning to its end.
struct Episode<'h> {
    start: Index,
    /// [`NEVER`]: it was not seen to end. Of what happens at once: its beginning.
    stop: Index,
    family: &'h str,
    nodes: &'h [String],
    /// Nodes whose clients it may cost something.
    hit: Vec<&'h str>,
    all_ready: bool,
}

fn episodes<'h>(model: &Model<'h>) -> Vec<Episode<'h>> {
    let mut episodes: Vec<Episode> = Vec::new();
    let mut starting: BTreeSet<&str> = BTreeSet::new();
    for (index, event) in model.events.iter().enumerate() {
        match &event.op {
            Op::Node { node, event, .. } if event == "started" => drop(starting.insert(node)),
            Op::Node { node, event, .. } if event == "ready" => drop(starting.remove(node.as_str())),
            Op::Fault {
                family,
                action,
                nodes,
                value,
                status: Status::Installed,
            } => {
                if action == "stop" {
                    let open = episodes.iter_mut().rev().filter(|episode| episode.stop == NEVER);
                    for episode in open.filter(|episode| episode.family == family) {
                        episode.stop = index;
                    }
                    continue;
                }
                episodes.push(Episode {
                    start: index,
                    stop: if action == "once" { index } else { NEVER },
                    family,
                    nodes,
                    hit: hit(model, nodes, value),
                    all_ready: starting.is_empty(),
                });
            }
            _ => {}
        }
    }
    episodes
}

/// Of a pair that cannot reach each other either may be taken Down: both sides of a bridge are hit, and a peer that alone does
/// not hear a node.
fn hit<'h>(model: &Model<'h>, nodes: &'h [String], value: &'h serde_json::Value) -> Vec<&'h str> {
    let names = |value: &'h serde_json::Value| value.as_array().into_iter().flatten().filter_map(|name| name.as_str());
    let mut hit: Vec<&str> = nodes.iter().map(String::as_str).collect();
    hit.extend(value["halves"].as_array().into_iter().flatten().flat_map(names));
    let peers: Vec<&str> = names(&value["peers"]).collect();
    // Cut off from all others, or from one.
    if hit.len() + peers.len() < model.nodes.iter().count() {
        hit.extend(peers);
    }
    hit.extend(names(&value["circle"]));
    hit.sort_unstable();
    hit.dedup();
    hit
}

/// Of a ring of five no three see each other; else a side that is whole has the majority, with the bridge or without.
fn leaves_majority(model: &Model, episode: &Episode) -> bool {
    episode.hit.len() < model.nodes.iter().count()
}

/// When the harness stood still, and for how many seconds.
fn stalls(model: &Model) -> Vec<(Index, f64)> {
    let stall = |(index, event): (usize, &crate::history::Event)| match &event.op {
        Op::Observe { about, value, .. } if about == "stall" => Some((index, value.as_f64()? / 1e3)),
        _ => None,
    };
    model.events.iter().enumerate().filter_map(stall).collect()
}

struct Judge<'m, 'h> {
    model: &'m Model<'h>,
    limits: &'m Limits,
    episode: &'m Episode<'h>,
    /// The next fault.
    until: Index,
    stalls: Vec<(Index, f64)>,
}

impl Judge<'_, '_> {
    /// Seconds of the harness's time between two events.
    fn between(&self, from: Index, until: Index) -> f64 {
        let until = until.min(self.model.events.len());
        let stalled = self.stalls.iter().filter(|(at, _)| (from..until).contains(at));
        let stalled: f64 = stalled.map(|(_, seconds)| seconds).sum();
        (self.model.seconds(until) - self.model.seconds(from) - stalled).max(0.0)
    }

    fn is_hit(&self, connection: u32) -> bool {
        let node = self.model.node_of(connection);
        self.episode.hit.contains(&node)
    }

    fn topics(&self, findings: &mut Findings) -> Vec<f64> {
        let model = self.model;
        // First and last try at a healthy node.
        let mut asked: BTreeMap<u32, (Index, Index)> = BTreeMap::new();
        let mut answered: BTreeMap<u32, Index> = BTreeMap::new();
        let window = self.episode.start..self.until;
        for published in &model.messages {
            if published.qos == 0 || published.will || !window.contains(&published.invoke) {
                continue;
            }
            let healthy = published
                .sends
                .first()
                .is_some_and(|(connection, _)| !self.is_hit(*connection));
            if healthy {
                let (first, last) = asked
                    .entry(published.topic)
                    .or_insert((published.invoke, published.invoke));
                (*first, *last) = (published.invoke.min(*first), published.invoke.max(*last));
            }
            if published.outcome == Outcome::Ok && published.end < self.until {
                let first = answered.entry(published.topic).or_insert(published.end);
                *first = published.end.min(*first);
            }
        }
        let mut outages = Vec::new();
        for (topic, (asked, last)) in asked {
            let end = answered.get(&topic).copied();
            // As long as nothing was acknowledged, only tries tell that the topic is still out of service.
            let outage = self.between(asked, end.map_or(last, |end| end.max(asked)));
            let what = format!("no publish on {} was acknowledged", model.topics.name(topic));
            self.slow(outage, &what, [asked, end.unwrap_or(NEVER)], findings);
            outages.extend(end.map(|_| outage));
        }
        outages
    }

    fn clients(&self, findings: &mut Findings) -> Vec<f64> {
        let model = self.model;
        let mut outages = Vec::new();
        for (number, connection) in model.connections.iter().enumerate() {
            let lost = connection
                .lost
                .filter(|lost| (self.episode.start..self.until).contains(lost));
            let Some(lost) = lost.filter(|_| connection.outcome == Outcome::Ok && self.is_hit(number as u32)) else {
                continue;
            };
            let Some((outage, asked, end)) = self.taken_back(connection.client, lost) else {
                continue;
            };
            let what = format!(
                "{} lost {} and was not taken back",
                model.clients.name(connection.client),
                model.nodes.name(connection.node)
            );
            self.slow(outage, &what, [asked, end.unwrap_or(NEVER)], findings);
            outages.extend(end.map(|_| outage));
        }
        outages
    }

    /// How long a client asked healthy nodes after `lost`, since when, and which CONNACK ended it.
    fn taken_back(&self, client: u32, lost: Index) -> Option<(f64, Index, Option<Index>)> {
        let model = self.model;
        let from = model.connections.partition_point(|other| other.invoke < lost);
        let tries = model.connections.iter().enumerate().skip(from);
        let tries = tries.filter(|(_, other)| other.client == client);
        let mut asked = None;
        let mut elsewhere = 0.0;
        let mut last = lost;
        for (number, other) in tries.take_while(|(_, other)| other.invoke < self.until) {
            let hit = self.is_hit(number as u32);
            if asked.is_none() && hit && other.outcome != Outcome::Ok {
                continue;
            }
            let asked = *asked.get_or_insert(other.invoke);
            if other.outcome == Outcome::Ok {
                return Some((self.between(asked, other.answer) - elsewhere, asked, Some(other.answer)));
            }
            let answer = other.answer.min(self.until);
            last = answer;
            if hit {
                elsewhere += self.between(other.invoke, answer);
            }
        }
        let asked = asked?;
        Some((self.between(asked, last) - elsewhere, asked, None))
    }

    fn slow(&self, outage: f64, what: &str, events: [Index; 2], findings: &mut Findings) {
        if self.limits.back.is_some_and(|limit| outage > limit) {
            let message = format!("{what} for {outage:.1} s after {}", self.name());
            let events = events.into_iter().chain([self.episode.start]);
            findings.violation(("back_quickly", "slow-recovery", "P10"), message, events);
        }
    }

    fn name(&self) -> String {
        format!("{} of {}", self.episode.family, self.episode.nodes.join(", "))
    }

    fn others_stay(&self, findings: &mut Findings) {
        let model = self.model;
        let window = self.episode.start..self.episode.stop.min(self.until);
        for (number, connection) in model.connections.iter().enumerate() {
            let lost = connection.lost.filter(|lost| window.contains(lost));
            let before = connection.outcome == Outcome::Ok && connection.answer < self.episode.start;
            let Some(lost) = lost.filter(|_| before && !self.is_hit(number as u32)) else {
                continue;
            };
            let by_broker = matches!(
                &model.events[lost].op,
                Op::ConnLost { how: End::Closed, reason, .. } if reason.is_none_or(|reason| !CLIENTS_MATTER.contains(&reason))
            );
            if by_broker && !taken_over(model, connection, lost) {
                let message = format!(
                    "{} was let go by {}, which {} did not touch",
                    model.clients.name(connection.client),
                    model.nodes.name(connection.node),
                    self.name(),
                );
                let events = [self.episode.start, connection.answer, lost];
                findings.violation(("back_quickly", "healthy-disconnected", "P10"), message, events);
            }
        }
    }
}

/// Another CONNECT of its client may have ended it.
fn taken_over(model: &Model, connection: &Connection, lost: Index) -> bool {
    model
        .connections
        .iter()
        .any(|other| other.client == connection.client && other.invoke > connection.invoke && other.invoke < lost)
}

/// What leaves a majority alive and connected.
pub const JUDGED: [&str; 15] = [
    "kill",
    "kill-leader",
    "kill-meta-leader",
    "kill-owner",
    "pause",
    "partition-isolate",
    "partition-meta-leader",
    "partition-halves",
    "partition-ring",
    "partition-bridge",
    "partition-one-way",
    "partition-stall",
    "snapshot",
    "power-one",
    "leader-transfer",
];
/// Seconds: a node that was healed has its links again.
const QUIET: f64 = 2.0;
/// Session taken over, Quota exceeded: the client's own matter.
const CLIENTS_MATTER: [u8; 2] = [0x8e, 0x97];
