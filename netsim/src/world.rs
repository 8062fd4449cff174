//! The simulated swarm: peers that run the product's scheduler core, and what its driver does around it, as events in time.
//!
//! As in the driver: a peer joins, learns the tree and the others from the seed, announces a leaf once it is whole,
//! asks in batches that are answered in turns, which end when the last byte was acknowledged; connections share an uplink
//! evenly; a cancelled request stops when the word reaches the server. `serving` is the serving side, `results` what it came
//! to. Never here: a decision of the scheduler.

mod results;
mod serving;

use crate::{
    fluid::{FlowId, Fluid, LinkId},
    report::Outcome,
    rng::Rng,
    scenario::{Kind, Options, PeerPlan, Scenario, Serving},
};
use fixedbitset::FixedBitSet;
use shoal_transfer::{
    choke::{Account, Choker, Policy, Verdict},
    haves::{Haves, News, Pace},
    swarm::{Action, BatchId, PeerIx, Swarm, SwarmConfig},
    turns::{TurnId, Turns},
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    ops::Range,
    sync::Arc,
    time::Duration,
};

/// From the last byte of a leaf to its announcement: verifying and writing.
const VERIFY_NS: u64 = 1_000_000;
/// From joining to taking part, in one-way delays: the handshake with the seed, the request for the tree and its answer,
/// the introduction and the handshakes with the others, which overlap.
const START_DELAYS: u64 = 6;
/// A line of a trace stands for so long.
const TRACE_NS: u64 = 500_000_000;
/// A run that takes so many times the ideal time has failed.
const GIVE_UP: f64 = 20.0;

#[derive(Debug)]
enum Event {
    Join(u32),
    Start(u32),
    /// Two peers connect.
    Meet(u32, u32),
    Leave(u32),
    /// `peer` notices that `gone` has left.
    Gone {
        peer: u32,
        gone: u32,
    },
    Request {
        server: u32,
        client: u32,
        batch: BatchId,
        leaves: Vec<u32>,
    },
    Cancel {
        server: u32,
        client: u32,
        batch: BatchId,
    },
    Leaf {
        client: u32,
        server: u32,
        batch: BatchId,
        leaf: u32,
        bytes: f64,
    },
    Refused {
        client: u32,
        server: u32,
        batch: BatchId,
    },
    Have {
        from: u32,
        news: News<u32>,
        /// What the sender knows of how long requests wait there.
        load: Option<Duration>,
    },
    Interested {
        from: u32,
        to: u32,
        yes: bool,
    },
    /// `from` tells `to` whether a seeder is among its peers.
    Reach {
        from: u32,
        to: u32,
        yes: bool,
    },
    Choke {
        from: u32,
        to: u32,
        yes: bool,
    },
    /// The last byte of an answer was acknowledged.
    Acknowledged {
        server: u32,
        turn: TurnId,
    },
    Timer(u32),
    HaveTimer(u32),
    ChokeTimer(u32),
    TurnTimer(u32),
}

/// An answer that is being sent.
#[derive(Debug)]
struct Answer {
    turn: TurnId,
    batch: BatchId,
    leaves: Vec<u32>,
    at: usize,
    /// Bytes of the current leaf that are still to be sent, and those sent that the client has not been told of.
    left: f64,
    untold: f64,
}

/// What a serving peer keeps for one client.
#[derive(Debug, Default)]
struct Conn {
    flow: Option<FlowId>,
    waiting: VecDeque<(BatchId, Vec<u32>)>,
    /// Requests that wait for their turn.
    turning: BTreeMap<TurnId, (BatchId, Vec<u32>)>,
    active: Vec<Answer>,
}

