//! Which files need not be read again: what of a file's metadata shows that it was not written to since it was read, and
//! when that is not to be relied upon. Any doubt means reading. Nothing here opens a file.
//!
//! The change time (`ctime`) is what this rests on: every write sets it, and no tool can set it back, as `touch -d`,
//! `cp -p` or `rsync -t` set the modification time. Size, modification time, inode and device have to agree besides.

use std::{
    fs::{File, Metadata},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use shoal_content::Link;

use super::{ImportError, Run};
use crate::value::Memory;

/// A file that was written to this shortly before an import looks at it may be written to again under the same times:
/// those of a file system are as coarse as 2 s.
const RACY: Duration = Duration::from_secs(2);

/// What a file looked like. Two looks that are equal, and settled, are of the same content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    inode: u64,
    device: u64,
}

impl Look {
    /// `None` where the platform or the file system does not have what it takes.
    pub(super) fn of(meta: &Metadata) -> Option<Self> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt as _;
            let look = Self {
                size: meta.len(),
                modified: (meta.mtime(), meta.mtime_nsec()),
                changed: (meta.ctime(), meta.ctime_nsec()),
                inode: meta.ino(),
                device: meta.dev(),
            };
            // Zeroes stand for what a file system does not keep.
            (look.inode != 0 && look.changed != (0, 0)).then_some(look)
        }
        #[cfg(not(unix))]
        {
            let _: &Metadata = meta;
            None
        }
    }

    /// Whether both times lay well behind at `now`. Times to come do not: then a clock is or was wrong.
    fn is_settled(&self, now: SystemTime) -> bool {
        let Some(until) = now.checked_sub(RACY).and_then(|until| until.duration_since(UNIX_EPOCH).ok()) else {
            return false;
        };
        let until = (i64::try_from(until.as_secs()).unwrap_or(i64::MAX), i64::from(until.subsec_nanos()));
        self.modified < until && self.changed < until
    }

    fn bytes(&self) -> [u8; 56] {
        let numbers = [
            self.size,
            self.modified.0.cast_unsigned(),
            self.modified.1.cast_unsigned(),
            self.changed.0.cast_unsigned(),
            self.changed.1.cast_unsigned(),
            self.inode,
            self.device,
        ];
        let mut bytes = [0; 56];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }
}

impl Run<'_> {
    fn print(&self, look: &Look) -> u64 {
        self.store.inner.ids.print(&[b"look", &look.bytes(), self.profile.name.as_bytes()])
    }

    /// What to remember of a file that was read whole and looked like this before and after.
    pub(super) fn memory(&self, file: &File, look: &Look, link: &Link) -> Option<Memory> {
        let now = self.now?;
        let settled = look.size > 0 && look.is_settled(now) && tells_changes(file);
        settled.then(|| Memory { print: self.print(look), cid: link.cid, dag_size: link.dag_size })
    }

    /// The tree of a file that was not written to since it was read; it counts as done then. `None`: it is to be read.
    pub(super) fn unread(&self, path: &Path, rel: &str) -> Result<Option<Link>, ImportError> {
        let Some(now) = self.now.filter(|_| !self.read_all) else { return Ok(None) };
        // Whatever is wrong with it, opening it will tell.
        let Ok(meta) = path.symlink_metadata() else { return Ok(None) };
        let look = Look::of(&meta).filter(|look| meta.is_file() && look.is_settled(now));
        let Some(look) = look else { return Ok(None) };
        let known = self.store.known(self.hold, self.base, rel, look.size, self.print(&look))?;
        let Some(known) = known else { return Ok(None) };
        self.count_unread(&known);
        self.advance(look.size, 0)?;
        Ok(Some(known.link))
    }
}

/// Whether the file system is one that sets the change time at every write and keeps it, and whose inodes mean something.
/// Others give what a server or a driver makes up, or what was true some seconds ago.
fn tells_changes(file: &File) -> bool {
    #[cfg(target_os = "linux")]
    {
        // From linux/magic.h, and ZFS's own: ext2 to ext4, XFS, Btrfs, F2FS, bcachefs, ZFS, tmpfs, overlayfs.
        const KNOWN: [u32; 8] =
            [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0xca45_1a4e, 0x2fc1_2fc1, 0x0102_1994, 0x794c_7630];
        // The field is a signed or an unsigned number, of 32 or 64 bits, with the platform.
        rustix::fs::fstatfs(file).is_ok_and(|fs| KNOWN.contains(&(fs.f_type as u32)))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _: &File = file;
        true
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn look(modified: (i64, i64), changed: (i64, i64)) -> Look {
        Look { size: 1, modified, changed, inode: 2, device: 3 }
    }

    #[test]
    fn times_of_the_last_two_seconds_or_of_the_future_are_not_relied_upon() {
        let now = UNIX_EPOCH + Duration::new(1000, 500);
        let settled = |modified, changed| look(modified, changed).is_settled(now);
        assert!(settled((998, 499), (998, 499)));
        assert!(settled((-5, 0), (1, 0)));
        for racy in [(998, 500), (998, 501), (999, 0), (1000, 500), (1001, 0), (i64::MAX, 0)] {
            assert!(!settled(racy, (1, 0)), "{racy:?}");
            assert!(!settled((1, 0), racy), "{racy:?}");
        }
        assert!(!look((0, 0), (0, 0)).is_settled(UNIX_EPOCH));
        assert!(!look((0, 0), (0, 0)).is_settled(UNIX_EPOCH - Duration::from_secs(5)));
    }

    #[test]
    fn everything_about_a_look_is_in_its_bytes() {
        let one = look((4, 5), (6, 7));
        let others = [
            Look { size: 9, ..one },
            Look { inode: 9, ..one },
            Look { device: 9, ..one },
            look((9, 5), (6, 7)),
            look((4, 9), (6, 7)),
            look((4, 5), (9, 7)),
            look((4, 5), (6, 9)),
        ];
        others.iter().for_each(|other| assert_ne!(one.bytes(), other.bytes(), "{other:?}"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_the_kernel_makes_up_is_not_relied_upon() {
        assert!(!tells_changes(&File::open("/proc/version").unwrap()));
    }
}
