//! The seams of any bytes: reads go forward and stay inside, seams ascend, and the search ends.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shoal_content::{SHOAL_V1, Seams};

fuzz_target!(|bytes: &[u8]| {
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
