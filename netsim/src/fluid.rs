//! Links as fluids: every peer has an uplink and a downlink, and the flows between them share both max–min fairly
//! (Bertsekas and Gallager, Data Networks, 6.5.2). A change is propagated from link to link only as far as it matters.
//!
//! Never here: what the bytes mean, peers, protocol.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

/// A link's number.
pub type LinkId = u32;
/// A flow's number; reused after the flow has ended.
pub type FlowId = u32;

/// Fair levels that moved less than this fraction are left alone; it bounds how far from exact the shares may be.
const TOLERANCE: f64 = 0.005;
/// Links that are computed anew after one event at most; the rest waits for the next event.
const WAVE: usize = 400;
const NEVER: u64 = u64::MAX;

#[derive(Debug)]
struct Link {
    /// Bytes per second.
    capacity: f64,
    /// What a flow gets here that wants more; infinite while the link is not full.
    level: f64,
    flows: Vec<FlowId>,
    queued: bool,
}

#[derive(Debug, Default)]
struct Flow {
    up: LinkId,
    down: LinkId,
    at_up: u32,
    at_down: u32,
    rate: f64,
    /// Bytes moved and not taken yet.
    moved: f64,
    /// Bytes after which the flow is due.
    goal: f64,
    /// When `moved` was true.
    updated: u64,
    /// The earliest entry of the heap for it.
    scheduled: u64,
    /// Guards against heap entries of an earlier flow of this number.
    generation: u32,
    live: bool,
}

/// All links and flows.
#[derive(Debug, Default)]
pub struct Fluid {
    links: Vec<Link>,
    flows: Vec<Flow>,
    free: Vec<FlowId>,
    dirty: VecDeque<LinkId>,
    due: BinaryHeap<Reverse<(u64, FlowId, u32)>>,
}

impl Fluid {
    /// A new link of `capacity` bytes per second.
    pub fn link(&mut self, capacity: f64) -> LinkId {
        self.links.push(Link { capacity, level: f64::INFINITY, flows: vec![], queued: false });
        (self.links.len() - 1) as LinkId
    }

    /// What a link carries and what it can carry, bytes per second.
    pub fn load(&self, link: LinkId) -> (f64, f64) {
        let link = &self.links[link as usize];
        (link.flows.iter().map(|f| self.flows[*f as usize].rate).sum(), link.capacity)
    }

