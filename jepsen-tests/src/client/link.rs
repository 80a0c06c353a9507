//! One connection to a node: the socket, and what the client must remember of it as long as it lasts.
//!
//!     Client ──Sent──▶ Codec ──bytes──▶ socket        a task of its own reads: socket ──▶ Codec ──▶ (conn, Incoming) ──▶ Client
//!
//! The queue from the reading task is bounded: a client that takes nothing from it stops reading, down to TCP's window.

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
    /// TCP gave none in time: nothing was sent.
    pub async fn open(
        conn: u64,
        node: &str,
        address: SocketAddr,
        codec: Arc<dyn Codec>,
        to: mpsc::Sender<(u64, Incoming)>,
    ) -> std::io::Result<Link> {
        let stream = timeout(OPEN_LIMIT, TcpStream::connect(address))
            .await
            .map_err(|_| std::io::ErrorKind::TimedOut)??;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        let reader = tokio::spawn(read_all(conn, read, codec.clone(), to));
        Ok(Link {
            conn,
            node: node.into(),
            codec,
            write,
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
        let bytes = self.codec.encode(packet);
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

async fn read_all(conn: u64, mut read: OwnedReadHalf, codec: Arc<dyn Codec>, to: mpsc::Sender<(u64, Incoming)>) {
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
            None => match read.read_buf(&mut buffer).await {
                Ok(0) => Incoming::End { orderly: true },
                Ok(_) => continue,
                Err(_) => Incoming::End { orderly: false },
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
