//! What becomes of a frame between two ports, decided by rules of *directed* pairs: cut, lost, twice, late, out of order,
//! damaged, throttled.
//!
//!     offer(from, to, frame) ──▶ [ cut · stall · loss · rate · delay ± jitter · reorder · duplicate · corrupt ] ──▶ due(now)
//!
//! Sans-io: frames and `now` come in, frames come out when they are due; the same for Ethernet frames between namespaces
//! and for datagrams of the relays. Port 0 is the harness with its clients, port *i* is node *i*.

use crate::random::Random;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub type Port = usize;
/// Where the clients of the harness are.
pub const CLIENTS: Port = 0;

/// For one direction of one pair. The default lets everything pass at once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    pub cut: bool,
    pub delay: Duration,
    /// Added to or taken from `delay`, evenly distributed.
    pub jitter: Duration,
    /// Probabilities.
    pub loss: f64,
    pub duplicate: f64,
    /// Of frames that overtake: they are not delayed.
    pub reorder: f64,
    /// Of frames in which one bit is flipped.
    pub corrupt: f64,
    /// Bytes a second; 0: no limit.
    pub rate: u64,
    /// Of QUIC connections, one in two: those of this parity lose every frame, the others none. Handshakes pass.
    pub stall: Option<Parity>,
}

/// Which half of the connections, by a hash of the connection id that a frame is addressed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parity {
    Even,
    Odd,
}

/// The Destination Connection ID of a QUIC packet with a short header (RFC 9000 §17.3); Lontra's have eight bytes.
pub fn connection_of(datagram: &[u8]) -> Option<u64> {
    const LONG_HEADER: u8 = 0x80;
    const FIXED_BIT: u8 = 0x40;
    let (first, rest) = datagram.split_first()?;
    (first & (LONG_HEADER | FIXED_BIT) == FIXED_BIT).then_some(())?;
    rest.first_chunk().map(|id| u64::from_le_bytes(*id))
}

impl Rule {
    /// The worse of both in everything.
    pub fn add(&mut self, other: &Rule) {
        self.cut |= other.cut;
        self.delay = self.delay.max(other.delay);
        self.jitter = self.jitter.max(other.jitter);
        self.loss = self.loss.max(other.loss);
        self.duplicate = self.duplicate.max(other.duplicate);
        self.reorder = self.reorder.max(other.reorder);
        self.corrupt = self.corrupt.max(other.corrupt);
        self.rate = match (self.rate, other.rate) {
            (0, rate) | (rate, 0) => rate,
            (one, other) => one.min(other),
        };
        self.stall = self.stall.or(other.stall);
    }
}

impl Rule {
    fn stalls(&self, connection: u64) -> bool {
        // Fibonacci hashing: ids are random, and every bit counts.
        let is_odd = connection.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 1;
        match self.stall {
            Some(Parity::Odd) => is_odd,
            Some(Parity::Even) => !is_odd,
            None => false,
        }
    }
}

/// What the rules have done to the frames of one direction of one pair so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Of a cut, those that were under way among them.
    pub cut: u64,
    pub stalled: u64,
    pub lost: u64,
    /// By a queue that was full: of a rate, or of the shaper.
    pub overflowed: u64,
    /// By a delay or a rate.
    pub late: u64,
    pub overtook: u64,
    pub duplicated: u64,
    pub damaged: u64,
}

impl Effect {
    pub fn is_none(&self) -> bool {
        *self == Effect::default()
    }

