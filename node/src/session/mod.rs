//! Sessions: what a connection's outputs mean to the cluster. Decisions stand in `protocol`; here they are carried out.

pub mod admit;
pub mod attach;
pub mod authenticate;
pub mod end;
pub mod execute;
pub mod operations;
pub mod publishes;
pub mod retained;
