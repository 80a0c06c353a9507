//! What became of every message that entered a queue here: conservation of messages, part of the replicated state.
//!
//! Invariant `conservation`: `enqueued = queued + Σ left`. `queued` follows the rows as they are written and removed,
//! the others what operations mean: a path that loses or invents an entry breaks the equation.

use crate::command::Left;
use crate::encoding::{DecodeError, Reader, Writer};

/// Entries of the queues of sessions and shared groups in one shard, since it was formed: one for each queue that a
/// message entered. What moves between a group and its members has not left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    pub enqueued: u64,
    /// In a queue now.
    pub queued: u64,
    left: [u64; Left::ALL.len()],
}

impl Ledger {
    pub fn left(&self, how: Left) -> u64 {
        self.left[how as usize]
    }

    /// `conservation`
    pub fn is_conserved(&self) -> bool {
        self.enqueued == self.queued + self.left.iter().sum::<u64>()
    }

    /// Rows that one entry of the log wrote and removed, once it has counted all else.
    pub(super) fn moved(&mut self, written: u64, removed: u64) {
        debug_assert!(self.queued + written >= removed, "conservation: {self:?}");
        self.queued = (self.queued + written).saturating_sub(removed);
        debug_assert!(self.is_conserved(), "conservation: {self:?}");
    }

    pub(super) fn leave(&mut self, how: Left) {
        self.left[how as usize] += 1;
    }

    pub(super) fn write(&self, writer: &mut Writer) {
        writer.var(self.enqueued).var(self.queued).var(self.left.len() as u64);
        for count in self.left {
            writer.var(count);
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Ledger, DecodeError> {
        let mut ledger = Ledger {
            enqueued: reader.var()?,
            queued: reader.var()?,
            ..Ledger::default()
        };
        // A way to leave that is not known here is of a later version.
        for how in 0..reader.count()? {
            *ledger.left.get_mut(how).ok_or_else(|| reader.error())? = reader.var()?;
        }
        Ok(ledger)
    }
}
