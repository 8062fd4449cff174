//! Why a destination cannot be written, by what the user can do about it.

use std::{io, path::PathBuf};

use shoal_content::{PathError, RelPath, SelectError};

use crate::{StoreError, error::advice, import::shown};

/// Why a destination cannot be written. What is in place stays in place: the same fetch goes on from there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckoutError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}; {}, then fetch again",
        shown(.path), advice(.source, "check that the destination is there and writable"))]
    Io {
        /// What was tried, as a verb: "create", "write".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The disk is too small for what is still missing, or the user's quota is.
    #[error(
        "not enough space for {}: {needed} more bytes are needed and {free} are free; \
         free some, or fetch to another disk", shown(.path)
    )]
    NoSpace {
        /// What was to be written.
        path: PathBuf,
        /// Bytes still missing.
        needed: u64,
        /// Bytes free for this user.
        free: u64,
    },
    /// Something else is where the content should go. It was not touched.
    #[error("{} exists already and holds something else; move it away, or fetch to another directory", shown(.path))]
    Exists {
        /// The destination.
        path: PathBuf,
    },
    /// Another fetch writes to the same partial destination.
    #[error("another fetch is writing to {}; wait for it, or fetch to another directory", shown(.path))]
    Busy {
        /// The partial destination.
        path: PathBuf,
    },
    /// Two names that this file system does not tell apart.
    #[error(
        "\"{first}\" and \"{second}\" are the same name on the file system of {}, which ignores case; \
         fetch to another file system, or fetch one of them by its path", shown(.path)
    )]
    CaseClash {
        /// One.
        first: RelPath,
        /// The other.
        second: RelPath,
        /// The directory that was to be fetched into.
        path: PathBuf,
    },
    /// A name that cannot be one part of a path.
    #[error("\"{}\" cannot be the name of the destination{}; choose another name", .name.escape_debug(), because(.source))]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        source: Option<PathError>,
    },
    /// Two selected paths would land under one name.
    #[error("two of the selected paths are named \"{}\" and would land in the same place; fetch them one by one", .name.escape_debug())]
    SameName {
        /// The name.
        name: String,
    },
    /// A selected path is not in the root.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// What was selected is a symlink by itself, which points outside of whatever it would be fetched to.
    #[error("\"{path}\" is a symlink to \"{}\"; fetch the directory it is in, or what it points to", .target.escape_debug())]
    OnlySymlink {
        /// Its path in the root.
        path: RelPath,
        /// Where it points.
        target: String,
    },
    /// [`finish`](super::Checkout::finish) before everything was written.
    #[error("{missing} chunks of {} are still missing; fetch it again to get them", shown(.path))]
    Incomplete {
        /// Leaves that are not in place.
        missing: usize,
        /// The destination.
        path: PathBuf,
    },
    /// A block that has the right hash and another length than its parents claim: the root is malformed.
    #[error(
        "chunk {leaf} has {found} bytes where the content's own index says {expected}; its publisher made it wrong"
    )]
    WrongLength {
        /// The leaf's index.
        leaf: u32,
        /// Bytes according to the manifest.
        expected: u32,
        /// Bytes given.
        found: usize,
    },
    /// A leaf that the selection does not need. A bug of the caller's.
    #[error("chunk {leaf} is not part of what is being fetched")]
    NotWanted {
        /// The leaf's index.
        leaf: u32,
    },
    /// The caller asked to stop.
    #[error("the fetch was cancelled; fetch again to go on from where it stopped")]
    Cancelled,
    /// The store could not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn because(source: &Option<PathError>) -> String {
    source.as_ref().map_or(String::new(), |source| format!(" ({source})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn whoever_is_out_of_descriptors_is_told_so() {
        let said = |errno: rustix::io::Errno| {
            CheckoutError::Io { action: "write", path: "out/file".into(), source: errno.into() }.to_string()
        };
        assert!(said(rustix::io::Errno::MFILE).contains("`ulimit -n`), then fetch again"));
        assert!(said(rustix::io::Errno::ACCESS).contains("writable, then fetch again"));
    }
}
