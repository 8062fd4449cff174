//! The socket itself: a path in the home directory, however long that path is. Elsewhere than on unix there is none yet,
//! and every process stands for itself.

#[cfg(unix)]
pub(super) use unix::{Listener, Stream, bind, connect};

#[cfg(unix)]
mod unix {
    use std::{
        io,
        path::{Path, PathBuf},
    };

    pub(in super::super) use tokio::net::{UnixListener as Listener, UnixStream as Stream};

    /// Longest path that fits in a socket address, in bytes, with its NUL: 108 on Linux, 104 on the BSDs and macOS.
    const MAX_PATH_BYTES: usize = if cfg!(target_os = "linux") { 108 } else { 104 };

    /// Binds in place of a socket that a dead process left. The caller holds the home's lock.
    pub(in super::super) fn bind(path: &Path) -> io::Result<Listener> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let short = Short::of(path)?;
        let listener = Listener::bind(&short.path)?;
        crate::home::restrict(path, 0o600)?;
        Ok(listener)
    }

    /// Connects.
    pub(in super::super) async fn connect(path: &Path) -> io::Result<Stream> {
        // A socket that is not there is the common case, and needs no detour.
        let short = Short::of(path)?;
        Stream::connect(&short.path).await
    }

    /// A path that fits in a socket address.
    struct Short {
        path: PathBuf,
        #[cfg(target_os = "linux")]
        _dir: Option<rustix::fd::OwnedFd>,
    }

    impl Short {
        #[cfg(target_os = "linux")]
        fn of(path: &Path) -> io::Result<Short> {
            use rustix::{
                fd::AsRawFd,
                fs::{Mode, OFlags},
            };
            let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(io::ErrorKind::InvalidInput.into());
            };
            if path.as_os_str().len() < MAX_PATH_BYTES {
                return Ok(Short { path: path.to_owned(), _dir: None });
            }
            // The kernel follows this to the directory, and it always fits.
            let dir = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
            Ok(Short { path, _dir: Some(dir) })
        }

        #[cfg(not(target_os = "linux"))]
        fn of(path: &Path) -> io::Result<Short> {
            match path.as_os_str().len() < MAX_PATH_BYTES {
                true => Ok(Short { path: path.to_owned() }),
                false => Err(io::Error::new(io::ErrorKind::InvalidInput, "the home directory's path is too long")),
            }
        }
    }
}

#[cfg(not(unix))]
pub(super) use elsewhere::{Listener, Stream, bind, connect};

#[cfg(not(unix))]
mod elsewhere {
    use std::{io, path::Path};

    pub(in super::super) type Stream = tokio::io::DuplexStream;

    pub(in super::super) enum Listener {}

    impl Listener {
        pub(in super::super) async fn accept(&self) -> io::Result<(Stream, ())> {
            match *self {}
        }
    }

    pub(in super::super) fn bind(_: &Path) -> io::Result<Listener> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(in super::super) async fn connect(_: &Path) -> io::Result<Stream> {
        Err(io::ErrorKind::NotFound.into())
    }
}
