//! One arm per output, one call per arm.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use lontra_cluster::local::{Outcome, Ticket};
use lontra_storage::ids::SessionId;
use lontra_storage::message::Message;

use super::attach;
use super::operations::Operation;
use super::publishes::Path;
use crate::metrics::NodeMetrics;
use crate::protocol::codec::{Publish, QoS, ReasonCode, Will, forwarded_properties};
use crate::protocol::connection::Output;
use crate::protocol::publish_out::{Effects, Wish};
use crate::worker::{Client, Worker};

/// Carries out what the connection asks for, until it asks for nothing more.
pub fn outputs(worker: &Rc<Worker>, client: &Rc<Client>) {
    loop {
        let outputs = {
            let mut connection = client.connection.borrow_mut();
            count(&worker.metrics, &mut connection.effects);
            let connection = &mut *connection;
            connection
                .outputs
                .extend(connection.effects.wishes.drain(..).map(Output::Wish));
            std::mem::take(&mut connection.outputs)
        };
        if outputs.is_empty() {
            return;
        }
        for output in outputs {
            match output {
                Output::Connect(accepted) => attach::begin(worker, client, accepted),
                Output::Publish { publish: packet, token } => publish(worker, client, packet, token),
                Output::Subscribe {
                    packet_id,
                    subscriptions,
                    reasons,
                } => {
                    worker.operate(
                        client,
                        Operation::Subscribe {
                            packet_id,
                            subscriptions,
                            reasons,
                        },
                    );
                }
                Output::Unsubscribe { packet_id, filters } => {
                    worker.operate(client, Operation::Unsubscribe { packet_id, filters });
                }
                Output::Wish(Wish::Page(shard, after)) => attach::read_page(worker, client, shard, after),
                Output::Wish(Wish::Settle(shard, offset, packet_id)) => {
                    let served = client.connection.borrow().served;
                    if let Some(served) = served {
                        let ticket = ticket(worker, client, SETTLEMENT | u64::from(packet_id));
                        worker.cluster.settle(shard, served.session, offset, ticket);
                    }
                }
            }
        }
    }
}

fn count(metrics: &NodeMetrics, effects: &mut Effects) {
    for qos in effects.sent.drain(..) {
        metrics.message_sent(qos);
    }
    for reason in effects.dropped.drain(..) {
        metrics.dropped(reason, 1);
    }
    for reason in effects.refused.drain(..) {
        metrics.publish_refused(reason);
    }
}

fn ticket(worker: &Worker, client: &Client, token: u64) -> Ticket {
    Ticket {
        worker: worker.id,
        connection: client.id,
        token,
    }
}

fn publish(worker: &Rc<Worker>, client: &Rc<Client>, packet: Publish, token: Option<u64>) {
    worker.metrics.message_received(packet.qos() as u8);
    let Some(served) = client.connection.borrow().served else {
        return;
    };
    let Some(message) = message_of(&packet, served.session) else {
        client.connection.borrow_mut().close(ReasonCode::MALFORMED_PACKET, None);
        return;
    };
    route(worker, client, message, packet, token);
}

fn route(worker: &Rc<Worker>, client: &Rc<Client>, message: Message, packet: Publish, token: Option<u64>) {
    let matched = worker.routes.borrow_mut().lookup(&message.topic);
    let lease = worker.cluster.lease();
    let Some(token) = token else {
        let nodes = matched.nodes(0);
        if !nodes.is_empty() {
            worker.cluster.publish_ephemeral(Arc::new(message), &nodes, None);
        }
        return;
    };
    let recipients = matched.recipients(message.qos, false, message.publisher);
    let mut publishes = client.publishes.borrow_mut();
    if !recipients.is_empty() || publishes.keeps_durable(&message.topic, lease) {
        if publishes.has_ephemeral(&message.topic) {
            publishes.stall(packet, token);
            return;
        }
        publishes.begin(token, &matched, Path::Durable, lease);
        drop(publishes);
        let ticket = ticket(worker, client, token);
        let version = matched.matched.route_version;
        worker
            .cluster
            .publish_durable(matched.shard, message.encode(), recipients, version, ticket);
        return;
    }
    let nodes = matched.nodes(message.qos);
    if nodes.is_empty() {
        drop(publishes);
        decide(worker, client, token, ReasonCode::NO_MATCHING_SUBSCRIBERS); // [MQTT-3.4.2-1]
        return;
    }
    publishes.begin(token, &matched, Path::Ephemeral, lease);
    drop(publishes);
    worker
        .cluster
        .publish_ephemeral(Arc::new(message), &nodes, Some(ticket(worker, client, token)));
}

