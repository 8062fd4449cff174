//! The scheduler against a world that misbehaves: peers with random haves that deliver, refuse, lie, stall and vanish in
//! an order that a seed decides. What must hold is checked after every step.

mod crowd;
mod opening;
mod reading;

use super::*;
use fixedbitset::FixedBitSet;
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

const MS: fn(u64) -> Duration = Duration::from_millis;

fn full(count: usize) -> FixedBitSet {
    let mut all = FixedBitSet::with_capacity(count);
    all.insert_range(..);
    all
}

fn swarm(sizes: Vec<u32>) -> Swarm {
    let count = sizes.len();
    Swarm::new(SwarmConfig::default(), 42, sizes.into(), &full(count), &FixedBitSet::with_capacity(count))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Honest,
    Liar,
    Staller,
    Refuser,
}

struct World {
    swarm: Swarm,
    sizes: Arc<[u32]>,
    now: Duration,
    peers: BTreeMap<PeerIx, (Kind, BTreeSet<u32>)>,
    open: BTreeMap<BatchId, (PeerIx, Vec<u32>)>,
    done: BTreeSet<u32>,
    dropped: Vec<(PeerIx, DropReason)>,
    next: u32,
    asked: u64,
}

impl World {
    fn new(sizes: Vec<u32>) -> World {
        World {
            sizes: sizes.clone().into(),
            swarm: swarm(sizes),
            now: Duration::ZERO,
            peers: BTreeMap::new(),
            open: BTreeMap::new(),
            done: BTreeSet::new(),
            dropped: vec![],
            next: 0,
            asked: 0,
        }
    }

    fn join(&mut self, kind: Kind, has: BTreeSet<u32>) -> PeerIx {
        let ix = PeerIx(self.next);
        self.next += 1;
        self.swarm.handle_peer(self.now, ix, u64::from(ix.0) * 7919 + 1, MS(10));
        let ranges: Vec<_> = has.iter().map(|l| *l..*l + 1).collect();
        assert!(self.swarm.handle_have(self.now, ix, &ranges));
        self.peers.insert(ix, (kind, has));
        self.act();
        ix
    }

    fn act(&mut self) {
        while let Some(action) = self.swarm.poll_action(self.now) {
            match action {
                Action::Request { peer, batch, leaves } => {
                    let (_, has) = &self.peers[&peer];
                    assert!(leaves.is_sorted() && !leaves.is_empty());
                    for leaf in &leaves {
                        assert!(has.contains(leaf), "asked for what the peer does not have");
                        assert!(!self.done.contains(leaf), "asked for what is here");
                        let holders = self.open.values().filter(|(_, l)| l.contains(leaf)).count();
                        assert!(holders < 2, "asked for a third time");
                        self.asked += u64::from(self.sizes[*leaf as usize]);
                    }
                    assert!(self.open.insert(batch, (peer, leaves)).is_none());
                }
                Action::Cancel { peer, batch } => {
                    assert_eq!(self.open.remove(&batch).map(|(p, _)| p), Some(peer));
                }
                Action::Drop { peer, reason } => {
                    self.open.retain(|_, (p, _)| *p != peer);
                    self.peers.remove(&peer);
                    self.dropped.push((peer, reason));
                }
                Action::Interested { .. } | Action::Reach { .. } => {}
            }
        }
    }

    fn leave(&mut self, peer: PeerIx) {
        self.open.retain(|_, (p, _)| *p != peer);
        self.peers.remove(&peer);
        self.swarm.handle_gone(self.now, peer);
        self.act();
    }

