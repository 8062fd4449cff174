//! Which leaf to ask whom for. Everything here is O(1) amortised: lists are sampled, not walked through.
//!
//! The order of thought: what readers are about to need comes before all else (`read`). Then seeders are asked for this
//! leecher's own stripe of what only they have. Then, until enough is on its way, the peer that would answer soonest (of a
//! few drawn) is asked for the rarest (of a few drawn) of the leaves that it has; less of that while the last leaves of the
//! seeders are on their way. Who has nothing new to give may still be asked for what was asked of others (`again`).

use super::{super::peer::WINDOW_GAIN, *};
use crate::swarm::peer::{Batch, Lane};

/// With so many peers there is always another one to ask.
pub(super) const MANY: u64 = 8;
/// How many leaves a pick looks at: "the power of d choices" (Mitzenmacher 2001) comes close to rarest first at a constant
/// price.
const LEAF_SAMPLE: usize = 16;
/// How many peers a choice looks at. More would make all leechers run after the same fast peer.
const PEER_SAMPLE: usize = 8;
/// Bytes that are asked of seeders by all leechers together, at least: with more at once each leaf would take longer to
/// come out, and what has come out is what the others live on.
const LEAST_AHEAD: u64 = 1 << 19;
/// The same in leaves, of the mean length: with fewer, a few leechers would hold up all others.
const LEAST_LEAVES_AHEAD: u64 = 6;
/// That many seconds of what comes out may be asked for ahead.
const AHEAD: f64 = 0.2;
/// In the opening this is asked of a seeder by all leechers together, as far as they know each other: where it is less than a
/// leaf for each, by some of them, and by [`MANY`] at least.
const OPENING_BYTES: u64 = 1 << 20;
/// A seeder that has nothing that leechers lack is asked by so many of them: of a larger crowd the others would wait longer
/// for it than for each other.
const MANY_AT_SEEDER: u64 = 64;
/// A leaf with few holders is asked for by so many leechers for each of them, at first.
const TAKERS: u64 = 4;
/// When too little else is to be had, the number of takers doubles as often as this.
const HOLD: Duration = Duration::from_millis(100);
/// After so many announcements, a peer that was held back is looked at again, if too little is on its way.
const RELEASE_EVERY: u64 = 4;

impl Swarm {
    /// Asks as many peers for as much as is good now.
    pub(super) fn schedule(&mut self, now: Duration) {
        if self.is_complete() {
            return;
        }
        self.tell_reach(now);
        if !self.unsettled.is_empty() {
            self.settle_leechers(now);
        }
        let scarce = !self.picker.only_at_seeders().is_empty();
        if self.scarce && !scarce {
            self.wake_seeders();
        }
        self.scarce = scarce;
        let total = self.total();
        self.serve_readers(now);
        if scarce && !self.on_demand {
            let ahead = (self.outflow.peak() * AHEAD * WINDOW_GAIN) as u64;
            self.look_ahead(ahead.max(LEAST_AHEAD).max(LEAST_LEAVES_AHEAD * self.leaf_size()));
        }
        if self.announced >= self.released + RELEASE_EVERY && self.in_flight.open < total {
            self.released = self.announced;
            self.release_held(1);
        }
        let takers = self.takers(now);
        while scarce && self.in_flight.scarce < total {
            let Some(slot) = self.soonest(now, true) else { break };
            self.ask(now, slot, takers);
        }
        // the last leaves that only seeders have come sooner where little else comes beside them
        let open = if self.in_flight.scarce > 0 && self.sees_the_end() { total / 2 } else { total };
        while self.in_flight.open < open {
            let Some(slot) = self.soonest(now, false) else { break };
            self.ask(now, slot, takers);
        }
        if self.in_flight.open >= total / 2 || self.held.is_empty() {
            self.held_since = None;
        } else {
            self.held_since.get_or_insert(now);
            self.next_release.get_or_insert(now + HOLD);
        }
        if self.in_flight.all() > 0 || self.picker.len() == 0 {
            self.idle_since = None;
        } else if self.idle_since.is_none() {
            self.idle_since = Some(now);
        }
    }

