//! The admin API's answers: what the cluster tells, as JSON. Shapes are documented in `ops/docs/operating.md`, and stable:
//! fields are added, none is renamed or removed.
//!
//!     every node's report ─┐
//!     meta of this node ───┴─▶ document ─▶ GET /api/v1/cluster ─▶ `lontra cluster status` (cluster_status.rs)

pub(crate) mod access;
pub mod key;

use std::collections::BTreeMap;

use lontra_cluster::Cluster;
use lontra_cluster::inspect::{GroupReport, InspectError, LeaseReport, NodeReport, PENDING_COUNTED, Role};
use lontra_cluster::lease::Serving;
use lontra_ops::admin::{AccessRequest, Admin, Answer, Refusal};
use lontra_ops::guard::{Caller, Known};
use lontra_storage::ids::{GroupId, NodeId};
use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::probe::NodeProbe;

/// What this node tells of itself to whoever asks for the whole cluster.
pub fn about(config: &Config) -> Value {
    json!({
        "client_address": config.mqtt.listen.to_string(),
        "http_address": config.http.listen.to_string(),
        "version": env!("CARGO_PKG_VERSION"),
    })
}

impl Admin for NodeProbe {
    fn cluster(&self) -> Answer {
        let cluster = self.cluster.clone();
        Box::pin(async move {
            let reports = cluster.inspect_all().await;
            Ok(document(&Facts::of(&cluster, reports)))
        })
    }

    fn groups(&self) -> Value {
        let report = self.cluster.inspect();
        json!({
            "node": report.node,
            "groups": report.groups.iter().map(group_here).collect::<Vec<_>>(),
        })
    }

    fn digest(&self, group: String) -> Answer {
        self.about_group(group, async |cluster, group| {
            let contents = cluster.contents(group).await?;
            Ok(json!({
                "node": cluster.node(),
                "group": group.to_string(),
                "applied": contents.applied,
                "rows": contents.rows,
                "digest": format!("{:016x}", contents.digest),
            }))
        })
    }

    fn keys(&self, group: String) -> Answer {
        self.about_group(group, async |cluster, group| {
            let contents = cluster.contents(group).await?;
            Ok(json!({
                "node": cluster.node(),
                "group": group.to_string(),
                "applied": contents.applied,
                "rows": contents.rows,
                "kinds": contents.named_kinds(),
            }))
        })
    }

    fn snapshot(&self, group: String) -> Answer {
        self.about_group(group, async |cluster, group| {
            let done = cluster.force_snapshot(group).await?;
            tracing::info!(%group, snapshot = done.snapshot, purged = done.purged, "snapshot by an operator's wish");
            Ok(json!({
                "node": cluster.node(),
                "group": group.to_string(),
                "snapshot": done.snapshot,
                "purged": done.purged,
            }))
        })
    }

    fn transfer(&self, group: String, to: u64) -> Answer {
        self.about_group(group, async move |cluster, group| {
            let leader = cluster.transfer_leader(group, to).await?;
            tracing::info!(%group, leader, "leadership handed over by an operator's wish");
            Ok(json!({ "node": cluster.node(), "group": group.to_string(), "leader": leader }))
        })
    }

    fn pending(&self, client_id: String) -> Answer {
        let cluster = self.cluster.clone();
        Box::pin(async move {
            if !cluster.lease().is_valid() {
                return Err(access::no_lease());
            }
            let session = cluster.meta().read().session_of(&client_id).map(|(id, _)| id);
            let Some(session) = session else {
                return Err(Refusal::NotFound("no session of this client id".to_owned()));
            };
            let counts = cluster.pending(session).await.map_err(refusal)?;
            let shards: Map<String, Value> = counts
                .iter()
                .map(|(shard, count)| (shard.to_string(), json!(count)))
                .collect();
            Ok(json!({
                "node": cluster.node(),
                "client_id": client_id,
                "session": session.0,
                "counted_up_to": PENDING_COUNTED,
                "shards": shards,
                "total": counts.values().sum::<usize>(),
            }))
        })
    }

