//! Tide on the paths of the test bed: what docs/congestion.md says of it, on a few of its paths. Virtual time; the same
//! run each time.

#[path = "congestion_bed/mod.rs"]
mod bed;

use bed::{Flow, Load, Path, Report, Tcp, run};
use shoal_net::Congestion;
use std::time::Duration;

fn path(mbit: f64, rtt_ms: u64, queue_ms: u64, loss: f64) -> Path {
    let (rtt, queue) = (Duration::from_millis(rtt_ms), Duration::from_millis(queue_ms));
    Path { rate: mbit * 1e6, rtt, queue, loss, burst: 0, seed: 7 }
}

fn tide(start: u64) -> Flow {
    Flow::Quic { cc: Congestion::Tide, load: Load::Bulk, start: Duration::from_secs(start) }
}

/// Goodput of flow `i` from one second to another, as a part of the link.
fn part(report: &Report, i: usize, (from, to): (f64, f64), mbit: f64) -> f64 {
    report.flows[i].rate(from, to) * 8.0 / (mbit * 1e6)
}

#[test]
fn a_long_path_is_full_with_and_without_losses() {
    for loss in [0.0, 0.01, 0.02] {
        let report = run(path(50.0, 100, 60, loss), &[tide(0)], Duration::from_secs(8));
        let got = part(&report, 0, (2.0, 8.0), 50.0);
        assert!(got > 0.88, "{:.1} % of the link with losses of {loss}", got * 100.0);
        let own = report.flows[0].loss_share() - loss;
        assert!(own < 0.02, "{:.1} % lost by itself with losses of {loss}", own * 100.0);
    }
}

#[test]
fn alone_it_leaves_the_queue_almost_empty() {
    let report = run(path(50.0, 20, 60, 0.0), &[tide(0)], Duration::from_secs(6));
    assert!(part(&report, 0, (1.0, 6.0), 50.0) > 0.92);
    assert!(report.queue_mean_ms() < 10.0, "{} ms", report.queue_mean_ms());
}

#[test]
fn a_queue_that_holds_little_does_not_lose_much() {
    let report = run(path(50.0, 50, 5, 0.0), &[tide(0)], Duration::from_secs(8));
    assert!(part(&report, 0, (2.0, 8.0), 50.0) > 0.85);
    assert!(report.flows[0].loss_share() < 0.04, "{}", report.flows[0].loss_share());
}

#[test]
fn beside_cubic_it_neither_starves_nor_takes_all() {
    // with the longer round trip CUBIC needs some ten seconds for its part
    for (rtt, seconds, starts) in [(20, (6.0, 16.0), vec![(0, 0), (2, 0), (0, 2)]), (100, (14.0, 24.0), vec![(0, 2)])] {
        for (ours, theirs) in starts {
            let tcp = Flow::Tcp { kind: Tcp::Cubic, start: Duration::from_secs(theirs) };
            let report = run(path(50.0, rtt, 60, 0.0), &[tide(ours), tcp], Duration::from_secs_f64(seconds.1));
            let (a, b) = (report.flows[0].rate(seconds.0, seconds.1), report.flows[1].rate(seconds.0, seconds.1));
            let left = b / (a + b);
            assert!(
                (0.25..0.75).contains(&left),
                "{:.1} % left, {rtt} ms, ours from {ours} s, theirs from {theirs} s",
                left * 100.0
            );
        }
    }
}

#[test]
fn two_of_its_own_share_evenly_whoever_was_first() {
    let report = run(path(50.0, 20, 60, 0.0), &[tide(0), tide(2)], Duration::from_secs(14));
    let (a, b) = (report.flows[0].rate(6.0, 14.0), report.flows[1].rate(6.0, 14.0));
    assert!((0.35..0.65).contains(&(a / (a + b))), "{a} and {b}");
}

/// The path was idle when the connections began, and for longer than any of them remembers that the others stand in the
/// queue. Who takes that for the path makes room for it, and the others for that.
#[test]
fn a_crowd_does_not_take_its_own_queue_for_the_path() {
    let flow = |i: u64| {
        let load = Load::Idle(Duration::from_millis(300 + 7 * i));
        Flow::Quic { cc: Congestion::Tide, load, start: Duration::from_millis(7 * i) }
    };
    let report = run(path(40.0, 1, 60, 0.0), &(0..8u64).map(flow).collect::<Vec<_>>(), Duration::from_secs(26));
    let parts: Vec<f64> = (0..8).map(|i| part(&report, i, (12.0, 26.0), 40.0)).collect();
    assert!(parts.iter().sum::<f64>() > 0.92);
    assert!(parts.iter().all(|part| *part > 0.08), "{parts:?}");
    assert!(
        report.queue_mean_ms() < 26.0 && report.overflowed == 0,
        "{} ms, {} lost",
        report.queue_mean_ms(),
        report.overflowed
    );
}

/// Peers of a swarm ask for some chunks at a time, so each connection pauses again and again, and the first of each burst
/// goes through a shaper at the speed of the wire. Who takes that for the link's rate fills the queue until it overflows.
#[test]
fn what_a_shaper_lets_through_at_first_is_not_the_rate_of_the_link() {
    let path = Path { burst: 200_000, ..path(80.0, 1, 60, 0.0) };
    let load = Load::Bursts(2_000_000, Duration::from_millis(30));
    for flows in [1u64, 2] {
        let flow = |i| Flow::Quic { cc: Congestion::Tide, load, start: Duration::from_millis(40 * i) };
        let report = run(path, &(0..flows).map(flow).collect::<Vec<_>>(), Duration::from_secs(10));
        let got: f64 = (0..flows as usize).map(|i| part(&report, i, (2.0, 10.0), 80.0)).sum();
        assert!(got > 0.88, "{flows} flows got {:.1} % of the link", got * 100.0);
        for flow in &report.flows {
            assert!(flow.loss_share() < 0.005, "one of {flows} flows lost {:.2} %", flow.loss_share() * 100.0);
        }
    }
}

#[test]
fn it_ends_where_cubic_does_not() {
    let fetch = |cc| {
        let flow = Flow::Quic { cc, load: Load::Bytes(10_000_000), start: Duration::ZERO };
        run(path(100.0, 100, 60, 0.01), &[flow], Duration::from_secs(10)).flows[0].done
    };
    let took = fetch(Congestion::Tide).unwrap() as f64 / 1e9;
    assert!(took < 2.0, "10 MB took {took} s");
    assert_eq!(fetch(Congestion::Cubic), None);
}
