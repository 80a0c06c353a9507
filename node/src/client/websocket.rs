//! MQTT over WebSocket from the client's side, without I/O: an HTTP upgrade, then binary frames around the same bytes.
//!
//! Masks are zero: a masked payload is then the payload, which costs nothing. (Masks protect proxies from what scripts of
//! a web page may send; there is no page here.)

use std::io::{self, Cursor};

use bytes::{BufMut, BytesMut};
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

#[derive(Debug, Default)]
pub struct WebSocket {
    is_open: bool,
    /// Received: the beginning of an answer, of a header, or of a control frame.
    raw: BytesMut,
    /// Of the data frame that is being received.
    frame_left: u64,
}

impl WebSocket {
    /// What opens it at `path` of `host`.
    pub fn request(host: &str, path: &str) -> String {
        format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
        )
    }

    /// Whether the server has agreed.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Moves `packets` to `wire` in one frame; they stay until the server has agreed.
    pub fn wrap(&self, packets: &mut BytesMut, wire: &mut BytesMut) {
        if self.is_open && !packets.is_empty() {
            append(OpCode::Data(Data::Binary), packets, wire);
            packets.clear();
        }
    }

    /// Appends to `packets` what `received` has of them, and answers to `wire`.
    ///
    /// # Errors
    /// No WebSocket, or the end of it.
    pub fn unwrap(&mut self, received: &[u8], packets: &mut Vec<u8>, wire: &mut BytesMut) -> io::Result<()> {
        self.raw.extend_from_slice(received);
        if !self.is_open && !self.opened()? {
            return Ok(());
        }
        loop {
            let data = self
                .raw
                .len()
                .min(usize::try_from(self.frame_left).unwrap_or(usize::MAX));
            packets.extend_from_slice(&self.raw.split_to(data));
            self.frame_left -= data as u64;
            let mut cursor = Cursor::new(&self.raw[..]);
            let Some((header, length)) = FrameHeader::parse(&mut cursor).map_err(io::Error::other)? else {
                return Ok(());
            };
            let header_bytes = cursor.position() as usize;
            match header.opcode {
                OpCode::Data(_) => {
                    let _ = self.raw.split_to(header_bytes);
                    self.frame_left = length;
                }
                OpCode::Control(Control::Close) => return Err(io::ErrorKind::UnexpectedEof.into()),
                OpCode::Control(kind) => {
                    let whole = header_bytes + usize::try_from(length).unwrap_or(usize::MAX).min(CONTROL_BYTES_MAX);
                    if self.raw.len() < whole {
                        return Ok(());
                    }
                    let frame = self.raw.split_to(whole);
                    if kind == Control::Ping {
                        append(OpCode::Control(Control::Pong), &frame[header_bytes..], wire);
                    }
                }
            }
        }
    }

    fn opened(&mut self) -> io::Result<bool> {
        let Some(end) = self.raw.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
            return Ok(false);
        };
        let answer = self.raw.split_to(end + 4);
        let answer = String::from_utf8_lossy(&answer);
        if !answer.starts_with("HTTP/1.1 101") || !answer.contains(ACCEPT) {
            let line = answer.lines().next().unwrap_or_default();
            return Err(io::Error::other(format!("no WebSocket there: {line}")));
        }
        self.is_open = true;
        Ok(true)
    }
}

fn append(opcode: OpCode, payload: &[u8], wire: &mut BytesMut) {
    let header = FrameHeader {
        opcode,
        mask: Some([0; 4]),
        ..FrameHeader::default()
    };
    header
        .format(payload.len() as u64, &mut wire.writer())
        .expect("memory takes any header");
    wire.extend_from_slice(payload);
}

/// The example of RFC 6455 section 1.3, and the only answer to it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// RFC 6455 section 5.5.
const CONTROL_BYTES_MAX: usize = 125;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_wait_for_the_upgrade_and_come_out_of_their_frames_however_they_are_cut() {
        let mut received = format!("HTTP/1.1 101 Switching\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n").into_bytes();
        received.extend([0x82, 3, 1, 2, 3, 0x89, 1, 7, 0x02, 1, 4, 0x80, 2, 5, 6]);
        for size in 1..received.len() {
            let mut socket = WebSocket::default();
            let (mut out, mut wire, mut packets) = (BytesMut::from(&[9][..]), BytesMut::new(), Vec::new());
            socket.wrap(&mut out, &mut wire);
            assert!(wire.is_empty());
            for piece in received.chunks(size) {
                socket.unwrap(piece, &mut packets, &mut wire).expect("valid");
            }
            socket.wrap(&mut out, &mut wire);
            assert_eq!(packets, [1, 2, 3, 4, 5, 6], "{size}");
            assert_eq!(
                wire[..],
                [0x8A, 0x81, 0, 0, 0, 0, 7, 0x82, 0x81, 0, 0, 0, 0, 9],
                "{size}"
            );
        }
    }

    #[test]
    fn another_answer_is_told() {
        let refused =
            WebSocket::default().unwrap(b"HTTP/1.1 404 Not Found\r\n\r\n", &mut Vec::new(), &mut BytesMut::new());
        assert!(refused.expect_err("no upgrade").to_string().contains("404 Not Found"));
    }
}
