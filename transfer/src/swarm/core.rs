//! The decisions of one fetch: picking, windows, end game, stalls, blame. Sans-IO; see [`Swarm`] for how to drive it.

use super::{
    peer::{Batch, Peer, PeerAccount},
    picker::Picker,
    stripe::{self, Tag},
};
use fixedbitset::FixedBitSet;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Range,
    sync::Arc,
    time::Duration,
};

/// The driver's number for a peer of this swarm; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerIx(pub u32);

/// A request on its way; never used twice in a swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub u64);

/// Settings of the scheduler. Sizes in bytes.
#[derive(Debug, Clone)]
pub struct SwarmConfig {
    /// Asked of a peer before its rate is known.
    pub initial_window: u64,
    /// A window never falls below this, so that a slow peer has the next leaf queued while it sends one.
    pub least_window: u64,
    /// A request holds at most about this much.
    pub largest_batch: u64,
    /// A request holds at most so many leaves.
    pub most_leaves: usize,
    /// Bounds of the adaptive time-out: a peer that was asked and sends nothing for so long has stalled.
    pub least_timeout: Duration,
    /// Upper bound of the adaptive time-out.
    pub most_timeout: Duration,
    /// A peer that was asked and sends nothing for so long is dropped even where nobody else has what it was asked for.
    pub patience: Duration,
    /// How long a peer that refused a request is left alone.
    pub refusal_pause: Duration,
}

impl Default for SwarmConfig {
    fn default() -> Self {
        SwarmConfig {
            initial_window: 2 << 20,
            least_window: 512 << 10,
            largest_batch: 2 << 20,
            most_leaves: 512,
            least_timeout: Duration::from_secs(1),
            most_timeout: Duration::from_secs(4),
            patience: Duration::from_secs(15),
            refusal_pause: Duration::from_millis(300),
        }
    }
}

/// Why a peer is to be let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// It sent bytes that are not the leaf it was asked for.
    Corrupt {
        /// Which leaf.
        leaf: u32,
    },
    /// It was asked and sent nothing for too long, more than once or past all patience.
    Stalled,
}

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask `peer` for `leaves` (ascending) in one request.
    Request {
        /// Whom.
        peer: PeerIx,
        /// Its number in later calls.
        batch: BatchId,
        /// Ascending leaf indexes.
        leaves: Vec<u32>,
    },
    /// Stop a request; what it still brings is not wanted.
    Cancel {
        /// Who was asked.
        peer: PeerIx,
        /// Which request.
        batch: BatchId,
    },
    /// Tell `peer` whether it has anything that is wanted.
    Interested {
        /// Whom.
        peer: PeerIx,
        /// Wants something.
        yes: bool,
    },
    /// Let `peer` go. The swarm has already taken back what it was asked for.
    Drop {
        /// Whom.
        peer: PeerIx,
        /// Why.
        reason: DropReason,
    },
}

/// How far a fetch is. Bytes of distinct leaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of all wanted leaves.
    pub bytes_wanted: u64,
    /// Bytes of the wanted leaves that are in place.
    pub bytes_done: u64,
    /// Wanted leaves.
    pub leaves_wanted: u32,
    /// Wanted leaves in place.
    pub leaves_done: u32,
    /// Bytes that arrived for nothing: second copies.
    pub bytes_duplicate: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaf {
    Unwanted,
    Needed,
    Asked,
    Arrived,
    Done,
}

/// The scheduler of one fetch.
///
/// Call `handle_*` with what happened and the time since an origin of the driver's choice, then
/// [`poll_action`](Self::poll_action) until it gives `None`, then wait for the next event or until
/// [`poll_timeout`](Self::poll_timeout) and call [`handle_timeout`](Self::handle_timeout). Times must not go backwards.
/// Nothing here looks at a clock; the same inputs give the same outputs.
#[derive(Debug)]
pub struct Swarm {
    config: SwarmConfig,
    me: Tag,
    sizes: Arc<[u32]>,
    leaves: Vec<Leaf>,
    picker: Picker,
    peers: BTreeMap<PeerIx, Peer>,
    /// Leaves in state `Asked`, and in which requests.
    asked: BTreeMap<u32, Vec<(PeerIx, BatchId)>>,
    /// Peers that may be able to take another request.
    ready: BTreeSet<PeerIx>,
    /// Peers that refused a request, and until when they are left alone.
    paused: BTreeMap<PeerIx, Duration>,
    actions: VecDeque<Action>,
    next_batch: u64,
    /// Tags of the connected leechers, for striping, and how far the round through the leaves is for this set of them.
    leechers: Vec<Tag>,
    round: u32,
    draws: u32,
    progress: Progress,
    bytes_needed: u64,
}

