//! (m) After healing, all replicas of a group have applied the same entries and hold the same state.
//!
//! Read from `observe` events with `about: "digest"`: `node` is the replica's, `value` maps each group to
//! `{"applied": index, "digest": "…"}`, or to what kept it from telling.
//!
//! - Equal applied index and another digest: the state machines differ. That is wrong at any time.
//! - Another applied index in the last round after the drain: a replica does not catch up.
//! - What was not compared is unknown, not equal: a group of which one replica told its digest, a replica that could not tell
//!   it, a node that runs and told none, and, even where nobody was asked, a node that installed a snapshot or whose files were
//!   damaged.

use super::model::{Index, Model};
use super::{Findings, Limits, coverage, damage};
use crate::history::Op;
use std::collections::{BTreeMap, BTreeSet};

/// What one replica reported.
struct Digest<'h> {
    index: Index,
    node: &'h str,
    applied: u64,
    digest: &'h str,
}

pub fn check(model: &Model, _: &Limits) -> Findings {
    let mut findings = Findings::default();
    let all = digests(model);
    let settled = |digest: &Digest| digest.index >= model.phases.drain_end;
    not_compared(model, &mut findings);
    for (group, digests) in all {
        let mut by_applied: BTreeMap<u64, &Digest> = BTreeMap::new();
        let mut last: BTreeMap<&str, &Digest> = BTreeMap::new();
        let mut diverged = false;
        for digest in &digests {
            findings.count("convergence.digests", 1.0);
            let other = by_applied.entry(digest.applied).or_insert(digest);
            if other.digest != digest.digest && !diverged {
                diverged = true;
                let message = format!(
                    "{group} at index {}: {} has digest {}, {} has {}",
                    digest.applied, other.node, other.digest, digest.node, digest.digest,
                );
                findings.violation(("convergence", "diverged", "P1"), message, [other.index, digest.index]);
            }
            last.insert(digest.node, digest);
        }
        let last: Vec<&&Digest> = last.values().filter(|digest| settled(digest)).collect();
        let applied: Vec<String> = last.iter().map(|at| format!("{} {}", at.node, at.applied)).collect();
        if last.windows(2).any(|pair| pair[0].applied != pair[1].applied) {
            let message = format!("{group} did not converge after the drain: {}", applied.join(", "));
            let events = last.iter().map(|digest| digest.index);
            findings.violation(("convergence", "not-converged", "P1"), message, events);
        }
    }
    findings
}

/// What the digests after the drain say of each node.
pub struct Comparison<'h> {
    /// The last of each replica.
    groups: BTreeMap<&'h str, BTreeMap<&'h str, (u64, &'h str)>>,
    /// Replicas that were asked and did not tell.
    silent: BTreeSet<(&'h str, &'h str)>,
}

impl<'h> Comparison<'h> {
    pub fn new(model: &Model<'h>) -> Comparison<'h> {
        let mut groups: BTreeMap<&str, BTreeMap<&str, (u64, &str)>> = BTreeMap::new();
        let mut silent = BTreeSet::new();
        for (index, node, group, told) in replicas(model) {
            if index < model.phases.drain_end {
                continue;
            }
            match told {
                Some(told) => {
                    groups.entry(group).or_default().insert(node, told);
                    silent.remove(&(group, node));
                }
                None => drop(silent.insert((group, node))),
            }
        }
        Comparison { groups, silent }
    }

    fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.silent.is_empty()
    }

    fn nodes(&self) -> BTreeSet<&'h str> {
        self.groups.values().flat_map(|nodes| nodes.keys().copied()).collect()
    }

    /// Whether all replicas of a node equal those of another node; None: not all were compared.
    pub fn of(&self, node: &str) -> Option<bool> {
        if self.silent.iter().any(|(_, silent)| *silent == node) {
            return None;
        }
        let mut replicas = 0;
        let mut equal = true;
        for nodes in self.groups.values() {
            let Some(own) = nodes.get(node) else { continue };
            let mut others = nodes.iter().filter(|(other, _)| **other != node).peekable();
            others.peek()?;
            equal &= others.all(|(_, other)| other == own);
            replicas += 1;
        }
        (replicas > 0).then_some(equal)
    }
}

