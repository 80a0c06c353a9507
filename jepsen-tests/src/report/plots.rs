//! Latency, rate, lag and leaders over time.

use super::Bands;
use super::svg::{FAIL, Frame, INFO, OK, legend};
use crate::checker::coverage::leaders as observed_leaders;
use crate::checker::model::{Model, NEVER, Outcome};
use std::collections::BTreeMap;

/// Publishes on a log scale, with percentiles of each stretch of time.
pub fn latency(model: &Model, bands: &Bands) -> String {
    let mut points: Vec<(f64, f64, Outcome)> = Vec::new();
    for published in model
        .messages
        .iter()
        .filter(|published| !published.will && published.qos > 0)
    {
        let end = if published.end == NEVER {
            continue;
        } else {
            published.end
        };
        let began = model.seconds(published.invoke);
        points.push((began, model.seconds(end) - began, published.outcome));
    }
    for published in model
        .messages
        .iter()
        .filter(|published| published.outcome == Outcome::Info && !published.will)
    {
        points.push((model.seconds(published.invoke), f64::NAN, Outcome::Info));
    }
    if points.is_empty() {
        return String::new();
    }
    let mut frame = Frame::new(220.0, 0.0, bands.end, bands);
    // From 0.1 ms to 100 s.
    let share = |seconds: f64| (seconds.max(1e-4).log10() + 4.0) / 6.0;
    for (exponent, text) in [
        (-4, "0.1 ms"),
        (-3, "1 ms"),
        (-2, "10 ms"),
        (-1, "100 ms"),
        (0, "1 s"),
        (1, "10 s"),
    ] {
        frame.grid(f64::from(exponent + 4) / 6.0, text);
    }
    let every = points.len().div_ceil(POINTS).max(1);
    for (began, took, outcome) in points.iter().step_by(every) {
        let (share, colour) = match outcome {
            Outcome::Ok => (share(*took), OK),
            Outcome::Fail => (share(*took), FAIL),
            // How long it was waited for says little: they stand at the top.
            Outcome::Info => (0.99, INFO),
        };
        let (x, y) = (frame.x(*began), frame.y(share));
        frame.dot(x, y, 1.2, colour, "");
    }
    let mut buckets: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for (began, took, _) in points.iter().filter(|(.., outcome)| *outcome == Outcome::Ok) {
        buckets.entry(bucket(*began, bands)).or_default().push(*took);
    }
    for took in buckets.values_mut() {
        took.sort_by(f64::total_cmp);
    }
    for (quantile, colour) in [(0.5, "#1f4e79"), (0.95, "#8c3fa0"), (0.99, "#b03030")] {
        let line: Vec<(f64, f64)> = buckets
            .iter()
            .map(|(at, took)| {
                let value = took[((took.len() - 1) as f64 * quantile).round() as usize];
                (frame.x(middle(*at, bands)), frame.y(share(value)))
            })
            .collect();
        frame.path(&line, colour);
    }
    let names = legend(&[
        (OK, "ok"),
        (FAIL, "fail"),
        (INFO, "info"),
        ("#1f4e79", "p50"),
        ("#8c3fa0", "p95"),
        ("#b03030", "p99"),
    ]);
    names + &frame.finish()
}

fn bucket(seconds: f64, bands: &Bands) -> usize {
    (seconds / bands.end.max(0.001) * BUCKETS) as usize
}

fn middle(bucket: usize, bands: &Bands) -> f64 {
    (bucket as f64 + 0.5) / BUCKETS * bands.end
}

/// Completions and deliveries a second.
pub fn rate(model: &Model, bands: &Bands) -> String {
    let mut series: [(&str, &str, BTreeMap<usize, f64>); 4] = [
        ("publish ok", OK, BTreeMap::new()),
        ("fail", FAIL, BTreeMap::new()),
        ("info", INFO, BTreeMap::new()),
        ("deliveries", "#3566a8", BTreeMap::new()),
    ];
    for published in model.messages.iter().filter(|published| !published.will) {
        let at = match published.outcome {
            Outcome::Ok => 0,
            Outcome::Fail => 1,
            Outcome::Info => 2,
        };
        let seconds = model.seconds(if published.end == NEVER {
            published.invoke
        } else {
            published.end
        });
        *series[at].2.entry(bucket(seconds, bands)).or_default() += 1.0;
    }
    for delivery in &model.deliveries {
        *series[3]
            .2
            .entry(bucket(model.seconds(delivery.index), bands))
            .or_default() += 1.0;
    }
    let width = bands.end.max(0.001) / BUCKETS;
    let most = series
        .iter()
        .flat_map(|(.., counts)| counts.values())
        .fold(0.0_f64, |most, count| most.max(*count));
    lines(
        bands,
        most / width,
        "/s",
        series.map(|(name, colour, counts)| {
            let points = (0..BUCKETS as usize)
                .map(|at| (middle(at, bands), counts.get(&at).copied().unwrap_or(0.0) / width))
                .collect();
            (name, colour, points)
        }),
    )
}

