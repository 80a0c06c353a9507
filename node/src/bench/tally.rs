//! What all clients of a run count together.

use hdrhistogram::Histogram;

use super::arrivals::{Arrival, Arrivals};
use super::stamp::Stamp;

#[derive(Debug)]
pub struct Tally {
    pub run: u64,
    /// Whether what happens now belongs to the measured interval.
    pub is_measuring: bool,
    /// Distinct messages at their subscribers.
    pub delivered: u64,
    pub duplicates: u64,
    pub out_of_order: u64,
    /// Of another run, or no message of ours at all.
    pub foreign: u64,
    /// When the last came; nanoseconds since the run began.
    pub last_arrival: u64,
    /// Nanoseconds, of the measured interval.
    pub latency: Histogram<u64>,
    pub acknowledge: Histogram<u64>,
    pub send_delay: Histogram<u64>,
    /// Arrivals of each publisher's messages.
    pub arrived_of: Vec<u64>,
    /// Publishers that may have room again.
    wake: Vec<u32>,
    is_woken: Vec<bool>,
}

impl Tally {
    pub fn new(run: u64, publishers: usize) -> Tally {
        Tally {
            run,
            is_measuring: false,
            delivered: 0,
            duplicates: 0,
            out_of_order: 0,
            foreign: 0,
            last_arrival: 0,
            latency: histogram(),
            acknowledge: histogram(),
            send_delay: histogram(),
            arrived_of: vec![0; publishers],
            wake: Vec::with_capacity(publishers),
            is_woken: vec![false; publishers],
        }
    }

    /// A message reached a subscriber that gets those of `first_publisher` and following, one of `arrivals` each.
    pub fn arrived(&mut self, payload: &[u8], first_publisher: u32, arrivals: &mut [Arrivals], now: u64) {
        let stamp = Stamp::read(payload).filter(|stamp| stamp.run == self.run);
        let awaited = stamp.and_then(|stamp| {
            let at = stamp.publisher.checked_sub(first_publisher)?;
            Some((stamp, arrivals.get_mut(at as usize)?))
        });
        let Some((stamp, arrivals)) = awaited else {
            self.foreign += 1;
            return;
        };
        match arrivals.arrived(stamp.sequence) {
            Arrival::InOrder => {}
            Arrival::Late => self.out_of_order += 1,
            Arrival::Duplicate => {
                self.duplicates += 1;
                return;
            }
        }
        self.delivered += 1;
        self.last_arrival = now;
        self.arrived_of[stamp.publisher as usize] += 1;
        self.wake(stamp.publisher);
        if self.is_measuring {
            self.latency.saturating_record(now.saturating_sub(stamp.due));
        }
    }

    pub fn acknowledged(&mut self, after: u64) {
        if self.is_measuring {
            self.acknowledge.saturating_record(after);
        }
    }

    pub fn sent(&mut self, late_by: u64) {
        if self.is_measuring {
            self.send_delay.saturating_record(late_by);
        }
    }

    pub fn wake(&mut self, publisher: u32) {
        if !std::mem::replace(&mut self.is_woken[publisher as usize], true) {
            self.wake.push(publisher);
        }
    }

    pub fn next_woken(&mut self) -> Option<u32> {
        let publisher = self.wake.pop()?;
        self.is_woken[publisher as usize] = false;
        Some(publisher)
    }
}

/// Three digits, up to a minute.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("valid bounds")
}
