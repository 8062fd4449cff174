//! What the scheduler costs with a million leaves and 200 peers: one announcement, and one leaf delivered and the next one
//! picked. Both are to stay the same whatever the numbers.
#![allow(missing_docs, reason = "criterion_group makes an undocumented function")]

use criterion::{Criterion, criterion_group, criterion_main};
use fixedbitset::FixedBitSet;
use shoal_transfer::swarm::{Action, BatchId, PeerIx, Swarm, SwarmConfig};
use std::{
    collections::VecDeque,
    hint::black_box,
    ops::Range,
    time::{Duration, Instant},
};

const LEAVES: u32 = 1_000_000;
const PEERS: u32 = 200;

struct World {
    swarm: Swarm,
    open: VecDeque<(PeerIx, BatchId, u32)>,
    now: Duration,
}

fn full(count: usize) -> FixedBitSet {
    let mut set = FixedBitSet::with_capacity(count);
    set.insert_range(..);
    set
}

impl World {
    /// One seeder and leechers; each of those has a tenth of the leaves, or nothing.
    fn new(leaves: u32, peers: u32, haves: bool) -> World {
        let (count, none) = (leaves as usize, FixedBitSet::with_capacity(leaves as usize));
        let mut swarm = Swarm::new(SwarmConfig::default(), 1, vec![4096; count].into(), &full(count), &none);
        let now = Duration::ZERO;
        for peer in 0..peers {
            swarm.handle_peer(now, PeerIx(peer), u64::from(peer) * 0x9e37_79b9 + 7, Duration::from_millis(10));
            let ranges: Vec<Range<u32>> = match (peer, haves) {
                (0, _) => std::iter::once(0..leaves).collect(),
                (_, true) => (0..leaves / 640).map(|b| (b * 640 + peer * 3 % 576, 64)).map(|(s, n)| s..s + n).collect(),
                (_, false) => vec![],
            };
            assert!(swarm.handle_have(now, PeerIx(peer), &ranges));
        }
        let mut world = World { swarm, open: VecDeque::new(), now };
        world.act();
        world
    }

    fn act(&mut self) {
        while let Some(action) = self.swarm.poll_action(self.now) {
            if let Action::Request { peer, batch, leaves } = action {
                self.open.extend(leaves.into_iter().map(|leaf| (peer, batch, leaf)));
            }
        }
    }

    /// The oldest leaf arrives; what it makes room for is asked for.
    fn deliver(&mut self) {
        let Some((peer, batch, leaf)) = self.open.pop_front() else { return };
        self.now += Duration::from_micros(20);
        self.swarm.handle_bytes(self.now, peer, 4096);
        if self.swarm.handle_arrived(self.now, peer, batch, leaf) {
            self.swarm.handle_verified(self.now, peer, leaf);
        }
        self.act();
    }
}

fn picks(c: &mut Criterion) {
    for (leaves, peers) in [(10_000, 20), (LEAVES, PEERS)] {
        let mut world = World::new(leaves, peers, true);
        c.bench_function(&format!("deliver and pick, {leaves} leaves, {peers} peers"), |b| {
            b.iter_custom(|n| {
                let mut took = Duration::ZERO;
                for _ in 0..n {
                    if world.swarm.is_complete() || world.open.is_empty() {
                        world = World::new(leaves, peers, true);
                    }
                    let begun = Instant::now();
                    world.deliver();
                    took += begun.elapsed();
                }
                took
            });
        });
    }
}

fn haves(c: &mut Criterion) {
    for (leaves, peers) in [(10_000, 20), (LEAVES, PEERS)] {
        let mut world = World::new(leaves, peers, false);
        let mut next = 0u64;
        let all = u64::from(leaves) * u64::from(peers - 1);
        c.bench_function(&format!("have, {leaves} leaves, {peers} peers"), |b| {
            b.iter(|| {
                if next == all / 2 {
                    world = World::new(leaves, peers, false);
                    next = 0;
                }
                // every peer announces every other leaf once, in an order without a pattern
                let peer = PeerIx(1 + (next % u64::from(peers - 1)) as u32);
                let leaf = (next / u64::from(peers - 1) * 7919 % u64::from(leaves)) as u32;
                next += 1;
                black_box(world.swarm.handle_have(world.now, peer, std::slice::from_ref(&(leaf..leaf + 1))));
                world.act();
            });
        });
    }
}

criterion_group!(scheduler, picks, haves);
criterion_main!(scheduler);
