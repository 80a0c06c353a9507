//! What the log, the tables, the log writer and the checkpoint share of one group.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::ids::GroupId;
use crate::log_tail::{LogTail, next_index};
use crate::raft_types::{LogId, SnapshotMeta, StoredMembership};

pub(crate) struct Group {
    pub id: GroupId,
    /// Guards the tail of the log; held for memory work only.
    tail: Mutex<LogTail>,
    /// What the log writer made durable; apply waits for it.
    pub synced: watch::Sender<Synced>,
    /// Which rows of the state database are this group's; shared with `Tables`.
    pub generation: Arc<AtomicU32>,
    /// A number that no generation of this group has had since the start.
    next_generation: AtomicU32,
    /// Guards the position of the tables, as last written.
    applied: Mutex<Applied>,
    /// Guards the position of the tables, as known durable.
    durable: Mutex<Applied>,
}

/// Entries below `next` are durable, in the epoch of [`LogTail::epoch`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Synced {
    pub epoch: u64,
    pub next: u64,
}

/// Position of a group's tables. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Applied {
    pub last: Option<LogId>,
    pub membership: Arc<StoredMembership>,
}

impl Applied {
    pub fn meta(&self) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: self.last,
            last_membership: (*self.membership).clone(),
        }
    }
}

impl From<SnapshotMeta> for Applied {
    fn from(meta: SnapshotMeta) -> Self {
        Applied {
            last: meta.last_log_id,
            membership: Arc::new(meta.last_membership),
        }
    }
}

impl Group {
    pub fn new(id: GroupId, tail: LogTail, generation: u32, applied: Applied) -> Group {
        let synced = Synced {
            epoch: tail.epoch,
            next: next_index(&tail.last),
        };
        Group {
            id,
            tail: Mutex::new(tail),
            synced: watch::Sender::new(synced),
            generation: Arc::new(AtomicU32::new(generation)),
            next_generation: AtomicU32::new(generation + 1),
            applied: Mutex::new(applied.clone()),
            durable: Mutex::new(applied),
        }
    }

    pub fn tail(&self) -> MutexGuard<'_, LogTail> {
        lock(&self.tail)
    }

    pub fn applied(&self) -> Applied {
        lock(&self.applied).clone()
    }

    pub fn set_applied(&self, applied: Applied) {
        *lock(&self.applied) = applied;
    }

    pub fn durable(&self) -> Applied {
        lock(&self.durable).clone()
    }

    /// A checkpoint that began before a snapshot was installed must not take it back.
    pub fn raise_durable(&self, applied: Applied) {
        let mut durable = lock(&self.durable);
        if applied.last > durable.last {
            *durable = applied;
        }
    }

    pub fn current_generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    pub fn fresh_generation(&self) -> u32 {
        self.next_generation.fetch_add(1, Ordering::Relaxed)
    }

    /// The writer has made everything below `next` of `epoch` durable.
    pub fn raise_synced(&self, epoch: u64, next: u64) {
        self.synced.send_if_modified(|synced| {
            let newer = synced.epoch == epoch && next > synced.next;
            if newer {
                synced.next = next;
            }
            newer
        });
    }

    /// The log now ends before `next`; reports of older epochs count for nothing.
    pub fn lower_synced(&self, epoch: u64, next: u64) {
        self.synced.send_modify(|synced| {
            synced.epoch = epoch;
            synced.next = synced.next.min(next);
        });
    }

    /// Committed and durable here: what this node must find again after any restart.
    pub fn witness(&self) -> Option<u64> {
        let committed = next_index(&self.tail().committed);
        committed.min(self.synced.borrow().next).checked_sub(1)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under one of these locks is a failed debug assertion; what they guard is replaced whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
