//! Who may do what, as the cluster keeps it: changes, and when they are in effect.
//!
//! ```text
//!   change_access ─▶ meta ─▶ apply on each node ─▶ Local::access_changed ─▶ workers look again ─▶ guard dropped
//!        ▲                                                                                            │
//!        └── barrier: every Up node has applied it in effect, or is Down ◀── InEffect ◀───────────────┘
//! ```
//!
//! Invariant `revoked-everywhere`: when a change is answered, no node serves anybody against it: a node that is cut off has
//! lost its lease by then, and is Down.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use lontra_storage::command::{AccessOp, AccessReply, BanTarget, MetaOp, MetaReply};

use crate::error::MetaError;
use crate::operations::OPERATION_MAX;
use crate::{Cluster, Inner};

/// A ban, as whoever sets it says it.
#[derive(Clone, Debug)]
pub struct BanRequest {
    pub target: BanTarget,
    /// None: for good.
    pub seconds: Option<u32>,
    /// For operators: what happened.
    pub reason: Box<str>,
    /// Who sets it: `node 3: flapping`.
    pub by: Box<str>,
    /// A ban of that target that lasts as long stays as it is: what a machine decides does not shorten what a person has.
    pub only_longer: bool,
}

impl Cluster {
    /// Changes who may do what. When this returns, it is in effect on every node that serves clients.
    ///
    /// # Errors
    /// [`MetaError::Unavailable`]: nothing has changed. [`MetaError::Unknown`]: it may have, or is not known to be in effect
    /// everywhere; asking again is safe.
    pub async fn change_access(&self, operation: AccessOp) -> Result<AccessReply, MetaError> {
        self.inner.change_access(operation).await
    }

    /// Bans somebody; whom it is about is let go everywhere when this returns. Tells whether that target was banned before.
    ///
    /// # Errors
    /// As [`Cluster::change_access`]; [`MetaError::Stale`] if as many are banned as may be: nothing has changed.
    pub async fn ban(&self, ban: BanRequest) -> Result<bool, MetaError> {
        let operation = AccessOp::PutBan {
            target: ban.target,
            seconds: ban.seconds,
            reason: ban.reason,
            by: ban.by,
            only_longer: ban.only_longer,
        };
        match self.change_access(operation).await? {
            AccessReply::Done { existed } => Ok(existed),
            _ => Err(MetaError::Stale),
        }
    }
}

impl Inner {
    async fn change_access(self: &Arc<Self>, operation: AccessOp) -> Result<AccessReply, MetaError> {
        const WHAT: &str = "access";
        let operations = [MetaOp::Access(operation)];
        let (index, replies) = self.change_meta(WHAT, &operations, OPERATION_MAX).await?;
        let Some(MetaReply::Access(reply)) = replies.into_iter().next() else {
            return Err(MetaError::Unknown { what: WHAT });
        };
        // Also what existed already: the entry that made it so may not be everywhere yet.
        if let AccessReply::Done { .. } = reply {
            self.barrier(index, OPERATION_MAX).await?;
        }
        Ok(reply)
    }
}

/// Entries of meta that are applied and not in effect yet on this node.
#[derive(Debug, Default)]
pub struct InEffect {
    /// Guards a few numbers: how many changes of each entry are under way.
    under_way: Mutex<BTreeMap<u64, usize>>,
}

impl InEffect {
    /// Called before the index counts as applied.
    pub fn begin(&self, index: u64) {
        *self.lock().entry(index).or_default() += 1;
    }

    pub fn end(&self, index: u64) {
        let mut under_way = self.lock();
        if let Some(count) = under_way.get_mut(&index) {
            *count -= 1;
            if *count == 0 {
                under_way.remove(&index);
            }
        }
    }

