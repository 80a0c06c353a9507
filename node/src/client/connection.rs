//! One Network Connection from the client's side, without I/O.
//!
//!     received bytes ──next_event──▶ Event           publish, subscribe, answer, disconnect ──▶ bytes to send
//!     next_deadline ──timed_out──▶ PINGREQ, or the end
//!
//! Strict: what the server may not send ends the connection, and a server that speaks MQTT 5 is told why.

use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::exchanges::{Exchanges, Recorded};
use super::keep_alive::{Due, KeepAlive};
use super::receipts::{Arrival, Receipts};
use crate::protocol::codec::{
    self, AckKind, ConnAck, Connect, Direction, Disconnect, EncodeError, Limits, Packet, Publish, PublishFields,
    PublishFrame, QoS, ReasonCode, SubAck, Subscribe, SubscribeFilter, UnsubAck, Unsubscribe, UserProperties, Version,
    Violation,
};
use crate::protocol::topic_alias::AliasesIn;

/// What a connection tells its user.
#[derive(Debug)]
pub enum Event {
    /// CONNACK with success.
    Connected(Box<ConnAck>),
    /// A message; to be answered ([`Connection::answer`]) in the order of arrival, once it is taken care of.
    Message(Publish),
    /// A PUBLISH above QoS 0 has been acknowledged in full, or refused.
    Published {
        packet_id: NonZeroU16,
        reason: ReasonCode,
        reason_string: Option<String>,
    },
    Subscribed(SubAck),
    Unsubscribed(UnsubAck),
}

/// Why the connection is over.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionEnd {
    #[error("connection refused: {reason}{}", tail(reason_string, server_reference))]
    Refused {
        reason: ReasonCode,
        reason_string: Option<String>,
        server_reference: Option<String>,
    },
    #[error("disconnected by the server: {reason}{}", tail(reason_string, server_reference))]
    Disconnected {
        reason: ReasonCode,
        reason_string: Option<String>,
        server_reference: Option<String>,
    },
    #[error("the server broke the protocol: {0}")]
    Violation(Violation),
    #[error("no answer to CONNECT within {0:?}: does an MQTT broker listen there?")]
    NoConnack(Duration),
    #[error("no answer to a ping within {0:?}")]
    NoPingresp(Duration),
}

/// Why a packet was not sent. The connection goes on.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Later there will be.
    #[error("as many messages are in flight as the server takes")]
    NoRoom,
    #[error("the server takes QoS {} at most", *maximum as u8)]
    QosNotSupported { maximum: QoS },
    #[error("the server keeps no retained messages")]
    RetainNotSupported,
    #[error("the packet has {bytes} bytes; the server takes {limit} at most")]
    TooLarge { bytes: usize, limit: u32 },
    #[error("topic alias {alias}; the server takes {maximum} at most")]
    TopicAlias { alias: u16, maximum: u16 },
    #[error("cannot be sent: {0}")]
    Encode(#[from] EncodeError),
}

#[derive(Debug)]
enum Phase {
    Connecting { until: Instant },
    Connected,
    Over,
}

/// What CONNACK says of the server.
#[derive(Debug)]
struct Server {
    maximum_qos: QoS,
    retain_available: bool,
    maximum_packet_size: u32,
    topic_alias_maximum: u16,
}

#[derive(Debug)]
pub struct Connection {
    version: Version,
    clean_start: bool,
    phase: Phase,
    limits: Limits,
    server: Server,
    exchanges: Exchanges,
    receipts: Receipts,
    aliases: AliasesIn,
    keep_alive: KeepAlive,
    out: BytesMut,
}

