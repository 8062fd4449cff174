//! Composition: home directory, settings, identity, and the node that joins store, network, DHT and transfer.
//!
//! [`Node`] runs in this process; [`Host`] is either that or a daemon behind the control socket, and runs [`Request`]s
//! the same way: an [`Operation`] is a stream of [`Event`]s that ends in success or in a [`Failure`]. Protocol logic
//! lives in the rooms below, and what a person reads is made in `cli`.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that unwraps fails at the right line"))]

mod announce;
mod background;
mod blame;
pub mod config;
mod control;
mod discovery;
mod event;
mod failure;
mod fetch;
mod home;
mod host;
mod node;
mod operation;
mod passphrase;
mod peers;
mod period;
mod port;
mod rate;
mod rate_limit;
mod read;
mod request;
mod roots;
mod share;
mod space;
mod verify;

pub use background::Warnings;
pub use config::{Config, Settings};
pub use control::{CONTROL_VERSION, Client, Hello};
pub use event::{
    Collected, Done, EntryInfo, Event, Id, Importing, Limits, Listening, PeerInfo, Progress, Read, Root, RootInfo,
    ScrubProgress, Share, Shared, Space,
};
pub use failure::{Class, Failure};
pub use home::{Home, free_bytes};
pub use host::Host;
pub use node::{Node, Role};
pub use operation::Operation;
pub use passphrase::{Prompt, change_passphrase};
pub use period::period;
pub use rate_limit::RateLimit;
pub use request::{BytePath, LimitChange, Request};
pub use shoal_transfer::Counters;
