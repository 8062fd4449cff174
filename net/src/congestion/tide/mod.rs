//! Tide: a congestion controller that models the path, after BBR (draft-ietf-ccwg-bbr), for quinn's window-only interface.
//!
//! It keeps the largest delivery rate of the last rounds and the least round trip of the last seconds, holds the rate
//! rather than the window, and probes for more once in a few round trips. Losses count only when there are too many of
//! them for the path. quinn paces at 1.25 × window / smoothed RTT and offers nothing else, so the window is all there is
//! to set. docs/congestion.md tells why each rule is as it is, and what was measured.
//!
//! Sans-IO: the time comes in as an argument. How the rate is measured is in `samples`.

mod losses;
mod samples;
#[cfg(test)]
mod tests;

use losses::{Losses, Verdict};
use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics};
use quinn_proto::RttEstimator;
use samples::{LEAST_SPAN, MaxOfRounds, Samples};
use std::{
    any::Any,
    sync::Arc,
    time::{Duration, Instant},
};

/// Never fewer packets in flight: fewer than this cannot find a loss without a time-out.
const MIN_WINDOW_PACKETS: u64 = 4;
/// First window of a path longer than [`LONG_PATH`]: what fills one of so many bytes per second, within these bounds in
/// packets. Paced over one round trip, it is no burst.
const LONG_PATH_RATE: f64 = 1e6;
const LONG_PATH_PACKETS: (u64, u64) = (32, 128);
const LONG_PATH: Duration = Duration::from_millis(10);
/// Window growth at start, per byte acknowledged: doubling each round trip.
const STARTUP_GROWTH: f64 = 1.0;
/// The same while the window is far below what the spacing of acknowledgements says of the bottleneck.
const FAST_GROWTH: f64 = 3.0;
/// Far below: this part of it.
const FAST_BELOW: f64 = 0.5;
/// Near it, past this part, the window grows by so much: the path is not overrun in the round trip that it takes to hear of
/// the queue, and if the bottleneck is wider than it seemed, that is soon found.
const NEAR: (f64, f64) = (0.7, 0.25);
/// The same on a path that loses packets, where gaps between acknowledgements make it seem narrower than it is.
const NEAR_WITH_LOSSES: (f64, f64) = (0.9, 0.5);
/// What is sent within so much time is one burst.
const ONE_BURST: Duration = Duration::from_millis(1);
/// Start ends when the rate has not grown by this factor for [`PLATEAU_ROUNDS`].
const PLATEAU: f64 = 1.25;
const PLATEAU_ROUNDS: u32 = 3;
/// Rounds that the largest rate is taken over: one cycle of probing and a little.
const RATE_ROUNDS: usize = 10;
/// How long a least round trip counts before it has to be confirmed.
const MIN_RTT_LIFE: Duration = Duration::from_secs(10);
/// What it may grow by where it was not: one part in so many of itself, and so much. The path may have become longer, or others may
/// stand in the queue; flows that take each other's queue for the path let it grow until it overflows.
const MIN_RTT_GROWTH: (u32, Duration) = (4, Duration::from_millis(1));
/// How long the window is lowered to see the path without our queue.
const PROBE_RTT_TIME: Duration = Duration::from_millis(100);
/// To this part of the bandwidth-delay product.
const PROBE_RTT_GAIN: f64 = 0.5;
/// Whatever the queue is, no more is in flight than the rate times (this times the least round trip and
/// [`QUEUE_ALLOWANCE`]).
const MOST_ROUND_TRIPS: u32 = 2;
const QUEUE_ALLOWANCE: Duration = Duration::from_millis(10);
/// In flight beyond the model, as a time: quinn's pacer sends what is due in 2 ms at once.
const BURST: Duration = Duration::from_millis(2);
/// Rounds between two probes for more, and up to how many more, so that flows do not probe together.
const CRUISE_ROUNDS: u32 = 4;
const CRUISE_JITTER: u64 = 3;
/// A probe sends this much more.
const UP_GAIN: f64 = 1.25;
/// A probe goes on while each round brings this much more.
const UP_GROWTH: f64 = 1.1;
/// A round that lost too much lowers the ceiling to this part of what was in flight.
const CUT: f64 = 0.85;
/// But where others stand in the queue, not below this part of what arrives in a round trip: to yield to losses that go on
/// is to starve beside a sender that does not yield.
const KEEP: f64 = 0.92;
/// Of a link that is shared, this much is a fair part: half, less or more by a measuring error. Below it a probe's gain is
/// kept, within it it is given back, above it the rate falls to its lower end.
const FAIR: (f64, f64) = (0.45, 0.53);
/// With less than this of it there are many others, and if all probed without a pause the link would be full of losses.
const FEW: f64 = 0.15;
/// More than this of a link on which no queue was left after a probe is all of it, less a measuring error.
const ALL: f64 = 0.85;
/// Two amounts in flight that differ by less than this factor are alike.
const ALIKE: f64 = 1.05;
/// To this part at most with each probe, beside a queue of others and without one.
const YIELD: (f64, f64) = (0.5, 0.75);
/// Weight of the newest measurement of the link's capacity.
const CAPACITY_GAIN: f64 = 0.5;

