//! What the meta leader does for all nodes: grant leases, decide barriers, declare nodes Down, expire sessions, spread
//! leaderships. Every node runs this; all but the leader's do nothing.
//!
//! Invariants
//! - a lease is granted only after a quorum round that began after the request arrived.
//! - a new leader declares nobody Down before every lease that its predecessor granted has run out.
//! - `own-term`: what a leader decides is committed in its own term or not at all: it knows nothing of what others granted.
//! - a barrier is decided over the Up set of a state that has applied the index itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use lontra_storage::command::{AccessOp, MetaOp, encode_meta_ops};
use lontra_storage::ids::{MetaIndex, NodeId, Offset, ShardId};
use lontra_storage::message::LogTime;
use tokio::time::Instant;

use crate::Inner;
use crate::clock::boot_time;
use crate::control::ASK_MAX;
use crate::group::ReadIndexError;
use crate::lease::{LEASE_MARGIN, Renewed};
use crate::link::Lane;
use crate::requests::{self, Renewal, Report};

impl Inner {
    /// Takes note of a node's report. Facts, whoever leads: they only grow within an incarnation.
    pub(crate) fn note_report(&self, node: NodeId, report: &Report) {
        let current = self.meta_view.read().node(node).map(|record| record.incarnation);
        if current != Some(report.incarnation) {
            return;
        }
        let mut renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = renewed.entry(node).or_default();
        if entry.incarnation != report.incarnation {
            *entry = Renewed {
                incarnation: report.incarnation,
                granted_at: boot_time(),
                ..Renewed::default()
            };
        }
        entry.applied = entry.applied.max(report.in_effect);
        entry.leads = report.leads.clone();
        entry.offsets = report.offsets.clone();
        entry.disk_low = report.disk_low;
        entry.leaving = report.leaving;
        entry.unreachable = report.unreachable.clone();
        drop(renewed);
        self.barrier_changed.notify_waiters();
    }

    /// Answers a renewal of `node`.
    pub(crate) async fn grant(&self, node: NodeId, report: Report) -> Renewal {
        self.note_report(node, &report);
        match self.meta.rounds.read_index().await {
            Ok(index) => {
                // The Up set must be at least as new as the round.
                if !self.meta.applied.reach(index, ASK_MAX).await {
                    return Renewal::NotLeader { leader: None };
                }
            }
            Err(ReadIndexError::NotLeader { leader }) => return Renewal::NotLeader { leader },
            Err(ReadIndexError::NoQuorum) => return Renewal::NotLeader { leader: None },
        }
        let meta = self.meta_view.read();
        let is_up = meta
            .node(node)
            .is_some_and(|record| record.up && record.incarnation == report.incarnation);
        if !is_up {
            return Renewal::NotUp;
        }
        // Workers with many connections take a while to look at each again: that is no reason to take the node Down.
        if self.lags_behind(report.applied, self.config.lease) || self.lags_behind(report.in_effect, EFFECT_MAX) {
            // What it does not apply it cannot keep; without a lease it is Down soon, and barriers go on without it.
            return Renewal::NotLeader { leader: None };
        }
        let mut renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = renewed.entry(node).or_default();
        if entry.condemned == Some(self.meta.term()) {
            // Its NodeDown may be committed already, and barriers may have gone on without it.
            return Renewal::NotLeader { leader: None };
        }
        entry.granted_at = boot_time();
        // A node that has not reported under its current incarnation has applied nothing, as far as is known.
        let nothing = Renewed::default();
        let up: Vec<&Renewed> = meta
            .nodes()
            .filter(|(_, record)| record.up)
            .map(|(node, record)| {
                renewed
                    .get(&node)
                    .filter(|known| known.incarnation == record.incarnation)
                    .unwrap_or(&nothing)
            })
            .collect();

        let applied_everywhere = self
            .shards
            .shards()
            .map(|shard| {
                let offset = |renewed: &&Renewed| renewed.offsets.get(usize::from(shard.0)).copied();
                up.iter()
                    .map(|renewed| offset(renewed).unwrap_or(Offset(0)))
                    .min()
                    .unwrap_or(Offset(0))
            })
            .collect();
        let disk_low = self
            .shards
            .shards()
            .filter(|shard| {
                self.shards
                    .replicas(*shard)
                    .any(|node| renewed.get(&node).is_some_and(|renewed| renewed.disk_low))
            })
            .collect();
        Renewal::Granted {
            applied_everywhere,
            disk_low,
        }
    }

