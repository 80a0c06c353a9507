//! A node whose log does not sync in time leads nothing. (DESIGN §3)
//!
//! ```text
//!   a write unsynced for > 1 s ──▶ slow: leaderships are given away, none is taken
//!                                    └─ no such write for a hold ──▶ well        hold: 10 s, doubled when it recurs
//! ```
//!
//! What such a node leads waits for its disk at every publish: its entries are committed by the others, but it answers only
//! what it has applied, and it applies only what its own log has synced. As a follower it holds up nobody but its own
//! clients.
//!
//! Leaderships go to nodes that say that they take some: where all nodes share one stuck disk, an election helps nobody.
//! Elections by silence go on everywhere: a slow leader is better than none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use lontra_storage::ids::{GroupId, NodeId};
use tokio::task::JoinSet;

use crate::Inner;
use crate::clock::boot_time;
use crate::control::ASK_MAX;
use crate::group::Group;
use crate::link::Lane;
use crate::requests;

/// When the log counts as slow. Decides; knows neither clock nor disk.
#[derive(Default)]
struct Episodes {
    /// While slow: until when it is, unless it is stuck again.
    until: Option<Duration>,
    /// Of this episode, or of the last one.
    hold: Duration,
    /// When the last one ended.
    ended: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Began { hold: Duration },
    Ended,
}

impl Episodes {
    /// The oldest write to the log has waited for `unsynced` at `now`.
    fn observe(&mut self, unsynced: Duration, now: Duration) -> Option<Change> {
        let is_stuck = unsynced > UNSYNCED_MAX;
        match self.until {
            None if is_stuck => {
                let recurs = self.ended.is_some_and(|ended| now < ended + self.hold * RECURS_WITHIN);
                self.hold = if recurs { (self.hold * 2).min(HOLD_MAX) } else { HOLD };
                self.until = Some(now + self.hold);
                Some(Change::Began { hold: self.hold })
            }
            Some(_) if is_stuck => {
                self.until = Some(now + self.hold);
                None
            }
            Some(until) if now >= until => {
                self.until = None;
                self.ended = Some(now);
                Some(Change::Ended)
            }
            None | Some(_) => None,
        }
    }
}

/// Runs for the life of the node.
pub(crate) async fn run(inner: Arc<Inner>) {
    if inner.config.members.len() < 2 {
        return;
    }
    let mut episodes = Episodes::default();
    let (mut quiet_until, mut give_at) = (Duration::ZERO, Duration::ZERO);
    let mut given = BTreeMap::new();
    loop {
        let slept_at = boot_time();
        tokio::time::sleep(TICK).await;
        let now = boot_time();
        if now > slept_at + STALL {
            // This process stood still, and its log writer with it: that says nothing of the disk.
            quiet_until = now + UNSYNCED_MAX;
        }
        if now < quiet_until {
            continue;
        }
        let unsynced = inner.storage.unsynced_for();
        match episodes.observe(unsynced, now) {
            Some(Change::Began { hold }) => {
                inner.slow_log.store(true, Ordering::Release);
                give_at = now;
                tracing::warn!(
                    ?unsynced,
                    ?hold,
                    "the log is not synced in time: this node gives its leaderships away and takes none meanwhile"
                );
            }
            Some(Change::Ended) => {
                inner.slow_log.store(false, Ordering::Release);
                tracing::info!("the log is synced in time again: this node takes leaderships");
            }
            None => {}
        }
        if !inner.is_log_synced_in_time() && now >= give_at {
            inner.give_leaderships_away(&mut given).await;
            give_at = boot_time() + GIVE_INTERVAL;
        }
    }
}

impl Inner {
    fn is_log_synced_in_time(&self) -> bool {
        !self.slow_log.load(Ordering::Acquire)
    }

    /// Whether this node stands for an election that it need not stand for.
    pub(crate) fn takes_leaderships(&self) -> bool {
        !self.leaving.load(Ordering::Acquire) && self.is_log_synced_in_time()
    }

    /// Whether it takes what another gives away: not if its own disk may be stuck as well.
    pub(crate) fn inherits_leaderships(&self) -> bool {
        self.takes_leaderships() && self.storage.unsynced_for() <= UNSYNCED_MAX / 2
    }

