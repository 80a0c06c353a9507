//! What has come of packets that are not whole, or that their connection may not hand in yet: bounded for the node.
//!
//! ```text
//!   read ─▶ received, and what the transport keeps ─▶ tell ─▶ within the budget
//!                                                      └ above ─▶ who has gone longest without a whole packet ends (0x97)
//! ```
//!
//! One packet is bounded by its listener, and buffers grow with what comes, not with what is announced; this bounds all of
//! them together. Each worker has its part of the budget, so that nobody waits for a lock.
//!
//! Who ends is not who has most: a client that sends large packets gets them done, one that keeps half a packet does not.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};

/// The buffers of one worker's connections.
#[derive(Default)]
pub struct Unfinished {
    held: Cell<usize>,
    turns: Cell<u64>,
    holdings: RefCell<HashMap<u64, Holding>>,
    /// Connections, by the turn in which they last had a whole packet taken, or began to hold something.
    oldest: RefCell<BTreeMap<u64, u64>>,
}

#[derive(Clone, Copy)]
struct Holding {
    bytes: usize,
    since: u64,
}

impl Unfinished {
    /// `connection` holds as many bytes now. `has_progressed`: a whole packet was taken since it was last told. Gives the
    /// connections that must end, and counts them no more.
    #[must_use]
    pub fn tell(&self, connection: u64, bytes: usize, has_progressed: bool, budget: usize) -> Vec<u64> {
        // In steps: most reads change nothing here.
        let bytes = bytes.div_ceil(STEP) * STEP;
        let known = self.holdings.borrow().get(&connection).copied();
        if known.map_or(0, |known| known.bytes) == bytes && (known.is_none() || !has_progressed) {
            return Vec::new();
        }
        let since = match known {
            Some(known) if !has_progressed => known.since,
            _ => self.turns.replace(self.turns.get() + 1),
        };
        self.forget(connection);
        if bytes > 0 {
            self.held.set(self.held.get() + bytes);
            self.holdings.borrow_mut().insert(connection, Holding { bytes, since });
            self.oldest.borrow_mut().insert(since, connection);
        }
        let mut ending = Vec::new();
        while self.held.get() > budget {
            let oldest = self
                .oldest
                .borrow()
                .first_key_value()
                .map(|(_, connection)| *connection);
            let Some(oldest) = oldest else { break };
            self.forget(oldest);
            ending.push(oldest);
        }
        ending
    }

    /// The connection is gone, or is about to go.
    pub fn forget(&self, connection: u64) {
        if let Some(Holding { bytes, since }) = self.holdings.borrow_mut().remove(&connection) {
            self.held.set(self.held.get() - bytes);
            self.oldest.borrow_mut().remove(&since);
        }
    }
}

const STEP: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: usize = 10 * STEP;
    const NONE: [u64; 0] = [];

    #[test]
    fn who_has_gone_longest_without_a_whole_packet_ends() {
        let unfinished = Unfinished::default();
        let tell =
            |connection, steps, has_progressed| unfinished.tell(connection, steps * STEP, has_progressed, BUDGET);
        assert_eq!(tell(1, 4, false), NONE);
        assert_eq!(tell(2, 4, false), NONE);
        assert_eq!(tell(1, 4, true), NONE, "now 2 is the oldest");
        assert_eq!(tell(3, 4, false), [2]);
        assert_eq!(tell(3, 2, false), NONE);
        assert_eq!(tell(4, 4, false), NONE, "10 in all");
        assert_eq!(tell(4, 9, false), [1, 3]);
        assert_eq!(tell(4, 11, false), [4], "more than there may be at all");
        assert_eq!(unfinished.held.get(), 0);
        assert!(unfinished.oldest.borrow().is_empty() && unfinished.holdings.borrow().is_empty());
    }

    #[test]
    fn what_is_finished_or_forgotten_counts_no_more() {
        let unfinished = Unfinished::default();
        for connection in 0..100 {
            assert_eq!(unfinished.tell(connection, 9 * STEP, false, BUDGET), NONE);
            match connection % 2 {
                0 => assert_eq!(unfinished.tell(connection, 0, true, BUDGET), NONE),
                _ => unfinished.forget(connection),
            }
            assert_eq!(unfinished.held.get(), 0);
        }
        assert!(unfinished.oldest.borrow().is_empty() && unfinished.holdings.borrow().is_empty());
    }
}
