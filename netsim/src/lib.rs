//! Test networks: the scheduler that the product runs, for thousands of peers in one process, under a clock of events and
//! links that are fluids. A run is decided by its options and its seed, bit for bit.
//!
//! `scenario` says what is simulated, `world` runs it, `fluid` shares links, `report` prints. Never here: a socket, a real
//! clock, anything that is linked into the product.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test"))]

pub mod fluid;
pub mod report;
pub mod rng;
pub mod scenario;
pub mod world;

pub use report::Outcome;
pub use scenario::Options;

/// Runs one simulation.
pub fn simulate(options: &Options) -> Outcome {
    world::World::new(options).run()
}
