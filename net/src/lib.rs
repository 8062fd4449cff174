//! One UDP port, one QUIC endpoint, one identity.
//!
//! [`bind`] opens the port and gives three handles over it: an [`Endpoint`] that dials, lists addresses and shuts down;
//! a [`Libp2pTransport`] for the libp2p swarm (ALPN `libp2p`); and [`Incoming`], the stream of authenticated data-plane
//! connections (ALPN `shoal/1`). Both protocols share the socket, the TLS identity and the [`Limits`], so that a NAT
//! mapping made by one serves the other.
//!
//! This crate never knows what the bytes mean: no content, no DHT, no wire messages.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

mod accept;
mod addr;
mod cipher;
mod config;
mod congestion;
mod connection;
mod endpoint;
mod error;
pub mod identity;
mod limits;
mod muxer;
mod proven;
mod punch;
mod quic;
mod route;
mod socket;
mod table;
mod tls;
mod transport;
mod underlay;

pub use accept::NetStats;
pub use addr::{from_multiaddr, to_multiaddr};
pub use config::{Congestion, NetConfig};
pub use congestion::Carried;
pub use connection::{Connection, Incoming};
pub use endpoint::{Endpoint, bind, bind_on};
pub use error::{BindError, ConnectError, TransportIoError};
pub use libp2p_identity::{Keypair, PeerId};
pub use limits::{AlpnLimits, Limits};
pub use multiaddr::Multiaddr;
pub use muxer::{Muxer, Substream};
pub use quinn;
pub use transport::Libp2pTransport;
pub use underlay::{Kernel, Underlay};

/// Close code of an ordinary end.
pub const CLOSE_NORMAL: quinn::VarInt = quinn::VarInt::from_u32(0);
/// Close code of an endpoint that has no room: its backlog is full. The remote may try again later.
pub const CLOSE_BUSY: quinn::VarInt = quinn::VarInt::from_u32(1);
/// Close code for a remote that did not prove the identity it should.
pub const CLOSE_WRONG_PEER: quinn::VarInt = quinn::VarInt::from_u32(2);

/// The application protocol of libp2p over QUIC, as its TLS specification names it.
pub const ALPN_LIBP2P: &[u8] = b"libp2p";
/// The application protocol of the data plane. The number is the major version: another one does not shake hands.
pub const ALPN_SHOAL: &[u8] = b"shoal/1";