impl Connection {
    /// Begins with CONNECT. `in_flight_max` bounds PUBLISH packets in flight, as the server's Receive Maximum does.
    ///
    /// # Errors
    /// The CONNECT cannot be expressed, or is against the standard.
    pub fn new(connect: &Connect, in_flight_max: u16, now: Instant) -> Result<Connection, EncodeError> {
        let mut out = BytesMut::new();
        codec::encode_connect(connect, &mut out)?;
        let properties = &connect.properties;
        let packet_bytes = properties
            .maximum_packet_size
            .map_or(usize::MAX, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        Ok(Connection {
            version: connect.version,
            clean_start: connect.clean_start,
            phase: Phase::Connecting {
                until: now + CONNACK_PATIENCE,
            },
            limits: Limits {
                packet_bytes,
                control_packet_bytes: packet_bytes,
                filters_per_packet: usize::MAX,
                user_properties: usize::MAX,
                topic_bytes: usize::MAX,
                topic_levels: usize::MAX,
            },
            server: Server {
                maximum_qos: QoS::ExactlyOnce,
                retain_available: true,
                maximum_packet_size: u32::MAX,
                topic_alias_maximum: 0,
            },
            exchanges: Exchanges::new(in_flight_max),
            receipts: Receipts::new(properties.receive_maximum.unwrap_or(u16::MAX)),
            aliases: AliasesIn::new(properties.topic_alias_maximum),
            keep_alive: KeepAlive::new(connect.keep_alive_seconds, now),
            out,
        })
    }

    /// Takes whole packets from `received` until one is an event, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// The connection is over; what is left to send says why, as far as the version can.
    pub fn next_event(&mut self, received: &mut BytesMut) -> Result<Option<Event>, ConnectionEnd> {
        loop {
            let event = match self.next_packet(received) {
                Ok(None) => return Ok(None),
                Ok(Some(packet)) => self.handle(packet),
                Err(violation) => Err(ConnectionEnd::Violation(violation)),
            };
            match event {
                Ok(None) => {}
                Ok(event) => return Ok(event),
                Err(end) => {
                    self.close_for(&end);
                    return Err(end);
                }
            }
        }
    }

    /// When [`timed_out`](Self::timed_out) is to be called.
    pub fn next_deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Connecting { until } => Some(until),
            Phase::Connected => self.keep_alive.deadline(),
            Phase::Over => None,
        }
    }

    /// # Errors
    /// The server has been silent for too long.
    pub fn timed_out(&mut self, now: Instant) -> Result<(), ConnectionEnd> {
        match self.phase {
            Phase::Connecting { until } if now >= until => {
                self.phase = Phase::Over;
                Err(ConnectionEnd::NoConnack(CONNACK_PATIENCE))
            }
            Phase::Connected => match self.keep_alive.due(now) {
                Due::Nothing => Ok(()),
                Due::Ping => {
                    codec::encode_pingreq(&mut self.out);
                    Ok(())
                }
                Due::GiveUp(waited) => {
                    self.phase = Phase::Over;
                    Err(ConnectionEnd::NoPingresp(waited))
                }
            },
            Phase::Connecting { .. } | Phase::Over => Ok(()),
        }
    }

    /// What is to be sent now.
    pub fn take_output(&mut self, now: Instant) -> Bytes {
        if !self.out.is_empty() {
            self.keep_alive.sent(now);
        }
        self.out.split().freeze()
    }

    /// Bytes that [`take_output`](Self::take_output) would give.
    pub fn output_bytes(&self) -> usize {
        self.out.len()
    }

    /// Whether a PUBLISH above QoS 0 may leave: the server's Receive Maximum has room. [MQTT-3.3.4-7]
    pub fn has_room(&self) -> bool {
        self.exchanges.has_room()
    }

    /// Whether everything that this client asked for has been answered.
    pub fn is_answered(&self) -> bool {
        self.exchanges.is_empty()
    }

    /// Whether a PUBREL is awaited for a message that was answered with PUBREC.
    pub fn awaits_release(&self) -> bool {
        self.receipts.awaits_release()
    }

    /// Sends a PUBLISH; above QoS 0 an [`Event::Published`] with the same identifier follows.
    ///
    /// # Errors
    /// Nothing was sent. [`RequestError::NoRoom`] ends by itself.
    pub fn publish(&mut self, fields: &PublishFields<'_>) -> Result<Option<NonZeroU16>, RequestError> {
        debug_assert_eq!(fields.version, self.version, "one version per connection");
        self.check_server_takes(fields)?;
        let frame = PublishFrame::encode(fields)?;
        if frame.len() > self.server.maximum_packet_size as usize {
            return Err(RequestError::TooLarge {
                bytes: frame.len(),
                limit: self.server.maximum_packet_size,
            });
        }
        let packet_id = match fields.qos {
            QoS::AtMostOnce => None,
            qos => Some(self.exchanges.publish(qos).ok_or(RequestError::NoRoom)?),
        };
        frame.append(packet_id, false, &mut self.out);
        Ok(packet_id)
    }

    /// Sends a SUBSCRIBE; an [`Event::Subscribed`] with the same identifier follows.
    ///
    /// # Errors
    /// Nothing was sent.
    pub fn subscribe(
        &mut self,
        filters: Vec<SubscribeFilter>,
        subscription_identifier: Option<u32>,
        user_properties: UserProperties,
    ) -> Result<NonZeroU16, RequestError> {
        let packet_id = self.exchanges.subscribe(filters.len()).ok_or(RequestError::NoRoom)?;
        let subscribe = Subscribe {
            packet_id,
            subscription_identifier,
            filters,
            user_properties,
        };
        let written = codec::encode_subscribe(self.version, &subscribe, &mut self.out);
        self.keep_if_written(packet_id, written)
    }

    /// Sends an UNSUBSCRIBE; an [`Event::Unsubscribed`] with the same identifier follows.
    ///
    /// # Errors
    /// Nothing was sent.
    pub fn unsubscribe(
        &mut self,
        filters: Vec<String>,
        user_properties: UserProperties,
    ) -> Result<NonZeroU16, RequestError> {
        let packet_id = self.exchanges.unsubscribe(filters.len()).ok_or(RequestError::NoRoom)?;
        let unsubscribe = Unsubscribe {
            packet_id,
            filters,
            user_properties,
        };
        let written = codec::encode_unsubscribe(self.version, &unsubscribe, &mut self.out);
        self.keep_if_written(packet_id, written)
    }

    /// The message has been taken care of: PUBACK or PUBREC leaves. Nothing at QoS 0.
    pub fn answer(&mut self, message: &Publish) {
        let Some(packet_id) = message.packet_id() else { return };
        if let Some(kind) = self.receipts.answer(packet_id) {
            codec::encode_ack(kind, self.version, packet_id, ReasonCode::SUCCESS, &mut self.out);
        }
    }

    /// Ends the connection from this side. 3.x can only say that it does.
    ///
    /// # Errors
    /// The DISCONNECT cannot be expressed in this version.
    pub fn disconnect(&mut self, disconnect: &Disconnect) -> Result<(), EncodeError> {
        codec::encode_disconnect(self.version, disconnect, &mut self.out)?;
        self.phase = Phase::Over;
        Ok(())
    }

    fn next_packet(&self, received: &mut BytesMut) -> Result<Option<Packet>, Violation> {
        let version = Some(self.version);
        // Whoever is no broker is found out by the first byte, not by the length that it happens to spell.
        if matches!(self.phase, Phase::Connecting { .. }) && received.first().is_some_and(|first| *first != CONNACK) {
            return Err(NOT_CONNACK);
        }
        let Some(length) = codec::frame_length(received, &self.limits, version)? else {
            return Ok(None);
        };
        let frame = received.split_to(length).freeze();
        codec::decode(frame, version, Direction::ServerToClient, &self.limits).map(Some)
    }

    fn handle(&mut self, packet: Packet) -> Result<Option<Event>, ConnectionEnd> {
        match (&self.phase, packet) {
            (Phase::Over, _) => Ok(None),
            (Phase::Connecting { .. }, Packet::ConnAck(connack)) => self.connack(connack).map(Some),
            (Phase::Connecting { .. }, _) => Err(NOT_CONNACK.into()),
            (Phase::Connected, packet) => self.handle_connected(packet),
        }
    }

    fn handle_connected(&mut self, packet: Packet) -> Result<Option<Event>, ConnectionEnd> {
        match packet {
            Packet::Publish(publish) => Ok(self.message(publish)?.map(Event::Message)),
            Packet::PubAck(ack) => Ok(self.exchanges.puback(ack.packet_id)?.then_some(Event::Published {
                packet_id: ack.packet_id,
                reason: ack.reason,
                reason_string: ack.reason_string,
            })),
            Packet::PubRec(ack) => Ok(self.recorded(ack)?),
            Packet::PubComp(ack) => Ok(self.exchanges.pubcomp(ack.packet_id)?.then_some(Event::Published {
                packet_id: ack.packet_id,
                reason: ack.reason,
                reason_string: ack.reason_string,
            })),
            Packet::PubRel(ack) => {
                let reason = self.receipts.released(ack.packet_id)?;
                codec::encode_ack(AckKind::PubComp, self.version, ack.packet_id, reason, &mut self.out);
                Ok(None)
            }
            Packet::SubAck(suback) => {
                self.exchanges.suback(suback.packet_id, suback.reasons.len())?;
                Ok(Some(Event::Subscribed(suback)))
            }
            Packet::UnsubAck(unsuback) => {
                let codes = self.version.is_v5().then_some(unsuback.reasons.len());
                self.exchanges.unsuback(unsuback.packet_id, codes)?;
                Ok(Some(Event::Unsubscribed(unsuback)))
            }
            Packet::PingResp => {
                self.keep_alive.ponged();
                Ok(None)
            }
            Packet::Disconnect(disconnect) => Err(ConnectionEnd::Disconnected {
                reason: disconnect.reason,
                reason_string: disconnect.reason_string,
                server_reference: disconnect.server_reference,
            }),
            Packet::ConnAck(_) => Err(violation("MQTT-3.2.0-2", "second CONNACK on a connection")),
            // Enhanced authentication is not spoken here, so the server has nothing to continue.
            Packet::Auth(_) => Err(violation("MQTT-4.12.0-6", "AUTH that was not asked for")),
            Packet::Connect(_) | Packet::Subscribe(_) | Packet::Unsubscribe(_) | Packet::PingReq => {
                unreachable!("the codec refuses what only clients send")
            }
        }
    }

    fn connack(&mut self, connack: Box<ConnAck>) -> Result<Event, ConnectionEnd> {
        if connack.reason != ReasonCode::SUCCESS {
            return Err(ConnectionEnd::Refused {
                reason: connack.reason,
                reason_string: connack.properties.reason_string,
                server_reference: connack.properties.server_reference,
            });
        }
        if connack.session_present && self.clean_start {
            return Err(violation("MQTT-3.2.2-2", "Session Present after Clean Start"));
        }
        let properties = &connack.properties;
        self.server = Server {
            maximum_qos: properties.maximum_qos.unwrap_or(QoS::ExactlyOnce),
            retain_available: properties.retain_available.unwrap_or(true),
            maximum_packet_size: properties.maximum_packet_size.unwrap_or(u32::MAX),
            topic_alias_maximum: properties.topic_alias_maximum.unwrap_or(0),
        };
        if let Some(receive_maximum) = properties.receive_maximum {
            self.exchanges.lower_receive_maximum(receive_maximum);
        }
        if let Some(seconds) = properties.server_keep_alive {
            self.keep_alive.set_interval(seconds);
        }
        self.phase = Phase::Connected;
        Ok(Event::Connected(connack))
    }

    fn message(&mut self, publish: Publish) -> Result<Option<Publish>, Violation> {
        let arrival = match publish.packet_id() {
            Some(packet_id) => self.receipts.arrived(packet_id, publish.qos())?,
            None => Arrival::HandOver,
        };
        let publish = self.aliases.resolve(publish).map_err(|reason| Violation {
            reason,
            statement: "3.3.2.3.4",
            what: "topic alias that was not agreed on",
        })?;
        if let (Arrival::AnswerAgain, Some(packet_id)) = (arrival, publish.packet_id()) {
            let (version, reason) = (self.version, ReasonCode::SUCCESS);
            codec::encode_ack(AckKind::PubRec, version, packet_id, reason, &mut self.out);
        }
        Ok((arrival == Arrival::HandOver).then_some(publish))
    }

    fn recorded(&mut self, ack: codec::Ack) -> Result<Option<Event>, Violation> {
        match self.exchanges.pubrec(ack.packet_id, ack.reason)? {
            Recorded::Release(reason) => {
                codec::encode_ack(AckKind::PubRel, self.version, ack.packet_id, reason, &mut self.out);
                Ok(None)
            }
            Recorded::Refused => Ok(Some(Event::Published {
                packet_id: ack.packet_id,
                reason: ack.reason,
                reason_string: ack.reason_string,
            })),
        }
    }

    fn check_server_takes(&self, fields: &PublishFields<'_>) -> Result<(), RequestError> {
        let server = &self.server;
        if fields.qos > server.maximum_qos {
            return Err(RequestError::QosNotSupported {
                maximum: server.maximum_qos,
            });
        }
        if fields.retain && !server.retain_available {
            return Err(RequestError::RetainNotSupported);
        }
        match fields.properties.topic_alias {
            Some(alias) if alias > server.topic_alias_maximum => Err(RequestError::TopicAlias {
                alias,
                maximum: server.topic_alias_maximum,
            }),
            _ => Ok(()),
        }
    }

    fn keep_if_written(
        &mut self,
        packet_id: NonZeroU16,
        written: Result<(), EncodeError>,
    ) -> Result<NonZeroU16, RequestError> {
        if let Err(error) = written {
            self.exchanges.forget(packet_id);
            return Err(error.into());
        }
        Ok(packet_id)
    }

    /// The last word, where this side has one. [MQTT-4.13.1-1]
    fn close_for(&mut self, end: &ConnectionEnd) {
        if let (ConnectionEnd::Violation(violation), Phase::Connected) = (end, &self.phase) {
            // 3.x cannot say it: the connection just ends.
            let _ = codec::encode_disconnect(self.version, &Disconnect::new(violation.reason), &mut self.out);
        }
        self.phase = Phase::Over;
    }
}

impl From<Violation> for ConnectionEnd {
    fn from(violation: Violation) -> Self {
        ConnectionEnd::Violation(violation)
    }
}

fn violation(statement: &'static str, what: &'static str) -> ConnectionEnd {
    ConnectionEnd::Violation(Violation {
        reason: ReasonCode::PROTOCOL_ERROR,
        statement,
        what,
    })
}

/// What a server adds to a reason code.
fn tail(reason_string: &Option<String>, server_reference: &Option<String>) -> String {
    let mut tail = String::new();
    if let Some(reason) = reason_string {
        tail += &format!(" ({reason})");
    }
    if let Some(server) = server_reference {
        tail += &format!("; use {server}");
    }
    tail
}

/// The first byte of CONNACK.
const CONNACK: u8 = 0x20;
const NOT_CONNACK: Violation = Violation {
    reason: ReasonCode::PROTOCOL_ERROR,
    statement: "MQTT-3.2.0-1",
    what: "its first packet is not CONNACK: does an MQTT broker listen there?",
};
/// Twice what a cluster may take to move leaderships and sessions (P10).
const CONNACK_PATIENCE: Duration = Duration::from_secs(10);