    /// The `pick`-th open request goes on by one leaf, or time passes.
    fn step(&mut self, pick: usize) {
        self.now += MS(5);
        let movable: Vec<BatchId> =
            self.open.iter().filter(|(_, (p, _))| self.peers[p].0 != Kind::Staller).map(|(b, _)| *b).collect();
        if movable.is_empty() {
            if let Some(at) = self.swarm.poll_timeout() {
                self.now = self.now.max(at);
                self.swarm.handle_timeout(self.now);
            }
            return self.act();
        }
        let batch = movable[pick % movable.len()];
        let (peer, leaves) = self.open.get_mut(&batch).unwrap();
        let peer = *peer;
        let leaf = leaves.remove(0);
        let ended = leaves.is_empty();
        if ended {
            self.open.remove(&batch);
        }
        match self.peers[&peer].0 {
            Kind::Honest => {
                self.swarm.handle_bytes(self.now, peer, u64::from(self.sizes[leaf as usize]));
                if self.swarm.handle_arrived(self.now, peer, batch, leaf) {
                    self.swarm.handle_verified(self.now, peer, leaf);
                    self.done.insert(leaf);
                }
            }
            Kind::Liar => {
                if self.swarm.handle_arrived(self.now, peer, batch, leaf) {
                    self.swarm.handle_corrupt(self.now, peer, leaf);
                }
            }
            Kind::Refuser => {
                self.peers.get_mut(&peer).unwrap().1.remove(&leaf);
                self.swarm.handle_refused(self.now, peer, batch, leaf);
            }
            Kind::Staller => unreachable!(),
        }
        self.act();
    }
}

#[test]
fn one_seeder_gets_every_leaf_asked_once() {
    let mut w = World::new(vec![1000; 3000]);
    w.join(Kind::Honest, (0..3000).collect());
    for i in 0..3000 {
        assert!(!w.swarm.is_complete());
        w.step(i);
    }
    assert!(w.swarm.is_complete());
    assert_eq!(w.asked, 3_000_000);
    assert_eq!(w.swarm.progress().bytes_duplicate, 0);
}

#[test]
fn empty_content_is_complete_at_once() {
    let w = World::new(vec![]);
    assert!(w.swarm.is_complete());
}

#[test]
fn leechers_divide_a_seeder_between_them() {
    let (count, leechers) = (800u32, 8);
    let mut asked = vec![0; count as usize];
    for me in 0..leechers {
        let tag = |i: u64| i * 1_000_003 + 17;
        let none = FixedBitSet::with_capacity(count as usize);
        let config = SwarmConfig { initial_window: 40_000, least_window: 1000, ..SwarmConfig::default() };
        let mut s = Swarm::new(config, tag(me), vec![1000; count as usize].into(), &full(count as usize), &none);
        s.opening.end();
        for other in (0..leechers).filter(|o| *o != me) {
            s.handle_peer(MS(0), PeerIx(other as u32), tag(other), MS(1));
        }
        s.handle_peer(MS(0), PeerIx(100), 5, MS(1));
        assert!(s.handle_have(MS(0), PeerIx(100), &[0..count]));
        while let Some(action) = s.poll_action(MS(0)) {
            if let Action::Request { peer, leaves, .. } = action {
                assert_eq!(peer, PeerIx(100));
                leaves.iter().for_each(|l| asked[*l as usize] += 1);
            }
        }
    }
    // windows of 40 leaves each, stripes of about 100: nothing is asked of the seeder twice
    let (once, twice) = (asked.iter().filter(|n| **n == 1).count(), asked.iter().filter(|n| **n > 1).count());
    assert_eq!((once, twice), (320, 0));
}

#[test]
fn a_stalled_peer_is_replaced_within_five_seconds() {
    let mut w = World::new(vec![100_000; 40]);
    let slow = w.join(Kind::Staller, (0..40).collect());
    w.join(Kind::Honest, (0..40).collect());
    while !w.swarm.is_complete() {
        w.step(0);
        assert!(w.now < Duration::from_secs(5), "still waiting for the stalled peer");
    }
    assert_eq!(w.swarm.account(slow).unwrap().leaves, 0);
}

/// It is asked last, and what it is asked for then is asked of the others as well.
#[test]
fn a_stalled_peer_is_not_trusted_with_the_last_leaf() {
    for leaves in 1..8 {
        let mut w = World::new(vec![100_000; leaves]);
        w.join(Kind::Staller, (0..leaves as u32).collect());
        w.join(Kind::Honest, (0..leaves as u32).collect());
        w.join(Kind::Staller, (0..leaves as u32).collect());
        while !w.swarm.is_complete() {
            w.step(0);
            assert!(w.now < Duration::from_secs(2), "{} of {leaves} leaves", w.done.len());
        }
    }
}