/// How many deliveries are still to come of what was acknowledged, and how old the oldest of them is.
pub fn lag(model: &Model, bands: &Bands) -> String {
    let mut changes: Vec<(usize, f64)> = Vec::new();
    for (_, number, copies) in model.copy_groups() {
        let published = &model.messages[number as usize];
        let first = copies[0].index;
        if published.outcome == Outcome::Ok && published.end < first {
            changes.push((published.end, 1.0));
            changes.push((first, -1.0));
        }
    }
    changes.sort_unstable_by_key(|(index, _)| *index);
    let mut unseen = 0.0;
    let mut most = vec![0.0_f64; BUCKETS as usize + 1];
    let mut at = 0;
    for (index, change) in changes {
        let now = bucket(model.seconds(index), bands).min(BUCKETS as usize);
        for passed in &mut most[at..=now] {
            *passed = passed.max(unseen);
        }
        unseen += change;
        at = now;
        most[at] = most[at].max(unseen);
    }
    let top = most.iter().fold(0.0_f64, |top, count| top.max(*count));
    let points = most
        .iter()
        .enumerate()
        .map(|(at, count)| (middle(at, bands), *count))
        .collect();
    lines(
        bands,
        top,
        "",
        [(
            "acknowledged, and yet to come (most in each stretch)",
            "#3566a8",
            points,
        )],
    )
}

type Series<'a> = (&'a str, &'a str, Vec<(f64, f64)>);

fn lines<const N: usize>(bands: &Bands, most: f64, unit: &str, series: [Series; N]) -> String {
    if most <= 0.0 {
        return String::new();
    }
    let mut frame = Frame::new(140.0, 0.0, bands.end, bands);
    for share in [0.0, 0.5, 1.0] {
        frame.grid(share, &format!("{:.0}{unit}", most * share));
    }
    let mut items = Vec::new();
    for (name, colour, points) in &series {
        let points: Vec<(f64, f64)> = points
            .iter()
            .map(|(at, value)| (frame.x(*at), frame.y(value / most)))
            .collect();
        frame.path(&points, colour);
        items.push((*colour, *name));
    }
    legend(&items) + &frame.finish()
}

/// The leader of each group over time, where it was observed; a dark edge where the term rose.
pub fn leaders(model: &Model, bands: &Bands) -> String {
    let mut groups: BTreeMap<&str, Vec<(f64, &str, u64)>> = BTreeMap::new();
    let seen = observed_leaders(model);
    for (index, group, leader, term) in &seen {
        groups
            .entry(group)
            .or_default()
            .push((model.seconds(*index), leader, *term));
    }
    if groups.is_empty() {
        return String::new();
    }
    let mut nodes: Vec<&str> = seen.iter().map(|(_, _, leader, _)| *leader).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let colour = |leader: &str| {
        let at = nodes.iter().position(|node| *node == leader).unwrap_or(0);
        NODE_COLOURS[at % NODE_COLOURS.len()]
    };
    let mut frame = Frame::new(groups.len() as f64 * 16.0, 0.0, bands.end, bands);
    for (row, (group, stretches)) in groups.iter().enumerate() {
        let y = frame.row(row as f64 * 16.0);
        frame.label(y + 11.0, group);
        for (at, (from, leader, term)) in stretches.iter().enumerate() {
            let until = stretches.get(at + 1).map_or(bands.end, |next| next.0);
            let x = (frame.x(*from), frame.x(until));
            frame.bar(x, y + 2.0, 11.0, colour(leader), &format!("{leader}, term {term}"));
            if at > 0 && stretches[at - 1].2 != *term {
                frame.line((x.0, y + 1.0), (x.0, y + 14.0), "#222", "");
            }
        }
    }
    let items: Vec<(&str, &str)> = nodes.iter().map(|node| (colour(node), *node)).collect();
    legend(&items) + &frame.finish()
}

const BUCKETS: f64 = 120.0;
/// 20,000: beyond it the picture grows and shows no more.
const POINTS: usize = 20_000;
const NODE_COLOURS: [&str; 5] = ["#7aa6d6", "#8cc49a", "#e2b46c", "#c79bd2", "#d98f8f"];
