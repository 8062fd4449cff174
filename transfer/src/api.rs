//! What the driver's user says and hears: requests, events, reports, errors, limits. No behaviour.

use crate::{
    choke::Policy,
    rate::Rates,
    swarm::{DropReason, SwarmConfig},
    wire::Packing,
};
use bytes::Bytes;
use shoal_content::{Cid, RelPath, SelectError, WalkError};
use shoal_net::PeerId;
use shoal_store::{CheckoutError, ManifestError, ReadError, StoreError};
use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

/// What strangers may cost, and what this side spends. The table of `ARCHITECTURE.md` repeats it.
#[derive(Debug, Clone)]
pub struct TransferLimits {
    /// Connections kept for one root; more are not dialled, and refused.
    pub peers_per_root: usize,
    /// Addresses of peers remembered for one root.
    pub known_peers_per_root: usize,
    /// Roots that one connection may join.
    pub roots_per_connection: usize,
    /// Request streams of one peer that are read at the same time; more wait in its QUIC window.
    pub requests_per_connection: usize,
    /// Requests of one peer that are answered at the same time; more wait. One, so that a requester that waits for room to
    /// verify never has its window filled by another answer than the one it reads.
    pub answers_per_connection: usize,
    /// Bytes of answers, read from disk or in memory, that are not yet handed to QUIC, over all peers.
    pub serve_bytes: usize,
    /// Bytes of whole leaves that are not yet verified and written, of one fetch. With the receive window and the leaf that
    /// is being read it is what a kill costs.
    pub verify_bytes: usize,
    /// Bytes of leaves that came last and stay in memory for others who fetch the same, over all fetches.
    pub recent_bytes: usize,
    /// Bytes of control messages that wait for one peer to read them; beyond, it is let go.
    pub outbox_bytes: usize,
    /// Connections over long paths whose windows are widened to 32 MiB; others keep those of `shoal_net::Limits`.
    pub wide_connections: usize,
    /// Interested peers served at the same time.
    pub upload_slots: usize,
    /// An answer whose reader takes nothing for so long is given up.
    pub idle_answer: Duration,
    /// A peer that sent wrong bytes or broke the protocol is refused for so long, whoever dials.
    pub ban: Duration,
    /// Peers that are refused for that; beyond, the one whose time is over first is forgotten.
    pub banned_peers: usize,
    /// Files of one root that are read at the same time while they come.
    pub readers_per_root: usize,
    /// Bytes that are fetched ahead of a reader and kept in the store.
    pub read_ahead_bytes: u64,
    /// Bytes that are fetched ahead of a reader and kept in memory, where the store has no room.
    pub read_ahead_memory: u64,
}

impl Default for TransferLimits {
    fn default() -> Self {
        TransferLimits {
            peers_per_root: 55,
            known_peers_per_root: 256,
            roots_per_connection: 256,
            requests_per_connection: 64,
            answers_per_connection: 1,
            serve_bytes: 8 << 20,
            verify_bytes: 1 << 20,
            recent_bytes: 16 << 20,
            outbox_bytes: 1 << 20,
            wide_connections: 16,
            upload_slots: 64,
            idle_answer: Duration::from_secs(30),
            ban: Duration::from_secs(3600),
            banned_peers: 1024,
            readers_per_root: 16,
            read_ahead_bytes: 64 << 20,
            read_ahead_memory: 16 << 20,
        }
    }
}

/// Whether chunks and nodes travel compressed. What is on disk, and what is hashed, are the plain bytes in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Where a link is slower than a core compresses; and for a next version, most of which is here already, wherever it
    /// makes less of the rest.
    #[default]
    Auto,
    /// Wherever it makes less of it.
    Always,
    /// Never, in neither direction.
    Off,
}

impl Compression {
    /// How to ask for content of which most is here, or is not.
    pub(crate) fn packing(self, mostly_here: bool) -> Packing {
        match self {
            Compression::Off => Packing::Off,
            Compression::Auto if !mostly_here => Packing::IfFaster,
            Compression::Auto | Compression::Always => Packing::IfSmaller,
        }
    }
}

/// Settings of the driver.
#[derive(Debug, Clone, Default)]
pub struct TransferConfig {
    /// Name and version that peers are told.
    pub agent: String,
    /// Rate limits to begin with.
    pub rates: Rates,
    /// Compression on the wire.
    pub compression: Compression,
    /// For whom the uplink works.
    pub uplink: Policy,
    /// The scheduler's settings.
    pub swarm: SwarmConfig,
    /// Limits.
    pub limits: TransferLimits,
}

