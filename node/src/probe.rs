//! What the node tells operators about itself.

use lontra_cluster::Cluster;
use lontra_cluster::lease::Serving;
use lontra_ops::admin::Refusal;
use lontra_ops::http::{Probe, Readiness};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::admin::access::no_lease;
use crate::auth::hashing::Hashing;

/// Answers from memory.
pub struct NodeProbe {
    pub(crate) cluster: Cluster,
    failed: watch::Receiver<Option<String>>,
    pub(crate) hashing: Hashing,
}

impl NodeProbe {
    pub fn new(cluster: Cluster, failed: watch::Receiver<Option<String>>, hashing: Hashing) -> Self {
        NodeProbe {
            cluster,
            failed,
            hashing,
        }
    }
}

impl Probe for NodeProbe {
    fn ready(&self) -> Readiness {
        let mut reasons = Vec::new();
        match self.cluster.lease().serving() {
            Serving::Serving => {}
            Serving::Starting => reasons.push("not admitted yet: no majority, or a node is not reachable".to_owned()),
            Serving::Paused => reasons.push("the lease was not renewed: paused".to_owned()),
            Serving::Refusing => reasons.push("cut off from the majority: clients are let go".to_owned()),
        }
        for group in self.cluster.groups().iter().filter(|group| group.leader.is_none()) {
            reasons.push(format!("{} has no leader", group.group));
        }
        reasons.extend(self.failed.borrow().clone());
        Readiness {
            ready: reasons.is_empty(),
            reasons,
        }
    }

    fn status(&self) -> Value {
        let groups: Vec<Value> = self
            .cluster
            .groups()
            .into_iter()
            .map(|group| {
                json!({
                    "group": group.group.to_string(),
                    "leader": group.leader,
                    "term": group.term,
                    "applied": group.applied,
                    "delayed": group.delayed,
                })
            })
            .collect();
        let meta = self.cluster.meta().read();
        let nodes: Vec<Value> = meta
            .nodes()
            .map(|(node, record)| json!({ "node": node, "up": record.up, "incarnation": record.incarnation.0 }))
            .collect();
        let sessions: Vec<Value> = meta
            .sessions()
            .take(SESSIONS_SHOWN)
            .map(|(_, session)| {
                json!({
                    "client_id": &*session.client_id,
                    "node": session.owner.map(|owner| owner.node),
                    "durable": session.durable,
                })
            })
            .collect();
        let (all, durable) = meta.session_counts();
        json!({
            "node": self.cluster.node(),
            "ready": self.ready().ready,
            "serving": format!("{:?}", self.cluster.lease().serving()).to_lowercase(),
            "nodes": nodes,
            "groups": groups,
            "session_count": { "all": all, "durable": durable },
            "sessions": sessions,
        })
    }

    fn before_scrape(&self) {
        self.cluster.update_metrics();
    }

    fn session(&self, client_id: &str) -> Result<Option<Value>, Refusal> {
        if !self.cluster.lease().is_valid() {
            return Err(no_lease());
        }
        let meta = self.cluster.meta().read();
        let Some((id, session)) = meta.session_of(client_id) else {
            return Ok(None);
        };
        let exclusive = session.subscriptions.iter().filter(|(_, options)| options.exclusive);
        Ok(Some(json!({
            "client_id": &*session.client_id,
            "session": id.0,
            "owner": session.owner.map(|owner| owner.node),
            "incarnation": session.owner.map(|owner| owner.incarnation.0),
            "epoch": session.epoch.0,
            "connected": session.owner.is_some(),
            "durable": session.durable,
            "expiry_seconds": session.expiry,
            "expires_in_ms": session.expires_at.map(|at| at.0.saturating_sub(self.cluster.meta_time().0)),
            "subscriptions": session.subscriptions.keys().map(|filter| &**filter).collect::<Vec<_>>(),
            "exclusive": exclusive.map(|(filter, _)| &**filter).collect::<Vec<_>>(),
        })))
    }
}

/// `/api/v1/status` is for people: it names this many sessions at most.
const SESSIONS_SHOWN: usize = 1000;
