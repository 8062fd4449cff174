//! What the tests of sharing again share: a share that is compared with a full read, and edits that leave as little to see
//! as they can.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails at the right line")]

use std::{
    fs::{self, File, FileTimes},
    io::Write as _,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
    sync::atomic::AtomicBool,
    time::{Duration, SystemTime},
};

use shoal_content::{Profile, SHOAL_V1};
use shoal_store::{ImportOptions, Imported, Options, Store, import};

use crate::import_support::noise;

/// A clock by which all that the tests write was written long ago.
pub(crate) fn later() -> SystemTime {
    SystemTime::now() + Duration::from_secs(3600)
}

pub(crate) fn share_with(
    store: &Store,
    path: &Path,
    profile: &Profile,
    now: Option<SystemTime>,
    read_all: bool,
) -> Imported {
    let options = ImportOptions { threads: 2, now, read_all, ..ImportOptions::default() };
    import(store, path, profile, &options, &|_| {}, &AtomicBool::new(false)).unwrap()
}

/// Shares a path, and compares with what a new store makes of it, which has to read all of it.
pub(crate) fn share(store: &Store, path: &Path) -> Imported {
    let shared = share_with(store, path, &SHOAL_V1, Some(later()), false);
    let new = tempfile::tempdir().unwrap();
    let new = Store::open(new.path(), Options::default()).unwrap();
    let read = share_with(&new, path, &SHOAL_V1, Some(later()), false);
    assert_eq!((shared.root, shared.bytes, shared.files), (read.root, read.bytes, read.files));
    assert_eq!(read.unread_files, 0);
    let manifest = store.manifest(&shared.root).unwrap();
    for leaf in manifest.leaves() {
        assert_eq!(store.read(&leaf.cid).unwrap().len(), leaf.len as usize);
    }
    shared
}

pub(crate) fn times(path: &Path) -> FileTimes {
    let meta = fs::metadata(path).unwrap();
    FileTimes::new().set_accessed(meta.accessed().unwrap()).set_modified(meta.modified().unwrap())
}

pub(crate) fn changed(path: &Path) -> (i64, i64) {
    fs::metadata(path).map_or((0, 0), |meta| (meta.ctime(), meta.ctime_nsec()))
}

/// Does something to a file, and sets its modification time back. Again, until the file system's clock shows it: the
/// tests' own clock says that all of this is long ago, which is what the margin of a real import is for.
pub(crate) fn sly(path: &Path, mut edit: impl FnMut()) {
    let before = (changed(path), times(path), fs::metadata(path).unwrap().modified().unwrap());
    while changed(path) == before.0 {
        edit();
        File::options().write(true).open(path).unwrap().set_times(before.1).unwrap();
    }
    assert_eq!(fs::metadata(path).unwrap().modified().unwrap(), before.2);
}

pub(crate) fn in_place(path: &Path) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(b"other", fs::metadata(path).unwrap().len() / 2).unwrap();
}

pub(crate) fn rewritten(path: &Path) {
    let len = fs::metadata(path).unwrap().len() as usize;
    let mut file = File::options().write(true).truncate(true).open(path).unwrap();
    file.write_all(&noise(99, len)).unwrap();
}

pub(crate) fn replaced(path: &Path) {
    let beside = path.with_extension("new");
    fs::write(&beside, noise(98, fs::metadata(path).unwrap().len() as usize)).unwrap();
    File::options().write(true).open(&beside).unwrap().set_times(times(path)).unwrap();
    fs::rename(&beside, path).unwrap();
}
