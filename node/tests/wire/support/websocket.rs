//! A raw WebSocket client: frames as the test wants them, nothing done behind its back; and a relay that puts the bytes of
//! a [`super::client::Client`] into frames.

use super::SOON;
use super::codec::{self, Packet, Version};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

/// First bytes of frames: the last or only one of its message.
pub const CONTINUATION: u8 = 0x80;
pub const TEXT: u8 = 0x81;
pub const BINARY: u8 = 0x82;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8a;
/// Without this bit more fragments follow.
pub const FIN: u8 = 0x80;

/// A frame of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub first: u8,
    pub payload: Vec<u8>,
}

pub struct WebSocket {
    stream: TcpStream,
    buffer: BytesMut,
}

/// The answer to a handshake: its status and its head, in lower case.
pub struct Answer {
    pub status: u16,
    pub head: String,
}

impl WebSocket {
    /// Connects at `/mqtt` with the subprotocol `mqtt`.
    pub async fn open(address: &str) -> WebSocket {
        let stream = TcpStream::connect(address).await.expect("a connection");
        WebSocket::open_over(stream).await
    }

    /// As [`WebSocket::open`], by a socket that takes few bytes that nobody reads.
    pub async fn open_with_small_buffer(address: &str) -> WebSocket {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("SO_RCVBUF");
        let stream = socket.connect(address.parse().expect("an address")).await;
        WebSocket::open_over(stream.expect("a connection")).await
    }

    async fn open_over(stream: TcpStream) -> WebSocket {
        let (socket, answer) = WebSocket::ask_over(stream, &request(&[])).await;
        assert_eq!(answer.status, 101, "{}", answer.head);
        assert!(
            answer.head.contains("sec-websocket-protocol: mqtt\r\n"),
            "{}",
            answer.head
        );
        socket
    }

    /// Sends a request, and returns what was answered; the connection is a WebSocket if the status is 101.
    pub async fn ask(address: &str, request: &str) -> (WebSocket, Answer) {
        let stream = TcpStream::connect(address).await.expect("a connection");
        WebSocket::ask_over(stream, request).await
    }

    async fn ask_over(stream: TcpStream, request: &str) -> (WebSocket, Answer) {
        stream.set_nodelay(true).ok();
        let mut socket = WebSocket {
            stream,
            buffer: BytesMut::new(),
        };
        socket.send(request.as_bytes()).await;
        let head = loop {
            if let Some(end) = socket.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break socket.buffer.split_to(end + 4);
            }
            assert!(socket.fill().await, "closed without an answer to {request}");
        };
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("not HTTP: {head}"));
        (socket, Answer { status, head })
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        let sent = timeout(SOON, self.stream.write_all(bytes)).await;
        sent.expect("taken in time").expect("an open connection");
    }

    /// As [`WebSocket::send`], to a server that may have closed already.
    pub async fn try_send(&mut self, bytes: &[u8]) -> bool {
        timeout(SOON, self.stream.write_all(bytes))
            .await
            .is_ok_and(|sent| sent.is_ok())
    }

    /// MQTT packets, all in one frame.
    pub async fn send_packets(&mut self, packets: &[Vec<u8>]) {
        self.send(&frame(BINARY, &packets.concat())).await;
    }

    /// The next frame; `None` at the end of the stream.
    pub async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = take_frame(&mut self.buffer) {
                return Some(frame);
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// The next frame, which holds one packet.
    pub async fn packet(&mut self, version: Version) -> Packet {
        let frame = self.frame().await.expect("a frame");
        let packets = packets(version, &frame);
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.into_iter().next().expect("one")
    }

    /// The Close Code that comes next, and then the end of the stream once it was answered.
    pub async fn closed(&mut self) -> u16 {
        let close = self.frame().await.expect("a frame");
        let code = close_code(&close);
        self.try_send(&frame(CLOSE, &close.payload)).await;
        assert_eq!(self.frame().await, None, "after Close");
        code
    }

    /// Whether more came; not at the end of the stream.
    async fn fill(&mut self) -> bool {
        let read = timeout(SOON, self.stream.read_buf(&mut self.buffer)).await;
        read.expect("an answer in time").is_ok_and(|read| read > 0)
    }
}

