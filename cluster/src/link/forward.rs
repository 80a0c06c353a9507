//! Ephemeral forwarding: frames that cost no log entry and yet survive a broken link.
//!
//! ```text
//! push ─▶ [ first unacknowledged … sent │ unsent … ] ──Forward 7,8,9──▶ above the last? ─▶ handler ─▶ ForwardDone
//!              ▲ rewound when the link was lost       ◀─Acknowledged 9─   all done up to here
//! ```
//!
//! The books ([`Outgoing`], [`Incoming`]) decide without I/O; two small tasks move frames.
//!
//! Invariants
//! - `forward-once`: numbers only grow within a process. A new link sends from the first unacknowledged; the receiver
//!   drops what is not above the last number that it has seen of this process. It survives the link, not the process:
//!   a restarted peer gets nothing again of what was meant for the old process.
//! - `bounded`: at most 64 MiB wait for acknowledgement; the receiver holds no more than that either.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lontra_storage::ids::NodeId;
use tokio::sync::Notify;

use super::error::{ForwardError, LinkError};
use super::frame::{Batch, FRAME_BYTES_MAX, Frame, FrameError, Open};
use super::metrics::{PeerMetrics, Traffic};
use super::peer::PeerLink;
use super::request::FRAME_HEAD_MAX;
use super::wire::{self, FrameReader, FrameWriter};
use super::{Peer, Shared};

pub(super) type OnAcked = Box<dyn FnOnce(bool) + Send>;

/// What this node forwards to one peer.
pub(super) struct Outgoing {
    peer: NodeId,
    /// Guards the books; callbacks run outside.
    state: Mutex<OutgoingState>,
    wake: Notify,
    metrics: PeerMetrics,
}

struct OutgoingState {
    /// The peer's process that the frames are meant for; the first one seen takes what was queued before.
    start: Option<u64>,
    next_number: u64,
    frames: VecDeque<Pending>,
    /// How many of `frames`, from the front, went into the present link.
    sent: usize,
    bytes: usize,
    closed: bool,
}

struct Pending {
    number: u64,
    frame: Bytes,
    on_acked: OnAcked,
}

impl Outgoing {
    pub fn new(peer: NodeId, metrics: PeerMetrics) -> Self {
        let state = OutgoingState {
            start: None,
            next_number: 1,
            frames: VecDeque::new(),
            sent: 0,
            bytes: 0,
            closed: false,
        };
        Outgoing {
            peer,
            state: Mutex::new(state),
            wake: Notify::new(),
            metrics,
        }
    }

    fn state(&self) -> MutexGuard<'_, OutgoingState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, frame: Bytes, on_acked: OnAcked) -> Result<(), ForwardError> {
        if frame.len() > FRAME_BYTES_MAX - FRAME_HEAD_MAX {
            return Err(ForwardError::TooLarge { bytes: frame.len() });
        }
        let mut state = self.state();
        if state.closed {
            return Err(ForwardError::Closed);
        }
        let bytes = state.bytes + cost(&frame);
        if bytes > UNACKNOWLEDGED_BYTES_MAX {
            return Err(ForwardError::Full {
                peer: self.peer,
                bytes: state.bytes,
            });
        }
        state.bytes = bytes;
        let number = state.next_number;
        state.next_number += 1;
        state.frames.push_back(Pending {
            number,
            frame,
            on_acked,
        });
        self.metrics.unacknowledged(bytes);
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    /// The next unsent frames, for one write.
    fn take(&self, batch: &mut Batch) {
        let mut state = self.state();
        while batch.bytes() < BATCH_BYTES
            && let Some(Pending { number, frame, .. }) = state.frames.get(state.sent)
        {
            batch.push(&Frame::Forward {
                number: *number,
                payload: frame.clone(),
            });
            state.sent += 1;
        }
    }

    /// A new link: from the first unacknowledged again.
    fn rewind(&self) {
        self.state().sent = 0;
    }

    /// # Errors
    /// The peer acknowledges what was never numbered.
    fn acknowledge(&self, number: u64) -> Result<(), FrameError> {
        let mut state = self.state();
        if number >= state.next_number {
            return Err(FrameError::Unexpected);
        }
        let count = state.frames.partition_point(|pending| pending.number <= number);
        let acknowledged: Vec<Pending> = state.frames.drain(..count).collect();
        state.sent = state.sent.saturating_sub(count);
        state.bytes -= acknowledged.iter().map(|pending| cost(&pending.frame)).sum::<usize>();
        self.metrics.unacknowledged(state.bytes);
        drop(state);
        for pending in acknowledged {
            (pending.on_acked)(true);
        }
        Ok(())
    }

    /// The peer runs as `start`: frames for an earlier process complete with `false`.
    pub fn bind(&self, start: u64) {
        let dropped = {
            let mut state = self.state();
            match state.start.replace(start) {
                Some(before) if before != start => self.clear(&mut state),
                Some(_) | None => VecDeque::new(),
            }
        };
        fail(dropped);
    }

