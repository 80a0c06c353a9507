//! What an operator may do at any time: leaderships handed over, logs purged, while a node is away too.

use super::family::Family;
use super::network::{both, others};
use super::target::{Role, View};
use super::{Active, Begun, Nemesis, Trouble, Undo};
use crate::cluster::Failure;
use crate::cluster::link::Rule;
use crate::history::Status;
use serde_json::json;
use std::collections::BTreeMap;

impl Nemesis {
    pub(super) async fn leader_transfer(&mut self, view: &View) -> Begun {
        let groups: Vec<&String> = view.leaders.keys().collect();
        if groups.is_empty() {
            return Err(Trouble::Nobody);
        }
        let group = (*self.random.pick(&groups)).clone();
        let (from, _) = &view.leaders[&group];
        let others: Vec<String> = view.up.iter().filter(|node| *node != from).cloned().collect();
        if others.is_empty() {
            return Err(Trouble::Nobody);
        }
        let to = self.random.pick(&others).clone();
        let nodes = vec![from.clone(), to.clone()];
        let value = json!({ "group": group, "from": from, "to": to });
        self.announce(Family::LeaderTransfer, "once", &nodes, view, value);
        let moved = self.cluster.transfer_leader(&group, &to).await;
        Ok(self.told(Family::LeaderTransfer, nodes, moved.map(|()| json!({ "group": group }))))
    }

    /// One node is cut off while the others go on and purge their logs: it comes back by snapshots.
    pub(super) async fn snapshot(&mut self, view: &View) -> Begun {
        let node = view.one(Role::Any, &mut self.random).ok_or(Trouble::Nobody)?;
        let nodes = vec![node];
        let rest = others(view, &nodes);
        self.announce(Family::Snapshot, "start", &nodes, view, json!({}));
        let cut = Rule {
            cut: true,
            ..Rule::default()
        };
        let pairs = both(&self.between(&nodes, &rest));
        self.active.push(Active {
            before: self.frames_so_far(&pairs),
            links: pairs.into_iter().map(|(from, to)| (from, to, cut.clone())).collect(),
            ..Active::new(Family::Snapshot, nodes, Undo::Links)
        });
        self.set_rules();
        tokio::time::sleep(COMMIT).await;
        let mut purged = BTreeMap::new();
        for node in rest {
            // A refusal is an answer too: the node may have gone meanwhile.
            let groups = self.purge(&node, view).await.unwrap_or(0);
            purged.insert(node, groups);
        }
        let mut active = self.active.pop().expect("it was put there");
        active.outcome = json!({ "groups_purged": purged });
        Ok(active)
    }

    /// Makes `node` purge the logs of all groups; answers how many did.
    pub(super) async fn purge(&self, node: &str, view: &View) -> Result<usize, Failure> {
        for group in view.leaders.keys() {
            self.cluster.force_snapshot(node, group).await?;
        }
        Ok(view.leaders.len())
    }

    /// A refusal is an answer too: the node may have gone, or the leadership have moved on.
    fn told(&self, family: Family, nodes: Vec<String>, answer: Result<serde_json::Value, Failure>) -> Active {
        let value = match answer {
            Ok(done) => json!({ "done": done }),
            Err(refusal) => json!({ "refused": refusal.to_string() }),
        };
        self.record(family, "stop", &nodes, value, Status::Installed);
        Active::new(family, nodes, Undo::Nothing).harmless()
    }
}

/// Elections without the node, and then writes for a while.
const COMMIT: std::time::Duration = std::time::Duration::from_secs(4);
