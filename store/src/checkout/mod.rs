//! The destination of a fetch: verified chunks are written at their places, in a partial next to where the content will
//! be, which is also what the chunks are served from. Nothing is copied at the end; the partial is renamed.
//!
//! Names and layout come from strangers, so every write goes through directory handles (see `ground`) and everything
//! that exists is hashed before it counts. A partial survives whatever ends the process: the next [`Checkout::begin`]
//! of the same content in the same directory finds out by hashing what of it is good.
//!
//! Never here: verifying what [`Checkout::write`] is given (the caller did), clobbering what it did not make.

mod begin;
mod bits;
mod error;
mod finish;
mod ground;
mod run;
mod symlinks;
mod target;
mod verify;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
};

use shoal_content::{EntryKind, Manifest, RelPath, Selection};

use crate::{Hold, ReadError, Store, StoreError, import::stamp_of, quota::Room};
use bits::Bits;
use ground::Parent;
use target::Target;

pub use error::CheckoutError;
pub use finish::Finished;
pub use symlinks::{SkippedSymlink, SymlinkSkip};
pub(crate) use target::{landed, plan};

/// The modification time under which a file is staged while pieces of it are missing. It never matches a real one, so a
/// stamp that matches vouches for all of a file.
const UNFINISHED: i64 = i64::MIN;

/// Leaves that a thread looks up and copies at once in [`Checkout::fill_local`].
const FILL_BATCH: usize = 64;

/// How a destination is written.
#[derive(Clone, Debug, Default)]
pub struct CheckoutOptions {
    /// Write symlinks, where they stay inside the destination. Without it they are skipped and reported.
    pub symlinks: bool,
    /// Threads that hash what is there already; 0 for one per core that this process may use.
    pub threads: usize,
    /// When the fetch began, in seconds since the Unix epoch, for the root's record. The store reads no clock.
    pub created_unix: u64,
    /// Announce the root to the network.
    pub provide: bool,
    /// When the root is to be forgotten, in seconds since the Unix epoch.
    pub expires_unix: Option<u64>,
    /// Ends a long [`Checkout::begin`] or [`Checkout::fill_local`] when set.
    pub cancel: Arc<AtomicBool>,
}

/// Chunks and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Distinct chunks.
    pub leaves: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// A destination that is being written. All methods take `&self` and may be called from many threads at once; all of
/// them block on disk IO at most. Dropping it keeps what is in place for the next fetch.
pub struct Checkout {
    store: Store,
    /// On the bases of the targets.
    _hold: Hold,
    /// Where it goes if it has no destination but the store itself.
    room: Option<Room>,
    /// Only what cannot be read any more is written, into the store.
    repairs: bool,
    /// What is written is decided by and by; see [`Checkout::admit`].
    on_demand: bool,
    manifest: Arc<Manifest>,
    paths: Vec<RelPath>,
    selection: Selection,
    options: CheckoutOptions,
    /// The directory that everything lands in.
    dir: PathBuf,
    parent: cap_std::fs::Dir,
    name: String,
    targets: Vec<Target>,
    /// By entry: how many pieces a file still misses.
    unfinished: Vec<AtomicU32>,
    wanted: Bits,
    have: Bits,
    have_leaves: AtomicUsize,
    have_bytes: AtomicU64,
    wanted_bytes: u64,
    resumed: Amount,
    /// Writers hold it shared; to finish, it is held alone. Holds what was finished.
    finished: RwLock<Option<Finished>>,
}

impl fmt::Debug for Checkout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (root, have, wanted) = (self.manifest.root(), self.have_amount(), self.wanted_amount());
        let mut shown = f.debug_struct("Checkout");
        shown.field("root", &root).field("dir", &self.dir).field("have", &have).field("wanted", &wanted);
        shown.finish_non_exhaustive()
    }
}

impl Checkout {
    /// Prepares to write `paths` of a root (all of it, if there are none) into the directory `dir`, which is created if
    /// need be.
    ///
    /// The whole root lands as `dir/name`; each of `paths` lands as `dir/<its last part>`, whatever directories it is in
    /// inside the root. Until then it grows in `dir/.<name>.<short id>.shoal-part`.
    ///
    /// What is in place already counts: a partial of an earlier fetch is hashed and goes on; a destination that is there
    /// byte for byte is done (symlinks may be missing from it, nothing else, and there must be nothing else in it). The
    /// root's record is put, incomplete, unless a complete one of all of the root exists; it carries `paths` as its
    /// selection.
    ///
    /// # Errors
    /// [`CheckoutError`]: a destination with other content, one that another fetch is writing to, names that clash on
    /// this file system or are not usable, no space for what is missing.
    pub fn begin(
        store: &Store,
        manifest: Arc<Manifest>,
        paths: &[RelPath],
        dir: &Path,
        name: &str,
        options: CheckoutOptions,
    ) -> Result<Self, CheckoutError> {
        begin::begin(store, manifest, paths, dir, name, options)
    }

