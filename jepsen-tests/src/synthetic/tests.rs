//! The world is fair: nothing is wrong with what it makes, and it makes the same again.

use super::*;
use crate::checker::{Validity, judge};

#[test]
fn generated_histories_are_valid() {
    for seed in 0..40 {
        let history = generate(&Plan::new(seed));
        let verdict = judge(&history, &profile());
        assert_eq!(
            verdict.valid,
            Validity::True,
            "seed {seed}: {:#?} {:?}",
            verdict.violations.first(),
            verdict.unknown
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_history() {
    assert_eq!(generate(&Plan::new(7)), generate(&Plan::new(7)));
    assert_ne!(generate(&Plan::new(7)), generate(&Plan::new(8)));
}

#[test]
fn a_generated_history_survives_its_text() {
    let history = generate(&Plan::new(3));
    let text: String = history.iter().map(Event::to_line).collect();
    assert_eq!(
        crate::history::parse(&text).expect("lines that were written are read"),
        history
    );
}
