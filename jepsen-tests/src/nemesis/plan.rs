//! The seeded schedule: periods, one after the other, in each of which a random subset of the families is at work.
//!
//!     ├─ quiet ─┤├─ kill ──────┤ … ├─ (a quarter of the periods has none)
//!                    ├─ packet ───────┤
//!
//! Decides only; `mod.rs` does it.

use super::family::Family;
use crate::random::Random;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Period {
    /// At the end of it, what has not ended is ended.
    pub length: Duration,
    /// In the order of their times.
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Since the beginning of the period.
    pub at: Duration,
    pub act: Act,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Start(Family),
    Stop(Family),
}

/// The next period.
///
/// # Panics
/// There are no families.
pub fn next(families: &[Family], random: &mut Random) -> Period {
    if random.chance(QUIET) {
        return Period {
            length: random.duration(QUIET_MIN, QUIET_MAX),
            steps: Vec::new(),
        };
    }
    let mut chosen = random.subset(families);
    random.shuffle(&mut chosen);
    chosen.truncate(TOGETHER_MAX);
    if let Some(alone) = chosen.iter().copied().find(|family| family.alone()) {
        chosen = vec![alone];
    }
    let mut steps = Vec::new();
    for family in chosen {
        let start = random.duration(Duration::ZERO, STAGGER_MAX);
        // The mean is 6 s.
        let stop = start + random.duration(HOLD_MIN, HOLD_MAX);
        steps.push(Step {
            at: start,
            act: Act::Start(family),
        });
        steps.push(Step {
            at: stop,
            act: Act::Stop(family),
        });
    }
    steps.sort_by_key(|step| step.at);
    let last = steps.last().map_or(Duration::ZERO, |step| step.at);
    Period {
        // A pause, so that what a fault left behind shows before the next begins.
        length: last + random.duration(Duration::from_secs(2), Duration::from_secs(4)),
        steps,
    }
}

/// How long a family's first turn lasts, and the pause behind it.
pub fn turn(random: &mut Random) -> (Duration, Duration) {
    let hold = random.duration(HOLD_MIN, Duration::from_secs(5));
    (hold, random.duration(Duration::from_secs(2), Duration::from_secs(3)))
}

/// Without quiet periods a cluster is simply down all the time.
const QUIET: f64 = 0.25;
const QUIET_MIN: Duration = Duration::from_secs(4);
const QUIET_MAX: Duration = Duration::from_secs(8);
const HOLD_MIN: Duration = Duration::from_secs(3);
const HOLD_MAX: Duration = Duration::from_secs(9);
const STAGGER_MAX: Duration = Duration::from_secs(4);
/// With three nodes there is only one victim to be had; more families at once only skip.
const TOGETHER_MAX: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_started_and_stopped_and_a_quarter_is_quiet() {
        let mut random = Random::new(1);
        let periods: Vec<Period> = (0..1_000).map(|_| next(Family::ALL, &mut random)).collect();
        let quiet = periods.iter().filter(|period| period.steps.is_empty()).count();
        assert!((200..300).contains(&quiet), "{quiet}");
        for family in Family::ALL {
            let starts = periods.iter().flat_map(|period| &period.steps);
            assert!(
                starts.filter(|step| step.act == Act::Start(*family)).count() > 0,
                "{family}"
            );
        }
        for period in periods {
            for step in &period.steps {
                assert!(step.at < period.length);
                let Act::Start(family) = step.act else { continue };
                assert!(
                    period
                        .steps
                        .iter()
                        .any(|stop| stop.act == Act::Stop(family) && stop.at > step.at)
                );
                assert!(!family.alone() || period.steps.len() == 2);
            }
        }
    }

    #[test]
    fn a_seed_gives_one_schedule() {
        let plan = |seed| {
            let mut random = Random::new(seed);
            (0..20).map(|_| next(Family::ALL, &mut random)).collect::<Vec<_>>()
        };
        assert_eq!(plan(5), plan(5));
        assert_ne!(plan(5), plan(6));
    }
}
