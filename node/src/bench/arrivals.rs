//! What one subscriber got of one publisher.
//!
//!     0 1 2 3 . . 6 7        next = 8, gaps = [4..6]
//!               └── 5 now: late (out of order);  3 now: duplicate;  9 now: a gap [8..9]
//!
//! In order and complete, it is one number.

use std::ops::Range;

#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    next: u64,
    gaps: Vec<Range<u64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    InOrder,
    /// For the first time, but behind a later one.
    Late,
    Duplicate,
}

impl Arrivals {
    pub fn arrived(&mut self, sequence: u64) -> Arrival {
        if sequence >= self.next {
            if sequence > self.next {
                self.gaps.push(self.next..sequence);
            }
            self.next = sequence + 1;
            return Arrival::InOrder;
        }
        let Some(at) = self.gaps.iter().position(|gap| gap.contains(&sequence)) else {
            return Arrival::Duplicate;
        };
        let gap = self.gaps.swap_remove(at);
        let rest = [gap.start..sequence, sequence + 1..gap.end];
        self.gaps.extend(rest.into_iter().filter(|gap| !gap.is_empty()));
        Arrival::Late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(inputs: &[u64], expected: &[Arrival]) {
        let mut arrivals = Arrivals::default();
        let told: Vec<Arrival> = inputs.iter().map(|sequence| arrivals.arrived(*sequence)).collect();
        assert_eq!(told, expected, "{inputs:?}");
    }

    #[test]
    fn each_message_is_in_order_late_or_a_duplicate() {
        use Arrival::{Duplicate, InOrder, Late};
        check(&[0, 1, 2], &[InOrder, InOrder, InOrder]);
        check(&[0, 0, 1], &[InOrder, Duplicate, InOrder]);
        check(&[0, 2, 1, 1], &[InOrder, InOrder, Late, Duplicate]);
        check(&[5, 2, 0, 4, 2, 5], &[InOrder, Late, Late, Late, Duplicate, Duplicate]);
    }
}
