//! One connection of a client: a non-blocking socket, bytes to send, the rest of a packet that is not whole yet; over
//! WebSocket frames around them, over TLS records around those.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use rustls::{ClientConfig, ClientConnection};
use socket2::{Domain, Protocol, Socket, Type};

use crate::client::websocket::WebSocket;

#[derive(Debug)]
pub struct Link {
    stream: TcpStream,
    /// Encoded and not written.
    pub out: BytesMut,
    partial: Vec<u8>,
    websocket: Option<Box<Framed>>,
    tls: Option<Box<ClientConnection>>,
    /// What epoll was told last.
    pub waits_to_write: bool,
}

/// Over WebSocket, packets take this way.
#[derive(Debug, Default)]
struct Framed {
    socket: WebSocket,
    /// Of the wire, not written.
    out: BytesMut,
}

impl Link {
    /// Begins to connect, over WebSocket if a path is given, over TLS with `tls`; writable means connected, or [`error`](Self::error).
    ///
    /// # Errors
    /// Too many files or ports in use, or refused at once.
    pub fn dial(
        to: SocketAddr,
        from: Option<Ipv4Addr>,
        path: Option<&str>,
        tls: Option<&Arc<ClientConfig>>,
    ) -> io::Result<Link> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(from) = from {
            socket.bind(&SocketAddr::from((from, 0)).into())?;
        }
        match socket.connect(&to.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        Ok(Link {
            stream: socket.into(),
            out: BytesMut::new(),
            partial: Vec::new(),
            websocket: path.map(|path| {
                Box::new(Framed {
                    socket: WebSocket::default(),
                    out: BytesMut::from(WebSocket::request(&to.to_string(), path).as_bytes()),
                })
            }),
            tls: match tls {
                None => None,
                Some(config) => {
                    let connection = ClientConnection::new(config.clone(), to.ip().into());
                    let mut connection = connection.map_err(io::Error::other)?;
                    // What waits is bounded by whoever writes.
                    connection.set_buffer_limit(None);
                    Some(Box::new(connection))
                }
            },
            waits_to_write: true,
        })
    }

    /// # Errors
    /// Why there is no connection.
    pub fn error(&self) -> io::Result<()> {
        match self.stream.take_error()? {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    /// Writes what the socket takes.
    ///
    /// # Errors
    /// The connection is over.
    pub fn flush(&mut self) -> io::Result<()> {
        let out = match &mut self.websocket {
            None => &mut self.out,
            Some(framed) => {
                framed.socket.wrap(&mut self.out, &mut framed.out);
                &mut framed.out
            }
        };
        if let Some(connection) = &mut self.tls {
            connection.writer().write_all(out)?;
            out.clear();
            return write_records(connection, &mut self.stream);
        }
        while !out.is_empty() {
            match self.stream.write(out) {
                Ok(written) => out.advance(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether the socket has not taken all.
    pub fn is_blocked(&self) -> bool {
        if let Some(connection) = &self.tls {
            return connection.wants_write();
        }
        match &self.websocket {
            None => !self.out.is_empty(),
            Some(framed) => !framed.out.is_empty(),
        }
    }

    /// What has come, behind what was [kept](Self::keep); `None` if there is nothing new.
    ///
    /// # Errors
    /// The connection is over.
    pub fn read(&mut self, buffer: &mut Vec<u8>) -> io::Result<Option<Bytes>> {
        let kept = self.partial.len();
        if buffer.len() < kept + READ_BYTES {
            buffer.resize(kept + READ_BYTES, 0);
        }
        let read = match &mut self.tls {
            None => self.stream.read(&mut buffer[kept..]),
            Some(connection) => read_records(connection, &mut self.stream, &mut buffer[kept..]),
        };
        match read {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                if let Some(framed) = &mut self.websocket {
                    let mut packets = std::mem::take(&mut self.partial);
                    framed
                        .socket
                        .unwrap(&buffer[kept..kept + read], &mut packets, &mut framed.out)?;
                    return Ok(Some(packets.into()));
                }
                buffer[..kept].copy_from_slice(&self.partial);
                self.partial = Vec::new();
                Ok(Some(Bytes::copy_from_slice(&buffer[..kept + read])))
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The beginning of a packet, for the next [`read`](Self::read).
    pub fn keep(&mut self, partial: &[u8]) {
        self.partial.extend_from_slice(partial);
    }

    /// Nothing more will be sent.
    pub fn shut(&self) {
        // The broker may have gone first.
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn write_records(connection: &mut ClientConnection, stream: &mut TcpStream) -> io::Result<()> {
    while connection.wants_write() {
        match connection.write_tls(stream) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Until `buffer` is nearly full, or the socket has nothing more.
fn read_records(connection: &mut ClientConnection, stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    loop {
        match connection.reader().read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        // What rustls kept to itself would have no further event.
        if filled > 0 && buffer.len() - filled < RECORDS_BYTES {
            break;
        }
        match connection.read_tls(stream) {
            Ok(0) => break,
            Ok(_) => {
                connection.process_new_packets().map_err(io::Error::other)?;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && filled > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// What one read of rustls may bring.
const RECORDS_BYTES: usize = 32 * 1024;
/// A few hundred small messages per system call.
const READ_BYTES: usize = 64 * 1024;
