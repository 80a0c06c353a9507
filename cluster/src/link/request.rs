//! Requests and answers of one lane: many in flight over one long-lived stream each way.
//!
//! ```text
//! submit ─▶ waiting ─taken into a write─▶ sent ─▶ answered
//!              └─ link lost, deadline: not sent    └─ link lost, deadline: unknown
//! ```
//!
//! A request that was taken into a write counts as sent, even if the write fails: *not sent* must be certain.
//! Nothing is sent again here; the caller knows what is safe to repeat.
//!
//! Invariants: `lane-order` (one queue, one stream, one reader), `bounded` (by count and bytes; the server side stops
//! reading while as many requests as a client may have in flight are unanswered).

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use lontra_storage::ids::NodeId;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::error::{LinkError, RequestError};
use super::frame::{Batch, FRAME_BYTES_MAX, Frame, FrameError, Open, Service};
use super::metrics::Traffic;
use super::peer::PeerLink;
use super::wire::{self, FrameReader, FrameWriter};
use super::{Lane, Shared};

type Answer = Result<Bytes, RequestError>;

/// The requests of this node to one peer on one lane.
pub(super) struct RequestQueue {
    peer: NodeId,
    /// Guards the books; held for a few instructions.
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    up: bool,
    next_id: u64,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    sent: BTreeMap<u64, oneshot::Sender<Answer>>,
}

struct Waiting {
    id: u64,
    service: Service,
    kind: u8,
    payload: Bytes,
    answer: oneshot::Sender<Answer>,
}

/// Where a request was when it was given up.
#[derive(Debug, PartialEq, Eq)]
enum GivenUp {
    Waiting,
    Sent,
    Answered,
}

impl RequestQueue {
    pub fn new(peer: NodeId) -> Self {
        RequestQueue {
            peer,
            state: Mutex::default(),
            wake: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enqueues at once; the future waits for the answer, until `deadline` from now.
    pub fn submit(
        self: &Arc<Self>,
        service: Service,
        kind: u8,
        payload: Bytes,
        deadline: Duration,
    ) -> impl Future<Output = Answer> + Send + 'static + use<> {
        let until = Instant::now() + deadline;
        let submitted = self.enqueue(service, kind, payload);
        let queue = self.clone();
        // Armed before the future is polled: dropping it unpolled takes the request back too.
        let guard = submitted.as_ref().ok().map(|(id, _)| GiveUpOnDrop {
            queue: queue.clone(),
            id: *id,
        });
        async move {
            let (id, mut answer) = submitted?;
            let _guard = guard;
            match timeout_at(until, &mut answer).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => Err(RequestError::LinkLost { peer: queue.peer }),
                Err(_) => match queue.give_up(id) {
                    GivenUp::Waiting => Err(RequestError::NotSentInTime {
                        peer: queue.peer,
                        waited: deadline,
                    }),
                    GivenUp::Sent => Err(RequestError::Unanswered {
                        peer: queue.peer,
                        waited: deadline,
                    }),
                    // It came between the deadline and the look into the books.
                    GivenUp::Answered => answer
                        .try_recv()
                        .unwrap_or(Err(RequestError::LinkLost { peer: queue.peer })),
                },
            }
        }
    }

    fn enqueue(
        &self,
        service: Service,
        kind: u8,
        payload: Bytes,
    ) -> Result<(u64, oneshot::Receiver<Answer>), RequestError> {
        let bytes = payload.len();
        if bytes > FRAME_BYTES_MAX - FRAME_HEAD_MAX {
            return Err(RequestError::TooLarge { bytes });
        }
        let mut state = self.state();
        if !state.up {
            return Err(RequestError::NoLink { peer: self.peer });
        }
        let waiting = state.waiting.len() + state.sent.len();
        if waiting >= REQUESTS_MAX || state.waiting_bytes + bytes > WAITING_BYTES_MAX {
            return Err(RequestError::QueueFull {
                peer: self.peer,
                waiting,
            });
        }
        let (answer, receiver) = oneshot::channel();
        let id = state.next_id;
        state.next_id += 1;
        state.waiting_bytes += bytes;
        state.waiting.push_back(Waiting {
            id,
            service,
            kind,
            payload,
            answer,
        });
        drop(state);
        self.wake.notify_one();
        Ok((id, receiver))
    }

    /// Moves what waits into one write; these count as sent from here on.
    fn take(&self, batch: &mut Batch) {
        let mut state = self.state();
        while batch.bytes() < BATCH_BYTES
            && let Some(Waiting {
                id,
                service,
                kind,
                payload,
                answer,
            }) = state.waiting.pop_front()
        {
            state.waiting_bytes -= payload.len();
            state.sent.insert(id, answer);
            batch.push(&Frame::Request {
                id,
                service,
                kind,
                payload,
            });
        }
    }

