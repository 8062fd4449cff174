//! Leaves that came a moment ago, in memory: what others ask for next, without reading and hashing it again. Each was
//! verified when it came. Whether there is anybody to keep them for, and who may have them, is not known here.

use bytes::Bytes;
use shoal_content::Cid;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// What it takes to find a leaf again counts for so many bytes: there are short ones.
const EACH: usize = 192;

/// Leaves by CID, up to a number of bytes; whichever came first goes first.
#[derive(Debug)]
pub(super) struct Recent {
    most: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    leaves: BTreeMap<Cid, Bytes>,
    groups: VecDeque<Group>,
    /// Of all groups.
    bytes: usize,
}

/// Leaves that came together and share a buffer.
#[derive(Debug)]
struct Group {
    fetch: u64,
    cids: Vec<Cid>,
    bytes: usize,
}

impl Kept {
    /// Takes a group's leaves out, for whoever drops them once the lock is free.
    fn remove(&mut self, group: Group) -> Vec<Bytes> {
        self.bytes -= group.bytes;
        group.cids.iter().filter_map(|cid| self.leaves.remove(cid)).collect()
    }
}

impl Recent {
    /// Room for `most` bytes.
    pub(super) fn new(most: usize) -> Self {
        Recent { most, kept: Mutex::default() }
    }

    /// Held for moments.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        // a panic elsewhere leaves at worst a leaf that is read again
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps `leaves` of a fetch, which are verified and share a buffer of `bytes` bytes.
    pub(super) fn keep(&self, fetch: u64, leaves: Vec<(Cid, Bytes)>, bytes: usize) {
        let bytes = bytes + EACH * leaves.len();
        if bytes > self.most || leaves.is_empty() {
            return;
        }
        let mut gone = vec![];
        let mut kept = self.kept();
        kept.bytes += bytes;
        kept.groups.push_back(Group { fetch, cids: leaves.iter().map(|(cid, _)| *cid).collect(), bytes });
        kept.leaves.extend(leaves);
        while kept.bytes > self.most
            && let Some(first) = kept.groups.pop_front()
        {
            gone.push(kept.remove(first));
        }
        drop(kept);
    }

    /// All of these leaves, if all are here.
    pub(super) fn get<'a>(&self, cids: impl IntoIterator<Item = &'a Cid>) -> Option<Vec<Bytes>> {
        let kept = self.kept();
        cids.into_iter().map(|cid| kept.leaves.get(cid).cloned()).collect()
    }

    /// A fetch is over.
    pub(super) fn forget(&self, fetch: u64) {
        let mut kept = self.kept();
        let groups = std::mem::take(&mut kept.groups);
        let (over, rest): (VecDeque<Group>, _) = groups.into_iter().partition(|group| group.fetch == fetch);
        kept.groups = rest;
        let gone: Vec<Vec<Bytes>> = over.into_iter().map(|group| kept.remove(group)).collect();
        drop(kept);
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_content::{Codec, HashKind};

    fn leaf(n: u8, len: usize) -> (Cid, Bytes) {
        let bytes = vec![n; len];
        (Cid::of(Codec::Raw, HashKind::Blake3, &bytes), bytes.into())
    }

    #[test]
    fn what_came_first_goes_first_and_the_bytes_are_bounded() {
        let most = 3 * (2 * EACH + 300) + 100;
        let recent = Recent::new(most);
        let leaves: Vec<(Cid, Bytes)> = (0..20).map(|n| leaf(n, 100)).collect();
        for pair in leaves.chunks(2) {
            recent.keep(1, pair.to_vec(), 300);
            let kept = recent.kept();
            assert!(kept.bytes <= most && kept.leaves.len() <= 6);
        }
        assert_eq!(recent.get([&leaves[13].0]), None);
        assert_eq!(recent.get([&leaves[14].0, &leaves[19].0]), Some(vec![leaves[14].1.clone(), leaves[19].1.clone()]));
        assert_eq!(recent.get([&leaves[14].0, &leaves[0].0]), None, "all or none");
        recent.keep(1, vec![leaf(77, 10)], most);
        assert_eq!(recent.get([&leaf(77, 10).0]), None, "a buffer for which there is no room pushes nothing out");
        assert!(recent.get([&leaves[14].0]).is_some());
    }

    #[test]
    fn a_fetch_that_is_over_leaves_nothing() {
        let recent = Recent::new(1000);
        let (a, b) = (leaf(1, 100), leaf(2, 100));
        recent.keep(1, vec![a.clone()], 100);
        recent.keep(2, vec![b.clone()], 100);
        recent.forget(1);
        assert_eq!((recent.get([&a.0]), recent.get([&b.0])), (None, Some(vec![b.1])));
        recent.forget(2);
        let kept = recent.kept();
        assert_eq!((kept.bytes, kept.leaves.len(), kept.groups.len()), (0, 0, 0));
    }
}
