//! [`Store`]: the public handle, a thin face over the packs, the index, the overlay and the commit.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use shoal_content::{Cid, Manifest, Walk, WalkLimits};

use crate::{
    BaseId, Collect, Collected, Damage, Hold, Lost, ManifestError, OpenError, Options, ReadError, RootRecord, Scrub,
    Scrubbed, Space, Stamp, Stats, StoreError,
    disk::{Disk, RealDisk},
    inner::Inner,
    locks::lock,
    quota::Room,
};

/// An open store. Cloning is cheap and gives another handle to the same store; it closes when the last one is dropped.
///
/// All methods block on disk IO at most and may be called from many threads at once. What was staged and not committed
/// when the last handle is dropped was never promised: it may be gone.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store in `dir`, creating it if there is none.
    pub fn open(dir: &Path, options: Options) -> Result<Store, OpenError> {
        Self::open_on(dir, &options, Arc::new(RealDisk))
    }

    pub(crate) fn open_on(dir: &Path, options: &Options, disk: Arc<dyn Disk>) -> Result<Store, OpenError> {
        Ok(Store { inner: Arc::new(Inner::open(dir, options, disk)?) })
    }

    /// What changes of files go through.
    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.inner.disk
    }

    /// A sync of something else than the store's own files failed. From here on nothing is promised, unless the file
    /// could not even be opened.
    pub(crate) fn sync_failed(&self, path: &Path, source: std::io::Error) -> StoreError {
        self.inner.sync_failed(path.to_owned(), source)
    }

    /// The directory the store lives in.
    pub fn dir(&self) -> &Path {
        self.inner.home.dir()
    }

    /// Whether the block is here, as far as the index knows; a later read may still find its location damaged.
    pub fn has(&self, cid: &Cid) -> Result<bool, StoreError> {
        Ok(cid.is_empty_leaf() || !self.inner.locate(cid)?.is_empty())
    }

    /// [`has`](Self::has) for many blocks at one moment, in the given order.
    pub fn has_many(&self, cids: &[Cid]) -> Result<Vec<bool>, StoreError> {
        self.inner.has_many(cids)
    }

    /// The block's bytes, hashed before they are returned.
    ///
    /// A location that is gone, short or holds other bytes leaves the index and is reported by
    /// [`take_damage`](Self::take_damage); other locations are tried.
    pub fn read(&self, cid: &Cid) -> Result<Bytes, ReadError> {
        self.inner.read(cid)
    }

    /// [`read`](Self::read) for many leaves, in the given order: those that lie one behind the other in one file come
    /// together, from one read. A leaf that is not as long as it says is missing.
    ///
    /// A block that is missing, damaged or cannot be read now is a run without bytes; the others come all the same.
    pub fn read_runs(&self, leaves: &[shoal_content::Leaf]) -> Vec<crate::Run> {
        self.inner.read_runs(leaves)
    }

    /// [`read`](Self::read) into a buffer that is reused: afterwards `buf` holds exactly the block. On an error its
    /// contents are unspecified.
    pub fn read_into(&self, cid: &Cid, buf: &mut Vec<u8>) -> Result<(), ReadError> {
        self.inner.read_into(cid, buf)
    }

    /// Stores a block in a pack: readable at once, durable after [`commit`](Self::commit). The caller has verified it.
    pub fn put(&self, cid: &Cid, bytes: &[u8]) -> Result<(), StoreError> {
        self.inner.put(cid, bytes)
    }

    /// Names an absolute path (a file or a directory, any bytes) for references to hang off. The same path gives the
    /// same id. Durable with the next commit.
    pub fn add_base(&self, path: &Path) -> Result<BaseId, StoreError> {
        self.inner.add_base(path, None)
    }

    /// Says that everything below a base is now at another absolute path. Durable with the next commit.
    pub fn move_base(&self, base: BaseId, path: &Path) -> Result<(), StoreError> {
        self.inner.move_base(base, path)
    }

    /// Forgets a base: references below it are not read any more. Durable with the next commit.
    pub fn remove_base(&self, base: BaseId) -> Result<(), StoreError> {
        self.inner.remove_base(base)
    }

    /// The path of a base.
    pub fn base_path(&self, base: BaseId) -> Option<PathBuf> {
        self.inner.base_path(base).map(|path| path.to_path_buf())
    }

    /// Stages references: each `(cid, offset, len)` says that these `len` bytes at `offset` of the file are that
    /// block. `rel` is the file's path below the base, parts joined by `/`; empty if the base is the file itself.
    /// Staging a file again adds references and replaces its stamp. Readable at once, durable after
    /// [`commit`](Self::commit).
    ///
    /// `dirty`: the bytes were written by us, so the commit must sync the file before it may promise anything.
    ///
    /// What is staged is bounded in memory: beyond [`MAX_STAGED_BYTES`](crate::MAX_STAGED_BYTES) this call commits by
    /// itself, and blocks while it does.
    pub fn stage_file(
        &self,
        base: BaseId,
        rel: &str,
        stamp: Stamp,
        refs: &[(Cid, u64, u32)],
        dirty: bool,
    ) -> Result<(), StoreError> {
        self.inner.stage_file(base, rel, stamp, refs, dirty, None)
    }

    /// What a file looked like when it was last staged; `None` if no reference points into it.
    pub fn file_stamp(&self, base: BaseId, rel: &str) -> Result<Option<Stamp>, StoreError> {
        Ok(self.inner.file_id(base, rel)?.1.map(|file| file.stamp))
    }

    /// Makes durable everything staged before the call. What other threads stage meanwhile belongs to the next commit;
    /// readers are never blocked. Returns at once if nothing is staged.
    ///
    /// After a failed sync or index commit the store is read-only: every later call that would promise something
    /// returns [`StoreError::ReadOnly`].
    pub fn commit(&self) -> Result<(), StoreError> {
        self.inner.commit()
    }

    /// Records a root, replacing an earlier record of the same CID. Durable on return, with everything staged before.
    pub fn put_root(&self, record: RootRecord) -> Result<(), StoreError> {
        self.inner.stage_root(record.root, |_| Some(Some(record)))?;
        self.inner.commit()
    }

    /// Records what `record` makes of a root's earlier record, in one step with reading that; `None` leaves it. Durable on
    /// return, with everything staged before.
    pub(crate) fn put_root_after(
        &self,
        root: Cid,
        record: impl FnOnce(Option<RootRecord>) -> Option<RootRecord>,
    ) -> Result<(), StoreError> {
        self.inner.stage_root(root, |earlier| record(earlier).map(Some))?;
        self.inner.commit()
    }

    /// The record of a root.
    pub fn root(&self, root: &Cid) -> Result<Option<RootRecord>, StoreError> {
        self.inner.root(root)
    }

    /// All roots, in the order of their keys.
    pub fn roots(&self) -> Result<Vec<RootRecord>, StoreError> {
        self.inner.roots()
    }

    /// Forgets a root; false if there was none. Its blocks stay until [`collect`](Self::collect). Durable on return.
    pub fn remove_root(&self, root: &Cid) -> Result<bool, StoreError> {
        let there = self.inner.stage_root(*root, |found| found.map(|_| None))?;
        self.inner.commit().map(|()| there)
    }

    /// Pins or unpins a root; false if there is none. Durable on return.
    pub fn set_pinned(&self, root: &Cid, pinned: bool) -> Result<bool, StoreError> {
        self.update_root(root, |record| record.pinned = pinned)
    }

    /// Reads, changes and writes a root's record in one step; false if there is none. Durable on return.
    pub fn update_root(&self, root: &Cid, change: impl FnOnce(&mut RootRecord)) -> Result<bool, StoreError> {
        let there = self.inner.stage_root(*root, |found| {
            found.map(|mut record| {
                change(&mut record);
                record.root = *root;
                Some(record)
            })
        })?;
        self.inner.commit().map(|()| there)
    }

    /// Walks the inner nodes below `root` and lays out its files.
    pub fn manifest(&self, root: &Cid) -> Result<Manifest, ManifestError> {
        let mut walk = Walk::new(*root, WalkLimits::default());
        let mut node = Vec::new();
        let malformed = |source| ManifestError::Malformed { root: *root, source };
        while let Some(cid) = walk.next_needed() {
            match self.read_into(&cid, &mut node) {
                Ok(()) => walk.insert(&cid, &node).map_err(malformed)?,
                // What was damaged has just left the index: it is as good as never here.
                Err(ReadError::Missing(cid) | ReadError::Damaged { cid, .. }) => {
                    return Err(ManifestError::MissingNode(cid));
                }
                Err(error) => return Err(ManifestError::Read(error)),
            }
        }
        walk.finish().map_err(malformed)
    }

    /// What reads found bad since the last call, one entry per file, oldest first. Bounded: beyond 1,024 files the
    /// oldest entry is dropped.
    pub fn take_damage(&self) -> Vec<Damage> {
        lock(&self.inner.damage).take()
    }

    /// Which blocks lost a place since the last call, because it was found bad. For one caller, who serves them.
    pub fn take_lost(&self) -> Lost {
        std::mem::take(&mut lock(&self.inner.damage).lost)
    }

    /// Whether [`take_lost`](Self::take_lost) would give any. Costs nothing.
    pub fn has_lost(&self) -> bool {
        !lock(&self.inner.damage).lost.is_empty()
    }

    /// [`has_many`](Self::has_many), and the files that are to hold the blocks are there and long enough; where one is not,
    /// the reference leaves the index as it would at a read. Reads nothing.
    pub fn examine(&self, cids: &[Cid]) -> Result<Vec<bool>, StoreError> {
        self.inner.examine(cids)
    }

    /// Keeps the garbage collector away from what an operation relies on before its root has a record.
    pub fn hold(&self) -> Hold {
        Hold::new(&self.inner)
    }

    /// Notes that somebody wanted a root: cached content that is wanted stays longer.
    pub fn touch(&self, root: &Cid) {
        self.inner.quota.touch(root);
    }

    /// Collects garbage: forgets what has expired, evicts cached content if the quota wants its space, takes what no
    /// root reaches out of the index and gives its space back. Others go on meanwhile, and are never kept waiting for
    /// more than one small commit. One collection at a time; a second one waits for the first.
    ///
    /// Blocks that are not below a root, and were not put under a [`hold`](Self::hold), are garbage.
    pub fn collect(&self, options: &Collect) -> Result<Collected, StoreError> {
        self.inner.collect(options)
    }

    /// Checks every page of the index; one that is damaged is made anew, from the packs, the second copy of the roots and
    /// their trees. True if it was; nothing of a read-only store can be. Commits wait meanwhile, reads do not.
    pub fn check_index(&self) -> Result<bool, StoreError> {
        self.inner.check_index()
    }

    /// Looks for what rotted: the index, every copy of every block, the completeness of every root. `progress` is called
    /// after every copy, from this thread, and may wait as long as it likes.
    pub fn scrub(&self, options: &Scrub, progress: &mut dyn FnMut(&Scrubbed)) -> Result<Scrubbed, StoreError> {
        self.inner.scrub(options, progress)
    }

    /// Reads every copy of one block, as a scrub does, and adds what it found to `done`. Bad copies leave the index; durable
    /// with the next commit.
    ///
    /// # Errors
    /// As [`read`](Self::read): no copy of it is good.
    pub fn check_block(&self, cid: &Cid, done: &mut Scrubbed) -> Result<(), ReadError> {
        self.inner.check_block(cid, done)
    }

    /// Looks for blocks of a root that the index does not know: where its record and its tree say that they are, and in the
    /// packs. Gives how many are here again; durable with the next commit. Reads all packs if some are still missing.
    pub fn recover(&self, root: &Cid) -> Result<u64, StoreError> {
        self.inner.recover(root)
    }

    /// Why the index was found damaged, and made anew, when the store was opened.
    pub fn rebuilt(&self) -> Option<&str> {
        self.inner.rebuilt.as_deref()
    }

    /// Where the space goes. Walks all roots and the index: about a second for a million blocks.
    pub fn space(&self) -> Result<Space, StoreError> {
        self.inner.space()
    }

    /// Bytes of packs and index, and how many of the quota cached content may fill. Costs nothing.
    pub fn fill(&self) -> (u64, u64) {
        (self.inner.used_bytes(), self.inner.quota.for_cached())
    }

    pub(crate) fn begin_room(&self, root: Cid) -> Option<Room> {
        Room::begin(&self.inner, root)
    }

    /// Why the store is read-only, if it is.
    pub fn read_only_reason(&self) -> Option<Arc<str>> {
        self.inner.read_only.get().cloned()
    }

    /// Counts and bytes.
    pub fn stats(&self) -> Result<Stats, StoreError> {
        self.inner.stats()
    }
}
