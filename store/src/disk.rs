//! The seam between the store and the disk: everything that changes or syncs a file of the store, or a fetch's
//! destination, goes through [`Disk`], so that a test can make any of it fail, or record it and rebuild what a loss of
//! power would leave. Reads need no seam: whatever they return is hashed.
//!
//! Assumed of the real disk: after a successful sync of a file its bytes and length survive power loss; after one of a
//! directory its entries do. Before that any part of the writes since the last sync may survive, in any order, torn at
//! sectors of 512 bytes, and any of the changes of entries. A failed sync may have dropped them for good, so it is never
//! tried again.

use std::{
    fmt::Debug,
    fs::File,
    io::{self, ErrorKind},
    path::Path,
};

use crate::failpoint;

/// A change of the disk.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "the real disk only does; what is done is for the doubles to read")]
pub(crate) enum Op<'a> {
    /// A file is there and empty.
    Create,
    /// A file is there; an existing one stays as it is.
    Ensure,
    /// A directory is there.
    MakeDir,
    /// Bytes are written at an offset.
    Write { file: &'a File, bytes: &'a [u8], offset: u64 },
    /// A file is cut or extended.
    SetLen(u64),
    /// A file's data and length become durable.
    Sync,
    /// The entries of a directory become durable.
    SyncDir,
    /// Everything on a file system becomes durable.
    SyncFs,
    /// A file or directory gets another name.
    Rename(&'a Path),
    /// A file goes.
    Remove,
}

/// What the store does to its files goes through here.
pub(crate) trait Disk: Send + Sync + Debug {
    /// Does `op` to `path` by calling `real`, or does not.
    fn run(&self, op: &Op<'_>, path: &Path, real: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()>;
}

/// The operating system's.
#[derive(Debug)]
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn run(&self, op: &Op<'_>, path: &Path, real: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        failpoint::refuse(op, path)?;
        real()
    }
}

impl dyn Disk + '_ {
    /// [`Disk::run`] for a change that gives something.
    pub(crate) fn get<T>(&self, op: &Op<'_>, path: &Path, mut real: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut made = None;
        self.run(op, path, &mut || {
            made = Some(real()?);
            Ok(())
        })?;
        made.ok_or_else(|| io::ErrorKind::Other.into())
    }

    /// Makes a file for reading and writing; one that was there is emptied.
    pub(crate) fn create(&self, path: &Path) -> io::Result<File> {
        self.get(&Op::Create, path, || File::options().read(true).write(true).create(true).truncate(true).open(path))
    }

    /// Writes all of `bytes` at `offset`.
    pub(crate) fn write_at(&self, file: &File, path: &Path, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.run(&Op::Write { file, bytes, offset }, path, &mut || write_all_at(file, bytes, offset))
    }

    /// Cuts or extends the file.
    pub(crate) fn set_len(&self, file: &File, path: &Path, len: u64) -> io::Result<()> {
        self.run(&Op::SetLen(len), path, &mut || file.set_len(len))
    }

    /// Makes the file's data and length durable.
    pub(crate) fn sync_file(&self, file: &File, path: &Path) -> io::Result<()> {
        self.run(&Op::Sync, path, &mut || file.sync_data())
    }

    /// Makes the entries of a directory durable.
    pub(crate) fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // Windows opens no directories and journals their entries.
        self.run(&Op::SyncDir, dir, &mut || if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) })
    }

    /// Makes a directory and those above it that are missing.
    pub(crate) fn make_dirs(&self, dir: &Path) -> io::Result<()> {
        let missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.is_dir()).collect();
        for dir in missing.into_iter().rev().filter(|dir| !dir.as_os_str().is_empty()) {
            let made = self.run(&Op::MakeDir, dir, &mut || std::fs::create_dir(dir));
            made.or_else(|error| if dir.is_dir() { Ok(()) } else { Err(error) })?;
        }
        Ok(())
    }

    /// Makes the entries of a directory and of all above it durable, for any of them may be new.
    pub(crate) fn sync_ancestors(&self, dir: &Path) -> io::Result<()> {
        for dir in dir.ancestors() {
            match self.sync_dir(dir) {
                // Not ours, so we did not make it; or a file system whose directories need no sync.
                Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::InvalidInput) => {}
                synced => synced?,
            }
        }
        Ok(())
    }

    /// Makes everything on the file system that holds `path` durable.
    pub(crate) fn sync_fs(&self, path: &Path) -> io::Result<()> {
        self.run(&Op::SyncFs, path, &mut || {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            return Ok(rustix::fs::syncfs(File::open(path)?)?);
            #[cfg(not(any(target_os = "linux", target_os = "android")))]
            return Err(io::Error::new(io::ErrorKind::Unsupported, path.display().to_string()));
        })
    }

    /// Gives a file another name in its directory; what had that name is gone.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run(&Op::Rename(to), from, &mut || std::fs::rename(from, to))
    }
}

