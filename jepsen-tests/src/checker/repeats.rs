//! (c2) When a QoS 1 message may come more than once, and what DUP must say then.
//!
//! Each PUBLISH that the publisher put on the wire may be a message of its own to the broker: an *entry*. An entry
//! - comes at most once on a connection [MQTT-4.4.0-1],
//! - not any more once its PUBACK is surely settled,
//! - and at most once without DUP [MQTT-3.3.1-1].
//!
//! After a take-over or the death of a node, a broker that does not know what was sent sets DUP on all that may have been: a
//! first copy with DUP is legal, except in a session's first connection, where nothing can have been sent before.

use super::model::{Delivery, Map, Model, Published};
use super::{Findings, Limits};

pub fn check(model: &Model, limits: &Limits) -> Findings {
    let mut findings = Findings::default();
    for (life, number, copies) in model.copy_groups() {
        let published = &model.messages[number as usize];
        if published.will {
            continue;
        }
        let copies: Vec<&Delivery> = copies
            .into_iter()
            .filter(|copy| copy.qos == 1 && model.is_live(copy))
            .collect();
        let Some(first) = copies.first() else { continue };
        if first.dup && !model.is_shared(life, published.topic) && is_first_connection(model, life, first) {
            let message = describe(
                model,
                life,
                published,
                "with DUP, though nothing can have been sent before",
            );
            findings.violation(("repeats", "false-dup", "P3"), message, [published.invoke, first.index]);
        }
        if copies.len() < 2 {
            continue;
        }
        findings.count("repeats.copies", copies.len() as f64 - 1.0);
        let entries = entries(model, life, published);
        let events = || {
            copies
                .iter()
                .map(|copy| copy.index)
                .chain([published.invoke, published.end])
        };
        if let Some(why) = too_many(model, &copies, entries, limits) {
            let message = describe(model, life, published, &why);
            findings.violation(("repeats", "unexplained-duplicate", "P3"), message, events());
            continue;
        }
        let without_dup = copies.iter().filter(|copy| !copy.dup).count();
        // A group may give a message anew to the member that had it before.
        if without_dup > entries && !model.is_shared(life, published.topic) {
            let why = format!("{without_dup} times without DUP, sent {entries} times");
            let message = describe(model, life, published, &why);
            findings.violation(("repeats", "missing-dup", "P3"), message, events());
        } else if without_dup > 1 {
            findings.count("repeats.of_publisher", 1.0);
            if limits.strict_duplicates {
                let message = describe(
                    model,
                    life,
                    published,
                    "again: the publisher's retransmission was stored twice",
                );
                findings.violation(("repeats", "retransmission-stored", "P3"), message, events());
            }
        }
    }
    resend_order(model, &mut findings);
    findings
}

fn describe(model: &Model, life: u32, published: &Published, what: &str) -> String {
    format!(
        "{} got {} {} of {} {what}",
        model.client_of(life),
        published.message.topic,
        published.message.seq,
        published.message.publisher,
    )
}

fn is_first_connection(model: &Model, life: u32, delivery: &Delivery) -> bool {
    let life = &model.lives[life as usize];
    !life.maybe_same
        && life.connections.first() == Some(&delivery.connection)
        && model.connections[delivery.connection as usize].session_present == Some(false)
}

/// How many messages of the broker's a session may have for this one: one per PUBLISH, and those again for each group.
fn entries(model: &Model, life: u32, published: &Published) -> usize {
    let sends = if published.qos == 1 {
        published.send_count as usize
    } else {
        1
    };
    let groups = model
        .holds_of(life, published.topic)
        .filter(|hold| hold.group.is_some())
        .count();
    let ordinary = model.holds_of(life, published.topic).any(|hold| hold.group.is_none());
    sends.max(1) * (groups + usize::from(ordinary)).max(1)
}

/// More copies on a connection than there are entries left unsettled.
fn too_many(model: &Model, copies: &[&Delivery], entries: usize, limits: &Limits) -> Option<String> {
    let mut settled = 0;
    for on_connection in copies.chunk_by(|a, b| a.connection == b.connection) {
        let count = on_connection.len();
        if settled + count > entries {
            return Some(match settled {
                0 => format!("{count} times on one connection, sent {entries} times"),
                _ => format!("again after {settled} of its {entries} copies were surely settled"),
            });
        }
        let is_settled = |copy: &&&Delivery| {
            let acknowledged = copy.acknowledged.map(|(index, _)| index);
            acknowledged.is_some_and(|index| model.surely_settled(copy.connection, index, limits))
        };
        settled += on_connection.iter().filter(is_settled).count();
    }
    None
}

/// What a connection brings again comes in the order in which it came first. [MQTT-4.6.0-5]
fn resend_order(model: &Model, findings: &mut Findings) {
    // Of a connection, a publisher's connection and a topic: the last sequence number.
    let mut last: Map<(u32, u32, u32, u8), (u64, usize)> = Map::default();
    let mut seen: Map<(u32, u32), ()> = Map::default();
    for delivery in &model.deliveries {
        let (Some(life), Some(number)) = (delivery.life, delivery.message) else {
            continue;
        };
        let published = &model.messages[number as usize];
        let [(sent_on, _)] = published.sends[..] else { continue };
        let exempt = delivery.qos == 0 || published.send_count > 1 || model.is_shared(life, published.topic);
        if exempt || !model.is_live(delivery) || !delivery.handed {
            continue;
        }
        let repeated = seen.insert((life, number), ()).is_some();
        let seq = published.message.seq;
        let stream = (delivery.connection, sent_on, published.topic, published.qos);
        let (newest, at) = *last.get(&stream).unwrap_or(&(seq, delivery.index));
        // First copies are the business of (c1); another copy on the same connection is reported as one too many.
        if repeated && delivery.dup && newest > seq && !came_on(model, life, number, delivery) {
            let why = format!("again after {newest}, out of the order of their first copies");
            let message = describe(model, life, published, &why);
            findings.violation(("repeats", "resend-order", "P3"), message, [at, delivery.index]);
        }
        if newest <= seq {
            last.insert(stream, (seq, delivery.index));
        }
    }
}

fn came_on(model: &Model, life: u32, number: u32, delivery: &Delivery) -> bool {
    model
        .copies(life, number)
        .any(|copy| copy.connection == delivery.connection && copy.index < delivery.index)
}
