//! Where the passphrase of an encrypted store comes from: a file that the environment names, the environment itself, or
//! whoever sits at the terminal, in this order. Asked for only when a store wants it; what it protects is the store's to know.

use std::{
    ffi::OsString,
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use shoal_store::{KeyCost, Passphrase, Rekey};
use zeroize::Zeroizing;

use crate::{Class, Config, Failure, Home, blame, roots::blocking};

/// Names a file that holds the passphrase.
pub(crate) const FILE_VARIABLE: &str = "SHOAL_PASSPHRASE_FILE";
/// Holds the passphrase.
pub(crate) const VARIABLE: &str = "SHOAL_PASSPHRASE";

/// The same for the one that is to take its place.
pub(crate) const NEW_FILE_VARIABLE: &str = "SHOAL_NEW_PASSPHRASE_FILE";
pub(crate) const NEW_VARIABLE: &str = "SHOAL_NEW_PASSPHRASE";

/// A file with a passphrase is at most this many bytes: nobody types more, and a wrong name may be that of a disk image.
const MAX_FILE_BYTES: usize = 64 << 10;

/// Asks whoever sits at the terminal for the passphrase of the store in a directory; twice if it is a new one (`true`),
/// since nothing could be compared with it.
pub type Prompt = fn(&Path, bool) -> Result<Zeroizing<String>, Failure>;

/// The places to look at. Never shown.
#[derive(Clone, Default)]
pub(crate) struct Passphrases {
    now: Places,
    /// For another passphrase.
    next: Places,
    pub(crate) prompt: Option<Prompt>,
}

/// Where the environment has a passphrase.
#[derive(Clone, Default)]
struct Places {
    file: Option<PathBuf>,
    text: Option<Zeroizing<Vec<u8>>>,
}

impl Places {
    fn set_file(&mut self, value: &OsString) {
        self.file = Some(PathBuf::from(value)).filter(|_| !value.is_empty());
    }

    fn set_text(&mut self, value: &OsString) {
        let bytes = value.as_encoded_bytes().to_vec();
        self.text = Some(Zeroizing::new(bytes)).filter(|_| !value.is_empty());
    }
}

impl fmt::Debug for Passphrases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passphrases").field("file", &self.now.file).finish_non_exhaustive()
    }
}

impl Passphrases {
    /// Takes a variable of the environment, if it is one of these. One that is empty is as good as unset.
    pub(crate) fn take_variable(&mut self, name: &str, value: &OsString) -> bool {
        match name {
            FILE_VARIABLE => self.now.set_file(value),
            VARIABLE => self.now.set_text(value),
            NEW_FILE_VARIABLE => self.next.set_file(value),
            NEW_VARIABLE => self.next.set_text(value),
            _ => return false,
        }
        true
    }

    /// The passphrase of the store in `dir`; `None` where there is nowhere to look.
    pub(crate) fn get(&self, dir: &Path, new: bool) -> Result<Option<Passphrase>, Failure> {
        self.find(&self.now, [FILE_VARIABLE, VARIABLE], dir, new)
    }

    /// The one that is to take its place.
    pub(crate) fn get_next(&self, dir: &Path) -> Result<Option<Passphrase>, Failure> {
        self.find(&self.next, [NEW_FILE_VARIABLE, NEW_VARIABLE], dir, true)
    }

    fn find(
        &self,
        places: &Places,
        [file_variable, variable]: [&str; 2],
        dir: &Path,
        new: bool,
    ) -> Result<Option<Passphrase>, Failure> {
        let (bytes, from) = if let Some(file) = &places.file {
            (read(file, file_variable)?, file.display().to_string())
        } else if let Some(text) = &places.text {
            (text.clone(), variable.to_owned())
        } else if let Some(prompt) = self.prompt {
            let text = prompt(dir, new)?;
            (Zeroizing::new(text.as_bytes().to_vec()), "what was typed".to_owned())
        } else {
            return Ok(None);
        };
        match Passphrase::new(bytes) {
            Some(passphrase) => Ok(Some(passphrase)),
            None => {
                Err(Failure::new(Class::Home, format!("the passphrase in {from} is empty"), "give one that is not"))
            }
        }
    }
}

