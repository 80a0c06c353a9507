//! A proxy between clients and a node that lies, to prove that the checkers would notice a broker that does.
//!
//!     client ◀──▶ Proxy { lie } ◀──▶ node        one per node; a healthy cluster behind it
//!
//! It reads the packets of both sides, tells its lie once in so many occasions, and passes on the rest as it came.

use crate::mqtt::{self, Ack, Publish, Sent, Version, frame_length, publish_body};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// What a broker may do wrong, and which class of violation that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// A PUBLISH at QoS 1 is acknowledged and thrown away.
    AckAndDrop,
    /// A QoS 2 delivery comes twice, the second time with another packet identifier.
    Duplicate,
    /// Two deliveries of a topic change places.
    Reorder,
    /// One byte of a payload is another.
    Corrupt,
    /// The first retained value of a topic that was read is what all later reads see.
    StaleRetained,
    /// CONNACK denies the session that there is.
    SessionPresent,
    /// The node never hears DISCONNECT.
    SuppressDisconnect,
}

impl Lie {
    /// With the workload that shows it, and the classes of which one must be found.
    pub const ALL: [(Lie, &'static str, &'static [&'static str]); 7] = [
        (
            Lie::AckAndDrop,
            "queue",
            &["lost-middle", "lost-prefix", "lost-postfix", "lost-all"],
        ),
        (Lie::Duplicate, "queue", &["new-packet-id", "duplicate-qos2"]),
        (Lie::Reorder, "queue", &["reordered"]),
        (Lie::Corrupt, "queue", &["altered", "from-nowhere"]),
        (Lie::StaleRetained, "register", &["stale-read", "not-linearizable"]),
        (Lie::SessionPresent, "queue", &["amnesia"]),
        (
            Lie::SuppressDisconnect,
            "will",
            &["will-after-disconnect", "extra-will"],
        ),
    ];
}

pub struct Proxy {
    /// Where clients connect.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    lie: Lie,
    /// One in so many occasions.
    every: u64,
    occasions: AtomicU64,
    told: AtomicU64,
    /// The first retained copy of each topic, for [`Lie::StaleRetained`]; all connections know them.
    retained: Mutex<BTreeMap<String, Publish>>,
}

impl Proxy {
    /// # Errors
    /// Loopback has no port.
    pub async fn start(node: SocketAddr, lie: Lie, every: u64) -> std::io::Result<Proxy> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            lie,
            every,
            occasions: AtomicU64::new(0),
            told: AtomicU64::new(0),
            retained: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, node, shared.clone()));
        Ok(Proxy {
            address,
            shared,
            accepting,
        })
    }

    /// How often it lied.
    pub fn told(&self) -> u64 {
        self.shared.told.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Shared {
    /// Whether this occasion is one to lie.
    fn lies(&self, lie: Lie) -> bool {
        let now = self.lie == lie && self.occasions.fetch_add(1, Ordering::Relaxed) % self.every == self.every - 1;
        if now {
            self.told.fetch_add(1, Ordering::Relaxed);
        }
        now
    }
}

async fn accept(listener: TcpListener, node: SocketAddr, shared: Arc<Shared>) {
    // Dropped with this task: so are the connections.
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let shared = shared.clone();
        connections.spawn(async move {
            if let Ok(node) = TcpStream::connect(node).await {
                connection(client, node, shared).await.ok();
            }
        });
    }
}

/// What both directions of a connection know.
struct Known {
    version: Version,
    shared: Arc<Shared>,
    /// Packet identifiers that the proxy made up.
    made_up: BTreeSet<u16>,
    /// The delivery that is held back so that another overtakes it, as it came.
    held: Option<(Publish, Vec<u8>)>,
}

async fn connection(client: TcpStream, node: TcpStream, shared: Arc<Shared>) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    node.set_nodelay(true)?;
    let known = Known {
        version: Version::V5,
        shared,
        made_up: BTreeSet::new(),
        held: None,
    };
    let (client_read, client_write) = client.into_split();
    let (node_read, node_write) = node.into_split();
    let client_write = tokio::sync::Mutex::new(client_write);
    let node_write = tokio::sync::Mutex::new(node_write);
    let known = Mutex::new(known);
    let up = pump(client_read, &client_write, &node_write, |packet| {
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        known.upward(packet)
    });
    let down = pump(node_read, &node_write, &client_write, |packet| {
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = known.downward(packet);
        Answer {
            back: Vec::new(),
            on: passed,
            end: false,
        }
    });
    // One side's end is the other's, in order.
    tokio::select! {
        _ = up => client_or_node_ends(&node_write).await,
        _ = down => client_or_node_ends(&client_write).await,
    }
    Ok(())
}

async fn client_or_node_ends(write: &tokio::sync::Mutex<OwnedWriteHalf>) {
    write.lock().await.shutdown().await.ok();
}

/// What becomes of a packet.
struct Answer {
    back: Vec<u8>,
    on: Vec<u8>,
    end: bool,
}