    /// Counters with their names.
    pub fn counts(&self) -> [(&'static str, u64); 8] {
        [
            ("cut", self.cut),
            ("stalled", self.stalled),
            ("lost", self.lost),
            ("overflowed", self.overflowed),
            ("late", self.late),
            ("overtook", self.overtook),
            ("duplicated", self.duplicated),
            ("damaged", self.damaged),
        ]
    }

    pub fn plus(&self, other: &Effect) -> Effect {
        self.with(other, u64::saturating_add)
    }

    /// What was done since `earlier`.
    pub fn since(&self, earlier: &Effect) -> Effect {
        self.with(earlier, u64::saturating_sub)
    }

    fn with(&self, other: &Effect, join: fn(u64, u64) -> u64) -> Effect {
        Effect {
            cut: join(self.cut, other.cut),
            stalled: join(self.stalled, other.stalled),
            lost: join(self.lost, other.lost),
            overflowed: join(self.overflowed, other.overflowed),
            late: join(self.late, other.late),
            overtook: join(self.overtook, other.overtook),
            duplicated: join(self.duplicated, other.duplicated),
            damaged: join(self.damaged, other.damaged),
        }
    }
}

/// The rules in force, and what they have done; clones share them.
#[derive(Clone, Default)]
pub struct Rules(Arc<Mutex<BTreeMap<(Port, Port), Rule>>>, Arc<Mutex<Effects>>);

type Effects = BTreeMap<(Port, Port), Effect>;

impl Rules {
    /// What was done so far to the frames from one port to another.
    pub fn effect(&self, from: Port, to: Port) -> Effect {
        let effects = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        effects.get(&(from, to)).copied().unwrap_or_default()
    }

    fn did(&self, pair: (Port, Port), count: impl FnOnce(&mut Effect)) {
        let mut effects = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        count(effects.entry(pair).or_default());
    }

    /// Changes one rule in place.
    pub fn change(&self, from: Port, to: Port, change: impl FnOnce(&mut Rule)) {
        let mut rules = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rule = rules.entry((from, to)).or_default();
        change(rule);
        if *rule == Rule::default() {
            rules.remove(&(from, to));
        }
    }

    /// Replaces all rules in one step.
    pub fn replace(&self, rules: BTreeMap<(Port, Port), Rule>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = rules;
    }

    pub fn clear(&self) {
        self.replace(BTreeMap::new());
    }

    pub fn of(&self, from: Port, to: Port) -> Rule {
        let rules = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rules.get(&(from, to)).cloned().unwrap_or_default()
    }
}

/// A frame whose time has come. `way` is what the caller gave with it.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<W> {
    pub way: W,
    pub bytes: Vec<u8>,
}

/// Holds frames until they are due.
pub struct Shaper<W> {
    rules: Rules,
    random: Random,
    held: BinaryHeap<Reverse<Held<W>>>,
    next: u64,
    /// When the last frame of a throttled pair will have left.
    busy_until: BTreeMap<(Port, Port), Instant>,
}

struct Held<W> {
    due: Instant,
    /// Frames that are due at once leave in the order in which they came.
    number: u64,
    pair: (Port, Port),
    frame: Frame<W>,
}

impl<W: Copy> Shaper<W> {
    pub fn new(rules: Rules, random: Random) -> Shaper<W> {
        Shaper {
            rules,
            random,
            held: BinaryHeap::new(),
            next: 0,
            busy_until: BTreeMap::new(),
        }
    }

    /// Takes a frame that `from` sends to `to`; of which QUIC `connection`, as [`connection_of`] told.
    pub fn offer(&mut self, from: Port, to: Port, mut frame: Frame<W>, connection: Option<u64>, now: Instant) {
        let rule = self.rules.of(from, to);
        if rule == Rule::default() && self.held.len() < HELD_MAX {
            return self.hold((from, to), frame, now);
        }
        let mut done = Effect::default();
        let due = self.due_at((from, to), &rule, &frame, connection, now, &mut done);
        if let Some(due) = due {
            if self.happens(rule.corrupt) && !frame.bytes.is_empty() {
                done.damaged += 1;
                let at = self.random.below(frame.bytes.len());
                frame.bytes[at] ^= 1 << self.random.below(8);
            }
            if self.happens(rule.duplicate) {
                done.duplicated += 1;
                let (way, bytes) = (frame.way, frame.bytes.clone());
                self.hold((from, to), Frame { way, bytes }, due);
            }
            self.hold((from, to), frame, due);
        }
        if !done.is_none() {
            self.rules.did((from, to), |so_far| *so_far = so_far.plus(&done));
        }
    }

