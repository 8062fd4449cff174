//! The manifest: what a root holds, as entries and leaves, once all of its nodes are known. Only looked things up in;
//! `expand` makes it.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use crate::{Cid, RelPath, path::is_within};

/// A distinct leaf: file bytes to move.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Leaf {
    /// Its name.
    pub cid: Cid,
    /// Its length in bytes, as the DAG claims. A block that has the right hash but another length means that the root is
    /// malformed, not that the peer lied.
    pub len: u32,
}

/// A file, directory or symlink of a root.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Entry {
    /// Where it is; empty for the root itself.
    pub path: RelPath,
    /// What it is.
    pub kind: EntryKind,
}

/// What an entry is.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum EntryKind {
    /// A directory. Its own entries follow it.
    Dir,
    /// A file.
    File {
        /// Bytes.
        size: u64,
        /// Whether any executable bit is recorded.
        executable: bool,
        /// Its extents, for [`Manifest::pieces`].
        extents: Range<u32>,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points, as recorded. Nothing was checked but its length and that it has no NUL.
        target: Box<str>,
    },
}

/// A stretch of a file, from [`Manifest::pieces`].
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Piece<'a> {
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u32,
    /// Where its bytes come from.
    pub source: Source<'a>,
}

/// Where the bytes of a [`Piece`] come from.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Source<'a> {
    /// The leaf of this index.
    Leaf(u32),
    /// A node of the DAG had them inside (foreign DAGs only): here they are, already verified.
    Inline(&'a [u8]),
}

/// Where a leaf belongs, from [`Manifest::places`].
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Place {
    /// Index into [`Manifest::entries`].
    pub entry: u32,
    /// Byte offset in that file.
    pub offset: u64,
}

/// What a root holds. Immutable; made by [`crate::Walk::finish`]. Some 180 bytes per file of one leaf.
#[derive(Clone, Debug)]
pub struct Manifest {
    root: Cid,
    leaves: Vec<Leaf>,
    entries: Vec<Entry>,
    nodes: Vec<Cid>,
    extents: Extents,
    /// Leaf indexes in the order of their digests' prefixes, then of their CIDs.
    by_cid: Vec<u32>,
    /// Where each leaf's places begin in `places`, and one more for the end.
    places_of: Vec<u32>,
    places: Vec<Place>,
    total_bytes: u64,
    file_count: usize,
}

impl Manifest {
    pub(crate) fn new(
        root: Cid,
        mut leaves: Vec<Leaf>,
        mut entries: Vec<Entry>,
        mut nodes: Vec<Cid>,
        mut extents: Extents,
    ) -> Self {
        leaves.shrink_to_fit();
        entries.shrink_to_fit();
        nodes.shrink_to_fit();
        extents.shrink_to_fit();
        // what nearly always decides lies beside the index, since the leaves themselves are far from each other
        let mut by_cid: Vec<(u64, u32)> = leaves.iter().map(|leaf| prefix(&leaf.cid)).zip(0..).collect();
        by_cid.sort_unstable_by(|(a, leaf), (b, other)| {
            a.cmp(b).then_with(|| leaves[*leaf as usize].cid.cmp(&leaves[*other as usize].cid))
        });
        let by_cid = by_cid.into_iter().map(|(_, leaf)| leaf).collect();
        let files = || entries.iter().filter_map(|entry| entry.file_size());
        let (total_bytes, file_count) = (files().fold(0, u64::saturating_add), files().count());
        let mut manifest = Self {
            root,
            leaves,
            entries,
            nodes,
            extents,
            by_cid,
            places_of: Vec::new(),
            places: Vec::new(),
            total_bytes,
            file_count,
        };
        manifest.fill_places();
        manifest
    }

