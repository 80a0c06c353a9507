//! Shared groups: each shard's leader gives waiting messages to connected members that have room for them. (P8)
//!
//! ```text
//!   apply: messages wait ─▶ WaitingGroups ─▶ one task per (shard, group), on the leader:
//!       read the queue ─▶ offer to the nodes with members ─▶ credit ─▶ Strategy ─▶ Assign ─▶ what was not used is free again
//!   members gone ─▶ sweep ─▶ Unassign: QoS 1 waits in the group again [MQTT-4.8.2-5]
//! ```
//!
//! Nothing is remembered but hints: a new leader offers what waits. Assigning one message twice has no effect the second
//! time (`take` in the shard), so two leaders do no harm.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lontra_storage::command::{Assignment, ShardOperation};
use lontra_storage::ids::{NodeId, Offset, SessionEpoch, SessionId, ShardId};
use lontra_storage::meta::SubscriptionOptions;
use lontra_storage::shard::{Waiting, read_assigned, read_waiting};
use tokio::sync::{Notify, oneshot};

use crate::Inner;
use crate::control::ASK_MAX;
use crate::link::Lane;
use crate::local::{Credit, Offer};
use crate::publisher::ShardRequest;
use crate::requests;

/// Which member gets a message. [MQTT-4.8.2] leaves it to the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    Random,
    /// One after the other.
    #[default]
    RoundRobin,
    /// Always the same, as long as it takes more.
    Sticky,
    /// One on the publisher's node, if there is one with room.
    Local,
    /// By the publisher: messages of one client go to one member, as long as members stay.
    HashClientId,
    /// By the topic.
    HashTopic,
    /// The one with the fewest unacknowledged.
    LeastLoaded,
}

/// Where apply tells that messages wait. Shared by all shards of a node.
#[derive(Default)]
pub struct WaitingGroups {
    /// Guards what is known of the queues.
    state: Mutex<Known>,
    wake: Notify,
}

#[derive(Default)]
struct Known {
    waiting: BTreeSet<(ShardId, SessionId)>,
    running: HashSet<(ShardId, SessionId)>,
    /// Everything up to here was assigned: the queue is read from behind it.
    assigned_upto: HashMap<(ShardId, SessionId), Offset>,
    /// Whose turn it is.
    turns: HashMap<(ShardId, SessionId), u64>,
    /// Members that nobody serves, and what was found of them.
    unserved: HashMap<(ShardId, SessionId), Unserved>,
}

/// The search for what a member was assigned under a connection that has ended.
#[derive(Clone, Copy, Debug)]
struct Unserved {
    epoch: SessionEpoch,
    since: Instant,
    /// Where the search goes on.
    after: Offset,
    /// Something was found since it began at the front.
    found: bool,
    /// How often it came to the end and had found nothing.
    clean: u8,
}

impl Strategy {
    /// Whether a message has one member to wait for.
    fn is_hash(self) -> bool {
        matches!(self, Strategy::HashClientId | Strategy::HashTopic)
    }
}

impl WaitingGroups {
    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Messages wait that did not before.
    pub fn add(&self, shard: ShardId, groups: &[SessionId]) {
        let mut known = self.known();
        known.waiting.extend(groups.iter().map(|group| (shard, *group)));
        drop(known);
        self.wake.notify_one();
    }

    /// Queues to be served from here on. One that is being served stays: it is looked at again when that has ended.
    fn take_ready(&self, leads: impl Fn(ShardId) -> bool) -> Vec<(ShardId, SessionId)> {
        let mut known = self.known();
        let mut ready = Vec::new();
        for queue in std::mem::take(&mut known.waiting) {
            if !leads(queue.0) {
                continue;
            }
            if known.running.insert(queue) {
                ready.push(queue);
            } else {
                known.waiting.insert(queue);
            }
        }
        ready
    }

    /// Nobody serves the queue any more; whether it should be.
    fn is_waiting_still(&self, queue: (ShardId, SessionId)) -> bool {
        let mut known = self.known();
        known.running.remove(&queue);
        known.waiting.contains(&queue)
    }

    /// The shards of a group begin with different members: few messages each would all go to the first.
    fn turn(&self, queue: (ShardId, SessionId)) -> u64 {
        let mut known = self.known();
        *known.turns.entry(queue).or_insert(u64::from(queue.0.0))
    }

