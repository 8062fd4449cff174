//! What a run came to, and how it is printed.

use std::fmt;

/// The result of a run. Times in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The seed that decided it.
    pub seed: u64,
    /// Leechers at the start.
    pub peers: usize,
    /// Leaves of the content.
    pub leaves: usize,
    /// The longest time from joining to having everything, over those who stayed and serve.
    pub makespan: f64,
    /// The mean of that time.
    pub mean: f64,
    /// The shortest possible time.
    pub ideal: f64,
    /// The bound that says so.
    pub bound: &'static str,
    /// Peers that should have finished, and did.
    pub finished: usize,
    /// Peers that should have finished.
    pub expected: usize,
    /// Copies of the content that the seed sent.
    pub seed_copies: f64,
    /// Bytes that arrived for nothing, as a part of the bytes that were needed.
    pub duplicates: f64,
    /// Mean time of the free riders; 0 without any.
    pub free_rider_mean: f64,
    /// Part of the leechers' and the seed's uplinks that was used until the last one had everything.
    pub uplink_use: f64,
    /// Peers that were dropped by others, counted per dropper.
    pub drops: u64,
    /// Events handled.
    pub events: u64,
    /// A number that depends on every finishing time and counter: equal for equal runs.
    pub digest: u64,
}

impl Outcome {
    /// Makespan over the shortest possible time.
    pub fn ratio(&self) -> f64 {
        self.makespan / self.ideal
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {} peers {} leaves {}: finished {}/{} makespan {:.2} s mean {:.2} s T* {:.2} s ({}) ratio {:.3} seed sent {:.3} copies duplicates {:.3} % uplinks {:.1} % free riders {:.2} s drops {} events {} digest {:016x}",
            self.seed,
            self.peers,
            self.leaves,
            self.finished,
            self.expected,
            self.makespan,
            self.mean,
            self.ideal,
            self.bound,
            self.ratio(),
            self.seed_copies,
            self.duplicates * 100.0,
            self.uplink_use * 100.0,
            self.free_rider_mean,
            self.drops,
            self.events,
            self.digest,
        )
    }
}
