//! What the tests through the wire share.
//!
//!     codec ◀── client ◀── load ──▶ checker          an MQTT client and a codec of their own: a bug that the broker's
//!                 ▲         ▲                         codec has in both directions cannot hide here
//!     websocket ──┤         │                         the same client, its bytes in frames
//!     tls, pki ───┤         │                         the same client, its bytes through openssl's TLS
//!     cluster ────┴─────────┴── power, partition,     real processes, real files, real sockets
//!                               stuck
//!     steady                                          a healthy pair, and how it fares while others attack
//!     script                                          conversations in bytes: one node and three answer alike
//!     foreign, mosquitto                              clients that others wrote
//!
//! Nothing here sleeps to synchronise: [`eventually`] waits for a condition with a deadline. `tokio::time` otherwise only
//! paces load and faults.

#![allow(
    dead_code,
    reason = "every test binary compiles this module and uses its own part of it"
)]

pub mod auth;
pub mod checker;
pub mod client;
pub mod cluster;
pub mod codec;
pub mod exactly_once;
pub mod foreign;
pub mod http_server;
pub mod ledger;
pub mod load;
pub mod members;
pub mod metrics;
pub mod mosquitto;
pub mod pairs;
pub mod partition;
pub mod pki;
pub mod power;
pub mod random;
pub mod register;
pub mod script;
pub mod steady;
pub mod stuck;
pub mod throttled;
pub mod tls;
pub mod websocket;
pub mod wills;

use std::time::{Duration, Instant};
use tokio::sync::{Mutex, MutexGuard};

/// Long enough for anything that takes well under a second on an idle machine, on a busy one with two cores.
pub const SOON: Duration = Duration::from_secs(20);
/// Long enough for a node or a cluster to start, also while others compile beside it.
pub const START: Duration = Duration::from_secs(90);

/// Polls `condition` until it gives a value, and panics with `what` when `limit` has passed.
pub async fn eventually<T, F, Fut>(what: &str, limit: Duration, mut condition: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let started = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// Lets one test of a binary at a time have nodes of its own: on two cores a second cluster would be load, not a test.
pub async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}

const POLL: Duration = Duration::from_millis(25);
