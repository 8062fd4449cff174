//! What is known of a file from the last time it was read: the tree that its content has, if all of that is still here.
//! Nothing is read here but nodes; what makes a file count as untouched is decided by `import`.

use shoal_content::{Cid, Codec, EntryKind, Link, Source};

use crate::{
    BaseId, Hold, ReadError, Store, StoreError,
    error::ManifestError,
    value::{Loc, MAX_LOCATIONS, Place},
};

/// The tree of a file that need not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) link: Link,
    pub(crate) chunks: u64,
    pub(crate) nodes: u64,
}

/// Leaves and where they are in a file.
type Refs = Vec<(Cid, u64, u32)>;

impl Store {
    /// The tree of a file of which `print` is remembered, if every node of it is here and every leaf is where it was. From
    /// then on `hold`, which has the base, keeps it. `None` whenever there is a doubt: then the file is to be read.
    pub(crate) fn known(
        &self,
        hold: &Hold,
        base: BaseId,
        rel: &str,
        size: u64,
        print: u64,
    ) -> Result<Option<Known>, StoreError> {
        let (id, Some(file)) = self.inner.file_id(base, rel)? else { return Ok(None) };
        let Some(memory) = file.memory.filter(|memory| memory.print == print && file.stamp.size == size) else {
            return Ok(None);
        };
        let link = Link { cid: memory.cid, size, dag_size: memory.dag_size };
        let Some((refs, nodes)) = self.tree_of(hold, &link)? else { return Ok(None) };
        let mut crowded_out = Refs::new();
        for &(cid, offset, len) in &refs {
            match self.place_of(&cid, Loc { place: Place::File(id), offset, len })? {
                Standing::Kept => {}
                Standing::CrowdedOut => crowded_out.push((cid, offset, len)),
                Standing::Lost => return Ok(None),
            }
        }
        if !crowded_out.is_empty() {
            self.inner.stage_file(base, rel, file.stamp, &crowded_out, false, Some(memory))?;
        }
        Ok(Some(Known { link, chunks: refs.len() as u64, nodes }))
    }

    /// The leaves below `link` in file order and the number of nodes, if all nodes are here. From then on `hold` keeps them.
    fn tree_of(&self, hold: &Hold, link: &Link) -> Result<Option<(Refs, u64)>, StoreError> {
        if link.cid.codec() == Codec::Raw {
            let len = u32::try_from(link.size).ok().filter(|len| *len > 0 && link.dag_size == link.size);
            return Ok(len.map(|len| (vec![(link.cid, 0, len)], 0)));
        }
        // Read and hashed, every one of them: that the index names a place for a node does not mean that it is there.
        let manifest = match self.manifest(&link.cid) {
            Ok(manifest) => manifest,
            Err(ManifestError::Read(ReadError::Store(error))) => return Err(error),
            Err(_) => return Ok(None),
        };
        let [entry] = manifest.entries() else { return Ok(None) };
        if !matches!(entry.kind, EntryKind::File { size, .. } if size == link.size) {
            return Ok(None);
        }
        // Kept first and looked for then: what is found goes no more.
        manifest.nodes().iter().for_each(|node| hold.keep(node));
        if !self.has_many(manifest.nodes())?.into_iter().all(|here| here) {
            return Ok(None);
        }
        let leaf = |piece: shoal_content::Piece<'_>| match piece.source {
            Source::Leaf(leaf) => Some((manifest.leaves().get(leaf as usize)?.cid, piece.offset, piece.len)),
            Source::Inline(_) => None,
        };
        let refs: Option<Refs> = manifest.pieces(0).map(leaf).collect();
        Ok(refs.map(|refs| (refs, manifest.nodes().len() as u64)))
    }

    fn place_of(&self, cid: &Cid, loc: Loc) -> Result<Standing, StoreError> {
        let locs = self.inner.locate(cid)?;
        Ok(match locs.contains(&loc) {
            true => Standing::Kept,
            false if locs.len() >= MAX_LOCATIONS => Standing::CrowdedOut,
            false => Standing::Lost,
        })
    }
}

/// What became of the place of a leaf.
enum Standing {
    Kept,
    /// By newer places of the same leaf; they may all be in files that are edited by now, so this one is named again.
    CrowdedOut,
    /// It did not hold the leaf when it was read. Something is odd about the file.
    Lost,
}

#[cfg(all(test, unix))]
mod tests {
    use std::{
        path::Path,
        sync::atomic::AtomicBool,
        time::{Duration, SystemTime},
    };

    use shoal_content::SHOAL_V1;

    use super::*;
    use crate::{ImportOptions, Imported, Options, import, locks::write};

    fn share(store: &Store, path: &Path) -> Imported {
        let options =
            ImportOptions { now: Some(SystemTime::now() + Duration::from_secs(60)), ..ImportOptions::default() };
        import(store, path, &SHOAL_V1, &options, &|_| {}, &AtomicBool::new(false)).unwrap()
    }

    #[test]
    fn a_place_that_was_found_bad_means_reading() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("store"), Options::default()).unwrap();
        for len in [5000, 3 << 20] {
            let path = home.path().join(len.to_string());
            std::fs::write(&path, (0..len).map(|i: u32| (i ^ i >> 7) as u8).collect::<Vec<_>>()).unwrap();
            let first = share(&store, &path);
            assert_eq!(share(&store, &path).unread_files, 1);
            // As a read does that finds other bytes there.
            let leaf = store.manifest(&first.root).unwrap().leaves().last().unwrap().cid;
            let loc = store.inner.locate(&leaf).unwrap()[0];
            write(&store.inner.overlay).remove(leaf.key(), loc);
            assert!(!store.has(&leaf).unwrap());
            let again = share(&store, &path);
            assert_eq!((again.root, again.unread_files), (first.root, 0));
            assert!(store.has(&leaf).unwrap());
            assert_eq!(share(&store, &path).unread_files, 1);
        }
    }

    #[test]
    fn references_staged_anew_make_a_file_forgotten() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(&home.path().join("store"), Options::default()).unwrap();
        let path = home.path().join("file");
        std::fs::write(&path, "content").unwrap();
        let first = share(&store, &path);
        let stamp = store.file_stamp(first.base, "").unwrap().unwrap();
        store.stage_file(first.base, "", stamp, &[(first.root, 0, 7)], false).unwrap();
        assert_eq!(share(&store, &path).unread_files, 0);
        assert_eq!(share(&store, &path).unread_files, 1);
    }
}
