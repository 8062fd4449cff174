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
