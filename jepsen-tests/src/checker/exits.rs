//! (q) A node ends only when it is made to: killed, stopped at the end of the run, or after what it stands on was damaged,
//! limited or taken away.
//!
//! Damage may be found long after it was done, so it excuses its node for the rest of the run.

use super::model::Model;
use super::{Findings, Limits};
use crate::history::{Op, Status};
use std::collections::{BTreeMap, BTreeSet};

pub fn check(model: &Model, _: &Limits) -> Findings {
    let mut findings = Findings::default();
    // A kill's `exited` may be seen after the `started` of the next process.
    let mut exits_due: BTreeMap<&str, u32> = BTreeMap::new();
    let mut excused: BTreeSet<&str> = BTreeSet::new();
    for (index, event) in model.events.iter().enumerate() {
        match &event.op {
            Op::Fault {
                family, nodes, status, ..
            } if *status != Status::Skipped && GROUNDS.contains(&family.as_str()) => {
                excused.extend(nodes.iter().map(String::as_str));
            }
            Op::Node { node, event, detail } if event == "killed" || event == "exited" => {
                let due = exits_due.entry(node.as_str()).or_default();
                if event == "killed" {
                    *due += 1;
                } else if *due > 0 {
                    *due -= 1;
                } else if !excused.contains(node.as_str()) && !["setup", "end"].contains(&model.phases.at(index)) {
                    let message = format!("{node} ended by itself: {}", detail.as_deref().unwrap_or("unknown"));
                    findings.violation(("exits", "unexpected-exit", "P9"), message, [index]);
                }
            }
            Op::Observe { about, node, value } if about == "fatal" => {
                let node = node.as_deref().unwrap_or("a node");
                if !excused.contains(node) {
                    let message = format!("{node} gave up: {}", value.as_str().unwrap_or_default());
                    findings.violation(("exits", "unexpected-exit", "P9"), message, [index]);
                }
            }
            _ => {}
        }
    }
    findings
}

/// Families after which a node may give up.
const GROUNDS: [&str; 17] = [
    "power-one",
    "power-all",
    "part-kill",
    "pause-kill",
    "flip-wal",
    "flip-sst",
    "truncate-wal",
    "truncate-sst",
    "flip-kill",
    "flip-snapshot",
    "truncate-snapshot",
    "old-snapshot",
    "fsync-error",
    "full-disk",
    "slow-disk",
    "memory-limit",
    "cpu-limit",
];
