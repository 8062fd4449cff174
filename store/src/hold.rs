//! What the garbage collector must leave alone although no root reaches it: what an import or a fetch under way has put
//! or found so far, and whatever was put or found anew since a collection began.
//!
//! Blocks are known here by eight bytes of their hash: two that look alike are both left alone, which harms nobody.
//! The lock is held while something is looked up and staged by it, so that nothing is found that goes a moment later.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
    path::Path,
    sync::Arc,
};

use shoal_content::Cid;

use crate::{
    BaseId, StoreError,
    inner::Inner,
    locks::lock,
    overlay::Key,
    packs::Tail,
    value::{Loc, Place},
};

/// A block, as far as the collector tells blocks apart.
pub(crate) type Short = u64;

pub(crate) fn short(key: &Key) -> Short {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&key[1..9]);
    u64::from_le_bytes(bytes)
}

/// A hasher for what is a hash already.
#[derive(Default)]
pub(crate) struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.0 = self.0.rotate_left(8) ^ u64::from(byte));
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

pub(crate) type Shorts = HashSet<Short, BuildHasherDefault<AsItIs>>;

/// Everything that is held.
#[derive(Debug, Default)]
pub(crate) struct Held {
    next: u64,
    holds: HashMap<u64, Things>,
    /// Since a collection began.
    pub(crate) since: Option<Since>,
}

#[derive(Debug, Default)]
struct Things {
    blocks: Shorts,
    bases: HashSet<BaseId>,
}

/// The beginning of a collection, and what was found again since.
#[derive(Debug)]
pub(crate) struct Since {
    pub(crate) tail: Tail,
    pub(crate) next_base: u32,
    found: Things,
}

impl Since {
    pub(crate) fn new(tail: Tail, next_base: u32) -> Self {
        Since { tail, next_base, found: Things::default() }
    }
}

impl Held {
    /// Something relies on a block that is here.
    pub(crate) fn found_block(&mut self, key: &Key) {
        if let Some(since) = &mut self.since {
            since.found.blocks.insert(short(key));
        }
    }

    /// Something relies on a base.
    pub(crate) fn found_base(&mut self, base: BaseId) {
        if let Some(since) = &mut self.since {
            since.found.bases.insert(base);
        }
    }

    /// A hold relies on a base.
    pub(crate) fn hold_base(&mut self, hold: u64, base: BaseId) {
        if let Some(things) = self.holds.get_mut(&hold) {
            things.bases.insert(base);
        }
    }

    fn things(&self) -> impl Iterator<Item = &Things> {
        self.holds.values().chain(self.since.as_ref().map(|since| &since.found))
    }

    /// Whether a block must stay.
    pub(crate) fn block(&self, key: &Key) -> bool {
        self.things().any(|things| things.blocks.contains(&short(key)))
    }

    /// Whether a base, and what hangs off it, must stay.
    pub(crate) fn base(&self, base: BaseId) -> bool {
        self.since.as_ref().is_some_and(|since| base.0 >= since.next_base)
            || self.things().any(|things| things.bases.contains(&base))
    }

    /// Whether a location is newer than the collection.
    pub(crate) fn is_new(&self, loc: &Loc) -> bool {
        match (loc.place, &self.since) {
            (Place::Pack(pack), Some(since)) => Tail { pack, len: loc.offset } >= since.tail,
            _ => false,
        }
    }
}

/// Keeps the garbage collector away from what an operation relies on before a root's record does: the blocks and bases
/// it was told of. Ends when it is dropped; for a collection that is under way then, with the collection.
pub struct Hold {
    inner: Arc<Inner>,
    number: u64,
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hold").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Hold {
    pub(crate) fn new(inner: &Arc<Inner>) -> Self {
        let mut held = lock(&inner.held);
        held.next += 1;
        let number = held.next;
        held.holds.insert(number, Things::default());
        Hold { inner: Arc::clone(inner), number }
    }

    /// Keeps a block, here already or not, from now on. To rely on one that is here, keep it first and look then.
    pub fn keep(&self, cid: &Cid) {
        let mut held = lock(&self.inner.held);
        if let Some(things) = held.holds.get_mut(&self.number) {
            things.blocks.insert(short(&cid.key()));
        }
    }

    /// [`Store::add_base`](crate::Store::add_base), and keeps the base and every reference below it from now on.
    pub fn add_base(&self, path: &Path) -> Result<BaseId, StoreError> {
        self.inner.add_base(path, Some(self.number))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = lock(&self.inner.held);
        let things = held.holds.remove(&self.number);
        // A collection may have walked the roots before the one that needs these was recorded.
        if let (Some(things), Some(since)) = (things, &mut held.since) {
            since.found.blocks.extend(things.blocks);
            since.found.bases.extend(things.bases);
        }
    }
}
