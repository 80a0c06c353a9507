//! Persistent subscribers: subscribe once, reconnect by their own choice and by force, and in the end read all that they are
//! owed.
//!
//!     connect ──Session Present 0──▶ subscribe ──▶ read … leave, cut, be taken over, crash ──▶ connect elsewhere
//!     Drain: another node; until every acknowledged message that matches was seen, or silence

use super::publishers::{Plan, finish, one};
use super::{Part, matches};
use crate::client::{Client, Connected, Filter, Options, Publishing, Stage};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How a subscriber's connections end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// DISCONNECT 0x00, then elsewhere.
    Politely,
    Cut,
    /// CONNECT at another node while the first connection lives.
    Moved,
    /// CONNECT at two nodes at once.
    Contended,
    Crash,
}

#[derive(Clone)]
pub struct Habits {
    pub options: Options,
    pub filters: Vec<Filter>,
    /// Milliseconds between two moves of its own; none: it stays.
    pub moves_after: Option<(u64, u64)>,
    pub leaves: Vec<Leave>,
    /// It sees every message that matches: the drain ends when it has. Not so for members of a group.
    pub owed_all: bool,
}

impl Habits {
    pub fn new(filters: Vec<Filter>) -> Habits {
        Habits {
            options: Options::persistent(),
            filters,
            moves_after: Some((3_000, 9_000)),
            leaves: vec![Leave::Politely, Leave::Cut, Leave::Moved],
            owed_all: true,
        }
    }
}

/// A subscriber's whole part.
pub async fn subscriber(mut part: Part, habits: Habits) {
    let mut subscribed = BTreeSet::new();
    settle_in(&mut part, &habits, &mut subscribed).await;
    part.ready();
    stay(part, habits, subscribed).await;
}

/// One that comes at some time in the first `latest` of the load.
pub async fn latecomer(mut part: Part, mut habits: Habits, latest: Duration) {
    // What was acknowledged before it came is not owed to it.
    habits.owed_all = false;
    part.ready();
    part.wait_for(Stage::Load).await;
    let comes = Instant::now() + part.client.random.duration(Duration::ZERO, latest);
    while Instant::now() < comes && part.scene.stage() == Stage::Load {
        part.client.pass(Duration::from_millis(50)).await;
    }
    stay(part, habits, BTreeSet::new()).await;
}

async fn stay(mut part: Part, habits: Habits, mut subscribed: BTreeSet<String>) {
    while part.scene.stage() < Stage::Drain {
        settle_in(&mut part, &habits, &mut subscribed).await;
        let stay = habits
            .moves_after
            .map_or(3_600_000, |(from, to)| part.client.random.between(from, to));
        let until = Instant::now() + Duration::from_millis(stay);
        while Instant::now() < until && part.client.is_connected() && part.scene.stage() < Stage::Drain {
            part.client.pass(Duration::from_millis(50)).await;
        }
        let loaded = part.scene.stage() == Stage::Load;
        if loaded && part.client.is_connected() && habits.moves_after.is_some() {
            let leave = *part.client.random.pick(&habits.leaves);
            go(&mut part.client, leave, &habits.options).await;
        }
    }
    drain(&mut part, &habits, &mut subscribed).await;
    part.client.disconnect(0, None).await;
}

/// Publishes to what it is subscribed to, on one connection.
pub async fn talker(mut part: Part, habits: Habits, plan: Plan, open: Publishing) {
    let mut subscribed = BTreeSet::new();
    settle_in(&mut part, &habits, &mut subscribed).await;
    part.ready();
    part.wait_for(Stage::Load).await;
    while part.scene.stage() == Stage::Load {
        settle_in(&mut part, &habits, &mut subscribed).await;
        let pause = Duration::from_secs_f64(2.0 * part.client.random.fraction() / plan.rate);
        part.client.pass(pause).await;
        if part.client.open() < plan.window {
            one(&mut part.client, &plan).await;
        }
        if part.client.random.chance(plan.cut) {
            part.client.cut();
        }
    }
    finish(&mut part).await;
    drop(open);
    drain(&mut part, &habits, &mut subscribed).await;
    part.client.disconnect(0, None).await;
}