    /// Prepares to write `paths` of a root (all of it, if there are none) into the store itself, as cached content under
    /// `name`. Makes room for it, by evicting other cached content if need be; until it ends, this root is not evicted.
    /// Nothing counts as in place; [`fill_local`](Self::fill_local) finds what is.
    ///
    /// # Errors
    /// [`StoreError::OverQuota`](crate::StoreError::OverQuota) if it does not fit beside what is pinned;
    /// [`CheckoutError::NoSpace`] if it would take the last twentieth of the disk; [`CheckoutError::Busy`].
    pub fn begin_cached(
        store: &Store,
        manifest: Arc<Manifest>,
        paths: &[RelPath],
        name: &str,
        options: CheckoutOptions,
    ) -> Result<Self, CheckoutError> {
        begin::begin_cached(store, manifest, paths, name, options)
    }

    /// Prepares to keep in the store, as cached content under `name`, what somebody reads of a root. Nothing is reserved
    /// and no record is put before [`admit`](Self::admit); until it ends, this root is not evicted.
    ///
    /// # Errors
    /// [`CheckoutError::Busy`]; [`CheckoutError::Io`] if the store's directory cannot be opened.
    pub fn begin_on_demand(
        store: &Store,
        manifest: Arc<Manifest>,
        name: &str,
        options: CheckoutOptions,
    ) -> Result<Self, CheckoutError> {
        begin::begin_on_demand(store, manifest, name, options)
    }

    /// Of a checkout on demand: makes room for those of `leaves` (in any order, repetitions count once) that are not here,
    /// if `keep` says so and they fit. Gives the leaves that are here, as far as the index knows, and whether there is
    /// room for the others. What there is no room for is not to be written.
    ///
    /// # Errors
    /// [`CheckoutError::Store`].
    pub fn admit(&self, leaves: &[u32], keep: bool) -> Result<(Vec<u32>, bool), CheckoutError> {
        let mut leaves = leaves.to_vec();
        leaves.sort_unstable();
        leaves.dedup();
        let (here, missing) = self.here(&leaves)?;
        if !keep || !self.has_room(missing)? {
            return Ok((here, false));
        }
        // What is here stays from now on. What made room is not here any more.
        begin::record(self, false)?;
        let (here, more) = self.here(&leaves)?;
        Ok((here, self.has_room(more.saturating_sub(missing))?))
    }

