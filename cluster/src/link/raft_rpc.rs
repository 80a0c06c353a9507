//! openraft's network over the links, client side.
//!
//! ```text
//! replication ── stream_append ─▶ one stream per (group, peer) on the data lane, ≤ 8 requests in flight
//! heartbeats  ── own client ────▶ requests of the control lane
//! votes, pre-votes, transfers ──▶ requests of the control lane
//! snapshots   ── full_snapshot ─▶ a stream of low priority on the data lane
//! ```
//!
//! What an error says to openraft: no link, no such group there → `Unreachable` (it backs off); a lost link or stream →
//! `Network` (it tries at once, and then finds no link); no answer in time → `Timeout`.
//!
//! Invariant `append-progress`: openraft never times a stream out, so a stream whose oldest request has been unanswered
//! for `answer_max` is reset here and replication starts anew.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use lontra_storage::ids::{GroupId, NodeId};
use lontra_storage::raft_types::{TypeConfig, Vote};
use lontra_storage::snapshot::SnapshotData;
use openraft::alias::SnapshotOf;
use openraft::base::{BoxFuture, BoxStream, OptionalSend};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::impls::EmptyNode;
use openraft::network::v2::RaftNetworkV2;
use openraft::network::{RPCOption, RPCTypes, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::storage::RaftStateMachine;
use tokio::time::Instant;

use super::Shared;
use super::config::Lane;
use super::connect::describe;
use super::error::{LinkError, RequestError};
use super::frame::{Batch, FRAME_BYTES_MAX, Failure, Frame, FrameError, Open, Service};
use super::metrics::Traffic;
use super::peer::PeerLink;
use super::raft_codec as codec;
use super::raft_serve::RaftRegistry;
use super::request::FRAME_HEAD_MAX;
use super::transfers::Transfers;
use super::wire::{self, FrameReader, FrameWriter};

type RpcError = RPCError<TypeConfig>;

/// The links, for who needs them before they are started: groups are built with their networks, links with the groups.
/// Until [`Links::start`](super::Links::start) every peer is unreachable.
#[derive(Clone, Default)]
pub struct LinksHandle {
    shared: Arc<OnceLock<Weak<Shared>>>,
}

impl LinksHandle {
    pub(super) fn bind(&self, shared: &Arc<Shared>) {
        if self.shared.set(Arc::downgrade(shared)).is_err() {
            tracing::error!("links were started twice with one registry of groups; the first ones stay");
        }
    }

    fn peer(&self, node: NodeId) -> Option<Arc<PeerLink>> {
        self.shared.get()?.upgrade()?.peer(node)
    }

    fn own_node(&self) -> NodeId {
        self.shared
            .get()
            .and_then(Weak::upgrade)
            .map_or(0, |shared| shared.config.node)
    }
}

/// Makes the networks of one group.
#[derive(Clone)]
pub struct RaftNetworkFactory {
    links: LinksHandle,
    group: GroupId,
    answer_max: Duration,
    transfers: Transfers,
}

impl RaftNetworkFactory {
    /// `answer_max`: how long the oldest append request may be unanswered; the election timeout, about 1 s. Shorter: a
    /// slow disk of a follower resets its stream; longer: a half-dead peer is found later.
    pub fn new(links: LinksHandle, group: GroupId, answer_max: Duration) -> Self {
        RaftNetworkFactory {
            links,
            group,
            answer_max,
            transfers: Transfers::default(),
        }
    }

    /// The snapshots that this node sends of the group.
    pub fn transfers(&self) -> Transfers {
        self.transfers.clone()
    }

    fn network(&self, target: NodeId, heartbeats: bool) -> RaftNetwork {
        RaftNetwork {
            links: self.links.clone(),
            group: self.group,
            target,
            answer_max: self.answer_max,
            heartbeats,
            transfers: self.transfers.clone(),
        }
    }
}

impl openraft::network::RaftNetworkFactory<TypeConfig> for RaftNetworkFactory {
    type Network = RaftNetwork;

    async fn new_client(&mut self, target: NodeId, _node: &EmptyNode) -> RaftNetwork {
        self.network(target, false)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, _node: &EmptyNode) -> RaftNetwork {
        self.network(target, true)
    }
}

impl<SM> RaftRegistry<SM>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    /// The network of a group of this node, see [`RaftNetworkFactory::new`].
    pub fn network(&self, group: GroupId, answer_max: Duration) -> RaftNetworkFactory {
        RaftNetworkFactory::new(self.links(), group, answer_max)
    }
}