    /// Sorts the places of all leaves by leaf, by counting.
    fn fill_places(&mut self) {
        let mut ends = vec![0u32; self.leaves.len() + 1];
        for leaf in self.extents.leaves() {
            ends[leaf as usize] += 1;
        }
        let mut sum = 0;
        for end in &mut ends {
            sum += *end;
            *end = sum;
        }
        // Filled from the back, so that each end moves down to its beginning.
        let mut places = vec![Place { entry: 0, offset: 0 }; sum as usize];
        for entry in (0..self.entries.len() as u32).rev() {
            let mut offset = self.entries[entry as usize].file_size().unwrap_or(0);
            for extent in self.extent_range(entry).rev() {
                let (source, len) = self.extents.get(extent, &self.leaves);
                offset -= u64::from(len);
                if let Source::Leaf(leaf) = source {
                    ends[leaf as usize] -= 1;
                    places[ends[leaf as usize] as usize] = Place { entry, offset };
                }
            }
        }
        self.places_of = ends;
        self.places = places;
    }

    /// The root.
    pub fn root(&self) -> Cid {
        self.root
    }

    /// Distinct leaves in depth-first order of first occurrence; the index into this is the leaf index on the wire.
    pub fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    /// Entries in depth-first order. A root that is a file or symlink is one entry with an empty path; a root that is a
    /// directory is an entry of kind `Dir` with an empty path, followed by what it holds.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Nodes in depth-first pre-order, each once: what `GetNodes` streams and a [`crate::Walk`] asks for. Mostly dag-pb;
    /// a raw block is among them where nothing but the block itself tells its length (a root that is one leaf).
    pub fn nodes(&self) -> &[Cid] {
        &self.nodes
    }

    /// Bytes of all files.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Number of files.
    pub fn file_count(&self) -> usize {
        self.file_count
    }

    /// The stretches of a file, in file order; none for what is no file and for an index out of range.
    pub fn pieces(&self, entry: u32) -> impl Iterator<Item = Piece<'_>> {
        self.extent_range(entry).scan(0, |offset, extent| {
            let (source, len) = self.extents.get(extent, &self.leaves);
            let piece = Piece { offset: *offset, len, source };
            *offset += u64::from(len);
            Some(piece)
        })
    }

    fn extent_range(&self, entry: u32) -> Range<u32> {
        match self.entries.get(entry as usize).map(|entry| &entry.kind) {
            Some(EntryKind::File { extents, .. }) => extents.clone(),
            _ => 0..0,
        }
    }

    /// Everywhere a leaf belongs, in order of entries. Empty for an index out of range.
    pub fn places(&self, leaf: u32) -> &[Place] {
        match self.places_of.get(leaf as usize..) {
            Some([from, to, ..]) => &self.places[*from as usize..*to as usize],
            _ => &[],
        }
    }

    /// The leaf of this CID.
    pub fn leaf_index(&self, cid: &Cid) -> Option<u32> {
        let key = |cid: Cid| (prefix(&cid), cid);
        let at = self.by_cid.binary_search_by_key(&key(*cid), |&leaf| key(self.leaves[leaf as usize].cid)).ok()?;
        Some(self.by_cid[at])
    }

    /// What the given paths need: those entries, everything below them and the directories above. No paths means all.
    ///
    /// # Errors
    /// [`SelectError`] naming a path that the root does not hold.
    pub fn select(&self, paths: &[RelPath]) -> Result<Selection, SelectError> {
        // What was asked for, and whether it was found; and the directories above.
        let mut asked: HashMap<&str, bool> = paths.iter().map(|path| (path.as_str(), false)).collect();
        let mut above: HashSet<&str> = HashSet::new();
        for path in paths.iter().map(RelPath::as_str).filter(|path| !path.is_empty()) {
            above.insert("");
            above.extend(path.match_indices('/').map(|(end, _)| &path[..end]));
        }
        let mut selection = Selection { entries: Vec::new(), leaves: Vec::new(), bytes: 0 };
        let mut needed = vec![false; self.leaves.len()];
        // Entries are in depth-first order, so that what is below a selected one follows it.
        let mut inside = paths.is_empty().then_some("");
        for (index, entry) in (0u32..).zip(&self.entries) {
            let path = entry.path.as_str();
            if let Some(found) = asked.get_mut(path) {
                *found = true;
                inside = inside.filter(|base| is_within(path, base)).or(Some(path));
            }
            if inside.is_some_and(|base| is_within(path, base)) {
                selection.entries.push(index);
                selection.bytes = selection.bytes.saturating_add(entry.file_size().unwrap_or(0));
                for extent in self.extent_range(index) {
                    if let (Source::Leaf(leaf), _) = self.extents.get(extent, &self.leaves) {
                        needed[leaf as usize] = true;
                    }
                }
            } else if above.contains(path) {
                selection.entries.push(index);
            }
        }
        if let Some(path) = paths.iter().find(|path| asked.get(path.as_str()) == Some(&false)) {
            return Err(SelectError::NotFound { path: path.clone(), root: self.root });
        }
        selection.leaves = (0u32..).zip(needed).filter_map(|(leaf, needed)| needed.then_some(leaf)).collect();
        Ok(selection)
    }
}

