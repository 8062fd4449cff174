//! Settings from four places: flags before the environment before `config.toml` before the defaults.
//!
//! Every value keeps its origin, and every error says where the value stands: file and line, variable or flag. Reading
//! is pure: the file's text and the environment come in as arguments. The keys are in [`KEYS`].

mod keys;
mod value;

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use toml::de::DeTable;

pub use keys::{KEYS, Key, Settings};

use crate::{
    Class, Failure,
    passphrase::{Passphrases, Prompt},
};
use value::Raw;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// A line of the file.
    File {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
    },
    /// An environment variable.
    Environment(String),
    /// A flag of the command line.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Environment(name) => f.write_str(name),
            Origin::Flag(name) => f.write_str(name),
        }
    }
}

/// A flag that sets a key.
#[derive(Clone, Debug)]
pub struct Flag {
    /// The key's name.
    pub key: &'static str,
    /// The flag as people type it.
    pub flag: &'static str,
    /// Its values.
    pub values: Vec<String>,
}

/// One effective setting, for listing.
#[derive(Clone, Debug, PartialEq)]
pub struct Effective {
    /// The key.
    pub key: String,
    /// Its value as TOML.
    pub value: toml::Value,
    /// What a value is.
    pub unit: String,
    /// Where it comes from.
    pub origin: Origin,
}

/// Effective settings with their origins.
#[derive(Clone, Debug)]
pub struct Config {
    settings: Settings,
    origins: Vec<Origin>,
    warnings: Vec<String>,
    passphrases: Passphrases,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            settings: Settings::default(),
            origins: vec![Origin::Default; KEYS.len()],
            warnings: Vec::new(),
            passphrases: Passphrases::default(),
        }
    }
}

/// Variables of ours that are no settings.
const OTHER_VARIABLES: [&str; 2] = ["SHOAL_HOME", "SHOAL_LOG"];
/// Variables that are left to those who test.
const TEST_VARIABLES: &str = "SHOAL_TEST_";

/// A settings file is at most this many bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

impl Config {
    /// Reads the file of a home (if there is one) and puts the environment and the flags on top.
    ///
    /// # Errors
    /// [`Class::Home`] for the file, [`Class::Usage`] for a variable or a flag; the message says where.
    pub fn load(
        file: &Path,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        flags: &[Flag],
    ) -> Result<Config, Failure> {
        let text = match std::fs::metadata(file) {
            Ok(meta) if meta.len() > MAX_FILE_BYTES => {
                let message = format!("{} has {} bytes, which is no settings file", file.display(), meta.len());
                return Err(Failure::new(Class::Home, message, "see `shoal config --help` for what it may hold"));
            }
            Ok(_) => std::fs::read(file).map_err(|error| unreadable(file, &error))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(unreadable(file, &error)),
        };
        let text = String::from_utf8(text).map_err(|error| {
            let line = 1 + error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count();
            at_line(file, line, "it is not UTF-8 text", "save the file as UTF-8")
        })?;
        Self::resolve(Some((file, &text)), environment, flags)
    }

