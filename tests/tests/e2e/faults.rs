//! A fault driver: commands of the real binary on one home, a daemon that scrubs among them, die by kill -9, at random
//! moments and at named points, while an outside log says what was acknowledged. After each, the home opens and has all of
//! that; now and then and at the end everything is read again. Bits of the index are flipped, and of headers in packs.
//!
//! The short mode kills 40 times, and 10 times on an encrypted home; `SHOAL_TEST_KILLS` asks for more of each,
//! `SHOAL_TEST_SEED` for other moments. From [`ALL_POINTS_FROM`] kills on, each named point must have been hit.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::Value;
use shoal_content::ShoalLink;
use shoal_tests::{
    AT_MOST,
    content::{assert_same_file, write_noise},
    place::{Place, Shoal, link_of},
    process::{Finished, Running, text},
};

const KILLS: u64 = 40;
/// Each command on an encrypted home derives the key first.
const KILLS_ENCRYPTED: u64 = 10;
const SEED: u64 = 0xfa17;
/// Files of the seeder's.
const THEIRS: u64 = 8;
/// So many kills that every named point is hit among them.
const ALL_POINTS_FROM: u64 = 400;

/// A daemon that did not die at its point by then is stopped.
const DAEMON_FOR: Duration = Duration::from_millis(2500);

/// What the home suffers in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Deed {
    Share,
    Fetch,
    Cache,
    Pin,
    Collect,
    Verify,
    Repair,
    /// It scrubs after a second, and goes on with fetches that did not end.
    Daemon,
}

/// Named points of the store, each in the middle of something, how often they are passed at least by what passes them, and
/// what does.
const POINTS: [(&str, u64, &[Deed]); 13] = [
    ("pack-appended", 3, &[Deed::Share, Deed::Fetch, Deed::Cache, Deed::Repair]),
    ("commit-before-sync", 2, &[Deed::Share, Deed::Fetch, Deed::Cache, Deed::Pin, Deed::Collect]),
    ("commit-before-index", 2, &[Deed::Share, Deed::Fetch, Deed::Cache, Deed::Pin, Deed::Collect]),
    ("commit-done", 2, &[Deed::Share, Deed::Fetch, Deed::Cache, Deed::Pin, Deed::Collect]),
    ("fetch-before-rename", 1, &[Deed::Fetch]),
    ("fetch-renamed", 1, &[Deed::Fetch]),
    ("evicted", 1, &[Deed::Collect]),
    ("gc-swept", 1, &[Deed::Collect]),
    ("gc-moved", 1, &[Deed::Collect]),
    ("gc-removed", 1, &[Deed::Collect]),
    ("scrub-rebuilds", 1, &[Deed::Verify, Deed::Daemon]),
    ("index-made-anew", 1, &[Deed::Verify, Deed::Daemon]),
    ("scrub-copy", 12, &[Deed::Verify, Deed::Repair, Deed::Daemon]),
];

/// What is known of a root: what was acknowledged last, and what a command that was killed may have made of it.
#[derive(Clone, Debug, Default)]
struct Known {
    may_be: Vec<State>,
    /// Where a fetch landed, and what it should hold.
    landed: Option<(PathBuf, PathBuf)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
enum State {
    #[default]
    Gone,
    There {
        kind: String,
        complete: bool,
        pinned: bool,
    },
}

fn there(kind: &str, pinned: bool) -> State {
    State::There { kind: kind.to_owned(), complete: true, pinned }
}

struct Driver {
    place: Place,
    /// Whether the home that suffers is encrypted.
    encrypted: bool,
    seed: u64,
    random: u64,
    log: BTreeMap<String, Known>,
    /// What the seeder has.
    links: Vec<(PathBuf, ShoalLink)>,
    next: u64,
    kills: u64,
    /// Of these, by the point at which.
    hits: BTreeMap<&'static str, u64>,
    /// Of these, by what was under way.
    killed: BTreeMap<Deed, u64>,
    acknowledged: u64,
    /// Whether the index may rot while a daemon runs: not where a header in a pack is bad as well, which it would be made anew
    /// from.
    may_rot: bool,
    /// The last command, for messages.
    last: String,
}

impl Driver {
    fn below(&mut self, n: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % n
    }

    /// A command on the home that suffers.
    fn victim(&self, args: &[&str]) -> Shoal {
        let command = self.place.shoal("victim", args);
        if self.encrypted {
            command.env("SHOAL_ENCRYPT", "true").env("SHOAL_PASSPHRASE", "a fault driver's")
        } else {
            command
        }
    }

