//! The harness of the end-to-end tests: real processes of the real binary in homes of their own, the links between them
//! slowed down, network namespaces, small disks, peers that misbehave, and made-up content.
//!
//! Everything that is started or made is a guard and goes away when dropped, also when a test fails. Every wait is for a
//! condition and has a deadline. Ports are ephemeral; multicast happens in namespaces only. What needs root says so on
//! standard error and gives `None` where there is none.
//!
//! Never here: assertions about the product, which are the tests' (`tests/e2e`).

#![allow(clippy::unwrap_used, reason = "a harness that unwraps fails the test at the right line")]

pub mod binary;
pub mod bottleneck;
pub mod content;
pub mod disk;
pub mod lan;
pub mod piped;
pub mod place;
pub mod process;
pub mod raw;
pub mod slow;

use std::time::Duration;

/// No single step of a test takes this long, unless something hangs.
pub const AT_MOST: Duration = Duration::from_secs(60);

/// A million bytes.
pub const MB: u64 = 1_000_000;

/// 2^20 bytes.
pub const MIB: u64 = 1 << 20;

/// Says on standard error why a test does nothing here.
pub fn skipped(reason: &str) {
    eprintln!("skipped: {reason}");
}

/// Whether this process may mount and make namespaces.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
