//! From the nodes of a walk to its manifest: the DAG is expanded into the tree it stands for. A node that occurs in two
//! places was decoded once and is visited twice, so everything here is counted against the limits again.

use std::collections::{HashMap, HashSet, hash_map::Entry as Slot};

use crate::{
    Cid, Codec, DirEntry, Entry, EntryKind, FileLink, Leaf, MAX_BLOCK_BYTES, MAX_DEPTH, Manifest, Node, RelPath,
    ShardChild, Walk, WalkError, WalkLimits,
    build::EXECUTABLE_BITS,
    manifest::{Extents, INLINE},
    walk::{Known, claimed_len, within},
};

/// Expands a complete walk.
pub(crate) fn expand(walk: Walk) -> Result<Manifest, WalkError> {
    let mut tree = Tree {
        walk: &walk,
        entries: Vec::new(),
        leaves: LeafTable::default(),
        extents: Extents::default(),
        path_bytes: 0,
    };
    tree.run()?;
    let Tree { entries, leaves, extents, .. } = tree;
    let leaves = leaves.leaves;
    let Walk { root, cids, .. } = walk;
    Ok(Manifest::new(root, leaves, entries, cids, extents))
}

struct Tree<'a> {
    walk: &'a Walk,
    entries: Vec<Entry>,
    leaves: LeafTable,
    extents: Extents,
    path_bytes: usize,
}

/// A directory, or a shard of one, whose children are being visited.
struct Frame<'a> {
    /// What is still to visit.
    children: Children<'a>,
    /// The directory.
    path: RelPath,
    /// Shards on top of each other in this directory; 0 for a plain one.
    shards: usize,
}

