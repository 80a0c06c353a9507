//! One TLS connection, sans-io: rustls's unbuffered server, and the bytes of a record that is not whole yet.
//!
//! ```text
//!   bytes of the socket ─▶ received ─▶ plaintext, appended       outgoing: what is to be written in any case
//!   plaintext ──────────▶ encrypt ──▶ outgoing                              (handshake, key updates, alerts)
//! ```
//!
//! Invariants
//! - an idle connection holds no buffer: `incoming` has memory only while a record, or a message of the handshake, is
//!   not whole.
//! - `bounded`: `incoming` has at most INCOMING_MAX bytes.

use std::sync::Arc;

use bytes::BytesMut;
use rustls::pki_types::CertificateDer;
use rustls::server::{ServerConfig, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{Error, HandshakeKind};

pub struct Session {
    connection: UnbufferedServerConnection,
    /// Received, and not yet whole; rustls has marks in it.
    incoming: Vec<u8>,
    is_handshaking: bool,
    /// The client has closed its half.
    has_ended: bool,
    /// What came was refused: rustls is not asked again, since it would look for bytes that are gone.
    is_broken: bool,
}

impl Session {
    /// # Errors
    /// The configuration cannot be used.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, Error> {
        Ok(Session {
            connection: UnbufferedServerConnection::new(config)?,
            incoming: Vec::new(),
            is_handshaking: true,
            has_ended: false,
            is_broken: false,
        })
    }

    /// Takes what came. Appends to `plaintext` what it holds, to `outgoing` what must be answered.
    ///
    /// # Errors
    /// The client broke the protocol, or is refused; `outgoing` has the alert that tells it.
    pub fn received(
        &mut self,
        bytes: &mut [u8],
        plaintext: &mut BytesMut,
        outgoing: &mut BytesMut,
    ) -> Result<(), Error> {
        if self.is_broken {
            return Err(Error::General("the connection is broken".to_owned()));
        }
        if self.incoming.is_empty() {
            let rest = self.process(bytes, plaintext, outgoing)?;
            self.incoming.extend_from_slice(&bytes[rest..]);
        } else {
            let mut joined = std::mem::take(&mut self.incoming);
            joined.extend_from_slice(bytes);
            let rest = self.process(&mut joined, plaintext, outgoing)?;
            if rest < joined.len() {
                joined.drain(..rest);
                self.incoming = joined;
            }
        }
        if self.incoming.len() > INCOMING_MAX {
            return Err(Error::General("a record is larger than any may be".to_owned()));
        }
        Ok(())
    }

    /// Lets rustls take what it can of `bytes`; how many it has taken.
    fn process(&mut self, bytes: &mut [u8], plaintext: &mut BytesMut, outgoing: &mut BytesMut) -> Result<usize, Error> {
        let mut taken = 0;
        loop {
            let UnbufferedStatus { mut discard, state, .. } = self.connection.process_tls_records(&mut bytes[taken..]);
            let is_done = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        plaintext.extend_from_slice(record.payload);
                    }
                    false
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    append(outgoing, FIRST_TRY, |buffer| {
                        data.encode(buffer).map_err(required_to_encode)
                    })?;
                    false
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    false
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.has_ended = true;
                    false
                }
                Ok(ConnectionState::WriteTraffic(_)) => {
                    self.is_handshaking = false;
                    true
                }
                // No early data is taken: rustls is told so.
                Ok(_) => true,
                Err(error) => {
                    self.is_broken = true;
                    self.alert(&mut bytes[taken + discard..], outgoing);
                    return Err(error);
                }
            };
            taken += discard;
            if is_done {
                return Ok(taken);
            }
        }
    }

    /// What rustls has to say after an error; not a step further, where it would meet the same bytes again.
    fn alert(&mut self, rest: &mut [u8], outgoing: &mut BytesMut) {
        while self.connection.wants_write() {
            match self.connection.process_tls_records(rest).state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => while traffic.next_record().is_some() {},
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    let _ = append(outgoing, FIRST_TRY, |buffer| {
                        data.encode(buffer).map_err(required_to_encode)
                    });
                }
                _ => return,
            }
        }
    }

    /// Appends records with all of `plaintext` to `outgoing`.
    ///
    /// # Errors
    /// The connection can send nothing more.
    pub fn encrypt(&mut self, plaintext: &[u8], outgoing: &mut BytesMut) -> Result<(), Error> {
        // Each record of 16 KiB has 40 bytes of its own at most.
        let fitting = plaintext.len() + plaintext.len() / 256 + FIRST_TRY;
        self.write(outgoing, fitting, |traffic, buffer| traffic.encrypt(plaintext, buffer))
    }

    /// Appends the alert that tells the end of the stream to `outgoing`.
    ///
    /// # Errors
    /// The connection can send nothing more.
    pub fn close(&mut self, outgoing: &mut BytesMut) -> Result<(), Error> {
        self.write(outgoing, FIRST_TRY, |traffic, buffer| {
            traffic.queue_close_notify(buffer)
        })
    }

    fn write(
        &mut self,
        outgoing: &mut BytesMut,
        fitting: usize,
        mut into: impl FnMut(&mut WriteTraffic<'_>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<(), Error> {
        if self.is_broken {
            return Err(Error::General("the connection is broken".to_owned()));
        }
        loop {
            // Not an empty slice: rustls has marks in what is not whole.
            let status = self.connection.process_tls_records(&mut self.incoming);
            debug_assert_eq!(status.discard, 0, "what can be taken was taken when it came");
            match status.state? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    return append(outgoing, fitting, |buffer| {
                        into(&mut traffic, buffer).map_err(required_to_encrypt)
                    });
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    append(outgoing, FIRST_TRY, |buffer| {
                        data.encode(buffer).map_err(required_to_encode)
                    })?;
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => self.has_ended = true,
                _ => return Err(Error::HandshakeNotComplete),
            }
        }
    }

    pub fn is_handshaking(&self) -> bool {
        self.is_handshaking
    }

    /// Nothing more comes.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Whether the client continued an earlier session.
    pub fn is_resumed(&self) -> bool {
        self.connection.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// What the client has shown, its own certificate first.
    pub fn client_chain(&self) -> Option<&[CertificateDer<'static>]> {
        self.connection.peer_certificates()
    }
}

