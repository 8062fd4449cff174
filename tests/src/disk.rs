//! Small disks: a tmpfs of a given size, mounted and unmounted by a guard. For root only.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{is_root, skipped};

/// A small disk.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Mounts `bytes` of space at a new directory. `None`, with a word about it, where that is not allowed.
    pub fn mount(path: &Path, bytes: u64) -> Option<Disk> {
        if !is_root() {
            skipped("mounting a small disk takes root");
            return None;
        }
        fs::create_dir_all(path).unwrap();
        if let Err(error) = mount(&["-t", "tmpfs", "-o", &format!("size={bytes}"), "shoal-test"], path) {
            skipped(&format!("a small disk cannot be mounted: {error}"));
            return None;
        }
        Some(Disk { path: path.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it larger or smaller.
    pub fn resize(&self, bytes: u64) {
        mount(&["-o", &format!("remount,size={bytes}")], &self.path).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that still has a file open there must not keep it in the tree of mounts.
        match Command::new("umount").arg("-l").arg(&self.path).status() {
            Ok(status) if status.success() => {}
            other => eprintln!("{} stays mounted: {other:?}", self.path.display()),
        }
    }
}

fn mount(options: &[&str], path: &Path) -> Result<(), String> {
    let output = Command::new("mount").args(options).arg(path).output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}
