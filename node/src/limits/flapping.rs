//! Clients that come and go: who does so too often is banned for a while.
//!
//! ```text
//!   a served connection ends ─▶ count of its client id, address, user ─▶ more than allowed in the window ─▶ banned until
//!   CONNECT ─▶ banned? ─▶ 0x8A
//! ```
//!
//! Only who was let in is counted: nobody has another's client id banned without being allowed to use it. Sans-io. A window
//! begins with the first end that is counted, and with the first after it is over.
//!
//! Invariants
//! - `bounded`: counts are kept of the most recent only; bans up to [`BANS_MAX`], and no more are made until some are over.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Limit;
use super::admission::Source;
use super::rate::Moment;
use super::recent::Recent;

/// Whom a ban is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    Client(Box<str>),
    Address(Source),
    User(Box<str>),
}

impl Subject {
    pub const NAMES: [&'static str; 3] = ["client", "address", "user"];

    pub fn name(&self) -> &'static str {
        match self {
            Subject::Client(_) => Subject::NAMES[0],
            Subject::Address(_) => Subject::NAMES[1],
            Subject::User(_) => Subject::NAMES[2],
        }
    }

    /// What a connection meets that comes all the same.
    pub fn limit(&self) -> Limit {
        match self {
            Subject::Client(_) => Limit::BannedClient,
            Subject::Address(_) => Limit::BannedAddress,
            Subject::User(_) => Limit::BannedUser,
        }
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Subject::Client(name) | Subject::User(name) => name.escape_debug().fmt(f),
            Subject::Address(source) => source.fmt(f),
        }
    }
}

/// Ends of connections that are allowed in a window; 0: as many as come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlappingLimits {
    pub client_max: u32,
    pub address_max: u32,
    pub user_max: u32,
    pub window: Duration,
    pub ban: Duration,
}

impl FlappingLimits {
    fn max(&self, subject: &Subject) -> u32 {
        match subject {
            Subject::Client(_) => self.client_max,
            Subject::Address(_) => self.address_max,
            Subject::User(_) => self.user_max,
        }
    }
}

/// Counts and bans of a node, behind a short lock that guards nothing else: it is taken when a connection comes or goes.
#[derive(Debug)]
pub struct Flapping(Mutex<Tables>);

#[derive(Debug)]
struct Tables {
    counts: Recent<Subject, Count>,
    bans: HashMap<Subject, Ban>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    until: Moment,
    /// The cluster was told of it and has it: it holds as long as that says so.
    pub is_known: bool,
}

#[derive(Debug, Default)]
struct Count {
    window_ends: Moment,
    ends: u32,
}

impl Default for Flapping {
    fn default() -> Self {
        Flapping(Mutex::new(Tables {
            counts: Recent::new(RECENT),
            bans: HashMap::new(),
        }))
    }
}

impl Flapping {
    /// A connection that was served has ended; those of its `subjects` that are banned from now on.
    pub fn ended(
        &self,
        subjects: impl IntoIterator<Item = Subject>,
        limits: &FlappingLimits,
        now: Moment,
    ) -> Vec<Subject> {
        let mut tables = self.tables();
        let tables = &mut *tables;
        let mut banned = Vec::new();
        for subject in subjects {
            let max = limits.max(&subject);
            if max == 0 {
                continue;
            }
            let count = tables.counts.touch(subject.clone());
            if count.window_ends <= now {
                *count = Count {
                    window_ends: now.after(limits.window),
                    ends: 0,
                };
            }
            count.ends += 1;
            if count.ends > max && tables.ban(&subject, now.after(limits.ban), now) {
                tables.counts.remove(&subject);
                banned.push(subject);
            }
        }
        banned
    }

    /// The ban of a subject, if there is one.
    pub fn banned(&self, subject: &Subject, now: Moment) -> Option<Ban> {
        let tables = self.tables();
        let ban = tables.bans.get(subject).copied();
        ban.filter(|ban| ban.until > now)
    }

