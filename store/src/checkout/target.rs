//! Targets: what lands under one name. A whole root is one target; of several selected paths each is one.
//! Which entries of the manifest belong to it, what they are called inside it, and what its partial is called.

use std::path::{Path, PathBuf};

use shoal_content::{EntryKind, Manifest, RelPath};

use super::{CheckoutError, ground::Ground};
use crate::{BaseId, Store};

/// Longest name of a file on the file systems of today, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// What ends the name of a partial destination.
const PART: &str = ".shoal-part";

/// A target as it was asked for, before the disk is looked at.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Its path in the root; empty for the whole root.
    pub(super) top: RelPath,
    /// The name it lands under.
    pub(crate) name: String,
    /// Its entries in the manifest, the first being the target itself.
    pub(crate) first: u32,
    pub(crate) end: u32,
    /// Whether it is a directory.
    pub(super) tree: bool,
}

/// A target that is being written.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) plan: Plan,
    /// Where it lands in the end.
    pub(super) dest: PathBuf,
    /// Where it is now.
    pub(super) at: PathBuf,
    /// The name of its partial.
    pub(super) part: String,
    pub(super) base: BaseId,
    pub(super) ground: Ground,
    /// The destination was there already, byte for byte: there is nothing to write and nothing to rename.
    pub(super) done: bool,
    /// A partial was there already.
    pub(super) resumed: bool,
}

impl Plan {
    /// Whether an entry of the manifest belongs to this target.
    pub(super) fn holds(&self, entry: u32) -> bool {
        (self.first..self.end).contains(&entry)
    }

    /// The path of an entry inside the target; empty for the target itself.
    pub(crate) fn rel<'m>(&self, manifest: &'m Manifest, entry: u32) -> &'m str {
        let path = manifest.entries().get(entry as usize).map_or("", |entry| entry.path.as_str());
        path.get(self.top.as_str().len()..).unwrap_or("").trim_start_matches('/')
    }

    /// The name of the partial: hidden, recognisable, the same each time, and another one for another root or path.
    pub(super) fn part_name(&self, manifest: &Manifest) -> String {
        let short = if self.top.is_root() {
            let text = manifest.root().to_string();
            text[text.len().saturating_sub(12)..].to_owned()
        } else {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&manifest.root().key());
            hasher.update(self.top.as_str().as_bytes());
            hasher.finalize().to_hex()[..12].to_owned()
        };
        let room = MAX_NAME_BYTES - short.len() - PART.len() - 2;
        let name = &self.name[..self.name.floor_char_boundary(room)];
        format!(".{name}.{short}{PART}")
    }
}

/// Where a partial that is no longer there would have landed, if something is there: a crash came between its renaming
/// and the store's hearing of it. A guess by the name, for content is hashed when it is read.
pub(crate) fn landed(part: &Path) -> Option<PathBuf> {
    let (name, short) = part.file_name()?.to_str()?.strip_prefix('.')?.strip_suffix(PART)?.rsplit_once('.')?;
    let dest = part.with_file_name(name);
    (short.len() == 12 && !part.exists() && dest.exists()).then_some(dest)
}

impl Target {
    /// Where an entry is now, for messages.
    pub(super) fn path(&self, rel: &str) -> PathBuf {
        if rel.is_empty() { self.at.clone() } else { self.at.join(rel) }
    }
}

/// Lays out what was selected: every path lands under the name of its last part, the whole root under `name`. Targets
/// come in the order of their entries.
pub(crate) fn plan(manifest: &Manifest, paths: &[RelPath], name: &str) -> Result<Vec<Plan>, CheckoutError> {
    let mut tops: Vec<&RelPath> = if paths.is_empty() { Vec::new() } else { paths.iter().collect() };
    let whole = RelPath::root();
    if tops.is_empty() || tops.iter().any(|top| top.is_root()) {
        tops = vec![&whole];
    }
    tops.sort();
    tops.dedup();
    let all = tops.clone();
    tops.retain(|top| !all.iter().any(|other| other != top && top.starts_with(other)));

    let mut plans = Vec::with_capacity(tops.len());
    for top in tops {
        let entries = manifest.entries();
        let Some(first) = entries.iter().position(|entry| entry.path == *top) else {
            // `Manifest::select` was asked before and knows them all.
            let (path, root) = (top.clone(), manifest.root());
            return Err(shoal_content::SelectError::NotFound { path, root }.into());
        };
        let below = entries[first..].iter().take_while(|entry| entry.path.starts_with(top)).count();
        let tree = match &entries[first].kind {
            EntryKind::Dir => true,
            EntryKind::File { .. } => false,
            EntryKind::Symlink { target } => {
                return Err(CheckoutError::OnlySymlink { path: top.clone(), target: target.to_string() });
            }
        };
        let name = top.file_name().unwrap_or(name);
        check_name(name)?;
        plans.push(Plan {
            top: top.clone(),
            name: name.to_owned(),
            first: first as u32,
            end: (first + below) as u32,
            tree,
        });
    }
    plans.sort_by_key(|plan| plan.first);
    let mut names: Vec<&str> = plans.iter().map(|plan| &*plan.name).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(CheckoutError::SameName { name: pair[0].to_owned() }),
        None => Ok(plans),
    }
}

/// A name from a link is a stranger's: it has to be one part of a path and no more.
fn check_name(name: &str) -> Result<(), CheckoutError> {
    match name.parse::<RelPath>() {
        Ok(path) if path.file_name() == Some(name) && path.parts().count() == 1 => Ok(()),
        Ok(_) => Err(CheckoutError::Name { name: name.to_owned(), source: None }),
        Err(source) => Err(CheckoutError::Name { name: name.to_owned(), source: Some(source) }),
    }
}

/// Whether the file system of `parent` takes two spellings of a name for one. Tried once, with a file of ours.
pub(super) fn ignores_case(parent: &cap_std::fs::Dir) -> std::io::Result<bool> {
    let probe = format!(".shoal-{}-case-probe", std::process::id());
    drop(parent.create(&probe)?);
    let same = parent.symlink_metadata(probe.to_uppercase()).is_ok();
    parent.remove_file(&probe)?;
    Ok(same)
}

/// The directory that everything lands in, absolute and without symlinks.
pub(super) fn open_parent(dir: &Path, store: &Store) -> Result<(cap_std::fs::Dir, PathBuf), CheckoutError> {
    let failed = |action| {
        let path = dir.to_owned();
        move |source| CheckoutError::Io { action, path, source }
    };
    let disk = store.disk();
    disk.make_dirs(dir).map_err(failed("create"))?;
    let real = dir.canonicalize().map_err(failed("open"))?;
    // What lands in it is promised long before the end.
    let synced = real.parent().map_or(Ok(()), |above| disk.sync_ancestors(above));
    synced.map_err(|source| store.sync_failed(&real, source))?;
    let parent = cap_std::fs::Dir::open_ambient_dir(&real, cap_std::ambient_authority()).map_err(failed("open"))?;
    Ok((parent, real))
}
