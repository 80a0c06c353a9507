//! `lontra bench`: load for any MQTT broker, and what became of it.
//!
//!     options ──▶ plan ──▶ run ──▶ report       connect, send, measure, drain, close; a table or JSON
//!                          idle ─────┘           connections that do nothing, in steps
//!                           ├── clients          all of them on one thread and one epoll
//!                           │     ├── link       a socket and its bytes, over WebSocket in frames, over TLS in records
//!                           │     ├── publisher  encodes its PUBLISH once; a window or a schedule; acknowledgements
//!                           │     ├── subscriber answers what comes
//!                           │     └── tally ── arrivals    what came, against the sequence in each payload (`stamp`)
//!                           └── process          CPU seconds and resident memory of given processes
//!
//! One process holds both sides, so that latency needs one clock and a QoS 0 publisher can wait for its deliveries.
//!
//! Invariants
//! - `counted`: every message sent is delivered, lost, refused or unanswered in the report; what comes twice or late is
//!   counted as such.
//! - `no-message-allocates`: a message costs no allocation, in or out; a read or a gap in a sequence may.

mod arrivals;
mod clients;
mod idle;
mod link;
mod options;
mod plan;
mod process;
mod publisher;
mod report;
mod run;
mod stamp;
mod subscriber;
mod tally;

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;

pub use self::options::Options;
use self::options::Scenario;
use crate::cli::say;
use crate::client::tls::TlsOptionsError;
use crate::protocol::codec::{EncodeError, ReasonCode, Violation};

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("cannot find {broker}: {source}; a broker is given as HOST:PORT")]
    Name { broker: String, source: io::Error },
    #[error("{broker} has no address")]
    NoAddress { broker: String },
    #[error(transparent)]
    Tls(#[from] TlsOptionsError),
    #[error("cannot wait for sockets: {0}")]
    Poll(#[source] io::Error),
    #[error("cannot make a payload: {0}")]
    Encode(#[from] EncodeError),
    #[error("client {client} has no connection to {broker}: {source}")]
    Connect {
        client: usize,
        broker: SocketAddr,
        source: EndOfClient,
    },
    #[error("{waiting} of {clients} clients were not ready after {seconds} s without progress")]
    Stuck {
        waiting: usize,
        clients: usize,
        seconds: u64,
    },
    #[error("cannot read {file}: {source}; does process {pid} run, and as this user?")]
    Process { pid: u32, file: String, source: io::Error },
}

/// How a client's connection ended that should not have.
#[derive(Debug, thiserror::Error)]
pub enum EndOfClient {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("refused: {0}")]
    Refused(ReasonCode),
    #[error("subscription refused: {0}")]
    SubscriptionRefused(ReasonCode),
    #[error("disconnected by the broker: {0}")]
    Disconnected(ReasonCode),
    #[error("the broker broke the protocol: {0}")]
    Violation(#[from] Violation),
    #[error("the broker sent what was not asked for: {0}")]
    Unexpected(&'static str),
    #[error("cannot be sent: {0}")]
    Encode(#[from] EncodeError),
}

/// Runs a scenario and prints its report. The code is [`NOT_AS_SENT`] if something was lost, came twice, out of order
/// or not at all.
///
/// # Errors
/// There is no result.
pub fn run(options: &Options) -> Result<ExitCode, BenchError> {
    let brokers = plan::resolve(&options.brokers)?;
    let (text, as_sent) = match options.scenario {
        Scenario::Idle => (idle::run(options, &brokers)?.print(options.json), true),
        Scenario::Pairs | Scenario::FanOut | Scenario::FanIn => {
            let report = run::run(options, &brokers)?;
            (report.print(options.json), report.as_sent())
        }
    };
    say(text);
    Ok(if as_sent {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NOT_AS_SENT)
    })
}

/// 1 and 2 are taken: no result, command line not understood.
pub const NOT_AS_SENT: u8 = 3;
