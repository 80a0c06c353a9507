//! (j) Nothing comes from nowhere, and what comes is what was sent.
//!
//! Each delivery is a message of this run that was invoked and not refused, unaltered, to a subscription that may have
//! matched it, at the QoS that follows from both, with that subscription's identifier and flags.

use super::barrier::{Unmatched, match_until, unmatched};
use super::model::{Delivery, Grant, Hold, Model, Outcome, Published};
use super::{Findings, Limits};
use crate::history::Op;

pub fn check(model: &Model, _: &Limits) -> Findings {
    let mut findings = Findings::default();
    findings.count("integrity.deliveries", model.deliveries.len() as f64);
    for delivery in &model.deliveries {
        if let Some((class, what)) = problem(model, delivery) {
            let published = delivery.message.map(|number| &model.messages[number as usize]);
            let message = format!("{} got {what}", model.clients.name(delivery.client));
            let sent = published.map(|published| [published.invoke, published.end]);
            let events = sent.into_iter().flatten().chain([delivery.index]);
            findings.violation(("integrity", class, "P9"), message, events);
        }
    }
    findings
}

fn problem(model: &Model, delivery: &Delivery) -> Option<(&'static str, String)> {
    let Op::Recv { message, bad, .. } = &model.events[delivery.index].op else {
        return None;
    };
    let name = message.as_ref().map_or("a payload".into(), |message| {
        format!("{} {} of {}", message.topic, message.seq, message.publisher)
    });
    if let Some(bad) = bad {
        return Some(("altered", format!("{name}, altered: {bad}")));
    }
    let Some(number) = delivery.message else {
        return Some(("from-nowhere", format!("{name}, which nobody published")));
    };
    let published = &model.messages[number as usize];
    if published.invoke > delivery.index {
        return Some(("from-nowhere", format!("{name} before it was published")));
    }
    if published.outcome == Outcome::Fail {
        return Some(("refused-delivered", format!("{name}, whose publishing was refused")));
    }
    if delivery.retain && !published.retain {
        return Some(("retain-flag", format!("{name} with RETAIN, sent without")));
    }
    if model.readers.contains_key(&delivery.connection) {
        return None;
    }
    if matches!(unmatched(model, delivery), Some(Unmatched::Never)) {
        return Some(("unmatched", format!("{name}, to which it had no subscription")));
    }
    subscription_problem(model, delivery, published).map(|(class, what)| (class, format!("{name}, {what}")))
}

/// What does not fit the options of the subscriptions that may have matched.
fn subscription_problem(model: &Model, delivery: &Delivery, published: &Published) -> Option<(&'static str, String)> {
    let life = delivery.life?;
    let until = match_until(model, published, delivery);
    let from = if model.is_live(delivery) { published.invoke } else { 0 };
    let holds: Vec<&Hold> = model
        .holds_of(life, published.topic)
        .filter(|hold| hold.is_possible_within(from, until))
        .collect();
    let grants: Vec<&Grant> = holds.iter().flat_map(|hold| hold.grants_within(from, until)).collect();
    if grants.is_empty() {
        return None;
    }
    if !grants.iter().any(|grant| grant.qos.min(published.qos) == delivery.qos) {
        let granted: Vec<u8> = grants.iter().map(|grant| grant.qos).collect();
        let what = format!(
            "sent at QoS {}, granted {granted:?}, at QoS {}",
            published.qos, delivery.qos
        );
        return Some(("qos", what));
    }
    if published.client == delivery.client && !published.will && grants.iter().all(|grant| grant.no_local) {
        return Some(("no-local", "its own, though it asked for No Local".into()));
    }
    let possible = |id: &u32| grants.iter().any(|grant| grant.id == Some(*id));
    if let Some(id) = delivery.ids.iter().find(|id| !possible(id)) {
        return Some((
            "subscription-id",
            format!("with subscription identifier {id}, not that of a match"),
        ));
    }
    let version = model.connections[delivery.connection as usize].version;
    if version >= 5 && delivery.ids.is_empty() && grants.iter().all(|grant| grant.id.is_some()) {
        return Some(("subscription-id", "without its subscription's identifier".into()));
    }
    None
}