    /// The same from a text that was read already.
    ///
    /// # Errors
    /// As for [`Config::load`].
    pub fn resolve(
        file: Option<(&Path, &str)>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        flags: &[Flag],
    ) -> Result<Config, Failure> {
        let mut config = Config::default();
        if let Some((path, text)) = file {
            config.read_file(path, text)?;
        }
        config.read_environment(environment)?;
        for flag in flags {
            let Some((index, key)) = find(flag.key) else {
                return Err(Failure::internal(format!("{} sets {}, which is no setting", flag.flag, flag.key)));
            };
            (key.set)(&mut config.settings, &Raw::Flag(&flag.values))
                .map_err(|why| Failure::new(Class::Usage, format!("{}: {why}", flag.flag), "see `shoal help`"))?;
            config.origins[index] = Origin::Flag(flag.flag.to_owned());
        }
        Ok(config)
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The settings, to change them. What is changed here counts as set by the program; origins stay.
    pub fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// Lets whoever sits at the terminal be asked for the passphrase of an encrypted store, where the environment has none.
    pub fn prompt_with(&mut self, prompt: Prompt) {
        self.passphrases.prompt = Some(prompt);
    }

    pub(crate) fn passphrases(&self) -> &Passphrases {
        &self.passphrases
    }

    /// What looks like a mistake but is none that stops anything.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Every setting with its value and origin, in the order of [`KEYS`].
    pub fn effective(&self) -> impl Iterator<Item = Effective> {
        KEYS.iter().zip(&self.origins).map(|(key, origin)| Effective {
            key: key.name.to_owned(),
            value: (key.show)(&self.settings),
            unit: key.unit.to_owned(),
            origin: origin.clone(),
        })
    }

    fn read_file(&mut self, path: &Path, text: &str) -> Result<(), Failure> {
        let line_of = |offset: usize| 1 + text.as_bytes().iter().take(offset).filter(|&&b| b == b'\n').count();
        let table = DeTable::parse(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(span.start));
            let message = error.message().lines().collect::<Vec<_>>().join(", ");
            at_line(path, line, &message, "correct the line; `shoal config --help` lists what it may hold")
        })?;
        for (name, value) in table.get_ref() {
            let line = line_of(name.span().start);
            let Some((index, key)) = find(name.get_ref()) else {
                let name = name.get_ref().escape_debug().to_string();
                let hint = match nearest(&name) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "remove the line, or see `shoal config` for all settings".to_owned(),
                };
                return Err(at_line(path, line, &format!("there is no setting `{name}`"), &hint));
            };
            (key.set)(&mut self.settings, &Raw::Toml(value.get_ref())).map_err(|why| {
                at_line(path, line, &format!("`{}`: {why}", key.name), "correct the line, or remove it for the default")
            })?;
            self.origins[index] = Origin::File { path: path.to_owned(), line };
        }
        Ok(())
    }

    fn read_environment(&mut self, environment: impl IntoIterator<Item = (OsString, OsString)>) -> Result<(), Failure> {
        let mut ours: Vec<(String, OsString)> = environment
            .into_iter()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| name.starts_with("SHOAL_") && !name.starts_with(TEST_VARIABLES))
            .filter(|(name, _)| !OTHER_VARIABLES.contains(&name.as_str()))
            .collect();
        ours.sort();
        for (variable, value) in ours {
            if self.passphrases.take_variable(&variable, &value) {
                continue;
            }
            let Some((index, key)) = find(&variable["SHOAL_".len()..].to_lowercase()) else {
                let variable = variable.escape_debug();
                self.warnings.push(format!("{variable} is in the environment, but there is no such setting"));
                continue;
            };
            let wrong = |why: String| {
                let hint = "correct the variable, or unset it";
                Failure::new(Class::Usage, format!("{variable} in the environment: {why}"), hint)
            };
            let text = value.to_str().ok_or_else(|| wrong("is not UTF-8".to_owned()))?;
            (key.set)(&mut self.settings, &Raw::Env(text)).map_err(wrong)?;
            self.origins[index] = Origin::Environment(variable);
        }
        Ok(())
    }
}

fn find(name: &str) -> Option<(usize, &'static Key)> {
    KEYS.iter().enumerate().find(|(_, key)| key.name == name)
}

fn at_line(path: &Path, line: usize, what: &str, hint: &str) -> Failure {
    Failure::new(Class::Home, format!("{}, line {line}: {what}", path.display()), hint)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Class::Home, format!("cannot read {}: {error}", path.display()), "check its owner and permissions")
}

/// The key that a typing error probably meant.
fn nearest(name: &str) -> Option<&'static str> {
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let name = plain(name);
    KEYS.iter()
        .map(|key| (distance(key.name, &name), key.name))
        .filter(|(distance, key)| *distance <= 1 + key.len() / 4)
        .min()
        .map(|(_, key)| key)
}

