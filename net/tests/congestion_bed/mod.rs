//! A deterministic test bed for congestion control: QUIC connections of quinn-proto, and models of kernel TCP, share a
//! bottleneck under a virtual clock. The same seed gives the same run.
//!
//! The link is what `tc tbf` or a home router is: a rate, a first-in-first-out queue bounded in time, a propagation
//! delay, random loss on the way in. Nothing here knows how a controller works.

#![allow(dead_code, unreachable_pub, reason = "tests and examples each use a part")]
#![allow(clippy::unwrap_used, reason = "a test bed whose unwrap fails is a failed test")]

mod quic;
mod tcp;

use quic::Quic;
use shoal_net::Congestion;
use std::{collections::BTreeMap, time::Duration};
pub use tcp::Kind as Tcp;

/// Nanoseconds since the run began.
pub type Time = u64;
pub const MS: Time = 1_000_000;
pub const SEC: Time = 1_000_000_000;

/// Bytes of a packet on the wire that are below IP: Ethernet's header, as the kernel's shapers count.
const ETHERNET: usize = 14;
/// IPv4 and UDP headers.
const IP_UDP: usize = 28;
/// Largest IP packet that the link takes.
const LINK_MTU: usize = 1_500;

/// The path that all flows share.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// Bits per second, each way.
    pub rate: f64,
    /// Round trip without queues.
    pub rtt: Duration,
    /// What the queue in front of the link holds at most, as the time to send it.
    pub queue: Duration,
    /// Share of the packets lost at random, each way.
    pub loss: f64,
    /// Bytes that may pass at the wire's speed after a pause: the token bucket of a shaper. 0: there is none.
    pub burst: u64,
    pub seed: u64,
}

/// What an application does with its connection.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// There is always more to send.
    Bulk,
    /// The same, but nothing before this time after the start of the run.
    Idle(Duration),
    /// So many bytes and no more.
    Bytes(u64),
    /// Bursts of so many bytes, the next one a while after the last arrived.
    Bursts(u64, Duration),
}

#[derive(Clone, Copy, Debug)]
pub enum Flow {
    Quic { cc: Congestion, load: Load, start: Duration },
    Tcp { kind: Tcp, start: Duration },
}

/// What became of one flow.
#[derive(Clone, Debug, Default)]
pub struct FlowReport {
    /// Payload bytes that arrived, by tenths of a second.
    pub arrived: Vec<u64>,
    /// Bytes put on the wire, headers included.
    pub wire: u64,
    pub packets: u64,
    pub lost_packets: u64,
    /// When all bytes had arrived, for [`Load::Bytes`].
    pub done: Option<Time>,
    pub window: u64,
}

impl FlowReport {
    /// Payload bytes per second between two times, seconds.
    pub fn rate(&self, from: f64, to: f64) -> f64 {
        let (a, b) = ((from * 10.0) as usize, (to * 10.0) as usize);
        let bytes: u64 = self.arrived.iter().take(b).skip(a).sum();
        bytes as f64 / (to - from)
    }

    pub fn loss_share(&self) -> f64 {
        self.lost_packets as f64 / self.packets.max(1) as f64
    }
}

#[derive(Clone, Debug, Default)]
pub struct Report {
    pub flows: Vec<FlowReport>,
    /// Queueing delay met by packets, ms, as a histogram.
    pub queue_ms: BTreeMap<u32, u64>,
    pub overflowed: u64,
}

impl Report {
    pub fn queue_mean_ms(&self) -> f64 {
        let n: u64 = self.queue_ms.values().sum();
        self.queue_ms.iter().map(|(ms, k)| f64::from(*ms) * *k as f64).sum::<f64>() / n.max(1) as f64
    }

    pub fn queue_quantile_ms(&self, q: f64) -> u32 {
        let n: u64 = self.queue_ms.values().sum();
        let mut seen = 0;
        for (ms, k) in &self.queue_ms {
            seen += k;
            if seen as f64 >= q * n as f64 {
                return *ms;
            }
        }
        0
    }
}

pub(crate) enum Payload {
    Quic(Vec<u8>),
    Segment(u64),
}

enum Event {
    /// A packet reaches the receiver (forward) or the sender.
    Arrive {
        flow: usize,
        forward: bool,
        payload: Payload,
    },
    Wake {
        flow: usize,
        forward: bool,
    },
}

/// One direction of the link.
#[derive(Default)]
struct Pipe {
    /// When the link can take the next packet, or could have, if it saves up.
    free: Time,
    /// When the wire can.
    wire: Time,
}

/// Nanoseconds that a wire takes for a byte: 1 Gbit/s. It is in front of a shaper only.
const WIRE_BYTE: Time = 8;

pub(crate) struct World {
    path: Path,
    pub(crate) now: Time,
    events: BTreeMap<(Time, u64), Event>,
    sequence: u64,
    pipes: [Pipe; 2],
    random: u64,
    report: Report,
}