    /// Whether, as far as this leader knows, every Up node has applied `index`.
    fn is_barrier_reached(&self, index: MetaIndex) -> bool {
        if self.applied_in_effect() < index {
            return false;
        }
        let meta = self.meta_view.read();
        let renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        meta.nodes()
            .filter(|(node, record)| record.up && *node != self.config.node)
            .all(|(node, record)| {
                // An incarnation that was admitted by a later entry applied this one before it served.
                record.incarnation.0 > index.0 * lontra_storage::ids::SessionId::PER_ENTRY
                    || renewed
                        .get(&node)
                        .is_some_and(|known| known.incarnation == record.incarnation && known.applied >= index)
            })
    }

    pub(crate) async fn wait_barrier(&self, index: MetaIndex, deadline: Instant) -> bool {
        loop {
            let changed = self.barrier_changed.notified();
            if self.is_barrier_reached(index) {
                return true;
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return false;
            }
        }
    }

    /// Nodes whose last lease has run out for certain. Called at each tick: an incarnation counts from when it was first
    /// seen here. Before `quiet_until` nobody is called silent.
    fn silent_nodes(&self, leading_since: Duration, quiet_until: Duration) -> Vec<MetaOp> {
        let limit = self.config.lease + LEASE_MARGIN;
        let now = boot_time();
        let term = self.meta.term();
        let meta = self.meta_view.read();
        let mut renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut downs = Vec::new();
        for (node, record) in meta.nodes().filter(|(_, record)| record.up) {
            let entry = renewed.entry(node).or_default();
            if entry.incarnation != record.incarnation {
                *entry = Renewed {
                    incarnation: record.incarnation,
                    granted_at: now,
                    ..Renewed::default()
                };
            }
            if now > quiet_until.max(entry.granted_at.max(leading_since) + limit) {
                // Under the lock that grants look under: none may slip in between this and the commit.
                entry.condemned = Some(term);
                downs.push(MetaOp::NodeDown {
                    node,
                    incarnation: record.incarnation,
                });
            }
        }
        downs
    }

    /// Of Up nodes that do not reach each other, those to take Down. Each stays Down until it reaches all again: it is not
    /// admitted before. (DESIGN §5)
    fn parted_nodes(&self, quiet_until: Duration) -> Vec<MetaOp> {
        let now = boot_time();
        if now < quiet_until {
            return Vec::new();
        }
        let term = self.meta.term();
        let meta = self.meta_view.read();
        let mut renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        let unreachable: BTreeMap<NodeId, Vec<NodeId>> = meta
            .nodes()
            .filter(|(_, record)| record.up)
            .filter_map(|(node, record)| {
                let known = renewed.get(&node)?;
                let counts = known.incarnation == record.incarnation && known.is_alive(now);
                counts.then(|| (node, known.unreachable.clone()))
            })
            .collect();
        let mut downs = Vec::new();
        for node in plan_parting(self.config.node, &unreachable) {
            let entry = renewed.entry(node).or_default();
            // As for a silent node: nothing may be granted between this and the commit.
            entry.condemned = Some(term);
            downs.push(MetaOp::NodeDown {
                node,
                incarnation: entry.incarnation,
            });
        }
        downs
    }

