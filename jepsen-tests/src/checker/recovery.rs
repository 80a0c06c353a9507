//! (n) Back quickly: how long a fault keeps topics and clients without service.
//!
//!     fault ──────────────── outage of a topic ───────────▶ first PUBLISH that was sent after it and acknowledged
//!     fault, connection lost ── outage of a client ───────▶ its first CONNACK
//!
//! Times are what clients saw, so they include their own waiting. A topic or client that is not heard of before the next
//! fault begins is not measured. Then, after `heal`, every node that is asked serves within a bound.

use super::model::{Connection, Index, Model, NEVER, Outcome};
use super::{Findings, Limits};
use crate::history::{Op, Status};
use std::collections::BTreeMap;

pub fn check(model: &Model, limits: &Limits) -> Findings {
    let mut findings = Findings::default();
    let faults = faults(model);
    let mut topics = Vec::new();
    let mut clients = Vec::new();
    let publishes = publishes_by_topic(model);
    for (at, fault) in faults.iter().enumerate() {
        let until = faults.get(at + 1).map_or(model.events.len(), |next| next.index);
        for (topic, publishes) in &publishes {
            topics.extend(topic_outage(
                model,
                limits,
                fault,
                until,
                *topic,
                publishes,
                &mut findings,
            ));
        }
        for connection in &model.connections {
            clients.extend(client_outage(model, limits, fault, until, connection, &mut findings));
        }
    }
    findings.percentiles("recovery.topic_seconds", topics);
    findings.percentiles("recovery.client_seconds", clients);
    heal(model, limits, &mut findings);
    not_recovered(model, &mut findings);
    findings
}

/// A fault that surely began.
pub struct FaultStart<'h> {
    pub index: Index,
    pub family: &'h str,
    pub nodes: &'h [String],
}

pub fn faults<'h>(model: &Model<'h>) -> Vec<FaultStart<'h>> {
    let starts = model
        .events
        .iter()
        .enumerate()
        .filter_map(|(index, event)| match &event.op {
            Op::Fault {
                family,
                action,
                nodes,
                status: Status::Installed,
                ..
            } if action != "stop" => Some(FaultStart { index, family, nodes }),
            _ => None,
        });
    starts.collect()
}

/// Of each topic, its publishes at QoS 1 and 2, by invocation.
fn publishes_by_topic(model: &Model) -> BTreeMap<u32, Vec<u32>> {
    let mut topics: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (number, published) in model.messages.iter().enumerate() {
        if published.qos > 0 && !published.will {
            topics.entry(published.topic).or_default().push(number as u32);
        }
    }
    topics
}

fn topic_outage(
    model: &Model,
    limits: &Limits,
    fault: &FaultStart,
    until: Index,
    topic: u32,
    publishes: &[u32],
    findings: &mut Findings,
) -> Option<f64> {
    let of = |number: &u32| &model.messages[*number as usize];
    let from = publishes.partition_point(|number| of(number).invoke < fault.index);
    let tried = publishes[from..]
        .iter()
        .map(of)
        .take_while(|published| published.invoke < until);
    let acknowledged = tried.filter(|published| published.outcome == Outcome::Ok && published.end < until);
    let first = acknowledged.min_by_key(|published| published.end)?;
    let outage = model.seconds(first.end) - model.seconds(fault.index);
    // Nobody tried earlier: the time says nothing about the broker.
    let waited = publishes[from..]
        .first()
        .map_or(0.0, |number| model.seconds(of(number).invoke));
    let outage = outage - (waited - model.seconds(fault.index)).max(0.0);
    if limits.recovery.is_some_and(|limit| outage > limit) {
        let message = format!(
            "no publish on {} was acknowledged for {outage:.1} s after {} of {}",
            model.topics.name(topic),
            fault.family,
            fault.nodes.join(", "),
        );
        let events = [fault.index, first.invoke, first.end];
        findings.violation(("recovery", "slow-topic", "P10"), message, events);
    }
    Some(outage)
}

