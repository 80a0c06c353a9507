//! (e) The retained message of a topic is a linearizable register.
//!
//! Writes are PUBLISH with RETAIN, reads are what fresh sessions get. As every value is written once, the zone algorithm
//! ([`zones`]) decides in n log n. Deletions write the same value, *none*, many times: topics that have them are small and
//! go to the general search ([`wgl`]).
//!
//! A write at QoS 1 that was sent twice may take effect twice; topics where a violation needs such a write are counted, not
//! accused.
//!
//! Beside the register: a subscriber ends with the message that is retained, whether it was there all the time or came amid the
//! writes; and one that came after them gets it.

pub mod wgl;
pub mod zones;

use super::model::{Index, Map, Model, NEVER, Outcome};
use super::order::first_deliveries;
use super::{Findings, Limits};
use crate::history::{Kind, Op, Process};

/// One operation on the register of a topic. `end` is [`NEVER`] where it was not seen to complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    pub invoke: Index,
    pub end: Index,
    pub write: bool,
    /// None: no retained message.
    pub value: Option<u32>,
}

/// What happened to one topic's retained message.
#[derive(Clone, Debug, Default)]
pub struct Register {
    pub accesses: Vec<Access>,
    pub deletes: bool,
    pub foreign: Vec<(Index, String)>,
}

pub fn check(model: &Model, _: &Limits) -> Findings {
    let mut findings = Findings::default();
    for (topic, register) in registers(model).iter().enumerate() {
        let topic = topic as u32;
        let name = model.topics.name(topic);
        for (index, value) in &register.foreign {
            let message = format!("{value} was read as the retained message of {name}, where nobody wrote it");
            findings.violation(("register", "foreign-read", "P9"), message, [*index]);
        }
        let reads = register.accesses.iter().filter(|access| !access.write).count();
        if reads == 0 {
            continue;
        }
        findings.count("register.topics", 1.0);
        findings.count("register.reads", reads as f64);
        findings.count("register.writes", (register.accesses.len() - reads) as f64);
        if register.deletes {
            search(name, register, &mut findings);
        } else {
            decide_by_zones(model, name, register, &mut findings);
        }
    }
    unread(model, &mut findings);
    last_is_retained(model, &mut findings);
    late_gets_retained(model, &mut findings);
    findings
}

/// Topics of which readers asked after the drain, when all was well, and none came to an answer: a broker that withholds what is
/// retained must not pass because nobody read a wrong value.
fn unread(model: &Model, findings: &mut Findings) {
    let mut asked: Map<u32, bool> = Map::default();
    for event in &model.events[model.phases.drain_end.min(model.events.len())..] {
        if let Op::ReadRetained { topic, .. } = &event.op
            && let Some(topic) = model.topics.number(topic)
            && event.kind != Kind::Invoke
        {
            *asked.entry(topic).or_default() |= event.kind == Kind::Ok;
        }
    }
    let mut written: Map<u32, ()> = Map::default();
    for published in &model.messages {
        if published.retain && published.is_kept() {
            written.insert(published.topic, ());
        }
    }
    let mut silent: Vec<&str> = asked
        .iter()
        .filter(|(topic, answered)| !**answered && written.contains_key(topic))
        .map(|(topic, _)| model.topics.name(*topic))
        .collect();
    silent.sort_unstable();
    for topic in silent {
        let problem = format!("nobody could read the retained message of {topic} after the drain");
        findings.unknown.push(problem);
    }
}

fn decide_by_zones(model: &Model, name: &str, register: &Register, findings: &mut Findings) {
    for conflict in zones::check(&register.accesses) {
        let twice = |value: &Option<u32>| value.is_some_and(|value| !model.messages[value as usize].is_single());
        if conflict.values.iter().any(twice) {
            findings.count("register.exempt_resent", 1.0);
            continue;
        }
        let names: Vec<String> = conflict.values.iter().map(|value| value_name(model, *value)).collect();
        let message = format!(
            "the retained message of {name} is not a register: {} of {}",
            conflict.what,
            names.join(", ")
        );
        findings.violation(("register", conflict.class, "P5"), message, conflict.events);
    }
}

