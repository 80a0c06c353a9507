//! Whose hash is checked, in vain, for a user that there is none of: how long it takes must not tell which names exist.
//!
//! A site that has moved from another broker has hashes of several kinds, and some take a thousand times as long to check as
//! others. A name that there is not costs what one of the kinds does, the same one each time, each as often as it is there:
//! as a user's name does.
//!
//! ```text
//!   HMAC(secret of the hashes, name) ─▶ a point ─▶ |── $6$ ──|──────── argon2id ────────|     wide as there are users
//! ```
//!
//! The secret is made of the hashes, so that nobody outside can tell what a name would cost if it were none; and it is the
//! same on each node with the same users. It changes when they do: whoever compares before and after may learn a name.

use std::collections::BTreeMap;

use ring::{digest, hmac};

use super::password::PasswordRecord;

/// Made once for a set of users.
#[derive(Clone, Debug)]
pub struct Decoys {
    secret: hmac::Key,
    /// One record of each kind and cost, and how many users have such, and those before it.
    kinds: Vec<(usize, PasswordRecord)>,
}

impl Default for Decoys {
    fn default() -> Self {
        Decoys::of([])
    }
}

impl Decoys {
    /// In the same order on each node.
    pub fn of<'a>(records: impl IntoIterator<Item = &'a PasswordRecord>) -> Self {
        let mut secret = digest::Context::new(&digest::SHA256);
        let mut by_cost = BTreeMap::new();
        for record in records {
            secret.update(record.secret());
            by_cost.entry(record.cost()).or_insert((0, record)).0 += 1;
        }
        let mut upto = 0;
        let kinds = by_cost.into_values().map(|(count, record)| {
            upto += count;
            (upto, record.clone())
        });
        Decoys {
            kinds: kinds.collect(),
            secret: hmac::Key::new(hmac::HMAC_SHA256, secret.finish().as_ref()),
        }
    }

    /// How many users there are.
    pub fn users(&self) -> usize {
        self.kinds.last().map_or(0, |(upto, _)| *upto)
    }

    /// For a name that none of these `sets` knows. None: there are no users at all.
    pub fn record<'a>(sets: &[&'a Decoys], name: &str) -> Option<&'a PasswordRecord> {
        let users: usize = sets.iter().map(|set| set.users()).sum();
        let first = sets.iter().find(|set| set.users() > 0)?;
        let tag = hmac::sign(&first.secret, name.as_bytes());
        let point = tag.as_ref().iter().take(8);
        let point = point.fold(0_u64, |point, byte| point << 8 | u64::from(*byte));
        // A point of 2^64, as one of the users.
        let mut at = ((u128::from(point) * users as u128) >> 64) as usize;
        for set in sets {
            if at < set.users() {
                let kind = set.kinds.iter().find(|(upto, _)| at < *upto);
                return kind.map(|(_, record)| record);
            }
            at -= set.users();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::secret::Secret;
    use super::*;

    const OLD: &str = "$7$101$c2FsdHNhbHRzYWx0$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==";

    #[test]
    fn a_name_costs_the_same_each_time_and_kinds_come_as_often_as_they_are_there() {
        let old = PasswordRecord::parse(OLD).expect("a hash");
        let new = PasswordRecord::make(&Secret::new(b"x".as_slice()));
        assert_ne!(old.cost(), new.cost());
        let decoys = Decoys::of([&old, &old, &old, &new]);
        assert_eq!(decoys.users(), 4);
        let kinds = |decoys: &[&Decoys]| {
            let names = (0..1_000).map(|n| format!("user-{n}"));
            let of_name = |name: String| Decoys::record(decoys, &name).expect("there are users").cost();
            names.map(of_name).collect::<Vec<_>>()
        };
        let found = kinds(&[&decoys]);
        assert_eq!(found, kinds(&[&decoys.clone()]), "the same each time");
        let old_ones = found.iter().filter(|cost| **cost == old.cost()).count();
        assert!((650..850).contains(&old_ones), "three of four: {old_ones}");
        let both = kinds(&[&Decoys::of([&new]), &Decoys::of([&old])]);
        let old_ones = both.iter().filter(|cost| **cost == old.cost()).count();
        assert!((400..600).contains(&old_ones), "one of two: {old_ones}");
        let other = kinds(&[&Decoys::of([
            &old,
            &old,
            &old,
            &PasswordRecord::make(&Secret::new(b"y".as_slice())),
        ])]);
        assert_ne!(found, other, "which name costs what is secret");
        assert!(Decoys::record(&[], "a").is_none() && Decoys::record(&[&Decoys::default()], "a").is_none());
    }
}
