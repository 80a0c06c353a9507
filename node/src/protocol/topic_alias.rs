//! Topic Aliases of one Network Connection, both ways. [MQTT 5 section 3.3.2.3.4]
//!
//! Sans-io. Invariants
//! - an alias lives as long as its connection: a new connection begins without any. [MQTT-3.3.2-7]
//! - `bounded`: at most as many as the receiver announced, and as are configured. [MQTT-3.3.2-9] [MQTT-3.3.2-10]

use std::collections::HashMap;
use std::sync::Arc;

use super::checks::{Check, on};
use super::codec::{Publish, ReasonCode};
use crate::rare::Rare;

/// Aliases that the client sets.
#[derive(Debug, Default)]
pub struct AliasesIn {
    maximum: u16,
    /// By alias - 1.
    topics: Vec<Option<Named>>,
}

/// What an alias stands for.
#[derive(Clone, Debug)]
enum Named {
    Topic(Arc<str>),
    /// A name above the limits, which is not kept: what is published under it is refused as the first was.
    AboveLimits,
}

impl AliasesIn {
    /// `maximum` is what the client was told as Topic Alias Maximum.
    pub fn new(maximum: u16) -> Self {
        AliasesIn {
            maximum,
            topics: Vec::new(),
        }
    }

    /// Sets the alias that `publish` brings, or puts in the topic that its alias stands for.
    ///
    /// # Errors
    /// The reason code of the DISCONNECT that ends the connection.
    pub fn resolve(&mut self, publish: Publish) -> Result<Publish, ReasonCode> {
        let Some(alias) = publish.topic_alias() else {
            return Ok(publish);
        };
        if alias == 0 || alias > self.maximum && on(Check::AliasMaximum) {
            return Err(ReasonCode::TOPIC_ALIAS_INVALID);
        }
        let at = usize::from(alias) - 1;
        if publish.topic().is_empty() {
            let known = self.topics.get(at).and_then(Option::as_ref);
            return match known {
                Some(Named::Topic(topic)) => Ok(publish.with_topic(topic.clone())),
                Some(Named::AboveLimits) => Ok(publish.above_limits()),
                None => Err(ReasonCode::PROTOCOL_ERROR),
            };
        }
        if self.topics.len() <= at {
            self.topics.resize(at + 1, None);
        }
        if publish.is_above_limits() {
            self.topics[at] = Some(Named::AboveLimits);
            return Ok(publish);
        }
        let topic = publish.topic();
        if !matches!(&self.topics[at], Some(Named::Topic(known)) if **known == *topic) {
            self.topics[at] = Some(Named::Topic(topic.into()));
        }
        Ok(publish)
    }
}

/// Aliases that this broker sets: the topics that went out last.
#[derive(Debug, Default)]
pub struct AliasesOut {
    maximum: u16,
    table: Rare<Table>,
}

/// Made with the first.
#[derive(Debug, Default)]
struct Table {
    numbers: HashMap<Arc<str>, u16>,
    /// By alias - 1.
    slots: Vec<Slot>,
    /// Counts uses.
    uses: u64,
}

#[derive(Debug)]
struct Slot {
    topic: Arc<str>,
    last_use: u64,
}

/// How a PUBLISH may name its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alias {
    /// By its alias alone.
    Known(u16),
    /// With its name, which the alias stands for from then on.
    New(u16),
}

impl Alias {
    pub fn number(self) -> u16 {
        match self {
            Alias::Known(number) | Alias::New(number) => number,
        }
    }
}

impl AliasesOut {
    /// `maximum` is what the client announced, capped by the configuration; 0: none are used.
    pub fn new(maximum: u16) -> Self {
        AliasesOut {
            maximum,
            ..AliasesOut::default()
        }
    }

    /// The alias for a topic, if it is worth one. Nothing is changed until the PUBLISH was written.
    pub fn choose(&self, topic: &str) -> Option<Alias> {
        if self.maximum == 0 || !TOPIC_BYTES.contains(&topic.len()) {
            return None;
        }
        let Some(table) = self.table.get() else {
            return Some(Alias::New(1));
        };
        if let Some(number) = table.numbers.get(topic) {
            return Some(Alias::Known(*number));
        }
        if table.slots.len() < usize::from(self.maximum) {
            return Some(Alias::New(table.slots.len() as u16 + 1));
        }
        let oldest = table.slots.iter().enumerate().min_by_key(|(_, slot)| slot.last_use);
        oldest.map(|(at, _)| Alias::New(at as u16 + 1))
    }

    /// A PUBLISH of `topic` was written with `alias`, as chosen.
    pub fn written(&mut self, topic: &str, alias: Alias) {
        let table = self.table.make();
        table.uses += 1;
        let at = usize::from(alias.number()) - 1;
        if let Alias::New(number) = alias {
            let topic: Arc<str> = topic.into();
            let slot = Slot {
                topic: topic.clone(),
                last_use: table.uses,
            };
            match table.slots.get_mut(at) {
                Some(replaced) => {
                    table.numbers.remove(&replaced.topic);
                    *replaced = slot;
                }
                None => table.slots.push(slot),
            }
            table.numbers.insert(topic, number);
        } else if let Some(slot) = table.slots.get_mut(at) {
            slot.last_use = table.uses;
        }
    }
}

/// An alias costs three bytes; topics longer than this are too much memory for their connection.
const TOPIC_BYTES: std::ops::RangeInclusive<usize> = 4..=1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// Aliases chosen for `topics` in turn, each written.
    fn check(maximum: u16, topics: &[&str], expected: &[Option<Alias>]) {
        let mut aliases = AliasesOut::new(maximum);
        let mut chosen = Vec::new();
        for topic in topics {
            let alias = aliases.choose(topic);
            if let Some(alias) = alias {
                aliases.written(topic, alias);
            }
            chosen.push(alias);
        }
        assert_eq!(chosen, expected);
    }

    #[test]
    fn topics_that_repeat_go_out_under_their_alias() {
        use Alias::{Known, New};
        check(0, &["topic/a"], &[None]);
        check(2, &["a/b", "a/b"], &[None, None]);
        check(
            2,
            &["topic/a", "topic/b", "topic/a", "topic/b"],
            &[Some(New(1)), Some(New(2)), Some(Known(1)), Some(Known(2))],
        );
    }

    #[test]
    fn the_least_recently_used_is_replaced() {
        use Alias::{Known, New};
        check(
            2,
            &["topic/a", "topic/b", "topic/a", "topic/c", "topic/a", "topic/b"],
            &[
                Some(New(1)),
                Some(New(2)),
                Some(Known(1)),
                Some(New(2)),
                Some(Known(1)),
                Some(New(2)),
            ],
        );
    }
}
