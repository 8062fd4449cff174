//! End-to-end tests: the real binary, real processes, real sockets. One test binary, so that it is linked once.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test that unwraps fails at the right line")]

mod big;
mod changed;
mod daemons;
mod descriptors;
mod disks;
mod faults;
mod homes;
mod kills;
mod lans;
mod network;
mod reading;
mod refusals;
mod seeders;
mod space;
mod trees;
