//! What the hub knows of one root: who takes part, where others may be found, what is here to be served, and the fetch
//! that runs. No IO.

use super::{LinkId, fetch::FetchState};
use crate::{
    api::PeerAddr,
    haves::{Haves, Pace},
    swarm::PeerIx,
};
use fixedbitset::FixedBitSet;
use shoal_content::Manifest;
use shoal_net::PeerId;
use std::{collections::BTreeMap, net::SocketAddr, ops::Range, sync::Arc, time::Duration};

/// Ranges kept of a peer's haves before the tree is known; what comes beyond is forgotten until it joins again.
const MAX_EARLY_RANGES: usize = 4096;
/// Addresses kept for one peer.
const MAX_ADDRS: usize = 8;
/// After so many failed dials in a row a peer is forgotten.
const MAX_FAILURES: u32 = 6;
/// First and longest pause after a failed dial.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A connected peer that takes part.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) ix: PeerIx,
    pub(super) link: LinkId,
    /// What it said it has before the tree was known.
    pub(super) early: Vec<Range<u32>>,
    /// Whether a seeder is among its peers, as far as it said.
    pub(super) reaches: bool,
}

impl Member {
    pub(super) fn note_early(&mut self, ranges: Vec<Range<u32>>) {
        let room = MAX_EARLY_RANGES.saturating_sub(self.early.len());
        self.early.extend(ranges.into_iter().take(room));
    }
}

/// Those who take part, by peer and by number.
#[derive(Debug, Default)]
pub(super) struct Members {
    all: BTreeMap<PeerId, Member>,
    numbers: BTreeMap<PeerIx, PeerId>,
}

impl Members {
    /// One who was not here.
    fn insert(&mut self, peer: PeerId, member: Member) {
        self.numbers.insert(member.ix, peer);
        self.all.insert(peer, member);
    }

    fn remove(&mut self, peer: &PeerId) -> Option<Member> {
        let member = self.all.remove(peer)?;
        self.numbers.remove(&member.ix);
        Some(member)
    }

    pub(super) fn get(&self, peer: &PeerId) -> Option<&Member> {
        self.all.get(peer)
    }

    pub(super) fn get_mut(&mut self, peer: &PeerId) -> Option<&mut Member> {
        self.all.get_mut(peer)
    }

    /// Who has this number, and its connection.
    pub(super) fn by_ix(&self, ix: PeerIx) -> Option<(PeerId, LinkId)> {
        let peer = self.numbers.get(&ix)?;
        Some((*peer, self.all.get(peer)?.link))
    }

    pub(super) fn contains(&self, peer: &PeerId) -> bool {
        self.all.contains_key(peer)
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&PeerId, &Member)> {
        self.all.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&PeerId, &mut Member)> {
        self.all.iter_mut()
    }
}

/// A peer that may be dialled.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) addrs: Vec<SocketAddr>,
    pub(super) dialing: bool,
    pub(super) failures: u32,
    pub(super) next_try: Duration,
}

/// A root that is served or fetched.
#[derive(Default)]
pub(super) struct Root {
    pub(super) manifest: Option<Arc<Manifest>>,
    /// Leaves that can be served.
    pub(super) have: FixedBitSet,
    /// Leaves in `have` that some member has not been told of, and leaves that they have not been told are gone. What became of
    /// them meanwhile, `have` says.
    pub(super) fresh: Haves<PeerIx>,
    pub(super) gone: Vec<u32>,
    /// Served for its own sake, not only while it is fetched.
    pub(super) seeding: bool,
    pub(super) members: Members,
    pub(super) book: BTreeMap<PeerId, Known>,
    pub(super) fetch: Option<Box<FetchState>>,
}

impl Root {
    /// Notes where a peer may be found, within `limit` peers.
    pub(super) fn learn(&mut self, hint: PeerAddr, limit: usize, not_before: Duration) {
        let usable = |a: &SocketAddr| a.port() != 0 && !a.ip().is_unspecified() && !a.ip().is_multicast();
        let addrs: Vec<SocketAddr> = hint.addrs.into_iter().filter(usable).take(MAX_ADDRS).collect();
        if addrs.is_empty() || (self.book.len() >= limit && !self.book.contains_key(&hint.peer)) {
            return;
        }
        let known = self.book.entry(hint.peer).or_insert(Known {
            addrs: vec![],
            dialing: false,
            failures: 0,
            next_try: not_before,
        });
        for addr in addrs {
            if !known.addrs.contains(&addr) && known.addrs.len() < MAX_ADDRS {
                known.addrs.push(addr);
            }
        }
    }

    /// When members are to be told what came, if anything did. `backlog` is what is asked of the uplink, which takes a look at
    /// each request.
    pub(super) fn tell_at(&self, backlog: impl FnOnce() -> Option<Duration>) -> Option<Duration> {
        if self.fresh.waiting().len() == 0 {
            return None;
        }
        self.fresh.poll_timeout(Pace::of(backlog()))
    }

    /// A peer takes part.
    pub(super) fn admit(&mut self, peer: PeerId, member: Member) {
        self.dismiss(&peer);
        self.fresh.handle_peer(member.ix);
        self.members.insert(peer, member);
    }

    /// A peer takes part no more.
    pub(super) fn dismiss(&mut self, peer: &PeerId) -> Option<Member> {
        let member = self.members.remove(peer)?;
        self.fresh.handle_gone(member.ix);
        Some(member)
    }

    /// Leaves are here.
    pub(super) fn gained(&mut self, leaves: impl IntoIterator<Item = u32>) {
        for leaf in leaves {
            if (leaf as usize) < self.have.len() && !self.have.put(leaf as usize) {
                self.fresh.handle_leaf(leaf);
            }
        }
    }

    /// Leaves cannot be served any more.
    pub(super) fn lost(&mut self, leaves: impl IntoIterator<Item = u32>) {
        for leaf in leaves {
            if self.have.contains(leaf as usize) {
                self.have.remove(leaf as usize);
                self.gone.push(leaf);
            }
        }
    }

    /// Peers to dial now.
    pub(super) fn due(&self, now: Duration) -> Vec<PeerId> {
        let due = |k: &Known| !k.dialing && k.next_try <= now;
        self.book.iter().filter(|(p, k)| due(k) && !self.members.contains(p)).map(|(p, _)| *p).collect()
    }

    /// A dial failed, or a connection broke.
    pub(super) fn failed(&mut self, peer: PeerId, now: Duration) {
        let Some(known) = self.book.get_mut(&peer) else { return };
        known.dialing = false;
        known.failures += 1;
        known.next_try = now + (FIRST_PAUSE * 2u32.pow(known.failures.min(8))).min(LONGEST_PAUSE);
        if known.failures > MAX_FAILURES {
            self.book.remove(&peer);
        }
    }

    /// The peer is connected.
    pub(super) fn reached(&mut self, peer: &PeerId) {
        if let Some(known) = self.book.get_mut(peer) {
            known.dialing = false;
            known.failures = 0;
        }
    }
}
