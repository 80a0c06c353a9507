//! Handshakes of one worker: bounded in time and number, and in turns, so that a storm of them does not keep the thread
//! from clients that are served.
//!
//! ```text
//!   waits for bytes ─▶ waits for its turn ─▶ one step of rustls ─▶ lets the others run ─┐
//!        ▲              (TURNS at a time)                                               │
//!        └──────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A signature takes a millisecond of the thread. A client that waits for nothing but its own bytes holds no turn: half a
//! handshake costs memory alone, and beyond `handshakes_max` the one that is under way longest is given up, which a
//! client that means it never is.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rustls::pki_types::CertificateDer;
use rustls::{AlertDescription, Error, ServerConfig};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout_at;

use super::session::Session;
use super::{READ_BYTES, TlsStream};
use crate::gateway::socket::Socket;

/// How a handshake ended that did not succeed. A closed set: the label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// The client went away, or never said anything.
    Lost,
    Timeout,
    /// Given up for newer ones.
    Displaced,
    /// The client shows no certificate where one is required, or one that is not good.
    Certificate,
    /// The client names only other protocols (ALPN).
    Protocol,
    /// No version or cipher in common.
    Incompatible,
    /// The client refuses our certificate, or gives up with another alert.
    Refused,
    /// What came is no TLS, or breaks it.
    Invalid,
}

impl HandshakeFailure {
    pub const ALL: [HandshakeFailure; 8] = [
        HandshakeFailure::Lost,
        HandshakeFailure::Timeout,
        HandshakeFailure::Displaced,
        HandshakeFailure::Certificate,
        HandshakeFailure::Protocol,
        HandshakeFailure::Incompatible,
        HandshakeFailure::Refused,
        HandshakeFailure::Invalid,
    ];

    pub fn name(self) -> &'static str {
        match self {
            HandshakeFailure::Lost => "lost",
            HandshakeFailure::Timeout => "timeout",
            HandshakeFailure::Displaced => "displaced",
            HandshakeFailure::Certificate => "certificate",
            HandshakeFailure::Protocol => "protocol",
            HandshakeFailure::Incompatible => "incompatible",
            HandshakeFailure::Refused => "refused",
            HandshakeFailure::Invalid => "invalid",
        }
    }

    fn of(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(_) | Error::InvalidCertRevocationList(_) | Error::NoCertificatesPresented => {
                HandshakeFailure::Certificate
            }
            Error::NoApplicationProtocol => HandshakeFailure::Protocol,
            Error::PeerIncompatible(_) => HandshakeFailure::Incompatible,
            Error::AlertReceived(AlertDescription::CloseNotify) => HandshakeFailure::Lost,
            Error::AlertReceived(_) => HandshakeFailure::Refused,
            _ => HandshakeFailure::Invalid,
        }
    }
}

/// Why there is no [`TlsStream`].
#[derive(Debug)]
pub struct Failed {
    pub failure: HandshakeFailure,
    /// For the log.
    pub error: Option<Error>,
}

/// A handshake that succeeded.
pub struct Done {
    pub stream: TlsStream,
    pub is_resumed: bool,
    /// The client's own, in DER.
    pub chain: Option<Box<[CertificateDer<'static>]>>,
    /// From the client's first byte.
    pub elapsed: Duration,
}

/// The handshakes of one worker.
pub struct Handshakes {
    turns: Semaphore,
    /// In the order in which they began.
    under_way: RefCell<VecDeque<(u64, Rc<Notify>)>>,
    next: Cell<u64>,
}

impl Default for Handshakes {
    fn default() -> Self {
        Handshakes {
            turns: Semaphore::new(TURNS),
            under_way: RefCell::default(),
            next: Cell::new(0),
        }
    }
}

/// A place among those that are under way; given back when dropped.
struct Place<'a> {
    handshakes: &'a Handshakes,
    number: u64,
    displaced: Rc<Notify>,
}

