//! When which peers are told of leaves that came. Sans-IO.
//!
//! A have for each leaf to each peer is a packet, an acknowledgement and two wake-ups for it: among 24 peers of 40 Mbit/s that
//! was more work than the leaves themselves. So what peers can get elsewhere waits a little, and travels together; what
//! nobody else has is told at once, for the others have nothing to do before they hear of it, and takes along what waits.
//! Of a crowd some are told at a time, in turn: so somebody hears soon however many they are, and not all run for it
//! together. Whoever has nothing to send says sooner what it has than whoever has more requests than it can answer. What peers
//! are sent is not known here.

use std::{collections::VecDeque, time::Duration};

/// A peer hears of what came once in this time for each peer that there is, so that a side sends 250 haves a second;
const PAUSE: Duration = Duration::from_millis(4);
/// and once in this time at least: with many peers what one of them has is elsewhere as well;
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// or, while this side's uplink is about to stand idle until others hear what they can ask it for, once in this, or in so much
/// for each peer, which is 2,500 haves a second: two to three hundredths of what a link of 80 Mbit/s carries, and few need it.
const IDLE_PAUSE: Duration = Duration::from_millis(20);
const IDLE_PAUSE_EACH: Duration = Duration::from_micros(400);
/// An uplink that has less to send than this is about to stand idle: so long it takes to be heard and asked.
const NEARLY_IDLE: Duration = Duration::from_millis(60);
/// So many peers are told at the same time; of fewer, all.
const AT_ONCE: usize = 32;

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

    /// In which time each of so many peers hears of what came once.
    fn round(self, peers: usize) -> Duration {
        let each = |pause: Duration| pause.saturating_mul(peers.try_into().unwrap_or(u32::MAX));
        let longest = match self {
            Pace::Busy => LONGEST_PAUSE,
            Pace::Idle => IDLE_PAUSE.max(each(IDLE_PAUSE_EACH)).min(LONGEST_PAUSE),
            Pace::Urgent => Duration::ZERO,
        };
        each(PAUSE).min(longest)
    }
}

/// What some peers are to be told: these leaves are here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News<P> {
    /// Whom.
    pub peers: Vec<P>,
    /// In the order in which they came; one that came again is there again.
    pub leaves: Vec<u32>,
}

/// Leaves of a root that came, the peers, and which of these were told of which.
///
/// Call [`handle_leaf`](Self::handle_leaf) for each leaf that can be served, then [`poll_news`](Self::poll_news), and that
/// again at [`poll_timeout`](Self::poll_timeout). Times must not go backwards. A leaf may be handled again after it was
/// announced. What waits is bounded by what comes until each peer had its turn.
#[derive(Debug)]
pub struct Haves<P> {
    /// Leaves that somebody is to be told of, in the order in which they came.
    waiting: VecDeque<u32>,
    /// Leaves that came before those.
    over: u64,
    /// Peers, whoever was told longest ago first, and how many of all leaves that came each was told of.
    ring: VecDeque<(P, u64)>,
    /// When peers were last told of any.
    told: Option<Duration>,
}

impl<P> Default for Haves<P> {
    fn default() -> Self {
        Haves { waiting: VecDeque::new(), over: 0, ring: VecDeque::new(), told: None }
    }
}

impl<P: Copy + PartialEq> Haves<P> {
    /// `peer` takes part; it hears first of what waits. What is here besides is told to it by the caller.
    pub fn handle_peer(&mut self, peer: P) {
        self.handle_gone(peer);
        self.ring.push_front((peer, self.over));
    }

    /// `peer` is gone.
    pub fn handle_gone(&mut self, peer: P) {
        self.ring.retain(|(other, _)| *other != peer);
        self.forget_told();
    }

    /// `leaf` is here, and nobody has been told.
    pub fn handle_leaf(&mut self, leaf: u32) {
        self.waiting.push_back(leaf);
        self.forget_told();
    }

