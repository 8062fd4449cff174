//! Which leaf to ask for that was asked of somebody else already: one that is late is asked for a second time, one that
//! waits in a long queue is asked of another peer instead. Here comes only who has nothing new to give. What is late for a
//! reader is dealt with in `read`.

use super::{choose::MANY, *};

/// A leaf is late when another peer would bring it so many times as soon.
pub(super) const LATE: f64 = 1.6;
/// How many late leaves are looked at for a second request.
const LATE_SAMPLE: usize = 32;
/// How many leaves of peers that are late are looked at for a second request, of all of them together: where there are more,
/// enough of them are asked for twice already, or will be when these are.
const LATE_LOOKS: usize = 512;
/// A leaf that waits is asked of another peer if it would wait there for a third of the time, and for so much less. To stop a
/// request that has begun costs what was sent of it.
const SOONER: f64 = 3.0;
const SOONER_BY: Duration = Duration::from_millis(50);

impl Swarm {
    /// A leaf to ask `slot` for although another peer was asked for it.
    pub(super) fn pick_again(&mut self, now: Duration, slot: u32) -> Option<u32> {
        self.pick_at_late(slot).or_else(|| self.pick_waiting(now, slot)).or_else(|| self.pick_late(slot))
    }

    /// A leaf that a late peer was asked for and `slot` has, to be asked for a second time: `slot` has nothing better to
    /// give. If the second one to be asked is late as well, it is told to stop. While other leaves are on their way,
    /// those who are merely late keep theirs: in a crowd most of them are busy, and a second copy costs the others. One from
    /// a seeder costs them most while it has leaves that nobody else has: then it stands in for other seeders only.
    fn pick_at_late(&mut self, slot: u32) -> Option<u32> {
        let p = self.at(slot).filter(|p| !p.late)?;
        let has_rare = p.is_seeder() && !self.picker.only_at_seeders().is_empty() && self.starved.is_none();
        let of_late: u64 = self.late.iter().filter_map(|slot| self.at(*slot)).map(|p| p.in_flight).sum();
        let urgent = self.picker.len() == 0 || self.starved.is_some() || self.in_flight.all() == of_late;
        let is_late = |(holder, _)| self.peer(holder).is_none_or(|h| h.late);
        let late = self.late.iter().filter_map(|late| self.at(*late));
        let late = late.filter(|h| (urgent || h.snubbed) && (!has_rare || h.is_seeder()));
        let each = (LATE_LOOKS / self.late.len().max(1)).max(1);
        let held = late.flat_map(|h| h.batches.values().flat_map(|b| b.leaves.iter().copied()).take(each));
        #[cfg(test)]
        let held = held.inspect(|_| self.looked.set(self.looked.get() + 1));
        let mut leaves = held.filter(|leaf| p.has(*leaf));
        let (leaf, second) = leaves.find_map(|leaf| {
            let holders = self.asked.get(&leaf)?;
            let all_late = is_late(holders.first) && holders.second.is_none_or(is_late);
            // a request that holds more is left to run
            let alone = |(peer, batch)| self.peer(peer).and_then(|p| p.batches.get(&batch)).map(|b| b.leaves.len());
            let may_end = holders.second.is_none_or(|second| alone(second) == Some(1));
            (all_late && may_end).then_some((leaf, holders.second))
        })?;
        if let Some((peer, batch)) = second {
            self.actions.push_back(Action::Cancel { peer, batch });
            self.take_back(peer, batch);
        }
        Some(leaf)
    }

    /// In a crowd, a leaf that waits at a peer whose queue is long while `slot` has it and little to do: early holders of a
    /// leaf are asked by many, later ones would stand idle. The request that waits is stopped.
    fn pick_waiting(&mut self, now: Duration, slot: u32) -> Option<u32> {
        if self.on_demand || self.slots.len() as u64 <= MANY {
            return None;
        }
        let from = self.draw(self.sizes.len()) as u32;
        let p = self.at(slot).filter(|p| !p.late && !p.snubbed && !p.is_seeder() && p.in_flight == 0)?;
        let mut longest = SOONER * (p.told_wait(now)? + p.rtt.as_secs_f64()) + SOONER_BY.as_secs_f64();
        let mut found = None;
        for (leaf, holders) in self.asked.range(from..).chain(self.asked.range(..from)).take(LATE_SAMPLE) {
            let (holder, batch) = holders.first;
            if holders.second.is_some() || holder == p.ix || !p.has(*leaf) {
                continue;
            }
            let Some(h) = self.peer(holder).filter(|h| h.batches.contains_key(&batch)) else { continue };
            let begun = h.heard && h.batches.keys().next() == Some(&batch);
            let waits = match h.wait {
                // at most as long as one that is made when the holder says how long that is
                Some((wait, said)) => (wait + said.max(holders.at)).saturating_sub(now),
                // whoever says nothing, as seeders do, takes as long again as it took
                None => now.saturating_sub(holders.at),
            };
            let waits = waits.as_secs_f64();
            if !begun && waits > longest {
                longest = waits;
                found = Some((*leaf, holder, batch));
            }
        }
        let (leaf, holder, batch) = found?;
        if !self.call_off(holder, batch, leaf) {
            return None;
        }
        self.asked.remove(&leaf);
        Some(leaf)
    }

    /// End game: everything is asked for (on demand that is always so, and readers see to it themselves). A leaf that
    /// `slot` would bring well before the one who was asked is asked for a second time; who comes first wins, the other
    /// request is cancelled.
    fn pick_late(&mut self, slot: u32) -> Option<u32> {
        if self.picker.len() > 0 || self.on_demand || self.slots.len() < 2 || self.at(slot)?.late {
            return None;
        }
        let from = self.draw(self.sizes.len()) as u32;
        let p = self.at(slot)?;
        let mut best: Option<(f64, u32)> = None;
        for (leaf, holders) in self.asked.range(from..).chain(self.asked.range(..from)).take(LATE_SAMPLE) {
            let holder = holders.first.0;
            if holders.second.is_some() || holder == p.ix || !p.has(*leaf) {
                continue;
            }
            let Some(h) = self.peer(holder) else { continue };
            let theirs = h.eta(0, 0.0);
            let ours = p.eta(u64::from(self.sizes[*leaf as usize]), 0.0);
            if theirs > LATE * ours && best.is_none_or(|(b, _)| theirs > b) {
                best = Some((theirs, *leaf));
            }
        }
        best.map(|(_, leaf)| leaf)
    }
}
