//! When to try again: delays that double up to a bound, with jitter, so that a crowd does not come back at once.
//! Knows no clock.

use rand::{RngExt, rngs::StdRng};
use std::time::Duration;

/// The first delay. Short: a peer that starts a moment before its bootstrap peer should not wait long.
const FIRST: Duration = Duration::from_millis(500);
/// The longest one.
const LAST: Duration = Duration::from_secs(300);

/// The delays of one thing that is tried again and again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The delay after one more failure: 75 to 125 % of the doubled one.
    pub(crate) fn next(&mut self, random: &mut StdRng) -> Duration {
        let full = FIRST.saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(LAST);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(random.random_range(0.75..1.25))
    }

    /// It worked.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn delays_double_to_a_bound_and_begin_anew_after_success() {
        let mut random = StdRng::seed_from_u64(7);
        let mut backoff = Backoff::default();
        let mut before = Duration::ZERO;
        for round in 0..100 {
            let delay = backoff.next(&mut random);
            assert!(delay <= LAST.mul_f64(1.25));
            if round < 9 {
                assert!(delay > before.mul_f64(1.1), "round {round}: {delay:?} after {before:?}");
            }
            before = delay;
        }
        backoff.reset();
        assert!(backoff.next(&mut random) < FIRST * 2);
    }
}
