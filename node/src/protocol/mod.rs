//! MQTT, sans-io: packets and events in, bytes and outputs out. No socket, no clock, no cluster.

pub mod answers;
pub mod checks;
pub mod codec;
pub mod connection;
pub mod delayed;
pub mod handshake;
pub mod mountpoint;
pub mod publish_in;
pub mod publish_out;
pub mod topic_alias;
pub mod topic_rules;
