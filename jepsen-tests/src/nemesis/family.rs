//! The kinds of faults, by the names that the command line and the history have for them.

use std::fmt;
use std::str::FromStr;

macro_rules! families {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Family {
            $($(#[$doc])* $variant,)*
        }

        impl Family {
            pub const ALL: &[Family] = &[$(Family::$variant,)*];

            pub fn name(self) -> &'static str {
                match self {
                    $(Family::$variant => $name,)*
                }
            }
        }
    };
}

families! {
    /// SIGKILL of a minority; started again at the end of the fault.
    Kill = "kill",
    KillLeader = "kill-leader",
    KillMetaLeader = "kill-meta-leader",
    /// Of the node that some session is connected to.
    KillOwner = "kill-owner",
    KillMajority = "kill-majority",
    KillAll = "kill-all",
    /// SIGSTOP of a minority, SIGCONT at the end.
    Pause = "pause",
    PauseMajority = "pause-majority",
    /// One node from all other nodes, both ways; its clients still reach it.
    PartitionIsolate = "partition-isolate",
    /// The leader of meta from all other nodes: it grants leases, its own among them.
    PartitionMetaLeader = "partition-meta-leader",
    /// A minority from the others.
    PartitionHalves = "partition-halves",
    /// Every node sees a majority, each another one (5 nodes); one pair is cut (3 nodes).
    PartitionRing = "partition-ring",
    /// Two halves, and one node that sees both.
    PartitionBridge = "partition-bridge",
    /// What one node sends to the others, or what they send to it, is lost.
    PartitionOneWay = "partition-one-way",
    /// Clients from some nodes; the nodes see each other.
    PartitionClients = "partition-clients",
    /// One node is isolated and healed every 200 ms.
    PartitionFlap = "partition-flap",
    /// Half of the links' connections of one node lose everything, each way by itself, the other half nothing: heartbeats may
    /// come through where data does not.
    PartitionStall = "partition-stall",
    /// Delay with jitter, loss, duplicates, other order: one or several of them.
    Packet = "packet",
    /// A limit of the rate of all links of one node, or of all nodes.
    SlowLink = "slow-link",
    /// What one node has not synced is lost, with its process.
    PowerOne = "power-one",
    PowerAll = "power-all",
    /// The schedule that took acknowledged messages from NATS: the node that completed a quorum loses its power, and comes
    /// back among those who never saw the writes, while those who did are cut off.
    PartKill = "part-kill",
    /// As [`Family::PartKill`], with pauses for the cuts.
    PauseKill = "pause-kill",
    /// One bit of a file, while its node is down.
    FlipWal = "flip-wal",
    FlipSst = "flip-sst",
    TruncateWal = "truncate-wal",
    TruncateSst = "truncate-sst",
    /// One bit of a file of a node that runs, which is killed with it some seconds later: what it had in memory is right,
    /// what it reads when it starts is not.
    FlipKill = "flip-kill",
    /// One bit of a snapshot that is arriving at a node.
    FlipSnapshot = "flip-snapshot",
    /// The end of a snapshot that is arriving is missing.
    TruncateSnapshot = "truncate-snapshot",
    /// A node's files are those of some time ago.
    OldSnapshot = "old-snapshot",
    /// The file system goes away under a node that runs: EIO.
    FsyncError = "fsync-error",
    FullDisk = "full-disk",
    /// Few operations a second.
    SlowDisk = "slow-disk",
    MemoryLimit = "memory-limit",
    CpuLimit = "cpu-limit",
    /// The wall clock of some nodes jumps.
    Clock = "clock",
    LeaderTransfer = "leader-transfer",
    /// A node is cut off until the others have made their tables durable and purged their logs: it needs snapshots.
    Snapshot = "snapshot",
}

impl Family {
    /// Breaks the quorum on purpose (nothing can be said of liveness meanwhile), or takes all nodes at once: in a period of
    /// its own.
    pub fn alone(self) -> bool {
        use Family::*;
        matches!(
            self,
            KillMajority | KillAll | PauseMajority | PowerAll | PartKill | PauseKill
        )
    }

    /// Why a back end cannot do it, or `None`. What this machine lacks beyond that is found out when it is tried.
    pub fn lacks(self, root: bool, nodes: usize) -> Option<&'static str> {
        use Family::*;
        match self {
            PowerOne | PowerAll | PartKill | PauseKill | FsyncError | FullDisk | SlowDisk if !root => {
                Some("nodes have no file systems of their own in the back end `plain`")
            }
            MemoryLimit | CpuLimit if !root => Some("cgroups need the back end `root`"),
            PartKill | PauseKill if nodes < 3 => Some("the schedule needs three nodes"),
            _ => None,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, to: &mut fmt::Formatter) -> fmt::Result {
        to.write_str(self.name())
    }
}

impl FromStr for Family {
    type Err = String;

    fn from_str(name: &str) -> Result<Family, String> {
        let found = Family::ALL.iter().find(|family| family.name() == name);
        found
            .copied()
            .ok_or_else(|| format!("there is no family of faults `{name}`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_unique() {
        for family in Family::ALL {
            assert_eq!(family.name().parse(), Ok(*family));
        }
        assert!("killl".parse::<Family>().is_err());
    }
}
