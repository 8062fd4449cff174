//! Leechers that come together and have not met yet, and those who come when all others have.

use super::*;

const SEEDER: PeerIx = PeerIx(1_000);
const LEAF: u32 = 75_000;

fn tag(of: u64) -> u64 {
    stripe::weight(7, of)
}

/// A leecher that knows a seeder only.
fn newcomer(me: u64, leaves: u32) -> Swarm {
    let none = FixedBitSet::with_capacity(leaves as usize);
    let sizes = vec![LEAF; leaves as usize];
    let mut s = Swarm::new(SwarmConfig::default(), tag(me), sizes.into(), &full(leaves as usize), &none);
    s.handle_peer(MS(0), SEEDER, tag(1_000), MS(1));
    assert!(s.handle_have(MS(0), SEEDER, std::slice::from_ref(&(0..leaves))));
    s
}

/// What is asked of the seeder after all that is decided now, by request.
fn open(s: &mut Swarm, now: Duration, mut open: BTreeMap<BatchId, Vec<u32>>) -> BTreeMap<BatchId, Vec<u32>> {
    while let Some(action) = s.poll_action(now) {
        match action {
            Action::Request { peer: SEEDER, batch, leaves } => assert!(open.insert(batch, leaves).is_none()),
            Action::Cancel { peer: SEEDER, batch } => assert!(open.remove(&batch).is_some()),
            _ => {}
        }
    }
    open
}

fn bytes(open: &BTreeMap<BatchId, Vec<u32>>) -> u64 {
    open.values().flatten().count() as u64 * u64::from(LEAF)
}

#[test]
fn leechers_that_have_not_met_ask_for_different_leaves() {
    let (leaves, leechers) = (1_800, 24);
    let mut asked = vec![0; leaves as usize];
    for me in 0..leechers {
        let mut s = newcomer(me, leaves);
        let first = open(&mut s, MS(0), BTreeMap::new());
        assert!((900_000..1_100_000).contains(&bytes(&first)), "alone it fills the pipe");
        first.values().flatten().for_each(|leaf| asked[*leaf as usize] += 1);
    }
    let (once, more): (Vec<u32>, Vec<u32>) = asked.into_iter().filter(|n| *n > 0).partition(|n| *n == 1);
    assert!(once.len() > 250 && more.iter().sum::<u32>() < 110, "{} once, {more:?}", once.len());
}

#[test]
fn whoever_meets_others_leaves_them_their_share_of_the_seeder_and_then_keeps_to_its_stripe() {
    let mut s = newcomer(1, 1_800);
    let first = open(&mut s, MS(0), BTreeMap::new());
    (2..9).for_each(|other| s.handle_peer(MS(50), PeerIx(other), tag(other.into()), MS(1)));
    let kept = open(&mut s, MS(50), first.clone());
    assert_eq!(kept.iter().collect::<Vec<_>>(), first.iter().take(1).collect::<Vec<_>>(), "what may have begun");
    // they have met: what it asks for now is its own, and near the beginning
    let tags: Vec<u64> = (1..9).map(tag).collect();
    let later = open(&mut s, MS(1_000), kept.clone());
    let new: Vec<u32> =
        later.iter().filter(|(batch, _)| !kept.contains_key(batch)).flat_map(|(_, l)| l.clone()).collect();
    assert!(new.iter().all(|leaf| stripe_owner(*leaf, &tags) == tag(1) && *leaf < 100), "{new:?}");
}

/// One after the other is met for as long as that goes on; then, or when it has taken too long, it is over.
#[test]
fn the_opening_ends() {
    let is_apart = |join_every: u64, at: u64| {
        let (mut s, mut asked) = (newcomer(1, 1_800), BTreeMap::new());
        for (n, ms) in (0..at).step_by(join_every as usize).enumerate() {
            s.handle_peer(MS(ms), PeerIx(n as u32), tag(n as u64 + 2), MS(1));
            asked = open(&mut s, MS(ms), asked);
        }
        s.handle_gone(MS(at), SEEDER);
        s.handle_peer(MS(at), SEEDER, tag(1_000), MS(1));
        assert!(s.handle_have(MS(at), SEEDER, std::slice::from_ref(&(0..1_800))));
        open(&mut s, MS(at), BTreeMap::new()).values().flatten().any(|leaf| *leaf >= 200)
    };
    assert!(is_apart(100, 50) && is_apart(250, 1_000) && is_apart(250, 2_900));
    assert!(!is_apart(250, 3_200) && !is_apart(1_000, 450));
}

/// Where a leaf for each would be too much at once, some ask, and all when it is over.
#[test]
fn of_a_crowd_a_few_open_at_a_seeder_and_all_go_on() {
    let (crowd, mut opened, mut asked_later) = (200, 0, 0);
    for me in 0..crowd {
        let mut s = newcomer(me, 4_000);
        (0..crowd).filter(|other| *other != me).for_each(|other| {
            s.handle_peer(MS(0), PeerIx(other as u32), tag(other), MS(1));
        });
        let first = open(&mut s, MS(0), BTreeMap::new());
        assert!(first.values().flatten().count() <= 1);
        opened += first.len();
        let end = s.poll_timeout().filter(|at| *at <= MS(500)).unwrap();
        s.handle_timeout(end);
        let later = open(&mut s, end, first.clone());
        asked_later += later.len() - first.len();
        assert!(later.keys().filter(|batch| !first.contains_key(batch)).all(|batch| later[batch] < vec![500]));
    }
    let places = (1 << 20) / LEAF as usize;
    assert!((places / 2..2 * places).contains(&opened), "{opened} of {crowd} opened");
    assert!(asked_later > 0);
}

/// Blocks of IPFS trees may be as long as all that is asked in the opening, or longer: a few ask for one each all the same.
#[test]
fn where_leaves_are_long_a_few_open_as_well() {
    for leaf in [1 << 20, 2 << 20] {
        for me in 0..6u64 {
            let none = FixedBitSet::with_capacity(50);
            let mut s = Swarm::new(SwarmConfig::default(), tag(me), vec![leaf; 50].into(), &full(50), &none);
            (0..6).filter(|other| *other != me).for_each(|other| {
                s.handle_peer(MS(0), PeerIx(other as u32), tag(other), MS(1));
            });
            s.handle_peer(MS(0), SEEDER, tag(1_000), MS(1));
            assert!(s.handle_have(MS(0), SEEDER, std::slice::from_ref(&(0..50))));
            assert_eq!(asks(&mut s, MS(0), SEEDER).len(), 1, "{leaf} bytes, leecher {me}");
        }
    }
}

/// Requests are for several leaves each: one leaf that the newcomer owns is enough.
#[test]
fn what_a_late_newcomer_owns_is_left_to_it_unless_it_may_be_on_its_way() {
    let mut s = newcomer(1, 1_800);
    s.opening.end();
    let before = open(&mut s, MS(0), BTreeMap::new());
    assert!(before.len() > 2 && before.values().all(|leaves| leaves.len() > 1));
    s.handle_bytes(MS(10), SEEDER, 10_000);
    s.handle_peer(MS(20), PeerIx(2), tag(2), MS(1));
    let after = open(&mut s, MS(20), before.clone());
    assert_eq!(after.first_key_value(), before.first_key_value(), "the oldest may have begun");
    assert!(before.keys().skip(1).all(|batch| !after.contains_key(batch)), "the others are taken back");
    let tags = [tag(1), tag(2)];
    assert!(after.values().skip(1).flatten().all(|leaf| stripe_owner(*leaf, &tags) == tag(1)));
}
