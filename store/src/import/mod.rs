//! Share in place: walks a path, cuts and hashes its files on all cores, and stages references to them.
//!
//! [`import`] is the one entry. Nothing is copied: leaves stay in the user's files and only nodes go into packs. The
//! root's record is put last, so an import that fails or is cancelled leaves no root behind, only references that a
//! later import of the same path takes up again. Files are read with large positioned reads into buffers that are
//! reused; memory is bounded by threads, not by file sizes. A file that was read before and cannot have been written to
//! since is not read again (see `memory`).
//!
//! Never here: writing to what is shared, following symlinks inside a tree, trusting a modification time.

mod error;
mod layout;
mod memory;
mod scan;
mod segments;
mod source;
mod tree;

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::SystemTime,
};

use shoal_content::{Cid, MAX_PATH_BYTES, MAX_PATH_PARTS, Profile, WalkLimits};

use crate::{BaseId, Hold, RootKind, RootRecord, Store, known::Known, locks::read};

pub use error::ImportError;
pub(crate) use error::shown;
pub(crate) use source::{read_at, stamp_of};

/// Bytes between two progress events: small against the 100 ms in which a terminal is redrawn, large against a chunk.
const REPORT_BYTES: u64 = 4 << 20;

/// Files between two progress events, for trees of small files.
const REPORT_FILES: u64 = 512;

/// How a path is imported. `ImportOptions::default()` uses every core and refuses special files.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Threads that read and hash; 0 for one per core that this process may use.
    pub threads: usize,
    /// Leave sockets, fifos and devices out, and count them, instead of refusing the tree.
    pub skip_special: bool,
    /// When the root was shared, in seconds since the Unix epoch, for its record. The store reads no clock.
    pub created_unix: u64,
    /// When the root is to be forgotten, in seconds since the Unix epoch.
    pub expires_unix: Option<u64>,
    /// The system's clock at the beginning of the import: what files were changed shortly before is read again next time. The
    /// store reads no clock; with `None` everything is read, and nothing remembered.
    pub now: Option<SystemTime>,
    /// Read every file, those as well that look as if nobody had written to them since they were last read.
    pub read_all: bool,
}

/// How far an import is. Counts are totals so far, never differences; events come from any thread, out of order by a
/// little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImportEvent {
    /// The tree is being listed.
    Scanning {
        /// Files found so far.
        files: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// All is listed; reading begins. Its totals are what `Reading` counts up to.
    Scanned {
        /// Files to read.
        files: u64,
        /// Bytes to read.
        bytes: u64,
    },
    /// Files are being read, cut and hashed.
    Reading {
        /// Files done.
        files: u64,
        /// Bytes done.
        bytes: u64,
    },
    /// All is read; what was staged is being made durable.
    Committing,
}

/// What an import made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The root.
    pub root: Cid,
    /// The name it goes by: the last part of the path.
    pub name: String,
    /// The absolute path that was shared, without symlinks.
    pub path: PathBuf,
    /// What its references hang off.
    pub base: BaseId,
    /// Bytes of all files.
    pub bytes: u64,
    /// Files.
    pub files: u64,
    /// Directories, the root's included.
    pub dirs: u64,
    /// Symlinks.
    pub symlinks: u64,
    /// Special files left out, with `skip_special`.
    pub skipped: u64,
    /// Chunks, duplicates counted.
    pub chunks: u64,
    /// Nodes, duplicates counted.
    pub nodes: u64,
    /// Files that were not read again, since nobody has written to them since an earlier import of the same path.
    pub unread_files: u64,
    /// Their bytes.
    pub unread_bytes: u64,
}