fn search(name: &str, register: &Register, findings: &mut Findings) {
    match wgl::is_linearizable(&register.accesses, wgl::STEPS_LIMIT) {
        Some(true) => {}
        Some(false) => {
            let message =
                format!("no order of the operations on the retained message of {name} explains what was read");
            let events = register.accesses.iter().flat_map(|access| [access.invoke, access.end]);
            findings.violation(("register", "not-linearizable", "P5"), message, events.take(40));
        }
        None => findings.unknown.push(format!(
            "the retained message of {name} has too many concurrent operations to decide"
        )),
    }
}

pub fn value_name(model: &Model, value: Option<u32>) -> String {
    value.map_or("no message".into(), |value| {
        let message = model.messages[value as usize].message;
        format!("{} {}", message.publisher, message.seq)
    })
}

/// Of each topic, all writes and completed reads.
pub fn registers(model: &Model) -> Vec<Register> {
    let mut registers = vec![Register::default(); model.topics.len()];
    for (number, published) in model.messages.iter().enumerate() {
        if !published.retain || published.outcome == Outcome::Fail {
            continue;
        }
        let register = &mut registers[published.topic as usize];
        register.deletes |= published.delete;
        register.accesses.push(Access {
            invoke: published.invoke,
            // At QoS 0, `ok` says nothing.
            end: if published.outcome == Outcome::Ok && published.qos > 0 {
                published.end
            } else {
                NEVER
            },
            write: true,
            value: (!published.delete).then_some(number as u32),
        });
    }
    let mut open: Map<u64, Index> = Map::default();
    for (index, event) in model.events.iter().enumerate() {
        let (
            Op::ReadRetained {
                topic, value, absent, ..
            },
            Process::Number(process),
        ) = (&event.op, &event.process)
        else {
            continue;
        };
        if event.kind == Kind::Invoke {
            open.insert(*process, index);
            continue;
        }
        let (Some(invoke), Kind::Ok, Some(topic)) = (open.remove(process), event.kind, model.topics.number(topic))
        else {
            continue;
        };
        let register = &mut registers[topic as usize];
        let value = match value {
            None if *absent => None,
            None => continue,
            Some(message) => match model.message(message).filter(|at| wrote(model, *at, topic)) {
                Some(number) => Some(number),
                None => {
                    let value = format!("{} {} of {}", message.publisher, message.seq, message.topic);
                    register.foreign.push((index, value));
                    continue;
                }
            },
        };
        register.accesses.push(Access {
            invoke,
            end: index,
            write: false,
            value,
        });
    }
    registers
}

fn wrote(model: &Model, number: u32, topic: u32) -> bool {
    let published = &model.messages[number as usize];
    published.topic == topic && published.retain && !published.delete && published.outcome != Outcome::Fail
}

/// A subscriber whose subscription stood before the retained message was sent, and until the drain ended, saw it last.
fn last_is_retained(model: &Model, findings: &mut Findings) {
    let retained = final_values(model);
    if retained.is_empty() {
        return;
    }
    // The last retained PUBLISH that came to each life, and whether the one that is retained came.
    let mut last: Map<(u32, u32), (u32, Index)> = Map::default();
    let mut has: Map<(u32, u32), Index> = Map::default();
    for (_, delivery) in first_deliveries(model) {
        let (Some(life), Some(number)) = (delivery.life, delivery.message) else {
            continue;
        };
        let published = &model.messages[number as usize];
        if published.retain && retained.contains_key(&published.topic) {
            last.insert((life, published.topic), (number, delivery.index));
            if retained.get(&published.topic).map(|(value, _)| value) == Some(&number) {
                has.insert((life, published.topic), delivery.index);
            }
        }
    }
    for ((life, topic), (number, at)) in last {
        let (Some((value, read)), Some(seen)) = (retained.get(&topic), has.get(&(life, topic))) else {
            continue;
        };
        let published = &model.messages[*value as usize];
        let stood = model.surely_held(life, topic, published.invoke, at).is_some();
        if number != *value && stood && !model.is_shared(life, topic) {
            let message = format!(
                "{} saw {} after {}, which is the retained message of {}",
                model.client_of(life),
                value_name(model, Some(number)),
                value_name(model, Some(*value)),
                model.topics.name(topic),
            );
            findings.violation(("register", "retained-not-last", "P5"), message, [*seen, at, *read]);
        }
    }
}

