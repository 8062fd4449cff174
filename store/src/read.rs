//! Reading: look up, read, hash, and only then hand out. Every location is tried; a bad one leaves the index and is
//! reported. No lock is held while the disk is read.

use std::{
    fs::{File, Metadata},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use shoal_content::Cid;

use crate::{
    Damage, DamageKind, MAX_STAGED_BYTES, ReadError, StoreError,
    buffers::Buffer,
    commit::is_gone,
    disk::{open_foreign, read_exact_at},
    inner::{Inner, join},
    locks::{lock, write},
    pack::read_payload,
    packs::io_error,
    value::{Loc, Place},
};

/// Why one location did not give the block.
pub(crate) enum Failure {
    /// Not there any more: drop it and tell.
    Bad(DamageKind, PathBuf),
    /// It hangs off a base that was removed: drop it, nobody needs to be told.
    Forgotten,
    /// It may be readable another time.
    Io(PathBuf, io::Error),
    Store(StoreError),
}

/// One copy of a block.
pub(crate) enum Taken {
    /// Its bytes.
    Block(Buffer),
    /// It is not there any more; with what is wrong, unless nobody needs to be told.
    Bad(Option<Box<Damage>>),
}

/// Somewhere to read a block into.
trait Room {
    /// Exactly `len` bytes, whatever they hold.
    fn room(&mut self, len: usize) -> &mut [u8];
}

impl Room for Vec<u8> {
    fn room(&mut self, len: usize) -> &mut [u8] {
        // Zeroes only what a buffer in use has never held before.
        self.resize(len, 0);
        self
    }
}

struct Pooled<'a> {
    inner: &'a Inner,
    buffer: Option<Buffer>,
}

impl Room for Pooled<'_> {
    fn room(&mut self, len: usize) -> &mut [u8] {
        self.buffer.insert(self.inner.pool.take(len)).as_mut()
    }
}

impl Inner {
    pub(crate) fn read(&self, cid: &Cid) -> Result<Bytes, ReadError> {
        let mut pooled = Pooled { inner: self, buffer: None };
        self.read_to(cid, &mut pooled)?;
        Ok(pooled.buffer.map(Bytes::from_owner).unwrap_or_default())
    }

    pub(crate) fn read_into(&self, cid: &Cid, buf: &mut Vec<u8>) -> Result<(), ReadError> {
        buf.truncate(crate::MAX_BLOCK_BYTES);
        self.read_to(cid, buf)
    }

    fn read_to(&self, cid: &Cid, room: &mut impl Room) -> Result<(), ReadError> {
        if cid.is_empty_leaf() {
            room.room(0);
            return Ok(());
        }
        let mut worst = ReadError::Missing(*cid);
        let mut locs = self.locate(cid)?;
        let mut at = 0;
        while let Some(&loc) = locs.get(at) {
            at += 1;
            match self.fill(cid, &loc, room.room(loc.len as usize), |bytes| cid.verify(bytes)) {
                Ok(()) => return Ok(()),
                // The collector may have moved it while it was read.
                Err(Failure::Bad(..)) if !self.locate(cid)?.contains(&loc) => {
                    let known = locs.len();
                    let new: Vec<Loc> = self.locate(cid)?.into_iter().filter(|l| !locs[..known].contains(l)).collect();
                    locs.extend(new);
                }
                Err(Failure::Bad(kind, path)) => {
                    let damage = self.bad(cid, loc, kind, path);
                    if !matches!(worst, ReadError::Io { .. }) {
                        worst = ReadError::Damaged { cid: *cid, at: Box::new(damage) };
                    }
                }
                Err(Failure::Forgotten) => self.drop_location(cid, loc, false),
                Err(Failure::Io(path, source)) => {
                    worst = ReadError::Io { cid: *cid, path, source: Arc::new(source) };
                }
                Err(Failure::Store(error)) => return Err(error.into()),
            }
        }
        Err(worst)
    }

    /// A location turned out to be bad: it leaves the index and is reported.
    fn bad(&self, cid: &Cid, loc: Loc, kind: DamageKind, path: PathBuf) -> Damage {
        let in_pack = matches!(loc.place, Place::Pack(_));
        let damage = Damage { path, in_pack, kind, cid: *cid, offset: loc.offset, blocks: 1 };
        self.report(&damage);
        self.drop_location(cid, loc, kind != DamageKind::Mismatch);
        damage
    }

    /// See [`Store::examine`](crate::Store::examine).
    pub(crate) fn examine(&self, cids: &[Cid]) -> Result<Vec<bool>, StoreError> {
        // Blocks of one file mostly come one after another.
        let mut last = None;
        let mut there = Vec::with_capacity(cids.len());
        for cid in cids {
            let mut good = cid.is_empty_leaf();
            for loc in self.locate(cid)? {
                let Place::File(_) = loc.place else {
                    good = true;
                    continue;
                };
                let file = match last.take() {
                    Some((place, file)) if place == loc.place => file,
                    _ => self.resolve(loc.place)?.map(|path| (file_len(&path), path)),
                };
                match &file {
                    None => self.drop_location(cid, loc, false),
                    Some((None, path)) => drop(self.bad(cid, loc, DamageKind::Vanished, path.clone())),
                    Some((Some(len), path)) if *len < loc.offset + u64::from(loc.len) => {
                        drop(self.bad(cid, loc, DamageKind::Short, path.clone()));
                    }
                    Some(_) => good = true,
                }
                last = Some((loc.place, file));
            }
            there.push(good);
        }
        Ok(there)
    }