/// Builds [`Tide`] controllers.
#[derive(Debug)]
pub(crate) struct TideConfig {
    /// Bytes that may be sent before anything is known of the path.
    pub(crate) initial_window: u64,
}

impl ControllerFactory for TideConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Tide::new(self.initial_window, now, current_mtu))
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Grow until the path is full.
    Startup,
    /// The round trip grew: hold the window for a round, so that the rate is measured with the path full.
    Settle,
    /// Send less until the queue that the start made is gone.
    Drain,
    /// Hold the rate.
    Cruise { rounds: u32 },
    /// Send more, to see whether it arrives. `best` is the rate to surpass; `span` the round trip at the beginning.
    Up { rounds: u32, best: f64, span: f64 },
    /// Send no more than fills the path, until the queue that the probe made is gone, and for a round more, to see whether
    /// there is still one: then it is that of others.
    Down { rounds: u32, drained: bool, rate: f64 },
    /// Send much less, to see the path's own round trip.
    ProbeRtt { until: Instant, least: Duration, end: u64 },
}

/// A round trip, and the bytes in flight when the packet that made it was sent, itself included.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Trip {
    rtt: Duration,
    in_flight: u64,
}

impl Trip {
    const NONE: Trip = Trip { rtt: Duration::MAX, in_flight: 0 };

    /// Keeps the shorter of the two.
    fn shorter(&mut self, other: Trip) {
        if other.rtt < self.rtt {
            *self = other;
        }
    }

    /// Keeps the one with clearly more in flight; of two with about as much, the shorter.
    fn fuller(&mut self, other: Trip) {
        let (more, most) = (other.in_flight as f64, self.in_flight as f64);
        if more > most * ALIKE {
            *self = other;
        } else if more * ALIKE > most {
            self.rtt = self.rtt.min(other.rtt);
        }
    }
}

/// The start's own knowledge.
#[derive(Clone, Debug, Default)]
struct Start {
    /// Largest rate so far and the rounds since it grew.
    best: f64,
    stale_rounds: u32,
    /// When an acknowledgement last came without much queue, and how many have come with it since.
    low_at: Option<Instant>,
    high_acks: u32,
    /// Acknowledged bytes of one burst after its first acknowledgement, and the time they took.
    burst: Option<(Instant, Instant)>,
    train_bytes: f64,
    train_secs: f64,
}

