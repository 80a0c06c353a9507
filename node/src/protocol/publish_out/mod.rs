//! Outbound PUBLISH: what a session still has to get, and what leaves now.
//!
//! ```text
//!   page, push ─▶ ready (per shard) ─┐
//!                                    ├─ quota, identifier ─▶ in flight ─▶ over        queue: ready of one shard
//!   ephemeral  ─▶ waiting ───────────┘                                              in_flight: exchanges, frames: bytes
//! ```
//!
//! Sans-io: entries, acknowledgements and `now` come in; bytes, settlements and wishes for pages go out.
//!
//! Invariants
//! - `send-quota`: PUBLISH packets in flight ≤ the client's Receive Maximum. [MQTT-3.3.4-9] PUBRELs need no quota.
//! - `packet-id-of-offset`: in a durable session the identifier is a function of shard and offset; it is not used for
//!   another offset before the entry that had it is gone in apply. An entry that waits for its identifier holds back the
//!   later ones of its shard.
//! - `order-per-topic`: entries of a shard leave in order of their offset.
//! - `exactly-once-out`: a QoS 2 entry that may have been sent is never dropped: it is sent again, or closed by PUBREL.
//! - `readable`: no PUBLISH leaves on a topic that the client may not read.
//! - `bounded`: `ready` and `waiting` have limits, in messages and in bytes; beyond, a durable session is behind, an ephemeral one holds the
//!   publisher's acknowledgement for a while, then ends.

mod frames;
mod in_flight;
mod queue;
mod room;

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use lontra_cluster::local::Guard;
use lontra_storage::command::Left;
use lontra_storage::ids::{Offset, ShardId};
use lontra_storage::message::{LogTime, Message};
use lontra_storage::shard::{Page, PendingEntry};

pub use self::frames::FrameCache;
use self::in_flight::{InFlight, Of};
use self::queue::ShardQueue;
use super::answers::Answers;
use super::codec::ReasonCode;
use super::mountpoint::Mountpoint;
use super::topic_alias::AliasesOut;
use crate::auth::Access;
use crate::metrics::Drop;
use crate::rare::Rare;

/// What the client allows, and what the broker keeps for it at most.
#[derive(Clone, Debug)]
pub struct OutboundLimits {
    /// The client's Receive Maximum. [MQTT-3.1.2-33]
    pub receive_maximum: u16,
    /// The client's Topic Alias Maximum, capped by the configuration. [MQTT-3.1.2-26]
    pub topic_alias_maximum: u16,
    /// Bytes on their way to the socket beyond which QoS 0 is dropped; and of messages that wait for the client.
    pub bytes_max: usize,
    /// Ephemeral QoS 1 and 2 messages that wait for the client at most.
    pub messages_max: usize,
    /// What stands before the client's topics in the cluster.
    pub mountpoint: Mountpoint,
}

/// Something for the client that is not in its own queue.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub message: Arc<Message>,
    pub qos: u8,
    /// RETAIN as it leaves.
    pub retain: bool,
    pub subscription_identifiers: Vec<u32>,
    /// When it was appended, for Message Expiry; none on the ephemeral path. It counts where `settle` names the shard.
    pub age: Option<LogTime>,
    /// The entry of a group's queue that was assigned to this session: it is settled when the exchange is over, or the
    /// message was dropped.
    pub settle: Option<(ShardId, Offset)>,
}

/// What the session asks of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// The next page of a shard behind this offset.
    Page(ShardId, Offset),
    /// The client has it, or will not get it: it leaves the queue. The identifier is busy until [`Outbound::settled`]; that of a group's
    /// entry (0 if it never had one) is not.
    Settle(ShardId, Offset, u16, Left),
    /// PUBREC came: when that is committed, [`Outbound::released`] lets PUBREL leave.
    Release(ShardId, Offset, u16),
}

/// What happened besides.
#[derive(Debug, Default)]
pub struct Effects {
    pub wishes: Vec<Wish>,
    /// PUBLISH packets that left, by QoS.
    pub sent: [u32; 3],
    pub dropped: Vec<Drop>,
    /// PUBLISH packets of the client that were refused.
    pub refused: Vec<ReasonCode>,
    /// PUBLISH packets of the client whose topic is above the limits.
    pub topics_above_limits: usize,
    /// The client's CONNECT was refused.
    pub connect_refused: Option<ReasonCode>,
}

