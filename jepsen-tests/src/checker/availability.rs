//! (q) What was served while faults were on: shares of outcomes, latencies, and the longest silence.

use super::model::{Model, NEVER, Outcome};
use super::{Findings, Limits};

pub fn check(model: &Model, limits: &Limits) -> Findings {
    let mut findings = Findings::default();
    let from = model.phases.start("faults").unwrap_or(0);
    let until = model.phases.start("heal").unwrap_or(model.phases.drain_end);
    let mut latencies = Vec::new();
    let mut ends = Vec::new();
    let mut asked = Vec::new();
    for published in &model.messages {
        let counts = published.qos > 0 && !published.will && (from..until).contains(&published.invoke);
        if !counts {
            continue;
        }
        asked.push(published.invoke);
        if published.outcome == Outcome::Ok && published.end != NEVER {
            latencies.push(model.seconds(published.end) - model.seconds(published.invoke));
            ends.push(published.end);
        }
    }
    if asked.is_empty() {
        return findings;
    }
    findings.count("availability.publishes", asked.len() as f64);
    findings.count("availability.ok_share", ends.len() as f64 / asked.len() as f64);
    findings.percentiles("availability.publish_seconds", latencies);
    ends.push(from);
    ends.push(until.min(model.events.len().saturating_sub(1)));
    ends.sort_unstable();
    asked.sort_unstable();
    // Where nobody asked, nobody was refused.
    let waited = |pair: &[usize]| {
        let first = asked
            .get(asked.partition_point(|index| *index < pair[0]))
            .copied()
            .unwrap_or(pair[1]);
        [first.min(pair[1]), pair[1]]
    };
    let gap = |pair: &[usize; 2]| model.seconds(pair[1]) - model.seconds(pair[0]);
    let longest = ends.windows(2).map(waited).max_by(|a, b| gap(a).total_cmp(&gap(b)));
    if let Some(pair) = longest {
        let seconds = gap(&pair);
        findings.greatest("availability.longest_gap_seconds", seconds);
        if limits.availability_gap.is_some_and(|limit| seconds > limit) {
            let message = format!("no publish was acknowledged for {seconds:.1} s");
            findings.violation(("availability", "unavailable", "P10"), message, pair);
        }
    }
    findings
}
