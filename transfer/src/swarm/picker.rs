//! The leaves that are still to be asked for, in buckets by how many leechers have them: libtorrent's bucket permutation
//! (`piece_picker` of libtorrent-rasterbar). One array holds the leaves, grouped by availability; moving a leaf to the
//! next bucket is one swap with the border, so a have costs O(1) and the rarest bucket is a slice.
//!
//! Seeders are not counted here: they have every leaf, so they change no order. Leaves that [`COMMON`] leechers or more
//! have share the last bucket, so that taking a leaf out or putting it back is O(1) as well.

/// Leaves by rarity. `u32` is the leaf's index everywhere.
#[derive(Debug)]
pub(super) struct Picker {
    /// Leaves that are to be asked for, grouped by availability, rarest first.
    order: Vec<u32>,
    /// Where a leaf stands in `order`; `ABSENT` when it is not to be asked for.
    position: Vec<u32>,
    /// How many leechers have a leaf, whether it is listed or not.
    availability: Vec<u16>,
    /// `starts[a]` is where bucket `a` begins; the last entry is the length of `order`.
    starts: Vec<u32>,
}

const ABSENT: u32 = u32::MAX;
/// From this many on it makes no difference how many leechers have a leaf.
const COMMON: usize = 32;

impl Picker {
    /// Lists `leaves` (each below `count`) in the order given, all with availability 0.
    pub(super) fn new(count: usize, leaves: impl IntoIterator<Item = u32>) -> Self {
        let order: Vec<u32> = leaves.into_iter().collect();
        let mut position = vec![ABSENT; count];
        for (at, leaf) in order.iter().enumerate() {
            position[*leaf as usize] = at as u32;
        }
        let starts = vec![0, order.len() as u32];
        Picker { order, position, availability: vec![0; count], starts }
    }

    fn bucket(&self, leaf: u32) -> usize {
        (self.availability[leaf as usize] as usize).min(COMMON)
    }

    /// Leaves still to be asked for.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether `leaf` is still to be asked for.
    pub(super) fn contains(&self, leaf: u32) -> bool {
        self.position[leaf as usize] != ABSENT
    }

    /// How many leechers have `leaf`.
    pub(super) fn availability(&self, leaf: u32) -> u16 {
        self.availability[leaf as usize]
    }

    /// The listed leaves that no leecher has.
    pub(super) fn only_at_seeders(&self) -> &[u32] {
        &self.order[..self.starts[1] as usize]
    }

    /// All listed leaves, rarest first.
    pub(super) fn rarest_first(&self) -> &[u32] {
        &self.order
    }

    /// One more leecher has `leaf`.
    pub(super) fn gained(&mut self, leaf: u32) {
        let old = self.availability[leaf as usize] as usize;
        self.availability[leaf as usize] = (old + 1).min(u16::MAX as usize) as u16;
        if self.contains(leaf) && old < COMMON {
            self.open_bucket(old + 1);
            // to the end of its bucket, then move the border over it
            let border = self.starts[old + 1] - 1;
            self.swap(self.position[leaf as usize], border);
            self.starts[old + 1] = border;
        }
    }

    /// One leecher less has `leaf`.
    pub(super) fn lost(&mut self, leaf: u32) {
        let Some(new) = self.availability[leaf as usize].checked_sub(1) else { return };
        self.availability[leaf as usize] = new;
        if self.contains(leaf) && (new as usize) < COMMON {
            let border = self.starts[new as usize + 1];
            self.swap(self.position[leaf as usize], border);
            self.starts[new as usize + 1] = border + 1;
        }
    }

    /// `leaf` was asked for or is no longer wanted.
    pub(super) fn remove(&mut self, leaf: u32) {
        if !self.contains(leaf) {
            return;
        }
        let bucket = self.bucket(leaf);
        for b in bucket + 1..self.starts.len() {
            let last = self.starts[b] - 1;
            self.swap(self.position[leaf as usize], last);
            self.starts[b] = last;
        }
        self.order.pop();
        self.position[leaf as usize] = ABSENT;
    }

    /// `leaf` is to be asked for (again).
    pub(super) fn insert(&mut self, leaf: u32) {
        if self.contains(leaf) {
            return;
        }
        let bucket = self.bucket(leaf);
        self.open_bucket(bucket);
        self.position[leaf as usize] = self.order.len() as u32;
        self.order.push(leaf);
        for b in (bucket + 1..self.starts.len()).rev() {
            let first = self.starts[b];
            self.starts[b] = first + 1;
            self.swap(self.position[leaf as usize], first);
        }
    }

    /// Makes sure that bucket `b` has a start and an end.
    fn open_bucket(&mut self, b: usize) {
        while self.starts.len() < b + 2 {
            self.starts.push(self.order.len() as u32);
        }
    }

    fn swap(&mut self, a: u32, b: u32) {
        if a != b {
            self.order.swap(a as usize, b as usize);
            self.position[self.order[a as usize] as usize] = a;
            self.position[self.order[b as usize] as usize] = b;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(p: &Picker) {
        assert_eq!(*p.starts.last().unwrap() as usize, p.order.len());
        assert!(p.starts.is_sorted());
        let rarity: Vec<usize> = p.order.iter().map(|l| p.bucket(*l)).collect();
        assert!(rarity.is_sorted(), "{rarity:?}");
        for (at, leaf) in p.order.iter().enumerate() {
            assert_eq!(p.position[*leaf as usize], at as u32);
            let a = p.bucket(*leaf);
            assert!((p.starts[a]..p.starts[a + 1]).contains(&(at as u32)));
        }
        assert!(p.only_at_seeders().iter().all(|l| p.availability(*l) == 0));
    }

    proptest! {
        /// Any run of operations keeps the leaves sorted by rarity and every position true.
        #[test]
        fn order_holds_under_any_operations(ops in prop::collection::vec((0..6u8, 0..20u32), 0..1000)) {
            let mut p = Picker::new(20, 0..20);
            let mut listed: std::collections::BTreeSet<u32> = (0..20).collect();
            for (op, leaf) in ops {
                match op {
                    // more gains than losses, so that some leaves become common
                    0 | 4 => p.gained(leaf % 5),
                    1 => p.lost(leaf % 5),
                    5 => p.gained(leaf),
                    2 => { p.remove(leaf); listed.remove(&leaf); }
                    _ => { p.insert(leaf); listed.insert(leaf); }
                }
                check(&p);
                let mut now: Vec<u32> = p.order.clone();
                now.sort_unstable();
                prop_assert_eq!(now, listed.iter().copied().collect::<Vec<_>>());
            }
        }
    }
}
