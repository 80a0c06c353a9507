//! (q) What was served while faults were on: shares of outcomes, latencies, and the longest silence.

use super::model::{Model, NEVER, Outcome};
use super::{Findings, Limits};

pub fn check(model: &Model, limits: &Limits) -> Findings {
    let mut findings = Findings::default();
    let from = model.phases.start("faults").unwrap_or(0);
    let until = model.phases.start("heal").unwrap_or(model.phases.drain_end);
    let mut latencies = Vec::new();
    let mut ends = Vec::new();
    let mut tried = 0_usize;
    for published in &model.messages {
        let asked = published.qos > 0 && !published.will && (from..until).contains(&published.invoke);
        if !asked {
            continue;
        }
        tried += 1;
        if published.outcome == Outcome::Ok && published.end != NEVER {
            latencies.push(model.seconds(published.end) - model.seconds(published.invoke));
            ends.push(published.end);
        }
    }
    if tried == 0 {
        return findings;
    }
    findings.count("availability.publishes", tried as f64);
    findings.count("availability.ok_share", ends.len() as f64 / tried as f64);
    findings.percentiles("availability.publish_seconds", latencies);
    ends.push(from);
    ends.push(until.min(model.events.len().saturating_sub(1)));
    ends.sort_unstable();
    let gap = |pair: &[usize]| model.seconds(pair[1]) - model.seconds(pair[0]);
    let longest = ends.windows(2).max_by(|a, b| gap(a).total_cmp(&gap(b)));
    if let Some(pair) = longest {
        let seconds = gap(pair);
        findings.greatest("availability.longest_gap_seconds", seconds);
        if limits.availability_gap.is_some_and(|limit| seconds > limit) {
            let message = format!("no publish was acknowledged for {seconds:.1} s");
            findings.violation(("availability", "unavailable", "P10"), message, [pair[0], pair[1]]);
        }
    }
    findings
}