    /// When a frame leaves; `None`: never.
    fn due_at(
        &mut self,
        pair: (Port, Port),
        rule: &Rule,
        frame: &Frame<W>,
        connection: Option<u64>,
        now: Instant,
        done: &mut Effect,
    ) -> Option<Instant> {
        if rule.cut {
            done.cut += 1;
            return None;
        }
        if connection.is_some_and(|connection| rule.stalls(connection)) {
            done.stalled += 1;
            return None;
        }
        if self.happens(rule.loss) {
            done.lost += 1;
            return None;
        }
        if self.held.len() >= HELD_MAX {
            done.overflowed += 1;
            return None;
        }
        let mut due = now;
        if rule.rate > 0 {
            let free = self.busy_until.entry(pair).or_insert(now);
            let start = (*free).max(now);
            // A full queue drops, as a real one does.
            if start - now > QUEUE_MAX {
                done.overflowed += 1;
                return None;
            }
            due = start + Duration::from_secs_f64(frame.bytes.len() as f64 / rule.rate as f64);
            *free = due;
        }
        if self.happens(rule.reorder) {
            done.overtook += 1;
        } else {
            let least = rule.delay.saturating_sub(rule.jitter);
            due += match rule.delay + rule.jitter {
                Duration::ZERO => Duration::ZERO,
                most => self.random.duration(least, most),
            };
        }
        done.late += u64::from(due > now + LATE);
        Some(due)
    }

    /// The next frame that is due.
    pub fn due(&mut self, now: Instant) -> Option<Frame<W>> {
        loop {
            if self.held.peek()?.0.due > now {
                return None;
            }
            let Reverse(held) = self.held.pop()?;
            // Cut while it was under way.
            if !self.rules.of(held.pair.0, held.pair.1).cut {
                return Some(held.frame);
            }
            self.rules.did(held.pair, |so_far| so_far.cut += 1);
        }
    }

    pub fn next_due(&self) -> Option<Instant> {
        self.held.peek().map(|held| held.0.due)
    }

    fn happens(&mut self, probability: f64) -> bool {
        // Draws nothing where nothing can happen, so that quiet pairs cost nothing.
        probability > 0.0 && self.random.chance(probability)
    }

    fn hold(&mut self, pair: (Port, Port), frame: Frame<W>, due: Instant) {
        self.next += 1;
        self.held.push(Reverse(Held {
            due,
            number: self.next,
            pair,
            frame,
        }));
    }
}

impl<W> Held<W> {
    fn order(&self) -> (Instant, u64) {
        (self.due, self.number)
    }
}

impl<W> PartialEq for Held<W> {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl<W> Eq for Held<W> {}

impl<W> PartialOrd for Held<W> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<W> Ord for Held<W> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

/// 64 Ki frames of at most 1.5 KB: 100 MB at the worst.
const HELD_MAX: usize = 65_536;
/// A frame that leaves later than this counts as late: its own time on a link of 1 Mbit/s is 12 ms.
const LATE: Duration = Duration::from_millis(5);
/// What a throttled link queues before it drops.
const QUEUE_MAX: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    fn shaper(rule: Rule) -> (Rules, Shaper<()>) {
        let rules = Rules::default();
        rules.change(1, 2, |kept| *kept = rule);
        (rules.clone(), Shaper::new(rules, Random::new(1)))
    }

    fn offered(shaper: &mut Shaper<()>, now: Instant, count: u8) {
        for byte in 0..count {
            let bytes = vec![byte; 100];
            shaper.offer(1, 2, Frame { way: (), bytes }, None, now);
        }
    }

    fn taken(shaper: &mut Shaper<()>, now: Instant) -> Vec<u8> {
        std::iter::from_fn(|| shaper.due(now))
            .map(|frame| frame.bytes[0])
            .collect()
    }