/// Whether a whole file system can be synced here. Where it does not, every file is synced by itself.
pub(crate) const HAS_SYNC_FS: bool = cfg!(any(target_os = "linux", target_os = "android"));

/// Fills `buf` from `offset`; `UnexpectedEof` if the file is shorter.
pub(crate) fn read_exact_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_exact_at(file, buf, offset);
    #[cfg(windows)]
    {
        let (mut buf, mut offset) = (buf, offset);
        while !buf.is_empty() {
            match std::os::windows::fs::FileExt::seek_read(file, buf, offset)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => (buf, offset) = (&mut buf[n..], offset + n as u64),
            }
        }
        Ok(())
    }
}

pub(crate) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::write_all_at(file, bytes, offset);
    #[cfg(windows)]
    {
        let (mut bytes, mut offset) = (bytes, offset);
        while !bytes.is_empty() {
            match std::os::windows::fs::FileExt::seek_write(file, bytes, offset)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => (bytes, offset) = (&bytes[n..], offset + n as u64),
            }
        }
        Ok(())
    }
}

/// Opens a file that is not ours for reading. Never blocks, whatever was put in its place (a FIFO would).
pub(crate) fn open_foreign(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
        options.custom_flags(flags.bits() as i32);
    }
    options.open(path)
}

/// A double that fails on demand.
#[cfg(test)]
pub(crate) mod double {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What fails, and where: an operation on a path whose text ends with `suffix`.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Fault {
        pub(crate) op: &'static str,
        pub(crate) suffix: &'static str,
        pub(crate) kind: ErrorKind,
    }

    /// The real disk with faults.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct FaultyDisk {
        faults: Arc<Mutex<Vec<Fault>>>,
        log: Arc<Mutex<Vec<String>>>,
    }

    impl FaultyDisk {
        pub(crate) fn fail(&self, op: &'static str, suffix: &'static str) {
            self.faults.lock().unwrap().push(Fault { op, suffix, kind: ErrorKind::Other });
        }

        /// No space for files of this name.
        pub(crate) fn fill(&self, suffix: &'static str) {
            for op in ["write", "set_len", "create"] {
                self.faults.lock().unwrap().push(Fault { op, suffix, kind: ErrorKind::StorageFull });
            }
        }

        pub(crate) fn heal(&self) {
            self.faults.lock().unwrap().clear();
        }

        /// The operations since the last call, as `op file-name`, in order.
        pub(crate) fn take_log(&self) -> Vec<String> {
            std::mem::take(&mut *self.log.lock().unwrap())
        }

        fn check(&self, op: &'static str, path: &Path) -> io::Result<()> {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            self.log.lock().unwrap().push(format!("{op} {name}"));
            let text = path.to_string_lossy();
            let faults = self.faults.lock().unwrap();
            let hit = faults.iter().find(|f| f.op == op && text.ends_with(f.suffix)).map(|f| f.kind);
            hit.map_or(Ok(()), |kind| Err(io::Error::new(kind, "injected fault")))
        }
    }

    impl Disk for FaultyDisk {
        fn run(&self, op: &Op<'_>, path: &Path, real: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
            let name = match op {
                Op::Create => "create",
                Op::Ensure => "ensure",
                Op::MakeDir => "make_dir",
                Op::Write { .. } => "write",
                Op::SetLen(_) => "set_len",
                Op::Sync => "sync",
                Op::SyncDir => "sync_dir",
                Op::SyncFs => "sync_fs",
                Op::Rename(_) => "rename",
                Op::Remove => "remove",
            };
            let checked = self.check(name, path);
            if let (Err(_), Op::Write { file, bytes, offset }) = (&checked, op) {
                // A failed write may have written a part.
                write_all_at(file, &bytes[..bytes.len() / 2], *offset)?;
            }
            checked?;
            real()
        }
    }
}
