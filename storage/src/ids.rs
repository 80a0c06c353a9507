//! Typed identifiers: a number that crosses a function has a type.
//!
//! Encodings leave room for clusters larger than today's (DESIGN §10): everything is 64 bit but the shard.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

/// A node of the cluster; never reused, from 1. Also openraft's `NodeId`.
pub type NodeId = u64;

id!(
    /// One start of a node process, as admitted by meta: the log index of its `NodeUp` entry. Grows with every start.
    Incarnation(u64)
);
id!(
    /// A topic shard, from 0. Fixed in number when the cluster is formed, at most 64.
    ShardId(u16)
);
id!(
    /// Position of a message in its shard. Starts at 1; 0 means "before the first".
    Offset(u64)
);
id!(
    /// A delayed message in its shard, from 1. Never reused.
    DelayedId(u64)
);
id!(
    /// A session for its whole life: the meta index that created it, times [`SessionId::PER_ENTRY`]. Never reused.
    SessionId(u64)
);
id!(
    /// Counts the network connections that a session had. Only the current one may act (`one-owner`).
    SessionEpoch(u64)
);
id!(
    /// Log index of an entry of the meta group; the version of the route table.
    MetaIndex(u64)
);

impl SessionId {
    /// One meta entry creates at most this many sessions; their ids are `index * PER_ENTRY + n`.
    pub const PER_ENTRY: u64 = 4096;
}

/// A Raft group: 0 is meta, shard `k` is `k + 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

impl GroupId {
    /// The control plane.
    pub const META: GroupId = GroupId(0);

    /// The group of a topic shard.
    pub const fn shard(shard: ShardId) -> GroupId {
        GroupId(shard.0 as u32 + 1)
    }

    /// The shard whose group this is; `None` for meta.
    pub const fn as_shard(self) -> Option<ShardId> {
        match self.0 {
            0 => None,
            n => Some(ShardId((n - 1) as u16)),
        }
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_shard() {
            None => f.write_str("meta"),
            Some(shard) => write!(f, "shard-{shard}"),
        }
    }
}
