//! One peer's account in a swarm: what it has, what it was asked for, how fast it delivers, when it counts as stalled.
//! It decides nothing about leaves.

use super::{core::BatchId, core::PeerIx, stripe::Tag};
use fixedbitset::FixedBitSet;
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// Deliveries are averaged over at least this long; shorter spans measure the scheduler of the machine.
const RATE_SPAN: Duration = Duration::from_millis(40);
/// Weight of the newest span in the moving average.
const RATE_GAIN: f64 = 0.3;
/// What a window covers beyond the round trip: the time that the serving side may take to read, hash and queue.
const SERVICE_SLACK: Duration = Duration::from_millis(50);
/// A window grows by this factor over what was delivered in its time, so that a faster path is found.
pub(super) const WINDOW_GAIN: f64 = 1.5;
/// While a peer's rate still grows, a window covers this many round trips: a sender's start may quadruple in each.
const GROWING_ROUND_TRIPS: u32 = 4;
/// Growth is over after so many spans in a row without a new maximum, a little above the last one.
const GROWN_SPANS: u32 = 5;
const GROWTH: f64 = 1.1;
/// What a peer says of how long requests wait holds for so long.
const WAIT_LIFE: Duration = Duration::from_secs(5);
/// Announced leaves remembered one by one; what is beyond is found again by a walk through the haves.
const MAX_CANDIDATES: usize = 256;

/// Bytes over time: a moving average and a recent maximum.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Meter {
    rate: f64,
    /// Largest rate of the recent past, decaying; windows follow it so that one slow span does not shrink them.
    peak: f64,
    span_start: Duration,
    span_bytes: u64,
    /// Spans without growth, until there are [`GROWN_SPANS`] of them for the first time.
    flat_spans: u32,
}

impl Meter {
    /// What comes from `now` on is measured; what waited before is not.
    pub(super) fn restart(&mut self, now: Duration) {
        self.span_start = now;
        self.span_bytes = 0;
    }

    pub(super) fn add(&mut self, now: Duration, bytes: u64) {
        self.span_bytes += bytes;
        let span = now.saturating_sub(self.span_start);
        if span >= RATE_SPAN {
            let sample = self.span_bytes as f64 / span.as_secs_f64();
            self.rate = if self.rate == 0.0 { sample } else { self.rate + RATE_GAIN * (sample - self.rate) };
            if self.is_growing() {
                self.flat_spans = if sample > GROWTH * self.peak { 0 } else { self.flat_spans + 1 };
            }
            // halves in about two seconds without a new maximum
            let decay = 0.5f64.powf(span.as_secs_f64() / 2.0);
            self.peak = (self.peak * decay).max(sample);
            self.restart(now);
        }
    }

    /// Bytes per second; 0 while nothing is known.
    pub(super) fn rate(&self) -> f64 {
        self.rate
    }

    /// Whether it is at its beginning, where the rate says little about what the path can do.
    pub(super) fn is_growing(&self) -> bool {
        self.flat_spans < GROWN_SPANS
    }

    /// The recent maximum, bytes per second; 0 while nothing is known.
    pub(super) fn peak(&self) -> f64 {
        self.peak
    }
}

/// Leaves asked for in one request and not delivered yet, in the order of the answer.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) leaves: VecDeque<u32>,
    pub(super) lane: Lane,
}

/// What the bytes of a request count as while they are on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Leaves that leechers have as well.
    Open,
    /// Leaves that only seeders had when they were asked for.
    Scarce,
    /// Asked of a peer that is late or stalled: nothing of it is counted on, so it keeps nobody else from being asked.
    Stuck,
}

/// Bytes that are on their way from all peers, by [`Lane`].
#[derive(Debug, Default)]
pub(super) struct InFlight {
    pub(super) open: u64,
    pub(super) scarce: u64,
    stuck: u64,
}

impl InFlight {
    pub(super) fn lane(&mut self, lane: Lane) -> &mut u64 {
        match lane {
            Lane::Open => &mut self.open,
            Lane::Scarce => &mut self.scarce,
            Lane::Stuck => &mut self.stuck,
        }
    }

    pub(super) fn all(&self) -> u64 {
        self.open + self.scarce + self.stuck
    }
}

impl Batch {
    /// Takes `leaf` out. Answers come in order, so it is the first one but for a few that overtook it on the way through
    /// the threads that verify.
    pub(super) fn take(&mut self, leaf: u32) -> bool {
        if self.leaves.front() == Some(&leaf) {
            self.leaves.pop_front();
            return true;
        }
        let at = self.leaves.iter().position(|l| *l == leaf);
        at.is_some_and(|at| self.leaves.remove(at).is_some())
    }
}