#[derive(Clone, Debug)]
pub(crate) struct Tide {
    initial_window: u64,
    mtu: u64,
    window: u64,
    phase: Phase,
    start: Start,
    samples: Samples,
    rate: MaxOfRounds<RATE_ROUNDS>,
    /// Largest sample of this round and of the one before, bytes per second.
    round_rate: f64,
    last_round_rate: f64,
    round_end: u64,
    round_counts: bool,
    min_rtt: Option<(Duration, Instant)>,
    srtt: Duration,
    /// Shortest of this round.
    shortest: Trip,
    /// The fullest of this probe.
    fullest: Trip,
    /// Others stand in the queue, as far as the last probe could see.
    crowded: bool,
    /// What the link carries in all, bytes per second; 0 while it is not known.
    capacity: f64,
    losses: Losses,
    /// Most that may be in flight since too much was lost.
    ceiling: f64,
    /// Losses of what was sent before are the same event.
    cut_at: Option<Instant>,
    /// Bytes acknowledged in this batch, and the newest sending time among them.
    batch_bytes: u64,
    batch_sent: Option<Instant>,
}

impl Tide {
    fn new(initial_window: u64, now: Instant, mtu: u16) -> Self {
        Tide {
            initial_window,
            mtu: mtu.into(),
            window: initial_window,
            phase: Phase::Startup,
            start: Start::default(),
            samples: Samples::new(now),
            rate: MaxOfRounds::new(),
            round_rate: 0.0,
            last_round_rate: 0.0,
            round_end: 0,
            round_counts: false,
            min_rtt: None,
            srtt: Duration::ZERO,
            shortest: Trip::NONE,
            fullest: Trip::NONE,
            crowded: false,
            capacity: 0.0,
            losses: Losses::default(),
            ceiling: f64::INFINITY,
            cut_at: None,
            batch_bytes: 0,
            batch_sent: None,
        }
    }

    fn least_rtt(&self) -> Duration {
        self.min_rtt.map_or(Duration::ZERO, |(rtt, _)| rtt)
    }

    /// Bytes in flight that fill the path at this rate without a queue.
    fn bdp(&self, rate: f64) -> f64 {
        rate * self.least_rtt().as_secs_f64()
    }

    /// The round trip that the rate is held over, seconds: with the queue of others, and without our own.
    fn held_span(&self) -> f64 {
        let least = self.least_rtt();
        let queued = self.srtt.saturating_sub(least);
        let held = if self.crowded { queued } else { queued.min(self.queue_step()) };
        (least + held).min(MOST_ROUND_TRIPS * least + QUEUE_ALLOWANCE).as_secs_f64()
    }

    fn floor(&self) -> f64 {
        (MIN_WINDOW_PACKETS * self.mtu) as f64
    }

    /// A queue that is worth noticing.
    fn queue_step(&self) -> Duration {
        (self.least_rtt() / 8).clamp(Duration::from_millis(4), Duration::from_millis(16))
    }

    fn is_queued(&self, rtt: Duration) -> bool {
        rtt > self.least_rtt() + self.queue_step()
    }

    /// What `phase` allows in flight.
    fn resize(&mut self) {
        let rate = self.rate.get();
        let burst = rate * BURST.as_secs_f64() + 2.0 * self.mtu as f64;
        let wanted = match self.phase {
            Phase::Startup | Phase::Settle => return,
            Phase::Drain => self.bdp(rate) + 2.0 * self.mtu as f64,
            Phase::Down { .. } => self.bdp(rate) + burst,
            Phase::Cruise { .. } => rate * self.held_span() + burst,
            Phase::Up { span, .. } => (UP_GAIN * rate * span + burst).max(rate * self.held_span() + burst),
            Phase::ProbeRtt { .. } => PROBE_RTT_GAIN * self.bdp(rate),
        };
        self.window = wanted.min(self.ceiling).max(self.floor()) as u64;
    }

    fn cruise(&mut self) {
        // any number that differs between flows will do
        let extra = (self.samples.delivered / self.mtu.max(1)) % CRUISE_JITTER;
        let part = self.rate.get() / self.capacity;
        let rounds = if self.crowded && (FEW..FAIR.0).contains(&part) { 0 } else { CRUISE_ROUNDS };
        self.phase = Phase::Cruise { rounds: rounds + extra as u32 };
    }

