//! Where passwords are checked: off the workers' threads, a few at a time.
//!
//! Invariant `bounded`: at most so many hashes run and so many wait; beyond, a CONNECT is refused as busy, and comes back.
//! An attacker's CONNECTs thus take a bounded part of the machine, and hold nobody who is connected.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// One for the node, whatever is reloaded.
#[derive(Clone, Debug)]
pub struct Hashing {
    running: Arc<Semaphore>,
    /// Running or waiting.
    admitted: Arc<Semaphore>,
}

/// As many wait as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

impl Hashing {
    pub fn new(parallel: usize, waiting_max: usize) -> Self {
        let parallel = parallel.max(1);
        Hashing {
            running: Arc::new(Semaphore::new(parallel)),
            admitted: Arc::new(Semaphore::new(parallel + waiting_max)),
        }
    }

    /// Half of the cores hash at the worst.
    pub fn for_cores(cores: usize) -> Self {
        Hashing::new(cores / 2, WAITING_MAX)
    }

    /// Runs `check` on a thread that may block.
    ///
    /// # Errors
    /// Too many wait already.
    ///
    /// # Cancel safety
    /// A check that has begun goes on, and holds its place until it is done.
    pub async fn run<T: Send + 'static>(
        &self,
        runtime: &Handle,
        check: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Busy> {
        let admitted = self.admitted.clone().try_acquire_owned().map_err(|_| Busy)?;
        let running = self.running.clone().acquire_owned().await.map_err(|_| Busy)?;
        let checked = runtime.spawn_blocking(move || {
            let result = check();
            drop((running, admitted));
            result
        });
        checked.await.map_err(|_| Busy)
    }
}

/// At 30 ms each on two cores, the last of them waits for 8 s.
const WAITING_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn one_more_than_may_wait_is_refused_and_a_place_comes_back() {
        let hashing = Hashing::new(1, 1);
        let (go, wait) = mpsc::channel::<()>();
        let runtime = Handle::current();
        let first = tokio::spawn({
            let (hashing, runtime) = (hashing.clone(), runtime.clone());
            async move { hashing.run(&runtime, move || wait.recv().is_ok()).await }
        });
        let second = tokio::spawn({
            let (hashing, runtime) = (hashing.clone(), runtime.clone());
            async move { hashing.run(&runtime, || true).await }
        });
        while hashing.admitted.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(hashing.run(&runtime, || true).await, Err(Busy));
        go.send(()).expect("the first waits for it");
        assert_eq!(first.await.expect("no panic"), Ok(true));
        assert_eq!(second.await.expect("no panic"), Ok(true));
        assert_eq!(hashing.run(&runtime, || true).await, Ok(true));
    }
}
