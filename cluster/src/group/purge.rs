//! How far a replica's log is purged. openraft purges nothing by itself: it knows neither of the two bounds.
//!
//! ```text
//!   purged ────── purged next ────── margin ────── flushed ───── applied ───── last
//!                      ▲ lower, where a live follower has less: it goes on by log, not by snapshot
//! ```
//!
//! Invariants
//! - `log-purge`: what is purged is durable in the tables here: a log is the only copy of what they would lose.
//! - A live follower's next entry is not purged, unless it lags by more than [`LAG_MAX`]: the log is bounded too.
//! - Nor is the entry behind a snapshot that is on its way: purged meanwhile, it would cost another snapshot, for ever.
//!
//! Only a leader knows its followers. A replica that is none keeps the margin, so that it can go on with them if it is
//! elected.

use lontra_storage::ids::NodeId;
use openraft::async_runtime::WatchReceiver;

use super::Group;

/// What a replica knows of its log. Indexes.
#[derive(Clone, Debug, Default)]
struct Log {
    /// Purged up to here; `None` while nothing is.
    purged: Option<u64>,
    /// The tables are durable up to here.
    flushed: Option<u64>,
    last: u64,
    /// Of a leader: how far each live follower has its log; `None` while that is not known.
    followers: Vec<Option<u64>>,
    /// The oldest snapshot that a node is being sent, or installs.
    sending: Option<u64>,
}

impl Log {
    /// Up to where to purge now, inclusive.
    fn purge_upto(&self) -> Option<u64> {
        let kept_from = self.purged.unwrap_or(0);
        let lag = |have: &u64| self.last.saturating_sub(*have);
        let followers = self.followers.iter().map(|have| have.unwrap_or(kept_from));
        let followers = followers.filter(|have| lag(have) <= LAG_MAX);
        let sending = self.sending.filter(|have| lag(have) <= SENDING_LAG_MAX);
        let slowest = followers.chain(sending).min().unwrap_or(u64::MAX);
        // log-purge.
        let upto = self.flushed?.checked_sub(MARGIN)?.min(slowest);
        (upto >= kept_from + BATCH).then_some(upto)
    }
}

impl Group {
    /// Purges what nobody needs any more, if that is worth it. `flushed`: [`Storage::durable`], not what openraft takes for its
    /// snapshot, which after a restart is all that was applied again from the log. `is_live`: peers that can be reached.
    ///
    /// [`Storage::durable`]: lontra_storage::Storage::durable
    pub async fn purge(&self, flushed: Option<u64>, is_live: impl Fn(NodeId) -> bool) {
        let Some(upto) = self.log(flushed, is_live).purge_upto() else {
            return;
        };
        // Refused only by a group that has stopped.
        let _ = self.raft.trigger().purge_log(upto).await;
    }

    fn log(&self, flushed: Option<u64>, is_live: impl Fn(NodeId) -> bool) -> Log {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let replication = metrics.replication.iter().flatten();
        Log {
            purged: metrics.purged.as_ref().map(|id| id.index),
            flushed,
            last: metrics.last_log_index.unwrap_or(0),
            followers: replication
                .filter(|(node, _)| is_live(**node))
                .map(|(_, have)| have.as_ref().map(|id| id.index))
                .collect(),
            sending: self.transfers.oldest(),
        }
    }
}

/// Entries behind the flushed index that stay: what a follower may lack that was away for a moment.
const MARGIN: u64 = 64;
/// Fewer are not worth a write.
const BATCH: u64 = 64;
/// Entries of up to 256 KiB: a follower that lacks more is sent a snapshot.
const LAG_MAX: u64 = 4096;
/// A snapshot takes longer than an entry, and is the last resort.
const SENDING_LAG_MAX: u64 = 16 * LAG_MAX;

#[cfg(test)]
mod tests {
    use super::*;

    fn log(purged: u64, flushed: u64, last: u64, followers: &[Option<u64>]) -> Log {
        Log {
            purged: Some(purged),
            flushed: Some(flushed),
            last,
            followers: followers.to_vec(),
            sending: None,
        }
    }

    #[test]
    fn nothing_is_purged_that_the_tables_may_lose() {
        assert_eq!(
            Log {
                last: 9_000,
                ..Log::default()
            }
            .purge_upto(),
            None,
            "no checkpoint yet"
        );
        for flushed in 0..3_000 {
            // A checkpoint is under way: much more is applied, by everybody.
            let upto = log(0, flushed, 9_000, &[Some(9_000), Some(9_000)]).purge_upto();
            assert!(upto.is_none_or(|upto| upto <= flushed), "{upto:?} of {flushed}");
            assert!(upto.is_none_or(|upto| upto + MARGIN == flushed), "the margin stays");
        }
    }

    #[test]
    fn a_live_follower_goes_on_by_log_unless_it_lags_too_far() {
        let upto = |followers: &[Option<u64>]| log(1_000, 5_000, 5_050, followers).purge_upto();
        assert_eq!(upto(&[Some(5_050), Some(5_049)]), Some(5_000 - MARGIN));
        assert_eq!(upto(&[Some(5_050), Some(3_000)]), Some(3_000), "it has 3000 already");
        assert_eq!(upto(&[Some(1_010)]), None, "not worth a write");
        assert_eq!(upto(&[Some(900)]), Some(5_000 - MARGIN), "beyond the bound: a snapshot");
        assert_eq!(upto(&[None]), None, "not known yet: it may need everything");
        assert_eq!(
            log(100, 5_000, 5_050, &[None]).purge_upto(),
            Some(5_000 - MARGIN),
            "not for ever"
        );
    }

    #[test]
    fn the_log_behind_a_snapshot_stays_while_that_is_on_its_way() {
        let upto = |last, sending| {
            let log = log(1_000, last - 50, last, &[Some(100)]);
            let sending = Some(sending);
            Log { sending, ..log }.purge_upto()
        };
        assert_eq!(upto(20_000, 8_000), Some(8_000));
        assert_eq!(upto(20_000, 1_010), None);
        assert_eq!(upto(100_000, 8_000), Some(100_000 - 50 - MARGIN), "beyond the bound");
    }
}