    /// Leaves that some peer was not told of, in the order in which they came.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = u32> {
        self.waiting.iter().copied()
    }

    /// What peers are to be told now; nothing if it can wait.
    pub fn poll_news(&mut self, now: Duration, pace: Pace) -> Vec<News<P>> {
        if self.poll_timeout(pace).is_none_or(|at| now < at) {
            return vec![];
        }
        let (peers, all) = (self.ring.len(), self.over + self.waiting.len() as u64);
        let due = if pace == Pace::Urgent { peers } else { AT_ONCE.min(peers) };
        self.told = Some(now);
        let mut news: Vec<News<P>> = vec![];
        let mut last = None;
        for (peer, heard) in self.ring.iter_mut().take(due) {
            let heard = std::mem::replace(heard, all);
            if heard == all {
                continue;
            }
            match news.last_mut() {
                Some(same) if last == Some(heard) => same.peers.push(*peer),
                _ => {
                    let leaves = self.waiting.range((heard - self.over) as usize..).copied().collect();
                    news.push(News { peers: vec![*peer], leaves });
                }
            }
            last = Some(heard);
        }
        self.ring.rotate_left(due);
        self.forget_told();
        news
    }

    /// When [`poll_news`](Self::poll_news) is to be called, if nothing else happens first.
    pub fn poll_timeout(&self, pace: Pace) -> Option<Duration> {
        let peers = self.ring.len().max(1);
        let turn = pace.round(peers).saturating_mul(AT_ONCE.min(peers) as u32) / peers as u32;
        (!self.waiting.is_empty()).then(|| self.told.map_or(Duration::ZERO, |told| told + turn))
    }

    /// Forgets leaves that every peer was told of.
    fn forget_told(&mut self) {
        let all = self.over + self.waiting.len() as u64;
        // those who were told last are the last, so nobody was told of less than the first
        let heard = self.ring.front().map_or(all, |(_, heard)| *heard);
        self.waiting.drain(..(heard - self.over) as usize);
        self.over = heard;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn among(peers: u32) -> Haves<u32> {
        let mut haves = Haves::default();
        (0..peers).for_each(|peer| haves.handle_peer(peer));
        haves
    }

    /// What is told now, and to how many.
    fn told(haves: &mut Haves<u32>, now: Duration, pace: Pace) -> Vec<(Vec<u32>, usize)> {
        haves.poll_news(now, pace).into_iter().map(|news| (news.leaves, news.peers.len())).collect()
    }

    #[test]
    fn the_first_is_told_at_once_and_the_next_wait_for_each_other() {
        let mut haves = among(8);
        assert!(haves.poll_timeout(Pace::Urgent).is_none() && told(&mut haves, MS(5), Pace::Urgent).is_empty());
        haves.handle_leaf(7);
        assert_eq!(told(&mut haves, MS(10), Pace::Busy), [(vec![7], 8)]);
        haves.handle_leaf(9);
        haves.handle_leaf(3);
        assert!(told(&mut haves, MS(41), Pace::Busy).is_empty());
        assert_eq!(haves.poll_timeout(Pace::Busy), Some(MS(42)));
        assert_eq!(told(&mut haves, MS(42), Pace::Busy), [(vec![9, 3], 8)]);
        assert_eq!(haves.poll_timeout(Pace::Busy), None);
    }

    #[test]
    fn a_crowd_hears_in_turns_each_of_all_that_it_was_not_told_yet() {
        let mut haves = among(60);
        let first = |news: &[News<u32>]| news.iter().flat_map(|news| news.peers.clone()).collect::<Vec<u32>>();
        haves.handle_leaf(1);
        let one = haves.poll_news(MS(0), Pace::Busy);
        assert_eq!((one.len(), first(&one).len()), (1, 32));
        haves.handle_leaf(2);
        assert!(haves.poll_news(MS(127), Pace::Busy).is_empty());
        let two = haves.poll_news(MS(128), Pace::Busy);
        let leaves = two.iter().map(|news| (news.leaves.clone(), news.peers.len()));
        assert_eq!(leaves.collect::<Vec<_>>(), [(vec![1, 2], 28), (vec![2], 4)], "the rest, then the first again");
        assert_eq!(haves.waiting().collect::<Vec<_>>(), [2], "what all know is forgotten");
        let mut all: Vec<u32> = [one, two].iter().flat_map(|news| first(news)).take(60).collect();
        all.sort_unstable();
        assert_eq!(all, (0..60).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_urgent_waits_for_nothing_and_takes_along_what_waits() {
        let mut haves = among(40);
        haves.handle_leaf(1);
        assert_eq!(told(&mut haves, MS(0), Pace::Busy), [(vec![1], 32)]);
        haves.handle_leaf(2);
        assert!(told(&mut haves, MS(1), Pace::Busy).is_empty());
        haves.handle_leaf(3);
        assert_eq!(told(&mut haves, MS(1), Pace::Urgent), [(vec![1, 2, 3], 8), (vec![2, 3], 32)]);
        assert_eq!(haves.waiting().len(), 0);
    }

    #[test]
    fn whoever_has_nothing_to_send_says_sooner_what_it_has() {
        let mut haves = among(100);
        haves.handle_leaf(1);
        assert_eq!(told(&mut haves, MS(0), Pace::Idle), [(vec![1], 32)]);
        haves.handle_leaf(2);
        assert_eq!(haves.poll_timeout(Pace::Busy), Some(MS(80)), "a quarter second for all of them");
        let idle = Duration::from_micros(12_800);
        assert_eq!(haves.poll_timeout(Pace::Idle), Some(idle));
        assert!(told(&mut haves, idle, Pace::Busy).is_empty());
        assert_eq!(told(&mut haves, idle, Pace::Idle), [(vec![1, 2], 32)]);
        let mut few = among(3);
        few.handle_leaf(1);
        assert_eq!(told(&mut few, MS(0), Pace::Idle), [(vec![1], 3)]);
        few.handle_leaf(3);
        assert_eq!(few.poll_timeout(Pace::Idle), Some(MS(12)), "no later than whoever is busy");
        assert_eq!([None, Some(MS(0)), Some(MS(100))].map(Pace::of), [Pace::Idle, Pace::Idle, Pace::Busy]);
    }

    #[test]
    fn who_comes_hears_first_and_who_is_gone_holds_up_nothing() {
        let mut haves = among(8);
        haves.handle_leaf(1);
        assert_eq!(told(&mut haves, MS(0), Pace::Busy).len(), 1);
        haves.handle_leaf(2);
        (10..20).for_each(|peer| haves.handle_peer(peer));
        let news = haves.poll_news(MS(72), Pace::Busy);
        let peers = (10..20).rev().chain((0..8).rev()).collect();
        assert_eq!(news, [News { peers, leaves: vec![2] }]);
        haves.handle_leaf(3);
        (0..12).for_each(|peer| haves.handle_gone(peer));
        // as if it had not been here before
        haves.handle_peer(19);
        let peers = [19].into_iter().chain((12..19).rev()).collect();
        assert_eq!(haves.poll_news(MS(120), Pace::Busy), [News { peers, leaves: vec![3] }]);
        assert_eq!((haves.waiting().len(), haves.poll_timeout(Pace::Busy)), (0, None));
        haves.handle_leaf(3);
        (12..20).for_each(|peer| haves.handle_gone(peer));
        assert_eq!((haves.waiting().len(), haves.poll_timeout(Pace::Urgent)), (0, None), "there is nobody to tell");
        haves.handle_leaf(4);
        assert_eq!((haves.waiting().len(), haves.poll_timeout(Pace::Urgent)), (0, None));
    }

    /// However many peers there are, and whatever comes, nobody waits longer than the longest pause and a turn to hear of it,
    /// and not many are told often.
    #[test]
    fn the_more_peers_the_fewer_announcements_within_bounds() {
        let turn = PAUSE * AT_ONCE as u32;
        let longest = LONGEST_PAUSE + turn;
        let each_second = |peers: u32, pace: Pace| {
            let (mut haves, mut told, mut last) = (among(peers), 0, vec![0; peers as usize]);
            for ms in 0..1_000u64 {
                haves.handle_leaf(ms as u32);
                assert!(haves.waiting().len() as u128 <= (longest + turn).as_millis());
                for peer in haves.poll_news(MS(ms), pace).iter().flat_map(|news| &news.peers) {
                    assert!(MS(ms - last[*peer as usize]) <= longest, "{ms}");
                    (told, last[*peer as usize]) = (told + 1, ms);
                }
            }
            told
        };
        let crowds = [0, 1, 8, 25, 100, 2_000];
        assert_eq!(crowds.map(|peers| each_second(peers, Pace::Busy)), [0, 250, 256, 250, 416, 8_000]);
        assert_eq!(crowds.map(|peers| each_second(peers, Pace::Idle)), [0, 250, 400, 1_250, 2_464, 8_000]);
    }
}
