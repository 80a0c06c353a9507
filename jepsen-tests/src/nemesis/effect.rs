//! What a fault really did, told when it ends: `observe` events about `effect FAMILY`, or about `no-effect FAMILY`.
//!
//!     links ── frames cut, lost, late … since it began         pause ── state and CPU time of the process
//!     limit ── what the cgroup counted (`limit.rs`)            damage ── where it is, and whether it was read (`corrupt.rs`)
//!
//! Faults that are at work together on one link share what was done to its frames: each tells all of it.

use super::corrupt;
use super::family::Family;
use super::{Active, Nemesis, Undo};
use crate::cluster::disk::BYTES;
use crate::cluster::link::{Effect, Port};
use crate::history::Op;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What had been done when a fault began.
#[derive(Default)]
pub(super) struct Before {
    frames: BTreeMap<(Port, Port), Effect>,
    /// Of processes that were to stand still: by node, with the process.
    spent: BTreeMap<String, (u32, Standing)>,
}

/// A line of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    state: char,
    /// Of CPU, of all its threads, user and system.
    ticks: u64,
}

impl Nemesis {
    /// Remembers how things stand before a fault is at work, unless whoever began it did.
    pub(super) fn watch(&self, active: &mut Active) {
        if active.before.frames.is_empty() {
            let pairs: Vec<_> = active.links.iter().map(|(from, to, _)| (*from, *to)).collect();
            active.before.frames = self.frames_so_far(&pairs).frames;
        }
        if matches!(active.undo, Undo::Resume) {
            active.before.spent = self.standing(&active.nodes);
        }
    }

    pub(super) fn frames_so_far(&self, pairs: &[(Port, Port)]) -> Before {
        let rules = self.cluster.rules();
        let frames = pairs.iter().map(|(from, to)| ((*from, *to), rules.effect(*from, *to)));
        Before {
            frames: frames.collect(),
            spent: BTreeMap::new(),
        }
    }

    /// To be called while the fault is still at work. Answers what its end tells of it: `frames_dropped`, `stopped` (nodes),
    /// `bit` (how often a limit was felt).
    pub(super) fn tell_effect(&self, active: &Active) -> Value {
        match &active.undo {
            Undo::Links | Undo::Flap(_) => self.tell_frames(active),
            Undo::Resume => self.tell_standing(active),
            Undo::Limit(limit) => {
                let (bit, value) = limit.effect(&self.cluster, &active.nodes);
                self.tell(active.family, None, bit > 0, value);
                json!({ "bit": bit })
            }
            Undo::Remount => {
                let ended = active.outcome["ended_by_itself"] == true;
                self.tell(active.family, None, ended, active.outcome.clone());
                json!({ "bit": u64::from(ended) })
            }
            Undo::Room => {
                // The broker's reserve is a tenth: below it, publishes are refused.
                let free = self.free_now(&active.nodes);
                let full = free.is_some_and(|free| free < BYTES / 10);
                self.tell(active.family, None, full, json!({ "free_bytes": free }));
                json!({ "bit": u64::from(full), "free_bytes_at_end": free })
            }
            _ => json!({}),
        }
    }

    fn tell_frames(&self, active: &Active) -> Value {
        let rules = self.cluster.rules();
        let done = active.before.frames.iter();
        let done = done.map(|((from, to), before)| rules.effect(*from, *to).since(before));
        let total = done.fold(Effect::default(), |sum, effect| sum.plus(&effect));
        let counts = total.counts().into_iter().filter(|(_, count)| *count > 0);
        let frames: BTreeMap<&str, u64> = counts.collect();
        self.tell(active.family, None, !total.is_none(), json!({ "frames": frames }));
        let dropped = total.cut + total.stalled + total.lost + total.overflowed;
        json!({ "frames_dropped": dropped, "frames": frames })
    }

    fn tell_standing(&self, active: &Active) -> Value {
        let now = self.standing(&active.nodes);
        let mut stopped = Vec::new();
        for (node, (pid, before)) in &active.before.spent {
            let Some((_, at_end)) = now.get(node).filter(|(same, _)| same == pid) else {
                // Killed by another fault meanwhile.
                continue;
            };
            let ticks = at_end.ticks.saturating_sub(before.ticks);
            let value = json!({ "state": at_end.state.to_string(), "cpu_ticks": ticks });
            // A tick is 10 ms; the first may be of the moment in which it was stopped.
            let stood_still = at_end.state == 'T' && ticks <= 1;
            if stood_still {
                stopped.push(node);
            }
            self.tell(active.family, Some(node), stood_still, value);
        }
        json!({ "stopped": stopped })
    }

    /// After damage was judged: `outcome` is what [`Nemesis::judge`] found.
    pub(super) fn tell_damage(&self, family: Family, node: &str, outcome: &Value) {
        let damaged = ["flipped", "truncated", "restored"]
            .iter()
            .find_map(|kind| outcome.get(kind));
        let placed = damaged.is_some_and(|damage| !damage.is_null());
        self.tell(family, Some(node), placed, outcome.clone());
    }

    /// What became of damage that nodes have started with, at the end.
    pub(super) fn tell_latent(&self) {
        for (node, flip) in &self.latent {
            let value = json!({ "damage": flip.describe(), "since": corrupt::told_of_read(flip.was_read()) });
            self.observe("latent damage", Some(node), value);
        }
    }

    fn tell(&self, family: Family, node: Option<&str>, bit: bool, value: Value) {
        let kind = if bit { "effect" } else { "no-effect" };
        self.observe(&format!("{kind} {family}"), node, value);
    }

    fn observe(&self, about: &str, node: Option<&str>, value: Value) {
        let about = about.to_owned();
        let node = node.map(Into::into);
        self.recorder.note("nemesis", Op::Observe { about, node, value });
    }

    fn standing(&self, nodes: &[String]) -> BTreeMap<String, (u32, Standing)> {
        let of = |node: &String| {
            let pid = self.cluster.pid(node)?;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            Some((node.clone(), (pid, standing(&stat)?)))
        };
        nodes.iter().filter_map(of).collect()
    }
}

/// The command may hold spaces and brackets: what follows the last one is counted.
fn standing(stat: &str) -> Option<Standing> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Standing {
        state: fields.first()?.chars().next()?,
        ticks: ticks(UTIME)? + ticks(UTIME + 1)?,
    })
}

/// The fourteenth field of the line, the state being the third.
const UTIME: usize = 11;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_and_time_are_read_behind_any_name() {
        let stat = "77 (a ) b) T 1 77 77 0 -1 4194560 1 2 3 4 50 7 0 0 20 0 9 0 1 2 3";
        assert_eq!(standing(stat), Some(Standing { state: 'T', ticks: 57 }));
        assert_eq!(standing("77 (a"), None);
        let own = std::fs::read_to_string("/proc/self/stat").expect("this process");
        assert!(standing(&own).is_some_and(|own| "RSD".contains(own.state)), "{own}");
    }
}
