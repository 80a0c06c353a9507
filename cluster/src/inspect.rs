//! What operators and fault tests look at, and the few things they may do to one group.
//!
//!     inspect()      this node and its groups as they are now, from memory
//!     inspect_all()  the same of every node, asked over the links; who does not answer is named
//!     contents · force_snapshot · transfer_leader       one group, by hand
//!
//! Nothing here decides anything: what a node reports of itself may be old when it arrives.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lontra_storage::digest::{Contents, contents};
use lontra_storage::encoding::{DecodeError, Reader, Writer};
use lontra_storage::ids::{GroupId, Incarnation, NodeId, Offset, SessionId, ShardId};
use lontra_storage::keys;
use lontra_storage::message::LogTime;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use tokio::time::Instant;

use crate::clock::boot_time;
use crate::control::{ASK_MAX, RETRY_WAIT};
use crate::group::Group;
use crate::lease::Serving;
use crate::link::Lane;
use crate::requests;
use crate::{Cluster, Inner};

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReport {
    pub node: NodeId,
    /// 0 while not admitted.
    pub incarnation: Incarnation,
    pub serving: Serving,
    pub disk_low: bool,
    /// What the node part wanted told ([`Cluster::set_about`]); empty if nothing.
    pub about: Bytes,
    pub groups: Vec<GroupReport>,
    /// Of every node that asked this one for its lease; `None` unless this node leads meta.
    pub leases: Option<Vec<LeaseReport>>,
}

/// A node's lease as the meta leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseReport {
    pub node: NodeId,
    pub incarnation: Incarnation,
    /// Since the last grant.
    pub age: Duration,
    /// 0 once it has run out.
    pub left: Duration,
    pub disk_low: bool,
}

/// One group as one replica of it stands. Indexes are 0 where there is none yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupReport {
    pub group: GroupId,
    pub role: Role,
    pub term: u64,
    /// Whom this replica takes for the leader.
    pub leader: Option<NodeId>,
    pub last_log: u64,
    pub committed: u64,
    pub applied: u64,
    /// openraft's snapshot: the last checkpoint, or, until the first one after a restart, what was applied again by then.
    pub snapshot: u64,
    /// The log begins behind it.
    pub purged: u64,
    pub members: Vec<NodeId>,
    /// How far each member's log matches this one's; `None` unless this replica leads.
    pub matched: Option<BTreeMap<NodeId, u64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Leader,
    Follower,
    Candidate,
    Learner,
    Stopped,
}

/// Where a replica stands after [`Cluster::force_snapshot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshotted {
    pub snapshot: u64,
    pub purged: u64,
}

/// Why something by hand was not done.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error("no group {name} in this cluster: there are meta and shard-0 to shard-{last}")]
    NoSuchGroup { name: String, last: u16 },
    #[error("node {node} holds no replica of {group}: ask one of the nodes {holders:?}")]
    NotHere {
        node: NodeId,
        group: GroupId,
        holders: Vec<NodeId>,
    },
    #[error("the rows of {group} cannot be read: {source}")]
    Read { group: GroupId, source: io::Error },
    #[error("the tables cannot be made durable, and the node stops: {source}")]
    Checkpoint { source: io::Error },
    #[error("{group} made no snapshot up to {applied} within {waited:?} (it is at {snapshot}): try again")]
    NoSnapshot {
        group: GroupId,
        applied: u64,
        snapshot: u64,
        waited: Duration,
    },
    #[error("node {to} is no member of {group}: leadership can go to one of {members:?}")]
    NotMember {
        group: GroupId,
        to: NodeId,
        members: Vec<NodeId>,
    },
    #[error("{group} has no leader that could hand over: wait for one (more than half of {members:?} must be up)")]
    NoLeader { group: GroupId, members: Vec<NodeId> },
    #[error(
        "{group} is not led by node {to} after {waited:?} but by {}: is node {to} up, and has it the whole log?",
        leader.map_or("nobody".to_owned(), |leader| format!("node {leader}"))
    )]
    NotMoved {
        group: GroupId,
        to: NodeId,
        leader: Option<NodeId>,
        waited: Duration,
    },
}

impl Cluster {
    /// Tells whoever inspects this node a few bytes more; the first call counts.
    pub fn set_about(&self, about: Bytes) {
        let _ = self.inner.about.set(about);
    }

