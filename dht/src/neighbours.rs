//! Peers that mDNS found: when which of them is dialled. Two that find each other would both dial at the same moment, and a
//! machine in a full room would dial all of it at once. The swarm, and who is connected, are the actor's.

use libp2p::PeerId;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// Peers that wait to be dialled, at most: anybody on the network can say that there are more.
const MOST_WAITING: usize = 256;
/// Addresses of one of them.
const MOST_ADDRS: usize = 4;
/// With connections to so many peers no neighbour is dialled. Many, for it may be one that nobody far away knows of.
const ENOUGH_PEERS: usize = 100;
/// How long then until we look again.
const NOT_NEEDED: Duration = Duration::from_secs(60);
/// So long the peer with the larger id waits for the other to dial,
const POLITE_PAUSE: Duration = Duration::from_secs(1);
/// once it has so many: whoever was there before does not hear of a newcomer at once.
const FEW_PEERS: usize = 3;
/// From then on neighbours are dialled one after another, after so long each: a few are a way into the network, and the
/// handshakes of a whole room at once keep everybody from what they came for.
const PAUSE: Duration = Duration::from_secs(1);
/// And after so long with so many.
const SOME_PEERS: usize = 8;
const LONG_PAUSE: Duration = Duration::from_secs(10);

/// Neighbours that are not dialled yet.
#[derive(Debug)]
pub(crate) struct Neighbours {
    us: PeerId,
    waiting: BTreeMap<PeerId, (Vec<SocketAddr>, Instant)>,
    /// Nobody is dialled before, unless peers are few.
    pause_until: Option<Instant>,
}

impl Neighbours {
    pub(crate) fn new(us: PeerId) -> Self {
        Neighbours { us, waiting: BTreeMap::new(), pause_until: None }
    }

    /// A peer says that it is at `addr`.
    pub(crate) fn found(&mut self, now: Instant, peer: PeerId, addr: SocketAddr) {
        let known = self.waiting.contains_key(&peer);
        if peer == self.us || (!known && self.waiting.len() >= MOST_WAITING) {
            return;
        }
        let at = if self.us < peer { now } else { now + POLITE_PAUSE };
        let (addrs, _) = self.waiting.entry(peer).or_insert((vec![], at));
        if addrs.len() < MOST_ADDRS && !addrs.contains(&addr) {
            addrs.push(addr);
        }
    }

    /// A peer is connected, or says no more that it is there.
    pub(crate) fn forget(&mut self, peer: &PeerId) {
        self.waiting.remove(peer);
    }

