//! Names as small numbers, so that maps over millions of events stay cheap.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A hash for keys that nobody chooses to our harm: a few times faster than the default one.
#[derive(Clone, Copy, Default)]
pub struct Quick(u64);

impl Hasher for Quick {
    fn finish(&self) -> u64 {
        // The table takes its bucket from the low bits and multiplication fills the high ones.
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_u64(&mut self, value: u64) {
        // The multiplier is 2^64 divided by the golden ratio, made odd (Fibonacci hashing).
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

pub type Map<K, V> = HashMap<K, V, BuildHasherDefault<Quick>>;

/// Strings ↔ numbers from 0, in the order of their first use.
#[derive(Default)]
pub struct Names<'h> {
    numbers: Map<&'h str, u32>,
    names: Vec<&'h str>,
}

impl<'h> Names<'h> {
    pub fn intern(&mut self, name: &'h str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.names.len() as u32;
        self.numbers.insert(name, number);
        self.names.push(name);
        number
    }

    pub fn number(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    /// # Panics
    /// `number` is not from this table.
    pub fn name(&self, number: u32) -> &'h str {
        self.names[number as usize]
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &'h str)> + '_ {
        self.names
            .iter()
            .enumerate()
            .map(|(number, name)| (number as u32, *name))
    }
}
