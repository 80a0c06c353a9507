//! A raw MQTT client with an identity: connects to whichever node it is told, keeps its half of the session across
//! connections, and records everything that it does and sees.
//!
//!     workload ──▶ Client { session, links } ──▶ node        operations.rs: what the workload asks for
//!                    ▲ next()                                connecting.rs: CONNECT, take-over, DISCONNECT, crash
//!                    └── (conn, Incoming) ◀── link's reader  incoming.rs:   what the node sends
//!
//! One task owns a client and drives it with [`Client::next`], which also sends due acknowledgements and PINGREQ, and gives up
//! a connection that is silent. Nothing else happens behind the workload's back: it decides when to reconnect, and where.
//!
//! Invariants
//! - `invoke-before-send`: an operation, a resend or an acknowledgement is recorded before its first byte leaves; so what
//!   follows from it in the broker follows it in the history.
//! - `abandoned-connect`: a CONNECT without CONNACK may be carried out at any later time, and one that was refused because
//!   the node cannot serve may have been. If it would change the session
//!   (Clean Start, another expiry), the client says so ([`Client::is_doubtful`]) and is used no more, except to drain it.

mod connecting;
mod incoming;
mod link;
mod operations;
mod scene;
mod session;
mod websocket;

pub use connecting::{Connected, Options, WillPlan};
pub use link::Address;
pub use operations::Filter;
pub use scene::{Publishing, Scene, Stage};

use crate::history::{End, Kind, Message, Op, Process};
use crate::mqtt::Version;
use crate::random::Random;
use connecting::Opening;
use link::{INCOMING_LIMIT, Incoming, Link};
use session::Session;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// How a client acknowledges what it receives.
#[derive(Clone, Debug)]
pub struct Acks {
    /// Each acknowledgement waits for a time in this range.
    pub delay: (Duration, Duration),
    /// PUBACK and PUBREC are kept back until this ends (or for good: then a connection is never acknowledged on).
    pub withhold: bool,
    /// Chance of a negative PUBACK or PUBREC; MQTT 5 only.
    pub negative: f64,
}

impl Default for Acks {
    fn default() -> Acks {
        Acks {
            delay: (Duration::ZERO, Duration::ZERO),
            withhold: false,
            negative: 0.0,
        }
    }
}

/// What [`Client::next`] saw.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    /// A PUBLISH that was handed to the application.
    Message(Message),
    /// PUBACK or PUBREC.
    Acked(u16),
    Connack(u64),
    Suback {
        pid: u16,
        reason: u8,
    },
    Unsuback {
        pid: u16,
        reason: u8,
    },
    Pong,
    /// This connection has ended.
    Lost(u64),
    /// Something else; nothing for a workload.
    Other,
    /// The deadline passed.
    Nothing,
}

pub struct Client {
    pub id: String,
    pub version: Version,
    pub random: Random,
    pub acks: Acks,
    /// A connection that leaves an acknowledgement owed for so long is given up.
    pub answer_within: Duration,
    /// Its connections are WebSockets, where the nodes are reached so.
    pub over_websocket: bool,
    /// Publishers and sequence numbers of what was handed to the application, in all lives.
    pub seen: HashMap<String, HashSet<u64>>,
    /// The last retained copy by topic, since the last CONNECT.
    pub retained: BTreeMap<String, Message>,
    /// Topics that anything came on, as far as somebody asked by removing them.
    pub came: HashSet<String>,
    /// When the last PUBLISH came.
    pub last_message: Instant,
    scene: Arc<Scene>,
    session: Session,
    link: Option<Link>,
    /// Taken over by `link`, and still read.
    old: Vec<Link>,
    opening: Vec<Opening>,
    from: mpsc::Receiver<(u64, Incoming)>,
    to: mpsc::Sender<(u64, Incoming)>,
    /// Numbers whose last operation ended with `ok` or `fail`.
    processes: Vec<Process>,
    seq: u64,
    /// Everything was forgotten: the next CONNECT has Clean Start 1.
    forgot: bool,
    expiry: Option<u32>,
    doubtful: bool,
    /// How CONNECTs ended that somebody waits for.
    outcomes: BTreeMap<u64, Connected>,
    /// Connections whose DISCONNECT surely was processed.
    left: HashSet<u64>,
    resumed: bool,
}

