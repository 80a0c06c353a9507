//! (r) P9: what was damaged on a node's disk is noticed, or provably did no harm.
//!
//!     damage ─▶ start ─┬─▶ refused, and the message names what is damaged           noticed
//!                      ├─▶ ready, later ended with a message that names it          noticed
//!                      ├─▶ ready, and equal to another replica after the drain      repaired, or never needed
//!                      └─▶ anything else                                            nobody knows
//!
//! A run in which nothing was noticed and nothing happened is no proof: a broker that never checks what it reads passes it
//! too, until that byte matters. So such a node must tell the digests of all its groups, each equal to another node's.
//!
//! Read from `fault` events of [`FAMILIES`]: at `stop`, `value` holds what was done (`flipped`, `truncated`, `restored`) and the
//! `outcome` of the start with it: `ready` or `refused`, with the node's last `message`.

use super::convergence::Comparison;
use super::model::{Index, Model};
use super::{Findings, Limits};
use crate::history::{Op, Status};
use serde_json::Value;

/// Damage that was really done to one node's files.
pub struct Damage<'h> {
    pub start: Index,
    /// The event that tells its outcome.
    pub told: Index,
    pub family: &'h str,
    pub node: &'h str,
    value: &'h Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// By the node itself, which named it.
    Noticed,
    /// It refused, and did not say over what.
    Unnamed,
    /// It served, and its replicas equal others': it repaired the damage, or never needed what was damaged.
    Harmless,
    /// It served, and another digest than others' is the business of `convergence`.
    Different,
    Unknown,
}

pub fn check(model: &Model, _: &Limits) -> Findings {
    let mut findings = Findings::default();
    let comparison = Comparison::new(model);
    for damage in damages(model) {
        let what = format!("{} of {}", damage.family, damage.node);
        match fate(model, &damage, &comparison) {
            Fate::Noticed => findings.count("damage.noticed", 1.0),
            Fate::Harmless => findings.count("damage.harmless", 1.0),
            Fate::Different => findings.count("damage.different", 1.0),
            Fate::Unnamed => {
                let said = damage.value["message"].as_str().unwrap_or_default();
                let message = format!("{what}: it refused to start and did not name what is damaged: {said:?}");
                findings.violation(("damage", "unnamed-damage", "P9"), message, [damage.start, damage.told]);
            }
            Fate::Unknown => findings.unknown.push(format!(
                "{what}: nobody noticed it, and its replicas were not all compared with others' afterwards"
            )),
        }
    }
    for start in untold(model) {
        let problem = format!("event {start}: files were damaged, and nobody told what became of it");
        findings.unknown.push(problem);
    }
    findings
}

/// How many were really done and have a fate that says something.
pub fn judged(model: &Model) -> u64 {
    let comparison = Comparison::new(model);
    let judged = |damage: &Damage| fate(model, damage, &comparison) != Fate::Unknown;
    damages(model).iter().filter(|damage| judged(damage)).count() as u64
}

/// In the order of their outcomes.
pub fn damages<'h>(model: &Model<'h>) -> Vec<Damage<'h>> {
    let mut damages = Vec::new();
    let mut open: Vec<(Index, &str, &str)> = Vec::new();
    for (index, family, action, node, value) in faults(model) {
        match action {
            "start" => open.push((index, family, node)),
            "stop" => {
                let at = open.iter().position(|(_, of, on)| (*of, *on) == (family, node));
                let start = at.map_or(index, |at| open.swap_remove(at).0);
                if was_done(value) {
                    damages.push(Damage {
                        start,
                        told: index,
                        family,
                        node,
                        value,
                    });
                }
            }
            _ => {}
        }
    }
    damages
}

/// Damage whose outcome nobody told.
fn untold(model: &Model) -> Vec<Index> {
    let mut open: Vec<(Index, &str, &str)> = Vec::new();
    for (index, family, action, node, _) in faults(model) {
        match action {
            "start" => open.push((index, family, node)),
            "stop" => open.retain(|(_, of, on)| (*of, *on) != (family, node)),
            _ => {}
        }
    }
    open.into_iter().map(|(index, ..)| index).collect()
}

