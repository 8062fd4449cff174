//! Writing many leaves: those that lie side by side in one file are written and staged in one step. An archive is made of
//! them, and a step for each would cost more than its bytes.

use std::sync::PoisonError;

use shoal_content::Cid;

use super::{Checkout, CheckoutError, UNFINISHED, target::Target};

/// Leaves side by side, whose bytes wait to be written.
struct Stretch<'a> {
    target: &'a Target,
    entry: u32,
    /// Where it begins in the file.
    offset: u64,
    bytes: &'a [u8],
    leaves: &'a [u32],
    refs: Vec<(Cid, u64, u32)>,
}

impl Checkout {
    /// [`write`](Self::write) for several leaves, whose bytes follow each other in `bytes`. After an error some of them may be
    /// written.
    ///
    /// # Errors
    /// As [`write`](Self::write); [`CheckoutError::WrongLength`] if `bytes` end before the last leaf does.
    pub fn write_run(&self, leaves: &[u32], bytes: &[u8]) -> Result<(), CheckoutError> {
        // What is waiting begins at this leaf and this byte.
        let (mut from, mut at) = (0, 0);
        let mut waiting: Option<Stretch<'_>> = None;
        let mut end = 0;
        for (index, &leaf) in leaves.iter().enumerate() {
            let Some(known) = self.manifest.leaves().get(leaf as usize) else {
                return Err(CheckoutError::NotWanted { leaf });
            };
            let begin = end;
            end += known.len as usize;
            if bytes.len() < end {
                return Err(CheckoutError::WrongLength { leaf, expected: known.len, found: bytes.len() - begin });
            }
            let place = self.only_place(leaf);
            let joins = waiting.as_ref().zip(place).is_some_and(|(waiting, (_, entry, offset))| {
                waiting.entry == entry && waiting.offset + (begin - at) as u64 == offset
            });
            if !joins {
                waiting.take().map_or(Ok(()), |stretch| self.write_stretch(stretch))?;
                (from, at) = (index, begin);
            }
            match (place, &mut waiting) {
                (None, _) => self.write(leaf, &bytes[begin..end])?,
                (Some((_, _, offset)), Some(stretch)) => {
                    stretch.bytes = &bytes[at..end];
                    stretch.leaves = &leaves[from..=index];
                    stretch.refs.push((known.cid, offset, known.len));
                }
                (Some((target, entry, offset)), empty) => {
                    let refs = vec![(known.cid, offset, known.len)];
                    let (bytes, leaves) = (&bytes[begin..end], &leaves[index..=index]);
                    *empty = Some(Stretch { target, entry, offset, bytes, leaves, refs });
                }
            }
        }
        waiting.map_or(Ok(()), |stretch| self.write_stretch(stretch))
    }

    /// Where a leaf belongs that is to be written to one place and nowhere else.
    fn only_place(&self, leaf: u32) -> Option<(&Target, u32, u64)> {
        let [place] = self.manifest.places(leaf) else { return None };
        if !self.wanted.has(leaf) || self.have.has(leaf) {
            return None;
        }
        let target = self.target_of(place.entry).filter(|target| !target.done)?;
        Some((target, place.entry, place.offset))
    }

    fn write_stretch(&self, stretch: Stretch<'_>) -> Result<(), CheckoutError> {
        let Stretch { target, entry, offset, bytes, leaves, refs } = stretch;
        if let [leaf] = leaves {
            return self.write(*leaf, bytes);
        }
        let finished = self.finished.read().unwrap_or_else(PoisonError::into_inner);
        if finished.is_some() {
            return Ok(());
        }
        let mut stamp = self.write_piece(target, entry, bytes, offset)?;
        stamp.mtime_ns = UNFINISHED;
        self.store.stage_file(target.base, target.plan.rel(&self.manifest, entry), stamp, &refs, true)?;
        for &leaf in leaves {
            if self.mark(leaf) {
                self.count_down(entry)?;
            }
        }
        Ok(())
    }
}
