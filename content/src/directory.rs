//! Building directories and symlinks: plain dag-pb nodes, and HAMT shards for the large ones.

use crate::{Block, Link, PathError, Profile};

/// Builds a directory from its entries, which need no order; its nodes are pushed to `out`, children before parents. A
/// directory whose plain block would be longer than the profile's threshold becomes a HAMT.
///
/// # Errors
/// [`DirError`]; `out` may then hold blocks that nothing refers to.
pub fn directory(profile: &Profile, entries: Vec<(String, Link)>, out: &mut Vec<Block>) -> Result<Link, DirError> {
    todo!("{} {} {}", profile.name, entries.len(), out.len())
}

/// Builds a symlink. The target is kept as it is; where it leads is judged by whoever writes it to a disk.
///
/// # Errors
/// [`DirError::Target`] where it is empty, holds a NUL or is longer than [`crate::MAX_SYMLINK_BYTES`].
pub fn symlink(profile: &Profile, target: &str) -> Result<(Link, Block), DirError> {
    todo!("{} {target}", profile.name)
}

/// Why a directory cannot be built.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DirError {
    /// A name that no destination could take.
    #[error(transparent)]
    Name(#[from] PathError),
    /// The same name twice.
    #[error("the directory has two entries named \"{}\"", .0.escape_debug())]
    Duplicate(String),
    /// More names share one hash than a HAMT can hold apart. Only made-up names do.
    #[error("\"{}\" and other names of its directory collide in all 64 bits of their hash; rename one", .0.escape_debug())]
    Collision(String),
    /// A symlink target that cannot be kept.
    #[error("symlink target \"{}\" is empty, longer than 4,096 bytes or holds a NUL", .0.escape_debug())]
    Target(String),
}
