//! When peers are told of leaves that came. Sans-IO.
//!
//! A have for each leaf to each peer is a packet, an acknowledgement and two wake-ups for it: among 24 peers of 40 Mbit/s that
//! was more work than the leaves themselves. So what peers can get elsewhere waits a little, and travels together; what
//! nobody else has is told at once, for the others have nothing to do before they hear of it, and takes along what waits.
//! Whoever has nothing to send says sooner what it has than whoever has more requests than it can answer. Who the peers are,
//! and what they are sent, is not known here.

use std::time::Duration;

/// Between two announcements passes so much time for each peer that hears them, so that a side sends 500 haves a second;
const PAUSE: Duration = Duration::from_millis(2);
/// and this at most: with many peers what one of them has is elsewhere as well;
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// or, while this side's uplink is about to stand idle until others hear what they can ask it for, no more than this, and no
/// more than 2,500 haves a second: that is two to three hundredths of what a link of 80 Mbit/s carries, and few need it.
const IDLE_PAUSE: Duration = Duration::from_millis(20);
const IDLE_PAUSE_EACH: Duration = Duration::from_micros(400);
/// An uplink that has less to send than this is about to stand idle: so long it takes to be heard and asked.
const NEARLY_IDLE: Duration = Duration::from_millis(60);

/// How soon the others are to hear what came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// This side's uplink has enough to do.
    Busy,
    /// It has little or nothing to do.
    Idle,
    /// Something came that nobody else has, or that is the last.
    Urgent,
}

impl Pace {
    /// Of what is not urgent, by how long what was asked of this side will take, as far as that is known.
    pub fn of(backlog: Option<Duration>) -> Pace {
        if backlog.is_none_or(|wait| wait < NEARLY_IDLE) { Pace::Idle } else { Pace::Busy }
    }
}

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

    /// What `peers` peers are to be told now; nothing if it can wait.
    pub fn poll_announce(&mut self, now: Duration, peers: usize, pace: Pace) -> Vec<u32> {
        if self.poll_timeout(peers, pace).is_none_or(|at| now < at) {
            return vec![];
        }
        self.told = Some(now);
        std::mem::take(&mut self.waiting)
    }

    /// When [`poll_announce`](Self::poll_announce) is to be called, if nothing else happens first.
    pub fn poll_timeout(&self, peers: usize, pace: Pace) -> Option<Duration> {
        let each = |pause: Duration| pause.saturating_mul(peers.try_into().unwrap_or(u32::MAX));
        let longest = match pace {
            Pace::Busy => LONGEST_PAUSE,
            Pace::Idle => IDLE_PAUSE.max(each(IDLE_PAUSE_EACH)).min(LONGEST_PAUSE),
            Pace::Urgent => Duration::ZERO,
        };
        let pause = each(PAUSE).min(longest);
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
        assert!(
            haves.poll_timeout(20, Pace::Urgent).is_none() && haves.poll_announce(MS(5), 20, Pace::Urgent).is_empty()
        );
        haves.handle_leaf(7);
        assert_eq!(haves.poll_announce(MS(10), 20, Pace::Busy), [7]);
        haves.handle_leaf(9);
        haves.handle_leaf(3);
        assert!(haves.poll_announce(MS(49), 20, Pace::Busy).is_empty());
        assert_eq!(haves.poll_timeout(20, Pace::Busy), Some(MS(50)));
        assert_eq!(haves.poll_announce(MS(50), 20, Pace::Busy), [9, 3]);
        assert_eq!(haves.poll_timeout(20, Pace::Busy), None);
    }

    #[test]
    fn what_is_urgent_waits_for_nothing_and_takes_along_what_waits() {
        let mut haves = Haves::default();
        haves.handle_leaf(1);
        assert_eq!(haves.poll_announce(MS(0), 8, Pace::Busy), [1]);
        haves.handle_leaf(2);
        assert!(haves.poll_announce(MS(1), 8, Pace::Busy).is_empty());
        haves.handle_leaf(3);
        assert_eq!(haves.poll_announce(MS(1), 8, Pace::Urgent), [2, 3]);
    }

    #[test]
    fn whoever_has_nothing_to_send_says_sooner_what_it_has() {
        let mut haves = Haves::default();
        haves.handle_leaf(1);
        assert_eq!(haves.poll_announce(MS(0), 100, Pace::Idle), [1]);
        haves.handle_leaf(2);
        assert_eq!(haves.poll_timeout(100, Pace::Busy), Some(MS(200)));
        assert_eq!(haves.poll_timeout(100, Pace::Idle), Some(MS(40)));
        assert!(haves.poll_announce(MS(40), 100, Pace::Busy).is_empty());
        assert_eq!(haves.poll_announce(MS(40), 100, Pace::Idle), [2]);
        haves.handle_leaf(3);
        assert_eq!(haves.poll_timeout(3, Pace::Idle), Some(MS(46)), "no later than whoever is busy");
        assert_eq!([None, Some(MS(0)), Some(MS(100))].map(Pace::of), [Pace::Idle, Pace::Idle, Pace::Busy]);
    }

    /// However many peers there are, and whatever comes, nothing waits longer than the longest pause, and not many are
    /// told often.
    #[test]
    fn the_more_peers_the_fewer_announcements_within_bounds() {
        let each_second = |peers: usize, pace: Pace| {
            let (mut haves, mut times, mut last) = (Haves::default(), 0, 0);
            for ms in 0..1_000u64 {
                haves.handle_leaf(ms as u32);
                if !haves.poll_announce(MS(ms), peers, pace).is_empty() {
                    assert!(MS(ms - last) <= LONGEST_PAUSE, "{ms}");
                    (times, last) = (times + 1, ms);
                }
            }
            times
        };
        let crowds = [0, 1, 10, 25, 100_000];
        assert_eq!(crowds.map(|peers| each_second(peers, Pace::Busy)), [1_000, 500, 50, 20, 4]);
        assert_eq!(crowds.map(|peers| each_second(peers, Pace::Idle)), [1_000, 500, 50, 50, 4]);
    }
}
