//! (o) No node writes a panic, a failed assertion or corruption into its log.

use super::model::Model;
use super::{Findings, Limits};
use crate::history::Op;

pub fn check(model: &Model, _: &Limits) -> Findings {
    let mut findings = Findings::default();
    for (index, event) in model.events.iter().enumerate() {
        if let Op::Panic { node, line } = &event.op {
            findings.violation(("panic", "panic", "P9"), format!("{node}: {line}"), [index]);
        }
    }
    findings
}
