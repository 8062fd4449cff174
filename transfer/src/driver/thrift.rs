//! Whether to compress what goes to a peer: what its link takes against what a core needs, and whether the content gives way
//! at all. Numbers in, a decision out; no clock, no IO.

use crate::wire::Packing;
use std::time::Duration;

/// What compressing is taken to cost before it was measured, in nanoseconds a byte: zstd's level 1 on text.
const USUAL_COST: f64 = 2.5;
/// A link is slow if it takes so many times longer than compressing. What is saved is at most all of the link's time, and
/// the reader has to unpack as well.
const PAYS: f64 = 2.0;
/// On a link so many times slower, a core has time for level 3.
const PAYS_MORE: f64 = 10.0;
/// Before a link's speed was seen, a round trip from here on says that it is slow enough.
const LONG_PATH: Duration = Duration::from_millis(2);
/// Bytes after which a link's speed is believed.
const SEEN_BYTES: f64 = 256.0 * 1024.0;
/// What was measured counts half after so many more bytes.
const HALF_LIFE_BYTES: f64 = 8.0 * 1024.0 * 1024.0;
/// Packs that are sent plain, unlooked at, after content did not give way: twice as many each time, up to this.
const MAX_PAUSE: u32 = 32;

/// A speed: nanoseconds over bytes, the past fading.
#[derive(Debug, Default, Clone, Copy)]
struct Pace {
    bytes: f64,
    nanos: f64,
}

impl Pace {
    fn add(&mut self, bytes: usize, took: Duration) {
        let fade = (-(bytes as f64) / HALF_LIFE_BYTES).exp2();
        self.bytes = self.bytes * fade + bytes as f64;
        self.nanos = self.nanos * fade + took.as_nanos() as f64;
    }

    fn per_byte(&self) -> Option<f64> {
        (self.bytes >= SEEN_BYTES).then(|| self.nanos / self.bytes)
    }
}

/// What one connection has shown.
#[derive(Debug, Default)]
pub(super) struct Thrift {
    link: Pace,
    packing: Pace,
    misses: u32,
    pause: u32,
}

impl Thrift {
    /// The level to compress the next pack with, if it is worth trying.
    pub(super) fn level(&mut self, asked: Packing, rtt: Duration) -> Option<i32> {
        let cost = self.packing.per_byte().unwrap_or(USUAL_COST);
        let slow = if rtt >= LONG_PATH { f64::INFINITY } else { 0.0 };
        let link = self.link.per_byte().unwrap_or(slow);
        match asked {
            Packing::Off => return None,
            Packing::IfFaster if link < cost * PAYS => return None,
            _ => {}
        }
        if self.pause > 0 {
            self.pause -= 1;
            return None;
        }
        Some(if link.is_finite() && link > cost * PAYS_MORE { 3 } else { 1 })
    }

    /// So many bytes went out, and the link took so long to take them.
    pub(super) fn sent(&mut self, bytes: usize, took: Duration) {
        self.link.add(bytes, took);
    }

    /// A pack was compressed.
    pub(super) fn gave_way(&mut self, plain: usize, took: Duration) {
        self.packing.add(plain, took);
        self.misses = 0;
    }

    /// It would not have become smaller by enough.
    pub(super) fn resisted(&mut self) {
        self.misses = self.misses.saturating_add(1);
        self.pause = 1_u32.checked_shl(self.misses).unwrap_or(MAX_PAUSE).min(MAX_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;
    const NEAR: Duration = Duration::from_micros(200);
    const FAR: Duration = Duration::from_millis(30);

    /// A link of so many bytes per second.
    fn on_a_link_of(rate: f64) -> Thrift {
        let mut thrift = Thrift::default();
        thrift.sent(4 * MIB, Duration::from_secs_f64(4.0 * MIB as f64 / rate));
        thrift
    }

    #[test]
    fn a_fast_link_gets_plain_bytes_and_a_slow_one_compressed_ones() {
        assert_eq!(on_a_link_of(1e9).level(Packing::IfFaster, NEAR), None);
        assert_eq!(on_a_link_of(100e6).level(Packing::IfFaster, NEAR), Some(1));
        assert_eq!(on_a_link_of(1e6).level(Packing::IfFaster, NEAR), Some(3));
        assert_eq!(on_a_link_of(1e9).level(Packing::IfFaster, FAR), None, "what was seen counts, not the distance");
        assert_eq!(Thrift::default().level(Packing::IfFaster, NEAR), None);
        assert_eq!(Thrift::default().level(Packing::IfFaster, FAR), Some(1));
        assert_eq!(on_a_link_of(1e9).level(Packing::IfSmaller, NEAR), Some(1));
        assert_eq!(on_a_link_of(1e6).level(Packing::Off, FAR), None);
        // A link that becomes fast is noticed.
        let mut thrift = on_a_link_of(1e6);
        thrift.sent(100 * MIB, Duration::from_millis(100));
        assert_eq!(thrift.level(Packing::IfFaster, NEAR), None);
    }

    #[test]
    fn content_that_does_not_give_way_is_tried_ever_more_rarely() {
        let mut thrift = on_a_link_of(1e6);
        let tries = (0..1000)
            .filter(|_| {
                let tried = thrift.level(Packing::IfSmaller, NEAR).is_some();
                if tried {
                    thrift.resisted();
                }
                tried
            })
            .count();
        assert!((30..40).contains(&tries), "{tries}");
        thrift.pause = 0;
        assert!(thrift.level(Packing::IfSmaller, NEAR).is_some());
        thrift.gave_way(MIB, Duration::from_millis(3));
        assert!(thrift.level(Packing::IfSmaller, NEAR).is_some());
    }
}
