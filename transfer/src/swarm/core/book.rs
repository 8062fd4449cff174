//! The accounts: what became of a leaf, what a peer has, who counts as a leecher. No choice between peers or leaves.

use super::{
    super::peer::{Batch, Lane},
    *,
};

/// A leecher is silent when the others have announced so many leaves each since its last one, and so much time has passed:
/// where leaves are short or links fast, whoever is busy for a moment falls that far behind. It owns nothing then.
const SILENT_AFTER: u64 = 16;
const SILENT_FOR: Duration = Duration::from_secs(2);

impl Swarm {
    /// Takes `leaf` out of a request's list; false if it is not in it.
    pub(super) fn take_from_batch(&mut self, peer: PeerIx, batch: BatchId, leaf: u32) -> bool {
        let Some(slot) = self.slots.get(&peer).copied() else { return false };
        let Some(p) = &mut self.peers[slot as usize] else { return false };
        let Some(b) = p.batches.get_mut(&batch) else { return false };
        if !b.take(leaf) {
            return false;
        }
        let size = u64::from(self.sizes[leaf as usize]);
        p.in_flight -= size;
        *self.in_flight.lane(b.lane) -= size;
        if b.leaves.is_empty() {
            p.batches.remove(&batch);
        }
        self.strays.remove(&leaf);
        p.snubbed = false;
        self.ready(slot);
        true
    }

    /// A request is void: what it did not bring is needed again.
    pub(super) fn take_back(&mut self, peer: PeerIx, batch: BatchId) {
        let Some(slot) = self.slots.get(&peer).copied() else { return };
        let Some(p) = &mut self.peers[slot as usize] else { return };
        let Some(b) = p.batches.remove(&batch) else { return };
        let bytes = b.leaves.iter().map(|l| u64::from(self.sizes[*l as usize])).sum();
        p.in_flight -= bytes;
        self.landed(&b, bytes);
        self.release(peer, batch, b.leaves);
        self.ready(slot);
    }

    /// So many bytes of a request are no longer on their way.
    pub(super) fn landed(&mut self, b: &Batch, bytes: u64) {
        *self.in_flight.lane(b.lane) -= bytes;
    }

    pub(super) fn release(&mut self, peer: PeerIx, batch: BatchId, leaves: impl IntoIterator<Item = u32>) {
        for leaf in leaves {
            self.unask(peer, batch, leaf);
        }
    }

    /// One request for `leaf` is void; without another one it is needed again.
    pub(super) fn unask(&mut self, peer: PeerIx, batch: BatchId, leaf: u32) {
        let Some(holders) = self.asked.get_mut(&leaf) else { return };
        let void = (peer, batch);
        match holders.second {
            Some(second) if holders.first == void => *holders = Holders { first: second, second: None, ..*holders },
            Some(second) if second == void => holders.second = None,
            None if holders.first == void => {
                self.asked.remove(&leaf);
                self.need(leaf);
            }
            _ => {}
        }
    }

    /// Stops a request that holds `leaf` alone. False: it holds more, or is over.
    pub(super) fn call_off(&mut self, peer: PeerIx, batch: BatchId, leaf: u32) -> bool {
        let Some(slot) = self.slots.get(&peer).copied() else { return false };
        let Some(p) = &mut self.peers[slot as usize] else { return false };
        if p.batches.get(&batch).is_none_or(|b| b.leaves != [leaf]) {
            return false;
        }
        let size = u64::from(self.sizes[leaf as usize]);
        p.in_flight -= size;
        if let Some(b) = p.batches.remove(&batch) {
            self.landed(&b, size);
        }
        self.ready(slot);
        self.actions.push_back(Action::Cancel { peer, batch });
        true
    }

    /// `leaf` is here: whoever else was asked for it alone is told to stop.
    pub(super) fn overtake(&mut self, leaf: u32, by: (PeerIx, BatchId)) {
        let Some(holders) = self.asked.remove(&leaf) else { return };
        for (other, batch) in [Some(holders.first), holders.second].into_iter().flatten().filter(|h| *h != by) {
            let Some(p) = self.peer_mut(other) else { continue };
            p.overtaken += 1;
            // a request that holds more is left to run: stopping it would cost its other leaves
            if !self.call_off(other, batch, leaf) {
                let first = (other, batch);
                let stray = self.strays.entry(leaf).or_insert(Holders { first, second: None, at: holders.at });
                if stray.first != first {
                    stray.second = Some(first);
                }
            }
        }
    }