    /// What became of a round of a queue.
    fn round_ended(&self, queue: (ShardId, SessionId), turn: u64, chosen: usize, assigned: bool, upto: Option<Offset>) {
        let mut known = self.known();
        if assigned {
            known.turns.insert(queue, turn + chosen as u64);
            known.assigned_upto.extend(upto.map(|upto| (queue, upto)));
        } else if chosen > 0 {
            // Not known whether it was applied: look at the whole queue.
            known.assigned_upto.remove(&queue);
        }
    }

    /// A member was assigned something.
    pub fn assigned(&self, shard: ShardId, session: SessionId) {
        if let Some(unserved) = self.known().unserved.get_mut(&(shard, session)) {
            unserved.clean = 0;
        }
    }
}

/// Runs for the life of the node; acts in the shards that it leads, while it may serve.
pub(crate) async fn run(inner: Arc<Inner>) {
    let mut scan_at = tokio::time::Instant::now();
    let mut scanning: Option<tokio::task::JoinHandle<()>> = None;
    loop {
        let _ = tokio::time::timeout_at(scan_at, inner.waiting.wake.notified()).await;
        if scan_at <= tokio::time::Instant::now() {
            scan_at = tokio::time::Instant::now() + SCAN_INTERVAL;
            // One at a time, however long it takes: what is known to wait does not wait for it.
            if scanning.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
                scanning = Some(tokio::spawn(scan(inner.clone())));
            }
        }
        for key in inner.waiting.take_ready(|shard| inner.leads(shard)) {
            let inner = inner.clone();
            tokio::spawn(async move {
                serve_group(&inner, key).await;
                // What came while the last look at the queue was under way.
                if inner.waiting.is_waiting_still(key) {
                    inner.waiting.wake.notify_one();
                }
            });
        }
    }
}

/// Finds queues that nobody told of: leadership came here, a member connected. Also measures the lag. `bounded`: with a hundred
/// thousand groups the thread is others' in between.
async fn scan(inner: Arc<Inner>) {
    let groups: Vec<SessionId> = inner.meta_view.read().share_groups().map(|(id, _)| id).collect();
    for shard in inner.groups.keys().copied() {
        if !inner.leads(shard) {
            let mut known = inner.waiting.known();
            known.assigned_upto.retain(|(at, _), _| *at != shard);
            known.unserved.retain(|(at, _), _| *at != shard);
            drop(known);
            inner.metrics.shared_waiting(shard, 0);
            continue;
        }
        let Some(tables) = inner.groups.get(&shard).map(|group| &group.tables) else {
            continue;
        };
        let mut lag = 0;
        for (at, group) in groups.iter().enumerate() {
            if at % GROUPS_PER_TURN == GROUPS_PER_TURN - 1 {
                tokio::task::yield_now().await;
            }
            let after = inner.waiting.known().assigned_upto.get(&(shard, *group)).copied();
            match lontra_storage::shard::count_waiting(tables, *group, after.unwrap_or_default(), LAG_MAX) {
                Ok(0) => {}
                Ok(count) => {
                    lag += count;
                    inner.waiting.known().waiting.insert((shard, *group));
                }
                Err(error) => tracing::error!(shard = shard.0, %error, "a shared group's queue cannot be read"),
            }
        }
        inner.metrics.shared_waiting(shard, lag);
    }
    inner.waiting.wake.notify_one();
}

