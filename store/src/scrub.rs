//! Looking for what rotted: the index as a whole, then every copy of every block, then whether each root still has all of
//! its blocks. What is bad leaves the index, is reported, and can be fetched again; nothing bad was ever handed out.
//!
//! It tells after every copy what it has read, so that its caller can make it wait; and it is resumable: it remembers how
//! far it was, in a file that may be lost.

use std::{
    io::ErrorKind,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use shoal_content::{Cid, Codec};

use crate::{
    OpenError, StoreError, failpoint,
    hold::{Shorts, short},
    index::{self, Index},
    inner::Inner,
    locks::{lock, read, write},
    overlay::Key,
    pack::{self, RECORD_HEADER},
    read::Taken,
    rebuild::rebuild,
    spare::Spare,
    value::{Loc, Place},
};

/// Rows that are looked at in the order of the disk.
const BATCH_ROWS: usize = 256;
/// How far it is, is written down after so many bytes.
const REMEMBER_EVERY: u64 = 256 << 20;

/// How to scrub.
#[derive(Clone, Debug, Default)]
pub struct Scrub {
    /// Begin where the last scrub that was stopped was.
    pub resume: bool,
    /// Ends it soon after it is set.
    pub cancel: Arc<AtomicBool>,
}

/// What a scrub found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// The index was damaged and has been made anew.
    pub index_rebuilt: bool,
    /// Copies of blocks that were read.
    pub copies: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Copies that were bad: they have left the index, and [`take_damage`](crate::Store::take_damage) tells their files.
    pub bad: u64,
    /// Records of packs whose headers were bad and whose blocks were good: they were written anew.
    pub mended: u64,
    /// Complete roots that miss blocks now, with how many: fetch them again to repair them.
    pub damaged: Vec<(Cid, u64)>,
}

impl Inner {
    /// See [`Store::check_index`](crate::Store::check_index).
    pub(crate) fn check_index(&self) -> Result<bool, StoreError> {
        let _no_collection = lock(&self.collecting);
        self.writable()?;
        let mut index = lock(&self.index);
        if !index.frozen && index::is_sound(index.path()) && index.is_authentic() {
            return Ok(false);
        }
        let error = |error: OpenError| StoreError::Index { path: self.home.index(), reason: error.to_string().into() };
        // What is staged stays staged; file ids stay what they were.
        let spare = self.spare()?;
        index.frozen = true;
        failpoint::pass("scrub-rebuilds");
        rebuild(&self.home, &spare, &self.disk, self.cache_bytes, Some(self.ids)).map_err(error)?;
        let (new, _) =
            Index::open(self.home.index(), Arc::clone(&self.disk), self.cache_bytes, false, None, self.home.seal())
                .map_err(error)?;
        *write(&self.snapshot) = Arc::new(new.snapshot()?);
        // What reads found bad, they found where a damaged index had sent them.
        write(&self.overlay).forget_removals();
        let old = std::mem::replace(&mut *index, new);
        drop(index);
        // Closing a damaged file may panic.
        if catch_unwind(AssertUnwindSafe(|| drop(old))).is_err() {
            tracing::debug!("the damaged index could not be closed");
        }
        Ok(true)
    }

    /// The second copy of roots and bases; if that is damaged, what memory and the index say.
    fn spare(&self) -> Result<Spare, StoreError> {
        let path = self.home.spare();
        let there = Spare::read(&path, self.home.seal()).map_err(|e| crate::packs::io_error("read", &path, e))?;
        match there {
            Some(spare) => Ok(spare),
            None => {
                let bases = read(&self.bases);
                Ok(Spare {
                    next_base: bases.next,
                    bases: bases.paths.clone(),
                    roots: self.roots()?.into_iter().map(|record| (record.root.key(), record)).collect(),
                })
            }
        }
    }