fn not_compared(model: &Model, findings: &mut Findings) {
    let comparison = Comparison::new(model);
    let mut must: BTreeMap<&str, &str> = BTreeMap::new();
    if !comparison.is_empty() {
        must.extend(running(model).into_iter().map(|node| (node, "runs")));
    }
    must.extend(
        coverage::installers(model)
            .into_iter()
            .map(|node| (node, "installed a snapshot")),
    );
    must.extend(
        damage::damages(model)
            .iter()
            .map(|damage| (damage.node, "had damaged files")),
    );
    let told = comparison.nodes();
    for (node, why) in must {
        if !told.contains(node) {
            let problem = format!("{node} {why} and told no digest after the drain: nobody compared its replicas");
            findings.unknown.push(problem);
        }
    }
    for (group, node) in &comparison.silent {
        let problem = format!("{node} could not tell the digest of {group} after the drain");
        findings.unknown.push(problem);
    }
    for (group, nodes) in comparison.groups.iter().filter(|(_, nodes)| nodes.len() < 2) {
        let only: Vec<&str> = nodes.keys().copied().collect();
        let problem = format!("only {} told the digest of {group} after the drain", only.join(", "));
        findings.unknown.push(problem);
    }
    if comparison.is_empty() && !digests(model).is_empty() {
        let problem = "nobody told a digest after the drain: nobody knows whether replicas are equal";
        findings.unknown.push(problem.into());
    }
}

/// Nodes with a process when the run ended, but for those that are known not to have come back.
fn running<'h>(model: &Model<'h>) -> BTreeSet<&'h str> {
    let end = model.phases.start("end").unwrap_or(model.events.len());
    let mut running = BTreeSet::new();
    let mut processes: BTreeMap<&str, i64> = BTreeMap::new();
    for event in &model.events[..end] {
        match &event.op {
            // A kill's `exited` may be seen after the `started` of the next process, so that only the count tells.
            Op::Node { node, event, .. } if event == "started" => *processes.entry(node).or_default() += 1,
            Op::Node { node, event, .. } if event == "exited" => *processes.entry(node).or_default() -= 1,
            _ => {}
        }
    }
    for (node, count) in processes {
        if count > 0 {
            running.insert(node);
        }
    }
    for event in model.events {
        if let Op::Observe {
            about,
            node: Some(node),
            ..
        } = &event.op
            && about == "no-recovery"
        {
            running.remove(node.as_str());
        }
    }
    running
}

type Told<'h> = Option<(u64, &'h str)>;

/// Index, node, group, and applied index with digest.
fn replicas<'h>(model: &Model<'h>) -> Vec<(Index, &'h str, &'h str, Told<'h>)> {
    let mut replicas = Vec::new();
    for (index, event) in model.events.iter().enumerate() {
        let Op::Observe {
            about,
            node: Some(node),
            value,
        } = &event.op
        else {
            continue;
        };
        for (group, replica) in value.as_object().filter(|_| about == "digest").into_iter().flatten() {
            let told = replica["applied"].as_u64().zip(replica["digest"].as_str());
            replicas.push((index, node.as_str(), group.as_str(), told));
        }
    }
    replicas
}

fn digests<'h>(model: &Model<'h>) -> BTreeMap<&'h str, Vec<Digest<'h>>> {
    let mut digests: BTreeMap<&str, Vec<Digest>> = BTreeMap::new();
    for (index, node, group, told) in replicas(model) {
        if let Some((applied, digest)) = told {
            digests.entry(group).or_default().push(Digest {
                index,
                node,
                applied,
                digest,
            });
        }
    }
    digests
}
