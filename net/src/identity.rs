//! The identity file: an ed25519 key pair in libp2p's protobuf form, readable by its owner alone.

use crate::Keypair;
use libp2p_identity::KeyType;
use rand::{RngExt, SeedableRng, rngs::StdRng, rngs::SysRng};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    path::{Path, PathBuf},
};

/// A key pair takes 68 bytes; whatever is longer than this is something else.
const MAX_FILE_BYTES: u64 = 4_096;
/// Permission bits of group and others.
#[cfg(unix)]
const NOT_OWNER: u32 = 0o077;

/// Why the identity could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// Other users of this machine may read or change the key.
    #[error("the key file {path} is accessible to other users (mode {mode:04o}); run: chmod 600 '{path}'", path = .path.display())]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file holds no ed25519 key pair.
    #[error(
        "the key file {path} is broken ({reason}); restore it from a backup, \
         or move it away to begin with a new identity", path = .path.display()
    )]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with its content.
        reason: String,
    },
    /// The file cannot be read.
    #[error("cannot read the key file {path}: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file cannot be made.
    #[error("cannot create the key file {path}: {source}", path = .path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Reads the key pair, or makes one and stores it durably if there is none. Two processes that do this at once end with
/// the same key. The directory must exist.
pub fn load_or_create(path: &Path) -> Result<Keypair, IdentityError> {
    match load(path) {
        Err(IdentityError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => {}
        other => return other,
    }
    let keypair = Keypair::generate_ed25519();
    let failed = |source| IdentityError::Create { path: path.to_owned(), source };
    let bytes = keypair.to_protobuf_encoding().map_err(|e| failed(io::Error::other(e)))?;
    match create(path, &bytes) {
        Ok(()) => Ok(keypair),
        // Another process was first: its key is the identity.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => load(path),
        Err(error) => Err(failed(error)),
    }
}

/// Reads the key pair.
pub fn load(path: &Path) -> Result<Keypair, IdentityError> {
    let failed = |source| IdentityError::Read { path: path.to_owned(), source };
    let broken = |reason: String| IdentityError::Broken { path: path.to_owned(), reason };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(broken("not a regular file".to_owned()));
    }
    check_mode(path, &metadata)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(broken(format!("longer than {MAX_FILE_BYTES} bytes")));
    }
    let keypair = Keypair::from_protobuf_encoding(&bytes).map_err(|e| broken(e.to_string()))?;
    match keypair.key_type() {
        KeyType::Ed25519 => Ok(keypair),
        other => Err(broken(format!("a key of type {other:?}; only ed25519 is used here"))),
    }
}

#[cfg(unix)]
fn check_mode(path: &Path, metadata: &fs::Metadata) -> Result<(), IdentityError> {
    use std::os::unix::fs::PermissionsExt;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & NOT_OWNER != 0 {
        return Err(IdentityError::Permissions { path: path.to_owned(), mode });
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_mode(_: &Path, _: &fs::Metadata) -> Result<(), IdentityError> {
    Ok(())
}

/// Writes a file that appears whole or not at all, and never over another.
fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    let random: u64 = StdRng::try_from_rng(&mut SysRng).map_err(io::Error::other)?.random();
    let mut temporary = name.to_owned();
    temporary.push(format!(".{random:016x}.tmp"));
    let temporary = directory.join(temporary);

    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&temporary)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| publish(&temporary, path));
    if written.is_err()
        && let Err(error) = fs::remove_file(&temporary)
    {
        tracing::warn!(path = %temporary.display(), %error, "a temporary key file stays behind; delete it");
    }
    written?;
    #[cfg(unix)]
    File::open(directory)?.sync_all()?;
    Ok(())
}

/// Renames without replacing.
#[cfg(target_os = "linux")]
fn publish(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some file systems know no flags.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => rename_if_absent(from, to),
        other => Ok(other?),
    }
}

#[cfg(not(target_os = "linux"))]
fn publish(from: &Path, to: &Path) -> io::Result<()> {
    rename_if_absent(from, to)
}

fn rename_if_absent(from: &Path, to: &Path) -> io::Result<()> {
    if to.try_exists()? {
        return Err(ErrorKind::AlreadyExists.into());
    }
    fs::rename(from, to)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_key_is_made_once_for_the_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.key");
        let made = load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load_or_create(&path).unwrap().public(), made.public());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn many_that_create_at_once_agree() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.key");
        let ids = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| load_or_create(&path).unwrap().public().to_peer_id())).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect::<std::collections::HashSet<_>>()
        });
        assert_eq!(ids.len(), 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_readable_key_is_refused_with_the_command_to_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.key");
        load_or_create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = load_or_create(&path).unwrap_err();
        assert!(matches!(error, IdentityError::Permissions { mode: 0o640, .. }));
        assert!(error.to_string().contains(&format!("chmod 600 '{}'", path.display())));
    }

    #[test]
    fn broken_files_are_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.key");
        let good = Keypair::generate_ed25519().to_protobuf_encoding().unwrap();
        for junk in [&b""[..], b"not a key", &good[..good.len() - 1], &[0; 5_000]] {
            fs::write(&path, junk).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let error = load_or_create(&path).unwrap_err();
            assert!(matches!(error, IdentityError::Broken { .. }), "{error}");
            assert_eq!(fs::read(&path).unwrap(), junk);
        }
        assert!(matches!(load_or_create(dir.path()), Err(IdentityError::Broken { .. })));
        let missing = dir.path().join("no/such/dir/key");
        assert!(matches!(load_or_create(&missing), Err(IdentityError::Create { .. })));
    }
}
