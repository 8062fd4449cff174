//! What is simulated: content, peers, links, who comes and goes; and the bounds that a run is held against. No simulation.

use crate::rng::Rng;
use shoal_transfer::{TransferLimits, choke::Policy, swarm::SwarmConfig};

/// What a peer is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Has everything from the start.
    Seed,
    /// Fetches and serves.
    Leecher,
    /// Fetches and never serves: it announces nothing and turns requests down.
    FreeRider,
    /// Says it has everything and answers with wrong bytes.
    Corrupter,
}

/// One peer of a scenario. Links in bytes per second, times in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerPlan {
    /// What it is like.
    pub kind: Kind,
    /// Uplink.
    pub up: f64,
    /// Downlink.
    pub down: f64,
    /// When it comes.
    pub joins: f64,
    /// When it goes, finished or not.
    pub leaves: Option<f64>,
}

/// How a serving peer shares its uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serving {
    /// Requests of one peer that are answered at the same time.
    pub answers_per_connection: usize,
    /// Interested peers that are served at the same time; the others are choked.
    pub upload_slots: usize,
    /// For whom it works.
    pub policy: Policy,
}

impl Default for Serving {
    fn default() -> Self {
        Serving { answers_per_connection: 1, upload_slots: usize::MAX, policy: Policy::Cooperative }
    }
}

/// Options of a run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Leechers at the start.
    pub peers: usize,
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// Bytes of the content.
    pub bytes: u64,
    /// Mean link, bytes per second, up and down.
    pub rate: f64,
    /// Downlinks are so many times as fast as uplinks, where links are equal.
    pub down_factor: f64,
    /// One way, seconds.
    pub latency: f64,
    /// Leechers come within this many seconds of each other.
    pub spread: f64,
    /// From taking part to knowing another leecher passes up to so many seconds; the seed is known at once.
    pub meeting: f64,
    /// Links differ: uplinks of a quarter to twice `rate`, downlinks of one to four times it.
    pub mixed: bool,
    /// This share of the leechers goes at a random time, and a new one comes for each.
    pub churn: f64,
    /// This share of the leechers comes at a random time within the first half of the ideal time.
    pub late: f64,
    /// This share of the leechers never serves.
    pub free_riders: f64,
    /// Peers that answer with wrong bytes, besides the leechers.
    pub corrupters: usize,
    /// The seed goes once every leaf was seen elsewhere.
    pub seed_leaves: bool,
    /// Peers that each peer is connected to; none means all.
    pub degree: Option<usize>,
    /// How uplinks are shared.
    pub serving: Serving,
    /// The scheduler's settings.
    pub swarm: SwarmConfig,
    /// Tells on stderr how things stand while it runs.
    pub trace: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            peers: 10,
            seed: 1,
            bytes: 134_000_000,
            rate: 80e6 / 8.0,
            down_factor: 1.0,
            latency: 0.005,
            spread: 0.05,
            meeting: 0.0,
            mixed: false,
            churn: 0.0,
            late: 0.0,
            free_riders: 0.0,
            corrupters: 0,
            seed_leaves: false,
            degree: None,
            serving: Serving::default(),
            swarm: SwarmConfig::default(),
            trace: false,
        }
    }
}

/// A scenario in full.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Bytes of each leaf.
    pub sizes: Vec<u32>,
    /// The peers; the first one is the seed.
    pub peers: Vec<PeerPlan>,
    /// The shortest possible time, seconds, by the bound that fits.
    pub ideal: f64,
    /// Which bound that is.
    pub bound: &'static str,
}

/// Files over so many bytes are cut into chunks of this normal size, others into those of a quarter of it.
const LARGE: (u64, f64) = (512 << 20, 262_144.0);

/// Leaves as FastCDC cuts a file under Shoal's profile: cut points are rare up to the normal size and frequent after.
pub fn leaf_sizes(rng: &mut Rng, bytes: u64) -> Vec<u32> {
    let normal = if bytes > LARGE.0 { LARGE.1 } else { LARGE.1 / 4.0 };
    let (min, max) = (normal / 4.0, normal * 4.0);
    let (mut left, mut sizes) = (bytes, vec![]);
    while left > 0 {
        let mut size = min + rng.exponential(2.0 * normal);
        if size > normal {
            size = (normal + rng.exponential(normal / 2.0)).min(max);
        }
        let size = (size as u64).min(left);
        sizes.push(size as u32);
        left -= size;
    }
    sizes
}

