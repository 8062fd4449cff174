//! Files that are read while they come, between real peers on loopback: what arrives and in which order, what moves, what is
//! kept, and what misbehaving peers and slow readers can do about it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{LIMIT, Manner, Peer, RawPeer, noise};
use shoal_content::{Cid, RelPath};
use shoal_store::Options;
use shoal_transfer::{
    FetchError, PeerAddr, ReadEvent, ReadReport, ReadRequest, Reading, TransferConfig, TransferLimits,
};
use std::{fs, sync::Arc, time::Duration};

const MIB: usize = 1 << 20;

fn request(root: Cid, peers: Vec<PeerAddr>) -> ReadRequest {
    ReadRequest {
        root,
        path: RelPath::default(),
        offset: 0,
        length: None,
        name: Some("film".into()),
        peers,
        keep: true,
        give_up_after: Some(Duration::from_secs(20)),
    }
}

async fn next(reading: &mut Reading) -> Option<ReadEvent> {
    tokio::time::timeout(LIMIT, reading.next()).await.expect("a reading takes too long")
}

/// Reads to the end of the request.
async fn to_end(reading: &mut Reading) -> Result<(Vec<u8>, ReadReport), Arc<FetchError>> {
    let mut all = vec![];
    loop {
        match next(reading).await {
            Some(ReadEvent::Bytes(bytes)) => all.extend_from_slice(&bytes),
            Some(ReadEvent::End(report)) => return Ok((all, report)),
            Some(ReadEvent::Failed(error)) => return Err(error),
            Some(_) => {}
            None => panic!("a reading ended without saying how"),
        }
    }
}

/// Reads at least so many bytes.
async fn some(reading: &mut Reading, bytes: usize) -> Vec<u8> {
    let mut all = vec![];
    while all.len() < bytes {
        match next(reading).await {
            Some(ReadEvent::Bytes(bytes)) => all.extend_from_slice(&bytes),
            Some(ReadEvent::Failed(error)) => panic!("{error}"),
            None => panic!("a reading ended without saying how"),
            Some(_) => {}
        }
    }
    all
}

