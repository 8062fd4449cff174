//! What the store costs per block: reads from the page cache, puts, staging of many small files, lookups; where packs or the
//! index are involved, of a plain store and of an encrypted one.

use std::{hint::black_box, path::Path, time::Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use shoal_content::{Cid, Codec, HashKind};
use shoal_store::{KeyCost, Options, Passphrase, Stamp, Store};

const CHUNK: usize = 256 << 10;
const CHUNKS: usize = 256;
const SMALL_FILES: u32 = 80_000;

fn data() -> Vec<u8> {
    let mut data = vec![0; CHUNK * CHUNKS];
    blake3::Hasher::new().finalize_xof().fill(&mut data);
    data
}

/// The two kinds of store, with what their benches are called by.
fn kinds() -> [(&'static str, Options); 2] {
    // The passphrase is no part of what is measured.
    let key_cost = KeyCost { memory_kib: 8, passes: 1, lanes: 1 };
    let passphrase = Passphrase::new(b"correct horse".to_vec().into());
    [
        ("", Options { quota_bytes: u64::MAX, ..Options::default() }),
        (", encrypted", Options { encrypt: true, passphrase, key_cost, quota_bytes: u64::MAX, ..Options::default() }),
    ]
}

fn cid(bytes: &[u8]) -> Cid {
    Cid::of(Codec::Raw, HashKind::Blake3, bytes)
}

fn refs(data: &[u8]) -> Vec<(Cid, u64, u32)> {
    data.chunks(CHUNK).enumerate().map(|(i, c)| (cid(c), (i * CHUNK) as u64, CHUNK as u32)).collect()
}

fn get(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(&dir.path().join("store"), Options::default()).expect("a store");
    let data = data();
    let refs = refs(&data);
    let path = dir.path().join("file");
    std::fs::write(&path, &data).expect("a file");
    let base = store.add_base(&path).expect("a base");
    store.stage_file(base, "", Stamp::default(), &refs, false).expect("staged");
    store.commit().expect("committed");

    let mut group = c.benchmark_group("get");
    group.throughput(Throughput::Bytes(CHUNK as u64));
    let mut next = 0;
    let mut each = || {
        next = (next + 97) % CHUNKS;
        next
    };
    group.bench_function("hash alone, 256 KiB", |b| {
        b.iter(|| {
            let i = each();
            black_box(refs[i].0.verify(&data[i * CHUNK..][..CHUNK]))
        });
    });
    group.bench_function("read, 256 KiB", |b| b.iter(|| store.read(&refs[each()].0).expect("read")));
    let mut buf = Vec::new();
    group.bench_function("read_into, 256 KiB", |b| {
        b.iter(|| store.read_into(&refs[each()].0, &mut buf).expect("read"));
    });
    for (kind, options) in kinds() {
        let store = Store::open(&dir.path().join(format!("packs{kind}")), options).expect("a store");
        data.chunks(CHUNK).for_each(|chunk| store.put(&cid(chunk), chunk).expect("put"));
        store.commit().expect("committed");
        group.bench_function(format!("read_into from a pack{kind}, 256 KiB"), |b| {
            b.iter(|| store.read_into(&refs[each()].0, &mut buf).expect("read"));
        });
    }
    group.finish();
    c.bench_function("has", |b| b.iter(|| store.has(&refs[each()].0).expect("has")));
}

fn put(c: &mut Criterion) {
    let mut n = 0u64;
    let mut group = c.benchmark_group("put");
    group.throughput(Throughput::Bytes(CHUNK as u64));
    group.sample_size(20);
    for (kind, options) in kinds() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path(), options).expect("a store");
        group.bench_function(format!("256 KiB into a pack{kind}"), |b| {
            b.iter_batched(
                || {
                    n += 1;
                    let mut bytes = vec![0; CHUNK];
                    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut bytes);
                    (cid(&bytes), bytes)
                },
                |(cid, bytes)| store.put(&cid, &bytes).expect("put"),
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

fn small_files(c: &mut Criterion) {
    let cids: Vec<Cid> = (0..SMALL_FILES).map(|i| cid(&i.to_le_bytes())).collect();
    let names: Vec<String> = (0..SMALL_FILES).map(|i| format!("drivers/net/dir{}/some_file{i}.c", i / 16)).collect();
    let mut group = c.benchmark_group("small files");
    group.sample_size(10);
    for (kind, options) in kinds() {
        group.bench_function(format!("stage 80,000 and commit{kind}"), |b| {
            b.iter_custom(|rounds| {
                let mut total = std::time::Duration::ZERO;
                for _ in 0..rounds {
                    let dir = tempfile::tempdir().expect("a directory");
                    let store = Store::open(dir.path(), options.clone()).expect("a store");
                    let base = store.add_base(Path::new("/nowhere")).expect("a base");
                    let start = Instant::now();
                    for (cid, name) in cids.iter().zip(&names) {
                        store.stage_file(base, name, Stamp::default(), &[(*cid, 0, 4000)], false).expect("staged");
                    }
                    store.commit().expect("committed");
                    total += start.elapsed();
                    assert!(store.has_many(&cids).expect("has").into_iter().all(|has| has));
                }
                total
            });
        });
    }
    group.finish();
}

criterion_group!(benches, get, put, small_files);
criterion_main!(benches);
