//! What an operation tells while it runs, and its results. One enum, the same in the process that runs the operation,
//! over the control socket, and as JSON lines on standard output. Sizes are bytes, durations seconds.

use serde::{Deserialize, Serialize};
use shoal_content::Cid;

use crate::RateLimit;

/// One event. In JSON it is an object with the variant's name under `event`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// A node runs and can be reached.
    Listening(Listening),
    /// A path is being read and hashed.
    Importing(Importing),
    /// Result: a path is served.
    Shared(Shared),
    /// A fetch looks for peers.
    Searching {
        /// The root.
        root: Root,
        /// Providers found so far.
        providers: usize,
    },
    /// A fetch knows its tree.
    Manifest {
        /// The root.
        root: Root,
        /// Bytes of all its files.
        bytes: u64,
        /// Its files.
        files: u64,
    },
    /// A fetch begins to ask for chunks.
    Started {
        /// Bytes asked for.
        bytes_total: u64,
        /// Of these, in place from an earlier run.
        bytes_resumed: u64,
        /// Of these, taken from content that is here under another root.
        bytes_local: u64,
    },
    /// A fetch goes on. At most four times a second.
    Progress(Progress),
    /// A fetch let a peer go.
    PeerDropped {
        /// Who.
        peer: String,
        /// Why.
        why: String,
    },
    /// Result: a fetch is complete, verified, durable and in place.
    Done(Done),
    /// Result: the store has another passphrase.
    PassphraseChanged {
        /// The home directory.
        home: String,
    },
    /// A file is read: it was found.
    Opened {
        /// The root.
        root: Root,
        /// The file's path in it.
        path: String,
        /// Bytes of the file.
        size: u64,
        /// Bytes of it that will be read.
        bytes: u64,
        /// Bytes that are fetched for that.
        missing: u64,
        /// Whether they stay in the store, as cached content. Without room for them they pass through memory.
        kept: bool,
    },
    /// Result: the next bytes of a file. Never as JSON: on the control socket they follow their length as they are.
    #[serde(skip)]
    Bytes(bytes::Bytes),
    /// Result: a file was read to its end.
    Read(Read),
    /// Result: a root of this home.
    Root(RootInfo),
    /// Result: a file, directory or symlink of a root.
    Entry(EntryInfo),
    /// Result: a peer.
    Peer(PeerInfo),
    /// Result: what a running node did so far.
    Counters {
        /// Payload bytes received.
        bytes_in: u64,
        /// Payload bytes sent.
        bytes_out: u64,
        /// Connected peers of the data plane.
        peers: usize,
        /// Roots served.
        roots: usize,
    },
    /// Result: who this is.
    Id(Id),
    /// The rate limits that hold.
    Limits(Limits),
    /// A root is being re-read, or what belongs to none that is complete.
    Verifying {
        /// The root.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        root: Option<Root>,
        /// Bytes read.
        bytes_done: u64,
        /// Bytes to read.
        bytes_total: u64,
    },
    /// A file of a root is not what it was.
    Damaged {
        /// The root.
        root: Root,
        /// The file in the root, or where it lies for a root that is one file.
        path: String,
        /// Bytes of it that are wrong or missing.
        bytes: u64,
        /// Its length.
        size: u64,
        /// What is wrong.
        why: String,
    },
    /// Result: a root was re-read.
    Verified {
        /// The root.
        root: Root,
        /// Its name.
        name: String,
        /// Whether every byte was right.
        intact: bool,
        /// Bytes read.
        bytes: u64,
        /// Bytes that are wrong or missing.
        bytes_damaged: u64,
        /// Files with damage.
        files_damaged: u64,
        /// How long it took.
        seconds: f64,
    },
    /// Result: what re-reading cost and found, over all roots.
    Scrubbed {
        /// Copies of blocks that were read.
        copies: u64,
        /// Their bytes.
        bytes: u64,
        /// Copies that were bad, and are not used any more. Where a block has another copy, its root is intact.
        bad: u64,
        /// Copies whose surroundings in the store were damaged: they were written anew.
        mended: u64,
        /// Blocks that the index had lost, and that were where they should be.
        recovered: u64,
        /// How long it took.
        seconds: f64,
    },
    /// Result: a root is pinned, or no longer.
    Pinned {
        /// The root.
        root: Root,
        /// Its name.
        name: String,
        /// Whether it is.
        pinned: bool,
    },
    /// Result: a root is no longer served.
    Unshared {
        /// The root.
        root: Root,
        /// Its name.
        name: String,
        /// Whether its record is gone as well.
        forgotten: bool,
    },
    /// Result: what a collection of garbage did.
    Collected(Collected),
    /// Result: where the store's space goes.
    Space(Space),
    /// Something that the user should know and that stops nothing.
    Warning {
        /// A sentence.
        message: String,
    },
}