/// Whenever it dies, and though nobody else has the last two leaves, what others can bring is here soon.
#[test]
fn a_peer_that_falls_silent_is_not_waited_for_where_others_can_help() {
    for seen in 0..30 {
        let mut w = World::new(vec![100_000; 40]);
        let dies = w.join(Kind::Honest, (0..40).collect());
        w.join(Kind::Honest, (0..38).collect());
        for pick in 0..seen {
            w.step(pick * 7);
        }
        w.peers.get_mut(&dies).unwrap().0 = Kind::Staller;
        while w.done.len() < 38 {
            w.step(0);
            assert!(w.now < Duration::from_secs(2), "{} of 40 leaves", w.done.len());
        }
        // it is back before anybody's patience ends
        w.peers.get_mut(&dies).unwrap().0 = Kind::Honest;
        while !w.swarm.is_complete() {
            w.step(0);
        }
        assert!(w.dropped.is_empty() && w.now < Duration::from_secs(2));
    }
}

/// What is asked of them is on its way for ever. It must not use up what may be on its way.
#[test]
fn many_stalled_peers_keep_nobody_from_asking_the_one_that_answers() {
    let mut w = World::new(vec![256 << 10; 100]);
    for _ in 0..40 {
        w.join(Kind::Staller, (0..100).collect());
    }
    w.join(Kind::Honest, (0..100).collect());
    while !w.swarm.is_complete() {
        w.step(0);
        assert!(w.now < Duration::from_secs(7), "{} of 100 leaves", w.done.len());
    }
}

#[test]
fn a_stalled_peer_that_nobody_can_replace_is_dropped_in_the_end() {
    let mut w = World::new(vec![100_000; 4]);
    let slow = w.join(Kind::Staller, (0..4).collect());
    for _ in 0..4 {
        w.step(0);
    }
    assert_eq!(w.dropped, [(slow, DropReason::Stalled)]);
    assert!(w.now < Duration::from_secs(30));
}

#[test]
fn a_choked_peer_is_not_asked_and_an_unchoked_one_is() {
    let mut s = swarm(vec![1000; 10]);
    s.handle_peer(MS(0), PeerIx(0), 1, MS(1));
    s.handle_choke(MS(0), PeerIx(0), true);
    assert!(s.handle_have(MS(0), PeerIx(0), &[0..10]));
    assert_eq!(s.poll_action(MS(0)), Some(Action::Interested { peer: PeerIx(0), yes: true }));
    assert_eq!(s.poll_action(MS(0)), None);
    s.handle_choke(MS(1), PeerIx(0), false);
    assert!(matches!(s.poll_action(MS(1)), Some(Action::Request { .. })));
}

#[test]
fn a_have_past_the_end_changes_nothing() {
    let mut s = swarm(vec![1000; 10]);
    s.handle_peer(MS(0), PeerIx(0), 1, MS(1));
    assert!(!s.handle_have(MS(0), PeerIx(0), &[0..3, 9..11]));
    assert_eq!(s.account(PeerIx(0)).unwrap().have, 0);
    assert_eq!(s.poll_action(MS(0)), None);
}

#[test]
fn the_same_inputs_give_the_same_actions() {
    let run = || {
        let mut w = World::new((0..200).map(|i| 500 + i * 3).collect());
        w.join(Kind::Honest, (0..200).collect());
        w.join(Kind::Honest, (0..120).collect());
        let mut log = vec![];
        for i in 0..150 {
            w.step(i * 7);
            log.push(format!("{:?}", w.open));
        }
        log
    };
    assert_eq!(run(), run());
}

/// What `swarm` asks `peer` for, now: leaves, each with its request.
fn requests(swarm: &mut Swarm, now: Duration, peer: PeerIx) -> Vec<(BatchId, u32)> {
    let mut out = vec![];
    while let Some(action) = swarm.poll_action(now) {
        if let Action::Request { peer: whom, batch, leaves } = action
            && whom == peer
        {
            out.extend(leaves.into_iter().map(|leaf| (batch, leaf)));
        }
    }
    out
}

fn asks(swarm: &mut Swarm, now: Duration, peer: PeerIx) -> Vec<u32> {
    requests(swarm, now, peer).into_iter().map(|(_, leaf)| leaf).collect()
}

