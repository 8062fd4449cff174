//! Delivery-rate samples from what a quinn controller hears: when something was sent, and the sending time of each packet
//! that was acknowledged. The estimation is that of draft-cheng-iccrg-delivery-rate-estimation.
//!
//! quinn keeps no room for a controller's state in its packets, so the state of the moment of sending is kept here, in a
//! bounded ledger ordered by sending time. Nothing here decides how much to send.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Ledger entries kept, 64 bytes each. A round trip spans [`PER_ROUND_TRIP`] of them, so this is several round trips;
/// past it the oldest goes, and a packet sent before the oldest entry gives no sample.
const MAX_ENTRIES: usize = 512;
/// Entries in a round trip at most. Packets sent between two entries are measured from the earlier one, which lengthens
/// their sample by one part in this many.
const PER_ROUND_TRIP: u32 = 64;
/// Entries closer than this are merged even where the round trip is shorter. All of them together span [`LEAST_SPAN`].
const MIN_SPACING: Duration = Duration::from_micros(40);
/// A rate is what was delivered in so much time at least. Shapers let some hundred kilobytes pass at the speed of the wire
/// before they hold anything back, and over one short round trip that is all that would be seen.
pub(super) const LEAST_SPAN: Duration = Duration::from_millis(10);

/// The state when something was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    at: Instant,
    /// Bytes delivered until then, and when the newest of them was.
    pub(super) delivered: u64,
    delivered_at: Instant,
    /// When the packet was sent whose acknowledgement was the newest then.
    first_sent: Instant,
    /// Bytes lost until then.
    pub(super) lost: u64,
    /// Bytes in flight, this packet included.
    pub(super) in_flight: u64,
    app_limited: bool,
}

/// What one batch of acknowledgements tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    /// Bytes per second.
    pub(super) rate: f64,
    /// Bytes delivered in all before the newest acknowledged packet was sent: it ends a round if that is past the
    /// round's beginning.
    pub(super) prior_delivered: u64,
    /// The application, not the window, bounded what was sent meanwhile.
    pub(super) app_limited: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Samples {
    entries: VecDeque<Entry>,
    /// Where entries were last looked for: by when a packet was sent, and by the beginning of a sample. The next one is near.
    by_packet: usize,
    by_sample: usize,
    /// Bytes acknowledged in all.
    pub(super) delivered: u64,
    delivered_at: Instant,
    first_sent: Instant,
    /// When something was last sent with nothing in flight.
    busy_since: Instant,
    /// Bytes lost in all.
    pub(super) lost: u64,
    /// Bytes in flight as far as is known: exact after each batch of acknowledgements; in between it counts pure
    /// acknowledgements of ours too, which quinn does not tell apart.
    pub(super) in_flight: u64,
    /// Until so much is delivered, what is acknowledged was sent while the application had nothing more to send.
    app_limited_until: Option<u64>,
}

impl Samples {
    pub(super) fn new(now: Instant) -> Self {
        Samples {
            entries: VecDeque::new(),
            by_packet: 0,
            by_sample: 0,
            delivered: 0,
            delivered_at: now,
            first_sent: now,
            busy_since: now,
            lost: 0,
            in_flight: 0,
            app_limited_until: None,
        }
    }

    pub(super) fn sent(&mut self, now: Instant, bytes: u64, rtt: Duration) {
        if self.in_flight == 0 {
            self.first_sent = now;
            self.delivered_at = now;
            self.busy_since = now;
        }
        self.in_flight = self.in_flight.saturating_add(bytes);
        let spacing = (rtt / PER_ROUND_TRIP).max(MIN_SPACING);
        if let Some(last) = self.entries.back_mut()
            && now.saturating_duration_since(last.at) < spacing
        {
            last.in_flight = self.in_flight;
            return;
        }
        if self.entries.len() == MAX_ENTRIES {
            self.drop_oldest();
        }
        self.entries.push_back(Entry {
            at: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent: self.first_sent,
            lost: self.lost,
            in_flight: self.in_flight,
            app_limited: self.app_limited_until.is_some(),
        });
    }

