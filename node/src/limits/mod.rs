//! What keeps one client from spoiling a node for the others: rates, numbers, and bans of who comes and goes.
//!
//! ```text
//!   accept ── rates of node and listener: waits ──▶ connection ─ admission: address ─▶ CONNECT ─ flapping: banned?
//!   PUBLISH, bytes ── flow: not read from ◀── rate (GCRA)             └ admission: user ◀──┘          ▲
//!   the end of a connection ───────────────────────────────────────────────────── counted ────────────┘
//! ```
//!
//! Decisions are sans-io and bring no clock of their own; `worker` and `gateway` carry them out. All of it is this node's alone:
//! a cluster of three lets three times as much through. Budgets of one packet are the codec's (`protocol/codec/limits`).
//!
//! Invariants
//! - `back-pressure-first`: who is above a rate waits; only its own rate, for longer than `over_rate_max`, ends a connection.
//! - `bounded`: every table has a size, and what it does when it is full.

pub mod admission;
pub mod flapping;
pub mod flow;
pub mod logins;
mod metrics;
pub mod rate;
mod recent;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::admission::{Admission, AdmissionLimits, Place, UserPlace};
use self::flapping::{Flapping, FlappingLimits, Subject};
use self::flow::{Flow, FlowLimits, Pace, Rates, Sent};
use self::logins::Logins;
use self::rate::{Moment, Rate, SharedBucket};
use crate::config::Config;
use crate::config::listener::Listener;
use crate::protocol::checks::{Check, on};

pub use self::metrics::{Limit, LimitMetrics};

/// What was counted, for as long as the node runs: a reload changes limits, not what was done.
pub struct Protection {
    began: Instant,
    node: Together,
    /// By name; listeners neither come nor go while a node runs.
    listeners: HashMap<String, Arc<Together>>,
    admission: Arc<Admission>,
    flapping: Flapping,
    logins: Logins,
}

/// Of all clients of a listener, or of the node.
#[derive(Debug, Default)]
struct Together {
    connections: SharedBucket,
    sent: Sent,
}

impl Protection {
    pub fn new(config: &Config) -> Arc<Self> {
        let listeners = config.all_listeners();
        Arc::new(Protection {
            began: Instant::now(),
            node: Together::default(),
            listeners: listeners
                .into_iter()
                .map(|listener| (listener.name, Arc::default()))
                .collect(),
            admission: Arc::default(),
            flapping: Flapping::default(),
            logins: Logins::default(),
        })
    }

    fn moment(&self, instant: Instant) -> Moment {
        Moment(0).after(instant.saturating_duration_since(self.began))
    }

    fn instant(&self, moment: Moment) -> Instant {
        self.began + moment.since(Moment(0))
    }
}

/// What holds for the connections of one listener that are accepted under one configuration.
pub struct Guard {
    protection: Arc<Protection>,
    listener: Arc<Together>,
    connections: Option<Rate>,
    listener_connections: Option<Rate>,
    flow: FlowLimits,
    /// Whether any of `flow` is set.
    is_limited: bool,
    admission: AdmissionLimits,
    flapping: FlappingLimits,
    /// Of an address in a window of `flapping`; 0: no limit.
    failed_logins_max: u32,
    /// Subscriptions of a session; 0: no limit.
    pub subscriptions_max: usize,
}

impl Guard {
    pub fn new(protection: &Arc<Protection>, config: &Config, listener: &Listener) -> Self {
        let limits = &config.limits;
        let rate = |per_second: u64| Rate::new(per_second, limits.burst);
        let rates = |messages: u32, bytes: u64| Rates {
            messages: rate(messages.into()),
            bytes: rate(bytes),
        };
        let flow = FlowLimits {
            client: rates(limits.client_message_rate, limits.client_byte_rate.bytes()),
            listener: rates(listener.message_rate, listener.byte_rate.bytes()),
            node: rates(limits.message_rate, limits.byte_rate.bytes()),
            over_rate_max: (!limits.over_rate_max.is_zero()).then_some(limits.over_rate_max),
        };
        Guard {
            // One that is not open yet: a new listener waits for a restart.
            listener: protection.listeners.get(&listener.name).cloned().unwrap_or_default(),
            protection: protection.clone(),
            connections: rate(limits.connection_rate.into()),
            listener_connections: rate(listener.connection_rate.into()),
            is_limited: flow.any(),
            flow,
            admission: AdmissionLimits {
                source_rate: rate(limits.address_connection_rate.into()),
                source_connections_max: limits.address_connections_max,
                user_connections_max: limits.user_connections_max,
            },
            flapping: FlappingLimits {
                client_max: limits.flapping_client_max,
                address_max: limits.flapping_address_max,
                user_max: limits.flapping_user_max,
                window: limits.flapping_window,
                ban: limits.flapping_ban,
            },
            failed_logins_max: limits.failed_logins_address_max,
            subscriptions_max: limits.subscriptions_max as usize,
        }
    }