struct Node {
    plan: PeerPlan,
    up: LinkId,
    down: LinkId,
    present: bool,
    swarm: Option<Box<Swarm>>,
    have: FixedBitSet,
    neighbours: BTreeSet<u32>,
    /// Requests on their way: whom, and how many leaves are still to come.
    open: BTreeMap<BatchId, (u32, usize)>,
    timer: u64,
    fresh: Haves<u32>,
    have_timer: u64,
    done_at: Option<u64>,
    conns: BTreeMap<u32, Conn>,
    turns: Turns<u32>,
    /// Whose turn that is.
    clients: BTreeMap<TurnId, u32>,
    /// Those that began last, and when.
    begun: Vec<TurnId>,
    begun_at: u64,
    turn_timer: u64,
    choker: Choker<u32>,
    choke_timer: u64,
    choked: BTreeSet<u32>,
    /// Bytes that each of the others sent to it.
    given: BTreeMap<u32, f64>,
    sent: f64,
    received: f64,
}

/// A simulation.
pub struct World {
    options: Options,
    scenario: Scenario,
    sizes: Arc<[u32]>,
    config: SwarmConfig,
    serving: Serving,
    latency: u64,
    now: u64,
    number: u64,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    /// Events by the index in the queue; slots are reused.
    events: Vec<Option<Event>>,
    free: Vec<usize>,
    fluid: Fluid,
    nodes: Vec<Node>,
    /// Server and client of each flow.
    flows: Vec<(u32, u32)>,
    rng: Rng,
    waiting_for: usize,
    /// Leaves that some peer beside the seed has.
    seen: FixedBitSet,
    drops: u64,
    handled: u64,
    digest: u64,
}

fn seconds(ns: u64) -> f64 {
    ns as f64 * 1e-9
}

fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

/// A peer's tag for striping, as good as a hash of its identity.
fn tag(seed: u64, node: u32) -> u64 {
    Rng::new(seed ^ (u64::from(node) << 32) ^ 0x7a67).bits()
}

impl World {
    /// The scenario of `options`, before its first event.
    pub fn new(options: &Options) -> Self {
        let scenario = options.scenario();
        let mut fluid = Fluid::default();
        let leaves = scenario.sizes.len();
        let nodes: Vec<Node> = (scenario.peers.iter())
            .map(|plan| {
                let mut have = FixedBitSet::with_capacity(leaves);
                if matches!(plan.kind, Kind::Seed | Kind::Corrupter) {
                    have.insert_range(..);
                }
                Node {
                    up: fluid.link(plan.up),
                    down: fluid.link(plan.down),
                    plan: plan.clone(),
                    present: false,
                    swarm: None,
                    have,
                    neighbours: BTreeSet::new(),
                    open: BTreeMap::new(),
                    timer: u64::MAX,
                    fresh: Haves::default(),
                    have_timer: u64::MAX,
                    done_at: None,
                    conns: BTreeMap::new(),
                    turns: Turns::default(),
                    clients: BTreeMap::new(),
                    begun: vec![],
                    begun_at: 0,
                    turn_timer: u64::MAX,
                    choker: Choker::new(options.serving.upload_slots, options.serving.policy),
                    choke_timer: u64::MAX,
                    choked: BTreeSet::new(),
                    given: BTreeMap::new(),
                    sent: 0.0,
                    received: 0.0,
                }
            })
            .collect();
        let waiting_for = nodes.iter().filter(|n| n.must_finish()).count();
        World {
            options: options.clone(),
            sizes: scenario.sizes.clone().into(),
            config: options.swarm.clone(),
            serving: options.serving,
            latency: nanos(options.latency),
            scenario,
            now: 0,
            number: 0,
            queue: BinaryHeap::new(),
            events: vec![],
            free: vec![],
            fluid,
            nodes,
            flows: vec![],
            rng: Rng::new(options.seed ^ 0xbeef),
            waiting_for,
            seen: FixedBitSet::with_capacity(leaves),
            drops: 0,
            handled: 0,
            digest: 0,
        }
    }

