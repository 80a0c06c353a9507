//! Delivery on one worker: what the cluster hands over, to the connections here that match.
//!
//! Durable recipients were matched by the publisher's node and travel with the message; connected subscriptions are
//! matched here. A durable session gets a message as a recipient *or* (at QoS 0) by its connected subscription, never
//! both.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use lontra_cluster::local::{Audience, Guard};
use lontra_storage::ids::{Offset, SessionId, ShardId};
use lontra_storage::message::{LogTime, Message, Recipient, Role};
use lontra_storage::meta::SubscriptionOptions;
use lontra_storage::shard::{Appended, Applied, PendingEntry};

use super::{Client, Worker};
use crate::protocol::codec::ReasonCode;
use crate::protocol::publish_out::{Delivery, FrameCache};

impl Worker {
    pub(super) fn deliver_applied(&self, applied: &Applied) {
        let mut frames = FrameCache::default();
        for appended in &applied.appended {
            for recipient in appended.recipients.iter() {
                let client = self.sessions.borrow().get(&recipient.session).cloned();
                if let Some(client) = client {
                    self.push(&client, applied.shard, appended, recipient, &mut frames);
                    client.wake.notify_one();
                }
            }
            if appended.published {
                let is_recipient = |session| appended.recipients.iter().any(|recipient| recipient.session == session);
                let at = Some((applied.shard, appended.offset, appended.appended_at));
                self.deliver_connected(&appended.message, at, is_recipient, None, &mut frames);
            }
        }
    }

    pub(super) fn deliver_ephemeral(&self, message: &Arc<Message>, audience: &Audience, guard: &Guard) {
        let frames = &mut FrameCache::default();
        if audience.matching {
            self.deliver_connected(message, None, |_| false, Some(guard), frames);
        }
        for member in audience.members.iter() {
            let client = self.sessions.borrow().get(&member.session).cloned();
            let Some(client) = client else { continue };
            let delivery = Delivery {
                message: message.clone(),
                qos: 0,
                retain: false,
                subscription_identifiers: member.subscription_identifier.into_iter().collect(),
                age: None,
                settle: None,
            };
            let mut protocol = client.connection.borrow_mut();
            let connection = &mut *protocol;
            connection.outbound.deliver(
                delivery,
                Some(guard),
                frames,
                &mut connection.out,
                &mut connection.effects,
            );
            drop(protocol);
            client.wake.notify_one();
        }
    }

    /// `at` where the message was appended to a shard.
    fn deliver_connected(
        &self,
        message: &Arc<Message>,
        at: Option<(ShardId, Offset, LogTime)>,
        is_recipient: impl Fn(SessionId) -> bool,
        guard: Option<&Guard>,
        frames: &mut FrameCache,
    ) {
        // In memory of the worker: nothing is allocated for a subscriber.
        let mut matched = self.matched.take();
        self.filters
            .borrow()
            .matches(&message.topic, &mut |clients: &BTreeMap<u64, SubscriptionOptions>| {
                matched.extend(clients.iter().map(|(client, options)| (*client, *options)));
            });
        // One filter has its clients in order already. Stable: what one client subscribed to stays in the order of the match.
        if !matched.is_sorted_by_key(|(client, _)| *client) {
            matched.sort_by_key(|(client, _)| *client);
        }
        for subscriptions in matched.chunk_by(|one, next| one.0 == next.0) {
            let Some(client) = subscriptions
                .first()
                .and_then(|(connection, _)| self.client(*connection))
            else {
                continue;
            };
            let mut protocol = client.connection.borrow_mut();
            let Some(served) = protocol.served.filter(|_| protocol.is_connected()) else {
                continue;
            };
            let Some(delivery) = grant(message, served.session, subscriptions, at.map(|(.., at)| at)) else {
                continue;
            };
            // What is not retained is no reason to leave out what is.
            if let Some((shard, offset, _)) = at
                && message.retain
                && !client.replays.is_empty()
            {
                client.replays.delivered(shard, offset, &message.topic);
            }
            // What a durable session gets at QoS 1 comes from its shard.
            if protocol.outbound.is_durable() && (delivery.qos > 0 || is_recipient(served.session)) {
                continue;
            }
            let connection = &mut *protocol;
            connection
                .outbound
                .deliver(delivery, guard, frames, &mut connection.out, &mut connection.effects);
            drop(protocol);
            client.wake.notify_one();
        }
        if matched.capacity() <= MATCHED_KEPT {
            matched.clear();
            self.matched.set(matched);
        }
    }

