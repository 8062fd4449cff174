//! What all handles of an open store share, how it is opened, and how it is looked up. Locks, in the order in which
//! they may be taken: collecting, puts, roots, index (the commit lock), packs, held, bases, overlay, then the rest, which
//! are leaves. None but collecting, puts, the commit lock and the packs' writer is held across disk IO, and no reader ever
//! takes one of these (but see `with_snapshot`).

use std::{
    collections::{BTreeMap, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, RwLock},
};

use shoal_content::Cid;
use smallvec::SmallVec;

use crate::{
    BaseId, OpenError, Options, RootKind, RootRecord, Stats, StoreError,
    buffers::Pool,
    checkout::landed,
    damage::DamageLog,
    disk::Disk,
    handles::Handles,
    hold::Held,
    home::Home,
    index::{IdMaker, Index, KnownFile, Loaded, Snapshot, is_sound},
    locks::{lock, read, write},
    overlay::{Overlay, StagedBlock, StagedSet},
    packs::Packs,
    quota::Quota,
    rebuild::{rebuild, references},
    spare::Spare,
    value::{FileId, Loc},
};

/// An index of up to so many bytes, some 240,000 blocks, is looked at whenever it is opened: that takes 20 ms at most. A
/// larger one is looked at by scrubs, or when it does not agree with the second copy of the roots.
const CHECKED_AT_OPEN_BYTES: u64 = 32 << 20;

pub(crate) struct Inner {
    pub(crate) overlay: RwLock<Overlay>,
    pub(crate) snapshot: RwLock<Arc<Snapshot>>,
    /// Also the commit lock.
    pub(crate) index: Mutex<Index>,
    pub(crate) packs: Packs,
    pub(crate) bases: RwLock<Bases>,
    pub(crate) handles: Mutex<Handles>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) damage: Mutex<DamageLog>,
    /// Why nothing can be promised any more.
    pub(crate) read_only: OnceLock<Arc<str>>,
    /// Held while a root's record is read, changed and staged.
    pub(crate) roots: Mutex<()>,
    /// Held by the one collection of garbage.
    pub(crate) collecting: Mutex<()>,
    /// Held shared from the appending of a block until it is staged.
    pub(crate) puts: RwLock<()>,
    pub(crate) held: Mutex<Held>,
    pub(crate) quota: Quota,
    pub(crate) ids: IdMaker,
    pub(crate) cache_bytes: usize,
    /// Why the index was made anew when the store was opened.
    pub(crate) rebuilt: Option<String>,
    pub(crate) disk: Arc<dyn Disk>,
    /// Last: everything above is closed before the lock goes.
    pub(crate) home: Home,
}

/// The base paths: all in memory, there is about one per root.
#[derive(Debug)]
pub(crate) struct Bases {
    pub(crate) paths: BTreeMap<BaseId, Arc<Path>>,
    pub(crate) by_path: HashMap<Arc<Path>, BaseId>,
    /// Numbers are never given twice: references to a removed base may still be around.
    pub(crate) next: u32,
}

