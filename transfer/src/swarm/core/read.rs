//! Readers: whoever takes leaves in order while they come. A reader has a place, a rate as observed, and a window ahead of
//! it. What it is about to need is asked for in order, of whoever would bring it soonest; the rest of the window is left
//! to the order of `choose`. In a swarm on demand nothing outside of a window is asked for at all.
//!
//! The idea of deadlines beside rarest first is that of libtorrent's time-critical pieces; that the wait decides whom to
//! ask again, rather than a fixed time, and that the window follows what is read, is not.

use super::{again::LATE, *};

/// A window holds so many seconds of what is read, within its limit.
const AHEAD: f64 = 15.0;
/// A window holds so many times what may be on its way at once.
const AHEAD_OF_TOTAL: u64 = 2;
/// What will be read within so many seconds is asked for in order.
const SOON: f64 = 2.0;
/// So many bytes are asked for in order in any case.
const LEAST_SOON: u64 = 1 << 20;
/// This part of a window is asked for in order at most: the rest is for what leechers give each other.
const SOON_PART: u64 = 4;
/// Leaves that nobody can be asked for now, after which the others have to wait as well.
const MOST_PASSED: usize = 4;
/// Peers that are looked at for a leaf.
const PEER_SAMPLE: usize = 64;
/// Leaves that are looked at for one decision, where they are small and many.
const MOST_LOOKS: usize = 512;
/// Of the leaves that are read next, so many are watched for being late.
const WATCHED: usize = 8;
/// The shortest wait that makes a leaf late, and the longest.
const LEAST_WAIT: Duration = Duration::from_millis(150);
const MOST_WAIT: Duration = Duration::from_secs(1);

/// How long leaves take from the request to their arrival: mean and deviation, as in RFC 6298.
#[derive(Debug, Default)]
pub(super) struct Waits {
    mean: f64,
    deviation: f64,
}

impl Waits {
    pub(super) fn add(&mut self, wait: Duration) {
        let wait = wait.as_secs_f64();
        if self.mean == 0.0 {
            (self.mean, self.deviation) = (wait, wait / 2.0);
        } else {
            self.deviation += 0.25 * ((wait - self.mean).abs() - self.deviation);
            self.mean += 0.125 * (wait - self.mean);
        }
    }

    /// A wait that is longer than this is unusual.
    fn longest(&self) -> Option<Duration> {
        let seconds = self.mean + 4.0 * self.deviation;
        (seconds > 0.0).then(|| Duration::from_secs_f64(seconds.min(3600.0)).clamp(LEAST_WAIT, MOST_WAIT))
    }
}

/// A stretch of what is read, from the reader's place on.
#[derive(Debug, Default, Clone, Copy)]
struct Zone {
    end: usize,
    bytes: u64,
}

impl Zone {
    fn push(&mut self, size: u32) {
        self.end += 1;
        self.bytes += u64::from(size);
    }

    /// The reader passed the first leaf, which has this size; it was at `at`.
    fn pass(&mut self, at: usize, size: u32) {
        if self.end > at {
            self.bytes -= u64::from(size);
        } else {
            self.end = at + 1;
        }
    }
}

/// One reader.
#[derive(Debug)]
pub(super) struct Reader {
    ix: ReaderIx,
    /// Leaves in the order of reading; one may come several times.
    order: Arc<[u32]>,
    at: usize,
    end: usize,
    /// The window is never larger, in bytes, unless one leaf is.
    most: u64,
    meter: Meter,
    window: Zone,
    /// What is asked for in order.
    soon: Zone,
    /// Of that, what is not listed any more.
    asked: Zone,
    /// Of that, what is in place.
    ready: Zone,
    /// What was looked at for this leecher's own stripe.
    own: Zone,
    /// When the leaf that it waits for is late.
    pub(super) look_at: Option<Duration>,
}

impl Reader {
    /// Seconds until it reads what lies so many bytes ahead; nothing while its rate is not known.
    fn due(&self, ahead: u64) -> f64 {
        let rate = self.meter.rate();
        if rate > 0.0 { ahead as f64 / rate } else { 0.0 }
    }

    /// The reader is elsewhere.
    fn stand(&mut self, at: usize) {
        let none = Zone { end: at, bytes: 0 };
        (self.at, self.look_at) = (at, None);
        (self.window, self.soon, self.asked, self.ready, self.own) = (none, none, none, none, none);
    }
}

/// A peer that could be asked for a leaf.
struct Offer {
    slot: u32,
    /// Seconds until it would bring it.
    eta: f64,
    queued: u64,
    rtt: Duration,
}