/// Changes the passphrase of a home's store, which no process may have open. Durable on return. Takes two of the derivations
/// that opening takes one of.
///
/// # Errors
/// [`Class::Home`] where the store is in use, plain, or the passphrase of now is not the right one; [`Class::Disk`].
pub async fn change_passphrase(home: &Home, config: &Config) -> Result<(), Failure> {
    let (dir, passphrases) = (home.store_dir(), config.passphrases().clone());
    blocking(move || {
        // Whoever would be asked in vain is not asked.
        let rekey = Rekey::begin(&dir).map_err(|error| blame::open(&error))?;
        let nowhere = |what: &str, variables: &str| {
            let message = format!("the {what} passphrase of the store at {} is needed", dir.display());
            Failure::new(Class::Home, message, format!("give it by {variables}, or run this on a terminal"))
        };
        let old = passphrases.get(&dir, false)?;
        let old = old.ok_or_else(|| nowhere("present", "SHOAL_PASSPHRASE_FILE or SHOAL_PASSPHRASE"))?;
        let unlocked = rekey.unlock(&old).map_err(|error| blame::open(&error))?;
        let new = passphrases.get_next(&dir)?;
        let new = new.ok_or_else(|| nowhere("new", "SHOAL_NEW_PASSPHRASE_FILE or SHOAL_NEW_PASSPHRASE"))?;
        unlocked.change(&new, KeyCost::default()).map_err(|error| blame::open(&error))
    })
    .await
}

/// What a file holds, but for one line break at its end: editors and `echo` leave one.
fn read(path: &Path, variable: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let failed = |why: &dyn fmt::Display| {
        let message = format!("cannot read the passphrase from {}: {why}", path.display());
        Failure::new(Class::Home, message, format!("check {variable}"))
    };
    // As large as it may get, so that no copy is left behind where it grew.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE_BYTES + 1));
    let file = File::open(path).map_err(|error| failed(&error))?;
    file.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(failed(&format_args!("it is longer than {MAX_FILE_BYTES} bytes")));
    }
    let end = bytes.strip_suffix(b"\n").map(|line| line.strip_suffix(b"\r").unwrap_or(line).len());
    let end = end.unwrap_or(bytes.len());
    bytes.truncate(end);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_break_at_the_end_of_a_file_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        for (text, expected) in
            [("a b\n", "a b"), ("a b\r\n", "a b"), ("a b", "a b"), ("a\n\n", "a\n"), (" a\r", " a\r")]
        {
            std::fs::write(&path, text).unwrap();
            assert_eq!(&read(&path, FILE_VARIABLE).unwrap()[..], expected.as_bytes());
        }
        std::fs::write(&path, vec![b'a'; MAX_FILE_BYTES + 1]).unwrap();
        assert!(read(&path, FILE_VARIABLE).unwrap_err().message.contains("longer"));
        let failure = read(&dir.path().join("none"), FILE_VARIABLE).unwrap_err();
        assert!(failure.to_string().contains("none") && failure.to_string().contains(FILE_VARIABLE), "{failure}");
    }

    #[test]
    fn the_file_comes_before_the_variable_before_the_terminal() {
        let dir = tempfile::tempdir().unwrap();
        let mut passphrases = Passphrases::default();
        let get = |passphrases: &Passphrases| passphrases.get(dir.path(), false);
        assert!(get(&passphrases).unwrap().is_none());
        passphrases.prompt = Some(|_, _| Err(Failure::interrupted()));
        assert_eq!(get(&passphrases).unwrap_err(), Failure::interrupted());
        assert!(passphrases.take_variable(VARIABLE, &"text".into()));
        assert!(get(&passphrases).unwrap().is_some());
        assert!(passphrases.take_variable(FILE_VARIABLE, &dir.path().join("none").into()));
        assert!(get(&passphrases).is_err(), "a file that is named and not there is no reason to look further");
        assert!(passphrases.take_variable(FILE_VARIABLE, &"".into()));
        assert!(get(&passphrases).unwrap().is_some());
        assert!(!passphrases.take_variable("SHOAL_MDNS", &"true".into()));
        assert!(!format!("{passphrases:?}").contains("text"));
    }

    #[test]
    fn an_empty_passphrase_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        std::fs::write(&path, "\n").unwrap();
        let mut passphrases = Passphrases::default();
        passphrases.take_variable(FILE_VARIABLE, &path.into());
        assert!(passphrases.get(dir.path(), true).unwrap_err().message.contains("empty"));
    }
}
