//! How far something has come, for those who wait until it has.

use std::time::Duration;

use tokio::sync::watch;

/// A number that only grows, with cheap waiting.
#[derive(Debug)]
pub struct Progress {
    sender: watch::Sender<u64>,
}

impl Default for Progress {
    fn default() -> Self {
        Progress {
            sender: watch::Sender::new(0),
        }
    }
}

impl Progress {
    /// Raises the number; lower values change nothing.
    pub fn advance(&self, to: u64) {
        self.sender.send_if_modified(|current| {
            let grown = to > *current;
            *current = to.max(*current);
            grown
        });
    }

    pub fn current(&self) -> u64 {
        *self.sender.borrow()
    }

    /// Whether `target` was reached before `limit` passed.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn reach(&self, target: u64, limit: Duration) -> bool {
        if self.current() >= target {
            return true;
        }
        let mut receiver = self.sender.subscribe();
        let reached = receiver.wait_for(|current| *current >= target);
        matches!(tokio::time::timeout(limit, reached).await, Ok(Ok(_)))
    }
}
