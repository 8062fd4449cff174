//! Which leaves of the roots that are served are here: asked of the store when a root begins to be served, and when blocks
//! turned out to be gone or could not be read. The blocking looks; the hub holds what came of them and tells peers.

use super::Served;
use fixedbitset::FixedBitSet;
use shoal_content::{Cid, Manifest, Source};
use shoal_store::{ReadError, Store, StoreError};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// How often the store is asked for blocks that turned out to be gone where no request has met one: a scrub finds them too.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What could not be read is tried again after this pause, which doubles up to the longest while nothing can.
const FIRST_RETRY: Duration = Duration::from_secs(2);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// So many blocks of a root that could not be read are tried in one look.
const RETRIED_AT_ONCE: usize = 256;

/// What to look at.
pub(super) enum Look {
    /// What the store lost.
    Losses,
    /// All leaves of a root.
    Root(Cid),
    /// Leaves that could not be read.
    Unread(Unread),
}

/// What a look found, of one root.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// These leaves are not here any more.
    Gone(Vec<u32>),
    /// These, and no others, are here.
    Here(FixedBitSet),
    /// These can be read again, and those not yet.
    Read(Vec<u32>, BTreeSet<u32>),
}

impl Found {
    fn read(&self) -> Option<(&[u32], &BTreeSet<u32>)> {
        match self {
            Found::Read(read, still) => Some((read, still)),
            _ => None,
        }
    }
}

/// Looks. Blocks on the disk. Roots that are not served any more are left out.
pub(super) fn look(store: &Store, served: &Served, look: Look) -> Vec<(Cid, Found)> {
    let found = match look {
        Look::Losses => losses(store, served),
        Look::Root(root) => here(store, served, [root]),
        Look::Unread(leaves) => Ok(unread(store, served, leaves)),
    };
    found.unwrap_or_else(|error| {
        // what is not here is answered as missing in any case
        tracing::warn!(%error, "cannot look up what is here");
        vec![]
    })
}

fn here(store: &Store, served: &Served, roots: impl IntoIterator<Item = Cid>) -> Result<Vec<(Cid, Found)>, StoreError> {
    let known = roots.into_iter().filter_map(|root| Some((root, served.get(&root)?)));
    let look = |(root, manifest): (Cid, &Arc<Manifest>)| {
        let cids: Vec<Cid> = manifest.leaves().iter().map(|leaf| leaf.cid).collect();
        let mut here = FixedBitSet::with_capacity(cids.len());
        store.has_many(&cids)?.into_iter().enumerate().for_each(|(leaf, there)| here.set(leaf, there));
        Ok((root, Found::Here(here)))
    };
    known.map(look).collect()
}

fn losses(store: &Store, served: &Served) -> Result<Vec<(Cid, Found)>, StoreError> {
    let lost = store.take_lost();
    if lost.more {
        return here(store, served, served.keys().copied());
    }
    let mut found = vec![];
    for (root, manifest) in served.iter().filter(|_| !lost.is_empty()) {
        let mut suspects = BTreeSet::new();
        let mut files = BTreeSet::new();
        for (cid, whole_file) in &lost.blocks {
            let Some(leaf) = manifest.leaf_index(cid) else { continue };
            suspects.insert(leaf);
            if *whole_file {
                files.extend(manifest.places(leaf).iter().map(|place| place.entry));
            }
        }
        // who asks for one leaf of a file that is gone would ask for the others next
        suspects.extend(files.into_iter().flat_map(|file| leaves_of(manifest, file)));
        let suspects: Vec<u32> = suspects.into_iter().collect();
        let cids: Vec<Cid> = suspects.iter().map(|leaf| manifest.leaves()[*leaf as usize].cid).collect();
        let there = store.examine(&cids)?;
        let gone: Vec<u32> =
            suspects.into_iter().zip(there).filter(|(_, there)| !there).map(|(leaf, _)| leaf).collect();
        if !gone.is_empty() {
            found.push((*root, Found::Gone(gone)));
        }
    }
    Ok(found)
}

fn leaves_of(manifest: &Manifest, file: u32) -> impl Iterator<Item = u32> {
    manifest.pieces(file).filter_map(|piece| match piece.source {
        Source::Leaf(leaf) => Some(leaf),
        Source::Inline(_) => None,
    })
}

