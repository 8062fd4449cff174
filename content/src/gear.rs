//! Where FastCDC cuts, four places at a time.
//!
//! A gear hash is a chain: the next needs the one before, three cycles for two bytes (the crate `fastcdc` says so of its own
//! loop), while a core has room for more. But a hash knows only the last 64 bytes, so the search can begin anywhere after
//! reading those. Here four stretches that follow each other are searched side by side; of what is found the first counts. The
//! cuts are those of `fastcdc::v2020`, whose tables are used and whose cuts the tests compare with. How long chunks are to be
//! is decided in `profile`.

use std::sync::LazyLock;

/// What each value of a byte adds to a hash.
type Gear = [u64; 256];

/// Stretches that are searched side by side. Two leave room, six need more registers than there are.
const LANES: usize = 4;
/// Bytes of a stretch. Reading the bytes before it costs an eighth; what is searched behind a cut is searched for nothing.
const LANE: usize = 512;
/// Bytes that a hash knows of: each is shifted by one bit for each that comes after it.
const MEMORY: usize = u64::BITS as usize;

static GEAR: LazyLock<Gear> = LazyLock::new(|| {
    let (gear, _) = fastcdc::v2020::get_gear_with_seed(0);
    std::array::from_fn(|byte| gear[byte])
});

/// Length of the chunk at the start of `data`, all in bytes: at least `min`, judged by the mask `strict` up to `normal`, by `lax`
/// from there on, at most `max`; all of `data` where that is shorter. `min`, `normal` and `max` are even and ascending.
pub(crate) fn cut(data: &[u8], [min, normal, max]: [usize; 3], strict: u64, lax: u64) -> usize {
    if data.len() <= min {
        return data.len();
    }
    let data = &data[..data.len().min(max)];
    // bytes are judged in pairs; the last of an odd number is not
    let pairs = |len: usize| len & !1;
    let mut search = Search { data, gear: &GEAR, at: min, hash: 0 };
    if search.find(pairs(normal.min(data.len())), strict) || search.find(pairs(data.len()), lax) {
        search.at
    } else {
        data.len()
    }
}

struct Search<'a> {
    data: &'a [u8],
    gear: &'a Gear,
    /// The byte to be judged next; the one that was found.
    at: usize,
    /// Of what was judged before it.
    hash: u64,
}

impl Search<'_> {
    /// Goes on to the first byte before `to` whose hash has no bit in common with `mask`, if there is one.
    fn find(&mut self, to: usize, mask: u64) -> bool {
        while let Some(rest) = self.data.get(self.at..to)
            && let Some(lanes) = rest.as_chunks::<LANE>().0.first_chunk::<LANES>()
        {
            match find_in(lanes, &mut self.hash, mask, self.gear) {
                Some(at) => {
                    self.at += at;
                    return true;
                }
                None => self.at += LANES * LANE,
            }
        }
        while self.at < to {
            self.hash = next(self.gear, self.hash, self.data[self.at]);
            if self.hash & mask == 0 {
                return true;
            }
            self.at += 1;
        }
        false
    }
}

/// The first place in `lanes`, which follow each other. `hash` is that of what is before them; then, if there is no place, of
/// what is in them as well.
#[inline(never)] // with a loop around it there are too few registers
fn find_in(lanes: &[[u8; LANE]; LANES], hash: &mut u64, mask: u64, gear: &Gear) -> Option<usize> {
    let mut hashes = [*hash; LANES];
    for (hash, before) in hashes[1..].iter_mut().zip(lanes) {
        *hash = before[LANE - MEMORY..].iter().fold(0, |hash, byte| next(gear, hash, *byte));
    }
    for at in 0..LANE {
        for lane in 0..LANES {
            hashes[lane] = next(gear, hashes[lane], lanes[lane][at]);
            if hashes[lane] & mask == 0 {
                // those before it have been searched as far as this
                let earlier = (0..lane).find_map(|lane| {
                    let mut hash = hashes[lane];
                    let found = lanes[lane][at + 1..].iter().position(|byte| {
                        hash = next(gear, hash, *byte);
                        hash & mask == 0
                    });
                    found.map(|found| lane * LANE + at + 1 + found)
                });
                return Some(earlier.unwrap_or(lane * LANE + at));
            }
        }
    }
    *hash = hashes[LANES - 1];
    None
}

#[inline(always)]
fn next(gear: &Gear, hash: u64, byte: u8) -> u64 {
    (hash << 1).wrapping_add(gear[usize::from(byte)])
}

#[cfg(test)]
mod tests {
    use fastcdc::v2020::MASKS;
    use proptest::prelude::*;

    use super::*;

    /// What `fastcdc` makes of it.
    fn theirs(data: &[u8], [min, normal, max]: [usize; 3], strict: u64, lax: u64) -> usize {
        fastcdc::v2020::cut(data, min, normal, max, strict, lax, strict << 1, lax << 1).1
    }

    fn all(
        data: &[u8],
        sizes: [usize; 3],
        masks: [u64; 2],
        cut: fn(&[u8], [usize; 3], u64, u64) -> usize,
    ) -> Vec<usize> {
        let (mut lens, mut at) = (vec![], 0);
        while at < data.len() {
            lens.push(cut(&data[at..], sizes, masks[0], masks[1]));
            at += lens.last().unwrap();
        }
        lens
    }

    proptest! {
        /// Masks from one bit in 64 bytes up, so that a block holds many places or none, in every lane.
        #[test]
        fn it_cuts_where_the_crate_does(
            seed: u64,
            len in 0usize..200_000,
            min in 32usize..3_000,
            more in 0usize..20_000,
            most in 0usize..20_000,
            bits in 8usize..19,
            level in 0usize..3,
            values in prop_oneof![Just(1u8), Just(2), Just(0)],
        ) {
            let mut data = vec![0; len];
            blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut data);
            // of one value, of two, of all
            data.iter_mut().for_each(|byte| if values > 0 { *byte %= values });
            let sizes = [2 * min, 2 * (min + more), 2 * (min + more + most)];
            let masks = [MASKS[bits + level], MASKS[bits - level]];
            prop_assert_eq!(all(&data, sizes, masks, cut), all(&data, sizes, masks, theirs));
        }
    }
}
