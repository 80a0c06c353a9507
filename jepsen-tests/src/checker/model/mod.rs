//! A history with its indexes: what was published, who was connected, which sessions lived and what each of them got.
//!
//!     events ──▶ messages, connections, acknowledgements      (one pass, `build`)
//!                     │
//!                     ├──▶ lives of sessions                   (`lives`: what each CONNACK tells)
//!                     └──▶ holds: subscriptions over time      (`holds`)
//!
//! A *life* is one session from its creation to its end: what MQTT calls a Session, where a client id may have several one
//! after the other. A *hold* is one filter of one life. Both have two ends in each direction: *sure* and *possible*. Only
//! what is sure creates a duty; what is possible permits.
//!
//! Points in time are indexes of events ([`Index`]); `time` is used only where a duration matters.

mod build;
mod holds;
mod lives;
mod names;
mod topic;

pub use holds::{Grant, Hold};
pub use lives::{Connacks, Lie, Life};
pub use names::{Map, Names, Quick};
pub use topic::{Filter, matches};

use super::Limits;
use crate::history::{Event, Message, Will};

/// A position in the history.
pub type Index = usize;

/// Later than everything in the history.
pub const NEVER: Index = usize::MAX;

pub struct Model<'h> {
    pub events: &'h [Event],
    pub clients: Names<'h>,
    pub topics: Names<'h>,
    pub nodes: Names<'h>,
    /// `publisher` of messages: clients, and `client/conn` of wills.
    pub publishers: Names<'h>,
    pub phases: Phases,
    pub messages: Vec<Published<'h>>,
    pub connections: Vec<Connection<'h>>,
    pub lives: Vec<Life>,
    /// Groups of concurrent CONNECTs of one client id, with what their CONNACKs prove.
    pub connacks: Vec<Connacks>,
    pub holds: Vec<Hold<'h>>,
    pub deliveries: Vec<Delivery<'h>>,
    /// Every exchange on a connection that the broker answered: what it sent, and when.
    pub exchanges: Vec<Exchange>,
    /// Where a client crashed and forgot.
    pub crashes: Vec<(u32, Index)>,
    /// Connections that read a retained message by a SUBSCRIBE of their own, which is not an event.
    pub readers: Map<u32, ()>,
    /// What makes the history itself unfit.
    pub unknown: Vec<String>,
    /// By connection; see [`Model::index_answers`].
    answers: Vec<Vec<(Index, Index)>>,
    message_numbers: Map<(u32, u32, u64), u32>,
    connection_numbers: Map<u64, u32>,
    /// Deliveries sorted by life, message, index.
    by_message: Vec<u32>,
    /// Holds that match a topic, per topic.
    topic_holds: Vec<Vec<u32>>,
    life_topic_holds: Map<(u32, u32), Vec<u32>>,
}

/// The first event of each phase.
#[derive(Clone, Debug, Default)]
pub struct Phases {
    pub began: Vec<(Index, String)>,
    /// The end of the duty to deliver: the first phase after `drain`, or the end of the history.
    pub drain_end: Index,
    pub has_drain: bool,
}

impl Phases {
    /// The phase in which an event lies. Before the first one: `setup`.
    pub fn at(&self, index: Index) -> &str {
        let after = self.began.partition_point(|(began, _)| *began <= index);
        match after.checked_sub(1) {
            Some(phase) => &self.began[phase].1,
            None => "setup",
        }
    }

    pub fn start(&self, phase: &str) -> Option<Index> {
        self.began
            .iter()
            .find(|(_, name)| name == phase)
            .map(|(index, _)| *index)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    Fail,
    /// Unknown, or still open when the history ended.
    Info,
}

/// A message and how its publishing went. Wills too: they are published at an unknown time after their CONNECT.
#[derive(Clone, Debug)]
pub struct Published<'h> {
    pub message: &'h Message,
    pub publisher: u32,
    pub topic: u32,
    pub client: u32,
    pub qos: u8,
    pub retain: bool,
    pub delete: bool,
    pub will: bool,
    pub invoke: Index,
    pub outcome: Outcome,
    /// Of the completion. [`NEVER`] where there is none, or it says nothing (`info`).
    pub end: Index,
    pub reason: Option<u8>,
    pub acknowledged_by: Option<u32>,
    /// Connections on which PUBLISH was put on the wire, in order, each with the event.
    pub sends: Vec<(u32, Index)>,
    /// At least how often it was sent.
    pub send_count: u32,
    /// The broker may take it for a repetition of another message: its client had forgotten its QoS 2 exchanges.
    pub doubtful: bool,
}

impl Published<'_> {
    /// A single entry in the broker's log at most: exact checks of order need it.
    pub fn is_single(&self) -> bool {
        self.send_count <= 1 || self.qos == 2
    }

    /// Acknowledged: a promise.
    pub fn is_kept(&self) -> bool {
        self.outcome == Outcome::Ok && self.qos > 0 && !self.will
    }
}

