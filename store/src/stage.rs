//! Staging: blocks into packs, references, bases and roots into the overlay. Everything here is readable when the call
//! returns, and durable only after a commit.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use shoal_content::Cid;

use crate::{
    BaseId, MAX_BLOCK_BYTES, RootKind, RootRecord, Stamp, StoreError,
    inner::Inner,
    locks::{lock, read, write},
    overlay::{Key, StagedFile},
    value::{Loc, Memory, Place},
};

impl Inner {
    pub(crate) fn put(&self, cid: &Cid, bytes: &[u8]) -> Result<(), StoreError> {
        self.writable()?;
        check_len(bytes.len() as u64)?;
        debug_assert!(cid.verify(bytes), "put a block under a name that is not its own");
        let under_way = read(&self.puts);
        // Before it is looked for: what is found then stays.
        lock(&self.held).found_block(&cid.key());
        // A copy in a pack is as good as a new one, if it is still good. A reference is not: the user may change it.
        let known = self.locate(cid)?;
        if known.iter().any(|loc| matches!(loc.place, Place::Pack(_)) && self.holds(cid, loc)) {
            return Ok(());
        }
        let (used, needed) = (self.used_bytes(), bytes.len() as u64);
        if used.saturating_add(needed) > self.quota.limit() {
            return Err(StoreError::OverQuota { quota: self.quota.limit(), used, needed });
        }
        let loc = self.packs.append(cid, bytes)?;
        write(&self.overlay).current.add(cid.key(), loc);
        drop(under_way);
        self.commit_if_full()
    }

    pub(crate) fn stage_file(
        &self,
        base: BaseId,
        rel: &str,
        stamp: Stamp,
        refs: &[(Cid, u64, u32)],
        dirty: bool,
        memory: Option<Memory>,
    ) -> Result<(), StoreError> {
        self.writable()?;
        lock(&self.held).found_base(base);
        if self.base_path(base).is_none() {
            return Err(StoreError::UnknownBase(base));
        }
        refs.iter().try_for_each(|(_, _, len)| check_len((*len).into()))?;
        // A call may bring the references of a file of a terabyte; the bound on memory holds all the same.
        let mut rest = refs;
        loop {
            let (now, later) = rest.split_at(rest.len().min(MAX_REFS_AT_ONCE));
            let (id, _) = self.file_id(base, rel)?;
            {
                let mut overlay = write(&self.overlay);
                // Only with the last references: before them, what it speaks of is not all there.
                let memory = memory.filter(|_| later.is_empty());
                overlay.current.put_file(id, StagedFile { base, rel: rel.into(), stamp, dirty, memory });
                for (cid, offset, len) in now {
                    overlay.current.add(cid.key(), Loc { place: Place::File(id), offset: *offset, len: *len });
                }
            }
            self.commit_if_full()?;
            rest = later;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// Names a path; the base stays as long as `hold`, if there is one.
    pub(crate) fn add_base(&self, path: &Path, hold: Option<u64>) -> Result<BaseId, StoreError> {
        self.writable()?;
        check_absolute(path)?;
        let mut held = lock(&self.held);
        let mut bases = write(&self.bases);
        if let Some(id) = bases.by_path.get(path) {
            held.found_base(*id);
            if let Some(hold) = hold {
                held.hold_base(hold, *id);
            }
            return Ok(*id);
        }
        let id = BaseId(bases.next);
        if let Some(hold) = hold {
            held.hold_base(hold, id);
        }
        bases.next += 1;
        let path: Arc<Path> = path.into();
        bases.paths.insert(id, Arc::clone(&path));
        bases.by_path.insert(Arc::clone(&path), id);
        // Staged before anyone can see the id.
        write(&self.overlay).current.put_base(id, Some(path));
        Ok(id)
    }

    pub(crate) fn move_base(&self, base: BaseId, path: &Path) -> Result<(), StoreError> {
        check_absolute(path)?;
        self.change_base(base, Some(path.into()))
    }

    pub(crate) fn remove_base(&self, base: BaseId) -> Result<(), StoreError> {
        self.change_base(base, None)
    }

    fn change_base(&self, base: BaseId, path: Option<Arc<Path>>) -> Result<(), StoreError> {
        self.writable()?;
        {
            let mut bases = write(&self.bases);
            let Some(before) = bases.paths.remove(&base) else { return Err(StoreError::UnknownBase(base)) };
            if bases.by_path.get(&before) == Some(&base) {
                bases.by_path.remove(&before);
            }
            if let Some(path) = &path {
                bases.paths.insert(base, Arc::clone(path));
                // Of two bases with one path, the first goes on being found by it.
                bases.by_path.entry(Arc::clone(path)).or_insert(base);
            }
            write(&self.overlay).current.put_base(base, path);
        }
        lock(&self.handles).clear();
        Ok(())
    }

    /// Stages what `change` makes of a root's record: `None` leaves it as it is, `Some(None)` removes it. Returns whether
    /// anything was staged.
    pub(crate) fn stage_root(
        &self,
        root: Cid,
        change: impl FnOnce(Option<RootRecord>) -> Option<Option<RootRecord>>,
    ) -> Result<bool, StoreError> {
        self.writable()?;
        let _one_at_a_time = lock(&self.roots);
        let Some(record) = change(self.root(&root)?) else { return Ok(false) };
        let cached = record.as_ref().filter(|record| record.kind == RootKind::Cached);
        self.quota.note(root, cached.map(|record| record.bytes));
        write(&self.overlay).current.put_root(root.key(), record);
        Ok(true)
    }

    /// What is staged counts, unless it can never be durable any more: then what was acknowledged is what there is.
    pub(crate) fn root(&self, root: &Cid) -> Result<Option<RootRecord>, StoreError> {
        let key = root.key();
        let staged = || read(&self.overlay).sets().find_map(|set| set.roots.get(&key).cloned());
        match self.writable().ok().and_then(|()| staged()) {
            Some(record) => Ok(record),
            None => self.with_snapshot(|s| s.root(root)),
        }
    }

    pub(crate) fn roots(&self) -> Result<Vec<RootRecord>, StoreError> {
        let staged: Vec<BTreeMap<Key, Option<RootRecord>>> = match self.writable() {
            Ok(()) => read(&self.overlay).sets().map(|set| set.roots.clone()).collect(),
            Err(_) => vec![],
        };
        let mut roots = self.with_snapshot(|s| s.roots())?;
        // The newest last, so that it wins.
        for (key, record) in staged.into_iter().rev().flatten() {
            match record {
                Some(record) => drop(roots.insert(key, record)),
                None => drop(roots.remove(&key)),
            }
        }
        Ok(roots.into_values().collect())
    }
}

/// References staged under one hold of the overlay's lock: some milliseconds, a few MiB.
const MAX_REFS_AT_ONCE: usize = 16_384;

fn check_len(len: u64) -> Result<(), StoreError> {
    let max = MAX_BLOCK_BYTES as u64;
    if len > max { Err(StoreError::TooLarge { len, max }) } else { Ok(()) }
}

fn check_absolute(path: &Path) -> Result<(), StoreError> {
    if path.is_absolute() { Ok(()) } else { Err(StoreError::NotAbsolute(path.to_owned())) }
}
