//! Until when the connections of a worker wait: one ordered set, one timer.
//!
//! A connection whose deadline moves on (each packet moves its Keep Alive) does not touch the set: what stands there is
//! looked at when it passes, and the connection then says how long it waits now. So a packet costs no timer, and an idle
//! connection one entry.
//!
//! Invariants
//! - `deadline-kept`: the entry of a connection is never later than the deadline it last asked for.
//! - `bounded`: one entry for each connection at most.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Instant;

use tokio::sync::Notify;

use super::Worker;

/// The deadlines of one worker's connections.
#[derive(Default)]
pub struct Deadlines {
    /// By time; then the connection's number.
    entries: RefCell<BTreeSet<(Instant, u64)>>,
    /// The first is earlier than it was.
    earlier: Notify,
}

/// A connection's entry, kept with it.
#[derive(Default)]
pub struct Entry(Cell<Option<Instant>>);

impl Deadlines {
    /// The connection waits until `deadline` at the latest; none: however long.
    pub fn wait_until(&self, connection: u64, entry: &Entry, deadline: Option<Instant>) {
        let Some(deadline) = deadline else { return };
        let standing = entry.0.get();
        if standing.is_some_and(|standing| standing <= deadline) {
            return;
        }
        let mut entries = self.entries.borrow_mut();
        if let Some(standing) = standing {
            entries.remove(&(standing, connection));
        }
        entry.0.set(Some(deadline));
        entries.insert((deadline, connection));
        if entries.first() == Some(&(deadline, connection)) {
            self.earlier.notify_one();
        }
    }

    /// The connection waits no more.
    pub fn forget(&self, connection: u64, entry: &Entry) {
        if let Some(standing) = entry.0.take() {
            self.entries.borrow_mut().remove(&(standing, connection));
        }
    }

    fn first(&self) -> Option<Instant> {
        self.entries.borrow().first().map(|(at, _)| *at)
    }

    /// Takes out a connection whose entry has passed.
    fn take_passed(&self, now: Instant) -> Option<u64> {
        let mut entries = self.entries.borrow_mut();
        match entries.first() {
            Some((at, _)) if *at <= now => entries.pop_first().map(|(_, connection)| connection),
            _ => None,
        }
    }
}

/// Wakes each connection whose entry has passed; for as long as the worker runs.
pub(super) async fn run(worker: Rc<Worker>) {
    let deadlines = &worker.deadlines;
    loop {
        match deadlines.first() {
            None => deadlines.earlier.notified().await,
            Some(first) => {
                // Whether it has passed, or another is earlier now: it is looked at again.
                let _ = tokio::time::timeout_at(first.into(), deadlines.earlier.notified()).await;
            }
        }
        let now = Instant::now();
        while let Some(connection) = deadlines.take_passed(now) {
            if let Some(client) = worker.client(connection) {
                client.deadline.0.set(None);
                client.wake.deadline();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Deadlines asked for and passed in a pseudo-random order: no connection is taken late, and none twice.
    #[test]
    fn deadline_kept_whatever_is_asked_for() {
        const CONNECTIONS: u64 = 8;
        let (start, deadlines) = (Instant::now(), Deadlines::default());
        let entries: Vec<Entry> = (0..CONNECTIONS).map(|_| Entry::default()).collect();
        let mut asked: Vec<Option<Instant>> = vec![None; CONNECTIONS as usize];
        let mut random = 7_u64;
        let mut next = move |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        let mut now = start;
        for _ in 0..20_000 {
            let connection = next(CONNECTIONS);
            let at = connection as usize;
            match next(4) {
                0 => {
                    now += Duration::from_millis(next(20));
                    while let Some(taken) = deadlines.take_passed(now) {
                        let taken = taken as usize;
                        assert!(entries[taken].0.take().is_some(), "one entry each");
                        // It says anew how long it waits.
                        match asked[taken] {
                            Some(deadline) if deadline > now => {
                                deadlines.wait_until(taken as u64, &entries[taken], asked[taken]);
                            }
                            _ => asked[taken] = None,
                        }
                    }
                    for deadline in asked.iter().flatten() {
                        assert!(*deadline > now, "taken late");
                    }
                }
                1 => {
                    deadlines.forget(connection, &entries[at]);
                    asked[at] = None;
                }
                _ => {
                    asked[at] = Some(now + Duration::from_millis(1 + next(50)));
                    deadlines.wait_until(connection, &entries[at], asked[at]);
                }
            }
            let standing = entries.iter().filter(|entry| entry.0.get().is_some()).count();
            assert_eq!(deadlines.entries.borrow().len(), standing, "bounded");
        }
    }

    #[test]
    fn one_that_is_put_off_stays_where_it_stands() {
        let (now, deadlines, entry) = (Instant::now(), Deadlines::default(), Entry::default());
        let seconds = Duration::from_secs;
        deadlines.wait_until(1, &entry, Some(now + seconds(2)));
        deadlines.wait_until(1, &entry, Some(now + seconds(3)));
        assert_eq!(deadlines.first(), Some(now + seconds(2)));
        deadlines.wait_until(1, &entry, None);
        deadlines.wait_until(1, &entry, Some(now + seconds(1)));
        assert_eq!(deadlines.first(), Some(now + seconds(1)));
        assert_eq!(deadlines.take_passed(now), None);
        assert_eq!(deadlines.take_passed(now + seconds(1)), Some(1));
        assert_eq!(deadlines.first(), None);
    }
}
