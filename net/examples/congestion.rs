//! Prints the tables of docs/congestion.md: `cargo run -p shoal-net --example congestion [table|share|crowd|start|trace]`.

#[path = "../tests/congestion_bed/mod.rs"]
mod bed;

use bed::{Flow, Load, Path, Tcp, run, run_traced};
use shoal_net::Congestion;
use std::time::Duration;

const ALL: [Congestion; 4] = [Congestion::Tide, Congestion::Cubic, Congestion::Bbr, Congestion::NewReno];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, or: f64| args.get(i).and_then(|a| a.parse().ok()).unwrap_or(or);
    match args.first().map_or("table", String::as_str) {
        "table" => table(&ALL),
        "tide" => table(&[Congestion::Tide]),
        "share" => share(),
        "crowd" => crowd(),
        "start" => start(number(1, 0.0)),
        "trace" => trace(number(1, 200.0), number(2, 100.0), number(3, 60.0), number(4, 0.0), &args),
        other => println!("no such table: {other}"),
    }
}

fn path(mbit: f64, rtt_ms: f64, queue_ms: f64, loss: f64) -> Path {
    let ms = |ms: f64| Duration::from_secs_f64(ms / 1e3);
    Path { rate: mbit * 1e6, rtt: ms(rtt_ms), queue: ms(queue_ms), loss: loss / 100.0, burst: 0, seed: 1 }
}

fn quic(cc: Congestion) -> Flow {
    Flow::Quic { cc, load: Load::Bulk, start: Duration::ZERO }
}

fn table(which: &[Congestion]) {
    println!("200 Mbit/s, queue of 60 ms, 15 s: goodput as % of the link, packets lost %, mean queue ms");
    for rtt in [0.2, 20.0, 100.0, 200.0] {
        for loss in [0.0, 0.1, 1.0, 2.0] {
            print!("| {rtt:5} ms | {loss:3} % |");
            for cc in which {
                let r = run(path(200.0, rtt, 60.0, loss), &[quic(*cc)], Duration::from_secs(15));
                let f = &r.flows[0];
                let goodput = f.rate(0.0, 15.0) * 8.0 / 2e6;
                print!(" {goodput:5.1} {:5.1} {:5.1} |", f.loss_share() * 100.0, r.queue_mean_ms());
            }
            println!();
        }
    }
}

fn share() {
    println!("share of one QUIC flow against one TCP flow, 30 s, seconds 5 to 30; queue 60 ms");
    for (mbit, rtt) in [(50.0, 20.0), (50.0, 100.0), (200.0, 20.0), (200.0, 100.0)] {
        for kind in [Tcp::Cubic, Tcp::Bbr] {
            for first in [0, 3] {
                let tcp = Flow::Tcp { kind, start: Duration::from_secs(first) };
                let ours = Flow::Quic { cc: Congestion::Tide, load: Load::Bulk, start: Duration::from_secs(3 - first) };
                let r = run(path(mbit, rtt, 60.0, 0.0), &[ours, tcp], Duration::from_secs(30));
                let (a, b) = (r.flows[0].rate(5.0, 30.0), r.flows[1].rate(5.0, 30.0));
                println!(
                    "{mbit:5} Mbit/s {rtt:5} ms {kind:?} first at {first}: TCP {:4.1} %, used {:5.1} %, lost {:4.2} % {:4.2} %, queue {:4.1}",
                    100.0 * b / (a + b),
                    (a + b) * 8e2 / (mbit * 1e6),
                    100.0 * r.flows[0].loss_share(),
                    100.0 * r.flows[1].loss_share(),
                    r.queue_mean_ms(),
                );
            }
        }
    }
}

fn crowd() {
    println!(
        "flows of our own through one link of 80 Mbit/s, 30 s: goodput %, lost %, queue ms, least and largest share"
    );
    for cc in ALL {
        for n in [2, 4, 8, 24] {
            for rtt in [0.2, 20.0] {
                let flows: Vec<Flow> = (0..n)
                    .map(|i| {
                        let load = Load::Idle(Duration::from_millis(500 + i as u64 * 7));
                        Flow::Quic { cc, load, start: Duration::from_millis(i as u64 * 7) }
                    })
                    .collect();
                let r = run(path(80.0, rtt, 60.0, 0.0), &flows, Duration::from_secs(30));
                let rates: Vec<f64> = r.flows.iter().map(|f| f.rate(2.0, 30.0)).collect();
                let all: f64 = rates.iter().sum();
                let lost: u64 = r.flows.iter().map(|f| f.lost_packets).sum();
                let sent: u64 = r.flows.iter().map(|f| f.packets).sum();
                println!(
                    "{cc:?} n={n:2} {rtt:4} ms: {:5.1} % lost {:4.2} % queue {:4.1} share {:4.2} to {:4.2}",
                    all * 8e2 / 80e6,
                    100.0 * lost as f64 / sent as f64,
                    r.queue_mean_ms(),
                    rates.iter().copied().fold(f64::MAX, f64::min) * f64::from(n) / all,
                    rates.iter().copied().fold(0.0, f64::max) * f64::from(n) / all,
                );
            }
        }
    }
}

fn start(loss: f64) {
    for (mbit, rtt, bytes) in
        [(200.0, 100.0, 67.1e6), (200.0, 100.0, 17e6), (50.0, 20.0, 17e6), (1000.0, 20.0, 67e6), (80.0, 0.2, 17e6)]
    {
        for cc in ALL {
            for queue in [5.0, 60.0] {
                let flow = Flow::Quic { cc, load: Load::Bytes(bytes as u64), start: Duration::ZERO };
                let r = run(path(mbit, rtt, queue, loss), &[flow], Duration::from_secs(60));
                let f = &r.flows[0];
                let took = f.done.map_or(f64::NAN, |d| d as f64 / 1e9);
                println!(
                    "{mbit} Mbit/s {rtt} ms queue {queue} loss {loss} {:.0} MB {cc:?}: {took:.2} s, ratio {:.2}, lost {:.2} %",
                    bytes / 1e6,
                    took / (bytes * 8.0 / (mbit * 1e6)),
                    100.0 * f.loss_share()
                );
            }
        }
    }
}

fn trace(mbit: f64, rtt: f64, queue: f64, loss: f64, args: &[String]) {
    let mut flows = vec![quic(Congestion::Tide)];
    for extra in args.iter().skip(5) {
        flows.push(match extra.as_str() {
            "tcp-cubic" => Flow::Tcp { kind: Tcp::Cubic, start: Duration::from_secs(0) },
            "tcp-bbr" => Flow::Tcp { kind: Tcp::Bbr, start: Duration::ZERO },
            _ => quic(Congestion::Tide),
        });
    }
    let n = flows.len();
    let mut rows: Vec<String> = Vec::new();
    let r = run_traced(path(mbit, rtt, queue, loss), &flows, Duration::from_secs(12), |at, flow, window| {
        if flow == 0 {
            rows.push(format!("{at:6.2}"));
        }
        if let Some(row) = rows.last_mut() {
            row.push_str(&format!(" {:8.0}", window as f64 / 1e3));
        }
    });
    for row in &rows {
        println!("{row}");
    }
    for (i, f) in r.flows.iter().enumerate().take(n) {
        let per: Vec<String> = (0..12).map(|s| format!("{:.0}", f.rate(s as f64, s as f64 + 1.0) * 8e-6)).collect();
        println!("flow {i} Mbit/s each second: {} lost {:.2} %", per.join(" "), 100.0 * f.loss_share());
    }
    println!("queue mean {:.1} p95 {}", r.queue_mean_ms(), r.queue_quantile_ms(0.95));
}
