//! Lontra: a clustered MQTT broker. This crate is the node: what clients speak, and the one binary.
//!
//!     main ─ cli ─┬─ serve ── config ── start ── reload (SIGHUP), supervisor (systemd)
//!                 ├─ dev ──── N × `lontra serve` as child processes
//!                 ├─ cert ─── the certificates of a cluster
//!                 ├─ pub, sub ── client: the other end of the protocol
//!                 ├─ bench ── many clients, and what became of their messages
//!                 ├─ user ─── password files; acl, ban, key, user --node: what a cluster keeps (operator)
//!                 ├─ cluster  what a running cluster says of itself
//!                 └─ config ─ check, show

pub mod admin;
pub mod auth;
pub mod bench;
pub mod cert;
pub mod cli;
pub mod client;
mod clock;
pub mod cluster_status;
pub mod config;
pub mod dev;
pub mod file_limit;
pub mod gateway;
pub mod hub;
pub mod limits;
pub mod metrics;
pub mod operator;
pub mod pid_file;
pub mod probe;
pub mod protocol;
mod rare;
pub mod reload;
pub mod session;
pub mod start;
pub mod stop_on_stdin_eof;
pub mod supervisor;
pub mod sys;
pub mod worker;
