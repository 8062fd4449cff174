//! Who is first in line at a seeder: rendezvous hashing (Thaler and Ravishankar, 1998) of leaf and leecher.
//!
//! Leechers that see a leaf only at seeders each compute the same owner for it, without a word between them, so that a
//! seeder sends each leaf about once. No state of a swarm lives here.

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

/// Whether the leecher `me` comes first for `leaf` among `others`. Ties go to the larger tag.
pub(super) fn owns(leaf: u32, me: Tag, others: &[Tag]) -> bool {
    let mine = (weight(leaf, me), me);
    others.iter().all(|t| (weight(leaf, *t), *t) <= mine)
}

/// Where the leecher `tag` begins its round through `count` leaves, so that leechers that do not know of each other yet
/// do not all ask for the same leaves first.
pub(super) fn first_leaf(tag: Tag, count: usize) -> u32 {
    let spread = weight(u32::MAX, tag);
    ((u128::from(spread) * count as u128) >> 64) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_leaf_has_one_owner_and_shares_are_even() {
        let tags: Vec<Tag> = (0..8u64).map(|i| weight(7, i)).collect();
        let mut shares = [0u32; 8];
        for leaf in 0..8_000 {
            let owners: Vec<usize> = (0..8)
                .filter(|i| {
                    let others: Vec<Tag> = tags.iter().copied().filter(|t| *t != tags[*i]).collect();
                    owns(leaf, tags[*i], &others)
                })
                .collect();
            assert_eq!(owners.len(), 1);
            shares[owners[0]] += 1;
        }
        assert!(shares.iter().all(|s| (850..1150).contains(s)), "{shares:?}");
    }

    #[test]
    fn rounds_begin_inside_the_leaves() {
        for tag in [0, 1, u64::MAX, 0x1234_5678] {
            assert!(first_leaf(tag, 10) < 10);
            assert_eq!(first_leaf(tag, 0), 0);
        }
    }
}
