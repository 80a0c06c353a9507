//! (s) P1: the broker's own account of messages, beside what clients saw.
//!
//!     entered queues = are in queues + left queues        of every shard, as every node tells (`unaccounted`)
//!     left queues    = delivered + session ended           for no other reason: nothing here expires, no limit is set (`dropped`)
//!     are in queues  = 0                                   where every client has answered all that it got (`left-over`)
//!
//! A message that a broker drops and counts is an exemption of P1 only where a client or an operator asked for it, and no client
//! of these workloads does.
//!
//! Read from `observe` events about `counters`, after the drain: a node's metrics, by name and labels. The numbers of a shard's
//! queues are replicated; each node's are judged by themselves.

use super::model::{Index, Map, Model, NEVER, Outcome};
use super::{Findings, Limits};
use crate::history::Op;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

pub fn check(model: &Model, _: &Limits) -> Findings {
    let mut findings = Findings::default();
    // The last of each node.
    let mut told: BTreeMap<&str, (Index, &Value)> = BTreeMap::new();
    for (index, event) in model.events.iter().enumerate() {
        if let Op::Observe {
            about,
            node: Some(node),
            value,
        } = &event.op
            && about == "counters"
            && index >= model.phases.drain_end
        {
            told.insert(node, (index, value));
        }
    }
    let shared_at_most_once = model
        .holds
        .iter()
        .any(|hold| hold.group.is_some() && hold.grants.iter().any(|grant| grant.qos == 0));
    let mut entered = 0.0;
    for (node, (index, counters)) in &told {
        let answered = all_answered(model, *index);
        let mut queues: BTreeMap<String, Queue> = BTreeMap::new();
        for sample in samples(counters) {
            match sample.name {
                "lontra_queue_enqueued_total" => {
                    queues.entry(sample.label("shard")).or_default().entered += sample.value
                }
                "lontra_queue_messages" => queues.entry(sample.label("shard")).or_default().are_in += sample.value,
                "lontra_queue_left_total" => {
                    queues.entry(sample.label("shard")).or_default().left += sample.value;
                    let how = sample.label("how");
                    let allowed = match how.as_str() {
                        "delivered" | "session_ended" => true,
                        "outbox_full" => shared_at_most_once,
                        _ => false,
                    };
                    dropped(&sample, &how, allowed, (node, *index), &mut findings);
                }
                "lontra_messages_dropped_total" => {
                    // At QoS 0 an outbox that is full loses what it must; what is owed at QoS 1 is missed by `barrier`.
                    let reason = sample.label("reason");
                    let allowed = ["outbox_full", "worker_full"].contains(&reason.as_str());
                    dropped(&sample, &reason, allowed, (node, *index), &mut findings);
                }
                _ => {}
            }
        }
        for (shard, queue) in queues {
            entered += queue.entered;
            if queue.entered != queue.are_in + queue.left {
                let message = format!(
                    "shard {shard} as {node} tells: {} entered queues, {} are in them and {} left them",
                    queue.entered, queue.are_in, queue.left
                );
                findings.violation(("ledger", "unaccounted", "P1"), message, [*index]);
            }
            findings.greatest("ledger.left_over", queue.are_in);
            if answered && queue.are_in > 0.0 {
                let message = format!(
                    "shard {shard} as {node} tells: {} messages are in queues, and every client answered all that it got",
                    queue.are_in
                );
                findings.violation(("ledger", "left-over", "P1"), message, [*index]);
            }
        }
    }
    findings.metrics.insert("ledger.entered".into(), entered);
    if !told.is_empty() && entered == 0.0 && durable_deliveries(model) {
        let problem =
            "the nodes told their counters, and none of a message that entered a queue: nothing was accounted for";
        findings.unknown.push(problem.into());
    }
    findings
}

#[derive(Default)]
struct Queue {
    entered: f64,
    are_in: f64,
    left: f64,
}

fn dropped(sample: &Sample, how: &str, allowed: bool, (node, index): (&str, Index), findings: &mut Findings) {
    if sample.value == 0.0 {
        return;
    }
    findings.count(&format!("ledger.{how}"), sample.value);
    if !allowed {
        let message = format!(
            "{node} counts {} messages that were dropped as {how}, which no client asked for",
            sample.value
        );
        findings.violation(("ledger", "dropped", "P1"), message, [index]);
    }
}

/// Somebody got a message at QoS 2, or at QoS 1 in a session that outlives its connection: it was in a queue.
fn durable_deliveries(model: &Model) -> bool {
    model.deliveries.iter().any(|delivery| {
        let persistent = delivery.life.is_some_and(|life| model.lives[life as usize].persistent);
        delivery.message.is_some() && delivery.qos > 0 && persistent
    })
}

