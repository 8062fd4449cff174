//! From the errors of the rooms below to the classes that people and scripts see. One function for each error type.

use std::{error::Error, io, sync::Arc};

use shoal_content::LinkError;
use shoal_net::BindError;
use shoal_store::{CheckoutError, ImportError, ManifestError, OpenError, ReadError, StoreError};
use shoal_transfer::{FetchError, SeedError};

use crate::{Class, Failure};

pub(crate) fn link(error: &LinkError) -> Failure {
    Failure::from_error(Class::BadLink, error).or_hint("copy the whole link again, in quotes")
}

pub(crate) fn open(error: &OpenError) -> Failure {
    let class = match error {
        OpenError::Locked { .. } | OpenError::NewerFormat { .. } | OpenError::Corrupt { .. } => Class::Home,
        OpenError::NeedsPassphrase { .. } | OpenError::WrongPassphrase { .. } => Class::Home,
        OpenError::NotEncrypted { .. } | OpenError::HasNoPassphrase { .. } => Class::Home,
        OpenError::Io { .. } => Class::Disk,
    };
    Failure::from_error(class, error)
}

pub(crate) fn store(error: &StoreError) -> Failure {
    let class = match error {
        StoreError::ReadOnly { .. } | StoreError::Io { .. } | StoreError::Index { .. } => Class::Disk,
        StoreError::OverQuota { .. } | StoreError::Full { .. } => Class::Disk,
        StoreError::Cancelled => return Failure::interrupted(),
        StoreError::TooLarge { .. } => Class::Content,
        _ => Class::Internal,
    };
    Failure::from_error(class, error)
}

pub(crate) fn read(error: &ReadError) -> Failure {
    match error {
        ReadError::Store(error) => store(error),
        ReadError::Io { .. } => Failure::from_error(Class::Disk, error),
        ReadError::Missing(_) | ReadError::Damaged { .. } => {
            Failure::from_error(Class::Content, error).or_hint("fetch or share it again")
        }
    }
}

pub(crate) fn manifest(error: &ManifestError) -> Failure {
    match error {
        ManifestError::Read(error) => read(error),
        ManifestError::MissingNode(_) | ManifestError::Malformed { .. } => Failure::from_error(Class::Content, error),
    }
}

pub(crate) fn seed(error: &SeedError) -> Failure {
    match error {
        SeedError::Manifest(error) => manifest(error),
        SeedError::Store(error) => store(error),
        SeedError::ShuttingDown => Failure::interrupted(),
        _ => Failure::internal(error.to_string()),
    }
}

pub(crate) fn import(error: &ImportError) -> Failure {
    use std::io::ErrorKind;
    let class = match error {
        ImportError::NotFound { .. } => Class::NotFound,
        ImportError::Io { source, .. } if source.kind() == ErrorKind::NotFound => Class::NotFound,
        ImportError::Io { .. } => Class::Disk,
        ImportError::Cancelled => return Failure::interrupted(),
        ImportError::Store(error) => return store(error),
        _ => Class::Content,
    };
    Failure::from_error(class, error)
}

pub(crate) fn checkout(error: &CheckoutError) -> Failure {
    let class = match error {
        CheckoutError::Io { .. } | CheckoutError::NoSpace { .. } => Class::Disk,
        CheckoutError::Exists { .. } | CheckoutError::Busy { .. } => Class::Exists,
        CheckoutError::Select(_) => Class::NotFound,
        CheckoutError::SameName { .. } => Class::Usage,
        CheckoutError::Cancelled => return Failure::interrupted(),
        CheckoutError::Store(error) => return store(error),
        CheckoutError::Incomplete { .. } | CheckoutError::NotWanted { .. } => Class::Internal,
        _ => Class::Content,
    };
    Failure::from_error(class, error)
}

