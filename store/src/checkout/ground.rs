//! Where a target grows: one partial file or a directory of partial files, reached through directory handles only.
//!
//! Every open is relative to a handle and resolved beneath it (`openat2` on Linux), never through a symlink in the last
//! part, so neither a hostile tree nor a symlink planted meanwhile leads a write out of the destination. What the files
//! hold is not known here.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use cap_std::fs::{Dir, OpenOptions};

use crate::{
    disk::{Disk, Op},
    inner::join,
};

/// Open files kept for writing. Chunks of a big file come from many peers, so its handle is wanted again soon; more
/// than this many big files at once are rare, and the process has a limit on handles.
const MAX_HANDLES: usize = 64;

/// One partial file or a directory of them.
#[derive(Debug)]
pub(super) struct Ground {
    kind: Kind,
    /// Where it is, for the disk and for messages; nothing is opened by it.
    at: PathBuf,
    disk: Arc<dyn Disk>,
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

/// A directory that grounds are in.
#[derive(Clone, Copy)]
pub(super) struct Parent<'a> {
    pub(super) dir: &'a Dir,
    /// Where it is.
    pub(super) path: &'a Path,
    pub(super) disk: &'a Arc<dyn Disk>,
}

impl Ground {
    /// Opens the directory `name` in `parent`, creating it if there is none.
    pub(super) fn tree(parent: Parent<'_>, name: &str) -> io::Result<Opened> {
        let made = parent.disk.run(&Op::MakeDir, &parent.path.join(name), &mut || parent.dir.create_dir(name));
        let existed = match made {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => true,
            Err(error) => return Err(error),
        };
        Ok(Opened { ground: Self::existing_tree(parent, name)?, existed })
    }

    /// Opens the directory `name` in `parent`; a symlink is refused.
    pub(super) fn existing_tree(parent: Parent<'_>, name: &str) -> io::Result<Self> {
        #[cfg(unix)]
        let dir = {
            use cap_std::fs::OpenOptionsExt as _;
            let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::DIRECTORY;
            let mut options = OpenOptions::new();
            options.read(true).custom_flags(flags.bits().cast_signed());
            Dir::from_std_file(parent.dir.open_with(name, &options)?.into_std())
        };
        #[cfg(not(unix))]
        let dir = parent.dir.open_dir(name)?;
        Ok(Self::new(Kind::Tree(dir), parent, name))
    }

    /// Opens the file `name` in `parent` for writing, creating it if there is none.
    pub(super) fn file(parent: Parent<'_>, name: &str, executable: bool) -> io::Result<Opened> {
        let created = parent
            .disk
            .get(&Op::Create, &parent.path.join(name), || open_in(parent.dir, name, Access::CreateNew { executable }));
        let (file, existed) = match created {
            Ok(file) => (file, false),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                (open_in(parent.dir, name, Access::Write { executable })?, true)
            }
            Err(error) => return Err(error),
        };
        Ok(Opened { ground: Self::new(Kind::File(Arc::new(file)), parent, name), existed })
    }

    /// Opens the file `name` in `parent` for reading.
    pub(super) fn existing_file(parent: Parent<'_>, name: &str) -> io::Result<Self> {
        Ok(Self::new(Kind::File(Arc::new(open_in(parent.dir, name, Access::Read)?)), parent, name))
    }

    fn new(kind: Kind, parent: Parent<'_>, name: &str) -> Self {
        Self { kind, at: parent.path.join(name), disk: Arc::clone(parent.disk), handles: Mutex::default() }
    }

    /// Where a file or directory in it is.
    fn path(&self, rel: &str) -> PathBuf {
        join(&self.at, rel)
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
            Kind::Tree(dir) => {
                let open = || open_in(dir, rel, Access::Write { executable });
                Ok(Arc::new(self.disk.get(&Op::Ensure, &self.path(rel), open)?))
            }
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
            self.set_len(&file, rel, size)?;
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

    /// Writes all of `bytes` at an offset of one of its files.
    pub(super) fn write_at(&self, file: &File, rel: &str, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.write_at(file, &self.path(rel), bytes, offset)
    }

    /// Cuts or extends one of its files.
    pub(super) fn set_len(&self, file: &File, rel: &str, len: u64) -> io::Result<()> {
        self.disk.set_len(file, &self.path(rel), len)
    }

    /// Makes a directory in it; one that is there is fine.
    pub(super) fn make_dir(&self, rel: &str) -> io::Result<()> {
        let Some(dir) = self.dir() else { return Ok(()) };
        match self.disk.run(&Op::MakeDir, &self.path(rel), &mut || dir.create_dir(rel)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes one of its files durable.
    pub(super) fn sync_file(&self, rel: &str) -> io::Result<()> {
        let file = self.read(rel)?;
        self.disk.run(&Op::Sync, &self.path(rel), &mut || file.sync_all())
    }

    /// Makes the names in one of its directories durable.
    pub(super) fn sync_dir(&self, rel: &str) -> io::Result<()> {
        let Some(dir) = self.dir() else { return Ok(()) };
        self.disk.run(&Op::SyncDir, &self.path(rel), &mut || sync_dir(dir, if rel.is_empty() { "." } else { rel }))
    }

    /// Makes everything on its file system durable.
    #[cfg(target_os = "linux")]
    pub(super) fn sync_fs(&self) -> io::Result<()> {
        let Some(dir) = self.dir() else { return Ok(()) };
        self.disk.run(&Op::SyncFs, &self.at, &mut || Ok(rustix::fs::syncfs(dir)?))
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

/// Makes the names in a directory durable, where that is a matter of its own.
pub(super) fn sync_dir(dir: &Dir, rel: &str) -> io::Result<()> {
    #[cfg(unix)]
    {
        // A `Dir` itself may be a handle for paths only, which cannot be synced.
        dir.open(rel)?.sync_all()
    }
    #[cfg(not(unix))]
    {
        let _: (&Dir, &str) = (dir, rel);
        Ok(())
    }
}
