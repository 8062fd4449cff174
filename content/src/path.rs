//! Relative paths that cannot leave the directory they are joined to, whoever wrote them.

use std::{fmt, str::FromStr};

/// A safe relative path: parts joined by `/`, none of them empty, `.` or `..`, no NUL, bounded. The empty path is the
/// root of a share itself.
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

    /// The parts, outermost first.
    pub fn parts(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/').filter(|part| !part.is_empty())
    }

    /// The last part; `None` for the root.
    pub fn file_name(&self) -> Option<&str> {
        self.parts().next_back()
    }

    /// Whether `self` is `base` or below it.
    pub fn starts_with(&self, base: &RelPath) -> bool {
        todo!("{base}")
    }

    /// This path with one more part.
    ///
    /// # Errors
    /// [`PathError`] where `name` is not one safe part, or the whole gets too long.
    pub fn join(&self, name: &str) -> Result<RelPath, PathError> {
        todo!("{name}")
    }
}

impl FromStr for RelPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        todo!("{text}")
    }
}

impl fmt::Display for RelPath {
    /// Control characters come out escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_debug())
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// Names that cannot live side by side where case is not told apart: groups of paths that are equal after case folding.
pub fn case_clashes<'a>(paths: impl IntoIterator<Item = &'a RelPath>) -> Vec<(RelPath, RelPath)> {
    todo!("{}", paths.into_iter().count())
}

/// Why a path or name is refused.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// No name at all.
    #[error("a name is empty")]
    Empty,
}
