//! WebSocket around a client's MQTT bytes [RFC 6455], and nothing of it that MQTT does not need.
//!
//!     GET /mqtt, Upgrade ──▶ 101        then: MQTT bytes ──Framer──▶ masked binary frames ──▶ node
//!                                             MQTT bytes ◀─Unframer── binary frames, continued ones too ◀── node
//!
//! Packets and frames need not coincide [MQTT-6.0.0-2]: what is longer than [`FRAGMENT`] is sent in fragments.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Asks for the upgrade, and reads the answer to its last byte.
///
/// # Errors
/// The connection ended, or the answer is none that a WebSocket client takes.
pub async fn upgrade(stream: &mut TcpStream, address: SocketAddr) -> Result<()> {
    let request = format!(
        "GET /mqtt HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: bG9udHJhLWplcHNlbi10cw==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the head belongs to MQTT.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() > HEAD_LIMIT {
            return Err(wrong("the answer to the upgrade has no end"));
        }
        answer.push(stream.read_u8().await?);
    }
    let answer = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    match answer.starts_with("http/1.1 101") && answer.contains("sec-websocket-protocol: mqtt") {
        true => Ok(()),
        false => Err(wrong(answer.lines().next().unwrap_or_default())),
    }
}

/// Wraps what is sent.
#[derive(Default)]
pub struct Framer {
    frames: u32,
}

impl Framer {
    pub fn wrap(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut wrapped = Vec::with_capacity(bytes.len() + 16);
        let mut pieces = bytes.chunks(FRAGMENT).peekable();
        let mut opcode = BINARY;
        while let Some(piece) = pieces.next() {
            let last = if pieces.peek().is_none() { FIN } else { 0 };
            self.frame(last | opcode, piece, &mut wrapped);
            opcode = CONTINUATION;
        }
        wrapped
    }

    fn frame(&mut self, first: u8, payload: &[u8], to: &mut Vec<u8>) {
        self.frames = self.frames.wrapping_add(1);
        to.push(first);
        match payload.len() {
            length @ 0..126 => to.push(MASKED | length as u8),
            length @ 126..=0xffff => {
                to.push(MASKED | 126);
                to.extend((length as u16).to_be_bytes());
            }
            length => {
                to.push(MASKED | 127);
                to.extend((length as u64).to_be_bytes());
            }
        }
        // Any mask will do: there are no proxies to protect.
        let mask = self.frames.wrapping_mul(0x9e37_79b9).to_be_bytes();
        to.extend(mask);
        to.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    }
}

/// Unwraps what comes.
#[derive(Default)]
pub struct Unframer {
    raw: Vec<u8>,
}

/// What a piece of the stream was.
#[derive(Debug, PartialEq, Eq)]
pub enum Came {
    Bytes(Vec<u8>),
    /// The node closes the WebSocket.
    Close,
}

impl Unframer {
    pub fn push(&mut self, raw: &[u8]) {
        self.raw.extend(raw);
    }

    /// The next whole frame that matters; None: there is none yet.
    ///
    /// # Errors
    /// A frame that no server may send to an MQTT client.
    pub fn next(&mut self) -> std::result::Result<Option<Came>, String> {
        loop {
            let Some((first, payload, length)) = self.whole()? else {
                return Ok(None);
            };
            let payload = self.raw[payload..length].to_vec();
            self.raw.drain(..length);
            match first & 0x0f {
                BINARY | CONTINUATION => return Ok(Some(Came::Bytes(payload))),
                CLOSE => return Ok(Some(Came::Close)),
                PING | PONG => {}
                opcode => return Err(format!("a WebSocket frame of kind {opcode}")),
            }
        }
    }

    /// First byte, where the payload begins, where the frame ends.
    fn whole(&self) -> std::result::Result<Option<(u8, usize, usize)>, String> {
        let [first, second, ..] = self.raw[..] else {
            return Ok(None);
        };
        if second & MASKED != 0 {
            return Err("a masked WebSocket frame of a server".into());
        }
        let (length, at) = match second {
            126 => (
                self.raw
                    .get(2..4)
                    .map(|it| u64::from(u16::from_be_bytes([it[0], it[1]]))),
                4,
            ),
            127 => {
                let bytes = self.raw.get(2..10).and_then(|it| it.try_into().ok());
                (bytes.map(u64::from_be_bytes), 10)
            }
            length => (Some(u64::from(length)), 2),
        };
        let Some(length) = length else { return Ok(None) };
        let end = at + length as usize;
        Ok((self.raw.len() >= end).then_some((first, at, end)))
    }
}

fn wrong(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what.to_owned())
}

const HEAD_LIMIT: usize = 8 * 1024;
const FRAGMENT: usize = 1_000;
const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
const CONTINUATION: u8 = 0;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_masked_and_what_is_long_is_fragmented() {
        let mut framer = Framer::default();
        let short = framer.wrap(b"ab");
        assert_eq!(short[..2], [0x82, 0x82]);
        assert_eq!([short[6] ^ short[2], short[7] ^ short[3]], *b"ab");
        let long = framer.wrap(&[7; FRAGMENT + 1]);
        assert_eq!(long[..4], [0x02, 0xfe, 0x03, 0xe8]);
        assert_eq!(long[8 + FRAGMENT..][..2], [0x80, 0x81]);
    }

    #[test]
    fn frames_are_unwrapped_however_they_come() {
        let mut stream = vec![0x82, 2, b'a', b'b', 0x89, 0, 0x02, 126, 0, 200];
        stream.extend([1; 200]);
        stream.extend([0x80, 1, b'z', 0x88, 0]);
        let expected = vec![
            Came::Bytes(b"ab".to_vec()),
            Came::Bytes(vec![1; 200]),
            Came::Bytes(b"z".to_vec()),
            Came::Close,
        ];
        for size in [1, 3, 1_000] {
            let mut unframer = Unframer::default();
            let mut came = Vec::new();
            for piece in stream.chunks(size) {
                unframer.push(piece);
                while let Some(next) = unframer.next().expect("it is right") {
                    came.push(next);
                }
            }
            assert_eq!(came, expected, "in pieces of {size}");
        }
        let mut masked = Unframer::default();
        masked.push(&[0x82, 0x82, 0, 0, 0, 0, 1, 1]);
        assert!(masked.next().is_err());
    }
}
