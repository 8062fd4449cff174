//! Sharing and writing at full size, with figures. Without a setting it runs on a tree of its own, as any test does;
//! `SHOAL_SPEED_PATH=/some/path cargo test --release -p shoal-store --test import_speed -- --nocapture` measures there,
//! with stores and destination below `SHOAL_SPEED_HOME` (a tmpfs, to leave the disk out of it).
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails at the right line")]

mod import_support;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use import_support::{Bench, assert_same, move_nodes, share};
use shoal_content::RelPath;
use shoal_store::{Checkout, CheckoutOptions};

const THREADS: usize = 2;

#[test]
fn a_path_makes_the_round_trip_at_speed() {
    let home = std::env::var_os("SHOAL_SPEED_HOME").map_or_else(std::env::temp_dir, PathBuf::from);
    let bench = Bench { home: tempfile::tempdir_in(home).unwrap(), encrypted: false };
    let path = std::env::var_os("SHOAL_SPEED_PATH").map_or_else(|| bench.tree("tree"), PathBuf::from);
    let (from, mut to) = (bench.store("from"), bench.store("to"));
    let timed = |what: &str, bytes: u64, run: &mut dyn FnMut()| {
        let start = Instant::now();
        run();
        let took = start.elapsed().as_secs_f64();
        println!("{what:<28} {took:7.2} s {:7.2} GB/s   peak {} MB", bytes as f64 / took / 1e9, peak_mb());
    };

    let mut shared = None;
    timed("import, with commit", 0, &mut || shared = Some(share(&from, &path).unwrap()));
    let shared = shared.unwrap();
    println!("{shared:?}");
    timed("import again", shared.bytes, &mut || assert_eq!(share(&from, &path).unwrap(), shared));
    let mut manifest = None;
    timed("nodes", 0, &mut || manifest = Some(move_nodes(&from, &to, shared.root)));
    let manifest = manifest.unwrap();

    let out = bench.path("out");
    let begin = |to: &_| {
        let options = CheckoutOptions { symlinks: true, threads: THREADS, ..CheckoutOptions::default() };
        Checkout::begin(to, Arc::clone(&manifest), &[] as &[RelPath], &out, &shared.name, options).unwrap()
    };
    let mut checkout = None;
    timed("begin", 0, &mut || checkout = Some(begin(&to)));
    let first = checkout.unwrap();
    // Read beforehand, so that only writing is measured; in parts, so that memory stays bounded.
    let mut writing = 0.0;
    let mut bytes = 0;
    for part in first.wanted().chunks(2048) {
        let blocks: Vec<_> =
            part.iter().map(|&leaf| (leaf, from.read(&manifest.leaves()[leaf as usize].cid).unwrap())).collect();
        bytes += blocks.iter().map(|(_, block)| block.len() as u64).sum::<u64>();
        let next = AtomicUsize::new(0);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    while let Some((leaf, block)) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) {
                        first.write(*leaf, block).unwrap();
                    }
                });
            }
        });
        writing += start.elapsed().as_secs_f64();
    }
    println!(
        "{:<28} {writing:7.2} s {:7.2} GB/s   {} leaves",
        "write",
        bytes as f64 / writing / 1e9,
        first.wanted().len()
    );
    timed("commit", 0, &mut || first.commit().unwrap());
    drop(first);
    drop(to);
    to = bench.store("to");
    let mut checkout = None;
    timed("begin again, vouched", bytes, &mut || checkout = Some(begin(&to)));
    assert!(checkout.take().unwrap().is_complete());
    drop(to);
    let to = bench.store("another");
    move_nodes(&from, &to, shared.root);
    timed("begin again, all hashed", bytes, &mut || checkout = Some(begin(&to)));
    let second = checkout.unwrap();
    assert!(second.is_complete());
    timed("finish", bytes, &mut || drop(second.finish().unwrap()));
    if std::env::var_os("SHOAL_SPEED_PATH").is_none() {
        assert_same(&path, &out.join(&shared.name));
    }
}

/// Most memory this process held so far, in MB.
fn peak_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024 / 1_000_000
}
