//! One Network Connection: dispatch of packets and events to the file of their topic.
//!
//! ```text
//!   AwaitConnect ─CONNECT─▶ Attaching ─attached─▶ Connected ─DISCONNECT, error, fence─▶ Closing
//!        └─ with a method ─▶ Authenticating ─▲        ╰─ AUTH: again (enhanced)
//! ```
//!
//! Sans-io: packets, events and `now` come in; bytes gather in `out`, everything else in `outputs`.
//!
//! What it leaves to others: `publish_in` and `publish_out` know how far each exchange is, `answers` how this client is
//! answered, `topic_alias` what an alias stands for.
//!
//! Invariants
//! - nothing but CONNECT comes first, and it comes once. [MQTT-3.1.0-1] [MQTT-3.1.0-2]
//! - a closing connection answers nothing more than the packet that tells why.
//! - `one-owner`: the caller looks at the fence and the lease before it hands in a packet.
//! - `lease-before-delivery`: and before it takes bytes out. While it may not ([`Connection::set_withheld`]) nothing leaves: it
//!   waits, and goes with the connection if that ends first.

use std::num::NonZeroU16;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use lontra_storage::command::Subscription;
use lontra_storage::ids::{SessionEpoch, SessionId, ShardId};
use lontra_storage::message::LogTime;

use super::answers::Answers;
use super::checks::{Check, on};
use super::codec::topic_grammar::{canonical, check_topic_filter, is_exclusive, is_shared};
use super::codec::{
    Disconnect, Packet, Publish, ReasonCode, Subscribe, Unsubscribe, Version, Violation, encode_pingresp,
};
use super::delayed;
use super::handshake::{self, Accepted, Policy};
use super::publish_in::{Inbound, Received};
use super::publish_out::{Effects, Outbound, Wish};
use super::topic_alias::AliasesIn;
use super::topic_rules::Namer;
use crate::auth::Access;
use enhanced::Again;

/// What the connection asks of the world.
#[derive(Debug)]
pub enum Output {
    /// Attach the session.
    Connect(Box<Accepted>),
    /// Take the client's next step of its enhanced authentication; then call [`Connection::challenge`],
    /// [`Connection::authenticated`] or [`Connection::not_authenticated`].
    Authenticate {
        data: Bytes,
    },
    /// Publish; for QoS 1 and 2 then tell `inbound` the outcome of `token`.
    Publish {
        publish: Publish,
        token: Option<u64>,
    },
    /// A publish that is refused: tell `inbound` so, and count it.
    Refuse {
        token: u64,
        reason: ReasonCode,
    },
    /// Forget a QoS 2 identifier of the client, perhaps one of an earlier connection; then tell `inbound` the outcome
    /// of `token`.
    Release {
        packet_id: NonZeroU16,
        token: u64,
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
        /// One for each filter of the packet: none for those of `filters`.
        refused: Vec<Option<ReasonCode>>,
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
    /// CONNECT named an Authentication Method; AUTH goes to and fro. [MQTT-4.12.0-2]
    Authenticating(Box<Accepted>),
    Attaching,
    Connected,
    Closing(Ending),
}

/// What is kept of a CONNECT for as long as its connection is served.
struct Kept {
    client_id: Box<str>,
    /// Where its will is to be published, in the cluster.
    will_topic: Option<Box<str>>,
    /// Session Expiry Interval as granted, and as asked for.
    expiry: u32,
    expiry_requested: u32,
}

/// The protocol state of one connection.
pub struct Connection {
    state: State,
    /// Known once CONNECT came, or what can be told of a bad one.
    answers: Option<Answers>,
    policy: Arc<Policy>,
    kept: Option<Kept>,
    /// As whoever authenticated it says.
    user_name: Option<Box<str>>,
    pub served: Option<Served>,
    /// Set by whoever authenticated it: from then on it may not stay.
    pub expires: Option<Instant>,
    /// A connected client proves anew who it is. [MQTT-4.12.1]
    pub(super) again: Again,
    pub inbound: Inbound,
    pub outbound: Outbound,
    pub out: BytesMut,
    /// It may not be served now: what stands in `out` stays there, and no time counts against its client.
    withheld: bool,
    /// Something of `out` was taken since the session is attached: the client has CONNACK, or will.
    is_told: bool,
    /// Where in `out` the packet stands that tells why the connection ends.
    farewell: usize,
    pub outputs: Vec<Output>,
    pub effects: Effects,
    aliases: AliasesIn,
    /// A PUBLISH whose identifier is being released; its outcome wakes the connection again.
    held: Option<Box<(Publish, Option<ReasonCode>)>>,
    last_received: Instant,
    keep_alive: Option<NonZeroU16>,
    overfull_since: Option<Instant>,
    outbox_wait_max: Duration,
    connect_deadline: Instant,
    /// Whatever its CONNECT says.
    refuse_connect: Option<ReasonCode>,
}

impl Connection {
    pub fn new(
        policy: impl Into<Arc<Policy>>,
        connect_timeout: Duration,
        outbox_wait_max: Duration,
        now: Instant,
    ) -> Self {
        let policy = policy.into();
        let (idle, answers) = (policy.idle_limits(), Answers::of_version(Version::V3_1_1));
        Connection {
            state: State::AwaitConnect,
            answers: None,
            inbound: Inbound::new(answers, policy.receive_maximum),
            outbound: Outbound::new(answers, idle, 1, false, None),
            policy,
            kept: None,
            user_name: None,
            served: None,
            expires: None,
            again: Again::default(),
            out: BytesMut::new(),
            withheld: false,
            is_told: false,
            farewell: 0,
            outputs: Vec::new(),
            effects: Effects::default(),
            aliases: AliasesIn::default(),
            held: None,
            last_received: now,
            keep_alive: None,
            overfull_since: None,
            outbox_wait_max,
            connect_deadline: now + connect_timeout,
            refuse_connect: None,
        }
    }