/// Figures of a peer, for reports.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PeerAccount {
    /// Payload bytes of leaves that arrived from it and were verified.
    pub bytes: u64,
    /// Leaves that arrived from it and were verified.
    pub leaves: u64,
    /// Recent delivery rate, bytes per second.
    pub rate: f64,
    /// Bytes asked for and not delivered.
    pub in_flight: u64,
    /// Leaves it has, as it says.
    pub have: u32,
    /// Leaves it was asked for that another peer brought first.
    pub overtaken: u64,
    /// It was asked and sent nothing for too long, and has not delivered since.
    pub stalled: bool,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) ix: PeerIx,
    pub(super) tag: Tag,
    pub(super) have: FixedBitSet,
    pub(super) have_count: u32,
    pub(super) choked: bool,
    pub(super) interested: bool,
    /// Counted as a leecher that owns a share of what only seeders have.
    pub(super) striped: bool,
    /// A seeder is among its peers, as far as it says.
    pub(super) reaches: bool,
    /// The count of all announcements when it made its last one, and the time.
    pub(super) spoke_at: (u64, Duration),
    /// Where it stands in the list of those that may be asked; `ABSENT` if it does not.
    pub(super) at_ready: u32,
    /// Leaves that it announced while they were listed; stale entries are dropped when met.
    pub(super) candidates: Vec<u32>,
    /// Announced leaves that found no room in `candidates` are from here on.
    pub(super) unscanned: Option<u32>,
    /// Of the leaves below this one that it has, all are in place.
    pub(super) wants_from: u32,
    pub(super) batches: BTreeMap<BatchId, Batch>,
    pub(super) in_flight: u64,
    /// Something came from it since it was asked after being idle, so that its oldest request is being answered.
    pub(super) heard: bool,
    /// It was asked and has been silent for longer than is usual for it: others may be asked for the same.
    pub(super) late: bool,
    /// Its requests timed out: it gets one leaf at a time until it delivers one; to begin one is not enough.
    pub(super) snubbed: bool,
    /// How long a request to it would wait, as it said, and when.
    pub(super) wait: Option<(Duration, Duration)>,
    /// It refused a request and is left alone until then.
    pub(super) paused: Option<Duration>,
    /// It is among those that are held back.
    pub(super) held: bool,
    /// It is among the seeders that had nothing to ask for.
    pub(super) dry: bool,
    /// The alarm that is set for its silence.
    pub(super) alarmed: Option<Duration>,
    pub(super) bytes: u64,
    pub(super) leaves: u64,
    pub(super) overtaken: u64,
    pub(super) rtt: Duration,
    pub(super) meter: Meter,
    /// When it last delivered anything, or was first asked after being idle.
    pub(super) last_active: Duration,
    last_asked: Duration,
    gap_mean: f64,
    gap_deviation: f64,
}

/// No place.
pub(super) const ABSENT: u32 = u32::MAX;

impl Peer {
    pub(super) fn new(now: Duration, ix: PeerIx, tag: Tag, leaves: usize, rtt: Duration) -> Self {
        Peer {
            ix,
            tag,
            have: FixedBitSet::with_capacity(leaves),
            have_count: 0,
            choked: false,
            interested: false,
            striped: false,
            reaches: true,
            spoke_at: (0, now),
            at_ready: ABSENT,
            candidates: vec![],
            unscanned: None,
            wants_from: leaves as u32,
            batches: BTreeMap::new(),
            in_flight: 0,
            heard: false,
            late: false,
            snubbed: false,
            wait: None,
            paused: None,
            held: false,
            dry: false,
            alarmed: None,
            bytes: 0,
            leaves: 0,
            overtaken: 0,
            rtt,
            meter: Meter::default(),
            last_active: now,
            last_asked: now,
            gap_mean: 0.0,
            gap_deviation: 0.0,
        }
    }

    pub(super) fn is_seeder(&self) -> bool {
        self.have_count as usize == self.have.len()
    }

    pub(super) fn has(&self, leaf: u32) -> bool {
        self.have.contains(leaf as usize)
    }

    pub(super) fn account(&self) -> PeerAccount {
        PeerAccount {
            bytes: self.bytes,
            leaves: self.leaves,
            rate: self.meter.rate(),
            in_flight: self.in_flight,
            have: self.have_count,
            overtaken: self.overtaken,
            stalled: self.snubbed,
        }
    }

