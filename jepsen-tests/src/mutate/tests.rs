//! Each mutation gives the class that it names, over many histories.

use super::*;
use crate::checker::{Validity, judge};
use crate::synthetic::{Plan, generate, profile};
use std::collections::BTreeMap;

fn assert_as_expected(mutator: &Mutator, events: &[Event], seed: u64) {
    let verdict = judge(events, &profile());
    let classes = verdict.classes();
    let shown = || {
        format!(
            "seed {seed}, {}: {:#?} {:?}",
            mutator.name, verdict.violations, verdict.unknown
        )
    };
    match mutator.expect {
        Expect::Valid => assert_eq!(verdict.valid, Validity::True, "{}", shown()),
        Expect::Unknown => assert_eq!(verdict.valid, Validity::Unknown, "{}", shown()),
        Expect::Class(class, also) => {
            assert!(classes.contains(&class), "{class} was not found: {}", shown());
            let foreign = classes.iter().find(|found| **found != class && !also.contains(found));
            assert_eq!(foreign, None, "{}", shown());
        }
    }
}

#[test]
fn every_mutation_gives_exactly_its_class() {
    let mut applied: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in 0..SEEDS {
        let history = generate(&Plan::new(seed));
        for mutator in mutators() {
            let mut spoil = Spoil::new(&history, &profile().limits, seed);
            let count = applied.entry(mutator.name).or_default();
            if let Some(events) = (mutator.apply)(&mut spoil) {
                *count += 1;
                assert_as_expected(&mutator, &events, seed);
            }
        }
    }
    let seldom: Vec<_> = applied.iter().filter(|(_, count)| **count < APPLIED_AT_LEAST).collect();
    assert!(seldom.is_empty(), "applied too seldom: {seldom:?}");
}

#[test]
fn there_are_many_mutators_and_each_has_its_own_name() {
    let names: std::collections::BTreeSet<&str> = mutators().iter().map(|mutator| mutator.name).collect();
    assert_eq!(names.len(), mutators().len());
    assert!(names.len() >= 50, "{}", names.len());
}

const SEEDS: u64 = 20;
const APPLIED_AT_LEAST: usize = 5;
