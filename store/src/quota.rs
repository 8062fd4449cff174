//! The quota: how much packs and index may take, which cached roots go first, and what fetches into the cache have
//! reserved. Counts only; who frees space is `gc`.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use shoal_content::Cid;

use crate::{StoreError, cache::S3Fifo, inner::Inner, locks::lock, value::Place};

/// Cached content may take all but this part of the quota, so that a share or a fetch finds room for its nodes without
/// waiting for an eviction.
const RESERVE_PART: u64 = 16;

/// The counts of one store.
#[derive(Debug)]
pub(crate) struct Quota {
    limit: AtomicU64,
    index_bytes: AtomicU64,
    cache: Mutex<Cache>,
}

#[derive(Debug)]
struct Cache {
    order: S3Fifo<Cid>,
    /// Roots that are being fetched into the cache, with the bytes that are still to come.
    coming: HashMap<Cid, u64>,
}

impl Quota {
    pub(crate) fn new(limit: u64, index_bytes: u64, cached: impl IntoIterator<Item = (Cid, u64)>) -> Self {
        let mut order = S3Fifo::new(limit - limit / RESERVE_PART);
        cached.into_iter().for_each(|(root, bytes)| order.insert(root, bytes));
        Quota {
            limit: limit.into(),
            index_bytes: index_bytes.into(),
            cache: Mutex::new(Cache { order, coming: HashMap::new() }),
        }
    }

    /// The most that packs and index may take, in bytes.
    pub(crate) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// The most that they may take when cached content comes in.
    pub(crate) fn for_cached(&self) -> u64 {
        self.limit() - self.limit() / RESERVE_PART
    }

    pub(crate) fn index_bytes(&self) -> u64 {
        self.index_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn set_index_bytes(&self, bytes: u64) {
        self.index_bytes.store(bytes, Ordering::Relaxed);
    }

    /// A root is cached content, of so many bytes; or, with `None`, it is not or no longer.
    pub(crate) fn note(&self, root: Cid, bytes: Option<u64>) {
        let order = &mut lock(&self.cache).order;
        match bytes {
            Some(bytes) => order.insert(root, bytes),
            None => drop(order.remove(&root)),
        }
    }

    /// Somebody wanted a root.
    pub(crate) fn touch(&self, root: &Cid) {
        lock(&self.cache).order.hit(root);
    }

    /// Takes out the cached root that is to go first.
    pub(crate) fn evict(&self, keep: impl Fn(&Cid) -> bool) -> Option<Cid> {
        lock(&self.cache).order.evict(keep).map(|(root, _)| root)
    }

    /// Whether a root is being fetched into the cache.
    pub(crate) fn is_busy(&self, root: &Cid) -> bool {
        lock(&self.cache).coming.contains_key(root)
    }

    fn coming(&self) -> u64 {
        lock(&self.cache).coming.values().sum()
    }
}

/// Room in the cache for a root that is being fetched into it. Meanwhile the root is not evicted.
pub(crate) struct Room {
    inner: Arc<Inner>,
    root: Cid,
}

impl Room {
    /// Room for nothing yet. `None`: the root is being fetched into the cache already.
    pub(crate) fn begin(inner: &Arc<Inner>, root: Cid) -> Option<Self> {
        let mut cache = lock(&inner.quota.cache);
        if cache.coming.contains_key(&root) {
            return None;
        }
        cache.coming.insert(root, 0);
        Some(Room { inner: Arc::clone(inner), root })
    }

    /// Makes room for `bytes` more of cached content, by evicting other cached content if need be.
    ///
    /// # Errors
    /// [`StoreError::OverQuota`]; then there is room for what there was before.
    pub(crate) fn grow(&self, bytes: u64, now_unix: u64) -> Result<(), StoreError> {
        let (inner, quota) = (&self.inner, &self.inner.quota);
        let limit = quota.for_cached();
        self.expect(|coming| coming.saturating_add(bytes));
        let wanted = quota.coming();
        let fits = || inner.used_bytes().saturating_add(wanted) <= limit;
        // what is larger than the cache makes nobody go
        if !fits() && wanted <= limit {
            let target_bytes = Some(limit.saturating_sub(wanted));
            let options = crate::Collect { now_unix, target_bytes, thorough: true, ..crate::Collect::default() };
            inner.collect(&options).inspect_err(|_| self.shrink(bytes))?;
        }
        if !fits() {
            self.shrink(bytes);
            return Err(StoreError::OverQuota { quota: quota.limit(), used: inner.used_bytes(), needed: bytes });
        }
        Ok(())
    }

    /// So much of it is not needed.
    pub(crate) fn shrink(&self, bytes: u64) {
        self.expect(|coming| coming.saturating_sub(bytes));
    }

    fn expect(&self, change: impl FnOnce(u64) -> u64) {
        if let Some(coming) = lock(&self.inner.quota.cache).coming.get_mut(&self.root) {
            *coming = change(*coming);
        }
    }

    /// Puts a block of the root. What room was made for may take from the reserve what records and index need beside it.
    pub(crate) fn put(&self, cid: &Cid, bytes: &[u8]) -> Result<(), StoreError> {
        let (used, quota) = (self.inner.used_bytes(), &self.inner.quota);
        let needed = bytes.len() as u64;
        let made = lock(&quota.cache).coming.get(&self.root).is_some_and(|coming| *coming >= needed);
        let most = if made { quota.limit() } else { quota.for_cached() };
        let is_here = || -> Result<bool, StoreError> {
            Ok(self.inner.locate(cid)?.iter().any(|loc| matches!(loc.place, Place::Pack(_))))
        };
        if used + needed > most && !is_here()? {
            return Err(StoreError::OverQuota { quota: quota.limit(), used, needed });
        }
        self.inner.put(cid, bytes)?;
        self.shrink(needed);
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        lock(&self.inner.quota.cache).coming.remove(&self.root);
    }
}