impl Swarm {
    /// A fetch of the `wanted` leaves, of which `have` are in place. `sizes` gives every leaf's length in bytes; `me` is
    /// this peer's own tag, as others know it.
    pub fn new(config: SwarmConfig, me: u64, sizes: Arc<[u32]>, wanted: &FixedBitSet, have: &FixedBitSet) -> Self {
        let count = sizes.len();
        let mut leaves = vec![Leaf::Unwanted; count];
        let mut progress = Progress::default();
        let mut bytes_needed = 0;
        for leaf in wanted.ones().filter(|l| *l < count) {
            let size = u64::from(sizes[leaf]);
            progress.bytes_wanted += size;
            progress.leaves_wanted += 1;
            if have.contains(leaf) {
                leaves[leaf] = Leaf::Done;
                progress.bytes_done += size;
                progress.leaves_done += 1;
            } else {
                leaves[leaf] = Leaf::Needed;
                bytes_needed += size;
            }
        }
        let first = stripe::first_leaf(me, count);
        let listed = (first..count as u32).chain(0..first).filter(|l| leaves[*l as usize] == Leaf::Needed);
        let picker = Picker::new(count, listed);
        Swarm {
            config,
            me,
            sizes,
            picker,
            leaves,
            peers: BTreeMap::new(),
            asked: BTreeMap::new(),
            ready: BTreeSet::new(),
            paused: BTreeMap::new(),
            actions: VecDeque::new(),
            next_batch: 0,
            leechers: vec![],
            round: 0,
            draws: 0,
            progress,
            bytes_needed,
        }
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Whether every wanted leaf is in place.
    pub fn is_complete(&self) -> bool {
        self.progress.leaves_done == self.progress.leaves_wanted
    }

    /// Whether `leaf` is in place.
    pub fn has(&self, leaf: u32) -> bool {
        self.leaves.get(leaf as usize) == Some(&Leaf::Done)
    }

    /// The account of a connected peer.
    pub fn account(&self, peer: PeerIx) -> Option<PeerAccount> {
        self.peers.get(&peer).map(Peer::account)
    }

    /// Bytes that are asked for and not delivered, over all peers.
    pub fn in_flight(&self) -> u64 {
        self.peers.values().map(|p| p.in_flight).sum()
    }

    /// A peer takes part. It has nothing until [`handle_have`](Self::handle_have) says so. `tag` is the same for all who
    /// know this peer.
    pub fn handle_peer(&mut self, now: Duration, peer: PeerIx, tag: u64, rtt: Duration) {
        self.peers.insert(peer, Peer::new(now, tag, self.sizes.len(), rtt));
        self.ready.insert(peer);
        self.count_leechers();
    }

    /// A peer is gone; what it was asked for is needed again.
    pub fn handle_gone(&mut self, _now: Duration, peer: PeerIx) {
        let Some(gone) = self.peers.remove(&peer) else { return };
        self.ready.remove(&peer);
        self.paused.remove(&peer);
        if !gone.is_seeder() {
            gone.have.ones().for_each(|leaf| self.picker.lost(leaf as u32));
        }
        for (batch, b) in gone.batches {
            self.release(peer, batch, &b.leaves);
        }
        self.count_leechers();
    }

    /// The path to `peer` has this round trip time at best.
    pub fn handle_rtt(&mut self, peer: PeerIx, rtt: Duration) {
        if let Some(p) = self.peers.get_mut(&peer) {
            p.set_rtt(rtt);
        }
    }

    /// `peer` says that it has `ranges`. False: a range runs past the last leaf, which is the peer's fault; nothing changed.
    #[must_use]
    pub fn handle_have(&mut self, _now: Duration, peer: PeerIx, ranges: &[Range<u32>]) -> bool {
        if ranges.iter().any(|r| r.end as usize > self.sizes.len()) {
            return false;
        }
        let Some(p) = self.peers.get_mut(&peer) else { return true };
        if p.is_seeder() {
            return true;
        }
        let mut fresh = vec![];
        for leaf in ranges.iter().cloned().flatten() {
            if !p.have.put(leaf as usize) {
                p.have_count += 1;
                fresh.push(leaf);
            }
        }
        if fresh.is_empty() {
            return true;
        }
        if p.is_seeder() {
            // seeders are not counted by the picker: take back what it was counted for as a leecher
            fresh.iter().for_each(|leaf| p.have.remove(*leaf as usize));
            p.have.ones().for_each(|leaf| self.picker.lost(leaf as u32));
            p.have.insert_range(..);
            p.candidates = vec![];
            self.count_leechers();
        } else {
            for leaf in fresh {
                self.picker.gained(leaf);
                if self.picker.contains(leaf) {
                    p.candidates.push(leaf);
                }
            }
        }
        self.ready.insert(peer);
        self.tell_interest(peer);
        true
    }

    /// `peer` says that it lacks `ranges`.
    pub fn handle_dont_have(&mut self, _now: Duration, peer: PeerIx, ranges: &[Range<u32>]) {
        let count = self.sizes.len() as u32;
        for leaf in ranges.iter().flat_map(|r| r.start..r.end.min(count)) {
            self.lacks(peer, leaf);
        }
        self.tell_interest(peer);
    }

    /// `peer` will not (or will again) serve requests.
    pub fn handle_choke(&mut self, _now: Duration, peer: PeerIx, choked: bool) {
        if let Some(p) = self.peers.get_mut(&peer) {
            p.choked = choked;
            if !choked {
                self.paused.remove(&peer);
                self.ready.insert(peer);
            }
        }
    }

    /// `bytes` more of what `peer` was asked for came in.
    pub fn handle_bytes(&mut self, now: Duration, peer: PeerIx, bytes: u64) {
        if let Some(p) = self.peers.get_mut(&peer) {
            p.delivered(now, bytes);
        }
    }

    /// A leaf of a request is here as a whole, not verified yet. False: it is not wanted (any more); do not write it.
    #[must_use]
    pub fn handle_arrived(&mut self, _now: Duration, peer: PeerIx, batch: BatchId, leaf: u32) -> bool {
        if !self.take_from_batch(peer, batch, leaf) {
            return false;
        }
        let Some(holders) = self.asked.remove(&leaf) else {
            self.progress.bytes_duplicate += u64::from(self.sizes[leaf as usize]);
            return false;
        };
        self.leaves[leaf as usize] = Leaf::Arrived;
        for (other, other_batch) in holders {
            if (other, other_batch) == (peer, batch) {
                continue;
            }
            let Some(p) = self.peers.get_mut(&other) else { continue };
            p.overtaken += 1;
            // a request that holds more is left to run: stopping it would cost its other leaves
            if p.batches.get(&other_batch).is_some_and(|b| b.leaves == [leaf]) {
                p.batches.remove(&other_batch);
                p.in_flight = p.in_flight.saturating_sub(u64::from(self.sizes[leaf as usize]));
                self.ready.insert(other);
                self.actions.push_back(Action::Cancel { peer: other, batch: other_batch });
            }
        }
        true
    }

    /// A leaf of a request came a second time, while another copy of it was being verified; it was thrown away.
    pub fn handle_duplicate(&mut self, _now: Duration, peer: PeerIx, batch: BatchId, leaf: u32) {
        self.progress.bytes_duplicate += u64::from(self.sizes[leaf as usize]);
        if self.take_from_batch(peer, batch, leaf) {
            self.unask(peer, batch, leaf);
        }
    }

    /// A leaf that arrived from `peer` was verified and is in place.
    pub fn handle_verified(&mut self, _now: Duration, peer: PeerIx, leaf: u32) {
        let size = u64::from(self.sizes[leaf as usize]);
        if let Some(p) = self.peers.get_mut(&peer) {
            p.bytes += size;
            p.leaves += 1;
        }
        self.done(leaf);
    }

    /// A leaf came from elsewhere (the local store) and is in place.
    pub fn handle_local(&mut self, _now: Duration, leaf: u32) {
        self.done(leaf);
    }

    /// A leaf that arrived from `peer` is not what its CID says: it is needed again, and the peer is to be dropped.
    pub fn handle_corrupt(&mut self, now: Duration, peer: PeerIx, leaf: u32) {
        if self.leaves[leaf as usize] == Leaf::Arrived {
            self.need(leaf);
        }
        self.drop_peer(now, peer, DropReason::Corrupt { leaf });
    }

    /// The answer to a request says that `peer` does not have `leaf`.
    pub fn handle_refused(&mut self, _now: Duration, peer: PeerIx, batch: BatchId, leaf: u32) {
        if self.take_from_batch(peer, batch, leaf) {
            self.unask(peer, batch, leaf);
        }
        self.lacks(peer, leaf);
        self.tell_interest(peer);
    }

    /// A request ended. What it did not bring is needed again; `refused`: the peer turned it down, so it is left alone
    /// for a while.
    pub fn handle_ended(&mut self, now: Duration, peer: PeerIx, batch: BatchId, refused: bool) {
        let Some(p) = self.peers.get_mut(&peer) else { return };
        let Some(b) = p.batches.remove(&batch) else { return };
        let bytes: u64 = b.leaves.iter().map(|l| u64::from(self.sizes[*l as usize])).sum();
        p.in_flight = p.in_flight.saturating_sub(bytes);
        if refused {
            self.paused.insert(peer, now + self.config.refusal_pause);
        }
        self.release(peer, batch, &b.leaves);
        self.ready.insert(peer);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, if nothing else happens first.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let stalls = self.peers.values().filter(|p| p.in_flight > 0).map(|p| p.last_active + self.time_to_stall(p));
        stalls.chain(self.paused.values().copied()).min()
    }

    /// Time has passed: peers that stalled lose what they were asked for to peers that can deliver it.
    pub fn handle_timeout(&mut self, now: Duration) {
        let over: Vec<PeerIx> = self.paused.iter().filter(|(_, until)| **until <= now).map(|(p, _)| *p).collect();
        for peer in over {
            self.paused.remove(&peer);
            self.ready.insert(peer);
        }
        let stalled: Vec<PeerIx> = (self.peers.iter())
            .filter(|(_, p)| p.in_flight > 0 && p.last_active + self.time_to_stall(p) <= now)
            .map(|(ix, _)| *ix)
            .collect();
        for peer in stalled {
            self.stalled(now, peer);
        }
    }

    /// The next thing to do. Actions for one peer come in order.
    pub fn poll_action(&mut self, now: Duration) -> Option<Action> {
        while self.actions.is_empty() {
            let peer = self.ready.pop_first()?;
            self.fill(now, peer);
        }
        self.actions.pop_front()
    }

    // ---- picking ----

    /// Asks `peer` for as much as its window takes.
    fn fill(&mut self, now: Duration, peer: PeerIx) {
        if self.paused.contains_key(&peer) {
            return;
        }
        loop {
            let peers = self.peers.len() as u64;
            let Some(p) = self.peers.get(&peer) else { return };
            let window = p.window(self.config.initial_window, self.config.least_window);
            if p.choked || p.in_flight >= window {
                return;
            }
            // towards the end requests shrink, so that no peer sits on much of the rest
            let share = self.bytes_needed / (2 * peers);
            let target = if p.snubbed {
                1
            } else {
                p.batch_bytes(self.config.largest_batch).min(share).min(window - p.in_flight)
            };
            let mut leaves = vec![];
            let mut bytes = 0;
            while leaves.len() < self.config.most_leaves && (leaves.is_empty() || bytes < target) {
                let Some(leaf) = self.pick(peer) else { break };
                self.picker.remove(leaf);
                self.bytes_needed -= u64::from(self.sizes[leaf as usize]);
                bytes += u64::from(self.sizes[leaf as usize]);
                leaves.push(leaf);
            }
            if leaves.is_empty() {
                let Some(leaf) = self.pick_twice(peer) else { return };
                bytes = u64::from(self.sizes[leaf as usize]);
                leaves.push(leaf);
            }
            self.request(now, peer, leaves, bytes);
        }
    }

    fn request(&mut self, now: Duration, peer: PeerIx, mut leaves: Vec<u32>, bytes: u64) {
        leaves.sort_unstable();
        let batch = BatchId(self.next_batch);
        self.next_batch += 1;
        for leaf in &leaves {
            self.leaves[*leaf as usize] = Leaf::Asked;
            self.asked.entry(*leaf).or_default().push((peer, batch));
        }
        if let Some(p) = self.peers.get_mut(&peer) {
            p.asked(now, bytes);
            p.batches.insert(batch, Batch { leaves: leaves.clone() });
        }
        self.actions.push_back(Action::Request { peer, batch, leaves });
    }

    /// The leaf to ask `peer` for next, still listed in the picker.
    fn pick(&mut self, peer: PeerIx) -> Option<u32> {
        if self.picker.len() == 0 {
            return None;
        }
        if self.peers.get(&peer)?.is_seeder() { self.pick_at_seeder() } else { self.pick_at_leecher(peer) }
    }

    /// At a seeder: what no leecher has, first this peer's own stripe of it, then what others would ask for last; when
    /// leechers have everything, the rarest.
    fn pick_at_seeder(&mut self) -> Option<u32> {
        let count = self.sizes.len() as u32;
        let first = stripe::first_leaf(self.me, count as usize);
        while self.round < count {
            let leaf = (first + self.round) % count;
            self.round += 1;
            if self.picker.contains(leaf)
                && self.picker.availability(leaf) == 0
                && stripe::owns(leaf, self.me, &self.leechers)
            {
                return Some(leaf);
            }
        }
        let unique = self.picker.only_at_seeders().len();
        let draws: Vec<usize> = (0..SAMPLE.min(unique)).map(|_| self.draw(unique)).collect();
        let sample = draws.into_iter().map(|at| self.picker.only_at_seeders()[at]);
        let last = sample.max_by_key(|leaf| {
            let owner =
                self.leechers.iter().copied().max_by_key(|t| (stripe::weight(*leaf, *t), *t)).unwrap_or(self.me);
            let begin = stripe::first_leaf(owner, count as usize);
            ((u64::from(*leaf) + u64::from(count - begin)) % u64::from(count), *leaf)
        });
        last.or_else(|| self.picker.rarest_first().first().copied())
    }

    /// At a leecher: the rarest of a few of the leaves that it announced.
    fn pick_at_leecher(&mut self, peer: PeerIx) -> Option<u32> {
        let mut candidates = std::mem::take(&mut self.peers.get_mut(&peer)?.candidates);
        let mut best: Option<(u16, usize)> = None;
        let mut looked = 0;
        while looked < SAMPLE && !candidates.is_empty() {
            let at = self.draw(candidates.len());
            let leaf = candidates[at];
            if !self.picker.contains(leaf) || !self.peers.get(&peer)?.has(leaf) {
                // each announcement is dropped once, so this costs nothing in the long run
                candidates.swap_remove(at);
                best = None;
                continue;
            }
            looked += 1;
            let rarity = self.picker.availability(leaf);
            if best.is_none_or(|(b, _)| rarity < b) {
                best = Some((rarity, at));
            }
        }
        let leaf = best.map(|(_, at)| candidates.swap_remove(at));
        if let Some(p) = self.peers.get_mut(&peer) {
            p.candidates = candidates;
        }
        leaf
    }

    /// End game: everything is asked for. A leaf that `peer` would bring well before the one who was asked is asked for
    /// a second time; who comes first wins, the other request is cancelled.
    fn pick_twice(&self, peer: PeerIx) -> Option<u32> {
        let p = self.peers.get(&peer)?;
        if self.picker.len() > 0 || p.snubbed || self.peers.len() < 2 {
            return None;
        }
        let mut best: Option<(f64, u32)> = None;
        for (leaf, holders) in &self.asked {
            let [(holder, _)] = holders[..] else { continue };
            if holder == peer || !p.has(*leaf) {
                continue;
            }
            let Some(h) = self.peers.get(&holder) else { continue };
            let theirs = if h.snubbed { f64::INFINITY } else { h.eta(0) };
            let ours = p.eta(u64::from(self.sizes[*leaf as usize]));
            if theirs > 2.0 * ours && best.is_none_or(|(b, _)| theirs > b) {
                best = Some((theirs, *leaf));
            }
        }
        best.map(|(_, leaf)| leaf)
    }

    /// A number below `below`, the same in each run with the same inputs.
    fn draw(&mut self, below: usize) -> usize {
        self.draws = self.draws.wrapping_add(1);
        ((u128::from(stripe::weight(self.draws, self.me)) * below as u128) >> 64) as usize
    }

    // ---- accounts ----

    fn time_to_stall(&self, p: &Peer) -> Duration {
        if p.snubbed {
            return self.config.patience;
        }
        p.timeout(self.config.least_timeout, self.config.most_timeout)
    }

    /// `peer` sent nothing for too long: what others can deliver is taken from it. One that stalls again, or whose
    /// leaves nobody else has, is dropped when patience ends.
    fn stalled(&mut self, now: Duration, peer: PeerIx) {
        let Some(p) = self.peers.get(&peer) else { return };
        if p.snubbed {
            self.drop_peer(now, peer, DropReason::Stalled);
            return;
        }
        let others = |leaf: u32| self.peers.iter().any(|(ix, o)| *ix != peer && !o.choked && !o.snubbed && o.has(leaf));
        let movable: Vec<BatchId> =
            p.batches.iter().filter(|(_, b)| b.leaves.iter().any(|l| others(*l))).map(|(id, _)| *id).collect();
        for batch in movable {
            self.actions.push_back(Action::Cancel { peer, batch });
            self.handle_ended(now, peer, batch, false);
        }
        if let Some(p) = self.peers.get_mut(&peer) {
            p.snubbed = true;
        }
    }

    fn drop_peer(&mut self, now: Duration, peer: PeerIx, reason: DropReason) {
        if self.peers.contains_key(&peer) {
            self.handle_gone(now, peer);
            self.actions.push_back(Action::Drop { peer, reason });
        }
    }

    /// Takes `leaf` out of a request's list; false if it is not in it.
    fn take_from_batch(&mut self, peer: PeerIx, batch: BatchId, leaf: u32) -> bool {
        let Some(p) = self.peers.get_mut(&peer) else { return false };
        let Some(b) = p.batches.get_mut(&batch) else { return false };
        let Some(at) = b.leaves.iter().position(|l| *l == leaf) else { return false };
        b.leaves.remove(at);
        if b.leaves.is_empty() {
            p.batches.remove(&batch);
        }
        p.in_flight = p.in_flight.saturating_sub(u64::from(self.sizes[leaf as usize]));
        self.ready.insert(peer);
        true
    }

    fn release(&mut self, peer: PeerIx, batch: BatchId, leaves: &[u32]) {
        for leaf in leaves {
            self.unask(peer, batch, *leaf);
        }
    }

    /// One request for `leaf` is void; without another one it is needed again.
    fn unask(&mut self, peer: PeerIx, batch: BatchId, leaf: u32) {
        let Some(holders) = self.asked.get_mut(&leaf) else { return };
        holders.retain(|h| *h != (peer, batch));
        if holders.is_empty() {
            self.asked.remove(&leaf);
            self.need(leaf);
        }
    }

    /// `leaf` is to be asked for again.
    fn need(&mut self, leaf: u32) {
        self.leaves[leaf as usize] = Leaf::Needed;
        self.bytes_needed += u64::from(self.sizes[leaf as usize]);
        self.picker.insert(leaf);
        for (ix, p) in &mut self.peers {
            if p.has(leaf) {
                if !p.is_seeder() {
                    p.candidates.push(leaf);
                }
                self.ready.insert(*ix);
            }
        }
    }

    fn done(&mut self, leaf: u32) {
        match self.leaves[leaf as usize] {
            Leaf::Done | Leaf::Unwanted => return,
            Leaf::Needed => {
                self.picker.remove(leaf);
                self.bytes_needed -= u64::from(self.sizes[leaf as usize]);
            }
            Leaf::Asked => {
                self.asked.remove(&leaf);
            }
            Leaf::Arrived => {}
        }
        self.leaves[leaf as usize] = Leaf::Done;
        self.progress.leaves_done += 1;
        self.progress.bytes_done += u64::from(self.sizes[leaf as usize]);
        if self.is_complete() {
            let all: Vec<PeerIx> = self.peers.keys().copied().collect();
            all.into_iter().for_each(|p| self.tell_interest(p));
        }
    }

    fn lacks(&mut self, peer: PeerIx, leaf: u32) {
        let Some(p) = self.peers.get_mut(&peer) else { return };
        if !p.has(leaf) {
            return;
        }
        let was_seeder = p.is_seeder();
        p.have.set(leaf as usize, false);
        p.have_count -= 1;
        if was_seeder {
            for leaf in p.have.ones().map(|l| l as u32) {
                self.picker.gained(leaf);
                if self.picker.contains(leaf) {
                    p.candidates.push(leaf);
                }
            }
            self.count_leechers();
        } else {
            self.picker.lost(leaf);
        }
    }

    /// The set of leechers changed: stripes are dealt anew.
    fn count_leechers(&mut self) {
        let tags: Vec<Tag> = self.peers.values().filter(|p| !p.is_seeder()).map(|p| p.tag).collect();
        if tags != self.leechers {
            self.leechers = tags;
            self.round = 0;
        }
    }

    fn tell_interest(&mut self, peer: PeerIx) {
        let complete = self.is_complete();
        let Some(p) = self.peers.get_mut(&peer) else { return };
        let wants = !complete
            && (p.is_seeder() || p.have.ones().any(|l| !matches!(self.leaves[l], Leaf::Done | Leaf::Unwanted)));
        if wants != p.interested {
            p.interested = wants;
            self.actions.push_back(Action::Interested { peer, yes: wants });
        }
    }
}

/// How many candidates a pick looks at: "the power of d choices" comes close to rarest first at a constant price.
const SAMPLE: usize = 16;