impl Swarm {
    /// A fetch that asks for nothing but what readers are about to need, of all leaves of the root.
    pub fn on_demand(config: SwarmConfig, me: u64, sizes: Arc<[u32]>) -> Self {
        let count = sizes.len();
        let none = FixedBitSet::with_capacity(count);
        let mut swarm = Swarm::new(config, me, sizes, &none, &none);
        swarm.on_demand = true;
        swarm.leaves.fill(Leaf::Parked);
        swarm.progress.leaves_wanted = count as u32;
        swarm.progress.bytes_wanted = swarm.sizes.iter().map(|size| u64::from(*size)).sum();
        swarm
    }

    /// Whether all that is in `leaves` is in place or on its way here, as soon as somebody brings it.
    pub fn covers(&self, leaves: &[u32]) -> bool {
        leaves.iter().all(|leaf| !matches!(self.leaves.get(*leaf as usize), None | Some(Leaf::Unwanted)))
    }

    /// Whether nothing is to be asked for and nothing on its way: readers take their time.
    pub fn is_idle(&self) -> bool {
        self.picker.len() == 0 && self.asked.is_empty()
    }

    /// Whether a reader is about to need `leaf`.
    pub fn is_awaited(&self, leaf: u32) -> bool {
        self.windows.contains_key(&leaf)
    }

    /// Somebody reads `order` (leaf indexes, all below the number of leaves) from place `at` to before `end`. At most `most`
    /// bytes are asked for ahead, or one leaf.
    pub fn handle_reader(&mut self, now: Duration, ix: ReaderIx, order: Arc<[u32]>, at: usize, end: usize, most: u64) {
        let end = end.min(order.len());
        let zone = Zone::default();
        let mut meter = Meter::default();
        meter.restart(now);
        let mut reader = Reader {
            ix,
            order,
            at: 0,
            end,
            most,
            meter,
            window: zone,
            soon: zone,
            asked: zone,
            ready: zone,
            own: zone,
            look_at: None,
        };
        reader.stand(at.min(end));
        self.readers.push(reader);
        self.extend(self.readers.len() - 1);
    }

    /// A reader took everything before place `to`. Gives the leaves that no reader is about to need any more.
    pub fn handle_read(&mut self, now: Duration, ix: ReaderIx, to: usize) -> Vec<u32> {
        let Some(n) = self.reader(ix) else { return vec![] };
        let mut left = vec![];
        let mut bytes = 0;
        while self.readers[n].at < to.min(self.readers[n].end) {
            let r = &mut self.readers[n];
            let (at, leaf) = (r.at, r.order[r.at]);
            let size = self.sizes[leaf as usize];
            let in_window = r.window.end > at;
            for zone in [&mut r.window, &mut r.soon, &mut r.asked, &mut r.ready, &mut r.own] {
                zone.pass(at, size);
            }
            r.at += 1;
            bytes += u64::from(size);
            if in_window && self.leave(leaf) {
                left.push(leaf);
            }
        }
        self.readers[n].meter.add(now, bytes);
        self.extend(n);
        left
    }

    /// A reader goes on at place `to`. What only it was about to need is not waited for. Gives the leaves that no reader
    /// is about to need any more.
    pub fn handle_seek(&mut self, now: Duration, ix: ReaderIx, to: usize) -> Vec<u32> {
        let Some(n) = self.reader(ix) else { return vec![] };
        let left = self.empty(n);
        let r = &mut self.readers[n];
        r.stand(to.min(r.end));
        r.meter.restart(now);
        self.extend(n);
        self.drop_requests(&left);
        left.into_iter().filter(|leaf| !self.is_awaited(*leaf)).collect()
    }

    /// A reader is gone. Gives the leaves that no reader is about to need any more.
    pub fn handle_reader_gone(&mut self, ix: ReaderIx) -> Vec<u32> {
        let Some(n) = self.reader(ix) else { return vec![] };
        let left = self.empty(n);
        self.readers.remove(n);
        self.drop_requests(&left);
        left
    }

    /// A leaf that was in place is not any more.
    pub fn handle_lost(&mut self, leaf: u32) {
        if self.leaves[leaf as usize] != Leaf::Done {
            return;
        }
        self.progress.leaves_done -= 1;
        self.progress.bytes_done -= u64::from(self.sizes[leaf as usize]);
        for p in self.peers.iter_mut().flatten().filter(|p| p.has(leaf)) {
            p.wants_from = p.wants_from.min(leaf);
        }
        self.need(leaf);
        (0..self.peers.len() as u32).for_each(|slot| self.tell_interest(slot));
    }