impl Client {
    pub fn new(scene: &Arc<Scene>, id: impl Into<String>, version: Version, random: Random) -> Client {
        let (to, from) = mpsc::channel(INCOMING_LIMIT);
        Client {
            id: id.into(),
            version,
            random,
            acks: Acks::default(),
            answer_within: Duration::from_secs(8),
            over_websocket: false,
            seen: HashMap::new(),
            retained: BTreeMap::new(),
            came: HashSet::new(),
            last_message: Instant::now(),
            scene: scene.clone(),
            session: Session::default(),
            link: None,
            old: Vec::new(),
            opening: Vec::new(),
            from,
            to,
            processes: Vec::new(),
            seq: 0,
            forgot: false,
            expiry: None,
            doubtful: false,
            outcomes: BTreeMap::new(),
            left: HashSet::new(),
            resumed: false,
        }
    }

    pub fn scene(&self) -> &Arc<Scene> {
        &self.scene
    }

    /// The node of the connection that is served.
    pub fn node(&self) -> Option<&str> {
        self.link.as_ref().map(|link| link.node.as_str())
    }

    /// What it published last and has open.
    pub fn last_published(&self) -> Option<Message> {
        self.session.outgoing.back().map(|outgoing| outgoing.message.clone())
    }

    pub fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    /// See `abandoned-connect`.
    pub fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    /// Open exchanges of what it published.
    pub fn open(&self) -> usize {
        self.session.outgoing.len()
    }

    /// Whether it holds QoS 2 messages unreleased, or owes acknowledgements.
    pub fn is_busy(&self) -> bool {
        !self.session.received.is_empty() || self.link.as_ref().is_some_and(|link| !link.owed.is_empty())
    }

    /// Takes one thing that happens, at the latest at `deadline`.
    pub async fn next(&mut self, deadline: Instant) -> Seen {
        loop {
            self.send_owed().await;
            // Before anything is called silent: a client that nobody drove for a while finds its PINGRESP here.
            if let Ok((conn, incoming)) = self.from.try_recv() {
                return self.take(conn, incoming).await;
            }
            if let Some(lost) = self.tend().await {
                return lost;
            }
            let wake = self.next_wake().map_or(deadline, |wake| wake.min(deadline));
            tokio::select! {
                biased;
                incoming = self.from.recv() => {
                    let (conn, incoming) = incoming.expect("the client holds a sender itself");
                    return self.take(conn, incoming).await;
                }
                () = sleep_until(wake) => {
                    if Instant::now() >= deadline {
                        return Seen::Nothing;
                    }
                }
            }
        }
    }

    /// Whether it was handed this message, in any life.
    pub fn has_seen(&self, message: &Message) -> bool {
        self.seen
            .get(&message.publisher)
            .is_some_and(|seqs| seqs.contains(&message.seq))
    }