/// Shares `path` in place: a file or a tree. Returns when the root and everything below it are durable.
///
/// The same content under the same profile gives the same root, whatever the threads; importing a path again is fine
/// and keeps the pin and the date of its record. `path` itself may be a symlink; inside a tree, symlinks are kept as
/// symlinks. Of the mode, the executable bits are kept where the profile keeps them.
///
/// `progress` is called from the reading threads, about every 4 MiB. `cancel` is looked at between chunks.
///
/// # Errors
/// [`ImportError`]; no root is recorded then.
pub fn import(
    store: &Store,
    path: &Path,
    profile: &Profile,
    options: &ImportOptions,
    progress: &(dyn Fn(ImportEvent) + Sync),
    cancel: &AtomicBool,
) -> Result<Imported, ImportError> {
    let real = path.canonicalize().map_err(|source| ImportError::open(path, source))?;
    let name = name_of(path, &real)?;
    let kind = real.symlink_metadata().map_err(|source| ImportError::open(path, source))?;
    let hold = store.hold();
    // Of a path that is new here nothing can be remembered, so that no file of it is looked up.
    let is_new = !read(&store.inner.bases).by_path.contains_key(&*real);
    let run = Run {
        store,
        hold: &hold,
        profile,
        base: hold.add_base(&real)?,
        base_path: &real,
        threads: threads(options.threads),
        now: options.now,
        read_all: options.read_all || is_new,
        progress,
        cancel,
        failed: AtomicBool::new(false),
        bytes: AtomicU64::new(0),
        files: AtomicU64::new(0),
        chunks: AtomicU64::new(0),
        nodes: AtomicU64::new(0),
        unread_files: AtomicU64::new(0),
        unread_bytes: AtomicU64::new(0),
    };

    let (root, counts) = if kind.is_dir() {
        let tree = scan::scan(&real, options.skip_special, &run)?;
        let counts = tree.counts;
        check_fetchable(&counts, &real)?;
        (tree::build(&run, tree)?, counts)
    } else if !kind.is_file() {
        return Err(ImportError::Special { path: real.clone(), kind: source::special_kind(&kind) });
    } else {
        let one = |bytes| {
            run.report(ImportEvent::Scanned { files: 1, bytes });
            scan::Counts { files: 1, bytes, ..scan::Counts::default() }
        };
        match run.unread(&real, "")? {
            Some(link) => (link, one(link.size)),
            None => {
                let opened = source::Opened::open(&real)?;
                let counts = one(opened.stamp.size);
                (tree::single(&run, &opened)?, counts)
            }
        }
    };
    run.check()?;
    run.report(ImportEvent::Reading { files: counts.files, bytes: counts.bytes });
    run.report(ImportEvent::Committing);

    let imported = Imported {
        root: root.cid,
        name,
        bytes: root.size,
        files: counts.files,
        dirs: counts.dirs,
        symlinks: counts.symlinks,
        skipped: counts.skipped,
        chunks: run.chunks.into_inner(),
        nodes: run.nodes.into_inner(),
        unread_files: run.unread_files.into_inner(),
        unread_bytes: run.unread_bytes.into_inner(),
        base: run.base,
        path: real,
    };
    record(store, &imported, options)?;
    Ok(imported)
}

/// Puts the root's record, with everything staged before it. What the user decided about the root earlier stays.
fn record(store: &Store, imported: &Imported, options: &ImportOptions) -> Result<(), ImportError> {
    store.put_root_after(imported.root, |earlier| {
        Some(RootRecord {
            root: imported.root,
            name: imported.name.clone(),
            kind: RootKind::Shared,
            base: Some(imported.base),
            path: imported.path.clone(),
            bytes: imported.bytes,
            files: imported.files,
            complete: true,
            pinned: earlier.as_ref().is_some_and(|record| record.pinned),
            provide: true,
            created_unix: earlier.as_ref().map_or(options.created_unix, |record| record.created_unix),
            selection: None,
            resume: None,
            expires_unix: options.expires_unix,
            pinned_until_unix: earlier.and_then(|record| record.pinned_until_unix),
        })
    })?;
    Ok(())
}

