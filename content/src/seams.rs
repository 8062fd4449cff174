//! Where a file is cut apart before it is cut by its content: at the entries of an archive, so that an entry has the same
//! chunks in every archive that holds it, and on its own, whatever the headers around it say.
//!
//! Between two seams is a stretch, and each stretch is cut as if it were a file. An entry's contents are a stretch; what is
//! between contents (padding, headers, entries too small to be worth it) is another. The one format with seams is tar;
//! another one would be another state machine behind [`Seams`]. The caller reads: see [`Seams::poll_read`].

use std::collections::VecDeque;

use crate::{
    Profile,
    tar::{BLOCK_BYTES, Block, Kind, padded, pax_size, sparse_map_goes_on},
};

/// Archives within archives that are looked into, the outermost counted. Images of containers have two.
const MAX_NESTED: usize = 4;

/// Longest run of pax records that is looked into. What is longer does not change a size as far as this code knows.
const MAX_PAX_BYTES: u64 = 64 << 10;

/// Finds the seams of one file, front to back.
///
/// As long as [`Seams::poll_read`] asks for bytes, hand them to [`Seams::handle_read`]; [`Seams::poll_seam`] then gives what
/// was found. Reads ask for ever later offsets, and what lies before [`Seams::known_to`] is settled, so a file can be
/// cut while its end is still unknown. The seams depend on the file's bytes alone. A file that is no archive costs one read of
/// a block. Where an archive turns out to be malformed there are no further seams.
#[derive(Debug)]
pub struct Seams {
    /// An entry of at most this many bytes stays with what surrounds it.
    small: u64,
    /// Where the archives end that are being looked into, the outermost first: it ends with the file.
    ends: Vec<u64>,
    next: Next,
    /// Found and not polled yet; a few at most.
    found: VecDeque<u64>,
    /// The last one found.
    last: u64,
}

/// What is looked at next.
#[derive(Copy, Clone, Debug)]
enum Next {
    /// Whether an archive begins here, and where the file or contents end that it would be.
    Begin { at: u64, end: u64 },
    /// A header, or zeros. pax may have told the size of the entry.
    Header { at: u64, size: Option<u64> },
    /// pax records.
    Pax { at: u64, len: u64, size: Option<u64> },
    /// A block that goes on with the map of a sparse file of this many bytes of data.
    SparseMap { at: u64, size: u64 },
    /// Nothing more.
    Done,
}

impl Seams {
    /// For a file of `len` bytes.
    pub fn new(profile: &Profile, len: u64) -> Self {
        let next = match profile.entries_over {
            Some(_) if len >= BLOCK_BYTES => Next::Begin { at: 0, end: len },
            _ => Next::Done,
        };
        Self { small: profile.entries_over.unwrap_or(0), ends: Vec::new(), next, found: VecDeque::new(), last: 0 }
    }

    /// Where to read next and how many bytes, at most 64 KiB, all of them inside the file. `None` when all is known.
    pub fn poll_read(&self) -> Option<(u64, usize)> {
        let (at, len) = match self.next {
            Next::Begin { at, .. } | Next::Header { at, .. } | Next::SparseMap { at, .. } => (at, BLOCK_BYTES),
            Next::Pax { at, len, .. } => (at, len),
            Next::Done => return None,
        };
        Some((at, len as usize))
    }

    /// Takes the bytes that [`Seams::poll_read`] asked for. Fewer, because the file ends before, end the search.
    pub fn handle_read(&mut self, bytes: &[u8]) {
        let next =
            if self.poll_read().is_some_and(|(_, len)| bytes.len() == len) { self.step(bytes) } else { Next::Done };
        self.next = self.clamp(next);
    }

    /// The next seam: an offset of the file, larger than any before.
    pub fn poll_seam(&mut self) -> Option<u64> {
        self.found.pop_front()
    }

    /// Whether the file is no archive. Known once its first block was handled: ask then, or never.
    pub fn is_plain(&self) -> bool {
        matches!(self.next, Next::Done) && self.last == 0
    }

    /// All seams before this offset have been found.
    pub fn known_to(&self) -> u64 {
        self.poll_read().map_or(u64::MAX, |(at, _)| at)
    }