/// A delivery that waits for its turn.
struct Waiting {
    delivery: Delivery,
    /// Set by the first [`Outbound::pump`] that sees it.
    since: Option<Instant>,
    source: Source,
}

/// Whence a delivery comes: whether its publishers can be held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// As it was published: nothing but the client's outbox bounds it.
    Live,
    /// A group's queue, which goes by [`Outbound::free_quota`], or a replay, which goes by [`Outbound::wants_page`].
    Paced,
}

/// What waits, once anything has.
#[derive(Default)]
struct Backlog {
    waiting: VecDeque<Waiting>,
    /// Bytes of `waiting`, and of those that are live.
    bytes: usize,
    live_bytes: usize,
    /// Acknowledgements of publishers that wait until `waiting` is below its limit again.
    held: Vec<Guard>,
}

impl Backlog {
    fn push(&mut self, delivery: Delivery, source: Source) {
        let bytes = bytes_of(&delivery);
        self.bytes += bytes;
        if source == Source::Live {
            self.live_bytes += bytes;
        }
        self.waiting.push_back(Waiting {
            delivery,
            since: None,
            source,
        });
    }

    fn pop(&mut self) -> Option<Waiting> {
        let waiting = self.waiting.pop_front()?;
        let bytes = bytes_of(&waiting.delivery);
        self.bytes -= bytes;
        if waiting.source == Source::Live {
            self.live_bytes -= bytes;
        }
        Some(waiting)
    }
}

/// What a message takes up while it waits.
fn bytes_of(delivery: &Delivery) -> usize {
    let message = &delivery.message;
    message.topic.len() + message.payload.len() + message.properties.len()
}

/// The outbound half of a session.
pub struct Outbound {
    answers: Answers,
    limits: OutboundLimits,
    shards: Vec<ShardQueue>,
    /// Identifiers per shard: ⌊65535 / S⌋.
    ids_per_shard: u64,
    in_flight: InFlight,
    aliases: AliasesOut,
    backlog: Rare<Backlog>,
    next_id: u16,
    /// Where the round over the shards goes on.
    turn: usize,
    /// What the client may read; none: nothing.
    access: Option<Rc<Access>>,
    /// The connection ends: what still comes is dropped, whoever brings it.
    ended: bool,
}

impl Outbound {
    /// `durable` sessions begin detached from each of `shards`.
    pub fn new(
        answers: Answers,
        limits: OutboundLimits,
        shards: u16,
        durable: bool,
        access: Option<Rc<Access>>,
    ) -> Self {
        let queues = if durable { shards } else { 0 };
        Outbound {
            answers,
            shards: (0..queues).map(|_| ShardQueue::default()).collect(),
            ids_per_shard: 65_535 / u64::from(shards.max(1)),
            in_flight: InFlight::new(answers),
            aliases: AliasesOut::new(limits.topic_alias_maximum),
            limits,
            backlog: Rare::default(),
            next_id: 0,
            turn: 0,
            access,
            ended: false,
        }
    }

    pub fn is_durable(&self) -> bool {
        !self.shards.is_empty()
    }

    fn packet_id(&self, shard: ShardId, offset: Offset) -> NonZeroU16 {
        let id = u64::from(shard.0) * self.ids_per_shard + offset.0 % self.ids_per_shard;
        NonZeroU16::MIN.saturating_add(id as u16)
    }

    /// None of an ephemeral session, and once the connection ends.
    fn queue(&mut self, shard: ShardId) -> Option<&mut ShardQueue> {
        match self.ended {
            true => None,
            false => self.shards.get_mut(usize::from(shard.0)),
        }
    }

    /// The node's view of the shard has reached what it must show: pages may be read.
    ///
    /// `index` is the log index that every page must have applied.
    pub fn attach(&mut self, shard: ShardId, index: u64, effects: &mut Effects) {
        let Some(queue) = self.queue(shard) else { return };
        queue.attach(index);
        self.read_more(shard, effects);
    }

    /// The log index that pages of the shard must have applied.
    pub fn attached_at(&self, shard: ShardId) -> u64 {
        self.shards.get(usize::from(shard.0)).map_or(0, ShardQueue::attached_at)
    }