#[test]
fn leechers_keep_together_to_a_few_leaves_ahead() {
    let (count, leechers, size) = (400u32, 6u64, 256u32 << 10);
    let mut asked = vec![];
    for me in 0..leechers {
        let none = FixedBitSet::with_capacity(count as usize);
        let sizes: Arc<[u32]> = vec![size; count as usize].into();
        let mut s = Swarm::new(SwarmConfig::default(), me, sizes, &full(count as usize), &none);
        s.opening.end();
        for other in (0..leechers).filter(|o| *o != me) {
            s.handle_peer(MS(0), PeerIx(other as u32), other, MS(1));
        }
        s.handle_peer(MS(0), PeerIx(100), 5, MS(1));
        assert!(s.handle_have(MS(0), PeerIx(100), &[0..count]));
        asked.extend(asks(&mut s, MS(0), PeerIx(100)));
    }
    asked.sort_unstable();
    // each of the first leaves by one of them, and nothing beyond
    assert_eq!(asked, (0..6).collect::<Vec<u32>>());
}

#[test]
fn what_a_silent_leecher_owns_is_asked_for_by_others() {
    let count = 200u32;
    let mut s = swarm(vec![256 << 10; count as usize]);
    // the seed, one that announces nothing, and one that announces what comes out
    for (ix, tag) in [(0, 5), (1, 77), (2, 99)] {
        s.handle_peer(MS(0), PeerIx(ix), tag, MS(1));
    }
    assert!(s.handle_have(MS(0), PeerIx(0), &[0..count]));
    let mut now = MS(0);
    let (mut open, mut told, mut done): (VecDeque<(PeerIx, BatchId, u32)>, u32, u32) = Default::default();
    while !s.is_complete() {
        while let Some(action) = s.poll_action(now) {
            match action {
                Action::Request { peer, batch, leaves } => open.extend(leaves.into_iter().map(|l| (peer, batch, l))),
                Action::Cancel { batch, .. } => open.retain(|(_, b, _)| *b != batch),
                _ => {}
            }
        }
        if let Some((peer, batch, leaf)) = open.pop_front() {
            now += MS(5);
            s.handle_bytes(now, peer, 256 << 10);
            assert!(s.handle_arrived(now, peer, batch, leaf));
            s.handle_verified(now, peer, leaf);
            done += 1;
        } else {
            now = now.max(s.poll_timeout().expect("it waits for something"));
            s.handle_timeout(now);
        }
        // the honest one is as fast: it announces a leaf of its own for each of ours
        let own = (told..count).find(|l| stripe_owner(*l, &[42, 77, 99]) == 99);
        if let Some(leaf) = own {
            assert!(s.handle_have(now, PeerIx(2), &[leaf..leaf + 1]));
            told = leaf + 1;
        }
        assert!(now < Duration::from_secs(60), "{done} of {count} leaves");
    }
    assert!(now < Duration::from_secs(10), "it took {now:?}");
}

/// Whoever comes to nothing for a moment keeps what it owns, however much the others announce meanwhile: it will ask for it.
#[test]
fn a_leecher_that_pauses_keeps_what_it_owns() {
    let count = 2_000u32;
    let mut s = swarm(vec![64 << 10; count as usize]);
    s.opening.end();
    let tags = [42, 77, 99];
    for (ix, tag) in [(0, 5), (1, 77), (2, 99)] {
        s.handle_peer(MS(0), PeerIx(ix), tag, MS(1));
    }
    assert!(s.handle_have(MS(0), PeerIx(0), &[0..count]));
    let mut asked = BTreeSet::new();
    // for 1.9 s, 100 leaves each second from the one, as many of our own, and nothing from the other
    let mut theirs = (0..count).filter(|l| stripe_owner(*l, &tags) == 99);
    for tick in 1..=190u64 {
        let now = MS(10 * tick);
        for (batch, leaf) in requests(&mut s, now, PeerIx(0)) {
            assert_eq!(stripe_owner(leaf, &tags), 42, "leaf {leaf} at {now:?}");
            asked.insert(leaf);
            s.handle_bytes(now, PeerIx(0), 64 << 10);
            assert!(s.handle_arrived(now, PeerIx(0), batch, leaf));
            s.handle_verified(now, PeerIx(0), leaf);
        }
        let leaf = theirs.next().unwrap();
        assert!(s.handle_have(now, PeerIx(2), &[leaf..leaf + 1]));
    }
    assert!(asked.len() > 20, "{} of its own", asked.len());
}

