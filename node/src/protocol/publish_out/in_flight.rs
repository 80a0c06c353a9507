//! Packet Identifiers in use towards one client, and how far the exchange of each is.
//!
//! ```text
//!   PUBLISH QoS 1 ─▶ AwaitPuback ─PUBACK────────────────────────────────────────────────────────┐
//!   PUBLISH QoS 2 ─▶ AwaitPubrec ─PUBREC─▶ Releasing ─committed─▶ (PUBREL) AwaitPubcomp ─PUBCOMP─┴▶ over
//!                         └─PUBREC >= 0x80─▶ over                     ▲
//!                       resumed, PUBREC was committed before ─────────┘
//!   over: of a shard's queue ─▶ settling ─applied─▶ free;  of no queue ─▶ free
//! ```
//!
//! Invariants
//! - `release-after-commit`: PUBREL leaves only after it was committed that PUBREC came; what no shard keeps needs no
//!   commit. [MQTT-4.3.3-4]
//! - PUBRELs leave in the order in which their PUBRECs came. [MQTT-4.6.0-4]

use std::collections::{HashMap, HashSet, VecDeque};
use std::num::NonZeroU16;

use bytes::BytesMut;
use lontra_storage::command::Left;
use lontra_storage::ids::{Offset, ShardId};

use super::{Effects, Wish};
use crate::protocol::answers::Answers;
use crate::protocol::codec::{AckKind, ReasonCode};
use crate::rare::Rare;

#[derive(Debug)]
pub(super) struct InFlight {
    answers: Answers,
    /// PUBLISH packets of this connection among the exchanges: they count against Receive Maximum.
    counted: usize,
    books: Rare<Books>,
}

/// Made with the first exchange.
#[derive(Debug, Default)]
struct Books {
    exchanges: HashMap<u16, Exchange>,
    /// Over, not yet gone in apply.
    settling: HashSet<u16>,
    /// PUBRELs that are due, in the order of their PUBRECs, and whether each may leave.
    releases: VecDeque<(u16, bool)>,
}

#[derive(Clone, Copy, Debug)]
struct Exchange {
    of: Of,
    step: Step,
    counted: bool,
    /// How the message leaves its queue when the exchange is over.
    how: Left,
}

/// Where a message comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// The session's queue in a shard: the identifier is bound to the offset.
    Queue(ShardId, Offset),
    /// No queue of this session; or that of a group, which is told when it is over.
    Passing(Option<(ShardId, Offset)>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    AwaitPuback,
    AwaitPubrec,
    Releasing,
    AwaitPubcomp,
}

impl InFlight {
    pub fn new(answers: Answers) -> Self {
        InFlight {
            answers,
            counted: 0,
            books: Rare::default(),
        }
    }

    /// Whether the identifier may not be used for anything else.
    pub fn is_busy(&self, packet_id: u16) -> bool {
        self.books
            .is_some_and(|books| books.exchanges.contains_key(&packet_id) || books.settling.contains(&packet_id))
    }

    /// PUBLISH packets that count against the client's Receive Maximum. [MQTT-4.9.0-2]
    pub fn counted(&self) -> usize {
        self.counted
    }

    /// A PUBLISH of QoS 1 or 2 left.
    pub fn sent(&mut self, packet_id: u16, qos: u8, of: Of) {
        let step = if qos == 2 { Step::AwaitPubrec } else { Step::AwaitPuback };
        self.begin(packet_id, of, step, true, Left::Delivered);
        self.counted += 1;
    }

    /// An earlier connection got PUBREC, which is committed: PUBREL leaves again. It counts not. [MQTT-4.4.0-1]
    pub fn resume_released(&mut self, packet_id: NonZeroU16, of: Of, out: &mut BytesMut) {
        self.begin(packet_id.get(), of, Step::AwaitPubcomp, false, Left::Delivered);
        self.answers.ack(AckKind::PubRel, packet_id, ReasonCode::SUCCESS, out);
    }

    /// The client may have it from an earlier connection, and cannot be sent it again: PUBREL ends the exchange.
    pub fn close_unsent(&mut self, packet_id: u16, shard: ShardId, offset: Offset, how: Left, effects: &mut Effects) {
        self.begin(packet_id, Of::Queue(shard, offset), Step::Releasing, false, how);
        self.books.make().releases.push_back((packet_id, false));
        effects.wishes.push(Wish::Release(shard, offset, packet_id));
    }

