//! What can go wrong, by operation and by blame. Every message is a sentence that says what, where and what to do.
//! Errors of sharing and fetching live beside `import` and `checkout`.

use std::{io, path::PathBuf, sync::Arc};

use shoal_content::Cid;

use crate::Damage;

/// Why a store cannot be opened. Nothing on disk was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "the store at {} is in use by another process{}; stop that process or choose another home directory",
        dir.display(), pid.map(|p| format!(" (pid {p})")).unwrap_or_default()
    )]
    Locked {
        /// The store's directory.
        dir: PathBuf,
        /// The process that holds it, when it left its pid.
        pid: Option<u32>,
    },
    /// A newer Shoal wrote it.
    #[error(
        "the store at {} has format {found}, but this version of shoal knows formats up to {known}; \
         upgrade shoal, or use another home directory", dir.display()
    )]
    NewerFormat {
        /// The store's directory.
        dir: PathBuf,
        /// The version found in its `format` file.
        found: u32,
        /// The newest version this build knows.
        known: u32,
    },
    /// A file of the store's own cannot be made sense of. Nothing is recreated silently.
    #[error("{} is damaged: {reason}; restore it from a backup, or move {} away to start with an empty store", path.display(), dir.display())]
    Corrupt {
        /// The store's directory.
        dir: PathBuf,
        /// The damaged file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It is encrypted, or is to be, and no passphrase was given.
    #[error(
        "the store at {} is {} and needs a passphrase; name a file that holds it in SHOAL_PASSPHRASE_FILE, \
         put it into SHOAL_PASSPHRASE, or run a command on a terminal",
        dir.display(), if *new { "to be encrypted" } else { "encrypted" }
    )]
    NeedsPassphrase {
        /// The store's directory.
        dir: PathBuf,
        /// It is still to be made, so any passphrase will do.
        new: bool,
    },
    /// The passphrase is not the one that the store was made with.
    #[error(
        "the passphrase does not fit the store at {}; give the one that it was made with, by SHOAL_PASSPHRASE_FILE, \
         SHOAL_PASSPHRASE or on a terminal", dir.display()
    )]
    WrongPassphrase {
        /// The store's directory.
        dir: PathBuf,
    },
    /// It is to be encrypted, and is not.
    #[error(
        "the store at {} is not encrypted, and a store cannot be converted; move it away and share again, \
         or set `encrypt = false`", dir.display()
    )]
    NotEncrypted {
        /// The store's directory.
        dir: PathBuf,
    },
    /// Its passphrase was to be changed, and it has none.
    #[error(
        "there is no encrypted store at {}, so there is no passphrase to change; `encrypt = true` has a new store encrypted",
        dir.display()
    )]
    HasNoPassphrase {
        /// The store's directory.
        dir: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}; check that the disk is there, writable and not full", path.display())]
    Io {
        /// What was tried, as a verb: "create", "read".
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Why something could not be stored or looked up.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// An earlier sync or index commit failed, so nothing can be promised any more. Reads go on.
    #[error("the store is read-only since {reason}; check the disk and its free space, then restart shoal")]
    ReadOnly {
        /// What failed.
        reason: Arc<str>,
    },
    /// The operating system refused; nothing was promised and it may be tried again.
    #[error("cannot {action} {}: {source}; {}, then try again", path.display(), advice(source, "check the disk and its free space"))]
    Io {
        /// What was tried, as a verb: "write", "open".
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: Arc<io::Error>,
    },
    /// The disk is full. Nothing was promised; it goes on by itself when there is space.
    #[error("no space is left to {action} {}; free some space on that disk, then try again", path.display())]
    Full {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
    },
    /// The index could not be read.
    #[error("cannot read the index {}: {reason}; check the disk, then restart shoal", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What the index library says.
        reason: Arc<str>,
    },
    /// A block larger than any that may exist.
    #[error("a block of {len} bytes is larger than the limit of {max} bytes")]
    TooLarge {
        /// Its length in bytes.
        len: u64,
        /// The limit, [`MAX_BLOCK_BYTES`](crate::MAX_BLOCK_BYTES).
        max: u64,
    },
    /// The caller asked to stop.
    #[error("the collection of garbage was stopped; what it did until then stays done")]
    Cancelled,
    /// The quota is used up.
    #[error(
        "{needed} more bytes do not fit in the store: it takes {used} of its quota of {quota} bytes, and nothing more can \
         be evicted; raise `quota`, or unpin or forget roots and run `shoal gc`"
    )]
    OverQuota {
        /// The quota in bytes.
        quota: u64,
        /// What packs and index take, in bytes.
        used: u64,
        /// What was to be added, in bytes.
        needed: u64,
    },
    /// A base must be an absolute path.
    #[error("{} is not an absolute path", .0.display())]
    NotAbsolute(PathBuf),
    /// No such base (it was removed, or belongs to another store).
    #[error("base {0:?} is not known to this store; add it again")]
    UnknownBase(crate::BaseId),
}

/// Why a block could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// It is not here.
    #[error("block {0} is not in the store")]
    Missing(Cid),
    /// It was here, but no location held its bytes any more; they have been dropped from the index.
    #[error("block {cid} is damaged: {} no longer holds it at offset {}; fetch or share it again", at.path.display(), at.offset)]
    Damaged {
        /// The block.
        cid: Cid,
        /// The last bad location.
        at: Box<Damage>,
    },
    /// The operating system refused; the block may be readable later.
    #[error("cannot read block {cid} from {}: {source}; {}, then try again", path.display(), advice(source, "check the disk"))]
    Io {
        /// The block.
        cid: Cid,
        /// The file it lies in.
        path: PathBuf,
        /// Why it failed.
        source: Arc<io::Error>,
    },
    /// The index could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a manifest cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// An inner node is not here; fetch it and try again.
    #[error("node {0} of the DAG is not in the store; it has to be fetched first")]
    MissingNode(Cid),
    /// The DAG itself is malformed.
    #[error("the DAG below {root} is malformed: {source}")]
    Malformed {
        /// The root.
        root: Cid,
        /// What is wrong.
        source: shoal_content::WalkError,
    },
    /// A node could not be read.
    #[error(transparent)]
    Read(ReadError),
}

/// What to do about an error of the operating system's; `otherwise`, where it is not a want of descriptors.
pub(crate) fn advice(source: &io::Error, otherwise: &'static str) -> &'static str {
    if is_out_of_descriptors(source) { "raise the limit on open files (`ulimit -n`)" } else { otherwise }
}

/// Whether this process, or the system, has as many files open as it may.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    #[cfg(unix)]
    return matches!(
        rustix::io::Errno::from_io_error(error),
        Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE)
    );
    #[cfg(not(unix))]
    {
        let _: &io::Error = error;
        false
    }
}