    /// What earlier connections sent, by shard; `None` if that is not known.
    pub fn resume(&mut self, sent: Option<&[Offset]>) {
        for (at, queue) in self.shards.iter_mut().enumerate() {
            queue.resume(sent.map(|sent| sent.get(at).copied().unwrap_or_default()));
        }
    }

    /// By shard, the highest offset that this connection or an earlier one sent; `None` if it has not found out what
    /// earlier ones may have sent.
    pub fn highest_sent(&self) -> Option<Vec<Offset>> {
        self.shards.iter().map(ShardQueue::highest_sent).collect()
    }

    /// The connection ends: nothing more is sent, and nobody's acknowledgement waits for it. What a shard keeps stays there.
    pub fn end(&mut self) {
        self.ended = true;
        self.backlog = Rare::default();
        self.shards.iter_mut().for_each(ShardQueue::clear);
    }

    /// The session is new: nothing can be queued, and pushes count from the first.
    pub fn attach_fresh(&mut self) {
        self.shards.iter_mut().for_each(ShardQueue::attach_fresh);
    }

    /// A page that was wished for has come.
    pub fn page(&mut self, shard: ShardId, page: Page, effects: &mut Effects) {
        let Some(queue) = self.queue(shard) else { return };
        queue.page(page);
        self.read_more(shard, effects);
    }

    /// A live push from apply.
    pub fn push(&mut self, shard: ShardId, entry: impl FnOnce() -> PendingEntry, offset: Offset) {
        if let Some(queue) = self.queue(shard) {
            queue.push(entry, offset);
        }
    }

    /// Something up to `upto` was never pushed.
    pub fn hole(&mut self, shard: ShardId, upto: Offset, effects: &mut Effects) {
        let Some(queue) = self.queue(shard) else { return };
        queue.hole(upto);
        self.read_more(shard, effects);
    }

    fn read_more(&mut self, shard: ShardId, effects: &mut Effects) {
        if let Some(after) = self.queue(shard).and_then(ShardQueue::next_page) {
            effects.wishes.push(Wish::Page(shard, after));
        }
    }

    /// PUBACK: a reason code of 0x80 or more ends the delivery too. False if nothing waited for it.
    pub fn puback(&mut self, packet_id: NonZeroU16, effects: &mut Effects) -> bool {
        self.in_flight.puback(packet_id, effects)
    }

    /// PUBREC.
    pub fn pubrec(&mut self, packet_id: NonZeroU16, reason: ReasonCode, out: &mut BytesMut, effects: &mut Effects) {
        self.in_flight.pubrec(packet_id, reason, out, effects);
    }

    /// PUBCOMP. False if nothing waited for it.
    pub fn pubcomp(&mut self, packet_id: NonZeroU16, effects: &mut Effects) -> bool {
        self.in_flight.pubcomp(packet_id, effects)
    }

    /// A [`Wish::Settle`] was applied (or its incarnation ended): the identifier is free.
    pub fn settled(&mut self, packet_id: u16) {
        self.in_flight.settled(packet_id);
    }

    /// A [`Wish::Release`] was committed: its PUBREL leaves with the next [`Outbound::pump`].
    pub fn released(&mut self, packet_id: u16) {
        self.in_flight.released(packet_id);
    }

    /// How many more messages could be in flight if all that waits were: credit for groups. None while there are entries
    /// that are not read yet: they may be any number; nor while as many bytes wait as may.
    pub fn free_quota(&self) -> usize {
        if self.shards.iter().any(ShardQueue::is_behind) || self.waiting_bytes() > self.limits.bytes_max {
            return 0;
        }
        let ready: usize = self.shards.iter().map(ShardQueue::len).sum();
        usize::from(self.limits.receive_maximum).saturating_sub(self.in_flight.counted() + self.waiting() + ready)
    }

    /// A message that is not in the session's own queue. QoS 0 leaves at once or is dropped (retained, it waits for
    /// what waits); others wait for their turn, and hold `guard` while too many wait.
    pub fn deliver(
        &mut self,
        delivery: Delivery,
        guard: Option<&Guard>,
        frames: &mut FrameCache,
        out: &mut BytesMut,
        effects: &mut Effects,
    ) {
        let source = match delivery.settle {
            None => Source::Live,
            Some(_) => Source::Paced,
        };
        self.take(delivery, source, guard, frames, out, effects);
    }