    /// Known once CONNECT was decoded.
    pub fn version(&self) -> Option<Version> {
        self.answers.map(|answers| answers.version)
    }

    /// What may be written to the client now that it is connected.
    fn connected_answers(&self) -> Option<Answers> {
        self.answers.filter(|_| self.is_connected())
    }

    /// Set when the connection ends; what stands in `out` still goes to the client, unless it is withheld.
    pub fn ending(&self) -> Option<Ending> {
        match self.state {
            State::Closing(ending) => Some(ending),
            State::AwaitConnect | State::Authenticating(_) | State::Attaching | State::Connected => None,
        }
    }

    pub fn is_connected(&self) -> bool {
        matches!(self.state, State::Connected)
    }

    /// Whether packets may be handed in now: not while the session is being attached, nor while as much of the client
    /// waits for the cluster as may.
    pub fn wants_packets(&self) -> bool {
        match self.state {
            State::AwaitConnect | State::Authenticating(_) => true,
            State::Connected => self.inbound.has_room() && self.held.is_none(),
            State::Attaching | State::Closing(_) => false,
        }
    }

    /// Whether a PUBLISH waits until its identifier is released, and nothing behind it is looked at.
    pub fn holds_publish(&self) -> bool {
        self.held.is_some()
    }

    /// CONNECT came, CONNACK has not left.
    pub fn is_attaching(&self) -> bool {
        matches!(self.state, State::Attaching)
    }

    /// Whether its client left a will with it.
    pub fn has_will(&self) -> bool {
        self.will_topic().is_some()
    }

    /// Where its will is to be published, in the cluster.
    pub fn will_topic(&self) -> Option<&str> {
        self.kept.as_ref()?.will_topic.as_deref()
    }

    pub fn client_id(&self) -> Option<&str> {
        self.kept.as_ref().map(|kept| &*kept.client_id)
    }

    /// A packet that passed the strict check.
    pub fn packet(&mut self, packet: Packet, now: Instant, fresh_id: impl FnOnce() -> String) {
        self.last_received = now;
        match (&self.state, packet) {
            (State::AwaitConnect, Packet::Connect(mut connect)) => {
                self.answers = Some(Answers::of(&connect));
                if let Some(reason) = self.refuse_connect {
                    return self.refuse(reason, None);
                }
                match handshake::accept(&mut connect, &self.policy, fresh_id) {
                    Ok(mut accepted) if accepted.enhanced.is_some() => {
                        let data = accepted.enhanced.take().unwrap_or_default();
                        self.state = State::Authenticating(Box::new(accepted));
                        self.outputs.push(Output::Authenticate { data });
                    }
                    Ok(accepted) => {
                        self.state = State::Attaching;
                        self.outputs.push(Output::Connect(Box::new(accepted)));
                    }
                    Err(reason) => self.refuse(reason, None),
                }
            }
            (State::Connected, packet) => self.connected_packet(packet, now),
            (State::Authenticating(_), packet) => self.authenticating_packet(packet),
            (State::AwaitConnect | State::Attaching | State::Closing(_), _) => {
                self.close(ReasonCode::PROTOCOL_ERROR, None);
            }
        }
    }