/// Levenshtein's edit distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_file(text: &str) -> Result<Config, Failure> {
        Config::resolve(Some((Path::new("/h/config.toml"), text)), [], &[])
    }

    fn env(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    #[test]
    fn flags_win_over_the_environment_over_the_file_over_defaults() {
        let text = "mdns = false\n\ngive_up_after = 7\nconnections = 99\n";
        let flags = [Flag { key: "listen", flag: "--listen", values: vec!["/ip4/127.0.0.1/udp/0/quic-v1".to_owned()] }];
        let env = env(&[("SHOAL_GIVE_UP_AFTER", "8"), ("SHOAL_LISTEN", "/ip4/1.2.3.4/udp/1/quic-v1"), ("HOME", "x")]);
        let config = Config::resolve(Some((Path::new("/h/c"), text)), env, &flags).unwrap();
        let settings = config.settings();
        assert!(!settings.mdns);
        assert_eq!(settings.give_up_after.as_secs(), 8);
        assert_eq!(settings.listen[0].to_string(), "/ip4/127.0.0.1/udp/0/quic-v1");
        assert_eq!(settings.connections, 99);
        let origin = |name| config.effective().find(|effective| effective.key == name).unwrap().origin.to_string();
        assert_eq!(origin("mdns"), "/h/c:1");
        assert_eq!(origin("connections"), "/h/c:4");
        assert_eq!(origin("give_up_after"), "SHOAL_GIVE_UP_AFTER");
        assert_eq!(origin("listen"), "--listen");
        assert_eq!(origin("bootstrap"), "default");
    }

    #[test]
    fn errors_name_the_line_and_what_to_do() {
        for (text, line, part) in [
            ("\n\nmdns = maybe\n", 3, "line 3"),
            ("mdns = true\nmdns = false\n", 2, "duplicate"),
            ("# c\nmndns = true\n", 2, "did you mean `mdns`"),
            ("frobnicate = 1", 1, "remove the line"),
            ("mdns = \"yes\"", 1, "true or false, not \"yes\""),
            ("\ngive_up_after = 0", 2, "from 1 to 86400"),
            ("give_up_after = -3", 1, "not -3"),
            ("give_up_after = 99999999999999999999999", 1, "whole number of seconds"),
            ("listen = \"/ip4/1.2.3.4/udp/1/quic-v1\"", 1, "list of texts"),
            ("listen = [\n  \"nonsense\",\n]", 1, "not a multiaddr"),
            ("bootstrap = [\"/ip4/1.2.3.4/udp/1/quic-v1\"]", 1, "does not name a peer"),
            ("encrypt = \"yes\"", 1, "true or false"),
            ("congestion = \"vegas\"", 1, "\"cubic\" or \"bbr\""),
            ("[limits]\nx = 1", 1, "no setting `limits`"),
            ("connections = 1.5", 1, "not 1.5"),
            ("kad_protocol = \"x\\u0007\"", 1, "\\u{7}"),
            ("mdns", 1, "line 1"),
            ("mdns = true\nkad_protocol = \"/x", 2, "line 2"),
        ] {
            let failure = from_file(text).unwrap_err();
            assert_eq!(failure.class, Class::Home, "{text}");
            let shown = failure.to_string();
            assert!(shown.starts_with(&format!("/h/config.toml, line {line}: ")), "{text}: {shown}");
            assert!(shown.contains(part), "{text}: {shown}");
            assert!(failure.hint.is_some() && !shown.contains(|c: char| c.is_control()), "{text}: {shown}");
        }
    }

    #[test]
    fn what_is_listed_is_a_valid_file() {
        let config = from_file("bootstrap = []\ncongestion = \"bbr\"\nindex_cache = 3").unwrap();
        let text: String =
            config.effective().map(|effective| format!("{} = {}\n", effective.key, effective.value)).collect();
        assert_eq!(from_file(&text).unwrap().settings(), config.settings());
    }

    #[test]
    fn a_wrong_variable_is_an_error_and_an_unknown_one_a_warning() {
        let failure = Config::resolve(None, env(&[("SHOAL_MDNS", "perhaps")]), &[]).unwrap_err();
        assert_eq!(failure.class, Class::Usage);
        assert!(failure.message.starts_with("SHOAL_MDNS"), "{failure}");
        let config = Config::resolve(None, env(&[("SHOAL_FOO", "1"), ("SHOAL_HOME", "/x")]), &[]).unwrap();
        assert_eq!(config.warnings().len(), 1);
    }

    /// They are no settings: nothing lists them, and nothing warns of them.
    #[test]
    fn passphrases_in_the_environment_are_never_shown() {
        let env = env(&[("SHOAL_PASSPHRASE", "swordfish"), ("SHOAL_PASSPHRASE_FILE", "/p"), ("SHOAL_ENCRYPT", "true")]);
        let config = Config::resolve(None, env, &[]).unwrap();
        assert!(config.settings().encrypt);
        assert_eq!(config.warnings(), [] as [&str; 0]);
        assert!(!format!("{config:?}").contains("swordfish"));
        assert!(!config.effective().any(|setting| setting.key.contains("passphrase")));
    }

    #[test]
    fn a_file_that_is_not_text_is_an_error_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        std::fs::write(&file, b"mdns = true\n\xff\xfe").unwrap();
        let failure = Config::load(&file, [], &[]).unwrap_err();
        assert!(failure.message.contains("line 2"), "{failure}");
        assert!(Config::load(&dir.path().join("none"), [], &[]).is_ok());
    }
}
