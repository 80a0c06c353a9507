//! MQTT over WebSocket: its packets are the bytes of binary messages, one after the other. [MQTT-6.0.0-1]
//!
//! ```text
//!   socket ─▶ incoming ─▶ tungstenite's context ─▶ payloads ─▶ received     frames, masks, fragments, pings, closing
//!   sending ─▶ outgoing: header + payload, one system call ─▶ socket        pongs and Close between frames
//! ```
//!
//! Where a message or a frame ends means nothing to MQTT [MQTT-6.0.0-2]. Ours hold whole packets, for clients that expect
//! it. Frames are written around the context, which would copy each into a buffer that it keeps.
//!
//! Invariants
//! - `bounded`: a message is no larger than what may wait for the session; pongs that a client does not read replace
//!   each other once PONGS_MAX bytes of them wait.
//! - whole packets that came before a Close, or before what breaks the rules, are taken first.

pub mod incoming;
mod outgoing;

use std::io::{self, IoSlice};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio_tungstenite::tungstenite::error::{CapacityError, Error, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig, WebSocketContext};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use self::incoming::Incoming;
use self::outgoing::Outgoing;
use super::Transport;
use super::socket::Stream;
use crate::protocol::codec::ReasonCode;

/// `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key`.
pub fn accept_key(key: &[u8]) -> String {
    derive_accept_key(key)
}

/// One client's WebSocket, after its handshake.
pub struct WebSocket {
    stream: Stream,
    context: WebSocketContext,
    message_max: usize,
    incoming: Incoming,
    outgoing: Outgoing,
    /// There are bytes that came with the handshake.
    early: bool,
    /// The socket did not take a pong.
    pong_waits: bool,
    ended: Option<Ended>,
}

/// Why nothing more is read.
enum Ended {
    /// A Close came; its answer waits in the context.
    Closed,
    Broken(CloseCode, &'static str),
    Lost,
}

impl WebSocket {
    /// `early` came with the handshake; a message, and a frame, is at most `message_max` long.
    pub fn new(stream: Stream, early: &[u8], message_max: usize) -> Self {
        WebSocket {
            stream,
            context: context(message_max),
            message_max,
            incoming: Incoming::new(early.into()),
            outgoing: Outgoing::default(),
            early: !early.is_empty(),
            pong_waits: false,
            ended: None,
        }
    }

    /// Takes all messages out of what was read.
    fn take_messages(&mut self, received: &mut BytesMut) {
        while self.ended.is_none() {
            match self.next_message() {
                Ok(Message::Binary(payload)) => received.extend_from_slice(&payload),
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(Message::Text(_)) => self.ended = Some(text_refused()),
                Ok(Message::Close(_)) => self.ended = Some(Ended::Closed),
                Ok(Message::Frame(_)) => unreachable!("a context that reads gives messages"),
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => self.ended = Some(ended(&error)),
            }
        }
    }

    /// An idle connection holds next to nothing.
    fn let_go_of_memory(&mut self) {
        self.incoming.shrink();
        if self.ended.is_none() && !self.pong_waits && self.incoming.is_between_after(KEPT_MAX) {
            self.context = context(self.message_max);
        }
    }

    fn is_broken(&self) -> bool {
        matches!(self.ended, Some(Ended::Broken(..)))
    }

    fn next_message(&mut self) -> Result<Message, Error> {
        let (context, mut io) = self.split();
        context.read(&mut io)
    }

    /// Writes pongs, between frames of ours; whether all are written.
    fn flush_pongs(&mut self) -> io::Result<bool> {
        if self.ended.is_some() {
            return Ok(true);
        }
        let (context, mut io) = self.split();
        let flushed = context.flush(&mut io);
        self.pong_waits = match flushed {
            Ok(()) => false,
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => true,
            Err(error) => return Err(io::Error::other(error)),
        };
        Ok(!self.pong_waits)
    }

    fn split(&mut self) -> (&mut WebSocketContext, Io<'_>) {
        let io = Io {
            stream: &mut self.stream,
            incoming: &mut self.incoming,
            may_write: self.outgoing.is_written(),
        };
        (&mut self.context, io)
    }

    /// Sends Close with `frame`, or the answer to the client's.
    async fn send_close(&mut self, frame: Option<CloseFrame>) -> Result<(), Error> {
        let (context, mut io) = self.split();
        let mut sent = context.close(&mut io, frame);
        while let Err(Error::Io(error)) = &sent
            && error.kind() == io::ErrorKind::WouldBlock
        {
            self.stream.writable().await?;
            let (context, mut io) = self.split();
            sent = context.flush(&mut io);
        }
        sent?;
        Ok(self.stream.flushed().await?)
    }

