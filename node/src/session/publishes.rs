//! Which path a connection's publishes on a topic take while earlier ones are under way. (DESIGN §3.5)
//!
//! ```text
//!   durable publish on a topic  ─▶ later ones of its QoS take the durable path too, until every Up node has applied it
//!   ephemeral publishes unacked ─▶ a durable one on the same topic waits for them
//! ```
//!
//! Invariant `order-per-publisher`: per connection, topic and QoS, messages arrive in publish order (P3), also where a
//! subscription that comes or goes changes the path in between.

use std::collections::HashMap;
use std::num::NonZeroU16;
use std::sync::Arc;

use lontra_cluster::lease::Lease;
use lontra_cluster::routes::TopicMatch;
use lontra_storage::ids::{Offset, ShardId};

use crate::protocol::codec::Publish;
use crate::rare::Rare;

/// A connection's publishes under way, by topic; made with the first.
#[derive(Default)]
pub struct Publishes(Rare<Books>);

#[derive(Default)]
struct Books {
    /// By the token of a publish that waits for its outcome.
    waiting: HashMap<u64, (Arc<TopicMatch>, Path, u8)>,
    durable: [HashMap<Box<str>, Durable>; 3],
    ephemeral: [HashMap<Box<str>, usize>; 3],
    /// A durable publish that waits for ephemeral ones: nothing behind it is looked at.
    stalled: Option<(Publish, u64)>,
    /// The shards of QoS 2 publishes that are not released, by Packet Identifier.
    received: HashMap<NonZeroU16, ShardId>,
    /// The shards take no QoS 2 publish of an earlier connection of the session any more.
    is_fenced: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    Durable,
    Ephemeral,
}

struct Durable {
    shard: ShardId,
    under_way: usize,
    highest: Offset,
}

impl Publishes {
    /// Whether the shards take no QoS 2 publish of an earlier connection of the session any more.
    pub fn is_fenced(&self) -> bool {
        self.0.is_some_and(|books| books.is_fenced)
    }

    pub fn fenced(&mut self) {
        self.0.make().is_fenced = true;
    }

    pub fn is_stalled(&self) -> bool {
        self.0.is_some_and(|books| books.stalled.is_some())
    }

    pub fn stall(&mut self, publish: Publish, token: u64) {
        self.0.make().stalled = Some((publish, token));
    }

    /// The stalled publish, if it may go now.
    pub fn take_ready(&mut self) -> Option<(Publish, u64)> {
        let books = self.0.get_mut()?;
        let publish = &books.stalled.as_ref()?.0;
        if books.ephemeral[publish.qos() as usize].contains_key(publish.topic()) {
            return None;
        }
        books.stalled.take()
    }

    /// Whether earlier durable publishes on the topic keep later ones of their QoS on that path.
    pub fn keeps_durable(&mut self, topic: &str, qos: u8, lease: &Lease) -> bool {
        let Some(books) = self.0.get_mut() else { return false };
        let of_qos = &mut books.durable[usize::from(qos)];
        let Some(durable) = of_qos.get(topic) else {
            return false;
        };
        if durable.under_way > 0 || !lease.is_applied_everywhere(durable.shard, durable.highest) {
            return true;
        }
        of_qos.remove(topic);
        false
    }

    pub fn has_ephemeral(&self, topic: &str, qos: u8) -> bool {
        self.0
            .is_some_and(|books| books.ephemeral[usize::from(qos)].contains_key(topic))
    }

