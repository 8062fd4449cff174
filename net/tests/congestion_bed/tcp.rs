//! Models of a kernel's TCP sender with endless data: CUBIC (RFC 9438, with HyStart and without pacing) and BBR version 1
//! (draft-cardwell-iccrg-bbr-congestion-control-00). Packets, selective acknowledgements, windows and rates; no bytes.
//! They stand for the competitors on a bottleneck, so they are simple where that does not change the share they take.

use super::{MS, Payload, SEC, Time, World};
use std::collections::{BTreeMap, VecDeque};

/// IP packet of one full segment.
const PACKET: usize = 1_500;
const PAYLOAD: u64 = 1_448;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Cubic,
    Bbr,
}

struct Sent {
    at: Time,
    delivered: u64,
    delivered_at: Time,
    first_sent: Time,
}

pub(crate) struct Tcp {
    flow: usize,
    kind: Kind,
    next: u64,
    in_flight: BTreeMap<u64, Sent>,
    delivered: u64,
    delivered_at: Time,
    first_sent: Time,
    lost: u64,
    cwnd: f64,
    min_rtt: Time,
    recovery_end: u64,
    last_ack: Time,
    // CUBIC
    ssthresh: f64,
    w_max: f64,
    epoch: Option<Time>,
    k: f64,
    w_est: f64,
    srtt: f64,
    round_end: u64,
    round_min: Time,
    round_samples: u32,
    // BBR
    bw: VecDeque<(u64, f64)>,
    rounds: u64,
    full_bw: f64,
    full_rounds: u32,
    state: State,
    min_at: Time,
    pace_at: Time,
    prior_cwnd: f64,
    in_recovery: bool,
    woken: Option<Time>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Startup,
    Drain,
    Probe { phase: usize, since: Time },
    Rtt { until: Option<Time> },
}

impl Tcp {
    pub(crate) fn new(flow: usize, kind: Kind, start: Time) -> Self {
        Tcp {
            flow,
            kind,
            next: 0,
            in_flight: BTreeMap::new(),
            delivered: 0,
            delivered_at: start,
            first_sent: start,
            lost: 0,
            cwnd: 10.0,
            min_rtt: Time::MAX,
            recovery_end: 0,
            last_ack: start,
            ssthresh: f64::INFINITY,
            w_max: 0.0,
            epoch: None,
            k: 0.0,
            w_est: 0.0,
            srtt: 0.0,
            round_end: 0,
            round_min: Time::MAX,
            round_samples: 0,
            bw: VecDeque::new(),
            rounds: 0,
            full_bw: 0.0,
            full_rounds: 0,
            state: State::Startup,
            min_at: start,
            pace_at: start,
            prior_cwnd: 0.0,
            in_recovery: false,
            woken: None,
        }
    }

    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    pub(crate) fn window(&self) -> u64 {
        (self.cwnd * PAYLOAD as f64) as u64
    }

    /// Packets per nanosecond.
    fn bandwidth(&self) -> f64 {
        self.bw.iter().map(|b| b.1).fold(0.0, f64::max)
    }

    fn bdp(&self) -> f64 {
        self.bandwidth() * self.min_rtt as f64
    }

    fn gains(&self) -> (f64, f64) {
        match self.state {
            State::Startup => (2.885, 2.885),
            State::Drain => (1.0 / 2.885, 2.885),
            State::Probe { phase, .. } => ([1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0][phase], 2.0),
            State::Rtt { .. } => (1.0, 1.0),
        }
    }

    pub(crate) fn wake(&mut self, world: &mut World) {
        if self.woken.is_some_and(|at| at <= world.now) {
            self.woken = None;
        }
        // retransmission time-out: everything in flight is gone
        let rto = (self.srtt as Time * 2).max(SEC);
        if !self.in_flight.is_empty() && world.now > self.last_ack + rto {
            self.lost += self.in_flight.len() as u64;
            self.in_flight.clear();
            self.ssthresh = (self.cwnd * 0.7).max(2.0);
            self.cwnd = 2.0;
            self.epoch = None;
            self.last_ack = world.now;
        }
        self.send(world);
    }