    /// Whether the session of this connection has the subscriptions that it should have: it was there already (Session
    /// Present 1), or they were made since.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    pub fn mark_resumed(&mut self) {
        self.resumed = true;
    }

    /// Drives the client until then.
    pub async fn next_until(&mut self, deadline: Instant) {
        while self.next(deadline).await != Seen::Nothing {}
    }

    /// Drives the client for a time.
    pub async fn pass(&mut self, time: Duration) {
        self.next_until(Instant::now() + time).await;
    }

    /// Drives the client until `wanted`, its connection ended, or `limit` passed; whether `wanted`.
    pub async fn until(&mut self, limit: Duration, mut wanted: impl FnMut(&Client) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            if wanted(self) {
                return true;
            }
            if self.link.is_none() || self.next(deadline).await == Seen::Nothing {
                return wanted(self);
            }
        }
    }

    /// Drives the client while `work` (which another client does) goes on.
    ///
    /// `work` and the client share a task, and neither is cancelled: half a packet handled would be half a packet lost.
    pub async fn beside<T>(&mut self, work: impl Future<Output = T>) -> T {
        let done = AtomicBool::new(false);
        let working = async {
            let result = work.await;
            done.store(true, Ordering::Relaxed);
            result
        };
        let driving = async {
            while !done.load(Ordering::Relaxed) {
                self.pass(Duration::from_millis(10)).await;
            }
        };
        tokio::join!(working, driving).0
    }

    /// Reads nothing for a time (PINGREQ goes on): the node's buffers fill.
    pub async fn read_nothing(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end && self.link.is_some() {
            self.send_pings().await;
            sleep_until(end.min(Instant::now() + link::PING_EVERY)).await;
        }
    }

    /// PINGREQ, and connections to give up.
    async fn tend(&mut self) -> Option<Seen> {
        self.send_pings().await;
        let now = Instant::now();
        if let Some(late) = self.opening.iter().find(|opening| opening.deadline <= now) {
            let conn = late.link.conn;
            return Some(self.lose(conn, End::Silent));
        }
        let silent = self.links().find(|link| {
            let ping = link.ping.as_ref().is_some_and(|(_, sent)| *sent + PONG_LIMIT <= now);
            ping && link.leaving.is_none()
        });
        if let Some(conn) = silent.map(|link| link.conn) {
            return Some(self.lose(conn, End::Silent));
        }
        let oldest = self.session.outgoing.iter().map(|outgoing| outgoing.sent).min();
        if let (Some(link), Some(oldest)) = (&self.link, oldest)
            && oldest + self.answer_within <= now
        {
            let conn = link.conn;
            return Some(self.lose(conn, End::Silent));
        }
        None
    }

    fn next_wake(&self) -> Option<Instant> {
        let links = self.links().flat_map(|link| {
            let owed = link.owed.front().map(|owed| owed.due);
            let pong = link.ping.as_ref().map(|(_, sent)| *sent + PONG_LIMIT);
            let ping = link.ping.is_none().then_some(link.next_ping);
            [owed, pong, ping].into_iter().flatten()
        });
        let oldest = self
            .session
            .outgoing
            .iter()
            .map(|outgoing| outgoing.sent + self.answer_within)
            .min();
        let oldest = oldest.filter(|_| self.link.is_some());
        links
            .chain(self.opening.iter().map(|opening| opening.deadline))
            .chain(oldest)
            .min()
    }

    fn links(&self) -> impl Iterator<Item = &Link> {
        self.link.iter().chain(&self.old)
    }

    fn link_mut(&mut self, conn: u64) -> Option<&mut Link> {
        self.link.iter_mut().chain(&mut self.old).find(|link| link.conn == conn)
    }

    fn process(&mut self) -> Process {
        self.processes
            .pop()
            .unwrap_or_else(|| self.scene.recorder.new_process())
    }

    fn invoke(&mut self, op: &Op) -> Process {
        let process = self.process();
        self.scene.recorder.record(process.clone(), Kind::Invoke, op.clone());
        process
    }

    /// The end of an operation; its process may have another, unless it ended with `info`.
    fn complete(&mut self, process: Process, kind: Kind, op: Op) {
        self.scene.recorder.record(process.clone(), kind, op);
        if kind != Kind::Info {
            self.processes.push(process);
        }
    }

    fn note(&self, op: Op) {
        self.scene.recorder.note(&self.id, op);
    }
}

/// A node that answers no PINGREQ for so long is given up: with [`link::PING_EVERY`] about the keep-alive and half.
const PONG_LIMIT: Duration = Duration::from_secs(5);
/// In seconds, as CONNECT says it.
const KEEP_ALIVE: u16 = 5;

#[cfg(test)]
mod tests;