    fn connected_packet(&mut self, packet: Packet, now: Instant) {
        match packet {
            Packet::Publish(publish) => self.publish(publish, now),
            Packet::PubAck(ack) => {
                self.outbound.puback(ack.packet_id, &mut self.effects);
            }
            Packet::PubRec(ack) => {
                self.outbound
                    .pubrec(ack.packet_id, ack.reason, &mut self.out, &mut self.effects);
            }
            Packet::PubRel(ack) => self.pubrel(ack.packet_id, now),
            Packet::PubComp(ack) => {
                self.outbound.pubcomp(ack.packet_id, &mut self.effects);
            }
            Packet::Subscribe(subscribe) => self.subscribe(subscribe),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(unsubscribe),
            Packet::PingReq => encode_pingresp(&mut self.out), // [MQTT-3.12.4-1]
            Packet::Disconnect(disconnect) => self.disconnect(&disconnect),
            Packet::Auth(auth) => self.auth_again(auth),
            Packet::Connect(_) | Packet::ConnAck(_) | Packet::SubAck(_) | Packet::UnsubAck(_) | Packet::PingResp => {
                self.close(ReasonCode::PROTOCOL_ERROR, None)
            }
        }
    }

    fn publish(&mut self, publish: Publish, now: Instant) {
        let publish = match self.aliases.resolve(publish) {
            Ok(publish) => publish,
            Err(reason) => return self.refuse_publish(reason, "no such topic alias"),
        };
        if publish.is_above_limits() {
            self.effects.topics_above_limits += 1;
            return self.resolved_publish(publish, Some(ReasonCode::TOPIC_NAME_INVALID), now);
        }
        let publish = match delayed::split(publish.topic()) {
            None => publish,
            Some(Ok((seconds, topic))) => {
                let topic = topic.into();
                publish.delayed(seconds, topic)
            }
            // As it is: it is refused in the order of acknowledgements.
            Some(Err(_)) => return self.resolved_publish(publish, None, now),
        };
        let rewritten = match self.policy.topic_rules.topic(publish.topic(), self.namer()) {
            Ok(rewritten) => rewritten,
            Err(reason) => return self.resolved_publish(publish, Some(reason), now),
        };
        let topic = rewritten.as_deref().unwrap_or_else(|| publish.topic());
        let publish = match (self.policy.mountpoint.topic(topic), rewritten) {
            (Ok(Some(mounted)), _) => publish.with_topic(mounted),
            (Ok(None), Some(rewritten)) => publish.with_topic(rewritten.into()),
            (Ok(None), None) => publish,
            (Err(reason), _) => return self.resolved_publish(publish, Some(reason), now),
        };
        self.resolved_publish(publish, None, now);
    }

    /// `refused`: its topic is none in the cluster. Its acknowledgement says so when it is its turn; of QoS 0 nothing but the
    /// end can. [MQTT-4.13.2-1]
    fn resolved_publish(&mut self, publish: Publish, refused: Option<ReasonCode>, now: Instant) {
        let Some(packet_id) = publish.packet_id() else {
            return match refused {
                Some(reason) => self.refuse_publish(reason, "the topic is none in the cluster"),
                None => self.outputs.push(Output::Publish { publish, token: None }),
            };
        };
        let (qos, dup) = (publish.qos(), publish.dup());
        match self.inbound.publish(packet_id, qos, dup, now, &mut self.out) {
            Received::New(token) => self.outputs.push(match refused {
                Some(reason) => Output::Refuse { token, reason },
                None => Output::Publish {
                    publish,
                    token: Some(token),
                },
            }),
            Received::Again => {}
            Received::Wait => self.held = Some(Box::new((publish, refused))),
            Received::Refused(reason) => self.refuse_publish(reason, "more publishes in flight than agreed"),
        }
    }

    fn refuse_publish(&mut self, reason: ReasonCode, why: &'static str) {
        self.effects.refused.push(reason);
        self.close(reason, Some(why));
    }

    fn pubrel(&mut self, packet_id: NonZeroU16, now: Instant) {
        match self.inbound.pubrel(packet_id, now) {
            Received::New(token) => self.outputs.push(Output::Release { packet_id, token }),
            Received::Again | Received::Wait => {}
            Received::Refused(reason) => self.close(reason, Some("PUBREL before PUBREC")),
        }
    }

