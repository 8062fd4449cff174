//! What an import and a fetch spend their time on here: cutting, hashing, building trees, decoding and walking them.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark; criterion's macros document nothing")]

use std::{collections::HashMap, hint::black_box, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use shoal_content::{Block, Cid, Codec, HashKind, Link, Node, SHOAL_V1, Walk, WalkLimits, directory};

fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

fn chunks(c: &mut Criterion) {
    let data = random(32 << 20);
    let mut group = c.benchmark_group("chunks");
    group.throughput(Throughput::Bytes(data.len() as u64));
    group.bench_function("cut", |b| b.iter(|| SHOAL_V1.cut_segment(black_box(&data), data.len())));
    let hash = |kind: HashKind| data.chunks(300 << 10).map(|chunk| kind.digest(chunk)[0]).fold(0, u8::wrapping_add);
    group.bench_function("blake3", |b| b.iter(|| hash(HashKind::Blake3)));
    group.bench_function("sha2-256", |b| b.iter(|| hash(HashKind::Sha2_256)));
    group.finish();
}

/// A tree like that of the Linux sources: 80,000 files of one leaf in 4,000 directories, and one directory of 20,000.
fn tree(out: &mut Vec<Block>) -> Link {
    let file = |i: u32| Link::leaf(Cid::of(Codec::Raw, HashKind::Blake3, &i.to_le_bytes()), 4 + i % 20_000);
    let top = (0..40).map(|i| {
        let middle = (0..100).map(|j| {
            let names = (0..20).map(|k| (format!("some_source_file_{k}.c"), file(i * 2000 + j * 20 + k)));
            (format!("directory_{j}"), directory(&SHOAL_V1, names.collect(), out).unwrap())
        });
        let middle: Vec<_> = middle.collect();
        (format!("subsystem_{i}"), directory(&SHOAL_V1, middle, out).unwrap())
    });
    let mut top: Vec<_> = top.collect();
    top.push(("large".into(), large(out)));
    directory(&SHOAL_V1, top, out).unwrap()
}

fn large(out: &mut Vec<Block>) -> Link {
    let file = Link::leaf(Cid::of(Codec::Raw, HashKind::Blake3, b"x"), 1);
    directory(&SHOAL_V1, (0..20_000).map(|i| (format!("entry number {i}"), file)).collect(), out).unwrap()
}

fn dag(c: &mut Criterion) {
    let mut out = Vec::new();
    let root = tree(&mut out).cid;
    let blocks: HashMap<Cid, _> = out.iter().map(|block| (block.cid, block.bytes.clone())).collect();
    let walk = || {
        let mut walk = Walk::new(root, WalkLimits::default());
        while let Some(cid) = walk.next_needed() {
            walk.insert(&cid, &blocks[&cid]).unwrap();
        }
        walk.finish().unwrap()
    };
    assert_eq!(walk().file_count(), 100_000);
    let mut group = c.benchmark_group("dag");
    group.bench_function("walk of 100,000 files", |b| b.iter(walk));
    group.bench_function("build of 100,000 files", |b| b.iter(|| tree(&mut Vec::new())));
    group.bench_function("directory of 20,000, sharded", |b| b.iter(|| large(&mut Vec::new())));
    let plain = out.iter().max_by_key(|block| block.bytes.len()).unwrap();
    group.throughput(Throughput::Bytes(plain.bytes.len() as u64));
    group.bench_function("decode of one node", |b| {
        b.iter(|| Node::decode(&plain.cid, black_box(&plain.bytes)).unwrap())
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = chunks, dag
}
criterion_main!(benches);