    /// Notes how far meta had come at this moment, for as long as [`EFFECT_MAX`].
    fn note_applied(&self) {
        let now = boot_time();
        let mut history = self.applied_history.lock().unwrap_or_else(PoisonError::into_inner);
        history.push_back((now, MetaIndex(self.meta.applied.current())));
        while history.len() > 1 && history[1].0 + self.config.lease.max(EFFECT_MAX) <= now {
            history.pop_front();
        }
    }

    /// Whether a node has not applied what this leader had applied so long ago.
    fn lags_behind(&self, applied: MetaIndex, time: Duration) -> bool {
        let now = boot_time();
        let history = self.applied_history.lock().unwrap_or_else(PoisonError::into_inner);
        let old = history.partition_point(|(at, _)| *at + time <= now);
        old.checked_sub(1).is_some_and(|newest| applied < history[newest].1)
    }
}

/// Runs for the life of the node; acts while it leads meta.
pub(crate) async fn run(inner: Arc<Inner>) {
    let mut leading = None;
    let mut quiet_until = Duration::ZERO;
    let mut logged = Vec::new();
    loop {
        let slept_at = boot_time();
        tokio::time::sleep(TICK).await;
        let now = boot_time();
        if now > slept_at + STALL {
            // This process stood still. Renewals that came meanwhile are answered before anybody is called silent.
            quiet_until = now + ASK_MAX;
        }
        inner.note_applied();
        let Some(leadership) = inner.meta.leadership() else {
            leading = None;
            continue;
        };
        let since = match leading {
            Some((known, since)) if known == leadership => since,
            _ => now,
        };
        leading = Some((leadership, since));
        let mut operations = inner.silent_nodes(since, quiet_until);
        if operations.is_empty() {
            operations = inner.parted_nodes(quiet_until);
        }
        for _ in &operations {
            inner.metrics.node_down();
        }
        let (expiry, ban_end) = {
            let meta = inner.meta_view.read();
            (meta.next_expiry(), meta.access().next_ban_end())
        };
        let has_come = |at: Option<LogTime>| at.is_some_and(|at| at <= inner.meta.clock.now());
        if has_come(expiry) {
            operations.push(MetaOp::ExpireSessions { limit: EXPIRE_LIMIT });
        }
        if has_come(ban_end) {
            operations.push(MetaOp::Access(AccessOp::ExpireBans { limit: EXPIRE_LIMIT }));
        }
        if operations.is_empty() {
            logged.clear();
        } else {
            // Once, not at each tick that it cannot be committed.
            if logged != operations {
                tracing::info!(?operations, "the meta leader acts");
                logged.clone_from(&operations);
            }
            let proposed = inner.meta.propose_under(leadership, encode_meta_ops(&operations));
            // own-term. What is not committed in time is decided anew at the next tick.
            let _ = tokio::time::timeout(ASK_MAX, proposed).await;
        }
    }
}

/// Runs for the life of the node; beside [`run`], which must not wait for a node that may be gone.
pub(crate) async fn spread(inner: Arc<Inner>) {
    loop {
        tokio::time::sleep(SPREAD_INTERVAL).await;
        if inner.lease.is_valid() {
            // Once more what began when they went Down, in case it failed or they were elected since.
            for node in inner.down_nodes() {
                inner.replace_leader(node);
            }
        }
        if inner.meta.is_leader() {
            inner.spread_leaders().await;
        }
    }
}

impl Inner {
    fn down_nodes(&self) -> Vec<NodeId> {
        let meta = self.meta_view.read();
        let down = meta.nodes().filter(|(_, record)| !record.up);
        down.map(|(node, _)| node).collect()
    }