/// One group's way to one peer.
pub struct RaftNetwork {
    links: LinksHandle,
    group: GroupId,
    target: NodeId,
    answer_max: Duration,
    heartbeats: bool,
    transfers: Transfers,
}

impl RaftNetwork {
    fn peer(&self) -> Result<Arc<PeerLink>, RpcError> {
        self.links
            .peer(self.target)
            .ok_or_else(|| unreachable("node is not among the peers"))
    }

    fn timeout(&self, action: RPCTypes, timeout: Duration) -> Timeout<TypeConfig> {
        Timeout {
            action,
            id: self.links.own_node(),
            target: self.target,
            timeout,
        }
    }

    /// One small request on the control lane.
    async fn unary<T>(
        &self,
        action: RPCTypes,
        kind: u8,
        request: Bytes,
        option: &RPCOption,
        read: impl FnOnce(&mut lontra_storage::encoding::Reader<'_>) -> Result<T, lontra_storage::encoding::DecodeError>,
    ) -> Result<T, RpcError> {
        let peer = self.peer()?;
        let deadline = option.hard_ttl();
        let answer = peer
            .requests(Lane::Control)
            .submit(Service::Raft, kind, request, deadline)
            .await;
        let answer = answer.map_err(|error| match error {
            RequestError::UnknownPeer { .. } | RequestError::NoLink { .. } => unreachable(error),
            RequestError::QueueFull { .. } | RequestError::NotSentInTime { .. } | RequestError::Unanswered { .. } => {
                self.timeout(action, deadline).into()
            }
            RequestError::LinkLost { .. } | RequestError::Dropped { .. } | RequestError::TooLarge { .. } => {
                NetworkError::from_string(error).into()
            }
        })?;
        match codec::decode_answer(&answer, read) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(failure)) => Err(failed(failure)),
            Err(error) => Err(NetworkError::new(&error).into()),
        }
    }

    async fn open(&self, open: Open, kind: Traffic, priority: i32) -> Result<(FrameWriter, FrameReader), RpcError> {
        let peer = self.peer()?;
        let connection = peer.connection(Lane::Data).ok_or_else(|| unreachable("no link"))?;
        let opened = tokio::time::timeout(
            self.answer_max,
            wire::open(&connection, open, kind, priority, peer.metrics()),
        );
        match opened.await {
            Ok(Ok(halves)) => Ok(halves),
            Ok(Err(error)) => Err(unreachable(describe(&error))),
            Err(_) => Err(unreachable("the link takes no new stream")),
        }
    }
}

fn unreachable(reason: impl ToString) -> RpcError {
    Unreachable::from_string(reason).into()
}

fn failed(failure: Failure) -> RpcError {
    match failure {
        Failure::UnknownGroup => unreachable("the node does not run this group"),
        Failure::Stopped => unreachable("the node's replica of this group has stopped"),
        Failure::Malformed => NetworkError::from_string("the node could not read the request").into(),
    }
}

fn network_error(error: &LinkError) -> RpcError {
    NetworkError::from_string(describe(error)).into()
}

