//! One arm per output, one call per arm.

use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use lontra_cluster::DurablePublish;
use lontra_cluster::local::{Outcome, Ticket};
use lontra_storage::command::{Origin, Subscription};
use lontra_storage::ids::{SessionId, ShardId};
use lontra_storage::message::Message;

use super::attach;
use super::authenticate;
use super::delay::delay;
use super::operations::Operation;
use super::publishes::Path;
use crate::auth::Authorized;
use crate::config::auth::DeniedPublish;
use crate::limits::Limit;
use crate::metrics::{DeniedAction, NodeMetrics};
use crate::protocol::codec::{Publish, ReasonCode, Version, Will, forwarded_properties};
use crate::protocol::connection::{Output, Served};
use crate::protocol::delayed::is_delayed;
use crate::protocol::publish_out::{Effects, Wish};
use crate::protocol::topic_rules::Verdict;
use crate::sys::is_sys;
use crate::worker::{Client, Worker};

/// Carries out what the connection asks for, until it asks for nothing more.
pub fn outputs(worker: &Rc<Worker>, client: &Rc<Client>) {
    loop {
        let mut outputs = {
            let mut connection = client.connection.borrow_mut();
            count(&worker.metrics, &mut connection.effects);
            let connection = &mut *connection;
            connection
                .outputs
                .extend(connection.effects.wishes.drain(..).map(Output::Wish));
            std::mem::take(&mut connection.outputs)
        };
        if outputs.is_empty() {
            if outputs.capacity() > 0 {
                worker.outputs.set(outputs);
            }
            return;
        }
        for output in outputs.drain(..) {
            match output {
                Output::Connect(accepted) => attach::begin(worker, client, accepted),
                Output::Authenticate { data } => authenticate::step(worker, client, &data),
                Output::Publish { publish: packet, token } => publish(worker, client, packet, token),
                Output::Refuse { token, reason } => decide(worker, client, token, reason),
                Output::Subscribe {
                    packet_id,
                    subscriptions,
                    reasons,
                } => {
                    let (subscriptions, reasons) = allowed(worker, client, subscriptions, reasons);
                    worker.operate(
                        client,
                        Operation::Subscribe {
                            packet_id: Some(packet_id),
                            subscriptions,
                            reasons,
                        },
                    );
                }
                Output::Unsubscribe {
                    packet_id,
                    filters,
                    refused,
                } => worker.operate(
                    client,
                    Operation::Unsubscribe {
                        packet_id,
                        filters,
                        refused,
                    },
                ),
                Output::Wish(Wish::Page(shard, after)) => attach::read_page(worker, client, shard, after),
                Output::Wish(Wish::Settle(shard, offset, packet_id, how)) => {
                    let served = client.connection.borrow().served;
                    if let Some(served) = served {
                        let ticket = ticket(worker, client, OUTBOUND | u64::from(packet_id));
                        client.unsettled.begin(shard);
                        worker.cluster.settle(shard, served.session, offset, how, ticket);
                    }
                }
                Output::Wish(Wish::Release(shard, offset, packet_id)) => {
                    let served = client.connection.borrow().served;
                    if let Some(served) = served {
                        client.unsettled.begin(shard);
                        let ticket = ticket(worker, client, OUTBOUND | RELEASED | u64::from(packet_id));
                        worker.cluster.release(shard, served.session, offset, ticket);
                    }
                }
                Output::Release { packet_id, token } => {
                    let served = client.connection.borrow().served;
                    if let Some(Served { session, epoch, .. }) = served {
                        let shard = client.publishes.borrow_mut().released(packet_id);
                        let ticket = ticket(worker, client, token);
                        worker
                            .cluster
                            .release_received(shard, session, epoch, packet_id.get(), ticket);
                    }
                }
            }
        }
        worker.outputs.set(outputs);
    }
}

fn count(metrics: &NodeMetrics, effects: &mut Effects) {
    for (qos, count) in (0..).zip(&mut effects.sent) {
        if *count > 0 {
            metrics.messages_sent(qos, u64::from(std::mem::take(count)));
        }
    }
    for reason in effects.dropped.drain(..) {
        metrics.dropped(reason, 1);
    }
    for reason in effects.refused.drain(..) {
        metrics.publish_refused(reason);
    }
    if effects.topics_above_limits > 0 {
        let above = std::mem::take(&mut effects.topics_above_limits);
        metrics.limits.refused(Limit::Topic, above);
    }
    if let Some(reason) = effects.connect_refused.take() {
        metrics.connect_answered(reason);
    }
}

