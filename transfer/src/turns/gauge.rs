//! What an uplink can carry, and how few answers fill it: measured span by span.
//!
//! What it can carry is the largest of recent rates. It would be forgotten where less is enough, and never seen to be more,
//! so now and then more answers are let through than fill it. Peers and leaves are not known here.

use super::LEAST;
use std::time::Duration;

/// Rates are measured over so long; shorter spans measure the scheduler of the machine.
pub(super) const SPAN: Duration = Duration::from_millis(200);
/// An uplink is full when it carries this part of what it carried at most: from the first to the second, more by a step for
/// each span in which less than `USED` of it was carried and answers waited, else less.
const FULL: (f64, f64) = (0.95, 0.99);
const FULL_STEP: f64 = 0.01;
const USED: f64 = 0.98;
/// No more have a turn than so many times the fewest answers that filled it of late.
const GAIN: f64 = 2.0;
/// In one of so many spans, and after each that carried so much more than all before, more have a turn even where the
/// uplink is full: so many times those of the span before.
const PROBE_EVERY: u32 = 25;
const GREW: f64 = 1.05;
const PROBE: f64 = 1.5;
/// What was carried at most is forgotten after one to two of these;
const MEMORY: Duration = Duration::from_secs(5);
/// or after so many spans in a row in which answers waited and less than this part of it was carried: readers have become
/// slower, or the uplink has.
const SHORT_SPANS: u32 = 5;
const SHORT: f64 = 0.7;

/// The measurements.
#[derive(Debug)]
pub(super) struct Gauge {
    /// When this span began, and the bytes that were delivered before it.
    since: Duration,
    delivered: u64,
    /// Answers under way in it, times seconds, until `at`.
    busy: f64,
    at: Duration,
    /// Bytes per second carried at most: of late, since `peaks_since`, and in the time before.
    peaks: (f64, f64),
    peaks_since: Duration,
    /// The fewest answers, on average, that filled it for a span, in the same times.
    fewest: (f64, f64),
    /// Spans in a row in which little was carried.
    short_spans: u32,
    /// Spans since one in which more have a turn than fill the uplink; none while it lasts.
    unprobed: u32,
    /// How many have one then.
    probe: usize,
    /// This part of what was carried at most counts as full.
    full: f64,
}

impl Default for Gauge {
    fn default() -> Self {
        Gauge {
            since: Duration::ZERO,
            delivered: 0,
            busy: 0.0,
            at: Duration::ZERO,
            peaks: (0.0, 0.0),
            peaks_since: Duration::ZERO,
            fewest: (f64::INFINITY, f64::INFINITY),
            short_spans: 0,
            unprobed: 0,
            probe: 0,
            full: FULL.0,
        }
    }
}

impl Gauge {
    /// Until now so many `answers` were under way.
    pub(super) fn account(&mut self, now: Duration, answers: usize) {
        self.busy += now.saturating_sub(self.at).as_secs_f64() * answers as f64;
        self.at = now;
    }

    /// When [`handle_time`](Self::handle_time) has something to measure.
    pub(super) fn span_ends(&self) -> Duration {
        self.since + SPAN
    }

    /// Time has passed, and [`account`](Self::account) knows. `delivered`: bytes so far; `wanted`: answers wait.
    pub(super) fn handle_time(&mut self, now: Duration, delivered: u64, wanted: bool) {
        let lasted = now.saturating_sub(self.since);
        if lasted < SPAN {
            return;
        }
        // a span in which the uplink was idle for long says nothing
        if lasted < 4 * SPAN {
            let seconds = lasted.as_secs_f64();
            let rate = delivered.saturating_sub(self.delivered) as f64 / seconds;
            self.measured(now, rate, self.busy / seconds, wanted);
        }
        (self.since, self.at, self.delivered, self.busy) = (now, now, delivered, 0.0);
    }

    /// So many turns there may be whatever is carried.
    pub(super) fn least(&self) -> usize {
        if self.unprobed == 0 { self.probe.max(LEAST) } else { LEAST }
    }

    /// The uplink is full from so many bytes per second on, where `coming` answers are not seen yet in what is carried.
    pub(super) fn full(&self, coming: usize) -> u64 {
        let coming = coming as f64 * self.each().unwrap_or(0.0);
        // a negative number becomes none
        (self.full * self.peak() - coming) as u64
    }

    /// How many turns there may be.
    pub(super) fn most(&self) -> usize {
        self.fewest().map_or(LEAST, |fewest| ((GAIN * fewest) as usize).max(LEAST))
    }

    /// Bytes per second that an answer gets where just enough are under way.
    pub(super) fn each(&self) -> Option<f64> {
        self.fewest().map(|fewest| self.peak() / fewest.max(1.0))
    }

    /// How few answers fill the uplink, once it is known.
    fn fewest(&self) -> Option<f64> {
        Some(self.fewest.0.min(self.fewest.1)).filter(|fewest| fewest.is_finite())
    }

    /// What the uplink carried at most.
    pub(super) fn peak(&self) -> f64 {
        self.peaks.0.max(self.peaks.1)
    }

    /// In a span `rate` bytes per second were carried, with so many answers under way on average. `wanted`: others wait.
    fn measured(&mut self, now: Duration, rate: f64, answers: f64, wanted: bool) {
        if now >= self.peaks_since + MEMORY {
            let idle = now >= self.peaks_since + 2 * MEMORY;
            self.peaks = (0.0, if idle { 0.0 } else { self.peaks.0 });
            self.fewest = (f64::INFINITY, if idle { f64::INFINITY } else { self.fewest.0 });
            self.peaks_since = now;
        }
        let short = rate < SHORT * self.peak() && wanted;
        self.short_spans = if short { self.short_spans + 1 } else { 0 };
        if self.short_spans >= SHORT_SPANS {
            self.short_spans = 0;
            self.peaks = (0.0, 0.0);
        }
        let grew = rate > GREW * self.peak();
        if grew {
            // what fewer carried was less than it can
            self.fewest = (f64::INFINITY, f64::INFINITY);
        }
        self.peaks.0 = self.peaks.0.max(rate);
        if rate >= FULL.0 * self.peak() {
            self.fewest.0 = self.fewest.0.min(answers);
        }
        self.unprobed = if grew { 0 } else { (self.unprobed + 1) % PROBE_EVERY };
        self.probe = (PROBE * answers) as usize;
        let more = rate < USED * self.peak() && wanted;
        self.full = (self.full + if more { FULL_STEP } else { -FULL_STEP }).clamp(FULL.0, FULL.1);
    }
}
