//! Where the rate limits meet the streams: bytes are accounted for here, and waited for. Rates are read at each piece, so
//! a change holds at once.

use crate::rate::{Rates, TokenBucket};
use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Limited bytes are handed on in pieces of at most this many.
pub(super) const PIECE_BYTES: usize = 64 << 10;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Up,
    Down,
}

/// The buckets of both directions: one pair for all peers, one for each peer.
#[derive(Debug, Default)]
pub(super) struct Buckets {
    up: Mutex<TokenBucket>,
    down: Mutex<TokenBucket>,
}

impl Buckets {
    fn take(&self, way: Way, now: Duration, rate: Option<u64>, bytes: u64) -> Duration {
        let bucket = match way {
            Way::Up => &self.up,
            Way::Down => &self.down,
        };
        // a bucket cannot be left half-changed by a panic
        bucket.lock().unwrap_or_else(PoisonError::into_inner).take(now, rate, bytes)
    }
}

/// The limits of all peers together, and the rates that hold.
#[derive(Debug)]
pub(super) struct Throttle {
    all: Buckets,
    /// Up and down, of all peers together and of each one; [`NO_LIMIT`] where nothing limits. It is looked at for every packet.
    rates: [[AtomicU64; 2]; 2],
    origin: Instant,
}

const NO_LIMIT: u64 = u64::MAX;

impl Throttle {
    pub(super) fn new(rates: Rates) -> Self {
        let throttle = Throttle { all: Buckets::default(), rates: Default::default(), origin: Instant::now() };
        throttle.set(rates);
        throttle
    }

    /// New rates, from the next piece on.
    pub(super) fn set(&self, rates: Rates) {
        let new = [[rates.up, rates.up_per_peer], [rates.down, rates.down_per_peer]];
        for (cell, rate) in self.rates.as_flattened().iter().zip(new.as_flattened()) {
            cell.store(rate.unwrap_or(NO_LIMIT), Relaxed);
        }
    }

    /// Whether bytes that go this way are limited now.
    pub(super) fn limits(&self, way: Way) -> bool {
        let (all, one) = self.of(way);
        all.is_some() || one.is_some()
    }

    /// Accounts for bytes of the peer whose buckets are given and waits as long as that takes. Cancelling loses only the
    /// wait.
    pub(super) async fn pass(&self, way: Way, peer: &Buckets, bytes: usize) {
        let (all, one) = self.of(way);
        if all.is_none() && one.is_none() {
            return;
        }
        let (now, bytes) = (self.origin.elapsed(), bytes as u64);
        let wait = self.all.take(way, now, all, bytes).max(peer.take(way, now, one, bytes));
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    fn of(&self, way: Way) -> (Option<u64>, Option<u64>) {
        let cells = match way {
            Way::Up => &self.rates[0],
            Way::Down => &self.rates[1],
        };
        let [all, one] = cells.each_ref().map(|cell| Some(cell.load(Relaxed)).filter(|rate| *rate != NO_LIMIT));
        (all, one)
    }
}