    /// To nodes that take them, as far as there are any. `given`: by group, the last term that was; asked again, since this
    /// node may hear late that its heir was elected, or the heir may have failed, but not counted again.
    async fn give_leaderships_away(self: &Arc<Self>, given: &mut BTreeMap<GroupId, u64>) {
        let groups = std::iter::once(&self.meta).chain(self.groups.values());
        let led: Vec<&Group> = groups.filter(|group| group.is_leader()).collect();
        if led.is_empty() {
            return;
        }
        // The meta leader would hand some back to even them out.
        let ((), takers) = tokio::join!(self.tell_meta_leader(TELL_MAX), self.takers());
        let mut moves = JoinSet::new();
        for group in led {
            let Some(heir) = self.heir(group, &takers) else {
                continue;
            };
            let group = group.clone();
            moves.spawn(async move {
                let term = group.term();
                group.transfer(heir, ASK_MAX).await.then_some((group.id, term))
            });
        }
        let moved = async {
            while let Some(moved) = moves.join_next().await {
                if let Ok(Some((group, term))) = moved
                    && given.insert(group, term) != Some(term)
                {
                    self.metrics.leadership_given_away();
                }
            }
        };
        // A group whose core waits for the disk takes no commands either.
        let _ = tokio::time::timeout(ASK_MAX * 2, moved).await;
    }

    /// Up nodes that say that they take leaderships.
    async fn takers(&self) -> BTreeSet<NodeId> {
        let Some(links) = self.links.get() else {
            return BTreeSet::new();
        };
        let up: Vec<NodeId> = {
            let meta = self.meta_view.read();
            let up = meta.nodes().filter(|(_, record)| record.up).map(|(node, _)| node);
            up.filter(|node| *node != self.config.node && links.is_up(*node))
                .collect()
        };
        let asked = up.into_iter().map(|node| async move {
            let asked = links.request(node, Lane::Control, requests::TAKES_LEADERSHIPS, Bytes::new(), TELL_MAX);
            let takes = requests::decode_number(&asked.await.ok()?).ok()? == 1;
            takes.then_some(node)
        });
        futures_util::future::join_all(asked)
            .await
            .into_iter()
            .flatten()
            .collect()
    }

    /// Who has most of the group's log; of equals another one for each group.
    fn heir(&self, group: &Group, takers: &BTreeSet<NodeId>) -> Option<NodeId> {
        let turn = |node: NodeId| (node + u64::from(group.id.0)) % self.config.members.len() as u64;
        let holds = |node: NodeId| match group.id.as_shard() {
            Some(shard) => self.shards.holds(node, shard),
            None => group.id == GroupId::META,
        };
        let heirs = takers.iter().copied().filter(|node| holds(*node));
        heirs.max_by_key(|node| (group.replicated_to(*node), turn(*node)))
    }
}

/// DESIGN §3. Also how long what was queued in a pause may take to be synced.
const UNSYNCED_MAX: Duration = Duration::from_secs(1);
/// A disk that is slow for a moment is often slow again in the next one: leaderships that come and go cost more than
/// uneven ones.
const HOLD: Duration = Duration::from_secs(10);
const HOLD_MAX: Duration = Duration::from_secs(300);
/// In holds: an episode that begins so soon after the last one holds for twice as long.
const RECURS_WITHIN: u32 = 6;
const TICK: Duration = Duration::from_millis(100);
/// A tick that comes so late says that the process was stopped, or starved.
const STALL: Duration = Duration::from_millis(500);
/// Between two tries, and for what was won meanwhile.
const GIVE_INTERVAL: Duration = Duration::from_secs(1);
/// A node that does not answer so soon is not a better leader.
const TELL_MAX: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_slow_log_is_held_for_slow_and_longer_each_time_it_recurs() {
        let mut episodes = Episodes::default();
        let mut holds = Vec::new();
        let mut now = secs(1_000);
        for _ in 0..7 {
            let Some(Change::Began { hold }) = episodes.observe(secs(2), now) else {
                panic!("an episode begins")
            };
            holds.push(hold.as_secs());
            assert_eq!(episodes.observe(Duration::ZERO, now + hold - secs(1)), None, "held");
            now += hold;
            assert_eq!(episodes.observe(Duration::ZERO, now), Some(Change::Ended));
            now += secs(1);
        }
        assert_eq!(holds, [10, 20, 40, 80, 160, 300, 300]);
        // Long well: forgotten.
        now += secs(300 * 6);
        assert_eq!(episodes.observe(secs(2), now), Some(Change::Began { hold: HOLD }));
    }

    #[test]
    fn an_episode_is_one_however_long_it_lasts() {
        let mut episodes = Episodes::default();
        assert_eq!(episodes.observe(UNSYNCED_MAX, secs(9)), None, "in time");
        assert_eq!(episodes.observe(secs(2), secs(10)), Some(Change::Began { hold: HOLD }));
        for second in 11..100 {
            assert_eq!(episodes.observe(secs(second), secs(second)), None);
        }
        assert_eq!(episodes.observe(Duration::ZERO, secs(108)), None, "held from the last");
        assert_eq!(episodes.observe(Duration::ZERO, secs(109)), Some(Change::Ended));
    }
}
