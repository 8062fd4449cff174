//! The seams of a file that is being imported: [`Seams`] says what it has to see, and this reads it, out of a window that
//! has it or from the file in pages.

use std::collections::VecDeque;

use shoal_content::{Profile, Seams};

use super::{ImportError, source::Opened};

/// What is read at once where no window has it. Headers are small and often near each other.
const PAGE_BYTES: usize = 4096;

/// The seams of one file, found front to back.
pub(super) struct Layout<'a> {
    opened: &'a Opened,
    seams: Seams,
    /// Found, and not passed yet.
    found: VecDeque<u64>,
    page: Page,
}

/// A stretch of the file.
#[derive(Default)]
struct Page {
    at: u64,
    bytes: Vec<u8>,
}

impl<'a> Layout<'a> {
    pub(super) fn new(opened: &'a Opened, profile: &Profile) -> Self {
        let seams = Seams::new(profile, opened.stamp.size);
        Self { opened, seams, found: VecDeque::new(), page: Page::default() }
    }

    /// Whether the file is no archive. Looks at its first block; to be asked before anything else.
    pub(super) fn is_plain(&mut self) -> Result<bool, ImportError> {
        self.find(1, 0, &[])?;
        Ok(self.seams.is_plain())
    }

    /// Finds all seams before `until`. `window` holds the bytes of the file from `at` on.
    pub(super) fn find(&mut self, until: u64, at: u64, window: &[u8]) -> Result<(), ImportError> {
        while let Some((offset, len)) = self.seams.poll_read().filter(|_| self.seams.known_to() < until) {
            let bytes = match part(window, at, offset, len) {
                Some(bytes) => bytes,
                None => self.page.read(self.opened, offset, len)?,
            };
            self.seams.handle_read(bytes);
            while let Some(seam) = self.seams.poll_seam() {
                self.found.push_back(seam);
            }
        }
        Ok(())
    }

    /// The first seam behind `at`, of those found. Those up to `at` are forgotten.
    pub(super) fn next_after(&mut self, at: u64) -> Option<u64> {
        while self.found.pop_front_if(|seam| *seam <= at).is_some() {}
        self.found.front().copied()
    }

    /// All seams found behind `at`, ascending. Those up to `at` are forgotten.
    pub(super) fn all_after(&mut self, at: u64) -> Vec<u64> {
        let _next = self.next_after(at);
        self.found.iter().copied().collect()
    }
}

impl Page {
    fn read(&mut self, opened: &Opened, offset: u64, len: usize) -> Result<&[u8], ImportError> {
        if part(&self.bytes, self.at, offset, len).is_none() {
            let left = usize::try_from(opened.stamp.size - offset).unwrap_or(usize::MAX);
            self.bytes.resize(len.max(PAGE_BYTES.min(left)), 0);
            self.at = offset;
            opened.read_exact_at(&mut self.bytes, offset)?;
        }
        Ok(part(&self.bytes, self.at, offset, len).unwrap_or_default())
    }
}

/// `len` bytes from `offset` on, if `bytes`, which begin at `at`, have them all.
fn part(bytes: &[u8], at: u64, offset: u64, len: usize) -> Option<&[u8]> {
    let from = usize::try_from(offset.checked_sub(at)?).ok()?;
    bytes.get(from..from.checked_add(len)?)
}
