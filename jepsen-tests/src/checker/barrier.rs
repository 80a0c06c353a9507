//! (d) SUBACK and UNSUBACK are barriers for the whole cluster.
//!
//! - d1: what is sent after SUBACK, to any node, reaches the subscription. For persistent sessions that is (a); here it is
//!   asked of sessions that live as long as their connection, while that stays open until the drain ends.
//! - d1b: it comes within a bound while the subscription stands, also where an UNSUBSCRIBE ends that later.
//! - d2: what is sent after UNSUBACK does not come.
//! - d3: what was acknowledged before SUBSCRIBE comes only as the retained message.

use super::delivery::lost;
use super::model::{Delivery, Hold, Index, Model, NEVER, Outcome, Published};
use super::{Findings, Limits};

pub fn check(model: &Model, limits: &Limits) -> Findings {
    let mut findings = Findings::default();
    missed_while_subscribed(model, limits, &mut findings);
    // What the sessions without persistence did not get because they were gone is no news.
    let mut ignored = Findings::default();
    let lost = if model.phases.has_drain {
        lost(model, |life, _| !life.persistent, &mut ignored)
    } else {
        Vec::new()
    };
    for losses in lost {
        for number in &losses.missing {
            let published = &model.messages[*number as usize];
            let hold = model.surely_held(losses.life, published.topic, published.invoke, published.end);
            let since = hold.map_or(NEVER, |hold| hold.from_sure);
            let message = format!(
                "{} never got {} {} of {}, sent {:.3} s after its SUBACK",
                model.client_of(losses.life),
                published.message.topic,
                published.message.seq,
                published.message.publisher,
                model.seconds(published.invoke) - model.seconds(since),
            );
            let events = [since, published.invoke, published.end];
            findings.violation(("barrier", "missed-after-suback", "P4"), message, events);
        }
    }
    for delivery in &model.deliveries {
        let Some(Unmatched::Gone(hold) | Unmatched::NotYet(hold)) = unmatched(model, delivery) else {
            continue;
        };
        let Some(number) = delivery.message else { continue };
        let published = &model.messages[number as usize];
        let (class, what) = match unmatched(model, delivery) {
            Some(Unmatched::Gone(_)) => ("after-unsubscribe", "sent after UNSUBACK"),
            _ => ("before-subscribe", "acknowledged before SUBSCRIBE, as a live message"),
        };
        let message = format!(
            "{} got {} {} of {}, {what} ({})",
            model.clients.name(delivery.client),
            published.message.topic,
            published.message.seq,
            published.message.publisher,
            hold.filter,
        );
        let events = [
            hold.from_possible,
            hold.until_sure,
            published.invoke,
            published.end,
            delivery.index,
        ];
        findings.violation(("barrier", class, "P4"), message, events);
    }
    findings
}

/// d1b, of subscriptions that end before the drain does: those that last are judged there.
fn missed_while_subscribed(model: &Model, limits: &Limits, findings: &mut Findings) {
    for (number, published) in model.messages.iter().enumerate() {
        if !published.is_kept() || published.doubtful {
            continue;
        }
        for hold in model.holds_of_topic(published.topic) {
            let hold = &model.holds[*hold as usize];
            let own = hold.client == published.client && hold.grants.iter().any(|grant| grant.no_local);
            let asked = hold.group.is_none()
                && hold.unsubscribed
                && hold.from_sure < published.invoke
                && hold.until_possible > published.end
                && hold.least_qos(published.invoke, published.end) > 0
                && !own;
            if !asked || model.copies(hold.life, number as u32).next().is_some() {
                continue;
            }
            // Its node served the session all the time that is asked for, and some more.
            let deadline = model.index_at(model.seconds(published.end) + limits.arrival);
            let served = model.lives[hold.life as usize].connections.iter().any(|connection| {
                let connection = &model.connections[*connection as usize];
                connection.answer < published.end && connection.proof > deadline
            });
            if deadline == NEVER || hold.until_possible < deadline || !served {
                continue;
            }
            let message = format!(
                "{} did not get {} {} of {} for {:.0} s, served and subscribed to {} since before it was sent",
                model.client_of(hold.life),
                published.message.topic,
                published.message.seq,
                published.message.publisher,
                limits.arrival,
                hold.filter,
            );
            let events = [hold.from_sure, published.invoke, published.end, deadline];
            findings.violation(("barrier", "missed-after-suback", "P4"), message, events);
        }
    }
}

/// Why no subscription of its session can have matched a delivery.
pub enum Unmatched<'m, 'h> {
    /// The one that matches had surely ended before the message was sent.
    Gone(&'m Hold<'h>),
    /// The one that matches began when the message had surely been published.
    NotYet(&'m Hold<'h>),
    /// None ever matched its topic.
    Never,
}

/// None: some subscription may have matched it, or nothing is known of its session.
pub fn unmatched<'m, 'h>(model: &'m Model<'h>, delivery: &Delivery) -> Option<Unmatched<'m, 'h>> {
    let (life, number) = (delivery.life?, delivery.message?);
    let published = &model.messages[number as usize];
    let until = match_until(model, published, delivery);
    let mut closest = None;
    for hold in model.holds_of(life, published.topic) {
        // What a group has queued reaches whoever joins it later: the group matched it, not the member.
        let until = if hold.group.is_some() { delivery.index } else { until };
        if hold.is_possible_within(published.invoke, until) {
            return None;
        }
        closest = Some(hold);
    }
    Some(match closest {
        None => Unmatched::Never,
        Some(hold) if hold.from_possible > delivery.index => Unmatched::Never,
        Some(hold) if hold.until_sure <= published.invoke && hold.unsubscribed => Unmatched::Gone(hold),
        Some(hold) if hold.from_possible >= until => Unmatched::NotYet(hold),
        // Its session's end, not an UNSUBSCRIBE, ended it.
        Some(_) => Unmatched::Never,
    })
}

/// Until when the broker may have matched a message that was delivered.
pub fn match_until(model: &Model, published: &Published, delivery: &Delivery) -> Index {
    // A stored retained message is matched when it is asked for; a message sent twice, when its last copy arrives.
    let exact = published.outcome == Outcome::Ok && published.is_single() && published.qos > 0;
    if exact && model.is_live(delivery) {
        published.end.min(delivery.index)
    } else {
        delivery.index
    }
}
