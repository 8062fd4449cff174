//! What changes among many: whom a leaf that waits is asked of instead, how much of a seeder that has nothing rare, and what is
//! left to those who know no seeder.

use super::*;
use std::ops::Range;

const CROWD: u32 = 12;
const LEAF: u32 = 75_000;

/// A leecher that lacks all of so many leaves and knows a crowd that has nothing yet.
fn among_many(leaves: u32) -> Swarm {
    among(CROWD, leaves)
}

fn among(peers: u32, leaves: u32) -> Swarm {
    let mut s = swarm(vec![LEAF; leaves as usize]);
    (0..peers).for_each(|peer| s.handle_peer(MS(0), PeerIx(peer), u64::from(peer) * 7919 + 1, MS(1)));
    s
}

fn announce(s: &mut Swarm, now: Duration, peer: PeerIx, leaves: Range<u32>, wait: Duration) {
    assert!(s.handle_have(now, peer, std::slice::from_ref(&leaves)));
    s.handle_load(now, peer, wait);
}

fn actions(s: &mut Swarm, now: Duration) -> Vec<Action> {
    std::iter::from_fn(|| s.poll_action(now))
        .filter(|a| !matches!(a, Action::Interested { .. } | Action::Reach { .. }))
        .collect()
}

/// The first holder has a queue of a second; the next one says how long it has. Asked for what the first had begun to send,
/// or would send nearly as soon, nothing moves.
#[test]
fn a_leaf_that_waits_in_a_long_queue_is_asked_of_another() {
    let (first, next) = (PeerIx(3), PeerIx(8));
    for (wait, later, begun, moves) in [
        (MS(1_000), MS(20), false, true),
        (MS(1_000), MS(20), true, false),
        (MS(1_000), MS(400), false, false),
        (MS(100), MS(20), false, false),
    ] {
        let mut s = among_many(2);
        announce(&mut s, MS(0), first, 0..1, wait);
        let (mut now, mut asked) = (MS(0), actions(&mut s, MS(0)));
        // this leecher may not be among the first to ask
        while asked.is_empty() {
            now = s.poll_timeout().unwrap();
            s.handle_timeout(now);
            asked = actions(&mut s, now);
        }
        let batch = BatchId(0);
        assert_eq!(asked, [Action::Request { peer: first, batch, leaves: vec![0] }]);
        if begun {
            s.handle_bytes(now, first, 1_500);
        }
        announce(&mut s, now, next, 0..1, later);
        let moved =
            [Action::Cancel { peer: first, batch }, Action::Request { peer: next, batch: BatchId(1), leaves: vec![0] }];
        let expected = if moves { &moved[..] } else { &[] };
        assert_eq!(actions(&mut s, now), expected, "{wait:?}, then {later:?}, begun {begun}");
        if moves {
            // the one that was stopped is forgotten: what it still brings is not wanted, what the other brings is
            assert!(!s.handle_arrived(now, first, batch, 0));
            assert!(s.handle_arrived(now, next, BatchId(1), 0));
            s.handle_verified(now, next, 0);
            assert!(s.has(0) && s.in_flight() == 0);
        }
    }
}

/// Whoever boasts of an empty queue gets one leaf for it, not all that waits elsewhere.
#[test]
fn a_boaster_draws_one_leaf_at_a_time() {
    let mut s = among_many(40);
    for peer in 0..8 {
        announce(&mut s, MS(0), PeerIx(peer), 0..40, MS(900));
    }
    let waiting = actions(&mut s, MS(0)).len();
    assert!(waiting >= 8, "{waiting}");
    announce(&mut s, MS(2), PeerIx(11), 0..40, MS(0));
    let _new = actions(&mut s, MS(2));
    for round in 0..20 {
        announce(&mut s, MS(2), PeerIx(11), 0..40, MS(0));
        s.handle_rtt(PeerIx(11), MS(1));
        let again = actions(&mut s, MS(2));
        assert!(again.is_empty(), "round {round}: {again:?}");
    }
    assert!(s.account(PeerIx(11)).unwrap().in_flight <= 2 * u64::from(LEAF));
}

/// When leechers have everything too, a seeder among many is asked for a leaf at a time, like them; among few for what fills
/// the path.
#[test]
fn a_seeder_without_anything_rare_is_asked_like_the_others() {
    let seeder = PeerIx(100);
    for (peers, least, most) in [(3, 6, 40), (CROWD, 1, 1)] {
        let mut s = among(peers, 399);
        s.opening.end();
        // each leaf is somewhere, and nobody who has it answers just now
        for peer in 0..peers {
            let each = 399 / peers + 1;
            announce(&mut s, MS(0), PeerIx(peer), each * peer..(each * peer + each).min(399), MS(0));
            s.handle_choke(MS(0), PeerIx(peer), true);
        }
        s.handle_peer(MS(0), seeder, 5, MS(1));
        assert!(s.handle_have(MS(0), seeder, std::slice::from_ref(&(0..399))));
        let asked = asks(&mut s, MS(0), seeder).len();
        assert!((least..=most).contains(&asked), "{asked} leaves among {peers}");
    }
}

