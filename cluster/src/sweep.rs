//! Level-triggered upkeep of the shards that this node leads: what is left of the dead leaves, what is over ends.
//!
//! - rows of sessions and groups that are gone for good: an id is made of the meta index that created it, and is never
//!   reused; dead means that this node has applied that index, and the control plane knows no such session or group;
//! - incarnations that are Down are fenced off;
//! - retained messages expire in log time; replays and wills that nobody asks for any more are forgotten;
//! - queues of sessions that nobody serves are kept within their limits ([`crate::limits`]);
//! - what members of shared groups were assigned goes back when their connection ended ([`crate::shared`]).
//!
//! Nothing is proposed without a lease. (DESIGN §5)

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lontra_storage::command::{MetaOp, OperationResult, ShardOperation};
use lontra_storage::ids::{MetaIndex, SessionId, ShardId};
use lontra_storage::shard::{
    SESSION_KINDS, is_fenced, next_retained_expiry, next_session, remembered_replays, remembered_wills,
};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::Inner;
use crate::control::ASK_MAX;
use crate::group::Group;
use crate::limits::Walk;
use crate::publisher::ShardRequest;
use crate::shared::ACKNOWLEDGED_MAX;
use crate::wills;

/// Runs for the life of the node; acts in the shards that it leads, while it may serve.
pub(crate) async fn run(inner: Arc<Inner>) {
    let mut scans = HashMap::<ShardId, Scan>::new();
    let mut scan_at = Instant::now() + INTERVAL;
    let mut due_at = None::<Instant>;
    loop {
        let wake_at = due_at.map_or(scan_at, |due| scan_at.min(due + GATHER));
        if tokio::time::timeout_at(wake_at, inner.upkeep.notified()).await.is_ok() {
            // What ends together is swept together.
            tokio::time::sleep(GATHER).await;
        }
        let is_scan = Instant::now() >= scan_at;
        if is_scan {
            scan_at = Instant::now() + INTERVAL;
        }
        let (ended, next) = inner.ended.take();
        due_at = next;
        for (shard, group) in inner.groups.iter().filter(|(_, group)| group.is_leader()) {
            if !inner.lease.is_valid() {
                break;
            }
            let scan = is_scan.then(|| scans.entry(*shard).or_default());
            match find_work(&inner, *shard, group, &ended, scan) {
                Ok((work, ended)) => {
                    if !ended.is_empty() {
                        let _ = inner.change_meta("queue limit", &ended, ASK_MAX).await;
                    }
                    if inner.do_upkeep(*shard, work).await {
                        // More of the same is left.
                        scan_at = Instant::now();
                    }
                }
                Err(error) => tracing::error!(shard = shard.0, %error, "a shard cannot be swept"),
            }
            tokio::task::yield_now().await;
        }
    }
}

/// What there is to do in a shard; at most a page of each kind.
fn find_work(
    inner: &Inner,
    shard: ShardId,
    group: &Group,
    ended: &[SessionId],
    mut scan: Option<&mut Scan>,
) -> std::io::Result<(Vec<ShardOperation>, Vec<MetaOp>)> {
    let mut work = ended_sessions(inner, group, ended)?;
    // The rest has time, and costs a look at many rows.
    if let Some(scan) = &mut scan {
        work.extend(dead_sessions(inner, group, scan)?);
    }
    // A session may have rows of several kinds: one sweep takes all.
    work.dedup();
    work.extend(dead_incarnations(inner, group)?);
    let Some(scan) = scan else {
        return Ok((work, Vec::new()));
    };
    if next_retained_expiry(&group.tables)?.is_some_and(|at| at <= group.clock.now()) {
        work.push(ShardOperation::ExpireRetained { limit: EXPIRE_LIMIT });
    }
    work.extend(finished_replays(inner, group, scan)?);
    work.extend(published_wills(inner, group)?);
    work.extend(inner.lost_assignments(shard)?);
    let queues = inner.walk_queues(shard, group, &mut scan.queues)?;
    work.extend(queues.operations);
    Ok((work, queues.ended))
}

impl Inner {
    /// Whether a session or shared group is gone for good, by an index that was read before its rows were.
    fn is_dead(&self, session: SessionId, applied: u64) -> bool {
        let meta = self.meta_view.read();
        let is_known = meta.session(session).is_some() || meta.share_group(session).is_some();
        !is_known && session.0 / SessionId::PER_ENTRY <= applied
    }
}

/// Those that meta told of, if they have rows in the shard.
fn ended_sessions(inner: &Inner, group: &Group, ended: &[SessionId]) -> std::io::Result<Vec<ShardOperation>> {
    let applied = inner.meta.applied.current();
    let mut dead = Vec::new();
    for session in ended {
        let before = SessionId(session.0.saturating_sub(1));
        for kind in SESSION_KINDS {
            let has_rows = next_session(&group.tables, kind, Some(before))? == Some(*session);
            if has_rows && inner.is_dead(*session, applied) {
                dead.push(ShardOperation::Sweep { session: *session });
                break;
            }
        }
    }
    Ok(dead)
}

