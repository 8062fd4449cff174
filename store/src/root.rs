//! Roots: what the user shared or fetched, by name. One record per root CID, as it is kept in the index.
//! What a root's DAG contains is never looked at here.

use std::path::{Path, PathBuf};

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
    /// Fetched from peers into the store itself, to serve it to others. Unless it is pinned, it goes when the quota wants
    /// its space.
    Cached,
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
    /// What takes an unfinished fetch up again: the caller's own text, opaque here.
    pub resume: Option<String>,
    /// When it is to be forgotten, in seconds since the Unix epoch.
    pub expires_unix: Option<u64>,
    /// When the pin falls, in seconds since the Unix epoch; `None` for one that does not.
    pub pinned_until_unix: Option<u64>,
}

/// First byte of every encoded record; another one means another shape.
const VERSION: u8 = 1;

/// The record as JSON, without its key. Roots are few, so that clarity beats size.
#[derive(Serialize, Deserialize)]
struct V1 {
    name: String,
    kind: RootKind,
    base: Option<BaseId>,
    path: PathText,
    bytes: u64,
    files: u64,
    complete: bool,
    pinned: bool,
    provide: bool,
    created_unix: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    selection: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resume: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_unix: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pinned_until_unix: Option<u64>,
}

/// A path as text where it is text, else as its bytes.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum PathText {
    Text(String),
    Bytes(Vec<u8>),
}

impl RootRecord {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let v1 = V1 {
            name: self.name.clone(),
            kind: self.kind,
            base: self.base,
            path: match self.path.to_str() {
                Some(text) => PathText::Text(text.to_owned()),
                None => PathText::Bytes(path_to_bytes(&self.path)),
            },
            bytes: self.bytes,
            files: self.files,
            complete: self.complete,
            pinned: self.pinned,
            provide: self.provide,
            created_unix: self.created_unix,
            selection: self.selection.clone(),
            resume: self.resume.clone(),
            expires_unix: self.expires_unix,
            pinned_until_unix: self.pinned_until_unix,
        };
        let mut out = vec![VERSION];
        // Strings and numbers into memory: there is nothing that could fail.
        if serde_json::to_writer(&mut out, &v1).is_err() {
            out.truncate(1);
        }
        out
    }

    /// `None` for a version or shape this build does not know.
    pub(crate) fn decode(root: Cid, bytes: &[u8]) -> Option<Self> {
        let (&VERSION, json) = bytes.split_first()? else { return None };
        let v1: V1 = serde_json::from_slice(json).ok()?;
        Some(Self {
            root,
            name: v1.name,
            kind: v1.kind,
            base: v1.base,
            path: match v1.path {
                PathText::Text(text) => PathBuf::from(text),
                PathText::Bytes(bytes) => path_from_bytes(&bytes)?,
            },
            bytes: v1.bytes,
            files: v1.files,
            complete: v1.complete,
            pinned: v1.pinned,
            provide: v1.provide,
            created_unix: v1.created_unix,
            selection: v1.selection,
            resume: v1.resume,
            expires_unix: v1.expires_unix,
            pinned_until_unix: v1.pinned_until_unix,
        })
    }
}

/// The bytes of a path, as [`path_from_bytes`] reads them.
pub(crate) fn path_to_bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_encoded_bytes().to_vec()
}

pub(crate) fn path_from_bytes(bytes: &[u8]) -> Option<PathBuf> {
    #[cfg(unix)]
    return Some(PathBuf::from(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(bytes)));
    #[cfg(not(unix))]
    return std::str::from_utf8(bytes).ok().map(PathBuf::from);
}

#[cfg(test)]
mod tests {
    use shoal_content::{Codec, HashKind};

    use super::*;

    #[test]
    fn records_survive_encoding() {
        let root = Cid::of(Codec::Raw, HashKind::Blake3, b"root");
        for path in [&b"/a/b"[..], b"/caf\xe9", b""] {
            let record = RootRecord {
                root,
                name: "näme\n".into(),
                kind: RootKind::Fetched,
                base: Some(BaseId(7)),
                path: path_from_bytes(path).unwrap(),
                bytes: u64::MAX,
                files: 3,
                complete: false,
                pinned: true,
                provide: true,
                created_unix: 1,
                selection: Some(vec!["a/b".into()]),
                resume: Some("again".into()),
                expires_unix: Some(2),
                pinned_until_unix: Some(3),
            };
            let bytes = record.encode();
            assert_eq!(RootRecord::decode(root, &bytes), Some(record));
            assert_eq!(RootRecord::decode(root, &bytes[..bytes.len() - 1]), None);
            assert_eq!(RootRecord::decode(root, &[&[2], &bytes[1..]].concat()), None, "a later version");
        }
    }
}
