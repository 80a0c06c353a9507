//! Histories without a cluster: of an ideal broker under faults, from a seed, and of a script, event by event.
//!
//! What [`generate`] gives is valid by construction: a small world of nodes, sessions, queues, retained messages, wills and
//! groups does the right thing while its clients connect, resend, are taken over, and lose their nodes. The mutators
//! ([`crate::mutate`]) then spoil one thing each, and the checkers must say which.

mod random;
mod world;
mod writer;

pub use random::Random;
pub use writer::{Subscribing, Writer, message};

use crate::checker::{Limits, Profile};
use crate::history::Event;

/// What happens in a generated history.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Actions of the world between `baseline` and `heal`; about two events each.
    pub steps: usize,
    pub publishers: usize,
    pub subscribers: usize,
    pub topics: usize,
    /// Node kills, cuts, take-overs.
    pub faults: bool,
}

impl Plan {
    pub fn new(seed: u64) -> Plan {
        Plan {
            seed,
            steps: 1500,
            publishers: 3,
            subscribers: 3,
            topics: 3,
            faults: true,
        }
    }
}

/// A valid history.
pub fn generate(plan: &Plan) -> Vec<Event> {
    world::World::new(plan).run()
}

/// All checkers, with limits that fit the world's clock: it has no slow nodes.
pub fn profile() -> Profile {
    Profile {
        name: "synthetic".into(),
        limits: Limits {
            detection: 0.5,
            expiry_early: 0.5,
            expiry_late: 2.0,
            late_effect: 1.0,
            settle: 0.2,
            recovery: Some(20.0),
            back: Some(10.0),
            heal: Some(60.0),
            fence: Some(60.0),
            will: Some(60.0),
            availability_gap: Some(60.0),
            ..Limits::default()
        },
        ..Profile::default()
    }
}

#[cfg(test)]
mod tests;