pub(super) fn ticket(worker: &Worker, client: &Client, token: u64) -> Ticket {
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
    if is_delayed(packet.topic()) && token.is_none() {
        // Of QoS 0 its client hears no other way that it will never come.
        worker.metrics.publish_refused(ReasonCode::TOPIC_NAME_INVALID);
        let why = Some("a topic below $delayed/ that is none");
        return client
            .connection
            .borrow_mut()
            .close(ReasonCode::TOPIC_NAME_INVALID, why);
    }
    if is_sys(packet.topic()) || is_delayed(packet.topic()) {
        let token = token.unwrap_or(UNACKNOWLEDGED);
        return decide(worker, client, token, ReasonCode::TOPIC_NAME_INVALID);
    }
    let Some(message) = message_of(&packet, served.session) else {
        client.connection.borrow_mut().close(ReasonCode::MALFORMED_PACKET, None);
        return;
    };
    // Nobody is told of the outcome of QoS 0, but what follows on the topic depends on it.
    let token = token.unwrap_or_else(|| UNACKNOWLEDGED | worker.next_number());
    authorize(worker, client, message, packet, token);
}

/// `no-way-around`: what follows takes authorized messages only.
fn authorize(worker: &Rc<Worker>, client: &Rc<Client>, mut message: Message, packet: Publish, token: u64) {
    let policy = &client.config.policy;
    let topic = policy.mountpoint.unmounted(&message.topic);
    match policy.topic_rules.verdict(topic, message.qos, message.retain) {
        Verdict::AsItIs => {}
        Verdict::WithoutRetain => message.retain = false,
        // PUBACK and PUBREC have no code for either: 0x9A and 0x9B are of CONNACK and DISCONNECT.
        Verdict::Refused(_) => return decide(worker, client, token, ReasonCode::IMPLEMENTATION_SPECIFIC_ERROR),
        Verdict::NotOffered(reason) => return not_offered(worker, client, token, reason),
    }
    let access = client.access();
    let authorized = access.and_then(|access| access.authorize(message, |message| &message.topic).ok());
    match authorized {
        Some(message) => match packet.delay() {
            Some(seconds) => delay(worker, client, &message, &packet, seconds, token),
            None => route(worker, client, message, packet, token),
        },
        None => denied(worker, client, token),
    }
}

/// CONNACK said that there is no such QoS, or no RETAIN. 3.x was not told. [MQTT-3.2.2-11] [MQTT-3.2.2-14]
fn not_offered(worker: &Rc<Worker>, client: &Rc<Client>, token: u64, reason: ReasonCode) {
    let is_v5 = client.connection.borrow().version().is_some_and(Version::is_v5);
    if !is_v5 {
        return decide(worker, client, token, reason);
    }
    worker.metrics.publish_refused(reason);
    let why = Some("CONNACK has told what this broker takes");
    client.connection.borrow_mut().close(reason, why);
}

/// The client may not publish there. 3.x cannot say so: it acknowledges what is dropped, or ends. [v3 MQTT-3.3.5-2]
fn denied(worker: &Rc<Worker>, client: &Rc<Client>, token: u64) {
    worker.metrics.denied(DeniedAction::Publish);
    let is_v5 = client.connection.borrow().version().is_some_and(Version::is_v5);
    if is_v5 {
        return decide(worker, client, token, ReasonCode::NOT_AUTHORIZED);
    }
    worker.metrics.publish_refused(ReasonCode::NOT_AUTHORIZED);
    match worker.auth().denied_publish {
        DeniedPublish::Acknowledge => decide(worker, client, token, ReasonCode::SUCCESS),
        DeniedPublish::Disconnect => client.connection.borrow_mut().close(ReasonCode::NOT_AUTHORIZED, None),
    }
}

