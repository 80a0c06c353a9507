//! Publishes whose outcome has not come, in bytes: what a client, and all of a worker, may have under way.
//!
//! ```text
//!   PUBLISH ─▶ hold ─▶ queue of its shard, or outboxes of its subscribers ─▶ outcome ─▶ release
//!                │ full: the client is not read from
//! ```
//!
//! Receive Maximum bounds QoS 1 and 2 in number alone, and QoS 0 in nothing: a client that retains at QoS 0 is never answered,
//! and while its shard has no leader all that it sends would gather here. On the ephemeral path a subscriber that does not read
//! would be sent as many messages as Receive Maximum says, however large, before the first is held for it.
//!
//! Invariants
//! - `bounded`: a client has at most `CLIENT_BYTES`, or an outbox where that is less, under way and one packet more; a worker `WORKER_BYTES`, and one packet more
//!   of each client: who has nothing under way is heard, or a shard without a leader would stop those of the others.
//! - what a client leaves behind counts until its outcome comes: going and coming again makes no room.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::limits::Limit;
use crate::worker::{Client, Worker};

/// Bytes by the token of each publish of one client.
#[derive(Default)]
pub struct Held {
    by_token: HashMap<u64, usize>,
    bytes: usize,
    /// It is not read from: told once.
    holds: bool,
}

impl Held {
    fn hold(&mut self, token: u64, bytes: usize) {
        self.bytes += bytes;
        // A token comes twice only for a publish that was told to wait, which was not held yet.
        *self.by_token.entry(token).or_default() += bytes;
    }

    fn release(&mut self, token: u64) -> usize {
        let bytes = self.by_token.remove(&token).unwrap_or_default();
        self.bytes -= bytes;
        bytes
    }

    fn is_full(&self, outbox: usize, of_worker: usize) -> bool {
        self.bytes >= CLIENT_BYTES.min(outbox) || self.bytes > 0 && of_worker >= WORKER_BYTES
    }
}

/// Of all clients of a worker, also those that have gone.
#[derive(Default)]
pub struct Waiting {
    bytes: Cell<usize>,
    gone: RefCell<HashMap<u64, Held>>,
}

impl Worker {
    /// A durable publish goes to its shard.
    pub fn hold(&self, client: &Client, token: u64, message: usize) {
        let bytes = message + OVERHEAD;
        client.held_publishes.borrow_mut().hold(token, bytes);
        self.waiting.bytes.set(self.waiting.bytes.get() + bytes);
        self.metrics.publishes_waiting(bytes as i64);
    }

    /// An ephemeral publish goes to the outboxes of its subscribers, which hold its outcome while they are full.
    pub fn hold_ephemeral(&self, client: &Client, token: u64, message: usize) {
        if message >= COUNTED_FROM {
            self.hold(client, token, message);
        }
    }

    /// Its outcome came.
    pub fn release(&self, client: &Client, token: u64) {
        let bytes = client.held_publishes.borrow_mut().release(token);
        self.released(bytes);
    }

    /// The outcome came of a publish whose connection has gone.
    pub fn release_of_gone(&self, connection: u64, token: u64) {
        let mut gone = self.waiting.gone.borrow_mut();
        let Some(held) = gone.get_mut(&connection) else { return };
        let bytes = held.release(token);
        if held.by_token.is_empty() {
            gone.remove(&connection);
        }
        drop(gone);
        self.released(bytes);
    }

    fn released(&self, bytes: usize) {
        self.waiting.bytes.set(self.waiting.bytes.get() - bytes);
        self.metrics.publishes_waiting(-(bytes as i64));
    }

    /// The connection goes; what it has under way goes on.
    pub fn keep_held(&self, client: &Client) {
        let held = std::mem::take(&mut *client.held_publishes.borrow_mut());
        if !held.by_token.is_empty() {
            self.waiting.gone.borrow_mut().insert(client.id, held);
        }
    }

    /// Whether the client may send no more for now; the time does not count against its Keep Alive.
    pub fn holds_back(&self, client: &Client) -> bool {
        let mut held = client.held_publishes.borrow_mut();
        let outbox = client.config.policy.outbox_bytes_max;
        let is_full = held.is_full(outbox, self.waiting.bytes.get());
        if is_full {
            let until = Instant::now() + LOOK_AGAIN;
            client.held.set(Some(until));
            client.connection.borrow_mut().held_until(until);
            if !held.holds {
                self.metrics.limits.held(Limit::PublishesWaiting);
            }
        }
        held.holds = is_full;
        is_full
    }
}

/// 8 MiB: two seconds of a client that publishes 4 MiB a second, longer than an election.
const CLIENT_BYTES: usize = 8 << 20;
/// 64 MiB: eight clients at their most.
const WORKER_BYTES: usize = 64 << 20;
/// Smaller messages on the ephemeral path are bounded by Receive Maximum: 4 MiB of them, at its default.
const COUNTED_FROM: usize = 4 << 10;
/// What a publish costs beside its message: its place in the queue, its recipients are shared.
const OVERHEAD: usize = 256;
/// An outcome wakes the client before; until then its Keep Alive is put off by this much at a time.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_full_by_itself_or_with_all_others() {
        let mut held = Held::default();
        // Who has nothing under way is heard, whatever the others have.
        let outbox = CLIENT_BYTES * 2;
        assert!(!held.is_full(outbox, usize::MAX));
        held.hold(1, 1);
        assert!(!held.is_full(outbox, WORKER_BYTES - 1) && held.is_full(outbox, WORKER_BYTES));
        held.hold(2, CLIENT_BYTES - 1);
        assert!(held.is_full(outbox, 0));
        assert_eq!(held.release(1), 1);
        assert_eq!(held.release(1), 0);
        assert!(!held.is_full(outbox, 0));
        assert!(held.is_full(CLIENT_BYTES - 1, 0), "no more than an outbox takes");
        assert_eq!((held.release(2), held.bytes), (CLIENT_BYTES - 1, 0));
    }
}
