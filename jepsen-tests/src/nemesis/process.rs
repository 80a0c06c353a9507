//! Processes that are killed or stand still.

use super::family::Family;
use super::target::{Role, View};
use super::{Active, Begun, Nemesis, Trouble, Undo};
use serde_json::json;

impl Nemesis {
    /// SIGKILL; now and then the node is started at once, else at the end of the fault.
    pub(super) async fn kill(&mut self, family: Family, view: &View) -> Begun {
        let first = self.had.insert(family);
        let random = &mut self.random;
        let role = |role| move |random: &mut _| view.one(role, random).map(|node| vec![node]);
        let nodes = match family {
            Family::KillLeader => role(Role::Leader)(random),
            Family::KillMetaLeader => role(Role::MetaLeader)(random),
            Family::KillOwner => role(Role::Owner)(random),
            Family::KillMajority => Some(view.most(random)),
            Family::KillAll => Some(view.nodes.clone()),
            // The first by construction, so that no run has an election or not by chance.
            _ if first => role(Role::Leader)(random).or_else(|| view.some(random)),
            _ => view.some(random),
        };
        let nodes = nodes.ok_or(Trouble::Nobody)?;
        let at_once = !first && random.chance(0.3);
        self.announce(family, "start", &nodes, view, json!({ "restarts_at_once": at_once }));
        self.cluster.kill_all(&nodes).await;
        if at_once {
            for node in &nodes {
                self.cluster.start_node(node).await?;
            }
        }
        Ok(Active::new(family, nodes, Undo::Start))
    }

    /// SIGSTOP.
    pub(super) async fn pause(&mut self, family: Family, view: &View) -> Begun {
        let nodes = match family {
            Family::PauseMajority => Some(view.most(&mut self.random)),
            // As often the leader of something as anybody: who is nobody is not missed.
            _ if self.random.chance(0.5) => view.some(&mut self.random),
            _ => view.one(Role::MetaLeader, &mut self.random).map(|node| vec![node]),
        };
        let nodes = nodes.ok_or(Trouble::Nobody)?;
        self.announce(family, "start", &nodes, view, json!({}));
        for node in &nodes {
            self.cluster.pause(node).await;
        }
        Ok(Active::new(family, nodes, Undo::Resume))
    }
}
