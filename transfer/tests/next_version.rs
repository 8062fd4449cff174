//! What a next version costs, on made-up archives and trees: what moves, and that it is what it says.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;
#[path = "../../content/tests/support/tar.rs"]
mod tar;

use common::{Peer, noise};
use shoal_transfer::{Compression, FetchReport, TransferConfig, wire::PACK_HEAD_BYTES};
use std::{fs, path::Path};
use tar::Tar;

const FILES: u64 = 900;
/// Every so many files, one changes.
const CHANGED: u64 = 60;

/// Text that compresses about as source code does: words of a small vocabulary, some of them rare.
fn text(seed: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 16);
    for pair in noise(seed, len).chunks_exact(2) {
        let (a, b) = (usize::from(pair[0]), usize::from(pair[1]));
        let word = if b < 40 { a + 256 * b } else { a % 24 };
        out.extend_from_slice(
            format!("{}{:x}{}", ["static ", "if (", "->", "\t\t"][b % 4], word * 7919, [";\n", " "][a % 2]).as_bytes(),
        );
        if out.len() >= len {
            break;
        }
    }
    out.truncate(len);
    out
}

/// The files of a version: names and contents.
fn files(version: u64) -> Vec<(String, Vec<u8>)> {
    let file = |i: u64| {
        let len = 1500 + (i * i * 7919 % 24_000) as usize;
        let mut contents = text(i, len);
        if version > 1 && i.is_multiple_of(CHANGED) {
            contents.splice(len / 2..len / 2, format!("changed in {version}").into_bytes());
        }
        (format!("dir{:02}/file{i:04}.c", i % 30), contents)
    };
    (0..FILES).map(file).collect()
}

fn archive(version: u64) -> Vec<u8> {
    let mut tar = Tar::default();
    for (name, contents) in files(version) {
        tar.file(&name, 1_700_000_000 + version as u32 * 86_400, &contents);
    }
    tar.end()
}

fn tree(at: &Path, version: u64) {
    for (name, contents) in files(version) {
        fs::create_dir_all(at.join(&name).parent().unwrap()).unwrap();
        fs::write(at.join(&name), contents).unwrap();
    }
}

fn with(compression: Compression) -> Peer {
    Peer::with(TransferConfig { agent: "test".into(), compression, ..TransferConfig::default() })
}

/// A fetch of `root` from `seeder`, and what of it moved, in percent.
async fn moved(seeder: &Peer, to: &Peer, root: shoal_content::Cid) -> (FetchReport, f64) {
    let report = to.fetch(root, "v2", vec![seeder.addr()]).await.unwrap();
    let percent = 100.0 * report.bytes_moved as f64 / report.bytes as f64;
    (report, percent)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_archive_moves_headers_and_what_changed() {
    let (old, new) = (archive(1), archive(2));
    let seeder = Peer::start();
    let (root, path) = seeder.share_bytes("v2.tar", &new).await;
    let mut results = vec![];
    for compression in [Compression::Auto, Compression::Off] {
        let leecher = with(compression);
        leecher.share_bytes("v1.tar", &old).await;
        let (report, percent) = moved(&seeder, &leecher, root).await;
        assert!(fs::read(&path).unwrap() == fs::read(&report.paths[0]).unwrap());
        assert_eq!(report.bytes_local + report.bytes_fetched, report.bytes);
        results.push(percent);
    }
    assert!(results[0] <= 3.5, "{:.2} % moved", results[0]);
    assert!(results[1] <= 12.0, "{:.2} % moved without compression", results[1]);
    assert!(results[0] < results[1] / 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_tree_moves_what_changed() {
    let (seeder, leecher) = (Peer::start(), Peer::start());
    tree(&leecher.dir.path().join("v1"), 1);
    leecher.share(&leecher.dir.path().join("v1")).await;
    tree(&seeder.dir.path().join("v2"), 2);
    let root = seeder.share(&seeder.dir.path().join("v2")).await;
    let (report, _) = moved(&seeder, &leecher, root).await;
    let changed: usize = files(2).iter().step_by(CHANGED as usize).map(|(_, contents)| contents.len()).sum();
    let limit = changed as u64 + report.bytes / 100;
    assert!(report.bytes_moved <= limit, "{} moved, {limit} allowed", report.bytes_moved);
    for (name, contents) in files(2) {
        assert!(fs::read(report.paths[0].join(name)).unwrap() == contents);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_a_tree_that_is_here_moves_headers() {
    let (seeder, leecher) = (Peer::start(), Peer::start());
    tree(&leecher.dir.path().join("tree"), 1);
    leecher.share(&leecher.dir.path().join("tree")).await;
    let (root, _) = seeder.share_bytes("tree.tar", &archive(1)).await;
    let (_, percent) = moved(&seeder, &leecher, root).await;
    assert!(percent <= 3.5, "{percent:.2} % moved");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_next_version_does_not_fetch_nodes_that_are_here() {
    let (seeder, leecher) = (Peer::start(), Peer::start());
    for (peer, version) in [(&leecher, 1), (&seeder, 2)] {
        for dir in 0..150 {
            fs::create_dir_all(peer.dir.path().join(format!("v/{dir}"))).unwrap();
            for file in 0..40 {
                let changed = if dir == 7 && file == 7 { version } else { 0 };
                fs::write(peer.dir.path().join(format!("v/{dir}/{file}")), [dir as u8, file, changed]).unwrap();
            }
        }
    }
    leecher.share(&leecher.dir.path().join("v")).await;
    let root = seeder.share(&seeder.dir.path().join("v")).await;
    let manifest = seeder.store.manifest(&root).unwrap();
    let all: usize = manifest.nodes().iter().map(|cid| seeder.store.read(cid).unwrap().len()).sum();
    let (report, _) = moved(&seeder, &leecher, root).await;
    // their names, the root, one directory, one file
    let limit = manifest.nodes().len() * 33 + 20_000;
    assert!(report.bytes_moved <= limit as u64 && limit < all / 5, "{} of {all}", report.bytes_moved);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_compress_moves_no_byte_more() {
    let (seeder, leecher) = (with(Compression::Always), with(Compression::Always));
    let (root, _) = seeder.share_bytes("film", &noise(5, 24 << 20)).await;
    let manifest = seeder.store.manifest(&root).unwrap();
    let (report, _) = moved(&seeder, &leecher, root).await;
    // how many packs there are is a matter of timing; plain, each leaf and node has a head at most
    let nodes: usize = manifest.nodes().iter().map(|cid| 4 + seeder.store.read(cid).unwrap().len()).sum();
    let heads = PACK_HEAD_BYTES * (manifest.leaves().len() + manifest.nodes().len());
    let plain = report.bytes + (nodes + heads) as u64;
    assert!(report.bytes_moved <= plain, "{} moved, {plain} plain", report.bytes_moved);
}

#[tokio::test(flavor = "multi_thread")]
async fn either_side_can_do_without_compression() {
    let bytes = text(3, 4 << 20);
    for (ours, theirs, less) in [
        (Compression::Always, Compression::Always, true),
        (Compression::Always, Compression::Off, false),
        (Compression::Off, Compression::Always, false),
        // Over loopback, a first fetch is faster plain.
        (Compression::Auto, Compression::Auto, false),
    ] {
        let (seeder, leecher) = (with(theirs), with(ours));
        let (root, _) = seeder.share_bytes("text", &bytes).await;
        let (report, percent) = moved(&seeder, &leecher, root).await;
        assert_eq!(percent < 60.0, less, "{ours:?} from {theirs:?}: {percent:.1} %");
        assert_eq!(report.bytes_fetched, report.bytes);
    }
}
