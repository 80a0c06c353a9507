//! (q) A node ends only when it is made to, or over what was done to what it stands on, as that explains it.
//!
//! | what was done | ends by itself | until |
//! |---|---|---|
//! | its files were damaged | by an exit status, naming what is damaged | the end: it may be found late |
//! | its file system went away (`fsync-error`) | by an exit status | it is started again |
//! | nothing was left of its disk (`full-disk`, `left_bytes` 0) | by an exit status, telling that it is full | it is started again |
//! | memory was limited | by SIGKILL | it is started again |
//!
//! Never over a power cut, of which the harness ends the process itself, a slow disk, too little CPU, or a disk that is
//! full to within the broker's reserve; and never by a panic, whatever was done.

use super::model::Model;
use super::{Findings, Limits, damage};
use crate::history::{Op, Status};
use serde_json::Value;
use std::collections::BTreeMap;

/// What may make a node end.
#[derive(Default)]
struct Grounds<'h> {
    damaged: Vec<&'h Value>,
    file_system_gone: bool,
    disk_full: bool,
    memory_limited: bool,
}

pub fn check(model: &Model, _: &Limits) -> Findings {
    let mut findings = Findings::default();
    // A kill's `exited` may be seen after the `started` of the next process.
    let mut exits_due: BTreeMap<&str, u32> = BTreeMap::new();
    let mut grounds: BTreeMap<&str, Grounds> = BTreeMap::new();
    // A log's lines have no place among the events.
    let mut of_the_run: BTreeMap<&str, Grounds> = BTreeMap::new();
    for (node, event) in damage::damages(model).iter().map(|damage| (damage.node, damage.told)) {
        if let Op::Fault { value, .. } = &model.events[event].op {
            grounds.entry(node).or_default().damaged.push(value);
            of_the_run.entry(node).or_default().damaged.push(value);
        }
    }
    for (index, event) in model.events.iter().enumerate() {
        match &event.op {
            Op::Fault {
                family,
                action,
                nodes,
                value,
                status,
            } if *status != Status::Skipped && action != "stop" => {
                for node in nodes {
                    grounds.entry(node).or_default().add(family, value);
                    of_the_run.entry(node).or_default().add(family, value);
                }
            }
            Op::Node { node, event, .. } if event == "started" => {
                let grounds = grounds.entry(node).or_default();
                (grounds.file_system_gone, grounds.disk_full, grounds.memory_limited) = (false, false, false);
            }
            Op::Node { node, event, detail } if event == "killed" || event == "exited" => {
                let due = exits_due.entry(node.as_str()).or_default();
                if event == "killed" {
                    *due += 1;
                    continue;
                }
                if *due > 0 {
                    *due -= 1;
                    continue;
                }
                let detail = detail.as_deref().unwrap_or("unknown");
                let explained = grounds.entry(node).or_default().explain_exit(detail);
                if !explained && !["setup", "end"].contains(&model.phases.at(index)) {
                    let message = format!("{node} ended by itself: {detail}");
                    findings.violation(("exits", "unexpected-exit", "P9"), message, [index]);
                }
            }
            Op::Observe { about, node, value } if about == "fatal" => {
                let node = node.as_deref().unwrap_or("a node");
                let line = value.as_str().unwrap_or_default();
                if !of_the_run.entry(node).or_default().explain_line(line) {
                    let message = format!("{node} gave up: {line}");
                    findings.violation(("exits", "unexpected-exit", "P9"), message, [index]);
                }
            }
            _ => {}
        }
    }
    findings
}

impl Grounds<'_> {
    fn add(&mut self, family: &str, value: &Value) {
        match family {
            "fsync-error" => self.file_system_gone = true,
            "full-disk" => self.disk_full |= value["left_bytes"] == 0,
            "memory-limit" => self.memory_limited = true,
            _ => {}
        }
    }

    /// `detail`: the status, and where it was recorded, after `; `, the last line of the log.
    fn explain_exit(&self, detail: &str) -> bool {
        let (status, line) = detail.split_once("; ").unwrap_or((detail, ""));
        if status.starts_with("signal: 9") {
            return self.memory_limited;
        }
        let refused = status.starts_with("exit status: ") && !status.ends_with(" 101") && !status.ends_with(" 0");
        refused && (line.is_empty() && self.any_of_disk() || self.explain_line(line))
    }

    fn any_of_disk(&self) -> bool {
        self.file_system_gone || self.disk_full || !self.damaged.is_empty()
    }

    fn explain_line(&self, line: &str) -> bool {
        let full = line.contains("full") || line.contains("No space left");
        self.file_system_gone || (self.disk_full && full) || self.damaged.iter().any(|told| damage::names(told, line))
    }
}
