//! Roots: what the user shared or fetched, by name. One record per root CID, as it is kept in the index.
//! What a root's DAG contains is never looked at here.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use shoal_content::Cid;

use crate::BaseId;

/// How a root came to be here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootKind {
    /// The user's own path, indexed in place.
    Shared,
    /// Fetched from peers.
    Fetched,
}

/// What the store remembers about one root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootRecord {
    /// The root's CID: the key of the record.
    pub root: Cid,
    /// The name it goes by (the last part of the shared path, or the link's name).
    pub name: String,
    /// Shared or fetched.
    pub kind: RootKind,
    /// The base its references hang off, if any.
    pub base: Option<BaseId>,
    /// Where it lies on disk, absolute; any bytes. Empty for content that lives in packs only.
    pub path: PathBuf,
    /// File bytes below the root (those selected, for a partial fetch).
    pub bytes: u64,
    /// Files below the root (those selected, for a partial fetch).
    pub files: u64,
    /// Everything (selected) is here. False while a fetch is under way.
    pub complete: bool,
    /// The user asked to keep it: never evicted.
    pub pinned: bool,
    /// Announce it to the network.
    pub provide: bool,
    /// When it was first recorded, in seconds since the Unix epoch; given by the caller, the store reads no clock.
    pub created_unix: u64,
    /// The paths inside the root that were asked for; `None` means all of it.
    pub selection: Option<Vec<String>>,
}
