//! Since when the log writer owes a sync.
//!
//! ```text
//!   queued:  1 2 3 4 5 6 7 8        marks: (1, t0)  (4, t1)  (8, t2)      one in 20 ms at most
//!   synced:  1 2 3 4 5              the oldest that waits is 6: it was queued at t1 or a little later
//! ```
//!
//! Writes are synced in the order in which they were queued, so that two counts and a few moments tell the age of the oldest.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What must be synced and is not yet. Guards counts; held for a few instructions.
#[derive(Default)]
pub(crate) struct Unsynced(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    queued: u64,
    synced: u64,
    /// The number of a write and when it was queued, ascending; the first is at or before the oldest that waits.
    marks: VecDeque<(u64, Instant)>,
}

impl Unsynced {
    /// A write that must be synced was queued.
    pub fn queued(&self, now: Instant) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.queued += 1;
        let number = waiting.queued;
        let is_due = |last: &(u64, Instant)| now.saturating_duration_since(last.1) >= MARK_INTERVAL;
        if waiting.marks.back().is_none_or(is_due) {
            waiting.marks.push_back((number, now));
        }
    }

    /// The `count` oldest were synced, or failed: nobody waits for them.
    pub fn done(&self, count: usize) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.synced += count as u64;
        if waiting.synced >= waiting.queued {
            waiting.marks.clear();
            return;
        }
        let oldest = waiting.synced + 1;
        while waiting.marks.get(1).is_some_and(|(number, _)| *number <= oldest) {
            waiting.marks.pop_front();
        }
    }

    /// How long the oldest has waited, to within [`MARK_INTERVAL`]; zero if none waits.
    pub fn age(&self, now: Instant) -> Duration {
        let waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = waiting.marks.front();
        oldest.map_or(Duration::ZERO, |(_, at)| now.saturating_duration_since(*at))
    }
}

const MARK_INTERVAL: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_is_that_of_the_oldest_write_that_waits() {
        let began = Instant::now();
        let at = |millis| began + Duration::from_millis(millis);
        let unsynced = Unsynced::default();
        let age = |now| unsynced.age(at(now)).as_millis();
        assert_eq!(age(5_000), 0, "none waits");

        for queued in [0, 1, 2, 500, 501, 900] {
            unsynced.queued(at(queued));
        }
        assert_eq!(age(1_000), 1_000);
        unsynced.done(1);
        assert_eq!(age(1_000), 1_000, "the second came a millisecond later");
        unsynced.done(2);
        assert_eq!(age(1_000), 500);
        unsynced.done(1);
        assert_eq!(age(1_500), 1_000);
        unsynced.done(1);
        assert_eq!(age(1_500), 600);
        unsynced.done(1);
        assert_eq!(age(9_000), 0, "all are synced");
        unsynced.queued(at(9_000));
        assert_eq!(age(9_100), 100);
    }

    #[test]
    fn a_busy_log_that_keeps_up_is_never_old_and_holds_few_marks() {
        let began = Instant::now();
        let unsynced = Unsynced::default();
        for millis in 0..100_000 {
            unsynced.queued(began + Duration::from_millis(millis));
            if millis >= 50 {
                unsynced.done(1);
            }
            let now = began + Duration::from_millis(millis);
            assert!(unsynced.age(now) <= Duration::from_millis(50) + MARK_INTERVAL);
        }
        assert!(unsynced.0.lock().unwrap().marks.len() <= 5);
    }
}
