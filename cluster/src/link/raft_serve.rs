//! openraft's network over the links, server side: which groups run here, and what reaches them.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use lontra_storage::Storage;
use lontra_storage::encoding::{DecodeError, Reader};
use lontra_storage::ids::GroupId;
use lontra_storage::raft_types::{SnapshotMeta, TypeConfig, Vote};
use lontra_storage::snapshot::SnapshotData;
use openraft::Raft;
use openraft::alias::SnapshotOf;
use openraft::async_runtime::WatchReceiver;
use openraft::raft::SnapshotResponse;
use openraft::storage::RaftStateMachine;

use super::connect::describe;
use super::error::LinkError;
use super::frame::{Batch, Failure, Frame, FrameError};
use super::raft_codec as codec;
use super::raft_rpc::LinksHandle;
use super::request::ReplySender;
use super::spool::Spool;
use super::wire::{FrameReader, FrameWriter};

/// The Raft groups that run on this node, by id; where the links find them.
pub struct RaftRegistry<SM>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    /// Guards the map; handles are cloned out.
    groups: RwLock<BTreeMap<GroupId, Raft<TypeConfig, SM>>>,
    links: LinksHandle,
    spool: Arc<SpoolDirectory>,
}

/// Makes a snapshot that has arrived ready to be installed: reads it to its end and checks all of it.
///
/// What it refuses is sent again. What it lets through must not fail in `RaftStateMachine::install_snapshot`: openraft
/// stops the group for good then.
pub trait StageSnapshot: Send + Sync {
    /// # Errors
    /// The snapshot is damaged or not whole.
    fn stage(
        &self,
        group: GroupId,
        meta: SnapshotMeta,
        arrived: SnapshotData,
    ) -> BoxFuture<'_, io::Result<SnapshotData>>;
}

impl StageSnapshot for Storage {
    fn stage(
        &self,
        group: GroupId,
        meta: SnapshotMeta,
        arrived: SnapshotData,
    ) -> BoxFuture<'_, io::Result<SnapshotData>> {
        Box::pin(self.stage_snapshot(group, meta, arrived))
    }
}

struct SpoolDirectory {
    path: PathBuf,
    next: AtomicU64,
    stage: Arc<dyn StageSnapshot>,
}

impl<SM> RaftRegistry<SM>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    /// Arriving snapshots are kept in `spool_directory` until they are whole: a directory of this node's own on a disk
    /// with room for the largest group. Made when needed; left empty. Then `stage` checks them.
    pub fn new(spool_directory: PathBuf, stage: Arc<dyn StageSnapshot>) -> Self {
        let spool = SpoolDirectory {
            path: spool_directory,
            next: AtomicU64::new(0),
            stage,
        };
        RaftRegistry {
            groups: RwLock::default(),
            links: LinksHandle::default(),
            spool: Arc::new(spool),
        }
    }

    /// Peers reach the group from here on. Returns the one that it replaces.
    pub fn insert(&self, group: GroupId, raft: Raft<TypeConfig, SM>) -> Option<Raft<TypeConfig, SM>> {
        self.groups
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(group, raft)
    }

    /// Peers find the group unreachable from here on; streams that run end when the group is shut down.
    pub fn remove(&self, group: GroupId) -> Option<Raft<TypeConfig, SM>> {
        self.groups
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&group)
    }

    pub fn get(&self, group: GroupId) -> Option<Raft<TypeConfig, SM>> {
        self.groups
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&group)
            .cloned()
    }

    /// The links that will serve these groups; bound by [`Links::start`](super::Links::start).
    pub fn links(&self) -> LinksHandle {
        self.links.clone()
    }
}

/// What the links ask of the groups, whatever their state machine.
pub(super) trait RaftService: Send + Sync {
    fn request(&self, kind: u8, payload: Bytes, reply: ReplySender);
    fn append(&self, group: GroupId, reader: FrameReader, writer: FrameWriter) -> BoxFuture<'static, ()>;
    fn snapshot(&self, group: GroupId, head: Bytes, reader: FrameReader, writer: FrameWriter)
    -> BoxFuture<'static, ()>;
}

impl<SM> RaftService for RaftRegistry<SM>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    fn request(&self, kind: u8, payload: Bytes, reply: ReplySender) {
        let raft = codec::read_group(&mut Reader::new("request to a group", &payload)).map(|group| self.get(group));
        let raft = match raft {
            Ok(Some(raft)) => raft,
            Ok(None) => return reply.send(codec::encode_answer::<()>(Err(Failure::UnknownGroup), |_, ()| ())),
            Err(_) => return reply.send(codec::encode_answer::<()>(Err(Failure::Malformed), |_, ()| ())),
        };
        // Bounded by the requests that may be unanswered; ends with the group.
        tokio::spawn(async move {
            let answer = answer(&raft, kind, &payload).await;
            reply.send(answer.unwrap_or_else(|_| codec::encode_answer::<()>(Err(Failure::Malformed), |_, ()| ())));
        });
    }

    fn append(&self, group: GroupId, reader: FrameReader, mut writer: FrameWriter) -> BoxFuture<'static, ()> {
        let raft = self.get(group);
        Box::pin(async move {
            let Some(raft) = raft else {
                return fail(&mut writer, Failure::UnknownGroup).await;
            };
            if let Err(error) = append(&raft, reader, &mut writer).await {
                tracing::debug!(%group, error = describe(&error), "append stream ended");
            }
        })
    }

    fn snapshot(
        &self,
        group: GroupId,
        head: Bytes,
        reader: FrameReader,
        mut writer: FrameWriter,
    ) -> BoxFuture<'static, ()> {
        let (raft, spool) = (self.get(group), self.spool.clone());
        Box::pin(async move {
            let Some(raft) = raft else {
                return fail(&mut writer, Failure::UnknownGroup).await;
            };
            let Ok((vote, meta)) = codec::decode_snapshot_head(&head) else {
                return fail(&mut writer, Failure::Malformed).await;
            };
            match receive_snapshot(&raft, group, vote, meta, &spool, reader).await {
                Ok(answer) => {
                    let answer = codec::encode_answer(answer, codec::write_snapshot_response);
                    if writer.write_frame(&Frame::Item(answer)).await.is_ok() {
                        writer.finish();
                    }
                }
                Err(error) => {
                    tracing::warn!(%group, error = describe(&error), "a snapshot arrived damaged or not whole; its sender repeats it")
                }
            }
        })
    }
}

