//! Outbound PUBLISH: what a session still has to get, what is in flight to its client, and under which identifiers.
//!
//! ```text
//!   page, push ─▶ ready (per shard) ─▶ in flight ─PUBACK─▶ settling ─applied─▶ identifier free
//!   ephemeral  ─▶ waiting           ─▶ in flight ─PUBACK─▶ identifier free
//! ```
//!
//! Sans-io: entries, acknowledgements and `now` come in; bytes, settlements and wishes for pages go out.
//!
//! Invariants
//! - `send-quota`: in flight ≤ the client's Receive Maximum. [MQTT-3.3.4-9]
//! - `packet-id-of-offset`: in a durable session the identifier is a function of shard and offset; it is not used for
//!   another offset before the entry that had it is gone in apply. An entry that waits for its identifier holds back the
//!   later ones of its shard.
//! - `order-per-topic`: entries of a shard leave in order of their offset.
//! - `cursor`: a push counts only while every earlier entry of the shard has been taken in; otherwise the session is
//!   behind, and reads pages until it has caught up with all that it missed.
//! - `bounded`: `ready` and `waiting` have limits; beyond, a durable session is behind, an ephemeral one holds the
//!   publisher's acknowledgement for a while, then ends.

use std::collections::{HashMap, HashSet, VecDeque};
use std::num::NonZeroU16;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use lontra_cluster::local::Guard;
use lontra_storage::ids::{Offset, ShardId};
use lontra_storage::message::{LogTime, Message, Recipient};
use lontra_storage::shard::{Page, PendingEntry};

use super::codec::{PropertiesOut, PublishFields, PublishFrame, QoS, ReasonCode, Version};
use crate::metrics::Drop;

/// What the client allows, and what the broker keeps for it at most.
#[derive(Clone, Debug)]
pub struct OutboundLimits {
    /// The client's Receive Maximum. [MQTT-3.1.2-33]
    pub receive_maximum: u16,
    /// The client's Maximum Packet Size in bytes. [MQTT-3.1.2-24]
    pub maximum_packet_size: usize,
    /// Bytes on their way to the socket beyond which QoS 0 is dropped.
    pub bytes_max: usize,
    /// Ephemeral QoS 1 messages that wait for the client at most.
    pub messages_max: usize,
}

/// Something for the client that no shard keeps.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub message: Arc<Message>,
    pub qos: u8,
    pub retain: bool,
    pub subscription_identifiers: Vec<u32>,
    /// When it was appended, for Message Expiry; none on the ephemeral path.
    pub age: Option<LogTime>,
}

/// What the session asks of the cluster.
#[derive(Debug, PartialEq, Eq)]
pub enum Wish {
    /// The next page of a shard behind this offset.
    Page(ShardId, Offset),
    /// The client has it: it leaves the queue. The identifier is busy until that is applied.
    Settle(ShardId, Offset, u16),
}

/// What happened besides.
#[derive(Debug, Default)]
pub struct Effects {
    pub wishes: Vec<Wish>,
    /// QoS of each PUBLISH that left.
    pub sent: Vec<u8>,
    pub dropped: Vec<Drop>,
    /// PUBLISH packets of the client that were refused.
    pub refused: Vec<ReasonCode>,
}

