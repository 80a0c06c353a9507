//! What a durable session still has to get from one shard: pages of its queue, and pushes while it keeps up.
//!
//! ```text
//!   Detached ─attach─▶ Behind ─room─▶ Reading ─page─▶ Live ─hole, push without room─▶ Behind
//!                         ▲                       │
//!                         └── more, or missed ────┘
//! ```
//!
//! Invariant `cursor`: a push counts only while every earlier entry of the shard has been taken in; otherwise the
//! session is behind, and reads pages until it has caught up with all that it missed.

use std::collections::VecDeque;

use lontra_storage::ids::Offset;
use lontra_storage::shard::{Page, PendingEntry};

use crate::rare::Rare;

#[derive(Debug, Default)]
pub(super) struct ShardQueue {
    /// Everything up to here was taken into `ready`.
    cursor: Offset,
    /// The highest offset that was pushed while behind, or that a hole covers.
    missed: Offset,
    view: View,
    /// There are as many queues as shards, and most are empty.
    ready: Rare<VecDeque<PendingEntry>>,
    /// Entries up to here may have been sent to an earlier connection: they carry DUP. [MQTT-3.3.1-1]
    maybe_sent: Offset,
    /// It is not known what an earlier connection sent: everything that it may have seen counts, which is what the
    /// session finds until it has caught up once.
    sent_unknown: bool,
    /// The highest offset sent, by this connection or an earlier one.
    highest_sent: Offset,
    attached_at: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum View {
    /// Not attached to the shard yet.
    #[default]
    Detached,
    /// Pages must be read, when there is room.
    Behind,
    /// A page is being read.
    Reading,
    /// Pushes are taken in as they come.
    Live,
}

impl ShardQueue {
    /// Pages may be read; each must have applied the log up to `index`.
    pub fn attach(&mut self, index: u64) {
        if self.view == View::Detached {
            self.view = View::Behind;
            self.attached_at = index;
        }
    }

    /// The session is new: nothing can be queued, and pushes count from the first.
    pub fn attach_fresh(&mut self) {
        self.view = View::Live;
    }

    pub fn attached_at(&self) -> u64 {
        self.attached_at
    }

    /// The highest offset that earlier connections sent; `None` if that is not known.
    pub fn resume(&mut self, sent: Option<Offset>) {
        self.sent_unknown = sent.is_none();
        self.maybe_sent = sent.unwrap_or_default();
        self.highest_sent = self.maybe_sent;
    }

    pub fn is_maybe_sent(&self, offset: Offset) -> bool {
        offset <= self.maybe_sent
    }

    pub fn sent(&mut self, offset: Offset) {
        self.highest_sent = self.highest_sent.max(offset);
    }

    /// `None` if it is not known.
    pub fn highest_sent(&self) -> Option<Offset> {
        (!self.sent_unknown).then_some(self.highest_sent)
    }

    pub fn page(&mut self, page: Page) {
        if self.sent_unknown {
            self.maybe_sent = page.upto;
            self.highest_sent = self.highest_sent.max(page.upto);
        }
        for entry in page.entries {
            if entry.offset > self.cursor {
                self.cursor = entry.offset;
                self.ready.make().push_back(entry);
            }
        }
        self.cursor = self.cursor.max(page.upto);
        self.view = if page.more || self.missed > self.cursor {
            View::Behind
        } else {
            View::Live
        };
        self.sent_unknown &= self.view != View::Live;
    }

    /// Behind which offset the next page is to be read, if the session is behind and has room for it.
    pub fn next_page(&mut self) -> Option<Offset> {
        if self.view != View::Behind || self.len() > READY_MAX / 2 {
            return None;
        }
        self.view = View::Reading;
        Some(self.cursor)
    }

    pub fn push(&mut self, entry: impl FnOnce() -> PendingEntry, offset: Offset) {
        if offset <= self.cursor {
            return;
        }
        if self.view == View::Live && self.len() < READY_MAX {
            self.cursor = offset;
            self.ready.make().push_back(entry());
            return;
        }
        self.fall_behind(offset);
    }

    /// Something up to `upto` was never pushed.
    pub fn hole(&mut self, upto: Offset) {
        if upto > self.cursor {
            self.fall_behind(upto);
        }
    }

    fn fall_behind(&mut self, missed: Offset) {
        self.missed = self.missed.max(missed);
        if self.view == View::Live {
            self.view = View::Behind;
        }
    }

    pub fn front(&self) -> Option<&PendingEntry> {
        self.ready.get()?.front()
    }

    pub fn pop_front(&mut self) -> Option<PendingEntry> {
        self.ready.get_mut()?.pop_front()
    }

    /// Whether pages are to be read, or being read.
    pub fn is_behind(&self) -> bool {
        matches!(self.view, View::Behind | View::Reading)
    }

    pub fn len(&self) -> usize {
        self.ready.get().map_or(0, VecDeque::len)
    }

    pub fn clear(&mut self) {
        self.ready = Rare::default();
    }
}

/// Entries of a shard that are kept in memory for one session.
const READY_MAX: usize = 64;