async fn fail(writer: &mut FrameWriter, failure: Failure) {
    if writer.write_frame(&Frame::Failed(failure)).await.is_ok() {
        writer.finish();
    }
}

/// Answers one unary request.
async fn answer<SM>(raft: &Raft<TypeConfig, SM>, kind: u8, payload: &Bytes) -> Result<Bytes, DecodeError>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    let mut reader = Reader::new("request to a group", payload);
    codec::read_group(&mut reader)?;
    Ok(match kind {
        codec::KIND_APPEND => {
            let response = raft.append_entries(codec::read_heartbeat(&mut reader)?).await;
            codec::encode_answer(response.map_err(|_| Failure::Stopped), codec::write_append_response)
        }
        codec::KIND_VOTE => {
            let response = raft.vote(codec::read_vote_request(&mut reader)?).await;
            codec::encode_answer(response.map_err(|_| Failure::Stopped), codec::write_vote_response)
        }
        codec::KIND_PRE_VOTE => {
            let response = raft.pre_vote(codec::read_vote_request(&mut reader)?).await;
            codec::encode_answer(response.map_err(|_| Failure::Stopped), codec::write_vote_response)
        }
        codec::KIND_TRANSFER => {
            let response = raft
                .handle_transfer_leader(codec::read_transfer_request(&mut reader)?)
                .await;
            codec::encode_answer(response.map_err(|_| Failure::Stopped), codec::write_transfer_response)
        }
        _ => return Err(reader.error()),
    })
}

/// Feeds one append stream to the group and its results back, in order.
async fn append<SM>(raft: &Raft<TypeConfig, SM>, reader: FrameReader, writer: &mut FrameWriter) -> Result<(), LinkError>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    // Ends when the peer finishes or resets the stream, or the link is lost; openraft's reader task with it.
    let requests = futures_util::stream::unfold(reader, |mut reader| async move {
        match reader.next().await {
            Ok(Some(Frame::Item(request))) => match codec::decode_append(&request) {
                Ok(request) => Some((request, reader)),
                Err(error) => {
                    tracing::warn!(%error, "append request does not decode");
                    None
                }
            },
            Ok(Some(_)) | Ok(None) | Err(_) => None,
        }
    });
    let results = raft.stream_append(requests).ready_chunks(RESULTS_PER_WRITE);
    let mut results = std::pin::pin!(results);
    let mut batch = Batch::new();
    let mut stopped = true;
    while let Some(results) = results.next().await {
        for result in results {
            // After a conflict or a higher vote the stream ends by rights.
            stopped = !matches!(result, Ok(Err(_)));
            if let Ok(result) = result {
                batch.push(&Frame::Item(codec::encode_append_result(&result)));
            }
        }
        if !batch.is_empty() {
            writer.write(&mut batch).await?;
        }
    }
    if stopped {
        // The peer reads this only if it still waits for a result.
        writer.write_frame(&Frame::Failed(Failure::Stopped)).await?;
    }
    writer.finish();
    Ok(())
}

/// Keeps the chunks until they are whole, checks them, then installs.
///
/// An error refuses the snapshot: the stream ends without an answer, and the leader sends another.
async fn receive_snapshot<SM>(
    raft: &Raft<TypeConfig, SM>,
    group: GroupId,
    vote: Vote,
    meta: SnapshotMeta,
    directory: &SpoolDirectory,
    mut reader: FrameReader,
) -> Result<Result<SnapshotResponse<TypeConfig>, Failure>, LinkError>
where
    SM: RaftStateMachine<TypeConfig, SnapshotData = SnapshotData>,
{
    // A deposed leader need not send it all; openraft decides once more below.
    let present = raft.metrics().borrow_watched().vote;
    if present > vote {
        return Ok(Ok(SnapshotResponse::new(present)));
    }
    let unique = format!("{}-{}", group.0, directory.next.fetch_add(1, Ordering::Relaxed));
    let mut spool = Spool::create(&directory.path, &unique)
        .await
        .map_err(LinkError::broken)?;
    loop {
        match reader.next().await? {
            Some(Frame::Item(chunk)) => spool.push(&chunk).await.map_err(LinkError::broken)?,
            Some(Frame::End(_)) => break,
            Some(_) => return Err(FrameError::Unexpected.into()),
            None => {
                return Err(LinkError::Ended {
                    reason: "no more chunks, and no end",
                });
            }
        }
    }
    let arrived = spool.finish().await.map_err(LinkError::broken)?;
    let staged = directory.stage.stage(group, meta.clone(), arrived).await;
    let snapshot = SnapshotOf::<TypeConfig, SnapshotData> {
        meta,
        snapshot: staged.map_err(LinkError::broken)?,
    };
    let response = raft.install_full_snapshot(vote, snapshot).await;
    Ok(response.map_err(|_| Failure::Stopped))
}

const RESULTS_PER_WRITE: usize = 64;
