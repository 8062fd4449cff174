//! Ending a checkout: what has no leaves, durability, and the rename that never clobbers.

use std::{io, path::PathBuf};

use cap_std::fs::Dir;
use shoal_content::{EntryKind, Source};

use super::{
    Checkout, CheckoutError,
    begin::{identical, kind_of, record},
    ground::sync_dir,
    symlinks::{self, SkippedSymlink, SymlinkSkip},
    target::Target,
};
use crate::{disk::Op, failpoint};

/// Files and directories beyond this number are synced through their file system as a whole.
const MAX_SINGLE_SYNCS: usize = 16;

/// A checkout that is done and durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Where the content is: one path for a whole root, one for each selected path.
    pub paths: Vec<PathBuf>,
    /// The symlinks that were not written.
    pub skipped_symlinks: Vec<SkippedSymlink>,
}

/// See [`Checkout::finish`].
pub(super) fn finish(checkout: &Checkout) -> Result<Finished, CheckoutError> {
    if !checkout.is_complete() {
        let missing = checkout.wanted().len() - checkout.have_amount().leaves;
        let path = checkout.targets.first().map_or_else(|| checkout.dir.clone(), |target| target.dest.clone());
        return Err(CheckoutError::Incomplete { missing, path });
    }
    if checkout.repairs {
        checkout.store.commit()?;
        return Ok(Finished { paths: Vec::new(), skipped_symlinks: Vec::new() });
    }
    if checkout.room.is_some() {
        record(checkout, true)?;
        return Ok(Finished { paths: Vec::new(), skipped_symlinks: Vec::new() });
    }
    let mut skipped_symlinks = Vec::new();
    let mut loose = Vec::new();
    for target in &checkout.targets {
        write_symlinks(checkout, target, &mut skipped_symlinks)?;
        if !target.done {
            loose.push(complete_files(checkout, target)?);
        }
    }
    checkout.store.commit()?;
    for (target, loose) in checkout.targets.iter().filter(|target| !target.done).zip(&loose) {
        sync(checkout, target, loose)?;
    }
    for target in checkout.targets.iter().filter(|target| !target.done) {
        target.ground.close();
        failpoint::pass("fetch-before-rename");
        put_in_place(checkout, target)?;
        failpoint::pass("fetch-renamed");
    }
    let disk = checkout.store.disk();
    let synced = disk.run(&Op::SyncDir, &checkout.dir, &mut || sync_dir(&checkout.parent, "."));
    synced.map_err(|source| checkout.sync_failed(&checkout.dir, source))?;
    for target in checkout.targets.iter().filter(|target| !target.done) {
        checkout.store.move_base(target.base, &target.dest)?;
    }
    record(checkout, true)?;
    Ok(Finished { paths: checkout.targets.iter().map(|target| target.dest.clone()).collect(), skipped_symlinks })
}

/// Writes the symlinks of a target, or says why not.
fn write_symlinks(
    checkout: &Checkout,
    target: &Target,
    skipped: &mut Vec<SkippedSymlink>,
) -> Result<(), CheckoutError> {
    let manifest = &checkout.manifest;
    for entry in target.plan.first..target.plan.end {
        let Some(EntryKind::Symlink { target: points_to }) = kind_of(manifest, entry) else { continue };
        let rel = target.plan.rel(manifest, entry);
        let reason = match target.ground.dir() {
            _ if !checkout.options.symlinks => SymlinkSkip::NotAsked,
            _ if !symlinks::stays_inside(rel, points_to) => SymlinkSkip::LeavesDestination,
            Some(dir) if target.done && dir.symlink_metadata(rel).is_ok() => continue,
            Some(dir) if !target.done => {
                let written = symlinks::write(dir, rel, points_to);
                written.map_err(|source| checkout.failed("create the symlink", target.path(rel), source))?;
                continue;
            }
            _ => SymlinkSkip::DestinationKept,
        };
        if let Some(entry) = manifest.entries().get(entry as usize) {
            skipped.push(SkippedSymlink { path: entry.path.clone(), target: points_to.to_string(), reason });
        }
    }
    Ok(())
}

/// Makes empty files, restores executable bits and tells the store what the big files look like now. Gives the files
/// that no commit syncs, since no reference points into them.
fn complete_files<'c>(checkout: &'c Checkout, target: &Target) -> Result<Vec<&'c str>, CheckoutError> {
    let manifest = &*checkout.manifest;
    let mut loose = Vec::new();
    for entry in target.plan.first..target.plan.end {
        let Some(EntryKind::File { size, executable, extents }) = kind_of(manifest, entry) else { continue };
        let rel = target.plan.rel(manifest, entry);
        let failed = |source| checkout.failed("write", target.path(rel), source);
        let inline = |entry| manifest.pieces(entry).any(|piece| matches!(piece.source, Source::Inline(_)));
        if *size == 0 {
            let file = target.ground.write(rel, *executable).map_err(failed)?;
            target.ground.set_len(&file, rel, 0).map_err(failed)?;
            loose.push(rel);
        } else if inline(entry) {
            loose.push(rel);
        }
        if target.resumed && *executable {
            let file = target.ground.read(rel).map_err(failed)?;
            restore_executable(&file).map_err(failed)?;
        }
        if extents.len() > 1 {
            checkout.stage_stamp(target, entry)?;
        }
    }
    Ok(loose)
}

