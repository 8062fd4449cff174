//! Blocks on disk: an index, append-only packs, and references to the user's own files.
//!
//! [`Store`] is the one handle: blocking, cheap to clone, safe to use from many threads. A block is either in a *pack*
//! (nodes, cached content) or at a *reference* (a range of a file of the user's, indexed in place); both are hashed
//! before their bytes are handed out. What is staged is readable at once and durable after [`Store::commit`].
//!
//! This room knows neither peers nor the network, reads no clock, and never writes to a file it only refers to
//! (`checkout` writes the destinations of fetches, and nothing else).
//!
//! Layout of a home's store directory: `format` (its version), `lock` (held while open), `index.redb`, `roots`
//! (a second copy of what could not be found again), `packs/`; `key` if it is encrypted; `scrub` while one is under way.
#![cfg_attr(test, allow(clippy::unwrap_used))] // a failed unwrap is how a test fails

mod backend;
mod buffers;
mod cache;
mod checkout;
mod cipher;
mod commit;
mod damage;
mod disk;
mod error;
mod failpoint;
mod gc;
mod handles;
mod hold;
mod home;
mod import;
mod index;
mod inner;
mod keyfile;
mod known;
mod locks;
mod overlay;
mod pack;
mod packs;
mod quota;
mod read;
mod rebuild;
mod recover;
mod rekey;
mod root;
mod runs;
mod scrub;
mod spare;
mod stage;
mod store;
mod types;
mod value;

pub use cache::S3Fifo;
pub use checkout::*;
pub use damage::Lost;
pub use error::{ManifestError, OpenError, ReadError, StoreError};
pub use gc::{Collect, Collected, Space};
pub use hold::Hold;
pub use import::*;
pub use keyfile::{KeyCost, Passphrase};
pub use rekey::{Rekey, Unlocked};
pub use root::{RootKind, RootRecord};
pub use runs::Run;
pub use scrub::{Checked, Scrub, Scrubbed};
pub use store::Store;
pub use types::{BaseId, Damage, DamageKind, MAX_BLOCK_BYTES, MAX_STAGED_BYTES, Options, Stamp, Stats};

#[cfg(all(test, unix))]
mod crash;
#[cfg(all(test, unix))]
mod tests;
