//! Who told lies, and until when it is refused for that. Bounded; no clock, no IO.

use shoal_net::PeerId;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Peers that are refused.
#[derive(Debug)]
pub(super) struct Bans {
    most: usize,
    until: BTreeMap<PeerId, Duration>,
    /// The same, the first to be over first.
    order: BTreeSet<(Duration, PeerId)>,
}

impl Bans {
    /// Room for `most` peers.
    pub(super) fn new(most: usize) -> Self {
        Bans { most, until: BTreeMap::new(), order: BTreeSet::new() }
    }

    /// Refuses `peer` until then.
    pub(super) fn add(&mut self, peer: PeerId, until: Duration) {
        if let Some(earlier) = self.until.insert(peer, until) {
            self.order.remove(&(earlier, peer));
        }
        self.order.insert((until, peer));
        while self.order.len() > self.most {
            self.drop_first();
        }
    }

    /// Whether `peer` is refused.
    pub(super) fn holds(&mut self, peer: &PeerId, now: Duration) -> bool {
        while self.order.first().is_some_and(|(until, _)| *until <= now) {
            self.drop_first();
        }
        self.until.contains_key(peer)
    }

    fn drop_first(&mut self) {
        if let Some((_, peer)) = self.order.pop_first() {
            self.until.remove(&peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bans_end_and_are_no_more_than_the_limit() {
        let s = Duration::from_secs;
        let peers: Vec<PeerId> = (0..5).map(|_| PeerId::random()).collect();
        let mut bans = Bans::new(3);
        for (n, peer) in (0..).zip(&peers[..4]) {
            bans.add(*peer, s(10 + n));
        }
        let held = |bans: &mut Bans, now| peers.iter().map(|p| bans.holds(p, s(now))).collect::<Vec<_>>();
        assert_eq!(held(&mut bans, 1), [false, true, true, true, false], "the first made room");
        // again, for longer
        bans.add(peers[1], s(50));
        assert_eq!(held(&mut bans, 12), [false, true, false, true, false]);
        assert_eq!(held(&mut bans, 49), [false, true, false, false, false]);
        assert_eq!(held(&mut bans, 50), [false; 5]);
        assert!(bans.until.is_empty() && bans.order.is_empty());
    }
}
