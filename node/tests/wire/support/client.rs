//! A raw MQTT client: one connection, nothing done behind the test's back.
//!
//! It acknowledges only when told to (or with [`Client::message`] while `auto_acknowledge` is on), never reconnects, and
//! lets the test choose packet identifiers and DUP. What arrives while it waits for something else is kept in order.

use super::SOON;
use super::codec::{self, Connect, Packet, Property, Publish, Version};
use bytes::BytesMut;
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// Why nothing more comes from a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gone {
    /// The server closed it: end of stream or reset.
    Closed(String),
    /// Nothing came, or nothing could be written, in time.
    Silent(Duration),
    /// The server sent something the standard does not know.
    Wrong(String),
}

pub struct Client {
    pub version: Version,
    pub client_id: String,
    /// Whether [`Client::message`] answers: PUBACK, or PUBREC and PUBCOMP. On after `connect`.
    pub auto_acknowledge: bool,
    stream: TcpStream,
    buffer: BytesMut,
    /// Packets read while another was waited for.
    kept: VecDeque<Packet>,
    last_pid: u16,
}

impl Client {
    /// Connects and returns the client with its CONNACK, which says success.
    pub async fn connect(address: &str, connect: &Connect) -> (Client, Packet) {
        let (client, connack) = Client::try_connect(address, connect, SOON)
            .await
            .unwrap_or_else(|gone| panic!("{} to {address}: {gone:?}", connect.client_id));
        match connack {
            Packet::Connack { code: 0, .. } => (client, connack),
            other => panic!("{} to {address}: {other:?}", connect.client_id),
        }
    }

    /// An ephemeral session, for tests that need no more.
    pub async fn open(address: &str, version: Version, client_id: &str) -> Client {
        Client::connect(address, &Connect::clean(version, client_id)).await.0
    }

    /// Connects, returns the first packet whatever it is.
    ///
    /// # Errors
    /// Whatever ended the attempt, within about `limit` each for the socket and the answer.
    pub async fn try_connect(address: &str, connect: &Connect, limit: Duration) -> Result<(Client, Packet), Gone> {
        let mut client = Client::raw(address, connect.version, limit).await?;
        client.client_id.clone_from(&connect.client_id);
        client.send(&connect.encode()).await?;
        let first = client.packet_within(limit).await?;
        Ok((client, first))
    }

    /// A connection on which nothing was said yet.
    ///
    /// # Errors
    /// Refused, or not open within `limit`.
    pub async fn raw(address: &str, version: Version, limit: Duration) -> Result<Client, Gone> {
        let stream = timeout(limit, TcpStream::connect(address))
            .await
            .map_err(|_| Gone::Silent(limit))?;
        Ok(Client::over(stream.map_err(closed)?, version))
    }

    /// A connection whose socket takes few bytes that nobody reads.
    pub async fn open_with_small_buffer(address: &str, connect: &Connect) -> Client {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("SO_RCVBUF");
        let stream = socket
            .connect(address.parse().expect("an address"))
            .await
            .expect("a connection");
        let mut client = Client::over(stream, connect.version);
        client.send(&connect.encode()).await.expect("CONNECT");
        let connack = client.packet_within(SOON).await.expect("CONNACK");
        assert!(matches!(connack, Packet::Connack { code: 0, .. }), "{connack:?}");
        client
    }

    fn over(stream: TcpStream, version: Version) -> Client {
        stream.set_nodelay(true).ok();
        Client {
            version,
            client_id: String::new(),
            auto_acknowledge: true,
            stream,
            buffer: BytesMut::new(),
            kept: VecDeque::new(),
            last_pid: 0,
        }
    }

    /// # Errors
    /// The connection is gone, or took nothing for [`SOON`].
    pub async fn send(&mut self, frame: &[u8]) -> Result<(), Gone> {
        match timeout(SOON, self.stream.write_all(frame)).await {
            Ok(written) => written.map_err(closed),
            Err(_) => Err(Gone::Silent(SOON)),
        }
    }

