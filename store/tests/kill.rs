//! kill -9 at random moments: a child stages and commits, says what was acknowledged, and dies; whatever it said must
//! be there, whole, when the store is opened again. The child is this test binary itself.
#![cfg(unix)]
#![allow(clippy::unwrap_used)] // a failed unwrap is how a test fails

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use shoal_content::{Cid, Codec, HashKind};
use shoal_store::{Options, RootKind, RootRecord, Stamp, Store};

const HOME: &str = "SHOAL_KILL_TEST_HOME";
const FIRST: &str = "SHOAL_KILL_TEST_FIRST";
const KILLS: u64 = 20;
const SEED: u64 = 0x5eed;

fn open(home: &Path) -> Store {
    Store::open(&home.join("store"), Options { pack_bytes: 1 << 20, ..Options::default() }).unwrap()
}

fn bytes(n: u64) -> Vec<u8> {
    let mut bytes = vec![0; 200 + (n as usize * 7919) % 30_000];
    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn cid(n: u64) -> Cid {
    Cid::of(Codec::Raw, HashKind::Blake3, &bytes(n))
}

/// Batch `n`: a block in a pack and one in a file of ours, then a commit; every fifth batch is a root instead.
fn batch(store: &Store, home: &Path, n: u64) {
    let base = store.add_base(&home.join("files")).unwrap();
    let (in_pack, in_file) = (2 * n, 2 * n + 1);
    store.put(&cid(in_pack), &bytes(in_pack)).unwrap();
    let data = bytes(in_file);
    std::fs::write(home.join("files").join(n.to_string()), &data).unwrap();
    let stamp = Stamp { size: data.len() as u64, mtime_ns: 0 };
    store.stage_file(base, &n.to_string(), stamp, &[(cid(in_file), 0, data.len() as u32)], true).unwrap();
    if n.is_multiple_of(5) { store.put_root(record(n)).unwrap() } else { store.commit().unwrap() }
}

fn record(n: u64) -> RootRecord {
    RootRecord {
        root: cid(2 * n),
        name: n.to_string(),
        kind: RootKind::Fetched,
        base: None,
        path: "/x".into(),
        bytes: n,
        files: 1,
        complete: n.is_multiple_of(2),
        pinned: false,
        provide: true,
        created_unix: n,
        selection: None,
        resume: None,
        expires_unix: None,
        pinned_until_unix: None,
    }
}

/// Not a test of its own: the child's life. It ends by being killed.
#[test]
fn child() {
    let (Ok(home), Ok(first)) = (std::env::var(HOME), std::env::var(FIRST)) else { return };
    let home = Path::new(&home);
    let store = open(home);
    let mut out = std::io::stdout();
    for n in first.parse().unwrap().. {
        batch(&store, home, n);
        writeln!(out, "ack {n}").unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn nothing_acknowledged_is_lost() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("files")).unwrap();
    let mut acked = Vec::new();
    let mut random = SEED;
    for kill in 0..KILLS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Some die while the store opens, most among commits.
        let after_acks = (random >> 60) % 8;
        let then = Duration::from_micros((random >> 33) % 3000);
        let first = 1000 * kill;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(HOME, home.path())
            .env(FIRST, first.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        while seen < after_acks {
            let line = lines.next().expect("the child lives until it is killed").unwrap();
            if let Some((_, n)) = line.split_once("ack ") {
                acked.push(n.parse::<u64>().unwrap());
                seen += 1;
            }
        }
        let start = Instant::now();
        while start.elapsed() < then {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        // What it had said before it died counts as well.
        for line in lines.map_while(Result::ok) {
            if let Some(n) = line.strip_prefix("ack ").and_then(|n| n.parse().ok()) {
                acked.push(n);
            }
        }
        assert_eq!(child.wait().unwrap().signal(), Some(9), "seed {SEED:#x}, kill {kill}");

        let store = open(home.path());
        for &n in &acked {
            for block in [2 * n, 2 * n + 1] {
                let read = store.read(&cid(block));
                assert_eq!(read.unwrap(), bytes(block), "seed {SEED:#x}, kill {kill}, batch {n}");
            }
            if n.is_multiple_of(5) {
                assert_eq!(store.root(&cid(2 * n)).unwrap(), Some(record(n)), "seed {SEED:#x}, kill {kill}");
            }
        }
        assert!(store.take_damage().is_empty(), "seed {SEED:#x}, kill {kill}");
    }
    assert!(acked.len() > KILLS as usize, "the children were killed before they did anything");
}
