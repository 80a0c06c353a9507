//! Many runs in a row: the set for CI, the matrix, the soak, the mutants; how each prints its results.

pub mod ci;
pub mod matrix;
pub mod mutants;
pub mod results;
pub mod soak;

use crate::cluster::BackEnd;
use crate::runner::{Finished, Settings};
use std::path::PathBuf;

/// What all runs of a suite share.
#[derive(Clone, Debug)]
pub struct Common {
    pub binary: PathBuf,
    pub dir: PathBuf,
    pub seed: u64,
    pub rate: u32,
    pub back_end: BackEnd,
}

impl Common {
    /// A run in a directory of its own.
    pub fn settings(&self, workload: &str, nemeses: &[&str], seconds: u64) -> Settings {
        let mut settings = Settings::new(self.binary.clone(), workload, PathBuf::new());
        settings.nemeses = nemeses.iter().map(|family| (*family).to_owned()).collect();
        settings.faults = std::time::Duration::from_secs(seconds);
        settings.seed = self.seed;
        settings.rate = self.rate;
        settings.back_end = self.back_end;
        settings.dir = self.dir.join(settings.cell());
        settings
    }
}

/// Some lines about a run, for people.
pub fn summary(finished: &Finished) -> String {
    let settings = &finished.settings;
    let mut text = format!(
        "{}: {} (seed {}, {:.0} s, {})\n",
        settings.cell(),
        finished.word(),
        settings.seed,
        finished.took.as_secs_f64(),
        settings.dir.display()
    );
    for (metric, value) in &finished.verdict.metrics {
        if let Some(class) = metric.strip_prefix("violations.") {
            text += &format!("  {value} × {class}\n");
        }
    }
    for violation in finished.verdict.violations.iter().take(SHOWN) {
        let message: String = violation.message.chars().take(300).collect();
        text += &format!(
            "  {} {}: {message} {:?}\n",
            violation.class, violation.promise, violation.events
        );
    }
    for reason in finished.verdict.unknown.iter().take(SHOWN) {
        text += &format!("  unknown: {reason}\n");
    }
    if let Some(failure) = &finished.failure {
        text += &format!("  harness: {failure}\n");
    }
    text + &format!("  {}\n", numbers(finished))
}

/// The numbers of a run that a table has room for.
pub fn numbers(finished: &Finished) -> String {
    let metrics = &finished.verdict.metrics;
    let shown = NUMBERS.iter().filter_map(|(metric, name)| {
        let value = metrics.get(*metric)?;
        Some(format!("{name} {}", (value * 100.0).round() / 100.0))
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// Metrics of the checkers and what a table calls them.
const NUMBERS: [(&str, &str); 13] = [
    ("availability.publishes", "published"),
    ("availability.ok_share", "ok share"),
    ("integrity.deliveries", "delivered"),
    ("register.reads", "reads"),
    ("availability.longest_gap_seconds", "longest gap s"),
    ("back.faults", "P10: faults"),
    ("back.topic_seconds.p50", "topic back p50 s"),
    ("back.topic_seconds.p99", "p99"),
    ("back.topic_seconds.max", "max"),
    ("back.client_seconds.count", "clients"),
    ("back.client_seconds.p50", "client back p50 s"),
    ("back.client_seconds.p99", "p99"),
    ("back.client_seconds.max", "max"),
];
const SHOWN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nemesis::Family;
    use crate::workload;

    #[test]
    fn every_workload_and_family_that_a_suite_names_is_there() {
        let hunts = mutants::MUTANTS.iter().map(|mutant| (mutant.workload, mutant.nemeses));
        let cells = ci::FULL.iter().chain(&ci::QUICK).map(|cell| (cell.0, cell.1));
        for (workload, families) in hunts.chain(cells) {
            assert!(workload::NAMES.contains(&workload), "{workload}");
            for family in families {
                assert!(family.parse::<Family>().is_ok(), "{family}");
            }
        }
    }

    #[test]
    fn every_mutant_names_the_classes_that_show_it() {
        for mutant in &mutants::MUTANTS {
            assert!(!mutant.classes.is_empty(), "{}", mutant.name);
        }
    }

    #[test]
    fn the_mutants_of_ci_are_there_and_need_no_root() {
        for name in ci::MUTANTS {
            assert!(
                mutants::MUTANTS
                    .iter()
                    .any(|mutant| mutant.name == name && !mutant.needs_root),
                "{name}"
            );
        }
    }
}
