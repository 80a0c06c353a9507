//! How a Lontra node is run: logs, metrics, and the HTTP server for operators.
//!
//!     people, Prometheus ── HTTP ──▶ http.rs, admin.rs ──▶ Probe, Admin (implemented by node)
//!     command line ── client.rs ──▶     └─────▶ metrics.rs ──▶ Registry ◀── each crate's metrics.rs
//!                                └─ guard.rs: keys and roles ─▶ audit.rs
//!     log files ◀── telemetry.rs ◀── tracing, from everywhere
//!
//! It knows no sessions and no packets: what only the node knows comes through [`Probe`].

pub mod admin;
pub mod audit;
pub mod client;
pub mod guard;
pub mod http;
pub mod metrics;
mod places;
pub mod telemetry;

pub use admin::{Admin, Refusal};
pub use http::{Probe, Readiness};