    /// `leaf`, which it has, is listed.
    pub(super) fn suggest(&mut self, leaf: u32) {
        if self.candidates.len() < MAX_CANDIDATES {
            self.candidates.push(leaf);
        } else {
            self.unscanned = Some(self.unscanned.map_or(leaf, |from| from.min(leaf)));
        }
    }

    /// Finds announced leaves again that had no room, as far as `listed` says that they are to be asked for.
    pub(super) fn rescan(&mut self, listed: impl Fn(u32) -> bool) {
        let Some(from) = self.unscanned.take() else { return };
        for leaf in from..self.have.len() as u32 {
            if self.have.contains(leaf as usize) && listed(leaf) {
                if self.candidates.len() == MAX_CANDIDATES {
                    self.unscanned = Some(leaf);
                    return;
                }
                self.candidates.push(leaf);
            }
        }
    }

    /// A request goes out. Whoever stalled has no more patience to expect because others brought what it was asked for,
    /// unless it was left alone for as long as `patience`.
    pub(super) fn asked(&mut self, now: Duration, bytes: u64, patience: Duration) {
        if self.in_flight == 0 {
            if !self.snubbed || self.last_asked + patience < now {
                self.last_active = now;
            }
            self.heard = false;
            self.meter.restart(now);
        }
        self.last_asked = now;
        self.in_flight += bytes;
    }

    /// `bytes` more of what was asked for came in; `in_flight` is the caller's to lower when a leaf is whole.
    pub(super) fn delivered(&mut self, now: Duration, bytes: u64) {
        let gap = now.saturating_sub(self.last_active).as_secs_f64();
        self.last_active = now;
        self.late = false;
        self.heard = true;
        // Jacobson and Karels 1988, as in RFC 6298: mean and mean deviation
        self.gap_deviation += 0.25 * ((gap - self.gap_mean).abs() - self.gap_deviation);
        self.gap_mean += 0.125 * (gap - self.gap_mean);
        self.meter.add(now, bytes);
    }

    /// Bytes that may be asked for and not delivered at one time.
    pub(super) fn window(&self, initial: u64, least: u64) -> u64 {
        if self.snubbed {
            return 1;
        }
        if self.meter.peak() == 0.0 {
            return initial.max(least);
        }
        // a round trip to ask in, and one to send again in what was lost: on a lossy path that is some of every request
        let mut span = (2 * self.rtt + SERVICE_SLACK).mul_f64(WINDOW_GAIN);
        if self.meter.is_growing() {
            span = span.max(GROWING_ROUND_TRIPS * self.rtt);
        }
        ((self.meter.peak() * span.as_secs_f64()) as u64).max(least)
    }

    /// Bytes worth putting into one request: few enough that a lost peer costs little, many enough that requests are rare.
    pub(super) fn batch_bytes(&self, largest: u64) -> u64 {
        let peak = self.meter.peak();
        if peak == 0.0 { largest / 4 } else { ((peak * 0.02) as u64).min(largest) }
    }

    /// The longest silence to expect of a peer that was asked: mean + 4 deviations of the gaps seen. None while nothing
    /// has come from it.
    pub(super) fn silence(&self) -> Option<Duration> {
        if self.bytes == 0 && self.gap_mean == 0.0 {
            return None;
        }
        let seconds = self.gap_mean + 4.0 * self.gap_deviation + 2.0 * self.rtt.as_secs_f64();
        Some(Duration::from_secs_f64(seconds.min(3600.0)))
    }

    /// Seconds until so many bytes of what it was asked for are here.
    pub(super) fn eta_of(&self, bytes: u64) -> f64 {
        if self.late || self.meter.rate() == 0.0 {
            return f64::INFINITY;
        }
        bytes as f64 / self.meter.rate()
    }

    /// Seconds that a request to it would wait, if it said so of late.
    pub(super) fn told_wait(&self, now: Duration) -> Option<f64> {
        self.wait.filter(|(_, said)| *said + WAIT_LIFE >= now).map(|(wait, _)| wait.as_secs_f64())
    }

    /// Seconds until `bytes` more, asked for now, would be here, for a peer that delivers `unknown` bytes per second
    /// where nothing is known of it.
    pub(super) fn eta(&self, bytes: u64, unknown: f64) -> f64 {
        if self.late {
            return f64::INFINITY;
        }
        let rate = if self.meter.rate() == 0.0 { unknown } else { self.meter.rate() };
        if rate == 0.0 {
            return f64::INFINITY;
        }
        (self.in_flight + bytes) as f64 / rate + self.rtt.as_secs_f64()
    }
}
