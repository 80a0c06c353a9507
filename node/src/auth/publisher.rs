//! The one place that publishes for clients.
//!
//! Invariants
//! - `no-way-around`: the cluster gives out its [`Publisher`] once, and it is in here, unreachable; what goes by has the proof.
//!
//! Wills go another way: the cluster keeps them, and asks the hub whether their author still may when it publishes them.

use std::sync::Arc;

use bytes::Bytes;
use lontra_cluster::local::{Member, Ticket};
use lontra_cluster::{DelayedPublish, DurablePublish, Publisher};
use lontra_storage::ids::{NodeId, ShardId};
use lontra_storage::message::Message;

use super::authorized::Authorized;

/// Cheap to clone.
#[derive(Clone)]
pub struct CheckedPublisher(Arc<Publisher>);

impl CheckedPublisher {
    pub fn new(publisher: Publisher) -> Self {
        CheckedPublisher(Arc::new(publisher))
    }

    /// See [`Publisher::durable`].
    pub fn durable(&self, shard: ShardId, publish: DurablePublish<Authorized<Bytes>>) {
        self.0.durable(shard, publish.map(Authorized::into_inner));
    }

    /// See [`Publisher::delayed`].
    pub fn delayed(&self, shard: ShardId, publish: DelayedPublish<Authorized<Bytes>>) {
        self.0.delayed(shard, publish.map(Authorized::into_inner));
    }

    /// See [`Publisher::ephemeral`].
    pub fn ephemeral(
        &self,
        message: Authorized<Message>,
        nodes: &[NodeId],
        given: Vec<(NodeId, Member)>,
        ticket: Option<Ticket>,
    ) {
        self.0.ephemeral(Arc::new(message.into_inner()), nodes, given, ticket);
    }
}