    /// It leaves the queue without a packet of the client.
    pub fn settle_unsent(&mut self, packet_id: u16, shard: ShardId, offset: Offset, how: Left, effects: &mut Effects) {
        self.books.make().settling.insert(packet_id);
        effects.wishes.push(Wish::Settle(shard, offset, packet_id, how));
    }

    fn begin(&mut self, packet_id: u16, of: Of, step: Step, counted: bool, how: Left) {
        let exchange = Exchange { of, step, counted, how };
        let before = self.books.make().exchanges.insert(packet_id, exchange);
        debug_assert!(before.is_none(), "packet-id-of-offset");
    }

    /// PUBACK. An identifier that does not wait for it is ignored: the peer may acknowledge again after a reconnect.
    pub fn puback(&mut self, packet_id: NonZeroU16, effects: &mut Effects) -> bool {
        self.end_if(packet_id.get(), Step::AwaitPuback, effects)
    }

    pub fn pubrec(&mut self, packet_id: NonZeroU16, reason: ReasonCode, out: &mut BytesMut, effects: &mut Effects) {
        let id = packet_id.get();
        let known = self.books.get_mut().and_then(|books| books.exchanges.get_mut(&id));
        match known.map(|exchange| (exchange.step, exchange)) {
            Some((Step::AwaitPubrec, _)) if reason.is_error() => {
                self.end_if(id, Step::AwaitPubrec, effects); // [MQTT-4.3.3-9]
            }
            Some((Step::AwaitPubrec, exchange)) => {
                exchange.step = Step::Releasing;
                if let Of::Queue(shard, offset) = exchange.of {
                    effects.wishes.push(Wish::Release(shard, offset, id));
                    self.books.make().releases.push_back((id, false));
                } else {
                    self.books.make().releases.push_back((id, true));
                    self.write_releases(out);
                }
            }
            // The first PUBREC is being committed.
            Some((Step::Releasing, _)) => {}
            Some((Step::AwaitPubcomp, _)) if reason.is_error() => {}
            Some((Step::AwaitPubcomp, _)) => {
                self.answers.ack(AckKind::PubRel, packet_id, ReasonCode::SUCCESS, out);
            }
            Some((Step::AwaitPuback, _)) | None if reason.is_error() => {}
            Some((Step::AwaitPuback, _)) | None => {
                let not_found = ReasonCode::PACKET_IDENTIFIER_NOT_FOUND;
                self.answers.ack(AckKind::PubRel, packet_id, not_found, out);
            }
        }
    }

    /// PUBCOMP, whatever its reason: the client is done with it. Ignored before PUBREL was sent.
    pub fn pubcomp(&mut self, packet_id: NonZeroU16, effects: &mut Effects) -> bool {
        self.end_if(packet_id.get(), Step::AwaitPubcomp, effects)
    }

    /// A release was committed.
    pub fn released(&mut self, packet_id: u16) {
        let Some(books) = self.books.get_mut() else { return };
        let release = books.releases.iter_mut().find(|(id, _)| *id == packet_id);
        if let Some((_, may_leave)) = release {
            *may_leave = true;
        }
    }

    /// A settlement was applied (or its incarnation ended): the identifier is free.
    pub fn settled(&mut self, packet_id: u16) {
        if let Some(books) = self.books.get_mut() {
            books.settling.remove(&packet_id);
        }
    }

    /// Writes the PUBRELs that may leave.
    pub fn write_releases(&mut self, out: &mut BytesMut) {
        let Some(books) = self.books.get_mut() else { return };
        while let Some((id, true)) = books.releases.front().copied() {
            books.releases.pop_front();
            if let (Some(exchange), Some(packet_id)) = (books.exchanges.get_mut(&id), NonZeroU16::new(id)) {
                exchange.step = Step::AwaitPubcomp;
                self.answers.ack(AckKind::PubRel, packet_id, ReasonCode::SUCCESS, out);
            }
        }
    }

    fn end_if(&mut self, packet_id: u16, step: Step, effects: &mut Effects) -> bool {
        let Some(books) = self.books.get_mut() else {
            return false;
        };
        match books.exchanges.get(&packet_id).copied() {
            Some(exchange) if exchange.step == step => {
                books.exchanges.remove(&packet_id);
                self.counted -= usize::from(exchange.counted);
                let how = exchange.how;
                match exchange.of {
                    Of::Queue(shard, offset) => self.settle_unsent(packet_id, shard, offset, how, effects),
                    Of::Passing(Some((shard, offset))) => {
                        effects.wishes.push(Wish::Settle(shard, offset, packet_id, how));
                    }
                    Of::Passing(None) => {}
                }
                true
            }
            _ => false,
        }
    }
}
