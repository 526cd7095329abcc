//! Random bytes that can be had again.

use std::hash::{BuildHasher, RandomState};

/// Random bytes with a seed, which is printed: a test that failed shows it. `TESTS_SEED=N` has the same bytes again.
#[derive(Debug)]
pub struct Noise {
    state: u64,
}

impl Noise {
    /// A new seed, or that of `TESTS_SEED`.
    ///
    /// # Panics
    /// When `TESTS_SEED` is not a number.
    #[must_use]
    pub fn new() -> Self {
        let seed = match std::env::var("TESTS_SEED") {
            Ok(text) => text.parse().expect("TESTS_SEED is a number"),
            Err(_) => RandomState::new().hash_one(std::process::id()),
        };
        println!("TESTS_SEED={seed}");
        Self { state: seed }
    }

    /// The bytes of this seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Self { state: seed }
    }

    /// SplitMix64 (Steele, Lea and Flood, 2014).
    pub fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// So many bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.number().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

impl Default for Noise {
    fn default() -> Self {
        Self::new()
    }
}
