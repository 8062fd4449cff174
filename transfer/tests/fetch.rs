//! Fetches between real peers on loopback: what arrives, what is reported, what misbehaving peers can do about it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{LIMIT, MIXED_FILE, Manner, Peer, RawPeer, finish, noise};
use shoal_content::{Cid, Codec, FileBuilder, HashKind, RelPath, SHOAL_V1};
use shoal_store::Stamp;
use shoal_transfer::{FetchError, FetchEvent, Rates, TransferConfig, TransferLimits};
use std::{fs, path::Path, time::Duration};

const MB: usize = 1 << 20;

fn same(a: &Path, b: &Path) {
    assert!(fs::read(a).unwrap() == fs::read(b).unwrap(), "{} and {} differ", a.display(), b.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_arrives_and_is_served_on() {
    let (seeder, first, second) = (Peer::start(), Peer::start(), Peer::start());
    let (root, path) = seeder.share_bytes("film", &noise(1, 9 * MB + 17)).await;
    let report = first.fetch(root, "film", vec![seeder.addr()]).await.unwrap();
    same(&path, &report.paths[0]);
    assert_eq!(
        (report.bytes, report.bytes_fetched, report.bytes_duplicate),
        (9 * MB as u64 + 17, 9 * MB as u64 + 17, 0)
    );
    assert_eq!(report.peers.len(), 1);
    assert_eq!(report.peers[0].peer, seeder.id());
    // the publisher leaves; who fetched it serves it
    seeder.stop().await;
    let report = second.fetch(root, "film", vec![first.addr()]).await.unwrap();
    same(&first.dir.path().join("out/film"), &report.paths[0]);
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_arrives_whole_and_a_path_of_it_alone() {
    let (seeder, all, part) = (Peer::start(), Peer::start(), Peer::start());
    let tree = seeder.dir.path().join("tree");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::create_dir_all(tree.join("empty")).unwrap();
    fs::write(tree.join("a/none"), b"").unwrap();
    fs::write(tree.join("a/b/big"), noise(2, 3 * MB)).unwrap();
    for i in 0..700 {
        fs::write(tree.join(format!("a/f{i}")), noise(i, i as usize * 7 + 1)).unwrap();
    }
    let root = seeder.share(&tree).await;
    let report = all.fetch(root, "tree", vec![seeder.addr()]).await.unwrap();
    let out = &report.paths[0];
    assert_eq!(fs::read_dir(out.join("a")).unwrap().count(), 702);
    assert!(out.join("empty").is_dir());
    same(&tree.join("a/b/big"), &out.join("a/b/big"));
    for i in 0..700 {
        same(&tree.join(format!("a/f{i}")), &out.join(format!("a/f{i}")));
    }
    let mut request = part.request(root, "tree", vec![seeder.addr()]);
    request.paths = vec!["a/b".parse::<RelPath>().unwrap()];
    let report = finish(part.transfer.fetch(request).await.unwrap()).await.unwrap();
    assert_eq!(report.bytes, 3 * MB as u64);
    same(&tree.join("a/b/big"), &report.paths[0].join("big"));
    // another path over the same connection
    let mut request = part.request(root, "tree", vec![seeder.addr()]);
    request.paths = vec!["a/f600".parse::<RelPath>().unwrap()];
    let report = finish(part.transfer.fetch(request).await.unwrap()).await.unwrap();
    same(&tree.join("a/f600"), &report.paths[0]);
}

/// More leaves than anybody may announce who cannot know yet how many there are.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_very_many_leaves_comes_over_one_connection() {
    const LEAVES: u64 = 100_000;
    let (seeder, leecher) = (Peer::start(), Peer::start());
    let path = seeder.dir.path().join("many");
    let bytes: Vec<u8> = (0..LEAVES).flat_map(u64::to_le_bytes).collect();
    fs::write(&path, &bytes).unwrap();
    let (mut builder, mut nodes, mut refs) = (FileBuilder::new(&SHOAL_V1, None), Vec::new(), Vec::new());
    for (i, leaf) in bytes.chunks(8).enumerate() {
        let cid = Cid::of(Codec::Raw, HashKind::Blake3, leaf);
        builder.leaf(cid, 8, &mut nodes);
        refs.push((cid, 8 * i as u64, 8));
    }
    let root = builder.finish(&mut nodes).cid;
    let base = seeder.store.add_base(&path).unwrap();
    let stamp = Stamp { size: bytes.len() as u64, mtime_ns: 0 };
    seeder.store.stage_file(base, "", stamp, &refs, false).unwrap();
    nodes.iter().for_each(|node| seeder.store.put(&node.cid, &node.bytes).unwrap());
    seeder.transfer.seed(root).await.unwrap();
    let mut fetch = leecher.transfer.fetch(leecher.request(root, "many", vec![seeder.addr()])).await.unwrap();
    let mut dropped = Vec::new();
    let report = loop {
        match fetch.next().await.unwrap() {
            FetchEvent::PeerDropped { why, .. } => dropped.push(why),
            FetchEvent::Done(report) => break report,
            FetchEvent::Failed(error) => panic!("{error}"),
            _ => {}
        }
    };
    assert_eq!(dropped, Vec::<String>::new(), "nobody did wrong");
    same(&path, &report.paths[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn leechers_learn_of_each_other_and_share_the_work() {
    let seeder = Peer::start();
    let (root, path) = seeder.share_bytes("film", &noise(3, 48 * MB)).await;
    let leechers: Vec<Peer> = (0..4).map(|_| Peer::start()).collect();
    let fetches = leechers.iter().map(|l| l.fetch(root, "film", vec![seeder.addr()]));
    for report in futures::future::join_all(fetches).await {
        let report = report.unwrap();
        same(&path, &report.paths[0]);
        // a leecher's own stripe comes from the seeder, the rest mostly from others
        assert!(report.peers.len() > 1, "{report:?}");
    }
    let sent = seeder.transfer.counters().await.bytes_out;
    assert!(sent < 4 * 48 * MB as u64 * 9 / 10, "the seeder sent {sent} bytes: all of it to everyone");
}

#[tokio::test(flavor = "multi_thread")]
async fn liars_and_stallers_are_named_and_worked_around() {
    let seeder = Peer::start();
    let (root, path) = seeder.share_bytes("film", &noise(4, 24 * MB)).await;
    let sizes: Vec<u32> = seeder.store.manifest(&root).unwrap().leaves().iter().map(|l| l.len).collect();
    for (manner, word) in [
        (Manner::Lies, "wrong bytes"),
        (Manner::Stalls, "stalled"),
        (Manner::HangsUp, "protocol fault"),
        (Manner::Boasts, "do not exist"),
        (Manner::Babbles, "protocol fault"),
        (Manner::Bombs, "does not hold what it says"),
    ] {
        let raw = RawPeer::start(root, sizes.clone(), manner);
        let leecher = Peer::start();
        // the bad peer is connected first, so that it is asked
        let mut fetch = leecher.transfer.fetch(leecher.request(root, "film", vec![raw.addr()])).await.unwrap();
        let connected = async {
            while leecher.transfer.peers().await.is_empty() && manner != Manner::Babbles {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LIMIT, connected).await.unwrap();
        leecher.transfer.add_peers(root, vec![seeder.addr()]).await;
        let mut told = false;
        let report = loop {
            match tokio::time::timeout(LIMIT, fetch.next()).await.unwrap().unwrap() {
                FetchEvent::PeerDropped { peer, .. } => told |= peer == raw.id(),
                FetchEvent::Done(report) => break report,
                FetchEvent::Failed(error) => panic!("{error}"),
                _ => {}
            }
        };
        same(&path, &report.paths[0]);
        assert!(report.elapsed < Duration::from_secs(7), "{word}: it took {:?} to work around it", report.elapsed);
        let share = report.peers.iter().find(|s| s.peer == raw.id()).unwrap_or_else(|| panic!("{word}: not reported"));
        assert!(share.dropped.as_ref().is_some_and(|why| why.contains(word)), "{word}: {share:?}");
        assert!(told || manner == Manner::Stalls, "{word}: not told");
        assert_eq!(share.bytes, 0);
        raw.stop().await;
    }
}

/// Room to verify is for whole leaves: those that are begun and never ended cannot fill it, however many peers do so.
#[tokio::test(flavor = "multi_thread")]
async fn peers_that_begin_leaves_and_end_none_hold_up_nobody() {
    let seeder = Peer::start();
    let (root, path) = seeder.share_bytes("film", &noise(22, 24 * MB)).await;
    let sizes: Vec<u32> = seeder.store.manifest(&root).unwrap().leaves().iter().map(|l| l.len).collect();
    let raws: Vec<RawPeer> = (0..12).map(|_| RawPeer::start(root, sizes.clone(), Manner::Dangles)).collect();
    let leecher = Peer::start();
    let peers = raws.iter().map(RawPeer::addr).collect();
    let fetch = leecher.transfer.fetch(leecher.request(root, "film", peers)).await.unwrap();
    let connected = async {
        while leecher.transfer.peers().await.len() < raws.len() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, connected).await.unwrap();
    leecher.transfer.add_peers(root, vec![seeder.addr()]).await;
    let report = finish(fetch).await.unwrap();
    same(&path, &report.paths[0]);
    assert!(report.elapsed < Duration::from_secs(10), "it took {:?} to work around them", report.elapsed);
    assert_eq!(report.peers.iter().filter(|s| s.dropped.is_some() && s.bytes == 0).count(), raws.len());
    for raw in raws {
        raw.stop().await;
    }
}

/// Answers that come mixed fill the window with what is not read yet. That is their sender's loss, not the fetch's end.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_mixes_its_answers_cannot_wedge_a_fetch() {
    let seeder = Peer::start();
    let (root, path) = seeder.share_bytes("film", &noise(MIXED_FILE.0, MIXED_FILE.1)).await;
    let sizes: Vec<u32> = seeder.store.manifest(&root).unwrap().leaves().iter().map(|l| l.len).collect();
    let raw = RawPeer::start(root, sizes, Manner::Mixes);
    let leecher = Peer::start();
    let report = leecher.fetch(root, "film", vec![raw.addr(), seeder.addr()]).await.unwrap();
    same(&path, &report.paths[0]);
    assert!(report.elapsed < Duration::from_secs(10), "it took {:?} to work around it", report.elapsed);
    raw.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_dies_or_lost_its_file_is_worked_around() {
    let (dying, damaged, healthy) = (Peer::start(), Peer::start(), Peer::start());
    let bytes = noise(5, 64 * MB);
    let (root, path) = healthy.share_bytes("film", &bytes).await;
    assert_eq!(dying.share_bytes("film", &bytes).await.0, root);
    let (_, gone) = damaged.share_bytes("film", &bytes).await;
    fs::write(gone, noise(6, 64 * MB)).unwrap();
    let leecher = Peer::start();
    let peers = vec![dying.addr(), damaged.addr(), healthy.addr()];
    let mut fetch = leecher.transfer.fetch(leecher.request(root, "film", peers)).await.unwrap();
    // as soon as bytes flow, one provider falls silent without a goodbye
    loop {
        match tokio::time::timeout(LIMIT, fetch.next()).await.unwrap().unwrap() {
            FetchEvent::Progress { bytes_done, .. } if bytes_done > 0 => break,
            FetchEvent::Started { .. } => break,
            FetchEvent::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
    drop(dying);
    let report = finish(fetch).await.unwrap();
    same(&path, &report.paths[0]);
    let from_damaged = report.peers.iter().find(|s| s.peer == damaged.id()).map_or(0, |s| s.bytes);
    assert_eq!(from_damaged, 0, "nothing unverified is served");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_goes_on_where_it_stopped() {
    let seeder = Peer::start();
    let (root, path) = seeder.share_bytes("film", &noise(7, 96 * MB)).await;
    let leecher = Peer::start();
    let mut fetch = leecher.transfer.fetch(leecher.request(root, "film", vec![seeder.addr()])).await.unwrap();
    loop {
        match tokio::time::timeout(LIMIT, fetch.next()).await.unwrap().unwrap() {
            FetchEvent::Started { .. } => break,
            FetchEvent::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
    while leecher.transfer.counters().await.bytes_in < 8 * MB as u64 {
        tokio::task::yield_now().await;
    }
    // dropping the fetch cancels it; a second one may begin once the first has let go
    drop(fetch);
    let report = loop {
        match leecher.fetch(root, "film", vec![seeder.addr()]).await {
            Ok(report) => break report,
            Err(FetchError::Busy(_) | FetchError::Checkout(shoal_store::CheckoutError::Busy { .. })) => {
                tokio::task::yield_now().await;
            }
            Err(error) => panic!("{error}"),
        }
    };
    same(&path, &report.paths[0]);
    assert!(report.bytes_resumed > 0 || report.bytes_local > 0, "{report:?}");
    assert_eq!(report.bytes_resumed + report.bytes_local + report.bytes_fetched, report.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_provider_it_ends_with_a_clear_error() {
    let (leecher, stranger) = (Peer::start(), Peer::start());
    let (other, _) = stranger.share_bytes("other", b"something else").await;
    let root = shoal_content::Cid::of(shoal_content::Codec::DagPb, shoal_content::HashKind::Blake3, b"nobody has this");
    assert_ne!(other, root);
    let mut request = leecher.request(root, "film", vec![stranger.addr()]);
    request.give_up_after = Some(Duration::from_millis(400));
    let error = finish(leecher.transfer.fetch(request).await.unwrap()).await.unwrap_err();
    assert!(matches!(error, FetchError::NoProviders { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn shutting_down_ends_everything() {
    let (seeder, leecher) = (Peer::start(), Peer::start());
    let (root, _) = seeder.share_bytes("film", &noise(8, 32 * MB)).await;
    let fetch = leecher.transfer.fetch(leecher.request(root, "film", vec![seeder.addr()])).await.unwrap();
    tokio::time::timeout(LIMIT, leecher.transfer.shutdown()).await.expect("shutdown hangs");
    let end = finish(fetch).await;
    assert!(matches!(end, Ok(_) | Err(FetchError::ShuttingDown)), "{end:?}");
    assert!(leecher.transfer.fetch(leecher.request(root, "x", vec![])).await.is_err());
    tokio::time::timeout(LIMIT, seeder.stop()).await.expect("shutdown hangs");
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_hold_in_both_directions_and_change_while_running() {
    let (seeder, leecher) = (Peer::start(), Peer::start());
    let (root, path) = seeder.share_bytes("film", &noise(9, 12 * MB)).await;
    for (up, down) in [(Some(4 * MB as u64), None), (None, Some(4 * MB as u64))] {
        seeder.transfer.limit(Rates { up, ..Rates::default() }.into()).await.unwrap();
        leecher.transfer.limit(Rates { down_per_peer: down, ..Rates::default() }.into()).await.unwrap();
        let name = format!("limited {up:?}");
        // another root each time: what is here already would not be fetched
        let (other, _) = seeder.share_bytes(&name, &noise(up.unwrap_or(1), 6 * MB)).await;
        let report = leecher.fetch(other, &name, vec![seeder.addr()]).await.unwrap();
        let least = Duration::from_secs_f64(1.3);
        assert!(report.elapsed > least, "6 MiB at 4 MiB/s took {:?}", report.elapsed);
    }
    // a limit that would take minutes is lifted on the way
    seeder.transfer.limit(Rates { up_per_peer: Some(100_000), ..Rates::default() }.into()).await.unwrap();
    leecher.transfer.limit(Rates::default().into()).await.unwrap();
    let mut fetch = leecher.transfer.fetch(leecher.request(root, "film", vec![seeder.addr()])).await.unwrap();
    loop {
        match tokio::time::timeout(LIMIT, fetch.next()).await.unwrap().unwrap() {
            FetchEvent::Started { .. } => break,
            FetchEvent::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
    seeder.transfer.limit(Rates::default().into()).await.unwrap();
    let report = finish(fetch).await.unwrap();
    same(&path, &report.paths[0]);
    assert!(report.elapsed < Duration::from_secs(60), "{:?}", report.elapsed);
}

/// Whoever sent a wrong block gets in again neither by dialling nor by being named, until the ban is over.
#[tokio::test(flavor = "multi_thread")]
async fn a_liar_is_refused_both_ways_until_its_ban_is_over() {
    let seeder = Peer::start();
    let (root, _) = seeder.share_bytes("film", &noise(51, 4 * MB)).await;
    let sizes: Vec<u32> = seeder.store.manifest(&root).unwrap().leaves().iter().map(|l| l.len).collect();
    let raw = RawPeer::start(root, sizes, Manner::Lies);
    let ban = Duration::from_secs(2);
    let limits = TransferLimits { ban, ..TransferLimits::default() };
    let leecher = Peer::with(TransferConfig { limits, ..TransferConfig::default() });
    // Nodes come from the seeder, which then sends next to nothing, so that the liar is asked.
    seeder.transfer.limit(Rates { up: Some(50_000), ..Rates::default() }.into()).await.unwrap();
    let mut fetch =
        leecher.transfer.fetch(leecher.request(root, "film", vec![raw.addr(), seeder.addr()])).await.unwrap();
    loop {
        match tokio::time::timeout(LIMIT, fetch.next()).await.unwrap().unwrap() {
            FetchEvent::PeerDropped { peer, why } if peer == raw.id() => {
                break assert!(why.contains("wrong bytes"), "{why}");
            }
            FetchEvent::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
    let banned = std::time::Instant::now();
    let dialled_before = raw.dialled();
    leecher.transfer.add_peers(root, vec![raw.addr()]).await;
    let to = leecher.addr();
    let mut refused = 0;
    loop {
        let connection = raw.endpoint.connect(to.addrs[0], to.peer).await.unwrap();
        // Accepted, it hears a hello; refused, why.
        match tokio::time::timeout(LIMIT, connection.quinn().accept_uni()).await.unwrap() {
            Ok(_) => break,
            Err(error) => {
                assert!(error.to_string().contains("refused: you sent wrong bytes"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(banned.elapsed() > ban / 2 && refused > 0, "accepted again after {:?}", banned.elapsed());
    assert_eq!(raw.dialled(), dialled_before, "it was dialled again");
    raw.stop().await;
}
