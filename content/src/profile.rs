//! Import profiles: every parameter that decides which CID a file or tree gets, under one name.
//!
//! A profile never changes once released, since a changed one would give the same content another name; a better set of
//! parameters gets a new name. Reading a DAG depends on no profile.

use crate::{HashKind, gear};

/// Where a file is cut into chunks.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Chunking {
    /// Chunks of this many bytes, the last one shorter.
    Fixed(usize),
    /// Content-defined cuts, so that an insertion moves only the chunks around it.
    FastCdc(FastCdc),
}

/// Parameters of FastCDC (Xia et al., "The Design of Fast Content-Defined Chunking", IEEE TPDS 2020), all in bytes and even.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct FastCdc {
    /// No cut is looked for before this length.
    pub min: usize,
    /// The normal size, at which the judgement changes from strict to lax.
    pub normal: usize,
    /// A chunk is cut here at the latest.
    pub max: usize,
    /// Normalization level: how many bits the mask is stricter before the normal size, and laxer after it. The binary
    /// logarithm of `normal`, plus and minus this, stays within 6 and 24.
    pub level: u32,
}

/// Every parameter that decides which CID a file or tree gets.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[non_exhaustive]
pub struct Profile {
    /// The name, for settings and records.
    pub name: &'static str,
    /// The hash that names blocks.
    pub hash: HashKind,
    /// Where files are cut.
    pub chunking: Chunking,
    /// Where those are cut instead that are longer than so many bytes and no archive; see [`Profile::for_plain_file`].
    pub large: Option<(u64, Chunking)>,
    /// Archives are cut at their entries first, see [`crate::Seams`]: those longer than this many bytes become chunks of
    /// their own. `None`: an archive is cut like any file.
    pub entries_over: Option<u64>,
    /// Most links in a node of a file.
    pub links_per_node: usize,
    /// A directory whose plain block is longer than this many bytes becomes a HAMT.
    pub hamt_over_bytes: usize,
    /// Whether the executable bit is kept.
    pub keep_mode: bool,
}

/// Shoal's own profile, the default.
///
/// The normal size weighs what an edit costs to move again (a chunk or two), and how soon a crowd can pass on what it
/// has begun to get, against the cost of each chunk (an index record, a share of a message). A crowd needs some thousand
/// chunks: with 480 of 280 KiB one of 24 at 20 Mbit/s took 1.34 times the bound for 134 MB, with four times as many 1.25. A
/// large file has enough of them at four times the length, and its index stays as small. What is an archive is cut in short
/// chunks whatever its length, so that its entries have those that they have as files.
///
/// The maximum keeps blocks within what IPFS implementations pass on. Level 2 is what the paper found
/// to deduplicate best: lengths gather closely (mean 1.1 times the normal size on random data), and practically no chunk is
/// cut by the maximum, which is a cut that moves with every insertion.
///
/// An entry of an archive up to 1 KiB costs less to move again, compressed, than the two chunks more that it would take to
/// keep it apart: some 50 bytes of node each, an index record each, a hash each on both sides.
pub const SHOAL_V1: Profile = Profile {
    name: "shoal-v1",
    hash: HashKind::Blake3,
    chunking: Chunking::FastCdc(FastCdc { min: 16 << 10, normal: 64 << 10, max: 256 << 10, level: 2 }),
    large: Some((512 << 20, Chunking::FastCdc(FastCdc { min: 64 << 10, normal: 256 << 10, max: 1 << 20, level: 2 }))),
    entries_over: Some(1024),
    links_per_node: 1024,
    hamt_over_bytes: 256 << 10,
    keep_mode: true,
};

/// IPFS's profile of that name (specification IPIP-0499): what kubo and Helia give the same content with it.
pub const UNIXFS_V1_2025: Profile = Profile {
    name: "unixfs-v1-2025",
    hash: HashKind::Sha2_256,
    chunking: Chunking::Fixed(1 << 20),
    large: None,
    entries_over: None,
    links_per_node: 1024,
    hamt_over_bytes: 256 << 10,
    keep_mode: false,
};

impl Profile {
    /// The profile to cut a file of `len` bytes with that is no archive, as [`crate::Seams::is_plain`] tells. It differs from
    /// this one in its cuts only.
    pub fn for_plain_file(&self, len: u64) -> Profile {
        match self.large {
            Some((over, chunking)) if len > over => Profile { chunking, large: None, ..*self },
            _ => *self,
        }
    }

    /// Longest chunk this profile makes, in bytes.
    pub const fn max_chunk(&self) -> usize {
        match self.chunking {
            Chunking::Fixed(size) => size,
            Chunking::FastCdc(cdc) => cdc.max,
        }
    }

    /// Length of the chunk at the start of `data`, in bytes. `data` begins at a chunk's start and holds at least
    /// [`Profile::max_chunk`] bytes or runs to the next seam ([`crate::Seams`]) or to the end of the file. 0 only for empty
    /// data.
    pub fn cut(&self, data: &[u8]) -> usize {
        match self.chunking {
            Chunking::Fixed(size) => size.min(data.len()),
            Chunking::FastCdc(cdc) => cdc.cut(data),
        }
    }
}

impl FastCdc {
    fn cut(&self, data: &[u8]) -> usize {
        let bits = self.normal.ilog2();
        let strict = fastcdc::v2020::MASKS[(bits + self.level) as usize];
        let lax = fastcdc::v2020::MASKS[(bits - self.level) as usize];
        gear::cut(data, [self.min, self.normal, self.max], strict, lax)
    }
}
