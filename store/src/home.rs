//! The store's directory: its lock, its format file, and where everything lies in it. What is inside the files is
//! theirs to know.

use std::{
    fs::{self, File, TryLockError},
    io::{ErrorKind, Read, Seek, Write},
    path::{Path, PathBuf},
};

use crate::{
    OpenError, Options,
    cipher::Seal,
    disk::Disk,
    keyfile::{self, KeyError},
    packs,
};

/// The format of a plain store.
const PLAIN: u32 = 1;
/// That of an encrypted one: what knows plain stores only must not take its files for damaged.
pub(crate) const SEALED: u32 = 2;
/// The newest format this build reads.
const NEWEST: u32 = SEALED;

/// An existing and locked directory. The lock goes when this is dropped, or when the process dies.
#[derive(Debug)]
pub(crate) struct Home {
    dir: PathBuf,
    /// No store was ever completed here.
    fresh: bool,
    seal: Seal,
    _lock: File,
}

impl Home {
    /// Creates the directory if there is none, locks it, checks its format, and unlocks its key if it is encrypted.
    pub(crate) fn open(dir: &Path, options: &Options, disk: &dyn Disk) -> Result<Self, OpenError> {
        let dir = std::path::absolute(dir).map_err(io("find", dir))?;
        disk.make_dirs(&dir.join("packs")).map_err(io("create", &dir.join("packs")))?;
        let lock = take_lock(&dir)?;
        let found = format(&dir)?;
        if found.is_none() {
            // It is written last when a store is made, so there is nothing to lose, unless someone removed it.
            let packs = packs::list(&dir.join("packs")).map_err(io("list", &dir.join("packs")))?;
            if !packs.is_empty() {
                let path = dir.join("format");
                return Err(OpenError::Corrupt { dir, path, reason: "it is missing".into() });
            }
        }
        let seal = unlock(&dir, found, options, disk)?;
        Ok(Self { dir, fresh: found.is_none(), seal, _lock: lock })
    }

    /// Whether the store is still to be made.
    pub(crate) fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Ends the making of a store: from here on its files must be there.
    pub(crate) fn complete(&mut self, disk: &dyn Disk) -> Result<(), OpenError> {
        if !self.fresh {
            return Ok(());
        }
        let (format, new) = (self.dir.join("format"), self.dir.join("format.new"));
        let version = if self.seal.is_on() { SEALED } else { PLAIN };
        let file = disk.create(&new).map_err(io("create", &new))?;
        disk.write_at(&file, &new, format!("{version}\n").as_bytes(), 0).map_err(io("write", &new))?;
        disk.sync_file(&file, &new).map_err(io("sync", &new))?;
        // The entries of the index and the packs first, then the name that vouches for them.
        disk.sync_ancestors(&self.dir).map_err(io("sync", &self.dir))?;
        disk.rename(&new, &format).map_err(io("create", &format))?;
        disk.sync_dir(&self.dir).map_err(io("sync", &self.dir))?;
        self.fresh = false;
        Ok(())
    }

    /// How the files of the store are kept.
    pub(crate) fn seal(&self) -> &Seal {
        &self.seal
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.dir.join("index.redb")
    }

    /// The second copy of roots and bases.
    pub(crate) fn spare(&self) -> PathBuf {
        self.dir.join("roots")
    }

    pub(crate) fn packs(&self) -> PathBuf {
        self.dir.join("packs")
    }
}

/// The keys of a store of this format, or of one that is to be made (`None`).
fn unlock(dir: &Path, format: Option<u32>, options: &Options, disk: &dyn Disk) -> Result<Seal, OpenError> {
    let wanted = options.encrypt || options.passphrase.is_some();
    match format {
        None if !wanted => return Ok(Seal::default()),
        None | Some(SEALED) => {}
        Some(_) if wanted => return Err(OpenError::NotEncrypted { dir: dir.to_owned() }),
        Some(_) => return Ok(Seal::default()),
    }
    let Some(passphrase) = &options.passphrase else {
        return Err(OpenError::NeedsPassphrase { dir: dir.to_owned(), new: format.is_none() });
    };
    let path = dir.join("key");
    let key = match format {
        // One that a crash left was never used.
        None => keyfile::make(&path, passphrase, options.key_cost, disk),
        Some(_) => keyfile::read(&path, passphrase),
    };
    let key = key.map_err(key_error(dir, &path))?;
    Seal::new(&key).map_err(io("draw random bytes for", &path))
}

/// What is wrong with the key file at `path`, of the store in `dir`.
pub(crate) fn key_error(dir: &Path, path: &Path) -> impl FnOnce(KeyError) -> OpenError {
    let (dir, path) = (dir.to_owned(), path.to_owned());
    move |error| match error {
        KeyError::Io(action, source) => OpenError::Io { action, path, source },
        KeyError::Damaged(reason) => OpenError::Corrupt { dir, path, reason },
        KeyError::Wrong => OpenError::WrongPassphrase { dir },
    }
}

/// The format of the store in `dir`; `None` if none was ever completed there.
pub(crate) fn format(dir: &Path) -> Result<Option<u32>, OpenError> {
    let path = dir.join("format");
    let corrupt =
        |reason: &str| Err(OpenError::Corrupt { dir: dir.to_owned(), path: path.clone(), reason: reason.into() });
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(found) if found > NEWEST => Err(OpenError::NewerFormat { dir: dir.to_owned(), found, known: NEWEST }),
            Ok(found) => Ok(Some(found)),
            Err(_) => corrupt("it holds no version number"),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == ErrorKind::InvalidData => corrupt("it is not text"),
        Err(error) => Err(io("read", &path)(error)),
    }
}

pub(crate) fn take_lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(io("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            // For the message only; it may be stale or half written.
            let mut text = String::new();
            let pid = file.take(32).read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(OpenError::Locked { dir: dir.to_owned(), pid });
        }
        Err(TryLockError::Error(error)) => return Err(io("lock", &path)(error)),
    }
    // The pid is for another process's message only: a full disk must not keep the store from opening.
    if let Err(error) =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()))
    {
        tracing::debug!(%error, "cannot write the pid into the lock file");
    }
    Ok(file)
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { action, path, source }
}
