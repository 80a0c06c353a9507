//! Storage: what a node keeps. No network, no clocks, no MQTT packets.
pub mod command;
pub mod digest;
#[cfg_attr(not(feature = "rocksdb"), allow(dead_code))]
mod directory;
pub mod encoding;
pub mod engine;
mod error;
mod failure;
mod group;
pub mod ids;
pub mod keys;
mod log_keys;
mod log_tail;
mod log_writer;
pub mod machine;
#[cfg_attr(not(feature = "rocksdb"), allow(dead_code))]
mod marks;
pub mod message;
pub mod meta;
mod metrics;
mod raft_log;
mod raft_state;
pub mod raft_types;
mod recover;
#[cfg(feature = "rocksdb")]
mod rocks;
pub mod shard;
pub mod snapshot;
pub mod storage;
pub mod test_bugs;
#[doc(hidden)]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod topic;
pub mod topic_tree;
mod unsynced;

pub use storage::{
    FreeSpace, GroupLog, GroupState, Identity, MemoryBudget, OpenError, Storage, StorageConfig, StorageMetrics,
};