impl RaftNetworkV2<TypeConfig> for RaftNetwork {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let request = codec::encode_heartbeat(self.group, &rpc);
        self.unary(
            RPCTypes::AppendEntries,
            codec::KIND_APPEND,
            request,
            &option,
            codec::read_append_response,
        )
        .await
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>, RpcError>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.heartbeats {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            let open = Open::Append { group: self.group };
            let (writer, reader) = match self.open(open, Traffic::Raft, APPEND_PRIORITY).await {
                Ok(stream) => stream,
                // openraft's own backoff sits in `input`, which is not polled before there is a stream: without this
                // wait its replication task spins while a peer is down.
                Err(error) => {
                    tokio::time::sleep(UNREACHABLE_WAIT).await;
                    return Err(error);
                }
            };
            let timeout = self.timeout(RPCTypes::AppendEntries, self.answer_max);
            let session = AppendSession {
                input,
                exhausted: false,
                writer,
                reader,
                unwritten: Vec::new(),
                in_flight: VecDeque::with_capacity(IN_FLIGHT_MAX),
                timeout,
            };
            let results = futures_util::stream::unfold(Some(session), |session| async move {
                let mut session = session?;
                let result = session.next().await?;
                // openraft opens another stream after a conflict, a higher vote or an error.
                let goes_on = matches!(result, Ok(Ok(_)));
                Some((result, goes_on.then_some(session)))
            });
            let results: BoxStream<'s, _> = Box::pin(results);
            Ok(results)
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let request = codec::encode_vote_request(self.group, &rpc);
        self.unary(
            RPCTypes::Vote,
            codec::KIND_VOTE,
            request,
            &option,
            codec::read_vote_response,
        )
        .await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let request = codec::encode_vote_request(self.group, &rpc);
        self.unary(
            RPCTypes::Vote,
            codec::KIND_PRE_VOTE,
            request,
            &option,
            codec::read_vote_response,
        )
        .await
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let request = codec::encode_transfer_request(self.group, &req);
        let action = RPCTypes::TransferLeader;
        self.unary(
            action,
            codec::KIND_TRANSFER,
            request,
            &option,
            codec::read_transfer_response,
        )
        .await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let deadline = option.hard_ttl();
        let index = snapshot.meta.last_log_id.as_ref().map_or(0, |id| id.index);
        let _sending = self.transfers.begin(self.target, index);
        tokio::select! {
            biased;
            closed = cancel => Err(closed.into()),
            sent = tokio::time::timeout(deadline, self.send_snapshot(vote, snapshot)) => match sent {
                Ok(result) => Ok(result?),
                Err(_) => Err(self.timeout(RPCTypes::InstallSnapshot, deadline).into()),
            },
        }
    }
}

/// One stream of append requests and their results.
struct AppendSession<S> {
    input: S,
    /// No further request is taken: `input` has ended, or the peer reads no more.
    exhausted: bool,
    writer: FrameWriter,
    reader: FrameReader,
    /// The rest of the request that is being written.
    unwritten: Vec<Bytes>,
    /// When each unanswered request was taken, oldest first.
    in_flight: VecDeque<Instant>,
    /// What to say when the oldest is overdue.
    timeout: Timeout<TypeConfig>,
}

