//! (c1) What a publisher sent on one connection, to one topic, at one QoS, arrives in that order. [MQTT-4.6.0-5]
//!
//! Only the first delivery of each message counts. No claim is made across connections, topics or QoS levels, nor for what
//! came through a shared subscription.

use super::model::{Delivery, Map, Model};
use super::{Findings, Limits};

/// Life, publisher, topic, QoS.
type Stream = (u32, u32, u32, u8);

pub fn check(model: &Model, _: &Limits) -> Findings {
    let mut findings = Findings::default();
    // Of each stream and connection of its publisher: the highest sequence number that came, and its delivery.
    let mut highest: Map<(Stream, u32), (u64, u32)> = Map::default();
    for (at, delivery) in first_deliveries(model) {
        let (Some(life), Some(number)) = (delivery.life, delivery.message) else {
            continue;
        };
        let published = &model.messages[number as usize];
        if published.will || model.is_shared(life, published.topic) {
            continue;
        }
        let stream = (life, published.publisher, published.topic, published.qos);
        let seq = published.message.seq;
        let mut overtaken = None;
        for (connection, _) in &published.sends {
            let (newest, by) = highest.entry((stream, *connection)).or_insert((seq, at));
            if *newest > seq {
                overtaken = Some(*by);
            } else {
                (*newest, *by) = (seq, at);
            }
        }
        let Some(by) = overtaken else { continue };
        // Sent again, it may not have been matched the first time.
        let matched = published.sends.len() < 2
            || model
                .surely_held(life, published.topic, published.invoke, delivery.index)
                .is_some();
        if !matched {
            continue;
        }
        let by = &model.deliveries[by as usize];
        let other = by.message.map_or(published, |number| &model.messages[number as usize]);
        let message = format!(
            "{} got {} {} of {} (QoS {}) after {}",
            model.client_of(life),
            published.message.topic,
            seq,
            published.message.publisher,
            published.qos,
            other.message.seq,
        );
        let events = [published.invoke, other.invoke, by.index, delivery.index];
        findings.violation(("order", "reordered", "P3"), message, events);
    }
    findings
}

/// The first live copy of each message in each life, with its number, in order.
pub fn first_deliveries<'m, 'h>(model: &'m Model<'h>) -> impl Iterator<Item = (u32, &'m Delivery<'h>)> {
    let mut seen = vec![false; model.deliveries.len()];
    for (_, _, copies) in model.copy_groups() {
        if let Some(first) = copies.iter().find(|copy| model.is_live(copy)) {
            let at = model
                .deliveries
                .partition_point(|delivery| delivery.index < first.index);
            seen[at] = true;
        }
    }
    let first = move |(at, _): &(usize, &Delivery)| seen[*at];
    model
        .deliveries
        .iter()
        .enumerate()
        .filter(first)
        .map(|(at, delivery)| (at as u32, delivery))
}
