//! One Network Connection: dispatch of packets and events to the file of their topic.
//!
//! ```text
//!   AwaitConnect ─CONNECT─▶ Attaching ─attached─▶ Connected ─DISCONNECT, error, fence─▶ Closing
//! ```
//!
//! Sans-io: packets, events and `now` come in; bytes gather in `out`, everything else in `outputs`.
//!
//! Invariants
//! - nothing but CONNECT comes first, and it comes once. [MQTT-3.1.0-1] [MQTT-3.1.0-2]
//! - a closing connection answers nothing more than the packet that tells why.
//! - `one-owner`: the caller looks at the fence and the lease before it hands in a packet.

use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use lontra_storage::command::Subscription;
use lontra_storage::ids::{SessionEpoch, SessionId, ShardId};
use lontra_storage::message::LogTime;

use super::codec::{
    Ack, Disconnect, Packet, Publish, QoS, ReasonCode, SubAck, Subscribe, UnsubAck, Unsubscribe, Version, Violation,
    Will, encode_connack, encode_disconnect, encode_pingresp, encode_suback, encode_unsuback, topic_grammar,
};
use super::handshake::{self, Accepted, Policy};
use super::publish_in::Inbound;
use super::publish_out::{Effects, Outbound, Wish};

/// What the connection asks of the world.
#[derive(Debug)]
pub enum Output {
    /// Attach the session.
    Connect(Box<Accepted>),
    /// Publish; `token` for QoS 1.
    Publish {
        publish: Publish,
        token: Option<u64>,
    },
    /// Subscribe, then call [`Connection::subscribed`].
    Subscribe {
        packet_id: NonZeroU16,
        subscriptions: Vec<Subscription>,
        reasons: Vec<ReasonCode>,
    },
    /// Unsubscribe, then call [`Connection::unsubscribed`].
    Unsubscribe {
        packet_id: NonZeroU16,
        filters: Vec<Box<str>>,
    },
    Wish(Wish),
}

/// The session that a connection serves.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    pub session: SessionId,
    pub epoch: SessionEpoch,
    pub present: bool,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    pub reason: ReasonCode,
    /// DISCONNECT 0x00 from the client: no will. [MQTT-3.14.4-3]
    pub discard_will: bool,
    /// Session Expiry Interval that DISCONNECT changed.
    pub expiry: Option<u32>,
}

/// Why a connection closes without being asked.
pub const LOST: Ending = Ending {
    reason: ReasonCode::UNSPECIFIED_ERROR,
    discard_will: false,
    expiry: None,
};

enum State {
    AwaitConnect,
    Attaching,
    Connected,
    Closing(Ending),
}

/// The protocol state of one connection.
pub struct Connection {
    state: State,
    version: Option<Version>,
    policy: Policy,
    accepted: Option<Box<Accepted>>,
    pub served: Option<Served>,
    pub inbound: Inbound,
    pub outbound: Outbound,
    pub out: BytesMut,
    pub outputs: Vec<Output>,
    pub effects: Effects,
    last_received: Instant,
    keep_alive: Option<NonZeroU16>,
    expiry: u32,
    overfull_since: Option<Instant>,
    outbox_wait_max: Duration,
    connect_deadline: Instant,
}

impl Connection {
    pub fn new(policy: Policy, connect_timeout: Duration, outbox_wait_max: Duration, now: Instant) -> Self {
        let idle = handshake::Policy::idle_limits(&policy);
        Connection {
            state: State::AwaitConnect,
            version: None,
            inbound: Inbound::new(Version::V3_1_1, policy.receive_maximum),
            outbound: Outbound::new(Version::V3_1_1, idle, 1, false),
            policy,
            accepted: None,
            served: None,
            out: BytesMut::new(),
            outputs: Vec::new(),
            effects: Effects::default(),
            last_received: now,
            keep_alive: None,
            expiry: 0,
            overfull_since: None,
            outbox_wait_max,
            connect_deadline: now + connect_timeout,
        }
    }

    /// Known once CONNECT was decoded.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// Set when the connection ends; what stands in `out` still goes to the client.
    pub fn ending(&self) -> Option<Ending> {
        match self.state {
            State::Closing(ending) => Some(ending),
            State::AwaitConnect | State::Attaching | State::Connected => None,
        }
    }

    pub fn is_connected(&self) -> bool {
        matches!(self.state, State::Connected)
    }

