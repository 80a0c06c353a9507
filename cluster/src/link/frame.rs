//! Frames: what stands on a stream between two nodes.
//!
//! ```text
//! frame   := length:u32 kind:u8 body        length counts kind and body, big endian, at most 64 MiB
//! stream  := Hello (Welcome | Refused)      the first one, of the dialler
//!          | Open … frames of that use      every other one
//! ```
//!
//! Sans-io: bytes come in, frames go out, and the other way round. The version stands in Hello and in the ALPN name
//! (`lontra/1`); numbers of kinds are never given out again (`readable-forever`).
//! Numbers inside are of variable length, payloads are the rest of the frame.

use bytes::{BufMut, Bytes, BytesMut};
use lontra_storage::encoding::{DecodeError, Reader, Writer};
use lontra_storage::ids::GroupId;

/// The longest frame, length field aside: 64 MiB, a log entry of the largest batch of messages and more.
pub const FRAME_BYTES_MAX: usize = 64 << 20;

/// What a frame says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Who dials, see [`super::handshake`].
    Hello(Bytes),
    Welcome(Bytes),
    Refused(Bytes),
    /// What the stream is for.
    Open(Open),
    Request {
        id: u64,
        service: Service,
        kind: u8,
        payload: Bytes,
    },
    Answer {
        id: u64,
        payload: Bytes,
    },
    /// The request was dropped without an answer.
    NoAnswer {
        id: u64,
    },
    /// One ephemeral frame; numbers grow within a process and have gaps only where a peer was forgotten.
    Forward {
        number: u64,
        payload: Bytes,
    },
    /// Every forwarded frame up to this number is in its outboxes.
    Acknowledged {
        number: u64,
    },
    /// The next append request, append result, snapshot chunk or pushed frame.
    Item(Bytes),
    /// Nothing follows, and nothing is missing.
    End(Bytes),
    /// The stream cannot be served.
    Failed(Failure),
}

/// The use of a stream, in its first frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Open {
    /// Requests one way, answers the other.
    Requests,
    /// Forwarded frames one way, acknowledgements the other.
    Forward,
    /// Append requests of one group one way, results the other.
    Append { group: GroupId },
    /// Chunks of a snapshot; `head` is the leader's vote and the snapshot's meta.
    Snapshot { group: GroupId, head: Bytes },
    /// The other side pushes.
    Push { kind: u8, hello: Bytes },
}

/// Who answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// [`PeerHandler::request`](super::PeerHandler::request).
    Node,
    /// A Raft group.
    Raft,
}

/// Why a stream is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// This node does not run the group (yet, or any more).
    UnknownGroup,
    /// The group stopped.
    Stopped,
    /// The request did not decode.
    Malformed,
}

/// Bytes that are no frame. The link is closed: what follows cannot be found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {bytes} bytes exceeds the limit of {FRAME_BYTES_MAX}")]
    TooLong { bytes: usize },
    #[error("frame kind {kind} is unknown")]
    UnknownKind { kind: u8 },
    #[error("a frame does not decode")]
    Malformed(#[from] DecodeError),
    #[error("a frame stands where it may not")]
    Unexpected,
    #[error("the stream ends within a frame")]
    Truncated,
}

impl Frame {
    /// Writes head fields; the payload, if any, is returned and follows them.
    fn write_head(&self, writer: &mut Writer) -> Bytes {
        match self {
            Frame::Hello(body) => with_payload(writer.u8(HELLO), body),
            Frame::Welcome(body) => with_payload(writer.u8(WELCOME), body),
            Frame::Refused(body) => with_payload(writer.u8(REFUSED), body),
            Frame::Open(open) => open.write_head(writer.u8(OPEN)),
            Frame::Request {
                id,
                service,
                kind,
                payload,
            } => with_payload(writer.u8(REQUEST).var(*id).u8(service.number()).u8(*kind), payload),
            Frame::Answer { id, payload } => with_payload(writer.u8(ANSWER).var(*id), payload),
            Frame::NoAnswer { id } => without_payload(writer.u8(NO_ANSWER).var(*id)),
            Frame::Forward { number, payload } => with_payload(writer.u8(FORWARD).var(*number), payload),
            Frame::Acknowledged { number } => without_payload(writer.u8(ACKNOWLEDGED).var(*number)),
            Frame::Item(payload) => with_payload(writer.u8(ITEM), payload),
            Frame::End(payload) => with_payload(writer.u8(END), payload),
            Frame::Failed(failure) => without_payload(writer.u8(FAILED).u8(failure.number())),
        }
    }