/// A peer and where it may be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddr {
    /// Who.
    pub peer: PeerId,
    /// Where; tried in this order.
    pub addrs: Vec<SocketAddr>,
}

/// Where fetched content goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FetchInto {
    /// Into the directory of the request.
    #[default]
    Dir,
    /// Into the store itself, as cached content.
    Cache,
    /// Into the store itself, and only what cannot be read any more of a root that is here.
    Repair,
}

/// What to fetch, and where to.
#[derive(Debug, Clone)]
pub struct FetchRequest {
    /// The content.
    pub root: Cid,
    /// Paths inside it; none means all of it.
    pub paths: Vec<RelPath>,
    /// The directory that the content lands in.
    pub dir: PathBuf,
    /// Its name there; the CID where there is none.
    pub name: Option<String>,
    /// Peers to begin with.
    pub peers: Vec<PeerAddr>,
    /// Write symlinks that stay inside the destination.
    pub symlinks: bool,
    /// Where it goes.
    pub into: FetchInto,
    /// When the root is to be forgotten, in seconds since the Unix epoch.
    pub expires_unix: Option<u64>,
    /// Fail when no peer offers anything that is missing, or nothing arrives, for so long. `None` waits for ever.
    pub give_up_after: Option<Duration>,
}

/// What to read while it comes.
#[derive(Debug, Clone)]
pub struct ReadRequest {
    /// The content.
    pub root: Cid,
    /// The file in it; empty for a root that is a file.
    pub path: RelPath,
    /// The first byte to read.
    pub offset: u64,
    /// So many bytes, or up to the end of the file.
    pub length: Option<u64>,
    /// What the content is called, for its record.
    pub name: Option<String>,
    /// Peers to begin with.
    pub peers: Vec<PeerAddr>,
    /// Keep what is read in the store, as cached content, if there is room for all of it.
    pub keep: bool,
    /// Fail when no peer offers anything that is about to be read, or nothing arrives, for so long; the time that whoever
    /// reads takes does not count. `None` waits for ever.
    pub give_up_after: Option<Duration>,
}

/// What a reading tells.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReadEvent {
    /// The tree is not here: somebody has to be found who has it.
    Absent,
    /// The file was found.
    Opened {
        /// Bytes of the file.
        size: u64,
        /// Bytes of it that will be read.
        bytes: u64,
        /// Bytes of the leaves that this needs and that are not here.
        missing: u64,
        /// Whether they are kept.
        kept: bool,
    },
    /// The next bytes, verified. Never empty.
    Bytes(Bytes),
    /// A peer was let go, or went. Left out when nobody listens.
    PeerDropped {
        /// Who.
        peer: PeerId,
        /// Why, for people.
        why: String,
    },
    /// Everything was read.
    End(ReadReport),
    /// No more comes.
    Failed(Arc<FetchError>),
}

/// The end of a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadReport {
    /// Bytes that were read.
    pub bytes: u64,
    /// Bytes that came from peers meanwhile, for all readers of the root: chunks and nodes, compressed where they came so.
    pub bytes_moved: u64,
    /// From the request to the end.
    pub elapsed: Duration,
    /// Until the first byte.
    pub first_byte: Option<Duration>,
    /// Whether what was read is kept.
    pub kept: bool,
}

/// What a fetch tells while it runs. `Done` or `Failed` is the last one.
#[derive(Debug)]
#[non_exhaustive]
pub enum FetchEvent {
    /// The tree is known.
    Manifest {
        /// Bytes of all files of the root.
        bytes_total: u64,
        /// Files of the root.
        files: u64,
        /// Distinct leaves of the root.
        leaves: u32,
    },
    /// The destination is ready and leaves are being asked for.
    Started {
        /// Bytes of the distinct leaves that were asked for.
        bytes_total: u64,
        /// Of these, in place from an earlier run.
        bytes_resumed: u64,
        /// Of these, taken from content that was already here.
        bytes_local: u64,
    },
    /// Several times a second.
    Progress {
        /// Bytes in place.
        bytes_done: u64,
        /// Bytes of the distinct leaves that were asked for.
        bytes_total: u64,
        /// Peers of the swarm that are connected.
        peers: usize,
    },
    /// A peer was let go, or went.
    PeerDropped {
        /// Who.
        peer: PeerId,
        /// Why, for people.
        why: String,
    },
    /// Every byte is verified, durable and in place.
    Done(Box<FetchReport>),
    /// It ended without. What is in place stays for the next try.
    Failed(FetchError),
}