/// What is said holds for a while; whoever says nothing is judged by how fast it was.
#[test]
fn whoever_says_that_requests_wait_is_asked_less() {
    let first = |swarm: &mut Swarm, now| {
        let mut actions = std::iter::from_fn(|| swarm.poll_action(now));
        actions.find_map(|action| match action {
            Action::Request { peer, .. } => Some(peer),
            _ => None,
        })
    };
    for (waits, now, expected) in [([900, 100], MS(10), 1), ([100, 900], MS(10), 0), ([900, 100], MS(6_000), 0)] {
        let mut s = swarm(vec![256 << 10; 400]);
        // enough of them that each is asked for one leaf at a time
        for peer in 0..12 {
            s.handle_peer(MS(0), PeerIx(peer), u64::from(peer) * 7919, MS(1));
            if let Some(wait) = waits.get(peer as usize) {
                assert!(s.handle_have(MS(0), PeerIx(peer), &[0..400 - 1]));
                s.handle_load(MS(0), PeerIx(peer), MS(*wait));
            }
        }
        assert_eq!(first(&mut s, now), Some(PeerIx(expected)), "{waits:?} at {now:?}");
    }
}

/// Where it may be the seeder that takes its time, asking it for what others own makes it worse for all.
#[test]
fn whoever_gets_nothing_asks_for_little_of_what_others_own_at_first() {
    let count = 200u32;
    let mut s = swarm(vec![256 << 10; count as usize]);
    s.opening.end();
    for other in 1..24 {
        s.handle_peer(MS(0), PeerIx(other), u64::from(other) * 7919, MS(1));
    }
    s.handle_peer(MS(0), PeerIx(0), 5, MS(1));
    assert!(s.handle_have(MS(0), PeerIx(0), &[0..count]));
    let mut now = MS(0);
    assert!(asks(&mut s, now, PeerIx(0)).is_empty(), "none of the first leaves is its own");
    let mut asked = vec![];
    while asked.is_empty() {
        now = s.poll_timeout().unwrap().max(now);
        s.handle_timeout(now);
        asked = asks(&mut s, now, PeerIx(0));
    }
    assert_eq!(asked.len(), 1);
    // nobody else is heard of: more of it, the more comes
    for batch in 0.. {
        s.handle_bytes(now, PeerIx(0), 256 << 10);
        assert!(s.handle_arrived(now, PeerIx(0), BatchId(batch), asked[batch as usize]));
        s.handle_verified(now, PeerIx(0), asked[batch as usize]);
        asked.extend(asks(&mut s, now, PeerIx(0)));
        let open = asked.len() as u64 - batch - 1;
        assert!((1..=batch + 2).contains(&open), "{open} after {batch}");
        if open >= 4 {
            break;
        }
    }
}

