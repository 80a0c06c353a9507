//! What can go wrong between two nodes, in the operator's words.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use lontra_storage::ids::NodeId;

use super::frame::FrameError;
use super::handshake::Refusal;
use super::tls::TlsError;

/// Why a link could not be made, or why a stream over it ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("the files of the peer links cannot be used")]
    Tls(#[from] TlsError),
    #[error(
        "cannot listen for peers on UDP {address}; is another process there? change the cluster listener's address"
    )]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("silence_max is {silence_max:?}; it must lie between 100 ms and 60 s")]
    SilenceMax { silence_max: Duration },
    #[error("node {node} is not among the peers")]
    UnknownPeer { node: NodeId },
    #[error("no link to node {node}")]
    NoLink { node: NodeId },
    #[error("the address {address:?} of node {node} does not resolve")]
    Resolve {
        node: NodeId,
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("node {node} does not answer at {address}")]
    Dial {
        node: NodeId,
        address: SocketAddr,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Either side did not accept the other's certificate.
    #[error("TLS with {address} failed: check node id, cluster name, ca.pem and clock on both sides")]
    Certificates {
        address: SocketAddr,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the peer refused the link: {reason}")]
    RefusedByPeer { reason: String },
    #[error("link refused: {0}")]
    Refused(#[from] Refusal),
    #[error("no complete handshake within {waited:?}")]
    HandshakeTimeout { waited: Duration },
    #[error("the link broke")]
    Broken {
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the peer sent what this version does not understand")]
    Frame(#[from] FrameError),
    #[error("the peer ended the stream: {reason}")]
    Ended { reason: &'static str },
    #[error("stream reset after {waited:?} without progress")]
    Stalled { waited: Duration },
}

impl LinkError {
    pub(super) fn broken(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        LinkError::Broken {
            source: Box::new(source),
        }
    }

    /// Why there is no connection with `address`, told apart where the way out differs.
    pub(super) fn connecting(address: SocketAddr, source: quinn::ConnectionError) -> Self {
        let code = match &source {
            quinn::ConnectionError::TransportError(error) => u64::from(error.code),
            quinn::ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
            _ => 0,
        };
        if TLS_ALERTS.contains(&code) {
            LinkError::Certificates {
                address,
                source: Box::new(source),
            }
        } else {
            LinkError::broken(source)
        }
    }
}

/// Why a request has no answer. *Not sent* and *unknown* are different news, see [`RequestError::is_outcome_unknown`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("not sent: node {peer} is not among the peers")]
    UnknownPeer { peer: NodeId },
    #[error("not sent: no link to node {peer}")]
    NoLink { peer: NodeId },
    #[error("not sent: {waiting} requests already wait for node {peer}")]
    QueueFull { peer: NodeId, waiting: usize },
    #[error("not sent: {bytes} bytes are more than a frame takes")]
    TooLarge { bytes: usize },
    #[error("not sent: the link to node {peer} was busy for {waited:?}")]
    NotSentInTime { peer: NodeId, waited: Duration },
    #[error("outcome unknown: the link to node {peer} broke before the answer came")]
    LinkLost { peer: NodeId },
    #[error("outcome unknown: node {peer} did not answer within {waited:?}")]
    Unanswered { peer: NodeId, waited: Duration },
    #[error("outcome unknown: node {peer} dropped the request without an answer")]
    Dropped { peer: NodeId },
}

impl RequestError {
    /// False: the peer has not seen the request, sending it again is safe. True: it may have acted on it.
    pub fn is_outcome_unknown(&self) -> bool {
        match self {
            RequestError::UnknownPeer { .. }
            | RequestError::NoLink { .. }
            | RequestError::QueueFull { .. }
            | RequestError::TooLarge { .. }
            | RequestError::NotSentInTime { .. } => false,
            RequestError::LinkLost { .. } | RequestError::Unanswered { .. } | RequestError::Dropped { .. } => true,
        }
    }
}

/// Why a frame was not taken for forwarding. Its callback is not called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    #[error("node {peer} is not among the peers")]
    UnknownPeer { peer: NodeId },
    #[error("{bytes} bytes already wait for node {peer} to acknowledge")]
    Full { peer: NodeId, bytes: usize },
    #[error("{bytes} bytes are more than a frame takes")]
    TooLarge { bytes: usize },
    #[error("the links are closed")]
    Closed,
}

/// Transport error codes that carry a TLS alert. [RFC 9001 §4.8]
const TLS_ALERTS: std::ops::RangeInclusive<u64> = 0x100..=0x1ff;
