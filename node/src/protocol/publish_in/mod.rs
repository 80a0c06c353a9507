//! Inbound PUBLISH: what the client sent, and how far each exchange is.
//!
//! ```text
//!   QoS 1   PUBLISH ─▶ waiting ─outcome─▶ PUBACK
//!   QoS 2   PUBLISH ─▶ Received ─outcome─▶ PUBREC ─▶ Recorded ─PUBREL─▶ Releasing ─outcome─▶ PUBCOMP
//!                          └─ refused ─▶ PUBREC >= 0x80, over            ▲
//!                                     PUBREL after a reconnect ──────────┘
//! ```
//!
//! Sans-io. What it leaves to others: the shard knows which identifiers of the session it has recorded; here is only
//! what this connection did.
//!
//! Invariants
//! - `ack-after-commit`: an answer leaves only after its outcome was told. [MQTT-4.3.2-4] [MQTT-4.3.3-8]
//! - PUBACKs leave in the order in which their PUBLISH packets came, PUBRECs and PUBCOMPs likewise among themselves.
//!   [MQTT-4.6.0-2] [MQTT-4.6.0-3]
//! - `exactly-once-in`: nothing of an identifier is handed on while something of it is under way. A PUBLISH that comes
//!   again after its PUBREC is answered here: the shard would forget the identifier if PUBREL overtook the repeat, and
//!   take that for a new message.
//! - `bounded`: at most Receive Maximum wait; then a 5.0 client is in error (or, with PUBRELs, not read from), a 3.x
//!   client is not read from. [MQTT-3.3.4-7] [MQTT-3.3.4-8]

mod in_order;

use std::collections::HashMap;
use std::num::NonZeroU16;
use std::time::Instant;

use bytes::BytesMut;

use self::in_order::InOrder;
use super::answers::Answers;
use super::codec::{AckKind, QoS, ReasonCode};
use crate::rare::Rare;

/// The inbound half of a connection.
#[derive(Debug)]
pub struct Inbound {
    answers: Answers,
    receive_maximum: usize,
    books: Rare<Books>,
}

/// Made with the first PUBLISH of QoS 1 or 2.
#[derive(Debug, Default)]
struct Books {
    pubacks: InOrder,
    pubrecs: InOrder,
    pubcomps: InOrder,
    /// Identifiers of QoS 2 that are under way.
    exchanges: HashMap<NonZeroU16, Exchange>,
    /// Those of `exchanges` that began on this connection: they count against Receive Maximum.
    published: usize,
}

#[derive(Clone, Copy, Debug)]
struct Exchange {
    step: Step,
    published_here: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Its PUBREC waits for the outcome.
    Received,
    /// PUBREC was sent.
    Recorded,
    /// Its PUBCOMP waits for the outcome.
    Releasing,
}

/// What is to be done about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Hand it on; its outcome is told under this token. Bits 62 and 63 are never set.
    New(u64),
    /// The client sent it again: it is answered with the first one, or has been.
    Again,
    /// A PUBREL of its identifier is under way: nothing more of the client may be looked at before that is over. A
    /// client that answered two PUBRECs with a PUBREL each may use the identifier anew after the first PUBCOMP.
    Wait,
    /// The client may not send this now.
    Refused(ReasonCode),
}

/// What became of answers when one was decided.
#[derive(Debug, Default)]
pub struct Acknowledged {
    /// When each PUBLISH came whose PUBACK or PUBREC was written.
    pub since: Vec<Instant>,
    /// A refusal that this version cannot tell: the connection must close.
    pub close: Option<ReasonCode>,
}

impl Inbound {
    pub fn new(answers: Answers, receive_maximum: u16) -> Self {
        Inbound {
            answers,
            receive_maximum: usize::from(receive_maximum),
            books: Rare::default(),
        }
    }

    /// Whether more may be read. Only what waits for the cluster holds a client back: PUBREL must be read to end an
    /// exchange.
    pub fn has_room(&self) -> bool {
        let Some(books) = self.books.get() else { return true };
        let waiting = match self.answers.version.is_v5() {
            true => books.pubcomps.len(),
            false => books.pubacks.len() + books.pubrecs.len() + books.pubcomps.len(),
        };
        waiting < self.receive_maximum
    }

    /// A PUBLISH of QoS 1 or 2 came.
    pub fn publish(
        &mut self,
        packet_id: NonZeroU16,
        qos: QoS,
        dup: bool,
        now: Instant,
        out: &mut BytesMut,
    ) -> Received {
        let books = self.books.make();
        let known = match qos {
            QoS::ExactlyOnce => books.exchanges.get(&packet_id).map(|exchange| exchange.step),
            QoS::AtLeastOnce | QoS::AtMostOnce => None,
        };
        match (qos, known) {
            (QoS::ExactlyOnce, Some(Step::Received)) => Received::Again,
            (QoS::ExactlyOnce, Some(Step::Recorded)) => {
                self.answers.ack(AckKind::PubRec, packet_id, ReasonCode::SUCCESS, out);
                Received::Again
            }
            (QoS::ExactlyOnce, Some(Step::Releasing)) => Received::Wait,
            (QoS::AtLeastOnce, _) if dup && books.pubacks.contains(packet_id) => Received::Again,
            // 3.x knows no Receive Maximum: it is not read from beyond.
            _ if self.answers.version.is_v5() && books.counted() >= self.receive_maximum => {
                Received::Refused(ReasonCode::RECEIVE_MAXIMUM_EXCEEDED)
            }
            (QoS::ExactlyOnce, None) => {
                let exchange = Exchange {
                    step: Step::Received,
                    published_here: true,
                };
                books.exchanges.insert(packet_id, exchange);
                books.published += 1;
                Received::New(token(PUBREC, books.pubrecs.push(packet_id, now)))
            }
            (QoS::AtLeastOnce | QoS::AtMostOnce, _) => Received::New(token(PUBACK, books.pubacks.push(packet_id, now))),
        }
    }

