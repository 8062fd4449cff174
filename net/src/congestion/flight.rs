//! What an endpoint carries at a moment, over all its connections: each controller keeps its part of the sum.
//!
//! By Little's law (1961) a connection carries what it has in flight, divided by how long that takes to be acknowledged. So
//! the sum is known at every moment, and not only a round trip later. quinn tells a controller what is in flight only after
//! acknowledgements; in between, what was sent is added. Nothing here decides what may be sent.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// What is sent in so few bytes is an acknowledgement of ours, which nobody acknowledges.
const MERE_ACK: u64 = 100;
/// Who sends nothing for so many round trips, and for so long at least, is not reached any more, or busy: nothing is
/// carried there until it is heard again.
const SILENT_TRIPS: u32 = 4;
const SILENT: Duration = Duration::from_millis(100);

/// What an endpoint's packets do, over all connections and both protocols.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// Bytes that remotes acknowledged so far.
    pub acknowledged: u64,
    /// Bytes per second at this moment.
    pub rate: u64,
}

/// The sums.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    acknowledged: AtomicU64,
    rate: AtomicU64,
    /// Who waits is told when the rate is less than this.
    awaited: AtomicU64,
    room: Notify,
}

impl Flight {
    pub(crate) fn carried(&self) -> Carried {
        Carried { acknowledged: self.acknowledged.load(Relaxed), rate: self.rate.load(Relaxed) }
    }

    /// Waits until less than `rate` is carried. One at a time can wait. Cancel safe.
    pub(crate) async fn room(&self, rate: u64) {
        loop {
            // in this order, and the other way round in `changed`: one of the two sees what the other did
            self.awaited.store(rate, SeqCst);
            if self.rate.load(SeqCst) < rate {
                return;
            }
            self.room.notified().await;
        }
    }

    /// A connection carries `now` instead of `before`.
    fn changed(&self, before: u64, now: u64) {
        if now >= before {
            self.rate.fetch_add(now - before, SeqCst);
            return;
        }
        let all = self.rate.fetch_sub(before - now, SeqCst) - (before - now);
        // told once: who still waits says so again
        if all < self.awaited.load(SeqCst) && self.awaited.swap(0, SeqCst) > 0 {
            self.room.notify_one();
        }
    }
}

/// One connection's part. Dropping it takes it out of the sum.
#[derive(Debug)]
pub(super) struct Part {
    all: Arc<Flight>,
    in_flight: u64,
    /// From sending to acknowledgement; zero while it is not known.
    trip: Duration,
    /// When something was acknowledged last, or sent with nothing in flight.
    heard: Option<Instant>,
    /// What is counted in the sum.
    rate: u64,
}

impl Part {
    pub(super) fn new(all: Arc<Flight>) -> Self {
        Part { all, in_flight: 0, trip: Duration::ZERO, heard: None, rate: 0 }
    }

    pub(super) fn sent(&mut self, now: Instant, bytes: u64) {
        if bytes <= MERE_ACK {
            return;
        }
        if self.in_flight == 0 {
            self.heard = Some(now);
        }
        self.in_flight += bytes;
        let silent = self.heard.map_or(Duration::ZERO, |heard| now.saturating_duration_since(heard));
        // quinn sends a probe when acknowledgements are late, so this is noticed
        let reached = silent < SILENT.max(SILENT_TRIPS * self.trip);
        self.count(if reached { self.in_flight } else { 0 });
    }

    /// `bytes` were acknowledged, which takes `trip` nowadays.
    pub(super) fn acknowledged(&mut self, bytes: u64, trip: Duration) {
        self.all.acknowledged.fetch_add(bytes, Relaxed);
        self.trip = trip;
    }

