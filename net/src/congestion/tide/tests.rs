//! The parts that need no connection. How the whole behaves on a path is asserted in `tests/congestion.rs`, and printed by
//! the example `congestion`.

use super::{
    losses::{Losses, Verdict},
    samples::{LEAST_SPAN, MaxOfRounds, Samples},
};
use std::time::{Duration, Instant};

const MTU: u64 = 1_452;
const MS: Duration = Duration::from_millis(1);

/// Sends a packet each millisecond; each is acknowledged `rtt` milliseconds later. Gives the last rate.
fn steady(
    samples: &mut Samples,
    begun: Instant,
    packets: u32,
    rtt: u32,
    app_limited: bool,
) -> Option<super::samples::Sample> {
    let mut last = None;
    for n in 0..packets + rtt {
        let now = begun + MS * n;
        if n >= rtt {
            samples.acked(now, MTU);
            let sent = begun + MS * (n - rtt);
            let newest = (sent, samples.entry(sent));
            last =
                samples.end(now, newest, MTU * u64::from(rtt.min(packets)), app_limited, MS * rtt, LEAST_SPAN).or(last);
        }
        if n < packets {
            samples.sent(now, MTU, MS * rtt);
        }
    }
    last
}

#[test]
fn the_rate_of_a_steady_flow_is_what_it_sends() {
    let begun = Instant::now();
    let sample = steady(&mut Samples::new(begun), begun, 400, 50, false).unwrap();
    let expected = MTU as f64 * 1e3;
    assert!((sample.rate / expected - 1.0).abs() < 0.05, "{} instead of {expected}", sample.rate);
    assert!(!sample.app_limited);
}

#[test]
fn acknowledgements_that_come_in_a_heap_give_no_rate_above_what_was_sent() {
    let begun = Instant::now();
    let mut samples = Samples::new(begun);
    for n in 0..100 {
        samples.sent(begun + MS * n, MTU, MS * 20);
    }
    // held back on the way and then all at once
    let mut largest = 0.0f64;
    for n in 0..100 {
        let now = begun + MS * 200 + Duration::from_micros(u64::from(n));
        samples.acked(now, MTU);
        let sent = begun + MS * n;
        let newest = (sent, samples.entry(sent));
        if let Some(sample) = samples.end(now, newest, MTU * u64::from(99 - n), false, MS * 20, LEAST_SPAN) {
            largest = largest.max(sample.rate);
        }
    }
    assert!(largest > 0.0 && largest <= MTU as f64 * 1e3 * 1.05, "{largest}");
}

#[test]
fn what_an_idle_application_sends_says_so() {
    let begun = Instant::now();
    assert!(steady(&mut Samples::new(begun), begun, 200, 20, true).unwrap().app_limited);
}

#[test]
fn the_ledger_is_bounded() {
    let begun = Instant::now();
    let mut samples = Samples::new(begun);
    for n in 0..100_000 {
        samples.sent(begun + MS * n, MTU, MS);
    }
    // the oldest entries are gone, so that a packet of theirs tells nothing
    assert!(samples.entry(begun).is_none());
    assert!(samples.entry(begun + MS * 99_999).is_some());
}

#[test]
fn an_entry_is_found_wherever_the_last_one_was() {
    let begun = Instant::now();
    let mut samples = Samples::new(begun);
    for n in 0..700u32 {
        samples.sent(begun + MS * n, MTU, MS);
        // acknowledgements come in order, losses are told in between, and the oldest entries go meanwhile
        for ago in [5, 4, 300, 3] {
            let Some(sent) = n.checked_sub(ago) else { continue };
            let found = samples.entry(begun + MS * sent + MS / 2).map(|entry| entry.in_flight);
            assert_eq!(found, Some(MTU * u64::from(sent + 1)), "{n} {ago}");
        }
    }
}

#[test]
fn the_largest_of_the_last_rounds_is_forgotten_in_time() {
    let mut most = MaxOfRounds::<3>::new();
    for (value, expected) in [(5.0, 5.0), (9.0, 9.0), (1.0, 9.0), (2.0, 9.0), (3.0, 3.0)] {
        most.add(value);
        assert_eq!(most.get(), expected);
        most.advance();
    }
    most.set(7.0);
    assert_eq!(most.get(), 7.0);
}

/// Judges `rounds` rounds of 1,000 packets with so many lost each, without a queue.
fn judge(losses: &mut Losses, rounds: u32, lost: u64) -> Verdict {
    let mut verdict = Verdict::Fine;
    for _ in 0..rounds {
        losses.acked((1_000 - lost) * MTU, MS * 50);
        losses.lost(lost * MTU);
        verdict = losses.round(MTU, MS * 60);
    }
    verdict
}

#[test]
fn a_few_losses_are_borne_and_many_are_not() {
    assert_eq!(judge(&mut Losses::default(), 10, 10), Verdict::Fine);
    assert_eq!(judge(&mut Losses::default(), 10, 20), Verdict::Fine);
    assert_eq!(judge(&mut Losses::default(), 1, 80), Verdict::TooMany);
}

#[test]
fn the_noise_of_a_path_is_learnt_up_to_a_bound() {
    let mut losses = Losses::default();
    assert_eq!(judge(&mut losses, 1, 50), Verdict::TooMany);
    assert_eq!(judge(&mut losses, 30, 50), Verdict::Fine, "it was lost without a queue, again and again");
    assert_eq!(judge(&mut losses, 30, 150), Verdict::TooMany, "no path loses that much by chance");
}

#[test]
fn few_packets_say_nothing() {
    let mut losses = Losses::default();
    losses.acked(50 * MTU, MS * 50);
    losses.lost(20 * MTU);
    assert_eq!(losses.round(MTU, MS * 60), Verdict::Fine);
}