    fn known(&self, token: Option<&str>) -> Known {
        self.known_key(token)
    }

    fn access(&self, request: AccessRequest, caller: Caller) -> Answer {
        let (cluster, hashing) = (self.cluster.clone(), self.hashing.clone());
        Box::pin(access::answer(cluster, hashing, request, caller))
    }
}

impl NodeProbe {
    /// Whether whoever is on this machine may administer.
    pub fn has_no_keys(&self) -> bool {
        self.cluster.meta().read().access().keys().next().is_none()
    }

    fn known_key(&self, token: Option<&str>) -> Known {
        let meta = self.cluster.meta().read();
        let is_current = self.cluster.lease().is_valid();
        key::known(meta.access(), token, is_current)
    }

    fn about_group<F>(&self, name: String, ask: impl FnOnce(Cluster, GroupId) -> F + Send + 'static) -> Answer
    where
        F: Future<Output = Result<Value, InspectError>> + Send,
    {
        let cluster = self.cluster.clone();
        Box::pin(async move {
            let group = cluster.group_named(&name).map_err(refusal)?;
            ask(cluster, group).await.map_err(refusal)
        })
    }
}

fn refusal(error: InspectError) -> Refusal {
    let text = error.to_string();
    match error {
        InspectError::NoSuchGroup { .. } | InspectError::NotHere { .. } => Refusal::NotFound(text),
        InspectError::NotMember { .. } | InspectError::NotMoved { .. } => Refusal::Conflict(text),
        InspectError::NoLeader { .. } | InspectError::NoSnapshot { .. } => Refusal::Unavailable(text),
        InspectError::Read { .. } | InspectError::Checkpoint { .. } => Refusal::Failed(text),
    }
}

/// Everything that the document is made of.
struct Facts {
    name: String,
    asked: NodeId,
    /// Every node, with the address of its cluster listener.
    members: BTreeMap<NodeId, String>,
    /// By node, as meta has it here: incarnation, and whether it is Up.
    admitted: BTreeMap<NodeId, (u64, bool)>,
    sessions: Sessions,
    /// The nodes that should hold each group.
    holders: BTreeMap<GroupId, Vec<NodeId>>,
    reports: BTreeMap<NodeId, Option<NodeReport>>,
}

#[derive(Default)]
struct Sessions {
    all: usize,
    durable: usize,
    connected: BTreeMap<NodeId, usize>,
}

impl Facts {
    fn of(cluster: &Cluster, reports: BTreeMap<NodeId, Option<NodeReport>>) -> Facts {
        let members = cluster.members().clone();
        let shards = cluster.shards();
        let mut holders: BTreeMap<GroupId, Vec<NodeId>> = shards
            .shards()
            .map(|shard| (GroupId::shard(shard), shards.replicas(shard).collect()))
            .collect();
        holders
            .values_mut()
            .for_each(|nodes: &mut Vec<NodeId>| nodes.sort_unstable());
        holders.insert(GroupId::META, members.keys().copied().collect());
        let meta = cluster.meta().read();
        let mut sessions = Sessions::default();
        for (_, session) in meta.sessions() {
            sessions.all += 1;
            sessions.durable += usize::from(session.durable);
            if let Some(owner) = session.owner {
                *sessions.connected.entry(owner.node).or_default() += 1;
            }
        }
        Facts {
            name: cluster.name().to_owned(),
            asked: cluster.node(),
            members,
            admitted: meta
                .nodes()
                .map(|(node, record)| (node, (record.incarnation.0, record.up)))
                .collect(),
            sessions,
            holders,
            reports,
        }
    }

    fn report(&self, node: NodeId) -> Option<&NodeReport> {
        self.reports.get(&node)?.as_ref()
    }

    fn replica(&self, node: NodeId, group: GroupId) -> Option<&GroupReport> {
        self.report(node)?.groups.iter().find(|report| report.group == group)
    }