    /// Moves one leadership, if they are spread unevenly over the Up nodes. Only between nodes that this leader has just
    /// heard from: one that died is Up until its lease is over, and a shard handed to it has no leader for an election; nor to
    /// one that stops, which has just given away its own.
    async fn spread_leaders(self: &Arc<Self>) {
        self.note_report(self.config.node, &self.report());
        let (up, leaving, leads) = {
            let now = boot_time();
            let meta = self.meta_view.read();
            let renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
            let is_alive = |node: NodeId| renewed.get(&node).is_some_and(|renewed| renewed.is_alive(now));
            let up: Vec<NodeId> = meta
                .nodes()
                .filter(|(node, record)| record.up && is_alive(*node))
                .map(|(node, _)| node)
                .collect();
            let mut leads = BTreeMap::<ShardId, NodeId>::new();
            for node in &up {
                for shard in renewed
                    .get(node)
                    .map(|renewed| renewed.leads.as_slice())
                    .unwrap_or_default()
                {
                    leads.insert(*shard, *node);
                }
            }
            let leaving = renewed.iter().filter(|(_, renewed)| renewed.leaving);
            let leaving: BTreeSet<NodeId> = leaving.map(|(node, _)| *node).collect();
            (up, leaving, leads)
        };
        let takes = |node, shard| !leaving.contains(&node) && self.shards.holds(node, shard);
        let Some((shard, from, to)) = plan_move(&up, &leads, takes) else {
            return;
        };
        tracing::debug!(shard = shard.0, from, to, "spreading leaders");
        if from == self.config.node {
            self.transfer(shard, to).await;
        } else if let Some(links) = self.links.get() {
            let ask = requests::encode_number(u64::from(shard.0) << 32 | to);
            let _ = links
                .request(from, Lane::Control, requests::TRANSFER, ask, ASK_MAX)
                .await;
        }
    }

    /// Hands this node's leadership of a shard to `to`.
    pub(crate) async fn transfer(&self, shard: ShardId, to: NodeId) -> bool {
        let Some(group) = self.groups.get(&shard) else {
            return false;
        };
        let moved = group.transfer(to, ASK_MAX).await;
        if moved {
            self.metrics.leader_transferred();
        }
        moved
    }
}

/// Nodes to take Down so that all that are left reach each other: never the leader; first whom most do not reach, of equal
/// ones the highest id. `unreachable` has what each node that lives reports; a node that is not in it is gone anyway.
fn plan_parting(leader: NodeId, unreachable: &BTreeMap<NodeId, Vec<NodeId>>) -> Vec<NodeId> {
    let mut pairs: BTreeSet<(NodeId, NodeId)> = unreachable
        .iter()
        .flat_map(|(node, others)| others.iter().map(move |other| (*node.min(other), *node.max(other))))
        .filter(|(a, b)| a != b && unreachable.contains_key(a) && unreachable.contains_key(b))
        .collect();
    let mut down = Vec::new();
    while !pairs.is_empty() {
        let mut counts = BTreeMap::<NodeId, usize>::new();
        for node in pairs.iter().flat_map(|(a, b)| [*a, *b]).filter(|node| *node != leader) {
            *counts.entry(node).or_default() += 1;
        }
        let Some((node, _)) = counts.into_iter().max_by_key(|(node, count)| (*count, *node)) else {
            break;
        };
        pairs.retain(|(a, b)| *a != node && *b != node);
        down.push(node);
    }
    down
}

/// One leadership to move from the node with most to one with at least two fewer that takes the shard.
fn plan_move(
    up: &[NodeId],
    leads: &BTreeMap<ShardId, NodeId>,
    takes: impl Fn(NodeId, ShardId) -> bool,
) -> Option<(ShardId, NodeId, NodeId)> {
    let mut counts: BTreeMap<NodeId, usize> = up.iter().map(|node| (*node, 0)).collect();
    for node in leads.values() {
        *counts.entry(*node).or_default() += 1;
    }
    let mut best: Option<(usize, ShardId, NodeId, NodeId)> = None;
    for (shard, from) in leads {
        for to in up.iter().filter(|to| *to != from && takes(**to, *shard)) {
            let gain = counts[from].saturating_sub(counts[to]);
            if gain >= 2 && best.is_none_or(|(best, ..)| gain > best) {
                best = Some((gain, *shard, *from, *to));
            }
        }
    }
    best.map(|(_, shard, from, to)| (shard, from, to))
}

