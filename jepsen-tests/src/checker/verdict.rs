//! From a history to a verdict: which checkers run, under which limits, and what their findings sum up to.
//!
//!     verdict = valid ∧ covered ∧ recovered
//!
//! A run in which nothing happened proves nothing: missing coverage, a failure of the harness, or a fact that could not be
//! seen makes it `unknown`, never a pass.

use super::coverage::{Covered, Requirement};
use super::{CHECKERS, Findings, Model, Violation};
use crate::history::Event;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;

/// What a workload under a nemesis is judged by.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Profile {
    pub name: String,
    /// Names of checkers; empty: all of them.
    pub checkers: Vec<String>,
    pub coverage: Vec<Requirement>,
    pub limits: Limits,
}

/// Times are in seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// P10: how long a topic, or a client that lost its node, may be without service after a fault. None: only measured.
    pub recovery: Option<f64>,
    /// How long after `heal` each node may take to its first operation that succeeds. None: only measured.
    pub heal: Option<f64>,
    /// How long the old connection may stay open after the CONNACK of a take-over. None: only measured.
    pub fence: Option<f64>,
    /// How late a will may be seen, after its delay. None: only measured.
    pub will: Option<f64>,
    /// How long an acknowledged message may take to a subscriber that is served all the while.
    pub arrival: f64,
    /// P10: how long a fault that leaves a majority alive may keep a topic, or a client that lost its node, without service.
    /// None: only measured.
    pub back: Option<f64>,
    /// The longest time without any acknowledged publish in the fault phase. None: only measured.
    pub availability_gap: Option<f64>,
    /// Until the broker surely noticed that a connection ended whose end only the client saw: 1.5 × keep-alive and some.
    pub detection: f64,
    /// How much earlier than computed a session may expire.
    pub expiry_early: f64,
    /// How much later than computed a session may still be there: the cluster's time stands still while it has no leader.
    pub expiry_late: f64,
    /// For how long a CONNECT without CONNACK may still take effect: the longest pause of a node.
    pub late_effect: f64,
    /// An acknowledgement that the broker has read is surely settled after so long: it is committed in batches.
    pub settle: f64,
    /// Report copies that a publisher's retransmission explains, and those that come late.
    pub strict_duplicates: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            recovery: None,
            heal: None,
            fence: None,
            will: None,
            arrival: 10.0,
            back: None,
            availability_gap: None,
            detection: 15.0,
            expiry_early: 1.0,
            expiry_late: 30.0,
            late_effect: 30.0,
            settle: 5.0,
            strict_duplicates: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    True,
    False,
    Unknown,
}

impl Validity {
    /// Of the process that judges: 0, 1, 2.
    pub fn exit_code(self) -> i32 {
        match self {
            Validity::True => 0,
            Validity::False => 1,
            Validity::Unknown => 2,
        }
    }
}

impl Serialize for Validity {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Validity::True => to.serialize_bool(true),
            Validity::False => to.serialize_bool(false),
            Validity::Unknown => to.serialize_str("unknown"),
        }
    }
}

impl<'de> Deserialize<'de> for Validity {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(from)?;
        match value {
            serde_json::Value::Bool(true) => Ok(Validity::True),
            serde_json::Value::Bool(false) => Ok(Validity::False),
            serde_json::Value::String(word) if word == "unknown" => Ok(Validity::Unknown),
            other => Err(serde::de::Error::custom(format!(
                "{other} is not true, false or \"unknown\""
            ))),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    pub profile: String,
    pub valid: Validity,
    /// Every requirement of coverage is met.
    pub covered: bool,
    /// No checker of recovery found anything.
    pub recovered: bool,
    /// At most [`SHOWN_PER_CLASS`] of each class; `metrics` has the true numbers.
    pub violations: Vec<Violation>,
    /// Why the run is unknown.
    pub unknown: Vec<String>,
    pub coverage: Vec<Covered>,
    pub metrics: BTreeMap<String, f64>,
}

impl Verdict {
    /// The classes that were found, each once, in order.
    pub fn classes(&self) -> Vec<&str> {
        let mut classes: Vec<&str> = self.violations.iter().map(|found| found.class.as_str()).collect();
        classes.sort_unstable();
        classes.dedup();
        classes
    }

    /// As `results.json` holds it.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a verdict has only JSON's types")
    }
}

/// Says whether the promises held in `history`, as far as `profile` asks.
pub fn judge(history: &[Event], profile: &Profile) -> Verdict {
    let model = Model::new(history, &profile.limits);
    let mut all = Findings {
        unknown: model.unknown.clone(),
        ..Findings::default()
    };
    for name in &profile.checkers {
        if !CHECKERS.iter().any(|(known, _)| known == name) {
            all.unknown.push(format!("there is no checker {name:?}"));
        }
    }
    for (name, check) in CHECKERS {
        if profile.checkers.is_empty() || profile.checkers.iter().any(|wanted| wanted == name) {
            all.merge(check(&model, &profile.limits));
        }
    }
    let coverage = super::coverage::check(&model, &profile.coverage);
    let missing: Vec<String> = coverage.iter().filter(|row| !row.met).map(Covered::to_string).collect();
    let covered = missing.is_empty();
    all.unknown.extend(missing);
    let recovered = !all
        .violations
        .iter()
        .any(|found| ["recovery", "back_quickly"].contains(&found.checker.as_str()));
    let valid = match (all.violations.is_empty(), all.unknown.is_empty()) {
        (false, _) => Validity::False,
        (true, false) => Validity::Unknown,
        (true, true) => Validity::True,
    };
    Verdict {
        profile: profile.name.clone(),
        valid,
        covered,
        recovered,
        violations: shorten(all.violations, &mut all.metrics),
        unknown: all.unknown,
        coverage,
        metrics: all.metrics,
    }
}

/// Counts the violations of each class and keeps the first few.
fn shorten(mut violations: Vec<Violation>, metrics: &mut BTreeMap<String, f64>) -> Vec<Violation> {
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    violations.retain(|found| {
        let count = counts.entry((found.checker.clone(), found.class.clone())).or_default();
        *count += 1;
        *count <= SHOWN_PER_CLASS
    });
    for ((checker, class), count) in counts {
        metrics.insert(format!("violations.{checker}.{class}"), count as f64);
    }
    violations
}

/// 50: a lost shard means thousands of lost messages, and nobody reads more than a few.
pub const SHOWN_PER_CLASS: usize = 50;
