//! The ephemeral path: to the connected sessions of this node, and one frame to each other node with a matching session.
//!
//! The publisher's acknowledgement leaves when every share is done: in the outbox of each matching connection, or its
//! node is Down. Nothing is written to disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use lontra_storage::encoding::{DecodeError, Reader, Writer};
use lontra_storage::ids::{Incarnation, NodeId, SessionId};
use lontra_storage::message::Message;

use crate::Inner;
use crate::link::ForwardDone;
use crate::local::{Audience, Guard, Member, Outcome, Ticket};

impl Inner {
    /// Sends a message to `nodes`, and to the members of shared groups that it was given to. With a ticket, its outcome
    /// is told once all of them have it.
    pub(crate) fn publish_ephemeral(
        self: &Arc<Self>,
        message: Arc<Message>,
        nodes: &[NodeId],
        given: Vec<(NodeId, Member)>,
        ticket: Option<Ticket>,
    ) {
        let incarnation = self.lease.incarnation();
        // Never answer success for a share that was not taken.
        let overflow = Arc::new(AtomicBool::new(false));
        let guard = match ticket {
            None => Guard::new(|| {}),
            Some(ticket) => {
                let (inner, overflow) = (Arc::downgrade(self), overflow.clone());
                Guard::new(move || {
                    if let Some(inner) = inner.upgrade() {
                        // A receiver refuses frames of an incarnation that is Down: with a valid lease it was not.
                        let same = inner.lease.incarnation() == incarnation && inner.lease.is_valid();
                        let done = same && !overflow.load(Ordering::Acquire);
                        let outcome = if done { Outcome::Done } else { Outcome::Unknown };
                        inner.local.completed(vec![(ticket, outcome)]);
                    }
                })
            }
        };
        let mut members = BTreeMap::<NodeId, Vec<Member>>::new();
        for (node, member) in given {
            members.entry(node).or_default().push(member);
        }
        let only_given = members.keys().filter(|node| !nodes.contains(node)).copied();
        let all: Vec<NodeId> = nodes.iter().copied().chain(only_given).collect();
        let mut shared = None;
        for node in &all {
            let audience = Audience {
                matching: nodes.contains(node),
                members: members.remove(node).unwrap_or_default().into(),
            };
            if *node == self.config.node {
                self.local.ephemeral(message.clone(), audience, guard.clone());
                continue;
            }
            let Some(links) = self.links.get() else { continue };
            let frame = match audience.members.is_empty() {
                true => shared
                    .get_or_insert_with(|| encode_frame(incarnation, &audience, &message))
                    .clone(),
                false => encode_frame(incarnation, &audience, &message),
            };
            self.metrics.ephemeral_sent(*node);
            let share = guard.clone();
            if links.forward(*node, frame, move |_acked| drop(share)).is_err() {
                overflow.store(true, Ordering::Release);
            }
        }
    }

    /// A peer's frame: to the connected sessions of this node that match.
    pub(crate) fn receive_forwarded(&self, from: NodeId, frame: &Bytes, done: ForwardDone) {
        self.metrics.ephemeral_received(from);
        let Ok((incarnation, audience, message)) = decode_frame(frame) else {
            // Unacknowledged: its publisher must not be told that it arrived.
            tracing::error!(from, "a forwarded frame does not decode");
            return;
        };
        // Only what is known to be Down is refused; one that this node has not heard of yet is newer. The sender looks at
        // its lease before it takes the acknowledgement for one.
        let is_down = self.meta_view.read().node(from).is_some_and(|record| {
            record.incarnation > incarnation || (record.incarnation == incarnation && !record.up)
        });
        if is_down {
            return done.done();
        }
        // Once: the guard's closure must be callable through a shared reference's drop.
        let done = std::sync::Mutex::new(Some(done));
        let guard = Guard::new(move || {
            if let Some(done) = done.into_inner().ok().flatten() {
                done.done();
            }
        });
        self.local.ephemeral(Arc::new(message), audience, guard);
    }
}

fn encode_frame(incarnation: Incarnation, audience: &Audience, message: &Message) -> Bytes {
    let encoded = message.encode();
    let mut writer = Writer::with_capacity(encoded.len() + 16);
    writer.var(incarnation.0).bool(audience.matching);
    writer.var(audience.members.len() as u64);
    for member in audience.members.iter() {
        writer
            .var(member.session.0)
            .var(member.subscription_identifier.unwrap_or(0) as u64);
    }
    writer.raw(&encoded);
    writer.finish()
}

fn decode_frame(frame: &Bytes) -> Result<(Incarnation, Audience, Message), DecodeError> {
    let mut reader = Reader::new("forwarded frame", frame);
    let (incarnation, matching) = (Incarnation(reader.var()?), reader.bool()?);
    let mut members = Vec::new();
    for _ in 0..reader.count()? {
        members.push(Member {
            session: SessionId(reader.var()?),
            subscription_identifier: Some(reader.var32()?).filter(|identifier| *identifier != 0),
        });
    }
    // Copied: a slice would pin the link's read buffer in every outbox.
    let message = Message::decode(&Bytes::copy_from_slice(&reader.rest()))?;
    let audience = Audience {
        matching,
        members: members.into(),
    };
    Ok((incarnation, audience, message))
}
