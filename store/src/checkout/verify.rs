//! Finds out what of a target is on disk already, by hashing it: after a crash, and for a destination that exists.
//!
//! Files are taken by all threads side by side, big ones piece by piece. Holes are not read. What matches is handed out
//! in stretches per file, for staging.

use std::{
    fs::File,
    io,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use shoal_content::{Cid, EntryKind, Manifest, Source};

use super::{CheckoutError, bits::Bits, ground::Ground, target::Plan};
use crate::{
    Stamp,
    import::{read_at, stamp_of},
};

/// Files from this size on are checked by all threads together.
const BIG_BYTES: u64 = 32 << 20;

/// Files, or pieces of a big one, that a thread takes at once.
const BATCH: usize = 16;

/// Longest stretch of references handed out at once.
const BATCH_REFS: usize = 1024;

/// What a check found.
pub(super) struct Found {
    /// Leaves that are in place somewhere.
    pub(super) good: Bits,
    /// Leaves that are missing somewhere.
    pub(super) bad: Bits,
    /// Bytes in place, of all places.
    pub(super) bytes: AtomicU64,
    /// Something that is no leaf is missing: inline bytes, or a file as a whole.
    pub(super) other_bad: AtomicBool,
}

impl Found {
    pub(super) fn new(manifest: &Manifest) -> Self {
        let leaves = manifest.leaves().len();
        Self {
            good: Bits::new(leaves),
            bad: Bits::new(leaves),
            bytes: AtomicU64::new(0),
            other_bad: AtomicBool::new(false),
        }
    }

    /// Marks everything of a target as missing.
    pub(super) fn nothing_of(&self, manifest: &Manifest, plan: &Plan) {
        for entry in plan.first..plan.end {
            self.missing_file(manifest, entry);
        }
    }

    fn missing_file(&self, manifest: &Manifest, entry: u32) {
        self.other_bad.store(true, Ordering::Relaxed);
        for piece in manifest.pieces(entry) {
            if let Source::Leaf(leaf) = piece.source {
                self.bad.add(leaf);
            }
        }
    }

    /// Whether all of a target's leaves are in place, if only that target was checked.
    pub(super) fn complete(&self, manifest: &Manifest, plan: &Plan) -> bool {
        let here = |entry| {
            manifest.pieces(entry).all(|piece| match piece.source {
                Source::Leaf(leaf) => self.good.has(leaf) && !self.bad.has(leaf),
                Source::Inline(_) => true,
            })
        };
        !self.other_bad.load(Ordering::Relaxed) && (plan.first..plan.end).all(here)
    }
}

/// What is told about each stretch of references that matched.
pub(super) struct Match<'a> {
    pub(super) entry: u32,
    /// The file's path in the target.
    pub(super) rel: &'a str,
    /// What the file looks like.
    pub(super) stamp: Stamp,
    pub(super) refs: &'a [(Cid, u64, u32)],
    /// With this stretch, all of the file is known to be good.
    pub(super) whole: bool,
}

/// Takes a [`Match`].
pub(super) type OnMatch<'a> = dyn Fn(Match<'_>) -> Result<(), CheckoutError> + Sync + 'a;

/// One check of one target.
pub(super) struct Check<'a> {
    pub(super) manifest: &'a Manifest,
    pub(super) plan: &'a Plan,
    pub(super) ground: &'a Ground,
    pub(super) threads: usize,
    pub(super) cancel: &'a AtomicBool,
    /// A file that is longer than it should be is cut (a partial), rather than taken for another one (a destination).
    pub(super) trim: bool,
    pub(super) found: &'a Found,
    /// Whether the index vouches for all of a file that looks like this, so that it need not be read.
    pub(super) vouched: &'a (dyn Fn(&str, Stamp) -> Result<bool, CheckoutError> + Sync),
    pub(super) on_match: &'a OnMatch<'a>,
}

