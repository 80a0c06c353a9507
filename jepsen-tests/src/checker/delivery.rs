//! (a) Acknowledged is kept: a message acknowledged at QoS 1 or 2 reaches every persistent session that subscribed
//! before it.
//!
//!     SUBACK ──▶ PUBLISH … PUBACK ──▶ drain ends      and the session lives, subscribed, all the while: it has the message
//!
//! What is lost is located: before the first, between, or after the last message that the session has of that publisher and
//! topic; and by the nodes that took it and that served the session.
//!
//! A PUBACK with 0x10, *no matching subscribers*, is a lie by itself while such a subscription stands.

use super::model::{Hold, Index, Life, Model, Published};
use super::{Findings, Limits};
use std::collections::BTreeMap;

pub fn check(model: &Model, _: &Limits) -> Findings {
    let mut findings = Findings::default();
    if !model.phases.has_drain {
        findings
            .unknown
            .push("the history has no drain: nobody knows what was still to come".into());
    } else {
        for losses in lost(model, |life, _| life.persistent, &mut findings) {
            report(model, &losses, &mut findings);
        }
    }
    forged_no_subscribers(model, &mut findings);
    findings
}

/// What one life misses of one publisher and topic.
pub struct Losses {
    pub life: u32,
    pub missing: Vec<u32>,
    /// First and last that it has, by sequence number.
    pub has: Option<(u64, u64)>,
}

/// Owed messages that lives of interest did not receive. Sessions without a connection at the end of the drain could not
/// receive anything: they are unknown.
pub fn lost(model: &Model, of_interest: impl Fn(&Life, &Hold) -> bool, findings: &mut Findings) -> Vec<Losses> {
    let end = model.phases.drain_end;
    let duties = duties_by_topic(model, end, of_interest);
    let received = received_by_life(model);
    let mut streams: BTreeMap<(u32, u32, u32), Losses> = BTreeMap::new();
    for (number, published) in model.messages.iter().enumerate() {
        let number = number as u32;
        if !published.is_kept() || published.doubtful || published.invoke > end {
            continue;
        }
        let mut owed: Vec<u32> = Vec::new();
        for hold in &duties[published.topic as usize] {
            let hold = &model.holds[*hold as usize];
            if owes(hold, published) && !owed.contains(&hold.life) {
                owed.push(hold.life);
            }
        }
        for life in owed {
            findings.count("delivery.owed", 1.0);
            let losses = streams
                .entry((life, published.publisher, published.topic))
                .or_insert_with(|| Losses {
                    life,
                    missing: Vec::new(),
                    has: None,
                });
            let seq = published.message.seq;
            if received[life as usize].contains(number) {
                let (first, last) = losses.has.unwrap_or((seq, seq));
                losses.has = Some((first.min(seq), last.max(seq)));
            } else {
                losses.missing.push(number);
            }
        }
    }
    let mut absent: BTreeMap<u32, usize> = BTreeMap::new();
    let mut lost: Vec<Losses> = streams
        .into_values()
        .filter(|losses| !losses.missing.is_empty())
        .collect();
    lost.retain(|losses| {
        let served = model.serving(losses.life, end).is_some();
        if !served {
            *absent.entry(losses.life).or_default() += losses.missing.len();
        }
        served
    });
    for (life, count) in absent {
        let client = model.client_of(life);
        let problem = format!("{client} was not connected when the drain ended; {count} messages are owed to it");
        findings.unknown.push(problem);
    }
    lost
}

/// Holds that last until the drain ends, by topic: the others owe nothing.
fn duties_by_topic(model: &Model, end: Index, of_interest: impl Fn(&Life, &Hold) -> bool) -> Vec<Vec<u32>> {
    let lasting = |number: &&u32| {
        let hold = &model.holds[**number as usize];
        hold.group.is_none() && hold.until_possible >= end && of_interest(&model.lives[hold.life as usize], hold)
    };
    (0..model.topics.len() as u32)
        .map(|topic| model.holds_of_topic(topic).iter().filter(lasting).copied().collect())
        .collect()
}

fn owes(hold: &Hold, published: &Published) -> bool {
    let no_local = |qos| qos == 0 || (hold.client == published.client && hold.grants.iter().any(|at| at.no_local));
    hold.from_sure < published.invoke && !no_local(hold.least_qos(published.invoke, published.end))
}

/// A set of message numbers.
struct Numbers(Vec<u64>);

impl Numbers {
    fn insert(&mut self, number: u32) {
        let word = number as usize / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (number % 64);
    }

    fn contains(&self, number: u32) -> bool {
        self.0
            .get(number as usize / 64)
            .is_some_and(|word| word & (1 << (number % 64)) != 0)
    }
}

fn received_by_life(model: &Model) -> Vec<Numbers> {
    let mut received: Vec<Numbers> = model.lives.iter().map(|_| Numbers(Vec::new())).collect();
    for delivery in &model.deliveries {
        if let (Some(life), Some(message)) = (delivery.life, delivery.message)
            && delivery.index < model.phases.drain_end
        {
            received[life as usize].insert(message);
        }
    }
    received
}

fn report(model: &Model, losses: &Losses, findings: &mut Findings) {
    let client = model.client_of(losses.life);
    let serving = model.serving(losses.life, model.phases.drain_end);
    let served_by = serving.map_or("no node", |connection| model.node_of(connection));
    for number in &losses.missing {
        let published = &model.messages[*number as usize];
        let seq = published.message.seq;
        let class = match losses.has {
            None => "lost-all",
            Some((first, _)) if seq < first => "lost-prefix",
            Some((_, last)) if seq > last => "lost-postfix",
            Some(_) => "lost-middle",
        };
        let taken_by = published
            .acknowledged_by
            .map_or("?", |connection| model.node_of(connection));
        let message = format!(
            "{client}, served by {served_by}, never got {} {} of {} (QoS {}), acknowledged by {taken_by} {:.3} s into the \
             run in phase {}",
            published.message.topic,
            seq,
            published.message.publisher,
            published.qos,
            model.seconds(published.end),
            model.phases.at(published.end),
        );
        let hold = model.surely_held(losses.life, published.topic, published.invoke, published.end);
        let events = [
            published.invoke,
            published.end,
            hold.map_or(published.end, |hold| hold.from_sure),
        ];
        findings.violation(("delivery", class, "P1"), message, events);
        findings.count(&format!("delivery.lost.taken_by.{taken_by}"), 1.0);
        findings.count(&format!("delivery.lost.served_by.{served_by}"), 1.0);
    }
}

fn forged_no_subscribers(model: &Model, findings: &mut Findings) {
    for published in &model.messages {
        if published.reason != Some(NO_MATCHING_SUBSCRIBERS) || published.outcome != super::model::Outcome::Ok {
            continue;
        }
        let hold = model.holds_of_topic(published.topic).iter().find_map(|hold| {
            let hold = &model.holds[*hold as usize];
            let own = hold.client == published.client && hold.grants.iter().any(|grant| grant.no_local);
            (!own && hold.is_sure_within(published.invoke, published.end)).then_some(hold)
        });
        if let Some(hold) = hold {
            let message = format!(
                "{} {} of {} was answered with 0x10, no matching subscribers, while {} was subscribed to {}",
                published.message.topic,
                published.message.seq,
                published.message.publisher,
                model.clients.name(hold.client),
                hold.filter,
            );
            let events = [published.invoke, published.end, hold.from_sure];
            findings.violation(("delivery", "forged-no-subscribers", "P9"), message, events);
        }
    }
}

const NO_MATCHING_SUBSCRIBERS: u8 = 0x10;
