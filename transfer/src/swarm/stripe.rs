//! Who is first in line at a seeder: rendezvous hashing (Thaler and Ravishankar, 1998) of leaf and leecher.
//!
//! Leechers that see a leaf only at seeders each compute the same owner for it, without a word between them, so that a
//! seeder sends each leaf about once. All go through the leaves in the same order, so that together they can keep to a few
//! leaves at a time. No state of a fetch lives here.

/// A peer's stable tag, the same for all who know it: 64 bits of a hash of its identity.
pub(super) type Tag = u64;

/// The weight of `leaf` at the leecher `tag`; the largest weight owns the leaf. The finaliser of SplitMix64
/// (Steele, Lea, Flood 2014) mixes well and costs a nanosecond.
pub(super) fn weight(leaf: u32, tag: Tag) -> u64 {
    let mut z = tag ^ u64::from(leaf).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The upper half decides: four bytes per leaf are kept, and a tie between two leechers costs one leaf sent twice.
fn short(leaf: u32, tag: Tag) -> u32 {
    (weight(leaf, tag) >> 32) as u32
}

/// Which leaves are this leecher's own to ask seeders for. A leecher that comes or goes costs O(leaves), a pick O(1)
/// amortised: the round walks through all leaves once for each such change.
#[derive(Debug)]
pub(super) struct Stripe {
    me: Tag,
    /// The largest weight of another leecher, per leaf; empty while there is none.
    rival: Vec<u32>,
    others: Vec<Tag>,
    count: u32,
    round: u32,
}

impl Stripe {
    pub(super) fn new(me: Tag, count: usize) -> Self {
        Stripe { me, rival: vec![], others: vec![], count: count as u32, round: 0 }
    }

    /// A leecher takes part.
    pub(super) fn join(&mut self, tag: Tag) {
        if self.rival.is_empty() {
            self.rival = vec![0; self.count as usize];
        }
        self.others.push(tag);
        for (leaf, rival) in self.rival.iter_mut().enumerate() {
            *rival = (*rival).max(short(leaf as u32, tag));
        }
        // leaves that others own from now on are passed over when met; none became this leecher's own
    }

    /// A leecher is gone, or has everything.
    pub(super) fn leave(&mut self, tag: Tag) {
        let Some(at) = self.others.iter().position(|t| *t == tag) else { return };
        self.others.swap_remove(at);
        self.round = 0;
        if self.others.is_empty() {
            self.rival = vec![];
        }
        for (leaf, rival) in self.rival.iter_mut().enumerate() {
            if short(leaf as u32, tag) == *rival {
                *rival = self.others.iter().map(|t| short(leaf as u32, *t)).max().unwrap_or(0);
            }
        }
    }

    /// The round begins anew: leaves are needed again.
    pub(super) fn restart(&mut self) {
        self.round = 0;
    }

    /// The next leaf of the round, before `end`, that is this leecher's own and that `open` lets pass.
    pub(super) fn next(&mut self, end: u32, open: impl Fn(u32) -> bool) -> Option<u32> {
        while self.round < end.min(self.count) {
            let leaf = self.round;
            self.round += 1;
            if open(leaf) && self.owns(leaf) {
                return Some(leaf);
            }
        }
        None
    }

    /// Whether nobody else has a share.
    pub(super) fn is_alone(&self) -> bool {
        self.others.is_empty()
    }

    /// Whether this leecher comes first for `leaf`.
    pub(super) fn owns(&self, leaf: u32) -> bool {
        self.rival.get(leaf as usize).is_none_or(|rival| short(leaf, self.me) >= *rival)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_leaf_has_one_owner_and_shares_are_even() {
        let tags: Vec<Tag> = (0..8u64).map(|i| weight(7, i)).collect();
        let stripes: Vec<Stripe> = (0..8)
            .map(|me| {
                let mut stripe = Stripe::new(tags[me], 8_000);
                tags.iter().filter(|t| **t != tags[me]).for_each(|t| stripe.join(*t));
                stripe
            })
            .collect();
        let mut shares = [0u32; 8];
        for leaf in 0..8_000 {
            let owners: Vec<usize> = (0..8).filter(|i| stripes[*i].owns(leaf)).collect();
            assert_eq!(owners.len(), 1);
            shares[owners[0]] += 1;
        }
        assert!(shares.iter().all(|s| (850..1150).contains(s)), "{shares:?}");
    }

    #[test]
    fn coming_and_going_leaves_no_trace() {
        let mut stripe = Stripe::new(1, 500);
        (2..9).for_each(|t| stripe.join(t));
        let before: Vec<bool> = (0..500).map(|l| stripe.owns(l)).collect();
        stripe.join(77);
        stripe.leave(3);
        stripe.join(3);
        stripe.leave(77);
        assert_eq!(before, (0..500).map(|l| stripe.owns(l)).collect::<Vec<_>>());
        (2..9).for_each(|t| stripe.leave(t));
        assert!((0..500).all(|l| stripe.owns(l)));
    }
}
