//! Relative paths that cannot leave the directory they are joined to, whoever wrote them. Platform rules beyond that
//! (reserved names, case) are for whoever writes to a disk; [`case_clashes`] answers the one about case.

use std::{
    collections::{HashMap, hash_map},
    fmt,
    fmt::Write as _,
    str::FromStr,
};

use crate::{MAX_NAME_BYTES, MAX_PATH_BYTES, MAX_PATH_PARTS};

/// A safe relative path: parts joined by `/`, none of them empty, `.` or `..`, no NUL, bounded in length and in parts.
/// The empty path is the root of a share itself. Ordered as text.
#[derive(Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Default)]
pub struct RelPath(Box<str>);

impl RelPath {
    /// The empty path.
    pub fn root() -> Self {
        Self::default()
    }

    /// Whether this is the empty path.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The path as text, parts joined by `/`. Not escaped: for file systems and the wire, not for terminals.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The parts, outermost first; none for the root.
    pub fn parts(&self) -> impl DoubleEndedIterator<Item = &str> + Clone {
        // No part of a path is empty, so only the root gives one to leave out.
        self.0.split('/').filter(|part| !part.is_empty())
    }

    /// The last part; `None` for the root.
    pub fn file_name(&self) -> Option<&str> {
        self.parts().next_back()
    }

    /// The path without its last part; `None` for the root.
    pub fn parent(&self) -> Option<RelPath> {
        if self.is_root() {
            return None;
        }
        Some(RelPath(self.0.rsplit_once('/').map_or("", |(parent, _)| parent).into()))
    }

    /// Whether `self` is `base` or below it.
    pub fn starts_with(&self, base: &RelPath) -> bool {
        is_within(&self.0, &base.0)
    }

    /// This path with one more part.
    ///
    /// # Errors
    /// [`PathError`] where `name` is not one safe part, or the whole gets too long or too deep.
    pub fn join(&self, name: &str) -> Result<RelPath, PathError> {
        check_name(name.as_bytes())?;
        let len = if self.is_root() { name.len() } else { self.0.len() + 1 + name.len() };
        if len > MAX_PATH_BYTES {
            return Err(PathError::PathTooLong(len));
        }
        let depth = self.parts().count() + 1;
        if depth > MAX_PATH_PARTS {
            return Err(PathError::TooDeep(depth));
        }
        let mut text = String::with_capacity(len);
        text.push_str(&self.0);
        if !self.is_root() {
            text.push('/');
        }
        text.push_str(name);
        Ok(RelPath(text.into_boxed_str()))
    }
}