    fn subscribe(&mut self, subscribe: Subscribe) {
        let (mut subscriptions, mut reasons) = (Vec::new(), Vec::new());
        for filter in subscribe.filters {
            let exclusive = is_exclusive(&filter.filter);
            let has_identifier = subscribe.subscription_identifier.is_some();
            let available = filter
                .valid
                .and_then(|()| self.policy.available.takes(&filter.filter, has_identifier));
            let mounted = available.and_then(|()| self.in_cluster(filter.filter));
            let mounted = mounted.and_then(|filter| match exclusive && is_shared(&filter) {
                // A rule has made it so.
                true => Err(ReasonCode::TOPIC_FILTER_INVALID),
                false => Ok(filter),
            });
            reasons.push(match &mounted {
                Err(reason) => *reason,
                Ok(_) => ReasonCode(filter.qos as u8),
            });
            if let Ok(filter_in_cluster) = mounted {
                subscriptions.push(Subscription {
                    filter: filter_in_cluster,
                    qos: filter.qos as u8,
                    no_local: filter.no_local,
                    retain_as_published: filter.retain_as_published,
                    retain_handling: filter.retain_handling,
                    identifier: subscribe.subscription_identifier,
                    exclusive,
                });
            }
        }
        self.outputs.push(Output::Subscribe {
            packet_id: subscribe.packet_id,
            subscriptions,
            reasons,
        });
    }

    /// A client's Topic Filter as the cluster knows it.
    fn in_cluster(&self, filter: String) -> Result<Box<str>, ReasonCode> {
        let filter = canonical(filter);
        let rewritten = self.policy.topic_rules.filter(&filter, self.namer())?;
        self.policy.mountpoint.filter(rewritten.into_owned())
    }

    /// What the configuration subscribes this client to.
    pub fn auto_subscriptions(&self) -> Vec<Subscription> {
        let mut subscriptions = self.policy.topic_rules.subscriptions(self.namer());
        subscriptions.retain_mut(|one| {
            let mounted = self.policy.mountpoint.filter(canonical(one.filter.to_string()));
            // With its placeholders it may have become too long.
            mounted.is_ok_and(|mounted| {
                check_topic_filter(&mounted).is_ok() && {
                    one.filter = mounted;
                    true
                }
            })
        });
        subscriptions
    }

    fn namer(&self) -> Namer<'_> {
        Namer {
            client_id: self.client_id().unwrap_or_default(),
            user_name: self.user_name.as_deref(),
        }
    }

    /// Every Up node matches against the subscriptions now; or they failed as a whole.
    pub fn subscribed(&mut self, packet_id: NonZeroU16, reasons: Vec<ReasonCode>) {
        if let Some(answers) = self.connected_answers() {
            let written = answers.suback(packet_id, reasons, &mut self.out);
            self.written(written);
        }
    }

    fn unsubscribe(&mut self, unsubscribe: Unsubscribe) {
        let (mut filters, mut refused) = (Vec::new(), Vec::new());
        for filter in unsubscribe.filters {
            let in_cluster = self.in_cluster(filter);
            refused.push(in_cluster.as_ref().err().copied());
            filters.extend(in_cluster);
        }
        self.outputs.push(Output::Unsubscribe {
            packet_id: unsubscribe.packet_id,
            filters,
            refused,
        });
    }

    pub fn unsubscribed(&mut self, packet_id: NonZeroU16, reasons: Vec<ReasonCode>) {
        if let Some(answers) = self.connected_answers() {
            let written = answers.unsuback(packet_id, reasons, &mut self.out);
            self.written(written);
        }
    }

    /// The client must not wait for an answer that it takes no packet large enough for.
    fn written(&mut self, ok: bool) {
        if !ok {
            self.close(ReasonCode::PACKET_TOO_LARGE, None);
        }
    }

