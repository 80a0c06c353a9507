//! Violations with the few events that show them.

use super::svg::escape;
use crate::checker::model::Model;
use crate::checker::{Verdict, Violation};
use crate::history::Op;
use std::fmt::Write;

pub fn violations(model: &Model, verdict: &Verdict) -> String {
    let mut text = String::new();
    for (at, found) in verdict.violations.iter().enumerate() {
        let open = if at < OPEN { " open" } else { "" };
        let _ = write!(
            text,
            "<details{open}><summary><span class=\"tag\">{}</span>{} · {} · {}</summary>{}</details>",
            escape(&found.class),
            escape(&found.checker),
            escape(&found.promise),
            escape(&found.message),
            excerpt(model, found),
        );
    }
    text
}

/// The events of a violation, and the faults on the way from the first to the last.
fn excerpt(model: &Model, found: &Violation) -> String {
    let (Some(first), Some(last)) = (found.events.first(), found.events.last()) else {
        return String::new();
    };
    let between = *first as usize..=*last as usize;
    let fault = |index: &usize| matches!(model.events.get(*index).map(|event| &event.op), Some(Op::Fault { .. }));
    let mut indexes: Vec<usize> = between.filter(fault).take(FAULTS).collect();
    indexes.extend(found.events.iter().map(|index| *index as usize));
    indexes.sort_unstable();
    indexes.dedup();
    let mut text = String::from("<pre>");
    for index in indexes {
        if let Some(event) = model.events.get(index) {
            let _ = writeln!(
                text,
                "{:>9.3} s  {}",
                model.seconds(index),
                escape(event.to_line().trim_end())
            );
        }
    }
    text + "</pre>"
}

const OPEN: usize = 5;
const FAULTS: usize = 8;
