//! Blocks that go, or cannot be read for a while: members are told which, and told again when they are back; what is left of
//! a request is answered all the same. And what peers can make of that.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{LIMIT, Listener, Peer, finish, noise};
use shoal_content::{Cid, Manifest};
use shoal_store::Scrub;
use shoal_transfer::{
    FetchEvent, FetchInto, FetchRequest, PeerAddr, Rates,
    wire::{LeafSet, Message},
};
use std::{collections::BTreeSet, fs, ops::Range, os::unix::fs::FileExt as _, path::Path};

const MB: usize = 1 << 20;

fn sizes(manifest: &Manifest) -> Vec<u32> {
    manifest.leaves().iter().map(|leaf| leaf.len).collect()
}

async fn repair(peer: &Peer, root: Cid, from: Vec<PeerAddr>) {
    let request = FetchRequest { into: FetchInto::Repair, ..peer.request(root, "film", from) };
    finish(peer.transfer.fetch(request).await.unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_edit_a_cut_or_a_removal_takes_is_told_and_what_a_repair_brings_back_as_well() {
    let (seeder, other) = (Peer::start(), Peer::start());
    let bytes = noise(31, 9 * MB);
    let (root, path) = seeder.share_bytes("film", &bytes).await;
    other.share_bytes("film", &bytes).await;
    let manifest = seeder.store.manifest(&root).unwrap();
    let (sizes, count) = (sizes(&manifest), manifest.leaves().len() as u32);
    let all: BTreeSet<u32> = (0..count).collect();
    let mut early = Listener::join(&seeder.addr(), root).await;
    early.until("all are there", |told| *told == all).await;

    // An edit: a read of any kind notices it, and a peer that joins later is not told of the leaf.
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"not what it was", manifest.places(5)[0].offset + 9).unwrap();
    seeder.store.read(&manifest.leaves()[5].cid).unwrap_err();
    let without: BTreeSet<u32> = (0..count).filter(|leaf| *leaf != 5).collect();
    early.until("5 is gone", |told| *told == without).await;
    // So does a scrub.
    file.write_all_at(b"nor this", manifest.places(7)[0].offset).unwrap();
    let store = seeder.store.clone();
    let scrubbed = tokio::task::spawn_blocking(move || store.scrub(&Scrub::default(), &mut |_| {})).await.unwrap();
    assert_eq!(scrubbed.unwrap().bad, 1);
    let without: BTreeSet<u32> = without.into_iter().filter(|leaf| *leaf != 7).collect();
    early.until("7 is gone", |told| *told == without).await;
    let mut late = Listener::join(&seeder.addr(), root).await;
    late.until("all but these are there", |told| told.len() == without.len()).await;
    assert!(late.told == without && late.dont_haves == 0);

    // A cut: whoever asks for one of the leaves behind it has all of them told.
    let kept = 20;
    file.set_len(manifest.places(kept)[0].offset + 100).unwrap();
    assert_eq!(late.ask(root, &sizes, count - 1..count).await, [None]);
    let left: BTreeSet<u32> = without.iter().copied().filter(|leaf| *leaf < kept).collect();
    for listener in [&mut early, &mut late] {
        listener.until("what was cut off is gone", |told| *told == left).await;
    }

    repair(&seeder, root, vec![other.addr()]).await;
    for listener in [&mut early, &mut late] {
        listener.until("all are back", |told| *told == all).await;
    }
    let got = late.ask(root, &sizes, 0..count).await;
    assert!(got.iter().all(Option::is_some), "{got:?}");

    // Gone as a whole: what was repaired is not in the file, and stays.
    fs::remove_file(&path).unwrap();
    assert_eq!(late.ask(root, &sizes, 0..1).await, [None]);
    let repaired: BTreeSet<u32> = all.difference(&left).copied().collect();
    early.until("the file is gone", |told| *told == repaired).await;

    // Shared again: it is the same root.
    seeder.share_bytes("film", &bytes).await;
    early.until("it is shared again", |told| *told == all).await;
}

/// A path that leads in circles can be opened by nobody, root included, and says so by an error that is not "not found".
fn make_unreadable(path: &Path) {
    fs::rename(path, path.with_extension("aside")).unwrap();
    std::os::unix::fs::symlink(path, path).unwrap();
}

fn make_readable(path: &Path) {
    fs::remove_file(path).unwrap();
    fs::rename(path.with_extension("aside"), path).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_takes_nothing_with_it_and_is_offered_again_when_it_can() {
    let seeder = Peer::start();
    let tree = seeder.dir.path().join("tree");
    fs::create_dir_all(&tree).unwrap();
    for (name, seed) in [("a", 41), ("b", 42), ("c", 43)] {
        fs::write(tree.join(name), noise(seed, 2 * MB)).unwrap();
    }
    let root = seeder.share(&tree).await;
    let manifest = seeder.store.manifest(&root).unwrap();
    let (sizes, count) = (sizes(&manifest), manifest.leaves().len() as u32);
    let entry = |leaf: u32| &manifest.entries()[manifest.places(leaf)[0].entry as usize];
    let readable: BTreeSet<u32> = (0..count).filter(|leaf| entry(*leaf).path.as_str() != "b").collect();
    assert!(readable.len() > 4 && readable.len() < count as usize);

    make_unreadable(&tree.join("b"));
    let mut listener = Listener::join(&seeder.addr(), root).await;
    listener.until("all are there", |told| told.len() == count as usize).await;
    let got = listener.ask(root, &sizes, 0..count).await;
    let came: BTreeSet<u32> = (0..count).filter(|leaf| got[*leaf as usize].is_some()).collect();
    assert_eq!(came, readable);
    listener.until("b cannot be read", |told| *told == readable).await;

    make_readable(&tree.join("b"));
    listener.until("b can be read again", |told| told.len() == count as usize).await;
    let got = listener.ask(root, &sizes, 0..count).await;
    assert!(got.iter().all(Option::is_some), "{got:?}");
}

/// A seeder that is none and one again, over and over, has everybody walk through all leaves each time, for a few bytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_toggles_what_it_has_is_let_go_and_others_are_not() {
    let (seeder, leecher) = (Peer::start(), Peer::start());
    let (root, path) = seeder.share_bytes("film", &noise(61, 24 * MB)).await;
    let count = seeder.store.manifest(&root).unwrap().leaves().len() as u32;
    // Slow, so that the fetch goes on while the other one plays.
    seeder.transfer.limit(Rates { up: Some(4_000_000), ..Rates::default() }.into()).await.unwrap();
    let mut fetch = leecher.transfer.fetch(leecher.request(root, "film", vec![seeder.addr()])).await.unwrap();
    while !matches!(fetch.next().await.unwrap(), FetchEvent::Started { .. }) {}

    let mut listener = Listener::join(&leecher.addr(), root).await;
    let set = |range: Range<u32>| LeafSet::Ranges(std::iter::once(range).collect());
    let mut all = vec![];
    Message::Have { channel: 3, leaves: set(0..count) }.encode(&mut all);
    let mut toggle = vec![];
    Message::DontHave { channel: 3, leaves: set(5..6) }.encode(&mut toggle);
    Message::Have { channel: 3, leaves: set(5..6) }.encode(&mut toggle);
    let refused = async {
        let mut toggles = 0;
        let mut written = listener.said.write_all(&all).await;
        while written.is_ok() {
            written = listener.said.write_all(&toggle).await;
            toggles += 1;
            tokio::task::yield_now().await;
        }
        // What it hears is not looked at: one that writes without a pause keeps its own connection's lock from the task
        // that reads, and may find the goodbye only behind the stateless reset that follows, which quinn reports instead.
        listener.connection.quinn().closed().await;
        toggles
    };
    let toggles = tokio::time::timeout(LIMIT, refused).await.expect("it may toggle for ever");
    assert!(toggles > 10, "an honest peer may lose a block and find it again: {toggles}");

    let report = finish(fetch).await.unwrap();
    assert!(fs::read(path).unwrap() == fs::read(&report.paths[0]).unwrap());
    assert!(report.peers.iter().any(|share| share.peer == seeder.id() && share.dropped.is_none()), "{report:?}");
    let let_go = |why: &String| why.contains("announces and withdraws more");
    assert!(
        report.peers.iter().any(|share| share.bytes == 0 && share.dropped.as_ref().is_some_and(let_go)),
        "{report:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_has_or_lacks_what_does_not_exist_breaks_the_protocol() {
    let seeder = Peer::start();
    let (root, _) = seeder.share_bytes("film", &noise(71, MB)).await;
    let count = seeder.store.manifest(&root).unwrap().leaves().len() as u32;
    let set = |end| LeafSet::Ranges(std::iter::once(0..end).collect());
    for what in ["has leaves", "lacks leaves"] {
        let message = |leaves| match what {
            "has leaves" => Message::Have { channel: 3, leaves },
            _ => Message::DontHave { channel: 3, leaves },
        };
        let mut listener = Listener::join(&seeder.addr(), root).await;
        listener.until("all are there", |told| told.len() == count as usize).await;
        let mut bytes = vec![];
        message(set(count)).encode(&mut bytes);
        message(set(count + 1)).encode(&mut bytes);
        listener.said.write_all(&bytes).await.unwrap();
        let why = tokio::time::timeout(LIMIT, listener.connection.quinn().closed()).await.unwrap().to_string();
        assert!(why.contains(&format!("{what} that do not exist")), "{why}");
    }
}

/// Others leave nothing to a leecher to ask of seeders while it knows none.
#[tokio::test(flavor = "multi_thread")]
async fn a_leecher_whose_seeder_goes_says_so_and_says_when_it_finds_another() {
    let (first, second, leecher) = (Peer::start(), Peer::start(), Peer::start());
    let bytes = noise(77, 4 * MB);
    let (root, _) = first.share_bytes("film", &bytes).await;
    second.share_bytes("film", &bytes).await;
    for seeder in [&first, &second] {
        seeder.transfer.limit(Rates { up: Some(500_000), ..Rates::default() }.into()).await.unwrap();
    }
    let mut fetch = leecher.transfer.fetch(leecher.request(root, "film", vec![first.addr()])).await.unwrap();
    while !matches!(fetch.next().await.unwrap(), FetchEvent::Started { .. }) {}
    let mut listener = Listener::join(&leecher.addr(), root).await;
    listener.until("something came", |told| !told.is_empty()).await;
    assert_eq!(listener.reaches, None, "it knows a seeder, as all do until they say otherwise");
    first.stop().await;
    listener.until_reach("its seeder is gone", false).await;
    leecher.transfer.add_peers(root, vec![second.addr()]).await;
    listener.until_reach("it found another", true).await;
    second.transfer.limit(Rates::default().into()).await.unwrap();
    finish(fetch).await.unwrap();
    assert_eq!(fs::read(leecher.dir.path().join("out/film")).unwrap(), bytes);
    leecher.stop().await;
    second.stop().await;
}

/// What comes while others fetch the same is passed on from memory, whatever becomes of the file meanwhile; what came while
/// nobody else did is read.
#[tokio::test(flavor = "multi_thread")]
async fn what_came_a_moment_ago_is_passed_on_without_the_disk() {
    let (seeder, leecher) = (Peer::start(), Peer::start());
    let bytes = noise(78, 32 * MB);
    let (root, _) = seeder.share_bytes("film", &bytes).await;
    seeder.transfer.limit(Rates { up: Some(MB as u64), ..Rates::default() }.into()).await.unwrap();
    let manifest = seeder.store.manifest(&root).unwrap();
    let sizes = sizes(&manifest);
    let mut fetch = leecher.transfer.fetch(leecher.request(root, "film", vec![seeder.addr()])).await.unwrap();
    while !matches!(fetch.next().await.unwrap(), FetchEvent::Progress { bytes_done: 1.., .. }) {}
    let mut listener = Listener::join(&leecher.addr(), root).await;
    listener.until("something came", |told| !told.is_empty()).await;
    let before = listener.told.clone();
    listener.until("more came", |told| told.len() > before.len()).await;
    let until = listener.told.clone();
    listener.until("more came", |told| told.len() > until.len()).await;
    let after: BTreeSet<u32> = listener.told.difference(&until).copied().collect();

    let mut spoilt = 0;
    for entry in fs::read_dir(leecher.dir.path().join("out")).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            let file = fs::File::options().write(true).open(entry.path()).unwrap();
            file.write_all_at(&vec![0; bytes.len()], 0).unwrap();
            spoilt += 1;
        }
    }
    assert_eq!(spoilt, 1, "the file that the fetch writes to");
    for leaf in after {
        let place = manifest.places(leaf)[0].offset as usize;
        let content = bytes[place..place + sizes[leaf as usize] as usize].to_vec();
        assert!(listener.ask_bytes(root, &sizes, leaf..leaf + 1).await == [Some(content)], "{leaf} is in memory");
    }
    let mut missing = 0;
    for leaf in before {
        missing += listener.ask(root, &sizes, leaf..leaf + 1).await.iter().filter(|got| got.is_none()).count();
    }
    assert!(missing > 0, "what came before there was anybody to keep it for is not in memory");
    drop(fetch);
    leecher.stop().await;
    seeder.stop().await;
}