    fn complete(&self, id: u64, answer: Answer) {
        let sender = self.state().sent.remove(&id);
        // Nobody waits any more: given up.
        if let Some(sender) = sender {
            let _ = sender.send(answer);
        }
    }

    fn give_up(&self, id: u64) -> GivenUp {
        let mut state = self.state();
        if let Ok(at) = state.waiting.binary_search_by_key(&id, |waiting| waiting.id) {
            if let Some(waiting) = state.waiting.remove(at) {
                state.waiting_bytes -= waiting.payload.len();
            }
            return GivenUp::Waiting;
        }
        match state.sent.remove(&id) {
            Some(_) => GivenUp::Sent,
            None => GivenUp::Answered,
        }
    }

    pub fn link_up(&self) {
        self.state().up = true;
    }

    /// What waits was certainly not sent; of what was sent nobody knows.
    pub fn link_down(&self) {
        let (waiting, sent) = {
            let mut state = self.state();
            state.up = false;
            state.waiting_bytes = 0;
            (std::mem::take(&mut state.waiting), std::mem::take(&mut state.sent))
        };
        for answer in sent.into_values() {
            let _ = answer.send(Err(RequestError::LinkLost { peer: self.peer }));
        }
        for waiting in waiting {
            let _ = waiting.answer.send(Err(RequestError::NoLink { peer: self.peer }));
        }
    }
}

struct GiveUpOnDrop {
    queue: Arc<RequestQueue>,
    id: u64,
}

impl Drop for GiveUpOnDrop {
    fn drop(&mut self) {
        self.queue.give_up(self.id);
    }
}

/// Sends this node's requests over one stream of `connection`, until that is lost.
pub(super) async fn run_client(
    peer: Arc<PeerLink>,
    lane: Lane,
    connection: quinn::Connection,
) -> Result<(), LinkError> {
    let metrics = peer.metrics();
    let (mut writer, mut reader) =
        wire::open(&connection, Open::Requests, Traffic::Request, priority(lane), metrics).await?;
    let queue = peer.requests(lane);
    let write = async {
        let mut batch = Batch::new();
        loop {
            queue.take(&mut batch);
            if batch.is_empty() {
                queue.wake.notified().await;
            } else {
                writer.write(&mut batch).await?;
            }
        }
    };
    let read = async {
        loop {
            match reader.next().await? {
                Some(Frame::Answer { id, payload }) => queue.complete(id, Ok(payload)),
                Some(Frame::NoAnswer { id }) => {
                    queue.complete(id, Err(RequestError::Dropped { peer: queue.peer }));
                }
                Some(_) => return Err(FrameError::Unexpected.into()),
                None => {
                    return Err(LinkError::Ended {
                        reason: "no more answers",
                    });
                }
            }
        }
    };
    queue.link_up();
    peer.ready(lane);
    tokio::select! {
        result = write => result,
        result = read => result,
    }
}

/// Serves the peer's requests from one stream.
pub(super) async fn run_server(
    shared: Arc<Shared>,
    peer: Arc<PeerLink>,
    lane: Lane,
    mut reader: FrameReader,
    mut writer: FrameWriter,
) -> Result<(), LinkError> {
    writer.set_priority(priority(lane));
    // Unbounded in type only: each answer holds a permit until it was written.
    let (answers, mut outbox) = mpsc::unbounded_channel::<Reply>();
    let unanswered = Arc::new(Semaphore::new(REQUESTS_MAX));
    let read = async {
        loop {
            let (id, service, kind, payload) = match reader.next().await? {
                Some(Frame::Request {
                    id,
                    service,
                    kind,
                    payload,
                }) => (id, service, kind, payload),
                Some(_) => return Err(FrameError::Unexpected.into()),
                None => {
                    return Err(LinkError::Ended {
                        reason: "no more requests",
                    });
                }
            };
            let Ok(permit) = unanswered.clone().acquire_owned().await else {
                return Err(LinkError::Ended {
                    reason: "requests are no longer counted",
                });
            };
            let reply = ReplySender {
                pending: Some((id, permit)),
                answers: answers.clone(),
            };
            match service {
                Service::Node => shared.handler.request(peer.node, kind, payload, reply),
                Service::Raft => shared.rafts.request(kind, payload, reply),
            }
        }
    };
    let write = async {
        let mut batch = Batch::new();
        let mut replies = Vec::new();
        while outbox.recv_many(&mut replies, REPLIES_PER_WRITE).await > 0 {
            for reply in &replies {
                batch.push(&reply.frame);
                if batch.bytes() >= BATCH_BYTES {
                    writer.write(&mut batch).await?;
                }
            }
            if !batch.is_empty() {
                writer.write(&mut batch).await?;
            }
            replies.clear();
        }
        Ok(())
    };
    tokio::select! {
        result = read => result,
        result = write => result,
    }
}

struct Reply {
    frame: Frame,
    _permit: OwnedSemaphorePermit,
}

