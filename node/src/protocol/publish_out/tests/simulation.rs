//! `exactly-once-out`, by chance: a shard, a client and a connection that breaks at any moment.

use std::collections::{BTreeMap, VecDeque};

use super::*;

/// A client that does as the standard says, and keeps its state over connections.
#[derive(Default)]
struct Model {
    seed: u64,
    /// The session's queue: QoS, and whether PUBREC was committed.
    queue: BTreeMap<u64, (u8, bool)>,
    head: u64,
    /// What was wished for, with the connection that did.
    wishes: VecDeque<(u32, Wish)>,
    /// Wishes of earlier connections that are answered at any time.
    late: VecDeque<(u32, Wish)>,
    connection: u32,
    /// Packets on their way.
    to_client: VecDeque<Packet>,
    to_broker: VecDeque<Answer>,
    /// The client's half: identifiers that wait for PUBREL, and how often each message was handed on.
    received: std::collections::HashSet<NonZeroU16>,
    got: BTreeMap<u64, u32>,
    unanswered: usize,
}

#[derive(Clone, Copy)]
enum Answer {
    Acknowledged(NonZeroU16),
    Received(NonZeroU16),
    Completed(NonZeroU16),
}

/// The identifiers of the last shard wrap every 32 offsets.
const SHARDS: u16 = 2000;
const LAST: ShardId = ShardId(SHARDS - 1);
const MESSAGES: u64 = 150;
const RECEIVE_MAXIMUM: u16 = 6;