    fn send(&mut self, world: &mut World) {
        while (self.in_flight.len() as f64) < self.cwnd.floor() {
            if self.kind == Kind::Bbr && self.bandwidth() > 0.0 && self.pace_at > world.now {
                if self.woken.is_none_or(|at| at > self.pace_at) {
                    self.woken = Some(self.pace_at);
                    world.wake(self.flow, true, self.pace_at);
                }
                return;
            }
            if self.in_flight.is_empty() {
                self.delivered_at = world.now;
                self.first_sent = world.now;
            }
            let sent = Sent {
                at: world.now,
                delivered: self.delivered,
                delivered_at: self.delivered_at,
                first_sent: self.first_sent,
            };
            self.in_flight.insert(self.next, sent);
            world.send(self.flow, true, PACKET, Payload::Segment(self.next));
            self.next += 1;
            if self.kind == Kind::Bbr && self.bandwidth() > 0.0 {
                self.pace_at = self.pace_at.max(world.now) + (1.0 / (self.bandwidth() * self.gains().0)) as Time;
            }
        }
        if self.woken.is_none() {
            let at = world.now + SEC;
            self.woken = Some(at);
            world.wake(self.flow, true, at);
        }
    }

    pub(crate) fn receive(&mut self, world: &mut World, forward: bool, n: u64) {
        if forward {
            world.arrived(self.flow, PAYLOAD);
            return world.send(self.flow, false, 66, Payload::Segment(n));
        }
        let Some(sent) = self.in_flight.remove(&n) else { return };
        let now = world.now;
        let rtt = now - sent.at;
        self.last_ack = now;
        self.delivered += 1;
        self.delivered_at = now;
        self.first_sent = sent.at;
        self.srtt = if self.srtt == 0.0 { rtt as f64 } else { self.srtt + (rtt as f64 - self.srtt) / 8.0 };
        let mut round = false;
        if n >= self.round_end {
            round = true;
            self.round_end = self.next;
            self.rounds += 1;
        }
        // three later packets arrived
        let gone: Vec<u64> = self.in_flight.range(..n.saturating_sub(2)).map(|(n, _)| *n).collect();
        for seq in &gone {
            self.in_flight.remove(seq);
        }
        self.lost += gone.len() as u64;
        match self.kind {
            Kind::Cubic => self.cubic(now, rtt, round, gone.last().copied()),
            Kind::Bbr => self.bbr(now, rtt, round, &sent, gone.last().copied()),
        }
        self.send(world);
    }

    fn cubic(&mut self, now: Time, rtt: Time, round: bool, lost: Option<u64>) {
        self.min_rtt = self.min_rtt.min(rtt);
        if let Some(lost) = lost
            && lost >= self.recovery_end
        {
            self.recovery_end = self.next;
            self.w_max = if self.cwnd < self.w_max { self.cwnd * 0.85 } else { self.cwnd };
            self.cwnd = (self.cwnd * 0.7).max(2.0);
            self.ssthresh = self.cwnd;
            self.epoch = None;
            return;
        }
        if self.cwnd < self.ssthresh {
            self.cwnd += 1.0;
            if round {
                (self.round_min, self.round_samples) = (Time::MAX, 0);
            }
            self.round_min = self.round_min.min(rtt);
            self.round_samples += 1;
            let step = (self.min_rtt / 8).clamp(4 * MS, 16 * MS);
            if self.round_samples == 8 && self.cwnd >= 16.0 && self.round_min >= self.min_rtt + step {
                self.ssthresh = self.cwnd;
            }
            return;
        }
        const C: f64 = 0.4;
        let epoch = *self.epoch.get_or_insert_with(|| {
            self.k = ((self.w_max - self.cwnd).max(0.0) / C).cbrt();
            self.w_max = self.w_max.max(self.cwnd);
            self.w_est = self.cwnd;
            now
        });
        let t = (now - epoch) as f64 / 1e9;
        let target = self.w_max + C * (t + self.srtt / 1e9 - self.k).powi(3);
        self.w_est += 0.53 / self.cwnd;
        let target = target.clamp(self.cwnd, self.cwnd * 1.5);
        self.cwnd = (self.cwnd + (target - self.cwnd) / self.cwnd).max(self.w_est);
    }