    /// Who leads a group in the newest term that anybody knows of.
    fn leader(&self, group: GroupId) -> Option<(NodeId, u64)> {
        let claims = self.reports.keys().filter_map(|node| {
            let report = self.replica(*node, group)?;
            Some((report.term, report.leader?))
        });
        claims.max().map(|(term, leader)| (leader, term))
    }

    /// The leader's own report, if it answers and still leads.
    fn leading_replica(&self, group: GroupId) -> Option<&GroupReport> {
        let (leader, _) = self.leader(group)?;
        self.replica(leader, group).filter(|report| report.role == Role::Leader)
    }
}

/// The body of `/api/v1/cluster`.
fn document(facts: &Facts) -> Value {
    let mut problems = Vec::new();
    let nodes: Vec<Value> = facts
        .members
        .keys()
        .map(|node| node_of_cluster(facts, *node, &mut problems))
        .collect();
    let groups: Vec<Value> = facts
        .holders
        .iter()
        .map(|(group, holders)| group_of_cluster(facts, *group, holders, &mut problems))
        .collect();
    if facts.leading_replica(GroupId::META).is_none() {
        problems.push("what is said of nodes and sessions may be old: no leader of meta answers".to_owned());
    }
    let unanswered: Vec<NodeId> = facts
        .members
        .keys()
        .copied()
        .filter(|node| facts.report(*node).is_none())
        .collect();
    json!({
        "cluster": facts.name,
        "asked": facts.asked,
        "ok": problems.is_empty(),
        "problems": problems,
        "unanswered": unanswered,
        "meta_leader": facts.leader(GroupId::META).map(|(leader, _)| leader),
        "nodes": nodes,
        "groups": groups,
        "sessions": {
            "all": facts.sessions.all,
            "durable": facts.sessions.durable,
            "connected": facts.sessions.connected.values().sum::<usize>(),
        },
    })
}

fn node_of_cluster(facts: &Facts, node: NodeId, problems: &mut Vec<String>) -> Value {
    let report = facts.report(node);
    let admitted = facts.admitted.get(&node);
    let leases = facts
        .leader(GroupId::META)
        .and_then(|(leader, _)| facts.report(leader)?.leases.as_ref());
    let lease: Option<&LeaseReport> = leases.and_then(|leases| {
        leases.iter().find(|lease| {
            lease.node == node && admitted.is_some_and(|(incarnation, _)| lease.incarnation.0 == *incarnation)
        })
    });
    let disk_low = report
        .map(|report| report.disk_low)
        .or(lease.map(|lease| lease.disk_low));
    match (admitted, report) {
        (None, _) => problems.push(format!("node {node} was never admitted")),
        (Some((_, false)), _) => problems.push(format!("node {node} is down")),
        (Some((_, true)), None) => problems.push(format!("node {node} does not answer node {}", facts.asked)),
        (Some((_, true)), Some(report)) if report.serving != Serving::Serving => {
            problems.push(format!(
                "node {node} serves no clients: it is {}",
                serving_name(report.serving)
            ));
        }
        _ => {}
    }
    if disk_low == Some(true) {
        problems.push(format!("node {node} has little free disk: publishes are refused"));
    }
    let about: Option<Value> = report.and_then(|report| serde_json::from_slice(&report.about).ok());
    let told = |key: &str| about.as_ref().and_then(|about| about.get(key)).cloned();
    json!({
        "node": node,
        "up": admitted.is_some_and(|(_, up)| *up),
        "answers": report.is_some(),
        "serving": report.map(|report| serving_name(report.serving)),
        "incarnation": admitted.map(|(incarnation, _)| incarnation),
        "lease_age_ms": lease.map(|lease| lease.age.as_millis() as u64),
        "lease_left_ms": lease.map(|lease| lease.left.as_millis() as u64),
        "disk_low": disk_low,
        "clients": facts.sessions.connected.get(&node).copied().unwrap_or(0),
        "peer_address": facts.members.get(&node),
        "client_address": told("client_address"),
        "http_address": told("http_address"),
        "version": told("version"),
    })
}

fn group_of_cluster(facts: &Facts, group: GroupId, holders: &[NodeId], problems: &mut Vec<String>) -> Value {
    let leader = facts.leader(group);
    let leading = facts.leading_replica(group);
    match (leader, leading) {
        (None, _) => problems.push(format!("{group} has no leader")),
        (Some((node, _)), None) => {
            problems.push(format!("{group} has no leader that answers (node {node} led it last)"));
        }
        _ => {}
    }
    let matched = leading.and_then(|leading| leading.matched.as_ref());
    let lag = |node: NodeId| {
        let leading = leading?;
        match leader {
            Some((leader, _)) if leader == node => Some(0),
            _ => Some(leading.last_log.saturating_sub(*matched?.get(&node)?)),
        }
    };
    let replicas: Vec<Value> = holders
        .iter()
        .map(|node| {
            let report = facts.replica(*node, group);
            json!({
                "node": node,
                "role": report.map(|report| role_name(report.role)),
                "last_log": report.map(|report| report.last_log),
                "applied": report.map(|report| report.applied),
                "lag": lag(*node),
            })
        })
        .collect();
    json!({
        "group": group.to_string(),
        "leader": leader.map(|(leader, _)| leader),
        "term": leader.map(|(_, term)| term),
        "last_log": leading.map(|leading| leading.last_log),
        "committed": leading.map(|leading| leading.committed),
        "applied": leading.map(|leading| leading.applied),
        "replicas": replicas,
    })
}

/// One entry of `/api/v1/groups`.
fn group_here(report: &GroupReport) -> Value {
    json!({
        "group": report.group.to_string(),
        "role": role_name(report.role),
        "leader": report.leader,
        "term": report.term,
        "last_log": report.last_log,
        "committed": report.committed,
        "applied": report.applied,
        "snapshot": report.snapshot,
        "purged": report.purged,
        "members": report.members,
        "matched": report.matched.as_ref().map(|matched| {
            matched.iter().map(|(node, index)| (node.to_string(), json!(index))).collect::<Map<_, _>>()
        }),
    })
}

fn serving_name(serving: Serving) -> &'static str {
    match serving {
        Serving::Starting => "starting",
        Serving::Serving => "serving",
        Serving::Paused => "paused",
        Serving::Refusing => "refusing",
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
        Role::Stopped => "stopped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lontra_storage::ids::{Incarnation, ShardId};
    use std::time::Duration;

    const SHARD: GroupId = GroupId::shard(ShardId(0));

    fn replica(group: GroupId, node: NodeId, leader: Option<NodeId>, term: u64) -> GroupReport {
        GroupReport {
            group,
            role: if leader == Some(node) {
                Role::Leader
            } else {
                Role::Follower
            },
            term,
            leader,
            last_log: 20,
            committed: 19,
            applied: 19,
            snapshot: 0,
            purged: 0,
            members: vec![1, 2, 3],
            matched: (leader == Some(node)).then(|| BTreeMap::from([(1, 20), (2, 20), (3, 15)])),
        }
    }

    fn report(node: NodeId) -> NodeReport {
        NodeReport {
            node,
            incarnation: Incarnation(node * 10),
            serving: Serving::Serving,
            disk_low: false,
            about: br#"{"client_address":"127.0.0.1:1883"}"#.as_slice().into(),
            groups: vec![
                replica(GroupId::META, node, Some(2), 4),
                replica(SHARD, node, Some(1), 3),
            ],
            leases: (node == 2).then(|| {
                let lease = |node| LeaseReport {
                    node,
                    incarnation: Incarnation(node * 10),
                    age: Duration::from_millis(100 * node),
                    left: Duration::from_millis(2000 - 100 * node),
                    disk_low: false,
                };
                vec![lease(1), lease(2), lease(3)]
            }),
        }
    }

    fn facts() -> Facts {
        let nodes = [1, 2, 3];
        Facts {
            name: "lontra".to_owned(),
            asked: 1,
            members: nodes
                .iter()
                .map(|node| (*node, format!("10.0.0.{node}:17883")))
                .collect(),
            admitted: nodes.iter().map(|node| (*node, (node * 10, true))).collect(),
            sessions: Sessions {
                all: 5,
                durable: 2,
                connected: BTreeMap::from([(1, 3), (3, 1)]),
            },
            holders: BTreeMap::from([(GroupId::META, nodes.to_vec()), (SHARD, nodes.to_vec())]),
            reports: nodes.iter().map(|node| (*node, Some(report(*node)))).collect(),
        }
    }

    fn problems(facts: &Facts) -> Vec<String> {
        let shown = document(facts);
        let problems: Vec<String> = serde_json::from_value(shown["problems"].clone()).unwrap();
        assert_eq!(shown["ok"], problems.is_empty());
        problems
    }

    #[test]
    fn a_healthy_cluster_has_no_problems_and_all_values() {
        let shown = document(&facts());
        assert_eq!(shown["problems"], json!([]));
        assert_eq!((&shown["ok"], &shown["meta_leader"]), (&json!(true), &json!(2)));
        assert_eq!(shown["sessions"], json!({ "all": 5, "durable": 2, "connected": 4 }));
        assert_eq!(
            shown["nodes"][2],
            json!({
                "node": 3, "up": true, "answers": true, "serving": "serving", "incarnation": 30,
                "lease_age_ms": 300, "lease_left_ms": 1700, "disk_low": false, "clients": 1,
                "peer_address": "10.0.0.3:17883", "client_address": "127.0.0.1:1883",
                "http_address": null, "version": null,
            })
        );
        let shard = &shown["groups"][1];
        assert_eq!(
            (&shard["group"], &shard["leader"], &shard["term"]),
            (&json!("shard-0"), &json!(1), &json!(3))
        );
        let lags: Vec<&Value> = shard["replicas"]
            .as_array()
            .unwrap()
            .iter()
            .map(|replica| &replica["lag"])
            .collect();
        assert_eq!(lags, [&json!(0), &json!(0), &json!(5)]);
    }

    #[test]
    fn a_node_that_went_is_named_with_what_it_led() {
        let mut facts = facts();
        facts.asked = 2;
        facts.reports.insert(1, None);
        assert_eq!(
            problems(&facts),
            [
                "node 1 does not answer node 2",
                "shard-0 has no leader that answers (node 1 led it last)"
            ]
        );
        facts.admitted.insert(1, (10, false));
        // The others have elected.
        for node in [2, 3] {
            facts.reports.get_mut(&node).unwrap().as_mut().unwrap().groups[1] = replica(SHARD, node, Some(3), 4);
        }
        assert_eq!(problems(&facts), ["node 1 is down"]);
        assert_eq!(document(&facts)["unanswered"], json!([1]));
        facts.admitted.remove(&1);
        assert_eq!(problems(&facts), ["node 1 was never admitted"]);
    }

    #[test]
    fn without_a_leader_of_meta_the_leases_are_unknown() {
        let mut facts = facts();
        for report in facts.reports.values_mut().flatten() {
            report.groups[0] = replica(GroupId::META, report.node, None, 5);
            report.leases = None;
        }
        let problems = problems(&facts);
        assert_eq!(problems[0], "meta has no leader");
        assert!(problems[1].contains("may be old"), "{problems:?}");
        let shown = document(&facts);
        assert_eq!(shown["nodes"][0]["lease_left_ms"], Value::Null);
        assert_eq!(shown["groups"][0]["replicas"][0]["lag"], Value::Null);
    }

    #[test]
    fn a_lease_of_an_earlier_incarnation_is_not_shown() {
        let mut facts = facts();
        facts.admitted.insert(3, (31, true));
        assert_eq!(document(&facts)["nodes"][2]["lease_left_ms"], Value::Null);
    }

    #[test]
    fn paused_nodes_and_low_disks_are_problems() {
        let mut facts = facts();
        let third = facts.reports.get_mut(&3).unwrap().as_mut().unwrap();
        third.serving = Serving::Paused;
        third.disk_low = true;
        assert_eq!(
            problems(&facts),
            [
                "node 3 serves no clients: it is paused",
                "node 3 has little free disk: publishes are refused"
            ]
        );
    }
}
