//! (c4) What was acknowledged before another message of its topic was sent comes before it, in every session.
//!
//! Of durable messages only: others do not pass through the topic's log, and a node may be behind.

use super::model::{Map, Model, NEVER, Outcome};
use super::order::first_deliveries;
use super::total_order::durable;
use super::{Findings, Limits};

pub fn check(model: &Model, _: &Limits) -> Findings {
    let mut findings = Findings::default();
    let durable = durable(model);
    // Of each life and topic: the message sent last among those that came, and its delivery.
    let mut latest: Map<(u32, u32), (u32, usize)> = Map::default();
    for (_, delivery) in first_deliveries(model) {
        let (Some(life), Some(number)) = (delivery.life, delivery.message) else {
            continue;
        };
        let published = &model.messages[number as usize];
        if !durable[number as usize] || model.is_shared(life, published.topic) {
            continue;
        }
        let (other, at) = *latest
            .entry((life, published.topic))
            .or_insert((number, delivery.index));
        let other = &model.messages[other as usize];
        if other.invoke <= published.invoke {
            latest.insert((life, published.topic), (number, delivery.index));
        }
        let acknowledged = if published.outcome == Outcome::Ok {
            published.end
        } else {
            NEVER
        };
        // A publisher's own order is (c1)'s business.
        let own = other.publisher == published.publisher && other.qos == published.qos;
        if acknowledged >= other.invoke || (own && shares_connection(published, other)) {
            continue;
        }
        let message = format!(
            "{} got {} {} of {} after {} of {}, which was sent only when the former was acknowledged",
            model.client_of(life),
            published.message.topic,
            published.message.seq,
            published.message.publisher,
            other.message.seq,
            other.message.publisher,
        );
        let events = [published.invoke, published.end, other.invoke, at, delivery.index];
        findings.violation(("real_time", "real-time-order", "P3"), message, events);
    }
    findings
}

fn shares_connection(a: &super::model::Published, b: &super::model::Published) -> bool {
    a.sends
        .iter()
        .any(|(at, _)| b.sends.iter().any(|(other, _)| at == other))
}
