//! Gateways: how bytes of clients come in and go out. Transports are adapters of one session.
//!
//! ```text
//!   tcp ──────────┐
//!                 ├─▶ run: read ─▶ worker::advance ─▶ flush        one task per connection, the only one that
//!   http ─▶ ws ───┘                                                touches its socket
//! ```
//!
//! An idle connection holds no buffer: it waits for readiness, and reads into memory only when there is something.

pub mod http;
pub mod tcp;
mod ws;

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::protocol::codec::ReasonCode;
use crate::session::end;
use crate::worker::{Client, Worker, WorkerConfig};

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

    /// Lets the client know that the connection ends, and why, where the transport has words for it; bounded in time.
    async fn close(self, reason: ReasonCode);
}

/// Serves a connection, accepted at `accepted` under `config`, until it ends, on whichever side.
async fn run<T: Transport>(worker: Rc<Worker>, config: Arc<WorkerConfig>, mut transport: T, accepted: Instant) {
    let received_max = received_max(&config);
    let client = worker.open(config, accepted);
    let mut received = BytesMut::new();
    let mut sending = BytesMut::new();
    let mut flush_deadline = None;
    // Nothing more comes; what came before is still looked at.
    let mut ended = false;

    loop {
        let needs_more = worker.advance(&client, &mut received);
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
                if sending.is_empty() && connection.out.is_empty() {
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
                let room = match connection.is_attaching() {
                    true => READ_BYTES,
                    false if connection.wants_packets() => received_max,
                    false => 0,
                };
                Wait {
                    read: !ended && received.len() < room,
                    write: !sending.is_empty() || transport.has_unwritten(),
                    deadline: connection.next_deadline(),
                }
            }
        };
        match wait.until(&transport, &client).await {
            Woken::Ready { readable } => {
                if readable {
                    let before = received.len();
                    ended = transport.read(&mut received).is_err();
                    worker.metrics.received_bytes(received.len() - before);
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
    }
    let reason = client.connection.borrow().ending().map(|ending| ending.reason);
    end::connection(&worker, &client).await;
    transport.close(reason.unwrap_or(ReasonCode::UNSPECIFIED_ERROR)).await;
}

/// The largest packet must fit; beyond, a client that may not send now is not read from.
fn received_max(config: &WorkerConfig) -> usize {
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

/// Whether the socket can be read from; never resolves without an interest.
async fn socket_ready(stream: &TcpStream, read: bool, write: bool) -> bool {
    let interest = match (read, write) {
        (true, true) => Interest::READABLE | Interest::WRITABLE,
        (true, false) => Interest::READABLE,
        (false, true) => Interest::WRITABLE,
        (false, false) => return std::future::pending().await,
    };
    match stream.ready(interest).await {
        Ok(ready) => ready.is_readable() || ready.is_read_closed(),
        // The next read tells what it is.
        Err(_) => true,
    }
}

/// Appends what the socket has.
fn read_socket(stream: &TcpStream, received: &mut BytesMut) -> io::Result<()> {
    received.reserve(READ_BYTES);
    match stream.try_read_buf(received) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
    }
}

/// One read; a larger packet takes several.
const READ_BYTES: usize = 16 * 1024;
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