async fn read(peer: &Peer, request: ReadRequest) -> Result<(Vec<u8>, ReadReport), Arc<FetchError>> {
    to_end(&mut peer.transfer.read(request).await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_read_kept_and_served_on() {
    let (seeder, first, second) = (Peer::start(), Peer::start(), Peer::start());
    let content = noise(1, 9 * MIB + 17);
    let (root, _) = seeder.share_bytes("film", &content).await;
    let (bytes, report) = read(&first, request(root, vec![seeder.addr()])).await.unwrap();
    assert!(bytes == content && report.kept && report.bytes == content.len() as u64);
    assert!(report.bytes_moved < report.bytes + 100_000, "{report:?}");
    // again: all of it is here, and nobody is asked
    let (bytes, report) = read(&first, request(root, vec![])).await.unwrap();
    assert!(bytes == content && report.bytes_moved == 0, "{report:?}");
    seeder.stop().await;
    let (bytes, _) = read(&second, request(root, vec![first.addr()])).await.unwrap();
    assert!(bytes == content);
    assert!(first.store.root(&root).unwrap().unwrap().complete);
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_range_little_more_than_the_range_moves() {
    let (seeder, reader) = (Peer::start(), Peer::start());
    let tree = seeder.dir.path().join("tree");
    fs::create_dir_all(tree.join("a")).unwrap();
    let content = noise(2, 48 * MIB);
    fs::write(tree.join("a/film"), &content).unwrap();
    fs::write(tree.join("other"), noise(3, MIB)).unwrap();
    let root = seeder.share(&tree).await;
    for (offset, length) in [(30 * MIB + 11, MIB), (0, 1), (48 * MIB - 5, 100), (7 * MIB, 0)] {
        let before = seeder.transfer.counters().await.bytes_out;
        let wanted = ReadRequest {
            path: "a/film".parse().unwrap(),
            offset: offset as u64,
            length: Some(length as u64),
            ..request(root, vec![seeder.addr()])
        };
        let (bytes, _) = read(&reader, wanted).await.unwrap();
        assert!(bytes == content[offset..(offset + length).min(content.len())], "{offset} {length}");
        let moved = seeder.transfer.counters().await.bytes_out - before;
        // a leaf on either side, and the tree
        assert!(moved < (length + 2 * MIB + 100_000) as u64, "{moved} bytes for {length}");
    }
    let record = reader.store.root(&root).unwrap().unwrap();
    assert!(!record.complete && !record.provide, "{record:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_takes_nothing_stops_the_fetch() {
    let limits = TransferLimits { read_ahead_bytes: 4 << 20, ..TransferLimits::default() };
    let (seeder, reader) = (Peer::start(), Peer::with(TransferConfig { limits, ..TransferConfig::default() }));
    let content = noise(4, 40 * MIB);
    let (root, _) = seeder.share_bytes("film", &content).await;
    let patient = ReadRequest { give_up_after: Some(Duration::from_secs(1)), ..request(root, vec![seeder.addr()]) };
    let mut reading = reader.transfer.read(patient).await.unwrap();
    let mut got = some(&mut reading, MIB).await;
    // longer than it may take to give up a fetch that brings nothing
    let mut before = 0;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        before = seeder.transfer.counters().await.bytes_out;
    }
    // the window, what is queued for the reader, and what it took
    assert!(before < 12 << 20, "{before} bytes came for a reader that takes nothing");
    let (rest, _) = to_end(&mut reading).await.unwrap();
    got.extend(rest);
    assert!(got == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_into_the_quota_passes_through_memory() {
    let options = Options { quota_bytes: 8 << 20, ..Options::default() };
    let (seeder, reader) = (Peer::start(), Peer::on(TransferConfig::default(), options));
    let content = noise(5, 40 * MIB);
    let (root, _) = seeder.share_bytes("film", &content).await;
    let mut reading = reader.transfer.read(request(root, vec![seeder.addr()])).await.unwrap();
    let mut got = some(&mut reading, 20 * MIB).await;
    let (used, _) = reader.store.fill();
    assert!(used < 8 << 20, "{used} bytes on disk");
    // back to what is nowhere any more
    reading.seek(5 * MIB as u64);
    got.truncate(5 * MIB);
    let (rest, report) = to_end(&mut reading).await.unwrap();
    got.extend(rest);
    assert!(got == content && !report.kept);
    assert!(reader.store.root(&root).unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seek_reads_on_elsewhere_and_back() {
    let (seeder, reader) = (Peer::start(), Peer::start());
    let content = noise(6, 40 * MIB);
    let (root, _) = seeder.share_bytes("film", &content).await;
    let mut reading = reader.transfer.read(request(root, vec![seeder.addr()])).await.unwrap();
    some(&mut reading, 1).await;
    for place in [33 * MIB + 5, 2 * MIB, 39 * MIB] {
        reading.seek(place as u64);
        let bytes = some(&mut reading, MIB / 2).await;
        assert!(bytes == content[place..place + bytes.len()]);
    }
    let (_, _) = to_end(&mut reading).await.unwrap();
    // and after the end
    reading.seek(3);
    let (bytes, _) = to_end(&mut reading).await.unwrap();
    assert!(bytes == content[3..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn liars_and_stallers_do_not_hold_a_reader_up() {
    let seeder = Peer::start();
    let content = noise(7, 24 * MIB);
    let (root, _) = seeder.share_bytes("film", &content).await;
    let sizes: Vec<u32> = seeder.store.manifest(&root).unwrap().leaves().iter().map(|l| l.len).collect();
    for manner in [Manner::Lies, Manner::Stalls, Manner::HangsUp, Manner::Dangles] {
        let raw = RawPeer::start(root, sizes.clone(), manner);
        let reader = Peer::start();
        let both = vec![raw.addr(), seeder.addr()];
        let (bytes, report) = read(&reader, request(root, both)).await.unwrap();
        assert!(bytes == content);
        assert!(report.elapsed < Duration::from_secs(5), "{report:?}");
        raw.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_share_a_fetch_and_a_fetch_takes_over() {
    let (seeder, peer) = (Peer::start(), Peer::start());
    let content = noise(8, 40 * MIB);
    let (root, path) = seeder.share_bytes("film", &content).await;
    let mut one = peer.transfer.read(request(root, vec![seeder.addr()])).await.unwrap();
    let mut two = peer.transfer.read(ReadRequest { offset: 30 << 20, ..request(root, vec![]) }).await.unwrap();
    let begun = some(&mut one, MIB).await;
    assert!(begun == content[..begun.len()]);
    let (bytes, _) = to_end(&mut two).await.unwrap();
    assert!(bytes == content[30 << 20..]);
    // somebody wants all of it, in a directory: whoever reads joins that
    let fetch = async {
        loop {
            match peer.fetch(root, "film", vec![seeder.addr()]).await {
                Err(FetchError::Checkout(shoal_store::CheckoutError::Busy { .. })) => tokio::task::yield_now().await,
                other => return other.unwrap(),
            }
        }
    };
    let (report, rest) = tokio::join!(fetch, to_end(&mut one));
    let landed = fs::read(&report.paths[0]).unwrap();
    assert!(landed == content && fs::read(&path).unwrap() == content);
    assert!(rest.unwrap().0 == content[begun.len()..]);
    let sent = seeder.transfer.counters().await.bytes_out;
    assert!(sent < 42 << 20, "what was read is not moved again: {sent}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_said() {
    let (seeder, reader) = (Peer::start(), Peer::start());
    let tree = seeder.dir.path().join("tree");
    fs::create_dir_all(tree.join("a")).unwrap();
    fs::write(tree.join("a/film"), noise(9, 1000)).unwrap();
    let root = seeder.share(&tree).await;
    let said = async |path: &str, offset: u64| {
        let path = path.parse().unwrap_or_default();
        let wanted = ReadRequest { path, offset, ..request(root, vec![seeder.addr()]) };
        read(&reader, wanted).await.unwrap_err().to_string()
    };
    assert!(said("", 0).await.contains("a directory that holds \"a\", \"a/film\""), "{}", said("", 0).await);
    assert!(said("a", 0).await.contains("\"a\" is a directory that holds \"a/film\""));
    assert!(said("b", 0).await.contains("there is no \"b\""));
    assert!(said("a/film", 1001).await.contains("1000 bytes"));
    let at_the_end =
        ReadRequest { path: "a/film".parse().unwrap(), offset: 1000, ..request(root, vec![seeder.addr()]) };
    assert!(read(&reader, at_the_end).await.unwrap().0.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_that_rotted_here_is_fetched_again() {
    let (seeder, reader) = (Peer::start(), Peer::start());
    let content = noise(10, 9 * MIB);
    let (root, _) = seeder.share_bytes("film", &content).await;
    read(&reader, request(root, vec![seeder.addr()])).await.unwrap();
    let packs = reader.dir.path().join("store/packs");
    let pack =
        fs::read_dir(packs).unwrap().map(|entry| entry.unwrap().path()).max_by_key(|p| p.metadata().unwrap().len());
    let mut bytes = fs::read(pack.as_ref().unwrap()).unwrap();
    bytes[4 * MIB] ^= 1;
    fs::write(pack.unwrap(), bytes).unwrap();
    let (bytes, report) = read(&reader, request(root, vec![seeder.addr()])).await.unwrap();
    // the tree is here, and so are the other leaves
    assert!(bytes == content && report.bytes_moved > 0 && report.bytes_moved < 2 << 20, "{report:?}");
}
