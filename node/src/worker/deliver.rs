//! Delivery on one worker: what the cluster hands over, to the connections here that match.
//!
//! Durable recipients were matched by the publisher's node and travel with the message; connected subscriptions are
//! matched here. A durable session gets a message as a recipient *or* (at QoS 0) by its connected subscription, never
//! both.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use lontra_cluster::local::Guard;
use lontra_storage::ids::{Offset, SessionId, ShardId};
use lontra_storage::message::{LogTime, Message, Recipient};
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
                    push(&client, applied.shard, appended, recipient, applied.now);
                    client.wake.notify_one();
                }
            }
            let is_recipient = |session| appended.recipients.iter().any(|recipient| recipient.session == session);
            self.deliver_connected(&appended.message, Some(applied.now), is_recipient, None, &mut frames);
        }
    }

    pub(super) fn deliver_ephemeral(&self, message: &Arc<Message>, guard: &Guard) {
        self.deliver_connected(message, None, |_| false, Some(guard), &mut FrameCache::default());
    }

    fn deliver_connected(
        &self,
        message: &Arc<Message>,
        appended_at: Option<LogTime>,
        is_recipient: impl Fn(SessionId) -> bool,
        guard: Option<&Guard>,
        frames: &mut FrameCache,
    ) {
        let mut matched = BTreeMap::<u64, Vec<SubscriptionOptions>>::new();
        self.filters
            .borrow()
            .matches(&message.topic, &mut |clients: &BTreeMap<u64, SubscriptionOptions>| {
                for (client, options) in clients {
                    matched.entry(*client).or_default().push(*options);
                }
            });
        for (connection, subscriptions) in matched {
            let Some(client) = self.client(connection) else {
                continue;
            };
            let mut protocol = client.connection.borrow_mut();
            let Some(served) = protocol.served.filter(|_| protocol.is_connected()) else {
                continue;
            };
            let Some(delivery) = grant(message, served.session, &subscriptions, appended_at) else {
                continue;
            };
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
            } else if client.subscriptions.borrow().values().any(|options| options.qos > 0) {
                connection.close(ReasonCode::QUOTA_EXCEEDED, Some("messages may have been missed"));
            }
            drop(protocol);
            client.wake.notify_one();
        }
    }
}

fn push(client: &Client, shard: ShardId, appended: &Appended, recipient: &Recipient, now: LogTime) {
    let entry = || PendingEntry {
        offset: appended.offset,
        appended_at: now,
        granted: recipient.clone(),
        message: appended.message.clone(),
    };
    client
        .connection
        .borrow_mut()
        .outbound
        .push(shard, entry, appended.offset);
}

/// What overlapping subscriptions of one session grant together. [MQTT-3.3.4-2] [MQTT-3.3.4-3]
fn grant(
    message: &Arc<Message>,
    session: SessionId,
    subscriptions: &[SubscriptionOptions],
    appended_at: Option<LogTime>,
) -> Option<Delivery> {
    let mut heard = subscriptions
        .iter()
        .filter(|options| !(options.no_local && message.publisher == session)) // [MQTT-3.8.3-3]
        .peekable();
    heard.peek()?;
    let mut delivery = Delivery {
        message: message.clone(),
        qos: 0,
        retain: false,
        subscription_identifiers: Vec::new(),
        age: appended_at,
    };
    for options in heard {
        delivery.qos = delivery.qos.max(options.qos.min(message.qos));
        delivery.retain |= message.retain && options.retain_as_published;
        delivery.subscription_identifiers.extend(options.identifier);
    }
    Some(delivery)
}