    fn disconnect(&mut self, disconnect: &Disconnect) {
        let asked = self.kept.as_ref().map_or(0, |kept| kept.expiry_requested);
        let sets_expiry = disconnect.session_expiry_interval.is_some_and(|expiry| expiry > 0);
        if asked == 0 && sets_expiry && on(Check::DisconnectExpiry) {
            return self.close(ReasonCode::PROTOCOL_ERROR, None); // [MQTT-3.14.2-2]
        }
        self.end(Ending {
            reason: disconnect.reason,
            discard_will: disconnect.reason == ReasonCode::SUCCESS && on(Check::WillTakenBack),
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
        access: Rc<Access>,
        now: Instant,
    ) -> bool {
        let (State::Attaching, Some(answers)) = (&self.state, self.answers) else {
            return false;
        };
        let connack = handshake::connack(&accepted, served.present, &self.policy);
        self.again.offer(accepted.proven.is_some());
        self.user_name = access.identity.user.clone();
        self.outbound = Outbound::new(answers, accepted.outbound.clone(), shards, durable, Some(access));
        self.inbound = Inbound::new(answers, self.policy.receive_maximum);
        self.aliases = AliasesIn::new(self.policy.topic_alias_max);
        self.keep_alive = accepted.keep_alive;
        self.last_received = now;
        let Accepted {
            client_id,
            will,
            expiry,
            expiry_requested,
            ..
        } = *accepted;
        self.kept = Some(Kept {
            client_id,
            will_topic: will.map(|will| will.topic.into()),
            expiry,
            expiry_requested,
        });
        self.served = Some(served);
        self.state = State::Connected;
        if !answers.connack(connack, &mut self.out) {
            // Without CONNACK no DISCONNECT either. [MQTT-3.14.0-1]
            let reason = ReasonCode::PACKET_TOO_LARGE;
            self.end(Ending { reason, ..LOST });
        }
        true
    }

    /// Session Expiry Interval as granted, or as DISCONNECT changed it.
    pub fn session_expiry(&self, ending: Ending) -> u32 {
        let granted = self.kept.as_ref().map_or(0, |kept| kept.expiry);
        ending.expiry.unwrap_or(granted)
    }

    /// The CONNECT is answered with a refusal, as far as its version can tell it.
    pub fn refuse(&mut self, reason: ReasonCode, why: Option<&str>) {
        if matches!(self.state, State::Closing(_)) {
            return;
        }

        if let Some(answers) = self.answers {
            self.effects.connect_refused = Some(reason);
            answers.connack(handshake::refusal(reason, why.map(str::to_owned)), &mut self.out);
        }
        self.end(Ending { reason, ..LOST });
    }

    /// A frame that the strict check refused.
    pub fn violation(&mut self, violation: &Violation) {
        match self.state {
            State::AwaitConnect | State::Authenticating(_) => self.refuse(violation.reason, Some(violation.what)),
            State::Attaching | State::Connected | State::Closing(_) => {
                self.close(violation.reason, Some(violation.what));
            }
        }
    }

    /// The first packet's version, for the form in which a bad CONNECT is refused.
    pub fn note_version(&mut self, version: Version) {
        self.answers.get_or_insert(Answers::of_version(version));
    }

    /// The server ends the connection; 5.0 clients are told why. [MQTT-4.13.1-1]
    pub fn close(&mut self, reason: ReasonCode, why: Option<&str>) {
        match self.state {
            State::Closing(_) => {}
            State::Connected => {
                self.end(Ending { reason, ..LOST });
                if let Some(answers) = self.answers {
                    answers.disconnect(reason, why, &mut self.out);
                }
            }
            // [MQTT-3.14.0-1]
            State::Authenticating(_) | State::Attaching => self.refuse(reason, why),
            State::AwaitConnect => self.end(Ending { reason, ..LOST }),
        }
    }

    /// From here on nothing is handed to the client but what stands in `out`, and what tells why.
    fn end(&mut self, ending: Ending) {
        self.farewell = self.out.len();
        self.outbound.end();
        self.state = State::Closing(ending);
    }

    /// Whether the client may not be served now, as the node's lease and the fence of the session say. (P6)
    pub fn set_withheld(&mut self, withheld: bool) {
        self.withheld = withheld;
    }

    /// Whether nothing leaves now.
    pub fn is_withheld(&self) -> bool {
        self.withheld && self.served.is_some()
    }

    /// What may be written to the socket now. Of what is withheld nothing leaves: it stays as long as the connection is open;
    /// once that ends, only the packet that tells why does, to a client that has CONNACK. [MQTT-3.14.0-1]
    pub fn take_out(&mut self) -> BytesMut {
        if self.is_withheld() {
            match (self.ending(), self.is_told) {
                (None, _) => return BytesMut::new(),
                (Some(_), true) => self.out.advance(self.farewell.min(self.out.len())),
                (Some(_), false) => self.out.clear(),
            }
        }
        self.farewell = 0;
        self.is_told |= self.served.is_some() && !self.out.is_empty();
        std::mem::take(&mut self.out)
    }

    /// Gives back what [`Connection::take_out`] gave, empty, unless something has gathered since.
    pub fn keep_buffer(&mut self, mut written: BytesMut) {
        debug_assert!(written.is_empty());
        if self.out.is_empty() {
            // Its beginning, which was written, is room again: that it has some is how it is seen to be kept.
            written.reserve(1);
            self.out = written;
        }
    }

    /// The socket is gone.
    pub fn lost(&mut self) {
        if !matches!(self.state, State::Closing(_)) {
            self.end(LOST);
        }
    }

    /// Sends what may be sent, and moves what the outbound half asks for to `outputs`.
    pub fn pump(&mut self, log_time: impl Fn(ShardId) -> LogTime, now: Instant) {
        if !matches!(self.state, State::Connected) {
            return;
        }
        if let Some(held) = self.held.take() {
            let (publish, refused) = *held;
            self.resolved_publish(publish, refused, now);
        }
        self.outbound.pump(log_time, now, &mut self.out, &mut self.effects);
        self.outputs.extend(self.effects.wishes.drain(..).map(Output::Wish));
        if !self.outbound.is_overfull() {
            self.overfull_since = None;
        } else if self.outbound.is_hopeless() && !self.is_withheld() {
            self.close(
                ReasonCode::QUOTA_EXCEEDED,
                Some("the client does not read its messages"),
            );
        } else {
            self.overfull_since.get_or_insert(now);
        }
    }

    /// Until when the client may leave its messages waiting. What is withheld from it is not its doing.
    fn outbox_deadline(&self) -> Option<Instant> {
        let since = self.overfull_since.filter(|_| !self.is_withheld())?;
        Some(since + self.outbox_wait_max)
    }

    /// When something happens by itself: keep alive, the CONNECT deadline, an outbox that stays full.
    pub fn next_deadline(&self) -> Option<Instant> {
        match self.state {
            State::AwaitConnect | State::Authenticating(_) => Some(self.connect_deadline),
            State::Connected => [self.keep_alive_deadline(), self.outbox_deadline(), self.expires]
                .into_iter()
                .flatten()
                .min(),
            State::Attaching | State::Closing(_) => None,
        }
    }

    /// One and a half times the Keep Alive. [MQTT-3.1.2-22] None while the client is not read from for want of a lease: what it
    /// sent meanwhile is not known.
    fn keep_alive_deadline(&self) -> Option<Instant> {
        if self.is_withheld() {
            return None;
        }
        let keep_alive = Duration::from_secs(u64::from(self.keep_alive?.get()));
        Some(self.last_received + keep_alive + keep_alive / 2)
    }

    pub fn deadline_passed(&mut self, now: Instant) {
        match self.state {
            State::AwaitConnect | State::Authenticating(_) if now >= self.connect_deadline => {
                self.close(ReasonCode::MAXIMUM_CONNECT_TIME, None);
            }
            State::Connected => {
                if self.expires.is_some_and(|at| now >= at) {
                    self.close(
                        ReasonCode::NOT_AUTHORIZED,
                        Some("what showed who the client is has expired"),
                    );
                } else if self.keep_alive_deadline().is_some_and(|at| now >= at) {
                    self.close(ReasonCode::KEEP_ALIVE_TIMEOUT, None);
                } else if self.outbox_deadline().is_some_and(|at| now >= at) {
                    self.close(
                        ReasonCode::QUOTA_EXCEEDED,
                        Some("the client does not read its messages"),
                    );
                }
            }
            State::AwaitConnect | State::Authenticating(_) | State::Attaching | State::Closing(_) => {}
        }
    }

    /// The connection is not let in; its CONNECT will be answered with `reason`, in the form of its version.
    pub fn refuse_connect(&mut self, reason: ReasonCode) {
        self.refuse_connect = Some(reason);
    }

    /// It is not read from until then: that time does not count against the client's Keep Alive.
    pub fn held_until(&mut self, until: Instant) {
        self.last_received = self.last_received.max(until);
    }

    /// The node was without a lease: that time does not count against the client's Keep Alive, nor against its outbox.
    pub fn resumed(&mut self, now: Instant) {
        self.last_received = self.last_received.max(now);
        self.overfull_since = self.overfull_since.map(|_| now);
    }
}

impl Policy {
    /// For the outbound half before there is a client.
    fn idle_limits(&self) -> super::publish_out::OutboundLimits {
        super::publish_out::OutboundLimits {
            receive_maximum: 1,
            topic_alias_maximum: 0,
            bytes_max: self.outbox_bytes_max,
            messages_max: self.outbox_messages_max,
            mountpoint: self.mountpoint.clone(),
        }
    }
}

mod enhanced;

#[cfg(test)]
mod tests;