/// What a collection of garbage did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Collected {
    /// Bytes that the store takes less than before.
    pub bytes_freed: u64,
    /// Bytes that were copied to free others.
    pub bytes_moved: u64,
    /// Blocks that nothing needed.
    pub blocks: u64,
    /// Pack files that were removed.
    pub packs: u64,
    /// Names of cached roots that made room.
    pub evicted: Vec<String>,
    /// Names of roots whose time was over.
    pub expired: Vec<String>,
    /// Names of roots that are no longer pinned, since the pin's time was over.
    pub unpinned: Vec<String>,
    /// Roots of which nodes are missing: what may be theirs was left alone.
    pub damaged: Vec<Root>,
    /// How long it took.
    pub seconds: f64,
}

/// Where the store's space goes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// The most that it may take.
    pub quota: u64,
    /// What it takes: index and packs.
    pub used: u64,
    /// The index.
    pub index: u64,
    /// In packs: trees of what is shared, fetched or pinned, and pinned content.
    pub kept: u64,
    /// In packs: cached content that may be evicted.
    pub cached: u64,
    /// In packs: what nothing needs; `gc` gives it back.
    pub garbage: u64,
    /// Files that are shared or were fetched, in place: they are the user's and do not count.
    pub in_place: u64,
    /// Free on the store's disk.
    pub free: Option<u64>,
    /// The scrub that a daemon has under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub: Option<ScrubProgress>,
    /// When a daemon's last one was done, in seconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrubbed_unix: Option<u64>,
}

/// How far a daemon's scrub is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubProgress {
    /// Bytes read since it began or went on.
    pub bytes_done: u64,
    /// Bytes to read from there.
    pub bytes_total: u64,
    /// Bad copies found.
    pub bad: u64,
}

/// A root's CID; text in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Root(pub Cid);

impl std::fmt::Display for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Root {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Root {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        text.parse().map(Root).map_err(serde::de::Error::custom)
    }
}

/// A node that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// Its peer id.
    pub peer: String,
    /// Multiaddrs with `/p2p/<peer>` by which others reach it.
    pub addrs: Vec<String>,
    /// Roots it serves.
    pub roots: u64,
    /// Its home directory.
    pub home: String,
    /// Its process.
    pub pid: u32,
}

/// How far an import is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Importing {
    /// The path.
    pub path: String,
    /// Files done.
    pub files_done: u64,
    /// Files found, once the tree was listed.
    pub files_total: u64,
    /// Bytes done.
    pub bytes_done: u64,
    /// Bytes found.
    pub bytes_total: u64,
    /// Bytes per second.
    pub bytes_per_second: u64,
}

/// A path that is served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shared {
    /// What people paste on the other machine.
    pub link: String,
    /// The root.
    pub root: Root,
    /// Its name.
    pub name: String,
    /// Bytes of all files.
    pub bytes: u64,
    /// Files.
    pub files: u64,
    /// Bytes of files that were not read again, since nobody has written to them since they were shared before.
    #[serde(default)]
    pub bytes_unread: u64,
    /// These files.
    #[serde(default)]
    pub files_unread: u64,
    /// Where it lies.
    pub path: String,
    /// How long reading it took.
    pub seconds: f64,
    /// The peer that serves it.
    pub peer: String,
    /// The process that serves it.
    pub pid: u32,
}

/// How far a fetch is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes in place.
    pub bytes_done: u64,
    /// Bytes asked for.
    pub bytes_total: u64,
    /// Connected peers of the swarm.
    pub peers: usize,
    /// Bytes per second, of late.
    pub bytes_per_second: u64,
    /// How long the rest will take, if that can be said.
    pub eta_seconds: Option<u64>,
}

/// The end of a reading.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Read {
    /// The root.
    pub root: Root,
    /// Bytes that were read.
    pub bytes: u64,
    /// Bytes that came from peers meanwhile, compressed where they came so: chunks and the nodes of the tree.
    pub bytes_moved: u64,
    /// From the request to the end.
    pub seconds: f64,
    /// Until the first byte.
    pub first_byte_seconds: Option<f64>,
    /// Whether what was fetched stays in the store.
    pub kept: bool,
}