    /// Starts a flow that is due after `goal` bytes. It moves from the next [`settle`](Self::settle) on.
    pub fn start(&mut self, now: u64, up: LinkId, down: LinkId, goal: f64) -> FlowId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.flows.push(Flow::default());
            (self.flows.len() - 1) as FlowId
        });
        let (at_up, at_down) = (self.links[up as usize].flows.len(), self.links[down as usize].flows.len());
        let generation = self.flows[id as usize].generation;
        self.flows[id as usize] = Flow {
            up,
            down,
            at_up: at_up as u32,
            at_down: at_down as u32,
            goal,
            updated: now,
            scheduled: NEVER,
            generation,
            live: true,
            ..Flow::default()
        };
        self.links[up as usize].flows.push(id);
        self.links[down as usize].flows.push(id);
        self.mark(up);
        self.mark(down);
        id
    }

    /// Ends a flow.
    pub fn stop(&mut self, id: FlowId) {
        let flow = &mut self.flows[id as usize];
        flow.live = false;
        flow.generation = flow.generation.wrapping_add(1);
        let (up, down, at_up, at_down) = (flow.up, flow.down, flow.at_up as usize, flow.at_down as usize);
        self.links[up as usize].flows.swap_remove(at_up);
        if let Some(moved) = self.links[up as usize].flows.get(at_up) {
            self.flows[*moved as usize].at_up = at_up as u32;
        }
        self.links[down as usize].flows.swap_remove(at_down);
        if let Some(moved) = self.links[down as usize].flows.get(at_down) {
            self.flows[*moved as usize].at_down = at_down as u32;
        }
        self.free.push(id);
        self.mark(up);
        self.mark(down);
    }

    /// The bytes that a flow moved since they were last taken.
    pub fn take(&mut self, now: u64, id: FlowId) -> f64 {
        self.advance(now, id);
        std::mem::take(&mut self.flows[id as usize].moved)
    }

    /// The flow is due after `goal` more bytes. Call it right after [`take`](Self::take).
    pub fn set_goal(&mut self, id: FlowId, goal: f64) {
        self.flows[id as usize].goal = goal;
        self.schedule(id);
    }

    /// When the next flow is due, by the shares of the last [`settle`](Self::settle).
    pub fn next_due(&mut self) -> Option<u64> {
        while let Some(Reverse((at, id, generation))) = self.due.peek().copied() {
            let flow = &self.flows[id as usize];
            if flow.generation == generation && flow.live && flow.scheduled == at {
                let true_at = Self::due_at(flow);
                if true_at <= at {
                    return Some(at);
                }
                // it became slower since: look again later
                self.due.pop();
                self.flows[id as usize].scheduled = NEVER;
                self.schedule(id);
            } else {
                self.due.pop();
            }
        }
        None
    }

    /// Takes out the flow that [`next_due`](Self::next_due) told of.
    pub fn pop_due(&mut self) -> Option<FlowId> {
        let Reverse((_, id, _)) = self.due.pop()?;
        self.flows[id as usize].scheduled = NEVER;
        Some(id)
    }

    /// Gives every flow its share again after flows started and ended.
    pub fn settle(&mut self, now: u64) {
        for _ in 0..WAVE {
            let Some(id) = self.dirty.pop_front() else { return };
            self.links[id as usize].queued = false;
            self.level(now, id);
        }
    }

    fn mark(&mut self, id: LinkId) {
        let link = &mut self.links[id as usize];
        if !link.queued {
            link.queued = true;
            self.dirty.push_back(id);
        }
    }

    fn other(&self, id: LinkId, flow: FlowId) -> LinkId {
        let f = &self.flows[flow as usize];
        if f.up == id { f.down } else { f.up }
    }

    /// Fills one link: flows that get less elsewhere keep that, the others share the rest evenly.
    fn level(&mut self, now: u64, id: LinkId) {
        let flows = std::mem::take(&mut self.links[id as usize].flows);
        let capacity = self.links[id as usize].capacity;
        let mut level = capacity / flows.len().max(1) as f64;
        loop {
            let (mut taken, mut small) = (0.0, 0);
            for flow in &flows {
                let there = self.links[self.other(id, *flow) as usize].level;
                if there < level {
                    taken += there;
                    small += 1;
                }
            }
            if small == flows.len() {
                level = f64::INFINITY;
                break;
            }
            let next = (capacity - taken) / (flows.len() - small) as f64;
            if next <= level * (1.0 + 1e-9) {
                break;
            }
            level = next;
        }
        let old = self.links[id as usize].level;
        let moved = if old.is_finite() && level.is_finite() {
            (level - old).abs() > TOLERANCE * old
        } else {
            old.is_finite() != level.is_finite()
        };
        if moved {
            self.links[id as usize].level = level;
        }
        let level = self.links[id as usize].level;
        for flow in &flows {
            let other = self.other(id, *flow);
            let there = self.links[other as usize].level;
            let mut rate = level.min(there);
            if !rate.is_finite() {
                rate = capacity / flows.len() as f64;
            }
            if rate != self.flows[*flow as usize].rate {
                self.advance(now, *flow);
                let f = &mut self.flows[*flow as usize];
                f.rate = rate;
                self.schedule(*flow);
            }
            // what this link gives matters there only where it is, or was, the smaller one
            if moved && old.min(level) < there * (1.0 + TOLERANCE) {
                self.mark(other);
            }
        }
        self.links[id as usize].flows = flows;
    }

    fn advance(&mut self, now: u64, id: FlowId) {
        let flow = &mut self.flows[id as usize];
        flow.moved += flow.rate * (now - flow.updated) as f64 * 1e-9;
        flow.updated = now;
    }

    fn due_at(flow: &Flow) -> u64 {
        if flow.rate <= 0.0 {
            return NEVER;
        }
        let rest = (flow.goal - flow.moved).max(0.0);
        flow.updated.saturating_add((rest / flow.rate * 1e9).ceil() as u64)
    }

    fn schedule(&mut self, id: FlowId) {
        let flow = &mut self.flows[id as usize];
        let at = Self::due_at(flow);
        if at < flow.scheduled {
            flow.scheduled = at;
            self.due.push(Reverse((at, id, flow.generation)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(fluid: &Fluid, id: FlowId) -> f64 {
        fluid.flows[id as usize].rate
    }

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() <= 0.01 * b
    }

    #[test]
    fn shares_are_max_min_fair() {
        let mut f = Fluid::default();
        let (up1, up2) = (f.link(100.0), f.link(100.0));
        let (d1, d2, d3) = (f.link(30.0), f.link(1000.0), f.link(1000.0));
        let a = f.start(0, up1, d1, 1e9);
        let b = f.start(0, up1, d2, 1e9);
        let c = f.start(0, up2, d1, 1e9);
        let d = f.start(0, up2, d3, 1e9);
        f.settle(0);
        // the downlink of 30 is shared by a and c, the uplinks' rest goes to b and d
        for (flow, share) in [(a, 15.0), (b, 85.0), (c, 15.0), (d, 85.0)] {
            assert!(near(rate(&f, flow), share), "{flow}: {}", rate(&f, flow));
        }
        f.stop(a);
        f.settle(0);
        for (flow, share) in [(b, 100.0), (c, 30.0), (d, 70.0)] {
            assert!(near(rate(&f, flow), share), "{flow}: {}", rate(&f, flow));
        }
    }

    #[test]
    fn flows_are_due_when_their_bytes_are_through() {
        let mut f = Fluid::default();
        let (up, down) = (f.link(100.0), f.link(100.0));
        let a = f.start(0, up, down, 100.0);
        f.settle(0);
        assert_eq!(f.next_due(), Some(1_000_000_000));
        let b = f.start(500_000_000, up, down, 1000.0);
        f.settle(500_000_000);
        // half of it is through; the rest goes at half the rate
        assert_eq!(f.next_due(), Some(1_500_000_000));
        assert_eq!(f.pop_due(), Some(a));
        assert!(near(f.take(1_500_000_000, a), 100.0));
        assert!(near(f.take(1_500_000_000, b), 50.0));
    }

    #[test]
    fn no_link_carries_more_than_it_can() {
        let mut rng = crate::rng::Rng::new(5);
        let mut f = Fluid::default();
        let n = 30;
        let links: Vec<LinkId> = (0..2 * n).map(|_| f.link(10.0 + 90.0 * rng.unit())).collect();
        let mut flows = vec![];
        for step in 0..2000 {
            if flows.len() > 150 || (!flows.is_empty() && rng.below(2) == 0) {
                let gone = rng.below(flows.len());
                f.stop(flows.swap_remove(gone));
            } else {
                flows.push(f.start(step, links[rng.below(n)], links[n + rng.below(n)], 1e9));
            }
            while !f.dirty.is_empty() {
                f.settle(step);
            }
            for link in &f.links {
                let sum: f64 = link.flows.iter().map(|id| rate(&f, *id)).sum();
                assert!(sum <= link.capacity * 1.02, "{sum} of {}", link.capacity);
            }
            // nobody could get more: one end of every flow is full
            for id in &flows {
                let flow = &f.flows[*id as usize];
                let full = |l: LinkId| {
                    let link = &f.links[l as usize];
                    link.flows.iter().map(|id| rate(&f, *id)).sum::<f64>() >= link.capacity * 0.97
                };
                assert!(full(flow.up) || full(flow.down));
            }
        }
    }
}
