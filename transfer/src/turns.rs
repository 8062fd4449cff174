//! Whose answers an uplink carries at once, and which comes next. Sans-IO.
//!
//! Of many answers that share an uplink all come late, and until then nobody can pass anything on. Taken in turns, each is
//! through in a fraction of that time, and the uplink carries as much, as long as those who have a turn fill it. Whether
//! they do is looked at all the time: as soon as less is carried than the uplink can, another answer begins, for readers'
//! downlinks are full of what others send now and then, for some milliseconds. What it can carry is measured (`gauge`).
//!
//! At most some times as many are let through as filled it of late. So their number follows from how fast and how far away
//! the readers are, and a machine that is busy with other things is not taken for readers that are slow.
//!
//! Of the answers that wait, those come first whose leaves were sent the fewest times: what is rare multiplies soonest.
//! Bytes, streams and clocks are not known here.

mod gauge;
mod recent;
#[cfg(test)]
mod tests;

use gauge::Gauge;
use recent::Recent;
use std::{collections::BTreeMap, time::Duration};

/// Answers under way at least, and peers that need no turns. A turn ends when all of it is acknowledged, and readers are
/// busy with others now and then: fewer leave gaps.
pub const LEAST: usize = 8;
/// A turn is over after so many times what it should take; within bounds, and before that is known.
const PATIENCE: f64 = 2.0;
const LEAST_TURN: Duration = Duration::from_millis(300);
const MOST_TURN: Duration = Duration::from_secs(3);
const FIRST_TURN: Duration = Duration::from_secs(1);
/// An answer that has waited for so long begins without a turn: a reader that hears nothing for two seconds takes its work
/// elsewhere. Where all are so late, the uplink is shared by all.
const OVERDUE: Duration = Duration::from_millis(1_500);
/// An answer is as rare as the rarest of so many of its leaves.
const LEAVES_LOOKED_AT: usize = 8;

/// An answer's number; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TurnId(pub u64);

/// Says when answers may begin. `P` tells peers apart.
///
/// Call [`handle_request`](Self::handle_request) when there is something to answer, [`handle_sent`](Self::handle_sent) when
/// it is being sent, [`handle_ended`](Self::handle_ended) when that is over, and [`handle_timeout`](Self::handle_timeout) at
/// [`poll_timeout`](Self::poll_timeout); after each, and when less is carried than [`poll_room`](Self::poll_room) tells,
/// [`poll_begin`](Self::poll_begin) until it gives `None`. Times must not go backwards. What it holds is bounded by whoever
/// calls: a place for each answer that has not ended, and some 65,536 counts of leaves.
#[derive(Debug)]
pub struct Turns<P> {
    next: u64,
    waiting: Vec<Waiting<P>>,
    /// Answers that were begun and have not ended.
    sending: BTreeMap<TurnId, Sending<P>>,
    /// Of these, how many have a turn: those for which it is not over.
    turns: usize,
    /// How many of the answers that were begun are not being sent yet.
    coming: usize,
    /// For each peer, answers that have not ended, and how many of them have a turn.
    peers: BTreeMap<P, (usize, usize)>,
    recent: Recent,
    gauge: Gauge,
}

#[derive(Debug)]
struct Waiting<P> {
    id: TurnId,
    peer: P,
    since: Duration,
    bytes: u64,
    /// The first few.
    leaves: Vec<u64>,
}

#[derive(Debug)]
struct Sending<P> {
    peer: P,
    bytes: u64,
    /// It is not being sent yet.
    coming: bool,
    /// When its turn is over; none once it is, or where it never had one.
    until: Option<Duration>,
}

/// Room for another turn.
enum Room {
    /// Whatever is carried.
    Free,
    /// While less than so many bytes per second are carried.
    Below(u64),
    None,
}

impl<P: Ord + Copy> Default for Turns<P> {
    fn default() -> Self {
        Turns {
            next: 0,
            waiting: vec![],
            sending: BTreeMap::new(),
            turns: 0,
            coming: 0,
            peers: BTreeMap::new(),
            recent: Recent::default(),
            gauge: Gauge::default(),
        }
    }
}

impl<P: Ord + Copy> Turns<P> {
    /// An answer of `bytes` to `peer` waits. `leaves` are numbers that tell its leaves apart from all others.
    pub fn handle_request(
        &mut self,
        now: Duration,
        peer: P,
        bytes: u64,
        leaves: impl IntoIterator<Item = u64>,
    ) -> TurnId {
        let id = TurnId(self.next);
        self.next += 1;
        let leaves = leaves.into_iter().take(LEAVES_LOOKED_AT).collect();
        self.waiting.push(Waiting { id, peer, since: now, bytes, leaves });
        self.peers.entry(peer).or_default().0 += 1;
        id
    }

