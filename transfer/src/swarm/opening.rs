//! The first moments of a fetch, when leechers that came together do not know each other yet. Stripes need to know who is
//! there: without them all would ask for the first leaves, and a seeder would send each of them to everybody. So each begins
//! at a place of its own, and comes to its stripe when it has met the others. No state of peers or leaves lives here.

use super::stripe::{self, Tag};
use std::time::Duration;

/// It is over when nobody has come for so long,
const SETTLED: Duration = Duration::from_millis(400);
/// and after this at the latest.
const LONGEST: Duration = Duration::from_secs(3);

/// A walk once around all leaves, from a place that is as good as random.
#[derive(Debug)]
pub(super) struct Opening {
    /// As good as random.
    lot: u32,
    count: u32,
    next: u32,
    left: u32,
    /// When the first peer came, and the last leecher.
    began: Option<Duration>,
    joined: Duration,
}

impl Opening {
    pub(super) fn new(me: Tag, count: usize) -> Self {
        let count = count as u32;
        let next = ((u128::from(stripe::weight(u32::MAX, me)) * u128::from(count)) >> 64) as u32;
        Opening {
            lot: stripe::weight(u32::MAX - 1, me) as u32,
            count,
            next,
            left: count,
            began: None,
            joined: Duration::ZERO,
        }
    }

    /// Somebody came, of whom it is not known yet whether it is a leecher.
    pub(super) fn begin(&mut self, now: Duration) {
        if self.began.is_none() {
            (self.began, self.joined) = (Some(now), now);
        }
    }

    /// A leecher came.
    pub(super) fn joined(&mut self, now: Duration) {
        self.joined = now;
    }

    /// Whether this leecher is among the `places`, or about as many, of a `crowd` that may ask a seeder now.
    pub(super) fn has_place(&self, places: u64, crowd: u64) -> bool {
        u64::from(self.lot) * crowd <= places << 32
    }

    /// When it is over, if nobody comes; none once it [`end`](Self::end)ed, or before it began.
    pub(super) fn poll_end(&self) -> Option<Duration> {
        Some((self.joined + SETTLED).min(self.began? + LONGEST)).filter(|_| self.left > 0)
    }

    pub(super) fn end(&mut self) {
        self.left = 0;
    }

    pub(super) fn is_over(&self, now: Duration) -> bool {
        self.left == 0 || self.poll_end().is_some_and(|end| now >= end)
    }

    /// The next leaf that `open` lets pass. O(1) amortised.
    pub(super) fn next(&mut self, open: impl Fn(u32) -> bool) -> Option<u32> {
        while self.left > 0 {
            let leaf = self.next;
            self.left -= 1;
            self.next = if leaf + 1 == self.count { 0 } else { leaf + 1 };
            if open(leaf) {
                return Some(leaf);
            }
        }
        None
    }
}
