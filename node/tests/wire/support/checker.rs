//! Judges a finished run: what producers sent and saw acknowledged, against what consumers received.
//!
//! Pure: a history goes in, violations come out. The planted faults of `wire_checker.rs` show that each kind is found,
//! and that what the promises allow is not.
//!
//! | kind | promise |
//! |---|---|
//! | `Lost` | P1: acknowledged, matches, never delivered |
//! | `Reordered` | P3: first deliveries of one publisher and topic go backwards |
//! | `TotalOrder` | P3: two consumers saw the first deliveries of one topic in different order |
//! | `Phantom`, `RefusedDelivered` | P9: never published, altered, to another topic; or refused and delivered |
//! | `Unexplained` | P1, [MQTT-3.3.1-1]: more copies without DUP, or on one connection, than were sent |
//! | `Twice` | P2: handed over more than once, see [`twice`] |
//! | `NotSubscribed` | delivered although no filter matches |
//! | `Misbehaved` | what a client saw by itself: session lost, acknowledged out of order, wrong bytes |

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::Duration;

#[derive(Clone, Debug, Default)]
pub struct History {
    pub producers: Vec<Producer>,
    pub consumers: Vec<Consumer>,
}

/// What one producer published, in order; the index is the sequence number.
#[derive(Clone, Debug, Default)]
pub struct Producer {
    pub messages: Vec<Message>,
    pub misbehaved: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Message {
    pub topic: String,
    /// PUBLISH packets of it that may have left.
    pub sends: u32,
    pub outcome: Outcome,
    /// Since the start of the run.
    pub first_sent: Duration,
    pub acknowledged: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// May or may not be delivered.
    Open,
    Acknowledged,
    /// Must not be delivered, unless an earlier send of it may have been taken.
    Refused(u8),
}

/// One persistent session, subscribed before the first message was sent.
#[derive(Clone, Debug, Default)]
pub struct Consumer {
    pub name: String,
    pub filters: Vec<String>,
    pub deliveries: Vec<Delivery>,
    pub misbehaved: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Delivery {
    /// What the payload says; none if it is not one of ours.
    pub message: Option<MessageId>,
    pub topic: String,
    pub dup: bool,
    /// Counts the connections of this session.
    pub connection: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId {
    pub producer: usize,
    pub sequence: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    Lost {
        consumer: String,
        message: MessageId,
        topic: String,
        position: Position,
    },
    Reordered {
        consumer: String,
        message: MessageId,
        after: MessageId,
        topic: String,
    },
    TotalOrder {
        consumers: (String, String),
        message: MessageId,
        after: MessageId,
        topic: String,
    },
    Phantom {
        consumer: String,
        message: Option<MessageId>,
        topic: String,
    },
    RefusedDelivered {
        consumer: String,
        message: MessageId,
        code: u8,
    },
    Unexplained {
        consumer: String,
        message: MessageId,
        copies: u32,
        sends: u32,
    },
    Twice {
        consumer: String,
        message: MessageId,
        copies: u32,
    },
    NotSubscribed {
        consumer: String,
        topic: String,
    },
    Misbehaved {
        client: String,
        what: String,
    },
}

/// Where in its producer's stream to a consumer a lost message stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Later ones of the same producer and topic arrived.
    Middle,
    /// Nothing after it arrived: lost tail, or a queue that is stuck.
    Tail,
}

/// All violations, grouped by consumer, in order of kind.
pub fn check(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    for (index, producer) in history.producers.iter().enumerate() {
        let client = format!("producer {index}");
        let told = producer.misbehaved.iter().cloned();
        found.extend(told.map(|what| Violation::Misbehaved {
            client: client.clone(),
            what,
        }));
    }
    for consumer in &history.consumers {
        let told = consumer.misbehaved.iter().cloned();
        found.extend(told.map(|what| Violation::Misbehaved {
            client: consumer.name.clone(),
            what,
        }));
        found.extend(foreign(history, consumer));
        found.extend(lost(history, consumer));
        found.extend(reordered(consumer));
        found.extend(unexplained(history, consumer));
    }
    found.extend(total_order(history));
    found
}

/// P2, beside [`check`]: messages that a consumer got more than once, where deliveries are counted behind the client's own
/// QoS 2 receiver. However often a publisher sent: never twice.
pub fn twice(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    for consumer in &history.consumers {
        let mut copies: BTreeMap<MessageId, u32> = BTreeMap::new();
        for id in consumer.deliveries.iter().filter_map(|delivery| delivery.message) {
            *copies.entry(id).or_default() += 1;
        }
        let twice = copies.into_iter().filter(|(_, copies)| *copies > 1);
        found.extend(twice.map(|(message, copies)| Violation::Twice {
            consumer: consumer.name.clone(),
            message,
            copies,
        }));
    }
    found
}

/// How many acknowledged messages `consumer` still has to get.
pub fn owed(history: &History, consumer: &Consumer) -> usize {
    missing(history, consumer).count()
}

fn message(history: &History, id: MessageId) -> Option<&Message> {
    history.producers.get(id.producer)?.messages.get(id.sequence)
}

/// Whether a filter without `$share` matches a topic. [MQTT-4.7.1-2] [MQTT-4.7.1-3] [MQTT-4.7.2-1]
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        match (wanted, levels.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (wanted, Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

fn foreign(history: &History, consumer: &Consumer) -> Vec<Violation> {
    let mut found = Vec::new();
    for delivery in &consumer.deliveries {
        let name = consumer.name.clone();
        let topic = delivery.topic.clone();
        let published = delivery.message.and_then(|id| Some((id, message(history, id)?)));
        match published {
            Some((id, message)) if message.topic == topic && message.sends > 0 => {
                if let Outcome::Refused(code) = message.outcome
                    && message.sends == 1
                {
                    found.push(Violation::RefusedDelivered {
                        consumer: name.clone(),
                        message: id,
                        code,
                    });
                }
                if !consumer.filters.iter().any(|filter| matches(filter, &topic)) {
                    found.push(Violation::NotSubscribed { consumer: name, topic });
                }
            }
            _ => found.push(Violation::Phantom {
                consumer: name,
                message: delivery.message,
                topic,
            }),
        }
    }
    found
}

fn missing<'a>(history: &'a History, consumer: &'a Consumer) -> impl Iterator<Item = (MessageId, &'a Message)> {
    let received: std::collections::HashSet<MessageId> = consumer
        .deliveries
        .iter()
        .filter_map(|delivery| delivery.message)
        .collect();
    let all = history.producers.iter().enumerate().flat_map(|(producer, log)| {
        let numbered = log.messages.iter().enumerate();
        numbered.map(move |(sequence, message)| (MessageId { producer, sequence }, message))
    });
    all.filter(move |(id, message)| {
        message.outcome == Outcome::Acknowledged
            && !received.contains(id)
            && consumer.filters.iter().any(|filter| matches(filter, &message.topic))
    })
}

fn lost(history: &History, consumer: &Consumer) -> Vec<Violation> {
    let mut last: HashMap<(usize, &str), usize> = HashMap::new();
    for delivery in &consumer.deliveries {
        if let Some(id) = delivery.message {
            let last = last.entry((id.producer, &delivery.topic)).or_default();
            *last = id.sequence.max(*last);
        }
    }
    let lost = missing(history, consumer).map(|(id, message)| Violation::Lost {
        consumer: consumer.name.clone(),
        message: id,
        topic: message.topic.clone(),
        position: match last.get(&(id.producer, message.topic.as_str())) {
            Some(last) if *last > id.sequence => Position::Middle,
            _ => Position::Tail,
        },
    });
    lost.collect()
}

/// The first delivery of each message, in order of arrival, by topic.
fn firsts(consumer: &Consumer) -> BTreeMap<&str, Vec<MessageId>> {
    let mut seen = BTreeSet::new();
    let mut firsts: BTreeMap<&str, Vec<MessageId>> = BTreeMap::new();
    for delivery in &consumer.deliveries {
        if let Some(id) = delivery.message.filter(|id| seen.insert(*id)) {
            firsts.entry(&delivery.topic).or_default().push(id);
        }
    }
    firsts
}

fn reordered(consumer: &Consumer) -> Vec<Violation> {
    let mut found = Vec::new();
    for (topic, messages) in firsts(consumer) {
        let mut newest: BTreeMap<usize, MessageId> = BTreeMap::new();
        for message in messages {
            match newest.get(&message.producer) {
                Some(after) if after.sequence > message.sequence => found.push(Violation::Reordered {
                    consumer: consumer.name.clone(),
                    message,
                    after: *after,
                    topic: topic.into(),
                }),
                _ => drop(newest.insert(message.producer, message)),
            }
        }
    }
    found
}

fn unexplained(history: &History, consumer: &Consumer) -> Vec<Violation> {
    let mut without_dup: HashMap<MessageId, u32> = HashMap::new();
    let mut on_connection: HashMap<(MessageId, u32), u32> = HashMap::new();
    for delivery in &consumer.deliveries {
        let Some(id) = delivery.message else { continue };
        *without_dup.entry(id).or_default() += u32::from(!delivery.dup);
        *on_connection.entry((id, delivery.connection)).or_default() += 1;
    }
    let mut most: BTreeMap<MessageId, u32> = BTreeMap::new();
    let counted = without_dup
        .into_iter()
        .chain(on_connection.into_iter().map(|((id, _), copies)| (id, copies)));
    for (id, copies) in counted {
        let most = most.entry(id).or_default();
        *most = copies.max(*most);
    }
    let found = most.into_iter().filter_map(|(id, copies)| {
        let sends = message(history, id)?.sends;
        let consumer = consumer.name.clone();
        (copies > sends).then_some(Violation::Unexplained {
            consumer,
            message: id,
            copies,
            sends,
        })
    });
    found.collect()
}

/// Compares each consumer with the first one that saw the topic too; orders that all agree with one agree.
fn total_order(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    let views: Vec<_> = history
        .consumers
        .iter()
        .map(|consumer| (consumer, firsts(consumer)))
        .collect();
    for (second, (consumer, view)) in views.iter().enumerate() {
        for (topic, messages) in view {
            let Some((other, reference)) = views[..second]
                .iter()
                .find_map(|(other, view)| Some((other, view.get(topic)?)))
            else {
                continue;
            };
            let rank: HashMap<MessageId, usize> = reference.iter().enumerate().map(|(rank, id)| (*id, rank)).collect();
            let common: Vec<_> = messages.iter().filter_map(|id| Some((rank.get(id)?, id))).collect();
            let backwards = common.windows(2).find(|pair| pair[0].0 > pair[1].0);
            found.extend(backwards.map(|pair| Violation::TotalOrder {
                consumers: (other.name.clone(), consumer.name.clone()),
                message: *pair[1].1,
                after: *pair[0].1,
                topic: (*topic).into(),
            }));
        }
    }
    found
}

impl Violation {
    pub fn kind(&self) -> &'static str {
        match self {
            Violation::Lost { .. } => "lost",
            Violation::Reordered { .. } => "reordered",
            Violation::TotalOrder { .. } => "total-order",
            Violation::Phantom { .. } => "phantom",
            Violation::RefusedDelivered { .. } => "refused-delivered",
            Violation::Unexplained { .. } => "unexplained-duplicate",
            Violation::Twice { .. } => "twice",
            Violation::NotSubscribed { .. } => "not-subscribed",
            Violation::Misbehaved { .. } => "misbehaved",
        }
    }
}

/// The number of each kind and a few examples.
pub struct Verdict<'a>(pub &'a [Violation]);

impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds: BTreeMap<&str, Vec<&Violation>> = BTreeMap::new();
        for violation in self.0 {
            kinds.entry(violation.kind()).or_default().push(violation);
        }
        for (kind, violations) in kinds {
            writeln!(f, "{}: {}", kind, violations.len())?;
            for violation in violations.iter().take(EXAMPLES) {
                writeln!(f, "    {violation:?}")?;
            }
        }
        Ok(())
    }
}

const EXAMPLES: usize = 8;