    /// How long the listener is to wait before it accepts again, and for which limit. None: not at all.
    pub fn accepts_after(&self, now: Instant) -> Option<(Duration, Limit)> {
        let moment = self.protection.moment(now);
        let free = |bucket: &SharedBucket, rate: Option<Rate>| bucket.free_at(rate?, moment);
        let node = free(&self.protection.node.connections, self.connections);
        let listener = free(&self.listener.connections, self.listener_connections);
        let waits = [(node, Limit::ConnectionRate), (listener, Limit::ListenerConnectionRate)];
        let latest = waits
            .into_iter()
            .filter_map(|(free, limit)| Some((free?.since(moment), limit)));
        latest.max_by_key(|(wait, _)| *wait)
    }

    /// A connection was accepted.
    pub fn accepted(&self, now: Instant) {
        let moment = self.protection.moment(now);
        if let Some(rate) = self.connections {
            self.protection.node.connections.charge(rate, 1, moment);
        }
        if let Some(rate) = self.listener_connections {
            self.listener.connections.charge(rate, 1, moment);
        }
    }

    /// A connection of an address asks for a place. Unix sockets have no address and no limit by it.
    ///
    /// # Errors
    /// The limit that it meets.
    pub fn enter(&self, address: Option<IpAddr>, now: Instant) -> Result<Place, Limit> {
        let Some(address) = address else {
            return Ok(self.protection.admission.enter_unknown());
        };
        let moment = self.protection.moment(now);
        self.protection.admission.enter(address.into(), &self.admission, moment)
    }

    /// Somebody shows who they are, which costs to check.
    ///
    /// # Errors
    /// As many of that address were wrong as may be.
    pub fn may_log_in(&self, address: Option<IpAddr>, now: Instant) -> Result<(), Limit> {
        let Some(address) = address else { return Ok(()) };
        let (logins, now) = (&self.protection.logins, self.protection.moment(now));
        match logins.may_try(address.into(), self.failed_logins_max, now) {
            true => Ok(()),
            false if on(Check::FailedLogins) => Err(Limit::FailedLogins),
            false => Ok(()),
        }
    }

    /// It was wrong.
    pub fn login_failed(&self, address: Option<IpAddr>, now: Instant) {
        if let Some(address) = address.filter(|_| self.failed_logins_max > 0) {
            let now = self.protection.moment(now);
            self.protection.logins.failed(address.into(), self.flapping.window, now);
        }
    }

    /// Who was banned here for coming and going.
    pub fn flapping(&self) -> &Flapping {
        &self.protection.flapping
    }

    pub fn moment(&self, now: Instant) -> Moment {
        self.protection.moment(now)
    }

    /// A client that has shown that it is `user` asks for a place.
    ///
    /// # Errors
    /// The user has as many connections as may be.
    pub fn enter_user(&self, user: &str, client_id: &str) -> Result<Option<UserPlace>, Limit> {
        self.protection.admission.enter_user(user, client_id, &self.admission)
    }

    /// A connection that was served has ended, neither because of this node nor of its operator; who is banned for it.
    pub fn ended(&self, client_id: &str, address: Option<IpAddr>, user: Option<&str>, now: Instant) -> Vec<Subject> {
        let limits = &self.flapping;
        if limits.client_max == 0 && limits.address_max == 0 && limits.user_max == 0 {
            return Vec::new();
        }
        // Tables hold names of usual length: who has longer ones has an address, too.
        let usual = |name: &&str| name.len() <= NAME_BYTES_MAX;
        let client = Some(client_id)
            .filter(usual)
            .map(|client_id| Subject::Client(client_id.into()));
        let address = address.map(|address| Subject::Address(address.into()));
        let user = user.filter(usual).map(|user| Subject::User(user.into()));
        let subjects = [client, address, user].into_iter().flatten();
        self.protection
            .flapping
            .ended(subjects, limits, self.protection.moment(now))
    }

    /// How long a ban of [`Guard::ended`] lasts.
    pub fn ban_time(&self) -> Duration {
        self.flapping.ban
    }

    /// A whole packet of a client came. Costs a look at a flag where nothing is limited.
    pub fn charge(&self, flow: &mut Flow, is_publish: bool, bytes: usize) {
        if self.is_limited {
            let now = self.protection.moment(Instant::now());
            let (listener, node) = (&self.listener.sent, &self.protection.node.sent);
            flow.charge(&self.flow, listener, node, is_publish, bytes, now);
        }
    }

    /// Whether a client may be read from now; the second is until when it may not.
    pub fn pace(&self, flow: &mut Flow) -> (Pace, Option<Instant>) {
        if !self.is_limited {
            return (Pace::Free, None);
        }
        let now = self.protection.moment(Instant::now());
        let pace = flow.pace(&self.flow, &self.listener.sent, &self.protection.node.sent, now);
        let until = match pace {
            Pace::Held { until, .. } => Some(self.protection.instant(until)),
            Pace::Free | Pace::Hopeless => None,
        };
        (pace, until)
    }
}

/// Of client ids and user names that are counted for flapping.
const NAME_BYTES_MAX: usize = 256;
