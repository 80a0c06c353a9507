//! What this client has asked for and not been answered, by Packet Identifier.
//!
//!     PUBLISH QoS 1 ──▶ Puback ──PUBACK──▶ done
//!     PUBLISH QoS 2 ──▶ Pubrec ──PUBREC──▶ Pubcomp ──PUBCOMP──▶ done     an error in PUBREC is done at once
//!     SUBSCRIBE, UNSUBSCRIBE ──▶ Suback, Unsuback ──▶ done
//!
//! Invariants
//! - `packet-id-unique`: an identifier is not given out again before its exchange is done. [MQTT-2.2.1-3]
//! - `send-quota`: PUBLISH packets in flight ≤ the server's Receive Maximum. [MQTT-3.3.4-7]

use std::collections::HashMap;
use std::num::NonZeroU16;

use crate::protocol::codec::{QoS, ReasonCode, Violation};

/// What is awaited next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    Puback,
    Pubrec,
    Pubcomp,
    Suback { filters: usize },
    Unsuback { filters: usize },
}

/// What PUBREC asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Recorded {
    /// PUBREL with this reason is due.
    Release(ReasonCode),
    /// The message was refused: the exchange is done.
    Refused,
}

#[derive(Debug)]
pub struct Exchanges {
    open: HashMap<NonZeroU16, Awaited>,
    publishes: u16,
    receive_maximum: u16,
    last: u16,
}

impl Exchanges {
    pub fn new(receive_maximum: u16) -> Self {
        Exchanges {
            open: HashMap::new(),
            publishes: 0,
            receive_maximum,
            last: 0,
        }
    }

    /// What the server allows, where that is less.
    pub fn lower_receive_maximum(&mut self, receive_maximum: u16) {
        self.receive_maximum = self.receive_maximum.min(receive_maximum);
    }

    /// Whether a PUBLISH above QoS 0 may leave now.
    pub fn has_room(&self) -> bool {
        self.publishes < self.receive_maximum && self.open.len() < usize::from(u16::MAX)
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The identifier for a PUBLISH; `None` when there is no room.
    pub fn publish(&mut self, qos: QoS) -> Option<NonZeroU16> {
        if !self.has_room() {
            return None;
        }
        let awaited = match qos {
            QoS::ExactlyOnce => Awaited::Pubrec,
            QoS::AtLeastOnce | QoS::AtMostOnce => Awaited::Puback,
        };
        let packet_id = self.open(awaited)?;
        self.publishes += 1;
        Some(packet_id)
    }

    pub fn subscribe(&mut self, filters: usize) -> Option<NonZeroU16> {
        self.open(Awaited::Suback { filters })
    }

    pub fn unsubscribe(&mut self, filters: usize) -> Option<NonZeroU16> {
        self.open(Awaited::Unsuback { filters })
    }

    /// Takes back an identifier whose packet was not written.
    pub fn forget(&mut self, packet_id: NonZeroU16) {
        if let Some(Awaited::Puback | Awaited::Pubrec) = self.open.remove(&packet_id) {
            self.publishes -= 1;
        }
    }

    /// PUBACK; whether it answers anything.
    ///
    /// # Errors
    /// It answers a packet that is not a PUBLISH of QoS 1.
    pub fn puback(&mut self, packet_id: NonZeroU16) -> Result<bool, Violation> {
        match self.open.get(&packet_id) {
            Some(Awaited::Puback) => Ok(self.published(packet_id)),
            // Nothing in flight: an answer to what an earlier process of this session sent.
            None => Ok(false),
            Some(_) => Err(WRONG_ANSWER),
        }
    }

    /// PUBREC, with its reason.
    ///
    /// # Errors
    /// It answers a packet that is not a PUBLISH of QoS 2.
    pub fn pubrec(&mut self, packet_id: NonZeroU16, reason: ReasonCode) -> Result<Recorded, Violation> {
        match self.open.get_mut(&packet_id) {
            Some(Awaited::Pubrec) if reason.is_error() => {
                self.published(packet_id);
                Ok(Recorded::Refused)
            }
            Some(awaited @ (Awaited::Pubrec | Awaited::Pubcomp)) => {
                *awaited = Awaited::Pubcomp;
                Ok(Recorded::Release(ReasonCode::SUCCESS))
            }
            None => Ok(Recorded::Release(ReasonCode::PACKET_IDENTIFIER_NOT_FOUND)),
            Some(_) => Err(WRONG_ANSWER),
        }
    }

    /// PUBCOMP; whether it answers anything.
    ///
    /// # Errors
    /// It answers a packet that is not a PUBREL.
    pub fn pubcomp(&mut self, packet_id: NonZeroU16) -> Result<bool, Violation> {
        match self.open.get(&packet_id) {
            Some(Awaited::Pubcomp) => Ok(self.published(packet_id)),
            None => Ok(false),
            Some(_) => Err(WRONG_ANSWER),
        }
    }

    /// SUBACK with so many codes. [MQTT-3.8.4-6]
    ///
    /// # Errors
    /// It answers no SUBSCRIBE, or one with another number of filters.
    pub fn suback(&mut self, packet_id: NonZeroU16, codes: usize) -> Result<(), Violation> {
        match self.open.remove(&packet_id) {
            Some(Awaited::Suback { filters }) if filters == codes => Ok(()),
            _ => Err(WRONG_ANSWER),
        }
    }

    /// UNSUBACK; `codes` is `None` in 3.x, which has none.
    ///
    /// # Errors
    /// It answers no UNSUBSCRIBE, or one with another number of filters.
    pub fn unsuback(&mut self, packet_id: NonZeroU16, codes: Option<usize>) -> Result<(), Violation> {
        match self.open.remove(&packet_id) {
            Some(Awaited::Unsuback { filters }) if codes.is_none_or(|codes| codes == filters) => Ok(()),
            _ => Err(WRONG_ANSWER),
        }
    }

    fn published(&mut self, packet_id: NonZeroU16) -> bool {
        self.open.remove(&packet_id);
        self.publishes -= 1;
        true
    }

    /// Identifiers go round, so that one is used again as late as possible.
    fn open(&mut self, awaited: Awaited) -> Option<NonZeroU16> {
        if self.open.len() >= usize::from(u16::MAX) {
            return None;
        }
        loop {
            self.last = self.last.wrapping_add(1);
            if let Some(packet_id) = NonZeroU16::new(self.last)
                && !self.open.contains_key(&packet_id)
            {
                self.open.insert(packet_id, awaited);
                return Some(packet_id);
            }
        }
    }
}

const WRONG_ANSWER: Violation = Violation {
    reason: ReasonCode::PROTOCOL_ERROR,
    statement: "4.3",
    what: "an answer to a packet that was not sent",
};
