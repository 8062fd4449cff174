//! Any head of a pack and any frame are its plain bytes or an error, of the length that the head says.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shoal_transfer::wire::{MAX_PACK_BYTES, PACK_HEAD_BYTES, PackHead, compress, decompress};

fuzz_target!(|bytes: &[u8]| {
    let Some((head, frame)) = bytes.split_first_chunk::<PACK_HEAD_BYTES>() else { return };
    if let Ok(head) = PackHead::decode(head) {
        assert!(head.plain <= MAX_PACK_BYTES);
        assert_eq!(PackHead::decode(&head.encode()), Ok(head));
        if let Ok(plain) = decompress(&head, frame) {
            assert_eq!(plain.len(), head.plain as usize);
        }
    }
    if let Some(packed) = compress(frame, 1) {
        let head = PackHead { kind: shoal_transfer::wire::PackKind::Zstd, items: 1, plain: frame.len() as u32, wire: packed.len() as u32 };
        assert_eq!(PackHead::decode(&head.encode()), Ok(head));
        assert_eq!(decompress(&head, &packed).as_deref(), Ok(frame));
    }
});