    #[test]
    fn without_rules_frames_pass_at_once_and_in_order() {
        let (_, mut shaper) = shaper(Rule::default());
        let now = Instant::now();
        offered(&mut shaper, now, 5);
        assert_eq!(taken(&mut shaper, now), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_stall_takes_one_half_of_the_connections_whole_and_no_handshake() {
        let (rules, mut shaper) = shaper(Rule::default());
        let now = Instant::now();
        let passed = |shaper: &mut Shaper<()>, id: u64| {
            let datagram = [&[0x41], &id.to_le_bytes()[..], &[7; 20]].concat();
            let connection = connection_of(&datagram);
            assert_eq!(connection, Some(id));
            for _ in 0..5 {
                let bytes = datagram.clone();
                shaper.offer(1, 2, Frame { way: (), bytes }, connection, now);
            }
            taken(shaper, now).len()
        };
        let mut of = |parity: Option<Parity>| -> Vec<usize> {
            rules.change(1, 2, |rule| rule.stall = parity);
            (0..100).map(|id| passed(&mut shaper, id)).collect()
        };
        let (even, odd, none) = (of(Some(Parity::Even)), of(Some(Parity::Odd)), of(None));
        assert!(even.iter().zip(&odd).all(|pair| matches!(pair, (0, 5) | (5, 0))));
        assert!((30..70).contains(&even.iter().filter(|passed| **passed == 0).count()));
        assert!(none.iter().all(|passed| *passed == 5));
        assert_eq!(connection_of(&[&[0xc3][..], &[7; 20]].concat()), None, "a long header");
        assert_eq!(connection_of(&[0x41, 1, 2]), None);
    }

    #[test]
    fn a_cut_holds_for_one_direction_and_for_frames_under_way() {
        let delay = Duration::from_millis(10);
        let (rules, mut shaper) = shaper(Rule {
            delay,
            ..Rule::default()
        });
        let now = Instant::now();
        offered(&mut shaper, now, 5);
        rules.change(1, 2, |rule| rule.cut = true);
        offered(&mut shaper, now, 5);
        let bytes = vec![9];
        shaper.offer(2, 1, Frame { way: (), bytes }, None, now);
        assert_eq!(taken(&mut shaper, now + delay), [9]);
        let effect = rules.effect(1, 2);
        assert_eq!((effect.cut, effect.late, rules.effect(2, 1).is_none()), (10, 5, true));
        assert!(rules.effect(1, 2).since(&effect).is_none());
    }

    #[test]
    fn loss_duplication_and_reordering_have_their_share() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let of = |rule: Rule| {
            let (_, mut shaper) = shaper(rule);
            (0..10).for_each(|_| offered(&mut shaper, now, 100));
            taken(&mut shaper, later)
        };
        let lossy = of(Rule {
            loss: 0.3,
            ..Rule::default()
        });
        assert!((640..760).contains(&lossy.len()), "{}", lossy.len());
        let doubled = of(Rule {
            duplicate: 0.3,
            ..Rule::default()
        });
        assert!((1_240..1_360).contains(&doubled.len()), "{}", doubled.len());
        let reordered = of(Rule {
            delay: Duration::from_millis(5),
            reorder: 0.25,
            ..Rule::default()
        });
        assert_eq!(reordered.len(), 1_000);
        assert!(!reordered.chunks(100).all(<[u8]>::is_sorted));
    }

    #[test]
    fn a_rate_spaces_frames_and_drops_what_does_not_fit_the_queue() {
        let (_, mut shaper) = shaper(Rule {
            rate: 1_000,
            ..Rule::default()
        });
        let now = Instant::now();
        offered(&mut shaper, now, 50);
        assert_eq!(taken(&mut shaper, now + Duration::from_millis(99)).len(), 0);
        assert_eq!(taken(&mut shaper, now + Duration::from_millis(301)).len(), 3);
        assert_eq!(taken(&mut shaper, now + Duration::from_secs(60)).len(), 3);
    }

    #[test]
    fn delay_and_jitter_stay_in_their_bounds() {
        let (_, mut shaper) = shaper(Rule {
            delay: Duration::from_millis(50),
            jitter: Duration::from_millis(10),
            ..Rule::default()
        });
        let now = Instant::now();
        offered(&mut shaper, now, 100);
        assert_eq!(taken(&mut shaper, now + Duration::from_millis(39)).len(), 0);
        assert_eq!(taken(&mut shaper, now + Duration::from_millis(61)).len(), 100);
    }
}
