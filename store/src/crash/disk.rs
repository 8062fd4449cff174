//! The double that records every change and sync, and the disk as it may look after a loss of power at any of them.
//! What is done to the disk, and what must be there afterwards, is not known here.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use crate::{
    crash::Random,
    disk::{Disk, Op},
    locks::lock,
};

/// What a torn write is torn into, in bytes.
const SECTOR: usize = 512;

/// One recorded change.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) path: PathBuf,
    pub(super) what: What,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    Create,
    Ensure,
    MakeDir,
    Write(Arc<[u8]>, u64),
    SetLen(u64),
    Sync,
    SyncDir,
    SyncFs,
    Rename(PathBuf),
    Remove,
}

impl What {
    /// Whether it makes anything durable.
    pub(super) fn is_sync(&self) -> bool {
        matches!(self, What::Sync | What::SyncDir | What::SyncFs)
    }
}

/// The real disk, and a record of what was done to it.
#[derive(Clone, Debug, Default)]
pub(super) struct Recorder {
    log: Arc<Mutex<Vec<Change>>>,
}

impl Recorder {
    /// How many changes there were so far.
    pub(super) fn len(&self) -> usize {
        lock(&self.log).len()
    }

    /// The record.
    pub(super) fn log(&self) -> Vec<Change> {
        lock(&self.log).clone()
    }
}

impl Disk for Recorder {
    fn run(&self, op: &Op<'_>, path: &Path, real: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        // Held meanwhile, so that the record has the order of the disk.
        let mut log = lock(&self.log);
        real()?;
        let what = match *op {
            Op::Create => What::Create,
            Op::Ensure => What::Ensure,
            Op::MakeDir => What::MakeDir,
            Op::Write { bytes, offset, .. } => What::Write(bytes.into(), offset),
            Op::SetLen(len) => What::SetLen(len),
            Op::Sync => What::Sync,
            Op::SyncDir => What::SyncDir,
            Op::SyncFs => What::SyncFs,
            Op::Rename(to) => What::Rename(to.to_owned()),
            Op::Remove => What::Remove,
        };
        log.push(Change { path: path.to_owned(), what });
        Ok(())
    }
}

/// What becomes of the changes that no sync has made durable.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    /// None survives.
    Dropped,
    /// All survive.
    Kept,
    /// Each survives, or not, or in part.
    Mixed,
}

/// A file system: what is on the disk for good, and what was done since.
#[derive(Clone, Debug)]
pub(super) struct Model {
    root: PathBuf,
    inodes: Vec<Inode>,
}

#[derive(Clone, Debug)]
enum Inode {
    File { durable: Vec<u8>, pending: Vec<Piece> },
    Dir { durable: BTreeMap<OsString, usize>, now: BTreeMap<OsString, usize>, pending: Vec<EntryChange> },
}

#[derive(Clone, Debug)]
enum Piece {
    Write(Arc<[u8]>, u64),
    Len(u64),
}

#[derive(Clone, Debug)]
enum EntryChange {
    Add(OsString, usize),
    Move(OsString, OsString),
    Gone(OsString),
}

impl EntryChange {
    fn apply(&self, entries: &mut BTreeMap<OsString, usize>, inode_of_moved: impl Fn(&OsString) -> Option<usize>) {
        match self {
            EntryChange::Add(name, inode) => drop(entries.insert(name.clone(), *inode)),
            EntryChange::Move(from, to) => {
                let moved = entries.remove(from).or_else(|| inode_of_moved(from));
                if let Some(inode) = moved {
                    entries.insert(to.clone(), inode);
                }
            }
            EntryChange::Gone(name) => drop(entries.remove(name)),
        }
    }
}

impl Model {
    /// What is below `root` now, all of it durable.
    pub(super) fn scan(root: &Path) -> Self {
        let mut model = Model { root: root.to_owned(), inodes: Vec::new() };
        model.scan_dir(root);
        model
    }

