//! Inbound PUBLISH: what the client sent and what it has not yet been acknowledged.
//!
//!     PUBLISH ──▶ waiting, in order of receipt ──outcome──▶ decided ──front of the queue──▶ PUBACK
//!
//! Sans-io. Invariants
//! - `ack-after-commit`: a PUBACK leaves only after its outcome was told. [MQTT-4.3.2-4]
//! - PUBACKs leave in the order in which their PUBLISH packets came. [MQTT-4.6.0-2]
//! - `bounded`: at most Receive Maximum wait; then a 5.0 client is in error, a 3.x client is not read from. [MQTT-3.3.4-9]

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::time::Instant;

use bytes::BytesMut;

use super::codec::{AckKind, ReasonCode, Version, encode_ack};

/// QoS 1 publishes that wait for their outcome.
#[derive(Debug)]
pub struct Inbound {
    version: Version,
    receive_maximum: u16,
    first_token: u64,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    packet_id: NonZeroU16,
    since: Instant,
    decided: Option<ReasonCode>,
}

/// What became of acknowledgements when one was decided.
#[derive(Debug, Default)]
pub struct Acknowledged {
    /// When each acknowledged PUBLISH came.
    pub since: Vec<Instant>,
    /// A refusal that this version cannot tell: the connection must close.
    pub close: Option<ReasonCode>,
}

impl Inbound {
    pub fn new(version: Version, receive_maximum: u16) -> Self {
        Inbound {
            version,
            receive_maximum,
            first_token: 0,
            waiting: VecDeque::new(),
        }
    }

    /// Whether one more may come.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < usize::from(self.receive_maximum)
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A QoS 1 PUBLISH came; returns the token under which its outcome is told.
    pub fn publish(&mut self, packet_id: NonZeroU16, now: Instant) -> u64 {
        self.waiting.push_back(Waiting {
            packet_id,
            since: now,
            decided: None,
        });
        self.first_token + self.waiting.len() as u64 - 1
    }

    /// The outcome of `token`. Writes every PUBACK that may leave now.
    pub fn decide(&mut self, token: u64, reason: ReasonCode, out: &mut BytesMut) -> Acknowledged {
        let mut acknowledged = Acknowledged::default();
        let at = token
            .checked_sub(self.first_token)
            .and_then(|at| usize::try_from(at).ok());
        if let Some(waiting) = at.and_then(|at| self.waiting.get_mut(at)) {
            waiting.decided = Some(reason);
        }
        while let Some(reason) = self.waiting.front().and_then(|front| front.decided) {
            let Some(front) = self.waiting.pop_front() else { break };
            self.first_token += 1;
            if reason.is_error() && !self.version.is_v5() {
                // 3.x has no negative acknowledgement: nothing after it may be acknowledged either.
                acknowledged.close = Some(reason);
                self.waiting.clear();
                break;
            }
            encode_ack(AckKind::PubAck, self.version, front.packet_id, reason, out);
            acknowledged.since.push(front.since);
        }
        acknowledged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(value: u16) -> NonZeroU16 {
        NonZeroU16::new(value).unwrap()
    }

    #[test]
    fn pubacks_leave_in_order_of_receipt() {
        let mut inbound = Inbound::new(Version::V3_1_1, 10);
        let mut out = BytesMut::new();
        let now = Instant::now();
        let tokens: Vec<u64> = [7, 8, 9]
            .into_iter()
            .map(|packet| inbound.publish(id(packet), now))
            .collect();
        inbound.decide(tokens[2], ReasonCode::SUCCESS, &mut out);
        inbound.decide(tokens[1], ReasonCode::SUCCESS, &mut out);
        assert!(out.is_empty(), "ack-after-commit");
        assert_eq!(inbound.decide(tokens[0], ReasonCode::SUCCESS, &mut out).since.len(), 3);
        assert_eq!(out[..], [0x40, 2, 0, 7, 0x40, 2, 0, 8, 0x40, 2, 0, 9]);
        assert_eq!(inbound.publish(id(1), now), 3, "tokens are not reused");
    }

    #[test]
    fn a_refusal_is_told_in_5_and_closes_in_3() {
        let mut out = BytesMut::new();
        let mut five = Inbound::new(Version::V5, 10);
        let token = five.publish(id(7), Instant::now());
        assert_eq!(five.decide(token, ReasonCode::QUOTA_EXCEEDED, &mut out).close, None);
        assert_eq!(out[..], [0x40, 3, 0, 7, 0x97]);
        out.clear();
        let mut three = Inbound::new(Version::V3_1_1, 10);
        let tokens: Vec<u64> = [7, 8]
            .into_iter()
            .map(|packet| three.publish(id(packet), Instant::now()))
            .collect();
        three.decide(tokens[1], ReasonCode::SUCCESS, &mut out);
        let acknowledged = three.decide(tokens[0], ReasonCode::QUOTA_EXCEEDED, &mut out);
        assert_eq!(acknowledged.close, Some(ReasonCode::QUOTA_EXCEEDED));
        assert!(out.is_empty(), "never acknowledge behind a gap");
    }

    #[test]
    fn receive_maximum_bounds_what_waits() {
        let mut inbound = Inbound::new(Version::V5, 2);
        let now = Instant::now();
        inbound.publish(id(1), now);
        assert!(inbound.has_room());
        inbound.publish(id(2), now);
        assert!(!inbound.has_room());
    }
}
