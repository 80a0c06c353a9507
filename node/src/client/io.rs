//! Reads, writes and waits for one [`Connection`]. Decides nothing.

use std::io;
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::{sleep_until, timeout};

use super::connection::{Connection, ConnectionEnd, Event, RequestError};
use super::transport::Transport;
use crate::protocol::codec::{
    ConnAck, Disconnect, EncodeError, Publish, PublishFields, SubscribeFilter, UserProperties,
};

/// Why a connection ended that should have gone on.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{peer}: {end}")]
    Ended {
        peer: String,
        end: ConnectionEnd,
        is_v5: bool,
    },
    #[error("{peer} closed the connection without saying why{}", hint(*is_v5))]
    Closed { peer: String, is_v5: bool },
    #[error("connection to {peer} broke: {source}")]
    Broken { peer: String, source: io::Error },
}

/// A connection and what it runs over.
pub struct Client {
    connection: Connection,
    reader: ReadHalf<Box<dyn Transport>>,
    writer: WriteHalf<Box<dyn Transport>>,
    received: BytesMut,
    sending: Bytes,
    /// For messages.
    peer: String,
    is_v5: bool,
}

impl Client {
    /// Sends CONNECT and waits for CONNACK.
    ///
    /// # Errors
    /// Refused, broken, or no answer in time.
    pub async fn open(
        transport: Box<dyn Transport>,
        connection: Connection,
        peer: String,
        is_v5: bool,
    ) -> Result<(Client, ConnAck), ClientError> {
        let (reader, writer) = tokio::io::split(transport);
        let mut client = Client {
            connection,
            reader,
            writer,
            received: BytesMut::new(),
            sending: Bytes::new(),
            peer,
            is_v5,
        };
        loop {
            if let Some(Event::Connected(connack)) = client.turn().await? {
                return Ok((client, *connack));
            }
        }
    }

    /// Waits for an event, or `None`: everything has been written.
    ///
    /// # Errors
    /// The connection is over.
    ///
    /// # Cancel safety
    /// Nothing is lost: bytes read and written stay accounted for.
    pub async fn turn(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            match self.connection.next_event(&mut self.received) {
                Ok(None) => {}
                Ok(event) => return Ok(event),
                Err(end) => return Err(self.ended(end).await),
            }
            if self.sending.is_empty() {
                self.sending = self.connection.take_output(Instant::now());
            }
            let deadline = self.connection.next_deadline().unwrap_or_else(|| Instant::now() + IDLE);
            self.received.reserve(READ_BYTES);
            tokio::select! {
                read = self.reader.read_buf(&mut self.received) => match read {
                    Ok(0) => return Err(ClientError::Closed { peer: self.peer.clone(), is_v5: self.is_v5 }),
                    Ok(_) => {}
                    Err(error) => return Err(self.broken(error)),
                },
                written = self.writer.write(&self.sending), if !self.sending.is_empty() => {
                    let written = written.map_err(|error| self.broken(error))?;
                    self.sending.advance(written);
                    if self.is_written() {
                        return Ok(None);
                    }
                }
                () = sleep_until(deadline.into()) => {
                    if let Err(end) = self.connection.timed_out(Instant::now()) {
                        return Err(self.ended(end).await);
                    }
                }
            }
        }
    }

    /// Whether a PUBLISH may be handed over now: within the server's Receive Maximum, and little waits to be written.
    pub fn has_room(&self) -> bool {
        self.connection.has_room() && self.sending.len() + self.connection.output_bytes() < UNSENT_BYTES_MAX
    }

    /// Whether everything was written and answered.
    pub fn is_idle(&self) -> bool {
        self.is_written() && self.connection.is_answered()
    }

    /// Whether nothing is open in either direction but messages that were not answered on purpose.
    pub fn is_settled(&self) -> bool {
        self.is_idle() && !self.connection.awaits_release()
    }

    /// See [`Connection::publish`].
    ///
    /// # Errors
    /// Nothing was sent.
    pub fn publish(&mut self, fields: &PublishFields<'_>) -> Result<Option<NonZeroU16>, RequestError> {
        self.connection.publish(fields)
    }

    /// See [`Connection::subscribe`].
    ///
    /// # Errors
    /// Nothing was sent.
    pub fn subscribe(
        &mut self,
        filters: Vec<SubscribeFilter>,
        subscription_identifier: Option<u32>,
        user_properties: UserProperties,
    ) -> Result<NonZeroU16, RequestError> {
        self.connection
            .subscribe(filters, subscription_identifier, user_properties)
    }

    /// See [`Connection::unsubscribe`].
    ///
    /// # Errors
    /// Nothing was sent.
    pub fn unsubscribe(
        &mut self,
        filters: Vec<String>,
        user_properties: UserProperties,
    ) -> Result<NonZeroU16, RequestError> {
        self.connection.unsubscribe(filters, user_properties)
    }

    /// See [`Connection::answer`].
    pub fn answer(&mut self, message: &Publish) {
        self.connection.answer(message);
    }

    /// Says goodbye and closes the connection so that the server reads all of it.
    ///
    /// # Errors
    /// The DISCONNECT cannot be expressed; the connection is closed without.
    pub async fn close(mut self, disconnect: &Disconnect) -> Result<(), EncodeError> {
        let said = self.connection.disconnect(disconnect);
        self.say_last_words().await;
        said
    }

    fn is_written(&self) -> bool {
        self.sending.is_empty() && self.connection.output_bytes() == 0
    }

    fn broken(&self, source: io::Error) -> ClientError {
        ClientError::Broken {
            peer: self.peer.clone(),
            source,
        }
    }

    async fn ended(&mut self, end: ConnectionEnd) -> ClientError {
        self.say_last_words().await;
        ClientError::Ended {
            peer: self.peer.clone(),
            end,
            is_v5: self.is_v5,
        }
    }

    /// Writes what is left and closes. Reads to the end before that: a socket closed over unread bytes is reset, and a
    /// reset can overtake what was written.
    async fn say_last_words(&mut self) {
        let closing = async {
            let rest = self.connection.take_output(Instant::now());
            self.writer.write_all(&self.sending).await?;
            self.writer.write_all(&rest).await?;
            self.writer.shutdown().await?;
            loop {
                self.received.clear();
                self.received.reserve(READ_BYTES);
                if self.reader.read_buf(&mut self.received).await? == 0 {
                    return io::Result::Ok(());
                }
            }
        };
        // A server that has gone away hears nothing more, whatever is tried.
        let _ = timeout(CLOSE_PATIENCE, closing).await;
        self.sending.clear();
    }
}

fn hint(is_v5: bool) -> &'static str {
    match is_v5 {
        true => "",
        false => " (only MQTT 5 can say it: try -V mqttv5)",
    }
}

const READ_BYTES: usize = 16 * 1024;
/// One full write to a socket with default buffers.
const UNSENT_BYTES_MAX: usize = 64 * 1024;
/// A server closes at once after DISCONNECT; a dead one must not hold up the end of a command.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
/// Only to have a deadline where there is none.
const IDLE: Duration = Duration::from_secs(3600);
