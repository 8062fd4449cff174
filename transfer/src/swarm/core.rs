//! One fetch: what the driver tells it and what it tells the driver. Sans-IO; see [`Swarm`] for how to drive it.
//!
//! `choose` decides which leaf to ask whom for, `again` which to ask for once more, `read` what readers need before all
//! else, `book` keeps the accounts of leaves and peers, `alarm` deals with time.

mod again;
mod alarm;
mod book;
mod choose;
mod read;

use super::{
    opening::Opening,
    peer::{ABSENT, InFlight, Meter, Peer, PeerAccount},
    picker::Picker,
    stripe::{self, Stripe},
};
use alarm::Alarms;
use fixedbitset::FixedBitSet;
use read::{Reader, Waits};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
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

/// A reader of a swarm's leaves; never used twice in a swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReaderIx(pub u32);

/// Settings of the scheduler. Sizes in bytes.
#[derive(Debug, Clone)]
pub struct SwarmConfig {
    /// Asked of a peer before its rate is known, where there is nobody else to ask.
    pub initial_window: u64,
    /// A window never falls below this, so that a slow peer has the next leaf queued while it sends one.
    pub least_window: u64,
    /// Asked of all peers together at least. Many peers asked for a leaf each keep this side's downlink full where
    /// uplinks are shared; too many queue up at some uplinks while others idle.
    pub least_total: u64,
    /// What is asked of all peers together covers so much of the recent rate beyond the round trip.
    pub total_slack: Duration,
    /// A request holds at most about this much: with one leaf more it has to fit into a stream's window, or its answer waits
    /// a round trip for room, and all later ones behind it.
    pub largest_batch: u64,
    /// A request holds at most so many leaves.
    pub most_leaves: usize,
    /// A peer that was asked is late after a silence that is unusual for it, and after this one at least: those who have
    /// nothing else to give are asked for the same. Sooner, it would hit busy seeders, and cost duplicates.
    pub least_late: Duration,
    /// A peer that was asked and never sent anything is late after so long.
    pub first_late: Duration,
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
            initial_window: 1 << 20,
            least_window: 512 << 10,
            least_total: 5 << 19,
            total_slack: Duration::from_millis(180),
            largest_batch: 960 << 10,
            most_leaves: 512,
            least_late: Duration::from_secs(1),
            first_late: Duration::from_millis(500),
            least_timeout: Duration::from_secs(2),
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
    /// Tell `peer` whether a seeder is among this side's peers. Nobody is told while one is, as all take it to be so.
    Reach {
        /// Whom.
        peer: PeerIx,
        /// One is.
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
    /// Nobody needs it yet; a reader may.
    Parked,
    Needed,
    Asked,
    Arrived,
    Done,
}

/// Who was asked for a leaf: a peer, and at the end of a fetch, or for a reader that waits, a second one.
#[derive(Debug, Clone, Copy)]
struct Holders {
    first: (PeerIx, BatchId),
    second: Option<(PeerIx, BatchId)>,
    /// When the last of them was asked.
    at: Duration,
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
    me: stripe::Tag,
    sizes: Arc<[u32]>,
    leaves: Vec<Leaf>,
    picker: Picker,
    /// Peers by slot; a slot is used again after its peer has gone.
    peers: Vec<Option<Peer>>,
    free: Vec<u32>,
    /// Slots by number. Only looked up, never walked through: its order is chance.
    slots: HashMap<PeerIx, u32>,
    /// Slots of the peers that may be asked for more, seeders and leechers; a peer that had nothing to give is put back
    /// when it has.
    ready_seeders: Vec<u32>,
    ready_leechers: Vec<u32>,
    /// Leaves in state `Asked`, and in which requests.
    asked: BTreeMap<u32, Holders>,
    /// Requests that were left to run although a leaf in them came from elsewhere. Only looked up; one for a leaf at most.
    strays: HashMap<u32, Holders>,
    actions: VecDeque<Action>,
    alarms: Alarms,
    next_batch: u64,
    draws: u32,
    stripe: Stripe,
    /// Until the leechers that came together have met, seeders are asked by this and not by stripes.
    pub(super) opening: Opening,
    leechers: u32,
    /// A seeder is among the peers, as far as they were told.
    reaches: bool,
    /// Slots whose place among the leechers is to be looked at before the next decision.
    unsettled: Vec<u32>,
    /// Announcements of all leechers, and which of them is looked at next for having fallen silent.
    announced: u64,
    watch: u32,
    /// What only seeders have is empty or not, as of the last look.
    scarce: bool,
    /// Seeders are asked for their own leaves before this one only; those of them that have not come out yet.
    horizon: u32,
    pending: FixedBitSet,
    pending_bytes: u64,
    /// Seeders that had nothing to ask for; each once, so that the peers bound the list.
    pub(super) dry_seeders: Vec<u32>,
    /// Peers that are late; each once, so that the peers bound the list.
    pub(super) late: Vec<u32>,
    /// Bytes that come out of seeders, announced by anybody for the first time.
    outflow: Meter,
    /// Peers that have only leaves to give which it is not this leecher's turn to ask for; each
    /// once, so that the peers bound the list.
    held: VecDeque<u32>,
    /// The count of announcements when one of them was last looked at.
    released: u64,
    /// Less than it could be is on its way since then, because of that.
    held_since: Option<Duration>,
    next_release: Option<Duration>,
    /// Nothing was to be asked of anybody since then, though leaves are needed.
    idle_since: Option<Duration>,
    /// That was so for long: seeders may be asked for what others own. Bytes that came since.
    starved: Option<u64>,
    meter: Meter,
    /// Moving average of the round trips of those who deliver, seconds.
    rtt: f64,
    in_flight: InFlight,
    progress: Progress,
    bytes_needed: u64,
    work: u64,
    /// Leaves of late peers that were looked at.
    #[cfg(test)]
    pub(super) looked: std::cell::Cell<u64>,
    /// Only what a reader is about to need is asked for.
    on_demand: bool,
    readers: Vec<Reader>,
    /// In how many windows of readers a leaf is; those in none are not listed. The windows bound it. Only looked up.
    windows: HashMap<u32, u32>,
    waits: Waits,
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
        let listed = (0..count as u32).filter(|l| leaves[*l as usize] == Leaf::Needed);
        let picker = Picker::new(count, listed);
        Swarm {
            config,
            me,
            sizes,
            picker,
            leaves,
            peers: vec![],
            free: vec![],
            slots: HashMap::new(),
            ready_seeders: vec![],
            ready_leechers: vec![],
            asked: BTreeMap::new(),
            strays: HashMap::new(),
            actions: VecDeque::new(),
            alarms: Alarms::default(),
            next_batch: 0,
            draws: 0,
            stripe: Stripe::new(me, count),
            opening: Opening::new(me, count),
            leechers: 0,
            reaches: true,
            unsettled: vec![],
            announced: 0,
            watch: 0,
            scarce: true,
            horizon: 0,
            pending: FixedBitSet::with_capacity(count),
            pending_bytes: 0,
            dry_seeders: vec![],
            late: vec![],
            outflow: Meter::default(),
            held: VecDeque::new(),
            released: 0,
            held_since: None,
            next_release: None,
            idle_since: None,
            starved: None,
            meter: Meter::default(),
            rtt: 0.0,
            in_flight: InFlight::default(),
            progress,
            bytes_needed,
            work: 0,
            #[cfg(test)]
            looked: Default::default(),
            on_demand: false,
            readers: vec![],
            windows: HashMap::new(),
            waits: Waits::default(),
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

    /// Peers that do not have everything.
    pub fn leechers(&self) -> u32 {
        self.leechers
    }

    /// Whether no leecher has announced `leaf`.
    pub fn is_rare(&self, leaf: u32) -> bool {
        (leaf as usize) < self.sizes.len() && self.picker.availability(leaf) == 0
    }

    /// Whether `leaf` is in place.
    pub fn has(&self, leaf: u32) -> bool {
        self.leaves.get(leaf as usize) == Some(&Leaf::Done)
    }

    /// The account of a connected peer.
    pub fn account(&self, peer: PeerIx) -> Option<PeerAccount> {
        self.peer(peer).map(Peer::account)
    }

    /// Leaves that were looked at because peers came, went, or said what they have, since the start: for whoever wants to charge
    /// them for it.
    pub fn work(&self) -> u64 {
        self.work
    }

    /// Bytes that are asked for and not delivered, over all peers.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.all()
    }