    /// Of all leechers, so many may ask for a leaf that one of them has; more the longer this one goes short.
    fn takers(&self, now: Duration) -> u64 {
        let short = self.held_since.map_or(0, |since| now.saturating_sub(since).as_millis() / HOLD.as_millis());
        TAKERS << short.min(32)
    }

    /// Whether it is this leecher's turn to ask for `leaf`. While few have it, a few are to fetch it at full speed rather
    /// than all of them slowly, so that it spreads like a rumour; who they are is decided by rendezvous once more.
    fn may_take(&self, leaf: u32, takers: u64) -> bool {
        let crowd = u64::from(self.leechers) + 1;
        let open = takers * u64::from(self.picker.availability(leaf));
        open >= crowd || (stripe::weight(leaf, self.me) & 0xffff_ffff) * crowd < open << 32
    }

    /// Bytes that may be on their way from all peers together.
    pub(super) fn total(&self) -> u64 {
        let span = self.config.total_slack.as_secs_f64() + self.rtt;
        ((self.meter.peak() * span * WINDOW_GAIN) as u64).max(self.config.least_total)
    }

    /// The mean length of a leaf that is wanted, at least 1.
    fn leaf_size(&self) -> u64 {
        (self.progress.bytes_wanted / u64::from(self.progress.leaves_wanted.max(1))).max(1)
    }

    /// Whether all that seeders have is asked of them, or will be next.
    fn sees_the_end(&self) -> bool {
        self.horizon as usize == self.sizes.len()
    }

    /// Of a few peers that may be asked, the one that would answer soonest, by how fast it was; among many by what it said of
    /// late of what waits there, and what is on its way from it already.
    fn soonest(&mut self, now: Duration, only_seeders: bool) -> Option<u32> {
        let seeders = self.ready_seeders.len();
        let all = if only_seeders { seeders } else { seeders + self.ready_leechers.len() };
        if all == 0 {
            return None;
        }
        let (unknown, crowd) = (self.unknown_rate(), self.slots.len() as u64 > MANY);
        let mut best: Option<(f64, u32)> = None;
        for n in 0..PEER_SAMPLE.min(all) {
            let at = if all <= PEER_SAMPLE { n } else { self.draw(all) };
            let slot = if at < seeders { self.ready_seeders[at] } else { self.ready_leechers[at - seeders] };
            let Some(p) = self.at(slot) else { continue };
            let eta = match p.told_wait(now).filter(|_| crowd && !p.late) {
                Some(wait) => wait + p.in_flight as f64 / self.meter.peak().max(1.0),
                None => p.eta(256 << 10, unknown),
            };
            if best.is_none_or(|(b, _)| eta < b) {
                best = Some((eta, slot));
            }
        }
        best.map(|(_, slot)| slot)
    }

    /// What a peer of which nothing is known is taken to deliver, in bytes per second.
    pub(super) fn unknown_rate(&self) -> f64 {
        self.meter.rate() / f64::from((self.slots.len() as u32).max(1))
    }

    /// What may be asked of `p` and not delivered. For a reader's sake little is asked at first, if there are others.
    pub(super) fn window_of(&self, p: &Peer) -> u64 {
        let (initial, least) = (self.config.initial_window, self.config.least_window);
        p.window(if self.on_demand && self.slots.len() > 1 { least } else { initial }, least)
    }