    fn up(&mut self) {
        let span = if self.crowded { self.held_span() } else { self.least_rtt().as_secs_f64() };
        self.fullest = Trip::NONE;
        self.phase = Phase::Up { rounds: 0, best: self.rate.get(), span };
    }

    /// After a probe, and with its queue gone: finds whether others stand in the queue, what the link carries in all, and
    /// with that our part of it, which decides what becomes of the probe's gain.
    fn compare(&mut self, rate: f64) {
        let (full, short) = (self.fullest, self.shortest);
        self.crowded = self.is_queued(short.rtt);
        let less = full.in_flight.saturating_sub(short.in_flight) as f64;
        let sooner = full.rtt.saturating_sub(short.rtt);
        if less == 0.0 || sooner < self.queue_step() / 4 {
            return;
        }
        // Bytes that were not sent are as many that did not have to wait: the queue's time is theirs by the link's rate.
        let capacity = less / sooner.as_secs_f64();
        self.capacity += if self.capacity == 0.0 { capacity } else { CAPACITY_GAIN * (capacity - self.capacity) };
        let part = rate / self.capacity;
        let (most, yields) = if self.crowded { (f64::INFINITY, YIELD.0) } else { (ALL, YIELD.1) };
        if part > most {
            return;
        }
        if part > FAIR.1 {
            self.rate.set((FAIR.0 * self.capacity).max(rate * yields));
        } else if part > FAIR.0 {
            self.rate.set(rate);
        }
    }

    /// After a batch of acknowledgements. `round` says that one has ended.
    fn step(&mut self, now: Instant, app_limited: bool, round: bool) {
        let in_flight = self.samples.in_flight as f64;
        let rate = self.rate.get();
        let settled = self.bdp(rate) + 2.0 * self.mtu as f64;
        let drained = (settled + rate * BURST.as_secs_f64()).max(self.floor());
        match self.phase {
            Phase::Startup => self.grow(now, app_limited, round),
            Phase::Settle if round => {
                // bursts of the start may have gone faster than the path carries on
                if self.round_counts {
                    self.rate.set(self.last_round_rate);
                }
                self.phase = Phase::Drain;
            }
            Phase::Drain if in_flight <= settled.max(self.floor()) => self.cruise(),
            Phase::Down { rounds, drained: false, rate } if in_flight <= drained || (round && rounds > 0) => {
                self.phase = Phase::Down { rounds, drained: true, rate };
                self.round_end = self.samples.delivered;
                self.shortest = Trip::NONE;
            }
            Phase::Down { rounds, drained: false, rate } if round => {
                self.phase = Phase::Down { rounds: rounds + 1, drained: false, rate };
            }
            Phase::Down { drained: true, rate, .. } if round => {
                if !app_limited {
                    self.compare(rate);
                }
                self.cruise();
            }
            Phase::Cruise { rounds } if round && !app_limited => {
                if rounds == 0 {
                    self.up();
                } else {
                    self.phase = Phase::Cruise { rounds: rounds - 1 };
                }
            }
            Phase::Up { rounds, best, span } if round => {
                let grew = self.last_round_rate > best * UP_GROWTH;
                // what was lost without a queue, or on the queue of others, says little about how much fits
                let careful = self.is_queued(self.shortest.rtt) && !self.crowded;
                self.ceiling *= if careful { 1.0 + 0.0625 * f64::from(1 << rounds.min(3)) } else { UP_GAIN };
                self.phase = match (rounds, grew) {
                    (0, _) => Phase::Up { rounds: 1, best, span },
                    (_, true) => Phase::Up { rounds: rounds + 1, best: self.last_round_rate, span },
                    (_, false) => Phase::Down { rounds: 0, drained: false, rate: best },
                };
            }
            Phase::ProbeRtt { until, least, end } if now >= until && self.samples.delivered >= end => {
                let old = self.least_rtt();
                self.min_rtt = Some((least.min(old + old / MIN_RTT_GROWTH.0 + MIN_RTT_GROWTH.1), now));
                self.cruise();
            }
            _ => {}
        }
        if let Some((_, at)) = self.min_rtt
            && now.saturating_duration_since(at) > MIN_RTT_LIFE
            && matches!(self.phase, Phase::Cruise { .. })
        {
            let end = self.samples.delivered + self.samples.in_flight;
            self.phase = Phase::ProbeRtt { until: now + PROBE_RTT_TIME, least: Duration::MAX, end };
        }
    }

