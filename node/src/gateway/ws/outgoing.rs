//! A data frame on its way out: its header, then its payload, which stays where it is.

use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

/// What is left of the header, and how much of the payload.
#[derive(Default)]
pub struct Outgoing {
    header: [u8; HEADER_MAX],
    written: usize,
    length: usize,
    payload: usize,
}

impl Outgoing {
    /// A frame, and a message, with a payload of that length; not 0.
    pub fn new(payload: usize) -> Self {
        let header = FrameHeader {
            opcode: OpCode::Data(Data::Binary), // [MQTT-6.0.0-1]
            ..FrameHeader::default()
        };
        let mut frame = Outgoing {
            length: header.len(payload as u64),
            payload,
            ..Outgoing::default()
        };
        header
            .format(payload as u64, &mut &mut frame.header[..])
            .expect("the header of a server's frame fits");
        frame
    }

    pub fn header(&self) -> &[u8] {
        &self.header[self.written..self.length]
    }

    pub fn payload(&self) -> usize {
        self.payload
    }

    pub fn is_written(&self) -> bool {
        self.written == self.length && self.payload == 0
    }

    /// Of `written` bytes, how many were of the payload.
    pub fn advance(&mut self, written: usize) -> usize {
        let of_header = written.min(self.length - self.written);
        self.written += of_header;
        self.payload -= written - of_header;
        written - of_header
    }
}

/// Flags and a length of eight bytes; a server masks nothing.
const HEADER_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_those_of_rfc_6455() {
        for (payload, header) in [
            (1, &[0x82, 1][..]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (65_535, &[0x82, 126, 0xff, 0xff]),
            (65_536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            assert_eq!(Outgoing::new(payload).header(), header, "{payload}");
        }
    }

    #[test]
    fn a_frame_may_be_written_in_any_pieces() {
        let mut frame = Outgoing::new(300);
        assert_eq!(frame.advance(3), 0);
        assert_eq!(frame.header(), [44]);
        assert_eq!(frame.advance(101), 100);
        assert_eq!(
            (frame.header(), frame.payload(), frame.is_written()),
            (&[][..], 200, false)
        );
        assert_eq!(frame.advance(200), 200);
        assert!(frame.is_written());
        assert!(Outgoing::default().is_written());
    }
}