    /// See [`Store::scrub`](crate::Store::scrub).
    pub(crate) fn scrub(&self, options: &Scrub, progress: &mut dyn FnMut(&Scrubbed)) -> Result<Scrubbed, StoreError> {
        let mut done = Scrubbed { index_rebuilt: self.check_index()?, ..Scrubbed::default() };
        let mut after = if options.resume && !done.index_rebuilt { self.remembered() } else { None };
        let mut remembered = 0;
        loop {
            let batch = self.with_snapshot(|s| s.blocks_after(after.as_ref(), BATCH_ROWS))?;
            let Some((last, _)) = batch.last() else { break };
            // What is stopped in the middle of a batch begins with all of it again.
            let before = after.replace(*last);
            let mut copies: Vec<(Key, Loc)> =
                batch.into_iter().flat_map(|(key, locs)| locs.into_iter().map(move |loc| (key, loc))).collect();
            // In the order of the disk as far as that is known.
            copies.sort_unstable_by_key(|(_, loc)| match loc.place {
                Place::Pack(id) => (0, u64::from(id), [0; 6], loc.offset),
                Place::File(id) => (1, 0, id.0, loc.offset),
            });
            for (key, loc) in copies {
                self.scrub_copy(&key, loc, &mut done)?;
                progress(&done);
                if options.cancel.load(Ordering::Relaxed) {
                    self.remember(before.as_ref());
                    return Err(StoreError::Cancelled);
                }
            }
            if done.bytes - remembered >= REMEMBER_EVERY {
                remembered = done.bytes;
                self.remember(after.as_ref());
            }
        }
        self.remember(None);
        self.commit()?;
        self.missing(&mut done)?;
        progress(&done);
        Ok(done)
    }

    fn scrub_copy(&self, key: &Key, loc: Loc, done: &mut Scrubbed) -> Result<(), StoreError> {
        let Some(cid) = Cid::from_key(key) else { return Ok(()) };
        // It may have moved or gone since the batch was looked up.
        if !self.locate(&cid)?.contains(&loc) {
            return Ok(());
        }
        done.copies += 1;
        done.bytes += u64::from(loc.len);
        match self.take(&cid, &loc) {
            Ok(Taken::Bad) if self.with_snapshot(|s| s.locs(key))?.contains(&loc) => done.bad += 1,
            Ok(Taken::Bad) => {}
            Ok(Taken::Block(bytes)) => {
                failpoint::pass("scrub-copy");
                let Place::Pack(id) = loc.place else { return Ok(()) };
                if self.header_is_good(id, &loc, &cid) {
                    return Ok(());
                }
                // The index could not be made anew with it.
                let _under_way = read(&self.puts);
                let copy = self.packs.append(&cid, bytes.as_ref())?;
                let mut overlay = write(&self.overlay);
                overlay.current.add(*key, copy);
                overlay.remove(*key, loc);
                done.mended += 1;
            }
            // It cannot be read just now, which says nothing about it.
            Err(StoreError::Io { path, source, .. }) => {
                tracing::warn!(path = %path.display(), %source, "cannot be looked at");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn header_is_good(&self, pack: u32, loc: &Loc, cid: &Cid) -> bool {
        let mut header = [0; RECORD_HEADER];
        let read = std::fs::File::open(self.packs.path(pack)).and_then(|file| {
            crate::disk::read_exact_at(&file, &mut header, loc.offset.saturating_sub(RECORD_HEADER as u64))
        });
        read.is_ok() && pack::get_record_header(&header) == Some((*cid, loc.len))
    }

    /// Finds complete roots that miss blocks.
    fn missing(&self, done: &mut Scrubbed) -> Result<(), StoreError> {
        for record in self.roots()?.into_iter().filter(|record| record.complete) {
            let (mut seen, mut leaves) = (Shorts::default(), 0);
            let mut failed = None;
            let nodes = self.walk(&record.root, |key| {
                let new = seen.insert(short(key));
                let leaf = Cid::from_key(key).filter(|cid| cid.codec() == Codec::Raw && !cid.is_empty_leaf());
                if let Some(cid) = leaf.filter(|_| new) {
                    match self.locate(&cid) {
                        Ok(locs) => leaves += u64::from(locs.is_empty()),
                        Err(error) => failed = Some(error),
                    }
                }
                new
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
            // Of a part of a root, what is not asked for is missing rightly.
            let missing = if record.selection.is_some() { nodes } else { nodes + leaves };
            if missing > 0 {
                done.damaged.push((record.root, missing));
            }
        }
        Ok(())
    }

    fn cursor(&self) -> PathBuf {
        self.home.dir().join("scrub")
    }

    fn remembered(&self) -> Option<Key> {
        std::fs::read(self.cursor()).ok()?.try_into().ok()
    }

    /// A hint that may be lost: nothing is synced, and failing to write it costs some reading.
    fn remember(&self, after: Option<&Key>) {
        let done = match after {
            Some(key) => std::fs::write(self.cursor(), key),
            None => std::fs::remove_file(self.cursor()),
        };
        match done {
            Err(error) if error.kind() != ErrorKind::NotFound => tracing::debug!(%error, "a scrub is not remembered"),
            _ => {}
        }
    }
}