impl Handshakes {
    fn begin(&self, handshakes_max: usize) -> Place<'_> {
        let place = Place {
            handshakes: self,
            number: self.next.replace(self.next.get() + 1),
            displaced: Rc::new(Notify::new()),
        };
        let mut under_way = self.under_way.borrow_mut();
        under_way.push_back((place.number, place.displaced.clone()));
        while under_way.len() > handshakes_max
            && let Some((_, oldest)) = under_way.pop_front()
        {
            oldest.notify_one();
        }
        place
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut under_way = self.handshakes.under_way.borrow_mut();
        if let Ok(at) = under_way.binary_search_by_key(&self.number, |(number, _)| *number) {
            under_way.remove(at);
        }
    }
}

/// Makes a TLS connection of a socket on which nothing was said.
///
/// # Errors
/// How it failed; the client was told, where TLS has words for it.
pub async fn accept(
    handshakes: &Handshakes,
    socket: Socket,
    config: Arc<ServerConfig>,
    handshakes_max: usize,
    deadline: Instant,
) -> Result<Done, Failed> {
    let place = handshakes.begin(handshakes_max);
    let failed = |failure| Err(Failed { failure, error: None });
    tokio::select! {
        outcome = timeout_at(deadline.into(), shake_hands(handshakes, socket, config)) => match outcome {
            Ok(outcome) => outcome,
            Err(_) => failed(HandshakeFailure::Timeout),
        },
        () = place.displaced.notified() => failed(HandshakeFailure::Displaced),
    }
}

async fn shake_hands(handshakes: &Handshakes, socket: Socket, config: Arc<ServerConfig>) -> Result<Done, Failed> {
    let lost = |_: io::Error| Failed {
        failure: HandshakeFailure::Lost,
        error: None,
    };
    let invalid = |error: Error| Failed {
        failure: HandshakeFailure::of(&error),
        error: Some(error),
    };
    // Nothing is made for a client that says nothing.
    socket.ready(true, false).await;
    let began = Instant::now();
    let mut stream = TlsStream {
        socket,
        session: Session::new(config).map_err(invalid)?,
        unwritten: BytesMut::new(),
        early: BytesMut::new(),
        is_lost: false,
    };
    while stream.session.is_handshaking() || stream.has_unwritten() {
        let reads = stream.session.is_handshaking();
        let readable = stream.socket.ready(reads, stream.has_unwritten()).await;
        stream.flush().map_err(lost)?;
        if !(readable && reads) {
            continue;
        }
        let turn = handshakes.turns.acquire().await.expect("it is never closed");
        step(&mut stream).map_err(|error| match error {
            StepError::Lost(error) => lost(error),
            StepError::Tls(error) => invalid(error),
        })?;
        // Whoever else is ready runs first.
        tokio::task::yield_now().await;
        drop(turn);
    }
    Ok(Done {
        is_resumed: stream.session.is_resumed(),
        chain: stream.session.client_chain().map(Box::from),
        stream,
        elapsed: began.elapsed(),
    })
}

enum StepError {
    Lost(io::Error),
    Tls(Error),
}

/// Takes what came, and answers.
fn step(stream: &mut TlsStream) -> Result<(), StepError> {
    let mut buffer = vec![0; READ_BYTES];
    let read = match stream.socket.try_read(&mut buffer) {
        Ok(0) => return Err(StepError::Lost(io::ErrorKind::UnexpectedEof.into())),
        Ok(read) => read,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
        Err(error) => return Err(StepError::Lost(error)),
    };
    let mut outgoing = BytesMut::new();
    let taken = stream
        .session
        .received(&mut buffer[..read], &mut stream.early, &mut outgoing);
    let sent = stream.send(&outgoing);
    taken.map_err(StepError::Tls)?;
    // A client may say its last word with the first.
    if stream.session.has_ended() && stream.session.is_handshaking() {
        return Err(StepError::Lost(io::ErrorKind::UnexpectedEof.into()));
    }
    sent.map_err(StepError::Lost)
}

/// A round of the thread's tasks has so many steps, a few milliseconds, among it.
const TURNS: usize = 2;