impl Check<'_> {
    pub(super) fn run(&self) -> Result<(), CheckoutError> {
        let (mut small, mut big) = (Vec::new(), Vec::new());
        for entry in self.plan.first..self.plan.end {
            match self.size(entry) {
                Some(size) if size >= BIG_BYTES => big.push(entry),
                Some(_) => small.push(entry),
                None => {}
            }
        }
        parallel(self.threads, small.len(), BATCH, self.cancel, |buf, range| {
            small[range].iter().try_for_each(|&entry| self.file(entry, buf))
        })?;
        big.into_iter().try_for_each(|entry| self.big_file(entry))
    }

    /// Bytes of an entry that is a file.
    fn size(&self, entry: u32) -> Option<u64> {
        match &self.manifest.entries().get(entry as usize)?.kind {
            EntryKind::File { size, .. } => Some(*size),
            _ => None,
        }
    }

    /// Opens a file; `None` where it cannot be read, which is then as good as missing: writing it will say why.
    fn open(&self, entry: u32) -> Option<(std::sync::Arc<File>, Stamp)> {
        let rel = self.plan.rel(self.manifest, entry);
        let expected = self.size(entry).unwrap_or(0);
        let opened = self.ground.read(rel).and_then(|file| {
            let mut meta = file.metadata()?;
            if self.trim && meta.is_file() && meta.len() > expected {
                self.ground.set_len(&*self.ground.write(rel, false)?, rel, expected)?;
                meta = file.metadata()?;
            }
            let usable = meta.is_file() && (self.trim || meta.len() == expected);
            if usable { Ok((file, stamp_of(&meta))) } else { Err(io::ErrorKind::InvalidData.into()) }
        });
        if opened.is_err() {
            self.found.missing_file(self.manifest, entry);
        }
        opened.ok()
    }

    fn file(&self, entry: u32, buf: &mut Vec<u8>) -> Result<(), CheckoutError> {
        let Some((file, stamp)) = self.open(entry) else { return Ok(()) };
        if self.take_vouched(entry, stamp)? {
            return Ok(());
        }
        let mut refs = Vec::new();
        for piece in self.manifest.pieces(entry) {
            self.piece(&file, piece.offset, piece.len, piece.source, buf, &mut refs);
        }
        let good: u64 = refs.iter().map(|(_, _, len)| u64::from(*len)).sum();
        self.tell(entry, stamp, &refs, good == stamp.size)
    }

    fn big_file(&self, entry: u32) -> Result<(), CheckoutError> {
        let Some((file, stamp)) = self.open(entry) else { return Ok(()) };
        if self.take_vouched(entry, stamp)? {
            return Ok(());
        }
        let data = data_ranges(&file, stamp.size);
        let pieces: Vec<_> = self.manifest.pieces(entry).collect();
        let good = AtomicU64::new(0);
        parallel(self.threads, pieces.len(), BATCH, self.cancel, |buf, range| {
            let mut refs = Vec::with_capacity(BATCH);
            for piece in &pieces[range] {
                if touches(&data, piece.offset, piece.offset + u64::from(piece.len)) {
                    self.piece(&file, piece.offset, piece.len, piece.source, buf, &mut refs);
                } else if let Source::Leaf(leaf) = piece.source {
                    self.found.bad.add(leaf);
                }
            }
            good.fetch_add(refs.iter().map(|(_, _, len)| u64::from(*len)).sum(), Ordering::Relaxed);
            self.tell(entry, stamp, &refs, false)
        })?;
        self.tell(entry, stamp, &[], good.into_inner() == stamp.size)
    }

    /// Takes a file as good if the index vouches for it; false if it has to be read.
    fn take_vouched(&self, entry: u32, stamp: Stamp) -> Result<bool, CheckoutError> {
        if stamp.size != self.size(entry).unwrap_or(0) || !(self.vouched)(self.plan.rel(self.manifest, entry), stamp)? {
            return Ok(false);
        }
        for piece in self.manifest.pieces(entry) {
            if let Source::Leaf(leaf) = piece.source {
                self.found.good.add(leaf);
                self.found.bytes.fetch_add(u64::from(piece.len), Ordering::Relaxed);
            }
        }
        Ok(true)
    }

    fn piece(
        &self,
        file: &File,
        offset: u64,
        len: u32,
        source: Source<'_>,
        buf: &mut Vec<u8>,
        refs: &mut Vec<(Cid, u64, u32)>,
    ) {
        buf.resize(len as usize, 0);
        let read = read_whole(file, buf, offset);
        match source {
            Source::Inline(bytes) if read && bytes == buf => {}
            Source::Inline(_) => self.found.other_bad.store(true, Ordering::Relaxed),
            Source::Leaf(leaf) => match self.manifest.leaves().get(leaf as usize) {
                Some(known) if read && known.cid.verify(buf) => {
                    self.found.good.add(leaf);
                    self.found.bytes.fetch_add(u64::from(len), Ordering::Relaxed);
                    refs.push((known.cid, offset, len));
                }
                _ => {
                    self.found.bad.add(leaf);
                }
            },
        }
    }

    fn tell(&self, entry: u32, stamp: Stamp, refs: &[(Cid, u64, u32)], whole: bool) -> Result<(), CheckoutError> {
        let rel = self.plan.rel(self.manifest, entry);
        let tell = |refs| (self.on_match)(Match { entry, rel, stamp, refs, whole });
        if refs.is_empty() && whole { tell(refs) } else { refs.chunks(BATCH_REFS).try_for_each(tell) }
    }
}

