//! Whom to serve, when more peers want something than there are upload slots, or when some of them never serve. Sans-IO.
//!
//! *Cooperative*: the slots go to those who asked first, and every [`TURN`] the one served longest makes room for the one
//! that waits longest. *Reciprocal*: the same among those who do their part; whoever took much and passes nothing on is in
//! debt and comes last, but for a pardon now and then (BitTorrent's optimistic unchoke, BEP 3), which lets newcomers show
//! what they do. Who has everything cannot be paid back, so what a peer says it can serve counts for it too, as long as it
//! does not turn requests down. Rates are not known here.

use std::{collections::BTreeMap, time::Duration};

/// How long a slot is held at least while others wait.
pub const TURN: Duration = Duration::from_secs(10);
/// One of those in debt is pardoned so often.
pub const PARDON_EVERY: Duration = Duration::from_secs(30);
/// Bytes that a peer may take before it has done anything, and with every pardon: about what it takes to show that it
/// passes on what it gets. Small, because in a large swarm everybody grants it.
pub const ADVANCE: u64 = 1 << 20;
/// Bytes that one which does its part may be behind: what is on its way to it, and not announced yet, has to fit.
pub const ALLOWANCE: u64 = 4 << 20;

/// For whom an uplink works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// For peers of one operator: whoever asks is served.
    #[default]
    Cooperative,
    /// For an open swarm: whoever takes and never serves comes last.
    Reciprocal,
}

/// What one peer took and what it does for others, in bytes since it came. Whoever calls keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Account {
    /// Sent to it.
    pub taken: u64,
    /// Received from it.
    pub given: u64,
    /// Of leaves that it announced: what it says it would serve.
    pub announced: u64,
    /// It turned requests of ours down, so that what it announced says nothing.
    pub refuses: bool,
}

impl Account {
    fn credit(&self) -> u64 {
        let announced = if self.refuses { 0 } else { self.announced };
        self.given.saturating_mul(2).saturating_add(announced)
    }
}

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

/// What is known of a peer's doings: bounded by the connections, since [`Choker::handle_gone`] forgets it.
#[derive(Debug, Clone, Copy, Default)]
struct Record {
    account: Account,
    pardons: u64,
}

/// Deals out upload slots. Peers begin unchoked as far as the wire goes, so a verdict comes only where that changes.
#[derive(Debug)]
pub struct Choker<P> {
    slots: usize,
    policy: Policy,
    peers: BTreeMap<P, Standing>,
    /// How many of them are served.
    served: usize,
    records: BTreeMap<P, Record>,
    last_pardon: Duration,
}

impl<P: Ord + Copy> Choker<P> {
    /// Serves at most `slots` (at least one) interested peers at a time.
    pub fn new(slots: usize, policy: Policy) -> Self {
        Choker {
            slots: slots.max(1),
            policy,
            peers: BTreeMap::new(),
            served: 0,
            records: BTreeMap::new(),
            last_pardon: Duration::ZERO,
        }
    }

    /// For whom it works.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// `peer` wants something, or no longer does.
    pub fn handle_interested(&mut self, now: Duration, peer: P, yes: bool) -> Vec<Verdict<P>> {
        match (yes, self.peers.contains_key(&peer)) {
            (true, false) => {
                self.stand(peer, false, now);
                let mut verdicts = self.settle(now);
                // served at once, as the wire has it; or it is told
                let served = self.peers.get(&peer).is_some_and(|s| s.served);
                verdicts.retain(|v| v.peer != peer);
                verdicts.extend((!served).then_some(Verdict { peer, choke: true }));
                verdicts
            }
            (false, true) => {
                let was_choked = self.forget(&peer).is_some_and(|s| !s.served);
                let mut verdicts = self.settle(now);
                // the wire's default for a peer without a standing
                verdicts.extend(was_choked.then_some(Verdict { peer, choke: false }));
                verdicts
            }
            _ => vec![],
        }
    }

    /// What became of `peer`'s account. Without the reciprocal policy it does not matter.
    pub fn handle_account(&mut self, now: Duration, peer: P, account: Account) -> Vec<Verdict<P>> {
        if self.policy == Policy::Cooperative {
            return vec![];
        }
        let was_in_debt = self.in_debt(&peer);
        self.records.entry(peer).or_default().account = account;
        if was_in_debt == self.in_debt(&peer) || !self.peers.contains_key(&peer) { vec![] } else { self.settle(now) }
    }

