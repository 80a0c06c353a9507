//! What a client is connected by: a socket of the kernel, or TLS over one. Below every [`Transport`](super::Transport).
//!
//! ```text
//!   TCP ──┬─▶ Socket ─┬─────────────▶ Stream ─┬─▶ MQTT, its packets the bytes of the stream
//!   Unix ─┘           └─▶ TlsStream ─▶        └─▶ HTTP ─▶ WebSocket
//! ```

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use super::READ_BYTES;
use super::tls::TlsStream;

/// A socket of the kernel.
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Bytes both ways, ordered; nothing here waits but what says so.
pub enum Stream {
    Plain(Socket),
    Tls(Box<TlsStream>),
}

impl Socket {
    /// Whether it can be read from; never resolves without an interest.
    ///
    /// # Cancel safety
    /// Safe: nothing is read.
    pub async fn ready(&self, read: bool, write: bool) -> bool {
        let interest = match (read, write) {
            (true, true) => Interest::READABLE | Interest::WRITABLE,
            (true, false) => Interest::READABLE,
            (false, true) => Interest::WRITABLE,
            (false, false) => return std::future::pending().await,
        };
        let ready = match self {
            Socket::Tcp(stream) => stream.ready(interest).await,
            Socket::Unix(stream) => stream.ready(interest).await,
        };
        match ready {
            Ok(ready) => ready.is_readable() || ready.is_read_closed(),
            // The next read tells what it is.
            Err(_) => true,
        }
    }

    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.try_read(buffer),
            Socket::Unix(stream) => stream.try_read(buffer),
        }
    }

    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.try_write(bytes),
            Socket::Unix(stream) => stream.try_write(bytes),
        }
    }

    fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.try_write_vectored(pieces),
            Socket::Unix(stream) => stream.try_write_vectored(pieces),
        }
    }

    /// Appends what has come.
    fn read(&self, received: &mut BytesMut) -> io::Result<()> {
        received.reserve(READ_BYTES);
        let read = match self {
            Socket::Tcp(stream) => stream.try_read_buf(received),
            Socket::Unix(stream) => stream.try_read_buf(received),
        };
        match read {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A read brought less than it had room for: nothing is left. What comes later is an event of its own (epoll tells edges),
    /// which this thread has not seen yet; so the next look at the socket waits, without a read that would find nothing.
    fn note_drained(&self) {
        let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        let _ = match self {
            Socket::Tcp(stream) => stream.try_io(Interest::READABLE, nothing),
            Socket::Unix(stream) => stream.try_io(Interest::READABLE, nothing),
        };
    }

    fn poll_ready(&self, context: &mut Context<'_>, write: bool) -> Poll<io::Result<()>> {
        match (self, write) {
            (Socket::Tcp(stream), false) => stream.poll_read_ready(context),
            (Socket::Tcp(stream), true) => stream.poll_write_ready(context),
            (Socket::Unix(stream), false) => stream.poll_read_ready(context),
            (Socket::Unix(stream), true) => stream.poll_write_ready(context),
        }
    }
}

impl Stream {
    fn socket(&self) -> &Socket {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(stream) => stream.socket(),
        }
    }

    /// Whether it can be read from, or a read tells why not; never resolves without an interest.
    ///
    /// # Cancel safety
    /// Safe: nothing is read.
    pub async fn ready(&self, read: bool, write: bool) -> bool {
        poll_fn(|context| self.poll_ready(context, read, write)).await
    }

    /// Whether it can be read from, or a read tells why not; never ready without an interest.
    pub fn poll_ready(&self, context: &mut Context<'_>, read: bool, write: bool) -> Poll<bool> {
        if read && matches!(self, Stream::Tls(stream) if stream.has_early()) {
            return Poll::Ready(true);
        }
        let socket = self.socket();
        // An error is what the next read, or write, tells.
        if read && socket.poll_ready(context, false).is_ready() {
            return Poll::Ready(true);
        }
        if write && socket.poll_ready(context, true).is_ready() {
            return Poll::Ready(false);
        }
        Poll::Pending
    }

    /// Appends what has come.
    ///
    /// # Errors
    /// Nothing more comes; what came before was appended by earlier calls.
    pub fn read(&mut self, received: &mut BytesMut) -> io::Result<()> {
        match self {
            Stream::Plain(socket) => socket.read(received),
            Stream::Tls(stream) => stream.read(received),
        }
    }

    /// Writes what is taken now of `bytes`.
    ///
    /// # Errors
    /// `WouldBlock`, or the connection is lost.
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.try_write(bytes),
            Stream::Tls(stream) => stream.write(&[IoSlice::new(bytes)]),
        }
    }

    /// Writes what is taken now of `pieces`, in their order.
    ///
    /// # Errors
    /// `WouldBlock`, or the connection is lost.
    pub fn try_write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.try_write_vectored(pieces),
            Stream::Tls(stream) => stream.write(pieces),
        }
    }

    /// Writes what was taken and waits for the socket; whether nothing does any more.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn flush(&mut self) -> io::Result<bool> {
        match self {
            Stream::Plain(_) => Ok(true),
            Stream::Tls(stream) => stream.flush(),
        }
    }

    pub fn has_unwritten(&self) -> bool {
        match self {
            Stream::Plain(_) => false,
            Stream::Tls(stream) => stream.has_unwritten(),
        }
    }

    /// The last read brought less than it had room for: nothing is left.
    pub fn note_drained(&self) {
        if let Stream::Plain(socket) = self {
            socket.note_drained();
        }
    }

    /// Waits until all is written.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn flushed(&mut self) -> io::Result<()> {
        poll_fn(|context| self.poll_flush(context)).await
    }

    /// Waits until something can be written.
    pub async fn writable(&self) -> io::Result<()> {
        self.socket().ready(false, true).await;
        Ok(())
    }

    /// Whether the kernel resets a TCP connection that is closed. A Unix socket knows no difference.
    pub fn set_abrupt(&self, is_abrupt: bool) {
        if let Socket::Tcp(stream) = self.socket() {
            // What cannot be set (the connection is gone) needs not be.
            let _ = socket2::SockRef::from(stream).set_linger(is_abrupt.then_some(Duration::ZERO));
        }
    }

    /// Says goodbye, where there is a way to, without waiting; then the socket closes.
    pub fn close(mut self) {
        if let Stream::Tls(stream) = &mut self {
            stream.close();
        }
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.flush()? {
            ready!(self.socket().poll_ready(context, true))?;
        }
        Poll::Ready(Ok(()))
    }
}

