//! What a node can be asked to do: the one list of operations, for the process itself and for the control socket.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::RateLimit;

/// An operation. Paths are absolute: a daemon has another working directory than its clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Request {
    /// Index paths in place and serve them. Ends when all are served, or, with `stay`, when it is cancelled.
    Share {
        /// Files or directories.
        paths: Vec<BytePath>,
        /// Goes on until cancelled.
        stay: bool,
        /// Forget them after so many seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ttl_seconds: Option<u64>,
        /// Read every file, even those that nobody has written to since they were last read.
        #[serde(default)]
        read_all: bool,
    },
    /// Stop serving a root. Its files stay.
    Unshare {
        /// A CID, link, name or path.
        what: String,
        /// Forget its record as well: it is no longer listed, and not resumed if it is incomplete.
        forget: bool,
    },
    /// Fetch a root, or paths in it, into a directory.
    Fetch {
        /// A link, CID or `ipfs://` URL.
        link: String,
        /// Paths in the root; none means all (or what the link names).
        paths: Vec<String>,
        /// Where it lands.
        dir: BytePath,
        /// Write symlinks that stay inside.
        symlinks: bool,
        /// Goes on serving it until cancelled.
        stay: bool,
        /// Into the store itself, as cached content, rather than into `dir`.
        #[serde(default)]
        cached: bool,
        /// Forget it after so many seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ttl_seconds: Option<u64>,
    },
    /// A file's bytes in order, as they come. The reader sets the pace.
    Read {
        /// A link, CID or `ipfs://` URL; or what a root of this home is called.
        what: String,
        /// The file in it; none for a root (or a path in the link) that is a file.
        path: Option<String>,
        /// The first byte.
        offset: u64,
        /// So many bytes; up to the end without it.
        length: Option<u64>,
    },
    /// All roots.
    List,
    /// One root and its entries.
    Stat {
        /// A CID, link, name or path.
        what: String,
    },
    /// Connected peers.
    Peers,
    /// Change the rate limits that are named, and tell all of them.
    Limit(LimitChange),
    /// Keep a root.
    Pin {
        /// A CID, link, name or path.
        what: String,
        /// For so many seconds; `None` until it is unpinned.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        for_seconds: Option<u64>,
    },
    /// Keep it no longer.
    Unpin {
        /// A CID, link, name or path.
        what: String,
    },
    /// Read everything again and compare.
    Verify {
        /// A CID, link, name or path; `None` for all roots.
        what: Option<String>,
        /// Fetch what is damaged from other peers.
        #[serde(default)]
        repair: bool,
    },
    /// Give back the space of what nothing needs.
    Collect,
    /// Where the store's space goes.
    Space,
    /// Who this is.
    Id,
}

/// New rate limits; those that are not named stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitChange {
    /// Sent to all peers together.
    pub upload: Option<RateLimit>,
    /// Received from all peers together.
    pub download: Option<RateLimit>,
    /// Sent to one peer.
    pub upload_per_peer: Option<RateLimit>,
    /// Received from one peer.
    pub download_per_peer: Option<RateLimit>,
}

/// A path of any bytes: text in JSON where it is UTF-8, else `{"hex": …}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BytePath(pub PathBuf);

impl BytePath {
    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl<P: Into<PathBuf>> From<P> for BytePath {
    fn from(path: P) -> Self {
        BytePath(path.into())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form {
    Text(String),
    Hex { hex: String },
}

impl Serialize for BytePath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) => serializer.serialize_str(text),
            None => Form::Hex { hex: to_hex(self.0.as_os_str().as_encoded_bytes()) }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for BytePath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Form::deserialize(deserializer)? {
            Form::Text(text) => Ok(BytePath(text.into())),
            Form::Hex { hex } => from_hex(&hex)
                .and_then(path_of)
                .map(BytePath)
                .ok_or_else(|| serde::de::Error::custom("a path is not valid hexadecimal")),
        }
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(unix)]
fn path_of(bytes: Vec<u8>) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    Some(std::ffi::OsString::from_vec(bytes).into())
}

#[cfg(not(unix))]
fn path_of(bytes: Vec<u8>) -> Option<PathBuf> {
    String::from_utf8(bytes).ok().map(Into::into)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn paths_of_any_bytes_survive_the_socket() {
        for bytes in [b"/a b/\xc3\xa4".to_vec(), b"/a\xff\x00\x01".to_vec(), b"/{\"hex\":\"00\"}".to_vec()] {
            let path = BytePath(std::ffi::OsString::from_vec(bytes).into());
            let text = serde_json::to_string(&path).unwrap();
            assert_eq!(serde_json::from_str::<BytePath>(&text).unwrap(), path, "{text}");
        }
        for bad in [r#"{"hex":"0"}"#, r#"{"hex":"zz"}"#, r#"{"hex":"é0"}"#, "7"] {
            assert!(serde_json::from_str::<BytePath>(bad).is_err(), "{bad}");
        }
    }
}
impl Request {
    /// Whether it is to make something durable, which a store that is read-only refuses.
    pub(crate) fn promises(&self) -> bool {
        use Request::{Collect, Fetch, Pin, Share, Unpin, Unshare};
        matches!(self, Share { .. } | Unshare { .. } | Fetch { .. } | Pin { .. } | Unpin { .. } | Collect)
    }
}
