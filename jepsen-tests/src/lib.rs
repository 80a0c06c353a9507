//! Fault tests that drive the real `lontra` binary from outside, and decide from what they saw whether its promises held.
//!
//!     cluster ──▶ workload ──▶ history ──▶ checker ──▶ verdict, report
//!        ▲            │
//!        └─ nemesis   └─ client ── mqtt (a codec of its own)
//!
//! Uses none of the other crates: a mistake in them must not hide itself in what tests them.

pub mod checker;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod export;
pub mod history;
pub mod mqtt;
pub mod mutate;
pub mod nemesis;
pub mod proxy;
pub mod random;
pub mod recorder;
pub mod report;
pub mod runner;
pub mod suite;
pub mod synthetic;
pub mod workload;
