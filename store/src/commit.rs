//! Making durable what is staged: swap the set out, sync what it refers to, then one index transaction. In this order
//! always: the index never mentions bytes that a crash could take away.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, MutexGuard},
};

use crate::{
    MAX_STAGED_BYTES, RootRecord, StoreError,
    disk::{HAS_SYNC_FS, open_foreign},
    error::is_out_of_descriptors,
    failpoint,
    index::Index,
    inner::{Inner, join},
    locks::{lock, read, write},
    overlay::{Key, StagedSet},
    packs::io_error,
    spare::Spare,
};

/// Up to this many files are synced one by one; more of them cost less as a sync of their whole file system.
pub(crate) const MAX_SINGLE_SYNCS: usize = 32;

/// What went wrong before anything was promised.
enum SyncFailure {
    /// Nothing was synced, nothing is lost: it can be tried again.
    Before(StoreError),
    /// A sync failed: what it should have written may be lost for good.
    Failed(PathBuf, io::Error),
}

impl SyncFailure {
    /// Running out of descriptors happens on opening, before any sync.
    fn of(path: PathBuf, error: io::Error) -> Self {
        if is_out_of_descriptors(&error) {
            return Self::Before(io_error("open", &path, error));
        }
        Self::Failed(path, error)
    }
}

impl Inner {
    pub(crate) fn commit(&self) -> Result<(), StoreError> {
        self.writable()?;
        let index = lock(&self.index);
        self.commit_locked(index)
    }

    /// Keeps what is staged within bounds: called after staging, without any lock.
    pub(crate) fn commit_if_full(&self) -> Result<(), StoreError> {
        let full = || read(&self.overlay).current.bytes() > MAX_STAGED_BYTES;
        if !full() {
            return Ok(());
        }
        let index = lock(&self.index);
        // Someone else may have committed while this waited.
        if full() { self.commit_locked(index) } else { Ok(()) }
    }

    fn commit_locked(&self, mut index: MutexGuard<'_, Index>) -> Result<(), StoreError> {
        self.writable()?;
        if index.frozen {
            self.thaw(&mut index)?;
        }
        let set = {
            let mut overlay = write(&self.overlay);
            if overlay.current.is_empty() {
                return Ok(());
            }
            overlay.freeze()
        };
        // After the set: whatever the set mentions in packs was appended before, so the tail covers it.
        let (unsynced, tail) = self.packs.take_unsynced();
        let next_base = read(&self.bases).next;
        failpoint::pass("commit-before-sync");
        let synced =
            self.sync_files(&set).and_then(|()| self.packs.sync(&unsynced).map_err(|(p, e)| SyncFailure::of(p, e)));
        // The second copy in between: a store that finds it ahead of the index finds the blocks to it as well.
        let synced = synced.and_then(|()| self.write_spare(&set));
        match synced {
            Ok(()) => {}
            Err(SyncFailure::Before(error)) => {
                self.packs.give_back(unsynced);
                write(&self.overlay).thaw();
                return Err(error);
            }
            Err(SyncFailure::Failed(path, error)) => {
                index.frozen = true;
                return Err(self.fail("sync", &path, &error));
            }
        }
        failpoint::pass("commit-before-index");
        let applied = index.apply(&set, tail, next_base);
        let installed = match &applied {
            Ok(()) => index.snapshot().map(|s| *write(&self.snapshot) = Arc::new(s)),
            Err(_) => Ok(()),
        };
        if let (Ok(()), Ok(())) = (&applied, &installed) {
            // Only now: a reader that misses the staged set finds the new snapshot.
            write(&self.overlay).committing = None;
            failpoint::pass("commit-done");
            if let Ok(meta) = std::fs::metadata(index.path()) {
                self.quota.set_index_bytes(meta.len());
            }
            return Ok(());
        }
        if applied.is_err() && index.is_only_full() {
            // Nothing is lost: what was staged goes back, and the next commit tries again.
            self.freeze(&mut index);
            write(&self.overlay).thaw();
            return Err(StoreError::Full { action: "commit to", path: index.path().to_owned() });
        }
        let reason = match (applied, installed) {
            (Err(error), _) => self.fail("commit to", index.path(), &error),
            (_, Err(error)) => self.fail("read back", index.path(), &error),
            (Ok(()), Ok(())) => return Ok(()),
        };
        // What was staged stays readable in memory; the rest is read from the last good state on disk.
        self.freeze(&mut index);
        Err(reason)
    }

    /// Reads go on from the last good state of the index; nothing is written to it.
    fn freeze(&self, index: &mut Index) {
        match index.freeze().map_err(|e| e.to_string()).and_then(|()| index.snapshot().map_err(|e| e.to_string())) {
            Ok(snapshot) => *write(&self.snapshot) = Arc::new(snapshot),
            Err(error) => tracing::error!(%error, "the index cannot be read any more after a failed commit"),
        }
    }

    /// See [`Store::sync_failed`](crate::Store::sync_failed).
    pub(crate) fn sync_failed(&self, path: PathBuf, source: io::Error) -> StoreError {
        match SyncFailure::of(path, source) {
            SyncFailure::Before(error) => error,
            SyncFailure::Failed(path, error) => self.fail("sync", &path, &error),
        }
    }