type WriteTraffic<'a> = rustls::unbuffered::WriteTraffic<'a, rustls::server::ServerConnectionData>;

/// Appends what `write` writes to a buffer of `required` bytes: `Err(Some(n))` asks for n bytes.
fn append(
    outgoing: &mut BytesMut,
    mut required: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
) -> Result<(), Error> {
    let length = outgoing.len();
    loop {
        outgoing.resize(length + required, 0);
        match write(&mut outgoing[length..]) {
            Ok(written) => {
                outgoing.truncate(length + written);
                return Ok(());
            }
            Err(Some(more)) if more > required => required = more,
            Err(_) => {
                outgoing.truncate(length);
                return Err(Error::EncryptError);
            }
        }
    }
}

fn required_to_encode(error: EncodeError) -> Option<usize> {
    match error {
        EncodeError::InsufficientSize(size) => Some(size.required_size),
        EncodeError::AlreadyEncoded => None,
    }
}

fn required_to_encrypt(error: EncryptError) -> Option<usize> {
    match error {
        EncryptError::InsufficientSize(size) => Some(size.required_size),
        EncryptError::EncryptExhausted => None,
    }
}

/// A small packet in its record, or an alert.
const FIRST_TRY: usize = 256;
/// rustls takes messages of up to 64 KiB in a handshake, and records of 16 KiB and a little.
const INCOMING_MAX: usize = 128 * 1024;

#[cfg(test)]
mod tests;
