//! Pure functions from a history to what is wrong with it. No I/O.
//!
//!     history ──▶ Model ──▶ one checker per invariant ──▶ Findings ──▶ Verdict      (`judge`)
//!                                    ▲
//!                        Profile: which ones, limits, coverage
//!
//! Two rules hold for every checker:
//! - `sure-duty`: a duty comes only from what surely happened; what is possible permits.
//! - `no-wolf`: an operation that ended with `info` may have happened at any time since, or never.
//!
//! Exactness ends where the standard leaves freedom: a QoS 1 PUBLISH that was sent twice is two messages to a broker, so
//! checks of order look only at those sent once.

pub mod availability;
pub mod back_quickly;
pub mod barrier;
pub mod connection;
pub mod convergence;
pub mod coverage;
pub mod damage;
pub mod delivery;
pub mod exactly_once;
pub mod exits;
pub mod flow;
pub mod integrity;
pub mod ledger;
pub mod model;
pub mod order;
pub mod panic;
pub mod real_time;
pub mod recovery;
pub mod register;
pub mod repeats;
pub mod session_present;
pub mod shared;
pub mod total_order;
mod verdict;
pub mod will;

pub use coverage::{Covered, Requirement};
pub use model::Model;
pub use verdict::{Limits, Profile, SHOWN_PER_CLASS, Validity, Verdict, judge};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One thing that must not be, with the events that show it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Violation {
    /// The checker's name.
    pub checker: String,
    /// A closed vocabulary, for example `lost-middle`, `zombie-ack`.
    pub class: String,
    /// `P1` … `P10`, or `-`.
    pub promise: String,
    pub message: String,
    /// Indexes of the events around it: the minimal excerpt.
    pub events: Vec<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    pub violations: Vec<Violation>,
    /// Why a verdict could not be reached; makes the run `unknown`.
    pub unknown: Vec<String>,
    /// What it counted; coverage reads these.
    pub metrics: BTreeMap<String, f64>,
}

impl Findings {
    fn violation(&mut self, of: (&str, &str, &str), message: String, events: impl IntoIterator<Item = usize>) {
        let (checker, class, promise) = of;
        let mut events: Vec<u64> = events
            .into_iter()
            .filter(|index| *index != model::NEVER)
            .map(|index| index as u64)
            .collect();
        events.sort_unstable();
        events.dedup();
        self.violations.push(Violation {
            checker: checker.into(),
            class: class.into(),
            promise: promise.into(),
            message,
            events,
        });
    }

    fn count(&mut self, metric: &str, by: f64) {
        *self.metrics.entry(metric.into()).or_default() += by;
    }

    fn greatest(&mut self, metric: &str, value: f64) {
        let metric = self.metrics.entry(metric.into()).or_insert(value);
        *metric = metric.max(value);
    }

    /// p50, p99 and max of a set of durations in seconds.
    fn percentiles(&mut self, metric: &str, mut seconds: Vec<f64>) {
        seconds.sort_by(f64::total_cmp);
        let Some(last) = seconds.len().checked_sub(1) else {
            return;
        };
        for (name, at) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
            let value = seconds[(last as f64 * at).round() as usize];
            self.metrics.insert(format!("{metric}.{name}"), value);
        }
        self.metrics.insert(format!("{metric}.count"), last as f64 + 1.0);
    }

    fn merge(&mut self, other: Findings) {
        self.violations.extend(other.violations);
        self.unknown.extend(other.unknown);
        self.metrics.extend(other.metrics);
    }
}

/// Looks at a history for one invariant.
pub type Check = fn(&Model, &Limits) -> Findings;

/// All checkers by name, in the order of the reports.
pub const CHECKERS: [(&str, Check); 23] = [
    ("delivery", delivery::check),
    ("exactly_once", exactly_once::check),
    ("order", order::check),
    ("repeats", repeats::check),
    ("total_order", total_order::check),
    ("real_time", real_time::check),
    ("barrier", barrier::check),
    ("register", register::check),
    ("connection", connection::check),
    ("will", will::check),
    ("shared", shared::check),
    ("session_present", session_present::check),
    ("integrity", integrity::check),
    ("flow", flow::check),
    ("convergence", convergence::check),
    ("damage", damage::check),
    ("ledger", ledger::check),
    ("recovery", recovery::check),
    ("back_quickly", back_quickly::check),
    ("panic", panic::check),
    ("exits", exits::check),
    ("availability", availability::check),
    ("coverage", |_, _| Findings::default()),
];

#[cfg(test)]
mod tests;