pub(crate) fn fetch(error: &FetchError) -> Failure {
    match error {
        FetchError::NoProviders { .. } => Failure::from_error(Class::NoProvider, error).or_hint(
            "check that somebody shares it and can be reached, and use the whole link with its via= addresses; \
             the same command goes on where it stopped",
        ),
        FetchError::Stalled { .. } => Failure::from_error(Class::NoProvider, error)
            .or_hint("run the same command again when more peers are there; it goes on where it stopped"),
        FetchError::BadContent { .. } => {
            Failure::from_error(Class::Content, error).or_hint("ask whoever shared it to share it again")
        }
        FetchError::Select(error) => Failure::from_error(Class::NotFound, error)
            .or_hint("`shoal stat` on the machine that shares it lists its paths"),
        FetchError::Checkout(error) => checkout(error),
        FetchError::Store(error) => store(error),
        FetchError::Read(error) => read(error),
        FetchError::Busy(_) => Failure::from_error(Class::Exists, error).or_hint("wait for the other fetch to end"),
        FetchError::Cancelled | FetchError::ShuttingDown => Failure::interrupted(),
        _ => Failure::internal(error.to_string()),
    }
}

/// What ran out and may be there again, without anybody doing a thing to the fetch that it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// Space on a disk.
    Space,
    /// File descriptors, of the process or the system.
    Descriptors,
}

/// The shortage that ended a fetch, if that is what did.
pub(crate) fn shortage(error: &FetchError) -> Option<Shortage> {
    if matches!(
        error,
        FetchError::Checkout(CheckoutError::NoSpace { .. } | CheckoutError::Store(StoreError::Full { .. }))
            | FetchError::Store(StoreError::Full { .. })
    ) {
        return Some(Shortage::Space);
    }
    let mut cause = error.source();
    while let Some(error) = cause {
        let shared = error.downcast_ref::<Arc<io::Error>>().map(AsRef::as_ref);
        if let Some(error) = shared.or_else(|| error.downcast_ref::<io::Error>()) {
            return shortage_of(error);
        }
        cause = error.source();
    }
    None
}

fn shortage_of(error: &io::Error) -> Option<Shortage> {
    #[cfg(unix)]
    if let Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) = rustix::io::Errno::from_io_error(error) {
        return Some(Shortage::Descriptors);
    }
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded).then_some(Shortage::Space)
}

pub(crate) fn bind(error: &BindError) -> Failure {
    let class = match error {
        BindError::Certificate(_) => Class::Internal,
        BindError::Setting { .. } => Class::Home,
        BindError::NoAddress | BindError::Unsupported { .. } | BindError::SeveralSockets { .. } => Class::Usage,
        _ => Class::Network,
    };
    Failure::from_error(class, error)
        .or_hint("check the network of this machine, or give another address with --listen")
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn a_shortage_is_seen_however_deep_it_lies() {
        let io = |errno: Errno| io::Error::from(errno);
        let checkout = |errno| CheckoutError::Io { action: "write", path: "f".into(), source: io(errno) };
        let store = |errno| StoreError::Io { action: "open", path: "f".into(), source: Arc::new(io(errno)) };
        let cid = shoal_content::Cid::of(shoal_content::Codec::Raw, shoal_content::HashKind::Blake3, b"x");
        let read = |errno| ReadError::Io { cid, path: "f".into(), source: Arc::new(io(errno)) };
        for (errno, expected) in [
            (Errno::MFILE, Some(Shortage::Descriptors)),
            (Errno::NFILE, Some(Shortage::Descriptors)),
            (Errno::NOSPC, Some(Shortage::Space)),
            (Errno::DQUOT, Some(Shortage::Space)),
            (Errno::IO, None),
            (Errno::ACCESS, None),
        ] {
            assert_eq!(shortage(&checkout(errno).into()), expected);
            assert_eq!(shortage(&CheckoutError::Store(store(errno)).into()), expected);
            assert_eq!(shortage(&store(errno).into()), expected);
            assert_eq!(shortage(&read(errno).into()), expected);
        }
        let full = StoreError::Full { action: "commit to", path: "f".into() };
        assert_eq!(shortage(&full.into()), Some(Shortage::Space));
        assert_eq!(shortage(&FetchError::Cancelled), None);
    }
}
