//! Building the DAG of a file: leaves go in as they are cut, nodes come out as they fill. The layout is boxo's *balanced*
//! one: all leaves at one depth, filled from the left, a level added only when the one below is full.
//!
//! Memory is bounded by width times depth, not by the file. Nothing here holds file bytes.

use bytes::Bytes;

use crate::{
    Cid, Codec, Profile,
    dagpb::{Encoder, data_len, link_len},
    unixfs,
};

/// The mode recorded for an executable file. One value for all, so that the same file gets the same CID wherever it was
/// shared from, whatever the umask.
const EXECUTABLE_MODE: u32 = 0o755;

/// Bits of a mode that make a file executable, for anyone.
pub(crate) const EXECUTABLE_BITS: u32 = 0o111;

/// A block and its name.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Block {
    /// The name.
    pub cid: Cid,
    /// The bytes.
    pub bytes: Bytes,
}

/// What a parent records of a child.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Link {
    /// The child.
    pub cid: Cid,
    /// Bytes of file content below it.
    pub size: u64,
    /// Bytes of all blocks below it and its own, duplicates counted (dag-pb's `Tsize`).
    pub dag_size: u64,
}

impl Link {
    /// The link to a raw leaf of `len` bytes.
    pub fn leaf(cid: Cid, len: u32) -> Self {
        Self { cid, size: len.into(), dag_size: len.into() }
    }
}

/// Builds the DAG of one file from its chunks: [`FileBuilder::leaf`] for each in file order, then
/// [`FileBuilder::finish`].
#[derive(Debug)]
pub struct FileBuilder {
    profile: Profile,
    executable: bool,
    /// The unfinished node of each level, leaves' parents first. Never empty but before the first leaf; a full one is
    /// closed only when its level gets another link, so that a file of exactly one full node has that as its root.
    levels: Vec<Vec<Link>>,
}

impl FileBuilder {
    /// A file of `mode` (Unix permission bits; only the executable bits count, and only where the profile keeps them).
    pub fn new(profile: &Profile, mode: Option<u32>) -> Self {
        let executable = profile.keep_mode && mode.is_some_and(|mode| mode & EXECUTABLE_BITS != 0);
        Self { profile: *profile, executable, levels: Vec::new() }
    }

    /// Adds the next chunk, whose bytes the caller keeps; a node that became full is pushed to `out`. A chunk of no bytes
    /// adds nothing.
    pub fn leaf(&mut self, cid: Cid, len: u32, out: &mut Vec<Block>) {
        if len > 0 {
            self.push(0, Link::leaf(cid, len), out);
        }
    }

    /// Ends the file; the remaining nodes are pushed to `out`, children before parents. A file of one chunk that is not
    /// executable is that chunk itself; an empty one is the empty raw block, which is pushed.
    pub fn finish(mut self, out: &mut Vec<Block>) -> Link {
        let mut level = 0;
        // `push` may add levels, so their number is asked for anew.
        while level + 1 < self.levels.len() {
            let node = self.close(level, out);
            self.push(level + 1, node, out);
            level += 1;
        }
        let links = self.levels.pop().unwrap_or_default();
        match links[..] {
            [leaf] if !self.executable => leaf,
            [] if !self.executable => {
                let bytes = Bytes::new();
                let cid = Cid::of(Codec::Raw, self.profile.hash, &bytes);
                out.push(Block { cid, bytes });
                Link::leaf(cid, 0)
            }
            _ => file_node(&self.profile, &links, self.executable.then_some(EXECUTABLE_MODE), out),
        }
    }

    fn push(&mut self, level: usize, link: Link, out: &mut Vec<Block>) {
        if level == self.levels.len() {
            self.levels.push(Vec::new());
        }
        if self.levels[level].len() >= self.profile.links_per_node {
            let full = self.close(level, out);
            self.push(level + 1, full, out);
        }
        self.levels[level].push(link);
    }

    fn close(&mut self, level: usize, out: &mut Vec<Block>) -> Link {
        let links = std::mem::take(&mut self.levels[level]);
        file_node(&self.profile, &links, None, out)
    }
}

fn file_node(profile: &Profile, links: &[Link], mode: Option<u32>, out: &mut Vec<Block>) -> Link {
    let size = links.iter().fold(0u64, |sum, link| sum.saturating_add(link.size));
    let data = unixfs::file(links.iter().map(|link| link.size), size, mode);
    let capacity = data_len(data.len()) + links.iter().map(|link| link_len(0, link.dag_size)).sum::<usize>();
    let mut node = Encoder::with_capacity(capacity);
    for link in links {
        node.link("", "", link);
    }
    seal(profile, node, &data, links.iter(), out)
}

/// Ends a node whose children are `links`, and pushes its block.
pub(crate) fn seal<'a>(
    profile: &Profile,
    node: Encoder,
    data: &[u8],
    links: impl Iterator<Item = &'a Link>,
    out: &mut Vec<Block>,
) -> Link {
    let bytes = Bytes::from(node.finish(data));
    let cid = Cid::of(Codec::DagPb, profile.hash, &bytes);
    let own = Link { cid, size: 0, dag_size: bytes.len() as u64 };
    out.push(Block { cid, bytes });
    // Sums of sizes that the caller claims, and of duplicates counted again: they saturate rather than wrap.
    links.fold(own, |sum, link| Link {
        size: sum.size.saturating_add(link.size),
        dag_size: sum.dag_size.saturating_add(link.dag_size),
        ..sum
    })
}
