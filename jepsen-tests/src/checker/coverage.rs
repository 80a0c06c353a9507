//! (p) A run proves something only if enough happened in it. What must have happened is data.
//!
//! Of each requirement the number that was found is reported beside the number that is needed.

use super::model::{Exchange, ExchangeKind, Model, NEVER, Outcome};
use super::recovery::faults;
use super::{back_quickly, damage};
use crate::history::{Kind, Op, Status};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Requirement {
    /// Operations of a kind that ended with `ok`; `phase` of their invocation, or any.
    Ops {
        op: String,
        #[serde(default)]
        phase: Option<String>,
        at_least: u64,
    },
    /// Faults of a family (or any) that were surely installed.
    Faults {
        #[serde(default)]
        family: Option<String>,
        at_least: u64,
    },
    /// Changes of a group's leader or term in `observe` events about `leaders`.
    Elections { at_least: u64 },
    /// Sessions resumed with Session Present 1 on another node than before.
    SessionsMoved { at_least: u64 },
    /// Connections taken over while they were open.
    TakeOvers { at_least: u64 },
    /// Faults that hit a node with this role, as `value.roles` tells: `leader`, `follower`, `meta-leader`, `owner`.
    Hit { role: String, at_least: u64 },
    /// Bytes written and not synced that a power cut really lost: `value.bytes_lost`.
    UnsyncedBytesLost { at_least: u64 },
    /// Snapshots installed: the sum of each node's increase of `value.snapshots_installed` in `observe` events about
    /// `snapshots`.
    Snapshots { at_least: u64 },
    /// QoS 1 and 2 messages that were sent and not acknowledged when a fault began.
    UnackedAtFault { at_least: u64 },
    /// Messages that reached a subscriber.
    Deliveries { at_least: u64 },
    /// Wills that had to be published.
    WillsDue { at_least: u64 },
    /// Damage that was really done to a node's files, and was noticed or compared away (`damage.rs`).
    Damaged { at_least: u64 },
    /// Faults after which P10 was judged: with service seen to come back, or not to (`back_quickly.rs`).
    JudgedFaults { at_least: u64 },
    /// Limits that bit, as `value.bit` tells when they end: turns that were refused, waits, pages.
    LimitsMet { at_least: u64 },
    /// Frames that faults of a family (or any) really kept from their receiver: `value.frames_dropped` when they end.
    FramesDropped {
        #[serde(default)]
        family: Option<String>,
        at_least: u64,
    },
    /// Processes that were seen to stand still while they were paused: `value.stopped` names their nodes when it ends.
    Stopped { at_least: u64 },
    /// `observe` events about something.
    Observed { about: String, at_least: u64 },
}

/// A requirement and what was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Covered {
    pub requirement: Requirement,
    pub found: u64,
    pub needed: u64,
    pub met: bool,
}

impl fmt::Display for Covered {
    fn fmt(&self, to: &mut fmt::Formatter) -> fmt::Result {
        let text = serde_json::to_string(&self.requirement).unwrap_or_default();
        write!(to, "not covered: {text} found {} of {}", self.found, self.needed)
    }
}

pub fn check(model: &Model, requirements: &[Requirement]) -> Vec<Covered> {
    let rows = requirements.iter().map(|requirement| {
        let (found, needed) = count(model, requirement);
        Covered {
            requirement: requirement.clone(),
            found,
            needed,
            met: found >= needed,
        }
    });
    rows.collect()
}