impl Inner {
    pub(crate) fn open(dir: &Path, options: &Options, disk: Arc<dyn Disk>) -> Result<Self, OpenError> {
        let mut home = Home::open(dir, options, &*disk)?;
        let cache_bytes = options.cache_bytes;
        let (OpenIndex { index, mut loaded, snapshot, spare, ahead }, rebuilt) = open_index(&home, &disk, cache_bytes)?;
        if let Some(ahead) = &ahead {
            loaded.next_base = loaded.next_base.max(ahead.next_base);
            loaded.bases.clone_from(&ahead.bases);
        }
        let mut overlay = Overlay::default();
        let (max_bytes, seal) = (options.pack_bytes, home.seal().clone());
        let packs = Packs::open(home.packs(), Arc::clone(&disk), max_bytes, seal, loaded.tail, |cid, loc| {
            overlay.current.add(cid.key(), loc);
        })?;
        home.complete(&*disk)?;
        for (id, path) in &mut loaded.bases {
            if let Some(dest) = landed(path) {
                *path = dest.into();
                overlay.current.put_base(*id, Some(Arc::clone(path)));
            }
        }
        let quota = Quota::new(options.quota_bytes, file_len(&home.index())?, cached_roots(&spare));
        let by_path = loaded.bases.iter().map(|(id, path)| (Arc::clone(path), *id)).collect();
        let inner = Self {
            overlay: RwLock::new(overlay),
            snapshot: RwLock::new(Arc::new(snapshot)),
            index: Mutex::new(index),
            packs,
            bases: RwLock::new(Bases { paths: loaded.bases, by_path, next: loaded.next_base }),
            handles: Mutex::default(),
            pool: Arc::default(),
            damage: Mutex::default(),
            read_only: OnceLock::new(),
            roots: Mutex::default(),
            collecting: Mutex::default(),
            puts: RwLock::default(),
            held: Mutex::default(),
            quota,
            ids: loaded.ids,
            cache_bytes,
            rebuilt,
            disk,
            home,
        };
        if let Some(ahead) = ahead {
            inner.catch_up(&spare, ahead);
        }
        Ok(inner)
    }

    /// Takes over what the second copy of roots and bases is ahead of the index, with the references that go with it.
    /// Staged: durable with the next commit, and until then the copy stays.
    fn catch_up(&self, behind: &Spare, ahead: Spare) {
        let mut set = StagedSet::default();
        for (key, record) in &ahead.roots {
            if behind.roots.get(key) == Some(record) {
                continue;
            }
            if record.complete {
                let read = |cid: &Cid, buf: &mut Vec<u8>| self.read_into(cid, buf).ok();
                match references(record, &ahead.bases, &self.ids, read) {
                    Ok(refs) => set.extend(refs),
                    Err(why) => tracing::warn!(root = %record.root, why, "a root is not whole"),
                }
            }
            set.put_root(*key, Some(record.clone()));
        }
        for key in behind.roots.keys().filter(|key| !ahead.roots.contains_key(*key)) {
            set.put_root(*key, None);
        }
        for id in ahead.bases.keys() {
            set.put_base(*id, self.base_path(*id));
        }
        for id in behind.bases.keys().filter(|id| !ahead.bases.contains_key(id)) {
            set.put_base(*id, None);
        }
        for (key, record) in &set.roots {
            let cached = record.as_ref().filter(|record| record.kind == RootKind::Cached);
            if let Some(root) = Cid::from_key(key) {
                self.quota.note(root, cached.map(|record| record.bytes));
            }
        }
        write(&self.overlay).current.extend(set);
    }

    /// An error if nothing can be promised any more.
    pub(crate) fn writable(&self) -> Result<(), StoreError> {
        match self.read_only.get() {
            None => Ok(()),
            Some(reason) => Err(StoreError::ReadOnly { reason: Arc::clone(reason) }),
        }
    }

    /// Looks something up in the committed index. While a failed commit is being cleared away, the index cannot be
    /// read for a moment: then this waits for it and looks again. No lock may be held.
    pub(crate) fn with_snapshot<T>(&self, look: impl Fn(&Snapshot) -> Result<T, StoreError>) -> Result<T, StoreError> {
        // The library may panic on a file that rotted.
        let look = |snapshot: &Snapshot| {
            let looked = catch_unwind(AssertUnwindSafe(|| look(snapshot)));
            looked.unwrap_or_else(|_panic| {
                let reason = "it is damaged".into();
                Err(StoreError::Index { path: self.home.index(), reason })
            })
        };
        let first = Arc::clone(&read(&self.snapshot));
        let error = match look(&first) {
            Err(error) => error,
            found => return found,
        };
        drop(lock(&self.index));
        let again = Arc::clone(&read(&self.snapshot));
        if Arc::ptr_eq(&first, &again) { Err(error) } else { look(&again) }
    }

