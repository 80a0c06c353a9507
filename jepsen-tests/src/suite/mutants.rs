//! `mutants`: each bug on purpose, with the run that must catch it. A mutant that survives says that the tests cannot fail.

use super::Common;
use crate::checker::Validity;
use crate::cluster::BackEnd;
use crate::history;
use crate::runner::{Finished, run};

/// A bug by the name that the broker knows it by, and the run that shows it.
pub struct Mutant {
    pub name: &'static str,
    pub workload: &'static str,
    pub nemeses: &'static [&'static str],
    pub seconds: u64,
    /// Power cuts and damaged files are faults of the root back end.
    pub needs_root: bool,
    /// Any of these shows the bug, not something else.
    pub classes: &'static [&'static str],
}

const LOST: &[&str] = &[
    "lost-all",
    "lost-prefix",
    "lost-middle",
    "lost-postfix",
    "amnesia",
    "diverged",
    "foreign-read",
    "no-recovery",
    "refused-start",
];

/// Of an acknowledgement that came too early.
const UNCOMMITTED: &[&str] = &[
    "real-time-order",
    "lost-all",
    "lost-prefix",
    "lost-middle",
    "lost-postfix",
];

/// Two leaders of one term: what one of them acknowledged is lost, or replicas differ.
const FORGOTTEN_VOTE: &[&str] = &[
    "real-time-order",
    "lost-all",
    "lost-prefix",
    "lost-middle",
    "lost-postfix",
    "amnesia",
    "diverged",
    "not-converged",
    "no-recovery",
    "refused-start",
];

const fn mutant(
    name: &'static str,
    workload: &'static str,
    nemeses: &'static [&'static str],
    seconds: u64,
    classes: &'static [&'static str],
) -> Mutant {
    Mutant {
        name,
        workload,
        nemeses,
        seconds,
        needs_root: false,
        classes,
    }
}

const fn rooted(mutant: Mutant) -> Mutant {
    Mutant {
        needs_root: true,
        ..mutant
    }
}

pub const MUTANTS: [Mutant; 14] = [
    mutant("ack_before_commit", "queue", &["kill"], 25, UNCOMMITTED),
    rooted(mutant("ack_before_fsync", "queue", &["power-all"], 25, LOST)),
    rooted(mutant("no_fsync", "queue", &["power-all"], 25, LOST)),
    rooted(mutant(
        "vote_not_persisted",
        "queue",
        &["pause-kill"],
        40,
        FORGOTTEN_VOTE,
    )),
    mutant(
        "local_retained_read",
        "register",
        &["partition-stall"],
        40,
        &["stale-read", "not-linearizable"],
    ),
    mutant(
        "leader_serves_before_barrier",
        "session",
        &["partition-meta-leader"],
        40,
        &["stale-read", "not-linearizable", "zombie-ack", "two-served"],
    ),
    mutant(
        "drop_qos2_ids_on_failover",
        "queue",
        &["kill"],
        30,
        &["duplicate-qos2", "new-packet-id", "retransmission-stored"],
    ),
    mutant(
        "suback_before_commit",
        "subbar",
        &["pause"],
        20,
        &[
            "missed-after-suback",
            "forged-no-subscribers",
            "lost-all",
            "lost-prefix",
            "lost-middle",
            "lost-postfix",
        ],
    ),
    mutant(
        "no_takeover_fence",
        "session",
        &[],
        15,
        &["zombie-ack", "zombie-delivery", "two-served", "not-closed"],
    ),
    mutant("double_will_on_failover", "will", &["kill"], 40, &["extra-will"]),
    mutant(
        "share_redeliver_acked",
        "shared",
        &["kill"],
        25,
        &["shared-twice", "shared-after-nack"],
    ),
    rooted(mutant("skip_dir_fsync", "queue", &["snapshot", "power-all"], 45, LOST)),
    mutant(
        "snapshot_skips_last_key",
        "queue",
        &["snapshot"],
        40,
        &["diverged", "not-converged", "lost-middle"],
    ),
    rooted(mutant("wal_point_in_time", "queue", &["flip-wal"], 40, LOST)),
];

/// What became of a mutant.
pub struct Hunt {
    pub mutant: &'static Mutant,
    pub finished: Finished,
    /// Seconds from the start of the run until the first violation could be seen.
    pub after: Option<f64>,
}

impl Hunt {
    /// By one of the classes that show this bug: another violation would be there without it.
    pub fn is_caught(&self) -> bool {
        let classes = self.finished.verdict.classes();
        classes.iter().any(|class| self.mutant.classes.contains(class))
    }

    /// The row of a table.
    pub fn row(&self) -> String {
        let verdict = &self.finished.verdict;
        let note = match (self.is_caught(), verdict.valid) {
            (true, _) => "caught",
            (false, Validity::False) => "SURVIVED: only other classes than expected",
            (false, _) => "SURVIVED",
        };
        format!(
            "| {} | {} | {note} | {} | {} |",
            self.mutant.name,
            self.finished.settings.cell(),
            verdict.classes().join(", "),
            self.after.map_or("-".into(), |after| format!("{after:.0}")),
        )
    }
}

/// Runs one mutant; `None`: there is none of this name, or the back end cannot show it.
pub async fn hunt(common: &Common, name: &str) -> Option<Hunt> {
    let mutant = MUTANTS.iter().find(|mutant| mutant.name == name)?;
    if mutant.needs_root && common.back_end != BackEnd::Root {
        println!("| {name} | | skipped, it needs the root back end | | |");
        return None;
    }
    let mut settings = common.settings(mutant.workload, mutant.nemeses, mutant.seconds);
    settings.bug = Some(name.into());
    settings.dir = common.dir.join(name);
    let finished = run(settings).await;
    let after = seen_after(&finished);
    let hunt = Hunt {
        mutant,
        finished,
        after,
    };
    println!("{}", hunt.row());
    Some(hunt)
}

/// Hunts all, or those named; whether each was caught.
pub async fn mutants(common: &Common, names: &[String]) -> bool {
    println!("| bug | run | result | classes | seconds until seen |\n|---|---|---|---|---:|");
    let mut survived = Vec::new();
    for name in chosen(names) {
        match hunt(common, name).await {
            Some(hunt) if !hunt.is_caught() => survived.push(name),
            _ => {}
        }
    }
    if !survived.is_empty() {
        println!("survived: {}", survived.join(", "));
    }
    survived.is_empty()
}

fn chosen(names: &[String]) -> impl Iterator<Item = &'static str> {
    let all = MUTANTS.iter().map(|mutant| mutant.name);
    all.filter(move |name| names.is_empty() || names.iter().any(|wanted| wanted == name))
}

/// When the last event of the violation that was complete first happened.
fn seen_after(finished: &Finished) -> Option<f64> {
    let violations = finished.verdict.violations.iter();
    let first = violations.filter_map(|violation| violation.events.iter().max()).min()?;
    let text = std::fs::read_to_string(finished.settings.dir.join("history.jsonl")).ok()?;
    let events = history::parse(&text).ok()?;
    events.get(*first as usize).map(|event| event.time as f64 / 1e9)
}
