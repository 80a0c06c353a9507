//! Bugs on purpose, for proof that `jepsen-tests` can fail: in a build with the feature `test-bugs` the variable
//! `LONTRA_TEST_BUG` names one. Without the feature [`has`] is a constant and the bugs are not in the binary.

/// Each is a bug that brokers have had, and what it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A durable publish is acknowledged when it is handed in. (P1)
    AckBeforeCommit,
    /// The log is synced every two seconds, and answers at once. (P1 after a power cut)
    AckBeforeFsync,
    /// The log is never synced. (P1 after a power cut)
    NoFsync,
    /// A vote stays in memory. (Raft: two leaders in a term)
    VoteNotPersisted,
    /// Retained messages are read from the local view, whatever it has applied. (P5)
    LocalRetainedRead,
    /// A leader answers a ReadIndex from what it has applied itself, without asking anybody. (P5, P9)
    LeaderServesBeforeBarrier,
    /// When a node goes Down, shards forget the QoS 2 ids that they have received. (P2)
    DropQos2IdsOnFailover,
    /// SUBACK does not wait for the cluster. (P4)
    SubackBeforeCommit,
    /// The previous connection of a client id is served on. (P6)
    NoTakeoverFence,
    /// A shard does not recognise a will that it has published. (P7)
    DoubleWillOnFailover,
    /// A member's acknowledgement is forgotten: when it goes, another member gets the message. (P8)
    ShareRedeliverAcked,
    /// Directories are not synced, and a checkpoint goes on to purge the log before the files of its tables are found again
    /// after a power cut. (P1) The first alone shows nothing on ext4: an fsync of any file commits the journal, and with it the
    /// entries of all directories; RocksDB syncs its own.
    SkipDirFsync,
    /// A snapshot that is sent lacks its last key.
    SnapshotSkipsLastKey,
    /// A damaged log opens up to the damage: the recovery mode that RocksDB has by default.
    WalPointInTime,
}

impl Bug {
    pub const ALL: [(&str, Bug); 14] = [
        ("ack_before_commit", Bug::AckBeforeCommit),
        ("ack_before_fsync", Bug::AckBeforeFsync),
        ("no_fsync", Bug::NoFsync),
        ("vote_not_persisted", Bug::VoteNotPersisted),
        ("local_retained_read", Bug::LocalRetainedRead),
        ("leader_serves_before_barrier", Bug::LeaderServesBeforeBarrier),
        ("drop_qos2_ids_on_failover", Bug::DropQos2IdsOnFailover),
        ("suback_before_commit", Bug::SubackBeforeCommit),
        ("no_takeover_fence", Bug::NoTakeoverFence),
        ("double_will_on_failover", Bug::DoubleWillOnFailover),
        ("share_redeliver_acked", Bug::ShareRedeliverAcked),
        ("skip_dir_fsync", Bug::SkipDirFsync),
        ("snapshot_skips_last_key", Bug::SnapshotSkipsLastKey),
        ("wal_point_in_time", Bug::WalPointInTime),
    ];
}

/// Whether this process has the bug.
#[cfg(not(feature = "test-bugs"))]
#[inline(always)]
pub const fn has(_: Bug) -> bool {
    false
}

/// Whether this process has the bug.
///
/// # Panics
/// `LONTRA_TEST_BUG` names none.
#[cfg(feature = "test-bugs")]
pub fn has(bug: Bug) -> bool {
    use std::sync::OnceLock;
    static CHOSEN: OnceLock<Option<Bug>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let name = std::env::var("LONTRA_TEST_BUG").ok()?;
        let found = Bug::ALL.iter().find(|(known, _)| *known == name);
        Some(
            found
                .unwrap_or_else(|| panic!("LONTRA_TEST_BUG: there is no bug {name}"))
                .1,
        )
    });
    *chosen == Some(bug)
}

/// [`Bug::AckBeforeFsync`]: whether two seconds have passed since this said so.
pub fn late_sync_is_due() -> bool {
    use std::sync::{Mutex, PoisonError};
    use std::time::{Duration, Instant};
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let due = last.is_none_or(|at| at.elapsed() >= Duration::from_secs(2));
    if due {
        *last = Some(Instant::now());
    }
    due
}
