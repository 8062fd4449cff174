//! What happens when nothing happens: stalled peers, pauses that end, starving, leaves that keep a
//! reader waiting. No other timer exists in the scheduler.

use super::{super::peer::Lane, *};
use std::{cmp::Reverse, collections::BinaryHeap};

/// With leaves to fetch, nothing asked of anybody and nothing to ask for but what others own, wait so long.
const STARVE: Duration = Duration::from_millis(500);

/// Peers that were held back and are looked at again when waiting has been of no use.
const RELEASE_AT_ONCE: usize = 64;

/// Times at which a peer is to be looked at. A time may be too early, never too late; whoever looks sets the next one.
#[derive(Debug, Default)]
pub(super) struct Alarms(BinaryHeap<Reverse<(Duration, u32)>>);

impl Alarms {
    pub(super) fn set(&mut self, at: Duration, slot: u32) {
        self.0.push(Reverse((at, slot)));
    }

    fn next(&self) -> Option<Duration> {
        self.0.peek().map(|Reverse((at, _))| *at)
    }

    fn pop(&mut self, now: Duration) -> Option<(Duration, u32)> {
        let Reverse(first) = *self.0.peek()?;
        (first.0 <= now).then(|| {
            self.0.pop();
            first
        })
    }
}

impl Swarm {
    /// When [`handle_timeout`](Self::handle_timeout) is to be called, if nothing else happens first. It may turn out that
    /// nothing was to be done yet.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let starving = self.idle_since.filter(|_| self.starved.is_none()).map(|since| since + STARVE);
        let held = self.held_since.and(self.next_release);
        let reading = self.readers.iter().filter_map(|r| r.look_at);
        self.alarms.next().into_iter().chain(self.opening.poll_end()).chain(starving).chain(held).chain(reading).min()
    }

    /// Time has passed: peers that stalled lose what they were asked for to peers that can deliver it.
    pub fn handle_timeout(&mut self, now: Duration) {
        while let Some((at, slot)) = self.alarms.pop(now) {
            self.look(now, at, slot);
        }
        if self.opening.poll_end().is_some_and(|at| at <= now) {
            self.opening.end();
            self.wake_seeders();
        }
        if self.next_release.is_some_and(|at| at <= now) {
            self.next_release = None;
            self.release_held(RELEASE_AT_ONCE);
        }
        if self.idle_since.is_some_and(|since| since + STARVE <= now) && self.starved.is_none() {
            self.starved = Some(0);
            self.wake_seeders();
            self.late.first().copied().into_iter().for_each(|slot| self.wake_others(slot));
        }
    }

    fn look(&mut self, now: Duration, at: Duration, slot: u32) {
        let Some(p) = &mut self.peers[slot as usize] else { return };
        if p.paused.is_some_and(|until| until <= now) {
            p.paused = None;
            return self.ready(slot);
        }
        // a later alarm of a peer that was to be looked at earlier is void
        if p.alarmed != Some(at) {
            return;
        }
        p.alarmed = None;
        let Some(p) = self.at(slot) else { return };
        if p.in_flight > 0 && self.due(p) <= now {
            if p.late { self.stalled(now, slot) } else { self.fell_silent(slot) }
        }
        self.watch(slot);
    }

    /// `slot` is looked at when it could be late or have stalled, if it was asked for something.
    pub(super) fn watch(&mut self, slot: u32) {
        let Some(p) = self.at(slot) else { return };
        let due = self.due(p);
        if p.in_flight > 0 && p.alarmed.is_none_or(|at| due < at) {
            self.alarms.set(due, slot);
            if let Some(p) = &mut self.peers[slot as usize] {
                p.alarmed = Some(due);
            }
        }
    }

    /// When silence makes `p` late, then stalled, then dropped.
    fn due(&self, p: &Peer) -> Duration {
        let c = &self.config;
        let wait = match (p.late, p.silence()) {
            (false, None) => c.first_late,
            (false, Some(silence)) => silence.clamp(c.least_late, c.most_timeout),
            (true, _) if p.snubbed => c.patience,
            (true, None) => c.most_timeout,
            (true, Some(silence)) => silence.clamp(c.least_timeout, c.most_timeout),
        };
        p.last_active + wait
    }

    /// `slot` has been silent for longer than usual: who has nothing else to do may be asked for its leaves, and what is
    /// on its way from it does not count as what is asked of all.
    fn fell_silent(&mut self, slot: u32) {
        let Some(p) = &mut self.peers[slot as usize] else { return };
        p.late = true;
        for b in p.batches.values_mut() {
            let bytes = b.leaves.iter().map(|l| u64::from(self.sizes[*l as usize])).sum::<u64>();
            *self.in_flight.lane(b.lane) -= bytes;
            b.lane = Lane::Stuck;
            *self.in_flight.lane(b.lane) += bytes;
        }
        self.late.push(slot);
        self.wake_others(slot);
    }

    /// Looks at all but `slot` again. O(peers): it happens where something failed.
    pub(super) fn wake_others(&mut self, slot: u32) {
        (0..self.peers.len() as u32).filter(|other| *other != slot).for_each(|other| self.ready(other));
    }

    /// `slot` sent nothing for too long: what others can deliver is taken from it. One that stalls again, or whose
    /// leaves nobody else has, is dropped when patience ends.
    fn stalled(&mut self, now: Duration, slot: u32) {
        let Some(p) = self.at(slot) else { return };
        let peer = p.ix;
        if p.snubbed {
            return self.drop_peer(now, peer, DropReason::Stalled);
        }
        let others: Vec<&Peer> =
            self.peers.iter().flatten().filter(|o| o.ix != peer && !o.choked && !o.snubbed).collect();
        let movable: Vec<BatchId> = (p.batches.iter())
            .filter(|(_, b)| b.leaves.iter().any(|l| others.iter().any(|o| o.has(*l))))
            .map(|(id, _)| *id)
            .collect();
        // what it was asked for is offered to the others first, and to it last
        if let Some(p) = &mut self.peers[slot as usize] {
            p.snubbed = true;
        }
        for batch in movable {
            self.actions.push_back(Action::Cancel { peer, batch });
            self.handle_ended(now, peer, batch, false);
        }
    }
}
