//! (m) After healing, all replicas of a group have applied the same entries and hold the same state.
//!
//! Read from `observe` events with `about: "digest"`: `node` is the replica's, `value` maps each group to
//! `{"applied": index, "digest": "…"}`.
//!
//! - Equal applied index and another digest: the state machines differ. That is wrong at any time.
//! - Digests, but of one replica of each group: nothing was compared, and the run is unknown. That there are digests at all is
//!   a matter of coverage.
//! - Another applied index in the last round after the drain: a replica does not catch up.

use super::model::{Index, Model};
use super::{Findings, Limits};
use crate::history::Op;
use std::collections::BTreeMap;

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
    let compared = |digests: &Vec<Digest>| {
        let mut nodes: Vec<&str> = digests.iter().filter(|at| settled(at)).map(|at| at.node).collect();
        nodes.dedup();
        nodes.len() > 1
    };
    if !all.is_empty() && !all.values().any(compared) {
        let problem =
            "no two replicas of a group told their digests after the drain: nobody knows whether they are equal";
        findings.unknown.push(problem.into());
    }
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

fn digests<'h>(model: &Model<'h>) -> BTreeMap<&'h str, Vec<Digest<'h>>> {
    let mut digests: BTreeMap<&str, Vec<Digest>> = BTreeMap::new();
    for (index, event) in model.events.iter().enumerate() {
        let Op::Observe {
            about,
            node: Some(node),
            value,
        } = &event.op
        else {
            continue;
        };
        let Some(groups) = value.as_object().filter(|_| about == "digest") else {
            continue;
        };
        for (group, replica) in groups {
            if let (Some(applied), Some(digest)) = (replica["applied"].as_u64(), replica["digest"].as_str()) {
                digests.entry(group).or_default().push(Digest {
                    index,
                    node,
                    applied,
                    digest,
                });
            }
        }
    }
    digests
}
