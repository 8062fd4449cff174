//! The walk: from a root CID, which nodes are needed next, and at the end the manifest. Knows no peer and no disk; the
//! caller brings each block, from wherever it is.

use std::collections::HashMap;

use crate::{Cid, Codec, DecodeError, MAX_BLOCK_BYTES, Manifest, Node, PathError, RelPath, ShardChild, expand::expand};

/// Bounds of one walk. A root past one of them is refused, whatever its blocks say. What a walk keeps in memory is some
/// 120 bytes per entry, 60 per leaf and per place of one, and the paths twice.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct WalkLimits {
    /// Most distinct nodes. A file of 1 TiB has 4,000; every directory is one or more.
    pub nodes: usize,
    /// Most distinct leaves. 1 TiB in chunks of 72 KiB has 15 million, in those of large files 4.
    pub leaves: usize,
    /// Most entries (files, directories, symlinks).
    pub entries: usize,
    /// Most bytes of all paths and symlink targets together.
    pub path_bytes: usize,
    /// Most stretches of all files together: leaves, each counted wherever it occurs.
    pub extents: usize,
    /// Most file bytes held inside nodes, in all files together (foreign DAGs without raw leaves): they are kept in memory.
    pub inline_bytes: usize,
}

impl Default for WalkLimits {
    fn default() -> Self {
        Self {
            nodes: 1 << 20,
            leaves: 1 << 24,
            entries: 1 << 21,
            path_bytes: 256 << 20,
            extents: 1 << 24,
            inline_bytes: 64 << 20,
        }
    }
}

/// Learns a DAG node by node: [`Walk::next_needed`], [`Walk::insert`] that block, until nothing is needed, then
/// [`Walk::finish`].
#[derive(Debug)]
pub struct Walk {
    pub(crate) root: Cid,
    pub(crate) limits: WalkLimits,
    /// What was inserted, in the order of insertion.
    pub(crate) known: Vec<Known>,
    /// In the same order.
    pub(crate) cids: Vec<Cid>,
    pub(crate) index: HashMap<Cid, u32>,
    /// What is still to visit, the next one last. The last one is not known yet.
    pending: Vec<Cid>,
    counted: Counted,
}

/// A block that was inserted.
#[derive(Debug)]
pub(crate) enum Known {
    Node(Node),
    /// A leaf that had to be seen for its length.
    Leaf(u32),
}

/// What the distinct nodes hold together. Each occurs at least once in the expanded tree, so that more than the limits
/// allow here is more than they allow in the end.
#[derive(Copy, Clone, Debug, Default)]
struct Counted {
    entries: usize,
    name_bytes: usize,
    links: usize,
    inline_bytes: usize,
}

impl Walk {
    /// Begins at `root`.
    pub fn new(root: Cid, limits: WalkLimits) -> Self {
        let pending = if root.is_empty_leaf() { Vec::new() } else { vec![root] };
        Self {
            root,
            limits,
            known: Vec::new(),
            cids: Vec::new(),
            index: HashMap::new(),
            pending,
            counted: Counted::default(),
        }
    }

    /// The block to insert next: nodes in depth-first pre-order, each once, the same sequence for everyone. Mostly dag-pb;
    /// raw where nothing but the block itself tells its length (a root that is one leaf). `None` when all are in.
    pub fn next_needed(&self) -> Option<Cid> {
        self.pending.last().copied()
    }

    /// Takes the block that [`Walk::next_needed`] named, and hashes it. After an error the walk is as before.
    ///
    /// # Errors
    /// [`WalkError`]; [`WalkError::is_sender_fault`] tells a bad block from a bad root.
    pub fn insert(&mut self, cid: &Cid, bytes: &[u8]) -> Result<(), WalkError> {
        if self.next_needed() != Some(*cid) {
            return Err(WalkError::NotNeeded(*cid));
        }
        if !cid.verify(bytes) {
            return Err(WalkError::WrongHash(*cid));
        }
        if self.known.len() >= self.limits.nodes {
            return Err(WalkError::Limit { what: "nodes", limit: self.limits.nodes });
        }
        let known = self.decode(cid, bytes).map_err(|source| WalkError::Node { cid: *cid, source })?;
        if let Known::Node(node) = &known {
            self.counted = self.counted.with(node, &self.limits)?;
        }
        self.pending.pop();
        self.index.insert(*cid, self.known.len() as u32);
        self.cids.push(*cid);
        if let Known::Node(node) = &known {
            let first = self.pending.len();
            push_needed(node, &mut self.pending);
            self.pending[first..].reverse();
        }
        self.known.push(known);
        while self.pending.last().is_some_and(|cid| self.index.contains_key(cid)) {
            self.pending.pop();
        }
        Ok(())
    }

    /// The manifest. Here the tree is expanded, so that what is only wrong in the whole comes out: the same leaf with two
    /// sizes, a name twice in one sharded directory, a path too long, more entries than allowed.
    ///
    /// # Errors
    /// [`WalkError`]: [`WalkError::Incomplete`], or the root is not acceptable.
    pub fn finish(self) -> Result<Manifest, WalkError> {
        match self.next_needed() {
            Some(cid) => Err(WalkError::Incomplete(cid)),
            None => expand(self),
        }
    }

    fn decode(&self, cid: &Cid, bytes: &[u8]) -> Result<Known, DecodeError> {
        match cid.codec() {
            Codec::DagPb => Node::decode(cid, bytes).map(Known::Node),
            Codec::Raw if bytes.len() > MAX_BLOCK_BYTES => Err(DecodeError::BlockTooLarge(bytes.len())),
            Codec::Raw => Ok(Known::Leaf(bytes.len() as u32)),
        }
    }
}

