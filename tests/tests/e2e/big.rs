//! The acceptance run, by hand: ten kills on a file of the user's choice, at full speed.
//!
//!     SHOAL_E2E_FILE=/path/to/a/big/file cargo test --release -p shoal-tests big -- --nocapture
//!
//! `SHOAL_E2E_SEED` picks other moments, `SHOAL_E2E_DIR` another directory than that for temporary files. As root it runs
//! in a namespace of its own and counts what the loopback device there carried until the moment each process was killed:
//! what was in its socket's buffer counts, what was sent to a dead port does not. Without, the seeder's count of what it
//! handed to QUIC stands in, which is higher.

use std::{
    env,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::Pid;
use shoal_tests::{
    MIB,
    content::{Rng, assert_same_file},
    lan::{Host, received},
    place::{Place, Shoal, link_of},
    process::{Finished, Running, number, poll},
};

const KILLS: usize = 10;
const PATIENCE: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_millis(1);

#[test]
fn ten_kills_on_a_big_file() {
    let Some(file) = env::var_os("SHOAL_E2E_FILE").map(PathBuf::from) else {
        return shoal_tests::skipped("SHOAL_E2E_FILE names no file for the big run");
    };
    let seed = env::var("SHOAL_E2E_SEED").map_or(1, |seed| seed.parse().unwrap());
    let place = Place::below(&env::var_os("SHOAL_E2E_DIR").map_or_else(env::temp_dir, PathBuf::from));
    let size = file.metadata().unwrap().len();
    let mut bench = Bench { host: Host::new(), place, seeder: None };
    let mut share = bench.start(bench.place.shoal("seeder", [Path::new("share"), &file]));
    bench.seeder = Some(share.pid());
    let shared = share.event("shared");
    let link = link_of(&shared);
    println!("shared {size} bytes in {} s", shared["seconds"]);
    let fetch = |home: &str, dir: &str| bench.start(bench.place.fetch(home, &link, dir));

    let before = bench.carried();
    let done = fetch("undisturbed", "control").finish().done();
    let undisturbed = bench.carried() - before;
    let took = Duration::from_secs_f64(done["seconds"].as_f64().unwrap());
    let name = link.name.clone().unwrap();
    assert_same_file(&file, &bench.place.path("control").join(&name));
    std::fs::remove_dir_all(bench.place.path("control")).unwrap();
    println!("undisturbed: {took:?}, {} MB/s, {undisturbed} bytes carried", size / 1000 / took.as_millis() as u64);

    let mut arrived = 0;
    let mut kept = 0;
    for (kill, moment) in Rng::new(seed).partition(undisturbed * 9 / 10, KILLS, 1).into_iter().enumerate() {
        let before = bench.carried();
        let begun = Instant::now();
        let run = fetch("leecher", "out");
        let carried = poll("the moment of a kill", PATIENCE, || {
            // A counter of the kernel wakes nobody; this leaves the processor to those who are measured.
            std::thread::sleep(LOOK);
            Some(bench.carried() - before).filter(|carried| *carried >= moment)
        });
        let killed = run.kill();
        arrived += carried;
        let waited = begun.elapsed();
        let (from, to) = (said(&killed, "started", "bytes_resumed"), said(&killed, "progress", "bytes_done"));
        println!("kill {kill} after {waited:?}: {carried} bytes carried; resumed {from:?}, last progress {to:?}");
        assert!(from.is_none_or(|have| have >= kept), "seed {seed}: what was in place is gone");
        kept = kept.max(to.or(from).unwrap_or(0));
        assert_eq!(killed.code, None, "seed {seed}: it ended before kill {kill}; the moments are too late");
    }
    let before = bench.carried();
    let begun = Instant::now();
    let done = fetch("leecher", "out").finish().done();
    arrived += bench.carried() - before;
    assert_same_file(&file, &bench.place.path("out").join(&name));
    let twice = arrived.saturating_sub(undisturbed) / KILLS as u64;
    println!(
        "after {KILLS} kills: identical; the last run resumed {} and fetched {} in {:?}; {twice} bytes fetched twice per kill",
        number(&done, "bytes_resumed"),
        number(&done, "bytes_fetched"),
        begun.elapsed()
    );
    assert!(twice <= 2 * MIB, "seed {seed}: {twice} bytes fetched twice per kill");
}

struct Bench {
    host: Option<Host>,
    place: Place,
    seeder: Option<Pid>,
}

impl Bench {
    fn start(&self, command: Shoal) -> Running {
        let command = match &self.host {
            Some(host) => command.within(host),
            None => command,
        };
        command.start().patient(PATIENCE)
    }

    /// Bytes that went over the link so far.
    fn carried(&self) -> u64 {
        match (&self.host, self.seeder) {
            (Some(_), Some(seeder)) => received(seeder, "lo"),
            _ => self.place.sent_by("seeder"),
        }
    }
}

fn said(run: &Finished, event: &str, key: &str) -> Option<u64> {
    run.last(event).map(|event| number(event, key))
}
