//! Clocks: log time as a leader sets it, and the boot clock that leases are counted on.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lontra_storage::message::LogTime;
use tokio::time::Instant;

/// Log time of one group: the time of its last applied entry, plus monotonic time since. A jump of the wall clock moves
/// nothing; only the first entry of a new cluster is set by it.
#[derive(Debug)]
pub struct LogClock {
    /// Guards two words.
    last: Mutex<(LogTime, Instant)>,
}

impl Default for LogClock {
    fn default() -> Self {
        LogClock {
            last: Mutex::new((LogTime(0), Instant::now())),
        }
    }
}

impl LogClock {
    /// An entry with this time was applied.
    pub fn observe(&self, time: LogTime) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if time > plus(last.0, last.1.elapsed()) || last.0.0 == 0 {
            *last = (time, Instant::now());
        }
    }

    /// The time that a leader gives to an entry that it proposes now.
    pub fn now(&self) -> LogTime {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match last.0.0 {
            0 => {
                let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                LogTime(wall.as_millis() as u64)
            }
            _ => plus(last.0, last.1.elapsed()),
        }
    }
}

fn plus(time: LogTime, elapsed: Duration) -> LogTime {
    LogTime(time.0 + elapsed.as_millis() as u64)
}

/// Time since boot, suspended time included: what a lease is counted on.
pub fn boot_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn log_time_runs_from_the_last_entry_and_never_back() {
        let clock = LogClock::default();
        clock.observe(LogTime(5_000));
        tokio::time::advance(Duration::from_millis(700)).await;
        assert_eq!(clock.now(), LogTime(5_700));
        clock.observe(LogTime(5_100));
        assert_eq!(clock.now(), LogTime(5_700));
        clock.observe(LogTime(9_000));
        assert_eq!(clock.now(), LogTime(9_000));
    }
}
