//! Judges a retained topic as a linearizable register (P5): unique writes, reads with the value they saw.
//!
//!     write  ├────────┤ value 7            of each value: f = the first completion among its write and reads,
//!     read        ├───────┤ 7                              s = the last invocation among them
//!     read                  ├────┤ 7       f < s: the value is certainly there from f to s (a forward zone)
//!                 f─────────s              else : it is there at some instant of s … f (a backward zone)
//!
//! A history is linearizable exactly if every read's value was written, no read completes before its write began, no two
//! forward zones overlap, and no backward zone lies inside a forward zone (Gibbons and Korach, "Testing Shared Memories";
//! notes/jepsen.md (e)). O(n log n), however many operations are open at once.
//!
//! A write whose outcome nobody knows completes never: it may be seen at any time after it began, or not at all.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

/// What happened to one topic. Times are of one monotonic clock.
#[derive(Clone, Debug, Default)]
pub struct Register {
    /// By value: each is written once.
    pub writes: BTreeMap<u64, Write>,
    pub reads: Vec<Read>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    pub invoked: Duration,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged then.
    Done(Duration),
    /// It may yet take effect, or never.
    Unknown,
    /// A reason code of 0x80 or more: it must not be seen.
    Refused,
}

/// A read that completed; one that did not says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    pub value: u64,
    pub invoked: Duration,
    pub completed: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A value that nobody wrote, or whose write was refused.
    Phantom { value: u64 },
    /// The read ended before the write began.
    FromTheFuture { value: u64 },
    /// Two values that each were certainly there while the other was: one of them came back, or was read stale.
    Overlap { values: (u64, u64), zones: (Zone, Zone) },
    /// A subscriber got `value` after one that is certainly newer.
    Backwards { value: u64, after: u64 },
    /// A value that was written (and perhaps read) only while another was certainly there before and after.
    Inside {
        value: u64,
        zone: Zone,
        within: (u64, Zone),
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zone {
    pub first_completed: Duration,
    pub last_invoked: Duration,
}

impl Zone {
    fn is_forward(self) -> bool {
        self.first_completed < self.last_invoked
    }
}

/// All violations: phantoms first, then pairs in order of time.
pub fn check(register: &Register) -> Vec<Violation> {
    let mut found = Vec::new();
    let zones = zones(register, &mut found);
    let mut forward: Vec<(u64, Zone)> = zones.iter().copied().filter(|(_, zone)| zone.is_forward()).collect();
    forward.sort_by_key(|(value, zone)| (zone.first_completed, *value));
    // The zone that reaches furthest so far: an overlap with any earlier one is one with it.
    let mut furthest: Option<(u64, Zone)> = None;
    for (value, zone) in &forward {
        match furthest {
            Some((other, before)) if zone.first_completed < before.last_invoked => {
                found.push(Violation::Overlap {
                    values: (other, *value),
                    zones: (before, *zone),
                });
                if zone.last_invoked > before.last_invoked {
                    furthest = Some((*value, *zone));
                }
            }
            _ => furthest = Some((*value, *zone)),
        }
    }
    for (value, zone) in zones.into_iter().filter(|(_, zone)| !zone.is_forward()) {
        // Forward zones that begin earlier; disjoint but for what is reported above, so the last of them decides.
        let before = forward.partition_point(|(_, other)| other.first_completed < zone.last_invoked);
        if let Some((other, within)) = before.checked_sub(1).map(|at| forward[at])
            && zone.first_completed < within.last_invoked
        {
            found.push(Violation::Inside {
                value,
                zone,
                within: (other, within),
            });
        }
    }
    found
}

/// What one subscriber got, in order: an older value after a newer one. Repeats are its own affair.
pub fn backwards(register: &Register, view: &[u64]) -> Option<Violation> {
    let zones: HashMap<u64, Zone> = zones(register, &mut Vec::new()).into_iter().collect();
    let mut seen: Vec<u64> = Vec::new();
    for value in view {
        let Some(zone) = zones.get(value) else {
            // Delivered, and no read or acknowledgement tells when it was there.
            continue;
        };
        if seen.last() == Some(value) {
            continue;
        }
        if let Some(after) = seen
            .iter()
            .find(|after| zone.first_completed < zones[after].last_invoked)
        {
            return Some(Violation::Backwards {
                value: *value,
                after: *after,
            });
        }
        seen.push(*value);
    }
    None
}

/// The zone of each value; a write that nobody saw and that may not have happened has none.
fn zones(register: &Register, found: &mut Vec<Violation>) -> Vec<(u64, Zone)> {
    let mut reads: HashMap<u64, Vec<&Read>> = HashMap::new();
    for read in &register.reads {
        reads.entry(read.value).or_default().push(read);
    }
    for value in reads.keys() {
        let written = register.writes.get(value);
        if written.is_none_or(|write| write.outcome == Outcome::Refused) {
            found.push(Violation::Phantom { value: *value });
        }
    }
    let mut zones = Vec::new();
    for (value, write) in &register.writes {
        let of_value = reads.get(value).map(Vec::as_slice).unwrap_or_default();
        let completed = match write.outcome {
            Outcome::Refused => continue,
            Outcome::Unknown if of_value.is_empty() => continue,
            Outcome::Unknown => Duration::MAX,
            Outcome::Done(at) => at,
        };
        if of_value.iter().any(|read| read.completed < write.invoked) {
            found.push(Violation::FromTheFuture { value: *value });
        }
        let completions = of_value.iter().map(|read| read.completed);
        let invocations = of_value.iter().map(|read| read.invoked);
        let zone = Zone {
            first_completed: completions.fold(completed, Duration::min),
            last_invoked: invocations.fold(write.invoked, Duration::max),
        };
        zones.push((*value, zone));
    }
    zones
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::Phantom { value } => write!(f, "{value} was read, and never written"),
            Violation::FromTheFuture { value } => write!(f, "{value} was read before it was written"),
            Violation::Overlap { values, zones } => write!(
                f,
                "{} was there from {:?} to {:?}, and {} from {:?} to {:?}",
                values.0,
                zones.0.first_completed,
                zones.0.last_invoked,
                values.1,
                zones.1.first_completed,
                zones.1.last_invoked
            ),
            Violation::Backwards { value, after } => write!(f, "{value} was delivered after {after}, which is newer"),
            Violation::Inside { value, zone, within } => write!(
                f,
                "{value} came and went between {:?} and {:?}, while {} was there from {:?} to {:?}",
                zone.last_invoked, zone.first_completed, within.0, within.1.first_completed, within.1.last_invoked
            ),
        }
    }
}
