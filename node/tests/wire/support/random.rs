//! A seeded generator for choices of nodes, roles and pauses. The seed is printed; `LONTRA_TEST_SEED` repeats it
//! (the choices repeat, the interleaving does not).

use std::time::{SystemTime, UNIX_EPOCH};

/// xorshift64*, plenty for picking nodes.
pub struct Random(u64);

impl Random {
    /// `LONTRA_TEST_SEED` if it is set, else the clock.
    pub fn announced(test: &str) -> Random {
        let seed = match std::env::var("LONTRA_TEST_SEED") {
            Ok(seed) => seed.parse().expect("LONTRA_TEST_SEED is a number"),
            Err(_) => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .expect("after 1970")
                .as_nanos() as u64,
        };
        println!("{test}: LONTRA_TEST_SEED={seed}");
        Random::new(seed)
    }

    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A generator for a part of the test, so that tasks do not share one.
    pub fn fork(&mut self) -> Random {
        Random::new(self.next())
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number in `0..limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 11) as usize % limit
    }

    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}