    /// The entry of a packet sent at `sent`.
    pub(super) fn entry(&mut self, sent: Instant) -> Option<Entry> {
        self.by_packet = walk(&self.entries, self.by_packet, |e| e.at <= sent);
        self.by_packet.checked_sub(1).and_then(|i| self.entries.get(i)).copied()
    }

    fn drop_oldest(&mut self) {
        self.entries.pop_front();
        self.by_packet = self.by_packet.saturating_sub(1);
        self.by_sample = self.by_sample.saturating_sub(1);
    }

    pub(super) fn acked(&mut self, now: Instant, bytes: u64) {
        self.delivered += bytes;
        self.delivered_at = now;
    }

    /// Ends a batch of acknowledgements, of which the newest packet was sent at `sent` and has this entry. `shortest` is
    /// the least time that a sample must span: shorter ones come from acknowledgements that arrived in a heap. What was
    /// seen for less than `diluted` is taken as all that came in that time.
    pub(super) fn end(
        &mut self,
        now: Instant,
        (sent, entry): (Instant, Option<Entry>),
        in_flight: u64,
        app_limited: bool,
        shortest: Duration,
        diluted: Duration,
    ) -> Option<Sample> {
        self.in_flight = in_flight;
        if self.app_limited_until.is_some_and(|until| self.delivered > until) {
            self.app_limited_until = None;
        }
        if app_limited {
            self.app_limited_until = Some(self.delivered + in_flight);
        }
        let entry = entry?;
        self.first_sent = self.first_sent.max(sent);
        // one round trip, or more of them where they are short and nothing paused meanwhile
        let from = now.checked_sub(LEAST_SPAN).unwrap_or(now).max(self.busy_since);
        self.by_sample = walk(&self.entries, self.by_sample, |e| e.at < from);
        let base = self.entries.get(self.by_sample).filter(|e| e.at < entry.at).copied().unwrap_or(entry);
        // what is older is asked for only by losses, within a round trip or so
        while self.entries.len() > MAX_ENTRIES / 2
            && self.entries.get(1).is_some_and(|e| e.at < entry.first_sent.min(from))
        {
            self.drop_oldest();
        }
        let sending = sent.saturating_duration_since(base.first_sent);
        let acking = now.saturating_duration_since(base.delivered_at);
        let span = sending.max(acking);
        if span < shortest || span.is_zero() {
            return None;
        }
        Some(Sample {
            rate: (self.delivered - base.delivered) as f64 / span.max(diluted).as_secs_f64(),
            prior_delivered: entry.delivered,
            app_limited: base.app_limited || entry.app_limited || span < diluted,
        })
    }

    pub(super) fn lost(&mut self, bytes: u64) {
        self.lost += bytes;
        self.in_flight = self.in_flight.saturating_sub(bytes);
    }
}

/// How many entries come `before` a point, as `partition_point` tells; looked for from `near` on, entry by entry, for it has
/// moved little since it was last looked for.
fn walk(entries: &VecDeque<Entry>, near: usize, before: impl Fn(&Entry) -> bool) -> usize {
    let mut at = near.min(entries.len());
    while entries.get(at).is_some_and(&before) {
        at += 1;
    }
    while at > 0 && !entries.get(at - 1).is_some_and(&before) {
        at -= 1;
    }
    at
}

/// The largest value of the last rounds.
#[derive(Clone, Debug)]
pub(super) struct MaxOfRounds<const N: usize> {
    rounds: [f64; N],
    at: usize,
}

impl<const N: usize> MaxOfRounds<N> {
    pub(super) fn new() -> Self {
        MaxOfRounds { rounds: [0.0; N], at: 0 }
    }

    pub(super) fn add(&mut self, value: f64) {
        if let Some(round) = self.rounds.get_mut(self.at) {
            *round = round.max(value);
        }
    }

    /// A new round begins; the oldest is forgotten.
    pub(super) fn advance(&mut self) {
        self.at = (self.at + 1) % N;
        if let Some(round) = self.rounds.get_mut(self.at) {
            *round = 0.0;
        }
    }

    /// Forgets the rounds; `value` is the largest.
    pub(super) fn set(&mut self, value: f64) {
        self.rounds = [value; N];
    }

    pub(super) fn get(&self) -> f64 {
        self.rounds.iter().copied().fold(0.0, f64::max)
    }
}
