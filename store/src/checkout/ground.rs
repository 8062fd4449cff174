//! Where a target grows: one partial file or a directory of partial files, reached through directory handles only.
//!
//! Every open is relative to a handle and resolved beneath it (`openat2` on Linux), never through a symlink in the last
//! part, so neither a hostile tree nor a symlink planted meanwhile leads a write out of the destination. What the files
//! hold is not known here.

use std::{
    fs::File,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use cap_std::fs::{Dir, OpenOptions};

/// Open files kept for writing. Chunks of a big file come from many peers, so its handle is wanted again soon; more
/// than this many big files at once are rare, and the process has a limit on handles.
const MAX_HANDLES: usize = 64;

/// One partial file or a directory of them.
#[derive(Debug)]
pub(super) struct Ground {
    kind: Kind,
    handles: Mutex<Vec<(u32, Arc<File>)>>,
}

#[derive(Debug)]
enum Kind {
    /// A directory.
    Tree(Dir),
    /// A file, held open.
    File(Arc<File>),
}

/// A ground that was opened, and whether it had been there before.
pub(super) struct Opened {
    pub(super) ground: Ground,
    pub(super) existed: bool,
}

impl Ground {
    /// Opens the directory `name` in `parent`, creating it if there is none.
    pub(super) fn tree(parent: &Dir, name: &str) -> io::Result<Opened> {
        let existed = match parent.create_dir(name) {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => true,
            Err(error) => return Err(error),
        };
        Ok(Opened { ground: Self::existing_tree(parent, name)?, existed })
    }

    /// Opens the directory `name` in `parent`; a symlink is refused.
    pub(super) fn existing_tree(parent: &Dir, name: &str) -> io::Result<Self> {
        #[cfg(unix)]
        let dir = {
            use cap_std::fs::OpenOptionsExt as _;
            let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::DIRECTORY;
            let mut options = OpenOptions::new();
            options.read(true).custom_flags(flags.bits().cast_signed());
            Dir::from_std_file(parent.open_with(name, &options)?.into_std())
        };
        #[cfg(not(unix))]
        let dir = parent.open_dir(name)?;
        Ok(Self { kind: Kind::Tree(dir), handles: Mutex::default() })
    }

    /// Opens the file `name` in `parent` for writing, creating it if there is none.
    pub(super) fn file(parent: &Dir, name: &str, executable: bool) -> io::Result<Opened> {
        let created = open_in(parent, name, Access::CreateNew { executable });
        let (file, existed) = match created {
            Ok(file) => (file, false),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                (open_in(parent, name, Access::Write { executable })?, true)
            }
            Err(error) => return Err(error),
        };
        Ok(Opened { ground: Self::of_file(file), existed })
    }

    /// Opens the file `name` in `parent` for reading.
    pub(super) fn existing_file(parent: &Dir, name: &str) -> io::Result<Self> {
        Ok(Self::of_file(open_in(parent, name, Access::Read)?))
    }

    fn of_file(file: File) -> Self {
        Self { kind: Kind::File(Arc::new(file)), handles: Mutex::default() }
    }

    /// Claims the ground for this fetch; false if another one has it. Released when the ground is dropped.
    pub(super) fn lock(&self) -> bool {
        #[cfg(unix)]
        {
            use rustix::fs::{FlockOperation, flock};
            let operation = FlockOperation::NonBlockingLockExclusive;
            let locked = match &self.kind {
                Kind::Tree(dir) => flock(dir, operation),
                Kind::File(file) => flock(file, operation),
            };
            // File systems without locks go without: two fetches of one root write the same bytes anyway.
            locked != Err(rustix::io::Errno::WOULDBLOCK)
        }
        #[cfg(not(unix))]
        true
    }

    /// The directory, if this is one.
    pub(super) fn dir(&self) -> Option<&Dir> {
        match &self.kind {
            Kind::Tree(dir) => Some(dir),
            Kind::File(_) => None,
        }
    }

    /// Opens a file for reading.
    pub(super) fn read(&self, rel: &str) -> io::Result<Arc<File>> {
        match &self.kind {
            Kind::Tree(dir) => Ok(Arc::new(open_in(dir, rel, Access::Read)?)),
            Kind::File(file) => Ok(Arc::clone(file)),
        }
    }

    /// Opens a file for writing, creating it if there is none. The caller closes it.
    pub(super) fn write(&self, rel: &str, executable: bool) -> io::Result<Arc<File>> {
        match &self.kind {
            Kind::Tree(dir) => Ok(Arc::new(open_in(dir, rel, Access::Write { executable })?)),
            Kind::File(file) => Ok(Arc::clone(file)),
        }
    }

    /// Like [`write`](Self::write), for a file of `size` bytes that will be written to often: it is made that long,
    /// and its handle is kept.
    pub(super) fn write_often(&self, entry: u32, rel: &str, executable: bool, size: u64) -> io::Result<Arc<File>> {
        if let Some(file) = self.kept(entry) {
            return Ok(file);
        }
        let file = self.write(rel, executable)?;
        if file.metadata()?.len() != size {
            file.set_len(size)?;
        }
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        if handles.len() >= MAX_HANDLES {
            handles.remove(0);
        }
        handles.push((entry, Arc::clone(&file)));
        Ok(file)
    }

    /// A kept handle; it becomes the one used last.
    fn kept(&self, entry: u32) -> Option<Arc<File>> {
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        let at = handles.iter().rposition(|(kept, _)| *kept == entry)?;
        handles[at..].rotate_left(1);
        handles.last().map(|(_, file)| Arc::clone(file))
    }

    /// Closes all kept handles.
    pub(super) fn close(&self) {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// For what a file is opened.
#[derive(Clone, Copy)]
enum Access {
    Read,
    Write { executable: bool },
    CreateNew { executable: bool },
}

/// Opens a regular file beneath `dir`. A symlink in its place is refused and a fifo is not waited for.
fn open_in(dir: &Dir, rel: &str, access: Access) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    let executable = match access {
        Access::Read => false,
        Access::Write { executable } => {
            options.write(true).create(true);
            executable
        }
        Access::CreateNew { executable } => {
            options.write(true).create_new(true);
            executable
        }
    };
    #[cfg(unix)]
    {
        use cap_std::fs::OpenOptionsExt as _;
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        options.custom_flags(flags.bits().cast_signed()).mode(if executable { 0o777 } else { 0o666 });
    }
    #[cfg(not(unix))]
    let _: bool = executable;
    Ok(dir.open_with(Path::new(rel), &options)?.into_std())
}

/// Positioned write of all of `bytes`.
pub(super) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::write_all_at(file, bytes, offset);
    #[cfg(windows)]
    {
        let (mut bytes, mut offset) = (bytes, offset);
        while !bytes.is_empty() {
            let written = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[written..];
            offset += written as u64;
        }
        Ok(())
    }
}