impl Entry {
    /// Bytes of a file; `None` for what is no file.
    pub fn file_size(&self) -> Option<u64> {
        match self.kind {
            EntryKind::File { size, .. } => Some(size),
            _ => None,
        }
    }
}

/// The bit of an extent that says it is inline: the rest is then an index into the inline stretches, else a leaf index.
pub(crate) const INLINE: u32 = 1 << 31;

/// The stretches of all files, one number each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extents {
    extents: Vec<u32>,
    inline: Vec<u8>,
    /// Where each inline stretch ends in `inline`.
    inline_ends: Vec<u32>,
}

impl Extents {
    /// The caller keeps this below [`INLINE`].
    pub(crate) fn len(&self) -> u32 {
        self.extents.len() as u32
    }

    pub(crate) fn inline_bytes(&self) -> usize {
        self.inline.len()
    }

    pub(crate) fn push_leaf(&mut self, leaf: u32) {
        self.extents.push(leaf);
    }

    pub(crate) fn push_inline(&mut self, bytes: &[u8]) {
        self.extents.push(INLINE | self.inline_ends.len() as u32);
        self.inline.extend_from_slice(bytes);
        self.inline_ends.push(self.inline.len() as u32);
    }

    fn shrink_to_fit(&mut self) {
        self.extents.shrink_to_fit();
        self.inline.shrink_to_fit();
        self.inline_ends.shrink_to_fit();
    }

    fn get(&self, extent: u32, leaves: &[Leaf]) -> (Source<'_>, u32) {
        let number = self.extents[extent as usize];
        if number & INLINE == 0 {
            return (Source::Leaf(number), leaves[number as usize].len);
        }
        let index = (number & !INLINE) as usize;
        let from = index.checked_sub(1).map_or(0, |before| self.inline_ends[before]);
        let to = self.inline_ends[index];
        (Source::Inline(&self.inline[from as usize..to as usize]), to - from)
    }

    fn leaves(&self) -> impl Iterator<Item = u32> + '_ {
        self.extents.iter().copied().filter(|extent| extent & INLINE == 0)
    }
}

/// A part of a manifest.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Selection {
    /// Indexes of the selected entries and of the directories above them, ascending.
    pub entries: Vec<u32>,
    /// Indexes of the leaves that the selected files need, ascending.
    pub leaves: Vec<u32>,
    /// Bytes of the selected files.
    pub bytes: u64,
}

/// Why a selection cannot be made.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// No such entry.
    #[error("there is no \"{path}\" in {root}; leave the path out to see what there is")]
    NotFound {
        /// What was asked for.
        path: RelPath,
        /// Where it was looked for.
        root: Cid,
    },
}

/// The first bytes of a digest, as a number.
fn prefix(cid: &Cid) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *cid.digest();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}
