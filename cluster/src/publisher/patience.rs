//! How long a sender waits for an answer before it sends again, and how much it hands over at once.
//!
//! Whoever sends again what is only slow makes it slower: on a disk or link that needs longer than the patience, nothing
//! would get through any more. So each wait in vain doubles the next one and halves what a batch holds, and answers bring
//! both back. A leader that is replaced is not waited for: that is told, not timed.

use std::time::Duration;

pub(super) struct Patience {
    /// No wait is shorter.
    least: Duration,
    /// From sending to the answer, of late; zero before the first answer.
    usual: Duration,
    /// Doubled by each wait in vain, halved by each answer.
    backed_off: Duration,
    batch_bytes: usize,
}

impl Patience {
    pub fn new(least: Duration) -> Patience {
        Patience {
            least,
            usual: Duration::ZERO,
            backed_off: Duration::ZERO,
            batch_bytes: BATCH_BYTES,
        }
    }

    pub fn current(&self) -> Duration {
        let wished = self.least.max(self.usual * 2).max(self.backed_off);
        wished.min(PATIENCE_MAX.max(self.least))
    }

    /// A batch takes no more once it holds as much.
    pub fn batch_bytes(&self) -> usize {
        self.batch_bytes
    }

    pub fn missed(&mut self) {
        self.backed_off = self.current() * 2;
        self.batch_bytes = (self.batch_bytes / 2).max(BATCH_BYTES_LEAST);
    }

    /// An answer came so long after its batch was sent, in time or not.
    pub fn answered(&mut self, took: Duration) {
        // Learnt at once, forgotten slowly: too much patience costs less than too little.
        self.usual = took.max((self.usual * 7 + took) / 8);
        self.backed_off /= 2;
        // Twice as much may take twice as long, which is to be half of the patience at most.
        if took * 4 <= self.current() {
            self.batch_bytes = (self.batch_bytes * 2).min(BATCH_BYTES);
        }
    }

    /// What was learnt was learnt of another node.
    pub fn new_leader(&mut self) {
        *self = Patience::new(self.least);
    }
}

/// A quarter MiB: an entry stays well under the 1 MiB read cap of replication.
pub(super) const BATCH_BYTES: usize = 256 * 1024;
const BATCH_BYTES_LEAST: usize = 8 * 1024;
/// Beyond it a lost answer costs more than a batch that is sent twice.
pub(super) const PATIENCE_MAX: Duration = Duration::from_secs(16);

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Duration = Duration::from_millis(500);

    #[test]
    fn waits_in_vain_double_up_to_a_bound_and_answers_bring_them_back() {
        let mut patience = Patience::new(LEAST);
        let mut waits = Vec::new();
        for _ in 0..7 {
            waits.push(patience.current().as_millis());
            patience.missed();
        }
        assert_eq!(waits, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 16_000]);
        assert_eq!(patience.batch_bytes(), BATCH_BYTES_LEAST);
        for _ in 0..10 {
            patience.answered(Duration::from_millis(3));
        }
        assert_eq!((patience.current(), patience.batch_bytes()), (LEAST, BATCH_BYTES));
    }

    #[test]
    fn who_usually_takes_long_is_waited_for_twice_as_long() {
        let mut patience = Patience::new(LEAST);
        for _ in 0..30 {
            patience.answered(Duration::from_secs(3));
        }
        assert_eq!(patience.current().as_millis(), 6_000);
        patience.new_leader();
        assert_eq!(patience.current(), LEAST);
    }

    #[test]
    fn a_batch_that_takes_most_of_the_patience_does_not_grow() {
        let mut patience = Patience::new(LEAST);
        for _ in 0..10 {
            patience.missed();
        }
        // A link of 4 KiB/s that is kept busy: the time follows the size.
        for _ in 0..100 {
            let took = Duration::from_secs_f64(patience.batch_bytes() as f64 / 4096.0);
            assert!(took <= patience.current(), "{took:?} of {:?}", patience.current());
            patience.answered(took);
        }
        assert!(patience.batch_bytes() < BATCH_BYTES);
    }
}
