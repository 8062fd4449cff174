//! How often leaves were sent of late. It bounds what it remembers, and knows nothing of answers.

use std::collections::HashMap;

/// Leaves of which it is known how often they were sent: the last so many, to twice as many.
const LEAVES_REMEMBERED: usize = 1 << 15;

/// How often leaves were sent of late: two generations, of which the older one is forgotten when the newer one is full.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// Only looked up, never walked through: their order is chance.
    new: HashMap<u64, u32>,
    old: HashMap<u64, u32>,
}

impl Recent {
    pub(super) fn count(&self, leaf: u64) -> u32 {
        let of = |map: &HashMap<u64, u32>| map.get(&leaf).copied().unwrap_or(0);
        of(&self.new).saturating_add(of(&self.old))
    }

    pub(super) fn add(&mut self, leaf: u64) {
        let count = self.new.entry(leaf).or_default();
        *count = count.saturating_add(1);
        if self.new.len() >= LEAVES_REMEMBERED {
            self.old = std::mem::take(&mut self.new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_of_leaves_is_bounded() {
        let mut recent = Recent::default();
        for leaf in 0..5 * LEAVES_REMEMBERED as u64 {
            recent.add(leaf);
            recent.add(leaf);
            assert_eq!(recent.count(leaf), 2);
        }
        assert!(recent.new.len() + recent.old.len() <= 2 * LEAVES_REMEMBERED);
        assert_eq!(recent.count(0), 0);
    }
}
