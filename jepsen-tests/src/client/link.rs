//! One connection to a node: the socket, and what the client must remember of it as long as it lasts.
//!
//!     Client ──Sent──▶ Codec ──bytes──▶ socket        a task of its own reads: socket ──▶ Codec ──▶ (conn, Incoming) ──▶ Client
//!
//! The queue from the reading task is bounded: a client that takes nothing from it stops reading, down to TCP's window.

use super::websocket::{Came, Framer, Unframer, upgrade};
use crate::history::{Message, Op, Process};
use crate::mqtt::{self, Ack, Packet, Sent, Version};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

/// How packets look on the wire. MQTT over TCP is one; a transport of the same session (JSON over WebSocket, long poll) can be
/// another, with the same clients, workloads and checkers.
pub trait Codec: Send + Sync {
    fn encode(&self, packet: &Sent) -> Vec<u8>;
    /// The first packet and how many bytes it took; `None` while it is not whole.
    ///
    /// # Errors
    /// The bytes are none that a server may send.
    fn decode(&self, bytes: &[u8]) -> Result<Option<(Packet, usize)>, String>;
}

impl Codec for Version {
    fn encode(&self, packet: &Sent) -> Vec<u8> {
        mqtt::encode(*self, packet)
    }

    fn decode(&self, bytes: &[u8]) -> Result<Option<(Packet, usize)>, String> {
        mqtt::decode(*self, bytes)
    }
}

#[derive(Debug)]
pub enum Incoming {
    Packet(Packet),
    /// Bytes that no server may send; nothing follows.
    Malformed(String),
    /// The stream has ended, in order (FIN) or not.
    End {
        orderly: bool,
    },
}

/// An acknowledgement that is to be sent, in its turn.
pub struct Owed {
    pub due: Instant,
    pub kind: Ack,
    pub pid: u16,
    pub reason: u8,
    pub message: Option<Message>,
}

pub struct Link {
    pub conn: u64,
    pub node: String,
    codec: Arc<dyn Codec>,
    write: OwnedWriteHalf,
    /// Over WebSocket.
    framer: Option<Framer>,
    reader: JoinHandle<()>,
    /// Received at QoS ≥ 1 and neither PUBACK, PUBCOMP nor a negative PUBREC sent: what Receive Maximum counts.
    pub unacknowledged: BTreeSet<u16>,
    /// First in, first out, as the standard demands of acknowledgements of one kind.
    pub owed: VecDeque<Owed>,
    /// PINGREQ without its PINGRESP.
    pub ping: Option<(Process, Instant)>,
    pub next_ping: Instant,
    /// Of the broker's DISCONNECT.
    pub reason: Option<u8>,
    /// The DISCONNECT that was sent: its process and operation.
    pub leaving: Option<(Process, Op)>,
    /// Published on this connection after another had taken it over: process and operation by packet identifier.
    pub late: BTreeMap<u16, (Process, Op)>,
}

impl Link {
    /// Opens a connection; what comes goes to `to`, tagged with `conn`.
    ///
    /// # Errors
    /// TCP, or the upgrade to WebSocket, gave none in time: nothing of MQTT was sent.
    pub async fn open(
        conn: u64,
        node: &str,
        address: Address,
        codec: Arc<dyn Codec>,
        to: mpsc::Sender<(u64, Incoming)>,
    ) -> std::io::Result<Link> {
        let stream = timeout(OPEN_LIMIT, open(address))
            .await
            .map_err(|_| std::io::ErrorKind::TimedOut)??;
        let (read, write) = stream.into_split();
        let web = matches!(address, Address::WebSocket(_));
        let unframer = web.then(Unframer::default);
        let reader = tokio::spawn(read_all(conn, read, unframer, codec.clone(), to));
        Ok(Link {
            conn,
            node: node.into(),
            codec,
            write,
            framer: web.then(Framer::default),
            reader,
            unacknowledged: BTreeSet::new(),
            owed: VecDeque::new(),
            ping: None,
            next_ping: Instant::now() + PING_EVERY,
            reason: None,
            leaving: None,
            late: BTreeMap::new(),
        })
    }

    /// # Errors
    /// The connection is gone, or took nothing for [`WRITE_LIMIT`].
    pub async fn send(&mut self, packet: &Sent) -> std::io::Result<()> {
        let mut bytes = self.codec.encode(packet);
        if let Some(framer) = &mut self.framer {
            bytes = framer.wrap(&bytes);
        }
        timeout(WRITE_LIMIT, self.write.write_all(&bytes))
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
    }

    /// Whether the peer answered with RST: what was sent last came to a socket that nobody had.
    pub fn was_reset(&self) -> bool {
        !matches!(self.write.as_ref().take_error(), Ok(None))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Where a node is reached, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    WebSocket(SocketAddr),
}

async fn open(address: Address) -> std::io::Result<TcpStream> {
    let (Address::Tcp(at) | Address::WebSocket(at)) = address;
    let mut stream = TcpStream::connect(at).await?;
    stream.set_nodelay(true)?;
    if address == Address::WebSocket(at) {
        upgrade(&mut stream, at).await?;
    }
    Ok(stream)
}

/// Reads some bytes of MQTT behind those that are there.
async fn read_some(
    read: &mut OwnedReadHalf,
    unframer: &mut Option<Unframer>,
    buffer: &mut Vec<u8>,
) -> Result<(), Incoming> {
    let Some(unframer) = unframer else {
        return match read.read_buf(buffer).await {
            Ok(0) => Err(Incoming::End { orderly: true }),
            Ok(_) => Ok(()),
            Err(_) => Err(Incoming::End { orderly: false }),
        };
    };
    loop {
        match unframer.next().map_err(Incoming::Malformed)? {
            Some(Came::Bytes(bytes)) => {
                buffer.extend(bytes);
                return Ok(());
            }
            Some(Came::Close) => return Err(Incoming::End { orderly: true }),
            None => {}
        }
        let mut raw = Vec::with_capacity(16 * 1024);
        match read.read_buf(&mut raw).await {
            Ok(0) => return Err(Incoming::End { orderly: true }),
            Ok(_) => unframer.push(&raw),
            Err(_) => return Err(Incoming::End { orderly: false }),
        }
    }
}

async fn read_all(
    conn: u64,
    mut read: OwnedReadHalf,
    mut unframer: Option<Unframer>,
    codec: Arc<dyn Codec>,
    to: mpsc::Sender<(u64, Incoming)>,
) {
    let mut buffer = Vec::with_capacity(16 * 1024);
    loop {
        let mut start = 0;
        let wrong = loop {
            match codec.decode(&buffer[start..]) {
                Ok(Some((packet, length))) => {
                    start += length;
                    if to.send((conn, Incoming::Packet(packet))).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break None,
                Err(reason) => break Some(reason),
            }
        };
        buffer.drain(..start);
        let last = match wrong {
            Some(reason) => Incoming::Malformed(reason),
            None => match read_some(&mut read, &mut unframer, &mut buffer).await {
                Ok(()) => continue,
                Err(last) => last,
            },
        };
        to.send((conn, last)).await.ok();
        return;
    }
}

/// A node that does not answer SYN in this time is tried again or left for another.
const OPEN_LIMIT: Duration = Duration::from_secs(2);
/// A stopped node's buffers are full.
const WRITE_LIMIT: Duration = Duration::from_secs(3);
/// Less than half of the keep-alive of 5 s.
pub const PING_EVERY: Duration = Duration::from_secs(2);
/// Packets between the reading task and the client.
pub const INCOMING_LIMIT: usize = 32;
