//! The home directory: where it is, what lies in it, and who may look inside.
//!
//! Layout: `format` (its version), `key` (the identity), `config.toml` (settings, if the user wrote any), `store/`,
//! `control.sock` (while a process runs on it), `port` (the UDP port of the last start). The lock that keeps two processes
//! apart is the store's. Nothing here is read that a stranger could have written: the directory is the user's alone.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use shoal_net::{Keypair, identity};

use crate::{Class, Failure};

/// The newest layout this build knows.
const FORMAT: u32 = 1;

/// What may lie in a directory that becomes a home: what people prepare by hand.
const PREPARED: [&str; 2] = ["config.toml", "key"];

/// The home directory of a node. A value: nothing is touched before [`Home::open`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    dir: PathBuf,
}

impl Home {
    /// The given directory, else the variable `SHOAL_HOME`, else the user's data directory for `shoal`. Made absolute.
    ///
    /// # Errors
    /// [`Class::Home`] where there is neither of them, as for a user without a home directory.
    pub fn locate(given: Option<&Path>, variable: Option<OsString>) -> Result<Home, Failure> {
        let dir = match (given, variable.filter(|value| !value.is_empty())) {
            (Some(dir), _) => dir.to_owned(),
            (None, Some(dir)) => dir.into(),
            (None, None) => match directories::ProjectDirs::from("", "", "shoal") {
                Some(dirs) => dirs.data_dir().to_owned(),
                None => {
                    let message = "this user has no home directory, so there is no place for keys and the index";
                    return Err(Failure::new(Class::Home, message, "name one with --home DIR or SHOAL_HOME"));
                }
            },
        };
        if dir.as_os_str().is_empty() {
            return Err(Failure::new(Class::Usage, "--home is empty", "name a directory"));
        }
        let dir = std::path::absolute(&dir).map_err(|error| Failure::io("find", &dir, &error))?;
        Ok(Home { dir })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The settings file.
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    /// The identity's key file.
    pub fn key_file(&self) -> PathBuf {
        self.dir.join("key")
    }

    /// The store's directory.
    pub fn store_dir(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// Makes the directory if there is none (mode 0700), and checks its format.
    ///
    /// # Errors
    /// [`Class::Home`]: a newer format, a directory that holds something else, or one that cannot be made.
    pub fn open(&self) -> Result<(), Failure> {
        let file = self.dir.join("format");
        match fs::read_to_string(&file) {
            Ok(text) => return self.check_format(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(self.failed("read", &file, &error)),
        }
        make_private_dir(&self.dir).map_err(|error| self.failed("create", &self.dir, &error))?;
        self.refuse_foreign()?;
        restrict(&self.dir, 0o700).map_err(|error| self.failed("set the mode of", &self.dir, &error))?;
        write_whole(&file, format!("{FORMAT}\n").as_bytes()).map_err(|error| self.failed("write", &file, &error))
    }

    /// How much the store may take where no quota is set: a tenth of its disk, within bounds.
    pub(crate) fn default_quota(&self) -> u64 {
        const BOUNDS: std::ops::RangeInclusive<u64> = (1 << 30)..=(64 << 30);
        disk_bytes(&self.dir).map_or(*BOUNDS.end(), |size| (size / 10).clamp(*BOUNDS.start(), *BOUNDS.end()))
    }

    /// The identity, made at the first use.
    ///
    /// # Errors
    /// [`Class::Home`]: the key is broken or readable by others.
    pub fn identity(&self) -> Result<Keypair, Failure> {
        identity::load_or_create(&self.key_file()).map_err(|error| Failure::from_error(Class::Home, &error))
    }

    /// The UDP port of the last start on all interfaces.
    pub(crate) fn last_port(&self) -> Option<u16> {
        // A hint: without it, or with nonsense in it, a free port is taken.
        fs::read_to_string(self.dir.join("port")).ok()?.trim().parse().ok().filter(|&port| port != 0)
    }

    /// Remembers the port.
    pub(crate) fn remember_port(&self, port: u16) -> io::Result<()> {
        if self.last_port() == Some(port) {
            return Ok(());
        }
        write_whole(&self.dir.join("port"), format!("{port}\n").as_bytes())
    }

    /// When everything was last read in search of rot, in seconds since the Unix epoch.
    pub(crate) fn last_scrub(&self) -> Option<u64> {
        fs::read_to_string(self.dir.join("scrubbed")).ok()?.trim().parse().ok()
    }

    /// Remembers that. Without it, the next search comes sooner.
    pub(crate) fn remember_scrub(&self, unix: u64) {
        if let Err(error) = write_whole(&self.dir.join("scrubbed"), format!("{unix}\n").as_bytes()) {
            tracing::debug!(%error, "a scrub is not remembered");
        }
    }

    fn check_format(&self, text: &str) -> Result<(), Failure> {
        match text.trim().parse::<u32>() {
            Ok(format) if (1..=FORMAT).contains(&format) => Ok(()),
            Ok(format) if format > FORMAT => {
                let message = format!(
                    "the home directory {} has format {format}, but this version of shoal knows formats up to {FORMAT}",
                    self.dir.display()
                );
                Err(Failure::new(Class::Home, message, "upgrade shoal, or use another home with --home"))
            }
            _ => {
                let message = format!("{} holds no version number", self.dir.join("format").display());
                Err(Failure::new(Class::Home, message, "restore it from a backup, or use another home with --home"))
            }
        }
    }

    /// A directory full of something else is not taken over: its mode would change, and files of ours would be strewn in.
    fn refuse_foreign(&self) -> Result<(), Failure> {
        let failed = |error| self.failed("read", &self.dir, &error);
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if !PREPARED.iter().any(|known| name == *known) && !is_leftover(&name) {
                let message = format!(
                    "{} is not a home directory of shoal, and not empty (it holds {})",
                    self.dir.display(),
                    Path::new(&name).display()
                );
                return Err(Failure::new(Class::Home, message, "name a new or empty directory with --home"));
            }
        }
        Ok(())
    }

    fn failed(&self, action: &str, path: &Path, error: &io::Error) -> Failure {
        let message = format!("cannot {action} {}: {error}", path.display());
        Failure::new(Class::Home, message, "check its owner and permissions, or name another home with --home")
    }
}

/// Bytes that this user may still write where `path` is; `None` where that cannot be known.
#[cfg(unix)]
pub fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

/// Bytes that this user may still write where `path` is; `None` where that cannot be known.
#[cfg(not(unix))]
pub fn free_bytes(_: &Path) -> Option<u64> {
    None
}

#[cfg(unix)]
fn disk_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    // A tmpfs without a limit reports no blocks at all.
    stat.f_blocks.checked_mul(stat.f_frsize).filter(|&size| size > 0)
}

#[cfg(not(unix))]
fn disk_bytes(_: &Path) -> Option<u64> {
    None
}

/// Writes a small file so that it is there whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err()
        && let Err(error) = fs::remove_file(&temporary)
    {
        // [`is_leftover`] knows it at the next start
        tracing::debug!(%error, "a temporary file stays behind");
    }
    written
}