/// Runs `work` over `0..len` in batches on `threads` threads, each with a buffer of its own. The first error ends all.
pub(super) fn parallel(
    threads: usize,
    len: usize,
    batch: usize,
    cancel: &AtomicBool,
    work: impl Fn(&mut Vec<u8>, std::ops::Range<usize>) -> Result<(), CheckoutError> + Sync,
) -> Result<(), CheckoutError> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let run = || {
        let mut buf = Vec::new();
        loop {
            let from = next.fetch_add(batch, Ordering::Relaxed);
            if from >= len || failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            if cancel.load(Ordering::Relaxed) {
                return Err(CheckoutError::Cancelled);
            }
            work(&mut buf, from..len.min(from + batch)).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
        }
    };
    let threads = threads.min(len.div_ceil(batch));
    if threads <= 1 {
        return run();
    }
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        let mut outcome = Ok(());
        for worker in workers {
            let result = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            outcome = outcome.and(result);
        }
        outcome
    })
}

/// Fills `buf`; false where the file is too short or cannot be read.
fn read_whole(file: &File, buf: &mut [u8], offset: u64) -> bool {
    let mut filled = 0;
    while filled < buf.len() {
        match read_at(file, &mut buf[filled..], offset + filled as u64) {
            Ok(0) => return false,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}

/// The parts of a file that are no holes, in order; all of it where the file system cannot tell.
fn data_ranges(file: &File, size: u64) -> Vec<(u64, u64)> {
    #[cfg(target_os = "linux")]
    {
        use rustix::{fs::SeekFrom, io::Errno};
        let mut ranges = Vec::new();
        let mut at = 0;
        while at < size {
            let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => return ranges,
                Err(_) => return vec![(0, size)],
            };
            match rustix::fs::seek(file, SeekFrom::Hole(start)) {
                Ok(end) if end > start => {
                    ranges.push((start, end));
                    at = end;
                }
                _ => return vec![(0, size)],
            }
        }
        ranges
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _: &File = file;
        vec![(0, size)]
    }
}

/// Whether any part of `start..end` is data.
fn touches(data: &[(u64, u64)], start: u64, end: u64) -> bool {
    let after = data.partition_point(|&(_, data_end)| data_end <= start);
    data.get(after).is_some_and(|&(data_start, _)| data_start < end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_told_from_data() {
        let data = [(10, 20), (30, 40)];
        for (start, end, expected) in
            [(0, 10, false), (0, 11, true), (20, 30, false), (19, 30, true), (39, 50, true), (40, 50, false)]
        {
            assert_eq!(touches(&data, start, end), expected, "{start}..{end}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn data_of_a_sparse_file_is_found() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        crate::disk::write_all_at(&file, &[7; 4096], 4 << 20).unwrap();
        let data = data_ranges(&file, 8 << 20);
        assert!(touches(&data, 4 << 20, (4 << 20) + 1));
        assert!(data_ranges(&tempfile::tempfile().unwrap(), 0).is_empty());
    }
}
