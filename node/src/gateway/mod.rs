//! Gateways: how bytes of clients come in and go out. Transports are adapters of one session.
//!
//! ```text
//!   socket ─ proxy? ─ tls? ─┬─▶ mqtt ────────┐
//!   (TCP, Unix)             │                ├─▶ run: read ─▶ worker::advance ─▶ flush      one task per connection,
//!                           └─▶ http ─▶ ws ──┘                                             the only one on its socket
//! ```
//!
//! An idle connection holds no buffer: it waits for readiness, and reads into memory only when there is something. Its task
//! is little more than what [`Serving`] says, which is polled by hand: it waits for its socket and one word
//! ([`Wake`](crate::worker::wake::Wake)), and its deadline stands in its worker's set of them.

pub mod http;
pub mod listen;
mod mqtt;
pub mod peer;
pub mod proxy;
pub mod socket;
pub mod tls;
pub mod unfinished;
pub mod ws;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
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
use crate::worker::wake::Woken;
use crate::worker::{Client, ListenerConfig, Progress, Worker};

/// Serves a connection of a listener, which has this configuration, by a task of its own; `guard` is dropped when it has ended.
pub fn spawn(worker: Rc<Worker>, config: Arc<ListenerConfig>, socket: Socket, peer: Peer, guard: impl Sized + 'static) {
    let accepted = Instant::now();
    if let Socket::Tcp(stream) = &socket {
        let _ = stream.set_nodelay(true);
    }
    if config.proxy_protocol || config.tls.is_some() || config.kind.is_websocket() {
        let serving = serve(worker, config, socket, peer, accepted, guard);
        tokio::task::spawn_local(serving);
    } else {
        // A task is as large as the largest of what it may wait for: handshakes are none of this one's.
        let stream = Stream::Plain(socket);
        let serving = run(worker, config, peer, stream, accepted, None, guard);
        tokio::task::spawn_local(serving);
    }
}

