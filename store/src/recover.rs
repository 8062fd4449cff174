//! Finding blocks again that the index has lost: a page of it rotted, and a commit that did not look at it copied it with its
//! rot. Packs tell what they hold; roots and their trees tell where in the user's files a block should be. Both are read and
//! hashed before they count. An index that is damaged as a whole is not dealt with here but [made anew](crate::rebuild).

use std::{fs::File, path::Path};

use shoal_content::Cid;

use crate::{
    StoreError,
    inner::Inner,
    locks::{lock, read, write},
    overlay::StagedSet,
    pack,
    packs::{self, io_error},
    rebuild::references,
    value::{Loc, Place},
};

impl Inner {
    /// See [`Store::recover`](crate::Store::recover).
    pub(crate) fn recover(&self, root: &Cid) -> Result<u64, StoreError> {
        let _no_collection = lock(&self.collecting);
        if self.writable().is_err() {
            return Ok(0);
        }
        let mut found = self.recover_references(root)?;
        // What a missing node leads to is not known, so all packs are looked through.
        if self.walk(root, |_| true)? > 0 || self.misses(root)? {
            found += self.recover_packed()?;
            found += self.recover_references(root)?;
        }
        Ok(found)
    }

    fn misses(&self, root: &Cid) -> Result<bool, StoreError> {
        let mut misses = false;
        self.walk(root, |key| {
            misses |= Cid::from_key(key)
                .is_some_and(|cid| !cid.is_empty_leaf() && self.locate(&cid).is_ok_and(|locs| locs.is_empty()));
            true
        })?;
        Ok(misses)
    }

    /// Takes on where in the user's files the missing blocks of a root are, by its record and its tree.
    fn recover_references(&self, root: &Cid) -> Result<u64, StoreError> {
        let Some(record) = self.root(root)? else { return Ok(0) };
        let bases = read(&self.bases).paths.clone();
        let node = |cid: &Cid, buf: &mut Vec<u8>| self.read_into(cid, buf).ok();
        // Without its tree there is nothing to go by.
        let Ok(mut set) = references(&record, &bases, &self.ids, node) else { return Ok(0) };
        let mut wanted = Vec::new();
        for (key, block) in std::mem::take(&mut set.blocks) {
            let Some(cid) = Cid::from_key(&key) else { continue };
            if self.locate(&cid)?.is_empty() {
                wanted.extend(block.adds.into_iter().map(|loc| (cid, loc)));
            }
        }
        let mut found = 0;
        for (cid, loc) in wanted {
            let Place::File(id) = loc.place else { continue };
            let mut staged = StagedSet::default();
            if self.file(id)?.is_none()
                && let Some(file) = set.files.get(&id)
            {
                staged.put_file(id, file.clone());
            }
            staged.add(cid.key(), loc);
            write(&self.overlay).current.extend(staged);
            match self.holds(&cid, &loc) {
                true => found += 1,
                false => write(&self.overlay).remove(cid.key(), loc),
            }
            self.commit_if_full()?;
        }
        Ok(found)
    }

    /// Takes on every block of every pack that has no place in the index. What nothing needs of it is garbage again.
    fn recover_packed(&self) -> Result<u64, StoreError> {
        let dir = self.home.packs();
        let failed = |action, path: &Path, error| io_error(action, path, error);
        let mut found = 0;
        for (id, path) in packs::list(&dir).map_err(|error| failed("list", &dir, error))? {
            let file = File::open(&path).map_err(|error| failed("open", &path, error))?;
            let mut records = Vec::new();
            pack::scan_damaged(&file, self.home.seal(), |cid, offset, len| records.push((cid, offset, len)))
                .map_err(|error| failed("read", &path, error))?;
            for (cid, offset, len) in records {
                if self.locate(&cid)?.is_empty() {
                    write(&self.overlay).current.add(cid.key(), Loc { place: Place::Pack(id), offset, len });
                    found += 1;
                    self.commit_if_full()?;
                }
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that unwraps fails at the right line")]
mod tests {
    use std::{fs, sync::Arc, sync::atomic::AtomicBool};

    use shoal_content::{Codec, SHOAL_V1};

    use crate::{Checkout, CheckoutOptions, ImportOptions, Options, Scrub, Scrubbed, Store, import, locks::write};

    /// The index loses rows of files, of trees and of cached content, as when a rotten page was copied by a commit.
    #[test]
    fn what_the_index_lost_is_found_where_it_should_be_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        for i in 0..5u8 {
            fs::write(tree.join(format!("f{i}")), vec![i; 1000 + usize::from(i)]).unwrap();
        }
        let open = |name: &str| Store::open(&dir.path().join(name), Options::default()).unwrap();
        let share = |store: &Store| {
            import(store, &tree, &SHOAL_V1, &ImportOptions::default(), &|_| {}, &AtomicBool::new(false)).unwrap().root
        };
        let (sharing, caching) = (open("sharing"), open("caching"));
        let root = share(&sharing);
        let hold = caching.hold();
        for node in sharing.manifest(&root).unwrap().nodes() {
            caching.put(node, &sharing.read(node).unwrap()).unwrap();
        }
        let manifest = Arc::new(caching.manifest(&root).unwrap());
        let leaves: Vec<_> = manifest.leaves().iter().map(|leaf| leaf.cid).collect();
        let options = CheckoutOptions::default();
        let checkout = Checkout::begin_cached(&caching, Arc::clone(&manifest), &[], "tree", options).unwrap();
        for (i, leaf) in leaves.iter().enumerate() {
            checkout.write(i as u32, &sharing.read(leaf).unwrap()).unwrap();
        }
        checkout.finish().unwrap();
        drop((checkout, hold));

        // One that is really gone as well, of those in files.
        fs::write(tree.join("f4"), b"something else").unwrap();
        for (store, gone) in [(&sharing, 1), (&caching, 0)] {
            let lost: Vec<_> = leaves.iter().copied().chain([root]).collect();
            for cid in &lost {
                for loc in store.inner.locate(cid).unwrap() {
                    write(&store.inner.overlay).remove(cid.key(), loc);
                }
            }
            store.commit().unwrap();
            assert!(lost.iter().all(|cid| !store.has(cid).unwrap()), "they were lost");
            let found: Scrubbed = store.scrub(&Scrub::default(), &mut |_| {}).unwrap();
            assert_eq!(found.recovered, lost.len() as u64 - gone, "{found:?}");
            assert_eq!(found.damaged, if gone > 0 { vec![(root, gone)] } else { vec![] });
            for cid in lost.iter().filter(|cid| gone == 0 || store.has(cid).unwrap()) {
                store.read(cid).unwrap();
            }
            assert!(root.codec() != Codec::Raw && store.manifest(&root).is_ok());
            let again = store.scrub(&Scrub::default(), &mut |_| {}).unwrap();
            assert_eq!((again.recovered, again.bad), (0, 0), "found and durable");
        }
    }
}