    /// The start: grows the window, and ends when the path is full.
    fn grow(&mut self, now: Instant, app_limited: bool, round: bool) {
        let queued = self.start.high_acks >= 8
            && self.start.low_at.is_none_or(|at| now.saturating_duration_since(at) > self.queue_step());
        if queued {
            self.phase = Phase::Settle;
            self.round_end = self.samples.delivered + self.samples.in_flight;
            self.window = self.window.min(self.samples.in_flight + self.batch_bytes).max(self.floor() as u64);
            return;
        }
        if round && self.round_counts {
            if self.last_round_rate >= self.start.best * PLATEAU {
                self.start.best = self.last_round_rate;
                self.start.stale_rounds = 0;
            } else {
                self.start.stale_rounds += 1;
            }
            if self.start.stale_rounds >= PLATEAU_ROUNDS {
                self.phase = Phase::Drain;
                return;
            }
            self.start.train_bytes /= 2.0;
            self.start.train_secs /= 2.0;
        }
        if app_limited {
            return;
        }
        let known = self.start.train_bytes >= 16.0 * self.mtu as f64 && self.start.train_secs > 0.0;
        // the part of the bottleneck's bandwidth-delay product that is in flight
        let part = self.window as f64 / self.bdp(self.start.train_bytes / self.start.train_secs);
        let lossless = self.samples.lost == 0;
        let (near, near_growth) = if lossless { NEAR } else { NEAR_WITH_LOSSES };
        let growth = match () {
            () if known && part < FAST_BELOW && lossless => FAST_GROWTH,
            () if known && part > near => near_growth,
            () => STARTUP_GROWTH,
        };
        self.window = self.window.saturating_add((growth * self.batch_bytes as f64) as u64);
    }

    /// What the start learns from a batch: the queue, and how far apart the bottleneck sets the packets of one burst.
    fn learn(&mut self, now: Instant, sent: Instant, rtt: Duration) {
        if !self.is_queued(rtt) {
            self.start.low_at = Some(now);
            self.start.high_acks = 0;
        } else {
            self.start.high_acks += 1;
        }
        match self.start.burst {
            Some((at, last)) if sent.saturating_duration_since(at) < ONE_BURST => {
                self.start.train_bytes += self.batch_bytes as f64;
                self.start.train_secs += now.saturating_duration_since(last).as_secs_f64();
                self.start.burst = Some((at, now));
            }
            _ => self.start.burst = Some((sent, now)),
        }
        if self.window == self.initial_window && self.least_rtt() >= LONG_PATH {
            let (least, most) = (LONG_PATH_PACKETS.0 * self.mtu, LONG_PATH_PACKETS.1 * self.mtu);
            self.window = self.window.max((self.bdp(LONG_PATH_RATE) as u64).clamp(least, most));
        }
    }

    /// Too much was lost with so many bytes in flight.
    fn cut(&mut self, now: Instant, in_flight: u64) {
        self.cut_at = Some(now);
        self.losses.restart();
        let delivered = self.round_rate.max(self.last_round_rate);
        let settled = self.bdp(delivered);
        match self.phase {
            Phase::Startup | Phase::Settle | Phase::Drain => {
                self.ceiling = settled.max(CUT * in_flight as f64);
                self.phase = Phase::Drain;
            }
            _ => {
                let least = if self.crowded { KEEP * delivered * self.srtt.as_secs_f64() } else { settled };
                self.ceiling = (CUT * (in_flight as f64).min(self.ceiling)).max(least).max(self.floor());
                if let Phase::Up { best, .. } = self.phase {
                    self.phase = Phase::Down { rounds: 0, drained: false, rate: best };
                }
            }
        }
        self.resize();
    }
}

