//! A small seeded generator (xoshiro256**) for every choice of a run: targets, faults, pauses, what a client does next.
//!
//! A seed repeats the choices of each part, not the interleaving of the processes under test. Parts draw from generators of
//! their own ([`Random::fork`]), so that one more draw in one part does not change the others.

use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Random([u64; 4]);

impl Random {
    pub fn new(seed: u64) -> Random {
        // splitmix64, as the authors of xoshiro advise: seeds that differ in one bit give unrelated states, never all 0.
        let mut state = seed;
        Random(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        }))
    }

    /// A generator for another part; the same `part` of the same seed gives the same.
    pub fn fork(&self, part: &str) -> Random {
        // FNV-1a.
        let name = part.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Random::new(self.0[0] ^ self.0[3].rotate_left(17) ^ name)
    }

    pub fn number(&mut self) -> u64 {
        let [a, b, c, d] = self.0;
        let result = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let (c, d) = (c ^ a, d ^ b);
        self.0 = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        result
    }

    /// In `0..limit`.
    ///
    /// # Panics
    /// `limit` is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        assert!(limit > 0, "there is no number below 0");
        (self.number() % limit as u64) as usize
    }

    /// In `from..=to`.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.number() % (to - from + 1)
    }

    /// In `0.0..1.0`.
    pub fn fraction(&mut self) -> f64 {
        (self.number() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        self.fraction() < probability
    }

    /// Evenly distributed.
    pub fn duration(&mut self, from: Duration, to: Duration) -> Duration {
        from + to.saturating_sub(from).mul_f64(self.fraction())
    }

    /// # Panics
    /// There are no `items`.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.below(end + 1));
        }
    }

    /// `count` of `items` (all, if they are fewer), in random order.
    pub fn sample<T: Clone>(&mut self, items: &[T], count: usize) -> Vec<T> {
        let mut items = items.to_vec();
        self.shuffle(&mut items);
        items.truncate(count);
        items
    }

    /// Each item with an even chance, and never none of them; in their order.
    ///
    /// # Panics
    /// There are no `items`.
    pub fn subset<T: Clone>(&mut self, items: &[T]) -> Vec<T> {
        let kept: Vec<T> = items.iter().filter(|_| self.chance(0.5)).cloned().collect();
        if kept.is_empty() {
            return vec![self.pick(items).clone()];
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_and_another_gives_others() {
        let numbers = |seed| {
            let mut random = Random::new(seed);
            [random.number(), random.number(), random.number()]
        };
        assert_eq!(numbers(1), numbers(1));
        assert_ne!(numbers(1), numbers(2));
        let root = Random::new(1);
        assert_eq!(root.fork("a").number(), root.fork("a").number());
        assert_ne!(root.fork("a").number(), root.fork("b").number());
    }

    #[test]
    fn numbers_are_spread_over_their_range() {
        let mut random = Random::new(7);
        let mut seen = [0; 10];
        for _ in 0..10_000 {
            seen[random.below(10)] += 1;
        }
        assert!(seen.iter().all(|count| (800..1_200).contains(count)), "{seen:?}");
        let mean = (0..10_000).map(|_| random.fraction()).sum::<f64>() / 10_000.0;
        assert!((0.48..0.52).contains(&mean), "{mean}");
    }

    #[test]
    fn subsets_are_never_empty_and_samples_have_no_item_twice() {
        let mut random = Random::new(3);
        for _ in 0..100 {
            assert!(!random.subset(&[1, 2, 3]).is_empty());
            let mut sample = random.sample(&[1, 2, 3, 4], 3);
            sample.sort_unstable();
            sample.dedup();
            assert_eq!(sample.len(), 3);
        }
    }
}
