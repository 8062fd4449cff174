//! The ciphers of a connection: in which order they are offered, and whose code computes them.
//!
//! AES-128-GCM comes first where the processor computes AES, ChaCha20 elsewhere. Keys are exchanged and signatures verified
//! by AWS-LC. It has a wide AES-GCM for processors with AVX-512 only; for those that compute AES in vectors of 32 bytes (VAES
//! with AVX2) ring has one that takes a third to a half of the time. Both are the same cipher on the wire.
//! Never here: certificates, identities, configurations.

use rustls::{
    SupportedCipherSuite,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{self, cipher_suite as aws_lc, kx_group},
        ring::cipher_suite as ring,
    },
};

/// What both sides of every connection are built on.
pub(crate) fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = suites(Processor::detect());
    // Keys of one packet: the first flight stays within 1,200 bytes.
    provider.kx_groups = vec![kx_group::X25519, kx_group::SECP256R1];
    provider
}

/// How a processor computes AES-GCM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Processor {
    /// Not at all.
    Plain,
    /// A block of 16 bytes at a time, or four with AVX-512.
    Aes,
    /// Two blocks at a time.
    Wide,
}

impl Processor {
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    fn detect() -> Self {
        use std::arch::is_x86_feature_detected as has;
        match has!("aes") && has!("pclmulqdq") {
            true if has!("vaes") && has!("vpclmulqdq") && has!("avx2") && !has!("avx512f") => Processor::Wide,
            true => Processor::Aes,
            false => Processor::Plain,
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn detect() -> Self {
        use std::arch::is_aarch64_feature_detected as has;
        if has!("aes") && has!("pmull") { Processor::Aes } else { Processor::Plain }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
    fn detect() -> Self {
        Processor::Plain
    }
}

/// The suites of TLS 1.3, the best first.
fn suites(processor: Processor) -> Vec<SupportedCipherSuite> {
    let chacha = aws_lc::TLS13_CHACHA20_POLY1305_SHA256;
    let aes = match processor {
        Processor::Wide => [ring::TLS13_AES_128_GCM_SHA256, ring::TLS13_AES_256_GCM_SHA384],
        Processor::Plain | Processor::Aes => [aws_lc::TLS13_AES_128_GCM_SHA256, aws_lc::TLS13_AES_256_GCM_SHA384],
    };
    match processor {
        Processor::Plain => vec![chacha, aes[0], aes[1]],
        Processor::Aes | Processor::Wide => vec![aes[0], aes[1], chacha],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{
        Side,
        quic::{Keys, Version},
        version::TLS13,
    };

    const ALL: [Processor; 3] = [Processor::Plain, Processor::Aes, Processor::Wide];

    #[test]
    fn every_processor_offers_the_same_suites_of_tls_1_3() {
        let names = |processor| {
            let mut names: Vec<_> = suites(processor).iter().map(|suite| u16::from(suite.suite())).collect();
            names.sort_unstable();
            names
        };
        for processor in ALL {
            assert_eq!(names(processor), [0x1301, 0x1302, 0x1303]);
            assert!(suites(processor).iter().all(|suite| suite.version() == &TLS13));
        }
    }

    /// What one side seals by the one code, the other opens by the other: packets of many lengths, and one that was changed.
    #[test]
    fn both_codes_are_one_cipher() {
        let keys = |processor, side| {
            let suite = suites(processor)[0].tls13().unwrap();
            Keys::initial(Version::V1, suite, suite.quic.unwrap(), b"a connection id", side)
        };
        let (narrow, wide) = (keys(Processor::Aes, Side::Client), keys(Processor::Wide, Side::Server));
        for (number, len) in [0, 1, 15, 16, 17, 255, 256, 1_200, 1_424, 8_972, 65_000].into_iter().enumerate() {
            let plain: Vec<u8> = (0..len).map(|at| (at * 7 + number) as u8).collect();
            for (from, to) in [(&narrow, &wide), (&wide, &narrow)] {
                let (header, number) = ([0x43, number as u8], number as u64);
                let mut packet = plain.clone();
                let tag = from.local.packet.encrypt_in_place(number, &header, &mut packet).unwrap();
                packet.extend_from_slice(tag.as_ref());
                let mut forged = packet.clone();
                assert_eq!(to.remote.packet.decrypt_in_place(number, &header, &mut packet).unwrap(), plain);
                forged[len / 2] ^= 1;
                to.remote.packet.decrypt_in_place(number, &header, &mut forged).unwrap_err();
            }
        }
    }
}