/// While a seeder has what nobody else has, it is not asked to stand in for a leecher that is late, or stalls: in a crowd
/// that would be a second copy of half of all.
#[test]
fn a_seeder_that_has_rare_leaves_does_not_stand_in_for_a_late_leecher() {
    let mut s = swarm(vec![256 << 10; 100]);
    let (seeder, late, mut now) = (PeerIx(0), PeerIx(1), MS(0));
    for peer in [seeder, late] {
        s.handle_peer(now, peer, 7919 * u64::from(peer.0 + 1), MS(1));
    }
    assert!(s.handle_have(now, late, &[90..100]));
    assert!(s.handle_have(now, seeder, std::slice::from_ref(&(0..100))));
    let (mut open, mut of_late): (VecDeque<(BatchId, u32)>, BTreeSet<u32>) = Default::default();
    let mut rare: BTreeSet<u32> = (0..90).collect();
    while !s.is_complete() {
        while let Some(action) = s.poll_action(now) {
            match action {
                Action::Request { peer, leaves, .. } if peer == late => of_late.extend(leaves),
                Action::Request { batch, leaves, .. } => {
                    let stands_in = leaves.iter().any(|l| *l >= 90);
                    assert!(rare.is_empty() || !stands_in, "asked for {leaves:?} at {now:?}");
                    leaves.iter().for_each(|l| _ = rare.remove(l));
                    open.extend(leaves.into_iter().map(|l| (batch, l)));
                }
                Action::Cancel { batch, .. } => open.retain(|(b, _)| *b != batch),
                _ => {}
            }
        }
        // a seeder that many share: a leaf in 200 ms
        now += MS(200);
        if s.poll_timeout().is_some_and(|at| at <= now) {
            s.handle_timeout(now);
        }
        if let Some((batch, leaf)) = open.pop_front() {
            s.handle_bytes(now, seeder, 256 << 10);
            if s.handle_arrived(now, seeder, batch, leaf) {
                s.handle_verified(now, seeder, leaf);
            }
        }
        assert!(now < Duration::from_secs(40));
    }
    assert!(!of_late.is_empty(), "the one that is late was never asked");
}

/// The tag that owns `leaf`.
fn stripe_owner(leaf: u32, tags: &[u64]) -> u64 {
    tags.iter().copied().max_by_key(|t| super::stripe::weight(leaf, *t)).unwrap()
}

#[test]
fn a_rare_leaf_is_asked_for_by_a_few_at_first_and_by_anybody_in_the_end() {
    let crowd = 64u32;
    let (mut at_once, mut soon) = (0, 0);
    for me in 0..u64::from(crowd) {
        let none = FixedBitSet::with_capacity(2);
        let mut s = Swarm::new(SwarmConfig::default(), (me + 1) * 7919, vec![1 << 18; 2].into(), &full(2), &none);
        for other in 0..crowd {
            s.handle_peer(MS(0), PeerIx(other), u64::from(other) + 1, MS(1));
        }
        // one leecher of many has the first leaf
        assert!(s.handle_have(MS(0), PeerIx(7), std::slice::from_ref(&(0..1))));
        at_once += asks(&mut s, MS(0), PeerIx(7)).len();
        while let Some(at) = s.poll_timeout().filter(|at| *at < Duration::from_secs(1)) {
            s.handle_timeout(at);
            soon += asks(&mut s, at, PeerIx(7)).len();
        }
    }
    assert!((1..=10).contains(&at_once), "{at_once} ask at once");
    assert_eq!(at_once + soon, crowd as usize);
}

/// A seeder that has nothing to give is noted once, however often it is looked at again.
#[test]
fn seeders_without_anything_to_ask_for_are_noted_once() {
    let mut w = World::new(vec![1000; 2]);
    let seeder = w.join(Kind::Staller, (0..2).collect());
    for _ in 0..1000 {
        w.now += MS(1);
        w.swarm.handle_bytes(w.now, seeder, 1);
        w.act();
    }
    assert!(w.swarm.dry_seeders.len() <= 1, "{}", w.swarm.dry_seeders.len());
    w.leave(seeder);
    assert!(w.swarm.dry_seeders.is_empty());
}

/// What a peer costs by saying what it has is known, and a seeder that comes costs no walk through the leaves for each.
#[test]
fn what_peers_cost_by_what_they_say_is_counted() {
    const LEAVES: u32 = 100_000;
    let mut s = swarm(vec![1000; LEAVES as usize]);
    let cost = |s: &mut Swarm, change: &dyn Fn(&mut Swarm)| {
        let before = s.work();
        change(s);
        s.work() - before
    };
    let (peer, all) = (PeerIx(1), [0..LEAVES]);
    let leaves = u64::from(LEAVES);
    // one walk when it comes, and one when it turns out to be no leecher: stripes are dealt anew
    assert_eq!(cost(&mut s, &|s| s.handle_peer(MS(0), peer, 7, MS(1))), leaves);
    assert_eq!(cost(&mut s, &|s| assert!(s.handle_have(MS(0), peer, &all))), leaves);
    assert_eq!(cost(&mut s, &|s| assert!(s.handle_have(MS(0), peer, &all))), 0, "it is known already");
    // a seeder that is none and one again costs as much as that, though it names one leaf
    assert!(cost(&mut s, &|s| s.handle_dont_have(MS(0), peer, &[5..6])) >= 2 * leaves - 1);
    assert!(cost(&mut s, &|s| assert!(s.handle_have(MS(0), peer, &[5..6]))) >= 2 * leaves - 1);
    assert_eq!(cost(&mut s, &|s| s.handle_gone(MS(0), peer)), 0);
    assert_eq!(cost(&mut s, &|s| s.handle_dont_have(MS(0), peer, &all)), 0, "it is gone");
}

