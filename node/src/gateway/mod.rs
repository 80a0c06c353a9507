//! Gateways: how bytes of clients come in and go out. Transports are adapters of one session.
//!
//! ```text
//!   socket ─ proxy? ─ tls? ─┬─▶ mqtt ────────┐
//!   (TCP, Unix)             │                ├─▶ run: read ─▶ worker::advance ─▶ flush      one task per connection,
//!                           └─▶ http ─▶ ws ──┘                                             the only one on its socket
//! ```
//!
//! An idle connection holds no buffer: it waits for readiness, and reads into memory only when there is something.

pub mod http;
pub mod listen;
mod mqtt;
pub mod peer;
pub mod proxy;
pub mod socket;
pub mod tls;
pub mod ws;

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::time::timeout_at;

use self::peer::Peer;
use self::socket::{Socket, Stream};
use crate::limits::admission::Place;
use crate::metrics::Refusal;
use crate::protocol::codec::ReasonCode;
use crate::session::admit;
use crate::session::end::{self, Farewell};
use crate::worker::{Client, ListenerConfig, Worker};

/// Serves a connection of a listener, which has this configuration, until it ends.
pub async fn serve(worker: Rc<Worker>, config: Arc<ListenerConfig>, socket: Socket, mut peer: Peer) {
    let accepted = Instant::now();
    if let Socket::Tcp(stream) = &socket {
        let _ = stream.set_nodelay(true);
        if config.proxy_protocol {
            let told = told_by_proxy(&config, stream, &peer, accepted).await;
            let Ok(told) = told.inspect_err(|why| tracing::debug!(%peer, listener = config.name, why, "not served"))
            else {
                return worker.metrics.connection_refused(Refusal::Proxy);
            };
            peer.address = told.or(peer.address);
        }
    }
    let mut place = None;
    let stream = match &config.tls {
        None => Stream::Plain(socket),
        Some(tls) => {
            if !config.learns_address_later() {
                // A handshake costs more than anything else; there are no words for a refusal before it is done.
                match admit::before_handshake(&worker, &config, &peer, accepted) {
                    Ok(entered) => place = Some(entered),
                    Err(limit) => {
                        worker.metrics.limits.refused(limit, 1);
                        return worker.metrics.connection_refused(Refusal::Limit);
                    }
                }
            }
            let deadline = (Instant::now() + tls.handshake_timeout).min(accepted + config.connect_timeout);
            let done = tls::handshake::accept(
                &worker.handshakes,
                socket,
                tls.config.clone(),
                tls.handshakes_max,
                deadline,
            );
            match done.await {
                Ok(done) => {
                    worker.metrics.handshake_done(done.is_resumed, done.elapsed);
                    peer.certificate = done.certificate;
                    Stream::Tls(Box::new(done.stream))
                }
                Err(failed) => {
                    let (failure, error) = (failed.failure.name(), failed.error.map(|error| error.to_string()));
                    tracing::debug!(%peer, listener = config.name, failure, error, "a TLS handshake failed");
                    worker.metrics.handshake_failed(failed.failure);
                    return worker.metrics.connection_refused(Refusal::Tls);
                }
            }
        }
    };
    match config.kind.is_websocket() {
        false => run(worker, config, peer, stream, accepted, place).await,
        true => http::serve(worker, config, peer, stream, accepted, place).await,
    }
}

/// The client's address, as the PROXY header tells it; `Err` holds why the connection is not served.
async fn told_by_proxy(
    config: &ListenerConfig,
    stream: &tokio::net::TcpStream,
    peer: &Peer,
    accepted: Instant,
) -> Result<Option<SocketAddr>, String> {
    if !peer.address.is_some_and(|address| config.trusts(address.ip())) {
        return Err("it comes from none of trusted_proxies".to_owned());
    }
    let deadline = accepted + config.connect_timeout;
    match timeout_at(deadline.into(), proxy::receive(stream)).await {
        Ok(told) => told.map_err(|error| error.to_string()),
        Err(_) => Err("its PROXY header did not come in time".to_owned()),
    }
}