    /// The next answer that may begin, while `rate` bytes per second are carried.
    pub fn poll_begin(&mut self, now: Duration, rate: u64) -> Option<TurnId> {
        let free = match self.room() {
            Room::Free => true,
            Room::Below(full) => rate < full,
            Room::None => false,
        };
        let order = |w: &Waiting<P>| {
            let has_turn = self.peers.get(&w.peer).is_some_and(|(_, turns)| *turns > 0);
            let sent = w.leaves.iter().map(|leaf| self.recent.count(*leaf)).min().unwrap_or(0);
            // those who are overdue, and others with the same count, in the order they came
            (has_turn, if w.since + OVERDUE <= now { None } else { Some(sent) }, w.id)
        };
        let may = self.waiting.iter().enumerate().filter(|(_, w)| free || w.since + OVERDUE <= now);
        let (at, _) = may.min_by_key(|(_, w)| order(w))?;
        let next = self.waiting.swap_remove(at);
        next.leaves.iter().for_each(|leaf| self.recent.add(*leaf));
        self.gauge.account(now, self.sending.len());
        let usual =
            self.gauge.each().and_then(|each| Duration::try_from_secs_f64(PATIENCE * next.bytes as f64 / each).ok());
        let turn = usual.map_or(FIRST_TURN, |usual| usual.clamp(LEAST_TURN, MOST_TURN));
        self.sending.insert(
            next.id,
            Sending { peer: next.peer, bytes: next.bytes, coming: true, until: free.then_some(now + turn) },
        );
        self.coming += 1;
        if free && let Some((_, turns)) = self.peers.get_mut(&next.peer) {
            self.turns += 1;
            *turns += 1;
        }
        Some(next.id)
    }

    /// Some of an answer was handed over for sending: from now on it is seen in what is carried.
    pub fn handle_sent(&mut self, id: TurnId) {
        if let Some(sending) = self.sending.get_mut(&id)
            && std::mem::take(&mut sending.coming)
        {
            self.coming -= 1;
        }
    }

    /// An answer was acknowledged as a whole, or is given up, begun or not.
    pub fn handle_ended(&mut self, now: Duration, id: TurnId) {
        let peer = if let Some(at) = self.waiting.iter().position(|w| w.id == id) {
            self.waiting.swap_remove(at).peer
        } else {
            self.gauge.account(now, self.sending.len());
            let Some(ended) = self.sending.remove(&id) else { return };
            self.coming -= usize::from(ended.coming);
            if ended.until.is_some() {
                self.turn_over(ended.peer);
            }
            ended.peer
        };
        if let Some((answers, _)) = self.peers.get_mut(&peer) {
            *answers -= 1;
            if *answers == 0 {
                self.peers.remove(&peer);
            }
        }
    }

    /// How long what was asked for will take, as far as that is known: what is under way counts half.
    pub fn backlog(&self) -> Option<Duration> {
        let waits: u64 = self.waiting.iter().map(|w| w.bytes).sum();
        let goes: u64 = self.sending.values().map(|s| s.bytes).sum();
        Duration::try_from_secs_f64((waits + goes / 2) as f64 / self.gauge.peak()).ok()
    }

    /// Another answer may begin once less than so many bytes per second are carried.
    pub fn poll_room(&self) -> Option<u64> {
        match self.room() {
            Room::Below(full) if !self.waiting.is_empty() => Some(full),
            _ => None,
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called; never while nothing is sent.
    pub fn poll_timeout(&self) -> Option<Duration> {
        if self.sending.is_empty() {
            return None;
        }
        let over = self.sending.values().filter_map(|s| s.until).min().filter(|_| !self.waiting.is_empty());
        let overdue = self.waiting.iter().map(|w| w.since + OVERDUE).min();
        over.into_iter().chain(overdue).chain([self.gauge.span_ends()]).min()
    }

    /// Time has passed. `delivered`: bytes that were acknowledged so far, by all peers.
    pub fn handle_timeout(&mut self, now: Duration, delivered: u64) {
        self.gauge.account(now, self.sending.len());
        let over = self.sending.values_mut().filter(|s| s.until.is_some_and(|until| until <= now));
        let over: Vec<P> = over
            .map(|s| {
                s.until = None;
                s.peer
            })
            .collect();
        over.into_iter().for_each(|peer| self.turn_over(peer));
        self.gauge.handle_time(now, delivered, !self.waiting.is_empty());
    }

    /// Whether there is room for another turn.
    fn room(&self) -> Room {
        if self.turns < self.gauge.least() || self.peers.len() <= LEAST {
            Room::Free
        } else if self.turns < self.gauge.most() {
            Room::Below(self.gauge.full(self.coming))
        } else {
            Room::None
        }
    }

    fn turn_over(&mut self, peer: P) {
        self.turns -= 1;
        if let Some((_, turns)) = self.peers.get_mut(&peer) {
            *turns -= 1;
        }
    }
}
