//! How fast packets are sealed and opened, by both codes that `net::cipher` chooses between:
//! `cargo run --release -p shoal-net --example seal`. One core; GB/s by the length of a packet.

use rustls::{
    SupportedCipherSuite,
    crypto::{aws_lc_rs, ring},
    quic::{Keys, Version},
};
use std::{
    error::Error,
    time::{Duration, Instant},
};

/// Each figure is measured for so long.
const LONG: Duration = Duration::from_millis(500);
const HEADER: [u8; 20] = [0x43; 20];

fn main() -> Result<(), Box<dyn Error>> {
    let codes = [
        ("AWS-LC", aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256),
        ("ring", ring::cipher_suite::TLS13_AES_128_GCM_SHA256),
    ];
    for (name, suite) in codes {
        for len in [1_424, 8_972, 65_000] {
            let (seals, opens) = measure(suite, len)?;
            println!("{name:6} AES-128-GCM, {len:6} bytes: seals {seals:.1}, opens {opens:.1} GB/s");
        }
    }
    Ok(())
}

fn measure(suite: SupportedCipherSuite, len: usize) -> Result<(f64, f64), Box<dyn Error>> {
    let suite = suite.tls13().ok_or("a suite of TLS 1.3")?;
    let quic = suite.quic.ok_or("a suite for QUIC")?;
    let keys = |side| Keys::initial(Version::V1, suite, quic, b"any", side);
    let (ours, theirs) = (keys(rustls::Side::Client).local.packet, keys(rustls::Side::Server).remote.packet);
    let plain = vec![7; len];
    let mut packet = plain.clone();
    let seals = rate(len, |number| ours.encrypt_in_place(number, &HEADER, &mut packet).map(drop))?;
    packet.copy_from_slice(&plain);
    let tag = ours.encrypt_in_place(1, &HEADER, &mut packet)?;
    packet.extend_from_slice(tag.as_ref());
    let mut copy = packet.clone();
    let opens = rate(len, |_| {
        copy.copy_from_slice(&packet);
        theirs.decrypt_in_place(1, &HEADER, &mut copy).map(drop)
    })?;
    Ok((seals, opens))
}

/// GB/s of something done to `len` bytes again and again.
fn rate(len: usize, mut work: impl FnMut(u64) -> Result<(), rustls::Error>) -> Result<f64, rustls::Error> {
    let (began, mut rounds) = (Instant::now(), 0);
    while began.elapsed() < LONG {
        work(rounds)?;
        rounds += 1;
    }
    Ok(rounds as f64 * len as f64 / began.elapsed().as_secs_f64() / 1e9)
}
