//! Why a data directory does not open. Each message says what is wrong, where, and what to do.

use std::io;
use std::path::PathBuf;

use crate::ids::{GroupId, NodeId};

/// The node must not start on this directory.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "data directory {} belongs to node {found}, not to node {expected}; start with the right node id or another directory",
        path.display()
    )]
    OtherNode {
        path: PathBuf,
        found: NodeId,
        expected: NodeId,
    },

    #[error(
        "data directory {} belongs to cluster {found:?}, not to {expected:?}; start with the right cluster or another directory",
        path.display()
    )]
    OtherCluster {
        path: PathBuf,
        found: String,
        expected: String,
    },

    #[error(
        "data directory {} was made for {found} shards, the configuration says {expected}; the number of shards cannot change, set it back",
        path.display()
    )]
    OtherShards { path: PathBuf, found: u16, expected: u16 },

    #[error(
        "data directory {} was made for replication factor {found}, the configuration says {expected}; set it back",
        path.display()
    )]
    OtherReplicationFactor { path: PathBuf, found: u8, expected: u8 },

    #[error(
        "data directory {} has format {found}, this version of lontra knows up to {known}; start the version that wrote it, or a newer one",
        path.display()
    )]
    NewerFormat { path: PathBuf, found: u32, known: u32 },

    #[error("identity of the data directory does not read: {} {why}; restore the file from a backup of it, or {REPLACE}", path.display())]
    BadIdentity { path: PathBuf, why: String },

    #[error("data directory {} is in use by another process; stop that first", path.display())]
    Locked { path: PathBuf },

    #[error("data directory is not usable: {}; check that it exists, is writable for this user and not full", path.display())]
    NotWritable { path: PathBuf, source: io::Error },

    #[error("raft database {} is missing although this node has voted and acknowledged before; {REPLACE}", path.display())]
    RaftMissing { path: PathBuf },

    #[error("database {} is corrupt: {detail}; {REPLACE}; never delete only the raft database", path.display())]
    Corrupt { path: PathBuf, detail: String },

    #[error("database {} does not open: {detail}", path.display())]
    Database { path: PathBuf, detail: String },

    #[error(
        "raft log of group {group} in {} ends at entry {found}, but had {had} on disk before: acknowledged entries are lost; {REPLACE}",
        path.display()
    )]
    LogShorter {
        path: PathBuf,
        group: GroupId,
        had: u64,
        found: u64,
    },

    #[error(
        "raft log of group {group} in {} knows votes up to term {found}, but had one of term {had} on disk before: this node could vote twice; {REPLACE}",
        path.display()
    )]
    VoteLost {
        path: PathBuf,
        group: GroupId,
        had: u64,
        found: u64,
    },
}

/// The way out of lost or damaged memory: what this node knew is on its replicas.
const REPLACE: &str =
    "its replicas still have the data: move this directory away, and let the node join again under a new node id";
