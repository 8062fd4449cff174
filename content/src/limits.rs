//! The bounds of everything this crate decodes, in one table. What they bound comes from strangers; a value past its
//! bound is an error of its own, found before anything is allocated from a number in the input.

/// Largest block accepted, in bytes. IPFS implementations refuse larger ones (boxo's `MaxBlockSize` and bitswap's 2 MiB).
pub const MAX_BLOCK_BYTES: usize = 2 << 20;

/// Most links in one node. Builders make at most 1,024; the rest is room for foreign profiles and plain directories.
pub const MAX_LINKS: usize = 4096;

/// Deepest chain of nodes below a root, the root being 1. A 1 TiB file has depth 3, paths nest rarely past 20.
pub const MAX_DEPTH: usize = 32;

/// Widest HAMT shard. IPFS makes 256; js and boxo accept up to 1,024.
pub const MAX_HAMT_FANOUT: u64 = 1024;

/// Longest name of a directory entry, in bytes: the limit of Linux, macOS and (nearly) Windows file systems.
pub const MAX_NAME_BYTES: usize = 255;

/// Longest relative path, in bytes (Linux's `PATH_MAX`).
pub const MAX_PATH_BYTES: usize = 4096;

/// Longest symlink target, in bytes (Linux's `PATH_MAX`).
pub const MAX_SYMLINK_BYTES: usize = 4096;