    /// `leaf` is to be asked for again, unless readers alone decide and none is near it. It happens where something failed.
    pub(super) fn need(&mut self, leaf: u32) {
        // a second copy whose request was left to run is welcome now
        if let Some(stray) = self.strays.remove(&leaf) {
            let runs = |(peer, batch): &(PeerIx, BatchId)| {
                self.peer(*peer).and_then(|p| p.batches.get(batch)).is_some_and(|b| b.leaves.contains(&leaf))
            };
            let mut coming = [Some(stray.first), stray.second].into_iter().flatten().filter(runs);
            if let Some(first) = coming.next() {
                let holders = Holders { first, second: coming.next(), ..stray };
                self.leaves[leaf as usize] = Leaf::Asked;
                self.asked.insert(leaf, holders);
                return self.rewind();
            }
        }
        if self.on_demand && !self.windows.contains_key(&leaf) {
            self.leaves[leaf as usize] = Leaf::Parked;
            return;
        }
        self.stripe.restart();
        self.rewind();
        self.list(leaf);
    }

    /// `leaf` may be asked for from now on. O(peers).
    pub(super) fn list(&mut self, leaf: u32) {
        self.leaves[leaf as usize] = Leaf::Needed;
        self.bytes_needed += u64::from(self.sizes[leaf as usize]);
        self.picker.insert(leaf);
        for slot in 0..self.peers.len() as u32 {
            let Some(p) = self.peers[slot as usize].as_mut().filter(|p| p.has(leaf)) else { continue };
            if !p.is_seeder() {
                p.suggest(leaf);
            }
            self.ready(slot);
        }
    }

    pub(super) fn done(&mut self, leaf: u32) {
        match self.leaves[leaf as usize] {
            Leaf::Done | Leaf::Unwanted => return,
            Leaf::Needed => {
                self.picker.remove(leaf);
                self.bytes_needed -= u64::from(self.sizes[leaf as usize]);
            }
            Leaf::Asked => self.overtake(leaf, (PeerIx(u32::MAX), BatchId(u64::MAX))),
            Leaf::Arrived | Leaf::Parked => {}
        }
        self.uncount(leaf);
        self.leaves[leaf as usize] = Leaf::Done;
        self.progress.leaves_done += 1;
        self.progress.bytes_done += u64::from(self.sizes[leaf as usize]);
        if self.is_complete() {
            (0..self.peers.len() as u32).for_each(|slot| self.tell_interest(slot));
        }
    }

    pub(super) fn lacks(&mut self, slot: u32, leaf: u32) {
        let Some(p) = &mut self.peers[slot as usize] else { return };
        if !p.has(leaf) {
            return;
        }
        let was_seeder = p.is_seeder();
        p.have.set(leaf as usize, false);
        p.have_count -= 1;
        if !was_seeder {
            return self.picker.lost(leaf);
        }
        // it is in the list of the seeders
        let listed = p.at_ready != ABSENT;
        p.have_count += 1;
        self.unready(slot);
        if let Some(p) = &mut self.peers[slot as usize] {
            p.have_count -= 1;
            p.unscanned = Some(0);
            self.work += u64::from(p.have_count);
            p.have.ones().for_each(|leaf| self.picker.gained(leaf as u32));
        }
        self.leechers += 1;
        self.settle_later(slot);
        if listed {
            self.ready(slot);
        }
    }

    pub(super) fn drop_peer(&mut self, now: Duration, peer: PeerIx, reason: DropReason) {
        if self.slots.contains_key(&peer) {
            self.handle_gone(now, peer);
            self.actions.push_back(Action::Drop { peer, reason });
        }
    }

    /// `leaves`, which only seeders had, were announced by a leecher: the others do their part.
    pub(super) fn came_out(&mut self, now: Duration, leaves: &[u32]) {
        if leaves.is_empty() {
            return;
        }
        self.starved = None;
        self.idle_since = self.idle_since.map(|_| now);
        self.outflow.add(now, leaves.iter().map(|l| u64::from(self.sizes[*l as usize])).sum());
        leaves.iter().for_each(|leaf| self.uncount(*leaf));
        self.wake_seeders();
    }

    /// `leaf` no longer holds up the horizon.
    fn uncount(&mut self, leaf: u32) {
        if self.pending.contains(leaf as usize) {
            self.pending.set(leaf as usize, false);
            self.pending_bytes -= u64::from(self.sizes[leaf as usize]);
        }
    }

    /// Moves the horizon until so many bytes before it have not come out.
    pub(super) fn look_ahead(&mut self, pending: u64) {
        while self.pending_bytes < pending && self.horizon < self.sizes.len() as u32 {
            let leaf = self.horizon;
            self.horizon += 1;
            let open = matches!(self.leaves[leaf as usize], Leaf::Needed | Leaf::Asked);
            if open && self.picker.availability(leaf) == 0 {
                self.pending.insert(leaf as usize);
                self.pending_bytes += u64::from(self.sizes[leaf as usize]);
            }
        }
    }