/// GET /mqtt with all that a handshake needs, and headers beside or instead; an empty value leaves a header out.
pub fn request(changes: &[(&str, &str)]) -> String {
    let mut headers = vec![
        ("Host", "localhost"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Protocol", "mqtt"),
    ];
    for change in changes {
        headers.retain(|header| header.0 != change.0);
        headers.push(*change);
    }
    let lines = headers.iter().filter(|header| !header.1.is_empty());
    let lines: String = lines.map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("GET /mqtt HTTP/1.1\r\n{lines}\r\n")
}

/// A masked frame.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x5a, 0x01, 0xfe, 0x77];
    let mut frame = header(first, payload.len() as u64, 0x80);
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// A frame as only servers may send it.
pub fn unmasked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(first, payload.len() as u64, 0);
    frame.extend(payload);
    frame
}

/// The beginning of a frame, up to where its mask or payload follows.
pub fn header(first: u8, length: u64, masked: u8) -> Vec<u8> {
    let mut header = vec![first];
    match length {
        0..=125 => header.push(masked | length as u8),
        126..=0xffff => {
            header.push(masked | 126);
            header.extend((length as u16).to_be_bytes());
        }
        _ => {
            header.push(masked | 127);
            header.extend(length.to_be_bytes());
        }
    }
    header
}

/// The packets of a binary frame: ours hold whole ones.
pub fn packets(version: Version, frame: &Frame) -> Vec<Packet> {
    assert_eq!(frame.first, BINARY, "{frame:?}");
    let mut bytes = BytesMut::from(&frame.payload[..]);
    let mut packets = Vec::new();
    while let Some(packet) = codec::decode(version, &mut bytes).expect("packets") {
        packets.push(packet);
    }
    assert!(bytes.is_empty(), "a piece of a packet: {bytes:?}");
    packets
}

/// The code of a Close frame.
pub fn close_code(frame: &Frame) -> u16 {
    assert_eq!(frame.first, CLOSE, "{frame:?}");
    let code = frame.payload.first_chunk().expect("a code");
    u16::from_be_bytes(*code)
}

fn take_frame(buffer: &mut BytesMut) -> Option<Frame> {
    let (first, short) = (*buffer.first()?, *buffer.get(1)?);
    assert_eq!(first & 0x70, 0, "reserved bits");
    assert_eq!(short & 0x80, 0, "a server does not mask");
    let (header, length) = match short {
        126 => (4, u64::from(u16::from_be_bytes(*buffer.get(2..)?.first_chunk()?))),
        127 => (10, u64::from_be_bytes(*buffer.get(2..)?.first_chunk()?)),
        short => (2, u64::from(short)),
    };
    let length = usize::try_from(length).expect("a length");
    if buffer.len() < header + length {
        return None;
    }
    buffer.advance(header);
    let payload = buffer.split_to(length).to_vec();
    Some(Frame { first, payload })
}

/// An address where a [`super::client::Client`] connects to reach `address` by WebSocket; its bytes travel in frames of at
/// most `frame_max` bytes, ours are given to it as they come. Lives as long as the test's runtime.
pub async fn relay(address: &str, frame_max: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let relay = listener.local_addr().expect("an address").to_string();
    let address = address.to_owned();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(relay_one(client, address.clone(), frame_max));
        }
    });
    relay
}

async fn relay_one(mut client: TcpStream, address: String, frame_max: usize) {
    client.set_nodelay(true).ok();
    let Ok(stream) = TcpStream::connect(&address).await else {
        return;
    };
    let mut server = WebSocket::open_over(stream).await;
    let mut bytes = BytesMut::new();
    loop {
        tokio::select! {
            // Safe to cancel: both keep what was read in their buffers.
            read = client.read_buf(&mut bytes) => {
                if !read.is_ok_and(|read| read > 0) {
                    return;
                }
                let taken = bytes.split();
                let frames: Vec<u8> = taken.chunks(frame_max).flat_map(|part| frame(BINARY, part)).collect();
                if server.stream.write_all(&frames).await.is_err() {
                    return;
                }
            }
            read = server.stream.read_buf(&mut server.buffer) => {
                if !read.is_ok_and(|read| read > 0) {
                    return;
                }
                while let Some(received) = take_frame(&mut server.buffer) {
                    match received.first {
                        BINARY if client.write_all(&received.payload).await.is_ok() => {}
                        CLOSE => {
                            server.try_send(&frame(CLOSE, &received.payload)).await;
                            return;
                        }
                        _ => return,
                    }
                }
            }
        }
    }
}