    /// Whether packets may be handed in now: not while the session is being attached, nor while a 3.x client has as
    /// many unacknowledged as it may.
    pub fn wants_packets(&self) -> bool {
        match self.state {
            State::AwaitConnect => true,
            State::Connected => self.inbound.has_room() || self.version.is_some_and(Version::is_v5),
            State::Attaching | State::Closing(_) => false,
        }
    }

    /// The will to publish when this connection ends as `ending` says.
    pub fn take_will(&mut self, ending: Ending) -> Option<Will> {
        let will = self.accepted.as_mut()?.will.take();
        will.filter(|_| !ending.discard_will)
    }

    pub fn client_id(&self) -> Option<&str> {
        self.accepted.as_ref().map(|accepted| &*accepted.client_id)
    }

    /// A packet that passed the strict check.
    pub fn packet(&mut self, packet: Packet, now: Instant, fresh_id: impl FnOnce() -> String) {
        self.last_received = now;
        match (&self.state, packet) {
            (State::AwaitConnect, Packet::Connect(mut connect)) => {
                self.version = Some(connect.version);
                match handshake::accept(&mut connect, &self.policy, fresh_id) {
                    Ok(accepted) => {
                        self.state = State::Attaching;
                        self.outputs.push(Output::Connect(Box::new(accepted)));
                    }
                    Err(reason) => self.refuse(reason, None),
                }
            }
            (State::Connected, packet) => self.connected_packet(packet, now),
            (State::AwaitConnect | State::Attaching | State::Closing(_), _) => {
                self.close(ReasonCode::PROTOCOL_ERROR, None);
            }
        }
    }

    fn connected_packet(&mut self, packet: Packet, now: Instant) {
        match packet {
            Packet::Publish(publish) => self.publish(publish, now),
            Packet::PubAck(ack) => self.puback(&ack),
            Packet::Subscribe(subscribe) => self.subscribe(subscribe),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(unsubscribe),
            Packet::PingReq => encode_pingresp(&mut self.out), // [MQTT-3.12.4-1]
            Packet::Disconnect(disconnect) => self.disconnect(&disconnect),
            // The client was told Maximum QoS 1, and is sent none of QoS 2.
            Packet::PubRec(_) | Packet::PubRel(_) | Packet::PubComp(_) => {
                self.close(
                    ReasonCode::PROTOCOL_ERROR,
                    Some("QoS 2 is not in use on this connection"),
                );
            }
            Packet::Auth(_) => self.close(ReasonCode::PROTOCOL_ERROR, Some("no authentication method is in use")),
            Packet::Connect(_) | Packet::ConnAck(_) | Packet::SubAck(_) | Packet::UnsubAck(_) | Packet::PingResp => {
                self.close(ReasonCode::PROTOCOL_ERROR, None)
            }
        }
    }

    fn publish(&mut self, publish: Publish, now: Instant) {
        let refused = match (publish.qos(), publish.packet_id()) {
            // Topic Alias Maximum is 0. [MQTT-3.3.2-9]
            _ if publish.topic_alias().is_some() => ReasonCode::TOPIC_ALIAS_INVALID,
            _ if publish.retain() => ReasonCode::RETAIN_NOT_SUPPORTED, // [MQTT-3.2.2-14]
            (QoS::ExactlyOnce, _) => ReasonCode::QOS_NOT_SUPPORTED,    // [MQTT-3.2.2-11]
            (QoS::AtMostOnce, _) => return self.outputs.push(Output::Publish { publish, token: None }),
            (QoS::AtLeastOnce, Some(packet_id)) if self.inbound.has_room() => {
                let token = Some(self.inbound.publish(packet_id, now));
                return self.outputs.push(Output::Publish { publish, token });
            }
            (QoS::AtLeastOnce, Some(_)) => ReasonCode::RECEIVE_MAXIMUM_EXCEEDED, // [MQTT-3.3.4-8]
            (QoS::AtLeastOnce, None) => ReasonCode::MALFORMED_PACKET,
        };
        self.effects.refused.push(refused);
        self.close(refused, None);
    }

    fn puback(&mut self, ack: &Ack) {
        // A reason code of 0x80 or more also ends the delivery. [MQTT-4.4.0-2]
        self.outbound.acknowledge(ack.packet_id, &mut self.effects);
    }