    /// The name that all nodes share.
    pub fn name(&self) -> &str {
        &self.inner.config.name
    }

    /// Log time of the control plane now: what session expiry is counted on.
    pub fn meta_time(&self) -> LogTime {
        self.inner.meta.clock.now()
    }

    /// Every node of the cluster with the address of its cluster listener.
    pub fn members(&self) -> &BTreeMap<NodeId, String> {
        &self.inner.config.members
    }

    /// The group of this name (`meta`, `shard-3`).
    ///
    /// # Errors
    /// [`InspectError::NoSuchGroup`].
    pub fn group_named(&self, name: &str) -> Result<GroupId, InspectError> {
        let shard = |name: &str| name.strip_prefix("shard-")?.parse().ok().map(ShardId);
        let known = match name {
            "meta" => Some(GroupId::META),
            _ => shard(name)
                .filter(|shard| shard.0 < self.inner.shards.shard_count())
                .map(GroupId::shard),
        };
        known.ok_or_else(|| InspectError::NoSuchGroup {
            name: name.to_owned(),
            last: self.inner.shards.shard_count().saturating_sub(1),
        })
    }

    /// This node and its groups as they are now.
    pub fn inspect(&self) -> NodeReport {
        self.inner.inspect()
    }

    /// Every node's report by id; `None` for one that did not answer within a second.
    pub async fn inspect_all(&self) -> BTreeMap<NodeId, Option<NodeReport>> {
        let asked = self.inner.config.members.keys().map(|node| async move {
            if *node == self.node() {
                return (*node, Some(self.inspect()));
            }
            (*node, self.inner.inspect_peer(*node).await)
        });
        futures_util::future::join_all(asked).await.into_iter().collect()
    }

    /// Digest and number of all rows of a group's replica here. Reads all of them.
    ///
    /// # Errors
    /// [`InspectError::NotHere`], [`InspectError::Read`].
    pub async fn contents(&self, group: GroupId) -> Result<Contents, InspectError> {
        let tables = self.inner.replica(group)?.tables.clone();
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || runtime.block_on(contents(&tables)))
            .await
            .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))
            .map_err(|source| InspectError::Read { group, source })
    }

    /// How many entries the queue of a session has in each shard that this node holds, as far as [`PENDING_COUNTED`].
    ///
    /// # Errors
    /// [`InspectError::Read`].
    pub async fn pending(&self, session: SessionId) -> Result<BTreeMap<ShardId, usize>, InspectError> {
        let inner = self.inner.clone();
        let count = move || {
            let mut counts = BTreeMap::new();
            for (shard, replica) in &inner.groups {
                let (start, end) = (
                    keys::pending(session, Offset(0)),
                    keys::pending(session, Offset(u64::MAX)),
                );
                let rows = replica.tables.scan(&start, &end, PENDING_COUNTED);
                let group = replica.id;
                let rows = rows.map_err(|source| InspectError::Read { group, source })?;
                counts.insert(*shard, rows.len());
            }
            Ok(counts)
        };
        tokio::task::spawn_blocking(count)
            .await
            .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))
    }

    /// Makes the tables durable now, and purges the log of a group's replica here up to what they show. A replica that
    /// lacks what was purged is sent a snapshot.
    ///
    /// # Errors
    /// [`InspectError::NotHere`], [`InspectError::Checkpoint`], [`InspectError::NoSnapshot`].
    pub async fn force_snapshot(&self, group: GroupId) -> Result<Snapshotted, InspectError> {
        let replica = self.inner.replica(group)?;
        let applied = replica.applied.current();
        let checkpoint = self.inner.storage.checkpoint().await;
        checkpoint.map_err(|source| InspectError::Checkpoint { source })?;
        // openraft ignores what is asked while it builds one already: asked again until it has come.
        let has_snapshot = replica.asked_until(
            |report| report.snapshot >= applied,
            || async { replica.raft.trigger().snapshot().await.is_ok() },
        );
        let report = has_snapshot.await;
        if report.snapshot < applied {
            return Err(InspectError::NoSnapshot {
                group,
                applied,
                snapshot: report.snapshot,
                waited: ACT_MAX,
            });
        }
        let upto = report.snapshot;
        // A leader keeps what it is just sending: then less is purged than asked for, and the answer says so.
        let report = replica
            .asked_until(
                |report| report.purged >= upto,
                || async { replica.raft.trigger().purge_log(upto).await.is_ok() },
            )
            .await;
        Ok(Snapshotted {
            snapshot: report.snapshot,
            purged: report.purged,
        })
    }

    /// Hands the leadership of a group to `to`, whoever leads it now; answers the leader when this node knows it.
    ///
    /// # Errors
    /// [`InspectError::NotHere`], [`InspectError::NotMember`], [`InspectError::NoLeader`], [`InspectError::NotMoved`].
    pub async fn transfer_leader(&self, group: GroupId, to: NodeId) -> Result<NodeId, InspectError> {
        let replica = self.inner.replica(group)?;
        let members = replica.report().members;
        if !members.contains(&to) {
            return Err(InspectError::NotMember { group, to, members });
        }
        let deadline = Instant::now() + ACT_MAX;
        loop {
            match replica.leader() {
                Some(leader) if leader == to => return Ok(to),
                Some(leader) => self.inner.ask_transfer(replica, leader, to).await,
                None => {}
            }
            // An election's time to see the new leader here.
            let moved = replica.until(|report| report.leader == Some(to), ASK_MAX).await;
            if moved.leader == Some(to) {
                return Ok(to);
            }
            if Instant::now() >= deadline {
                return Err(match moved.leader {
                    None => InspectError::NoLeader { group, members },
                    leader => InspectError::NotMoved {
                        group,
                        to,
                        leader,
                        waited: ACT_MAX,
                    },
                });
            }
        }
    }
}

