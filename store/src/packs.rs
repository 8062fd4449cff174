//! The packs of one store: which file is appended to, what of it is not synced yet, and what a crash left at the end.
//! Nothing is ever changed in place; what a record looks like is `pack`'s to know.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use shoal_content::Cid;

use crate::{
    OpenError, StoreError,
    cipher::Seal,
    disk::{Disk, Op},
    failpoint,
    locks::lock,
    pack::{self, FILE_HEADER},
    value::{Loc, Place},
};

/// How far the packs reach, as the index knows it: everything before is committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tail {
    /// The pack last appended to.
    pub(crate) pack: u32,
    /// Its length in bytes; 0 if there is no such pack yet.
    pub(crate) len: u64,
}

/// Appends to packs. One writer at a time: records follow each other without holes.
#[derive(Debug)]
pub(crate) struct Packs {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    max_bytes: u64,
    seal: Seal,
    writer: Mutex<Writer>,
}

#[derive(Debug)]
struct Writer {
    active: Option<Arc<File>>,
    tail: Tail,
    unsynced: Unsynced,
    record: Vec<u8>,
    count: u64,
    bytes: u64,
}

/// What has been written since it was last asked for.
#[derive(Debug, Default)]
pub(crate) struct Unsynced {
    packs: BTreeMap<u32, Arc<File>>,
    /// A pack file was created, so the directory has a new entry.
    dir: bool,
}

impl Packs {
    /// Opens the packs in `dir`. Records after `tail` were written and never committed: those that are whole are handed
    /// to `salvage` (they are readable, and nothing promised them), and the rest is cut off.
    pub(crate) fn open(
        dir: PathBuf,
        disk: Arc<dyn Disk>,
        max_bytes: u64,
        seal: Seal,
        mut tail: Tail,
        mut salvage: impl FnMut(Cid, Loc),
    ) -> Result<Self, OpenError> {
        let mut writer =
            Writer { active: None, tail, unsynced: Unsynced::default(), record: Vec::new(), count: 0, bytes: 0 };
        for (id, path) in list(&dir).map_err(|source| OpenError::Io { action: "list", path: dir.clone(), source })? {
            let err = |action| {
                let path = path.clone();
                move |source| OpenError::Io { action, path, source }
            };
            let len = fs::metadata(&path).map_err(err("examine"))?.len();
            writer.count += 1;
            writer.bytes += len;
            let committed = if id == tail.pack { tail.len } else { 0 };
            if id < tail.pack || (id == tail.pack && len == committed) {
                continue;
            }
            if id == tail.pack && len < committed {
                // Someone cut the pack. What is gone is found by reads; appending here would put new records where
                // the index still expects old ones.
                tracing::warn!(pack = %path.display(), len, committed, "pack is shorter than what was committed");
                continue;
            }
            let file = File::options().read(true).write(true).open(&path).map_err(err("open"))?;
            let place = Place::Pack(id);
            let mut salvaged = 0u64;
            let end = pack::scan(&file, committed, &seal, |cid, offset, len| {
                salvaged += 1;
                salvage(cid, Loc { place, offset, len });
            })
            .map_err(err("read"))?;
            if end < len {
                disk.set_len(&file, &path, end).map_err(err("cut the torn end off"))?;
            }
            tracing::info!(pack = %path.display(), salvaged, cut = len - end, "found records after the last commit");
            writer.bytes -= len - end;
            writer.tail = Tail { pack: id, len: end };
            writer.unsynced.packs.insert(id, Arc::new(file));
            writer.unsynced.dir = true;
        }
        tail = writer.tail;
        let path = pack_path(&dir, tail.pack);
        match fs::metadata(&path) {
            Ok(meta) if meta.len() == tail.len => {
                let file = File::options().read(true).write(true).open(&path);
                let file = file.map_err(|source| OpenError::Io { action: "open", path, source })?;
                writer.active = Some(Arc::new(file));
            }
            // A pack that is gone or was cut: go on in the next one.
            _ if tail.len > 0 => writer.tail = Tail { pack: tail.pack.saturating_add(1), len: 0 },
            _ => {}
        }
        Ok(Self { dir, disk, max_bytes, seal, writer: Mutex::new(writer) })
    }