    /// When [`due`](Self::due) is to be called.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let at = self.waiting.values().map(|(_, at)| *at).min()?;
        Some(self.pause_until.map_or(at, |until| until.max(at)))
    }

    /// Whom to dial now, and where, if so many peers are connected or being dialled. Whoever is listed is not listed again
    /// before it is found again.
    pub(crate) fn due(&mut self, now: Instant, mut peers: usize) -> Vec<(PeerId, Vec<SocketAddr>)> {
        if peers >= ENOUGH_PEERS {
            self.waiting.values_mut().filter(|(_, at)| *at <= now).for_each(|(_, at)| *at = now + NOT_NEEDED);
            return vec![];
        }
        // not all of a room begin with the same ones
        let all = self.waiting.range(self.us..).chain(self.waiting.range(..self.us));
        let mut due = vec![];
        for (peer, (_, at)) in all {
            let goes_on = self.pause_until.is_none_or(|until| until <= now);
            if peers < FEW_PEERS || (*at <= now && goes_on) {
                peers += 1;
                self.pause_until = Some(now + if peers < SOME_PEERS { PAUSE } else { LONG_PAUSE });
                due.push(*peer);
            }
        }
        due.into_iter().filter_map(|peer| self.waiting.remove(&peer).map(|(addrs, _)| (peer, addrs))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> SocketAddr {
        ([192, 168, 0, 1], port).into()
    }

    /// Two peers, the smaller id first.
    fn two() -> [PeerId; 2] {
        let mut two = [PeerId::random(), PeerId::random()];
        two.sort();
        two
    }

    #[test]
    fn of_two_that_find_each_other_one_dials_and_the_other_waits_for_it() {
        let (now, [small, large]) = (Instant::now(), two());
        let (mut first, mut second) = (Neighbours::new(small), Neighbours::new(large));
        first.found(now, large, addr(1));
        second.found(now, small, addr(2));
        second.found(now, small, addr(3));
        assert_eq!(first.due(now, FEW_PEERS), [(large, vec![addr(1)])]);
        assert_eq!((first.due(now, FEW_PEERS), first.next_deadline()), (vec![], None));
        assert_eq!(second.due(now, FEW_PEERS), []);
        let later = second.next_deadline().unwrap();
        assert_eq!(later, now + POLITE_PAUSE);
        second.forget(&small);
        assert_eq!(second.due(later, FEW_PEERS), [], "it came");
        second.found(now, small, addr(2));
        assert_eq!(second.due(later, FEW_PEERS), [(small, vec![addr(2)])], "it did not come");
    }

    #[test]
    fn who_knows_nobody_waits_for_nobody() {
        let now = Instant::now();
        let mut ids: Vec<PeerId> = (0..10).map(|_| PeerId::random()).collect();
        ids.sort();
        let mut last = Neighbours::new(ids[9]);
        ids.iter().for_each(|peer| last.found(now, *peer, addr(1)));
        assert_eq!(last.due(now, 1).len(), FEW_PEERS - 1);
        assert_eq!(last.due(now, FEW_PEERS), []);
        assert_eq!(last.due(now + POLITE_PAUSE, FEW_PEERS).len(), 1, "the others follow");
    }

    #[test]
    fn a_room_is_met_one_after_another_and_not_by_all_in_the_same_order() {
        let mut now = Instant::now();
        let mut ids: Vec<PeerId> = (0..24).map(|_| PeerId::random()).collect();
        ids.sort();
        let mut dialled = BTreeMap::<PeerId, usize>::new();
        for us in &ids {
            let mut room = Neighbours::new(*us);
            ids.iter().for_each(|peer| room.found(now, *peer, addr(1)));
            room.due(now, 0).iter().for_each(|(peer, _)| *dialled.entry(*peer).or_default() += 1);
        }
        assert!(dialled.len() == 24 && dialled.values().all(|times| *times == FEW_PEERS), "{dialled:?}");
        let mut room = Neighbours::new(ids[0]);
        ids.iter().for_each(|peer| room.found(now, *peer, addr(1)));
        let (mut peers, mut pauses) = (0, vec![]);
        while let Some(at) = room.next_deadline() {
            let dials = room.due(at, peers).len();
            assert!(dials == 1 || peers == 0, "{dials} after {peers}");
            peers += dials;
            pauses.push(at - now);
            now = at;
        }
        let some = SOME_PEERS - FEW_PEERS;
        assert_eq!(pauses[1..=some], vec![PAUSE; some]);
        assert!(peers == 23 && pauses[some + 1..].iter().all(|pause| *pause == LONG_PAUSE), "{pauses:?}");
    }

    #[test]
    fn with_enough_peers_nobody_is_dialled_until_some_are_gone() {
        let (now, [small, large]) = (Instant::now(), two());
        let mut all = Neighbours::new(small);
        all.found(now, large, addr(1));
        all.found(now, small, addr(1));
        assert_eq!(all.due(now, ENOUGH_PEERS), []);
        assert_eq!(all.next_deadline(), Some(now + NOT_NEEDED));
        assert_eq!(all.due(now + NOT_NEEDED, ENOUGH_PEERS - 1), [(large, vec![addr(1)])]);
    }

    #[test]
    fn a_liar_grows_nothing_without_bound() {
        let now = Instant::now();
        let mut all = Neighbours::new(PeerId::random());
        for peer in (0..1_000).map(|_| PeerId::random()) {
            (0..100).for_each(|port| all.found(now, peer, addr(port)));
        }
        assert_eq!(all.waiting.len(), MOST_WAITING);
        assert!(all.waiting.values().all(|(addrs, _)| addrs.len() == MOST_ADDRS));
    }
}