fn client_outage(
    model: &Model,
    limits: &Limits,
    fault: &FaultStart,
    until: Index,
    connection: &Connection,
    findings: &mut Findings,
) -> Option<f64> {
    let lost = connection.lost.filter(|lost| (fault.index..until).contains(lost))?;
    let node = model.nodes.name(connection.node);
    if !fault.nodes.iter().any(|hit| hit == node) || connection.outcome != Outcome::Ok {
        return None;
    }
    let later = |other: &&Connection| other.client == connection.client && other.invoke > lost;
    let from = model.connections.partition_point(|other| other.invoke < lost);
    let tried = model.connections[from..]
        .iter()
        .filter(later)
        .take_while(|other| other.invoke < until);
    let mut asked = None;
    for other in tried {
        let asked = *asked.get_or_insert(other.invoke);
        if other.outcome == Outcome::Ok && other.answer < until {
            let outage = model.seconds(other.answer) - model.seconds(asked);
            if limits.recovery.is_some_and(|limit| outage > limit) {
                let message = format!(
                    "{} lost {node} by {} and was not taken back for {outage:.1} s",
                    model.clients.name(connection.client),
                    fault.family,
                );
                let events = [fault.index, lost, asked, other.answer];
                findings.violation(("recovery", "slow-client", "P10"), message, events);
            }
            return Some(outage);
        }
    }
    None
}

/// Nodes that the harness could not bring back.
fn not_recovered(model: &Model, findings: &mut Findings) {
    for (index, event) in model.events.iter().enumerate() {
        if let Op::Observe { about, node, value } = &event.op
            && about == "no-recovery"
        {
            let node = node.as_deref().unwrap_or("a node");
            let why = value.as_str().and_then(|why| why.lines().next()).unwrap_or_default();
            // As `Failure::NodeEnded` is told: it refused on its own account, which is safe and still not back.
            let refused = why.contains(" ended with exit status");
            let (class, what) = match refused {
                true => ("refused-start", "refused to start"),
                false => ("no-recovery", "did not come back"),
            };
            let message = format!("{node} {what} after healing: {why}");
            findings.violation(("recovery", class, "P10"), message, [index]);
        }
    }
}

/// The first operation that each node answers after `heal`.
fn heal(model: &Model, limits: &Limits, findings: &mut Findings) {
    let Some(healed) = model.phases.start("heal") else {
        return;
    };
    let mut asked: BTreeMap<u32, Index> = BTreeMap::new();
    let mut served: BTreeMap<u32, Index> = BTreeMap::new();
    for connection in model.connections.iter().filter(|connection| connection.invoke > healed) {
        asked.entry(connection.node).or_insert(connection.invoke);
        if connection.outcome == Outcome::Ok {
            let at = served.entry(connection.node).or_insert(connection.answer);
            *at = connection.answer.min(*at);
        }
    }
    for exchange in model.exchanges.iter().filter(|exchange| exchange.sent > healed) {
        let node = model.connections[exchange.connection as usize].node;
        asked.entry(node).or_insert(exchange.sent);
        let at = served.entry(node).or_insert(exchange.answered);
        *at = exchange.answered.min(*at);
    }
    for (node, asked) in asked {
        let name = model.nodes.name(node);
        let at = served.get(&node).copied().unwrap_or(NEVER);
        let took = model.seconds(at) - model.seconds(healed);
        if at == NEVER {
            let message = format!("{name} served nobody after healing");
            findings.violation(("recovery", "no-recovery", "P10"), message, [healed, asked]);
        } else if limits.heal.is_some_and(|limit| took > limit) {
            let message = format!("{name} served its first operation {took:.1} s after healing");
            findings.violation(("recovery", "slow-heal", "P10"), message, [healed, asked, at]);
        }
        if at != NEVER {
            findings.greatest("recovery.heal_seconds", took);
        }
    }
}