    fn step(&mut self, bytes: &[u8]) -> Next {
        let block = bytes.first_chunk::<{ BLOCK_BYTES as usize }>();
        match (self.next, block) {
            (Next::Begin { at, end }, Some(block)) => match Block::decode(block) {
                Block::Header(..) if self.ends.len() < MAX_NESTED => {
                    self.ends.push(end);
                    self.header(at, None, block)
                }
                // Contents that are no archive, or a file that is none.
                _ if self.ends.is_empty() => Next::Done,
                _ => self.after(end),
            },
            (Next::Header { at, size }, Some(block)) => self.header(at, size, block),
            (Next::SparseMap { at, size }, Some(block)) if sparse_map_goes_on(block) => {
                Next::SparseMap { at: at + BLOCK_BYTES, size }
            }
            (Next::SparseMap { at, size }, Some(_)) => self.contents(at + BLOCK_BYTES, size),
            (Next::Pax { at, len, size }, _) => {
                let size = pax_size(bytes).or(size);
                padded(at + len).map_or(Next::Done, |at| Next::Header { at, size })
            }
            _ => Next::Done,
        }
    }

    fn header(&mut self, at: u64, size: Option<u64>, block: &[u8; BLOCK_BYTES as usize]) -> Next {
        let data = at + BLOCK_BYTES;
        match Block::decode(block) {
            // The end of an archive, or of one of several that were joined.
            Block::Zeros => Next::Header { at: data, size: None },
            Block::Malformed => self.leave(),
            Block::Header(Kind::Pax, len) if len <= MAX_PAX_BYTES => Next::Pax { at: data, len, size },
            Block::Header(Kind::Pax | Kind::About, len) => {
                let at = data.checked_add(len).and_then(padded);
                at.map_or_else(|| self.leave(), |at| Next::Header { at, size })
            }
            Block::Header(Kind::Sparse(true), len) => Next::SparseMap { at: data, size: size.unwrap_or(len) },
            Block::Header(Kind::Sparse(false), len) => self.contents(data, size.unwrap_or(len)),
            Block::Header(Kind::Nothing, _) => Next::Header { at: data, size: None },
            Block::Header(Kind::Contents, len) => self.contents(data, size.unwrap_or(len)),
        }
    }

    /// `size` bytes of contents begin at `at`.
    fn contents(&mut self, at: u64, size: u64) -> Next {
        let Some(next) = at.checked_add(size).and_then(padded) else { return self.leave() };
        if size <= self.small {
            return Next::Header { at: next, size: None };
        }
        // An archive that was cut short ends inside of contents.
        let end = self.end().min(at + size);
        if at >= end {
            return self.leave();
        }
        self.seam(at);
        if end - at < BLOCK_BYTES { self.after(end) } else { Next::Begin { at, end } }
    }

    /// Contents end here that are no archive.
    fn after(&mut self, end: u64) -> Next {
        self.seam(end);
        padded(end).map_or(Next::Done, |at| Next::Header { at, size: None })
    }

    /// The archive that is being looked into has no more headers.
    fn leave(&mut self) -> Next {
        match self.ends.pop() {
            Some(end) if !self.ends.is_empty() => self.after(end),
            _ => Next::Done,
        }
    }

    /// Ends the archives that have no room for what would be looked at next.
    fn clamp(&mut self, mut next: Next) -> Next {
        loop {
            let (at, len) = match next {
                Next::Header { at, .. } | Next::SparseMap { at, .. } => (at, BLOCK_BYTES),
                Next::Pax { at, len, .. } => (at, len),
                // It was held against its end already.
                Next::Begin { .. } | Next::Done => return next,
            };
            if at.checked_add(len).is_some_and(|end| end <= self.end()) {
                return next;
            }
            next = self.leave();
        }
    }

    /// Where the archive ends that is being looked into.
    fn end(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    fn seam(&mut self, at: u64) {
        // Contents that end with the file, or with the archive around them, end there twice.
        let outermost = self.ends.first().copied().unwrap_or(0);
        if self.last < at && at < outermost {
            self.last = at;
            self.found.push_back(at);
        }
    }
}