/// Refuses what no one could fetch, before any of it is read.
fn check_fetchable(counts: &scan::Counts, path: &Path) -> Result<(), ImportError> {
    let limits = WalkLimits::default();
    let entries = counts.files + counts.dirs + counts.symlinks;
    let reason = if counts.depth > MAX_PATH_PARTS as u64 {
        format!("its directories nest {} deep, and {MAX_PATH_PARTS} is the limit", counts.depth)
    } else if counts.path_bytes > MAX_PATH_BYTES as u64 {
        format!("a path in it is {} bytes long, and {MAX_PATH_BYTES} is the limit", counts.path_bytes)
    } else if entries > limits.entries as u64 {
        format!("it has {entries} entries, and {} is the limit", limits.entries)
    } else {
        return Ok(());
    };
    Err(ImportError::Unfetchable { path: path.to_owned(), reason })
}

/// The last part of the path as it was given; of the real one where that says nothing (`.`, `..`, `/`).
fn name_of(path: &Path, real: &Path) -> Result<String, ImportError> {
    let given = path.components().next_back().and_then(|part| match part {
        std::path::Component::Normal(name) => Some(name),
        _ => None,
    });
    let name = given.or_else(|| real.file_name()).unwrap_or("root".as_ref());
    name.to_str().map(str::to_owned).ok_or_else(|| ImportError::NotUtf8 { path: path.to_owned() })
}

/// One thread per core that this process may use, unless a number is asked for. More than 64 only contend.
pub(crate) fn threads(asked: usize) -> usize {
    let threads = if asked == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { asked };
    threads.clamp(1, 64)
}

/// What the threads of one import share.
struct Run<'a> {
    store: &'a Store,
    /// On what there is before the root's record.
    hold: &'a Hold,
    profile: &'a Profile,
    base: BaseId,
    base_path: &'a Path,
    threads: usize,
    now: Option<SystemTime>,
    read_all: bool,
    progress: &'a (dyn Fn(ImportEvent) + Sync),
    cancel: &'a AtomicBool,
    /// Another thread failed; its error is the one that counts.
    failed: AtomicBool,
    bytes: AtomicU64,
    files: AtomicU64,
    chunks: AtomicU64,
    nodes: AtomicU64,
    unread_files: AtomicU64,
    unread_bytes: AtomicU64,
}

impl Run<'_> {
    fn report(&self, event: ImportEvent) {
        (self.progress)(event);
    }

    /// Counts what was read, tells about it now and then, and says whether to go on.
    fn advance(&self, bytes: u64, files: u64) -> Result<(), ImportError> {
        let bytes_before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let files_before = self.files.fetch_add(files, Ordering::Relaxed);
        let (bytes, files) = (bytes_before + bytes, files_before + files);
        if bytes / REPORT_BYTES != bytes_before / REPORT_BYTES || files / REPORT_FILES != files_before / REPORT_FILES {
            self.report(ImportEvent::Reading { files, bytes });
        }
        self.check()
    }

    fn check(&self) -> Result<(), ImportError> {
        if self.cancel.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed) {
            return Err(ImportError::Cancelled);
        }
        Ok(())
    }

    fn count_unread(&self, known: &Known) {
        self.unread_files.fetch_add(1, Ordering::Relaxed);
        self.unread_bytes.fetch_add(known.link.size, Ordering::Relaxed);
        self.chunks.fetch_add(known.chunks, Ordering::Relaxed);
        self.nodes.fetch_add(known.nodes, Ordering::Relaxed);
    }

    /// Puts the nodes that a builder pushed, and empties the list.
    fn put_nodes(&self, blocks: &mut Vec<shoal_content::Block>) -> Result<(), ImportError> {
        self.nodes.fetch_add(blocks.len() as u64, Ordering::Relaxed);
        for block in blocks.drain(..) {
            self.hold.keep(&block.cid);
            self.store.put(&block.cid, &block.bytes)?;
        }
        Ok(())
    }

    /// Keeps the error that says most: the one that made the others stop.
    fn first_error(&self, errors: impl IntoIterator<Item = ImportError>) -> Option<ImportError> {
        let mut first = None;
        for error in errors {
            match (&first, &error) {
                (None, _) | (Some(ImportError::Cancelled), _) => first = Some(error),
                _ => {}
            }
        }
        first
    }
}