/// Whether the path `path` is `base` or below it, both in the form of [`RelPath::as_str`].
pub(crate) fn is_within(path: &str, base: &str) -> bool {
    base.is_empty() || path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl FromStr for RelPath {
    type Err = PathError;

    /// Accepts one `/` at the end, as shells complete directories. The empty text is the root.
    fn from_str(text: &str) -> Result<Self, PathError> {
        if text.is_empty() {
            return Ok(Self::root());
        }
        if text.starts_with('/') {
            return Err(PathError::Absolute(quote(text.as_bytes())));
        }
        let text = text.strip_suffix('/').unwrap_or(text);
        if text.len() > MAX_PATH_BYTES {
            return Err(PathError::PathTooLong(text.len()));
        }
        let mut depth = 0;
        for part in text.split('/') {
            check_name(part.as_bytes())?;
            depth += 1;
        }
        if depth > MAX_PATH_PARTS {
            return Err(PathError::TooDeep(depth));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for RelPath {
    /// Control characters come out escaped: see [`printable`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        printable(&self.0).fmt(f)
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// `text` as it may go to a terminal: control characters, and the invisible ones that reorder or hide what is around
/// them, come out as `\u{…}`.
pub fn printable(text: &str) -> impl fmt::Display + '_ {
    fmt::from_fn(move |f| {
        text.chars()
            .try_for_each(|c| if is_unsafe_to_print(c) { write!(f, "{}", c.escape_unicode()) } else { f.write_char(c) })
    })
}

fn is_unsafe_to_print(c: char) -> bool {
    // Besides control characters: soft hyphen, zero-width and directional marks, line separators, byte order mark,
    // interlinear annotations, tags.
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Bytes that should be a name, printable and bounded, for errors.
fn quote(name: &[u8]) -> Box<str> {
    let shown = &name[..name.len().min(MAX_NAME_BYTES)];
    let mut text = match std::str::from_utf8(name) {
        Ok(name) => printable(&name[..name.floor_char_boundary(MAX_NAME_BYTES)]).to_string(),
        Err(_) => shown.escape_ascii().to_string(),
    };
    if shown.len() < name.len() {
        text.push('…');
    }
    text.into_boxed_str()
}

/// Checks that `name` is one part of a safe path, and gives it as text.
pub(crate) fn check_name(name: &[u8]) -> Result<&str, PathError> {
    if name.is_empty() {
        return Err(PathError::Empty);
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(PathError::NameTooLong(quote(name), name.len()));
    }
    let Ok(text) = std::str::from_utf8(name) else {
        return Err(PathError::NotUtf8(quote(name)));
    };
    if text.contains('/') {
        return Err(PathError::Separator(quote(name)));
    }
    if text.contains('\0') {
        return Err(PathError::Nul(quote(name)));
    }
    // A backslash is an ordinary character here (systemd units have them), and a separator elsewhere: no part of a name
    // may climb even there.
    if text == "." || text.split('\\').any(|part| part == "..") {
        return Err(PathError::Climbs(quote(name)));
    }
    Ok(text)
}

/// Pairs of paths that a destination which does not tell case apart could not hold side by side, each path with the
/// first one that it clashes with, in the order given. Folds a little more than file systems do (`ß` equals `ss`), since a
/// refusal can be mended and an overwritten file cannot.
pub fn case_clashes<'a>(paths: impl IntoIterator<Item = &'a RelPath>) -> Vec<(RelPath, RelPath)> {
    let mut first = HashMap::new();
    let mut clashes = Vec::new();
    for path in paths {
        match first.entry(path.0.to_uppercase().to_lowercase()) {
            hash_map::Entry::Vacant(slot) => {
                slot.insert(path);
            }
            hash_map::Entry::Occupied(slot) if *slot.get() != path => {
                clashes.push(((*slot.get()).clone(), path.clone()));
            }
            hash_map::Entry::Occupied(_) => {}
        }
    }
    clashes
}

/// Why a path or name is refused. The names in it are printable as they are.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// A part without any characters.
    #[error("a part of the path is empty")]
    Empty,
    /// A path that begins with `/`.
    #[error("\"{0}\" is absolute; paths here are relative to the root")]
    Absolute(Box<str>),
    /// `.`, `..`, or `..` between backslashes.
    #[error("the name \"{0}\" would lead out of its directory")]
    Climbs(Box<str>),
    /// A `/` inside one name.
    #[error("the name \"{0}\" has a \"/\" in it")]
    Separator(Box<str>),
    /// A NUL.
    #[error("the name \"{0}\" has a NUL character in it")]
    Nul(Box<str>),
    /// Bytes that are not UTF-8.
    #[error("the name \"{0}\" is not UTF-8; rename it to share it")]
    NotUtf8(Box<str>),
    /// A name longer than [`MAX_NAME_BYTES`].
    #[error("the name \"{0}\" has {1} bytes; at most 255 are possible")]
    NameTooLong(Box<str>, usize),
    /// A path longer than [`MAX_PATH_BYTES`].
    #[error("a path has {0} bytes; at most 4,096 are possible")]
    PathTooLong(usize),
    /// A path of more than [`MAX_PATH_PARTS`] parts.
    #[error("a path is {0} directories deep; at most 256 are possible")]
    TooDeep(usize),
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_would_escape_is_refused_by_name() {
        for (text, part) in [
            ("..", ".."),
            ("a/../b", ".."),
            ("a/./b", "\".\""),
            ("/etc/passwd", "absolute"),
            ("a//b", "empty"),
            ("a/b//", "empty"),
            ("/", "absolute"),
            ("a/..\\..\\b", "..\\..\\b"),
            ("a\0b", "\\u{0}"),
        ] {
            let error = text.parse::<RelPath>().unwrap_err().to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
        assert_eq!(RelPath::root().join("a/b"), Err(PathError::Separator("a/b".into())));
        assert_eq!(check_name(b"a\xffb"), Err(PathError::NotUtf8("a\\xffb".into())));
        assert_eq!(check_name(&[b'a'; 255]).unwrap().len(), 255);
        assert!(matches!(check_name(&[b'a'; 256]), Err(PathError::NameTooLong(_, 256))));
        assert_eq!(
            PathError::Climbs(quote(b"..\\\x1b[2J")).to_string(),
            "the name \"..\\\\u{1b}[2J\" would lead out of its directory"
        );
    }

    #[test]
    fn length_and_depth_are_bounded() {
        let long = vec!["a".repeat(255); 16].join("/");
        assert_eq!(long.len(), 4095);
        let path: RelPath = long.parse().unwrap();
        assert!(matches!(path.join("b"), Err(PathError::PathTooLong(4097))));
        assert!(matches!(format!("{long}/b").parse::<RelPath>(), Err(PathError::PathTooLong(4097))));
        let deep = vec!["a"; MAX_PATH_PARTS].join("/");
        assert!(matches!(deep.parse::<RelPath>().unwrap().join("a"), Err(PathError::TooDeep(257))));
        assert!(matches!(format!("{deep}/a").parse::<RelPath>(), Err(PathError::TooDeep(257))));
    }

    #[test]
    fn ordinary_names_of_any_script_are_kept() {
        for text in [
            "a",
            "a b/c",
            "…",
            "..a/a..",
            ".hidden",
            "dev-disk\\x2dby",
            "日本語/ファイル",
            "e\u{301}",
            "a:b",
            "-rf",
            "\n",
        ] {
            assert_eq!(text.parse::<RelPath>().unwrap().as_str(), text);
        }
        let path: RelPath = "a/b/".parse().unwrap();
        assert_eq!((path.as_str(), path.file_name(), path.parent().unwrap().as_str()), ("a/b", Some("b"), "a"));
        assert_eq!(path.parent().unwrap().parent().unwrap(), RelPath::root());
        assert_eq!((RelPath::root().parent(), RelPath::root().parts().count()), (None, 0));
        assert!(path.starts_with(&"a".parse().unwrap()) && path.starts_with(&RelPath::root()));
        assert!(!"ab".parse::<RelPath>().unwrap().starts_with(&"a".parse().unwrap()));
    }

    #[test]
    fn a_terminal_gets_no_control_characters() {
        let path: RelPath = "a\u{1b}[31m\u{202e}txt.exe\r\n".parse().unwrap();
        assert_eq!(path.to_string(), "a\\u{1b}[31m\\u{202e}txt.exe\\u{d}\\u{a}");
        assert_eq!(printable("naïve 日本\\\"").to_string(), "naïve 日本\\\"");
    }

    #[test]
    fn clashes_are_found_across_directories_and_scripts() {
        let paths: Vec<RelPath> =
            ["a/B", "A", "a", "ä", "Ä", "straße", "STRASSE", "x", "x"].map(|p| p.parse().unwrap()).into();
        let clashes = case_clashes(&paths);
        let text: Vec<_> = clashes.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(text, [("A", "a"), ("ä", "Ä"), ("straße", "STRASSE")]);
    }

    proptest! {
        #[test]
        fn a_path_never_escapes(text in r"[./\\a\x00]{0,12}|\PC{0,20}|(\.\./){0,3}[a-z/]{0,6}") {
            if let Ok(path) = text.parse::<RelPath>() {
                prop_assert!(Path::new(path.as_str()).components().all(|c| matches!(c, Component::Normal(_))));
                prop_assert!(Path::new("/base").join(path.as_str()).starts_with("/base"));
                prop_assert_eq!(path.as_str().parse::<RelPath>().unwrap(), path.clone());
                let again = path.parts().try_fold(RelPath::root(), |path, part| path.join(part));
                prop_assert_eq!(again.unwrap(), path);
            }
        }

        #[test]
        fn a_name_from_a_stranger_is_one_part_or_an_error(name in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(name) = check_name(&name) {
                prop_assert_eq!(Path::new(name).components().count(), 1);
                prop_assert!(matches!(Path::new(name).components().next(), Some(Component::Normal(_))));
            }
        }
    }
}