    /// `peer` is gone.
    pub fn handle_gone(&mut self, now: Duration, peer: P) -> Vec<Verdict<P>> {
        self.forget(&peer);
        self.records.remove(&peer);
        self.settle(now)
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called: never while nobody waits.
    pub fn poll_timeout(&self) -> Option<Duration> {
        if self.served == self.peers.len() {
            return None;
        }
        let waits = |in_debt| self.peers.iter().any(|(p, s)| !s.served && self.in_debt(p) == in_debt);
        let oldest = self.peers.values().filter(|s| s.served).map(|s| s.since).min();
        let turn = oldest.filter(|_| waits(false)).map(|since| since + TURN);
        let pardon = waits(true).then_some(self.last_pardon + PARDON_EVERY);
        turn.into_iter().chain(pardon).min()
    }

    /// Passes slots on whose turn is over, and pardons one of those in debt if it is time.
    pub fn handle_timeout(&mut self, now: Duration) -> Vec<Verdict<P>> {
        if self.last_pardon + PARDON_EVERY <= now {
            let waiting = self.peers.iter().filter(|(p, s)| !s.served && self.in_debt(p));
            if let Some((peer, _)) = waiting.min_by_key(|(_, s)| s.since).map(|(p, s)| (*p, *s)) {
                self.last_pardon = now;
                let record = self.records.entry(peer).or_default();
                // from here on, whatever it owes
                record.pardons = record.account.taken.saturating_sub(record.account.credit());
            }
        }
        let mut verdicts = self.settle(now);
        let mut over: Vec<(Duration, P)> =
            self.peers.iter().filter(|(_, s)| s.served && s.since + TURN <= now).map(|(p, s)| (s.since, *p)).collect();
        over.sort_unstable();
        // the next ones are let in before the old ones queue up again
        let next = self.waiting();
        for ((_, old), (_, new)) in over.into_iter().zip(next) {
            self.stand(old, false, now);
            self.stand(new, true, now);
            verdicts.push(Verdict { peer: old, choke: true });
            verdicts.push(Verdict { peer: new, choke: false });
        }
        verdicts
    }

    /// Whether `peer` took more than it may, for what it does.
    fn in_debt(&self, peer: &P) -> bool {
        self.policy == Policy::Reciprocal
            && self.records.get(peer).is_some_and(|r| {
                let credit = r.account.credit();
                let behind = if credit == 0 { ADVANCE } else { ALLOWANCE };
                r.account.taken > behind.saturating_add(r.pardons).saturating_add(credit)
            })
    }

    /// Whether all are in debt, so that it makes no difference.
    fn all_in_debt(&self) -> bool {
        self.policy == Policy::Reciprocal && self.peers.keys().all(|p| self.in_debt(p))
    }

    /// Those who wait and may get a slot, the one that waits longest first.
    fn waiting(&self) -> Vec<(Duration, P)> {
        let all_in_debt = self.all_in_debt();
        let waits = |(p, s): &(&P, &Standing)| !s.served && (all_in_debt || !self.in_debt(p));
        let mut waiting: Vec<(Duration, P)> = self.peers.iter().filter(waits).map(|(p, s)| (s.since, *p)).collect();
        waiting.sort_unstable();
        waiting
    }

    fn stand(&mut self, peer: P, served: bool, since: Duration) {
        let before = self.peers.insert(peer, Standing { served, since });
        self.served += usize::from(served);
        self.served -= usize::from(before.is_some_and(|s| s.served));
    }

    fn forget(&mut self, peer: &P) -> Option<Standing> {
        let gone = self.peers.remove(peer);
        self.served -= usize::from(gone.is_some_and(|s| s.served));
        gone
    }

    /// Takes slots from those in debt while others want something, and gives free ones to those who wait longest.
    fn settle(&mut self, now: Duration) -> Vec<Verdict<P>> {
        let mut verdicts = vec![];
        if self.policy == Policy::Reciprocal && !self.all_in_debt() {
            let owes = |(p, s): &(&P, &Standing)| s.served && self.in_debt(p);
            let owing: Vec<P> = self.peers.iter().filter(owes).map(|(p, _)| *p).collect();
            for peer in owing {
                self.stand(peer, false, now);
                verdicts.push(Verdict { peer, choke: true });
            }
        }
        if self.served < self.slots.min(self.peers.len()) {
            for (_, peer) in self.waiting().into_iter().take(self.slots - self.served) {
                self.stand(peer, true, now);
                verdicts.push(Verdict { peer, choke: false });
            }
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
        let mut c = Choker::new(2, Policy::Cooperative);
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
        let mut c = Choker::new(1, Policy::Cooperative);
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

    fn took(taken: u64) -> Account {
        Account { taken, ..Account::default() }
    }

    #[test]
    fn who_takes_and_passes_nothing_on_comes_last() {
        let mut c = Choker::new(8, Policy::Reciprocal);
        for p in 1..=3 {
            assert_eq!(c.handle_interested(S(0), p, true), vec![]);
        }
        assert_eq!(c.handle_account(S(1), 1, took(ADVANCE)), vec![]);
        assert_eq!(c.handle_account(S(1), 1, took(ADVANCE + 1)), vec![Verdict { peer: 1, choke: true }]);
        // one that gives, and one that says what it would serve, may take on
        let gives = Account { given: 6 << 20, ..took(16 << 20) };
        let passes_on = Account { announced: 99 << 20, ..took(100 << 20) };
        assert_eq!(c.handle_account(S(1), 2, gives), vec![]);
        assert_eq!(c.handle_account(S(1), 3, passes_on), vec![]);
        let behind = Account { given: 1, ..took(ALLOWANCE + 2) };
        assert_eq!(c.handle_account(S(1), 2, behind), vec![]);
        let behind = Account { given: 1, ..took(ALLOWANCE + 3) };
        assert_eq!(c.handle_account(S(1), 2, behind), vec![Verdict { peer: 2, choke: true }]);
        assert_eq!(c.handle_account(S(1), 2, gives), vec![Verdict { peer: 2, choke: false }]);
        // unless it does not do what it says
        let lies = Account { refuses: true, ..passes_on };
        assert_eq!(c.handle_account(S(2), 3, lies), vec![Verdict { peer: 3, choke: true }]);
        // once nobody else wants anything, both are served
        let both = vec![Verdict { peer: 1, choke: false }, Verdict { peer: 3, choke: false }];
        assert_eq!(c.handle_interested(S(3), 2, false), both);
        // and make room when somebody does
        let both = vec![Verdict { peer: 1, choke: true }, Verdict { peer: 3, choke: true }];
        assert_eq!(c.handle_interested(S(4), 2, true), both);
    }

    #[test]
    fn one_in_debt_is_pardoned_now_and_then() {
        let mut c = Choker::new(8, Policy::Reciprocal);
        for p in 1..=3 {
            c.handle_interested(S(0), p, true);
        }
        for p in 1..=2 {
            assert_eq!(c.handle_account(S(p), p, took(2 * ADVANCE)), vec![Verdict { peer: p, choke: true }]);
        }
        assert_eq!(c.poll_timeout(), Some(PARDON_EVERY));
        assert_eq!(c.handle_timeout(S(29)), vec![]);
        assert_eq!(c.handle_timeout(S(30)), vec![Verdict { peer: 1, choke: false }]);
        assert_eq!(c.handle_account(S(31), 1, took(3 * ADVANCE)), vec![]);
        assert_eq!(c.handle_account(S(32), 1, took(3 * ADVANCE + 1)), vec![Verdict { peer: 1, choke: true }]);
        assert_eq!(c.handle_timeout(S(60)), vec![Verdict { peer: 2, choke: false }]);
        // doing its part is the way back
        let gave = Account { given: 2 * ADVANCE, ..took(3 * ADVANCE + 1) };
        assert_eq!(c.handle_account(S(61), 1, gave), vec![Verdict { peer: 1, choke: false }]);
        assert_eq!(c.poll_timeout(), None);
    }

    thread_local!(static COMPARED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) });

    /// A peer that counts how often peers are compared.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Counting(u32);

    impl Ord for Counting {
        fn cmp(&self, other: &Self) -> std::cmp::Ordering {
            COMPARED.set(COMPARED.get() + 1);
            self.0.cmp(&other.0)
        }
    }

    impl PartialOrd for Counting {
        fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
            Some(self.cmp(other))
        }
    }

    /// A thousand free riders, and one that changes its mind all the time: each time costs about as much as looking at each
    /// peer once, not at each pair.
    #[test]
    fn a_peer_that_changes_its_mind_costs_little_among_many() {
        const PEERS: u32 = 1000;
        for policy in [Policy::Cooperative, Policy::Reciprocal] {
            let mut c = Choker::new(64, policy);
            for p in 0..PEERS {
                c.handle_interested(S(0), Counting(p), true);
                c.handle_account(S(0), Counting(p), took(2 * ADVANCE));
            }
            COMPARED.set(0);
            for turn in 0..100 {
                c.handle_interested(S(1), Counting(PEERS), turn % 2 == 0);
                c.poll_timeout();
            }
            let each = COMPARED.get() / 100;
            let log = u64::from(PEERS.ilog2()) + 2;
            assert!(each < 12 * u64::from(PEERS) * log, "{policy:?}: {each} comparisons each time");
        }
    }
}