    /// Sends one request to `slot`, or takes it off the list of those that may be asked.
    fn ask(&mut self, now: Duration, slot: u32, takers: u64) {
        let crowd = self.slots.len() as u64;
        let Some(p) = self.at(slot) else { return };
        let opening = p.is_seeder() && !self.stripe.is_alone() && !self.opening.is_over(now);
        let places = (OPENING_BYTES / self.leaf_size()).max(MANY);
        if opening && !self.on_demand && !self.opening.has_place(places, crowd) {
            return self.dry(slot);
        }
        if p.is_seeder() && self.leaves_seeders_to_others() {
            return self.dry(slot);
        }
        // a leecher among many is asked for one leaf after another: what is queued at one is not asked of another. So is
        // a seeder among more, once it has nothing that leechers lack, or all would queue there for the last leaves
        let one_by_one = match p.is_seeder() {
            true => crowd > MANY && self.leechers > 0 && self.picker.only_at_seeders().is_empty(),
            false => crowd >= MANY,
        };
        let window = match () {
            () if opening => OPENING_BYTES / crowd,
            () if one_by_one => p.window(1, 1),
            () => self.window_of(p),
        };
        if p.in_flight >= window || self.is_too_slow(p) {
            return self.unready(slot);
        }
        // towards the end requests shrink, so that no peer sits on much of the rest
        let share = self.bytes_needed / (2 * crowd);
        let target =
            if p.snubbed { 1 } else { p.batch_bytes(self.config.largest_batch).min(share).min(window - p.in_flight) };
        let mut leaves = vec![];
        let mut bytes = 0;
        while leaves.len() < self.config.most_leaves && (leaves.is_empty() || bytes < target) {
            let Some(leaf) = self.pick(now, slot, takers) else { break };
            self.picker.remove(leaf);
            self.bytes_needed -= u64::from(self.sizes[leaf as usize]);
            bytes += u64::from(self.sizes[leaf as usize]);
            leaves.push(leaf);
        }
        if leaves.is_empty() {
            let Some(leaf) = self.pick_again(now, slot) else { return self.dry(slot) };
            bytes = u64::from(self.sizes[leaf as usize]);
            leaves.push(leaf);
        }
        self.request(now, slot, leaves, bytes);
    }

    pub(super) fn request(&mut self, now: Duration, slot: u32, mut leaves: Vec<u32>, bytes: u64) {
        leaves.sort_unstable();
        let scarce = self.at(slot).is_some_and(Peer::is_seeder) && self.picker.availability(leaves[0]) == 0;
        let batch = BatchId(self.next_batch);
        self.next_batch += 1;
        if self.in_flight.all() == 0 {
            self.meter.restart(now);
        }
        let Some(p) = &mut self.peers[slot as usize] else { return };
        let peer = p.ix;
        let lane = match () {
            () if p.late || p.snubbed => Lane::Stuck,
            () if scarce => Lane::Scarce,
            () => Lane::Open,
        };
        *self.in_flight.lane(lane) += bytes;
        p.asked(now, bytes, self.config.patience);
        p.batches.insert(batch, Batch { leaves: leaves.iter().copied().collect(), lane });
        for leaf in &leaves {
            self.leaves[*leaf as usize] = Leaf::Asked;
            let first = (peer, batch);
            let holders = self.asked.entry(*leaf).or_insert(Holders { first, second: None, at: now });
            if holders.first != first {
                (holders.second, holders.at) = (Some(first), now);
            }
        }
        let late = p.late;
        self.actions.push_back(Action::Request { peer, batch, leaves });
        self.watch(slot);
        if late {
            self.wake_others(slot);
        }
    }

    /// Whether seeders have nothing that leechers lack, and this one of a crowd is not among those who ask them all the same;
    /// unless nothing comes from anywhere.
    fn leaves_seeders_to_others(&self) -> bool {
        let seeders = self.slots.len() as u64 - u64::from(self.leechers);
        let places = MANY_AT_SEEDER * seeders;
        let spent = self.leechers > 0 && self.picker.only_at_seeders().is_empty();
        spent && !self.on_demand && self.starved.is_none() && !self.opening.has_place(places, self.leechers.into())
    }

    /// `slot` has nothing to ask for. It is put back when it announces something or a leaf is needed again.
    fn dry(&mut self, slot: u32) {
        self.unready(slot);
        self.tell_interest(slot);
        let Some(p) = self.at(slot) else { return };
        if p.is_seeder() {
            if !p.dry {
                self.dry_seeders.push(slot);
            }
            if let Some(p) = &mut self.peers[slot as usize] {
                p.dry = true;
            }
        } else if !p.candidates.is_empty() && !p.held {
            self.held.push_back(slot);
            if let Some(p) = &mut self.peers[slot as usize] {
                p.held = true;
            }
        }
    }