/// Whether a name is that of a file of ours that a full disk or a kill left half written.
fn is_leftover(name: &std::ffi::OsStr) -> bool {
    let digits = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
    let of = |prefix: &str| name.to_str().and_then(|name| name.strip_prefix(prefix)).is_some_and(digits);
    of("format.") || of("port.") || of("scrubbed.")
}

#[cfg(unix)]
fn make_private_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

#[cfg(not(unix))]
fn make_private_dir(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)
}

#[cfg(unix)]
pub(crate) fn restrict(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
pub(crate) fn restrict(_: &Path, _: u32) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(dir: &Path) -> Home {
        Home::locate(Some(dir), None).unwrap()
    }

    #[test]
    fn a_new_home_is_private_and_opens_again() {
        let dir = tempfile::tempdir().unwrap();
        let home = home(&dir.path().join("a/b"));
        home.open().unwrap();
        home.open().unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            assert_eq!(fs::metadata(home.dir()).unwrap().mode() & 0o777, 0o700);
        }
        assert_eq!(home.identity().unwrap().public(), home.identity().unwrap().public());
        assert_eq!(home.last_port(), None);
        home.remember_port(4001).unwrap();
        assert_eq!(home.last_port(), Some(4001));
    }

    #[test]
    fn a_newer_format_and_a_foreign_directory_are_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), "x").unwrap();
        let failure = home(dir.path()).open().unwrap_err();
        assert_eq!(failure.class, Class::Home);
        assert!(failure.message.contains("thesis.tex"), "{failure}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

        let new = home(&dir.path().join("new"));
        new.open().unwrap();
        fs::write(new.dir().join("format"), "7\n").unwrap();
        let failure = new.open().unwrap_err();
        assert_eq!(failure.class, Class::Home);
        assert!(failure.to_string().contains("format 7"), "{failure}");
        assert!(failure.to_string().contains("upgrade"), "{failure}");
    }

    #[test]
    fn a_home_whose_making_was_cut_short_is_taken_up() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("format.4711"), "").unwrap();
        home(dir.path()).open().unwrap();
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("format.old"), "").unwrap();
        assert!(home(other.path()).open().is_err());
    }

    #[test]
    fn a_prepared_directory_becomes_a_home() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.toml"), "mdns = false").unwrap();
        home(dir.path()).open().unwrap();
    }

    #[test]
    fn the_flag_wins_over_the_variable() {
        assert_eq!(Home::locate(Some(Path::new("/a")), Some("/b".into())).unwrap().dir(), Path::new("/a"));
        assert_eq!(Home::locate(None, Some("/b".into())).unwrap().dir(), Path::new("/b"));
        assert!(Home::locate(Some(Path::new("")), None).is_err());
    }
}
