//! Sessions: what a connection's outputs mean to the cluster. Decisions stand in `protocol`; here they are carried out.

pub mod admit;
pub mod attach;
pub mod authenticate;
mod delay;
pub mod end;
mod exclusive;
pub mod execute;
pub mod operations;
pub mod publishes;
pub mod retained;
pub mod routes;
pub mod waiting;