const TICK: Duration = Duration::from_millis(100);
/// Until what is applied holds for every connection of a node.
const EFFECT_MAX: Duration = Duration::from_secs(10);
/// A tick that comes so late says that the process was stopped, or starved.
const STALL: Duration = Duration::from_millis(500);
const SPREAD_INTERVAL: Duration = Duration::from_millis(700);
/// Ends this many sessions, or bans, per entry at most: an entry stays short.
const EXPIRE_LIMIT: u32 = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard_map::ShardMap;

    #[test]
    fn leaderships_end_up_even_wherever_they_began() {
        for (nodes, factor) in [(3u64, 3), (5, 3), (5, 5)] {
            for first in 0..3u64 {
                let map = ShardMap::new((1..=nodes).collect(), 12, factor);
                let mut leads: BTreeMap<ShardId, NodeId> = map
                    .shards()
                    .map(|shard| {
                        (
                            shard,
                            map.replicas(shard)
                                .nth((first as usize + shard.0 as usize / 6) % 3)
                                .unwrap(),
                        )
                    })
                    .collect();
                let up: Vec<NodeId> = (1..=nodes).collect();
                for _ in 0..30 {
                    if let Some((shard, _, to)) = plan_move(&up, &leads, |node, shard| map.holds(node, shard)) {
                        leads.insert(shard, to);
                    }
                }
                let counts: Vec<usize> = up
                    .iter()
                    .map(|node| leads.values().filter(|at| *at == node).count())
                    .collect();
                let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
                assert!(most - least <= 1, "{nodes} nodes, factor {factor}: {counts:?}");
            }
        }
    }

    #[test]
    fn of_two_nodes_that_do_not_reach_each_other_one_goes_and_never_the_leader() {
        let check = |leader, reports: &[(NodeId, &[NodeId])], expected: &[NodeId]| {
            let unreachable = reports.iter().map(|(node, others)| (*node, others.to_vec())).collect();
            assert_eq!(plan_parting(leader, &unreachable), expected, "{reports:?}");
        };
        check(1, &[(1, &[]), (2, &[]), (3, &[])], &[]);
        check(1, &[(1, &[]), (2, &[3]), (3, &[2])], &[3]);
        // One report is enough: the other side may notice later.
        check(1, &[(1, &[]), (2, &[3]), (3, &[])], &[3]);
        check(3, &[(1, &[]), (2, &[3]), (3, &[])], &[2]);
        // A dead node has not renewed: that is not a parting.
        check(1, &[(1, &[3]), (2, &[3])], &[]);
        // Whom two miss.
        check(1, &[(1, &[]), (2, &[3, 5]), (3, &[2]), (4, &[]), (5, &[])], &[2]);
        check(1, &[(1, &[]), (2, &[3]), (3, &[2]), (4, &[5]), (5, &[4])], &[5, 3]);
    }

    #[test]
    fn a_node_that_stops_gets_nothing_though_it_leads_least() {
        let leads: BTreeMap<ShardId, NodeId> = (0..6).map(|shard| (ShardId(shard), 2 + u64::from(shard % 2))).collect();
        assert!(matches!(plan_move(&[1, 2, 3], &leads, |_, _| true), Some((_, _, 1))));
        assert_eq!(plan_move(&[1, 2, 3], &leads, |node, _| node != 1), None);
    }

    #[test]
    fn a_balanced_cluster_moves_nothing() {
        let leads = BTreeMap::from([(ShardId(0), 1), (ShardId(1), 2), (ShardId(2), 3), (ShardId(3), 1)]);
        assert_eq!(plan_move(&[1, 2, 3], &leads, |_, _| true), None);
    }
}
