//! What a simulation came to, and how things stand meanwhile. Nothing here changes a run.

use super::*;

impl World {
    /// How things stand, for people who wonder why.
    pub(super) fn trace(&self, next: u64) {
        let leechers = || self.nodes.iter().filter(|n| n.plan.kind == Kind::Leecher && n.present);
        let part = |links: &mut dyn Iterator<Item = LinkId>| {
            let (used, all) = links.map(|l| self.fluid.load(l)).fold((0.0, 0.0), |(u, a), (x, y)| (u + x, a + y));
            100.0 * used / f64::max(all, 1.0)
        };
        let n = leechers().count().max(1);
        eprintln!(
            "{:6.2} s: seed {:3.0} % of its uplink, to {:3} at once, {:3} wait; {:.3} copies sent, {:3} leaves spread; leechers' uplinks {:3.0} %, {:4.1} asked each, have {:5.1} % (least {:5.1} %)",
            seconds(next),
            part(&mut std::iter::once(self.nodes[0].up)),
            self.nodes[0].conns.values().map(|c| c.active.len()).sum::<usize>(),
            self.nodes[0].conns.values().map(|c| c.waiting.len() + c.turning.len()).sum::<usize>(),
            self.nodes[0].sent / self.options.bytes as f64,
            self.seen.count_ones(..),
            part(&mut leechers().map(|n| n.up)),
            leechers().map(|n| n.open.len()).sum::<usize>() as f64 / n as f64,
            100.0 * leechers().map(|n| n.have.count_ones(..)).sum::<usize>() as f64 / (n * self.sizes.len()) as f64,
            100.0 * leechers().map(|n| n.have.count_ones(..)).min().unwrap_or(0) as f64 / self.sizes.len() as f64,
        );
    }

    pub(super) fn outcome(mut self) -> Outcome {
        let took = |n: &Node| Some(seconds(n.done_at?) - n.plan.joins);
        let honest: Vec<f64> = self.nodes.iter().filter(|n| n.must_finish()).filter_map(took).collect();
        let riders: Vec<f64> = self.nodes.iter().filter(|n| n.plan.kind == Kind::FreeRider).filter_map(took).collect();
        let mean = |v: &[f64]| if v.is_empty() { 0.0 } else { v.iter().sum::<f64>() / v.len() as f64 };
        let bytes = self.options.bytes as f64;
        let (mut received, mut useful, mut sent, mut could) = (0.0, 0.0, 0.0, 0.0);
        for node in &self.nodes {
            if matches!(node.plan.kind, Kind::Leecher | Kind::FreeRider) {
                received += node.received;
                useful += node.have.ones().map(|l| f64::from(self.sizes[l])).sum::<f64>();
            }
            if matches!(node.plan.kind, Kind::Leecher | Kind::Seed) {
                sent += node.sent;
                let until = node.plan.leaves.map_or(self.now, |t| nanos(t).min(self.now));
                could += node.plan.up * seconds(until.saturating_sub(nanos(node.plan.joins)));
            }
        }
        for node in &self.nodes {
            for value in [node.done_at.unwrap_or(0), node.sent.to_bits(), node.received.to_bits()] {
                self.digest = Rng::new(self.digest ^ value).bits();
            }
        }
        Outcome {
            seed: self.options.seed,
            peers: self.options.peers,
            leaves: self.sizes.len(),
            makespan: if self.waiting_for == 0 { honest.iter().copied().fold(0.0, f64::max) } else { f64::INFINITY },
            mean: mean(&honest),
            ideal: self.scenario.ideal,
            bound: self.scenario.bound,
            finished: honest.len(),
            expected: self.nodes.iter().filter(|n| n.must_finish()).count(),
            seed_copies: self.nodes[0].sent / bytes,
            duplicates: (received - useful) / useful.max(1.0),
            free_rider_mean: mean(&riders),
            uplink_use: sent / could.max(1.0),
            drops: self.drops,
            events: self.handled,
            digest: self.digest,
        }
    }
}