impl Options {
    /// Draws the scenario of these options.
    pub fn scenario(&self) -> Scenario {
        let mut rng = Rng::new(self.seed);
        let sizes = leaf_sizes(&mut rng, self.bytes);
        let n = self.peers;
        let plan = |kind, up, down, joins| PeerPlan { kind, up, down, joins, leaves: None };
        let mut peers = vec![plan(Kind::Seed, self.rate, self.rate, 0.0)];
        for _ in 0..n {
            let (up, down) = if self.mixed {
                (self.rate * 0.25 * 8f64.powf(rng.unit()), self.rate * 4f64.powf(rng.unit()))
            } else {
                (self.rate, self.rate * self.down_factor)
            };
            peers.push(plan(Kind::Leecher, up, down, self.spread * rng.unit()));
        }
        let (ideal, bound) = self.ideal(&sizes, &peers);
        for rider in rng.choose(n, share(n, self.free_riders)) {
            peers[1 + rider].kind = Kind::FreeRider;
        }
        for late in rng.choose(n, share(n, self.late)) {
            peers[1 + late].joins = ideal * 0.5 * rng.unit();
        }
        for leaver in rng.choose(n, share(n, self.churn)) {
            let at = peers[1 + leaver].joins + ideal * rng.unit();
            peers[1 + leaver].leaves = Some(at);
            let (up, down) = (peers[1 + leaver].up, peers[1 + leaver].down);
            peers.push(plan(Kind::Leecher, up, down, at));
        }
        for _ in 0..self.corrupters {
            peers.push(plan(Kind::Corrupter, self.rate, self.rate, self.spread * rng.unit()));
        }
        Scenario { sizes, peers, ideal, bound }
    }

    /// The shortest time that the links allow, for the peers of the start.
    fn ideal(&self, sizes: &[u32], peers: &[PeerPlan]) -> (f64, &'static str) {
        let bytes = self.bytes as f64;
        let leechers = &peers[1..];
        let n = leechers.len() as f64;
        if !self.mixed {
            let rounds = f64::from(leechers.len().max(1).ilog2());
            let t = bytes / self.rate * (1.0 + rounds / sizes.len().max(1) as f64);
            return (t, "Mundinger, Weber, Weiss");
        }
        let slowest = leechers.iter().map(|p| p.down).fold(f64::INFINITY, f64::min);
        let ups: f64 = leechers.iter().map(|p| p.up).sum();
        let t = (bytes / self.rate).max(bytes / slowest).max(n * bytes / (self.rate + ups));
        (t, "Kumar, Ross")
    }
}

fn share(n: usize, share: f64) -> usize {
    (n as f64 * share).round() as usize
}

/// The scenarios of docs/benchmarks.md: 134 MB at 80 Mbit/s, 5 ms one way.
pub fn suite() -> Vec<(&'static str, Options)> {
    let base = Options::default();
    let mut suite = vec![];
    for peers in [1, 2, 8, 10, 24, 50, 100, 1000] {
        suite.push(("equal links", Options { peers, ..base.clone() }));
    }
    let degree = Some(TransferLimits::default().peers_per_root);
    for peers in [100, 300] {
        suite.push(("as many neighbours as a node keeps", Options { peers, degree, ..base.clone() }));
    }
    for peers in [10, 24, 50] {
        let base = Options { peers, ..base.clone() };
        suite.push(("mixed links", Options { mixed: true, ..base.clone() }));
        suite.push(("20 % churn", Options { churn: 0.2, ..base.clone() }));
        suite.push(("30 % late", Options { late: 0.3, ..base.clone() }));
        suite.push(("30 % free riders, cooperative", Options { free_riders: 0.3, ..base.clone() }));
        let serving = Serving { policy: Policy::Reciprocal, ..Serving::default() };
        suite.push(("reciprocal", Options { serving, ..base.clone() }));
        suite.push(("30 % free riders, reciprocal", Options { free_riders: 0.3, serving, ..base.clone() }));
        suite.push(("2 corrupters", Options { corrupters: 2, ..base.clone() }));
        suite.push(("each knows half of them", Options { degree: Some(base.peers.div_ceil(2)), ..base.clone() }));
        suite.push(("meet within 1 s", Options { spread: 0.5, meeting: 1.0, ..base.clone() }));
        suite.push(("seed leaves after one copy", Options { seed_leaves: true, ..base.clone() }));
    }
    suite
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_look_like_fastcdc() {
        for (bytes, kib) in [(500_000_000, 16), (600_000_000, 64)] {
            let sizes = leaf_sizes(&mut Rng::new(1), bytes);
            assert_eq!(sizes.iter().map(|s| u64::from(*s)).sum::<u64>(), bytes);
            let (last, body) = sizes.split_last().unwrap();
            assert!(*last > 0 && body.iter().all(|s| (kib << 10..=kib << 14).contains(s)));
            // FastCDC's mean on random data is 1.1 times the normal size
            let mean = bytes as f64 / sizes.len() as f64 / f64::from(kib << 12);
            assert!((0.95..1.35).contains(&mean), "{mean}");
        }
    }

    #[test]
    fn bounds_are_those_of_the_papers() {
        let o = Options { peers: 10, bytes: 100_000_000, rate: 10e6, ..Options::default() };
        let s = o.scenario();
        let expected = 10.0 * (1.0 + 3.0 / s.sizes.len() as f64);
        assert!((s.ideal - expected).abs() < 1e-9);
        let mixed = Options { mixed: true, ..o }.scenario();
        assert!(mixed.ideal >= 10.0);
    }
}
