//! topic → shard → replicas. Pure, and fixed when the cluster is formed.

use lontra_storage::ids::{NodeId, ShardId};
use lontra_storage::topic::shard_of;

/// Which nodes hold which shard.
#[derive(Clone, Debug)]
pub struct ShardMap {
    nodes: Vec<NodeId>,
    shards: u16,
    replicas: usize,
}

impl ShardMap {
    /// `nodes` in ascending order; at most `replication_factor` of them hold a shard.
    pub fn new(nodes: Vec<NodeId>, shards: u16, replication_factor: u16) -> Self {
        let replicas = usize::from(replication_factor).clamp(1, nodes.len().max(1));
        ShardMap {
            nodes,
            shards,
            replicas,
        }
    }

    pub fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.shards).map(ShardId)
    }

    pub fn shard_count(&self) -> u16 {
        self.shards
    }

    pub fn shard_of(&self, topic: &str) -> ShardId {
        shard_of(topic, self.shards)
    }

    /// The nodes that hold `shard`: consecutive ones, beginning one further for each shard.
    pub fn replicas(&self, shard: ShardId) -> impl Iterator<Item = NodeId> + '_ {
        let first = usize::from(shard.0);
        (0..self.replicas).map(move |n| self.nodes[(first + n) % self.nodes.len()])
    }

    pub fn holds(&self, node: NodeId, shard: ShardId) -> bool {
        self.replicas(shard).any(|replica| replica == node)
    }

    /// Whether some node must follow shards that it does not hold.
    pub fn has_followers(&self) -> bool {
        self.replicas < self.nodes.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn replicas_are_distinct_and_even() {
        for (nodes, factor, expected) in [(1, 3, 1), (3, 3, 3), (5, 3, 3), (5, 5, 5), (5, 1, 1)] {
            let map = ShardMap::new((1..=nodes).collect(), 15, factor);
            let mut held = BTreeMap::<NodeId, usize>::new();
            for shard in map.shards() {
                let mut replicas: Vec<NodeId> = map.replicas(shard).collect();
                assert_eq!(replicas.len(), expected);
                replicas.sort_unstable();
                replicas.dedup();
                assert_eq!(replicas.len(), expected);
                for node in replicas {
                    assert!(map.holds(node, shard));
                    *held.entry(node).or_default() += 1;
                }
            }
            assert!(
                held.values().all(|count| *count == 15 * expected / nodes as usize),
                "{held:?}"
            );
        }
    }
}
