//! One file that is read: opened, stamped, cut into chunks as it streams through a window, and checked for change.
//! Nothing here stages or puts anything.

use std::{
    fs::{File, Metadata, OpenOptions},
    io,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use shoal_content::{Cid, Codec, Profile};

use super::{ImportError, memory::Look};
use crate::Stamp;

/// What is read at once: large enough that the call does not count, small enough to be hashed out of the cache.
const READ_BYTES: usize = 1 << 20;

/// A file open for reading, with what it looked like at the start.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) stamp: Stamp,
    pub(super) mode: Option<u32>,
    look: Option<Look>,
}

impl Opened {
    /// Opens a regular file. What became a symlink or a fifo since it was listed is neither followed nor waited for.
    pub(super) fn open(path: &Path) -> Result<Self, ImportError> {
        let mut options = OpenOptions::new();
        options.read(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt as _;
            let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
            options.custom_flags(flags.bits().cast_signed());
        }
        let file = options.open(path).map_err(|source| ImportError::io("read", path, source))?;
        let meta = file.metadata().map_err(|source| ImportError::io("read", path, source))?;
        if meta.is_dir() {
            return Err(ImportError::Changed { path: path.to_owned() });
        }
        if !meta.is_file() {
            return Err(ImportError::Special { path: path.to_owned(), kind: special_kind(&meta) });
        }
        let (stamp, mode, look) = (stamp_of(&meta), mode_of(&meta), Look::of(&meta));
        Ok(Self { file, path: path.to_owned(), stamp, mode, look })
    }

    /// Fails if the file is not what it was when it was opened. Gives what it looked like if nothing about it changed: not
    /// even what changes with a permission or a link, and is no reason to fail.
    pub(super) fn unchanged(&self) -> Result<Option<Look>, ImportError> {
        let meta = self.file.metadata().map_err(|source| ImportError::io("read", &self.path, source))?;
        if stamp_of(&meta) == self.stamp {
            Ok(self.look.filter(|look| Look::of(&meta) == Some(*look)))
        } else {
            Err(self.changed())
        }
    }

    fn changed(&self) -> ImportError {
        ImportError::Changed { path: self.path.clone() }
    }

    /// Fills `buf` from `offset` on; the file is known to be that long, so a short read means that it changed.
    pub(super) fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<(), ImportError> {
        while !buf.is_empty() {
            match read_at(&self.file, buf, offset) {
                Ok(0) => return Err(self.changed()),
                Ok(read) => {
                    buf = &mut buf[read..];
                    offset += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ImportError::io("read", &self.path, source)),
            }
        }
        Ok(())
    }
}

/// A reused buffer through which files stream.
pub(super) struct Window {
    buf: Vec<u8>,
}

impl Window {
    pub(super) fn new(profile: &Profile) -> Self {
        // Room for a longest chunk, one read, and enough more that a remainder is rarely moved to the front.
        Self { buf: vec![0; 2 * profile.max_chunk() + 2 * READ_BYTES] }
    }

    /// Cuts and hashes the chunks that begin in `from..until`, as if one began at `from`; each is hashed while it is
    /// still in the cache and given to `each` with its length. `seam` is told where a chunk begins and what of the file
    /// from there on is at hand, and gives the next seam, if there is one within the longest chunk.
    pub(super) fn chunks(
        &mut self,
        opened: &Opened,
        profile: &Profile,
        from: u64,
        until: u64,
        mut seam: impl FnMut(u64, &[u8]) -> Result<Option<u64>, ImportError>,
        mut each: impl FnMut(Cid, u32) -> Result<(), ImportError>,
    ) -> Result<(), ImportError> {
        let max = profile.max_chunk();
        let until = until.min(opened.stamp.size);
        // The last chunk of the range may reach this far past it.
        let end = opened.stamp.size.min(until.saturating_add(max as u64));
        let (mut start, mut filled, mut at) = (0, 0, from);
        while at < until {
            while filled - start < max && at + ((filled - start) as u64) < end {
                let next = at + (filled - start) as u64;
                let want = READ_BYTES.max(max).min(usize::try_from(end - next).unwrap_or(usize::MAX));
                if self.buf.len() - filled < want {
                    self.buf.copy_within(start..filled, 0);
                    filled -= start;
                    start = 0;
                }
                opened.read_exact_at(&mut self.buf[filled..filled + want], next)?;
                filled += want;
            }
            let mut data = &self.buf[start..filled];
            if let Some(seam) = seam(at, data)? {
                data = &data[..data.len().min(usize::try_from(seam - at).unwrap_or(usize::MAX))];
            }
            let len = profile.cut(data).clamp(1, data.len());
            each(Cid::of(Codec::Raw, profile.hash, &data[..len]), len as u32)?;
            start += len;
            at += len as u64;
        }
        Ok(())
    }

    /// Cuts and hashes the one chunk that begins at `offset`, `seam` being the next one behind it.
    pub(super) fn chunk_at(
        &mut self,
        opened: &Opened,
        profile: &Profile,
        offset: u64,
        seam: Option<u64>,
    ) -> Result<(Cid, u32), ImportError> {
        let mut chunk = None;
        let each = |cid, len| {
            chunk = Some((cid, len));
            Ok(())
        };
        self.chunks(opened, profile, offset, offset + 1, |_, _| Ok(seam), each)?;
        chunk.ok_or_else(|| opened.changed())
    }
}

/// Size and modification time of a file.
pub(crate) fn stamp_of(meta: &Metadata) -> Stamp {
    let mtime_ns = match meta.modified().map(|time| time.duration_since(UNIX_EPOCH)) {
        Ok(Ok(after)) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Ok(Err(before)) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |ns| -ns),
        // A platform without modification times: the size has to do.
        Err(_) => 0,
    };
    Stamp { size: meta.len(), mtime_ns }
}

/// Positioned read; may be short.
pub(crate) fn read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_at(file, buf, offset);
    #[cfg(windows)]
    return std::os::windows::fs::FileExt::seek_read(file, buf, offset);
}

/// Permission bits, where the platform has them.
fn mode_of(meta: &Metadata) -> Option<u32> {
    #[cfg(unix)]
    return Some(std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o777);
    #[cfg(not(unix))]
    {
        let _: &Metadata = meta;
        None
    }
}

/// What a special file is called.
pub(super) fn special_kind(meta: &Metadata) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt as _;
        let kind = meta.file_type();
        if kind.is_socket() {
            return "socket";
        }
        if kind.is_fifo() {
            return "fifo";
        }
        if kind.is_block_device() || kind.is_char_device() {
            return "device";
        }
    }
    let _: &Metadata = meta;
    "special file"
}