#[derive(Clone, Debug)]
pub struct Connection<'h> {
    pub number: u64,
    pub client: u32,
    pub node: u32,
    pub version: u8,
    pub clean: bool,
    pub expiry: u32,
    pub receive_maximum: u16,
    pub will: Option<&'h Will>,
    pub invoke: Index,
    /// CONNACK or its absence; [`NEVER`]: still open.
    pub answer: Index,
    pub outcome: Outcome,
    pub session_present: Option<bool>,
    /// The last event that the client sent and the broker answered: the connection lived at the broker until then.
    pub proof: Index,
    /// First sign for the client that it ended: lost, DISCONNECT sent, crashed.
    pub end: Option<Index>,
    pub lost: Option<Index>,
    pub disconnect: Option<Disconnected>,
    pub life: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
pub struct Disconnected {
    pub invoke: Index,
    pub end: Index,
    /// The broker closed the connection after it, and nothing was done to its node about then: it was processed.
    pub processed: bool,
    pub reason: u8,
    pub expiry: Option<u32>,
}

impl Connection<'_> {
    /// Served at `index`, as far as the client can see.
    pub fn is_open_at(&self, index: Index) -> bool {
        self.outcome == Outcome::Ok && self.answer < index && self.end.is_none_or(|end| end > index)
    }
}

#[derive(Clone, Debug)]
pub struct Delivery<'h> {
    pub index: Index,
    pub client: u32,
    pub connection: u32,
    pub life: Option<u32>,
    /// None: not of this run, or never invoked.
    pub message: Option<u32>,
    pub qos: u8,
    pub dup: bool,
    pub retain: bool,
    pub pid: u16,
    pub handed: bool,
    pub ids: &'h [u32],
    /// PUBACK or PUBREC sent for it, with its reason.
    pub acknowledged: Option<(Index, u8)>,
}

/// What the broker answered on a connection.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    pub connection: u32,
    pub sent: Index,
    pub answered: Index,
    pub kind: ExchangeKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExchangeKind {
    Publish1,
    Publish2,
    Subscribe,
    Unsubscribe,
    Ping,
}

