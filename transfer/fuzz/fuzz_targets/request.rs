//! Any request head is a request or an error, and survives its own encoding.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shoal_transfer::wire::{MAX_LEAVES_PER_REQUEST, Request};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = Request::decode(bytes) {
        if let Request::Leaves { leaves, .. } = &request {
            let count: usize = leaves.ranges().iter().map(|r| r.len()).sum();
            assert!((1..=MAX_LEAVES_PER_REQUEST).contains(&count));
        }
        assert_eq!(Request::decode(&request.encode()), Ok(request));
    }
});
