//! Rows of nodes and clients, bars of operations, dots of deliveries: at most 10,000 of them, around the violations.

use super::Bands;
use super::svg::{BAD, FAIL, Frame, INFO, OK, legend};
use crate::checker::Verdict;
use crate::checker::model::{Index, Map, Model};
use crate::history::{Kind, Op, Process};
use std::collections::BTreeSet;

pub fn render(model: &Model, verdict: &Verdict, bands: &Bands) -> String {
    if model.events.is_empty() {
        return String::new();
    }
    let bad: BTreeSet<Index> = verdict
        .violations
        .iter()
        .flat_map(|found| &found.events)
        .map(|at| *at as Index)
        .collect();
    let (from, until) = window(model, &bad);
    let rows = rows(model, from, until);
    let seconds = (model.seconds(from), model.seconds(until));
    let mut frame = Frame::new(rows.len() as f64 * ROW, seconds.0, seconds.1, bands);
    let place: Map<&str, usize> = rows.iter().enumerate().map(|(at, name)| (*name, at)).collect();
    for (at, name) in rows.iter().enumerate() {
        let y = frame.row(at as f64 * ROW);
        frame.label(y + ROW - 4.0, name);
    }
    let mut open: Map<u64, Index> = Map::default();
    for (index, event) in model.events.iter().enumerate().skip(from).take(until - from + 1) {
        let Some(row) = row_of(&event.op).and_then(|name| place.get(name)) else {
            continue;
        };
        let y = frame.row(*row as f64 * ROW);
        let red = bad.contains(&index);
        let title = format!("{index} {}", event.to_line().trim_end());
        match (&event.process, event.kind) {
            (Process::Number(process), Kind::Invoke) => {
                open.insert(*process, index);
            }
            (Process::Number(process), kind) => {
                let begun = open.remove(process).unwrap_or(from);
                let red = red || bad.contains(&begun);
                let colour = match kind {
                    _ if red => BAD,
                    Kind::Ok => OK,
                    Kind::Fail => FAIL,
                    _ => INFO,
                };
                let x = (frame.x(model.seconds(begun)), frame.x(model.seconds(index)));
                let height = if matches!(event.op, Op::Publish { .. }) {
                    5.0
                } else {
                    3.0
                };
                frame.bar(x, y + 3.0, height, colour, &title);
            }
            _ => {
                let x = frame.x(model.seconds(index));
                let (radius, colour) = match &event.op {
                    _ if red => (3.5, BAD),
                    Op::Recv { .. } => (1.8, "#3566a8"),
                    Op::ConnLost { .. } | Op::CrashClient { .. } | Op::Fault { .. } | Op::Node { .. } => (2.6, "#333"),
                    _ => continue,
                };
                frame.dot(x, y + ROW - 4.5, radius, colour, &title);
            }
        }
    }
    let shown = until - from + 1;
    let kinds = legend(&[
        (OK, "ok"),
        (FAIL, "fail"),
        (INFO, "info"),
        ("#3566a8", "delivery"),
        ("#333", "connection lost, node event"),
        (BAD, "part of a violation"),
    ]);
    format!(
        "<p>{shown} of {} events.</p>{kinds}{}{}",
        model.events.len(),
        bands.legend(),
        frame.finish()
    )
}

/// The events to show: all, or those around the first violations, or the first ones.
fn window(model: &Model, bad: &BTreeSet<Index>) -> (Index, Index) {
    let last = model.events.len() - 1;
    if last < SHOWN {
        return (0, last);
    }
    let first = bad.first().copied().unwrap_or(0);
    let within = bad
        .iter()
        .take_while(|index| **index < first + SHOWN * 8 / 10)
        .last()
        .copied()
        .unwrap_or(first);
    let spare = SHOWN.saturating_sub(within - first) / 2;
    let from = first.saturating_sub(spare);
    (from, (from + SHOWN).min(last))
}

fn rows<'h>(model: &Model<'h>, from: Index, until: Index) -> Vec<&'h str> {
    let mut nodes = BTreeSet::new();
    let mut clients = BTreeSet::new();
    for event in &model.events[from..=until] {
        if let (Some(name), false) = (row_of(&event.op), matches!(event.op, Op::ReadRetained { .. })) {
            let is_node = matches!(event.op, Op::Fault { .. } | Op::Node { .. } | Op::Panic { .. });
            if is_node {
                nodes.insert(name)
            } else {
                clients.insert(name)
            };
        }
    }
    nodes.into_iter().chain(clients.into_iter().take(ROWS)).collect()
}

/// Whose row shows it.
fn row_of(op: &Op) -> Option<&str> {
    match op {
        Op::Connect { client, .. }
        | Op::ConnLost { client, .. }
        | Op::Disconnect { client, .. }
        | Op::CrashClient { client }
        | Op::Subscribe { client, .. }
        | Op::Unsubscribe { client, .. }
        | Op::Publish { client, .. }
        | Op::Resend { client, .. }
        | Op::PublishComplete { client, .. }
        | Op::Recv { client, .. }
        | Op::AckSent { client, .. }
        | Op::Ping { client, .. }
        | Op::ReadRetained { client, .. } => Some(client),
        Op::Fault { nodes, .. } => nodes.first().map(String::as_str),
        Op::Node { node, .. } | Op::Panic { node, .. } => Some(node),
        Op::Phase { .. } | Op::Observe { .. } | Op::HarnessFailure { .. } => None,
    }
}

const SHOWN: usize = 10_000;
/// 80: a page or two. More clients are seldom looked at.
const ROWS: usize = 80;
const ROW: f64 = 16.0;
