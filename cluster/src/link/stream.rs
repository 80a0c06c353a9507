//! Push streams: one node asks, the other pushes frames for as long as both want.
//!
//! ```text
//! open_stream ──Open::Push { kind, hello }──▶ PeerHandler::stream(sink)
//! FrameSource ◀──────── Item, Item, … ─────── FrameSink: 8 MiB queued at most
//!     None    ◀──────── End ───────────────── dropped
//! ```
//!
//! A stream ends with its link; the asker opens another one and says in `hello` where to go on.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc};

use super::Lane;
use super::error::LinkError;
use super::frame::{Batch, FRAME_BYTES_MAX, Frame, FrameError, Open};
use super::metrics::Traffic;
use super::peer::PeerLink;
use super::request::FRAME_HEAD_MAX;
use super::wire::{self, FrameReader, FrameWriter};

/// The receiving end, of the node that asked.
pub struct FrameSource {
    reader: FrameReader,
    ended: bool,
    /// Held: its reset tells the pusher that nobody listens any more.
    _open: FrameWriter,
}

impl FrameSource {
    /// The next frame; `None` when the pusher ended the stream and nothing is missing. Not reading makes the pusher wait.
    ///
    /// # Errors
    /// The link broke, or the pusher vanished.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>, LinkError> {
        if self.ended {
            return Ok(None);
        }
        match self.reader.next().await? {
            Some(Frame::Item(frame)) => Ok(Some(frame)),
            Some(Frame::End(_)) => {
                self.ended = true;
                Ok(None)
            }
            Some(_) => Err(FrameError::Unexpected.into()),
            None => Err(LinkError::Ended {
                reason: "no more frames, and no end",
            }),
        }
    }
}

/// Why a frame was not pushed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    #[error("the peer reads slower than frames come")]
    Full,
    #[error("{bytes} bytes are more than a frame takes")]
    TooLarge { bytes: usize },
    #[error("the peer or the link is gone")]
    Closed,
}

/// The pushing end. Dropped, it ends the stream after what was queued.
pub struct FrameSink {
    queue: mpsc::UnboundedSender<Queued>,
    budget: Arc<Semaphore>,
}

struct Queued {
    frame: Bytes,
    _cost: OwnedSemaphorePermit,
}

impl FrameSink {
    /// # Errors
    /// [`SinkError::Full`] instead of waiting; see [`FrameSink::send`].
    pub fn try_send(&self, frame: Bytes) -> Result<(), SinkError> {
        let cost = cost(&frame)?;
        let permit = self
            .budget
            .clone()
            .try_acquire_many_owned(cost)
            .map_err(|error| match error {
                TryAcquireError::NoPermits => SinkError::Full,
                TryAcquireError::Closed => SinkError::Closed,
            })?;
        self.queue
            .send(Queued { frame, _cost: permit })
            .map_err(|_| SinkError::Closed)
    }

    /// Queues the frame, waiting while 8 MiB are queued.
    ///
    /// # Errors
    /// The asker dropped its source, or the link is gone.
    ///
    /// # Cancel safety
    /// Safe: a frame is queued or not.
    pub async fn send(&self, frame: Bytes) -> Result<(), SinkError> {
        let cost = cost(&frame)?;
        let permit = self
            .budget
            .clone()
            .acquire_many_owned(cost)
            .await
            .map_err(|_| SinkError::Closed)?;
        self.queue
            .send(Queued { frame, _cost: permit })
            .map_err(|_| SinkError::Closed)
    }

    /// Nobody will receive what is sent from now on.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Resolves when [`FrameSink::is_closed`].
    pub async fn closed(&self) {
        self.queue.closed().await;
    }
}

fn cost(frame: &Bytes) -> Result<u32, SinkError> {
    let bytes = frame.len();
    if bytes > FRAME_BYTES_MAX - FRAME_HEAD_MAX {
        return Err(SinkError::TooLarge { bytes });
    }
    // A frame beyond the whole budget goes alone.
    Ok((bytes + FRAME_COST).min(QUEUED_BYTES_MAX) as u32)
}

/// Asker's side.
pub(super) async fn open(peer: &PeerLink, kind: u8, hello: Bytes) -> Result<FrameSource, LinkError> {
    let connection = peer
        .connection(Lane::Data)
        .ok_or(LinkError::NoLink { node: peer.node })?;
    let open = Open::Push { kind, hello };
    let (writer, reader) = wire::open(&connection, open, Traffic::Stream, PRIORITY, peer.metrics()).await?;
    Ok(FrameSource {
        reader,
        ended: false,
        _open: writer,
    })
}

/// Pusher's side: the sink for the handler, and what empties it.
pub(super) fn serve(mut writer: FrameWriter) -> (FrameSink, impl Future<Output = ()> + Send + 'static) {
    // Unbounded in type only: each frame holds its bytes' permits until it was written.
    let (queue, mut frames) = mpsc::unbounded_channel::<Queued>();
    let budget = Arc::new(Semaphore::new(QUEUED_BYTES_MAX));
    let sink = FrameSink {
        queue,
        budget: budget.clone(),
    };
    let closer = CloseOnDrop(budget);
    let serve = async move {
        let _closer = closer;
        let mut stopped = std::pin::pin!(writer.stopped());
        let mut batch = Batch::new();
        let mut queued = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = &mut stopped => return,
                count = frames.recv_many(&mut queued, FRAMES_PER_WRITE) => if count == 0 { break },
            }
            for frame in &queued {
                batch.push(&Frame::Item(frame.frame.clone()));
            }
            if writer.write(&mut batch).await.is_err() {
                return;
            }
            queued.clear();
        }
        if writer.write_frame(&Frame::End(Bytes::new())).await.is_ok() {
            writer.finish();
        }
    };
    (sink, serve)
}

/// Wakes whoever waits in [`FrameSink::send`] when the stream is over.
struct CloseOnDrop(Arc<Semaphore>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// 8 MiB: half a receive window of a stream.
const QUEUED_BYTES_MAX: usize = 8 << 20;
const FRAME_COST: usize = 64;
const FRAMES_PER_WRITE: usize = 256;
const PRIORITY: i32 = 0;
