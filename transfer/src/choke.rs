//! Whom to serve, when more peers want something than there are upload slots. Sans-IO.
//!
//! The cooperative policy: the slots go to those who asked first, and every [`TURN`] the one served longest makes room
//! for the one that waits longest. Rates and reciprocity are not known here.

use std::{collections::BTreeMap, time::Duration};

/// How long a slot is held at least while others wait.
pub const TURN: Duration = Duration::from_secs(10);

/// A decision: `peer` is to be choked (or unchoked).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict<P> {
    /// Whom.
    pub peer: P,
    /// Choke, or unchoke.
    pub choke: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    served: bool,
    since: Duration,
}

/// Deals out upload slots. Peers begin unchoked as far as the wire goes, so a verdict comes only where that changes.
#[derive(Debug)]
pub struct Choker<P> {
    slots: usize,
    peers: BTreeMap<P, Standing>,
}

impl<P: Ord + Copy> Choker<P> {
    /// Serves at most `slots` (at least one) interested peers at a time.
    pub fn new(slots: usize) -> Self {
        Choker { slots: slots.max(1), peers: BTreeMap::new() }
    }

    /// `peer` wants something, or no longer does.
    pub fn handle_interested(&mut self, now: Duration, peer: P, yes: bool) -> Vec<Verdict<P>> {
        match (yes, self.peers.contains_key(&peer)) {
            (true, false) => {
                let served = self.served() < self.slots;
                self.peers.insert(peer, Standing { served, since: now });
                if served { vec![] } else { vec![Verdict { peer, choke: true }] }
            }
            (false, true) => {
                let was_choked = self.peers.remove(&peer).is_some_and(|s| !s.served);
                let mut verdicts = self.fill(now);
                // the wire's default for a peer without a standing
                verdicts.extend(was_choked.then_some(Verdict { peer, choke: false }));
                verdicts
            }
            _ => vec![],
        }
    }

    /// `peer` is gone.
    pub fn handle_gone(&mut self, now: Duration, peer: P) -> Vec<Verdict<P>> {
        self.peers.remove(&peer);
        self.fill(now)
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called: never while nobody waits.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let waits = self.peers.values().any(|s| !s.served);
        let oldest = self.peers.values().filter(|s| s.served).map(|s| s.since).min();
        oldest.filter(|_| waits).map(|since| since + TURN)
    }

    /// Passes slots on whose turn is over.
    pub fn handle_timeout(&mut self, now: Duration) -> Vec<Verdict<P>> {
        let waiting = self.peers.values().filter(|s| !s.served).count();
        let mut over: Vec<(Duration, P)> =
            self.peers.iter().filter(|(_, s)| s.served && s.since + TURN <= now).map(|(p, s)| (s.since, *p)).collect();
        over.sort_unstable();
        let mut verdicts = vec![];
        // the next ones are let in before the old ones queue up again
        let mut next: Vec<(Duration, P)> =
            self.peers.iter().filter(|(_, s)| !s.served).map(|(p, s)| (s.since, *p)).collect();
        next.sort_unstable();
        for ((_, old), (_, new)) in over.into_iter().take(waiting).zip(next) {
            self.peers.insert(old, Standing { served: false, since: now });
            self.peers.insert(new, Standing { served: true, since: now });
            verdicts.push(Verdict { peer: old, choke: true });
            verdicts.push(Verdict { peer: new, choke: false });
        }
        verdicts
    }

    fn served(&self) -> usize {
        self.peers.values().filter(|s| s.served).count()
    }

    /// Gives free slots to those who wait longest.
    fn fill(&mut self, now: Duration) -> Vec<Verdict<P>> {
        let mut verdicts = vec![];
        while self.served() < self.slots {
            let waiting = self.peers.iter().filter(|(_, s)| !s.served).min_by_key(|(_, s)| s.since).map(|(p, _)| *p);
            let Some(peer) = waiting else { break };
            self.peers.insert(peer, Standing { served: true, since: now });
            verdicts.push(Verdict { peer, choke: false });
        }
        verdicts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn slots_pass_on_and_nobody_starves() {
        let mut c = Choker::new(2);
        assert_eq!(c.handle_interested(S(0), 1, true), vec![]);
        assert_eq!(c.handle_interested(S(1), 2, true), vec![]);
        assert_eq!(c.poll_timeout(), None);
        assert_eq!(c.handle_interested(S(2), 3, true), vec![Verdict { peer: 3, choke: true }]);
        assert_eq!(c.poll_timeout(), Some(S(10)));
        assert_eq!(c.handle_timeout(S(9)), vec![]);
        let turn = c.handle_timeout(S(10));
        assert_eq!(turn, vec![Verdict { peer: 1, choke: true }, Verdict { peer: 3, choke: false }]);
        // a peer that leaves makes room at once
        assert_eq!(c.handle_gone(S(11), 2), vec![Verdict { peer: 1, choke: false }]);
        // one that no longer wants anything returns to the default
        assert_eq!(c.handle_interested(S(12), 4, true), vec![Verdict { peer: 4, choke: true }]);
        assert_eq!(c.handle_interested(S(13), 4, false), vec![Verdict { peer: 4, choke: false }]);
        assert_eq!(c.poll_timeout(), None);
    }

    #[test]
    fn every_waiter_is_served_in_turn() {
        let mut c = Choker::new(1);
        for p in 0..5 {
            c.handle_interested(S(p), p, true);
        }
        let mut seen = std::collections::BTreeSet::from([0]);
        let mut now = S(5);
        for _ in 0..8 {
            now = c.poll_timeout().unwrap().max(now);
            seen.extend(c.handle_timeout(now).into_iter().filter(|v| !v.choke).map(|v| v.peer));
        }
        assert_eq!(seen.len(), 5);
    }
}
