//! `mutants`: each bug on purpose, with the run that must catch it. A mutant that survives says that the tests cannot fail.

use super::{Common, summary};
use crate::checker::Validity;
use crate::cluster::BackEnd;
use crate::history;
use crate::runner::{Finished, binary, run};
use std::collections::BTreeMap;

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

    /// The row of a table, with what the same run is without the bug.
    pub fn row(&self, control: &str) -> String {
        let verdict = &self.finished.verdict;
        let note = match (self.is_caught(), verdict.valid) {
            (true, _) => "caught",
            (false, Validity::False) => "SURVIVED: only other classes than expected",
            (false, _) => "SURVIVED",
        };
        format!(
            "| {} | {} | {} | {note} | {} | {} | {control} |",
            self.mutant.name,
            self.finished.settings.cell(),
            self.finished.settings.seed,
            verdict.classes().join(", "),
            self.after.map_or("-".into(), |after| format!("{after:.0}")),
        )
    }
}

/// Runs one mutant.
///
/// # Errors
/// There is none of this name, or the back end cannot show it.
pub async fn hunt(common: &Common, name: &str) -> Result<Hunt, String> {
    let mutant = MUTANTS.iter().find(|mutant| mutant.name == name);
    let mutant = mutant.ok_or_else(|| format!("there is no mutant `{name}`"))?;
    if mutant.needs_root && common.back_end != BackEnd::Root {
        return Err(format!("{name} needs the back end `root`"));
    }
    let mut settings = common.settings(mutant.workload, mutant.nemeses, mutant.seconds);
    settings.bug = Some(name.into());
    settings.dir = common.dir.join(name);
    let finished = run(settings).await;
    let after = seen_after(&finished);
    Ok(Hunt {
        mutant,
        finished,
        after,
    })
}

/// The same runs, with the same seed, of a broker without the bug: what shows itself there is not the bug's. Mutants share
/// runs, so each is done once.
struct Controls {
    common: Common,
    done: BTreeMap<String, &'static str>,
}

impl Controls {
    /// `valid`, or what it is instead.
    async fn of(&mut self, mutant: &Mutant) -> &'static str {
        let mut settings = self.common.settings(mutant.workload, mutant.nemeses, mutant.seconds);
        let key = format!("{}-{}", settings.cell(), mutant.seconds);
        if let Some(known) = self.done.get(&key) {
            return known;
        }
        settings.dir = self.common.dir.join(format!("control-{key}"));
        let finished = run(settings).await;
        if finished.exit_code() != 0 {
            print!("{}", summary(&finished));
        }
        let word = finished.word();
        self.done.insert(key, word);
        word
    }
}

/// Hunts all, or those named; whether each was caught, and its control is valid.
///
/// # Errors
/// A name that no mutant has, or one that cannot be shown here: nothing was run.
pub async fn mutants(common: &Common, names: &[String]) -> Result<bool, String> {
    let mutants = chosen(names)?;
    if let Some(mutant) = mutants
        .iter()
        .find(|mutant| mutant.needs_root && common.back_end != BackEnd::Root)
    {
        return Err(format!("{} needs the back end `root`", mutant.name));
    }
    // Without a bug that is named, the build with bugs has none.
    let sound = binary(None, false).unwrap_or_else(|_| common.binary.clone());
    let mut controls = Controls {
        common: Common {
            binary: sound,
            ..common.clone()
        },
        done: BTreeMap::new(),
    };
    let head =
        "| bug | run | seed | result | classes | seconds until seen | control |\n|---|---|---:|---|---|---:|---|";
    println!("{head}");
    let (mut survived, mut spoiled) = (Vec::new(), Vec::new());
    for mutant in mutants {
        let hunt = hunt(common, mutant.name).await?;
        let control = controls.of(mutant).await;
        println!("{}", hunt.row(control));
        if !hunt.is_caught() {
            survived.push(mutant.name);
        }
        if control != "valid" {
            spoiled.push(mutant.name);
        }
    }
    if !survived.is_empty() {
        println!("survived: {}", survived.join(", "));
    }
    if !spoiled.is_empty() {
        println!("not valid without the bug either: {}", spoiled.join(", "));
    }
    Ok(survived.is_empty() && spoiled.is_empty())
}

/// Those named, or all.
fn chosen(names: &[String]) -> Result<Vec<&'static Mutant>, String> {
    if names.is_empty() {
        return Ok(MUTANTS.iter().collect());
    }
    let of = |name: &String| {
        let found = MUTANTS.iter().find(|mutant| mutant.name == name);
        found.ok_or_else(|| format!("there is no mutant `{name}`"))
    };
    names.iter().map(of).collect()
}

/// When the last event of the violation that was complete first happened.
fn seen_after(finished: &Finished) -> Option<f64> {
    let violations = finished.verdict.violations.iter();
    let first = violations.filter_map(|violation| violation.events.iter().max()).min()?;
    let text = std::fs::read_to_string(finished.settings.dir.join("history.jsonl")).ok()?;
    let events = history::parse(&text).ok()?;
    events.get(*first as usize).map(|event| event.time as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The broker's crates are not used here, its list is read as text.
    #[test]
    fn every_bug_that_the_broker_can_be_told_to_have_is_hunted() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../storage/src/test_bugs.rs");
        let source = std::fs::read_to_string(path).expect("the broker's list");
        let lines = source.lines().filter_map(|line| line.trim().strip_prefix("(\""));
        let bugs: BTreeSet<&str> = lines.filter_map(|line| line.split('"').next()).collect();
        let hunted: BTreeSet<&str> = MUTANTS.iter().map(|mutant| mutant.name).collect();
        assert_eq!(bugs, hunted);
        assert_eq!(hunted.len(), MUTANTS.len(), "each once");
    }

    #[test]
    fn a_mutant_that_is_not_there_is_an_error() {
        assert!(chosen(&["no_such_bug".to_owned()]).is_err());
        assert_eq!(chosen(&["no_fsync".to_owned()]).map(|found| found.len()), Ok(1));
        assert_eq!(chosen(&[]).map(|found| found.len()), Ok(14));
    }
}
