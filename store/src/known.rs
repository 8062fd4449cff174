//! What is known of a file from the last time it was read: the tree that its content has, if all of that is still here.
//! Looked up only; what makes a file count as untouched is decided by `import`.

use shoal_content::{Cid, Codec, EntryKind, Link, Source};

use crate::{
    BaseId, Hold, ReadError, Store, StoreError,
    error::ManifestError,
    inner::Inner,
    value::{FileId, Loc, MAX_LOCATIONS, Place},
};

/// The tree of a file that need not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) link: Link,
    pub(crate) chunks: u64,
    pub(crate) nodes: u64,
}

impl Store {
    /// The tree of a file of which `print` is remembered, if every node of it is here and every leaf is where it was. From
    /// then on `hold` keeps it. `None` whenever there is a doubt: then the file is to be read.
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
        if link.cid.codec() == Codec::Raw {
            let here = u32::try_from(size).is_ok_and(|len| link.dag_size == size && len > 0)
                && self.inner.is_at(hold, &link.cid, Loc { place: Place::File(id), offset: 0, len: size as u32 })?;
            return Ok(here.then_some(Known { link, chunks: 1, nodes: 0 }));
        }
        self.known_tree(hold, id, link)
    }

    fn known_tree(&self, hold: &Hold, id: FileId, link: Link) -> Result<Option<Known>, StoreError> {
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
        let mut chunks = 0;
        for piece in manifest.pieces(0) {
            let Source::Leaf(leaf) = piece.source else { return Ok(None) };
            let Some(leaf) = manifest.leaves().get(leaf as usize) else { return Ok(None) };
            let loc = Loc { place: Place::File(id), offset: piece.offset, len: piece.len };
            if !self.inner.is_at(hold, &leaf.cid, loc)? {
                return Ok(None);
            }
            chunks += 1;
        }
        Ok(Some(Known { link, chunks, nodes: manifest.nodes().len() as u64 }))
    }
}

impl Inner {
    /// Whether a leaf is at this place of a file, as far as the index knows. One that has as many places as are kept may have
    /// lost this one to them, and can be read there as well.
    fn is_at(&self, hold: &Hold, cid: &Cid, loc: Loc) -> Result<bool, StoreError> {
        let locs = self.locate(cid)?;
        if locs.contains(&loc) {
            return Ok(true);
        }
        if locs.len() < MAX_LOCATIONS {
            return Ok(false);
        }
        // This place is kept with its base; the others have to be kept as the block.
        hold.keep(cid);
        Ok(self.locate(cid)?.len() >= MAX_LOCATIONS)
    }
}
