//! Connects that may be carried out after this node gave them up.
//!
//!     proposed ──not answered──▶ expected ──carried out──▶ given back (Detach)
//!                                   └─ not within LATE_MAX, or the incarnation ended ─▶ forgotten
//!
//! A Connect whose outcome is unknown has no connection any more. If it commits, the session would have an owner that does
//! not serve it, for ever: it would not expire, and its will would never be due. So what was applied is compared, after each
//! entry, with what is expected here.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lontra_storage::command::MetaOp;
use lontra_storage::ids::{Incarnation, SessionEpoch, SessionId};
use tokio::time::Instant;

use crate::Inner;
use crate::operations::OPERATION_MAX;

/// A Connect as its session would name it.
pub(crate) struct LateConnect {
    pub client_id: Box<str>,
    pub incarnation: Incarnation,
    pub request: u64,
}

/// Guards the Connects that are expected, with when they were given up; never held over an await.
#[derive(Default)]
pub(crate) struct LateConnects(Mutex<Vec<(Instant, LateConnect)>>);

impl LateConnects {
    fn expect(&self, connect: LateConnect) {
        let mut expected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        expected.push((Instant::now(), connect));
    }

    /// Takes out those that `is_done` finds a session of; forgets the ones of another incarnation and the old.
    fn take(
        &self,
        current: Incarnation,
        is_done: impl Fn(&LateConnect) -> Option<(SessionId, SessionEpoch)>,
    ) -> Vec<(SessionId, SessionEpoch)> {
        let mut expected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = Vec::new();
        expected.retain(|(since, connect)| {
            let found = is_done(connect);
            done.extend(found);
            found.is_none() && connect.incarnation == current && since.elapsed() < LATE_MAX
        });
        done
    }

    fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

impl Inner {
    /// A Connect was given up, and may be carried out yet or have been.
    pub(crate) fn expect_late_connect(self: &Arc<Self>, connect: LateConnect) {
        self.late_connects.expect(connect);
        self.give_back_late_connects();
    }

    /// Called after each applied entry of meta.
    pub(crate) fn give_back_late_connects(self: &Arc<Self>) {
        if self.late_connects.is_empty() {
            return;
        }
        let done = {
            let meta = self.meta_view.read();
            let is_done = |connect: &LateConnect| {
                let (id, session) = meta.session_of(&connect.client_id)?;
                let connected = &session.connected;
                let is_it = (connected.incarnation, connected.request) == (connect.incarnation, connect.request);
                (is_it && session.owner.is_some()).then_some((id, session.epoch))
            };
            self.late_connects.take(self.lease.incarnation(), is_done)
        };
        for (session, epoch) in done {
            tracing::debug!(
                session = session.0,
                "a CONNECT was carried out after its client was let go: given back"
            );
            self.give_back(session, epoch);
        }
    }

    pub(crate) fn give_back(self: &Arc<Self>, session: SessionId, epoch: SessionEpoch) {
        let inner = self.clone();
        self.runtime.spawn(async move {
            // What an earlier connection sent is not known here.
            let operation = MetaOp::Detach {
                session,
                epoch,
                expiry: None,
                sent: None,
                publish_will: false,
            };
            inner.detach(operation).await;
        });
    }

    /// Proposes a Detach until it is committed, true, or this incarnation is over, which settles it.
    pub(crate) async fn detach(self: &Arc<Self>, detach: MetaOp) -> bool {
        let incarnation = self.lease.incarnation();
        let operation = [detach];
        while self.lease.incarnation() == incarnation {
            if self.change_meta("disconnect", &operation, OPERATION_MAX).await.is_ok() {
                return true;
            }
        }
        false
    }
}

/// A proposal that has not been carried out by then is gone: its leader's term is over, or its link.
const LATE_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    const CURRENT: Incarnation = Incarnation(7);

    fn connect(request: u64, incarnation: Incarnation) -> LateConnect {
        LateConnect {
            client_id: "client".into(),
            incarnation,
            request,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_expected_is_found_once_and_forgotten_in_time() {
        let expected = LateConnects::default();
        for request in 1..=3 {
            expected.expect(connect(request, CURRENT));
        }
        let second = |one: &LateConnect| (one.request == 2).then_some((SessionId(5), SessionEpoch(2)));
        assert_eq!(expected.take(CURRENT, second), [(SessionId(5), SessionEpoch(2))]);
        assert_eq!(expected.take(CURRENT, second), []);
        assert!(!expected.is_empty());
        tokio::time::advance(LATE_MAX).await;
        assert_eq!(expected.take(CURRENT, |_| None), []);
        assert!(expected.is_empty());
    }

    #[test]
    fn an_incarnation_that_is_over_owns_nothing() {
        let expected = LateConnects::default();
        expected.expect(connect(1, CURRENT));
        assert_eq!(expected.take(Incarnation(8), |_| None), []);
        assert!(expected.is_empty());
    }
}