    /// Appends a block. Readable at once; not durable before it was synced.
    pub(crate) fn append(&self, cid: &Cid, bytes: &[u8]) -> Result<Loc, StoreError> {
        let record_len = pack::record_bytes(bytes.len() as u32, &self.seal);
        let mut guard = lock(&self.writer);
        let writer = &mut *guard;
        if writer.tail.len > FILE_HEADER && writer.tail.len + record_len > self.max_bytes {
            writer.tail = Tail { pack: writer.tail.pack.saturating_add(1), len: 0 };
            writer.active = None;
        }
        let path = self.path(writer.tail.pack);
        let file = match &writer.active {
            Some(file) => Arc::clone(file),
            None => {
                let file = Arc::new(self.disk.create(&path).map_err(|e| io_error("create", &path, e))?);
                writer.active = Some(Arc::clone(&file));
                writer.unsynced.dir = true;
                writer.count += 1;
                file
            }
        };
        writer.record.clear();
        if writer.tail.len == 0 {
            writer.record.extend_from_slice(&pack::file_header(&self.seal));
        }
        pack::put_record(cid, bytes, &self.seal, &mut writer.record);
        // Marked before the write: a failed write may have written a part, which the next record overwrites.
        writer.unsynced.packs.insert(writer.tail.pack, Arc::clone(&file));
        self.disk
            .write_at(&file, &path, &writer.record, writer.tail.len)
            .map_err(|e| io_error("write to", &path, e))?;
        failpoint::pass("pack-appended");
        let written = writer.record.len() as u64;
        writer.tail.len += written;
        writer.bytes += written;
        let (offset, len) = (writer.tail.len - (bytes.len() + self.seal.tag_bytes()) as u64, bytes.len() as u32);
        Ok(Loc { place: Place::Pack(writer.tail.pack), offset, len })
    }

    /// What has to be synced before the index may mention anything appended so far, and the tail to record with it.
    pub(crate) fn take_unsynced(&self) -> (Unsynced, Tail) {
        let mut writer = lock(&self.writer);
        (std::mem::take(&mut writer.unsynced), writer.tail)
    }

    /// Gives back what was taken and not synced after all.
    pub(crate) fn give_back(&self, unsynced: Unsynced) {
        let mut writer = lock(&self.writer);
        writer.unsynced.packs.extend(unsynced.packs);
        writer.unsynced.dir |= unsynced.dir;
    }

    /// Syncs what [`take_unsynced`](Self::take_unsynced) gave. After an error nothing of it may be promised.
    pub(crate) fn sync(&self, unsynced: &Unsynced) -> Result<(), (PathBuf, io::Error)> {
        for (id, file) in &unsynced.packs {
            let path = self.path(*id);
            self.disk.sync_file(file, &path).map_err(|e| (path, e))?;
        }
        if unsynced.dir {
            self.disk.sync_dir(&self.dir).map_err(|e| (self.dir.clone(), e))?;
        }
        Ok(())
    }

    /// How records are kept.
    pub(crate) fn seal(&self) -> &Seal {
        &self.seal
    }

    /// Where the next record goes.
    pub(crate) fn tail(&self) -> Tail {
        lock(&self.writer).tail
    }

    /// Begins the next pack, if anything is in this one.
    pub(crate) fn roll(&self) {
        let mut writer = lock(&self.writer);
        if writer.tail.len > 0 {
            writer.tail = Tail { pack: writer.tail.pack.saturating_add(1), len: 0 };
            writer.active = None;
        }
    }

    /// The packs with their lengths, but for those from the one that is appended to on.
    pub(crate) fn closed(&self) -> io::Result<Vec<(u32, u64)>> {
        let tail = self.tail();
        let packs = list(&self.dir)?.into_iter().filter(|(id, _)| *id < tail.pack);
        packs.map(|(id, path)| Ok((id, fs::metadata(path)?.len()))).collect()
    }

    /// Removes a pack that nothing refers to any more.
    pub(crate) fn remove(&self, id: u32, len: u64) -> io::Result<()> {
        let path = self.path(id);
        self.disk.run(&Op::Remove, &path, &mut || fs::remove_file(&path))?;
        let mut writer = lock(&self.writer);
        writer.unsynced.packs.remove(&id);
        writer.count = writer.count.saturating_sub(1);
        writer.bytes = writer.bytes.saturating_sub(len);
        Ok(())
    }

    /// The file of a pack.
    pub(crate) fn path(&self, id: u32) -> PathBuf {
        pack_path(&self.dir, id)
    }

    /// Number of packs and their bytes.
    pub(crate) fn size(&self) -> (u64, u64) {
        let writer = lock(&self.writer);
        (writer.count, writer.bytes)
    }
}

/// Whether the disk, or the user's share of it, is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn pack_path(dir: &Path, id: u32) -> PathBuf {
    dir.join(format!("{id:08}.pack"))
}

/// The packs in `dir` by number. Files of other names are none of ours.
pub(crate) fn list(dir: &Path) -> io::Result<BTreeMap<u32, PathBuf>> {
    let mut packs = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let stem = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".pack"));
        if let Some(id) = stem.and_then(|s| s.parse().ok()).filter(|id| pack_path(dir, *id) == path) {
            packs.insert(id, path);
        }
    }
    Ok(packs)
}

pub(crate) fn io_error(action: &'static str, path: &Path, source: io::Error) -> StoreError {
    if is_full(&source) {
        return StoreError::Full { action, path: path.to_owned() };
    }
    StoreError::Io { action, path: path.to_owned(), source: Arc::new(source) }
}
