//! The seams of any archive, and of what is none: reads go forward and stay inside, seams ascend, and the search ends.
//!
//! An input is a list of blocks, since no mutation finds a header's checksum by itself: a header of any kind and size, or a
//! block that is filled with pax records.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shoal_content::{SHOAL_V1, Seams};

fuzz_target!(|input: &[u8]| {
    let (blocks, tail) = input.as_chunks::<16>();
    let mut bytes: Vec<u8> = blocks.iter().flat_map(block).collect();
    // A file that ends inside a block.
    bytes.extend_from_slice(tail);

    let mut profile = SHOAL_V1;
    profile.entries_over = Some(100);
    let mut seams = Seams::new(&profile, bytes.len() as u64);
    let (mut reads, mut before, mut last) = (0, 0, 0);
    while let Some((at, len)) = seams.poll_read() {
        assert!(at >= before && at as usize + len <= bytes.len());
        before = at;
        reads += 1;
        assert!(reads <= bytes.len() / 256 + 8);
        seams.handle_read(&bytes[at as usize..at as usize + len]);
        while let Some(seam) = seams.poll_seam() {
            assert!(seam > last && seam < bytes.len() as u64);
            last = seam;
        }
    }
});

/// The block that 16 bytes stand for.
fn block(from: &[u8; 16]) -> [u8; 512] {
    let mut block = [0; 512];
    match from[0] % 4 {
        0 => return block,
        1 => {
            for records in block.as_chunks_mut::<15>().0 {
                records.copy_from_slice(&from[1..]);
            }
            return block;
        }
        // Sizes in base-256, up to what does not fit, or in octal, small.
        2 => {
            block[124] = 0x80;
            block[127..136].copy_from_slice(&from[2..11]);
        }
        _ => {
            let size = u16::from_be_bytes([from[2], from[3]]);
            block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        }
    }
    block[156] = from[1];
    block[257..262].copy_from_slice(b"ustar");
    (block[482], block[504]) = (from[14], from[15]);
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}