    fn subscribe(&mut self, subscribe: Subscribe) {
        let (mut subscriptions, mut reasons) = (Vec::new(), Vec::new());
        for filter in subscribe.filters {
            let reason = match filter.valid {
                Err(reason) => reason,
                Ok(()) if topic_grammar::is_shared(&filter.filter) => ReasonCode::SHARED_SUBSCRIPTIONS_NOT_SUPPORTED,
                Ok(()) => {
                    let qos = filter.qos.min(QoS::AtLeastOnce) as u8;
                    subscriptions.push(Subscription {
                        filter: filter.filter.into(),
                        qos,
                        no_local: filter.no_local,
                        retain_as_published: filter.retain_as_published,
                        identifier: subscribe.subscription_identifier,
                    });
                    ReasonCode(qos)
                }
            };
            reasons.push(reason);
        }
        self.outputs.push(Output::Subscribe {
            packet_id: subscribe.packet_id,
            subscriptions,
            reasons,
        });
    }

    /// Every Up node matches against the subscriptions now; or they failed as a whole.
    pub fn subscribed(&mut self, packet_id: NonZeroU16, reasons: Vec<ReasonCode>) {
        if let (State::Connected, Some(version)) = (&self.state, self.version) {
            let written = encode_suback(version, &SubAck::new(packet_id, reasons), &mut self.out);
            self.written(written.is_ok());
        }
    }

    fn unsubscribe(&mut self, unsubscribe: Unsubscribe) {
        let filters = unsubscribe.filters.into_iter().map(Into::into).collect();
        self.outputs.push(Output::Unsubscribe {
            packet_id: unsubscribe.packet_id,
            filters,
        });
    }

    pub fn unsubscribed(&mut self, packet_id: NonZeroU16, reasons: Vec<ReasonCode>) {
        if let (State::Connected, Some(version)) = (&self.state, self.version) {
            let written = encode_unsuback(version, &UnsubAck::new(packet_id, reasons), &mut self.out);
            self.written(written.is_ok());
        }
    }

    /// An answer that cannot be encoded is a bug of ours: the client must not wait for it.
    fn written(&mut self, ok: bool) {
        if !ok {
            self.close(ReasonCode::IMPLEMENTATION_SPECIFIC_ERROR, None);
        }
    }

    fn disconnect(&mut self, disconnect: &Disconnect) {
        if self.expiry == 0 && disconnect.session_expiry_interval.is_some_and(|expiry| expiry > 0) {
            return self.close(ReasonCode::PROTOCOL_ERROR, None); // [MQTT-3.14.2-2]
        }
        self.state = State::Closing(Ending {
            reason: disconnect.reason,
            discard_will: disconnect.reason == ReasonCode::SUCCESS,
            expiry: disconnect
                .session_expiry_interval
                .map(|expiry| expiry.min(self.policy.session_expiry_max)),
        });
    }

    /// The session is attached: CONNACK, and packets may come. False if the connection has ended meanwhile.
    #[must_use]
    pub fn attached(
        &mut self,
        accepted: Box<Accepted>,
        served: Served,
        shards: u16,
        durable: bool,
        now: Instant,
    ) -> bool {
        let (State::Attaching, Some(version)) = (&self.state, self.version) else {
            return false;
        };
        let connack = handshake::connack(&accepted, served.present, &self.policy);
        self.outbound = Outbound::new(version, accepted.outbound.clone(), shards, durable);
        self.inbound = Inbound::new(version, self.policy.receive_maximum);
        self.keep_alive = accepted.keep_alive;
        self.expiry = accepted.expiry;
        self.last_received = now;
        self.accepted = Some(accepted);
        self.served = Some(served);
        self.state = State::Connected;
        let written = encode_connack(version, &connack, &mut self.out);
        self.written(written.is_ok());
        true
    }

    /// Session Expiry Interval as granted, or as DISCONNECT changed it.
    pub fn session_expiry(&self, ending: Ending) -> u32 {
        ending.expiry.unwrap_or(self.expiry)
    }

    /// The CONNECT is answered with a refusal, as far as its version can tell it.
    pub fn refuse(&mut self, reason: ReasonCode, why: Option<&str>) {
        if matches!(self.state, State::Closing(_)) {
            return;
        }

        if let Some(version) = self.version {
            let refusal = handshake::refusal(reason, why.map(str::to_owned));
            // 3.x knows few reasons: for the others it is closed without a CONNACK. [MQTT-3.2.2-6]
            let _ = encode_connack(version, &refusal, &mut self.out);
        }
        self.state = State::Closing(Ending { reason, ..LOST });
    }

