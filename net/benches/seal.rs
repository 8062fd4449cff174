//! How fast packets are sealed and opened, by both codes that `net::cipher` chooses between, by a packet's length. One core.
#![allow(missing_docs, reason = "criterion_group makes an undocumented function")]

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rustls::{
    Side,
    crypto::{aws_lc_rs, ring},
    quic::{Keys, Version},
};

const HEADER: [u8; 20] = [0x43; 20];
/// Packets of Ethernet, of jumbo frames and of loopback.
const LENGTHS: [usize; 3] = [1_424, 8_972, 65_000];

fn seal(c: &mut Criterion) {
    let codes = [
        ("AWS-LC", aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256),
        ("ring", ring::cipher_suite::TLS13_AES_128_GCM_SHA256),
    ];
    for (name, suite) in codes {
        let suite = suite.tls13().expect("a suite of TLS 1.3");
        let quic = suite.quic.expect("a suite for QUIC");
        let keys = |side| Keys::initial(Version::V1, suite, quic, b"any", side);
        let (ours, theirs) = (keys(Side::Client).local.packet, keys(Side::Server).remote.packet);
        let mut group = c.benchmark_group(name);
        for len in LENGTHS {
            let mut packet = vec![7; len];
            group.throughput(Throughput::Bytes(len as u64));
            group.bench_function(BenchmarkId::new("seal", len), |b| {
                b.iter(|| ours.encrypt_in_place(1, &HEADER, &mut packet).expect("sealed"));
            });
            let tag = ours.encrypt_in_place(1, &HEADER, &mut packet).expect("sealed");
            packet.extend_from_slice(tag.as_ref());
            group.bench_function(BenchmarkId::new("open", len), |b| {
                let open = |packet: &mut Vec<u8>| {
                    theirs.decrypt_in_place(1, &HEADER, packet).expect("opened");
                };
                b.iter_batched_ref(|| packet.clone(), open, BatchSize::SmallInput);
            });
        }
    }
}

criterion_group!(benches, seal);
criterion_main!(benches);