/// Tries leaves again. The first of a root that refuses ends it: what is wrong with the disk is mostly wrong with all.
fn unread(store: &Store, served: &Served, unread: Unread) -> Vec<(Cid, Found)> {
    let mut buffer = vec![];
    let mut found = vec![];
    for (root, mut left) in unread {
        let Some(manifest) = served.get(&root) else { continue };
        let mut read = vec![];
        while let Some(leaf) = left.first().copied().filter(|_| read.len() < RETRIED_AT_ONCE) {
            match manifest.leaves().get(leaf as usize).map(|known| store.read_into(&known.cid, &mut buffer)) {
                Some(Ok(())) => read.push(leaf),
                // found gone: that is told as a loss
                None | Some(Err(ReadError::Missing(_) | ReadError::Damaged { .. })) => {}
                Some(Err(_)) => break,
            }
            left.pop_first();
        }
        found.push((root, Found::Read(read, left)));
    }
    found
}

/// Leaves that could not be read, by root: bounded by what is served.
type Unread = BTreeMap<Cid, BTreeSet<u32>>;

/// What is to be looked at next: one look at a time, so that what is found is heard of in the order in which it was so.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    looking: bool,
    losses: bool,
    roots: BTreeSet<Cid>,
    unread: Unread,
    retry_at: Duration,
    pause: Duration,
}

impl Agenda {
    /// The store may have lost something.
    pub(super) fn note_losses(&mut self) {
        self.losses = true;
    }

    /// It is to be found out what is here of a root.
    pub(super) fn note_root(&mut self, root: Cid) {
        self.roots.insert(root);
    }

    /// Leaves could not be read.
    pub(super) fn note_unread(&mut self, now: Duration, root: Cid, leaves: impl IntoIterator<Item = u32>) {
        if self.unread.is_empty() {
            self.pause = FIRST_RETRY;
            self.retry_at = now + self.pause;
        }
        self.unread.entry(root).or_default().extend(leaves);
    }

    /// The next look, if it is time for one and none is under way.
    pub(super) fn next(&mut self, now: Duration) -> Option<Look> {
        if self.looking {
            return None;
        }
        let look = if std::mem::take(&mut self.losses) {
            Look::Losses
        } else if let Some(root) = self.roots.pop_first() {
            Look::Root(root)
        } else if !self.unread.is_empty() && self.retry_at <= now {
            Look::Unread(std::mem::take(&mut self.unread))
        } else {
            return None;
        };
        self.looking = true;
        Some(look)
    }

    /// When there is something to look at that is not to be looked at yet.
    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        (!self.looking && !self.unread.is_empty()).then_some(self.retry_at)
    }

    /// A look is over. What is still not to be read comes again: soon, if something else was.
    pub(super) fn looked(&mut self, now: Duration, found: &[(Cid, Found)]) {
        self.looking = false;
        let results = || found.iter().filter_map(|(root, found)| Some((root, found.read()?)));
        let Some(most) = results().map(|(_, (read, _))| read.len()).max() else { return };
        self.pause = if most > 0 { FIRST_RETRY } else { (self.pause * 2).min(LONGEST_RETRY) };
        self.retry_at = if most == RETRIED_AT_ONCE { now } else { now + self.pause };
        for (root, (_, still)) in results().filter(|(_, (_, still))| !still.is_empty()) {
            self.unread.entry(*root).or_default().extend(still);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> Cid {
        Cid::of(shoal_content::Codec::Raw, shoal_content::HashKind::Blake3, b"a root")
    }

    #[test]
    fn one_look_at_a_time_and_what_cannot_be_read_is_tried_less_and_less_often() {
        let s = Duration::from_secs;
        let mut agenda = Agenda::default();
        agenda.note_root(root());
        agenda.note_losses();
        assert!(matches!(agenda.next(s(0)), Some(Look::Losses)));
        assert!(agenda.next(s(0)).is_none(), "one is under way");
        agenda.looked(s(0), &[]);
        assert!(matches!(agenda.next(s(0)), Some(Look::Root(_))));
        agenda.looked(s(0), &[]);
        assert_eq!(agenda.poll_timeout(), None);

        agenda.note_unread(s(1), root(), [4, 5]);
        let mut now = s(1);
        for pause in [2, 4, 8, 16, 32, 60, 60] {
            now += s(pause);
            assert_eq!(agenda.poll_timeout(), Some(now));
            let Some(Look::Unread(unread)) = agenda.next(now) else { panic!("no look after {pause} s") };
            agenda.looked(now, &[(root(), Found::Read(vec![], unread[&root()].clone()))]);
        }
        // one can be read again, so that the other may soon be
        agenda.next(now + s(60)).unwrap();
        agenda.looked(now + s(60), &[(root(), Found::Read(vec![4], BTreeSet::from([5])))]);
        assert_eq!(agenda.poll_timeout(), Some(now + s(62)));
        agenda.next(now + s(62)).unwrap();
        agenda.looked(now + s(62), &[(root(), Found::Read(vec![5], BTreeSet::new()))]);
        assert_eq!(agenda.poll_timeout(), None);
    }
}
