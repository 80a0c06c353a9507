//! Spoils valid histories, one fault each: proof that the checkers can fail, and that they do not cry wolf.
//!
//!     valid history ──▶ Mutator ──▶ history ──▶ judge ──▶ exactly the named class
//!
//! - [`recorded`]: changes what is in a history, also in a recorded one.
//! - [`scenes`]: inserts a small scene with clients and topics of its own, for what random histories seldom contain.
//! - [`faults`]: what the harness did and saw from outside.
//!
//! A mutator that finds nothing to spoil answers None.

mod faults;
mod recorded;
mod scenes;

use crate::checker::{Limits, Model};
use crate::history::{Event, Op};
use crate::synthetic::{Random, Writer};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Legal, however odd.
    Valid,
    /// Not to be judged.
    Unknown,
    /// This class, and of the others only those that follow necessarily.
    Class(&'static str, &'static [&'static str]),
}

#[derive(Clone, Copy)]
pub struct Mutator {
    pub name: &'static str,
    pub expect: Expect,
    pub apply: fn(&mut Spoil) -> Option<Vec<Event>>,
}

/// All of them.
pub fn mutators() -> Vec<Mutator> {
    let mut all = recorded::mutators();
    all.extend(scenes::mutators());
    all.extend(faults::mutators());
    all
}

/// A history that is to be spoiled.
pub struct Spoil<'h> {
    pub events: &'h [Event],
    pub model: Model<'h>,
    pub random: Random,
}

impl<'h> Spoil<'h> {
    pub fn new(events: &'h [Event], limits: &Limits, seed: u64) -> Spoil<'h> {
        Spoil {
            events,
            model: Model::new(events, limits),
            random: Random::new(seed),
        }
    }

    /// One of the candidates, each as likely as the others.
    fn choose<T>(&mut self, mut candidates: Vec<T>) -> Option<T> {
        if candidates.is_empty() {
            return None;
        }
        let at = self.random.below(candidates.len());
        Some(candidates.swap_remove(at))
    }

    fn without(&self, indexes: &[usize]) -> Vec<Event> {
        let kept = self
            .events
            .iter()
            .enumerate()
            .filter(|(index, _)| !indexes.contains(index));
        renumbered(kept.map(|(_, event)| event.clone()).collect())
    }

    /// With a change of the operation of one event.
    fn with(&self, index: usize, change: impl FnOnce(&mut Event)) -> Vec<Event> {
        let mut events = self.events.to_vec();
        if let Some(event) = events.get_mut(index) {
            change(event);
        }
        events
    }

    /// With events put in right after `index`.
    fn inserted(&self, index: usize, new: Vec<Event>) -> Vec<Event> {
        let mut events = self.events.to_vec();
        let time = events.get(index).map_or(0, |event| event.time);
        let at = (index + 1).min(events.len());
        events.splice(at..at, new.into_iter().map(|event| Event { time, ..event }));
        renumbered(events)
    }

    /// With a scene that is played just before a phase begins; what follows is later by what it took.
    fn scene_before(&self, phase: &str, play: impl FnOnce(&mut Writer)) -> Option<Vec<Event>> {
        let at = self.model.phases.start(phase)?;
        let mut writer = Writer::after(self.events);
        writer.time = self.events[at].time;
        let began = writer.time;
        play(&mut writer);
        let took = writer.time - began;
        let mut events = self.events[..at].to_vec();
        events.append(&mut writer.events);
        events.extend(self.events[at..].iter().map(|event| Event {
            time: event.time + took,
            ..event.clone()
        }));
        Some(renumbered(events))
    }

    fn scene(&self, play: impl FnOnce(&mut Writer)) -> Option<Vec<Event>> {
        // All are connected then and nothing is under way: a long wait there makes nobody late.
        self.scene_before("baseline", play)
    }
}

fn renumbered(mut events: Vec<Event>) -> Vec<Event> {
    for (index, event) in events.iter_mut().enumerate() {
        event.index = index as u64;
    }
    events
}

/// The events of an acknowledgement of a delivery.
fn acknowledgements(model: &Model, delivery: &crate::checker::model::Delivery) -> Vec<usize> {
    let conn = model.connections[delivery.connection as usize].number;
    let after = model.events.iter().enumerate().skip(delivery.index);
    let mut found = Vec::new();
    for (index, event) in after {
        match &event.op {
            Op::AckSent { conn: at, pid, .. } if *at == conn && *pid == delivery.pid => found.push(index),
            Op::Recv { conn: at, pid, .. } if *at == conn && *pid == delivery.pid && index > delivery.index => break,
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests;