    /// Runs a command that dies in the middle, more often than not. Gives what it said.
    fn run(&mut self, deed: Deed, args: &[&str], settings: &[(&str, &str)]) -> Finished {
        let mut command = self.victim(args);
        for (name, value) in settings {
            command = command.env(name, value);
        }
        self.last = format!("{args:?} {settings:?}");
        let passed: Vec<_> = POINTS.iter().filter(|(.., deeds)| deeds.contains(&deed)).collect();
        let (finished, killed) = if self.below(2) == 0 {
            let &&(point, often, _) = &passed[self.below(passed.len() as u64) as usize];
            let times = 1 + self.below(often);
            self.last = format!("{} at {point}:{times}", self.last);
            let mut running = command.env("SHOAL_TEST_FAILPOINT", format!("{point}:{times}")).start();
            if deed == Deed::Daemon && self.may_rot && self.below(2) == 0 {
                // Rot while it runs, which is what is left for its scrub: an index is looked at when it is opened.
                let listens = |said: &[Value]| said.iter().any(|said| said["event"] == "listening");
                while !running.is_over() && !listens(running.said()) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                self.flip_in_the_index();
            }
            let by = Instant::now() + if deed == Deed::Daemon { DAEMON_FOR } else { AT_MOST };
            let shared = |said: &[Value]| said.iter().any(|said| said["event"] == "shared");
            let (finished, died) = match deed {
                Deed::Share => until(running, |said| shared(said) || Instant::now() > by),
                Deed::Daemon => until(running, |_| Instant::now() > by),
                _ => {
                    let finished = running.finish();
                    let died = finished.code.is_none();
                    (finished, died)
                }
            };
            *self.hits.entry(point).or_default() += u64::from(died);
            (finished, died)
        } else {
            let (from, to) = match deed {
                Deed::Share => (0, 60_000),
                // Its scrub begins after a second.
                Deed::Daemon => (900_000, 1_500_000),
                _ => (0, 120_000),
            };
            let after = Duration::from_micros(from + self.below(to - from));
            let running = command.start();
            // The moment is what is tried here; nothing is waited for.
            std::thread::sleep(after);
            let finished = running.kill();
            let killed = finished.code.is_none();
            (finished, killed)
        };
        self.kills += u64::from(killed);
        *self.killed.entry(deed).or_default() += u64::from(killed);
        finished
    }

    /// Notes what a command that said `event` made true, and one that did not may have made true.
    fn note(&mut self, root: &str, said: bool, state: State) {
        let known = self.log.entry(root.to_owned()).or_default();
        if known.may_be.is_empty() {
            known.may_be.push(State::Gone);
        }
        if said {
            known.may_be = vec![state];
            self.acknowledged += 1;
        } else {
            known.may_be.push(state);
        }
    }

    fn pinned(&self, root: &str) -> bool {
        let pinned = |state: &State| matches!(state, State::There { pinned: true, .. });
        self.log.get(root).is_some_and(|known| known.may_be.iter().any(pinned))
    }

