//! How many losses are too many: a share of what was sent that neither chance nor the path's own noise explains.
//!
//! Nothing here reacts to them.

use std::time::Duration;

/// Losses that are borne on any path, as a share.
const BORNE: f64 = 0.02;
/// A path's own noise counts up to this share; past it the path is taken for full, whatever the round trip says.
const MOST_NOISE: f64 = 0.03;
/// Packets that a judgement needs: fewer say nothing about a share of a few percent.
const LEAST_PACKETS: f64 = 200.0;
/// Weight of the newest judgement in the noise.
const NOISE_GAIN: f64 = 0.25;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    Fine,
    TooMany,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Losses {
    acked: u64,
    lost: u64,
    /// Sum of round trips weighted by bytes, to average them.
    rtt_bytes: f64,
    /// Share lost while there was no queue: it is not ours to cure.
    noise: f64,
}

impl Losses {
    pub(super) fn acked(&mut self, bytes: u64, rtt: Duration) {
        self.acked += bytes;
        self.rtt_bytes += rtt.as_secs_f64() * bytes as f64;
    }

    pub(super) fn lost(&mut self, bytes: u64) {
        self.lost += bytes;
    }

    /// What was counted so far is judged already.
    pub(super) fn restart(&mut self) {
        *self = Losses { noise: self.noise, ..Losses::default() };
    }

    /// The share that is borne here.
    fn borne(&self) -> f64 {
        BORNE + 1.5 * self.noise
    }

    /// Whether `lost` of `sent` bytes are too many.
    pub(super) fn too_many(&self, lost: u64, sent: u64, mtu: u64) -> bool {
        let packets = (sent as f64 / mtu as f64).max(LEAST_PACKETS / 4.0);
        let expected = self.borne() * packets;
        // three deviations of a Poisson count: it is asked often, and one wrong answer costs many round trips
        lost as f64 / mtu as f64 > expected + 3.0 * expected.sqrt() + 1.0
    }

    /// At the end of a round: judges once there is enough to judge. `quiet` is the mean round trip below which there is
    /// no queue to speak of.
    pub(super) fn round(&mut self, mtu: u64, quiet: Duration) -> Verdict {
        let sent = self.acked + self.lost;
        if (sent as f64) < LEAST_PACKETS * mtu as f64 {
            return Verdict::Fine;
        }
        let verdict = if self.too_many(self.lost, sent, mtu) { Verdict::TooMany } else { Verdict::Fine };
        if self.acked > 0 && self.rtt_bytes / (self.acked as f64) < quiet.as_secs_f64() {
            let share = (self.lost as f64 / sent as f64).min(MOST_NOISE);
            self.noise += NOISE_GAIN * (share - self.noise);
        }
        self.restart();
        verdict
    }
}