    /// # Errors
    /// The bytes (without their length) are no frame of this version.
    pub fn decode(bytes: &Bytes) -> Result<Frame, FrameError> {
        let mut reader = Reader::new("frame", bytes);
        let frame = match reader.u8()? {
            HELLO => Frame::Hello(reader.rest()),
            WELCOME => Frame::Welcome(reader.rest()),
            REFUSED => Frame::Refused(reader.rest()),
            OPEN => Frame::Open(Open::read(&mut reader)?),
            REQUEST => Frame::Request {
                id: reader.var()?,
                service: Service::read(&mut reader)?,
                kind: reader.u8()?,
                payload: reader.rest(),
            },
            ANSWER => Frame::Answer {
                id: reader.var()?,
                payload: reader.rest(),
            },
            NO_ANSWER => Frame::NoAnswer { id: reader.var()? },
            FORWARD => Frame::Forward {
                number: reader.var()?,
                payload: reader.rest(),
            },
            ACKNOWLEDGED => Frame::Acknowledged { number: reader.var()? },
            ITEM => Frame::Item(reader.rest()),
            END => Frame::End(reader.rest()),
            FAILED => Frame::Failed(Failure::read(&mut reader)?),
            kind => return Err(FrameError::UnknownKind { kind }),
        };
        reader.end()?;
        Ok(frame)
    }
}

fn with_payload(_head: &mut Writer, payload: &Bytes) -> Bytes {
    payload.clone()
}

fn without_payload(_head: &mut Writer) -> Bytes {
    Bytes::new()
}