    /// A retained message for a new subscription, as [`Outbound::deliver`]: its page came since [`Outbound::wants_page`] said so,
    /// so it is nothing to hold a publisher or to give the client up for.
    pub fn replay(&mut self, delivery: Delivery, out: &mut BytesMut, effects: &mut Effects) {
        self.take(delivery, Source::Paced, None, &mut FrameCache::default(), out, effects);
    }

    fn take(
        &mut self,
        delivery: Delivery,
        source: Source,
        guard: Option<&Guard>,
        frames: &mut FrameCache,
        out: &mut BytesMut,
        effects: &mut Effects,
    ) {
        if self.ended {
            return;
        }
        let is_timed =
            delivery.settle.is_some() && delivery.age.is_some() && delivery.message.expiry_interval.is_some();
        if delivery.qos == 0 && out.len() > self.limits.bytes_max {
            return drop_delivery(&delivery, Drop::OutboxFull, effects);
        }
        // P5: an older value of a retained message may wait.
        let leaves_at_once = delivery.qos == 0 && (!delivery.message.retain || self.waiting() == 0);
        // What is left of its time is known to `pump`.
        if !is_timed && (leaves_at_once || self.waiting() == 0 && self.has_quota() && self.has_room(out)) {
            let left = delivery.message.expiry_interval;
            return self.send_delivery(&delivery, left, frames, out, effects);
        }
        if delivery.qos == 0 && source == Source::Live && self.is_overfull() {
            return drop_delivery(&delivery, Drop::OutboxFull, effects);
        }
        self.backlog.make().push(delivery, source);
        if self.is_overfull() {
            self.backlog.make().held.extend(guard.cloned());
        }
    }

    /// Whether more waits than the client may leave waiting: its publishers' acknowledgements are held.
    pub fn is_overfull(&self) -> bool {
        self.waiting() > self.limits.messages_max || self.live_bytes() > self.limits.bytes_max
    }

    /// Whether so much waits that no time is given. In bytes: more than three publishers send before they must wait, each
    /// as much as an outbox takes.
    pub fn is_hopeless(&self) -> bool {
        self.waiting() > self.limits.messages_max.saturating_mul(2)
            || self.live_bytes() > self.limits.bytes_max.saturating_mul(4)
    }

    fn waiting(&self) -> usize {
        self.backlog.get().map_or(0, |backlog| backlog.waiting.len())
    }

    fn waiting_bytes(&self) -> usize {
        self.backlog.get().map_or(0, |backlog| backlog.bytes)
    }

    fn live_bytes(&self) -> usize {
        self.backlog.get().map_or(0, |backlog| backlog.live_bytes)
    }

    fn next_waiting(&mut self) -> Option<Waiting> {
        self.backlog.get_mut()?.pop()
    }

    fn has_quota(&self) -> bool {
        self.in_flight.counted() < usize::from(self.limits.receive_maximum)
    }

    fn has_room(&self, out: &BytesMut) -> bool {
        out.len() < OUT_HIGH.min(self.limits.bytes_max)
    }

    /// Sends what may be sent now: PUBRELs, then in turns the deliveries that wait and each shard.
    pub fn pump(
        &mut self,
        log_time: impl Fn(ShardId) -> LogTime,
        now: Instant,
        out: &mut BytesMut,
        effects: &mut Effects,
    ) {
        self.in_flight.write_releases(out);
        let mut frames = FrameCache::default();
        self.send_waiting(&log_time, now, &mut frames, out, effects);
        if !self.is_overfull()
            && let Some(backlog) = self.backlog.get_mut()
        {
            backlog.held.clear();
        }
        let count = self.shards.len();
        let mut idle = 0;
        while idle < count && self.has_room(out) {
            let shard = ShardId(self.turn as u16);
            self.turn = (self.turn + 1) % count;
            if self.send_next(shard, log_time(shard), &mut frames, out, effects) {
                idle = 0
            } else {
                idle += 1
            }
        }
        for shard in 0..count {
            self.read_more(ShardId(shard as u16), effects);
        }
    }