    /// Leaves before this place are in place, from where the reader is on.
    pub fn readable(&mut self, ix: ReaderIx) -> usize {
        let Some(n) = self.reader(ix) else { return 0 };
        self.pass_ready(n);
        self.readers[n].ready.end
    }

    fn reader(&self, ix: ReaderIx) -> Option<usize> {
        self.readers.iter().position(|r| r.ix == ix)
    }

    // ---- windows ----

    /// Moves the ends of a reader's window to where they should be.
    fn extend(&mut self, n: usize) {
        let on_its_way = AHEAD_OF_TOTAL * self.total();
        let r = &self.readers[n];
        let (rate, most) = (r.meter.rate(), r.most);
        let ahead = ((rate * AHEAD) as u64).max(on_its_way).min(most);
        let soon = ((rate * SOON) as u64).min(ahead / SOON_PART).max(LEAST_SOON);
        loop {
            let r = &mut self.readers[n];
            if r.window.end >= r.end || r.window.bytes >= ahead {
                break;
            }
            let leaf = r.order[r.window.end];
            let size = self.sizes[leaf as usize];
            if r.window.end > r.at && r.window.bytes + u64::from(size) > most {
                break;
            }
            r.window.push(size);
            self.enter(leaf);
        }
        let r = &mut self.readers[n];
        while r.soon.end < r.window.end && r.soon.bytes < soon {
            r.soon.push(self.sizes[r.order[r.soon.end] as usize]);
        }
    }

    fn enter(&mut self, leaf: u32) {
        let count = self.windows.entry(leaf).or_default();
        *count += 1;
        if *count == 1 && self.leaves[leaf as usize] == Leaf::Parked {
            self.list(leaf);
        }
    }

    /// Whether `leaf` is in no window any more.
    fn leave(&mut self, leaf: u32) -> bool {
        let Some(count) = self.windows.get_mut(&leaf) else { return false };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.windows.remove(&leaf);
        if self.on_demand && self.leaves[leaf as usize] == Leaf::Needed {
            self.leaves[leaf as usize] = Leaf::Parked;
            self.bytes_needed -= u64::from(self.sizes[leaf as usize]);
            self.picker.remove(leaf);
        }
        true
    }

    /// Takes everything out of a reader's window; gives what is in no other.
    fn empty(&mut self, n: usize) -> Vec<u32> {
        let r = &self.readers[n];
        let (order, window) = (r.order.clone(), r.at..r.window.end);
        order[window].iter().copied().filter(|leaf| self.leave(*leaf)).collect()
    }

    /// Stops the requests for leaves that nobody is about to need, if they hold nothing else.
    fn drop_requests(&mut self, left: &[u32]) {
        if !self.on_demand {
            return;
        }
        for leaf in left {
            let Some(holders) = self.asked.get(leaf).copied().filter(|_| !self.is_awaited(*leaf)) else { continue };
            for (peer, batch) in [Some(holders.first), holders.second].into_iter().flatten() {
                let leaves = self.peer(peer).and_then(|p| p.batches.get(&batch)).map(|b| &b.leaves);
                if leaves.is_some_and(|leaves| leaves.iter().all(|leaf| !self.is_awaited(*leaf))) {
                    self.actions.push_back(Action::Cancel { peer, batch });
                    self.take_back(peer, batch);
                }
            }
        }
    }

    /// Leaves are needed again, or owned by others than before: windows are looked through anew.
    pub(super) fn rewind(&mut self) {
        for r in &mut self.readers {
            let none = Zone { end: r.at, bytes: 0 };
            (r.asked, r.ready, r.own) = (none, none, none);
        }
    }

    fn pass_ready(&mut self, n: usize) {
        let r = &mut self.readers[n];
        while r.ready.end < r.window.end && self.leaves[r.order[r.ready.end] as usize] == Leaf::Done {
            r.ready.push(self.sizes[r.order[r.ready.end] as usize]);
        }
    }

    // ---- whom to ask for what ----

    /// Asks for what readers are about to need.
    pub(super) fn serve_readers(&mut self, now: Duration) {
        for n in 0..self.readers.len() {
            self.ask_in_order(now, n);
            self.ask_again(now, n);
        }
    }

