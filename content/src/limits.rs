//! The bounds of everything this crate decodes, in one table. What they bound comes from strangers; a value past its
//! bound is an error of its own, found before anything is allocated from a number in the input. The bounds of a whole
//! root are in [`crate::WalkLimits`].

/// Largest block accepted, in bytes. IPFS implementations refuse larger ones (bitswap's 2 MiB).
pub const MAX_BLOCK_BYTES: usize = 2 << 20;

/// Most links in one node. Files have at most 1,024 per node, but a plain directory of 256 KiB holds up to 5,825 short
/// names under either profile (a fixture of IPIP-0499 has 4,766), and 7,489 in the form that CIDv0 tools measured it.
pub const MAX_LINKS: usize = 8192;

/// Longest chain of nodes within one file or one sharded directory. A file of 1 TiB has 3, a HAMT cannot have more than
/// 8 of fanout 256; what goes deeper was made to hurt. Directories nest within [`MAX_PATH_BYTES`] and [`MAX_PATH_PARTS`].
pub const MAX_DEPTH: usize = 32;

/// Widest HAMT shard. boxo makes 256 and accepts up to 1,024.
pub const MAX_HAMT_FANOUT: u64 = 1024;

/// Longest name of a directory entry, in bytes: the limit of nearly every file system.
pub const MAX_NAME_BYTES: usize = 255;

/// Longest relative path, in bytes (Linux's `PATH_MAX`).
pub const MAX_PATH_BYTES: usize = 4096;

/// Most parts of a relative path. Real trees stay below 40; the bound keeps whoever opens them one by one from working
/// for long, and 4,096 bytes could hold 2,048.
pub const MAX_PATH_PARTS: usize = 256;

/// Longest symlink target, in bytes (Linux's `PATH_MAX`).
pub const MAX_SYMLINK_BYTES: usize = 4096;

/// Longest link (`shoal:…`), in bytes. About what chat programs and terminals carry whole.
pub const MAX_LINK_TEXT_BYTES: usize = 16 << 10;

/// Most addresses in a link. A peer rarely has more than eight.
pub const MAX_LINK_ADDRS: usize = 32;

/// Longest address in a link, in bytes. A relayed one with two peer identifiers has about 200.
pub const MAX_LINK_ADDR_BYTES: usize = 512;
