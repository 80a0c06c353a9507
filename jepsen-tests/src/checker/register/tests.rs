//! Zones against brute force: small random histories, half of them spoilt by a random read.

use super::*;
use proptest::prelude::*;

/// An operation of a thread: how long it takes, whether it is a write, whether it completes, which write a read names.
type Step = (u8, bool, bool, u8);

/// Threads take their steps one after the other; times are made unique.
fn history(threads: &[Vec<Step>]) -> Vec<Access> {
    let mut accesses = Vec::new();
    let mut next_value = 0;
    for (thread, steps) in threads.iter().enumerate() {
        let mut time = thread;
        for (length, write, completes, of) in steps {
            let invoke = time;
            time += 4 * (1 + usize::from(*length));
            let value = if *write {
                next_value += 1;
                Some(next_value)
            } else {
                Some(u32::from(*of))
            };
            if *write || *completes {
                let end = if *completes { time } else { NEVER };
                accesses.push(Access {
                    invoke,
                    end,
                    write: *write,
                    value,
                });
            }
            time += 4;
        }
    }
    // Read 0 is the initial value; others name a write of the history, modulo their number.
    for access in accesses.iter_mut().filter(|access| !access.write) {
        let named = access.value.unwrap_or(0) % (next_value + 1);
        access.value = (named > 0).then_some(named);
    }
    accesses
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn zones_agree_with_a_search(
        threads in prop::collection::vec(
            prop::collection::vec((0..6_u8, any::<bool>(), prop::bool::weighted(0.8), 0..8_u8), 0..4), 1..4)
    ) {
        let accesses = history(&threads);
        let expected = wgl::is_linearizable(&accesses, wgl::STEPS_LIMIT);
        prop_assert_eq!(Some(zones::check(&accesses).is_empty()), expected, "{:?}", accesses);
    }
}

#[test]
fn a_write_that_nobody_read_may_never_have_happened() {
    let access = |invoke, end, write, value| Access {
        invoke,
        end,
        write,
        value: Some(value),
    };
    let lost = [access(0, 1, true, 1), access(2, NEVER, true, 2), access(3, 4, false, 1)];
    assert_eq!(zones::check(&lost), []);
    let back = [
        access(0, 1, true, 1),
        access(2, NEVER, true, 2),
        access(3, 4, false, 2),
        access(5, 6, false, 1),
    ];
    assert_eq!(zones::check(&back)[0].class, "stale-read");
}