    /// A publish with this token went out.
    pub fn begin(&mut self, token: u64, matched: &Arc<TopicMatch>, path: Path, qos: u8, lease: &Lease) {
        let books = self.0.make();
        match path {
            Path::Durable => {
                let of_qos = &mut books.durable[usize::from(qos)];
                if of_qos.len() >= TOPICS_MAX {
                    of_qos.retain(|_, durable| {
                        durable.under_way > 0 || !lease.is_applied_everywhere(durable.shard, durable.highest)
                    });
                }
                let shard = matched.shard;
                if let Some(durable) = of_qos.get_mut(&matched.topic) {
                    durable.under_way += 1;
                } else {
                    let durable = Durable {
                        shard,
                        under_way: 1,
                        highest: Offset(0),
                    };
                    of_qos.insert(matched.topic.clone(), durable);
                }
            }
            Path::Ephemeral => {
                let of_qos = &mut books.ephemeral[usize::from(qos)];
                *of_qos.entry(matched.topic.clone()).or_default() += 1;
            }
        }
        books.waiting.insert(token, (matched.clone(), path, qos));
    }

    /// Its outcome came; `offset` where it was stored: that offset or a later one.
    pub fn end(&mut self, token: u64, offset: Option<Offset>) {
        let Some(books) = self.0.get_mut() else { return };
        let Some((matched, path, qos)) = books.waiting.remove(&token) else {
            return;
        };
        match path {
            Path::Durable => {
                if let Some(durable) = books.durable[usize::from(qos)].get_mut(&matched.topic) {
                    durable.under_way = durable.under_way.saturating_sub(1);
                    durable.highest = durable.highest.max(offset.unwrap_or_default());
                }
            }
            Path::Ephemeral => {
                let of_qos = &mut books.ephemeral[usize::from(qos)];
                if let Some(count) = of_qos.get_mut(&matched.topic) {
                    *count -= 1;
                    if *count == 0 {
                        of_qos.remove(&matched.topic);
                    }
                }
            }
        }
    }

    /// A QoS 2 publish under this Packet Identifier went to `shard`.
    pub fn received(&mut self, packet_id: NonZeroU16, shard: ShardId) {
        self.0.make().received.insert(packet_id, shard);
    }

    /// The shard that knows the identifier; none if an earlier connection published it.
    pub fn released(&mut self, packet_id: NonZeroU16) -> Option<ShardId> {
        self.0.get_mut()?.received.remove(&packet_id)
    }
}

/// Topics whose path is remembered; settled ones are forgotten beyond.
const TOPICS_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lontra_cluster::clock::boot_time;
    use lontra_storage::ids::Incarnation;
    use lontra_storage::meta::Matched;

    use super::*;

    fn matched(topic: &str) -> Arc<TopicMatch> {
        Arc::new(TopicMatch::new(topic, ShardId(0), Matched::default()))
    }

    #[test]
    fn a_topic_stays_durable_until_every_node_has_applied_it() {
        let (mut publishes, lease) = (Publishes::default(), Lease::default());
        let topic = matched("t");
        publishes.begin(1, &topic, Path::Durable, 1, &lease);
        assert!(publishes.keeps_durable("t", 1, &lease));
        publishes.end(1, Some(Offset(5)));
        assert!(publishes.keeps_durable("t", 1, &lease));
        lease.grant(
            Incarnation(0),
            boot_time(),
            Duration::from_secs(9),
            vec![Offset(4)],
            vec![],
        );
        assert!(publishes.keeps_durable("t", 1, &lease));
        lease.grant(
            Incarnation(0),
            boot_time(),
            Duration::from_secs(9),
            vec![Offset(5)],
            vec![],
        );
        assert!(!publishes.keeps_durable("t", 1, &lease));
        assert!(!publishes.keeps_durable("other", 1, &lease));
    }

    #[test]
    fn ephemeral_publishes_are_counted_until_their_outcome() {
        let (mut publishes, lease) = (Publishes::default(), Lease::default());
        let topic = matched("t");
        publishes.begin(1, &topic, Path::Ephemeral, 1, &lease);
        publishes.begin(2, &topic, Path::Ephemeral, 1, &lease);
        publishes.end(1, None);
        assert!(publishes.has_ephemeral("t", 1));
        publishes.end(2, None);
        assert!(!publishes.has_ephemeral("t", 1));
    }
}
