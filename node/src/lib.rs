//! Lontra: a clustered MQTT broker. This crate is the node: what clients speak, and the one binary.
//!
//!     main ─ cli ─┬─ serve ── config ── start
//!                 ├─ dev ──── N × `lontra serve` as child processes
//!                 ├─ cert ─── the certificates of a cluster
//!                 └─ config ─ check, show

pub mod cert;
pub mod cli;
pub mod config;
pub mod dev;
pub mod gateway;
pub mod hub;
pub mod metrics;
pub mod pid_file;
pub mod probe;
pub mod protocol;
pub mod session;
pub mod start;
pub mod stop_on_stdin_eof;
pub mod worker;