/// Those that a look at the next rows finds.
fn dead_sessions(inner: &Inner, group: &Group, scan: &mut Scan) -> std::io::Result<Vec<ShardOperation>> {
    let mut dead = Vec::new();
    // Read before the sessions are looked up: what was created later is not judged.
    let applied = inner.meta.applied.current();
    for (kind, after) in SESSION_KINDS.into_iter().zip(&mut scan.after) {
        for _ in 0..SESSIONS_PER_ROUND {
            *after = next_session(&group.tables, kind, *after)?;
            let Some(session) = *after else { break };
            if inner.is_dead(session, applied) {
                dead.push(ShardOperation::Sweep { session });
            }
        }
    }
    Ok(dead)
}

/// How far the looks at a shard's rows have come.
#[derive(Default)]
struct Scan {
    queues: Walk,
    /// By kind of [`SESSION_KINDS`].
    after: [Option<SessionId>; SESSION_KINDS.len()],
    replays: Option<(SessionId, Box<str>)>,
}

/// Sessions and groups that ended lately. Bounded: what does not fit is found by the scan.
///
/// What a member acknowledged before it ended may still be on its way to a shard, and what it did not goes back to its
/// group: it is swept a while later, or another member would get an acknowledged message too.
#[derive(Default)]
pub(crate) struct Ended {
    /// Guards who ended, and when.
    sessions: Mutex<VecDeque<(SessionId, Instant)>>,
}

impl Ended {
    pub fn add(&self, session: SessionId) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() < ENDED_MAX {
            sessions.push_back((session, Instant::now()));
        }
    }

    /// Those that are due, and when the next one is.
    fn take(&self) -> (Vec<SessionId>, Option<Instant>) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let mut due = Vec::new();
        while let Some((session, at)) = sessions.front().copied() {
            if at + ACKNOWLEDGED_MAX > now {
                return (due, Some(at + ACKNOWLEDGED_MAX));
            }
            due.push(session);
            sessions.pop_front();
        }
        (due, None)
    }
}

/// Nodes that are Down and not yet fenced off here.
fn dead_incarnations(inner: &Inner, group: &Group) -> std::io::Result<Vec<ShardOperation>> {
    let down: Vec<_> = {
        let meta = inner.meta_view.read();
        let down = meta.nodes().filter(|(_, record)| !record.up);
        down.map(|(node, record)| (node, record.incarnation)).collect()
    };
    let mut fences = Vec::new();
    for (node, incarnation) in down {
        if !is_fenced(&group.tables, node, incarnation)? {
            fences.push(ShardOperation::Fence { node, incarnation });
        }
    }
    Ok(fences)
}

/// Replays that meta has recorded as done, or whose subscription is gone or newer.
fn finished_replays(inner: &Inner, group: &Group, scan: &mut Scan) -> std::io::Result<Vec<ShardOperation>> {
    let applied = inner.meta.applied.current();
    let replays = remembered_replays(&group.tables, scan.replays.take(), REMEMBERED_MAX)?;
    if replays.len() >= REMEMBERED_MAX {
        // Those of absent sessions may stand for long: the next round goes on behind them.
        scan.replays = replays.last().map(|(session, filter, _)| (*session, filter.clone()));
    }
    let meta = inner.meta_view.read();
    let is_finished = |(session, filter, version): &(SessionId, Box<str>, MetaIndex)| {
        let owed = meta
            .session(*session)
            .and_then(|session| session.retained_owed.get(filter));
        version.0 <= applied && owed != Some(version)
    };
    let finished = replays.into_iter().filter(is_finished);
    Ok(finished
        .map(|(session, filter, version)| ShardOperation::ForgetReplay {
            session,
            filter,
            version,
        })
        .collect())
}

/// Wills that meta has recorded as published, long enough ago that no append of them can be under way.
fn published_wills(inner: &Inner, group: &Group) -> std::io::Result<Option<ShardOperation>> {
    let now = group.clock.now();
    let remembered = remembered_wills(&group.tables, REMEMBERED_MAX)?;
    let meta = inner.meta_view.read();
    let wills: Vec<_> = remembered
        .into_iter()
        .filter(|(session, epoch, appended)| {
            let is_old = appended.0 + wills::REMEMBERED.as_millis() as u64 <= now.0;
            is_old && meta.scheduled_will(*session, *epoch).is_none()
        })
        .map(|(session, epoch, _)| (session, epoch))
        .collect();
    Ok((!wills.is_empty()).then_some(ShardOperation::ForgetWills { wills }))
}

impl Inner {
    /// Proposes upkeep and waits for it; whether more of the same is left.
    pub(crate) async fn do_upkeep(&self, shard: ShardId, work: Vec<ShardOperation>) -> bool {
        let mut told = Vec::new();
        for operation in work {
            let (reply, result) = oneshot::channel();
            self.send(shard, ShardRequest::Upkeep { operation, reply });
            told.push(result);
        }
        let mut more = false;
        for result in told {
            match tokio::time::timeout(UPKEEP_MAX, result).await {
                Ok(Ok(result)) => more |= result == Some(OperationResult::More),
                // The shard has no leader that answers, or the incarnation ended: the next round looks again.
                Ok(Err(_)) | Err(_) => return false,
            }
        }
        more
    }
}

const INTERVAL: Duration = Duration::from_secs(2);
const GATHER: Duration = Duration::from_millis(50);
/// Rows looked at per round, shard and kind.
const SESSIONS_PER_ROUND: usize = 200;
const ENDED_MAX: usize = 10_000;
const EXPIRE_LIMIT: u32 = 1000;
const REMEMBERED_MAX: usize = 1000;
const UPKEEP_MAX: Duration = Duration::from_secs(5);
