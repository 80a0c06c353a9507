//! MQTT over TCP: one task per connection; the only place that touches its socket.
//!
//! An idle connection holds no buffer: it waits for readiness, and reads into memory only when there is something.

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::session::end;
use crate::worker::{Client, Worker};

/// Serves a connection until it ends, on whichever side.
pub async fn run(worker: Rc<Worker>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let client = worker.open(Instant::now());
    let mut received = BytesMut::new();
    let mut sending = BytesMut::new();
    let mut flush_deadline = None;
    // The largest packet must fit; beyond, a client that may not send now is not read from.
    let received_max = RECEIVED_MAX.max(worker.config.limits.packet_bytes + HEADER_MAX);

    loop {
        worker.advance(&client, &mut received);
        let was_full = worker.is_full(&client.connection.borrow());
        if flush_all(&worker, &client, &stream, &mut sending).is_err() {
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
                Wait {
                    read: connection.wants_packets() && received.len() < received_max,
                    write: !sending.is_empty(),
                    deadline: connection.next_deadline(),
                }
            }
        };
        match wait.until(&stream, &client).await {
            Woken::Ready { readable } => {
                if readable && read(&stream, &mut received).is_err() {
                    client.connection.borrow_mut().lost();
                    break;
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
    end::connection(&worker, &client).await;
    drop(stream);
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
    async fn until(&self, stream: &TcpStream, client: &Client) -> Woken {
        let interest = match (self.read, self.write) {
            (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
            (true, false) => Some(Interest::READABLE),
            (false, true) => Some(Interest::WRITABLE),
            (false, false) => None,
        };
        tokio::select! {
            ready = ready(stream, interest) => Woken::Ready { readable: self.read && ready },
            () = client.wake.notified() => Woken::Event,
            () = sleep_until(self.deadline) => Woken::Deadline,
        }
    }
}

/// Whether the socket can be read from; never resolves without an interest.
async fn ready(stream: &TcpStream, interest: Option<Interest>) -> bool {
    match interest {
        Some(interest) => match stream.ready(interest).await {
            Ok(ready) => ready.is_readable() || ready.is_read_closed(),
            // The next read tells what it is.
            Err(_) => true,
        },
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn read(stream: &TcpStream, received: &mut BytesMut) -> io::Result<()> {
    received.reserve(READ_BYTES);
    match stream.try_read_buf(received) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
    }
}

/// Flushes, and lets the connection fill what became free: what waited for room has no other wake-up.
fn flush_all(worker: &Rc<Worker>, client: &Rc<Client>, stream: &TcpStream, sending: &mut BytesMut) -> io::Result<()> {
    loop {
        flush(stream, client, sending)?;
        if !sending.is_empty() {
            return Ok(());
        }
        worker.pump(client);
        if client.connection.borrow().out.is_empty() {
            return Ok(());
        }
    }
}

/// Writes what the socket takes now; one system call for all that has gathered.
fn flush(stream: &TcpStream, client: &Client, sending: &mut BytesMut) -> io::Result<()> {
    loop {
        if sending.is_empty() {
            *sending = client.connection.borrow_mut().out.split();
            if sending.is_empty() {
                *sending = BytesMut::new();
                return Ok(());
            }
        }
        match stream.try_write(sending) {
            Ok(written) => sending.advance(written),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
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