    // ---- leechers ----

    /// Whether `slot` is a leecher is decided when what it has is known: before the next decision.
    pub(super) fn settle_later(&mut self, slot: u32) {
        self.work += self.sizes.len() as u64;
        self.unsettled.push(slot);
    }

    /// Deals stripes anew for the leechers that came, changed or fell silent. O(leaves) for each.
    pub(super) fn settle_leechers(&mut self, now: Duration) {
        let (mut changed, mut joined) = (false, false);
        while let Some(slot) = self.unsettled.pop() {
            let silent = self.is_silent(now, slot);
            let Some(p) = &mut self.peers[slot as usize] else { continue };
            let counts = !p.is_seeder() && !silent && p.reaches;
            if counts != p.striped {
                p.striped = counts;
                changed = true;
                joined |= counts;
                if counts { self.stripe.join(p.tag) } else { self.stripe.leave(p.tag) }
            }
        }
        if joined {
            self.opening.joined(now);
            self.disown(now);
        }
        if changed {
            self.rewind();
            self.wake_seeders();
        }
    }

    /// Takes requests back that wait at seeders for leaves that a newcomer owns now: it will ask for them itself. In the
    /// opening nobody else asks for them, but there are more to share the seeders. What a seeder may have begun to send is
    /// left to come. O(requests).
    fn disown(&mut self, now: Duration) {
        let opening = !self.opening.is_over(now);
        let mut void = vec![];
        for p in self.peers.iter().flatten().filter(|p| p.is_seeder()) {
            let first = usize::from(p.heard || opening);
            for (batch, b) in p.batches.iter().skip(first).filter(|(_, b)| b.lane == Lane::Scarce) {
                let mut scarce = b.leaves.iter().filter(|leaf| self.picker.availability(**leaf) == 0);
                if opening || scarce.any(|leaf| !self.stripe.owns(*leaf)) {
                    void.push((p.ix, *batch));
                }
            }
        }
        for (peer, batch) in void {
            self.actions.push_back(Action::Cancel { peer, batch });
            self.take_back(peer, batch);
        }
    }

    fn is_silent(&self, now: Duration, slot: u32) -> bool {
        let far = SILENT_AFTER * u64::from(self.leechers.max(1));
        self.at(slot).is_some_and(|p| self.announced - p.spoke_at.0 > far && p.spoke_at.1 + SILENT_FOR < now)
    }

    /// A leecher announced something: it counts, and one of the others is looked at for having fallen silent.
    pub(super) fn spoke(&mut self, now: Duration, slot: u32) {
        self.announced += 1;
        if let Some(p) = &mut self.peers[slot as usize] {
            p.spoke_at = (self.announced, now);
            if !p.striped && p.reaches {
                self.settle_later(slot);
            }
        }
        self.watch = (self.watch + 1) % self.peers.len().max(1) as u32;
        if self.at(self.watch).is_some_and(|p| p.striped) && self.is_silent(now, self.watch) {
            self.settle_later(self.watch);
        }
    }

    /// Tells all when a seeder is among the peers, or none is any more: whoever reaches none owns nothing of what only they
    /// have. Not before the opening is over, for most find one by then.
    pub(super) fn tell_reach(&mut self, now: Duration) {
        let reaches = self.slots.len() > self.leechers as usize;
        if reaches != self.reaches && (reaches || self.opening.is_over(now)) {
            self.reaches = reaches;
            let told = self.peers.iter().flatten().map(|p| Action::Reach { peer: p.ix, yes: reaches });
            self.actions.extend(told);
        }
    }

    /// Tells a peer whether it has anything that is wanted. The walk goes on where it stopped, so that all of them
    /// together cost O(leaves) for each peer, and O(1) for each have.
    pub(super) fn tell_interest(&mut self, slot: u32) {
        let complete = self.is_complete();
        let Some(p) = &mut self.peers[slot as usize] else { return };
        let settled = |leaf: u32| matches!(self.leaves[leaf as usize], Leaf::Done | Leaf::Unwanted);
        if !complete {
            let idle = |leaf: u32, p: &Peer| !p.has(leaf) || settled(leaf);
            while (p.wants_from as usize) < p.have.len() && idle(p.wants_from, p) {
                p.wants_from += 1;
            }
        }
        let wants = !complete && (p.wants_from as usize) < p.have.len();
        if wants != p.interested {
            p.interested = wants;
            let peer = p.ix;
            self.actions.push_back(Action::Interested { peer, yes: wants });
        }
    }
}