    /// A frame that the strict check refused.
    pub fn violation(&mut self, violation: &Violation) {
        match self.state {
            State::AwaitConnect => self.refuse(violation.reason, Some(violation.what)),
            State::Attaching | State::Connected | State::Closing(_) => {
                self.close(violation.reason, Some(violation.what));
            }
        }
    }

    /// The first packet's version, for the form in which a bad CONNECT is refused.
    pub fn note_version(&mut self, version: Version) {
        self.version.get_or_insert(version);
    }

    /// The server ends the connection; 5.0 clients are told why. [MQTT-4.13.1-1]
    pub fn close(&mut self, reason: ReasonCode, why: Option<&str>) {
        match self.state {
            State::Closing(_) => return,
            State::Connected if self.version.is_some_and(Version::is_v5) => {
                let mut disconnect = Disconnect::new(reason);
                disconnect.reason_string = why.map(str::to_owned);
                let _ = encode_disconnect(Version::V5, &disconnect, &mut self.out);
            }
            State::Attaching => return self.refuse(reason, why),
            State::AwaitConnect | State::Connected => {}
        }
        self.state = State::Closing(Ending { reason, ..LOST });
    }

    /// The socket is gone.
    pub fn lost(&mut self) {
        if !matches!(self.state, State::Closing(_)) {
            self.state = State::Closing(LOST);
        }
    }

    /// Sends what may be sent, and moves what the outbound half asks for to `outputs`.
    pub fn pump(&mut self, log_time: impl Fn(ShardId) -> LogTime, now: Instant) {
        if !matches!(self.state, State::Connected) {
            return;
        }
        self.outbound.pump(log_time, &mut self.out, &mut self.effects);
        self.outputs.extend(self.effects.wishes.drain(..).map(Output::Wish));
        if !self.outbound.is_overfull() {
            self.overfull_since = None;
        } else if self.outbound.is_hopeless() {
            self.close(
                ReasonCode::QUOTA_EXCEEDED,
                Some("the client does not read its messages"),
            );
        } else {
            self.overfull_since.get_or_insert(now);
        }
    }

    /// When something happens by itself: keep alive, the CONNECT deadline, an outbox that stays full.
    pub fn next_deadline(&self) -> Option<Instant> {
        match self.state {
            State::AwaitConnect => Some(self.connect_deadline),
            State::Connected => {
                let outbox = self.overfull_since.map(|since| since + self.outbox_wait_max);
                [self.keep_alive_deadline(), outbox].into_iter().flatten().min()
            }
            State::Attaching | State::Closing(_) => None,
        }
    }

    /// One and a half times the Keep Alive. [MQTT-3.1.2-22]
    fn keep_alive_deadline(&self) -> Option<Instant> {
        let keep_alive = Duration::from_secs(u64::from(self.keep_alive?.get()));
        Some(self.last_received + keep_alive + keep_alive / 2)
    }

    pub fn deadline_passed(&mut self, now: Instant) {
        match self.state {
            State::AwaitConnect if now >= self.connect_deadline => self.close(ReasonCode::PROTOCOL_ERROR, None),
            State::Connected => {
                if self.keep_alive_deadline().is_some_and(|at| now >= at) {
                    self.close(ReasonCode::KEEP_ALIVE_TIMEOUT, None);
                } else if self
                    .overfull_since
                    .is_some_and(|since| now >= since + self.outbox_wait_max)
                {
                    self.close(
                        ReasonCode::QUOTA_EXCEEDED,
                        Some("the client does not read its messages"),
                    );
                }
            }
            State::AwaitConnect | State::Attaching | State::Closing(_) => {}
        }
    }

    /// The node paused: that time does not count against the client's Keep Alive.
    pub fn resumed(&mut self, now: Instant) {
        self.last_received = now;
    }
}

impl Policy {
    /// For the outbound half before there is a client.
    fn idle_limits(&self) -> super::publish_out::OutboundLimits {
        super::publish_out::OutboundLimits {
            receive_maximum: 1,
            maximum_packet_size: usize::MAX,
            bytes_max: self.outbox_bytes_max,
            messages_max: self.outbox_messages_max,
        }
    }
}

#[cfg(test)]
mod tests;
