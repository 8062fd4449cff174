//! Why a path cannot be shared, and how paths are shown in messages.

use std::{
    fmt::{self, Write as _},
    io,
    path::{Path, PathBuf},
};

use shoal_content::DirError;

use crate::{StoreError, error::is_out_of_descriptors};

/// Why a path cannot be shared. No root was recorded. Paths in messages have their control characters escaped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// Nothing is there.
    #[error("there is nothing at {}; check the path for typing errors", shown(.path))]
    NotFound {
        /// The path as it was given.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}; {}", shown(.path), advice(.source))]
    Io {
        /// What was tried, as a verb: "read", "list".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A name that is no UTF-8, which no other system could be sure to take.
    #[error("the name of {} is not valid UTF-8; rename it and share again", shown(.path))]
    NotUtf8 {
        /// Its path.
        path: PathBuf,
    },
    /// A symlink whose target is no UTF-8.
    #[error("the symlink {} points to a name that is not valid UTF-8; remove or replace it and share again", shown(.path))]
    TargetNotUtf8 {
        /// The symlink's path.
        path: PathBuf,
    },
    /// A socket, fifo or device.
    #[error("{} is a {kind}, which cannot be shared; move it out of the tree, or leave such files out", shown(.path))]
    Special {
        /// Its path.
        path: PathBuf,
        /// What it is: "socket", "fifo", "device".
        kind: &'static str,
    },
    /// Its size or modification time changed between the start and the end of reading it.
    #[error("{} changed while it was being shared; wait until nothing writes to it and share again", shown(.path))]
    Changed {
        /// The file's path.
        path: PathBuf,
    },
    /// A directory cannot be built from these entries.
    #[error("cannot share the directory {}: {source}", shown(.path))]
    Directory {
        /// The directory's path.
        path: PathBuf,
        /// What is wrong with its entries.
        source: DirError,
    },
    /// The tree is past what a fetch accepts.
    #[error("{} cannot be shared as it is, because nobody could fetch it: {reason}; share parts of it instead", shown(.path))]
    Unfetchable {
        /// The path that was to be shared.
        path: PathBuf,
        /// Which bound it passes.
        reason: String,
    },
    /// The caller asked to stop.
    #[error("the import was cancelled; nothing was shared")]
    Cancelled,
    /// The store could not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ImportError {
    /// A path that could not be opened for reading.
    pub(super) fn open(path: &Path, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::NotFound {
            return Self::NotFound { path: path.to_owned() };
        }
        Self::Io { action: "read", path: path.to_owned(), source }
    }

    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}

/// What to do about an error of the operating system.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        _ if is_out_of_descriptors(error) => "raise the limit on open files (`ulimit -n`) and share again",
        io::ErrorKind::PermissionDenied => "make it readable for this user, or leave it out of what is shared",
        io::ErrorKind::NotFound => "it vanished while it was being shared, so share again",
        _ => "check the disk it is on and share again",
    }
}

/// A path for messages: control characters and bytes that are no UTF-8 come out escaped.
pub(crate) fn shown(path: &Path) -> Shown<'_> {
    Shown(path)
}

/// See [`shown`].
pub(crate) struct Shown<'a>(&'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.as_os_str().as_encoded_bytes().utf8_chunks() {
            for char in chunk.valid().chars() {
                if char.is_control() {
                    write!(f, "{}", char.escape_default())?;
                } else {
                    f.write_char(char)?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_messages_are_escaped() {
        assert_eq!(shown(Path::new("a/\u{1b}[31mré\n")).to_string(), "a/\\u{1b}[31mré\\n");
    }

    #[cfg(unix)]
    #[test]
    fn bytes_that_are_no_utf8_are_shown_in_hex() {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};
        assert_eq!(shown(Path::new(OsStr::from_bytes(b"caf\xe9.txt"))).to_string(), "caf\\xe9.txt");
    }
}
