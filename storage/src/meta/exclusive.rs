//! Exclusive subscriptions, `$exclusive/{filter}`: of each filter one session of the cluster holds one.
//!
//! ```text
//!   Subscribe { exclusive } ─ nobody, or the session itself holds it ─▶ held ─▶ Unsubscribe, Subscribe without, end of the session: free
//!                           └ another session does ─▶ refused, nothing is changed
//! ```
//!
//! The claim is the subscription itself: its row tells who holds it, so there is none without a subscription, and none
//! that outlives it. A durable session keeps it while nobody serves it. An ephemeral one has its other subscriptions at
//! its node and only this one here; it ends with its connection, or with its node, and so does what it claimed. Its id is
//! never used again, and its epoch is looked at as with every operation of a session: what a connection that is gone
//! still has under way claims nothing and gives nothing back.
//!
//! Invariant `one-holder`: decided here, in the order of the log. Others may subscribe to the same filter without it.

use super::MetaState;
use crate::ids::SessionId;

impl MetaState {
    /// The session that holds the exclusive subscription to `filter`.
    pub fn exclusive_holder(&self, filter: &str) -> Option<SessionId> {
        self.exclusive.get(filter).copied()
    }

    pub(super) fn is_held_by_another(&self, filter: &str, session: SessionId) -> bool {
        self.exclusive_holder(filter).is_some_and(|holder| holder != session)
    }

    /// Memory only: also used when the rows are loaded.
    pub(super) fn hold(&mut self, filter: &str, session: SessionId) {
        let before = self.exclusive.insert(filter.into(), session);
        debug_assert!(before.is_none_or(|before| before == session), "one-holder: {filter}");
    }

    /// Whatever `session` holds of it; another's stays.
    pub(super) fn let_go(&mut self, filter: &str, session: SessionId) {
        if self.exclusive_holder(filter) == Some(session) {
            self.exclusive.remove(filter);
        }
    }
}