/// Ends the connection, or has it ended, in one of the ways.
pub async fn go(client: &mut Client, leave: Leave, options: &Options) {
    let nodes = client.scene().names();
    match leave {
        Leave::Politely => {
            client.disconnect(0, None).await;
        }
        Leave::Cut => client.cut(),
        Leave::Crash => client.crash(),
        Leave::Moved => {
            let node = client.random.pick(&nodes).clone();
            client.connect(&node, options).await;
        }
        Leave::Contended => {
            let nodes = client.random.sample(&nodes, 2);
            if let [first, second] = nodes.as_slice() {
                client.contend([first, second], options).await;
            }
        }
    }
}

/// Connected, with all filters subscribed; tries until the run ends.
async fn settle_in(part: &mut Part, habits: &Habits, subscribed: &mut BTreeSet<String>) {
    while part.scene.stage() < Stage::End {
        if !part.client.is_connected() {
            match part.client.connect_anywhere(&habits.options).await {
                Connected::Served { .. } => {}
                _ if part.client.is_doubtful() => {
                    part.replace_client();
                    sleep(Duration::from_millis(part.client.random.between(100, 400))).await;
                    continue;
                }
                _ => {
                    sleep(Duration::from_millis(part.client.random.between(100, 400))).await;
                    continue;
                }
            }
        }
        if !part.client.is_resumed() {
            subscribed.clear();
        }
        if subscribe_missing(&mut part.client, &habits.filters, subscribed).await {
            return;
        }
    }
}

async fn subscribe_missing(client: &mut Client, filters: &[Filter], subscribed: &mut BTreeSet<String>) -> bool {
    for filter in filters {
        if !subscribed.contains(&filter.filter) {
            match client.subscribe(filter).await {
                Some(..0x80) => {
                    subscribed.insert(filter.filter.clone());
                    client.mark_resumed();
                }
                // A refusal is the node's answer for now.
                Some(_) => client.cut(),
                None => return false,
            }
        }
    }
    client.mark_resumed();
    client.is_connected()
}

/// The last two stages: reads what is owed at a random node, and once more after the final operations.
pub async fn drain(part: &mut Part, habits: &Habits, subscribed: &mut BTreeSet<String>) {
    let last = part.client.node().map(str::to_owned);
    part.client.disconnect(0, None).await;
    part.client.acknowledge_withheld();
    if let Some(last) = last {
        // Elsewhere first: whether a run has sessions that moved is not left to chance.
        let others: Vec<String> = part.scene.names().into_iter().filter(|node| *node != last).collect();
        if !others.is_empty() {
            let node = part.client.random.pick(&others).clone();
            part.client.connect(&node, &habits.options).await;
        }
    }
    read_owed(part, habits, subscribed, Stage::Final, Duration::from_secs(60)).await;
    part.drained();
    while part.scene.stage() < Stage::Final {
        settle_in(part, habits, subscribed).await;
        part.client.pass(Duration::from_millis(50)).await;
    }
    read_owed(part, habits, subscribed, Stage::End, Duration::from_secs(20)).await;
    part.settled();
    part.wait_for(Stage::End).await;
}

async fn read_owed(part: &mut Part, habits: &Habits, subscribed: &mut BTreeSet<String>, before: Stage, cap: Duration) {
    let started = Instant::now();
    part.client.last_message = started;
    while part.scene.stage() < before && started.elapsed() < cap {
        settle_in(part, habits, subscribed).await;
        part.client.pass(Duration::from_millis(100)).await;
        if !part.scene.all_published() || !part.client.is_connected() {
            part.client.last_message = Instant::now();
            continue;
        }
        let silent = part.client.last_message.elapsed();
        let complete = habits.owed_all && !owes(part, habits) && !part.client.is_busy();
        if (complete && silent > Duration::from_millis(500)) || silent > SILENCE {
            break;
        }
    }
    part.client.round_trip().await;
}

/// Whether an acknowledged message that matches was not seen.
fn owes(part: &Part, habits: &Habits) -> bool {
    let wanted = |topic: &str| habits.filters.iter().any(|filter| matches(&filter.filter, topic));
    let acknowledged = part.scene.acknowledged();
    // From the end: what is missing is mostly new.
    acknowledged
        .iter()
        .rev()
        .any(|message| wanted(&message.topic) && !part.client.has_seen(message))
}

/// Longer than an election and a retransmission.
const SILENCE: Duration = Duration::from_secs(5);