    pub(super) fn lost(&mut self, bytes: u64) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.count(self.in_flight);
    }

    /// After acknowledgements so much is in flight.
    pub(super) fn settled(&mut self, now: Instant, in_flight: u64) {
        self.heard = Some(now);
        self.in_flight = in_flight;
        self.count(in_flight);
    }

    fn count(&mut self, bytes: u64) {
        let micros = self.trip.as_micros() as u64;
        let rate = bytes.saturating_mul(1_000_000).checked_div(micros).unwrap_or(0);
        self.all.changed(self.rate, rate);
        self.rate = rate;
    }
}

impl Clone for Part {
    /// A part that has sent nothing.
    fn clone(&self) -> Self {
        Part::new(self.all.clone())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.all.changed(self.rate, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::poll;
    use std::pin::pin;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// A connection that has acknowledged something, over a path of so many milliseconds.
    fn part(all: &Arc<Flight>, now: Instant, trip: u64) -> Part {
        let mut part = Part::new(all.clone());
        part.acknowledged(0, MS(trip));
        part.settled(now, 0);
        part
    }

    #[tokio::test]
    async fn each_connection_carries_what_it_has_in_flight_by_its_round_trip() {
        let (all, start) = (Arc::new(Flight::default()), Instant::now());
        let (mut near, mut far) = (part(&all, start, 10), part(&all, start, 100));
        near.sent(start, 10_000);
        far.sent(start, 20_000);
        far.sent(start, 40);
        assert_eq!(all.carried().rate, 1_000_000 + 200_000, "a mere acknowledgement is nothing");
        let mut room = pin!(all.room(700_000));
        assert!(poll!(room.as_mut()).is_pending());
        near.acknowledged(4_000, MS(10));
        near.settled(start + MS(10), 6_000);
        assert_eq!(all.carried(), Carried { acknowledged: 4_000, rate: 800_000 });
        assert!(poll!(room.as_mut()).is_pending());
        drop(near.clone());
        assert_eq!(all.carried().rate, 800_000, "a clone has sent nothing");
        drop(near);
        assert_eq!(all.carried().rate, 200_000, "a connection that ended carries nothing");
        assert!(poll!(room.as_mut()).is_ready());
        far.lost(10_000);
        assert_eq!(all.carried().rate, 100_000);
        far.lost(1_000_000);
        assert_eq!(all.carried().rate, 0);
        // nothing is known of a path before the first acknowledgement
        Part::new(all.clone()).sent(start, 10_000);
        assert_eq!(all.carried().rate, 0);
    }

    #[test]
    fn who_is_silent_carries_nothing_until_it_is_heard_again() {
        let (all, start) = (Arc::new(Flight::default()), Instant::now());
        let mut part = part(&all, start, 10);
        part.sent(start + MS(500), 10_000);
        assert_eq!(all.carried().rate, 1_000_000, "what it was sent first does not count as silence");
        part.sent(start + MS(599), 2_000);
        assert_eq!(all.carried().rate, 1_200_000);
        part.sent(start + MS(600), 1_000);
        assert_eq!(all.carried().rate, 0);
        part.settled(start + MS(610), 5_000);
        assert_eq!(all.carried().rate, 500_000);
    }

    #[tokio::test]
    async fn who_waits_again_is_told_again() {
        let (all, now) = (Arc::new(Flight::default()), Instant::now());
        let mut part = part(&all, now, 1_000);
        for _ in 0..3 {
            part.settled(now, 5_000);
            let mut room = pin!(all.room(5_000));
            assert!(poll!(room.as_mut()).is_pending());
            part.settled(now, 4_999);
            part.settled(now, 3_000);
            assert!(poll!(room.as_mut()).is_ready());
        }
        // whoever gave up waiting leaves nothing behind but one word too many
        part.settled(now, 5_000);
        assert!(poll!(pin!(all.room(4_000))).is_pending());
        part.settled(now, 0);
        part.settled(now, 5_000);
        let mut room = pin!(all.room(2_000));
        assert!(poll!(room.as_mut()).is_pending());
        part.settled(now, 1_000);
        assert!(poll!(room.as_mut()).is_ready());
    }
}