    /// Reads until the client answers our Close or closes: a socket closed with bytes unread is reset, and the client might
    /// never see the Close, nor the DISCONNECT before it.
    async fn await_close(&mut self) {
        while self.stream.ready(true, false).await && self.incoming.fill(&mut self.stream).is_ok() {
            // Where a client broke the rules, the bytes that follow have no meaning.
            while !self.is_broken() {
                match self.next_message() {
                    Ok(Message::Close(_)) => return,
                    Ok(_) => {}
                    Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => return,
                }
            }
            if self.is_broken() {
                self.incoming.clear();
            }
        }
    }
}

impl Transport for WebSocket {
    fn poll_ready(&self, context: &mut Context<'_>, read: bool, write: bool) -> Poll<bool> {
        // No byte of the socket would wake it for these.
        if read && (self.ended.is_some() || self.early) {
            return Poll::Ready(true);
        }
        self.stream.poll_ready(context, read, write)
    }

    fn read(&mut self, received: &mut BytesMut) -> io::Result<()> {
        if self.ended.is_some() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !std::mem::take(&mut self.early)
            && let Err(error) = self.incoming.fill(&mut self.stream)
        {
            self.ended = Some(Ended::Lost);
            return Err(error);
        }
        self.take_messages(received);
        self.flush_pongs()?;
        self.let_go_of_memory();
        Ok(())
    }

    fn write(&mut self, sending: &mut BytesMut) -> io::Result<()> {
        self.stream.flush()?;
        loop {
            if self.outgoing.is_written() {
                if self.pong_waits && !self.flush_pongs()? || sending.is_empty() {
                    return Ok(());
                }
                self.outgoing = Outgoing::new(sending.len());
            }
            let (header, payload) = (self.outgoing.header(), &sending[..self.outgoing.payload()]);
            match self
                .stream
                .try_write_vectored(&[IoSlice::new(header), IoSlice::new(payload)])
            {
                Ok(written) => sending.advance(self.outgoing.advance(written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn kept(&self) -> usize {
        self.incoming.kept()
    }

    fn has_unwritten(&self) -> bool {
        self.pong_waits || self.stream.has_unwritten()
    }

    fn set_abrupt(&self, is_abrupt: bool) {
        self.stream.set_abrupt(is_abrupt);
    }

    async fn close(mut self, reason: ReasonCode) {
        let frame = match self.ended {
            Some(Ended::Lost) => return,
            // No other frame may begin: the end of the stream says it.
            _ if !self.outgoing.is_written() => return self.stream.close(),
            Some(Ended::Closed) => None,
            Some(Ended::Broken(code, why)) => Some((code, why)),
            None if reason.is_error() => Some((close_code(reason), reason.name().unwrap_or_default())),
            None => Some((CloseCode::Normal, "")),
        };
        let frame = frame.map(|(code, why)| CloseFrame {
            code,
            reason: Utf8Bytes::from_static(why),
        });
        let goodbye = async {
            if self.send_close(frame).await.is_ok() {
                self.await_close().await;
            }
        };
        // A client that does neither read nor answer.
        let _ = tokio::time::timeout(CLOSE_MAX, goodbye).await;
        self.stream.close();
    }
}

fn context(message_max: usize) -> WebSocketContext {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(PONGS_MAX)
        .max_frame_size(Some(message_max))
        .max_message_size(Some(message_max));
    WebSocketContext::new(Role::Server, Some(config))
}

/// The socket as the context sees it: nothing waits, and nothing of it comes between the bytes of our frame.
struct Io<'a> {
    stream: &'a mut Stream,
    incoming: &'a mut Incoming,
    may_write: bool,
}

impl io::Read for Io<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.incoming.read(buffer)
    }
}

impl io::Write for Io<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.may_write {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.stream.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn text_refused() -> Ended {
    Ended::Broken(CloseCode::Unsupported, "MQTT is binary") // [MQTT-6.0.0-1]
}

fn ended(error: &Error) -> Ended {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => {
            Ended::Broken(CloseCode::Size, "a message is larger than a packet may be")
        }
        Error::Utf8(_) => text_refused(),
        Error::Protocol(ProtocolError::UnmaskedFrameFromClient) => {
            Ended::Broken(CloseCode::Protocol, "a client masks its frames")
        }
        Error::Protocol(_) | Error::Capacity(_) => Ended::Broken(CloseCode::Protocol, "the frame breaks RFC 6455"),
        _ => Ended::Lost,
    }
}

/// For clients that see no DISCONNECT, as those of 3.1.1, and for whoever looks at the browser's console.
fn close_code(reason: ReasonCode) -> CloseCode {
    match reason {
        ReasonCode::SERVER_SHUTTING_DOWN | ReasonCode::SERVER_BUSY | ReasonCode::USE_ANOTHER_SERVER => CloseCode::Away,
        ReasonCode::PACKET_TOO_LARGE => CloseCode::Size,
        ReasonCode::MALFORMED_PACKET | ReasonCode::PROTOCOL_ERROR => CloseCode::Protocol,
        _ => CloseCode::Policy,
    }
}

/// Of the context, kept while the connection is. It is filled from `incoming`, so that no system call depends on its size.
const READ_BUFFER: usize = 1024;
/// A context that held a larger frame is replaced once it is empty.
const KEPT_MAX: u64 = 4096;
/// Pongs are at most 127 bytes each.
const PONGS_MAX: usize = 1024;
/// The closing handshake; what the client was told before is in its socket's buffer or lost.
const CLOSE_MAX: Duration = Duration::from_secs(1);
