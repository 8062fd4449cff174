//! A fault driver: commands of the real binary on one home die by kill -9, at random moments and at named points, while
//! an outside log says what was acknowledged. After each, the home opens and has all of that; now and then everything is
//! read again, or a bit of the index is flipped first.
//!
//! The short mode kills 40 times, and 10 times on an encrypted home; `SHOAL_TEST_KILLS` asks for more of each,
//! `SHOAL_TEST_SEED` for other moments.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::Value;
use shoal_content::ShoalLink;
use shoal_tests::{
    content::{assert_same_file, write_noise},
    place::{Place, Shoal, link_of},
    process::{Finished, Running, text},
};

const KILLS: u64 = 40;
/// Each command on an encrypted home derives the key first.
const KILLS_ENCRYPTED: u64 = 10;
const SEED: u64 = 0xfa17;
/// Named points of the store, each in the middle of something.
const POINTS: [&str; 13] = [
    "pack-appended",
    "commit-before-sync",
    "commit-before-index",
    "commit-done",
    "fetch-before-rename",
    "fetch-renamed",
    "evicted",
    "gc-swept",
    "gc-moved",
    "gc-removed",
    "scrub-rebuilds",
    "index-made-anew",
    "scrub-copy",
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
    random: u64,
    log: BTreeMap<String, Known>,
    /// What the seeder has.
    links: Vec<(PathBuf, ShoalLink)>,
    next: u64,
    kills: u64,
    acknowledged: u64,
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
    fn run(&mut self, args: &[&str], quota: Option<&str>) -> Finished {
        let mut command = self.victim(args);
        if let Some(quota) = quota {
            command = command.env("SHOAL_QUOTA", quota);
        }
        self.last = format!("{args:?}");
        let stays = args[0] == "share";
        let finished = if self.below(2) == 0 {
            let (point, times) = (POINTS[self.below(POINTS.len() as u64) as usize], 1 + self.below(3));
            self.last = format!("{args:?} at {point}:{times}");
            let running = command.env("SHOAL_TEST_FAILPOINT", format!("{point}:{times}")).start();
            if stays { until_said(running, "shared") } else { running.finish() }
        } else {
            let after = Duration::from_micros(self.below(if stays { 60_000 } else { 120_000 }));
            let running = command.start();
            // The moment is what is tried here; nothing is waited for.
            std::thread::sleep(after);
            running.kill()
        };
        self.kills += u64::from(finished.code.is_none());
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
        match self.below(10) {
            0..3 => {
                let (name, len) = (format!("mine{}", self.next), 100_000 + self.below(400_000));
                self.next += 1;
                let path = self.place.path(&name);
                write_noise(&path, self.random, len);
                let said = self.run(&["share", &name], None);
                if let Some(shared) = said.last("shared") {
                    self.note(&text(shared, "root"), true, there("shared", false));
                }
            }
            3..6 => {
                let which = self.below(self.links.len() as u64) as usize;
                let (source, link) = self.links[which].clone();
                let root = link.root.to_string();
                let cached = self.below(2) == 0;
                let fetched = |state: &State| matches!(state, State::There { kind, .. } if kind == "fetched");
                if cached && self.log.get(&root).is_some_and(|known| known.may_be.iter().any(fetched)) {
                    // It has a better place already.
                    return;
                }
                let out = format!("out{root}");
                let args: &[&str] = match cached {
                    true => &["fetch", &link.to_string(), "--cache"],
                    false => &["fetch", &link.to_string(), "-o", &out],
                };
                let said = self.run(args, None);
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
            6..8 => {
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
                    let said = self.run(&["unshare", &root, "--forget"], None);
                    self.note(&root, said.last("unshared").is_some(), State::Gone);
                } else {
                    let said = self.run(&[if pinned { "unpin" } else { "pin" }, &root], None);
                    // A pin says nothing of whether all of it is here: an unfinished fetch can be pinned as well.
                    let pinned = State::There { kind, complete, pinned: !pinned };
                    self.note(&root, said.last("pinned").is_some(), pinned);
                }
            }
            8 => {
                // A quota of next to nothing: what is cached and not pinned goes.
                let quota = (self.below(2) == 0).then_some("1");
                if quota.is_some() {
                    for known in self.log.values_mut() {
                        let may_go = |state: &State| matches!(state, State::There { kind, pinned: false, .. } if kind == "cached");
                        if known.may_be.iter().any(may_go) {
                            known.may_be.push(State::Gone);
                        }
                    }
                }
                self.run(&["gc"], quota);
            }
            _ => {
                if self.below(2) == 0 {
                    self.flip_a_bit_of_the_index();
                }
                self.run(&["verify"], None);
            }
        }
    }

    fn flip_a_bit_of_the_index(&mut self) {
        let path = self.place.path("victim/store/index.redb");
        let Ok(mut bytes) = fs::read(&path) else { return };
        let at = self.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << self.below(8);
        fs::write(&path, bytes).unwrap();
        // Whatever is told from here on, must be told from a sound index.
        self.victim(&["verify"]).run();
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

/// Waits for an event, then for the end of the process or, if it stays, kills it.
fn until_said(mut running: Running, event: &str) -> Finished {
    let by = Instant::now() + Duration::from_secs(20);
    while Instant::now() < by && !running.is_over() {
        if running.said().iter().any(|said| said["event"] == event) {
            break;
        }
        std::thread::yield_now();
    }
    running.kill()
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
    for i in 0..6 {
        write_noise(&place.path(format!("theirs{i}")), 1000 + i, 150_000 * (1 + i));
    }
    let names: Vec<String> = (0..6).map(|i| format!("theirs{i}")).collect();
    let mut seeder = place.shoal("seeder", ["share"]).args(&names).start();
    let links = names.iter().map(|name| (place.path(name), link_of(&seeder.event("shared")))).collect();
    let mut driver = Driver {
        place,
        encrypted,
        random: seed,
        log: BTreeMap::new(),
        links,
        next: 0,
        kills: 0,
        acknowledged: 0,
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
            let verified = driver.victim(&["verify"]).run();
            assert_eq!(verified.code, Some(0), "seed {seed}, step {steps}: {verified:?}");
        }
    }
    println!("seed {seed}: {} kills in {steps} commands, {} acknowledged", driver.kills, driver.acknowledged);
}