    /// The cluster has a ban that was made here.
    pub fn known(&self, subject: &Subject) {
        if let Some(ban) = self.tables().bans.get_mut(subject) {
            ban.is_known = true;
        }
    }

    /// A ban was lifted.
    pub fn lifted(&self, subject: &Subject) {
        self.tables().bans.remove(subject);
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    fn ban(&mut self, subject: &Subject, until: Moment, now: Moment) -> bool {
        if self.bans.len() >= BANS_MAX {
            self.bans.retain(|_, ban| ban.until > now);
        }
        let has_room = self.bans.len() < BANS_MAX;
        if has_room {
            let is_known = false;
            self.bans.insert(subject.clone(), Ban { until, is_known });
        }
        has_room
    }
}

/// Megabytes at the worst, with client ids of usual length.
pub const BANS_MAX: usize = 20_000;
const RECENT: usize = 20_000;

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FlappingLimits = FlappingLimits {
        client_max: 3,
        address_max: 0,
        user_max: 5,
        window: Duration::from_secs(60),
        ban: Duration::from_secs(300),
    };

    fn at(seconds: u64) -> Moment {
        Moment(seconds * 1_000_000_000)
    }

    fn client(name: &str) -> Subject {
        Subject::Client(name.into())
    }

    #[test]
    fn who_comes_and_goes_too_often_is_banned_for_a_while() {
        let flapping = Flapping::default();
        for second in 0..3 {
            assert!(flapping.ended([client("a")], &LIMITS, at(second)).is_empty());
        }
        let banned = |name, second| flapping.banned(&client(name), at(second)).is_some();
        assert!(!banned("a", 3));
        assert_eq!(flapping.ended([client("a")], &LIMITS, at(3)), [client("a")]);
        assert!(banned("a", 3) && !banned("b", 3) && banned("a", 302) && !banned("a", 303));
        // It begins anew.
        assert!(flapping.ended([client("a")], &LIMITS, at(303)).is_empty());
    }

    #[test]
    fn a_window_that_is_over_counts_no_more() {
        let flapping = Flapping::default();
        for second in [0, 58, 59, 60, 61, 62, 120] {
            assert!(
                flapping.ended([client("a")], &LIMITS, at(second)).is_empty(),
                "{second}"
            );
        }
    }

    #[test]
    fn each_subject_has_its_own_limit() {
        let flapping = Flapping::default();
        let source = Subject::Address(std::net::IpAddr::from([10, 0, 0, 1]).into());
        let user = Subject::User("u".into());
        let mut banned = Vec::new();
        for n in 0..10 {
            let subjects = [client(&n.to_string()), source.clone(), user.clone()];
            banned.extend(flapping.ended(subjects, &LIMITS, at(0)));
        }
        assert_eq!(banned, std::slice::from_ref(&user), "the sixth");
        let banned = |subject: &Subject| flapping.banned(subject, at(1));
        assert!(banned(&source).is_none() && banned(&client("1")).is_none());
        assert_eq!(banned(&user).map(|ban| ban.is_known), Some(false));
        // The cluster was told, and an operator lifts it.
        flapping.known(&user);
        assert_eq!(banned(&user).map(|ban| ban.is_known), Some(true));
        flapping.lifted(&user);
        assert_eq!(banned(&user), None);
    }

    #[test]
    fn bounded_bans_make_room_when_they_are_over() {
        let flapping = Flapping::default();
        let limits = FlappingLimits {
            client_max: 1,
            ..LIMITS
        };
        let flap = |n: usize, second| {
            let one = client(&n.to_string());
            flapping.ended([one.clone()], &limits, at(second));
            flapping.ended([one], &limits, at(second)).len()
        };
        let banned: usize = (0..BANS_MAX + 10).map(|n| flap(n, 0)).sum();
        assert_eq!(banned, BANS_MAX);
        assert_eq!(flap(1_000_000, 301), 1);
    }
}