/// What of a SUBSCRIBE the client may have; the reason codes tell of the rest. [MQTT-3.8.4-5] [MQTT-3.9.3]
fn allowed(
    worker: &Worker,
    client: &Client,
    subscriptions: Vec<Subscription>,
    mut reasons: Vec<ReasonCode>,
) -> (Vec<Subscription>, Vec<ReasonCode>) {
    let above = reasons
        .iter()
        .filter(|reason| **reason == ReasonCode::TOPIC_FILTER_INVALID);
    worker.metrics.limits.refused(Limit::Topic, above.count());
    // Nothing else has said so yet: there are more filters than a packet may have.
    if reasons.first() == Some(&ReasonCode::QUOTA_EXCEEDED) {
        worker.metrics.limits.refused(Limit::FiltersPerPacket, 1);
    }
    let access = client.access();
    // One for each subscription: the others were refused before.
    let mut granted = reasons.iter_mut().filter(|reason| !reason.is_error());
    let may = |one: &Subscription| access.as_ref().is_some_and(|access| access.may_subscribe(&one.filter));
    let allowed = subscriptions.into_iter().filter(|one| {
        let (reason, may) = (granted.next(), may(one));
        if !may && let Some(reason) = reason {
            worker.metrics.denied(DeniedAction::Subscribe);
            *reason = ReasonCode::NOT_AUTHORIZED;
        }
        may
    });
    (allowed.collect(), reasons)
}

/// Ephemeral if nobody needs it kept: QoS 0, or QoS 1 without durable recipients; never retained, never QoS 2.
/// (DESIGN §3)
fn route(worker: &Rc<Worker>, client: &Rc<Client>, message: Authorized<Message>, packet: Publish, token: u64) {
    let (matched, route_version) = worker.routes.borrow_mut().lookup(&message.topic);
    let lease = worker.cluster.lease();
    let qos = message.qos;
    let recipients = matched.recipients(qos, message.retain, message.publisher);
    let given = worker.give(&matched, qos);
    let nodes = matched.nodes(qos);
    if !lease.is_valid() {
        // `lease-before-match`: it was, before the packet was handed in. The process stood still since, and matched what
        // may be out of date.
        let mut connection = client.connection.borrow_mut();
        return connection.close(ReasonCode::SERVER_BUSY, Some("the node was cut off from its cluster"));
    }
    let mut publishes = client.publishes.borrow_mut();
    let is_kept = message.retain || !recipients.is_empty();
    if !is_kept && nodes.is_empty() && given.is_empty() && !publishes.keeps_durable(&message.topic, qos, lease) {
        drop(publishes);
        return decide(worker, client, token, ReasonCode::NO_MATCHING_SUBSCRIBERS); // [MQTT-3.4.2-1]
    }
    if is_kept || qos == 2 || publishes.keeps_durable(&message.topic, qos, lease) {
        if publishes.has_ephemeral(&message.topic, qos) && token & UNACKNOWLEDGED == 0 {
            return publishes.stall(packet, token);
        }
        publishes.begin(token, &matched, Path::Durable, qos, lease);
        drop(publishes);
        let origin = origin_of(client, &packet, message.publisher, matched.shard);
        let encoded = message.encode();
        worker.hold(client, token, encoded.len());
        let publish = DurablePublish {
            message: encoded,
            retain: message.retain,
            removes: message.payload.is_empty(),
            recipients,
            route_version,
            origin,
            ticket: ticket(worker, client, token),
        };
        if !given.is_empty() {
            worker.publisher.ephemeral(message, &[], given, None);
        }
        worker.publisher.durable(matched.shard, publish);
        return;
    }
    if token & UNACKNOWLEDGED != 0 {
        drop(publishes);
        worker.publisher.ephemeral(message, &nodes, given, None);
        return;
    }
    publishes.begin(token, &matched, Path::Ephemeral, qos, lease);
    drop(publishes);
    worker.hold_ephemeral(client, token, message.payload.len() + message.properties.len());
    let ticket = ticket(worker, client, token);
    worker.publisher.ephemeral(message, &nodes, given, Some(ticket));
}

/// How a repeat of a publish to `shard` is recognised.
pub(super) fn origin_of(client: &Client, packet: &Publish, publisher: SessionId, shard: ShardId) -> Origin {
    let Some(packet_id) = packet.packet_id().filter(|_| packet.qos() as u8 == 2) else {
        return Origin::Plain;
    };
    client.publishes.borrow_mut().received(packet_id, shard);
    let epoch = client.connection.borrow().served.map(|served| served.epoch);
    Origin::Received {
        session: publisher,
        epoch: epoch.unwrap_or_default(),
        packet_id: packet_id.get(),
    }
}

