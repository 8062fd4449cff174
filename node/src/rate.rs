//! How fast something goes of late, and when it is worth saying so again. Time comes in as an argument.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// The window over which speed is measured: long enough to be steady, short enough to follow.
const WINDOW: Duration = Duration::from_secs(4);
/// Progress is told at most this often.
pub(crate) const EVERY: Duration = Duration::from_millis(250);

/// Speed over the last few seconds.
#[derive(Debug)]
pub(crate) struct Rate {
    samples: VecDeque<(Instant, u64)>,
    told: Option<Instant>,
}

impl Rate {
    /// Begins to count at `done` bytes.
    pub(crate) fn new(now: Instant, done: u64) -> Self {
        Rate { samples: VecDeque::from([(now, done)]), told: None }
    }

    /// Takes a figure; true if it is time to tell about it.
    pub(crate) fn update(&mut self, now: Instant, done: u64) -> bool {
        if self.told.is_some_and(|told| now.saturating_duration_since(told) < EVERY) {
            return false;
        }
        self.told = Some(now);
        self.samples.push_back((now, done));
        while self.samples.len() > 2 && now.saturating_duration_since(self.samples[1].0) > WINDOW {
            self.samples.pop_front();
        }
        true
    }

    /// Bytes per second over the window.
    pub(crate) fn per_second(&self) -> u64 {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else { return 0 };
        per_second(last.1.saturating_sub(first.1), last.0.saturating_duration_since(first.0))
    }

    /// Seconds for `rest` more bytes at this speed; `None` while nothing moves.
    pub(crate) fn eta_seconds(&self, rest: u64) -> Option<u64> {
        match self.per_second() {
            0 => None,
            speed => Some(rest.div_ceil(speed)),
        }
    }
}

/// Bytes per second.
pub(crate) fn per_second(bytes: u64, over: Duration) -> u64 {
    let nanos = over.as_nanos().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_follows_the_last_seconds_and_tells_four_times_a_second() {
        let start = Instant::now();
        let mut rate = Rate::new(start, 0);
        let mut told = 0;
        for step in 1..=100u64 {
            let now = start + Duration::from_millis(100 * step);
            told += u64::from(rate.update(now, if step <= 50 { step * 100 } else { 5000 + (step - 50) * 1000 }));
        }
        assert!((32..=41).contains(&told), "{told}");
        assert!((9_000..=10_000).contains(&rate.per_second()), "{}", rate.per_second());
        assert_eq!(rate.eta_seconds(0), Some(0));
        assert_eq!(Rate::new(start, 7).eta_seconds(1), None);
    }
}