/// The end of a fetch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Where it landed (the first of `paths`).
    pub path: String,
    /// Everything that landed.
    pub paths: Vec<String>,
    /// The root.
    pub root: Root,
    /// Its name.
    pub name: String,
    /// Bytes asked for.
    pub bytes: u64,
    /// Files asked for.
    pub files: u64,
    /// Verified bytes that came from peers in this run.
    pub bytes_fetched: u64,
    /// Bytes that came from peers in this run in all, compressed where they came so: chunks and the nodes of the tree.
    pub bytes_moved: u64,
    /// What of `bytes` did not have to be moved: it was here, or came compressed.
    pub bytes_saved: u64,
    /// Bytes in place from an earlier run.
    pub bytes_resumed: u64,
    /// Bytes taken from content that was here already.
    pub bytes_local: u64,
    /// Bytes that came twice.
    pub bytes_duplicate: u64,
    /// From the request to the end.
    pub seconds: f64,
    /// Until the first verified chunk from a peer.
    pub first_byte_seconds: Option<f64>,
    /// `bytes_fetched` over `seconds`.
    pub bytes_per_second: u64,
    /// Providers that discovery found.
    pub providers_found: usize,
    /// Until discovery found the first provider.
    pub first_provider_seconds: Option<f64>,
    /// What was not written and why, one sentence each.
    pub skipped: Vec<String>,
    /// Who gave how much, largest first.
    pub peers: Vec<Share>,
}

/// What a peer gave to a fetch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Who.
    pub peer: String,
    /// Verified bytes.
    pub bytes: u64,
    /// Verified chunks.
    pub chunks: u64,
    /// Why it was let go, if it was.
    pub dropped: Option<String>,
}

/// A root of this home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootInfo {
    /// The root.
    pub root: Root,
    /// Its name.
    pub name: String,
    /// `shared`, `fetched` or `cached`.
    pub kind: String,
    /// Where it lies.
    pub path: String,
    /// Bytes (those selected).
    pub bytes: u64,
    /// Files (those selected).
    pub files: u64,
    /// Whether all of it is here.
    pub complete: bool,
    /// Whether it is pinned.
    pub pinned: bool,
    /// Whether it is to be served whenever a node runs.
    pub provide: bool,
    /// Whether it is served now.
    pub serving: bool,
    /// When it was first recorded, in seconds since the Unix epoch.
    pub created_unix: u64,
    /// When it will be forgotten, in seconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_unix: Option<u64>,
    /// When it will be unpinned, in seconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned_until_unix: Option<u64>,
    /// The paths in it that were asked for; none means all.
    pub selection: Option<Vec<String>>,
    /// The link, with addresses if a node runs.
    pub link: String,
}

/// An entry of a root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryInfo {
    /// Its path in the root; empty for the root itself.
    pub path: String,
    /// `file`, `dir` or `symlink`.
    pub kind: String,
    /// Bytes of a file.
    pub size: u64,
    /// Whether it is an executable file.
    pub executable: bool,
    /// Where a symlink points.
    pub target: Option<String>,
}

/// A peer of a running node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerInfo {
    /// Who.
    pub peer: String,
    /// Where.
    pub addrs: Vec<String>,
    /// What it calls itself.
    pub agent: String,
    /// How it is known: `data`, `dht`, or both.
    pub planes: Vec<String>,
    /// Payload bytes received from it.
    pub bytes_in: u64,
    /// Payload bytes sent to it.
    pub bytes_out: u64,
    /// Round trip in milliseconds, where measured.
    pub rtt_ms: Option<f64>,
    /// Roots that both sides take part in.
    pub roots: Vec<Root>,
}

/// Rate limits, per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Sent to all peers together.
    pub upload: RateLimit,
    /// Received from all peers together.
    pub download: RateLimit,
    /// Sent to one peer.
    pub upload_per_peer: RateLimit,
    /// Received from one peer.
    pub download_per_peer: RateLimit,
}

/// Who this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Id {
    /// The peer id.
    pub peer: String,
    /// Multiaddrs for others, while a node runs: what to give them as `--bootstrap`.
    pub addrs: Vec<String>,
    /// The home directory.
    pub home: String,
    /// The program's version.
    pub version: String,
    /// The process of the running node.
    pub pid: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_content::{Codec, HashKind};

    #[test]
    fn events_are_flat_objects_with_their_name_and_round_trip() {
        let root = Root(Cid::of(Codec::Raw, HashKind::Blake3, b"x"));
        let event = Event::Pinned { root, name: "a".to_owned(), pinned: true };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(text, format!(r#"{{"event":"pinned","root":"{root}","name":"a","pinned":true}}"#));
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
        let progress = Progress { bytes_done: 1, bytes_total: 2, peers: 3, bytes_per_second: 4, eta_seconds: None };
        let text = serde_json::to_string(&Event::Progress(progress.clone())).unwrap();
        assert!(text.starts_with(r#"{"event":"progress","bytes_done":1,"#), "{text}");
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), Event::Progress(progress));
    }
}