impl World {
    fn chance(&mut self) -> f64 {
        // Knuth's MMIX generator; the high bits are good enough for losses
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.random >> 11) as f64 / (1u64 << 53) as f64
    }

    fn at(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        self.events.insert((at, self.sequence), event);
    }

    /// Wakes a flow's sending side (or the other) at a time.
    pub(crate) fn wake(&mut self, flow: usize, forward: bool, at: Time) {
        self.at(at.max(self.now), Event::Wake { flow, forward });
    }

    /// Puts a packet on the wire. `len` is its IP packet's length.
    pub(crate) fn send(&mut self, flow: usize, forward: bool, len: usize, payload: Payload) {
        if len > LINK_MTU {
            return;
        }
        if forward {
            let report = &mut self.report.flows[flow];
            report.wire += (len + ETHERNET) as u64;
            report.packets += 1;
        }
        if self.chance() < self.path.loss {
            return;
        }
        let pipe = &mut self.pipes[usize::from(forward)];
        let saved = (self.path.burst as f64 * 8e9 / self.path.rate) as Time;
        let begin = pipe.free.max(self.now.saturating_sub(saved));
        let wait = begin.saturating_sub(self.now);
        if u128::from(wait) > self.path.queue.as_nanos() {
            self.report.overflowed += u64::from(forward);
            return;
        }
        pipe.free = begin + ((len + ETHERNET) as f64 * 8e9 / self.path.rate) as Time;
        if forward {
            *self.report.queue_ms.entry((wait / MS) as u32).or_default() += 1;
        }
        let mut leaves = pipe.free;
        if saved > 0 {
            pipe.wire = pipe.wire.max(self.now) + (len + ETHERNET) as Time * WIRE_BYTE;
            leaves = leaves.max(pipe.wire);
        }
        let at = leaves + self.path.rtt.as_nanos() as Time / 2;
        self.at(at, Event::Arrive { flow, forward, payload });
    }

    /// Payload that reached the application.
    pub(crate) fn arrived(&mut self, flow: usize, bytes: u64) {
        let slot = (self.now / (SEC / 10)) as usize;
        let arrived = &mut self.report.flows[flow].arrived;
        if arrived.len() <= slot {
            arrived.resize(slot + 1, 0);
        }
        arrived[slot] += bytes;
    }

    pub(crate) fn done(&mut self, flow: usize) {
        self.report.flows[flow].done.get_or_insert(self.now);
    }
}

#[allow(clippy::large_enum_variant, reason = "there are a handful of them")]
enum Runner {
    Quic(Box<Quic>),
    Tcp(tcp::Tcp),
}

/// Runs the flows until `end`, or until every flow with a number of bytes has finished.
pub fn run(path: Path, flows: &[Flow], end: Duration) -> Report {
    run_traced(path, flows, end, |_, _, _| {})
}

/// The same; `trace` is told the time (seconds), flow and window every 50 ms.
pub fn run_traced(path: Path, flows: &[Flow], end: Duration, mut trace: impl FnMut(f64, usize, u64)) -> Report {
    let mut world = World {
        path,
        now: 0,
        events: BTreeMap::new(),
        sequence: 0,
        pipes: Default::default(),
        random: path.seed.wrapping_mul(2).wrapping_add(1),
        report: Report { flows: vec![FlowReport::default(); flows.len()], ..Report::default() },
    };
    for _ in 0..8 {
        world.chance();
    }
    let base = std::time::Instant::now();
    let mut runners = Vec::new();
    for (i, flow) in flows.iter().enumerate() {
        let start = match *flow {
            Flow::Quic { cc, load, start } => {
                runners.push(Runner::Quic(Box::new(Quic::new(i, base, cc, load, path.seed + i as u64))));
                start
            }
            Flow::Tcp { kind, start } => {
                runners.push(Runner::Tcp(tcp::Tcp::new(i, kind, start.as_nanos() as Time)));
                start
            }
        };
        world.wake(i, true, start.as_nanos() as Time);
    }
    let finite = flows.iter().filter(|f| matches!(f, Flow::Quic { load: Load::Bytes(_), .. })).count();
    let mut next_trace = 0;
    while let Some(((at, _), event)) = world.events.pop_first() {
        if at > end.as_nanos() as Time {
            break;
        }
        world.now = at;
        if at >= next_trace {
            for (i, r) in runners.iter_mut().enumerate() {
                let window = match r {
                    Runner::Quic(q) => q.window(),
                    Runner::Tcp(t) => t.window(),
                };
                trace(at as f64 / 1e9, i, window);
            }
            next_trace = at + 50 * MS;
        }
        match event {
            Event::Arrive { flow, forward, payload } => match (&mut runners[flow], payload) {
                (Runner::Quic(quic), Payload::Quic(bytes)) => quic.receive(&mut world, forward, bytes),
                (Runner::Tcp(tcp), Payload::Segment(n)) => tcp.receive(&mut world, forward, n),
                _ => unreachable!("a packet of another flow"),
            },
            Event::Wake { flow, forward } => match &mut runners[flow] {
                Runner::Quic(quic) => quic.wake(&mut world, forward),
                Runner::Tcp(tcp) => tcp.wake(&mut world),
            },
        }
        if finite > 0 && world.report.flows.iter().filter(|f| f.done.is_some()).count() == finite {
            break;
        }
    }
    let mut report = world.report;
    for (flow, runner) in report.flows.iter_mut().zip(&mut runners) {
        match runner {
            Runner::Quic(quic) => {
                (flow.packets, flow.lost_packets) = quic.sent_and_lost();
                flow.window = quic.window();
            }
            Runner::Tcp(tcp) => flow.lost_packets = tcp.lost(),
        }
    }
    report
}