impl Inner {
    fn replica(&self, group: GroupId) -> Result<&Group, InspectError> {
        self.group(group).ok_or_else(|| InspectError::NotHere {
            node: self.config.node,
            group,
            holders: match group.as_shard() {
                Some(shard) => self.shards.replicas(shard).collect(),
                None => self.config.members.keys().copied().collect(),
            },
        })
    }

    pub(crate) fn inspect(&self) -> NodeReport {
        let groups = std::iter::once(&self.meta).chain(self.groups.values());
        NodeReport {
            node: self.config.node,
            incarnation: self.lease.incarnation(),
            serving: self.lease.serving(),
            disk_low: self.is_disk_low(),
            about: self.about.get().cloned().unwrap_or_default(),
            groups: groups.map(Group::report).collect(),
            leases: self.meta.is_leader().then(|| self.lease_reports()),
        }
    }

    fn lease_reports(&self) -> Vec<LeaseReport> {
        let now = boot_time();
        let renewed = self.renewed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let reports = renewed.iter().map(|(node, known)| {
            let age = now.saturating_sub(known.granted_at);
            LeaseReport {
                node: *node,
                incarnation: known.incarnation,
                age,
                left: self.config.lease.saturating_sub(age),
                disk_low: known.disk_low,
            }
        });
        reports.collect()
    }

    async fn inspect_peer(&self, peer: NodeId) -> Option<NodeReport> {
        let links = self.links.get().filter(|links| links.is_up(peer))?;
        let asked = links.request(peer, Lane::Control, requests::INSPECT, Bytes::new(), ASK_MAX);
        NodeReport::decode(&asked.await.ok()?).ok()
    }

    /// Asks the leader, here or there, to hand over; whether it does is seen by who leads afterwards.
    async fn ask_transfer(&self, replica: &Group, leader: NodeId, to: NodeId) {
        if leader == self.config.node {
            self.hand_over(replica.id, to).await;
        } else if let Some(links) = self.links.get() {
            let ask = encode_transfer(replica.id, to);
            let asked = links.request(leader, Lane::Control, requests::HAND_OVER, ask, ASK_MAX * 2);
            let _: Result<Bytes, _> = asked.await;
        }
    }

    /// Hands this node's leadership of any group to `to`.
    pub(crate) async fn hand_over(&self, group: GroupId, to: NodeId) -> bool {
        let Some(replica) = self.group(group).filter(|replica| replica.is_leader()) else {
            return false;
        };
        let moved = replica.transfer(to, ASK_MAX).await;
        if moved && group != GroupId::META {
            self.metrics.leader_transferred();
        }
        moved
    }
}