    /// A peer takes part. It has nothing until [`handle_have`](Self::handle_have) says so. `tag` is the same for all who
    /// know this peer.
    pub fn handle_peer(&mut self, now: Duration, peer: PeerIx, tag: u64, rtt: Duration) {
        self.handle_gone(now, peer);
        let fresh = Peer::new(now, peer, tag, self.sizes.len(), rtt);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.peers.push(None);
            (self.peers.len() - 1) as u32
        });
        self.peers[slot as usize] = Some(fresh);
        self.slots.insert(peer, slot);
        self.leechers += 1;
        self.opening.begin(now);
        if !self.reaches {
            self.actions.push_back(Action::Reach { peer, yes: false });
        }
        self.settle_later(slot);
    }

    /// A peer is gone; what it was asked for is needed again.
    pub fn handle_gone(&mut self, _now: Duration, peer: PeerIx) {
        let Some(slot) = self.slots.get(&peer).copied() else { return };
        self.unready(slot);
        self.slots.remove(&peer);
        let Some(gone) = self.peers[slot as usize].take() else { return };
        self.free.push(slot);
        if gone.held {
            self.held.retain(|held| *held != slot);
        }
        if gone.late {
            self.late.retain(|late| *late != slot);
        }
        if gone.dry {
            self.dry_seeders.retain(|dry| *dry != slot);
        }
        if !gone.is_seeder() {
            self.leechers -= 1;
            self.work += u64::from(gone.have_count);
            gone.have.ones().for_each(|leaf| self.picker.lost(leaf as u32));
        }
        if gone.striped {
            self.stripe.leave(gone.tag);
            self.wake_seeders();
        }
        for (batch, b) in gone.batches {
            let bytes = b.leaves.iter().map(|l| u64::from(self.sizes[*l as usize])).sum();
            self.landed(&b, bytes);
            self.release(peer, batch, b.leaves);
        }
    }

    /// The path to `peer` has this round trip time at best.
    pub fn handle_rtt(&mut self, peer: PeerIx, rtt: Duration) {
        if let Some(p) = self.peer_mut(peer) {
            p.rtt = rtt;
        }
    }

    /// `peer` says that it has `ranges`. False: a range runs past the last leaf, which is the peer's fault; nothing changed.
    #[must_use]
    pub fn handle_have(&mut self, now: Duration, peer: PeerIx, ranges: &[Range<u32>]) -> bool {
        if ranges.iter().any(|r| r.end as usize > self.sizes.len()) {
            return false;
        }
        let Some(slot) = self.slots.get(&peer).copied() else { return true };
        let Some(p) = &mut self.peers[slot as usize] else { return true };
        if p.is_seeder() {
            return true;
        }
        if ranges.iter().any(|r| r.len() == p.have.len()) {
            self.has_all(slot);
            return true;
        }
        let before = p.have_count;
        let (mut out, mut useful) = (vec![], false);
        for leaf in ranges.iter().cloned().flatten() {
            self.work += 1;
            if p.have.put(leaf as usize) {
                continue;
            }
            p.have_count += 1;
            if self.picker.availability(leaf) == 0 && !matches!(self.leaves[leaf as usize], Leaf::Done | Leaf::Unwanted)
            {
                out.push(leaf);
            }
            self.picker.gained(leaf);
            if self.picker.contains(leaf) {
                p.suggest(leaf);
            }
            if !matches!(self.leaves[leaf as usize], Leaf::Done | Leaf::Unwanted) {
                useful = true;
                p.wants_from = p.wants_from.min(leaf);
            }
        }
        if p.have_count == before {
            return true;
        }
        if p.is_seeder() {
            self.has_all(slot);
            return true;
        }
        self.came_out(now, &out);
        self.spoke(now, slot);
        if useful {
            self.ready(slot);
            self.tell_interest(slot);
        }
        true
    }

    /// A peer has every leaf. Seeders are not counted by the picker: what it was counted for as a leecher is taken back.
    fn has_all(&mut self, slot: u32) {
        let Some(p) = &mut self.peers[slot as usize] else { return };
        self.work += u64::from(p.have_count);
        p.have.ones().for_each(|leaf| self.picker.lost(leaf as u32));
        p.have.insert_range(..);
        p.have_count = p.have.len() as u32;
        p.candidates = vec![];
        p.unscanned = None;
        p.wants_from = 0;
        self.leechers -= 1;
        self.unready(slot);
        self.settle_later(slot);
        self.ready(slot);
        self.tell_interest(slot);
    }

    /// `peer` says that what is asked of it now would wait for so long.
    pub fn handle_load(&mut self, now: Duration, peer: PeerIx, wait: Duration) {
        if let Some(p) = self.peer_mut(peer) {
            p.wait = Some((wait, now));
        }
    }

    /// `peer` says whether a seeder is among its peers. Until it does, one is.
    pub fn handle_reach(&mut self, _now: Duration, peer: PeerIx, yes: bool) {
        let Some(slot) = self.slots.get(&peer).copied() else { return };
        let Some(p) = &mut self.peers[slot as usize] else { return };
        if std::mem::replace(&mut p.reaches, yes) != yes {
            self.settle_later(slot);
        }
    }

    /// `peer` says that it lacks `ranges`.
    pub fn handle_dont_have(&mut self, _now: Duration, peer: PeerIx, ranges: &[Range<u32>]) {
        let count = self.sizes.len() as u32;
        let Some(slot) = self.slots.get(&peer).copied() else { return };
        for leaf in ranges.iter().flat_map(|r| r.start..r.end.min(count)) {
            self.work += 1;
            self.lacks(slot, leaf);
        }
        self.tell_interest(slot);
    }

    /// `peer` will not (or will again) serve requests.
    pub fn handle_choke(&mut self, _now: Duration, peer: PeerIx, choked: bool) {
        let Some(slot) = self.slots.get(&peer).copied() else { return };
        let Some(p) = &mut self.peers[slot as usize] else { return };
        p.choked = choked;
        if choked {
            self.unready(slot);
        } else {
            p.paused = None;
            self.ready(slot);
        }
    }

    /// `bytes` more of what `peer` was asked for came in.
    pub fn handle_bytes(&mut self, now: Duration, peer: PeerIx, bytes: u64) {
        let Some(slot) = self.slots.get(&peer).copied() else { return };
        let Some(p) = &mut self.peers[slot as usize] else { return };
        let (was_late, rtt) = (p.late, p.rtt.as_secs_f64());
        p.delivered(now, bytes);
        if was_late {
            self.late.retain(|late| *late != slot);
            self.watch(slot);
        }
        self.meter.add(now, bytes);
        self.starved = self.starved.map(|came| came.saturating_add(bytes));
        self.rtt = if self.rtt == 0.0 { rtt } else { self.rtt + 0.05 * (rtt - self.rtt) };
        // its window may have grown
        self.ready(slot);
    }

    /// A leaf of a request is here as a whole, not verified yet. False: it is not wanted (any more); do not write it.
    #[must_use]
    pub fn handle_arrived(&mut self, now: Duration, peer: PeerIx, batch: BatchId, leaf: u32) -> bool {
        if !self.take_from_batch(peer, batch, leaf) {
            return false;
        }
        if let Some(asked) = self.asked.get(&leaf).filter(|h| h.second.is_none()) {
            self.waits.add(now.saturating_sub(asked.at));
        }
        if self.leaves[leaf as usize] != Leaf::Asked {
            self.progress.bytes_duplicate += u64::from(self.sizes[leaf as usize]);
            return false;
        }
        self.leaves[leaf as usize] = Leaf::Arrived;
        self.overtake(leaf, (peer, batch));
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
        if let Some(p) = self.peer_mut(peer) {
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
        let Some(slot) = self.slots.get(&peer).copied() else { return };
        // before the leaf is needed again, so that it is not offered to who lacks it
        self.lacks(slot, leaf);
        if self.take_from_batch(peer, batch, leaf) {
            self.unask(peer, batch, leaf);
        }
        self.tell_interest(slot);
    }

    /// A request ended. What it did not bring is needed again; `refused`: the peer turned it down, so it is left alone
    /// for a while.
    pub fn handle_ended(&mut self, now: Duration, peer: PeerIx, batch: BatchId, refused: bool) {
        let Some(slot) = self.slots.get(&peer).copied() else { return };
        let Some(p) = &mut self.peers[slot as usize] else { return };
        if refused && p.batches.contains_key(&batch) {
            let until = now + self.config.refusal_pause;
            p.paused = Some(until);
            self.alarms.set(until, slot);
            self.unready(slot);
        }
        self.take_back(peer, batch);
    }

    /// The next thing to do. Actions for one peer come in order.
    pub fn poll_action(&mut self, now: Duration) -> Option<Action> {
        if self.actions.is_empty() {
            self.schedule(now);
        }
        self.actions.pop_front()
    }

    // ---- peers by number ----

    fn peer(&self, peer: PeerIx) -> Option<&Peer> {
        self.at(*self.slots.get(&peer)?)
    }

    fn peer_mut(&mut self, peer: PeerIx) -> Option<&mut Peer> {
        self.peers[*self.slots.get(&peer)? as usize].as_mut()
    }

    fn at(&self, slot: u32) -> Option<&Peer> {
        self.peers[slot as usize].as_ref()
    }

    // ---- who may be asked ----

    /// `slot` may have something to ask for, and room.
    fn ready(&mut self, slot: u32) {
        let Some(p) = &mut self.peers[slot as usize] else { return };
        if p.at_ready != ABSENT || p.choked || p.paused.is_some() {
            return;
        }
        let list = if p.is_seeder() { &mut self.ready_seeders } else { &mut self.ready_leechers };
        p.at_ready = list.len() as u32;
        list.push(slot);
    }

    fn unready(&mut self, slot: u32) {
        let Some(p) = &mut self.peers[slot as usize] else { return };
        let at = std::mem::replace(&mut p.at_ready, ABSENT) as usize;
        for list in [&mut self.ready_seeders, &mut self.ready_leechers] {
            if list.get(at) == Some(&slot) {
                list.swap_remove(at);
                if let Some(moved) = list.get(at).copied()
                    && let Some(p) = &mut self.peers[moved as usize]
                {
                    p.at_ready = at as u32;
                }
                return;
            }
        }
    }

    /// Seeders may have something to ask for again.
    fn wake_seeders(&mut self) {
        for slot in std::mem::take(&mut self.dry_seeders) {
            if let Some(p) = &mut self.peers[slot as usize] {
                p.dry = false;
            }
            self.ready(slot);
        }
    }
}