    fn send_waiting(
        &mut self,
        log_time: &impl Fn(ShardId) -> LogTime,
        now: Instant,
        frames: &mut FrameCache,
        out: &mut BytesMut,
        effects: &mut Effects,
    ) {
        let Some(backlog) = self.backlog.get_mut() else { return };
        let new = backlog
            .waiting
            .iter_mut()
            .rev()
            .take_while(|waiting| waiting.since.is_none());
        new.for_each(|waiting| waiting.since = Some(now));
        while self.has_room(out)
            && let Some(front) = self.backlog.get().and_then(|backlog| backlog.waiting.front())
            && (front.delivery.qos == 0 || self.has_quota())
            && let Some(Waiting { delivery, since, .. }) = self.next_waiting()
        {
            let interval = delivery.message.expiry_interval;
            let left = match (delivery.settle, delivery.age) {
                (Some((shard, _)), Some(age)) => remaining_expiry(interval, age, log_time(shard)),
                // Every node got it about when it was published.
                _ => remaining_after(
                    interval,
                    since.map_or(0, |since| now.duration_since(since).as_millis() as u64),
                ),
            };
            match left {
                Some(0) => drop_delivery(&delivery, Drop::Expired, effects),
                _ => self.send_delivery(&delivery, left, frames, out, effects),
            }
        }
    }

    /// The next entry of a shard; false if there is none, or it waits for its identifier or for quota.
    fn send_next(
        &mut self,
        shard: ShardId,
        now: LogTime,
        frames: &mut FrameCache,
        out: &mut BytesMut,
        effects: &mut Effects,
    ) -> bool {
        let at = usize::from(shard.0);
        let Some(front) = self.shards[at].front() else {
            return false;
        };
        let id = self.packet_id(shard, front.offset);
        let needs_quota = front.granted.qos > 0 && !front.released;
        if self.in_flight.is_busy(id.get()) || needs_quota && !self.has_quota() {
            return false;
        }
        if let Some(entry) = self.shards[at].pop_front() {
            self.send_entry(shard, id, &entry, now, frames, out, effects);
        }
        true
    }

    #[allow(clippy::too_many_arguments, reason = "an entry, and where it goes")]
    fn send_entry(
        &mut self,
        shard: ShardId,
        id: NonZeroU16,
        entry: &PendingEntry,
        now: LogTime,
        frames: &mut FrameCache,
        out: &mut BytesMut,
        effects: &mut Effects,
    ) {
        let (offset, qos) = (entry.offset, entry.granted.qos);
        let queue = &mut self.shards[usize::from(shard.0)];
        if entry.released {
            queue.sent(offset);
            return self.in_flight.resume_released(id, Of::Queue(shard, offset), out);
        }
        let maybe_sent = queue.is_maybe_sent(offset);
        let left = remaining_expiry(entry.message.expiry_interval, entry.appended_at, now);
        let written = match left {
            // What was never sent is not first-sent when it has expired. [MQTT-3.3.2-5]
            Some(0) if !maybe_sent => Err(Drop::Expired),
            _ => self.write(&delivery_of(entry), Some(id), maybe_sent, left, frames, out, effects),
        };
        match written {
            Ok(()) => {
                self.shards[usize::from(shard.0)].sent(offset);
                match qos {
                    0 => self
                        .in_flight
                        .settle_unsent(id.get(), shard, offset, Left::Delivered, effects),
                    _ => self.in_flight.sent(id.get(), qos, Of::Queue(shard, offset)),
                }
            }
            Err(reason) => {
                effects.dropped.push(reason);
                match qos {
                    2 if maybe_sent => self
                        .in_flight
                        .close_unsent(id.get(), shard, offset, left_by(reason), effects),
                    _ => self
                        .in_flight
                        .settle_unsent(id.get(), shard, offset, left_by(reason), effects),
                }
            }
        }
    }

    fn send_delivery(
        &mut self,
        delivery: &Delivery,
        left: Option<u32>,
        frames: &mut FrameCache,
        out: &mut BytesMut,
        effects: &mut Effects,
    ) {
        let id = (delivery.qos > 0).then(|| self.free_id());
        match (self.write(delivery, id, false, left, frames, out, effects), id) {
            (Ok(()), Some(id)) => self
                .in_flight
                .sent(id.get(), delivery.qos, Of::Passing(delivery.settle)),
            (Ok(()), None) => settle_delivery(delivery, Left::Delivered, effects),
            (Err(reason), _) => drop_delivery(delivery, reason, effects),
        }
    }

