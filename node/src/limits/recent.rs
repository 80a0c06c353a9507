//! A map that forgets: of many keys the recent ones, in bounded memory and constant time.
//!
//! ```text
//!   young ──full──▶ old ──▶ forgotten            a key that is touched again is young again
//! ```
//!
//! Invariant `bounded`: at most 2 × `generation` keys. A key that is touched is there at least until `generation` others
//! were.

use std::collections::HashMap;
use std::hash::Hash;

#[derive(Debug)]
pub struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    generation: usize,
}

impl<K: Eq + Hash, V: Default> Recent<K, V> {
    pub fn new(generation: usize) -> Self {
        Recent {
            young: HashMap::new(),
            old: HashMap::new(),
            generation: generation.max(1),
        }
    }

    /// What stands under a key, perhaps fresh.
    pub fn touch(&mut self, key: K) -> &mut V {
        if !self.young.contains_key(&key) {
            let value = self.old.remove(&key).unwrap_or_default();
            if self.young.len() >= self.generation {
                self.old = std::mem::take(&mut self.young);
            }
            return self.young.entry(key).or_insert(value);
        }
        self.young.entry(key).or_default()
    }

    pub fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_the_recent_stay_and_the_others_go() {
        let mut recent = Recent::<u32, u32>::new(10);
        for n in 0..1_000 {
            *recent.touch(n) += 1;
            assert_eq!(*recent.touch(1_000_000), n, "touched again and again, it stays");
            *recent.touch(1_000_000) += 1;
            assert!(recent.len() <= 20);
        }
        assert_eq!(*recent.touch(999), 1);
        assert_eq!(*recent.touch(1), 0, "forgotten");
        recent.remove(&999);
        assert_eq!(*recent.touch(999), 0);
    }
}
