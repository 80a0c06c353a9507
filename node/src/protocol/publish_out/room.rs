//! How much more a client can take: credit of shared groups, and the pace of replays.

use bytes::BytesMut;

use super::Outbound;

impl Outbound {
    /// Messages that the client has not acknowledged, and those that wait for it here.
    pub fn load(&self) -> usize {
        let ready: usize = self.shards.iter().map(super::ShardQueue::len).sum();
        self.in_flight.counted() + self.waiting() + ready
    }

    /// Whether the next page of a replay may come: little waits.
    pub fn wants_page(&self, out: &BytesMut) -> bool {
        self.waiting() <= self.limits.messages_max.min(WAITING_LOW)
            && self.waiting_bytes() <= WAITING_BYTES_LOW
            && self.has_room(out)
    }
}

/// Half a page of a replay.
const WAITING_LOW: usize = 32;
/// Two pages of a replay.
const WAITING_BYTES_LOW: usize = 256 * 1024;