impl Model {
    fn below(&mut self, bound: u64) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed >> 11) % bound
    }

    fn connect(&mut self, before: Option<&Fixture>) -> Fixture {
        self.connection += 1;
        self.to_client.clear();
        self.to_broker.clear();
        self.unanswered = 0;
        // What an earlier owner asked for may be done by now, late, or never.
        for wish in std::mem::take(&mut self.wishes) {
            match self.below(3) {
                0 => self.wishes.push_back(wish),
                1 => self.late.push_back(wish),
                _ => {}
            }
        }
        let sent = before.and_then(|before| before.outbound.highest_sent());
        let sent = sent.filter(|_| self.below(2) == 0);
        let mut fixture = Fixture::new(1);
        let limits = OutboundLimits {
            receive_maximum: RECEIVE_MAXIMUM,
            ..fixture.outbound.limits.clone()
        };
        fixture.effects = Effects::default();
        fixture.outbound = Outbound::new(
            Answers::of_version(Version::V5),
            limits,
            SHARDS,
            true,
            Some(Access::open()),
        );
        match before {
            Some(_) => fixture.outbound.resume(sent.as_deref()),
            None => fixture.outbound.resume(Some(&[])),
        }
        fixture.outbound.attach(LAST, 0, &mut fixture.effects);
        fixture
    }

    fn entry(offset: u64, (qos, released): (u8, bool)) -> PendingEntry {
        let mut entry = entry(offset);
        entry.granted.qos = qos;
        PendingEntry { released, ..entry }
    }

    fn publish(&mut self, fixture: &mut Fixture) {
        if self.head < MESSAGES {
            self.head += 1;
            let (offset, qos) = (self.head, 1 + self.below(2) as u8);
            self.queue.insert(offset, (qos, false));
            let entry = || Model::entry(offset, (qos, false));
            // Now and then the push is lost.
            match self.below(8) {
                0 => fixture.outbound.hole(LAST, Offset(offset), &mut fixture.effects),
                _ => fixture.outbound.push(LAST, entry, Offset(offset)),
            }
        }
    }

    /// The cluster answers the oldest wish, or one of an earlier connection.
    fn commit(&mut self, fixture: &mut Fixture) {
        let queue = match self.below(4) {
            0 => &mut self.late,
            _ => &mut self.wishes,
        };
        let Some((connection, wish)) = queue.pop_front() else {
            return;
        };
        let is_current = connection == self.connection;
        match wish {
            Wish::Page(shard, after) if is_current => {
                let limit = 1 + self.below(20) as usize;
                let behind = self.queue.range(after.0 + 1..);
                let entries: Vec<PendingEntry> = behind
                    .take(limit)
                    .map(|(at, state)| Model::entry(*at, *state))
                    .collect();
                let more = entries.len() == limit;
                let upto = match entries.last() {
                    Some(last) if more => last.offset,
                    _ => Offset(self.head),
                };
                let page = Page { entries, upto, more };
                fixture.outbound.page(shard, page, &mut fixture.effects);
            }
            Wish::Page(..) => {}
            Wish::Settle(_, offset, id, _) => {
                self.queue.remove(&offset.0);
                if is_current {
                    fixture.outbound.settled(id);
                }
            }
            Wish::Release(_, offset, id) => {
                if let Some((_, released)) = self.queue.get_mut(&offset.0) {
                    *released = true;
                }
                if is_current {
                    fixture.outbound.released(id);
                }
            }
        }
    }

    fn client_receives(&mut self) {
        match self.to_client.pop_front() {
            Some(Packet::Publish(publish)) => {
                let id = publish.packet_id().unwrap();
                let offset: u64 = std::str::from_utf8(publish.payload()).unwrap().parse().unwrap();
                let first = 1 + u64::from(LAST.0) * (65_535 / u64::from(SHARDS));
                assert_eq!(u64::from(id.get()), first + offset % 32, "packet-id-of-offset");
                assert!(
                    publish.dup() || !self.got.contains_key(&offset),
                    "{offset} again without DUP"
                );
                self.unanswered += 1;
                assert!(self.unanswered <= usize::from(RECEIVE_MAXIMUM), "send-quota");
                if publish.qos() as u8 == 1 {
                    *self.got.entry(offset).or_default() += 1;
                    self.to_broker.push_back(Answer::Acknowledged(id));
                } else {
                    if self.received.insert(id) {
                        *self.got.entry(offset).or_default() += 1;
                        assert_eq!(self.got[&offset], 1, "exactly-once-out: {offset}");
                    }
                    self.to_broker.push_back(Answer::Received(id));
                }
            }
            Some(Packet::PubRel(ack)) => {
                assert!(!ack.reason.is_error());
                self.received.remove(&ack.packet_id);
                self.to_broker.push_back(Answer::Completed(ack.packet_id));
            }
            Some(other) => panic!("{other:?}"),
            None => {}
        }
    }

    fn broker_receives(&mut self, fixture: &mut Fixture) {
        let Fixture {
            outbound, out, effects, ..
        } = fixture;
        let counted = outbound.in_flight.counted();
        match self.to_broker.pop_front() {
            Some(Answer::Acknowledged(id)) => assert!(outbound.puback(id, effects)),
            Some(Answer::Received(id)) => outbound.pubrec(id, ReasonCode::SUCCESS, out, effects),
            Some(Answer::Completed(id)) => assert!(outbound.pubcomp(id, effects)),
            None => {}
        }
        self.unanswered -= counted - outbound.in_flight.counted();
    }

    fn pump(&mut self, fixture: &mut Fixture) {
        self.to_client.extend(fixture.packets());
        let wishes = fixture.wishes().into_iter();
        self.wishes.extend(wishes.map(|wish| (self.connection, wish)));
    }
}

fn run(seed: u64, breaks: bool) -> BTreeMap<u64, u32> {
    let mut model = Model {
        seed,
        ..Model::default()
    };
    let mut fixture = model.connect(None);
    let mut steps = 0;
    while model.head < MESSAGES || !model.queue.is_empty() {
        steps += 1;
        assert!(steps < 100_000, "seed {seed}: {:?} are never over", model.queue);
        match model.below(if breaks { 60 } else { 59 }) {
            0..=9 => model.publish(&mut fixture),
            10..=24 => model.commit(&mut fixture),
            25..=41 => model.client_receives(),
            42..=58 => model.broker_receives(&mut fixture),
            _ => fixture = model.connect(Some(&fixture)),
        }
        model.pump(&mut fixture);
    }
    model.got
}

#[test]
fn each_message_arrives_whatever_breaks_and_at_qos_2_once() {
    for seed in 1..=40 {
        let got = run(seed, seed % 4 != 0);
        assert_eq!(got.len() as u64, MESSAGES, "seed {seed}");
    }
    assert_eq!(run(7, true), run(7, true), "the same seed gives the same run");
}
