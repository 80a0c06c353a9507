//! Whom a fault hits: by role, as the cluster stands at that moment, and never so many that the quorum goes by accident.
//!
//! Decides only: a view comes in, names come out.

use crate::random::Random;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The cluster at one moment.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub nodes: Vec<String>,
    /// Of the shards; meta is on all nodes.
    pub replication_factor: usize,
    /// Those with a process that is not paused.
    pub up: BTreeSet<String>,
    /// Those that a fault has hit already.
    pub impaired: BTreeSet<String>,
    /// By group; with the term.
    pub leaders: BTreeMap<String, (String, u64)>,
    /// Nodes that sessions are connected to.
    pub owners: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Any,
    /// Of some shard.
    Leader,
    MetaLeader,
    /// Of some session.
    Owner,
}

impl View {
    /// Of any group: as many nodes may be lost.
    pub fn minority(&self) -> usize {
        self.nodes.len().min(self.replication_factor).saturating_sub(1) / 2
    }

    pub fn majority(&self) -> usize {
        self.nodes.len() / 2 + 1
    }

    /// One node of this role that runs, with which the impaired ones are still a minority; `None`: there is none now.
    pub fn one(&self, role: Role, random: &mut Random) -> Option<String> {
        let full = self.impaired.len() >= self.minority();
        let may = |node: &&String| self.up.contains(*node) && (!full || self.impaired.contains(*node));
        let holders: Vec<String> = match role {
            Role::Any => self.nodes.iter().filter(may).cloned().collect(),
            Role::Leader => self.shard_leaders().filter(may).cloned().collect(),
            Role::MetaLeader => self.meta_leader().into_iter().filter(may).cloned().collect(),
            Role::Owner => self.owners.iter().filter(may).cloned().collect(),
        };
        (!holders.is_empty()).then(|| random.pick(&holders).clone())
    }

    /// One node, or more where a minority is more than one.
    pub fn some(&self, random: &mut Random) -> Option<Vec<String>> {
        let mut chosen = vec![self.one(Role::Any, random)?];
        let free = self.minority().saturating_sub(self.impaired.len());
        let others: Vec<String> = self.up.iter().filter(|node| **node != chosen[0]).cloned().collect();
        let others: Vec<String> = others
            .into_iter()
            .filter(|node| !self.impaired.contains(node))
            .collect();
        let more = random.below(free.max(1));
        chosen.extend(random.sample(&others, more));
        Some(chosen)
    }

    /// A majority, whoever it is.
    pub fn most(&self, random: &mut Random) -> Vec<String> {
        random.sample(&self.nodes, self.majority())
    }

    /// What each of `nodes` was when it was hit.
    pub fn roles(&self, nodes: &[String]) -> Value {
        let of = |node: &String| {
            let groups = |leads: bool| {
                let held = self.leaders.iter().filter(|(_, (leader, _))| (leader == node) == leads);
                held.map(|(group, _)| group.clone()).collect::<Vec<_>>()
            };
            json!({
                "leads": groups(true),
                "follows": groups(false),
                "meta_leader": self.meta_leader() == Some(node),
                "sessions": self.owners.iter().filter(|owner| *owner == node).count(),
                "up": self.up.contains(node),
            })
        };
        json!(
            nodes
                .iter()
                .map(|node| (node.clone(), of(node)))
                .collect::<BTreeMap<_, _>>()
        )
    }

    fn meta_leader(&self) -> Option<&String> {
        self.leaders.get("meta").map(|(leader, _)| leader)
    }

    fn shard_leaders(&self) -> impl Iterator<Item = &String> {
        let shards = self.leaders.iter().filter(|(group, _)| *group != "meta");
        shards.map(|(_, (leader, _))| leader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(nodes: usize) -> View {
        let nodes: Vec<String> = (1..=nodes).map(|id| format!("n{id}")).collect();
        View {
            up: nodes.iter().cloned().collect(),
            leaders: BTreeMap::from([
                ("meta".to_owned(), ("n2".to_owned(), 3)),
                ("shard-0".to_owned(), ("n1".to_owned(), 2)),
            ]),
            owners: vec!["n3".to_owned()],
            replication_factor: nodes.len(),
            nodes,
            impaired: BTreeSet::new(),
        }
    }

    #[test]
    fn roles_name_the_node_that_has_them() {
        let mut random = Random::new(1);
        let view = view(3);
        for (role, node) in [(Role::Leader, "n1"), (Role::MetaLeader, "n2"), (Role::Owner, "n3")] {
            assert_eq!(view.one(role, &mut random).as_deref(), Some(node));
        }
        assert_eq!(view.roles(&["n2".to_owned()])["n2"]["leads"], json!(["meta"]));
        assert_eq!(view.roles(&["n2".to_owned()])["n2"]["follows"], json!(["shard-0"]));
    }

    #[test]
    fn a_second_fault_hits_the_node_that_is_hit_already_or_nobody() {
        let mut random = Random::new(1);
        let mut view = view(3);
        view.impaired.insert("n3".to_owned());
        assert_eq!(view.one(Role::Any, &mut random).as_deref(), Some("n3"));
        assert_eq!(view.one(Role::MetaLeader, &mut random), None);
        view.up.remove("n3");
        assert_eq!(view.one(Role::Any, &mut random), None);
    }

    #[test]
    fn some_are_never_more_than_a_minority() {
        let mut random = Random::new(1);
        let mut sizes = BTreeSet::new();
        for _ in 0..100 {
            sizes.insert(view(5).some(&mut random).expect("all are up").len());
            assert_eq!(view(3).some(&mut random).expect("all are up").len(), 1);
        }
        assert_eq!(sizes, BTreeSet::from([1, 2]));
        assert_eq!(view(5).most(&mut random).len(), 3);
    }
}
