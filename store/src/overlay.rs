//! What is staged: references, pack locations, bases and roots that can be read but are not durable yet.
//!
//! Two sets: the one being filled, and the one a commit is writing just now. Both are looked at before the index, the
//! newer first. No IO happens here, so its lock is only ever held for moments.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use shoal_content::Cid;
use smallvec::SmallVec;

use crate::{
    BaseId, RootRecord, Stamp,
    value::{FileId, Loc, Memory},
};

/// A CID as the index knows it.
pub(crate) type Key = [u8; Cid::KEY_LEN];

/// Estimates of what one staged item costs in memory, in bytes: table slots at their usual load and small allocations.
const BLOCK_COST: usize = 152;
const FILE_COST: usize = 224;
const ROOT_COST: usize = 1024;

/// A file that references were staged into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StagedFile {
    pub(crate) base: BaseId,
    pub(crate) rel: Box<str>,
    pub(crate) stamp: Stamp,
    /// Written by us: to be synced before the commit.
    pub(crate) dirty: bool,
    /// With what an import needs in order not to read it again. Staged without, a file is forgotten in this respect.
    pub(crate) memory: Option<Memory>,
}

/// What changes about the locations of one block. Additions win over removals: whoever staged a location anew knows
/// better than a read that found the old bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StagedBlock {
    /// One as a rule, so without an allocation: tens of thousands of small ones that live long, among the buffers that
    /// come and go, keep an allocator from giving memory back.
    pub(crate) adds: SmallVec<[Loc; 1]>,
    pub(crate) removes: Vec<Loc>,
}

/// What one commit writes.
#[derive(Clone, Debug, Default)]
pub(crate) struct StagedSet {
    pub(crate) blocks: HashMap<Key, StagedBlock>,
    pub(crate) files: HashMap<FileId, StagedFile>,
    /// Rows of files and of directories that nothing refers to any more. They go before `files` come.
    pub(crate) gone: [HashSet<FileId>; 2],
    /// `None`: removed.
    pub(crate) bases: BTreeMap<BaseId, Option<Arc<Path>>>,
    /// `None`: removed.
    pub(crate) roots: BTreeMap<Key, Option<RootRecord>>,
    /// Estimated memory.
    bytes: usize,
}

impl StagedSet {
    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
            && self.files.is_empty()
            && self.gone.iter().all(HashSet::is_empty)
            && self.bases.is_empty()
            && self.roots.is_empty()
    }

    /// Estimated memory in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn add(&mut self, key: Key, loc: Loc) {
        let block = self.blocks.entry(key).or_insert_with(|| {
            self.bytes += BLOCK_COST;
            StagedBlock::default()
        });
        block.removes.retain(|l| *l != loc);
        if !block.adds.contains(&loc) {
            block.adds.insert(0, loc);
            block.adds.truncate(crate::value::MAX_LOCATIONS);
        }
    }

    pub(crate) fn remove(&mut self, key: Key, loc: Loc) {
        let block = self.blocks.entry(key).or_insert_with(|| {
            self.bytes += BLOCK_COST;
            StagedBlock::default()
        });
        block.adds.retain(|l| *l != loc);
        if !block.removes.contains(&loc) {
            block.removes.push(loc);
            self.bytes += size_of::<Loc>();
        }
    }

    pub(crate) fn put_file(&mut self, id: FileId, file: StagedFile) {
        self.bytes += FILE_COST + file.rel.len();
        let dirty = file.dirty;
        let staged = self.files.entry(id).or_insert_with(|| file.clone());
        *staged = StagedFile { dirty: staged.dirty || dirty, ..file };
    }

    /// Drops the row of a file (0) or of a directory (1).
    pub(crate) fn drop_row(&mut self, table: usize, id: FileId) {
        self.bytes += 16;
        self.gone[table].insert(id);
    }

    pub(crate) fn put_root(&mut self, key: Key, record: Option<RootRecord>) {
        self.bytes += ROOT_COST;
        self.roots.insert(key, record);
    }

    pub(crate) fn put_base(&mut self, id: BaseId, path: Option<Arc<Path>>) {
        self.bytes += FILE_COST;
        self.bases.insert(id, path);
    }

    /// Lays `newer` over this set, as if it had been staged here.
    pub(crate) fn extend(&mut self, newer: StagedSet) {
        self.bytes += newer.bytes;
        for (key, block) in newer.blocks {
            block.removes.into_iter().for_each(|loc| self.remove(key, loc));
            block.adds.into_iter().rev().for_each(|loc| self.add(key, loc));
        }
        for (gone, newer) in self.gone.iter_mut().zip(newer.gone) {
            gone.extend(newer);
        }
        newer.files.into_iter().for_each(|(id, file)| self.put_file(id, file));
        self.bases.extend(newer.bases);
        self.roots.extend(newer.roots);
    }
}