/// Pushes what has to be seen before `node` can be expanded, in order.
fn push_needed(node: &Node, out: &mut Vec<Cid>) {
    let unsized_leaf = |entry: &crate::DirEntry| claimed_len(entry.cid, entry.dag_size).is_none();
    match node {
        Node::File { links, .. } => {
            out.extend(links.iter().map(|link| link.cid).filter(|cid| cid.codec() == Codec::DagPb));
        }
        Node::Directory { entries } => {
            out.extend(entries.iter().filter(|entry| unsized_leaf(entry)).map(|entry| entry.cid));
        }
        Node::HamtShard { children, .. } => out.extend(children.iter().filter_map(|child| match child {
            ShardChild::Shard(cid) => Some(*cid),
            ShardChild::Entry(entry) => unsized_leaf(entry).then_some(entry.cid),
        })),
        Node::Symlink { .. } => {}
    }
}

/// The length of a raw entry of a directory as far as its link tells: some tools write no `Tsize`, or zero.
pub(crate) fn claimed_len(cid: Cid, dag_size: Option<u64>) -> Option<u64> {
    match cid.codec() {
        Codec::DagPb => None,
        Codec::Raw if cid.is_empty_leaf() => Some(0),
        Codec::Raw => dag_size.filter(|&size| size > 0),
    }
}

impl Counted {
    fn with(mut self, node: &Node, limits: &WalkLimits) -> Result<Self, WalkError> {
        match node {
            Node::File { links, inline, .. } => {
                self.links += links.len();
                self.inline_bytes += inline.len();
            }
            Node::Directory { entries } => entries.iter().for_each(|entry| self.entry(&entry.name)),
            Node::HamtShard { children, .. } => children.iter().for_each(|child| match child {
                ShardChild::Entry(entry) => self.entry(&entry.name),
                ShardChild::Shard(_) => self.links += 1,
            }),
            Node::Symlink { target } => self.name_bytes += target.len(),
        }
        within("entries", self.entries, limits.entries)?;
        within("bytes of paths", self.name_bytes, limits.path_bytes)?;
        // Every link inside a file or to a shard leads to a stretch, an entry or a node; the nodes are for chains of those.
        let links = limits.extents.saturating_add(limits.entries).saturating_add(limits.nodes);
        within("links", self.links, links)?;
        within("bytes of files inside nodes", self.inline_bytes, limits.inline_bytes)?;
        Ok(self)
    }

    fn entry(&mut self, name: &str) {
        self.entries += 1;
        self.name_bytes += name.len();
    }
}

/// An error where `count` is past `limit`.
pub(crate) fn within(what: &'static str, count: usize, limit: usize) -> Result<(), WalkError> {
    if count > limit { Err(WalkError::Limit { what, limit }) } else { Ok(()) }
}

/// Why a walk cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalkError {
    /// The bytes are not the block of that CID.
    #[error("the bytes received for {0} do not have its hash")]
    WrongHash(Cid),
    /// A block that is not needed now.
    #[error("{0} was not asked for")]
    NotNeeded(Cid),
    /// Nodes are still missing.
    #[error("the walk of the DAG is not complete: {0} is missing")]
    Incomplete(Cid),
    /// A block is no UnixFS node.
    #[error("node {cid} is malformed: {source}")]
    Node {
        /// The block.
        cid: Cid,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// More than [`WalkLimits`] allow.
    #[error("the content has more than {limit} {what}, which is the limit")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: usize,
    },
    /// A file or a sharded directory has more than [`crate::MAX_DEPTH`] nodes on top of each other.
    #[error("\"{0}\" has more than 32 nodes on top of each other")]
    TooDeep(RelPath),
    /// A path that is too long or too deep.
    #[error("a path below \"{parent}\" cannot be: {source}")]
    Path {
        /// The directory.
        parent: RelPath,
        /// What is wrong.
        source: PathError,
    },
    /// A name twice in one sharded directory.
    #[error("the directory \"{parent}\" has two entries named \"{}\"", crate::printable(.name))]
    Duplicate {
        /// The directory.
        parent: RelPath,
        /// The name, not escaped.
        name: Box<str>,
    },
    /// A node where another kind of node belongs, such as a directory inside a file.
    #[error("node {cid} in \"{path}\" is not {expected}")]
    Kind {
        /// The node.
        cid: Cid,
        /// Where it stands.
        path: RelPath,
        /// What belongs there.
        expected: &'static str,
    },
    /// A node, or a leaf, that two parents claim different sizes for, or that is not as large as its parent claims.
    #[error("{cid} is said to hold {} bytes and {} bytes", sizes.0, sizes.1)]
    SizeConflict {
        /// The node or leaf.
        cid: Cid,
        /// The two sizes.
        sizes: (u64, u64),
    },
    /// A leaf that claims to be longer than any block, or empty without being the empty block.
    #[error("leaf {cid} is said to have {len} bytes, which cannot be")]
    LeafSize {
        /// The leaf.
        cid: Cid,
        /// The claimed length.
        len: u64,
    },
}

impl WalkError {
    /// Whether whoever sent the block is to blame. Otherwise the root itself is malformed or too large, and no other
    /// sender helps.
    pub fn is_sender_fault(&self) -> bool {
        matches!(self, Self::WrongHash(_) | Self::NotNeeded(_))
    }
}
