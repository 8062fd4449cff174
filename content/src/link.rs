//! Links: what people paste. `shoal:<CID>[/path]?name=…&size=…&via=…`.

use std::{fmt, str::FromStr};

use crate::{Cid, CidError, PathError, RelPath};

/// A pointer to content, with hints that make finding it quicker. Only `root` and `path` say what is meant.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct ShoalLink {
    /// The root.
    pub root: Cid,
    /// A path inside the root; `None` for all of it.
    pub path: Option<RelPath>,
    /// The name the sharer gave it. A hint: whoever writes it to a disk checks it as one part of a path.
    pub name: Option<String>,
    /// Bytes of content, as the sharer says.
    pub size: Option<u64>,
    /// Multiaddrs (text, with `/p2p/<peer>`) of peers that have it.
    pub via: Vec<String>,
}

impl ShoalLink {
    /// A link to all of `root`, without hints.
    pub fn new(root: Cid) -> Self {
        Self { root, path: None, name: None, size: None, via: Vec::new() }
    }
}

impl FromStr for ShoalLink {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        todo!("{text}")
    }
}

impl fmt::Display for ShoalLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shoal:{}", self.root)
    }
}

/// Which part of a link is wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The content identifier.
    #[error("the link's content identifier: {0}")]
    Cid(#[from] CidError),
    /// The path after it.
    #[error("the link's path: {0}")]
    Path(#[from] PathError),
}
