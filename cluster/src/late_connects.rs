//! Connects that are carried out though nobody waits for them any more.
//!
//!     proposed ──answered──▶ its connection serves the session
//!        └─ given up ──carried out all the same──▶ given back (Detach)
//!
//! A Connect whose outcome is unknown has no connection. If it commits, the session would have an owner that does not serve
//! it, for ever: it would not expire, and its will would never be due. Nothing is remembered of what was given up: what is
//! carried out for this incarnation and is not under way is late, whenever it comes.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use lontra_storage::command::MetaOp;
use lontra_storage::ids::{Incarnation, SessionEpoch, SessionId};

use crate::Inner;
use crate::operations::OPERATION_MAX;

/// Guards the requests that a connection waits for, at most one each; never held over an await.
#[derive(Default)]
pub(crate) struct ConnectsUnderWay(Mutex<HashSet<u64>>);

impl ConnectsUnderWay {
    pub fn begin(self: &Arc<Self>, request: u64) -> UnderWay {
        self.change(|requests| requests.insert(request));
        UnderWay {
            all: self.clone(),
            request,
        }
    }

    pub fn contains(&self, request: u64) -> bool {
        self.change(|requests| requests.contains(&request))
    }

    fn change(&self, change: impl FnOnce(&mut HashSet<u64>) -> bool) -> bool {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Somebody waits for a Connect as long as this lives.
pub(crate) struct UnderWay {
    all: Arc<ConnectsUnderWay>,
    pub request: u64,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.all.change(|requests| requests.remove(&self.request));
    }
}

impl Inner {
    /// A Connect is not waited for any more, and was carried out or may be yet. Later than this, apply finds it late; earlier,
    /// the view shows it.
    pub(crate) fn give_up_connect(self: &Arc<Self>, client_id: &str, incarnation: Incarnation, connect: UnderWay) {
        let request = connect.request;
        drop(connect);
        let carried_out = {
            let meta = self.meta_view.read();
            meta.session_of(client_id).and_then(|(id, session)| {
                let is_it = (session.connected.incarnation, session.connected.request) == (incarnation, request);
                (is_it && session.owner.is_some()).then_some((id, session.epoch))
            })
        };
        if let Some((session, epoch)) = carried_out {
            self.give_back(session, epoch);
        }
    }

    /// Without this the session would have an owner for ever.
    pub(crate) fn give_back(self: &Arc<Self>, session: SessionId, epoch: SessionEpoch) {
        tracing::debug!(
            session = session.0,
            "a CONNECT was carried out that is not served: given back"
        );
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

#[cfg(test)]
mod tests {
    use lontra_storage::command::Owner;
    use lontra_storage::ids::{MetaIndex, Offset, ShardId};
    use lontra_storage::message::Message;
    use lontra_storage::meta::{MetaEvent, MetaSink, MetaView};
    use lontra_storage::shard::Applied;
    use tokio::sync::mpsc;

    use super::*;
    use crate::delivery::{ControlEvent, MetaDelivery};
    use crate::lease::Lease;
    use crate::local::{Audience, Credit, Guard, Local, Offer, Outcome, Ticket};

    struct Nobody;

    impl Local for Nobody {
        fn applied(&self, _: Arc<Applied>) {}
        fn jumped(&self, _: ShardId, _: Offset) {}
        fn ephemeral(&self, _: Arc<Message>, _: Audience, _: Guard) {}
        fn offer(&self, _: &Offer) -> Vec<Credit> {
            Vec::new()
        }
        fn offer_over(&self, _: ShardId, _: SessionId, _: &[(SessionId, u32)]) {}
        fn completed(&self, _: Vec<(Ticket, Outcome)>) {}
        fn displaced(&self, _: SessionId, _: SessionEpoch) {}
        fn serving_changed(&self) {}
    }

    #[test]
    fn what_is_carried_out_for_this_incarnation_and_is_not_under_way_is_late() {
        let connects = Arc::new(ConnectsUnderWay::default());
        let lease = Arc::new(Lease::default());
        lease.admit(Incarnation(7));
        let (sender, mut events) = mpsc::unbounded_channel();
        let sink = MetaDelivery {
            node: 1,
            local: Arc::new(Nobody),
            lease,
            view: MetaView::default(),
            clock: Arc::default(),
            applied: Arc::default(),
            events: sender,
            upkeep: Arc::default(),
            ended: Arc::default(),
            wills: Arc::default(),
            connects: connects.clone(),
            in_effect: Arc::default(),
        };
        let mut index = 0;
        let mut late = |node, incarnation, request| {
            index += 1;
            let served = MetaEvent::Served {
                session: SessionId(5),
                epoch: SessionEpoch(2),
                owner: Owner { node, incarnation },
                request,
            };
            sink.applied(MetaIndex(index), vec![served]);
            let first = events.try_recv().expect("an event");
            while events.try_recv().is_ok() {}
            first == ControlEvent::Late(SessionId(5), SessionEpoch(2))
        };
        let (first, second) = (connects.begin(1), connects.begin(2));
        assert!(!late(1, Incarnation(7), 1));
        assert!(!late(1, Incarnation(7), 2));
        drop(first);
        assert!(late(1, Incarnation(7), 1), "nobody waits for it");
        assert!(!late(1, Incarnation(7), 2));
        drop(second);
        assert!(late(1, Incarnation(7), 2));
        // Another node's, and one of a start before this one, which is replayed or has ended.
        assert!(!late(2, Incarnation(7), 1));
        assert!(!late(1, Incarnation(6), 1));
    }
}