/// The way back of one request. Dropped unused, the peer learns that there is no answer (outcome unknown).
pub struct ReplySender {
    pending: Option<(u64, OwnedSemaphorePermit)>,
    answers: mpsc::UnboundedSender<Reply>,
}

impl ReplySender {
    /// Answers; never waits. An answer beyond a frame's limit is dropped.
    pub fn send(mut self, payload: Bytes) {
        if payload.len() > FRAME_BYTES_MAX - FRAME_HEAD_MAX {
            tracing::error!(
                bytes = payload.len(),
                "answer to a peer exceeds the frame limit and was dropped"
            );
            return;
        }
        self.answer(|id| Frame::Answer { id, payload });
    }

    fn answer(&mut self, frame: impl FnOnce(u64) -> Frame) {
        if let Some((id, permit)) = self.pending.take() {
            // Fails only when the link is gone, and with it the request.
            let _ = self.answers.send(Reply {
                frame: frame(id),
                _permit: permit,
            });
        }
    }
}

impl Drop for ReplySender {
    fn drop(&mut self) {
        self.answer(|id| Frame::NoAnswer { id });
    }
}

fn priority(lane: Lane) -> i32 {
    match lane {
        Lane::Control => 10,
        Lane::Data => 0,
    }
}

/// Kind, id, service and kind of the request.
pub(super) const FRAME_HEAD_MAX: usize = 16;
/// Requests of one lane waiting or unanswered: what a node under full load has in flight, and far more.
const REQUESTS_MAX: usize = 65_536;
/// Not yet sent, per lane: one frame of the largest size.
const WAITING_BYTES_MAX: usize = FRAME_BYTES_MAX;
/// Enough for quinn to fill its GSO batches; a request behind it waits about a millisecond on a 2 Gbit/s link.
const BATCH_BYTES: usize = 256 << 10;
const REPLIES_PER_WRITE: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn up() -> Arc<RequestQueue> {
        let queue = Arc::new(RequestQueue::new(2));
        queue.link_up();
        queue
    }

    #[tokio::test]
    async fn without_a_link_nothing_is_sent() {
        let queue = Arc::new(RequestQueue::new(2));
        let answer = queue.submit(Service::Node, 1, Bytes::new(), LONG).await;
        assert_eq!(answer, Err(RequestError::NoLink { peer: 2 }));
    }

    #[tokio::test]
    async fn a_lost_link_tells_not_sent_from_unknown() {
        let queue = up();
        let sent = queue.submit(Service::Node, 1, Bytes::from_static(b"a"), LONG);
        let mut batch = Batch::new();
        queue.take(&mut batch);
        assert_eq!(batch.frames(), 1);
        let waiting = queue.submit(Service::Node, 1, Bytes::from_static(b"b"), LONG);
        queue.link_down();
        assert_eq!(sent.await, Err(RequestError::LinkLost { peer: 2 }));
        assert_eq!(waiting.await, Err(RequestError::NoLink { peer: 2 }));
        assert_eq!(queue.state().waiting_bytes, 0);
    }

    #[tokio::test]
    async fn a_deadline_tells_not_sent_from_unknown() {
        let queue = up();
        let waited = Duration::from_millis(5);
        let sent = queue.submit(Service::Node, 1, Bytes::new(), waited);
        queue.take(&mut Batch::new());
        let waiting = queue.submit(Service::Node, 1, Bytes::new(), waited);
        assert_eq!(waiting.await, Err(RequestError::NotSentInTime { peer: 2, waited }));
        assert_eq!(sent.await, Err(RequestError::Unanswered { peer: 2, waited }));
        let mut batch = Batch::new();
        queue.take(&mut batch);
        assert!(batch.is_empty(), "what was given up is not sent");
    }

    #[tokio::test]
    async fn a_dropped_future_takes_its_request_back() {
        let queue = up();
        drop(queue.submit(Service::Node, 1, Bytes::from_static(b"a"), LONG));
        let mut batch = Batch::new();
        queue.take(&mut batch);
        assert!(batch.is_empty());
        assert_eq!(queue.state().waiting_bytes, 0);
    }

    #[tokio::test]
    async fn the_queue_is_bounded() {
        let queue = up();
        let half = Bytes::from(vec![0; WAITING_BYTES_MAX / 2 + 1]);
        let _first = queue.submit(Service::Node, 1, half.clone(), LONG);
        let second = queue.submit(Service::Node, 1, half, LONG).await;
        assert_eq!(second, Err(RequestError::QueueFull { peer: 2, waiting: 1 }));
        let large = Bytes::from(vec![0; FRAME_BYTES_MAX]);
        let third = queue.submit(Service::Node, 1, large, LONG).await;
        assert_eq!(third, Err(RequestError::TooLarge { bytes: FRAME_BYTES_MAX }));
    }
}