    fn step(&mut self) {
        match self.below(20) {
            0..5 => {
                let (name, len) = (format!("mine{}", self.next), 100_000 + self.below(400_000));
                self.next += 1;
                let path = self.place.path(&name);
                write_noise(&path, self.random, len);
                let said = self.run(Deed::Share, &["share", &name], &[]);
                if let Some(shared) = said.last("shared") {
                    self.note(&text(shared, "root"), true, there("shared", false));
                }
            }
            5..10 => {
                let which = self.below(self.links.len() as u64) as usize;
                let (source, link) = self.links[which].clone();
                let root = link.root.to_string();
                // Some are only cached: what has landed has a better place already.
                let cached = which.is_multiple_of(2);
                let out = format!("out{root}");
                let gone = self.log.get(&root).is_none_or(|known| known.may_be == [State::Gone]);
                if gone && self.place.path(&out).exists() {
                    // It was forgotten; or everything that is missing would be found in place.
                    fs::remove_dir_all(self.place.path(&out)).unwrap();
                    self.log.entry(root.clone()).or_default().landed = None;
                }
                let args: &[&str] = match cached {
                    true => &["fetch", &link.to_string(), "--cache"],
                    false => &["fetch", &link.to_string(), "-o", &out],
                };
                let said = self.run(if cached { Deed::Cache } else { Deed::Fetch }, args, &[]);
                let done = said.last("done").is_some();
                let pinned = self.pinned(&root) || !cached;
                self.note(&root, done, there(if cached { "cached" } else { "fetched" }, pinned));
                if !done {
                    for kind in ["cached", "fetched"] {
                        for (complete, pinned) in [(false, true), (false, false), (true, true), (true, false)] {
                            let state = State::There { kind: kind.to_owned(), complete, pinned };
                            self.log.get_mut(&root).unwrap().may_be.push(state);
                        }
                    }
                } else if !cached {
                    let landed = self.place.path(&out).join(source.file_name().unwrap());
                    self.log.get_mut(&root).unwrap().landed = Some((landed, source));
                }
            }
            10..13 => {
                let sure: Vec<(String, State)> = self
                    .log
                    .iter()
                    .filter(|(_, known)| known.may_be.len() == 1 && known.may_be[0] != State::Gone)
                    .map(|(root, known)| (root.clone(), known.may_be[0].clone()))
                    .collect();
                if sure.is_empty() {
                    return;
                }
                let (root, state) = sure[self.below(sure.len() as u64) as usize].clone();
                let State::There { kind, complete, pinned } = state else { return };
                if self.below(3) == 0 {
                    let said = self.run(Deed::Pin, &["unshare", &root, "--forget"], &[]);
                    self.note(&root, said.last("unshared").is_some(), State::Gone);
                } else {
                    let said = self.run(Deed::Pin, &[if pinned { "unpin" } else { "pin" }, &root], &[]);
                    // A pin says nothing of whether all of it is here: an unfinished fetch can be pinned as well.
                    let pinned = State::There { kind, complete, pinned: !pinned };
                    self.note(&root, said.last("pinned").is_some(), pinned);
                }
            }
            13..15 => {
                // A quota of next to nothing: what is cached and not pinned goes.
                let quota: &[_] = if self.below(2) == 0 { &[("SHOAL_QUOTA", "1")] } else { &[] };
                if !quota.is_empty() {
                    for known in self.log.values_mut() {
                        let may_go = |state: &State| matches!(state, State::There { kind, pinned: false, .. } if kind == "cached");
                        if known.may_be.iter().any(may_go) {
                            known.may_be.push(State::Gone);
                        }
                    }
                }
                self.make_garbage();
                self.run(Deed::Collect, &["gc"], quota);
            }
            15..17 => {
                self.damage();
                self.run(Deed::Verify, &["verify"], &[]);
                self.sound();
            }
            17..19 => {
                self.damage();
                for known in self.log.values_mut() {
                    let completed = known.may_be.iter().filter_map(|state| match state {
                        State::There { kind, complete: false, pinned } => Some(there(kind, *pinned)),
                        _ => None,
                    });
                    let completed: Vec<_> = completed.collect();
                    known.may_be.extend(completed);
                }
                self.run(Deed::Daemon, &["daemon"], &[("SHOAL_SCRUB_EVERY", "1s")]);
                self.sound();
            }
            _ => self.rot_and_repair(),
        }
    }

    /// Forgets a root that is surely there, so that there is something to collect.
    fn make_garbage(&mut self) {
        let sure: Vec<String> = self
            .log
            .iter()
            .filter(|(_, known)| known.may_be.len() == 1 && known.may_be[0] != State::Gone)
            .map(|(root, _)| root.clone())
            .collect();
        if !sure.is_empty() {
            let root = sure[self.below(sure.len() as u64) as usize].clone();
            self.victim(&["unshare", &root, "--forget"]).run().ok();
            self.note(&root, true, State::Gone);
        }
    }

    /// Flips bits of the index, or one of the header of a record in a pack; or nothing.
    fn damage(&mut self) {
        let packs = self.place.path("victim/store/packs");
        let what = self.below(3);
        self.may_rot = what != 1;
        match what {
            0 => {
                self.flip_in_the_index();
            }
            1 => {
                let Some(path) = fs::read_dir(packs).ok().and_then(|mut dir| Some(dir.next()?.unwrap().path())) else {
                    return;
                };
                let bytes = fs::read(&path).unwrap();
                let records: Vec<u64> =
                    (0..bytes.len()).filter(|&at| bytes[at..].starts_with(b"sBLK")).map(|at| at as u64).collect();
                if !records.is_empty() {
                    let record = records[self.below(records.len() as u64) as usize];
                    let at = record + self.below(8);
                    self.flip(&path, at);
                }
            }
            _ => {}
        }
    }

    fn flip_in_the_index(&mut self) {
        let path = self.place.path("victim/store/index.redb");
        let Ok(len) = fs::metadata(&path).map(|meta| meta.len()) else { return };
        // Much of it is free.
        for _ in 0..8 {
            let at = self.below(len);
            self.flip(&path, at);
        }
    }

    /// Every byte is read, and what was damaged is as it should be from here on: whatever is told, is told from a sound
    /// store, and the next damage is the only one.
    fn sound(&self) {
        let verified = self.victim(&["verify"]).run();
        assert_eq!(verified.code, Some(0), "seed {}, {}: {verified:?}", self.seed, self.last);
    }

