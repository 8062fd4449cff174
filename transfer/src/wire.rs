//! The wire format of `shoal/1`: what peers say to each other on a QUIC connection, byte by byte.
//!
//! Lives here: control messages, request heads, packs, their encoding and a bounded streaming decoder.
//! Never here: sockets, clocks, decisions. The format is described with test vectors in `docs/protocol.md`.
//!
//! Integers are QUIC variable-length integers (RFC 9000, section 16) unless a width is named. A frame is
//! `length ‖ type (1 byte) ‖ body`; `length` counts type and body and is at most [`MAX_FRAME_BYTES`].

mod message;
mod pack;
mod request;
mod varint;

pub use message::{Decoder, Hello, LeafSet, Message, PeerHint};
pub use pack::{MAX_PACK_BYTES, MAX_PACK_RATIO, PACK_HEAD_BYTES, PackHead, PackKind, Packing, compress, decompress};
pub use request::{Request, RequestDecodeError};
pub use varint::{Reader, put_varint, varint_len};

/// A control frame or a request head is at most this many bytes; a longer one ends the connection.
pub const MAX_FRAME_BYTES: usize = 64 * 1024;
/// A have message carries at most this many ranges; more are sent as several messages or as bitmaps.
pub const MAX_RANGES: usize = 4096;
/// Bytes of one bitmap piece: 262,144 leaves, safely inside a frame.
pub const MAX_BITMAP_BYTES: usize = 32 * 1024;
/// A `Peers` message names at most this many peers.
pub const MAX_PEER_HINTS: usize = 64;
/// Addresses told for one peer, in `Hello` and in `Peers`.
pub const MAX_ADDRS: usize = 8;
/// Bytes of a text field (agent, reason).
pub const MAX_TEXT_BYTES: usize = 256;
/// Bytes of a binary peer id (a multihash; ed25519 keys take 38).
pub const MAX_PEER_ID_BYTES: usize = 64;
/// Leaves asked for in one request.
pub const MAX_LEAVES_PER_REQUEST: usize = 4096;

/// Bits of `features` in `Hello`.
pub mod feature {
    /// The sender reads packs under zstd.
    pub const ZSTD: u64 = 1;
    /// The sender reads `Load`.
    pub const LOAD: u64 = 2;
    /// The sender reads `Reach`.
    pub const REACH: u64 = 4;
}

/// Reset and stop codes of request streams.
pub mod code {
    /// The requester no longer wants the rest.
    pub const CANCELLED: u32 = 1;
    /// The serving side does not serve this root.
    pub const UNKNOWN_ROOT: u32 = 2;
    /// The requester is choked, or the serving side is at its limit; ask again when unchoked.
    pub const CHOKED: u32 = 3;
    /// The serving side could not read its own disk.
    pub const FAILED: u32 = 4;
    /// The request broke the protocol.
    pub const PROTOCOL: u32 = 5;
}

/// Why bytes of a peer are not a message. Every variant is the sender's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// A frame longer than [`MAX_FRAME_BYTES`].
    #[error("frame of {0} bytes is over the limit of {MAX_FRAME_BYTES}")]
    TooLong(u64),
    /// The bytes ended inside a field.
    #[error("message ends inside a field")]
    Truncated,
    /// Bytes are left over behind the last field.
    #[error("{0} bytes behind the end of the message")]
    Trailing(usize),
    /// A message type that this version does not know and may not skip.
    #[error("unknown message type {0:#04x}")]
    UnknownType(u8),
    /// A field holds a value that it must not.
    #[error("field {0} holds a value outside its range")]
    BadField(&'static str),
    /// A compressed pack that is no zstd frame, or of another length than it says.
    #[error("a compressed pack does not hold what it says")]
    BadPack,
}