    /// Looks again at `count` of the peers that were held back, at most; the first to be held comes first.
    pub(super) fn release_held(&mut self, count: usize) {
        for _ in 0..count {
            let Some(slot) = self.held.pop_front() else { return };
            if let Some(p) = &mut self.peers[slot as usize] {
                p.held = false;
            }
            self.ready(slot);
        }
    }

    /// The leaf to ask `slot` for next, still listed in the picker.
    fn pick(&mut self, now: Duration, slot: u32, takers: u64) -> Option<u32> {
        if self.picker.len() == 0 {
            return None;
        }
        if self.at(slot)?.is_seeder() { self.pick_at_seeder(now, slot) } else { self.pick_at_leecher(slot, takers) }
    }

    /// At a seeder: this peer's own stripe of what no leecher has. What others own is left to them, for they will pass it
    /// on, unless nothing comes from anywhere: then little of it at first, since it may be the seeder that takes its time,
    /// and more as it comes. When leechers have everything, a rare one. In the opening, whatever comes next on a walk of its own.
    fn pick_at_seeder(&mut self, now: Duration, slot: u32) -> Option<u32> {
        if self.on_demand {
            return self.pick_ahead(slot);
        }
        let picker = &self.picker;
        if !self.opening.is_over(now) {
            // what is before the horizon is asked for by those who have met
            let (horizon, stripe) = (self.horizon, &self.stripe);
            let apart = |leaf| {
                picker.contains(leaf) && picker.availability(leaf) == 0 && (leaf >= horizon || stripe.owns(leaf))
            };
            if let Some(leaf) = self.opening.next(apart) {
                return Some(leaf);
            }
        }
        let end = if self.stripe.is_alone() { u32::MAX } else { self.horizon };
        let own = self.stripe.next(end, |leaf| picker.contains(leaf) && picker.availability(leaf) == 0);
        if own.is_some() {
            return own;
        }
        let unique = self.picker.only_at_seeders().len();
        if unique > 0 && self.starved.is_none_or(|came| self.in_flight.all() > came) {
            return None;
        }
        let among = if unique > 0 { unique } else { self.picker.len().min(LEAF_SAMPLE) };
        let at = self.draw(among);
        self.picker.rarest_first().get(at).copied()
    }

    /// At a leecher: the rarest of a few of the leaves that it announced.
    fn pick_at_leecher(&mut self, slot: u32, takers: u64) -> Option<u32> {
        let p = self.peers[slot as usize].as_mut()?;
        if p.candidates.is_empty() {
            let picker = &self.picker;
            p.rescan(|leaf| picker.contains(leaf));
        }
        let mut candidates = std::mem::take(&mut p.candidates);
        let mut best: Option<(u16, usize)> = None;
        let mut looked = 0;
        while looked < LEAF_SAMPLE && !candidates.is_empty() {
            let at = self.draw(candidates.len());
            let leaf = candidates[at];
            if !self.picker.contains(leaf) || !self.at(slot)?.has(leaf) {
                // each announcement is dropped once, so this costs nothing in the long run
                candidates.swap_remove(at);
                let last = candidates.len();
                best = best.map(|(rarity, b)| (rarity, if b == last { at } else { b }));
                continue;
            }
            looked += 1;
            if !self.may_take(leaf, takers) {
                continue;
            }
            let rarity = self.picker.availability(leaf);
            if best.is_none_or(|(b, _)| rarity < b) {
                best = Some((rarity, at));
            }
        }
        let leaf = best.map(|(_, at)| candidates.swap_remove(at));
        if let Some(p) = &mut self.peers[slot as usize] {
            p.candidates = candidates;
        }
        leaf
    }

    /// A number below `below`, the same in each run with the same inputs.
    pub(super) fn draw(&mut self, below: usize) -> usize {
        self.draws = self.draws.wrapping_add(1);
        ((u128::from(stripe::weight(self.draws, self.me)) * below as u128) >> 64) as usize
    }
}
