//! The seam between the store and the disk: everything that changes or syncs a file of the store goes through [`Disk`],
//! so that a test can make any of it fail. Reads need no seam: whatever they return is hashed.
//!
//! Assumed of the real disk: after a successful sync the bytes written before it survive power loss; before it, any
//! subset of them may; a failed sync may have dropped them for good, so it is never tried again.

use std::{fmt::Debug, fs::File, io, path::Path};

/// What the store does to its files. `path` names the file for messages and for test doubles.
pub(crate) trait Disk: Send + Sync + Debug {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, file: &File, path: &Path, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts or extends the file.
    fn set_len(&self, file: &File, path: &Path, len: u64) -> io::Result<()>;
    /// Makes the file's data and length durable.
    fn sync_file(&self, file: &File, path: &Path) -> io::Result<()>;
    /// Makes the entries of a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes everything on the file system that holds `path` durable.
    fn sync_fs(&self, path: &Path) -> io::Result<()>;
}

/// The operating system's.
#[derive(Debug)]
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn write_at(&self, file: &File, _path: &Path, bytes: &[u8], offset: u64) -> io::Result<()> {
        write_all_at(file, bytes, offset)
    }

    fn set_len(&self, file: &File, _path: &Path, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    fn sync_file(&self, file: &File, _path: &Path) -> io::Result<()> {
        file.sync_data()
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // Windows opens no directories and journals their entries.
        if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
    }

    fn sync_fs(&self, path: &Path) -> io::Result<()> {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        return Ok(rustix::fs::syncfs(File::open(path)?)?);
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        return Err(io::Error::new(io::ErrorKind::Unsupported, path.display().to_string()));
    }
}

/// Whether [`Disk::sync_fs`] exists here. Where it does not, every file is synced by itself.
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

fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
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
    }

    /// The real disk with faults.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct FaultyDisk {
        faults: Arc<Mutex<Vec<Fault>>>,
        log: Arc<Mutex<Vec<String>>>,
    }

    impl FaultyDisk {
        pub(crate) fn fail(&self, op: &'static str, suffix: &'static str) {
            self.faults.lock().unwrap().push(Fault { op, suffix });
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
            let hit = self.faults.lock().unwrap().iter().any(|f| f.op == op && text.ends_with(f.suffix));
            if hit { Err(io::Error::other("injected fault")) } else { Ok(()) }
        }
    }

    impl Disk for FaultyDisk {
        fn write_at(&self, file: &File, path: &Path, bytes: &[u8], offset: u64) -> io::Result<()> {
            if let Err(error) = self.check("write", path) {
                // A failed write may have written a part.
                RealDisk.write_at(file, path, &bytes[..bytes.len() / 2], offset)?;
                return Err(error);
            }
            RealDisk.write_at(file, path, bytes, offset)
        }

        fn set_len(&self, file: &File, path: &Path, len: u64) -> io::Result<()> {
            self.check("set_len", path)?;
            RealDisk.set_len(file, path, len)
        }

        fn sync_file(&self, file: &File, path: &Path) -> io::Result<()> {
            self.check("sync", path)?;
            RealDisk.sync_file(file, path)
        }

        fn sync_dir(&self, dir: &Path) -> io::Result<()> {
            self.check("sync_dir", dir)?;
            RealDisk.sync_dir(dir)
        }

        fn sync_fs(&self, path: &Path) -> io::Result<()> {
            self.check("sync_fs", path)?;
            RealDisk.sync_fs(path)
        }
    }
}
