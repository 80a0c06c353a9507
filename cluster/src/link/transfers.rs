//! Snapshots of one group that are on their way, and those that have just arrived: their targets go on with the log behind
//! them, which must still be there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lontra_storage::ids::NodeId;
use tokio::time::Instant;

/// The transfers of one group. Clones share them.
#[derive(Clone, Default)]
pub struct Transfers {
    /// Guards the last transfer to each node; held for a few instructions.
    last: Arc<Mutex<BTreeMap<NodeId, Transfer>>>,
}

struct Transfer {
    /// The last entry that the snapshot holds.
    index: u64,
    /// When it ended, well or not; `None` while it goes on.
    ended: Option<Instant>,
}

/// Ends its transfer when dropped.
pub(super) struct Sending {
    transfers: Transfers,
    to: NodeId,
    index: u64,
}

impl Transfers {
    pub(super) fn begin(&self, to: NodeId, index: u64) -> Sending {
        self.lock().insert(to, Transfer { index, ended: None });
        Sending {
            transfers: self.clone(),
            to,
            index,
        }
    }

    /// The entry that some target has, or has soon, and no more than that.
    pub fn oldest(&self) -> Option<u64> {
        let now = Instant::now();
        let mut last = self.lock();
        last.retain(|_, transfer| transfer.ended.is_none_or(|ended| now < ended + CATCH_UP_MAX));
        last.values().map(|transfer| transfer.index).min()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Transfer>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        // Another may have begun before this one was given up.
        if let Some(transfer) = self.transfers.lock().get_mut(&self.to)
            && transfer.index == self.index
        {
            transfer.ended = Some(Instant::now());
        }
    }
}

/// From the end of a snapshot until its target has told how far it is: it installs it meanwhile.
const CATCH_UP_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_log_behind_a_snapshot_is_needed_until_its_target_has_caught_up() {
        let transfers = Transfers::default();
        assert_eq!(transfers.oldest(), None);
        let to_two = transfers.begin(2, 700);
        let to_three = transfers.begin(3, 900);
        tokio::time::advance(CATCH_UP_MAX * 10).await;
        assert_eq!(transfers.oldest(), Some(700), "however long it takes");
        drop(to_two);
        tokio::time::advance(CATCH_UP_MAX / 2).await;
        assert_eq!(transfers.oldest(), Some(700), "it installs it");
        tokio::time::advance(CATCH_UP_MAX).await;
        assert_eq!(transfers.oldest(), Some(900));
        drop(to_three);
        tokio::time::advance(CATCH_UP_MAX).await;
        assert_eq!(transfers.oldest(), None);
    }
}
