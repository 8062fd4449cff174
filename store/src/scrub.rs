//! Looking for what rotted: the index as a whole, then every copy of every block, then whether each root still has all of
//! its blocks. What is bad leaves the index, is reported, and can be fetched again; nothing bad was ever handed out.
//!
//! It tells after every copy what it has read, so that its caller can make it wait; and it is resumable: it remembers how
//! far it was, in a file that may be lost, when what it found up to there is durable.

use std::{
    io::ErrorKind,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use shoal_content::{Cid, Codec, Walk, WalkLimits};

use crate::{
    Damage, OpenError, ReadError, StoreError, failpoint,
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
/// Rows whose lengths are added up at a time.
const COUNT_ROWS: usize = 4096;
/// How far it is, is written down after so many bytes.
const REMEMBER_EVERY: u64 = 256 << 20;

/// How to scrub.
#[derive(Clone, Debug, Default)]
pub struct Scrub {
    /// Begin where the last scrub that was stopped was.
    pub resume: bool,
    /// Blocks that need not be read.
    pub skip: Checked,
    /// Ends it soon after it is set.
    pub cancel: Arc<AtomicBool>,
}

/// Blocks that were read just now, [one by one](crate::Store::check_block). Known by eight bytes of their hash each: of two
/// that look alike, which do not occur among fewer than billions, one is left to the next scrub.
#[derive(Clone, Debug, Default)]
pub struct Checked(Shorts);

impl Checked {
    /// Adds a block.
    pub fn insert(&mut self, cid: &Cid) {
        self.0.insert(short(&cid.key()));
    }

    fn contains(&self, key: &Key) -> bool {
        !self.0.is_empty() && self.0.contains(&short(key))
    }
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
    /// Bytes of all copies that were to be read when it began, by the index; zero while single blocks are checked.
    pub bytes_total: u64,
    /// Copies that were bad: they have left the index, and [`take_damage`](crate::Store::take_damage) tells their files.
    pub bad: u64,
    /// Records of packs whose headers were bad and whose blocks were good: they were written anew.
    pub mended: u64,
    /// Blocks that the index had lost, and that were where they should be.
    pub recovered: u64,
    /// Complete roots that miss blocks now, with how many: fetch them again to repair them.
    pub damaged: Vec<(Cid, u64)>,
}

impl Scrubbed {
    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: &Scrubbed) {
        self.index_rebuilt |= other.index_rebuilt;
        self.copies += other.copies;
        self.bytes += other.bytes;
        self.bytes_total += other.bytes_total;
        self.bad += other.bad;
        self.mended += other.mended;
        self.recovered += other.recovered;
        self.damaged.extend_from_slice(&other.damaged);
    }
}

/// What a copy turned out to be.
enum Looked {
    Good,
    Bad(Box<Damage>),
    /// It cannot be read just now, which says nothing about it.
    Unreadable(PathBuf, Arc<std::io::Error>),
    /// It has moved or gone since it was looked up.
    Gone,
}

impl Inner {
    /// See [`Store::check_index`](crate::Store::check_index).
    pub(crate) fn check_index(&self) -> Result<bool, StoreError> {
        let _no_collection = lock(&self.collecting);
        if self.writable().is_err() {
            // Nothing can be made anew; what it says is read and hashed as ever.
            return Ok(false);
        }
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
        *index = new;
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
        done.bytes_total = self.bytes_after(after, &options.skip)?;
        let mut remembered = 0;
        loop {
            let batch = self.with_snapshot(|s| s.blocks_after(after.as_ref(), BATCH_ROWS))?;
            let Some((last, _)) = batch.last() else { break };
            // What is stopped in the middle of a batch begins with all of it again.
            let before = after.replace(*last);
            let rows = batch.into_iter().filter(|(key, _)| !options.skip.contains(key));
            let mut copies: Vec<(Key, Loc)> =
                rows.flat_map(|(key, locs)| locs.into_iter().map(move |loc| (key, loc))).collect();
            // In the order of the disk as far as that is known.
            copies.sort_unstable_by_key(|(_, loc)| match loc.place {
                Place::Pack(id) => (0, u64::from(id), [0; 6], loc.offset),
                Place::File(id) => (1, 0, id.0, loc.offset),
            });
            for (key, loc) in copies {
                let Some(cid) = Cid::from_key(&key) else { continue };
                if let Looked::Unreadable(path, source) = self.scrub_copy(&cid, loc, &mut done)? {
                    tracing::warn!(path = %path.display(), %source, "cannot be looked at");
                }
                progress(&done);
                if options.cancel.load(Ordering::Relaxed) {
                    self.remember(before.as_ref())?;
                    return Err(StoreError::Cancelled);
                }
            }
            if done.bytes - remembered >= REMEMBER_EVERY {
                remembered = done.bytes;
                self.remember(after.as_ref())?;
            }
        }
        self.remember(None)?;
        self.missing(&mut done)?;
        for (root, _) in std::mem::take(&mut done.damaged) {
            done.recovered += self.recover(&root)?;
        }
        self.commit_found()?;
        self.missing(&mut done)?;
        progress(&done);
        Ok(done)
    }

    /// Bytes of the copies from a row on.
    fn bytes_after(&self, mut after: Option<Key>, skip: &Checked) -> Result<u64, StoreError> {
        let mut bytes = 0;
        loop {
            let batch = self.with_snapshot(|s| s.blocks_after(after.as_ref(), COUNT_ROWS))?;
            let Some((last, _)) = batch.last() else { return Ok(bytes) };
            after = Some(*last);
            let rows = batch.iter().filter(|(key, _)| !skip.contains(key));
            bytes += rows.flat_map(|(_, locs)| locs).map(|loc| u64::from(loc.len)).sum::<u64>();
        }
    }

    /// See [`Store::check_block`](crate::Store::check_block).
    pub(crate) fn check_block(&self, cid: &Cid, done: &mut Scrubbed) -> Result<(), ReadError> {
        if cid.is_empty_leaf() {
            return Ok(());
        }
        let (mut good, mut worst) = (false, None);
        for loc in self.locate(cid)? {
            match self.scrub_copy(cid, loc, done)? {
                Looked::Good => good = true,
                Looked::Bad(at) => _ = worst.get_or_insert(ReadError::Damaged { cid: *cid, at }),
                Looked::Unreadable(path, source) => {
                    worst = Some(ReadError::Io { cid: *cid, path, source });
                }
                Looked::Gone => {}
            }
        }
        match worst {
            _ if good => Ok(()),
            Some(worst) => Err(worst),
            // Where it is now, if it moved.
            None => self.read(cid).map(drop),
        }
    }

    fn scrub_copy(&self, cid: &Cid, loc: Loc, done: &mut Scrubbed) -> Result<Looked, StoreError> {
        // It may have moved or gone since it was looked up.
        if !self.locate(cid)?.contains(&loc) {
            return Ok(Looked::Gone);
        }
        let taken = match self.take(cid, &loc) {
            Err(StoreError::Io { path, source, .. }) => return Ok(Looked::Unreadable(path, source)),
            taken => taken?,
        };
        done.copies += 1;
        done.bytes += u64::from(loc.len);
        failpoint::pass("scrub-copy");
        let block = match taken {
            Taken::Block(block) => block,
            Taken::Bad(None) => return Ok(Looked::Gone),
            Taken::Bad(Some(damage)) => {
                done.bad += 1;
                return Ok(Looked::Bad(damage));
            }
        };
        if let Place::Pack(id) = loc.place
            && self.writable().is_ok()
            && !self.header_is_good(id, &loc, cid)
        {
            // The index could not be made anew with it.
            let _under_way = read(&self.puts);
            let copy = self.packs.append(cid, block.as_ref())?;
            let mut overlay = write(&self.overlay);
            overlay.current.add(cid.key(), copy);
            overlay.remove(cid.key(), loc);
            done.mended += 1;
        }
        Ok(Looked::Good)
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
            let missing = match &record.selection {
                None => self.missing_of(&record.root, |_| true)?,
                // Of a part of a root, what is not asked for is missing rightly.
                Some(paths) => match self.leaves_of(&record.root, paths) {
                    Some(wanted) => self.missing_of(&record.root, |key| wanted.contains(&short(key)))?,
                    None => self.missing_of(&record.root, |_| false)?,
                },
            };
            if missing > 0 {
                done.damaged.push((record.root, missing));
            }
        }
        Ok(())
    }

    /// Nodes below a root that are not here, and leaves among those that are wanted.
    fn missing_of(&self, root: &Cid, wanted: impl Fn(&Key) -> bool) -> Result<u64, StoreError> {
        let (mut seen, mut leaves, mut failed) = (Shorts::default(), 0, None);
        let nodes = self.walk(root, |key| {
            let new = seen.insert(short(key));
            let leaf = Cid::from_key(key).filter(|cid| cid.codec() == Codec::Raw && !cid.is_empty_leaf());
            if let Some(cid) = leaf.filter(|_| new && wanted(key)) {
                match self.locate(&cid) {
                    Ok(locs) => leaves += u64::from(locs.is_empty()),
                    Err(error) => failed = Some(error),
                }
            }
            new
        })?;
        failed.map_or(Ok(nodes + leaves), Err)
    }

    /// The leaves below some paths of a root; none if a node of it is missing.
    fn leaves_of(&self, root: &Cid, paths: &[String]) -> Option<Shorts> {
        let mut walk = Walk::new(*root, WalkLimits::default());
        let mut node = Vec::new();
        while let Some(cid) = walk.next_needed() {
            self.read_into(&cid, &mut node).ok()?;
            walk.insert(&cid, &node).ok()?;
        }
        let manifest = walk.finish().ok()?;
        let paths = paths.iter().map(|path| path.parse().ok()).collect::<Option<Vec<_>>>()?;
        let leaves = manifest.select(&paths).ok()?.leaves;
        let known = leaves.into_iter().filter_map(|leaf| manifest.leaves().get(leaf as usize));
        Some(known.map(|leaf| short(&leaf.cid.key())).collect())
    }

    fn cursor(&self) -> PathBuf {
        self.home.dir().join("scrub")
    }

    fn remembered(&self) -> Option<Key> {
        std::fs::read(self.cursor()).ok()?.try_into().ok()
    }

    /// A store that is read-only finds what is bad as well, and forgets it when it is closed.
    fn commit_found(&self) -> Result<(), StoreError> {
        if self.writable().is_ok() { self.commit() } else { Ok(()) }
    }

    /// Makes durable what was found, then writes down how far that was. The latter is a hint that may be lost: it is not
    /// synced, and failing to write it costs some reading.
    fn remember(&self, after: Option<&Key>) -> Result<(), StoreError> {
        self.commit_found()?;
        let done = match after {
            Some(key) => std::fs::write(self.cursor(), key),
            None => std::fs::remove_file(self.cursor()),
        };
        match done {
            Err(error) if error.kind() != ErrorKind::NotFound => tracing::debug!(%error, "a scrub is not remembered"),
            _ => {}
        }
        Ok(())
    }
}
