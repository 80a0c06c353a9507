//! What a shard's log says: batches of nodes, and what apply answers to each.

mod bytes;
#[cfg(test)]
mod tests;

use ::bytes::Bytes;

pub(crate) use self::bytes::{read_applied, write_applied};
use crate::ids::{DelayedId, Incarnation, MetaIndex, NodeId, Offset, SessionEpoch, SessionId};
use crate::message::{LogTime, Recipient};

/// Operations of one node for one shard. Messages and sequence are fixed once it was sent (`batch-sequence`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeBatch {
    pub node: NodeId,
    pub incarnation: Incarnation,
    /// From 1 per (incarnation, shard), without gaps.
    pub sequence: u64,
    /// The route version that its retained messages were matched at: one batch, one version. 0 without any.
    pub route_version: MetaIndex,
    /// Recipient sets that the operations refer to: equal matches are written once.
    pub recipient_sets: Vec<Vec<Recipient>>,
    pub operations: Vec<ShardOperation>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardOperation {
    Append(Append),
    /// The session is gone for good: at most [`crate::shard::SWEEP_PAGE`] of its rows leave. Repeated until none is
    /// left. What it was assigned of a shared group goes back, QoS 2 excepted. [MQTT-4.8.2-5]
    Sweep {
        session: SessionId,
    },
    /// Entries leave the session's queue. Idempotent; [`Left::Delivered`] is true from any owner.
    Ack {
        session: SessionId,
        how: Left,
        offsets: Vec<Offset>,
    },
    /// PUBREC received: from here on the client is sent PUBREL, never the PUBLISH again. Idempotent. [MQTT-4.3.3-5]
    Release {
        session: SessionId,
        offsets: Vec<Offset>,
    },
    /// PUBREL received: the Packet Identifier is free for a new message. Idempotent. [MQTT-4.3.3-11]
    ReleaseReceived {
        session: SessionId,
        epoch: SessionEpoch,
        packet_id: u16,
    },
    /// A page of the retained messages that a new subscription of a durable session matches enters its queue. Repeated
    /// until the answer is not `More`, and from then on without effect until it is forgotten.
    EnqueueRetained(EnqueueRetained),
    /// Nobody asks for this replay any more. One of a later version is left alone.
    ForgetReplay {
        session: SessionId,
        filter: Box<str>,
        version: MetaIndex,
    },
    /// Retained messages whose time is over by log time leave, at most `limit`.
    ExpireRetained {
        limit: u32,
    },
    /// Waiting messages of a shared group go to connected members.
    Assign {
        group: SessionId,
        assignments: Vec<Assignment>,
    },
    /// The member's connection ended: what it was assigned goes back to the group (QoS 2 stays). [MQTT-4.8.2-5]
    Unassign {
        session: SessionId,
        offsets: Vec<Offset>,
    },
    /// Meta recorded the wills as published.
    ForgetWills {
        wills: Vec<(SessionId, SessionEpoch)>,
    },
    /// The incarnation is Down: nothing more of it is taken. Idempotent. (`Mark` of DESIGN §4)
    Fence {
        node: NodeId,
        incarnation: Incarnation,
    },
    /// A message is stored until its time has come.
    Delay(Delay),
    /// Nothing but the time of its entry, so that log time is as durable as what waits for it.
    Tick,
}

/// See [`ShardOperation::Delay`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delay {
    /// An encoded [`crate::message::Message`], as it is to be appended.
    pub message: Bytes,
    /// From the entry's log time on.
    pub seconds: u32,
    /// Refused if as many wait in the shard.
    pub count_max: Option<u64>,
    /// As of an [`Append`]: `Plain` or `Received`.
    pub origin: Origin,
}

