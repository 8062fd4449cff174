//! What all handles of an open store share, how it is opened, and how it is looked up. Locks, in the order in which
//! they may be taken: roots, index (the commit lock), packs, overlay, then the rest, which are leaves. None but the
//! commit lock and the packs' writer is held across disk IO, and no reader ever takes either (but see `with_snapshot`).

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, RwLock},
};

use shoal_content::Cid;

use crate::{
    BaseId, OpenError, Options, Stats, StoreError,
    buffers::Pool,
    checkout::landed,
    damage::DamageLog,
    disk::Disk,
    handles::Handles,
    home::Home,
    index::{IdMaker, Index, KnownFile, Snapshot},
    locks::{lock, read},
    overlay::{Overlay, StagedBlock},
    packs::Packs,
    value::{FileId, Loc},
};

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
    pub(crate) ids: IdMaker,
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
        let mut home = Home::open(dir, &*disk)?;
        let (index, mut loaded) = Index::open(home.index(), Arc::clone(&disk), options.cache_bytes, home.is_fresh())?;
        let snapshot = index.snapshot().map_err(|error| OpenError::Corrupt {
            dir: home.dir().to_owned(),
            path: home.index(),
            reason: error.to_string(),
        })?;
        let mut overlay = Overlay::default();
        let packs = Packs::open(home.packs(), Arc::clone(&disk), options.pack_bytes, loaded.tail, |cid, loc| {
            overlay.current.add(cid.key(), loc);
        })?;
        home.complete(&*disk)?;
        for (id, path) in &mut loaded.bases {
            if let Some(dest) = landed(path) {
                *path = dest.into();
                overlay.current.put_base(*id, Some(Arc::clone(path)));
            }
        }
        let by_path = loaded.bases.iter().map(|(id, path)| (Arc::clone(path), *id)).collect();
        Ok(Self {
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
            ids: loaded.ids,
            disk,
            home,
        })
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
    pub(crate) fn locate(&self, cid: &Cid) -> Result<Vec<Loc>, StoreError> {
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
                return Ok(Some(KnownFile { base: file.base, rel: file.rel.to_string(), stamp: file.stamp }));
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

    pub(crate) fn stats(&self) -> Result<Stats, StoreError> {
        let staged_blocks = read(&self.overlay).sets().map(|set| set.blocks.len() as u64).sum();
        let [blocks, files, roots] = self.with_snapshot(Snapshot::counts)?;
        let (packs, pack_bytes) = self.packs.size();
        let bases = read(&self.bases).paths.len() as u64;
        let index = self.home.index();
        let index_bytes = std::fs::metadata(&index).map_err(|e| crate::packs::io_error("examine", &index, e))?.len();
        Ok(Stats { blocks, staged_blocks, files, bases, roots, packs, pack_bytes, index_bytes })
    }
}

/// A file below a base. `rel` has its parts joined by `/`; empty means the base itself.
pub(crate) fn join(base: &Path, rel: &str) -> PathBuf {
    if rel.is_empty() { base.to_owned() } else { base.join(rel) }
}
