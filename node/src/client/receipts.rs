//! What this client was sent above QoS 0 and has not answered in full.
//!
//!     QoS 1 ──▶ Unanswered ──PUBACK──▶ done
//!     QoS 2 ──▶ Unanswered ──PUBREC──▶ Recorded ──PUBREL──▶ done
//!
//! A message is handed over when it arrives and answered when its receiver has taken care of it: a process that ends in
//! between gets it again, rather than never.
//!
//! Invariants
//! - `exactly-once-in`: a QoS 2 PUBLISH that comes again before its PUBREL is not handed over again. [MQTT-4.3.3-10]
//! - `bounded`: at most Receive Maximum are open. [MQTT-3.3.4-9]

use std::collections::HashMap;
use std::num::NonZeroU16;

use crate::protocol::codec::{AckKind, QoS, ReasonCode, Violation};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receipt {
    Unanswered(QoS),
    Recorded,
}

/// What to do with a PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    HandOver,
    /// It was handed over and answered before: PUBREC again.
    AnswerAgain,
    /// It was handed over and is not answered yet.
    Ignore,
}

#[derive(Debug)]
pub struct Receipts {
    open: HashMap<NonZeroU16, Receipt>,
    receive_maximum: u16,
}

impl Receipts {
    /// `receive_maximum` is what the server was told.
    pub fn new(receive_maximum: u16) -> Self {
        Receipts {
            open: HashMap::new(),
            receive_maximum,
        }
    }

    /// Whether a PUBREL is awaited for any.
    pub fn awaits_release(&self) -> bool {
        self.open.values().any(|receipt| *receipt == Receipt::Recorded)
    }

    /// A PUBLISH above QoS 0.
    ///
    /// # Errors
    /// More are open than the server was told. [MQTT-3.3.4-9]
    pub fn arrived(&mut self, packet_id: NonZeroU16, qos: QoS) -> Result<Arrival, Violation> {
        match (self.open.get(&packet_id), qos) {
            (Some(Receipt::Recorded), QoS::ExactlyOnce) => return Ok(Arrival::AnswerAgain),
            (Some(Receipt::Unanswered(QoS::ExactlyOnce)), QoS::ExactlyOnce) => return Ok(Arrival::Ignore),
            _ => {}
        }
        self.open.insert(packet_id, Receipt::Unanswered(qos));
        if self.open.len() > usize::from(self.receive_maximum) {
            return Err(Violation {
                reason: ReasonCode::RECEIVE_MAXIMUM_EXCEEDED,
                statement: "MQTT-3.3.4-9",
                what: "more messages in flight than this client's Receive Maximum",
            });
        }
        Ok(Arrival::HandOver)
    }

    /// The receiver has taken care of a message: what is to be sent for it, once.
    pub fn answer(&mut self, packet_id: NonZeroU16) -> Option<AckKind> {
        match self.open.get(&packet_id)? {
            Receipt::Unanswered(QoS::ExactlyOnce) => {
                self.open.insert(packet_id, Receipt::Recorded);
                Some(AckKind::PubRec)
            }
            Receipt::Unanswered(_) => {
                self.open.remove(&packet_id);
                Some(AckKind::PubAck)
            }
            Receipt::Recorded => None,
        }
    }

    /// PUBREL: the reason of the PUBCOMP that answers it.
    ///
    /// # Errors
    /// The message was not answered with PUBREC.
    pub fn released(&mut self, packet_id: NonZeroU16) -> Result<ReasonCode, Violation> {
        match self.open.remove(&packet_id) {
            Some(Receipt::Recorded) => Ok(ReasonCode::SUCCESS),
            // An earlier process of this session took the message.
            None => Ok(ReasonCode::PACKET_IDENTIFIER_NOT_FOUND),
            Some(Receipt::Unanswered(_)) => Err(Violation {
                reason: ReasonCode::PROTOCOL_ERROR,
                statement: "MQTT-4.3.3-8",
                what: "PUBREL before PUBREC",
            }),
        }
    }
}