/// Makes a file executable by whoever may read it.
fn restore_executable(file: &std::fs::File) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = file.metadata()?.permissions().mode();
        if mode & 0o111 == 0 {
            file.set_permissions(std::fs::Permissions::from_mode(mode | (mode & 0o444) >> 2))?;
        }
    }
    #[cfg(not(unix))]
    let _: &std::fs::File = file;
    Ok(())
}

/// Syncs the names of a tree, and the files that the store's commit knows nothing of.
fn sync(checkout: &Checkout, target: &Target, loose: &[&str]) -> Result<(), CheckoutError> {
    let manifest = &checkout.manifest;
    let dirs = || {
        (target.plan.first..target.plan.end)
            .filter(|&entry| matches!(kind_of(manifest, entry), Some(EntryKind::Dir)))
            .map(|entry| target.plan.rel(manifest, entry))
    };
    let one_by_one = || -> io::Result<()> {
        for rel in loose {
            target.ground.sync_file(rel)?;
        }
        dirs().try_for_each(|rel| target.ground.sync_dir(rel))
    };
    #[cfg(target_os = "linux")]
    let synced = match target.ground.dir() {
        Some(_) if loose.len() + dirs().take(MAX_SINGLE_SYNCS + 1).count() > MAX_SINGLE_SYNCS => {
            target.ground.sync_fs()
        }
        _ => one_by_one(),
    };
    #[cfg(not(target_os = "linux"))]
    let synced = one_by_one();
    synced.map_err(|source| checkout.sync_failed(&target.at, source))
}

/// Renames the partial to its destination. What appeared there meanwhile is either the same content, or in the way.
fn put_in_place(checkout: &Checkout, target: &Target) -> Result<(), CheckoutError> {
    let (parent, part, name) = (&checkout.parent, &*target.part, &*target.plan.name);
    let renamed = checkout
        .store
        .disk()
        .run(&Op::Rename(&target.dest), &target.at, &mut || rename_to_new(parent, part, name, target.plan.tree));
    let Err(error) = renamed else { return Ok(()) };
    if !matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) {
        return Err(checkout.failed("rename to its final name", target.at.clone(), error));
    }
    let there = identical(&checkout.manifest, &target.plan, checkout.parent(), &checkout.options)?.is_some();
    if there {
        let removed = if target.plan.tree { parent.remove_dir_all(part) } else { parent.remove_file(part) };
        match removed {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(checkout.failed("remove", target.at.clone(), source))
            }
            _ => Ok(()),
        }
    } else if error.kind() == io::ErrorKind::NotFound {
        Err(checkout.failed("find", target.at.clone(), error))
    } else {
        Err(CheckoutError::Exists { path: target.dest.clone() })
    }
}

/// Renames within a directory, or fails with `AlreadyExists`; never replaces anything.
fn rename_to_new(parent: &Dir, from: &str, to: &str, tree: bool) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    {
        use rustix::{
            fs::{RenameFlags, renameat_with},
            io::Errno,
        };
        match renameat_with(parent, from, parent, to, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            // Not every file system can (NFS, some FUSE ones).
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    rename_by_steps(parent, from, to, tree)
}

/// [`rename_to_new`] for file systems without such a call. Making the name is what fails if it exists.
fn rename_by_steps(parent: &Dir, from: &str, to: &str, tree: bool) -> io::Result<()> {
    if tree {
        parent.create_dir(to)?;
        return parent.rename(from, parent, to);
    }
    match parent.hard_link(from, parent, to) {
        Ok(()) => parent.remove_file(from),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        // No hard links either (FAT): look, then rename. Only a name that appears in between is not seen.
        Err(_) if parent.symlink_metadata(to).is_ok() => Err(io::ErrorKind::AlreadyExists.into()),
        Err(_) => parent.rename(from, parent, to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renaming_never_replaces() {
        let home = tempfile::tempdir().unwrap();
        let dir = Dir::open_ambient_dir(home.path(), cap_std::ambient_authority()).unwrap();
        for rename in [rename_to_new, rename_by_steps] {
            for (tree, there_is_tree) in [(false, false), (true, true), (false, true)] {
                let make = |name: &str, tree: bool, holds: &str| {
                    if tree {
                        dir.create_dir(name).unwrap();
                        dir.write(format!("{name}/f"), holds).unwrap();
                    } else {
                        dir.write(name, holds).unwrap();
                    }
                };
                make("from", tree, "new");
                make("to", there_is_tree, "old");
                let error = rename(&dir, "from", "to", tree).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
                assert_eq!(dir.read_to_string(if there_is_tree { "to/f" } else { "to" }).unwrap(), "old");
                if there_is_tree {
                    dir.remove_dir_all("to").unwrap()
                } else {
                    dir.remove_file("to").unwrap()
                }
                rename(&dir, "from", "to", tree).unwrap();
                assert_eq!(dir.read_to_string(if tree { "to/f" } else { "to" }).unwrap(), "new");
                if tree { dir.remove_dir_all("to").unwrap() } else { dir.remove_file("to").unwrap() }
            }
        }
    }
}