    /// Everything unacknowledged completes with `false`.
    pub fn forget(&self) {
        let dropped = self.clear(&mut self.state());
        fail(dropped);
    }

    /// Like [`Outgoing::forget`], and nothing is taken any more.
    pub fn close(&self) {
        self.state().closed = true;
        self.forget();
    }

    fn clear(&self, state: &mut OutgoingState) -> VecDeque<Pending> {
        state.bytes = 0;
        state.sent = 0;
        self.metrics.unacknowledged(0);
        std::mem::take(&mut state.frames)
    }
}

impl Drop for Outgoing {
    /// Every callback is called once, even if the links are dropped without being closed.
    fn drop(&mut self) {
        self.close();
    }
}

fn fail(dropped: VecDeque<Pending>) {
    for pending in dropped {
        (pending.on_acked)(false);
    }
}

/// What of one process of a peer has arrived here.
pub(super) struct Incoming {
    /// Guards the books; the handler is called outside.
    state: Mutex<IncomingState>,
    wake: Notify,
}

#[derive(Default)]
struct IncomingState {
    last: u64,
    /// Handed over in order, and whether already done.
    open: VecDeque<(u64, bool)>,
    acknowledged: u64,
}

impl Incoming {
    pub fn new() -> Arc<Self> {
        Arc::new(Incoming {
            state: Mutex::default(),
            wake: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, IncomingState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the frame is new.
    fn accept(self: &Arc<Self>, number: u64) -> Option<ForwardDone> {
        let mut state = self.state();
        // forward-once: repeated from the first unacknowledged after a link break.
        if number <= state.last {
            return None;
        }
        state.last = number;
        state.open.push_back((number, false));
        Some(ForwardDone {
            incoming: self.clone(),
            number,
        })
    }

    fn done(&self, number: u64) {
        let mut state = self.state();
        if let Ok(at) = state.open.binary_search_by_key(&number, |(open, _)| *open) {
            state.open[at].1 = true;
        }
        let before = state.acknowledged;
        while let Some((number, true)) = state.open.front().copied() {
            state.acknowledged = number;
            state.open.pop_front();
        }
        let advanced = state.acknowledged > before;
        drop(state);
        if advanced {
            self.wake.notify_one();
        }
    }

    fn acknowledged(&self) -> u64 {
        self.state().acknowledged
    }
}

/// Says that a forwarded frame is in every outbox. Dropped unused, the frame and all after it stay unacknowledged, which
/// is right for frames of an incarnation that is known to be Down, and for nothing else.
#[must_use = "a frame that is not done is never acknowledged"]
pub struct ForwardDone {
    incoming: Arc<Incoming>,
    number: u64,
}

impl ForwardDone {
    /// From any task, in any order; acknowledged once all earlier frames are done too.
    pub fn done(self) {
        self.incoming.done(self.number);
    }
}

/// Sends this node's frames over one stream of `connection`, until that is lost.
pub(super) async fn run_client(peer: Arc<PeerLink>, connection: quinn::Connection) -> Result<(), LinkError> {
    let outgoing = peer.outgoing();
    let (mut writer, mut reader) =
        wire::open(&connection, Open::Forward, Traffic::Forward, PRIORITY, peer.metrics()).await?;
    outgoing.rewind();
    let write = async {
        let mut batch = Batch::new();
        loop {
            outgoing.take(&mut batch);
            if batch.is_empty() {
                outgoing.wake.notified().await;
            } else {
                writer.write(&mut batch).await?;
            }
        }
    };
    let read = async {
        loop {
            match reader.next().await? {
                Some(Frame::Acknowledged { number }) => outgoing.acknowledge(number)?,
                Some(_) => return Err(FrameError::Unexpected.into()),
                None => {
                    return Err(LinkError::Ended {
                        reason: "no more acknowledgements",
                    });
                }
            }
        }
    };
    tokio::select! {
        result = write => result,
        result = read => result,
    }
}

/// Takes the peer's frames from one stream.
pub(super) async fn run_server(
    shared: Arc<Shared>,
    from: Peer,
    incoming: Arc<Incoming>,
    mut reader: FrameReader,
    mut writer: FrameWriter,
) -> Result<(), LinkError> {
    let read = async {
        loop {
            match reader.next().await? {
                Some(Frame::Forward { number, payload }) => {
                    if let Some(done) = incoming.accept(number) {
                        shared.handler.forwarded(from, payload, done);
                    }
                }
                Some(_) => return Err(FrameError::Unexpected.into()),
                None => {
                    return Err(LinkError::Ended {
                        reason: "no more forwarded frames",
                    });
                }
            }
        }
    };
    let write = async {
        let mut told = 0;
        loop {
            let number = incoming.acknowledged();
            if number > told {
                told = number;
                writer.write_frame(&Frame::Acknowledged { number }).await?;
            } else {
                incoming.wake.notified().await;
            }
        }
    };
    tokio::select! {
        result = read => result,
        result = write => result,
    }
}

fn cost(frame: &Bytes) -> usize {
    frame.len() + FRAME_COST
}

/// 64 MiB: 1.6 s of 40 MB/s, longer than a silent peer is waited for.
pub(super) const UNACKNOWLEDGED_BYTES_MAX: usize = 64 << 20;
/// Books of one frame: number, callback, handle of the bytes.
const FRAME_COST: usize = 64;
const BATCH_BYTES: usize = 256 << 10;
const PRIORITY: i32 = 0;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn outgoing() -> Outgoing {
        let metrics = super::super::LinkMetrics::new(&prometheus::Registry::new()).unwrap();
        Outgoing::new(2, metrics.peer(2))
    }

    fn push(outgoing: &Outgoing, events: &mpsc::Sender<(u8, bool)>, name: u8) {
        let events = events.clone();
        let on_acked = Box::new(move |acked| events.send((name, acked)).unwrap());
        outgoing.push(Bytes::from(vec![name]), on_acked).unwrap();
    }

    fn take(outgoing: &Outgoing) -> Vec<(u64, u8)> {
        let mut batch = Batch::new();
        outgoing.take(&mut batch);
        let mut buffer = super::super::frame::FrameBuffer::new();
        buffer.feed(&batch.take().concat());
        let mut found = Vec::new();
        while let Some(Frame::Forward { number, payload }) = buffer.next_frame().unwrap() {
            found.push((number, payload[0]));
        }
        found
    }

    #[test]
    fn a_new_link_sends_from_the_first_unacknowledged() {
        let (events, completed) = mpsc::channel();
        let outgoing = outgoing();
        for name in 1..=4 {
            push(&outgoing, &events, name);
        }
        assert_eq!(take(&outgoing), [(1, 1), (2, 2), (3, 3), (4, 4)]);
        outgoing.acknowledge(2).unwrap();
        push(&outgoing, &events, 5);
        assert_eq!(take(&outgoing), [(5, 5)]);
        outgoing.rewind();
        assert_eq!(take(&outgoing), [(3, 3), (4, 4), (5, 5)]);
        outgoing.rewind();
        outgoing.acknowledge(4).unwrap();
        assert_eq!(take(&outgoing), [(5, 5)]);
        assert_eq!(outgoing.acknowledge(6), Err(FrameError::Unexpected));
        let acked: Vec<_> = completed.try_iter().collect();
        assert_eq!(acked, [(1, true), (2, true), (3, true), (4, true)]);
    }

    #[test]
    fn a_forgotten_or_restarted_peer_completes_frames_with_false() {
        let (events, completed) = mpsc::channel();
        let outgoing = outgoing();
        push(&outgoing, &events, 1);
        outgoing.bind(70);
        outgoing.bind(70);
        assert_eq!(
            completed.try_iter().count(),
            0,
            "the first process takes what was queued"
        );
        push(&outgoing, &events, 2);
        outgoing.bind(71);
        push(&outgoing, &events, 3);
        outgoing.forget();
        push(&outgoing, &events, 4);
        assert_eq!(
            completed.try_iter().collect::<Vec<_>>(),
            [(1, false), (2, false), (3, false)]
        );
        assert_eq!(take(&outgoing), [(4, 4)], "numbers go on");
        outgoing.close();
        assert_eq!(outgoing.push(Bytes::new(), Box::new(|_| ())), Err(ForwardError::Closed));
        assert_eq!(completed.try_iter().collect::<Vec<_>>(), [(4, false)]);
    }

    #[test]
    fn unacknowledged_bytes_are_bounded() {
        let outgoing = outgoing();
        let frame = Bytes::from(vec![0; 1 << 20]);
        let taken = (0..100)
            .take_while(|_| outgoing.push(frame.clone(), Box::new(|_| ())).is_ok())
            .count();
        assert_eq!(taken, 63);
        outgoing.acknowledge(1).unwrap();
        assert!(outgoing.push(frame, Box::new(|_| ())).is_ok());
    }

    #[test]
    fn the_receiver_drops_repeats_and_acknowledges_in_order() {
        let incoming = Incoming::new();
        let first = incoming.accept(1).unwrap();
        let second = incoming.accept(2).unwrap();
        assert!(incoming.accept(1).is_none());
        assert!(incoming.accept(2).is_none());
        let fourth = incoming.accept(4).unwrap();
        assert!(incoming.accept(3).is_none());
        second.done();
        assert_eq!(incoming.acknowledged(), 0);
        first.done();
        assert_eq!(incoming.acknowledged(), 2);
        fourth.done();
        assert_eq!(incoming.acknowledged(), 4);
    }
}
