//! What an operator may do at any time: leaderships handed over, logs purged.

use super::family::Family;
use super::target::{Role, View};
use super::{Active, Begun, Nemesis, Trouble, Undo};
use crate::cluster::Failure;
use crate::history::Status;
use serde_json::json;

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

    /// All groups of one node.
    pub(super) async fn snapshot(&mut self, view: &View) -> Begun {
        // It takes nothing away: any node that runs.
        let mut whole = view.clone();
        whole.impaired.clear();
        let node = whole.one(Role::Any, &mut self.random).ok_or(Trouble::Nobody)?;
        let nodes = vec![node.clone()];
        self.announce(Family::Snapshot, "once", &nodes, view, json!({}));
        let purged = self.purge(&node, view).await;
        Ok(self.told(
            Family::Snapshot,
            nodes,
            purged.map(|groups| json!({ "groups": groups })),
        ))
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