    /// Only ephemeral sessions and quota below 65,535 come here, so one is free.
    fn free_id(&mut self) -> NonZeroU16 {
        loop {
            self.next_id = self.next_id.wrapping_add(1);
            if let Some(id) = NonZeroU16::new(self.next_id)
                && !self.in_flight.is_busy(self.next_id)
            {
                return id;
            }
        }
    }

    /// Appends the PUBLISH, unless the client may not read its topic or does not take packets of its size. Every PUBLISH to
    /// a client comes through here: live, from a queue, retained, of a group, or sent again.
    #[allow(clippy::too_many_arguments, reason = "the fields of one PUBLISH, and where it goes")]
    fn write(
        &mut self,
        delivery: &Delivery,
        packet_id: Option<NonZeroU16>,
        dup: bool,
        left: Option<u32>,
        frames: &mut FrameCache,
        out: &mut BytesMut,
        effects: &mut Effects,
    ) -> Result<(), Drop> {
        let Answers {
            version,
            packet_size_max,
            ..
        } = self.answers;
        let packet_size_max = packet_size_max as usize;
        let topic = &delivery.message.topic;
        if !self.access.as_ref().is_some_and(|access| access.may_read(topic)) {
            return Err(Drop::NotAuthorized);
        }
        let topic = self.limits.mountpoint.unmounted(topic);
        let aliased = self.aliases.choose(topic).and_then(|alias| {
            let frame = frames::encode(version, delivery, topic, left, Some(alias))?;
            (frame.len() <= packet_size_max).then_some((alias, frame))
        });
        if let Some((alias, frame)) = aliased {
            frame.append(packet_id, dup, out);
            self.aliases.written(topic, alias);
        } else {
            let frame = frames.frame(version, delivery, topic, left);
            let fitting = frame.filter(|frame| frame.len() <= packet_size_max);
            fitting.ok_or(Drop::TooLarge)?.append(packet_id, dup, out);
        }
        effects.sent[usize::from(delivery.qos)] += 1;
        Ok(())
    }
}

fn drop_delivery(delivery: &Delivery, reason: Drop, effects: &mut Effects) {
    effects.dropped.push(reason);
    settle_delivery(delivery, left_by(reason), effects);
}

/// Nothing comes back for it.
fn settle_delivery(delivery: &Delivery, how: Left, effects: &mut Effects) {
    let wish = delivery
        .settle
        .map(|(shard, offset)| Wish::Settle(shard, offset, 0, how));
    effects.wishes.extend(wish);
}

fn left_by(reason: Drop) -> Left {
    match reason {
        Drop::Expired => Left::Expired,
        Drop::TooLarge => Left::TooLarge,
        Drop::NotAuthorized => Left::NotAuthorized,
        Drop::OutboxFull | Drop::WorkerFull => Left::OutboxFull,
    }
}

fn delivery_of(entry: &PendingEntry) -> Delivery {
    Delivery {
        message: entry.message.clone(),
        qos: entry.granted.qos,
        retain: entry.granted.retain,
        subscription_identifiers: entry.granted.subscription_identifiers.clone(),
        age: Some(entry.appended_at),
        settle: None,
    }
}

/// What is left of the Message Expiry Interval; 0 when it has passed. [MQTT-3.3.2-6]
fn remaining_expiry(interval: Option<u32>, appended_at: LogTime, now: LogTime) -> Option<u32> {
    remaining_after(interval, now.0.saturating_sub(appended_at.0))
}

/// In whole seconds, rounded up.
fn remaining_after(interval: Option<u32>, milliseconds: u64) -> Option<u32> {
    let left = (u64::from(interval?) * 1000).saturating_sub(milliseconds);
    Some(left.div_ceil(1000) as u32)
}

/// What the node reads into `ready` at a time.
pub const PAGE_ENTRIES: u32 = 32;
pub const PAGE_BYTES: u32 = 256 * 1024;
/// Bytes on their way to the socket beyond which nothing more is taken from storage.
const OUT_HIGH: usize = 256 * 1024;

#[cfg(test)]
mod tests;
