//! Accepting: connections of peers with a lower id, and the streams that a peer opens.

use std::sync::Arc;

use quinn::{Incoming as IncomingConnection, RecvStream, SendStream};
use tokio::task::JoinSet;

use super::config::Lane;
use super::connect::{CLOSE_REFUSED, describe};
use super::error::LinkError;
use super::frame::{Frame, FrameError, Open};
use super::gate::{Gate, Knock, Place, Refused};
use super::handshake::{self, Hello, Refusal, Welcome};
use super::metrics::Traffic;
use super::peer::{Established, PeerLink};
use super::wire::{FrameReader, FrameWriter};
use super::{Peer, Shared, forward, request, stream, tls};

/// Accepts until the endpoint is closed.
pub(super) async fn run(shared: Arc<Shared>) {
    let gate = Arc::new(Gate::default());
    let mut handshakes = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            incoming = shared.endpoint.accept() => incoming,
            // Only reaps; how each ended is logged within.
            Some(_) = handshakes.join_next(), if !handshakes.is_empty() => continue,
        };
        let Some(incoming) = incoming else { break };
        match gate.knock(incoming.remote_address().ip(), incoming.remote_address_validated()) {
            Knock::Enter(place) => drop(handshakes.spawn(handshake(shared.clone(), incoming, place))),
            // It cannot be asked once more: nothing is kept of it.
            Knock::Retry => drop(incoming.retry()),
            Knock::Refuse(why) => {
                shared.metrics.refused(why);
                incoming.refuse();
            }
        }
    }
    handshakes.shutdown().await;
}

async fn handshake(shared: Arc<Shared>, incoming: IncomingConnection, _place: Place) {
    let address = incoming.remote_address();
    let waited = shared.config.silence_max;
    let admitted = tokio::time::timeout(waited, admit(&shared, incoming)).await;
    if let Err(error) = admitted.unwrap_or(Err(LinkError::HandshakeTimeout { waited }))
        && !shared.is_closing()
    {
        shared.metrics.refused(Refused::Handshake);
        tracing::warn!(node = shared.config.node, %address, error = describe(&error), "connection of a peer refused");
    }
}

/// The acceptor's half of the handshake; hands the connection to the peer's lane.
async fn admit(shared: &Shared, incoming: IncomingConnection) -> Result<(), LinkError> {
    let address = incoming.remote_address();
    let connection = incoming.await.map_err(|error| LinkError::connecting(address, error))?;
    let (send, receive) = connection.accept_bi().await.map_err(LinkError::broken)?;
    let metrics = shared.metrics.nobody();
    let mut writer = FrameWriter::new(send, Traffic::Request, metrics.clone());
    let mut reader = FrameReader::new(receive, Traffic::Request, metrics);
    let hello = match reader.next().await? {
        Some(Frame::Hello(body)) => Hello::decode(&body),
        Some(_) | None => return Err(FrameError::Unexpected.into()),
    };
    let checked = hello.and_then(|hello| check(shared, &connection, hello));
    match checked {
        Ok((hello, peer)) => {
            let config = &shared.config;
            let welcome = Welcome {
                cluster: config.cluster.clone(),
                node: config.node,
                start: config.start,
            };
            writer.write_frame(&Frame::Welcome(welcome.encode())).await?;
            writer.finish();
            peer.offer(
                hello.lane,
                Established {
                    connection,
                    start: hello.start,
                },
            )
            .await;
            Ok(())
        }
        Err(refusal) => {
            let reason = refusal.to_string().into_bytes().into();
            writer.write_frame(&Frame::Refused(reason)).await?;
            writer.finish();
            // The peer closes once it has read the reason.
            let _ = tokio::time::timeout(shared.config.silence_max, connection.closed()).await;
            connection.close(CLOSE_REFUSED, b"handshake");
            Err(refusal.into())
        }
    }
}

fn check(shared: &Shared, connection: &quinn::Connection, hello: Hello) -> Result<(Hello, Arc<PeerLink>), Refusal> {
    let config = &shared.config;
    let peer = shared.peer(hello.node);
    handshake::accept(
        &hello,
        &config.cluster,
        config.node,
        |_| peer.is_some(),
        |node| tls::check_peer_certificate(connection, node, &config.cluster),
    )?;
    let peer = peer.ok_or(Refusal::UnknownPeer {
        node: hello.node,
        ours: config.node,
    })?;
    if peer.is_superseded(hello.start) {
        return Err(Refusal::Superseded {
            node: hello.node,
            start: hello.start,
        });
    }
    Ok((hello, peer))
}

/// A stream that the peer opened: its first frame tells what for. An error closes the connection.
pub(super) async fn serve_stream(
    shared: Arc<Shared>,
    peer: Arc<PeerLink>,
    lane: Lane,
    from: Peer,
    incoming: Arc<forward::Incoming>,
    (send, receive): (SendStream, RecvStream),
) -> Result<(), LinkError> {
    let mut writer = FrameWriter::new(send, Traffic::Request, peer.metrics().clone());
    let mut reader = FrameReader::new(receive, Traffic::Request, peer.metrics().clone());
    let open = match reader.next().await {
        Ok(Some(Frame::Open(open))) => open,
        Ok(Some(_)) => return Err(FrameError::Unexpected.into()),
        // Given up before it said anything; if the link is gone, others notice.
        Ok(None) | Err(_) => return Ok(()),
    };
    let kind = match &open {
        Open::Requests => Traffic::Request,
        Open::Forward => Traffic::Forward,
        Open::Append { .. } => Traffic::Raft,
        Open::Snapshot { .. } => Traffic::Snapshot,
        Open::Push { .. } => Traffic::Stream,
    };
    reader.set_kind(kind);
    writer.set_kind(kind);
    match open {
        Open::Requests => request::run_server(shared, peer, lane, reader, writer).await,
        Open::Forward => forward::run_server(shared, from, incoming, reader, writer).await,
        Open::Append { group } => {
            shared.rafts.append(group, reader, writer).await;
            Ok(())
        }
        Open::Snapshot { group, head } => {
            shared.rafts.snapshot(group, head, reader, writer).await;
            Ok(())
        }
        Open::Push { kind, hello } => {
            let (sink, serve) = stream::serve(writer);
            shared.handler.stream(peer.node, kind, hello, sink);
            serve.await;
            Ok(())
        }
    }
}
