//! When peers are told of leaves that came. Sans-IO.
//!
//! A have for each leaf to each peer is a packet, an acknowledgement and two wake-ups for it: among 24 peers of 40 Mbit/s that
//! was more work than the leaves themselves. So what peers can get elsewhere waits a little, and travels together; what
//! nobody else has is told at once, for the others have nothing to do before they hear of it, and takes along what waits.
//! Who the peers are, and what they are sent, is not known here.

use std::time::Duration;

/// Between two announcements passes so much time for each peer that hears them, so that a side sends 500 haves a second;
const PAUSE: Duration = Duration::from_millis(2);
/// and this at most: with many peers what one of them has is elsewhere as well.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Leaves of a root that came, and that peers have not been told of.
///
/// Call [`handle_leaf`](Self::handle_leaf) for each that can be served, then
/// [`poll_announce`](Self::poll_announce), and that again at [`poll_timeout`](Self::poll_timeout). Times must not go
/// backwards. A leaf may be handled again after it was announced; what waits is bounded by the leaves of the root.
#[derive(Debug, Default)]
pub struct Haves {
    waiting: Vec<u32>,
    /// When peers were last told of any.
    told: Option<Duration>,
}

impl Haves {
    /// `leaf` is here, and nobody has been told.
    pub fn handle_leaf(&mut self, leaf: u32) {
        self.waiting.push(leaf);
    }

    /// Leaves that wait, in the order in which they came.
    pub fn waiting(&self) -> &[u32] {
        &self.waiting
    }

    /// What `peers` peers are to be told now; nothing if it can wait, unless it is `urgent`.
    pub fn poll_announce(&mut self, now: Duration, peers: usize, urgent: bool) -> Vec<u32> {
        if self.poll_timeout(peers).is_none_or(|at| now < at && !urgent) {
            return vec![];
        }
        self.told = Some(now);
        std::mem::take(&mut self.waiting)
    }

    /// When [`poll_announce`](Self::poll_announce) is to be called, if nothing else happens first.
    pub fn poll_timeout(&self, peers: usize) -> Option<Duration> {
        let pause = PAUSE.saturating_mul(peers.try_into().unwrap_or(u32::MAX)).min(LONGEST_PAUSE);
        (!self.waiting.is_empty()).then(|| self.told.map_or(Duration::ZERO, |told| told + pause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn the_first_is_told_at_once_and_the_next_wait_for_each_other() {
        let mut haves = Haves::default();
        assert!(haves.poll_timeout(20).is_none() && haves.poll_announce(MS(5), 20, true).is_empty());
        haves.handle_leaf(7);
        assert_eq!(haves.poll_announce(MS(10), 20, false), [7]);
        haves.handle_leaf(9);
        haves.handle_leaf(3);
        assert!(haves.poll_announce(MS(49), 20, false).is_empty());
        assert_eq!(haves.poll_timeout(20), Some(MS(50)));
        assert_eq!(haves.poll_announce(MS(50), 20, false), [9, 3]);
        assert_eq!(haves.poll_timeout(20), None);
    }

    #[test]
    fn what_is_urgent_waits_for_nothing_and_takes_along_what_waits() {
        let mut haves = Haves::default();
        haves.handle_leaf(1);
        assert_eq!(haves.poll_announce(MS(0), 8, false), [1]);
        haves.handle_leaf(2);
        assert!(haves.poll_announce(MS(1), 8, false).is_empty());
        haves.handle_leaf(3);
        assert_eq!(haves.poll_announce(MS(1), 8, true), [2, 3]);
    }

    /// However many peers there are, and whatever comes, nothing waits longer than the longest pause, and not many are
    /// told often.
    #[test]
    fn the_more_peers_the_fewer_announcements_within_bounds() {
        let each_second = |peers: usize| {
            let (mut haves, mut times, mut last) = (Haves::default(), 0, 0);
            for ms in 0..1_000u64 {
                haves.handle_leaf(ms as u32);
                if !haves.poll_announce(MS(ms), peers, false).is_empty() {
                    assert!(MS(ms - last) <= LONGEST_PAUSE, "{ms}");
                    (times, last) = (times + 1, ms);
                }
            }
            times
        };
        assert_eq!([0, 1, 10, 25, 100_000].map(each_second), [1_000, 500, 50, 20, 4]);
    }
}
