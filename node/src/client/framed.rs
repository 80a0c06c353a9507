//! MQTT over WebSocket as a stream of bytes: the frames of [`WebSocket`] over any other stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::websocket::WebSocket;

pub struct Framed<S> {
    io: S,
    socket: WebSocket,
    /// Received, and not taken.
    packets: BytesMut,
    /// Frames that the stream did not take.
    wire: BytesMut,
    has_ended: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Framed<S> {
    /// Asks for a WebSocket at `path` of `host`.
    ///
    /// # Errors
    /// There is none.
    pub async fn connect(mut io: S, host: &str, path: &str) -> io::Result<Self> {
        io.write_all(WebSocket::request(host, path).as_bytes()).await?;
        io.flush().await?;
        let mut framed = Framed {
            io,
            socket: WebSocket::default(),
            packets: BytesMut::new(),
            wire: BytesMut::new(),
            has_ended: false,
        };
        let mut buffer = [0; 4096];
        while !framed.socket.is_open() {
            let read = framed.io.read(&mut buffer).await?;
            if read == 0 {
                let problem = "the server closed the connection instead of opening a WebSocket";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, problem));
            }
            framed.unwrap(&buffer[..read])?;
        }
        Ok(framed)
    }

    fn unwrap(&mut self, received: &[u8]) -> io::Result<()> {
        let mut packets = Vec::new();
        let taken = self.socket.unwrap(received, &mut packets, &mut self.wire);
        self.packets.extend_from_slice(&packets);
        match taken {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.has_ended = true;
                Ok(())
            }
            taken => taken,
        }
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.wire.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(context, &self.wire))?;
            self.wire.advance(written);
        }
        Pin::new(&mut self.io).poll_flush(context)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Framed<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            // Pongs, and what was written before.
            if let Poll::Ready(Err(error)) = this.poll_send(context) {
                return Poll::Ready(Err(error));
            }
            if !this.packets.is_empty() || this.has_ended {
                let taken = this.packets.len().min(buffer.remaining());
                buffer.put_slice(&this.packets.split_to(taken));
                return Poll::Ready(Ok(()));
            }
            let mut bytes = [0; 8192];
            let mut received = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.io).poll_read(context, &mut received))?;
            match received.filled() {
                [] => this.has_ended = true,
                received => this.unwrap(received)?,
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Framed<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_send(context))?;
        let mut packets = BytesMut::from(bytes);
        this.socket.wrap(&mut packets, &mut this.wire);
        match this.poll_send(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(bytes.len())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(context))?;
        Pin::new(&mut this.io).poll_shutdown(context)
    }
}
