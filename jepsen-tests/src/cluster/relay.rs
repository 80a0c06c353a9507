//! The plain back end's network: relays on loopback between nodes (datagrams of QUIC) and before nodes (TCP of clients).
//!
//!     node 1 ──▶ front(1,2) ─[shaper 1→2]─▶ back(1,2) ──▶ node 2       the lower node dials, so one relay per pair
//!            ◀── front(1,2) ◀─[shaper 2→1]─ back(1,2) ◀──
//!     client ──▶ listener of node 1 ─[gate]─▶ node 1                   a cut holds bytes back, as a lost network would
//!
//! What TCP hides (loss, duplication, order) cannot be done to clients here; delay and rate are not done either.

use super::link::{CLIENTS, Frame, Port, Rules, Shaper, connection_of};
use crate::random::Random;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// One relayed pair of nodes, `dialler` < `acceptor`.
struct Pair {
    dialler: Port,
    acceptor: Port,
    front: UdpSocket,
    /// Where the dialler's datagrams came from last.
    dialler_address: Option<SocketAddr>,
    /// Connected to the acceptor.
    back: UdpSocket,
}

/// All relays between nodes: a thread that ends when this is dropped.
pub struct Datagrams {
    stop: Arc<AtomicBool>,
    /// What the lower node of a pair takes for the address of the higher one.
    fronts: BTreeMap<(Port, Port), SocketAddr>,
}

impl Datagrams {
    /// Relays between every two of `nodes`.
    ///
    /// # Errors
    /// No socket, or no thread.
    pub fn start(nodes: &BTreeMap<Port, SocketAddr>, rules: Rules, random: Random) -> io::Result<Datagrams> {
        let mut pairs = Vec::new();
        let mut fronts = BTreeMap::new();
        for dialler in nodes.keys().copied() {
            for (acceptor, address) in nodes.range(dialler + 1..) {
                let (front, back) = (socket()?, socket()?);
                back.connect(address)?;
                fronts.insert((dialler, *acceptor), front.local_addr()?);
                pairs.push(Pair {
                    dialler,
                    acceptor: *acceptor,
                    front,
                    dialler_address: None,
                    back,
                });
            }
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        std::thread::Builder::new()
            .name("datagrams".into())
            .spawn(move || relay(pairs, Shaper::new(rules, random), &stopped))?;
        Ok(Datagrams { stop, fronts })
    }

    pub fn front(&self, dialler: Port, acceptor: Port) -> Option<SocketAddr> {
        self.fronts.get(&(dialler, acceptor)).copied()
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn socket() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Which pair, and whether towards its acceptor.
type Way = (usize, bool);

fn relay(mut pairs: Vec<Pair>, mut shaper: Shaper<Way>, stopped: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    while !stopped.load(Ordering::Relaxed) {
        wait_for_input(&pairs, shaper.next_due());
        for (index, pair) in pairs.iter_mut().enumerate() {
            let (low, high) = (pair.dialler, pair.acceptor);
            // A datagram that a dead node's port refuses comes back as an error of the next call: nothing to do.
            while let Ok((length, from)) = pair.front.recv_from(&mut buffer) {
                pair.dialler_address = Some(from);
                let (frame, connection) = frame((index, true), &buffer[..length]);
                shaper.offer(low, high, frame, connection, Instant::now());
            }
            while let Ok(length) = pair.back.recv(&mut buffer) {
                let (frame, connection) = frame((index, false), &buffer[..length]);
                shaper.offer(high, low, frame, connection, Instant::now());
            }
        }
        while let Some(Frame {
            way: (index, up),
            bytes,
        }) = shaper.due(Instant::now())
        {
            let pair = &pairs[index];
            let sent = match (up, pair.dialler_address) {
                (true, _) => pair.back.send(&bytes),
                (false, Some(address)) => pair.front.send_to(&bytes, address),
                (false, None) => continue,
            };
            // A full buffer or a port that nobody has: the datagram is lost, as datagrams may be.
            drop(sent);
        }
    }
}

/// With its connection.
fn frame(way: Way, bytes: &[u8]) -> (Frame<Way>, Option<u64>) {
    let connection = connection_of(bytes);
    let bytes = bytes.to_vec();
    (Frame { way, bytes }, connection)
}

fn wait_for_input(pairs: &[Pair], due: Option<Instant>) {
    let sockets = pairs.iter().flat_map(|pair| [&pair.front, &pair.back]);
    let mut polled: Vec<PollFd> = sockets.map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
    poll(&mut polled, Some(&until(due))).ok();
}

/// How long to sleep: until a frame is due, and never so long that a stop goes unnoticed.
pub(super) fn until(due: Option<Instant>) -> Timespec {
    let wait = due.map_or(SLEEP_MAX, |due| due.saturating_duration_since(Instant::now()));
    let wait = wait.min(SLEEP_MAX);
    Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(wait.subsec_nanos()),
    }
}

/// Below a second.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// Listeners before one node's client ports; they and their connections end when this is dropped.
pub struct Streams(#[allow(dead_code, reason = "aborts its tasks when it is dropped")] JoinSet<()>);

impl Streams {
    /// A listener for each of `behind`, the ports of node `node`; answers their addresses in the same order.
    ///
    /// # Errors
    /// No socket.
    pub async fn start(node: Port, behind: &[SocketAddr], rules: &Rules) -> io::Result<(Streams, Vec<SocketAddr>)> {
        let mut tasks = JoinSet::new();
        let mut addresses = Vec::new();
        for behind in behind.iter().copied() {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            addresses.push(listener.local_addr()?);
            tasks.spawn(accept(listener, behind, node, rules.clone()));
        }
        Ok((Streams(tasks), addresses))
    }
}

async fn accept(listener: TcpListener, behind: SocketAddr, node: Port, rules: Rules) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => drop(connections.spawn(connection(client, behind, node, rules.clone()))),
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(client: TcpStream, behind: SocketAddr, node: Port, rules: Rules) {
    open(&rules, CLIENTS, node).await;
    open(&rules, node, CLIENTS).await;
    let Ok(server) = TcpStream::connect(behind).await else {
        return;
    };
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async {
        while pass(&mut from_client, &mut to_server, &rules, (CLIENTS, node)).await {}
        to_server.shutdown().await.ok();
    };
    let down = async {
        while pass(&mut from_server, &mut to_client, &rules, (node, CLIENTS)).await {}
        to_client.shutdown().await.ok();
    };
    // When the node's side has ended there is nothing to wait for: a killed node's clients must learn of it.
    tokio::select! {
        () = async { tokio::join!(up, std::future::pending::<()>()); } => {}
        () = down => {}
    }
}

/// One piece of a stream; whether there may be more.
async fn pass(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    rules: &Rules,
    (source, sink): (Port, Port),
) -> bool {
    let mut buffer = [0; 16_384];
    let read = from.read(&mut buffer).await;
    // After the read: what came while the pair was cut waits, an end of the stream too.
    open(rules, source, sink).await;
    match read {
        Ok(0) | Err(_) => false,
        Ok(length) => to.write_all(&buffer[..length]).await.is_ok(),
    }
}

/// Waits until the pair is not cut.
async fn open(rules: &Rules, from: Port, to: Port) {
    while rules.of(from, to).cut {
        tokio::time::sleep(GATE_POLL).await;
    }
}

const GATE_POLL: Duration = Duration::from_millis(10);