    fn scan_dir(&mut self, path: &Path) -> usize {
        let inode = self.new_dir();
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            let below = if entry.file_type().unwrap().is_dir() {
                self.scan_dir(&entry.path())
            } else {
                self.inodes.push(Inode::File { durable: fs::read(entry.path()).unwrap(), pending: Vec::new() });
                self.inodes.len() - 1
            };
            found.insert(entry.file_name(), below);
        }
        if let Inode::Dir { durable, now, .. } = &mut self.inodes[inode] {
            (*durable, *now) = (found.clone(), found);
        }
        inode
    }

    fn new_dir(&mut self) -> usize {
        self.inodes.push(Inode::Dir { durable: BTreeMap::new(), now: BTreeMap::new(), pending: Vec::new() });
        self.inodes.len() - 1
    }

    /// The file or directory at a path, as programs see it.
    fn find(&self, path: &Path) -> Option<usize> {
        let mut at = 0;
        for part in path.strip_prefix(&self.root).ok()? {
            let Inode::Dir { now, .. } = &self.inodes[at] else { return None };
            at = *now.get(part)?;
        }
        Some(at)
    }

    fn entry(&mut self, path: &Path, change: EntryChange) {
        let parent = self.find(path.parent().unwrap()).unwrap_or_else(|| panic!("no directory for {path:?}"));
        let Inode::Dir { now, pending, .. } = &mut self.inodes[parent] else { panic!("{path:?} is in a file") };
        change.apply(now, |_| None);
        pending.push(change);
    }

    fn piece(&mut self, path: &Path, piece: Piece) {
        // A file that was removed while it was open: nobody will see what is written to it.
        let Some(inode) = self.find(path) else { return };
        let Inode::File { pending, .. } = &mut self.inodes[inode] else { panic!("{path:?} is no file") };
        pending.push(piece);
    }

    /// Takes one change on.
    pub(super) fn apply(&mut self, change: &Change) {
        let path = &change.path;
        if !path.starts_with(&self.root) {
            return;
        }
        let name = || path.file_name().unwrap().to_owned();
        match &change.what {
            What::Create | What::Ensure if self.find(path).is_some() => {
                if matches!(change.what, What::Create) {
                    self.piece(path, Piece::Len(0));
                }
            }
            What::Create | What::Ensure => {
                self.inodes.push(Inode::File { durable: Vec::new(), pending: Vec::new() });
                self.entry(path, EntryChange::Add(name(), self.inodes.len() - 1));
            }
            What::MakeDir => {
                let inode = self.new_dir();
                self.entry(path, EntryChange::Add(name(), inode));
            }
            What::Write(bytes, offset) => self.piece(path, Piece::Write(Arc::clone(bytes), *offset)),
            What::SetLen(len) => self.piece(path, Piece::Len(*len)),
            What::Rename(to) => {
                assert_eq!(path.parent(), to.parent(), "renames stay in their directory");
                self.entry(path, EntryChange::Move(name(), to.file_name().unwrap().to_owned()));
            }
            What::Remove => self.entry(path, EntryChange::Gone(name())),
            What::Sync | What::SyncDir => {
                if let Some(inode) = self.find(path) {
                    self.sync(inode);
                }
            }
            What::SyncFs => (0..self.inodes.len()).for_each(|inode| self.sync(inode)),
        }
    }

    fn sync(&mut self, inode: usize) {
        match &mut self.inodes[inode] {
            Inode::File { durable, pending } => pending.drain(..).for_each(|piece| piece.keep(durable)),
            Inode::Dir { durable, now, pending } => {
                pending.clear();
                durable.clone_from(now);
            }
        }
    }

    /// Puts what a loss of power would leave in the place of what is below the root now.
    pub(super) fn crash(&self, fate: Fate, random: &mut Random) {
        fs::remove_dir_all(&self.root).unwrap();
        // How much survives differs from crash to crash, not only from write to write.
        let odds = [10, 50, 90][random.below(3) as usize];
        self.put_dir(0, &self.root, fate, odds, random);
    }

    fn put_dir(&self, inode: usize, at: &Path, fate: Fate, odds: u64, random: &mut Random) {
        fs::create_dir(at).unwrap();
        let Inode::Dir { durable, pending, .. } = &self.inodes[inode] else { panic!("{at:?} is a file") };
        let mut entries = durable.clone();
        for (i, change) in pending.iter().enumerate() {
            let survives = match fate {
                Fate::Dropped => false,
                Fate::Kept => true,
                Fate::Mixed => random.below(100) < odds,
            };
            if survives {
                // The entry under its old name may never have made it to the disk.
                change.apply(&mut entries, |from| {
                    pending[..i].iter().rev().find_map(|earlier| match earlier {
                        EntryChange::Add(name, inode) if name == from => Some(*inode),
                        _ => None,
                    })
                });
            }
        }
        for (name, inode) in entries {
            let path = at.join(name);
            match &self.inodes[inode] {
                Inode::Dir { .. } => self.put_dir(inode, &path, fate, odds, random),
                Inode::File { durable, pending } => {
                    let mut bytes = durable.clone();
                    for piece in pending {
                        match fate {
                            Fate::Dropped => {}
                            Fate::Kept => piece.keep(&mut bytes),
                            Fate::Mixed if random.below(100) < odds => piece.keep(&mut bytes),
                            Fate::Mixed if random.below(3) > 0 => piece.tear(&mut bytes, random),
                            Fate::Mixed => {}
                        }
                    }
                    fs::write(path, bytes).unwrap();
                }
            }
        }
    }
}

impl Piece {
    fn keep(&self, file: &mut Vec<u8>) {
        match self {
            Piece::Len(len) => file.resize(*len as usize, 0),
            Piece::Write(bytes, offset) => {
                let (start, end) = (*offset as usize, *offset as usize + bytes.len());
                file.resize(file.len().max(end), 0);
                file[start..end].copy_from_slice(bytes);
            }
        }
    }

    /// Each sector for itself makes it to the disk or does not; the length may be the new one all the same.
    fn tear(&self, file: &mut Vec<u8>, random: &mut Random) {
        let Piece::Write(bytes, offset) = self else { return };
        let (start, end) = (*offset as usize, *offset as usize + bytes.len());
        if random.below(2) == 0 {
            file.resize(file.len().max(end), 0);
        }
        let mut at = start;
        while at < end {
            let until = (at / SECTOR + 1) * SECTOR;
            let until = until.min(end);
            if random.below(2) == 0 {
                file.resize(file.len().max(until), 0);
                file[at..until].copy_from_slice(&bytes[at - start..until - start]);
            }
            at = until;
        }
    }
}