    fn ask_in_order(&mut self, now: Duration, n: usize) {
        let r = &mut self.readers[n];
        while r.asked.end < r.soon.end && !self.picker.contains(r.order[r.asked.end]) {
            r.asked.push(self.sizes[r.order[r.asked.end] as usize]);
        }
        let order = r.order.clone();
        let Zone { end: mut place, bytes: mut before } = r.asked;
        let mut passed = 0;
        let end = self.readers[n].soon.end.min(place + MOST_LOOKS);
        while place < end && passed < MOST_PASSED {
            let leaf = order[place];
            if self.picker.contains(leaf) {
                let due = self.readers[n].due(before);
                match self.whom(leaf, due) {
                    Some(slot) => self.ask_from(now, n, slot, place),
                    None => passed += 1,
                }
            }
            before += u64::from(self.sizes[leaf as usize]);
            place += 1;
        }
    }

    /// Asks `slot` for the leaf at `place` and those behind it that it has, as far as they are to be asked for in order.
    fn ask_from(&mut self, now: Duration, n: usize, slot: u32, place: usize) {
        let Some(p) = self.at(slot) else { return };
        let room = self.window_of(p).saturating_sub(p.in_flight);
        let target = if p.snubbed { 1 } else { p.batch_bytes(self.config.largest_batch).min(room) };
        let (order, end) = (self.readers[n].order.clone(), self.readers[n].soon.end);
        let (mut leaves, mut bytes) = (vec![], 0);
        for leaf in order[place..end].iter().copied() {
            if leaves.len() >= self.config.most_leaves || bytes >= target && !leaves.is_empty() {
                break;
            }
            if !self.picker.contains(leaf) || !self.at(slot).is_some_and(|p| p.has(leaf)) {
                continue;
            }
            self.picker.remove(leaf);
            let size = u64::from(self.sizes[leaf as usize]);
            self.bytes_needed -= size;
            bytes += size;
            leaves.push(leaf);
        }
        self.request(now, slot, leaves, bytes);
    }

    /// Who is to be asked for `leaf`, which is due in so many seconds: whoever would bring it soonest. If that one has
    /// enough to do for now, another one, as long as it would bring it in time.
    fn whom(&mut self, leaf: u32, due: f64) -> Option<u32> {
        let best = self.soonest_of(leaf, [None, None], false)?;
        let free = self.soonest_of(leaf, [None, None], true)?;
        (free.slot == best.slot || free.eta <= due.max(best.eta)).then_some(free.slot)
    }

    /// Of the peers that have `leaf` and are not among `but`, the one that would bring it soonest, if asked now; of all, or
    /// of those that have room for another request.
    fn soonest_of(&mut self, leaf: u32, but: [Option<PeerIx>; 2], with_room: bool) -> Option<Offer> {
        let count = self.peers.len();
        let from = if count > PEER_SAMPLE { self.draw(count) } else { 0 };
        let unknown = self.unknown_rate();
        let size = u64::from(self.sizes[leaf as usize]);
        let mut best: Option<Offer> = None;
        for slot in (from..count).chain(0..from).take(PEER_SAMPLE) {
            let Some(p) = self.peers[slot].as_ref().filter(|p| p.has(leaf)) else { continue };
            if p.choked || p.paused.is_some() || but.contains(&Some(p.ix)) {
                continue;
            }
            if with_room && p.in_flight >= self.window_of(p) {
                continue;
            }
            let offer = Offer { slot: slot as u32, eta: p.eta(size, unknown), queued: p.in_flight, rtt: p.rtt };
            let key = |o: &Offer| (o.queued, o.rtt);
            let better = best.as_ref().is_none_or(|b| match offer.eta.total_cmp(&b.eta) {
                std::cmp::Ordering::Equal => key(&offer) < key(b),
                order => order.is_lt(),
            });
            if better {
                best = Some(offer);
            }
        }
        best
    }