fn faults<'h>(model: &Model<'h>) -> impl Iterator<Item = (Index, &'h str, &'h str, &'h str, &'h Value)> {
    model
        .events
        .iter()
        .enumerate()
        .filter_map(|(index, event)| match &event.op {
            Op::Fault {
                family,
                action,
                nodes,
                value,
                status: Status::Installed,
            } if FAMILIES.contains(&family.as_str()) => {
                Some((index, family.as_str(), action.as_str(), nodes.first()?.as_str(), value))
            }
            _ => None,
        })
}

/// There was something to damage, or it came in time.
fn was_done(value: &Value) -> bool {
    ["flipped", "truncated", "restored"]
        .iter()
        .any(|key| !value[*key].is_null())
}

fn fate(model: &Model, damage: &Damage, comparison: &Comparison) -> Fate {
    let said = damage.value["message"].as_str().unwrap_or_default();
    match damage.value["outcome"].as_str() {
        Some("refused") if names(damage.value, said) => Fate::Noticed,
        Some("refused") => Fate::Unnamed,
        Some("ready") if noticed_later(model, damage) => Fate::Noticed,
        Some("ready") => match comparison.of(damage.node) {
            Some(true) => Fate::Harmless,
            Some(false) => Fate::Different,
            None => Fate::Unknown,
        },
        _ => Fate::Unknown,
    }
}

fn noticed_later(model: &Model, damage: &Damage) -> bool {
    model.events[damage.told..].iter().any(|event| match &event.op {
        Op::Node {
            node,
            event,
            detail: Some(detail),
        } => node == damage.node && event == "exited" && names(damage.value, detail),
        Op::Observe {
            about,
            node: Some(node),
            value: Value::String(line),
        } => about == "fatal" && node == damage.node && names(damage.value, line),
        _ => false,
    })
}

/// Whether a message says which file it is, or which database, as the damage was `told`.
pub fn names(told: &Value, message: &str) -> bool {
    let file = told["flipped"]["file"]
        .as_str()
        .or(told["truncated"]["file"].as_str())
        .or(told["flipped"].as_str());
    let Some(file) = file else {
        // Of a whole directory that was put back: either database.
        return ["/raft", "/state"].iter().any(|database| message.contains(database));
    };
    let mut parts = file.trim_end_matches(" (deleted)").rsplit('/');
    let name = parts.next().unwrap_or_default();
    let database = parts.next().unwrap_or_default();
    let arriving = name.starts_with("incoming-") && message.contains("snapshot");
    arriving
        || (!name.is_empty() && message.contains(name))
        || (["raft", "state"].contains(&database) && message.contains(&format!("/{database}")))
}

/// Files that are not what the node wrote.
pub const FAMILIES: [&str; 8] = [
    "flip-wal",
    "flip-sst",
    "flip-kill",
    "flip-snapshot",
    "truncate-wal",
    "truncate-sst",
    "truncate-snapshot",
    "old-snapshot",
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_message_names_the_file_or_its_database() {
        let flipped = json!({ "flipped": { "file": "raft/000012.log", "at": 3, "mask": 1 } });
        for (message, expected) in [
            ("database /var/n1/data/raft is corrupt: checksum", true),
            ("Corruption in 000012.log", true),
            ("database /var/n1/data/state is corrupt", false),
            ("something went wrong", false),
            ("", false),
        ] {
            assert_eq!(names(&flipped, message), expected, "{message}");
        }
        assert!(names(
            &json!({ "restored": "all" }),
            "raft log of group meta in /d/raft ends at entry 3"
        ));
        assert!(names(
            &json!({ "flipped": "/d/incoming-3 (deleted)" }),
            "snapshot of shard-1 does not read"
        ));
    }
}