/// The outcome of something that this connection started.
pub fn completed(worker: &Rc<Worker>, client: &Rc<Client>, token: u64, outcome: Outcome) {
    if token & OUTBOUND != 0 {
        client.unsettled.end();
        let packet_id = token as u16;
        let mut connection = client.connection.borrow_mut();
        if token & RELEASED == 0 {
            connection.outbound.settled(packet_id);
        } else if outcome == Outcome::Done {
            connection.outbound.released(packet_id);
        }
        return;
    }
    let offset = match outcome {
        Outcome::Stored(offset) => Some(offset),
        Outcome::Done
        | Outcome::DiskLow
        | Outcome::RetainedFull
        | Outcome::DelayedFull
        | Outcome::Refused
        | Outcome::Unknown => None,
    };
    client.publishes.borrow_mut().end(token, offset);
    worker.release(client, token);
    if outcome == Outcome::RetainedFull {
        worker.metrics.limits.refused(Limit::Retained, 1);
    }
    match outcome {
        Outcome::Stored(_) | Outcome::Done => decide(worker, client, token, ReasonCode::SUCCESS),
        Outcome::DiskLow | Outcome::RetainedFull | Outcome::DelayedFull => {
            decide(worker, client, token, ReasonCode::QUOTA_EXCEEDED)
        }
        // `one-owner`: the session is another connection's.
        Outcome::Refused => client
            .connection
            .borrow_mut()
            .close(ReasonCode::SESSION_TAKEN_OVER, None),
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
            authorize(worker, client, message, packet, token);
        }
    }
}

/// The outcome of a publish is known. `exactly-once-in`: before one of QoS 2 is refused, it is made sure that it is not the
/// repeat of one that an earlier connection of the session published.
///
/// That one is stored, and its identifier recorded in its shard. A refusal would end the exchange for the client [MQTT-4.3.3-9]
/// and not for the shard, which would take the next message under the identifier for the repeat, and lose it (P1). Nor may a
/// refusal forget the identifier: if it is lost, the client sends the same message again, which would be stored twice (P2).
fn decide(worker: &Rc<Worker>, client: &Rc<Client>, token: u64, reason: ReasonCode) {
    let may_be_repeat = || {
        let connection = client.connection.borrow();
        let served = connection.served.filter(|served| served.present)?;
        Some((served, connection.inbound.awaits_pubrec(token)?))
    };
    if token & UNACKNOWLEDGED != 0 || !reason.is_error() {
        return answer(worker, client, token, reason);
    }
    let Some((served, packet_id)) = may_be_repeat() else {
        return answer(worker, client, token, reason);
    };
    let (worker, client) = (worker.clone(), client.clone());
    tokio::task::spawn_local(async move {
        let cluster = worker.cluster.clone();
        let (session, epoch) = (served.session, served.epoch);
        let is_fenced = client.publishes.borrow().is_fenced();
        let looked = worker
            .runtime
            .spawn(async move { cluster.is_received(session, epoch, packet_id.get(), is_fenced).await });
        let received = looked.await.ok().flatten();
        if received.is_some() {
            client.publishes.borrow_mut().fenced();
        }
        match received {
            Some(true) => {
                // Where this one would have gone says nothing of that one: its PUBREL goes everywhere.
                client.publishes.borrow_mut().released(packet_id);
                answer(&worker, &client, token, ReasonCode::SUCCESS);
            }
            Some(false) => answer(&worker, &client, token, reason),
            // The exchange goes on with the client's next connection.
            None => client.connection.borrow_mut().close(
                ReasonCode::SERVER_BUSY,
                Some("whether a publish came before is not known"),
            ),
        }
        client.wake.notify_one();
    });
}

fn answer(worker: &Worker, client: &Client, token: u64, reason: ReasonCode) {
    if token & UNACKNOWLEDGED != 0 {
        if reason.is_error() {
            worker.metrics.publish_refused(reason);
        }
        return;
    }
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

/// The Will Message as the control plane keeps it; its publisher is filled in when it is published. [MQTT-3.1.2-8]
pub fn kept_will(will: &Authorized<&Will>, author: Bytes) -> Option<lontra_storage::command::Will> {
    let message = Message {
        topic: will.topic.as_str().into(),
        payload: will.payload.clone(),
        qos: will.qos as u8,
        retain: will.retain,
        publisher: SessionId(0),
        expiry_interval: will.properties.message_expiry_interval,
        properties: will.publish_properties().ok()?.into(),
    };
    Some(lontra_storage::command::Will {
        message: message.encode(),
        delay: will.properties.delay_interval,
        author,
    })
}

/// Tokens with this bit name a Packet Identifier of the outbound half, whose entry is settled or (with `RELEASED`)
/// released.
const OUTBOUND: u64 = 1 << 63;
const RELEASED: u64 = 1 << 16;
/// Tokens of QoS 0 publishes: nobody is told.
const UNACKNOWLEDGED: u64 = 1 << 62;