/// A subscription that began after the retained message was sent, and lasts until the drain ends, brought that message, and
/// none that is older after it.
fn late_gets_retained(model: &Model, findings: &mut Findings) {
    let retained = final_values(model);
    let (Some(drain), true) = (model.phases.start("drain"), model.phases.has_drain) else {
        return;
    };
    let end = model.phases.drain_end;
    // When each retained PUBLISH first came to each life, live or as a stored copy.
    let mut firsts: Map<(u32, u32), Vec<(Index, u32)>> = Map::default();
    for (life, number, copies) in model.copy_groups() {
        let published = &model.messages[number as usize];
        if published.retain && retained.contains_key(&published.topic) {
            let of = firsts.entry((life, published.topic)).or_default();
            of.push((copies[0].index, number));
        }
    }
    for (topic, (value, read)) in &retained {
        let published = &model.messages[*value as usize];
        for number in model.holds_of_topic(*topic) {
            let hold = &model.holds[*number as usize];
            let late = hold.from_possible > published.invoke && hold.from_sure < drain;
            let lasts = hold.until_possible >= end && model.serving(hold.life, end).is_some();
            let taken = hold.group.is_none() && published.qos > 0 && hold.least_qos(published.invoke, end) > 0;
            // Whoever reads by subscribing (`ReadRetained`) is asked there.
            let reads = model.lives[hold.life as usize]
                .connections
                .iter()
                .any(|at| model.readers.contains_key(at));
            if !late || !lasts || !taken || reads {
                continue;
            }
            findings.count("register.late_subscribers", 1.0);
            let got = firsts.get(&(hold.life, *topic)).map_or(&[][..], Vec::as_slice);
            let came = got.iter().find(|(index, number)| number == value && *index < end);
            let Some((came, _)) = came else {
                let message = format!(
                    "{} subscribed to {} when {} was its retained message, and never got it",
                    model.client_of(hold.life),
                    hold.filter,
                    value_name(model, Some(*value)),
                );
                let events = [published.end, hold.from_sure, *read];
                findings.violation(("register", "retained-missed", "P5"), message, events);
                continue;
            };
            if let Some((at, older)) = got.iter().find(|(index, number)| index > came && number != value) {
                let message = format!(
                    "{} got {} after {}, which is the retained message of {}",
                    model.client_of(hold.life),
                    value_name(model, Some(*older)),
                    value_name(model, Some(*value)),
                    model.topics.name(*topic),
                );
                let events = [hold.from_sure, *came, *at, *read];
                findings.violation(("register", "retained-not-last", "P5"), message, events);
            }
        }
    }
}

/// What was read after all writes, where all of them are known to have ended and were sent once.
fn final_values(model: &Model) -> Map<u32, (u32, Index)> {
    let mut values = Map::default();
    for (topic, register) in registers(model).into_iter().enumerate() {
        let writes = || register.accesses.iter().filter(|access| access.write);
        let written = writes().map(|access| access.end).max().unwrap_or(NEVER);
        let single = writes().all(|access| {
            access
                .value
                .is_some_and(|value| model.messages[value as usize].is_single())
        });
        let read = register
            .accesses
            .iter()
            .rfind(|access| !access.write && access.invoke > written && single);
        if let Some((value, at)) = read.and_then(|access| Some((access.value?, access.end))) {
            values.insert(topic as u32, (value, at));
        }
    }
    values
}

#[cfg(test)]
mod tests;