    /// Durable sessions read what they missed; a connected ephemeral one that may have missed a QoS 1 message is let go.
    pub(super) fn deliver_hole(&self, shard: ShardId, upto: Offset) {
        let clients: Vec<Rc<Client>> = self.connections.borrow().values().cloned().collect();
        for client in clients {
            let mut protocol = client.connection.borrow_mut();
            if !protocol.is_connected() {
                continue;
            }
            let connection = &mut *protocol;
            if connection.outbound.is_durable() {
                connection.outbound.hole(shard, upto, &mut connection.effects);
            } else if client.subscriptions.borrow().values().any(|options| options.qos > 0)
                || !client.shared.borrow().is_empty()
            {
                connection.close(ReasonCode::QUOTA_EXCEEDED, Some("messages may have been missed"));
            }
            drop(protocol);
            client.wake.notify_one();
        }
    }

    fn push(
        &self,
        client: &Client,
        shard: ShardId,
        appended: &Appended,
        recipient: &Recipient,
        frames: &mut FrameCache,
    ) {
        let mut protocol = client.connection.borrow_mut();
        let Some(served) = protocol.served else { return };
        if let Role::Member { group, epoch } = recipient.role {
            client.credit.arrived(shard, group);
            if epoch != served.epoch && recipient.qos < 2 {
                // It was assigned to an earlier connection. Nobody else looks for it while this one is served.
                return self.cluster.unassign(shard, served.session, vec![appended.offset]);
            }
            if !protocol.outbound.is_durable() {
                let delivery = Delivery {
                    message: appended.message.clone(),
                    qos: recipient.qos,
                    retain: false,
                    subscription_identifiers: recipient.subscription_identifiers.clone(),
                    age: Some(appended.appended_at),
                    settle: Some((shard, appended.offset)),
                };
                let connection = &mut *protocol;
                connection
                    .outbound
                    .deliver(delivery, None, frames, &mut connection.out, &mut connection.effects);
                return;
            }
        }
        let entry = || PendingEntry {
            offset: appended.offset,
            appended_at: appended.appended_at,
            granted: recipient.clone(),
            released: false,
            message: appended.message.clone(),
        };
        protocol.outbound.push(shard, entry, appended.offset);
    }
}

/// What overlapping subscriptions of one session grant together. [MQTT-3.3.4-2] [MQTT-3.3.4-3]
fn grant(
    message: &Arc<Message>,
    session: SessionId,
    subscriptions: &[(u64, SubscriptionOptions)],
    appended_at: Option<LogTime>,
) -> Option<Delivery> {
    let mut heard = subscriptions
        .iter()
        .map(|(_, options)| options)
        .filter(|options| !(options.no_local && message.publisher == session)) // [MQTT-3.8.3-3]
        .peekable();
    heard.peek()?;
    let mut delivery = Delivery {
        message: message.clone(),
        qos: 0,
        retain: false,
        subscription_identifiers: Vec::new(),
        age: appended_at,
        settle: None,
    };
    for options in heard {
        delivery.qos = delivery.qos.max(options.qos.min(message.qos));
        delivery.retain |= message.retain && options.retain_as_published;
        delivery.subscription_identifiers.extend(options.identifier);
    }
    Some(delivery)
}

/// 96 KiB of a worker; a larger fan-out allocates it anew.
const MATCHED_KEPT: usize = 4096;
