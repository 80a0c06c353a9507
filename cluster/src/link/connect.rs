//! The endpoint, and dialling: the lower node id dials, for ever.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{
    ClientConfig, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout, ServerConfig,
    TransportConfig, VarInt,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::Shared;
use super::config::{Lane, LinkConfig};
use super::error::LinkError;
use super::frame::{Frame, FrameError};
use super::handshake::{Hello, Refusal, Welcome, confirm};
use super::metrics::Traffic;
use super::peer::{Established, PeerLink};
use super::tls::{NodeTls, node_name};
use super::wire::{FrameReader, FrameWriter};

/// Binds the one UDP socket of this node.
pub(super) fn bind(config: &LinkConfig, tls: &NodeTls) -> Result<Endpoint, LinkError> {
    let listen_error = |source| LinkError::Listen {
        address: config.listen,
        source,
    };
    let server = quic(config, tls)?.server;

    let socket = udp_socket(config.listen).map_err(listen_error)?;
    let mut endpoint_config = EndpointConfig::new(tls.reset_key.clone());
    endpoint_config.cid_generator(|| Box::new(RandomIds));
    Endpoint::new(endpoint_config, Some(server), socket, Arc::new(quinn::TokioRuntime)).map_err(listen_error)
}

/// What new connections are made with.
pub(super) struct Quic {
    pub server: ServerConfig,
    pub client: ClientConfig,
}

pub(super) fn quic(config: &LinkConfig, tls: &NodeTls) -> Result<Quic, LinkError> {
    let unusable = |error: quinn::crypto::rustls::NoInitialCipherSuite| LinkError::Listen {
        address: config.listen,
        source: io::Error::other(error),
    };
    let transport = Arc::new(transport(config));
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls.server.clone()).map_err(unusable)?;
    let mut server = ServerConfig::with_crypto(Arc::new(crypto));
    server.transport_config(transport.clone());
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls.client.clone()).map_err(unusable)?;
    let mut client = ClientConfig::new(Arc::new(crypto));
    client.transport_config(transport);
    Ok(Quic { server, client })
}

