//! The manifest: what a root holds, as entries and leaves, once all of its nodes are known.

use std::ops::Range;

use crate::{Cid, RelPath};

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

/// What a root holds. Immutable; made by [`crate::Walk::finish`].
#[derive(Clone, Debug)]
pub struct Manifest {
    root: Cid,
    leaves: Vec<Leaf>,
    entries: Vec<Entry>,
    nodes: Vec<Cid>,
}

impl Manifest {
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
        todo!()
    }

    /// Number of files.
    pub fn file_count(&self) -> usize {
        todo!()
    }

    /// The stretches of a file, in file order; none for what is no file.
    pub fn pieces(&self, entry: u32) -> impl Iterator<Item = Piece<'_>> {
        todo!("{entry}");
        #[allow(unreachable_code)]
        std::iter::empty()
    }

    /// Everywhere a leaf belongs, in order of entries. Empty for an index out of range.
    pub fn places(&self, leaf: u32) -> &[Place] {
        todo!("{leaf}")
    }

    /// The leaf of this CID.
    pub fn leaf_index(&self, cid: &Cid) -> Option<u32> {
        todo!("{cid}")
    }

    /// What the given paths need: those entries, everything below them and the directories above. No paths means all.
    ///
    /// # Errors
    /// [`SelectError`] naming a path that the root does not hold.
    pub fn select(&self, paths: &[RelPath]) -> Result<Selection, SelectError> {
        todo!("{}", paths.len())
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
    #[error("there is no \"{path}\" in {root}")]
    NotFound {
        /// What was asked for.
        path: RelPath,
        /// Where it was looked for.
        root: Cid,
    },
}
