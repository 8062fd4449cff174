//! Parallel chunking: segments of a file are cut speculatively, each from its own start, and stitched into exactly the
//! chunks that cutting from the file's start would give.
//!
//! Cuts depend on nothing before a chunk's start, so once the true cuts and a segment's guesses share one boundary they
//! share all that follow. Who reads, and on how many threads, is the caller's.

use crate::Profile;

impl Profile {
    /// Cuts a segment of a file as if a chunk began at its start: the lengths of the chunks that begin in
    /// `data[..segment]`. `data` goes on for at least [`Profile::max_chunk`] bytes after the segment, or to the end of
    /// the file.
    pub fn cut_segment(&self, data: &[u8], segment: usize) -> Vec<u32> {
        let mut lens = Vec::new();
        let mut at = 0;
        while at < segment.min(data.len()) {
            let len = self.cut(&data[at..]);
            lens.push(len as u32);
            at += len;
        }
        lens
    }
}

/// Joins segments, in file order, into the true chunks of the file.
#[derive(Debug, Default)]
pub struct Stitch {
    /// Where the next true chunk begins.
    at: u64,
}

/// One true chunk, in file order.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Stitched {
    /// The segment guessed right: its chunk of this index stands.
    Kept(usize),
    /// A chunk that no guess matched; its bytes have to be hashed anew.
    Recut {
        /// Where it begins in the file, in bytes.
        offset: u64,
        /// Its length in bytes.
        len: u32,
    },
}

impl Stitch {
    /// Starts at the beginning of a file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where the next chunk begins: the length of the file once its last segment is joined.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Takes the next segment, which begins at `start`, is `segment` bytes long and was cut into `lens` by
    /// [`Profile::cut_segment`]. `recut` cuts one chunk at an offset of the file with [`Profile::cut`] and returns its
    /// length; `emit` is given every true chunk that begins in the segment, in order. A length of 0 says that the file
    /// ends there after all, and ends the join: [`Stitch::position`] then falls short.
    ///
    /// # Errors
    /// Whatever `recut` fails with. The file has then to be begun again.
    pub fn join<E>(
        &mut self,
        start: u64,
        segment: u64,
        lens: &[u32],
        mut recut: impl FnMut(u64) -> Result<u32, E>,
        mut emit: impl FnMut(Stitched),
    ) -> Result<(), E> {
        let mut guess = start;
        for (index, &len) in lens.iter().enumerate() {
            if !self.recut_to(guess, &mut recut, &mut emit)? {
                return Ok(());
            }
            if self.at == guess {
                emit(Stitched::Kept(index));
                self.at += u64::from(len);
            }
            guess += u64::from(len);
        }
        self.recut_to(start + segment, &mut recut, &mut emit).map(drop)
    }

    /// Cuts anew until `end` is reached or passed; false where the file ends before.
    fn recut_to<E>(
        &mut self,
        end: u64,
        recut: &mut impl FnMut(u64) -> Result<u32, E>,
        emit: &mut impl FnMut(Stitched),
    ) -> Result<bool, E> {
        while self.at < end {
            let offset = self.at;
            let len = recut(offset)?;
            if len == 0 {
                return Ok(false);
            }
            emit(Stitched::Recut { offset, len });
            self.at += u64::from(len);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn a_file_that_shrank_ends_the_join() {
        let mut stitch = Stitch { at: 5 };
        let Ok(()) = stitch.join(0, 30, &[10, 10, 10], |_| Ok::<_, Infallible>(0), |_| panic!("there is no chunk"));
        assert_eq!(stitch.position(), 5);
    }
}
