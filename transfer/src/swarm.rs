//! The swarm's core: which leaf to ask whom for, for one fetch of one root. Sans-IO.
//!
//! Lives here: [`Swarm`], what it takes in and gives out. `picker` keeps the leaves by rarity, `peer` a peer's account
//! (delivery rate, window, time-out), `core/read` whoever takes leaves in order while they come, `stripe` who is first in
//! line at a seeder, `opening` what is asked for before that is known. Never here: a clock, a socket, a task, a hash map whose
//! order could reach a decision.

mod core;
mod opening;
mod peer;
mod picker;
mod stripe;
#[cfg(test)]
mod tests;

pub use self::core::{Action, BatchId, DropReason, PeerIx, Progress, ReaderIx, Swarm, SwarmConfig};
pub use peer::PeerAccount;