    /// Runs until every peer that stays has everything, or no end is in sight.
    pub fn run(mut self) -> Outcome {
        for node in 0..self.nodes.len() as u32 {
            let plan = &self.nodes[node as usize].plan;
            let (joins, leaves) = (nanos(plan.joins), plan.leaves.map(nanos));
            self.at(joins, Event::Join(node));
            if let Some(leaves) = leaves {
                self.at(leaves, Event::Leave(node));
            }
        }
        let limit = nanos(self.scenario.ideal * GIVE_UP);
        while self.waiting_for > 0 {
            let event = self.queue.peek().map(|Reverse((at, _, _))| *at);
            let due = self.fluid.next_due();
            let Some(next) = event.into_iter().chain(due).min().filter(|t| *t <= limit) else { break };
            if self.options.trace && next / TRACE_NS > self.now / TRACE_NS {
                self.trace(next);
            }
            self.now = self.now.max(next);
            self.handled += 1;
            if due == Some(next) {
                if let Some(flow) = self.fluid.pop_due() {
                    self.due(flow);
                }
            } else if let Some(Reverse((_, _, slot))) = self.queue.pop()
                && let Some(event) = self.events[slot].take()
            {
                self.free.push(slot);
                self.handle(event);
            }
            self.fluid.settle(self.now);
        }
        self.outcome()
    }

