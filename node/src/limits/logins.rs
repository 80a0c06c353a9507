//! Addresses that guess: who has failed to log in too often is not asked again for a while.
//!
//! ```text
//!   CONNECT with credentials ─▶ failed as often as may be in this window? ─▶ 0x9F, before anything is hashed
//!                            ─▶ the chain ─ no ─▶ counted for its address
//! ```
//!
//! Sans-io. A window begins with the first failure, and with the first after it is over; the right password does not end it, or
//! whoever has one account guesses at the others. Invariant `bounded`: counts are kept of the most recent addresses only.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::admission::Source;
use super::rate::Moment;
use super::recent::Recent;

/// Failures of a node, behind a short lock that guards nothing else.
#[derive(Debug)]
pub struct Logins(Mutex<Recent<Source, Failures>>);

#[derive(Debug, Default)]
struct Failures {
    window_ends: Moment,
    count: u32,
}

impl Default for Logins {
    fn default() -> Self {
        Logins(Mutex::new(Recent::new(RECENT)))
    }
}

impl Logins {
    /// Whether an address that may fail `max` times (0: as often as it likes) may try now.
    pub fn may_try(&self, source: Source, max: u32, now: Moment) -> bool {
        if max == 0 {
            return true;
        }
        let mut recent = self.recent();
        let failures = recent.touch(source);
        failures.window_ends <= now || failures.count < max
    }

    pub fn failed(&self, source: Source, window: Duration, now: Moment) {
        let mut recent = self.recent();
        let failures = recent.touch(source);
        if failures.window_ends <= now {
            *failures = Failures {
                window_ends: now.after(window),
                count: 0,
            };
        }
        failures.count = failures.count.saturating_add(1);
    }

    fn recent(&self) -> MutexGuard<'_, Recent<Source, Failures>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const RECENT: usize = 20_000;

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn an_address_that_fails_too_often_waits_for_the_end_of_its_window() {
        let logins = Logins::default();
        let window = Duration::from_secs(60);
        let source = |address: &str| Source::from(address.parse::<IpAddr>().expect("an address"));
        let at = |seconds: u64| Moment(0).after(Duration::from_secs(seconds));
        for second in 1..=3 {
            assert!(logins.may_try(source("2001:db8::1"), 3, at(second)));
            logins.failed(source("2001:db8::1"), window, at(second));
        }
        assert!(
            !logins.may_try(source("2001:db8::2"), 3, at(60)),
            "one network is one source"
        );
        assert!(logins.may_try(source("2001:db8:0:1::1"), 3, at(60)));
        assert!(logins.may_try(source("2001:db8::1"), 0, at(60)), "no limit");
        assert!(logins.may_try(source("2001:db8::1"), 3, at(61)), "the window is over");
        logins.failed(source("2001:db8::1"), window, at(61));
        assert!(
            logins.may_try(source("2001:db8::1"), 3, at(62)),
            "and another has begun"
        );
    }
}
