//! MQTT over TCP: its packets are the bytes of the stream.

use std::io;
use std::rc::Rc;
use std::time::Instant;

use bytes::{Buf, BytesMut};
use tokio::net::TcpStream;

use super::{Transport, read_socket, socket_ready};
use crate::protocol::codec::ReasonCode;
use crate::worker::Worker;

/// Serves a connection until it ends.
pub async fn serve(worker: Rc<Worker>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let config = worker.config();
    super::run(worker, config, stream, Instant::now()).await;
}

impl Transport for TcpStream {
    async fn ready(&self, read: bool, write: bool) -> bool {
        socket_ready(self, read, write).await
    }

    fn read(&mut self, received: &mut BytesMut) -> io::Result<()> {
        read_socket(self, received)
    }

    fn write(&mut self, sending: &mut BytesMut) -> io::Result<()> {
        while !sending.is_empty() {
            match self.try_write(sending) {
                Ok(written) => sending.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn has_unwritten(&self) -> bool {
        false
    }

    /// The end of the stream says it.
    async fn close(self, _reason: ReasonCode) {}
}