    fn bbr(&mut self, now: Time, rtt: Time, round: bool, sent: &Sent, lost: Option<u64>) {
        let span = (now - sent.delivered_at).max(sent.at - sent.first_sent);
        if span >= self.min_rtt.min(rtt) {
            let sample = (self.delivered - sent.delivered) as f64 / span as f64;
            while self.bw.front().is_some_and(|(at, _)| at + 10 < self.rounds) {
                self.bw.pop_front();
            }
            self.bw.push_back((self.rounds, sample));
            if self.bw.len() > 4_000 {
                // keep each round's largest
                let mut best: BTreeMap<u64, f64> = BTreeMap::new();
                for (round, bw) in &self.bw {
                    let b = best.entry(*round).or_default();
                    *b = b.max(*bw);
                }
                self.bw = best.into_iter().collect();
            }
        }
        let stale = now > self.min_at + 10 * SEC;
        if rtt <= self.min_rtt || stale {
            self.min_rtt = rtt;
            self.min_at = now;
        }
        let in_flight = self.in_flight.len() as f64;
        let target = (self.gains().1 * self.bdp() + 3.0).max(4.0);
        if let Some(lost) = lost
            && lost >= self.recovery_end
        {
            // conservation of packets for one round, then as before
            self.recovery_end = self.next;
            if !self.in_recovery {
                self.prior_cwnd = self.cwnd;
                self.in_recovery = true;
            }
            self.cwnd = in_flight + 1.0;
        } else if self.in_recovery && sent.delivered > 0 && round {
            self.in_recovery = false;
            self.cwnd = self.cwnd.max(self.prior_cwnd);
        }
        if self.in_recovery {
            self.cwnd = self.cwnd.max(in_flight + 1.0);
        } else if self.state == State::Startup {
            self.cwnd += 1.0;
        } else {
            self.cwnd = (self.cwnd + 1.0).min(target);
        }
        match self.state {
            State::Startup => {
                if round {
                    if self.bandwidth() >= self.full_bw * 1.25 {
                        self.full_bw = self.bandwidth();
                        self.full_rounds = 0;
                    } else {
                        self.full_rounds += 1;
                    }
                    if self.full_rounds >= 3 {
                        self.state = State::Drain;
                    }
                }
            }
            State::Drain if in_flight <= self.bdp() => self.state = State::Probe { phase: 2, since: now },
            State::Probe { phase, since } => {
                let turn = now - since > self.min_rtt;
                let next = match phase {
                    0 => turn && (lost.is_some() || in_flight >= 1.25 * self.bdp()),
                    1 => turn || in_flight <= self.bdp(),
                    _ => turn,
                };
                if next {
                    self.state = State::Probe { phase: (phase + 1) % 8, since: now };
                }
            }
            State::Rtt { until: None } => {
                self.cwnd = 4.0;
                if in_flight <= 4.0 {
                    self.state = State::Rtt { until: Some(now + 200 * MS.max(self.min_rtt / 200)) };
                }
            }
            State::Rtt { until: Some(at) } => {
                self.cwnd = 4.0;
                if now >= at {
                    self.min_at = now;
                    self.cwnd = self.prior_cwnd.max(4.0);
                    self.state = State::Probe { phase: 2, since: now };
                }
            }
            State::Drain => {}
        }
        if stale && !matches!(self.state, State::Rtt { .. } | State::Startup) {
            self.prior_cwnd = self.cwnd;
            self.state = State::Rtt { until: None };
        }
    }
}
