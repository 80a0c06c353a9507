//! Reading session queues: from the local replica, or from a peer that holds one.
//!
//! Attach takes a ReadIndex of every shard and reads only what has reached it; every later page names the highest index
//! that the reader has seen, so that its view never goes backwards.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lontra_storage::ids::{GroupId, NodeId, Offset, SessionId, ShardId};
use lontra_storage::shard::{Page, read_page, read_received};
use tokio::time::Instant;

use crate::Inner;
use crate::control::{ASK_MAX, RETRY_WAIT};
use crate::link::Lane;
use crate::requests::{self, PageRequest, ReceivedRequest};

/// How much of a queue to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLimits {
    pub entries: u32,
    pub bytes: u32,
}

impl Inner {
    /// A ReadIndex of the shard, from a round that began after this call. Tries until it has one.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn read_index(&self, shard: ShardId) -> u64 {
        let group = GroupId::shard(shard);
        loop {
            match self.leader_of(group) {
                Some(leader) if leader == self.config.node => {
                    if let Some(group) = self.groups.get(&shard)
                        && let Ok(index) = group.rounds.read_index().await
                    {
                        return index;
                    }
                }
                Some(leader) => {
                    if let Some(links) = self.links.get() {
                        let ask = requests::encode_number(group.0 as u64);
                        let asked = links
                            .request(leader, Lane::Control, requests::READ_INDEX, ask, ASK_MAX)
                            .await;
                        match asked.ok().and_then(|bytes| requests::decode_read_index(&bytes).ok()) {
                            Some(Ok(index)) => return index,
                            Some(Err(crate::group::ReadIndexError::NotLeader { leader })) => {
                                self.note_leader(group, leader);
                            }
                            Some(Err(crate::group::ReadIndexError::NoQuorum)) | None => self.note_leader(group, None),
                        }
                    }
                }
                None => {}
            }
            tokio::time::sleep(RETRY_WAIT).await;
        }
    }

    /// A page from a view that has applied `applied`. Tries until it has one.
    ///
    /// # Errors
    /// The local replica cannot be read.
    pub(crate) async fn read_page(
        self: &Arc<Self>,
        shard: ShardId,
        session: SessionId,
        after: Offset,
        applied: u64,
        limits: PageLimits,
    ) -> std::io::Result<Page> {
        let request = PageRequest {
            shard,
            session,
            after,
            applied,
            entries_max: limits.entries,
            bytes_max: limits.bytes,
        };
        self.metrics.page_read(self.groups.contains_key(&shard));
        loop {
            if self.groups.contains_key(&shard) {
                if let Some(page) = self.read_local_page(&request).await? {
                    return Ok(page);
                }
            } else if let Some(page) = self.read_remote_page(&request).await {
                return Ok(page);
            }
            tokio::time::sleep(RETRY_WAIT).await;
        }
    }

    /// `None` if this replica has not applied so far in time.
    pub(crate) async fn read_local_page(&self, request: &PageRequest) -> std::io::Result<Option<Page>> {
        let Some(group) = self.groups.get(&request.shard) else {
            return Ok(None);
        };
        if !group.applied.reach(request.applied, ASK_MAX).await {
            return Ok(None);
        }
        let entries_max = request.entries_max as usize;
        let page = read_page(
            &group.tables,
            request.session,
            request.after,
            entries_max,
            request.bytes_max as usize,
        )?;
        Ok(Some(page))
    }

    async fn read_remote_page(&self, request: &PageRequest) -> Option<Page> {
        let asked = self.ask_replica(request.shard, requests::READ_PAGE, request.encode());
        Page::decode(&asked.await?).ok()
    }

    /// The answer of a replica of the shard that can be reached.
    async fn ask_replica(&self, shard: ShardId, kind: u8, request: Bytes) -> Option<Bytes> {
        let links = self.links.get()?;
        let replicas: Vec<NodeId> = self
            .shards
            .replicas(shard)
            .filter(|replica| links.is_up(*replica))
            .collect();
        let replica = *replicas.get(Instant::now().elapsed().subsec_nanos() as usize % replicas.len().max(1))?;
        links.request(replica, Lane::Data, kind, request, PAGE_MAX).await.ok()
    }

    /// Whether a QoS 2 publish of the session is recorded in the shard, in a view that shows all that was acknowledged before
    /// this call. Tries until it knows.
    ///
    /// # Errors
    /// The local replica cannot be read.
    pub(crate) async fn read_received(
        &self,
        shard: ShardId,
        session: SessionId,
        packet_id: u16,
    ) -> std::io::Result<bool> {
        let request = ReceivedRequest {
            shard,
            session,
            packet_id,
            applied: self.read_index(shard).await,
        };
        loop {
            if self.groups.contains_key(&shard) {
                if let Some(received) = self.read_local_received(request).await? {
                    return Ok(received);
                }
            } else {
                let asked = self.ask_replica(shard, requests::READ_RECEIVED, request.encode());
                let answer = asked.await.and_then(|bytes| requests::decode_number(&bytes).ok());
                if let Some(received) = answer {
                    return Ok(received == 1);
                }
            }
            tokio::time::sleep(RETRY_WAIT).await;
        }
    }

    /// `None` if this replica has not applied so far in time.
    pub(crate) async fn read_local_received(&self, request: ReceivedRequest) -> std::io::Result<Option<bool>> {
        let Some(group) = self.groups.get(&request.shard) else {
            return Ok(None);
        };
        if !group.applied.reach(request.applied, ASK_MAX).await {
            return Ok(None);
        }
        read_received(&group.tables, request.session, request.packet_id).map(Some)
    }
}

pub(crate) const PAGE_MAX: Duration = Duration::from_secs(2);