#[derive(Debug, Default)]
struct ShardQueue {
    /// Everything up to here was taken into `ready`.
    cursor: Offset,
    /// The highest offset that was pushed while behind, or that a hole covers.
    missed: Offset,
    state: View,
    ready: VecDeque<PendingEntry>,
    /// Entries up to here may have been sent to an earlier connection: they carry DUP. [MQTT-3.3.1-1]
    maybe_sent: Offset,
    /// It is not known what an earlier connection sent: everything that it may have seen counts, which is what the
    /// session finds until it has caught up once.
    sent_unknown: bool,
    /// The highest offset sent, by this connection or an earlier one.
    highest_sent: Offset,
    attached_at: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum View {
    /// Not attached to the shard yet.
    #[default]
    Detached,
    /// Pages must be read, when there is room.
    Behind,
    /// A page is being read.
    Reading,
    /// Pushes are taken in as they come.
    Live,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InFlight {
    Durable(ShardId, Offset),
    Ephemeral,
}

/// The outbound half of a session.
pub struct Outbound {
    version: Version,
    limits: OutboundLimits,
    shards: Vec<ShardQueue>,
    /// Identifiers per shard: ⌊65535 / S⌋.
    ids_per_shard: u64,
    in_flight: HashMap<u16, InFlight>,
    /// Acknowledged by the client, not yet gone in apply.
    settling: HashSet<u16>,
    waiting: VecDeque<Delivery>,
    /// Acknowledgements of publishers that wait until `waiting` is below its limit again.
    held: Vec<Guard>,
    next_id: u16,
    /// Where the round over the shards goes on.
    turn: usize,
}

impl Outbound {
    /// `durable` sessions begin detached from each of `shards`.
    pub fn new(version: Version, limits: OutboundLimits, shards: u16, durable: bool) -> Self {
        let queues = if durable { shards } else { 0 };
        Outbound {
            version,
            limits,
            shards: (0..queues).map(|_| ShardQueue::default()).collect(),
            ids_per_shard: 65_535 / u64::from(shards.max(1)),
            in_flight: HashMap::new(),
            settling: HashSet::new(),
            waiting: VecDeque::new(),
            held: Vec::new(),
            next_id: 0,
            turn: 0,
        }
    }

    pub fn is_durable(&self) -> bool {
        !self.shards.is_empty()
    }

    fn packet_id(&self, shard: ShardId, offset: Offset) -> u16 {
        1 + (u64::from(shard.0) * self.ids_per_shard + offset.0 % self.ids_per_shard) as u16
    }

    fn queue(&mut self, shard: ShardId) -> Option<&mut ShardQueue> {
        self.shards.get_mut(usize::from(shard.0))
    }

    /// The node's view of the shard has reached what it must show: pages may be read.
    ///
    /// `index` is the log index that every page must have applied.
    pub fn attach(&mut self, shard: ShardId, index: u64, effects: &mut Effects) {
        if let Some(queue) = self.queue(shard)
            && queue.state == View::Detached
        {
            queue.state = View::Behind;
            queue.attached_at = index;
        }
        self.read_more(shard, effects);
    }

    /// The log index that pages of the shard must have applied.
    pub fn attached_at(&self, shard: ShardId) -> u64 {
        self.shards
            .get(usize::from(shard.0))
            .map_or(0, |queue| queue.attached_at)
    }

    /// What earlier connections sent, by shard; `None` if that is not known.
    pub fn resume(&mut self, sent: Option<&[Offset]>) {
        for (at, queue) in self.shards.iter_mut().enumerate() {
            queue.sent_unknown = sent.is_none();
            queue.maybe_sent = sent.and_then(|sent| sent.get(at)).copied().unwrap_or_default();
            queue.highest_sent = queue.maybe_sent;
        }
    }

    /// By shard, the highest offset that this connection or an earlier one sent; `None` if it has not found out what
    /// earlier ones may have sent.
    pub fn highest_sent(&self) -> Option<Vec<Offset>> {
        let known = |queue: &ShardQueue| (!queue.sent_unknown).then_some(queue.highest_sent);
        self.shards.iter().map(known).collect()
    }

    /// The connection ended: nothing more is sent, and nobody's acknowledgement waits for it.
    pub fn abandon(&mut self) {
        self.held.clear();
        self.waiting.clear();
        for queue in &mut self.shards {
            queue.ready.clear();
        }
    }

    /// The session is new: nothing can be queued, and pushes count from the first.
    pub fn attach_fresh(&mut self) {
        for queue in &mut self.shards {
            queue.state = View::Live;
        }
    }

    /// A page that was wished for has come.
    pub fn page(&mut self, shard: ShardId, page: Page, effects: &mut Effects) {
        let Some(queue) = self.queue(shard) else { return };
        if queue.sent_unknown {
            queue.maybe_sent = page.upto;
            queue.highest_sent = queue.highest_sent.max(page.upto);
        }
        for entry in page.entries {
            if entry.offset > queue.cursor {
                queue.cursor = entry.offset;
                queue.ready.push_back(entry);
            }
        }
        queue.cursor = queue.cursor.max(page.upto);
        queue.state = if page.more || queue.missed > queue.cursor {
            View::Behind
        } else {
            View::Live
        };
        queue.sent_unknown &= queue.state != View::Live;
        self.read_more(shard, effects);
    }

    /// Wishes for the next page of a shard that is behind, if there is room for it.
    fn read_more(&mut self, shard: ShardId, effects: &mut Effects) {
        let Some(queue) = self.queue(shard) else { return };
        if queue.state == View::Behind && queue.ready.len() <= READY_MAX / 2 {
            queue.state = View::Reading;
            effects.wishes.push(Wish::Page(shard, queue.cursor));
        }
    }

    /// A live push from apply.
    pub fn push(&mut self, shard: ShardId, entry: impl FnOnce() -> PendingEntry, offset: Offset) {
        let Some(queue) = self.queue(shard) else { return };
        if offset <= queue.cursor {
            return;
        }
        if queue.state == View::Live && queue.ready.len() < READY_MAX {
            queue.cursor = offset;
            queue.ready.push_back(entry());
            return;
        }
        queue.missed = queue.missed.max(offset);
        if queue.state == View::Live {
            queue.state = View::Behind;
        }
    }

    /// Something up to `upto` was never pushed.
    pub fn hole(&mut self, shard: ShardId, upto: Offset, effects: &mut Effects) {
        let Some(queue) = self.queue(shard) else { return };
        if upto <= queue.cursor {
            return;
        }
        queue.missed = queue.missed.max(upto);
        if queue.state == View::Live {
            queue.state = View::Behind;
        }
        self.read_more(shard, effects);
    }

    /// PUBACK. An identifier that is not in flight is ignored: the peer may acknowledge again after a reconnect.
    pub fn acknowledge(&mut self, packet_id: NonZeroU16, effects: &mut Effects) -> bool {
        match self.in_flight.remove(&packet_id.get()) {
            None => false,
            Some(InFlight::Ephemeral) => true,
            Some(InFlight::Durable(shard, offset)) => {
                self.settling.insert(packet_id.get());
                effects.wishes.push(Wish::Settle(shard, offset, packet_id.get()));
                true
            }
        }
    }

    /// A settlement was applied (or its incarnation ended): the identifier is free.
    pub fn settled(&mut self, packet_id: u16) {
        self.settling.remove(&packet_id);
    }

    /// An ephemeral message. QoS 0 leaves at once or is dropped; QoS 1 waits for its turn, and holds `guard` while too
    /// many wait.
    pub fn deliver(
        &mut self,
        delivery: Delivery,
        guard: Option<&Guard>,
        frames: &mut FrameCache,
        out: &mut BytesMut,
        effects: &mut Effects,
    ) {
        if delivery.qos == 0 {
            if out.len() > self.limits.bytes_max {
                effects.dropped.push(Drop::OutboxFull);
                return;
            }
            self.write(&delivery, None, false, None, frames, out, effects);
            return;
        }
        if self.waiting.is_empty() && self.has_quota(out) {
            self.send_ephemeral(&delivery, None, frames, out, effects);
            return;
        }
        self.waiting.push_back(delivery);
        if self.waiting.len() > self.limits.messages_max {
            self.held.extend(guard.cloned());
        }
    }

    /// Whether more waits than the client may leave waiting: its publishers' acknowledgements are held.
    pub fn is_overfull(&self) -> bool {
        self.waiting.len() > self.limits.messages_max
    }

    /// Whether so much waits that no time is given.
    pub fn is_hopeless(&self) -> bool {
        self.waiting.len() > self.limits.messages_max.saturating_mul(2)
    }

    fn has_quota(&self, out: &BytesMut) -> bool {
        self.in_flight.len() < usize::from(self.limits.receive_maximum)
            && out.len() < OUT_HIGH.min(self.limits.bytes_max)
    }

    /// Sends what may be sent now: in turns, the ephemeral queue and each shard.
    pub fn pump(&mut self, now: impl Fn(ShardId) -> LogTime, out: &mut BytesMut, effects: &mut Effects) {
        let mut frames = FrameCache::default();
        while self.has_quota(out)
            && let Some(delivery) = self.waiting.pop_front()
        {
            self.send_ephemeral(&delivery, None, &mut frames, out, effects);
        }
        if !self.is_overfull() {
            self.held.clear();
        }
        let count = self.shards.len();
        let mut idle = 0;
        while idle < count && self.has_quota(out) {
            let shard = ShardId(self.turn as u16);
            self.turn = (self.turn + 1) % count;
            if self.send_next(shard, now(shard), &mut frames, out, effects) {
                idle = 0
            } else {
                idle += 1
            }
        }
        for shard in 0..count {
            self.read_more(ShardId(shard as u16), effects);
        }
    }

    /// The next entry of a shard; false if there is none, or it waits for its identifier.
    fn send_next(
        &mut self,
        shard: ShardId,
        now: LogTime,
        frames: &mut FrameCache,
        out: &mut BytesMut,
        effects: &mut Effects,
    ) -> bool {
        let at = usize::from(shard.0);
        let Some(offset) = self.shards[at].ready.front().map(|entry| entry.offset) else {
            return false;
        };
        let id = self.packet_id(shard, offset);
        if self.in_flight.contains_key(&id) || self.settling.contains(&id) {
            return false;
        }
        let Some(entry) = self.shards[at].ready.pop_front() else {
            return false;
        };
        let maybe_sent = offset <= self.shards[at].maybe_sent;
        let left = remaining_expiry(&entry.message, Some(entry.appended_at), now);
        let reason = match left {
            // What was never sent is not first-sent when it has expired. [MQTT-3.3.2-5]
            Some(0) if !maybe_sent => Some(Drop::Expired),
            _ => None,
        };
        let delivery = delivery_of(&entry);
        let written = match reason {
            Some(reason) => {
                effects.dropped.push(reason);
                false
            }
            None => self.write(&delivery, NonZeroU16::new(id), maybe_sent, left, frames, out, effects),
        };
        if written {
            let queue = &mut self.shards[at];
            queue.highest_sent = queue.highest_sent.max(offset);
            self.in_flight.insert(id, InFlight::Durable(shard, offset));
        } else {
            self.settling.insert(id);
            effects.wishes.push(Wish::Settle(shard, offset, id));
        }
        true
    }

    fn send_ephemeral(
        &mut self,
        delivery: &Delivery,
        left: Option<u32>,
        frames: &mut FrameCache,
        out: &mut BytesMut,
        effects: &mut Effects,
    ) {
        let id = self.free_id();
        if self.write(delivery, Some(id), false, left, frames, out, effects) {
            self.in_flight.insert(id.get(), InFlight::Ephemeral);
        }
    }

    /// Only ephemeral sessions and quota below 65,535 come here, so one is free.
    fn free_id(&mut self) -> NonZeroU16 {
        loop {
            self.next_id = self.next_id.wrapping_add(1);
            if let Some(id) = NonZeroU16::new(self.next_id)
                && !self.in_flight.contains_key(&self.next_id)
                && !self.settling.contains(&self.next_id)
            {
                return id;
            }
        }
    }

    /// Appends the PUBLISH; false if the client does not take packets of its size.
    #[allow(clippy::too_many_arguments, reason = "the fields of one PUBLISH, and where it goes")]
    fn write(
        &self,
        delivery: &Delivery,
        packet_id: Option<NonZeroU16>,
        dup: bool,
        expiry: Option<u32>,
        frames: &mut FrameCache,
        out: &mut BytesMut,
        effects: &mut Effects,
    ) -> bool {
        let Some(frame) = frames.frame(self.version, delivery, expiry.or(delivery.message.expiry_interval)) else {
            effects.dropped.push(Drop::TooLarge);
            return false;
        };
        if frame.len() > self.limits.maximum_packet_size {
            effects.dropped.push(Drop::TooLarge);
            return false;
        }
        frame.append(packet_id, dup, out);
        effects.sent.push(delivery.qos);
        true
    }
}

fn delivery_of(entry: &PendingEntry) -> Delivery {
    let Recipient {
        qos,
        retain,
        subscription_identifiers,
        ..
    } = entry.granted.clone();
    Delivery {
        message: entry.message.clone(),
        qos,
        retain,
        subscription_identifiers,
        age: Some(entry.appended_at),
    }
}

/// What is left of the Message Expiry Interval, in whole seconds rounded up; 0 when it has passed. [MQTT-3.3.2-6]
fn remaining_expiry(message: &Message, appended_at: Option<LogTime>, now: LogTime) -> Option<u32> {
    let interval = message.expiry_interval?;
    let Some(appended_at) = appended_at else {
        return Some(interval);
    };
    let left = appended_at.plus_seconds(interval).0.saturating_sub(now.0);
    Some(left.div_ceil(1000) as u32)
}

/// Encoded frames of one fan-out: equal (message, version, QoS, flags, properties) is encoded once.
#[derive(Default)]
pub struct FrameCache {
    frames: Vec<CachedFrame>,
}

struct CachedFrame {
    message: Arc<Message>,
    version: Version,
    qos: u8,
    retain: bool,
    expiry: Option<u32>,
    identifiers: Vec<u32>,
    frame: Rc<PublishFrame>,
}

impl FrameCache {
    /// `None` if it cannot be encoded: longer than a packet may be.
    fn frame(&mut self, version: Version, delivery: &Delivery, expiry: Option<u32>) -> Option<Rc<PublishFrame>> {
        let found = self.frames.iter().find(|cached| {
            Arc::ptr_eq(&cached.message, &delivery.message)
                && cached.version == version
                && cached.qos == delivery.qos
                && cached.retain == delivery.retain
                && cached.expiry == expiry
                && cached.identifiers == delivery.subscription_identifiers
        });
        if let Some(cached) = found {
            return Some(cached.frame.clone());
        }
        let message = &delivery.message;
        let fields = PublishFields {
            version,
            qos: QoS::from_bits(delivery.qos)?,
            retain: delivery.retain,
            topic: &message.topic,
            properties: PropertiesOut {
                forwarded: &message.properties,
                message_expiry_interval: expiry,
                subscription_identifiers: &delivery.subscription_identifiers,
                topic_alias: None,
            },
            payload: &message.payload,
        };
        let frame = Rc::new(PublishFrame::encode(&fields).ok()?);
        if self.frames.len() >= FRAMES_MAX {
            self.frames.clear();
        }
        self.frames.push(CachedFrame {
            message: message.clone(),
            version,
            qos: delivery.qos,
            retain: delivery.retain,
            expiry,
            identifiers: delivery.subscription_identifiers.clone(),
            frame: frame.clone(),
        });
        Some(frame)
    }
}

/// Entries of a shard that are kept in memory for one session.
const READY_MAX: usize = 64;
/// What the node reads into `ready` at a time.
pub const PAGE_ENTRIES: u32 = 32;
pub const PAGE_BYTES: u32 = 256 * 1024;
/// Bytes on their way to the socket beyond which nothing more is taken from storage.
const OUT_HIGH: usize = 256 * 1024;
/// A fan-out has few kinds of frames; a linear search stays cheap.
const FRAMES_MAX: usize = 8;

#[cfg(test)]
mod tests;
