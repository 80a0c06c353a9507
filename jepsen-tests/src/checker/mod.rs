//! Pure functions from a history to what is wrong with it. No I/O.

use crate::history::Event;
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

pub trait Checker {
    fn name(&self) -> &'static str;
    fn check(&self, history: &[Event]) -> Findings;
}