    /// Flips a bit of cached content, and has it fetched again.
    fn rot_and_repair(&mut self) {
        let which = self.below(self.links.len() as u64) as usize;
        let (source, link) = self.links[which].clone();
        let cached = self.log.get(&link.root.to_string()).is_some_and(|known| match known.may_be.as_slice() {
            [State::There { kind, complete: true, .. }] => kind == "cached",
            _ => false,
        });
        if !cached || self.encrypted {
            return;
        }
        let source = fs::read(source).unwrap();
        let at = self.below(source.len() as u64 - 32) as usize;
        for pack in fs::read_dir(self.place.path("victim/store/packs")).unwrap() {
            let path = pack.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            let found = bytes.windows(32).enumerate().filter(|(_, window)| *window == &source[at..at + 32]);
            for (copy, _) in found {
                self.flip(&path, copy as u64);
            }
        }
        self.run(Deed::Repair, &["verify", &link.to_string(), "--repair"], &[]);
        let repaired = self.victim(&["verify", &link.to_string(), "--repair"]).run();
        assert_eq!(repaired.code, Some(0), "seed {}, {}: {repaired:?}", self.seed, self.last);
        self.sound();
    }

    fn flip(&mut self, path: &Path, at: u64) {
        let bit = self.below(8);
        let file = fs::File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
    }

    /// Everything that was acknowledged is there. What is there now is what is known from here on.
    fn check(&mut self, how: &str) {
        let listed = self.victim(&["ls"]).run();
        assert_eq!(listed.code, Some(0), "{how}: {listed:?}");
        let mut found: BTreeMap<String, State> = BTreeMap::new();
        for root in listed.events.iter().filter(|event| event["event"] == "root") {
            let flag = |key: &str| root[key] == Value::Bool(true);
            let state = State::There { kind: text(root, "kind"), complete: flag("complete"), pinned: flag("pinned") };
            found.insert(text(root, "root"), state);
        }
        for (root, known) in &mut self.log {
            let now = found.get(root).cloned().unwrap_or_default();
            assert!(known.may_be.contains(&now), "{how}: {root} is {now:?}, but was {:?}", known.may_be);
            known.may_be = vec![now];
            if let Some((landed, source)) = &known.landed {
                assert_same_file(source, landed);
            }
        }
        // A share that was killed after it was recorded.
        for (root, state) in found {
            self.log.entry(root).or_insert_with(|| Known { may_be: vec![state], landed: None });
        }
    }
}

/// Waits for what is to be said, then kills it; or until it dies by itself. Tells which.
fn until(mut running: Running, mut done: impl FnMut(&[Value]) -> bool) -> (Finished, bool) {
    while !running.is_over() && !done(running.said()) {
        // A look takes microseconds; the process needs this core.
        std::thread::sleep(Duration::from_millis(1));
    }
    let died = running.is_over();
    (running.kill(), died)
}

#[test]
fn whatever_is_killed_nothing_acknowledged_is_lost() {
    kill_and_look(KILLS, false);
}

#[test]
fn whatever_is_killed_an_encrypted_home_loses_nothing_acknowledged() {
    kill_and_look(KILLS_ENCRYPTED, true);
}

fn kill_and_look(kills: u64, encrypted: bool) {
    let setting = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
    };
    let (kills, seed) = (setting("SHOAL_TEST_KILLS", kills), setting("SHOAL_TEST_SEED", SEED));
    let place = Place::new();
    for i in 0..THEIRS {
        write_noise(&place.path(format!("theirs{i}")), 1000 + i, 150_000 * (1 + i));
    }
    let names: Vec<String> = (0..THEIRS).map(|i| format!("theirs{i}")).collect();
    let mut seeder = place.shoal("seeder", ["share"]).args(&names).start();
    let links = names.iter().map(|name| (place.path(name), link_of(&seeder.event("shared")))).collect();
    let mut driver = Driver {
        place,
        encrypted,
        seed,
        random: seed,
        log: BTreeMap::new(),
        links,
        next: 0,
        kills: 0,
        hits: BTreeMap::new(),
        killed: BTreeMap::new(),
        acknowledged: 0,
        may_rot: true,
        last: String::new(),
    };
    let mut steps = 0;
    while driver.kills < kills {
        steps += 1;
        let before = driver.random;
        driver.step();
        let last = driver.last.clone();
        driver.check(&format!("seed {seed}, step {steps} ({before:#x}), {last}"));
        if steps % 25 == 0 {
            driver.sound();
        }
    }
    driver.sound();
    let Driver { kills: killed, acknowledged, killed: by_deed, hits, .. } = driver;
    println!(
        "seed {seed}: {killed} kills in {steps} commands, {acknowledged} acknowledged; {by_deed:?}; at points: {hits:?}"
    );
    for (point, ..) in POINTS.iter().filter(|_| kills >= ALL_POINTS_FROM) {
        assert!(hits.get(point).is_some_and(|hits| *hits > 0), "none of {killed} kills was at {point}");
    }
}