/// Nothing can be in a queue any more when counters are told at `told`, as far as clients know: every session that may still be
/// there is connected, answered all that came on its connection, and the broker had time to commit it; sessions that ended
/// were swept; nothing was published lately, and no will is about.
fn all_answered(model: &Model, told: Index) -> bool {
    let long_before = |index: Index, by: f64| index < told && model.seconds(told) - model.seconds(index) >= by;
    let connected: BTreeSet<u32> = model
        .connections
        .iter()
        .filter(|connection| connection.is_open_at(told))
        .filter_map(|connection| connection.life)
        .collect();
    let sessions = model
        .lives
        .iter()
        .enumerate()
        .filter(|(_, life)| life.persistent)
        .all(|(number, life)| match life.until_possible {
            NEVER => connected.contains(&(number as u32)),
            _ => long_before(life.until_sure, SWEPT),
        });
    // One that was not answered may have made a session.
    let known = model
        .connections
        .iter()
        .all(|connection| connection.outcome != Outcome::Info || (connection.clean && connection.expiry == 0));
    let mut completed: Map<(u32, u16), Index> = Map::default();
    for (index, event) in model.events.iter().enumerate() {
        if let Op::AckSent { conn, pid, packet, .. } = &event.op
            && packet == "pubcomp"
            && let Some(connection) = model.connection(*conn)
        {
            completed.insert((connection, *pid), index);
        }
    }
    let answered = model.deliveries.iter().all(|delivery| {
        if delivery.qos == 0 || model.connections[delivery.connection as usize].end.is_some() {
            return true;
        }
        let last = match delivery.qos {
            1 => delivery.acknowledged.map(|(index, _)| index),
            _ => completed.get(&(delivery.connection, delivery.pid)).copied(),
        };
        let last = last.filter(|index| *index > delivery.index && long_before(*index, SETTLED));
        last.is_some_and(|index| model.surely_read(delivery.connection, index))
    });
    let quiet = model.messages.iter().all(|published| {
        let over = published.outcome != Outcome::Info && long_before(published.end, SETTLED);
        !published.will && (published.qos == 0 || over)
    });
    sessions && known && answered && quiet
}

/// `name{label="value",…}` and its value.
struct Sample<'h> {
    name: &'h str,
    labels: &'h str,
    value: f64,
}

impl Sample<'_> {
    /// Labels of the broker come from closed enumerations: no commas, no quotes in them.
    fn label(&self, wanted: &str) -> String {
        let mut pairs = self.labels.split(',').filter_map(|pair| pair.split_once('='));
        let found = pairs.find(|(label, _)| *label == wanted);
        found.map_or(String::new(), |(_, value)| value.trim_matches('"').to_owned())
    }
}

fn samples(counters: &Value) -> impl Iterator<Item = Sample<'_>> {
    let all = counters.as_object().into_iter().flatten();
    all.filter_map(|(key, value)| {
        let (name, labels) = key.split_once('{').unwrap_or((key, ""));
        Some(Sample {
            name,
            labels: labels.trim_end_matches('}'),
            value: value.as_f64()?,
        })
    })
}

/// Seconds: acknowledgements and publishes are in the counters after a commit or two.
const SETTLED: f64 = 5.0;
/// Seconds: rows of sessions that ended are taken away in passes.
const SWEPT: f64 = 60.0;

#[cfg(test)]
mod tests {
    use super::super::{Validity, judge};
    use crate::history::Op;
    use crate::synthetic::{Subscribing, Writer, message, profile};
    use serde_json::json;

    /// One message of QoS 1 to one session, which answers it or does not; some time later a queue has one message.
    fn one_is_left(answer: bool, later: f64) -> Vec<String> {
        let mut write = Writer::new();
        let subscriber = write.connect("s", "n2", false, 600, false);
        let options = Subscribing {
            qos: 1,
            ..Subscribing::default()
        };
        write.subscribe("s", subscriber, "t", &options);
        let publisher = write.connect("p", "n1", true, 0, false);
        let message = message("p", "t", 1);
        write.publish_ok("p", publisher, &message, 1);
        write.receive("s", subscriber, &message, 1, 1);
        if answer {
            write.acknowledge("s", subscriber, &message, 1, "puback");
        }
        write.phase("drain");
        write.ping("s", subscriber);
        write.phase("final");
        write.wait(later);
        let counters = Op::Observe {
            about: "counters".into(),
            node: Some("n1".into()),
            value: json!({ "lontra_queue_enqueued_total{shard=\"3\"}": 1.0, "lontra_queue_messages{shard=\"3\"}": 1.0 }),
        };
        write.note("harness", counters);
        write.phase("end");
        let verdict = judge(&write.events, &profile());
        assert_ne!(verdict.valid, Validity::Unknown, "{:?}", verdict.unknown);
        verdict.classes().into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn what_is_in_a_queue_after_everything_was_answered_is_left_over() {
        assert_eq!(one_is_left(true, 10.0), ["left-over"]);
        assert!(one_is_left(true, 1.0).is_empty(), "it may be on its way to a commit");
        assert!(one_is_left(false, 10.0).is_empty(), "nobody answered it");
    }
}