enum Children<'a> {
    Plain(std::slice::Iter<'a, DirEntry>),
    Shard(std::slice::Iter<'a, ShardChild>),
}

impl<'a> Tree<'a> {
    fn run(&mut self) -> Result<(), WalkError> {
        let mut frames = Vec::new();
        // Names seen so far in each sharded directory that is being visited, the innermost last.
        let mut names: Vec<HashSet<&'a str>> = Vec::new();
        frames.extend(self.visit(self.walk.root, None, RelPath::root(), &mut names)?);
        while let Some(frame) = frames.last_mut() {
            let entry = match &mut frame.children {
                Children::Plain(entries) => entries.next(),
                Children::Shard(children) => match children.next() {
                    Some(ShardChild::Shard(cid)) => {
                        let below = self.sub_shard(*cid, frame)?;
                        frames.push(below);
                        continue;
                    }
                    Some(ShardChild::Entry(entry)) => {
                        if names.last_mut().is_some_and(|names| !names.insert(&entry.name)) {
                            return Err(WalkError::Duplicate { parent: frame.path.clone(), name: entry.name.clone() });
                        }
                        Some(entry)
                    }
                    None => None,
                },
            };
            match entry {
                Some(entry) => {
                    let path = frame
                        .path
                        .join(&entry.name)
                        .map_err(|source| WalkError::Path { parent: frame.path.clone(), source })?;
                    frames.extend(self.visit(entry.cid, entry.dag_size, path, &mut names)?);
                }
                None => {
                    if frames.pop().is_some_and(|done| done.shards == 1) {
                        names.pop();
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds the entry at `path`; the frame of its children if it is a directory.
    fn visit(
        &mut self,
        cid: Cid,
        dag_size: Option<u64>,
        path: RelPath,
        names: &mut Vec<HashSet<&'a str>>,
    ) -> Result<Option<Frame<'a>>, WalkError> {
        within("entries", self.entries.len() + 1, self.walk.limits.entries)?;
        self.path_bytes += path.as_str().len();
        let mut below = None;
        let kind = match self.known(cid)? {
            None => self.leaf_file(cid, claimed_len(cid, dag_size).unwrap_or(0))?,
            Some(Known::Leaf(len)) => self.leaf_file(cid, u64::from(*len))?,
            Some(Known::Node(node)) => match node {
                Node::File { inline, links, size, mode } => {
                    let first = self.extents.len();
                    self.file(inline, links, &path, 1)?;
                    let executable = mode.is_some_and(|mode| mode & EXECUTABLE_BITS != 0);
                    EntryKind::File { size: *size, executable, extents: first..self.extents.len() }
                }
                Node::Symlink { target } => {
                    self.path_bytes += target.len();
                    EntryKind::Symlink { target: target.clone() }
                }
                Node::Directory { entries } => {
                    let children = Children::Plain(entries.iter());
                    below = Some(Frame { children, path: path.clone(), shards: 0 });
                    EntryKind::Dir
                }
                Node::HamtShard { children, .. } => {
                    names.push(HashSet::new());
                    below = Some(Frame { children: Children::Shard(children.iter()), path: path.clone(), shards: 1 });
                    EntryKind::Dir
                }
            },
        };
        within("bytes of paths", self.path_bytes, self.walk.limits.path_bytes)?;
        self.entries.push(Entry { path, kind });
        Ok(below)
    }

    fn sub_shard(&self, cid: Cid, above: &Frame<'a>) -> Result<Frame<'a>, WalkError> {
        if above.shards >= MAX_DEPTH {
            return Err(WalkError::TooDeep(above.path.clone()));
        }
        match self.known(cid)? {
            // An empty shard, which nobody makes, would be a way to visit much and find nothing.
            Some(Known::Node(Node::HamtShard { children, .. })) if !children.is_empty() => Ok(Frame {
                children: Children::Shard(children.iter()),
                path: above.path.clone(),
                shards: above.shards + 1,
            }),
            _ => Err(WalkError::Kind { cid, path: above.path.clone(), expected: "a shard of that directory" }),
        }
    }

    /// Adds the extents of a file node, the `depth`th below its entry (that being 1). Recursion ends at [`MAX_DEPTH`].
    fn file(&mut self, inline: &'a [u8], links: &'a [FileLink], path: &RelPath, depth: usize) -> Result<(), WalkError> {
        if depth > MAX_DEPTH {
            return Err(WalkError::TooDeep(path.clone()));
        }
        if !inline.is_empty() {
            self.extents.push_inline(inline);
            self.check_extents()?;
        }
        for link in links {
            match self.known(link.cid)? {
                Some(Known::Node(Node::File { inline, links, size, .. })) => {
                    if *size != link.size {
                        return Err(WalkError::SizeConflict { cid: link.cid, sizes: (*size, link.size) });
                    }
                    // Parts of no bytes are passed over, so that every visit finds something.
                    if link.size > 0 {
                        self.file(inline, links, path, depth + 1)?;
                    }
                }
                Some(Known::Node(_)) => {
                    return Err(WalkError::Kind { cid: link.cid, path: path.clone(), expected: "a part of a file" });
                }
                Some(Known::Leaf(len)) if u64::from(*len) != link.size => {
                    return Err(WalkError::SizeConflict { cid: link.cid, sizes: (u64::from(*len), link.size) });
                }
                Some(Known::Leaf(_)) | None => self.leaf(link.cid, link.size)?,
            }
        }
        Ok(())
    }

    fn leaf_file(&mut self, cid: Cid, size: u64) -> Result<EntryKind, WalkError> {
        let first = self.extents.len();
        self.leaf(cid, size)?;
        Ok(EntryKind::File { size, executable: false, extents: first..self.extents.len() })
    }

    fn leaf(&mut self, cid: Cid, size: u64) -> Result<(), WalkError> {
        match (size, cid.is_empty_leaf()) {
            // Nothing to move.
            (0, true) => Ok(()),
            (0, false) | (_, true) => Err(WalkError::LeafSize { cid, len: size }),
            _ => {
                let leaf = self.leaves.insert(cid, size, &self.walk.limits)?;
                self.extents.push_leaf(leaf);
                self.check_extents()
            }
        }
    }

    fn check_extents(&self) -> Result<(), WalkError> {
        let limits = &self.walk.limits;
        within("stretches of files", self.extents.len() as usize, limits.extents.min(INLINE as usize))?;
        // Offsets of inline bytes are kept in 32 bits.
        within("bytes of files inside nodes", self.extents.inline_bytes(), limits.inline_bytes.min(1 << 31))
    }

    /// What was inserted for `cid`; `None` for a leaf that did not have to be.
    fn known(&self, cid: Cid) -> Result<Option<&'a Known>, WalkError> {
        let walk = self.walk;
        match walk.index.get(&cid) {
            Some(&index) => Ok(walk.known.get(index as usize)),
            None if cid.codec() == Codec::Raw => Ok(None),
            None => Err(WalkError::Incomplete(cid)),
        }
    }
}

/// Gives every distinct leaf its index and holds it to one length.
#[derive(Default)]
struct LeafTable {
    leaves: Vec<Leaf>,
    index: HashMap<Cid, u32>,
}

impl LeafTable {
    /// The index of the leaf `cid`, new or known, that is claimed to have `len` bytes.
    fn insert(&mut self, cid: Cid, len: u64, limits: &WalkLimits) -> Result<u32, WalkError> {
        // No block is longer, so no honest node claims more.
        let claimed = u32::try_from(len).ok().filter(|&len| len as usize <= MAX_BLOCK_BYTES);
        let claimed = claimed.ok_or(WalkError::LeafSize { cid, len })?;
        match self.index.entry(cid) {
            Slot::Occupied(slot) => {
                let known = self.leaves[*slot.get() as usize].len;
                if known != claimed {
                    return Err(WalkError::SizeConflict { cid, sizes: (known.into(), len) });
                }
                Ok(*slot.get())
            }
            Slot::Vacant(slot) => {
                within("leaves", self.leaves.len() + 1, limits.leaves.min(INLINE as usize))?;
                let index = self.leaves.len() as u32;
                self.leaves.push(Leaf { cid, len: claimed });
                slot.insert(index);
                Ok(index)
            }
        }
    }
}