async fn serve(
    worker: Rc<Worker>,
    config: Arc<ListenerConfig>,
    socket: Socket,
    mut peer: Peer,
    accepted: Instant,
    guard: impl Sized + 'static,
) {
    if let Socket::Tcp(stream) = &socket
        && config.proxy_protocol
    {
        let told = Box::pin(told_by_proxy(&config, stream, &peer, accepted)).await;
        let Ok(told) = told.inspect_err(|why| tracing::debug!(%peer, listener = config.name, why, "not served")) else {
            return worker.metrics.connection_refused(Refusal::Proxy);
        };
        peer.address = told.or(peer.address);
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
            match Box::pin(done).await {
                Ok(done) => {
                    worker.metrics.handshake_done(done.is_resumed, done.elapsed);
                    peer.chain = done.chain;
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
        false => run(worker, config, peer, stream, accepted, place, guard).await,
        true => http::serve(worker, config, peer, stream, accepted, place, guard).await,
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
    /// Whether it can be read; ready once it can be read or written, whichever is asked for, and never when nothing is.
    fn poll_ready(&self, context: &mut Context<'_>, read: bool, write: bool) -> Poll<bool>;

    /// Appends what has come.
    ///
    /// # Errors
    /// Nothing more comes; what came before was appended by earlier calls.
    fn read(&mut self, received: &mut BytesMut) -> io::Result<()>;

    /// The last read brought less than it had room for: where that means that nothing is left, it is not read again before it
    /// says so.
    fn note_drained(&self) {}

    /// Bytes that have come and were not appended yet.
    fn kept(&self) -> usize;

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

/// Serves a connection, accepted at `accepted` under `config`, until it ends, on whichever side; then `guard` is dropped.
/// `place` is what it was given before its handshake.
fn run<T: Transport>(
    worker: Rc<Worker>,
    config: Arc<ListenerConfig>,
    peer: Peer,
    transport: T,
    accepted: Instant,
    place: Option<Place>,
    guard: impl Sized,
) -> impl Future<Output = ()> {
    let client = worker.open(config, peer, accepted);
    admit::connection(&worker, &client, place);
    let mut serving = Serving {
        worker,
        client,
        transport,
        received: BytesMut::new(),
        sending: BytesMut::new(),
        flush_deadline: None,
        turn: 0,
        has_progressed: false,
        is_drained: true,
        reads: false,
        writes: false,
        acts: true,
        is_due: false,
        ended: false,
        is_abrupt: false,
        is_cut: false,
    };
    // It is captured, and neither an argument nor awaited itself: those are kept twice.
    async move {
        poll_fn(|context| serving.poll(context)).await;
        Box::pin(serving.end()).await;
        drop(guard);
    }
}

/// A connection that is being served.
struct Serving<T> {
    worker: Rc<Worker>,
    client: Rc<Client>,
    transport: T,
    received: BytesMut,
    sending: BytesMut,
    flush_deadline: Option<Instant>,
    /// Bytes read since it was the others' turn.
    turn: usize,
    /// A whole packet was taken since the worker was told of what is unfinished.
    has_progressed: bool,
    /// The last read left nothing in the socket.
    is_drained: bool,
    /// What it waits for, besides being woken.
    reads: bool,
    writes: bool,
    /// Something has happened since it acted last.
    acts: bool,
    is_due: bool,
    /// Nothing more comes; what came before is still looked at.
    ended: bool,
    is_abrupt: bool,
    /// It ended while a part of a packet, or what a transport keeps, was withheld.
    is_cut: bool,
}

/// What follows an [`Serving::act`].
enum Next {
    Act,
    /// Again, after the others.
    Yield,
    Wait,
    Over,
}

impl<T: Transport> Serving<T> {
    /// Ready once it is over.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.turn >= TURN_BYTES {
                // Those behind it wait for one turn of each, however much a client has in its socket.
                self.turn = 0;
                // Polled once, it has this task polled again; it need not be kept for that.
                if pin!(tokio::task::yield_now()).poll(context).is_pending() {
                    return Poll::Pending;
                }
            }
            while self.acts {
                match self.act() {
                    Next::Act => {}
                    Next::Yield => break,
                    Next::Wait => self.acts = false,
                    Next::Over => return Poll::Ready(()),
                }
            }
            if self.acts {
                continue;
            }
            let woken = self.client.wake.poll(context);
            let ready = self.transport.poll_ready(context, self.reads, self.writes);
            if woken.is_pending() && ready.is_pending() {
                return Poll::Pending;
            }
            self.acts = true;
            self.is_due |= woken == Poll::Ready(Woken { is_due: true });
            // What stands in the socket when a deadline is found passed came in time, if it was the node that stood still.
            if self.reads && (ready == Poll::Ready(true) || self.is_due) {
                let before = self.received.len();
                self.ended = self.transport.read(&mut self.received).is_err();
                let read = self.received.len() - before;
                self.worker.metrics.received_bytes(read);
                self.turn += read;
                self.is_drained = read < READ_BYTES;
                // Behind a CONNECT it is read again at once: a client that has given it up must not be attached. (P6)
                if self.is_drained && read > 0 && self.client.connection.borrow().is_connected() {
                    self.transport.note_drained();
                }
            }
            if self.received.is_empty() {
                self.received = BytesMut::new();
            }
        }
    }

    /// Does what can be done now, and decides what to wait for.
    fn act(&mut self) -> Next {
        let (worker, client) = (self.worker.clone(), self.client.clone());
        let before = self.received.len();
        let progress = worker.advance(&client, &mut self.received);
        // Whoever waits with whole packets does not keep half of one.
        self.has_progressed |= self.received.len() < before || progress == Progress::Waits;
        // After what came in time was looked at.
        if std::mem::take(&mut self.is_due) && !self.deadline_passed(Instant::now()) {
            return Next::Over;
        }
        if !self.is_abrupt && client.connection.borrow().has_will() {
            // Its DISCONNECT may be read and this process die: only a close that says "done" is in order. (P7)
            self.transport.set_abrupt(true);
            self.is_abrupt = true;
        }
        if self.ended && progress == Progress::NeedsMore {
            let mut connection = client.connection.borrow_mut();
            // One that is ending has words to send.
            if connection.ending().is_none() {
                connection.lost();
                return Next::Over;
            }
        }
        let was_full = client.is_full(&client.connection.borrow());
        if self.flush().is_err() {
            client.connection.borrow_mut().lost();
            return Next::Over;
        }
        if was_full && self.sending.is_empty() && client.connection.borrow().out.is_empty() {
            // What was received and not looked at has no other wake-up.
            return Next::Act;
        }
        if progress == Progress::TurnOver {
            // The others are due first; then it goes on.
            self.turn = TURN_BYTES;
            return Next::Yield;
        }
        self.tell_unfinished();
        let connection = client.connection.borrow();
        let deadline = if connection.ending().is_some() {
            if self.sending.is_empty() && connection.out.is_empty() && !self.transport.has_unwritten() {
                return Next::Over;
            }
            (self.reads, self.writes) = (false, true);
            Some(*self.flush_deadline.get_or_insert_with(|| Instant::now() + FLUSH_MAX))
        } else {
            // Also between CONNECT and CONNACK: a client that gives up meanwhile must not be attached later, when it may
            // be served elsewhere.
            let held = client.held.get();
            let room = match connection.is_attaching() {
                true => READ_BYTES,
                // The renewal of the lease wakes it.
                false if connection.is_withheld() => 0,
                // `back-pressure-first`: its socket waits.
                false if held.is_some() => 0,
                false if connection.wants_packets() => received_max(&client.config),
                false => 0,
            };
            self.reads = !self.ended && self.received.len() < room;
            // What is withheld waits for the lease, which wakes it, not for the socket.
            let may_write = !connection.is_withheld();
            self.writes = may_write && (!self.sending.is_empty() || self.transport.has_unwritten());
            let kept = (connection.out.capacity() > 0).then(|| Instant::now() + KEPT_FOR);
            [connection.next_deadline(), held, kept].into_iter().flatten().min()
        };
        worker.deadlines.wait_until(client.id, &client.deadline, deadline);
        Next::Wait
    }

    /// Something may be due now. False: its time to take the last packet is over.
    fn deadline_passed(&mut self, now: Instant) -> bool {
        if self.flush_deadline.is_some_and(|deadline| now >= deadline) {
            return false;
        }
        // Time without a lease does not count, also if it goes on.
        self.worker.withholds(&self.client);
        let mut connection = self.client.connection.borrow_mut();
        connection.deadline_passed(now);
        if connection.out.is_empty() {
            connection.out = BytesMut::new();
        }
        true
    }

    /// Tells the worker of what it holds of packets that are not whole, or not handed in yet.
    fn tell_unfinished(&mut self) {
        if self.client.connection.borrow().ending().is_some() {
            // Nothing of it is looked at any more.
            self.received = BytesMut::new();
            return self.worker.unfinished.forget(self.client.id);
        }
        if self.is_drained && self.received.len() <= KEPT_MAX && self.received.capacity() > 2 * KEPT_MAX {
            // More may be long in coming: what is kept grows with what came. Larger pieces are not copied for each byte that
            // comes; their room counts.
            self.received = BytesMut::from(&self.received[..]);
        }
        let held = match self.received.is_empty() {
            true => self.transport.kept(),
            false => self.received.capacity() + self.transport.kept(),
        };
        let has_progressed = std::mem::take(&mut self.has_progressed);
        self.worker.tell_unfinished(&self.client, held, has_progressed);
    }

    /// Flushes, and lets the connection fill what became free: what waited for room has no other wake-up. Writes nothing while
    /// the client is not to be served; if its connection ends meanwhile, no more than why, and not even that behind a packet of
    /// which it has a part. (P6)
    fn flush(&mut self) -> io::Result<()> {
        loop {
            if self.worker.withholds(&self.client) {
                let is_ending = self.client.connection.borrow().ending().is_some();
                let has_part = !self.sending.is_empty() || self.transport.has_unwritten();
                match (is_ending, !has_part) {
                    (false, _) => return Ok(()),
                    (true, false) => {
                        self.is_cut = true;
                        return Err(io::ErrorKind::ConnectionAborted.into());
                    }
                    (true, true) => {}
                }
            }
            if self.sending.is_empty() {
                // All that has gathered is one write.
                self.sending = self.client.connection.borrow_mut().take_out();
                if !self.sending.is_empty() {
                    let packets = packets_in(&self.sending);
                    self.worker.metrics.sent(packets, self.sending.len());
                }
            }
            let length = self.sending.len();
            self.transport.write(&mut self.sending)?;
            if !self.sending.is_empty() {
                return Ok(());
            }
            let mut written = std::mem::take(&mut self.sending);
            if length >= KEPT_BYTES {
                // Whoever is sent much is so again soon.
                written.clear();
                self.client.connection.borrow_mut().keep_buffer(written);
            }
            self.worker.pump(&self.client);
            if self.client.connection.borrow().out.is_empty() {
                return Ok(());
            }
        }
    }

    /// Gives back what it served; then the socket closes.
    async fn end(self) {
        self.worker.unfinished.forget(self.client.id);
        let reason = self.client.connection.borrow().ending().map(|ending| ending.reason);
        if end::connection(&self.worker, &self.client).await == Farewell::Abrupt {
            return;
        }
        if self.is_cut {
            // What a transport keeps would leave with its goodbye.
            return;
        }
        if self.is_abrupt {
            self.transport.set_abrupt(false);
        }
        self.transport
            .close(reason.unwrap_or(ReasonCode::UNSPECIFIED_ERROR))
            .await;
    }
}

/// The largest packet must fit; beyond, a client that may not send now is not read from.
fn received_max(config: &ListenerConfig) -> usize {
    RECEIVED_MAX.max(config.limits.packet_bytes + HEADER_MAX)
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
/// After as much of one client it is the others' turn: the runtime alone would let it go on for 128 reads. With packets of 64 KiB
/// most turns hand in none, so that those behind thirty such clients do not wait for thirty packets.
const TURN_BYTES: usize = READ_BYTES;
/// Of a piece of a packet, without the room behind it.
const KEPT_MAX: usize = READ_BYTES / 4;
/// Received and not yet handed in: the largest packet, and what the last read brought beyond it, is let in by the
/// framer's own limit; this only stops a client that may not send now.
const RECEIVED_MAX: usize = 2 * 1024 * 1024;
/// Fixed header: type and four bytes of length.
const HEADER_MAX: usize = 5;
/// A client that ends gets this long to take the packet that tells why.
const FLUSH_MAX: Duration = Duration::from_secs(1);
/// A connection that was sent as much at a time keeps the memory of it,
const KEPT_BYTES: usize = 1024;
/// but no longer than this at a time: one that is idle has none.
const KEPT_FOR: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    /// What its task holds while a connection is idle, beside its client. Measured when it was written: a bound that is
    /// passed is memory of each of very many connections.
    #[test]
    fn bounded_the_task_of_an_idle_connection_is_small() {
        type Arguments<R> = fn(Rc<Worker>, Arc<ListenerConfig>, Peer, Stream, Instant, Option<Place>, ()) -> R;
        fn size<R>(_: Arguments<R>) -> usize {
            size_of::<R>()
        }
        assert!(size(run::<Stream>) <= 256, "{} bytes", size(run::<Stream>));
        assert!(size_of::<Client>() <= 1280, "{} bytes", size_of::<Client>());
    }

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