fn count(model: &Model, requirement: &Requirement) -> (u64, u64) {
    match requirement {
        Requirement::Ops { op, phase, at_least } => (ops(model, op, phase.as_deref()), *at_least),
        Requirement::Faults { family, at_least } => {
            let found = faults(model)
                .iter()
                .filter(|fault| family.as_ref().is_none_or(|family| fault.family == family))
                .count();
            (found as u64, *at_least)
        }
        Requirement::Elections { at_least } => (elections(model), *at_least),
        Requirement::SessionsMoved { at_least } => (sessions_moved(model), *at_least),
        Requirement::TakeOvers { at_least } => (take_overs(model), *at_least),
        Requirement::Hit { role, at_least } => (hits(model, role), *at_least),
        Requirement::UnsyncedBytesLost { at_least } => (bytes_lost(model), *at_least),
        Requirement::Snapshots { at_least } => (snapshots(model), *at_least),
        Requirement::UnackedAtFault { at_least } => (unacked_at_fault(model), *at_least),
        Requirement::Deliveries { at_least } => {
            let live = model.deliveries.iter().filter(|delivery| delivery.message.is_some());
            (live.count() as u64, *at_least)
        }
        Requirement::WillsDue { at_least } => {
            let due = model.connections.iter().filter(|connection| {
                let graceful = connection.disconnect.is_some_and(|disconnect| disconnect.reason == 0);
                connection.will.is_some() && connection.end.is_some() && !graceful
            });
            (due.count() as u64, *at_least)
        }
        Requirement::Damaged { at_least } => (damage::judged(model), *at_least),
        Requirement::JudgedFaults { at_least } => (back_quickly::judged(model), *at_least),
        Requirement::LimitsMet { at_least } => {
            let bit = ends(model, None).filter(|value| value["bit"].as_u64() > Some(0));
            (bit.count() as u64, *at_least)
        }
        Requirement::FramesDropped { family, at_least } => {
            let dropped = ends(model, family.as_deref()).filter_map(|value| value["frames_dropped"].as_u64());
            (dropped.sum(), *at_least)
        }
        Requirement::Stopped { at_least } => {
            let stopped = ends(model, None).filter_map(|value| value["stopped"].as_array());
            (stopped.map(|nodes| nodes.len() as u64).sum(), *at_least)
        }
        Requirement::Observed { about, at_least } => {
            let seen = observations(model, about).count();
            (seen as u64, *at_least)
        }
    }
}

fn ops(model: &Model, wanted: &str, phase: Option<&str>) -> u64 {
    let in_phase = |index| phase.is_none_or(|phase| model.phases.at(index) == phase);
    let exchanges = |kind: fn(&Exchange) -> bool| {
        let found = model.exchanges.iter().filter(|at| kind(at) && in_phase(at.sent));
        found.count() as u64
    };
    let found = match wanted {
        "publish" => model
            .messages
            .iter()
            .filter(|published| published.outcome == Outcome::Ok && in_phase(published.invoke))
            .count(),
        "connect" => model
            .connections
            .iter()
            .filter(|connection| connection.outcome == Outcome::Ok && in_phase(connection.invoke))
            .count(),
        "recv" => model
            .deliveries
            .iter()
            .filter(|delivery| in_phase(delivery.index))
            .count(),
        "subscribe" => return exchanges(|at| at.kind == ExchangeKind::Subscribe),
        "unsubscribe" => return exchanges(|at| at.kind == ExchangeKind::Unsubscribe),
        "ping" => return exchanges(|at| at.kind == ExchangeKind::Ping),
        other => model
            .events
            .iter()
            .enumerate()
            .filter(|(index, event)| event.kind == Kind::Ok && in_phase(*index) && op_name(&event.op) == other)
            .count(),
    };
    found as u64
}

/// Its `f`.
pub fn op_name(op: &Op) -> &'static str {
    match op {
        Op::Phase { .. } => "phase",
        Op::Connect { .. } => "connect",
        Op::ConnLost { .. } => "conn-lost",
        Op::Disconnect { .. } => "disconnect",
        Op::CrashClient { .. } => "crash-client",
        Op::Subscribe { .. } => "subscribe",
        Op::Unsubscribe { .. } => "unsubscribe",
        Op::Publish { .. } => "publish",
        Op::Resend { .. } => "resend",
        Op::PublishComplete { .. } => "publish-complete",
        Op::Recv { .. } => "recv",
        Op::AckSent { .. } => "ack-sent",
        Op::Ping { .. } => "ping",
        Op::ReadRetained { .. } => "read-retained",
        Op::Fault { .. } => "fault",
        Op::Node { .. } => "node",
        Op::Observe { .. } => "observe",
        Op::Panic { .. } => "panic",
        Op::HarnessFailure { .. } => "harness-failure",
    }
}

fn observations<'m>(
    model: &'m Model,
    wanted: &'m str,
) -> impl Iterator<Item = (Option<&'m str>, &'m serde_json::Value)> {
    model.events.iter().filter_map(move |event| match &event.op {
        Op::Observe { about, node, value } if about == wanted => Some((node.as_deref(), value)),
        _ => None,
    })
}