/// The outcome of something that this connection started.
pub fn completed(worker: &Rc<Worker>, client: &Rc<Client>, token: u64, outcome: Outcome) {
    if token & SETTLEMENT != 0 {
        client
            .connection
            .borrow_mut()
            .outbound
            .settled((token & !SETTLEMENT) as u16);
        return;
    }
    let offset = match outcome {
        Outcome::Stored(offset) => Some(offset),
        Outcome::Done | Outcome::DiskLow | Outcome::Unknown => None,
    };
    client.publishes.borrow_mut().end(token, offset);
    match outcome {
        Outcome::Stored(_) | Outcome::Done => decide(worker, client, token, ReasonCode::SUCCESS),
        Outcome::DiskLow => decide(worker, client, token, ReasonCode::QUOTA_EXCEEDED),
        // It may have been stored: neither acknowledge nor reject. The client asks again on its next connection.
        Outcome::Unknown => {
            client
                .connection
                .borrow_mut()
                .close(ReasonCode::SERVER_BUSY, Some("the outcome of a publish is not known"));
        }
    }
    let ready = client.publishes.borrow_mut().take_ready();
    if let Some((packet, token)) = ready {
        let served = client.connection.borrow().served;
        if let Some(message) = served.and_then(|served| message_of(&packet, served.session)) {
            route(worker, client, message, packet, Some(token));
        }
    }
}

fn decide(worker: &Worker, client: &Client, token: u64, reason: ReasonCode) {
    let mut connection = client.connection.borrow_mut();
    let protocol = &mut *connection;
    if protocol.ending().is_some() {
        return;
    }
    if reason.is_error() {
        worker.metrics.publish_refused(reason);
    }
    let acknowledged = protocol.inbound.decide(token, reason, &mut protocol.out);
    let now = Instant::now();
    for since in acknowledged.since {
        worker.metrics.publish_acknowledged(now.duration_since(since));
    }
    if let Some(reason) = acknowledged.close {
        protocol.close(reason, None);
    }
}

/// What is kept of a PUBLISH. Everything is copied: a slice would pin the connection's read buffer.
fn message_of(packet: &Publish, publisher: SessionId) -> Option<Message> {
    // The expiry interval stands apart too: what is left of it replaces the one in the block. [MQTT-3.3.2-6]
    let properties = Bytes::copy_from_slice(&forwarded_properties(packet.properties_raw()).ok()?);
    Some(Message {
        topic: packet.topic().into(),
        payload: Bytes::copy_from_slice(packet.payload()),
        qos: packet.qos() as u8,
        retain: packet.retain(),
        publisher,
        expiry_interval: packet.message_expiry_interval(),
        properties,
    })
}

/// The Will Message of a connection that ended without DISCONNECT 0x00. [MQTT-3.1.2-8]
pub fn publish_will(worker: &Rc<Worker>, connection: u64, will: &Will, publisher: SessionId) {
    let Ok(properties) = will.publish_properties() else {
        return;
    };
    let message = Message {
        topic: will.topic.as_str().into(),
        payload: will.payload.clone(),
        qos: will.qos as u8,
        retain: false,
        publisher,
        expiry_interval: will.properties.message_expiry_interval,
        properties: properties.into(),
    };
    let matched = worker.routes.borrow_mut().lookup(&message.topic);
    let recipients = match will.qos {
        QoS::AtMostOnce => Arc::from(Vec::new()),
        QoS::AtLeastOnce | QoS::ExactlyOnce => matched.recipients(message.qos, false, publisher),
    };
    if !recipients.is_empty() {
        let ticket = Ticket {
            worker: worker.id,
            connection,
            token: WILL,
        };
        let version = matched.matched.route_version;
        worker
            .cluster
            .publish_durable(matched.shard, message.encode(), recipients, version, ticket);
        return;
    }
    let nodes = matched.nodes(message.qos);
    worker.cluster.publish_ephemeral(Arc::new(message), &nodes, None);
}

/// Tokens with this bit name a Packet Identifier that is being settled.
const SETTLEMENT: u64 = 1 << 63;
/// Nobody waits for the outcome of a will.
const WILL: u64 = u64::MAX >> 1;