    /// The next packet.
    ///
    /// # Errors
    /// [`Gone::Closed`] and [`Gone::Wrong`].
    ///
    /// # Cancel safety
    /// Safe: what was read stays in the buffer.
    pub async fn packet(&mut self) -> Result<Packet, Gone> {
        match self.kept.pop_front() {
            Some(packet) => Ok(packet),
            None => self.fresh_packet().await,
        }
    }

    /// # Errors
    /// As [`Client::packet`], and [`Gone::Silent`] after `limit`.
    pub async fn packet_within(&mut self, limit: Duration) -> Result<Packet, Gone> {
        timeout(limit, self.packet()).await.unwrap_or(Err(Gone::Silent(limit)))
    }

    /// The first byte and the body of the next packet as it came.
    pub async fn frame(&mut self) -> (u8, BytesMut) {
        let frame = timeout(SOON, async {
            loop {
                if let Some(frame) = codec::take_frame(&mut self.buffer).map_err(Gone::Wrong)? {
                    return Ok(frame);
                }
                if self.stream.read_buf(&mut self.buffer).await.map_err(closed)? == 0 {
                    return Err(Gone::Closed("end of stream".into()));
                }
            }
        });
        let frame = frame.await.unwrap_or(Err(Gone::Silent(SOON)));
        frame.unwrap_or_else(|gone| panic!("{}: no packet: {gone:?}", self.client_id))
    }

    async fn fresh_packet(&mut self) -> Result<Packet, Gone> {
        loop {
            if let Some(packet) = codec::decode(self.version, &mut self.buffer).map_err(Gone::Wrong)? {
                return Ok(packet);
            }
            if self.stream.read_buf(&mut self.buffer).await.map_err(closed)? == 0 {
                return Err(Gone::Closed("end of stream".into()));
            }
        }
    }

    /// Reads until `wanted` takes a packet; keeps the others.
    pub async fn wait_for<T>(&mut self, what: &str, wanted: impl Fn(&Packet) -> Option<T>) -> T {
        let kept = self.kept.iter().enumerate();
        if let Some((index, value)) = kept.filter_map(|(index, packet)| Some((index, wanted(packet)?))).next() {
            self.kept.remove(index);
            return value;
        }
        let answer = timeout(SOON, async {
            loop {
                let packet = self.fresh_packet().await?;
                match wanted(&packet) {
                    Some(value) => return Ok(value),
                    None => self.kept.push_back(packet),
                }
            }
        });
        match answer.await.unwrap_or(Err(Gone::Silent(SOON))) {
            Ok(value) => value,
            Err(gone) => panic!("{}: no {what}: {gone:?}, kept {:?}", self.client_id, self.kept.front()),
        }
    }

    /// Subscribes and waits for SUBACK; every filter must be granted at its QoS.
    pub async fn subscribe(&mut self, filters: &[(&str, u8)]) {
        self.subscribe_with(&[], filters).await;
    }

    /// As [`Client::subscribe`], with properties of SUBSCRIBE.
    pub async fn subscribe_with(&mut self, properties: &[Property], filters: &[(&str, u8)]) {
        let pid = self.next_pid();
        self.send(&codec::subscribe_with(self.version, pid, properties, filters))
            .await
            .expect("SUBSCRIBE");
        let codes = self
            .wait_for("SUBACK", |packet| match packet {
                Packet::Suback { pid: answered, codes } if *answered == pid => Some(codes.clone()),
                _ => None,
            })
            .await;
        let granted: Vec<u8> = filters.iter().map(|filter| filter.1 & 3).collect();
        assert_eq!(codes, granted, "SUBACK of {filters:?}");
    }

    /// Unsubscribes and waits for UNSUBACK.
    pub async fn unsubscribe(&mut self, filters: &[&str]) -> Vec<u8> {
        let pid = self.next_pid();
        self.send(&codec::unsubscribe(self.version, pid, filters))
            .await
            .expect("UNSUBSCRIBE");
        self.wait_for("UNSUBACK", |packet| match packet {
            Packet::Unsuback { pid: answered, codes } if *answered == pid => Some(codes.clone()),
            _ => None,
        })
        .await
    }

