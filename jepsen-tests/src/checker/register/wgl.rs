//! The search of Wing and Gong with Lowe's memory of states, for small registers whose values are not unique.
//!
//! Tries to put the operations in an order, one at a time: next can only be one that was invoked before any remaining one
//! completed. Operations that never completed may be left out. A state is the set of operations that are placed and the
//! value; one that was seen before leads nowhere new.

use super::Access;
use crate::checker::model::NEVER;
use std::collections::HashSet;

/// None: `steps` were not enough to decide.
pub fn is_linearizable(accesses: &[Access], mut steps: usize) -> Option<bool> {
    let mut accesses = accesses.to_vec();
    accesses.sort_by_key(|access| access.invoke);
    let words = accesses.len().div_ceil(64);
    let mut seen: HashSet<(Vec<u64>, Option<u32>)> = HashSet::new();
    let mut open: Vec<(Vec<u64>, Option<u32>)> = vec![(vec![0; words], None)];
    while let Some((placed, value)) = open.pop() {
        let is_placed = |at: usize| placed[at / 64] & (1 << (at % 64)) != 0;
        let rest = || (0..accesses.len()).filter(|at| !is_placed(*at));
        let Some(first_end) = rest().map(|at| accesses[at].end).min() else {
            return Some(true);
        };
        if first_end == NEVER {
            return Some(true);
        }
        for at in rest().take_while(|at| accesses[*at].invoke < first_end) {
            let access = accesses[at];
            if !access.write && access.value != value {
                continue;
            }
            steps = steps.checked_sub(1)?;
            let mut next = placed.clone();
            next[at / 64] |= 1 << (at % 64);
            let state = (next, if access.write { access.value } else { value });
            if seen.insert(state.clone()) {
                open.push(state);
            }
        }
    }
    Some(false)
}

/// 2,000,000: a few seconds. Topics of at most 200 operations of 5 clients need far less.
pub const STEPS_LIMIT: usize = 2_000_000;