/// A crowd would wait for its seeder at the end, each for a leaf of its own. Some ask it, more where there are more seeders,
/// and whoever gets nothing from anybody else.
#[test]
fn of_a_crowd_some_ask_a_seeder_that_has_nothing_rare() {
    let (crowd, leaves) = (160, 160);
    let haves = |without: u32| [0..without.min(leaves), (without + 1).min(leaves)..leaves];
    for (seeders, least, most) in [(1, 44, 84), (2, 108, 148), (3, crowd, crowd)] {
        let mut some = 0;
        for me in 0..crowd {
            let count = leaves as usize;
            let (tag, none) = (stripe::weight(1, me.into()), FixedBitSet::with_capacity(count));
            let mut s = Swarm::new(SwarmConfig::default(), tag, vec![LEAF; count].into(), &full(count), &none);
            s.opening.end();
            for peer in 0..crowd + seeders {
                s.handle_peer(MS(0), PeerIx(peer), u64::from(peer), MS(1));
                // leechers lack a leaf each, and do not answer
                let without = if peer < crowd { peer } else { leaves };
                assert!(s.handle_have(MS(0), PeerIx(peer), &haves(without)));
                s.handle_choke(MS(0), PeerIx(peer), peer < crowd);
            }
            let mut asked = !actions(&mut s, MS(0)).is_empty();
            some += u32::from(asked);
            while !asked {
                let now = s.poll_timeout().filter(|at| *at < MS(2_000)).unwrap();
                s.handle_timeout(now);
                asked = !actions(&mut s, now).is_empty();
            }
        }
        assert!((least..=most).contains(&some), "{some} of {crowd} asked {seeders} seeders");
    }
}

/// Who owns a leaf that only a seeder has is to be able to ask for it.
#[test]
fn whoever_reaches_no_seeder_owns_nothing() {
    let seeder = PeerIx(100);
    let start = || {
        let mut s = among_many(400);
        s.opening.end();
        s.handle_peer(MS(0), seeder, 5, MS(1));
        assert!(s.handle_have(MS(0), seeder, std::slice::from_ref(&(0..400))));
        s
    };
    let mut own = start();
    let own = asks(&mut own, MS(0), seeder).len();
    // all but one say that they know none: half of what is asked ahead is this leecher's own
    let mut s = start();
    (1..CROWD).for_each(|peer| s.handle_reach(MS(0), PeerIx(peer), false));
    let half = asks(&mut s, MS(0), seeder);
    assert!(own <= 2 && half.len() > own && half.len() < 7, "{own}, then {half:?}");
    let rival = PeerIx(0);
    s.handle_reach(MS(0), rival, false);
    s.handle_have(MS(0), rival, &[]).then_some(()).unwrap();
    assert!(!asks(&mut s, MS(0), seeder).is_empty(), "all is its own");
    // to say so over and over changes nothing for anybody, and announcing does not make it an owner
    let work = s.work();
    (0..100).for_each(|_| s.handle_reach(MS(0), PeerIx(1), false));
    assert_eq!(s.work(), work);
    assert!(s.handle_have(MS(0), PeerIx(1), &[399..400]) && s.work() < work + 10);
}

/// All are told when the opening is over and no seeder was met, newcomers when they come, and all again when one is met.
#[test]
fn peers_are_told_whether_a_seeder_is_known() {
    let told = |s: &mut Swarm, now| -> Vec<(u32, bool)> {
        let actions = std::iter::from_fn(|| s.poll_action(now));
        actions.filter_map(|a| if let Action::Reach { peer, yes } = a { Some((peer.0, yes)) } else { None }).collect()
    };
    let mut s = among(3, 10);
    assert_eq!(told(&mut s, MS(0)), []);
    let over = s.poll_timeout().unwrap();
    s.handle_timeout(over);
    assert_eq!(told(&mut s, over), [(0, false), (1, false), (2, false)]);
    s.handle_peer(over, PeerIx(7), 99, MS(1));
    assert_eq!(told(&mut s, over), [(7, false)]);
    assert!(s.handle_have(over, PeerIx(1), &[0..10]));
    assert_eq!(told(&mut s, over), [(0, true), (1, true), (2, true), (7, true)]);
    s.handle_gone(over, PeerIx(1));
    assert_eq!(told(&mut s, over), [(0, false), (2, false), (7, false)]);
}