/// For hyper, which reads the head of a request and writes its answer.
mod of_hyper {
    use std::pin::Pin;

    use hyper::rt::{Read, ReadBufCursor, Write};

    use super::*;

    /// A stream, and what was read of it and not taken.
    pub struct HttpIo {
        pub stream: Stream,
        pub received: BytesMut,
    }

    impl Read for HttpIo {
        fn poll_read(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            mut buffer: ReadBufCursor<'_>,
        ) -> Poll<io::Result<()>> {
            let this = self.get_mut();
            while this.received.is_empty() {
                let is_early = matches!(&this.stream, Stream::Tls(stream) if stream.has_early());
                if !is_early {
                    ready!(this.stream.socket().poll_ready(context, false))?;
                }
                match this.stream.read(&mut this.received) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Poll::Ready(Ok(())),
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
            let taken = this.received.split_to(this.received.len().min(buffer.remaining()));
            buffer.put_slice(&taken);
            Poll::Ready(Ok(()))
        }
    }

    impl Write for HttpIo {
        fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let this = self.get_mut();
            loop {
                match this.stream.try_write(bytes) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        ready!(this.stream.socket().poll_ready(context, true))?;
                    }
                    written => return Poll::Ready(written),
                }
            }
        }

        fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.get_mut().stream.poll_flush(context)
        }

        fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.poll_flush(context)
        }
    }
}

pub use of_hyper::HttpIo;