/// A late peer with tens of thousands of small leaves does not make every decision a walk through all of them.
#[test]
fn few_of_the_leaves_of_late_peers_are_looked_at() {
    const LEAVES: u32 = 40_000;
    let config = SwarmConfig { initial_window: 1 << 30, most_leaves: 4096, ..SwarmConfig::default() };
    let config = SwarmConfig { least_total: 1 << 30, largest_batch: 1 << 30, ..config };
    let none = FixedBitSet::with_capacity(LEAVES as usize);
    let mut s = Swarm::new(config, 42, vec![100; LEAVES as usize].into(), &full(LEAVES as usize), &none);
    let (seeder, other, mut now) = (PeerIx(1), PeerIx(2), MS(0));
    s.handle_peer(now, seeder, 9, MS(1));
    assert!(s.handle_have(now, seeder, std::slice::from_ref(&(0..LEAVES))));
    assert!(asks(&mut s, now, seeder).len() > LEAVES as usize / 2, "nearly everything is asked for");
    while s.late.is_empty() {
        now = s.poll_timeout().unwrap().max(now);
        s.handle_timeout(now);
    }
    // one that has but the last of its leaves comes, and is looked at again and again
    s.handle_peer(now, other, 99, MS(1));
    assert!(s.handle_have(now, other, &[LEAVES - 1..LEAVES]));
    for turn in 1..=10 {
        s.handle_choke(now, other, true);
        s.handle_choke(now, other, false);
        asks(&mut s, now, other);
        assert!(s.looked.get() <= turn * 2 * 512, "{} leaves in {turn} turns", s.looked.get());
    }
    assert!(s.looked.get() > 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// With one honest seeder among any peers, everything arrives, nothing is asked for a third time, and only liars
    /// and stallers are dropped.
    #[test]
    fn everything_arrives_in_any_company(
        sizes in prop::collection::vec(1..300_000u32, 1..60),
        company in prop::collection::vec((0..4u8, any::<u64>()), 0..6),
        churn in prop::collection::vec((0..400usize, any::<bool>()), 0..4),
        picks in prop::collection::vec(any::<usize>(), 64),
    ) {
        let count = sizes.len() as u32;
        let mut w = World::new(sizes);
        for (kind, bits) in company {
            let kind = [Kind::Honest, Kind::Liar, Kind::Staller, Kind::Refuser][kind as usize];
            w.join(kind, (0..count).filter(|l| bits >> (l % 64) & 1 == 1).collect());
        }
        w.join(Kind::Honest, (0..count).collect());
        let mut kinds: BTreeMap<PeerIx, Kind> = w.peers.iter().map(|(p, k)| (*p, k.0)).collect();
        let mut steps = 0;
        while !w.swarm.is_complete() {
            for (at, first) in &churn {
                if *at == steps {
                    // someone leaves and comes back
                    let leaver = if *first { w.peers.keys().next() } else { w.peers.keys().last() };
                    if let Some(leaver) = leaver.copied() {
                        let (kind, has) = w.peers[&leaver].clone();
                        w.leave(leaver);
                        let back = w.join(kind, has);
                        kinds.insert(back, kind);
                    }
                }
            }
            w.step(picks[steps % picks.len()]);
            steps += 1;
            prop_assert!(steps < 5_000, "no end in sight: {:?}", w.swarm.progress());
        }
        let p = w.swarm.progress();
        prop_assert_eq!(p.bytes_done, p.bytes_wanted);
        for (peer, _) in &w.dropped {
            prop_assert!(matches!(kinds[peer], Kind::Liar | Kind::Staller));
        }
    }
}
