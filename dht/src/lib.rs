//! Who has what: Kademlia and its companions behind a small async handle.
//!
//! [`Dht`] runs a libp2p swarm over the shared port in one task of its own: Kademlia for provider records, identify,
//! ping, AutoNAT v2, relay, DCUtR, and mDNS on the LAN. It finds peers that provide a key and addresses at which they
//! can be dialled. It never moves content and never judges it; the keys are opaque bytes (multihashes).

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

mod actor;
mod backoff;
mod behaviour;
mod book;
mod config;
mod handle;
mod neighbours;
mod observed;
mod publish;
mod scope;
mod search;
mod store;

pub use config::{DhtConfig, DhtLimits};
pub use handle::{Dht, DhtError, PeerInfo, Provider};
pub use shoal_net::{Keypair, Multiaddr, PeerId};
