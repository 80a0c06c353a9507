//! Nodes: who is Up, under which incarnation.

use super::{Change, MetaEvent, MetaState, rows};
use crate::command::{MetaReply, Owner};
use crate::ids::{Incarnation, NodeId};

/// What the control plane knows of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    pub incarnation: Incarnation,
    /// The process start that was admitted under this incarnation.
    pub start: u64,
    pub up: bool,
}

impl MetaState {
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &NodeRecord)> {
        self.nodes.iter().map(|(node, record)| (*node, record))
    }

    pub fn node(&self, node: NodeId) -> Option<&NodeRecord> {
        self.nodes.get(&node)
    }

    /// Whether `owner` is Up under this very incarnation.
    pub fn is_live(&self, owner: Owner) -> bool {
        self.nodes
            .get(&owner.node)
            .is_some_and(|record| record.up && record.incarnation == owner.incarnation)
    }

    /// A repeat of the same process start that is still Up gets the same incarnation.
    pub(super) fn node_up(&mut self, node: NodeId, start: u64, change: &mut Change<'_, '_>) -> MetaReply {
        let up = self.nodes.get(&node).filter(|record| record.up);
        let up = up.map(|record| (record.start, record.incarnation));
        if let Some((admitted, incarnation)) = up
            && admitted == start
        {
            return MetaReply::Admitted { incarnation };
        }
        if !change.has_ids(1) {
            return MetaReply::Stale;
        }
        if let Some((_, incarnation)) = up {
            self.node_down(node, incarnation, change);
        }
        let incarnation = Incarnation(change.fresh_id());
        let record = NodeRecord {
            incarnation,
            start,
            up: true,
        };
        rows::put_node(change.batch, node, &record);
        self.nodes.insert(node, record);
        change.events.push(MetaEvent::NodeUp { node, incarnation });
        MetaReply::Admitted { incarnation }
    }

    /// Void unless `incarnation` is the one that is Up.
    pub(super) fn node_down(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
        change: &mut Change<'_, '_>,
    ) -> MetaReply {
        let Some(record) = self
            .nodes
            .get_mut(&node)
            .filter(|record| record.up && record.incarnation == incarnation)
        else {
            return MetaReply::Stale;
        };
        record.up = false;
        rows::put_node(change.batch, node, record);
        change.events.push(MetaEvent::NodeDown { node, incarnation });
        self.drop_node_routes(node, change);
        for session in self.owned.remove(&node).unwrap_or_default() {
            self.owner_gone(session, None, change);
        }
        MetaReply::Done
    }
}