    /// Makes room for so much, unless it does not fit.
    fn has_room(&self, bytes: u64) -> Result<bool, CheckoutError> {
        match begin::make_room(self, bytes) {
            Ok(()) => Ok(true),
            Err(CheckoutError::NoSpace { .. } | CheckoutError::Store(StoreError::OverQuota { .. })) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Which of these leaves are here, and the bytes of the others.
    fn here(&self, leaves: &[u32]) -> Result<(Vec<u32>, u64), CheckoutError> {
        let known: Vec<_> = leaves.iter().filter_map(|leaf| self.manifest.leaves().get(*leaf as usize)).collect();
        let cids: Vec<_> = known.iter().map(|leaf| leaf.cid).collect();
        let (mut here, mut missing) = (vec![], 0);
        for ((leaf, known), is_here) in leaves.iter().zip(known).zip(self.store.has_many(&cids)?) {
            if is_here {
                here.push(*leaf);
            } else {
                missing += u64::from(known.len);
            }
        }
        Ok((here, missing))
    }

    /// Prepares to write the chunks of a root that cannot be read any more into the store itself. What the user's files
    /// hold is left as it is; the root's record, too.
    ///
    /// # Errors
    /// As for [`begin`](Self::begin).
    pub fn begin_repair(
        store: &Store,
        manifest: Arc<Manifest>,
        paths: &[RelPath],
        options: CheckoutOptions,
    ) -> Result<Self, CheckoutError> {
        begin::begin_repair(store, manifest, paths, options)
    }

    /// What the root holds.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// What of it is being fetched.
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// The leaves that the selection needs, in place or not, ascending.
    pub fn wanted(&self) -> &[u32] {
        &self.selection.leaves
    }

    /// The wanted leaves that are in place, ascending.
    pub fn have(&self) -> Vec<u32> {
        self.wanted().iter().copied().filter(|&leaf| self.have.has(leaf)).collect()
    }

    /// The wanted leaves that are not in place, ascending.
    pub fn missing(&self) -> Vec<u32> {
        self.wanted().iter().copied().filter(|&leaf| !self.have.has(leaf)).collect()
    }

    /// Whether a wanted leaf is in place.
    pub fn has(&self, leaf: u32) -> bool {
        self.have.has(leaf)
    }

    /// Whether all wanted leaves are in place.
    pub fn is_complete(&self) -> bool {
        self.have_leaves.load(Ordering::Acquire) == self.wanted().len()
    }

    /// How much is in place.
    pub fn have_amount(&self) -> Amount {
        Amount { leaves: self.have_leaves.load(Ordering::Acquire), bytes: self.have_bytes.load(Ordering::Relaxed) }
    }

    /// How much is wanted in all.
    pub fn wanted_amount(&self) -> Amount {
        Amount { leaves: self.wanted().len(), bytes: self.wanted_bytes }
    }

    /// How much was in place at the beginning, from an earlier fetch.
    pub fn resumed(&self) -> Amount {
        self.resumed
    }

    /// Takes the missing leaves that the store has elsewhere from there, so that a next version costs only what changed.
    /// Says how much that was. What turns out to be damaged stays missing.
    ///
    /// # Errors
    /// As [`write`](Self::write), and [`CheckoutError::Cancelled`].
    pub fn fill_local(&self) -> Result<Amount, CheckoutError> {
        let missing = self.missing();
        let (leaves, bytes) = (AtomicUsize::new(0), AtomicU64::new(0));
        let threads = crate::import::threads(self.options.threads);
        verify::parallel(threads, missing.len(), FILL_BATCH, &self.options.cancel, |buf, range| {
            let batch = &missing[range];
            let known = self.manifest.leaves();
            let cids: Vec<_> = batch.iter().filter_map(|&leaf| known.get(leaf as usize)).map(|leaf| leaf.cid).collect();
            let here = self.store.has_many(&cids)?;
            for ((&leaf, cid), _) in batch.iter().zip(&cids).zip(here).filter(|(_, here)| *here) {
                match self.store.read_into(cid, buf) {
                    Ok(()) => self.write(leaf, buf)?,
                    Err(ReadError::Store(error)) => return Err(error.into()),
                    // Not there after all: a peer will have it.
                    Err(_) => continue,
                }
                leaves.fetch_add(1, Ordering::Relaxed);
                bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
            }
            Ok(())
        })?;
        Ok(Amount { leaves: leaves.into_inner(), bytes: bytes.into_inner() })
    }

    /// Writes a leaf, whose bytes the caller has verified, at all of its places. On return it is readable from the store,
    /// and durable after [`commit`](Self::commit). Writing a leaf twice, even at once, is fine.
    ///
    /// # Errors
    /// [`CheckoutError::NoSpace`] or [`CheckoutError::Io`], after which the leaf may be written again;
    /// [`CheckoutError::WrongLength`] for a malformed root.
    pub fn write(&self, leaf: u32, bytes: &[u8]) -> Result<(), CheckoutError> {
        let known = match self.manifest.leaves().get(leaf as usize) {
            Some(known) if self.wanted.has(leaf) => known,
            _ => return Err(CheckoutError::NotWanted { leaf }),
        };
        if self.have.has(leaf) {
            return Ok(());
        }
        if bytes.len() != known.len as usize {
            return Err(CheckoutError::WrongLength { leaf, expected: known.len, found: bytes.len() });
        }
        // Not while the destination is being renamed. A panic elsewhere does not make the bitmap wrong.
        let finished = self.finished.read().unwrap_or_else(PoisonError::into_inner);
        if finished.is_some() {
            return Ok(());
        }
        if self.targets.is_empty() {
            match &self.room {
                Some(room) => room.put(&known.cid, bytes)?,
                None => self.store.put(&known.cid, bytes)?,
            }
            self.mark(leaf);
            return Ok(());
        }
        for place in self.manifest.places(leaf) {
            let Some(target) = self.target_of(place.entry).filter(|target| !target.done) else { continue };
            let mut stamp = self.write_piece(target, place.entry, bytes, place.offset)?;
            if u64::from(known.len) < stamp.size {
                stamp.mtime_ns = UNFINISHED;
            }
            let rel = target.plan.rel(&self.manifest, place.entry);
            self.store.stage_file(target.base, rel, stamp, &[(known.cid, place.offset, known.len)], true)?;
        }
        if self.mark(leaf) {
            for place in self.manifest.places(leaf) {
                self.count_down(place.entry)?;
            }
        }
        Ok(())
    }

    /// Makes durable what was written before the call; see [`Store::commit`].
    ///
    /// # Errors
    /// [`CheckoutError::Store`].
    pub fn commit(&self) -> Result<(), CheckoutError> {
        Ok(self.store.commit()?)
    }

    /// Ends the fetch when all wanted leaves are in place: makes everything durable, writes what has no leaves (empty
    /// files, symlinks), renames the partial to its destination and completes the root's record. Calling it again
    /// returns the same.
    ///
    /// # Errors
    /// [`CheckoutError::Incomplete`]; [`CheckoutError::Exists`] if something else appeared at the destination, which is
    /// never overwritten: the partial stays. After any error it may be called again.
    pub fn finish(&self) -> Result<Finished, CheckoutError> {
        let mut finished = self.finished.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(finished) = &*finished {
            return Ok(finished.clone());
        }
        let done = finish::finish(self)?;
        *finished = Some(done.clone());
        Ok(done)
    }

    /// The directory that everything lands in.
    fn parent(&self) -> Parent<'_> {
        Parent { dir: &self.parent, path: &self.dir, disk: self.store.disk() }
    }

    /// The target that an entry belongs to, if it is selected.
    fn target_of(&self, entry: u32) -> Option<&Target> {
        let after = self.targets.partition_point(|target| target.plan.first <= entry);
        let target = self.targets.get(after.checked_sub(1)?)?;
        target.plan.holds(entry).then_some(target)
    }

    /// Notes that a leaf is in place everywhere; false if that was known.
    fn mark(&self, leaf: u32) -> bool {
        let new = self.have.add(leaf);
        if new {
            let len = self.manifest.leaves().get(leaf as usize).map_or(0, |leaf| leaf.len);
            self.have_bytes.fetch_add(u64::from(len), Ordering::Relaxed);
            self.have_leaves.fetch_add(1, Ordering::AcqRel);
        }
        new
    }

    /// Counts a piece of a file as written. After the last one of several, the file's stamp is staged.
    fn count_down(&self, entry: u32) -> Result<(), CheckoutError> {
        let Some(target) = self.target_of(entry).filter(|target| !target.done) else { return Ok(()) };
        let Some(left) = self.unfinished.get(entry as usize) else { return Ok(()) };
        if left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return Ok(());
        }
        match self.manifest.entries().get(entry as usize).map(|entry| &entry.kind) {
            Some(EntryKind::File { extents, .. }) if extents.len() > 1 => self.stage_stamp(target, entry),
            _ => Ok(()),
        }
    }

