//! What the codec costs: announcements as a busy swarm sends them, a request as it is made for scattered leaves, and a pack
//! of source code under zstd, both ways.
#![allow(missing_docs, reason = "criterion_group makes an undocumented function")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use shoal_content::{Cid, Codec, HashKind};
use shoal_transfer::wire::{self, Decoder, LeafSet, Message, PackHead, PackKind, Packing, Request};
use std::hint::black_box;

const MESSAGES: u32 = 1_000;
/// As a request asks for scattered leaves, all within the span of a bitmap.
const SCATTERED: u32 = 1_024;

/// Announcements of a few leaves each, as they come from peers that fetch.
fn announcements() -> Vec<Message> {
    let sets = |n: u32| LeafSet::pack([n * 7, n * 7 + 2, n * 7 + 3]);
    (0..MESSAGES).flat_map(sets).map(|leaves| Message::Have { channel: 3, leaves }).collect()
}

fn control(c: &mut Criterion) {
    let messages = announcements();
    let mut bytes = vec![];
    messages.iter().for_each(|message| message.encode(&mut bytes));
    let mut group = c.benchmark_group("control stream");
    group.throughput(Throughput::Elements(messages.len() as u64));
    group.bench_function("encode an announcement", |b| {
        let mut out = Vec::with_capacity(bytes.len());
        b.iter(|| {
            out.clear();
            messages.iter().for_each(|message| message.encode(&mut out));
            black_box(&out);
        });
    });
    group.bench_function("decode an announcement", |b| {
        b.iter(|| {
            let mut decoder = Decoder::default();
            // as they are cut by packets
            let mut seen = 0;
            for part in bytes.chunks(1_400) {
                decoder.push(part);
                while decoder.poll().expect("what was encoded").is_some() {
                    seen += 1;
                }
            }
            assert_eq!(seen, messages.len());
        });
    });
    group.finish();
}

fn request(c: &mut Criterion) {
    let root = Cid::of(Codec::DagPb, HashKind::Blake3, b"a root");
    let leaves = LeafSet::pack((0..SCATTERED).map(|n| n * 3 + n % 2)).swap_remove(0);
    let request = Request::Leaves { root, packing: Packing::Off, leaves };
    let bytes = request.encode();
    let mut group = c.benchmark_group("request");
    group.bench_function("encode", |b| b.iter(|| black_box(&request).encode()));
    group.bench_function("decode", |b| b.iter(|| Request::decode(black_box(&bytes)).expect("what was encoded")));
    group.finish();
}

fn pack(c: &mut Criterion) {
    // lines of source in no order: to repeat the file would be too easy
    let lines: Vec<&str> = include_str!("../src/wire/message.rs").lines().collect();
    let (mut plain, mut random) = (Vec::with_capacity(1 << 20), 1u64);
    while plain.len() < 1 << 20 {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        plain.extend_from_slice(lines[(random >> 33) as usize % lines.len()].as_bytes());
        plain.extend_from_slice(&random.to_le_bytes()[..3]);
    }
    plain.truncate(1 << 20);
    let frame = wire::compress(&plain, 1).expect("source code gives way");
    let head = PackHead { kind: PackKind::Zstd, items: 1, plain: plain.len() as u32, wire: frame.len() as u32 };
    let mut group = c.benchmark_group("pack of 1 MiB");
    group.throughput(Throughput::Bytes(plain.len() as u64));
    group.bench_function("compress", |b| b.iter(|| wire::compress(black_box(&plain), 1)));
    group.bench_function("decompress", |b| {
        b.iter_batched(
            || frame.clone(),
            |frame| wire::decompress(&head, &frame).expect("a frame"),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, control, request, pack);
criterion_main!(benches);