    /// Where a block is: what is staged first, since it is newest, then what is committed.
    pub(crate) fn locate(&self, cid: &Cid) -> Result<SmallVec<[Loc; 1]>, StoreError> {
        let key = cid.key();
        let StagedBlock { adds: mut locs, removes } = read(&self.overlay).block(&key);
        let committed = self.with_snapshot(|s| s.locs(&key))?;
        for loc in committed {
            if !removes.contains(&loc) && !locs.contains(&loc) {
                locs.push(loc);
            }
        }
        Ok(locs)
    }

    pub(crate) fn has_many(&self, cids: &[Cid]) -> Result<Vec<bool>, StoreError> {
        let staged: Vec<Option<StagedBlock>> = {
            let overlay = read(&self.overlay);
            let nothing = overlay.sets().all(|set| set.blocks.is_empty());
            cids.iter().map(|cid| if nothing { None } else { Some(overlay.block(&cid.key())) }).collect()
        };
        self.with_snapshot(|snapshot| {
            let has = |(cid, staged): (&Cid, &Option<StagedBlock>)| {
                if cid.is_empty_leaf() || staged.as_ref().is_some_and(|s| !s.adds.is_empty()) {
                    return Ok(true);
                }
                let locs = snapshot.locs(&cid.key())?;
                Ok(match staged {
                    Some(staged) => locs.iter().any(|loc| !staged.removes.contains(loc)),
                    None => !locs.is_empty(),
                })
            };
            cids.iter().zip(&staged).map(has).collect()
        })
    }

    /// What is known about a file, staged or committed.
    pub(crate) fn file(&self, id: FileId) -> Result<Option<KnownFile>, StoreError> {
        {
            let overlay = read(&self.overlay);
            let found = overlay.sets().find_map(|set| set.files.get(&id));
            if let Some(file) = found {
                return Ok(Some(KnownFile {
                    base: file.base,
                    rel: file.rel.to_string(),
                    stamp: file.stamp,
                    memory: file.memory,
                }));
            }
        }
        self.with_snapshot(|s| s.file(id))
    }

    /// The id of a file, and what is known about it, if anything. On a collision of hashes, the next free id.
    pub(crate) fn file_id(&self, base: BaseId, rel: &str) -> Result<(FileId, Option<KnownFile>), StoreError> {
        let mut id = self.ids.id(base, rel);
        loop {
            match self.file(id)? {
                Some(found) if found.base != base || found.rel != rel => id = id.next(),
                found => return Ok((id, found)),
            }
        }
    }

    pub(crate) fn base_path(&self, base: BaseId) -> Option<Arc<Path>> {
        read(&self.bases).paths.get(&base).cloned()
    }

    /// Bytes of packs and index.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.packs.size().1 + self.quota.index_bytes()
    }

    pub(crate) fn stats(&self) -> Result<Stats, StoreError> {
        let staged_blocks = read(&self.overlay).sets().map(|set| set.blocks.len() as u64).sum();
        let [blocks, files, roots] = self.with_snapshot(Snapshot::counts)?;
        let (packs, pack_bytes) = self.packs.size();
        let bases = read(&self.bases).paths.len() as u64;
        let index_bytes = self.quota.index_bytes();
        Ok(Stats { blocks, staged_blocks, files, bases, roots, packs, pack_bytes, index_bytes })
    }
}

/// An index that was opened, and what it says of roots and bases.
struct OpenIndex {
    index: Index,
    loaded: Loaded,
    snapshot: Snapshot,
    spare: Spare,
    /// The second copy, if it is ahead.
    ahead: Option<Spare>,
}