/// What a peer contributed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerShare {
    /// Who.
    pub peer: PeerId,
    /// Verified bytes from it.
    pub bytes: u64,
    /// Verified leaves from it.
    pub leaves: u64,
    /// Why it was let go, if it was.
    pub dropped: Option<String>,
}

/// The end of a fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchReport {
    /// What was fetched.
    pub root: Cid,
    /// Where it landed.
    pub paths: Vec<PathBuf>,
    /// Bytes of the distinct leaves that were asked for.
    pub bytes: u64,
    /// Verified bytes that came from peers in this run.
    pub bytes_fetched: u64,
    /// Bytes that came from peers in this run in all: chunks and nodes, compressed where they came so. Without what QUIC
    /// adds.
    pub bytes_moved: u64,
    /// Bytes found in place from an earlier run.
    pub bytes_resumed: u64,
    /// Bytes taken from content that was already here.
    pub bytes_local: u64,
    /// Bytes that came twice.
    pub bytes_duplicate: u64,
    /// From the request to the end.
    pub elapsed: Duration,
    /// Until the first verified leaf, if any came from a peer.
    pub first_leaf: Option<Duration>,
    /// What was not written and why, one sentence each.
    pub skipped: Vec<String>,
    /// Who gave what, largest first.
    pub peers: Vec<PeerShare>,
}

/// Why a fetch ended without its content.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// Nobody that could be reached has it.
    #[error("found no peer that has {root} within {} s", waited.as_secs())]
    NoProviders {
        /// What was looked for.
        root: Cid,
        /// For how long.
        waited: Duration,
    },
    /// Peers are there but nothing arrives.
    #[error("nothing arrived for {} s; {missing} bytes are missing", waited.as_secs())]
    Stalled {
        /// For how long.
        waited: Duration,
        /// How much is missing.
        missing: u64,
    },
    /// The content itself is not well-formed; no peer can help.
    #[error("{root} is not well-formed: {source}")]
    BadContent {
        /// What.
        root: Cid,
        /// How.
        source: WalkError,
    },
    /// A path that is not in the content.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// The destination.
    #[error(transparent)]
    Checkout(#[from] CheckoutError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store, reading.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Only files can be read.
    #[error("{} is {is}", name_of(path))]
    NotAFile {
        /// Its path in the root.
        path: String,
        /// What it is instead.
        is: String,
    },
    /// Nothing is there to be read.
    #[error("the file has {size} bytes, so that none is at offset {offset}")]
    BeyondEnd {
        /// Where to read.
        offset: u64,
        /// Bytes of the file.
        size: u64,
    },
    /// It is being fetched already.
    #[error("{0} is being fetched already")]
    Busy(Cid),
    /// The fetch was dropped.
    #[error("the fetch was cancelled")]
    Cancelled,
    /// This side is closing.
    #[error("shutting down")]
    ShuttingDown,
}

/// Why a root cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SeedError {
    /// Its tree cannot be read.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The index cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// This side is closing.
    #[error("shutting down")]
    ShuttingDown,
}

/// A connected peer.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerReport {
    /// Who.
    pub peer: PeerId,
    /// Where.
    pub addr: SocketAddr,
    /// What it calls itself; from the peer, so escape it before a person reads it.
    pub agent: String,
    /// Whether this side dialled.
    pub dialer: bool,
    /// Payload bytes received from it on this connection.
    pub bytes_in: u64,
    /// Payload bytes sent to it on this connection.
    pub bytes_out: u64,
    /// Round trip time.
    pub rtt: Duration,
    /// Roots that both sides take part in.
    pub roots: Vec<Cid>,
}

/// Sums since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Payload bytes received.
    pub bytes_in: u64,
    /// Payload bytes sent.
    pub bytes_out: u64,
    /// Connected peers.
    pub peers: usize,
    /// Roots served.
    pub roots: usize,
}

/// A path in a root, for people.
fn name_of(path: &str) -> String {
    if path.is_empty() { "this".into() } else { format!("\"{}\"", path.escape_debug()) }
}

impl DropReason {
    /// For people.
    pub(crate) fn sentence(self) -> String {
        match self {
            DropReason::Corrupt { leaf } => format!("sent wrong bytes for leaf {leaf}"),
            DropReason::Stalled => "stalled: it was asked and sent nothing".into(),
        }
    }
}
