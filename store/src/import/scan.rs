//! Lists a tree before anything of it is read, so that what cannot be shared is known at once and progress has a total.
//! Entries are sorted by the bytes of their names; symlinks are kept, never followed.

use std::{fs, path::Path};

use super::{ImportError, ImportEvent, REPORT_FILES, Run, source::special_kind};

/// Totals of a tree.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) dirs: u64,
    pub(super) symlinks: u64,
    pub(super) skipped: u64,
    /// Of the deepest directory, the root being 1.
    pub(super) depth: u64,
    /// Of the longest path below the root.
    pub(super) path_bytes: u64,
}

/// A listed tree. A directory comes after the one it is in; the first is the root.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) dirs: Vec<Dir>,
    pub(super) files: Vec<Listed>,
    pub(super) counts: Counts,
}

/// A directory of a listed tree.
#[derive(Debug)]
pub(super) struct Dir {
    /// Its path below the root, parts joined by `/`; empty for the root.
    pub(super) rel: Box<str>,
    /// What it holds, sorted by the bytes of the names.
    pub(super) entries: Vec<Entry>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Box<str>,
    pub(super) kind: Kind,
}

/// Indexes are into the lists of [`Tree`].
#[derive(Debug)]
pub(super) enum Kind {
    File(u32),
    Dir(u32),
    Symlink(Box<str>),
}

/// A file of a listed tree: where its entry is, and how long it was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listed {
    pub(super) dir: u32,
    pub(super) entry: u32,
    pub(super) size: u64,
}

impl Tree {
    /// A file's path below the root.
    pub(super) fn rel(&self, file: Listed, into: &mut String) {
        let dir = &self.dirs[file.dir as usize];
        into.clear();
        into.push_str(&dir.rel);
        if !dir.rel.is_empty() {
            into.push('/');
        }
        into.push_str(&dir.entries[file.entry as usize].name);
    }
}

/// Lists everything below `root`.
pub(super) fn scan(root: &Path, skip_special: bool, run: &Run<'_>) -> Result<Tree, ImportError> {
    let mut tree = Tree::default();
    tree.dirs.push(Dir { rel: "".into(), entries: Vec::new() });
    // Depth first, so that files are read in the order in which a fetch will ask for them.
    let mut open = vec![(0_u32, 1_u64)];
    while let Some((dir, depth)) = open.pop() {
        run.check()?;
        tree.counts.dirs += 1;
        tree.counts.depth = tree.counts.depth.max(depth);
        let files_before = tree.counts.files;
        list(root, dir, skip_special, &mut tree)?;
        if tree.counts.files / REPORT_FILES != files_before / REPORT_FILES {
            run.report(ImportEvent::Scanning { files: tree.counts.files, bytes: tree.counts.bytes });
        }
        let below = tree.dirs.len();
        let Tree { dirs, files, counts } = &mut tree;
        let mut found = Vec::new();
        let parent = &mut dirs[dir as usize];
        for (index, entry) in parent.entries.iter_mut().enumerate() {
            match &mut entry.kind {
                Kind::File(size_or_file) => {
                    // `list` left the position in `files`, unsorted; say which entry it became.
                    files[*size_or_file as usize].entry = index as u32;
                }
                Kind::Dir(child) => {
                    *child = (below + found.len()) as u32;
                    let slash = if parent.rel.is_empty() { "" } else { "/" };
                    found.push(Dir { rel: format!("{}{slash}{}", parent.rel, entry.name).into(), entries: Vec::new() });
                }
                Kind::Symlink(_) => counts.symlinks += 1,
            }
        }
        open.extend((below..below + found.len()).rev().map(|child| (child as u32, depth + 1)));
        dirs.append(&mut found);
    }
    run.report(ImportEvent::Scanned { files: tree.counts.files, bytes: tree.counts.bytes });
    Ok(tree)
}

/// Lists one directory: its entries sorted, its files appended to the tree's.
fn list(root: &Path, dir: u32, skip_special: bool, tree: &mut Tree) -> Result<(), ImportError> {
    let at = root.join(&*tree.dirs[dir as usize].rel);
    let failed = |source| ImportError::io("list", &at, source);
    let prefix = tree.dirs[dir as usize].rel.len() as u64 + 1;
    let mut entries = Vec::new();
    for found in fs::read_dir(&at).map_err(failed)? {
        let found = found.map_err(failed)?;
        let name =
            found.file_name().into_string().map_err(|_| ImportError::NotUtf8 { path: found.path() })?.into_boxed_str();
        let unread = |source| ImportError::io("read", &found.path(), source);
        let kind = found.file_type().map_err(unread)?;
        let kind = if kind.is_dir() {
            Kind::Dir(0)
        } else if kind.is_symlink() {
            let target = fs::read_link(found.path()).map_err(unread)?;
            let Some(target) = target.to_str() else {
                return Err(ImportError::TargetNotUtf8 { path: found.path() });
            };
            Kind::Symlink(target.into())
        } else {
            let meta = found.metadata().map_err(unread)?;
            if !meta.is_file() {
                if skip_special {
                    tree.counts.skipped += 1;
                    continue;
                }
                return Err(ImportError::Special { path: found.path(), kind: special_kind(&meta) });
            }
            let index = tree.files.len() as u32;
            tree.files.push(Listed { dir, entry: 0, size: meta.len() });
            tree.counts.files += 1;
            tree.counts.bytes += meta.len();
            Kind::File(index)
        };
        tree.counts.path_bytes = tree.counts.path_bytes.max(prefix + name.len() as u64);
        entries.push(Entry { name, kind });
    }
    entries.sort_unstable_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
    entries.shrink_to_fit();
    tree.dirs[dir as usize].entries = entries;
    Ok(())
}