async fn pump(
    mut read: OwnedReadHalf,
    back: &tokio::sync::Mutex<OwnedWriteHalf>,
    on: &tokio::sync::Mutex<OwnedWriteHalf>,
    mut decide: impl FnMut(&[u8]) -> Answer,
) -> std::io::Result<()> {
    let mut buffer = Vec::with_capacity(16 * 1024);
    loop {
        while let Some((header, length)) = frame_length(&buffer).map_err(std::io::Error::other)? {
            if buffer.len() < header + length {
                break;
            }
            let packet: Vec<u8> = buffer.drain(..header + length).collect();
            let answer = decide(&packet);
            if !answer.back.is_empty() {
                back.lock().await.write_all(&answer.back).await?;
            }
            if answer.end {
                back.lock().await.shutdown().await?;
                return Ok(());
            }
            on.lock().await.write_all(&answer.on).await?;
        }
        if read.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

impl Known {
    fn upward(&mut self, packet: &[u8]) -> Answer {
        let pass = |on: Vec<u8>| Answer {
            back: Vec::new(),
            on,
            end: false,
        };
        let (header, _) = frame_length(packet).ok().flatten().expect("it is whole");
        let body = &packet[header..];
        let pid = u16::from_be_bytes([body.first().copied().unwrap_or(0), body.get(1).copied().unwrap_or(0)]);
        match packet[0] >> 4 {
            1 if body.len() > 7 => {
                self.version = if body[6] == 5 { Version::V5 } else { Version::V311 };
                pass(packet.to_vec())
            }
            3 => match publish_body(self.version, packet[0], body) {
                Ok(publish) if publish.qos == 1 && self.shared.lies(Lie::AckAndDrop) => Answer {
                    back: self.ack(Ack::Puback, publish.pid),
                    on: Vec::new(),
                    end: false,
                },
                _ => pass(packet.to_vec()),
            },
            5 if self.made_up.contains(&pid) => Answer {
                back: self.ack(Ack::Pubrel, pid),
                on: Vec::new(),
                end: false,
            },
            7 if self.made_up.remove(&pid) => pass(Vec::new()),
            14 if self.shared.lies(Lie::SuppressDisconnect) => Answer {
                back: Vec::new(),
                on: Vec::new(),
                end: true,
            },
            _ => pass(packet.to_vec()),
        }
    }

    fn downward(&mut self, packet: &[u8]) -> Vec<u8> {
        let (header, _) = frame_length(packet).ok().flatten().expect("it is whole");
        let body = &packet[header..];
        if packet[0] >> 4 == 2 && body.starts_with(&[1, 0]) {
            let mut packet = packet.to_vec();
            if self.shared.lies(Lie::SessionPresent) {
                packet[header] = 0;
            }
            return packet;
        }
        let publish = match packet[0] >> 4 {
            3 => publish_body(self.version, packet[0], body),
            _ => Err(String::new()),
        };
        match publish {
            Ok(publish) => self.delivery(packet, publish),
            Err(_) => packet.to_vec(),
        }
    }

    fn delivery(&mut self, packet: &[u8], publish: Publish) -> Vec<u8> {
        let mut out = packet.to_vec();
        if self.shared.lie == Lie::Reorder {
            return self.reorder(out, publish);
        }
        if publish.qos == 2 && !publish.dup && self.shared.lies(Lie::Duplicate) {
            let pid = publish.pid ^ 0x8000;
            if pid != 0 && self.made_up.insert(pid) {
                out.extend(mqtt::publish(self.version, &Publish { pid, ..publish }));
            }
        } else if publish.payload.len() > 10 && self.shared.lies(Lie::Corrupt) {
            *out.last_mut().expect("it has a payload") ^= 1;
        } else if publish.retain && self.shared.lie == Lie::StaleRetained {
            let mut retained = self.shared.retained.lock().unwrap_or_else(PoisonError::into_inner);
            let first = retained.entry(publish.topic.clone()).or_insert_with(|| publish.clone());
            // Its User Property stands in the properties; 3.1.1 leaves them out.
            let old = Publish {
                payload: first.payload.clone(),
                properties: first.properties.clone(),
                ..publish.clone()
            };
            self.shared
                .told
                .fetch_add(u64::from(old.payload != publish.payload), Ordering::Relaxed);
            out = mqtt::publish(self.version, &old);
        }
        out
    }

    fn reorder(&mut self, packet: Vec<u8>, publish: Publish) -> Vec<u8> {
        let publisher = |publish: &Publish| mqtt::payload::read(publish).0.map(|message| message.publisher);
        match self.held.take() {
            None if publish.qos > 0 && self.shared.lies(Lie::Reorder) => {
                self.held = Some((publish, packet));
                Vec::new()
            }
            Some((held, first)) => {
                let same = held.topic == publish.topic && held.qos == publish.qos;
                if same && publisher(&held) == publisher(&publish) {
                    return [packet, first].concat();
                }
                self.held = Some((held, first));
                packet
            }
            None => packet,
        }
    }

    fn ack(&self, kind: Ack, pid: u16) -> Vec<u8> {
        mqtt::encode(self.version, &Sent::Ack { kind, pid, reason: 0 })
    }
}
