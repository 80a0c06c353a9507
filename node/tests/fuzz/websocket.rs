//! WebSocket framing: handing the context one frame at a time, and replacing it between messages, changes nothing of what
//! it says. An input is how the stream is cut, then frames: first byte, length of the payload, payload.

use super::corpus;
use super::fuzzing::{Target, fuzz, outcome};
use bytes::BytesMut;
use lontra::gateway::ws::incoming::Incoming;
use std::io::{self, Read, Write};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tokio_tungstenite::tungstenite::{Error, Message};

#[test]
fn websocket() {
    let target = Target {
        name: "websocket",
        corpus: &corpus("websocket"),
        seeds: vec![
            vec![1, 0x82, 3, 1, 2, 3, 0x82, 0],
            vec![5, 0x02, 1, 9, 0x89, 2, 7, 7, 0x00, 1, 8, 0x80, 1, 7],
            vec![2, 0x81, 2, b'h', b'i', 0x88, 2, 3, 0xe8],
            vec![3, 0x82, 80]
                .into_iter()
                .chain([5; 80])
                .chain([0x82, 1, 1])
                .collect(),
            vec![
                9, 0xff, 0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4,
            ],
        ],
        words: &[
            &[0x82, 1, 5],
            &[0x80, 0],
            &[0x89, 0],
            &[0x88, 2, 3, 0xe8],
            &[0x02, 2, 1, 2],
        ],
        memory: (16 << 10, 64),
    };
    fuzz(target, |input| {
        let Some((cut, rest)) = input.split_first() else {
            return 0;
        };
        let stream = stream(rest);
        let whole = told(&stream);
        let pieces = told_in_pieces(&stream, usize::from(*cut % 16) + 1);
        assert_eq!(pieces, whole);
        let kind = |told: &String| told.split(['(', ':']).next().map(str::to_owned);
        let end = whole.last().filter(|last| last.starts_with("end"));
        outcome((whole.iter().take(5).map(kind).collect::<Vec<_>>(), end))
    });
}

fn stream(mut rest: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [1, 2, 3, 4];
    let mut stream = Vec::new();
    while let [first, length, more @ ..] = rest {
        let (payload, after) = more.split_at(more.len().min(usize::from(*length)));
        rest = after;
        if *first == 0xff {
            // As the bytes say.
            stream.extend(payload);
            continue;
        }
        stream.push(*first);
        match payload.len() {
            short @ 0..126 => stream.push(0x80 | short as u8),
            long => {
                stream.push(0xfe);
                stream.extend((long as u16).to_be_bytes());
            }
        }
        stream.extend(MASK);
        stream.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    }
    stream
}

fn context() -> WebSocketContext {
    let config = WebSocketConfig::default()
        .read_buffer_size(1024)
        .write_buffer_size(0)
        .max_write_buffer_size(1 << 20)
        .max_frame_size(Some(MESSAGE_MAX))
        .max_message_size(Some(MESSAGE_MAX));
    WebSocketContext::new(Role::Server, Some(config))
}

/// What a context says of a stream that is there at once.
fn told(stream: &[u8]) -> Vec<String> {
    let (mut context, mut told) = (context(), Vec::new());
    let mut socket = Socket(stream);
    while say(context.read(&mut socket), &mut told) {}
    told
}

/// The same stream as the gateway reads it.
fn told_in_pieces(stream: &[u8], cut: usize) -> Vec<String> {
    let (mut now, mut told) = (context(), Vec::new());
    let mut incoming = Incoming::new(BytesMut::new());
    for piece in stream.chunks(cut) {
        incoming.feed(piece);
        while say(now.read(&mut Socket(&mut incoming)), &mut told) {}
        if told.last().is_some_and(|last| is_end(last)) {
            break;
        }
        incoming.shrink();
        if incoming.is_between_after(4) {
            now = context();
        }
    }
    told
}

/// Whether more may be asked for.
fn say(read: Result<Message, Error>, told: &mut Vec<String>) -> bool {
    match read {
        Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return false,
        Ok(message) => told.push(format!("{message:?}")),
        Err(error) => told.push(format!("end: {error}")),
    }
    !told.last().is_some_and(|last| is_end(last))
}

fn is_end(told: &str) -> bool {
    told.starts_with("end") || told.starts_with("Close")
}

struct Socket<R>(R);

impl<R: Read> Read for Socket<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            some => Ok(some),
        }
    }
}

impl<R> Write for Socket<R> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const MESSAGE_MAX: usize = 256;