    /// PUBREL came, perhaps for a PUBLISH of an earlier connection.
    pub fn pubrel(&mut self, packet_id: NonZeroU16, now: Instant) -> Received {
        let books = self.books.make();
        match books.exchanges.get_mut(&packet_id) {
            Some(exchange) => match exchange.step {
                // [MQTT-4.3.3-4]: PUBREL answers PUBREC, which was not sent.
                Step::Received => return Received::Refused(ReasonCode::PROTOCOL_ERROR),
                Step::Recorded => exchange.step = Step::Releasing,
                Step::Releasing => return Received::Again,
            },
            None => {
                let exchange = Exchange {
                    step: Step::Releasing,
                    published_here: false,
                };
                books.exchanges.insert(packet_id, exchange);
            }
        }
        Received::New(token(PUBCOMP, books.pubcomps.push(packet_id, now)))
    }

    /// The identifier whose PUBREC waits for the outcome of `token`.
    pub fn awaits_pubrec(&self, token: u64) -> Option<NonZeroU16> {
        match token & KINDS {
            PUBREC => self.books.get()?.pubrecs.packet_id(token >> KIND_BITS),
            _ => None,
        }
    }

    /// The outcome of `token`. Writes every answer that may leave now.
    ///
    /// A PUBREL's outcome is success or [`ReasonCode::PACKET_IDENTIFIER_NOT_FOUND`].
    pub fn decide(&mut self, token: u64, reason: ReasonCode, out: &mut BytesMut) -> Acknowledged {
        let mut acknowledged = Acknowledged::default();
        let (kind, number) = (token & KINDS, token >> KIND_BITS);
        let Some(queue) = self.queue(kind) else {
            return acknowledged;
        };
        queue.decide(number, reason);
        while let Some((waiting, reason)) = self.queue(kind).and_then(InOrder::pop_decided) {
            if !self.can_tell(kind, reason) {
                // Nothing behind it may be answered either.
                acknowledged.close = Some(reason);
                self.queue(kind).into_iter().for_each(InOrder::clear);
                break;
            }
            match kind {
                PUBACK => self.answers.ack(AckKind::PubAck, waiting.packet_id, reason, out),
                PUBREC => self.write_pubrec(waiting.packet_id, reason, out),
                _ => self.write_pubcomp(waiting.packet_id, reason, out),
            };
            if kind != PUBCOMP {
                acknowledged.since.push(waiting.since);
            }
        }
        acknowledged
    }

    fn write_pubrec(&mut self, packet_id: NonZeroU16, reason: ReasonCode, out: &mut BytesMut) -> bool {
        if reason.is_error() {
            self.end(packet_id); // [MQTT-4.3.3-9]
        } else if let Some(exchange) = self.books.make().exchanges.get_mut(&packet_id) {
            exchange.step = Step::Recorded;
        }
        self.answers.ack(AckKind::PubRec, packet_id, reason, out)
    }

    fn write_pubcomp(&mut self, packet_id: NonZeroU16, reason: ReasonCode, out: &mut BytesMut) -> bool {
        self.end(packet_id);
        self.answers.ack(AckKind::PubComp, packet_id, reason, out)
    }

    fn end(&mut self, packet_id: NonZeroU16) {
        let books = self.books.make();
        if let Some(exchange) = books.exchanges.remove(&packet_id) {
            books.published -= usize::from(exchange.published_here);
        }
    }

    /// 3.x has no negative acknowledgement, and PUBCOMP has none in either.
    fn can_tell(&self, kind: u64, reason: ReasonCode) -> bool {
        match kind {
            PUBCOMP => !reason.is_error() || reason == ReasonCode::PACKET_IDENTIFIER_NOT_FOUND,
            _ => !reason.is_error() || self.answers.version.is_v5(),
        }
    }

    fn queue(&mut self, kind: u64) -> Option<&mut InOrder> {
        let books = self.books.get_mut()?;
        match kind {
            PUBACK => Some(&mut books.pubacks),
            PUBREC => Some(&mut books.pubrecs),
            PUBCOMP => Some(&mut books.pubcomps),
            _ => None,
        }
    }
}

impl Books {
    /// Publishes of this connection that are under way. [MQTT-3.3.4-9]
    fn counted(&self) -> usize {
        self.pubacks.len() + self.published
    }
}

fn token(kind: u64, number: u64) -> u64 {
    debug_assert!(number < 1 << 60, "bits 62 and 63 stay free");
    number << KIND_BITS | kind
}

/// The lowest bits of a token: which answer it stands for.
const KIND_BITS: u32 = 2;
const KINDS: u64 = (1 << KIND_BITS) - 1;
const PUBACK: u64 = 0;
const PUBREC: u64 = 1;
const PUBCOMP: u64 = 2;

#[cfg(test)]
mod tests;