    /// A reader's own end game: of the leaves that it reads next, one that is late is asked for a second time. It is late
    /// if it takes longer than leaves usually do, or will be missed though another peer would bring it soon enough.
    fn ask_again(&mut self, now: Duration, n: usize) {
        self.pass_ready(n);
        let r = &self.readers[n];
        let (order, soon) = (r.order.clone(), r.soon.end);
        let Zone { end: from, bytes: mut before } = r.ready;
        let longest = self.waits.longest().unwrap_or(self.config.first_late);
        let mut look_at: Option<Duration> = None;
        let mut look = |at: Duration| look_at = Some(look_at.map_or(at, |other| other.min(at)));
        for leaf in order[from..soon.max(from)].iter().copied().take(WATCHED) {
            let due = self.readers[n].due(before);
            before += u64::from(self.sizes[leaf as usize]);
            let Some(holders) = self.asked.get(&leaf).copied() else { continue };
            let late_at = holders.at + longest;
            if now < late_at {
                look(late_at);
                if holders.second.is_some() {
                    continue;
                }
            }
            let but = [Some(holders.first.0), holders.second.map(|second| second.0)];
            let Some(other) = self.soonest_of(leaf, but, false).filter(|o| self.at(o.slot).is_some_and(|p| !p.late))
            else {
                continue;
            };
            let asked = [Some(holders.first), holders.second].into_iter().flatten();
            let theirs = asked.map(|(peer, batch)| self.rest_of(peer, batch, leaf)).fold(f64::INFINITY, f64::min);
            let again = theirs > due
                && match now < late_at {
                    true => theirs > LATE * other.eta && other.eta.is_finite(),
                    // where nothing is known of either, another one is worth a try
                    false => theirs.is_infinite() || theirs > other.eta,
                };
            if !again {
                if now >= late_at {
                    look(now + longest);
                }
                continue;
            }
            if let Some((peer, batch)) = holders.second {
                // a request that holds more is left to run
                let alone = self.peer(peer).and_then(|p| p.batches.get(&batch)).is_some_and(|b| b.leaves == [leaf]);
                if !alone {
                    continue;
                }
                self.actions.push_back(Action::Cancel { peer, batch });
                self.take_back(peer, batch);
            }
            let size = u64::from(self.sizes[leaf as usize]);
            self.request(now, other.slot, vec![leaf], size);
            look(now + longest);
        }
        self.readers[n].look_at = look_at;
    }

    /// Seconds until `peer` will have sent `leaf`, which it was asked for in this request.
    fn rest_of(&self, peer: PeerIx, batch: BatchId, leaf: u32) -> f64 {
        let Some(p) = self.peer(peer) else { return f64::INFINITY };
        let before = p.batches.range(..batch).flat_map(|(_, b)| &b.leaves);
        let within = p.batches.get(&batch).into_iter().flat_map(|b| b.leaves.iter().take_while(|l| **l <= leaf));
        let mut leaves = before.chain(within).map(|leaf| u64::from(self.sizes[*leaf as usize]));
        let bytes = leaves.by_ref().take(MOST_LOOKS).sum();
        p.eta_of(if leaves.next().is_none() { bytes } else { p.in_flight })
    }

    /// Whether `p` is of no use for any window: what it were asked for now would have to be asked of others as well.
    pub(super) fn is_too_slow(&self, p: &Peer) -> bool {
        let eta = p.eta(LEAST_SOON / 4, self.unknown_rate());
        self.on_demand && self.readers.iter().all(|r| r.meter.rate() > 0.0 && r.due(r.window.bytes) < eta)
    }

    /// In a swarm on demand, what to ask a seeder for beyond what is asked for in order: this leecher's own stripe of what
    /// no leecher has, and when leechers have everything, a rare leaf. What others own comes in order at the latest.
    pub(super) fn pick_ahead(&mut self, slot: u32) -> Option<u32> {
        let eta = self.at(slot)?.eta(LEAST_SOON / 4, self.unknown_rate());
        for n in 0..self.readers.len() {
            let r = &mut self.readers[n];
            if r.own.end < r.soon.end {
                r.own = r.soon;
            }
            let order = r.order.clone();
            let mut zone = r.own;
            // a slow peer is asked for what will be read later; what it passes over stays for the others
            let mut passes_over = false;
            let mut looks = 0;
            while zone.end < self.readers[n].window.end && looks < MOST_LOOKS {
                let leaf = order[zone.end];
                let due = self.readers[n].due(zone.bytes);
                let own = self.picker.contains(leaf) && self.picker.availability(leaf) == 0 && self.stripe.owns(leaf);
                let in_time = due == 0.0 || eta <= due;
                zone.push(self.sizes[leaf as usize]);
                passes_over |= own && !in_time;
                looks += usize::from(passes_over);
                if !passes_over {
                    self.readers[n].own = zone;
                }
                if own && in_time {
                    return Some(leaf);
                }
            }
        }
        match self.picker.only_at_seeders() {
            [] => {
                let at = self.draw(self.picker.len().clamp(1, WATCHED));
                self.picker.rarest_first().get(at).copied()
            }
            [first, ..] if self.starved.is_some() => Some(*first),
            _ => None,
        }
    }
}
