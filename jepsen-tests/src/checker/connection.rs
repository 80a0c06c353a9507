//! (f) A client id is served by one connection.
//!
//!     A: CONNECT ── CONNACK ─────────────── served ──┊
//!     B:                     CONNECT ─── CONNACK ────┊── from here on nothing more on A
//!
//! - f1: what is sent on A after B's CONNACK is not acknowledged (`zombie-ack`). A broker cannot stop time on a node that
//!   is cut off; it can see to it that such a node answers nobody.
//! - f2: A is closed within a bound.
//! - f3: what is published after B's CONNACK does not come on A.
//! - f4: the CONNACKs of concurrent CONNECTs are explained by some order of them.

use super::model::{Connection, Index, Lie, Model, NEVER, Outcome};
use super::{Findings, Limits};

pub fn check(model: &Model, limits: &Limits) -> Findings {
    let mut findings = Findings::default();
    let fences = fences(model);
    zombie_acks(model, &fences, &mut findings);
    zombie_deliveries(model, &fences, &mut findings);
    two_at_once(model, &mut findings);
    fence_times(model, &fences, limits, &mut findings);
    for step in model.connacks.iter().filter(|step| step.lie == Some(Lie::Inexplicable)) {
        let connections = || step.connections.iter().map(|at| &model.connections[*at as usize]);
        let message = format!(
            "no order of {} concurrent CONNECTs of {} explains their Session Present flags",
            step.connections.len(),
            model.clients.name(step.client),
        );
        let events = connections().flat_map(|connection| [connection.invoke, connection.answer]);
        findings.violation(("connection", "inexplicable-connacks", "P6"), message, events);
    }
    findings
}

/// Of each connection: the CONNACK after which it must be silent, that of the first connection opened surely after it.
fn fences(model: &Model) -> Vec<Index> {
    let mut fences = vec![NEVER; model.connections.len()];
    let mut of_client: Vec<Vec<usize>> = vec![Vec::new(); model.clients.len()];
    for (at, connection) in model.connections.iter().enumerate() {
        if connection.outcome == Outcome::Ok {
            of_client[connection.client as usize].push(at);
        }
    }
    for connections in of_client {
        let mut first_after = vec![NEVER; connections.len() + 1];
        for at in (0..connections.len()).rev() {
            first_after[at] = first_after[at + 1].min(model.connections[connections[at]].answer);
        }
        for connection in &connections {
            let answer = model.connections[*connection].answer;
            let later = connections.partition_point(|other| model.connections[*other].invoke < answer);
            fences[*connection] = first_after[later];
        }
    }
    fences
}

fn describe(model: &Model, connection: &Connection) -> String {
    format!(
        "connection {} of {} to {}",
        connection.number,
        model.clients.name(connection.client),
        model.nodes.name(connection.node),
    )
}

fn zombie_acks(model: &Model, fences: &[Index], findings: &mut Findings) {
    for exchange in &model.exchanges {
        let fence = fences[exchange.connection as usize];
        if exchange.sent > fence {
            let connection = &model.connections[exchange.connection as usize];
            let message = format!(
                "{} answered a {:?} sent {:.3} s after the CONNACK of its successor",
                describe(model, connection),
                exchange.kind,
                model.seconds(exchange.sent) - model.seconds(fence),
            );
            let events = [fence, exchange.sent, exchange.answered];
            findings.violation(("connection", "zombie-ack", "P6"), message, events);
        }
    }
}

fn zombie_deliveries(model: &Model, fences: &[Index], findings: &mut Findings) {
    for delivery in &model.deliveries {
        let fence = fences[delivery.connection as usize];
        if fence > delivery.index {
            continue;
        }
        let published = delivery.message.map(|number| &model.messages[number as usize]);
        if let Some(published) = published.filter(|published| published.invoke > fence && !published.will) {
            let connection = &model.connections[delivery.connection as usize];
            let message = format!(
                "{} brought {} {} of {}, sent after the CONNACK of its successor",
                describe(model, connection),
                published.message.topic,
                published.message.seq,
                published.message.publisher,
            );
            let events = [fence, published.invoke, delivery.index];
            findings.violation(("connection", "zombie-delivery", "P6"), message, events);
        }
    }
}

/// Connections whose CONNECTs overlapped: either may have been first, but not both are served afterwards.
fn two_at_once(model: &Model, findings: &mut Findings) {
    let mut sent: Vec<Vec<Index>> = vec![Vec::new(); model.connections.len()];
    for exchange in &model.exchanges {
        sent[exchange.connection as usize].push(exchange.sent);
    }
    for step in model.connacks.iter().filter(|step| step.connections.len() > 1) {
        let all = step
            .connections
            .iter()
            .map(|at| model.connections[*at as usize].answer)
            .max();
        let after = all.unwrap_or(NEVER);
        let served: Vec<(u32, Index)> = step
            .connections
            .iter()
            .filter_map(|at| Some((*at, *sent[*at as usize].iter().find(|sent| **sent > after)?)))
            .collect();
        if let [(a, at_a), (b, at_b), ..] = served[..] {
            let message = format!(
                "{} and {} were both served after both CONNACKs",
                describe(model, &model.connections[a as usize]),
                describe(model, &model.connections[b as usize]),
            );
            findings.violation(("connection", "two-served", "P6"), message, [after, at_a, at_b]);
        }
    }
}

fn fence_times(model: &Model, fences: &[Index], limits: &Limits, findings: &mut Findings) {
    let mut times = Vec::new();
    for (connection, fence) in model.connections.iter().zip(fences) {
        let ended = connection.end.unwrap_or(NEVER);
        if *fence == NEVER || ended < *fence {
            continue;
        }
        let open = model.seconds(ended.min(model.events.len() - 1)) - model.seconds(*fence);
        times.push(open);
        if limits.fence.is_some_and(|limit| open > limit) {
            let message = format!(
                "{} stayed open for {open:.1} s after it was taken over",
                describe(model, connection)
            );
            findings.violation(("connection", "not-closed", "P6"), message, [*fence, ended]);
        }
    }
    findings.count("connection.take_overs", times.len() as f64);
    findings.percentiles("connection.fence_seconds", times);
}