    /// Publishes; at QoS 1 waits for the PUBACK, which must say success.
    pub async fn publish(&mut self, topic: &str, payload: impl Into<Vec<u8>>, qos: u8) {
        let code = self.publish_code(topic, payload, qos).await;
        assert!(code < 0x80, "{}: PUBACK {code:#04x} for {topic}", self.client_id);
    }

    /// Publishes any PUBLISH, at QoS 2 with the whole exchange; its Packet Identifier is filled in. The reason code of the
    /// PUBACK, or of the PUBREC or PUBCOMP that ended it.
    pub async fn publish_packet(&mut self, publish: Publish) -> u8 {
        let pid = if publish.qos > 0 { self.next_pid() } else { 0 };
        let publish = Publish { pid, ..publish };
        self.send(&publish.encode(self.version)).await.expect("PUBLISH");
        if publish.qos == 0 {
            return 0;
        }
        let code = self
            .wait_for("PUBACK or PUBREC", |packet| match packet {
                Packet::Puback { pid: answered, code } if *answered == pid && publish.qos == 1 => Some(*code),
                Packet::Pubrec { pid: answered, code } if *answered == pid && publish.qos == 2 => Some(*code),
                _ => None,
            })
            .await;
        match publish.qos == 2 && code < 0x80 {
            true => self.release(pid).await.max(code),
            false => code,
        }
    }

    /// Publishes and returns the reason code of the PUBACK.
    pub async fn publish_code(&mut self, topic: &str, payload: impl Into<Vec<u8>>, qos: u8) -> u8 {
        let pid = if qos > 0 { self.next_pid() } else { 0 };
        let publish = Publish {
            pid,
            ..Publish::new(topic, payload, qos)
        };
        self.send(&publish.encode(self.version)).await.expect("PUBLISH");
        if qos == 0 {
            return 0;
        }
        self.wait_for("PUBACK", |packet| match packet {
            Packet::Puback { pid: answered, code } if *answered == pid => Some(*code),
            _ => None,
        })
        .await
    }

    /// Publishes all of `payloads` to `topic` at QoS 1 with up to `window` unacknowledged; all are acknowledged, in order.
    pub async fn publish_all(&mut self, topic: &str, payloads: &[Vec<u8>], window: usize) {
        let mut unacknowledged = VecDeque::new();
        let mut next = payloads.iter();
        loop {
            while unacknowledged.len() < window
                && let Some(payload) = next.next()
            {
                let publish = Publish {
                    pid: self.next_pid(),
                    ..Publish::new(topic, payload.clone(), 1)
                };
                self.send(&publish.encode(self.version)).await.expect("PUBLISH");
                unacknowledged.push_back(publish.pid);
            }
            let Some(expected) = unacknowledged.pop_front() else {
                return;
            };
            let (pid, code) = self
                .wait_for("PUBACK", |packet| match packet {
                    Packet::Puback { pid, code } => Some((*pid, *code)),
                    _ => None,
                })
                .await;
            assert_eq!(pid, expected, "{}: acknowledged out of order", self.client_id);
            assert!(code < 0x80, "{}: PUBACK {code:#04x}", self.client_id);
        }
    }

    /// The next PUBLISH, its exchange completed if `auto_acknowledge`; anything else that comes is a failure.
    pub async fn message(&mut self) -> Publish {
        match self.packet_within(SOON).await {
            Ok(Packet::Publish(publish)) => {
                match publish.qos {
                    1 if self.auto_acknowledge => self.acknowledge(publish.pid).await,
                    2 if self.auto_acknowledge => self.complete(publish.pid).await,
                    _ => {}
                }
                publish
            }
            other => panic!("{}: a message expected, not {other:?}", self.client_id),
        }
    }