impl Open {
    fn write_head(&self, writer: &mut Writer) -> Bytes {
        match self {
            Open::Requests => without_payload(writer.u8(OPEN_REQUESTS)),
            Open::Forward => without_payload(writer.u8(OPEN_FORWARD)),
            Open::Append { group } => without_payload(writer.u8(OPEN_APPEND).var(group.0.into())),
            Open::Snapshot { group, head } => with_payload(writer.u8(OPEN_SNAPSHOT).var(group.0.into()), head),
            Open::Push { kind, hello } => with_payload(writer.u8(OPEN_PUSH).u8(*kind), hello),
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Open, DecodeError> {
        Ok(match reader.u8()? {
            OPEN_REQUESTS => Open::Requests,
            OPEN_FORWARD => Open::Forward,
            OPEN_APPEND => Open::Append {
                group: GroupId(reader.var32()?),
            },
            OPEN_SNAPSHOT => Open::Snapshot {
                group: GroupId(reader.var32()?),
                head: reader.rest(),
            },
            OPEN_PUSH => Open::Push {
                kind: reader.u8()?,
                hello: reader.rest(),
            },
            _ => return Err(reader.error()),
        })
    }
}

impl Service {
    fn number(self) -> u8 {
        match self {
            Service::Node => 0,
            Service::Raft => 1,
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Service, DecodeError> {
        match reader.u8()? {
            0 => Ok(Service::Node),
            1 => Ok(Service::Raft),
            _ => Err(reader.error()),
        }
    }
}

impl Failure {
    pub(super) fn number(self) -> u8 {
        match self {
            Failure::UnknownGroup => 1,
            Failure::Stopped => 2,
            Failure::Malformed => 3,
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Failure, DecodeError> {
        match reader.u8()? {
            1 => Ok(Failure::UnknownGroup),
            2 => Ok(Failure::Stopped),
            3 => Ok(Failure::Malformed),
            _ => Err(reader.error()),
        }
    }
}

/// Frames on their way into one write: small ones share a buffer, large payloads are not copied.
#[derive(Default)]
pub struct Batch {
    full: Vec<Bytes>,
    tail: BytesMut,
    bytes: usize,
    frames: usize,
}

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a frame. One beyond [`FRAME_BYTES_MAX`] is the caller's mistake: the peer closes the link on it.
    pub fn push(&mut self, frame: &Frame) {
        let mut head = Writer::with_capacity(HEAD_BYTES);
        let payload = frame.write_head(&mut head);
        let head = head.finish();
        let length = head.len() + payload.len();
        debug_assert!(length <= FRAME_BYTES_MAX, "frame of {length} bytes");
        self.tail.put_u32(length as u32);
        self.tail.put_slice(&head);
        self.push_bytes(&payload);
        self.bytes += 4 + length;
        self.frames += 1;
    }

    /// Appends an Item whose payload is `parts` one after the other; large parts are not copied.
    pub fn push_item(&mut self, parts: &[Bytes]) {
        let length = 1 + parts.iter().map(Bytes::len).sum::<usize>();
        debug_assert!(length <= FRAME_BYTES_MAX, "frame of {length} bytes");
        self.tail.put_u32(length as u32);
        self.tail.put_u8(ITEM);
        for part in parts {
            self.push_bytes(part);
        }
        self.bytes += 4 + length;
        self.frames += 1;
    }

    fn push_bytes(&mut self, bytes: &Bytes) {
        if bytes.len() <= COPY_BYTES_MAX {
            self.tail.put_slice(bytes);
        } else {
            self.full.push(self.tail.split().freeze());
            self.full.push(bytes.clone());
        }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn frames(&self) -> usize {
        self.frames
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The bytes in order; the batch is empty afterwards.
    pub fn take(&mut self) -> Vec<Bytes> {
        if !self.tail.is_empty() {
            self.full.push(self.tail.split().freeze());
        }
        self.bytes = 0;
        self.frames = 0;
        std::mem::take(&mut self.full)
    }
}

/// Cuts a stream of bytes into frames. Small frames share memory with their neighbours: copy what outlives them.
#[derive(Default)]
pub struct FrameBuffer {
    buffer: BytesMut,
}

impl FrameBuffer {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete frame; `None` wants more bytes.
    ///
    /// # Errors
    /// What came is no frame. The buffer is of no use afterwards.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(&[a, b, c, d]) = self.buffer.first_chunk::<4>() else {
            return Ok(None);
        };
        let bytes = u32::from_be_bytes([a, b, c, d]) as usize;
        if bytes > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong { bytes });
        }
        if self.buffer.len() < 4 + bytes {
            return Ok(None);
        }
        let frame = self.buffer.split_to(4 + bytes).freeze();
        Frame::decode(&frame.slice(4..)).map(Some)
    }

    /// The stream may end here.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

/// Payloads up to here are cheaper to copy than to write apart.
const COPY_BYTES_MAX: usize = 4096;
/// Kind, two numbers of ten bytes and two more bytes.
const HEAD_BYTES: usize = 24;

const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const REFUSED: u8 = 3;
const OPEN: u8 = 4;
const REQUEST: u8 = 5;
const ANSWER: u8 = 6;
const NO_ANSWER: u8 = 7;
const FORWARD: u8 = 8;
const ACKNOWLEDGED: u8 = 9;
const ITEM: u8 = 10;
const END: u8 = 11;
const FAILED: u8 = 12;

const OPEN_REQUESTS: u8 = 1;
const OPEN_FORWARD: u8 = 2;
const OPEN_APPEND: u8 = 3;
const OPEN_SNAPSHOT: u8 = 4;
const OPEN_PUSH: u8 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<(Frame, &'static str)> {
        let abc = Bytes::from_static(b"abc");
        vec![
            (Frame::Hello(abc.clone()), "00000004 01 616263"),
            (Frame::Welcome(abc.clone()), "00000004 02 616263"),
            (Frame::Refused(abc.clone()), "00000004 03 616263"),
            (Frame::Open(Open::Requests), "00000002 04 01"),
            (Frame::Open(Open::Forward), "00000002 04 02"),
            (Frame::Open(Open::Append { group: GroupId(300) }), "00000004 04 03 ac02"),
            (
                Frame::Open(Open::Snapshot {
                    group: GroupId(1),
                    head: abc.clone(),
                }),
                "00000006 04 04 01 616263",
            ),
            (
                Frame::Open(Open::Push {
                    kind: 7,
                    hello: abc.clone(),
                }),
                "00000006 04 05 07 616263",
            ),
            (
                Frame::Request {
                    id: 300,
                    service: Service::Node,
                    kind: 9,
                    payload: abc.clone(),
                },
                "00000008 05 ac02 00 09 616263",
            ),
            (
                Frame::Request {
                    id: 1,
                    service: Service::Raft,
                    kind: 2,
                    payload: Bytes::new(),
                },
                "00000004 05 01 01 02",
            ),
            (
                Frame::Answer {
                    id: 300,
                    payload: abc.clone(),
                },
                "00000006 06 ac02 616263",
            ),
            (Frame::NoAnswer { id: 300 }, "00000003 07 ac02"),
            (
                Frame::Forward {
                    number: 300,
                    payload: abc.clone(),
                },
                "00000006 08 ac02 616263",
            ),
            (
                Frame::Acknowledged { number: u64::MAX },
                "0000000b 09 ffffffffffffffffff01",
            ),
            (Frame::Item(abc.clone()), "00000004 0a 616263"),
            (Frame::End(Bytes::new()), "00000001 0b"),
            (Frame::Failed(Failure::UnknownGroup), "00000002 0c 01"),
            (Frame::Failed(Failure::Stopped), "00000002 0c 02"),
            (Frame::Failed(Failure::Malformed), "00000002 0c 03"),
        ]
    }

    fn hex(chunks: &[Bytes]) -> String {
        chunks
            .iter()
            .flat_map(|chunk| chunk.iter())
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// Golden bytes: a change here parts nodes of two releases (`readable-forever`).
    #[test]
    fn golden_frames_stay() {
        for (frame, expected) in samples() {
            let mut batch = Batch::new();
            batch.push(&frame);
            assert_eq!(batch.bytes(), expected.replace(' ', "").len() / 2);
            assert_eq!(hex(&batch.take()), expected.replace(' ', ""), "{frame:?}");
        }
    }

    #[test]
    fn frames_survive_any_cut_of_the_stream() {
        let mut batch = Batch::new();
        let mut expected = Vec::new();
        for (frame, _) in samples() {
            batch.push(&frame);
            expected.push(frame);
        }
        let large = Frame::Item(Bytes::from(vec![5; COPY_BYTES_MAX + 1]));
        batch.push(&large);
        expected.push(large);
        assert_eq!(batch.frames(), expected.len());
        let bytes: Vec<u8> = batch.take().concat();
        assert!(batch.is_empty());
        for step in [1, 2, 3, 7, 64, 4096, bytes.len()] {
            let mut buffer = FrameBuffer::new();
            let mut found = Vec::new();
            for part in bytes.chunks(step) {
                buffer.feed(part);
                while let Some(frame) = buffer.next_frame().unwrap() {
                    found.push(frame);
                }
            }
            assert_eq!(found, expected, "cut every {step} bytes");
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn an_item_of_parts_is_the_item_of_their_sum() {
        let parts = [
            Bytes::from(vec![1; 3]),
            Bytes::from(vec![2; COPY_BYTES_MAX + 1]),
            Bytes::from(vec![3; 5]),
        ];
        let mut batch = Batch::new();
        batch.push_item(&parts);
        let mut whole = Batch::new();
        whole.push(&Frame::Item(Bytes::from(parts.concat())));
        assert_eq!((batch.bytes(), batch.frames()), (whole.bytes(), whole.frames()));
        assert_eq!(batch.take().concat(), whole.take().concat());
    }

    #[test]
    fn a_frame_beyond_the_limit_is_refused_by_its_length() {
        let mut buffer = FrameBuffer::new();
        buffer.feed(&(FRAME_BYTES_MAX as u32 + 1).to_be_bytes());
        assert_eq!(
            buffer.next_frame(),
            Err(FrameError::TooLong {
                bytes: FRAME_BYTES_MAX + 1
            })
        );
    }

    #[test]
    fn arbitrary_bytes_never_panic() {
        // xorshift: the same bytes in every run.
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..20_000 {
            let length = random() as usize % 40;
            let mut bytes: Vec<u8> = (0..length).map(|_| random() as u8).collect();
            if let Some(kind) = bytes.first_mut() {
                *kind %= 14;
            }
            let bytes = Bytes::from(bytes);
            let _ = Frame::decode(&bytes);
            let mut buffer = FrameBuffer::new();
            buffer.feed(&(length as u32).to_be_bytes());
            buffer.feed(&bytes);
            let _ = buffer.next_frame();
        }
    }
}