/// The staged set, and the one on its way to the disk.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    pub(crate) current: StagedSet,
    pub(crate) committing: Option<Arc<StagedSet>>,
}

impl Overlay {
    /// Moves the current set to the commit.
    pub(crate) fn freeze(&mut self) -> Arc<StagedSet> {
        let set = Arc::new(std::mem::take(&mut self.current));
        self.committing = Some(Arc::clone(&set));
        set
    }

    /// Takes the set back from a commit that wrote nothing; what was staged meanwhile is laid over it.
    pub(crate) fn thaw(&mut self) {
        if let Some(set) = self.committing.take() {
            let newer = std::mem::replace(&mut self.current, Arc::unwrap_or_clone(set));
            self.current.extend(newer);
        }
    }

    /// The newer set first.
    pub(crate) fn sets(&self) -> impl Iterator<Item = &StagedSet> {
        std::iter::once(&self.current).chain(self.committing.as_deref())
    }

    /// Takes back what was dropped and is not durable yet.
    pub(crate) fn forget_removals(&mut self) {
        self.current.blocks.values_mut().for_each(|block| block.removes.clear());
    }

    /// Drops a location that turned out to be bad.
    pub(crate) fn remove(&mut self, key: Key, loc: Loc) {
        self.current.remove(key, loc);
    }

    /// What is staged about a block: where it is now, and where it is not any more although the index says so.
    pub(crate) fn block(&self, key: &Key) -> StagedBlock {
        let mut found = StagedBlock::default();
        for set in self.sets() {
            let Some(block) = set.blocks.get(key) else { continue };
            // What the newer set removed is not added by the older one, nor removed again if the newer added it.
            for loc in &block.adds {
                if !found.removes.contains(loc) && !found.adds.contains(loc) {
                    found.adds.push(*loc);
                }
            }
            for loc in &block.removes {
                if !found.adds.contains(loc) {
                    found.removes.push(*loc);
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::*;
    use crate::value::Place;

    fn loc(pack: u32) -> Loc {
        Loc { place: Place::Pack(pack), offset: 16, len: 1 }
    }

    #[test]
    fn newer_sets_win() {
        let key = [0; 33];
        let mut overlay = Overlay::default();
        overlay.current.add(key, loc(1));
        overlay.freeze();
        assert_eq!(overlay.block(&key).adds[..], [loc(1)]);
        overlay.remove(key, loc(1));
        assert_eq!(overlay.block(&key), StagedBlock { adds: smallvec![], removes: vec![loc(1)] });
        overlay.current.add(key, loc(1));
        assert_eq!(overlay.block(&key), StagedBlock { adds: smallvec![loc(1)], removes: vec![] });
    }

    #[test]
    fn a_thawed_set_is_below_what_came_later() {
        let key = [0; 33];
        let mut overlay = Overlay::default();
        overlay.current.add(key, loc(1));
        overlay.current.add(key, loc(2));
        overlay.freeze();
        overlay.remove(key, loc(1));
        overlay.current.add(key, loc(3));
        let seen = overlay.block(&key);
        overlay.thaw();
        assert!(overlay.committing.is_none());
        assert_eq!(overlay.block(&key), seen);
        assert_eq!(seen, StagedBlock { adds: smallvec![loc(3), loc(2)], removes: vec![loc(1)] });
    }
}