    /// Messages up to and without the one whose payload is `last`.
    pub async fn messages_until(&mut self, last: &str) -> Vec<Publish> {
        let mut messages = Vec::new();
        loop {
            match self.message().await {
                message if message.payload == last.as_bytes() => return messages,
                message => messages.push(message),
            }
        }
    }

    /// Publishes at QoS 2 and completes the exchange; returns its Packet Identifier.
    pub async fn publish_exactly_once(&mut self, topic: &str, payload: impl Into<Vec<u8>>) -> u16 {
        let pid = self.next_pid();
        let publish = Publish {
            pid,
            ..Publish::new(topic, payload, 2)
        };
        self.send(&publish.encode(self.version)).await.expect("PUBLISH");
        self.pubrec_of(pid).await;
        self.release(pid).await;
        pid
    }

    /// Waits for the PUBREC of `pid`, which must say success.
    pub async fn pubrec_of(&mut self, pid: u16) {
        let code = self
            .wait_for("PUBREC", |packet| match packet {
                Packet::Pubrec { pid: answered, code } if *answered == pid => Some(*code),
                _ => None,
            })
            .await;
        assert!(code < 0x80, "{}: PUBREC {code:#04x} of {pid}", self.client_id);
    }

    /// PUBREL, and the reason code of the PUBCOMP.
    pub async fn release(&mut self, pid: u16) -> u8 {
        self.send(&codec::pubrel(pid)).await.expect("PUBREL");
        self.wait_for("PUBCOMP", |packet| match packet {
            Packet::Pubcomp { pid: answered, code } if *answered == pid => Some(*code),
            _ => None,
        })
        .await
    }

    /// The receiver's half of a QoS 2 exchange after the PUBLISH: PUBREC, PUBREL, PUBCOMP.
    pub async fn complete(&mut self, pid: u16) {
        self.send(&codec::pubrec(pid)).await.expect("PUBREC");
        self.pubrel_of(pid).await;
        self.send(&codec::pubcomp(pid)).await.expect("PUBCOMP");
    }

    pub async fn pubrel_of(&mut self, pid: u16) {
        self.wait_for("PUBREL", |packet| match packet {
            Packet::Pubrel { pid: sent, .. } if *sent == pid => Some(()),
            _ => None,
        })
        .await;
    }

    pub async fn acknowledge(&mut self, pid: u16) {
        self.send(&codec::puback(pid)).await.expect("PUBACK");
    }

    /// A round trip on this connection.
    pub async fn ping(&mut self) {
        self.send(&codec::pingreq()).await.expect("PINGREQ");
        self.wait_for("PINGRESP", |packet| (*packet == Packet::Pingresp).then_some(()))
            .await;
    }

    /// Whether a packet was kept or arrived with the last round trip.
    pub fn has_kept(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Reads to the end of the connection; returns a DISCONNECT if one came, and how long it took.
    pub async fn closed_by_server(&mut self, limit: Duration) -> (Option<u8>, Duration) {
        let started = Instant::now();
        let mut code = None;
        loop {
            match self.packet_within(limit.saturating_sub(started.elapsed())).await {
                Ok(Packet::Disconnect { code: sent, .. }) => code = Some(sent),
                Ok(_) => {}
                Err(Gone::Closed(_)) => return (code, started.elapsed()),
                Err(gone) => panic!("{}: not closed within {limit:?}: {gone:?}", self.client_id),
            }
        }
    }

    /// DISCONNECT, then waits until the server has closed the connection: the session is detached.
    pub async fn disconnect(mut self) {
        self.send(&codec::disconnect()).await.expect("DISCONNECT");
        self.closed_by_server(SOON).await;
    }

    /// Packet identifiers in order, as a client that keeps few unacknowledged may use them.
    pub fn next_pid(&mut self) -> u16 {
        self.last_pid = self.last_pid % 65_535 + 1;
        self.last_pid
    }
}

fn closed(error: std::io::Error) -> Gone {
    Gone::Closed(error.to_string())
}
