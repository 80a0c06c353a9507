//! The right to publish, apart from everything else that a node asks of its cluster.
//!
//! ```text
//!   Cluster::start ─▶ (Cluster, Publisher)
//!                         │         └─▶ whoever checks first: there is one, and no way to another
//!                         └─▶ everyone
//! ```
//!
//! Invariants
//! - `no-way-around`: [`Cluster`](crate::Cluster) has nothing that publishes; a [`Publisher`] is made once, at the start, and is
//!   not copied.

use std::sync::Arc;

use bytes::Bytes;
use lontra_storage::command::{Delay, Origin};
use lontra_storage::ids::{NodeId, ShardId};
use lontra_storage::message::{Message, Recipient};

use crate::Inner;
use crate::local::{Member, Outcome, Ticket};
use crate::publisher::{Publish, PublishReply, ShardRequest};

/// Whoever has it publishes.
pub struct Publisher {
    inner: Arc<Inner>,
}

/// A publish on the durable path.
pub struct DurablePublish<M = Bytes> {
    /// An encoded message.
    pub message: M,
    pub retain: bool,
    /// An empty retained payload removes: never refused for want of room.
    pub removes: bool,
    pub recipients: Arc<[Recipient]>,
    pub route_version: u64,
    pub origin: Origin,
    pub ticket: Ticket,
}

/// A publish that is delivered later, to whoever is subscribed then.
pub struct DelayedPublish<M = Bytes> {
    /// An encoded message, as it is to be published.
    pub message: M,
    /// In log time of the topic's shard.
    pub seconds: u32,
    /// `Plain` or `Received`.
    pub origin: Origin,
    pub ticket: Ticket,
    /// It is to be retained, and does not remove what is.
    pub retain: bool,
}

impl<M> DurablePublish<M> {
    pub fn map<N>(self, message: impl FnOnce(M) -> N) -> DurablePublish<N> {
        DurablePublish {
            message: message(self.message),
            retain: self.retain,
            removes: self.removes,
            recipients: self.recipients,
            route_version: self.route_version,
            origin: self.origin,
            ticket: self.ticket,
        }
    }
}

impl<M> DelayedPublish<M> {
    pub fn map<N>(self, message: impl FnOnce(M) -> N) -> DelayedPublish<N> {
        DelayedPublish {
            message: message(self.message),
            seconds: self.seconds,
            origin: self.origin,
            ticket: self.ticket,
            retain: self.retain,
        }
    }
}

impl Publisher {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Publisher { inner }
    }

    /// A publish on the durable path. Its outcome is told to the ticket, on the result of apply.
    pub fn durable(&self, shard: ShardId, publish: DurablePublish) {
        let refused = if self.inner.lease.is_disk_low(shard) {
            Some(Outcome::DiskLow)
        } else if publish.retain && !publish.removes && self.inner.is_retained_full(shard) {
            Some(Outcome::RetainedFull)
        } else {
            None
        };
        if let Some(outcome) = refused {
            self.inner.local.completed(vec![(publish.ticket, outcome)]);
            return;
        }
        self.inner.send(
            shard,
            ShardRequest::Publish(Publish {
                message: publish.message,
                recipients: publish.recipients,
                route_version: publish.route_version,
                retain: publish.retain,
                origin: publish.origin,
                reply: PublishReply::Ticket(publish.ticket),
            }),
        );
    }

    /// Stores a publish until its time has come. Its outcome is told to the ticket, on the result of apply.
    pub fn delayed(&self, shard: ShardId, publish: DelayedPublish) {
        if self.inner.lease.is_disk_low(shard) {
            self.inner.local.completed(vec![(publish.ticket, Outcome::DiskLow)]);
            return;
        }
        if publish.retain && self.inner.is_retained_full(shard) {
            self.inner
                .local
                .completed(vec![(publish.ticket, Outcome::RetainedFull)]);
            return;
        }
        let shards = u64::from(self.inner.shards.shard_count());
        let max = self.inner.limits.borrow().delayed_messages_max;
        let delay = Delay {
            message: publish.message,
            seconds: publish.seconds,
            count_max: max.map(|max| max.div_ceil(shards)),
            origin: publish.origin,
        };
        let ticket = publish.ticket;
        self.inner.send(shard, ShardRequest::Delay { delay, ticket });
    }

    /// A publish on the ephemeral path, to connected sessions only.
    pub fn ephemeral(
        &self,
        message: Arc<Message>,
        nodes: &[NodeId],
        given: Vec<(NodeId, Member)>,
        ticket: Option<Ticket>,
    ) {
        self.inner.publish_ephemeral(message, nodes, given, ticket);
    }
}