    /// Stages what a whole file looks like.
    fn stage_stamp(&self, target: &Target, entry: u32) -> Result<(), CheckoutError> {
        let rel = target.plan.rel(&self.manifest, entry);
        let stamp = target.ground.read(rel).and_then(|file| Ok(stamp_of(&file.metadata()?)));
        let stamp = stamp.map_err(|source| self.failed("examine", target.path(rel), source))?;
        Ok(self.store.stage_file(target.base, rel, stamp, &[], true)?)
    }

    /// Writes a stretch of a file and says what the file looks like then.
    fn write_piece(
        &self,
        target: &Target,
        entry: u32,
        bytes: &[u8],
        offset: u64,
    ) -> Result<crate::Stamp, CheckoutError> {
        let Some(EntryKind::File { size, executable, extents }) =
            self.manifest.entries().get(entry as usize).map(|entry| &entry.kind)
        else {
            unreachable!("only files have pieces")
        };
        let rel = target.plan.rel(&self.manifest, entry);
        let write = || -> io::Result<crate::Stamp> {
            let whole = extents.len() <= 1;
            let file = if whole {
                target.ground.write(rel, *executable)?
            } else {
                target.ground.write_often(entry, rel, *executable, *size)?
            };
            target.ground.write_at(&file, rel, bytes, offset)?;
            let meta = file.metadata()?;
            if !meta.is_file() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file"));
            }
            if meta.len() != *size {
                // An earlier fetch left it longer, or somebody else did.
                target.ground.set_len(&file, rel, *size)?;
                return Ok(stamp_of(&file.metadata()?));
            }
            Ok(stamp_of(&meta))
        };
        write().map_err(|source| self.failed("write", target.path(rel), source))
    }

    /// A sync failed: what it should have written may be gone for good, so nothing is promised any more.
    fn sync_failed(&self, path: &Path, source: io::Error) -> CheckoutError {
        self.store.sync_failed(path, source).into()
    }

    /// An error of the operating system; a full disk is an error of its own.
    fn failed(&self, action: &'static str, path: PathBuf, source: io::Error) -> CheckoutError {
        let full = matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        if full {
            let needed = self.wanted_bytes.saturating_sub(self.have_bytes.load(Ordering::Relaxed));
            // the place that people know, not the partial
            let path = self.targets.first().map_or_else(|| self.dir.clone(), |target| target.dest.clone());
            return CheckoutError::NoSpace { path, needed, free: begin::free_bytes(&self.parent).unwrap_or(0) };
        }
        CheckoutError::Io { action, path, source }
    }
}
