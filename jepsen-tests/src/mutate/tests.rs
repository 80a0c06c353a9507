//! Each mutation gives the class that it names, over many histories.

use super::*;
use crate::checker::{Validity, judge};
use crate::synthetic::{Plan, generate, profile};
use std::collections::BTreeMap;

/// What the verdict should have been and was not.
fn surprise(mutator: &Mutator, events: &[Event]) -> Option<String> {
    let verdict = judge(events, &profile());
    let classes = verdict.classes();
    let as_expected = match mutator.expect {
        Expect::Valid => verdict.valid == Validity::True,
        Expect::Unknown => verdict.valid == Validity::Unknown,
        Expect::Class(class, also) => {
            classes.contains(&class) && classes.iter().all(|found| *found == class || also.contains(found))
        }
    };
    let first: Vec<&String> = verdict.violations.iter().map(|found| &found.message).take(3).collect();
    let expected = mutator.expect;
    (!as_expected).then(|| format!("{expected:?} but {classes:?}: {first:?} {:?}", verdict.unknown))
}

#[test]
fn every_mutation_gives_exactly_its_class() {
    let mut applied: BTreeMap<&str, usize> = BTreeMap::new();
    let mut surprises = Vec::new();
    for seed in 0..SEEDS {
        let history = generate(&Plan::new(seed));
        for mutator in mutators() {
            let mut spoil = Spoil::new(&history, &profile().limits, seed);
            let count = applied.entry(mutator.name).or_default();
            if let Some(events) = (mutator.apply)(&mut spoil) {
                *count += 1;
                let found = surprise(&mutator, &events);
                surprises.extend(found.map(|what| format!("seed {seed}, {}: {what}", mutator.name)));
            }
        }
    }
    assert!(surprises.is_empty(), "{}", surprises.join("\n"));
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
