//! MQTT over TCP, TLS and Unix sockets: its packets are the bytes of the stream.

use std::io;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};

use super::Transport;
use super::socket::Stream;
use crate::protocol::codec::ReasonCode;

impl Transport for Stream {
    fn poll_ready(&self, context: &mut Context<'_>, read: bool, write: bool) -> Poll<bool> {
        Stream::poll_ready(self, context, read, write)
    }

    fn read(&mut self, received: &mut BytesMut) -> io::Result<()> {
        Stream::read(self, received)
    }

    fn write(&mut self, sending: &mut BytesMut) -> io::Result<()> {
        self.flush()?;
        while !sending.is_empty() {
            match self.try_write(sending) {
                Ok(written) => sending.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn note_drained(&self) {
        Stream::note_drained(self);
    }

    fn kept(&self) -> usize {
        0
    }

    fn has_unwritten(&self) -> bool {
        Stream::has_unwritten(self)
    }

    fn set_abrupt(&self, is_abrupt: bool) {
        Stream::set_abrupt(self, is_abrupt);
    }

    /// The end of the stream says it.
    async fn close(self, _reason: ReasonCode) {
        Stream::close(self);
    }
}