    fn at(&mut self, time: u64, event: Event) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[slot] = Some(event);
        self.number += 1;
        self.queue.push(Reverse((time, self.number, slot)));
    }

    fn soon(&mut self, event: Event) {
        self.at(self.now + self.latency, event);
    }

    fn handle(&mut self, event: Event) {
        let now = Duration::from_nanos(self.now);
        match event {
            Event::Join(node) => self.at(self.now + START_DELAYS * self.latency, Event::Start(node)),
            Event::Start(node) => self.start(node),
            Event::Meet(one, other) => {
                if self.nodes[one as usize].present && self.nodes[other as usize].present {
                    self.meet(one, other);
                    self.drive(one);
                }
            }
            Event::Leave(node) => self.leave(node),
            Event::Gone { peer, gone } => self.gone(peer, gone),
            Event::Request { server, client, batch, leaves } => self.request(server, client, batch, leaves),
            Event::Cancel { server, client, batch } => self.cancelled(server, client, batch),
            Event::Leaf { client, server, batch, leaf, bytes } => self.leaf(client, server, batch, leaf, bytes),
            Event::Refused { client, server, batch } => {
                if self.nodes[client as usize].open.remove(&batch).is_some()
                    && let Some(swarm) = &mut self.nodes[client as usize].swarm
                {
                    swarm.handle_ended(now, PeerIx(server), batch, true);
                    self.drive(client);
                }
            }
            Event::Have { from, news, load } => self.have(from, &news, load),
            Event::Interested { from, to, yes } => {
                if self.nodes[to as usize].neighbours.contains(&from) {
                    let verdicts = self.nodes[to as usize].choker.handle_interested(now, from, yes);
                    self.choke(to, verdicts);
                }
            }
            Event::Reach { from, to, yes } => {
                if let Some(swarm) = &mut self.nodes[to as usize].swarm {
                    swarm.handle_reach(now, PeerIx(from), yes);
                    self.drive(to);
                }
            }
            Event::Choke { from, to, yes } => {
                if let Some(swarm) = &mut self.nodes[to as usize].swarm {
                    swarm.handle_choke(now, PeerIx(from), yes);
                    self.drive(to);
                }
            }
            Event::Acknowledged { server, turn } => self.turn_ended(server, turn),
            Event::TurnTimer(node) => self.turn_timer(node),
            Event::Timer(node) => self.timer(node),
            Event::HaveTimer(node) => {
                self.nodes[node as usize].have_timer = u64::MAX;
                self.announce(node);
            }
            Event::ChokeTimer(node) => {
                self.nodes[node as usize].choke_timer = u64::MAX;
                let verdicts = self.nodes[node as usize].choker.handle_timeout(now);
                self.choke(node, verdicts);
            }
        }
    }

    // ---- coming and going ----

    fn start(&mut self, id: u32) {
        let node = &mut self.nodes[id as usize];
        node.present = true;
        if matches!(node.plan.kind, Kind::Leecher | Kind::FreeRider) {
            let mut wanted = FixedBitSet::with_capacity(self.sizes.len());
            wanted.insert_range(..);
            let tag = tag(self.options.seed, id);
            let swarm = Swarm::new(self.config.clone(), tag, self.sizes.clone(), &wanted, &node.have);
            node.swarm = Some(Box::new(swarm));
        }
        let mut others: Vec<u32> =
            (0..self.nodes.len() as u32).filter(|o| *o != id && self.nodes[*o as usize].present).collect();
        if let Some(degree) = self.options.degree {
            // each newcomer dials half of what it may have; the other half dials it
            let dialled = self.rng.choose(others.len(), degree.div_ceil(2));
            others = dialled
                .into_iter()
                .map(|i| others[i])
                .filter(|o| self.nodes[*o as usize].neighbours.len() < degree)
                .collect();
            others.sort_unstable();
        }
        for other in others {
            let longest = self.options.meeting;
            if longest == 0.0 || self.nodes[other as usize].plan.kind == Kind::Seed {
                self.meet(id, other);
            } else {
                let wait = nanos(longest * self.rng.unit());
                self.at(self.now + wait, Event::Meet(id, other));
            }
        }
        self.drive(id);
    }

    fn meet(&mut self, id: u32, other: u32) {
        for (one, other) in [(id, other), (other, id)] {
            self.nodes[one as usize].neighbours.insert(other);
            self.nodes[one as usize].fresh.handle_peer(other);
        }
        self.introduce(id, other);
        self.introduce(other, id);
        self.drive(other);
    }

    /// `who` hears of `peer` and of what it has.
    fn introduce(&mut self, who: u32, peer: u32) {
        let now = Duration::from_nanos(self.now);
        let Some(mut swarm) = self.nodes[who as usize].swarm.take() else { return };
        let there = &self.nodes[peer as usize];
        swarm.handle_peer(now, PeerIx(peer), tag(self.options.seed, peer), Duration::from_nanos(2 * self.latency));
        if there.plan.kind != Kind::FreeRider && !swarm.handle_have(now, PeerIx(peer), &ranges(&there.have)) {
            unreachable!("haves are of the same content");
        }
        self.nodes[who as usize].swarm = Some(swarm);
    }

    fn leave(&mut self, id: u32) {
        let node = &mut self.nodes[id as usize];
        if !node.present {
            return;
        }
        node.present = false;
        node.swarm = None;
        let neighbours = std::mem::take(&mut node.neighbours);
        for peer in neighbours {
            self.nodes[peer as usize].neighbours.remove(&id);
            self.nodes[peer as usize].fresh.handle_gone(id);
            self.close(id, peer);
            self.close(peer, id);
            self.soon(Event::Gone { peer, gone: id });
        }
    }

    fn gone(&mut self, peer: u32, gone: u32) {
        let now = Duration::from_nanos(self.now);
        let node = &mut self.nodes[peer as usize];
        node.open.retain(|_, (server, _)| *server != gone);
        let verdicts = node.choker.handle_gone(now, gone);
        if let Some(swarm) = &mut node.swarm {
            swarm.handle_gone(now, PeerIx(gone));
        }
        self.choke(peer, verdicts);
        self.drive(peer);
    }

    /// `peer` ends its connection with `other`.
    fn unlink(&mut self, peer: u32, other: u32) {
        if self.nodes[peer as usize].neighbours.remove(&other) {
            self.nodes[other as usize].neighbours.remove(&peer);
            self.nodes[peer as usize].fresh.handle_gone(other);
            self.nodes[other as usize].fresh.handle_gone(peer);
            self.close(peer, other);
            self.close(other, peer);
            self.nodes[peer as usize].open.retain(|_, (server, _)| *server != other);
            self.soon(Event::Gone { peer: other, gone: peer });
        }
    }

    /// Whatever `server` was sending to `client` stops.
    fn close(&mut self, server: u32, client: u32) {
        self.progress(server, client);
        let node = &mut self.nodes[server as usize];
        node.choked.remove(&client);
        let Some(conn) = node.conns.remove(&client) else { return };
        if let Some(flow) = conn.flow {
            self.fluid.stop(flow);
        }
        for turn in conn.turning.into_keys().chain(conn.active.into_iter().map(|answer| answer.turn)) {
            self.turn_ended(server, turn);
        }
    }

    // ---- fetching ----

    fn leaf(&mut self, client: u32, server: u32, batch: BatchId, leaf: u32, bytes: f64) {
        let now = Duration::from_nanos(self.now);
        let corrupt = self.nodes[server as usize].plan.kind == Kind::Corrupter;
        let node = &mut self.nodes[client as usize];
        let Some((_, left)) = node.open.get_mut(&batch) else { return };
        *left -= 1;
        if *left == 0 {
            node.open.remove(&batch);
        }
        let Some(swarm) = &mut node.swarm else { return };
        let peer = PeerIx(server);
        swarm.handle_bytes(now, peer, bytes.round() as u64);
        if node.have.contains(leaf as usize) {
            swarm.handle_duplicate(now, peer, batch, leaf);
        } else {
            let _wanted = swarm.handle_arrived(now, peer, batch, leaf);
            if corrupt {
                swarm.handle_corrupt(now, peer, leaf);
            } else {
                swarm.handle_verified(now, peer, leaf);
                node.have.insert(leaf as usize);
                if node.plan.kind == Kind::Leecher {
                    self.seen.insert(leaf as usize);
                    node.fresh.handle_leaf(leaf);
                    self.announce(client);
                }
            }
        }
        self.drive(client);
        if self.options.seed_leaves && self.nodes[0].present && self.seen.is_full() {
            self.leave(0);
        }
    }

    /// Tells others what came to `id`, if it is time to.
    fn announce(&mut self, id: u32) {
        let now = Duration::from_nanos(self.now);
        let node = &mut self.nodes[id as usize];
        let whole = node.swarm.as_ref().is_none_or(|swarm| swarm.is_complete());
        let rare = |leaf| node.swarm.as_ref().is_some_and(|swarm| swarm.is_rare(leaf));
        let urgent = whole || node.fresh.waiting().any(rare);
        let load = node.turns.backlog();
        let pace = if urgent { Pace::Urgent } else { Pace::of(load) };
        let news = node.fresh.poll_news(now, pace);
        if let Some(at) = node.fresh.poll_timeout(pace) {
            let at = (at.as_nanos() as u64).max(self.now + 1);
            if at < node.have_timer {
                node.have_timer = at;
                self.at(at, Event::HaveTimer(id));
            }
        }
        for news in news {
            self.soon(Event::Have { from: id, news, load });
        }
    }

    fn have(&mut self, from: u32, news: &News<u32>, load: Option<Duration>) {
        let ranges: Vec<Range<u32>> = news.leaves.iter().map(|leaf| *leaf..*leaf + 1).collect();
        let now = Duration::from_nanos(self.now);
        for peer in &news.peers {
            if self.nodes[from as usize].neighbours.contains(peer)
                && let Some(swarm) = &mut self.nodes[*peer as usize].swarm
            {
                if !swarm.handle_have(now, PeerIx(from), &ranges) {
                    unreachable!("haves are of the same content");
                }
                if let Some(load) = load {
                    swarm.handle_load(now, PeerIx(from), load);
                }
                self.drive(*peer);
            }
        }
    }

    /// Carries out what the scheduler of `id` decided.
    fn drive(&mut self, id: u32) {
        let now = Duration::from_nanos(self.now);
        loop {
            let Some(swarm) = &mut self.nodes[id as usize].swarm else { return };
            let Some(action) = swarm.poll_action(now) else { break };
            match action {
                Action::Request { peer, batch, leaves } => {
                    self.nodes[id as usize].open.insert(batch, (peer.0, leaves.len()));
                    self.soon(Event::Request { server: peer.0, client: id, batch, leaves });
                }
                Action::Cancel { peer, batch } => {
                    if self.nodes[id as usize].open.remove(&batch).is_some() {
                        self.soon(Event::Cancel { server: peer.0, client: id, batch });
                    }
                }
                Action::Interested { peer, yes } => {
                    if self.serving.upload_slots < self.nodes.len() || self.serving.policy == Policy::Reciprocal {
                        self.soon(Event::Interested { from: id, to: peer.0, yes });
                    }
                }
                Action::Reach { peer, yes } => self.soon(Event::Reach { from: id, to: peer.0, yes }),
                Action::Drop { peer, .. } => {
                    self.drops += 1;
                    self.unlink(id, peer.0);
                }
            }
        }
        let node = &mut self.nodes[id as usize];
        let Some(swarm) = &mut node.swarm else { return };
        if swarm.is_complete() {
            node.swarm = None;
            node.done_at = Some(self.now);
            let open = std::mem::take(&mut node.open);
            for (batch, (server, _)) in open {
                self.soon(Event::Cancel { server, client: id, batch });
            }
            if self.nodes[id as usize].must_finish() {
                self.waiting_for -= 1;
            }
            return;
        }
        if let Some(at) = swarm.poll_timeout() {
            let at = (at.as_nanos() as u64).max(self.now + 1);
            if at < node.timer {
                node.timer = at;
                self.at(at, Event::Timer(id));
            }
        }
    }

    fn timer(&mut self, id: u32) {
        let node = &mut self.nodes[id as usize];
        if node.timer > self.now {
            return;
        }
        node.timer = u64::MAX;
        // the driver hears of bytes as they come, not only of whole leaves
        let servers: BTreeSet<u32> = node.open.values().map(|(server, _)| *server).collect();
        let now = Duration::from_nanos(self.now);
        for server in servers {
            self.progress(server, id);
            self.aim(server, id);
            let Some(conn) = self.nodes[server as usize].conns.get_mut(&id) else { continue };
            let untold: f64 = conn.active.iter().map(|a| a.untold).sum();
            if untold >= 1500.0 {
                conn.active.iter_mut().for_each(|a| a.untold = 0.0);
                if let Some(swarm) = &mut self.nodes[id as usize].swarm {
                    swarm.handle_bytes(now, PeerIx(server), untold.round() as u64);
                }
            }
        }
        if let Some(swarm) = &mut self.nodes[id as usize].swarm {
            swarm.handle_timeout(now);
        }
        self.drive(id);
    }

    fn choke(&mut self, id: u32, verdicts: Vec<Verdict<u32>>) {
        for Verdict { peer, choke } in verdicts {
            if choke {
                self.nodes[id as usize].choked.insert(peer);
            } else {
                self.nodes[id as usize].choked.remove(&peer);
            }
            self.soon(Event::Choke { from: id, to: peer, yes: choke });
        }
        let node = &mut self.nodes[id as usize];
        if let Some(at) = node.choker.poll_timeout() {
            let at = (at.as_nanos() as u64).max(self.now + 1);
            if at < node.choke_timer {
                node.choke_timer = at;
                self.at(at, Event::ChokeTimer(id));
            }
        }
    }
}

impl Node {
    /// Whether the run waits for it.
    fn must_finish(&self) -> bool {
        self.plan.kind == Kind::Leecher && self.plan.leaves.is_none()
    }
}

/// A set as ranges.
fn ranges(set: &FixedBitSet) -> Vec<Range<u32>> {
    let mut out: Vec<Range<u32>> = vec![];
    for leaf in set.ones().map(|l| l as u32) {
        match out.last_mut() {
            Some(last) if last.end == leaf => last.end += 1,
            _ => out.push(leaf..leaf + 1),
        }
    }
    out
}