    /// How far what is `applied` is in effect.
    pub fn until(&self, applied: u64) -> u64 {
        let under_way = self.lock();
        let first = under_way.keys().next();
        first.map_or(applied, |first| applied.min(first.saturating_sub(1)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, usize>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lontra_storage::ids::{MetaIndex, Offset, SessionEpoch, SessionId, ShardId};
    use lontra_storage::message::Message;
    use lontra_storage::meta::{AccessChange, MetaEvent, MetaSink};
    use lontra_storage::shard::Applied;
    use tokio::sync::mpsc;

    use super::*;
    use crate::delivery::{ControlEvent, MetaDelivery};
    use crate::local::{Audience, Credit, Guard, Local, Offer, Outcome, Ticket};

    /// Workers that have not looked again yet.
    #[derive(Default)]
    struct Slow(Mutex<Vec<(Vec<AccessChange>, Guard)>>);

    impl Local for Slow {
        fn applied(&self, _: Arc<Applied>) {}
        fn jumped(&self, _: ShardId, _: Offset) {}
        fn ephemeral(&self, _: Arc<Message>, _: Audience, _: Guard) {}
        fn offer(&self, _: &Offer) -> Vec<Credit> {
            Vec::new()
        }
        fn offer_over(&self, _: ShardId, _: SessionId, _: &[(SessionId, u32)]) {}
        fn completed(&self, _: Vec<(Ticket, Outcome)>) {}
        fn displaced(&self, _: SessionId, _: SessionEpoch) {}
        fn access_changed(&self, changes: &[AccessChange], guard: Guard) {
            self.0.lock().expect("no panic").push((changes.to_vec(), guard));
        }
        fn serving_changed(&self) {}
    }

    #[test]
    fn a_change_is_applied_at_once_and_in_effect_once_the_workers_have_looked_again() {
        let (workers, in_effect) = (Arc::new(Slow::default()), Arc::new(InEffect::default()));
        let (events, mut told) = mpsc::unbounded_channel();
        let sink = MetaDelivery {
            node: 1,
            local: workers.clone(),
            lease: Arc::default(),
            view: Default::default(),
            clock: Arc::default(),
            applied: Arc::default(),
            events,
            upkeep: Arc::default(),
            ended: Arc::default(),
            wills: Arc::default(),
            connects: Arc::default(),
            in_effect: in_effect.clone(),
        };
        let until = |sink: &MetaDelivery| sink.in_effect.until(sink.applied.current());
        sink.applied(MetaIndex(3), Vec::new());
        assert_eq!(until(&sink), 3);
        let change = AccessChange::User("al".into());
        sink.applied(MetaIndex(4), vec![MetaEvent::AccessChanged(change.clone())]);
        sink.applied(MetaIndex(5), Vec::new());
        assert_eq!((sink.applied.current(), until(&sink)), (5, 3));
        while told.try_recv().is_ok() {}
        let (changes, guard) = workers.0.lock().expect("no panic").remove(0);
        assert_eq!(changes, [change]);
        let another_worker = guard.clone();
        drop(guard);
        assert_eq!(until(&sink), 3, "one of two");
        drop(another_worker);
        assert_eq!(until(&sink), 5);
        assert_eq!(told.try_recv(), Ok(ControlEvent::Applied), "the leader is told at once");
        sink.jumped(MetaIndex(9));
        assert_eq!((sink.applied.current(), until(&sink)), (9, 8));
        let (changes, guard) = workers.0.lock().expect("no panic").remove(0);
        assert_eq!(changes, [AccessChange::Rules]);
        drop(guard);
        assert_eq!(until(&sink), 9);
    }

    #[test]
    fn what_is_under_way_holds_back_itself_and_what_follows() {
        let in_effect = InEffect::default();
        assert_eq!(in_effect.until(7), 7);
        in_effect.begin(5);
        in_effect.begin(5);
        in_effect.begin(8);
        assert_eq!((in_effect.until(4), in_effect.until(9)), (4, 4));
        in_effect.end(5);
        assert_eq!(in_effect.until(9), 4);
        in_effect.end(5);
        assert_eq!(in_effect.until(9), 7);
        in_effect.end(8);
        assert_eq!(in_effect.until(9), 9);
    }
}