fn try_open_index(home: &Home, disk: &Arc<dyn Disk>, cache_bytes: usize) -> Result<OpenIndex, OpenError> {
    let (index, loaded) = Index::open(home.index(), Arc::clone(disk), cache_bytes, home.is_fresh(), None, home.seal())?;
    let corrupt = |reason: String| OpenError::Corrupt { dir: home.dir().to_owned(), path: home.index(), reason };
    let snapshot = index.snapshot().map_err(|error| corrupt(error.to_string()))?;
    let roots = catch_unwind(AssertUnwindSafe(|| snapshot.roots()));
    let roots = roots.map_err(|_panic| corrupt("its roots cannot be read".into()))?;
    let roots = roots.map_err(|error| corrupt(error.to_string()))?;
    let spare = Spare { next_base: loaded.next_base, bases: loaded.bases.clone(), roots };
    Ok(OpenIndex { index, loaded, snapshot, spare, ahead: None })
}

/// Looks at every page first, if `check` says so: once it is open, a commit may copy a page with its rot, and what a commit
/// writes counts as sound.
fn try_open_checked(
    home: &Home,
    disk: &Arc<dyn Disk>,
    cache_bytes: usize,
    check: bool,
) -> Result<OpenIndex, OpenError> {
    if check && !is_sound(&home.index()) {
        let (dir, path, reason) = (home.dir().to_owned(), home.index(), "a page of it is damaged".to_owned());
        return Err(OpenError::Corrupt { dir, path, reason });
    }
    try_open_index(home, disk, cache_bytes)
}

/// Opens the index. One that is damaged is made anew, if the second copy of what it alone would know is whole; then it
/// says why.
fn open_index(home: &Home, disk: &Arc<dyn Disk>, cache_bytes: usize) -> Result<(OpenIndex, Option<String>), OpenError> {
    let path = home.spare();
    let second = Spare::read(&path, home.seal()).map_err(|source| OpenError::Io {
        action: "read",
        path: path.clone(),
        source,
    })?;
    let second = second.filter(|_| !home.is_fresh());
    let small = std::fs::metadata(home.index()).is_ok_and(|meta| (1..=CHECKED_AT_OPEN_BYTES).contains(&meta.len()));
    let why = match (try_open_checked(home, disk, cache_bytes, small && second.is_some()), &second) {
        (Ok(open), Some(second)) if open.spare == *second => return Ok((open, None)),
        // No copy yet, or one that rotted.
        (Ok(open), None) => {
            let written = open.spare.write(&path, home.seal(), &**disk);
            written.map_err(|(source, _)| OpenError::Io { action: "write", path, source })?;
            return Ok((open, None));
        }
        // A crash between the two; or the index went back to the commit before, since what says which is its last rotted.
        (Ok(mut open), Some(_)) if is_sound(&home.index()) => {
            open.ahead = second;
            return Ok((open, None));
        }
        (Ok(_), _) => format!("{} is damaged", home.index().display()),
        (Err(error @ OpenError::Corrupt { .. }), Some(_)) => error.to_string(),
        (Err(error), _) => return Err(error),
    };
    rebuild(home, &second.unwrap_or_default(), disk, cache_bytes, None)?;
    Ok((try_open_index(home, disk, cache_bytes)?, Some(why)))
}

fn file_len(path: &Path) -> Result<u64, OpenError> {
    let meta = std::fs::metadata(path);
    Ok(meta.map_err(|source| OpenError::Io { action: "examine", path: path.to_owned(), source })?.len())
}

/// The cached roots with their bytes, the oldest first.
fn cached_roots(spare: &Spare) -> Vec<(Cid, u64)> {
    let mut roots: Vec<&RootRecord> = spare.roots.values().filter(|record| record.kind == RootKind::Cached).collect();
    roots.sort_by_key(|record| record.created_unix);
    roots.into_iter().map(|record| (record.root, record.bytes)).collect()
}

/// A file below a base. `rel` has its parts joined by `/`; empty means the base itself.
pub(crate) fn join(base: &Path, rel: &str) -> PathBuf {
    if rel.is_empty() { base.to_owned() } else { base.join(rel) }
}