/// Connection ids that a later process of this node takes for its own: quinn's default signs them with a key of the
/// process, and drops packets of the process before instead of answering them with a stateless reset.
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        // A keyed hash of nothing: the keys are random, and others at each call.
        ConnectionId::new(&RandomState::new().build_hasher().finish().to_le_bytes())
    }

    fn cid_len(&self) -> usize {
        size_of::<u64>()
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn udp_socket(listen: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    // The kernel grants less where net.core.{r,w}mem_max is lower; a small buffer costs throughput, not correctness.
    socket.set_recv_buffer_size(UDP_BUFFER_BYTES)?;
    socket.set_send_buffer_size(UDP_BUFFER_BYTES)?;
    let granted = socket.recv_buffer_size()?;
    if granted < UDP_BUFFER_BYTES {
        tracing::info!(
            granted,
            wanted = UDP_BUFFER_BYTES,
            "UDP buffer is small: raise net.core.rmem_max and wmem_max"
        );
    }
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

fn transport(config: &LinkConfig) -> TransportConfig {
    let mut transport = TransportConfig::default();
    // Between 100 ms and 60 s, checked at start: fits.
    let idle = VarInt::from_u32(config.silence_max.as_millis() as u32);
    transport
        .max_concurrent_bidi_streams(STREAMS_MAX)
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(STREAM_WINDOW_BYTES)
        .receive_window(VarInt::from_u32(WINDOW_BYTES))
        .send_window(WINDOW_BYTES.into())
        .max_idle_timeout(Some(IdleTimeout::from(idle)))
        .keep_alive_interval(Some(config.keep_alive()))
        .initial_rtt(INITIAL_RTT)
        .datagram_receive_buffer_size(None);
    transport
}

/// Dials until it works; `None` when the links are closed meanwhile.
pub(super) async fn dial_until_connected(shared: &Shared, peer: &PeerLink, lane: Lane) -> Option<Established> {
    let mut pause = BACKOFF_MIN;
    let mut logged = String::new();
    loop {
        let attempt = tokio::select! {
            biased;
            () = shared.closed() => return None,
            attempt = dial(shared, peer, lane) => attempt,
        };
        let error = match attempt {
            Ok(established) => return Some(established),
            Err(error) => describe(&error),
        };
        // A peer that is down is told once, not at every attempt.
        if error == logged {
            tracing::debug!(node = shared.config.node, peer = peer.node, ?lane, error, "dial failed");
        } else {
            tracing::warn!(
                node = shared.config.node,
                peer = peer.node,
                ?lane,
                error,
                "dial failed, will go on trying"
            );
            logged = error;
        }
        tokio::select! {
            biased;
            () = shared.closed() => return None,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(BACKOFF_MAX),
        }
    }
}

/// One attempt.
pub(super) async fn dial(shared: &Shared, peer: &PeerLink, lane: Lane) -> Result<Established, LinkError> {
    let address = resolve(shared, peer).await?;
    let dial_error = |source| LinkError::Dial {
        node: peer.node,
        address,
        source,
    };
    let name = node_name(peer.node, &shared.config.cluster);
    let connection = shared
        .endpoint
        .connect_with(shared.certified().client.clone(), address, &name)
        .map_err(|error| dial_error(Box::new(error)))?
        .await
        .map_err(|error| match LinkError::connecting(address, error) {
            LinkError::Broken { source } => dial_error(source),
            error => error,
        })?;
    let waited = shared.config.silence_max;
    let greeted = tokio::time::timeout(waited, greet(shared, peer, lane, &connection)).await;
    match greeted.unwrap_or(Err(LinkError::HandshakeTimeout { waited })) {
        Ok(start) if !peer.is_superseded(start) => Ok(Established { connection, start }),
        Ok(start) => {
            connection.close(CLOSE_REFUSED, b"superseded");
            Err(Refusal::Superseded { node: peer.node, start }.into())
        }
        Err(error) => {
            // The acceptor checks the dialler's certificate after the dialler counts itself connected.
            let error = match connection
                .close_reason()
                .map(|reason| LinkError::connecting(address, reason))
            {
                Some(certificates @ LinkError::Certificates { .. }) => certificates,
                _ => error,
            };
            connection.close(CLOSE_REFUSED, b"handshake");
            Err(error)
        }
    }
}

/// The dialler's half of the handshake; the number of the peer's process.
async fn greet(shared: &Shared, peer: &PeerLink, lane: Lane, connection: &quinn::Connection) -> Result<u64, LinkError> {
    let config = &shared.config;
    let (send, receive) = connection.open_bi().await.map_err(LinkError::broken)?;
    let mut writer = FrameWriter::new(send, Traffic::Request, peer.metrics().clone());
    let mut reader = FrameReader::new(receive, Traffic::Request, peer.metrics().clone());
    let hello = Hello {
        cluster: config.cluster.clone(),
        node: config.node,
        start: config.start,
        lane,
    };
    writer.write_frame(&Frame::Hello(hello.encode())).await?;
    writer.finish();
    match reader.next().await? {
        Some(Frame::Welcome(body)) => {
            let welcome = Welcome::decode(&body)?;
            confirm(&welcome, &config.cluster, peer.node)?;
            Ok(welcome.start)
        }
        Some(Frame::Refused(reason)) => Err(LinkError::RefusedByPeer {
            reason: String::from_utf8_lossy(&reason).into_owned(),
        }),
        Some(_) => Err(FrameError::Unexpected.into()),
        None => Err(LinkError::Ended {
            reason: "no answer to the handshake",
        }),
    }
}

/// Anew at each dial: a container may have moved.
async fn resolve(shared: &Shared, peer: &PeerLink) -> Result<SocketAddr, LinkError> {
    let address = peer.address();
    let resolve_error = |source| LinkError::Resolve {
        node: peer.node,
        address: address.clone(),
        source,
    };
    let found = tokio::net::lookup_host(&address).await.map_err(resolve_error)?;
    let (mut same_family, mut any) = (None, None);
    for candidate in found {
        any = any.or(Some(candidate));
        if candidate.is_ipv4() == shared.local_addr.is_ipv4() {
            same_family = same_family.or(Some(candidate));
        }
    }
    same_family
        .or(any)
        .ok_or_else(|| resolve_error(io::Error::from(io::ErrorKind::NotFound)))
}

/// The whole chain of causes in one line.
pub(super) fn describe(error: &LinkError) -> String {
    let mut line = error.to_string();
    let mut cause = std::error::Error::source(error);
    // Refusal is shown by the message already.
    while let Some(error) = cause.filter(|error| !error.is::<Refusal>()) {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}

pub(super) const CLOSE_SHUTDOWN: VarInt = VarInt::from_u32(0);
pub(super) const CLOSE_REFUSED: VarInt = VarInt::from_u32(1);
pub(super) const CLOSE_REPLACED: VarInt = VarInt::from_u32(2);
pub(super) const CLOSE_VIOLATION: VarInt = VarInt::from_u32(3);

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// 4 MiB: 100 ms of 40 MB/s. The kernel's default of 208 KiB drops bursts.
const UDP_BUFFER_BYTES: usize = 4 << 20;
/// An append stream per group and direction, pushes, snapshots; quinn's default of 100 is less than 64 groups need.
const STREAMS_MAX: VarInt = VarInt::from_u32(4096);
const STREAM_WINDOW_BYTES: VarInt = VarInt::from_u32(16 << 20);
const WINDOW_BYTES: u32 = 64 << 20;
/// Nodes of a cluster are near; with quinn's 333 ms a lost first packet would cost a second.
const INITIAL_RTT: Duration = Duration::from_millis(20);