    /// Reads this very copy of a block. One that is bad leaves the index and is reported.
    pub(crate) fn take(&self, cid: &Cid, loc: &Loc) -> Result<Taken, StoreError> {
        let mut buffer = self.pool.take(loc.len as usize);
        match self.fill(cid, loc, buffer.as_mut(), |bytes| cid.verify(bytes)) {
            Ok(()) => Ok(Taken::Block(buffer)),
            // The collector may have moved it while it was read.
            Err(Failure::Bad(..)) if !self.locate(cid)?.contains(loc) => Ok(Taken::Bad(None)),
            Err(Failure::Bad(kind, path)) => Ok(Taken::Bad(Some(Box::new(self.bad(cid, *loc, kind, path))))),
            Err(Failure::Forgotten) => {
                self.drop_location(cid, *loc, false);
                Ok(Taken::Bad(None))
            }
            Err(Failure::Io(path, error)) => Err(io_error("read", &path, error)),
            Err(Failure::Store(error)) => Err(error),
        }
    }

    /// Whether this very copy of the block is good.
    pub(crate) fn holds(&self, cid: &Cid, loc: &Loc) -> bool {
        self.fill(cid, loc, self.pool.take(loc.len as usize).as_mut(), |bytes| cid.verify(bytes)).is_ok()
    }

    /// Reads what is at a location, if it is `good`. What lies in a pack is opened as the block that it should be.
    pub(crate) fn fill(
        &self,
        cid: &Cid,
        loc: &Loc,
        buf: &mut [u8],
        good: impl Fn(&[u8]) -> bool,
    ) -> Result<(), Failure> {
        let load = |file: &File, buf: &mut [u8]| match loc.place {
            Place::Pack(_) => read_payload(file, cid, buf, loc.offset, self.packs.seal()),
            Place::File(_) => read_exact_at(file, buf, loc.offset).map(|()| true),
        };
        let cached = lock(&self.handles).get(loc.place);
        if let Some(file) = cached {
            let there = file.metadata().is_ok_and(|meta| has_name(&meta));
            if there && load(&file, buf).is_ok_and(|opened| opened) && good(buf) {
                return Ok(());
            }
            // Another file may have taken its name since: look at what is there now.
            lock(&self.handles).forget(loc.place);
        }
        let path = self.resolve(loc.place).map_err(Failure::Store)?.ok_or(Failure::Forgotten)?;
        let file = match open_foreign(&path) {
            Ok(file) => file,
            Err(error) if is_gone(&error) => return Err(Failure::Bad(DamageKind::Vanished, path)),
            Err(error) => return Err(Failure::Io(path, error)),
        };
        let meta = match file.metadata() {
            Ok(meta) if meta.is_file() => meta,
            Ok(_) => return Err(Failure::Bad(DamageKind::Vanished, path)),
            Err(error) => return Err(Failure::Io(path, error)),
        };
        match load(&file, buf) {
            Ok(true) if good(buf) => {}
            Ok(_) => return Err(Failure::Bad(DamageKind::Mismatch, path)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(Failure::Bad(DamageKind::Short, path));
            }
            Err(error) => return Err(Failure::Io(path, error)),
        }
        // A file of one block will not be asked for again soon: small files must not push the big ones out.
        if meta.len() > loc.len.into() {
            let replaced = lock(&self.handles).insert(loc.place, Arc::new(file));
            drop(replaced);
        }
        Ok(())
    }

    /// The path of a pack or file; `None` if its base is gone.
    fn resolve(&self, place: Place) -> Result<Option<PathBuf>, StoreError> {
        let id = match place {
            Place::Pack(id) => return Ok(Some(self.packs.path(id))),
            Place::File(id) => id,
        };
        let Some(file) = self.file(id)? else { return Ok(None) };
        Ok(self.base_path(file.base).map(|base| join(&base, &file.rel)))
    }

    fn report(&self, damage: &Damage) {
        if lock(&self.damage).note(damage) {
            let Damage { path, kind, offset, cid, .. } = damage;
            tracing::warn!(path = %path.display(), ?kind, offset, %cid, "a block is not where it was; dropped from the index");
        }
    }

    fn drop_location(&self, cid: &Cid, loc: Loc, whole_file: bool) {
        lock(&self.damage).lost.note(*cid, whole_file && matches!(loc.place, Place::File(_)));
        let mut overlay = write(&self.overlay);
        // Beyond the limit (nobody commits) the location stays, and every read finds it bad again.
        if overlay.current.bytes() < 2 * MAX_STAGED_BYTES {
            overlay.remove(cid.key(), loc);
        }
    }
}

/// The length of a file; `None` if there is none. One that cannot be examined now may be there: reads will tell.
fn file_len(path: &Path) -> Option<u64> {
    match std::fs::metadata(path) {
        Ok(meta) => meta.is_file().then_some(meta.len()),
        Err(error) if is_gone(&error) => None,
        Err(_) => Some(u64::MAX),
    }
}

/// False for a file that was deleted and lives on in our handle only: it would hold its disk space.
fn has_name(meta: &Metadata) -> bool {
    #[cfg(unix)]
    return std::os::unix::fs::MetadataExt::nlink(meta) > 0;
    #[cfg(not(unix))]
    return meta.is_file();
}