    /// Goes back to writing the index after a commit that found no space.
    fn thaw(&self, index: &mut Index) -> Result<(), StoreError> {
        let thawed = index.thaw();
        if thawed.is_err() {
            // Still full, or worse; the next commit tries again. What readers use was not touched.
            self.freeze(index);
            return Err(StoreError::Full { action: "commit to", path: index.path().to_owned() });
        }
        let snapshot = index.snapshot()?;
        *write(&self.snapshot) = Arc::new(snapshot);
        Ok(())
    }

    /// From here on nothing is promised.
    pub(crate) fn fail(&self, action: &str, path: &Path, error: &dyn std::fmt::Display) -> StoreError {
        let reason: Arc<str> = format!("it failed to {action} {}: {error}", path.display()).into();
        tracing::error!(%reason, "the store is read-only from now on");
        let reason = Arc::clone(self.read_only.get_or_init(|| reason));
        StoreError::ReadOnly { reason }
    }

    /// Writes the second copy of roots and bases, if the set changes any. It may be ahead of the index, never behind.
    fn write_spare(&self, set: &StagedSet) -> Result<(), SyncFailure> {
        if set.roots.is_empty() && set.bases.is_empty() {
            return Ok(());
        }
        let mut roots = self.committed_roots().map_err(SyncFailure::Before)?;
        for (key, record) in &set.roots {
            match record {
                Some(record) => drop(roots.insert(*key, record.clone())),
                None => drop(roots.remove(key)),
            }
        }
        let (next_base, bases) = {
            let bases = read(&self.bases);
            (bases.next, bases.paths.clone())
        };
        let path = self.home.spare();
        Spare { next_base, bases, roots }.write(&path, self.home.seal(), &*self.disk).map_err(|(error, is_sync)| {
            match is_sync {
                true => SyncFailure::of(path, error),
                false => SyncFailure::Before(io_error("write", &path, error)),
            }
        })
    }

    /// The roots in the index. Called under the commit lock, so it cannot wait for it.
    fn committed_roots(&self) -> Result<BTreeMap<Key, RootRecord>, StoreError> {
        let snapshot = Arc::clone(&read(&self.snapshot));
        snapshot.roots()
    }

    /// Syncs the files that the set says were written by us.
    fn sync_files(&self, set: &StagedSet) -> Result<(), SyncFailure> {
        let mut paths = BTreeSet::new();
        let mut dirs = BTreeSet::new();
        for file in set.files.values().filter(|f| f.dirty) {
            let Some(base) = self.base_path(file.base) else { continue };
            let path = join(&base, &file.rel);
            // The file, and every directory that may be new: up to and with the one that holds the base.
            let top = base.parent().unwrap_or(&base);
            let mut dir = path.parent();
            while let Some(d) = dir.filter(|d| d.starts_with(top) && !dirs.contains(*d)) {
                dirs.insert(d.to_owned());
                dir = d.parent();
            }
            paths.insert(path);
        }
        if HAS_SYNC_FS && paths.len().max(dirs.len()) > MAX_SINGLE_SYNCS {
            return self.sync_file_systems(&dirs);
        }
        let mut files = Vec::with_capacity(paths.len().min(MAX_SINGLE_SYNCS));
        for path in paths {
            match open_foreign(&path) {
                Ok(file) => files.push((path, file)),
                // Deleted, or replaced by something else, since it was staged: reads will find that out.
                Err(error) if is_gone(&error) => {
                    tracing::warn!(path = %path.display(), "file is gone before its commit")
                }
                Err(error) => return Err(SyncFailure::Before(io_error("open", &path, error))),
            }
            // Without a sync of whole file systems there may be many: a few open at a time.
            if files.len() == MAX_SINGLE_SYNCS {
                self.sync_opened(&mut files)?;
            }
        }
        self.sync_opened(&mut files)?;
        for dir in dirs {
            match self.disk.sync_dir(&dir) {
                Err(error) if !is_gone(&error) => return Err(SyncFailure::of(dir, error)),
                _ => {}
            }
        }
        Ok(())
    }

    fn sync_opened(&self, files: &mut Vec<(PathBuf, std::fs::File)>) -> Result<(), SyncFailure> {
        for (path, file) in files.drain(..) {
            self.disk.sync_file(&file, &path).map_err(|error| SyncFailure::of(path, error))?;
        }
        Ok(())
    }

    /// One sync per file system that these directories lie on.
    fn sync_file_systems(&self, dirs: &BTreeSet<PathBuf>) -> Result<(), SyncFailure> {
        let mut one_of_each: BTreeMap<u64, &Path> = BTreeMap::new();
        for dir in dirs {
            match std::fs::metadata(dir) {
                Ok(meta) => drop(one_of_each.entry(device(&meta)).or_insert(dir)),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(SyncFailure::Before(io_error("examine", dir, error))),
            }
        }
        for path in one_of_each.into_values() {
            self.disk.sync_fs(path).map_err(|error| SyncFailure::of(path.to_owned(), error))?;
        }
        Ok(())
    }
}

/// Whether there is no such file.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn device(meta: &std::fs::Metadata) -> u64 {
    #[cfg(unix)]
    return std::os::unix::fs::MetadataExt::dev(meta);
    #[cfg(not(unix))]
    {
        let _no_devices_here = meta;
        0
    }
}