/// Assigns what waits in one group, until nothing is left or nobody is there.
async fn serve_group(inner: &Arc<Inner>, (shard, group): (ShardId, SessionId)) {
    let (mut pause, mut limit) = (PAUSE_MIN, ASSIGN_MAX);
    // By hash, what waits in front may wait for a member without room: then what is behind it is looked at.
    let mut behind = None;
    while inner.leads(shard) {
        let Some(tables) = inner.groups.get(&shard).map(|group| group.tables.clone()) else {
            return;
        };
        let after = inner.waiting.known().assigned_upto.get(&(shard, group)).copied();
        let from = behind.or(after).unwrap_or_default();
        let waiting = match read_waiting(&tables, group, from, limit, ASSIGN_BYTES) {
            Ok(waiting) => waiting,
            Err(error) => {
                tracing::error!(shard = shard.0, %error, "a shared group's queue cannot be read");
                return;
            }
        };
        let members = connected_members(inner, group);
        if members.is_empty() || waiting.is_empty() && behind.is_none() {
            // A member that connects is found by the next scan.
            return;
        }
        let candidates = offer_to_all(inner, shard, group, &members, waiting.len() as u32).await;
        let turn = inner.waiting.turn((shard, group));
        let chosen = choose(inner.config.shared_strategy, &waiting, &candidates, turn, |message| {
            inner.publisher_of(message)
        });
        let assigned = assign(inner, shard, group, &waiting, &candidates, &members, &chosen).await;
        offer_over(inner, (shard, group), &candidates, if assigned { &chosen } else { &[] });
        // Everything before the first one that nobody was chosen for.
        let done = chosen
            .iter()
            .enumerate()
            .take_while(|(nth, choice)| *nth == choice.message)
            .count();
        let upto = done
            .checked_sub(1)
            .filter(|_| behind.is_none())
            .map(|last| waiting[last].offset);
        inner
            .waiting
            .round_ended((shard, group), turn, chosen.len(), assigned, upto);
        if assigned {
            (pause, limit) = (PAUSE_MIN, ASSIGN_MAX);
            continue;
        }
        if inner.config.shared_strategy.is_hash() {
            behind = waiting.last().map(|last| last.offset);
            if behind.is_some() {
                continue;
            }
        } else {
            // Few are read again and again.
            limit = PROBE_MAX;
        }
        // Nobody has room: until somebody acknowledges.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// A member that may be assigned messages now.
#[derive(Clone, Debug)]
struct Candidate {
    node: NodeId,
    credit: Credit,
}

type Members = BTreeMap<SessionId, (NodeId, SubscriptionOptions)>;

fn connected_members(inner: &Inner, group: SessionId) -> Members {
    let meta = inner.meta_view.read();
    let Some(group) = meta.share_group(group) else {
        return Members::new();
    };
    let members = group.members.iter().filter_map(|(session, options)| {
        let owner = meta.session(*session)?.owner?;
        Some((*session, (owner.node, *options)))
    });
    members.collect()
}

/// Asks every node with members how many messages they take. Sorted by session.
async fn offer_to_all(
    inner: &Arc<Inner>,
    shard: ShardId,
    group: SessionId,
    members: &Members,
    waiting: u32,
) -> Vec<Candidate> {
    let mut by_node = BTreeMap::<NodeId, Vec<SessionId>>::new();
    for (session, (node, _)) in members {
        by_node.entry(*node).or_default().push(*session);
    }
    let asked = by_node.into_iter().map(|(node, members)| {
        let offer = Offer {
            shard,
            group,
            members,
            waiting,
        };
        async move {
            let credits = if node == inner.config.node {
                inner.local.offer(&offer)
            } else {
                ask(inner, node, &offer).await.unwrap_or_default()
            };
            credits.into_iter().map(move |credit| Candidate { node, credit })
        }
    });
    let mut candidates: Vec<Candidate> = futures_util::future::join_all(asked)
        .await
        .into_iter()
        .flatten()
        .filter(|candidate| members.contains_key(&candidate.credit.session))
        .collect();
    candidates.sort_by_key(|candidate| candidate.credit.session);
    candidates
}

async fn ask(inner: &Inner, node: NodeId, offer: &Offer) -> Option<Vec<Credit>> {
    let payload = requests::encode_offer(offer);
    let asked = inner
        .links
        .get()?
        .request(node, Lane::Data, requests::OFFER, payload, ASK_MAX);
    requests::decode_credits(&asked.await.ok()?).ok()
}

/// Proposes what was chosen; whether it was applied.
async fn assign(
    inner: &Inner,
    shard: ShardId,
    group: SessionId,
    waiting: &[Waiting],
    candidates: &[Candidate],
    members: &Members,
    chosen: &[Choice],
) -> bool {
    if chosen.is_empty() || !inner.lease.is_valid() {
        return false;
    }
    let assignments = chosen.iter().filter_map(|choice| {
        let (message, credit) = (&waiting[choice.message], candidates[choice.candidate].credit);
        let (_, options) = members.get(&credit.session)?;
        Some(Assignment {
            offset: message.offset,
            session: credit.session,
            epoch: credit.epoch,
            qos: options.qos,
            identifier: options.identifier,
        })
    });
    let operation = ShardOperation::Assign {
        group,
        assignments: assignments.collect(),
    };
    let (reply, told) = oneshot::channel();
    inner.send(shard, ShardRequest::Upkeep { operation, reply });
    if told.await.is_err() {
        return false;
    }
    for choice in chosen {
        inner.metrics.shared_assigned(candidates[choice.candidate].node);
    }
    true
}

/// Tells every node what it reserved in vain.
fn offer_over(inner: &Arc<Inner>, (shard, group): (ShardId, SessionId), candidates: &[Candidate], chosen: &[Choice]) {
    let mut unused = BTreeMap::<NodeId, Vec<(SessionId, u32)>>::new();
    for (at, candidate) in candidates.iter().enumerate() {
        let used = chosen.iter().filter(|choice| choice.candidate == at).count() as u32;
        let left = candidate.credit.messages.saturating_sub(used);
        if left > 0 {
            let list = unused.entry(candidate.node).or_default();
            list.push((candidate.credit.session, left));
        }
    }
    for (node, unused) in unused {
        if node == inner.config.node {
            inner.local.offer_over(shard, group, &unused);
        } else if let Some(links) = inner.links.get() {
            let payload = requests::encode_unused(shard, group, &unused);
            let sent = links.request_queued(node, Lane::Data, requests::OFFER_OVER, payload, ASK_MAX);
            // Lost, the next offer replaces what was reserved, or it runs out by itself.
            tokio::spawn(async move {
                let _: Result<Bytes, _> = sent.await;
            });
        }
    }
}

/// Who gets a message: indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Choice {
    message: usize,
    candidate: usize,
}

/// Messages in their order, and whom they go to; ends where nobody has credit left. By hash, messages whose member has
/// none are left out.
fn choose(
    strategy: Strategy,
    waiting: &[Waiting],
    candidates: &[Candidate],
    turn: u64,
    publisher: impl Fn(&Waiting) -> (u64, Option<NodeId>),
) -> Vec<Choice> {
    let mut left: Vec<u32> = candidates.iter().map(|candidate| candidate.credit.messages).collect();
    let mut load: Vec<u32> = candidates.iter().map(|candidate| candidate.credit.load).collect();
    let mut chosen = Vec::new();
    for (nth, message) in waiting.iter().enumerate() {
        let open: Vec<usize> = (0..candidates.len()).filter(|at| left[*at] > 0).collect();
        if open.is_empty() {
            break;
        }
        let by = |number: u64| open[(number % open.len() as u64) as usize];
        let at = match strategy {
            Strategy::Random => by(mix(message.offset.0 ^ turn << 20)),
            // In the order of all candidates, so that one without credit does not shift the turns of the others.
            Strategy::RoundRobin => {
                let first = (turn as usize + nth) % candidates.len();
                (0..candidates.len())
                    .map(|step| (first + step) % candidates.len())
                    .find(|at| left[*at] > 0)
                    .unwrap_or(open[0])
            }
            Strategy::Sticky => open[0],
            Strategy::Local => {
                let (_, node) = publisher(message);
                let near: Vec<usize> = open
                    .iter()
                    .copied()
                    .filter(|at| Some(candidates[*at].node) == node)
                    .collect();
                match near.is_empty() {
                    true => by(turn + nth as u64),
                    false => near[(turn as usize + nth) % near.len()],
                }
            }
            // Over all members, also those without credit now: a message waits for its own.
            Strategy::HashClientId => {
                let at = (mix(publisher(message).0) % candidates.len() as u64) as usize;
                if left[at] == 0 {
                    continue;
                }
                at
            }
            Strategy::HashTopic => {
                let at = (mix(hash(message.message.topic.as_bytes())) % candidates.len() as u64) as usize;
                if left[at] == 0 {
                    continue;
                }
                at
            }
            Strategy::LeastLoaded => open
                .iter()
                .copied()
                .min_by_key(|at| (load[*at], *at))
                .unwrap_or(open[0]),
        };
        left[at] -= 1;
        load[at] += 1;
        chosen.push(Choice {
            message: nth,
            candidate: at,
        });
    }
    chosen
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// splitmix64: neighbours become far apart.
fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30)
        .wrapping_add(0x9e37_79b9_7f4a_7c15)
        .wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

impl Inner {
    pub(crate) fn leads(&self, shard: ShardId) -> bool {
        self.lease.is_valid() && self.groups.get(&shard).is_some_and(|group| group.is_leader())
    }

    /// A hash of the client that published a message, and the node that it is connected to.
    fn publisher_of(&self, waiting: &Waiting) -> (u64, Option<NodeId>) {
        let id = waiting.message.publisher;
        let meta = self.meta_view.read();
        match meta.session(id) {
            Some(session) => (
                hash(session.client_id.as_bytes()),
                session.owner.map(|owner| owner.node),
            ),
            None => (id.0, None),
        }
    }

    /// What members were assigned in a shard under a connection that has ended. What a client acknowledged on it may
    /// still be on its way to the shard: it is waited for, or another member would get the message too.
    pub(crate) fn lost_assignments(&self, shard: ShardId) -> std::io::Result<Vec<ShardOperation>> {
        let Some(tables) = self.groups.get(&shard).map(|group| &group.tables) else {
            return Ok(Vec::new());
        };
        let unserved: BTreeMap<SessionId, SessionEpoch> = {
            let meta = self.meta_view.read();
            let members = meta.share_groups().flat_map(|(_, group)| group.members.keys());
            members
                .filter_map(|member| Some((*member, meta.session(*member)?)))
                .filter(|(_, session)| session.owner.is_none())
                .map(|(member, session)| (member, session.epoch))
                .collect()
        };
        let mut due = Vec::new();
        {
            let mut known = self.waiting.known();
            known
                .unserved
                .retain(|(at, member), search| *at != shard || unserved.get(member) == Some(&search.epoch));
            for (member, epoch) in unserved {
                let search = known.unserved.entry((shard, member)).or_insert(Unserved {
                    epoch,
                    since: Instant::now(),
                    after: Offset(0),
                    found: false,
                    clean: 0,
                });
                if search.since.elapsed() >= ACKNOWLEDGED_MAX && search.clean < CLEAN_TWICE {
                    due.push((member, *search));
                }
            }
        }
        let mut lost = Vec::new();
        for (session, mut search) in due {
            for _ in 0..PAGES_PER_ROUND {
                let (assigned, next) = read_assigned(tables, session, search.after, UNASSIGN_MAX)?;
                let returned = assigned.iter().filter(|entry| entry.qos < 2);
                let offsets: Vec<Offset> = returned.map(|entry| entry.offset).collect();
                search.found |= !offsets.is_empty();
                if !offsets.is_empty() {
                    lost.push(ShardOperation::Unassign { session, offsets });
                }
                let Some(next) = next else {
                    search.clean = if search.found { 0 } else { search.clean + 1 };
                    (search.after, search.found) = (Offset(0), false);
                    break;
                };
                search.after = next;
            }
            self.waiting.known().unserved.insert((shard, session), search);
        }
        Ok(lost)
    }
}

/// Messages per round and group: an entry of the log stays short.
const ASSIGN_MAX: usize = 256;
const ASSIGN_BYTES: usize = 1024 * 1024;
const UNASSIGN_MAX: usize = 128;
/// Pages of [`UNASSIGN_MAX`] entries that one round looks at, of each member that is gone.
const PAGES_PER_ROUND: usize = 16;
/// Enough to see who takes any.
const PROBE_MAX: usize = 16;
const SCAN_INTERVAL: Duration = Duration::from_secs(1);
/// A look at each costs microseconds.
const GROUPS_PER_TURN: usize = 64;
const PAUSE_MIN: Duration = Duration::from_millis(2);
/// A member that takes its time waits for the next message at most as long as it took, or this.
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// An acknowledgement leaves its node within 20 ms, and is applied in well under this while the shard has a leader.
pub(crate) const ACKNOWLEDGED_MAX: Duration = Duration::from_secs(1);
/// The lag of a group in a shard is counted up to here.
const LAG_MAX: usize = 10_000;
/// An assignment that was under way when the member went may come after the first look.
const CLEAN_TWICE: u8 = 2;

#[cfg(test)]
mod tests {
    use lontra_storage::message::{LogTime, Message};

    use super::*;

    fn waiting(count: u64) -> Vec<Waiting> {
        (1..=count)
            .map(|offset| Waiting {
                offset: Offset(offset),
                appended_at: LogTime(1),
                message: Message {
                    topic: format!("t/{}", offset % 5).into(),
                    payload: Bytes::new(),
                    qos: 1,
                    retain: false,
                    publisher: SessionId(offset % 3),
                    expiry_interval: None,
                    properties: Bytes::new(),
                },
            })
            .collect()
    }

    fn candidate(node: NodeId, session: u64, messages: u32, load: u32) -> Candidate {
        let credit = Credit {
            session: SessionId(session),
            epoch: SessionEpoch(1),
            messages,
            load,
        };
        Candidate { node, credit }
    }

    fn chosen(strategy: Strategy, count: u64, candidates: &[Candidate], turn: u64) -> Vec<usize> {
        let publisher = |waiting: &Waiting| (waiting.message.publisher.0, Some(2));
        let chosen = choose(strategy, &waiting(count), candidates, turn, publisher);
        chosen.into_iter().map(|choice| choice.candidate).collect()
    }

    #[test]
    fn every_strategy_stays_within_the_credit_and_takes_from_the_front() {
        let candidates = [candidate(1, 10, 2, 0), candidate(2, 11, 0, 0), candidate(3, 12, 5, 9)];
        for strategy in [
            Strategy::Random,
            Strategy::RoundRobin,
            Strategy::Sticky,
            Strategy::Local,
            Strategy::LeastLoaded,
        ] {
            let chosen = chosen(strategy, 20, &candidates, 3);
            assert_eq!(chosen.len(), 7, "{strategy:?} uses all credit");
            let of = |at| chosen.iter().filter(|chosen| **chosen == at).count();
            assert_eq!((of(0), of(1), of(2)), (2, 0, 5), "{strategy:?}");
        }
    }

    #[test]
    fn strategies_choose_whom_they_say() {
        let open = [
            candidate(1, 10, 99, 5),
            candidate(2, 11, 99, 0),
            candidate(2, 12, 99, 1),
        ];
        assert_eq!(chosen(Strategy::RoundRobin, 4, &open, 0), [0, 1, 2, 0]);
        assert_eq!(chosen(Strategy::RoundRobin, 2, &open, 4), [1, 2], "the turn goes on");
        assert_eq!(chosen(Strategy::Sticky, 3, &open, 7), [0, 0, 0]);
        assert!(chosen(Strategy::Local, 6, &open, 0).iter().all(|at| *at > 0), "node 2");
        assert_eq!(chosen(Strategy::LeastLoaded, 3, &open, 0), [1, 1, 2]);
        let by_client = chosen(Strategy::HashClientId, 30, &open, 0);
        for nth in 0..27 {
            assert_eq!(by_client[nth], by_client[nth + 3], "one client, one member");
        }
        let by_topic = chosen(Strategy::HashTopic, 30, &open, 0);
        for nth in 0..25 {
            assert_eq!(by_topic[nth], by_topic[nth + 5], "one topic, one member");
        }
        assert!(by_topic.iter().any(|at| *at != by_topic[0]), "spread");
    }

    #[test]
    fn a_hash_waits_for_its_member() {
        let full = [candidate(1, 10, 0, 0)];
        assert!(chosen(Strategy::HashTopic, 5, &full, 0).is_empty());
        // The others' messages do not wait for it.
        let open = [candidate(1, 10, 99, 0), candidate(1, 11, 99, 0)];
        let all = chosen(Strategy::HashTopic, 50, &open, 0);
        let half = [candidate(1, 10, 0, 0), candidate(1, 11, 99, 0)];
        let rest = choose(Strategy::HashTopic, &waiting(50), &half, 0, |_| (0, None));
        let expected: Vec<usize> = (0..50).filter(|message| all[*message] == 1).collect();
        assert_eq!(rest.iter().map(|choice| choice.message).collect::<Vec<_>>(), expected);
        assert!((1..50).contains(&rest.len()));
    }

    #[test]
    fn random_reaches_everybody() {
        let open = [
            candidate(1, 10, 999, 0),
            candidate(2, 11, 999, 0),
            candidate(3, 12, 999, 0),
        ];
        let chosen = chosen(Strategy::Random, 300, &open, 0);
        for at in 0..3 {
            let count = chosen.iter().filter(|chosen| **chosen == at).count();
            assert!((60..140).contains(&count), "{count}");
        }
    }
}