/// What carries the bytes of MQTT between one client and [`run`]. Nothing here waits but `ready` and `close`.
trait Transport {
    /// Waits until it can be read or written, whichever is asked for; whether it can be read. Never resolves when
    /// nothing is asked for.
    ///
    /// # Cancel safety
    /// Safe: nothing is read.
    async fn ready(&self, read: bool, write: bool) -> bool;

    /// Appends what has come.
    ///
    /// # Errors
    /// Nothing more comes; what came before was appended by earlier calls.
    fn read(&mut self, received: &mut BytesMut) -> io::Result<()>;

    /// Writes what the socket takes now, and takes that much from `sending`; nothing is added to it before it is empty.
    ///
    /// # Errors
    /// The connection is lost.
    fn write(&mut self, sending: &mut BytesMut) -> io::Result<()>;

    /// Whether something of the transport itself waits to be written.
    fn has_unwritten(&self) -> bool;

    /// Whether a close, also by the kernel when this process dies, is to look like a loss, as far as the transport can tell
    /// one from the other.
    fn set_abrupt(&self, is_abrupt: bool);

    /// Lets the client know that the connection ends, and why, where the transport has words for it; bounded in time.
    async fn close(self, reason: ReasonCode);
}

/// Serves a connection, accepted at `accepted` under `config`, until it ends, on whichever side. `place` is what it was
/// given before its handshake.
async fn run<T: Transport>(
    worker: Rc<Worker>,
    config: Arc<ListenerConfig>,
    peer: Peer,
    mut transport: T,
    accepted: Instant,
    place: Option<Place>,
) {
    let received_max = received_max(&config);
    let client = worker.open(config, peer, accepted);
    admit::connection(&worker, &client, place);
    let mut received = BytesMut::new();
    let mut sending = BytesMut::new();
    let mut flush_deadline = None;
    // Nothing more comes; what came before is still looked at.
    let mut ended = false;
    let mut is_abrupt = false;
    let mut turn = 0;

    loop {
        let needs_more = worker.advance(&client, &mut received);
        if !is_abrupt && client.connection.borrow().has_will() {
            // Its DISCONNECT may be read and this process die: only a close that says "done" is in order. (P7)
            transport.set_abrupt(true);
            is_abrupt = true;
        }
        if ended && needs_more {
            let mut connection = client.connection.borrow_mut();
            // One that is ending has words to send.
            if connection.ending().is_none() {
                connection.lost();
                break;
            }
        }
        let was_full = client.is_full(&client.connection.borrow());
        if flush_all(&worker, &client, &mut transport, &mut sending).is_err() {
            client.connection.borrow_mut().lost();
            break;
        }
        if was_full && sending.is_empty() {
            // What was received and not looked at has no other wake-up.
            continue;
        }
        let wait = {
            let connection = client.connection.borrow();
            if connection.ending().is_some() {
                if sending.is_empty() && connection.out.is_empty() && !transport.has_unwritten() {
                    break;
                }
                let deadline = *flush_deadline.get_or_insert_with(|| Instant::now() + FLUSH_MAX);
                Wait {
                    read: false,
                    write: true,
                    deadline: Some(deadline),
                }
            } else {
                // Also between CONNECT and CONNACK: a client that gives up meanwhile must not be attached later, when it may
                // be served elsewhere.
                let held = client.held.get();
                let room = match connection.is_attaching() {
                    true => READ_BYTES,
                    // `back-pressure-first`: its socket waits.
                    false if held.is_some() => 0,
                    false if connection.wants_packets() => received_max,
                    false => 0,
                };
                Wait {
                    read: !ended && received.len() < room,
                    write: !sending.is_empty() || transport.has_unwritten(),
                    deadline: [connection.next_deadline(), held].into_iter().flatten().min(),
                }
            }
        };
        match wait.until(&transport, &client).await {
            Woken::Ready { readable } => {
                if readable {
                    let before = received.len();
                    ended = transport.read(&mut received).is_err();
                    worker.metrics.received_bytes(received.len() - before);
                    turn += received.len() - before;
                }
            }
            Woken::Deadline => {
                if flush_deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    break;
                }
                client.connection.borrow_mut().deadline_passed(Instant::now());
            }
            Woken::Event => {}
        }
        if received.is_empty() {
            received = BytesMut::new();
        }
        if turn >= TURN_BYTES {
            // Those behind it wait for one turn of each, however much a client has in its socket.
            turn = 0;
            tokio::task::yield_now().await;
        }
    }
    let reason = client.connection.borrow().ending().map(|ending| ending.reason);
    if end::connection(&worker, &client).await == Farewell::Abrupt {
        return;
    }
    if is_abrupt {
        transport.set_abrupt(false);
    }
    transport.close(reason.unwrap_or(ReasonCode::UNSPECIFIED_ERROR)).await;
}

