//! S3-FIFO against LRU on traces of requests: `cargo run --release -p shoal-store --example hit_ratio -- TRACE…`
//!
//! A trace is in libCacheSim's `oracleGeneral` format: records of 24 bytes, little endian: time (u32), object (u64), size
//! in bytes (u32), next access (i64, not used). Where no trace is named, two are made: Zipf-distributed requests alone,
//! and the same with scans of objects that nobody wants again.

use std::{
    collections::{BTreeMap, HashMap},
    error::Error,
};

use shoal_store::S3Fifo;

/// Cache sizes, in thousandths of the bytes of all objects.
const SIZES: [u64; 4] = [1, 10, 50, 100];

/// Object and size.
type Request = (u64, u64);

fn main() -> Result<(), Box<dyn Error>> {
    let mut traces = Vec::new();
    for path in std::env::args().skip(1) {
        let name = std::path::Path::new(&path).file_name().unwrap_or_default().to_string_lossy().into_owned();
        traces.push((name, read(&std::fs::read(path)?)));
    }
    if traces.is_empty() {
        traces.push(("Zipf 1.0".to_owned(), zipf(false)));
        traces.push(("Zipf 1.0 with scans".to_owned(), zipf(true)));
    }
    println!(
        "| trace | requests | objects | cache, % of bytes | LRU: hits, % | S3-FIFO: hits, % | LRU: bytes hit, % | S3-FIFO: bytes hit, % |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (name, requests) in traces {
        let sizes: HashMap<u64, u64> = requests.iter().copied().collect();
        let total: u64 = sizes.values().sum();
        for part in SIZES {
            let capacity = total * part / 1000;
            let (lru, s3) = (run(Lru::default(), &requests, capacity), run(S3Fifo::new(capacity), &requests, capacity));
            println!(
                "| {name} | {} | {} | {} | {:.1} | {:.1} | {:.1} | {:.1} |",
                requests.len(),
                sizes.len(),
                part as f64 / 10.0,
                lru.0,
                s3.0,
                lru.1,
                s3.1
            );
        }
    }
    Ok(())
}

/// What both have in common.
trait Cache {
    fn hit(&mut self, key: u64) -> bool;
    fn bytes(&self) -> u64;
    fn add(&mut self, key: u64, size: u64);
    fn make_room(&mut self) -> bool;
}

impl Cache for S3Fifo<u64> {
    fn hit(&mut self, key: u64) -> bool {
        S3Fifo::hit(self, &key)
    }

    fn bytes(&self) -> u64 {
        S3Fifo::bytes(self)
    }

    fn add(&mut self, key: u64, size: u64) {
        self.insert(key, size);
    }

    fn make_room(&mut self) -> bool {
        self.evict(|_| false).is_some()
    }
}

#[derive(Default)]
struct Lru {
    clock: u64,
    bytes: u64,
    entries: HashMap<u64, (u64, u64)>,
    by_use: BTreeMap<u64, u64>,
}

impl Cache for Lru {
    fn hit(&mut self, key: u64) -> bool {
        let Some((used, _)) = self.entries.get_mut(&key) else { return false };
        self.clock += 1;
        self.by_use.remove(used);
        self.by_use.insert(self.clock, key);
        *used = self.clock;
        true
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn add(&mut self, key: u64, size: u64) {
        self.clock += 1;
        self.bytes += size;
        self.by_use.insert(self.clock, key);
        self.entries.insert(key, (self.clock, size));
    }

    fn make_room(&mut self) -> bool {
        let Some((_, key)) = self.by_use.pop_first() else { return false };
        self.bytes -= self.entries.remove(&key).map_or(0, |(_, size)| size);
        true
    }
}

/// Hits in percent of requests, and of bytes.
fn run(mut cache: impl Cache, requests: &[Request], capacity: u64) -> (f64, f64) {
    let (mut hits, mut hit_bytes, mut bytes) = (0_u64, 0, 0);
    for &(key, size) in requests {
        bytes += size;
        if cache.hit(key) {
            hits += 1;
            hit_bytes += size;
        } else if size <= capacity {
            while cache.bytes() + size > capacity && cache.make_room() {}
            cache.add(key, size);
        }
    }
    let percent = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
    (percent(hits, requests.len() as u64), percent(hit_bytes, bytes))
}

fn read(bytes: &[u8]) -> Vec<Request> {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |n, &byte| n << 8 | u64::from(byte));
    let mut sizes = HashMap::new();
    // An object keeps the size that it had first.
    let request = |record: &[u8]| {
        let key = number(&record[4..12]);
        (key, *sizes.entry(key).or_insert_with(|| number(&record[12..16]).max(1)))
    };
    bytes.chunks_exact(24).map(request).collect()
}

/// A million requests for a hundred thousand objects; with scans, every tenth begins a run of a thousand other objects
/// now and then.
fn zipf(scans: bool) -> Vec<Request> {
    const OBJECTS: usize = 100_000;
    let mut sums = Vec::with_capacity(OBJECTS);
    let mut sum = 0.0;
    for rank in 1..=OBJECTS {
        sum += 1.0 / rank as f64;
        sums.push(sum);
    }
    let mut state = 0x0051_40a1_u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    let mut requests = Vec::new();
    let mut next_scanned = 1_u64 << 40;
    while requests.len() < 1_000_000 {
        if scans && random() < 0.0005 {
            requests.extend((0..1000).map(|i| (next_scanned + i, 1)));
            next_scanned += 1000;
        }
        let at = random() * sum;
        requests.push((sums.partition_point(|&below| below < at) as u64, 1));
    }
    requests
}
