//! Any control stream, however it is cut, is messages or an error; a message survives its own encoding.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shoal_transfer::wire::{Decoder, MAX_FRAME_BYTES};

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    let mut decoder = Decoder::default();
    for piece in bytes.chunks(usize::from(step).max(1)) {
        decoder.push(piece);
        loop {
            match decoder.poll() {
                Ok(Some(message)) => {
                    let mut again = vec![];
                    message.encode(&mut again);
                    assert!(again.len() <= MAX_FRAME_BYTES + 8);
                    let mut second = Decoder::default();
                    second.push(&again);
                    assert_eq!(second.poll(), Ok(Some(message)));
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
});