impl Group {
    fn report(&self) -> GroupReport {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let index = |id: &Option<lontra_storage::raft_types::LogId>| id.as_ref().map_or(0, |id| id.index);
        GroupReport {
            group: self.id,
            role: match metrics.state {
                ServerState::Leader => Role::Leader,
                ServerState::Follower => Role::Follower,
                ServerState::Candidate => Role::Candidate,
                ServerState::Learner => Role::Learner,
                ServerState::Shutdown => Role::Stopped,
            },
            term: metrics.current_term,
            leader: metrics.current_leader,
            last_log: metrics.last_log_index.unwrap_or(0),
            committed: index(&metrics.local_committed),
            applied: self.applied.current(),
            snapshot: index(&metrics.snapshot),
            purged: index(&metrics.purged),
            members: metrics.membership_config.membership().voter_ids().collect(),
            matched: metrics
                .replication
                .as_ref()
                .map(|matched| matched.iter().map(|(node, id)| (*node, index(id))).collect()),
        }
    }

    /// The first report that `wanted` takes; the last one seen after `limit`.
    async fn until(&self, wanted: impl Fn(&GroupReport) -> bool, limit: Duration) -> GroupReport {
        let mut metrics = self.raft.metrics();
        let deadline = Instant::now() + limit;
        loop {
            let report = self.report();
            let changed = tokio::time::timeout_at(deadline, metrics.changed());
            if wanted(&report) || !matches!(changed.await, Ok(Ok(()))) {
                return report;
            }
        }
    }

    /// As [`Group::until`], asking for it now and then.
    async fn asked_until<F>(&self, wanted: impl Fn(&GroupReport) -> bool, ask: impl Fn() -> F) -> GroupReport
    where
        F: Future<Output = bool>,
    {
        let deadline = Instant::now() + ACT_MAX;
        loop {
            let asked = ask().await;
            let report = self.until(&wanted, RETRY_WAIT * 8).await;
            if wanted(&report) || !asked || Instant::now() >= deadline {
                return report;
            }
        }
    }
}

impl NodeReport {
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(1024);
        let serving = SERVING.iter().position(|serving| *serving == self.serving);
        writer
            .var(self.node)
            .var(self.incarnation.0)
            .u8(serving.unwrap_or_default() as u8)
            .bool(self.disk_low)
            .bytes(&self.about)
            .var(self.groups.len() as u64);
        for group in &self.groups {
            group.write(&mut writer);
        }
        writer.option(self.leases.as_ref(), |writer, leases| {
            writer.var(leases.len() as u64);
            for lease in leases {
                lease.write(writer);
            }
        });
        writer.finish()
    }

    /// # Errors
    /// The bytes are torn.
    pub fn decode(payload: &Bytes) -> Result<NodeReport, DecodeError> {
        let mut reader = Reader::new("node report", payload);
        Ok(NodeReport {
            node: reader.var()?,
            incarnation: Incarnation(reader.var()?),
            serving: pick(&SERVING, &mut reader)?,
            disk_low: reader.bool()?,
            about: reader.bytes()?,
            groups: list(&mut reader, GroupReport::read)?,
            leases: reader.option(|reader| list(reader, LeaseReport::read))?,
        })
    }
}

impl LeaseReport {
    fn write(&self, writer: &mut Writer) {
        writer
            .var(self.node)
            .var(self.incarnation.0)
            .var(self.age.as_millis() as u64)
            .var(self.left.as_millis() as u64)
            .bool(self.disk_low);
    }

    fn read(reader: &mut Reader<'_>) -> Result<LeaseReport, DecodeError> {
        Ok(LeaseReport {
            node: reader.var()?,
            incarnation: Incarnation(reader.var()?),
            age: Duration::from_millis(reader.var()?),
            left: Duration::from_millis(reader.var()?),
            disk_low: reader.bool()?,
        })
    }
}

impl GroupReport {
    fn write(&self, writer: &mut Writer) {
        let role = ROLES.iter().position(|role| *role == self.role);
        writer.var(u64::from(self.group.0)).u8(role.unwrap_or_default() as u8);
        writer.var(self.term).var(self.leader.unwrap_or(0));
        writer.var(self.last_log).var(self.committed).var(self.applied);
        writer.var(self.snapshot).var(self.purged);
        writer.var(self.members.len() as u64);
        for member in &self.members {
            writer.var(*member);
        }
        writer.option(self.matched.as_ref(), |writer, matched| {
            writer.var(matched.len() as u64);
            for (node, index) in matched {
                writer.var(*node).var(*index);
            }
        });
    }

