//! Answers of one kind: each waits for its outcome, and for those that are due before it.

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::time::Instant;

use crate::protocol::codec::ReasonCode;

/// Answers that are due, in order of receipt.
#[derive(Debug, Default)]
pub(super) struct InOrder {
    /// The number of the first that waits; numbers are not reused.
    first: u64,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub packet_id: NonZeroU16,
    pub since: Instant,
    decided: Option<ReasonCode>,
}

impl InOrder {
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn clear(&mut self) {
        self.first += self.waiting.len() as u64;
        self.waiting.clear();
    }

    pub fn contains(&self, packet_id: NonZeroU16) -> bool {
        self.waiting.iter().any(|waiting| waiting.packet_id == packet_id)
    }

    /// Returns the number under which its outcome is told.
    pub fn push(&mut self, packet_id: NonZeroU16, now: Instant) -> u64 {
        self.waiting.push_back(Waiting {
            packet_id,
            since: now,
            decided: None,
        });
        self.first + self.waiting.len() as u64 - 1
    }

    /// Of the answer with this number, while it waits.
    pub fn packet_id(&self, number: u64) -> Option<NonZeroU16> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.waiting.get(at).map(|waiting| waiting.packet_id)
    }

    /// A number that does not wait is ignored.
    pub fn decide(&mut self, number: u64, reason: ReasonCode) {
        let at = number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        if let Some(waiting) = at.and_then(|at| self.waiting.get_mut(at)) {
            waiting.decided = Some(reason);
        }
    }

    /// The next answer that may leave.
    pub fn pop_decided(&mut self) -> Option<(Waiting, ReasonCode)> {
        let reason = self.waiting.front()?.decided?;
        self.first += 1;
        Some((self.waiting.pop_front()?, reason))
    }
}
