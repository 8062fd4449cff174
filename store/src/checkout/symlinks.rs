//! Symlinks of a fetched tree: which of them stay inside the destination, and writing those.

use std::io;

use cap_std::fs::Dir;
use shoal_content::RelPath;

/// A symlink that was not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedSymlink {
    /// Its path in the root.
    pub path: RelPath,
    /// Where it points; any text, so escape it before showing it.
    pub target: String,
    /// Why.
    pub reason: SymlinkSkip,
}

/// Why a symlink was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SymlinkSkip {
    /// Symlinks were not asked for.
    NotAsked,
    /// It points outside of the destination, or it cannot be told that it never does.
    LeavesDestination,
    /// The destination was there already, without it.
    DestinationKept,
}

impl std::fmt::Display for SymlinkSkip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotAsked => "symlinks were not asked for",
            Self::LeavesDestination => "it points outside of the destination",
            Self::DestinationKept => "the destination was there already, without it",
        })
    }
}

/// Whether a symlink at `rel` (its path in the destination) to `target` stays inside, whatever the other symlinks are.
///
/// A target has to be relative, and may go up only at its beginning, and not above the destination: there it starts from
/// the symlink's own directory, which is a real one. A `..` behind a name could leave, since that name may be a symlink
/// itself. Each link that passes therefore leads from a real directory inside down to a name in it, or on through a link
/// that passes too.
pub(super) fn stays_inside(rel: &str, target: &str) -> bool {
    let mut depth = rel.split('/').count() - 1;
    let mut named = false;
    if target.is_empty() || target.starts_with('/') || cfg!(windows) && target.contains(['\\', ':']) {
        return false;
    }
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if named || depth == 0 => return false,
            ".." => depth -= 1,
            _ => named = true,
        }
    }
    true
}

/// Writes a symlink, replacing one that an interrupted fetch left.
pub(super) fn write(dir: &Dir, rel: &str, target: &str) -> io::Result<()> {
    if dir.symlink_metadata(rel).is_ok_and(|meta| meta.is_symlink()) {
        if dir.read_link_contents(rel).is_ok_and(|found| found.as_os_str() == target) {
            return Ok(());
        }
        dir.remove_file(rel)?;
    }
    #[cfg(not(windows))]
    return dir.symlink(target, rel);
    #[cfg(windows)]
    return dir.symlink_file(target, rel);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_inside() {
        for (rel, target) in [
            ("link", "file"),
            ("link", "./dir/file"),
            ("a/b/link", "../../file"),
            ("a/link", "../b/c"),
            ("a/link", ".."),
            ("link", "."),
            ("link", "dangling/for/now"),
        ] {
            assert!(stays_inside(rel, target), "{rel} -> {target}");
        }
    }

    #[test]
    fn what_does_not() {
        for (rel, target) in [
            ("link", "/etc/passwd"),
            ("link", ".."),
            ("link", "../sibling"),
            ("a/link", "../../up"),
            ("a/b/link", "./../../.././x"),
            // Through `deep`, another symlink that points down, this would climb out.
            ("link", "deep/../../x"),
            ("link", "dir/.."),
            ("link", ""),
            ("link", "//host/share"),
        ] {
            assert!(!stays_inside(rel, target), "{rel} -> {target}");
        }
    }
}
