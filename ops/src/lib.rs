//! How a Lontra node is run: logs, metrics, and the HTTP server for operators.
//!
//!     people, Prometheus ── HTTP ──▶ http.rs ──▶ Probe (implemented by node)
//!                                       └─────▶ metrics.rs ──▶ Registry ◀── each crate's metrics.rs
//!     log files ◀── telemetry.rs ◀── tracing, from everywhere
//!
//! It knows no sessions and no packets: what only the node knows comes through [`Probe`].

pub mod http;
pub mod metrics;
pub mod telemetry;

pub use http::{Probe, Readiness};
