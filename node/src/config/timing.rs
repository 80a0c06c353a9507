//! The waits of a failover, and the sum that keeps promise P10: a client that lost its node resumes on another within 5
//! s.
//!
//! The longest way from a node's death to its client's resumption, when that node led the meta group too:
//!
//!     death ─ election ─ election (first vote was split) ─ lease + LEASE_MARGIN ─ NodeDown ─ RESUME_LIMIT ─▶ resumed
//!
//! and from a node's being cut off from the others (its clients are connected and must be let go first):
//!
//!     cut ─ lease (counted from the last request that was answered) ─ PAUSE_MAX ─ disconnect ─ RESUME_LIMIT ─▶ resumed
//!
//! With the defaults: 0.5 s + 0.5 s + 2 s + 0.3 s + 1 s = 4.3 s, and 2 s + 1.5 s + 1 s = 4.5 s.
//!
//! Invariants
//! - `back-in-time`: both sums are less than `BACK_WITHIN`; asserted when the configuration loads. [P10]

use std::time::Duration;

use super::units::duration::show;

/// What a new meta leader waits beyond a lease before the first NodeDown: the granted lease was counted on the other
/// node's clock.
pub const LEASE_MARGIN: Duration = Duration::from_millis(300);

/// How long a node without a lease holds its clients paused before it lets them go.
pub const PAUSE_MAX: Duration = Duration::from_millis(1500);

/// What a resumption may take once the old node is Down and its client gone: commit of NodeDown, a connection, the
/// commit of the attach, its barrier and one ReadIndex per shard. Generous: each is a round between nodes and an fsync.
pub const RESUME_LIMIT: Duration = Duration::from_secs(1);

/// P10.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// The waits that the configuration sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    pub heartbeat: Duration,
    /// The longest election timeout that a follower draws.
    pub election: Duration,
    pub lease: Duration,
}

impl Timing {
    /// The shortest election timeout that a follower draws: wide enough a range that two seldom ask at once.
    pub fn election_min(&self) -> Duration {
        self.election * 3 / 5
    }

    /// How often a node asks for its lease again: a lease outlives seven lost renewals.
    pub fn lease_renewal(&self) -> Duration {
        self.lease / 8
    }

    /// How long a new meta leader waits before the first NodeDown.
    pub fn node_down_wait(&self) -> Duration {
        self.lease + LEASE_MARGIN
    }

    /// The sum of the failover, written out; `Err` holds what is wrong with it.
    pub(super) fn check(&self) -> Result<(), String> {
        let dead = self.election * 2 + self.node_down_wait() + RESUME_LIMIT;
        let cut_off = self.lease + PAUSE_MAX + RESUME_LIMIT;
        if dead >= BACK_WITHIN {
            return Err(format!(
                "a client that lost its node must be back within {limit} (promise P10), but two elections of {election} + \
                 lease {lease} + {margin} margin + {resume} to resume = {dead}: shorten cluster.election or cluster.lease",
                limit = show(BACK_WITHIN),
                election = show(self.election),
                lease = show(self.lease),
                margin = show(LEASE_MARGIN),
                resume = show(RESUME_LIMIT),
                dead = show(dead),
            ));
        }
        if cut_off >= BACK_WITHIN {
            return Err(format!(
                "a client of a node that is cut off must be back within {limit} (promise P10), but lease {lease} + {pause} pause \
                 + {resume} to resume = {cut_off}: shorten cluster.lease",
                limit = show(BACK_WITHIN),
                lease = show(self.lease),
                pause = show(PAUSE_MAX),
                resume = show(RESUME_LIMIT),
                cut_off = show(cut_off),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(election: u64, lease: u64) -> Timing {
        let [heartbeat, election, lease] = [100, election, lease].map(Duration::from_millis);
        Timing {
            heartbeat,
            election,
            lease,
        }
    }

    #[test]
    fn back_in_time_holds_for_the_defaults() {
        let defaults = crate::config::Config::default().timing();
        assert_eq!(defaults.check(), Ok(()));
        assert_eq!(defaults.election_min(), Duration::from_millis(300));
        assert_eq!(defaults.lease_renewal(), Duration::from_millis(250));
        assert_eq!(defaults.node_down_wait(), Duration::from_millis(2300));
    }

    #[test]
    fn back_in_time_refuses_a_failover_of_five_seconds() {
        assert_eq!(timing(849, 2_000).check(), Ok(()));
        let dead = timing(850, 2_000).check().unwrap_err();
        assert!(
            dead.contains("two elections of 850ms + lease 2s + 300ms margin + 1s to resume = 5s"),
            "{dead}"
        );
        let cut_off = timing(500, 2_500).check().unwrap_err();
        assert!(
            cut_off.contains("lease 2500ms + 1500ms pause + 1s to resume = 5s"),
            "{cut_off}"
        );
    }
}
