//! Rate limits: a token bucket per direction, for all peers together and for each peer. Sans-IO: time is passed in, and
//! what comes out is how long to wait. A library's limiter would do but for one thing: these change while they run.

use std::time::Duration;

/// What a bucket that was idle lets through at once: enough not to break up packets, too little to be felt.
const BURST: Duration = Duration::from_millis(50);
/// At least this many bytes pass at once, whatever the rate.
const LEAST_BURST_BYTES: f64 = 16.0 * 1024.0;

/// Bytes per second, each way; `None` does not limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Sent to all peers together.
    pub up: Option<u64>,
    /// Received from all peers together.
    pub down: Option<u64>,
    /// Sent to one peer.
    pub up_per_peer: Option<u64>,
    /// Received from one peer.
    pub down_per_peer: Option<u64>,
}

/// New rates for some of [`Rates`]: `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateChange {
    /// Sent to all peers together.
    pub up: Option<Option<u64>>,
    /// Received from all peers together.
    pub down: Option<Option<u64>>,
    /// Sent to one peer.
    pub up_per_peer: Option<Option<u64>>,
    /// Received from one peer.
    pub down_per_peer: Option<Option<u64>>,
}

impl From<Rates> for RateChange {
    /// All four.
    fn from(rates: Rates) -> Self {
        RateChange {
            up: Some(rates.up),
            down: Some(rates.down),
            up_per_peer: Some(rates.up_per_peer),
            down_per_peer: Some(rates.down_per_peer),
        }
    }
}

impl Rates {
    pub(crate) fn change(&mut self, change: RateChange) {
        self.up = change.up.unwrap_or(self.up);
        self.down = change.down.unwrap_or(self.down);
        self.up_per_peer = change.up_per_peer.unwrap_or(self.up_per_peer);
        self.down_per_peer = change.down_per_peer.unwrap_or(self.down_per_peer);
    }
}

/// A token bucket that may go into debt: bytes are taken first and waited for afterwards, so that one large piece needs no
/// large burst. Over any time the bytes taken are at most rate × time + burst + one piece.
#[derive(Debug, Default)]
pub struct TokenBucket {
    rate: Option<u64>,
    tokens: f64,
    at: Duration,
}

impl TokenBucket {
    /// Takes `bytes` and says how long to wait before anything more is taken. `rate` is the one that holds now; where it
    /// changed since the last call, what was owed before is forgotten.
    pub fn take(&mut self, now: Duration, rate: Option<u64>, bytes: u64) -> Duration {
        let Some(per_second) = rate.map(|r| r.max(1) as f64) else {
            *self = TokenBucket { rate, tokens: 0.0, at: now };
            return Duration::ZERO;
        };
        let burst = (per_second * BURST.as_secs_f64()).max(LEAST_BURST_BYTES);
        if self.rate != rate {
            *self = TokenBucket { rate, tokens: burst, at: now };
        }
        self.tokens = (self.tokens + now.saturating_sub(self.at).as_secs_f64() * per_second).min(burst);
        self.at = self.at.max(now);
        self.tokens -= bytes as f64;
        Duration::from_secs_f64((-self.tokens / per_second).clamp(0.0, 60.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn without_a_rate_nothing_waits() {
        let mut bucket = TokenBucket::default();
        assert_eq!(bucket.take(Duration::ZERO, None, u64::MAX), Duration::ZERO);
    }

    #[test]
    fn a_change_holds_at_once() {
        let mut bucket = TokenBucket::default();
        let slow = bucket.take(Duration::ZERO, Some(1_000), 100_000);
        assert!(slow >= Duration::from_secs(50), "{slow:?}");
        let fast = bucket.take(Duration::from_secs(1), Some(10_000_000), 100_000);
        assert_eq!(fast, Duration::ZERO);
    }

    proptest! {
        /// Whoever waits as told never passes more than the rate allows, and never less than nine tenths of it.
        #[test]
        fn the_rate_is_kept(rate in 20_000u64..1_000_000_000, pieces in prop::collection::vec(1u64..70_000, 20..200)) {
            let mut bucket = TokenBucket::default();
            let (mut now, mut sent) = (Duration::ZERO, 0);
            for piece in &pieces {
                now += bucket.take(now, Some(rate), *piece);
                sent += piece;
            }
            let burst = (rate as f64 * 0.05).max(LEAST_BURST_BYTES);
            let bytes = now.as_secs_f64() * rate as f64;
            prop_assert!(sent as f64 <= bytes + burst + 1.0, "{sent} in {now:?}");
            prop_assert!(sent as f64 >= bytes * 0.9, "{sent} in {now:?}");
        }
    }
}