impl<'h> Model<'h> {
    pub fn new(events: &'h [Event], limits: &Limits) -> Model<'h> {
        let mut model = build::build(events);
        model.index_answers();
        lives::trace(&mut model, limits);
        holds::trace(&mut model);
        model.assign_deliveries();
        model.index_holds();
        model
    }

    pub fn message(&self, message: &Message) -> Option<u32> {
        let publisher = self.publishers.number(&message.publisher)?;
        let topic = self.topics.number(&message.topic)?;
        self.message_numbers.get(&(publisher, topic, message.seq)).copied()
    }

    pub fn connection(&self, number: u64) -> Option<u32> {
        self.connection_numbers.get(&number).copied()
    }

    /// Seconds since the start of the run.
    pub fn seconds(&self, index: Index) -> f64 {
        self.events
            .get(index)
            .or(self.events.last())
            .map_or(0.0, |event| event.time as f64 / 1e9)
    }

    /// The first event at or after a time in seconds.
    pub fn index_at(&self, seconds: f64) -> Index {
        let at = self.events.partition_point(|event| (event.time as f64) < seconds * 1e9);
        if at == self.events.len() { NEVER } else { at }
    }

    /// All copies of a message that a life received, in order.
    pub fn copies(&self, life: u32, message: u32) -> impl Iterator<Item = &Delivery<'h>> + '_ {
        let key = |delivery: &u32| {
            let delivery = &self.deliveries[*delivery as usize];
            (delivery.life, delivery.message)
        };
        let wanted = (Some(life), Some(message));
        let from = self.by_message.partition_point(|at| key(at) < wanted);
        self.by_message[from..]
            .iter()
            .take_while(move |at| key(at) == wanted)
            .map(|at| &self.deliveries[*at as usize])
    }

    /// Copies grouped by life and message: the unit of most checks.
    pub fn copy_groups(&self) -> impl Iterator<Item = (u32, u32, Vec<&Delivery<'h>>)> + '_ {
        self.by_message
            .chunk_by(|a, b| {
                let (a, b) = (&self.deliveries[*a as usize], &self.deliveries[*b as usize]);
                (a.life, a.message) == (b.life, b.message)
            })
            .filter_map(|group| {
                let copies: Vec<&Delivery> = group.iter().map(|at| &self.deliveries[*at as usize]).collect();
                Some((copies[0].life?, copies[0].message?, copies))
            })
    }

    /// Deliveries of each life, in order.
    pub fn deliveries_by_life(&self) -> Vec<Vec<u32>> {
        let mut lists = vec![Vec::new(); self.lives.len()];
        for (number, delivery) in self.deliveries.iter().enumerate() {
            if let Some(life) = delivery.life {
                lists[life as usize].push(number as u32);
            }
        }
        lists
    }

    /// Holds of all lives that match a topic.
    pub fn holds_of_topic(&self, topic: u32) -> &[u32] {
        self.topic_holds.get(topic as usize).map_or(&[], Vec::as_slice)
    }

    /// Holds that match a topic in one life, those that it may have from the life before included.
    pub fn holds_of(&self, life: u32, topic: u32) -> impl Iterator<Item = &Hold<'h>> + '_ {
        self.life_topic_holds
            .get(&(life, topic))
            .into_iter()
            .flatten()
            .map(|hold| &self.holds[*hold as usize])
    }

    /// Exempt from order: some copies may have come through a group.
    pub fn is_shared(&self, life: u32, topic: u32) -> bool {
        self.holds_of(life, topic).any(|hold| hold.group.is_some())
    }

    /// A live copy, as far as that can be told: not a stored retained message sent at a SUBSCRIBE.
    pub fn is_live(&self, delivery: &Delivery) -> bool {
        if !delivery.retain {
            return true;
        }
        let (Some(life), Some(message)) = (delivery.life, delivery.message) else {
            return false;
        };
        let published = &self.messages[message as usize];
        // With Retain As Published the flag does not tell; what was sent after the only SUBACK was live.
        let mut holds = self.holds_of(life, published.topic);
        match (holds.next(), holds.next()) {
            (Some(hold), None) if published.retain && hold.from_sure < published.invoke => {
                matches!(&hold.grants[..], [only] if only.retain_as_published)
            }
            _ => false,
        }
    }

    /// A subscription of `life` matches `topic`, was surely established before `index` and was kept until `until`.
    pub fn surely_held(&self, life: u32, topic: u32, index: Index, until: Index) -> Option<&Hold<'h>> {
        self.holds_of(life, topic)
            .find(|hold| hold.group.is_none() && hold.from_sure < index && hold.until_possible > until)
    }

    /// The broker has read what the client sent on the connection at `index`: a later exchange was answered.
    pub fn surely_read(&self, connection: u32, index: Index) -> bool {
        self.connections[connection as usize].proof > index
    }

    /// Read, and long enough before the connection's last sign of life to be settled.
    ///
    /// The time runs from the answer of what was sent *after* it: on a slow link an acknowledgement may be on its way for long,
    /// and arrive together with what the client sent much later.
    pub fn surely_settled(&self, connection: u32, index: Index, limits: &Limits) -> bool {
        let later = &self.answers[connection as usize];
        let read = later.get(later.partition_point(|(sent, _)| *sent <= index));
        let proof = self.connections[connection as usize].proof;
        read.is_some_and(|(_, read)| proof > *read && self.seconds(proof) - self.seconds(*read) >= limits.settle)
    }

    /// Of each connection, what it sent and the broker answered: when, and when the first answer to it or to anything later came.
    fn index_answers(&mut self) {
        self.answers = vec![Vec::new(); self.connections.len()];
        for exchange in &self.exchanges {
            self.answers[exchange.connection as usize].push((exchange.sent, exchange.answered));
        }
        for answers in &mut self.answers {
            answers.sort_unstable();
            let mut first = NEVER;
            for (_, answered) in answers.iter_mut().rev() {
                first = first.min(*answered);
                *answered = first;
            }
        }
    }

    /// The client forgot what it had received, somewhere between two events.
    pub fn forgot_between(&self, client: u32, from: Index, until: Index) -> bool {
        let mut crashes = self.crashes.iter();
        crashes.any(|(crashed, index)| *crashed == client && (from..until).contains(index))
    }

    pub fn client_of(&self, life: u32) -> &'h str {
        self.clients.name(self.lives[life as usize].client)
    }

    pub fn node_of(&self, connection: u32) -> &'h str {
        self.nodes.name(self.connections[connection as usize].node)
    }

    /// The connection that serves a life at `index`, as far as clients can see.
    pub fn serving(&self, life: u32, index: Index) -> Option<u32> {
        let connections = &self.lives[life as usize].connections;
        let serves = |number: &&u32| self.connections[**number as usize].is_open_at(index);
        connections.iter().rev().find(serves).copied()
    }

    fn assign_deliveries(&mut self) {
        for delivery in &mut self.deliveries {
            delivery.life = self.connections[delivery.connection as usize].life;
        }
        let deliveries = &self.deliveries;
        self.by_message = (0..deliveries.len() as u32).collect();
        self.by_message.sort_by_key(|at| {
            let delivery = &deliveries[*at as usize];
            (delivery.life, delivery.message, delivery.index)
        });
    }

    fn index_holds(&mut self) {
        let mut exact: Map<&str, Vec<u32>> = Map::default();
        let mut wild: Map<&str, Vec<u32>> = Map::default();
        for (number, hold) in self.holds.iter().enumerate() {
            let filter = Filter::new(hold.filter);
            let holds = if filter.is_wild() { &mut wild } else { &mut exact };
            holds.entry(filter.levels).or_default().push(number as u32);
        }
        for (topic, name) in self.topics.iter() {
            let mut found = exact.get(name).cloned().unwrap_or_default();
            for (filter, holds) in &wild {
                if matches(filter, name) {
                    found.extend(holds);
                }
            }
            found.sort_unstable();
            for number in &found {
                let hold = &self.holds[*number as usize];
                for life in hold.life..=hold.last_life {
                    if self.lives[life as usize].client == hold.client {
                        self.life_topic_holds.entry((life, topic)).or_default().push(*number);
                    }
                }
            }
            self.topic_holds.push(found);
        }
    }
}
