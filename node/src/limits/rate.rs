//! Rates: so much per second, and so much more at once. A token bucket, kept as one time (GCRA).
//!
//! ```text
//!            now                    now + burst
//!   ──────────┼──────────────────────────┼──────────▶    spent < now + burst: more may be taken
//!             └───── spent ─────▶        └ held ──▶      spent beyond it: wait until it is not
//! ```
//!
//! What came has come: a charge is never refused, it only moves `spent`, and who asks is told how long to wait. Sans-io:
//! times are [`Moment`]s that the caller brings.
//!
//! Invariants
//! - `rate`: in any span of length t no more is let through than rate × (t + burst), and one more.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Nanoseconds since the node began to count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

impl Moment {
    pub fn after(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_add(nanos(duration)))
    }

    /// Zero if `earlier` is not.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// So much per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    per_second: u64,
    /// How far a bucket may be ahead before it is waited for.
    tolerance: u64,
}

impl Rate {
    /// `burst`: how long the rate may be saved up. None if nothing is limited: 0 per second.
    pub fn new(per_second: u64, burst: Duration) -> Option<Rate> {
        let rate = Rate {
            per_second,
            tolerance: 0,
        };
        (per_second > 0).then(|| Rate {
            // The last of a burst is part of it.
            tolerance: nanos(burst).saturating_sub(rate.cost(1)),
            ..rate
        })
    }

    /// Nanoseconds that `amount` stands for.
    fn cost(&self, amount: u64) -> u64 {
        let cost = u128::from(amount) * u128::from(SECOND) / u128::from(self.per_second);
        u64::try_from(cost).unwrap_or(u64::MAX)
    }

    fn spent(&self, spent: u64, amount: u64, now: Moment) -> u64 {
        spent.max(now.0).saturating_add(self.cost(amount))
    }

    /// The moment from which more may be taken; none if that is now.
    fn free_at(&self, spent: u64, now: Moment) -> Option<Moment> {
        let free = Moment(spent.saturating_sub(self.tolerance));
        (free > now).then_some(free)
    }
}

/// What one owner has taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket(u64);

impl Bucket {
    pub fn charge(&mut self, rate: Rate, amount: u64, now: Moment) {
        self.0 = rate.spent(self.0, amount, now);
    }

    /// The moment from which more may be taken; none if that is now.
    pub fn free_at(&self, rate: Rate, now: Moment) -> Option<Moment> {
        rate.free_at(self.0, now)
    }

    /// Whether at least half of the burst is there again.
    pub fn has_slack(&self, rate: Rate, now: Moment) -> bool {
        self.0 <= now.0.saturating_add(rate.tolerance / 2)
    }
}

/// What the workers of a node have taken together, without a lock.
#[derive(Debug, Default)]
pub struct SharedBucket(AtomicU64);

impl SharedBucket {
    pub fn charge(&self, rate: Rate, amount: u64, now: Moment) {
        // Relaxed: nothing else is read by what is read here.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |spent| {
            Some(rate.spent(spent, amount, now))
        });
    }

    pub fn free_at(&self, rate: Rate, now: Moment) -> Option<Moment> {
        rate.free_at(self.0.load(Ordering::Relaxed), now)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

const SECOND: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment(millis * 1_000_000)
    }

    fn rate(per_second: u64, burst_millis: u64) -> Rate {
        Rate::new(per_second, Duration::from_millis(burst_millis)).expect("a rate")
    }

    /// How many are let through until `until`, asked every millisecond.
    fn taken(rate: Rate, bucket: &mut Bucket, from: u64, until: u64) -> u64 {
        let mut taken = 0;
        for millis in from..until {
            while bucket.free_at(rate, at(millis)).is_none() {
                bucket.charge(rate, 1, at(millis));
                taken += 1;
            }
        }
        taken
    }

    #[test]
    fn rate_lets_a_burst_through_and_then_the_rate() {
        let mut bucket = Bucket::default();
        assert_eq!(taken(rate(100, 1000), &mut bucket, 5, 6), 100, "the burst");
        assert_eq!(taken(rate(100, 1000), &mut bucket, 6, 2005), 199, "10 ms each");
        // What was not used for longer than the burst is not saved up.
        assert_eq!(taken(rate(100, 1000), &mut bucket, 90_000, 90_001), 100);
    }

    #[test]
    fn a_burst_of_nothing_still_lets_one_through() {
        let mut bucket = Bucket::default();
        assert_eq!(taken(rate(10, 0), &mut bucket, 0, 1000), 10);
    }

    #[test]
    fn what_is_larger_than_the_burst_is_paid_for_afterwards() {
        let (rate, mut bucket) = (rate(1000, 1000), Bucket::default());
        bucket.charge(rate, 10_000, at(0));
        assert_eq!(bucket.free_at(rate, at(0)), Some(Moment(9_001_000_000)));
        assert!(!bucket.has_slack(rate, at(9_001)));
        assert_eq!(bucket.free_at(rate, at(9_001)), None);
        assert!(bucket.has_slack(rate, at(9_501)));
    }

    #[test]
    fn nothing_overflows() {
        let (rate, mut bucket) = (rate(1, 1000), Bucket::default());
        bucket.charge(rate, u64::MAX, Moment(u64::MAX));
        bucket.charge(rate, u64::MAX, Moment(u64::MAX));
        assert_eq!(bucket.free_at(rate, Moment(u64::MAX)), None, "the end of time");
        assert_eq!(Rate::new(0, Duration::MAX), None);
    }

    #[test]
    fn rate_holds_over_threads() {
        let (rate, bucket) = (rate(1_000, 100), SharedBucket::default());
        let taken: u64 = std::thread::scope(|scope| {
            let one = || {
                let mut taken = 0;
                for millis in 0..1_000 {
                    if bucket.free_at(rate, at(millis)).is_none() {
                        bucket.charge(rate, 1, at(millis));
                        taken += 1;
                    }
                }
                taken
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        // Each thread walks through the second at its own pace, and may be one ahead of the others.
        assert!(taken >= 1_000, "{taken}");
        let spent = Moment(bucket.0.load(Ordering::Relaxed));
        assert!(spent >= at(taken), "no charge is lost: {spent:?} after {taken}");
    }
}
