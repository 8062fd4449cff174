//! The small values of the store's API: ids, stamps, options, statistics, damage reports.
//! No behaviour and no IO lives here.

use std::path::PathBuf;

use shoal_content::Cid;

use crate::{KeyCost, Passphrase};

/// The largest block, in bytes: 2 MiB, IPFS's limit. Ours are at most 1 MiB; foreign DAGs may go up to this.
pub const MAX_BLOCK_BYTES: usize = 2 << 20;

/// The memory that staged and not yet committed references may take, in bytes (estimated): 16 MiB, some 110,000 blocks.
/// A call that stages beyond it commits. While a commit runs, what it writes is held besides.
pub const MAX_STAGED_BYTES: usize = 16 << 20;

/// How a store is opened. `Options::default()` is right for a daemon.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory for the index's page cache, in bytes. Default 16 MiB: the inner pages of an index of a few million
    /// chunks; leaves beyond it are served by the operating system's page cache.
    pub cache_bytes: usize,
    /// A pack is closed and the next one begun when it would grow past this many bytes. Default 1 GiB.
    pub pack_bytes: u64,
    /// The most that packs and index may take, in bytes. Default 64 GiB. The files that references point to are the
    /// user's and do not count.
    pub quota_bytes: u64,
    /// A store that is made is encrypted, and one that is there must be. Default false: an existing store is what it is.
    pub encrypt: bool,
    /// What an encrypted store is opened with. Given for a plain one, that does not open: whoever gives a passphrase
    /// counts on it.
    pub passphrase: Option<Passphrase>,
    /// What it costs to try a passphrase of an encrypted store that is made.
    pub key_cost: KeyCost,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache_bytes: 16 << 20,
            pack_bytes: 1 << 30,
            quota_bytes: 64 << 30,
            encrypt: false,
            passphrase: None,
            key_cost: KeyCost::default(),
        }
    }
}

/// Names an absolute path (a file or a directory) that references hang off. Stable for the life of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct BaseId(pub(crate) u32);

/// What a file looked like when it was indexed. A hint for the user's sake; trust comes from the hash at read alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Size in bytes.
    pub size: u64,
    /// Modification time in nanoseconds since the Unix epoch (negative before it).
    pub mtime_ns: i64,
}

/// How a location turned out to be bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamageKind {
    /// The file is no longer there, or no longer a regular file.
    Vanished,
    /// The file ends before the block does.
    Short,
    /// The bytes are not those of the block any more.
    Mismatch,
}

/// One file (or pack) in which reads found bad blocks. Their locations have left the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The user's file, or the pack.
    pub path: PathBuf,
    /// True if `path` is one of the store's own packs: then the disk, not the user, changed it.
    pub in_pack: bool,
    /// What the first bad block looked like.
    pub kind: DamageKind,
    /// The first block found bad.
    pub cid: Cid,
    /// Where in the file it should have been, in bytes.
    pub offset: u64,
    /// How many bad blocks were found in this file since the last [`take_damage`](crate::Store::take_damage).
    pub blocks: u64,
}

/// Counts and bytes of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Distinct blocks in the committed index.
    pub blocks: u64,
    /// Blocks staged and not yet durable (some may be in the index as well).
    pub staged_blocks: u64,
    /// Files that references point into, committed.
    pub files: u64,
    /// Base paths.
    pub bases: u64,
    /// Roots, committed.
    pub roots: u64,
    /// Pack files.
    pub packs: u64,
    /// Bytes of all pack files, record headers included.
    pub pack_bytes: u64,
    /// Length of the index file in bytes.
    pub index_bytes: u64,
}