impl Controller for Tide {
    fn on_sent(&mut self, now: Instant, bytes: u64, _: u64) {
        self.samples.sent(now, bytes, self.srtt);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, _: bool, rtt: &RttEstimator) {
        self.samples.acked(now, bytes);
        self.batch_bytes += bytes;
        self.batch_sent = self.batch_sent.max(Some(sent));
        self.srtt = rtt.get();
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, _: Option<u64>) {
        let Some(sent) = self.batch_sent.take() else { return };
        let rtt = now.saturating_duration_since(sent);
        match &mut self.min_rtt {
            Some((least, at)) if rtt <= *least + *least / 32 => {
                *at = now;
                *least = rtt.min(*least);
            }
            Some(_) => {}
            none => *none = Some((rtt, now)),
        }
        let entry = self.samples.entry(sent);
        let trip = Trip { rtt, in_flight: entry.map_or(0, |entry| entry.in_flight) };
        self.shortest.shorter(trip);
        if let Phase::Up { .. } | Phase::Down { drained: false, .. } = self.phase {
            self.fullest.fuller(trip);
        }
        if let Phase::ProbeRtt { least, .. } = &mut self.phase {
            *least = rtt.min(*least);
        }
        self.losses.acked(self.batch_bytes, rtt);
        let mut round = false;
        // the start has to know of each burst, or it would never begin to grow
        let diluted = if self.phase == Phase::Startup { Duration::ZERO } else { LEAST_SPAN };
        if let Some(sample) = self.samples.end(now, (sent, entry), in_flight, app_limited, self.least_rtt(), diluted) {
            if !sample.app_limited || sample.rate > self.rate.get() {
                self.rate.add(sample.rate);
                self.round_rate = self.round_rate.max(sample.rate);
                self.round_counts |= !sample.app_limited;
            }
            round = sample.prior_delivered >= self.round_end;
        }
        if self.phase == Phase::Startup {
            self.learn(now, sent, rtt);
        }
        if round {
            self.round_end = self.samples.delivered;
            self.last_round_rate = self.round_rate;
        }
        self.step(now, app_limited, round);
        if round {
            self.shortest = Trip::NONE;
            if self.round_counts {
                self.rate.advance();
            }
            self.round_rate = 0.0;
            self.round_counts = false;
            let quiet = self.least_rtt() + self.queue_step();
            if self.losses.round(self.mtu, quiet) == Verdict::TooMany {
                self.cut(now, self.samples.in_flight);
            }
        }
        self.batch_bytes = 0;
        self.resize();
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost_bytes: u64) {
        let entry = self.samples.entry(sent);
        self.samples.lost(lost_bytes);
        self.losses.lost(lost_bytes);
        if persistent {
            // Nothing got through for several time-outs: what was known of the path is no longer so.
            *self = Tide::new(self.initial_window, now, self.mtu.try_into().unwrap_or(u16::MAX));
            return;
        }
        if self.cut_at.is_some_and(|at| sent <= at) {
            return;
        }
        let Some(entry) = entry else { return };
        // no lost bytes: a router marked a packet instead of dropping it
        let since = self.samples.lost - entry.lost;
        if lost_bytes == 0 || self.losses.too_many(since, entry.in_flight, self.mtu) {
            self.cut(now, entry.in_flight);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu.into();
        self.window = self.window.max(self.floor() as u64);
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = self.window;
        metrics.pacing_rate = Some((self.rate.get() * 8.0) as u64);
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.initial_window
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