/// The largest packet must fit; beyond, a client that may not send now is not read from.
fn received_max(config: &ListenerConfig) -> usize {
    RECEIVED_MAX.max(config.limits.packet_bytes + HEADER_MAX)
}

struct Wait {
    read: bool,
    write: bool,
    deadline: Option<Instant>,
}

enum Woken {
    Ready { readable: bool },
    Deadline,
    Event,
}

impl Wait {
    async fn until<T: Transport>(&self, transport: &T, client: &Client) -> Woken {
        tokio::select! {
            ready = transport.ready(self.read, self.write) => Woken::Ready { readable: self.read && ready },
            () = client.wake.notified() => Woken::Event,
            () = sleep_until(self.deadline) => Woken::Deadline,
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Flushes, and lets the connection fill what became free: what waited for room has no other wake-up.
fn flush_all<T: Transport>(
    worker: &Rc<Worker>,
    client: &Rc<Client>,
    transport: &mut T,
    sending: &mut BytesMut,
) -> io::Result<()> {
    loop {
        if sending.is_empty() {
            *sending = client.connection.borrow_mut().out.split();
            if !sending.is_empty() {
                worker.metrics.sent(packets_in(sending), sending.len());
            }
        }
        // All that has gathered is one write.
        transport.write(sending)?;
        if !sending.is_empty() {
            return Ok(());
        }
        *sending = BytesMut::new();
        worker.pump(client);
        if client.connection.borrow().out.is_empty() {
            return Ok(());
        }
    }
}

/// How many packets our own encoders have put there.
fn packets_in(mut bytes: &[u8]) -> u64 {
    let mut packets = 0;
    while let Some((_, after_type)) = bytes.split_first() {
        let (mut length, mut width) = (0usize, 0);
        for byte in after_type.iter().take(4) {
            length |= usize::from(byte & 0x7f) << (7 * width);
            width += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        packets += 1;
        bytes = after_type.get(width + length..).unwrap_or_default();
    }
    packets
}

/// One read; a larger packet takes several.
const READ_BYTES: usize = 16 * 1024;
/// After as much of one client it is the others' turn: the runtime alone would let it go on for 128 reads.
const TURN_BYTES: usize = 4 * READ_BYTES;
/// Received and not yet handed in: the largest packet, and what the last read brought beyond it, is let in by the
/// framer's own limit; this only stops a client that may not send now.
const RECEIVED_MAX: usize = 2 * 1024 * 1024;
/// Fixed header: type and four bytes of length.
const HEADER_MAX: usize = 5;
/// A client that ends gets this long to take the packet that tells why.
const FLUSH_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::packets_in;

    #[test]
    fn packets_are_counted_by_their_headers() {
        let pong = [0xd0, 0x00];
        let mut long = vec![0x30, 0xc8, 0x01];
        long.extend([b'x'; 200]);
        assert_eq!(packets_in(&[]), 0);
        assert_eq!(packets_in(&pong), 1);
        assert_eq!(packets_in(&[&long[..], &pong, &long].concat()), 3);
    }
}