/// `observe` about `leaders`: `{group: {"leader": node, "term": number}}`, from whichever node.
pub fn leaders<'m>(model: &'m Model) -> Vec<(usize, &'m str, &'m str, u64)> {
    let mut seen = Vec::new();
    for (index, event) in model.events.iter().enumerate() {
        let Op::Observe { about, value, .. } = &event.op else {
            continue;
        };
        for (group, state) in value.as_object().filter(|_| about == "leaders").into_iter().flatten() {
            if let (Some(leader), Some(term)) = (state["leader"].as_str(), state["term"].as_u64()) {
                seen.push((index, group.as_str(), leader, term));
            }
        }
    }
    seen
}

/// Terms seen once faults had begun that are newer than what their group had before: the elections at the start of a cluster
/// show nothing.
fn elections(model: &Model) -> u64 {
    let began = model.phases.start("faults").unwrap_or(0);
    let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
    let mut elections = 0;
    for (index, group, _, term) in leaders(model) {
        let known = newest.insert(group, term);
        let newer = known.is_some_and(|known| term > known);
        if newer && index > began {
            elections += 1;
        }
        if let Some(known) = known.filter(|known| *known > term) {
            newest.insert(group, known);
        }
    }
    elections
}

fn sessions_moved(model: &Model) -> u64 {
    let moved = model
        .lives
        .iter()
        .flat_map(|life| life.connections.windows(2))
        .filter(|pair| {
            let [before, after] = [pair[0], pair[1]].map(|at| &model.connections[at as usize]);
            before.node != after.node && after.session_present == Some(true)
        });
    moved.count() as u64
}

fn take_overs(model: &Model) -> u64 {
    let taken = model
        .lives
        .iter()
        .flat_map(|life| life.connections.windows(2))
        .filter(|pair| {
            let [before, after] = [pair[0], pair[1]].map(|at| &model.connections[at as usize]);
            before.end.unwrap_or(NEVER) > after.invoke
        });
    taken.count() as u64
}

fn fault_values<'m>(model: &'m Model) -> impl Iterator<Item = &'m serde_json::Value> {
    model.events.iter().filter_map(|event| match &event.op {
        Op::Fault {
            value,
            status: Status::Installed,
            ..
        } => Some(value),
        _ => None,
    })
}

fn hits(model: &Model, wanted: &str) -> u64 {
    // By node, as `nemesis/target.rs` tells them.
    let hit = fault_values(model).filter(|value| {
        let mut nodes = value["roles"].as_object().into_iter().flatten();
        nodes.any(|(_, roles)| has_role(roles, wanted))
    });
    hit.count() as u64
}

fn has_role(roles: &serde_json::Value, wanted: &str) -> bool {
    let some = |groups: &serde_json::Value| groups.as_array().is_some_and(|groups| !groups.is_empty());
    match wanted {
        "leader" => some(&roles["leads"]),
        "follower" => some(&roles["follows"]),
        "meta-leader" => roles["meta_leader"] == true,
        "owner" => roles["sessions"].as_u64() > Some(0),
        _ => false,
    }
}

fn bytes_lost(model: &Model) -> u64 {
    fault_values(model)
        .map(|value| {
            // Of one node, or by node as a power cut of several reports it.
            let nodes = value.as_object().into_iter().flatten();
            let by_node = nodes.filter_map(|(_, of_node)| of_node["lost_bytes"].as_u64());
            value["bytes_lost"].as_u64().unwrap_or(0) + by_node.sum::<u64>()
        })
        .sum()
}

fn snapshots(model: &Model) -> u64 {
    installed(model).values().sum()
}

/// Nodes that installed a snapshot.
pub fn installers<'h>(model: &Model<'h>) -> Vec<&'h str> {
    let installed = installed(model).into_iter();
    installed
        .filter(|(_, count)| *count > 0)
        .map(|(node, _)| node)
        .collect()
}

fn installed<'h>(model: &Model<'h>) -> BTreeMap<&'h str, u64> {
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    let mut installed: BTreeMap<&str, u64> = BTreeMap::new();
    for event in model.events {
        let Op::Observe {
            about,
            node: Some(node),
            value,
        } = &event.op
        else {
            continue;
        };
        let count = value["snapshots_installed"].as_u64().filter(|_| about == "snapshots");
        let Some(count) = count else { continue };
        // A counter starts again with its process.
        let before = last.insert(node, count).filter(|before| *before <= count).unwrap_or(0);
        *installed.entry(node).or_default() += count - before;
    }
    installed
}

