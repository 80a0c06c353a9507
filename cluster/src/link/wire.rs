//! Frames on QUIC streams: one reader, one writer, both counting.

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream, VarInt};

use super::error::LinkError;
use super::frame::{Batch, Frame, FrameBuffer, FrameError, Open};
use super::metrics::{PeerMetrics, Traffic};

/// The frames of one receiving half.
pub(super) struct FrameReader {
    stream: RecvStream,
    buffer: FrameBuffer,
    kind: Traffic,
    metrics: PeerMetrics,
}

impl FrameReader {
    pub fn new(stream: RecvStream, kind: Traffic, metrics: PeerMetrics) -> Self {
        FrameReader {
            stream,
            buffer: FrameBuffer::new(),
            kind,
            metrics,
        }
    }

    /// From here on the stream counts as `kind`: known once its Open has been read.
    pub fn set_kind(&mut self, kind: Traffic) {
        self.kind = kind;
    }

    /// The next frame; `None` when the peer finished the stream.
    ///
    /// # Cancel safety
    /// Safe: what was read stays in the buffer.
    pub async fn next(&mut self) -> Result<Option<Frame>, LinkError> {
        loop {
            if let Some(frame) = self.buffer.next_frame()? {
                self.metrics.frame_received(self.kind);
                return Ok(Some(frame));
            }
            match self
                .stream
                .read_chunk(READ_BYTES_MAX, true)
                .await
                .map_err(LinkError::broken)?
            {
                Some(chunk) => {
                    self.metrics.bytes_received(chunk.bytes.len());
                    self.buffer.feed(&chunk.bytes);
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(FrameError::Truncated.into()),
            }
        }
    }
}

/// The frames of one sending half. Dropped without [`FrameWriter::finish`] it resets the stream, so that the peer
/// never takes an abandoned stream for a complete one.
pub(super) struct FrameWriter {
    stream: SendStream,
    finished: bool,
    kind: Traffic,
    metrics: PeerMetrics,
}

impl FrameWriter {
    pub fn new(stream: SendStream, kind: Traffic, metrics: PeerMetrics) -> Self {
        FrameWriter {
            stream,
            finished: false,
            kind,
            metrics,
        }
    }

    pub fn set_kind(&mut self, kind: Traffic) {
        self.kind = kind;
    }

    pub fn set_priority(&self, priority: i32) {
        // Fails only on a stream that is over, which the next write tells.
        let _ = self.stream.set_priority(priority);
    }

    /// Writes the batch in one go and leaves it empty.
    pub async fn write(&mut self, batch: &mut Batch) -> Result<(), LinkError> {
        self.metrics.frames_sent(self.kind, batch.frames(), batch.bytes());
        let mut chunks = batch.take();
        self.stream
            .write_all_chunks(&mut chunks)
            .await
            .map_err(LinkError::broken)
    }

    /// Writes some of `chunks`, which then hold what is left.
    ///
    /// # Cancel safety
    /// Safe: what was not written is still in `chunks`.
    pub async fn write_some(&mut self, chunks: &mut Vec<Bytes>) -> Result<(), LinkError> {
        let written = self.stream.write_chunks(chunks).await.map_err(LinkError::broken)?;
        chunks.drain(..written.chunks);
        Ok(())
    }

    /// Counts frames that go through [`FrameWriter::write_some`].
    pub fn count(&self, batch: &Batch) {
        self.metrics.frames_sent(self.kind, batch.frames(), batch.bytes());
    }

    pub async fn write_frame(&mut self, frame: &Frame) -> Result<(), LinkError> {
        let mut batch = Batch::new();
        batch.push(frame);
        self.write(&mut batch).await
    }

    /// Nothing follows; what was written will still arrive.
    pub fn finish(&mut self) {
        self.finished = true;
        // Fails only on a stream that is over.
        let _ = self.stream.finish();
    }

    /// The future resolves when the peer wants no more, or the link is gone.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let stopped = self.stream.stopped();
        async move {
            let _ = stopped.await;
        }
    }
}

impl Drop for FrameWriter {
    fn drop(&mut self) {
        if !self.finished {
            // Fails only on a stream that is over.
            let _ = self.stream.reset(RESET_ABANDONED);
        }
    }
}

/// Opens a stream and says what for.
pub(super) async fn open(
    connection: &Connection,
    open: Open,
    kind: Traffic,
    priority: i32,
    metrics: &PeerMetrics,
) -> Result<(FrameWriter, FrameReader), LinkError> {
    let (send, receive) = connection.open_bi().await.map_err(LinkError::broken)?;
    let mut writer = FrameWriter::new(send, kind, metrics.clone());
    writer.set_priority(priority);
    writer.write_frame(&Frame::Open(open)).await?;
    Ok((writer, FrameReader::new(receive, kind, metrics.clone())))
}

/// One read takes at most so much; also what a small frame may pin.
const READ_BYTES_MAX: usize = 64 << 10;
const RESET_ABANDONED: VarInt = VarInt::from_u32(1);