impl<S> AppendSession<S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    /// The next result, in order. All within the caller's task: dropped, it takes no further request from openraft.
    async fn next(&mut self) -> Option<Result<StreamAppendResult<TypeConfig>, RpcError>> {
        loop {
            if self.exhausted && self.in_flight.is_empty() && self.unwritten.is_empty() {
                self.writer.finish();
                return None;
            }
            let overdue = self.in_flight.front().map(|taken| *taken + self.timeout.timeout);
            let takes_more = !self.exhausted && self.unwritten.is_empty() && self.in_flight.len() < IN_FLIGHT_MAX;
            tokio::select! {
                biased;
                frame = self.reader.next() => return Some(self.result(frame)),
                written = self.writer.write_some(&mut self.unwritten), if !self.unwritten.is_empty() => {
                    if written.is_err() {
                        // The peer reads no more: a conflict or a higher vote may be on its way, and says why. If the
                        // link is gone, the reader tells.
                        self.unwritten.clear();
                        self.exhausted = true;
                    }
                }
                request = self.input.next(), if takes_more => match request {
                    None => self.exhausted = true,
                    Some(request) => if let Err(error) = self.take(&request) {
                        return Some(Err(error));
                    }
                },
                // append-progress
                () = sleep_until(overdue), if overdue.is_some() => return Some(Err(self.timeout.clone().into())),
            }
        }
    }

    fn take(&mut self, request: &AppendEntriesRequest<TypeConfig>) -> Result<(), RpcError> {
        let parts = codec::encode_append(request);
        let bytes = parts.iter().map(Bytes::len).sum::<usize>();
        if bytes > FRAME_BYTES_MAX - FRAME_HEAD_MAX {
            let reason = format!("an append request of {bytes} bytes exceeds a frame: read fewer log entries at once");
            return Err(unreachable(reason));
        }
        let mut batch = Batch::new();
        batch.push_item(&parts);
        self.writer.count(&batch);
        self.unwritten = batch.take();
        self.in_flight.push_back(Instant::now());
        Ok(())
    }

    fn result(&mut self, frame: Result<Option<Frame>, LinkError>) -> Result<StreamAppendResult<TypeConfig>, RpcError> {
        match frame {
            Ok(Some(Frame::Item(result))) => {
                if self.in_flight.pop_front().is_none() {
                    return Err(network_error(&FrameError::Unexpected.into()));
                }
                codec::decode_append_result(&result).map_err(|error| NetworkError::new(&error).into())
            }
            Ok(Some(Frame::Failed(failure))) => Err(failed(failure)),
            Ok(Some(_)) => Err(network_error(&FrameError::Unexpected.into())),
            Ok(None) => Err(network_error(&LinkError::Ended {
                reason: "no more append results",
            })),
            Err(error) => Err(network_error(&error)),
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl RaftNetwork {
    /// Sends all chunks and waits until they are installed, or refused before.
    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
    ) -> Result<SnapshotResponse<TypeConfig>, RpcError> {
        let head = codec::encode_snapshot_head(&vote, &snapshot.meta);
        let open = Open::Snapshot {
            group: self.group,
            head,
        };
        let (mut writer, mut reader) = self.open(open, Traffic::Snapshot, SNAPSHOT_PRIORITY).await?;
        let mut chunks = snapshot.snapshot.into_chunks();
        let mut unwritten = Vec::new();
        let mut ended = false;
        loop {
            tokio::select! {
                biased;
                frame = reader.next() => return snapshot_result(frame),
                written = writer.write_some(&mut unwritten), if !unwritten.is_empty() => {
                    if written.is_err() {
                        // The peer has its answer before the end (a higher vote), or the link is gone: the reader tells.
                        unwritten.clear();
                        ended = true;
                    }
                }
                chunk = chunks.recv(), if unwritten.is_empty() && !ended => {
                    let mut batch = Batch::new();
                    match chunk {
                        Some(Ok(chunk)) if chunk.len() <= FRAME_BYTES_MAX - FRAME_HEAD_MAX => {
                            batch.push(&Frame::Item(chunk));
                        }
                        Some(Ok(chunk)) => {
                            let reason = format!("a snapshot chunk of {} bytes exceeds a frame", chunk.len());
                            return Err(unreachable(reason));
                        }
                        // The writer is dropped: the peer sees a reset, not an end.
                        Some(Err(error)) => {
                            tracing::error!(group = %self.group, %error, "snapshot cannot be read");
                            return Err(unreachable(format!("snapshot cannot be read: {error}")));
                        }
                        None => {
                            ended = true;
                            batch.push(&Frame::End(Bytes::new()));
                        }
                    }
                    writer.count(&batch);
                    unwritten = batch.take();
                }
            }
        }
    }
}

fn snapshot_result(frame: Result<Option<Frame>, LinkError>) -> Result<SnapshotResponse<TypeConfig>, RpcError> {
    match frame {
        Ok(Some(Frame::Item(response))) => match codec::decode_answer(&response, codec::read_snapshot_response) {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(failure)) => Err(failed(failure)),
            Err(error) => Err(NetworkError::new(&error).into()),
        },
        Ok(Some(Frame::Failed(failure))) => Err(failed(failure)),
        Ok(Some(_)) => Err(network_error(&FrameError::Unexpected.into())),
        Ok(None) => Err(network_error(&LinkError::Ended {
            reason: "no answer to the snapshot",
        })),
        Err(error) => Err(network_error(&error)),
    }
}

/// Between two attempts to open an append stream to a peer that is not there.
const UNREACHABLE_WAIT: Duration = Duration::from_millis(100);
/// More in flight only makes smaller batches (notes/raft.md §2.4).
const IN_FLIGHT_MAX: usize = 8;
const APPEND_PRIORITY: i32 = 0;
/// Snapshots take what the rest of the data lane leaves.
const SNAPSHOT_PRIORITY: i32 = -10;
