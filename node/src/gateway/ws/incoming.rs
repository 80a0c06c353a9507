//! What the socket gave and the context has not taken, handed on so that the context never holds more than one frame.
//!
//! The context keeps its buffer, grown to the largest frame, and does not say whether it is empty. Here it is known: it is
//! between two messages whenever one ended and no byte beyond was handed on.

use std::io::{self, Cursor};

use bytes::{Buf, BytesMut};
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::OpCode;

use crate::gateway::socket::Stream;

pub struct Incoming {
    bytes: BytesMut,
    /// Of the frame that is being handed on.
    frame_left: u64,
    /// A fragment was handed on that is not the last one of its message.
    in_message: bool,
    frame_largest: u64,
    /// Of the message that is being handed on: the context keeps it until it is whole.
    handed_on: usize,
}

impl Incoming {
    /// `early` came with the handshake.
    pub fn new(early: BytesMut) -> Self {
        Incoming {
            bytes: early,
            frame_left: 0,
            in_message: false,
            frame_largest: 0,
            handed_on: 0,
        }
    }

    /// Takes what the socket has.
    ///
    /// # Errors
    /// Nothing more comes.
    pub fn fill(&mut self, stream: &mut Stream) -> io::Result<()> {
        stream.read(&mut self.bytes)
    }

    /// Takes `bytes` as if the socket had given them.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Lets go of memory that was handed on. What stays is at most a piece of a header.
    pub fn shrink(&mut self) {
        self.bytes = BytesMut::from(&self.bytes[..]);
    }

    /// Bytes that came and have not become a message.
    pub fn kept(&self) -> usize {
        self.bytes.len() + self.handed_on
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Whether the context holds nothing, having held a frame of more than `bytes`: that is asked once.
    pub fn is_between_after(&mut self, bytes: u64) -> bool {
        let between = self.frame_left == 0 && !self.in_message && self.frame_largest > bytes;
        if between {
            self.frame_largest = 0;
        }
        between
    }

    fn begin_frame(&mut self) -> bool {
        let mut cursor = Cursor::new(&self.bytes[..]);
        match FrameHeader::parse(&mut cursor) {
            Ok(None) => return false,
            Ok(Some((header, length))) => {
                self.frame_left = length.saturating_add(cursor.position());
                self.frame_largest = self.frame_largest.max(self.frame_left);
                if matches!(header.opcode, OpCode::Data(_)) {
                    self.in_message = !header.is_final;
                }
            }
            // The context says what is wrong with it.
            Err(_) => self.frame_left = u64::MAX,
        }
        true
    }
}

impl io::Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.bytes.is_empty() || self.frame_left == 0 && !self.begin_frame() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let whole = buffer.len().min(self.bytes.len());
        let taken = usize::try_from(self.frame_left).map_or(whole, |left| whole.min(left));
        self.bytes.copy_to_slice(&mut buffer[..taken]);
        self.frame_left -= taken as u64;
        self.handed_on = match self.frame_left == 0 && !self.in_message {
            true => 0,
            false => self.handed_on + taken,
        };
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn handed_on(incoming: &mut Incoming, bytes: &[u8]) -> Vec<usize> {
        incoming.bytes.extend_from_slice(bytes);
        let mut buffer = [0; 1024];
        std::iter::from_fn(|| incoming.read(&mut buffer).ok()).collect()
    }

    #[test]
    fn frames_are_handed_on_one_by_one() {
        let mut incoming = Incoming::new(BytesMut::new());
        let two = [0x82, 0x83, 1, 2, 3, 4, 9, 9, 9, 0x82, 0x80, 1, 2, 3, 4, 0x82];
        assert_eq!(handed_on(&mut incoming, &two), [9, 6]);
        assert_eq!(&incoming.bytes[..], [0x82], "a piece of a header stays");
        assert_eq!(handed_on(&mut incoming, &[0x82, 1, 2, 3, 4, 9]), [7]);
        assert_eq!(handed_on(&mut incoming, &[9]), [1]);
        assert!(incoming.is_between_after(7));
        assert!(!incoming.is_between_after(7), "once");
    }

    #[test]
    fn between_two_fragments_is_not_between_two_messages() {
        let mut incoming = Incoming::new(BytesMut::new());
        assert_eq!(handed_on(&mut incoming, &[0x02, 0x81, 1, 2, 3, 4, 9]), [7]);
        assert!(!incoming.is_between_after(0));
        // A ping among fragments ends no message.
        assert_eq!(handed_on(&mut incoming, &[0x89, 0x80, 1, 2, 3, 4]), [6]);
        assert!(!incoming.is_between_after(0));
        assert_eq!(handed_on(&mut incoming, &[0x80, 0x81, 1, 2, 3, 4, 9]), [7]);
        assert!(incoming.is_between_after(0));
    }

    #[test]
    fn a_length_of_all_ones_is_handed_on_to_be_refused() {
        let mut incoming = Incoming::new(BytesMut::new());
        let mut longest = vec![0x82, 0xff];
        longest.extend([0xff; 8]);
        longest.extend([1, 2, 3, 4, 9]);
        assert_eq!(handed_on(&mut incoming, &longest), [15]);
    }
}