/// How a message left a queue. The values are those of the encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Left {
    /// The client acknowledged it: PUBACK, PUBCOMP, or PUBREC with an error.
    Delivered = 0,
    /// Its Message Expiry Interval passed, or the age that the operator allows.
    Expired = 1,
    /// Larger than the client's Maximum Packet Size.
    TooLarge = 2,
    /// A limit of the operator: the oldest went.
    DropOldest = 3,
    /// A limit of the operator: the newest went.
    DropNew = 4,
    /// Its session ended, or its group.
    SessionEnded = 5,
    /// Granted QoS 0, and the client does not read fast enough.
    OutboxFull = 6,
    /// The client may not read its topic.
    NotAuthorized = 7,
}

impl Left {
    pub const ALL: [Left; 8] = [
        Left::Delivered,
        Left::Expired,
        Left::TooLarge,
        Left::DropOldest,
        Left::DropNew,
        Left::SessionEnded,
        Left::OutboxFull,
        Left::NotAuthorized,
    ];

    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Left::Delivered => "delivered",
            Left::Expired => "expired",
            Left::TooLarge => "packet_too_large",
            Left::DropOldest => "drop_oldest",
            Left::DropNew => "drop_new",
            Left::SessionEnded => "session_ended",
            Left::OutboxFull => "outbox_full",
            Left::NotAuthorized => "not_authorized",
        }
    }
}

/// Stores a message for the recipients of a set; takes one offset for all sessions, and one more per group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// An encoded [`crate::message::Message`].
    pub message: Bytes,
    /// Index of its recipient set.
    pub recipients: u32,
    pub origin: Origin,
}

/// Where a message comes from, as far as a repeat of it must be recognised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// QoS 0 or 1: the batch's sequence is enough.
    #[default]
    Plain,
    /// QoS 2 from a client: a repeat under the same Packet Identifier is the same message until PUBREL, whichever node
    /// it comes through. [MQTT-4.3.3-10]
    Received {
        session: SessionId,
        epoch: SessionEpoch,
        packet_id: u16,
    },
    /// The will of a connection. Not taken after `not_after`: a proposer that was paused must not append it once the
    /// record of its repeat key is gone.
    Will {
        session: SessionId,
        epoch: SessionEpoch,
        not_after: LogTime,
    },
    /// A delayed message whose time has come: refused unless it still waits in the shard under this key.
    Delayed { due: LogTime, id: DelayedId },
}

/// See [`ShardOperation::EnqueueRetained`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnqueueRetained {
    pub session: SessionId,
    pub filter: Box<str>,
    /// The meta index of the subscription. Retained messages matched at it or later reached the session live.
    pub version: MetaIndex,
    /// Granted maximum QoS.
    pub qos: u8,
    pub no_local: bool,
    pub identifier: Option<u32>,
}

/// One message of a group for one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub offset: Offset,
    pub session: SessionId,
    pub epoch: SessionEpoch,
    /// Granted maximum QoS of the member's subscription.
    pub qos: u8,
    pub identifier: Option<u32>,
}

/// What apply says to one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchReply {
    /// Applied now, or earlier under the same sequence. `upto` is the shard's last offset then; what an operation has
    /// to tell beyond that stands under its position.
    Applied {
        upto: Offset,
        results: Vec<(u32, OperationResult)>,
    },
    /// A sequence before it is missing: everything from `expected` on must be sent again, in order.
    Gap { expected: u64 },
    /// So old that its results are no longer kept; a correct sender never sees this.
    Forgotten,
    /// The incarnation ended: nothing was stored, nothing ever will be under it.
    DeadIncarnation,
    /// Its retained messages were matched before a subscription whose replay has begun: nothing was stored; match again
    /// at `floor` or later, and send everything from this batch on again, in order.
    StaleRoute { floor: MetaIndex },
}

/// News of one operation of an applied batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationResult {
    /// A QoS 2 publish of an epoch that is over, a will that came too late, or a delayed message that does not wait any
    /// more or is not due: not stored.
    Refused,
    /// EnqueueRetained, ExpireRetained, Sweep: there is more.
    More,
    /// Delay: as many wait as may. Not stored.
    Full,
}