    fn read(reader: &mut Reader<'_>) -> Result<GroupReport, DecodeError> {
        Ok(GroupReport {
            group: GroupId(reader.var32()?),
            role: pick(&ROLES, reader)?,
            term: reader.var()?,
            leader: Some(reader.var()?).filter(|leader| *leader != 0),
            last_log: reader.var()?,
            committed: reader.var()?,
            applied: reader.var()?,
            snapshot: reader.var()?,
            purged: reader.var()?,
            members: list(reader, Reader::var)?,
            matched: reader
                .option(|reader| list(reader, |reader| Ok((reader.var()?, reader.var()?))))?
                .map(|matched| matched.into_iter().collect()),
        })
    }
}

fn list<'a, T>(
    reader: &mut Reader<'a>,
    read: impl Fn(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let count = reader.count()?;
    (0..count).map(|_| read(reader)).collect()
}

fn pick<T: Copy>(among: &[T], reader: &mut Reader<'_>) -> Result<T, DecodeError> {
    let at = usize::from(reader.u8()?);
    among.get(at).copied().ok_or_else(|| reader.error())
}

fn encode_transfer(group: GroupId, to: NodeId) -> Bytes {
    let mut writer = Writer::with_capacity(16);
    writer.var(u64::from(group.0)).var(to);
    writer.finish()
}

pub(crate) fn decode_transfer(payload: &Bytes) -> Result<(GroupId, NodeId), DecodeError> {
    let mut reader = Reader::new("transfer", payload);
    Ok((GroupId(reader.var32()?), reader.var()?))
}

/// Answers what the links bring of this file's requests.
pub(crate) async fn answer(inner: Arc<Inner>, kind: u8, payload: Bytes) -> Option<Bytes> {
    match kind {
        requests::INSPECT => Some(inner.inspect().encode()),
        requests::HAND_OVER => {
            let (group, to) = decode_transfer(&payload).ok()?;
            let moved = inner.hand_over(group, to).await;
            Some(requests::encode_number(u64::from(moved)))
        }
        _ => None,
    }
}

/// By their number on the wire.
const SERVING: [Serving; 4] = [Serving::Starting, Serving::Serving, Serving::Paused, Serving::Refusing];
const ROLES: [Role; 5] = [
    Role::Leader,
    Role::Follower,
    Role::Candidate,
    Role::Learner,
    Role::Stopped,
];
/// Longer queues are counted up to here: a look must not cost what a queue costs.
pub const PENDING_COUNTED: usize = 1000;
/// A disk that flushes slowly, or two elections.
const ACT_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_encoding_and_no_cut_of_it_does() {
        let group = |id, role, matched| GroupReport {
            group: GroupId(id),
            role,
            term: 3,
            leader: (id == 0).then_some(2),
            last_log: 900,
            committed: 899,
            applied: 898,
            snapshot: 300,
            purged: 236,
            members: vec![1, 2, 3],
            matched,
        };
        let report = NodeReport {
            node: 2,
            incarnation: Incarnation(4096),
            serving: Serving::Paused,
            disk_low: true,
            about: Bytes::from_static(b"{}"),
            groups: vec![
                group(0, Role::Leader, Some(BTreeMap::from([(1, 900), (2, 900), (3, 0)]))),
                group(1, Role::Candidate, None),
            ],
            leases: Some(vec![LeaseReport {
                node: 3,
                incarnation: Incarnation(8192),
                age: Duration::from_millis(2100),
                left: Duration::ZERO,
                disk_low: false,
            }]),
        };
        let bytes = report.encode();
        assert_eq!(NodeReport::decode(&bytes).unwrap(), report);
        for length in 0..bytes.len() {
            assert!(NodeReport::decode(&bytes.slice(..length)).is_err(), "cut at {length}");
        }
        assert_eq!(
            decode_transfer(&encode_transfer(GroupId(7), 3)).unwrap(),
            (GroupId(7), 3)
        );
    }
}
