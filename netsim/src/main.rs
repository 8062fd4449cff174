//! The command line of the simulator.

use anyhow::ensure;
use clap::{Args, Parser, Subcommand};
use shoal_netsim::{
    Options,
    scenario::{Serving, suite},
    simulate,
};
use shoal_transfer::{choke::Policy, swarm::SwarmConfig};
use std::time::{Duration, Instant};

/// Simulates swarms that run the product's scheduler.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one simulation and prints what it came to.
    Run(Box<Run>),
    /// Runs the scenarios of docs/benchmarks.md and prints its table.
    Bench {
        /// Leave out what has more leechers at the start than this.
        #[arg(long, default_value_t = 100)]
        most_peers: usize,
    },
}

#[derive(Args)]
struct Run {
    /// Leechers at the start.
    #[arg(long, default_value_t = 10)]
    peers: usize,
    /// Decides everything that is left to chance.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Runs this many seeds, from the given one on.
    #[arg(long, default_value_t = 1)]
    runs: u64,
    /// Content, MB.
    #[arg(long, default_value_t = 134.0)]
    megabytes: f64,
    /// Mean link, Mbit/s.
    #[arg(long, default_value_t = 80.0)]
    mbit: f64,
    /// Downlinks are so many times as fast as uplinks.
    #[arg(long, default_value_t = 1.0)]
    down_factor: f64,
    /// One-way delay, ms.
    #[arg(long, default_value_t = 5.0)]
    latency_ms: f64,
    /// Leechers come within this many ms of each other.
    #[arg(long, default_value_t = 50.0)]
    spread_ms: f64,
    /// From taking part to knowing another leecher passes up to so many ms.
    #[arg(long, default_value_t = 0.0)]
    meeting_ms: f64,
    /// Links differ.
    #[arg(long)]
    mixed: bool,
    /// Part of the leechers that goes and is replaced.
    #[arg(long, default_value_t = 0.0)]
    churn: f64,
    /// Part of the leechers that comes late.
    #[arg(long, default_value_t = 0.0)]
    late: f64,
    /// Part of the leechers that never serves.
    #[arg(long, default_value_t = 0.0)]
    free_riders: f64,
    /// Peers that answer with wrong bytes.
    #[arg(long, default_value_t = 0)]
    corrupters: usize,
    /// The seed goes once every leaf was seen elsewhere.
    #[arg(long)]
    seed_leaves: bool,
    /// Asked of all peers together at least, KiB.
    #[arg(long)]
    least_total: Option<u64>,
    /// What is asked of all peers together covers so much of the rate, ms.
    #[arg(long)]
    total_slack: Option<u64>,
    /// Tells on stderr how things stand while it runs.
    #[arg(long)]
    trace: bool,
    /// Connections of each peer; all without it.
    #[arg(long)]
    degree: Option<usize>,
    /// Requests of one peer that a peer answers at the same time.
    #[arg(long, default_value_t = 1)]
    per_connection: usize,
    /// Peers that a peer serves at the same time.
    #[arg(long)]
    slots: Option<usize>,
    /// Who takes and never serves comes last.
    #[arg(long)]
    reciprocal: bool,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Run(run) => run.run(),
        Command::Bench { most_peers } => {
            bench(most_peers);
            Ok(())
        }
    }
}

/// Every scenario with three seeds; the row is the run with the median ratio.
fn bench(most_peers: usize) {
    println!("| scenario | N | T/T* (seeds) | bound | seed sent | duplicates | uplinks used | seed of the row |");
    println!("|---|---|---|---|---|---|---|---|");
    for (name, options) in suite() {
        if options.peers > most_peers {
            continue;
        }
        let mut runs: Vec<_> = (1..=3).map(|seed| simulate(&Options { seed, ..options.clone() })).collect();
        runs.sort_by(|a, b| a.ratio().total_cmp(&b.ratio()));
        let all: Vec<String> = runs.iter().map(|r| format!("{:.2}", r.ratio())).collect();
        let r = &runs[1];
        println!(
            "| {name} | {} | **{:.2}** ({}) | {} | {:.2} | {:.2} % | {:.0} % | {} |",
            r.peers,
            r.ratio(),
            all.join(", "),
            r.bound,
            r.seed_copies,
            r.duplicates * 100.0,
            r.uplink_use * 100.0,
            r.seed,
        );
    }
}

impl Run {
    fn run(self) -> anyhow::Result<()> {
        ensure!(self.peers > 0, "--peers must be at least 1");
        ensure!(self.megabytes > 0.0 && self.mbit > 0.0, "--megabytes and --mbit must be more than 0");
        let mut swarm = SwarmConfig::default();
        swarm.least_total = self.least_total.map_or(swarm.least_total, |kib| kib << 10);
        swarm.total_slack = self.total_slack.map_or(swarm.total_slack, Duration::from_millis);
        for seed in self.seed..self.seed + self.runs {
            let options = Options {
                peers: self.peers,
                seed,
                bytes: (self.megabytes * 1e6) as u64,
                rate: self.mbit * 1e6 / 8.0,
                down_factor: self.down_factor,
                latency: self.latency_ms / 1e3,
                spread: self.spread_ms / 1e3,
                meeting: self.meeting_ms / 1e3,
                mixed: self.mixed,
                churn: self.churn,
                late: self.late,
                free_riders: self.free_riders,
                corrupters: self.corrupters,
                seed_leaves: self.seed_leaves,
                degree: self.degree,
                swarm: swarm.clone(),
                trace: self.trace,
                serving: Serving {
                    upload_slots: self.slots.unwrap_or(usize::MAX),
                    answers_per_connection: self.per_connection,
                    policy: if self.reciprocal { Policy::Reciprocal } else { Policy::Cooperative },
                },
            };
            let begun = Instant::now();
            println!("{} in {:.1} s", simulate(&options), begun.elapsed().as_secs_f64());
        }
        Ok(())
    }
}
