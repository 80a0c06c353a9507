//! Entries, deliveries and the client's answers in; packets and wishes out.

mod exactly_once;
mod passing;
mod simulation;

use bytes::Bytes;
use lontra_storage::ids::SessionId;
use lontra_storage::message::Recipient;

use super::*;
use crate::protocol::codec::{Direction, Limits, Packet, Version, decode, frame_length};
use lontra_storage::message::Role;

fn message(payload: &str) -> Arc<Message> {
    Arc::new(Message {
        topic: "t".into(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        qos: 1,
        retain: false,
        publisher: SessionId(1),
        expiry_interval: None,
        properties: Bytes::new(),
    })
}

fn entry(offset: u64) -> PendingEntry {
    PendingEntry {
        offset: Offset(offset),
        appended_at: LogTime(1000),
        granted: Recipient {
            session: SessionId(9),
            qos: 1,
            retain: false,
            subscription_identifiers: vec![],
            role: Role::Session,
        },
        message: message(&offset.to_string()),
        released: false,
    }
}

fn page(offsets: &[u64], upto: u64, more: bool) -> Page {
    Page {
        entries: offsets.iter().map(|offset| entry(*offset)).collect(),
        upto: Offset(upto),
        more,
    }
}

struct Fixture {
    outbound: Outbound,
    out: BytesMut,
    effects: Effects,
    now: Instant,
    log_time: LogTime,
}

const S: ShardId = ShardId(2);
/// The first identifier of `S` of twelve shards.
const FIRST: u16 = 1 + 2 * 5461;

impl Fixture {
    /// A durable session of a 3.1.1 client, its view of `S` attached.
    fn new(receive_maximum: u16) -> Self {
        Fixture::of(Answers::of_version(Version::V3_1_1), receive_maximum, 0, true)
    }

    fn of(answers: Answers, receive_maximum: u16, topic_alias_maximum: u16, durable: bool) -> Self {
        let limits = OutboundLimits {
            receive_maximum,
            topic_alias_maximum,
            bytes_max: 1 << 20,
            messages_max: 3,
            mountpoint: Mountpoint::default(),
        };
        let mut fixture = Fixture {
            outbound: Outbound::new(answers, limits, 12, durable, Some(Access::open())),
            out: BytesMut::new(),
            effects: Effects::default(),
            now: Instant::now(),
            log_time: LogTime(1000),
        };
        fixture.outbound.attach(S, 7, &mut fixture.effects);
        fixture
    }

    fn push(&mut self, offset: u64) {
        self.outbound.push(S, || entry(offset), Offset(offset));
    }

    fn page(&mut self, offsets: &[u64], upto: u64, more: bool) {
        self.outbound.page(S, page(offsets, upto, more), &mut self.effects);
    }

    /// The page that was wished for at the beginning, of these entries.
    fn entries(&mut self, entries: Vec<PendingEntry>) {
        let page = Page {
            upto: entries.last().map_or(Offset(0), |entry| entry.offset),
            entries,
            more: false,
        };
        self.outbound.page(S, page, &mut self.effects);
        self.wishes();
    }

    fn deliver(&mut self, delivery: Delivery, guard: Option<&Guard>) {
        let mut frames = FrameCache::default();
        self.outbound
            .deliver(delivery, guard, &mut frames, &mut self.out, &mut self.effects);
    }

    /// Packets that leave.
    fn packets(&mut self) -> Vec<Packet> {
        let log_time = self.log_time;
        self.outbound
            .pump(|_| log_time, self.now, &mut self.out, &mut self.effects);
        let (version, limits) = (self.outbound.answers.version, Limits::default());
        let mut packets = Vec::new();
        while let Ok(Some(length)) = frame_length(&self.out, &limits, Some(version)) {
            let frame = self.out.split_to(length).freeze();
            packets.push(decode(frame, Some(version), Direction::ServerToClient, &limits).expect("well-formed"));
        }
        packets
    }

    /// Payloads (offsets) that left, with their packet identifiers.
    fn pump(&mut self) -> Vec<(u16, u64)> {
        let packets = self.packets().into_iter();
        let publishes = packets.map(|packet| match packet {
            Packet::Publish(publish) => {
                let payload = std::str::from_utf8(publish.payload()).unwrap();
                (publish.packet_id().unwrap().get(), payload.parse().unwrap())
            }
            other => panic!("{other:?}"),
        });
        publishes.collect()
    }

    /// What leaves, readable: type, payload, QoS, flags; identifiers of `S` by their offset.
    fn told(&mut self) -> Vec<String> {
        let offset = |id: NonZeroU16| id.get().checked_sub(FIRST).unwrap_or(id.get());
        let packets = self.packets().into_iter();
        let told = packets.map(|packet| match packet {
            Packet::Publish(publish) => {
                let id = publish.packet_id().map_or("-".to_owned(), |id| offset(id).to_string());
                let dup = if publish.dup() { " dup" } else { "" };
                format!("PUBLISH {id} q{}{dup}", publish.qos() as u8)
            }
            Packet::PubRel(ack) if ack.reason.is_error() => {
                format!("PUBREL {} {:02x}", offset(ack.packet_id), ack.reason.0)
            }
            Packet::PubRel(ack) => format!("PUBREL {}", offset(ack.packet_id)),
            other => panic!("{other:?}"),
        });
        told.collect()
    }

    fn ack(&mut self, id: u16) {
        assert!(self.outbound.puback(NonZeroU16::new(id).unwrap(), &mut self.effects));
    }

    fn wishes(&mut self) -> Vec<Wish> {
        std::mem::take(&mut self.effects.wishes)
    }
}

#[test]
fn packet_ids_are_a_function_of_the_offset() {
    let mut fixture = Fixture::new(10);
    assert_eq!(fixture.wishes(), [Wish::Page(S, Offset(0))]);
    fixture.page(&[4, 9], 9, false);
    assert_eq!(fixture.pump(), [(FIRST + 4, 4), (FIRST + 9, 9)]);
}

#[test]
fn nothing_is_sent_before_the_view_was_attached_and_read() {
    let mut fixture = Fixture::new(10);
    fixture.push(5);
    assert_eq!(fixture.pump(), []);
    // The page was read before the push: the session knows that it does not have 5.
    fixture.page(&[3], 4, false);
    assert_eq!(fixture.wishes(), [Wish::Page(S, Offset(0)), Wish::Page(S, Offset(4))]);
    fixture.page(&[5], 5, false);
    fixture.push(5);
    fixture.push(6);
    let offsets: Vec<u64> = fixture.pump().into_iter().map(|(_, offset)| offset).collect();
    assert_eq!(offsets, [3, 5, 6], "in order, each once");
}

#[test]
fn a_session_that_falls_behind_reads_what_it_missed() {
    let mut fixture = Fixture::new(1);
    fixture.page(&[], 0, false);
    fixture.wishes();
    for offset in 1..=70 {
        fixture.push(offset);
    }
    let mut got = Vec::new();
    loop {
        let sent = fixture.pump();
        assert!(sent.len() <= 1, "send-quota");
        for wish in fixture.wishes() {
            match wish {
                Wish::Page(_, after) => {
                    let offsets: Vec<u64> = (after.0 + 1..=70).collect();
                    fixture.page(&offsets, 70, false);
                }
                Wish::Settle(_, _, id, _) => fixture.outbound.settled(id),
                Wish::Release(..) => panic!("nothing of QoS 2 was sent"),
            }
        }
        let Some((id, offset)) = sent.first().copied() else {
            break;
        };
        got.push(offset);
        fixture.ack(id);
    }
    assert_eq!(got, (1..=70).collect::<Vec<u64>>());
}

#[test]
fn an_identifier_is_busy_until_its_entry_is_gone_in_apply() {
    let mut fixture = Fixture::new(10);
    let wrapped = 1 + 5461;
    fixture.page(&[1, wrapped, wrapped + 1], wrapped + 1, false);
    let sent = fixture.pump();
    assert_eq!(sent.len(), 1, "the entry that waits holds back the later ones");
    fixture.ack(sent[0].0);
    assert_eq!(fixture.pump(), [], "acknowledged, not yet gone");
    fixture.outbound.settled(sent[0].0);
    let offsets: Vec<u64> = fixture.pump().into_iter().map(|(_, offset)| offset).collect();
    assert_eq!(offsets, [wrapped, wrapped + 1]);
}

#[test]
fn a_hole_makes_the_session_read() {
    let mut fixture = Fixture::new(10);
    fixture.page(&[], 3, false);
    fixture.wishes();
    fixture.outbound.hole(S, Offset(9), &mut fixture.effects);
    fixture.push(10);
    assert_eq!(fixture.wishes(), [Wish::Page(S, Offset(3))]);
    fixture.page(&[8], 9, false);
    assert_eq!(
        fixture.wishes(),
        [Wish::Page(S, Offset(9))],
        "10 was pushed while it read"
    );
}

#[test]
fn an_expired_entry_is_settled_unsent() {
    let mut fixture = Fixture::new(10);
    let mut expired = entry(1);
    expired.message = Arc::new(Message {
        expiry_interval: Some(1),
        ..(*expired.message).clone()
    });
    expired.appended_at = LogTime(0);
    let page = Page {
        entries: vec![expired, entry(2)],
        upto: Offset(2),
        more: false,
    };
    fixture.outbound.page(S, page, &mut fixture.effects);
    fixture.wishes();
    assert_eq!(fixture.pump().len(), 1);
    assert!(matches!(
        fixture.wishes()[..],
        [Wish::Settle(_, Offset(1), _, Left::Expired)]
    ));
    assert_eq!(fixture.effects.dropped, [Drop::Expired]);
}

#[test]
fn a_full_ephemeral_queue_holds_the_acknowledgement() {
    let mut fixture = Fixture::new(1);
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = done.clone();
    let guard = Guard::new(move || flag.store(true, std::sync::atomic::Ordering::SeqCst));
    for n in 1..=5 {
        fixture.deliver(passing::delivery(1, &n.to_string()), Some(&guard));
    }
    drop(guard);
    assert!(fixture.outbound.is_overfull());
    assert!(!done.load(std::sync::atomic::Ordering::SeqCst));
    let sent = fixture.pump();
    fixture.ack(sent[0].0);
    fixture.pump();
    assert!(done.load(std::sync::atomic::Ordering::SeqCst));
}

#[test]
fn large_messages_fill_an_ephemeral_queue_by_their_bytes() {
    let mut fixture = Fixture::of(Answers::of_version(Version::V5), 1, 0, false);
    let large = || passing::delivery(1, &"x".repeat(800 << 10));
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = done.clone();
    let guard = Guard::new(move || flag.store(true, std::sync::atomic::Ordering::SeqCst));
    // One leaves, one waits: less than the limit of 1 MiB.
    fixture.deliver(large(), None);
    fixture.deliver(large(), None);
    assert!(!fixture.outbound.is_overfull());
    fixture.deliver(large(), Some(&guard));
    drop(guard);
    assert!(fixture.outbound.is_overfull(), "two of three messages wait");
    assert_eq!(fixture.packets().len(), 1);
    assert!(!done.load(std::sync::atomic::Ordering::SeqCst));
    fixture.ack(1);
    assert_eq!(fixture.packets().len(), 1);
    assert!(done.load(std::sync::atomic::Ordering::SeqCst));
    assert!(!fixture.outbound.is_overfull());
    // QoS 0 is dropped where it would have to wait for them.
    let retained = |payload| {
        let message = Message {
            retain: true,
            ..(*message(payload)).clone()
        };
        Delivery {
            message: Arc::new(message),
            ..passing::delivery(0, payload)
        }
    };
    fixture.deliver(large(), None);
    fixture.deliver(retained("0"), None);
    assert_eq!(fixture.effects.dropped, [Drop::OutboxFull]);
    // Four times the limit: the fifth that waits is below, the sixth is not.
    (0..3).for_each(|_| fixture.deliver(large(), None));
    assert!(!fixture.outbound.is_hopeless());
    fixture.deliver(large(), None);
    assert!(fixture.outbound.is_hopeless());
}

#[test]
fn what_is_paced_holds_nobody_and_waits_for_room_in_bytes() {
    let mut fixture = Fixture::of(Answers::of_version(Version::V5), 1, 0, false);
    for _ in 0..3 {
        let Fixture {
            outbound, out, effects, ..
        } = &mut fixture;
        outbound.replay(passing::delivery(1, &"x".repeat(800 << 10)), out, effects);
    }
    assert_eq!(fixture.packets().len(), 1);
    assert!(!fixture.outbound.is_overfull() && fixture.out.is_empty());
    assert!(!fixture.outbound.wants_page(&fixture.out), "two wait");
    fixture.ack(1);
    assert_eq!(fixture.packets().len(), 1);
    fixture.ack(2);
    assert_eq!(fixture.packets().len(), 1);
    assert!(fixture.outbound.wants_page(&fixture.out), "none waits");
    fixture.ack(3);
    assert_eq!(fixture.outbound.free_quota(), 1);
}

#[test]
fn dup_is_set_on_what_may_have_been_sent_and_on_nothing_else() {
    let dup_of = |sent: Option<&[Offset]>| {
        let mut fixture = Fixture::new(10);
        fixture.outbound.resume(sent);
        fixture.page(&[3, 5], 5, false);
        fixture.push(6);
        let packets = fixture.packets().into_iter();
        let dups: Vec<bool> = packets
            .map(|packet| matches!(packet, Packet::Publish(publish) if publish.dup()))
            .collect();
        (dups, fixture.outbound.highest_sent().map(|sent| sent[2].0))
    };
    assert_eq!(dup_of(Some(&[])), (vec![false, false, false], Some(6)));
    assert_eq!(
        dup_of(Some(&[Offset(0), Offset(0), Offset(3)])),
        (vec![true, false, false], Some(6))
    );
    assert_eq!(dup_of(None), (vec![true, true, false], None));
}
