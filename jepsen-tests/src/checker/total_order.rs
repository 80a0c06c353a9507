//! (c3) All sessions see the durable messages of one topic in one order.
//!
//! Each session's first deliveries of a topic are a path; the paths of all sessions together must have no cycle. Left out is
//! what may have two places in that order or none: QoS 1 messages that were sent more than once, and those that took no
//! place in the log because only sessions without persistence wanted them.

use super::model::{Map, Model};
use super::order::first_deliveries;
use super::{Findings, Limits};

pub fn check(model: &Model, _: &Limits) -> Findings {
    let mut findings = Findings::default();
    let durable = durable(model);
    let mut last: Map<(u32, u32), (u32, usize)> = Map::default();
    // Successors of each message, with the delivery of both.
    let mut edges: Vec<Vec<Edge>> = vec![Vec::new(); model.messages.len()];
    for (_, delivery) in first_deliveries(model) {
        let (Some(life), Some(number)) = (delivery.life, delivery.message) else {
            continue;
        };
        let published = &model.messages[number as usize];
        if !durable[number as usize] || model.is_shared(life, published.topic) {
            continue;
        }
        if let Some((before, at)) = last.insert((life, published.topic), (number, delivery.index)) {
            let edge = Edge {
                to: number,
                life,
                events: (at, delivery.index),
            };
            // Sessions mostly agree: the same edge again says nothing new.
            if !edges[before as usize].iter().any(|known| known.to == number) {
                edges[before as usize].push(edge);
            }
        }
    }
    for component in cyclic_components(&edges) {
        let cycle = shortest_cycle(&edges, &component);
        let topic = &model.messages[component[0] as usize].message.topic;
        let steps: Vec<String> = cycle
            .iter()
            .map(|(from, edge)| {
                let (from, to) = (&model.messages[*from as usize], &model.messages[edge.to as usize]);
                format!(
                    "{} saw {} {} before {} {}",
                    model.client_of(edge.life),
                    from.message.publisher,
                    from.message.seq,
                    to.message.publisher,
                    to.message.seq,
                )
            })
            .collect();
        let message = format!("sessions disagree on the order of {topic}: {}", steps.join("; "));
        let events = cycle.iter().flat_map(|(_, edge)| [edge.events.0, edge.events.1]);
        findings.violation(("total_order", "order-cycle", "P3"), message, events);
    }
    findings
}

#[derive(Clone, Copy, Debug)]
struct Edge {
    to: u32,
    life: u32,
    events: (usize, usize),
}

/// Messages that surely have one place in their topic's log.
pub fn durable(model: &Model) -> Vec<bool> {
    let mut durable: Vec<bool> = model
        .messages
        .iter()
        .map(|published| published.qos == 2 || (published.qos == 1 && published.retain))
        .collect();
    for delivery in &model.deliveries {
        if let (Some(life), Some(number)) = (delivery.life, delivery.message) {
            let persistent = model.lives[life as usize].persistent && delivery.qos > 0;
            durable[number as usize] |= persistent;
        }
    }
    for (published, durable) in model.messages.iter().zip(&mut durable) {
        *durable &= published.is_single() && published.qos > 0;
    }
    durable
}

/// Tarjan's strongly connected components of more than one message, without recursion.
fn cyclic_components(edges: &[Vec<Edge>]) -> Vec<Vec<u32>> {
    const UNSEEN: u32 = u32::MAX;
    let mut order = vec![UNSEEN; edges.len()];
    let mut low = vec![0_u32; edges.len()];
    let mut on_stack = vec![false; edges.len()];
    let (mut stack, mut found, mut next) = (Vec::new(), Vec::new(), 0);
    for root in 0..edges.len() {
        if order[root] != UNSEEN || edges[root].is_empty() {
            continue;
        }
        let mut calls: Vec<(usize, usize)> = vec![(root, 0)];
        while let Some((node, at)) = calls.pop() {
            if at == 0 {
                (order[node], low[node]) = (next, next);
                next += 1;
                stack.push(node as u32);
                on_stack[node] = true;
            }
            if let Some(edge) = edges[node].get(at) {
                calls.push((node, at + 1));
                let to = edge.to as usize;
                if order[to] == UNSEEN {
                    calls.push((to, 0));
                } else if on_stack[to] {
                    low[node] = low[node].min(order[to]);
                }
                continue;
            }
            if let Some((parent, _)) = calls.last() {
                low[*parent] = low[*parent].min(low[node]);
            }
            if low[node] == order[node] {
                let from = stack.iter().rposition(|member| *member as usize == node).unwrap_or(0);
                let component = stack.split_off(from);
                for member in &component {
                    on_stack[*member as usize] = false;
                }
                if component.len() > 1 {
                    found.push(component);
                }
            }
        }
    }
    found
}

/// A cycle through a member of the component that has one of the fewest edges, for people to read.
fn shortest_cycle(edges: &[Vec<Edge>], component: &[u32]) -> Vec<(u32, Edge)> {
    let inside: Map<u32, ()> = component.iter().map(|member| (*member, ())).collect();
    let mut best: Vec<(u32, Edge)> = Vec::new();
    for start in component.iter().take(CYCLE_STARTS) {
        let mut from: Map<u32, (u32, Edge)> = Map::default();
        let mut queue = std::collections::VecDeque::from([*start]);
        while let Some(node) = queue.pop_front() {
            for edge in edges[node as usize].iter().filter(|edge| inside.contains_key(&edge.to)) {
                if let std::collections::hash_map::Entry::Vacant(entry) = from.entry(edge.to) {
                    entry.insert((node, *edge));
                    queue.push_back(edge.to);
                }
            }
            if from.contains_key(start) {
                break;
            }
        }
        let mut cycle = Vec::new();
        let mut at = *start;
        while let Some(step) = from.get(&at) {
            cycle.push(*step);
            at = step.0;
            if at == *start {
                break;
            }
        }
        cycle.reverse();
        if best.is_empty() || (!cycle.is_empty() && cycle.len() < best.len()) {
            best = cycle;
        }
    }
    best
}

/// 16: enough to find a short one; each costs a walk over the component.
const CYCLE_STARTS: usize = 16;
