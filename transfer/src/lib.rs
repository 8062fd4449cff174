//! The swarm: what peers say to each other, which chunk to ask whom for, and the tasks that carry it out.
//!
//! `wire` (bytes), `swarm`, `choke`, `turns` and `haves` (decisions) are sans-IO: plain structs, time and randomness passed in. `driver`
//! runs them over `net` and `store`. Never here: discovery, configuration files, anything a person reads.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

mod api;
pub mod choke;
mod driver;
pub mod haves;
mod rate;
pub mod swarm;
pub mod turns;
pub mod wire;

pub use api::{
    Compression, Counters, FetchError, FetchEvent, FetchInto, FetchReport, FetchRequest, PeerAddr, PeerReport,
    PeerShare, ReadEvent, ReadReport, ReadRequest, SeedError, TransferConfig, TransferLimits,
};
pub use driver::{Fetch, Reading, Transfer};
pub use rate::{RateChange, Rates, TokenBucket};
