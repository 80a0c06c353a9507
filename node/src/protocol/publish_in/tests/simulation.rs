//! `exactly-once-in`, by chance: a client, the shard that records its identifiers, and a connection that breaks.

use std::collections::{BTreeMap, HashSet, VecDeque};

use super::*;
use crate::protocol::codec::{Direction, Limits, Packet, decode, frame_length};

/// Operations reach the shard in the order of their connections; one of an earlier connection than the shard has seen
/// is void (`one-owner`).
#[derive(Clone, Copy)]
enum Operation {
    Publish(u64, u16, u64),
    Release(u64, u16),
}

#[derive(Default)]
struct Model {
    seed: u64,
    epoch: u64,
    /// The client's half, by identifier: its message, and whether PUBREC came.
    sent: BTreeMap<u16, (u64, bool)>,
    next: u64,
    to_broker: VecDeque<Sent>,
    to_client: VecDeque<Packet>,
    operations: VecDeque<(u64, Operation)>,
    /// The shard: identifiers recorded, messages kept.
    recorded: HashSet<u16>,
    epoch_seen: u64,
    kept: BTreeMap<u64, u32>,
}

#[derive(Clone, Copy)]
enum Sent {
    Publish(u16, u64),
    PubRel(u16),
}

const MESSAGES: u64 = 120;
const IDENTIFIERS: u64 = 5;

impl Model {
    fn below(&mut self, bound: u64) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed >> 11) % bound
    }

    fn connect(&mut self, version: Version) -> Inbound {
        self.epoch += 1;
        self.to_broker.clear();
        self.to_client.clear();
        // [MQTT-4.4.0-1]
        for (id, (message, received)) in &self.sent {
            self.to_broker.push_back(match received {
                true => Sent::PubRel(*id),
                false => Sent::Publish(*id, *message),
            });
        }
        Inbound::new(Answers::of_version(version), IDENTIFIERS as u16)
    }

    fn client_sends(&mut self) {
        let id = 1 + self.below(IDENTIFIERS) as u16;
        match self.sent.get(&id).copied() {
            // Clients of 3.x send again what is not answered.
            Some((message, false)) if self.below(4) == 0 => self.to_broker.push_back(Sent::Publish(id, message)),
            Some((_, true)) if self.below(4) == 0 => self.to_broker.push_back(Sent::PubRel(id)),
            None if self.next < MESSAGES => {
                self.next += 1;
                self.sent.insert(id, (self.next, false));
                self.to_broker.push_back(Sent::Publish(id, self.next));
            }
            _ => {}
        }
    }

    fn client_receives(&mut self) {
        match self.to_client.pop_front() {
            Some(Packet::PubRec(ack)) => {
                if let Some((_, received)) = self.sent.get_mut(&ack.packet_id.get()) {
                    *received = true;
                    self.to_broker.push_back(Sent::PubRel(ack.packet_id.get()));
                }
            }
            Some(Packet::PubComp(ack)) => {
                // A second PUBCOMP of the identifier is not for the message that uses it now.
                let id = ack.packet_id.get();
                self.sent.retain(|sent, (_, received)| *sent != id || !*received);
            }
            Some(other) => panic!("{other:?}"),
            None => {}
        }
    }

    fn broker_receives(&mut self, inbound: &mut Inbound, out: &mut BytesMut) {
        if !inbound.has_room() {
            return;
        }
        let (now, id) = (Instant::now(), |id| NonZeroU16::new(id).unwrap());
        let Some(sent) = self.to_broker.front().copied() else {
            return;
        };
        let received = match sent {
            Sent::Publish(packet, _) => inbound.publish(id(packet), QoS::ExactlyOnce, true, now, out),
            Sent::PubRel(packet) => inbound.pubrel(id(packet), now),
        };
        match received {
            Received::New(token) => {
                let operation = match sent {
                    Sent::Publish(packet, message) => Operation::Publish(token, packet, message),
                    Sent::PubRel(packet) => Operation::Release(token, packet),
                };
                self.operations.push_back((self.epoch, operation));
            }
            Received::Again => {}
            Received::Wait => return,
            Received::Refused(reason) => panic!("{reason}"),
        }
        self.to_broker.pop_front();
    }

    fn commit(&mut self, inbound: &mut Inbound, out: &mut BytesMut) {
        let Some((epoch, operation)) = self.operations.pop_front() else {
            return;
        };
        if epoch < self.epoch_seen {
            return;
        }
        self.epoch_seen = epoch;
        let token = match operation {
            Operation::Publish(token, id, message) => {
                if self.recorded.insert(id) {
                    *self.kept.entry(message).or_default() += 1;
                }
                token
            }
            Operation::Release(token, id) => {
                self.recorded.remove(&id);
                token
            }
        };
        if epoch == self.epoch {
            inbound.decide(token, OK, out);
        }
    }
}

fn run(seed: u64, version: Version) -> BTreeMap<u64, u32> {
    let mut model = Model {
        seed,
        ..Model::default()
    };
    let mut out = BytesMut::new();
    let mut inbound = model.connect(version);
    let mut steps = 0;
    while model.next < MESSAGES || !model.sent.is_empty() {
        steps += 1;
        assert!(steps < 100_000, "seed {seed}: {:?} are never over", model.sent);
        match model.below(50) {
            0..=9 => model.client_sends(),
            10..=22 => model.client_receives(),
            23..=35 => model.broker_receives(&mut inbound, &mut out),
            36..=48 => model.commit(&mut inbound, &mut out),
            _ => inbound = model.connect(version),
        }
        while let Ok(Some(length)) = frame_length(&out, &Limits::default(), Some(version)) {
            let frame = out.split_to(length).freeze();
            let packet = decode(frame, Some(version), Direction::ServerToClient, &Limits::default());
            model.to_client.push_back(packet.expect("well-formed"));
        }
    }
    model.kept
}

#[test]
fn each_message_is_kept_once_whatever_breaks() {
    for seed in 1..=100 {
        let kept = run(seed, if seed % 2 == 0 { V3 } else { V5 });
        let once: BTreeMap<u64, u32> = (1..=MESSAGES).map(|message| (message, 1)).collect();
        assert_eq!(kept, once, "seed {seed}");
    }
}
