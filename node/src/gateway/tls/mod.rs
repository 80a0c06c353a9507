//! TLS under MQTT and under HTTP: rustls without I/O of its own, over a socket of the worker.
//!
//! ```text
//!   load       PEM files ─▶ ServerConfig                          at the start, and at every SIGHUP
//!   handshake  Socket ─▶ TlsStream                                in turns, bounded in time and number
//!   session    bytes ◀─▶ plaintext, sans-io
//! ```
//!
//! Bytes are decrypted in, and encrypted into, buffers of the thread: what the socket does not take, and records that are
//! not whole, are all that a connection keeps.

pub mod handshake;
pub mod load;
mod session;

use std::cell::RefCell;
use std::io;

use bytes::{Buf, BytesMut};

use self::session::Session;
use super::socket::Socket;

/// One client's connection, after its handshake.
pub struct TlsStream {
    socket: Socket,
    session: Session,
    /// Records that the socket did not take.
    unwritten: BytesMut,
    /// Came with the end of the handshake.
    early: BytesMut,
    is_lost: bool,
}

/// Of one thread: nothing in them outlives a call.
#[derive(Default)]
struct Buffers {
    incoming: Vec<u8>,
    joined: Vec<u8>,
    outgoing: BytesMut,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

impl TlsStream {
    /// Whether it can be read without waiting for the socket.
    pub fn has_early(&self) -> bool {
        !self.early.is_empty() || self.session.has_ended() || self.is_lost
    }

    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Appends what has come.
    ///
    /// # Errors
    /// Nothing more comes.
    pub fn read(&mut self, received: &mut BytesMut) -> io::Result<()> {
        if !self.early.is_empty() {
            received.extend_from_slice(&std::mem::take(&mut self.early));
            return Ok(());
        }
        if self.session.has_ended() || self.is_lost {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        BUFFERS.with_borrow_mut(|buffers| {
            buffers.incoming.resize(READ_BYTES, 0);
            let read = match self.socket.try_read(&mut buffers.incoming) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let outgoing = &mut buffers.outgoing;
            outgoing.clear();
            let taken = self.session.received(&mut buffers.incoming[..read], received, outgoing);
            // What came before it is taken first.
            self.is_lost = taken.is_err();
            self.send(outgoing)
        })
    }

    /// Encrypts and writes; how many bytes of `pieces`, in their order, were taken. More is taken than the socket takes
    /// now, but nothing while something waits for it.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn write(&mut self, pieces: &[io::IoSlice<'_>]) -> io::Result<usize> {
        if !self.flush()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        BUFFERS.with_borrow_mut(|Buffers { joined, outgoing, .. }| {
            outgoing.clear();
            let plaintext = match pieces {
                [whole] => &whole[..whole.len().min(WRITE_BYTES)],
                // One record for a frame's header and what follows it.
                _ => {
                    joined.clear();
                    for piece in pieces {
                        joined.extend_from_slice(&piece[..piece.len().min(WRITE_BYTES - joined.len())]);
                    }
                    &joined[..]
                }
            };
            if !plaintext.is_empty() {
                self.session.encrypt(plaintext, outgoing).map_err(io::Error::other)?;
            }
            self.send(outgoing)?;
            Ok(plaintext.len())
        })
    }

    /// Writes what waits; whether nothing does any more.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn flush(&mut self) -> io::Result<bool> {
        while !self.unwritten.is_empty() {
            match self.socket.try_write(&self.unwritten) {
                Ok(written) => self.unwritten.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.unwritten = BytesMut::new();
        Ok(true)
    }

    pub fn has_unwritten(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// Tells the client that nothing more comes, if the socket takes it now.
    pub fn close(&mut self) {
        if !matches!(self.flush(), Ok(true)) {
            return;
        }
        let mut alert = BytesMut::new();
        if self.session.close(&mut alert).is_ok() {
            let _ = self.send(&alert);
        }
    }

    /// Writes records, behind those that wait, and keeps what the socket does not take.
    fn send(&mut self, mut records: &[u8]) -> io::Result<()> {
        if self.flush()? {
            while !records.is_empty() {
                match self.socket.try_write(records) {
                    Ok(written) => records = &records[written..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
        // `bounded`: by WRITE_BYTES, and by what is answered to one read.
        self.unwritten.extend_from_slice(records);
        match self.unwritten.len() <= UNWRITTEN_MAX {
            true => Ok(()),
            false => Err(io::Error::other("the client does not read what it asks for")),
        }
    }
}

/// The largest record and its neighbour.
const READ_BYTES: usize = 32 * 1024;
/// Four records, as one write.
const WRITE_BYTES: usize = 64 * 1024;
/// What is answered without being asked by us (key updates): a client that makes more of them and does not read is lost.
const UNWRITTEN_MAX: usize = 256 * 1024;
