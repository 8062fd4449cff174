//! A fixed set of small numbers that many threads add to at once.

use std::sync::atomic::{AtomicU64, Ordering};

/// A bitmap that only grows.
#[derive(Debug)]
pub(super) struct Bits(Vec<AtomicU64>);

impl Bits {
    /// An empty set of numbers below `len`.
    pub(super) fn new(len: usize) -> Self {
        Self((0..len.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    pub(super) fn has(&self, index: u32) -> bool {
        let word = self.0.get(index as usize / 64);
        word.is_some_and(|word| word.load(Ordering::Acquire) & (1 << (index % 64)) != 0)
    }

    /// Adds a number; false if it was there already or is out of range. What the thread did before is seen by whoever
    /// sees the number.
    pub(super) fn add(&self, index: u32) -> bool {
        let bit = 1 << (index % 64);
        self.0.get(index as usize / 64).is_some_and(|word| word.fetch_or(bit, Ordering::AcqRel) & bit == 0)
    }
}
