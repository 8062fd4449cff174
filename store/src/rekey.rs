//! Changing the passphrase of an encrypted store: its data key is wrapped anew, and nothing else of it is touched. The store
//! is locked meanwhile; a crash leaves the key file of before or the one of after, each whole.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    KeyCost, OpenError, Passphrase,
    cipher::SecretKey,
    disk::{Disk, RealDisk},
    home::{self, key_error},
    keyfile,
};

/// A store that is locked so that its passphrase may be changed. Dropping it changes nothing and unlocks the store.
pub struct Rekey {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    _lock: File,
}

/// The same, with its data key at hand.
pub struct Unlocked {
    rekey: Rekey,
    key: SecretKey,
}

impl std::fmt::Debug for Rekey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rekey").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Unlocked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unlocked").field("dir", &self.rekey.dir).finish_non_exhaustive()
    }
}

impl Rekey {
    /// Locks the store in `dir`.
    ///
    /// # Errors
    /// [`OpenError::Locked`] while a process has it open; [`OpenError::HasNoPassphrase`] where it is plain, or there is none.
    pub fn begin(dir: &Path) -> Result<Rekey, OpenError> {
        Self::begin_on(dir, Arc::new(RealDisk))
    }

    pub(crate) fn begin_on(dir: &Path, disk: Arc<dyn Disk>) -> Result<Rekey, OpenError> {
        let none = || OpenError::HasNoPassphrase { dir: dir.to_owned() };
        if !dir.join("format").exists() {
            return Err(none());
        }
        let lock = home::take_lock(dir)?;
        if home::format(dir)? != Some(home::SEALED) {
            return Err(none());
        }
        Ok(Rekey { dir: dir.to_owned(), disk, _lock: lock })
    }

    /// Opens the key file with the passphrase of now. Takes as long as opening the store.
    ///
    /// # Errors
    /// [`OpenError::WrongPassphrase`], [`OpenError::Corrupt`], [`OpenError::Io`].
    pub fn unlock(self, old: &Passphrase) -> Result<Unlocked, OpenError> {
        let path = self.dir.join("key");
        let key = keyfile::read(&path, old).map_err(key_error(&self.dir, &path))?;
        Ok(Unlocked { rekey: self, key })
    }
}

impl Unlocked {
    /// Wraps the data key with another passphrase, under a new salt, at this cost. Durable on return. A copy of the key file
    /// that was made before still opens the store, with the passphrase of then.
    ///
    /// # Errors
    /// [`OpenError::Io`]: the passphrase of before holds, or, if it was the last sync that failed, either may.
    pub fn change(self, new: &Passphrase, cost: KeyCost) -> Result<(), OpenError> {
        let Unlocked { rekey: Rekey { dir, disk, _lock }, key } = self;
        let path = dir.join("key");
        keyfile::wrap(&path, &key, new, cost, &*disk).map_err(key_error(&dir, &path))?;
        disk.sync_dir(&dir).map_err(|source| OpenError::Io { action: "sync", path: dir, source })
    }
}
