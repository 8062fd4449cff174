//! The two storages under the index: its file, through the [`Disk`] seam; and, after a failed commit, the file as it
//! is with every change kept in memory, so that reads go on and nothing touches the disk any more.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use redb::StorageBackend;

use crate::{
    disk::{Disk, read_exact_at},
    locks::lock,
    packs::is_full,
};

/// `index.redb`. The store's lock file keeps other processes away, so it takes no locks of its own.
#[derive(Debug)]
pub(crate) struct IndexFile {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) trouble: Arc<Trouble>,
}

/// What went wrong with a file, since the library that writes it does not tell one from the other.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    /// A write found no space.
    pub(crate) full: AtomicBool,
    /// Anything else.
    pub(crate) other: AtomicBool,
}

impl Trouble {
    fn note(&self, result: io::Result<()>, is_sync: bool) -> io::Result<()> {
        if let Err(error) = &result {
            // A sync that finds no space may have dropped what it should have written.
            let kind = if is_full(error) && !is_sync { &self.full } else { &self.other };
            kind.store(true, Ordering::Relaxed);
        }
        result
    }

    /// Whether a full disk was all of it: then nothing is lost, and it may be tried again.
    pub(crate) fn is_only_space(&self) -> bool {
        self.full.load(Ordering::Relaxed) && !self.other.load(Ordering::Relaxed)
    }
}

impl StorageBackend for IndexFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        read_exact_at(&self.file, out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.trouble.note(self.disk.set_len(&self.file, &self.path, len), false)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.trouble.note(self.disk.sync_file(&self.file, &self.path), true)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.trouble.note(self.disk.write_at(&self.file, &self.path, data, offset), false)
    }
}

const PAGE: usize = 4096;

/// The file under a layer of pages changed in memory. Repairing the index on open writes a handful.
#[derive(Debug)]
pub(crate) struct Frozen {
    file: File,
    state: Mutex<FrozenState>,
}

#[derive(Debug)]
struct FrozenState {
    len: u64,
    /// What lies beyond reads as zeros: the file was cut there since.
    file_len: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
}

impl Frozen {
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self { file, state: Mutex::new(FrozenState { len, file_len: len, pages: BTreeMap::new() }) })
    }

    fn load(&self, state: &FrozenState, page: u64) -> io::Result<Box<[u8; PAGE]>> {
        let mut bytes = Box::new([0; PAGE]);
        let start = page * PAGE as u64;
        let there = state.file_len.saturating_sub(start).min(PAGE as u64) as usize;
        read_exact_at(&self.file, &mut bytes[..there], start)?;
        Ok(bytes)
    }
}

/// Splits a range of the file into (page, range in the page, range in the buffer).
fn pages_of(offset: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = (at % PAGE as u64) as usize;
        let n = (PAGE - within).min(len - done);
        let item = (at / PAGE as u64, within..within + n, done..done + n);
        done += n;
        (n > 0).then_some(item)
    })
}

impl StorageBackend for Frozen {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.state).len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = lock(&self.state);
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > state.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (page, within, of_buf) in pages_of(offset, out.len()) {
            match state.pages.get(&page) {
                Some(bytes) => out[of_buf].copy_from_slice(&bytes[within]),
                None => out[of_buf].copy_from_slice(&self.load(&state, page)?[within]),
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = lock(&self.state);
        if len < state.len {
            state.pages.retain(|page, _| page * (PAGE as u64) < len);
            state.file_len = state.file_len.min(len);
            if let Some(last) = state.pages.get_mut(&(len / PAGE as u64)) {
                last[(len % PAGE as u64) as usize..].fill(0);
            }
        }
        state.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = lock(&self.state);
        for (page, within, of_buf) in pages_of(offset, data.len()) {
            if !state.pages.contains_key(&page) {
                let bytes = self.load(&state, page)?;
                state.pages.insert(page, bytes);
            }
            if let Some(bytes) = state.pages.get_mut(&page) {
                bytes[within].copy_from_slice(&data[of_buf]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_frozen_file_takes_changes_and_stays_as_it_is() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 10_000]).unwrap();
        let frozen = Frozen::new(file.reopen().unwrap()).unwrap();
        frozen.write(4000, &[1; 200]).unwrap();
        frozen.set_len(20_000).unwrap();
        frozen.write(19_999, &[2]).unwrap();
        let mut out = vec![9; 20_000];
        frozen.read(0, &mut out).unwrap();
        let want = [vec![7; 4000], vec![1; 200], vec![7; 5800], vec![0; 9999], vec![2]].concat();
        assert!(out == want);
        assert!(frozen.read(1, &mut out).is_err());
        frozen.set_len(5000).unwrap();
        frozen.set_len(6000).unwrap();
        frozen.read(4999, &mut out[..2]).unwrap();
        assert_eq!(out[..2], [7, 0]);
        assert!(std::fs::read(file.path()).unwrap() == [7; 10_000]);
    }
}
