use bytes::Bytes;
use lontra_storage::ids::SessionId;

use super::*;

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
        },
        message: message(&offset.to_string()),
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
}

const S: ShardId = ShardId(2);

impl Fixture {
    fn new(receive_maximum: u16) -> Self {
        let limits = OutboundLimits {
            receive_maximum,
            maximum_packet_size: 1000,
            bytes_max: 1 << 20,
            messages_max: 3,
        };
        let mut fixture = Fixture {
            outbound: Outbound::new(Version::V3_1_1, limits, 12, true),
            out: BytesMut::new(),
            effects: Effects::default(),
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

    /// Payloads (offsets) that left, with their packet identifiers.
    fn pump(&mut self) -> Vec<(u16, u64)> {
        self.outbound.pump(|_| LogTime(1000), &mut self.out, &mut self.effects);
        let mut sent = Vec::new();
        let mut rest = &self.out[..];
        while let [_, length, packet @ ..] = rest {
            let (body, after) = packet.split_at(usize::from(*length));
            let id = u16::from_be_bytes([body[3], body[4]]);
            sent.push((id, std::str::from_utf8(&body[5..]).unwrap().parse().unwrap()));
            rest = after;
        }
        self.out.clear();
        sent
    }

    fn ack(&mut self, id: u16) {
        assert!(
            self.outbound
                .acknowledge(NonZeroU16::new(id).unwrap(), &mut self.effects)
        );
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
    let first = 1 + 2 * 5461;
    assert_eq!(fixture.pump(), [(first + 4, 4), (first + 9, 9)]);
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
                Wish::Settle(_, _, id) => fixture.outbound.settled(id),
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
    assert!(matches!(fixture.wishes()[..], [Wish::Settle(_, Offset(1), _)]));
    assert_eq!(fixture.effects.dropped, [Drop::Expired]);
}

#[test]
fn a_full_ephemeral_queue_holds_the_acknowledgement() {
    let mut fixture = Fixture::new(1);
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = done.clone();
    let guard = Guard::new(move || flag.store(true, std::sync::atomic::Ordering::SeqCst));
    let delivery = |n: u64| Delivery {
        message: message(&n.to_string()),
        qos: 1,
        retain: false,
        subscription_identifiers: vec![],
        age: None,
    };
    let mut frames = FrameCache::default();
    for n in 1..=5 {
        let Fixture { outbound, out, effects } = &mut fixture;
        outbound.deliver(delivery(n), Some(&guard), &mut frames, out, effects);
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
fn dup_is_set_on_what_may_have_been_sent_and_on_nothing_else() {
    let dup_of = |sent: Option<&[Offset]>| {
        let mut fixture = Fixture::new(10);
        fixture.outbound.resume(sent);
        fixture.page(&[3, 5], 5, false);
        fixture.push(6);
        fixture
            .outbound
            .pump(|_| LogTime(1000), &mut fixture.out, &mut fixture.effects);
        let mut dups = Vec::new();
        let mut rest = &fixture.out[..];
        while let [first, length, packet @ ..] = rest {
            dups.push(first & 8 != 0);
            rest = &packet[usize::from(*length)..];
        }
        (dups, fixture.outbound.highest_sent().map(|sent| sent[2].0))
    };
    assert_eq!(dup_of(Some(&[])), (vec![false, false, false], Some(6)));
    assert_eq!(
        dup_of(Some(&[Offset(0), Offset(0), Offset(3)])),
        (vec![true, false, false], Some(6))
    );
    assert_eq!(dup_of(None), (vec![true, true, false], None));
}