/// What faults that were installed told when they ended.
fn ends<'m>(model: &'m Model, wanted: Option<&'m str>) -> impl Iterator<Item = &'m serde_json::Value> {
    model.events.iter().filter_map(move |event| match &event.op {
        Op::Fault {
            family,
            action,
            value,
            status: Status::Installed,
            ..
        } if action == "stop" && wanted.is_none_or(|wanted| wanted == family) => Some(value),
        _ => None,
    })
}

fn unacked_at_fault(model: &Model) -> u64 {
    let starts: Vec<usize> = faults(model).iter().map(|fault| fault.index).collect();
    let unacked = model.messages.iter().filter(|published| {
        let next = starts.partition_point(|start| *start < published.invoke);
        let end = if published.end == NEVER {
            model.events.len()
        } else {
            published.end
        };
        !published.will && published.qos > 0 && starts.get(next).is_some_and(|start| *start < end)
    });
    unacked.count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::Limits;
    use crate::synthetic::{Writer, message};
    use serde_json::json;

    #[test]
    fn roles_are_read_as_the_nemesis_tells_them() {
        let roles = json!({ "leads": ["shard-1"], "follows": [], "meta_leader": false, "sessions": 2, "up": true });
        for (role, expected) in [
            ("leader", true),
            ("follower", false),
            ("meta-leader", false),
            ("owner", true),
        ] {
            assert_eq!(has_role(&roles, role), expected, "{role}");
        }
    }

    fn found(write: &Writer, requirement: &serde_json::Value) -> u64 {
        let requirement = serde_json::from_value(requirement.clone()).expect("a requirement is data");
        let model = Model::new(&write.events, &Limits::default());
        count(&model, &requirement).0
    }

    #[test]
    fn a_fault_without_an_effect_covers_nothing() {
        let effects = [
            ("limits-met", json!({}), json!({ "bit": 0 }), json!({ "bit": 7 }), 1),
            (
                "frames-dropped",
                json!({}),
                json!({ "frames_dropped": 0 }),
                json!({ "frames_dropped": 7 }),
                7,
            ),
            (
                "stopped",
                json!({}),
                json!({ "stopped": [] }),
                json!({ "stopped": ["n1", "n2"] }),
                2,
            ),
            (
                "damaged",
                json!({ "outcome": "refused", "skipped": "it has no such file" }),
                json!({}),
                json!({ "outcome": "refused", "restored": "all", "message": "raft log of group meta in /d/raft ends" }),
                1,
            ),
        ];
        for (what, nothing, little, much, expected) in effects {
            let requirement = json!({ "what": what, "at_least": 1 });
            for (value, expected) in [(nothing, 0), (little, 0), (much, expected)] {
                let mut write = Writer::new();
                write.fault("old-snapshot", "start", "n1", json!({}));
                write.fault("old-snapshot", "stop", "n1", value.clone());
                assert_eq!(found(&write, &requirement), expected, "{what} of {value}");
            }
        }
    }

    #[test]
    fn elections_before_the_faults_do_not_count() {
        let mut write = Writer::new();
        let leads = |write: &mut Writer, term: u64| {
            let op = Op::Observe {
                about: "leaders".into(),
                node: None,
                value: json!({ "meta": { "leader": "n1", "term": term } }),
            };
            write.note("harness", op);
        };
        leads(&mut write, 1);
        leads(&mut write, 2);
        write.phase("faults");
        leads(&mut write, 2);
        assert_eq!(found(&write, &json!({ "what": "elections", "at_least": 1 })), 0);
        leads(&mut write, 4);
        assert_eq!(found(&write, &json!({ "what": "elections", "at_least": 1 })), 1);
    }

    #[test]
    fn a_fault_is_judged_where_somebody_asked_for_service() {
        let judged = json!({ "what": "judged-faults", "at_least": 1 });
        for asks in [false, true] {
            let mut write = Writer::new();
            let publisher = write.connect("p", "n1", true, 0, false);
            write.connect("q", "n2", true, 0, false);
            write.wait(3.0);
            write.fault("pause", "start", "n2", json!({}));
            if asks {
                write.publish_ok("p", publisher, &message("p", "t", 1), 1);
            }
            write.wait(3.0);
            assert_eq!(found(&write, &judged), u64::from(asks));
        }
    }
}
